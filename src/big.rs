//! Requests too large to be held: their arguments are rewritten and sent on as they arrive, so that a value of 512 MiB passes in little
//! memory. They travel on a dedicated connection, where a client that sends slowly keeps nobody waiting.
//!
//! ```text
//!   *3 $3 SET $1 k $536870912 xxxxxx…
//!   └── held, rewritten ──┘   └── passed chunk by chunk, as fast as the upstream takes it
//! ```
//!
//! Only commands whose names stand at places known before the arguments arrive can be sent so (`command::fixed_slot`). Others are held up
//! to [`MAX_HELD`]. A request that is refused is read to its end without being kept: the connection stays in sync.

use std::rc::Rc;

use tokio::time::{Duration, Instant};

use crate::{
    command::{self, Args, Class, Lookup, Row, Span},
    error::UpstreamError,
    proxy,
    resp::{
        self,
        request::{self, Broken, Header, Limits, MAX_BULK, Progress},
    },
    session::{Flow, Session, Until},
    transaction,
    upstream::{Conn, Owed},
};

/// Most bytes held of a request whose names can only be found when all of it is there.
const MAX_HELD: usize = 16 * 1024 * 1024;
/// A client that sends nothing for this long in the middle of a large request is disconnected: it holds an upstream connection.
const STALLED: Duration = Duration::from_secs(60);

/// Where the arguments go.
enum Sink {
    Upstream {
        conn: Rc<Conn>,
        row: &'static Row,
    },
    /// Nowhere; afterwards this is answered.
    Refused(String),
}

/// Takes the request at the start of what is held: `false` when the connection must end.
pub async fn pass(s: &mut Session) -> bool {
    if !s.wait(Until::Drained).await {
        return false;
    }
    // A paused tenant's large requests wait whole commands at a time, like its small ones; which kind this is, is not known yet.
    if let Some(until) = s.tenant.pause.holds(true)
        && !s.wait(Until::Unpaused(until, true)).await
    {
        return false;
    }
    let (held, spans, progress) = s.take_partial();
    let sink = match choose(s, &held, &spans, &progress) {
        Choice::Sink(sink) => sink,
        Choice::Hold => return hold(s, held, spans, progress).await,
    };
    let argc = progress.argc as usize;
    let mut request = Request { argc, prefix: Rc::clone(&s.prefix), at: 0, numkeys: None, digits: Vec::new(), sink };
    if let Some((conn, _)) = request.upstream() {
        conn.send(|out| resp::put_header(out, b'*', argc as u64));
    }
    let args = Args::new(&held, &spans);
    let mut passed = args.iter().try_for_each(|arg| request.whole(arg)).map_err(Some).map(|()| Vec::new());
    if passed.is_ok() {
        passed = request.run(s, held[progress.pos..].to_vec(), progress.bulk).await;
    }
    match passed {
        Ok(rest) => {
            s.give_back(rest);
            finish(s, request.sink).await
        }
        Err(None) => {
            abandon(s);
            false
        }
        Err(Some(text)) => {
            abandon(s);
            s.down.append(|out| resp::put_error(out, format!("ERR Protocol error: {text}").as_bytes()));
            s.down.flush();
            false
        }
    }
}

/// Half a request has gone out on the dedicated connection: it is of no more use.
fn abandon(s: &mut Session) {
    if let Some(own) = s.own.take() {
        own.taint();
        s.worker.pool.release(own);
    }
}

enum Choice {
    Sink(Sink),
    Hold,
}

