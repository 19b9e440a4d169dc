//! Upstreams whose replies are not to be trusted (T10, T11): nothing wrong is passed on, and memory stays bounded.
use crate::support::scripted::{Act, Scripted};
use crate::support::wire::{bulk, show};
use crate::support::{Fence, Redis};
use crate::{call, is};

/// keyfence in front of an upstream that answers `GET lie` with `bytes`, and closes then if `close`.
fn with_lie(bytes: Vec<u8>, close: bool) -> (Redis, Scripted, Fence) {
    let redis = Redis::start();
    let upstream = Scripted::start(redis.addr(), move |request| {
        if !request.last().is_some_and(|key| key.ends_with(b"lie")) {
            Act::Forward
        } else if close {
            Act::Close(bytes.clone())
        } else {
            Act::Reply(bytes.clone())
        }
    });
    let fence = Fence::start_at(upstream.addr(), "[upstream]\nsocket_timeout = \"1s\"\n");
    (redis, upstream, fence)
}

/// After a lie was told, honest commands get honest answers, in sync.
fn goes_on(fence: &Fence) {
    let mut client = fence.client();
    assert_eq!(super::until_back(&mut client, &[b"SET", b"k", b"v"]), b"+OK\r\n");
    for i in 0..50 {
        let i = i.to_string();
        assert_eq!(super::until_back(&mut client, &[b"SET", b"k", i.as_bytes()]), b"+OK\r\n");
        is!(client, ["GET", "k"], bulk(&i));
    }
}

#[test]
fn what_is_no_reply_is_not_passed_on() {
    for lie in [
        &b"garbage\r\n"[..],
        b"\0\0\0\0\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$x\r\n",
        b"$-2\r\n",
        b"*-5\r\n",
        b"$5\r\nabcdefgh\r\n",
        b"$?\r\n",
        b"*?\r\n",
    ] {
        let (_redis, _upstream, fence) = with_lie(lie.to_vec(), false);
        let mut client = fence.client();
        let reply = client.try_reply_to(&["GET", "lie"]);
        assert!(
            reply.as_ref().is_none_or(|reply| reply.starts_with(b"-UPSTREAM ")),
            "{}: {:?}",
            show(lie),
            reply.map(|r| show(&r))
        );
        goes_on(&fence);
    }
}

#[test]
fn half_a_reply_is_not_passed_on_as_a_whole_one() {
    for lie in [&b"$100\r\nabc"[..], b"$5\r\nabcde", b"*3\r\n$1\r\na\r\n", b"+OK", b"", b":12"] {
        let (_redis, _upstream, fence) = with_lie(lie.to_vec(), true);
        let mut client = fence.client();
        client.send(&crate::support::wire::command(&["GET", "lie"]));
        // What the client has of it is no whole reply, and then its connection ends.
        match client.try_reply() {
            Ok(reply) => assert_eq!(show(&reply), "-UPSTREAM connection lost\\r\\n"),
            Err(_) => assert!(lie.starts_with(&client.read_to_end()), "{}", show(lie)),
        }
        goes_on(&fence);
    }
    let (_redis, _upstream, fence) = with_lie([b"$10000000\r\n".to_vec(), vec![b'x'; 5_000_000]].concat(), true);
    let mut client = fence.client();
    client.send(&crate::support::wire::command(&["GET", "lie"]));
    let got = client.read_to_end();
    assert!(
        got.starts_with(b"$10000000\r\nxxx") && got.len() < 10_000_000 || got == b"-UPSTREAM connection lost\r\n",
        "{} bytes",
        got.len()
    );
    goes_on(&fence);
}

#[test]
fn a_reply_nobody_asked_for_reaches_nobody() {
    for extra in
        [&b"+EXTRA\r\n"[..], b"$5\r\nEXTRA\r\n", b">2\r\n$5\r\nEXTRA\r\n:1\r\n", b"-EXTRA\r\n", b"*1\r\n+EXTRA\r\n"]
    {
        let redis = Redis::start();
        let upstream = Scripted::start(redis.addr(), move |request| {
            if request.last().is_some_and(|key| key.ends_with(b"lie")) {
                Act::ForwardAnd(extra.to_vec())
            } else {
                Act::Forward
            }
        });
        let fence = Fence::start_at(upstream.addr(), "");
        let [mut first, mut second] = [(); 2].map(|()| fence.client());
        is!(second, ["SET", "k", "v"], "+OK\r\n");
        for _ in 0..20 {
            let reply = call!(first, "GET", "lie");
            assert!(reply == b"$-1\r\n" || reply.starts_with(b"-UPSTREAM "), "{}", show(&reply));
            for client in [&mut first, &mut second] {
                assert_eq!(show(&super::until_back(client, &[b"GET", b"k"])), show(&bulk("v")));
            }
        }
    }
}

