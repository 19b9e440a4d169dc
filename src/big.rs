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

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::{Duration, Instant};

use crate::{
    command::{self, Args, Class, ConnNeed, Lookup, Row, Span},
    error::UpstreamError,
    metrics::OTHER,
    monitor, near, proxy, pubsub,
    resp::{
        self,
        request::{self, Broken, Header, Limits, MAX_BULK, Progress},
    },
    session::{Flow, HELD, Session, Until},
    tenant::Tenant,
    transaction,
    upstream::{Conn, Owed, What},
};

/// Most bytes held of a request whose names can only be found when all of it is there.
const MAX_HELD: usize = 16 * 1024 * 1024;
/// A client must send [`PACE`] bytes of a large request within this, again and again, or is disconnected: it holds an upstream connection.
const STALLED: Duration = Duration::from_secs(15);
const PACE: usize = 64 * 1024;
/// Most names of a large request that are remembered, for the tier to forget what it knows of them.
const NAMES: usize = 64;
/// Most bytes that all large requests of one tenant may have declared at once: an upstream makes room for what is declared.
const DECLARED: u64 = 2 * MAX_BULK;

/// Where the arguments go.
enum Sink {
    Upstream {
        conn: Rc<Conn>,
        row: &'static Row,
    },
    /// Nowhere; afterwards this is answered.
    Refused(Vec<u8>),
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
    s.begin_command();
    s.at_hand = OTHER;
    let (held, spans, progress) = s.take_partial();
    let sink = match choose(s, &held, &spans, &progress) {
        Choice::Sink(sink) => sink,
        Choice::Hold => return hold(s, held, spans, progress).await,
    };
    let argc = progress.argc as usize;
    let mut request = Request {
        argc,
        tenant: Arc::clone(&s.tenant),
        prefix: Rc::clone(&s.prefix),
        reserved: Cell::new(0),
        at: 0,
        numkeys: None,
        digits: Vec::new(),
        names: Some(Vec::new()),
        sink,
    };
    if let Some((conn, _)) = request.upstream() {
        conn.send(|out| resp::put_header(out, b'*', argc as u64));
    }
    let args = Args::new(&held, &spans);
    // What PUBLISH answers depends on its channel.
    let publishes = matches!(&request.sink, Sink::Upstream { row, .. } if pubsub::is_one(row));
    let channel = (publishes && args.len() > 1).then(|| args.at(1).to_vec());
    if let Sink::Upstream { row, .. } = &request.sink {
        s.at_hand = row.index;
    }
    let mut passed = args.iter().try_for_each(|arg| request.whole(arg)).map_err(Some).map(|()| Vec::new());
    if passed.is_ok() {
        passed = request.run(s, held[progress.pos..].to_vec(), progress.bulk).await;
    }
    match passed {
        Ok(rest) => {
            s.give_back(rest);
            let sink = std::mem::replace(&mut request.sink, Sink::Refused(Vec::new()));
            let names = request.names.take();
            drop(request);
            finish(s, sink, channel.as_deref().unwrap_or_default(), names).await
        }
        Err(None) => {
            abandon(s);
            false
        }
        Err(Some(text)) => {
            abandon(s);
            s.last_word = Some([b"ERR Protocol error: ", &text[..]].concat());
            false
        }
    }
}

