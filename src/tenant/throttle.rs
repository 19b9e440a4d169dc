//! Failed logins per address and user: who guesses is answered ever later (isolation.md U2), and neither slows the logins of others from the
//! same address nor starts anew by logging in as somebody whose password is known. Who tries many users is slowed by address alone, after
//! more failures, which no success forgives.
//!
//! The first few failures within a minute cost nothing, so that a mistyped password is no nuisance; from then on each attempt waits, twice
//! as long after every further failure, until a minute passes without one or a login succeeds. The table has a bound: over it the
//! address whose last failure is longest ago is forgotten.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use dashmap::DashMap;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Failures that cost nothing.
const FREE: u32 = 5;
/// The same of an address, whoever its users.
const FREE_OF_ALL: u32 = 50;
/// Within this time; also how long an address must be without a failure to be as new.
const WINDOW: Duration = Duration::from_secs(60);
/// First wait.
const SHORTEST: Duration = Duration::from_millis(100);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(5);
/// Most addresses that are remembered.
const ADDRESSES: usize = 10_000;
/// Attempts from one address as one user that are looked at side by side: no more than are free, so that a crowd of guesses is counted as it comes.
const AT_ONCE: usize = FREE as usize;

/// Hashes the names of users, so that a remembered one has a fixed size and nobody can choose two that are one.
static NAMES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Where a client comes from and who it wants to be, as far as failures are counted: all unix sockets are one, and so is a /64 of IPv6, which is what one host
/// usually has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source(Option<IpAddr>, u64);

impl Source {
    /// No address: a unix socket.
    pub fn new(address: Option<IpAddr>, user: &[u8]) -> Self {
        Self(address.map(network), NAMES.hash_one(user))
    }

    /// The address alone.
    fn whoever(self) -> Self {
        Self(self.0, 0)
    }
}

/// What stands for everybody who has such an address at once: of IPv6 the first 64 bits, which one subscriber of a provider has for himself
/// ([RFC 6177](https://www.rfc-editor.org/rfc/rfc6177)).
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    /// Of the first that counts.
    first: Instant,
    last: Instant,
}

impl Failures {
    /// Whether they are too old to matter at `now`, when `free` cost nothing.
    fn over(&self, free: u32, now: Instant) -> bool {
        let since = if self.count < free { self.first } else { self.last };
        now.saturating_duration_since(since) >= WINDOW
    }
}

#[derive(Debug)]
struct Table {
    /// Failures that cost nothing.
    free: u32,
    by_address: HashMap<Source, Failures>,
    by_age: BTreeSet<(Instant, Source)>,
}

impl Table {
    fn new(free: u32) -> Self {
        Self { free, by_address: HashMap::new(), by_age: BTreeSet::new() }
    }

    fn before(&self, source: Source, now: Instant) -> Duration {
        match self.by_address.get(&source) {
            Some(failures) if failures.count >= self.free && !failures.over(self.free, now) => {
                (SHORTEST * 2u32.saturating_pow((failures.count - self.free).min(10))).min(LONGEST)
            }
            _ => Duration::ZERO,
        }
    }

    fn failed(&mut self, source: Source, now: Instant, most: usize) {
        let free = self.free;
        let before = self.remove(source).filter(|failures| !failures.over(free, now));
        if before.is_none() && self.by_address.len() >= most {
            let oldest = self.by_age.first().map(|(_, source)| *source);
            oldest.and_then(|source| self.remove(source));
        }
        let mut failures = before.unwrap_or(Failures { count: 0, first: now, last: now });
        failures.count = failures.count.saturating_add(1);
        failures.last = failures.last.max(now);
        self.by_age.insert((failures.last, source));
        self.by_address.insert(source, failures);
    }

    fn remove(&mut self, source: Source) -> Option<Failures> {
        let failures = self.by_address.remove(&source)?;
        self.by_age.remove(&(failures.last, source));
        Some(failures)
    }
}

/// Failed logins of all workers.
#[derive(Debug)]
pub struct Throttle {
    table: Mutex<Table>,
    /// By address alone.
    of_all: Mutex<Table>,
    /// Attempts that are being looked at, or wait to be.
    turns: DashMap<Source, Arc<Semaphore>>,
    most: usize,
}

/// The right to have an attempt looked at.
#[derive(Debug)]
pub struct Turn<'a> {
    throttle: &'a Throttle,
    source: Source,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.permit.take();
        // The table's own is the only one left: nobody waits for it.
        self.throttle.turns.remove_if(&self.source, |_, turns| Arc::strong_count(turns) == 1);
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(ADDRESSES)
    }
}

impl Throttle {
    /// Remembers `most` addresses.
    pub fn new(most: usize) -> Self {
        Self {
            table: Mutex::new(Table::new(FREE)),
            of_all: Mutex::new(Table::new(FREE_OF_ALL)),
            turns: DashMap::default(),
            most: most.max(1),
        }
    }

