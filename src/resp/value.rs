//! A reply that keyfence makes itself, independent of the protocol version it will be written in.

/// One reply or part of a reply. Written for RESP2 the RESP3-only kinds take the older form Redis gives them: a map and a set become
/// arrays, a double and a verbatim text become bulk strings, a boolean an integer, a push an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `+text`: no CR or LF inside.
    Simple(String),
    /// `-text`: the code word first; no CR or LF inside.
    Error(String),
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
    Array(Vec<Value>),
    /// `~n` in RESP3, `*n` in RESP2.
    Set(Vec<Value>),
    /// `%n` in RESP3, `*2n` in RESP2; order is kept.
    Map(Vec<(Value, Value)>),
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
}
