//! Which commands it answers, and that what it answers is what the server would have.
use std::time::Duration;

use tokio::time::Instant;

use super::{Near, ON, calls, count, pause, settle};
use crate::support::wire::{command, show};
use crate::support::{Fence, Redis};
use crate::{call, is};

/// What fills the server, and reads of it that may be kept.
const SETUP: &[&str] = &[
    "SET s value",
    "SET n 5 EX 1000",
    "SETBIT b 7 1",
    "HSET h f 1 g 2",
    "RPUSH l a b c b",
    "SADD set 1 2 3",
    "ZADD z 1 a 2 b 3.5 c",
    "GEOADD geo 13.361389 38.115556 Palermo 15.087269 37.502669 Catania",
    "XADD x 1-1 f v",
    "XADD x 2-1 f w",
];
const READS: &[&str] = &[
    "GET s",
    "GET missing",
    "get s",
    "STRLEN s",
    "GETRANGE s 0 2",
    "GETRANGE s 1 2",
    "SUBSTR s 0 1",
    "GETBIT b 7",
    "GETBIT b 6",
    "BITCOUNT b",
    "BITCOUNT b 0 0",
    "BITPOS b 1",
    "BITFIELD_RO b GET u8 0",
    "EXISTS s",
    "EXISTS missing",
    "EXISTS s n missing s",
    "TYPE s",
    "TYPE missing",
    "EXPIRETIME s",
    "PEXPIRETIME s",
    "HGET h f",
    "HGET h missing",
    "HMGET h f missing g",
    "HGETALL h",
    "HLEN h",
    "HEXISTS h f",
    "HEXISTS h x",
    "HKEYS h",
    "HVALS h",
    "HSTRLEN h f",
    "HGETALL missing",
    "LRANGE l 0 -1",
    "LRANGE l 1 1",
    "LLEN l",
    "LINDEX l 0",
    "LINDEX l 9",
    "LPOS l b",
    "LPOS l b COUNT 0",
    "SMEMBERS set",
    "SISMEMBER set 1",
    "SMISMEMBER set 1 9",
    "SCARD set",
    "ZSCORE z a",
    "ZSCORE z missing",
    "ZMSCORE z a missing",
    "ZRANGE z 0 -1",
    "ZRANGE z 0 -1 WITHSCORES",
    "ZCARD z",
    "ZCOUNT z 1 2",
    "ZLEXCOUNT z - +",
    "ZRANK z b",
    "ZREVRANK z b",
    "ZREVRANGE z 0 0",
    "ZRANGEBYSCORE z 1 2",
    "ZREVRANGEBYSCORE z 2 1",
    "ZRANGEBYLEX z - +",
    "ZREVRANGEBYLEX z + -",
    "GEOPOS geo Palermo",
    "GEODIST geo Palermo Catania",
    "GEOHASH geo Palermo",
    "GEOSEARCH geo FROMMEMBER Palermo BYRADIUS 200 km ASC",
    "GEORADIUS_RO geo 15 37 200 km",
    "GEORADIUSBYMEMBER_RO geo Palermo 200 km",
    "XLEN x",
    "XRANGE x - +",
    "XREVRANGE x + - COUNT 1",
    "MGET s n missing",
    "MGET s",
    "MGET n s n",
    "PEXPIRETIME n",
];

fn words(line: &str) -> Vec<u8> {
    command(&line.split(' ').collect::<Vec<_>>())
}

#[test]
fn each_read_is_answered_as_the_server_does_and_then_without_it() {
    let near = Near::start();
    for hello in ["2", "3"] {
        let (mut client, mut plain) = (near.client(), near.redis.client());
        call!(client, "HELLO", hello);
        call!(plain, "HELLO", hello);
        for line in SETUP.iter().filter(|_| hello == "2") {
            client.ask(&words(line));
        }
        settle(&mut client);
        for line in READS {
            let mut direct: Vec<Vec<u8>> = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
            let last = match &direct[0][..] {
                b"MGET" | b"EXISTS" => direct.len() - 1,
                _ => 1,
            };
            direct[1..=last].iter_mut().for_each(|key| *key = near.fence.upstream_key(&*key));
            let want = plain.ask(&command(&direct));
            // MGET and EXISTS may find all of their parts kept already.
            let first = client.ask(&words(line));
            let before = count(&mut client, "tier_hits");
            let second = client.ask(&words(line));
            assert_eq!((show(&first), show(&second)), (show(&want), show(&want)), "{line} in RESP{hello}");
            assert_eq!(count(&mut client, "tier_hits"), before + 1, "{line} in RESP{hello} is answered here");
        }
    }
}

