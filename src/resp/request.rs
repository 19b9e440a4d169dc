//! PARSE, requests: bytes from a client become argument spans; resumable, flat, every number bounded before use.
//!
//! ```text
//!   *3\r\n $3\r\nSET\r\n $1\r\nk\r\n $1\r\nv\r\n        SET k v\r\n   (inline)
//!          `--span--'      `span'      `span'
//! ```
//!
//! The grammar is Redis's own (<https://redis.io/docs/latest/develop/reference/protocol-spec/>) with one difference: a bulk string must be
//! followed by exactly CRLF, as in Valkey 9. Redis skips two bytes unseen, and what two parsers read differently can smuggle a command.
//! Numbers are canonical decimals, so the bytes of a parsed frame are also its one possible encoding.

use crate::command::Span;

/// Longest inline request and longest length line, in bytes (Redis: `PROTO_INLINE_MAX_SIZE`).
pub const MAX_INLINE: usize = 64 * 1024;
/// Longest single argument, in bytes (Redis: `proto-max-bulk-len`).
pub const MAX_BULK: u64 = 512 * 1024 * 1024;
/// Most arguments of one request (Redis: `INT_MAX`); memory grows with what arrived, never with what was declared.
pub const MAX_ARGS: u64 = i32::MAX as u64;

/// What a client may declare; smaller before it has logged in.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most arguments, the command word included.
    pub args: u64,
    /// Longest argument in bytes.
    pub bulk: u64,
    /// Which words Redis uses when `args` or `bulk` is passed.
    pub authenticated: bool,
}

impl Limits {
    /// The limits of a connection that has a tenant.
    pub const FULL: Self = Self { args: MAX_ARGS, bulk: MAX_BULK, authenticated: true };
    /// The limits of a connection that has not logged in yet.
    pub const BEFORE_LOGIN: Self = Self { args: 16, bulk: 16 * 1024, authenticated: false };
}

/// How far a request that has not arrived whole has been read. `Default` is "at the start of a request".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Offset of the next byte to look at, from the start of the request.
    pub pos: usize,
    /// Declared number of arguments; 0: the first line has not been read.
    pub argc: u32,
    /// The argument whose length line has been read: its declared length, `pos` being at its first byte.
    pub bulk: Option<u64>,
}

/// The outcome of [`parse`].
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// One whole request of this many bytes; its arguments are in `spans`.
    Command(usize),
    /// This many bytes that ask for nothing (`*0`, an empty line).
    Nothing(usize),
    /// An inline request of this many bytes, re-encoded as a frame.
    Inline(usize, Vec<u8>),
    /// More bytes are needed; [`Progress`] says where to go on.
    Incomplete,
    /// The stream cannot be followed any further.
    Broken(Broken),
}

/// Why a request stream cannot be followed: answered, then the connection is closed.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// Answer `-ERR Protocol error: <text>`.
    Protocol(Vec<u8>),
    /// Another protocol on this port (HTTP, TLS): close without a word.
    Foreign,
}

fn broken(text: &str) -> Parsed {
    Parsed::Broken(Broken::Protocol(text.into()))
}

/// A canonical decimal line.
enum Line {
    /// Its value and the offset behind its CRLF.
    Number(i64, usize),
    Incomplete,
    Bad,
    TooLong,
}

fn line(buf: &[u8], from: usize) -> Line {
    let rest = &buf[from..];
    let mut value: i64 = 0;
    let negative = rest.first() == Some(&b'-');
    let digits = usize::from(negative);
    let mut i = digits;
    while let Some(&c) = rest.get(i) {
        match c {
            b'0'..=b'9' => {
                // 18 digits cannot overflow, and no length needs more; a leading zero is not canonical.
                if i - digits >= 18 || (i > digits && value == 0) {
                    return long_or_bad(rest);
                }
                value = value * 10 + i64::from(c - b'0');
                i += 1;
            }
            b'\r' => {
                return match rest.get(i + 1) {
                    None => Line::Incomplete,
                    Some(b'\n') if i > digits && !(negative && value == 0) => {
                        Line::Number(if negative { -value } else { value }, from + i + 2)
                    }
                    Some(_) => Line::Bad,
                };
            }
            _ => return long_or_bad(rest),
        }
    }
    Line::Incomplete
}

