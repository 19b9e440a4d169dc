//! Counts that one thread writes and any thread reads: a plain load and store, no locked instruction.
//!
//! With `--cfg keyfence_uncounted` they stay what they are, for `benches/instructions.py --uncounted`, which tells what counting costs.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use super::{Fine, TenantCells, lock};

/// A count of one thread's. Another thread that wrote to it would lose counts, not memory.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// `n` more.
    #[inline]
    pub fn add(&self, n: u64) {
        if cfg!(keyfence_uncounted) {
            return;
        }
        self.set(self.get().wrapping_add(n));
    }

    /// `n` less.
    #[inline]
    pub fn sub(&self, n: u64) {
        if cfg!(keyfence_uncounted) {
            return;
        }
        self.set(self.get().wrapping_sub(n));
    }

    /// Exactly `n`.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// As it is.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts of itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCells {
    /// Client connections that were served.
    pub accepted: Count,
    /// Client connections that were turned away.
    pub rejected: Count,
    /// Connections of listed proxies that did not say whose they are.
    pub unannounced: Count,
    /// Times that a client was not read from: its requests waited for replies, for room towards the upstream, or it did not read.
    pub held_back: Count,
    /// Steps of scoped work, names that they came upon, keys that they deleted.
    pub scoped_steps: Count,
    /// See `scoped_steps`.
    pub scoped_keys: Count,
    /// See `scoped_steps`.
    pub scoped_deleted: Count,
    /// Replies that were withheld because they held a foreign name.
    pub withheld: Count,
    tenants: Mutex<Vec<(Arc<str>, Arc<TenantCells>)>>,
    sites: Mutex<Vec<(Arc<str>, Arc<SiteCells>)>>,
}

impl WorkerCells {
    /// The cells of this tenant, if anybody has spoken for it here.
    pub fn tenant(&self, name: &str) -> Option<Arc<TenantCells>> {
        lock(&self.tenants).iter().find(|(known, _)| **known == *name).map(|(_, cells)| Arc::clone(cells))
    }

    /// All tenants'.
    pub fn tenants(&self) -> Vec<(Arc<str>, Arc<TenantCells>)> {
        lock(&self.tenants).clone()
    }

    /// All upstreams'.
    pub fn sites(&self) -> Vec<(Arc<str>, Arc<SiteCells>)> {
        lock(&self.sites).clone()
    }

    /// The cells of this tenant, new ones unless there are `most` of them already: then those called `others`.
    pub(super) fn tenant_or_new(&self, name: &str, most: usize, others: &str) -> Arc<TenantCells> {
        let mut tenants = lock(&self.tenants);
        let full = tenants.len() >= most;
        let found = |name: &str, of: &[(Arc<str>, Arc<TenantCells>)]| {
            of.iter().find(|(known, _)| **known == *name).map(|(_, cells)| Arc::clone(cells))
        };
        if let Some(cells) = found(name, &tenants) {
            return cells;
        }
        let name = if full { others } else { name };
        if full && let Some(cells) = found(name, &tenants) {
            return cells;
        }
        let name: Arc<str> = Arc::from(name);
        let cells = Arc::new(TenantCells::new(Arc::clone(&name)));
        tenants.push((name, Arc::clone(&cells)));
        cells
    }

    /// The cells of the upstream of this name.
    pub fn site(&self, name: &str) -> Arc<SiteCells> {
        let mut sites = lock(&self.sites);
        if let Some((_, cells)) = sites.iter().find(|(known, _)| **known == *name) {
            return Arc::clone(cells);
        }
        let cells = Arc::<SiteCells>::default();
        sites.push((Arc::from(name), Arc::clone(&cells)));
        cells
    }
}

/// What one worker counts of one upstream.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct SiteCells {
    /// From a request's being written to its reply's being read.
    pub latency: Fine,
    /// From a request's being read from its client to its being written upstream.
    pub queue: Fine,
    /// Bytes read from it on the data path.
    pub bytes_in: Count,
    /// Bytes written to it on the data path.
    pub bytes_out: Count,
    /// Connections opened, and attempts that failed.
    pub connected: Count,
    /// See `connected`.
    pub connect_failed: Count,
    /// Connections that broke or were given up while somebody waited on them.
    pub broken: Count,
    /// Open connections that sessions share, as of the last look.
    pub shared: Count,
    /// Those that one session has to itself.
    pub dedicated: Count,
    /// Those that wait for a session that needs one.
    pub spare: Count,
    /// Those that listen for subscribers.
    pub listening: Count,
    /// Those of scoped work.
    pub control: Count,
    /// Replies due on all of them.
    pub in_flight: Count,
}