#[test]
fn what_it_must_not_answer_goes_upstream_each_time() {
    let near = Near::start();
    let mut client = near.client();
    for line in SETUP {
        client.ask(&words(line));
    }
    settle(&mut client);
    for line in [
        "TTL s",
        "PTTL n",
        "SRANDMEMBER set",
        "HRANDFIELD h",
        "ZRANDMEMBER z",
        "HSCAN h 0",
        "SSCAN set 0",
        "OBJECT ENCODING s",
        "XINFO STREAM x",
        "TOUCH s",
        "PFCOUNT missing",
        "SINTER set set",
        "ZDIFF 1 z",
        "LCS s n",
        "DUMP s",
        "SORT_RO l ALPHA",
        "XREAD STREAMS x 0",
        "MEMORY USAGE s",
    ] {
        let name = line.split(' ').next().unwrap().to_lowercase();
        client.ask(&words(line));
        let before = (count(&mut client, "tier_hits"), count(&mut client, "tier_misses"));
        client.ask(&words(line));
        assert_eq!((count(&mut client, "tier_hits"), count(&mut client, "tier_misses")), before, "{name}");
    }
}

#[test]
fn errors_are_not_kept() {
    let near = Near::start();
    let mut client = near.client();
    call!(client, "RPUSH", "l", "a");
    settle(&mut client);
    for _ in 0..3 {
        assert!(call!(client, "GET", "l").starts_with(b"-WRONGTYPE"));
        assert!(call!(client, "GETRANGE", "l", "x", "y").starts_with(b"-"));
        is!(client, ["MGET", "l", "none"], "*2\r\n$-1\r\n$-1\r\n");
    }
    assert!(calls(&near.redis, "get") >= 3 && calls(&near.redis, "mget") >= 3, "each was asked for");
    // What MGET shows as null is no "no such key" for GET.
    assert!(call!(client, "GET", "l").starts_with(b"-WRONGTYPE"));
}

#[test]
fn databases_versions_and_arguments_are_told_apart() {
    let near = Near::start();
    let (mut two, mut three) = (near.client(), near.client());
    call!(three, "HELLO", "3");
    call!(two, "HSET", "h", "f", "1");
    call!(two, "SET", "k", "zero");
    for _ in 0..3 {
        assert_eq!(call!(two, "HGETALL", "h")[0], b'*');
        assert_eq!(call!(three, "HGETALL", "h")[0], b'%');
        is!(two, ["GET", "none"], "$-1\r\n");
        is!(three, ["GET", "none"], "_\r\n");
        is!(two, ["GETRANGE", "k", "0", "0"], "$1\r\nz\r\n");
        is!(two, ["GETRANGE", "k", "0", "1"], "$2\r\nze\r\n");
        is!(two, ["GET", "k"], "$4\r\nzero\r\n");
        is!(two, ["SELECT", "1"], "+OK\r\n");
        is!(two, ["GET", "k"], "$-1\r\n");
        is!(two, ["SELECT", "0"], "+OK\r\n");
    }
}

