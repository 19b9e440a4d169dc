//! A private server of our own: found on PATH, started on a unix socket, restarted when it dies, stopped with us.
//!
//! ```text
//! start ─► lock the folder ─► stop an orphan ─► spawn ─► PING ─► Managed
//! supervise:  child dies ─► back off ─► spawn ─► PING ─┐     stop ─► SHUTDOWN, again until it is gone ─► deadline: kill
//!                   ▲───────────────────────────────────┘
//! ```
//!
//! One keyfence at a time uses a folder (a lock that ends with the process), so a server that still answers on the folder's
//! socket has outlived a keyfence that was killed: it is told to save and stop before a new one starts.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

/// In order of preference.
const BINARIES: [&str; 2] = ["valkey-server", "redis-server"];
/// A socket's path has room for 104 bytes on some systems, with its end mark.
const MAX_SOCKET_PATH: usize = 99;
/// How long a new server may take to answer; one that answers that it is loading its data is up.
const START_WITHIN: Duration = Duration::from_secs(10);
/// How long a server may take to save and stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How long another keyfence may take to let go of the data folder.
const LOCK_WITHIN: Duration = Duration::from_secs(1);
/// One question and its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);
/// A restart waits the first, doubled up to the second while restarts follow each other; a server that lived longer than the
/// second starts the count anew.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Lines of the server's output that are kept for the error when it does not start.
const KEPT_LINES: usize = 8;

/// Why there is no server; one line an operator understands.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl Error {
    fn io(what: &str, path: &Path, e: &io::Error) -> Self {
        Self(format!("managed upstream: cannot {what} {}: {e}", path.display()))
    }
}

/// A running server. Dropping it kills the server; [`Managed::supervise`] stops it in order.
#[derive(Debug)]
pub struct Managed {
    recipe: Recipe,
    child: Child,
    stop_within: Duration,
    /// Held while we live; the system lets go of it however we end.
    _lock: File,
}

/// What it takes to start the server once more.
#[derive(Debug)]
struct Recipe {
    binary: PathBuf,
    dir: PathBuf,
    save: String,
    socket: PathBuf,
}

/// Starts a server with its data in `dir` (made if absent) and its `save` setting, and waits until it answers.
///
/// # Errors
/// No binary on PATH, `dir` cannot be used or is another keyfence's, or the server does not start.
pub async fn start(dir: &Path, save: &str) -> Result<Managed, Error> {
    start_from(&std::env::var_os("PATH").unwrap_or_default(), dir, save).await
}

/// The socket of a server that runs on the data folder `dir` already, as it does while another keyfence serves from it.
pub async fn running(dir: &Path) -> Option<PathBuf> {
    let socket = socket_path(&dir.canonicalize().ok()?).ok()?;
    UnixStream::connect(&socket).await.is_ok().then_some(socket)
}

async fn start_from(path: &OsStr, dir: &Path, save: &str) -> Result<Managed, Error> {
    let binary = find_binary(path).ok_or_else(|| {
        Error(
            "managed upstream: neither valkey-server nor redis-server is on PATH; install one with \
             `apt-get install redis-server`, `dnf install valkey` or `brew install redis`, \
             or set upstream.url to a Redis that runs already"
                .into(),
        )
    })?;
    let (dir, lock) = lock_dir(dir).await?;
    let socket = socket_path(&dir)?;
    let recipe = Recipe { binary, dir, save: save.into(), socket };
    stop_orphan(&recipe.socket).await?;
    let (mut child, mut said) = recipe.launch()?;
    recipe.until_it_answers(&mut child, &mut said).await?;
    Ok(Managed { recipe, child, stop_within: STOP_WITHIN, _lock: lock })
}

impl Managed {
    /// Where the server listens, before and after a restart.
    pub fn socket(&self) -> &Path {
        &self.recipe.socket
    }

