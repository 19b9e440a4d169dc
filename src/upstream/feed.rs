//! A connection that listens: what it subscribed to comes as pushes, for as long as somebody wants them.
//!
//! ```text
//!   audience ──send()──► out ──►  upstream
//!      ▲                             │
//!      └── frame() ◄── one task ◄────┘ pushes and replies, one whole frame after the other
//!             └──► clients' outputs, written to at the end of the turn
//! ```
//!
//! It speaks RESP3, in which a message cannot be taken for a reply. When it breaks it is opened again, later each time it fails; what was
//! published meanwhile is lost (at most once, as behind a failover of any Redis). A turn hands on a bounded number of bytes and writes to
//! a bounded number of clients before others on the worker have theirs.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use tokio::{
    task::yield_now,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Env, Key, Kind, MAX_BACKOFF, MIN_BACKOFF};
use crate::{
    downstream::Downstream,
    error::UpstreamError,
    net::{ReadHalf, WriteHalf},
    resp::{Proto, reply::Scanner},
};

/// Bytes read at once.
const READ: usize = 64 * 1024;
/// Bytes handed to clients, all together, before their sockets are written to and others have their turn.
const TURN: usize = 4 * 1024 * 1024;
/// Clients written to before others have their turn.
const SLICE: usize = 128;
/// A connection on which nothing was heard for this long is asked whether it lives, and closed if nobody wants it any more.
const SILENCE: Duration = Duration::from_secs(15);
/// A connection that broke within this time counts as a failed attempt.
const SHORT: Duration = Duration::from_secs(5);
/// What is shown of a frame that is too large.
const HEAD: usize = 64 * 1024;

/// Who listens.
pub trait Audience {
    /// The connection is up, for the first time or again: appends what has to be said first.
    fn connected(&self, out: &mut Vec<u8>);
    /// One whole frame: how many bytes were appended to clients' outputs.
    ///
    /// # Errors
    /// It is none that could come: the connection must be closed.
    fn frame(&self, frame: &[u8]) -> Result<usize, &'static str>;
    /// A frame of more than [`Audience::limit`] bytes begins like this; the rest is passed over.
    fn too_large(&self, head: &[u8]);
    /// Most bytes of one frame.
    fn limit(&self) -> usize;
    /// Appends the clients that have something new in their outputs.
    fn take_written(&self, into: &mut Vec<Rc<Downstream>>);
    /// Nothing was heard for a while: asks for a sign of life.
    fn ask(&self);
    /// Since when it has waited for a reply.
    fn waits_since(&self) -> Option<Instant>;
    /// There is no connection any more, or still none: what waits for a reply gets this.
    fn lost(&self, error: &UpstreamError);
    /// Whether anybody wants the connection.
    fn wanted(&self) -> bool;
}

/// As whom it logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// As one of the users of the tenant of this number.
    Tenant(u32, Kind),
    /// As keyfence itself.
    Own,
}

#[derive(Clone, Debug)]
enum State {
    Idle,
    Connecting,
    Up,
    /// It failed and will be tried again.
    Down(UpstreamError),
}

/// See the module.
#[derive(Debug)]
pub struct Feed {
    env: Rc<Env>,
    who: Who,
    out: RefCell<Vec<u8>>,
    state: RefCell<State>,
    waker: RefCell<Option<Waker>>,
    kicked: Cell<bool>,
    closing: Cell<bool>,
}

/// A place among the connections to the upstream.
struct Place<'a>(&'a Env, u32);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.site.open.release(self.1);
        self.0.cells.listening.sub(1);
    }
}

impl Feed {
    /// Not connected before it is wanted.
    pub fn new(env: &Rc<Env>, who: Who) -> Self {
        Self {
            env: Rc::clone(env),
            who,
            out: RefCell::default(),
            state: RefCell::new(State::Idle),
            waker: RefCell::default(),
            kicked: Cell::new(false),
            closing: Cell::new(false),
        }
    }

    /// Whether what is sent now leaves now; otherwise [`Audience::connected`] has to say it.
    pub fn up(&self) -> bool {
        matches!(*self.state.borrow(), State::Up)
    }

    /// Whether its task has ended.
    pub fn idle(&self) -> bool {
        matches!(*self.state.borrow(), State::Idle)
    }

