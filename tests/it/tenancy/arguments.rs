//! A: names in arguments.
use super::{Speaker, TWO, attack};
use crate::support::{Fence, Redis, free_addr};

fn exists(a: &mut Speaker, key: &str) -> bool {
    a.say(&format!("EXISTS {key}")) == ":1"
}

#[test]
fn a1_repeated_store() {
    attack(|a, world| {
        assert_eq!(a.say("GEORADIUS g 0 0 1 km STORE new STORE b:y"), ":1");
        assert_eq!(a.say("GEORADIUS g 0 0 1 km STORE b:y STOREDIST b:z"), ":1");
        assert_eq!(a.say("GEORADIUS g 0 0 1 km STOREDIST STORE STORE b:s"), ":1");
        assert_eq!(a.say("GEORADIUSBYMEMBER g attacker 1 km STORE new STORE b:l"), ":1");
        assert_eq!(a.say("GEORADIUSBYMEMBER g attacker 1 km STOREDIST b:l STORE b:h"), ":1");
        assert_eq!(a.say("SORT l STORE new STORE b:set"), ":2");
        let mut upstream = world.upstream();
        for written in ["a:b:y", "a:b:z", "a:b:s", "a:b:l", "a:b:h", "a:b:set"] {
            assert!(exists(&mut upstream, written), "{written}");
        }
        assert!(!exists(a, "new"));
    });
}

#[test]
fn a2_option_value_like_an_option() {
    attack(|a, world| {
        let mut upstream = world.upstream();
        assert_eq!(a.say("SORT l STORE BY STORE b:x"), ":2");
        assert_eq!(upstream.say("LRANGE a:b:x 0 -1"), "*2|$1|1|$1|2");
        assert_eq!(a.say("GET BY"), "$8|attacker");
        assert_eq!(a.say("SORT l LIMIT 0 1 STORE b:y"), ":1");
        assert!(exists(&mut upstream, "a:b:y"));
        assert_eq!(a.say("SORT BY GET STORE"), "-WRONGTYPE Operation against a key holding the wrong kind of value");
        assert_eq!(a.say("SORT l BY STORE STORE b:z"), ":2");
        assert!(exists(&mut upstream, "a:b:z"));
        assert_eq!(a.say("SORT l GET STORE STORE b:q"), ":2");
        assert!(exists(&mut upstream, "a:b:q"));
        assert_eq!(a.say("GEORADIUS g 0 0 1 km STORE STOREDIST"), ":1");
        assert!(exists(&mut upstream, "a:STOREDIST"));
        assert_eq!(a.say("GEORADIUS g 0 0 1 km COUNT 1 STORE STORE STORE b:w"), ":1");
        assert!(exists(&mut upstream, "a:b:w"));
        a.refused("SORT l LIMIT 0 STORE b:x");
        a.refused("SORT l STORE");
        a.refused("GEORADIUS g 0 0 1 km STORE");
    });
}

#[test]
fn a3_repeated_match() {
    attack(|a, _| {
        let all = a.say("SCAN 0 COUNT 1000");
        assert_eq!(a.say("SCAN 0 MATCH x MATCH * COUNT 1000"), all);
        assert_eq!(a.say("SCAN 0 MATCH x COUNT 1000 MATCH b:*"), "*2|$1|0|*0|".trim_end_matches('|'));
        assert_eq!(a.say("SCAN 0 MATCH * MATCH x COUNT 1000"), "*2|$1|0|*1|$1|x");
        assert_eq!(a.say("SCAN 0 MATCH MATCH COUNT 1000"), "*2|$1|0|*1|$5|MATCH");
        a.refused("SCAN 0 MATCH");
        a.refused("SCAN 0 MATCH x MATCH");
        a.refused("SCAN 0 COUNT 5 MATCH");
    });
}

#[test]
fn a4_repeated_db() {
    attack(|a, _| {
        a.refused("COPY s b:s DB 0 DB 1");
        a.refused("COPY s b:s DB 1 DB 0 DB 2");
        a.refused("COPY s s DB 1");
        a.refused("COPY s new DB");
        assert_eq!(a.say("COPY s new DB 0 DB 0"), ":1");
        assert_eq!(a.say("COPY s new2 REPLACE DB 0"), ":1");
    });
}

