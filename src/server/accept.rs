//! One worker: accepts connections, starts their sessions, and at the end gives its listeners up without losing who waits in them.

use std::{
    cell::Cell,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener},
    os::unix::net::UnixListener as StdUnixListener,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    runtime::{Builder, LocalOptions},
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    drain::Ending,
    handshake::{self, Handshake, Handshakes},
    listen::{self, Heir, Kind, LOOK, Listener, SETTLE},
};
use crate::{
    clients::Client,
    downstream::{Alarm, Downstream},
    login,
    net::{ReadHalf, WriteHalf, announced::Raw, split_tcp, split_unix},
    session::Session,
    worker::{Names, Shared, Worker},
};

/// After a failed accept (no descriptors left, say), the next attempt comes this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long who is still shaking hands at a stop has to come to an end of it.
const LAST_HANDSHAKES: Duration = Duration::from_secs(1);

/// What who is one too many is told.
const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";

/// The end of the grace period, once the process stops.
type Leaving = watch::Receiver<Option<Instant>>;

/// Counts what keeps a worker: its sessions, and connections that may become some.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    count: Cell<usize>,
    none: Notify,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Present(Rc<Sessions>);

impl Sessions {
    pub(super) fn enter(self: &Rc<Self>) -> Present {
        self.count.set(self.count.get() + 1);
        Present(Rc::clone(self))
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.none.notify_one();
        }
    }
}

/// Serves what comes in on `listeners`, with what the settings call each and whether it is a tenant's, until told to leave and everybody has gone.
/// `begun` hears that it does, or why it cannot.
pub(super) fn work(
    shared: &Arc<Shared>,
    number: usize,
    listeners: Vec<(Listener, String, bool)>,
    mut leaving: Leaving,
    ending: Ending,
    begun: oneshot::Sender<io::Result<()>>,
) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = begun.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        let open = |(Listener { socket, heir }, name, of_tenant)| Ok((Open::new(socket)?, heir, name, of_tenant));
        let listeners: Vec<_> = match listeners.into_iter().map(open).collect() {
            Ok(listeners) => listeners,
            Err(error) => {
                let _ = begun.send(Err(error));
                return;
            }
        };
        let _ = begun.send(Ok(()));
        let worker = Worker::new(shared, number);
        let sessions = Rc::<Sessions>::default();
        let handshakes = Rc::<Handshakes>::default();
        let mut accepting = Vec::new();
        for (open, heir, name, of_tenant) in listeners {
            let door = Rc::new(Door {
                worker: Rc::clone(&worker),
                sessions: Rc::clone(&sessions),
                handshakes: Rc::clone(&handshakes),
                leaving: leaving.clone(),
                name: Rc::from(name),
                of_tenant,
            });
            accepting.push(tokio::task::spawn_local(async move {
                if let Err(error) = door.accept(open, heir).await {
                    tracing::error!(%error, "a listener failed");
                }
            }));
        }
        tokio::task::spawn_local(Rc::clone(&worker).keep_time());
        tokio::task::spawn_local(async move { ending.hear(&worker).await });
        let _ = leaving.wait_for(Option::is_some).await;
        let mut emptied = pin!(async {
            for door in accepting {
                let _ = door.await;
            }
            while sessions.count.get() > 0 {
                sessions.none.notified().await;
            }
        });
        // The deadline may become an earlier one.
        let empty = loop {
            let deadline = leaving.borrow_and_update().unwrap_or_else(Instant::now);
            tokio::select! {
                () = &mut emptied => break true,
                () = sleep_until(deadline) => break false,
                changed = leaving.changed() => if changed.is_err() { break false },
            }
        };
        if !empty && sessions.count.get() > 0 {
            tracing::warn!(
                clients = sessions.count.get(),
                "clients still connected at the end of the grace period: disconnected"
            );
        }
    });
}

/// A listener as the runtime waits on it.
enum Open {
    /// With TLS, if so.
    Tcp(TcpListener, bool),
    Unix(UnixListener),
}

/// A connection that has just been accepted.
enum Arrived {
    Tcp(TcpStream, SocketAddr, bool),
    Unix(UnixStream),
}

impl Open {
    fn new(socket: Kind) -> io::Result<Self> {
        Ok(match socket {
            Kind::Tcp(l) => Self::Tcp(TcpListener::from_std(l)?, false),
            Kind::Tls(l) => Self::Tcp(TcpListener::from_std(l)?, true),
            Kind::Unix(l) => Self::Unix(UnixListener::from_std(l)?),
        })
    }

