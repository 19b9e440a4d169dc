//! One client connection: reads, hands whole requests to [`crate::proxy`], keeps replies in order, and waits where waiting is due.
//!
//! ```text
//!   socket ─► scratch ─► parse ─► proxy::dispatch ─► Flow ─┬─ Next   go on with the next request
//!              │   ▲                                       ├─ Again  wait, then the same request once more
//!        rest  ▼   │                                       ├─ After  wait, then the next request
//!             held bytes                                   └─ …      work that takes a while, or the end
//! ```
//!
//! A session has requests in flight on one upstream connection at a time: the shared one of its pool, or a dedicated one. To change
//! connections, or to answer from here what cannot wait in an upstream's queue, it first lets its replies drain (`Until::Drained`). That is
//! what keeps every client's replies in the order of its requests.

mod state;
mod wait;

use wait::LINGER;
pub use wait::Until;

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use arc_swap::{ArcSwap, Cache};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    big,
    clients::Client,
    command::Span,
    downstream::Downstream,
    error::UpstreamError,
    login::{self},
    metrics::{OTHER, TenantCells},
    monitor,
    net::ReadHalf,
    proxy,
    pubsub::{self, subscriber::Subscriber},
    resp::{
        Proto,
        request::{self, Broken, Limits, Parsed, Progress},
    },
    scoped, scripts,
    tenant::Tenant,
    tier::{Desk, Flight},
    tracking::{self, Tracking},
    transaction::Tx,
    upstream::{Conn, Site, control::Facts},
    worker::{ClientLimits, Names, Reach, Worker},
};

/// Bytes read from a client in one turn: its share of the worker's time before others have theirs.
pub const READ: usize = 64 * 1024;
/// The end of a TLS connection that its peer did not announce, as many clients do not, is one all the same: half a request is never run, and
/// whole ones were meant.
fn unannounced_end(read: io::Result<usize>) -> io::Result<usize> {
    read.or_else(|e| if e.kind() == io::ErrorKind::UnexpectedEof { Ok(0) } else { Err(e) })
}

/// A request of which more than this is still incomplete is streamed, not held, in bytes.
pub const HELD: usize = 64 * 1024;
/// A connection that has not logged in after this long is closed: it would take the place of one that can.
const LOGIN_WITHIN: Duration = Duration::from_secs(60);
/// How long a client that connected while the process stops has to send something.
const FIRST_WORD: Duration = Duration::from_millis(500);
/// How often a client that sends on is read from while the process stops, before it is asked to go.
const LAST_READS: u32 = 64;
/// What a client may have done in one turn: a command costs 1, an answer made here 1 more per 64 bytes.
const TURN: u64 = 16 * 1024;
/// How long a client that goes on over its tenant's rate waits for its next turn: this to twice this, so that many do not come back at once.
const OVER_RATE: Duration = Duration::from_millis(50);

/// What to do after a request.
#[derive(Debug)]
pub enum Flow {
    /// Go on with the next.
    Next,
    /// Wait, then take the same request again.
    Again(Until),
    /// Wait, then go on with the next.
    After(Until),
    /// Work that runs apart from the data path, its reply next.
    Run(scoped::Job),
    /// A login to be checked.
    Login(login::Attempt),
    /// Close once every reply is out.
    Quit,
}