/// Each write, and how the server is to be seen right after it.
#[test]
fn a_read_after_a_write_sees_it() {
    let near = Near::start();
    let (mut client, mut other) = (near.client(), near.client());
    let cases: &[(&[&str], &str, &str)] = &[
        (&["SET k 1"], "APPEND k 2", "GET k"),
        (&["SET k 1"], "INCR k", "GET k"),
        (&["SET k 1"], "DEL k", "GET k"),
        (&["SET k 1"], "UNLINK k", "EXISTS k"),
        (&["SET k 1"], "GETDEL k", "GET k"),
        (&["SET k 1"], "SETRANGE k 0 z", "GET k"),
        (&["SET k 1"], "RENAME k j", "GET k"),
        (&["SET k 1", "SET j 2"], "RENAME k j", "GET j"),
        (&["SET k 1", "SET j 2"], "COPY k j REPLACE", "GET j"),
        (&["SET k 1", "SET j 2"], "MSET a 1 j 3", "GET j"),
        (&["SET k 1"], "PEXPIREAT k 1", "GET k"),
        (&["SET k 1 EX 1000"], "PERSIST k", "EXPIRETIME k"),
        (&["SET k 1"], "GETEX k PXAT 99999999999999", "PEXPIRETIME k"),
        (&["SET k 1"], "MOVE k 1", "GET k"),
        (&["SET k abc", "SET j abd"], "BITOP AND dest k j", "GET dest"),
        (&["RPUSH l a b"], "LPOP l", "LRANGE l 0 -1"),
        (&["RPUSH l a b"], "LMOVE l m LEFT RIGHT", "LRANGE m 0 -1"),
        (&["RPUSH l a b"], "BLPOP l 1", "LLEN l"),
        (&["RPUSH l a b"], "BLMOVE l m LEFT RIGHT 1", "LLEN m"),
        (&["RPUSH l 3 1 2"], "SORT l STORE sorted", "LRANGE sorted 0 -1"),
        (&["SADD s 1 2", "SADD t 2 3"], "SINTERSTORE u s t", "SMEMBERS u"),
        (&["SADD s 1 2"], "SMOVE s v 1", "SISMEMBER v 1"),
        (&["ZADD z 1 a 2 b"], "ZRANGESTORE y z 0 0", "ZCARD y"),
        (&["ZADD z 1 a 2 b"], "ZMPOP 1 z MIN", "ZCARD z"),
        (&["ZADD z 1 a 2 b"], "ZUNIONSTORE y 2 z z", "ZRANGE y 0 -1 WITHSCORES"),
        (&["GEOADD g 13 38 p"], "GEORADIUS g 13 38 10 km STORE gs", "ZCARD gs"),
        (&["HSET h f 1"], "HINCRBY h f 4", "HGET h f"),
        (&["XADD x 1-1 f v", "XGROUP CREATE x g 0"], "XTRIM x MAXLEN 0", "XLEN x"),
        (&["PFADD p a"], "PFMERGE q p", "STRLEN q"),
        (&["SET k 1"], "FLUSHDB", "GET k"),
        (&["SET k 1"], "FLUSHALL", "GET k"),
    ];
    for (setup, write, read) in cases {
        let _ = other.call(&[b"FLUSHALL"]);
        setup.iter().for_each(|line| drop(other.ask(&words(line))));
        let before = other.ask(&words(read));
        settle(&mut other);
        // Kept, by now.
        assert_eq!(other.ask(&words(read)), before);
        assert_eq!(other.ask(&words(read)), before);
        let wrote = client.ask(&words(write));
        let after = other.ask(&words(read));
        let mut direct: Vec<Vec<u8>> = read.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        direct[1] = near.fence.upstream_key(&*direct[1]);
        let want = near.redis.client().ask(&command(&direct));
        assert_eq!(show(&after), show(&want), "{read} after {write}, which said {}", show(&wrote));
        assert_ne!(show(&after), show(&before), "{write} changes {read}");
    }
}

#[test]
fn a_pipelined_read_sees_the_write_before_it() {
    let near = Near::start();
    let mut client = near.client();
    call!(client, "SET", "k", "0");
    let mut sent = Vec::new();
    let mut want = Vec::new();
    for i in 1..200 {
        sent.extend(command(&["GET", "k"]));
        sent.extend(command(&["SET", "k", &i.to_string()]));
        sent.extend(command(&["GET", "k"]));
        sent.extend(command(&["GET", "k"]));
        let reply = |n: i32| format!("${}\r\n{n}\r\n", n.to_string().len());
        want.extend([reply(i - 1), "+OK\r\n".into(), reply(i), reply(i)]);
    }
    for _ in 0..10 {
        call!(client, "SET", "k", "0");
        let got = client.pipeline(&sent, want.len());
        let got: Vec<_> = got.iter().map(|reply| show(reply)).collect();
        assert_eq!(got, want.iter().map(|reply| show(reply.as_bytes())).collect::<Vec<_>>());
    }
}

