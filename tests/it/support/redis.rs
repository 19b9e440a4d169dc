//! A Redis (or Valkey) server of a test's own.
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::process::Process;
use super::{Client, free_addr};

/// A running server with an empty data folder, without persistence.
pub(crate) struct Redis {
    process: Process,
    addr: SocketAddr,
    dir: TempDir,
    binary: String,
}

impl Redis {
    /// A fresh server on an address of its own.
    pub(crate) fn start() -> Self {
        Self::start_with(free_addr(), &[])
    }

    /// A fresh server with further arguments.
    pub(crate) fn start_with(addr: SocketAddr, args: &[&str]) -> Self {
        let binary = std::env::var("KEYFENCE_TEST_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        Self::start_binary(binary, addr, args)
    }

    /// A fresh server that has the modules, whatever server the other tests have.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(crate) fn with_modules() -> Self {
        let binary = concat!(env!("CARGO_MANIFEST_DIR"), "/target/modules/redis-server");
        assert!(std::fs::exists(binary).unwrap(), "no server with modules: run tools/ensure-modules.sh");
        Self::start_binary(binary.to_owned(), free_addr(), &[])
    }

    fn start_binary(binary: String, addr: SocketAddr, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = launch(&binary, addr, &dir, args);
        Self { process, addr, dir, binary }
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A new connection straight to it.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.addr)
    }

    /// Waits until this many of its clients are blocked.
    pub(crate) fn wait_for_blocked(&self, count: usize) {
        let mut client = self.client();
        let wanted = format!("blocked_clients:{count}\r\n");
        while !String::from_utf8_lossy(&client.call(&[b"INFO", b"clients"])).contains(&wanted) {
            std::thread::yield_now();
        }
    }

    /// SIGKILL, so that nothing is told to anybody.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts again, empty, on the same address.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.process = launch(&self.binary, self.addr, &self.dir, &[]);
    }

    /// SIGSTOP or SIGCONT: a server that accepts (its kernel does) and never answers, and its end.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill -s {name}");
    }
}

fn launch(binary: &str, addr: SocketAddr, dir: &TempDir, args: &[&str]) -> Process {
    let extra = std::env::var("KEYFENCE_TEST_SERVER_ARGS").unwrap_or_default();
    let (ip, port) = (addr.ip().to_string(), addr.port().to_string());
    let mut command = Command::new(binary);
    command
        .current_dir(dir.path())
        .args(["--bind", &ip, "--port", &port, "--save", "", "--appendonly", "no", "--dir", "."])
        .args(["--sanitize-dump-payload", "yes", "--enable-debug-command", "yes", "--tcp-backlog", "4096"])
        .args(extra.split_whitespace())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let process = Process::start(&mut command, |child| child.stdout.take());
    process.wait_for_line(|line| line.contains("Ready to accept connections"));
    process
}
