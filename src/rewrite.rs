//! REWRITE: pure functions of (row, prefix, bytes), both directions. [`request`] puts the prefix before every name of a request on its way
//! upstream; [`reply`] takes it off the names of a reply. No sockets, no settings, nothing that waits.

pub mod reply;

use crate::{
    command::{
        Args, Keys, Row, Span,
        keys::{self, Slot},
    },
    resp,
};

/// Longest argument an upstream takes, prefix included (Redis: `proto-max-bulk-len`).
const MAX_BULK: usize = 512 * 1024 * 1024;

/// What the rewriting of one tenant's requests needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Namespace<'a> {
    /// Put before every key.
    pub prefix: &'a [u8],
    /// The upstream database that the tenant's database 0 is.
    pub db_base: u32,
    /// How many databases the tenant has, from `db_base` upward.
    pub databases: u32,
}

/// A request that cannot be sent upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Appends the request, its names prefixed, to `out`.
///
/// `frame` is the request as parsed, from its `*` to its last CRLF, and `spans` are the arguments in it. Frames are canonical (see
/// [`crate::resp::request`]), so the bytes between names are copied as they stand: that is their one encoding. `marks` is scratch space.
///
/// # Errors
/// [`TooLong`] when a key is past 512 MiB with the prefix; `out` is as before.
pub fn request(
    row: &Row,
    frame: &[u8],
    spans: &[Span],
    ns: &Namespace<'_>,
    marks: &mut Vec<(u32, Slot)>,
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    match row.keys {
        Keys::None => {
            out.extend_from_slice(frame);
            Ok(())
        }
        // Most commands by far: one key, at a place the row knows.
        Keys::One(at) if usize::from(at) < spans.len() => {
            let (start, len) = spans[usize::from(at)];
            let undo = out.len();
            let rest = copy_before(frame, 0, start, len, out);
            if put_prefixed_header(ns.prefix, len as usize, out).is_err() {
                out.truncate(undo);
                return Err(TooLong);
            }
            out.extend_from_slice(&frame[rest..]);
            Ok(())
        }
        _ => {
            let args = Args::new(frame, spans);
            keys::walk(row, &args, marks);
            let undo = out.len();
            let mut from = 0;
            for &(at, slot) in marks.iter() {
                let (start, len) = spans[at as usize];
                let rest = copy_before(frame, from, start, len, out);
                match slot {
                    Slot::Key | Slot::Template => {
                        if put_prefixed_header(ns.prefix, len as usize, out).is_err() {
                            out.truncate(undo);
                            return Err(TooLong);
                        }
                        from = rest;
                    }
                    Slot::Db => {
                        let number = database(args.at(at as usize), ns);
                        resp::put_bulk(out, number.as_bytes());
                        from = rest + len as usize + 2;
                    }
                }
            }
            out.extend_from_slice(&frame[from..]);
            Ok(())
        }
    }
}

/// Copies `frame` from `from` up to the `$len` line of the argument at `start`, and returns `start`.
fn copy_before(frame: &[u8], from: usize, start: u32, len: u32, out: &mut Vec<u8>) -> usize {
    let start = start as usize;
    let header = start - 2 - digits(len) - 1;
    out.extend_from_slice(&frame[from..header]);
    start
}

fn digits(n: u32) -> usize {
    n.checked_ilog10().map_or(1, |d| d as usize + 1)
}

fn put_prefixed_header(prefix: &[u8], len: usize, out: &mut Vec<u8>) -> Result<(), TooLong> {
    let total = len + prefix.len();
    if total > MAX_BULK {
        return Err(TooLong);
    }
    resp::put_header(out, b'$', total as u64);
    out.extend_from_slice(prefix);
    Ok(())
}

/// The database number to send upstream for the one a tenant named: shifted when it is the tenant's, out of any server's range when it
/// is a number but not the tenant's, and no number when it is none, so that the upstream answers in its own words.
fn database(named: &[u8], ns: &Namespace<'_>) -> String {
    match canonical(named) {
        Some(n) if n >= 0 && n < i64::from(ns.databases) => (i64::from(ns.db_base) + n).to_string(),
        Some(n) if i32::try_from(n).is_ok() => i32::MAX.to_string(),
        Some(_) | None => "x".into(),
    }
}

/// A number as Redis reads one: decimal, no plus, no leading zero.
pub fn canonical(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let n: i64 = text.parse().ok()?;
    (itoa::Buffer::new().format(n) == text).then_some(n)
}
