//! N: prefixes.
use std::process::{Command, Stdio};

use super::{Speaker, TWO, World, login};
use crate::support::wire::show;
use crate::support::{Fence, Redis, free_addr};

/// What `keyfence run` says of settings that it does not start with.
fn refused(config: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, format!("listen = [\"{}\"]\n{config}", free_addr())).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_keyfence"))
        .env_clear()
        .args(["run", "--admin", "", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{config}: {said}");
    assert!(said.contains("config.toml:"), "no place: {said}");
    said
}

fn world(config: &str) -> (Redis, Fence) {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), &format!("[upstream]\nacl_wall = \"require\"\n{config}"));
    (redis, fence)
}

fn tenants(prefixes: &[(&str, &str)]) -> String {
    prefixes
        .iter()
        .map(|(name, prefix)| format!("[tenants.{name}]\nprefix = \"{prefix}\"\npasswords = [\"p{name}\"]\n"))
        .collect()
}

#[test]
fn n1_a_prefix_of_a_prefix() {
    for (one, other) in [("app", "app2"), ("a:", "a:b:"), ("a:", "a:"), ("app2", "app")] {
        let said = refused(&tenants(&[("one", one), ("other", other)]));
        assert!(said.contains("one") && said.contains("other"), "{said}");
    }
    // With an end that is no part of a name they are apart, however alike.
    let (redis, fence) = world(&tenants(&[("app", "app:"), ("app2", "app2:"), ("ap", "ap:"), ("upper", "APP:")]));
    let names = ["app", "app2", "ap", "upper"];
    for name in names {
        let mut speaker = Speaker::new(&fence, name);
        for key in ["k", "2:k", ":k", "p:k", "app2:k"] {
            assert_eq!(speaker.say(&format!("SET {key} {name}")), "+OK");
        }
    }
    for name in names {
        let mut speaker = Speaker::new(&fence, name);
        assert_eq!(speaker.say("DBSIZE"), ":5");
        assert!(speaker.say("KEYS *").starts_with("*5|"));
        assert_eq!(
            speaker.say("MGET k 2:k :k p:k app2:k"),
            format!("*5{}", format!("|${}|{name}", name.len()).repeat(5))
        );
        assert_eq!(speaker.say("KEYS 2:*"), "*1|$3|2:k");
    }
    assert_eq!(Speaker::new(&fence, "app").say("FLUSHALL"), "+OK");
    assert_eq!(Speaker::of(redis.client()).say("DBSIZE"), ":15");
}

#[test]
fn n2_empty_prefix() {
    refused(&tenants(&[("one", ""), ("other", "o:")]));
}

#[test]
fn n3_empty_key() {
    let (redis, fence) = world(TWO);
    let (mut a, mut b) = (Speaker::new(&fence, "a"), Speaker::new(&fence, "b"));
    assert_eq!(a.args(&[b"SET", b"", b"attacker"]), "+OK");
    assert_eq!(b.args(&[b"GET", b""]), "$-1");
    assert_eq!(b.args(&[b"SET", b"", b"victim"]), "+OK");
    assert_eq!(a.args(&[b"GET", b""]), "$8|attacker");
    assert_eq!(a.say("KEYS *"), "*1|$0|");
    assert_eq!(a.say("RANDOMKEY"), "$0|");
    assert_eq!(a.say("SCAN 0 COUNT 1000"), "*2|$1|0|*1|$0|");
    assert_eq!(Speaker::of(redis.client()).say("MGET a: b:"), "*2|$8|attacker|$6|victim");
    assert_eq!(a.args(&[b"RENAME", b"", b"x"]), "+OK");
    assert_eq!(a.args(&[b"DEL", b""]), ":0");
    assert_eq!(b.args(&[b"GET", b""]), "$6|victim");
    assert_eq!(b.say("FLUSHDB"), "+OK");
    assert_eq!(b.say("DBSIZE"), ":0");
}

#[test]
fn n4_glob_characters() {
    for prefix in ["t*", "t?:", "t[12]:", "t\\\\:", "t^", "a b:", "a->b:", "t]", "\\u0000", "\\n", "\u{e9}:"] {
        refused(&tenants(&[("one", prefix), ("other", "o:")]));
    }
    // Those that are allowed and mean something somewhere.
    let (redis, fence) = world(&tenants(&[("a", "a-c:"), ("b", "b:"), ("c", "%41&~+@=,;!$#/.")]));
    for name in ["a", "b", "c"] {
        let mut speaker = Speaker::new(&fence, name);
        assert_eq!(speaker.say(&format!("SET k {name}")), "+OK");
        assert_eq!(speaker.say(&format!("RPUSH l {name}")), ":1");
        assert_eq!(speaker.say("SORT l BY nosort GET k*"), "*1|$-1");
    }
    for name in ["a", "b", "c"] {
        let mut speaker = Speaker::new(&fence, name);
        assert_eq!(speaker.say("GET k"), format!("$1|{name}"));
        assert!(speaker.say("KEYS *").starts_with("*2|"));
        assert_eq!(speaker.say("SCAN 0 MATCH k COUNT 100"), "*2|$1|0|*1|$1|k");
    }
    assert_eq!(Speaker::new(&fence, "a").say("FLUSHALL"), "+OK");
    assert_eq!(Speaker::of(redis.client()).say("DBSIZE"), ":4");
}

