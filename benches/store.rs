//! What the tier's store costs per call: hit, miss, ticket and fill, invalidate, mark and unmark.

use std::sync::atomic::{AtomicUsize, Ordering};

use divan::{Bencher, black_box, counter::ItemsCount};
use keyfence::tier::store::{Id, Store};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MEMORY: usize = 256 << 20;
const VARIANT: &[u8] = b"\x00\x00\x02\x17";
const REPLY: &[u8] = b"$64\r\n0123456789012345678901234567890123456789012345678901234567890123\r\n";

/// Calls per measurement, so that the timer and the thread's start do not count.
const CALLS: usize = 100_000;

fn main() {
    divan::main();
}

/// The nth key.
fn key(n: usize) -> [u8; 27] {
    let mut key = *b"tenant:session:000000000000";
    for (at, digit) in key[15..].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[n >> (44 - 4 * at) & 15];
    }
    key
}

fn id(key: &[u8]) -> Id<'_> {
    Id { upstream: 0, tenant: 1, key }
}

fn fill(store: &Store, key: &[u8]) -> bool {
    store.ticket(id(key)).is_some_and(|t| store.fill(t, id(key), VARIANT, black_box(REPLY), u64::MAX))
}

fn filled(count: usize) -> Store {
    let store = Store::new(MEMORY, 1 << 20);
    for n in 0..count {
        assert!(fill(&store, &key(n)));
    }
    store
}

/// Zipf's law with exponent 0.99 over `0..keys`, by the table of its sums.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(keys: usize) -> Self {
        let mut sum = 0.0;
        let add = |rank: usize| {
            sum += (rank as f64).powf(-0.99);
            sum
        };
        Self((1..=keys).map(add).collect())
    }

    fn draw(&self, rng: &mut fastrand::Rng) -> usize {
        let at = rng.f64() * self.0.last().copied().unwrap_or_default();
        self.0.partition_point(|sum| *sum < at)
    }
}

/// Each thread goes its own way through the keys that `draw` gives.
fn each(
    bencher: Bencher<'_, '_>,
    draw: impl Fn(&mut fastrand::Rng) -> usize + Sync,
    call: impl Fn(&[u8], &mut Vec<u8>) + Sync,
) {
    let threads = AtomicUsize::new(0);
    bencher
        .counter(ItemsCount::new(CALLS))
        .with_inputs(|| {
            let mut rng = fastrand::Rng::with_seed(threads.fetch_add(1, Ordering::Relaxed) as u64);
            // One after the other in memory, so that no time goes into fetching them.
            let order: Vec<[u8; 27]> = (0..CALLS).map(|_| key(draw(&mut rng))).collect();
            (order, Vec::with_capacity(64 << 10))
        })
        .bench_refs(|(order, out)| {
            for key in order.iter() {
                if out.len() > 32 << 10 {
                    out.clear();
                }
                call(black_box(key), out);
            }
        });
}

/// What the loop takes, to be taken off the others.
#[divan::bench]
fn nothing(bencher: Bencher<'_, '_>) {
    each(bencher, |rng| rng.usize(..1_000_000), |_, _| {});
}

#[divan::bench(args = [1, 10_000, 1_000_000], threads = [1, 2])]
fn hit(bencher: Bencher<'_, '_>, count: usize) {
    let store = filled(count);
    each(bencher, |rng| rng.usize(..count), |key, out| assert!(store.get(id(key), VARIANT, 1, out)));
}

#[divan::bench(args = [1_000_000], threads = [1, 2])]
fn hit_zipf(bencher: Bencher<'_, '_>, count: usize) {
    let (store, zipf) = (filled(count), Zipf::new(count));
    each(bencher, |rng| zipf.draw(rng), |key, out| assert!(store.get(id(key), VARIANT, 1, out)));
}

#[divan::bench(args = [10_000, 1_000_000], threads = [1, 2])]
fn miss(bencher: Bencher<'_, '_>, count: usize) {
    let store = filled(count);
    each(bencher, |rng| count + rng.usize(..count), |key, out| assert!(!store.get(id(key), VARIANT, 1, out)));
}

/// Of 10,000 all are kept and replaced; of 10 million most make room by an eviction.
#[divan::bench(args = [10_000, 10_000_000], threads = [1, 2])]
fn ticket_and_fill(bencher: Bencher<'_, '_>, count: usize) {
    let store = filled(count);
    each(
        bencher,
        |rng| rng.usize(..count),
        |key, _| {
            fill(&store, key);
        },
    );
}

#[divan::bench(args = [10_000, 1_000_000], threads = [1, 2])]
fn fill_and_invalidate(bencher: Bencher<'_, '_>, count: usize) {
    let store = filled(count);
    each(
        bencher,
        |rng| rng.usize(..count),
        |key, _| {
            fill(&store, key);
            store.invalidate(0, key);
        },
    );
}

#[divan::bench(args = [10_000, 1_000_000], threads = [1, 2])]
fn invalidate_what_is_not_kept(bencher: Bencher<'_, '_>, count: usize) {
    let store = filled(count);
    each(bencher, |rng| count + rng.usize(..count), |key, _| store.invalidate(0, key));
}

#[divan::bench(args = [10_000, 1_000_000], threads = [1, 2])]
fn mark_and_unmark(bencher: Bencher<'_, '_>, count: usize) {
    let store = filled(count);
    each(bencher, |rng| count + rng.usize(..count), |key, _| store.unmark(store.mark(0, key)));
}
