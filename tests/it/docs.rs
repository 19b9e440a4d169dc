//! The documents: what they tell an operator to type is typed here, and does what they say.
//!
//! Every fenced block of README.md, CONTRIBUTING.md and docs/ has one of four info strings (docs/page.rs). The `sh` and `console` blocks of a
//! page are run in one shell in the order of the page, in an empty folder, with the built keyfence on PATH (docs/run.rs); every command has to
//! end with status 0, and what a `console` block shows has to come. What cannot run here is in [`NOT_RUN`], with the reason, and its syntax is checked.
mod errors;
mod package;
mod page;
mod run;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use keyfence::config::table::SETTINGS;
use page::{Block, Kind};

/// Blocks that are not run, by their page and their first line, and why.
const NOT_RUN: &[(&str, &str, &str)] = &[
    (
        "README.md",
        "make run     # builds keyfence,",
        "builds a release and installs packages; its targets are looked up",
    ),
    ("docs/install.md", "cargo install --locked --path .", "builds a release"),
    ("docs/install.md", "docker build -t keyfence:0.1.0 .", "needs a Docker daemon and images from elsewhere"),
    ("docs/install.md", "docker run -d --name keyfence", "needs a Docker daemon"),
    ("docs/install.md", "cargo install --locked cargo-deb", "builds a release, and installs a package as root"),
    ("docs/install.md", "sudoedit /etc/keyfence/config.toml", "needs root, an editor and systemd"),
    ("docs/install.md", "cargo build --release --locked", "builds a release, and installs files as root"),
    ("docs/install.md", "sudo systemctl stop keyfence", "needs root and systemd"),
    ("docs/install.md", "kubectl apply -f dist/kubernetes/", "needs a cluster"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Every page, by its path from the root.
fn pages() -> Vec<String> {
    let mut found = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned(), "SECURITY.md".to_owned()];
    for folder in ["docs", "docs/decisions"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                found.push(format!("{folder}/{name}"));
            }
        }
    }
    found.sort();
    found
}

fn blocks(page: &str) -> Vec<Block> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    page::blocks(&text).unwrap_or_else(|error| panic!("{page}, {error}"))
}

/// The place in [`NOT_RUN`] of a block.
fn not_run(page: &str, block: &Block) -> Option<usize> {
    NOT_RUN.iter().position(|(of, first, _)| *of == page && block.text.starts_with(first))
}

fn is_typed(block: &Block) -> bool {
    matches!(block.kind, Kind::Shell | Kind::Console)
}

/// One test a page, and the list of the pages.
macro_rules! run_pages {
    ($($name:ident: $page:literal,)+) => {
        const RUN: &[&str] = &[$($page),+];
        $(
            #[test]
            fn $name() {
                run::page($page, blocks($page).into_iter().filter(|block| not_run($page, block).is_none()).collect());
            }
        )+
    };
}

run_pages! {
    the_commands_of_the_readme: "README.md",
    the_commands_of_the_installation: "docs/install.md",
    the_commands_of_operations: "docs/operations.md",
    the_commands_of_the_walkthrough: "docs/walkthrough.md",
}

#[test]
fn every_block_is_run_or_listed() {
    let mut listed = BTreeSet::new();
    let mut with_commands = BTreeSet::new();
    for page in pages() {
        for block in blocks(&page).iter().filter(|block| is_typed(block)) {
            match not_run(&page, block) {
                Some(at) => assert!(listed.insert(at), "{page}, line {}: two blocks begin like this", block.line),
                None => assert!(with_commands.insert(page.clone()) || RUN.contains(&&*page), "{page}"),
            }
        }
    }
    let unused: Vec<_> = NOT_RUN.iter().enumerate().filter(|(at, _)| !listed.contains(at)).collect();
    assert!(unused.is_empty(), "no block begins so: {unused:?}");
    let run: BTreeSet<String> = RUN.iter().map(|page| (*page).to_owned()).collect();
    assert_eq!(with_commands, run, "the pages with commands, and the pages that are run");
}

