//! Settings that change while tenants are connected.
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Speaker, TWO, World, login, words};
use crate::support::wire::{bulk, show};
use crate::support::{Fence, Redis};

/// What the log says when new settings are in force, and when they are not.
const DONE: &str = "settings reloaded";
const FAILED: &str = "reload failed: the settings stay as they were";

const WALL: &str = "[upstream]\nacl_wall = \"require\"\n";

#[test]
fn a_new_tenant_can_log_in() {
    let world = World::new("require");
    let mut b = world.tenant("b");
    assert!(world.fence.client().call(&[b"AUTH", b"c", b"pc"]).starts_with(b"-WRONGPASS"));
    world.fence.reload(&format!("{WALL}{TWO}[tenants.c]\npasswords = [\"pc\"]\n"), DONE);
    let mut c = world.tenant("c");
    assert_eq!(c.say("SET s c"), "+OK");
    assert_eq!(c.say("KEYS *"), "*1|$1|s");
    assert_eq!(world.upstream().say("GET c:s"), "$1|c");
    assert_eq!(b.say("GET s"), "$6|victim");
}

#[test]
fn a_tenant_taken_out_is_disconnected_and_nobody_else() {
    let world = World::new("require");
    let (mut idle, mut blocked, mut amid) = (world.tenant("a"), world.tenant("a"), world.tenant("a"));
    let mut kept = [(); 3].map(|()| world.tenant("b"));
    blocked.client().send(&words("BLPOP none 0"));
    kept[0].client().send(&words("BLPOP none 0"));
    assert_eq!(amid.say("MULTI"), "+OK");
    assert_eq!(kept[1].say("WATCH s"), "+OK");
    assert_eq!(kept[2].say("MULTI"), "+OK");
    world.redis.wait_for_blocked(2);
    world.fence.reload(&format!("{WALL}[tenants.b]\npasswords = [\"pb\"]\n"), DONE);
    for gone in [&mut idle, &mut blocked, &mut amid] {
        let rest = gone.client().read_to_end();
        assert!(rest.is_empty() || rest.starts_with(b"-"), "{}", show(&rest));
    }
    assert!(world.fence.client().call(&[b"AUTH", b"a", b"pa"]).starts_with(b"-WRONGPASS"));
    assert_eq!(kept[1].say("MULTI"), "+OK");
    assert_eq!(kept[1].say("GET s"), "+QUEUED");
    assert!(kept[1].client().call(&[b"EXEC"]).starts_with(b"*3\r\n"));
    assert!(kept[2].client().call(&[b"EXEC"]).starts_with(b"*1\r\n"));
    assert_eq!(world.tenant("b").say("RPUSH none v"), ":1");
    assert_eq!(show(&kept[0].client().reply()), "*2\\r\\n$4\\r\\nnone\\r\\n$1\\r\\nv\\r\\n");
    // Its keys are left.
    assert_eq!(world.upstream().say("GET a:s"), "$8|attacker");
}

#[test]
fn a_password_taken_out_ends_the_sessions_that_used_it() {
    let redis = Redis::start();
    let both = "[tenants.a]\npasswords = [\"one\", \"two\"]\n";
    let fence = Fence::with_tenants(redis.addr(), both);
    let (mut one, mut two) = (login(&fence, "a", "one"), login(&fence, "a", "two"));
    let mut blocked = login(&fence, "a", "one");
    blocked.send(&words("BLPOP q 0"));
    redis.wait_for_blocked(1);
    fence.reload("[tenants.a]\npasswords = [\"two\", \"three\"]\n", DONE);
    assert!(one.read_to_end().is_empty());
    assert!(blocked.read_to_end().is_empty());
    assert_eq!(two.call(&[b"ECHO", b"still here"]), bulk("still here"));
    assert!(fence.client().call(&[b"AUTH", b"a", b"one"]).starts_with(b"-WRONGPASS"));
    assert_eq!(login(&fence, "a", "three").call(&[b"ECHO", b"new"]), bulk("new"));
}

