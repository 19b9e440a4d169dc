//! Which module may name which. Reads every `crate::` path of `src/`, in use items and inline, but for what is under `#[cfg(test)]`, and
//! compares the edges with the table below: a new one is a decision, and so is one that went.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From module to modules, sorted. See "Layers" in docs/architecture.md.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("admin", &["command", "config", "metrics", "tenant", "tier", "upstream", "worker"]),
    ("adopt", &["config", "error", "server", "walk"]),
    (
        "big",
        &[
            "command",
            "error",
            "login",
            "metrics",
            "monitor",
            "near",
            "proxy",
            "pubsub",
            "resp",
            "scoped",
            "session",
            "tenant",
            "transaction",
            "upstream",
        ],
    ),
    ("check", &["command", "config", "upstream"]),
    ("cli", &["config"]),
    ("clients", &["command", "downstream", "login"]),
    ("coherence", &["downstream", "error", "metrics", "resp", "tenant", "tier", "upstream", "worker"]),
    ("command", &[]),
    ("config", &["command", "tenant"]),
    ("directory", &["command", "config", "login", "tenant", "tier", "upstream"]),
    ("downstream", &["net"]),
    ("error", &[]),
    ("explain", &["command", "config", "glob", "pubsub", "resp", "rewrite", "scripts", "tenant", "tier"]),
    ("fuzz", &["command", "net", "resp", "rewrite"]),
    ("glob", &[]),
    (
        "local",
        &[
            "clients", "command", "glob", "login", "metrics", "monitor", "pubsub", "resp", "rewrite", "scoped",
            "session", "slowlog", "tier", "tracking",
        ],
    ),
    ("crash", &["log"]),
    ("log", &["config", "metrics"]),
    ("login", &["config", "error", "local", "resp", "session", "tenant", "upstream", "worker"]),
    ("monitor", &["command", "local", "resp", "session"]),
    ("metrics", &["command"]),
    ("near", &["command", "downstream", "error", "proxy", "resp", "session", "tier", "upstream"]),
    ("net", &[]),
    ("plane", &["directory", "error", "scripts", "tenant", "upstream", "worker"]),
    (
        "proxy",
        &[
            "command",
            "error",
            "local",
            "metrics",
            "monitor",
            "near",
            "pubsub",
            "resp",
            "rewrite",
            "scoped",
            "scripts",
            "session",
            "tenant",
            "tracking",
            "transaction",
            "upstream",
        ],
    ),
    (
        "pubsub",
        &[
            "clients",
            "command",
            "downstream",
            "error",
            "glob",
            "local",
            "proxy",
            "resp",
            "rewrite",
            "session",
            "tenant",
            "upstream",
            "worker",
        ],
    ),
    ("purge", &["config", "error", "glob", "scripts", "server", "walk"]),
    (
        "reload",
        &[
            "admin",
            "coherence",
            "config",
            "directory",
            "login",
            "plane",
            "server",
            "systemd",
            "tls",
            "upstream",
            "worker",
        ],
    ),
    ("resp", &["command"]),
    ("rewrite", &["command", "resp"]),
    (
        "scoped",
        &[
            "clients",
            "command",
            "downstream",
            "error",
            "glob",
            "local",
            "metrics",
            "resp",
            "rewrite",
            "scripts",
            "session",
            "tenant",
            "tracking",
            "upstream",
            "worker",
        ],
    ),
    (
        "scripts",
        &[
            "command",
            "error",
            "glob",
            "near",
            "resp",
            "rewrite",
            "scoped",
            "session",
            "tenant",
            "transaction",
            "upstream",
            "worker",
        ],
    ),
    (
        "server",
        &[
            "admin",
            "clients",
            "coherence",
            "config",
            "directory",
            "downstream",
            "login",
            "metrics",
            "net",
            "reload",
            "scoped",
            "scripts",
            "session",
            "slowlog",
            "systemd",
            "tenant",
            "tier",
            "tls",
            "upstream",
            "worker",
        ],
    ),
    (
        "session",
        &[
            "big",
            "clients",
            "command",
            "downstream",
            "error",
            "login",
            "metrics",
            "monitor",
            "net",
            "proxy",
            "pubsub",
            "resp",
            "rewrite",
            "scoped",
            "scripts",
            "tenant",
            "tier",
            "tracking",
            "transaction",
            "upstream",
            "worker",
        ],
    ),
    ("slowlog", &["command"]),
    ("systemd", &[]),
    ("tenant", &["clients", "command", "downstream", "glob", "tier", "upstream"]),
    ("tier", &["resp"]),
    ("tls", &["config"]),
    ("tracking", &["command", "downstream", "error", "pubsub", "resp", "rewrite", "session", "upstream", "worker"]),
    (
        "transaction",
        &[
            "clients", "command", "error", "local", "near", "proxy", "pubsub", "resp", "rewrite", "scripts", "session",
            "upstream",
        ],
    ),
    (
        "upstream",
        &[
            "command",
            "config",
            "downstream",
            "error",
            "glob",
            "metrics",
            "net",
            "resp",
            "rewrite",
            "slowlog",
            "tier",
            "tls",
        ],
    ),
    ("walk", &["config", "error", "server", "upstream"]),
    (
        "worker",
        &[
            "clients",
            "command",
            "config",
            "directory",
            "downstream",
            "error",
            "login",
            "metrics",
            "pubsub",
            "scoped",
            "scripts",
            "slowlog",
            "tenant",
            "tier",
            "upstream",
        ],
    ),
];

