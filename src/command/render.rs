//! The whole table for people and for programs: `keyfence commands`, and `docs/commands.md`.

use std::fmt::Write as _;

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

/// One JSON array with an object per command.
pub fn json() -> String {
    let mut out = String::from("[\n");
    for (i, row) in ROWS.iter().enumerate() {
        let flags: Vec<_> = row.flags.words().map(quoted).collect();
        let categories: Vec<_> = row.categories.words().map(|word| quoted(&format!("@{word}"))).collect();
        let comma = if i + 1 == ROWS.len() { "" } else { "," };
        line(
            &mut out,
            format_args!(
                "{{\"name\":{},\"served\":{},\"class\":{},\"since\":{},\"family\":{},\"valkey\":{},\"arity\":{},\"flags\":[{}],\
                 \"categories\":[{}],\"group\":{},\"names\":{},\"access\":{},\"reply\":{},\"connection\":{},\"summary\":{},\"note\":{}}}{comma}",
                quoted(row.name),
                row.served(),
                quoted(row.class.as_str()),
                quoted(row.since),
                quoted(row.family),
                quoted(row.valkey),
                row.arity,
                flags.join(","),
                categories.join(","),
                quoted(row.group),
                quoted(dash(row.specs)),
                quoted(dash(row.access)),
                quoted(&reply(row.reply)),
                quoted(&connection(row.conn)),
                quoted(row.summary),
                quoted(dash(row.note)),
            ),
        );
    }
    out.push_str("]\n");
    out
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
         `db` a database number; `pat`, `chan`, `idx` and so on other kinds of names.\n",
    );
    let mut groups: Vec<_> = ROWS.iter().map(|row| row.group).collect();
    groups.sort_unstable();
    groups.dedup();
    for group in groups {
        line(
            &mut out,
            format_args!(
                "\n## {group}\n\n| command | since | served | class | names | note |\n| --- | --- | --- | --- | --- | --- |"
            ),
        );
        for row in ROWS.iter().filter(|row| row.group == group) {
            let why = if row.keys == Keys::Unsupported || row.class == Class::Script { "not yet" } else { "no" };
            let served = if row.served() { "yes" } else { why };
            let names = if row.specs == "-" { String::new() } else { format!("`{}`", row.specs) };
            let cells = [row.name, dash(row.since), served, row.class.as_str(), &names, dash(row.note)].map(cell);
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

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            control if control.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
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
        assert_eq!(json().lines().count(), ROWS.len() + 2);
        assert_eq!(markdown().lines().filter(|line| line.ends_with('|')).count(), ROWS.len() + 2 + 6 + 2 * groups());
    }

    fn groups() -> usize {
        ROWS.iter().map(|row| row.group).collect::<std::collections::BTreeSet<_>>().len()
    }

    #[test]
    fn cells_and_strings_are_escaped() {
        assert_eq!(cell("a|b *c*"), "a\\|b \\*c\\*");
        assert_eq!(cell("`1; opt STORE*`"), "`1; opt STORE*`");
        assert_eq!(quoted("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }
}