/// Half a request has gone out on the dedicated connection: it is of no more use.
fn abandon(s: &mut Session) {
    if let Some(own) = s.own.take() {
        own.taint();
        s.reach.pool.release(own);
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
    let most = s.tenant.limits.value_size.load(Ordering::Relaxed);
    fn refused(text: impl Into<Vec<u8>>) -> Choice {
        Choice::Sink(Sink::Refused(text.into()))
    }
    if spans.is_empty() {
        // The command word itself is too long for any command; what there is of it is quoted.
        let word = &held[progress.pos..];
        return refused(command::unknown_command_error(&Args::new(
            word,
            &[(0, u32::try_from(word.len()).unwrap_or_default())],
        )));
    }
    let args = Args::new(held, spans);
    if let Some(len) = spans.iter().map(|(_, len)| u64::from(*len)).chain(progress.bulk).find(|len| *len > most) {
        return refused(proxy::too_large(&s.tenant, len));
    }
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
    if !s.logged_in {
        return refused(proxy::NO_AUTH);
    }
    if !s.tenant.permitted.has(row) || row.class == Class::Denied {
        return refused(format!(
            "NOPERM User {} has no permissions to run the '{}' command",
            s.tenant.name,
            row.lower_name()
        ));
    }
    if matches!(row.class, Class::Scoped | Class::Local | Class::Script)
        || command::fixed_slot(row, 0, argc, None).is_none()
        || row.reply.nogroup
    {
        return Choice::Hold;
    }
    if !proxy::may_restore(s, row) {
        return refused(proxy::NO_RESTORE);
    }
    // Rates are charged with what the client says it will send.
    let declared = held.len() + progress.bulk.and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
    if let Some(error) = proxy::over_limit(s, row, spans, declared) {
        return refused(error);
    }
    // What changes a session's state, or waits, takes the ordinary path, and so does what has to be seen whole to be refused.
    if row.class == Class::Keyless
        || (s.sub.is_some() || s.tenant.subscriptions.behind() || args.len() < 2) && pubsub::is_one(row)
        || row.conn != ConnNeed::Any
        || proxy::needs_other_user(s, row)
        || command::keys::refused_by_value(row)
    {
        return Choice::Hold;
    }
    if !s.facts(|f| f.has(row)) {
        return refused(command::unknown_command_error(&args));
    }
    if let Err(error) = pubsub::may_publish(s, row, &args) {
        return refused(error);
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
    if s.own.is_some() && !transaction::reserve(s, declared) {
        return refused(transaction::TOO_LARGE);
    }
    if s.tenant.watchers.any() {
        monitor::show(s, row, &args, argc);
    }
    match &s.own {
        Some(own) => Choice::Sink(Sink::Upstream { conn: Rc::clone(own), row }),
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
                s.last_word = Some(text.into_bytes());
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
                        Flow::Login(attempt) => crate::login::run(s, attempt).await,
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

async fn finish(s: &mut Session, sink: Sink, channel: &[u8], names: Option<Vec<Vec<u8>>>) -> bool {
    let len = u32::try_from(channel.len()).unwrap_or_default();
    let spans = [(0, 0), (0, len)];
    // No more than that of the arguments is there, and only if there is a channel among them.
    let args = if channel.is_empty() { Args::new(&[], &[]) } else { Args::new(channel, &spans) };
    match sink {
        Sink::Refused(text) => {
            s.refuse(text);
            s.end_command();
            s.down.flush();
            true
        }
        Sink::Upstream { conn, row } if conn.dead() => {
            tracing::debug!(command = row.name, "upstream connection lost in the middle of a request");
            s.refuse(UpstreamError::Lost.to_line());
            s.end_command();
            s.down.flush();
            true
        }
        Sink::Upstream { conn, row } => {
            let owed = match (s.tx.is_some(), s.muted()) {
                (_, true) => Owed::Dropped,
                (true, false) => Owed::Raw,
                (false, false) => proxy::owed(s, row, &args),
            };
            conn.expect(&s.down, owed, false, What::NOTHING);
            if row.changes {
                if s.tx.is_some() {
                    transaction::touch_all(s);
                } else if let Some(guard) = near::large(s, names) {
                    conn.guard(guard);
                }
            }
            if s.tx.is_some() {
                let rule = proxy::rule(s, row, &args);
                transaction::queued(s, rule);
            }
            s.end_command();
            s.wait(Until::Drained).await
        }
    }
}

/// A request on its way.
struct Request {
    argc: usize,
    tenant: Arc<Tenant>,
    prefix: Rc<[u8]>,
    /// Of [`DECLARED`].
    reserved: Cell<u64>,
    /// Arguments sent.
    at: usize,
    /// The count of keys, once it has gone by.
    numkeys: Option<u64>,
    /// The count's digits as they arrive.
    digits: Vec<u8>,
    /// The names that went by, as the upstream has them; none when they are more than a few.
    names: Option<Vec<Vec<u8>>>,
    sink: Sink,
}

impl Drop for Request {
    fn drop(&mut self) {
        self.tenant.large.fetch_sub(self.reserved.get(), Ordering::Relaxed);
    }
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
    fn whole(&mut self, arg: &[u8]) -> Result<(), Vec<u8>> {
        self.header(arg.len() as u64)?;
        self.body(arg);
        self.end();
        Ok(())
    }

    /// The length line of the argument at hand, and the prefix if it is a name.
    fn header(&mut self, len: u64) -> Result<(), Vec<u8>> {
        self.digits.clear();
        let Some((conn, row)) = self.upstream() else { return Ok(()) };
        let name = command::fixed_slot(row, self.at, self.argc, self.numkeys) == Some(true);
        let prefix: &[u8] = if name { &self.prefix } else { &[] };
        let total = len + prefix.len() as u64;
        if len > self.tenant.limits.value_size.load(Ordering::Relaxed) {
            // Half of the request is upstream already, on a connection that is of no more use.
            conn.close();
            self.sink = Sink::Refused(proxy::too_large(&self.tenant, len).into_bytes());
            return Ok(());
        }
        if len > HELD as u64 {
            let declared = self.tenant.large.fetch_add(len, Ordering::Relaxed) + len;
            let over = declared > DECLARED;
            if over {
                conn.close();
            }
            self.reserved.set(self.reserved.get() + len);
            if over {
                let name = &self.tenant.name;
                self.sink = Sink::Refused(
                    format!("BUSY tenant '{name}' is sending {DECLARED} bytes of large requests already").into_bytes(),
                );
                return Ok(());
            }
        }
        if total > MAX_BULK {
            return Err("invalid bulk length".into());
        }
        conn.send(|out| {
            resp::put_header(out, b'$', total);
            out.extend_from_slice(prefix);
        });
        if name {
            let begun = prefix.to_vec();
            self.names = self.names.take().filter(|names| names.len() < NAMES && len <= HELD as u64);
            if let Some(names) = &mut self.names {
                names.push(begun);
            }
        }
        Ok(())
    }

    /// Counts an argument towards what the open transaction holds, if there is one: past its bound the transaction is given up.
    fn queue(&mut self, s: &mut Session, len: u64) {
        let fits = transaction::reserve(s, usize::try_from(len).unwrap_or(usize::MAX));
        if let Some((conn, _)) = self.upstream()
            && !fits
        {
            conn.close();
            self.sink = Sink::Refused(transaction::TOO_LARGE.into());
        }
    }

    fn body(&mut self, bytes: &[u8]) {
        let Some((conn, row)) = self.upstream() else { return };
        conn.send(|out| out.extend_from_slice(bytes));
        let name = command::fixed_slot(row, self.at, self.argc, self.numkeys) == Some(true);
        if name && let Some(name) = self.names.as_mut().and_then(|names| names.last_mut()) {
            name.extend_from_slice(bytes);
        }
        let Some((_, row)) = self.upstream() else { return };
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
    async fn run(&mut self, s: &mut Session, mut buf: Vec<u8>, bulk: Option<u64>) -> Result<Vec<u8>, Option<Vec<u8>>> {
        // It holds an upstream connection, so it has to keep moving.
        let (mut owed, mut deadline) = (PACE, Instant::now() + STALLED);
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
                            self.queue(s, len);
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
                let limit = s.reach.site.target.socket_timeout;
                match tokio::time::timeout(limit, s.wait(room)).await {
                    Ok(true) => {}
                    Ok(false) => return Err(None),
                    Err(_) => conn.fail(&UpstreamError::TimedOut(limit)),
                }
            }
            let before = buf.len();
            if !s.read_more(&mut buf, deadline).await {
                return Err(None);
            }
            owed = owed.saturating_sub(buf.len() - before);
            if owed == 0 {
                (owed, deadline) = (PACE, Instant::now() + STALLED);
            }
        }
    }
}
