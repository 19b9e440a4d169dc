//! ACCEPT: binds the listeners, starts the workers, probes the upstream, and stops everything in order.
//!
//! ```text
//!   main thread      signals ─► stop                 worker thread × N
//!      │  managed upstream, probe                      listener (SO_REUSEPORT) ─► session per connection
//!      └──────────────── Shared ──────────────────────── upstream connections
//! ```

mod handshake;

use handshake::Handshakes;

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::{fs::FileTypeExt as _, net::UnixListener as StdUnixListener},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, lookup_host},
    runtime::{Builder, LocalOptions},
    sync::{Notify, watch},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    admin::{Admin, Board, Phase},
    clients::{Client, Clients},
    coherence,
    config::{self, ClientAuth, Config, Endpoint as Place, Listen},
    directory::{self, Directory},
    downstream::{Alarm, Downstream},
    login,
    metrics::Metrics,
    net::{ReadHalf, WriteHalf, split_tcp, split_unix},
    plane,
    reload::{Reload, Signals, Sites},
    scoped::Flushes,
    scripts::{functions, store::Store},
    session::Session,
    slowlog::SlowLog,
    tenant::throttle::Throttle,
    tier::{self, Tier},
    tls::{self, UpstreamTls},
    upstream::{Endpoint, Target, managed},
    worker::{ClientLimits, ListeningTls, Names, Shared, Worker},
};

/// Connections that may wait to be accepted, per worker.
const BACKLOG: i32 = 1024;
/// After a failed accept (no descriptors left, say), the next attempt comes this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The place of one upstream of the settings, started first when it is managed.
///
/// # Errors
/// When the managed server cannot be started.
pub async fn upstream(up: &config::Upstream) -> Result<(Target, Option<managed::Managed>), String> {
    let tls = match &up.endpoint {
        Place::Tcp { host, .. } if up.use_tls => {
            let tls = UpstreamTls::new(host, &up.tls).map_err(|e| format!("upstream at {host}: {e}"))?;
            Some(Arc::new(tls))
        }
        _ => None,
    };
    let (endpoint, child) = match &up.endpoint {
        Place::Tcp { host, port } => (Endpoint::Tcp(host.clone(), *port), None),
        Place::Unix(path) => (Endpoint::Unix(path.clone()), None),
        Place::Managed { dir, save } => {
            let child = managed::start(dir, save).await.map_err(|e| e.to_string())?;
            (Endpoint::Unix(child.socket().to_owned()), Some(child))
        }
    };
    let target = Target {
        endpoint,
        username: up.username.clone(),
        password: up.password.expose().to_owned(),
        connect_timeout: up.connect_timeout,
        socket_timeout: up.socket_timeout,
        tls,
    };
    Ok((target, child))
}

