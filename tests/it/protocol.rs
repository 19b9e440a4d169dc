//! What clients may send: well-formed, odd and hostile bytes. The threats T1 to T12 of the isolation notes, each by its number.
//!
//! Where plain Redis is right, its bytes are the expectation; where it is lax, the text says what is wanted instead.
use crate::is;
use crate::support::wire::{bulk, command, show};
use crate::support::{Client, Fence, Redis, target_is_plain};

mod hostile;

/// A plain server, and keyfence in front of another.
struct World {
    plain: Redis,
    upstream: Redis,
    fence: Fence,
}

impl World {
    fn new() -> Self {
        let (plain, upstream) = (Redis::start(), Redis::start());
        let fence = Fence::start(&upstream);
        Self { plain, upstream, fence }
    }

    /// All that keyfence answers to `bytes` until it closes, the client's side being closed after them.
    fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        exchange(self.fence.client(), bytes)
    }

    /// keyfence must answer `bytes` as plain Redis does, to the end of the connection.
    fn same(&self, bytes: &[u8]) {
        let (straight, through) = (exchange(self.plain.client(), bytes), self.answer(bytes));
        assert_eq!(show(&through), show(&straight), "sent {}", show(bytes));
    }

    /// keyfence must refuse `bytes` with a protocol error and close, and not carry out the PING behind them.
    fn refused(&self, bytes: &[u8]) {
        let answer = self.answer(&[bytes, b"\r\nPING\r\n"].concat());
        assert!(
            answer.is_empty() || answer.starts_with(b"-ERR Protocol error"),
            "sent {}, got {}",
            show(bytes),
            show(&answer)
        );
        assert!(!show(&answer).contains("PONG"), "sent {}, got {}", show(bytes), show(&answer));
    }
}

fn exchange(mut client: Client, bytes: &[u8]) -> Vec<u8> {
    // Either side may close first.
    client.send_lossy(bytes);
    client.finish_lossy();
    client.read_to_end()
}

#[test]
fn t1_bytes_in_an_argument_are_never_a_command() {
    let world = World::new();
    let (mut client, mut upstream) = (world.fence.client(), world.upstream.client());
    is!(upstream, ["SET", "foreign", "v"], "+OK\r\n");
    for key in ["a\r\nFLUSHALL\r\n", "a\nFLUSHALL\n", "\r\n*1\r\n$8\r\nFLUSHALL\r\n", "$5\r\n"] {
        is!(client, ["SET", key, key], "+OK\r\n");
        is!(client, ["GET", key], bulk(key));
        is!(upstream, ["GET", world.fence.upstream_key(key)], bulk(key));
        is!(client, ["DEL", key], ":1\r\n");
    }
    client.send(b"SET \"a\\r\\nFLUSHALL\\r\\n\" v\r\n");
    assert_eq!(client.reply(), b"+OK\r\n");
    is!(upstream, ["GET", world.fence.upstream_key("a\r\nFLUSHALL\r\n")], "$1\r\nv\r\n");
    is!(upstream, ["DBSIZE"], ":2\r\n");
}

#[test]
fn t2_inline_commands() {
    let world = World::new();
    for bytes in [
        &b"PING\r\n"[..],
        b"PING\nPING\n",
        b"\r\n\r\n\n\nPING\r\n",
        b"  PING   \r\n",
        b"SET k v\r\nGET k\r\n",
        b"SET \"a b\" 'c d'\r\nGET \"a b\"\r\n",
        b"SET \"\\x41\\n\\t\\\\\" \"\\xff\\x00\"\r\nGET \"A\\n\\t\\\\\"\r\nKEYS A*\r\n",
        b"SET '\\'' x\r\nGET \"'\"\r\n",
        b"ECHO \"\"\r\nECHO ''\r\n",
        b"PING\t\x0bx\r\n",
        b"SET \"unbalanced v\r\nPING\r\n",
        b"SET 'unbalanced v\r\nPING\r\n",
        b"SET \"a\"b v\r\nPING\r\n",
        b"PING \"\\\r\nPING\r\n",
        b"nosuch a b\r\nPING\r\n",
        b"PING\r\n*1\r\n$4\r\nPING\r\nPING\r\n",
        b"ECHO \xff\xfe\r\nPING\r\n",
    ] {
        world.same(bytes);
    }
    let fits = [b"ECHO ".to_vec(), vec![b'x'; 60_000], b"\r\n".to_vec()].concat();
    world.same(&fits);
    world.same(&vec![b'x'; 70_000]);
    world.same(&vec![b'x'; 200_000]);
}

