//! What a service manager is told, as sd_notify(3) says: that keyfence serves, reads its settings again, stops, and is alive. Without
//! `NOTIFY_SOCKET` nobody is told anything. Nobody waits until a manager listens, either.

use std::{
    env,
    ffi::OsStr,
    io::{self, ErrorKind},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

/// The shortest pause between two signs of life.
const SHORTEST: Duration = Duration::from_millis(200);
/// From one attempt to tell a manager that is behind to the next.
const AGAIN: Duration = Duration::from_millis(100);
/// Attempts, after which it is not told.
const ATTEMPTS: u32 = 300;

/// Clients are served.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The settings are being read again; [`ready`] says when that is over.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "no monotonic clock to tell the service manager"),
    }
}

/// No new clients are served.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Gives signs of life twice as often as is asked for (`WATCHDOG_USEC`) as long as `alive` says so, which is asked once in that time and not at
/// once; ends when nobody asks.
pub async fn keep_watch(mut alive: impl FnMut() -> bool) {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    let pause = (within / 2).max(SHORTEST);
    let mut every = interval_at(Instant::now() + pause, pause);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if alive() {
            // The next one makes up for one that does not get through.
            told(send(&text(&[NotifyState::Watchdog])));
        } else {
            tracing::error!("a worker makes no progress: the service manager is given no sign of life");
        }
    }
}

/// Tells it now, or as soon as it has read what it was told before. Needs a local runtime.
fn tell(states: &[NotifyState<'_>]) {
    let text = text(states);
    match send(&text) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            tokio::task::spawn_local(async move {
                let mut outcome = Err(e);
                for _ in 0..ATTEMPTS {
                    sleep(AGAIN).await;
                    outcome = send(&text);
                    if !outcome.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
                        break;
                    }
                }
                told(outcome);
            });
        }
        outcome => told(outcome),
    }
}

fn told(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

fn text(states: &[NotifyState<'_>]) -> String {
    states.iter().map(|state| format!("{state}\n")).collect()
}

/// Sends one datagram, at once or not at all.
fn send(text: &str) -> io::Result<()> {
    let Some(to) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text.as_bytes(), &address(&to)?).map(drop)
}

/// A path, or a name that is in no file system, which is written with an `@` before it.
fn address(to: &OsStr) -> io::Result<SocketAddr> {
    match to.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(to),
    }
}
