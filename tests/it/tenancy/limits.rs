//! What a tenant may use, and what it is told past that.
use super::{Speaker, line, login, words};
use crate::support::wire::{bulk, command, show};
use crate::support::{Fence, Redis};

/// Tenant `a` with these limits, and `b` with none.
fn limited(limits: &str) -> (Redis, Fence) {
    let redis = Redis::start();
    let config = format!(
        "[upstream]\nacl_wall = \"require\"\n[tenants.a]\npasswords = [\"pa\"]\nlimits = {{ {limits} }}\n[tenants.b]\npasswords = [\"pb\"]\n"
    );
    let fence = Fence::with_tenants(redis.addr(), &config);
    (redis, fence)
}

/// `-THROTTLED tenant 'a' is over its limit of N unit/s; retry in M ms`: M.
fn wait_of(reply: &str, of: &str) -> u64 {
    let start = format!("-THROTTLED tenant 'a' is over its limit of {of}; retry in ");
    let rest = reply.strip_prefix(&start).unwrap_or_else(|| panic!("{reply:.200}"));
    rest.strip_suffix(" ms").unwrap_or_else(|| panic!("{reply}")).parse().unwrap()
}

#[test]
fn ops_per_second() {
    let (_redis, fence) = limited("ops_per_second = 2, burst = 5");
    let (mut a, mut b) = (login(&fence, "a", "pa"), Speaker::new(&fence, "b"));
    let replies = a.pipeline(&words("SET k v").repeat(50), 50);
    let (done, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| *reply == b"+OK\r\n");
    // Five at once, and two for every second that this may have taken.
    assert!((5..50).contains(&done.len()), "{}", done.len());
    assert!(replies[..5].iter().all(|reply| reply == b"+OK\r\n"));
    for reply in refused {
        let wait = wait_of(&line(reply), "2 ops/s");
        assert!((1..=500).contains(&wait), "{wait}");
    }
    // What was refused was not carried out, in whatever form it comes, and the rest of the tenant waits as well.
    let mut second = login(&fence, "a", "pa");
    let replies =
        second.pipeline(&[words("INCR n"), words("GET k"), words("KEYS *"), words("PING")].concat().repeat(20), 80);
    assert!(replies.iter().filter(|reply| reply.starts_with(b"-THROTTLED ")).count() >= 60);
    let ran = replies.iter().filter(|reply| reply.starts_with(b":")).count();
    let upstream = Speaker::of(_redis.client()).say("GET a:n");
    assert_eq!(upstream, if ran == 0 { "$-1".to_owned() } else { line(&bulk(ran.to_string())) });
    for _ in 0..200 {
        assert_eq!(b.say("PING"), "+PONG");
    }
}

#[test]
fn ops_per_second_in_a_transaction() {
    let (_redis, fence) = limited("ops_per_second = 1, burst = 3");
    let mut a = login(&fence, "a", "pa");
    let bytes = [words("MULTI"), words("SET k 1"), words("SET k 2"), words("SET k 3"), words("SET k 4"), words("EXEC")]
        .concat();
    let replies = a.pipeline(&bytes, 6);
    // All or nothing: a refused command spoils its transaction.
    assert!(replies[5].starts_with(b"-EXECABORT ") || replies[5].starts_with(b"*4"), "{}", show(&replies[5]));
    let refused = replies[..5].iter().filter(|reply| reply.starts_with(b"-THROTTLED")).count();
    assert_eq!(refused > 0, replies[5].starts_with(b"-EXECABORT"));
    assert_eq!(Speaker::of(_redis.client()).say("EXISTS a:k"), if refused > 0 { ":0" } else { ":1" });
}

#[test]
fn bytes_per_second() {
    let (_redis, fence) = limited("bytes_per_second = \"10KB\"");
    let (mut a, mut b) = (login(&fence, "a", "pa"), Speaker::new(&fence, "b"));
    // A value past the rate passes, and is owed by the next.
    assert_eq!(a.call(&[b"SET", b"k", &[b'x'; 60_000]]), b"+OK\r\n");
    let wait = wait_of(&line(&a.call(&[b"GET", b"k"])), "10000 bytes/s");
    assert!((1000..=6000).contains(&wait), "{wait}");
    assert!(a.call(&[b"PING"]).starts_with(b"-THROTTLED"));
    assert_eq!(b.say("SET k v"), "+OK");
    assert_eq!(Speaker::of(_redis.client()).say("STRLEN a:k"), ":60000");
}

#[test]
fn bytes_per_second_of_replies() {
    let (redis, fence) = limited("bytes_per_second = \"10KB\"");
    let mut upstream = redis.client();
    assert_eq!(upstream.call(&[b"SET", b"a:big", &vec![b'x'; 1_000_000]]), b"+OK\r\n");
    let mut a = login(&fence, "a", "pa");
    assert_eq!(a.call(&[b"GET", b"big"]).len(), 1_000_012);
    a.call(&[b"PING"]);
    let wait = wait_of(&line(&a.call(&[b"GET", b"big"])), "10000 bytes/s");
    assert!(wait > 50_000, "{wait}");
}

