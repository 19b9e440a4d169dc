//! Three tenants with the same key names under everything at once: a mix of commands in every form, logins as one after the other, and
//! connections that break at any byte. Every value carries its owner's tag.
//!
//! `KEYFENCE_TORTURE_SECONDS=600` makes it the long one: 200 connections for that long. `KEYFENCE_TORTURE_SEED` repeats one.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::words;
use crate::support::wire::{bulk, command, show};
use crate::support::{Client, Fence, Redis};

const TENANTS: [(&str, &str); 3] = [("acme", "acme:"), ("acme2", "acme2:"), ("one", "{one}:")];

/// A tag that no command makes by chance.
fn tag(tenant: usize) -> String {
    format!("<{}>", TENANTS[tenant].0)
}

/// Chance that can be repeated: splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 33).unwrap() % below
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.next(all.len())]
    }
}

/// Keyed commands: `%` is the owner's tag, `S L H Z E X G B` a key of that type, `K` any key.
const COMMANDS: [&str; 88] = [
    "SET S %",
    "GET S",
    "GETSET S %",
    "APPEND S %",
    "SETRANGE S 0 %",
    "GETRANGE S 0 -1",
    "GETDEL S",
    "SET S % EX 100 GET",
    "MSET S % S %",
    "MGET S S K",
    "MSETNX S % S %",
    "SETNX S %",
    "STRLEN S",
    "GETEX S PERSIST",
    "LCS S S",
    "RPUSH L % %",
    "LPUSH L %",
    "LPOP L",
    "RPOP L 2",
    "LRANGE L 0 -1",
    "LMOVE L L LEFT RIGHT",
    "RPOPLPUSH L L",
    "LINSERT L BEFORE % %",
    "LPOS L %",
    "LSET L 0 %",
    "LREM L 1 %",
    "LTRIM L 0 20",
    "LMPOP 2 L L LEFT COUNT 3",
    "BLPOP L L 0.01",
    "BRPOP L 0.01",
    "BLMOVE L L LEFT RIGHT 0.01",
    "BLMPOP 0.01 2 L L RIGHT",
    "SORT L ALPHA",
    "SORT L BY nosort GET S GET # GET S*",
    "SORT L ALPHA STORE L",
    "HSET H f % g %",
    "HGETALL H",
    "HGET H f",
    "HMGET H f g",
    "HVALS H",
    "HDEL H f",
    "HRANDFIELD H 2 WITHVALUES",
    "HSCAN H 0",
    "SADD E % x%",
    "SMEMBERS E",
    "SPOP E",
    "SRANDMEMBER E 3",
    "SMOVE E E %",
    "SUNION E E",
    "SINTERSTORE E E E",
    "SUNIONSTORE E E E",
    "SDIFF E E",
    "SSCAN E 0",
    "ZADD Z 1 % 2 x%",
    "ZRANGE Z 0 -1 WITHSCORES",
    "ZPOPMIN Z",
    "BZPOPMIN Z Z 0.01",
    "ZMPOP 2 Z Z MAX",
    "ZUNIONSTORE Z 2 Z Z",
    "ZRANGESTORE Z Z 0 -1",
    "ZINTER 2 Z Z",
    "ZDIFF 2 Z Z WITHSCORES",
    "ZSCORE Z %",
    "ZSCAN Z 0",
    "ZREMRANGEBYRANK Z 10 -1",
    "XADD X * f %",
    "XADD X MAXLEN 20 * f %",
    "XRANGE X - +",
    "XREAD COUNT 3 STREAMS X X 0 0",
    "XREAD BLOCK 5 STREAMS X $",
    "XGROUP CREATE X g 0 MKSTREAM",
    "XREADGROUP GROUP g % COUNT 2 STREAMS X >",
    "XINFO CONSUMERS X g",
    "XPENDING X g",
    "GEOADD G 1 1 % 2 2 x%",
    "GEORADIUS G 1 1 500 km STORE Z STORE Z",
    "GEOSEARCH G FROMLONLAT 1 1 BYRADIUS 500 km",
    "GEOSEARCHSTORE G G FROMLONLAT 1 1 BYRADIUS 500 km",
    "PFADD B %",
    "PFMERGE B B B",
    "PFCOUNT B B",
    "RENAME S S",
    "COPY S S REPLACE",
    "DEL K K",
    "UNLINK K",
    "TYPE K",
    "OBJECT ENCODING K",
    "EXPIRE K 100",
];

