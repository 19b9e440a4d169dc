//! MULTI, EXEC, DISCARD, WATCH and UNWATCH, with the upstream's own semantics.
//!
//! A transaction that was read whole, without WATCH, goes out on the shared connection as one contiguous block: nothing of another session
//! can come between, since a block is appended within one turn. Any other gets a dedicated connection until EXEC or DISCARD. Either way each
//! command is queued by the upstream itself, which gives the queue-time errors and the verdict of EXEC. A command refused here was never
//! queued there: EXEC then becomes DISCARD and the client is told -EXECABORT.

use std::{cell::Cell, rc::Rc, sync::atomic::Ordering};

use bytes::Bytes;

use crate::{
    clients,
    command::{self, Args, Class, Lookup, Row, Span},
    error::UpstreamError,
    local,
    near::Touched,
    proxy, pubsub,
    resp::{
        Value,
        request::{self, Limits, Parsed, Progress},
    },
    rewrite::{
        self,
        reply::{Exec, Rule, Unprefix, script::Flight},
    },
    scripts,
    session::{Flow, Session, Until},
    upstream::{Kind, Owed, What},
};

/// Most commands of a block; a longer transaction gets a connection of its own.
const BLOCK: usize = 1024;
/// Most commands queued in one transaction (isolation.md L7).
const QUEUED: usize = 1_000_000;

/// Most keys watched by one connection. The upstream looks through all of them for each that is added: 60,000 in one WATCH stop Redis 7.0 for
/// more than five seconds (isolation.md L12).
const WATCHED: u32 = 1024;
/// Most bytes queued in one transaction.
const BYTES: usize = 64 * 1024 * 1024;
/// The answer to a command beyond those bounds.
pub const TOO_LARGE: &str = "BUSY the transaction is too large";
/// Most commands in one transaction that are answered here: each answer is held until EXEC.
const LOCAL: usize = 128;

const ABORTED: &str = "EXECABORT Transaction discarded because of previous errors.";
/// What stands in the upstream's queue for a command that is answered here.
const PLACEHOLDER: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// An open transaction.
#[derive(Debug, Default)]
pub struct Tx {
    /// The whole of it was read: it is being appended to the shared connection in this turn.
    pub block: bool,
    /// A command was refused: it cannot be carried out.
    pub dirty: bool,
    /// Its upstream connection is gone.
    pub broken: bool,
    /// What EXEC's reply needs, command by command.
    rules: Vec<Rule>,
    /// Commands answered here, by position in `rules`: their arguments.
    local: Vec<(usize, Vec<Vec<u8>>)>,
    /// The last SELECT, and whether EXEC's reply says that it was carried out.
    select: Option<(Rc<Cell<bool>>, u32)>,
    /// Bytes queued.
    bytes: usize,
    /// Steps spent on finding out whom the messages in it reach.
    pub matching: usize,
    /// What was queued, as it was sent, while it may have to be queued again on another connection; see [`move_to_data`].
    replay: Vec<Vec<u8>>,
    /// Bytes in it.
    replayed: usize,
    /// What it will change of what the tier may keep.
    touched: Touched,
}

impl Tx {
    /// One that is missing afterwards makes the rest of no use.
    fn keep(&mut self, frame: Vec<u8>) {
        self.replayed += frame.len();
        if self.replayed <= REPLAY {
            self.replay.push(frame);
        } else {
            self.replay.clear();
        }
    }
}

/// Most bytes of a transaction that are kept to be queued again.
const REPLAY: usize = 256 * 1024;

/// Takes note of a dedicated connection that broke.
pub fn notice_lost(s: &mut Session) {
    if s.own.as_ref().is_some_and(|own| own.dead()) {
        s.own = None;
        match &mut s.tx {
            Some(tx) => tx.broken = true,
            None => s.watch_lost |= s.watched > 0,
        }
        s.watched = 0;
    }
}

