//! Commands answered here: those about the connection itself, and those whose upstream answer would be about all tenants together.
//!
//! Texts and shapes are those of Redis 7 (<https://redis.io/docs/latest/commands/>), so that clients take their usual ways.

mod client;
pub mod command_docs;
mod config;
pub mod info;
mod latency;
mod slowlog;

use crate::{
    command::{self, Args, Categories, Lookup, Row},
    login::{self, Attempt},
    monitor, pubsub,
    resp::{Proto, Value},
    rewrite::canonical,
    session::{Flow, Replies, Session, Until},
    tracking,
};

/// Answers a local command.
pub fn answer(s: &mut Session, row: &Row, args: &Args<'_>) -> Flow {
    match row.name {
        "SELECT" => select_command(s, args),
        "HELLO" => hello(s, args),
        "RESET" => reset(s),
        "AUTH" => auth(s, args),
        "QUIT" => quit(s),
        "CLIENT REPLY" => reply_mode(s, args),
        "MONITOR" => monitor::command(s),
        // What others do to this session, or it to others, is seen by its earlier commands' replies being there.
        "CLIENT KILL" | "CLIENT TRACKING" | "CLIENT CACHING" | "CLIENT UNBLOCK" | "INFO" if s.down.in_flight() > 0 => {
            Flow::Again(Until::Drained)
        }
        "KEYFENCE TIER" => tier_mode(s, args),
        "CLIENT TRACKING" | "CLIENT CACHING" => tracking::command(s, row.name, args),
        "CLIENT UNBLOCK" => match client::unblock(s, args) {
            Ok((client, error)) => Flow::Run(crate::scoped::Job::Unblock { client, error }),
            Err(answer) => {
                s.answer(&answer);
                Flow::Next
            }
        },
        "INFO" => Flow::Run(crate::scoped::Job::Info(
            args.iter().skip(1).map(|a| String::from_utf8_lossy(a).to_ascii_lowercase()).collect(),
        )),
        _ => {
            let value = simple(s, row, args);
            s.answer(&value);
            Flow::Next
        }
    }
}

/// Answers a local command that was queued in a transaction, when that is carried out.
pub fn answer_in_transaction(s: &Session, words: &[Vec<u8>]) -> Value {
    let mut at = 0;
    let spans: Vec<_> = words
        .iter()
        .map(|w| {
            let span = (at, u32::try_from(w.len()).unwrap_or_default());
            at += span.1;
            span
        })
        .collect();
    let joined = words.concat();
    let args = Args::new(&joined, &spans);
    match command::lookup(&args) {
        Lookup::Found(row) if row.name == "INFO" => {
            let view = info::View::of(s);
            view.render(
                &args.iter().skip(1).map(|a| String::from_utf8_lossy(a).to_ascii_lowercase()).collect::<Vec<_>>(),
                None,
            )
        }
        Lookup::Found(row) => simple(s, row, &args),
        _ => Value::error("ERR unknown command"),
    }
}

