//! MONITOR: the tenant's own commands, worded as Redis words them, and nothing of anybody else's.
use crate::call;
use crate::is;
use crate::support::value::{Rule, same};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};
use crate::tenancy::{TWO, login};

/// What comes behind the time and the address of a line.
fn said(line: &[u8]) -> String {
    let text = String::from_utf8(line.to_vec()).expect("printable");
    let (head, rest) = text.split_once(" [").expect("a line of MONITOR");
    let (seconds, micros) = head.strip_prefix('+').and_then(|t| t.split_once('.')).expect("a time");
    assert!(
        seconds.parse::<u64>().unwrap() > 1_500_000_000 && micros.len() == 6 && micros.parse::<u32>().is_ok(),
        "{text}"
    );
    let (place, words) = rest.split_once("] ").expect("a database and an address");
    let (db, addr) = place.split_once(' ').expect("both");
    assert!(addr.starts_with("127.0.0.1:"), "{text}");
    format!("{db} {}", words.trim_end())
}

/// What a watcher sees of `lines`, up to a mark that ends them.
fn seen(addr: std::net::SocketAddr, lines: &[&[&[u8]]]) -> Vec<String> {
    let (mut watcher, mut client) = (Client::connect(addr), Client::connect(addr));
    is!(watcher, ["MONITOR"], "+OK\r\n");
    for line in lines {
        client.send(&command(line));
        drop(client.reply());
    }
    is!(client, ["ECHO", "the end"], "$7\r\nthe end\r\n");
    let mut all = Vec::new();
    loop {
        let one = said(&watcher.reply());
        if one.contains("the end") {
            return all;
        }
        all.push(one);
    }
}

#[test]
fn as_the_server_shows_it() {
    let servers = [Redis::start(), Redis::start()];
    let fence = Fence::start(&servers[1]);
    let lines: &[&[&[u8]]] = &[
        &[b"set", b"k", b"a \"quoted\" \\ value\r\n\t\x07\x08\x00\x7f\xff"],
        &[b"SELECT", b"1"],
        &[b"GET", b"k"],
        &[b"get", b""],
        &[b"SELECT", b"0"],
        &[b"ping"],
        &[b"HELLO", b"2"],
        &[b"EVAL", b"return 1", b"0"],
        &[b"MULTI"],
        &[b"INCR", b"n"],
        &[b"EXEC"],
        // What is not carried out is not shown.
        &[b"GET"],
        &[b"NOSUCH", b"x"],
        &[b"LPUSH", b"k", b"wrong kind is carried out"],
        // Nor is what administers.
        &[b"CONFIG", b"GET", b"maxmemory"],
        &[b"CLIENT", b"SETNAME", b"me"],
        &[b"PUBLISH", b"c", b"m"],
    ];
    let [direct, fenced] = [servers[0].addr(), fence.addr()].map(|addr| seen(addr, lines));
    // Redis shows CLIENT SETNAME and hides CONFIG; so do we.
    assert_eq!(direct, fenced);
    assert!(fenced.len() > 10, "{fenced:?}");
}

#[test]
fn a_watcher_and_the_keyspace() {
    let servers = [Redis::start(), Redis::start()];
    let fence = Fence::start(&servers[1]);
    for resp3 in [false, true] {
        let [a, b] = [servers[0].addr(), fence.addr()].map(|addr| {
            let mut client = Client::connect(addr);
            if resp3 {
                assert_eq!(call!(client, "HELLO", "3")[0], b'%');
            }
            is!(client, ["MONITOR"], "+OK\r\n");
            let mut all = Vec::new();
            for line in [&["GET", "k"][..], &["SET", "k", "v"], &["PUBLISH", "c", "m"], &["KEYS", "*"], &["DBSIZE"]] {
                all.push(show(&client.ask(&command(line))));
            }
            // It sees its own; which of the line and the answer comes first is not said.
            let mut two = client.pipeline(&command(&["PING"]), 2);
            two.sort();
            assert!(two[0].ends_with(b"\"PING\"\r\n"), "{}", show(&two[0]));
            all.push(show(&two[1]));
            all.push(show(&client.ask(&command(&["RESET"]))));
            // It is an ordinary connection again.
            all.push(show(&client.ask(&command(&["SET", "k", "v"]))));
            all
        });
        assert_eq!(a, b);
    }
}

#[test]
fn in_a_transaction_it_is_refused_when_that_is_carried_out() {
    let servers = [Redis::start(), Redis::start()];
    let fence = Fence::start(&servers[1]);
    let [a, b] = [servers[0].addr(), fence.addr()].map(|addr| {
        let mut client = Client::connect(addr);
        [&["MULTI"][..], &["MONITOR"], &["INCR", "n"], &["EXEC"], &["GET", "n"]].map(|line| client.ask(&command(line)))
    });
    for (a, b) in a.iter().zip(&b) {
        assert!(same(Rule::Exact, a, b), "{} {}", show(a), show(b));
    }
}