/// The transaction's part of a command; `None` when it has none.
pub fn step(
    s: &mut Session,
    row: &'static Row,
    args: &Args<'_>,
    frame: &[u8],
    spans: &[Span],
    ahead: &[u8],
) -> Option<Flow> {
    match (row.name, s.tx.is_some()) {
        ("MULTI", false) => Some(begin(s, row, args, frame, spans, ahead)),
        ("EXEC", true) => Some(exec(s)),
        ("DISCARD", true) => Some(discard(s, row, args, frame, spans)),
        ("EXEC" | "DISCARD", false) => {
            if row.name == "EXEC" && std::mem::take(&mut s.watch_lost) {
                return Some(s.refuse(ABORTED));
            }
            let name = row.name;
            Some(s.refuse(format!("ERR {name} without MULTI")))
        }
        ("WATCH", false) => Some(watch(s, row, args, frame, spans)),
        ("UNWATCH", false) => {
            s.watch_lost = false;
            if s.watched == 0 {
                s.answer(&Value::ok());
                return Some(Flow::Next);
            }
            s.watched = 0;
            Some(pass(s, row, args, frame, spans))
        }
        // The upstream refuses these in a transaction, and knows best how.
        ("MULTI" | "WATCH", true) => Some(pass(s, row, args, frame, spans)),
        (name, true) if !matches!(name, "QUIT" | "RESET") => Some(queue(s, row, args, frame, spans)),
        _ => None,
    }
}

fn pass(s: &mut Session, row: &Row, args: &Args<'_>, frame: &[u8], spans: &[Span]) -> Flow {
    let owed = if s.muted() { Owed::Dropped } else { Owed::Raw };
    match proxy::send(s, row, args, frame, spans, owed, false) {
        Ok(()) => Flow::Next,
        Err(error) => s.refuse(error),
    }
}

fn watch(s: &mut Session, row: &Row, args: &Args<'_>, frame: &[u8], spans: &[Span]) -> Flow {
    let keys = u32::try_from(args.len() - 1).unwrap_or(WATCHED);
    if keys > WATCHED - s.watched {
        return s.refuse(format!("BUSY more than {WATCHED} keys watched by one connection"));
    }
    if s.own.is_none() {
        if s.down.in_flight() > 0 {
            return Flow::Again(Until::Drained);
        }
        if let Err(error) = s.pin() {
            return s.refuse(error.to_line());
        }
    }
    s.watched += keys;
    pass(s, row, args, frame, spans)
}

fn begin(s: &mut Session, row: &Row, args: &Args<'_>, frame: &[u8], spans: &[Span], ahead: &[u8]) -> Flow {
    let mut tx = Box::new(Tx { broken: std::mem::take(&mut s.watch_lost), ..Tx::default() });
    if tx.broken {
        // The client's EXEC must fail, but only there: that is where it looks.
        s.tx = Some(tx);
        s.answer(&Value::ok());
        return Flow::Next;
    }
    if s.own.is_none() {
        if is_whole(s, ahead) {
            tx.block = true;
        } else {
            if s.down.in_flight() > 0 {
                return Flow::Again(Until::Drained);
            }
            if let Err(error) = s.pin() {
                tx.broken = true;
                s.tx = Some(tx);
                return s.refuse(error.to_line());
            }
        }
    }
    s.client.queued.store(0, Ordering::Relaxed);
    s.tx = Some(tx);
    let owed = if s.muted() { Owed::Dropped } else { Owed::Raw };
    match proxy::send(s, row, args, frame, spans, owed, false) {
        Ok(()) => Flow::Next,
        Err(error) => {
            // Later commands must not run outside the transaction they were meant for.
            if let Some(tx) = &mut s.tx {
                tx.broken = true;
            }
            s.refuse(error)
        }
    }
}

