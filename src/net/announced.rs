//! The header in which a proxy before keyfence says whose connection it passes on: the PROXY protocol, versions 1 and 2
//! (<https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>). Read to its last byte and not beyond: what follows is the client's, in TLS or not.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::SocketAddr,
};

use ppp::{v1, v2};
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};

/// What a header of version 2 begins with.
const SIGNATURE: &[u8] = v2::PROTOCOL_PREFIX;
/// What one of version 1 does.
const LINE: &[u8] = b"PROXY ";
/// Bytes of the shortest header of all, `PROXY UNKNOWN\r\n`.
const SHORTEST: usize = 15;
/// Bytes of the longest line, its end included.
const LONGEST_LINE: usize = 107;
/// Bytes of a header of version 2 before what it says the length of.
const FIXED: usize = 16;
/// Bytes that one of version 2 may have; the addresses take 36 after the first 16, the rest are notes (TLVs) that nobody here reads.
const LONGEST: usize = 4096;

/// A connection that has just been accepted.
#[derive(Debug)]
pub enum Raw {
    /// Of TCP.
    Tcp(TcpStream),
    /// Of a unix socket.
    Unix(UnixStream),
}

/// What is said of a connection: the client's address and the one it connected to; none where it is the proxy's own, or of no kind known here.
pub type Announced = Option<(SocketAddr, SocketAddr)>;

/// How a header goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// With this many bytes, at least.
    Bytes(usize),
    /// With bytes up to the end of a line, this many at the most.
    Line(usize),
    /// It is whole.
    Whole,
    /// It is none.
    Wrong,
}

/// How the header goes on that begins with `head`, of which nothing lies behind its end.
pub fn next(head: &[u8]) -> Next {
    let begins = |with: &[u8]| head.iter().zip(with).all(|(a, b)| a == b);
    if begins(SIGNATURE) && head.len() >= SHORTEST {
        let Some(length) = head.get(FIXED - 2..FIXED) else { return Next::Bytes(FIXED - head.len()) };
        let whole = FIXED + length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        if whole > LONGEST {
            return Next::Wrong;
        }
        return if head.len() < whole { Next::Bytes(whole - head.len()) } else { Next::Whole };
    }
    if begins(LINE) && head.len() >= SHORTEST {
        return match head.iter().position(|byte| *byte == b'\n') {
            Some(end) if end + 1 == head.len() && head[end - 1] == b'\r' => Next::Whole,
            None if head.len() < LONGEST_LINE => Next::Line(LONGEST_LINE - head.len()),
            _ => Next::Wrong,
        };
    }
    if begins(SIGNATURE) || begins(LINE) { Next::Bytes(SHORTEST - head.len()) } else { Next::Wrong }
}

/// What a whole header says.
///
/// # Errors
/// What is wrong with it.
pub fn parse(head: &[u8]) -> Result<Announced, String> {
    if head.starts_with(SIGNATURE) {
        let header = v2::Header::try_from(head).map_err(|e| e.to_string())?;
        return match (header.command, header.addresses, header.protocol) {
            (v2::Command::Local, _, _) => Ok(None),
            (_, _, v2::Protocol::Datagram) => Err("it is about datagrams".into()),
            (_, v2::Addresses::IPv4(a), v2::Protocol::Stream) => {
                Ok(Some(((a.source_address, a.source_port).into(), (a.destination_address, a.destination_port).into())))
            }
            (_, v2::Addresses::IPv6(a), v2::Protocol::Stream) => {
                Ok(Some(((a.source_address, a.source_port).into(), (a.destination_address, a.destination_port).into())))
            }
            _ => Ok(None),
        };
    }
    let header = v1::Header::try_from(head).map_err(|e| e.to_string())?;
    if header.header.len() != head.len() {
        return Err("there is something behind its end".into());
    }
    Ok(match header.addresses {
        v1::Addresses::Tcp4(a) => {
            Some(((a.source_address, a.source_port).into(), (a.destination_address, a.destination_port).into()))
        }
        v1::Addresses::Tcp6(a) => {
            Some(((a.source_address, a.source_port).into(), (a.destination_address, a.destination_port).into()))
        }
        v1::Addresses::Unknown => None,
    })
}

