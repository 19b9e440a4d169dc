//! THE path of a command, top to bottom: classify → authorise → (transaction) → rewrite → upstream. The way back is
//! [`crate::upstream::conn`], which takes prefixes off by the rule that is left with each request here.

use std::{rc::Rc, sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;

use crate::{
    command::{self, Args, Class, ConnNeed, Flags, Keep, Lookup, Row, Shape, Slot, Span},
    error::UpstreamError,
    local,
    metrics::{OTHER, access},
    monitor, near, pubsub,
    resp::Value,
    rewrite::{
        self,
        reply::{NoGroup, Rule, Unprefix},
    },
    scoped, scripts,
    session::{Flow, Session, Until},
    tenant::{Tenant, limits::Bucket},
    tracking, transaction,
    upstream::{Kind, Owed, What},
};

/// Longest that a client may ask to block, added to which `socket_timeout` gives the deadline of the wait; 0 waits for ever.
const MAX_BLOCK: Duration = Duration::from_secs(365 * 24 * 3600);

/// Handles one whole request: `frame` as parsed, `spans` its arguments, `ahead` what was read behind it.
pub fn dispatch(s: &mut Session, frame: &[u8], spans: &[Span], ahead: &[u8]) -> Flow {
    let args = Args::new(frame, spans);
    s.begin_command();
    let flow = route(s, &args, frame, spans, ahead);
    if !matches!(flow, Flow::Again(_)) {
        s.end_command();
    }
    flow
}

fn route(s: &mut Session, args: &Args<'_>, frame: &[u8], spans: &[Span], ahead: &[u8]) -> Flow {
    if s.resend.is_some()
        && let Some(missing) = s.resend.take()
    {
        s.at_hand = s.client.last.load(Ordering::Relaxed);
        return scripts::again(s, &missing, args);
    }
    // CLASSIFY
    let row = match command::lookup(args) {
        Lookup::Found(row) => row,
        Lookup::Unknown => {
            s.at_hand = OTHER;
            return s.refuse(command::unknown_command_error(args));
        }
        Lookup::UnknownSubcommand(container) => {
            s.at_hand = OTHER;
            return s.refuse(container.unknown_subcommand_error(args.at(1)));
        }
    };
    s.at_hand = row.index;
    if row.forwardable() && !s.facts(|f| f.has(row)) {
        let known = row.container().is_some_and(|c| s.facts(|f| f.has(c)));
        return match row.container() {
            Some(container) if known => s.refuse(container.unknown_subcommand_error(args.at(1))),
            _ => s.refuse(command::unknown_command_error(args)),
        };
    }
    s.client.last.store(row.index, Ordering::Relaxed);
    if !row.arity_ok(args.len()) {
        return if row.name == "EXEC" {
            transaction::abort(s, &row.arity_error())
        } else {
            s.refuse(row.arity_error())
        };
    }
    if let Some(error) = command::refusal(row, args) {
        return if s.tx.is_some() { transaction::queue_answer(s, &Value::error(error)) } else { s.refuse(error) };
    }
    // AUTHORISE
    if !s.logged_in && !row.flags.has(Flags::NO_AUTH) {
        return s.refuse(NO_AUTH);
    }
    if s.logged_in && !s.tenant.permitted.has(row) {
        return s.no_permission(row);
    }
    if !may_restore(s, row) {
        return s.refuse(NO_RESTORE);
    }
    if let Some(error) = pubsub::restricted(s, row) {
        return s.refuse(error);
    }
    if let Some(error) = monitor::restricted(s, row) {
        return s.refuse(error);
    }
    if let Some(error) = over_limit(s, row, spans, frame.len()) {
        return s.refuse_over_rate(error);
    }
    // A block is let go or held as a whole, at its MULTI: a part of it may be in the upstream's buffer already.
    // So is a script, which may write.
    let writes = row.is_write() || matches!(row.name, "MULTI" | "EXEC" | "EVAL" | "EVALSHA" | "FCALL");
    if !s.tx.as_ref().is_some_and(|tx| tx.block)
        && let Some(until) = s.tenant.pause.holds(writes)
        && !may_run_paused(row)
    {
        return Flow::Again(Until::Unpaused(until, writes));
    }
    transaction::notice_lost(s);
    if s.select_on_commit.is_some() {
        if s.down.in_flight() > 0 {
            return Flow::Again(Until::Drained);
        }
        settle_select(s);
    }
    if s.tracking.is_some() {
        tracking::step(s, row);
    }
    if s.tenant.watchers.any() && !std::mem::replace(&mut s.shown, true) {
        monitor::show(s, row, args, args.len());
    }
    // TRANSACTION
    if let Some(flow) = transaction::step(s, row, args, frame, spans, ahead) {
        return flow;
    }
    match row.class {
        _ if pubsub::is_one(row) => pubsub::command(s, row, args, frame, spans),
        Class::Keyed if row.keep != Keep::No && s.near && s.tenant.tier.wanted() => {
            near::read(s, row, args, frame, spans).unwrap_or_else(|| forward(s, row, args, frame, spans))
        }
        Class::Keyed | Class::Keyless => forward(s, row, args, frame, spans),
        Class::Local => {
            let flow = local::answer(s, row, args);
            if matches!(flow, Flow::Next) {
                answered_here(s, row, args);
            }
            flow
        }
        Class::Scoped if s.down.in_flight() > 0 => Flow::Again(Until::Drained),
        Class::Scoped => match scoped::job(s, row, args) {
            Ok(job) => Flow::Run(job),
            Err(error) => s.refuse(error),
        },
        Class::Script => scripts::run(s, row, args, ahead),
        Class::Denied => s.no_permission(row),
    }
}

/// Counts a command that was answered from here.
pub fn answered_here(s: &Session, row: &Row, args: &Args<'_>) {
    s.cells.answered(row.index, 0, 1);
    if s.worker.meter.samples(1) {
        access::write(&s.cells, s.down.peer(), row.index, args.len(), 0, None);
    }
}

/// What a tenant is told whose RESTORE is off.
pub const NO_RESTORE: &str = "NOPERM RESTORE is off: the upstream does not check payloads (sanitize-dump-payload)";

/// What a connection without a tenant is told.
pub const NO_AUTH: &str = "NOAUTH Authentication required.";

/// A crafted payload reaches into the upstream's memory, and so into everybody's keys: among tenants RESTORE is for upstreams that check
/// payloads (isolation.md A14).
pub fn may_restore(s: &Session, row: &Row) -> bool {
    if !row.flags.has(Flags::DANGEROUS) || row.name != "RESTORE" {
        return true;
    }
    s.worker.shared.directory.load().open || s.facts(|f| f.sanitizes_dumps == Some(true))
}

/// The tenant's rates and sizes. What ends a transaction or a connection is never held back, and nothing is charged twice.
pub fn over_limit(s: &mut Session, row: &Row, spans: &[Span], bytes: usize) -> Option<String> {
    let limits = &s.tenant.limits;
    let most = limits.value_size.load(Ordering::Relaxed);
    if bytes as u64 > most
        && let Some((_, len)) = spans.iter().find(|(_, len)| u64::from(*len) > most)
    {
        return Some(too_large(&s.tenant, u64::from(*len)));
    }
    if !limits.ops.limited() && !limits.bytes.limited() {
        return None;
    }
    if s.paid || matches!(row.name, "EXEC" | "DISCARD" | "UNWATCH" | "RESET" | "QUIT" | "AUTH" | "HELLO") {
        return None;
    }
    let now = Instant::now();
    // What was written has been written, whatever becomes of this command.
    s.charge_replies(now);
    let bytes = bytes as u64;
    let limits = &s.tenant.limits;
    let refused = |of: &Bucket, unit: &str, wait: Duration| {
        let (name, limit, wait) = (&s.tenant.name, of.per_second(), wait.as_millis().max(1));
        format!("THROTTLED tenant '{name}' is over its limit of {limit} {unit}/s; retry in {wait} ms")
    };
    if let Err(wait) = limits.ops.take(1, now) {
        return Some(refused(&limits.ops, "ops", wait));
    }
    if let Err(wait) = limits.bytes.take(bytes, now) {
        return Some(refused(&limits.bytes, "bytes", wait));
    }
    s.paid = true;
    None
}

/// What is said of an argument past the tenant's `value_size`.
pub fn too_large(tenant: &Tenant, len: u64) -> String {
    let most = tenant.limits.value_size.load(Ordering::Relaxed);
    format!("ERR an argument of {len} bytes is over the limit of {most} bytes of tenant '{}'", tenant.name)
}

/// A SELECT inside a transaction has been carried out, or not; nothing is in flight.
pub fn settle_select(s: &mut Session) {
    if let Some((committed, db)) = s.select_on_commit.take()
        && committed.get()
    {
        local::select(s, db);
    }
}

/// CLIENT PAUSE must be possible to end, and a paused client to leave.
fn may_run_paused(row: &Row) -> bool {
    matches!(row.name, "CLIENT UNPAUSE" | "CLIENT PAUSE" | "QUIT" | "RESET" | "HELLO" | "AUTH")
}

/// Sends a command upstream that needs no more than that, or waits for its reply if it blocks.
fn forward(s: &mut Session, row: &Row, args: &Args<'_>, frame: &[u8], spans: &[Span]) -> Flow {
    if matches!(row.conn, ConnNeed::Block | ConnNeed::SameConn) && command::is_blocking(row, args) {
        return block(s, row, args, frame, spans);
    }
    if needs_other_user(s, row) {
        return aside(s, row, args, frame, spans);
    }
    if let Err(error) = send(s, row, args, frame, spans, owed(s, row, args), false) {
        return s.refuse(error);
    }
    Flow::Next
}

/// A command that may wait, on a connection of its own: nobody else waits behind it, and the client's leaving ends it.
fn block(s: &mut Session, row: &Row, args: &Args<'_>, frame: &[u8], spans: &[Span]) -> Flow {
    if s.down.in_flight() > 0 {
        return Flow::Again(Until::Drained);
    }
    if let Err(error) = s.pin() {
        return s.refuse(error.to_line());
    }
    // By this number another client ends the wait.
    s.client.wait_on(s.own.as_ref().map(|own| own.number()));
    if row.conn == ConnNeed::SameConn
        && let Some(own) = &s.own
    {
        // WAIT counts from the last write known to its connection: any command makes that the last write of all.
        own.send_own(b"*1\r\n$4\r\nPING\r\n");
    }
    if let Err(error) = send(s, row, args, frame, spans, owed(s, row, args), true) {
        return s.refuse(error);
    }
    let deadline = timeout(row, args).map(|t| Instant::now() + t.min(MAX_BLOCK) + s.reach.site.target.socket_timeout);
    Flow::After(Until::Reply(deadline))
}

/// Whether the command must travel as the tenant's other user upstream; see [`Kind`].
pub fn needs_other_user(s: &Session, row: &Row) -> bool {
    s.reach.site.kind(row) != Kind::Data
}

/// One command on a connection of the tenant's other user, nothing else in flight meanwhile. A connection that the session has to itself is
/// that user's already.
fn aside(s: &mut Session, row: &Row, args: &Args<'_>, frame: &[u8], spans: &[Span]) -> Flow {
    if s.own.is_none() {
        if s.down.in_flight() > 0 {
            return Flow::Again(Until::Drained);
        }
        if let Err(error) = s.pin() {
            return s.refuse(error.to_line());
        }
    }
    match send(s, row, args, frame, spans, owed(s, row, args), false) {
        Ok(()) => Flow::After(Until::Drained),
        Err(error) => s.refuse(error),
    }
}

/// How long the command itself says it may block; `None` for ever, or when it does not say it in a way the server will accept.
fn timeout(row: &Row, args: &Args<'_>) -> Option<Duration> {
    let last = args.len() - 1;
    let seconds = |i: usize| std::str::from_utf8(args.at(i)).ok()?.parse::<f64>().ok().filter(|t| *t > 0.0);
    let millis = |i: usize| seconds(i).map(|ms| ms / 1000.0);
    let seconds = match row.name {
        "BLMPOP" | "BZMPOP" => seconds(1),
        "XREAD" | "XREADGROUP" | "TS.READ" => {
            (1..last).find(|&i| args.at(i).eq_ignore_ascii_case(b"BLOCK")).and_then(|i| millis(i + 1))
        }
        "WAIT" | "WAITAOF" => millis(last),
        _ => seconds(last),
    }?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// What the reply of a command needs.
pub fn owed(s: &Session, row: &Row, args: &Args<'_>) -> Owed {
    if s.muted() {
        return Owed::Dropped;
    }
    match rule(s, row, args) {
        Rule::Raw => Owed::Raw,
        rule => Owed::Rewritten(Box::new(Unprefix::new(rule, Rc::clone(&s.prefix)))),
    }
}

/// Where the reply of a command carries names.
pub fn rule(s: &Session, row: &Row, args: &Args<'_>) -> Rule {
    if pubsub::is_one(row) {
        return pubsub::rule(s, row, (args.len() > 1).then(|| args.at(1)));
    }
    if !row.reply.nogroup {
        return match row.reply.shape {
            Shape::First => Rule::First,
            Shape::Names => Rule::Names,
            Shape::Xread => Rule::Xread,
            Shape::Raw | Shape::Exec | Shape::Other(_) => Rule::Raw,
        };
    }
    let mut marks = s.worker.marks.borrow_mut();
    command::walk(row, args, &mut marks);
    let keys =
        marks.iter().filter(|(_, slot)| *slot == Slot::Key).map(|&(i, _)| args.at(i as usize).to_vec()).collect();
    let names = Rc::new(NoGroup { keys });
    if row.reply.shape == Shape::Xread { Rule::XreadNoGroup(names) } else { Rule::NoGroup(names) }
}

/// REWRITE and send: the request leaves at the end of this turn, and its reply is `owed` to this client.
///
/// # Errors
/// The error line, when it cannot be sent.
pub fn send(
    s: &mut Session,
    row: &Row,
    args: &Args<'_>,
    frame: &[u8],
    spans: &[Span],
    owed: Owed,
    patient: bool,
) -> Result<(), String> {
    let conn = s.conn().map_err(|e| e.to_line())?;
    if conn.dead() {
        return Err(UpstreamError::Lost.to_line());
    }
    let mut marks = s.worker.marks.borrow_mut();
    conn.send(|out| rewrite::request(row, frame, spans, &s.namespace(), &mut marks, out))
        .map_err(|rewrite::TooLong| "ERR string exceeds maximum allowed size (proto-max-bulk-len)".to_owned())?;
    drop(marks);
    let what = What { row: row.index, argc: u32::try_from(spans.len()).unwrap_or(u32::MAX) };
    conn.expect(&s.down, owed, patient, what);
    // It leaves at the end of this turn: marked by then.
    if row.changes && (patient || s.tx.is_some() || s.tenant.tier.wanted()) {
        if s.tx.is_some() {
            transaction::touch(s, row, args);
        } else if let Some(guard) = near::write(s, row, args, patient) {
            conn.guard(guard);
        }
    }
    Ok(())
}
