//! One keyfence after another at the same addresses, under load: nobody is refused, nothing that was answered is lost, nothing that was not has
//! run. And what a service manager is told meanwhile.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use tempfile::TempDir;

use crate::support::process::Process;
use crate::support::wire::command;
use crate::support::{HANG, Redis, free_addr};

/// Restarts in a test.
const TIMES: usize = 10;

/// Where a client connects.
#[derive(Clone, Debug)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

trait Stream: Read + Write {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

impl Place {
    fn connect(&self) -> Box<dyn Stream> {
        match self {
            Self::Tcp(addr) => {
                let stream = TcpStream::connect(addr).unwrap_or_else(|e| panic!("{self:?} refused a connection: {e}"));
                stream.set_read_timeout(Some(HANG)).unwrap();
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).unwrap_or_else(|e| panic!("{self:?} refused a connection: {e}"));
                stream.set_read_timeout(Some(HANG)).unwrap();
                Box::new(stream)
            }
        }
    }
}

/// Increments `key`; `false` when the connection was closed in good order instead. Whatever else happens is a failure.
fn increments(stream: &mut dyn Stream, key: &str) -> bool {
    stream.write_all(&command(&["INCR", key])).unwrap_or_else(|e| panic!("a connection broke: {e}"));
    let (mut got, mut buf) = (Vec::new(), [0; 64]);
    loop {
        match stream.read(&mut buf) {
            Ok(0) if got.is_empty() => return false,
            Ok(n) if n > 0 => got.extend_from_slice(&buf[..n]),
            end => panic!("a reply was cut off: {end:?} after {got:?}"),
        }
        if got.ends_with(b"\r\n") {
            assert_eq!(got[0], b':', "{}", String::from_utf8_lossy(&got));
            return true;
        }
    }
}

/// Runs `restarts` while clients of every kind come, go and stay. Every command that was answered has run, and no other.
fn under_load(redis: &Redis, places: &[Place], restarts: impl FnOnce(&dyn Fn())) {
    let (done, acked, anew) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for (n, place) in places.iter().cycle().take(4 * places.len()).enumerate() {
            let (done, acked, anew) = (&done, &acked, &anew);
            scope.spawn(move || {
                // Half of them stay connected, the others come anew for each command.
                let stays = (n / places.len()).is_multiple_of(2);
                let mut stream = place.connect();
                while !done.load(Ordering::Relaxed) {
                    if increments(&mut *stream, "count") {
                        acked.fetch_add(1, Ordering::Relaxed);
                        if stays {
                            continue;
                        }
                    }
                    anew.fetch_add(1, Ordering::Relaxed);
                    drop(stream);
                    stream = place.connect();
                }
            });
        }
        // Between two restarts everybody has got something done.
        let some = || {
            let before = acked.load(Ordering::Relaxed);
            while acked.load(Ordering::Relaxed) < before + 200 {
                assert!(!done.load(Ordering::Relaxed));
                thread::yield_now();
            }
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| restarts(&some)));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    let count = redis.client().call(&[b"GET", b"keyfence:count"]);
    let expected =
        format!("${}\r\n{}\r\n", acked.load(Ordering::Relaxed).to_string().len(), acked.load(Ordering::Relaxed));
    assert_eq!(String::from_utf8_lossy(&count), expected, "what was not answered has run, or the other way round");
    assert!(anew.load(Ordering::Relaxed) > 0);
}

fn keyfence(upstream: SocketAddr, config: &Path) -> Vec<String> {
    let binary = env!("CARGO_BIN_EXE_keyfence");
    [binary, "run", "--admin", "", "--upstream", &format!("redis://{upstream}"), "--config", config.to_str().unwrap()]
        .map(String::from)
        .into()
}

fn start(mut command: Command) -> Process {
    let process = Process::start(command.env_clear().stderr(Stdio::piped()), |child| child.stderr.take());
    process.wait_for_line(|line| line.contains("serving"));
    process
}

fn stop(mut process: Process) {
    process.signal("TERM");
    let status = process.wait();
    assert!(status.success(), "{status}: {}", process.output());
}

fn settings(dir: &TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_second_process_takes_over_without_a_refused_connection() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let socket = dir.path().join("kf.sock");
    let config =
        settings(&dir, &format!("listen = ['{addr}', 'unix:{}']\nreuse_port = true\nworkers = 2\n", socket.display()));
    let run = || {
        let words = keyfence(redis.addr(), &config);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        start(command)
    };
    let mut running = run();
    under_load(&redis, &[Place::Tcp(addr), Place::Unix(socket.clone())], |some| {
        for _ in 0..TIMES {
            some();
            let next = run();
            some();
            stop(std::mem::replace(&mut running, next));
            assert!(socket.exists(), "the one that went took the socket of the one that came");
        }
        some();
    });
    stop(running);
    assert!(!socket.exists(), "a socket was left behind");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
}

/// keyfence with these sockets as its standard input and output, passed on as a service manager passes them.
fn with_sockets(words: &[String], first: OwnedFd, second: OwnedFd) -> Process {
    let mut command = Command::new("/bin/sh");
    let pass = "exec 3<&0 4<&1 0</dev/null 1>/dev/null; export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$@\"";
    command.args(["-c", pass, "sh"]).args(words).stdin(first).stdout(second);
    start(command)
}

