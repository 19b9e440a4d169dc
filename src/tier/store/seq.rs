//! The sequence lock that lets readers pass without writing anything shared.
//!
//! A writer (there is one at a time: it holds the shard's mutex) makes the number odd, changes things, and makes it even again.
//! A reader notes an even number, reads, and asks whether the number still stands; if so, no change fell within its reads.
//! Everything under the lock is made of atomics, so a reader that loses the race has read nonsense, not caused undefined behaviour:
//! it must treat what it read as unproven until [`Seq::holds`] says so.
//!
//! Why it is right (Boehm, "Can seqlocks get along with programming language memory models?"): the writer's odd store is before its
//! release fence, which is before its data stores. A reader that saw any of these stores has, after its acquire fence, the odd number
//! or a later one in its second load, so `holds` is false. A reader whose first load gave the even number of a section synchronises
//! with the release store that ended it, and sees all of that section. So whoever learns that a section has ended (by any channel that
//! orders memory) and then reads, sees its effect.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Seq(AtomicU64);

/// A writer's section; ends when dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Section<'a> {
    seq: &'a AtomicU64,
    end: u64,
}

impl Seq {
    /// The number to give to [`Self::holds`]; None while a section is open.
    pub(super) fn begin(&self) -> Option<u64> {
        let number = self.0.load(Ordering::Acquire);
        (number & 1 == 0).then_some(number)
    }

    /// Whether all that was read since `begin` gave `number` belongs together.
    pub(super) fn holds(&self, number: u64) -> bool {
        fence(Ordering::Acquire);
        self.0.load(Ordering::Relaxed) == number
    }

    /// Opens a section. Only for the holder of the shard's mutex.
    pub(super) fn write(&self) -> Section<'_> {
        let number = self.0.load(Ordering::Relaxed);
        self.0.store(number.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        Section { seq: &self.0, end: number.wrapping_add(2) }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.seq.store(self.end, Ordering::Release);
    }
}
