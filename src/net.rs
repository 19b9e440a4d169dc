//! Sockets of either kind, TCP or unix, split into a half that is read by its owner and a half that anyone on the worker may write to.

use std::{
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

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
}

/// The writing half; dropping it shuts the direction down.
#[derive(Debug)]
pub enum WriteHalf {
    /// Of a TCP connection.
    Tcp(tcp::OwnedWriteHalf),
    /// Of a unix socket.
    Unix(unix::OwnedWriteHalf),
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
        };
        read.map_ok(|()| buf.filled().len())
    }
}

impl ReadHalf {
    /// Whether the peer has said that it will send no more, whatever is still unread.
    pub fn peer_closed(&self) -> bool {
        use futures_util::FutureExt as _;
        let ready = match self {
            Self::Tcp(s) => s.ready(Interest::READABLE).now_or_never(),
            Self::Unix(s) => s.ready(Interest::READABLE).now_or_never(),
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
        }
    }

    /// Waits until the socket may take more. At most one task may wait.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => s.as_ref().poll_write_ready(cx),
            Self::Unix(s) => s.as_ref().poll_write_ready(cx),
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

/// Idle seconds before the kernel probes an upstream connection, so that one whose peer vanished does not wait for ever.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Connects to `host:port`.
///
/// # Errors
/// Resolution's or the socket's.
pub async fn connect_tcp(host: &str, port: u16) -> io::Result<(ReadHalf, WriteHalf)> {
    let stream = TcpStream::connect((host, port)).await?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(5)).with_retries(3);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    split_tcp(stream)
}

/// Connects to a unix socket.
///
/// # Errors
/// The socket's.
pub async fn connect_unix(path: &Path) -> io::Result<(ReadHalf, WriteHalf)> {
    Ok(split_unix(UnixStream::connect(path).await?))
}
