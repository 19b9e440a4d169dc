//! The side of a client connection that replies are written to, shared by its session and by the upstream connections that owe it replies.
//!
//! ```text
//!   session ────────────┐                         (everything on one worker's thread)
//!                       ├─► Downstream.out ──try_write──► client's socket
//!   upstream reader ────┘         │ socket full
//!                                 └─► the session is woken, waits for room and writes on
//! ```
//!
//! An upstream reader writes to the sockets itself at the end of its turn, so a reply reaches its client without another task being woken.
//! `in_flight` counts replies owed; replies come in the order of the requests because a session has requests in flight on one upstream
//! connection only.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use atomic_waker::AtomicWaker;

use crate::net::WriteHalf;

/// Unsent bytes past which the upstream connection that produces them waits for this client.
pub const HIGH_WATER: usize = 1024 * 1024;
/// Unsent bytes below which it goes on.
const LOW_WATER: usize = 128 * 1024;
/// A buffer of at most this many bytes goes back to the worker's stock when it is empty; a larger one is freed.
const SPARE_BYTES: usize = 64 * 1024;
/// How many spare buffers a worker keeps.
const SPARES: usize = 64;

/// A worker's stock of empty buffers: an idle client owns none.
#[derive(Debug, Default)]
pub struct Spares(RefCell<Vec<Vec<u8>>>);

impl Spares {
    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn put(&self, mut buf: Vec<u8>) {
        let mut spares = self.0.borrow_mut();
        if buf.capacity() > 0 && buf.capacity() <= SPARE_BYTES && spares.len() < SPARES {
            buf.clear();
            spares.push(buf);
        }
    }
}

/// Wakes a session, from its own worker or another thread, and may tell it to end.
#[derive(Debug, Default)]
pub struct Alarm {
    waker: AtomicWaker,
    killed: AtomicBool,
    leaving: AtomicBool,
    draining: AtomicBool,
}

impl Alarm {
    /// Ends the session at its next turn, which is now.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether the session was told to end.
    pub fn killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Ends the session as soon as it owes the client nothing.
    pub fn kill_when_idle(&self) {
        self.leaving.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ends the session as soon as it owes the client nothing, what the client has sent already included: the process stops.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether the session is to end when it owes nothing.
    pub fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire) || self.draining()
    }

    /// Whether it is to end for no other reason than that the process stops.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire) && !self.leaving.load(Ordering::Acquire)
    }

    /// Makes the session look around.
    pub fn ring(&self) {
        self.waker.wake();
    }

    /// The session's task is the one that `ring` and `kill` wake.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }
}

/// Unsent replies of all clients of one tenant, over all workers: each client is booked in whole MiB, so that a small reply costs nothing here.
#[derive(Debug, Default)]
pub struct Backlog(AtomicUsize);

/// How many times `client_output_limit` all clients of a tenant may have unsent together.
const BACKLOG: usize = 8;
/// Most unsent bytes of a client that is sent messages, as Redis has it (`client-output-buffer-limit pubsub 32mb`).
pub const MESSAGES: usize = 32 * 1024 * 1024;
/// How many times that all clients of a tenant may have unsent together before one that is sent a message and reads slowly is disconnected.
const MESSAGES_OF_ALL: usize = 4;
/// The unit of a [`Backlog`], as a power of two.
const BOOKED: u32 = 20;

/// See the module.
#[derive(Debug)]
pub struct Downstream {
    /// Bytes to write; the first `sent` of them are written already.
    out: RefCell<Vec<u8>>,
    sent: Cell<usize>,
    write: RefCell<Option<WriteHalf>>,
    /// A reply has been appended in part: messages wait here until the rest is there.
    midway: Cell<bool>,
    pushes: RefCell<Vec<u8>>,
    /// Replies owed by upstream connections, local answers that wait behind them included.
    in_flight: Cell<u32>,
    /// Bytes of answers made here that wait behind them.
    waiting: Cell<usize>,
    /// The session is woken when `in_flight` comes down to this.
    wake_at: Cell<Option<u32>>,
    /// The socket was full: the session waits for room.
    blocked: Cell<bool>,
    /// The client's address.
    peer: Arc<str>,
    /// Already on the list of clients to be written to at the end of this turn.
    queued: Cell<bool>,
    /// An upstream reader that waits for this client to read.
    producer: RefCell<Option<Waker>>,
    /// Most unsent bytes before the client is disconnected.
    limit: usize,
    spares: Rc<Spares>,
    alarm: Arc<Alarm>,
    /// All bytes ever written, for the pace of a slow reader.
    written: Cell<u64>,
    /// The worker looks after it because its socket was full.
    watched: Cell<bool>,
    /// Its tenant's, and how much of it is this client's, in MiB.
    backlog: RefCell<Arc<Backlog>>,
    booked: Cell<usize>,
}

