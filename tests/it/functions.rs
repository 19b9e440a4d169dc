//! Functions: the same straight to a server and through keyfence, and what a hostile one reaches.

mod adversarial;
mod libraries;

use crate::scripts::{ask, corpus, seed};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};
use crate::{call, is};

/// How many libraries are given to one keyfence, which takes only so many at once.
pub(crate) const LOADS: usize = 90;

/// Half of the script corpus as functions: what a script may hold, a function's body may.
fn same_as_redis(resp3: bool, half: usize) {
    let (plain, upstream) = (Redis::start(), Redis::start());
    let fence = Fence::start(&upstream);
    let connect = |mut client: Client| {
        if resp3 {
            call!(client, "HELLO", "3");
        }
        client
    };
    let [mut a, mut b] = [plain.client(), fence.client()].map(connect);
    let mut wrong = Vec::new();
    let bodies: Vec<_> = corpus().into_iter().filter(|script| !script.source.starts_with("#!")).collect();
    let bodies: Vec<_> = bodies.into_iter().skip(half).step_by(2).collect();
    assert!((30..LOADS).contains(&bodies.len()), "{}", bodies.len());
    for script in &bodies {
        let library =
            format!("#!lua name=lib\nredis.register_function('f', function(KEYS, ARGV)\n{}\nend)", script.source);
        let mut compare = |how: &str, words: &[Vec<u8>], (a, b): (&mut Client, &mut Client)| {
            let (straight, fenced) = (ask(a, words), ask(b, words));
            if straight != fenced {
                wrong.push(format!(
                    "{} ({how})\n    straight {}\n    keyfence {}",
                    script.name,
                    show(&straight),
                    show(&fenced)
                ));
            }
        };
        let fresh = |client: &mut Client| {
            is!(client, ["FLUSHALL"], "+OK\r\n");
            seed(client);
        };
        let load = ["FUNCTION", "LOAD", "REPLACE", &library].map(|word| word.as_bytes().to_vec());
        compare("LOAD", &load, (&mut a, &mut b));
        for name in ["FCALL", "FCALL_RO"] {
            [&mut a, &mut b].into_iter().for_each(fresh);
            compare(name, &script.command(name, "f"), (&mut a, &mut b));
        }
        for client in [&mut a, &mut b] {
            fresh(client);
            is!(client, ["MULTI"], "+OK\r\n");
        }
        compare("queued", &script.command("FCALL", "f"), (&mut a, &mut b));
        compare("queued", &script.command("FCALL", "nosuch"), (&mut a, &mut b));
        compare("EXEC", &[b"EXEC".to_vec()], (&mut a, &mut b));
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn functions_answer_as_redis_answers_in_resp2() {
    same_as_redis(false, 0);
}

#[test]
fn functions_answer_as_redis_answers_in_resp2_too() {
    same_as_redis(false, 1);
}

#[test]
fn functions_answer_as_redis_answers_in_resp3() {
    same_as_redis(true, 0);
}

#[test]
fn functions_answer_as_redis_answers_in_resp3_too() {
    same_as_redis(true, 1);
}

#[test]
fn a_function_in_a_transaction_that_arrives_whole_or_in_pieces() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let library =
        "#!lua name=l\nredis.register_function('add', function(k, a) return redis.call('INCRBY', k[1], a[1]) end)";
    is!(client, ["FUNCTION", "LOAD", library], "$1\r\nl\r\n");
    let words: [&[&str]; 6] = [
        &["MULTI"],
        &["SET", "n", "1"],
        &["FCALL", "add", "1", "n", "5"],
        &["FCALL", "nosuch", "0"],
        &["FCALL", "add", "x"],
        &["EXEC"],
    ];
    let bytes: Vec<u8> = words.iter().flat_map(|words| command(words)).collect();
    // The first time the list is made for the connection, the second time it is there.
    for _ in 0..2 {
        let replies = client.pipeline(&bytes, 6);
        assert_eq!(
            show(&replies[5]),
            show(b"*4\r\n+OK\r\n:6\r\n-ERR Function not found\r\n-ERR Bad number of keys provided\r\n")
        );
        for (sent, reply) in words[..5].iter().zip(["+OK", "+QUEUED", "+QUEUED", "+QUEUED", "+QUEUED"]) {
            assert_eq!(show(&client.ask(&command(sent))), format!("{reply}\\r\\n"));
        }
        is!(client, ["EXEC"], "*4\r\n+OK\r\n:6\r\n-ERR Function not found\r\n-ERR Bad number of keys provided\r\n");
    }
    // As a script, after WATCH; and what changes libraries, within MULTI.
    is!(client, ["WATCH", "n"], "+OK\r\n");
    is!(client, ["FCALL", "add", "1", "n", "1"], ":7\r\n");
    is!(client, ["MULTI"], "+OK\r\n");
    is!(client, ["FCALL", "add", "1", "n", "1"], "-NOPERM a script in a transaction needs one without WATCH\r\n");
    is!(client, ["EXEC"], "-EXECABORT Transaction discarded because of previous errors.\r\n");
    is!(client, ["MULTI"], "+OK\r\n");
    is!(client, ["FUNCTION", "FLUSH"], "-ERR function|flush is not allowed inside a transaction\r\n");
    is!(client, ["DISCARD"], "+OK\r\n");
}

#[test]
fn what_is_pipelined_behind_a_call_comes_in_order() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let library = "#!lua name=l\nredis.register_function('f', function(k, a) return a[1] end)";
    let sent = [
        command(&["SET", "k", "v"]),
        command(&["FUNCTION", "LOAD", library]),
        command(&["FCALL", "f", "0", "one"]),
        command(&["FCALL", "nosuch", "0"]),
        command(&["GET", "k"]),
        command(&["CLIENT", "REPLY", "SKIP"]),
        command(&["FCALL", "f", "0", "two"]),
        command(&["FCALL_RO", "f", "0", "three"]),
        command(&["FUNCTION", "DELETE", "l"]),
        command(&["FCALL", "f", "0", "four"]),
    ]
    .concat();
    let replies: Vec<String> = client.pipeline(&sent, 8).iter().map(|reply| show(reply)).collect();
    assert_eq!(
        replies,
        [
            "+OK\\r\\n",
            "$1\\r\\nl\\r\\n",
            "$3\\r\\none\\r\\n",
            "-ERR Function not found\\r\\n",
            "$1\\r\\nv\\r\\n",
            "-ERR Can not execute a script with write flag using *_ro command.\\r\\n",
            "+OK\\r\\n",
            "-ERR Function not found\\r\\n",
        ]
    );
}

