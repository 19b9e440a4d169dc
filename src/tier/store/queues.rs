//! The queues of a shard, two for each tenant, and who has to give room.
//!
//! Each tenant has S3-FIFO queues of its own (Yang et al., SOSP 2023): an entry enters the small one, and the main one if it was hit
//! while there or let go only lately. Room is taken from the tenant that holds most in the shard. Tenants under an equal share are never
//! that one while another is over it, so one tenant's scan ends in its own queues; and a share that nobody wants is anybody's.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::{
    entry::Head,
    pool::{NIL, Pool},
};

/// A slot's share of the memory, in bytes, its place in the map included.
pub(super) const SLOT: usize = size_of::<Tenant>() + 16;

/// How many tenants are looked at for the one that holds most, besides the one found last and the one that asks.
const SAMPLE: usize = 6;

/// Hits in the small queue that let an entry into the main one. The paper takes two; one keeps as much of Zipf's law, and more beside
/// scans.
const PROMOTED: u32 = 1;

/// A queue: entries come in at `first` and leave at `last`.
#[derive(Debug, Default)]
struct Queue {
    first: u32,
    last: u32,
    cells: usize,
    entries: usize,
}

/// One tenant's part in the shard.
#[derive(Debug, Default)]
pub(super) struct Tenant {
    number: u32,
    small: Queue,
    main: Queue,
    pub(super) evictions: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queues {
    tenants: Vec<Tenant>,
    slots: HashMap<u32, u16, FixedState>,
    limit: usize,
    largest: usize,
    hand: usize,
}

/// What the policy wants done next to make room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This entry has to go; `ghost`: and should be remembered.
    Evict { id: u32, ghost: bool },
    /// An entry was given another turn: ask again.
    Moved,
    /// There is nothing to let go.
    Empty,
}

impl Queue {
    fn push(&mut self, pool: &Pool, id: u32, cells: usize) {
        let head = Head(pool.cell(id));
        head.set_queue_next(self.first);
        head.set_queue_prev(NIL);
        if self.first == NIL {
            self.last = id;
        } else {
            Head(pool.cell(self.first)).set_queue_prev(id);
        }
        self.first = id;
        self.cells += cells;
        self.entries += 1;
    }

    fn unlink(&mut self, pool: &Pool, id: u32, cells: usize) {
        let head = Head(pool.cell(id));
        let (next, prev) = (head.queue_next(), head.queue_prev());
        if prev == NIL {
            self.first = next;
        } else {
            Head(pool.cell(prev)).set_queue_next(next);
        }
        if next == NIL {
            self.last = prev;
        } else {
            Head(pool.cell(next)).set_queue_prev(prev);
        }
        self.cells = self.cells.saturating_sub(cells);
        self.entries = self.entries.saturating_sub(1);
    }
}

impl Tenant {
    pub(super) fn cells(&self) -> usize {
        self.small.cells + self.main.cells
    }

    pub(super) fn entries(&self) -> usize {
        self.small.entries + self.main.entries
    }
}

impl Queues {
    /// For at most `limit` tenants at once.
    pub(super) fn new(limit: usize) -> Self {
        let slots = HashMap::with_capacity_and_hasher(limit, FixedState::default());
        Self { tenants: Vec::with_capacity(limit), slots, limit, largest: 0, hand: 0 }
    }

    pub(super) fn tenant(&self, number: u32) -> Option<&Tenant> {
        self.tenants.get(usize::from(*self.slots.get(&number)?))
    }

    /// The tenant's slot, made or taken over from one that holds nothing; None when every slot holds something.
    pub(super) fn slot(&mut self, number: u32) -> Option<u16> {
        if let Some(slot) = self.slots.get(&number) {
            return Some(*slot);
        }
        let fresh = Tenant { number, ..Tenant::default() };
        let at = if self.tenants.len() < self.limit {
            self.tenants.push(fresh);
            self.tenants.len() - 1
        } else {
            let at = self.tenants.iter().position(|t| t.entries() == 0)?;
            let place = self.tenants.get_mut(at)?;
            self.slots.remove(&place.number);
            *place = fresh;
            at
        };
        let slot = u16::try_from(at).ok()?;
        self.slots.insert(number, slot);
        Some(slot)
    }