/// A read behind a write of the same client's goes where that goes, also when it is of another key: what one client sends is done in its order.
#[test]
fn a_read_behind_an_own_write_is_not_answered_before_it() {
    let near = Near::start();
    let mut client = near.client();
    call!(client, "SET", "k", "v");
    settle(&mut client);
    call!(client, "GET", "k");
    let (hits, asked) = (count(&mut client, "tier_hits"), calls(&near.redis, "get"));
    let sent = [command(&["SET", "j", "1"]), command(&["GET", "k"]), command(&["GET", "k"])].concat();
    assert_eq!(client.pipeline(&sent, 3), [&b"+OK\r\n"[..], b"$1\r\nv\r\n", b"$1\r\nv\r\n"]);
    assert_eq!((count(&mut client, "tier_hits"), calls(&near.redis, "get")), (hits, asked + 2));
    is!(client, ["GET", "k"], "$1\r\nv\r\n");
    assert_eq!(count(&mut client, "tier_hits"), hits + 1);
}

#[test]
fn a_blocking_pop_that_is_woken_later_is_seen() {
    let near = Near::start();
    let (mut blocked, mut client) = (near.client(), near.client());
    for i in 0..20 {
        blocked.send(&command(&["BLMOVE", "from", "to", "LEFT", "RIGHT", "0"]));
        near.redis.wait_for_blocked(1);
        let len = call!(client, "LLEN", "to");
        assert_eq!(call!(client, "LLEN", "to"), len);
        is!(client, ["RPUSH", "from", "x"], ":1\r\n");
        assert_eq!(blocked.reply(), b"$1\r\nx\r\n");
        is!(client, ["LLEN", "to"], format!(":{}\r\n", i + 1));
        is!(client, ["LLEN", "from"], ":0\r\n");
    }
}

#[test]
fn transactions_and_scripts_are_seen() {
    let near = Near::start();
    let (mut client, mut other) = (near.client(), near.client());
    for i in 0..30 {
        let (a, b) = (format!("a{i}"), format!("b{i}"));
        let fresh = |other: &mut crate::support::Client, what: &str, key: &str, value: &str| {
            assert_eq!(
                show(&call!(other, "GET", key)),
                show(format!("${}\r\n{value}\r\n", value.len()).as_bytes()),
                "{what} {i}"
            );
        };
        // As one block, and step by step.
        let block: Vec<u8> =
            [&["MULTI"][..], &["SET", "k", &a], &["EXEC"]].iter().flat_map(|words| command(words)).collect();
        client.pipeline(&block, 3);
        fresh(&mut other, "a block", "k", &a);
        call!(client, "MULTI");
        call!(client, "SET", "k", &b);
        // Inside it everything is queued.
        is!(client, ["GET", "k"], "+QUEUED\r\n");
        fresh(&mut other, "not yet", "k", &a);
        call!(client, "EXEC");
        fresh(&mut other, "a transaction", "k", &b);
        // A script may write what it does not declare.
        is!(client, ["EVAL", "return redis.call('SET', ARGV[1], ARGV[2])", "0", "k", &a], "+OK\r\n");
        fresh(&mut other, "a script", "k", &a);
        call!(client, "MULTI");
        call!(client, "EVAL", "return redis.call('SET', ARGV[1], ARGV[2])", "0", "k", &b);
        call!(client, "EXEC");
        fresh(&mut other, "a script in a transaction", "k", &b);
        let library =
            "#!lua name=l\nredis.register_function('set', function(k, a) return redis.call('SET', a[1], a[2]) end)";
        is!(client, ["FUNCTION", "LOAD", "REPLACE", library], "$1\r\nl\r\n");
        is!(client, ["FCALL", "set", "0", "k", &a], "+OK\r\n");
        fresh(&mut other, "a function", "k", &a);
        call!(client, "MULTI");
        call!(client, "FCALL", "set", "0", "k", &b);
        call!(client, "EXEC");
        fresh(&mut other, "a function in a transaction", "k", &b);
        fresh(&mut other, "again", "k", &b);
    }
}

