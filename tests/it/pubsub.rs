//! Publish/subscribe inside the namespace.
mod faults;
mod notifications;
mod tenants;
mod wire;

use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};
use crate::{call, is};

/// A frame of strings and numbers (`:1`), as a push of RESP3 or an array of RESP2.
fn frame(resp3: bool, parts: &[&str]) -> String {
    let mut out = format!("{}{}\r\n", if resp3 { '>' } else { '*' }, parts.len());
    for part in parts {
        match part.strip_prefix(':') {
            Some(_) => out.push_str(&format!("{part}\r\n")),
            None => out.push_str(&format!("${}\r\n{part}\r\n", part.len())),
        }
    }
    out
}

/// The next thing that comes must be this frame.
#[track_caller]
fn gets(client: &mut Client, resp3: bool, parts: &[&str]) {
    assert_eq!(show(&client.reply()), show(frame(resp3, parts).as_bytes()));
}

/// Subscribes, and takes the one acknowledgement.
fn subscribe(client: &mut Client, resp3: bool, channel: &str) {
    client.send(&command(&["SUBSCRIBE", channel]));
    gets(client, resp3, &["subscribe", channel, ":1"]);
}

#[test]
fn a_message_goes_to_every_subscriber_of_its_channel() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let mut two = fence.client();
    subscribe(&mut two, false, "news");
    let mut three = fence.client();
    assert_eq!(call!(three, "HELLO", "3")[0], b'%');
    subscribe(&mut three, true, "news");
    let mut publisher = fence.client();
    is!(publisher, ["PUBLISH", "news", "hello"], ":2\r\n");
    is!(publisher, ["PUBLISH", "other", "hello"], ":0\r\n");
    // However large: in one piece, in two, in a transaction.
    let large = "x".repeat(1_000_000);
    is!(publisher, ["PUBLISH", "other", &large], ":0\r\n");
    let bytes = command(&["PUBLISH", "alone", &large]);
    publisher.send(&bytes[..100_000]);
    publisher.send(&bytes[100_000..]);
    assert_eq!(show(&publisher.reply()), ":0\\r\\n");
    is!(publisher, ["MULTI"], "+OK\r\n");
    is!(publisher, ["PUBLISH", "alone", &large], "+QUEUED\r\n");
    is!(publisher, ["EXEC"], "*1\r\n:0\r\n");
    for client in [&mut two, &mut three] {
        client.send(&command(&["SUBSCRIBE", "large"]));
    }
    gets(&mut two, false, &["message", "news", "hello"]);
    gets(&mut three, true, &["message", "news", "hello"]);
    gets(&mut two, false, &["subscribe", "large", ":2"]);
    gets(&mut three, true, &["subscribe", "large", ":2"]);
    is!(publisher, ["PUBLISH", "large", &large], ":2\r\n");
    gets(&mut two, false, &["message", "large", &large]);
    gets(&mut three, true, &["message", "large", &large]);
    is!(publisher, ["PUBSUB", "NUMSUB", "news", "other"], "*4\r\n$4\r\nnews\r\n:2\r\n$5\r\nother\r\n:0\r\n");
    // Upstream there is one subscription, and its name carries the prefix.
    let channel = fence.upstream_key("news");
    let upstream = if fence.process().is_some() { 1 } else { 2 };
    is!(
        redis.client(),
        ["PUBSUB", "NUMSUB", &channel],
        [format!("*2\r\n${}\r\n", channel.len()).as_bytes(), &channel, format!("\r\n:{upstream}\r\n").as_bytes()]
            .concat()
    );
}