#[test]
fn what_is_not_run_is_sound() {
    for (name, _, _) in NOT_RUN {
        for block in blocks(name).iter().filter(|block| not_run(name, block).is_some()) {
            let checked = Command::new("bash").args(["-n", "-c", &block.text]).output().unwrap();
            assert!(checked.status.success(), "{name}, line {}: {checked:?}", block.line);
            let missing = page::missing_files(&root(), &block.text);
            assert!(missing.is_empty(), "{name}, line {}: there is no {missing:?}", block.line);
            for target in block.text.lines().filter_map(|line| line.strip_prefix("make ")?.split(' ').next()) {
                let checked = Command::new("make").args(["-n", target]).current_dir(root()).output().unwrap();
                assert!(checked.status.success(), "{name}, line {}: {checked:?}", block.line);
            }
        }
    }
}

/// Settings that are shown are settings, whether or not the page uses them.
#[test]
fn settings_that_are_shown_are_read() {
    for page in pages() {
        for block in blocks(&page).iter().filter(|block| matches!(block.kind, Kind::Settings(_))) {
            let folder = tempfile::tempdir().unwrap();
            for secret in block.text.lines().filter_map(|line| line.strip_prefix("passwords_file = \"")) {
                let name = secret.split('"').next().unwrap();
                std::fs::write(folder.path().join(name), format!("sha256:{}\n", "0f".repeat(32))).unwrap();
            }
            std::fs::write(folder.path().join("config.toml"), &block.text).unwrap();
            let read = Command::new(env!("CARGO_BIN_EXE_keyfence"))
                .args(["explain", "--tenant", "nobody", "--", "GET", "k"])
                .current_dir(folder.path())
                .output()
                .unwrap();
            // Reading the settings comes first, and looking for the tenant second.
            let said = String::from_utf8_lossy(&read.stderr);
            assert!(said.starts_with("keyfence: no tenant 'nobody'"), "{page}, line {}: {said}", block.line);
        }
    }
}

/// Links between the pages, and to files of the repository.
#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(root().join(&page)).unwrap();
        let folder = root().join(&page).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let file = link.split('#').next().unwrap();
            if !file.is_empty() && !link.contains("://") {
                assert!(folder.join(file).exists(), "{page} links to {link}");
            }
        }
    }
}

/// Code inside of sentences and tables of a page, blocks left out.
fn inline_code(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

#[test]
fn commands_and_settings_in_sentences_are_there() {
    let manual = String::from_utf8(keyfence::cli::manual()).unwrap().replace("\\-", "-");
    let (mut commands, mut settings) = (0, 0);
    for page in pages() {
        for code in inline_code(&page) {
            if let Some(typed) = code.strip_prefix("keyfence ") {
                commands += 1;
                let words: Vec<&str> = typed.split_whitespace().take_while(|word| *word != "--").collect();
                let first = words.first().copied().unwrap_or("run");
                let known = first.starts_with('-') || manual.contains(&format!(".SS \"keyfence {first} "));
                assert!(known, "{page}: there is no command `{code}`");
                for option in
                    words.iter().map(|word| word.trim_matches(['[', ']'])).filter(|word| word.starts_with("--"))
                {
                    assert!(manual.contains(option), "{page}: there is no option {option} in `{code}`");
                }
            }
            let key = code.split([' ', '=']).next().unwrap();
            let tables = ["upstream.", "upstreams.", "auth.", "tenants.", "tier.", "tls.", "admin.", "log.", "limits."];
            let is_key =
                tables.iter().any(|table| key.starts_with(table)) && !key.ends_with(".md") && !key.ends_with(".rs");
            if is_key && key.chars().all(|c| c.is_ascii_alphanumeric() || "._*".contains(c)) {
                settings += 1;
                let path =
                    if key.starts_with("limits.") { format!("tenants.*.{key}") } else { key.replace("NAME", "*") };
                let path = path.strip_suffix("_file").filter(|secret| !secret.starts_with("tls.")).unwrap_or(&path);
                let known = SETTINGS.iter().any(|s| s.path == path || s.path.starts_with(&format!("{path}.")));
                assert!(known || SETTINGS.iter().any(|s| s.path == key), "{page}: there is no setting `{code}`");
            }
        }
    }
    assert!(commands > 20 && settings > 50, "only {commands} commands and {settings} settings were found");
}
