//! Scripts: EVAL, EVALSHA, their read-only forms, and SCRIPT. Functions: see [`functions`].
//!
//! ```text
//!   client                         keyfence                                     upstream
//!   EVAL "return …" 1 k    ──►  source ─► Entry { theirs, ours, wrapped }  ──►  EVAL "local redis=… return …" 1 t:k
//!   EVALSHA theirs 1 k     ──►  theirs ─► Entry, loaded on this connection ──►  EVALSHA ours 1 t:k
//! ```
//!
//! A script is sent upstream with a [`prelude`] before it, by its SHA1 there once a connection has seen the upstream take it, and whole
//! before that. The upstream may lose its cache at any time. A client that waits for its reply does not notice: the script is sent again,
//! whole. One that has sent more behind an EVALSHA is told NOSCRIPT, as it would be by Redis, since what it sent behind has been carried out.
//!
//! Scripts travel only as [`Kind::Data`], the user that the upstream's ACL confines in every command.

pub mod functions;
pub mod kill;
pub mod prelude;
pub mod store;

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::Instant;

use crate::{
    command::{self, Args, Row, Slot, walk},
    error::UpstreamError,
    near,
    resp::{self, Value},
    rewrite::{
        TooLong, canonical,
        reply::{
            Rule, Unprefix,
            script::{Flight, Script, Sha},
        },
    },
    scoped,
    session::{Flow, Session, Until},
    tenant, transaction,
    upstream::{Conn, Kind, Logins, Owed, What, control::Control},
};
use prelude::World;
use store::{Entry, LONGEST, Own};

/// Longest argument an upstream takes, prefix included.
const MAX_BULK: usize = 512 * 1024 * 1024;
/// Redis's answer to an EVALSHA of a script it does not know.
const NOSCRIPT: &str = "NOSCRIPT No matching script. Please use EVAL.";
/// Said of a script that its tenant did not have, past the rate of these.
const TOO_NEW: &str = "BUSY too many new scripts: give what differs from one to the next as arguments, or wait";

/// What is said of SCRIPT, of what is served.
const HELP: &[&str] = &[
    "SCRIPT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "EXISTS <sha1> [<sha1> ...]",
    "    Return information about the existence of the scripts in the script cache.",
    "FLUSH [ASYNC|SYNC]",
    "    Flush the Lua scripts cache: those of this tenant.",
    "KILL",
    "    Kill the currently executing Lua script.",
    "LOAD <script>",
    "    Load a script into the scripts cache without executing it.",
    "HELP",
    "    Prints this help.",
];

/// Why this session may run no scripts, as an error line; `None`: it may.
pub fn barred(s: &Session) -> Option<&'static str> {
    let walled = matches!(**s.reach.site.logins.load(), Logins::Wall);
    let apart = s.reach.site.holes.load().as_ref().is_some_and(|holes| holes.scripts_apart());
    verdict(s.tenant.scripts, walled, apart).err()
}

/// Whether a tenant may run scripts, behind a wall or not, on an upstream whose scripts cannot alter one another or can.
///
/// # Errors
/// Why it may not, as an error line.
pub fn verdict(policy: tenant::Scripts, walled: bool, apart: bool) -> Result<(), &'static str> {
    match policy {
        tenant::Scripts::Off => Err("NOPERM scripts are off for this tenant"),
        tenant::Scripts::Auto if !walled => {
            Err("NOPERM scripts are off: there is no ACL wall upstream that would confine them (acl_wall)")
        }
        tenant::Scripts::Auto if !apart => Err(
            "NOPERM scripts are off: scripts can alter one another on this upstream, or that could not be tried (CVE-2025-46818)",
        ),
        tenant::Scripts::On | tenant::Scripts::Auto => Ok(()),
    }
}

/// A command of the class outside a transaction.
pub fn run(s: &mut Session, row: &'static Row, args: &Args<'_>, ahead: &[u8]) -> Flow {
    if let Some(why) = barred(s) {
        return s.refuse(why);
    }
    if functions::is_one(row) {
        return match functions::barred(s) {
            Some(why) => s.refuse(why),
            None => functions::run(s, row, args),
        };
    }
    if row.name.starts_with("EVAL") {
        if !s.facts(|facts| facts.has(row)) {
            return s.refuse(command::unknown_command_error(args));
        }
        return eval(s, row, args, ahead);
    }
    // These speak of what was sent before them.
    if s.down.in_flight() > 0 {
        return Flow::Again(Until::Drained);
    }
    match row.name {
        "SCRIPT EXISTS" => {
            let answer = exists(s, args);
            s.answer(&answer);
            Flow::Next
        }
        "SCRIPT FLUSH" => match (args.len(), (args.len() > 2).then(|| args.at(2).to_ascii_uppercase()).as_deref()) {
            (2, _) | (3, Some(b"SYNC" | b"ASYNC")) => {
                own(s).clear();
                s.answer(&Value::ok());
                Flow::Next
            }
            _ => s.refuse("ERR SCRIPT FLUSH only support SYNC|ASYNC option"),
        },
        "SCRIPT KILL" => Flow::Run(scoped::Job::KillScript),
        "SCRIPT LOAD" => match named(s, row, args) {
            Named::Script(entry) | Named::Pending(entry) => Flow::Run(scoped::Job::LoadScript(entry)),
            Named::Unknown(error) => s.refuse(error),
        },
        "SCRIPT HELP" => {
            let lines = HELP.iter().map(|line| Value::Simple((*line).into())).collect();
            s.answer(&Value::Array(lines));
            Flow::Next
        }
        _ => s.no_permission(row),
    }
}

