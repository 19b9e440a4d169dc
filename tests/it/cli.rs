//! The command line: what it prints, and its exit status.
use std::io::Write;
use std::process::{Command, Output};

use tempfile::NamedTempFile;

use crate::support::{Redis, free_addr};

fn keyfence(args: &[&str], env: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyfence"));
    command.env_clear().envs(env.iter().copied()).args(args).current_dir(folder.path()).output().unwrap()
}

/// The call must end with `status`, and say every one of `words`.
fn says(args: &[&str], env: &[(&str, &str)], status: i32, words: &[&str]) {
    let output = keyfence(args, env);
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert_eq!(output.status.code(), Some(status), "{args:?} {env:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?} {env:?} does not say {word:?}: {text}");
    }
}

fn settings(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn bad_settings_name_the_file_the_line_and_the_key() {
    for (text, words) in [
        ("workerz = 1\n", &[":1: ", "workerz", "workers"][..]),
        ("\n[upstream]\nhots = \"x\"\n", &[":3: ", "upstream.hots", "host"]),
        ("workers = \"x\"\n", &[":1: ", "workers"]),
        ("key_prefix = \"a*\"\n", &[":1: ", "key_prefix", "'*'"]),
        (
            "key_prefix = \"\"\nworkers = 1\n[upstream]\nsocket_timeout = \"5 parsecs\"\n",
            &[":4: ", "upstream.socket_timeout"],
        ),
        ("workers = \n", &[":1: "]),
        ("[no_such_table]\nx = 1\n", &["no_such_table"]),
        ("client_output_limit = \"much\"\n", &[":1: ", "client_output_limit"]),
    ] {
        let file = settings(text);
        let path = file.path().to_str().unwrap();
        for command in ["run", "check"] {
            says(&[command, "--config", path], &[], 64, words);
            says(&[command, "--config", path], &[], 64, &[path]);
        }
    }
    says(&["check", "--config", "/no/such/file.toml"], &[], 64, &["/no/such/file.toml"]);
}

#[test]
fn bad_arguments_and_environment() {
    says(&["--nosuch"], &[], 64, &["--nosuch"]);
    says(&["nosuch"], &[], 64, &["nosuch"]);
    says(&["run", "--workers", "x"], &[], 64, &["workers"]);
    says(&["run", "--prefix", "a b"], &[], 64, &["prefix"]);
    says(&["run", "--prefix", "a{b"], &[], 64, &["prefix"]);
    says(&["run", "--listen", "nowhere"], &[], 64, &["nowhere"]);
    says(&["run", "--upstream", "http://x"], &[], 64, &["--upstream", "redis://"]);
    says(&["explain"], &[], 64, &[]);
    says(&["check"], &[("KEYFENCE_WORKERS", "x")], 64, &["KEYFENCE_WORKERS"]);
    says(&["check"], &[("KEYFENCE_WORKRES", "1")], 64, &["KEYFENCE_WORKRES", "KEYFENCE_WORKERS"]);
}

#[test]
fn check_looks_at_the_upstream() {
    let redis = Redis::start();
    let up = format!("redis://{}", redis.addr());
    says(&["check", "--upstream", &up], &[], 0, &[]);
    says(&["check"], &[("KEYFENCE_UPSTREAM__URL", &up)], 0, &[]);
    let down = format!("redis://{}", free_addr());
    says(&["check", "--upstream", &down], &[], 69, &["unreachable"]);
    let password =
        settings(&format!("[upstream]\nurl = \"{}\"\n", down.replace("redis://", "redis://someone:s3cret@")));
    let output = keyfence(&["check", "--config", password.path().to_str().unwrap()], &[]);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!text.contains("s3cret"), "a secret was shown: {text}");
}

#[test]
fn explain_needs_no_upstream() {
    let folder = [("KEYFENCE_UPSTREAM__URL", "redis://127.0.0.1:1")];
    for (words, said) in [
        (&["SET", "k", "v"][..], &["SET keyfence:k v"][..]),
        (
            &["sort", "l", "BY", "w_*", "GET", "o_*", "STORE", "to"],
            &["keyfence:l BY keyfence:w_* GET keyfence:o_* STORE keyfence:to"],
        ),
        (&["XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"], &["GROUP g c STREAMS keyfence:s"]),
        (&["CONFIG", "SET", "a", "b"], &["refused", "NOPERM"]),
        (&["NOSUCH", "x"], &["refused", "unknown command"]),
        (&["GET"], &["wrong number of arguments"]),
        (&["KEYS", "*"], &["scoped"]),
        (&["PING"], &["local"]),
    ] {
        let args: Vec<&str> = ["explain", "--"].iter().chain(words).copied().collect();
        says(&args, &folder, 0, said);
    }
    says(&["explain", "--prefix", "other:", "--", "GET", "k"], &folder, 0, &["other:k"]);
}

#[test]
fn the_table_can_be_read_by_people_and_programs() {
    let output = keyfence(&["commands", "--format", "json"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let table: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = table.as_array().unwrap();
    assert_eq!(rows.len(), keyfence::command::ROWS.len());
    let get = rows.iter().find(|row| row["name"] == "GET").unwrap();
    assert_eq!(get["class"], "keyed");
    for format in ["text", "markdown"] {
        says(&["commands", "--format", format], &[], 0, &["GETRANGE", "XREADGROUP"]);
    }
    says(&["--version"], &[], 0, &[env!("CARGO_PKG_VERSION")]);
    says(&["--help"], &[], 0, &["explain", "check", "commands"]);
}

#[test]
fn the_manual_page_is_that_of_the_command_line() {
    let made = keyfence(&["man"], &[]);
    assert_eq!(made.status.code(), Some(0));
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/keyfence.1");
    let held = std::fs::read(&path).unwrap_or_default();
    if held != made.stdout && std::env::var_os("KEYFENCE_BLESS").is_some() {
        std::fs::write(&path, made.stdout).unwrap();
        return;
    }
    assert!(held == made.stdout, "dist/keyfence.1 is stale; KEYFENCE_BLESS=1 cargo test rewrites it");
}
