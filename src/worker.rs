//! One thread of the proxy: a current-thread runtime with its own listeners and upstream connections. A connection lives and dies on its
//! worker; what workers share is [`Shared`], and nothing in it is locked on the path of a command.

mod reach;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::ServerConfig;
use tokio::time::Instant;

pub use reach::Reach;

use crate::{
    clients::Clients,
    command::Slot,
    config::Proxies,
    directory::Directory,
    downstream::{Downstream, Spares},
    login::Login,
    metrics::{Meter, Metrics},
    pubsub::Hubs,
    scoped::Flushes,
    scripts::{functions, store::Store},
    slowlog::SlowLog,
    tenant::throttle::Throttle,
    tier::{Desk, Tier},
    upstream::{Clock, Pool, Site, TICK},
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
}

/// How the `tls:` listeners shake hands.
#[derive(Debug)]
pub struct ListeningTls {
    /// Certificates and keys.
    pub config: Arc<ServerConfig>,
    /// Whether the name that a client asked for may make it a tenant's.
    pub names_asked_for: bool,
    /// By whose word a name is believed: none's, or that of these authorities.
    pub authorities: Option<Vec<u8>>,
}

/// Names of a TLS connection's that may make it a tenant's.
#[derive(Debug, Default)]
pub struct Names {
    names: Box<[String]>,
    under: Option<Arc<ListeningTls>>,
}

impl Names {
    /// As the handshake found them, under these settings.
    pub fn new(names: Vec<String>, under: Arc<ListeningTls>) -> Self {
        Self { names: names.into(), under: Some(under) }
    }

    /// Those that are still believed: none once the settings ask for another proof than the handshake had.
    pub fn believed(&self, shared: &Shared) -> &[String] {
        let Some(under) = &self.under else { return &[] };
        let same = shared.tls.load().as_ref().is_some_and(|now| now.authorities == under.authorities);
        if same { &self.names } else { &[] }
    }
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// Who may log in, and as whom.
    pub directory: ArcSwap<Directory>,
    /// All clients.
    pub clients: Clients,
    /// Limits of every client.
    pub limits: ArcSwap<ClientLimits>,
    /// Failed logins by address.
    pub throttle: Throttle,
    /// Slow commands of all tenants.
    pub slowlog: Arc<SlowLog>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// No new clients are served.
    pub draining: AtomicBool,
    /// What is kept of tenants' values.
    pub tier: Arc<Tier>,
    /// FLUSHDBs in progress.
    pub flushes: Flushes,
    /// The scripts of all tenants.
    pub scripts: Store,
    /// The functions of all tenants.
    pub functions: functions::own::Store,
    /// TLS of the listeners that have it.
    pub tls: ArcSwapOption<ListeningTls>,
    /// Who is believed when it says whose a connection is.
    pub proxies: ArcSwap<Proxies>,
    /// Connections that are not clients yet: they shake hands.
    pub arriving: AtomicUsize,
    /// That the workers go on.
    pub beats: Beats,
    /// When this process began to serve.
    pub started: Instant,
    /// TCP port shown in INFO.
    pub port: u16,
    /// 40 hexadecimal digits, new at each start, shown in INFO.
    pub run_id: String,
}

/// A count per worker that grows as long as the worker goes on.
#[derive(Debug)]
pub struct Beats(Box<[AtomicU32]>);

impl Beats {
    /// Of so many workers.
    pub fn of(workers: usize) -> Self {
        Self((0..workers).map(|_| AtomicU32::new(0)).collect())
    }

    /// As they are.
    pub fn all(&self) -> Vec<u32> {
        self.0.iter().map(|beat| beat.load(Ordering::Relaxed)).collect()
    }
}

impl Shared {
    /// Whether there are as many connections as there may be.
    pub fn full(&self) -> bool {
        self.clients.len() + self.arriving.load(Ordering::Relaxed) >= self.limits.load().clients
    }

    /// Whether a session of the tenant with this number that logged in so, or did not have to, may go on under the settings in force.
    pub fn stands(&self, tenant: u32, login: Option<&Login>) -> bool {
        self.directory.load().stands(tenant, login)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    /// Which of them.
    number: usize,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Everything read on this worker passes through here.
    pub scratch: Rc<RefCell<Vec<u8>>>,
    /// The worker's clock.
    pub clock: Rc<Clock>,
    /// What it counts.
    pub meter: Rc<Meter>,
    /// Empty buffers.
    pub spares: Rc<Spares>,
    /// Upstreams, as they come into use; few.
    reaches: RefCell<Vec<Rc<Reach>>>,
    /// The tier, as this worker uses it.
    pub desk: Rc<Desk>,
    /// Subscriptions.
    pub hubs: Hubs,
    /// Scratch space of the key walker.
    pub marks: RefCell<Vec<(u32, Slot)>>,
    /// Clients whose sockets were found full: who, at which tick, with how much written.
    full: RefCell<Vec<(std::rc::Weak<Downstream>, u32, u64)>>,
}

impl Worker {
    /// The worker of this number, on this thread.
    pub fn new(shared: &Arc<Shared>, number: usize) -> Rc<Self> {
        let clock = Rc::<Clock>::default();
        Rc::new(Self {
            number,
            desk: Rc::new(Desk::new(&shared.tier, number, clock.start())),
            shared: Arc::clone(shared),
            scratch: Rc::new(RefCell::new(vec![0; SCRATCH])),
            clock,
            meter: Rc::new(Meter::new(&shared.metrics)),
            spares: Rc::default(),
            reaches: RefCell::default(),
            hubs: Hubs::default(),
            marks: RefCell::default(),
            full: RefCell::default(),
        })
    }

    /// This worker's connections to an upstream.
    pub fn reach(&self, site: &Arc<Site>) -> Rc<Reach> {
        let mut reaches = self.reaches.borrow_mut();
        if let Some(reach) = reaches.iter().find(|r| Arc::ptr_eq(&r.site, site)) {
            return Rc::clone(reach);
        }
        let (scratch, clock, spares) = (Rc::clone(&self.scratch), Rc::clone(&self.clock), Rc::clone(&self.spares));
        let (slowlog, meter) = (Arc::clone(&self.shared.slowlog), Rc::clone(&self.meter));
        let pool = Pool::new(Arc::clone(site), slowlog, scratch, clock, spares, meter);
        let reach = Rc::new(Reach::new(pool));
        reaches.push(Rc::clone(&reach));
        reach
    }

    /// Runs the worker's clock, for ever: deadlines each tick, tidying each second.
    pub async fn keep_time(self: Rc<Self>) {
        let mut every = tokio::time::interval(TICK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let per_second = crate::upstream::ticks(Duration::from_secs(1));
        loop {
            every.tick().await;
            self.clock.advance();
            if let Some(beat) = self.shared.beats.0.get(self.number) {
                beat.fetch_add(1, Ordering::Relaxed);
            }
            self.reaches.borrow().iter().for_each(|r| r.pool.tick());
            if self.clock.now().is_multiple_of(per_second) {
                // One that only this list knows any more was taken out of the settings, or nobody uses it.
                self.reaches.borrow_mut().retain(|r| {
                    r.tidy();
                    Rc::strong_count(r) > 1 || r.pool.in_use()
                });
                self.hubs.tidy();
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
                tracing::debug!(client = client.peer(), "client took nothing for a minute: disconnected");
                client.abandon();
                return false;
            }
            true
        });
    }
}
