//! What scripts there are: a bounded table per tenant, shared by all workers, from the SHA1 a client knows to the script as it is upstream.
//!
//! A tenant finds its own scripts here and no others: not one that another tenant loaded, nor one that some other client of the upstream
//! did (isolation.md S6). Upstream, the same source has another SHA1 for each tenant, since the prefix stands in it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use dashmap::DashMap;
use sha1::{Digest as _, Sha1};
use tokio::time::Instant;

use crate::{
    rewrite::reply::script::{Counters, Sha},
    tenant::limits::Bucket,
};

/// Most scripts of one tenant; with more, the one unused for longest goes.
const COUNT: usize = 2000;
/// Most bytes of all scripts of one tenant, as they are upstream.
const BYTES: usize = 16 * 1024 * 1024;
/// How many new ones a tenant may bring at once, and per second after that: a server before 7.4 forgets none, so that whoever writes values into
/// his source fills its memory (isolation.md S10). Applications have some dozens.
const NEW: u64 = 500;
const NEW_PER_SECOND: u64 = 1;
/// The same in bytes, as they are upstream.
const NEW_BYTES: u64 = 8 * 1024 * 1024;
const NEW_BYTES_PER_SECOND: u64 = 16 * 1024;
/// Most bytes of one script.
pub const LONGEST: usize = 1024 * 1024;

/// SHA1 as Redis writes it.
pub fn sha(source: &[u8]) -> Sha {
    let mut out = [0; 40];
    let digits = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(Sha1::digest(source)) {
        pair[0] = digits[usize::from(byte >> 4)];
        pair[1] = digits[usize::from(byte & 15)];
    }
    out
}

/// One script.
#[derive(Debug)]
pub struct Entry {
    /// As its client knows it.
    pub theirs: Sha,
    /// Upstream.
    pub ours: Sha,
    /// As it is sent upstream.
    pub wrapped: Vec<u8>,
    /// Whether the upstream has compiled it: before that no EVALSHA finds it.
    pub compiled: Arc<AtomicBool>,
}

