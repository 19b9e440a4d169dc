//! CLASSIFY: the command table, looked up by name, and the one walker that knows where names stand.
//!
//! The rows in [`table`] are generated from `command/commands.tsv` (see `command/generate.rs`); a command without a row is refused, never
//! forwarded. This module sees argument positions only: it knows nothing of the wire, of tenants or of I/O.

pub mod keys;
pub mod table;

/// Start and length of one argument inside the buffer it was parsed from.
pub type Span = (u32, u32);

/// The arguments of one command, the command word first: borrowed slices of one buffer.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    buf: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// `spans` must lie inside `buf`; indexing panics otherwise.
    pub fn new(buf: &'a [u8], spans: &'a [Span]) -> Self {
        Self { buf, spans }
    }

    /// How many arguments there are, the command word included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is not even a command word.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Argument `i`, 0 being the command word.
    pub fn at(&self, i: usize) -> &'a [u8] {
        let (start, len) = self.spans[i];
        &self.buf[start as usize..start as usize + len as usize]
    }

    /// The arguments in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        (0..self.len()).map(|i| self.at(i))
    }
}
