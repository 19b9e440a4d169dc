//! Who of one tenant listens to what, over all workers of this process: what PUBLISH and PUBSUB answer, and the bound on it all.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::glob;

/// Most subscriptions of one tenant, all its connections together (isolation.md L10). A name of more than [`NAME_BYTES`] counts once more
/// for each so many bytes of it.
pub const PER_TENANT: usize = 1 << 20;
/// Most different patterns of one tenant: every message of the tenant's is matched against each.
pub const PATTERNS_PER_TENANT: usize = 1000;
/// Bytes of a name that one subscription pays for.
pub const NAME_BYTES: usize = 256;

/// The three kinds of subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// SUBSCRIBE.
    Channel,
    /// PSUBSCRIBE.
    Pattern,
    /// SSUBSCRIBE.
    Shard,
}

impl Space {
    /// All of them, at their [`Space::index`].
    pub const ALL: [Self; 3] = [Self::Channel, Self::Pattern, Self::Shard];

    /// Position in an array of one thing per kind.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What a subscription to `name` costs of a bound on subscriptions.
pub fn cost(name: &[u8]) -> usize {
    1 + name.len() / NAME_BYTES
}

/// See the module.
#[derive(Debug, Default)]
pub struct Subscriptions {
    tally: Mutex<Tally>,
    /// Connections that track keys.
    pub trackers: AtomicU32,
    /// Workers that are behind with handing out messages.
    behind: AtomicU32,
}

#[derive(Debug, Default)]
struct Tally {
    /// Of [`PER_TENANT`].
    used: usize,
    /// Subscribers by name.
    spaces: [HashMap<Box<[u8]>, u32>; 3],
}

impl Subscriptions {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more worker is behind with handing out messages, or one less.
    pub fn set_behind(&self, behind: bool) {
        if behind {
            self.behind.fetch_add(1, Ordering::Relaxed);
        } else {
            self.behind.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether messages are published faster than they can be handed out.
    pub fn behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed) > 0
    }

    /// Takes room for subscriptions of this cost; `false`, and none taken, at the bound. [`Subscriptions::release`] gives it back.
    pub fn reserve(&self, cost: usize) -> bool {
        let mut tally = self.tally();
        let room = tally.used.saturating_add(cost) <= PER_TENANT;
        if room {
            tally.used += cost;
        }
        room
    }

    /// Gives room back.
    pub fn release(&self, cost: usize) {
        let mut tally = self.tally();
        tally.used = tally.used.saturating_sub(cost);
    }

    /// One more subscriber, for which there is room.
    pub fn join(&self, space: Space, name: &[u8]) {
        let names = &mut self.tally().spaces[space.index()];
        match names.get_mut(name) {
            Some(count) => *count += 1,
            None => {
                names.insert(name.into(), 1);
            }
        }
    }

    /// One subscriber less, and its room given back.
    pub fn leave(&self, space: Space, name: &[u8]) {
        let mut tally = self.tally();
        tally.used = tally.used.saturating_sub(cost(name));
        let names = &mut tally.spaces[space.index()];
        if let Some(count) = names.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                names.remove(name);
                if names.is_empty() {
                    names.shrink_to_fit();
                }
            }
        }
    }

    /// How many a message on this channel (of [`Space::Channel`] or [`Space::Shard`]) reaches: a subscriber counts once for the channel
    /// and once for each of its patterns that match.
    pub fn receivers(&self, space: Space, channel: &[u8]) -> u64 {
        let tally = self.tally();
        let direct = tally.spaces[space.index()].get(channel).copied().map_or(0, u64::from);
        if space != Space::Channel {
            return direct;
        }
        let patterns = tally.spaces[Space::Pattern.index()].iter();
        direct + patterns.filter(|(p, _)| glob::matches(p, channel)).map(|(_, n)| u64::from(*n)).sum::<u64>()
    }

    /// How many subscribers this very name has.
    pub fn count(&self, space: Space, name: &[u8]) -> u32 {
        self.tally().spaces[space.index()].get(name).copied().unwrap_or(0)
    }

    /// The names with subscribers that a pattern matches; `None`: all.
    pub fn names(&self, space: Space, pattern: Option<&[u8]>) -> Vec<Vec<u8>> {
        let tally = self.tally();
        let names = tally.spaces[space.index()].keys();
        names.filter(|name| pattern.is_none_or(|p| glob::matches(p, name))).map(|name| name.to_vec()).collect()
    }

    /// How many names have subscribers.
    pub fn distinct(&self, space: Space) -> usize {
        self.tally().spaces[space.index()].len()
    }

    /// Whether one more pattern may be subscribed to.
    pub fn takes_pattern(&self, pattern: &[u8]) -> bool {
        let tally = self.tally();
        let patterns = &tally.spaces[Space::Pattern.index()];
        patterns.len() < PATTERNS_PER_TENANT || patterns.contains_key(pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receivers_are_counted_as_redis_counts_them() {
        let s = Subscriptions::default();
        for (space, name) in [
            (Space::Channel, &b"news"[..]),
            (Space::Channel, b"news"),
            (Space::Pattern, b"n*"),
            (Space::Pattern, b"*s"),
            (Space::Pattern, b"x*"),
            (Space::Shard, b"news"),
        ] {
            assert!(s.reserve(cost(name)));
            s.join(space, name);
        }
        assert_eq!((s.receivers(Space::Channel, b"news"), s.receivers(Space::Shard, b"news")), (4, 1));
        assert_eq!((s.count(Space::Channel, b"news"), s.distinct(Space::Pattern)), (2, 3));
        s.leave(Space::Channel, b"news");
        s.leave(Space::Channel, b"news");
        assert_eq!(s.names(Space::Channel, None), Vec::<Vec<u8>>::new());
        assert_eq!(s.names(Space::Pattern, Some(b"x*")), [b"x*".to_vec()]);
        assert_eq!(s.tally().used, 4);
    }

    #[test]
    fn l10_there_is_room_for_so_many() {
        let s = Subscriptions::default();
        assert!(s.reserve(PER_TENANT) && !s.reserve(1));
        s.release(1);
        assert!(s.reserve(1) && !s.reserve(1));
        assert_eq!((cost(b""), cost(&[0; 255]), cost(&[0; 256])), (1, 1, 2));
    }
}
