//! T7 and L: what one tenant's way of using it does to another.
use super::{World, login, words};
use crate::support::wire::{command, show};

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
    let world = World::new("require");
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
