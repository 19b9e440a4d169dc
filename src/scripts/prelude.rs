//! The Lua that stands before a tenant's script, so that inside it names look as they do outside.
//!
//! ```text
//!   #!lua flags=no-writes          #!lua flags=no-writes
//!   return redis.call(…)     ►     local redis=redis do … end return redis.call(…)
//! ```
//!
//! It is one line, put before the first line of code, so that every line of the script keeps its number. It makes scripts work; what makes
//! them safe is the upstream's ACL: a script finds the server's own `redis` in `_G`.
//!
//! A script is compiled once and run often, so what costs is what the prelude does per run: two closures, three small tables, and one entry per
//! key. Where the names of a command stand is written in one long constant, which costs nothing until it is searched, and what was found
//! is kept for the rest of the run. Commands that the source names in quotes are there from the start.

use std::{borrow::Cow, fmt::Write as _, sync::LazyLock};

use crate::command::{self, Class, Flags, KeySpec, Keys, ROWS, Row, Shape};

/// The text, without its comments, in one line.
static PRELUDE: LazyLock<String> = LazyLock::new(|| template(include_str!("prelude.lua")));

/// A prelude's text without its comments and in one line, with blanks to be filled by [`fill`].
pub fn template(text: &str) -> String {
    let line = |text: &str| {
        let code = text.lines().map(str::trim).filter(|line| !line.starts_with("--"));
        code.collect::<Vec<_>>().join(" ")
    };
    line(text).replace("<CALLS>", &line(include_str!("calls.lua")))
}

/// Most commands whose places are written into the script's own table.
const SEEDS: usize = 24;
/// Most lines on which a `return redis.call(…)` is remembered.
const TAILS: usize = 64;

/// The settings of cjson as a server starts with them. Every script upstream shares them, so whoever uses it sets them first; a server that
/// lacks one is asked for a type instead.
static CJSON: LazyLock<String> = LazyLock::new(|| {
    let mut code = String::from("do local J=rawget(_G,'cjson') or M");
    for (name, arguments) in [
        ("encode_sparse_array", "false,2,10"),
        ("encode_max_depth", "1000"),
        ("decode_max_depth", "1000"),
        ("encode_number_precision", "14"),
        ("encode_keep_buffer", "true"),
        ("encode_invalid_numbers", "false"),
        ("decode_invalid_numbers", "true"),
        ("decode_array_with_array_mt", "false"),
    ] {
        let _ = write!(code, ";(J.{name} or T)({arguments})");
    }
    code.push_str(" end");
    code
});

/// What a script is wrapped for.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// Put before every name.
    pub prefix: &'a [u8],
    /// The upstream database that the tenant's database 0 is.
    pub db_base: u32,
    /// How many databases the tenant has.
    pub databases: u32,
    /// The upstream's ACL refuses what the tenant may not run; else the prelude does, as far as it can.
    pub walled: bool,
    /// The upstream calls `redis` `server`, too.
    pub valkey: bool,
}

/// `source` as it is sent upstream. `has` says which commands the upstream knows.
pub fn wrap(source: &[u8], world: &World<'_>, has: impl Fn(&Row) -> bool) -> Vec<u8> {
    let (head, line) = match source {
        [b'#', b'!', ..] => match memchr::memchr(b'\n', source) {
            Some(end) => (end + 1, 2),
            // No code at all: the server says so.
            None => return source.to_vec(),
        },
        _ => (0, 1),
    };
    let (head, body) = source.split_at(head);
    let mut out = Vec::with_capacity(source.len() + 8 * 1024);
    out.extend_from_slice(head);
    fill(&PRELUDE, &mut out, |name| filled(name, body, line, world, &has));
    out.push(b' ');
    out.extend_from_slice(body);
    out
}

/// Appends a [`template`] with each of its blanks, upper case words in angle brackets, as `filled` says.
pub fn fill<'a>(template: &str, out: &mut Vec<u8>, filled: impl Fn(&str) -> Cow<'a, str>) {
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('<') {
        out.extend_from_slice(before.as_bytes());
        let name = after.bytes().take_while(u8::is_ascii_uppercase).count();
        let (name, after) = after.split_at(name);
        match after.strip_prefix('>') {
            Some(after) if !name.is_empty() => {
                out.extend_from_slice(filled(name).as_bytes());
                rest = after;
            }
            // A comparison.
            _ => {
                out.push(b'<');
                out.extend_from_slice(name.as_bytes());
                rest = after;
            }
        }
    }
    out.extend_from_slice(rest.as_bytes());
}

