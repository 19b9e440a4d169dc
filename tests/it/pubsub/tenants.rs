//! Two tenants with the same channel names, with the second wall and without it; by the ids of the isolation notes.
use super::{Client, call, command, frame, gets, is, show};
use crate::support::Fence;
use crate::tenancy::World;

/// Runs with each setting of the wall.
fn each(with: impl Fn(&World)) {
    for acl_wall in ["off", "require"] {
        with(&World::new(acl_wall));
    }
}

/// A connection of `a` or `b` in RESP3.
fn three(world: &World, name: &str) -> Client {
    login(&world.fence, name)
}

fn login(fence: &Fence, name: &str) -> Client {
    let mut client = fence.client();
    assert_eq!(call!(client, "HELLO", "3", "AUTH", name, format!("p{name}"))[0], b'%');
    client
}

fn send(client: &mut Client, line: &str) {
    client.send(&command(&line.split(' ').collect::<Vec<_>>()));
}

/// Nothing has come before the reply to a PING, behind whatever the upstream may have had to say.
#[track_caller]
fn hears_nothing(client: &mut Client) {
    // An UNSUBSCRIBE is acknowledged behind all that was published before it.
    let mut reply = client.ask(&command(&["UNSUBSCRIBE", "no such channel"]));
    let ack = String::from_utf8_lossy(&reply).into_owned();
    assert!(ack.starts_with(">3\r\n$11\r\nunsubscribe\r\n$15\r\nno such channel\r\n"), "{}", show(&reply));
    reply = client.ask(&command(&["PING"]));
    assert_eq!(show(&reply), "+PONG\\r\\n");
}

#[test]
fn c1_channels_and_patterns_are_a_tenants_own() {
    each(|world| {
        let (mut a, mut b) = (three(world, "a"), three(world, "b"));
        for line in ["SUBSCRIBE chat", "SUBSCRIBE b:chat", "PSUBSCRIBE *", "PSUBSCRIBE b:*", "SSUBSCRIBE chat"] {
            send(&mut a, line);
            let reply = a.reply();
            assert!(reply.starts_with(b">3\r\n"), "{line}: {}", show(&reply));
        }
        // Neither a's own names nor b's written out reach b's channels, nor the other way round.
        for (line, count) in
            [("PUBLISH chat x", 0), ("SPUBLISH chat x", 0), ("PUBLISH a:chat x", 0), ("PUBLISH b:chat x", 0)]
        {
            send(&mut b, line);
            assert_eq!(show(&b.reply()), format!(":{count}\\r\\n"), "{line}");
        }
        let mut upstream = world.redis.client();
        for channel in ["chat", "b:chat", "b:b:chat", "other", "", "a"] {
            let count = call!(upstream, "PUBLISH", channel, "x");
            assert_eq!(show(&count), ":0\\r\\n", "{channel:?}");
        }
        hears_nothing(&mut a);
        send(&mut b, "SUBSCRIBE chat");
        gets(&mut b, true, &["subscribe", "chat", ":1"]);
        let mut publisher = three(world, "a");
        send(&mut publisher, "PUBLISH chat mine");
        assert_eq!(show(&publisher.reply()), ":2\\r\\n");
        gets(&mut a, true, &["message", "chat", "mine"]);
        gets(&mut a, true, &["pmessage", "*", "chat", "mine"]);
        send(&mut publisher, "SPUBLISH chat mine");
        assert_eq!(show(&publisher.reply()), ":1\\r\\n");
        gets(&mut a, true, &["smessage", "chat", "mine"]);
        hears_nothing(&mut b);
    });
}

#[test]
fn n4_globs_in_the_prefix_are_escaped() {
    let world = World::new("off");
    let fence = Fence::with_tenants(
        world.redis.addr(),
        "[tenants.a]\npasswords = [\"pa\"]\nprefix = \"t-1:\"\n[tenants.b]\npasswords = [\"pb\"]\nprefix = \"t-2:\"\n",
    );
    let (mut a, mut b) = (login(&fence, "a"), login(&fence, "b"));
    send(&mut a, "PSUBSCRIBE [^x]* ?");
    gets(&mut a, true, &["psubscribe", "[^x]*", ":1"]);
    gets(&mut a, true, &["psubscribe", "?", ":2"]);
    send(&mut b, "PUBLISH c x");
    assert_eq!(show(&b.reply()), ":0\\r\\n");
    hears_nothing(&mut a);
    send(&mut a, "PUBLISH long-name own");
    gets(&mut a, true, &["pmessage", "[^x]*", "long-name", "own"]);
    assert_eq!(show(&a.reply()), ":1\\r\\n");
}