    /// Restarts the server whenever it dies, until `stop` says `true` or its sender is gone; then lets it save and stop, and
    /// returns when it has ended.
    pub async fn supervise(mut self, mut stop: watch::Receiver<bool>) {
        let mut wait = BACK_OFF.0;
        let mut started = Instant::now();
        loop {
            let status = tokio::select! {
                status = self.child.wait() => status,
                () = told(&mut stop) => break,
            };
            // One that dies as it starts must not be started in a tight loop, however often it answers first.
            wait = if started.elapsed() > BACK_OFF.1 { BACK_OFF.0 } else { (wait * 2).min(BACK_OFF.1) };
            tracing::error!(status = %outcome(status), again_in = ?wait, "the managed upstream ended");
            tokio::select! {
                () = sleep(wait) => {}
                () = told(&mut stop) => return,
            }
            started = Instant::now();
            let mut said = match self.recipe.launch() {
                Ok((child, said)) => {
                    // Ours from now on, so that a stop finds it: clients may be served before it has answered us.
                    self.child = child;
                    said
                }
                // The next turn finds the old one ended, as this one did.
                Err(e) => {
                    tracing::error!("{e}");
                    continue;
                }
            };
            let up = tokio::select! {
                up = self.recipe.until_it_answers(&mut self.child, &mut said) => up,
                () = told(&mut stop) => break,
            };
            match up {
                Ok(()) => tracing::info!(socket = %self.recipe.socket.display(), "the managed upstream is back"),
                Err(e) => {
                    tracing::error!("{e}");
                    // One that hangs; one that has ended takes no harm.
                    let _ = self.child.start_kill();
                }
            }
        }
        self.stop().await;
    }

    async fn stop(mut self) {
        let deadline = Instant::now() + self.stop_within;
        while Instant::now() < deadline {
            // Asked again and again: a running script or a failed save turns it down.
            match timeout(self.stop_within.min(ANSWER_WITHIN), ask(&self.recipe.socket, b"SHUTDOWN\r\n")).await {
                Ok(Ok(refusal)) if !refusal.is_empty() => {
                    tracing::warn!(answer = %refusal.escape_ascii(), "the managed upstream does not stop");
                }
                _ => {}
            }
            if timeout(Duration::from_millis(200), self.child.wait()).await.is_ok() {
                return;
            }
        }
        tracing::error!("the managed upstream did not stop in time and is killed; what it had not saved is lost");
        if let Err(e) = self.child.kill().await {
            tracing::error!(error = %e, "the managed upstream cannot be killed");
        }
    }
}

impl Recipe {
    /// Starts the server; it answers later. Its first lines come with it.
    fn launch(&self) -> Result<(Child, mpsc::Receiver<String>), Error> {
        let mut child = Command::new(&self.binary)
            .args(["--port", "0", "--daemonize", "no", "--loglevel", "warning", "--logfile", ""])
            .args(["--sanitize-dump-payload", "yes", "--unixsocketperm", "700", "--save", &self.save])
            .arg("--unixsocket")
            .arg(&self.socket)
            .arg("--dir")
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Its own group: an interrupt typed at the terminal is ours to pass on, after the clients are answered.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Error::io("start", &self.binary, &e))?;
        let (lines, said) = mpsc::channel(KEPT_LINES);
        forward(child.stdout.take(), lines.clone());
        forward(child.stderr.take(), lines);
        Ok((child, said))
    }

    /// Waits until the server answers; an error if it ends instead, or hangs.
    async fn until_it_answers(&self, child: &mut Child, said: &mut mpsc::Receiver<String>) -> Result<(), Error> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let answer = ask(&self.socket, b"PING\r\n").await.unwrap_or_default();
            if answer.starts_with(b"+PONG") {
                return Ok(());
            }
            if answer.starts_with(b"-LOADING") && Instant::now() >= deadline {
                tracing::info!("the managed upstream is still loading its data");
                return Ok(());
            }
            if let Ok(Some(status)) = child.try_wait() {
                let mut output = String::new();
                while let Ok(Some(line)) = timeout(ANSWER_WITHIN, said.recv()).await {
                    output = format!("{output}; {line}");
                }
                let binary = self.binary.display();
                return Err(Error(format!("managed upstream: {binary} ended at its start ({status}){output}")));
            }
            if Instant::now() >= deadline {
                let binary = self.binary.display();
                return Err(Error(format!("managed upstream: {binary} does not answer after {START_WITHIN:?}")));
            }
            sleep(PAUSE).await;
        }
    }
}

/// Passes the server's lines to the log, and the first few to whoever waits for the start.
fn forward(output: Option<impl AsyncRead + Unpin + Send + 'static>, lines: mpsc::Sender<String>) {
    let Some(output) = output else { return };
    tokio::spawn(async move {
        let mut reader = BufReader::new(output).lines();
        while let Ok(Some(line)) = reader.next_line().await {
            tracing::info!(target: "keyfence::managed", "{line}");
            // Full or nobody there: the log has it.
            let _ = lines.try_send(line);
        }
    });
}

