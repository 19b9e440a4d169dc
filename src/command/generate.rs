//! Makes `table.rs` from `commands.tsv` and `docs.tsv`, and keeps it fresh.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// One line of the table, split.
struct Line<'a> {
    name: &'a str,
    since: &'a str,
    family: &'a str,
    valkey: &'a str,
    arity: &'a str,
    flags: &'a str,
    keys: &'a str,
    access: &'a str,
    reply: &'a str,
    conn: &'a str,
    class: &'a str,
    note: &'a str,
}

fn parse(text: &str) -> Vec<Line<'_>> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    assert!(lines.next().is_some_and(|heading| heading.starts_with("name\tsince\t")), "the heading comes first");
    let mut rows: Vec<_> = lines
        .map(|line| {
            let columns: Vec<_> = line.split('\t').collect();
            let [name, since, family, valkey, arity, flags, keys, access, reply, conn, class, note] = columns[..]
            else {
                panic!("not twelve columns: {line}");
            };
            Line { name, since, family, valkey, arity, flags, keys, access, reply, conn, class, note }
        })
        .collect();
    // A space sorts before every character of a name, so that subcommands follow their container.
    rows.sort_by_key(|row| row.name);
    rows
}

/// Names of commands that are refused although each column by itself could be served.
const REFUSED: &[(&str, &str)] = &[
    ("CLUSTERSCAN", "needs a cluster upstream"),
    ("HIMPORT", "needs a connection that is cleaned before it is used again"),
    ("FT._LIST", "index names are one namespace for all tenants"),
];

/// Commands whose replies the tier may keep: [`Keep`](super::Keep) says which may be here. Not those that tell how much time is left (TTL), that
/// answer by chance (SRANDMEMBER), that scan (HSCAN), or that show the server's own affairs (OBJECT, XINFO).
#[rustfmt::skip]
const KEPT: &[&str] = &[
    "GET", "STRLEN", "GETRANGE", "SUBSTR", "GETBIT", "BITCOUNT", "BITPOS", "BITFIELD_RO", "MGET",
    "EXISTS", "TYPE", "EXPIRETIME", "PEXPIRETIME",
    "HGET", "HMGET", "HGETALL", "HLEN", "HEXISTS", "HKEYS", "HVALS", "HSTRLEN",
    "LRANGE", "LLEN", "LINDEX", "LPOS",
    "SMEMBERS", "SISMEMBER", "SMISMEMBER", "SCARD",
    "ZSCORE", "ZMSCORE", "ZRANGE", "ZCARD", "ZCOUNT", "ZLEXCOUNT", "ZRANK", "ZREVRANK", "ZREVRANGE", "ZRANGEBYSCORE", "ZREVRANGEBYSCORE",
    "ZRANGEBYLEX", "ZREVRANGEBYLEX",
    "GEOPOS", "GEODIST", "GEOHASH", "GEOSEARCH", "GEORADIUS_RO", "GEORADIUSBYMEMBER_RO",
    "XLEN", "XRANGE", "XREVRANGE",
    "JSON.GET", "JSON.TYPE", "JSON.STRLEN", "JSON.ARRLEN", "JSON.ARRINDEX", "JSON.OBJKEYS", "JSON.OBJLEN", "JSON.RESP",
];

