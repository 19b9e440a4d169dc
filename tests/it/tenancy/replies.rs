//! R: names in replies and errors.
use super::{Speaker, World, attack, line, login};
use crate::support::wire::{command, show};
use crate::support::{Fence, Redis};

/// A prefix that cannot come into a reply by chance.
const MARK: &str = "zq-17-qz:";

#[test]
fn r1_every_slot_of_a_name() {
    let redis = Redis::start();
    let config = format!("[tenants.m]\nprefix = \"{MARK}\"\npasswords = [\"pm\"]\n");
    let fence = Fence::with_tenants(redis.addr(), &config);
    for hello in ["HELLO 2", "HELLO 3"] {
        let mut m = Speaker::new(&fence, "m");
        for text in [
            hello,
            "FLUSHALL",
            "RPUSH l 1 2 3 4 5 6 7 8",
            "ZADD z 1 a 2 b 3 c 4 d 5 e 6 f 7 g",
            "XADD st 1-1 f v",
            "XGROUP CREATE st g 0",
            "BLPOP l 1",
            "BRPOP none l 1",
            "LMPOP 2 none l LEFT",
            "BLMPOP 1 2 none l RIGHT",
            "ZMPOP 1 z MIN",
            "BZMPOP 1 2 none z MAX COUNT 2",
            "BZPOPMIN z 1",
            "BZPOPMAX none z 1",
            "XREAD STREAMS st none 0 0",
            "XREAD COUNT 1 BLOCK 1 STREAMS st 0",
            "XREADGROUP GROUP g c STREAMS st >",
            "KEYS *",
            "SCAN 0 COUNT 100",
            "RANDOMKEY",
            "COMMAND GETKEYS GET k",
            "COMMAND GETKEYSANDFLAGS MSET k v k2 v",
            "OBJECT ENCODING l",
            "XINFO STREAM st",
            "XINFO STREAM st FULL",
            "XINFO GROUPS st",
            "XINFO CONSUMERS st g",
            "XINFO GROUPS none",
            "MEMORY USAGE l",
            "CLIENT LIST",
            "CLIENT INFO",
            "CLIENT GETNAME",
            "CLIENT TRACKINGINFO",
            "INFO",
            "INFO everything",
            "COMMAND INFO get",
            "ACL WHOAMI",
            "SLOWLOG GET",
            "CONFIG GET *",
            "LATENCY LATEST",
            "HELLO",
            "XREADGROUP GROUP nosuch c STREAMS st >",
            "XACK st nosuch 1-1",
            "XPENDING st nosuch",
            "XCLAIM st nosuch c 0 1-1",
            "XAUTOCLAIM st nosuch c 0 0",
            "XGROUP SETID st nosuch 0",
            "XGROUP CREATECONSUMER st nosuch c",
            "XGROUP DELCONSUMER st nosuch c",
            "XINFO CONSUMERS st nosuch",
            "XPENDING none nosuch",
            "XGROUP CREATE none g 0",
            "GET l",
            "INCR st",
            "LPUSH z v",
            "SORT l BY w_* GET x_*",
            "DUMP none",
            "LCS l z",
            "RENAME none none2",
            "RESTORE l 0 x",
            "DEBUG OBJECT l",
            "NOSUCH l",
            "CLUSTER KEYSLOT l",
            "UNSUBSCRIBE c",
            "PUBLISH c x",
            "PUBSUB CHANNELS",
            "EVAL x 1 l",
            "MOVE l 1",
        ] {
            let reply = m.say(text);
            assert!(!reply.contains("zq-17"), "{text}: {reply}");
        }
        // The same inside of a transaction, in one write and in pieces.
        let inner = [
            "BLPOP l 1",
            "ZMPOP 1 z MIN",
            "XREAD STREAMS st 0",
            "XREADGROUP GROUP nosuch c STREAMS st >",
            "BZPOPMIN z 1",
            "LMPOP 1 l LEFT",
        ];
        let block: Vec<u8> =
            ["MULTI"].iter().chain(&inner).chain(&["EXEC"]).flat_map(|text| super::words(text)).collect();
        let whole = m.client().pipeline(&block, inner.len() + 2).concat();
        assert!(!show(&whole).contains("zq-17"), "{}", show(&whole));
        assert_eq!(m.client().call(&[b"MULTI"]), b"+OK\r\n");
        for text in inner {
            assert_eq!(m.client().ask(&super::words(text)), b"+QUEUED\r\n");
        }
        let pieces = show(&m.client().call(&[b"EXEC"]));
        assert!(!pieces.contains("zq-17"), "{pieces}");
    }
}

