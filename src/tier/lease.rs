//! Whether a tenant's values may be kept and served just now, and what came of it.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use tokio::sync::Notify;

/// How many workers count without sharing a cache line.
const SLOTS: usize = 8;

/// Numbers of one worker, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot {
    hits: AtomicU64,
    misses: AtomicU64,
    fills: AtomicU64,
}

/// A number that one thread writes all the time, away from what others read all the time.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart(AtomicU64);

/// Written by every script, of tenants without a tier too; away from what every command reads.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Holds {
    /// How many things are under way that may change any key: nothing is served meanwhile.
    under_way: AtomicU32,
    /// How many of these were answered, and wait for the tracking connection to be past them.
    releasing: AtomicU32,
}

/// What is known of a tenant's part of the tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reads that were answered from the tier.
    pub hits: u64,
    /// Reads that could have been, and went upstream (or waited for one that did).
    pub misses: u64,
    /// Replies that were kept.
    pub fills: u64,
    /// Keys that the upstream said have changed.
    pub invalidations: u64,
    /// Replies that were given up for room.
    pub evictions: u64,
    /// Bytes kept.
    pub bytes: u64,
    /// Replies kept.
    pub entries: u64,
}

/// One tenant's, shared by its sessions on all workers and by the tracking connection of its upstream.
///
/// It is renewed, never merely on: whoever should renew it and does not ends it thereby.
#[derive(Debug, Default)]
pub struct Lease {
    /// The settings want its values to be kept.
    asked: AtomicBool,
    /// And so does keyfence just now: writes are marked.
    wanted: AtomicBool,
    /// Asked for, and not wanted: see [`Self::rest`].
    resting: AtomicBool,
    /// Holds no earlier than this, in milliseconds of the tier's clock: writes that were sent unmarked have been answered by then.
    from: AtomicU64,
    /// Values are tracked, up to this moment; 0: they are not.
    until: AtomicU64,
    holds: Holds,
    invalidations: Apart,
    counters: OnceLock<Box<[Slot]>>,
    /// Wakes who keeps the tracking connection.
    wake: Arc<Notify>,
}

impl Lease {
    /// Not wanted yet; `wake` is what the keeper of its upstream's tracking connection waits for.
    pub fn new(wake: &Arc<Notify>) -> Self {
        Self { wake: Arc::clone(wake), ..Self::default() }
    }

    /// Whether the settings want it.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether it rests.
    pub fn resting(&self) -> bool {
        self.resting.load(Ordering::Relaxed)
    }

    /// Whether it is to be had at all just now.
    #[inline]
    pub fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// The settings want it, or do not any more; it holds no earlier than `from`.
    pub fn want(&self, asked: bool, from: u64) {
        self.asked.store(asked, Ordering::Relaxed);
        if !asked {
            self.resting.store(false, Ordering::Relaxed);
        }
        self.turn(asked && !self.resting(), from);
        self.wake.notify_one();
    }

    /// It is not worth its cost: as if the settings did not want it, until [`Self::wake`].
    pub fn rest(&self) {
        self.resting.store(self.asked(), Ordering::Relaxed);
        self.turn(false, 0);
    }

    /// The end of a rest; it holds no earlier than `from`.
    pub fn wake(&self, from: u64) {
        if self.resting.swap(false, Ordering::Relaxed) {
            self.turn(true, from);
        }
    }

    fn turn(&self, wanted: bool, from: u64) {
        if wanted && !self.wanted() {
            self.counters.get_or_init(|| (0..SLOTS).map(|_| Slot::default()).collect());
            self.from.store(from, Ordering::Relaxed);
        }
        self.wanted.store(wanted, Ordering::SeqCst);
        if !wanted {
            self.end();
        }
    }

    /// Whether changes have to be told of by now: it may begin.
    pub fn due(&self, now: u64) -> bool {
        self.wanted() && now >= self.from.load(Ordering::Relaxed)
    }

    /// Whether changes are being told: what is read now may be kept.
    #[inline]
    pub fn tracks(&self, now: u64) -> bool {
        self.until.load(Ordering::Acquire) > now
    }

    /// Whether what is kept may be served.
    #[inline]
    pub fn serves(&self, now: u64) -> bool {
        self.tracks(now) && self.holds.under_way.load(Ordering::Acquire) == 0
    }

    /// Whether [`Self::renew`] would end a time in which nothing was tracked: what is kept has to be void before.
    pub fn begins(&self, sent: u64) -> bool {
        self.until.load(Ordering::Relaxed) == 0 && self.due(sent)
    }

    /// The tracking connection has answered what was `sent` then, and so has told what changed before, but for the turn of the upstream's in which it
    /// did, whose pushes are right behind: the lease is good up to `until`.
    pub fn renew(&self, sent: u64, until: u64) {
        if self.due(sent) {
            self.until.store(until, Ordering::SeqCst);
        }
    }

