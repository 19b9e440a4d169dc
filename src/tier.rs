//! TIER: a near cache of replies inside the proxy, which stays true. This module is what workers share of it, and what an upstream connection
//! carries for it; it knows no sockets, no sessions and no commands. [`crate::near`] is its use on the path of a command,
//! [`crate::coherence`] the connection by which an upstream says what has changed.
//!
//! ```text
//!   read ──► Store::get ─── hit ──────────────────────────────────────────────► client
//!              │ miss
//!              ├─ a read of the same is in flight, and its ticket holds ──► wait for it (Flight)
//!              └─ Store::ticket ─► PTTL + read on the tenant's connection ─► Fetch ─► Store::fill if the ticket still holds
//!   write ─► Guard: its keys are marked before it is sent, until its reply (or the end of its connection)
//!   tracking connection ─► invalidate, clear, renew the Lease
//! ```
//!
//! # Why no reply is older than promised
//!
//! Let `r` be the moment the upstream carries out the read of a kept reply, and `w` that of a write of its key. A ticket is taken before the read is
//! sent, so `ticket < r < fill < hit`. The upstream tells every write of a tracked key on the tracking connection, after `w`, in order.
//!
//! 1. *A write elsewhere.* Only `w > r` can make the reply old. Its invalidation is received after `w`, so after the ticket: before the fill it voids
//!    the ticket, and after it drops the entry. In which order the tracking connection and the one of the read are heard makes no difference: an
//!    invalidation of `w < r` that comes late drops a reply that was new, no more. So once an invalidation was received nothing older is served.
//! 2. *A write through this process*, acknowledged at `a > w` to whoever made it. From before it is sent until its reply was received, before
//!    anybody can see that reply, its keys are marked: a mark drops what is kept and voids tickets, and while it stands there are neither hits nor
//!    tickets. So a reply that is served after `a` has a ticket taken after the mark was taken off, and `r > ticket > w`. A write that may block marks at
//!    its reply only, which is enough for that: it has its effect when it wakes. What may touch any key of a tenant (a script) holds the
//!    tenant instead: no hits from before it is sent until a PING that was sent after its reply was answered with PONG on the tracking connection; the
//!    upstream has said by then which keys it changed.
//! 3. *A write that nobody heard of* (its connection broke): nobody was told that it was done, so it is as one elsewhere.
//!    Of two reads of one reply, in flight at once, either may be the older one, if the write between them is not told yet: they are not kept
//!    unless they agree.
//! 4. *Time.* The reply expires with its key: PTTL, sent before the read, counted from before it was sent, so never later than upstream.
//! 5. *The tracking connection.* Without it nothing is served: a tenant's [`Lease`] ends some time after the last PING that was answered, whatever else
//!    happens or fails to happen here. When it is lost all is void, and again when the next one tracks, before the first lease: a ticket that
//!    was taken in between holds for nothing. When one takes over from another that lives, nothing is: the upstream tells both of what changes
//!    after the second tracks, and what changed before has been heard by the first, since it was answered a PING that was sent after that.
//! 6. *A tier that is turned on*, or wakes. Whatever was kept of the tenant is void before its lease begins, though the tracking connection stayed.
//!    Writes that were sent before are not marked. The lease begins no earlier than `socket_timeout` later, and by how much a reply may come after that
//!    limit; by then they have been answered, or were given up and belong to 3. What may take longer (what blocks, scripts) has its guard whether
//!    there is a tier or not, and a transaction of which anything was queued meanwhile may change anything.

mod fetch;
mod flight;
mod guard;
mod lease;
mod name;
pub mod store;