/// CLIENT REPLY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replies {
    /// All.
    On,
    /// None but pushes.
    Off,
    /// None to the command at hand and the next.
    Skip,
    /// None to the command at hand.
    SkipOne,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    /// The worker it lives on.
    pub worker: Rc<Worker>,
    /// Where its replies go.
    pub down: Rc<Downstream>,
    /// Its entry in the client registry.
    pub client: Arc<Client>,
    /// Who it speaks for.
    pub tenant: Arc<Tenant>,
    /// What this worker counts of the tenant.
    pub cells: Arc<TenantCells>,
    /// The tenant's prefix.
    pub prefix: Rc<[u8]>,
    /// The tenant's upstream, as this worker reaches it.
    pub reach: Rc<Reach>,
    facts: RefCell<Cache<FactsOf, Arc<Facts>>>,
    /// Milliseconds of the worker's clock at which it connected.
    connected_at: u64,
    /// Limits of every client, as of its connecting.
    limits: ClientLimits,
    /// It has a tenant.
    pub logged_in: bool,
    /// Since when it has had none.
    nobody_since: Instant,
    /// Logins of this connection that were refused.
    pub refused_logins: u32,
    /// The address it came in on, as the settings write it.
    pub listener: Rc<str>,
    /// Names of its TLS connection's that may be a tenant's.
    pub names: Names,
    /// The command at hand has been charged to the tenant's rate, and waits.
    pub paid: bool,
    /// The command at hand has been shown to those who watch, and waits.
    pub shown: bool,
    /// Bytes of replies that the tenant's rate has been charged with.
    charged: u64,
    /// Row of the command at hand.
    pub at_hand: u16,
    /// The row of the last commands, and how many of them are not counted yet.
    run: (u16, u64),
    /// Bytes written to the client that its tenant's counts have.
    counted: u64,
    /// HELLO.
    pub proto: Proto,
    /// SELECT, as the tenant counts.
    pub db: u32,
    /// The shared upstream connection it uses.
    pub lane: Option<Rc<Conn>>,
    /// The dedicated one it uses instead while it has one.
    pub own: Option<Rc<Conn>>,
    /// Its subscriptions, once it has had any.
    pub sub: Option<Rc<Subscriber>>,
    /// What the command at hand has found so far, which is to be taken up again.
    pub found: Option<Box<pubsub::Found>>,
    /// The tier, as its worker uses it.
    pub desk: Rc<Desk>,
    /// Its reads may be answered from there.
    pub near: bool,
    /// A write of its own may be in flight.
    pub wrote: bool,
    /// The read that the command at hand has waited for.
    pub joined: Option<Arc<Flight>>,
    /// CLIENT TRACKING.
    pub tracking: Option<Box<Tracking>>,
    /// Between MULTI and EXEC.
    pub tx: Option<Box<Tx>>,
    /// Keys watched on `own`.
    pub watched: u32,
    /// Keys were watched on a connection that broke: the next EXEC must fail.
    pub watch_lost: bool,
    /// SELECT inside an EXEC on its way: takes effect if that says so.
    pub select_on_commit: Option<(Rc<Cell<bool>>, u32)>,
    /// A script on its way that is to be sent again if this comes true: the request is still held.
    pub resend: Option<Rc<Cell<bool>>>,
    /// The tenant's scripts, once it has run one.
    pub scripts: Option<Arc<scripts::store::Own>>,
    /// The tenant's functions, once it has called one.
    pub functions: OnceCell<Arc<scripts::functions::own::Own>>,
    /// The command at hand waits for a look at the functions there are.
    pub look: Option<scripts::functions::Look>,
    /// CLIENT REPLY.
    replies: Replies,
    /// The reply to the command at hand is not wanted.
    mute: bool,
    /// What has been done this turn; see [`TURN`].
    cost: u64,
    /// Some of it was over a rate of the tenant's.
    over_rate: bool,
    /// Told to the client before the connection closes.
    pub last_word: Option<Vec<u8>>,
    read: ReadHalf,
    spans: Vec<Span>,
    progress: Progress,
    /// Bytes read and not yet used, from `held_at`.
    held: Vec<u8>,
    held_at: usize,
    eof: bool,
    /// It has sent something.
    spoken: bool,
    /// How often it was read from since the process stops.
    last_reads: u32,
    /// The last read filled its share: there is more.
    more: bool,
    idle: Option<Pin<Box<Sleep>>>,
    look_again: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Debug)]
struct FactsOf(Arc<Site>);

impl std::ops::Deref for FactsOf {
    type Target = ArcSwap<Facts>;
    fn deref(&self) -> &Self::Target {
        &self.0.facts
    }
}

