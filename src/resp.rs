//! PARSE: the wire, both directions. Bytes in, values out: no commands, no tenants, no sockets.
//!
//! [`request`] reads what clients send, [`reply`] finds the ends of what upstreams answer, [`Value`] is a reply of keyfence's own. Our
//! decoders face the sockets; `redis-protocol` encodes, and is the oracle they are tested against (it recurses, so it must not face one).

pub mod reply;
pub mod request;
pub mod value;

pub use value::{Proto, Value};

/// Appends `*n\r\n`, `$n\r\n` and the like.
pub fn put_header(out: &mut Vec<u8>, kind: u8, n: u64) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends a bulk string.
pub fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    put_header(out, b'$', bytes.len() as u64);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends `-text\r\n`, CR and LF inside `text` made spaces as Redis does.
pub fn put_error(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'-');
    out.extend(text.iter().map(|&c| if c == b'\r' || c == b'\n' { b' ' } else { c }));
    out.extend_from_slice(b"\r\n");
}