/// Whether `ahead` holds the rest of a transaction, up to its EXEC or DISCARD, and nothing that needs a connection of its own.
fn is_whole(s: &Session, ahead: &[u8]) -> bool {
    let mut spans = Vec::new();
    let mut at = 0;
    for _ in 0..BLOCK {
        spans.clear();
        let Parsed::Command(n) = request::parse(&ahead[at..], &mut spans, &mut Progress::default(), &Limits::FULL)
        else {
            return false;
        };
        let args = Args::new(&ahead[at..], &spans);
        match command::lookup(&args) {
            Lookup::Found(row) => match row.name {
                "EXEC" | "DISCARD" => return args.len() == 1,
                "WATCH" | "SELECT" | "QUIT" | "RESET" => return false,
                _ if proxy::needs_other_user(s, row) || scripts::functions::holds_up(s, row, &args) => return false,
                _ => {}
            },
            Lookup::Unknown | Lookup::UnknownSubcommand(_) => {}
        }
        at += n;
    }
    false
}

/// An EXEC that is refused for what it says: the transaction, if there is one, is over.
pub fn abort(s: &mut Session, error: &str) -> Flow {
    let why = error.strip_prefix("ERR ").unwrap_or(error);
    let verdict = Value::error(format!("EXECABORT Transaction discarded because of: {why}"));
    if s.tx.is_none() {
        s.answer(&verdict);
        return Flow::Next;
    }
    if close(s).broken {
        s.answer(&verdict);
        return Flow::Next;
    }
    discard_with(s, &verdict)
}

/// DISCARD upstream, `verdict` to the client.
fn discard_with(s: &mut Session, verdict: &Value) -> Flow {
    let conn = match s.conn() {
        Ok(conn) if !conn.dead() => conn,
        _ => {
            s.answer(verdict);
            return Flow::Next;
        }
    };
    conn.send(|out| out.extend_from_slice(b"*1\r\n$7\r\nDISCARD\r\n"));
    let owed = if s.muted() { Owed::Dropped } else { Owed::Instead(Bytes::from(verdict.to_bytes(s.proto))) };
    conn.expect(&s.down, owed, false, What::NOTHING);
    Flow::Next
}

/// Queues a command whose answer is known already: a mistake that the server finds only when it carries the command out.
pub fn queue_answer(s: &mut Session, answer: &Value) -> Flow {
    let rule = Rule::Replace(Bytes::from(answer.to_bytes(s.proto)));
    if let Some(tx) = &mut s.tx {
        tx.keep(PLACEHOLDER.to_vec());
    }
    match send_placeholder(s, PLACEHOLDER) {
        Ok(()) => {
            queued(s, rule);
            Flow::Next
        }
        Err(error) => s.refuse(error),
    }
}

fn send_placeholder(s: &mut Session, frame: &[u8]) -> Result<(), String> {
    let owed = if s.muted() { Owed::Dropped } else { Owed::Raw };
    let conn = s.conn().map_err(|e| e.to_line())?;
    if conn.dead() || s.tx.as_ref().is_some_and(|tx| tx.broken) {
        return Err(UpstreamError::Lost.to_line());
    }
    conn.send(|out| out.extend_from_slice(frame));
    conn.expect(&s.down, owed, false, What::NOTHING);
    Ok(())
}

/// Counts `bytes` of a command that is passed on as it arrives to what is queued: `false`, and nothing counted, when that is too much.
/// Outside a transaction there is no such bound.
pub fn reserve(s: &mut Session, bytes: usize) -> bool {
    let Some(tx) = &mut s.tx else { return true };
    let room = tx.bytes.saturating_add(bytes) <= BYTES;
    if room {
        tx.bytes += bytes;
    }
    room
}

