//! E: patterns and enumeration.
use super::{SEED, World, attack};
use crate::support::value::Value;
use crate::support::wire::{command, show};

/// How many keys a seeded tenant has.
fn seeded() -> usize {
    // One of the lines makes four keys, and three make none.
    SEED.len() + 3 - 2
}

#[test]
fn e1_whole_keyspace() {
    attack(|a, _| {
        let own = seeded();
        assert_eq!(a.say("DBSIZE"), format!(":{own}"));
        assert!(a.say("KEYS *").starts_with(&format!("*{own}|")));
        assert!(a.say("SCAN 0 COUNT 1000").starts_with(&format!("*2|$1|0|*{own}|")));
        let all = a.client().call(&[b"KEYS", b"*"]);
        let names: Vec<Vec<u8>> = Value::parse(&all).kids.into_iter().map(|v| v.text).collect();
        for _ in 0..200 {
            let name = Value::parse(&a.client().call(&[b"RANDOMKEY"])).text;
            assert!(names.contains(&name), "{}", show(&name));
        }
        assert_eq!(
            a.say("DEL s x y BY STORE MATCH w_1 w_2 d_1 d_2 l names STREAMS set set2 h z g st hll bits"),
            format!(":{own}")
        );
        assert_eq!(a.say("RANDOMKEY"), "$-1");
        assert_eq!(a.say("DBSIZE"), ":0");
        assert_eq!(a.say("KEYS *"), "*0");
    });
}

#[test]
fn e2_patterns_cannot_reach_left_of_the_prefix() {
    attack(|a, _| {
        let own = format!("*{}|", seeded());
        for all in ["*", "**", "[^q]*", "[^]*", "?*", "\\s*", "[a-z]*", "[!-~]*", "[^"] {
            let reply = a.say(&format!("KEYS {all}"));
            assert!(reply.starts_with('*'), "{all}: {reply}");
        }
        assert!(a.say("KEYS *").starts_with(&own));
        for none in ["", "b:*", "*:*", "../b:*", "\\", "[", "x\\", "*b:s", "a:*", "?:s", "b[:]*", "*\\:s", "[b]:s"] {
            let reply = a.send(&command(&["KEYS", none]));
            assert_eq!(reply, "*0", "{none}");
            let reply = a.send(&command(&["SCAN", "0", "COUNT", "1000", "MATCH", none]));
            assert_eq!(reply, "*2|$1|0|*0", "{none}");
        }
    });
}

#[test]
fn e3_pattern_bombs() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    let name = "a".repeat(4000);
    assert_eq!(a.say(&format!("SET {name} attacker")), "+OK");
    let bomb = format!("{}b", "a*".repeat(2000));
    let nested = format!("{}b", "*[a-z]".repeat(2000));
    for bomb in [&bomb, &nested] {
        a.client().send(&command(&["KEYS", bomb]));
        a.client().send(&command(&["SCAN", "0", "MATCH", bomb]));
        for _ in 0..20 {
            assert_eq!(b.say("GET s"), "$6|victim");
        }
        for _ in 0..2 {
            let reply = a.client().reply();
            assert!(matches!(reply[0], b'*' | b'-'), "{}", show(&reply));
        }
    }
}

#[test]
fn e4_cursor_abuse() {
    attack(|a, _| {
        for i in 0..30 {
            let keys: Vec<String> = (0..100).map(|j| format!("k{i}-{j} attacker")).collect();
            assert_eq!(a.say(&format!("MSET {}", keys.join(" "))), "+OK");
        }
        for cursor in ["18446744073709551615", "9223372036854775807", "1", "12345678901234567890", "4", "1024"] {
            let reply = a.say(&format!("SCAN {cursor} COUNT 9223372036854775807"));
            assert!(reply.starts_with('*') || reply.starts_with('-'), "{reply}");
        }
        for cursor in ["-1", "x", "18446744073709551616", "1.0", "0x1", "+1"] {
            a.refused(&format!("SCAN {cursor}"));
        }
        a.refused("SCAN 0 COUNT 0");
        a.refused("SCAN 0 COUNT -1");
    });
}

#[test]
fn e4_a_cursor_of_another_tenant() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    let pairs: Vec<String> = (0..3000).map(|i| format!("more{i} victim")).collect();
    assert_eq!(b.say(&format!("MSET {}", pairs.join(" "))), "+OK");
    let first = Value::parse(&b.client().call(&[b"SCAN", b"0", b"COUNT", b"1"]));
    let mut cursor = first.kids[0].as_str().to_owned();
    assert_ne!(cursor, "0");
    let own = a.client().call(&[b"KEYS", b"*"]);
    let own: Vec<Vec<u8>> = Value::parse(&own).kids.into_iter().map(|v| v.text).collect();
    for _ in 0..10_000 {
        let page = Value::parse(&a.client().call(&[b"SCAN", cursor.as_bytes(), b"COUNT", b"10"]));
        assert!(page.kids[1].kids.iter().all(|name| own.contains(&name.text)));
        cursor = page.kids[0].as_str().to_owned();
        if cursor == "0" {
            return;
        }
    }
    panic!("the scan does not end");
}