    /// Waits until few others from there are being looked at.
    pub async fn turn(&self, source: Source) -> Turn<'_> {
        let turns = Arc::clone(&self.turns.entry(source).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))));
        // Held before it waits: an attempt that is given up cleans up as well. The semaphore is never closed.
        let mut turn = Turn { throttle: self, source, permit: None };
        turn.permit = turns.acquire_owned().await.ok();
        turn
    }

    /// How long an attempt from there has to wait before it is looked at.
    pub fn before(&self, source: Source, now: Instant) -> Duration {
        let of_user = self.table.lock().unwrap_or_else(PoisonError::into_inner).before(source, now);
        of_user.max(self.of_all.lock().unwrap_or_else(PoisonError::into_inner).before(source.whoever(), now))
    }

    /// An attempt from there failed.
    pub fn failed(&self, source: Source, now: Instant) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).failed(source, now, self.most);
        self.of_all.lock().unwrap_or_else(PoisonError::into_inner).failed(source.whoever(), now, self.most);
    }

    /// An attempt from there succeeded: the failures of that user are forgotten.
    pub fn succeeded(&self, source: Source) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(source);
    }

    /// How many addresses are remembered.
    pub fn addresses(&self) -> usize {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).by_address.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new(text.parse().ok(), b"alice")
    }

    /// Milliseconds to wait.
    fn wait(throttle: &Throttle, source: Source, at: Instant) -> u128 {
        throttle.before(source, at).as_millis()
    }

    #[test]
    fn u2_waits_double_after_the_fifth_failure() {
        let throttle = Throttle::default();
        let (here, mut now) = (source("10.0.0.1"), Instant::now());
        for expected in [0, 0, 0, 0, 0, 100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            assert_eq!(wait(&throttle, here, now), expected);
            now += throttle.before(here, now);
            throttle.failed(here, now);
        }
        assert_eq!(wait(&throttle, source("10.0.0.2"), now), 0);
        assert_eq!(wait(&throttle, Source::new(None, b"alice"), now), 0);
        // The same address as another user is neither slowed nor, when it logs in, a way to start anew.
        let other = Source::new("10.0.0.1".parse().ok(), b"bob");
        assert_eq!(wait(&throttle, other, now), 0);
        throttle.succeeded(other);
        assert_eq!(wait(&throttle, here, now), 5000);
        throttle.succeeded(here);
        assert_eq!((wait(&throttle, here, now), throttle.addresses()), (0, 0));
    }

    #[test]
    fn u2_many_users_from_one_address_are_slowed_too() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        let user = |n: u32| Source::new("10.0.0.1".parse().ok(), &n.to_le_bytes());
        for n in 0..50 {
            assert_eq!(wait(&throttle, user(n), now), 0);
            throttle.failed(user(n), now);
        }
        // Nor does a success help.
        throttle.succeeded(user(0));
        assert_eq!(wait(&throttle, user(50), now), 100);
        assert_eq!(wait(&throttle, source("10.0.0.2"), now), 0);
    }

    #[tokio::test]
    async fn u2_a_crowd_of_guesses_is_looked_at_a_few_at_a_time() {
        let throttle = Throttle::default();
        let here = source("10.0.0.1");
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(throttle.turn(here).await);
        }
        let soon = |source| tokio::time::timeout(Duration::from_millis(20), throttle.turn(source));
        assert!(soon(here).await.is_err(), "one more at once");
        assert!(soon(source("10.0.0.2")).await.is_ok());
        held.pop();
        assert!(soon(here).await.is_ok());
        held.clear();
        assert_eq!(throttle.turns.len(), 0);
    }

    #[test]
    fn failures_are_forgotten_after_a_minute() {
        let throttle = Throttle::default();
        let (here, mut now) = (Source::new(None, b"alice"), Instant::now());
        // Every 20 seconds there are never five within a minute.
        for _ in 0..20 {
            assert_eq!(wait(&throttle, here, now), 0);
            throttle.failed(here, now);
            now += Duration::from_secs(20);
        }
        now += WINDOW;
        for _ in 0..6 {
            throttle.failed(here, now);
        }
        assert_eq!(wait(&throttle, here, now), 200);
        assert_eq!(wait(&throttle, here, now + WINDOW - Duration::from_millis(1)), 200);
        assert_eq!(wait(&throttle, here, now + WINDOW), 0);
        // A clock of another thread may be a little behind.
        throttle.failed(here, now - Duration::from_millis(1));
        assert_eq!(wait(&throttle, here, now), 400);
    }

    #[test]
    fn the_table_keeps_the_latest() {
        let throttle = Throttle::new(3);
        let mut now = Instant::now();
        for last in 0..6 {
            for _ in 0..6 {
                throttle.failed(source(&format!("10.0.0.{last}")), now);
            }
            now += Duration::from_millis(1);
            // Not the oldest any more.
            throttle.failed(source("10.0.0.0"), now);
            now += Duration::from_millis(1);
        }
        assert_eq!(throttle.addresses(), 3);
        let waits: Vec<u128> = (0..6).map(|last| wait(&throttle, source(&format!("10.0.0.{last}")), now)).collect();
        assert_eq!(waits, [5000, 0, 0, 0, 200, 200]);
        assert_eq!(throttle.table.lock().unwrap().by_age.len(), 3);
    }

    #[test]
    fn addresses_of_one_host_are_one() {
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:ffff::9"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_ne!(source("10.0.0.1"), Source::new(None, b"alice"));
    }
}