#[test]
fn c2_introspection_shows_a_tenants_own() {
    each(|world| {
        let (mut a, mut b) = (three(world, "a"), three(world, "b"));
        for line in ["SUBSCRIBE secret", "PSUBSCRIBE se*", "SSUBSCRIBE secret"] {
            send(&mut b, line);
            b.reply();
        }
        is!(a, ["PUBSUB", "CHANNELS"], "*0\r\n");
        is!(a, ["PUBSUB", "CHANNELS", "*secret"], "*0\r\n");
        is!(a, ["PUBSUB", "SHARDCHANNELS"], "*0\r\n");
        is!(a, ["PUBSUB", "NUMPAT"], ":0\r\n");
        is!(a, ["PUBSUB", "NUMSUB", "secret", "b:secret"], "*4\r\n$6\r\nsecret\r\n:0\r\n$8\r\nb:secret\r\n:0\r\n");
        is!(a, ["PUBSUB", "SHARDNUMSUB", "secret"], "*2\r\n$6\r\nsecret\r\n:0\r\n");
        is!(b, ["PUBSUB", "CHANNELS"], "*1\r\n$6\r\nsecret\r\n");
        is!(b, ["PUBSUB", "NUMPAT"], ":1\r\n");
        let list = String::from_utf8(call!(b, "CLIENT", "LIST")).unwrap();
        assert!(list.contains(" sub=1 psub=1 ssub=1 ") && list.contains("flags=P"), "{list}");
        assert!(!String::from_utf8(call!(a, "CLIENT", "LIST")).unwrap().contains("sub=1"));
        is!(a, ["CLIENT", "KILL", "TYPE", "pubsub"], ":0\r\n");
        let mut killer = three(world, "b");
        is!(killer, ["CLIENT", "KILL", "TYPE", "pubsub"], ":1\r\n");
        assert_eq!(b.try_reply(), Err("closed"));
    });
}

#[test]
fn c4_notifications_cannot_be_forged() {
    each(|world| {
        let (mut a, mut b) = (three(world, "a"), three(world, "b"));
        let names = ["__keyspace@0__:k", "__keyevent@0__:expired", "__redis__:invalidate", "__subkeyspace@0__:k"];
        for client in [&mut a, &mut b] {
            for (i, name) in names.iter().enumerate() {
                send(client, &format!("SUBSCRIBE {name}"));
                gets(client, true, &["subscribe", name, &format!(":{}", i + 1)]);
            }
            send(client, "PSUBSCRIBE __key*__:* *");
            gets(client, true, &["psubscribe", "__key*__:*", ":5"]);
            gets(client, true, &["psubscribe", "*", ":6"]);
        }
        let mut publisher = three(world, "a");
        for name in names {
            is!(publisher, ["PUBLISH", name, "forged"], ":0\r\n");
            is!(publisher, ["SPUBLISH", name, "forged"], ":0\r\n");
            // Nor by whoever is subscribed.
            send(&mut a, &format!("PUBLISH {name} forged"));
            assert_eq!(show(&a.reply()), ":0\\r\\n");
        }
        hears_nothing(&mut a);
        hears_nothing(&mut b);
    });
}