#[test]
fn connections() {
    let (_redis, fence) = limited("connections = 3");
    let full = "-ERR max number of clients of tenant \\'a\\' reached\\r\\n";
    let mut held: Vec<_> = (0..3).map(|_| login(&fence, "a", "pa")).collect();
    for _ in 0..20 {
        let mut refused = fence.client();
        assert_eq!(show(&refused.call(&[b"AUTH", b"a", b"pa"])), full);
        let reply = refused.try_reply_to(&["HELLO", "3", "AUTH", "a", "pa"]);
        assert!(reply.is_none_or(|reply| show(&reply) == full));
    }
    let mut b = Speaker::new(&fence, "b");
    assert_eq!(b.say("SET k v"), "+OK");
    // A login anew is not one more, and one that became another tenant leaves its place.
    assert_eq!(held[0].call(&[b"AUTH", b"a", b"pa"]), b"+OK\r\n");
    assert_eq!(held[1].call(&[b"AUTH", b"b", b"pb"]), b"+OK\r\n");
    held.push(login(&fence, "a", "pa"));
    assert_eq!(show(&fence.client().call(&[b"AUTH", b"a", b"pa"])), full);
    assert_eq!(held[2].call(&[b"RESET"]), b"+RESET\r\n");
    held.push(login(&fence, "a", "pa"));
    assert_eq!(held[3].call(&[b"QUIT"]), b"+OK\r\n");
    assert!(held[3].read_to_end().is_empty());
    // Its place is free as soon as the connection is gone, which nobody is told.
    while !fence.client().call(&[b"AUTH", b"a", b"pa"]).starts_with(b"+OK") {}
}

#[test]
fn value_size() {
    let (redis, fence) = limited("value_size = \"1KB\"");
    let mut a = Speaker::new(&fence, "a");
    let too_long = |n: usize| format!("-ERR an argument of {n} bytes is over the limit of 1000 bytes of tenant 'a'");
    let value = |n: usize| vec![b'x'; n];
    assert_eq!(a.args(&[b"SET", b"k", &value(1000)]), "+OK");
    assert_eq!(a.args(&[b"SET", b"k", &value(1001)]), too_long(1001));
    assert_eq!(a.args(&[b"GET", &value(1001)]), too_long(1001));
    // Streamed: read and dropped.
    for n in [65_000, 66_000, 100_000, 5_000_000] {
        assert_eq!(a.args(&[b"SET", b"k", &value(n)]), too_long(n));
        assert_eq!(a.args(&[b"MSET", b"k", b"v", b"k2", &value(n), b"k3", b"v"]), too_long(n));
    }
    // Many that are small make a large request.
    let many: Vec<Vec<u8>> = (0..500).map(|_| value(1000)).collect();
    let args: Vec<&[u8]> = [&b"RPUSH"[..], b"l"].into_iter().chain(many.iter().map(|v| &v[..])).collect();
    assert_eq!(a.args(&args), ":500");
    // In a transaction.
    assert_eq!(a.say("MULTI"), "+OK");
    assert_eq!(a.args(&[b"SET", b"k", &value(1001)]), too_long(1001));
    assert!(a.client().call(&[b"EXEC"]).starts_with(b"-EXECABORT"));
    let mut in_one = a.client().pipeline(
        &[command(&["MULTI"]), command(&[&b"SET"[..], b"k", &value(100_000)]), command(&["EXEC"])].concat(),
        3,
    );
    assert!(in_one.pop().unwrap().starts_with(b"-EXECABORT"));
    assert_eq!(a.say("STRLEN k"), ":1000");
    let mut b = Speaker::new(&fence, "b");
    assert_eq!(b.args(&[b"SET", b"k", &value(100_000)]), "+OK");
    assert_eq!(Speaker::of(redis.client()).say("EXISTS a:k2 a:k3"), ":0");
}

#[test]
fn in_flight() {
    let (_redis, fence) = limited("in_flight = 2");
    let mut a = login(&fence, "a", "pa");
    let replies = a.pipeline(&(0..2000).flat_map(|i| words(&format!("SET k {i}"))).collect::<Vec<u8>>(), 2000);
    assert!(replies.iter().all(|reply| reply == b"+OK\r\n"));
    assert_eq!(a.call(&[b"GET", b"k"]), bulk("1999"));
}

#[test]
fn commands_of_a_tenant() {
    let redis = Redis::start();
    let config = "[tenants.a]\npasswords = [\"pa\"]\ncommands = { deny = [\"@dangerous\", \"get\", \"client|kill\"] }\n\
                  [tenants.b]\npasswords = [\"pb\"]\ncommands = { allow = [\"@read\"] }\n";
    let fence = Fence::with_tenants(redis.addr(), config);
    let (mut a, mut b) = (Speaker::new(&fence, "a"), Speaker::new(&fence, "b"));
    let no =
        |user: &str, command: &str| format!("-NOPERM User {user} has no permissions to run the '{command}' command");
    assert_eq!(a.say("SET k v"), "+OK");
    assert_eq!(a.say("GET k"), no("a", "get"));
    assert_eq!(a.say("KEYS *"), no("a", "keys"));
    assert_eq!(a.say("FLUSHALL"), no("a", "flushall"));
    assert_eq!(a.say("CLIENT KILL ID 1"), no("a", "client|kill"));
    assert_eq!(b.say("SET k v"), no("b", "set"));
    assert_eq!(b.say("GET k"), "$-1");
    // Not behind a MULTI either, and the transaction is spoiled.
    assert_eq!(b.say("GET k"), "$-1");
    assert_eq!(
        a.say("MULTI"),
        no("a", "multi").replace("-NOPERM User a has no permissions to run the 'multi' command", "+OK")
    );
    assert_eq!(a.say("GET k"), no("a", "get"));
    assert!(a.client().call(&[b"EXEC"]).starts_with(b"-EXECABORT"));
    // A large one is refused before it is read.
    assert_eq!(b.args(&[b"SET", b"k", &vec![b'x'; 3_000_000]]), no("b", "set"));
}
