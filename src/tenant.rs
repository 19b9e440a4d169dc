//! Who a connection speaks for: the namespace it sees, what it may do, and what all its tenant's connections share.

pub mod limits;
pub mod password;
pub mod subscriptions;
pub mod throttle;
pub mod watchers;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};

use crate::{
    command::{Categories, ROWS, Row, find},
    downstream::Backlog,
    tier::Lease,
    upstream::Site,
};
use limits::Bucket;
use subscriptions::Subscriptions;
use watchers::Watchers;

/// One tenant. Without `[tenants]` there is one, called `default`, whose prefix is `key_prefix`.
#[derive(Debug)]
pub struct Tenant {
    /// Its number, unique in this process and never used again.
    pub id: u32,
    /// Its name, as error texts and CLIENT LIST show it.
    pub name: String,
    /// What its keys begin with upstream.
    pub prefix: Arc<[u8]>,
    /// Where its keys are.
    pub site: Arc<Site>,
    /// The upstream database that its database 0 is.
    pub db_base: u32,
    /// How many databases it has.
    pub databases: u32,
    /// By row index.
    pub permitted: Permitted,
    /// Whether it may run scripts.
    pub scripts: Scripts,
    /// CLIENT PAUSE.
    pub pause: Pause,
    /// Rates and sizes.
    pub limits: Limits,
    /// Its client connections.
    pub connections: AtomicU32,
    /// Replies that its clients have not taken yet.
    pub backlog: Arc<Backlog>,
    /// Declared bytes of the large requests it is sending.
    pub large: AtomicU64,
    /// Held during a step of scoped work (a page of a SCAN, say): one at a time is its share.
    pub step: Mutex<()>,
    /// What its connections listen to.
    pub subscriptions: Subscriptions,
    /// Who watches its commands.
    pub watchers: Watchers,
    /// Its part of the tier.
    pub tier: Arc<Lease>,
}

impl Tenant {
    /// One more connection; `false`, and none more, at the limit. [`Tenant::leave`] takes it back.
    pub fn admit(&self) -> bool {
        let limit = self.limits.connections.load(Ordering::Relaxed);
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let admitted = limit == 0 || before < limit;
        if !admitted {
            self.leave();
        }
        admitted
    }

    /// One connection less.
    pub fn leave(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a tenant may run scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scripts {
    /// Behind a wall, on an upstream whose scripts cannot alter one another.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Rates and sizes of one tenant; all can be changed while it is served.
#[derive(Debug)]
pub struct Limits {
    /// Commands per second.
    pub ops: Bucket,
    /// Bytes per second, requests and replies together.
    pub bytes: Bucket,
    /// Most connections; 0: no limit.
    pub connections: AtomicU32,
    /// Longest argument in bytes.
    pub value_size: AtomicU64,
    /// Replies owed to one client before no more is read from it.
    pub in_flight: AtomicU32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ops: Bucket::new(0, 0),
            bytes: Bucket::new(0, 0),
            connections: AtomicU32::new(0),
            value_size: AtomicU64::new(512 * 1024 * 1024),
            in_flight: AtomicU32::new(10_000),
        }
    }
}

/// The commands a tenant may run, of those this build serves.
#[derive(Clone, PartialEq, Eq)]
pub struct Permitted(Box<[bool]>);

impl fmt::Debug for Permitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands", self.0.iter().filter(|p| **p).count())
    }
}

impl Permitted {
    /// Everything served.
    pub fn all() -> Self {
        Self(ROWS.iter().map(Row::served).collect())
    }

    /// Nothing: a connection before login.
    pub fn nothing() -> Self {
        Self(vec![false; ROWS.len()].into())
    }

