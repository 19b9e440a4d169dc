//! T7 and L: what one tenant's way of using it does to another.
use super::{World, login, words};
use crate::support::wire::{command, show};
use crate::support::{Fence, Redis};

#[test]
fn t7_refusals_are_answered_in_their_place() {
    let world = World::new("require");
    let (mut a, mut b) = (login(&world.fence, "a", "pa"), world.tenant("b"));
    let block = [
        words("SET s attacker"),
        words("CONFIG SET x y"),
        words("GET b:s"),
        words("NOSUCH"),
        words("GET"),
        words("KEYS s"),
        words("GET s"),
    ]
    .concat();
    let replies = a.pipeline(&block.repeat(50), 7 * 50);
    for seven in replies.chunks(7) {
        assert_eq!(show(&seven[0]), "+OK\\r\\n");
        assert_eq!(show(&seven[1]), "-NOPERM User a has no permissions to run the \\'config|set\\' command\\r\\n");
        assert_eq!(show(&seven[2]), "$-1\\r\\n");
        assert!(seven[3].starts_with(b"-ERR unknown command"));
        assert!(seven[4].starts_with(b"-"));
        assert_eq!(show(&seven[5]), "*1\\r\\n$1\\r\\ns\\r\\n");
        assert_eq!(show(&seven[6]), "$8\\r\\nattacker\\r\\n");
    }
    assert_eq!(b.say("GET s"), "$6|victim");
}

#[test]
fn l2_replies_that_nobody_reads() {
    // An upstream that is busy with large values takes its time to greet a new connection; how long is not what this is about.
    let world = World::with("acl_wall = \"require\"\nconnect_timeout = \"20s\"\n");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    assert_eq!(a.args(&[b"SADD", b"big", &[b'm'; 1000]]), ":1");
    assert_eq!(a.args(&[b"SET", b"mega", &vec![b'x'; 1 << 20]]), "+OK");
    let mut greedy: Vec<_> = (0..5).map(|_| login(&world.fence, "a", "pa")).collect();
    for client in &mut greedy {
        client.send(&words("SRANDMEMBER big -100000"));
        client.send(&words("GET mega").repeat(200));
    }
    for _ in 0..50 {
        assert_eq!(b.say("GET s"), "$6|victim");
    }
    let memory = world.fence.process().unwrap().memory("VmHWM");
    assert!(memory < 700_000, "{memory} KiB");
}

#[test]
fn l4_a_slow_reader() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    assert_eq!(a.args(&[b"SET", b"mega", &vec![b'x'; 4 << 20]]), "+OK");
    let mut slow = login(&world.fence, "a", "pa");
    slow.send(&words("GET mega").repeat(8));
    for _ in 0..200 {
        std::io::Read::read_exact(slow.stream(), &mut [0; 1]).unwrap();
        assert_eq!(b.say("GET s"), "$6|victim");
        assert_eq!(a.say("GET s"), "$8|attacker");
    }
}

#[test]
fn l5_many_blocked() {
    let world = World::new("require");
    let mut blocked: Vec<_> = (0..200).map(|_| login(&world.fence, "a", "pa")).collect();
    for client in &mut blocked {
        client.send(&words("BLPOP none 0"));
    }
    world.redis.wait_for_blocked(200);
    let mut b = world.tenant("b");
    for _ in 0..20 {
        assert_eq!(b.say("GET s"), "$6|victim");
    }
    let mut waits = world.tenant("b");
    waits.client().send(&words("BLPOP none 0"));
    world.redis.wait_for_blocked(201);
    assert_eq!(b.say("RPUSH none v"), ":1");
    assert!(show(&waits.client().reply()).contains("none"));
    drop(blocked);
    world.redis.wait_for_blocked(0);
}

#[test]
fn l6_pins_have_an_end() {
    let world = World::new("require");
    let mut held = Vec::new();
    let mut refused = 0;
    for i in 0..1200 {
        let mut client = login(&world.fence, "a", "pa");
        let reply = client.ask(&words("WATCH s"));
        assert!(reply == b"+OK\r\n" || reply.starts_with(b"-BUSY "), "{i}: {}", show(&reply));
        refused += usize::from(reply != b"+OK\r\n");
        held.push(client);
    }
    assert!(refused > 0, "1200 connections to the upstream for one tenant");
    let mut b = world.tenant("b");
    assert_eq!(b.say("GET s"), "$6|victim");
    assert_eq!(b.say("WATCH s"), "+OK");
    assert_eq!(b.say("BLPOP names 1"), "*2|$5|names|$6|victim");
}