#[test]
fn limits_change_under_a_connection() {
    let redis = Redis::start();
    let with = |limits: &str| format!("[tenants.a]\npasswords = [\"pa\"]\nlimits = {{ {limits} }}\n");
    let fence = Fence::with_tenants(redis.addr(), &with(""));
    let mut a = Speaker::new(&fence, "a");
    assert_eq!(a.say("SET k 0123456789"), "+OK");
    fence.reload(&with("value_size = \"8B\""), DONE);
    assert_eq!(a.say("SET k 0123456789"), "-ERR an argument of 10 bytes is over the limit of 8 bytes of tenant 'a'");
    assert_eq!(a.say("SET k 01234567"), "+OK");
    fence.reload(&with("connections = 1"), DONE);
    assert_eq!(a.say("SET k 0123456789"), "+OK");
    let refused = fence.client().call(&[b"AUTH", b"a", b"pa"]);
    assert_eq!(show(&refused), "-ERR max number of clients of tenant \\'a\\' reached\\r\\n");
    fence.reload(&with("connections = 2"), DONE);
    let mut second = Speaker::new(&fence, "a");
    assert_eq!(second.say("GET k"), "$10|0123456789");
    // A rate, seen by one command of the two being refused; then none again.
    fence.reload(&with("ops_per_second = 1, burst = 1"), DONE);
    let replies = a.client().pipeline(&[words("GET k"), words("GET k"), words("GET k")].concat(), 3);
    assert!(
        replies.iter().any(|reply| reply.starts_with(b"-THROTTLED tenant 'a' is over its limit of 1 ops/s; retry in "))
    );
    fence.reload(&with(""), DONE);
    for _ in 0..100 {
        assert_eq!(a.say("GET k"), "$10|0123456789");
        assert_eq!(second.say("GET k"), "$10|0123456789");
    }
}

#[test]
fn broken_settings_change_nothing() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    for broken in [
        "[tenants.a\n",
        "[tenants.a]\nprefix = \"b:x\"\n[tenants.b]\n",
        "[tenants.a]\npasswords = [\"x\", \"x\"]\n",
        "[tenants.a]\nprefix = \"\"\n[tenants.b]\n",
        "[tenants.a]\nprefix = \"a*:\"\n",
        "[tenants.a]\nupstream = \"nosuch\"\n",
        "[tenants.a]\ncommands = { deny = [\"nosuch\"] }\n",
        "[tenants.a]\nnosuch = 1\n",
    ] {
        world.fence.reload(broken, FAILED);
        assert_eq!(a.say("GET s"), "$8|attacker");
        assert_eq!(b.say("GET s"), "$6|victim");
        assert_eq!(world.tenant("a").say("GET s"), "$8|attacker");
    }
}

#[test]
fn a_changed_prefix_is_another_tenant() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    let config = "[tenants.a]\nprefix = \"other:\"\npasswords = [\"pa\"]\n[tenants.b]\npasswords = [\"pb\"]\n";
    world.fence.reload(&format!("{WALL}{config}"), DONE);
    assert!(a.client().read_to_end().is_empty());
    assert_eq!(b.say("GET s"), "$6|victim");
    let mut a = world.tenant("a");
    assert_eq!(a.say("KEYS *"), "*0");
    assert_eq!(a.say("SET s new"), "+OK");
    assert_eq!(world.upstream().say("GET other:s"), "$3|new");
}

#[test]
fn a_thousand_tenants() {
    let many = |from: usize| {
        let tenants: Vec<String> =
            (from..from + 1000).map(|i| format!("[tenants.t{i}]\npasswords = [\"pt{i}\"]\n")).collect();
        format!("{WALL}{}", tenants.concat())
    };
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), &many(0));
    let mut speaker = Speaker::new(&fence, "t999");
    assert_eq!(speaker.say("SET k v"), "+OK");
    assert_eq!(Speaker::of(redis.client()).say("GET t999:k"), "$1|v");
    fence.reload(&many(500), DONE);
    assert_eq!(speaker.say("GET k"), "$1|v");
    assert_eq!(Speaker::new(&fence, "t1499").say("SET k v"), "+OK");
    assert!(fence.client().call(&[b"AUTH", b"t0", b"pt0"]).starts_with(b"-WRONGPASS"));
}

