//! What keeps the tier true: one tracking connection per upstream (CLIENT TRACKING, BCAST, the prefixes of the tenants whose values are kept), as
//! keyfence's own user, kept up by a task on the main thread (<https://redis.io/docs/latest/develop/reference/client-side-caching/>).
//!
//! ```text
//!   +OK to CLIENT TRACKING ─► all is void, then the tenants' leases begin
//!   invalidate push        ─► the keys it names are dropped; null (the server was flushed): all is void
//!   PONG                   ─► leases run on, from when its PING was sent; holds that had been answered before that are over
//!   lost                   ─► leases end, all is void
//! ```
//!
//! Pushes and replies of one connection come in order, so when a PONG is there, all that changed before the server saw the PING has been told.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    downstream::Downstream,
    error::UpstreamError,
    metrics::Meter,
    resp::{self, reply},
    tenant::Tenant,
    tier::{Lease, Tier},
    upstream::{
        Pool, Site,
        feed::{Audience, Feed, Who},
    },
    worker::Shared,
};

/// How often the upstream is asked for a sign of life.
const BEAT: Duration = Duration::from_millis(500);
/// How long a lease lasts after a PING was sent that was answered, in milliseconds: the longest that anything is served without news.
const LEASE: u64 = 2000;
/// An upstream that refused to track is asked again after this.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// Requests without a reply on the tracking connection.
const AWAITED: usize = 8;
/// How often room is taken back that what is over still has.
const SWEEP: Duration = Duration::from_millis(100);
/// Most bytes of one push; a larger one is taken to name every key.
const LIMIT: usize = 16 * 1024 * 1024;
/// Bytes of the buffer that is read into.
const SCRATCH: usize = 64 * 1024;
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// Tenants by prefix; none begins with another.
type Tenants = BTreeMap<Vec<u8>, Arc<Tenant>>;

/// Keeps the tier true for one upstream, until it is taken out of the settings.
pub async fn keep(shared: Arc<Shared>, site: Arc<Site>) {
    // Made when it is first needed.
    let pool = OnceCell::new();
    let new_pool = || {
        let scratch = Rc::new(RefCell::new(vec![0; SCRATCH]));
        let meter = Rc::new(Meter::new(&shared.metrics));
        Pool::new(Arc::clone(&site), Arc::clone(&shared.slowlog), scratch, Rc::default(), Rc::default(), meter)
    };
    let mut watch = Current(None);
    let mut looked = None;
    let mut beat = Instant::now();
    loop {
        let now = Instant::now();
        let due = now >= beat;
        if due || looked.is_none() {
            beat = now + BEAT;
            let tenants = wanting(&shared, &site);
            if looked.as_ref() != Some(&numbers(&tenants)) {
                looked = Some(numbers(&tenants));
                watch.retire();
                watch.0 = (!tenants.is_empty()).then(|| Watch::new(&shared.tier, pool.get_or_init(new_pool), tenants));
            }
        }
        if let Some(watch) = &watch.0 {
            watch.look(due);
        }
        let _ = timeout(BEAT, site.wake_tracking.notified()).await;
    }
}

/// The connection in use, which ends with its keeper.
struct Current(Option<Rc<Watch>>);

impl Current {
    fn retire(&mut self) {
        if let Some(watch) = self.0.take() {
            watch.retire();
        }
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        self.retire();
    }
}

/// Has the tier tidied up, for as long as it is polled.
pub async fn tidy(tier: Arc<Tier>) {
    let mut every = interval(SWEEP);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        tier.sweep();
    }
}

/// The tenants on this upstream whose values are to be kept.
fn wanting(shared: &Shared, site: &Arc<Site>) -> Tenants {
    let directory = shared.directory.load();
    let all = directory.tenants.values().chain(&directory.anonymous);
    all.filter(|t| t.tier.wanted() && Arc::ptr_eq(&t.site, site)).map(|t| (t.prefix.to_vec(), Arc::clone(t))).collect()
}

fn numbers(tenants: &Tenants) -> Vec<u32> {
    tenants.values().map(|tenant| tenant.id).collect()
}

#[derive(Debug)]
enum Awaited {
    Tracking,
    /// Who is released when it is there.
    Pong(Vec<(Arc<Lease>, u32)>),
}

