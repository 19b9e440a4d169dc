//! One shard: how a reply is read without a lock, and what is done under it.

use std::hint::spin_loop;

use parking_lot::{Mutex, MutexGuard};

use super::{
    TenantStats,
    entry::low,
    index::{Found, Index, Probe},
    layout::{CELL_COST, Layout},
    pool::NIL,
    seq::Seq,
    write::{State, Writer},
};

/// How often a reader tries without the lock. A writer's section takes well under a microsecond, but for the largest replies.
const TRIES: usize = 8;

/// The answer to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    Hit,
    Miss,
    /// Something is kept, but its time or its epoch is over.
    Over,
}

/// See the module.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard {
    seq: Seq,
    index: Index,
    state: Mutex<State>,
}

impl Index {
    /// Reads; what it says is true if `holds` says so to the end.
    fn read(
        &self,
        probe: &Probe<'_>,
        epoch: u64,
        now: u64,
        out: &mut Vec<u8>,
        holds: impl Fn() -> bool,
    ) -> Option<Read> {
        let Some(Found { at, mut reply }) = self.find(probe) else { return holds().then_some(Read::Miss) };
        let head = self.head(at);
        let (expires, kept_in, len) = (head.expires(), head.epoch(), head.reply_len());
        // Nothing is reserved by a length that may be nonsense.
        if !holds() {
            return None;
        }
        if kept_in != epoch || now >= expires {
            return Some(Read::Over);
        }
        let before = out.len();
        out.reserve(len);
        self.pool.copy(&mut reply, len, out);
        if !holds() {
            out.truncate(before);
            return None;
        }
        self.pool.warm(at);
        Some(Read::Hit)
    }
}

impl Shard {
    pub(super) fn new(layout: &Layout) -> Self {
        Self { seq: Seq::default(), index: Index::new(layout), state: Mutex::new(State::new(layout)) }
    }

    /// Appends the reply to `out` on a hit.
    pub(super) fn read(&self, probe: &Probe<'_>, epoch: u64, now: u64, out: &mut Vec<u8>) -> Read {
        for _ in 0..TRIES {
            if let Some(number) = self.seq.begin()
                && let Some(read) = self.index.read(probe, epoch, now, out, || self.seq.holds(number))
            {
                return read;
            }
            spin_loop();
        }
        let _writers_wait = self.state.lock();
        self.index.read(probe, epoch, now, out, || true).unwrap_or(Read::Miss)
    }

    /// Takes the lock, for anything but reading.
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked { seq: &self.seq, index: &self.index, state: self.state.lock() }
    }
}

/// A locked shard. Readers go on until [`Self::writer`] is called.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    seq: &'a Seq,
    pub(super) index: &'a Index,
    pub(super) state: MutexGuard<'a, State>,
}

impl Locked<'_> {
    /// Opens the section in which readers see nothing.
    pub(super) fn writer(&mut self) -> Writer<'_> {
        Writer { index: self.index, state: &mut self.state, _section: self.seq.write() }
    }

    /// Drops every variant of the key.
    pub(super) fn drop_key(&mut self, upstream: u16, key: &[u8], hash: u64) {
        let first = self.index.first(upstream, key, low(hash));
        if first != NIL {
            self.writer().remove_key(first);
        }
    }

    /// Whether another reply than this one is kept, of the same epoch.
    pub(super) fn differs(&self, probe: &Probe<'_>, reply: &[u8], epoch: u64) -> bool {
        let Some(Found { at, reply: mut kept }) = self.index.find(probe) else { return false };
        let head = self.index.head(at);
        head.epoch() == epoch && (head.reply_len() != reply.len() || !self.index.pool.matches(&mut kept, reply))
    }

    /// Drops the entry if its time or epoch is over.
    pub(super) fn drop_over(&mut self, probe: &Probe<'_>, epoch: u64, now: u64) {
        let Some(Found { at, .. }) = self.index.find(probe) else { return };
        let head = self.index.head(at);
        if head.epoch() != epoch || now >= head.expires() {
            self.writer().remove(at);
        }
    }

    /// What is held of a tenant here.
    pub(super) fn stats(&self, tenant: u32) -> TenantStats {
        self.state.queues.tenant(tenant).map_or_else(TenantStats::default, |t| TenantStats {
            entries: t.entries() as u64,
            bytes: (t.cells() * CELL_COST) as u64,
            evictions: t.evictions,
        })
    }
}