    /// How many entries the tenant's main queue holds: the length of its memory of what it let go.
    pub(super) fn window(&self, slot: usize) -> usize {
        self.tenants.get(slot).map_or(0, |t| t.main.entries)
    }

    /// Puts an entry, with header and slot written, into its tenant's main or small queue.
    pub(super) fn push(&mut self, pool: &Pool, id: u32, cells: usize, main: bool) {
        let head = Head(pool.cell(id));
        let slot = head.slot();
        let Some(tenant) = self.tenants.get_mut(slot) else { return };
        pool.set_heat(id, 0);
        if main {
            head.set_main();
            tenant.main.push(pool, id, cells);
        } else {
            tenant.small.push(pool, id, cells);
        }
        self.contend(slot);
    }

    /// Takes an entry out of its queue.
    pub(super) fn unlink(&mut self, pool: &Pool, id: u32, cells: usize) {
        let head = Head(pool.cell(id));
        let Some(tenant) = self.tenants.get_mut(head.slot()) else { return };
        let queue = if head.is_main() { &mut tenant.main } else { &mut tenant.small };
        queue.unlink(pool, id, cells);
    }

    /// Counts an eviction.
    pub(super) fn evicted(&mut self, slot: usize) {
        if let Some(tenant) = self.tenants.get_mut(slot) {
            tenant.evictions = tenant.evictions.saturating_add(1);
        }
    }

    /// An entry of the tenant that holds least, of a few that hold anything.
    pub(super) fn least(&mut self) -> Option<u32> {
        let start = self.hand;
        self.hand = (self.hand + SAMPLE) % self.tenants.len().max(1);
        let few = self.tenants.iter().cycle().skip(start).take(SAMPLE.min(self.tenants.len()));
        let tenant = few.filter(|t| t.entries() > 0).min_by_key(|t| t.cells())?;
        Some(if tenant.small.last == NIL { tenant.main.last } else { tenant.small.last })
    }

    fn held(&self, slot: usize) -> usize {
        self.tenants.get(slot).map_or(0, Tenant::cells)
    }

    fn contend(&mut self, slot: usize) {
        if self.held(slot) > self.held(self.largest) {
            self.largest = slot;
        }
    }

    /// One step towards room. `asking` is the slot that wants it, for `need` cells.
    pub(super) fn step(&mut self, pool: &Pool, asking: usize, need: usize) -> Step {
        for _ in 0..SAMPLE.min(self.tenants.len()) {
            self.hand = (self.hand + 1) % self.tenants.len();
            self.contend(self.hand);
        }
        let slot = if self.held(asking) + need > self.held(self.largest) && self.held(asking) > 0 {
            asking
        } else {
            self.largest
        };
        let Some(tenant) = self.tenants.get_mut(slot) else { return Step::Empty };
        let from_small = tenant.main.last == NIL || tenant.small.cells * 10 >= tenant.cells();
        let id = if from_small { tenant.small.last } else { tenant.main.last };
        if id == NIL {
            return Step::Empty;
        }
        let (heat, cells) = (pool.heat(id), super::pool::cells_of(pool, id));
        if from_small {
            if heat < PROMOTED {
                return Step::Evict { id, ghost: true };
            }
            tenant.small.unlink(pool, id, cells);
            Head(pool.cell(id)).set_main();
            pool.set_heat(id, 0);
        } else {
            if heat == 0 {
                return Step::Evict { id, ghost: false };
            }
            tenant.main.unlink(pool, id, cells);
            pool.set_heat(id, heat - 1);
        }
        tenant.main.push(pool, id, cells);
        Step::Moved
    }
}
