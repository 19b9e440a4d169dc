//! keyfence in front of a server.
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use tempfile::NamedTempFile;

use super::process::Process;
use super::{Client, Redis, free_addr, target_is_plain};

/// The prefix every test's keyfence uses: the default of the product.
pub(crate) const PREFIX: &str = "keyfence:";

/// A running keyfence, or with `KEYFENCE_TEST_TARGET=plain` nothing but the upstream's address.
pub(crate) struct Fence {
    process: Option<Process>,
    addr: SocketAddr,
    _config: Option<NamedTempFile>,
}

impl Fence {
    /// In front of `upstream`, one worker, default settings.
    pub(crate) fn start(upstream: &Redis) -> Self {
        Self::start_at(upstream.addr(), "")
    }

    /// In front of whatever will be at `upstream`, with further lines of `config.toml`. Keys of the top level and of `[upstream]`
    /// are told apart by their table header in `config`; lines before the first header are top-level ones.
    pub(crate) fn start_at(upstream: SocketAddr, config: &str) -> Self {
        if target_is_plain() {
            return Self { process: None, addr: upstream, _config: None };
        }
        let addr = free_addr();
        let mut file = NamedTempFile::with_suffix(".toml").unwrap();
        file.write_all(config.as_bytes()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyfence"));
        command
            .env_clear()
            .arg("run")
            .arg("--config")
            .arg(file.path())
            .args(["--listen", &addr.to_string(), "--upstream", &format!("redis://{upstream}")])
            .args(["--prefix", PREFIX, "--workers", "1", "--admin", ""])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let process = Process::start(&mut command, |child| child.stderr.take());
        process.wait_for_line(|line| line.contains("serving"));
        Self { process: Some(process), addr, _config: Some(file) }
    }

    /// Where clients connect.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A new client of the tenant.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.addr)
    }

    /// The process, unless a plain server stands in for it.
    pub(crate) fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// What the upstream's keys begin with.
    pub(crate) fn prefix(&self) -> &'static str {
        if self.process.is_some() { PREFIX } else { "" }
    }

    /// `key` as the upstream knows it.
    pub(crate) fn upstream_key(&self, key: impl AsRef<[u8]>) -> Vec<u8> {
        [self.prefix().as_bytes(), key.as_ref()].concat()
    }
}
