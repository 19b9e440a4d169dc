//! docs/errors.md and the texts of errors in the source: each in the other.
use std::collections::BTreeSet;
use std::path::Path;

/// First words of errors that keyfence makes.
const WORDS: &[&str] = &[
    "BUSY",
    "ERR",
    "EXECABORT",
    "MISCONF",
    "NOAUTH",
    "NOGROUP",
    "NOPERM",
    "NOPROTO",
    "NOSCRIPT",
    "NOTBUSY",
    "OOM",
    "OVERQUOTA",
    "THROTTLED",
    "UNBLOCKED",
    "UNKILLABLE",
    "UPSTREAM",
    "WRONGPASS",
    "WRONGTYPE",
];

/// Files whose texts of this form are looked for in what the upstream says, or printed by a command, and why.
const NOT_SENT: &[(&str, &str)] = &[
    ("rewrite/reply/script.rs", "how the upstream's errors begin"),
    ("metrics/kinds.rs", "what errors are counted as"),
    ("command/render.rs", "a column of `keyfence commands`"),
];

/// What `error("…")` makes errors of without its first word, and that word.
const WITHOUT_WORD: (&str, &str) = ("local/command_docs.rs", "ERR ");

/// A text as the document writes it: `…` for what is put in, without the wire's `-` and line end.
fn shown(literal: &str) -> String {
    let mut out = String::new();
    let mut depth = 0_u32;
    for c in literal.trim_start_matches('-').trim_end().replace('`', "'").chars() {
        match c {
            '{' => {
                if depth == 0 {
                    out.push('…');
                }
                depth += 1;
            }
            '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out
}

fn is_error(text: &str) -> bool {
    text.split_once(' ').is_some_and(|(word, rest)| WORDS.contains(&word) && rest.chars().any(char::is_alphabetic))
}

/// String literals of Rust source, unescaped, with the end of the code right before each.
fn literals(source: &str) -> Vec<(String, String)> {
    let bytes = source.as_bytes();
    let text = |from: usize, to: usize| String::from_utf8_lossy(&bytes[from..to]).into_owned();
    let past =
        |at: usize, wanted: u8| bytes[at..].iter().position(|&c| c == wanted).map_or(bytes.len(), |n| at + n + 1);
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if rest.starts_with(b"//") {
            at = past(at, b'\n');
        } else if rest.starts_with(b"'\"'") {
            at += 3;
        } else if rest.starts_with(b"'\\") {
            at = past(at + 3, b'\'');
        } else if rest.starts_with(b"\"") {
            let mut end = at + 1;
            while end < bytes.len() && bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            let literal = text(at + 1, end.min(bytes.len()));
            let mut parts = literal.split("\\\n");
            let mut joined = parts.next().unwrap_or_default().to_owned();
            parts.for_each(|part| joined.push_str(part.trim_start()));
            let before = text(at.saturating_sub(60), at);
            let before = before.trim_end_matches('b').trim_end().to_owned();
            found.push((before, joined.replace("\\r", "\r").replace("\\n", "\n").replace("\\\"", "\"")));
            at = end + 1;
        } else {
            at += 1;
        }
    }
    found
}

/// What a source file may say to clients.
fn errors_of(path: &str, source: &str) -> BTreeSet<String> {
    // Tests stand at the foot of a file.
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let mut found = BTreeSet::new();
    for (before, text) in literals(source) {
        let before = before.trim_end_matches("format!(").trim_end();
        if ["begins(", "starts_with(", "strip_prefix(", "=="].iter().any(|looks| before.ends_with(looks)) {
            continue;
        }
        let text = match () {
            () if before.ends_with("Busy(") => format!("BUSY {text}"),
            () if path == WITHOUT_WORD.0 && before.ends_with("error(") && !text.starts_with(WITHOUT_WORD.1) => {
                format!("{}{text}", WITHOUT_WORD.1)
            }
            () => text,
        };
        let text = shown(&text);
        if is_error(&text) {
            found.insert(text);
        }
    }
    found
}

/// The messages of a source file's warnings and errors in the log.
fn messages_of(source: &str) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let calls = ["tracing::warn!(", "tracing::error!("].into_iter().flat_map(|call| source.split(call).skip(1));
    // The message comes last: fields before it are names, or `name = value`.
    let message = |call: &str| {
        let call = call.split(");\n").next().unwrap();
        let found = literals(call).into_iter().find(|(before, _)| before.is_empty() || before.ends_with(','));
        found.map(|(_, text)| shown(&text)).filter(|text| text.chars().any(char::is_alphabetic))
    };
    calls.filter_map(message).collect()
}

/// What `of` finds in all source files but those that `without` names.
fn all(without: &[(&str, &str)], of: impl Fn(&str, &str) -> BTreeSet<String>) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs")
                && !name.ends_with("tests.rs")
                && without.iter().all(|(file, _)| *file != name)
            {
                found.extend(of(&name, &std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    found
}

/// The errors that the page names: code in the first column of its tables, and in both of the last.
fn documented() -> BTreeSet<String> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let code = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    code.map(|text| text.replace("\\|", "|").trim_end().to_owned()).filter(|text| is_error(text)).collect()
}

#[test]
fn every_error_is_in_the_document() {
    let (sent, documented) = (all(NOT_SENT, errors_of), documented());
    assert!(sent.len() > 100, "only {} texts were found", sent.len());
    // A text in the source may be put together of parts: the first is its beginning.
    let missing: Vec<_> = sent.iter().filter(|text| !documented.iter().any(|known| known.starts_with(*text))).collect();
    assert!(missing.is_empty(), "docs/errors.md does not have {missing:#?}");
    let gone: Vec<_> = documented.iter().filter(|known| !sent.iter().any(|text| known.starts_with(text))).collect();
    assert!(gone.is_empty(), "docs/errors.md has what no source says: {gone:#?}");
}

#[test]
fn every_warning_of_the_log_is_in_the_document() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    let log = page.split_once("\n## The log\n").unwrap().1.split("\n## ").next().unwrap();
    let documented: BTreeSet<&str> = log
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next())
        .flat_map(|cell| cell.split('`').step_by(2))
        .collect();
    let sent = all(&[], |_, source| messages_of(source));
    assert!(sent.len() > 30, "only {sent:#?} were found");
    let missing: Vec<_> = sent.iter().filter(|text| !documented.contains(&***text)).collect();
    assert!(missing.is_empty(), "docs/operations.md, The log, does not have {missing:#?}");
    // Those at level info are there for what an operator looks for.
    let told = ["login refused", "upstream reachable again", ", "];
    let gone: Vec<_> = documented.iter().filter(|known| !told.contains(known) && !sent.contains(**known)).collect();
    assert!(gone.is_empty(), "docs/operations.md, The log, has what no source says: {gone:#?}");
}

#[test]
fn texts_are_found_in_source() {
    let source = r#"
        // refuse("ERR a comment")
        s.refuse("ERR one"); format!("-NOPERM two {} of {name}\r\n"); Busy(format!("three {n}")); b"ERR four: ";
        if line.starts_with(b"-ERR five") || c == '"' { refuse("ERR a \
            long one") }
#[cfg(test)]
mod tests { "ERR six" }"#;
    let found: Vec<String> = errors_of("x.rs", source).into_iter().collect();
    assert_eq!(found, ["BUSY three …", "ERR a long one", "ERR four:", "ERR one", "NOPERM two … of …"]);
}
