//! One connection to an upstream: requests go out in the order they were appended, replies are paired with them by that order alone.
//!
//! ```text
//!   sessions ──send()──► out ──writer task──►  upstream
//!      │                                          │
//!      └──expect()──► waiters ◄──reader task──────┘ replies
//!                        │
//!                        └──► Downstream of each, written to at the end of the reader's turn
//! ```
//!
//! The writer is woken once per turn of the worker's run queue, so what many clients sent in one turn leaves in one write. A client that
//! left keeps its place in `waiters`: its replies are counted and dropped. A reply that nobody waits for, a timeout, anything malformed or
//! outside the prefix closes the connection, and everyone still waiting gets an error, in order: no reply can reach another client.
//! (A reply off by one is what showed one user's data to another in March 2023, redis-py issue 2624.)

mod read;
pub mod tracker;
mod window;
mod written;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    task::AbortHandle,
    time::{Instant, timeout},
};

use read::{PATIENCE, Reading};
use window::Window;
use written::Written;

use super::{Env, Key, ticks};
use crate::{
    downstream::Downstream,
    error::UpstreamError,
    metrics::{ErrorKind, TenantCells},
    net::WriteHalf,
    resp,
    rewrite::reply::{
        Unprefix,
        script::{Flight, Loaded},
    },
    tier::{Fetch, Guard},
};

/// Bytes waiting to be sent past which sessions stop adding to them.
const CONGESTED: usize = 1024 * 1024;
/// The same on a dedicated connection, of which there may be many and on which large requests pass.
const CONGESTED_DEDICATED: usize = 256 * 1024;
/// Sessions waiting for room from which on each is made sure to wait once.
const WAITING_TWICE: usize = 1024;
/// Most retired connections of a tenant, per worker.
const RETIRED: u32 = 16;
/// `since` of a request that may wait as long as it takes: a blocking command.
pub const NEVER: u32 = u32::MAX;
/// How much longer than any other request a script may run: by then somebody has killed it, or nobody will.
const SCRIPT: Duration = Duration::from_secs(60);

/// What becomes of a reply.
#[derive(Debug)]
pub enum Owed {
    /// It is passed as it comes.
    Raw,
    /// It is counted and dropped (CLIENT REPLY OFF, requests of keyfence's own).
    Dropped,
    /// It is that of a script, and dropped.
    Unheard(Flight),
    /// It is dropped and these bytes are passed.
    Instead(Bytes),
    /// There is none: these bytes wait here for the replies before them.
    Local(Bytes),
    /// It carries names.
    Rewritten(Box<Unprefix>),
    /// It is the number that the server has for this connection, and is kept ([`Conn::number`]).
    Number,
    /// It is a number, and left there; an error leaves what was there.
    Integer(Rc<Cell<i64>>),
    /// It is passed as it comes, and may be kept and shared.
    Fetch(Box<Fetch>),
}

#[derive(Debug)]
struct Waiter {
    /// `None`: keyfence's own request.
    client: Option<Rc<Downstream>>,
    owed: Owed,
    /// How many replies; above 1 only for `Raw` and `Dropped`.
    count: u32,
    /// Tick of the worker's clock at which it began to wait.
    since: u32,
    /// The same in microseconds.
    sent: u64,
    what: What,
    /// The command may write: over when this waiter is.
    guard: Option<Guard>,
}

impl Waiter {
    /// Whether nobody is there any more to get the reply.
    fn deserted(&self) -> bool {
        let shared = matches!(&self.owed, Owed::Fetch(fetch) if fetch.awaited());
        !shared && self.client.as_ref().is_some_and(|client| client.gone())
    }
}

/// Which command a reply answers, for the slow log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct What {
    /// Index of its row.
    pub row: u16,
    /// How many arguments it had.
    pub argc: u32,
}

impl What {
    /// Nothing that anybody wants to hear of.
    pub const NOTHING: Self = Self { row: u16::MAX, argc: 0 };
}

/// Whether more than `limit` ticks have passed since `since`, which may be to come.
fn past(now: u32, since: u32, limit: u32) -> bool {
    let waited = now.wrapping_sub(since);
    waited > limit && waited < u32::MAX / 2
}

