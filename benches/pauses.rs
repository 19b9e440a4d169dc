//! The longest that one call of the tier's store takes, while ten million keys go through 64 MiB of it: fills that evict, hits, invalidations,
//! clearings, sweeps. It is processor time, so that the machine's other work is not in it; Linux.
//!
//! ```text
//! cargo bench --bench pauses [-- keys]
//! ```
#![expect(clippy::print_stdout, reason = "it prints its figures")]

use keyfence::tier::store::{Id, Store};
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MEMORY: usize = 64 << 20;
const LARGEST: usize = 1 << 20;
const VARIANT: &[u8] = b"\x00\x00\x02\x17";
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

/// Processor time of this thread, in nanoseconds.
fn processor() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or_default()
}

/// By kind: how often, and the longest, in nanoseconds.
#[derive(Default)]
struct Longest([(u64, u64); NAMES.len()]);

impl Longest {
    fn time<T>(&mut self, call: Call, run: impl FnOnce() -> T) -> T {
        let start = processor();
        let out = run();
        let (count, longest) = &mut self.0[call as usize];
        *count += 1;
        *longest = (processor() - start).max(*longest);
        out
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
    println!("{keys} keys of 64 bytes through {} MiB; the longest call, in microseconds", MEMORY >> 20);
    for (name, (count, longest)) in NAMES.iter().zip(longest.0) {
        println!("{name:28}{count:12}{:12.1}", longest as f64 / 1000.0);
    }
}
