//! Keyspace notifications: the tenant's own, in its own names and database numbers.
use super::{Client, Fence, Redis, call, command, gets, is, show};
use crate::support::free_addr;

/// A server that sends all notifications.
fn noisy() -> Redis {
    Redis::start_with(free_addr(), &["--notify-keyspace-events", "KEA"])
}

fn send(client: &mut Client, line: &str) {
    client.send(&command(&line.split(' ').collect::<Vec<_>>()));
}

/// Everything until the reply to a PING behind an UNSUBSCRIBE that concerns nobody.
fn heard(client: &mut Client) -> Vec<String> {
    let mut said = Vec::new();
    send(client, "UNSUBSCRIBE none");
    send(client, "PING mark");
    loop {
        let reply = show(&client.reply());
        if reply.contains("mark") {
            return said;
        }
        if !reply.contains("none") {
            said.push(reply);
        }
    }
}

#[test]
fn as_the_server_sends_them() {
    for resp3 in [false, true] {
        let servers = [noisy(), noisy()];
        let fence = Fence::start(&servers[1]);
        let said = [servers[0].addr(), fence.addr()].map(|addr| {
            let mut listener = Client::connect(addr);
            if resp3 {
                call!(listener, "HELLO", "3");
            }
            for (i, line) in
                ["SUBSCRIBE __keyspace@0__:k", "SUBSCRIBE __keyevent@0__:del", "PSUBSCRIBE __keyspace@*__:l*"]
                    .iter()
                    .enumerate()
            {
                send(&mut listener, line);
                assert!(show(&listener.reply()).contains(&format!(":{}", i + 1)), "{line}");
            }
            let mut writer = Client::connect(addr);
            let mut said = Vec::new();
            for (line, events) in [
                ("SET k v", 1),
                ("SET other v", 0),
                ("LPUSH l 1", 1),
                ("RENAME l l2", 2),
                ("DEL k other", 3),
                ("SELECT 3", 0),
                ("SET k v", 0),
                ("LPUSH l3 v", 1),
                ("DEL k", 0),
            ] {
                send(&mut writer, line);
                writer.reply();
                said.extend((0..events).map(|_| show(&listener.reply())));
            }
            said.extend(heard(&mut listener));
            said
        });
        let [a, b] = said;
        assert_eq!(a, b);
        assert_eq!(a.len(), 8);
    }
}

#[test]
fn c3_a_tenant_sees_its_own_only() {
    let redis = noisy();
    let fence = Fence::with_tenants(
        redis.addr(),
        "workers = 1\n[tenants.a]\npasswords = [\"pa\"]\ndb = 2\ndatabases = 2\n[tenants.b]\npasswords = [\"pb\"]\n[tenants.ab]\npasswords = [\"pab\"]\n",
    );
    let login = |name: &str| {
        let mut client = fence.client();
        assert_eq!(call!(client, "HELLO", "3", "AUTH", name, format!("p{name}"))[0], b'%');
        client
    };
    let patterns = "PSUBSCRIBE *";
    let exact =
        "SUBSCRIBE __keyevent@0__:set __keyspace@0__:k __keyspace@0__:a:k __keyspace@2__:a:k __keyevent@2__:set";
    let mut all = ["a", "b", "ab"].map(login);
    for client in &mut all {
        send(client, patterns);
        gets(client, true, &["psubscribe", "*", ":1"]);
        send(client, exact);
        (0..5).for_each(|_| drop(client.reply()));
    }
    let [a, b, ab] = &mut all;
    let mut writer = login("a");
    is!(writer, ["SET", "k", "1"], "+OK\r\n");
    gets(a, true, &["message", "__keyspace@0__:k", "set"]);
    gets(a, true, &["pmessage", "*", "__keyspace@0__:k", "set"]);
    gets(a, true, &["message", "__keyevent@0__:set", "k"]);
    gets(a, true, &["pmessage", "*", "__keyevent@0__:set", "k"]);
    // The tenant's database 1 is the upstream's 3.
    is!(writer, ["SELECT", "1"], "+OK\r\n");
    is!(writer, ["SET", "k", "1"], "+OK\r\n");
    gets(a, true, &["pmessage", "*", "__keyspace@1__:k", "set"]);
    gets(a, true, &["pmessage", "*", "__keyevent@1__:set", "k"]);
    // Keys of nobody, keys that only look like the tenant's, a database that is not the tenant's.
    let mut root = redis.client();
    for (db, key) in [("2", "k"), ("2", "a"), ("2", "xa:k"), ("0", "a:k"), ("4", "a:k"), ("0", "c:k")] {
        is!(root, ["SELECT", db], "+OK\r\n");
        is!(root, ["SET", key, "v"], "+OK\r\n");
    }
    is!(root, ["SELECT", "2"], "+OK\r\n");
    is!(root, ["SET", "a:last", "v"], "+OK\r\n");
    gets(a, true, &["pmessage", "*", "__keyspace@0__:last", "set"]);
    gets(a, true, &["message", "__keyevent@0__:set", "last"]);
    gets(a, true, &["pmessage", "*", "__keyevent@0__:set", "last"]);
    assert_eq!(heard(a), Vec::<String>::new());
    assert_eq!(heard(b), Vec::<String>::new());
    assert_eq!(heard(ab), Vec::<String>::new());
    // What was published under such a name by an operator is no key of anybody's either.
    call!(root, "PUBLISH", "__keyevent@2__:set", "b:k");
    call!(root, "PUBLISH", "__keyspace@x__:a:k", "set");
    is!(login("b"), ["SET", "k", "v"], "+OK\r\n");
    gets(b, true, &["message", "__keyspace@0__:k", "set"]);
    gets(b, true, &["pmessage", "*", "__keyspace@0__:k", "set"]);
    gets(b, true, &["message", "__keyevent@0__:set", "k"]);
    gets(b, true, &["pmessage", "*", "__keyevent@0__:set", "k"]);
    assert_eq!(heard(a), Vec::<String>::new());
    assert_eq!(heard(ab), Vec::<String>::new());
}