/// A command between MULTI and EXEC.
fn queue(s: &mut Session, row: &'static Row, args: &Args<'_>, frame: &[u8], spans: &[Span]) -> Flow {
    let (position, broken) = s.tx.as_ref().map_or((0, true), |tx| (tx.rules.len(), tx.broken));
    if broken {
        return s.refuse(UpstreamError::Lost.to_line());
    }
    let (bytes, local) = s.tx.as_ref().map_or((0, 0), |tx| (tx.bytes, tx.local.len()));
    if position >= QUEUED || bytes + frame.len() > BYTES || local >= LOCAL {
        return s.refuse(TOO_LARGE);
    }
    if let Some(tx) = &mut s.tx {
        tx.bytes += frame.len();
    }
    if let Err(error) = pubsub::may_publish(s, row, args) {
        return s.refuse(error);
    }
    let (rule, placeholder) = match row.class {
        Class::Keyed | Class::Keyless => (proxy::rule(s, row, args), None),
        Class::Local => match row.name {
            "SELECT" if s.muted() => return s.refuse("ERR SELECT inside a transaction needs CLIENT REPLY ON"),
            "SELECT" => match local::selected(s, args.at(1)) {
                Some(db) => {
                    let done = Rc::<Cell<bool>>::default();
                    if let Some(tx) = &mut s.tx {
                        tx.select = Some((Rc::clone(&done), db));
                    }
                    let frame = format!(
                        "*2\r\n$6\r\nSELECT\r\n${}\r\n{}\r\n",
                        (s.tenant.db_base + db).to_string().len(),
                        s.tenant.db_base + db
                    );
                    if let Some(own) = &s.own {
                        own.taint();
                    }
                    (Rule::Note(done), Some(frame.into_bytes()))
                }
                None => (
                    Rule::Replace(Bytes::from(local::select_error(args.at(1)).to_bytes(s.proto))),
                    Some(PLACEHOLDER.to_vec()),
                ),
            },
            "HELLO" | "AUTH" | "CLIENT REPLY" | "CLIENT PAUSE" | "CLIENT KILL" | "CLIENT TRACKING"
            | "CLIENT CACHING" | "CLIENT UNBLOCK" | "KEYFENCE TIER" => {
                return s.refuse("ERR Command not allowed inside a transaction");
            }
            _ => {
                if let Some(tx) = &mut s.tx {
                    tx.local.push((position, args.iter().map(<[u8]>::to_vec).collect()));
                }
                (Rule::Raw, Some(PLACEHOLDER.to_vec()))
            }
        },
        Class::Scoped => {
            return s.refuse(format!(
                "ERR {} is not allowed inside a transaction: it is carried out in steps, not at once",
                row.lower_name()
            ));
        }
        Class::Script => return scripts::queue(s, row, args),
        Class::Denied => return s.no_permission(row),
    };
    let owed = if s.muted() { Owed::Dropped } else { Owed::Raw };
    keep(s, row, frame, spans, placeholder.as_deref());
    let sent = match placeholder {
        None => proxy::send(s, row, args, frame, spans, owed, false),
        Some(frame) => send_placeholder(s, &frame),
    };
    if let Err(error) = sent {
        return s.refuse(error);
    }
    queued(s, rule);
    Flow::Next
}

/// Keeps what is about to be queued on the connection of the user who may run no scripts, as far as a transaction may still move from it.
fn keep(s: &mut Session, row: &Row, frame: &[u8], spans: &[Span], placeholder: Option<&[u8]>) {
    let sort = s.own.as_ref().is_some_and(|own| own.key.kind == Kind::Sort);
    if !sort || s.watched > 0 || scripts::barred(s).is_some() {
        return;
    }
    let mut bytes = Vec::new();
    match placeholder {
        Some(frame) => bytes.extend_from_slice(frame),
        None => {
            let mut marks = s.worker.marks.borrow_mut();
            if rewrite::request(row, frame, spans, &s.namespace(), &mut marks, &mut bytes).is_err() {
                return;
            }
        }
    }
    if let Some(tx) = &mut s.tx {
        tx.keep(bytes);
    }
}

/// An open transaction has come to a script, and is queued on the connection of the user who may run none, since it might have come to
/// something else: it is discarded there and queued again as the user who may. `None`: done.
pub fn move_to_data(s: &mut Session) -> Option<Flow> {
    const WATCHED: &str = "NOPERM a script in a transaction needs one without WATCH";
    const SELECTED: &str = "NOPERM a script in a transaction needs one without SELECT before it: select before MULTI";
    const TOO_MUCH: &str = "NOPERM a script in a transaction needs one with 256 KiB at the most before it";
    let (queued, kept) = s.tx.as_ref().map_or((0, 0), |tx| (tx.rules.len(), tx.replay.len()));
    let select = s.tx.as_ref().is_some_and(|tx| tx.select.is_some());
    for (holds, why) in [(s.watched > 0, WATCHED), (select, SELECTED), (queued != kept, TOO_MUCH)] {
        if holds {
            return Some(s.refuse(why));
        }
    }
    if s.down.in_flight() > 0 {
        return Some(Flow::Again(Until::Drained));
    }
    if let Err(error) = s.pin_data() {
        return Some(s.refuse(error.to_line()));
    }
    let (Some(own), Some(tx)) = (&s.own, &mut s.tx) else {
        return Some(s.refuse(UpstreamError::Lost.to_line()));
    };
    own.send_own(b"*1\r\n$5\r\nMULTI\r\n");
    tx.replay.drain(..).for_each(|frame| own.send_own(&frame));
    None
}