#[test]
fn watch_and_tracking_see_the_upstream_themselves() {
    let near = Near::start();
    let (mut client, mut other) = (near.client(), near.client());
    call!(other, "SET", "k", "1");
    settle(&mut other);
    call!(other, "GET", "k");
    let hits = count(&mut other, "tier_hits");
    is!(client, ["WATCH", "k"], "+OK\r\n");
    is!(client, ["GET", "k"], "$1\r\n1\r\n");
    is!(client, ["UNWATCH"], "+OK\r\n");
    assert_eq!(count(&mut other, "tier_hits"), hits);
    let mut tracks = near.client();
    call!(tracks, "HELLO", "3");
    is!(tracks, ["CLIENT", "TRACKING", "ON"], "+OK\r\n");
    is!(tracks, ["GET", "k"], "$1\r\n1\r\n");
    assert_eq!(count(&mut other, "tier_hits"), hits);
    call!(other, "SET", "k", "2");
    assert_eq!(tracks.reply(), b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n");
}

#[test]
fn large_values_pass_and_are_not_kept() {
    let near = Near::with("[tier]\nenabled = true\nmax_value = \"64KiB\"\n");
    let (mut client, mut other) = (near.client(), near.client());
    for (size, kept) in [(60_000, true), (70_000, false), (3_000_000, false)] {
        let value = vec![b'v'; size];
        is!(client, ["SET", "k", &value], "+OK\r\n");
        let want = [format!("${size}\r\n").as_bytes(), &value, b"\r\n"].concat();
        settle(&mut other);
        let before = count(&mut other, "tier_hits");
        for _ in 0..3 {
            assert!(call!(other, "GET", "k") == want, "{size}");
        }
        assert_eq!(count(&mut other, "tier_hits") > before, kept, "{size}");
        // One that is streamed is a write like any other.
        let value = vec![b'w'; size];
        is!(client, ["SET", "k", &value], "+OK\r\n");
        assert!(call!(other, "GET", "k") == [format!("${size}\r\n").as_bytes(), &value, b"\r\n"].concat());
    }
}

#[test]
fn keys_expire_here_when_they_do_upstream() {
    const LIFE: Duration = Duration::from_millis(150);
    let near = Near::start();
    let mut client = near.client();
    // The server tells of no key that it has not looked at: the time alone ends what is kept.
    is!(near.redis.client(), ["DEBUG", "SET-ACTIVE-EXPIRE", "0"], "+OK\r\n");
    for _ in 0..5 {
        is!(client, ["SET", "k", "v", "PX", LIFE.as_millis().to_string()], "+OK\r\n");
        let over = Instant::now() + LIFE + Duration::from_millis(1);
        loop {
            let late = Instant::now() > over;
            let reply = call!(client, "GET", "k");
            if late {
                assert_eq!(show(&reply), "$-1\\r\\n", "it is served after its end");
                break;
            }
        }
    }
    assert!(count(&mut client, "tier_hits") > 0);
}

#[test]
fn nothing_is_kept_past_max_ttl_nor_absence_without_negative() {
    let near = Near::with("[tier]\nenabled = true\nmax_ttl = \"1ms\"\nnegative = false\n");
    let mut client = near.client();
    call!(client, "SET", "k", "v");
    for _ in 0..20 {
        is!(client, ["GET", "k"], "$1\r\nv\r\n");
        pause(Duration::from_millis(2));
        is!(client, ["GET", "none"], "$-1\r\n");
    }
    assert_eq!(count(&mut client, "tier_hits"), 0);
}

#[test]
fn a_connection_may_do_without() {
    let near = Near::start();
    let (mut client, mut other) = (near.client(), near.client());
    is!(client, ["KEYFENCE", "TIER"], "$2\r\non\r\n");
    is!(client, ["KEYFENCE", "TIER", "OFF"], "+OK\r\n");
    is!(client, ["KEYFENCE", "TIER"], "$3\r\noff\r\n");
    call!(other, "SET", "k", "v");
    settle(&mut other);
    call!(other, "GET", "k");
    call!(other, "GET", "k");
    let (hits, asked) = (count(&mut other, "tier_hits"), calls(&near.redis, "get"));
    for _ in 0..5 {
        is!(client, ["GET", "k"], "$1\r\nv\r\n");
    }
    assert_eq!((count(&mut other, "tier_hits"), calls(&near.redis, "get")), (hits, asked + 5));
    // Its writes are known all the same.
    is!(client, ["SET", "k", "w"], "+OK\r\n");
    is!(other, ["GET", "k"], "$1\r\nw\r\n");
    is!(client, ["KEYFENCE", "TIER", "on"], "+OK\r\n");
    is!(client, ["KEYFENCE", "TIER", "x"], "-ERR syntax error\r\n");
    assert!(call!(client, "KEYFENCE", "X").starts_with(b"-ERR unknown subcommand 'X'"));
    assert_eq!(call!(client, "KEYFENCE", "HELP")[0], b'*');
    let plain = Redis::start();
    let without = Fence::start_at(plain.addr(), "[tier]\nenabled = false\n");
    is!(without.client(), ["KEYFENCE", "TIER"], "$4\r\nnone\r\n");
}

#[test]
fn tenants_keep_apart_and_each_for_itself() {
    let redis = Redis::start();
    let config = format!(
        "{ON}[tenants.a]\npasswords = [\"pa\"]\ntier = true\n[tenants.b]\npasswords = [\"pb\"]\ntier = true\n[tenants.c]\npasswords = [\"pc\"]\n"
    );
    let fence = Fence::with_tenants(redis.addr(), &config);
    fence.process().unwrap().wait_for_lines(1, "the tier is on");
    let mut clients: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            let mut client = fence.client();
            is!(client, ["AUTH", name, format!("p{name}")], "+OK\r\n");
            client
        })
        .collect();
    for (client, name) in clients.iter_mut().zip(["a", "b", "c"]) {
        is!(client, ["SET", "k", name], "+OK\r\n");
    }
    for _ in 0..4 {
        for (client, name) in clients.iter_mut().zip(["a", "b", "c"]) {
            is!(client, ["GET", "k"], format!("$1\r\n{name}\r\n"));
        }
    }
    assert!(count(&mut clients[0], "tier_hits") > 0 && count(&mut clients[1], "tier_hits") > 0);
    let info = call!(clients[2], "INFO", "keyfence");
    assert!(String::from_utf8_lossy(&info).contains("tier:off"), "{}", show(&info));
}