/// What the socket had.
enum Step {
    Flow(Flow),
    /// A request too large to be held begins at the start of what is held.
    Big,
    Broken(Broken),
    /// All that was read has been used.
    Input,
    /// The client has sent all it will.
    Eof,
    Closed,
}

impl Session {
    /// A session on a connection that was just accepted.
    pub fn new(worker: &Rc<Worker>, read: ReadHalf, down: Rc<Downstream>, client: Arc<Client>) -> Self {
        let tenant = Arc::clone(&worker.shared.directory.load().nobody);
        Self {
            prefix: Rc::from(&*tenant.prefix),
            cells: worker.meter.tenant(tenant.id, &tenant.name),
            counted: 0,
            at_hand: OTHER,
            run: (OTHER, 0),
            reach: worker.reach(&tenant.site),
            facts: RefCell::new(Cache::new(FactsOf(Arc::clone(&tenant.site)))),
            tenant,
            limits: **worker.shared.limits.load(),
            connected_at: {
                worker.clock.look();
                worker.clock.micros() / 1000
            },
            logged_in: false,
            nobody_since: Instant::now(),
            refused_logins: 0,
            listener: Rc::from(""),
            names: Names::default(),
            paid: false,
            shown: false,
            charged: 0,
            worker: Rc::clone(worker),
            down,
            client,
            proto: Proto::default(),
            db: 0,
            lane: None,
            own: None,
            sub: None,
            found: None,
            desk: Rc::clone(&worker.desk),
            near: true,
            wrote: false,
            joined: None,
            tracking: None,
            tx: None,
            watched: 0,
            watch_lost: false,
            select_on_commit: None,
            resend: None,
            scripts: None,
            functions: OnceCell::new(),
            look: None,
            replies: Replies::On,
            mute: false,
            cost: 0,
            over_rate: false,
            last_word: None,
            read,
            spans: Vec::new(),
            progress: Progress::default(),
            held: Vec::new(),
            held_at: 0,
            eof: false,
            spoken: false,
            last_reads: 0,
            more: false,
            idle: None,
            look_again: None,
        }
    }

    /// Serves the connection until it ends.
    pub async fn run(&mut self) {
        let mut fresh = false;
        loop {
            let step = if fresh { self.held_step() } else { self.next_input().await };
            fresh = true;
            let alive = match step {
                Step::Input => {
                    fresh = false;
                    if std::mem::take(&mut self.more) {
                        // A client that sends without end takes its turn with the others of this worker.
                        tokio::task::yield_now().await;
                    }
                    true
                }
                Step::Flow(Flow::Next) => true,
                Step::Flow(Flow::Again(Until::Turn)) => {
                    self.cost = 0;
                    if std::mem::take(&mut self.over_rate) {
                        self.wait(Until::Moment(Instant::now() + OVER_RATE.mul_f64(1.0 + fastrand::f64()))).await
                    } else {
                        tokio::task::yield_now().await;
                        true
                    }
                }
                Step::Flow(Flow::Again(until) | Flow::After(until)) => self.wait(until).await,
                // What is seldom is boxed: its state would make every idle connection larger.
                Step::Flow(Flow::Run(job)) => Box::pin(scoped::run(self, job)).await,
                Step::Flow(Flow::Login(attempt)) => Box::pin(login::run(self, attempt)).await,
                Step::Big => {
                    let alive = Box::pin(big::pass(self)).await;
                    self.count_run();
                    alive
                }
                Step::Eof => {
                    // What came before the end is answered, as far as the client still listens.
                    self.wait(Until::Drained).await;
                    Box::pin(self.finish(None)).await;
                    break;
                }
                Step::Flow(Flow::Quit) => {
                    Box::pin(self.finish(None)).await;
                    break;
                }
                Step::Broken(Broken::Protocol(text)) => {
                    self.wait(Until::Drained).await;
                    tracing::debug!(client = %self.client.addr, error = %text.escape_ascii(), "protocol error");
                    Box::pin(self.finish(Some(&[b"ERR Protocol error: ", &text[..]].concat()))).await;
                    break;
                }
                Step::Broken(Broken::Foreign) => {
                    tracing::debug!(client = %self.client.addr, "not Redis protocol: closed");
                    break;
                }
                Step::Closed => break,
            };
            if !alive {
                if let Some(text) = self.last_word.take() {
                    Box::pin(self.finish(Some(&text))).await;
                }
                break;
            }
        }
        self.end();
    }