#[test]
fn c8_unsubscribing_concerns_oneself() {
    each(|world| {
        let mut all: Vec<Client> = ["a", "a", "b"].iter().map(|name| three(world, name)).collect();
        for client in &mut all {
            send(client, "SUBSCRIBE one two");
            gets(client, true, &["subscribe", "one", ":1"]);
            gets(client, true, &["subscribe", "two", ":2"]);
        }
        let mut first = all.remove(0);
        for line in ["UNSUBSCRIBE one", "UNSUBSCRIBE"] {
            send(&mut first, line);
            first.reply();
        }
        is!(first, ["RESET"], "+RESET\r\n");
        assert_eq!(call!(first, "HELLO", "3", "AUTH", "a", "pa")[0], b'%');
        is!(first, ["PUBLISH", "one", "x"], ":1\r\n");
        is!(first, ["PUBLISH", "two", "y"], ":1\r\n");
        gets(&mut all[0], true, &["message", "one", "x"]);
        gets(&mut all[0], true, &["message", "two", "y"]);
        send(&mut first, "QUIT");
        assert_eq!(show(&first.read_to_end()), "+OK\\r\\n");
        hears_nothing(&mut all[1]);
        let mut b = three(world, "b");
        is!(b, ["PUBLISH", "one", "z"], ":1\r\n");
        gets(&mut all[1], true, &["message", "one", "z"]);
        hears_nothing(&mut all[0]);
    });
}

#[test]
fn c9_subscribe_in_multi() {
    each(|world| {
        let mut a = three(world, "a");
        for line in ["SUBSCRIBE a b", "PSUBSCRIBE a*", "SSUBSCRIBE a", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"] {
            is!(a, ["MULTI"], "+OK\r\n");
            is!(a, ["SET", "s", "changed"], "+QUEUED\r\n");
            send(&mut a, line);
            assert_eq!(a.reply()[0], b'-', "{line}");
            is!(a, ["EXEC"], "-EXECABORT Transaction discarded because of previous errors.\r\n");
            is!(a, ["PING"], "+PONG\r\n");
        }
        is!(a, ["GET", "s"], "$8\r\nattacker\r\n");
        // PUBLISH may be in one, and counts the tenant's own.
        let mut listener = three(world, "a");
        send(&mut listener, "SUBSCRIBE c");
        gets(&mut listener, true, &["subscribe", "c", ":1"]);
        let block: Vec<u8> = [&["MULTI"][..], &["PUBLISH", "c", "x"], &["PUBSUB", "NUMSUB", "c"], &["EXEC"]]
            .iter()
            .flat_map(|c| command(c))
            .collect();
        let replies = a.pipeline(&block, 4);
        assert_eq!(show(&replies[3]), "*2\\r\\n:1\\r\\n*2\\r\\n$1\\r\\nc\\r\\n:1\\r\\n");
        gets(&mut listener, true, &["message", "c", "x"]);
    });
}

#[test]
fn d4_replies_and_messages_keep_their_places() {
    each(|world| {
        let (mut a, mut publisher) = (three(world, "a"), three(world, "a"));
        // Replies larger than what is read at once, and messages all the while: each comes whole.
        let large = "x".repeat(3_000_000);
        is!(a, ["SET", "large", &large], "+OK\r\n");
        send(&mut a, "SUBSCRIBE c");
        gets(&mut a, true, &["subscribe", "c", ":1"]);
        let asked: Vec<u8> = (0..20).flat_map(|_| command(&["GET", "large"])).collect();
        let sent: Vec<u8> = (0..2000).flat_map(|i| command(&["PUBLISH", "c", &i.to_string()])).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| publisher.pipeline(&sent, 2000));
            a.send(&asked);
            let (mut replies, mut messages) = (0, 0);
            while (replies, messages) != (20, 2000) {
                let reply = a.reply();
                if reply.starts_with(b">") {
                    let text = messages.to_string();
                    assert_eq!(show(&reply), show(frame(true, &["message", "c", &text]).as_bytes()));
                    messages += 1;
                } else {
                    assert!(reply.len() == large.len() + 12 && reply.starts_with(b"$3000000\r\nxxx"));
                    replies += 1;
                }
            }
        });
    });
}

