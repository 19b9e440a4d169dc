//! CLIENT and its subcommands over the tenant's own connections: keyfence's ids, the tenant's sessions, nobody else's.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::{clients::Client, command::Args, resp::Value, rewrite::canonical, session::Session, tracking};

pub(super) const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";
/// Longest CLIENT PAUSE (Redis takes any; nobody means a year).
const MAX_PAUSE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Redis's rule for client names: `!` to `~`.
/// Most bytes of a name that a client gives itself: every CLIENT LIST repeats it.
pub(super) const LABEL: usize = 1024;

/// The error of a longer one.
pub(super) fn too_long(what: &str) -> String {
    format!("ERR {what} cannot be longer than {LABEL} bytes.")
}

pub(super) fn printable(text: &[u8]) -> bool {
    text.iter().all(|c| (b'!'..=b'~').contains(c))
}

pub(super) fn answer(s: &Session, what: &str, args: &Args<'_>) -> Value {
    match what {
        "ID" => Value::Int(number(s.client.id)),
        "GETNAME" => match s.client.labels().name {
            name if name.is_empty() => Value::Null,
            name => Value::Bulk(name),
        },
        "SETNAME" if !printable(args.at(2)) => Value::error(BAD_NAME),
        "SETNAME" if args.at(2).len() > LABEL => Value::error(too_long("Client names")),
        "SETNAME" => {
            s.client.relabel(|l| l.name = args.at(2).to_vec());
            Value::ok()
        }
        "SETINFO" => setinfo(s, args),
        "INFO" => Value::Verbatim(s.client.line(&s.tenant.name) + "\n"),
        "LIST" => list(s, args),
        "KILL" => kill(s, args),
        "PAUSE" => pause(s, args),
        "UNPAUSE" => {
            s.tenant.pause.end();
            for client in s.worker.shared.clients.of(s.tenant.id) {
                client.alarm.ring();
            }
            Value::ok()
        }
        "NO-EVICT" | "NO-TOUCH" => on_off(args.at(2)),
        "GETREDIR" => tracking::redirected(s),
        "TRACKINGINFO" => tracking::info(s),
        "CAPA" => Value::ok(),
        "HELP" => super::help(
            "CLIENT",
            &[
                "CACHING (YES|NO)",
                "    Enable/disable tracking of the keys for next command in OPTIN/OPTOUT modes.",
                "GETREDIR",
                "    Return the client ID we are redirecting to when tracking is enabled.",
                "GETNAME",
                "    Return the name of the current connection.",
                "ID",
                "    Return the ID of the current connection.",
                "INFO",
                "    Return information about the current client connection.",
                "KILL <ip:port>",
                "    Kill connection made from <ip:port>.",
                "KILL <option> <value> [<option> <value> [...]]",
                "    Kill connections. Options are ADDR, LADDR, ID, TYPE, USER, MAXAGE and SKIPME.",
                "LIST [TYPE <type>|ID <id> [<id> ...]]",
                "    Return information about this tenant's connections.",
                "NO-EVICT (ON|OFF)",
                "    Accepted without effect.",
                "NO-TOUCH (ON|OFF)",
                "    Accepted without effect.",
                "PAUSE <timeout> [WRITE|ALL]",
                "    Suspend this tenant's clients for <timeout> milliseconds.",
                "REPLY (ON|OFF|SKIP)",
                "    Control the replies sent to the current connection.",
                "SETINFO (LIB-NAME|LIB-VER) <value>",
                "    Set client meta attributes.",
                "SETNAME <name>",
                "    Assign the name <name> to the current connection.",
                "TRACKING (ON|OFF) [REDIRECT <id>] [BCAST] [PREFIX <prefix> [...]] [OPTIN] [OPTOUT] [NOLOOP]",
                "    Control server assisted client side caching.",
                "TRACKINGINFO",
                "    Report tracking status for the current connection.",
                "UNBLOCK <clientid> [TIMEOUT|ERROR]",
                "    Unblock the specified blocked client.",
                "UNPAUSE",
                "    Stop the current client pause, resuming traffic.",
            ],
        ),
        _ => Value::error(format!("ERR wrong number of arguments for 'client|{}' command", what.to_ascii_lowercase())),
    }
}

