//! One keyfence after another at the same addresses, under load: nobody is refused, nothing that was answered is lost, nothing that was not has
//! run. And what a service manager is told meanwhile.
use std::fs::Permissions;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr as SocketName, UnixDatagram, UnixListener, UnixStream};
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
fn all_addresses_of_ipv6_are_those_of_ipv4_unless_it_is_told_apart() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let bind = |at: SocketAddr| {
        let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        socket.listen(8)?;
        Ok::<_, std::io::Error>(TcpListener::from(socket))
    };
    // A port that is free in both.
    let (v6, v4, port) = loop {
        let v6 = bind("[::]:0".parse().unwrap()).unwrap();
        let port = v6.local_addr().unwrap().port();
        if let Ok(v4) = bind(format!("0.0.0.0:{port}").parse().unwrap()) {
            break (v6, v4, port);
        }
    };
    let config = settings(&dir, &format!("listen = ['0.0.0.0:{port}', '[::]:{port}']\nworkers = 1\n"));
    let process = with_sockets(&keyfence(redis.addr(), &config), v6.into(), v4.into());
    for addr in ["127.0.0.1", "[::1]"] {
        let place = Place::Tcp(format!("{addr}:{port}").parse().unwrap());
        assert!(increments(&mut *place.connect(), "k"));
    }
    stop(process);
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

/// A service manager at this address.
fn manager(at: &SocketName) -> UnixDatagram {
    let manager = UnixDatagram::bind_addr(at).unwrap();
    manager.set_read_timeout(Some(HANG)).unwrap();
    manager
}

/// keyfence that is to tell whoever is at `name`.
fn notifying(name: &str, config: &Path, upstream: SocketAddr) -> Process {
    let words = keyfence(upstream, config);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    command.env_clear().env("NOTIFY_SOCKET", name).env("WATCHDOG_USEC", "1000000").stderr(Stdio::piped());
    Process::start(&mut command, |child| child.stderr.take())
}

/// The next datagram with `wanted` in it, after nothing but signs of life, which come whenever they come.
fn told(manager: &UnixDatagram, wanted: &str) -> String {
    loop {
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
    }
}

#[test]
fn a_service_manager_is_told() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let config = settings(&dir, &format!("listen = ['{addr}']\nworkers = 2\n"));
    let (path, name) = (dir.path().join("notify"), format!("keyfence-test-{}", addr.port()));
    let at_path = (SocketName::from_pathname(&path).unwrap(), path.to_str().unwrap().to_owned());
    let in_no_file_system = (SocketName::from_abstract_name(&name).unwrap(), format!("@{name}"));
    for (at, name) in [at_path, in_no_file_system] {
        let manager = manager(&at);
        let mut process = notifying(&name, &config, redis.addr());
        told(&manager, "READY=1");
        assert!(TcpStream::connect(addr).is_ok(), "ready, and nobody listens");
        told(&manager, "WATCHDOG=1");
        told(&manager, "WATCHDOG=1");
        process.signal("HUP");
        assert!(told(&manager, "RELOADING=1").contains("MONOTONIC_USEC="));
        told(&manager, "READY=1");
        process.signal("TERM");
        told(&manager, "STOPPING=1");
        assert!(process.wait().success());
        assert_eq!(process.lines_with("makes no progress"), 0, "{}", process.output());
        assert_eq!(process.lines_with("could not be told"), 0, "{}", process.output());
    }
}

#[test]
fn a_service_manager_that_is_behind_keeps_nobody_waiting() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let config = settings(&dir, &format!("listen = ['{addr}']\nworkers = 1\n"));
    let path = dir.path().join("notify");
    let full = || {
        let other = UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        while other.send_to(b"WATCHDOG=1", &path).is_ok() {}
    };
    let manager = manager(&SocketName::from_pathname(&path).unwrap());
    full();
    let mut process = notifying(path.to_str().unwrap(), &config, redis.addr());
    process.wait_for_line(|line| line.contains("serving"));
    assert!(increments(&mut *Place::Tcp(addr).connect(), "k"));
    // It hears of it when it listens again.
    told(&manager, "READY=1");
    full();
    process.signal("TERM");
    assert!(process.wait().success());
}

