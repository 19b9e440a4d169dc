//! Epochs of upstreams and tenants: clearing one is an addition, and what was kept before no longer matches.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters by number; numbers that share a counter are cleared together, which costs misses and no more.
const UPSTREAMS: usize = 64;
const TENANTS: usize = 1024;

/// The current epochs.
#[derive(Debug)]
pub(super) struct Epochs {
    upstreams: Box<[AtomicU64]>,
    tenants: Box<[AtomicU64]>,
}

impl Epochs {
    pub(super) fn new() -> Self {
        let zeros = |n| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self { upstreams: zeros(UPSTREAMS), tenants: zeros(TENANTS) }
    }

    /// The sum of both epochs. Neither ever falls, so an equal sum means that neither has moved.
    pub(super) fn of(&self, upstream: u16, tenant: u32) -> u64 {
        let upstream = self.upstreams[usize::from(upstream) % UPSTREAMS].load(Ordering::Acquire);
        upstream.wrapping_add(self.tenants[tenant as usize % TENANTS].load(Ordering::Acquire))
    }

    pub(super) fn clear_upstream(&self, upstream: u16) {
        self.upstreams[usize::from(upstream) % UPSTREAMS].fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn clear_tenant(&self, tenant: u32) {
        self.tenants[tenant as usize % TENANTS].fetch_add(1, Ordering::AcqRel);
    }
}
