//! Functions: FUNCTION, FCALL and FCALL_RO, each tenant with its own.
//!
//! ```text
//!   client                              keyfence                                       upstream
//!   FUNCTION LOAD "#!lua name=l\n…"  ─► library::wrap ─► as keyfence itself         ─► FUNCTION LOAD "#!lua name=keyfence_t_3a__l\n<prelude>…"
//!                                       every function it registered is looked at  ◄── FUNCTION LIST
//!   FCALL f 1 k                      ─► in the tenant's list? as the tenant's user  ─► FCALL keyfence_t_3a__f 1 t:k
//! ```
//!
//! Libraries belong to the whole upstream, so both their names and their functions' carry the tenant's [`library::Tag`]. They outlive keyfence and
//! may come and go without it: the list of what a tenant may call is made from what the upstream has, when it is first needed, for each connection that was opened
//! since it was made, and, at a bounded rate, for a name that it does not hold.

mod errors;
pub mod library;
pub mod manage;
pub mod own;

use std::{cell::RefCell, rc::Rc, sync::Arc};

use tokio::time::Instant;

use self::{
    manage::{Task, Work},
    own::{Known, Own},
};
use super::{LONGEST, MAX_BULK, World, lane};
use crate::{
    command::{self, Args, Row, walk},
    error::UpstreamError,
    near,
    resp::{self, Value},
    rewrite::{
        TooLong,
        reply::{Rule, Unprefix, function::Function},
    },
    scoped,
    session::{Flow, Session, Until},
    tenant::Scripts,
    transaction,
    upstream::{Conn, Kind, Owed, What},
};

const NOT_FOUND: &str = "ERR Function not found";
const TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
/// Said of a load past the rate of these.
const TOO_MANY: &str = "BUSY too many FUNCTION LOAD: wait";

/// What is said of FUNCTION, of what is served.
const HELP: &[&str] = &[
    "FUNCTION <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "LOAD [REPLACE] <FUNCTION CODE>",
    "    Create a new library with the given library name and code.",
    "DELETE <LIBRARY NAME>",
    "    Delete the given library.",
    "LIST [LIBRARYNAME PATTERN] [WITHCODE]",
    "    Return general information on all the libraries of this tenant.",
    "STATS",
    "    Return information about the current function running, if it is this tenant's.",
    "KILL",
    "    Kill the current running function, if it is this tenant's.",
    "FLUSH [ASYNC|SYNC]",
    "    Delete all the libraries of this tenant.",
    "HELP",
    "    Prints this help.",
];

/// What a look at the upstream came to, which the command at hand waits for.
pub type Look = Rc<RefCell<Option<Result<(), UpstreamError>>>>;

/// Whether this is one of the commands of this module.
pub fn is_one(row: &Row) -> bool {
    row.name.starts_with("FUNCTION") || row.name.starts_with("FCALL")
}

/// Why this session may call no functions, which may run scripts, as an error line; `None`: it may.
pub fn barred(s: &Session) -> Option<&'static str> {
    let apart = s.reach.site.holes.load().as_ref().is_some_and(|holes| holes.functions_apart());
    (s.tenant.scripts == Scripts::Auto && !apart)
        .then_some("NOPERM functions are off: they can alter one another on this upstream, or that could not be tried")
}

/// A command of the class outside a transaction; the session may run it.
pub fn run(s: &mut Session, row: &'static Row, args: &Args<'_>) -> Flow {
    if !s.facts(|facts| facts.has(row)) {
        return s.refuse(command::unknown_command_error(args));
    }
    if !row.name.starts_with("FUNCTION") {
        return call(s, row, args);
    }
    // These speak of what was sent before them.
    if s.down.in_flight() > 0 {
        return Flow::Again(Until::Drained);
    }
    let task = match row.name {
        "FUNCTION HELP" => {
            let lines = HELP.iter().map(|line| Value::Simple((*line).into())).collect();
            s.answer(&Value::Array(lines));
            return Flow::Next;
        }
        "FUNCTION LOAD" => load(s, args),
        "FUNCTION LIST" => list(args),
        "FUNCTION DELETE" => Ok(Task::Delete(args.at(2).to_vec())),
        "FUNCTION FLUSH" => flush(row, args),
        "FUNCTION STATS" => Ok(Task::Stats),
        "FUNCTION KILL" => Ok(Task::Kill),
        _ => return s.no_permission(row),
    };
    match task {
        Ok(task) => Flow::Run(scoped::Job::Function(work(s, task))),
        Err(error) => s.refuse(error),
    }
}

