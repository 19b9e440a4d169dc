//! What keeps keyfence from starting, each with its own words and exit status, and what does not: the traces of one that was killed.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::is;
use crate::support::process::Process;
use crate::support::{Client, Redis, free_addr};

/// keyfence with these settings, in a folder of its own.
fn keyfence(dir: &TempDir, settings: &str, umask: &str) -> Command {
    let config = dir.path().join("config.toml");
    std::fs::write(&config, settings).unwrap();
    let mut command = Command::new("/bin/sh");
    command.env_clear().current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.args([
        "-c",
        &format!("umask {umask}; exec \"$@\""),
        "sh",
        env!("CARGO_BIN_EXE_keyfence"),
        "run",
        "--admin",
    ]);
    command.args(["", "--config"]).arg(config);
    command
}

/// It must not start: it ends with `status`, and says every one of `words`, in one line.
fn ends(dir: &TempDir, settings: &str, status: i32, words: &[&str]) {
    let output = keyfence(dir, settings, "022").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{settings}: {said}");
    let last = said.lines().last().unwrap();
    for word in words {
        assert!(last.contains(word), "{settings} does not say {word:?}: {said}");
    }
}

fn starts(dir: &TempDir, settings: &str, umask: &str) -> Process {
    let process = Process::start(&mut keyfence(dir, settings, umask), |child| child.stderr.take());
    process.wait_for_line(|line| line.contains("serving"));
    process
}

fn upstream(redis: &Redis) -> String {
    format!("[upstream]\nurl = 'redis://{}'\n", redis.addr())
}

#[test]
fn a_port_that_is_taken() {
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let other = TcpListener::bind(addr).unwrap();
    let said = ["cannot listen on", &addr.to_string(), "another process"];
    ends(&dir, &format!("listen = ['{addr}']\n"), 1, &said);
    // Nor can one that asked for itself alone be joined by one that wants to share.
    ends(&dir, &format!("listen = ['{addr}']\nreuse_port = true\n"), 1, &said);
    drop(other);
    ends(&dir, "listen = ['192.0.2.1:6380']\n", 1, &["cannot listen on 192.0.2.1:6380"]);
    ends(&dir, &format!("listen = ['{addr}', 'tls:{addr}']\n"), 64, &["certificate"]);
}

#[test]
fn a_second_keyfence_started_by_mistake_shares_nothing() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    for shares in [false, true] {
        let settings = format!("listen = ['{addr}']\nworkers = 2\nreuse_port = {shares}\n{}", upstream(&redis));
        let _first = starts(&dir, &settings, "022");
        let second = format!("listen = ['{addr}']\nworkers = 2\n{}", upstream(&redis));
        ends(&dir, &second, 1, &["another process"]);
    }
}

