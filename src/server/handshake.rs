//! The TLS handshake of a new connection: apart from accepting, so that nobody waits behind a slow one, and bounded in number and time.

use std::{cell::Cell, io, sync::Arc, time::Duration};

use rustls::{ServerConfig, ServerConnection};
use tokio::{net::TcpStream, time::timeout};

use crate::{
    net::{ReadHalf, WriteHalf, split_tls, tls::Stream},
    tls,
};

/// A client that has not shaken hands after this long is closed.
const WITHIN: Duration = Duration::from_secs(10);
/// Handshakes in progress on one worker; a connection beyond them is closed at once, before it costs anything.
const AT_ONCE: usize = 1024;

/// Counts the handshakes in progress on a worker.
#[derive(Debug, Default)]
pub(super) struct Handshakes(Cell<usize>);

/// One of them.
#[derive(Debug)]
pub(super) struct Handshake<'a>(&'a Cell<usize>);

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Handshakes {
    /// One more; none when there are too many.
    pub(super) fn begin(&self) -> Option<Handshake<'_>> {
        (self.0.get() < AT_ONCE).then(|| {
            self.0.set(self.0.get() + 1);
            Handshake(&self.0)
        })
    }
}

/// Shakes hands as `config` says: the connection's halves, and the names that may make it a tenant's.
///
/// # Errors
/// The socket's, what is wrong with the client's handshake or certificate, or `TimedOut`.
pub(super) async fn shake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    names_asked_for: bool,
) -> io::Result<(ReadHalf, WriteHalf, Vec<String>)> {
    stream.set_nodelay(true)?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let stream = timeout(WITHIN, Stream::shake_hands(stream, connection.into())).await??;
    let names = stream.server(|connection| tls::identities(connection, names_asked_for)).unwrap_or_default();
    let (read, write) = split_tls(stream);
    Ok((read, write, names))
}