/// Serves until told to stop by SIGTERM or SIGINT; `again` reads the settings anew, on SIGHUP or when `file` changes. `lines_lost` counts what the
/// log could not write. Needs a local runtime.
///
/// # Errors
/// A sentence for the operator: an address that cannot be bound, a managed upstream that does not start.
pub async fn run(
    config: Config,
    file: Option<PathBuf>,
    lines_lost: Arc<AtomicU64>,
    again: impl Fn() -> Result<Config, String>,
) -> Result<(), String> {
    let hangup = Signals::hangup()?;
    let workers = match config.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let mut bound = Vec::new();
    let of_all = config.listen.iter().map(|listen| (listen, false));
    let of_tenants = config.tenants.iter().flat_map(|t| &t.listen).map(|listen| (listen, true));
    for (listen, of_tenant) in of_all.chain(of_tenants) {
        let one = Bound { of_tenant, ..bind(listen, workers).await? };
        // Two listeners on one address would each get some of its connections, and with them the other's tenant.
        let same = |b: &&Bound| b.shown.trim_start_matches("tls:") == one.shown.trim_start_matches("tls:");
        if let Some(other) = bound.iter().find(same) {
            return Err(format!("cannot listen on {}: it is the same address as {}", one.name, other.name));
        }
        bound.push(one);
    }
    let mut sites = Sites::default();
    let staged = sites.stage(&config).await?;
    sites.take(staged);
    let port = bound.iter().find_map(|b| b.port).unwrap_or(0);
    let directory = Directory::build(&config, &sites.by_name, None)?;
    directory.enforce_limits();
    let tier = Arc::<Tier>::default();
    if let Some(limits) = tier_limits(&config) {
        tier.set(&limits);
    }
    directory.want_tier(|_| 0);
    let shared = Arc::new(Shared {
        directory: ArcSwap::from_pointee(directory),
        clients: Clients::default(),
        limits: ArcSwap::from_pointee(client_limits(&config)),
        throttle: Throttle::default(),
        metrics: Arc::new(Metrics::new(config.log.access_sample, lines_lost)),
        draining: AtomicBool::new(false),
        tier,
        flushes: Flushes::default(),
        scripts: Store::default(),
        functions: functions::own::Store::default(),
        slowlog: Arc::new(SlowLog::new(config.admin.slowlog_threshold, config.admin.slowlog_length)),
        tls: ArcSwapOption::new(listening_tls(&config)?),
        started: Instant::now(),
        port,
        run_id: random_id(),
    });
    let board = Board::new(&shared, workers);
    board.in_force(sites.by_name.values().cloned(), &config.shown);
    let admin = match &config.admin.listen {
        Some(address) => match Admin::start(address, &board).await {
            Ok(admin) => Some(admin),
            Err(error) => {
                sites.stop().await;
                return Err(error);
            }
        },
        None => None,
    };
    // Clients that connect at once should find an upstream whose commands are known; one that is down must not keep them out.
    for site in sites.by_name.values() {
        plane::learn(site).await;
        if let Err(error) = plane::raise(site, &[&shared.directory.load()]).await {
            tracing::error!(upstream = %site.target, error, "the wall does not stand: nobody is served there until it does");
        }
    }
    sites.look_after(&shared);

    let signals = Signals::all(hangup)?;
    let (leave, leaving) = watch::channel(None);
    let mut threads = Vec::new();
    for n in 0..workers {
        let listeners =
            bound.iter_mut().filter_map(|b| Some((b.listeners.pop()?, b.name.clone(), b.of_tenant))).collect();
        let (shared, leaving) = (Arc::clone(&shared), leaving.clone());
        let thread = thread::Builder::new()
            .name(format!("worker-{n}"))
            .spawn(move || work(&shared, n, listeners, leaving))
            .map_err(|e| format!("cannot start a worker thread: {e}"))?;
        threads.push(thread);
    }
    shared.metrics.loaded();
    board.enter(Phase::Serving);
    for b in &bound {
        tracing::info!(address = b.shown, workers, tenants = config.tenants.len(), "serving");
    }

    let tidying = tokio::task::spawn_local(coherence::tidy(Arc::clone(&shared.tier)));
    let mut reload = Reload { config, file, sites, shared: Arc::clone(&shared), board: Arc::clone(&board) };
    reload.until_stopped(signals, again).await;
    tidying.abort();
    let Reload { config, mut sites, .. } = reload;
    tracing::info!(clients = shared.clients.len(), grace = ?config.shutdown_grace, "stopping");
    board.enter(Phase::Draining);
    shared.draining.store(true, Ordering::SeqCst);
    leave.send_replace(Some(Instant::now() + config.shutdown_grace));
    for client in shared.clients.all() {
        client.alarm.kill_when_idle();
    }
    let joined = tokio::task::spawn_blocking(move || {
        threads.into_iter().map(thread::JoinHandle::join).filter(Result::is_err).count()
    });
    if joined.await.unwrap_or(1) > 0 {
        tracing::error!("a worker ended in a panic");
    }
    for b in bound {
        if let Some(path) = b.path {
            let _ = std::fs::remove_file(path);
        }
    }
    sites.stop().await;
    if let Some(admin) = admin {
        admin.stop().await;
    }
    tracing::info!("stopped");
    Ok(())
}

pub(crate) fn client_limits(config: &Config) -> ClientLimits {
    ClientLimits { output: config.client_output_limit, clients: config.max_clients, idle: config.client_idle_timeout }
}

/// What the `tls:` listeners need, read anew from the files; none without such a listener.
///
/// # Errors
/// What is wrong with which setting or file.
pub(crate) fn listening_tls(config: &Config) -> Result<Option<Arc<ListeningTls>>, String> {
    if !config.listens_with_tls() {
        return Ok(None);
    }
    let (names_asked_for, ca) = (config.tls.client_auth == ClientAuth::Off, &config.tls.client_ca_file);
    let authorities = if names_asked_for {
        None
    } else {
        Some(std::fs::read(ca).map_err(|e| format!("tls.client_ca_file: {}: {e}", ca.display()))?)
    };
    Ok(Some(Arc::new(ListeningTls { config: tls::server(&config.tls)?, names_asked_for, authorities })))
}

/// What the settings say of the tier; none: it is off.
pub(crate) fn tier_limits(config: &Config) -> Option<tier::Limits> {
    let config::Tier { enabled, max_memory, max_value, max_ttl, negative } = config.tier;
    enabled.then_some(tier::Limits { max_memory, max_value, max_ttl, negative })
}

