//! The SHA1s clients know, and an upstream that forgets.
use super::sha;
use crate::support::wire::{command, show};
use crate::support::{Fence, Redis};
use crate::{call, is};

const NOSCRIPT: &str = "-NOSCRIPT No matching script. Please use EVAL.\r\n";

#[test]
fn a_script_is_known_by_the_sha1_of_its_own_source() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let (mut client, mut other) = (fence.client(), fence.client());
    let digest = sha(&mut client, "return KEYS[1]");
    is!(client, ["EVALSHA", digest, "1", "k"], NOSCRIPT);
    is!(client, ["SCRIPT", "EXISTS", digest, "nonsense"], "*2\r\n:0\r\n:0\r\n");
    is!(client, ["SCRIPT", "LOAD", "return KEYS[1]"], format!("$40\r\n{digest}\r\n"));
    is!(client, ["SCRIPT", "EXISTS", digest, digest.to_uppercase()], "*2\r\n:1\r\n:1\r\n");
    is!(client, ["EVALSHA", digest, "1", "k"], "$1\r\nk\r\n");
    is!(other, ["EVALSHA", digest.to_uppercase(), "1", "k"], "$1\r\nk\r\n");
    is!(other, ["EVALSHA_RO", digest, "1", "k"], "$1\r\nk\r\n");
    is!(other, ["SCRIPT", "FLUSH"], "+OK\r\n");
    is!(client, ["EVALSHA", digest, "1", "k"], NOSCRIPT);
    is!(client, ["EVAL", "return KEYS[1]", "1", "k"], "$1\r\nk\r\n");
    is!(other, ["EVALSHA", digest, "1", "k"], "$1\r\nk\r\n");
}

#[test]
fn a_script_that_does_not_compile_is_not_kept() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let digest = sha(&mut client, "return (");
    for name in ["EVAL", "LOAD"] {
        let reply = if name == "EVAL" {
            call!(client, "EVAL", "return (", "0")
        } else {
            call!(client, "SCRIPT", "LOAD", "return (")
        };
        assert!(
            show(&reply).starts_with("-ERR Error compiling script (new function): user_script:1:"),
            "{}",
            show(&reply)
        );
        is!(client, ["SCRIPT", "EXISTS", digest], "*1\r\n:0\r\n");
        is!(client, ["EVALSHA", digest, "0"], NOSCRIPT);
    }
}

#[test]
fn counts_of_keys_are_judged_as_redis_judges_them() {
    let (plain, upstream) = (Redis::start(), Redis::start());
    let fence = Fence::start(&upstream);
    let (mut a, mut b) = (plain.client(), fence.client());
    let known = sha(&mut a, "return #KEYS");
    let unknown = "0000000000000000000000000000000000000000";
    for client in [&mut a, &mut b] {
        call!(client, "SCRIPT", "LOAD", "return #KEYS");
    }
    for count in
        ["0", "1", "2", "3", "-1", "01", "+1", " 1", "1.0", "", "x", "9223372036854775807", "9223372036854775808"]
    {
        for (name, script) in
            [("EVAL", "return #KEYS"), ("EVALSHA", &known), ("EVALSHA", unknown), ("EVALSHA", "short")]
        {
            let words = [name, script, count, "k", "l"];
            let (straight, fenced) = (a.ask(&command(&words)), b.ask(&command(&words)));
            assert_eq!(show(&straight), show(&fenced), "{words:?}");
        }
    }
    for words in [
        &["EVAL"][..],
        &["EVAL", "return 1"],
        &["EVALSHA", &known],
        &["SCRIPT"],
        &["SCRIPT", "LOAD"],
        &["SCRIPT", "NOSUCH"],
        &["SCRIPT", "EXISTS"],
    ] {
        let (straight, fenced) = (a.ask(&command(words)), b.ask(&command(words)));
        assert_eq!(show(&straight), show(&fenced), "{words:?}");
    }
}

#[test]
fn an_upstream_that_was_flushed_gets_its_scripts_again() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let digest = sha(&mut client, "return redis.call('INCR', KEYS[1])");
    is!(client, ["SCRIPT", "LOAD", "return redis.call('INCR', KEYS[1])"], format!("$40\r\n{digest}\r\n"));
    for round in 0..3 {
        for (i, name) in ["EVALSHA", "EVAL", "EVALSHA"].into_iter().enumerate() {
            let script = if name == "EVAL" { "return redis.call('INCR', KEYS[1])" } else { &digest };
            // Exactly once, whether or not the upstream had it.
            is!(client, [name, script, "1", "n"], format!(":{}\r\n", round * 3 + i + 1));
            is!(upstream.client(), ["SCRIPT", "FLUSH"], "+OK\r\n");
        }
    }
    is!(client, ["GET", "n"], "$1\r\n9\r\n");
}

#[test]
fn nobody_on_a_shared_connection_hears_that_the_upstream_was_flushed() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut clients: Vec<_> = (0..48).map(|_| fence.client()).collect();
    let eval = command(&["EVAL", "return redis.call('INCR', KEYS[1])", "1", "n"]);
    let mut sum = 0;
    for _ in 0..8 {
        is!(upstream.client(), ["SCRIPT", "FLUSH"], "+OK\r\n");
        clients.iter_mut().for_each(|client| client.send(&eval));
        for client in &mut clients {
            let reply = show(&client.reply());
            assert!(reply.starts_with(':'), "{reply}");
            sum += 1;
        }
    }
    is!(clients[0], ["GET", "n"], format!("${}\r\n{sum}\r\n", sum.to_string().len()));
}