const KEYLESS: [&str; 10] = [
    "KEYS *",
    "SCAN 0 COUNT 1000",
    "RANDOMKEY",
    "DBSIZE",
    "CLIENT LIST",
    "INFO keyspace",
    "FLUSHDB ASYNC",
    "CONFIG SET x y",
    "NOSUCH x",
    "CLIENT SETNAME name",
];

fn fill(chance: &mut Chance, text: &str, tenant: usize) -> Vec<u8> {
    let mut args = text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for arg in args.iter_mut().skip(1) {
        let number = chance.next(4);
        match &**arg {
            "S" | "L" | "H" | "Z" | "E" | "X" | "G" | "B" => *arg = format!("{}:{number}", arg.to_lowercase()),
            "S*" => *arg = "s:*".to_owned(),
            "K" => *arg = format!("{}:{number}", chance.of(&["s", "l", "h", "z", "e", "x", "g", "b"])),
            _ if arg.contains('%') => {
                let long = if chance.next(200) == 0 { chance.next(200_000) } else { chance.next(20) };
                *arg = arg.replace('%', &tag(tenant)) + &".".repeat(if text.starts_with("CLIENT") { 0 } else { long });
            }
            _ => {}
        }
    }
    command(&args)
}

/// One thing a client does: its bytes, and how many replies they make.
fn act(chance: &mut Chance, tenant: usize) -> (Vec<u8>, usize) {
    let one = |chance: &mut Chance| {
        let text = if chance.next(30) == 0 { chance.of(&KEYLESS) } else { chance.of(&COMMANDS) };
        fill(chance, text, tenant)
    };
    let several = |chance: &mut Chance, most: usize| -> (Vec<u8>, usize) {
        let count = 1 + chance.next(most);
        ((0..count).flat_map(|_| one(chance)).collect(), count)
    };
    match chance.next(12) {
        0..=4 => (one(chance), 1),
        5 | 6 => several(chance, 40),
        7 | 8 => {
            let (inner, count) = several(chance, 8);
            let end = words(chance.of(&["EXEC", "EXEC", "EXEC", "DISCARD"]));
            ([words("MULTI"), inner, end].concat(), count + 2)
        }
        9 => {
            let (inner, count) = several(chance, 3);
            let watch = fill(chance, "WATCH K K", tenant);
            ([watch, words("MULTI"), inner, words("EXEC")].concat(), count + 3)
        }
        10 => (words(chance.of(&["HELLO 3", "HELLO 2", "UNWATCH", "CLIENT ID"])), 1),
        _ => {
            let (inner, count) = several(chance, 5);
            ([words("CLIENT REPLY ON"), inner].concat(), count + 1)
        }
    }
}

fn sign_in(client: &mut Client, tenant: usize) {
    let name = TENANTS[tenant].0;
    let reply = client.call(&[b"AUTH", name.as_bytes(), format!("p{name}").as_bytes()]);
    assert_eq!(show(&reply), "+OK\\r\\n");
}

/// Nothing of another tenant's is in `reply`.
fn check(reply: &[u8], tenant: usize, sent: &[u8], seed: u64) {
    for other in (0..TENANTS.len()).filter(|other| *other != tenant) {
        let (tag, text) = (tag(other), String::from_utf8_lossy(reply));
        assert!(
            !text.contains(&tag),
            "seed {seed}: {} got {tag}: {}, sent {}",
            TENANTS[tenant].0,
            show(reply),
            show(sent)
        );
    }
    for error in [&b"-NOPERM the upstream"[..], b"-UPSTREAM ", b"-ERR Protocol", b"-BUSY "] {
        assert!(!reply.starts_with(error), "seed {seed}: {}, sent {}", show(reply), show(sent));
    }
}