fn random_id() -> String {
    (0..40).map(|_| char::from_digit(fastrand::u32(..16), 16).unwrap_or('0')).collect()
}

/// One address of the settings, bound once for each worker.
struct Bound {
    /// As the settings write it.
    name: String,
    /// A connection that comes in on it is a tenant's.
    of_tenant: bool,
    shown: String,
    port: Option<u16>,
    path: Option<PathBuf>,
    listeners: Vec<Listener>,
}

enum Listener {
    Tcp(StdTcpListener),
    /// With TLS.
    Tls(StdTcpListener),
    Unix(StdUnixListener),
}

async fn bind(listen: &Listen, workers: usize) -> Result<Bound, String> {
    match listen {
        Listen::Tcp(address) | Listen::Tls(address) => {
            let tls = matches!(listen, Listen::Tls(_));
            let failed = |e: io::Error| format!("cannot listen on {address}: {e}");
            let mut at = lookup_host(address)
                .await
                .map_err(failed)?
                .next()
                .ok_or_else(|| format!("cannot listen on {address}: no such host"))?;
            let mut listeners = Vec::new();
            for _ in 0..workers {
                let listener = bind_tcp(at).map_err(failed)?;
                // Port 0 became a real one with the first.
                at = listener.local_addr().map_err(failed)?;
                listeners.push(if tls { Listener::Tls(listener) } else { Listener::Tcp(listener) });
            }
            Ok(Bound {
                name: directory::address(listen),
                of_tenant: false,
                shown: if tls { format!("tls:{at}") } else { at.to_string() },
                port: Some(at.port()),
                path: None,
                listeners,
            })
        }
        Listen::Unix(path) => {
            let failed = |e: io::Error| format!("cannot listen on {}: {e}", path.display());
            let first = bind_unix(path).map_err(failed)?;
            let mut listeners = Vec::new();
            for _ in 0..workers {
                listeners.push(Listener::Unix(first.try_clone().map_err(failed)?));
            }
            Ok(Bound {
                name: directory::address(listen),
                of_tenant: false,
                shown: format!("unix:{}", path.display()),
                port: None,
                path: Some(path.clone()),
                listeners,
            })
        }
    }
}

fn bind_tcp(at: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // One queue of new connections per worker; the kernel spreads them.
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(at))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path) -> io::Result<StdUnixListener> {
    // A socket that nobody answers on is what a killed process left behind; one that somebody answers on is theirs.
    if std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path).is_err()
    {
        std::fs::remove_file(path)?;
    }
    let listener = StdUnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The address that a connection came in on.
struct Address {
    /// As the settings write it.
    name: Rc<str>,
    /// It was bound for a tenant.
    of_tenant: bool,
}

/// Counts the sessions of a worker.
#[derive(Default)]
struct Sessions {
    count: Cell<usize>,
    none: Notify,
}

struct Present(Rc<Sessions>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.none.notify_one();
        }
    }
}

fn work(
    shared: &Arc<Shared>,
    number: usize,
    listeners: Vec<(Listener, String, bool)>,
    mut leaving: watch::Receiver<Option<Instant>>,
) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker has no runtime");
            return;
        }
    };
    runtime.block_on(async {
        let worker = Worker::new(shared, number);
        let sessions = Rc::<Sessions>::default();
        let mut accepting = Vec::new();
        for (listener, name, of_tenant) in listeners {
            let (worker, sessions) = (Rc::clone(&worker), Rc::clone(&sessions));
            let address = Rc::new(Address { name: Rc::from(name), of_tenant });
            accepting.push(tokio::task::spawn_local(async move {
                if let Err(error) = accept(&worker, &sessions, listener, &address).await {
                    tracing::error!(%error, "a listener failed");
                }
            }));
        }
        tokio::task::spawn_local(Rc::clone(&worker).keep_time());
        let deadline = leaving.wait_for(Option::is_some).await.ok().and_then(|at| *at).unwrap_or_else(Instant::now);
        accepting.iter().for_each(tokio::task::JoinHandle::abort);
        let emptied = async {
            while sessions.count.get() > 0 {
                sessions.none.notified().await;
            }
        };
        if timeout_at(deadline, emptied).await.is_err() {
            tracing::warn!(
                clients = sessions.count.get(),
                "clients still connected at the end of the grace period: disconnected"
            );
        }
    });
}

/// A new connection, and the client's address and ours.
enum Accepted {
    /// Ready.
    Plain((ReadHalf, WriteHalf), (String, String)),
    /// Its handshake is still to come.
    Tls(TcpStream, (String, String)),
}

