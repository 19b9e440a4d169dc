//! TLS over a TCP connection, in the shape of the halves in [`super`]: what the socket has is decrypted as it is read, and what does not fit into
//! the socket waits, encrypted and bounded, until it has room.

use std::{
    cell::{Ref, RefCell},
    io::{self, Read as _, Write as _},
    net::Shutdown,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll, ready},
    thread::{Builder, available_parallelism},
};

use rustls::{Connection, ServerConnection};
use tokio::{
    io::{AsyncRead as _, ReadBuf},
    net::TcpStream,
    sync::{Semaphore, oneshot},
};

/// Bytes of a record that may have arrived before the rest of it: the longest on the wire, with its header and the room that a cipher may add
/// ([RFC 5246, 6.2.3](https://www.rfc-editor.org/rfc/rfc5246#section-6.2.3): 2^14 + 2048 + 5).
const RECORD: usize = (1 << 14) + 2048 + 5;

/// Bytes asked of the socket at once. The library alone would ask for 4 KiB, a system call for each quarter of a full record.
const READ: usize = 64 * 1024;

thread_local! {
    /// What the socket gave, until it is decrypted: empty between two reads, so that a worker's connections share it.
    static RECEIVED: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Threads of the whole process that compute for handshakes at once: half as many as there are processors, so that those who serve are never
/// without one.
static THREADS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(available_parallelism().map_or(1, |n| n.get().div_ceil(2))));

/// A connection whose handshake is done, shared by its two halves.
#[derive(Debug)]
pub struct Stream {
    io: RefCell<TcpStream>,
    tls: RefCell<Connection>,
}

/// The socket as the library reads and writes it.
struct Io<'a>(&'a TcpStream);