#[test]
fn r2_error_texts() {
    attack(|a, _| {
        let nogroup = |key: &str, group: &str| format!("No such key '{key}' or consumer group '{group}'");
        assert!(
            a.say("XREADGROUP GROUP no c STREAMS b:st >")
                .contains(&format!("{} in XREADGROUP with GROUP option", nogroup("b:st", "no")))
        );
        assert!(a.say("XPENDING st no").ends_with(&nogroup("st", "no")));
        assert!(a.say("XCLAIM st no c 0 1-1").ends_with(&nogroup("st", "no")));
        assert!(a.say("XAUTOCLAIM st no c 0 0").ends_with(&nogroup("st", "no")));
        assert_eq!(a.say("XGROUP SETID st no 0"), "-NOGROUP No such consumer group 'no' for key name 'st'");
        assert_eq!(a.say("XGROUP DELCONSUMER st no c"), "-NOGROUP No such consumer group 'no' for key name 'st'");
        assert_eq!(a.say("XINFO CONSUMERS st no"), "-NOGROUP No such consumer group 'no' for key name 'st'");
        // Names and groups of any bytes: the prefix itself, quotes, line ends.
        for name in [&b"a:st"[..], b"x' or 'a:", b"\r\n+OK\r\n", b"n\0ul", b"a:", b""] {
            let reply = a.args(&[b"XREADGROUP", b"GROUP", name, b"c", b"STREAMS", name, b">"]);
            assert!(reply.starts_with("-NOGROUP No such key '"), "{reply}");
            assert!(!reply.contains("'a:a:st'") && !reply.contains("'a:x'"), "{reply}");
        }
    });
}

#[test]
fn r3_errors_that_arrive_later() {
    let world = World::new("require");
    let (mut a, mut other, mut b) = (world.tenant("a"), world.tenant("a"), world.tenant("b"));
    for end in ["DEL st", "SET st attacker", "XGROUP DESTROY st grp", "RENAME names st", "FLUSHALL"] {
        other.say("DEL st");
        assert_eq!(other.say("XGROUP CREATE st grp $ MKSTREAM"), "+OK");
        a.client().send(&super::words("XREADGROUP GROUP grp c BLOCK 0 STREAMS st >"));
        b.client().send(&super::words("XREADGROUP GROUP grp c BLOCK 0 STREAMS none st > >"));
        // The victim's has no group on `none` and ends at once; the attacker's waits.
        assert!(line(&b.client().reply()).contains("'none'"));
        world.redis.wait_for_blocked(1);
        assert!(!other.say(end).starts_with('-'));
        let reply = line(&a.client().reply());
        assert!(reply.starts_with('-') && !reply.contains("a:"), "{end}: {reply}");
        assert_eq!(b.say("GET s"), "$6|victim");
    }
}

