//! Changes of a shard, under its lock: entries come, go, and make room.

use super::{
    entry::{Fixed, Head, high, lengths, low},
    epochs::Epochs,
    ghost::Ghost,
    index::{Index, Probe},
    layout::Layout,
    pool::{NIL, cells_for, cells_of},
    queues::{Queues, Step},
    seq::Section,
    shard::Locked,
    stripes::Stripes,
};

/// Variants kept of one key; one more takes the place of the oldest.
const VARIANTS: u32 = 1024;

/// Steps of the policy one fill may take: a bound on the time under the lock. Past it the reply is not kept, and the next finds room made.
const STEPS: usize = 4096;

/// What only the holder of the lock sees.
#[derive(Debug)]
pub(super) struct State {
    pub(super) stripes: Stripes,
    pub(super) queues: Queues,
    ghost: Ghost,
    /// Which cells are heads: one bit each.
    heads: Box<[u64]>,
    free: u32,
    free_cells: usize,
    /// The first cell never used.
    fresh: u32,
    cells: usize,
    hand: usize,
    entries: usize,
}

/// The lock's holder within a section: see `seq`.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    pub(super) index: &'a Index,
    pub(super) state: &'a mut State,
    pub(super) _section: Section<'a>,
}

impl State {
    pub(super) fn new(layout: &Layout) -> Self {
        Self {
            stripes: Stripes::new(layout.stripes),
            queues: Queues::new(layout.slots),
            ghost: Ghost::new(layout.fingerprints),
            heads: bytemuck::zeroed_slice_box(layout.cells.div_ceil(64)),
            free: NIL,
            free_cells: 0,
            fresh: NIL + 1,
            cells: layout.cells,
            hand: 0,
            entries: 0,
        }
    }

    fn room(&self) -> usize {
        self.free_cells + self.cells.saturating_sub(self.fresh as usize)
    }

    fn set_head(&mut self, id: u32, head: bool) {
        if let Some(word) = self.heads.get_mut(id as usize / 64) {
            let bit = 1 << (id % 64);
            *word = if head { *word | bit } else { *word & !bit };
        }
    }
}

impl Locked<'_> {
    /// Keeps a reply, making room for it. False: it cannot be kept.
    pub(super) fn insert(&mut self, probe: &Probe<'_>, reply: &[u8], epoch: u64, expires: u64) -> bool {
        let (key, variant) = (probe.id.key, probe.variant);
        let Some(lengths) = lengths(key.len(), variant.len(), reply.len()) else { return false };
        let cells = cells_for(key.len(), variant.len(), reply.len());
        if cells > self.state.cells / 2 {
            return false;
        }
        let mut writer = self.writer();
        let Some(slot) = writer.state.queues.slot(probe.id.tenant) else {
            writer.make_slot();
            return false;
        };
        if let Some(old) = writer.index.find(probe) {
            writer.note_use(old.at);
            writer.remove(old.at);
        }
        if !writer.make_room(usize::from(slot), cells) {
            return false;
        }
        let (upstream, tenant) = (probe.id.upstream, probe.id.tenant);
        let id = writer.allocate(cells);
        let pool = &writer.index.pool;
        Head(pool.cell(id)).write(&Fixed { hashes: probe.hashes, expires, epoch, lengths, tenant, upstream, slot });
        let mut contents = pool.contents(id);
        for part in [key, variant, reply] {
            pool.write(&mut contents, part);
        }
        writer.enlist(id, key, upstream);
        writer.state.entries += 1;
        writer.index.grow(writer.state.entries);
        let window = writer.state.queues.window(usize::from(slot));
        let main = writer.state.ghost.take(probe.hashes, window);
        writer.state.queues.push(&writer.index.pool, id, cells, main);
        true
    }

    /// Looks at the next `budget` cells, and removes what is expired or of a cleared epoch. Returns how many entries it removed.
    pub(super) fn sweep(&mut self, now: u64, budget: usize, epochs: &Epochs) -> usize {
        let used = self.state.fresh as usize;
        let mut removed = 0;
        for _ in 0..budget.min(used) {
            let at = if self.state.hand + 1 < used { self.state.hand + 1 } else { 0 };
            self.state.hand = at;
            let Ok(id) = u32::try_from(at) else { break };
            if self.state.heads.get(at / 64).is_none_or(|word| word >> (at % 64) & 1 == 0) {
                continue;
            }
            let head = self.index.head(id);
            if now >= head.expires() || head.epoch() != epochs.of(head.upstream(), head.tenant()) {
                self.writer().remove(id);
                removed += 1;
            }
        }
        removed
    }
}