/// Sends one command; the answer's first bytes, empty if the server closed instead.
async fn ask(socket: &Path, command: &[u8]) -> io::Result<Vec<u8>> {
    let conversation = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(command).await?;
        let mut answer = vec![0; 256];
        let n = stream.read(&mut answer).await?;
        answer.truncate(n);
        Ok(answer)
    };
    timeout(ANSWER_WITHIN, conversation).await?
}

async fn stop_orphan(socket: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + STOP_WITHIN;
    while UnixStream::connect(socket).await.is_ok() {
        tracing::warn!(socket = %socket.display(), "a server of an earlier keyfence is still there; stopping it");
        let refusal = ask(socket, b"SHUTDOWN\r\n").await.unwrap_or_default();
        if Instant::now() >= deadline {
            return Err(Error(format!(
                "managed upstream: a server of an earlier keyfence on {} does not stop: {}",
                socket.display(),
                refusal.trim_ascii().escape_ascii()
            )));
        }
        sleep(PAUSE * 5).await;
    }
    Ok(())
}

fn find_binary(path: &OsStr) -> Option<PathBuf> {
    let runs = |file: &Path| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    BINARIES.iter().find_map(|name| std::env::split_paths(path).map(|dir| dir.join(name)).find(|file| runs(file)))
}

/// Makes the folder, for us alone, and takes it. One that is taken is asked for again for a moment: a keyfence that is ending lets go of it,
/// and a child that is just being started holds a copy of every lock until it runs its own program.
async fn lock_dir(dir: &Path) -> Result<(PathBuf, File), Error> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| Error::io("make the data folder", dir, &e))?;
    let dir = dir.canonicalize().map_err(|e| Error::io("use the data folder", dir, &e))?;
    let name = dir.join("keyfence.lock");
    let lock = File::create(&name).map_err(|e| Error::io("write", &name, &e))?;
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok((dir, lock)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(PAUSE).await,
            Err(TryLockError::WouldBlock) => {
                return Err(Error(format!(
                    "managed upstream: another keyfence uses the data folder {}",
                    dir.display()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &name, &e)),
        }
    }
}

/// In the data folder, or, where that path is too long for a socket, in a folder of ours among the temporary ones whose name
/// follows from the data folder's, so that an orphan is found again.
fn socket_path(dir: &Path) -> Result<PathBuf, Error> {
    let near = dir.join("keyfence.sock");
    if near.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok(near);
    }
    let folder = std::env::temp_dir().join(format!("keyfence-{:016x}", fnv1a(dir.as_os_str().as_encoded_bytes())));
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("make", &folder, &e)),
        _ => {}
    }
    let about = |path: &Path| path.symlink_metadata().map_err(|e| Error::io("look at", path, &e));
    let (there, ours) = (about(&folder)?, about(&dir.join("keyfence.lock"))?);
    // Anybody may make a folder there before us, and read what passes through a socket in it.
    if !there.is_dir() || there.uid() != ours.uid() || there.mode() & 0o077 != 0 {
        return Err(Error(format!("managed upstream: {} is there already and not ours alone", folder.display())));
    }
    let far = folder.join("s");
    if far.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(Error(format!(
            "managed upstream: no socket fits; {} and {} are too long",
            near.display(),
            far.display()
        )));
    }
    Ok(far)
}

/// The same for the same folder in every version, unlike the standard library's hashes.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Until `stop` says so, or nobody is left to say it.
async fn told(stop: &mut watch::Receiver<bool>) {
    // The value is a lock's guard, which must not live across an await.
    let _ = stop.wait_for(|stop| *stop).await.is_ok();
}

