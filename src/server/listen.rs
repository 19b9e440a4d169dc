//! The listeners: sockets of our own, or those that a supervisor keeps open and passes on (`LISTEN_FDS`), and how they are given up.

use std::{
    env, fs,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixListener as StdUnixListener,
    },
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};
use tokio::net::lookup_host;

use super::Failure;
use crate::{
    config::{Config, Listen},
    directory,
};

/// Connections that may wait to be accepted, per worker.
const BACKLOG: i32 = 1024;
/// How long handshakes of TCP that have begun have to end when a listener is given up; new ones go elsewhere meanwhile.
pub(super) const SETTLE: Duration = Duration::from_millis(20);
/// Whether the kernel hands what waits in a listener that closes to another one of the same address (Linux 5.14).
const MIGRATES: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// Sockets that were passed to this process, as sd_listen_fds(3) says: bound, listening, and kept open by who passed them.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Given>);

#[derive(Debug)]
enum Given {
    Tcp(StdTcpListener, SocketAddr),
    Unix(StdUnixListener, PathBuf),
}

impl Inherited {
    /// Takes them, and the variables that tell of them out of the environment; none when these are for another process. Call it once, before
    /// there are threads.
    ///
    /// # Errors
    /// A sentence: a descriptor is no listening stream socket of TCP, or of a unix socket that has a path.
    pub fn from_env() -> Result<Self, String> {
        let ours = env::var("LISTEN_PID").is_ok_and(|pid| pid == process::id().to_string());
        if !ours {
            return Ok(Self::default());
        }
        let mut passed = ListenFd::from_env();
        let mut given = Vec::new();
        for n in 0..passed.len() {
            let wrong = |e: io::Error| format!("LISTEN_FDS: socket {}: {e}", n + 1);
            given.push(if let Ok(Some(listener)) = passed.take_tcp_listener(n) {
                check(&SockRef::from(&listener)).map_err(wrong)?;
                let at = listener.local_addr().map_err(wrong)?;
                Given::Tcp(listener, at)
            } else {
                let listener = passed.take_unix_listener(n).map_err(wrong)?;
                let listener = listener.ok_or_else(|| wrong(ErrorKind::NotFound.into()))?;
                check(&SockRef::from(&listener)).map_err(wrong)?;
                let at = listener.local_addr().map_err(wrong)?;
                let path = at.as_pathname().ok_or_else(|| wrong(io::Error::other("it has no path")))?;
                Given::Unix(listener, path.to_owned())
            });
        }
        Ok(Self(given))
    }

    /// The one that listens at `at`. One that is for every address of IPv6 is for every address of IPv4, too.
    pub(super) fn tcp(&mut self, at: SocketAddr) -> Option<StdTcpListener> {
        let serves = |own: SocketAddr| {
            own == at
                || own.port() == at.port() && own.is_ipv6() && own.ip().is_unspecified() && at.ip().is_unspecified()
        };
        let found = self.0.iter().position(|given| matches!(given, Given::Tcp(_, own) if serves(*own)))?;
        match self.0.remove(found) {
            Given::Tcp(listener, _) => Some(listener),
            Given::Unix(..) => None,
        }
    }

    fn unix(&mut self, path: &Path) -> Option<StdUnixListener> {
        let found = self.0.iter().position(|given| matches!(given, Given::Unix(_, own) if own == path))?;
        match self.0.remove(found) {
            Given::Unix(listener, _) => Some(listener),
            Given::Tcp(..) => None,
        }
    }

    /// `bound`, when nothing that was passed is left: clients of it would wait for ever.
    ///
    /// # Errors
    /// What is left.
    pub(super) fn nothing_left(&self, bound: Vec<Bound>) -> Result<Vec<Bound>, Failure> {
        let Some(given) = self.0.first() else { return Ok(bound) };
        let shown = match given {
            Given::Tcp(_, at) => at.to_string(),
            Given::Unix(_, path) => format!("unix:{}", path.display()),
        };
        Err(Failure::Settings(format!(
            "a socket that listens at {shown} was passed (LISTEN_FDS), and no listen of the settings names that address"
        )))
    }
}

/// A socket that does not listen has no clients to accept.
fn check(socket: &SockRef<'_>) -> io::Result<()> {
    if !socket.is_listener()? {
        return Err(io::Error::other("it does not listen: Accept=no is what keyfence serves"));
    }
    socket.set_nonblocking(true)
}

