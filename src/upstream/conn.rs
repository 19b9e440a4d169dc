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

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    task::AbortHandle,
    time::{Instant, timeout},
};

use super::{Env, Key};
use crate::{
    downstream::{Downstream, HIGH_WATER},
    error::UpstreamError,
    net::{ReadHalf, WriteHalf},
    resp::{self, Proto, reply::Scanner},
    rewrite::reply::{Failure, Unprefix, own_error},
};

/// Bytes waiting to be sent past which sessions stop adding to them.
const CONGESTED: usize = 1024 * 1024;
/// An error line longer than this is passed as it comes.
const ERROR_LINE: usize = 8 * 1024;
/// A client that catches up within this is not slow.
const CATCH_UP: Duration = Duration::from_millis(5);
/// How long slow clients may keep those waiting whose requests are behind theirs, all together, beyond [`PACE`].
const PATIENCE: Duration = Duration::from_millis(100);
/// A client that reads at least this many bytes per millisecond is not slow.
const PACE: u64 = 64 * 1024;
/// How often it is looked whether others wait.
const SLICE: Duration = Duration::from_millis(50);
/// `since` of a request that may wait as long as it takes: a blocking command.
pub const NEVER: u32 = u32::MAX;

/// What becomes of a reply.
#[derive(Debug)]
pub enum Owed {
    /// It is passed as it comes.
    Raw,
    /// It is counted and dropped (CLIENT REPLY OFF, requests of keyfence's own).
    Dropped,
    /// It is dropped and these bytes are passed.
    Instead(Bytes),
    /// There is none: these bytes wait here for the replies before them.
    Local(Bytes),
    /// It carries names.
    Rewritten(Box<Unprefix>),
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

/// Where the reader stands in the reply at hand.
#[derive(Debug, Default)]
struct Reading {
    scanner: Scanner,
    /// The scanner is in a push frame, which answers nobody.
    push: bool,
    /// Commands that the upstream's ACL refused.
    refusals: u64,
    /// The reply at hand has begun; where its first byte stands in its client's output.
    begun: Option<u64>,
}

impl Reading {
    /// An ACL that refuses what keyfence let pass means that one of the two is wrong. Said the first time, and ever more seldom: a client
    /// may be able to bring it about.
    fn note_refusal(&mut self, line: &[u8]) {
        if line.starts_with(b"-NOPERM") {
            self.refusals += 1;
            if self.refusals.is_power_of_two() {
                tracing::warn!(times = self.refusals, "the upstream's ACL refused a command that keyfence let pass");
            }
        }
    }
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
    reading: RefCell<Reading>,
    ready: Cell<bool>,
    dead: Cell<bool>,
    /// Must not go back to a pool: its state is not what a new user expects.
    tainted: Cell<bool>,
    /// The reader waits for a slow client: the reply at hand has no deadline.
    paused: Cell<bool>,
    /// It carries a reply that its client reads slowly: new requests go elsewhere, and it closes when nothing is owed any more.
    retired: Cell<bool>,
    /// How much longer those behind that reply may be kept waiting.
    patience: Cell<Duration>,
    /// Tick of the last byte read.
    progress: Cell<u32>,
    /// Tick at which a client last used it.
    used: Cell<u32>,
    kicked: Cell<bool>,
    writer: RefCell<Option<Waker>>,
    /// Sessions that wait for `out` to drain.
    room: RefCell<Vec<Waker>>,
    tasks: RefCell<Vec<AbortHandle>>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.env.site.open.release();
    }
}

impl Conn {
    /// A connection that begins to connect; requests may be sent at once and leave when it is up. The caller holds a place in
    /// `env.site.open`, which the connection gives back when it is dropped.
    pub(super) fn open(env: &Rc<Env>, key: Key) -> Rc<Self> {
        let conn = Rc::new(Self {
            key,
            env: Rc::clone(env),
            out: RefCell::default(),
            writing: Cell::new(0),
            waiters: RefCell::default(),
            reading: RefCell::default(),
            ready: Cell::new(false),
            dead: Cell::new(false),
            tainted: Cell::new(false),
            paused: Cell::new(false),
            retired: Cell::new(false),
            patience: Cell::new(PATIENCE),
            progress: Cell::new(env.clock.now()),
            used: Cell::new(env.clock.now()),
            kicked: Cell::new(false),
            writer: RefCell::default(),
            room: RefCell::default(),
            tasks: RefCell::default(),
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
                self.ready.set(true);
                self.kick();
                self.spawn(Rc::clone(&self).write_on(write));
                self.spawn(Rc::clone(&self).read_on(read));
                return;
            }
            // What the server itself says of one pool (its user, its database, its protocol) is no reason to keep others waiting.
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::PermissionDenied) => {
                tracing::warn!(upstream = %self.env.site.target, %error, "the upstream refused a connection");
                return self.fail(&UpstreamError::Unreachable(error.to_string()));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {:?}", self.env.site.target.connect_timeout),
        };
        self.env.health.failed(&error);
        self.fail(&UpstreamError::Unreachable(error));
    }

