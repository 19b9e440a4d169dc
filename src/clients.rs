//! The client registry: what CLIENT LIST, KILL and INFO know of the connections of all workers.

use std::{
    collections::hash_map::RandomState,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};

use dashmap::DashMap;
use tokio::time::Instant;

use crate::{command::ROWS, downstream::Alarm, login::Login};

/// What a client says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// CLIENT SETNAME.
    pub name: Vec<u8>,
    /// CLIENT SETINFO LIB-NAME.
    pub lib_name: Vec<u8>,
    /// CLIENT SETINFO LIB-VER.
    pub lib_ver: Vec<u8>,
}

/// One connection, as others see it. Its session writes, anyone reads; nothing here is waited for.
#[derive(Debug)]
pub struct Client {
    /// CLIENT ID: keyfence's own number, never an upstream's.
    pub id: u64,
    /// The client's address.
    pub addr: Arc<str>,
    /// The address it connected to.
    pub laddr: Box<str>,
    /// When it connected.
    pub since: Instant,
    /// Ends the session.
    pub alarm: Arc<Alarm>,
    /// Its tenant.
    pub tenant: AtomicU32,
    /// Selected database.
    pub db: AtomicU32,
    /// 2 or 3.
    pub resp: AtomicU8,
    /// Index of the last command's row.
    pub last: AtomicU16,
    /// Milliseconds after `since` at which it last sent something.
    pub active: AtomicU64,
    /// Commands queued in MULTI, or -1 (as `u32::MAX`).
    pub queued: AtomicU32,
    /// Channels, patterns and shard channels it is subscribed to, at their `Space::index`.
    pub subscribed: [AtomicU32; 3],
    /// It is subscribed to `__redis__:invalidate`.
    pub invalidations: AtomicBool,
    /// It tracks keys for itself.
    pub tracks: AtomicBool,
    /// It watches its tenant's commands.
    pub monitors: AtomicBool,
    /// What other workers have for it, until its session takes it.
    pub inbox: Inbox,
    /// Waits in a blocking command.
    pub blocked: AtomicBool,
    /// The server's number for the upstream connection that it waits on in a blocking command.
    pub waits_on: Mutex<Option<Arc<AtomicU64>>>,
    /// What it logged in with.
    login: Mutex<Option<Box<Login>>>,
    /// See [`Labels`]; none is a client that says nothing of itself.
    labels: Mutex<Option<Box<Labels>>>,
}

/// Bytes on their way to a client from another worker.
#[derive(Debug, Default)]
pub struct Inbox {
    filled: AtomicBool,
    bytes: Mutex<Vec<u8>>,
}