#[test]
fn n4_logins_that_look_like_patterns() {
    let redis = Redis::start();
    let mut admin = Speaker::of(redis.client());
    let users = ["t*", "t?", "t[12]", "t1", "t1:x", "t%2A", "T1", "t\\*"];
    for user in users {
        assert_eq!(
            admin.args(&[b"ACL", b"SETUSER", user.as_bytes(), b"on", b">secret", b"~*", b"&*", b"+@all"]),
            "+OK"
        );
    }
    let fence = Fence::with_tenants(redis.addr(), "[auth]\nmode = \"upstream\"\n");
    for user in users {
        let mut client = Speaker::of(login(&fence, user, "secret"));
        assert_eq!(client.say("KEYS *"), "*0", "{user}");
        assert_eq!(client.args(&[b"SET", b"k", user.as_bytes()]), "+OK");
        assert_eq!(client.args(&[b"SET", b"x:k", user.as_bytes()]), "+OK");
    }
    for user in users {
        let mut client = Speaker::of(login(&fence, user, "secret"));
        assert_eq!(client.say("GET k"), format!("${}|{user}", user.len()));
        assert_eq!(client.say("DBSIZE"), ":2");
    }
    assert_eq!(Speaker::of(login(&fence, "t*", "secret")).say("FLUSHALL"), "+OK");
    assert_eq!(admin.say("DBSIZE"), format!(":{}", 2 * users.len() - 2));
    assert!(show(&fence.client().call(&[b"AUTH", b"t1", b"wrong"])).starts_with("-WRONGPASS"));
}

#[test]
fn n5_hash_tags() {
    for prefix in ["{a", "a}:", "{a}{b}", "{}", "}a{", "{a{b}}"] {
        refused(&tenants(&[("one", prefix), ("other", "o:")]));
    }
    let (redis, fence) = world(&tenants(&[("one", "{one}:"), ("two", "{two}")]));
    for name in ["one", "two"] {
        let mut speaker = Speaker::new(&fence, name);
        for key in ["k", "{b}k", "}k", "{k"] {
            assert_eq!(speaker.say(&format!("SET {key} {name}")), "+OK");
            assert_eq!(speaker.say(&format!("GET {key}")), format!("$3|{name}"));
        }
        assert_eq!(speaker.say("DBSIZE"), ":4");
        assert!(speaker.say("KEYS {*").starts_with("*2|"));
    }
    assert_eq!(Speaker::of(redis.client()).say("EXISTS {one}:k {one}:{b}k {one}:}k {two}{k"), ":4");
}

#[test]
fn n6_databases_do_not_tell_tenants_apart() {
    let said = refused("[tenants.one]\nprefix = \"x:\"\ndb = 0\n[tenants.other]\nprefix = \"x:\"\ndb = 1\n");
    assert!(said.contains("prefix"), "{said}");
    refused("[tenants.one]\nprefix = \"x:\"\ndb = 0\n[tenants.other]\nprefix = \"x:y\"\ndb = 5\n");
    let (redis, fence) = world(
        "[tenants.a]\npasswords = [\"pa\"]\ndatabases = 2\n[tenants.b]\npasswords = [\"pb\"]\ndb = 1\ndatabases = 2\n",
    );
    let (mut a, mut b) = (Speaker::new(&fence, "a"), Speaker::new(&fence, "b"));
    for db in 0..2 {
        for (speaker, name) in [(&mut a, "attacker"), (&mut b, "victim")] {
            assert_eq!(speaker.say(&format!("SELECT {db}")), "+OK");
            assert_eq!(speaker.say(&format!("SET k {name}{db}")), "+OK");
        }
    }
    assert!(a.refused("SELECT 2").starts_with("-ERR DB index is out of range"));
    assert_eq!(a.say("MOVE k 0"), ":0");
    assert_eq!(a.say("COPY k k2 DB 0"), ":1");
    a.refused("COPY k k3 DB 2");
    a.refused("MOVE k2 2");
    assert_eq!(a.say("FLUSHALL"), "+OK");
    assert_eq!(b.say("GET k"), "$7|victim1");
    let mut upstream = Speaker::of(redis.client());
    for (db, held) in [(0, ":0"), (1, ":1"), (2, ":1")] {
        assert_eq!(upstream.say(&format!("SELECT {db}")), "+OK");
        assert_eq!(upstream.say("DBSIZE"), held);
    }
}