async fn accept(
    worker: &Rc<Worker>,
    sessions: &Rc<Sessions>,
    listener: Listener,
    address: &Rc<Address>,
) -> io::Result<()> {
    enum Any {
        Tcp(TcpListener),
        Tls(TcpListener),
        Unix(UnixListener),
    }
    let listener = match listener {
        Listener::Tcp(l) => Any::Tcp(TcpListener::from_std(l)?),
        Listener::Tls(l) => Any::Tls(TcpListener::from_std(l)?),
        Listener::Unix(l) => Any::Unix(UnixListener::from_std(l)?),
    };
    let handshakes = Rc::<Handshakes>::default();
    loop {
        let accepted = match &listener {
            Any::Tcp(l) => l.accept().await.and_then(|(stream, peer)| {
                let local = stream.local_addr()?;
                Ok(Accepted::Plain(split_tcp(stream)?, (peer.to_string(), local.to_string())))
            }),
            Any::Tls(l) => l.accept().await.and_then(|(stream, peer)| {
                let local = stream.local_addr()?;
                Ok(Accepted::Tls(stream, (peer.to_string(), local.to_string())))
            }),
            Any::Unix(l) => {
                let named = |stream| Accepted::Plain(split_unix(stream), ("unix:0".into(), "unix:0".into()));
                l.accept().await.map(|(stream, _)| named(stream))
            }
        };
        match accepted {
            Ok(Accepted::Plain(halves, addresses)) => {
                greet(worker, sessions, address, halves, addresses, Names::default());
            }
            Ok(Accepted::Tls(stream, addresses)) => {
                let (worker, sessions) = (Rc::clone(worker), Rc::clone(sessions));
                let (handshakes, address) = (Rc::clone(&handshakes), Rc::clone(address));
                tokio::task::spawn_local(async move {
                    let Some(_one) = handshakes.begin() else {
                        tracing::debug!(client = addresses.0, "too many handshakes at once: closed");
                        return;
                    };
                    let Some(tls) = worker.shared.tls.load_full() else { return };
                    match handshake::shake(stream, Arc::clone(&tls.config), tls.names_asked_for).await {
                        Ok((read, write, names)) => {
                            greet(&worker, &sessions, &address, (read, write), addresses, Names::new(names, tls));
                        }
                        Err(error) => tracing::debug!(client = addresses.0, %error, "no TLS handshake: closed"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Starts the session of a new connection, or turns it away.
fn greet(
    worker: &Rc<Worker>,
    sessions: &Rc<Sessions>,
    listener: &Address,
    (read, write): (ReadHalf, WriteHalf),
    (addr, laddr): (String, String),
    names: Names,
) {
    let shared = &worker.shared;
    let limits = shared.limits.load();
    let directory = shared.directory.load();
    let first = directory.first(&listener.name, names.believed(shared));
    if listener.of_tenant && !directory.listeners.contains_key(&*listener.name) {
        worker.meter.cells.rejected.add(1);
        let _ = write.try_write(b"-ERR the tenant of this address is not served any more\r\n");
        return;
    }
    let counts = &worker.meter.cells;
    if shared.clients.len() >= limits.clients || first.as_ref().is_some_and(|(tenant, _)| !tenant.admit()) {
        counts.rejected.add(1);
        let _ = write.try_write(b"-ERR max number of clients reached\r\n");
        return;
    }
    counts.accepted.add(1);
    let alarm = Arc::<Alarm>::default();
    let client = Client::new(shared.clients.next_id(), addr, laddr, Arc::clone(&alarm), directory.nobody.id);
    let client = Arc::new(client);
    tracing::debug!(client = %client.addr, id = client.id, "client connected");
    shared.clients.insert(Arc::clone(&client));
    // It came just before the listeners closed, and may have come too late to be told with the others.
    if shared.draining.load(Ordering::SeqCst) {
        client.alarm.kill_when_idle();
    }
    let down =
        Rc::new(Downstream::new(write, Arc::clone(&client.addr), limits.output, Rc::clone(&worker.spares), alarm));
    let mut session = Session::new(worker, read, down, Arc::clone(&client));
    session.listener = Rc::clone(&listener.name);
    session.names = names;
    if let Some((tenant, login)) = first {
        session.become_tenant(Arc::clone(tenant), login);
        login::end_if_reloaded(&session);
    }
    sessions.count.set(sessions.count.get() + 1);
    let (present, worker) = (Present(Rc::clone(sessions)), Rc::clone(worker));
    tokio::task::spawn_local(async move {
        session.run().await;
        worker.shared.clients.remove(client.id);
        let (tenant, age) = (&*session.tenant.name, client.since.elapsed());
        tracing::debug!(client = %client.addr, id = client.id, tenant, ?age, "client disconnected");
        drop(present);
    });
}
