//! UPSTREAM: the connections of one worker to the servers behind keyfence.
//!
//! Asked for "the connection for this key of the pool" and answered with one that may still be connecting. Shared connections carry the
//! pipelined requests of many sessions of one tenant; a dedicated one belongs to one session while its state demands it (WATCH, an open
//! MULTI, a blocking command, a request too large to be held). A pool is one (tenant, database, protocol version), so no connection ever
//! carries two tenants' requests and none is in a state that its next user does not expect.

pub mod conn;
pub mod control;
pub mod feed;
pub mod managed;
pub mod open;
pub mod wall;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt, io,
    path::PathBuf,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

pub use conn::{Conn, Owed, What};
use control::Facts;
use open::Open;
pub use wall::Kind;
use wall::{Holes, Login, Wall};

use crate::{
    command::Row,
    downstream::Spares,
    error::UpstreamError,
    metrics::{Meter, SiteCells},
    net::{self, ReadHalf, WriteHalf},
    resp::{self, Proto, reply::Scanner},
    slowlog::SlowLog,
    tls::UpstreamTls,
};

/// Length of one tick of a worker's clock: how exact deadlines are.
pub const TICK: Duration = Duration::from_millis(50);
/// Connects in flight at once per worker, so that the restart of an upstream is no storm.
const CONNECTS: usize = 16;
/// Logins of clients that an upstream is asked to check at once.
const LOGINS: usize = 16;
/// Steps of scoped work at once: the share of the upstream's time that they may take.
const STEPS: usize = 2;
/// Longest back-off between attempts to connect.
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// First back-off.
const MIN_BACKOFF: Duration = Duration::from_millis(25);
/// A dedicated connection unused for this long is closed.
const DEDICATED_IDLE: Duration = Duration::from_secs(30);
/// A shared connection that no client used for this long is closed.
const SHARED_IDLE: Duration = Duration::from_secs(300);
/// A shared connection unused for this long is asked for a PING, so that a dead one is found before a client needs it.
const PING_AFTER: Duration = Duration::from_secs(15);

/// How many ticks of a worker's clock `d` is, at least one.
pub fn ticks(d: Duration) -> u32 {
    u32::try_from(d.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX - 1).max(1)
}

/// A worker's coarse clock: one timer for every deadline on it.
#[derive(Debug)]
pub struct Clock {
    tick: Cell<u32>,
    start: Instant,
    micros: Cell<u64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { tick: Cell::new(0), start: Instant::now(), micros: Cell::new(0) }
    }
}

impl Clock {
    /// The tick at hand.
    pub fn now(&self) -> u32 {
        self.tick.get()
    }

    /// Looks at the exact time, once for everything that happens in one turn.
    pub fn look(&self) {
        self.micros.set(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX));
    }

    /// The moment it counts from.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Microseconds, as of the last look.
    pub fn micros(&self) -> u64 {
        self.micros.get()
    }

    /// One [`TICK`] has passed.
    pub fn advance(&self) {
        // conn::NEVER is not a time.
        let next = self.tick.get().wrapping_add(1);
        self.tick.set(if next == conn::NEVER { 0 } else { next });
    }
}

/// Which pool a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// What for.
    pub kind: Kind,
    /// The tenant's number.
    pub tenant: u32,
    /// The upstream's database.
    pub db: u32,
    /// The protocol its replies are in.
    pub proto: Proto,
}