#[test]
fn r4_forged_prefixes() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    // Data is not touched, whatever it looks like, and names lose the prefix once.
    assert_eq!(a.say("SET a:a:k a:secret"), "+OK");
    assert_eq!(a.say("GET a:a:k"), "$8|a:secret");
    assert_eq!(a.say("KEYS a:*"), "*1|$5|a:a:k");
    assert_eq!(a.say("RPUSH a:l a:1 b:2 a:a:3"), ":3");
    assert_eq!(a.say("BLPOP a:l 1"), "*2|$3|a:l|$3|a:1");
    assert_eq!(a.say("LMPOP 1 a:l LEFT COUNT 5"), "*2|$3|a:l|*2|$3|b:2|$5|a:a:3");
    assert_eq!(a.say("HSET h a:f a:v"), ":1");
    assert_eq!(a.say("HGET h a:f"), "$3|a:v");
    assert_eq!(a.say("XADD a:st 1-1 a:f a:v"), "$3|1-1");
    assert_eq!(a.say("XREAD STREAMS a:st 0"), "*1|*2|$4|a:st|*1|*2|$3|1-1|*2|$3|a:f|$3|a:v");
    assert_eq!(a.say("ECHO a:x"), "$3|a:x");
    // A victim's name that is the attacker's prefix.
    assert_eq!(b.say("SET a:s victim"), "+OK");
    assert_eq!(b.say("KEYS a:*"), "*1|$3|a:s");
    assert_eq!(a.say("GET s"), "$8|attacker");
    assert_eq!(world.upstream().say("GET b:a:s"), "$6|victim");
}

#[test]
fn r5_upstream_facts() {
    let redis = Redis::start();
    let mut admin = Speaker::of(redis.client());
    assert_eq!(admin.say("ACL SETUSER upstreamadmin on >upstreamsecret ~* &* +@all"), "+OK");
    let config =
        "[upstream]\nusername = \"upstreamadmin\"\npassword = \"upstreamsecret\"\n[tenants.a]\npasswords = [\"pa\"]\n";
    let fence = Fence::with_tenants(redis.addr(), config);
    let mut a = Speaker::of(login(&fence, "a", "pa"));
    let port = redis.addr().port().to_string();
    for text in [
        "CLIENT INFO",
        "CLIENT LIST",
        "ACL WHOAMI",
        "INFO",
        "INFO everything",
        "INFO server",
        "INFO clients",
        "INFO replication",
        "CONFIG GET *",
        "HELLO 3",
        "HELLO 2",
        "ROLE",
        "CLUSTER NODES",
        "CLUSTER SLOTS",
        "CLUSTER INFO",
        "CLUSTER MYID",
        "MODULE LIST",
        "ACL LIST",
        "ACL USERS",
        "ACL LOG",
        "CONFIG GET dir",
        "SLOWLOG GET 10",
        "MEMORY STATS",
        "COMMAND COUNT",
        "LOLWUT",
        "LASTSAVE",
        "REPLICAOF a 1",
        "DEBUG JMAP",
        "MIGRATE h 1 k 0 1",
        "SHUTDOWN",
    ] {
        let reply = a.say(text);
        for fact in ["upstreamadmin", "upstreamsecret", "keyfence-", &port, "redis.conf", "/tmp"] {
            assert!(!reply.contains(fact), "{text} tells {fact}: {reply}");
        }
    }
    // What the upstream's ACL says of its users is not passed on.
    let user = line(&redis.client().call(&[b"ACL", b"USERS"]));
    let user = user.split('|').find(|user| user.contains("-data-")).unwrap().to_owned();
    assert_eq!(admin.say(&format!("ACL SETUSER {user} -get")), "+OK");
    let reply = a.say("GET k");
    assert!(reply.starts_with("-NOPERM") && !reply.contains("keyfence-"), "{reply}");
    assert_eq!(admin.say("CONFIG SET maxmemory 1"), "+OK");
    let reply = a.say("SET k v");
    assert!(reply.starts_with("-OOM "), "{reply}");
    // A NOPERM in a transaction too.
    let replies = a.client().pipeline(&[command(&["MULTI"]), command(&["GET", "k"]), command(&["EXEC"])].concat(), 3);
    assert!(!show(&replies.concat()).contains("keyfence-"), "{}", show(&replies.concat()));
}