    /// Connects if it is not connected.
    ///
    /// # Errors
    /// Why it cannot just now.
    pub fn want<A: Audience + 'static>(self: &Rc<Self>, audience: &Rc<A>) -> Result<(), UpstreamError> {
        if let State::Down(error) = &*self.state.borrow() {
            return Err(error.clone());
        }
        if self.idle() {
            self.env.health.check()?;
            *self.state.borrow_mut() = State::Connecting;
            tokio::task::spawn_local(Rc::clone(self).keep(Rc::clone(audience)));
        }
        Ok(())
    }

    /// Appends to what will be sent, if there is a connection.
    pub fn send(&self, fill: impl FnOnce(&mut Vec<u8>)) {
        if self.up() {
            fill(&mut self.out.borrow_mut());
            self.kick();
        }
    }

    /// Closes the connection at once, for good.
    pub fn close(&self) {
        self.closing.set(true);
        self.kick();
    }

    fn kick(&self) {
        if !self.kicked.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    async fn keep<A: Audience + 'static>(self: Rc<Self>, audience: Rc<A>) {
        let mut failures = 0;
        loop {
            *self.state.borrow_mut() = State::Connecting;
            let began = Instant::now();
            let error = match self.connect().await {
                Ok((_place, read, write)) => {
                    *self.state.borrow_mut() = State::Up;
                    audience.connected(&mut self.out.borrow_mut());
                    match self.serve(read, write, &*audience).await {
                        None => break,
                        Some(error) => error,
                    }
                }
                Err(error) => error,
            };
            failures = if began.elapsed() > SHORT { 0 } else { failures + 1 };
            *self.state.borrow_mut() = State::Down(error.clone());
            self.out.borrow_mut().clear();
            audience.lost(&error);
            self.flush(&*audience).await;
            if audience.wanted() {
                let backoff = (MIN_BACKOFF * 2u32.saturating_pow(failures.min(10))).min(MAX_BACKOFF);
                sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            if !audience.wanted() {
                break;
            }
        }
        *self.state.borrow_mut() = State::Idle;
        // Who came while the connection was being closed waits for one.
        if audience.wanted() {
            let _ = self.want(&audience);
        }
    }

    async fn connect(&self) -> Result<(Place<'_>, ReadHalf, WriteHalf), UpstreamError> {
        let site = &self.env.site;
        let tenant = match self.who {
            Who::Tenant(tenant, _) => tenant,
            Who::Own => 0,
        };
        site.open.acquire(tenant, false)?;
        let place = Place(&self.env, tenant);
        self.env.cells.listening.add(1);
        let limit = site.target.connect_timeout;
        let connecting = async {
            let _permit = self.env.connects.acquire().await.map_err(io::Error::other)?;
            // Channels are one namespace over all databases.
            let key = |tenant, kind| Key { kind, tenant, db: 0, proto: Proto::Resp3 };
            match self.who {
                Who::Tenant(tenant, kind) => site.connect(&key(tenant, kind)).await,
                Who::Own => {
                    site.target.connect(&site.target.username, &site.target.password, &key(0, Kind::Data)).await
                }
            }
        };
        let error = match timeout(limit, connecting).await {
            Ok(Ok((read, write))) => {
                self.env.health.succeeded();
                return Ok((place, read, write));
            }
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::PermissionDenied) => {
                tracing::warn!(upstream = %site.target, %error, "the upstream refused a connection");
                return Err(UpstreamError::Unreachable(error.to_string()));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {limit:?}"),
        };
        self.env.health.failed(&error);
        Err(UpstreamError::Unreachable(error))
    }

    /// Until it breaks (why) or nobody wants it any more (`None`).
    async fn serve(&self, mut read: ReadHalf, write: WriteHalf, audience: &impl Audience) -> Option<UpstreamError> {
        let mut frames = Frames::default();
        let mut heard = Instant::now();
        let mut timer = Box::pin(sleep_until(heard + SILENCE));
        let limit = self.env.site.target.socket_timeout;
        loop {
            let turn = poll_fn(|cx| {
                self.kicked.set(false);
                if self.closing.get() {
                    return Poll::Ready(Ok(false));
                }
                let mut waker = self.waker.borrow_mut();
                if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                drop(waker);
                if let Poll::Ready(Err(error)) = self.poll_write(&write, cx) {
                    return Poll::Ready(Err(error));
                }
                let mut scratch = self.env.scratch.borrow_mut();
                match read.poll_read(cx, &mut scratch[..READ]) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "closed by the upstream",
                        )));
                    }
                    Poll::Ready(Ok(n)) => {
                        frames.held.extend_from_slice(&scratch[..n]);
                        return Poll::Ready(Ok(true));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
                drop(scratch);
                let due = audience.waits_since().map_or(heard + SILENCE, |since| since + limit);
                if due < timer.deadline() {
                    timer.as_mut().reset(due);
                }
                timer.as_mut().poll(cx).map(|()| Ok(false))
            })
            .await;
            match turn {
                Ok(true) => {
                    heard = Instant::now();
                    loop {
                        let more = frames.hand_on(audience);
                        self.flush(audience).await;
                        match more {
                            Ok(false) => break,
                            Ok(true) => yield_now().await,
                            Err(error) => {
                                tracing::error!(upstream = %self.env.site.target, error, "subscriptions: connection closed");
                                return Some(UpstreamError::Lost);
                            }
                        }
                    }
                }
                Ok(false) if self.closing.get() => return None,
                Ok(false) => {
                    let now = Instant::now();
                    match audience.waits_since() {
                        Some(since) if now >= since + limit => {
                            tracing::warn!(upstream = %self.env.site.target, "upstream did not answer in time: connection closed");
                            return Some(UpstreamError::TimedOut(limit));
                        }
                        Some(since) => timer.as_mut().reset(since + limit),
                        None if now < heard + SILENCE => timer.as_mut().reset(heard + SILENCE),
                        None if audience.wanted() => {
                            audience.ask();
                            timer.as_mut().reset(now + SILENCE);
                        }
                        None => return None,
                    }
                }
                Err(error) => {
                    tracing::warn!(upstream = %self.env.site.target, %error, "subscriptions: upstream connection closed");
                    return Some(UpstreamError::Lost);
                }
            }
        }
    }

    /// Writes what the socket takes; never `Ready` but with an error.
    fn poll_write(&self, write: &WriteHalf, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut out = self.out.borrow_mut();
            if out.is_empty() {
                match write.try_flush() {
                    Ok(true) => return Poll::Pending,
                    Ok(false) => std::task::ready!(write.poll_ready(cx))?,
                    Err(e) => return Poll::Ready(Err(e)),
                }
                continue;
            }
            match write.try_write(&out) {
                Ok(n) if n == out.len() => *out = Vec::new(),
                Ok(n) => drop(out.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => match write.poll_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    other => return other,
                },
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    async fn flush(&self, audience: &impl Audience) {
        let mut written = Vec::new();
        audience.take_written(&mut written);
        for (i, client) in written.iter().enumerate() {
            client.flush();
            if i % SLICE == SLICE - 1 {
                yield_now().await;
            }
        }
    }
}

/// What has been read and not yet handed on.
#[derive(Default)]
struct Frames {
    held: Vec<u8>,
    /// Where the frame at hand begins.
    at: usize,
    /// How far it has been measured.
    measured: usize,
    scanner: Scanner,
    /// It is too large to be held: passed over.
    skipping: bool,
}

impl Frames {
    /// Hands on the whole frames that are there, up to [`TURN`]; whether there may be more.
    fn hand_on(&mut self, audience: &impl Audience) -> Result<bool, &'static str> {
        let mut spent = 0;
        while spent < TURN {
            let (n, done) = self.scanner.advance(&self.held[self.measured..]).map_err(|_| "a malformed frame")?;
            self.measured += n;
            if !done {
                self.keep_rest(audience);
                return Ok(false);
            }
            let frame = &self.held[self.at..self.measured];
            self.at = self.measured;
            if !std::mem::take(&mut self.skipping) {
                spent += frame.len() + audience.frame(frame)?;
            }
        }
        Ok(true)
    }

    fn keep_rest(&mut self, audience: &impl Audience) {
        if !self.skipping && self.held.len() - self.at > audience.limit() {
            self.skipping = true;
            let end = self.held.len().min(self.at + HEAD);
            audience.too_large(&self.held[self.at..end]);
        }
        let from = if self.skipping { self.measured } else { self.at };
        if from == self.held.len() && self.held.capacity() > READ {
            self.held = Vec::new();
        } else {
            self.held.drain(..from);
        }
        self.measured -= from;
        self.at = 0;
    }
}
