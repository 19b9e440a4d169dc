//! Upstreams that die, hang and lie, and clients that leave: every command gets exactly one answer, in order, and it is its own.
mod clients_leave;
mod lying;

use std::collections::HashSet;

use crate::support::scripted::{Act, Scripted};
use crate::support::wire::{bulk, command, show};
use crate::support::{Client, Fence, Redis, free_addr};
use crate::{call, is};

/// Asks until the upstream is back: an `-UPSTREAM` error may come first.
fn until_back(client: &mut Client, args: &[&[u8]]) -> Vec<u8> {
    loop {
        let reply = client.call(args);
        if !reply.starts_with(b"-UPSTREAM") {
            return reply;
        }
        assert!(
            reply.starts_with(b"-UPSTREAM unreachable") || reply.starts_with(b"-UPSTREAM connection lost"),
            "{}",
            show(&reply)
        );
    }
}

#[test]
fn the_upstream_is_killed_amid_ten_thousand_commands() {
    let mut redis = Redis::start();
    let fence = Fence::start_at(redis.addr(), "");
    let (mut client, mut idle) = (fence.client(), fence.client());
    let mut bytes = Vec::new();
    for i in 0..10_000 {
        bytes.extend(command(&["SET".as_bytes(), format!("k{i}").as_bytes(), &[b'x'; 2000]]));
    }
    let mut writer = client.stream().try_clone().unwrap();
    let replies: Vec<Vec<u8>> = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut writer, &bytes).unwrap());
        (0..10_000)
            .map(|i| {
                if i == 500 {
                    redis.kill();
                }
                client.reply()
            })
            .collect()
    });
    let lost = replies.iter().filter(|reply| reply.starts_with(b"-UPSTREAM ")).count();
    let done = replies.iter().filter(|reply| *reply == b"+OK\r\n").count();
    assert_eq!(lost + done, 10_000, "each is done or has failed");
    assert!(lost > 0 && done >= 500, "{done} done, {lost} lost");
    is!(client, ["PING", "in sync"], bulk("in sync"));
    is!(idle, ["PING"], "+PONG\r\n");
    redis.restart();
    assert_eq!(until_back(&mut client, &[b"SET", b"k", b"again"]), b"+OK\r\n");
    is!(client, ["GET", "k"], bulk("again"));
    is!(idle, ["GET", "k"], bulk("again"));
}

#[test]
fn what_was_answered_before_the_connection_broke_stays_answered() {
    let redis = Redis::start();
    let upstream = Scripted::start(redis.addr(), |request| match request.last() {
        Some(last) if last == b"v3000" => Act::Close(Vec::new()),
        _ => Act::Forward,
    });
    let fence = Fence::start_at(upstream.addr(), "");
    let mut client = fence.client();
    let bytes: Vec<u8> = (0..10_000).flat_map(|i| command(&["SET", &format!("k{i}"), &format!("v{i}")])).collect();
    let replies = client.pipeline(&bytes, 10_000);
    let set: HashSet<Vec<u8>> =
        upstream.seen().into_iter().filter(|request| request[0] == b"SET").map(|request| request[2].clone()).collect();
    for (i, reply) in replies.iter().enumerate() {
        let reached = set.contains(format!("v{i}").as_bytes());
        match &reply[..] {
            b"+OK\r\n" => assert!(reached && i != 3000, "{i} is said to be done"),
            b"-UPSTREAM connection lost\r\n" => assert!(i >= 3000, "{i} was answered before the break"),
            // Not sent: it must not have been carried out.
            _ if reply.starts_with(b"-UPSTREAM unreachable") => assert!(!reached, "{i} did run: {}", show(reply)),
            _ => panic!("{i}: {}", show(reply)),
        }
    }
    assert!(replies[..3000].iter().all(|reply| reply == b"+OK\r\n"));
    assert_eq!(show(&replies[3000]), "-UPSTREAM connection lost\\r\\n");
    is!(client, ["PING", "in sync"], bulk("in sync"));
}

#[test]
fn an_upstream_that_hangs_is_answered_for_in_time() {
    let redis = Redis::start();
    let fence = Fence::start_at(redis.addr(), "[upstream]\nsocket_timeout = \"300ms\"\n");
    let mut client = fence.client();
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    redis.signal("STOP");
    is!(client, ["GET", "k"], "-UPSTREAM timed out after 300ms\r\n");
    // In order, with local answers between.
    let bytes = [
        command(&["GET", "k"]),
        command(&["PING"]),
        command(&["KEYS", "*"]),
        command(&["ECHO", "x"]),
        command(&["MULTI"]),
    ]
    .concat();
    let replies = client.pipeline(&bytes, 5);
    assert!(replies[0].starts_with(b"-UPSTREAM "), "{}", show(&replies[0]));
    assert_eq!(replies[1], b"+PONG\r\n");
    assert!(replies[2].starts_with(b"-UPSTREAM "), "{}", show(&replies[2]));
    assert_eq!(replies[3], bulk("x"));
    assert!(replies[4] == b"+OK\r\n" || replies[4].starts_with(b"-UPSTREAM "), "{}", show(&replies[4]));
    redis.signal("CONT");
    let mut client = fence.client();
    loop {
        let reply = call!(client, "GET", "k");
        if reply == bulk("v") {
            break;
        }
        assert!(reply.starts_with(b"-UPSTREAM "), "{}", show(&reply));
    }
    // The late replies reach nobody.
    for i in 0..100 {
        is!(client, ["SET", "k", i.to_string()], "+OK\r\n");
        is!(client, ["GET", "k"], bulk(i.to_string()));
    }
}

