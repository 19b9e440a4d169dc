//! The longest that one call of the tier's store takes, while ten million keys go through 64 MiB of it: fills that evict, hits, invalidations,
//! clearings, sweeps. A call that is interrupted by another process counts with the processor time of the 64 calls it is among.
//!
//! ```text
//! cargo bench --bench pauses [-- keys]
//! ```
#![expect(clippy::print_stdout, reason = "it prints its figures")]

use std::{
    fs,
    time::{Duration, Instant},
};

use keyfence::tier::store::{Id, Store};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MEMORY: usize = 64 << 20;
const LARGEST: usize = 1 << 20;
const VARIANT: &[u8] = b"\x00\x00\x02\x17";
/// Calls of which the processor time is known.
const BATCH: usize = 64;
/// Cells looked at by one sweep, as the server does it.
const SWEPT: usize = 20_000;

#[derive(Clone, Copy)]
enum Call {
    Fill,
    FillLarge,
    Hit,
    Miss,
    Invalidate,
    Mark,
    Sweep,
    Stats,
    Clear,
}

const NAMES: [&str; 9] = [
    "ticket and fill, 64 bytes",
    "ticket and fill, 1 MiB",
    "hit",
    "miss",
    "invalidate",
    "mark and unmark",
    "sweep",
    "stats",
    "clear",
];

/// Processor time of this thread; none where the system does not tell.
fn processor() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

/// By kind: how often, the longest as it was, and the longest with interruptions taken off.
#[derive(Default)]
struct Longest {
    of: [(u64, Duration, Duration); NAMES.len()],
    batch: Vec<(Call, Duration)>,
    began: Option<Duration>,
}

impl Longest {
    fn time<T>(&mut self, call: Call, run: impl FnOnce() -> T) -> T {
        if self.batch.is_empty() {
            self.began = processor();
        }
        let start = Instant::now();
        let out = run();
        self.batch.push((call, start.elapsed()));
        if self.batch.len() == BATCH {
            self.settle();
        }
        out
    }

    fn settle(&mut self) {
        let spent = processor().zip(self.began).map(|(now, began)| now.saturating_sub(began));
        for (call, took) in self.batch.drain(..) {
            let (count, wall, own) = &mut self.of[call as usize];
            *count += 1;
            *wall = took.max(*wall);
            *own = took.min(spent.unwrap_or(took)).max(*own);
        }
    }
}

fn id(key: &[u8]) -> Id<'_> {
    Id { upstream: 0, tenant: 1, key }
}

fn fill(store: &Store, key: &[u8], reply: &[u8]) {
    if let Some(ticket) = store.ticket(id(key)) {
        let _ = store.fill(ticket, id(key), VARIANT, reply, u64::MAX);
    }
}

fn main() {
    let keys = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(10_000_000_u32);
    let store = Store::new(MEMORY, LARGEST);
    let (small, large) = (vec![b'v'; 71], vec![b'v'; LARGEST]);
    let mut out = Vec::with_capacity(2 * LARGEST);
    let mut longest = Longest::default();
    let name = |n: u32| format!("tenant:session:{n:012}").into_bytes();
    for n in 0..keys {
        let (key, late) = (name(n), name(n.saturating_sub(1000)));
        longest.time(Call::Miss, || store.get(id(&key), VARIANT, 1, &mut out));
        longest.time(Call::Fill, || fill(&store, &key, &small));
        out.clear();
        longest.time(Call::Hit, || store.get(id(&key), VARIANT, 1, &mut out));
        match n % 16 {
            1 => longest.time(Call::Invalidate, || store.invalidate(0, &late)),
            2 => longest.time(Call::Mark, || store.unmark(store.mark(0, &late))),
            _ => {}
        }
        if n % 1000 == 3 {
            longest.time(Call::FillLarge, || fill(&store, &late, &large));
        }
        if n % 10_000 == 4 {
            longest.time(Call::Sweep, || store.sweep(1, SWEPT));
        }
        if n % 100_000 == 5 {
            longest.time(Call::Stats, || store.stats(1));
        }
        if n % 1_000_000 == 6 {
            longest.time(Call::Clear, || store.clear_tenant(1));
        }
    }
    longest.settle();
    println!("{keys} keys of 64 bytes through {} MiB; the longest call, in microseconds", MEMORY >> 20);
    println!("{:28}{:>12}{:>12}{:>24}", "", "calls", "longest", "without interruptions");
    for (name, (count, wall, own)) in NAMES.iter().zip(longest.of) {
        println!("{name:28}{count:12}{:12}{:24}", wall.as_micros(), own.as_micros());
    }
}
