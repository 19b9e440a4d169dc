//! One tracking connection takes over from another while what the first was told is still on its way.
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::{ON, settle};
use crate::is;
use crate::support::{Fence, Redis, free_addr};

/// A connection through a [`Relay`].
#[derive(Default)]
struct Line {
    /// It asked to be told of changes.
    tracks: AtomicBool,
    /// How often it asked for a sign of life.
    pings: AtomicUsize,
    /// What the server says stays here.
    held: AtomicBool,
    /// keyfence has closed it.
    closed: AtomicBool,
}

/// Hands on bytes both ways, pushes too.
struct Relay {
    addr: SocketAddr,
    lines: Arc<Mutex<Vec<Arc<Line>>>>,
}

impl Relay {
    fn start(real: SocketAddr) -> Self {
        let addr = free_addr();
        let listener = TcpListener::bind(addr).unwrap();
        let this = Self { addr, lines: Arc::default() };
        let lines = Arc::clone(&this.lines);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let (far, line) = (TcpStream::connect(real).unwrap(), Arc::new(Line::default()));
                lines.lock().unwrap().push(Arc::clone(&line));
                let back = (far.try_clone().unwrap(), near.try_clone().unwrap(), Arc::clone(&line));
                thread::spawn(move || {
                    let (from, to, line) = back;
                    pump(from, to, |_| {
                        while line.held.load(Ordering::Relaxed) {
                            thread::yield_now();
                        }
                    });
                });
                thread::spawn(move || {
                    pump(near, far, |bytes| {
                        let pings = bytes.windows(4).filter(|word| *word == b"PING").count();
                        line.pings.fetch_add(pings, Ordering::Relaxed);
                        line.tracks.fetch_or(bytes.windows(8).any(|word| word == b"TRACKING"), Ordering::Relaxed);
                    });
                    line.closed.store(true, Ordering::Relaxed);
                });
            }
        });
        this
    }

    fn trackers(&self) -> Vec<Arc<Line>> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|line| line.tracks.load(Ordering::Relaxed)).cloned().collect()
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, look: impl Fn(&[u8])) {
    let mut bytes = [0; 1 << 14];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        look(&bytes[..n]);
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    // Either may be closed already.
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_change_that_only_the_first_was_told_of_is_heard_before_the_second_takes_over() {
    let redis = Redis::start();
    let relay = Relay::start(redis.addr());
    let tenant = |name: &str, tier: bool| format!("[tenants.{name}]\npasswords = [\"p\"]\ntier = {tier}\n");
    let config = |b: bool| format!("{ON}[upstream]\nsocket_timeout = \"5s\"\n{}{}", tenant("a", true), tenant("b", b));
    let fence = Fence::with_tenants(relay.addr, &config(true));
    let log = fence.process().unwrap();
    log.wait_for_lines(1, "the tier is on");
    let mut client = fence.client();
    is!(client, ["AUTH", "a", "p"], "+OK\r\n");
    is!(client, ["SET", "k", "old"], "+OK\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$3\r\nold\r\n");
    let first = relay.trackers().pop().unwrap();
    first.held.store(true, Ordering::Relaxed);
    is!(redis.client(), ["SET", "a:k", "new"], "+OK\r\n");
    fence.reload(&config(false), "settings reloaded");
    while relay.trackers().len() < 2 {
        thread::yield_now();
    }
    // It is asked at once for its last word, and twice a second anyway: the second has long been told that it tracks.
    let asked = first.pings.load(Ordering::Relaxed);
    while first.pings.load(Ordering::Relaxed) < asked + 3 && !first.closed.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    first.held.store(false, Ordering::Relaxed);
    log.wait_for_lines(2, "the tier is on");
    settle(&mut client);
    is!(client, ["GET", "k"], "$3\r\nnew\r\n");
}
