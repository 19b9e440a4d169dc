//! The whole table for people and for programs: `keyfence commands`, and `docs/commands.md`.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Class, ConnNeed, Keys, ROWS, ReplyRule, Row, Shape};

/// For a terminal: one aligned line per command.
pub fn text() -> String {
    let width = |of: &dyn Fn(&Row) -> usize| ROWS.iter().map(of).max().unwrap_or(0);
    let (name, names) = (width(&|row| row.name.len()), width(&|row| row.specs.len()));
    let mut out = String::new();
    for row in ROWS {
        let served = if row.served() { "yes" } else { "no" };
        line(
            &mut out,
            format_args!(
                "{:name$}  {served:3}  {:7}  {:names$}  {}",
                row.name,
                row.class.as_str(),
                row.specs,
                row.since
            ),
        );
    }
    out
}

/// A row as programs read it.
#[derive(Serialize)]
struct Entry {
    name: &'static str,
    served: bool,
    class: &'static str,
    since: &'static str,
    family: &'static str,
    valkey: &'static str,
    arity: i16,
    flags: Vec<&'static str>,
    categories: Vec<String>,
    group: &'static str,
    names: &'static str,
    access: &'static str,
    reply: String,
    connection: String,
    summary: &'static str,
    tier: &'static str,
    note: &'static str,
}

/// One JSON array with an object per command.
pub fn json() -> String {
    let entries: Vec<Entry> = ROWS
        .iter()
        .map(|row| Entry {
            name: row.name,
            served: row.served(),
            class: row.class.as_str(),
            since: row.since,
            family: row.family,
            valkey: row.valkey,
            arity: row.arity,
            flags: row.flags.words().collect(),
            categories: row.categories.words().map(|word| format!("@{word}")).collect(),
            group: row.group,
            names: dash(row.specs),
            access: dash(row.access),
            reply: reply(row.reply),
            connection: connection(row.conn),
            summary: row.summary,
            tier: row.keep.as_str(),
            note: dash(row.note),
        })
        .collect();
    serde_json::to_string_pretty(&entries)
        .map_or_else(|error| unreachable!("text and numbers: {error}"), |json| json + "\n")
}

/// The page `docs/commands.md`.
pub fn markdown() -> String {
    let served = ROWS.iter().filter(|row| row.served()).count();
    let mut out = format!(
        "# Commands\n\n\
         <!-- Generated from src/command/commands.tsv; run `KEYFENCE_BLESS=1 cargo test --lib command` to renew. -->\n\n\
         keyfence knows {} commands and subcommands of Redis, Valkey and their modules, and serves {served} of them. A command that is \
         not on this page, or not served, is refused and never forwarded.\n\n\
         | class | what keyfence does | commands | served |\n| --- | --- | ---: | ---: |\n",
        ROWS.len(),
    );
    for (class, what) in [
        (Class::Keyed, "puts the prefix before every name, forwards, takes the prefix off names in the reply"),
        (Class::Keyless, "forwards it as it is"),
        (Class::Scoped, "emulates it inside the tenant's prefix"),
        (Class::Local, "answers it itself"),
        (Class::Script, "runs a script inside the tenant's prefix"),
        (Class::Denied, "refuses it"),
    ] {
        let rows = || ROWS.iter().filter(|row| row.class == class);
        let served = rows().filter(|row| row.served()).count();
        line(&mut out, format_args!("| {} | {what} | {} | {served} |", class.as_str(), rows().count()));
    }
    out.push_str(
        "\nNames: positions of keys, `argv[0]` being 0; `1..-1/2` every second from the first to the last; `numkeys@2` a count at 2 and \
         that many keys after it; `opt W` the argument after option W, `opt W*` also when the option repeats; `sortpat` a key template; \
         `db` a database number; `pat`, `chan`, `idx` and so on other kinds of names.\n\n\
         Tier: whether the in-process tier may keep the reply; `key by key` what it says of each key.\n",
    );
    let mut groups: Vec<_> = ROWS.iter().map(|row| row.group).collect();
    groups.sort_unstable();
    groups.dedup();
    for group in groups {
        line(
            &mut out,
            format_args!(
                "\n## {group}\n\n| command | since | served | class | names | tier | note |\n| --- | --- | --- | --- | --- | --- | --- |"
            ),
        );
        for row in ROWS.iter().filter(|row| row.group == group) {
            let why = if row.keys == Keys::Unsupported || row.class == Class::Script { "not yet" } else { "no" };
            let served = if row.served() { "yes" } else { why };
            let names = if row.specs == "-" { String::new() } else { format!("`{}`", row.specs) };
            let cells =
                [row.name, dash(row.since), served, row.class.as_str(), &names, row.keep.as_str(), dash(row.note)]
                    .map(cell);
            line(&mut out, format_args!("| {} |", cells.join(" | ")));
        }
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}

fn dash(text: &str) -> &str {
    if text == "-" { "" } else { text }
}

/// Text that stands in one cell of a table; outside of code, what looks like markup is escaped.
fn cell(text: &str) -> String {
    let code = text.starts_with('`');
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '|' || !code && matches!(character, '*' | '_' | '<' | '>' | '[' | ']' | '`' | '~') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

fn reply(rule: ReplyRule) -> String {
    let shape = match rule.shape {
        Shape::Raw => "",
        Shape::First => "first element",
        Shape::Names => "names",
        Shape::Xread => "xread",
        Shape::Exec => "exec",
        Shape::Other(code) => code,
    };
    match (shape, rule.nogroup) {
        (shape, false) => shape.into(),
        ("", true) => "NOGROUP error".into(),
        (shape, true) => format!("{shape}; NOGROUP error"),
    }
}

fn connection(need: ConnNeed) -> String {
    match need {
        ConnNeed::Any => "any".into(),
        ConnNeed::Block => "held while waiting".into(),
        ConnNeed::SameConn => "that of the earlier writes".into(),
        ConnNeed::Pin(what) => format!("own from now on: {what}"),
        ConnNeed::End(what) => format!("own until now: {what}"),
        ConnNeed::State(what) => format!("state: {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_fresh() {
        crate::command::generate::assert_fresh("docs/commands.md", &markdown());
    }

    #[test]
    fn every_row_is_in_each_form() {
        assert_eq!(text().lines().count(), ROWS.len());
        let parsed: serde_json::Value = serde_json::from_str(&json()).unwrap();
        assert_eq!(parsed.as_array().map(Vec::len), Some(ROWS.len()));
        assert_eq!(markdown().lines().filter(|line| line.ends_with('|')).count(), ROWS.len() + 2 + 6 + 2 * groups());
    }

    fn groups() -> usize {
        ROWS.iter().map(|row| row.group).collect::<std::collections::BTreeSet<_>>().len()
    }

    #[test]
    fn cells_are_escaped() {
        assert_eq!(cell("a|b *c*"), "a\\|b \\*c\\*");
        assert_eq!(cell("`1; opt STORE*`"), "`1; opt STORE*`");
    }
}