impl Inbox {
    /// Takes what there is, if there is anything.
    #[inline]
    pub fn take(&self) -> Option<Vec<u8>> {
        (self.filled.load(Ordering::Relaxed) && self.filled.swap(false, Ordering::Acquire))
            .then(|| std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// `queued` of a client outside MULTI.
pub const NO_MULTI: u32 = u32::MAX;

impl Client {
    /// One that has just connected, and has the tenant of this number.
    pub fn new(id: u64, addr: String, laddr: String, alarm: Arc<Alarm>, tenant: u32) -> Self {
        Self {
            id,
            addr: addr.into(),
            laddr: laddr.into(),
            since: Instant::now(),
            alarm,
            tenant: AtomicU32::new(tenant),
            db: AtomicU32::new(0),
            resp: AtomicU8::new(2),
            last: AtomicU16::new(u16::MAX),
            active: AtomicU64::new(0),
            queued: AtomicU32::new(NO_MULTI),
            subscribed: Default::default(),
            invalidations: AtomicBool::new(false),
            tracks: AtomicBool::new(false),
            monitors: AtomicBool::new(false),
            inbox: Inbox::default(),
            blocked: AtomicBool::new(false),
            waits_on: Mutex::default(),
            login: Mutex::default(),
            labels: Mutex::default(),
        }
    }

    /// What it logged in with.
    pub fn login(&self) -> Option<Login> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner).as_deref().cloned()
    }

    /// It has logged in, or has not any more.
    pub fn set_login(&self, login: Option<Login>) {
        *self.login.lock().unwrap_or_else(PoisonError::into_inner) = login.map(Box::new);
    }

    /// A copy of what it says of itself.
    pub fn labels(&self) -> Labels {
        self.labels.lock().unwrap_or_else(PoisonError::into_inner).as_deref().cloned().unwrap_or_default()
    }

    /// Changes what it says of itself.
    pub fn relabel(&self, change: impl FnOnce(&mut Labels)) {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        let mut said = labels.take().unwrap_or_default();
        change(&mut said);
        *labels = Some(said).filter(|said| **said != Labels::default());
    }

    /// It begins to wait in a blocking command on the connection of this number, or has ended that.
    pub fn wait_on(&self, number: Option<Arc<AtomicU64>>) {
        *self.waits_on.lock().unwrap_or_else(PoisonError::into_inner) = number;
    }

    /// The server's number for the connection it waits on; 0: not known yet.
    pub fn waiting_on(&self) -> Option<u64> {
        let number = self.waits_on.lock().unwrap_or_else(PoisonError::into_inner);
        number.as_ref().map(|number| number.load(Ordering::Relaxed))
    }

    /// Leaves what `write` appends for it, which is whole messages or nothing, as the client is at that moment ([`Client::change`]). One
    /// with more than `limit` bytes waiting is disconnected.
    pub fn post(&self, limit: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.inbox.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = bytes.len();
        write(&mut bytes);
        if bytes.len() > limit {
            *bytes = Vec::new();
            return self.alarm.kill();
        }
        if bytes.len() > before {
            self.inbox.filled.store(true, Ordering::Release);
            drop(bytes);
            self.alarm.ring();
        }
    }

    /// For its session: changes what decides whether it is posted to, or in which form. Gives what was posted before, which the client is
    /// to have now, if at all; nothing of that kind comes any more.
    #[must_use]
    pub fn change(&self, change: impl FnOnce()) -> Vec<u8> {
        let mut bytes = self.inbox.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        change();
        self.inbox.filled.store(false, Ordering::Relaxed);
        std::mem::take(&mut *bytes)
    }

    /// Whether it waits for messages.
    pub fn listens(&self) -> bool {
        self.subscribes() || self.monitors.load(Ordering::Relaxed)
    }

    /// Whether it has any subscription.
    pub fn subscribes(&self) -> bool {
        self.subscribed.iter().any(|n| n.load(Ordering::Relaxed) > 0)
    }

    /// The line of CLIENT LIST, without its LF, in the form of Redis 7.2.
    pub fn line(&self, user: &str) -> String {
        let labels = self.labels();
        let load = |a: &AtomicU32| a.load(Ordering::Relaxed);
        let age = self.since.elapsed();
        let idle = age.saturating_sub(std::time::Duration::from_millis(self.active.load(Ordering::Relaxed)));
        let queued = load(&self.queued);
        let (multi, mut flags) =
            if queued == NO_MULTI { (-1, String::new()) } else { (i64::from(queued), "x".to_owned()) };
        if self.subscribes() {
            flags.push('P');
        }
        if self.monitors.load(Ordering::Relaxed) {
            flags.insert(0, 'O');
        }
        let [sub, psub, ssub] = [0, 1, 2].map(|i| load(&self.subscribed[i]));
        if self.blocked.load(Ordering::Relaxed) {
            flags.push('b');
        }
        if flags.is_empty() {
            flags.push('N');
        }
        let row = ROWS.get(usize::from(self.last.load(Ordering::Relaxed)));
        format!(
            "id={} addr={} laddr={} fd=0 name={} age={} idle={} flags={flags} db={} sub={sub} psub={psub} ssub={ssub} multi={multi} watch=0 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r cmd={} user={user} redir=-1 resp={} lib-name={} lib-ver={}",
            self.id,
            self.addr,
            self.laddr,
            String::from_utf8_lossy(&labels.name),
            age.as_secs(),
            idle.as_secs(),
            load(&self.db),
            row.map_or_else(|| "NULL".into(), |r| r.lower_name()),
            self.resp.load(Ordering::Relaxed),
            String::from_utf8_lossy(&labels.lib_name),
            String::from_utf8_lossy(&labels.lib_ver),
        )
    }
}

/// All connections of the process.
#[derive(Debug, Default)]
pub struct Clients {
    map: DashMap<u64, Arc<Client>, RandomState>,
    next: AtomicU64,
}

impl Clients {
    /// The next connection's number.
    pub fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Enters a connection.
    pub fn insert(&self, client: Arc<Client>) {
        self.map.insert(client.id, client);
    }

    /// Strikes a connection out.
    pub fn remove(&self, id: u64) {
        self.map.remove(&id);
    }

    /// The connection of this number.
    pub fn get(&self, id: u64) -> Option<Arc<Client>> {
        self.map.get(&id).map(|client| Arc::clone(&client))
    }

    /// How many there are, all tenants together.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// How many wait in a blocking command, and how many are subscribed to anything.
    pub fn tally(&self) -> (usize, usize) {
        self.map.iter().fold((0, 0), |(blocked, listening), client| {
            let blocks = usize::from(client.blocked.load(Ordering::Relaxed));
            (blocked + blocks, listening + usize::from(client.listens()))
        })
    }

    /// The connections of one tenant, oldest first.
    pub fn of(&self, tenant: u32) -> Vec<Arc<Client>> {
        let mut own: Vec<Arc<Client>> =
            self.map.iter().filter(|c| c.tenant.load(Ordering::Relaxed) == tenant).map(|c| Arc::clone(&c)).collect();
        own.sort_unstable_by_key(|c| c.id);
        own
    }

    /// Every connection.
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.map.iter().map(|c| Arc::clone(&c)).collect()
    }
}
