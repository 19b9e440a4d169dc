//! SLOWLOG of the tenant's own commands; see [`crate::slowlog`].

use crate::{
    command::{Args, ROWS, Row},
    resp::Value,
    rewrite::canonical,
    session::Session,
    slowlog::Entry,
};

/// Entries without a count, as in Redis.
const DEFAULT: usize = 10;

pub(super) fn answer(s: &Session, row: &Row, args: &Args<'_>) -> Value {
    let (log, tenant) = (&s.worker.shared.slowlog, s.tenant.id);
    match row.name {
        "SLOWLOG LEN" => Value::Int(i64::try_from(log.len(tenant)).unwrap_or(i64::MAX)),
        "SLOWLOG RESET" => {
            log.reset(tenant);
            Value::ok()
        }
        "SLOWLOG GET" => {
            let most = match args.len() {
                2 => DEFAULT,
                3 => match canonical(args.at(2)) {
                    Some(-1) => usize::MAX,
                    Some(n) if n >= 0 => usize::try_from(n).unwrap_or(usize::MAX),
                    Some(_) => return Value::error("ERR count should be greater than or equal to -1"),
                    None => return Value::error("ERR value is not an integer or out of range"),
                },
                _ => return Value::error("ERR wrong number of arguments for 'slowlog|get' command"),
            };
            Value::Array(log.newest(tenant, most).iter().map(entry).collect())
        }
        _ => super::help(
            "SLOWLOG",
            &[
                "GET [<count>]",
                "    Return top <count> entries from the slowlog (default: 10, -1 mean all). Entries are made of:",
                "    id, timestamp, time in microseconds, arguments array, client IP and port, client name",
                "LEN",
                "    Return the length of the slowlog.",
                "RESET",
                "    Reset the slowlog.",
            ],
        ),
    }
}

/// As Redis shows an entry, arguments left out in the way it leaves out those past the 31st.
fn entry(entry: &Entry) -> Value {
    let words: Vec<&str> = ROWS.get(usize::from(entry.row)).map_or_else(Vec::new, |row| row.name.split(' ').collect());
    let more = (entry.argc as usize).saturating_sub(words.len());
    let mut shown: Vec<Value> = words.iter().map(Value::bulk).collect();
    if more > 0 {
        shown.push(Value::bulk(format!("... ({more} more arguments)")));
    }
    let number = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let took = u64::try_from(entry.took.as_micros()).unwrap_or(u64::MAX);
    Value::Array(vec![
        number(entry.id),
        number(entry.at),
        number(took),
        Value::Array(shown),
        Value::bulk(""),
        Value::bulk(""),
    ])
}