    /// Gives back or closes what the session held.
    fn end(&mut self) {
        pubsub::leave(self);
        monitor::leave(self);
        tracking::end(self);
        self.charge_replies(Instant::now());
        self.count_run();
        self.count_written();
        if self.logged_in {
            self.tenant.leave();
        }
        self.down.close();
        if let Some(own) = self.own.take() {
            own.taint();
            self.reach.pool.release(own);
        }
    }

    /// Uses what is held.
    fn held_step(&mut self) -> Step {
        if self.held_at == self.held.len() {
            return self.after_use();
        }
        let held = std::mem::take(&mut self.held);
        let (used, step) = self.process(&held[self.held_at..]);
        self.held = held;
        self.held_at += used;
        self.down_flush();
        match step {
            Step::Input => self.after_use(),
            step => step,
        }
    }

    /// Nothing more can be done with what is held: keeps only the bytes that will be needed.
    fn after_use(&mut self) -> Step {
        if self.held_at == self.held.len() {
            self.held_at = 0;
            let empty = std::mem::take(&mut self.held);
            self.worker.spares.put(empty);
        } else if self.held_at > READ {
            self.held.drain(..self.held_at);
            self.held_at = 0;
        }
        if self.eof { Step::Eof } else { Step::Input }
    }

    fn down_flush(&self) {
        if self.down.unsent() > 0 {
            self.down.flush();
            self.watch_full();
        }
    }

    /// Writes what other workers have left for this client.
    fn take_posted(&self) {
        if let Some(messages) = self.client.inbox.take() {
            self.down.push(&messages);
            self.down.flush();
        }
    }

    fn watch_full(&self) {
        if self.down.watch() {
            self.worker.watch_full(&self.down);
        }
    }