fn choose(s: &mut Session, held: &[u8], spans: &[Span], progress: &Progress) -> Choice {
    transaction::notice_lost(s);
    proxy::settle_select(s);
    let argc = progress.argc as usize;
    let refused = |text: String| Choice::Sink(Sink::Refused(text));
    if spans.is_empty() {
        // The command word itself is too long for any command; what there is of it is quoted.
        let word = &held[progress.pos..];
        return refused(command::unknown_command_error(&Args::new(
            word,
            &[(0, u32::try_from(word.len()).unwrap_or_default())],
        )));
    }
    let args = Args::new(held, spans);
    let row = match command::lookup(&args) {
        // The subcommand may not have arrived.
        Lookup::Found(row) if row.is_container() && argc > 1 => return Choice::Hold,
        Lookup::Found(row) => row,
        Lookup::Unknown => return refused(command::unknown_command_error(&args)),
        Lookup::UnknownSubcommand(c) => return refused(c.unknown_subcommand_error(args.at(1))),
    };
    if !row.arity_ok(argc) {
        return refused(row.arity_error());
    }
    if !row.served() || matches!(row.class, Class::Denied | Class::Script) {
        return refused(format!(
            "NOPERM User {} has no permissions to run the '{}' command",
            s.tenant.name,
            row.lower_name()
        ));
    }
    if matches!(row.class, Class::Scoped | Class::Local)
        || command::fixed_slot(row, 0, argc, None).is_none()
        || row.reply.nogroup
    {
        return Choice::Hold;
    }
    // What the path would do before it forwards; inside a transaction the connection is dedicated already.
    if row.class == Class::Keyless || command::is_blocking(row, &args) {
        return Choice::Hold;
    }
    if let command::Keys::Range { first, step, .. } = row.keys
        && step > 1
        && !(argc - usize::from(first)).is_multiple_of(step.into())
    {
        return refused(row.arity_error());
    }
    if s.tx.as_ref().is_some_and(|tx| tx.broken) {
        return refused(UpstreamError::Lost.to_line());
    }
    if let Err(error) = s.pin() {
        return refused(error.to_line());
    }
    match &s.own {
        Some(conn) => Choice::Sink(Sink::Upstream { conn: Rc::clone(conn), row }),
        None => Choice::Hold,
    }
}

/// Reads on until the request is whole, then lets the ordinary path have it.
async fn hold(s: &mut Session, mut held: Vec<u8>, mut spans: Vec<Span>, mut progress: Progress) -> bool {
    loop {
        match request::parse(&held, &mut spans, &mut progress, &Limits::FULL) {
            request::Parsed::Incomplete
                if held.len() <= MAX_HELD && progress.bulk.is_none_or(|len| len <= MAX_HELD as u64) =>
            {
                if !s.read_more(&mut held, Instant::now() + STALLED).await {
                    return false;
                }
            }
            request::Parsed::Incomplete => {
                let text = format!("ERR Protocol error: a request of this kind may have {MAX_HELD} bytes at the most");
                s.down.append(|out| resp::put_error(out, text.as_bytes()));
                s.down.flush();
                return false;
            }
            request::Parsed::Command(n) => {
                loop {
                    let ahead = &held[n..];
                    let alive = match proxy::dispatch(s, &held[..n], &spans, ahead) {
                        Flow::Next => break,
                        Flow::Again(until) => {
                            if !s.wait(until).await {
                                return false;
                            }
                            continue;
                        }
                        Flow::After(until) => s.wait(until).await,
                        Flow::Run(job) => crate::scoped::run(s, job).await,
                        Flow::Quit => false,
                    };
                    if !alive {
                        return false;
                    }
                    break;
                }
                s.down.flush();
                held.drain(..n);
                s.give_back(held);
                return true;
            }
            // Errors in the stream are told by the ordinary path, which meets them again.
            _ => {
                s.give_back(held);
                return true;
            }
        }
    }
}

async fn finish(s: &mut Session, sink: Sink) -> bool {
    match sink {
        Sink::Refused(text) => {
            s.refuse(text);
            s.down.flush();
            true
        }
        Sink::Upstream { conn, row } if conn.dead() => {
            tracing::debug!(command = row.name, "upstream connection lost in the middle of a request");
            s.refuse(UpstreamError::Lost.to_line());
            s.down.flush();
            true
        }
        Sink::Upstream { conn, row } => {
            let owed = match (s.tx.is_some(), s.muted()) {
                (_, true) => Owed::Dropped,
                (true, false) => Owed::Raw,
                (false, false) => proxy::owed(s, row, &Args::new(&[], &[])),
            };
            conn.expect(&s.down, owed, false);
            if s.tx.is_some() {
                let rule = proxy::rule(s, row, &Args::new(&[], &[]));
                transaction::queued(s, rule);
            }
            s.wait(Until::Drained).await
        }
    }
}

/// A request on its way.
struct Request {
    argc: usize,
    prefix: Rc<[u8]>,
    /// Arguments sent.
    at: usize,
    /// The count of keys, once it has gone by.
    numkeys: Option<u64>,
    /// The count's digits as they arrive.
    digits: Vec<u8>,
    sink: Sink,
}

