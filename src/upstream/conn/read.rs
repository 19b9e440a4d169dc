//! The reading side of an upstream connection: pairs replies with those who wait for them, and writes to their sockets.

use std::{future::poll_fn, rc::Rc, sync::atomic::Ordering, task::Poll, time::Duration};

use tokio::time::Instant;

use super::{Conn, NEVER, Owed, Waiter, What};
use crate::{
    downstream::{Downstream, HIGH_WATER},
    error::UpstreamError,
    metrics::{ErrorKind, TenantCells, access},
    net::ReadHalf,
    resp::{Proto, reply::Scanner},
    rewrite::reply::{Failure, own_error},
};

/// An error line longer than this is passed as it comes.
const ERROR_LINE: usize = 8 * 1024;
/// A client that catches up within this is not slow.
const CATCH_UP: Duration = Duration::from_millis(5);
/// How long slow clients may keep those waiting whose requests are behind theirs, all together, beyond [`PACE`].
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// A client that reads at least this many bytes per millisecond is not slow.
const PACE: u64 = 64 * 1024;
/// How often it is looked whether others wait.
const SLICE: Duration = Duration::from_millis(50);

/// Where the reader stands in the reply at hand.
#[derive(Debug, Default)]
pub(super) struct Reading {
    scanner: Scanner,
    /// The scanner is in a push frame, which answers nobody.
    push: bool,
    /// What the last error was, until it has been noted.
    failed: Option<ErrorKind>,
    /// Commands that the upstream's ACL refused.
    refusals: u64,
    /// Whose reply was there in part at the end of the last turn.
    pub(super) midway: Option<Rc<Downstream>>,
    /// The reply at hand has begun; where its first byte stands in its client's output.
    pub(super) begun: Option<u64>,
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

impl Conn {
    pub(super) async fn read_on(self: Rc<Self>, mut read: ReadHalf) {
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
                self.env.cells.bytes_in.add(n as u64);
                let mut replies = 0;
                let used = match self.deliver(buf, &mut written, &mut replies) {
                    Ok(used) => used,
                    Err(error) => return Poll::Ready(Err(error.to_owned())),
                };
                self.window.read(n, replies);
                self.wake_waiting_for_room();
                self.note_midway();
                rest.clear();
                rest.extend_from_slice(&buf[used..]);
                if rest.len() > scratch.len() / 2 {
                    return Poll::Ready(Err("a header line without an end".to_owned()));
                }
                Poll::Ready(Ok(()))
            })
            .await;
            let mut gone = false;
            for client in written.drain(..) {
                client.flush();
                gone |= client.gone();
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
            // Replies to nobody but clients that have left: the upstream need not send them, nor keep them.
            if gone && self.waiters.borrow().iter().all(Waiter::deserted) && !self.idle() {
                tracing::debug!("nobody waits on this upstream connection any more: closed");
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

    /// A client that has part of a reply gets its messages behind the rest of it.
    fn note_midway(&self) {
        let mut reading = self.reading.borrow_mut();
        if reading.begun.is_none() && reading.midway.is_none() {
            return;
        }
        let begun = reading.begun.is_some();
        let now = if begun { self.waiters.borrow().front().and_then(|w| w.client.clone()) } else { None };
        let before = std::mem::replace(&mut reading.midway, now);
        let same = |a: &Rc<Downstream>| reading.midway.as_ref().is_some_and(|b| Rc::ptr_eq(a, b));
        if let Some(before) = before.filter(|before| !same(before)) {
            before.set_midway(false);
        }
        if let Some(client) = &reading.midway {
            client.set_midway(true);
        }
    }

    /// Lets a client that is behind catch up before more is read for it: a large reply passes in little memory.
    ///
    /// New requests of others take another connection from then on. Those that are behind this reply already wait with it, so a client that
    /// reads slower than [`PACE`] is not waited for beyond [`PATIENCE`] on their behalf: its output grows to its limit instead. With nobody
    /// behind it, it has all the time it takes.
    async fn wait_for(&self, client: &Rc<Downstream>) {
        let others = || {
            let other = |c: &Rc<Downstream>| !Rc::ptr_eq(c, client);
            self.waiters.borrow().iter().any(|w| w.client.as_ref().is_some_and(other))
                || self.room.borrow().iter().any(|(c, _)| other(c))
        };
        if self.patience.get().is_zero() && others() {
            return;
        }
        self.paused.set(true);
        let drained = |deadline| tokio::time::timeout_at(deadline, poll_fn(|cx| client.poll_drained(cx)));
        if drained(Instant::now() + CATCH_UP).await.is_err() {
            // A connection on which keys are tracked is its session's alone, and must stay.
            if self.tracker.borrow().is_none() {
                self.retire();
            }
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

    /// Hands the replies in `buf` to those who wait for them, and counts them in `replies`: the bytes used.
    fn deliver(&self, buf: &[u8], written: &mut Vec<Rc<Downstream>>, replies: &mut u32) -> Result<usize, &'static str> {
        let mut reading = self.reading.borrow_mut();
        let reading = &mut *reading;
        let mut waiters = self.waiters.borrow_mut();
        let mut at = 0;
        loop {
            // A push stands between two replies and answers nobody.
            if reading.push || (reading.begun.is_none() && buf.get(at) == Some(&b'>') && self.key.proto == Proto::Resp3)
            {
                let (n, done) = reading.scanner.advance(&buf[at..]).map_err(|_| MALFORMED)?;
                if let Some(tracker) = &*self.tracker.borrow() {
                    tracker.take(&buf[at..at + n], done, written).inspect_err(|_| {
                        self.env.meter.cells.withheld.add(1);
                    })?;
                }
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
                Owed::Raw | Owed::Dropped | Owed::Unheard(_) => {
                    if matches!(waiter.owed, Owed::Unheard(_))
                        && at < buf.len()
                        && let Owed::Unheard(flight) = std::mem::replace(&mut waiter.owed, Owed::Dropped)
                    {
                        flight.land();
                    }
                    let client = waiter.client.as_ref().filter(|_| matches!(waiter.owed, Owed::Raw));
                    let passed = raw(buf, at, reading, waiter.count, client, &self.cells, written);
                    at = passed.at;
                    waiter.count -= passed.done;
                    *replies += passed.done;
                    settle(waiter.client.as_ref(), passed.done);
                    self.note(waiter, passed.done, reading.failed.take());
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
                Owed::Fetch(fetch) => {
                    let passed = raw(buf, at, reading, 1, waiter.client.as_ref(), &self.cells, written);
                    let bytes = &buf[at..passed.at];
                    fetch.pass(bytes);
                    at = passed.at;
                    *replies += passed.done;
                    settle(waiter.client.as_ref(), passed.done);
                    if passed.malformed {
                        return Err(MALFORMED);
                    }
                    if passed.done == 0 && reading.begun.is_none() && buf.get(at) == Some(&b'>') {
                        if self.key.proto == Proto::Resp3 {
                            continue;
                        }
                        return Err(MALFORMED);
                    }
                    if passed.done > 0
                        && let Owed::Fetch(fetch) = std::mem::replace(&mut waiter.owed, Owed::Dropped)
                    {
                        match bytes.strip_suffix(b"\r\n").and_then(own_error) {
                            Some(own) => fetch.failed(&own),
                            None => fetch.done(),
                        }
                    }
                    self.note(waiter, passed.done, reading.failed.take());
                    passed.done > 0
                }
                Owed::Number | Owed::Integer(_) => match memchr::memchr(b'\n', &buf[at..]) {
                    Some(end) => {
                        let line = buf[at..at + end].trim_ascii();
                        let number: Option<i64> =
                            line.strip_prefix(b":").and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
                        if number.is_none() && !line.starts_with(b"-") {
                            return Err(MALFORMED);
                        }
                        match &waiter.owed {
                            Owed::Integer(into) => into.set(number.unwrap_or_else(|| into.get())),
                            _ => self
                                .number
                                .store(number.and_then(|n| n.try_into().ok()).unwrap_or(0), Ordering::Relaxed),
                        }
                        at += end + 1;
                        *replies += 1;
                        true
                    }
                    None if buf.len() - at < ERROR_LINE => false,
                    None => return Err(MALFORMED),
                },
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
                        if reading.begun.is_none() && buf[at] == b'-' {
                            let kind = ErrorKind::of(&buf[at + 1..]);
                            self.cells.error(kind, 1);
                            reading.failed = Some(kind);
                        }
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
                                self.env.meter.cells.withheld.add(1);
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
                *replies += 1;
                self.note(waiter, 1, reading.failed.take());
            }
            waiters.pop_front();
            self.written.one_less();
        }
    }

    /// Takes note of how long `times` of a waiter's replies took.
    fn note(&self, waiter: &Waiter, times: u32, failed: Option<ErrorKind>) {
        if waiter.since == NEVER || waiter.what == What::NOTHING || times == 0 {
            return;
        }
        let now = self.env.clock.micros();
        let micros = now.saturating_sub(waiter.sent);
        let written = self.written.front().unwrap_or(waiter.sent).clamp(waiter.sent, now.max(waiter.sent));
        let replies = u64::from(times);
        self.cells.answered(waiter.what.row, micros, replies);
        self.env.cells.queue.add(written - waiter.sent, replies);
        self.env.cells.latency.add(now.saturating_sub(written), replies);
        if self.env.meter.samples(times)
            && let Some(client) = &waiter.client
        {
            access::write(&self.cells, client.peer(), waiter.what.row, waiter.what.argc as usize, micros, failed);
        }
        let took = Duration::from_micros(micros);
        if self.env.slowlog.is_slow(took) {
            (0..times).for_each(|_| self.env.slowlog.push(self.key.tenant, took, waiter.what.row, waiter.what.argc));
        }
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
    cells: &TenantCells,
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
                        if client.is_some() {
                            let kind = ErrorKind::of(&line[1..end]);
                            cells.error(kind, 1);
                            reading.failed = Some(kind);
                        }
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
