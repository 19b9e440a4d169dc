//! U: who a connection is.
use super::{Speaker, TWO, World, line, login, words};
use crate::support::wire::{command, show};
use crate::support::{Fence, Redis};

const NOAUTH: &str = "-NOAUTH Authentication required.";
const WRONG: &str = "-WRONGPASS invalid username-password pair or user is disabled.";

#[test]
fn u1_nothing_before_login() {
    let world = World::new("require");
    let mut nobody = world.fence.client();
    for text in [
        "GET s",
        "SET s v",
        "KEYS *",
        "PING",
        "ECHO x",
        "SELECT 0",
        "MULTI",
        "EXEC",
        "DISCARD",
        "WATCH s",
        "CLIENT LIST",
        "CLIENT ID",
        "INFO",
        "COMMAND",
        "COMMAND COUNT",
        "BLPOP l 0",
        "FLUSHALL",
        "DBSIZE",
        "SCAN 0",
        "CONFIG GET *",
        "ACL WHOAMI",
        "TIME",
        "EVAL x 0",
        "SUBSCRIBE c",
    ] {
        let reply = line(&nobody.ask(&words(text)));
        assert!(reply == NOAUTH, "{text}: {reply}");
    }
    assert!(line(&nobody.ask(&words("HELLO 3"))).starts_with("-NOAUTH "));
    assert_eq!(line(&nobody.ask(&words("RESET"))), "+RESET");
    // What it may send is little: 16 arguments, 16 KiB.
    let many: Vec<&str> = vec!["x"; 17];
    for big in [
        command(&many),
        command(&[&b"GET"[..], &[b'k'; 20_000]]),
        b"*1000000\r\n".to_vec(),
        b"*2\r\n$4\r\nAUTH\r\n$536870912\r\n".to_vec(),
    ] {
        let mut nobody = world.fence.client();
        nobody.send_lossy(&big);
        let end = nobody.read_to_end();
        assert!(end.is_empty() || end.starts_with(b"-"), "{}", show(&end));
    }
    let mut late = world.fence.client();
    late.send(&[words("AUTH a pa"), words("GET s")].concat());
    assert_eq!(late.reply(), b"+OK\r\n");
    assert_eq!(line(&late.reply()), "$8|attacker");
    assert_eq!(world.tenant("b").say("GET s"), "$6|victim");
}

#[test]
fn u2_after_failures_it_still_answers() {
    let world = World::new("require");
    let mut b = world.tenant("b");
    // Few enough for the delay to stay short, by both doors, with RESET between and pipelined.
    let mut guess = world.fence.client();
    let bytes =
        [words("AUTH b x1"), words("RESET"), words("HELLO 3 AUTH b x2"), words("AUTH b x3"), words("GET s")].concat();
    let replies: Vec<String> = guess.pipeline(&bytes, 5).iter().map(|reply| line(reply)).collect();
    assert_eq!(replies, [WRONG, "+RESET", WRONG, WRONG, NOAUTH]);
    assert_eq!(b.say("GET s"), "$6|victim");
    assert_eq!(guess.call(&[b"AUTH", b"b", b"pb"]), b"+OK\r\n");
    assert_eq!(line(&guess.call(&[b"GET", b"s"])), "$6|victim");
}

#[test]
fn u2_the_tenth_refused_login_ends_the_connection() {
    let world = World::new("require");
    let mut guess = world.fence.client();
    // As ten users, so that none of them has to wait.
    let bytes: Vec<u8> = (0..11).flat_map(|n| words(&format!("AUTH nobody{n} x"))).collect();
    guess.send(&bytes);
    assert_eq!(line(&guess.read_to_end()), format!("{WRONG}|").repeat(10).trim_end_matches('|'));
    assert_eq!(line(&world.fence.client().ask(&words("AUTH b pb"))), "+OK");
}

#[test]
fn u3_one_text_for_every_failure() {
    let world = World::new("require");
    for text in ["AUTH b wrong", "AUTH nosuch pb", "AUTH default pb", "AUTH pb"] {
        let reply = line(&world.fence.client().ask(&words(text)));
        assert!(reply == WRONG, "{text}: {reply}");
    }
    assert_eq!(line(&world.fence.client().ask(&words("HELLO 3 AUTH nosuch x"))), WRONG);
}

#[test]
fn u6_secrets_are_not_told() {
    let redis = Redis::start();
    let config = "[tenants.a]\npasswords = [\"open-sesame\"]\n[tenants.b]\npasswords = [\"pb\"]\n";
    let fence = Fence::with_tenants(redis.addr(), &format!("[log]\nlevel = \"trace\"\n{config}"));
    let mut monitor = redis.client();
    assert_eq!(monitor.call(&[b"MONITOR"]), b"+OK\r\n");
    let mut a = login(&fence, "a", "open-sesame");
    let mut said = Vec::new();
    for text in [
        "AUTH a open-sesame",
        "AUTH a open-sesame2",
        "HELLO 3 AUTH a open-sesame",
        "AUTH a b c open-sesame",
        "HELLO 3 AUTH a open-sesame NOSUCH",
        "HELLO open-sesame",
        "CLIENT LIST",
        "INFO",
        "SLOWLOG GET",
    ] {
        let reply = line(&a.ask(&words(text)));
        assert!(!reply.contains("sesame"), "{text}: {reply}");
        said.push(reply);
    }
    let mut b = Speaker::new(&fence, "b");
    assert!(!b.say("CLIENT LIST").contains("sesame"));
    assert_eq!(Speaker::of(redis.client()).say("ECHO the-end"), "$7|the-end");
    loop {
        let seen = line(&monitor.reply());
        if seen.contains("the-end") {
            break;
        }
        assert!(!seen.contains("sesame"), "{seen}");
    }
    let log = fence.process().unwrap().output();
    assert!(log.contains("logged in"), "the log is not at this level: {log}");
    assert!(!log.contains("sesame"), "{log}");
}

