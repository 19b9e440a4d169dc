//! Invalidations: the pushes of an upstream connection on which a client tracks keys, passed to that client in its own names.

use std::{cell::RefCell, rc::Rc};

use super::Conn;
use crate::{
    downstream::Downstream,
    resp::{self, reply},
};

/// A push of more than this is told as "everything".
const LARGEST: usize = 1024 * 1024;

/// Who gets them.
pub struct Tracker {
    down: Rc<Downstream>,
    /// Another connection gets them, by another way: ends that one as well.
    elsewhere: Option<Box<dyn Fn()>>,
    prefix: Rc<[u8]>,
    /// What there is of the push at hand.
    held: RefCell<Vec<u8>>,
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").field("elsewhere", &self.elsewhere.is_some()).finish_non_exhaustive()
    }
}

impl Tracker {
    /// The client behind `down`, whose names begin with `prefix` upstream.
    pub fn new(down: &Rc<Downstream>, prefix: &Rc<[u8]>) -> Self {
        Self { down: Rc::clone(down), elsewhere: None, prefix: Rc::clone(prefix), held: RefCell::default() }
    }

    /// The client behind `down` tracks, another one is told, not by this connection: pushes are dropped, and when the connection is lost
    /// `end` ends the other client.
    pub fn elsewhere(down: &Rc<Downstream>, prefix: &Rc<[u8]>, end: impl Fn() + 'static) -> Self {
        Self { elsewhere: Some(Box::new(end)), ..Self::new(down, prefix) }
    }

    /// Takes more of a push, and passes it on once all of it is there.
    ///
    /// # Errors
    /// It held a name outside the prefix, or is no push that an upstream sends.
    pub(super) fn take(&self, bytes: &[u8], done: bool, written: &mut Vec<Rc<Downstream>>) -> Result<(), &'static str> {
        if self.elsewhere.is_some() {
            return Ok(());
        }
        let mut held = self.held.borrow_mut();
        if held.len() <= LARGEST {
            held.extend_from_slice(bytes);
        }
        if !done {
            return Ok(());
        }
        let push = std::mem::take(&mut *held);
        let keys = if push.len() > LARGEST { Some(Invalid::Everything) } else { invalid(&push, &self.prefix)? };
        if let Some(keys) = keys {
            // Between two replies, by its place in the stream.
            self.down.append(|out| keys.put_push(out));
            self.down.queue(written);
        }
        Ok(())
    }

    /// The connection is gone: keys may change without the client being told, so its connection ends (and that of whom it
    /// redirects to), as it would with the server's.
    pub(super) fn lost(&self) {
        self.down.alarm().kill_when_idle();
        if let Some(end) = &self.elsewhere {
            end();
        }
    }
}

impl Conn {
    /// From now on pushes go to `tracker`; `None`: they are dropped.
    pub fn track(&self, tracker: Option<Tracker>) {
        *self.tracker.borrow_mut() = tracker;
    }
}

/// What is not valid any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// These keys, in the tenant's own names.
    Keys(Vec<Vec<u8>>),
    /// The server was flushed.
    Everything,
}

impl Invalid {
    /// Appends it as a push of RESP3.
    pub fn put_push(&self, out: &mut Vec<u8>) {
        resp::put_header(out, b'>', 2);
        resp::put_bulk(out, b"invalidate");
        self.put_keys(out, b"_\r\n");
    }

    /// Appends it as a message of RESP2.
    pub fn put_message(&self, out: &mut Vec<u8>) {
        resp::put_header(out, b'*', 3);
        resp::put_bulk(out, b"message");
        resp::put_bulk(out, b"__redis__:invalidate");
        self.put_keys(out, b"$-1\r\n");
    }

    fn put_keys(&self, out: &mut Vec<u8>, null: &[u8]) {
        match self {
            Self::Keys(keys) => {
                resp::put_header(out, b'*', keys.len() as u64);
                keys.iter().for_each(|key| resp::put_bulk(out, key));
            }
            Self::Everything => out.extend_from_slice(null),
        }
    }
}

/// What an `invalidate` push says; `None` for a push of another kind.
///
/// # Errors
/// It names a key outside the prefix, or has another shape.
pub fn invalid(push: &[u8], prefix: &[u8]) -> Result<Option<Invalid>, &'static str> {
    const SHAPE: &str = "an invalidation of an unknown shape";
    let Some(rest) = push.strip_prefix(b">2\r\n$10\r\ninvalidate\r\n") else { return Ok(None) };
    let Some(list) = rest.strip_prefix(b"*") else {
        return if rest == b"_\r\n" { Ok(Some(Invalid::Everything)) } else { Err(SHAPE) };
    };
    let (count, body) = reply::length(rest).ok().flatten().ok_or(SHAPE)?;
    debug_assert!(body > rest.len() - list.len());
    let mut at = body;
    let mut keys = Vec::new();
    for _ in 0..count {
        let rest = rest.get(at..).filter(|rest| rest.first() == Some(&b'$')).ok_or(SHAPE)?;
        let (len, body) = reply::length(rest).ok().flatten().ok_or(SHAPE)?;
        let len = usize::try_from(len).map_err(|_| SHAPE)?;
        let key = rest.get(body..body + len).ok_or(SHAPE)?;
        keys.push(key.strip_prefix(prefix).ok_or("an invalidation of a key outside the prefix")?.to_vec());
        at += body + len + 2;
    }
    Ok(Some(Invalid::Keys(keys)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c5_a_foreign_key_is_never_passed() {
        let push = |keys: &str| format!(">2\r\n$10\r\ninvalidate\r\n{keys}");
        let read = |keys: &str| invalid(push(keys).as_bytes(), b"a:");
        assert_eq!(read("*1\r\n$3\r\na:k\r\n"), Ok(Some(Invalid::Keys(vec![b"k".to_vec()]))));
        assert_eq!(read("*2\r\n$2\r\na:\r\n$5\r\na:a:k\r\n"), Ok(Some(Invalid::Keys(vec![vec![], b"a:k".to_vec()]))));
        assert_eq!(read("_\r\n"), Ok(Some(Invalid::Everything)));
        assert_eq!(invalid(b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n", b"a:"), Ok(None));
        for foreign in [
            "*1\r\n$3\r\nb:k\r\n",
            "*1\r\n$1\r\na\r\n",
            "*2\r\n$3\r\na:k\r\n$3\r\nb:k\r\n",
            "*1\r\n:1\r\n",
            "*1\r\n",
            ":1\r\n",
        ] {
            assert!(read(foreign).is_err(), "{foreign:?}");
        }
    }
}