/// Redis reads the whole line before it looks at the digits, so a line without an end is "too big" rather than "invalid".
fn long_or_bad(rest: &[u8]) -> Line {
    if memchr::memchr(b'\r', rest).is_some() {
        Line::Bad
    } else if rest.len() > MAX_INLINE {
        Line::TooLong
    } else {
        Line::Incomplete
    }
}

/// Reads one request from the start of `buf`.
///
/// `spans` and `progress` must be untouched since the last call with the same request, or empty and default for a new one; `buf` may have
/// moved and grown. After anything but [`Parsed::Incomplete`] the caller starts anew behind the bytes consumed.
pub fn parse(buf: &[u8], spans: &mut Vec<Span>, progress: &mut Progress, limits: &Limits) -> Parsed {
    if progress.argc == 0 {
        match buf.first() {
            None => return Parsed::Incomplete,
            Some(b'*') => {}
            Some(_) => return inline(buf),
        }
        match line(buf, 1) {
            Line::Number(n, next) => {
                if n <= 0 {
                    return Parsed::Nothing(next);
                }
                let n = n.unsigned_abs();
                if n > limits.args {
                    return broken(if limits.authenticated || n > MAX_ARGS {
                        "invalid multibulk length"
                    } else {
                        "unauthenticated multibulk length"
                    });
                }
                progress.argc = u32::try_from(n).unwrap_or(u32::MAX);
                progress.pos = next;
            }
            Line::Incomplete => return Parsed::Incomplete,
            Line::Bad => return broken("invalid multibulk length"),
            Line::TooLong => return broken("too big mbulk count string"),
        }
    }
    while spans.len() < progress.argc as usize {
        let len = match progress.bulk {
            Some(len) => len,
            None => match bulk_header(buf, progress.pos, limits) {
                Header::Bulk(len, next) => {
                    progress.pos = next;
                    len
                }
                Header::Incomplete => return Parsed::Incomplete,
                Header::Broken(b) => return Parsed::Broken(b),
            },
        };
        let start = progress.pos;
        let end = start + usize::try_from(len).unwrap_or(usize::MAX / 2);
        match buf.get(end..end + 2) {
            Some(b"\r\n") => {}
            Some(_) => return broken(NO_CRLF),
            None => {
                progress.bulk = Some(len);
                return Parsed::Incomplete;
            }
        }
        // Buffers stay far below 4 GiB (a larger request is streamed), so the casts hold what was just indexed.
        let (Ok(start), Ok(len)) = (u32::try_from(start), u32::try_from(len)) else { return broken("too big request") };
        spans.push((start, len));
        progress.pos = end + 2;
        progress.bulk = None;
    }
    Parsed::Command(progress.pos)
}

/// What is said when a bulk string is not followed by CRLF.
pub const NO_CRLF: &str = "invalid CRLF in request";

/// One `$len` line.
#[derive(Debug, PartialEq, Eq)]
pub enum Header {
    /// Its length and the offset of the first byte of the string.
    Bulk(u64, usize),
    /// The line has not arrived whole.
    Incomplete,
    /// Not a bulk header.
    Broken(Broken),
}

/// Reads the `$len` line at `from`.
pub fn bulk_header(buf: &[u8], from: usize, limits: &Limits) -> Header {
    let fail = |text: &[u8]| Header::Broken(Broken::Protocol(text.to_vec()));
    match buf.get(from) {
        None => return Header::Incomplete,
        Some(b'$') => {}
        Some(&c) => {
            let shown = if c == b'\r' || c == b'\n' { b' ' } else { c };
            return fail(&[&b"expected '$', got '"[..], &[shown], b"'"].concat());
        }
    }
    match line(buf, from + 1) {
        Line::Number(n, next) => match u64::try_from(n) {
            Ok(n) if n <= limits.bulk => Header::Bulk(n, next),
            Ok(n) if n <= MAX_BULK => fail(b"unauthenticated bulk length"),
            _ => fail(b"invalid bulk length"),
        },
        Line::Incomplete => Header::Incomplete,
        Line::Bad => fail(b"invalid bulk length"),
        Line::TooLong => fail(b"too big bulk count string"),
    }
}