impl io::Read for Io<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl io::Write for Io<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what is encrypted and waits; `true` when nothing waits any more.
fn send(io: &TcpStream, tls: &mut Connection) -> io::Result<bool> {
    while tls.wants_write() {
        match tls.write_tls(&mut Io(io)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// Takes what the socket has; `false` when it has nothing now.
fn receive(io: &TcpStream, tls: &mut Connection) -> io::Result<bool> {
    match tls.read_tls(&mut Io(io)) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        Err(e) => return Err(e),
    }
    process(io, tls).map(|()| true)
}

/// Decrypts what was taken. An error that the peer should hear of has been written to it.
fn process(io: &TcpStream, tls: &mut Connection) -> io::Result<()> {
    let processed = tls.process_new_packets();
    let sent = send(io, tls);
    processed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    sent.map(|_| ())
}

/// Decrypts `received` into `buf`, which has room for it and for what an earlier read left of a record: how many bytes that gave. Nothing is
/// decrypted after the peer's orderly end.
fn decrypt(io: &TcpStream, tls: &mut Connection, mut received: &[u8], buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while !received.is_empty() && tls.read_tls(&mut received)? > 0 {
        process(io, tls)?;
        match tls.reader().read(&mut buf[filled..]) {
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// A step of a handshake, and what is wrong with what the peer sent.
type Computed = (Connection, Result<(), rustls::Error>);

fn compute(mut tls: Connection) -> Computed {
    let processed = tls.process_new_packets().map(drop);
    (tls, processed)
}

/// The same on another thread, once there is a turn and a thread for it, if it is `wanted` by then.
async fn compute_aside(tls: Connection, turns: &Semaphore, wanted: impl Fn() -> bool) -> io::Result<Computed> {
    let _turn = turns.acquire().await.map_err(io::Error::other)?;
    let thread = THREADS.acquire().await.map_err(io::Error::other)?;
    if !wanted() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (tell, told) = oneshot::channel();
    // A thread that cannot be had costs this connection; a pool of the runtime's would panic.
    Builder::new().name("handshake".into()).spawn(move || {
        let computed = compute(tls);
        // Not before, though nobody should wait for it any more.
        drop(thread);
        let _ = tell.send(computed);
    })?;
    told.await.map_err(io::Error::other)
}

impl Stream {
    /// Shakes hands; the caller's deadline bounds this. Nothing that was sent in the clear is ever looked at as anything but a handshake.
    /// With `turns` what has to be computed is computed on another thread, in as many places at once as there are permits: nobody else on
    /// this thread waits for signatures, of which a peer gets one for a few hundred bytes.
    ///
    /// # Errors
    /// The socket's, or what is wrong with the peer's handshake or certificate, as `InvalidData`.
    pub async fn shake_hands(io: TcpStream, mut tls: Connection, turns: Option<&Semaphore>) -> io::Result<Self> {
        let mut begun = false;
        loop {
            if !send(&io, &mut tls)? {
                io.writable().await?;
                continue;
            }
            if !tls.is_handshaking() {
                return Ok(Self { io: RefCell::new(io), tls: RefCell::new(tls) });
            }
            io.readable().await?;
            let ended = match tls.read_tls(&mut Io(&io)) {
                Ok(read) => read == 0,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Err(e),
            };
            let processed;
            (tls, processed) = match turns {
                // Its first words cost most; by its turn it may have gone.
                Some(turns) => compute_aside(tls, turns, || begun || !is_closed(&io)).await?,
                None => compute(tls),
            };
            begun = true;
            // The peer hears of an error, too.
            let sent = send(&io, &mut tls);
            processed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            sent?;
            if tls.is_handshaking() && (ended || is_closed(&io)) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// What the server's side knows of the connection.
    pub fn server<R>(&self, look: impl FnOnce(&ServerConnection) -> R) -> Option<R> {
        match &*self.tls.borrow() {
            Connection::Server(tls) => Some(look(tls)),
            Connection::Client(_) => None,
        }
    }

    pub(super) fn socket(&self) -> Ref<'_, TcpStream> {
        self.io.borrow()
    }

    /// Decrypted bytes; 0 at the peer's orderly end. `buf` is 64 KiB or more wherever speed counts: one read of the socket then fills it.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let tls = &mut *self.tls.borrow_mut();
        let room = buf.len().saturating_sub(RECORD).min(READ);
        loop {
            match tls.reader().read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
            if room == 0 {
                // The library keeps what does not fit.
                let io = self.io.borrow();
                ready!(io.poll_read_ready(cx))?;
                // Where the socket had nothing after all, it is asked to say when it has.
                receive(&io, tls)?;
                continue;
            }
            let io = &mut *self.io.borrow_mut();
            let filled = RECEIVED.with_borrow_mut(|received| {
                let mut received = ReadBuf::new(&mut received[..room]);
                ready!(Pin::new(&mut *io).poll_read(cx, &mut received))?;
                if received.filled().is_empty() {
                    // The end, orderly or not, which the next look at the reader tells.
                    return Poll::Ready(tls.read_tls(&mut io::empty()));
                }
                Poll::Ready(decrypt(io, tls, received.filled(), buf))
            });
            match ready!(filled)? {
                0 => {}
                filled => return Poll::Ready(Ok(filled)),
            }
        }
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let tls = &mut *self.tls.borrow_mut();
        // What waits is bounded by the library: it takes nothing, or less, while too much does.
        let io = &self.io.borrow();
        send(io, tls)?;
        let taken = tls.writer().write(bytes)?;
        send(io, tls)?;
        if taken == 0 && !bytes.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Writes what waits; `false` when the socket takes no more now.
    pub(super) fn try_flush(&self) -> io::Result<bool> {
        send(&self.io.borrow(), &mut self.tls.borrow_mut())
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.borrow().poll_write_ready(cx)
    }

    /// Says that nothing more comes, as far as the socket takes it.
    pub(super) fn finish(&self) {
        let tls = &mut *self.tls.borrow_mut();
        tls.send_close_notify();
        let io = &*self.io.borrow();
        let _ = send(io, tls);
        let _ = socket2::SockRef::from(io).shutdown(Shutdown::Write);
    }
}

fn is_closed(io: &TcpStream) -> bool {
    // A peek at a closed socket is ready and gives nothing.
    let mut byte = [std::mem::MaybeUninit::uninit(); 1];
    matches!(socket2::SockRef::from(io).peek(&mut byte), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{ErrorKind, Write as _},
        net::{SocketAddr, TcpListener as StdListener},
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        thread::{self, ThreadId},
    };

    use futures_util::{FutureExt as _, future::join_all};
    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
        crypto::ring::default_provider,
        pki_types::{PrivateKeyDer, ServerName},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    };
    use tokio::runtime::Builder as Runtime;

    use super::*;

    type Client = StreamOwned<ClientConnection, std::net::TcpStream>;

    /// Settings of both sides, the client's trusting the server's certificate.
    fn both() -> (Arc<ClientConfig>, ServerConfig) {
        let provider = Arc::new(default_provider());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let theirs = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let ours = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        (Arc::new(theirs), ours)
    }

    fn connect(config: Arc<ClientConfig>, addr: SocketAddr) -> Client {
        let tls = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
        StreamOwned::new(tls, std::net::TcpStream::connect(addr).unwrap())
    }

    fn accept(listener: &StdListener) -> std::net::TcpStream {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// What `client` does on a thread of its own, and what `buf` bytes at a time give of it, to the end.
    fn read_with(buf: usize, client: impl FnOnce(&mut Client) + Send + 'static) -> (Vec<u8>, io::Result<usize>) {
        let (theirs, ours) = both();
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let sender = thread::spawn(move || {
            let mut stream = connect(theirs, addr);
            client(&mut stream);
            // A socket that is closed before all was read of it would take back what it sent.
            stream.sock.shutdown(Shutdown::Write).unwrap();
            let _ = io::copy(&mut stream.sock, &mut io::sink());
        });
        let stream = accept(&listener);
        let read = Runtime::new_current_thread().enable_io().build().unwrap().block_on(async {
            let tls = ServerConnection::new(Arc::new(ours)).unwrap();
            let (mut all, mut buf) = (Vec::new(), vec![0; buf]);
            let stream = match Stream::shake_hands(TcpStream::from_std(stream).unwrap(), tls.into(), None).await {
                Ok(stream) => stream,
                Err(e) => return (all, Err(e)),
            };
            loop {
                match poll_fn(|cx| stream.poll_read(cx, &mut buf)).await {
                    Ok(n) if n > 0 => all.extend_from_slice(&buf[..n]),
                    end => return (all, end),
                }
            }
        });
        sender.join().unwrap();
        read
    }

    /// Notes who looks for a certificate, which is a step of what is computed, and how many do at once.
    #[derive(Debug)]
    struct Watched {
        real: Arc<dyn ResolvesServerCert>,
        threads: Mutex<Vec<ThreadId>>,
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl ResolvesServerCert for Watched {
        fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            self.threads.lock().unwrap().push(thread::current().id());
            let key = self.real.resolve(hello);
            self.now.fetch_sub(1, Ordering::SeqCst);
            key
        }
    }

    #[test]
    fn what_handshakes_cost_is_another_threads_one_after_the_other() {
        const CLIENTS: usize = 8;
        let (theirs, mut ours) = both();
        let watched = Arc::new(Watched {
            real: Arc::clone(&ours.cert_resolver),
            threads: Mutex::default(),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        ours.cert_resolver = Arc::clone(&watched) as Arc<dyn ResolvesServerCert>;
        let (ours, turns) = (Arc::new(ours), Semaphore::new(1));
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let theirs = Arc::clone(&theirs);
                thread::spawn(move || {
                    let mut stream = connect(theirs, addr);
                    while stream.conn.is_handshaking() {
                        stream.conn.complete_io(&mut stream.sock).unwrap();
                    }
                })
            })
            .collect();
        let accepted: Vec<_> = clients.iter().map(|_| accept(&listener)).collect();
        Runtime::new_current_thread().enable_io().build().unwrap().block_on(async {
            let all = accepted.into_iter().map(|stream| {
                let tls = ServerConnection::new(Arc::clone(&ours)).unwrap();
                Stream::shake_hands(TcpStream::from_std(stream).unwrap(), tls.into(), Some(&turns))
            });
            for shaken in join_all(all).await {
                shaken.unwrap();
            }
        });
        clients.into_iter().for_each(|client| client.join().unwrap());
        let threads = watched.threads.lock().unwrap();
        assert_eq!(threads.len(), CLIENTS);
        assert!(!threads.contains(&thread::current().id()));
        assert_eq!(watched.most.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn nothing_is_computed_for_who_has_gone() {
        let (theirs, ours) = both();
        let (ours, turns) = (Arc::new(ours), Semaphore::new(0));
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let mut client = connect(theirs, listener.local_addr().unwrap());
        client.conn.write_tls(&mut client.sock).unwrap();
        let stream = accept(&listener);
        Runtime::new_current_thread().enable_io().build().unwrap().block_on(async {
            let tls = ServerConnection::new(ours).unwrap();
            let mut shaken =
                Box::pin(Stream::shake_hands(TcpStream::from_std(stream).unwrap(), tls.into(), Some(&turns)));
            // It waits for its turn.
            for _ in 0..100 {
                assert!((&mut shaken).now_or_never().is_none());
                tokio::task::yield_now().await;
            }
            drop(client);
            turns.add_permits(1);
            assert_eq!(shaken.await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        });
    }

    /// Bytes of which no two stretches are alike.
    fn pattern(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    #[test]
    fn every_byte_arrives_in_order_whatever_the_buffer_and_the_records() {
        const PIECES: [usize; 9] = [1, 16_383, 16_384, 16_385, 5, 70_000, 1, 300_000, 4_096];
        for buf in [1_000, RECORD - 1, RECORD, RECORD + 1, RECORD + 4_000, READ, READ + RECORD, 256 * 1024] {
            let (all, end) = read_with(buf, |client| {
                let all = pattern(PIECES.iter().sum());
                let mut rest = &all[..];
                for piece in PIECES {
                    client.write_all(&rest[..piece]).unwrap();
                    rest = &rest[piece..];
                }
                client.conn.send_close_notify();
                client.flush().unwrap();
            });
            assert!(all == pattern(PIECES.iter().sum()), "a buffer of {buf}");
            assert_eq!(end.unwrap(), 0, "the orderly end, a buffer of {buf}");
        }
    }

    #[test]
    fn many_small_records_fit_one_read() {
        let (all, end) = read_with(READ, |client| {
            for byte in pattern(3_000) {
                client.write_all(&[byte]).unwrap();
            }
            client.conn.send_close_notify();
            client.flush().unwrap();
        });
        assert!(all == pattern(3_000));
        assert_eq!(end.unwrap(), 0);
    }

    #[test]
    fn an_end_that_nobody_announced_is_an_error() {
        for buf in [1_000, READ] {
            let (all, end) = read_with(buf, |client| client.write_all(&pattern(40_000)).unwrap());
            assert!(all == pattern(40_000));
            assert_eq!(end.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn what_follows_the_orderly_end_is_not_read() {
        let (all, end) = read_with(READ, |client| {
            client.write_all(b"before").unwrap();
            client.conn.send_close_notify();
            client.flush().unwrap();
            let _ = client.sock.write_all(&[0x17, 3, 3, 0, 5, 1, 2, 3, 4, 5]);
        });
        assert_eq!(all, b"before");
        assert_eq!(end.unwrap(), 0);
    }

    #[test]
    fn bytes_that_nobody_encrypted_are_an_error() {
        for buf in [1_000, READ] {
            let (_, end) = read_with(buf, |client| {
                client.write_all(b"before").unwrap();
                client.sock.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
            });
            assert_eq!(end.unwrap_err().kind(), ErrorKind::InvalidData, "a buffer of {buf}");
        }
    }
}
