//! SLOWLOG: each tenant's slow commands, as keyfence saw them: from the moment a request was read to the moment its reply was. What Redis
//! keeps (<https://redis.io/docs/latest/commands/slowlog/>) is the time a command ran, of all tenants together, with their keys and values;
//! this is the time a tenant's client waited, waiting behind others included, and holds no argument.

mod spikes;

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dashmap::DashMap;

use crate::command::ROWS;
pub use spikes::{Event, Series, Spikes};

/// One slow command.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Ascending over all tenants.
    pub id: u64,
    /// When its reply came, in seconds since 1970.
    pub at: u64,
    /// How long its client waited.
    pub took: Duration,
    /// Index of its row.
    pub row: u16,
    /// How many arguments it had, the command's own words included.
    pub argc: u32,
}

/// The slow commands of all tenants.
#[derive(Debug)]
pub struct SlowLog {
    /// Nanoseconds.
    threshold: AtomicU64,
    length: AtomicUsize,
    next: AtomicU64,
    tenants: DashMap<u32, Mutex<VecDeque<Entry>>>,
    /// LATENCY of the same commands.
    pub spikes: Spikes,
}

impl SlowLog {
    /// Keeps the last `length` commands of each tenant that took at least `threshold`.
    pub fn new(threshold: Duration, length: usize) -> Self {
        let log = Self {
            threshold: AtomicU64::new(0),
            length: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            tenants: DashMap::default(),
            spikes: Spikes::default(),
        };
        log.set(threshold, length);
        log
    }

    /// Changes both; what is kept beyond the new length goes when the next comes.
    pub fn set(&self, threshold: Duration, length: usize) {
        self.threshold.store(u64::try_from(threshold.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.length.store(length, Ordering::Relaxed);
    }

    /// Whether a command that took this long is slow.
    #[inline]
    pub fn is_slow(&self, took: Duration) -> bool {
        took.as_nanos() >= u128::from(self.threshold.load(Ordering::Relaxed))
    }

    /// Keeps a command.
    pub fn push(&self, tenant: u32, took: Duration, row: u16, argc: u32) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.spikes.add(tenant, ROWS.get(usize::from(row)), at, took);
        let length = self.length.load(Ordering::Relaxed);
        if length == 0 {
            return;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let log = self.tenants.entry(tenant).or_default();
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_front(Entry { id, at, took, row, argc });
        log.truncate(length);
    }

    /// The newest `most` of a tenant's commands.
    pub fn newest(&self, tenant: u32, most: usize) -> Vec<Entry> {
        self.tenants.get(&tenant).map_or_else(Vec::new, |log| {
            log.lock().unwrap_or_else(PoisonError::into_inner).iter().take(most).cloned().collect()
        })
    }

    /// The newest `most` of all tenants', each with its tenant's number.
    pub fn newest_of_all(&self, most: usize) -> Vec<(u32, Entry)> {
        let mut all: Vec<(u32, Entry)> = Vec::new();
        for log in &self.tenants {
            let own = log.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(own.iter().take(most).map(|entry| (*log.key(), entry.clone())));
        }
        all.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse(entry.id));
        all.truncate(most);
        all
    }

    /// How many of a tenant's commands are kept.
    pub fn len(&self, tenant: u32) -> usize {
        self.tenants.get(&tenant).map_or(0, |log| log.lock().unwrap_or_else(PoisonError::into_inner).len())
    }

    /// Forgets tenants that are no more.
    pub fn keep(&self, stands: impl Fn(u32) -> bool) {
        self.tenants.retain(|tenant, _| stands(*tenant));
        self.spikes.keep(stands);
    }

    /// Forgets a tenant's commands.
    pub fn reset(&self, tenant: u32) {
        self.tenants.remove(&tenant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_of_each_tenant() {
        let log = SlowLog::new(Duration::from_millis(10), 2);
        assert!(log.is_slow(Duration::from_millis(10)) && !log.is_slow(Duration::from_millis(9)));
        for argc in 1..=3 {
            log.push(1, Duration::from_millis(20), 7, argc);
        }
        log.push(2, Duration::from_millis(30), 8, 1);
        assert_eq!(log.newest(1, 10).iter().map(|e| (e.id, e.argc)).collect::<Vec<_>>(), [(2, 3), (1, 2)]);
        assert_eq!((log.len(1), log.len(2), log.len(3)), (2, 1, 0));
        log.reset(1);
        assert_eq!((log.len(1), log.len(2)), (0, 1));
    }
}