/// How addresses are bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// Sockets wanted of each.
    pub(super) workers: usize,
    /// `reuse_port`.
    pub(super) shared: bool,
    /// `unix_socket_mode`.
    pub(super) mode: Option<u32>,
}

/// One address of the settings, bound once for each worker.
#[derive(Debug)]
pub(super) struct Bound {
    /// As the settings write it.
    pub(super) name: String,
    /// A connection that comes in on it is a tenant's.
    pub(super) of_tenant: bool,
    pub(super) shown: String,
    pub(super) port: Option<u16>,
    path: Option<Bed>,
    pub(super) listeners: Vec<Listener>,
}

/// The file of a unix socket of ours: where, which device and which number.
#[derive(Debug)]
struct Bed(PathBuf, u64, u64);

impl Drop for Bound {
    /// Takes the file of a unix socket away, unless it is another process's by now.
    fn drop(&mut self) {
        if let Some(Bed(path, dev, ino)) = &self.path
            && fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (*dev, *ino))
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// A socket, and who else may accept what comes to it.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: Kind,
    pub(super) heir: Heir,
}

#[derive(Debug)]
pub(super) enum Kind {
    Tcp(StdTcpListener),
    /// With TLS.
    Tls(StdTcpListener),
    Unix(StdUnixListener),
}

/// Who accepts connections after a listener is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heir {
    /// Nobody: what waits is accepted before.
    None,
    /// Another socket of the same address, which has its own queue: what waits in this one is accepted before, or the kernel moves it.
    Another,
    /// Another process, on the same socket: what waits is that one's.
    Same,
}

/// Binds all addresses of the settings.
///
/// # Errors
/// What cannot be had, or what is wrong with the settings.
pub(super) async fn bind_all(config: &Config, workers: usize, given: &mut Inherited) -> Result<Vec<Bound>, Failure> {
    let manner = Manner { workers, shared: config.reuse_port, mode: config.unix_socket_mode };
    let mut bound: Vec<Bound> = Vec::new();
    let of_all = config.listen.iter().map(|listen| (listen, false));
    let of_tenants = config.tenants.iter().flat_map(|t| &t.listen).map(|listen| (listen, true));
    for (listen, of_tenant) in of_all.chain(of_tenants) {
        let mut one = bind(listen, manner, given).await?;
        one.of_tenant = of_tenant;
        // Two listeners on one address would each get some of its connections, and with them the other's tenant.
        let same = |b: &&Bound| b.shown.trim_start_matches("tls:") == one.shown.trim_start_matches("tls:");
        if let Some(other) = bound.iter().find(same) {
            let text = format!("cannot listen on {}: it is the same address as {}", one.name, other.name);
            return Err(Failure::Settings(text));
        }
        bound.push(one);
    }
    Ok(bound)
}

async fn bind(listen: &Listen, manner: Manner, given: &mut Inherited) -> Result<Bound, String> {
    let heir = if manner.shared { Heir::Another } else { Heir::None };
    match listen {
        Listen::Tcp(address) | Listen::Tls(address) => {
            let tls = matches!(listen, Listen::Tls(_));
            let failed = |e: io::Error| cannot(address, &e);
            let mut at = resolve(address).await?;
            let passed = given.tcp(at);
            let heir = if passed.is_some() { Heir::Same } else { heir };
            let mut listeners: Vec<Listener> = Vec::new();
            for n in 0..manner.workers {
                let socket = match &passed {
                    Some(listener) => listener.try_clone().map_err(failed)?,
                    None => bind_tcp(at, manner.shared || n > 0).map_err(failed)?,
                };
                // Port 0 became a real one with the first.
                at = socket.local_addr().map_err(failed)?;
                let socket = if tls { Kind::Tls(socket) } else { Kind::Tcp(socket) };
                listeners.push(Listener { socket, heir });
            }
            Ok(Bound {
                name: directory::address(listen),
                of_tenant: false,
                shown: if tls { format!("tls:{at}") } else { at.to_string() },
                port: Some(at.port()),
                path: None,
                listeners,
            })
        }
        Listen::Unix(path) => {
            let failed = |e: io::Error| cannot(&path.display().to_string(), &e);
            let (first, bed, heir) = match given.unix(path) {
                Some(listener) => (listener, None, Heir::Same),
                None => {
                    let (listener, bed) = bind_unix(path, manner).map_err(failed)?;
                    // The path leads to one socket only: nothing new comes to one that it does not lead to any more.
                    (listener, Some(bed), Heir::None)
                }
            };
            let mut listeners = Vec::new();
            for _ in 0..manner.workers {
                listeners.push(Listener { socket: Kind::Unix(first.try_clone().map_err(failed)?), heir });
            }
            Ok(Bound {
                name: directory::address(listen),
                of_tenant: false,
                shown: format!("unix:{}", path.display()),
                port: None,
                path: bed,
                listeners,
            })
        }
    }
}

