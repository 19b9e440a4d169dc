//! PARSE, replies: finds where each reply of an upstream ends without decoding it; resumable in the middle of a value, never recursive.
//!
//! A counter of values still due finds the end of any nesting, so depth costs nothing and cannot overflow a stack. A bulk string's body is
//! passed over as it arrives: no reply is ever held whole, however large. Accepts RESP2 and RESP3
//! (<https://github.com/redis/redis-specifications/blob/master/protocol/RESP3.md>) except streamed aggregates, which no Redis command sends.

/// Most values one reply may declare (2^32 of at least 3 bytes each is past any real one).
const MAX_DUE: u64 = 1 << 32;
/// Longest body of one bulk string, in bytes; `proto-max-bulk-len` may be raised upstream.
const MAX_BODY: u64 = 1 << 40;

/// The upstream sent what is not RESP, or what this build does not know: nothing behind it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadReply;

/// Where in a reply the scanner stands. `Default` is "before a reply".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanner {
    /// Values still to come; 0 before the first byte and after the last.
    due: u64,
    /// Bytes of a bulk body still to come.
    body: u64,
    within: Within,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Header,
    /// In a line whose text is passed over.
    Line,
    /// In a body, or at the CRLF behind it.
    Body,
}

impl Scanner {
    /// Whether the next byte is the first of a reply.
    pub fn at_start(&self) -> bool {
        self.due == 0
    }

    /// A scanner inside a bulk string of which `body` bytes and the CRLF are still to come, and nothing else.
    pub fn in_body(body: u64) -> Self {
        Self { due: 1, body, within: Within::Body }
    }

    /// Passes over as much of `buf` as belongs to the reply: the bytes passed, and whether the reply ended there. When it did not, the
    /// bytes not passed (a header that has not arrived whole, at most 32 bytes) must come again at the start of the next `buf`.
    ///
    /// # Errors
    /// [`BadReply`]: close the connection.
    pub fn advance(&mut self, buf: &[u8]) -> Result<(usize, bool), BadReply> {
        let mut at = 0;
        if self.due == 0 {
            self.due = 1;
        }
        while self.due > 0 {
            match self.within {
                Within::Body => {
                    let rest = &buf[at..];
                    if (rest.len() as u64) < self.body {
                        self.body -= rest.len() as u64;
                        return Ok((buf.len(), false));
                    }
                    // The body is shorter than what is left of the buffer here.
                    let body = usize::try_from(self.body).map_err(|_| BadReply)?;
                    at += body;
                    self.body = 0;
                    match buf.get(at..at + 2) {
                        Some(b"\r\n") => at += 2,
                        Some(_) => return Err(BadReply),
                        None => return Ok((at, false)),
                    }
                    self.within = Within::Header;
                    self.due -= 1;
                }
                Within::Line => {
                    let Some(n) = memchr::memchr(b'\r', &buf[at..]) else { return Ok((buf.len(), false)) };
                    at += n;
                    match buf.get(at + 1) {
                        Some(b'\n') => {
                            at += 2;
                            self.within = Within::Header;
                            self.due -= 1;
                        }
                        Some(_) => at += 1,
                        None => return Ok((at, false)),
                    }
                }
                Within::Header => {
                    let Some(&kind) = buf.get(at) else { return Ok((at, false)) };
                    match kind {
                        b'+' | b'-' | b':' | b',' | b'#' | b'(' | b'_' => self.within = Within::Line,
                        b'$' | b'=' | b'!' | b'*' | b'~' | b'>' | b'%' | b'|' => match length(&buf[at..])? {
                            None => return Ok((at, false)),
                            Some((n, next)) => {
                                at += next;
                                self.header(kind, n)?;
                            }
                        },
                        _ => return Err(BadReply),
                    }
                }
            }
        }
        Ok((at, true))
    }

    fn header(&mut self, kind: u8, n: i64) -> Result<(), BadReply> {
        let Ok(count) = u64::try_from(n) else {
            // $-1 and *-1: the nulls of RESP2.
            if n == -1 && (kind == b'$' || kind == b'*') {
                self.due -= 1;
                return Ok(());
            }
            return Err(BadReply);
        };
        if count > MAX_DUE && !matches!(kind, b'$' | b'=' | b'!') {
            return Err(BadReply);
        }
        match kind {
            b'$' | b'=' | b'!' => {
                if count > MAX_BODY {
                    return Err(BadReply);
                }
                self.body = count;
                self.within = Within::Body;
                return Ok(());
            }
            b'*' | b'~' | b'>' => self.due = self.due - 1 + count,
            b'%' => self.due = self.due - 1 + count * 2,
            // An attribute stands before the value it speaks of, which is still due.
            _ => self.due += count * 2,
        }
        if self.due > MAX_DUE { Err(BadReply) } else { Ok(()) }
    }
}

