//! The whole path of a command in one process: a client's bytes, keyfence with one worker, a real Redis, and back. It prints CPU time of
//! keyfence's own thread and allocations per command.
//!
//! ```text
//! cargo bench --bench path [-- get|set|mget|mset|hit|mhit [pipeline [commands]]]
//! ```
//!
//! `hit` and `mhit` are GET and MGET with the in-process tier, which answers them.
//!
//! `benches/instructions.py` runs it under callgrind, twice with different numbers of commands, for instructions per command.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "it prints its figures")]

use std::{
    alloc::System,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
};

use keyfence::config::{CliOverrides, Config};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::runtime::{Builder, LocalOptions};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KEY: &str = "key:000000000042";

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn connect(port: u16) -> TcpStream {
    loop {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.set_nodelay(true).unwrap();
            return stream;
        }
        thread::yield_now();
    }
}

fn frame(words: &[String]) -> Vec<u8> {
    let body: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{}\r\n{body}", words.len()).into_bytes()
}

/// A request and the reply to it.
fn load(name: &str) -> (Vec<u8>, Vec<u8>) {
    let value = "v".repeat(64);
    let bulk = format!("$64\r\n{value}\r\n");
    let key = |i: usize| format!("{KEY}:{i}");
    let words = |head: &str, rest: Vec<String>| frame(&[vec![head.to_owned()], rest].concat());
    match name {
        "get" | "hit" => (words("GET", vec![key(0)]), bulk.into_bytes()),
        "set" => (words("SET", vec![key(0), value]), b"+OK\r\n".to_vec()),
        "mget" | "mhit" => {
            (words("MGET", (0..10).map(key).collect()), format!("*10\r\n{}", bulk.repeat(10)).into_bytes())
        }
        _ => (words("MSET", (0..10).flat_map(|i| [key(i), value.clone()]).collect()), b"+OK\r\n".to_vec()),
    }
}

fn exchange(stream: &mut TcpStream, batch: &[u8], reply: &[u8], rounds: usize, buf: &mut [u8]) {
    for _ in 0..rounds {
        stream.write_all(batch).unwrap();
        stream.read_exact(&mut buf[..reply.len()]).unwrap();
        assert_eq!(&buf[..reply.len()], reply);
    }
}

/// CPU time of the thread that serves, in nanoseconds; 0 where the system does not tell.
fn served() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("worker")))
        .filter_map(|task| {
            fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}

fn measure(client: &mut TcpStream, name: &str, depth: usize, commands: usize) {
    let (request, reply) = load(name);
    let (batch, replies) = (request.repeat(depth), reply.repeat(depth));
    let mut buf = vec![0; replies.len()];
    exchange(client, &batch, &replies, 200, &mut buf);
    let rounds = commands.div_ceil(depth);
    let (region, before) = (Region::new(ALLOCATOR), served());
    exchange(client, &batch, &replies, rounds, &mut buf);
    let (change, cpu) = (region.change(), served() - before);
    let done = rounds * depth;
    println!(
        "{name} pipeline {depth}: {} ns of CPU, {:.4} allocations per command ({done} commands)",
        cpu / done as u64,
        (change.allocations + change.reallocations) as f64 / done as f64
    );
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let (upstream, port) = (free_port(), free_port());
    let _server = Server(
        Command::new("redis-server")
            .args(["--port", &upstream.to_string(), "--save", "", "--bind", "127.0.0.1"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    drop(connect(upstream));
    let settings = CliOverrides {
        listen: vec![format!("127.0.0.1:{port}")],
        upstream: Some(format!("redis://127.0.0.1:{upstream}")),
        workers: Some("1".into()),
        tier: args.first().filter(|name| name.ends_with("hit")).map(|_| "64MiB".into()),
        admin: Some("127.0.0.1:0".into()),
        ..CliOverrides::default()
    };
    let variables = [("KEYFENCE_UPSTREAM__ACL_WALL".into(), "off".into())];
    let config = Config::read(None, variables.into_iter(), &settings).unwrap();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
        runtime
            .block_on(keyfence::server::run(
                config,
                None,
                std::sync::Arc::default(),
                keyfence::server::Inherited::default(),
                || Err("not in a benchmark".into()),
            ))
            .unwrap();
    });
    let mut client = connect(port);
    exchange(&mut client, &load("mset").0, b"+OK\r\n", 1, &mut [0; 8]);
    let number = |i: usize, otherwise: usize| args.get(i).map_or(otherwise, |n| n.parse().unwrap());
    match args.first() {
        Some(name) => measure(&mut client, name, number(1, 1), number(2, 200_000)),
        None => {
            for name in ["get", "set", "mget", "mset"] {
                for (depth, commands) in [(1, 30_000), (16, 200_000), (1000, 500_000)] {
                    measure(&mut client, name, depth, commands);
                }
            }
        }
    }
}