#[test]
fn t3_a_bulk_string_ends_with_crlf_and_nothing_else() {
    let world = World::new();
    if target_is_plain() {
        return;
    }
    for bytes in [
        &b"*1\r\n$4\r\nPINGXX"[..],
        b"*1\r\n$4\r\nPING\n\n",
        b"*2\r\n$4\r\nECHO\r\n$1\r\nabc",
        b"*1\r\n$3\r\nPING\r\n",
        b"*1\r\n$5\r\nPING\r\n\n",
    ] {
        world.refused(bytes);
    }
}

#[test]
fn t4_lengths() {
    let world = World::new();
    for bytes in [
        &b"*0\r\nPING\r\n"[..],
        b"*-1\r\nPING\r\n",
        b"*2147483648\r\nPING\r\n",
        b"*99999999999999999999\r\nPING\r\n",
        b"*x\r\nPING\r\n",
        b"*+1\r\n$4\r\nPING\r\n",
        b"*01\r\n$4\r\nPING\r\n",
        b"* 1\r\n$4\r\nPING\r\n",
        b"*1 \r\n$4\r\nPING\r\n",
        b"*\r\nPING\r\n",
        b"*1\r\n$-1\r\nPING\r\n",
        b"*1\r\n$536870913\r\nPING\r\n",
        b"*1\r\n$99999999999999999999\r\nPING\r\n",
        b"*1\r\n$+4\r\nPING\r\n",
        b"*1\r\n$04\r\nPING\r\n",
        b"*1\r\n$ 4\r\nPING\r\n",
        b"*1\r\n$\r\nPING\r\n",
        b"*1\r\n$x\r\nPING\r\n",
        b"*1\r\n$0\r\n\r\nPING\r\n",
        b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
    ] {
        world.same(bytes);
    }
    let header = [b"*".to_vec(), vec![b'1'; 70_000]].concat();
    world.same(&header);
    world.same(&[&b"*1\r\n$"[..], &vec![b'1'; 70_000]].concat());
}

#[test]
fn t5_only_bulk_strings_are_arguments() {
    let world = World::new();
    for bytes in [
        &b"*1\r\n*1\r\n$4\r\nPING\r\n"[..],
        b"*1\r\n+PING\r\nPING\r\n",
        b"*1\r\n:1\r\nPING\r\n",
        b"*1\r\n=8\r\ntxt:PING\r\nPING\r\n",
        b"*2\r\n$4\r\nECHO\r\n%1\r\n",
        b"*1\r\n\r\nPING\r\n",
        b"*1\r\n\xff4\r\nPING\r\n",
    ] {
        world.same(bytes);
    }
    // Plain Redis takes a NUL for the end of what it has read, and waits for ever.
    if !target_is_plain() {
        world.refused(b"*1\r\n\0");
    }
    // Plain Redis takes these for inline commands: unknown ones, or a close.
    for first in ["%1", ">1", "|1", "~1", "+PING", "-ERR", ":1", "$4", "_", "#t", "(1", "=4"] {
        let answer = world.answer(format!("{first}\r\n$4\r\nPING\r\n").as_bytes());
        assert!(answer.is_empty() || answer.starts_with(b"-ERR "), "{first}: {}", show(&answer));
    }
}

#[test]
fn t6_any_byte_is_data() {
    let world = World::new();
    let (mut client, mut upstream) = (world.fence.client(), world.upstream.client());
    let every: Vec<u8> = (0..=255).collect();
    is!(client, ["SET", every, every], "+OK\r\n");
    is!(client, ["GET", every], bulk(&every));
    is!(upstream, ["GET", world.fence.upstream_key(&every)], bulk(&every));
    is!(client, ["KEYS", "*"], [&b"*1\r\n"[..], &bulk(&every)].concat());
    // Errors quote what was sent, on one line.
    for word in [&b"no\r\n+INJECTED\r\n"[..], b"no\nsuch", b"\xff\xfe", b"a\0b"] {
        world.same(&[command(&[word, b"x\r\ny"]), command(&["PING"])].concat());
        world.same(&[command(&[&b"CLIENT"[..], word]), command(&["PING"])].concat());
    }
}