#[test]
fn a_reload_of_a_thousand_tenants_is_no_error_to_anybody() {
    let redis = Redis::start();
    // The first twenty stay as they are; what becomes of the others is in `password`.
    let with = |others: std::ops::Range<usize>, password: &str| {
        let tenant = |i: usize, password: &str| format!("[tenants.t{i}]\npasswords = ['{password}']\n");
        (0..20).map(|i| tenant(i, "own")).chain(others.map(|i| tenant(i, password))).collect::<String>()
    };
    let fence = Fence::with_tenants_and(redis.addr(), &with(20..1000, "p"), &["--workers", "2"]);
    let done = AtomicBool::new(false);
    let asked = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (fence, done, asked) = (&fence, &done, &asked);
            scope.spawn(move || {
                let mut client = login(fence, &format!("t{i}"), "own");
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    n += 1;
                    let value = format!("{i}-{n}");
                    assert_eq!(show(&client.call(&[b"SET", b"k", value.as_bytes()])), show(b"+OK\r\n"));
                    assert_eq!(show(&client.call(&[b"GET", b"k"])), show(&bulk(&value)));
                    // And who comes anew while settings change.
                    if n % 50 == 0 {
                        client = login(fence, &format!("t{}", i + 8), "own");
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for (others, password) in [(20..1000, "p"), (20..1000, "q"), (500..1500, "q"), (20..1000, "p")] {
            let before = asked.load(Ordering::Relaxed);
            fence.reload(&with(others, password), DONE);
            while asked.load(Ordering::Relaxed) < before + 100 {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(login(&fence, "t999", "p").call(&[b"ECHO", b"served"]), bulk("served"));
}

/// Settings with an upstream at `at` beside the server, which a tenant of its own uses.
fn beside(at: SocketAddr, tenants: &str) -> String {
    let silent = format!("[upstreams.other]\nurl = \"redis://{at}\"\nsocket_timeout = \"1h\"\n");
    format!("{WALL}{silent}[tenants.far]\npasswords = [\"pf\"]\nupstream = \"other\"\n{tenants}")
}

#[test]
fn an_upstream_that_is_silent_delays_nobody_elses_settings() {
    let (redis, silent) = (Redis::start(), TcpListener::bind("127.0.0.1:0").unwrap());
    let silent = silent.local_addr().unwrap();
    let fence = Fence::with_tenants(redis.addr(), &beside(silent, "[tenants.a]\npasswords = [\"old\"]\n"));
    let mut old = login(&fence, "a", "old");
    // It would be asked for half a minute, longer than a test waits for anything.
    fence.reload(&beside(silent, "[tenants.a]\npasswords = [\"new\"]\n[tenants.b]\npasswords = [\"pb\"]\n"), DONE);
    assert!(old.read_to_end().is_empty());
    assert_eq!(login(&fence, "a", "new").call(&[b"SET", b"k", b"v"]), b"+OK\r\n");
    assert_eq!(login(&fence, "b", "pb").call(&[b"GET", b"k"]), b"$-1\r\n");
}

#[test]
fn a_stop_does_not_wait_for_a_reload() {
    let (redis, silent) = (Redis::start(), TcpListener::bind("127.0.0.1:0").unwrap());
    let silent = silent.local_addr().unwrap();
    let mut fence = Fence::with_tenants(redis.addr(), &beside(silent, ""));
    let more = "[tenants.near]\nupstream = \"other\"\npasswords = [\"pn\"]\nprefix = \"near:\"\n";
    fence.reload(&beside(silent, more), "SIGHUP: reading the settings again");
    assert!(fence.stop().success());
    let log = fence.process().unwrap();
    assert_eq!(log.lines_with("stopped while the settings were being reloaded"), 1);
    assert_eq!(log.lines_with(DONE), 0);
}

#[test]
fn a_managed_server_goes_on_when_what_is_said_of_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let with = |further: &str| {
        let dir = dir.path().display();
        format!(
            "[upstream]\nurl = \"managed\"\nmanaged.dir = \"{dir}\"\n{further}\n[tenants.a]\npasswords = [\"pa\"]\n"
        )
    };
    let mut fence = Fence::plain(&with("managed.save = \"\""));
    // Nothing is saved: only the same process still knows the key.
    assert_eq!(login(&fence, "a", "pa").call(&[b"SET", b"k", b"v"]), b"+OK\r\n");
    for further in
        ["max_connections = 500\nmanaged.save = \"\"", "connections_per_worker = 2\nmanaged.save = \"3600 1\""]
    {
        fence.reload(&with(further), DONE);
        assert_eq!(login(&fence, "a", "pa").call(&[b"GET", b"k"]), bulk("v"), "{further}");
    }
    let log = fence.process().unwrap();
    assert_eq!(log.lines_with("takes effect only with a restart setting=\"managed.save\""), 1);
    // Elsewhere it is another one; the first has been stopped.
    let other = tempfile::tempdir().unwrap();
    let moved = with("").replace(dir.path().to_str().unwrap(), other.path().to_str().unwrap());
    fence.reload(&moved, DONE);
    assert_eq!(login(&fence, "a", "pa").call(&[b"GET", b"k"]), b"$-1\r\n");
    assert!(UnixStream::connect(other.path().join("keyfence.sock")).is_ok());
    assert!(UnixStream::connect(dir.path().join("keyfence.sock")).is_err());
    // In order: a server outlives a keyfence that is killed.
    assert!(fence.stop().success());
}
