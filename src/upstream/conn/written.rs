//! When the requests of one upstream connection were written: a moment per write, not per request.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};

/// Writes that are told apart; with more of them unanswered, the last ones count as one.
const WRITES: usize = 64;

/// See the module. Places in the queue of waiters are counted from the connection's start.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Waiters that were ever queued.
    queued: Cell<u64>,
    /// Waiters that have left the queue.
    gone: Cell<u64>,
    /// The waiters before this place had all been written at this microsecond.
    writes: RefCell<VecDeque<(u64, u64)>>,
}

impl Written {
    /// One more waiter is queued.
    #[inline]
    pub(super) fn one_more(&self) {
        self.queued.set(self.queued.get().wrapping_add(1));
    }

    /// The first waiter has left the queue.
    #[inline]
    pub(super) fn one_less(&self) {
        self.gone.set(self.gone.get().wrapping_add(1));
    }

    /// The place behind the last waiter.
    pub(super) fn so_far(&self) -> u64 {
        self.queued.get()
    }

    /// The requests of those before `upto` are written, now.
    pub(super) fn at(&self, upto: u64, micros: u64) {
        let mut writes = self.writes.borrow_mut();
        let gone = self.gone.get();
        while writes.front().is_some_and(|(end, _)| *end <= gone) {
            writes.pop_front();
        }
        if writes.len() >= WRITES
            && let Some(last) = writes.back_mut()
        {
            last.0 = upto;
        } else {
            writes.push_back((upto, micros));
        }
    }

    /// When the request of the first waiter was written, if that is known.
    #[inline]
    pub(super) fn front(&self) -> Option<u64> {
        let mut writes = self.writes.borrow_mut();
        let gone = self.gone.get();
        while writes.front().is_some_and(|(end, _)| *end <= gone) {
            writes.pop_front();
        }
        writes.front().map(|(_, micros)| *micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waiter_has_the_moment_of_its_write() {
        let written = Written::default();
        (0..3).for_each(|_| written.one_more());
        written.at(written.so_far(), 10);
        written.one_more();
        assert_eq!(written.front(), Some(10));
        written.at(written.so_far(), 20);
        (0..3).for_each(|_| written.one_less());
        assert_eq!(written.front(), Some(20));
        written.one_less();
        assert_eq!(written.front(), None);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let written = Written::default();
        for micros in 0..1000 {
            written.one_more();
            written.at(written.so_far(), micros);
        }
        assert_eq!(written.writes.borrow().len(), WRITES);
        (0..999).for_each(|_| written.one_less());
        assert_eq!(written.front(), Some(63));
    }
}
