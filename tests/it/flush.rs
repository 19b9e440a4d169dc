//! FLUSHDB and FLUSHALL take what is the tenant's, all of it, and nothing else.
use crate::is;
use crate::support::wire::{bulk, command};
use crate::support::{Client, Fence, Redis, target_is_plain};

/// Writes `count` keys named `name` and a number, each with its name as value.
fn fill(client: &mut Client, name: &[u8], count: usize) {
    let key = |i: usize| [name, i.to_string().as_bytes()].concat();
    let bytes: Vec<u8> = (0..count).flat_map(|i| command(&[&b"SET"[..], &key(i), &key(i)])).collect();
    assert!(client.pipeline(&bytes, count).iter().all(|reply| reply == b"+OK\r\n"));
}

#[test]
fn own_keys_among_foreign_ones() {
    if target_is_plain() {
        return;
    }
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let (mut tenant, mut upstream) = (fence.client(), redis.client());
    // Foreign names that look much like ours.
    let foreign: [&[u8]; 5] = [b"other:", b"keyfence", b"keyfence;", b"Keyfence:", b"x:keyfence:"];
    for name in foreign {
        fill(&mut upstream, name, 4000);
    }
    for flush in [&["FLUSHDB"][..], &["FLUSHALL"], &["FLUSHDB", "SYNC"], &["flushall", "sync"]] {
        fill(&mut tenant, b"own:", 20_000);
        is!(tenant, ["SET", "", "the bare prefix"], "+OK\r\n");
        is!(upstream, ["DBSIZE"], ":40001\r\n");
        let args: Vec<&[u8]> = flush.iter().map(|arg| arg.as_bytes()).collect();
        assert_eq!(tenant.call(&args), b"+OK\r\n");
        is!(tenant, ["DBSIZE"], ":0\r\n");
        is!(tenant, ["KEYS", "*"], "*0\r\n");
        is!(upstream, ["DBSIZE"], ":20000\r\n");
    }
    fill(&mut tenant, b"own:", 20_000);
    is!(tenant, ["FLUSHDB", "ASYNC"], "+OK\r\n");
    while tenant.call(&[b"DBSIZE"]) != b":0\r\n" {}
    is!(upstream, ["DBSIZE"], ":20000\r\n");
    for name in foreign {
        let bytes: Vec<u8> =
            (0..4000).flat_map(|i| command(&[&b"GET"[..], &[name, i.to_string().as_bytes()].concat()])).collect();
        for (i, value) in upstream.pipeline(&bytes, 4000).into_iter().enumerate() {
            assert_eq!(value, bulk([name, i.to_string().as_bytes()].concat()));
        }
    }
}

#[test]
fn two_flushes_at_once_and_a_client_that_leaves() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let mut tenant = fence.client();
    fill(&mut tenant, b"own:", 20_000);
    let mut others: Vec<Client> = (0..5).map(|_| fence.client()).collect();
    for client in &mut others {
        client.send(&command(&["FLUSHDB"]));
    }
    drop(others.pop());
    for client in &mut others {
        assert_eq!(client.reply(), b"+OK\r\n");
    }
    is!(tenant, ["DBSIZE"], ":0\r\n");
    is!(tenant, ["SET", "k", "v"], "+OK\r\n");
    is!(tenant, ["DBSIZE"], ":1\r\n");
}

#[test]
fn every_database_or_only_this_one() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let mut tenant = fence.client();
    for db in ["1", "0"] {
        is!(tenant, ["SELECT", db], "+OK\r\n");
        fill(&mut tenant, b"own:", 100);
    }
    is!(tenant, ["FLUSHDB"], "+OK\r\n");
    is!(tenant, ["DBSIZE"], ":0\r\n");
    is!(tenant, ["SELECT", "1"], "+OK\r\n");
    is!(tenant, ["DBSIZE"], ":100\r\n");
    is!(tenant, ["SELECT", "0"], "+OK\r\n");
    is!(tenant, ["FLUSHALL"], "+OK\r\n");
    is!(tenant, ["SELECT", "1"], "+OK\r\n");
    is!(tenant, ["DBSIZE"], ":0\r\n");
}
