//! Clients that ask for more than their share: they may be cut off; nobody else may notice, and memory stays bounded.
use std::thread;

use super::World;
use crate::support::wire::{bulk, command};
use crate::support::{Client, PATIENCE};
use crate::{call, is};

/// What the process may grow by, in KiB, while a client misbehaves: its output limit of 64 MiB and some room.
const BOUND: u64 = 96 << 10;

impl World {
    /// Runs `attack`, and meanwhile works as another client; then measures what the process has grown to.
    fn unharmed(&self, bound: u64, attack: impl FnOnce() + Send) {
        let mut other = self.fence.client();
        other.stream().set_read_timeout(Some(PATIENCE)).unwrap();
        is!(other, ["SET", "other", "before"], "+OK\r\n");
        let before = self.fence.process().map(|process| process.memory("VmRSS"));
        thread::scope(|scope| {
            let attack = scope.spawn(attack);
            let mut rounds = 0;
            while !attack.is_finished() || rounds < 200 {
                let value = rounds.to_string();
                is!(other, ["SET", "other", value], "+OK\r\n");
                is!(other, ["GET", "other"], bulk(&value));
                rounds += 1;
            }
        });
        if let (Some(process), Some(before)) = (self.fence.process(), before) {
            let peak = process.memory("VmHWM");
            assert!(peak.saturating_sub(before) <= bound, "from {before} KiB to {peak} KiB");
        }
    }
}

#[test]
fn a_client_that_never_reads() {
    let world = World::new();
    is!(world.fence.client(), ["SET", "k", vec![b'v'; 1024]], "+OK\r\n");
    let mut greedy = world.fence.client();
    let socket = greedy.stream().try_clone().unwrap();
    world.unharmed(BOUND, || {
        let requests = command(&["GET", "k"]).repeat(100_000);
        thread::scope(|scope| {
            // It blocks once nobody reads, or fails once it is cut off.
            let writer = scope.spawn(move || greedy.send_lossy(&requests));
            let mut busy = world.fence.client();
            for _ in 0..2000 {
                assert_eq!(call!(busy, "GET", "k").len(), 1024 + 9);
            }
            // It may be cut off already.
            let _ = socket.shutdown(std::net::Shutdown::Both);
            writer.join().unwrap();
        });
    });
}

#[test]
fn a_gigabyte_declared_before_one_byte_comes() {
    let world = World::new();
    let mut kept: Vec<Client> = Vec::new();
    world.unharmed(16 << 10, || {
        for declared in [
            "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n",
            "*1048576\r\n",
            "*3\r\n$3\r\nSET\r\n$536870000\r\nabc",
            "*2\r\n$536870912\r\n",
        ] {
            for _ in 0..50 {
                let mut client = world.fence.client();
                // The answer to the PING shows that what came with it has been read.
                client.send(format!("PING\r\n{declared}").as_bytes());
                assert_eq!(client.reply(), b"+PONG\r\n");
                kept.push(client);
            }
        }
    });
    for length in ["1073741824", "536870913", "4294967296", "9223372036854775807"] {
        world.same(format!("*2\r\n$3\r\nGET\r\n${length}\r\n").as_bytes());
        world.same(format!("*{length}\r\n").as_bytes());
    }
}

#[test]
fn a_line_without_end() {
    let world = World::new();
    world.unharmed(16 << 10, || {
        for _ in 0..20 {
            let mut client = world.fence.client();
            client.send_lossy(&vec![b'x'; 8 << 20]);
            client.read_to_end();
        }
    });
}

#[test]
fn a_transaction_without_end() {
    let world = World::new();
    let mut kept = None;
    world.unharmed(BOUND, || {
        let mut client = world.fence.client();
        is!(client, ["MULTI"], "+OK\r\n");
        // 40 MB of queued commands, never carried out.
        let replies = client.pipeline(&command(&["SET".as_bytes(), b"queued", &[b'x'; 4000]]).repeat(10_000), 10_000);
        assert!(replies.iter().all(|reply| reply == b"+QUEUED\r\n" || reply[0] == b'-'));
        kept = Some(client);
    });
    drop(kept);
    is!(world.fence.client(), ["EXISTS", "queued"], ":0\r\n");
}

#[test]
fn many_arguments() {
    let world = World::new();
    let mut client = world.fence.client();
    let keys: Vec<String> = (0..100_000).map(|i| format!("k{i}")).collect();
    let pairs: Vec<&str> = std::iter::once("MSET").chain(keys.iter().flat_map(|key| [key.as_str(), key])).collect();
    client.send(&command(&pairs));
    assert_eq!(client.reply(), b"+OK\r\n");
    let all: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    let want: Vec<u8> = [b"*100000\r\n".to_vec(), keys.iter().flat_map(bulk).collect()].concat();
    assert!(client.pipeline(&command(&all), 1)[0] == want, "MGET of 100,000 keys");
    is!(client, ["DBSIZE"], ":100000\r\n");
}

#[test]
fn deep_pipelines_are_answered_in_order() {
    let world = World::new();
    let mut client = world.fence.client();
    let mut bytes = Vec::new();
    for i in 0..20_000 {
        let i = i.to_string();
        bytes.extend(command(&["SET", "k", &i]));
        bytes.extend(command(&["ECHO", &i]));
        bytes.extend(command(&["GET", "k"]));
    }
    for (i, three) in client.pipeline(&bytes, 60_000).chunks(3).enumerate() {
        let i = bulk(i.to_string());
        assert_eq!(three, [b"+OK\r\n".to_vec(), i.clone(), i]);
    }
    // Commands that need connections of their own, or work of several steps, keep their place too.
    let mut bytes = Vec::new();
    for i in 0..200 {
        let i = i.to_string();
        for words in [
            &["RPUSH", "l", &i][..],
            &["BLPOP", "l", "0"],
            &["MULTI"],
            &["SET", "k", &i],
            &["GET", "k"],
            &["EXEC"],
            &["KEYS", "k"],
            &["ECHO", &i],
        ] {
            bytes.extend(command(words));
        }
    }
    for (i, eight) in client.pipeline(&bytes, 1600).chunks(8).enumerate() {
        let i = bulk(i.to_string());
        let got = eight.concat();
        let want = [
            b":1\r\n*2\r\n$1\r\nl\r\n",
            &i[..],
            b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n",
            &i,
            b"*1\r\n$1\r\nk\r\n",
            &i,
        ]
        .concat();
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&want));
    }
}