fn number(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

fn on_off(word: &[u8]) -> Value {
    if word.eq_ignore_ascii_case(b"on") || word.eq_ignore_ascii_case(b"off") {
        // The upstream's connections are shared: neither of the two settings may reach them.
        Value::ok()
    } else {
        Value::error("ERR syntax error")
    }
}

fn setinfo(s: &Session, args: &Args<'_>) -> Value {
    let value = args.at(3).to_vec();
    let attribute = args.at(2).to_ascii_uppercase();
    if !matches!(&attribute[..], b"LIB-NAME" | b"LIB-VER") {
        return Value::error(format!("ERR Unrecognized option '{}'", String::from_utf8_lossy(args.at(2))));
    }
    if !printable(&value) {
        let name = String::from_utf8_lossy(&attribute).to_ascii_lowercase();
        return Value::error(format!("ERR {name} cannot contain spaces, newlines or special characters."));
    }
    if value.len() > LABEL {
        return Value::error(too_long("lib-name and lib-ver"));
    }
    s.client.relabel(|l| if attribute == b"LIB-NAME" { l.lib_name = value } else { l.lib_ver = value });
    Value::ok()
}

/// A type of clients as CLIENT LIST and KILL name them.
#[derive(Clone, Copy)]
enum Type {
    Normal,
    PubSub,
    /// No client here is of this type.
    Other,
}

impl Type {
    fn named(word: &[u8]) -> Option<Self> {
        match &word.to_ascii_lowercase()[..] {
            b"normal" => Some(Self::Normal),
            b"pubsub" => Some(Self::PubSub),
            b"master" | b"replica" | b"slave" => Some(Self::Other),
            _ => None,
        }
    }

    fn is(self, client: &Client) -> bool {
        match self {
            Self::Normal => !client.subscribes(),
            Self::PubSub => client.subscribes(),
            Self::Other => false,
        }
    }
}

fn unknown_type(word: &[u8]) -> Value {
    Value::error(format!("ERR Unknown client type '{}'", String::from_utf8_lossy(word)))
}

fn list(s: &Session, args: &Args<'_>) -> Value {
    let mut chosen = s.worker.shared.clients.of(s.tenant.id);
    if args.len() > 3 && args.at(2).eq_ignore_ascii_case(b"ID") {
        let mut ids = Vec::new();
        for arg in args.iter().skip(3) {
            match canonical(arg).and_then(|n| u64::try_from(n).ok()) {
                Some(id) => ids.push(id),
                None => return Value::error("ERR Invalid client ID"),
            }
        }
        chosen.retain(|c| ids.contains(&c.id));
    } else if args.len() == 4 && args.at(2).eq_ignore_ascii_case(b"TYPE") {
        match Type::named(args.at(3)) {
            Some(kind) => chosen.retain(|c| kind.is(c)),
            None => return unknown_type(args.at(3)),
        }
    } else if args.len() != 2 {
        return Value::error("ERR syntax error");
    }
    Value::Verbatim(chosen.iter().map(|c| c.line(&s.tenant.name) + "\n").collect())
}

/// What CLIENT KILL looks for.
#[derive(Default)]
struct Filter {
    id: Option<u64>,
    addr: Option<String>,
    laddr: Option<String>,
    max_age: Option<u64>,
    kind: Option<Type>,
    spare_self: bool,
}

impl Filter {
    fn matches(&self, client: &Client, own: u64) -> bool {
        self.kind.is_none_or(|kind| kind.is(client))
            && self.id.is_none_or(|id| id == client.id)
            && self.addr.as_ref().is_none_or(|a| **a == *client.addr)
            && self.laddr.as_ref().is_none_or(|a| **a == *client.laddr)
            && self.max_age.is_none_or(|age| client.since.elapsed().as_secs() >= age)
            && !(self.spare_self && client.id == own)
    }
}

fn kill(s: &Session, args: &Args<'_>) -> Value {
    let text = |i: usize| String::from_utf8_lossy(args.at(i)).into_owned();
    let own = s.client.id;
    let clients = s.worker.shared.clients.of(s.tenant.id);
    if args.len() == 3 {
        let filter = Filter { addr: Some(text(2)), ..Filter::default() };
        let Some(client) = clients.iter().find(|c| filter.matches(c, own)) else {
            return Value::error("ERR No such client");
        };
        end(client, own);
        return Value::ok();
    }
    let mut filter = Filter { spare_self: true, ..Filter::default() };
    let mut i = 2;
    while i < args.len() {
        if i + 1 == args.len() {
            return Value::error("ERR syntax error");
        }
        let value = args.at(i + 1);
        match &args.at(i).to_ascii_uppercase()[..] {
            b"ID" => match canonical(value).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0) {
                Some(id) => filter.id = Some(id),
                None => return Value::error("ERR client-id should be greater than 0"),
            },
            b"ADDR" => filter.addr = Some(text(i + 1)),
            b"LADDR" => filter.laddr = Some(text(i + 1)),
            b"TYPE" => match Type::named(value) {
                Some(kind) => filter.kind = Some(kind),
                None => return unknown_type(value),
            },
            // Users of other tenants are, to this one, users that do not exist.
            b"USER" if value == s.tenant.name.as_bytes() => {}
            b"USER" => return Value::error(format!("ERR No such user '{}'", text(i + 1))),
            b"MAXAGE" => match canonical(value).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0) {
                Some(age) => filter.max_age = Some(age),
                None => return Value::error("ERR maxage is not an integer or out of range"),
            },
            b"SKIPME" if value.eq_ignore_ascii_case(b"yes") => filter.spare_self = true,
            b"SKIPME" if value.eq_ignore_ascii_case(b"no") => filter.spare_self = false,
            _ => return Value::error("ERR syntax error"),
        }
        i += 2;
    }
    let matching: Vec<&Arc<Client>> = clients.iter().filter(|c| filter.matches(c, own)).collect();
    matching.iter().for_each(|c| end(c, own));
    Value::Int(number(matching.len() as u64))
}