/// What stands in a blank that the preludes of scripts and libraries share: before `body`, which begins on line `line`.
pub fn filled(name: &str, body: &[u8], line: u32, world: &World<'_>, has: &impl Fn(&Row) -> bool) -> Cow<'static, str> {
    let mentions = |word: &str| memchr::memmem::find(body, word.as_bytes()).is_some();
    match name {
        "NAMES" if world.valkey && mentions("server") => "redis,server".into(),
        "NAME" | "NAMES" => "redis".into(),
        "ALIAS" if world.valkey && mentions("server") => "server=redis".into(),
        "PREFIX" => literal(world.prefix).into(),
        "LEN" => world.prefix.len().to_string().into(),
        "AFTER" => (world.prefix.len() + 1).to_string().into(),
        "DATABASES" => world.databases.to_string().into(),
        "BASE" => world.db_base.to_string().into(),
        "LINE" => line.to_string().into(),
        "TABLE" => literal(table(world, has).as_bytes()).into(),
        "SEEDS" => seeds(body, world, has).into(),
        "TAIL" => tails(body, line).into(),
        "ACL" if mentions("acl_check_cmd") => {
            ",acl_check_cmd=function(...) if not M[1] then f() end return M[1](R.acl_check_cmd,...) end".into()
        }
        "CJSON" if mentions("cjson") => CJSON.as_str().into(),
        "UNKNOWN" if !world.walled => {
            "do return {err=\"ERR The user executing the script can't run this command or subcommand\"} end".into()
        }
        _ => "".into(),
    }
}

/// A Lua string of these bytes.
pub fn literal(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('\'');
    for &c in bytes {
        match c {
            b'\n' => out.push_str("\\n"),
            b'\'' | b'\\' => out.extend(['\\', c.into()]),
            _ if c.is_ascii_graphic() || c == b' ' => out.push(c.into()),
            _ => {
                let _ = write!(out, "\\{c:03}");
            }
        }
    }
    out.push('\'');
    out
}

/// Where the names of every command stand that a script could call: `\nget=1\nmget=R101\n`, see [`shape`].
fn table(world: &World<'_>, has: &impl Fn(&Row) -> bool) -> String {
    let mut out = String::from("\n");
    for row in ROWS {
        let code = if row.is_container() && row.subcommands().iter().any(|sub| callable(sub) && has(sub)) {
            "c".into()
        } else if has(row) {
            shape(row, world)
        } else {
            continue;
        };
        if !code.is_empty() {
            let _ = writeln!(out, "{}={code}", row.lower_name());
        }
    }
    out
}

fn callable(row: &Row) -> bool {
    row.forwardable() && !row.flags.has(Flags::NOSCRIPT)
}

/// Where the names of a command stand, for the prelude: `1` the first argument and nothing to do with the reply; else lower-case letters for
/// the reply (`k` its first element is a name, `x` it is one of XREAD, `g` its error names a key) and one group per run of names, an
/// upper-case letter and three digits: `F` from, to, step; `R` from, how many are left at the end, step; `N` a name before the count or 0, the count,
/// step; `D` a database; `O` options from there on, whose words follow with what they eat: so many arguments, or `k` a name, `g` a template,
/// `d` a database, `s` the streams. Empty: not for scripts. `0`: no names.
fn shape(row: &Row, world: &World<'_>) -> String {
    // What is published by a script is heard by subscribers of the tenant.
    if matches!(row.name, "PUBLISH" | "SPUBLISH") {
        return "1".into();
    }
    if row.name == "SELECT" && world.databases > 1 {
        return "D100".into();
    }
    if row.name == "ECHO" {
        return "0".into();
    }
    if !callable(row) || !matches!(row.class, Class::Keyed | Class::Keyless) {
        return String::new();
    }
    let reply = match row.reply.shape {
        Shape::First => "k",
        Shape::Xread => "x",
        Shape::Raw => "",
        Shape::Names | Shape::Exec | Shape::Other(_) => return String::new(),
    };
    let error = if row.reply.nogroup { "g" } else { "" };
    let names = match row.keys {
        Keys::None => "0".into(),
        Keys::One(1) if reply.is_empty() && error.is_empty() => return "1".into(),
        Keys::One(at) => format!("F{at}{at}1"),
        Keys::Range { first, last, step } => range(KeySpec { first, last, step }),
        Keys::Positions(specs) => specs.iter().map(|spec| range(*spec)).collect(),
        Keys::Numkeys { dest, at, step } => format!("N{}{at}{step}", dest.unwrap_or(0)),
        Keys::Sort => "F111O200 asc=0 desc=0 alpha=0 limit=2 by=k get=g store=k ".into(),
        Keys::SortRo => "F111O200 asc=0 desc=0 alpha=0 limit=2 by=k get=g ".into(),
        Keys::Georadius { options_from } => format!(
            "F111O{options_from}00 withcoord=0 withdist=0 withhash=0 any=0 asc=0 desc=0 count=1 store=k storedist=k "
        ),
        Keys::Streams { .. } => "O100 count=1 block=1 claim=1 group=2 noack=0 streams=s ".into(),
        Keys::Copy => "F121O300 replace=0 db=d ".into(),
        Keys::Move => "F111D200".into(),
        Keys::JsonDebug => "F221".into(),
        Keys::Unsupported => return String::new(),
    };
    format!("{reply}{error}{names}")
}

fn range(KeySpec { first, last, step }: KeySpec) -> String {
    match last {
        ..0 => format!("R{first}{}{step}", last.unsigned_abs() - 1),
        _ => format!("F{first}{last}{step}"),
    }
}

/// Commands that stand in quotes in the source, as entries of the script's own table.
fn seeds(body: &[u8], world: &World<'_>, has: &impl Fn(&Row) -> bool) -> String {
    let mut found: Vec<&str> = Vec::new();
    let mut out = String::new();
    for (at, quote) in body.iter().enumerate().filter(|(_, c)| matches!(c, b'\'' | b'"')) {
        let rest = &body[at + 1..];
        let len = rest.iter().take(32).take_while(|c| c.is_ascii_alphanumeric() || **c == b'.').count();
        if len == 0 || rest.get(len) != Some(quote) {
            continue;
        }
        let Ok(word) = std::str::from_utf8(&rest[..len]) else { continue };
        let Some(row) = command::find(word).filter(|row| !row.is_container() && has(row)) else { continue };
        let code = shape(row, world);
        if code.is_empty() || found.contains(&word) {
            continue;
        }
        let code = if code == "1" { code } else { literal(code.as_bytes()) };
        if word.contains('.') {
            let _ = write!(out, ",['{word}']={code}");
        } else {
            let _ = write!(out, ",[\"{word}\"]={code}");
        }
        found.push(word);
        if found.len() == SEEDS {
            break;
        }
    }
    out
}

/// A `return redis.call(…)` leaves no trace of the line it stood on. An expression for that line: of the only such line there is, or of the first
/// that has the command's word.
fn tails(body: &[u8], line: u32) -> String {
    let mut named = String::new();
    let mut first = None;
    for (text, number) in body.split(|c| *c == b'\n').zip(line..) {
        let Some(at) = memchr::memmem::find(text, b"return") else { continue };
        let text = &text[at..];
        let Some(at) = memchr::memmem::find(text, b"call") else { continue };
        first.get_or_insert(number);
        let word: Vec<u8> = text[at + 4..]
            .iter()
            .skip_while(|c| matches!(c, b' ' | b'(' | b'\'' | b'"'))
            .take_while(|c| c.is_ascii_alphanumeric() || **c == b'.')
            .copied()
            .collect();
        if !word.is_empty() && named.len() < TAILS * 32 {
            let _ = write!(named, "{}={number};", String::from_utf8_lossy(&word));
        }
    }
    let Some(first) = first else { return "nil".into() };
    let several = named.matches('=').count() > 1;
    if several {
        // The word is plain text of letters, digits and dots, of which a dot in a pattern stands for itself too.
        format!("string.match({},';'..tostring(a)..'=(%d+)') or '{first}'", literal(format!(";{named}").as_bytes()))
    } else {
        format!("'{first}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORLD: World<'static> = World { prefix: b"t1:", db_base: 0, databases: 1, walled: true, valkey: false };

    fn wrapped(source: &str) -> String {
        String::from_utf8(wrap(source.as_bytes(), &WORLD, |_| true)).expect("text")
    }

    #[test]
    fn the_script_keeps_its_lines_and_its_first_one() {
        let text = wrapped("a\nb\nc");
        assert!(text.lines().count() == 3 && text.starts_with("local redis=") && text.ends_with(" a\nb\nc"), "{text}");
        let text = wrapped("#!lua flags=no-writes\na\nb");
        assert!(text.starts_with("#!lua flags=no-writes\nlocal redis=") && text.ends_with(" a\nb"), "{text}");
        assert_eq!(wrapped("#!lua"), "#!lua");
    }

    #[test]
    fn every_blank_is_filled() {
        let text = wrapped("return redis.acl_check_cmd('GET')");
        for name in ["NAME", "PREFIX", "TABLE", "SEEDS", "LINE", "ACL", "UNKNOWN", "DATABASES"] {
            assert!(!text.contains(&format!("<{name}>")), "{name}");
        }
        assert!(text.contains("P,S,n,F,G='t1:',") && text.contains("S(k,4)"), "{text}");
    }

    #[test]
    fn every_callable_command_has_a_shape() {
        for row in ROWS.iter().filter(|row| callable(row) && !row.is_container()) {
            let code = shape(row, &WORLD);
            assert!(!code.is_empty() || row.reply.shape == Shape::Names, "{} has none", row.name);
            // A number of two digits would be read as two.
            assert!(!matches!(row.keys, Keys::One(10..)), "{}", row.name);
        }
        let code = |name| shape(command::find(name).expect("a row"), &WORLD);
        assert_eq!(
            ["get", "mget", "mset", "rename", "zunionstore", "lmpop", "xclaim", "time", "object|encoding", "bitop"]
                .map(code),
            ["1", "R101", "R102", "F111F221", "N121", "kN011", "gF111", "0", "F221", "F221R301"]
        );
    }

    #[test]
    fn quoted_commands_are_seeded_in_the_case_they_are_written() {
        assert_eq!(
            seeds(b"redis.call('GET',x) redis.call(\"hset\", 'k') type('nothing')", &WORLD, &|_| true),
            ",[\"GET\"]=1,[\"hset\"]=1,[\"type\"]=1".replace(",[\"type\"]=1", "")
        );
    }
}