#[test]
fn paths_that_cannot_be_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &Path| format!("listen = ['unix:{}']\n", path.display());
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    ends(&dir, &at(&file), 1, &[file.to_str().unwrap(), "no socket"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    ends(&dir, &at(&link), 1, &[link.to_str().unwrap(), "no socket"]);
    ends(&dir, &at(&dir.path().join("none/kf.sock")), 1, &["none/kf.sock", "No such file"]);
    // Nobody may make files there, whoever runs this.
    ends(&dir, &at(Path::new("/sys/kf.sock")), 1, &["/sys/kf.sock", "ermi"]);
    let long = dir.path().join("x".repeat(200));
    ends(&dir, &at(&long), 1, &["cannot listen on"]);
    // Somebody answers there.
    let theirs = dir.path().join("theirs");
    let listener = UnixListener::bind(&theirs).unwrap();
    ends(&dir, &at(&theirs), 1, &["theirs", "another process"]);
    assert!(UnixStream::connect(&theirs).is_ok(), "a socket was taken from who listens on it");
    drop(listener);
}

#[test]
fn certificates_that_cannot_be_used() {
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let nonsense = dir.path().join("nonsense.pem");
    std::fs::write(&nonsense, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let nonsense = nonsense.to_str().unwrap();
    for file in ["/no/such/file.pem", nonsense, "/dev/null"] {
        let tls = format!("[tls]\ncert_file = '{file}'\nkey_file = '{file}'\n");
        ends(&dir, &format!("listen = ['tls:{addr}']\n{tls}"), 64, &["tls.", file]);
        let upstream = format!("[upstream]\nurl = 'rediss://127.0.0.1:1'\ntls = {{ ca_file = '{file}' }}\n");
        ends(&dir, &format!("listen = ['{addr}']\n{upstream}"), 64, &["ca_file", file]);
    }
}

#[test]
fn a_unix_socket_is_never_more_open_than_asked() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kf.sock");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    for (asked, umask, made) in
        [("0600", "000", 0o600), ("0666", "077", 0o666), ("660", "022", 0o660), ("", "027", 0o750)]
    {
        let settings =
            format!("listen = ['unix:{}']\nunix_socket_mode = '{asked}'\n{}", path.display(), upstream(&redis));
        let mut command = keyfence(&dir, &settings, umask);
        let mut process = Process::start(&mut command, |child| child.stderr.take());
        // The first moment at which anybody gets in.
        while UnixStream::connect(&path).is_err() {}
        assert_eq!(mode(), made, "{asked} with umask {umask}");
        process.wait_for_line(|line| line.contains("serving"));
        assert_eq!(mode(), made);
        process.signal("TERM");
        assert!(process.wait().success());
        assert!(!path.exists());
    }
    for wrong in ["rw-rw----", "0o660", "888", "66", "1777", "-660", "06600"] {
        ends(&dir, &format!("unix_socket_mode = '{wrong}'\n"), 64, &["config.toml:1", "unix_socket_mode", wrong]);
    }
}

#[test]
fn one_that_was_killed_leaves_nothing_that_is_in_the_way() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let path = dir.path().join("kf.sock");
    let settings = format!("listen = ['{addr}', 'unix:{}']\nworkers = 2\n{}", path.display(), upstream(&redis));
    for _ in 0..3 {
        let mut process = starts(&dir, &settings, "022");
        let mut client = Client::connect(addr);
        is!(client, ["SET", "k", "v"], "+OK\r\n");
        let mut local = UnixStream::connect(&path).unwrap();
        local.write_all(b"PING\r\n").unwrap();
        let mut pong = [0; 7];
        local.read_exact(&mut pong).unwrap();
        process.kill();
        let mut rest = Vec::new();
        assert_eq!(client.stream().read_to_end(&mut rest).unwrap(), 0, "closed");
        assert_eq!(local.read_to_end(&mut rest).unwrap(), 0, "closed");
        assert!(path.exists(), "a killed process removes nothing");
    }
}

#[test]
fn descriptors_that_do_not_suffice() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let path = dir.path().join("kf.sock");
    let settings = format!("listen = ['{addr}', 'unix:{}']\nworkers = 3\n{}", path.display(), upstream(&redis));
    let mut refused = 0;
    // Wherever in the start they run out, once it has its own pipe for signals, it says so and ends; it never serves with some of its workers only.
    for descriptors in 8.. {
        let mut command = keyfence(&dir, &settings, &format!("022; ulimit -n {descriptors}"));
        let mut process = command.spawn().unwrap();
        let mut said = String::new();
        for line in BufReader::new(process.stderr.take().unwrap()).lines() {
            said += &(line.unwrap() + "\n");
            if said.contains("serving") {
                break;
            }
        }
        if said.contains("serving") {
            process.kill().unwrap();
            process.wait().unwrap();
            assert!(!said.contains("Too many open files"), "{descriptors}: {said}");
            break;
        }
        assert_eq!(process.wait().unwrap().code(), Some(1), "{descriptors}: {said}");
        let last = said.lines().rfind(|line| line.starts_with("keyfence: ")).unwrap_or_default();
        assert!(last.contains("Too many open files"), "{descriptors}: {said}");
        assert!(!path.exists(), "{descriptors}: a socket was left behind");
        refused += 1;
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn a_network_that_is_written_so_that_it_would_never_match() {
    let dir = tempfile::tempdir().unwrap();
    for (network, plain) in
        [("::ffff:10.0.0.0/104", "10.0.0.0/8"), ("::ffff:127.0.0.1", "127.0.0.1/32"), ("::ffff:0:0/96", "0.0.0.0/0")]
    {
        ends(&dir, &format!("proxy_protocol = ['{network}']\n"), 64, &[network, &format!("write \"{plain}\"")]);
    }
}