/// See the module.
#[derive(Debug)]
pub struct Conn {
    /// Which pool it belongs to.
    pub key: Key,
    env: Rc<Env>,
    out: RefCell<Vec<u8>>,
    /// Bytes the writer has taken from `out` and not yet written.
    writing: Cell<usize>,
    waiters: RefCell<VecDeque<Waiter>>,
    /// Scripts that were sent on it and that the upstream had then.
    pub loaded: Loaded,
    reading: RefCell<Reading>,
    ready: Cell<bool>,
    dead: Cell<bool>,
    /// Must not go back to a pool: its state is not what a new user expects.
    tainted: Cell<bool>,
    /// The reader waits for a slow client: the reply at hand has no deadline.
    paused: Cell<bool>,
    /// It belongs to one session at a time.
    dedicated: bool,
    /// It counts among the open ones.
    place: Cell<bool>,
    /// It carries a reply that its client reads slowly: new requests go elsewhere, and it closes when nothing is owed any more. Never a
    /// dedicated one.
    retired: Cell<bool>,
    /// Replies due, and how large they have been.
    window: Window,
    /// How much longer those behind that reply may be kept waiting.
    patience: Cell<Duration>,
    /// Tick of the last byte read.
    progress: Cell<u32>,
    /// When it began to connect.
    opened: Instant,
    /// Tick at which a client last used it.
    used: Cell<u32>,
    kicked: Cell<bool>,
    writer: RefCell<Option<Waker>>,
    /// Sessions that wait for `out` to drain.
    room: RefCell<Vec<(Rc<Downstream>, Waker)>>,
    tasks: RefCell<Vec<AbortHandle>>,
    /// What is counted of its tenant.
    cells: Arc<TenantCells>,
    /// When its requests were written.
    written: Written,
    /// Who gets its pushes.
    tracker: RefCell<Option<tracker::Tracker>>,
    /// The server's number for it; 0: not known.
    number: Arc<AtomicU64>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        if self.give_place() {
            self.env.site.open.release(self.key.tenant);
        }
        if self.retired.get() {
            self.env.retired.borrow_mut().entry(self.key.tenant).and_modify(|n| *n = n.saturating_sub(1));
        }
    }
}

impl Conn {
    /// A connection that begins to connect; requests may be sent at once and leave when it is up. The caller holds a place in
    /// `env.site.open`, which the connection gives back when it is dropped.
    pub(super) fn open(env: &Rc<Env>, key: Key, dedicated: bool) -> Rc<Self> {
        let conn = Rc::new(Self {
            key,
            env: Rc::clone(env),
            out: RefCell::default(),
            writing: Cell::new(0),
            waiters: RefCell::default(),
            loaded: Loaded::default(),
            reading: RefCell::default(),
            ready: Cell::new(false),
            dead: Cell::new(false),
            tainted: Cell::new(false),
            paused: Cell::new(false),
            dedicated,
            place: Cell::new(true),
            retired: Cell::new(false),
            window: Window::default(),
            patience: Cell::new(PATIENCE),
            progress: Cell::new(env.clock.now()),
            opened: Instant::now(),
            used: Cell::new(env.clock.now()),
            kicked: Cell::new(false),
            writer: RefCell::default(),
            room: RefCell::default(),
            tasks: RefCell::default(),
            cells: env.meter.of(key.tenant),
            written: Written::default(),
            tracker: RefCell::default(),
            number: Arc::default(),
        });
        conn.spawn(Rc::clone(&conn).connect());
        conn
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.borrow_mut().push(tokio::task::spawn_local(task).abort_handle());
    }

    async fn connect(self: Rc<Self>) {
        let result = {
            let Ok(_permit) = self.env.connects.acquire().await else { return };
            timeout(self.env.site.target.connect_timeout, self.env.site.connect(&self.key)).await
        };
        let error = match result {
            Ok(Ok((read, write))) => {
                self.env.health.succeeded();
                self.env.cells.connected.add(1);
                self.ready.set(true);
                self.kick();
                self.spawn(Rc::clone(&self).write_on(write));
                self.spawn(Rc::clone(&self).read_on(read));
                return;
            }
            // What the server itself says of one pool (its user, its database, its protocol) is no reason to keep others waiting.
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::PermissionDenied) => {
                tracing::warn!(upstream = %self.env.site.target, %error, "the upstream refused a connection");
                self.env.cells.connect_failed.add(1);
                return self.fail(&UpstreamError::Unreachable(error.to_string()));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {:?}", self.env.site.target.connect_timeout),
        };
        self.env.health.failed(&error);
        self.env.cells.connect_failed.add(1);
        self.fail(&UpstreamError::Unreachable(error));
    }

    /// Whether it can no longer be used.
    pub fn dead(&self) -> bool {
        self.dead.get()
    }

