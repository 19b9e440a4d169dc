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
//! The upstream puts the pushes of a turn of its event loop before the replies that the turn makes to others, so who has received the reply to a
//! change, and sends PING then, has heard of that change when the PONG is there. A PONG may come before the pushes of its own turn.
//!
//! When other tenants are to be tracked, because of a reload or of what [`balance`] says, a second connection takes over from the first: see
//! [`Watch::succeed`]. What is kept of tenants that stay is not touched. Where the upstream tells of theirs already none is needed: see
//! [`asked`].

mod asked;
mod balance;
mod watch;

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    metrics::Meter,
    tenant::Tenant,
    tier::{Lease, Tier},
    upstream::{Pool, Site},
    worker::Shared,
};
use balance::{Balance, Turn};
use watch::{Tenants, Watch};

/// How often the upstream is asked for a sign of life.
const BEAT: Duration = Duration::from_millis(500);
/// A connection is not given up for another set of tenants within this time, if it does not track yet; and the next is not opened within
/// [`APART`] of it.
const PATIENCE: Duration = Duration::from_secs(5);
const APART: Duration = Duration::from_secs(1);
/// By how much a reply may be later than `socket_timeout` says: the limit is looked at in ticks, by a worker that has other things to do.
const SLACK: Duration = BEAT;
/// How often room is taken back that what is over still has.
const SWEEP: Duration = Duration::from_millis(100);
/// Bytes of the buffer that is read into.
const SCRATCH: usize = 64 * 1024;

/// Keeps the tier true for one upstream, until it is taken out of the settings.
pub async fn keep(shared: Arc<Shared>, site: Arc<Site>) {
    // Made when it is first needed.
    let pool = OnceCell::new();
    let new_pool = || {
        let scratch = Rc::new(RefCell::new(vec![0; SCRATCH]));
        let meter = Rc::new(Meter::new(&shared.metrics));
        Pool::new(Arc::clone(&site), Arc::clone(&shared.slowlog), scratch, Rc::default(), Rc::default(), meter)
    };
    let mut watches = Watches::default();
    let mut balances = BTreeMap::new();
    let mut beat = Instant::now();
    loop {
        let now = Instant::now();
        let due = now >= beat;
        if due {
            beat = now + BEAT;
            weigh(&shared, &site, &mut balances);
            watches.turn_to(wanting(&shared, &site), |tenants, begun| {
                Watch::new(&shared.tier, pool.get_or_init(new_pool), tenants, begun)
            });
        }
        watches.look(due);
        let _ = timeout(BEAT, site.wake_tracking.notified()).await;
    }
}

/// The connection in use, and the one that is to take its place; both end with their keeper.
#[derive(Default)]
struct Watches {
    current: Option<Rc<Watch>>,
    next: Option<Rc<Watch>>,
    /// When the newer of them was made.
    made: Option<Instant>,
}

impl Watches {
    /// These are to be tracked: at once, or as soon as what is under way for others is done. To be said again until then.
    fn turn_to(&mut self, tenants: Tenants, watch: impl FnOnce(Tenants, bool) -> Rc<Watch>) {
        if tenants.is_empty() {
            retire(&mut self.next);
            retire(&mut self.current);
            return;
        }
        if self.next.as_ref().or(self.current.as_ref()).is_some_and(|newer| newer.is_of(&tenants)) {
            return;
        }
        let tracks = self.current.as_ref().is_some_and(|current| current.tracks());
        let covers = self.current.as_ref().is_some_and(|current| current.covers(&tenants));
        let pause = if self.next.is_some() || !tracks { PATIENCE } else { APART };
        let early = self.current.is_some() && self.made.is_some_and(|made| made.elapsed() < pause);
        if early && (self.next.is_some() || !covers) {
            return;
        }
        retire(&mut self.next);
        if let Some(current) = self.current.as_ref().filter(|_| covers) {
            current.turn_to(tenants);
            return;
        }
        self.made = Some(Instant::now());
        if tracks {
            self.next = Some(watch(tenants, false));
        } else {
            retire(&mut self.current);
            self.current = Some(watch(tenants, true));
        }
    }

    fn look(&mut self, due: bool) {
        if let Some(current) = &self.current {
            current.look(due);
        }
        if let Some(next) = self.next.take_if(|next| next.succeed(self.current.as_ref())) {
            retire(&mut self.current);
            self.current = Some(next);
        }
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        retire(&mut self.next);
        retire(&mut self.current);
    }
}

fn retire(watch: &mut Option<Rc<Watch>>) {
    if let Some(watch) = watch.take() {
        watch.retire();
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

/// How long after a tier is turned on writes may still be under way that were sent without one, in milliseconds.
pub fn settle(site: &Site) -> u64 {
    u64::try_from((site.target.socket_timeout.saturating_add(SLACK)).as_millis()).unwrap_or(u64::MAX / 2)
}

/// The tenants on this upstream for which the settings have a tier, by number: the one for those who do not log in may be one of the others.
fn asking(shared: &Shared, site: &Arc<Site>) -> BTreeMap<u32, Arc<Tenant>> {
    let directory = shared.directory.load();
    let all = directory.tenants.values().chain(&directory.anonymous);
    all.filter(|t| t.tier.asked() && Arc::ptr_eq(&t.site, site)).map(|t| (t.id, Arc::clone(t))).collect()
}

/// Those of them whose changes are to be told of just now.
fn wanting(shared: &Shared, site: &Arc<Site>) -> Tenants {
    let now = shared.tier.now();
    let wanting = asking(shared, site).into_values().filter(|t| t.tier.due(now));
    wanting.map(|t| (t.prefix.to_vec(), t)).collect()
}

/// Has those rest whose values change far more often than they are asked for, and wakes them after a while.
fn weigh(shared: &Shared, site: &Arc<Site>, balances: &mut BTreeMap<u32, Balance>) {
    let (asking, now) = (asking(shared, site), shared.tier.now());
    balances.retain(|id, _| asking.contains_key(id));
    let settle = settle(site);
    for (id, tenant) in asking {
        let (hits, told) = tenant.tier.weight();
        let turn = balances.entry(id).or_default().weigh(now, settle, hits, told);
        if let Turn::Rest(millis) = turn {
            let seconds = millis / 1000;
            tracing::info!(tenant = %tenant.name, seconds, "the tier rests: far more is changed than is asked for again");
        }
        follow(&tenant.tier, turn, now, settle);
    }
}

fn follow(lease: &Lease, turn: Turn, now: u64, settle: u64) {
    match turn {
        Turn::Stay => {}
        Turn::Rest(_) => lease.rest(),
        Turn::Wake => lease.wake(now + settle),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_ends_when_what_was_sent_unmarked_has_been_answered() {
        let lease = Lease::default();
        lease.want(true, 0);
        follow(&lease, Turn::Rest(5), 100, 30);
        assert!(lease.resting() && !lease.wanted());
        follow(&lease, Turn::Wake, 200, 30);
        assert!(lease.wanted() && !lease.due(229) && lease.due(230));
        lease.renew(229, 1000);
        assert!(!lease.tracks(229));
        lease.renew(230, 1000);
        assert!(lease.tracks(230));
    }
}
