//! TLS over a TCP connection, in the shape of the halves in [`super`]: what the socket has is decrypted as it is read, and what does not fit into
//! the socket waits, encrypted and bounded, until it has room.

use std::{
    cell::{Ref, RefCell},
    io::{self, Read as _, Write as _},
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::{Connection, ServerConnection};
use tokio::{
    io::{AsyncRead as _, ReadBuf},
    net::TcpStream,
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

impl Stream {
    /// Shakes hands; the caller's deadline bounds this. Nothing that was sent in the clear is ever looked at as anything but a handshake.
    ///
    /// # Errors
    /// The socket's, or what is wrong with the peer's handshake or certificate, as `InvalidData`.
    pub async fn shake_hands(io: TcpStream, mut tls: Connection) -> io::Result<Self> {
        loop {
            let sent = send(&io, &mut tls)?;
            if !sent {
                io.writable().await?;
            } else if tls.is_handshaking() {
                io.readable().await?;
                if receive(&io, &mut tls)? && tls.is_handshaking() && !tls.wants_read() && !tls.wants_write() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if is_closed(&io) && tls.is_handshaking() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            } else {
                return Ok(Self { io: RefCell::new(io), tls: RefCell::new(tls) });
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
        net::TcpListener as StdListener,
        sync::Arc,
        thread,
    };

    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
        crypto::ring::default_provider,
        pki_types::{PrivateKeyDer, ServerName},
    };
    use tokio::runtime::Builder;

    use super::*;

    type Client = StreamOwned<ClientConnection, std::net::TcpStream>;

    /// What `client` does on a thread of its own, and what `buf` bytes at a time give of it, to the end.
    fn read_with(buf: usize, client: impl FnOnce(&mut Client) + Send + 'static) -> (Vec<u8>, io::Result<usize>) {
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
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let sender = thread::spawn(move || {
            let tls = ClientConnection::new(Arc::new(theirs), ServerName::try_from("localhost").unwrap()).unwrap();
            let mut stream = StreamOwned::new(tls, std::net::TcpStream::connect(addr).unwrap());
            client(&mut stream);
            // A socket that is closed before all was read of it would take back what it sent.
            stream.sock.shutdown(Shutdown::Write).unwrap();
            let _ = io::copy(&mut stream.sock, &mut io::sink());
        });
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let read = Builder::new_current_thread().enable_io().build().unwrap().block_on(async {
            let tls = ServerConnection::new(Arc::new(ours)).unwrap();
            let (mut all, mut buf) = (Vec::new(), vec![0; buf]);
            let stream = match Stream::shake_hands(TcpStream::from_std(stream).unwrap(), tls.into()).await {
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
