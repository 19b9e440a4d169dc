//! How the memory is divided: how many shards, and what each holds.

use super::{
    pool::{CELL, MOST, NIL},
    queues::SLOT,
    stripes::STRIPE,
};

/// What a cell costs in bytes: itself, its link (4), half an index chain (2), half a fingerprint (2), a bit.
pub(super) const CELL_COST: usize = CELL + 4 + 2 + 2 + 1;

/// A shard's own fields and the rounding of its arrays, in bytes.
const FIXED: usize = 4096;

/// A shard is worth having from this size on, in bytes.
const SMALLEST: usize = 256 << 10;

/// More shards than any machine has workers.
const SHARDS: usize = 64;

/// Large replies must not crowd a shard: it has room for this many of the largest.
const LARGEST_PER_SHARD: usize = 4;

/// One shard's numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// How many shards there are: a power of two.
    pub(super) shards: usize,
    /// Cells, the unused first one included.
    pub(super) cells: usize,
    pub(super) chains: usize,
    pub(super) fingerprints: usize,
    pub(super) stripes: usize,
    /// Tenants that can hold something in the shard at once.
    pub(super) slots: usize,
}

impl Layout {
    /// For this much memory in all, and replies up to `max_value`, in bytes.
    pub(super) fn new(max_memory: usize, max_value: usize) -> Self {
        let least = max_value.saturating_mul(LARGEST_PER_SHARD).max(SMALLEST);
        let fit = (max_memory / least).clamp(1, SHARDS);
        let shards = 1 << fit.ilog2();
        let memory = max_memory / shards;
        let stripes = (memory / 1024).clamp(16, 4096);
        let slots = (memory / CELL / 256).clamp(8, 4096);
        let rest = memory.saturating_sub(FIXED + stripes * STRIPE + slots * SLOT);
        let cells = (rest / CELL_COST).clamp(NIL as usize + 1, MOST);
        Self { shards, cells, chains: cells / 2 + 1, fingerprints: cells / 2, stripes, slots }
    }
}