    /// Nothing is served or kept from now on.
    pub fn end(&self) {
        self.until.store(0, Ordering::SeqCst);
    }

    /// Something is about to be sent that may change any key.
    pub(super) fn hold(&self) {
        self.holds.under_way.fetch_add(1, Ordering::SeqCst);
    }

    /// It was answered, or its connection is gone.
    pub(super) fn release_later(&self) {
        // Where nothing is tracked nothing is served, and what is kept is void before it is again.
        if self.until.load(Ordering::SeqCst) == 0 {
            return self.release(1);
        }
        if self.holds.releasing.fetch_add(1, Ordering::SeqCst) == 0 {
            self.wake.notify_one();
        }
    }

    /// For the keeper of the tracking connection: how many wait for a PING that is sent now.
    pub fn take_releases(&self) -> u32 {
        if self.holds.releasing.load(Ordering::Relaxed) == 0 {
            0
        } else {
            self.holds.releasing.swap(0, Ordering::SeqCst)
        }
    }

    /// So many of them are over.
    pub fn release(&self, n: u32) {
        if n > 0 {
            self.holds.under_way.fetch_sub(n, Ordering::SeqCst);
        }
    }

    fn slot(&self, slot: usize) -> Option<&Slot> {
        self.counters.get().and_then(|all| all.get(slot % SLOTS))
    }

    /// A read was answered from the tier, by the worker of this slot.
    #[inline]
    pub fn hit(&self, slot: usize) {
        if let Some(slot) = self.slot(slot) {
            slot.hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A read could have been, and was not.
    pub fn missed(&self, slot: usize) {
        if let Some(slot) = self.slot(slot) {
            slot.misses.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn filled(&self, slot: usize) {
        if let Some(slot) = self.slot(slot) {
            slot.fills.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The upstream said that a key changed.
    pub fn invalidated(&self) {
        self.invalidations.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Hits, and keys that changed.
    pub fn weight(&self) -> (u64, u64) {
        let Stats { hits, invalidations, .. } = self.counted();
        (hits, invalidations)
    }

    /// What is counted here; the rest is 0.
    pub(super) fn counted(&self) -> Stats {
        let sum = |of: &dyn Fn(&Slot) -> &AtomicU64| {
            self.counters.get().map_or(0, |all| all.iter().map(|slot| of(slot).load(Ordering::Relaxed)).sum())
        };
        Stats {
            hits: sum(&|slot| &slot.hits),
            misses: sum(&|slot| &slot.misses),
            fills: sum(&|slot| &slot.fills),
            invalidations: self.invalidations.0.load(Ordering::Relaxed),
            ..Stats::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_by_itself() {
        let lease = Lease::default();
        lease.renew(5, 10);
        assert!(!lease.tracks(5), "nobody wants it");
        lease.want(true, 8);
        lease.renew(7, 10);
        assert!(!lease.tracks(7), "not yet");
        lease.renew(8, 10);
        assert!(lease.serves(9) && !lease.serves(10));
        lease.want(false, 0);
        assert!(!lease.tracks(9));
    }

    #[test]
    fn a_rest_is_as_if_it_were_off_and_ends_as_if_it_were_turned_on() {
        let lease = Lease::default();
        lease.want(true, 0);
        lease.renew(0, 10);
        lease.rest();
        assert!(lease.asked() && !lease.wanted() && !lease.tracks(1));
        lease.renew(1, 10);
        lease.want(true, 0);
        assert!(lease.resting() && !lease.wanted() && !lease.tracks(2), "a reload does not end it");
        lease.wake(5);
        assert!(lease.wanted() && !lease.resting() && !lease.due(4) && lease.due(5));
        lease.renew(4, 10);
        assert!(!lease.tracks(4));
        lease.renew(5, 10);
        assert!(lease.serves(6));
        lease.wake(9);
        assert!(lease.due(6), "it does not rest");
        lease.rest();
        lease.want(false, 0);
        assert!(!lease.resting() && !lease.asked());
        lease.wake(5);
        lease.rest();
        assert!(!lease.wanted() && !lease.resting(), "nobody asks for it");
    }

    #[test]
    fn a_hold_lasts_until_the_tracking_connection_is_past_it() {
        let lease = Lease::default();
        lease.want(true, 0);
        lease.renew(0, 10);
        lease.hold();
        assert!(lease.tracks(1) && !lease.serves(1));
        lease.release_later();
        assert!(!lease.serves(1));
        let n = lease.take_releases();
        assert_eq!((n, lease.take_releases()), (1, 0));
        lease.release(n);
        assert!(lease.serves(1));
        // Nobody is there to be asked.
        lease.end();
        lease.hold();
        lease.release_later();
        lease.renew(0, 10);
        assert!(lease.serves(1));
    }
}
