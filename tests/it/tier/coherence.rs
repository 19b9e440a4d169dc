//! The tracking connection, reads in flight, and what happens when either is lost.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Near, ON, calls, count, pause, settle};
use crate::support::scripted::{Act, Scripted};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};
use crate::{call, is};

/// Ends the connection that the server tells of changes, and in the same turn says `more`.
pub(super) fn kill_tracking(plain: &mut Client, more: &[Vec<u8>]) -> usize {
    let list = call!(plain, "CLIENT", "LIST");
    let text = String::from_utf8_lossy(&list).into_owned();
    let trackers: Vec<&str> = text
        .lines()
        .filter(|line| line.split(' ').any(|field| field.starts_with("flags=") && field.contains("tB")))
        .filter_map(|line| line.trim_start_matches(|c: char| !c.is_ascii_alphabetic()).split(' ').next())
        .filter_map(|id| id.strip_prefix("id="))
        .collect();
    let mut sent: Vec<u8> = trackers.iter().flat_map(|id| command(&["CLIENT", "KILL", "ID", id])).collect();
    sent.extend(more.iter().flatten());
    plain.pipeline(&sent, trackers.len() + more.len());
    trackers.len()
}

#[test]
fn a_write_made_elsewhere_is_told() {
    let near = Near::start();
    let (mut client, mut plain) = (near.client(), near.redis.client());
    for i in 0..50 {
        is!(plain, ["SET", near.key("k"), i.to_string()], "+OK\r\n");
        settle(&mut client);
        let want = format!("${}\r\n{i}\r\n", i.to_string().len());
        is!(client, ["GET", "k"], &want);
        is!(client, ["GET", "k"], &want);
    }
    call!(plain, "FLUSHALL");
    settle(&mut client);
    is!(client, ["GET", "k"], "$-1\r\n");
}

#[test]
fn a_server_that_loads_its_snapshot_tells() {
    let near = Near::start();
    let (mut client, mut plain) = (near.client(), near.redis.client());
    is!(client, ["SET", "k", "old"], "+OK\r\n");
    is!(plain, ["SAVE"], "+OK\r\n");
    is!(client, ["SET", "k", "new"], "+OK\r\n");
    settle(&mut client);
    (0..2).for_each(|_| is!(client, ["GET", "k"], "$3\r\nnew\r\n"));
    is!(plain, ["DEBUG", "RELOAD", "NOSAVE"], "+OK\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$3\r\nold\r\n");
}

#[test]
fn eviction_and_expiry_by_the_server_are_told() {
    let near = Near::start();
    let (mut client, mut plain) = (near.client(), near.redis.client());
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$1\r\nv\r\n");
    is!(client, ["GET", "k"], "$1\r\nv\r\n");
    is!(plain, ["CONFIG", "SET", "maxmemory-policy", "allkeys-random", "maxmemory", "1"], "+OK\r\n");
    while call!(plain, "DBSIZE") != b":0\r\n" {
        call!(plain, "SET", "other", "x");
    }
    is!(plain, ["CONFIG", "SET", "maxmemory", "0"], "+OK\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$-1\r\n");
}

/// While nobody tells of changes nothing is answered from here, and what was kept before is not when it is back.
#[test]
fn a_lost_tracking_connection_voids_all() {
    let near = Near::start();
    let (mut client, mut plain) = (near.client(), near.redis.client());
    for round in 0..5 {
        let keys: Vec<String> = (0..50).map(|i| format!("k{i}")).collect();
        let old = format!("old{round}");
        for key in &keys {
            is!(client, ["SET", key, &old], "+OK\r\n");
        }
        settle(&mut client);
        for key in keys.iter().chain(&keys) {
            is!(client, ["GET", key], format!("${}\r\n{old}\r\n", old.len()));
        }
        let writes: Vec<_> = keys.iter().map(|key| command(&[&b"SET"[..], &near.key(key), b"new"])).collect();
        assert_eq!(kill_tracking(&mut plain, &writes), 1);
        // It says so when it is back; from then on there is no excuse.
        near.wait_until_on(round + 2);
        for key in &keys {
            is!(client, ["GET", key], "$3\r\nnew\r\n");
        }
        settle(&mut client);
    }
}