#[test]
fn functions_come_and_go_with_the_upstream_and_stay_without_keyfence() {
    let mut upstream = Redis::start();
    let library = "#!lua name=l\nredis.register_function('f', function() return 'first' end)";
    let mut fence = Fence::start(&upstream);
    let mut client = fence.client();
    is!(client, ["FUNCTION", "LOAD", library], "$1\r\nl\r\n");
    is!(client, ["FCALL", "f", "0"], "$5\r\nfirst\r\n");
    // Another keyfence, at the same time and after the first has gone, finds what the first one left.
    let other = Fence::start(&upstream);
    let mut second = other.client();
    is!(second, ["FCALL", "f", "0"], "$5\r\nfirst\r\n");
    is!(second, ["FUNCTION", "LOAD", "REPLACE", library.replace("first", "other")], "$1\r\nl\r\n");
    is!(client, ["FCALL", "f", "0"], "$5\r\nother\r\n");
    is!(second, ["FUNCTION", "LOAD", library.replace("=l", "=m").replace("'f'", "'g'")], "$1\r\nm\r\n");
    is!(client, ["FCALL", "g", "0"], "$5\r\nfirst\r\n");
    is!(second, ["FUNCTION", "DELETE", "m"], "+OK\r\n");
    for _ in 0..2 {
        is!(client, ["FCALL", "g", "0"], "-ERR Function not found\r\n");
    }
    assert!(fence.stop().success());
    is!(second, ["FCALL", "f", "0"], "$5\r\nother\r\n");
    let third = Fence::start(&upstream);
    is!(third.client(), ["FCALL", "f", "0"], "$5\r\nother\r\n");
    // One that starts again empty has none, and none is called that was.
    upstream.restart();
    let mut client = third.client();
    // Until its users have been made again.
    while show(&call!(client, "GET", "k")).starts_with("-UPSTREAM") {}
    is!(client, ["FCALL", "f", "0"], "-ERR Function not found\r\n");
    is!(client, ["FUNCTION", "LOAD", library], "$1\r\nl\r\n");
    is!(client, ["FCALL", "f", "0"], "$5\r\nfirst\r\n");
}

#[test]
fn a_pause_of_writes_holds_calls_but_those_that_only_read() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let [mut client, mut paused, mut other] = [fence.client(), fence.client(), fence.client()];
    let library = "#!lua name=l\nredis.register_function{function_name='f', callback=function() return 1 end, flags={'no-writes'}}";
    is!(client, ["FUNCTION", "LOAD", library], "$1\r\nl\r\n");
    is!(other, ["CLIENT", "PAUSE", "100000", "WRITE"], "+OK\r\n");
    is!(client, ["FCALL_RO", "f", "0"], ":1\r\n");
    paused.send(&command(&["FCALL", "f", "0"]));
    is!(client, ["FCALL_RO", "f", "0"], ":1\r\n");
    client.send(&command(&["FUNCTION", "DELETE", "l"]));
    assert_eq!(paused.stream().set_read_timeout(Some(std::time::Duration::from_millis(100))).ok(), Some(()));
    assert!(paused.stream().peek(&mut [0]).is_err(), "a paused call was answered");
    paused.stream().set_read_timeout(Some(crate::support::HANG)).expect("a deadline");
    is!(other, ["FCALL_RO", "f", "0"], ":1\r\n");
    is!(other, ["CLIENT", "UNPAUSE"], "+OK\r\n");
    assert_eq!(show(&client.reply()), "+OK\\r\\n");
    let reply = show(&paused.reply());
    assert!([":1\\r\\n", "-ERR Function not found\\r\\n"].contains(&&*reply), "{reply}");
}