    async fn accept(&self) -> io::Result<Arrived> {
        Ok(match self {
            Self::Tcp(l, tls) => {
                let (stream, peer) = l.accept().await?;
                Arrived::Tcp(stream, peer, *tls)
            }
            Self::Unix(l) => Arrived::Unix(l.accept().await?.0),
        })
    }

    fn close(self) -> io::Result<Closing> {
        Ok(match self {
            Self::Tcp(l, tls) => Closing::Tcp(l.into_std()?, tls),
            Self::Unix(l) => Closing::Unix(l.into_std()?),
        })
    }
}

/// A listener that is asked itself what waits in it: the runtime might not have heard of it yet.
enum Closing {
    Tcp(StdTcpListener, bool),
    Unix(StdUnixListener),
}

impl Closing {
    /// One that waits; an error is `WouldBlock` when none does.
    fn accept(&self) -> io::Result<Arrived> {
        Ok(match self {
            Self::Tcp(l, tls) => {
                let (stream, peer) = l.accept()?;
                stream.set_nonblocking(true)?;
                Arrived::Tcp(TcpStream::from_std(stream)?, peer, *tls)
            }
            Self::Unix(l) => {
                let (stream, _) = l.accept()?;
                stream.set_nonblocking(true)?;
                Arrived::Unix(UnixStream::from_std(stream)?)
            }
        })
    }
}

/// The way in at one listener of a worker's.
struct Door {
    worker: Rc<Worker>,
    sessions: Rc<Sessions>,
    handshakes: Rc<Handshakes>,
    leaving: Leaving,
    /// The address, as the settings write it.
    name: Rc<str>,
    /// It was bound for a tenant.
    of_tenant: bool,
}