#[test]
fn d6_subscriptions_end_with_who_had_them() {
    each(|world| {
        let mut client = three(world, "a");
        send(&mut client, "SUBSCRIBE c");
        gets(&mut client, true, &["subscribe", "c", ":1"]);
        // D13, D14: another login, another tenant; the subscription was the first one's.
        is!(client, ["AUTH", "b", "pb"], "+OK\r\n");
        let (mut a, mut b) = (three(world, "a"), three(world, "b"));
        is!(a, ["PUBLISH", "c", "x"], ":0\r\n");
        is!(b, ["PUBLISH", "c", "x"], ":0\r\n");
        hears_nothing(&mut client);
        send(&mut client, "SUBSCRIBE d");
        gets(&mut client, true, &["subscribe", "d", ":1"]);
        is!(a, ["PUBLISH", "d", "x"], ":0\r\n");
        is!(b, ["PUBLISH", "d", "y"], ":1\r\n");
        gets(&mut client, true, &["message", "d", "y"]);
        // In the other version it gets the other form.
        assert_eq!(call!(client, "HELLO", "2")[0], b'*');
        is!(b, ["PUBLISH", "d", "z"], ":1\r\n");
        gets(&mut client, false, &["message", "d", "z"]);
        assert_eq!(client.ask(&command(&["GET", "d"]))[0], b'-');
    });
}

#[test]
fn l10_subscriptions_are_bounded() {
    let world = World::new("require");
    let mut a = three(&world, "a");
    let names: Vec<String> = (0..16 * 1024).map(|i| format!("c{i}")).collect();
    let all: Vec<&str> = std::iter::once("SUBSCRIBE").chain(names.iter().map(String::as_str)).collect();
    a.send(&command(&all));
    for (i, name) in names.iter().enumerate() {
        gets(&mut a, true, &["subscribe", name, &format!(":{}", i + 1)]);
    }
    is!(a, ["SUBSCRIBE", "more"], "-BUSY a connection may have 16384 subscriptions at the most\r\n");
    is!(a, ["PSUBSCRIBE", "more"], "-BUSY a connection may have 16384 subscriptions at the most\r\n");
    send(&mut a, "UNSUBSCRIBE c0");
    gets(&mut a, true, &["unsubscribe", "c0", ":16383"]);
    send(&mut a, "SUBSCRIBE more");
    gets(&mut a, true, &["subscribe", "more", ":16384"]);
    let mut other = three(&world, "a");
    is!(other, ["PUBLISH", "c16383", "x"], ":1\r\n");
    gets(&mut a, true, &["message", "c16383", "x"]);
    // E3: patterns are bounded in length, in stars and in number.
    let complex = "-ERR pattern is too complex: at most 4096 bytes and 32 stars\r\n";
    is!(other, ["PSUBSCRIBE", "*".repeat(33)], complex);
    is!(other, ["PSUBSCRIBE", "x".repeat(4097)], complex);
    let patterns: Vec<String> = (0..1000).map(|i| format!("p{i}*")).collect();
    let all: Vec<&str> = std::iter::once("PSUBSCRIBE").chain(patterns.iter().map(String::as_str)).collect();
    other.send(&command(&all));
    for (i, name) in patterns.iter().enumerate() {
        gets(&mut other, true, &["psubscribe", name, &format!(":{}", i + 1)]);
    }
    is!(other, ["PSUBSCRIBE", "one more"], "-BUSY tenant 'a' has 1000 different patterns already\r\n");
    // Another tenant's are its own.
    let mut b = three(&world, "b");
    send(&mut b, "PSUBSCRIBE p");
    gets(&mut b, true, &["psubscribe", "p", ":1"]);
    // All of it is given back.
    drop((a, other));
    let mut again = three(&world, "a");
    while show(&call!(again, "PUBSUB", "NUMPAT")) != ":0\\r\\n" {
        std::thread::yield_now();
    }
    send(&mut again, "PSUBSCRIBE one");
    gets(&mut again, true, &["psubscribe", "one", ":1"]);
}