#[test]
fn l7_a_transaction_without_end() {
    let world = World::new("require");
    let mut b = world.tenant("b");
    let mut a = login(&world.fence, "a", "pa");
    assert_eq!(a.call(&[b"MULTI"]), b"+OK\r\n");
    let one = command(&[&b"SET"[..], b"k", &[b'x'; 10_000]]);
    let mut writer = a.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..20_000 {
                if std::io::Write::write_all(&mut writer, &one).is_err() {
                    return;
                }
            }
        });
        let mut ended = false;
        for _ in 0..20_000 {
            let Ok(reply) = a.try_reply() else { break };
            ended |= reply.starts_with(b"-");
            assert!(ended || reply == b"+QUEUED\r\n", "{}", show(&reply));
        }
        assert_eq!(b.say("GET s"), "$6|victim");
    });
    let memory = world.fence.process().unwrap().memory("VmHWM");
    assert!(memory < 300_000, "{memory} KiB");
    drop(a);
    assert_eq!(world.tenant("a").say("GET s"), "$8|attacker");
}

#[test]
fn l15_a_deep_pipeline_waits_for_itself() {
    let world = World::new("require");
    let mut b = world.tenant("b");
    let mut a = login(&world.fence, "a", "pa");
    let bytes = [words("PING"), words("GET s"), words("NOSUCH"), words("COMMAND DOCS get")].concat().repeat(5000);
    let mut writer = a.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut writer, &bytes).unwrap());
        scope.spawn(move || {
            for _ in 0..20_000 {
                a.reply();
            }
        });
        for _ in 0..200 {
            assert_eq!(b.say("GET s"), "$6|victim");
        }
    });
}

#[test]
fn l8_a_full_memory_is_told_as_it_is() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    let mut upstream = world.upstream();
    assert_eq!(upstream.say("CONFIG SET maxmemory-policy noeviction"), "+OK");
    assert_eq!(upstream.say("CONFIG SET maxmemory 1mb"), "+OK");
    let refused = "-OOM command not allowed when used memory > 'maxmemory'.";
    for client in [&mut a, &mut b] {
        assert_eq!(client.say("SET k v"), refused);
    }
    // What is there can be read and given up, and nobody's keys were taken for another's.
    assert_eq!(b.say("GET s"), "$6|victim");
    assert_eq!(a.say("FLUSHDB"), "+OK");
    assert_eq!(upstream.say("CONFIG SET maxmemory 0"), "+OK");
    assert_eq!(b.say("SET k v"), "+OK");
    assert_eq!(b.say("GET s"), "$6|victim");
}

#[test]
fn l9_l13_writes_and_expiries_pay_the_rate() {
    let redis = Redis::start();
    let limited = "[tenants.a]\npasswords = [\"pa\"]\nlimits = { ops_per_second = 5, burst = 5 }\n";
    let fence = Fence::with_tenants(redis.addr(), &format!("{limited}[tenants.b]\npasswords = [\"pb\"]\n"));
    let mut a = login(&fence, "a", "pa");
    for text in ["PEXPIREAT k 1", "SET k v PX 1", "GETEX k PX 1", "INCR hot", "EXPIRE k 0"] {
        let throttled = a.pipeline(&words(text).repeat(100), 100);
        let refused = throttled.iter().filter(|reply| reply.starts_with(b"-THROTTLED ")).count();
        assert!(refused >= 50, "{text}: {refused}");
    }
    let mut b = login(&fence, "b", "pb");
    let all = b.pipeline(&words("SET k v PX 1").repeat(100), 100);
    assert!(all.iter().all(|reply| reply == b"+OK\r\n"));
}

#[test]
fn l12_watched_keys_have_an_end() {
    let world = World::new("require");
    let mut a = login(&world.fence, "a", "pa");
    let watch = |from: u32, n: u32| {
        let names: Vec<Vec<u8>> = (from..from + n).map(|i| format!("k{i}").into_bytes()).collect();
        command(&[vec![b"WATCH".to_vec()], names].concat())
    };
    assert_eq!(a.ask(&watch(0, 1000)), b"+OK\r\n");
    let refused = a.ask(&watch(1000, 25));
    assert_eq!(show(&refused), "-BUSY more than 1024 keys watched by one connection\\r\\n");
    assert_eq!(a.ask(&watch(1000, 24)), b"+OK\r\n");
    // What is watched is watched, and given up with UNWATCH or EXEC.
    assert_eq!(world.tenant("a").say("SET k3 changed"), "+OK");
    let replies = a.pipeline(&[words("MULTI"), words("SET k v"), words("EXEC")].concat(), 3);
    assert_eq!(replies[2], b"*-1\r\n");
    assert_eq!(a.ask(&watch(0, 1024)), b"+OK\r\n");
    assert_eq!(a.ask(&words("UNWATCH")), b"+OK\r\n");
    assert_eq!(a.ask(&watch(0, 1024)), b"+OK\r\n");
    assert_eq!(world.tenant("b").say("GET s"), "$6|victim");
}
