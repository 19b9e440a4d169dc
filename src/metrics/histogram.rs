//! Histograms of times in microseconds, written by one thread.
//!
//! Coarse: a bucket per power of two, as Redis's LATENCY HISTOGRAM shows them. Fine: four per power of two, so that a quantile read from
//! one is within a tenth of what it is.

use super::Count;

/// Buckets of a [`Coarse`]: below 1 µs, below 2, below 4, …, and all from 2^25 µs (half a minute) on.
pub const COARSE: usize = 27;
/// Buckets of a [`Fine`].
pub const FINE: usize = 104;

/// One bucket per power of two.
#[derive(Debug)]
pub struct Coarse([Count; COARSE]);

impl Default for Coarse {
    fn default() -> Self {
        Self([const { Count::new() }; COARSE])
    }
}

impl Coarse {
    /// `times` more that took so many microseconds.
    #[inline]
    pub fn add(&self, micros: u64, times: u64) {
        let bits = (u64::BITS - micros.leading_zeros()) as usize;
        self.0[bits.min(COARSE - 1)].add(times);
    }

    /// Adds it to `sums`.
    pub fn sum(&self, sums: &mut [u64; COARSE]) {
        sums.iter_mut().zip(&self.0).for_each(|(sum, count)| *sum += count.get());
    }
}

/// Everything in this bucket of a [`Coarse`] took less than so many microseconds; the last one has no bound.
pub fn coarse_bound(bucket: usize) -> u64 {
    1 << bucket
}

/// Four buckets per power of two.
#[derive(Debug)]
pub struct Fine {
    buckets: [Count; FINE],
    micros: Count,
}

impl Default for Fine {
    fn default() -> Self {
        Self { buckets: [const { Count::new() }; FINE], micros: Count::new() }
    }
}

impl Fine {
    /// `times` more that took so many microseconds each.
    #[inline]
    pub fn add(&self, micros: u64, times: u64) {
        self.buckets[fine_bucket(micros)].add(times);
        self.micros.add(micros.saturating_mul(times));
    }

    /// Adds it to `sums`, and its microseconds to `micros`.
    pub fn sum(&self, sums: &mut [u64; FINE], micros: &mut u64) {
        sums.iter_mut().zip(&self.buckets).for_each(|(sum, count)| *sum += count.get());
        *micros = micros.wrapping_add(self.micros.get());
    }
}

#[inline]
fn fine_bucket(micros: u64) -> usize {
    if micros < 4 {
        return usize::try_from(micros).unwrap_or(0);
    }
    let power = u64::BITS - 1 - micros.leading_zeros();
    let quarter = (micros >> (power - 2)) & 3;
    ((power as usize - 1) * 4 + usize::try_from(quarter).unwrap_or(0)).min(FINE - 1)
}

/// Everything in this bucket of a [`Fine`] took less than so many microseconds; the last one has no bound.
pub fn fine_bound(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64 + 1;
    }
    (bucket as u64 % 4 + 5) << (bucket / 4 - 1)
}

/// The `q`-quantile of what a [`Fine`] counted, in microseconds: from within its bucket, in proportion. None of nothing.
pub fn quantile(counts: &[u64; FINE], q: f64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far beyond 2^53 are not met")]
    let wanted = q * all as f64;
    let mut before = 0.0;
    for (bucket, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        #[expect(clippy::cast_precision_loss, reason = "as above")]
        let count = count as f64;
        if before + count >= wanted {
            #[expect(clippy::cast_precision_loss, reason = "bounds are below 2^28")]
            let (low, high) =
                (if bucket == 0 { 0.0 } else { fine_bound(bucket - 1) as f64 }, fine_bound(bucket) as f64);
            return Some(low + (high - low) * ((wanted - before) / count).clamp(0.0, 1.0));
        }
        before += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_below_its_bound_and_not_below_the_one_before() {
        for micros in (0..5000).chain((12..27).flat_map(|p| [(1 << p) - 1, 1 << p, (1 << p) + 1, (1 << p) * 5 / 4])) {
            let bucket = fine_bucket(micros);
            assert!(bucket == FINE - 1 || micros < fine_bound(bucket), "{micros}");
            assert!(bucket == 0 || micros >= fine_bound(bucket - 1), "{micros}");
            let coarse = Coarse::default();
            coarse.add(micros, 3);
            let mut sums = [0; COARSE];
            coarse.sum(&mut sums);
            let at = sums.iter().position(|n| *n == 3).expect("counted");
            assert!(at == COARSE - 1 || micros < coarse_bound(at), "{micros}");
            assert!(at == 0 || micros >= coarse_bound(at - 1), "{micros}");
        }
        assert_eq!(fine_bucket(u64::MAX), FINE - 1);
    }

    #[test]
    fn quantiles_are_within_a_tenth() {
        let fine = Fine::default();
        (1..=10_000).for_each(|micros| fine.add(micros, 1));
        let (mut counts, mut micros) = ([0; FINE], 0);
        fine.sum(&mut counts, &mut micros);
        assert_eq!(micros, 50_005_000);
        for (q, is) in [(0.5, 5000.0), (0.99, 9900.0), (0.01, 100.0)] {
            let found = quantile(&counts, q).expect("there are some");
            assert!((found - is).abs() < is / 10.0, "{q}: {found}");
        }
        assert_eq!(quantile(&[0; FINE], 0.5), None);
    }
}