impl Door {
    /// Accepts until the process stops, and then who waits still.
    async fn accept(self: &Rc<Self>, open: Open, heir: Heir) -> io::Result<()> {
        let mut leaving = self.leaving.clone();
        loop {
            tokio::select! {
                biased;
                _ = leaving.wait_for(Option::is_some) => break,
                arrived = open.accept() => match arrived {
                    Ok(arrived) => self.admit(arrived),
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        // What waits in a socket that others keep open is theirs.
        if heir == Heir::Same {
            return Ok(());
        }
        let closing = open.close()?;
        self.empty(&closing);
        // Who is halfway through connecting would be reset.
        if let Closing::Tcp(listener, _) = &closing
            && heir == Heir::Another
            && !listen::migrates()
            && listen::begin_no_more(&SockRef::from(listener)).is_ok()
        {
            let grace = leaving.borrow().unwrap_or_else(Instant::now);
            let until = grace.min(Instant::now() + SETTLE);
            while Instant::now() < until {
                sleep(LOOK).await;
                self.empty(&closing);
            }
        }
        Ok(())
    }

    fn empty(self: &Rc<Self>, closing: &Closing) {
        loop {
            match closing.accept() {
                Ok(arrived) => self.admit(arrived),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // One that was gone before it was accepted; what does not pass (no descriptors left) is not waited for.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "accept failed: connections that waited are lost");
                    return;
                }
            }
        }
    }

    fn admit(self: &Rc<Self>, arrived: Arrived) {
        let (raw, addresses, tls, announced) = match arrived {
            Arrived::Unix(stream) => {
                let announced = self.worker.shared.proxies.load().unix;
                (Raw::Unix(stream), ("unix:0".to_owned(), "unix:0".to_owned()), false, announced)
            }
            Arrived::Tcp(stream, peer, tls) => {
                // One that is gone already needs no answer.
                let Ok(local) = stream.local_addr() else { return };
                let announced = self.worker.shared.proxies.load().include(peer.ip());
                (Raw::Tcp(stream), (peer.to_string(), local.to_string()), tls, announced)
            }
        };
        if !tls && !announced {
            self.greet_plain(raw, addresses);
            return;
        }
        let Some(one) = self.handshakes.begin(&self.worker.shared, &self.sessions) else {
            tracing::debug!(client = addresses.0, "too many clients or handshakes: closed");
            self.worker.meter.cells.rejected.add(1);
            if !tls {
                raw.turn_away(TOO_MANY);
            }
            return;
        };
        tracing::debug!(client = addresses.0, "client is arriving");
        let door = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = door.prepare(raw, addresses, (tls, announced), one) => {}
                () = too_late(door.leaving.clone()) => {}
            }
        });
    }

    /// Hears what a proxy says of the connection and shakes hands, as far as either is due, then greets.
    async fn prepare(&self, raw: Raw, mut addresses: (String, String), (tls, announced): (bool, bool), one: Handshake) {
        if announced {
            match handshake::announced(&raw).await {
                Ok(Some((from, to))) => addresses = (from.to_string(), to.to_string()),
                // The proxy's own, to see whether we live.
                Ok(None) => {}
                // So do many of those who only look whether anybody listens.
                Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                    tracing::debug!(proxy = addresses.0, %error, "a proxy's connection ended before its PROXY header");
                    return;
                }
                Err(error) => {
                    tracing::warn!(proxy = addresses.0, %error, "a proxy that is to send a PROXY header did not: closed");
                    self.worker.meter.cells.unannounced.add(1);
                    return;
                }
            }
        }
        let stream = match raw {
            Raw::Tcp(stream) if tls => stream,
            raw => {
                // It is a client now, and counted as one.
                drop(one);
                return self.greet_plain(raw, addresses);
            }
        };
        let Some(tls) = self.worker.shared.tls.load_full() else { return };
        let from = addresses.0.parse().map_or_else(|_| Ipv4Addr::UNSPECIFIED.into(), |from: SocketAddr| from.ip());
        let shaken = handshake::shake(&one, stream, from, Arc::clone(&tls.config), tls.names_asked_for).await;
        drop(one);
        match shaken {
            Ok((read, write, names)) => self.greet((read, write), addresses, Names::new(names, tls)),
            Err(error) => tracing::debug!(client = addresses.0, %error, "no TLS handshake: closed"),
        }
    }

    fn greet_plain(&self, raw: Raw, addresses: (String, String)) {
        let halves = match raw {
            Raw::Tcp(stream) => split_tcp(stream),
            Raw::Unix(stream) => Ok(split_unix(stream)),
        };
        if let Ok(halves) = halves {
            self.greet(halves, addresses, Names::default());
        }
    }

    /// Starts the session of a new connection, or turns it away.
    fn greet(&self, (read, write): (ReadHalf, WriteHalf), (addr, laddr): (String, String), names: Names) {
        let (worker, shared) = (&self.worker, &self.worker.shared);
        let limits = shared.limits.load();
        let directory = shared.directory.load();
        let first = directory.first(&self.name, names.believed(shared));
        let counts = &worker.meter.cells;
        if self.of_tenant && !directory.listeners.contains_key(&*self.name) {
            counts.rejected.add(1);
            let _ = write.try_write(b"-ERR the tenant of this address is not served any more\r\n");
            return;
        }
        if shared.full() || first.as_ref().is_some_and(|(tenant, _)| !tenant.admit()) {
            counts.rejected.add(1);
            let _ = write.try_write(TOO_MANY);
            return;
        }
        counts.accepted.add(1);
        let alarm = Arc::<Alarm>::default();
        let client = Client::new(shared.clients.next_id(), addr, laddr, Arc::clone(&alarm), directory.nobody.id);
        let client = Arc::new(client);
        tracing::debug!(client = %client.addr, id = client.id, "client connected");
        shared.clients.insert(Arc::clone(&client));
        // It came just before the listeners closed, and may have come too late to be told with the others.
        if shared.draining.load(Ordering::SeqCst) {
            client.alarm.drain();
        }
        let down =
            Rc::new(Downstream::new(write, Arc::clone(&client.addr), limits.output, Rc::clone(&worker.spares), alarm));
        let mut session = Session::new(worker, read, down, Arc::clone(&client));
        session.listener = Rc::clone(&self.name);
        session.names = names;
        if let Some((tenant, login)) = first {
            session.become_tenant(Arc::clone(tenant), login);
            login::end_if_reloaded(&session);
        }
        let (present, worker) = (self.sessions.enter(), Rc::clone(worker));
        tokio::task::spawn_local(async move {
            session.run().await;
            worker.shared.clients.remove(client.id);
            let (tenant, age) = (&*session.tenant.name, client.since.elapsed());
            tracing::debug!(client = %client.addr, id = client.id, tenant, ?age, "client disconnected");
            drop(present);
        });
    }
}

/// Ends a while after the process began to stop.
async fn too_late(mut leaving: Leaving) {
    let _ = leaving.wait_for(Option::is_some).await;
    sleep(LAST_HANDSHAKES).await;
}