impl Raw {
    /// Reads the header; the caller's deadline bounds this.
    ///
    /// # Errors
    /// The socket's; `UnexpectedEof` when the connection ended before the header began, `InvalidData` when it is none, or half of one.
    pub async fn announced(&self) -> io::Result<Announced> {
        let mut head = Vec::new();
        let outcome = self.header(&mut head).await;
        let ended = |e: &io::Error| matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset);
        if !head.is_empty() && outcome.as_ref().is_err_and(ended) {
            return Err(io::Error::new(ErrorKind::InvalidData, "it ended in its header"));
        }
        outcome
    }

    async fn header(&self, head: &mut Vec<u8>) -> io::Result<Announced> {
        loop {
            let wrong = |why: String| io::Error::new(ErrorKind::InvalidData, why);
            let more = match next(head) {
                Next::Whole => return parse(head).map_err(wrong),
                Next::Wrong => return Err(wrong("it is no header of the PROXY protocol".into())),
                Next::Bytes(n) => n,
                Next::Line(most) => self.of_the_line(most).await?,
            };
            let at = head.len();
            head.resize(at + more, 0);
            let read = self.read(&mut head[at..]).await;
            head.truncate(at + read.as_ref().map_or(0, |n| *n));
            if read? == 0 {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "it said nothing"));
            }
        }
    }

    /// Says a last word, as far as there is room for it. What it has sent is read: a connection that is closed with something unread is reset,
    /// and the word lost.
    pub fn turn_away(self, word: &[u8]) {
        // The runtime may not have heard yet that it can be written to.
        let socket = match &self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
        };
        let _ = (&*socket).write(word).and_then(|_| (&*socket).read(&mut [0; LONGEST]));
    }

    /// How many of the bytes to come are known to be of this line: 1 or more, `most` at the most.
    async fn of_the_line(&self, most: usize) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => {
                let mut seen = [0; LONGEST_LINE];
                let n = stream.peek(&mut seen[..most]).await?;
                Ok(seen[..n].iter().position(|byte| *byte == b'\n').map_or(n, |end| end + 1).max(1))
            }
            Self::Unix(_) => Ok(1),
        }
    }

    async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Tcp(stream) => {
                    stream.readable().await?;
                    stream.try_read(buf)
                }
                Self::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_read(buf)
                }
            };
            match read {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as [`Raw::announced`] does, `most` bytes at a time: what it says, and how many bytes it took.
    fn read(bytes: &[u8], most: usize) -> (Result<Announced, Next>, usize) {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let more = match next(&bytes[..at]) {
                Next::Whole => return (parse(&bytes[..at]).map_err(|_| Next::Whole), at),
                Next::Wrong => return (Err(Next::Wrong), at),
                Next::Bytes(n) => n.min(most).min(rest.len()),
                Next::Line(n) => {
                    let seen = &rest[..n.min(most).min(rest.len())];
                    seen.iter().position(|byte| *byte == b'\n').map_or(seen.len(), |end| end + 1)
                }
            };
            if more == 0 {
                return (Err(next(&bytes[..at])), at);
            }
            at += more;
        }
    }

    fn version_2(command: u8, family: u8, length: u16, body: &[u8]) -> Vec<u8> {
        [SIGNATURE, &[command, family], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn what_they_say() {
        let of = |a: &str, b: &str| Some((a.parse().expect("address"), b.parse().expect("address")));
        let v4 = [&[192, 0, 2, 7, 198, 51, 100, 1][..], &[0x12, 0x34, 0, 80]].concat();
        let v6 = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].repeat(2)[..], &[0, 1, 0, 2]].concat();
        let notes = [&v4[..], &[4, 0, 3, 0, 0, 0]].concat();
        for (bytes, said) in [
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 80\r\n".to_vec(), of("192.0.2.7:4660", "198.51.100.1:80")),
            (b"PROXY TCP6 2001:db8::1 2001:db8::1 1 2\r\n".to_vec(), of("[2001:db8::1]:1", "[2001:db8::1]:2")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), None),
            (version_2(0x21, 0x11, 12, &v4), of("192.0.2.7:4660", "198.51.100.1:80")),
            (version_2(0x21, 0x11, 18, &notes), of("192.0.2.7:4660", "198.51.100.1:80")),
            (version_2(0x21, 0x21, 36, &v6), of("[2001:db8::1]:1", "[2001:db8::1]:2")),
            (version_2(0x20, 0x11, 12, &v4), None),
            (version_2(0x20, 0x00, 0, &[]), None),
            (version_2(0x21, 0x00, 3, &[9, 9, 9]), None),
            (version_2(0x21, 0x31, 216, &[b'x'; 216]), None),
        ] {
            for most in [1, 2, 5, 16, 5000] {
                let with_more = [&bytes[..], b"*1\r\n$4\r\nPING\r\n"].concat();
                assert_eq!(read(&with_more, most), (Ok(said), bytes.len()), "{} by {most}", bytes.escape_ascii());
            }
            for cut in 0..bytes.len() {
                assert!(matches!(read(&bytes[..cut], 5000).0, Err(Next::Bytes(_) | Next::Line(_))));
            }
        }
    }

    #[test]
    fn what_is_none() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!(long.len(), LONGEST_LINE + 1);
        for bytes in [
            b"*1\r\n$4\r\nPING\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 80\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 65536\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.256 198.51.100.1 4660 80\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 80 \r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 80\r\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.7 198.51.100.1 4660 80\r\n".to_vec(),
            b"proxy UNKNOWN\r\n".to_vec(),
            b"PROXY \r\nPROXY UNKNOWN\r\n".to_vec(),
            long.into_bytes(),
            version_2(0x11, 0x11, 12, &[0; 12]),
            version_2(0x22, 0x11, 12, &[0; 12]),
            version_2(0x21, 0x12, 12, &[0; 12]),
            version_2(0x21, 0x41, 12, &[0; 12]),
            version_2(0x21, 0x11, 11, &[0; 11]),
            version_2(0x21, 0x11, 4081, &[0; 4081]),
            version_2(0x21, 0x11, 65535, &[0; 100]),
        ] {
            let (said, taken) = read(&bytes, 5000);
            assert!(matches!(said, Err(Next::Wrong | Next::Whole)), "{}: {said:?}", bytes.escape_ascii());
            assert!(taken <= LONGEST);
        }
    }

    #[test]
    fn reading_in_pieces_changes_nothing() {
        use proptest::prelude::*;
        let pieces = prop::sample::select(vec![
            &b"PROXY "[..],
            b"TCP4 ",
            b"TCP6 ",
            b"UNKNOWN",
            b"192.0.2.7 ",
            b"::1 ",
            b"80",
            b" ",
            b"\r\n",
            b"\n",
            SIGNATURE,
            b"\x21\x11\x00\x0c",
            b"\x20\x00\x00\x00",
            b"\x21\x21\x00\x24",
            b"\xff\xff",
            b"\0\0\0\0\0\0\0\0\0\0\0\0",
        ]);
        let mixed = prop::collection::vec(pieces, 0..12).prop_map(|pieces| pieces.concat());
        proptest!(|(bytes in mixed, most in 1_usize..40)| {
            prop_assert_eq!(read(&bytes, most).0, read(&bytes, usize::MAX).0);
        });
        proptest!(|(bytes in prop::collection::vec(any::<u8>(), 0..200), most in 1_usize..40)| {
            let bytes = [SIGNATURE, &bytes].concat();
            prop_assert_eq!(read(&bytes, most).0, read(&bytes, usize::MAX).0);
        });
    }
}
