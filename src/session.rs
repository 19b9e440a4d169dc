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

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::{Arc, PoisonError, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use arc_swap::{ArcSwap, Cache};
use bytes::Bytes;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    big,
    clients::Client,
    command::{Row, Span},
    downstream::Downstream,
    error::UpstreamError,
    login::{self, Login},
    net::ReadHalf,
    proxy,
    resp::{
        self, Proto, Value,
        request::{self, Broken, Limits, Parsed, Progress},
    },
    rewrite::Namespace,
    scoped,
    tenant::Tenant,
    transaction::Tx,
    upstream::{Conn, Key, Kind, Owed, Site, What, control::Facts},
    worker::{ClientLimits, Reach, Worker},
};

/// Bytes read from a client in one turn: its share of the worker's time before others have theirs.
pub const READ: usize = 64 * 1024;
/// A request of which more than this is still incomplete is streamed, not held, in bytes.
pub const HELD: usize = 64 * 1024;
/// Bytes read ahead from a client that waits in a blocking command, to see whether it has left.
const READ_AHEAD: usize = 1024 * 1024;
/// How often a client with that much read ahead is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Bytes of answers made here that may wait behind a client's requests to the upstream.
const WAITING: usize = 256 * 1024;
/// What a client may have done in one turn: a command costs 1, an answer made here 1 more per 64 bytes.
const TURN: u64 = 16 * 1024;
/// How long a client that takes nothing has to take its last replies, or to see an error before the close.
const LINGER: Duration = Duration::from_secs(2);

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