type Edges = BTreeMap<String, BTreeSet<String>>;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// `text` without comments, strings and character literals, so that braces can be counted and paths believed.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        let rest = &bytes[i..];
        if rest.starts_with(b"//") {
            i += rest.iter().position(|&c| c == b'\n').unwrap_or(rest.len());
        } else if rest[0] == b'r' && (rest[1..].starts_with(b"\"") || rest[1..].starts_with(b"#\"")) {
            let end: &[u8] = if rest[1] == b'#' { b"\"#" } else { b"\"" };
            let start = 1 + end.len();
            i += start + rest[start..].windows(end.len()).position(|w| w == end).unwrap() + end.len();
        } else if rest[0] == b'"' {
            let mut j = 1;
            while rest[j] != b'"' {
                j += if rest[j] == b'\\' { 2 } else { 1 };
            }
            i += j + 1;
        } else if rest.starts_with(b"'\\") {
            i += 3 + rest[3..].iter().position(|&c| c == b'\'').unwrap() + 1;
        } else if rest[0] == b'\'' && rest.get(2) == Some(&b'\'') {
            i += 3;
        } else {
            out.push(rest[0]);
            i += 1;
        }
    }
    String::from_utf8(out).unwrap()
}

/// `code` without the items that are for tests only, and the names of the modules among these that have a file of their own.
fn without_tests(code: &str) -> (String, Vec<String>) {
    let mut out = String::new();
    let mut modules = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let (before, item) = rest.split_at(at);
        out.push_str(before);
        // To the end of the item: a semicolon, or the brace that closes its first one.
        let mut depth = 0_u32;
        let mut end = item.len();
        for (i, c) in item.char_indices() {
            match c {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => {
                    depth -= 1;
                    if c == '}' && depth == 0 {
                        end = i + 1;
                        break;
                    }
                }
                ';' if depth == 0 => {
                    end = i + 1;
                    break;
                }
                _ => {}
            }
        }
        let (item, after) = item.split_at(end);
        if let Some(name) = item.trim_end_matches(';').split_whitespace().last().filter(|_| item.ends_with(';')) {
            modules.push(name.to_owned());
        }
        rest = after;
    }
    out.push_str(rest);
    (out, modules)
}

/// The first words behind every `crate::` of `code`: `crate::a::b` and `crate::{a, b::{c, d}}`.
fn named(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let (before, rest) = code.split_at(at);
        if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = rest.trim_start_matches("crate::");
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0_u32;
            let mut item = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.extend(word(&item));
                        item.clear();
                        continue;
                    }
                    _ => {}
                }
                item.push(c);
            }
            found.extend(word(&item));
        } else {
            found.extend(word(rest));
        }
    }
    found
}

fn word(text: &str) -> Option<String> {
    let word: String = text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

/// Every edge between two top-level modules of `src/`.
fn edges() -> Edges {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut read: Vec<(PathBuf, String)> = Vec::new();
    let mut tests: Vec<PathBuf> = Vec::new();
    for file in files {
        let (code, modules) = without_tests(&code(&fs::read_to_string(&file).unwrap()));
        tests.extend(modules.iter().map(|name| file.with_extension("").join(name).with_extension("rs")));
        read.push((file.strip_prefix(&root).unwrap().to_owned(), code));
    }
    let mut edges = Edges::new();
    for (file, code) in read.iter().filter(|(file, _)| !tests.contains(&root.join(file))) {
        let first = file.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        // The binary names the library by its name, and lib.rs is the list of the modules.
        if first != "main" && first != "lib" {
            let to = named(code).into_iter().filter(|to| *to != first);
            edges.entry(first.clone()).or_default().extend(to);
        }
    }
    edges
}

#[test]
fn every_edge_between_modules_is_in_the_table() {
    let table: Edges = MAY_NAME
        .iter()
        .map(|(from, to)| ((*from).to_owned(), to.iter().map(|to| (*to).to_owned()).collect()))
        .collect();
    let mut wrong = Vec::new();
    let found = edges();
    for (from, to) in &found {
        let allowed = table.get(from).cloned().unwrap_or_default();
        wrong.extend(to.difference(&allowed).map(|to| format!("{from} names {to}, which the table does not allow")));
        wrong.extend(allowed.difference(to).map(|to| format!("{from} names {to} no more: take it out of the table")));
    }
    wrong.extend(
        table.keys().filter(|from| !found.contains_key(*from)).map(|from| format!("there is no module {from}")),
    );
    assert!(wrong.is_empty(), "{}\n\nwhat there is:\n{found:#?}", wrong.join("\n"));
}

#[test]
fn paths_are_found_wherever_they_stand() {
    let text = "use crate::{a, b::{c, self}, d::*};\n// crate::no\nfn f() { crate::e::g(\"crate::no\", '{', '\\'') }\n\
                #[cfg(test)]\nmod tests { use crate::no; }\n#[cfg(test)]\nmod more;\nstruct X<'a>(&'a crate::h::Y); use mycrate::no;";
    let (code, modules) = without_tests(&code(text));
    assert_eq!(named(&code).into_iter().collect::<Vec<_>>(), ["a", "b", "d", "e", "h"]);
    assert_eq!(modules, ["more"]);
}