fn load(s: &Session, args: &Args<'_>) -> Result<Task, String> {
    let last = args.len() - 1;
    let options: Vec<&[u8]> = args.iter().take(last).skip(2).collect();
    if let Some(word) = options.iter().find(|word| !word.eq_ignore_ascii_case(b"REPLACE")) {
        return Err(format!("ERR Unknown option given: {}", String::from_utf8_lossy(word)));
    }
    let source = args.at(last);
    if source.len() > LONGEST {
        return Err(format!("ERR the library is longer than {LONGEST} bytes"));
    }
    let (name, line) = library::name(source)?;
    if !own(s).may_load(Instant::now()) {
        return Err(TOO_MANY.into());
    }
    let world = World::of(s);
    let code = s.facts(|facts| library::wrap(source, &name, line, &own(s).tag, &world, |row| facts.has(row)));
    Ok(Task::Load { name, code, replace: !options.is_empty() })
}

fn list(args: &Args<'_>) -> Result<Task, String> {
    let (mut pattern, mut with_code) = (None, false);
    let mut words = args.iter().skip(2);
    while let Some(word) = words.next() {
        if !with_code && word.eq_ignore_ascii_case(b"WITHCODE") {
            with_code = true;
        } else if pattern.is_none() && word.eq_ignore_ascii_case(b"LIBRARYNAME") {
            let given = words.next().ok_or("ERR library name argument was not given")?;
            pattern = Some(scoped::bounded(given)?.to_vec());
        } else {
            return Err(format!("ERR Unknown argument {}", String::from_utf8_lossy(word)));
        }
    }
    Ok(Task::List { pattern: pattern.unwrap_or_else(|| b"*".to_vec()), with_code })
}

fn flush(row: &Row, args: &Args<'_>) -> Result<Task, String> {
    match (args.len(), (args.len() > 2).then(|| args.at(2).to_ascii_uppercase()).as_deref()) {
        (2, _) | (3, Some(b"SYNC" | b"ASYNC")) => Ok(Task::Flush),
        (3, _) => Err("ERR FUNCTION FLUSH only supports SYNC|ASYNC option".into()),
        _ => Err(format!(
            "ERR unknown subcommand or wrong number of arguments for '{}'. Try FUNCTION HELP.",
            String::from_utf8_lossy(if args.len() > 1 { args.at(1) } else { row.word.as_bytes() })
        )),
    }
}

fn work(s: &Session, task: Task) -> Work {
    Work { own: own(s), prefix: s.prefix.to_vec().into(), task }
}

/// The tenant's list.
fn own(s: &Session) -> Arc<Own> {
    Arc::clone(s.functions.get_or_init(|| s.worker.shared.functions.of(&s.tenant)))
}

/// What is to be done about a call.
enum Callee {
    /// It is this one.
    Found(Box<Function>),
    /// The upstream has to be looked at first.
    Look,
    /// There is none, or it could not be looked for: the error line.
    None(String),
}

/// The function that a command calls, on a connection opened at `opened`; `may_wait`: after a look at the upstream, if it takes one.
fn callee(s: &mut Session, name: &[u8], opened: Instant, may_wait: bool) -> Callee {
    let own = own(s);
    let looked = s.look.take().and_then(|look| look.take());
    match (own.find(name, opened), looked) {
        (Known::Unseen | Known::Absent, Some(Err(error))) => return Callee::None(error.to_line()),
        // Looked at, it may be for another connection than this one, opened since.
        (Known::Unseen, _) if may_wait => return Callee::Look,
        (Known::Doubtful | Known::Absent, None) if may_wait && own.may_look(Instant::now()) => return Callee::Look,
        (Known::Unseen | Known::Absent, _) => return Callee::None(NOT_FOUND.into()),
        // Of one that is doubtful the upstream will say so once more.
        (Known::Here | Known::Doubtful, _) => {}
    }
    Callee::Found(Box::new(Function {
        tag: own.tag.shared(),
        name: name.into(),
        tenant: Arc::clone(&own.tenant),
        doubt: Arc::clone(&own.doubt),
    }))
}

