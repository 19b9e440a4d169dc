//! The commands of a page, in one shell.
//!
//! Addresses of the documents become free ones: `127.0.0.1` an address of this test's, the ports in [`PORTS`] free ports, `redis.internal` and
//! `localhost` with one of those ports the same address. Where a page gives no address, `KEYFENCE_LISTEN` and `KEYFENCE_ADMIN__LISTEN` do, except
//! with a settings file (`-c`), which has to say it. `keyfence run` at the end of a line without `&` is what an operator has in another terminal: it takes
//! the place of the one before, and the next command comes when it is ready.
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use super::page::{Block, Kind, matches};
use crate::support::{Redis, free_addr};

/// Ports of the documents: of the upstream, of clients, of clients with TLS, of the admin listener.
const PORTS: [u16; 4] = [6379, 6380, 6390, 9180];

/// What comes before the first command: `keyfence` in the foreground is put into the background.
const PRELUDE: &str = r#"
set -eu -o pipefail
trap 'status=$?; jobs=$(jobs -p); [ -z "$jobs" ] || kill $jobs 2> /dev/null || true; exit $status' EXIT
serving=
keyfence() {
  case " $* " in *" -c "*) unset KEYFENCE_LISTEN KEYFENCE_ADMIN__LISTEN;; *) export KEYFENCE_LISTEN="$LISTEN" KEYFENCE_ADMIN__LISTEN="$ADMIN";; esac
  if [ "$BASH_SUBSHELL" -gt 0 ]; then exec "$KEYFENCE" "$@"; fi
  case "${1-}" in run | --upstream | -c) ;; *) "$KEYFENCE" "$@"; return;; esac
  if [ -n "$serving" ]; then kill "$serving"; wait "$serving"; fi
  "$KEYFENCE" "$@" 2> serving.log & serving=$!
  until curl -sf "http://$ADMIN/readyz" > /dev/null; do
    kill -0 "$serving" 2> /dev/null || { cat serving.log; return 1; }
    sleep 0.05
  done
}
"#;

/// A command, where it stands, and what it should print: nothing means anything.
struct Step {
    line: usize,
    command: String,
    shown: Option<String>,
}

fn steps(name: &str, blocks: Vec<Block>) -> Vec<Step> {
    let mut steps = Vec::new();
    for block in blocks {
        if let Some(command) = &block.first {
            steps.push(Step { line: block.line, command: command.clone(), shown: None });
        }
        match &block.kind {
            Kind::Shell => steps.push(Step { line: block.line, command: block.text, shown: None }),
            Kind::Console => {
                let typed = block.typed().unwrap_or_else(|error| panic!("{name}, {error}"));
                steps.extend(typed.into_iter().map(|t| Step {
                    line: t.line,
                    command: t.command,
                    shown: Some(t.shown),
                }));
            }
            Kind::Settings(Some(file)) => {
                let command = format!("cat > {file} << 'END OF FILE'\n{}END OF FILE\n", block.text);
                steps.push(Step { line: block.line, command, shown: None });
            }
            Kind::Settings(None) | Kind::Text => {}
        }
    }
    steps
}

/// Runs the blocks of a page.
pub(super) fn page(name: &str, blocks: Vec<Block>) {
    let own_server = blocks.iter().any(|block| block.text.contains("redis-server --port 6379"));
    let addresses = PORTS.map(|_| free_addr());
    let redis = (!own_server).then(|| Redis::start_with(addresses[0], &[]));
    if let Some(redis) = &redis {
        // Whom the addresses of the documents log in as.
        crate::is!(redis.client(), ["ACL", "SETUSER", "user", "on", ">password", "~*", "&*", "+@all"], "+OK\r\n");
    }
    let ip = addresses[0].ip().to_string();
    let here = |text: &str| {
        let mut text = text.replace("127.0.0.1", &ip);
        for (port, at) in PORTS.iter().zip(addresses) {
            for host in ["redis.internal", "localhost", &ip] {
                text = text.replace(&format!("{host}:{port}"), &at.to_string());
            }
            text = text.replace(&format!("redis-cli -p {port}"), &format!("redis-cli -h {ip} -p {}", at.port()));
            text = text.replace(&format!("--port {port}"), &format!("--bind {ip} --port {}", at.port()));
        }
        text
    };

    let folder = tempfile::tempdir().unwrap();
    let outputs = tempfile::tempdir().unwrap();
    let steps = steps(name, blocks);
    let mut script = PRELUDE.to_owned();
    for (at, step) in steps.iter().enumerate() {
        let output = outputs.path().join(at.to_string());
        write!(script, "{{\n{}\n}} > {} 2>&1\n", here(&step.command), output.display()).unwrap();
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_keyfence"));
    // `timeout`: a hang is an error with an output.
    let ended = Command::new("timeout")
        .args(["-k", "5", "100", "bash", "-c", &script])
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", folder.path())
        .env("LC_ALL", "C.UTF-8")
        // redis-cli then prints what a terminal would show.
        .env("FAKETTY", "1")
        .env("KEYFENCE", binary)
        .env("LISTEN", addresses[1].to_string())
        .env("ADMIN", addresses[3].to_string())
        .output()
        .unwrap();
    let said = |at: usize| std::fs::read_to_string(outputs.path().join(at.to_string()));
    let reached = (0..steps.len()).take_while(|at| said(*at).is_ok()).count();
    assert!(
        ended.status.success(),
        "{name}, line {}: {}{}{}",
        steps[reached.max(1) - 1].line,
        ended.status,
        format_args!("\n{}", here(&steps[reached.max(1) - 1].command)),
        format_args!("\n{}{}", said(reached.max(1) - 1).unwrap_or_default(), String::from_utf8_lossy(&ended.stderr)),
    );
    for (at, step) in steps.iter().enumerate() {
        if let Some(shown) = &step.shown {
            let (shown, said) = (here(shown), said(at).unwrap());
            assert!(
                matches(&shown, &said),
                "{name}, line {}: {}\nshown:\n{shown}\nsaid:\n{said}",
                step.line,
                step.command
            );
        }
    }
}