    /// Waits for input, reads once, uses it.
    async fn next_input(&mut self) -> Step {
        let worker = Rc::clone(&self.worker);
        // Who came while the process stops is given a moment for what it came for.
        let awaited = !self.spoken && self.client.alarm.draining();
        let end = if awaited {
            Some(Instant::now() + FIRST_WORD)
        } else if self.logged_in {
            self.limits.idle.map(|after| Instant::now() + after)
        } else {
            Some(self.nobody_since + LOGIN_WITHIN)
        };
        if let Some(at) = end {
            match &mut self.idle {
                Some(idle) => idle.as_mut().reset(at),
                idle => *idle = Some(Box::pin(sleep_until(at))),
            }
        } else {
            self.idle = None;
        }
        poll_fn(|cx| {
            let alarm = Arc::clone(self.down.alarm());
            alarm.register(cx.waker());
            if alarm.killed() {
                return Poll::Ready(Step::Closed);
            }
            self.take_posted();
            if self.down.poll_flush(cx).is_pending() {
                self.watch_full();
            }
            self.unpin_when_done();
            if alarm.leaving() && (!alarm.draining() || self.last_reads >= LAST_READS) {
                return Poll::Ready(Step::Eof);
            }
            if let Some(idle) = &mut self.idle
                && idle.as_mut().poll(cx).is_ready()
            {
                if awaited {
                    return Poll::Ready(Step::Eof);
                }
                if self.logged_in && (self.down.in_flight() > 0 || self.down.unsent() > 0 || self.client.listens()) {
                    // Not idle: it waits for us or for messages, or reads.
                    idle.as_mut().reset(Instant::now() + self.limits.idle.unwrap_or(LINGER));
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                tracing::debug!(client = %self.client.addr, "idle client disconnected");
                return Poll::Ready(Step::Closed);
            }
            let mut scratch = worker.scratch.borrow_mut();
            let n = match self.read.poll_read(cx, &mut scratch[..READ]).map(unannounced_end) {
                // What it sent before it could know is answered; a request that nobody answers has not run.
                Poll::Pending if alarm.draining() && !awaited && !self.read.has_more() => {
                    return Poll::Ready(Step::Eof);
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => {
                    self.eof = true;
                    return Poll::Ready(Step::Eof);
                }
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(_)) => return Poll::Ready(Step::Closed),
            };
            self.more = n == READ;
            self.spoken = true;
            self.last_reads += u32::from(alarm.draining());
            self.cells.bytes_in.add(n as u64);
            self.count_written();
            if self.held.is_empty() {
                let (used, step) = self.process(&scratch[..n]);
                if used < n {
                    self.held = worker.spares.take();
                    self.held.extend_from_slice(&scratch[used..n]);
                }
                drop(scratch);
                self.down_flush();
                return Poll::Ready(step);
            }
            self.held.extend_from_slice(&scratch[..n]);
            drop(scratch);
            Poll::Ready(self.held_step())
        })
        .await
    }

    /// Uses whole requests from the start of `buf`: how many bytes, and why it stopped.
    fn process(&mut self, buf: &[u8]) -> (usize, Step) {
        let mut at = 0;
        self.worker.clock.look();
        let active = self.worker.clock.micros() / 1000;
        self.client.active.store(active.saturating_sub(self.connected_at), Ordering::Relaxed);
        let (used, step) = loop {
            // A MULTI … EXEC block goes out whole or not at all.
            if !self.tx.as_ref().is_some_and(|tx| tx.block)
                && let Some(until) = self.hold_back()
            {
                break (at, Step::Flow(Flow::Again(until)));
            }
            let rest = &buf[at..];
            let mut spans = std::mem::take(&mut self.spans);
            let mut progress = self.progress;
            let limits = if self.logged_in { Limits::FULL } else { Limits::BEFORE_LOGIN };
            let parsed = request::parse(rest, &mut spans, &mut progress, &limits);
            let (n, flow) = match parsed {
                Parsed::Incomplete => {
                    let large = rest.len() > HELD && progress.argc > 0;
                    self.spans = spans;
                    self.progress = progress;
                    break (at, if large { Step::Big } else { Step::Input });
                }
                Parsed::Command(n) => (n, proxy::dispatch(self, &rest[..n], &spans, &rest[n..])),
                Parsed::Nothing(n) => (n, Flow::Next),
                Parsed::Inline(n, frame) => {
                    spans.clear();
                    progress = Progress::default();
                    match request::parse(&frame, &mut spans, &mut progress, &Limits::FULL) {
                        Parsed::Command(_) => (n, proxy::dispatch(self, &frame, &spans, &rest[n..])),
                        _ => (n, Flow::Next),
                    }
                }
                Parsed::Broken(broken) => {
                    self.spans = Vec::new();
                    break (at, Step::Broken(broken));
                }
            };
            spans.clear();
            if spans.capacity() <= 1024 {
                self.spans = spans;
            }
            self.progress = Progress::default();
            self.cost += 1;
            match flow {
                Flow::Next => at += n,
                Flow::Again(until) => break (at, Step::Flow(Flow::Again(until))),
                flow => break (at + n, Step::Flow(flow)),
            }
        };
        self.count_run();
        if self.tx.as_ref().is_some_and(|tx| tx.block)
            && let Some(lane) = &self.lane
        {
            // A block that stops halfway would swallow the requests of others; it never does, and if it did, this is what is safe.
            tracing::error!("a transaction block was not whole: upstream connection closed");
            lane.fail(&UpstreamError::Lost);
        }
        (used, step)
    }
}
