//! How many replies one upstream connection may owe at once.
//!
//! A server takes every request that it finds in its buffer before it serves anybody else, and makes the replies meanwhile: five thousand
//! `GET`s of a megabyte, sent in one write, stop it for seconds and fill its memory (isolation.md L2). So no more is asked for at once than a
//! bound, in requests, and in bytes by how large the replies on this connection have been of late. Requests beyond wait with their clients.

use std::cell::Cell;

/// Most replies due.
const REPLIES: u32 = 1024;
/// Most replies due while nothing is known of their size; each that comes makes it one more.
const FIRST: u32 = 64;
/// Most bytes of replies due, as far as can be known before they come.
const BYTES: u64 = 8 * 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    /// Replies due.
    due: Cell<u32>,
    /// Most replies due for now.
    most: Cell<u32>,
    /// Bytes read since a reply last ended.
    unfinished: Cell<u64>,
    /// Bytes of a reply: follows larger ones at once, smaller ones by a quarter of the difference at a time.
    size: Cell<u64>,
}

impl Default for Window {
    fn default() -> Self {
        Self { due: Cell::new(0), most: Cell::new(FIRST), unfinished: Cell::new(0), size: Cell::new(0) }
    }
}

impl Window {
    /// What was learnt on the connection before this one.
    pub(super) fn learn_from(&self, before: &Self) {
        self.most.set(before.most.get());
        self.size.set(before.size.get().max(before.unfinished.get()));
    }

    /// One more is due.
    pub(super) fn sent(&self) {
        self.due.set(self.due.get() + 1);
    }

    /// `bytes` were read, with which `replies` ended.
    pub(super) fn read(&self, bytes: usize, replies: u32) {
        let unfinished = self.unfinished.get() + bytes as u64;
        if replies == 0 {
            self.unfinished.set(unfinished);
            return;
        }
        self.unfinished.set(0);
        self.due.set(self.due.get().saturating_sub(replies));
        self.most.set(self.most.get().saturating_add(replies).min(REPLIES));
        let (size, seen) = (self.size.get(), unfinished / u64::from(replies));
        self.size.set(if seen > size { seen } else { size - (size - seen).div_ceil(4) });
    }

    /// Replies due.
    pub(super) fn due(&self) -> u32 {
        self.due.get()
    }

    /// Whether no more should be asked for now. One reply may always be due, however large.
    pub(super) fn full(&self) -> bool {
        let due = self.due.get();
        due >= self.most.get() || (due > 0 && u64::from(due) * self.size.get() >= BYTES)
    }

    /// Whether those who waited may go on: half is free, so that they are not woken for one request each.
    pub(super) fn has_room(&self) -> bool {
        let due = self.due.get();
        due <= self.most.get() / 2 && (due == 0 || u64::from(due) * self.size.get() <= BYTES / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send_until_full(window: &Window) -> u32 {
        let before = window.due.get();
        while !window.full() {
            window.sent();
        }
        window.due.get() - before
    }

    #[test]
    fn l2_few_large_replies_or_many_small_ones_are_due_at_once() {
        let window = Window::default();
        assert_eq!(send_until_full(&window), 64);
        while window.most.get() < 1024 {
            window.sent();
            window.read(5, 1);
        }
        assert_eq!(window.due.get() + send_until_full(&window), 1024);
        // They turn out to be of a megabyte each, and come in pieces.
        (0..3).for_each(|_| window.read(256 * 1024, 0));
        window.read(256 * 1024, 1);
        assert!(window.full() && !window.has_room());
        (0..1023).for_each(|_| window.read(1024 * 1024, 1));
        assert!(window.has_room());
        assert_eq!(send_until_full(&window), 8);
        let next = Window::default();
        next.learn_from(&window);
        assert_eq!(send_until_full(&next), 8);
        (0..4).for_each(|_| window.read(1024 * 1024, 1));
        assert!(window.has_room());
        // Small ones follow: the bound is what it was before long.
        (0..60).for_each(|_| {
            window.sent();
            window.read(5, 1);
        });
        assert_eq!(window.due.get() + send_until_full(&window), 1024);
    }

    #[test]
    fn one_reply_may_always_be_due() {
        let window = Window::default();
        window.sent();
        window.read(512 << 20, 1);
        assert!(!window.full() && window.has_room());
        window.sent();
        assert!(window.full() && !window.has_room());
    }
}