impl Downstream {
    /// `peer` is the client's address, `limit` is `client_output_limit` in bytes.
    pub fn new(write: WriteHalf, peer: Arc<str>, limit: usize, spares: Rc<Spares>, alarm: Arc<Alarm>) -> Self {
        Self {
            peer,
            out: RefCell::default(),
            sent: Cell::new(0),
            write: RefCell::new(Some(write)),
            midway: Cell::new(false),
            pushes: RefCell::default(),
            in_flight: Cell::new(0),
            waiting: Cell::new(0),
            wake_at: Cell::new(None),
            blocked: Cell::new(false),
            queued: Cell::new(false),
            producer: RefCell::new(None),
            limit,
            spares,
            alarm,
            written: Cell::new(0),
            watched: Cell::new(false),
            backlog: RefCell::default(),
            booked: Cell::new(0),
        }
    }

    /// Its unsent replies count among these from now on.
    pub fn belong_to(&self, backlog: &Arc<Backlog>) {
        self.book(0);
        *self.backlog.borrow_mut() = Arc::clone(backlog);
        self.book(self.unsent());
    }

    /// Takes note of `unsent` bytes; `false` when the tenant's clients have too many together.
    fn book(&self, unsent: usize) -> bool {
        let (now, before) = (unsent >> BOOKED, self.booked.get());
        if now == before {
            return true;
        }
        self.booked.set(now);
        let backlog = self.backlog.borrow();
        if now < before {
            backlog.0.fetch_sub(before - now, Ordering::Relaxed);
            return true;
        }
        let all = backlog.0.fetch_add(now - before, Ordering::Relaxed) + (now - before);
        all <= (self.limit >> BOOKED).max(1) * BACKLOG
    }

    /// Whether the socket is full and nobody watches for how long yet; from now on somebody does.
    pub fn watch(&self) -> bool {
        self.blocked.get() && !self.watched.replace(true)
    }

    /// Nobody watches any more.
    pub fn unwatch(&self) {
        self.watched.set(false);
    }

    /// The client's address.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The session's alarm.
    pub fn alarm(&self) -> &Arc<Alarm> {
        &self.alarm
    }

    /// Replies owed.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// `n` more replies are owed.
    pub fn expect(&self, n: u32) {
        self.in_flight.set(self.in_flight.get() + n);
    }

    /// `bytes` more of an answer made here wait behind the replies owed.
    pub fn wait_with(&self, bytes: usize) {
        self.waiting.set(self.waiting.get() + bytes);
    }

    /// `bytes` of an answer wait no more.
    pub fn waited(&self, bytes: usize) {
        self.waiting.set(self.waiting.get().saturating_sub(bytes));
    }

    /// Bytes of answers made here that wait behind the replies owed.
    pub fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// `n` replies have been delivered (or dropped).
    pub fn settle(&self, n: u32) {
        debug_assert!(self.in_flight.get() >= n, "a reply was settled twice");
        let left = self.in_flight.get().saturating_sub(n);
        self.in_flight.set(left);
        if self.wake_at.get().is_some_and(|at| left <= at) {
            self.wake_at.set(None);
            self.alarm.ring();
        }
    }

    /// Wakes the session once no more than `n` replies are owed.
    pub fn wake_at(&self, n: u32) {
        self.wake_at.set(Some(n));
    }

    /// Whether the connection has been given up: what is appended goes nowhere.
    pub fn gone(&self) -> bool {
        self.write.borrow().is_none()
    }

    /// Bytes waiting to be written.
    pub fn unsent(&self) -> usize {
        self.out.borrow().len() - self.sent.get()
    }

    /// All bytes written so far.
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    /// Appends to the output; the caller sees to [`Downstream::flush`] at the end of its turn. Ends the session at the output limit.
    pub fn append<R>(&self, fill: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let mut out = self.out.borrow_mut();
        if out.capacity() == 0 {
            *out = self.spares.take();
        }
        let result = fill(&mut out);
        if self.gone() {
            out.clear();
            self.sent.set(0);
        } else if out.len() - self.sent.get() > self.limit || !self.book(out.len() - self.sent.get()) {
            let unsent = out.len() - self.sent.get();
            drop(out);
            tracing::debug!(client = %self.peer, unsent, limit = self.limit, "client is slower than its replies: disconnected");
            self.abandon();
        }
        result
    }

