//! Random calls against a plain model: a hit is always what the model has; with room for everything, what the model has is always a hit.

use std::collections::HashMap;

use keyfence::tier::store::{Id, Mark, Store, Ticket};

const MIB: usize = 1 << 20;
const LITTLE: usize = 24 << 10;

type Name = (u16, u32, Vec<u8>);

struct Model {
    store: Store,
    kept: HashMap<(Name, Vec<u8>), (Vec<u8>, u64)>,
    writers: HashMap<(u16, Vec<u8>), Vec<Mark>>,
    tickets: Vec<(Name, Ticket, bool)>,
    now: u64,
    hits: usize,
    /// Whether nothing is ever evicted, so that a miss has to be explained.
    roomy: bool,
}

fn id(name: &Name) -> Id<'_> {
    Id { upstream: name.0, tenant: name.1, key: &name.2 }
}

impl Model {
    fn new(max_memory: usize, roomy: bool) -> Self {
        let store = Store::new(max_memory, 8192);
        Self { store, kept: HashMap::new(), writers: HashMap::new(), tickets: Vec::new(), now: 0, hits: 0, roomy }
    }

    fn forget(&mut self, gone: impl Fn(&Name) -> bool) {
        self.kept.retain(|(name, _), _| !gone(name));
        for (name, _, valid) in &mut self.tickets {
            *valid &= !gone(name);
        }
    }

    fn step(&mut self, rng: &mut fastrand::Rng) {
        let name = (rng.u16(..2), rng.u32(..3), vec![b'k'; 6 * rng.usize(..8)]);
        let key = (name.0, name.2.clone());
        let variant = vec![b'v'; rng.usize(..if name.2.len() == 12 { 300 } else { 2 })];
        match rng.u32(..100) {
            0..40 => {
                let mut out = Vec::new();
                let hit = self.store.get(id(&name), &variant, self.now, &mut out);
                let kept = self.kept.get(&(name, variant)).filter(|(_, expires)| self.now < *expires);
                match kept {
                    Some((reply, _)) if hit => {
                        self.hits += 1;
                        assert_eq!(out[..], reply[..]);
                    }
                    Some(_) => assert!(!self.roomy, "lost"),
                    None => assert!(!hit, "served what is not valid"),
                }
            }
            40..60 => {
                let ticket = self.store.ticket(id(&name));
                let writing = self.writers.get(&key).is_some_and(|marks| !marks.is_empty());
                assert!(!writing || ticket.is_none(), "a ticket while a write is under way");
                self.tickets.extend(ticket.map(|t| (name, t, true)));
            }
            60..85 if !self.tickets.is_empty() => {
                let (name, ticket, valid) = self.tickets.swap_remove(rng.usize(..self.tickets.len()));
                let again = rng.u8(..8) > 0;
                let len = if rng.u8(..20) == 0 { rng.usize(..9000) } else { rng.usize(..200) };
                let fresh = || (0..len).map(|_| rng.u8(..)).collect();
                // Most reads of what has not changed find what was found before.
                let known = self.kept.get(&(name.clone(), variant.clone())).map(|(reply, _)| reply.clone());
                let reply: Vec<u8> = known.filter(|_| again).unwrap_or_else(fresh);
                let len = reply.len();
                let expires = self.now + rng.u64(1..2000);
                assert!(valid || !self.store.holds(&ticket, id(&name)), "a void ticket holds");
                let held = self.store.holds(&ticket, id(&name));
                let filled = self.store.fill(ticket, id(&name), &variant, &reply, expires);
                assert!(!filled || valid, "a void ticket");
                assert!(!filled || len <= 8192);
                if filled {
                    self.kept.insert((name, variant), (reply, expires));
                } else if held && len <= 8192 && self.kept.contains_key(&(name.clone(), variant)) {
                    // It differs from what was kept.
                    assert!(!self.store.holds(&ticket, id(&name)));
                    self.forget(|n| n.0 == name.0 && n.2 == name.2);
                }
            }
            85..87 => {
                self.store.invalidate(key.0, &key.1);
                self.forget(|n| n.0 == key.0 && n.2 == key.1);
            }
            87..88 => {
                let mark = self.store.mark(key.0, &key.1);
                self.forget(|n| n.0 == key.0 && n.2 == key.1);
                self.writers.entry(key).or_default().push(mark);
            }
            88..92 => {
                if let Some(mark) = self.writers.get_mut(&key).and_then(Vec::pop) {
                    self.store.unmark(mark);
                }
            }
            92 => self.now += 1,
            93 => {
                self.store.sweep(self.now, 5000);
            }
            99 if rng.u8(..20) == 0 => {
                if rng.bool() {
                    self.store.clear_tenant(name.1);
                    self.forget(|n| n.1 == name.1);
                } else {
                    self.store.clear_upstream(name.0);
                    self.forget(|n| n.0 == name.0);
                }
            }
            _ => {}
        }
    }

    /// Everything is given back when everything is cleared.
    fn end(self) {
        for tenant in 0..3 {
            self.store.clear_tenant(tenant);
        }
        for _ in 0..1000 {
            self.store.sweep(self.now, 100_000);
        }
        for tenant in 0..3 {
            let stats = self.store.stats(tenant);
            assert_eq!((stats.entries, stats.bytes), (0, 0));
        }
        if !self.roomy {
            let fresh = Store::new(LITTLE, 8192);
            assert_eq!(how_many_fit(&self.store), how_many_fit(&fresh), "no cell is lost on the way");
        }
    }
}

fn how_many_fit(store: &Store) -> u64 {
    for key in 0..1000_u32 {
        let id = Id { upstream: 0, tenant: 9, key: &key.to_be_bytes() };
        if let Some(ticket) = store.ticket(id) {
            let _ = store.fill(ticket, id, b"v", b"reply", u64::MAX);
        }
    }
    store.stats(9).entries
}

#[test]
fn with_room_for_all_it_keeps_exactly_what_is_valid() {
    for seed in 0..8 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut model = Model::new(32 * MIB, true);
        for _ in 0..60_000 {
            model.step(&mut rng);
        }
        assert!(model.hits > 2000, "the walk finds things: {}", model.hits);
        model.end();
    }
}

#[test]
fn with_little_room_it_never_serves_what_is_not_valid() {
    for seed in 0..8 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut model = Model::new(LITTLE, false);
        for _ in 0..60_000 {
            model.step(&mut rng);
        }
        let evictions: u64 = (0..3).map(|t| model.store.stats(t).evictions).sum();
        assert!(evictions > 300 && model.hits > 1000, "{evictions} evictions, {} hits", model.hits);
        model.end();
    }
}
