//! Sockets of every kind, TCP, unix or TLS, split into a half that is read by its owner and a half that anyone on the worker may write to.

pub mod announced;
pub mod tls;

use std::{
    future::poll_fn,
    io,
    path::Path,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, Interest, ReadBuf},
    net::{TcpStream, UnixStream, tcp, unix},
};

/// The reading half.
#[derive(Debug)]
pub enum ReadHalf {
    /// Of a TCP connection.
    Tcp(tcp::OwnedReadHalf),
    /// Of a unix socket.
    Unix(unix::OwnedReadHalf),
    /// Of a TLS connection.
    Tls(Rc<tls::Stream>),
}

/// The writing half; dropping it shuts the direction down.
#[derive(Debug)]
pub enum WriteHalf {
    /// Of a TCP connection.
    Tcp(tcp::OwnedWriteHalf),
    /// Of a unix socket.
    Unix(unix::OwnedWriteHalf),
    /// Of a TLS connection.
    Tls(TlsWriteHalf),
}

/// The writing half of a TLS connection: dropping it says the end.
#[derive(Debug)]
pub struct TlsWriteHalf(Rc<tls::Stream>);

impl Drop for TlsWriteHalf {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl ReadHalf {
    /// Reads what is there. One call is one system call, and a read that does not fill `buf` is known to have drained the socket, so no
    /// second read finds that out.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        let read = match self {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, &mut buf),
            Self::Unix(s) => Pin::new(s).poll_read(cx, &mut buf),
            Self::Tls(s) => return s.poll_read(cx, buf.initialize_unfilled()),
        };
        read.map_ok(|()| buf.filled().len())
    }
}

impl ReadHalf {
    /// Whether the socket has anything to read, or the peer's end. The socket itself is asked: the runtime might not have heard of it yet.
    pub fn has_more(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit(); 1];
        let looked = match self {
            Self::Tcp(s) => socket2::SockRef::from(s.as_ref()).peek(&mut byte),
            Self::Unix(s) => socket2::SockRef::from(s.as_ref()).peek(&mut byte),
            Self::Tls(s) => socket2::SockRef::from(&*s.socket()).peek(&mut byte),
        };
        !matches!(looked, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the peer has said that it will send no more, whatever is still unread.
    pub fn peer_closed(&self) -> bool {
        use futures_util::FutureExt as _;
        let ready = match self {
            Self::Tcp(s) => s.ready(Interest::READABLE).now_or_never(),
            Self::Unix(s) => s.ready(Interest::READABLE).now_or_never(),
            Self::Tls(s) => s.socket().ready(Interest::READABLE).now_or_never(),
        };
        matches!(ready, Some(Ok(ready)) if ready.is_read_closed())
    }
}

impl WriteHalf {
    /// Writes what the socket takes at once.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` when it takes nothing.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.try_write(bytes),
            Self::Unix(s) => s.try_write(bytes),
            Self::Tls(TlsWriteHalf(s)) => s.try_write(bytes),
        }
    }

    /// Writes what was taken and has not reached the socket: `false` when some of it still waits, for [`WriteHalf::poll_ready`] and another
    /// call. Nothing ever waits but in TLS.
    ///
    /// # Errors
    /// The socket's.
    pub fn try_flush(&self) -> io::Result<bool> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Ok(true),
            Self::Tls(TlsWriteHalf(s)) => s.try_flush(),
        }
    }

    /// Writes all of `bytes`, `left` being told before each attempt how many are not taken yet.
    ///
    /// # Errors
    /// The socket's.
    pub async fn write_all(&self, bytes: &[u8], left: impl Fn(usize)) -> io::Result<()> {
        let mut sent = 0;
        while sent < bytes.len() {
            left(bytes.len() - sent);
            match self.try_write(&bytes[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => poll_fn(|cx| self.poll_ready(cx)).await?,
                Err(e) => return Err(e),
            }
        }
        while !self.try_flush()? {
            poll_fn(|cx| self.poll_ready(cx)).await?;
        }
        Ok(())
    }

    /// Waits until the socket may take more. At most one task may wait.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => s.as_ref().poll_write_ready(cx),
            Self::Unix(s) => s.as_ref().poll_write_ready(cx),
            Self::Tls(TlsWriteHalf(s)) => s.poll_write_ready(cx),
        }
    }
}

/// Both halves of a TCP connection, small packets sent at once.
///
/// # Errors
/// When the socket is gone already.
pub fn split_tcp(stream: TcpStream) -> io::Result<(ReadHalf, WriteHalf)> {
    stream.set_nodelay(true)?;
    let (r, w) = stream.into_split();
    Ok((ReadHalf::Tcp(r), WriteHalf::Tcp(w)))
}

/// Both halves of a unix socket.
pub fn split_unix(stream: UnixStream) -> (ReadHalf, WriteHalf) {
    let (r, w) = stream.into_split();
    (ReadHalf::Unix(r), WriteHalf::Unix(w))
}

/// Both halves of a TLS connection.
pub fn split_tls(stream: tls::Stream) -> (ReadHalf, WriteHalf) {
    let stream = Rc::new(stream);
    (ReadHalf::Tls(Rc::clone(&stream)), WriteHalf::Tls(TlsWriteHalf(stream)))
}

/// Idle seconds before the kernel probes an upstream connection, so that one whose peer vanished does not wait for ever.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Connects to `host:port`.
///
/// # Errors
/// Resolution's or the socket's.
pub async fn connect_tcp(host: &str, port: u16) -> io::Result<(ReadHalf, WriteHalf)> {
    split_tcp(connect(host, port).await?)
}

/// Connects to `host:port` and shakes hands as `config` says, expecting the certificate of `name`.
///
/// # Errors
/// Resolution's, the socket's, or what is wrong with the peer's certificate.
pub async fn connect_tls(
    host: &str,
    port: u16,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<(ReadHalf, WriteHalf)> {
    let tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let stream = connect(host, port).await?;
    stream.set_nodelay(true)?;
    Ok(split_tls(tls::Stream::shake_hands(stream, tls.into(), None).await?))
}

/// A connection to `host:port`, watched for a peer that vanishes.
///
/// # Errors
/// Resolution's or the socket's.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(5)).with_retries(3);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

/// Connects to a unix socket.
///
/// # Errors
/// The socket's.
pub async fn connect_unix(path: &Path) -> io::Result<(ReadHalf, WriteHalf)> {
    Ok(split_unix(UnixStream::connect(path).await?))
}
