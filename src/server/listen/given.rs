//! Sockets that a supervisor keeps open and passes on (`LISTEN_FDS`), as sd_listen_fds(3) says.

use std::{
    env,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::net::UnixListener as StdUnixListener,
    path::{Path, PathBuf},
    process,
};

use listenfd::ListenFd;
use socket2::SockRef;

use crate::server::Failure;

/// Sockets that were passed to this process: bound, listening, and kept open by who passed them.
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

    /// The one that listens at `at`. One that is for every address of IPv6, and not for IPv6 only, is for every address of IPv4, too.
    pub(in crate::server) fn tcp(&mut self, at: SocketAddr) -> Option<StdTcpListener> {
        let stands_in = |listener: &StdTcpListener, own: SocketAddr| {
            own.port() == at.port()
                && own.is_ipv6()
                && own.ip().is_unspecified()
                && at.ip().is_unspecified()
                && SockRef::from(listener).only_v6().is_ok_and(|only| !only)
        };
        let exact = self.0.iter().position(|given| matches!(given, Given::Tcp(_, own) if *own == at));
        let found = exact.or_else(|| {
            self.0.iter().position(|given| matches!(given, Given::Tcp(listener, own) if stands_in(listener, *own)))
        })?;
        match self.0.remove(found) {
            Given::Tcp(listener, _) => Some(listener),
            Given::Unix(..) => None,
        }
    }

    pub(super) fn unix(&mut self, path: &Path) -> Option<StdUnixListener> {
        let found = self.0.iter().position(|given| matches!(given, Given::Unix(_, own) if own == path))?;
        match self.0.remove(found) {
            Given::Unix(listener, _) => Some(listener),
            Given::Tcp(..) => None,
        }
    }

    /// Nothing that was passed is left: clients of it would wait for ever.
    ///
    /// # Errors
    /// What is left.
    pub(in crate::server) fn nothing_left(&self) -> Result<(), Failure> {
        let Some(given) = self.0.first() else { return Ok(()) };
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