/// The number in a header line at the start of `buf`, and the offset behind its CRLF; `None` when the line has not arrived whole.
///
/// # Errors
/// [`BadReply`] for anything but a canonical decimal.
pub fn length(buf: &[u8]) -> Result<Option<(i64, usize)>, BadReply> {
    let negative = buf.get(1) == Some(&b'-');
    let first = 1 + usize::from(negative);
    let mut n: i64 = 0;
    let mut i = first;
    loop {
        match buf.get(i) {
            Some(&c @ b'0'..=b'9') if i - first < 18 => {
                n = n * 10 + i64::from(c - b'0');
                i += 1;
            }
            Some(b'\r') if i > first => {
                return match buf.get(i + 1) {
                    Some(b'\n') => Ok(Some((if negative { -n } else { n }, i + 2))),
                    Some(_) => Err(BadReply),
                    None => Ok(None),
                };
            }
            Some(_) => return Err(BadReply),
            None => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use redis_protocol::resp3;

    fn scan(bytes: &[u8], cuts: &[usize]) -> Result<Option<usize>, BadReply> {
        let mut ends: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let (mut scanner, mut at) = (Scanner::default(), 0);
        for end in ends {
            if end < at {
                continue;
            }
            let (n, done) = scanner.advance(&bytes[at..end])?;
            at += n;
            assert!(end - at <= 32 || done, "only a header may be left over");
            if done {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    #[test]
    fn finds_the_end_of_every_kind() {
        for reply in [
            &b"+OK\r\n"[..],
            b"-ERR no\r\n",
            b":-5\r\n",
            b"$-1\r\n",
            b"$0\r\n\r\n",
            b"$3\r\na\r\n\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
            b"_\r\n",
            b"#t\r\n",
            b",1.5e9\r\n",
            b"(123\r\n",
            b"=7\r\ntxt:abc\r\n",
            b"!3\r\nERR\r\n",
            b"~1\r\n+a\r\n",
            b"%1\r\n+a\r\n*0\r\n",
            b"|1\r\n+a\r\n:1\r\n$2\r\nok\r\n",
            b">2\r\n+invalidate\r\n*0\r\n",
        ] {
            let mut more = reply.to_vec();
            more.extend_from_slice(b"+next\r\n");
            for cut in 0..=reply.len() {
                assert_eq!(scan(&more, &[cut]), Ok(Some(reply.len())), "{} cut at {cut}", reply.escape_ascii());
            }
        }
    }

    #[test]
    fn t10_hostile_upstream() {
        for bad in [
            &b"?\r\n"[..],
            b"*?\r\n",
            b"$?\r\n",
            b"$-2\r\n",
            b"%-1\r\n",
            b"$1\r\nabc",
            b"*9999999999999999999\r\n",
            b"*4294967299\r\n",
            b"GET\r\n",
        ] {
            assert_eq!(scan(bad, &[]), Err(BadReply), "{}", bad.escape_ascii());
        }
        let bomb = b"*1\r\n".repeat(1_000_000);
        assert_eq!(scan(&bomb, &[]), Ok(None));
    }

    proptest! {
        #[test]
        fn any_split_same_end(bytes in prop::collection::vec(prop::sample::select(b"*$%~>|+-:_#,=012\r\n\r\n\r\nab".to_vec()), 0..60),
                              cuts in prop::collection::vec(any::<usize>(), 0..10)) {
            let whole = scan(&bytes, &[]);
            let split = scan(&bytes, &cuts);
            // An error may be met before or after a cut, never instead of an end.
            prop_assert_eq!(split, whole);
        }

        /// Where redis-protocol finds a whole reply, so do we, and the same one.
        #[test]
        fn agrees_with_redis_protocol(bytes in prop::collection::vec(prop::sample::select(b"*$%~+-:_012\r\n\r\n\r\nab".to_vec()), 0..60)) {
            if let Ok(Some((_, used))) = resp3::decode::complete::decode(&bytes) && let Ok(end) = scan(&bytes, &[]) {
                prop_assert_eq!(end, Some(used));
            }
        }
    }
}