/// Those that neither wait nor change where requests go.
fn simple(s: &Session, row: &Row, args: &Args<'_>) -> Value {
    if let Some(what) = row.name.strip_prefix("CLIENT ") {
        return client::answer(s, what, args);
    }
    if row.name == "COMMAND" || row.name.starts_with("COMMAND ") {
        return command_docs::answer(args, &|row| {
            s.tenant.permitted.has(row) && s.facts(|f| !row.forwardable() || f.has(row))
        });
    }
    if row.name == "PUBSUB" && args.len() > 1 || row.name.starts_with("PUBSUB ") {
        return pubsub::introspect(s, row, args);
    }
    if row.name.starts_with("CLUSTER") || matches!(row.name, "READONLY" | "READWRITE" | "ASKING") {
        return Value::error("ERR This instance has cluster support disabled");
    }
    match row.name {
        "PING" if args.len() > 2 => Value::error(row.arity_error()),
        "PING"
            if s.sub.is_some()
                && let Some(pong) = pubsub::pong(s, args) =>
        {
            pong
        }
        "PING" if args.len() == 2 => Value::bulk(args.at(1)),
        "PING" => Value::simple("PONG"),
        "ECHO" => Value::bulk(args.at(1)),
        "ROLE" => Value::Array(vec![Value::bulk("master"), Value::Int(0), Value::Array(Vec::new())]),
        // Where MONITOR was queued in a transaction.
        "MONITOR" => Value::error("ERR MONITOR isn't allowed for DENY BLOCKING client"),
        "LASTSAVE" => Value::Int(info::unix_time(s.worker.shared.started)),
        "LATENCY HISTOGRAM" | "LATENCY LATEST" | "LATENCY HISTORY" | "LATENCY RESET" | "LATENCY GRAPH"
        | "LATENCY DOCTOR" | "LATENCY HELP" => latency::answer(s, row, args),
        "SLOWLOG GET" | "SLOWLOG LEN" | "SLOWLOG RESET" | "SLOWLOG HELP" => slowlog::answer(s, row, args),
        "CONFIG GET" => config::get(s, args),
        "ACL WHOAMI" => Value::bulk(&s.tenant.name),
        "ACL CAT" => acl_cat(args),
        "ACL GENPASS" => acl_genpass(args),
        "ACL HELP" => help(
            "ACL",
            &[
                "CAT [<category>]",
                "    List all commands that belong to <category>, or all command categories.",
                "GENPASS [<bits>]",
                "    Generate a secure 256-bit user password.",
                "WHOAMI",
                "    Return the current connection username.",
            ],
        ),
        "KEYFENCE HELP" => help(
            "KEYFENCE",
            &[
                "TIER [ON|OFF]",
                "    Whether reads of this connection may be answered from the in-process tier, or are from now on.",
            ],
        ),
        // A container that is served by its subcommands, with an argument too few or too many.
        _ => Value::error(row.arity_error()),
    }
}

/// Redis's HELP reply: an array of simple strings.
pub(crate) fn help(container: &str, lines: &[&str]) -> Value {
    let first = format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:");
    let all = std::iter::once(first).chain(lines.iter().map(|l| (*l).to_owned()));
    Value::Array(all.chain(["HELP".into(), "    Prints this help.".into()]).map(Value::Simple).collect())
}

fn auth(s: &mut Session, args: &Args<'_>) -> Flow {
    if s.down.in_flight() > 0 {
        return Flow::Again(Until::Drained);
    }
    let open = s.worker.shared.directory.load().open;
    match (args.len(), open) {
        (2, true) => s.refuse(
            "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
        ),
        // As a Redis whose default user has no password.
        (3, true) if args.at(1) == b"default" => {
            s.answer(&Value::ok());
            Flow::Next
        }
        (3, true) => s.refuse(WRONG_PASSWORD),
        (2, false) => Flow::Login(Attempt::new(b"default", args.at(1), None)),
        (3, false) => Flow::Login(Attempt::new(args.at(1), args.at(2), None)),
        _ => s.refuse("ERR syntax error"),
    }
}

/// One text for a wrong password and an unknown user.
pub const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

fn select_command(s: &mut Session, args: &Args<'_>) -> Flow {
    let Some(db) = selected(s, args.at(1)) else {
        let error = select_error(args.at(1));
        s.answer(&error);
        return Flow::Next;
    };
    if db != s.db && s.down.in_flight() > 0 {
        return Flow::Again(Until::Drained);
    }
    select(s, db);
    s.answer(&Value::ok());
    Flow::Next
}

/// The database that a SELECT of this leads to, if it is one of the tenant's.
pub fn selected(s: &Session, number: &[u8]) -> Option<u32> {
    canonical(number).and_then(|n| u32::try_from(n).ok()).filter(|n| *n < databases(s))
}

/// How many databases the tenant can reach.
pub fn databases(s: &Session) -> u32 {
    s.facts(|f| s.tenant.databases.min(f.databases.saturating_sub(s.tenant.db_base)))
}

/// What Redis says to a SELECT it cannot follow.
pub fn select_error(number: &[u8]) -> Value {
    Value::error(match canonical(number).map(i32::try_from) {
        Some(Ok(_)) => "ERR DB index is out of range",
        Some(Err(_)) | None => "ERR value is not an integer or out of range",
    })
}

