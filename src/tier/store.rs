//! The tier's store: raw replies by (upstream, key, variant), bounded in memory, never older than what the store was told.
//!
//! It knows nothing of sockets, commands or tenants' names, and has no clock: the caller gives the time. A variant is whatever bytes tell
//! the replies of one key apart (database, protocol version, command, arguments).
//!
//! ```text
//! Store ─ hash of (upstream, key) ─▶ Shard ─┬─ Seq      readers pass with no lock: seq
//!                                           ├─ Index    chains, rings of variants, cells: index, entry, pool
//!                                           └─ State    under the lock: stripes, queues, ghost, free cells: write
//! Epochs: of upstreams and tenants
//! ```
//!
//! # Why no reply is stale
//!
//! Whoever changes a key says so by [`Store::invalidate`] (the change is done), by [`Store::mark`] and [`Store::unmark`] around it, or by
//! clearing its upstream or tenant (the change is done). A reader asks for a ticket, then asks the upstream, then fills. For each change:
//!
//! - **Told before the ticket was given.** The upstream was asked after the ticket, so after the change: the reply has it. Between `mark`
//!   and `unmark`, where this would not follow, there is no ticket.
//! - **Told between ticket and fill.** `invalidate` and `mark` move the version of the key's stripe, `fill` compares it, both under the
//!   lock of the key's shard: the fill is refused. `mark` moves it, and not `unmark` alone, so that a reply asked for before the write and
//!   filled during it is refused too. A clearing moves an epoch without any lock, so `fill` may miss it; but the entry takes the ticket's
//!   epoch along, not the one of the fill, and a hit compares that: the entry was never valid.
//! - **Told after the fill.** `invalidate` and `mark` drop all variants of the key under that same lock. The epoch of a clearing makes the
//!   entry void at once.
//!
//! Two reads of one reply may overtake each other: both tickets hold while the change between them has not been told. Which of them is the later
//! one nobody can say, since they went by different connections. So `fill` keeps neither of two replies that differ.
//!
//! A hit that began after one of these calls returned sees its effect (`seq` says why), so no hit is older than the last change that was
//! told when it began. A call concurrent with a hit may come before or after it, as with any store.
//!
//! Stripes and epochs are shared by keys, tenants and upstreams that fall together. This voids more than needed, never less. Versions and
//! epochs are 64 bits wide and only grow, so none comes back.
//!
//! # Bounds
//!
//! Everything is reserved by [`Store::new`] within `max_memory`, and no call allocates but to make room in the caller's buffer. A call
//! holds one shard's lock at a time; what it does there is bounded by the longest reply (a fill), 1024 variants (an invalidation), its
//! budget (a sweep), or 4096 steps of the policy.

use std::{fmt, hash::BuildHasher as _};

use foldhash::quality::RandomState;

mod entry;
mod epochs;
mod ghost;
mod index;
mod layout;
mod pool;
mod queues;
mod seq;
mod shard;
mod stripes;
mod write;

use epochs::Epochs;
use index::Probe;
use layout::Layout;
use shard::{Read, Shard};

/// Which key: the upstream's number, the tenant's number (for fair share and clearing), and the key as it stands upstream.
#[derive(Debug, Clone, Copy)]
pub struct Id<'a> {
    /// The upstream's number.
    pub upstream: u16,
    /// The tenant's number.
    pub tenant: u32,
    /// The key with its prefix.
    pub key: &'a [u8],
}

/// Leave to keep replies of one key, given before the upstream is asked; void once anything may have changed the key.
#[derive(Debug, Clone, Copy)]
#[must_use = "without its ticket a reply cannot be kept"]
pub struct Ticket {
    hash: u64,
    version: u64,
    epoch: u64,
}

/// A write under way; given back to [`Store::unmark`], once.
#[derive(Debug, Clone, Copy)]
#[must_use = "its key is neither served nor kept until the mark is given back"]
pub struct Mark {
    hash: u64,
}

/// The hash of a variant of a tenant's, for those who look for it with several keys.
#[derive(Debug, Clone, Copy)]
pub struct VariantHash(u64);

