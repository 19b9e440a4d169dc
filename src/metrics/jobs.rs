//! Scoped work in progress, so that an operator sees who walks through how many keys.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use super::lock;

/// A piece of scoped work.
#[derive(Debug)]
pub struct Job {
    /// Whose.
    pub tenant: String,
    /// Which command asked for it.
    pub command: &'static str,
    /// The upstream's database.
    pub db: u32,
    /// When it began.
    pub since: Instant,
    /// Names that it came upon so far.
    pub keys: AtomicU64,
    /// How far it has come, in thousandths: the place of its cursor in the upstream's table.
    pub thousandths: AtomicU64,
}

impl Job {
    /// A page was read that ended with the cursor `next`, and had so many names. The bits of a cursor in reverse order are the place in a
    /// table of 2^n buckets, as a fraction of 2^64.
    pub fn page(&self, next: u64, names: usize) {
        self.keys.fetch_add(names as u64, Ordering::Relaxed);
        let at = if next == 0 { 1000 } else { ((u128::from(next.reverse_bits()) * 1000) >> 64) as u64 };
        self.thousandths.store(at, Ordering::Relaxed);
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct Jobs {
    running: Mutex<BTreeMap<u64, Arc<Job>>>,
    next: AtomicU64,
}

/// It runs as long as this is there.
#[derive(Debug)]
pub struct JobGuard {
    jobs: Arc<Jobs>,
    number: u64,
    /// What runs.
    pub job: Arc<Job>,
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        lock(&self.jobs.running).remove(&self.number);
    }
}

impl Jobs {
    /// It begins.
    pub fn begin(self: &Arc<Self>, tenant: &str, command: &'static str, db: u32) -> JobGuard {
        let job = Arc::new(Job {
            tenant: tenant.to_owned(),
            command,
            db,
            since: Instant::now(),
            keys: AtomicU64::new(0),
            thousandths: AtomicU64::new(0),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.running).insert(number, Arc::clone(&job));
        JobGuard { jobs: Arc::clone(self), number, job }
    }

    /// What runs now, the oldest first.
    pub fn running(&self) -> Vec<Arc<Job>> {
        lock(&self.running).values().cloned().collect()
    }

    /// How many run.
    pub fn len(&self) -> usize {
        lock(&self.running).len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_there_while_it_runs() {
        let jobs = Arc::<Jobs>::default();
        let guard = jobs.begin("acme", "FLUSHDB", 0);
        guard.job.page(1 << 3, 10);
        // 1 << 3 of a table of 16 buckets is the second bucket in the order of a walk.
        assert_eq!(jobs.running()[0].keys.load(Ordering::Relaxed), 10);
        guard.job.page(1, 5);
        assert_eq!(guard.job.thousandths.load(Ordering::Relaxed), 500);
        drop(guard);
        assert!(jobs.is_empty());
    }
}