/// Has the upstream compile a script, as keyfence itself: no tenant's user may load any. The SHA1 its client knows.
///
/// # Errors
/// When the upstream cannot be asked; that it does not compile is an answer.
pub async fn load(control: &Control, entry: &Entry) -> Result<Value, UpstreamError> {
    match control.query::<String>(0, redis::cmd("SCRIPT").arg("LOAD").arg(&entry.wrapped)).await {
        Ok(sha) if sha.as_bytes() == entry.ours => {
            entry.compiled.store(true, Ordering::Relaxed);
            Ok(Value::bulk(&entry.theirs[..]))
        }
        Ok(_) => Err(UpstreamError::Unreachable("unexpected reply to SCRIPT LOAD".into())),
        Err(UpstreamError::Refused(text)) => Ok(Value::error(text)),
        Err(error) => Err(error),
    }
}

fn exists(s: &mut Session, args: &Args<'_>) -> Value {
    let own = own(s);
    let found = |word: &[u8]| digits(word).and_then(|sha| own.find(&sha)).is_some_and(|entry| entry.compiled());
    Value::Array(args.iter().skip(2).map(|word| Value::Int(found(word).into())).collect())
}

/// The tenant's table.
fn own(s: &mut Session) -> Arc<Own> {
    let (store, tenant) = (&s.worker.shared.scripts, &s.tenant);
    Arc::clone(s.scripts.get_or_insert_with(|| store.of(tenant.id, &tenant.name, Arc::as_ptr(&tenant.site).addr())))
}

/// A SHA1 as a client writes it, in either case.
fn digits(word: &[u8]) -> Option<Sha> {
    <Sha>::try_from(word).ok().map(|sha| sha.to_ascii_lowercase()).and_then(|sha| Sha::try_from(&sha[..]).ok())
}

/// What a command names.
enum Named {
    Script(Arc<Entry>),
    /// By its SHA1, and it was sent but not heard of yet.
    Pending(Arc<Entry>),
    Unknown(String),
}

fn named(s: &mut Session, row: &Row, args: &Args<'_>) -> Named {
    let own = own(s);
    if !row.name.starts_with("EVALSHA") {
        let source = args.at(if row.name == "SCRIPT LOAD" { 2 } else { 1 });
        if source.len() > LONGEST {
            return Named::Unknown(format!("ERR the script is longer than {LONGEST} bytes"));
        }
        let wrap = || Some(wrapped(s, source)).filter(|wrapped| own.admits(wrapped.len(), Instant::now()));
        return own.add(source, wrap).map_or_else(|| Named::Unknown(TOO_NEW.to_owned()), Named::Script);
    }
    match digits(args.at(1)).map(|sha| own.find(&sha)) {
        Some(Some(entry)) if entry.compiled() => Named::Script(entry),
        Some(Some(entry)) => Named::Pending(entry),
        // Redis looks for a script of that length only when the count of keys is right.
        Some(None) => Named::Unknown(bad_numkeys(args).unwrap_or(NOSCRIPT).to_owned()),
        None => Named::Unknown(NOSCRIPT.to_owned()),
    }
}

impl<'a> World<'a> {
    /// The tenant's, where it is.
    fn of(s: &'a Session) -> Self {
        Self {
            prefix: &s.prefix,
            db_base: s.tenant.db_base,
            databases: s.tenant.databases,
            walled: matches!(**s.reach.site.logins.load(), Logins::Wall),
            valkey: s.facts(|f| f.server == "valkey"),
        }
    }
}

fn wrapped(s: &Session, source: &[u8]) -> Vec<u8> {
    let world = World::of(s);
    s.facts(|facts| prelude::wrap(source, &world, |row| facts.has(row)))
}