/// How long the turns of others take must not depend on this: what is costly is refused, and nobody is told of a message that was.
#[test]
fn e3_matching_patterns_is_bounded() {
    let world = World::new("off");
    let (mut a, mut publisher) = (three(&world, "a"), three(&world, "a"));
    for i in 0..10 {
        let pattern = format!("*{}{i}", "a".repeat(4000));
        is!(a, ["PSUBSCRIBE", &pattern], frame(true, &["psubscribe", &pattern, &format!(":{}", i + 1)]));
    }
    let channel = "a".repeat(100_000);
    let refused = "-BUSY the channel's name and the tenant's patterns are too long together: whom this message reaches takes too long to find out\r\n";
    is!(publisher, ["PUBLISH", &channel, "x"], refused);
    is!(publisher, ["PUBLISH", &channel, "x".repeat(200_000)], refused);
    is!(a, ["PUBLISH", &channel, "x"], refused);
    // In a transaction as well, where all of them count together.
    is!(publisher, ["MULTI"], "+OK\r\n");
    is!(publisher, ["PUBLISH", &channel, "x"], refused);
    is!(publisher, ["EXEC"], "-EXECABORT Transaction discarded because of previous errors.\r\n");
    let shorter = "a".repeat(5000);
    is!(publisher, ["MULTI"], "+OK\r\n");
    let last = (0..1000).map(|_| call!(publisher, "PUBLISH", &shorter, "x")).find(|reply| reply != b"+QUEUED\r\n");
    assert_eq!(last.as_deref().map(show), Some(show(refused.as_bytes())));
    is!(publisher, ["DISCARD"], "+OK\r\n");
    // A notification is about a key of any length; it goes without saying, but not at any length.
    is!(publisher, ["SET", &channel, "x"], "+OK\r\n");
    is!(publisher, ["PUBLISH", "short", "x"], ":0\r\n");
    hears_nothing(&mut a);
    // What is asked about names, too.
    is!(a, ["SUBSCRIBE", &channel], frame(true, &["subscribe", &channel, ":11"]));
    let bomb = format!("*{}b", "a".repeat(4000));
    let complex = "-ERR pattern is too complex: at most 4096 bytes and 32 stars\r\n";
    is!(publisher, ["PUBSUB", "CHANNELS", &bomb], complex);
    is!(publisher, ["PUBSUB", "CHANNELS", "*".repeat(33)], complex);
    is!(publisher, ["PUBSUB", "CHANNELS", "a*"], ["*1\r\n$100000\r\n", &channel, "\r\n"].concat());
}

#[test]
fn many_channels_are_listed_whole() {
    let world = World::new("off");
    let (mut a, mut asks) = (three(&world, "a"), three(&world, "a"));
    let names: Vec<String> = (0..5000).map(|i| format!("c{i:04}")).collect();
    let all: Vec<&str> = std::iter::once("SUBSCRIBE").chain(names.iter().map(String::as_str)).collect();
    a.send(&command(&all));
    (0..names.len()).for_each(|_| drop(a.reply()));
    let listed: String = names.iter().map(|name| format!("$5\r\n{name}\r\n")).collect();
    let listed = format!("*5000\r\n{listed}");
    // In one go with what is before and behind it.
    let bytes = [&["GET", "none"][..], &["PUBSUB", "CHANNELS"], &["PING"], &["PUBSUB", "CHANNELS", "c*"]];
    let replies = asks.pipeline(&bytes.iter().flat_map(|words| command(words)).collect::<Vec<_>>(), 4);
    assert_eq!(
        replies.iter().map(|r| show(r)).collect::<Vec<_>>(),
        ["_\r\n", &listed, "+PONG\r\n", &listed].map(|r| show(r.as_bytes()))
    );
    is!(asks, ["MULTI"], "+OK\r\n");
    is!(asks, ["PUBSUB", "CHANNELS"], "+QUEUED\r\n");
    is!(asks, ["EXEC"], "*1\r\n-BUSY too many channels to be listed inside a transaction\r\n");
}

#[test]
fn l10_so_many_names_are_given_up_at_once() {
    let world = World::new("off");
    let mut a = three(&world, "a");
    let names: Vec<String> = (0..16 * 1024 + 1).map(|i| format!("u{i}")).collect();
    let all =
        |n: usize| std::iter::once("UNSUBSCRIBE").chain(names[..n].iter().map(String::as_str)).collect::<Vec<_>>();
    a.send(&command(&all(names.len())));
    assert_eq!(show(&a.reply()), "-ERR at most 16384 names may be given up at once\\r\\n");
    send(&mut a, "SUBSCRIBE u0 u1 other");
    (0..3).for_each(|_| drop(a.reply()));
    a.send(&command(&all(names.len() - 1)));
    for (i, name) in names[..16 * 1024].iter().enumerate() {
        gets(&mut a, true, &["unsubscribe", name, if i == 0 { ":2" } else { ":1" }]);
    }
    send(&mut a, "UNSUBSCRIBE");
    gets(&mut a, true, &["unsubscribe", "other", ":0"]);
}
