//! What a tenant may use: rates over all workers together, and sizes.
//!
//! A bucket is one atomic: the moment at which it would be full again (the generic cell rate algorithm,
//! <https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm>). A request is admitted while the bucket is not empty, whatever it costs; what it
//! costs beyond that is owed by the next. So one large value passes, and is paid for.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// One rate.
#[derive(Debug)]
pub struct Bucket {
    /// Nanoseconds per unit, in 2^-16 parts, so that high rates stay exact; 0: no limit.
    cost: AtomicU64,
    /// Nanoseconds of units that may be used at once.
    depth: AtomicU64,
    /// Nanoseconds after `start` at which it is full again.
    full_at: AtomicU64,
    start: Instant,
}

impl Bucket {
    /// `per_second` units (0: no limit), of which `burst` may be used at once (0: as many as in a second).
    pub fn new(per_second: u64, burst: u64) -> Self {
        let bucket = Self {
            cost: AtomicU64::new(0),
            depth: AtomicU64::new(0),
            full_at: AtomicU64::new(0),
            start: Instant::now(),
        };
        bucket.set(per_second, burst);
        bucket
    }

    /// Changes the rate; what is owed stays owed.
    pub fn set(&self, per_second: u64, burst: u64) {
        let cost = (1_000_000_000u64 << 16).checked_div(per_second).unwrap_or(0);
        let burst = if burst == 0 { per_second } else { burst };
        self.depth.store(nanos(cost, burst), Ordering::Relaxed);
        self.cost.store(cost, Ordering::Relaxed);
    }

    /// Whether there is a limit.
    pub fn limited(&self) -> bool {
        self.cost.load(Ordering::Relaxed) > 0
    }

    /// The limit in units per second.
    pub fn per_second(&self) -> u64 {
        (1_000_000_000u64 << 16).checked_div(self.cost.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Uses `n` units at `now`.
    ///
    /// # Errors
    /// How long to wait, when the bucket is empty; nothing is used then.
    pub fn take(&self, n: u64, now: Instant) -> Result<(), Duration> {
        let cost = self.cost.load(Ordering::Relaxed);
        if cost == 0 {
            return Ok(());
        }
        let (price, depth) = (nanos(cost, n), self.depth.load(Ordering::Relaxed));
        let now = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX / 2);
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let from = full_at.max(now);
            // The unit at hand must be there; what a large request needs beyond that is owed.
            (from + nanos(cost, n.min(1)) <= now + depth.max(nanos(cost, 1))).then_some(from.saturating_add(price))
        });
        taken.map(drop).map_err(|full_at| Duration::from_nanos((full_at + nanos(cost, 1)).saturating_sub(now + depth)))
    }

    /// Uses `n` units that have been used already, whether they were there or not.
    pub fn charge(&self, n: u64, now: Instant) {
        let cost = self.cost.load(Ordering::Relaxed);
        if cost > 0 && n > 0 {
            let now = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX / 2);
            let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                Some(full_at.max(now).saturating_add(nanos(cost, n)))
            });
        }
    }
}

fn nanos(cost: u64, n: u64) -> u64 {
    u64::try_from((u128::from(cost) * u128::from(n)) >> 16).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn taken(bucket: &Bucket, from: Instant, over: Duration, step: Duration) -> u32 {
        let mut n = 0;
        let mut at = from;
        while at < from + over {
            while bucket.take(1, at).is_ok() {
                n += 1;
            }
            at += step;
        }
        n
    }

    #[test]
    fn the_rate_holds_and_the_burst_is_there_at_once() {
        let bucket = Bucket::new(1000, 50);
        let now = Instant::now();
        assert_eq!((0..100).filter(|_| bucket.take(1, now).is_ok()).count(), 50);
        let n = taken(&bucket, now, 10 * SECOND, Duration::from_millis(1));
        assert!((9_990..=10_010).contains(&n), "{n}");
        assert!(taken(&Bucket::new(3, 0), now, 10 * SECOND, Duration::from_millis(7)).abs_diff(33) <= 1);
    }

    #[test]
    fn a_large_request_passes_and_is_owed() {
        let bucket = Bucket::new(1000, 1000);
        let now = Instant::now();
        assert_eq!(bucket.take(10_000, now), Ok(()));
        let wait = bucket.take(1, now).expect_err("owed");
        assert!(wait >= 9 * SECOND && wait < 9 * SECOND + Duration::from_millis(10), "{wait:?}");
        assert_eq!(bucket.take(1, now + wait), Ok(()));
        assert_eq!(Bucket::new(0, 0).take(u64::MAX, now), Ok(()));
    }
}
