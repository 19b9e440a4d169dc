//! Waiting: when a session must, for what, and what it looks after meanwhile. Every wait also goes on writing to a client whose socket was full, and
//! ends when the session is told to end.

use std::{
    future::poll_fn,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{READ, Session, TURN};
use crate::{error::UpstreamError, resp, scoped, tier::Flight, upstream::Conn};

/// Bytes read ahead from a client that waits in a blocking command, to see whether it has left.
const READ_AHEAD: usize = 1024 * 1024;
/// The same before login: no more than a request of such a client may have.
const BEFORE_LOGIN: usize = 16 * 1024;
/// How often a client with that much read ahead is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Bytes of answers made here that may wait behind a client's requests to the upstream.
const WAITING: usize = 256 * 1024;
/// How long a client that takes nothing has to take its last replies, or to see an error before the close.
pub(super) const LINGER: Duration = Duration::from_secs(2);

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
    /// A read that another sent, at most until this moment.
    Flight(Arc<Flight>, Instant),
    /// The outcome of a login; ends early when the client leaves.
    Proven,
    /// The reply of a blocking command, at most until this moment; ends early when the client leaves.
    Reply(Option<Instant>),
}

impl Session {
    /// Whether no more may be sent for this client just now.
    pub(super) fn hold_back(&self) -> Option<Until> {
        let most = self.tenant.limits.in_flight.load(Ordering::Relaxed);
        if self.down.in_flight() >= most {
            return Some(Until::InFlight(most / 2));
        }
        if let Some(conn) = self.own.as_ref().or(self.lane.as_ref())
            && !conn.dead()
        {
            if conn.retired() && self.own.is_none() {
                // The next request goes on another one, but not before this one owes nothing.
                if self.down.in_flight() > 0 {
                    return Some(Until::Drained);
                }
            } else if conn.congested() {
                return Some(Until::Room(Rc::clone(conn)));
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
            Until::Unpaused(at, _) | Until::Moment(at) | Until::Flight(_, at) | Until::Reply(Some(at)) => {
                Some(Box::pin(sleep_until(*at)))
            }
            _ => None,
        };
        if matches!(until, Until::InFlight(_) | Until::Room(_) | Until::Unsent(_)) {
            self.worker.meter.cells.held_back.add(1);
        }
        let blocking = matches!(until, Until::Reply(_));
        let may_leave = blocking || matches!(until, Until::Unpaused(..) | Until::Proven | Until::Flight(..));
        self.client.blocked.store(blocking, Ordering::Relaxed);
        let mut unblocked = false;
        let alive = poll_fn(|cx| {
            let alarm = Arc::clone(self.down.alarm());
            alarm.register(cx.waker());
            if alarm.killed() {
                return Poll::Ready(false);
            }
            self.take_posted();
            if self.down.poll_flush(cx).is_pending() {
                self.watch_full();
            }
            let done = match &until {
                Until::Drained | Until::Proven => self.few_in_flight(0),
                Until::InFlight(n) => self.few_in_flight(*n),
                Until::Room(conn) => conn.poll_room(&self.down, cx).is_ready(),
                Until::Unsent(n) => self.down.unsent() <= *n,
                Until::Turn => true,
                Until::Moment(_) => timer.as_mut().is_none_or(|t| t.as_mut().poll(cx).is_ready()),
                Until::Flight(flight, _) => {
                    flight.poll(cx).is_ready() || timer.as_mut().is_none_or(|t| t.as_mut().poll(cx).is_ready())
                }
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
            if blocking && alarm.leaving() && !std::mem::replace(&mut unblocked, true) {
                self.unblock();
            }
            if may_leave && self.poll_left(cx) {
                return Poll::Ready(false);
            }
            Poll::Pending
        })
        .await;
        if blocking {
            self.client.blocked.store(false, Ordering::Relaxed);
            self.client.wait_on(None);
        }
        if !alive && let Some(own) = &self.own {
            // A client that left must not pop what nobody receives.
            self.down.close();
            own.close();
        }
        alive
    }

    /// Has the upstream end the blocking command at hand: its client gets what it has popped, or is told that it waits no more. Cut off, it
    /// might lose what was on its way.
    fn unblock(&self) {
        let Ok(control) = self.reach.control(self.tenant.id) else { return self.down.alarm().kill() };
        let (client, db) = (Arc::clone(&self.client), self.tenant.db_base + self.db);
        tokio::task::spawn_local(async move {
            if scoped::unblock(&control, db, &client, true).await.is_err() {
                client.alarm.kill();
            }
        });
    }

    pub(super) fn few_in_flight(&self, n: u32) -> bool {
        if self.down.in_flight() <= n {
            return true;
        }
        self.down.wake_at(n);
        false
    }

    /// Whether a client that waits in a blocking command has left; what it sends meanwhile is held.
    fn poll_left(&mut self, cx: &mut std::task::Context<'_>) -> bool {
        let most = if self.logged_in { READ_AHEAD } else { BEFORE_LOGIN };
        if self.held.len() - self.held_at >= most {
            // What is read no more still tells when the client hangs up, if it is asked now and then.
            let again = self.look_again.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LOOK_AGAIN)));
            if again.as_mut().poll(cx).is_ready() {
                again.as_mut().reset(Instant::now() + LOOK_AGAIN);
                cx.waker().wake_by_ref();
            }
            return self.read.peer_closed();
        }
        while self.held.len() - self.held_at < most {
            let mut scratch = self.worker.scratch.borrow_mut();
            let room = READ.min(most - (self.held.len() - self.held_at));
            match self.read.poll_read(cx, &mut scratch[..room]) {
                Poll::Pending => return false,
                Poll::Ready(Ok(n)) if n > 0 => self.held.extend_from_slice(&scratch[..n]),
                Poll::Ready(_) => return true,
            }
        }
        false
    }

    /// Writes a last word, lets the client take what it is owed, and waits for it to close, so that no reset overtakes the last bytes.
    pub(crate) async fn finish(&mut self, last: Option<&[u8]>) {
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
                    self.cells.bytes_in.add(n as u64);
                    into.extend_from_slice(&scratch[..n]);
                    Poll::Ready(true)
                }
                Poll::Ready(_) => Poll::Ready(false),
            }
        });
        tokio::time::timeout_at(deadline, reading).await.unwrap_or(false)
    }
}