/// One's own connection is closed when the reply is out.
fn end(client: &Client, own: u64) {
    if client.id == own {
        client.alarm.kill_when_idle();
    } else {
        client.alarm.kill();
    }
}

/// CLIENT UNBLOCK: the client and whether it is told an error, or the answer.
pub(super) fn unblock(s: &Session, args: &Args<'_>) -> Result<(Arc<Client>, bool), Value> {
    let Some(id) = canonical(args.at(2)).and_then(|n| u64::try_from(n).ok()) else {
        return Err(Value::error("ERR value is not an integer or out of range"));
    };
    let error = match args.len() {
        3 => false,
        4 if args.at(3).eq_ignore_ascii_case(b"TIMEOUT") => false,
        4 if args.at(3).eq_ignore_ascii_case(b"ERROR") => true,
        4 => return Err(Value::error("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")),
        _ => return Err(Value::error("ERR wrong number of arguments for 'client|unblock' command")),
    };
    // Of another tenant's the answer is that of a client that is none.
    let client = s.worker.shared.clients.get(id).filter(|c| c.tenant.load(Ordering::Relaxed) == s.tenant.id);
    client.filter(|c| c.blocked.load(Ordering::Relaxed)).map(|c| (c, error)).ok_or(Value::Int(0))
}

fn pause(s: &Session, args: &Args<'_>) -> Value {
    let millis = match canonical(args.at(2)) {
        Some(n) => match u64::try_from(n) {
            Ok(n) => n,
            Err(_) => return Value::error("ERR timeout is negative"),
        },
        None => return Value::error("ERR timeout is not an integer or out of range"),
    };
    let writes_only = match args.len() {
        3 => false,
        4 if args.at(3).eq_ignore_ascii_case(b"ALL") => false,
        4 if args.at(3).eq_ignore_ascii_case(b"WRITE") => true,
        4 => return Value::error("ERR CLIENT PAUSE mode must be WRITE or ALL"),
        _ => return Value::error("ERR wrong number of arguments for 'client|pause' command"),
    };
    s.tenant.pause.begin(Duration::from_millis(millis).min(MAX_PAUSE), writes_only);
    Value::ok()
}