/// What the store holds of one tenant, and what it let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TenantStats {
    /// Replies kept now (those of a cleared epoch or past their time are counted until they are taken back).
    pub entries: u64,
    /// Bytes they take, bookkeeping included.
    pub bytes: u64,
    /// Replies let go for want of room since the start, or since the tenant last had anything, if more tenants than a shard has slots
    /// take turns.
    pub evictions: u64,
}

/// The store; shared by all workers.
pub struct Store {
    hasher: RandomState,
    shards: Box<[Shard]>,
    epochs: Epochs,
    max_value: usize,
}

impl Store {
    /// Keeps within `max_memory` bytes, keys, values and bookkeeping together, and keeps no reply longer than `max_value` bytes (nor one
    /// that would take more than half a shard, or whose key or variant is longer than 65,535 bytes). The memory is reserved now and
    /// resident as it is used; once used it stays with the store.
    #[must_use]
    pub fn new(max_memory: usize, max_value: usize) -> Self {
        let layout = Layout::new(max_memory, max_value);
        Self {
            hasher: RandomState::default(),
            shards: (0..layout.shards).map(|_| Shard::new(&layout)).collect(),
            epochs: Epochs::new(),
            max_value,
        }
    }

    fn hash(&self, upstream: u16, key: &[u8]) -> u64 {
        self.hasher.hash_one((upstream, key))
    }

    /// The same for the tenant's number and the variant as long as the store is.
    #[must_use]
    pub fn variant_hash(&self, tenant: u32, variant: &[u8]) -> VariantHash {
        VariantHash(self.hasher.hash_one((tenant, variant)))
    }

    fn probe<'a>(&self, id: Id<'a>, variant: &'a [u8], hash: u64) -> Probe<'a> {
        Probe::new(id, variant, hash, self.variant_hash(id.tenant, variant).0)
    }

