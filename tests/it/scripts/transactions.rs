//! Scripts between MULTI and EXEC, under WATCH, and beside what needs the tenant's other user.
use super::sha;
use crate::support::wire::{command, show};
use crate::support::{Fence, Redis};
use crate::{call, is};

#[test]
fn a_transaction_that_arrives_piece_by_piece_may_come_to_a_script() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let digest = sha(&mut client, "return redis.call('GET', KEYS[1])");
    for round in 0..2 {
        is!(client, ["MULTI"], "+OK\r\n");
        is!(client, ["SET", "k", "v"], "+QUEUED\r\n");
        is!(client, ["TIME", "too", "many"], "-ERR wrong number of arguments for 'time' command\r\n");
        is!(client, ["DISCARD"], "+OK\r\n");
        is!(client, ["MULTI"], "+OK\r\n");
        is!(client, ["INCR", "n"], "+QUEUED\r\n");
        is!(client, ["ECHO", "here"], "+QUEUED\r\n");
        is!(client, ["EVAL", "return redis.call('GET', KEYS[1])", "1", "n"], "+QUEUED\r\n");
        is!(client, ["INCR", "n"], "+QUEUED\r\n");
        is!(client, ["EVALSHA", digest, "1", "n"], "+QUEUED\r\n");
        is!(client, ["EVALSHA", "0000000000000000000000000000000000000000", "0"], "+QUEUED\r\n");
        let (one, two) = (2 * round + 1, 2 * round + 2);
        is!(
            client,
            ["EXEC"],
            format!(
                "*6\r\n:{one}\r\n$4\r\nhere\r\n$1\r\n{one}\r\n:{two}\r\n$1\r\n{two}\r\n-NOSCRIPT No matching script. Please use EVAL.\r\n"
            )
        );
        is!(client, ["GET", "n"], format!("$1\r\n{two}\r\n"));
    }
}

#[test]
fn a_transaction_that_arrives_whole_may_hold_scripts() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let words: [&[&str]; 6] = [
        &["MULTI"],
        &["SET", "k", "v"],
        &["EVAL", "return {KEYS[1], redis.call('GET', KEYS[1])}", "1", "k"],
        &["EVAL", "return redis.call('LPUSH', KEYS[1], 1)", "1", "k"],
        &["SCRIPT", "EXISTS", "x"],
        &["EXEC"],
    ];
    let bytes: Vec<u8> = words.iter().flat_map(|words| command(words)).collect();
    let replies = client.pipeline(&bytes, 6);
    let digest = sha(&mut client, "return redis.call('LPUSH', KEYS[1], 1)");
    assert_eq!(
        show(&replies[5]),
        show(
            format!(
                "*4\r\n+OK\r\n*2\r\n$1\r\nk\r\n$1\r\nv\r\n-WRONGTYPE Operation against a key holding the wrong kind of value script: {digest}, on @user_script:1.\r\n*1\r\n:0\r\n"
            )
            .as_bytes()
        )
    );
}

#[test]
fn what_only_the_other_user_may_do_is_not_in_one_transaction_with_a_script() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    call!(client, "RPUSH", "l", "2", "1");
    for first in [true, false] {
        is!(client, ["MULTI"], "+OK\r\n");
        let eval = |client: &mut crate::support::Client| show(&call!(client, "EVAL", "return 1", "0"));
        let sort = |client: &mut crate::support::Client| show(&call!(client, "SORT", "l"));
        let said = if first { [eval(&mut client), sort(&mut client)] } else { [sort(&mut client), eval(&mut client)] };
        assert_eq!(said[0], "+QUEUED\\r\\n");
        let end = show(&call!(client, "EXEC"));
        assert!(end.starts_with("-EXECABORT "), "{said:?} {end}");
        // Each without the other is well.
        is!(client, ["SORT", "l"], "*2\r\n$1\r\n1\r\n$1\r\n2\r\n");
        is!(client, ["EVAL", "return 1", "0"], ":1\r\n");
    }
}

#[test]
fn a_watch_is_kept_while_scripts_run() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let (mut client, mut other) = (fence.client(), fence.client());
    // Nothing has changed.
    is!(client, ["WATCH", "k"], "+OK\r\n");
    is!(client, ["EVAL", "return redis.call('GET', KEYS[1])", "1", "k"], "$-1\r\n");
    is!(client, ["GET", "k"], "$-1\r\n");
    is!(client, ["MULTI"], "+OK\r\n");
    is!(client, ["SET", "k", "mine"], "+QUEUED\r\n");
    is!(client, ["EXEC"], "*1\r\n+OK\r\n");
    // A script has changed it, its own or another's.
    for own in [true, false] {
        is!(client, ["WATCH", "k"], "+OK\r\n");
        let who = if own { &mut client } else { &mut other };
        is!(who, ["EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", "k"], "+OK\r\n");
        is!(client, ["MULTI"], "+OK\r\n");
        is!(client, ["SET", "k", "mine"], "+QUEUED\r\n");
        is!(client, ["EXEC"], "*-1\r\n");
        is!(client, ["GET", "k"], "$1\r\nx\r\n");
    }
    // Inside one, scripts are refused, and the transaction with them.
    is!(client, ["WATCH", "k"], "+OK\r\n");
    is!(client, ["MULTI"], "+OK\r\n");
    let reply = show(&call!(client, "EVAL", "return 1", "0"));
    assert!(reply.starts_with("-NOPERM a script in a transaction needs one without WATCH"), "{reply}");
    is!(client, ["EXEC"], "-EXECABORT Transaction discarded because of previous errors.\r\n");
}

#[test]
fn what_keeps_a_script_out_of_a_transaction_is_said() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let large = "v".repeat(300 * 1024);
    for (before, why) in [
        (&["SELECT", "1"][..], "without SELECT before it"),
        (&["SET", "k", &large], "with 256 KiB at the most before it"),
    ] {
        is!(client, ["MULTI"], "+OK\r\n");
        assert_eq!(client.ask(&command(before)), b"+QUEUED\r\n");
        let reply = show(&call!(client, "EVAL", "return 1", "0"));
        assert!(reply.starts_with("-NOPERM a script in a transaction needs one ") && reply.contains(why), "{reply}");
        is!(client, ["EXEC"], "-EXECABORT Transaction discarded because of previous errors.\r\n");
    }
}

#[test]
fn a_script_after_a_blocking_command_and_before_one() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let bytes = [
        command(&["EVAL", "return redis.call('RPUSH', KEYS[1], 'a')", "1", "l"]),
        command(&["BLPOP", "l", "1"]),
        command(&["EVAL", "return redis.call('LLEN', KEYS[1])", "1", "l"]),
        command(&["SORT", "l"]),
        command(&["EVAL", "return 5", "0"]),
        command(&["SELECT", "1"]),
        command(&["EVAL", "return redis.call('EXISTS', 'l')", "0"]),
    ]
    .concat();
    let replies = client.pipeline(&bytes, 7);
    let shown: Vec<String> = replies.iter().map(|reply| show(reply)).collect();
    assert_eq!(
        shown,
        [
            ":1\\r\\n",
            "*2\\r\\n$1\\r\\nl\\r\\n$1\\r\\na\\r\\n",
            ":0\\r\\n",
            "*0\\r\\n",
            ":5\\r\\n",
            "+OK\\r\\n",
            ":0\\r\\n"
        ]
    );
}
