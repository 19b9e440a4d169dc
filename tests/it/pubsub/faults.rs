//! An upstream that goes away under subscribers, one that does not answer, and subscribers that do not read.
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::free_addr;
use crate::support::scripted::{Act, Scripted};

use super::{Client, Fence, Redis, call, command, gets, is, show, subscribe};

/// Publishes until somebody hears it: what was lost with the upstream is lost.
fn until_heard(publisher: &mut Client, listener: &mut Client, channel: &str) {
    loop {
        let reply = call!(publisher, "PUBLISH", channel, "again");
        let said = show(&reply);
        assert!(said.starts_with(':') || said.starts_with("-UPSTREAM"), "{said}");
        listener.send(&command(&["PING", "mark"]));
        let reply = show(&listener.reply());
        if reply.contains("again") {
            return;
        }
        assert!(reply.contains("mark"), "{reply}");
        std::thread::yield_now();
    }
}

#[test]
fn subscriptions_outlive_the_upstream() {
    let mut redis = Redis::start();
    let fence = Fence::start(&redis);
    let mut listener = fence.client();
    subscribe(&mut listener, false, "c");
    listener.send(&command(&["PSUBSCRIBE", "p*"]));
    gets(&mut listener, false, &["psubscribe", "p*", ":2"]);
    redis.kill();
    // Nothing changes for those who are subscribed; who comes now is told.
    is!(listener, ["PING"], "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    let mut late = fence.client();
    let reply = call!(late, "SUBSCRIBE", "c");
    assert!(reply.starts_with(b"-UPSTREAM"), "{}", show(&reply));
    is!(late, ["PING"], "+PONG\r\n");
    listener.send(&command(&["UNSUBSCRIBE", "none"]));
    gets(&mut listener, false, &["unsubscribe", "none", ":2"]);
    redis.restart();
    let mut publisher = fence.client();
    until_heard(&mut publisher, &mut listener, "c");
    until_heard(&mut publisher, &mut fence_listener(&fence), "p1");
}

fn fence_listener(fence: &Fence) -> Client {
    let mut client = fence.client();
    loop {
        client.send(&command(&["PSUBSCRIBE", "p*"]));
        let reply = show(&client.reply());
        if reply.contains("psubscribe") {
            return client;
        }
        assert!(reply.starts_with("-UPSTREAM"), "{reply}");
    }
}

#[test]
fn the_acknowledgement_has_a_deadline() {
    let redis = Redis::start();
    let fence = Fence::start_at(redis.addr(), "[upstream]\nsocket_timeout = \"200ms\"\nconnect_timeout = \"200ms\"\n");
    if fence.process().is_none() {
        return;
    }
    let mut early = fence.client();
    subscribe(&mut early, false, "c");
    redis.signal("STOP");
    let mut client = fence.client();
    let reply = call!(client, "SUBSCRIBE", "d");
    assert_eq!(show(&reply), "-UPSTREAM timed out after 200ms\\r\\n");
    is!(client, ["PING"], "+PONG\r\n");
    redis.signal("CONT");
    // The first one's subscription is made again.
    until_heard(&mut fence.client(), &mut early, "c");
    // And a subscription that was refused is none.
    is!(client, ["PING"], "+PONG\r\n");
}

#[test]
fn l4_a_subscriber_that_does_not_read_is_dropped_alone() {
    let redis = Redis::start();
    let fence = Fence::start_at(redis.addr(), "client_output_limit = \"1MiB\"\n");
    if fence.process().is_none() {
        return;
    }
    let mut lazy = fence.client();
    subscribe(&mut lazy, false, "c");
    let mut good = fence.client();
    subscribe(&mut good, false, "c");
    let mut publisher = fence.client();
    let payload = "x".repeat(100_000);
    let before = fence.process().unwrap().memory("VmRSS");
    let mut sent = 0;
    loop {
        let count = show(&call!(publisher, "PUBLISH", "c", &payload));
        if count != ":2\\r\\n" {
            assert_eq!(count, ":1\\r\\n");
            break;
        }
        gets(&mut good, false, &["message", "c", &payload]);
        sent += 1;
        assert!(sent < 1000, "the lazy one was never dropped");
    }
    gets(&mut good, false, &["message", "c", &payload]);
    let grown = fence.process().unwrap().memory("VmRSS").saturating_sub(before);
    assert!(grown < 32 * 1024, "grew by {grown} KiB");
    is!(publisher, ["PUBSUB", "NUMSUB", "c"], "*2\r\n$1\r\nc\r\n:1\r\n");
    // One message that is more than a client may have waiting ends its receivers, and nobody else.
    let mut other = fence.client();
    subscribe(&mut other, false, "other");
    call!(publisher, "PUBLISH", "c", "x".repeat(3_000_000));
    assert_eq!(good.try_reply().map_err(|_| ()), Err(()));
    is!(publisher, ["PUBLISH", "other", "small"], ":1\r\n");
    gets(&mut other, false, &["message", "other", "small"]);
}

#[test]
fn an_idle_subscriber_stays() {
    let redis = Redis::start();
    let fence = Fence::start_at(redis.addr(), "client_idle_timeout = \"1s\"\n");
    let mut listener = fence.client();
    subscribe(&mut listener, false, "c");
    let mut idle = fence.client();
    is!(idle, ["PING"], "+PONG\r\n");
    if fence.process().is_some() {
        assert_eq!(idle.try_reply(), Err("closed"));
    }
    is!(fence.client(), ["PUBLISH", "c", "x"], ":1\r\n");
    gets(&mut listener, false, &["message", "c", "x"]);
}

#[test]
fn c13_a_publisher_does_not_outrun_the_fan_out() {
    // Half of what it allows by default: keyfence is one subscriber of many messages.
    let redis = Redis::start_with(free_addr(), &["--client-output-buffer-limit", "pubsub 16mb 0 0"]);
    // More than one worker: with one the publisher shares its time with the fan-out anyway.
    let fence = Fence::with_tenants(
        redis.addr(),
        "workers = 4\n[tenants.a]\npasswords = [\"pa\"]\n[auth]\ndefault_tenant = \"a\"\n",
    );
    const MESSAGES: usize = 9000;
    let payload = "x".repeat(8000);
    let bytes: Vec<u8> = (0..MESSAGES).flat_map(|_| command(&["PUBLISH", "c", &payload])).collect();
    let message = super::frame(false, &["message", "c", &payload]).len();
    let mut all: Vec<Client> = (0..60).map(|_| fence.client()).collect();
    all.iter_mut().for_each(|client| subscribe(client, false, "c"));
    let mut publisher = fence.client();
    std::thread::scope(|scope| {
        let counting: Vec<_> = all
            .iter_mut()
            .map(|client| {
                scope.spawn(|| {
                    let (mut got, mut buf) = (0, vec![0; 1 << 20]);
                    while got < MESSAGES * message {
                        got += std::io::Read::read(client.stream(), &mut buf).unwrap();
                    }
                    got
                })
            })
            .collect();
        let replies = publisher.pipeline(&bytes, MESSAGES);
        assert!(replies.iter().all(|reply| reply == b":60\r\n"));
        assert!(counting.into_iter().all(|count| count.join().unwrap() == MESSAGES * message));
    });
}

#[test]
fn a_large_message_to_many_is_not_held_many_times() {
    let redis = Redis::start();
    let fence = Fence::start_at(redis.addr(), "client_output_limit = \"2MiB\"\n");
    let Some(process) = fence.process() else { return };
    let mut all: Vec<Client> = (0..100).map(|_| fence.client()).collect();
    all.iter_mut().for_each(|client| subscribe(client, false, "c"));
    process.reset_peak();
    let before = process.memory("VmHWM");
    // All the subscribers of a tenant may have 16 MiB unsent together here, and these take what they get.
    let payload = "x".repeat(1_200_000);
    is!(fence.client(), ["PUBLISH", "c", &payload], ":100\r\n");
    all.iter_mut().for_each(|client| gets(client, false, &["message", "c", &payload]));
    let grown = process.memory("VmHWM").saturating_sub(before);
    assert!(grown < 60 * 1024, "grew by {grown} KiB");
}

#[test]
fn l4_subscribers_that_do_not_read_hold_little_together() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let Some(process) = fence.process() else { return };
    let mut all: Vec<Client> = (0..15).map(|_| fence.client()).collect();
    all.iter_mut().for_each(|client| subscribe(client, false, "c"));
    let before = process.memory("VmRSS");
    let mut publisher = fence.client();
    let payload = "x".repeat(12_000_000);
    for _ in 0..5 {
        assert_eq!(call!(publisher, "PUBLISH", "c", &payload)[0], b':');
    }
    // All that was sent has been handed out, or not, when another is subscribed.
    subscribe(&mut publisher, false, "other");
    // 128 MiB, and what the allocator keeps for a while of the buffers that a message passed through; five of them for all would be 900 MB,
    // for as long as they do not read.
    let deadline = tokio::time::Instant::now() + crate::support::HANG;
    loop {
        let grown = process.memory("VmRSS").saturating_sub(before);
        if grown < 384 * 1024 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "grew by {grown} KiB");
        assert_eq!(call!(publisher, "PUBLISH", "nobody", "hears")[0], b':');
    }
}