    /// What `allow` names (everything, if it names nothing) but for what `deny` names: commands (`get`), subcommands (`config|get`; a
    /// container stands for all of its own) and categories (`@write`). Names that do not exist were refused with the settings.
    ///
    /// An `allow` list is about data: what a client needs to be connected at all (`@connection`) is allowed besides, unless denied. Loading a
    /// module's serialised payload, which the module parses without checking, has to be named (isolation.md A14).
    pub fn from_lists(allow: &[String], deny: &[String]) -> Self {
        let named = |list: &[String], row: &Row| {
            list.iter().any(|item| match item.strip_prefix('@') {
                Some(category) => Categories::named(category.as_bytes()).is_some_and(|c| row.categories.has(c)),
                None => find(item).is_some_and(|named| named.index == row.index || named.index == row.parent),
            })
        };
        let connection = |row: &Row| Categories::named(b"connection").is_some_and(|c| row.categories.has(c));
        let by_default = |row: &Row| allow.is_empty() && !loads_payload(row) || connection(row);
        let permitted = |row: &Row| row.served() && (by_default(row) || named(allow, row)) && !named(deny, row);
        Self(ROWS.iter().map(permitted).collect())
    }

    /// By row index.
    pub fn rows(&self) -> &[bool] {
        &self.0
    }

    /// Whether the tenant may run it.
    #[inline]
    pub fn has(&self, row: &Row) -> bool {
        self.0.get(usize::from(row.index)).copied().unwrap_or(false)
    }
}

fn loads_payload(row: &Row) -> bool {
    row.name.ends_with(".LOADCHUNK") || row.name == "BF.LOAD"
}

/// CLIENT PAUSE over the tenant's own connections.
#[derive(Debug)]
pub struct Pause {
    start: Instant,
    /// Milliseconds after `start`; 0: not paused.
    until: AtomicU64,
    writes_only: AtomicBool,
}

impl Default for Pause {
    fn default() -> Self {
        Self { start: Instant::now(), until: AtomicU64::new(0), writes_only: AtomicBool::new(false) }
    }
}

impl Pause {
    /// Holds commands back (all, or those that may write) for `time`.
    pub fn begin(&self, time: Duration, writes_only: bool) {
        let until = (self.start.elapsed() + time).as_millis();
        self.writes_only.store(writes_only, Ordering::Relaxed);
        // Centuries from now at the most: the argument of CLIENT PAUSE is bounded.
        self.until.store(u64::try_from(until).unwrap_or(u64::MAX).max(1), Ordering::Release);
    }

    /// Lets them go on.
    pub fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    /// When a command that writes (or not) may run, if that is not now.
    pub fn holds(&self, write: bool) -> Option<Instant> {
        let until = self.until.load(Ordering::Acquire);
        if until == 0 {
            return None;
        }
        let until = self.start.checked_add(Duration::from_millis(until))?;
        if until <= Instant::now() {
            self.end();
            return None;
        }
        (write || !self.writes_only.load(Ordering::Relaxed)).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_name_commands_subcommands_and_categories() {
        let list = |items: &[&str]| items.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>();
        let has = |p: &Permitted, name: &str| p.has(find(name).expect("a row"));
        let all = Permitted::all();
        assert!(has(&all, "get") && has(&all, "client|list") && !has(&all, "config|set"));
        let p = Permitted::from_lists(&[], &list(&["@dangerous", "get", "client|kill"]));
        assert!(
            !has(&p, "get") && has(&p, "set") && !has(&p, "flushdb") && !has(&p, "client|kill") && has(&p, "client|id")
        );
        assert!(has(&p, "hello") && !has(&Permitted::from_lists(&[], &[]), "cf.loadchunk"));
        let p = Permitted::from_lists(&list(&["@read", "client"]), &list(&["client|list"]));
        assert!(has(&p, "get") && !has(&p, "set") && has(&p, "client|id") && !has(&p, "client|list"));
        assert!(
            !has(&Permitted::from_lists(&list(&["config|set"]), &[]), "config|set"),
            "what is not served cannot be allowed"
        );
    }
}
