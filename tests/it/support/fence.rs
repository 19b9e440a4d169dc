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
    admin: Option<SocketAddr>,
    config: Option<NamedTempFile>,
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
            return Self { process: None, addr: upstream, admin: None, config: None };
        }
        Self::run(upstream, config, &["--prefix", PREFIX, "--workers", "1"])
    }

    /// With tenants: `config` is the whole file but for `listen`, the upstream's address and what tests want of it. A plain server cannot
    /// stand in for this one.
    pub(crate) fn with_tenants(upstream: SocketAddr, config: &str) -> Self {
        Self::run(upstream, config, &[])
    }

    /// With tenants, and listening where `config` says only.
    pub(crate) fn listening(upstream: SocketAddr, config: &str) -> Self {
        Self::run_with(config, free_addr(), &["--upstream", &format!("redis://{upstream}")])
    }

    /// With tenants; the upstream is where `config` says.
    pub(crate) fn plain(config: &str) -> Self {
        let addr = free_addr();
        Self::run_with(config, addr, &["--listen", &addr.to_string()])
    }

    /// As [`Fence::with_tenants`], with more on the command line.
    pub(crate) fn with_tenants_and(upstream: SocketAddr, config: &str, further: &[&str]) -> Self {
        Self::run(upstream, config, further)
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.process.as_mut().unwrap().wait()
    }

    /// With tenants and an admin listener; what else is on the command line is in `further`.
    pub(crate) fn with_admin(upstream: SocketAddr, config: &str, further: &[&str]) -> Self {
        let admin = free_addr();
        let address = admin.to_string();
        let further = [&["--admin", &*address], further].concat();
        Self { admin: Some(admin), ..Self::run(upstream, config, &further) }
    }

    /// Where the admin listener is.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.unwrap()
    }

    fn run(upstream: SocketAddr, config: &str, further: &[&str]) -> Self {
        let addr = free_addr();
        let own = ["--listen", &addr.to_string(), "--upstream", &format!("redis://{upstream}")];
        Self::run_with(config, addr, &[&own[..], further].concat())
    }

    fn run_with(config: &str, addr: SocketAddr, further: &[&str]) -> Self {
        let file = written(config);
        let tier = std::env::var("KEYFENCE_TEST_TIER").ok().filter(|_| !config.contains("[tier]"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyfence"));
        command
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .arg("run")
            .arg("--config")
            .arg(file.path())
            .args(if further.contains(&"--admin") { &[][..] } else { &["--admin", ""] })
            .args(further)
            .args(tier.iter().flat_map(|size| ["--tier", size]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let process = Process::start(&mut command, |child| child.stderr.take());
        process.wait_for_line(|line| line.contains("serving"));
        Self { process: Some(process), addr, admin: None, config: Some(file) }
    }

    /// Puts other settings in the place of the file, at once, and has them read with SIGHUP. Returns when a line with `said` has come that
    /// was not there before.
    pub(crate) fn reload(&self, config: &str, said: &str) {
        let (process, file) = (self.process.as_ref().unwrap(), self.config.as_ref().unwrap());
        let before = process.lines_with(said);
        let next = file.path().with_extension("next");
        std::fs::write(&next, config).unwrap();
        std::fs::rename(&next, file.path()).unwrap();
        process.signal("HUP");
        process.wait_for_lines(before + 1, said);
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn stop(&mut self) -> std::process::ExitStatus {
        let process = self.process.as_mut().unwrap();
        process.signal("TERM");
        process.wait()
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

fn written(config: &str) -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(config.as_bytes()).unwrap();
    file
}
