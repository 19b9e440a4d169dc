//! The programs that come with Redis.
use std::io::Write;
use std::process::{Command, Stdio};

use super::World;
use crate::call;
use crate::is;
use crate::support::wire::{command, show};

impl World {
    fn cli(&self, args: &[&str]) -> String {
        let addr = self.fence.addr();
        self.run(
            Command::new("redis-cli").args(["-h", &addr.ip().to_string(), "-p", &addr.port().to_string()]).args(args),
        )
    }

    /// Feeds `input` to redis-cli.
    fn cli_with(&self, args: &[&str], input: &[u8]) -> String {
        let addr = self.fence.addr();
        let mut child = Command::new("redis-cli")
            .args(["-h", &addr.ip().to_string(), "-p", &addr.port().to_string()])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "redis-cli {args:?}: {text}");
        text
    }

    fn benchmark(&self, args: &[&str]) -> String {
        let addr = self.fence.addr();
        let text = self.run(
            Command::new("redis-benchmark")
                .args(["-h", &addr.ip().to_string(), "-p", &addr.port().to_string(), "-q"])
                .args(args),
        );
        assert!(!text.contains("Error") && !text.contains("-ERR") && !text.contains("NOPERM"), "{text}");
        text
    }
}

#[test]
fn redis_cli() {
    let world = World::new();
    for version in [&["-2"][..], &["-3"]] {
        let cli = |args: &[&str]| world.cli(&[version, args].concat());
        assert_eq!(cli(&["SET", "k", "v"]), "OK\n");
        assert_eq!(cli(&["GET", "k"]), "v\n");
        assert_eq!(cli(&["--no-raw", "GET", "missing"]), "(nil)\n");
        assert_eq!(cli(&["HSET", "h", "f", "v"]), "1\n");
        assert_eq!(cli(&["HGETALL", "h"]).split_whitespace().collect::<Vec<_>>(), ["f", "v"]);
        assert!(cli(&["INFO", "server"]).contains("redis_version"));
        assert!(cli(&["NOSUCH"]).contains("ERR unknown command 'NOSUCH'"));
        assert!(cli(&["-n", "1", "DBSIZE"]).contains('0'));
        // As typed by hand.
        let typed = world.cli_with(version, b"PING\nSET typed \"a b\"\nGET typed\nMULTI\nINCR n\nEXEC\nSELECT 1\nDBSIZE\nHELP\nDEL typed\nSELECT 0\nDEL typed n\n");
        assert!(typed.contains("PONG") && typed.contains("a b") && typed.contains("QUEUED"), "{typed}");
        assert_eq!(cli(&["DEL", "k", "h"]), "2\n");
    }
    world.foreign_keys_are_untouched();
}

#[test]
fn redis_cli_scans() {
    let world = World::new();
    let mut client = world.fence.client();
    for i in 0..500 {
        is!(client, ["SET", format!("s:{i}"), "x".repeat(i)], "+OK\r\n");
        is!(client, ["RPUSH", format!("l:{}", i % 10), "x"], format!(":{}\r\n", i / 10 + 1));
    }
    let mut names: Vec<String> = world.cli(&["--scan", "--pattern", "s:*"]).lines().map(str::to_owned).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 500);
    assert!(names.iter().all(|name| name.starts_with("s:")));
    for version in ["-2", "-3"] {
        let report = world.cli(&[version, "--bigkeys"]);
        assert!(report.contains("Sampled 510 keys"), "{report}");
        assert!(report.contains("\"s:499\"' has 499 bytes") && !report.contains("keyfence:"), "{report}");
    }
    let report = world.cli(&["--memkeys"]);
    assert!(report.contains("Sampled 510 keys"), "{report}");
    world.foreign_keys_are_untouched();
}

#[test]
fn redis_cli_pipe() {
    let world = World::new();
    let bytes: Vec<u8> = (0..100_000).flat_map(|i| command(&["SET", &format!("p:{i}"), &i.to_string()])).collect();
    let report = world.cli_with(&["--pipe"], &bytes);
    assert!(report.contains("errors: 0, replies: 100000"), "{report}");
    is!(world.fence.client(), ["DBSIZE"], ":100000\r\n");
    is!(world.fence.client(), ["GET", "p:99999"], "$5\r\n99999\r\n");
    world.foreign_keys_are_untouched();
}

#[test]
fn redis_benchmark() {
    let world = World::new();
    let report = world.benchmark(&["-n", "2000"]);
    for test in [
        "PING_INLINE: ",
        "SET: ",
        "GET: ",
        "INCR: ",
        "LPUSH: ",
        "SPOP: ",
        "ZADD: ",
        "ZPOPMIN: ",
        "LRANGE_600 (first 600 elements): ",
        "MSET (10 keys): ",
    ] {
        assert!(report.contains(test), "{test} in {report}");
    }
    world.benchmark(&["-n", "20000", "-P", "16", "-t", "set,get,incr,lpush,lpop,sadd,hset,zadd,mset"]);
    world.benchmark(&["-n", "20000", "-c", "500", "-t", "set,get"]);
    world.benchmark(&["-n", "20000", "-c", "100", "-P", "64", "-r", "1000", "-d", "4096", "-t", "set,get"]);
    world.benchmark(&["-n", "5000", "-3", "-t", "set,get,zadd"]);
    let keys = call!(world.redis.client(), "KEYS", "*");
    let outside = show(&keys)
        .split("\\r\\n")
        .filter(|word| word.contains(':') && !word.contains("keyfence:") && !word.contains("foreign:"))
        .count();
    assert!(outside == 0 || world.fence.process().is_none(), "{}", show(&keys));
    world.foreign_keys_are_untouched();
}