#[test]
fn listened_to_only_while_somebody_does() {
    let redis = noisy();
    let fence = Fence::start(&redis);
    if fence.process().is_none() {
        return;
    }
    let mut root = redis.client();
    let mut listener = fence.client();
    send(&mut listener, "PSUBSCRIBE news*");
    gets(&mut listener, false, &["psubscribe", "news*", ":1"]);
    // One pattern upstream: that of the tenant's channels.
    is!(root, ["PUBSUB", "NUMPAT"], ":1\r\n");
    send(&mut listener, "PSUBSCRIBE __keyevent@0__:*");
    gets(&mut listener, false, &["psubscribe", "__keyevent@0__:*", ":2"]);
    is!(root, ["PUBSUB", "NUMPAT"], ":2\r\n");
    is!(fence.client(), ["SET", "k", "v"], "+OK\r\n");
    gets(&mut listener, false, &["pmessage", "__keyevent@0__:*", "__keyevent@0__:set", "k"]);
    send(&mut listener, "PUNSUBSCRIBE");
    listener.reply();
    listener.reply();
    while show(&call!(root, "PUBSUB", "NUMPAT")) != ":0\\r\\n" {
        std::thread::yield_now();
    }
}

#[test]
fn they_come_again_after_the_upstream() {
    let mut redis = noisy();
    let fence = Fence::start(&redis);
    let mut listener = fence.client();
    send(&mut listener, "SUBSCRIBE __keyevent@0__:set");
    gets(&mut listener, false, &["subscribe", "__keyevent@0__:set", ":1"]);
    redis.restart();
    let mut root = redis.client();
    is!(root, ["CONFIG", "SET", "notify-keyspace-events", "KEA"], "+OK\r\n");
    let key = fence.upstream_key("k");
    loop {
        call!(root, "SET", &key, "v");
        send(&mut listener, "PING mark");
        if !show(&listener.reply()).contains("mark") {
            break;
        }
        std::thread::yield_now();
    }
}

#[test]
fn off_upstream_they_are_accepted_and_nothing_comes() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let mut listener = fence.client();
    send(&mut listener, "SUBSCRIBE __keyevent@0__:set");
    gets(&mut listener, false, &["subscribe", "__keyevent@0__:set", ":1"]);
    is!(fence.client(), ["SET", "k", "v"], "+OK\r\n");
    assert_eq!(heard(&mut listener), Vec::<String>::new());
}