#[test]
fn l4_a_large_mget_streams_and_slow_readers_are_waited_for() {
    let near = Near::with(&format!("client_output_limit = \"8MiB\"\n{ON}"));
    let mut client = near.client();
    let value = "v".repeat(900_000);
    is!(client, ["SET", "k", value], "+OK\r\n");
    settle(&mut client);
    call!(client, "GET", "k");
    call!(client, "GET", "k");
    assert!(count(&mut client, "tier_hits") > 0);
    let process = near.fence.process().unwrap();
    process.reset_peak();
    let before = process.memory("VmHWM");
    // 100 MB, made of one value that is kept.
    let mget: Vec<&str> = std::iter::once("MGET").chain(std::iter::repeat_n("k", 110)).collect();
    client.send(&command(&mget));
    assert_eq!(client.reply().len(), 110 * (900_000 + "$900000\r\n\r\n".len()) + "*110\r\n".len());
    // As many single ones, which the client reads when all have been asked for.
    client.send(&command(&["GET", "k"]).repeat(110));
    pause(Duration::from_millis(100));
    for _ in 0..110 {
        assert_eq!(client.reply().len(), 900_000 + "$900000\r\n\r\n".len());
    }
    let grown = process.memory("VmHWM").saturating_sub(before);
    assert!(grown < 64 * 1024, "grew by {grown} KiB");
}
