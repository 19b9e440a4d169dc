//! Reads that overtake each other, or a change of which nobody has told yet. Between keyfence and the server stands one that hands on no pushes,
//! so that none of these changes is told while the test runs.
use std::sync::atomic::{AtomicBool, Ordering};

use super::{ON, count};
use crate::is;
use crate::support::scripted::{Act, Scripted};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};

fn alive(request: &[Vec<u8>]) -> bool {
    request[0] == b"PING" && request.len() == 1
}

fn pong() -> Act {
    Act::Reply(b"+PONG\r\n".to_vec())
}

/// Clients take turns with two connections upstream, so that one's reply need not stand behind another's.
fn fence(between: &Scripted) -> Fence {
    let fence = Fence::start_at(between.addr(), &format!("workers = 1\n{ON}[upstream]\nconnections_per_worker = 2\n"));
    fence.process().unwrap().wait_for_lines(1, "the tier is on");
    fence
}

/// The value is read, then changed elsewhere, then read again by another client, whose reply comes first.
#[test]
fn an_older_reply_takes_no_newer_ones_place() {
    static HELD: AtomicBool = AtomicBool::new(true);
    let redis = Redis::start();
    let between = Scripted::start(redis.addr(), |request| match &request[0][..] {
        _ if alive(request) => pong(),
        b"GET" if HELD.load(Ordering::Relaxed) => {
            while HELD.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Act::Reply(b"$3\r\nold\r\n".to_vec())
        }
        _ => Act::Forward,
    });
    let fence = fence(&between);
    let (mut slow, _other, mut quick): (Client, Client, Client) = (fence.client(), fence.client(), fence.client());
    is!(redis.client(), ["SET", fence.upstream_key("k"), "new"], "+OK\r\n");
    slow.send(&command(&["GET", "k"]));
    while !between.seen().iter().any(|request| request[0] == b"GET") {}
    // This does not wait for the read in flight, and is kept as a GET.
    is!(quick, ["MGET", "k", "k"], "*2\r\n$3\r\nnew\r\n$3\r\nnew\r\n");
    HELD.store(false, Ordering::Relaxed);
    assert_eq!(show(&slow.reply()), "$3\\r\\nold\\r\\n");
    (0..3).for_each(|_| is!(quick, ["GET", "k"], "$3\r\nnew\r\n"));
    assert!(count(&mut quick, "tier_hits") > 0);
}

/// What EXISTS of several keys is kept by is what PTTL says, which was asked before: it is kept only if both say the same.
#[test]
fn a_sum_that_pttl_does_not_bear_out_is_not_kept() {
    static AGREE: AtomicBool = AtomicBool::new(false);
    let redis = Redis::start();
    let direct = redis.addr();
    let between = Scripted::start(redis.addr(), move |request| match &request[0][..] {
        _ if alive(request) => pong(),
        b"EXISTS" if !AGREE.load(Ordering::Relaxed) => {
            is!(Client::connect(direct), [&b"SET"[..], &request[1][..], b"v"], "+OK\r\n");
            Act::Forward
        }
        _ => Act::Forward,
    });
    let fence = fence(&between);
    let mut client = fence.client();
    is!(client, ["EXISTS", "a", "b"], ":1\r\n");
    AGREE.store(true, Ordering::Relaxed);
    is!(client, ["EXISTS", "a", "b"], ":1\r\n");
    let hits = count(&mut client, "tier_hits");
    is!(client, ["EXISTS", "a", "b"], ":1\r\n");
    // A part that is kept, and one that is not.
    is!(client, ["EXISTS", "a", "c"], ":1\r\n");
    is!(client, ["EXISTS", "c", "a", "a"], ":2\r\n");
    is!(client, ["EXISTS", "c"], ":0\r\n");
    assert_eq!(count(&mut client, "tier_hits"), hits + 3);
}

/// A change that nobody has told of yet is seen by a command of several keys, of which one is kept as it was before.
#[test]
fn who_has_seen_a_new_value_is_not_given_the_old_one() {
    let redis = Redis::start();
    let between = Scripted::start(redis.addr(), |request| if alive(request) { pong() } else { Act::Forward });
    let fence = fence(&between);
    let mut client = fence.client();
    let change = |key: &str, value: &str| is!(redis.client(), ["SET", fence.upstream_key(key), value], "+OK\r\n");
    let keep = |client: &mut Client, key: &str, reply: &str| {
        let hits = count(client, "tier_hits");
        while count(client, "tier_hits") == hits {
            assert_eq!(show(&client.call(&[b"GET", key.as_bytes()])), show(reply.as_bytes()));
        }
    };
    // Before the one that is missing, and behind it.
    for keys in [["k", "none"], ["neither", "k"]] {
        change("k", "old");
        keep(&mut client, "k", "$3\r\nold\r\n");
        change("k", "new");
        let both = show(&client.call(&[b"MGET", keys[0].as_bytes(), keys[1].as_bytes()]));
        assert!(both.contains("new"), "{both}");
        is!(client, ["GET", "k"], "$3\r\nnew\r\n");
        // It goes on being kept.
        keep(&mut client, "k", "$3\r\nnew\r\n");
        is!(client, ["DEL", "k"], ":1\r\n");
    }
    // What is the same stays kept.
    change("same", "v");
    keep(&mut client, "same", "$1\r\nv\r\n");
    is!(client, ["MGET", "same", "other"], "*2\r\n$1\r\nv\r\n$-1\r\n");
    let hits = count(&mut client, "tier_hits");
    is!(client, ["GET", "same"], "$1\r\nv\r\n");
    assert_eq!(count(&mut client, "tier_hits"), hits + 1);
    // Too much to be compared.
    change("big", &"x".repeat(20 << 20));
    change("same", "w");
    assert!(client.call(&[b"MGET", b"same", b"big"]).starts_with(b"*2\r\n$1\r\nw\r\n"));
    is!(client, ["GET", "same"], "$1\r\nw\r\n");
    // EXISTS of several: which of them it was nobody can say.
    while count(&mut client, "tier_hits") == hits + 1 {
        is!(client, ["EXISTS", "there"], ":0\r\n");
    }
    change("there", "v");
    is!(client, ["EXISTS", "there", "nowhere"], ":1\r\n");
    is!(client, ["EXISTS", "there"], ":1\r\n");
}
