//! An entry's header: one cell, its fields packed into words.
//!
//! | word | low half | high half |
//! |---|---|---|
//! | 0 | next in the index chain | next variant of the key |
//! | 1 | previous variant of the key | how many variants (right in the key's first one only) |
//! | 2 | next in the queue | previous in the queue |
//! | 3 | hash of the key | hash of the key, the tenant and the variant |
//! | 4 | expires, in milliseconds | |
//! | 5 | epoch of the ticket | |
//! | 6 | length of the reply | lengths of the key and the variant, 16 bits each |
//! | 7 | tenant | upstream, 16 bits; slot of the tenant, 14 bits; first variant; in the main queue |

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::pool::Cell;

const FIRST: u64 = 1 << 62;
const MAIN: u64 = 1 << 63;
const SLOT: u64 = 0x3fff;

/// A header to read, or, for the holder of the shard's mutex within a section, to change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a>(pub(super) &'a Cell);

/// What a header says once and for all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fixed {
    pub(super) hashes: u64,
    pub(super) expires: u64,
    pub(super) epoch: u64,
    pub(super) lengths: u64,
    pub(super) tenant: u32,
    pub(super) upstream: u16,
    pub(super) slot: u16,
}

pub(super) fn low(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

pub(super) fn high(word: u64) -> u32 {
    low(word >> 32)
}

pub(super) fn both(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The lengths' word; None when one is too long for an entry.
pub(super) fn lengths(key: usize, variant: usize, reply: usize) -> Option<u64> {
    let (key, variant) = (u16::try_from(key).ok()?, u16::try_from(variant).ok()?);
    Some(both(u32::try_from(reply).ok()?, u32::from(key) | u32::from(variant) << 16))
}

fn set_low(word: &AtomicU64, value: u32) {
    word.store(both(value, high(word.load(Relaxed))), Relaxed);
}

fn set_high(word: &AtomicU64, value: u32) {
    word.store(both(low(word.load(Relaxed)), value), Relaxed);
}

impl Head<'_> {
    pub(super) fn write(self, fixed: &Fixed) {
        self.0[0].store(0, Relaxed);
        self.0[1].store(0, Relaxed);
        self.0[2].store(0, Relaxed);
        self.0[3].store(fixed.hashes, Relaxed);
        self.0[4].store(fixed.expires, Relaxed);
        self.0[5].store(fixed.epoch, Relaxed);
        self.0[6].store(fixed.lengths, Relaxed);
        let high = u64::from(fixed.upstream) | (u64::from(fixed.slot) & SLOT) << 16;
        self.0[7].store(u64::from(fixed.tenant) | high << 32, Relaxed);
    }

    pub(super) fn chain_next(self) -> u32 {
        low(self.0[0].load(Relaxed))
    }

    pub(super) fn set_chain_next(self, id: u32) {
        set_low(&self.0[0], id);
    }

    pub(super) fn variant_next(self) -> u32 {
        high(self.0[0].load(Relaxed))
    }

    pub(super) fn set_variant_next(self, id: u32) {
        set_high(&self.0[0], id);
    }

    pub(super) fn variant_prev(self) -> u32 {
        low(self.0[1].load(Relaxed))
    }

    pub(super) fn set_variant_prev(self, id: u32) {
        set_low(&self.0[1], id);
    }

    pub(super) fn variants(self) -> u32 {
        high(self.0[1].load(Relaxed))
    }

    pub(super) fn set_variants(self, count: u32) {
        set_high(&self.0[1], count);
    }

    pub(super) fn queue_next(self) -> u32 {
        low(self.0[2].load(Relaxed))
    }

    pub(super) fn set_queue_next(self, id: u32) {
        set_low(&self.0[2], id);
    }

    pub(super) fn queue_prev(self) -> u32 {
        high(self.0[2].load(Relaxed))
    }

    pub(super) fn set_queue_prev(self, id: u32) {
        set_high(&self.0[2], id);
    }

    /// Both hashes in one word, to compare at once.
    pub(super) fn hashes(self) -> u64 {
        self.0[3].load(Relaxed)
    }

    pub(super) fn expires(self) -> u64 {
        self.0[4].load(Relaxed)
    }

    pub(super) fn epoch(self) -> u64 {
        self.0[5].load(Relaxed)
    }

    pub(super) fn reply_len(self) -> usize {
        low(self.0[6].load(Relaxed)) as usize
    }

    pub(super) fn key_len(self) -> usize {
        (high(self.0[6].load(Relaxed)) & 0xffff) as usize
    }

    pub(super) fn variant_len(self) -> usize {
        (high(self.0[6].load(Relaxed)) >> 16) as usize
    }

    pub(super) fn tenant(self) -> u32 {
        low(self.0[7].load(Relaxed))
    }

    pub(super) fn upstream(self) -> u16 {
        let [_, _, _, _, a, b, ..] = self.0[7].load(Relaxed).to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    pub(super) fn slot(self) -> usize {
        (high(self.0[7].load(Relaxed) >> 16) & 0x3fff) as usize
    }

    /// Whether it stands for its key: in the chain of the key's hash, first of the key's variants.
    pub(super) fn is_first(self) -> bool {
        self.0[7].load(Relaxed) & FIRST != 0
    }

    pub(super) fn set_first(self) {
        self.0[7].store(self.0[7].load(Relaxed) | FIRST, Relaxed);
    }

    pub(super) fn is_main(self) -> bool {
        self.0[7].load(Relaxed) & MAIN != 0
    }

    pub(super) fn set_main(self) {
        self.0[7].store(self.0[7].load(Relaxed) | MAIN, Relaxed);
    }
}
