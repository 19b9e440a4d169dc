//! What every test stands on: servers as child processes that die with their handle, a raw client, and a view of the keyspace.
//!
//! Each test process owns a loopback address of its own (made from its process id) and counts ports up from there, so that no two
//! tests, and no outgoing connection, can ever want the same one.
pub(crate) mod fence;
pub(crate) mod http;
pub(crate) mod keyspace;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod scripted;
pub(crate) mod value;
pub(crate) mod wire;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

pub(crate) use fence::{Fence, PREFIX};
pub(crate) use redis::Redis;
pub(crate) use wire::Client;

/// How long a test waits for something that must happen before it calls it a hang. Long: a slow machine is no failure.
pub(crate) const HANG: Duration = Duration::from_secs(25);

/// How long a client may get no answer to a small command because of what another client does: longer, and it has been harmed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

/// An address nobody else uses: 127.64.0.0/10 indexed by process id, ports counted up.
pub(crate) fn free_addr() -> SocketAddr {
    let [_, b, c, d] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 64 + b % 128, c, d);
    SocketAddr::new(IpAddr::V4(ip), NEXT_PORT.fetch_add(1, Ordering::Relaxed))
}

/// Whether a plain server stands where keyfence would (see the crate's head).
pub(crate) fn target_is_plain() -> bool {
    std::env::var("KEYFENCE_TEST_TARGET").is_ok_and(|target| target == "plain")
}

/// `call!(client, "SET", key, b"v")`: sends one command and returns the raw bytes of its reply.
#[macro_export]
macro_rules! call {
    ($client:expr, $($arg:expr),+ $(,)?) => {
        $client.call(&[$(AsRef::<[u8]>::as_ref(&$arg)),+])
    };
}

/// `is!(client, ["GET", "k"], "$1\r\nv\r\n")`: one command and the exact bytes it must answer.
#[macro_export]
macro_rules! is {
    ($client:expr, [$($arg:expr),+ $(,)?], $reply:expr) => {{
        let sent = $crate::support::wire::command::<&[u8]>(&[$(AsRef::<[u8]>::as_ref(&$arg)),+]);
        let reply = $client.ask(&sent);
        assert_eq!(
            $crate::support::wire::show(&reply),
            $crate::support::wire::show(AsRef::<[u8]>::as_ref(&$reply)),
            "the reply to {}",
            $crate::support::wire::show(&sent)
        );
    }};
}
