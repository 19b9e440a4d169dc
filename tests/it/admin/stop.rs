//! SIGTERM: no new connections, what is in flight is answered, the idle go, then the deadline.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{TENANTS, tenant};
use crate::is;
use crate::support::scripted::{Act, Scripted};
use crate::support::{Fence, HANG, Redis, http};

/// Whether the connection has ended.
fn ended(client: &mut crate::support::Client) -> bool {
    let mut buf = [0; 256];
    client.stream().set_read_timeout(Some(HANG)).unwrap();
    matches!(client.stream().read(&mut buf), Ok(0))
}

fn never_answers_get(redis: &Redis) -> Scripted {
    Scripted::start(redis.addr(), |request| {
        if request.first().is_some_and(|word| word.eq_ignore_ascii_case(b"GET")) { Act::Silence } else { Act::Forward }
    })
}

#[test]
fn a_drain_answers_what_is_in_flight_and_takes_nothing_new() {
    let redis = Redis::start();
    let silent = never_answers_get(&redis);
    let config = format!("shutdown_grace = '2s'\n{TENANTS}");
    let mut fence = Fence::with_admin(silent.addr(), &config, &["--workers", "1"]);
    http::until(fence.admin(), "/readyz", |r| r.status == 200);
    let mut idle = tenant(&fence, "acme");
    let mut subscriber = tenant(&fence, "beta");
    is!(subscriber, ["SUBSCRIBE", "news"], "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
    let mut blocked = tenant(&fence, "acme");
    blocked.send(b"*3\r\n$5\r\nBLPOP\r\n$1\r\nq\r\n$1\r\n0\r\n");
    let mut owed = tenant(&fence, "acme");
    owed.send(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    while !silent.seen().iter().any(|request| request[0].eq_ignore_ascii_case(b"GET")) {}
    fence.process().unwrap().signal("TERM");
    let draining = http::until(fence.admin(), "/readyz", |r| r.status == 503);
    assert!(draining.body.contains("draining"), "{}", draining.body);
    assert_eq!(http::get(fence.admin(), "/healthz").status, 200, "alive as long as it drains");
    assert!(http::get(fence.admin(), "/api/status").body.contains("\"phase\":\"draining\""));
    // What a blocking command has popped is never lost; one that has not is told so.
    assert_eq!(blocked.reply(), b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n");
    for client in [&mut idle, &mut subscriber, &mut blocked] {
        assert!(ended(client));
    }
    let refused = TcpStream::connect(fence.addr()).is_err();
    assert!(refused, "nobody listens any more");
    // The one that is owed a reply which never comes goes at the deadline.
    assert!(ended(&mut owed));
    let process = fence.process().unwrap();
    process.wait_for_line(|line| line.contains("clients still connected at the end of the grace period"));
    assert!(fence.wait().success());
}

#[test]
fn a_reply_that_comes_in_time_is_delivered() {
    let redis = Redis::start();
    let mut fence = Fence::with_admin(redis.addr(), TENANTS, &["--workers", "1"]);
    let mut client = tenant(&fence, "acme");
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    let many = 5_000;
    client.send(&b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n".repeat(many));
    fence.process().unwrap().signal("TERM");
    let mut got = Vec::new();
    client.stream().set_read_timeout(Some(HANG)).unwrap();
    client.stream().read_to_end(&mut got).unwrap();
    // Whole replies only, of as many requests as had been read.
    assert!(got.len().is_multiple_of(7), "{}", got.len());
    assert!(got.chunks(7).all(|reply| reply == b"$1\r\nv\r\n"));
    assert!(fence.wait().success());
}

#[test]
fn a_second_signal_ends_the_grace() {
    let redis = Redis::start();
    let silent = never_answers_get(&redis);
    let config = format!("shutdown_grace = '1h'\n[upstream]\nsocket_timeout = '1h'\n{TENANTS}");
    let mut fence = Fence::with_admin(silent.addr(), &config, &["--workers", "2"]);
    let mut owed = tenant(&fence, "acme");
    owed.send(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    while !silent.seen().iter().any(|request| request[0].eq_ignore_ascii_case(b"GET")) {}
    fence.process().unwrap().signal("TERM");
    http::until(fence.admin(), "/readyz", |r| r.status == 503);
    fence.process().unwrap().signal("INT");
    fence.process().unwrap().wait_for_line(|line| line.contains("told to stop once more"));
    assert!(ended(&mut owed));
    assert!(fence.wait().success());
}

#[test]
fn what_was_published_reaches_those_it_was_counted_for() {
    let redis = Redis::start();
    for _ in 0..5 {
        let mut fence = Fence::with_admin(redis.addr(), TENANTS, &["--workers", "2"]);
        let subscribers: Vec<_> = (0..6).map(|_| tenant(&fence, "acme")).collect();
        let reading: Vec<_> = subscribers
            .into_iter()
            .map(|mut subscriber| {
                is!(subscriber, ["SUBSCRIBE", "news"], "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
                thread::spawn(move || subscriber.read_to_end())
            })
            .collect();
        let mut publisher = tenant(&fence, "acme");
        let batch = b"*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n$5\r\nhello\r\n".repeat(20);
        let batches = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&batches);
        let publishing = thread::spawn(move || {
            let mut told = Vec::new();
            let mut chunk = [0; 4096];
            let stream = publisher.stream();
            stream.set_read_timeout(Some(HANG)).unwrap();
            // Until the connection ends.
            'all: while stream.write_all(&batch).is_ok() {
                let until = told.len() + b":6\r\n".len() * 20;
                while told.len() < until {
                    match stream.read(&mut chunk) {
                        Ok(n) if n > 0 => told.extend_from_slice(&chunk[..n]),
                        _ => break 'all,
                    }
                }
                seen.fetch_add(1, Ordering::Relaxed);
            }
            told
        });
        while batches.load(Ordering::Relaxed) < 30 {
            thread::yield_now();
        }
        assert!(fence.stop().success());
        let told = publishing.join().unwrap();
        assert!(told.starts_with(b":6\r\n:6\r\n"));
        let counted: usize = told.split(|byte| *byte == b'\n').filter(|reply| *reply == b":6\r").count() * 6;
        let message = b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n";
        let received: usize = reading.into_iter().map(|reading| reading.join().unwrap().len() / message.len()).sum();
        assert!(received >= counted, "{received} of {counted}");
    }
}
