//! The listeners: sockets of our own, or those that a supervisor passes on; how they are had, all or none, and how they are given up.
//!
//! ```text
//! bind_all: every address, none of them listened at ─► nothing is wrong with any ─► open: listen, and take the paths of unix sockets
//! ```

mod given;
mod path;

pub use given::Inherited;

use std::{
    fs,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::net::UnixListener as StdUnixListener,
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};
use tokio::net::lookup_host;

use self::path::{Bed, Place};
use super::Failure;
use crate::{
    config::{Config, Listen},
    directory,
};

/// Connections that may wait to be accepted, per worker.
const BACKLOG: i32 = 1024;
/// How long handshakes of TCP that have begun have to end when a listener is given up: longer than most round trips. New ones go elsewhere
/// meanwhile.
pub(super) const SETTLE: Duration = Duration::from_millis(250);
/// Between two looks at who has come to an end of them.
pub(super) const LOOK: Duration = Duration::from_millis(10);
/// Whether the kernel hands what waits in a listener that closes to another one of the same address (Linux 5.14).
const MIGRATES: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// How addresses are bound.
#[derive(Clone, Copy, Debug)]
struct Manner {
    /// Sockets wanted of each.
    workers: usize,
    /// `reuse_port`.
    shared: bool,
    /// `unix_socket_mode`.
    mode: Option<u32>,
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
    /// Of a unix socket.
    place: Option<Place>,
    /// Of one that is ours, not passed.
    bed: Option<Bed>,
    /// Fewer once workers have taken theirs.
    pub(super) listeners: Vec<Listener>,
}

impl Bound {
    /// Has clients connect, at a path of its own once it is [settled](Bed::settle).
    fn listen(&self) -> io::Result<()> {
        for (n, listener) in self.listeners.iter().filter(|l| l.heir != Heir::Same).enumerate() {
            let socket = listener.socket.as_ref();
            let tcp = !matches!(listener.socket, Kind::Unix(_));
            // One queue of new connections per worker; the kernel spreads them. The first of an address listens before it says that it shares, so that
            // the address had to be free; the others may join it, and, from then on, those of another process of the same user that asks for it.
            if tcp && n > 0 {
                socket.set_reuse_port(true)?;
            }
            socket.listen(BACKLOG)?;
            if tcp {
                socket.set_reuse_port(true)?;
            }
        }
        Ok(())
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

impl Kind {
    fn as_ref(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(l) | Self::Tls(l) => SockRef::from(l),
            Self::Unix(l) => SockRef::from(l),
        }
    }
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

/// Binds all addresses of the settings; nobody can connect to those that are new before [`open`].
///
/// # Errors
/// What cannot be had, or what is wrong with the settings. What was bound is given up; nobody else has lost anything.
pub(super) async fn bind_all(config: &Config, workers: usize, given: &mut Inherited) -> Result<Vec<Bound>, Failure> {
    let manner = Manner { workers, shared: config.reuse_port, mode: config.unix_socket_mode };
    let mut bound: Vec<Bound> = Vec::new();
    let of_all = config.listen.iter().map(|listen| (listen, false));
    let of_tenants = config.tenants.iter().flat_map(|t| &t.listen).map(|listen| (listen, true));
    for (number, (listen, of_tenant)) in of_all.chain(of_tenants).enumerate() {
        // Two listeners on one address would each get some of its connections, and with them the other's tenant.
        let same = |name: &str, other: &Bound| {
            Failure::Settings(format!("cannot listen on {name}: it is the same address as {}", other.name))
        };
        let name = directory::address(listen);
        let place = match listen {
            Listen::Unix(path) => Some(path::place(path).map_err(|e| cannot(&name, &e))?),
            Listen::Tcp(_) | Listen::Tls(_) => None,
        };
        if let Some(other) = bound.iter().find(|other| place.is_some() && other.place == place) {
            return Err(same(&name, other));
        }
        let mut one = bind(listen, manner, given, number).await?;
        (one.place, one.of_tenant) = (place, of_tenant);
        let plain = |bound: &Bound| bound.shown.trim_start_matches("tls:").to_owned();
        if let Some(other) = bound.iter().find(|other| plain(other) == plain(&one)) {
            return Err(same(&name, other));
        }
        bound.push(one);
    }
    Ok(bound)
}

/// Listens at all of them: from here on clients come, and those of a process that is taken over from, too.
///
/// # Errors
/// What cannot be had after all.
pub(super) fn open(bound: &mut [Bound]) -> Result<(), Failure> {
    for b in &*bound {
        b.listen().map_err(|e| cannot(&b.name, &e))?;
    }
    // Last, when nothing else can fail: the path leads to a socket that listens at any time.
    for b in bound {
        if let Some(bed) = &mut b.bed {
            bed.settle().map_err(|e| cannot(&b.name, &e))?;
        }
    }
    Ok(())
}

async fn bind(listen: &Listen, manner: Manner, given: &mut Inherited, number: usize) -> Result<Bound, String> {
    let heir = if manner.shared { Heir::Another } else { Heir::None };
    match listen {
        Listen::Tcp(address) | Listen::Tls(address) => {
            let tls = matches!(listen, Listen::Tls(_));
            let failed = |e: io::Error| cannot(address, &e);
            let mut at = resolve(address).await?;
            let passed = given.tcp(at);
            let heir = if passed.is_some() { Heir::Same } else { heir };
            let mut listeners: Vec<Listener> = Vec::new();
            for _ in 0..manner.workers {
                let socket = match &passed {
                    Some(listener) => listener.try_clone().map_err(failed)?,
                    None => bind_tcp(at, manner.shared).map_err(failed)?,
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
                place: None,
                bed: None,
                listeners,
            })
        }
        Listen::Unix(path) => {
            let failed = |e: io::Error| cannot(&path.display().to_string(), &e);
            let (first, bed, heir) = match given.unix(path) {
                Some(listener) => (listener, None, Heir::Same),
                None => {
                    let (listener, bed) = path::bind(path, manner, number).await.map_err(failed)?;
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
                place: None,
                bed,
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

/// A socket that does not listen yet. `shared`: another process of the same user may listen at the address, which must let others join.
fn bind_tcp(at: SocketAddr, shared: bool) -> io::Result<StdTcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&SockAddr::from(at))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(at: SocketAddr, shared: bool) -> io::Result<Bound> {
        let mut listeners = Vec::new();
        for _ in 0..2 {
            listeners.push(Listener { socket: Kind::Tcp(bind_tcp(at, shared)?), heir: Heir::None });
        }
        let shown = at.to_string();
        Ok(Bound { name: shown.clone(), of_tenant: false, shown, port: None, place: None, bed: None, listeners })
    }

    #[test]
    fn of_two_that_start_at_once_one_has_the_address() {
        let free = bind_tcp(([127, 0, 0, 1], 0).into(), false).and_then(|l| l.local_addr()).expect("a free port");
        let (one, two) = (bound(free, false).expect("bound"), bound(free, false).expect("bound, too"));
        one.listen().expect("the first");
        assert_eq!(two.listen().expect_err("the second").kind(), ErrorKind::AddrInUse);
        assert_eq!(bound(free, false).expect_err("a third").kind(), ErrorKind::AddrInUse);
        bound(free, true).and_then(|joining| joining.listen()).expect("one that asks to share");
    }
}