fn keep(line: &Line<'_>, keys: &str, group: &str) -> &'static str {
    if !KEPT.contains(&line.name) {
        return "No";
    }
    let plain = line.class == "keyed"
        && line.flags.contains("readonly")
        && line.reply == "-"
        && line.conn == "-"
        && line.access == "R";
    assert!(plain, "{} is no plain read", line.name);
    match (line.name, keys) {
        ("MGET", _) => "Values",
        ("EXISTS", _) => "Each",
        (_, "One(1)") if group == "hash" => "Hash",
        (_, "One(1)") => "Reply",
        _ => panic!("{} has not one key", line.name),
    }
}

/// Whether a command that is forwarded may change a key: some that are flagged as reads change what is stored, others are said to by the server.
fn changes(line: &Line<'_>) -> bool {
    line.class == "keyed" && (line.flags.split(',').any(|flag| flag == "write") || line.access.contains(['W', 'D']))
}

fn shape(reply: &str) -> (String, bool) {
    let parts: Vec<_> = reply.split("; ").collect();
    let nogroup = parts.contains(&"err:NOGROUP");
    let rest: Vec<_> = parts.into_iter().filter(|part| *part != "err:NOGROUP").collect();
    let shape = match rest.join("; ").as_str() {
        "" | "-" => "Raw".into(),
        "[0]" => "First".into(),
        "keys[]" => "Names".into(),
        "xread" => "Xread".into(),
        "exec" => "Exec".into(),
        other => format!("Other({other:?})"),
    };
    (shape, nogroup)
}

fn conn(text: &str) -> String {
    match (text, text.split_once(':')) {
        ("-", _) => "Any".into(),
        ("block", _) => "Block".into(),
        ("same-conn,block", _) => "SameConn".into(),
        // UNSUBSCRIBE and its like: "end:sub"; EXEC: "end:tx,watch".
        (_, Some(("pin", what))) => format!("Pin({what:?})"),
        (_, Some(("end", what))) => format!("End({what:?})"),
        (_, Some(("state", what))) => format!("State({what:?})"),
        _ => panic!("conn column: {text}"),
    }
}

fn spec(text: &str) -> Option<(u8, i16, u8)> {
    let (range, step) = text.split_once('/').unwrap_or((text, "1"));
    let (first, last) = range.split_once("..").unwrap_or((range, range));
    Some((first.parse().ok()?, last.parse().ok()?, step.parse().ok()?))
}

/// The `Keys` of a row that is served if its names can be rewritten.
fn shape_of_keys(line: &Line<'_>) -> String {
    // Words in brackets say how the server's own table differs.
    let text = match line.keys.split_once(" [") {
        Some((text, remark)) if remark.starts_with("wrong-upstream") => text,
        _ => line.keys,
    };
    match (line.name, text) {
        ("SORT", "1; sortpat opt BY*; sortpat opt GET*; opt STORE*") => return "Sort".into(),
        ("SORT_RO", "1; sortpat opt BY*; sortpat opt GET*") => return "SortRo".into(),
        ("GEORADIUS", "1; opt STORE*; opt STOREDIST*") => return "Georadius { options_from: 6 }".into(),
        ("GEORADIUSBYMEMBER", "1; opt STORE*; opt STOREDIST*") => return "Georadius { options_from: 5 }".into(),
        ("XREAD", "streams@1") => return "Streams { group: false }".into(),
        ("XREADGROUP", "streams@1") => return "Streams { group: true }".into(),
        ("COPY", "1; 2; db opt DB") => return "Copy".into(),
        ("MOVE", "1; db 2") => return "Move".into(),
        ("JSON.DEBUG", "2 [MEMORY only]") => return "JsonDebug".into(),
        (_, "-") => return "None".into(),
        // The function's name is no key's; scripts::functions puts the tenant's before it.
        ("FCALL" | "FCALL_RO", "func 1; numkeys@2") => return "Numkeys { dest: None, at: 2, step: 1 }".into(),
        // A channel gets the prefix as a key does.
        ("PUBLISH", "chan 1") | ("SPUBLISH", "schan 1") => return "One(1)".into(),
        _ => {}
    }
    let parts: Vec<_> = text.split("; ").collect();
    if let Some(count) = parts.last().and_then(|part| part.strip_prefix("numkeys@")) {
        let (at, step) = count.split_once('/').unwrap_or((count, "1"));
        return match parts[..] {
            [_] => format!("Numkeys {{ dest: None, at: {at}, step: {step} }}"),
            [dest, _] if dest.parse::<u8>().is_ok() => {
                format!("Numkeys {{ dest: Some({dest}), at: {at}, step: {step} }}")
            }
            _ => "Unsupported".into(),
        };
    }
    let Some(specs) = parts.iter().map(|part| spec(part)).collect::<Option<Vec<_>>>() else {
        return "Unsupported".into();
    };
    match specs[..] {
        [(first, last, 1)] if i16::from(first) == last => format!("One({first})"),
        [(first, last, step)] => format!("Range {{ first: {first}, last: {last}, step: {step} }}"),
        _ => {
            let list: Vec<_> = specs
                .iter()
                .map(|(first, last, step)| format!("KeySpec {{ first: {first}, last: {last}, step: {step} }}"))
                .collect();
            format!("Positions(&[{}])", list.join(", "))
        }
    }
}

fn keys(line: &Line<'_>) -> String {
    let refused = REFUSED
        .iter()
        .any(|(name, _)| line.name == *name || line.name.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let forwarded = matches!(line.class, "keyed" | "keyless");
    match line.class {
        // Neither is ever walked.
        "denied" | "local" => return "None".into(),
        _ if refused => return "Unsupported".into(),
        // SCAN and KEYS take a pattern, SUBSCRIBE and its kin channels, which their emulation finds by itself.
        "scoped" => {
            let own = ["pat ", "chan ", "chanpat ", "schan "].iter().any(|kind| line.keys.starts_with(kind));
            return if own || line.keys == "-" { "None".into() } else { "Unsupported".into() };
        }
        _ => {}
    }
    let unknown_reply = forwarded && shape(line.reply).0.starts_with("Other");
    let stateful = matches!(line.conn, "pin:session" | "pin:tracking" | "pin:sub" | "end:sub");
    if unknown_reply || stateful { "Unsupported".into() } else { shape_of_keys(line) }
}

fn served_class(line: &Line<'_>) -> bool {
    match line.class {
        "denied" => false,
        "script" => ["EVAL", "FCALL", "FUNCTION ", "SCRIPT "].iter().any(|family| line.name.starts_with(family)),
        _ => true,
    }
}

fn union(set: &str, words: &str) -> String {
    words.split(',').filter(|word| *word != "-").fold(format!("{set}::NONE"), |union, word| {
        let member = format!("{set}::{}", word.trim_start_matches('@').to_ascii_uppercase());
        if union.ends_with("::NONE") { member } else { format!("{union}.or({member})") }
    })
}

fn render(text: &str, docs: &str) -> String {
    let lines = parse(text);
    let docs: HashMap<_, _> = docs.lines().filter_map(|line| line.split_once('\t')).collect();
    let position: HashMap<_, _> = lines.iter().enumerate().map(|(i, line)| (line.name, i)).collect();
    let parent = |line: &Line<'_>| line.name.split_once(' ').map(|(container, _)| position[container]);
    let mut subs = vec![Vec::new(); lines.len()];
    for (i, line) in lines.iter().enumerate() {
        if let Some(parent) = parent(line) {
            subs[parent].push(i);
        }
    }
    let mut shapes: Vec<_> = lines.iter().map(keys).collect();
    let mut served: Vec<_> =
        lines.iter().zip(&shapes).map(|(line, keys)| keys != "Unsupported" && served_class(line)).collect();
    for (container, subs) in subs.iter().enumerate().filter(|(_, subs)| !subs.is_empty()) {
        let help = |i: usize| lines[i].name.ends_with(" HELP");
        served[container] = subs.iter().any(|&i| served[i] && !help(i));
        if served[container] {
            continue;
        }
        // What is left of a container that serves nothing is its HELP.
        for &i in subs.iter().filter(|&&i| help(i)) {
            served[i] = false;
            if lines[i].class == "keyless" {
                shapes[i] = "Unsupported".into();
            }
        }
    }

    let mut out = String::from(
        "//! The rows. Generated from commands.tsv and docs.tsv; run `KEYFENCE_BLESS=1 cargo test --lib command` to renew.\n\n\
         use super::{Categories, Class, ConnNeed, Flags, Keep, KeySpec, Keys, NO_PARENT, ReplyRule, Row, Shape};\n\n\
         /// Every command keyfence knows, sorted by name; subcommands follow their container.\n\
         #[rustfmt::skip]\npub static ROWS: &[Row] = &[\n",
    );
    for (i, line) in lines.iter().enumerate() {
        let Line { name, since, family, valkey, arity, access, note, .. } = line;
        let parent = parent(line).map_or_else(|| "NO_PARENT".into(), |i| i.to_string());
        let word = name.split_once(' ').map_or(*name, |(_, word)| word);
        let flags = union("Flags", line.flags);
        let columns: Vec<_> =
            docs.get(name).unwrap_or_else(|| panic!("{name} is not in docs.tsv")).split('\t').collect();
        let [group, categories, key_flags, summary] = columns[..] else {
            panic!("not five columns in docs.tsv: {name}")
        };
        let categories = union("Categories", categories);
        let summary = if summary == "-" { "" } else { summary.trim() };
        let (shape, nogroup) = shape(line.reply);
        let class = match line.class {
            "keyed" => "Keyed",
            "keyless" => "Keyless",
            "scoped" => "Scoped",
            "local" => "Local",
            "script" => "Script",
            "denied" => "Denied",
            other => panic!("class column: {other}"),
        };
        writeln!(
            out,
            "    Row {{ index: {i}, parent: {parent}, subs: {}, name: {name:?}, word: {word:?}, since: {since:?}, family: {family:?}, \
             valkey: {valkey:?}, arity: {arity}, flags: {flags}, keys: Keys::{}, specs: {:?}, access: {access:?}, \
             reply: ReplyRule {{ shape: Shape::{shape}, nogroup: {nogroup} }}, conn: ConnNeed::{}, class: Class::{class}, served: {}, \
             group: {group:?}, categories: {categories}, \
             key_flags: {key_flags:?}, summary: {summary:?}, note: {note:?}, keep: Keep::{}, changes: {} }},",
            subs[i].len(),
            shapes[i],
            line.keys,
            conn(line.conn),
            served[i],
            keep(line, &shapes[i], group),
            changes(line),
        )
        .expect("a String takes all");
    }
    out.push_str("];\n");
    out
}

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Fails when the file at `path` is not `want`; with `KEYFENCE_BLESS` set, writes it instead.
pub(super) fn assert_fresh(path: &str, want: &str) {
    let path = file(path);
    let have = std::fs::read_to_string(&path).unwrap_or_default();
    if have == want {
        return;
    }
    if std::env::var_os("KEYFENCE_BLESS").is_some() {
        std::fs::write(&path, want).expect("the file can be written");
        return;
    }
    let line = have.lines().zip(want.lines()).position(|(have, want)| have != want).unwrap_or(0) + 1;
    panic!(
        "{} is not what it is generated from (line {line}); run `KEYFENCE_BLESS=1 cargo test --lib command`",
        path.display()
    );
}

#[test]
fn table_is_fresh() {
    let read = |path| std::fs::read_to_string(file(path)).expect("the table is there");
    assert_fresh("src/command/table.rs", &render(&read("src/command/commands.tsv"), &read("src/command/docs.tsv")));
}
