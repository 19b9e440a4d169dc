//! One thread of the proxy: a current-thread runtime with its own listeners and upstream connections. A connection lives and dies on its
//! worker; what workers share is [`Shared`], and nothing in it is locked on the path of a command.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Cache};
use tokio::time::Instant;

use crate::{
    clients::Clients,
    command::Slot,
    downstream::{Downstream, Spares},
    scoped::Flushes,
    tenant::Tenant,
    upstream::{
        Clock, Open, Pool, TICK, Target,
        control::{Control, Facts},
    },
};

/// Size of the buffer that everything a worker reads passes through, in bytes.
const SCRATCH: usize = 256 * 1024;
/// A client that takes nothing for this long while replies wait for it is disconnected.
const STALLED: Duration = Duration::from_secs(60);

/// The limits of every client.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// `client_output_limit` in bytes.
    pub output: usize,
    /// `max_clients`.
    pub clients: usize,
    /// `client_idle_timeout`.
    pub idle: Option<Duration>,
    /// Replies owed to one client before no more is read from it.
    pub in_flight: u32,
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The upstream.
    pub target: Target,
    /// Connections open to it.
    pub open: Arc<Open>,
    /// Shared connections per worker and pool.
    pub connections_per_worker: usize,
    /// What is known of it.
    pub facts: ArcSwap<Facts>,
    /// All clients.
    pub clients: Clients,
    /// Limits of every client.
    pub limits: ClientLimits,
    /// The tenant of a connection that has not logged in.
    pub tenant: Arc<Tenant>,
    /// FLUSHDBs in progress.
    pub flushes: Flushes,
    /// When this process began to serve.
    pub started: Instant,
    /// TCP port shown in INFO.
    pub port: u16,
    /// 40 hexadecimal digits, new at each start, shown in INFO.
    pub run_id: String,
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Everything read on this worker passes through here.
    pub scratch: Rc<RefCell<Vec<u8>>>,
    /// The worker's clock.
    pub clock: Rc<Clock>,
    /// Empty buffers.
    pub spares: Rc<Spares>,
    /// Upstream connections.
    pub pool: Pool,
    /// The connection for scoped work.
    pub control: Control,
    /// Scratch space of the key walker.
    pub marks: RefCell<Vec<(u32, Slot)>>,
    facts: RefCell<Cache<FactsRef, Arc<Facts>>>,
    /// Clients whose sockets were found full: who, at which tick, with how much written.
    full: RefCell<Vec<(std::rc::Weak<Downstream>, u32, u64)>>,
}

#[derive(Debug)]
struct FactsRef(Arc<Shared>);

impl std::ops::Deref for FactsRef {
    type Target = ArcSwap<Facts>;
    fn deref(&self) -> &Self::Target {
        &self.0.facts
    }
}

impl Worker {
    /// A worker on this thread.
    pub fn new(shared: &Arc<Shared>) -> Rc<Self> {
        let scratch = Rc::new(RefCell::new(vec![0; SCRATCH]));
        let clock = Rc::<Clock>::default();
        let spares = Rc::<Spares>::default();
        let pool = Pool::new(
            shared.target.clone(),
            Arc::clone(&shared.open),
            shared.connections_per_worker,
            Rc::clone(&scratch),
            Rc::clone(&clock),
            Rc::clone(&spares),
        );
        Rc::new(Self {
            shared: Arc::clone(shared),
            scratch,
            clock,
            spares,
            pool,
            control: Control::new(shared.target.clone()),
            marks: RefCell::default(),
            facts: RefCell::new(Cache::new(FactsRef(Arc::clone(shared)))),
            full: RefCell::default(),
        })
    }

    /// Reads what is known of the upstream.
    pub fn facts<R>(&self, read: impl FnOnce(&Facts) -> R) -> R {
        read(self.facts.borrow_mut().load())
    }

    /// Runs the worker's clock, for ever: deadlines each tick, tidying each second.
    pub async fn keep_time(self: Rc<Self>) {
        let mut every = tokio::time::interval(TICK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let per_second = crate::upstream::ticks(Duration::from_secs(1));
        loop {
            every.tick().await;
            self.clock.advance();
            self.pool.tick();
            if self.clock.now().is_multiple_of(per_second) {
                self.pool.tidy();
                self.drop_stalled();
            }
        }
    }

    /// Has the client disconnected if it takes nothing of what waits for it for a minute.
    pub fn watch_full(&self, client: &Rc<Downstream>) {
        self.full.borrow_mut().push((Rc::downgrade(client), self.clock.now(), client.written()));
    }

    fn drop_stalled(&self) {
        let now = self.clock.now();
        self.full.borrow_mut().retain_mut(|(client, since, written)| {
            let Some(client) = client.upgrade() else { return false };
            if client.unsent() == 0 {
                client.unwatch();
                return false;
            }
            if client.written() != *written {
                (*since, *written) = (now, client.written());
            } else if now.wrapping_sub(*since) > crate::upstream::ticks(STALLED) {
                tracing::debug!("client took nothing for a minute: disconnected");
                client.abandon();
                return false;
            }
            true
        });
    }
}