#[test]
fn u6_a_watcher_sees_no_other_tenant_and_no_secret() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), TWO);
    let (mut a, mut b) = (login(&fence, "a", "pa"), login(&fence, "b", "pb"));
    let mut watcher = login(&fence, "a", "pa");
    is!(watcher, ["MONITOR"], "+OK\r\n");
    is!(b, ["SET", "foreign", "value"], "+OK\r\n");
    is!(a, ["SET", "own", "v".repeat(500)], "+OK\r\n");
    is!(a, ["SET", "large", "w".repeat(200_000)], "+OK\r\n");
    let many: Vec<String> = std::iter::once("DEL".into()).chain((0..50).map(|i| format!("k{i}"))).collect();
    assert_eq!(show(&a.ask(&command(&many))), ":0\\r\\n");
    is!(a, ["AUTH", "a", "pa"], "+OK\r\n");
    assert_eq!(call!(a, "HELLO", "3", "AUTH", "a", "pa", "SETNAME", "n")[0], b'%');
    assert_eq!(call!(a, "EVAL", "return redis.call('GET', 'own')", "0")[0], b'$');
    // From here on it is b's, and a's watcher sees no more of it.
    is!(a, ["AUTH", "b", "pb"], "+OK\r\n");
    is!(a, ["SET", "foreign too", "value"], "+OK\r\n");
    let mut last = login(&fence, "a", "pa");
    is!(last, ["ECHO", "the end"], "$7\r\nthe end\r\n");
    let mut all = Vec::new();
    while !all.last().is_some_and(|line: &String| line.contains("the end")) {
        all.push(said(&watcher.reply()));
    }
    let shown: Vec<String> = (0..30).map(|i| format!("\"k{i}\"")).collect();
    assert_eq!(
        all,
        [
            format!("0 \"SET\" \"own\" \"{}... (372 more bytes)\"", "v".repeat(128)),
            "0 \"SET\" \"large\" \"... (1 more arguments)\"".to_owned(),
            format!("0 \"DEL\" {} \"... (20 more arguments)\"", shown.join(" ")),
            "0 \"AUTH\" \"(redacted)\" \"(redacted)\"".to_owned(),
            "0 \"HELLO\" \"3\" \"AUTH\" \"(redacted)\" \"(redacted)\" \"SETNAME\" \"n\"".to_owned(),
            "0 \"EVAL\" \"return redis.call('GET', 'own')\" \"0\"".to_owned(),
            "0 \"AUTH\" \"(redacted)\" \"(redacted)\"".to_owned(),
            "0 \"ECHO\" \"the end\"".to_owned(),
        ]
    );
    // A watcher that becomes another tenant's sees that one's no more than it asks to.
    assert_eq!(show(&watcher.ask(&command(&["AUTH", "b", "pb"]))), "+OK\\r\\n");
    is!(b, ["SET", "foreign", "value"], "+OK\r\n");
    is!(last, ["ECHO", "more"], "$4\r\nmore\r\n");
    is!(watcher, ["GET", "foreign"], "$5\r\nvalue\r\n");
}

#[test]
fn watchers_are_counted_and_listed() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), TWO);
    let mut watchers: Vec<Client> = (0..16).map(|_| login(&fence, "a", "pa")).collect();
    for watcher in &mut watchers {
        is!(watcher, ["MONITOR"], "+OK\r\n");
    }
    let mut one_more = login(&fence, "a", "pa");
    is!(one_more, ["MONITOR"], "-ERR at most 16 connections of a tenant may MONITOR at once\r\n");
    let mut other = login(&fence, "b", "pb");
    is!(other, ["MONITOR"], "+OK\r\n");
    let list = String::from_utf8(call!(one_more, "CLIENT", "LIST")).unwrap();
    assert_eq!(list.matches(" flags=O ").count(), 16, "{list}");
    // One that leaves makes room.
    drop(watchers.pop());
    while call!(one_more, "MONITOR") != b"+OK\r\n" {
        std::thread::yield_now();
    }
}

#[test]
fn l10_a_watcher_that_never_reads_is_dropped_alone() {
    let redis = Redis::start();
    let fence = Fence::start_at(redis.addr(), "client_output_limit = \"1MiB\"\n");
    let mut watcher = fence.client();
    is!(watcher, ["MONITOR"], "+OK\r\n");
    let mut client = fence.client();
    let batch = command(&["ECHO", &"v".repeat(100)]).repeat(1000);
    // Far more than the sockets and the limit hold.
    let sent = (0..1000).any(|_| {
        drop(client.pipeline(&batch, 1000));
        !String::from_utf8(call!(client, "CLIENT", "LIST")).unwrap().contains(" flags=O ")
    });
    assert!(sent, "the watcher stays, whatever it owes");
    is!(client, ["ECHO", "alive"], "$5\r\nalive\r\n");
}