#[test]
fn a5_sort_templates() {
    attack(|a, _| {
        assert_eq!(a.say("SORT l BY nosort GET b:*"), "*2|$-1|$-1");
        assert_eq!(a.say("SORT l BY nosort GET b:s"), "*2|$-1|$-1");
        assert_eq!(a.say("SORT l BY nosort GET b:h->f"), "*2|$-1|$-1");
        assert_eq!(a.say("SORT l BY nosort GET b:d_* GET # GET d_*"), "*6|$-1|$1|1|$8|attacker|$-1|$1|2|$8|attacker");
        assert_eq!(a.say("SORT l BY b:w_*"), "*2|$1|1|$1|2");
        assert_eq!(a.say("SORT l BY b:w_* BY w_*"), "*2|$1|2|$1|1");
        assert_eq!(a.say("SORT l BY w_* BY b:w_* GET # GET b:d_*"), "*4|$1|1|$-1|$1|2|$-1");
        assert_eq!(a.say("SORT_RO l BY nosort GET b:d_*"), "*2|$-1|$-1");
        assert_eq!(a.say("SORT names BY nosort GET ../b:*"), "*2|$-1|$-1");
        // Whole names as elements (`whole` is left out of what the monitor is asked about), and a template of nothing but the star.
        assert_eq!(a.say("RPUSH whole b:s s"), ":2");
        assert_eq!(a.say("SORT whole BY nosort GET *"), "*2|$-1|$8|attacker");
        assert_eq!(a.say("SORT whole BY nosort GET *->f"), "*2|$-1|$-1");
        assert_eq!(a.say("SORT whole BY nosort GET ** STORE b:l"), ":2");
    });
}

#[test]
fn a6_xreadgroup_grammar() {
    attack(|a, world| {
        let mut upstream = world.upstream();
        // The server's ACL looks for the keys behind the first STREAMS, and so refuses what is right.
        let refused = "-NOPERM the upstream does not permit this command or one of its keys";
        let message = "*1|*2|$2|st|*1|*2|$3|1-1|*2|$1|f|$8|attacker";
        let reply = a.say("XREADGROUP COUNT 1 GROUP grp STREAMS STREAMS st >");
        assert!(reply == message || reply == refused, "{reply}");
        assert_eq!(upstream.say("XINFO CONSUMERS a:st grp").contains("$7|STREAMS"), reply == message);
        let reply = a.say("XREADGROUP COUNT 1 GROUP STREAMS c STREAMS st >");
        assert!(reply == message || reply == refused, "{reply}");
        assert_eq!(
            a.say("XREADGROUP GROUP STREAMS COUNT COUNT 1 NOACK STREAMS b:st >").split(' ').next(),
            Some("-NOGROUP")
        );
        assert_eq!(a.say("XREADGROUP GROUP STREAMS BLOCK STREAMS STREAMS >").split(' ').next(), Some("-WRONGTYPE"));
        assert_eq!(a.say("XREAD COUNT 1 STREAMS b:st 0"), "*-1");
        assert_eq!(a.say("XREAD STREAMS st b:st 0 0"), "*1|*2|$2|st|*1|*2|$3|1-1|*2|$1|f|$8|attacker");
        for odd in [
            "XREAD STREAMS st",
            "XREAD STREAMS st b:st 0",
            "XREAD STREAMS",
            "XREAD COUNT STREAMS b:st 0",
            "XREADGROUP GROUP grp STREAMS st >",
            "XREADGROUP GROUP grp c COUNT STREAMS b:st >",
            "XREADGROUP GROUP grp c STREAMS st b:st >",
            "XREADGROUP STREAMS b:st >  x x",
        ] {
            a.refused(odd);
        }
    });
}

#[test]
fn a7_numkeys_lies() {
    attack(|a, _| {
        for lie in [
            "ZUNIONSTORE d 4294967297 b:z",
            "ZUNIONSTORE d 18446744073709551617 b:z",
            "ZUNIONSTORE d 9223372036854775807 b:z",
            "ZUNIONSTORE d 4611686018427387905 b:z",
            "ZUNIONSTORE d -1 b:z",
            "ZUNIONSTORE d 01 b:z",
            "ZUNIONSTORE d +1 b:z",
            "ZUNIONSTORE d 1.0 b:z",
            "ZUNIONSTORE d 0 b:z",
            "ZUNIONSTORE d 2 z",
            "ZUNION x b:z",
            "ZDIFF 3 z b:z",
            "ZINTERCARD 9 b:z",
            "SINTERCARD -9223372036854775808 b:set",
            "LMPOP 0 LEFT",
            "LMPOP 0 b:l LEFT",
            "LMPOP 2 b:l LEFT",
            "ZMPOP 3 z b:z MIN",
            "BLMPOP 0 4294967297 b:l LEFT",
            "BZMPOP 0 -1 b:z MIN",
            "MSETEX 2 k v",
        ] {
            a.refused(lie);
        }
        for script in ["EVAL s -1 b:s", "EVAL s 3 b:s", "EVAL s 01 b:s", "EVAL s 1.0 b:s", "FCALL f 1 b:s"] {
            a.refused(script);
        }
        assert_eq!(a.say("ZUNIONSTORE d 1 b:z"), ":0");
        assert_eq!(a.say("ZUNION 2 z b:z"), "*2|$8|attacker|$6|common");
    });
}

