//! Fingerprints of entries let go lately: what comes back soon after goes straight to the main queue.
//!
//! A table of small rows, each a queue of the fingerprints that hash to it, so that remembering one is a move within a cache line.

use super::entry::low;

const ROW: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Ghost {
    rows: Box<[[u32; ROW]]>,
}

impl Ghost {
    /// Room for about `entries` fingerprints.
    pub(super) fn new(entries: usize) -> Self {
        Self { rows: bytemuck::zeroed_slice_box(entries / ROW + 1) }
    }

    fn row(&mut self, hashes: u64) -> Option<&mut [u32; ROW]> {
        let at = super::reduce(low(hashes), self.rows.len());
        self.rows.get_mut(at)
    }

    /// Remembers an entry by its hashes.
    pub(super) fn insert(&mut self, hashes: u64) {
        if let Some(row) = self.row(hashes) {
            row.rotate_right(1);
            row[0] = super::entry::high(hashes);
        }
    }

    /// Whether the entry was let go within about the last `window` departures; forgets it.
    pub(super) fn take(&mut self, hashes: u64, window: usize) -> bool {
        let depth = window.div_ceil(self.rows.len()).clamp(1, ROW);
        let Some(row) = self.row(hashes) else { return false };
        match row.iter().take(depth).position(|f| *f == super::entry::high(hashes)) {
            Some(at) => {
                row[at] = 0;
                true
            }
            None => false,
        }
    }
}
