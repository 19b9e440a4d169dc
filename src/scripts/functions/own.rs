//! What functions a tenant has: a list per tenant, shared by all workers, of what was found upstream in libraries that are its own and was
//! looked at. Nothing else is called for it (isolation.md S8).

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use tokio::time::Instant;

use super::library::Tag;
use crate::tenant::{Tenant, limits::Bucket};

/// How many looks at the upstream for a function that is not in the list, at once and per second.
const LOOKS: u64 = 20;
const LOOKS_PER_SECOND: u64 = 5;
/// How many libraries a tenant may load, at once and per second: a server may be busy with one for half a second.
const LOADS: u64 = 100;
const LOADS_PER_SECOND: u64 = 1;
/// A load that takes longer is charged as several, and at the most as so many.
const SHORT: Duration = Duration::from_millis(50);
const MOST: u64 = 60;

#[derive(Debug, Default)]
struct Table {
    /// As the tenant calls them, in small letters: servers find them in any case.
    functions: HashSet<Vec<u8>>,
    libraries: usize,
    /// The upstream was asked after this.
    since: Option<Instant>,
}

/// What is known of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is the tenant's.
    Here,
    /// It was, or the upstream has said since that it has it no more.
    Doubtful,
    /// The upstream was not looked at since the connection it would be called on was opened.
    Unseen,
    /// It is not in the list.
    Absent,
}

/// The functions of one tenant.
#[derive(Debug)]
pub struct Own {
    /// What its names begin with upstream.
    pub tag: Tag,
    /// The tenant's name.
    pub tenant: Arc<str>,
    table: Mutex<Table>,
    /// The upstream did not know a function that is in the list.
    pub doubt: Arc<AtomicBool>,
    looks: Bucket,
    loads: Bucket,
}

impl Own {
    fn new(tenant: &str, prefix: &[u8]) -> Self {
        Self {
            tag: Tag::of(prefix),
            tenant: tenant.into(),
            table: Mutex::default(),
            doubt: Arc::default(),
            looks: Bucket::new(LOOKS_PER_SECOND, LOOKS),
            loads: Bucket::new(LOADS_PER_SECOND, LOADS),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the function `name`, for a connection that was opened at `opened`: what another server has, or the same one after a
    /// restart, was not looked at.
    pub fn find(&self, name: &[u8], opened: Instant) -> Known {
        let table = self.table();
        match (table.since.is_some_and(|since| since >= opened), table.functions.contains(&name.to_ascii_lowercase())) {
            (false, _) => Known::Unseen,
            (true, true) if self.doubt.load(Ordering::Relaxed) => Known::Doubtful,
            (true, true) => Known::Here,
            (true, false) => Known::Absent,
        }
    }

    /// The upstream, asked after `since`, has these.
    pub fn set(&self, functions: impl Iterator<Item = Vec<u8>>, libraries: usize, since: Instant) {
        let functions = functions.map(|name| name.to_ascii_lowercase()).collect();
        let mut table = self.table();
        // Who asked later has the last word.
        if table.since.is_none_or(|before| before <= since) {
            self.doubt.store(false, Ordering::Relaxed);
            *table = Table { functions, libraries, since: Some(since) };
        }
    }

    /// How many libraries and functions there were.
    pub fn size(&self) -> (usize, usize) {
        let table = self.table();
        (table.libraries, table.functions.len())
    }

    /// Whether the upstream may be looked at for a function that is not in the list; then it is counted.
    pub fn may_look(&self, now: Instant) -> bool {
        self.looks.take(1, now).is_ok()
    }

    /// Whether one more library may be loaded; then it is counted.
    pub fn may_load(&self, now: Instant) -> bool {
        self.loads.take(1, now).is_ok()
    }

    /// A load kept the upstream, or this tenant, waiting for so long: what is long is charged as many, up to those of a minute. A server runs a
    /// library that does not end for half a second, and nobody can stop it.
    pub fn charge_load(&self, took: Duration, now: Instant) {
        if took > SHORT {
            self.loads.charge(u64::try_from(took.as_millis() / 10).unwrap_or(u64::MAX).min(MOST), now);
        }
    }
}

/// The functions of all tenants, by their number.
#[derive(Debug, Default)]
pub struct Store(DashMap<u32, Arc<Own>>);

impl Store {
    /// Those of one tenant.
    pub fn of(&self, tenant: &Tenant) -> Arc<Own> {
        let new = || Arc::new(Own::new(&tenant.name, &tenant.prefix));
        Arc::clone(&self.0.entry(tenant.id).or_insert_with(new))
    }

    /// Forgets tenants that are gone.
    pub fn keep(&self, stands: impl Fn(u32) -> bool) {
        self.0.retain(|tenant, _| stands(*tenant));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn s8_what_was_not_looked_at_since_the_connection_opened_is_not_called() {
        let own = Own::new("t", b"t:");
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        assert_eq!(own.find(b"f", now), Known::Unseen);
        own.set([b"Ff".to_vec()].into_iter(), 1, now);
        assert_eq!([own.find(b"fF", now), own.find(b"g", now)], [Known::Here, Known::Absent]);
        assert_eq!(own.find(b"ff", later), Known::Unseen);
        own.doubt.store(true, Ordering::Relaxed);
        assert_eq!(own.find(b"ff", now), Known::Doubtful);
        own.set(std::iter::empty(), 0, later);
        assert_eq!((own.find(b"ff", later), own.size()), (Known::Absent, (0, 0)));
        // An answer that comes late.
        own.set([b"f".to_vec()].into_iter(), 1, now);
        assert_eq!(own.find(b"f", later), Known::Absent);
    }

    #[test]
    fn s10_loads_and_looks_come_at_a_rate() {
        let own = Own::new("t", b"t:");
        let start = Instant::now() + Duration::from_secs(3600);
        let count = |may: &dyn Fn(Instant) -> bool, now| (0..500).filter(|_| may(now)).count() as u64;
        assert_eq!(count(&|now| own.may_load(now), start), LOADS);
        assert_eq!(count(&|now| own.may_load(now), start + Duration::from_secs(10)), 10 * LOADS_PER_SECOND);
        assert_eq!(count(&|now| own.may_look(now), start), LOOKS);
    }
}