impl Entry {
    /// Whether the upstream has compiled it.
    pub fn compiled(&self) -> bool {
        self.compiled.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Table {
    scripts: HashMap<Sha, (Arc<Entry>, u64)>,
    bytes: usize,
    /// Counts uses.
    clock: u64,
}

/// The scripts of one tenant.
#[derive(Debug)]
pub struct Own {
    table: Mutex<Table>,
    /// Scripts that it did not have, and their bytes.
    new: Bucket,
    new_bytes: Bucket,
    /// What is on its way.
    pub counters: Arc<Counters>,
    /// The tenant's name.
    pub tenant: Arc<str>,
    /// Which upstream it lives on: no more than a number to compare.
    pub site: usize,
}

impl Own {
    fn new(tenant: &str, site: usize) -> Self {
        Self {
            table: Mutex::default(),
            new: Bucket::new(NEW_PER_SECOND, NEW),
            new_bytes: Bucket::new(NEW_BYTES_PER_SECOND, NEW_BYTES),
            counters: Arc::default(),
            tenant: tenant.into(),
            site,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The script with this SHA1, whether or not it has been compiled.
    pub fn find(&self, theirs: &Sha) -> Option<Arc<Entry>> {
        let mut table = self.table();
        table.clock += 1;
        let now = table.clock;
        let (entry, used) = table.scripts.get_mut(theirs)?;
        *used = now;
        Some(Arc::clone(entry))
    }

    /// The script with this source, added if it is new; `wrap` makes what is sent upstream of it, and is not asked for one that is known.
    /// `None`: it makes nothing.
    pub fn add(&self, source: &[u8], wrap: impl FnOnce() -> Option<Vec<u8>>) -> Option<Arc<Entry>> {
        let theirs = sha(source);
        if let Some(entry) = self.find(&theirs) {
            return Some(entry);
        }
        let wrapped = wrap()?;
        let entry = Arc::new(Entry { theirs, ours: sha(&wrapped), wrapped, compiled: Arc::default() });
        let mut table = self.table();
        table.clock += 1;
        let now = table.clock;
        table.bytes += entry.wrapped.len();
        if let Some((before, _)) = table.scripts.insert(theirs, (Arc::clone(&entry), now)) {
            table.bytes -= before.wrapped.len();
        }
        while table.scripts.len() > COUNT || table.bytes > BYTES {
            let oldest = table.scripts.iter().min_by_key(|(_, (_, used))| *used).map(|(sha, _)| *sha);
            let Some((gone, _)) = oldest.and_then(|sha| table.scripts.remove(&sha)) else { break };
            table.bytes -= gone.wrapped.len();
        }
        Some(entry)
    }

    /// Whether one more script of `bytes`, as it is upstream, may come; then it is counted.
    pub fn admits(&self, bytes: usize, now: Instant) -> bool {
        self.new.take(1, now).is_ok() && self.new_bytes.take(bytes as u64, now).is_ok()
    }

    /// Forgets them all.
    pub fn clear(&self) {
        *self.table() = Table::default();
    }

    /// How many there are, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let table = self.table();
        (table.scripts.len(), table.bytes)
    }
}

/// The scripts of all tenants, by their number.
#[derive(Debug, Default)]
pub struct Store(DashMap<u32, Arc<Own>>);

impl Store {
    /// Those of one tenant.
    pub fn of(&self, tenant: u32, name: &str, site: usize) -> Arc<Own> {
        if let Some(own) = self.0.get(&tenant) {
            return Arc::clone(&own);
        }
        let mut new = Own::new(name, site);
        // A tenant whose settings changed has another number, and may have a script running from before.
        if let Some(before) = self.0.iter().find(|own| *own.tenant == *name && own.site == site) {
            new.counters = Arc::clone(&before.counters);
        }
        Arc::clone(&self.0.entry(tenant).or_insert_with(|| Arc::new(new)))
    }

    /// Those of every tenant that has run any.
    pub fn all(&self) -> Vec<Arc<Own>> {
        self.0.iter().map(|own| Arc::clone(own.value())).collect()
    }

    /// Forgets tenants that are gone, all but what may still be running.
    pub fn keep(&self, stands: impl Fn(u32) -> bool) {
        self.0.retain(|tenant, own| {
            if stands(*tenant) {
                return true;
            }
            own.clear();
            Arc::strong_count(own) > 1 || own.counters.any()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rewrite::reply::script::Flight;

    #[test]
    fn the_digest_is_the_one_redis_writes() {
        assert_eq!(&sha(b"return 1"), b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }

    #[test]
    fn s10_the_table_is_bounded_and_the_unused_go_first() {
        let own = Own::new("t", 0);
        let first = own.add(b"first", || Some(b"w".to_vec())).expect("it is new");
        for i in 0..COUNT {
            own.add(format!("s{i}").as_bytes(), || Some(format!("w{i}").into_bytes()));
            assert!(own.find(&first.theirs).is_some());
        }
        assert_eq!(own.size().0, COUNT);
        assert!(own.find(&sha(b"s0")).is_none() && own.find(&sha(b"s1")).is_some());
        for i in 0..40 {
            own.add(format!("long{i}").as_bytes(), || Some(vec![0; LONGEST]));
        }
        assert!(own.size().1 <= BYTES);
        own.clear();
        assert_eq!(own.size(), (0, 0));
        assert!(own.find(&first.theirs).is_none());
    }

    #[test]
    fn s10_new_scripts_come_at_a_rate() {
        let own = Own::new("t", 0);
        let start = Instant::now() + Duration::from_secs(3600);
        let admitted = |now, bytes| (0..2000).filter(|_| own.admits(bytes, now)).count() as u64;
        assert_eq!([admitted(start, 0), admitted(start, 0)], [NEW, 0]);
        own.clear();
        assert_eq!(admitted(start + Duration::from_secs(60), 0), 60 * NEW_PER_SECOND);
        // Few, but large.
        let later = start + Duration::from_secs(3600);
        assert_eq!(admitted(later, LONGEST), NEW_BYTES / LONGEST as u64);
    }

    #[test]
    fn s7_what_runs_outlives_a_change_of_settings() {
        let store = Store::default();
        let flight = Flight::begin(&store.of(1, "t", 7).counters);
        store.keep(|_| false);
        assert!(store.all().len() == 1 && store.of(2, "t", 7).counters.any());
        // Neither another tenant's nor another upstream's.
        assert!(!store.of(3, "u", 7).counters.any() && !store.of(4, "t", 8).counters.any());
        flight.land();
        store.keep(|tenant| tenant == 2);
        assert_eq!(store.all().len(), 1);
    }
}