#[test]
fn u7_no_tenant_by_default() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), TWO);
    assert_eq!(line(&fence.client().ask(&words("GET s"))), NOAUTH);
    let fence = Fence::with_tenants(redis.addr(), &format!("[auth]\ndefault_tenant = \"b\"\n{TWO}"));
    let mut somebody = fence.client();
    assert_eq!(line(&somebody.ask(&words("SET s v"))), "+OK");
    assert_eq!(Speaker::of(redis.client()).say("KEYS *"), "*1|$3|b:s");
    assert_eq!(somebody.call(&[b"AUTH", b"a", b"pa"]), b"+OK\r\n");
    assert_eq!(line(&somebody.ask(&words("GET s"))), "$-1");
    assert_eq!(line(&somebody.ask(&words("RESET"))), "+RESET");
    assert_eq!(line(&somebody.ask(&words("GET s"))), "$1|v");
}

#[test]
fn u8_a_revoked_login_ends_at_once() {
    let world = World::new("require");
    let mut states: Vec<Speaker> = Vec::new();
    for state in ["PING", "MULTI", "WATCH s", "HELLO 3", "CLIENT PAUSE 100000"] {
        let mut speaker = world.tenant("a");
        speaker.client().ask(&words(state));
        states.push(speaker);
    }
    for waiting in ["BLPOP none 0", "XREAD BLOCK 0 STREAMS none $", "GET s"] {
        let mut speaker = world.tenant("b");
        assert_eq!(speaker.client().call(&[b"AUTH", b"a", b"pa"]), b"+OK\r\n");
        speaker.client().send(&words(waiting));
        states.push(speaker);
    }
    let mut b = world.tenant("b");
    let changed =
        "[upstream]\nacl_wall = \"require\"\n[tenants.a]\npasswords = [\"new\"]\n[tenants.b]\npasswords = [\"pb\"]\n";
    world.fence.reload(changed, "settings reloaded");
    for speaker in &mut states {
        let rest = speaker.client().read_to_end();
        assert!(rest.is_empty() || rest.starts_with(b"-"), "{}", show(&rest));
    }
    assert_eq!(b.say("GET s"), "$6|victim");
    assert_eq!(line(&world.fence.client().ask(&words("AUTH a pa"))), WRONG);
    login(&world.fence, "a", "new");
}

#[test]
fn u10_no_login_in_a_transaction() {
    let world = World::new("require");
    for text in ["AUTH b pb", "HELLO 3 AUTH b pb", "HELLO 2"] {
        let mut a = login(&world.fence, "a", "pa");
        let bytes = [words("MULTI"), words("SET s changed"), words(text), words("GET s"), words("EXEC")].concat();
        let replies: Vec<String> = a.pipeline(&bytes, 5).iter().map(|reply| line(reply)).collect();
        assert!(!replies.concat().contains("victim"), "{text}: {replies:?}");
        assert!(replies[2].starts_with('-') && replies[4].starts_with("-EXECABORT"), "{text}: {replies:?}");
        assert_eq!(line(&a.ask(&words("GET s"))), "$8|attacker");
        assert_eq!(world.tenant("b").say("GET s"), "$6|victim");
    }
}

#[test]
fn u4_a_password_fits_whole_or_not_at_all() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), "[tenants.a]\npasswords = [\"0123456789abcdef\"]\n");
    let long = [b"0123456789abcdef".to_vec(), vec![0]].concat();
    let doubled = b"0123456789abcdef".repeat(2);
    // One connection each: the tenth refusal closes it.
    for given in [
        &b""[..],
        b"0",
        b"0123456789abcde",
        b"0123456789abcdeF",
        &long,
        &doubled,
        b"0123456789abcdef\r\n",
        b" 0123456789abcdef",
    ] {
        let refused = fence.client().call(&[b"AUTH", b"a", given]);
        assert!(refused.starts_with(b"-WRONGPASS "), "{}: {}", given.escape_ascii(), show(&refused));
    }
    assert_eq!(fence.client().call(&[b"AUTH", b"a", b"0123456789abcdef"]), b"+OK\r\n");
}

#[test]
fn u5_a_name_is_exact_bytes() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), TWO);
    let names: [&[u8]; 10] = [b"A", b"a\0", b"a\0b", b"\0a", b"a ", b" a", b"a\r\n", b"a:", b"\xc3\xa0", b"a\xff"];
    for name in names {
        let mut client = fence.client();
        assert!(client.call(&[b"AUTH", name, b"pa"]).starts_with(b"-WRONGPASS "), "{}", name.escape_ascii());
        assert!(client.call(&[b"HELLO", b"3", b"AUTH", name, b"pa"]).starts_with(b"-WRONGPASS "));
        assert!(client.call(&[b"GET", b"s"]).starts_with(b"-NOAUTH "), "{}", name.escape_ascii());
    }
    let mut client = fence.client();
    assert_eq!(client.call(&[b"AUTH", b"a", b"pa"]), b"+OK\r\n");
    // A login that fails leaves the one before it as it was.
    assert!(client.call(&[b"AUTH", b"b\0", b"pb"]).starts_with(b"-WRONGPASS "));
    assert!(show(&client.call(&[b"ACL", b"WHOAMI"])).contains("$1\\r\\na\\r\\n"));
}