/// Goes over to database `db` of the tenant; nothing is in flight. Watched keys stay watched, so a connection that watches goes along.
pub fn select(s: &mut Session, db: u32) {
    s.db = db;
    s.client.db.store(db, std::sync::atomic::Ordering::Relaxed);
    let number = s.tenant.db_base + db;
    if let Some(own) = &s.own {
        own.taint();
        let text = number.to_string();
        own.send_own(format!("*2\r\n$6\r\nSELECT\r\n${}\r\n{text}\r\n", text.len()).as_bytes());
    }
}

fn quit(s: &mut Session) -> Flow {
    if s.down.in_flight() > 0 {
        return Flow::Again(Until::Drained);
    }
    s.answer(&Value::ok());
    Flow::Quit
}

fn reset(s: &mut Session) -> Flow {
    if s.down.in_flight() > 0 {
        return Flow::Again(Until::Drained);
    }
    drop_state(s);
    pubsub::leave(s);
    monitor::leave(s);
    s.set_replies(Replies::On);
    s.near = true;
    s.proto = Proto::Resp2;
    s.db = 0;
    s.client.db.store(0, std::sync::atomic::Ordering::Relaxed);
    s.change(|client| client.resp.store(2, std::sync::atomic::Ordering::Relaxed));
    s.client.relabel(|l| l.name.clear());
    s.lane = None;
    login::start_over(s);
    s.answer(&Value::simple("RESET"));
    Flow::Next
}

/// Drops MULTI and WATCH, with the connection they were on.
pub fn drop_state(s: &mut Session) {
    tracking::end(s);
    s.tx = None;
    s.client.queued.store(crate::clients::NO_MULTI, std::sync::atomic::Ordering::Relaxed);
    s.watched = 0;
    s.watch_lost = false;
    s.select_on_commit = None;
    if let Some(own) = s.own.take() {
        own.taint();
        s.reach.pool.release(own);
    }
}

/// HELLO \[protover \[AUTH user password\] \[SETNAME name\]\]: all of it or nothing.
fn hello(s: &mut Session, args: &Args<'_>) -> Flow {
    if s.down.in_flight() > 0 {
        return Flow::Again(Until::Drained);
    }
    let mut hello = Hello { proto: s.proto, name: None };
    if args.len() > 1 {
        hello.proto = match canonical(args.at(1)) {
            Some(2) => Proto::Resp2,
            Some(3) => Proto::Resp3,
            Some(_) => return s.refuse("NOPROTO unsupported protocol version"),
            None => return s.refuse("ERR Protocol version is not an integer or out of range"),
        };
    }
    if hello.proto != s.proto && s.tracking.is_some() {
        return s.refuse("ERR the protocol version cannot change while CLIENT TRACKING is on");
    }
    let mut login = None;
    let mut i = 2;
    while i < args.len() {
        let more = args.len() - 1 - i;
        if args.at(i).eq_ignore_ascii_case(b"AUTH") && more >= 2 {
            login = Some((args.at(i + 1), args.at(i + 2)));
            i += 3;
        } else if args.at(i).eq_ignore_ascii_case(b"SETNAME") && more >= 1 {
            if !client::printable(args.at(i + 1)) {
                return s.refuse(client::BAD_NAME);
            }
            if args.at(i + 1).len() > client::LABEL {
                return s.refuse(client::too_long("Client names"));
            }
            hello.name = Some(args.at(i + 1).to_vec());
            i += 2;
        } else {
            return s.refuse([b"ERR Syntax error in HELLO option '", args.at(i), b"'"].concat());
        }
    }
    let open = s.worker.shared.directory.load().open;
    match login {
        Some((user, _)) if open && user != b"default" => s.refuse(WRONG_PASSWORD),
        Some((user, password)) if !open => Flow::Login(Attempt::new(user, password, Some(hello))),
        None if !s.logged_in => s.refuse(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
        ),
        _ => {
            greet(s, hello);
            Flow::Next
        }
    }
}

/// What HELLO asks for beside the login.
#[derive(Debug)]
pub struct Hello {
    proto: Proto,
    name: Option<Vec<u8>>,
}