#[test]
fn a8_keys_the_server_does_not_see() {
    attack(|a, _| {
        for refused in [
            "CMS.MERGE c 1 b:c",
            "JSON.MGET x b:j $",
            "TDIGEST.MERGE t 1 b:t",
            "TS.CREATERULE ts b:ts AGGREGATION avg 10",
            "TS.DELETERULE ts b:ts",
            "FT.CREATE idx PREFIX 1 b: SCHEMA t TEXT",
            "FT.SEARCH idx * INKEYS 1 b:s",
            "DEBUG OBJECT b:s",
            "MIGRATE 127.0.0.1 1 b:s 0 10",
            "MIGRATE 127.0.0.1 1  0 10 KEYS b:s",
            "PFDEBUG GETREG b:hll",
            "PFSELFTEST",
        ] {
            a.refused(refused);
        }
    });
}

#[test]
fn a9_subcommand_tricks() {
    attack(|a, world| {
        assert_eq!(a.say("object EnCoDiNg b:s"), "$-1");
        assert_eq!(a.say("OBJECT freq b:s").chars().next(), Some('$'));
        assert!(a.say("OBJECT help").starts_with('*'));
        assert_eq!(a.say("MEMORY USAGE b:s"), "$-1");
        assert_eq!(a.say("MEMORY USAGE b:s SAMPLES 0"), "$-1");
        assert!(a.say("memory usage s samples 0").starts_with(':'));
        for refused in [
            "XGROUP",
            "OBJECT",
            "MEMORY",
            "CLIENT",
            "CONFIG",
            "CLIENT  LIST",
            "config|get *",
            "OBJECT|ENCODING b:s",
            "xinfo|stream b:st",
            "OBJECT ENCODING|x b:s",
            "XGROUP b:st CREATE",
            "XINFO b:st",
            "MEMORY s USAGE",
            "CONFIG SET save x",
            "DEBUG b:s",
        ] {
            a.refused(refused);
        }
        assert!(!a.say("CONFIG GET *").contains(&world.redis.addr().port().to_string()));
        for word in [&b"xgroup create"[..], b"OBJECT\0ENCODING", b"object encoding", b"config|set"] {
            let reply = a.args(&[word, b"b:s", b"x"]);
            assert!(reply.starts_with('-'), "{reply}");
        }
        assert!(a.args(&[b"OBJECT", b"ENCODING\0", b"b:s"]).starts_with('-'));
        assert!(a.args(&[b"CLIENT", b" LIST"]).starts_with('-'));
    });
}

#[test]
fn a10_command_word_tricks() {
    attack(|a, _| {
        let long = vec![b'G'; 60_000];
        for word in
            [&b"GET\0x"[..], b" get", b"get ", b"", b"GET\r\n", b"\xc4\xb0NCR", b"g\xc4\xb1t", b"GET|", b"-GET", &long]
        {
            let reply = a.args(&[word, b"b:s"]);
            assert!(reply.starts_with("-ERR unknown command"), "{reply}");
        }
        assert_eq!(a.say("gEt b:s"), "$-1");
        let huge = vec![b'G'; 16 << 20];
        assert!(a.args(&[&huge, b"b:s"]).starts_with('-'));
    });
}

#[test]
fn a11_unknown_options() {
    attack(|a, _| {
        for line in [
            "GEORADIUS g 0 0 1 km NEWSTORE b:x",
            "SORT l NEWSTORE b:x",
            "SORT l BY",
            "XREADGROUP GROUP grp c NEWOPT b:x STREAMS st >",
            "XREAD NEWOPT b:x STREAMS st 0",
            "COPY s new INTO b:x",
            "SCAN 0 NEWMATCH b:*",
            "BITOP NEWOP b:x s",
        ] {
            a.refused(line);
        }
    });
}

#[test]
fn a12_odd_argument_counts() {
    attack(|a, _| {
        for line in [
            "MSET k v b:s",
            "MSETNX k v b:s",
            "BLPOP b:l",
            "GET",
            "GET b:s b:x",
            "MGET",
            "HSET b:h f",
            "ZADD b:z 1",
            "BITOP AND b:x",
            "XADD b:st *",
            "XADD b:st * f",
            "SMOVE set b:set",
            "RENAME b:s",
            "BLMOVE l b:l LEFT RIGHT",
            "GEOADD b:g 1 1",
            "PFMERGE",
            "DEL",
            "SINTERSTORE b:set",
            "ZRANGESTORE b:z z 0",
            "LINSERT b:l BEFORE x",
            "GETEX",
            "OBJECT ENCODING",
            "MEMORY USAGE",
            "XGROUP CREATE b:st",
            "XINFO STREAM",
            "WATCH",
            "TOUCH",
            "JSON.MGET k $",
        ] {
            a.refused(line);
        }
    });
}