#[test]
fn a_subscription_refused_on_reconnecting_is_tried_again() {
    let redis = Redis::start();
    let asked = AtomicUsize::new(0);
    let scripted = Scripted::start(redis.addr(), move |request| {
        let first = request[0] == b"SUBSCRIBE" && request[1].ends_with(b"c") && request.len() == 2;
        match first.then(|| asked.fetch_add(1, Ordering::Relaxed)) {
            Some(1) => Act::Reply(b"-ERR not today\r\n".to_vec()),
            _ => Act::Forward,
        }
    });
    let fence = Fence::start_at(scripted.addr(), "");
    if fence.process().is_none() {
        return;
    }
    let times =
        || scripted.seen().iter().filter(|request| request[0] == b"SUBSCRIBE" && request[1].ends_with(b"c")).count();
    let mut early = fence.client();
    subscribe(&mut early, false, "c");
    scripted.drop_connections();
    // Whoever comes next is not told of a refusal that is not about it.
    let mut late = fence.client();
    loop {
        let said = show(&call!(late, "PSUBSCRIBE", "p*"));
        assert!(!said.contains("not today"), "{said}");
        if said.contains("psubscribe") {
            break;
        }
        std::thread::yield_now();
    }
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while times() < 3 {
        assert!(tokio::time::Instant::now() < deadline, "asked {} times", times());
        is!(late, ["PING"], "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    }
}
