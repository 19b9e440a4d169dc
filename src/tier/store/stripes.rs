//! Versions and writers of keys, by hash: no state for a key that is not kept.
//!
//! Keys that share a stripe share its fate: a write of one voids tickets of the others, which costs a miss and never a stale reply.

use bytemuck::zeroed_slice_box;

/// See the module.
#[derive(Debug)]
pub(super) struct Stripes(Box<[Stripe]>);

/// The version, which moves with every invalidation and every beginning of a write (64 bits do not come round), and how many writes are
/// under way.
type Stripe = [u64; 2];

/// A stripe's size in bytes.
pub(super) const STRIPE: usize = size_of::<Stripe>();

impl Stripes {
    pub(super) fn new(stripes: usize) -> Self {
        Self(zeroed_slice_box(stripes.max(1)))
    }

    fn stripe(&mut self, hash: u64) -> Option<&mut Stripe> {
        // Not the bits that choose the chain: keys of one chain should not share a stripe as well.
        let at = super::reduce(super::entry::low(hash >> 20), self.0.len());
        self.0.get_mut(at)
    }

    /// For a ticket; None while a write is under way.
    pub(super) fn version(&mut self, hash: u64) -> Option<u64> {
        self.stripe(hash).filter(|[_, writers]| *writers == 0).map(|[version, _]| *version)
    }

    /// Voids the tickets given so far.
    pub(super) fn void(&mut self, hash: u64) {
        if let Some([version, _]) = self.stripe(hash) {
            *version = version.wrapping_add(1);
        }
    }

    pub(super) fn begin_write(&mut self, hash: u64) {
        if let Some([version, writers]) = self.stripe(hash) {
            *version = version.wrapping_add(1);
            *writers = writers.saturating_add(1);
        }
    }

    /// One too many is forgiven.
    pub(super) fn end_write(&mut self, hash: u64) {
        if let Some([_, writers]) = self.stripe(hash) {
            *writers = writers.saturating_sub(1);
        }
    }
}
