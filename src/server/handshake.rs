//! What comes before a session: the header of a proxy and the TLS handshake of a new connection. Apart from accepting, so that nobody waits behind a slow one, and bounded
//! in time, in number on a worker, and by `max_clients` together with the clients there are.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::IpAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};

use super::accept::{Present, Sessions};
use crate::{
    net::{
        ReadHalf, WriteHalf,
        announced::{Announced, Raw},
        split_tls,
        tls::Stream,
    },
    tenant::throttle::network,
    tls,
    worker::Shared,
};

/// A client that has not shaken hands after this long is closed.
const WITHIN: Duration = Duration::from_secs(10);
/// A proxy sends its header with the first packet; one that has not after this long is closed.
const HEADER_WITHIN: Duration = Duration::from_secs(5);
/// Handshakes in progress on one worker; a connection beyond them is closed at once, before it costs anything.
const AT_ONCE: usize = 1024;

/// Steps that are computed at once for handshakes of one address: who asks for many waits for himself.
const OF_ADDRESS: usize = 1;

/// The handshakes in progress on a worker, over all its listeners.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    count: Cell<usize>,
    /// By address.
    turns: RefCell<HashMap<IpAddr, Rc<Semaphore>>>,
}

/// One of them, which takes the place of a client as long as it lasts.
#[derive(Debug)]
pub(super) struct Handshake {
    here: Rc<Handshakes>,
    shared: Arc<Shared>,
    _present: Present,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.here.count.set(self.here.count.get() - 1);
        self.shared.arriving.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Handshakes {
    /// One more; none when there are too many, or as many clients as there may be.
    pub(super) fn begin(self: &Rc<Self>, shared: &Arc<Shared>, sessions: &Rc<Sessions>) -> Option<Handshake> {
        if self.count.get() >= AT_ONCE || shared.full() {
            return None;
        }
        self.count.set(self.count.get() + 1);
        shared.arriving.fetch_add(1, Ordering::Relaxed);
        Some(Handshake { here: Rc::clone(self), shared: Arc::clone(shared), _present: sessions.enter() })
    }

    /// What those of one address share; nobody has those that are left out.
    fn turns(&self, address: IpAddr) -> Rc<Semaphore> {
        let mut turns = self.turns.borrow_mut();
        if turns.len() >= AT_ONCE {
            turns.retain(|_, turns| Rc::strong_count(turns) > 1);
        }
        Rc::clone(turns.entry(network(address)).or_insert_with(|| Rc::new(Semaphore::new(OF_ADDRESS))))
    }
}

/// What a proxy says of the connection.
///
/// # Errors
/// As [`Raw::announced`], or `TimedOut`.
pub(super) async fn announced(raw: &Raw) -> io::Result<Announced> {
    timeout(HEADER_WITHIN, raw.announced()).await?
}

/// Shakes hands with a client at `address` as `config` says: the connection's halves, and the names that may make it a tenant's.
///
/// # Errors
/// The socket's, what is wrong with the client's handshake or certificate, or `TimedOut`.
pub(super) async fn shake(
    one: &Handshake,
    stream: TcpStream,
    address: IpAddr,
    config: Arc<ServerConfig>,
    names_asked_for: bool,
) -> io::Result<(ReadHalf, WriteHalf, Vec<String>)> {
    stream.set_nodelay(true)?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let turns = one.here.turns(address);
    let stream = timeout(WITHIN, Stream::shake_hands(stream, connection.into(), Some(&turns))).await??;
    let names = stream.server(|connection| tls::identities(connection, names_asked_for)).unwrap_or_default();
    let (read, write) = split_tls(stream);
    Ok((read, write, names))
}
