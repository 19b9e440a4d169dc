//! Large values stream through: byte for byte, in bounded memory.
use std::io::{Read, Write};
use std::thread;

use crate::is;
use crate::support::wire::bulk;
use crate::support::{Fence, PATIENCE, Redis};

/// How much the process may grow, in KiB.
const BOUND: u64 = 64 << 10;

/// Runs `work` and checks by how much the process grew meanwhile.
fn bounded(fence: &Fence, what: &str, work: impl FnOnce()) {
    // One small exchange first, so that the connections are there.
    is!(fence.client(), ["SET", "small", "v"], "+OK\r\n");
    let before = fence.process().map(|process| process.memory("VmRSS"));
    fence.process().inspect(|process| process.reset_peak());
    work();
    if let (Some(process), Some(before)) = (fence.process(), before) {
        let grown = process.memory("VmHWM").saturating_sub(before);
        eprintln!("{what}: grew by {grown} KiB");
        assert!(grown < BOUND, "{what}: grew by {grown} KiB from {before} KiB");
    }
}

#[test]
fn a_hundred_megabytes_there_and_back() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let value: Vec<u8> = (0..100_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    let mut client = fence.client();
    bounded(&fence, "SET of 100 MB", || {
        let head = format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n", value.len());
        client.send(head.as_bytes());
        client.send(&value);
        client.send(b"\r\n");
        assert_eq!(client.reply(), b"+OK\r\n");
    });
    bounded(&fence, "GET of 100 MB", || {
        client.send(b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n");
        let got = client.reply();
        assert!(got == bulk(&value), "the value came back changed");
    });
    is!(redis.client(), ["STRLEN", fence.upstream_key("big")], format!(":{}\r\n", value.len()));
    is!(client, ["PING"], "+PONG\r\n");
}

#[test]
fn half_a_gigabyte() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    const SIZE: usize = 512 << 20;
    is!(redis.client(), ["SETRANGE", fence.upstream_key("huge"), (SIZE - 1).to_string(), "x"], format!(":{SIZE}\r\n"));
    let mut client = fence.client();
    bounded(&fence, "GET of 512 MB", || {
        client.send(b"*2\r\n$3\r\nGET\r\n$4\r\nhuge\r\n*1\r\n$4\r\nPING\r\n");
        let stream = client.stream();
        let head = format!("${SIZE}\r\n");
        let mut got = vec![0; head.len()];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, head.as_bytes());
        let (mut left, mut chunk) = (SIZE, vec![0; 1 << 20]);
        while left > 0 {
            let n = chunk.len().min(left);
            stream.read_exact(&mut chunk[..n]).unwrap();
            left -= n;
            let end = if left == 0 { b'x' } else { 0 };
            assert!(chunk[..n - 1].iter().all(|&byte| byte == 0) && chunk[n - 1] == end);
        }
        let mut rest = [0; 9];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"\r\n+PONG\r\n");
    });
    is!(redis.client(), ["FLUSHALL"], "+OK\r\n");
    bounded(&fence, "SET of 512 MB", || {
        client.send(format!("*3\r\n$3\r\nSET\r\n$4\r\nhuge\r\n${SIZE}\r\n").as_bytes());
        let chunk = vec![b'y'; 1 << 20];
        (0..SIZE >> 20).for_each(|_| client.send(&chunk));
        client.send(b"\r\n");
        assert_eq!(client.reply(), b"+OK\r\n");
    });
    is!(redis.client(), ["STRLEN", fence.upstream_key("huge")], format!(":{SIZE}\r\n"));
}

#[test]
fn one_clients_large_value_holds_up_no_other() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let mut large = fence.client();
    is!(large, ["SET", "large", vec![b'x'; 50 << 20]], "+OK\r\n");
    // Asks and does not read; sends half of a large value and no more.
    large.send(b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n");
    let mut half = fence.client();
    half.send(format!("*3\r\n$3\r\nSET\r\n$5\r\nother\r\n${}\r\n", 10 << 20).as_bytes());
    half.send(&vec![b'y'; 5 << 20]);
    let mut works = fence.client();
    works.stream().set_read_timeout(Some(PATIENCE)).unwrap();
    for i in 0..500 {
        is!(works, ["SET", "k", i.to_string()], "+OK\r\n");
        is!(works, ["GET", "k"], bulk(i.to_string()));
    }
    assert!(large.reply().len() > 50 << 20);
    drop(half);
    is!(works, ["EXISTS", "other"], ":0\r\n");
    // Several at once, both ways.
    thread::scope(|scope| {
        for i in 0..4_u8 {
            let fence = &fence;
            scope.spawn(move || {
                let (mut client, key, value) = (fence.client(), [b'a' + i], vec![b'a' + i; 8 << 20]);
                for _ in 0..3 {
                    is!(client, ["SET", key, value], "+OK\r\n");
                    assert!(client.call(&[b"GET", &key]) == bulk(&value));
                }
            });
        }
    });
}

#[test]
fn large_values_in_every_shape() {
    let redis = Redis::start();
    let fence = Fence::start(&redis);
    let mut client = fence.client();
    let value = vec![b'v'; 3 << 20];
    let name = vec![b'n'; 1 << 20];
    // A large name, a large reply with a name in it, a large error text, large arguments among small ones, in a pipeline.
    is!(client, ["SET", name, value], "+OK\r\n");
    assert!(client.call(&[b"GET", &name]) == bulk(&value));
    is!(redis.client(), ["EXISTS", fence.upstream_key(&name)], ":1\r\n");
    assert!(client.call(&[b"KEYS", b"*"]) == [b"*1\r\n".to_vec(), bulk(&name)].concat());
    is!(client, ["RPUSH", name.repeat(2), value], ":1\r\n");
    let popped = client.call(&[b"BLPOP", &name.repeat(2), b"0"]);
    assert!(popped == [b"*2\r\n".to_vec(), bulk(name.repeat(2)), bulk(&value)].concat());
    is!(client, ["MULTI"], "+OK\r\n");
    is!(client, ["SET", "k", value], "+QUEUED\r\n");
    is!(client, ["GET", "k"], "+QUEUED\r\n");
    is!(client, ["RPUSH", "q", value], "+QUEUED\r\n");
    is!(client, ["LMPOP", "1", "q", "LEFT"], "+QUEUED\r\n");
    let done = client.call(&[b"EXEC"]);
    assert!(
        done == [b"*4\r\n+OK\r\n".to_vec(), bulk(&value), b":1\r\n*2\r\n$1\r\nq\r\n*1\r\n".to_vec(), bulk(&value)]
            .concat()
    );
    assert!(client.call(&[b"ECHO", &value]) == bulk(&value));
    is!(client, ["MSET", "a", value, "b", "small", "c", value], "+OK\r\n");
    assert!(
        client.call(&[b"MGET", b"a", b"b", b"c"])
            == [b"*3\r\n".to_vec(), bulk(&value), bulk("small"), bulk(&value)].concat()
    );
    is!(client, ["XADD", "s", "1-1", "f", value], bulk("1-1"));
    let read = client.call(&[b"XREAD", b"STREAMS", b"s", b"0"]);
    let want = [b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n".to_vec(), bulk(&value)].concat();
    assert!(read == want);
    let mut writer = client.stream().try_clone().unwrap();
    writer.write_all(&crate::support::wire::command(&[&b"NOSUCH"[..], &value])).unwrap();
    assert!(client.reply().starts_with(b"-ERR unknown command 'NOSUCH'"));
    is!(client, ["PING"], "+PONG\r\n");
}