#[test]
fn e5_few_keys_among_many() {
    let world = World::new("require");
    let mut upstream = world.redis.client();
    let bytes: Vec<u8> = (0..50_000).flat_map(|i| command(&["SET", &format!("b:many{i}"), "victim"])).collect();
    assert!(upstream.pipeline(&bytes, 50_000).iter().all(|reply| reply == b"+OK\r\n"));
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    for _ in 0..20 {
        a.client().send(&command(&["KEYS", "*"]));
        assert_eq!(b.say("GET s"), "$6|victim");
    }
    for _ in 0..20 {
        assert!(super::line(&a.client().reply()).starts_with(&format!("*{}|", seeded())));
    }
}

#[test]
fn e6_sizes_are_the_tenants_own() {
    let world = World::with("acl_wall = \"require\"\n[admin]\nslowlog_threshold = \"1h\"\n");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    let (size, info, sets) = (a.say("DBSIZE"), a.say("INFO keyspace"), a.say("LATENCY HISTOGRAM set"));
    for i in 0..500 {
        assert_eq!(b.say(&format!("SET more{i} victim")), "+OK");
    }
    assert_eq!(a.say("DBSIZE"), size);
    assert_eq!(a.say("INFO keyspace"), info);
    for oracle in
        ["MEMORY STATS", "MEMORY DOCTOR", "DEBUG HTSTATS 0", "MEMORY MALLOC-STATS", "LATENCY LATEST", "SLOWLOG GET"]
    {
        let reply = a.say(oracle);
        assert!(reply.starts_with("-NOPERM") || reply == "*0", "{oracle}: {reply}");
    }
    assert_eq!(a.say("LATENCY HISTOGRAM set"), sets);
}

#[test]
fn e7_flush() {
    for flush in ["FLUSHDB", "FLUSHALL", "FLUSHDB SYNC", "FLUSHALL ASYNC"] {
        let world = World::new("require");
        let (before, mut a) = (world.all(), world.tenant("a"));
        assert_eq!(a.say(flush), "+OK");
        while a.say("DBSIZE") != ":0" {}
        let after = world.all();
        assert_eq!(after.len(), before.len() - seeded());
        assert!(after.iter().all(|(key, entry)| key.1.starts_with("b:") && before[key] == *entry));
    }
}

#[test]
fn e8_databases() {
    attack(|a, world| {
        let mut upstream = world.redis.client();
        for refused in [
            "SELECT 1",
            "SELECT -1",
            "SELECT 15",
            "SELECT 4294967296",
            "SWAPDB 0 1",
            "MOVE s 1",
            "MOVE b:s 1",
            "COPY s s DB 1",
            "COPY b:s s DB 1",
        ] {
            a.refused(refused);
        }
        assert_eq!(a.say("SELECT 0"), "+OK");
        assert_eq!(a.say("GET s"), "$8|attacker");
        assert_eq!(upstream.call(&[b"DBSIZE"]), format!(":{}\r\n", 2 * seeded()).into_bytes());
    });
}

#[test]
fn e9_slots_and_hot_keys() {
    attack(|a, _| {
        for refused in [
            "CLUSTER GETKEYSINSLOT 0 100",
            "CLUSTER COUNTKEYSINSLOT 0",
            "CLUSTER SLOT-STATS SLOTSRANGE 0 16383",
            "CLUSTERSCAN 0",
            "HOTKEYS GET",
            "HOTKEYS START",
            "CLUSTER NODES",
            "CLUSTER SLOTS",
            "CLUSTER SHARDS",
            "CLUSTER FLUSHSLOTS",
            "OBJECT HOTKEYS",
            "DEBUG LISTPACK b:s",
        ] {
            a.refused(refused);
        }
    });
}

#[test]
fn e10_existence_probes() {
    attack(|a, _| {
        // Every name exists for the victim, and none for the attacker behind this spelling.
        for (probe, absent) in [
            ("EXISTS b:s", ":0"),
            ("TYPE b:s", "+none"),
            ("TTL b:s", ":-2"),
            ("TOUCH b:s", ":0"),
            ("RENAMENX b:s new", "-ERR no such key"),
            ("COPY b:s new", ":0"),
            ("OBJECT ENCODING b:s", "$-1"),
            ("GET b:l", "$-1"),
            ("LLEN b:s", ":0"),
            ("MSETNX b:s1 v", ":1"),
            ("SETNX b:s v", ":1"),
            ("GETSET b:x v", "$-1"),
            ("SET b:y v NX GET", "$-1"),
            ("STRLEN b:BY", ":0"),
            ("DUMP b:BY", "$-1"),
            ("XINFO STREAM b:st", "-ERR no such key"),
            ("WATCH b:s", "+OK"),
            ("PFCOUNT b:hll", ":0"),
            ("GETDEL b:BY", "$-1"),
            ("EXPIRE b:BY 1", ":0"),
            ("PERSIST b:BY", ":0"),
            ("OBJECT REFCOUNT b:BY", "$-1"),
            ("SUBSTR b:BY 0 -1", "$0|"),
        ] {
            assert_eq!(a.say(probe), absent, "{probe}");
        }
    });
}
