//! A raw client: bytes out, exactly one reply's bytes in. The reply reader never recurses and never looks twice at a byte.
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;

use super::HANG;

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
    /// Received and not yet handed out.
    buf: Vec<u8>,
    /// How far the reply at the start of `buf` has been measured.
    scan: Scan,
}

impl Client {
    /// Connects; every read is bounded by [`HANG`].
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap_or_else(|e| panic!("connect {addr}: {e}"));
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        Self { stream, buf: Vec::new(), scan: Scan::default() }
    }

    /// The socket itself.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends as much as the peer takes; a peer that has closed is no failure.
    pub(crate) fn send_lossy(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends one command and returns its reply, as raw bytes.
    pub(crate) fn call(&mut self, args: &[&[u8]]) -> Vec<u8> {
        self.ask(&command(args))
    }

    /// Sends one command; its reply, or nothing if the connection ends instead.
    pub(crate) fn try_reply_to(&mut self, args: &[&str]) -> Option<Vec<u8>> {
        self.send(&command(args));
        self.try_reply().ok()
    }

    /// Sends bytes that make one reply.
    pub(crate) fn ask(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.send(bytes);
        self.reply()
    }

    /// Sends bytes that make `replies` replies in one write, reading meanwhile so that neither side can block the other.
    pub(crate) fn pipeline(&mut self, bytes: &[u8], replies: usize) -> Vec<Vec<u8>> {
        let mut writer = self.stream.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || writer.write_all(bytes).unwrap());
            (0..replies).map(|_| self.reply()).collect()
        })
    }

    /// The raw bytes of the next reply. Panics when the connection closes, fails or stays silent.
    pub(crate) fn reply(&mut self) -> Vec<u8> {
        self.try_reply().unwrap_or_else(|end| panic!("{end} while waiting for a reply; got {:?}", show(&self.buf)))
    }

    /// The next reply, or how the connection ended instead.
    pub(crate) fn try_reply(&mut self) -> Result<Vec<u8>, &'static str> {
        loop {
            if let Some(end) = self.scan.advance(&self.buf) {
                self.scan = Scan::default();
                let rest = self.buf.split_off(end);
                return Ok(std::mem::replace(&mut self.buf, rest));
            }
            self.fill()?;
        }
    }

    /// Reads until the peer closes, and returns all that came before.
    pub(crate) fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill().is_ok() {}
        std::mem::take(&mut self.buf)
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// As [`Self::finish`], of a connection that the peer may have ended.
    pub(crate) fn finish_lossy(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn fill(&mut self) -> Result<(), &'static str> {
        let mut chunk = [0; 1 << 16];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err("closed"),
            Ok(n) => {
                self.buf.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("silence; got {:?}", show(&self.buf))
            }
            Err(_) => Err("reset"),
        }
    }
}

/// One command as an array of bulk strings.
pub(crate) fn command<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// A bulk string.
pub(crate) fn bulk(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// Bytes for people, cut where they get long.
pub(crate) fn show(bytes: &[u8]) -> String {
    if bytes.len() > 2000 {
        return format!("{}… ({} bytes)", bytes[..2000].escape_ascii(), bytes.len());
    }
    bytes.escape_ascii().to_string()
}

/// Measures one reply of RESP2 or RESP3, resuming where it stopped.
#[derive(Clone, Copy, Debug)]
struct Scan {
    pos: usize,
    /// Values still to come until the reply is whole.
    due: u64,
}

impl Default for Scan {
    fn default() -> Self {
        Self { pos: 0, due: 1 }
    }
}

impl Scan {
    /// The reply's length once all of it is in `buf`.
    fn advance(&mut self, buf: &[u8]) -> Option<usize> {
        while self.due > 0 {
            let rest = &buf[self.pos..];
            let line = rest.iter().position(|&b| b == b'\n')?;
            let head = &rest[..line];
            let number = || -> i64 {
                let text = std::str::from_utf8(&head[1..]).unwrap_or("").trim_end_matches('\r');
                text.parse().unwrap_or_else(|_| panic!("no length in {:?}", show(head)))
            };
            let mut size = line + 1;
            match head.first() {
                Some(b'$' | b'=' | b'!') => size += usize::try_from(number()).map_or(0, |n| n + 2),
                Some(b'*' | b'~' | b'>') => self.due += u64::try_from(number()).unwrap_or(0),
                Some(b'%') => self.due += 2 * u64::try_from(number()).unwrap_or(0),
                // An attribute stands before its value and is none itself.
                Some(b'|') => self.due += 2 * u64::try_from(number()).unwrap_or(0) + 1,
                Some(b'+' | b'-' | b':' | b',' | b'#' | b'_' | b'(') => {}
                _ => panic!("not a reply: {:?}", show(rest)),
            }
            if rest.len() < size {
                return None;
            }
            self.pos += size;
            self.due -= 1;
        }
        Some(self.pos)
    }
}

/// The length of the reply at the start of `buf`, once all of it is there.
pub(crate) fn measure(buf: &[u8]) -> Option<usize> {
    Scan::default().advance(buf)
}
