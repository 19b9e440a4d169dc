//! In steady state a GET or SET costs no allocation, from the client's bytes to the reply: counted over a whole keyfence in this process.

use std::{
    alloc::System,
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

/// Stretches that are counted one by one at each depth.
const STRETCHES: usize = 40;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map(|a| a.port()).expect("a free port")
}

fn connect(port: u16) -> TcpStream {
    loop {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.set_nodelay(true).expect("a socket");
            return stream;
        }
        thread::yield_now();
    }
}

/// Sends `batch` `rounds` times and reads `reply` to each.
fn exchange(stream: &mut TcpStream, batch: &[u8], reply: &[u8], rounds: usize, buf: &mut [u8]) {
    for _ in 0..rounds {
        stream.write_all(batch).expect("written");
        stream.read_exact(&mut buf[..reply.len()]).expect("answered");
        assert_eq!(&buf[..reply.len()], reply);
    }
}

#[test]
fn get_and_set_allocate_nothing_in_steady_state() {
    in_steady_state(false);
    // With the tier: a SET is a write that it has to know of, a GET is answered from it.
    in_steady_state(true);
}

fn in_steady_state(tier: bool) {
    let kind = if tier { "with a tier" } else { "without one" };
    let (upstream, port) = (free_port(), free_port());
    let _server = Server(
        Command::new("redis-server")
            .args(["--port", &upstream.to_string(), "--save", "", "--bind", "127.0.0.1"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed"),
    );
    drop(connect(upstream));
    let settings = CliOverrides {
        listen: vec![format!("127.0.0.1:{port}")],
        upstream: Some(format!("redis://127.0.0.1:{upstream}")),
        workers: Some("1".into()),
        // All is counted, and looked at once a second.
        admin: Some("127.0.0.1:0".into()),
        tier: tier.then(|| "16MiB".into()),
        ..CliOverrides::default()
    };
    let config = Config::read(None, [("KEYFENCE_UPSTREAM__ACL_WALL".into(), "off".into())].into_iter(), &settings)
        .expect("valid settings");
    thread::spawn(move || {
        let runtime =
            Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).expect("a runtime");
        runtime
            .block_on(keyfence::server::run(
                config,
                None,
                std::sync::Arc::default(),
                keyfence::server::Inherited::default(),
                || Err("not in this test".into()),
            ))
            .expect("served");
    });
    let mut client = connect(port);
    let value = [b'v'; 64];
    let set = |key: &[u8]| [b"*3\r\n$3\r\nSET\r\n$3\r\n", key, b"\r\n$64\r\n", &value, b"\r\n"].concat();
    exchange(&mut client, &set(b"key"), b"+OK\r\n", 1, &mut [0; 5]);
    // A key that is written all the time is not kept: another one is read.
    let set = set(if tier { b"two" } else { b"key" });
    let get = b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n";
    let bulk = [&b"$64\r\n"[..], &value, b"\r\n"].concat();
    let mut buf = vec![0; 1 << 20];
    for depth in [1, 16, 200] {
        let (sets, oks) = (set.repeat(depth), b"+OK\r\n".repeat(depth));
        let (gets, values) = (get.repeat(depth), bulk.repeat(depth));
        let mut both = |rounds| {
            exchange(&mut client, &sets, &oks, rounds, &mut buf);
            exchange(&mut client, &gets, &values, rounds, &mut buf);
        };
        let rounds = (250 / depth).max(10);
        both(rounds * 10);
        // What the clock does now and then, and how much of that falls into this run, is not the commands': most of many short
        // stretches must be free of allocations, which nothing that grows with the commands would leave.
        let free = (0..STRETCHES)
            .filter(|_| {
                let region = Region::new(ALLOCATOR);
                both(rounds);
                let change = region.change();
                change.allocations + change.reallocations == 0
            })
            .count();
        assert!(
            free * 2 > STRETCHES,
            "{kind}, at {depth}: {free} of {STRETCHES} stretches of {} commands are free",
            500 * depth
        );
    }
}
