//! One tracking connection: what it says, and what is concluded from it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::asked::Asked;
use crate::{
    downstream::Downstream,
    error::UpstreamError,
    resp::{self, reply},
    tenant::Tenant,
    tier::{Lease, Tier},
    upstream::{
        Pool, Site,
        feed::{Audience, Feed, Who},
    },
};

/// How long a lease lasts after a PING was sent that was answered, in milliseconds: the longest that anything is served without news.
const LEASE: u64 = 2000;
/// An upstream that refused to track is asked again after this.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// Requests without a reply on the tracking connection.
const AWAITED: usize = 8;
/// Most bytes of one push; a larger one is taken to name every key.
const LIMIT: usize = 16 * 1024 * 1024;
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// Tenants by prefix; none begins with another.
pub(super) type Tenants = BTreeMap<Vec<u8>, Arc<Tenant>>;

/// Holds that a PONG ends, by lease.
type Releases = Vec<(Arc<Lease>, u32)>;

#[derive(Debug)]
enum Awaited {
    Tracking,
    /// Who is released when it is there.
    Pong(Releases),
}

/// One tracking connection.
#[derive(Debug)]
pub(super) struct Watch {
    tier: Arc<Tier>,
    site: Arc<Site>,
    feed: Rc<Feed>,
    /// What the upstream is asked to tell of; this does not change.
    asked: Asked,
    /// Whose changes are of interest.
    tenants: RefCell<Tenants>,
    /// With the moment each was asked, in milliseconds of the tier's clock, too.
    awaited: RefCell<VecDeque<(Instant, u64, Awaited)>>,
    /// Whose release waits for the next PING, since the upstream said something else to the last.
    postponed: RefCell<Releases>,
    /// Since when the upstream tells it of changes.
    tracking: Cell<Option<Instant>>,
    /// When the last PING was sent that was answered with PONG.
    heard: Cell<Option<Instant>>,
    /// Leases run on by it. One that has not begun only listens: what it hears is true all the same.
    begun: Cell<bool>,
    /// Its successor waits for it to have heard all.
    leaving: Cell<bool>,
    /// The upstream would not track.
    refused: Cell<Option<Instant>>,
    retired: Cell<bool>,
}

impl Watch {
    /// Not connected before [`Self::look`]; `begun`: it has no predecessor.
    pub(super) fn new(tier: &Arc<Tier>, pool: &Pool, tenants: Tenants, begun: bool) -> Rc<Self> {
        Rc::new(Self {
            tier: Arc::clone(tier),
            site: Arc::clone(&pool.env().site),
            feed: Rc::new(Feed::new(pool.env(), Who::Own)),
            asked: Asked::of(&tenants),
            tenants: RefCell::new(tenants),
            awaited: RefCell::default(),
            postponed: RefCell::default(),
            tracking: Cell::new(None),
            heard: Cell::new(None),
            begun: Cell::new(begun),
            leaving: Cell::new(false),
            refused: Cell::new(None),
            retired: Cell::new(false),
        })
    }

    /// Whether it is for these, and no others.
    pub(super) fn is_of(&self, tenants: &Tenants) -> bool {
        same(&self.tenants.borrow(), tenants)
    }

    /// Whether what the upstream is asked to tell of does for these.
    pub(super) fn covers(&self, tenants: &Tenants) -> bool {
        self.asked.does_for(tenants)
    }

    /// From now on it is for these, whom it covers. The leases of those that come begin with the next PONG.
    pub(super) fn turn_to(&self, tenants: Tenants) {
        let before = self.tenants.replace(tenants);
        if self.begun.get() {
            without(&before, &self.tenants.borrow()).for_each(|tenant| tenant.tier.end());
        }
    }

    /// Whether the upstream tells it of changes just now.
    pub(super) fn tracks(&self) -> bool {
        self.tracking.get().is_some()
    }

    /// Connects if it is not connected.
    fn connect(self: &Rc<Self>) {
        if self.refused.get().is_some_and(|at| at.elapsed() >= REFUSED_AGAIN) {
            self.refused.set(None);
        }
        if self.feed.idle() && self.wanted() {
            let _ = self.feed.want(self);
        }
    }

    /// Asks for a sign of life when one is `due`, or somebody waits for it.
    pub(super) fn look(self: &Rc<Self>, due: bool) {
        let full = self.awaited.borrow().len() >= AWAITED;
        if self.feed.up() && full {
            return;
        }
        let releases: Releases = self
            .tenants
            .borrow()
            .values()
            .map(|tenant| (&tenant.tier, tenant.tier.take_releases()))
            .filter(|(_, n)| *n > 0)
            .map(|(lease, n)| (Arc::clone(lease), n))
            .collect();
        if !self.feed.up() {
            // Nothing is served, and what is kept is void before it is again.
            releases.iter().for_each(|(lease, n)| lease.release(*n));
            self.connect();
        } else if due || !releases.is_empty() {
            let releases = [releases, self.postponed.take()].concat();
            self.feed.send(|out| out.extend_from_slice(PING));
            self.expect(Awaited::Pong(releases));
        }
    }

