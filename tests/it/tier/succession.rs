//! Tenants come to the tier and leave it, by a reload or because it rests: what is kept of the others stays, and stays true.
use std::sync::atomic::{AtomicBool, Ordering};
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

#[test]
fn a_successor_waits_for_its_predecessors_last_word() {
    static HELD: AtomicBool = AtomicBool::new(false);
    static ASKED: AtomicBool = AtomicBool::new(false);
    let redis = Redis::start();
    let between = Scripted::start(redis.addr(), |request| match &request[0][..] {
        b"PING" if request.len() == 1 && HELD.load(Ordering::Relaxed) => {
            ASKED.store(true, Ordering::Relaxed);
            Act::Silence
        }
        b"CLIENT" if request[1] == b"TRACKING" && request.iter().any(|word| word == b"b:") => {
            // It tracks, and from now on nothing is heard of the one before it.
            HELD.store(true, Ordering::Relaxed);
            Act::Forward
        }
        _ => Act::Forward,
    });
    // Longer than the test takes: the one that is silent is lost after it.
    let patient = |other| config(other).replace("1s", "3s");
    let fence = Fence::with_tenants(between.addr(), &patient(false));
    let log = fence.process().unwrap();
    log.wait_for_lines(1, "the tier is on");
    fence.reload(&patient(true), "settings reloaded");
    let mut client = client(&fence);
    while !ASKED.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    for _ in 0..20 {
        is!(client, ["PING"], "+PONG\r\n");
        assert_eq!(log.lines_with("the tier is on"), 1, "it has not heard the last of the one before it");
    }
    HELD.store(false, Ordering::Relaxed);
    log.wait_for_lines(2, "the tier is on");
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