    /// There is at least one shard, and their number is a power of two.
    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[(hash >> 48) as usize & (self.shards.len() - 1)]
    }

    /// Appends the reply kept for `variant` of the key to `out`; false, and `out` as it was, when nothing valid is kept.
    /// `now`: milliseconds of a monotonic clock. Takes no lock unless it meets a write to the shard again and again, or finds an entry
    /// that is over, which it removes.
    pub fn get(&self, id: Id<'_>, variant: &[u8], now: u64, out: &mut Vec<u8>) -> bool {
        self.get_hashed(id, (variant, self.variant_hash(id.tenant, variant)), now, out)
    }

    /// As [`Self::get`], with the variant's hash at hand; with another's nothing is found.
    pub fn get_hashed(&self, id: Id<'_>, (variant, known): (&[u8], VariantHash), now: u64, out: &mut Vec<u8>) -> bool {
        let hash = self.hash(id.upstream, id.key);
        let (probe, shard) = (Probe::new(id, variant, hash, known.0), self.shard(hash));
        let epoch = self.epochs.of(id.upstream, id.tenant);
        match shard.read(&probe, epoch, now, out) {
            Read::Hit => true,
            Read::Miss => false,
            Read::Over => {
                shard.lock().drop_over(&probe, epoch, now);
                false
            }
        }
    }

    /// Before the upstream is asked. None while a write of the key is under way.
    pub fn ticket(&self, id: Id<'_>) -> Option<Ticket> {
        let hash = self.hash(id.upstream, id.key);
        let epoch = self.epochs.of(id.upstream, id.tenant);
        let version = self.shard(hash).lock().state.stripes.version(hash)?;
        Some(Ticket { hash, version, epoch })
    }

    /// Whether a ticket still stands: nothing may have changed the key since it was given, and no write of it is under way.
    pub fn holds(&self, ticket: &Ticket, id: Id<'_>) -> bool {
        let hash = self.hash(id.upstream, id.key);
        ticket.hash == hash
            && ticket.epoch == self.epochs.of(id.upstream, id.tenant)
            && self.shard(hash).lock().state.stripes.version(hash) == Some(ticket.version)
    }

    /// Keeps a reply until `expires` (milliseconds of the caller's clock; `u64::MAX` for ever) if the ticket still holds, in place of
    /// the same reply kept for this variant. False: not kept. When another reply is kept for it, a change between the two is yet to be
    /// told: the key is invalidated.
    pub fn fill(&self, ticket: Ticket, id: Id<'_>, variant: &[u8], reply: &[u8], expires: u64) -> bool {
        let hash = self.hash(id.upstream, id.key);
        if ticket.hash != hash || reply.len() > self.max_value || ticket.epoch != self.epochs.of(id.upstream, id.tenant)
        {
            return false;
        }
        let probe = self.probe(id, variant, hash);
        let mut shard = self.shard(hash).lock();
        if shard.state.stripes.version(hash) != Some(ticket.version) {
            return false;
        }
        if shard.differs(&probe, reply, ticket.epoch) {
            shard.state.stripes.void(hash);
            shard.drop_key(id.upstream, id.key, hash);
            return false;
        }
        shard.insert(&probe, reply, ticket.epoch, expires)
    }

    /// A client is given this reply, which the upstream has just made. When another one is kept for this variant, a change is yet to be told, and
    /// who has seen the newer one must not be given the older: the key is invalidated.
    pub fn compare(&self, id: Id<'_>, variant: &[u8], reply: &[u8]) {
        let hash = self.hash(id.upstream, id.key);
        let probe = self.probe(id, variant, hash);
        let mut shard = self.shard(hash).lock();
        if shard.differs(&probe, reply, self.epochs.of(id.upstream, id.tenant)) {
            shard.state.stripes.void(hash);
            shard.drop_key(id.upstream, id.key, hash);
        }
    }

    /// Drops every variant of the key and voids its tickets.
    pub fn invalidate(&self, upstream: u16, key: &[u8]) {
        let hash = self.hash(upstream, key);
        let mut shard = self.shard(hash).lock();
        shard.state.stripes.void(hash);
        shard.drop_key(upstream, key, hash);
    }

    /// A write of the key is about to be sent: drops every variant of the key and voids its tickets. There is no hit and no ticket until
    /// each mark of the key was given back.
    pub fn mark(&self, upstream: u16, key: &[u8]) -> Mark {
        let hash = self.hash(upstream, key);
        let mut shard = self.shard(hash).lock();
        shard.state.stripes.begin_write(hash);
        shard.drop_key(upstream, key, hash);
        Mark { hash }
    }

    /// The write was answered, or its connection is gone. A write that was not answered may still be carried out: that change has to be
    /// told like any that others make. To give a mark back twice would end another's.
    pub fn unmark(&self, mark: Mark) {
        self.shard(mark.hash).lock().state.stripes.end_write(mark.hash);
    }

    /// Voids everything of an upstream, tickets too, in constant time; [`Self::sweep`] or need takes the memory back.
    pub fn clear_upstream(&self, upstream: u16) {
        self.epochs.clear_upstream(upstream);
    }

    /// Voids everything of a tenant, tickets too, in constant time.
    pub fn clear_tenant(&self, tenant: u32) {
        self.epochs.clear_tenant(tenant);
    }

    /// What is held of a tenant; walks all shards, for metrics.
    #[must_use]
    pub fn stats(&self, tenant: u32) -> TenantStats {
        let mut sum = TenantStats::default();
        for shard in &self.shards {
            let part = shard.lock().stats(tenant);
            sum.entries += part.entries;
            sum.bytes += part.bytes;
            sum.evictions += part.evictions;
        }
        sum
    }

    /// Takes back the room of expired and cleared replies; looks at about `budget` cells of 64 bytes, in turn. Returns how many replies it
    /// took back.
    pub fn sweep(&self, now: u64, budget: usize) -> usize {
        let part = budget.div_ceil(self.shards.len());
        self.shards.iter().map(|s| s.lock().sweep(now, part, &self.epochs)).sum()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("shards", &self.shards.len())
            .field("max_value", &self.max_value)
            .finish_non_exhaustive()
    }
}

/// A hash as an index below `below`, with no division.
fn reduce(hash: u32, below: usize) -> usize {
    usize::try_from((u64::from(hash).wrapping_mul(below as u64)) >> 32).unwrap_or(0)
}
