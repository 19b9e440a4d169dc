//! TLS over a TCP connection, in the shape of the halves in [`super`]: what the socket has is decrypted as it is read, and what does not fit into
//! the socket waits, encrypted and bounded, until it has room.

use std::{
    cell::RefCell,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    task::{Context, Poll, ready},
};

use rustls::{Connection, ServerConnection};
use tokio::net::TcpStream;

/// A connection whose handshake is done, shared by its two halves.
#[derive(Debug)]
pub struct Stream {
    io: TcpStream,
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

/// Takes what the socket has; `false` when it has nothing now. An error that the peer should hear of has been written to it.
fn receive(io: &TcpStream, tls: &mut Connection) -> io::Result<bool> {
    match tls.read_tls(&mut Io(io)) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        Err(e) => return Err(e),
    }
    let processed = tls.process_new_packets();
    let sent = send(io, tls);
    processed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    sent.map(|_| true)
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
                return Ok(Self { io, tls: RefCell::new(tls) });
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

    pub(super) fn socket(&self) -> &TcpStream {
        &self.io
    }

    /// Decrypted bytes; 0 at the peer's orderly end.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let tls = &mut *self.tls.borrow_mut();
        loop {
            match tls.reader().read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
            ready!(self.io.poll_read_ready(cx))?;
            // Where the socket had nothing after all, it is asked to say when it has.
            receive(&self.io, tls)?;
        }
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let tls = &mut *self.tls.borrow_mut();
        // What waits is bounded by the library: it takes nothing, or less, while too much does.
        send(&self.io, tls)?;
        let taken = tls.writer().write(bytes)?;
        send(&self.io, tls)?;
        if taken == 0 && !bytes.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Writes what waits; `false` when the socket takes no more now.
    pub(super) fn try_flush(&self) -> io::Result<bool> {
        send(&self.io, &mut self.tls.borrow_mut())
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_write_ready(cx)
    }

    /// Says that nothing more comes, as far as the socket takes it.
    pub(super) fn finish(&self) {
        let tls = &mut *self.tls.borrow_mut();
        tls.send_close_notify();
        let _ = send(&self.io, tls);
        let _ = socket2::SockRef::from(&self.io).shutdown(Shutdown::Write);
    }
}

fn is_closed(io: &TcpStream) -> bool {
    // A peek at a closed socket is ready and gives nothing.
    let mut byte = [std::mem::MaybeUninit::uninit(); 1];
    matches!(socket2::SockRef::from(io).peek(&mut byte), Ok(0))
}