/// What Redis says of a count of keys that cannot be.
fn bad_numkeys(args: &Args<'_>) -> Option<&'static str> {
    match canonical(args.at(2)) {
        None => Some("ERR value is not an integer or out of range"),
        Some(n) if n < 0 => Some("ERR Number of keys can't be negative"),
        Some(n) if n > args.len() as i64 - 3 => Some("ERR Number of keys can't be greater than number of args"),
        Some(_) => None,
    }
}

/// The reply to a script sent before has come: whether that was the end of it. Called for the same request once more.
pub fn again(s: &mut Session, missing: &Cell<bool>, args: &Args<'_>) -> Flow {
    let command::Lookup::Found(row) = command::lookup(args) else { return Flow::Next };
    if !missing.get() {
        return Flow::Next;
    }
    let entry = match named(s, row, args) {
        Named::Script(entry) | Named::Pending(entry) => entry,
        Named::Unknown(error) => return s.refuse(error),
    };
    tracing::debug!(tenant = s.tenant.name, "the upstream lost a script: sent again");
    match lane(s) {
        Ok(conn) => send(s, &conn, row, args, &entry, Form::Whole, None).unwrap_or(Flow::After(Until::Drained)),
        Err(flow) => flow,
    }
}

fn eval(s: &mut Session, row: &'static Row, args: &Args<'_>, ahead: &[u8]) -> Flow {
    let entry = match named(s, row, args) {
        Named::Script(entry) => entry,
        // It may have been sent by this client: then its reply is to come.
        Named::Pending(_) if s.down.in_flight() > 0 => return Flow::Again(Until::Drained),
        Named::Pending(_) => return s.refuse(bad_numkeys(args).unwrap_or(NOSCRIPT)),
        Named::Unknown(error) => return s.refuse(error),
    };
    let conn = match lane(s) {
        Ok(conn) => conn,
        Err(flow) => return flow,
    };
    // A client that waits for this reply, or has to, loses nothing when the script has to be sent again.
    let waits = s.own.is_some() || (s.down.in_flight() == 0 && ahead.is_empty());
    let loaded = conn.loaded.borrow().contains(&entry.ours);
    let form = if loaded && (waits || row.name.starts_with("EVALSHA")) { Form::Sha } else { Form::Whole };
    let missing = (form == Form::Sha && waits && !s.muted()).then(Rc::<Cell<bool>>::default);
    if let Some(flow) = send(s, &conn, row, args, &entry, form, missing.clone()) {
        return flow;
    }
    if form == Form::Whole && entry.compiled() && bad_numkeys(args).is_none() {
        // What follows on this connection finds it.
        conn.loaded.borrow_mut().insert(entry.ours);
    }
    match missing {
        Some(missing) => {
            s.resend = Some(missing);
            Flow::Again(Until::Drained)
        }
        None if s.own.is_some() => Flow::After(Until::Drained),
        None => Flow::Next,
    }
}

/// The connection a script may travel on. A session that has one of its own which may read every key uses the shared one for the moment,
/// with nothing else in flight.
fn lane(s: &mut Session) -> Result<Rc<Conn>, Flow> {
    if s.own.as_ref().is_some_and(|own| own.key.kind != Kind::Data) {
        if s.down.in_flight() > 0 {
            return Err(Flow::Again(Until::Drained));
        }
        s.unpin_when_done();
    }
    match s.script_conn() {
        Ok(conn) => Ok(conn),
        Err(error) => Err(s.refuse(error.to_line())),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Sha,
    Whole,
}

/// What a command's reply needs.
fn rule(s: &mut Session, conn: &Conn, entry: &Entry, missing: Option<Rc<Cell<bool>>>) -> Rule {
    Rule::Script(Box::new(Script {
        ours: entry.ours,
        theirs: entry.theirs,
        tenant: Arc::clone(&own(s).tenant),
        compiled: Arc::clone(&entry.compiled),
        loaded: Rc::clone(&conn.loaded),
        missing,
    }))
}

/// Sends it: `Some` when it cannot be.
fn send(
    s: &mut Session,
    conn: &Rc<Conn>,
    row: &Row,
    args: &Args<'_>,
    entry: &Entry,
    form: Form,
    missing: Option<Rc<Cell<bool>>>,
) -> Option<Flow> {
    if let Err(TooLong) = write(s, conn, row, args, entry, form) {
        return Some(s.refuse("ERR string exceeds maximum allowed size (proto-max-bulk-len)"));
    }
    let what = What { row: row.index, argc: u32::try_from(args.len()).unwrap_or(u32::MAX) };
    let flight = Flight::begin(&own(s).counters);
    let owed = if s.muted() {
        Owed::Unheard(flight)
    } else {
        let rule = rule(s, conn, entry, missing);
        Owed::Rewritten(Box::new(Unprefix::new(rule, Rc::clone(&s.prefix)).of(Some(flight))))
    };
    conn.expect_script(&s.down, owed, what);
    if !row.name.ends_with("_RO") {
        conn.guard(near::everything(s));
    }
    None
}

fn write(s: &Session, conn: &Conn, row: &Row, args: &Args<'_>, entry: &Entry, form: Form) -> Result<(), TooLong> {
    let script: &[u8] = if form == Form::Sha { &entry.ours } else { &entry.wrapped };
    let name: &[u8] = match (form, row.name.ends_with("_RO")) {
        (Form::Sha, false) => b"EVALSHA",
        (Form::Sha, true) => b"EVALSHA_RO",
        (Form::Whole, false) => b"EVAL",
        (Form::Whole, true) => b"EVAL_RO",
    };
    let mut marks = s.worker.marks.borrow_mut();
    walk(row, args, &mut marks);
    if args.iter().any(|arg| arg.len() + s.prefix.len() > MAX_BULK) {
        return Err(TooLong);
    }
    conn.send(|out| {
        resp::put_header(out, b'*', args.len() as u64);
        resp::put_bulk(out, name);
        resp::put_bulk(out, script);
        put_arguments(out, args, &marks, &s.prefix);
    });
    Ok(())
}

/// The arguments behind what is run: the count of keys, the keys with the prefix, and the rest.
fn put_arguments(out: &mut Vec<u8>, args: &Args<'_>, marks: &[(u32, Slot)], prefix: &[u8]) {
    let mut names = marks.iter().peekable();
    for (i, arg) in args.iter().enumerate().skip(2) {
        if names.next_if(|(at, slot)| *at as usize == i && *slot == Slot::Key).is_some() {
            resp::put_header(out, b'$', (prefix.len() + arg.len()) as u64);
            out.extend_from_slice(prefix);
            out.extend_from_slice(arg);
            out.extend_from_slice(b"\r\n");
        } else {
            resp::put_bulk(out, arg);
        }
    }
}

/// A command of the class between MULTI and EXEC.
pub fn queue(s: &mut Session, row: &'static Row, args: &Args<'_>) -> Flow {
    if let Some(why) = barred(s) {
        return s.refuse(why);
    }
    if functions::is_one(row) {
        return match functions::barred(s) {
            Some(why) => s.refuse(why),
            None => functions::queue(s, row, args),
        };
    }
    match row.name {
        "SCRIPT EXISTS" => {
            let answer = exists(s, args);
            return transaction::queue_answer(s, &answer);
        }
        name if name.starts_with("SCRIPT ") => {
            return s.refuse(format!("ERR {} is not allowed inside a transaction", row.lower_name()));
        }
        _ => {}
    }
    let (entry, pending) = match named(s, row, args) {
        Named::Script(entry) => (entry, false),
        // It may be queued before this one.
        Named::Pending(entry) => (entry, true),
        Named::Unknown(error) => return transaction::queue_answer(s, &Value::error(error)),
    };
    if s.own.as_ref().is_some_and(|own| own.key.kind != Kind::Data)
        && let Some(flow) = transaction::move_to_data(s)
    {
        return flow;
    }
    let conn = match s.conn() {
        Ok(conn) if !conn.dead() => conn,
        Ok(_) => return s.refuse(UpstreamError::Lost.to_line()),
        Err(error) => return s.refuse(error.to_line()),
    };
    let loaded = conn.loaded.borrow().contains(&entry.ours);
    let form = if (loaded || pending) && row.name.starts_with("EVALSHA") { Form::Sha } else { Form::Whole };
    if let Err(TooLong) = write(s, &conn, row, args, &entry, form) {
        return s.refuse("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    }
    let owed = if s.muted() { Owed::Dropped } else { Owed::Raw };
    conn.expect(&s.down, owed, false, What::NOTHING);
    if !row.name.ends_with("_RO") {
        transaction::touch_all(s);
    }
    let rule = rule(s, &conn, &entry, None);
    transaction::queued(s, rule);
    Flow::Next
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenant::Scripts::{Auto, Off, On};

    #[test]
    fn s4_scripts_need_a_wall_and_to_be_kept_apart() {
        for (policy, walled, apart, may) in [
            (Auto, true, true, true),
            (Auto, true, false, false),
            (Auto, false, true, false),
            (Auto, false, false, false),
            (On, false, false, true),
            (Off, true, true, false),
        ] {
            let verdict = verdict(policy, walled, apart);
            assert_eq!(verdict.is_ok(), may, "{policy:?} {walled} {apart}");
            assert!(verdict.err().is_none_or(|why| why.starts_with("NOPERM scripts are off")));
        }
    }

    #[test]
    fn a_sha1_is_forty_digits_in_either_case() {
        assert_eq!(digits(&[b'A'; 40]), Some([b'a'; 40]));
        assert_eq!(digits(b"e0e1"), None);
    }
}