/// A command that changes these keys has been sent to be queued.
pub fn touch(s: &mut Session, row: &Row, args: &Args<'_>) {
    if !s.tenant.tier.wanted() {
        // Keys are not remembered while nobody wants them; by EXEC somebody may.
        return touch_all(s);
    }
    if let Some(mut tx) = s.tx.take() {
        tx.touched.add(s, row, args);
        s.tx = Some(tx);
    }
}

/// What was sent to be queued may change anything.
pub fn touch_all(s: &mut Session) {
    if let Some(tx) = &mut s.tx {
        tx.touched.any();
    }
}

/// One more command has been sent to be queued; EXEC's reply will need `rule` for it.
pub fn queued(s: &mut Session, rule: Rule) {
    if let Some(tx) = &mut s.tx {
        tx.rules.push(rule);
        s.client.queued.store(u32::try_from(tx.rules.len()).unwrap_or(clients::NO_MULTI - 1), Ordering::Relaxed);
    }
}

fn close(s: &mut Session) -> Box<Tx> {
    s.watched = 0;
    s.client.queued.store(clients::NO_MULTI, Ordering::Relaxed);
    s.tx.take().unwrap_or_default()
}

fn exec(s: &mut Session) -> Flow {
    let mut tx = close(s);
    if tx.broken {
        return s.refuse(ABORTED);
    }
    let conn = match s.conn() {
        Ok(conn) if !conn.dead() => conn,
        Ok(_) => return s.refuse(ABORTED),
        Err(error) => return s.refuse(error.to_line()),
    };
    let muted = s.muted();
    if tx.dirty {
        return discard_with(s, &Value::error(ABORTED));
    }
    let touched = std::mem::take(&mut tx.touched);
    for (position, words) in std::mem::take(&mut tx.local) {
        let reply = local::answer_in_transaction(s, &words);
        tx.rules[position] = Rule::Replace(Bytes::from(reply.to_bytes(s.proto)));
    }
    conn.send(|out| out.extend_from_slice(b"*1\r\n$4\r\nEXEC\r\n"));
    let functions = tx.rules.iter().any(|rule| matches!(rule, Rule::Function(_)));
    let scripts = tx.rules.iter().any(|rule| matches!(rule, Rule::Script(_)));
    let flight = s.scripts.as_ref().filter(|_| scripts).map(|own| Flight::begin(&own.counters));
    let plain = tx.select.is_none() && tx.rules.iter().all(|r| *r == Rule::Raw);
    let owed = if muted {
        flight.map_or(Owed::Dropped, Owed::Unheard)
    } else if plain {
        Owed::Raw
    } else {
        s.select_on_commit = tx.select;
        Owed::Rewritten(Box::new(Unprefix::exec(Exec { rules: tx.rules }, Rc::clone(&s.prefix)).of(flight)))
    };
    if scripts || functions {
        conn.expect_script(&s.down, owed, What::NOTHING);
    } else {
        conn.expect(&s.down, owed, false, What::NOTHING);
    }
    if let Some(guard) = touched.guard(s, scripts || functions) {
        conn.guard(guard);
    }
    Flow::Next
}

fn discard(s: &mut Session, row: &Row, args: &Args<'_>, frame: &[u8], spans: &[Span]) -> Flow {
    if close(s).broken {
        s.answer(&Value::ok());
        return Flow::Next;
    }
    pass(s, row, args, frame, spans)
}
