//! Many tenants with a tier on one upstream: it is asked for what all their prefixes begin with, once, and hears of others besides.
use super::{ON, calls, count, settle};
use crate::support::scripted::{Act, Scripted};
use crate::support::wire::show;
use crate::support::{Client, Fence, Redis};
use crate::{call, is};

const TENANTS: usize = 20;

/// `t00` to `t19` have a tier, but for those `without`; `tz` has none.
fn config(without: &[usize]) -> String {
    let mut config = format!("{ON}[upstream]\nsocket_timeout = \"100ms\"\n[tenants.tz]\npasswords = [\"p\"]\n");
    for i in 0..TENANTS {
        let tier = !without.contains(&i);
        config.push_str(&format!("[tenants.t{i:02}]\npasswords = [\"p\"]\ntier = {tier}\n"));
    }
    config
}

fn client(fence: &Fence, tenant: &str) -> Client {
    let mut client = fence.client();
    is!(client, ["AUTH", tenant, "p"], "+OK\r\n");
    client
}

/// The server's clients that track, by number.
fn trackers(redis: &Redis) -> Vec<String> {
    let list = show(&call!(redis.client(), "CLIENT", "LIST")).replace("\\n", "\n");
    let of = |line: &str| line.split_whitespace().find(|word| word.contains("id=")).map(str::to_owned);
    list.lines().filter(|line| line.contains("flags=tB")).filter_map(of).collect()
}

#[test]
fn one_prefix_is_asked_for() {
    let redis = Redis::start();
    let between = Scripted::start(redis.addr(), |_| Act::Forward);
    let asked_for = || {
        let tracking =
            between.seen().into_iter().filter(|request| request[0] == b"CLIENT" && request[1] == b"TRACKING");
        tracking.map(|request| request[4..].to_vec()).collect::<Vec<_>>()
    };
    let few: Vec<usize> = (4..TENANTS).collect();
    let fence = Fence::with_tenants(between.addr(), &config(&[]));
    let log = fence.process().unwrap();
    log.wait_for_lines(1, "the tier is on");
    assert_eq!(asked_for(), [[b"PREFIX".to_vec(), b"t".to_vec()]]);
    // When they are few, each is.
    fence.reload(&config(&few), "settings reloaded");
    log.wait_for_lines(2, "the tier is on");
    let each: Vec<Vec<u8>> =
        ["t00:", "t01:", "t02:", "t03:"].iter().flat_map(|p| ["PREFIX".into(), (*p).into()]).collect();
    assert_eq!(asked_for()[1..], [each]);
}

#[test]
fn tenants_come_and_go_on_one_connection() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), &config(&[19]));
    let log = fence.process().unwrap();
    log.wait_for_lines(1, "the tier is on");
    let first = trackers(&redis);
    assert_eq!(first.len(), 1);
    let mut client_0 = client(&fence, "t00");
    is!(client_0, ["SET", "k", "v"], "+OK\r\n");
    settle(&mut client_0);
    is!(client_0, ["STRLEN", "k"], ":1\r\n");
    assert_eq!(calls(&redis, "strlen"), 1);
    // Changes of those whom nobody asked for are told as well, and void nothing.
    for other in ["tz:k", "t19:k", "t", "tx", "t00", "t99:k"] {
        is!(redis.client(), ["SET", other, "theirs"], "+OK\r\n");
    }
    settle(&mut client_0);
    is!(client_0, ["STRLEN", "k"], ":1\r\n");
    assert_eq!(calls(&redis, "strlen"), 1);
    is!(redis.client(), ["SET", "t00:k", "vv"], "+OK\r\n");
    settle(&mut client_0);
    is!(client_0, ["STRLEN", "k"], ":2\r\n");
    is!(client(&fence, "t05"), ["STRLEN", "k"], ":0\r\n");
    is!(client_0, ["STRLEN", "k"], ":2\r\n");
    assert_eq!(calls(&redis, "strlen"), 3);

    // One comes, goes, and comes back.
    let mut client_19 = client(&fence, "t19");
    is!(client_19, ["STRLEN", "k"], ":6\r\n");
    fence.reload(&config(&[]), "settings reloaded");
    while count(&mut client_19, "tier_live") == 0 {
        is!(client_0, ["STRLEN", "k"], ":2\r\n");
    }
    settle(&mut client_19);
    (0..3).for_each(|_| is!(client_19, ["STRLEN", "k"], ":6\r\n"));
    assert_eq!(calls(&redis, "strlen"), 5);
    is!(redis.client(), ["SET", "t19:k", "new"], "+OK\r\n");
    settle(&mut client_19);
    is!(client_19, ["STRLEN", "k"], ":3\r\n");
    (0..2).for_each(|_| is!(client_19, ["STRLEN", "k"], ":3\r\n"));
    assert_eq!(calls(&redis, "strlen"), 6);
    fence.reload(&config(&[19]), "settings reloaded");
    // A few beats later nobody listens for its changes any more.
    let asked = calls(&redis, "ping");
    while calls(&redis, "ping") < asked + 5 {}
    is!(redis.client(), ["SET", "t19:k", "newer"], "+OK\r\n");
    is!(client_19, ["STRLEN", "k"], ":5\r\n");
    // Without being asked for meanwhile.
    is!(redis.client(), ["SET", "t19:k", "new again"], "+OK\r\n");
    fence.reload(&config(&[]), "settings reloaded");
    while count(&mut client_19, "tier_live") == 0 {}
    is!(client_19, ["STRLEN", "k"], ":9\r\n");
    let before = calls(&redis, "strlen");
    is!(client_0, ["STRLEN", "k"], ":2\r\n");
    assert_eq!(calls(&redis, "strlen"), before, "what is kept of others stays");
    assert_eq!((trackers(&redis), log.lines_with("the tier is on")), (first, 1), "nobody had to take over");
}