#[test]
fn one_that_fails_to_take_over_takes_nothing_away() {
    let redis = Redis::start();
    let (dir, addr, taken) = (tempfile::tempdir().unwrap(), free_addr(), free_addr());
    let path = dir.path().join("kf.sock");
    let other = TcpListener::bind(taken).unwrap();
    let listen = format!("reuse_port = true\nworkers = 2\nlisten = ['{addr}', 'unix:{}'", path.display());
    let run = |text: &str| {
        let words = keyfence(redis.addr(), &settings(&dir, text));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let serving = start(run(&format!("{listen}]\n")));
    // The last address cannot be had; or it is one of its own, written in another way.
    std::os::unix::fs::symlink(dir.path(), dir.path().join("alias")).unwrap();
    let alias = dir.path().join("alias/kf.sock");
    for (last, status) in [(taken.to_string(), 1), (format!("unix:{}", alias.display()), 64)] {
        let ended = run(&format!("{listen}, '{last}']\n")).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(status), "{said}");
        for place in [Place::Tcp(addr), Place::Unix(path.clone())] {
            for _ in 0..4 {
                assert!(increments(&mut *place.connect(), "k"));
            }
        }
    }
    stop(serving);
    drop(other);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn who_hangs_keeps_only_their_own_clients_out() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    // They accept, and say nothing for longer than anybody would wait.
    let silent: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let mut text = format!("listen = ['{addr}']\nworkers = 1\n[tenants.well]\npasswords = ['secret']\n");
    for (n, listener) in silent.iter().enumerate() {
        let url = listener.local_addr().unwrap();
        text += &format!(
            "[upstreams.u{n}]\nurl = 'redis://{url}'\nsocket_timeout = '1h'\n[tenants.t{n}]\npasswords = ['secret{n}']\nupstream = 'u{n}'\n"
        );
    }
    let config = settings(&dir, &text);
    let words = keyfence(redis.addr(), &config);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    let process = start(command);
    let mut client = crate::support::Client::connect(addr);
    assert_eq!(client.call(&[b"AUTH", b"well", b"secret"]), b"+OK\r\n");
    assert_eq!(client.call(&[b"INCR", b"k"]), b":1\r\n");
    stop(process);
}

#[test]
fn a_stop_while_it_starts_is_a_stop() {
    let (dir, upstream) = (tempfile::tempdir().unwrap(), free_addr());
    let socket = dir.path().join("kf.sock");
    let silent = TcpListener::bind(upstream).unwrap();
    let config = settings(&dir, &format!("listen = ['unix:{}']\n", socket.display()));
    let words = keyfence(upstream, &config);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).env_clear().stderr(Stdio::piped());
    let mut process = Process::start(&mut command, |child| child.stderr.take());
    // It is being asked.
    let _asked = silent.accept().unwrap();
    process.signal("TERM");
    let status = process.wait();
    assert!(status.success(), "{status}: {}", process.output());
    assert!(!socket.exists(), "a socket was left behind");
}

#[test]
fn a_stop_while_a_managed_server_starts_is_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    // One that takes its time, as with much data.
    let (server, begun) = (dir.path().join("valkey-server"), dir.path().join("begun"));
    std::fs::write(
        &server,
        format!("#!/bin/sh\necho $$ > {0}.new; mv {0}.new {0}; exec sleep 1000\n", begun.display()),
    )
    .unwrap();
    std::fs::set_permissions(&server, Permissions::from_mode(0o755)).unwrap();
    let folder = dir.path().join("data");
    let text = format!("[upstream]\nurl = 'managed'\nmanaged.dir = '{}'\n[admin]\nlisten = ''\n", folder.display());
    let config = settings(&dir, &(format!("listen = ['{}']\n", free_addr()) + &text));
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyfence"));
    command.args(["run", "--config"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env_clear().env("PATH", format!("{}:/bin:/usr/bin", dir.path().display()));
    let mut process = Process::start(&mut command, |child| child.stderr.take());
    while !begun.exists() {}
    process.signal("TERM");
    let status = process.wait();
    assert!(status.success(), "{status}: {}", process.output());
    let pid = std::fs::read_to_string(&begun).unwrap();
    // Nor is the server left behind.
    while Path::new("/proc").join(pid.trim()).join("exe").exists() {}
}
