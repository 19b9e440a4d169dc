//! ACCEPT: binds the listeners, starts the workers, probes the upstream, and stops everything in order.
//!
//! ```text
//!   main thread      signals ─► stop                 worker thread × N
//!      │  managed upstream, probe                      listener (SO_REUSEPORT) ─► session per connection
//!      └──────────────── Shared ──────────────────────── upstream connections
//! ```

mod accept;
mod drain;
mod handshake;
mod listen;

pub use listen::Inherited;

use std::{
    fmt, io,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use self::{drain::Ending, listen::Bound};
use crate::{
    admin::{Admin, Board, Phase},
    clients::Clients,
    coherence,
    config::{self, ClientAuth, Config, Endpoint as Place},
    directory::Directory,
    metrics::Metrics,
    reload::{Reload, Signals, Sites},
    scoped::Flushes,
    scripts::{functions, store::Store},
    slowlog::SlowLog,
    systemd,
    tenant::throttle::Throttle,
    tier::{self, Tier},
    tls::{self, UpstreamTls},
    upstream::{Endpoint, Target, managed},
    worker::{Beats, ClientLimits, ListeningTls, Shared},
};

/// How long all upstreams together have to say what they are before clients are served; who takes longer is asked on.
const ASKED_WITHIN: Duration = Duration::from_secs(3);

/// Why keyfence does not serve: a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The settings cannot be used, or a file that they name.
    Settings(String),
    /// Anything else.
    Other(String),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Settings(text) | Self::Other(text)) = self;
        f.write_str(text)
    }
}