/// One connection after another, until `done`: how many replies it checked.
fn client(fence: &Fence, mut chance: Chance, done: impl Fn(u64) -> bool) -> u64 {
    let (mut turns, mut replies) = (0, 0);
    while !done(turns) {
        let seed = chance.0;
        let mut tenant = chance.next(TENANTS.len());
        let mut client = fence.client();
        sign_in(&mut client, tenant);
        for _ in 0..chance.next(60) {
            turns += 1;
            if chance.next(25) == 0 {
                // As somebody else, with and without RESET, and sometimes while a transaction or a watch is open.
                for before in [fill(&mut chance, "WATCH K", tenant), words("MULTI"), words("RESET")] {
                    if chance.next(2) == 0 && (before == words("RESET") || chance.next(3) == 0) {
                        check(&client.ask(&before), tenant, &before, seed);
                    }
                }
                tenant = chance.next(TENANTS.len());
                if chance.next(2) == 0 {
                    client.call(&[b"DISCARD"]);
                } else {
                    client.call(&[b"RESET"]);
                }
                sign_in(&mut client, tenant);
            }
            let (bytes, count) = act(&mut chance, tenant);
            if chance.next(30) == 0 {
                // It leaves at any byte, having read some of the replies or none.
                client.send_lossy(&bytes[..chance.next(bytes.len())]);
                break;
            }
            let nonce = format!("nonce-{}", chance.0);
            let all = [bytes, command(&["ECHO", &nonce])].concat();
            let got = if chance.next(3) == 0 {
                // In pieces, each its own write.
                for piece in all.chunks(1 + chance.next(all.len().max(64))) {
                    client.send(piece);
                }
                (0..=count).map(|_| client.reply()).collect()
            } else {
                client.pipeline(&all, count + 1)
            };
            for reply in &got[..count] {
                check(reply, tenant, &all, seed);
            }
            assert_eq!(show(&got[count]), show(&bulk(&nonce)), "out of step, seed {seed}, after {}", show(&all));
            replies += count as u64;
        }
    }
    replies
}

#[test]
fn everything_at_once() {
    let seconds = std::env::var("KEYFENCE_TORTURE_SECONDS").ok().map(|text| text.parse::<u64>().unwrap());
    let seed = std::env::var("KEYFENCE_TORTURE_SEED").map_or(17, |text| text.parse().unwrap());
    let redis = Redis::start();
    let tenants: Vec<String> = TENANTS
        .iter()
        .map(|(name, prefix)| format!("[tenants.{name}]\nprefix = \"{prefix}\"\npasswords = [\"p{name}\"]\n"))
        .collect();
    let fence = Fence::with_tenants(redis.addr(), &format!("[upstream]\nacl_wall = \"require\"\n{}", tenants.concat()));
    let start = SystemTime::now();
    let connections = if seconds.is_some() { 200 } else { 30 };
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for i in 0..connections {
            let (fence, total) = (&fence, &total);
            scope.spawn(move || {
                let done = |turns: u64| match seconds {
                    Some(seconds) => start.elapsed().unwrap_or(Duration::MAX) > Duration::from_secs(seconds),
                    None => turns > 900,
                };
                total.fetch_add(client(fence, Chance(seed * 1000 + i), done), Ordering::Relaxed);
            });
        }
    });
    let total = total.load(Ordering::Relaxed);
    eprintln!("{total} replies on {connections} connections in {:?}", start.elapsed().unwrap());
    assert!(total > 5000, "{total}");
    // Every key is somebody's, and holds nothing of anybody else's.
    for ((db, name), entry) in crate::support::keyspace::dump(&mut redis.client(), "", 16) {
        let owner = TENANTS.iter().position(|(_, prefix)| name.starts_with(prefix));
        let owner = owner.unwrap_or_else(|| panic!("nobody's key: {db} {name}"));
        check(&entry.value, owner, name.as_bytes(), seed);
    }
    for tenant in 0..TENANTS.len() {
        let mut client = fence.client();
        sign_in(&mut client, tenant);
        assert_eq!(client.call(&[b"FLUSHALL"]), b"+OK\r\n");
    }
    assert_eq!(redis.client().call(&[b"DBSIZE"]), b":0\r\n");
}
