//! A shard's memory: cells of 64 bytes, all reserved at once and touched as they are first used.
//!
//! Equal cells do not fragment: what is freed serves any later entry, whatever its size, so memory stays within what was reserved.
//! An entry is a cell with its header and a chain of cells with its key, variant and reply, each padded to a multiple of 8 bytes.
//! All of it is atomics, read and written relaxed: see `seq` for what makes that safe.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::entry::{Head, low};
use bytemuck::zeroed_slice_box;

/// 64 bytes, as words.
pub(super) type Cell = [AtomicU64; WORDS];

const WORDS: usize = 8;

/// A cell's size in bytes.
pub(super) const CELL: usize = 8 * WORDS;

/// No cell. The first cell of a pool is never used, so that zeroed memory means "nothing" everywhere.
pub(super) const NIL: u32 = 0;

/// Cells a pool can have: their numbers leave two bits of a word.
pub(super) const MOST: usize = 1 << HEAT;

/// The heat's place in a link.
const HEAT: u32 = 30;

/// The part of a link that is the next cell's number.
const NEXT: u32 = (1 << HEAT) - 1;

/// Heat is counted up to this.
const HOTTEST: u32 = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    cells: Box<[Cell]>,
    /// The next cell of the same entry; of a free cell, the next free one. Apart from the cells, so that the chain can be followed
    /// without waiting for their contents. In the two highest bits of a head's: its heat, the hits since it came to its queue.
    links: Box<[AtomicU32]>,
    /// Stands in for a cell that does not exist, which only a reader that lost its race can ask for.
    nowhere: Cell,
}

/// A place in an entry's bytes, at a word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    cell: u32,
    word: usize,
}

impl Pool {
    /// `cells` counts the unused first one.
    pub(super) fn new(cells: usize) -> Self {
        Self { cells: zeroed_slice_box(cells), links: zeroed_slice_box(cells), nowhere: Cell::default() }
    }

    pub(super) fn cell(&self, id: u32) -> &Cell {
        self.cells.get(id as usize).unwrap_or(&self.nowhere)
    }

    pub(super) fn next(&self, id: u32) -> u32 {
        self.links.get(id as usize).map_or(NIL, |link| link.load(Relaxed) & NEXT)
    }

    /// Sets what follows; the heat is 0 then.
    pub(super) fn link(&self, id: u32, next: u32) {
        if let Some(link) = self.links.get(id as usize) {
            link.store(next & NEXT, Relaxed);
        }
    }

    pub(super) fn heat(&self, id: u32) -> u32 {
        self.links.get(id as usize).map_or(0, |link| link.load(Relaxed) >> HEAT)
    }

    pub(super) fn set_heat(&self, id: u32, heat: u32) {
        if let Some(link) = self.links.get(id as usize) {
            link.store(link.load(Relaxed) & NEXT | heat << HEAT, Relaxed);
        }
    }

    /// Counts a hit. Readers do it with no lock and outside the sequence: the exchange succeeds only if the link is as it was, so that
    /// even a cell that has become another's keeps its link, and a lost or stray hit only nudges the policy. Nothing is written once the
    /// entry is as hot as can be told, so that hot entries stay shared between caches.
    pub(super) fn warm(&self, id: u32) {
        if let Some(link) = self.links.get(id as usize) {
            let old = link.load(Relaxed);
            if old >> HEAT < HOTTEST {
                let _ = link.compare_exchange(old, old.wrapping_add(1 << HEAT), Relaxed, Relaxed);
            }
        }
    }

    /// The place where the bytes of the entry with this head begin.
    pub(super) fn contents(&self, head: u32) -> Cursor {
        Cursor { cell: self.next(head), word: 0 }
    }

    fn word(&self, at: &mut Cursor) -> &AtomicU64 {
        if at.word == WORDS {
            *at = Cursor { cell: self.next(at.cell), word: 0 };
        }
        let word = &self.cell(at.cell)[at.word % WORDS];
        at.word += 1;
        word
    }

    /// Writes `bytes`, padded, and moves past them.
    pub(super) fn write(&self, at: &mut Cursor, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.word(at).store(u64::from_le_bytes(*word), Relaxed);
        }
        if !rest.is_empty() {
            self.word(at).store(last(bytes, rest), Relaxed);
        }
    }

    /// Whether `bytes`, padded, stand here; moves past them if so.
    pub(super) fn matches(&self, at: &mut Cursor, bytes: &[u8]) -> bool {
        let (words, rest) = bytes.as_chunks();
        let all = words.len() + usize::from(!rest.is_empty());
        // Most keys and variants stand within a cell.
        if let Some(own) = self.cell(at.cell).get(at.word..at.word.saturating_add(all)) {
            at.word += all;
            return own.iter().zip(words).all(|(own, word)| own.load(Relaxed) == u64::from_le_bytes(*word))
                && (rest.is_empty() || own.last().is_some_and(|own| own.load(Relaxed) == last(bytes, rest)));
        }
        words.iter().all(|word| self.word(at).load(Relaxed) == u64::from_le_bytes(*word))
            && (rest.is_empty() || self.word(at).load(Relaxed) == last(bytes, rest))
    }

    /// Whether two entries' contents begin with the same words.
    pub(super) fn same(&self, one: u32, other: u32, words: usize) -> bool {
        let (mut a, mut b) = (self.contents(one), self.contents(other));
        (0..words).all(|_| self.word(&mut a).load(Relaxed) == self.word(&mut b).load(Relaxed))
    }

    /// Appends `len` bytes to `out`, which has room for them.
    pub(super) fn copy(&self, at: &mut Cursor, mut len: usize, out: &mut Vec<u8>) {
        while len > 0 {
            if at.word == WORDS {
                *at = Cursor { cell: self.next(at.cell), word: 0 };
            }
            let mut bytes = [[0; 8]; WORDS];
            let words = self.cell(at.cell).get(at.word..).unwrap_or_default();
            for (to, word) in bytes.iter_mut().zip(words) {
                *to = word.load(Relaxed).to_le_bytes();
            }
            let bytes = bytes.as_flattened();
            let part = len.min(words.len() * 8);
            out.extend_from_slice(bytes.get(..part).unwrap_or_default());
            at.word = WORDS;
            len -= part;
        }
    }
}

/// The last word of `bytes`, of which `rest` is less than a word, padded.
fn last(bytes: &[u8], rest: &[u8]) -> u64 {
    if let Some(word) = bytes.last_chunk() {
        return u64::from_le_bytes(*word).checked_shr(64 - 8 * low(rest.len() as u64)).unwrap_or(0);
    }
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(rest) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

/// How many cells an entry takes: its header, and what these lengths (in bytes) need.
pub(super) fn cells_for(key: usize, variant: usize, reply: usize) -> usize {
    let words = key.div_ceil(8) + variant.div_ceil(8) + reply.div_ceil(8);
    1 + words.div_ceil(WORDS)
}

/// How many cells the entry with this head takes.
pub(super) fn cells_of(pool: &Pool, id: u32) -> usize {
    let head = Head(pool.cell(id));
    cells_for(head.key_len(), head.variant_len(), head.reply_len())
}