/// Looks at the upstream, for the command at hand to be taken up again.
fn look(s: &mut Session) -> Flow {
    let look = Look::default();
    match scoped::look(s, work(s, Task::Look), Rc::clone(&look)) {
        Ok(()) => {
            s.look = Some(look);
            Flow::Again(Until::Drained)
        }
        Err(error) => s.refuse(error.to_line()),
    }
}

fn call(s: &mut Session, row: &'static Row, args: &Args<'_>) -> Flow {
    let conn = match lane(s) {
        Ok(conn) => conn,
        Err(flow) => return flow,
    };
    let function = match callee(s, args.at(1), conn.opened(), true) {
        Callee::Found(function) => function,
        Callee::Look => return look(s),
        Callee::None(error) => return s.refuse(error),
    };
    if let Err(TooLong) = write(s, &conn, row, args, &function) {
        return s.refuse(TOO_LONG);
    }
    let what = What { row: row.index, argc: u32::try_from(args.len()).unwrap_or(u32::MAX) };
    let owed = if s.muted() {
        Owed::Dropped
    } else {
        Owed::Rewritten(Box::new(Unprefix::new(Rule::Function(function), Rc::clone(&s.prefix))))
    };
    conn.expect_script(&s.down, owed, what);
    if !row.name.ends_with("_RO") {
        conn.guard(near::everything(s));
    }
    if s.own.is_some() { Flow::After(Until::Drained) } else { Flow::Next }
}

fn write(s: &Session, conn: &Conn, row: &Row, args: &Args<'_>, function: &Function) -> Result<(), TooLong> {
    let mut marks = s.worker.marks.borrow_mut();
    walk(row, args, &mut marks);
    if args.iter().any(|arg| arg.len() + s.prefix.len().max(function.tag.len()) > MAX_BULK) {
        return Err(TooLong);
    }
    conn.send(|out| {
        resp::put_header(out, b'*', args.len() as u64);
        resp::put_bulk(out, row.name.as_bytes());
        resp::put_header(out, b'$', (function.tag.len() + function.name.len()) as u64);
        out.extend_from_slice(function.tag.as_bytes());
        out.extend_from_slice(&function.name);
        out.extend_from_slice(b"\r\n");
        super::put_arguments(out, args, &marks, &s.prefix);
    });
    Ok(())
}

/// Whether a call can go out on the shared connection at once.
pub fn ready(s: &Session, args: &Args<'_>) -> bool {
    let key = s.key();
    let lane = s.lane.as_ref().filter(|lane| lane.key == key && !lane.dead() && !lane.retired());
    args.len() > 1 && lane.is_some_and(|lane| own(s).find(args.at(1), lane.opened()) == Known::Here)
}

/// A command of the class between MULTI and EXEC; the session may run it.
pub fn queue(s: &mut Session, row: &'static Row, args: &Args<'_>) -> Flow {
    if row.name.starts_with("FUNCTION") {
        return s.refuse(format!("ERR {} is not allowed inside a transaction", row.lower_name()));
    }
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
    // The rest of a block cannot wait; it was ready when it began.
    let may_wait = s.tx.as_ref().is_some_and(|tx| !tx.block);
    let function = match callee(s, args.at(1), conn.opened(), may_wait) {
        Callee::Found(function) => function,
        Callee::Look if s.down.in_flight() > 0 => return Flow::Again(Until::Drained),
        Callee::Look => return look(s),
        Callee::None(error) => return transaction::queue_answer(s, &Value::error(error)),
    };
    if let Err(TooLong) = write(s, &conn, row, args, &function) {
        return s.refuse(TOO_LONG);
    }
    let owed = if s.muted() { Owed::Dropped } else { Owed::Raw };
    conn.expect(&s.down, owed, false, What::NOTHING);
    if !row.name.ends_with("_RO") {
        transaction::touch_all(s);
    }
    transaction::queued(s, Rule::Function(function));
    Flow::Next
}

/// Whether what stands in `args` is a call of a function that a whole transaction cannot wait for.
pub fn holds_up(s: &Session, row: &Row, args: &Args<'_>) -> bool {
    row.name.starts_with("FCALL") && !ready(s, args)
}