#[test]
fn an_upstream_that_was_restarted_gets_its_scripts_again() {
    let mut upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let digest = sha(&mut client, "return 'here'");
    is!(client, ["EVAL", "return 'here'", "0"], "$4\r\nhere\r\n");
    upstream.restart();
    // Until keyfence has noticed and raised its wall again, it says that it has no upstream, and nothing else.
    loop {
        let reply = show(&call!(client, "EVALSHA", digest, "0"));
        if reply == "$4\\r\\nhere\\r\\n" {
            break;
        }
        assert!(reply.starts_with("-UPSTREAM "), "{reply}");
    }
}

#[test]
fn pipelined_scripts_keep_their_order() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let source = "redis.call('APPEND', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])";
    let digest = sha(&mut client, source);
    for round in 0..3 {
        is!(client, ["DEL", "log"], if round == 0 { ":0\r\n" } else { ":1\r\n" });
        let mut bytes = Vec::new();
        let mut wanted = Vec::new();
        let mut text = String::new();
        for i in 0..200 {
            let letter = char::from(b'a' + u8::try_from(i % 26).unwrap());
            let (name, script) = match i % 3 {
                0 => ("EVAL", source),
                1 => ("EVALSHA", &*digest),
                _ => ("APPEND", ""),
            };
            text.push(letter);
            if name == "APPEND" {
                bytes.extend(command(&["APPEND", "log", &letter.to_string()]));
                wanted.push(format!(":{}\r\n", text.len()));
            } else {
                bytes.extend(command(&[name, script, "1", "log", &letter.to_string()]));
                wanted.push(format!("${}\r\n{text}\r\n", text.len()));
            }
        }
        let replies = client.pipeline(&bytes, wanted.len());
        for (reply, wanted) in replies.iter().zip(&wanted) {
            assert_eq!(show(reply), show(wanted.as_bytes()), "round {round}");
        }
        // What is sent behind an EVALSHA has been carried out when the upstream says that it lacks the script: the client is told, as by Redis.
        is!(upstream.client(), ["SCRIPT", "FLUSH"], "+OK\r\n");
        let both = [command(&["EVALSHA", &digest, "1", "log", ""]), command(&["PING"])].concat();
        let replies = client.pipeline(&both, 2);
        assert!(replies[0] == NOSCRIPT.as_bytes() || replies[0].starts_with(b"$200"), "{}", show(&replies[0]));
        assert_eq!(replies[1], b"+PONG\r\n");
        let reply = call!(client, "EVALSHA", digest, "1", "log", "");
        assert!(reply.starts_with(b"$200\r\n"), "{}", show(&reply));
    }
}

#[test]
fn nothing_is_answered_to_a_client_that_wants_no_reply() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let quiet = [
        command(&["CLIENT", "REPLY", "OFF"]),
        command(&["EVAL", "redis.call('INCR', KEYS[1])", "1", "n"]),
        command(&["EVAL", "redis.call('INCR', KEYS[1])", "1", "n"]),
        command(&["SCRIPT", "EXISTS", "x"]),
        command(&["EVALSHA", "x", "0"]),
        command(&["CLIENT", "REPLY", "ON"]),
        command(&["GET", "n"]),
    ]
    .concat();
    let replies = client.pipeline(&quiet, 2);
    assert_eq!([show(&replies[0]), show(&replies[1])], ["+OK\\r\\n", "$1\\r\\n2\\r\\n"]);
}

#[test]
fn a_script_may_take_longer_than_other_requests() {
    let upstream = Redis::start();
    let fence = Fence::start_at(upstream.addr(), "[upstream]\nsocket_timeout = \"200ms\"\n");
    let mut client = fence.client();
    // Long enough for any other request to be given up.
    let slow = "local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end \
                local start = now() while now() - start < 900 do end return 'done'";
    is!(client, ["EVAL", slow, "0"], "$4\r\ndone\r\n");
    is!(client, ["MULTI"], "+OK\r\n");
    is!(client, ["EVAL", slow, "0"], "+QUEUED\r\n");
    is!(client, ["EXEC"], "*1\r\n$4\r\ndone\r\n");
}

#[test]
fn those_behind_a_script_that_does_not_end_are_told_in_time() {
    let upstream = Redis::start_with(crate::support::free_addr(), &["--busy-reply-threshold", "50"]);
    let fence = Fence::start_at(upstream.addr(), "[upstream]\nsocket_timeout = \"300ms\"\n");
    let (mut client, mut other) = (fence.client(), fence.client());
    is!(other, ["SET", "k", "v"], "+OK\r\n");
    client.send(&command(&["EVAL", "while true do end", "0"]));
    while !call!(upstream.client(), "PING").starts_with(b"-BUSY") {
        std::thread::yield_now();
    }
    let reply = show(&call!(other, "GET", "k"));
    assert!(reply.starts_with("-UPSTREAM timed out") || reply.starts_with("-BUSY "), "{reply}");
    is!(other, ["SCRIPT", "KILL"], "+OK\r\n");
    let killed = show(&client.reply());
    assert!(killed.contains("Script killed by user"), "{killed}");
    is!(other, ["GET", "k"], "$1\r\nv\r\n");
    is!(client, ["GET", "k"], "$1\r\nv\r\n");
}

#[test]
fn a_paused_tenants_scripts_wait_unless_they_only_read() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let (mut client, mut other, mut reader) = (fence.client(), fence.client(), fence.client());
    is!(other, ["CLIENT", "PAUSE", "600000", "WRITE"], "+OK\r\n");
    client.send(&command(&["EVAL", "return redis.call('INCR', 'n')", "0"]));
    is!(reader, ["EVAL_RO", "return redis.call('EXISTS', 'n')", "0"], ":0\r\n");
    is!(other, ["CLIENT", "UNPAUSE"], "+OK\r\n");
    assert_eq!(show(&client.reply()), ":1\\r\\n");
}
