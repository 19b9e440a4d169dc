//! Who a connection speaks for: the namespace it sees, and what all its tenant's connections share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// One tenant. Without `[tenants]` there is one, called `default`, whose prefix is `key_prefix`.
#[derive(Debug)]
pub struct Tenant {
    /// Its number, unique in this process.
    pub id: u32,
    /// Its name, as error texts and CLIENT LIST show it.
    pub name: String,
    /// What its keys begin with upstream.
    pub prefix: Arc<[u8]>,
    /// The upstream database that its database 0 is.
    pub db_base: u32,
    /// How many databases it has.
    pub databases: u32,
    /// CLIENT PAUSE.
    pub pause: Pause,
}

/// CLIENT PAUSE over the tenant's own connections.
#[derive(Debug)]
pub struct Pause {
    start: Instant,
    /// Milliseconds after `start`; 0: not paused.
    until: AtomicU64,
    writes_only: AtomicBool,
}

impl Default for Pause {
    fn default() -> Self {
        Self { start: Instant::now(), until: AtomicU64::new(0), writes_only: AtomicBool::new(false) }
    }
}

impl Pause {
    /// Holds commands back (all, or those that may write) for `time`.
    pub fn begin(&self, time: Duration, writes_only: bool) {
        let until = (self.start.elapsed() + time).as_millis();
        self.writes_only.store(writes_only, Ordering::Relaxed);
        // Centuries from now at the most: the argument of CLIENT PAUSE is bounded.
        self.until.store(u64::try_from(until).unwrap_or(u64::MAX).max(1), Ordering::Release);
    }

    /// Lets them go on.
    pub fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    /// When a command that writes (or not) may run, if that is not now.
    pub fn holds(&self, write: bool) -> Option<Instant> {
        let until = self.until.load(Ordering::Acquire);
        if until == 0 {
            return None;
        }
        let until = self.start.checked_add(Duration::from_millis(until))?;
        if until <= Instant::now() {
            self.end();
            return None;
        }
        (write || !self.writes_only.load(Ordering::Relaxed)).then_some(until)
    }
}
