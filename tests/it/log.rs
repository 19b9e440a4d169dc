//! The log: what is in it and what never is, and that nobody waits for it.
use std::fs::OpenOptions;
use std::process::{Child, Command, Stdio};

use crate::admin::{TENANTS, tenant};
use crate::support::{Client, Fence, HANG, Redis, free_addr, http};
use crate::{call, is};

/// keyfence with standard error wherever the test wants it.
struct Bare {
    child: Child,
    addr: std::net::SocketAddr,
    admin: std::net::SocketAddr,
    _config: tempfile::NamedTempFile,
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bare {
    fn start(redis: &Redis, before: &str, after: &str, stderr: Stdio) -> Self {
        let (addr, admin) = (free_addr(), free_addr());
        let mut config = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        std::io::Write::write_all(&mut config, TENANTS.as_bytes()).unwrap();
        let keyfence = env!("CARGO_BIN_EXE_keyfence");
        let script = format!(
            "{before} exec {keyfence} run --config {} --listen {addr} --upstream redis://{} --admin {admin} --log-level debug {after}",
            config.path().display(),
            redis.addr()
        );
        let child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let began = std::time::SystemTime::now();
        while [addr, admin].iter().any(|at| std::net::TcpStream::connect(at).is_err()) {
            assert!(began.elapsed().unwrap() < HANG, "it does not listen");
            std::thread::yield_now();
        }
        http::until(admin, "/readyz", |r| r.status == 200);
        Self { child, addr, admin, _config: config }
    }

    /// Many connections, each with its lines in the log, and every one served.
    fn serves(&self, connections: usize) {
        for _ in 0..connections {
            let mut client = Client::connect(self.addr);
            is!(client, ["AUTH", "acme", "pw"], "+OK\r\n");
            is!(client, ["SET", "k", "v"], "+OK\r\n");
        }
    }

    fn lost(&self) -> u64 {
        let text = http::get(self.admin, "/metrics").body;
        let line = text.lines().find(|line| line.starts_with("keyfence_log_lines_lost_total ")).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }
}

#[test]
fn a_full_disk_stops_nothing() {
    let redis = Redis::start();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let bare = Bare::start(&redis, "", "", full.into());
    bare.serves(50);
    assert!(bare.lost() > 0);
}

#[test]
fn a_closed_standard_error_stops_nothing() {
    let redis = Redis::start();
    Bare::start(&redis, "", "2>&-", Stdio::null()).serves(50);
}

#[test]
fn a_log_that_nobody_reads_makes_nobody_wait() {
    let redis = Redis::start();
    // A pipe that is held open and not read: 64 KiB fit in.
    let bare = Bare::start(&redis, "", "", Stdio::piped());
    bare.serves(400);
}

#[test]
fn no_key_no_value_and_no_secret_is_in_it_at_any_level() {
    let redis = Redis::start();
    for (format, level) in [("text", "trace"), ("json", "debug")] {
        let config = format!(
            "{}\n[log]\naccess_sample = 1\n[admin]\nslowlog_threshold = '0s'\n",
            TENANTS.replace("'pw'", "'pw', 'secret-of-settings'")
        );
        let fence = Fence::with_admin(redis.addr(), &config, &["--log-level", level, "--log-format", format]);
        let mut client = tenant(&fence, "acme");
        let _ = call!(client, "SET", "planted-key", "planted-value");
        let _ = call!(client, "GET", "planted-key");
        let _ = call!(client, "LPUSH", "planted-key", "planted-value");
        let _ = call!(client, "NOSUCH", "planted-value");
        let _ = call!(client, "CONFIG", "SET", "requirepass", "planted-value");
        let _ = call!(client, "EVAL", "return redis.call('get', KEYS[1]) -- planted-value", "1", "planted-key");
        let _ = call!(client, "EVAL", "error('planted-value')", "0");
        let _ = call!(client, "KEYS", "planted-*");
        let _ = call!(client, "PUBLISH", "planted-key", "planted-value");
        let _ = call!(client, "CLIENT", "SETNAME", "planted-key");
        is!(client, ["AUTH", "acme", "secret-of-settings"], "+OK\r\n");
        let mut stranger = fence.client();
        let _ = call!(stranger, "AUTH", "acme", "secret-that-is-wrong");
        let _ = call!(stranger, "HELLO", "3", "AUTH", "acme", "secret-that-is-wrong");
        let mut broken = fence.client();
        broken.send(b"*3\r\n$3\r\nSET\r\n$11\r\nplanted-key\r\n$x\r\nplanted-value\r\n");
        let _ = broken.try_reply();
        drop(client);
        let process = fence.process().unwrap();
        process.wait_for_line(|line| line.contains("client disconnected") && line.contains("acme"));
        process.wait_for_line(|line| line.contains("protocol error"));
        let log = process.output();
        for word in ["planted-", "secret-", "requirepass"] {
            assert!(!log.contains(word), "{word} is in\n{log}");
        }
        if format == "json" {
            for line in log.lines() {
                let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
                assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
            }
        }
    }
}

#[test]
fn who_it_is_about_is_in_fields() {
    let redis = Redis::start();
    let config = format!("{TENANTS}\n[log]\naccess_sample = 1\n");
    let fence = Fence::with_admin(redis.addr(), &config, &["--log-level", "debug", "--log-format", "json"]);
    let mut client = tenant(&fence, "acme");
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    let _ = call!(client, "LPUSH", "k", "v");
    let _ = call!(client, "CONFIG", "SET", "a", "b");
    let _ = call!(client, "DBSIZE");
    drop(client);
    let process = fence.process().unwrap();
    process.wait_for_line(|line| line.contains("client disconnected"));
    let log = process.output();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let about = |message: &'static str| lines.iter().map(|l| &l["fields"]).filter(move |f| f["message"] == message);
    for message in ["client connected", "logged in", "client disconnected"] {
        let line = about(message).next().unwrap_or_else(|| panic!("no {message} in {log}"));
        assert!(line["client"].as_str().unwrap().starts_with("127."), "{line}");
    }
    assert_eq!(about("logged in").next().unwrap()["tenant"], "acme");
    assert_eq!(about("client disconnected").next().unwrap()["tenant"], "acme");
    let commands: Vec<_> =
        about("command").map(|l| (l["command"].as_str().unwrap(), l["result"].as_str().unwrap())).collect();
    assert_eq!(commands, [("SET", "ok"), ("LPUSH", "wrongtype"), ("CONFIG SET", "noperm"), ("DBSIZE", "ok")]);
    assert!(about("command").all(|l| l["tenant"] == "acme" && l["took_us"].is_u64() && l["client"].is_string()));
}

#[test]
fn what_happens_again_and_again_is_summed_up() {
    let redis = Redis::start();
    let fence = Fence::with_admin(redis.addr(), TENANTS, &[]);
    for n in 0..30 {
        // Guesses as one user would be slowed down.
        let _ = call!(fence.client(), "AUTH", format!("nobody-{n}"), "x");
    }
    let process = fence.process().unwrap();
    assert_eq!(process.lines_with("login refused"), 10);
    let summary = process.wait_for_line(|line| line.contains("more like this"));
    assert!(summary.contains("times=20") && summary.contains("like=\"login refused\""), "{summary}");
}