#[test]
fn a13_destinations() {
    attack(|a, world| {
        let mut upstream = world.upstream();
        for (line, written) in [
            ("COPY s b:1", "a:b:1"),
            ("SMOVE set b:2 common", "a:b:2"),
            ("LMOVE l b:3 LEFT LEFT", "a:b:3"),
            ("RPOPLPUSH l b:4", "a:b:4"),
            ("BLMOVE names b:5 LEFT LEFT 1", "a:b:5"),
            ("BRPOPLPUSH names b:6 1", "a:b:6"),
            ("BITOP AND b:7 s x", "a:b:7"),
            ("BITOP NOT b:8 s", "a:b:8"),
            ("PFMERGE b:9 hll", "a:b:9"),
            ("PFMERGE b:10", "a:b:10"),
            ("ZUNIONSTORE b:11 1 z", "a:b:11"),
            ("ZINTERSTORE b:12 2 z z", "a:b:12"),
            ("ZDIFFSTORE b:13 2 z b:z", "a:b:13"),
            ("ZRANGESTORE b:14 z 0 -1", "a:b:14"),
            ("SUNIONSTORE b:15 set2", "a:b:15"),
            ("SINTERSTORE b:16 set2", "a:b:16"),
            ("SDIFFSTORE b:17 set2 b:set", "a:b:17"),
            ("GEOSEARCHSTORE b:18 g FROMMEMBER attacker BYRADIUS 1 km", "a:b:18"),
            ("RENAME x b:19", "a:b:19"),
            ("RENAMENX y b:20", "a:b:20"),
            ("MSET b:21 v b:22 v", "a:b:22"),
            ("MSETNX b:23 v b:24 v", "a:b:24"),
            ("XGROUP CREATE b:25 grp $ MKSTREAM", "a:b:25"),
            ("XADD b:26 * f v", "a:b:26"),
            ("LPUSH b:27 v", "a:b:27"),
            ("SETRANGE b:28 0 v", "a:b:28"),
            ("APPEND b:29 v", "a:b:29"),
            ("HINCRBY b:30 f 1", "a:b:30"),
        ] {
            let reply = a.say(line);
            assert!(!reply.starts_with('-') && reply != "$-1" && reply != "*-1", "{line}: {reply}");
            assert!(exists(&mut upstream, written), "{line}: no {written}");
        }
        // The victim's own names as sources and destinations at once.
        for line in [
            "RENAME b:s s",
            "COPY b:s s REPLACE",
            "SUNIONSTORE s b:set",
            "DEL b:s b:x b:y",
            "UNLINK b:l",
            "LMOVE b:l l LEFT LEFT",
        ] {
            a.say(line);
        }
    });
}

#[test]
fn a14_serialised_payloads() {
    attack(|a, _| {
        let payload = a.client().call(&[b"DUMP", b"s"]);
        let payload = &payload[payload.iter().position(|&c| c == b'\n').unwrap() + 1..payload.len() - 2];
        assert_eq!(a.args(&[b"RESTORE", b"b:new", b"0", payload]), "+OK");
        assert_eq!(a.say("GET b:new"), "$8|attacker");
        assert!(a.args(&[b"RESTORE-ASKING", b"b:new", b"0", payload]).starts_with("-NOPERM"));
        let reply = a.args(&[b"RESTORE", b"b:new2", b"0", b"not a payload"]);
        assert!(reply.starts_with("-ERR DUMP payload"), "{reply}");
        assert!(a.say("FUNCTION RESTORE x").starts_with('-'));
    });
}

#[test]
fn a14_no_payloads_where_the_upstream_does_not_check_them() {
    let redis = Redis::start_with(free_addr(), &["--sanitize-dump-payload", "no"]);
    let fence = Fence::with_tenants(redis.addr(), TWO);
    let mut a = Speaker::new(&fence, "a");
    assert_eq!(a.say("SET s attacker"), "+OK");
    let payload = a.client().call(&[b"DUMP", b"s"]);
    let payload = &payload[payload.iter().position(|&c| c == b'\n').unwrap() + 1..payload.len() - 2];
    assert!(a.args(&[b"RESTORE", b"new", b"0", payload]).starts_with("-NOPERM RESTORE is off"));
    assert_eq!(a.say("EXISTS new"), ":0");
}