    /// Its place among the open ones is another's from now on; `false` when it has been already.
    pub(super) fn give_place(&self) -> bool {
        self.place.replace(false)
    }

    /// It takes the place of `before`, whose clients are as likely to be its own.
    pub(super) fn succeed(&self, before: &Self) {
        self.window.learn_from(&before.window);
    }

    /// New requests should go elsewhere. A tenant whose clients are slow on many connections gets no further ones: then its other requests
    /// wait with them.
    fn retire(&self) {
        if self.dedicated || self.retired.get() {
            return;
        }
        let mut retired = self.env.retired.borrow_mut();
        let count = retired.entry(self.key.tenant).or_default();
        if *count < RETIRED {
            *count += 1;
            self.retired.set(true);
            self.room.borrow_mut().drain(..).for_each(|(_, waker)| waker.wake());
        }
    }

    /// Whether new requests should go elsewhere.
    pub fn retired(&self) -> bool {
        self.retired.get()
    }

    /// It must be closed, not pooled, when its user is done.
    pub fn taint(&self) {
        self.tainted.set(true);
    }

    /// Whether it may serve another session: alive, clean, and owing nothing.
    pub fn reusable(&self) -> bool {
        !self.dead.get() && !self.tainted.get() && !self.retired.get() && self.idle()
    }

    /// Whether nothing is owed.
    pub fn idle(&self) -> bool {
        self.waiters.borrow().is_empty()
    }

    /// What is counted of its tenant.
    pub fn cells(&self) -> &TenantCells {
        &self.cells
    }

    /// Whether it belongs to one session at a time.
    pub fn is_dedicated(&self) -> bool {
        self.dedicated
    }

    /// Replies due.
    pub fn due(&self) -> u32 {
        self.window.due()
    }

    /// Whether it is connected.
    pub fn ready(&self) -> bool {
        self.ready.get()
    }

    /// When it began to connect: what was known of the upstream before may be of another server, or of what was before its restart.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Ticks since a client last used it.
    pub fn unused_for(&self) -> u32 {
        self.env.clock.now().wrapping_sub(self.used.get())
    }

    /// Ticks since anything was last heard on it.
    pub fn silent_for(&self) -> u32 {
        self.env.clock.now().wrapping_sub(self.progress.get())
    }

    /// Appends to what will be sent; it leaves at the end of this turn.
    pub fn send<R>(&self, fill: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let result = fill(&mut self.out.borrow_mut());
        self.kick();
        result
    }

    /// The next reply not yet spoken for is `owed` to `client`. `patient`: no deadline.
    pub fn expect(&self, client: &Rc<Downstream>, owed: Owed, patient: bool, what: What) {
        client.expect(1);
        if !matches!(owed, Owed::Local(_)) {
            self.window.sent();
        }
        let now = self.env.clock.now();
        self.used.set(now);
        let since = if patient { NEVER } else { now };
        let sent = self.env.clock.micros();
        let mut waiters = self.waiters.borrow_mut();
        // Those of one read: they have one moment between them.
        if let (Owed::Raw, Some(last)) = (&owed, waiters.back_mut())
            && matches!(last.owed, Owed::Raw)
            && last.sent == sent
            && last.since == since
            && last.what.row == what.row
            && last.guard.is_none()
            && last.client.as_ref().is_some_and(|c| Rc::ptr_eq(c, client))
        {
            last.count += 1;
            return;
        }
        self.written.one_more();
        waiters.push_back(Waiter { client: Some(Rc::clone(client)), owed, count: 1, since, sent, what, guard: None });
    }

    /// What was last expected is a write's: `guard` lasts as long as its reply may come.
    pub fn guard(&self, guard: Guard) {
        if let Some(last) = self.waiters.borrow_mut().back_mut() {
            last.guard = Some(guard);
        }
    }

    /// A request of keyfence's own, appended already, whose reply is a number and left in `into`.
    pub fn expect_integer(&self, into: &Rc<Cell<i64>>) {
        self.expect_own(Owed::Integer(Rc::clone(into)));
    }

    /// The server's number for this connection, asked for the first time; 0 until it has answered, or if it does not say.
    pub fn number(&self) -> Arc<AtomicU64> {
        if self.number.load(Ordering::Relaxed) == 0 {
            self.send_for(b"*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n", Owed::Number);
        }
        Arc::clone(&self.number)
    }