/// The first port of TCP that the settings name.
pub(super) fn port(config: &Config) -> Option<u16> {
    let of_tenants = config.tenants.iter().flat_map(|t| &t.listen);
    config.listen.iter().chain(of_tenants).find_map(|listen| match listen {
        Listen::Tcp(address) | Listen::Tls(address) => address.rsplit(':').next()?.parse().ok(),
        Listen::Unix(_) => None,
    })
}

/// The address that `host:port` is.
///
/// # Errors
/// A sentence for the operator.
pub(super) async fn resolve(address: &str) -> Result<SocketAddr, String> {
    let mut found = lookup_host(address).await.map_err(|e| cannot(address, &e))?;
    found.next().ok_or_else(|| format!("cannot listen on {address}: no such host"))
}

fn cannot(address: &str, error: &io::Error) -> String {
    if error.kind() == ErrorKind::AddrInUse {
        return format!(
            "cannot listen on {address}: another process does (with reuse_port = true a keyfence takes over from one that serves there)"
        );
    }
    format!("cannot listen on {address}: {error}")
}

/// `shared`: another process of the same user may have the address too, which must have bound it so as well.
fn bind_tcp(at: SocketAddr, shared: bool) -> io::Result<StdTcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&SockAddr::from(at))?;
    // One queue of new connections per worker; the kernel spreads them. Said only now, the address had to be free; the sockets of the other
    // workers may join, and, from then on, those of another process of the same user that asks for it.
    socket.set_reuse_port(true)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A socket at `path`, which is never more open than it is meant to be: nobody can connect before it listens.
fn bind_unix(path: &Path, manner: Manner) -> io::Result<(StdUnixListener, Bed)> {
    let theirs = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(e),
        Ok(m) if !m.file_type().is_socket() => {
            return Err(io::Error::other("there is a file that is no socket"));
        }
        Ok(_) => answers(path)?,
    };
    if theirs && !manner.shared {
        return Err(ErrorKind::AddrInUse.into());
    }
    // Beside the path, and then in the place of what is there in one step: the path leads to a socket that listens at any time.
    let beside = if theirs { Some(path.with_added_extension(format!("{}.next", process::id()))) } else { None };
    let at = beside.as_deref().unwrap_or(path);
    if let Err(e) = fs::remove_file(at)
        && e.kind() != ErrorKind::NotFound
    {
        return Err(e);
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(at)?)?;
    let about = fs::symlink_metadata(at)?;
    let bed = Bed(path.to_owned(), about.dev(), about.ino());
    let ready = || {
        if let Some(mode) = manner.mode {
            fs::set_permissions(at, fs::Permissions::from_mode(mode))?;
        }
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        if beside.is_some() { fs::rename(at, path) } else { Ok(()) }
    };
    if let Err(e) = ready() {
        let _ = fs::remove_file(at);
        return Err(e);
    }
    Ok((socket.into(), bed))
}

/// Whether a process listens at `path`; a socket on which none does is what a killed one left behind.
fn answers(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue must not keep us waiting.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether what waits in a closing socket goes to another of the same address by itself.
pub(super) fn migrates() -> bool {
    fs::read_to_string(MIGRATES).is_ok_and(|on| on.trim() == "1")
}

/// Has the kernel drop what would begin a connection here: the peer says it again a second later, and then to another socket of the address.
/// What has begun goes on.
///
/// # Errors
/// The socket's.
pub(super) fn begin_no_more(socket: &SockRef<'_>) -> io::Result<()> {
    // Load the flags of the TCP header; SYN without ACK is dropped, all else kept.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    socket.attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, 0x12),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 0x02),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}
