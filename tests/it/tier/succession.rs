//! Tenants come to the tier and leave it, by a reload or because it rests: what is kept of the others stays, and stays true.
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::{Near, ON, calls, count, pause, settle};
use crate::support::scripted::{Act, Scripted};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};
use crate::{call, is};

const KEYS: usize = 50;

fn config(other: bool) -> String {
    let tenant = |name: &str, tier: bool| format!("[tenants.{name}]\npasswords = [\"p\"]\ntier = {tier}\n");
    format!("{ON}[upstream]\nsocket_timeout = \"1s\"\n{}{}", tenant("a", true), tenant("b", other))
}

fn client(fence: &Fence) -> Client {
    let mut client = fence.client();
    is!(client, ["AUTH", "a", "p"], "+OK\r\n");
    client
}

#[test]
fn what_is_kept_of_others_stays() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), &config(false));
    let log = fence.process().unwrap();
    log.wait_for_lines(1, "the tier is on");
    let mut client = client(&fence);
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$1\r\nv\r\n");
    let before = calls(&redis, "get");
    for round in 0..4 {
        fence.reload(&config(round % 2 == 0), "settings reloaded");
        // Not for a moment does it stop answering, nor ask again.
        while log.lines_with("the tier is on") < round + 2 {
            is!(client, ["GET", "k"], "$1\r\nv\r\n");
            assert_eq!(count(&mut client, "tier_live"), 1);
        }
        is!(client, ["GET", "k"], "$1\r\nv\r\n");
    }
    assert_eq!(calls(&redis, "get"), before);
    // One connection is left of all.
    let trackers = |text: String| text.lines().filter(|line| line.contains("flags=tB")).count();
    let deadline = tokio::time::Instant::now() + crate::support::HANG;
    while trackers(show(&call!(redis.client(), "CLIENT", "LIST")).replace("\\n", "\n")) != 1 {
        assert!(tokio::time::Instant::now() < deadline, "its predecessors are closed");
    }
    is!(redis.client(), ["SET", "a:k", "w"], "+OK\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$1\r\nw\r\n");
}

/// Changes made past keyfence while one connection takes over from the other: each of them is told by one of the two.
#[test]
fn no_change_falls_between_two_connections() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), &config(false));
    let log = fence.process().unwrap();
    log.wait_for_lines(1, "the tier is on");
    let mut last = client(&fence);
    for round in 0..6 {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let (over, fence, addr) = (&over, &fence, redis.addr());
            scope.spawn(move || {
                let mut plain = Client::connect(addr);
                let mut n = round * 1_000_000;
                while !over.load(Ordering::Relaxed) {
                    n += 1;
                    is!(plain, ["SET", format!("a:k{}", n % KEYS), n.to_string()], "+OK\r\n");
                    // Not so many that the tier finds itself not worth it.
                    pause(Duration::from_millis(2));
                }
            });
            scope.spawn(move || {
                let mut reads = client(fence);
                while !over.load(Ordering::Relaxed) {
                    (0..KEYS).for_each(|i| {
                        call!(reads, "GET", format!("k{i}"));
                    });
                }
            });
            fence.reload(&config(round % 2 == 0), "settings reloaded");
            log.wait_for_lines(round + 2, "the tier is on");
            over.store(true, Ordering::Relaxed);
        });
        settle(&mut last);
        for i in 0..KEYS {
            let direct = call!(redis.client(), "GET", format!("a:k{i}"));
            is!(last, ["GET", format!("k{i}")], show(&direct).replace("\\r\\n", "\r\n"));
        }
    }
}

/// Between keyfence and the server: from when the second connection begins to track, now without b, until `held` is taken back, no PING is answered.
/// `asked` counts them.
fn speechless(redis: &Redis, held: &'static AtomicBool, asked: &'static AtomicUsize) -> Scripted {
    Scripted::start(redis.addr(), move |request| match &request[0][..] {
        b"PING" if request.len() == 1 && held.load(Ordering::Relaxed) => {
            asked.fetch_add(1, Ordering::Relaxed);
            Act::Silence
        }
        b"CLIENT" if request[1] == b"TRACKING" && !request.iter().any(|word| word == b"b:") => {
            held.store(true, Ordering::Relaxed);
            Act::Forward
        }
        _ => Act::Forward,
    })
}

/// Longer than a test takes: a connection that is silent is lost after it.
fn patient(other: bool) -> String {
    config(other).replace("1s", "5s")
}

/// Waits for so many more PINGs: of the tracking connection there are two a second.
fn beats(asked: &AtomicUsize, more: usize) {
    let before = asked.load(Ordering::Relaxed);
    while asked.load(Ordering::Relaxed) < before + more {
        thread::yield_now();
    }
}