    /// As [`Conn::expect`], for what may run scripts: it has [`SCRIPT`] more time, and those behind it do not wait for it that long.
    pub fn expect_script(&self, client: &Rc<Downstream>, owed: Owed, what: What) {
        client.expect(1);
        self.window.sent();
        let now = self.env.clock.now();
        self.used.set(now);
        let since = now.wrapping_add(ticks(SCRIPT));
        let since = if since == NEVER { 0 } else { since };
        let sent = self.env.clock.micros();
        self.written.one_more();
        let waiter = Waiter { client: Some(Rc::clone(client)), owed, count: 1, since, sent, what, guard: None };
        self.waiters.borrow_mut().push_back(waiter);
    }

    /// A request of keyfence's own whose reply is dropped.
    pub fn send_own(&self, frame: &[u8]) {
        self.send_for(frame, Owed::Dropped);
    }

    fn send_for(&self, frame: &[u8], owed: Owed) {
        self.send(|out| out.extend_from_slice(frame));
        self.expect_own(owed);
    }

    fn expect_own(&self, owed: Owed) {
        self.window.sent();
        self.written.one_more();
        self.waiters.borrow_mut().push_back(Waiter {
            client: None,
            owed,
            count: 1,
            since: self.env.clock.now(),
            sent: self.env.clock.micros(),
            what: What::NOTHING,
            guard: None,
        });
    }

    /// Whether enough waits to be sent.
    fn clogged(&self) -> bool {
        let most = if self.dedicated { CONGESTED_DEDICATED } else { CONGESTED };
        self.out.borrow().len() + self.writing.get() > most
    }

    /// Whether sessions should wait before they send more.
    pub fn congested(&self) -> bool {
        self.window.full() || self.clogged()
    }

    /// Wakes the sessions that wait for room, when there is some.
    fn wake_waiting_for_room(&self) {
        let mut room = self.room.borrow_mut();
        if !room.is_empty() && self.window.has_room() && !self.clogged() {
            room.drain(..).for_each(|(_, waker)| waker.wake());
        }
    }

    /// For the session of `client`: ready once it is no longer congested, or no longer the one to send on.
    pub fn poll_room(&self, client: &Rc<Downstream>, cx: &mut Context<'_>) -> Poll<()> {
        if self.dead.get() || self.retired.get() || !self.congested() {
            return Poll::Ready(());
        }
        let mut room = self.room.borrow_mut();
        // Who looks again without having been woken from here stands in it twice, which matters only when many do.
        if room.len() >= WAITING_TWICE {
            room.retain(|(other, _)| !Rc::ptr_eq(other, client));
        }
        room.push((Rc::clone(client), cx.waker().clone()));
        Poll::Pending
    }

    fn kick(&self) {
        if !self.kicked.replace(true)
            && let Some(writer) = &*self.writer.borrow()
        {
            writer.wake_by_ref();
        }
    }

    /// Fails the connection when the request that has waited longest is past `limit` ticks.
    pub fn check_deadline(&self, limit: u32) {
        if self.dead.get() {
            return;
        }
        if self.paused.get() {
            return self.time_out_behind(limit);
        }
        let now = self.env.clock.now();
        let late = self.waiters.borrow().front().is_some_and(|w| {
            let begun = self.reading.borrow().begun.is_some();
            let since = if begun { self.progress.get() } else { w.since };
            w.since != NEVER && past(now, since, limit)
        });
        if !late
            && self.waiters.borrow().front().is_some_and(|w| (1..=ticks(SCRIPT)).contains(&w.since.wrapping_sub(now)))
        {
            return self.time_out_behind(limit);
        }
        if late {
            tracing::warn!(upstream = %self.env.site.target, "upstream did not answer in time: connection closed");
            self.fail(&UpstreamError::TimedOut(self.env.site.target.socket_timeout));
        }
    }

