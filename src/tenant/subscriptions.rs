//! Who of one tenant listens to what, over all workers of this process: what PUBLISH and PUBSUB answer, and the bound on it all.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::glob;

/// Most subscriptions of one tenant, all its connections together (isolation.md L10). A name of more than [`NAME_BYTES`] counts once more
/// for each so many bytes of it.
pub const PER_TENANT: usize = 1 << 20;
/// Most different patterns of one tenant: every message of the tenant's is matched against each.
pub const PATTERNS_PER_TENANT: usize = 1000;
/// Steps ([`glob::matches_within`]) that finding out whom one message reaches may take, and one turn of listing names.
pub const MATCHING: usize = 4 << 20;
/// Names looked at in one turn of listing them.
const LISTED: usize = 1024;
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
    spaces: [BTreeMap<Arc<[u8]>, u32>; 3],
    /// The patterns among them, for whoever matches them, until they change.
    patterns: Option<Patterns>,
}

/// Patterns and how many subscribers each has.
type Patterns = Arc<[(Arc<[u8]>, u32)]>;

impl Tally {
    /// Something is about to change in `space`.
    fn touch(&mut self, space: Space) {
        if space == Space::Pattern {
            self.patterns = None;
        }
    }
}

/// Names with subscribers, found turn by turn; which of those that come or go meanwhile are among them is open.
#[derive(Debug, Default)]
pub struct Listing {
    /// Found so far.
    pub names: Vec<Arc<[u8]>>,
    /// The last one looked at.
    after: Option<Arc<[u8]>>,
}

/// A pattern takes more steps than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooCostly;

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
        let mut tally = self.tally();
        tally.touch(space);
        let names = &mut tally.spaces[space.index()];
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
        tally.touch(space);
        let names = &mut tally.spaces[space.index()];
        if let Some(count) = names.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                names.remove(name);
            }
        }
    }

    /// How many a message on this channel (of [`Space::Channel`] or [`Space::Shard`]) reaches: a subscriber counts once for the channel
    /// and once for each of its patterns that match. The steps taken are subtracted from `work`.
    ///
    /// # Errors
    /// They did not suffice.
    pub fn receivers(&self, space: Space, channel: &[u8], work: &mut usize) -> Result<u64, TooCostly> {
        let mut tally = self.tally();
        let mut count = tally.spaces[space.index()].get(channel).copied().map_or(0, u64::from);
        if space != Space::Channel || tally.spaces[Space::Pattern.index()].is_empty() {
            return Ok(count);
        }
        let Tally { spaces, patterns, .. } = &mut *tally;
        let all = || spaces[Space::Pattern.index()].iter().map(|(pattern, n)| (Arc::clone(pattern), *n)).collect();
        let patterns = Arc::clone(patterns.get_or_insert_with(all));
        // Others of the tenant's do not wait for this.
        drop(tally);
        for (pattern, n) in &*patterns {
            if glob::matches_within(pattern, channel, work).ok_or(TooCostly)? {
                count += u64::from(*n);
            }
        }
        Ok(count)
    }

    /// How many subscribers this very name has.
    pub fn count(&self, space: Space, name: &[u8]) -> u32 {
        self.tally().spaces[space.index()].get(name).copied().unwrap_or(0)
    }

    /// Goes on with a list of the names with subscribers that a pattern matches (`None`: all), for one turn; whether it is whole. The
    /// steps taken are subtracted from `work`, which is [`MATCHING`] at most.
    ///
    /// # Errors
    /// They do not suffice for a single name.
    pub fn list(
        &self,
        space: Space,
        pattern: Option<&[u8]>,
        listing: &mut Listing,
        work: &mut usize,
    ) -> Result<bool, TooCostly> {
        let from = listing.after.take();
        let batch: Vec<Arc<[u8]>> = {
            let tally = self.tally();
            let from = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let names = tally.spaces[space.index()].range::<[u8], _>((from, Bound::Unbounded));
            names.take(LISTED).map(|(name, _)| Arc::clone(name)).collect()
        };
        listing.after = from;
        for (i, name) in batch.iter().enumerate() {
            match pattern.map_or(Some(true), |pattern| glob::matches_within(pattern, name, work)) {
                Some(true) => listing.names.push(Arc::clone(name)),
                Some(false) => {}
                None if i == 0 => return Err(TooCostly),
                None => return Ok(false),
            }
            listing.after = Some(Arc::clone(name));
        }
        Ok(batch.len() < LISTED)
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
        let receivers = |space| s.receivers(space, b"news", &mut MATCHING.clone());
        assert_eq!((receivers(Space::Channel), receivers(Space::Shard)), (Ok(4), Ok(1)));
        assert_eq!(s.receivers(Space::Channel, b"news", &mut 3), Err(TooCostly));
        assert_eq!((s.count(Space::Channel, b"news"), s.distinct(Space::Pattern)), (2, 3));
        s.leave(Space::Channel, b"news");
        s.leave(Space::Channel, b"news");
        let names = |space, pattern| {
            let mut listing = Listing::default();
            assert_eq!(s.list(space, pattern, &mut listing, &mut MATCHING.clone()), Ok(true));
            listing.names.iter().map(|name| name.to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(names(Space::Channel, None), Vec::<Vec<u8>>::new());
        assert_eq!(names(Space::Pattern, Some(b"x*")), [b"x*".to_vec()]);
        assert_eq!(s.tally().used, 4);
    }

    #[test]
    fn names_are_listed_turn_by_turn() {
        let s = Subscriptions::default();
        let all: Vec<String> = (0..3 * LISTED).map(|i| format!("{i:05}")).collect();
        all.iter().for_each(|name| s.join(Space::Channel, name.as_bytes()));
        for enough in [MATCHING, 5000] {
            let (mut listing, mut turns) = (Listing::default(), 1);
            while s.list(Space::Channel, Some(b"0*"), &mut listing, &mut enough.clone()) == Ok(false) {
                turns += 1;
            }
            assert!(listing.names.iter().map(|name| &**name).eq(all.iter().map(|name| name.as_bytes())));
            assert!(turns > if enough == MATCHING { 3 } else { 4 }, "{turns}");
        }
        assert_eq!(s.list(Space::Channel, Some(b"0*"), &mut Listing::default(), &mut 2), Err(TooCostly));
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
