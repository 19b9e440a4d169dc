//! The index of a shard: which entry holds a variant of a key, and which variants a key has.
//!
//! It is an array of chains. A key's first variant is in the chain of the key's hash, and is found by the key alone; the others hang on it
//! in a ring, and are each in the chain of their own hash. So a key with one variant costs one look, an invalidation finds all variants,
//! and a key with a thousand does not make a chain of a thousand.
//!
//! The array is reserved for as many entries as can be and opened one chain at a time, as entries come (linear hashing: Litwin, VLDB
//! 1980): no insertion pays for a rehash, and a few entries in much memory have a small index, which caches well.
//!
//! Methods that change something are for the holder of the shard's mutex, within a section.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bytemuck::zeroed_slice_box;

use super::{
    Id,
    entry::{Head, both, high, low},
    layout::Layout,
    pool::{Cursor, NIL, Pool},
};

/// The longest chain a reader follows; writers keep chains shorter than this.
const CHAIN: usize = 64;

/// What is looked for: the names, and their hashes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe<'a> {
    pub(super) id: Id<'a>,
    pub(super) variant: &'a [u8],
    pub(super) hashes: u64,
}

impl<'a> Probe<'a> {
    /// `key_hash`: of the upstream and the key; `variant_hash`: of the tenant and the variant.
    pub(super) fn new(id: Id<'a>, variant: &'a [u8], key_hash: u64, variant_hash: u64) -> Self {
        let own = high(key_hash.wrapping_add(variant_hash).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { id, variant, hashes: both(low(key_hash), own) }
    }
}

/// An entry, and where its reply begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) at: u32,
    pub(super) reply: Cursor,
}

/// A shard's entries and their index: what readers see.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) pool: Pool,
    chains: Box<[AtomicU32]>,
    /// How many of the chains are in use; at least one.
    open: AtomicU32,
}

/// The chain for a hash when this many are open.
fn place(hash: u32, open: u32) -> u32 {
    let mask = u32::MAX.checked_shr(open.wrapping_sub(1).leading_zeros()).unwrap_or(0);
    let at = hash & mask;
    if at < open { at } else { at & mask >> 1 }
}

/// The hash whose chain an entry is in.
fn own(head: Head<'_>) -> u32 {
    if head.is_first() { low(head.hashes()) } else { high(head.hashes()) }
}

impl Index {
    pub(super) fn new(layout: &Layout) -> Self {
        let chains = zeroed_slice_box(layout.chains);
        Self { pool: Pool::new(layout.cells), chains, open: AtomicU32::new(1) }
    }

    pub(super) fn head(&self, id: u32) -> Head<'_> {
        Head(self.pool.cell(id))
    }

    fn chain(&self, hash: u32) -> Option<&AtomicU32> {
        self.chains.get(place(hash, self.open.load(Relaxed)) as usize)
    }

    fn start(&self, hash: u32) -> u32 {
        self.chain(hash).map_or(NIL, |c| c.load(Relaxed))
    }

    /// Looks in one chain for the entry; also says whether a key of this hash was there that has other variants.
    fn look(&self, probe: &Probe<'_>, hash: u32, first: bool) -> (Option<Found>, bool) {
        let mut at = self.start(hash);
        let mut others = false;
        for _ in 0..CHAIN {
            if at == NIL {
                break;
            }
            let head = self.head(at);
            let hashes = head.hashes();
            if hashes == probe.hashes
                && head.is_first() == first
                && let Some(reply) = self.is(at, head, probe)
            {
                return (Some(Found { at, reply }), others);
            }
            others |= low(hashes) == low(probe.hashes) && head.is_first() && head.variants() > 1;
            at = head.chain_next();
        }
        (None, others)
    }

    /// If this is the entry looked for: where its reply begins.
    fn is(&self, at: u32, head: Head<'_>, probe: &Probe<'_>) -> Option<Cursor> {
        let mut contents = self.pool.contents(at);
        (head.tenant() == probe.id.tenant
            && head.upstream() == probe.id.upstream
            && head.key_len() == probe.id.key.len()
            && head.variant_len() == probe.variant.len()
            && self.pool.matches(&mut contents, probe.id.key)
            && self.pool.matches(&mut contents, probe.variant))
        .then_some(contents)
    }

    /// The entry looked for.
    pub(super) fn find(&self, probe: &Probe<'_>) -> Option<Found> {
        match self.look(probe, low(probe.hashes), true) {
            (None, true) => self.look(probe, high(probe.hashes), false).0,
            (found, _) => found,
        }
    }

    /// The first variant kept of a key, or NIL. For the lock's holder: it follows the chain to its end.
    pub(super) fn first(&self, upstream: u16, key: &[u8], hash: u32) -> u32 {
        let mut at = self.start(hash);
        while at != NIL {
            let head = self.head(at);
            if low(head.hashes()) == hash
                && head.is_first()
                && head.upstream() == upstream
                && head.key_len() == key.len()
                && self.pool.matches(&mut self.pool.contents(at), key)
            {
                break;
            }
            at = head.chain_next();
        }
        at
    }

    fn same_key(&self, one: u32, other: u32) -> bool {
        let (a, b) = (Head(self.pool.cell(one)), Head(self.pool.cell(other)));
        a.upstream() == b.upstream()
            && a.key_len() == b.key_len()
            && self.pool.same(one, other, a.key_len().div_ceil(8))
    }

    /// The first variant of the key that this other variant is of.
    pub(super) fn first_of(&self, id: u32) -> u32 {
        let hash = low(self.head(id).hashes());
        let mut at = self.start(hash);
        while at != NIL {
            let other = self.head(at);
            if other.is_first() && low(other.hashes()) == hash && self.same_key(at, id) {
                break;
            }
            at = other.chain_next();
        }
        at
    }

    /// Puts an entry into its chain.
    pub(super) fn link(&self, id: u32) {
        let head = self.head(id);
        if let Some(chain) = self.chain(own(head)) {
            head.set_chain_next(chain.load(Relaxed));
            chain.store(id, Relaxed);
        }
    }

    /// Takes an entry out of its chain.
    pub(super) fn unlink(&self, id: u32) {
        let head = self.head(id);
        let Some(chain) = self.chain(own(head)) else { return };
        let next = head.chain_next();
        let mut at = chain.load(Relaxed);
        if at == id {
            chain.store(next, Relaxed);
            return;
        }
        while at != NIL {
            let head = self.head(at);
            if head.chain_next() == id {
                head.set_chain_next(next);
                return;
            }
            at = head.chain_next();
        }
    }

    /// The last entry of a chain that is about to get longer than readers follow. Only an attack on the hash makes one that long.
    pub(super) fn excess(&self, hash: u32) -> Option<u32> {
        let mut at = self.start(hash);
        let (mut last, mut length) = (NIL, 0);
        while at != NIL {
            (last, length) = (at, length + 1);
            at = self.head(at).chain_next();
        }
        (length >= CHAIN / 2).then_some(last)
    }

    /// Opens a chain if there are fewer than entries, and moves to it what belongs there from the one it splits.
    pub(super) fn grow(&self, entries: usize) {
        let open = self.open.load(Relaxed);
        if open as usize >= entries.min(self.chains.len()) {
            return;
        }
        let mut at = self.chains.get(place(open, open) as usize).map_or(NIL, |c| c.swap(NIL, Relaxed));
        self.open.store(open.saturating_add(1), Relaxed);
        while at != NIL {
            let next = self.head(at).chain_next();
            self.link(at);
            at = next;
        }
    }
}