    /// Whether it can no longer be used.
    pub fn dead(&self) -> bool {
        self.dead.get()
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

    /// Whether it is connected.
    pub fn ready(&self) -> bool {
        self.ready.get()
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
        let now = self.env.clock.now();
        self.used.set(now);
        let since = if patient { NEVER } else { now };
        let mut waiters = self.waiters.borrow_mut();
        if let (Owed::Raw, Some(last)) = (&owed, waiters.back_mut())
            && matches!(last.owed, Owed::Raw)
            && last.since == since
            && last.what.row == what.row
            && last.client.as_ref().is_some_and(|c| Rc::ptr_eq(c, client))
        {
            last.count += 1;
            return;
        }
        let sent = self.env.clock.micros();
        waiters.push_back(Waiter { client: Some(Rc::clone(client)), owed, count: 1, since, sent, what });
    }

    /// A request of keyfence's own whose reply is dropped.
    pub fn send_own(&self, frame: &[u8]) {
        self.send(|out| out.extend_from_slice(frame));
        self.waiters.borrow_mut().push_back(Waiter {
            client: None,
            owed: Owed::Dropped,
            count: 1,
            since: self.env.clock.now(),
            sent: self.env.clock.micros(),
            what: What::NOTHING,
        });
    }

    /// Whether sessions should wait before they send more.
    pub fn congested(&self) -> bool {
        self.out.borrow().len() + self.writing.get() > CONGESTED
    }

    /// Ready once it is no longer congested, or dead.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.dead.get() || !self.congested() {
            return Poll::Ready(());
        }
        self.room.borrow_mut().push(cx.waker().clone());
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
            w.since != NEVER && now.wrapping_sub(since) > limit
        });
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
                if waiter.since == NEVER || now.wrapping_sub(waiter.since) <= limit {
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
                    _ => client.append(|out| (0..waiter.count).for_each(|_| resp::put_error(out, line.as_bytes()))),
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
            let mut sent = 0;
            while sent < buf.len() {
                self.writing.set(buf.len() - sent);
                match write.try_write(&buf[sent..]) {
                    Ok(n) => sent += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        if poll_fn(|cx| write.poll_ready(cx)).await.is_err() {
                            return self.fail(&UpstreamError::Lost);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(upstream = %self.env.site.target, %error, "upstream connection broke");
                        return self.fail(&UpstreamError::Lost);
                    }
                }
            }
            self.writing.set(0);
            self.env.spares.put(buf);
            for waker in self.room.borrow_mut().drain(..) {
                waker.wake();
            }
        }
    }

    async fn read_on(self: Rc<Self>, mut read: ReadHalf) {
        // What the last turn could not use: a header line that had not arrived whole.
        let mut rest: Vec<u8> = Vec::new();
        let mut written: Vec<Rc<Downstream>> = Vec::new();
        let mut slow: Vec<Rc<Downstream>> = Vec::new();
        loop {
            let turn = poll_fn(|cx| {
                let mut scratch = self.env.scratch.borrow_mut();
                let held = rest.len();
                let n = match read.poll_read(cx, &mut scratch[held..]) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err("closed by the upstream".to_owned())),
                    Poll::Ready(Ok(n)) => n,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e.to_string())),
                };
                scratch[..held].copy_from_slice(&rest);
                let buf = &scratch[..held + n];
                self.progress.set(self.env.clock.now());
                self.env.clock.look();
                let used = match self.deliver(buf, &mut written) {
                    Ok(used) => used,
                    Err(error) => return Poll::Ready(Err(error.to_owned())),
                };
                rest.clear();
                rest.extend_from_slice(&buf[used..]);
                if rest.len() > scratch.len() / 2 {
                    return Poll::Ready(Err("a header line without an end".to_owned()));
                }
                Poll::Ready(Ok(()))
            })
            .await;
            for client in written.drain(..) {
                client.flush();
                if client.unsent() > HIGH_WATER {
                    slow.push(client);
                }
            }
            if let Err(error) = turn {
                if !self.dead.get() {
                    tracing::warn!(upstream = %self.env.site.target, error, "upstream connection closed");
                }
                return self.fail(&UpstreamError::Lost);
            }
            for client in slow.drain(..) {
                self.wait_for(&client).await;
            }
            if self.retired.get() && self.idle() {
                return self.fail(&UpstreamError::Lost);
            }
        }
    }

    /// Lets a client that is behind catch up before more is read for it: a large reply passes in little memory.
    ///
    /// New requests of others take another connection from then on. Those that are behind this reply already wait with it, so a client that
    /// reads slower than [`PACE`] is not waited for beyond [`PATIENCE`] on their behalf: its output grows to its limit instead. With nobody
    /// behind it, it has all the time it takes.
    async fn wait_for(&self, client: &Rc<Downstream>) {
        let others = || {
            let waiters = self.waiters.borrow();
            waiters.iter().any(|w| w.client.as_ref().is_some_and(|c| !Rc::ptr_eq(c, client)))
        };
        if self.patience.get().is_zero() && others() {
            return;
        }
        self.paused.set(true);
        let drained = |deadline| tokio::time::timeout_at(deadline, poll_fn(|cx| client.poll_drained(cx)));
        if drained(Instant::now() + CATCH_UP).await.is_err() {
            self.retired.set(true);
            loop {
                let others = others();
                if others && self.patience.get().is_zero() {
                    break;
                }
                let before = client.written();
                let began = Instant::now();
                if drained(began + SLICE).await.is_ok() {
                    break;
                }
                if others {
                    let paid = Duration::from_millis((client.written() - before) / PACE);
                    self.patience.set(self.patience.get().saturating_sub(began.elapsed().saturating_sub(paid)));
                }
            }
        }
        self.progress.set(self.env.clock.now());
        self.paused.set(false);
    }

    /// Hands the replies in `buf` to those who wait for them: the bytes used.
    fn deliver(&self, buf: &[u8], written: &mut Vec<Rc<Downstream>>) -> Result<usize, &'static str> {
        let mut reading = self.reading.borrow_mut();
        let reading = &mut *reading;
        let mut waiters = self.waiters.borrow_mut();
        let mut at = 0;
        loop {
            // A push stands between two replies and answers nobody.
            if reading.push || (reading.begun.is_none() && buf.get(at) == Some(&b'>') && self.key.proto == Proto::Resp3)
            {
                let (n, done) = reading.scanner.advance(&buf[at..]).map_err(|_| MALFORMED)?;
                at += n;
                reading.push = !done;
                if !done {
                    return Ok(at);
                }
                continue;
            }
            let Some(waiter) = waiters.front_mut() else {
                return if at == buf.len() { Ok(at) } else { Err("a reply that nobody waits for") };
            };
            let finished = match &mut waiter.owed {
                Owed::Local(bytes) => {
                    if let Some(client) = &waiter.client {
                        client.waited(bytes.len());
                    }
                    pass(waiter.client.as_ref(), bytes, written);
                    settle(waiter.client.as_ref(), 1);
                    true
                }
                Owed::Raw | Owed::Dropped => {
                    let client = waiter.client.as_ref().filter(|_| matches!(waiter.owed, Owed::Raw));
                    let passed = raw(buf, at, reading, waiter.count, client, written);
                    at = passed.at;
                    waiter.count -= passed.done;
                    settle(waiter.client.as_ref(), passed.done);
                    self.note_slow(waiter, passed.done);
                    if passed.malformed {
                        return Err(MALFORMED);
                    }
                    if waiter.count > 0 && reading.begun.is_none() && buf.get(at) == Some(&b'>') {
                        if self.key.proto == Proto::Resp3 {
                            continue;
                        }
                        return Err(MALFORMED);
                    }
                    waiter.count == 0
                }
                Owed::Instead(bytes) => {
                    reading.begun.get_or_insert(0);
                    let (n, done) = reading.scanner.advance(&buf[at..]).map_err(|_| MALFORMED)?;
                    at += n;
                    if done {
                        reading.begun = None;
                        pass(waiter.client.as_ref(), bytes, written);
                        settle(waiter.client.as_ref(), 1);
                    }
                    done
                }
                Owed::Rewritten(machine) => {
                    let Some(client) = &waiter.client else { return Err("a rewritten reply without a client") };
                    if at == buf.len() {
                        false
                    } else {
                        let mark = *reading.begun.get_or_insert_with(|| client.mark());
                        let advanced = client.append(|out| machine.advance(&buf[at..], out));
                        client.queue(written);
                        match advanced {
                            Ok((n, done)) => {
                                at += n;
                                if done {
                                    reading.begun = None;
                                    settle(Some(client), 1);
                                }
                                done
                            }
                            Err(Failure::Malformed) => return Err(MALFORMED),
                            Err(Failure::Isolation) => {
                                reading.begun = None;
                                if !client.retract(mark) {
                                    client.abandon();
                                }
                                self.env.isolation_failures.set(self.env.isolation_failures.get() + 1);
                                tracing::error!(upstream = %self.env.site.target, "a reply held a name outside the tenant's prefix: withheld");
                                return Err("a reply that held a name outside the prefix");
                            }
                        }
                    }
                }
            };
            if !finished {
                return Ok(at);
            }
            if matches!(waiter.owed, Owed::Rewritten(_) | Owed::Instead(_)) {
                self.note_slow(waiter, 1);
            }
            waiters.pop_front();
        }
    }

    fn note_slow(&self, waiter: &Waiter, times: u32) {
        let took = Duration::from_micros(self.env.clock.micros().saturating_sub(waiter.sent));
        if waiter.since != NEVER && waiter.what != What::NOTHING && times > 0 && self.env.slowlog.is_slow(took) {
            (0..times).for_each(|_| self.env.slowlog.push(self.key.tenant, took, waiter.what.row, waiter.what.argc));
        }
    }

    /// Ends the connection: everyone who waits gets `error` in order, and the sockets close.
    pub fn fail(&self, error: &UpstreamError) {
        if self.dead.replace(true) {
            return;
        }
        let line = error.to_line();
        let lost = UpstreamError::Lost.to_line();
        let mut begun = self.reading.borrow().begun;
        let mut touched = Vec::new();
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        for (i, waiter) in waiters.into_iter().enumerate() {
            let Some(client) = waiter.client else { continue };
            // Half of the first reply may have gone out; a client that has it cannot be told anything any more.
            if let Some(mark) = begun.take()
                && i == 0
                && !matches!(waiter.owed, Owed::Dropped | Owed::Instead(_))
                && !client.retract(mark)
            {
                client.abandon();
            }
            let text = if i == 0 || matches!(error, UpstreamError::Unreachable(_)) { &line } else { &lost };
            client.append(|out| match &waiter.owed {
                Owed::Dropped => {}
                Owed::Local(bytes) => {
                    out.extend_from_slice(bytes);
                }
                Owed::Raw | Owed::Instead(_) | Owed::Rewritten(_) => {
                    (0..waiter.count).for_each(|_| resp::put_error(out, text.as_bytes()));
                }
            });
            if let Owed::Local(bytes) = &waiter.owed {
                client.waited(bytes.len());
            }
            client.settle(waiter.count);
            client.queue(&mut touched);
        }
        touched.iter().for_each(|client| client.flush());
        for waker in self.room.borrow_mut().drain(..) {
            waker.wake();
        }
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

const MALFORMED: &str = "a malformed reply";

fn pass(client: Option<&Rc<Downstream>>, bytes: &[u8], written: &mut Vec<Rc<Downstream>>) {
    if let Some(client) = client {
        client.append(|out| out.extend_from_slice(bytes));
        client.queue(written);
    }
}

fn settle(client: Option<&Rc<Downstream>>, n: u32) {
    if let Some(client) = client {
        client.settle(n);
    }
}

/// What [`raw`] did before it stopped.
struct Passed {
    /// Where it stopped.
    at: usize,
    /// How many replies ended.
    done: u32,
    /// What follows is no reply.
    malformed: bool,
}

/// Passes up to `count` replies from `buf[at..]` to `client` (or nobody) as they are.
fn raw(
    buf: &[u8],
    mut at: usize,
    reading: &mut Reading,
    count: u32,
    client: Option<&Rc<Downstream>>,
    written: &mut Vec<Rc<Downstream>>,
) -> Passed {
    let (mut done, mut malformed) = (0, false);
    // Everything from here to `at` is passed in one piece.
    let mut from = at;
    while done < count {
        let Some(&kind) = buf.get(at) else { break };
        let first = reading.begun.is_none();
        if first {
            if kind == b'>' {
                break;
            }
            if kind == b'-' {
                let line = &buf[at..];
                match memchr::memchr(b'\n', line) {
                    None if line.len() < ERROR_LINE => break,
                    Some(end) => {
                        if let Some(own) = line[..end].strip_suffix(b"\r").and_then(own_error) {
                            reading.note_refusal(line);
                            pass(client, &buf[from..at], written);
                            pass(client, &own, written);
                            pass(client, b"\r\n", written);
                            at += end + 1;
                            from = at;
                            done += 1;
                            continue;
                        }
                    }
                    None => {}
                }
            }
        }
        let Ok((n, ended)) = reading.scanner.advance(&buf[at..]) else {
            malformed = true;
            break;
        };
        if ended {
            at += n;
            reading.begun = None;
            done += 1;
            continue;
        }
        if first && n > 0 {
            reading.begun = Some(client.map_or(0, |c| c.mark()) + (at - from) as u64);
        }
        at += n;
        break;
    }
    if at > from {
        pass(client, &buf[from..at], written);
    }
    Passed { at, done, malformed }
}
