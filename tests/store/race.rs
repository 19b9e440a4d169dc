//! Threads that read through the store, write through it, write behind its back and invalidate, and clear: no reply served is older than
//! the last write that was known to be done when the read began, and none is a mixture.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use keyfence::tier::store::{Id, Store};

const KEYS: usize = 6;

const SHORT: usize = 60;

/// A reply this many times its number is so long that its copying is overtaken.
const LONG: usize = 1500;

const ROUNDS: usize = 40_000;

/// An upstream whose values are the numbers of their writes.
#[derive(Default)]
struct Key {
    name: Vec<u8>,
    /// The value upstream.
    written: AtomicU64,
    /// The last write whose end somebody was told of: no read that begins now may see an older one.
    acknowledged: AtomicU64,
}

struct World {
    store: Store,
    keys: Vec<Key>,
    longest: usize,
    start: Barrier,
}

impl World {
    fn new(max_memory: usize, longest: usize, threads: usize) -> Self {
        let keys = (0..KEYS).map(|n| Key { name: vec![b'k'; 1 + 9 * n], ..Key::default() }).collect();
        Self { store: Store::new(max_memory, 1 << 16), keys, longest, start: Barrier::new(threads) }
    }
}

fn id(key: &Key) -> Id<'_> {
    Id { upstream: 3, tenant: 7, key: &key.name }
}

/// So that the others get between two steps, on few cores too.
fn dither(rng: &mut fastrand::Rng) {
    match rng.u8(..16) {
        0 => thread::yield_now(),
        1..6 => (0..rng.u32(..300)).for_each(|_| std::hint::spin_loop()),
        _ => {}
    }
}

/// Returns how many reads were hits.
fn read(world: &World, seed: u64) -> usize {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut out = Vec::new();
    let mut hits = 0;
    world.start.wait();
    for _ in 0..ROUNDS {
        let key = &world.keys[rng.usize(..KEYS)];
        let variant = vec![b'v'; rng.usize(..3)];
        out.clear();
        let floor = key.acknowledged.load(SeqCst);
        if world.store.get(id(key), &variant, 0, &mut out) {
            let (words, rest) = out.as_chunks();
            let numbers: Vec<u64> = words.iter().map(|w| u64::from_le_bytes(*w)).collect();
            assert!(rest.is_empty() && numbers.iter().all(|n| *n == numbers[0]), "a mixture: {numbers:?}");
            assert!(numbers[0] >= floor, "{} served, {floor} was acknowledged", numbers[0]);
            hits += 1;
            continue;
        }
        let Some(ticket) = world.store.ticket(id(key)) else { continue };
        dither(&mut rng);
        let value = key.written.load(SeqCst);
        dither(&mut rng);
        let reply = value.to_le_bytes().repeat(rng.usize(1..world.longest));
        let _ = world.store.fill(ticket, id(key), &variant, &reply, u64::MAX);
    }
    hits
}

/// A write through the proxy: marked while it is under way.
fn write_through(world: &World, key: &Key, rng: &mut fastrand::Rng) {
    let mark = world.store.mark(3, &key.name);
    dither(rng);
    let value = key.written.fetch_add(1, SeqCst) + 1;
    dither(rng);
    world.store.unmark(mark);
    key.acknowledged.fetch_max(value, SeqCst);
}

/// A write by somebody else: the upstream tells of it afterwards.
fn write_behind(world: &World, key: &Key, rng: &mut fastrand::Rng) {
    let value = key.written.fetch_add(1, SeqCst) + 1;
    dither(rng);
    world.store.invalidate(3, &key.name);
    key.acknowledged.fetch_max(value, SeqCst);
}

/// Everything changes, and nothing is told but that.
fn flush(world: &World, rng: &mut fastrand::Rng, clear: impl Fn(&Store)) {
    let values: Vec<u64> = world.keys.iter().map(|k| k.written.fetch_add(1, SeqCst) + 1).collect();
    dither(rng);
    clear(&world.store);
    for (key, value) in world.keys.iter().zip(values) {
        key.acknowledged.fetch_max(value, SeqCst);
    }
}

fn race(max_memory: usize, longest: usize, write: impl Fn(&World, &Key, &mut fastrand::Rng) + Sync) {
    let world = World::new(max_memory, longest, 4);
    let hits: usize = thread::scope(|scope| {
        let world = &world;
        let write = &write;
        let readers: Vec<_> = (0..2).map(|n| scope.spawn(move || read(world, n))).collect();
        for n in 0..2 {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(100 + n);
                world.start.wait();
                for _ in 0..ROUNDS / 4 {
                    write(world, &world.keys[rng.usize(..KEYS)], &mut rng);
                    dither(&mut rng);
                    dither(&mut rng);
                }
            });
        }
        readers.into_iter().map(|r| r.join().expect("a reader that saw only what is valid")).sum()
    });
    assert!(hits > ROUNDS / 50, "it is no proof if it hardly ever hits: {hits}");
}

const ROOMY: usize = 16 << 20;

/// So little that entries are evicted and their cells used anew all the time.
const NARROW: usize = 12 << 10;

#[test]
fn no_stale_reply_past_a_write_through_the_store() {
    race(ROOMY, SHORT, write_through);
    race(NARROW, SHORT, write_through);
}

#[test]
fn no_stale_reply_past_an_invalidation() {
    race(ROOMY, SHORT, write_behind);
    race(NARROW, SHORT, write_behind);
}

#[test]
fn no_stale_reply_past_a_clearing_of_the_upstream() {
    race(ROOMY, SHORT, |world, _, rng| flush(world, rng, |s| s.clear_upstream(3)));
}

#[test]
fn no_stale_reply_past_a_clearing_of_the_tenant() {
    race(ROOMY, SHORT, |world, _, rng| flush(world, rng, |s| s.clear_tenant(7)));
}

#[test]
fn no_stale_reply_whatever_the_mix() {
    race(NARROW, SHORT, |world, key, rng| match rng.u8(..10) {
        0..5 => write_through(world, key, rng),
        5..9 => write_behind(world, key, rng),
        _ => flush(world, rng, |s| s.clear_upstream(3)),
    });
}

#[test]
fn no_mixture_of_long_replies() {
    race(4 * 8 * LONG, LONG, write_behind);
}
