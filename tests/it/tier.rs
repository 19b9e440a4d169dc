//! The in-process tier: what it answers, what it must not, and that nothing it answers is older than promised.
mod coherence;
mod commands;
mod gap;
mod history;
mod many;
mod operators;
mod overtaken;
mod reload;
mod succession;

use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::call;
use crate::support::{Client, Fence, Redis};

/// Lines of `config.toml` that turn it on.
pub(crate) const ON: &str = "[tier]\nenabled = true\n";

/// A keyfence with a tier, in front of a server of its own.
pub(crate) struct Near {
    pub(crate) redis: Redis,
    pub(crate) fence: Fence,
}

impl Near {
    pub(crate) fn start() -> Self {
        Self::with(ON)
    }

    /// With this `config.toml`, which turns it on.
    pub(crate) fn with(config: &str) -> Self {
        let redis = Redis::start();
        let fence = Fence::start_at(redis.addr(), config);
        let near = Self { redis, fence };
        near.wait_until_on(1);
        near
    }

    /// Waits until the upstream has begun to tell of changes so many times.
    pub(crate) fn wait_until_on(&self, times: usize) {
        self.fence.process().unwrap().wait_for_lines(times, "the tier is on");
    }

    pub(crate) fn client(&self) -> Client {
        self.fence.client()
    }

    /// `key` as the server knows it.
    pub(crate) fn key(&self, key: &str) -> Vec<u8> {
        self.fence.upstream_key(key)
    }
}

/// A number of the tenant's in INFO.
pub(crate) fn count(client: &mut Client, field: &str) -> u64 {
    let info = call!(client, "INFO", "keyfence");
    let text = String::from_utf8_lossy(&info);
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text:?}")).parse().unwrap()
}

/// How often the server was asked for this command.
pub(crate) fn calls(redis: &Redis, command: &str) -> u64 {
    let info = call!(redis.client(), "INFO", "commandstats");
    let text = String::from_utf8_lossy(&info);
    let of = format!("cmdstat_{command}:calls=");
    text.lines().find_map(|line| line.strip_prefix(&of)?.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// Waits until everything that changed before is known here: the server has answered a PING on the tracking connection that was sent after it.
/// A script's hold ends no earlier, so the first hit after one says so.
pub(crate) fn settle(client: &mut Client) {
    assert_eq!(call!(client, "EVAL", "return 1", "0"), b":1\r\n");
    let before = count(client, "tier_hits");
    let deadline = Instant::now() + crate::support::HANG;
    while count(client, "tier_hits") == before {
        assert!(Instant::now() < deadline, "no hit after a script");
        call!(client, "GET", "settle");
    }
}

/// Lets the others go on for so long: for what is made up of time passing, never to wait for something to have happened.
pub(crate) fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}
