//! S, C and administration: what is not served is refused, and nothing of it reaches the upstream.
use super::{World, attack};

/// `commands` are refused as the attacker, alone and in a transaction, and the upstream never sees their names.
fn never_upstream(commands: &[&str]) {
    attack(|a, world| {
        let before = stats(world);
        for text in commands {
            let reply = a.say(text);
            assert!(reply.starts_with("-NOPERM") || reply.starts_with("-ERR"), "{text}: {reply}");
            assert_eq!(a.client().call(&[b"MULTI"]), b"+OK\r\n");
            let reply = super::line(&a.client().ask(&super::words(text)));
            let end = super::line(&a.client().call(&[b"EXEC"]));
            // What Redis itself refuses only when it runs is queued, as it does.
            let queued = reply == "+QUEUED" && end.starts_with("*1|-");
            assert!(queued || reply.starts_with("-NOPERM") || reply.starts_with("-ERR"), "{text}: {reply}");
            assert!(queued || end.starts_with("-EXECABORT"), "{text}: {end}");
        }
        let after = stats(world);
        for text in commands {
            let name = text.split(' ').next().unwrap().to_lowercase();
            let count = |stats: &str| {
                stats
                    .split('|')
                    .filter(|l| l.starts_with(&format!("cmdstat_{name}")))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            // What keyfence says itself to the upstream, and the tests do.
            if !["acl", "info", "client", "config", "monitor", "command", "memory"].contains(&&*name) {
                assert_eq!(count(&before), count(&after), "{name} went upstream");
            }
        }
    });
}

fn stats(world: &World) -> String {
    world.upstream().say("INFO commandstats")
}

#[test]
fn s_scripts_and_functions() {
    never_upstream(&["SCRIPT DEBUG YES", "SCRIPT SHOW x", "FUNCTION DUMP", "FUNCTION RESTORE x"]);
}

#[test]
fn administration() {
    never_upstream(&[
        "CONFIG SET maxmemory 0",
        "CONFIG REWRITE",
        "CONFIG RESETSTAT",
        "DEBUG SLEEP 0",
        "DEBUG RELOAD",
        "SHUTDOWN",
        "SHUTDOWN NOSAVE",
        "REPLICAOF NO ONE",
        "SLAVEOF NO ONE",
        "FAILOVER",
        "SYNC",
        "PSYNC ? -1",
        "REPLCONF capa eof",
        "MODULE LIST",
        "MODULE LOAD x",
        "ACL LIST",
        "ACL SETUSER x",
        "ACL DELUSER x",
        "ACL GETUSER default",
        "ACL LOG",
        "ACL SAVE",
        "ACL USERS",
        "CLUSTER RESET",
        "CLUSTER FAILOVER",
        "SAVE",
        "BGSAVE",
        "BGREWRITEAOF",
        "MIGRATE h 1 k 0 1",
        "RESTORE-ASKING k 0 x",
        "PFDEBUG GETREG hll",
        "MEMORY STATS",
        "MEMORY DOCTOR",
        "MEMORY MALLOC-STATS",
        "MEMORY PURGE",
        "SWAPDB 0 1",
        "ASKING",
        "READONLY",
        "READWRITE",
        "COMMANDLOG GET",
        "HOTKEYS GET",
    ]);
}

#[test]
fn clients_of_others() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    assert_eq!(b.say("CLIENT SETNAME victimname"), "+OK");
    let id = b.say("CLIENT ID").trim_start_matches(':').to_owned();
    let info = b.say("CLIENT INFO");
    let addr = info.split(' ').find_map(|f| f.strip_prefix("addr=")).unwrap().to_owned();
    let mut blocked = world.tenant("b");
    let blocked_id = blocked.say("CLIENT ID").trim_start_matches(':').to_owned();
    blocked.client().send(&super::words("BLPOP none 0"));
    world.redis.wait_for_blocked(1);
    assert!(!a.say("CLIENT LIST").contains("victimname"));
    let upstream_id = world.upstream().say("CLIENT ID").trim_start_matches(':').to_owned();
    for text in [
        format!("CLIENT KILL ID {id}"),
        format!("CLIENT KILL ADDR {addr}"),
        format!("CLIENT KILL {addr}"),
        "CLIENT KILL USER b".to_owned(),
        "CLIENT KILL TYPE normal SKIPME yes".to_owned(),
        "CLIENT KILL USER default".to_owned(),
        format!("CLIENT UNBLOCK {blocked_id}"),
        format!("CLIENT UNBLOCK {blocked_id} ERROR"),
        format!("CLIENT LIST ID {id}"),
        format!("CLIENT KILL ID {upstream_id}"),
        "CLIENT PAUSE 100000 ALL".to_owned(),
    ] {
        let reply = a.client().ask(&super::words(&text));
        assert!(!super::line(&reply).contains("victim"), "{text}");
        assert_eq!(b.say("GET s"), "$6|victim", "after {text}");
    }
    assert_eq!(a.say("CLIENT UNPAUSE"), "+OK");
    assert_eq!(b.say("RPUSH none v"), ":1");
    assert_eq!(super::line(&blocked.client().reply()), "*2|$4|none|$1|v");
    assert_eq!(world.upstream().say("PING"), "+PONG");
}