    /// Answers those whose requests have waited past `limit` ticks behind the reply at hand; their own replies are dropped when they come.
    fn time_out_behind(&self, limit: u32) {
        let now = self.env.clock.now();
        let line = UpstreamError::TimedOut(self.env.site.target.socket_timeout).to_line();
        let mut touched = Vec::new();
        {
            let mut waiters = self.waiters.borrow_mut();
            let reader = waiters.front().and_then(|w| w.client.clone());
            for waiter in waiters.iter_mut().skip(1) {
                if waiter.since == NEVER || !past(now, waiter.since, limit) {
                    continue;
                }
                // The client of the reply at hand gets its replies in order, and is the one who is slow.
                let other = |c: &Rc<Downstream>| !reader.as_ref().is_some_and(|r| Rc::ptr_eq(r, c));
                let Some(client) = waiter.client.take_if(|c| other(c)) else { continue };
                match std::mem::replace(&mut waiter.owed, Owed::Dropped) {
                    Owed::Local(bytes) => {
                        client.waited(bytes.len());
                        client.append(|out| out.extend_from_slice(&bytes));
                        waiter.owed = Owed::Local(Bytes::new());
                    }
                    Owed::Dropped => {}
                    Owed::Unheard(flight) => waiter.owed = Owed::Unheard(flight),
                    owed => {
                        // A script may run all the same.
                        if let Owed::Rewritten(mut machine) = owed
                            && let Some(flight) = machine.take_flight()
                        {
                            waiter.owed = Owed::Unheard(flight);
                        }
                        self.cells.error(ErrorKind::of(line.as_bytes()), u64::from(waiter.count));
                        client.append(|out| (0..waiter.count).for_each(|_| resp::put_error(out, line.as_bytes())));
                    }
                }
                client.settle(waiter.count);
                client.queue(&mut touched);
            }
        }
        touched.iter().for_each(|client| client.flush());
    }

    async fn write_on(self: Rc<Self>, write: WriteHalf) {
        loop {
            poll_fn(|cx| {
                if self.kicked.replace(false) {
                    return Poll::Ready(());
                }
                *self.writer.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            let buf = std::mem::replace(&mut *self.out.borrow_mut(), self.env.spares.take());
            let upto = self.written.so_far();
            if let Err(error) = write.write_all(&buf, |left| self.writing.set(left)).await {
                tracing::warn!(upstream = %self.env.site.target, %error, "upstream connection broke");
                return self.fail(&UpstreamError::Lost);
            }
            self.writing.set(0);
            self.env.clock.look();
            self.written.at(upto, self.env.clock.micros());
            self.env.cells.bytes_out.add(buf.len() as u64);
            self.env.spares.put(buf);
            self.wake_waiting_for_room();
        }
    }

    /// Ends the connection: everyone who waits gets `error` in order, and the sockets close.
    pub fn fail(&self, error: &UpstreamError) {
        if self.dead.replace(true) {
            return;
        }
        if let Some(tracker) = self.tracker.borrow_mut().take() {
            tracker.lost();
        }
        let line = error.to_line();
        let lost = UpstreamError::Lost.to_line();
        let mut begun = self.reading.borrow().begun;
        let mut touched = Vec::new();
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        if self.ready.get() && waiters.iter().any(|w| w.client.is_some()) {
            self.env.cells.broken.add(1);
        }
        // What keyfence itself asked for in front of a client's request is not what that client has waited for.
        let mut first = true;
        for (i, waiter) in waiters.into_iter().enumerate() {
            let Some(client) = waiter.client else { continue };
            // Half of the first reply may have gone out; a client that has it cannot be told anything any more.
            if let Some(mark) = begun.take()
                && i == 0
                && !matches!(waiter.owed, Owed::Dropped | Owed::Unheard(_) | Owed::Instead(_))
                && !client.retract(mark)
            {
                client.abandon();
            }
            let first = std::mem::replace(&mut first, false);
            let text = if first || matches!(error, UpstreamError::Unreachable(_)) { &line } else { &lost };
            client.append(|out| match &waiter.owed {
                Owed::Dropped | Owed::Unheard(_) | Owed::Number | Owed::Integer(_) => {}
                Owed::Local(bytes) => {
                    out.extend_from_slice(bytes);
                }
                Owed::Raw | Owed::Instead(_) | Owed::Rewritten(_) | Owed::Fetch(_) => {
                    self.cells.error(ErrorKind::of(text.as_bytes()), u64::from(waiter.count));
                    (0..waiter.count).for_each(|_| resp::put_error(out, text.as_bytes()));
                }
            });
            if let Owed::Local(bytes) = &waiter.owed {
                client.waited(bytes.len());
            }
            client.settle(waiter.count);
            client.queue(&mut touched);
        }
        if let Some(client) = self.reading.borrow_mut().midway.take() {
            client.set_midway(false);
            client.queue(&mut touched);
        }
        touched.iter().for_each(|client| client.flush());
        self.room.borrow_mut().drain(..).for_each(|(_, waker)| waker.wake());
        self.out.borrow_mut().clear();
        for task in self.tasks.borrow_mut().drain(..) {
            task.abort();
        }
    }

    /// Closes the connection without telling anybody: its one user has gone.
    pub fn close(&self) {
        self.fail(&UpstreamError::Lost);
    }
}
