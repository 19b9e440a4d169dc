//! A tier that is turned on while commands are under way that were sent without one. Between keyfence and the server stands one that hands on
//! no pushes, so that only what keyfence itself knows of these writes keeps it true.
use std::sync::atomic::{AtomicBool, Ordering};

use super::{ON, count};
use crate::is;
use crate::support::scripted::{Act, Scripted};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};

fn config(tier: bool) -> String {
    // Clients take turns with two connections upstream, so that readers need not stand behind what waits.
    let upstream = "[upstream]\nsocket_timeout = \"300ms\"\nconnections_per_worker = 2\n";
    format!("workers = 1\n{ON}{upstream}[tenants.a]\npasswords = [\"pa\"]\ntier = {tier}\n")
}

fn client(fence: &Fence) -> Client {
    let mut client = fence.client();
    is!(client, ["AUTH", "a", "pa"], "+OK\r\n");
    client
}

/// Pushes are withheld, and signs of life are given in the server's place, unless `silent`.
fn deaf(redis: &Redis, silent: &'static AtomicBool) -> Scripted {
    Scripted::start(redis.addr(), move |request| match &request[0][..] {
        b"PING" if request.len() == 1 && silent.load(Ordering::Relaxed) => Act::Silence,
        b"PING" if request.len() == 1 => Act::Reply(b"+PONG\r\n".to_vec()),
        _ => Act::Forward,
    })
}

fn turn_on(fence: &Fence, client: &mut Client) {
    fence.reload(&config(true), "settings reloaded");
    while count(client, "tier_live") == 0 {}
}

#[test]
fn what_blocked_before_is_known_when_it_ends() {
    static SILENT: AtomicBool = AtomicBool::new(false);
    let redis = Redis::start();
    let between = deaf(&redis, &SILENT);
    let fence = Fence::with_tenants(between.addr(), &config(false));
    let (mut waits, mut reads) = (client(&fence), client(&fence));
    waits.send(&command(&["BLMOVE", "from", "to", "LEFT", "LEFT", "0"]));
    while !between.seen().iter().any(|request| request[0] == b"BLMOVE") {}
    turn_on(&fence, &mut reads);
    let hits = count(&mut reads, "tier_hits");
    while count(&mut reads, "tier_hits") == hits {
        is!(reads, ["LLEN", "to"], ":0\r\n");
    }
    is!(redis.client(), ["RPUSH", "a:from", "x"], ":1\r\n");
    assert_eq!(show(&waits.reply()), "$1\\r\\nx\\r\\n");
    is!(reads, ["LLEN", "to"], ":1\r\n");
}

/// Turns the tier on, and has `reads` answered by it; what `writes` queued before is seen once EXEC was answered, though nothing says then that
/// changes have been told.
fn exec_is_known_of(fence: &Fence, writes: &mut Client, reads: &mut Client, silent: &AtomicBool) {
    turn_on(fence, reads);
    let hits = count(reads, "tier_hits");
    while count(reads, "tier_hits") == hits {
        is!(reads, ["GET", "k"], "$-1\r\n");
    }
    silent.store(true, Ordering::Relaxed);
    writes.send(&command(&["EXEC"]));
    assert_eq!(show(&writes.reply()), "*1\\r\\n+OK\\r\\n");
    is!(reads, ["GET", "k"], "$3\r\nnew\r\n");
}

#[test]
fn what_was_queued_before_is_known_at_exec() {
    static SILENT: AtomicBool = AtomicBool::new(false);
    let redis = Redis::start();
    let between = deaf(&redis, &SILENT);
    let fence = Fence::with_tenants(between.addr(), &config(false));
    let (mut writes, mut reads) = (client(&fence), client(&fence));
    is!(writes, ["MULTI"], "+OK\r\n");
    is!(writes, ["SET", "k", "new"], "+QUEUED\r\n");
    exec_is_known_of(&fence, &mut writes, &mut reads, &SILENT);
}

#[test]
fn what_was_queued_while_it_was_off_is_known_at_exec() {
    static SILENT: AtomicBool = AtomicBool::new(false);
    let redis = Redis::start();
    let between = deaf(&redis, &SILENT);
    let fence = Fence::with_tenants(between.addr(), &config(true));
    let (mut writes, mut reads) = (client(&fence), client(&fence));
    while count(&mut reads, "tier_live") == 0 {}
    is!(writes, ["MULTI"], "+OK\r\n");
    fence.reload(&config(false), "settings reloaded");
    is!(writes, ["SET", "k", "new"], "+QUEUED\r\n");
    exec_is_known_of(&fence, &mut writes, &mut reads, &SILENT);
}

#[test]
fn a_script_sent_before_holds_the_tenant() {
    static HELD: AtomicBool = AtomicBool::new(true);
    static SILENT: AtomicBool = AtomicBool::new(false);
    let redis = Redis::start();
    let between = Scripted::start(redis.addr(), |request| match &request[0][..] {
        b"PING" if SILENT.load(Ordering::Relaxed) => Act::Silence,
        b"EVAL" if request[1].windows(5).any(|part| part == b"'new'") => {
            while HELD.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Act::Forward
        }
        _ => Act::Forward,
    });
    let fence = Fence::with_tenants(between.addr(), &config(false));
    let (mut writes, _other, mut reads) = (client(&fence), client(&fence), client(&fence));
    writes.send(&command(&["EVAL", "return redis.call('SET', KEYS[1], 'new')", "1", "k"]));
    while !between.seen().iter().any(|request| request[0] == b"EVAL") {}
    turn_on(&fence, &mut reads);
    (0..3).for_each(|_| is!(reads, ["GET", "k"], "$-1\r\n"));
    SILENT.store(true, Ordering::Relaxed);
    HELD.store(false, Ordering::Relaxed);
    assert_eq!(show(&writes.reply()), "+OK\\r\\n");
    is!(reads, ["GET", "k"], "$3\r\nnew\r\n");
    SILENT.store(false, Ordering::Relaxed);
}