/// What a session waits for.
#[derive(Debug)]
pub enum Until {
    /// No reply is owed.
    Drained,
    /// At most this many replies are owed.
    InFlight(u32),
    /// The upstream takes more.
    Room(Rc<Conn>),
    /// The client has read most of its replies.
    Unsent(usize),
    /// Others have had their turn.
    Turn,
    /// The end of a CLIENT PAUSE, at this moment or when somebody ends it, for a command that writes or not.
    Unpaused(Instant, bool),
    /// A moment.
    Moment(Instant),
    /// The reply of a blocking command, at most until this moment; ends early when the client leaves.
    Reply(Option<Instant>),
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
    /// The tenant of the address it came in on.
    pub listener_tenant: Option<Arc<Tenant>>,
    /// The command at hand has been charged to the tenant's rate, and waits.
    pub paid: bool,
    /// Bytes of replies that the tenant's rate has been charged with.
    charged: u64,
    /// HELLO.
    pub proto: Proto,
    /// SELECT, as the tenant counts.
    pub db: u32,
    /// The shared upstream connection it uses.
    pub lane: Option<Rc<Conn>>,
    /// The dedicated one it uses instead while it has one.
    pub own: Option<Pinned>,
    /// Between MULTI and EXEC.
    pub tx: Option<Tx>,
    /// Keys are watched on `own`.
    pub watching: bool,
    /// Keys were watched on a connection that broke: the next EXEC must fail.
    pub watch_lost: bool,
    /// SELECT inside an EXEC on its way: takes effect if that says so.
    pub select_on_commit: Option<(Rc<Cell<bool>>, u32)>,
    /// CLIENT REPLY.
    replies: Replies,
    /// The reply to the command at hand is not wanted.
    mute: bool,
    /// What has been done this turn; see [`TURN`].
    cost: u64,
    /// Told to the client before the connection closes.
    pub last_word: Option<Vec<u8>>,
    read: ReadHalf,
    spans: Vec<Span>,
    progress: Progress,
    /// Bytes read and not yet used, from `held_at`.
    held: Vec<u8>,
    held_at: usize,
    eof: bool,
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

/// A dedicated connection in the hands of a session.
#[derive(Debug)]
pub struct Pinned {
    conn: Rc<Conn>,
    tenant: Arc<Tenant>,
}

impl Pinned {
    /// The connection.
    pub fn conn(&self) -> &Rc<Conn> {
        &self.conn
    }
}

impl std::ops::Deref for Pinned {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.tenant.pins.fetch_sub(1, Ordering::Relaxed);
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
            reach: worker.reach(&tenant.site),
            facts: RefCell::new(Cache::new(FactsOf(Arc::clone(&tenant.site)))),
            tenant,
            limits: **worker.shared.limits.load(),
            connected_at: {
                worker.clock.look();
                worker.clock.micros() / 1000
            },
            logged_in: false,
            listener_tenant: None,
            paid: false,
            charged: 0,
            worker: Rc::clone(worker),
            down,
            client,
            proto: Proto::default(),
            db: 0,
            lane: None,
            own: None,
            tx: None,
            watching: false,
            watch_lost: false,
            select_on_commit: None,
            replies: Replies::On,
            mute: false,
            cost: 0,
            last_word: None,
            read,
            spans: Vec::new(),
            progress: Progress::default(),
            held: Vec::new(),
            held_at: 0,
            eof: false,
            more: false,
            idle: None,
            look_again: None,
        }
    }

    /// Serves the connection until it ends.
    pub async fn run(mut self) {
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
                    tokio::task::yield_now().await;
                    true
                }
                Step::Flow(Flow::Again(until) | Flow::After(until)) => self.wait(until).await,
                Step::Flow(Flow::Run(job)) => scoped::run(&mut self, job).await,
                Step::Flow(Flow::Login(attempt)) => login::run(&mut self, attempt).await,
                Step::Big => big::pass(&mut self).await,
                Step::Eof => {
                    // What came before the end is answered, as far as the client still listens.
                    self.wait(Until::Drained).await;
                    self.finish(None).await;
                    break;
                }
                Step::Flow(Flow::Quit) => {
                    self.finish(None).await;
                    break;
                }
                Step::Broken(Broken::Protocol(text)) => {
                    self.wait(Until::Drained).await;
                    tracing::debug!(client = %self.client.addr, error = %text.escape_ascii(), "protocol error");
                    self.finish(Some(&[b"ERR Protocol error: ", &text[..]].concat())).await;
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
                    self.finish(Some(&text)).await;
                }
                break;
            }
        }
        self.end();
    }

    /// Gives back or closes what the session held.
    fn end(self) {
        if self.logged_in {
            self.tenant.leave();
        }
        self.down.close();
        if let Some(own) = self.own {
            own.taint();
            self.reach.pool.release(Rc::clone(own.conn()));
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

    fn watch_full(&self) {
        if self.down.watch() {
            self.worker.watch_full(&self.down);
        }
    }

    /// Waits for input, reads once, uses it.
    async fn next_input(&mut self) -> Step {
        let worker = Rc::clone(&self.worker);
        if let Some(after) = self.limits.idle {
            let at = Instant::now() + after;
            match &mut self.idle {
                Some(idle) => idle.as_mut().reset(at),
                idle => *idle = Some(Box::pin(sleep_until(at))),
            }
        }
        poll_fn(|cx| {
            let alarm = Arc::clone(self.down.alarm());
            alarm.register(cx.waker());
            if alarm.killed() {
                return Poll::Ready(Step::Closed);
            }
            if self.down.poll_flush(cx).is_pending() {
                self.watch_full();
            }
            self.unpin_when_done();
            if alarm.leaving() {
                return Poll::Ready(Step::Eof);
            }
            if let Some(idle) = &mut self.idle
                && idle.as_mut().poll(cx).is_ready()
            {
                if self.down.in_flight() > 0 || self.down.unsent() > 0 {
                    // Not idle: it waits for us, or reads.
                    idle.as_mut().reset(Instant::now() + self.limits.idle.unwrap_or(LINGER));
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                tracing::debug!(client = %self.client.addr, "idle client disconnected");
                return Poll::Ready(Step::Closed);
            }
            let mut scratch = worker.scratch.borrow_mut();
            let n = match self.read.poll_read(cx, &mut scratch[..READ]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => {
                    self.eof = true;
                    return Poll::Ready(Step::Eof);
                }
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(_)) => return Poll::Ready(Step::Closed),
            };
            self.more = n == READ;
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
        if self.tx.as_ref().is_some_and(|tx| tx.block)
            && let Some(lane) = &self.lane
        {
            // A block that stops halfway would swallow the requests of others; it never does, and if it did, this is what is safe.
            tracing::error!("a transaction block was not whole: upstream connection closed");
            lane.fail(&UpstreamError::Lost);
        }
        (used, step)
    }

    /// Whether no more may be sent for this client just now.
    fn hold_back(&self) -> Option<Until> {
        let most = self.tenant.limits.in_flight.load(Ordering::Relaxed);
        if self.down.in_flight() >= most {
            return Some(Until::InFlight(most / 2));
        }
        if let Some(conn) = self.own.as_ref().map(Pinned::conn).or(self.lane.as_ref())
            && !conn.dead()
        {
            if conn.congested() {
                return Some(Until::Room(Rc::clone(conn)));
            }
            if conn.retired() && self.own.is_none() && self.down.in_flight() > 0 {
                return Some(Until::Drained);
            }
        }
        if self.down.waiting() > WAITING {
            return Some(Until::Drained);
        }
        if self.cost > TURN {
            return Some(Until::Turn);
        }
        let output = self.limits.output;
        (self.down.unsent() > output / 2).then_some(Until::Unsent(output / 4))
    }

    /// Waits; `false` when the connection ended meanwhile.
    pub async fn wait(&mut self, until: Until) -> bool {
        let mut timer = match &until {
            Until::Unpaused(at, _) | Until::Moment(at) | Until::Reply(Some(at)) => Some(Box::pin(sleep_until(*at))),
            _ => None,
        };
        let blocking = matches!(until, Until::Reply(_));
        let may_leave = blocking || matches!(until, Until::Unpaused(..));
        self.client.blocked.store(blocking, Ordering::Relaxed);
        let alive = poll_fn(|cx| {
            let alarm = Arc::clone(self.down.alarm());
            alarm.register(cx.waker());
            if alarm.killed() {
                return Poll::Ready(false);
            }
            if self.down.poll_flush(cx).is_pending() {
                self.watch_full();
            }
            let done = match &until {
                Until::Drained => self.few_in_flight(0),
                Until::InFlight(n) => self.few_in_flight(*n),
                Until::Room(conn) => conn.poll_room(cx).is_ready(),
                Until::Unsent(n) => self.down.unsent() <= *n,
                Until::Turn => true,
                Until::Moment(_) => timer.as_mut().is_none_or(|t| t.as_mut().poll(cx).is_ready()),
                Until::Unpaused(_, write) => {
                    timer.as_mut().is_none_or(|t| t.as_mut().poll(cx).is_ready())
                        || self.tenant.pause.holds(*write).is_none()
                }
                Until::Reply(_) => {
                    let late = timer.as_mut().is_some_and(|t| t.as_mut().poll(cx).is_ready());
                    if late && let Some(own) = &self.own {
                        own.fail(&UpstreamError::TimedOut(self.reach.site.target.socket_timeout));
                    }
                    self.few_in_flight(0)
                }
            };
            if done {
                return Poll::Ready(true);
            }
            if may_leave && self.poll_left(cx) {
                return Poll::Ready(false);
            }
            Poll::Pending
        })
        .await;
        self.client.blocked.store(false, Ordering::Relaxed);
        if !alive && let Some(own) = &self.own {
            // A client that left must not pop what nobody receives.
            self.down.close();
            own.close();
        }
        alive
    }

    fn few_in_flight(&self, n: u32) -> bool {
        if self.down.in_flight() <= n {
            return true;
        }
        self.down.wake_at(n);
        false
    }

    /// Whether a client that waits in a blocking command has left; what it sends meanwhile is held.
    fn poll_left(&mut self, cx: &mut std::task::Context<'_>) -> bool {
        if self.held.len() - self.held_at >= READ_AHEAD {
            // What is read no more still tells when the client hangs up, if it is asked now and then.
            let again = self.look_again.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LOOK_AGAIN)));
            if again.as_mut().poll(cx).is_ready() {
                again.as_mut().reset(Instant::now() + LOOK_AGAIN);
                cx.waker().wake_by_ref();
            }
            return self.read.peer_closed();
        }
        while self.held.len() - self.held_at < READ_AHEAD {
            let mut scratch = self.worker.scratch.borrow_mut();
            match self.read.poll_read(cx, &mut scratch[..READ]) {
                Poll::Pending => return false,
                Poll::Ready(Ok(n)) if n > 0 => self.held.extend_from_slice(&scratch[..n]),
                Poll::Ready(_) => return true,
            }
        }
        false
    }

    /// Writes a last word, lets the client take what it is owed, and waits for it to close, so that no reset overtakes the last bytes.
    async fn finish(&mut self, last: Option<&[u8]>) {
        if let Some(text) = last {
            self.down.append(|out| resp::put_error(out, text));
        }
        self.down.flush();
        let down = Rc::clone(&self.down);
        loop {
            // As long as it takes something, it has time.
            let before = down.written();
            let flushed = tokio::time::timeout(LINGER, poll_fn(|cx| down.poll_flush(cx))).await.is_ok();
            if flushed || down.written() == before {
                break;
            }
        }
        let deadline = Instant::now() + LINGER;
        self.down.close();
        if self.eof {
            return;
        }
        let worker = Rc::clone(&self.worker);
        let _ = tokio::time::timeout_at(
            deadline,
            poll_fn(|cx| {
                loop {
                    let mut scratch = worker.scratch.borrow_mut();
                    match self.read.poll_read(cx, &mut scratch[..READ]) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(n)) if n > 0 => {}
                        Poll::Ready(_) => return Poll::Ready(()),
                    }
                }
            }),
        )
        .await;
    }

    // What proxy, transaction, local and big build on.

    /// The namespace requests are rewritten into.
    pub fn namespace(&self) -> Namespace<'_> {
        Namespace { prefix: &self.prefix, db_base: self.tenant.db_base, databases: self.tenant.databases }
    }

    /// The pool its connections come from.
    pub fn key(&self) -> Key {
        Key { kind: Kind::Data, tenant: self.tenant.id, db: self.tenant.db_base + self.db, proto: self.proto }
    }

    /// Whether the reply to the command at hand is not wanted, however late it comes.
    pub fn muted(&self) -> bool {
        self.mute
    }

    /// The next command is at hand, maybe once more.
    pub fn begin_command(&mut self) {
        self.mute = !matches!(self.replies, Replies::On);
    }

    /// The command at hand is done with, but for its reply.
    pub fn end_command(&mut self) {
        self.paid = false;
        self.replies = match self.replies {
            Replies::Skip => Replies::SkipOne,
            Replies::SkipOne => Replies::On,
            other => other,
        };
    }

    /// CLIENT REPLY as it is.
    pub fn replies(&self) -> Replies {
        self.replies
    }

    /// CLIENT REPLY, from the command at hand on.
    pub fn set_replies(&mut self, mode: Replies) {
        self.replies = mode;
        self.begin_command();
    }

    /// The connection requests go to now.
    ///
    /// # Errors
    /// [`UpstreamError`] when there is none to be had.
    pub fn conn(&mut self) -> Result<Rc<Conn>, UpstreamError> {
        if let Some(own) = &self.own {
            return Ok(Rc::clone(own.conn()));
        }
        let key = self.key();
        if let Some(lane) = &self.lane
            && lane.key == key
            && !lane.dead()
            && (!lane.retired() || self.down.in_flight() > 0)
        {
            return Ok(Rc::clone(lane));
        }
        let turn = usize::try_from(self.client.id).unwrap_or_default();
        let lane = self.reach.pool.shared(key, turn)?;
        self.lane = Some(Rc::clone(&lane));
        Ok(lane)
    }

    /// Takes a dedicated connection; nothing may be in flight.
    ///
    /// # Errors
    /// [`UpstreamError`] when there is none to be had.
    pub fn pin(&mut self) -> Result<(), UpstreamError> {
        debug_assert_eq!(self.down.in_flight(), 0);
        if self.own.is_none() {
            // The other user may do all that the first may, and what a transaction may need besides.
            let kind = if self.reach.site.holes.load().is_some() { Kind::Sort } else { Kind::Data };
            self.own = Some(self.dedicated(kind)?);
        }
        Ok(())
    }

    /// A dedicated connection of the tenant's, which may have a share of them all and no more (isolation.md L6).
    ///
    /// # Errors
    /// [`UpstreamError`] when there is none to be had.
    fn dedicated(&self, kind: Kind) -> Result<Pinned, UpstreamError> {
        let share = self.reach.site.dedicated_share();
        if self.tenant.pins.fetch_add(1, Ordering::Relaxed) >= share {
            self.tenant.pins.fetch_sub(1, Ordering::Relaxed);
            return Err(UpstreamError::Busy(format!(
                "{share} connections of this tenant's own are in use; see max_connections"
            )));
        }
        let conn = self.reach.pool.dedicated(Key { kind, ..self.key() });
        match conn {
            Ok(conn) => Ok(Pinned { conn, tenant: Arc::clone(&self.tenant) }),
            Err(error) => {
                self.tenant.pins.fetch_sub(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Gives the dedicated connection back once no state and no reply needs it.
    pub fn unpin_when_done(&mut self) {
        if self.own.is_none() || self.tx.is_some() || self.watching {
            return;
        }
        if self.few_in_flight(0)
            && let Some(own) = self.own.take()
        {
            self.reach.pool.release(Rc::clone(own.conn()));
        }
    }

    /// What is known of the tenant's upstream.
    pub fn facts<R>(&self, read: impl FnOnce(&Facts) -> R) -> R {
        read(self.facts.borrow_mut().load())
    }

    /// Takes note of what it logged in with, where a reload finds it.
    pub fn set_login(&self, login: Option<Login>) {
        *self.client.login.lock().unwrap_or_else(PoisonError::into_inner) = login;
    }

    /// Has no tenant any more, as before login; nothing is in flight and no state is left.
    pub fn become_nobody(&mut self) {
        let nobody = Arc::clone(&self.worker.shared.directory.load().nobody);
        self.become_tenant(nobody, None);
        self.logged_in = false;
    }

    /// Speaks for `tenant`, which has admitted it, from now on; nothing is in flight and no state of another tenant is left.
    pub fn become_tenant(&mut self, tenant: Arc<Tenant>, login: Option<Login>) {
        debug_assert!(self.own.is_none() && self.tx.is_none() && self.down.in_flight() == 0);
        if self.logged_in {
            self.tenant.leave();
        }
        self.client.tenant.store(tenant.id, Ordering::Relaxed);
        self.prefix = Rc::from(&*tenant.prefix);
        if !Arc::ptr_eq(&self.tenant.site, &tenant.site) {
            self.reach = self.worker.reach(&tenant.site);
            self.facts = RefCell::new(Cache::new(FactsOf(Arc::clone(&tenant.site))));
        }
        self.tenant = tenant;
        self.logged_in = true;
        self.set_login(login);
        self.lane = None;
        self.db = 0;
        self.client.db.store(0, Ordering::Relaxed);
    }

    /// Answers from here, in order.
    pub fn answer(&mut self, value: &Value) {
        if !self.muted() {
            self.answer_bytes(&value.to_bytes(self.proto));
        }
    }

    /// Answers from here, in order, whatever CLIENT REPLY says.
    pub fn answer_bytes(&mut self, bytes: &[u8]) {
        self.cost += bytes.len() as u64 / 64;
        if self.down.in_flight() == 0 {
            self.down.append(|out| out.extend_from_slice(bytes));
        } else if let Some(conn) = self.own.as_ref().map(Pinned::conn).or(self.lane.as_ref()) {
            self.down.wait_with(bytes.len());
            conn.expect(&self.down, Owed::Local(Bytes::copy_from_slice(bytes)), false, What::NOTHING);
        }
    }

    /// Bytes written to the client since this was last asked.
    pub fn uncharged(&mut self) -> u64 {
        let written = self.down.written();
        written - std::mem::replace(&mut self.charged, written)
    }

    /// Refuses the command at hand: an open transaction cannot be carried out any more.
    pub fn refuse(&mut self, text: impl Into<Vec<u8>>) -> Flow {
        if let Some(tx) = &mut self.tx {
            tx.dirty = true;
        }
        self.answer(&Value::error(text));
        Flow::Next
    }

    /// The error of a tenant that may not do this, in Redis's words.
    pub fn no_permission(&mut self, row: &Row) -> Flow {
        let text =
            format!("NOPERM User {} has no permissions to run the '{}' command", self.tenant.name, row.lower_name());
        self.refuse(text)
    }

    /// What is held, from the request at hand on, with what has been parsed of it; for [`big`].
    pub(crate) fn take_partial(&mut self) -> (Vec<u8>, Vec<Span>, Progress) {
        let mut held = std::mem::take(&mut self.held);
        held.drain(..std::mem::take(&mut self.held_at));
        (held, std::mem::take(&mut self.spans), std::mem::take(&mut self.progress))
    }

    /// Gives back what [`Session::take_partial`] took and was not used.
    pub(crate) fn give_back(&mut self, mut rest: Vec<u8>) {
        // What was read ahead meanwhile came later.
        rest.extend_from_slice(&self.held[self.held_at..]);
        self.held = rest;
        self.held_at = 0;
    }

    /// Reads once more into `into`; `false` when the connection ended.
    pub(crate) async fn read_more(&mut self, into: &mut Vec<u8>, deadline: Instant) -> bool {
        let worker = Rc::clone(&self.worker);
        let reading = poll_fn(|cx| {
            let alarm = Arc::clone(self.down.alarm());
            alarm.register(cx.waker());
            if alarm.killed() {
                return Poll::Ready(false);
            }
            if self.down.poll_flush(cx).is_pending() {
                self.watch_full();
            }
            let mut scratch = worker.scratch.borrow_mut();
            match self.read.poll_read(cx, &mut scratch[..]) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => {
                    into.extend_from_slice(&scratch[..n]);
                    Poll::Ready(true)
                }
                Poll::Ready(_) => Poll::Ready(false),
            }
        });
        tokio::time::timeout_at(deadline, reading).await.unwrap_or(false)
    }
}
