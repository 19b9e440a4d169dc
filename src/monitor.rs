//! MONITOR: a client sees the commands of its own tenant's connections, as keyfence takes them on
//! (<https://redis.io/docs/latest/commands/monitor/>).
//!
//! ```text
//!   1339518083.107412 [0 127.0.0.1:60866] "SET" "user:1" "…"
//! ```
//!
//! What Redis would show is every tenant's commands, so nothing is asked of the upstream. Differences to Redis: long arguments and long
//! requests are shortened as SLOWLOG shortens them; a command queued in MULTI is shown when it is queued; what a script calls is not shown.
//! While nobody watches, a command costs one look at a counter.

use std::{
    io::Write,
    sync::atomic::Ordering,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    command::{Args, Flags, Row},
    local,
    resp::Value,
    session::{Flow, Session, Until},
};

/// Most connections of a tenant that watch at once: each command of the tenant is written to all of them.
const WATCHERS: usize = 16;
/// Most bytes shown of an argument, and most arguments, as in Redis's SLOWLOG.
const SHOWN_BYTES: usize = 128;
const SHOWN_ARGS: usize = 32;

/// MONITOR.
pub fn command(s: &mut Session) -> Flow {
    // The first line must not come before the answer to this, nor that before earlier answers.
    if s.down.in_flight() > 0 {
        return Flow::Again(Until::Drained);
    }
    if !s.tenant.watchers.enter(&s.client, WATCHERS) {
        return s.refuse(format!("ERR at most {WATCHERS} connections of a tenant may MONITOR at once"));
    }
    s.client.monitors.store(true, Ordering::Relaxed);
    s.answer(&Value::ok());
    Flow::Next
}

/// The connection ends, starts over or becomes another tenant's.
pub fn leave(s: &Session) {
    if s.client.monitors.swap(false, Ordering::Relaxed) {
        s.tenant.watchers.leave(&s.client);
        // What others have left for it is of the tenant that it was.
        drop(s.client.change(|| ()));
    }
}

/// What a watching connection may not do, in Redis's words.
pub fn restricted(s: &Session, row: &Row) -> Option<&'static str> {
    let touches = row.flags.has(Flags::READONLY)
        || row.is_write()
        || matches!(row.name, "EVAL" | "EVALSHA" | "FCALL" | "PUBLISH" | "SPUBLISH");
    (touches && s.client.monitors.load(Ordering::Relaxed)).then_some("ERR Replica can't interact with the keyspace")
}

/// Shows the tenant's watchers a command that is about to be carried out. `argc`: how many arguments it has,
/// of which `args` may be the first only.
#[cold]
pub fn show(s: &mut Session, row: &Row, args: &Args<'_>, argc: usize) {
    // As Redis: what administers is nobody's to see.
    if row.flags.has(Flags::ADMIN) {
        return;
    }
    let mut line = Vec::with_capacity(256);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // The database of a SELECT is the one it leads to.
    let selected = (row.name == "SELECT").then(|| local::selected(s, args.at(1))).flatten();
    let (db, addr) = (selected.unwrap_or(s.db), &s.client.addr);
    // Writing to a vector does not fail.
    let _ = write!(line, "+{}.{:06} [{db} {addr}]", now.as_secs(), now.subsec_micros());
    // With so many arguments, the last place tells how many are not shown.
    let shown = if argc > SHOWN_ARGS { SHOWN_ARGS - 1 } else { argc };
    for (i, arg) in args.iter().take(shown).enumerate() {
        line.push(b' ');
        if secret(row, args, i) {
            line.extend_from_slice(b"\"(redacted)\"");
            continue;
        }
        let cut = arg.len().saturating_sub(SHOWN_BYTES);
        quote(&mut line, &arg[..arg.len() - cut], cut);
    }
    let more = argc - args.len().min(shown);
    if more > 0 {
        let _ = write!(line, " \"... ({more} more arguments)\"");
    }
    line.extend_from_slice(b"\r\n");
    // All watchers of a tenant together, about what one client may have waiting.
    let limit = (s.worker.shared.limits.load().output / WATCHERS).max(1024 * 1024);
    let tenant = s.tenant.id;
    let watchers = s.tenant.watchers.all();
    // Each of them is work for this client's turn.
    s.spend(watchers.len() as u64);
    for client in watchers {
        client.post(limit, |out| {
            let watches = client.monitors.load(Ordering::Relaxed);
            if watches && client.tenant.load(Ordering::Relaxed) == tenant {
                out.extend_from_slice(&line);
            }
        });
    }
}

/// Whether the argument at `i` is part of a login.
fn secret(row: &Row, args: &Args<'_>, i: usize) -> bool {
    match row.name {
        "AUTH" => i > 0,
        "HELLO" => (1..=2).any(|back| i > 1 + back && args.at(i - back).eq_ignore_ascii_case(b"AUTH")),
        _ => false,
    }
}

/// In double quotes, as Redis quotes (`sdscatrepr`), and how many bytes are not shown.
fn quote(line: &mut Vec<u8>, arg: &[u8], cut: usize) {
    line.push(b'"');
    for &byte in arg {
        match byte {
            b'"' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\t' => line.extend_from_slice(b"\\t"),
            0x07 => line.extend_from_slice(b"\\a"),
            0x08 => line.extend_from_slice(b"\\b"),
            b' '..=b'~' => line.push(byte),
            _ => {
                let _ = write!(line, "\\x{byte:02x}");
            }
        }
    }
    if cut > 0 {
        let _ = write!(line, "... ({cut} more bytes)");
    }
    line.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(arg: &[u8], cut: usize) -> String {
        let mut line = Vec::new();
        quote(&mut line, arg, cut);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn quotes_as_redis_does() {
        assert_eq!(quoted(b"a b", 0), r#""a b""#);
        assert_eq!(quoted(b"\"\\\n\r\t\x07\x08\x00\x7f\xff", 0), r#""\"\\\n\r\t\a\b\x00\x7f\xff""#);
        assert_eq!(quoted(b"ab", 7), r#""ab... (7 more bytes)""#);
    }
}