/// An inline request: one line, split like a shell would (Redis: `sdssplitargs`).
fn inline(buf: &[u8]) -> Parsed {
    // A TLS client hello on the plain port. A PROXY header or an HTTP request is told by its first word.
    if buf[0] == 0x16 {
        return Parsed::Broken(Broken::Foreign);
    }
    let Some(end) = memchr::memchr(b'\n', buf) else {
        return if buf.len() > MAX_INLINE { broken("too big inline request") } else { Parsed::Incomplete };
    };
    if end > MAX_INLINE {
        return broken("too big inline request");
    }
    let text = buf[..end].strip_suffix(b"\r").unwrap_or(&buf[..end]);
    // Redis takes a NUL for the end of all it has read and waits for ever; this is said instead.
    if memchr::memchr(0, text).is_some() {
        return broken("NUL in an inline request");
    }
    let Some(words) = split(text) else { return broken("unbalanced quotes in request") };
    let Some(first) = words.first() else { return Parsed::Nothing(end + 1) };
    if first.eq_ignore_ascii_case(b"post") || first.eq_ignore_ascii_case(b"host:") || first == b"PROXY" {
        return Parsed::Broken(Broken::Foreign);
    }
    let mut frame = Vec::with_capacity(text.len() + 16 * words.len());
    super::put_header(&mut frame, b'*', words.len() as u64);
    for word in &words {
        super::put_bulk(&mut frame, word);
    }
    Parsed::Inline(end + 1, frame)
}