#[test]
fn t7_a_refusal_is_answered_in_its_place() {
    let world = World::new();
    let mut client = world.fence.client();
    let mut bytes = Vec::new();
    for i in 0..500 {
        bytes.extend(command(&["SET", "k", &i.to_string()]));
        bytes.extend(command(&["DEBUG", "SLEEP", "0"]));
        bytes.extend(command(&["CONFIG", "SET", "maxmemory", "0"]));
        bytes.extend(command(&["NOSUCH"]));
        bytes.extend(command(&["GET", "k"]));
    }
    let replies = client.pipeline(&bytes, 2500);
    for (i, five) in replies.chunks(5).enumerate() {
        assert_eq!(show(&five[0]), "+OK\\r\\n");
        if !target_is_plain() {
            assert_eq!(show(&five[1]), "-NOPERM User default has no permissions to run the \\'debug\\' command\\r\\n");
            assert_eq!(
                show(&five[2]),
                "-NOPERM User default has no permissions to run the \\'config|set\\' command\\r\\n"
            );
        }
        assert_eq!(show(&five[3]), "-ERR unknown command \\'NOSUCH\\', with args beginning with: \\r\\n");
        assert_eq!(five[4], bulk(i.to_string()));
    }
}

#[test]
fn t8_one_byte_at_a_time() {
    let world = World::new();
    let mut client = world.fence.client();
    let bytes = [
        command(&["SET", "key", "value"]),
        command(&["GET", "key"]),
        b"PING inline\r\n".to_vec(),
        command(&["KEYS", "*"]),
        command(&["RPUSH", "l", "a"]),
        command(&["BLPOP", "l", "0"]),
    ]
    .concat();
    for byte in bytes {
        client.send(&[byte]);
    }
    let replies: Vec<u8> = (0..6).flat_map(|_| client.reply()).collect();
    assert_eq!(
        show(&replies),
        show(b"+OK\r\n$5\r\nvalue\r\n$6\r\ninline\r\n*1\r\n$3\r\nkey\r\n:1\r\n*2\r\n$1\r\nl\r\n$1\r\na\r\n")
    );
}

#[test]
fn t8_half_a_request_then_silence() {
    let world = World::new();
    let whole = command(&["SET", "key", "value"]);
    let mut waiting: Vec<Client> = (1..whole.len())
        .map(|cut| {
            let mut client = world.fence.client();
            client.send(&whole[..cut]);
            client
        })
        .collect();
    let mut other = world.fence.client();
    for i in 0..100 {
        is!(other, ["SET", "other", i.to_string()], "+OK\r\n");
        is!(other, ["GET", "other"], bulk(i.to_string()));
    }
    is!(other, ["EXISTS", "key"], ":0\r\n");
    for (client, cut) in waiting.iter_mut().zip(1..) {
        client.send(&whole[cut..]);
        assert_eq!(client.reply(), b"+OK\r\n");
    }
}

#[test]
fn t9_web_requests_are_cut_off() {
    let world = World::new();
    // Redis carries out what stands before the Host line.
    let answer = world.answer(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nSET k v\r\n");
    assert!(
        answer.is_empty() || answer == b"-ERR wrong number of arguments for 'get' command\r\n",
        "{}",
        show(&answer)
    );
    for bytes in [
        &b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET k v\r\n"[..],
        b"post / HTTP/1.1\r\nX: y\r\n\r\nSET k v\r\n",
        b"Host: localhost\r\nSET k v\r\n",
    ] {
        world.same(bytes);
    }
    is!(world.fence.client(), ["EXISTS", "k"], ":0\r\n");
}

#[test]
fn t12_another_protocol_on_the_port() {
    let world = World::new();
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for bytes in [&hello[..], b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 6379", b"ECHO a\0b"] {
        if !target_is_plain() {
            world.refused(bytes);
        }
    }
    // The binary form of the PROXY header has a QUIT in it.
    let answer = world.answer(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\r\nPING\r\n");
    assert!(!show(&answer).contains("PONG"), "{}", show(&answer));
}