/// One tracking connection, for a set of tenants that does not change.
#[derive(Debug)]
struct Watch {
    tier: Arc<Tier>,
    site: Arc<Site>,
    feed: Rc<Feed>,
    tenants: Tenants,
    /// With the moment each was asked, in milliseconds of the tier's clock, too.
    awaited: RefCell<VecDeque<(Instant, u64, Awaited)>>,
    /// Whose release waits for the next PING, since the upstream said something else to the last.
    postponed: RefCell<Vec<(Arc<Lease>, u32)>>,
    /// The upstream would not track.
    refused: Cell<Option<Instant>>,
    retired: Cell<bool>,
}

impl Watch {
    fn new(tier: &Arc<Tier>, pool: &Pool, tenants: Tenants) -> Rc<Self> {
        Rc::new(Self {
            tier: Arc::clone(tier),
            site: Arc::clone(&pool.env().site),
            feed: Rc::new(Feed::new(pool.env(), Who::Own)),
            tenants,
            awaited: RefCell::default(),
            postponed: RefCell::default(),
            refused: Cell::new(None),
            retired: Cell::new(false),
        })
    }

    fn leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.tenants.values().map(|tenant| &tenant.tier)
    }

    /// Asks for a sign of life when one is `due`, or somebody waits for it.
    fn look(self: &Rc<Self>, due: bool) {
        let full = self.awaited.borrow().len() >= AWAITED;
        if self.feed.up() && full {
            return;
        }
        let releases: Vec<_> = self
            .leases()
            .filter_map(|lease| Some((Arc::clone(lease), lease.take_releases())).filter(|(_, n)| *n > 0))
            .collect();
        if !self.feed.up() {
            // Nothing is served, and what is kept is void before it is again.
            releases.iter().for_each(|(lease, n)| lease.release(*n));
            if self.refused.get().is_some_and(|at| at.elapsed() >= REFUSED_AGAIN) {
                self.refused.set(None);
            }
            if self.feed.idle() && self.wanted() {
                let _ = self.feed.want(self);
            }
        } else if due || !releases.is_empty() {
            let releases = [releases, self.postponed.take()].concat();
            self.feed.send(|out| out.extend_from_slice(PING));
            self.expect(Awaited::Pong(releases));
        }
    }

    fn expect(&self, what: Awaited) {
        self.awaited.borrow_mut().push_back((Instant::now(), self.tier.now(), what));
    }

    /// Another takes its place.
    fn retire(&self) {
        self.retired.set(true);
        self.end();
        self.feed.close();
    }

    /// Nobody is told of changes any more.
    fn end(&self) {
        self.leases().for_each(|lease| lease.end());
        self.clear();
        self.postponed.take().iter().for_each(|(lease, n)| lease.release(*n));
        for (_, _, what) in self.awaited.take() {
            if let Awaited::Pong(releases) = what {
                releases.iter().for_each(|(lease, n)| lease.release(*n));
            }
        }
    }

    /// Everything kept of this upstream is void.
    fn clear(&self) {
        if let Some(store) = self.tier.store() {
            store.clear_upstream(self.site.number);
        }
    }

    fn renew(&self, sent: u64) {
        self.leases().for_each(|lease| lease.renew(sent, sent + LEASE));
    }

    fn answered(&self, sent: u64, what: Awaited, line: &[u8]) -> Result<(), &'static str> {
        match what {
            Awaited::Tracking if line.starts_with(b"+OK") => {
                // A ticket that was taken while nobody tracked must not outlive this.
                self.clear();
                self.renew(sent);
                tracing::info!(upstream = %self.site.target, tenants = self.tenants.len(), "the tier is on: the upstream tells of changes");
                Ok(())
            }
            Awaited::Tracking => {
                let error = line.trim_ascii_end().escape_ascii();
                tracing::warn!(upstream = %self.site.target, %error, "no tier: the upstream does not tell of changes");
                self.refused.set(Some(Instant::now()));
                Err("CLIENT TRACKING was refused")
            }
            // An upstream that is busy with a script answers PING with an error, and holds back what it has to say of changes: that proves nothing.
            Awaited::Pong(releases) if !line.starts_with(b"+PONG") => {
                self.postponed.borrow_mut().extend(releases);
                Ok(())
            }
            Awaited::Pong(releases) => {
                self.renew(sent);
                releases.iter().for_each(|(lease, n)| lease.release(*n));
                Ok(())
            }
        }
    }

    /// The upstream says that this key has changed.
    fn changed(&self, key: &[u8]) {
        if let Some(store) = self.tier.store() {
            store.invalidate(self.site.number, key);
        }
        let before = self.tenants.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        if let Some((_, tenant)) = before.filter(|(prefix, _)| key.starts_with(prefix)) {
            tenant.tier.invalidated();
        }
    }
}