#[test]
fn depth_and_size_are_bounded() {
    let nested = [b"*1\r\n".repeat(200_000), b":1\r\n".to_vec()].concat();
    for (lie, close) in [
        (nested, false),
        (b"*2147483647\r\n".to_vec(), true),
        (b"$9223372036854775807\r\n".to_vec(), true),
        (b"*1000000000\r\n$1\r\na\r\n".to_vec(), true),
    ] {
        let (_redis, _upstream, fence) = with_lie(lie.clone(), close);
        let before = fence.process().map(|process| process.memory("VmRSS"));
        let mut client = fence.client();
        client.send(&crate::support::wire::command(&["GET", "lie"]));
        client.finish();
        let got = client.read_to_end();
        assert!(got.starts_with(b"-UPSTREAM ") || lie.starts_with(&got) || got.is_empty(), "{}", show(&got));
        goes_on(&fence);
        if let (Some(process), Some(before)) = (fence.process(), before) {
            let peak = process.memory("VmHWM");
            assert!(peak < before + (32 << 10), "{}: from {before} to {peak} KiB", show(&lie[..20.min(lie.len())]));
        }
    }
}

#[test]
fn a_name_without_the_prefix_is_never_shown() {
    let name = b"other-tenant:secret";
    let entry = b"*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n";
    let foreign = bulk(name);
    let cases: Vec<(&[&str], Vec<u8>)> = vec![
        (&["BLPOP", "q", "0"], [b"*2\r\n", &foreign[..], b"$1\r\nx\r\n"].concat()),
        (&["LMPOP", "1", "q", "LEFT"], [b"*2\r\n", &foreign[..], b"*1\r\n$1\r\nx\r\n"].concat()),
        (&["BZPOPMIN", "q", "0"], [b"*3\r\n", &foreign[..], b"$1\r\nx\r\n$1\r\n1\r\n"].concat()),
        (&["ZMPOP", "1", "q", "MIN"], [b"*2\r\n", &foreign[..], b"*1\r\n*2\r\n$1\r\nx\r\n$1\r\n1\r\n"].concat()),
        (&["XREAD", "STREAMS", "q", "0"], [b"*1\r\n*2\r\n", &foreign[..], entry].concat()),
        (&["KEYS", "*"], [b"*1\r\n", &foreign[..]].concat()),
        (&["SCAN", "0"], [b"*2\r\n$1\r\n0\r\n*1\r\n", &foreign[..]].concat()),
        (&["RANDOMKEY"], foreign.clone()),
        // Shapes that are not what the command answers with.
        (&["BLPOP", "q", "0"], b"*2\r\n:1\r\n:2\r\n".to_vec()),
        (&["LMPOP", "1", "q", "LEFT"], foreign.clone()),
        (&["XREAD", "STREAMS", "q", "0"], b"*1\r\n:1\r\n".to_vec()),
    ];
    for (args, lie) in cases {
        let redis = Redis::start();
        let told = lie.clone();
        let lied_about = args[0];
        let upstream = Scripted::start(redis.addr(), move |request| {
            let asked = &request[0];
            let scoped = ["KEYS", "SCAN", "RANDOMKEY"].contains(&lied_about)
                && [&b"KEYS"[..], b"SCAN", b"RANDOMKEY"].contains(&&asked[..]);
            if scoped && asked != b"RANDOMKEY" && lied_about != "KEYS" || scoped && asked == b"SCAN" {
                return Act::Reply([b"*2\r\n$1\r\n0\r\n*1\r\n".to_vec(), bulk(b"other-tenant:secret")].concat());
            }
            if scoped || asked == lied_about.as_bytes() { Act::Reply(told.clone()) } else { Act::Forward }
        });
        let fence = Fence::start_at(upstream.addr(), "[upstream]\nsocket_timeout = \"1s\"\n");
        if fence.process().is_none() {
            return;
        }
        let reply = fence.client().try_reply_to(args).unwrap_or_default();
        assert!(!show(&reply).contains("secret"), "{args:?}: {}", show(&reply));
        if !["KEYS", "SCAN", "RANDOMKEY"].contains(&lied_about) {
            assert!(reply.is_empty() || reply[0] == b'-', "{args:?}, told {}: {}", show(&lie), show(&reply));
        }
        goes_on(&fence);
    }
}