#[test]
fn a_successor_waits_for_its_predecessors_last_word() {
    static HELD: AtomicBool = AtomicBool::new(false);
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let redis = Redis::start();
    let between = speechless(&redis, &HELD, &ASKED);
    let fence = Fence::with_tenants(between.addr(), &patient(true));
    let log = fence.process().unwrap();
    log.wait_for_lines(1, "the tier is on");
    fence.reload(&patient(false), "settings reloaded");
    // Sent in several beats, so that the last of them was when the second had long been told that it tracks.
    beats(&ASKED, 5);
    assert_eq!(log.lines_with("the tier is on"), 1, "it has not heard the last of the one before it");
    HELD.store(false, Ordering::Relaxed);
    log.wait_for_lines(2, "the tier is on");
}

#[test]
fn scripts_that_end_during_a_succession_hold_nothing_after_it() {
    static HELD: AtomicBool = AtomicBool::new(false);
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let redis = Redis::start();
    let between = speechless(&redis, &HELD, &ASKED);
    let fence = Fence::with_tenants(between.addr(), &patient(true));
    let log = fence.process().unwrap();
    log.wait_for_lines(1, "the tier is on");
    let mut client = client(&fence);
    settle(&mut client);
    fence.reload(&patient(false), "settings reloaded");
    // The first to be answered are those that came before the script.
    beats(&ASKED, 4);
    is!(client, ["EVAL", "return 1", "0"], ":1\r\n");
    beats(&ASKED, 2);
    assert_eq!(log.lines_with("the tier is on"), 1);
    HELD.store(false, Ordering::Relaxed);
    log.wait_for_lines(2, "the tier is on");
    settle(&mut client);
}

#[test]
fn a_successor_under_way_is_not_given_up_for_other_tenants() {
    static HELD: AtomicBool = AtomicBool::new(true);
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let redis = Redis::start();
    let between = Scripted::start(redis.addr(), |request| {
        let names = |word: &[u8]| request.iter().any(|other| other == word);
        if request[0] == b"PING" {
            ASKED.fetch_add(1, Ordering::Relaxed);
        }
        while names(b"TRACKING") && names(b"b:") && !names(b"c:") && HELD.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        Act::Forward
    });
    let tenant = |name: &str, tier: bool| format!("[tenants.{name}]\npasswords = [\"p\"]\ntier = {tier}\n");
    let config = |b: bool, c: bool| patient(b) + &tenant("c", c);
    let fence = Fence::with_tenants(between.addr(), &config(true, true));
    let log = fence.process().unwrap();
    log.wait_for_lines(1, "the tier is on");
    let asked_for = |prefixes: &[&[u8]]| {
        let tracking =
            between.seen().into_iter().filter(|request| request[0] == b"CLIENT" && request[1] == b"TRACKING");
        tracking.filter(|request| request.iter().filter(|word| word.ends_with(b":")).eq(prefixes)).count()
    };
    fence.reload(&config(true, false), "settings reloaded");
    while asked_for(&[b"a:", b"b:"]) == 0 {
        thread::yield_now();
    }
    fence.reload(&config(false, false), "settings reloaded");
    beats(&ASKED, 5);
    assert_eq!((asked_for(&[b"a:", b"b:"]), asked_for(&[b"a:"])), (1, 0), "one after the other");
    HELD.store(false, Ordering::Relaxed);
    log.wait_for_lines(3, "the tier is on");
    assert_eq!((asked_for(&[b"a:", b"b:"]), asked_for(&[b"a:"])), (1, 1));
}

#[test]
fn a_tenant_that_comes_back_is_not_served_what_it_had() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), &config(true));
    let log = fence.process().unwrap();
    log.wait_for_lines(1, "the tier is on");
    let mut client = fence.client();
    is!(client, ["AUTH", "b", "p"], "+OK\r\n");
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$1\r\nv\r\n");
    fence.reload(&config(false), "settings reloaded");
    log.wait_for_lines(2, "the tier is on");
    // Nobody tells of this one.
    is!(redis.client(), ["SET", "b:k", "w"], "+OK\r\n");
    fence.reload(&config(true), "settings reloaded");
    while count(&mut client, "tier_live") == 0 {}
    is!(client, ["GET", "k"], "$1\r\nw\r\n");
}

#[test]
fn a_tenant_that_mostly_writes_rests() {
    let near = Near::start();
    let mut client = near.client();
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$1\r\nv\r\n");
    // The server tells of a key once in a turn of its, however often it was written.
    let writes: Vec<u8> = (0..200).flat_map(|i| command(&["SET", &format!("k{i}"), "w"])).collect();
    while count(&mut client, "tier_resting") == 0 {
        client.pipeline(&writes, 200);
    }
    near.fence.process().unwrap().wait_for_lines(1, "the tier rests");
    assert_eq!(count(&mut client, "tier_live"), 0);
    is!(client, ["KEYFENCE", "TIER"], "$2\r\non\r\n");
    let (before, told) = (calls(&near.redis, "get"), count(&mut client, "tier_invalidations"));
    for i in 0..10 {
        is!(near.redis.client(), ["SET", near.key("k"), i.to_string()], "+OK\r\n");
        is!(client, ["GET", "k"], format!("$1\r\n{i}\r\n"));
    }
    assert_eq!(calls(&near.redis, "get"), before + 10, "as without a tier");
    assert_eq!(count(&mut client, "tier_invalidations"), told, "and nobody is told of changes");
}