use std::{
    cell::RefCell,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

pub use fetch::{Fetch, Keeping, Part, Take, UNKNOWN};
pub use flight::{Flight, Flights, Outcome};
pub use guard::Guard;
pub use lease::{Lease, Stats};
pub use name::{LONGEST, Name};
use store::Store;

/// Cells of 64 bytes that one [`Tier::sweep`] looks at, with which 256 MiB are seen every twenty seconds.
const SWEPT: usize = 20_000;

/// The settings of a tier, in its own terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of keys, values and bookkeeping; the first value holds for the process.
    pub max_memory: usize,
    /// Longest reply that is kept, in bytes; the first value holds for the process.
    pub max_value: usize,
    /// The most any entry may age.
    pub max_ttl: Duration,
    /// Whether it is kept that there is no such key.
    pub negative: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Tier {
    /// What its milliseconds count from.
    base: Instant,
    /// Made when the tier is first turned on: a process without one pays nothing.
    store: OnceLock<(Store, usize)>,
    /// Reads on their way.
    pub flights: Flights,
    max_ttl: AtomicU64,
    negative: AtomicBool,
}

impl Default for Tier {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            store: OnceLock::new(),
            flights: Flights::default(),
            max_ttl: AtomicU64::new(0),
            negative: AtomicBool::new(false),
        }
    }
}

impl Tier {
    /// Turns it on, or changes what can be changed while it is.
    pub fn set(&self, limits: &Limits) {
        self.store.get_or_init(|| (Store::new(limits.max_memory, limits.max_value), limits.max_value));
        self.max_ttl.store(u64::try_from(limits.max_ttl.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.negative.store(limits.negative, Ordering::Relaxed);
    }

    /// What is kept; none before it was first turned on.
    #[inline]
    pub fn store(&self) -> Option<&Store> {
        self.store.get().map(|(store, _)| store)
    }

    /// Longest reply that is kept, in bytes.
    pub fn max_value(&self) -> usize {
        self.store.get().map_or(0, |(_, max)| *max)
    }

    /// Milliseconds of its clock.
    pub fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// When a reply that was asked for at `sent`, and whose key lives for `ttl` (as PTTL says it), has to be forgotten; `None`: it is not kept.
    fn expires(&self, sent: u64, ttl: i64) -> Option<u64> {
        let most = self.max_ttl.load(Ordering::Relaxed);
        match ttl {
            -2 if !self.negative.load(Ordering::Relaxed) => None,
            -2 | -1 => Some(sent.saturating_add(most)),
            ttl => Some(sent.saturating_add(u64::try_from(ttl).ok()?.min(most))),
        }
    }

    /// Takes back some of the room of what is void or over; to be called now and then.
    pub fn sweep(&self) {
        if let Some(store) = self.store() {
            store.sweep(self.now(), SWEPT);
        }
    }

    /// Everything kept of the tenant of this number is void.
    pub fn clear_tenant(&self, tenant: u32) {
        if let Some(store) = self.store() {
            store.clear_tenant(tenant);
        }
    }

    /// What is known of a tenant's part.
    pub fn stats(&self, tenant: u32, lease: &Lease) -> Stats {
        let kept = self.store().map(|store| store.stats(tenant)).unwrap_or_default();
        Stats { entries: kept.entries, bytes: kept.bytes, evictions: kept.evictions, ..lease.counted() }
    }
}

/// The tier as one worker uses it.
#[derive(Debug)]
pub struct Desk {
    /// What all workers share.
    pub tier: Arc<Tier>,
    /// Which of the counters it counts in.
    pub slot: usize,
    /// Microseconds of the tier's clock at the beginning of the worker's.
    offset: u64,
    /// Scratch space: names of replies are put together here.
    pub name: RefCell<Name>,
}

impl Desk {
    /// That of the worker whose clock began at `start`.
    pub fn new(tier: &Arc<Tier>, slot: usize, start: Instant) -> Self {
        let offset = start.saturating_duration_since(tier.base).as_micros();
        Self {
            tier: Arc::clone(tier),
            slot,
            offset: u64::try_from(offset).unwrap_or(u64::MAX),
            name: RefCell::default(),
        }
    }

    /// Milliseconds of the tier's clock, given microseconds of the worker's.
    #[inline]
    pub fn now(&self, micros: u64) -> u64 {
        self.offset.saturating_add(micros) / 1000
    }
}