/// Hands on every key of an `invalidate` push; `false` when it means all of them, or is not understood and so may.
fn each_key(push: &[u8], mut hand_on: impl FnMut(&[u8])) -> bool {
    let Some(mut rest) = push.strip_prefix(b">2\r\n$10\r\ninvalidate\r\n") else { return false };
    let Some(b'*') = rest.first() else { return false };
    let Ok(Some((count, body))) = reply::length(rest) else { return false };
    rest = &rest[body..];
    for _ in 0..count {
        let Ok(Some((len, body))) = reply::length(rest) else { return false };
        let end = usize::try_from(len).ok().and_then(|len| len.checked_add(body));
        let Some(key) = end.and_then(|end| rest.get(body..end)).filter(|_| rest[0] == b'$') else { return false };
        hand_on(key);
        rest = rest.get(body + key.len() + 2..).unwrap_or_default();
    }
    true
}

impl Audience for Watch {
    fn connected(&self, out: &mut Vec<u8>) {
        self.awaited.borrow_mut().clear();
        resp::put_header(out, b'*', 4 + 2 * self.tenants.len() as u64);
        [&b"CLIENT"[..], b"TRACKING", b"ON", b"BCAST"].iter().for_each(|word| resp::put_bulk(out, word));
        for prefix in self.tenants.keys() {
            resp::put_bulk(out, b"PREFIX");
            resp::put_bulk(out, prefix);
        }
        self.expect(Awaited::Tracking);
    }

    fn frame(&self, frame: &[u8]) -> Result<usize, &'static str> {
        if frame.first() == Some(&b'>') {
            if !each_key(frame, |key| self.changed(key)) {
                self.clear();
            }
            return Ok(0);
        }
        let next = self.awaited.borrow_mut().pop_front();
        let (_, sent, what) = next.ok_or("a reply that nobody waits for")?;
        self.answered(sent, what, frame).map(|()| 0)
    }

    fn too_large(&self, _head: &[u8]) {
        // What it names was changed before it was sent.
        self.clear();
    }

    fn limit(&self) -> usize {
        LIMIT
    }

    fn take_written(&self, _into: &mut Vec<Rc<Downstream>>) {}

    fn ask(&self) {
        self.feed.send(|out| out.extend_from_slice(PING));
        self.expect(Awaited::Pong(Vec::new()));
    }

    fn waits_since(&self) -> Option<Instant> {
        self.awaited.borrow().front().map(|(since, ..)| *since)
    }

    fn lost(&self, _error: &UpstreamError) {
        self.end();
    }

    fn wanted(&self) -> bool {
        !self.retired.get() && self.refused.get().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_push_are_found_or_it_means_all() {
        let keys = |push: &[u8]| {
            let mut keys = Vec::new();
            each_key(push, |key| keys.push(key.to_vec())).then_some(keys)
        };
        let push = |rest: &str| format!(">2\r\n$10\r\ninvalidate\r\n{rest}").into_bytes();
        assert_eq!(keys(&push("*2\r\n$3\r\na:k\r\n$2\r\n\r\n\r\n")), Some(vec![b"a:k".to_vec(), b"\r\n".to_vec()]));
        assert_eq!(keys(&push("*0\r\n")), Some(vec![]));
        for all in ["_\r\n", "*1\r\n:1\r\n", "*2\r\n$1\r\na\r\n", "*1\r\n$9\r\na\r\n", "*1\r\n$-1\r\n"] {
            assert_eq!(keys(&push(all)), None, "{all:?}");
        }
        assert_eq!(keys(b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n"), None);
    }
}
