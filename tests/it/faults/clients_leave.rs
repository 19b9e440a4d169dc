//! Clients that leave without a word: what was theirs reaches nobody else, and what waited for them is not lost.
use std::thread;

use crate::support::wire::{bulk, command, show};
use crate::support::{Fence, Redis};
use crate::{call, is};

/// Waits until that many clients are blocked at the server.
pub(super) fn wait_for_blocked(redis: &Redis, count: usize) {
    let mut client = redis.client();
    let wanted = format!("blocked_clients:{count}\r\n");
    while !show(&call!(client, "INFO", "clients")).contains(&show(wanted.as_bytes())) {
        thread::yield_now();
    }
}

#[test]
fn nothing_is_popped_for_a_client_that_left() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let mut stays = fence.client();
    for waiting in [
        &["BLPOP", "q", "0"][..],
        &["BRPOP", "other", "q", "0"],
        &["BLMOVE", "q", "elsewhere", "LEFT", "RIGHT", "0"],
        &["BRPOPLPUSH", "q", "elsewhere", "0"],
        &["BLMPOP", "0", "1", "q", "LEFT"],
    ] {
        let mut leaves = fence.client();
        leaves.send(&command(waiting));
        wait_for_blocked(&redis, 1);
        drop(leaves);
        wait_for_blocked(&redis, 0);
        is!(stays, ["LPUSH", "q", "x"], ":1\r\n");
        is!(stays, ["LRANGE", "q", "0", "-1"], "*1\r\n$1\r\nx\r\n");
        is!(stays, ["DEL", "q"], ":1\r\n");
    }
    let mut leaves = fence.client();
    leaves.send(&command(&["BZPOPMIN", "z", "0"]));
    wait_for_blocked(&redis, 1);
    drop(leaves);
    wait_for_blocked(&redis, 0);
    is!(stays, ["ZADD", "z", "1", "a"], ":1\r\n");
    is!(stays, ["ZCARD", "z"], ":1\r\n");
    // With commands pipelined behind the wait, which must not be carried out by a client that is gone.
    let mut leaves = fence.client();
    leaves.send(&[command(&["BLPOP", "q", "0"]), command(&["SET", "after", "x"])].concat());
    wait_for_blocked(&redis, 1);
    drop(leaves);
    wait_for_blocked(&redis, 0);
    is!(stays, ["LPUSH", "q", "x"], ":1\r\n");
    is!(stays, ["LLEN", "q"], ":1\r\n");
}

#[test]
fn one_blocked_client_holds_up_nobody() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let mut blocked: Vec<_> = (0..50).map(|i| (i, fence.client())).collect();
    for (i, client) in &mut blocked {
        client.send(&command(&["BLPOP", &format!("q{i}"), "0"]));
    }
    wait_for_blocked(&redis, 50);
    let mut works = fence.client();
    for i in 0..200 {
        is!(works, ["SET", "k", i.to_string()], "+OK\r\n");
        is!(works, ["GET", "k"], bulk(i.to_string()));
    }
    for (i, client) in blocked.iter_mut().rev() {
        is!(works, ["RPUSH", format!("q{i}"), format!("for {i}")], ":1\r\n");
        let want = [b"*2\r\n".to_vec(), bulk(format!("q{i}")), bulk(format!("for {i}"))].concat();
        assert_eq!(show(&client.reply()), show(&want));
        is!(client, ["PING"], "+PONG\r\n");
    }
}

#[test]
fn no_reply_ever_reaches_another_client() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    thread::scope(|scope| {
        for tag in 0..6_u64 {
            let fence = &fence;
            scope.spawn(move || {
                let mut dice = tag + 1;
                let mut roll = |sides: u64| {
                    // xorshift: the same every time, different for each thread.
                    dice ^= dice << 13;
                    dice ^= dice >> 7;
                    dice ^= dice << 17;
                    dice % sides
                };
                let value =
                    |i: u64| format!("value {i} of {tag} {}", "x".repeat(usize::try_from(i % 40 * 50).unwrap()));
                let mut sets = fence.client();
                for i in 0..100 {
                    is!(sets, ["SET", format!("{tag}:{i}"), value(i)], "+OK\r\n");
                }
                for _ in 0..150 {
                    let mut client = fence.client();
                    let asked: Vec<u64> = (0..=roll(80)).map(|_| roll(100)).collect();
                    let mut bytes = Vec::new();
                    for i in &asked {
                        let key = format!("{tag}:{i}");
                        match i % 10 {
                            0 => bytes.extend(command(&["BLPOP", &format!("empty {tag}"), &key, "0"])),
                            1 => bytes
                                .extend([command(&["MULTI"]), command(&["GET", &key]), command(&["EXEC"])].concat()),
                            _ => bytes.extend(command(&["GET", &key])),
                        }
                    }
                    // Some leave in the middle of a request, some before reading, some after some of the replies.
                    let cut =
                        if roll(3) == 0 { usize::try_from(roll(bytes.len() as u64 + 1)).unwrap() } else { bytes.len() };
                    client.send_lossy(&bytes[..cut]);
                    let read = if cut == bytes.len() { roll(asked.len() as u64 + 1) } else { 0 };
                    for i in asked.iter().take(usize::try_from(read).unwrap()) {
                        let want = match i % 10 {
                            0 => b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n".to_vec(),
                            1 => [b"+OK\r\n+QUEUED\r\n*1\r\n".to_vec(), bulk(value(*i))].concat(),
                            _ => bulk(value(*i)),
                        };
                        let mut got = client.reply();
                        while got.len() < want.len() && want.starts_with(&got) {
                            got.extend(client.reply());
                        }
                        assert_eq!(show(&got), show(&want));
                    }
                }
            });
        }
    });
    is!(fence.client(), ["DBSIZE"], ":600\r\n");
}

#[test]
fn a_transaction_of_a_client_that_left_is_not_carried_out() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    for start in [&["MULTI"][..], &["WATCH", "k"]] {
        let mut leaves = fence.client();
        is!(leaves, ["PING"], "+PONG\r\n");
        leaves.send(&[command(start), command(&["MULTI"]), command(&["SET", "half", "done"])].concat());
        leaves.reply();
        drop(leaves);
    }
    // Connections that had a state are closed or cleaned, never handed on with it.
    for _ in 0..20 {
        let mut client = fence.client();
        is!(client, ["EXEC"], "-ERR EXEC without MULTI\r\n");
        is!(client, ["EXISTS", "half"], ":0\r\n");
    }
}