#[test]
fn a_silent_connection_times_out_by_itself() {
    let redis = Redis::start();
    let upstream = Scripted::start(redis.addr(), |request| {
        if request.last().is_some_and(|key| key.ends_with(b"black hole")) { Act::Silence } else { Act::Forward }
    });
    let fence = Fence::start_at(upstream.addr(), "[upstream]\nsocket_timeout = \"300ms\"\n");
    let mut client = fence.client();
    for _ in 0..3 {
        is!(client, ["GET", "black hole"], "-UPSTREAM timed out after 300ms\r\n");
        assert_eq!(until_back(&mut client, &[b"ECHO", b"x"]), bulk("x"));
        assert_eq!(until_back(&mut client, &[b"SET", b"k", b"v"]), b"+OK\r\n");
        is!(client, ["GET", "k"], bulk("v"));
    }
}

#[test]
fn the_upstream_comes_up_after_keyfence() {
    let addr = free_addr();
    let fence = Fence::start_at(addr, "");
    let mut client = fence.client();
    let reply = call!(client, "GET", "k");
    assert!(reply.starts_with(b"-UPSTREAM unreachable: "), "{}", show(&reply));
    for args in [
        &["SET", "k", "v"][..],
        &["KEYS", "*"],
        &["DBSIZE"],
        &["FLUSHDB"],
        &["SCAN", "0"],
        &["RANDOMKEY"],
        &["BLPOP", "l", "0"],
        &["WATCH", "k"],
    ] {
        let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        let reply = client.call(&args);
        assert!(reply.starts_with(b"-UPSTREAM "), "{}: {}", show(args[0]), show(&reply));
    }
    is!(client, ["PING"], "+PONG\r\n");
    is!(client, ["NOSUCH"], "-ERR unknown command 'NOSUCH', with args beginning with: \r\n");
    let redis = Redis::start_with(addr, &[]);
    assert_eq!(until_back(&mut client, &[b"SET", b"k", b"v"]), b"+OK\r\n");
    is!(redis.client(), ["GET", fence.upstream_key("k")], bulk("v"));
}

#[test]
fn a_transaction_does_not_survive_its_upstream() {
    let mut redis = Redis::start();
    let fence = Fence::start(&redis);
    let [mut watcher, mut queuer, mut bystander] = [(); 3].map(|()| fence.client());
    is!(watcher, ["SET", "k", "1"], "+OK\r\n");
    is!(watcher, ["WATCH", "k"], "+OK\r\n");
    is!(watcher, ["MULTI"], "+OK\r\n");
    is!(watcher, ["SET", "k", "2"], "+QUEUED\r\n");
    is!(queuer, ["WATCH", "other"], "+OK\r\n");
    is!(bystander, ["GET", "k"], bulk("1"));
    redis.restart();
    // Nobody knows whether the watched key changed, so the transaction must not run.
    let reply = call!(watcher, "EXEC");
    assert!(reply.starts_with(b"-UPSTREAM ") || reply.starts_with(b"-EXECABORT "), "{}", show(&reply));
    assert_eq!(until_back(&mut watcher, &[b"EXISTS", b"k"]), b":0\r\n");
    is!(watcher, ["EXEC"], "-ERR EXEC without MULTI\r\n");
    let bytes = [command(&["MULTI"]), command(&["SET", "other", "x"]), command(&["EXEC"])].concat();
    let replies = queuer.pipeline(&bytes, 3);
    assert!(replies[2][0] == b'-' || replies[2] == b"*-1\r\n", "the watch was lost: {}", show(&replies[2]));
    assert_eq!(until_back(&mut bystander, &[b"EXISTS", b"other"]), b":0\r\n");
    // And all three go on.
    for client in [&mut watcher, &mut queuer, &mut bystander] {
        assert_eq!(until_back(client, &[b"SET", b"k", b"3"]), b"+OK\r\n");
        let replies = client.pipeline(&[command(&["MULTI"]), command(&["GET", "k"]), command(&["EXEC"])].concat(), 3);
        assert_eq!(show(&replies[2]), "*1\\r\\n$1\\r\\n3\\r\\n");
    }
}

#[test]
fn blocked_clients_are_told_when_the_upstream_goes() {
    let mut redis = Redis::start();
    let fence = Fence::start(&redis);
    let mut blocked: Vec<Client> = (0..5).map(|_| fence.client()).collect();
    for client in &mut blocked {
        client.send(&command(&["BLPOP", "q", "0"]));
    }
    clients_leave::wait_for_blocked(&redis, 5);
    redis.restart();
    for client in &mut blocked {
        assert_eq!(show(&client.reply()), "-UPSTREAM connection lost\\r\\n");
        assert_eq!(until_back(client, &[b"RPUSH", b"q2", b"x"])[0], b':');
    }
}
