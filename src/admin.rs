//! What an operator looks at, over HTTP: `/healthz`, `/readyz`, `/metrics`, `/api/status` and the page at `/`. Read-only.
//!
//! ```text
//!   main thread ── Board (phase, upstreams, settings) ──┐
//!   workers ────── Metrics (cells of each) ─────────────┼─► admin thread: a sample a second ─► History
//!   scraper, browser, probe ── HTTP ────────────────────┘                 └─► answers
//! ```
//!
//! On a thread of its own, so that no scrape stands in a worker's way; connections, headers and times are bounded.

mod exposition;
pub mod families;
mod history;
mod http;
mod process;
mod status;

use std::{
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::{Semaphore, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    config::Shown,
    metrics::lock,
    upstream::{Logins, Site},
    worker::Shared,
};
use history::History;

/// Connections served at once; one more is closed.
const CONNECTIONS: usize = 64;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// The longest that a request's head may take to come, which is also how long a connection may be idle.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// Bytes that a request's head may have.
const HEAD: usize = 16 * 1024;
/// Lines that it may have.
const HEADERS: usize = 64;
/// A connection is closed after this, and has [`LAST_WORDS`] to take what it is being sent.
const CONNECTION_LASTS: Duration = Duration::from_secs(120);
/// See [`CONNECTION_LASTS`].
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How often a sample is taken.
const SAMPLE: Duration = Duration::from_secs(1);
/// How often an address that another process has is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// After a failed accept, the next attempt comes this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How far the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Clients are not served yet.
    Starting = 0,
    /// They are.
    Serving = 1,
    /// No new ones are.
    Draining = 2,
}

/// What the process tells of itself beside what is counted.
#[derive(Debug)]
pub struct Board {
    shared: Arc<Shared>,
    workers: usize,
    phase: AtomicU8,
    sites: ArcSwap<Vec<Arc<Site>>>,
    settings: ArcSwap<Shown>,
    history: Mutex<History>,
}

impl Board {
    /// Of a process that is starting.
    pub fn new(shared: &Arc<Shared>, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            workers,
            phase: AtomicU8::new(Phase::Starting as u8),
            sites: ArcSwap::default(),
            settings: ArcSwap::default(),
            history: Mutex::default(),
        })
    }

    /// It is at `phase` now.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// These are in force now.
    pub fn in_force(&self, sites: impl Iterator<Item = Arc<Site>>, settings: &Shown) {
        let mut sites: Vec<_> = sites.collect();
        sites.sort_by(|a, b| a.name.cmp(&b.name));
        self.sites.store(Arc::new(sites));
        self.settings.store(Arc::new(settings.clone()));
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    /// Whether new clients should be sent here, and what is amiss, if anything is. Of several upstreams one that is served is enough: the
    /// loss of another one hits every keyfence alike, and must not take its neighbours' tenants with it.
    fn readiness(&self) -> (bool, Vec<String>) {
        let mut amiss = Vec::new();
        match self.phase() {
            Phase::Starting => amiss.push("starting".into()),
            Phase::Draining => amiss.push("draining: no new connections".into()),
            Phase::Serving => {}
        }
        let here = amiss.is_empty();
        let sites = self.sites.load();
        let before = amiss.len();
        for site in sites.iter() {
            if site.pulse.rate().is_none() {
                amiss.push(format!("upstream '{}' ({}) does not answer", site.name, site.target));
            } else if let Logins::None(why) = &**site.logins.load() {
                amiss.push(format!("upstream '{}' ({}): {why}", site.name, site.target));
            }
        }
        let served = amiss.len() - before < sites.len();
        (here && served, amiss)
    }
}

/// The admin thread.
#[derive(Debug)]
pub struct Admin {
    stop: watch::Sender<bool>,
    thread: thread::JoinHandle<()>,
}

impl Admin {
    /// Listens at `at`, or on a socket that was passed for it. An address that another process has is tried again until it is free: a keyfence that takes over from another one
    /// gets it when that one has gone.
    ///
    /// # Errors
    /// A sentence: the address is none of this machine's, or may not be had.
    pub fn start(at: SocketAddr, given: Option<StdTcpListener>, board: &Arc<Board>) -> Result<Self, String> {
        let failed = |e: io::Error| format!("cannot listen on {at} ([admin] listen): {e}");
        let bound = match given.map_or_else(|| bind(at), Ok) {
            Ok(listener) => Some(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tracing::error!(address = %at, "the address of [admin] listen is another process's: tried again every second; admin.listen or --admin names another one");
                None
            }
            Err(error) => return Err(failed(error)),
        };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (stop, stopping) = watch::channel(false);
        let board = Arc::clone(board);
        let thread = thread::Builder::new()
            .name("admin".into())
            .spawn(move || runtime.block_on(serve(bound, at, board, stopping)))
            .map_err(failed)?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if !matches!(tokio::task::spawn_blocking(move || self.thread.join()).await, Ok(Ok(()))) {
            tracing::error!("the admin thread ended in a panic");
        }
    }
}

fn bind(at: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(at))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn serve(bound: Option<StdTcpListener>, at: SocketAddr, board: Arc<Board>, mut stopping: watch::Receiver<bool>) {
    let listening = async {
        let mut bound = bound;
        let listener = loop {
            if let Some(listener) = bound.take().or_else(|| bind(at).ok()) {
                match TcpListener::from_std(listener) {
                    Ok(listener) => break listener,
                    Err(error) => tracing::error!(%error, "the admin listener failed"),
                }
            }
            sleep(TRY_AGAIN).await;
        };
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "admin: metrics, health and status page");
        }
        accept(listener, &board).await;
    };
    let sampling = async {
        let mut every = interval(SAMPLE);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let sums = board.shared.metrics.tenants();
            let sites = history::sites(&board.shared.metrics);
            lock(&board.history).take(Instant::now(), &sums, &sites);
        }
    };
    tokio::select! {
        () = listening => {}
        () = sampling => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

async fn accept(listener: TcpListener, board: &Arc<Board>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // One too many is closed: nothing here is worth a queue.
                if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                    let board = Arc::clone(board);
                    tokio::spawn(async move {
                        talk(stream, board).await;
                        drop(place);
                    });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed on the admin listener");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection for a while.
async fn talk(stream: TcpStream, board: Arc<Board>) {
    // What can only be reached from this machine must not be reached from a page of another site's that a browser here has opened.
    let local = stream.local_addr().is_ok_and(|at| at.ip().to_canonical().is_loopback());
    let service = service_fn(move |request| {
        let response = http::answer(&request, &board, local);
        std::future::ready(Ok::<_, std::convert::Infallible>(response))
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(HEAD)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(stream), service)
    );
    if timeout(CONNECTION_LASTS, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST_WORDS, connection).await;
    }
}
