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
//!
//! When other tenants are to be tracked, because of a reload or of what [`balance`] says, a second connection takes over from the first: see
//! [`Watch::succeed`]. What is kept of tenants that stay is not touched.

mod balance;
mod watch;

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    metrics::Meter,
    tenant::Tenant,
    tier::Tier,
    upstream::{Pool, Site},
    worker::Shared,
};
use balance::{Balance, Turn};
use watch::{Tenants, Watch};

/// How often the upstream is asked for a sign of life.
const BEAT: Duration = Duration::from_millis(500);
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
    let mut looked = None;
    let mut beat = Instant::now();
    loop {
        let now = Instant::now();
        let due = now >= beat;
        if due || looked.is_none() {
            beat = now + BEAT;
            weigh(&shared, &site, &mut balances);
            let tenants = wanting(&shared, &site);
            let numbers: Vec<u32> = tenants.values().map(|tenant| tenant.id).collect();
            if looked.as_ref() != Some(&numbers) {
                looked = Some(numbers);
                watches.turn_to(tenants, |tenants, begun| {
                    Watch::new(&shared.tier, pool.get_or_init(new_pool), tenants, begun)
                });
            }
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
}

impl Watches {
    /// From now on these are to be tracked.
    fn turn_to(&mut self, tenants: Tenants, watch: impl FnOnce(Tenants, bool) -> Rc<Watch>) {
        retire(&mut self.next);
        let tracks = self.current.as_ref().is_some_and(|current| current.tracks());
        if tenants.is_empty() {
            retire(&mut self.current);
        } else if tracks {
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

/// The tenants on this upstream for which the settings have a tier.
fn asking(shared: &Shared, site: &Arc<Site>) -> Vec<Arc<Tenant>> {
    let directory = shared.directory.load();
    let all = directory.tenants.values().chain(&directory.anonymous);
    all.filter(|t| t.tier.asked() && Arc::ptr_eq(&t.site, site)).cloned().collect()
}

/// Those of them whose changes are to be told of just now.
fn wanting(shared: &Shared, site: &Arc<Site>) -> Tenants {
    let now = shared.tier.now();
    let wanting = asking(shared, site).into_iter().filter(|t| t.tier.due(now));
    wanting.map(|t| (t.prefix.to_vec(), t)).collect()
}

/// Has those rest whose values change far more often than they are asked for, and wakes them after a while.
fn weigh(shared: &Shared, site: &Arc<Site>, balances: &mut BTreeMap<u32, Balance>) {
    let (asking, now) = (asking(shared, site), shared.tier.now());
    if asking.len() < balances.len() {
        let ids: BTreeSet<u32> = asking.iter().map(|tenant| tenant.id).collect();
        balances.retain(|id, _| ids.contains(id));
    }
    let settle = u64::try_from(site.target.socket_timeout.as_millis()).unwrap_or(u64::MAX / 2);
    for tenant in asking {
        let (hits, told) = tenant.tier.weight();
        match balances.entry(tenant.id).or_default().weigh(now, settle, hits, told) {
            Turn::Stay => {}
            Turn::Rest(millis) => {
                let seconds = millis / 1000;
                tracing::info!(tenant = %tenant.name, seconds, "the tier rests: far more is changed than is asked for again");
                tenant.tier.rest();
            }
            Turn::Wake => tenant.tier.wake(now + settle),
        }
    }
}