/// Splits a line into words; `None` when its quotes do not balance. Inside `"…"` the escapes `\xHH \n \r \t \b \a \\ \"` are read, inside
/// `'…'` only `\'`; a closing quote must be followed by a space or the end.
pub fn split(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let space = |c: u8| c.is_ascii_whitespace() || c == 0x0b || c == 0;
    let hex = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut words = Vec::new();
    let mut i = 0;
    loop {
        while line.get(i).is_some_and(|&c| space(c)) {
            i += 1;
        }
        if i == line.len() {
            return Some(words);
        }
        let mut word = Vec::new();
        while let Some(&c) = line.get(i) {
            if space(c) {
                break;
            }
            i += 1;
            if c != b'"' && c != b'\'' {
                word.push(c);
                continue;
            }
            loop {
                let &q = line.get(i)?;
                i += 1;
                if q == c {
                    if line.get(i).is_some_and(|&c| !space(c)) {
                        return None;
                    }
                    break;
                }
                if q != b'\\' {
                    word.push(q);
                } else if c == b'\'' {
                    if line.get(i) == Some(&b'\'') {
                        i += 1;
                        word.push(b'\'');
                    } else {
                        word.push(b'\\');
                    }
                } else {
                    let &e = line.get(i)?;
                    i += 1;
                    if e == b'x'
                        && let (Some(high), Some(low)) =
                            (line.get(i).and_then(|&c| hex(c)), line.get(i + 1).and_then(|&c| hex(c)))
                    {
                        i += 2;
                        word.push(high * 16 + low);
                    } else {
                        word.push(match e {
                            b'n' => b'\n',
                            b'r' => b'\r',
                            b't' => b'\t',
                            b'b' => 8,
                            b'a' => 7,
                            e => e,
                        });
                    }
                }
            }
        }
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Args;
    use proptest::prelude::*;

    fn all(buf: &[u8], cuts: &[usize]) -> (Vec<Vec<Vec<u8>>>, Option<Broken>) {
        let (mut spans, mut progress) = (Vec::new(), Progress::default());
        let mut out = Vec::new();
        let mut start = 0;
        let mut ends: Vec<usize> = cuts.iter().map(|c| c % (buf.len() + 1)).collect();
        ends.push(buf.len());
        ends.sort_unstable();
        for end in ends {
            loop {
                let window = &buf[start..end];
                match parse(window, &mut spans, &mut progress, &Limits::FULL) {
                    Parsed::Command(n) => {
                        out.push(Args::new(window, &spans).iter().map(<[u8]>::to_vec).collect());
                        start += n;
                    }
                    Parsed::Nothing(n) => start += n,
                    Parsed::Inline(n, frame) => {
                        let (words, broken) = all(&frame, &[]);
                        assert_eq!((words.len(), broken), (1, None));
                        out.extend(words);
                        start += n;
                    }
                    Parsed::Incomplete => break,
                    Parsed::Broken(b) => return (out, Some(b)),
                }
                spans.clear();
                progress = Progress::default();
            }
        }
        (out, None)
    }

    fn words(words: &[&[u8]]) -> Vec<Vec<u8>> {
        words.iter().map(|w| w.to_vec()).collect()
    }

    #[test]
    fn reads_pipelines_and_empty_requests() {
        let (got, broken) = all(b"*0\r\n*-1\r\n\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\nPING\r\n", &[3, 9, 17]);
        assert_eq!(got, [words(&[b"GET", b""]), words(&[b"PING"])]);
        assert_eq!(broken, None);
    }

    #[test]
    fn t4_lengths_are_canonical_and_bounded() {
        for (bytes, text) in [
            (&b"*01\r\n"[..], "invalid multibulk length"),
            (b"*+1\r\n", "invalid multibulk length"),
            (b"* 1\r\n", "invalid multibulk length"),
            (b"*-0\r\n", "invalid multibulk length"),
            (b"*2147483648\r\n", "invalid multibulk length"),
            (b"*1\rX", "invalid multibulk length"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$536870913\r\n", "invalid bulk length"),
            (b"*1\r\n$99999999999999999999\r\n", "invalid bulk length"),
            (b"*1\r\n:1\r\n", "expected '$', got ':'"),
            (b"*1\r\n\r\n", "expected '$', got ' '"),
            (b"*1\r\n$4\r\nPINGX\n", NO_CRLF),
            (b"set k \"a\r\n", "unbalanced quotes in request"),
            (b"set k \"a\"b\r\n", "unbalanced quotes in request"),
        ] {
            assert_eq!(all(bytes, &[]).1, Some(Broken::Protocol(text.into())), "{}", bytes.escape_ascii());
        }
        assert_eq!(all(b"*2147483647\r\n$536870912\r\nx", &[]), (vec![], None));
    }

    #[test]
    fn t2_inline_words() {
        let (got, broken) = all(b"  set  k\t\"a\\x41\\n\\\"\"  'it\\'s'\r\nget k\n", &[]);
        assert_eq!(got, [words(&[b"set", b"k", b"aA\n\"", b"it's"]), words(&[b"get", b"k"])]);
        assert_eq!(broken, None);
    }

    #[test]
    fn t9_t12_foreign_protocols_are_told() {
        for bytes in
            [&b"POST / HTTP/1.1\r\n"[..], b"host: x\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", b"\x16\x03\x01"]
        {
            assert_eq!(all(bytes, &[]).1, Some(Broken::Foreign));
        }
    }

    proptest! {
        #[test]
        fn any_split_reads_the_same(commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..6), 0..6),
                                    cuts in prop::collection::vec(any::<usize>(), 0..20)) {
            let mut bytes = Vec::new();
            for c in &commands {
                super::super::put_header(&mut bytes, b'*', c.len() as u64);
                c.iter().for_each(|a| super::super::put_bulk(&mut bytes, a));
            }
            prop_assert_eq!(all(&bytes, &cuts), (commands, None));
        }

        #[test]
        fn any_bytes_any_split_same_outcome(bytes in prop::collection::vec(prop::sample::select(b"*$0123-+:\r\n 'x\"\\GET".to_vec()), 0..80),
                                            cuts in prop::collection::vec(any::<usize>(), 0..8)) {
            prop_assert_eq!(all(&bytes, &cuts), all(&bytes, &[]));
        }

        /// What we accept as a frame, redis-protocol reads as the same array of bulk strings.
        #[test]
        fn agrees_with_redis_protocol(bytes in prop::collection::vec(prop::sample::select(b"*$0123\r\n\r\n\r\nab".to_vec()), 0..60)) {
            use redis_protocol::resp2::{decode::decode, types::OwnedFrame};
            let (mut spans, mut progress) = (Vec::new(), Progress::default());
            if bytes.first() == Some(&b'*') && let Parsed::Command(n) = parse(&bytes, &mut spans, &mut progress, &Limits::FULL) {
                let (frame, used) = decode(&bytes).expect("valid").expect("whole");
                let ours: Vec<_> = Args::new(&bytes, &spans).iter().map(|a| OwnedFrame::BulkString(a.to_vec())).collect();
                prop_assert_eq!(frame, OwnedFrame::Array(ours));
                prop_assert_eq!(used, n);
            }
        }
    }
}