    /// Appends a whole message, between two replies.
    pub fn push(&self, message: &[u8]) {
        if !self.midway.get() {
            self.append(|out| {
                if message.len() >= HIGH_WATER {
                    // One that is not read must not take twice its size.
                    out.reserve_exact(message.len());
                }
                out.extend_from_slice(message);
            });
            let most = self.limit.min(MESSAGES);
            let all = self.backlog.borrow().0.load(Ordering::Relaxed) << BOOKED;
            if self.unsent() > most || self.booked.get() > 0 && all > most.max(1 << BOOKED) * MESSAGES_OF_ALL {
                tracing::debug!(client = %self.peer, unsent = self.unsent(), "client is slower than its messages: disconnected");
                self.abandon();
            }
        } else if !self.gone() {
            let mut pushes = self.pushes.borrow_mut();
            pushes.extend_from_slice(message);
            if self.unsent() + pushes.len() > self.limit.min(MESSAGES) {
                drop(pushes);
                tracing::debug!(client = %self.peer, limit = self.limit, "client is slower than its messages: disconnected");
                self.abandon();
            }
        }
    }

    /// Says whether a reply has been appended in part only.
    pub fn set_midway(&self, midway: bool) {
        self.midway.set(midway);
        if !midway && !self.pushes.borrow().is_empty() {
            let pushes = self.pushes.take();
            self.append(|out| out.extend_from_slice(&pushes));
        }
    }

    /// Where the next appended byte will stand, to be able to [`Downstream::retract`] to it.
    pub fn mark(&self) -> u64 {
        self.written.get() + self.unsent() as u64
    }

    /// Takes back what was appended since `mark`; `false` when some of it was written already.
    pub fn retract(&self, mark: u64) -> bool {
        let mut out = self.out.borrow_mut();
        let Some(keep) = mark.checked_sub(self.written.get()).and_then(|n| usize::try_from(n).ok()) else {
            return false;
        };
        out.truncate(self.sent.get() + keep);
        true
    }

    /// Puts the client on `list` once per turn.
    pub fn queue(self: &Rc<Self>, list: &mut Vec<Rc<Self>>) {
        if !self.queued.replace(true) {
            list.push(Rc::clone(self));
        }
    }

    /// Writes what the socket takes; when it is full the session is woken to wait for room.
    pub fn flush(&self) {
        self.queued.set(false);
        if self.blocked.get() || self.gone() {
            return;
        }
        if let Err(error) = self.write_some() {
            tracing::debug!(client = %self.peer, %error, "write to client failed");
            self.abandon();
        } else if self.blocked.get() {
            self.alarm.ring();
        }
    }

    /// For the session: goes on writing once a full socket has room. Ready when nothing is waiting for the socket.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<()> {
        while self.blocked.get() {
            let ready = match &*self.write.borrow() {
                Some(write) => write.poll_ready(cx),
                None => return Poll::Ready(()),
            };
            match ready {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {
                    self.blocked.set(false);
                    self.flush();
                }
                Poll::Ready(Err(_)) => self.abandon(),
            }
        }
        Poll::Ready(())
    }

    fn write_some(&self) -> io::Result<()> {
        let mut out = self.out.borrow_mut();
        let write = self.write.borrow();
        let Some(write) = &*write else { return Ok(()) };
        let mut sent = self.sent.get();
        while sent < out.len() {
            match write.try_write(&out[sent..]) {
                Ok(n) => {
                    sent += n;
                    self.written.set(self.written.get() + n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked.set(true);
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        // What is encrypted and waits for room is waited for as what is not.
        if !self.blocked.get() && !write.try_flush()? {
            self.blocked.set(true);
        }
        if sent == out.len() {
            sent = 0;
            self.spares.put(std::mem::take(&mut *out));
        } else if sent > out.len() / 2 {
            out.drain(..sent);
            sent = 0;
        }
        self.sent.set(sent);
        self.book(out.len() - sent);
        if out.len() - sent <= LOW_WATER
            && let Some(producer) = self.producer.borrow_mut().take()
        {
            producer.wake();
        }
        Ok(())
    }

    /// For an upstream reader: ready once the client has read most of what is waiting for it, or has gone.
    pub fn poll_drained(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.gone() || self.unsent() <= LOW_WATER {
            return Poll::Ready(());
        }
        *self.producer.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Gives the connection up: frees its buffer, closes its socket for writing and tells the session.
    pub fn abandon(&self) {
        self.close();
        self.alarm.kill();
    }

    /// For the session, when it ends: nothing more will be written, and replies still owed are dropped as they come.
    pub fn close(&self) {
        self.write.borrow_mut().take();
        self.blocked.set(false);
        self.sent.set(0);
        self.book(0);
        self.pushes.take();
        if let Ok(mut out) = self.out.try_borrow_mut() {
            *out = Vec::new();
        }
        if let Some(producer) = self.producer.borrow_mut().take() {
            producer.wake();
        }
    }
}