/// Where an upstream is.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// Host and port.
    Tcp(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

/// An upstream and how to log in to it.
#[derive(Clone)]
pub struct Target {
    /// Where.
    pub endpoint: Endpoint,
    /// ACL user; empty: the default user.
    pub username: String,
    /// Empty: no login.
    pub password: String,
    /// For connecting and logging in.
    pub connect_timeout: Duration,
    /// For a request, queueing included.
    pub socket_timeout: Duration,
    /// How its TLS is, if it has any.
    pub tls: Option<Arc<UpstreamTls>>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Who tenants' connections log in as.
#[derive(Clone, Debug)]
pub enum Logins {
    /// As keyfence itself.
    Own,
    /// Each as users of its own behind the wall.
    Wall,
    /// As the users that the tenants are: user and password by tenant, as they logged in to keyfence.
    Users(HashMap<u32, (String, String)>),
    /// Nobody may: why.
    None(String),
}

/// One upstream as all workers see it.
#[derive(Debug)]
pub struct Site {
    /// Its name in the settings.
    pub name: String,
    /// Where it is, and keyfence's own login.
    pub target: Target,
    /// Connections open to it.
    pub open: Open,
    /// Shared connections per worker and pool.
    pub per_key: usize,
    /// Its number, by which the tier knows it: never used again.
    pub number: u16,
    /// Wakes who keeps its tracking connection.
    pub wake_tracking: Arc<Notify>,
    /// What is known of it.
    pub facts: ArcSwap<Facts>,
    /// The users keyfence makes on it.
    pub wall: Wall,
    /// Who tenants' connections log in as.
    pub logins: ArcSwap<Logins>,
    /// What the upstream's ACL cannot hold, while the wall stands.
    pub holes: ArcSwapOption<Holes>,
    /// A tenant's login was refused: its user has to be made again.
    pub login_refused: Notify,
    /// Logins of clients that it is asked to check at once.
    logins_at_once: Semaphore,
    /// Steps of scoped work that it is asked for at once, by all tenants together.
    pub steps: Semaphore,
    /// Whether it answers.
    pub pulse: Pulse,
}

/// Whether an upstream answers, as the control plane last found.
#[derive(Debug, Default)]
pub struct Pulse {
    reachable: AtomicBool,
    micros: AtomicU64,
}

impl Pulse {
    /// It answered a PING after this time.
    pub fn felt(&self, after: Duration) {
        self.micros.store(u64::try_from(after.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.reachable.store(true, Ordering::Relaxed);
    }

    /// It did not answer.
    pub fn lost(&self) {
        self.reachable.store(false, Ordering::Relaxed);
    }

    /// After how long it answered last, if it did when it was last asked.
    pub fn rate(&self) -> Option<Duration> {
        let reachable = self.reachable.load(Ordering::Relaxed);
        reachable.then(|| Duration::from_micros(self.micros.load(Ordering::Relaxed)))
    }
}

impl Site {
    /// An upstream that nothing is known of yet.
    pub fn new(
        (name, number): (&str, u16),
        target: Target,
        wall: Wall,
        logins: Logins,
        max_connections: usize,
        per_key: usize,
    ) -> Self {
        Self {
            name: name.into(),
            number,
            wake_tracking: Arc::default(),
            wall,
            holes: ArcSwapOption::empty(),
            logins: ArcSwap::from_pointee(logins),
            target,
            open: Open::new(max_connections),
            per_key,
            facts: ArcSwap::default(),
            login_refused: Notify::new(),
            logins_at_once: Semaphore::new(LOGINS),
            steps: Semaphore::new(STEPS),
            pulse: Pulse::default(),
        }
    }

    /// Tenant `tenant` has logged in as this user: its connections do, too, if those of all do.
    pub fn knows_login(&self, tenant: u32, user: &str, password: &str) {
        let login = (user.to_owned(), password.to_owned());
        let known = |logins: &Logins| match logins {
            Logins::Users(users) => users.get(&tenant) == Some(&login),
            Logins::Own | Logins::Wall | Logins::None(_) => true,
        };
        if known(&self.logins.load()) {
            return;
        }
        self.logins.rcu(|logins| {
            let mut logins = Logins::clone(logins);
            if let Logins::Users(users) = &mut logins {
                users.insert(tenant, login.clone());
            }
            logins
        });
    }

    /// Which connections a command travels on: where the wall cannot hold it, the rewriting alone does.
    pub fn kind(&self, row: &Row) -> Kind {
        self.holes.load().as_ref().map_or(Kind::Data, |holes| holes.kind(row))
    }

    /// Connects as who `key` says, again while its user is being made anew; the caller's deadline bounds this.
    async fn connect(&self, key: &Key) -> io::Result<(ReadHalf, WriteHalf)> {
        loop {
            let logins = self.logins.load_full();
            let (user, password) = match &*logins {
                Logins::Own => (self.target.username.clone(), self.target.password.clone()),
                Logins::None(why) => return Err(io::Error::other(why.clone())),
                Logins::Users(users) => match users.get(&key.tenant) {
                    Some(login) => login.clone(),
                    None => return Err(io::Error::other("nobody has logged in as this tenant")),
                },
                Logins::Wall => match self.wall.login(key.tenant, key.kind) {
                    Login::As(user, password) => (user, password),
                    Login::Plain => (self.target.username.clone(), self.target.password.clone()),
                    Login::NotYet => {
                        self.login_refused.notify_one();
                        tokio::time::sleep(TICK).await;
                        continue;
                    }
                },
            };
            match self.target.connect(&user, &password, key).await {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied && matches!(*logins, Logins::Wall) => {
                    self.wall.doubt();
                    self.login_refused.notify_one();
                    tokio::time::sleep(TICK).await;
                }
                other => return other,
            }
        }
    }
}

impl Target {
    /// Connects, logs in, and puts the connection into the state of pool `key`. A refused login is `PermissionDenied`.
    async fn connect(&self, username: &str, password: &str, key: &Key) -> io::Result<(ReadHalf, WriteHalf)> {
        let (mut read, write) = match &self.endpoint {
            Endpoint::Tcp(host, port) => match &self.tls {
                None => net::connect_tcp(host, *port).await?,
                Some(tls) => net::connect_tls(host, *port, tls.config(), tls.name.clone()).await?,
            },
            Endpoint::Unix(path) => net::connect_unix(path).await?,
        };
        let mut hello = Vec::new();
        let mut replies = 0;
        let mut say = |words: &[&[u8]]| {
            resp::put_header(&mut hello, b'*', words.len() as u64);
            words.iter().for_each(|w| resp::put_bulk(&mut hello, w));
            replies += 1;
        };
        if !password.is_empty() {
            if username.is_empty() {
                say(&[b"AUTH", password.as_bytes()]);
            } else {
                say(&[b"AUTH", username.as_bytes(), password.as_bytes()]);
            }
        }
        if key.proto == Proto::Resp3 {
            say(&[b"HELLO", b"3"]);
        }
        if key.db != 0 {
            say(&[b"SELECT", key.db.to_string().as_bytes()]);
        }
        write.write_all(&hello, |_| ()).await?;
        let mut got = Vec::new();
        let mut chunk = [0; 1024];
        let (mut scanner, mut at, mut first) = (Scanner::default(), 0, 0);
        while replies > 0 {
            let (n, done) = scanner.advance(&got[at..]).map_err(|_| io::Error::other("not a Redis server"))?;
            at += n;
            if done {
                if got[first] == b'-' {
                    let line = got[first + 1..at].split(|&c| c == b'\r').next().unwrap_or_default();
                    let text = String::from_utf8_lossy(line).into_owned();
                    let denied =
                        line.starts_with(b"WRONGPASS") || line.starts_with(b"NOAUTH") || line.starts_with(b"NOPERM");
                    return Err(if denied {
                        io::Error::new(io::ErrorKind::PermissionDenied, text)
                    } else {
                        io::Error::other(text)
                    });
                }
                first = at;
                replies -= 1;
                continue;
            }
            let n = std::future::poll_fn(|cx| read.poll_read(cx, &mut chunk)).await?;
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the upstream while logging in"));
            }
            got.extend_from_slice(&chunk[..n]);
        }
        Ok((read, write))
    }
}

/// Whether it is worth trying to connect.
#[derive(Debug)]
pub struct Health {
    failures: Cell<u32>,
    not_before: Cell<Instant>,
    why: RefCell<String>,
}

impl Default for Health {
    fn default() -> Self {
        Self { failures: Cell::new(0), not_before: Cell::new(Instant::now()), why: RefCell::default() }
    }
}

impl Health {
    fn succeeded(&self) {
        if self.failures.replace(0) > 0 {
            tracing::info!("upstream reachable again");
        }
    }

    fn failed(&self, why: &str) {
        let failures = self.failures.get();
        if failures == 0 {
            tracing::warn!(why, "upstream unreachable");
        }
        self.failures.set(failures.saturating_add(1));
        let backoff = (MIN_BACKOFF * 2u32.saturating_pow(failures.min(10))).min(MAX_BACKOFF);
        self.not_before.set(Instant::now() + backoff.mul_f64(0.5 + fastrand::f64() / 2.0));
        why.clone_into(&mut self.why.borrow_mut());
    }

    fn check(&self) -> Result<(), UpstreamError> {
        if self.failures.get() > 0 && Instant::now() < self.not_before.get() {
            return Err(UpstreamError::Unreachable(self.why.borrow().clone()));
        }
        Ok(())
    }
}

/// What the connections of one worker share.
#[derive(Debug)]
pub struct Env {
    /// The upstream.
    pub site: Arc<Site>,
    /// One read at a time goes through this buffer, whoever reads.
    pub scratch: Rc<RefCell<Vec<u8>>>,
    /// The worker's clock.
    pub clock: Rc<Clock>,
    /// The worker's spare buffers.
    pub spares: Rc<Spares>,
    /// Slow commands.
    pub slowlog: Arc<SlowLog>,
    /// What the worker counts of tenants.
    pub meter: Rc<Meter>,
    /// What the worker counts of this upstream.
    pub cells: Arc<SiteCells>,
    /// Back-off.
    pub health: Health,
    /// Connects in flight.
    connects: Semaphore,
    /// Retired connections by tenant.
    retired: RefCell<HashMap<u32, u32>>,
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    env: Rc<Env>,
    shared: RefCell<HashMap<Key, Vec<Rc<Conn>>>>,
    spare: RefCell<HashMap<Key, Vec<Rc<Conn>>>>,
    all: RefCell<Vec<Weak<Conn>>>,
}

impl Pool {
    /// No connection is opened before it is asked for.
    pub fn new(
        site: Arc<Site>,
        slowlog: Arc<SlowLog>,
        scratch: Rc<RefCell<Vec<u8>>>,
        clock: Rc<Clock>,
        spares: Rc<Spares>,
        meter: Rc<Meter>,
    ) -> Self {
        let env = Rc::new(Env {
            cells: meter.cells.site(&site.name),
            site,
            slowlog,
            meter,
            scratch,
            clock,
            spares,
            health: Health::default(),
            connects: Semaphore::new(CONNECTS),
            retired: RefCell::default(),
        });
        Self { env, shared: RefCell::default(), spare: RefCell::default(), all: RefCell::default() }
    }

    /// A shared connection; sessions with the same `turn` get the same one.
    ///
    /// # Errors
    /// [`UpstreamError::Unreachable`] during back-off, [`UpstreamError::Busy`] at the connection limit.
    pub fn shared(&self, key: Key, turn: usize) -> Result<Rc<Conn>, UpstreamError> {
        let mut shared = self.shared.borrow_mut();
        let conns = shared.entry(key).or_default();
        let at = turn % self.env.site.per_key;
        if let Some(conn) = conns.get(at).filter(|c| !c.dead() && !c.retired()) {
            return Ok(Rc::clone(conn));
        }
        let conn = self.open(key, false)?;
        match conns.get_mut(at) {
            Some(place) => {
                conn.succeed(place);
                *place = Rc::clone(&conn);
            }
            None => conns.push(Rc::clone(&conn)),
        }
        Ok(conn)
    }

    /// A connection for one session alone; give it back with [`Pool::release`].
    ///
    /// # Errors
    /// As [`Pool::shared`].
    pub fn dedicated(&self, key: Key) -> Result<Rc<Conn>, UpstreamError> {
        while let Some(conn) = self.spare.borrow_mut().get_mut(&key).and_then(Vec::pop) {
            if conn.reusable() {
                return Ok(conn);
            }
        }
        self.open(key, true)
    }

    /// Takes a dedicated connection back, or closes it when its state would surprise its next user.
    pub fn release(&self, conn: Rc<Conn>) {
        if conn.reusable() {
            self.spare.borrow_mut().entry(conn.key).or_default().push(conn);
        } else {
            conn.close();
        }
    }

    fn open(&self, key: Key, dedicated: bool) -> Result<Rc<Conn>, UpstreamError> {
        self.env.health.check()?;
        if let Err(full) = self.env.site.open.acquire(key.tenant, dedicated)
            && !self.take_place_of_spare(key.tenant)
        {
            return Err(full);
        }
        let conn = Conn::open(&self.env, key, dedicated);
        self.all.borrow_mut().push(Rc::downgrade(&conn));
        Ok(conn)
    }

    /// Closes a connection that the tenant does not need just now, whose state is another than is wanted: its place is the caller's.
    fn take_place_of_spare(&self, tenant: u32) -> bool {
        let mut spare = self.spare.borrow_mut();
        let of_tenant = spare.iter_mut().find(|(key, conns)| key.tenant == tenant && !conns.is_empty());
        let Some(conn) = of_tenant.and_then(|(_, conns)| conns.pop()) else { return false };
        conn.close();
        conn.give_place()
    }

    /// Once per tick: deadlines.
    pub fn tick(&self) {
        let limit = ticks(self.env.site.target.socket_timeout);
        self.all.borrow_mut().retain(|c| c.strong_count() > 0);
        // The list is not held while a connection fails: that may lead to the next one being opened.
        let mut i = 0;
        loop {
            let next = self.all.borrow().get(i).map(Weak::upgrade);
            let Some(conn) = next else { break };
            i += 1;
            if let Some(conn) = conn.filter(|c| !c.idle()) {
                conn.check_deadline(limit);
            }
        }
    }

    /// Now and then: closes dedicated connections that nobody used for a while, and asks idle shared ones whether they live.
    pub fn tidy(&self) {
        for conns in self.spare.borrow_mut().values_mut() {
            conns.retain(|c| {
                let keep = c.reusable() && c.unused_for() < ticks(DEDICATED_IDLE);
                if !keep {
                    c.close();
                }
                keep
            });
        }
        self.shared.borrow_mut().retain(|_, conns| {
            conns.retain(|c| {
                let keep = !c.idle() || c.unused_for() < ticks(SHARED_IDLE);
                if !keep {
                    c.close();
                }
                keep
            });
            !conns.is_empty()
        });
        for conn in self.shared.borrow().values().flatten() {
            if conn.ready() && !conn.dead() && conn.idle() && conn.silent_for() >= ticks(PING_AFTER) {
                conn.send_own(b"*1\r\n$4\r\nPING\r\n");
            }
        }
    }

    /// Now and then: counts what there is.
    pub fn take_stock(&self) {
        let all = self.all.borrow();
        let open = || all.iter().filter_map(Weak::upgrade).filter(|c| !c.dead());
        open().for_each(|c| c.cells().in_flight.set(0));
        let (mut shared, mut dedicated, mut in_flight) = (0, 0, 0);
        for conn in open() {
            *(if conn.is_dedicated() { &mut dedicated } else { &mut shared }) += 1;
            let due = u64::from(conn.due());
            conn.cells().in_flight.add(due);
            in_flight += due;
        }
        let spare = self.spare.borrow().values().map(|conns| conns.len() as u64).sum();
        let cells = &self.env.cells;
        cells.shared.set(shared);
        cells.dedicated.set(u64::saturating_sub(dedicated, spare));
        cells.spare.set(spare);
        cells.in_flight.set(in_flight);
    }

    /// Whether it has any connection.
    pub fn in_use(&self) -> bool {
        self.all.borrow().iter().any(|c| c.strong_count() > 0)
    }

    /// What its connections share.
    pub fn env(&self) -> &Rc<Env> {
        &self.env
    }
}