#[test]
fn without_a_tracking_connection_everything_goes_upstream() {
    let near = Near::start();
    let (mut client, mut plain) = (near.client(), near.redis.client());
    settle(&mut client);
    is!(plain, ["ACL", "SETUSER", "default", "-client|tracking"], "+OK\r\n");
    assert_eq!(kill_tracking(&mut plain, &[]), 1);
    near.fence.process().unwrap().wait_for_lines(1, "no tier: the upstream does not tell of changes");
    let (hits, before) = (count(&mut client, "tier_hits"), calls(&near.redis, "get"));
    for i in 0..20 {
        is!(plain, ["SET", near.key("k"), i.to_string()], "+OK\r\n");
        is!(client, ["GET", "k"], format!("${}\r\n{i}\r\n", i.to_string().len()));
    }
    assert_eq!((count(&mut client, "tier_hits"), calls(&near.redis, "get")), (hits, before + 20));
    assert_eq!(count(&mut client, "tier_live"), 0);
}

/// A tracking connection that is there and silent is as good as none.
#[test]
fn an_unanswered_ping_ends_it() {
    static SILENT: AtomicBool = AtomicBool::new(false);
    let redis = Redis::start();
    let between = Scripted::start(redis.addr(), |request| match &request[0][..] {
        b"PING" if SILENT.load(Ordering::Relaxed) => Act::Silence,
        _ => Act::Forward,
    });
    let fence = Fence::start_at(between.addr(), ON);
    fence.process().unwrap().wait_for_lines(1, "the tier is on");
    let mut client = fence.client();
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    while count(&mut client, "tier_hits") == 0 {
        is!(client, ["GET", "k"], "$1\r\nv\r\n");
    }
    SILENT.store(true, Ordering::Relaxed);
    while count(&mut client, "tier_live") == 1 {}
    // The one between answers one request at a time and hands on no pushes, so this was not told.
    is!(redis.client(), ["SET", fence.upstream_key("k"), "w"], "+OK\r\n");
    is!(client, ["GET", "k"], "$1\r\nw\r\n");
    SILENT.store(false, Ordering::Relaxed);
}

/// The value was read before the write, and its reply comes after all is known of it: it must not be kept.
#[test]
fn a_reply_that_was_overtaken_is_not_kept() {
    let near = Near::start();
    let (mut reader, mut writer) = (near.client(), near.client());
    for i in 0..200 {
        reader.send(&command(&["GET", "k"]));
        is!(writer, ["SET", "k", i.to_string()], "+OK\r\n");
        let early = show(&reader.reply());
        let want = format!("${}\r\n{i}\r\n", i.to_string().len());
        is!(writer, ["GET", "k"], &want);
        is!(reader, ["GET", "k"], &want);
        assert!(early.starts_with('$'));
    }
}

#[test]
fn a_hundred_who_miss_one_key_ask_once() {
    let redis = Redis::start();
    for workers in ["1", "2"] {
        let fence =
            Fence::with_tenants(redis.addr(), &format!("workers = {workers}\nkey_prefix = \"w{workers}:\"\n{ON}"));
        fence.process().unwrap().wait_for_lines(1, "the tier is on");
        is!(redis.client(), ["SET", format!("w{workers}:k"), "v"], "+OK\r\n");
        let mut clients: Vec<Client> = (0..100).map(|_| fence.client()).collect();
        for client in &mut clients {
            is!(client, ["PING"], "+PONG\r\n");
        }
        settle(&mut clients[0]);
        let before = calls(&redis, "get");
        // The server does nothing else until all of them have asked.
        let mut plain = redis.client();
        plain.send(&command(&["DEBUG", "SLEEP", "0.3"]));
        for client in &mut clients {
            client.send(&command(&["GET", "k"]));
        }
        for client in &mut clients {
            assert_eq!(show(&client.reply()), "$1\\r\\nv\\r\\n");
        }
        assert_eq!(plain.reply(), b"+OK\r\n");
        assert_eq!(calls(&redis, "get") - before, 1, "{workers} workers");
    }
}