#[test]
fn sockets_that_are_passed_on_outlive_any_restart() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let path = dir.path().join("kf.sock");
    let (tcp, unix) = (TcpListener::bind(addr).unwrap(), UnixListener::bind(&path).unwrap());
    let config = settings(&dir, &format!("listen = ['unix:{}', '{addr}']\nworkers = 2\n", path.display()));
    let run = || {
        let words = keyfence(redis.addr(), &config);
        with_sockets(&words, tcp.try_clone().unwrap().into(), unix.try_clone().unwrap().into())
    };
    let mut running = Some(run());
    under_load(&redis, &[Place::Tcp(addr), Place::Unix(path.clone())], |some| {
        for _ in 0..TIMES {
            some();
            stop(running.take().unwrap());
            // Nobody serves, and nobody is refused.
            running = Some(run());
        }
        some();
    });
    stop(running.take().unwrap());
    assert!(path.exists(), "a socket that was passed on is not keyfence's to remove");
}

#[test]
fn who_waits_at_the_end_is_served() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let socket = dir.path().join("kf.sock");
    let config = settings(&dir, &format!("listen = ['{addr}', 'unix:{}']\nworkers = 2\n", socket.display()));
    let words = keyfence(redis.addr(), &config);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    let process = start(command);
    let mut known: Vec<_> = (0..10).map(|_| Place::Tcp(addr).connect()).collect();
    assert!(known.iter_mut().all(|client| increments(&mut **client, "k")));
    // It does not get to anything of this before it is told to stop.
    process.signal("STOP");
    let places = [Place::Tcp(addr), Place::Unix(socket)];
    let mut waiting: Vec<_> = places.iter().cycle().take(100).map(Place::connect).collect();
    for client in known.iter_mut().chain(&mut waiting) {
        client.write_all(b"*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n").unwrap();
    }
    process.signal("TERM");
    process.signal("CONT");
    let mut answers: Vec<u32> = Vec::new();
    for mut client in known.into_iter().chain(waiting) {
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        let number = said.strip_prefix(':').and_then(|rest| rest.trim_end().parse().ok());
        answers.push(number.unwrap_or_else(|| panic!("{said:?} is no answer, of {answers:?}")));
    }
    answers.sort_unstable();
    assert_eq!(answers, (11..=120).collect::<Vec<u32>>());
    let mut process = process;
    assert!(process.wait().success());
}

#[test]
fn a_socket_that_no_setting_names_is_an_error() {
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let path = dir.path().join("kf.sock");
    let (tcp, unix) = (TcpListener::bind(addr).unwrap(), UnixListener::bind(&path).unwrap());
    let config = settings(&dir, &format!("listen = ['{addr}']\n"));
    let words = keyfence(free_addr(), &config);
    let pass = "exec 3<&0 4<&1 0</dev/null 1>/dev/null; export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.env_clear().args(["-c", pass, "sh"]).args(&words);
    let output = command
        .stdin(OwnedFd::from(tcp))
        .stdout(OwnedFd::from(unix))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains(&format!("unix:{}", path.display())), "{said}");
}

#[test]
fn the_admin_listener_may_be_passed_on_too() {
    let redis = Redis::start();
    let (dir, addr, admin) = (tempfile::tempdir().unwrap(), free_addr(), free_addr());
    let config = settings(&dir, &format!("listen = ['{addr}']\n"));
    let mut words = keyfence(redis.addr(), &config);
    words.extend(["--admin".into(), admin.to_string()]);
    words.drain(2..4);
    let (tcp, http) = (TcpListener::bind(addr).unwrap(), TcpListener::bind(admin).unwrap());
    for _ in 0..2 {
        let process = with_sockets(&words, tcp.try_clone().unwrap().into(), http.try_clone().unwrap().into());
        crate::support::http::until(admin, "/readyz", |r| r.status == 200);
        assert!(increments(&mut *Place::Tcp(addr).connect(), "k"));
        stop(process);
    }
}

#[test]
fn a_service_manager_is_told() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let notify = dir.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(HANG)).unwrap();
    // Signs of life come whenever they come.
    let told = |wanted: &str| loop {
        let mut buf = [0; 512];
        let n = match manager.recv(&mut buf) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            n => n.unwrap_or_else(|e| panic!("nobody said {wanted}: {e}")),
        };
        let said = String::from_utf8_lossy(&buf[..n]).into_owned();
        if said.contains(wanted) {
            return said;
        }
        assert!(said.contains("WATCHDOG=1"), "{said}");
    };
    let config = settings(&dir, &format!("listen = ['{addr}']\nworkers = 2\n"));
    let words = keyfence(redis.addr(), &config);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    command.env_clear().env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "1000000").stderr(Stdio::piped());
    let process = Process::start(&mut command, |child| child.stderr.take());
    told("READY=1");
    assert!(TcpStream::connect(addr).is_ok(), "ready, and nobody listens");
    told("WATCHDOG=1");
    told("WATCHDOG=1");
    process.signal("HUP");
    assert!(told("RELOADING=1").contains("MONOTONIC_USEC="));
    told("READY=1");
    process.signal("TERM");
    told("STOPPING=1");
    let mut process = process;
    assert!(process.wait().success());
}
