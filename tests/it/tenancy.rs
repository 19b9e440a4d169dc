//! Tenant against tenant: the threats of the isolation notes, each by its id, with an attacker and a victim who use the same names.
//!
//! Every attack is made twice, without the second wall (so that the rewriting is seen to hold alone) and with it.
mod arguments;
mod auth;
mod doors;
mod enumeration;
mod limits;
mod prefixes;
mod refused;
mod reload;
mod replies;
mod starvation;
mod state;
mod torture;
mod wall;

use crate::support::keyspace::{Keyspace, dump};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};

/// What every tenant's world begins with: the same names for both, `%` being the owner.
const SEED: [&str; 20] = [
    "SET s %",
    "SET x %",
    "SET y %",
    "SET BY %",
    "SET STORE %",
    "SET MATCH %",
    "MSET w_1 2 w_2 1 d_1 % d_2 %",
    "RPUSH l 1 2",
    "RPUSH names % %2",
    "RPUSH STREAMS %",
    "SADD set % common",
    "SADD set2 common",
    "HSET h f %",
    "ZADD z 1 % 2 common",
    "GEOADD g 0 0 %",
    "XADD st 1-1 f %",
    "XGROUP CREATE st STREAMS 0",
    "XGROUP CREATE st grp 0",
    "PFADD hll %",
    "SETBIT bits 7 1",
];

/// Settings of tenants `a` and `b`, whose passwords are `pa` and `pb`.
pub(crate) const TWO: &str = "[tenants.a]\npasswords = [\"pa\"]\n[tenants.b]\npasswords = [\"pb\"]\n";

/// A reply in one short line: `|` for each line end.
pub(crate) fn line(reply: &[u8]) -> String {
    let text = String::from_utf8_lossy(reply).replace("\r\n", "|");
    text.strip_suffix('|').unwrap_or(&text).to_owned()
}

/// The arguments of a command line that has no quoting.
pub(crate) fn words(text: &str) -> Vec<u8> {
    command(&text.split(' ').collect::<Vec<_>>())
}

/// A connection that speaks in lines, and is found to be in sync after each.
pub(crate) struct Speaker {
    client: Client,
    count: u32,
    /// What must not be in any reply.
    never: Option<&'static str>,
}

impl Speaker {
    /// Logged in as the tenant of this name, with the password `p` and the name.
    pub(crate) fn new(fence: &Fence, name: &str) -> Self {
        Self::of(login(fence, name, &format!("p{name}")))
    }

    /// Whatever the client is logged in as.
    pub(crate) fn of(client: Client) -> Self {
        Self { client, count: 0, never: None }
    }

    /// One command in words; its reply as [`line`] shows it.
    pub(crate) fn say(&mut self, text: &str) -> String {
        self.send(&words(text))
    }

    /// One command of any bytes.
    pub(crate) fn args(&mut self, args: &[&[u8]]) -> String {
        self.send(&command(args))
    }

    /// Bytes that make one reply.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> String {
        self.count += 1;
        let nonce = format!("nonce {}", self.count);
        let replies = self.client.pipeline(&[bytes, &command(&["ECHO", &nonce])].concat(), 2);
        let last = line(&replies[1]);
        assert!(
            last.ends_with(&nonce) || last == "+QUEUED",
            "out of sync after {}: {} and {last}",
            show(bytes),
            show(&replies[0])
        );
        let reply = line(&replies[0]);
        if let Some(never) = self.never {
            assert!(!reply.contains(never), "{} let out {reply}", show(bytes));
        }
        reply
    }

    /// An error, whatever it is; the text.
    pub(crate) fn refused(&mut self, text: &str) -> String {
        let reply = self.say(text);
        assert!(reply.starts_with('-'), "{text}: {reply}");
        reply
    }

    /// The connection itself.
    pub(crate) fn client(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// A client that has logged in.
pub(crate) fn login(fence: &Fence, user: &str, password: &str) -> Client {
    let mut client = fence.client();
    assert_eq!(show(&client.call(&[b"AUTH", user.as_bytes(), password.as_bytes()])), "+OK\\r\\n");
    client
}

/// keyfence with the tenants `a` (the attacker, `a:`) and `b` (the victim, `b:`), both seeded.
pub(crate) struct World {
    pub(crate) redis: Redis,
    pub(crate) fence: Fence,
}

impl World {
    /// With the wall as `acl_wall` says.
    pub(crate) fn new(acl_wall: &str) -> Self {
        Self::with(&format!("acl_wall = \"{acl_wall}\"\n"))
    }

    /// With these settings of the upstream, and what follows them.
    pub(crate) fn with(settings: &str) -> Self {
        let redis = Redis::start();
        let fence = Fence::with_tenants(redis.addr(), &format!("[upstream]\n{settings}{TWO}"));
        let world = Self { redis, fence };
        for (tenant, owner) in [("a", "attacker"), ("b", "victim")] {
            let mut speaker = world.tenant(tenant);
            for seed in SEED {
                let reply = speaker.say(&seed.replace('%', owner));
                assert!(!reply.starts_with('-'), "{seed}: {reply}");
            }
        }
        world
    }

    /// A connection of `a` or `b`.
    pub(crate) fn tenant(&self, name: &str) -> Speaker {
        Speaker::new(&self.fence, name)
    }

    /// A connection straight to the upstream.
    pub(crate) fn upstream(&self) -> Speaker {
        Speaker::of(self.redis.client())
    }

    /// Everything upstream, in all databases.
    pub(crate) fn all(&self) -> Keyspace {
        dump(&mut self.redis.client(), "", 16)
    }
}

/// One attack, without the wall and with it: whatever `with` says as the attacker, the victim's keys stay as they are, nothing is written
/// outside of the attacker's own, no reply carries the victim's values, and no name of the victim's is even asked for upstream.
pub(crate) fn attack(with: impl Fn(&mut Speaker, &World)) {
    for acl_wall in ["off", "require"] {
        let world = World::new(acl_wall);
        let before = world.all();
        let mut monitor = world.redis.client();
        assert_eq!(monitor.call(&[b"MONITOR"]), b"+OK\r\n");
        let mut attacker = world.tenant("a");
        attacker.never = Some("victim");
        with(&mut attacker, &world);
        assert_eq!(world.upstream().say("ECHO end-of-attack"), "$13|end-of-attack");
        loop {
            let seen = line(&monitor.reply());
            if seen.contains("\"end-of-attack\"") {
                break;
            }
            let value = seen.contains("\"RPUSH\" \"a:whole\"");
            assert!(value || !seen.contains(" \"b:"), "a name of the victim's went upstream, wall {acl_wall}: {seen}");
        }
        let after = world.all();
        let victims =
            |all: &Keyspace| all.clone().into_iter().filter(|(k, _)| k.1.starts_with("b:")).collect::<Keyspace>();
        assert_eq!(victims(&before), victims(&after), "the victim's keys have changed, wall {acl_wall}");
        for (db, name) in after.keys() {
            assert!(*db == 0 && (name.starts_with("a:") || name.starts_with("b:")), "{db} {name}, wall {acl_wall}");
        }
        let mut victim = world.tenant("b");
        assert_eq!(victim.say("GET s"), "$6|victim");
    }
}