#[test]
fn a_failed_read_fails_all_who_wait() {
    let near = Near::start();
    let mut clients: Vec<Client> = (0..50).map(|_| near.client()).collect();
    call!(clients[0], "RPUSH", "l", "x");
    settle(&mut clients[0]);
    for _ in 0..2 {
        let mut plain = near.redis.client();
        plain.send(&command(&["DEBUG", "SLEEP", "0.2"]));
        for client in &mut clients {
            client.send(&command(&["GET", "l"]));
        }
        for client in &mut clients {
            assert!(client.reply().starts_with(b"-WRONGTYPE"));
        }
        assert_eq!(plain.reply(), b"+OK\r\n");
    }
    let entries = count(&mut clients[0], "tier_fills");
    call!(clients[0], "GET", "l");
    assert_eq!(count(&mut clients[0], "tier_fills"), entries);
}

/// Half of those who wait leave, the one who asked among them: the others get their answer.
#[test]
fn who_waits_gets_it_though_others_leave() {
    let near = Near::start();
    let mut clients: Vec<Client> = (0..20).map(|_| near.client()).collect();
    call!(clients[0], "SET", "k", "v");
    settle(&mut clients[0]);
    let mut plain = near.redis.client();
    plain.send(&command(&["DEBUG", "SLEEP", "0.2"]));
    for client in &mut clients {
        client.send(&command(&["GET", "k"]));
        // The first to send is the one who asks.
        pause(Duration::from_millis(2));
    }
    clients.drain(..10);
    for client in &mut clients {
        assert_eq!(show(&client.reply()), "$1\\r\\nv\\r\\n");
    }
    assert_eq!(plain.reply(), b"+OK\r\n");
}

#[test]
fn the_server_dies_with_reads_in_flight() {
    let mut near = Near::start();
    let mut clients: Vec<Client> = (0..20).map(|_| near.client()).collect();
    call!(clients[0], "SET", "k", "v");
    settle(&mut clients[0]);
    near.redis.signal("STOP");
    for client in &mut clients {
        client.send(&command(&["GET", "k"]));
    }
    near.redis.kill();
    for client in &mut clients {
        let reply = client.reply();
        assert!(reply.starts_with(b"-UPSTREAM "), "{}", show(&reply));
    }
    near.redis.restart();
    near.wait_until_on(2);
    loop {
        let reply = call!(clients[0], "GET", "k");
        if !reply.starts_with(b"-") {
            assert_eq!(show(&reply), "$-1\\r\\n", "the new server has no such key");
            break;
        }
    }
}

#[test]
fn an_upstream_that_is_busy_with_a_script_proves_nothing() {
    let near = Near::start();
    let (mut client, mut plain, mut last) = (near.client(), near.redis.client(), near.redis.client());
    is!(last, ["PING"], "+PONG\r\n");
    is!(plain, ["CONFIG", "SET", "lua-time-limit", "900"], "+OK\r\n");
    is!(client, ["SET", "k", "before"], "+OK\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$6\r\nbefore\r\n");
    is!(client, ["GET", "k"], "$6\r\nbefore\r\n");
    // One script that holds the server up, then in one turn of the server's: the tenant's, which is answered while the last one runs, and that.
    let run = |millis: &str| {
        let script = "local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end \
                      local till = now() + ARGV[1] while now() < till do end return 1";
        command(&["EVAL", script, "0", millis])
    };
    plain.send(&run("600"));
    pause(Duration::from_millis(100));
    client.send(&command(&["EVAL", "return redis.call('SET', ARGV[1], ARGV[2])", "0", "k", "after"]));
    pause(Duration::from_millis(300));
    last.send(&run("2500"));
    assert_eq!(client.reply(), b"+OK\r\n");
    for _ in 0..30 {
        let reply = call!(client, "GET", "k");
        assert_ne!(show(&reply), "$6\\r\\nbefore\\r\\n");
        pause(Duration::from_millis(30));
    }
    assert_eq!(plain.reply(), b":1\r\n");
    assert_eq!(last.reply(), b":1\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$5\r\nafter\r\n");
}
