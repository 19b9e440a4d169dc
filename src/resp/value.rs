//! A reply that keyfence makes itself, independent of the protocol version it will be written in.

use redis_protocol::{
    resp2::{self, types::Resp2Frame as _},
    resp3::{self, types::Resp3Frame as _},
};

/// The protocol version of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Proto {
    /// What every connection starts with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// One reply or part of a reply. Written for RESP2 the RESP3-only kinds take the older form Redis gives them: a map and a set become
/// arrays, a verbatim text a bulk string.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `+text`: no CR or LF inside.
    Simple(String),
    /// `-text`: the code word first; no CR or LF inside.
    Error(Vec<u8>),
    /// `:n`
    Int(i64),
    /// `$len`
    Bulk(Vec<u8>),
    /// `=txt:` in RESP3, a bulk in RESP2.
    Verbatim(String),
    /// `_` in RESP3, `$-1` in RESP2.
    Null,
    /// `_` in RESP3, `*-1` in RESP2.
    NullArray,
    /// `*n`
    Array(Vec<Self>),
    /// `~n` in RESP3, `*n` in RESP2.
    Set(Vec<Self>),
    /// `%n` in RESP3, `*2n` in RESP2; order is kept.
    Map(Vec<(Self, Self)>),
}

impl Value {
    /// A bulk string of `s`.
    pub fn bulk(s: impl AsRef<[u8]>) -> Self {
        Self::Bulk(s.as_ref().to_vec())
    }

    /// A simple string.
    pub fn simple(s: impl Into<String>) -> Self {
        Self::Simple(s.into())
    }

    /// `+OK`
    pub fn ok() -> Self {
        Self::Simple("OK".into())
    }

    /// An error; `text` begins with its code word.
    pub fn error(text: impl Into<Vec<u8>>) -> Self {
        Self::Error(text.into())
    }

    /// Appends the reply as `proto` writes it.
    pub fn encode(&self, proto: Proto, out: &mut Vec<u8>) {
        if let Self::Error(text) = self {
            return super::put_error(out, text);
        }
        // Simple and bulk replies are most of what we make; the rest is built as frames.
        if let Self::Simple(text) = self {
            out.push(b'+');
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\r\n");
            return;
        }
        let start = out.len();
        let encoded = match proto {
            Proto::Resp2 => {
                let frame = self.resp2();
                out.resize(start + frame.encode_len(false), 0);
                resp2::encode::encode(&mut out[start..], &frame, false)
            }
            Proto::Resp3 => {
                let frame = self.resp3();
                out.resize(start + frame.encode_len(false), 0);
                resp3::encode::complete::encode(&mut out[start..], &frame, false)
            }
        };
        if let Err(error) = encoded {
            tracing::error!(%error, "a reply of our own could not be encoded");
            out.truncate(start);
            super::put_error(out, b"ERR internal error");
        }
    }

    /// The reply as bytes.
    pub fn to_bytes(&self, proto: Proto) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(proto, &mut out);
        out
    }

    fn resp2(&self) -> resp2::types::OwnedFrame {
        use resp2::types::OwnedFrame as F;
        match self {
            Self::Simple(s) => F::SimpleString(s.as_bytes().to_vec()),
            Self::Error(s) => F::Error(one_line(s)),
            Self::Int(n) => F::Integer(*n),
            Self::Bulk(b) => F::BulkString(b.clone()),
            Self::Verbatim(s) => F::BulkString(s.as_bytes().to_vec()),
            // redis-protocol has one null, the bulk one; RESP2 clients read either.
            Self::Null | Self::NullArray => F::Null,
            Self::Array(items) | Self::Set(items) => F::Array(items.iter().map(Self::resp2).collect()),
            Self::Map(pairs) => F::Array(pairs.iter().flat_map(|(k, v)| [k.resp2(), v.resp2()]).collect()),
        }
    }

    fn resp3(&self) -> resp3::types::OwnedFrame {
        use resp3::types::{OwnedFrame as F, VerbatimStringFormat};
        match self {
            Self::Simple(s) => F::SimpleString { data: s.as_bytes().to_vec(), attributes: None },
            Self::Error(s) => F::SimpleError { data: one_line(s), attributes: None },
            Self::Int(n) => F::Number { data: *n, attributes: None },
            Self::Bulk(b) => F::BlobString { data: b.clone(), attributes: None },
            Self::Verbatim(s) => {
                F::VerbatimString { data: s.as_bytes().to_vec(), format: VerbatimStringFormat::Text, attributes: None }
            }
            Self::Null | Self::NullArray => F::Null,
            Self::Array(items) => F::Array { data: items.iter().map(Self::resp3).collect(), attributes: None },
            Self::Set(items) => F::Set { data: items.iter().map(Self::resp3).collect(), attributes: None },
            Self::Map(pairs) => {
                F::Map { data: pairs.iter().map(|(k, v)| (k.resp3(), v.resp3())).collect(), attributes: None }
            }
        }
    }
}

/// The encoder holds errors as text; only an error inside an array comes here.
fn one_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace(['\r', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(value: &Value) -> (String, String) {
        let text = |p| String::from_utf8(value.to_bytes(p)).expect("ascii");
        (text(Proto::Resp2), text(Proto::Resp3))
    }

    #[test]
    fn each_version_has_its_own_form() {
        let same = |v: &Value, s: &str| assert_eq!(both(v), (s.into(), s.into()));
        same(&Value::ok(), "+OK\r\n");
        same(&Value::error("ERR a\r\nb"), "-ERR a  b\r\n");
        same(&Value::Array(vec![Value::Int(-3), Value::bulk("x")]), "*2\r\n:-3\r\n$1\r\nx\r\n");
        assert_eq!(both(&Value::Null), ("$-1\r\n".into(), "_\r\n".into()));
        assert_eq!(both(&Value::Verbatim("abc".into())), ("$3\r\nabc\r\n".into(), "=7\r\ntxt:abc\r\n".into()));
        let map = Value::Map(vec![
            (Value::bulk("b"), Value::Int(1)),
            (Value::bulk("a"), Value::Set(vec![Value::simple("f")])),
        ]);
        assert_eq!(
            both(&map),
            (
                "*4\r\n$1\r\nb\r\n:1\r\n$1\r\na\r\n*1\r\n+f\r\n".into(),
                "%2\r\n$1\r\nb\r\n:1\r\n$1\r\na\r\n~1\r\n+f\r\n".into()
            )
        );
    }
}