fn outcome(status: io::Result<std::process::ExitStatus>) -> String {
    status.map_or_else(|e| e.to_string(), |s| s.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command as Process;

    async fn answer(socket: &Path, command: &str) -> String {
        String::from_utf8(ask(socket, format!("{command}\r\n").as_bytes()).await.unwrap()).unwrap()
    }

    fn signal(name: &str, pid: u32) {
        assert!(Process::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
    }

    async fn until_it_answers(socket: &Path) {
        let answers = async {
            while !ask(socket, b"PING\r\n").await.is_ok_and(|a| a.starts_with(b"+PONG")) {
                sleep(PAUSE).await;
            }
        };
        timeout(START_WITHIN, answers).await.unwrap();
    }

    #[tokio::test]
    async fn it_serves_stops_in_order_and_keeps_its_data() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a/b");
        for round in 0..2 {
            let server = start(&dir, "3600 1").await.unwrap();
            let socket = server.socket().to_path_buf();
            assert_eq!(answer(&socket, "GET k").await, if round == 0 { "$-1\r\n" } else { "$1\r\nv\r\n" });
            assert_eq!(answer(&socket, "SET k v").await, "+OK\r\n");
            assert!(answer(&socket, "CONFIG GET sanitize-dump-payload").await.contains("yes"));
            assert!(answer(&socket, "CONFIG GET port").await.ends_with("$1\r\n0\r\n"));
            assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
            assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o700);
            let (stop, stopped) = watch::channel(false);
            let task = tokio::spawn(server.supervise(stopped));
            stop.send(true).unwrap();
            task.await.unwrap();
            assert!(UnixStream::connect(&socket).await.is_err());
        }
    }

    #[tokio::test]
    async fn it_comes_back_when_it_dies() {
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path(), "3600 1").await.unwrap();
        let (socket, pid) = (server.socket().to_path_buf(), server.child.id().unwrap());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(server.supervise(stopped));
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        signal("-KILL", pid);
        assert_eq!(stream.read(&mut [0; 9]).await.unwrap_or(0), 0);
        until_it_answers(&socket).await;
        // A stop at this moment finds the new server, whether or not we know yet that it answers.
        assert_eq!(answer(&socket, "SET k v").await, "+OK\r\n");
        drop(stop);
        task.await.unwrap();
        assert!(UnixStream::connect(&socket).await.is_err());
        let server = start(dir.path(), "3600 1").await.unwrap();
        assert_eq!(answer(server.socket(), "GET k").await, "$1\r\nv\r\n");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let mut server = start(dir.path(), "").await.unwrap();
        server.stop_within = Duration::from_millis(300);
        let pid = server.child.id().unwrap();
        signal("-STOP", pid);
        let (_stop, stopped) = watch::channel(true);
        timeout(Duration::from_secs(5), server.supervise(stopped)).await.unwrap();
        assert!(!Process::new("kill").args(["-0", &pid.to_string()]).stderr(Stdio::null()).status().unwrap().success());
    }

    #[tokio::test]
    async fn an_orphan_saves_and_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let killed = start(dir.path(), "3600 1").await.unwrap();
        let socket = killed.socket().to_path_buf();
        assert_eq!(answer(&socket, "SET k v").await, "+OK\r\n");
        // As after a SIGKILL of ours: the lock is gone, the server is not.
        let Managed { mut child, _lock: lock, .. } = killed;
        drop(lock);
        let orphan = tokio::spawn(async move { child.wait().await });
        let server = start(dir.path(), "3600 1").await.unwrap();
        assert_eq!(answer(server.socket(), "GET k").await, "$1\r\nv\r\n");
        assert!(orphan.await.unwrap().unwrap().success());
    }

    #[tokio::test]
    async fn a_folder_has_one_keyfence() {
        let dir = tempfile::tempdir().unwrap();
        let first = start(dir.path(), "").await.unwrap();
        let error = start(dir.path(), "").await.unwrap_err().to_string();
        assert!(error.starts_with("managed upstream: another keyfence uses the data folder"), "{error}");
        assert_eq!(answer(first.socket(), "PING").await, "+PONG\r\n");
    }

    #[tokio::test]
    async fn a_long_path_has_its_socket_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120));
        let server = start(&long, "").await.unwrap();
        let socket = server.socket().to_path_buf();
        assert!(socket.as_os_str().len() <= MAX_SOCKET_PATH);
        assert_eq!(answer(&socket, "PING").await, "+PONG\r\n");
        assert_eq!(socket_path(&long.canonicalize().unwrap()).unwrap(), socket);
        let folder = socket.parent().unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(socket_path(&long.canonicalize().unwrap()).unwrap_err().to_string().contains("not ours alone"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn errors_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = start_from(OsStr::new(""), dir.path(), "").await.unwrap_err().to_string();
        for word in ["valkey-server", "redis-server", "apt-get install", "dnf install", "brew install"] {
            assert!(error.contains(word), "{error}");
        }
        let fake = dir.path().join("redis-server");
        fs::write(&fake, "#!/bin/sh\necho no such option >&2\nexit 3\n").unwrap();
        assert!(find_binary(dir.path().as_os_str()).is_none());
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
        let error = start_from(dir.path().as_os_str(), &dir.path().join("d"), "").await.unwrap_err().to_string();
        assert!(error.ends_with("redis-server ended at its start (exit status: 3); no such option"), "{error}");
        let error = start_from(dir.path().as_os_str(), &fake, "").await.unwrap_err().to_string();
        assert!(error.starts_with("managed upstream: cannot make the data folder"), "{error}");
    }
}