impl Writer<'_> {
    fn head(&self, id: u32) -> Head<'_> {
        self.index.head(id)
    }

    /// Removes all variants of the key whose first is given. What was in use is remembered, for it is likely to be asked for again.
    pub(super) fn remove_key(&mut self, first: u32) {
        let mut left = self.head(first).variants();
        while left > 0 {
            let last = self.head(first).variant_prev();
            self.note_use(last);
            self.remove(last);
            left -= 1;
        }
    }

    fn note_use(&mut self, id: u32) {
        let head = self.index.head(id);
        if head.is_main() || self.index.pool.heat(id) > 0 {
            self.state.ghost.insert(head.hashes());
        }
    }

    /// Removes one entry.
    pub(super) fn remove(&mut self, id: u32) {
        self.delist(id);
        self.state.entries = self.state.entries.saturating_sub(1);
        let cells = cells_of(&self.index.pool, id);
        self.state.queues.unlink(&self.index.pool, id, cells);
        self.free(id, cells);
    }

    fn evict(&mut self, id: u32, ghost: bool) {
        let head = self.index.head(id);
        if ghost {
            self.state.ghost.insert(head.hashes());
        }
        self.state.queues.evicted(head.slot());
        self.remove(id);
    }

    fn make_room(&mut self, slot: usize, cells: usize) -> bool {
        for _ in 0..STEPS {
            if self.state.room() >= cells {
                return true;
            }
            match self.state.queues.step(&self.index.pool, slot, cells) {
                Step::Evict { id, ghost } => self.evict(id, ghost),
                Step::Moved => {}
                Step::Empty => return false,
            }
        }
        false
    }

    /// Lets go of an entry of a tenant that holds little, so that another tenant finds its place.
    fn make_slot(&mut self) {
        if let Some(id) = self.state.queues.least() {
            self.evict(id, false);
        }
    }

    /// Takes a chain of cells; there is room.
    fn allocate(&mut self, cells: usize) -> u32 {
        let pool = &self.index.pool;
        let (mut first, mut last) = (NIL, NIL);
        for _ in 0..cells {
            let id = if self.state.free == NIL {
                let next = self.state.fresh.saturating_add(1);
                std::mem::replace(&mut self.state.fresh, next)
            } else {
                self.state.free_cells = self.state.free_cells.saturating_sub(1);
                let next = pool.next(self.state.free);
                std::mem::replace(&mut self.state.free, next)
            };
            if first == NIL {
                first = id;
            } else {
                pool.link(last, id);
            }
            last = id;
        }
        pool.link(last, NIL);
        self.state.set_head(first, true);
        first
    }

    fn free(&mut self, first: u32, cells: usize) {
        let pool = &self.index.pool;
        let mut last = first;
        for _ in 1..cells {
            last = pool.next(last);
        }
        pool.link(last, self.state.free);
        self.state.free = first;
        self.state.free_cells += cells;
        self.state.set_head(first, false);
    }

    /// Puts an entry into the index, and into the ring of its key's variants.
    fn enlist(&mut self, id: u32, key: &[u8], upstream: u16) {
        let hashes = self.head(id).hashes();
        for hash in [low(hashes), high(hashes)] {
            if let Some(last) = self.index.excess(hash) {
                self.evict(last, true);
            }
        }
        let first = self.index.first(upstream, key, low(hashes));
        if first == NIL {
            let head = self.head(id);
            head.set_first();
            head.set_variants(1);
            head.set_variant_next(id);
            head.set_variant_prev(id);
            self.index.link(id);
            return;
        }
        if self.head(first).variants() >= VARIANTS {
            let oldest = self.head(first).variant_prev();
            self.evict(oldest, true);
        }
        let second = self.head(first).variant_next();
        self.head(id).set_variant_next(second);
        self.head(id).set_variant_prev(first);
        self.head(second).set_variant_prev(id);
        self.head(first).set_variant_next(id);
        self.head(first).set_variants(self.head(first).variants().saturating_add(1));
        self.index.link(id);
    }

    /// Takes an entry out of the index and the ring. A first variant hands its place to the next.
    fn delist(&self, id: u32) {
        let head = self.head(id);
        let (next, prev) = (head.variant_next(), head.variant_prev());
        if !head.is_first() {
            self.index.unlink(id);
            self.head(prev).set_variant_next(next);
            self.head(next).set_variant_prev(prev);
            let first = self.index.first_of(id);
            self.head(first).set_variants(self.head(first).variants().saturating_sub(1));
            return;
        }
        self.index.unlink(id);
        if next == id {
            return;
        }
        let variants = head.variants();
        self.head(prev).set_variant_next(next);
        self.head(next).set_variant_prev(prev);
        self.index.unlink(next);
        self.head(next).set_first();
        self.head(next).set_variants(variants.saturating_sub(1));
        self.index.link(next);
    }
}