    /// Takes the place of `current`, if it can by now: when the upstream tells it of changes, and `current` has heard of all that came before
    /// that. Nothing of those who go on is void then, for there was no moment at which nobody was told of their changes.
    pub(super) fn succeed(self: &Rc<Self>, current: Option<&Rc<Self>>) -> bool {
        self.connect();
        let Some(since) = self.tracking.get() else { return false };
        let Some(current) = current.filter(|current| current.tracks()) else {
            // It has not been told of everything, and has made all void when it was lost.
            self.clear();
            self.begin();
            return true;
        };
        if current.heard.get().is_none_or(|heard| heard < since) {
            if !current.leaving.replace(true) {
                current.look(true);
            }
            return false;
        }
        without(&current.tenants.borrow(), &self.tenants.borrow()).for_each(|tenant| tenant.tier.end());
        self.postponed.borrow_mut().extend(current.resign());
        self.begin();
        true
    }

    fn begin(self: &Rc<Self>) {
        self.begun.set(true);
        self.say_on();
        self.look(true);
    }

    fn say_on(&self) {
        let (tenants, prefixes) = (self.tenants.borrow().len(), self.asked.prefixes().len());
        tracing::info!(upstream = %self.site.target, tenants, prefixes, "the tier is on: the upstream tells of changes");
    }

    /// Another has taken its place: what holds it would have ended is left to that.
    fn resign(&self) -> Releases {
        self.begun.set(false);
        let releases = self.take_releases();
        self.retire();
        releases
    }

    fn expect(&self, what: Awaited) {
        self.awaited.borrow_mut().push_back((Instant::now(), self.tier.now(), what));
    }

    /// It is not needed any more.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.end();
        self.feed.close();
    }

    /// Nobody is told of changes any more, unless by another.
    fn end(&self) {
        self.tracking.set(None);
        self.heard.set(None);
        if self.begun.get() {
            self.tenants.borrow().values().for_each(|tenant| tenant.tier.end());
            self.clear();
        }
        self.take_releases().iter().for_each(|(lease, n)| lease.release(*n));
    }

    fn take_releases(&self) -> Releases {
        let mut releases = self.postponed.take();
        for (_, _, what) in self.awaited.take() {
            if let Awaited::Pong(more) = what {
                releases.extend(more);
            }
        }
        releases
    }

    /// Everything kept of this upstream is void.
    fn clear(&self) {
        if let Some(store) = self.tier.store() {
            store.clear_upstream(self.site.number);
        }
    }

    fn renew(&self, sent: u64) {
        if !self.begun.get() {
            return;
        }
        for tenant in self.tenants.borrow().values() {
            if tenant.tier.begins(sent) {
                // What was kept before, and tickets taken before, are of a time when nobody was told of their changes, or whose holds were let go.
                self.tier.clear_tenant(tenant.id);
            }
            tenant.tier.renew(sent, sent + LEASE);
        }
    }

    fn answered(&self, (since, sent): (Instant, u64), what: Awaited, line: &[u8]) -> Result<(), &'static str> {
        match what {
            Awaited::Tracking if line.starts_with(b"+OK") => {
                self.tracking.set(Some(Instant::now()));
                if self.begun.get() {
                    // A ticket that was taken while nobody tracked must not outlive this.
                    self.clear();
                    self.renew(sent);
                    self.say_on();
                } else {
                    self.site.wake_tracking.notify_one();
                }
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
                self.heard.set(Some(since));
                if self.leaving.get() {
                    self.site.wake_tracking.notify_one();
                }
                self.renew(sent);
                releases.iter().for_each(|(lease, n)| lease.release(*n));
                Ok(())
            }
        }
    }

    /// The upstream says that this key has changed.
    fn changed(&self, key: &[u8]) {
        let tenants = self.tenants.borrow();
        let before = tenants.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        // A stem covers others too, of whom nothing is kept, or nothing that will be served.
        let Some((_, tenant)) = before.filter(|(prefix, _)| key.starts_with(prefix)) else { return };
        if let Some(store) = self.tier.store() {
            store.invalidate(self.site.number, key);
        }
        // While one takes over from another both are told.
        if self.begun.get() {
            tenant.tier.invalidated();
        }
    }
}

/// Those of the ones whom the others lack.
fn without<'a>(ones: &'a Tenants, others: &'a Tenants) -> impl Iterator<Item = &'a Arc<Tenant>> {
    let has = |prefix, id| others.get(prefix).is_some_and(|tenant| tenant.id == id);
    ones.iter().filter(move |(prefix, tenant)| !has(*prefix, tenant.id)).map(|(_, tenant)| tenant)
}

fn same(ones: &Tenants, others: &Tenants) -> bool {
    ones.len() == others.len() && without(ones, others).next().is_none()
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
        let prefixes = self.asked.prefixes();
        resp::put_header(out, b'*', 4 + 2 * prefixes.len() as u64);
        [&b"CLIENT"[..], b"TRACKING", b"ON", b"BCAST"].iter().for_each(|word| resp::put_bulk(out, word));
        for prefix in prefixes {
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
        let (since, sent, what) = next.ok_or("a reply that nobody waits for")?;
        self.answered((since, sent), what, frame).map(|()| 0)
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