/// Carries a HELLO out, and answers it; nothing is in flight.
pub fn greet(s: &mut Session, hello: Hello) {
    let Hello { proto, name } = hello;
    if let Some(name) = name {
        s.client.relabel(|l| l.name = name);
    }
    if proto != s.proto {
        if s.watched > 0 {
            // A connection of the other version would not watch: the next EXEC fails, as after any change of a watched key.
            drop_state(s);
            s.watch_lost = true;
        }
        s.proto = proto;
        pubsub::speaks(s, proto);
        s.lane = None;
        s.unpin_when_done();
        let number = if proto == Proto::Resp3 { 3 } else { 2 };
        s.change(|client| client.resp.store(number, std::sync::atomic::Ordering::Relaxed));
    }
    let facts = s.facts(|f| (f.server.clone(), f.version.clone()));
    let reply = Value::Map(vec![
        (Value::bulk("server"), Value::bulk(&facts.0)),
        (Value::bulk("version"), Value::bulk(&facts.1)),
        (Value::bulk("proto"), Value::Int(if proto == Proto::Resp3 { 3 } else { 2 })),
        (Value::bulk("id"), Value::Int(i64::try_from(s.client.id).unwrap_or(i64::MAX))),
        (Value::bulk("mode"), Value::bulk("standalone")),
        (Value::bulk("role"), Value::bulk("master")),
        (Value::bulk("modules"), Value::Array(Vec::new())),
    ]);
    s.answer(&reply);
}

/// KEYFENCE TIER \[ON|OFF\]: whether this connection's reads may be answered from the tier, or what it is.
fn tier_mode(s: &mut Session, args: &Args<'_>) -> Flow {
    match (args.len(), (args.len() > 2).then(|| args.at(2).to_ascii_uppercase()).as_deref()) {
        (2, _) => {
            let mode = match (s.tenant.tier.asked(), s.near) {
                (false, _) => "none",
                (true, true) => "on",
                (true, false) => "off",
            };
            s.answer(&Value::bulk(mode));
        }
        (3, Some(b"ON")) => {
            s.near = true;
            s.answer(&Value::ok());
        }
        (3, Some(b"OFF")) => {
            s.near = false;
            s.answer(&Value::ok());
        }
        _ => return s.refuse("ERR syntax error"),
    }
    Flow::Next
}

fn reply_mode(s: &mut Session, args: &Args<'_>) -> Flow {
    let mode = args.at(2).to_ascii_uppercase();
    match &mode[..] {
        b"ON" => {
            s.set_replies(Replies::On);
            s.answer(&Value::ok());
        }
        b"OFF" => s.set_replies(Replies::Off),
        // Inside OFF there is nothing to skip.
        b"SKIP" if s.replies() == Replies::Off => {}
        b"SKIP" => s.set_replies(Replies::Skip),
        _ => return s.refuse("ERR syntax error"),
    }
    Flow::Next
}

fn acl_cat(args: &Args<'_>) -> Value {
    match args.len() {
        2 => Value::Array(Categories::ALL.iter().map(|(_, word)| Value::bulk(word)).collect()),
        3 => match Categories::named(&args.at(2).to_ascii_lowercase()) {
            None => Value::error(format!("ERR Unknown category '{}'", String::from_utf8_lossy(args.at(2)))),
            Some(category) => {
                let rows = command::ROWS.iter().filter(|row| row.served() && row.categories.has(category));
                Value::Array(rows.map(|row| Value::bulk(row.lower_name())).collect())
            }
        },
        _ => Value::error("ERR wrong number of arguments for 'acl|cat' command"),
    }
}

fn acl_genpass(args: &Args<'_>) -> Value {
    const ERROR: &str =
        "ERR ACL GENPASS argument must be the number of bits for the output password, a positive number up to 4096";
    let bits = match args.len() {
        2 => 256,
        3 => match canonical(args.at(2)).map(usize::try_from) {
            Some(Ok(bits @ 1..=4096)) => bits,
            Some(_) => return Value::error(ERROR),
            None => return Value::error("ERR value is not an integer or out of range"),
        },
        _ => return Value::error("ERR wrong number of arguments for 'acl|genpass' command"),
    };
    let digits = bits.div_ceil(4);
    let mut bytes = vec![0; digits.div_ceil(2)];
    if getrandom::fill(&mut bytes).is_err() {
        return Value::error("ERR no randomness to be had");
    }
    let mut text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    text.truncate(digits);
    Value::bulk(text)
}