#[test]
fn n7_longest_name() {
    let redis = Redis::start_with(free_addr(), &["--proto-max-bulk-len", "1mb"]);
    let fence = Fence::with_tenants(redis.addr(), TWO);
    let (mut a, mut b) = (Speaker::new(&fence, "a"), Speaker::new(&fence, "b"));
    let name = vec![b'k'; (1 << 20) - 2];
    assert_eq!(a.args(&[b"SET", &name, b"attacker"]), "+OK");
    assert_eq!(a.args(&[b"GET", &name]), "$8|attacker");
    // One byte too long with the prefix on: an error, and the connection goes on.
    let name = vec![b'k'; (1 << 20) - 1];
    for _ in 0..3 {
        let reply = a.args(&[b"SET", &name, b"attacker"]);
        assert!(reply.starts_with('-'), "{reply}");
        assert_eq!(b.say("SET s victim"), "+OK");
    }
    assert_eq!(Speaker::of(redis.client()).say("DBSIZE"), ":2");
}

#[test]
fn n8_names_are_bytes() {
    let (redis, fence) = world("[tenants.App]\npasswords = [\"p1\"]\n[tenants.app]\npasswords = [\"p2\"]\n");
    assert_eq!(Speaker::of(login(&fence, "App", "p1")).say("SET k upper"), "+OK");
    assert_eq!(Speaker::of(login(&fence, "app", "p2")).say("SET k lower"), "+OK");
    assert_eq!(Speaker::of(redis.client()).say("MGET App:k app:k"), "*2|$5|upper|$5|lower");
    // Few, for failures are answered ever more slowly.
    for (user, password) in
        [("App", "p2"), ("APP", "p1"), ("app ", "p2"), ("app\0", "p2"), ("app", "p2\n"), ("\u{430}pp", "p2")]
    {
        let reply = fence.client().call(&[b"AUTH", user.as_bytes(), password.as_bytes()]);
        assert!(reply.starts_with(b"-WRONGPASS "), "{user:?} {password:?}: {}", show(&reply));
    }
}

#[test]
fn n9_data_left_behind() {
    let world = World::new("require");
    // The tenant goes, its keys stay, and no tenant of another name comes upon them.
    let without =
        "[upstream]\nacl_wall = \"require\"\n[tenants.b]\npasswords = [\"pb\"]\n[tenants.c]\npasswords = [\"pc\"]\n";
    world.fence.reload(without, "settings reloaded");
    let mut c = world.tenant("c");
    assert_eq!(c.say("DBSIZE"), ":0");
    assert_eq!(c.say("GET s"), "$-1");
    assert_eq!(c.say("FLUSHALL"), "+OK");
    assert_eq!(world.upstream().say("GET a:s"), "$8|attacker");
    // Its prefix is its name: who has that again has the keys again, unless they were purged.
    world.fence.reload(&format!("[upstream]\nacl_wall = \"require\"\n{TWO}"), "settings reloaded");
    assert_eq!(world.tenant("a").say("GET s"), "$8|attacker");
    assert_eq!(world.tenant("b").say("GET s"), "$6|victim");
}

#[test]
fn n10_keys_from_before() {
    for wall in ["off", "require"] {
        let world = World::new(wall);
        let mut upstream = world.upstream();
        for name in ["s2", "old:app:1", "a", "a;s2", ":s2"] {
            assert_eq!(upstream.say(&format!("SET {name} before")), "+OK");
        }
        let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
        for name in ["s2", "old:app:1", "a", ":s2", "a;s2"] {
            assert_eq!(a.say(&format!("EXISTS {name}")), ":0");
        }
        assert!(!a.say("KEYS *").contains("s2") && !a.say("SCAN 0 COUNT 1000").contains("s2"));
        for _ in 0..50 {
            assert!(!a.say("RANDOMKEY").contains("s2"));
        }
        assert_eq!(a.say("FLUSHALL"), "+OK");
        assert_eq!(b.say("GET s"), "$6|victim");
        for name in ["s2", "old:app:1", "a", "a;s2", ":s2"] {
            assert_eq!(upstream.say(&format!("GET {name}")), "$6|before");
        }
    }
}