/// Where in a request the next byte belongs.
enum Place {
    Header,
    Body { left: u64 },
    Crlf,
}

impl Request {
    fn upstream(&self) -> Option<(&Conn, &'static Row)> {
        match &self.sink {
            Sink::Upstream { conn, row } if !conn.dead() => Some((conn, row)),
            _ => None,
        }
    }

    /// An argument that is there.
    fn whole(&mut self, arg: &[u8]) -> Result<(), String> {
        self.header(arg.len() as u64)?;
        self.body(arg);
        self.end();
        Ok(())
    }

    /// The length line of the argument at hand, and the prefix if it is a name.
    fn header(&mut self, len: u64) -> Result<(), String> {
        self.digits.clear();
        let Some((conn, row)) = self.upstream() else { return Ok(()) };
        let name = command::fixed_slot(row, self.at, self.argc, self.numkeys) == Some(true);
        let prefix: &[u8] = if name { &self.prefix } else { &[] };
        let total = len + prefix.len() as u64;
        if total > MAX_BULK {
            return Err("invalid bulk length".into());
        }
        conn.send(|out| {
            resp::put_header(out, b'$', total);
            out.extend_from_slice(prefix);
        });
        Ok(())
    }

    fn body(&mut self, bytes: &[u8]) {
        let Some((conn, row)) = self.upstream() else { return };
        conn.send(|out| out.extend_from_slice(bytes));
        // A count has at most 20 digits; one that is longer is none.
        if command::numkeys_at(row).map(usize::from) == Some(self.at) && self.digits.len() <= 20 {
            self.digits.extend_from_slice(&bytes[..bytes.len().min(21)]);
        }
    }

    fn end(&mut self) {
        if let Some((conn, row)) = self.upstream() {
            conn.send(|out| out.extend_from_slice(b"\r\n"));
            if command::numkeys_at(row).map(usize::from) == Some(self.at) {
                self.numkeys = command::parse_numkeys(&self.digits);
            }
        }
        self.at += 1;
    }

    /// Passes the rest, `buf` being what has been read of it: what was read behind the request. `bulk`: the argument at hand has this
    /// length and its body begins at `buf[0]`.
    ///
    /// # Errors
    /// The text of a protocol error, or `None` when the client stalled or left.
    async fn run(&mut self, s: &mut Session, mut buf: Vec<u8>, bulk: Option<u64>) -> Result<Vec<u8>, Option<String>> {
        let mut place = Place::Header;
        if let Some(len) = bulk {
            self.header(len)?;
            place = Place::Body { left: len };
        }
        loop {
            let mut at = 0;
            loop {
                place = match place {
                    Place::Header if self.at == self.argc => return Ok(buf.split_off(at)),
                    Place::Header => match request::bulk_header(&buf, at, &Limits::FULL) {
                        Header::Bulk(len, next) => {
                            self.header(len)?;
                            at = next;
                            Place::Body { left: len }
                        }
                        Header::Incomplete => break,
                        Header::Broken(Broken::Protocol(text)) => return Err(Some(text)),
                        Header::Broken(Broken::Foreign) => return Err(None),
                    },
                    Place::Body { left: 0 } => Place::Crlf,
                    Place::Body { left } => {
                        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len() - at);
                        if n == 0 {
                            break;
                        }
                        self.body(&buf[at..at + n]);
                        at += n;
                        Place::Body { left: left - n as u64 }
                    }
                    Place::Crlf => match buf.get(at..at + 2) {
                        Some(b"\r\n") => {
                            at += 2;
                            self.end();
                            Place::Header
                        }
                        Some(_) => return Err(Some(request::NO_CRLF.into())),
                        None => break,
                    },
                };
            }
            buf.drain(..at);
            if let Sink::Upstream { conn, .. } = &self.sink
                && conn.congested()
            {
                let room = Until::Room(Rc::clone(conn));
                let limit = s.worker.shared.target.socket_timeout;
                match tokio::time::timeout(limit, s.wait(room)).await {
                    Ok(true) => {}
                    Ok(false) => return Err(None),
                    Err(_) => conn.fail(&UpstreamError::TimedOut(limit)),
                }
            }
            if !s.read_more(&mut buf, Instant::now() + STALLED).await {
                return Err(None);
            }
        }
    }
}