/// The place of one upstream of the settings. One that is managed is started first, unless it runs at `running` already.
///
/// # Errors
/// When the managed server cannot be started, or a certificate cannot be used.
pub async fn upstream(
    up: &config::Upstream,
    running: Option<Endpoint>,
) -> Result<(Target, Option<managed::Managed>), Failure> {
    let tls = match &up.endpoint {
        Place::Tcp { host, .. } if up.use_tls => {
            let tls =
                UpstreamTls::new(host, &up.tls).map_err(|e| Failure::Settings(format!("upstream at {host}: {e}")))?;
            Some(Arc::new(tls))
        }
        _ => None,
    };
    let (endpoint, child) = match &up.endpoint {
        Place::Tcp { host, port } => (Endpoint::Tcp(host.clone(), *port), None),
        Place::Unix(path) => (Endpoint::Unix(path.clone()), None),
        Place::Managed { .. } if let Some(endpoint) = running => (endpoint, None),
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
/// log could not write; `given` are listeners that this process was started with. Needs a local runtime.
///
/// # Errors
/// An address that cannot be bound, a managed upstream that does not start, a certificate that cannot be read.
pub async fn run(
    config: Config,
    file: Option<PathBuf>,
    lines_lost: Arc<AtomicU64>,
    mut given: Inherited,
    again: impl Fn() -> Result<Config, String>,
) -> Result<(), Failure> {
    let mut signals = Signals::all()?;
    let workers = match config.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    // What needs no more than the settings comes first: nothing has been begun yet when it fails.
    let listening = listening_tls(&config).map_err(Failure::Settings)?;
    // Who takes over from another process listens only when it can serve: until then all clients go there.
    let takes_over = config.reuse_port;
    let mut bound = Vec::new();
    if !takes_over {
        let binding = listen::bind_all(&config, workers, &mut given);
        let Some(done) = unless_stopped(&mut signals, binding).await else { return Ok(()) };
        bound = done?;
        listen::open(&mut bound)?;
    }
    let mut sites = Sites::default();
    let Some(staged) = unless_stopped(&mut signals, sites.stage(&config)).await else { return Ok(()) };
    let staged = staged?;
    sites.take(staged);
    let port = bound.iter().find_map(|b| b.port).or_else(|| listen::port(&config)).unwrap_or(0);
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
        tls: ArcSwapOption::new(listening),
        proxies: ArcSwap::from_pointee(config.proxy_protocol.clone()),
        arriving: AtomicUsize::new(0),
        beats: Beats::of(workers),
        started: Instant::now(),
        port,
        run_id: random_id(),
    });
    let board = Board::new(&shared, workers);
    board.in_force(sites.by_name.values().cloned(), &config.shown);
    let admin = match &config.admin.listen {
        Some(address) => match start_admin(address, &board, &mut given).await {
            Ok(admin) => Some(admin),
            Err(error) => {
                sites.stop().await;
                return Err(error.into());
            }
        },
        None => None,
    };
    // Clients that connect at once should find an upstream whose commands are known; one that is down or hangs must not keep out those of others.
    if unless_stopped(&mut signals, sites.begin(&shared, ASKED_WITHIN)).await.is_none() {
        drop(bound);
        sites.stop().await;
        if let Some(admin) = admin {
            admin.stop().await;
        }
        return Ok(());
    }
    let had = async {
        if takes_over {
            bound = listen::bind_all(&config, workers, &mut given).await?;
        }
        given.nothing_left()?;
        if takes_over { listen::open(&mut bound) } else { Ok(()) }
    };
    if let Err(error) = had.await {
        drop(bound);
        sites.stop().await;
        return Err(error);
    }

    let (leave, leaving) = watch::channel(None);
    let (last_words, ending) = drain::ending();
    let threads = match start_workers(&shared, workers, &mut bound, (&leaving, ending)).await {
        Ok(threads) => threads,
        Err(error) => {
            drop(bound);
            sites.stop().await;
            return Err(error.into());
        }
    };
    shared.metrics.loaded();
    board.enter(Phase::Serving);
    for b in &bound {
        tracing::info!(address = b.shown, workers, tenants = config.tenants.len(), "serving");
    }

    systemd::ready();
    let beating = Arc::clone(&shared);
    let mut last = beating.beats.all();
    let watching = tokio::task::spawn_local(systemd::keep_watch(move || {
        let now = beating.beats.all();
        let before = std::mem::replace(&mut last, now);
        last.iter().zip(before).all(|(now, before)| *now != before)
    }));
    let tidying = tokio::task::spawn_local(coherence::tidy(Arc::clone(&shared.tier)));
    let mut reload = Reload { config, file, sites, shared: Arc::clone(&shared), board: Arc::clone(&board) };
    reload.until_stopped(&mut signals, again).await;
    tidying.abort();
    watching.abort();
    systemd::stopping();
    let Reload { config, mut sites, .. } = reload;
    tracing::info!(clients = shared.clients.len(), grace = ?config.shutdown_grace, "stopping");
    board.enter(Phase::Draining);
    shared.draining.store(true, Ordering::SeqCst);
    // As long as the workers hold their sockets nobody else's file has the same number.
    drop(bound);
    let deadline = Instant::now() + config.shutdown_grace;
    leave.send_replace(Some(deadline));
    let mut ended = pin!(async {
        last_words.drain(&shared, deadline).await;
        let ended = move || threads.into_iter().map(thread::JoinHandle::join).filter(Result::is_err).count();
        tokio::task::spawn_blocking(ended).await
    });
    let panics = tokio::select! {
        panics = &mut ended => panics,
        () = signals.stop() => {
            tracing::warn!("told to stop once more: clients are disconnected now");
            leave.send_replace(Some(Instant::now()));
            ended.await
        }
    };
    if panics.unwrap_or(1) > 0 {
        tracing::error!("a worker ended in a panic");
    }
    sites.stop().await;
    if let Some(admin) = admin {
        admin.stop().await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// What a step of the start comes to; `None`: a signal says to stop, and it is given up.
async fn unless_stopped<T>(signals: &mut Signals, step: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = signals.stop() => {
            tracing::info!("stopped before it served");
            None
        }
        done = step => Some(done),
    }
}

/// Starts the workers, each with a listener of every address.
///
/// # Errors
/// A sentence: one could not begin. Those that did end with `leaving`'s sender.
async fn start_workers(
    shared: &Arc<Shared>,
    workers: usize,
    bound: &mut [Bound],
    (leaving, ending): (&watch::Receiver<Option<Instant>>, Ending),
) -> Result<Vec<thread::JoinHandle<()>>, String> {
    let cannot = |e: io::Error| format!("cannot start a worker: {e}");
    let (mut threads, mut begun) = (Vec::new(), Vec::new());
    for n in 0..workers {
        let listeners =
            bound.iter_mut().filter_map(|b| Some((b.listeners.pop()?, b.name.clone(), b.of_tenant))).collect();
        let (shared, leaving, ending) = (Arc::clone(shared), leaving.clone(), ending.clone());
        let (begins, has_begun) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(format!("worker-{n}"))
            .spawn(move || accept::work(&shared, n, listeners, leaving, ending, begins))
            .map_err(cannot)?;
        threads.push(thread);
        begun.push(has_begun);
    }
    for one in begun {
        one.await.map_err(|_| "cannot start a worker: it ended at once".to_owned())?.map_err(cannot)?;
    }
    Ok(threads)
}

/// Starts the admin listener, on a socket that was passed for it if there is one.
async fn start_admin(address: &str, board: &Arc<Board>, given: &mut Inherited) -> Result<Admin, String> {
    let at = listen::resolve(address).await.map_err(|e| format!("{e} ([admin] listen)"))?;
    Admin::start(at, given.tcp(at), board)
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
