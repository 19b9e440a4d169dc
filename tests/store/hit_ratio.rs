//! The store's hit ratio against a plain S3-FIFO of as many entries, in one piece and one thread.

use std::collections::{HashMap, HashSet, VecDeque};

use keyfence::tier::store::{Id, Store};

/// S3-FIFO as published (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1).
struct Reference {
    capacity: usize,
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    ghost: VecDeque<u64>,
    ghosts: HashSet<u64>,
    hits: HashMap<u64, u8>,
}

impl Reference {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            ghosts: HashSet::new(),
            hits: HashMap::new(),
        }
    }

    fn read(&mut self, key: u64) -> bool {
        if let Some(hits) = self.hits.get_mut(&key) {
            *hits = (*hits + 1).min(3);
            return true;
        }
        while self.small.len() + self.main.len() >= self.capacity {
            if self.small.len() * 10 >= self.capacity {
                self.evict_small();
            } else {
                self.evict_main();
            }
        }
        if self.ghosts.remove(&key) {
            self.main.push_front(key);
        } else {
            self.small.push_front(key);
        }
        self.hits.insert(key, 0);
        false
    }

    fn evict_small(&mut self) {
        let Some(key) = self.small.pop_back() else { return };
        if self.hits[&key] > 1 {
            self.hits.insert(key, 0);
            self.main.push_front(key);
            return;
        }
        self.hits.remove(&key);
        self.ghosts.insert(key);
        self.ghost.push_front(key);
        while self.ghost.len() > self.capacity * 9 / 10 {
            if let Some(gone) = self.ghost.pop_back() {
                self.ghosts.remove(&gone);
            }
        }
    }

    fn evict_main(&mut self) {
        while let Some(key) = self.main.pop_back() {
            let hits = self.hits[&key];
            if hits == 0 {
                self.hits.remove(&key);
                return;
            }
            self.hits.insert(key, hits - 1);
            self.main.push_front(key);
        }
    }
}

fn name(key: u64) -> String {
    format!("acme:{key:012}")
}

fn read(store: &Store, tenant: u32, key: u64, out: &mut Vec<u8>) -> bool {
    let name = name(key);
    let id = Id { upstream: 0, tenant, key: name.as_bytes() };
    out.clear();
    if store.get(id, b"get", 0, out) {
        return true;
    }
    if let Some(ticket) = store.ticket(id) {
        let _ = store.fill(ticket, id, b"get", &[b'x'; 70], u64::MAX);
    }
    false
}

/// How many of these entries fit in.
fn capacity(max_memory: usize) -> usize {
    let store = Store::new(max_memory, 4096);
    (0..max_memory as u64 / 64).for_each(|key| {
        read(&store, 1, key, &mut Vec::new());
    });
    usize::try_from(store.stats(1).entries).expect("a number of entries")
}

/// Zipf's law over `0..keys` by the table of its sums.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(keys: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        Self(
            (1..=keys)
                .map(|rank| {
                    sum += (rank as f64).powf(-exponent);
                    sum
                })
                .collect(),
        )
    }

    fn next(&self, rng: &mut fastrand::Rng) -> u64 {
        let at = rng.f64() * self.0.last().copied().unwrap_or_default();
        self.0.partition_point(|sum| *sum < at) as u64
    }
}

const MEMORY: usize = 512 << 10;
const REQUESTS: usize = 200_000;

/// The hit ratios of the store and of the reference on the same trace, after a warm-up of a third of it, in points.
fn ratios(capacity: usize, trace: impl Iterator<Item = u64>) -> (f64, f64) {
    let (store, mut reference, mut out) = (Store::new(MEMORY, 4096), Reference::new(capacity), Vec::new());
    let (mut ours, mut theirs, mut counted) = (0, 0, 0);
    for (n, key) in trace.enumerate() {
        let hits = (read(&store, 1, key, &mut out), reference.read(key));
        if n > REQUESTS / 3 {
            ours += u32::from(hits.0);
            theirs += u32::from(hits.1);
            counted += 1;
        }
    }
    (f64::from(ours) * 100.0 / f64::from(counted), f64::from(theirs) * 100.0 / f64::from(counted))
}

fn compare(what: &str, (ours, theirs): (f64, f64)) {
    eprintln!("{what}: store {ours:.2} %, reference {theirs:.2} %");
    assert!(ours >= theirs - 1.0, "{what}: store {ours:.2} %, reference {theirs:.2} %");
}

#[test]
fn zipf_is_within_a_point_of_the_reference() {
    let capacity = capacity(MEMORY);
    for percent in [1, 10] {
        let zipf = Zipf::new(capacity * 100 / percent, 0.99);
        let mut rng = fastrand::Rng::with_seed(1);
        let trace = (0..REQUESTS).map(|_| zipf.next(&mut rng));
        compare(&format!("zipf 0.99, {percent} % of the keys fit"), ratios(capacity, trace));
    }
}

#[test]
fn scans_are_within_a_point_of_the_reference() {
    let capacity = capacity(MEMORY);
    for percent in [1, 10] {
        let zipf = Zipf::new(capacity * 100 / percent, 0.99);
        let mut rng = fastrand::Rng::with_seed(2);
        // By turns: as many draws as fit, and then a scan of twice as many keys that are never asked for again.
        let trace =
            (0..REQUESTS).map(|n| if n % (3 * capacity) < capacity { zipf.next(&mut rng) } else { 1 << 40 | n as u64 });
        compare(&format!("zipf with scans, {percent} % of the keys fit"), ratios(capacity, trace));
    }
}

#[test]
fn one_tenants_scan_leaves_the_others_their_working_sets() {
    let capacity = capacity(MEMORY);
    let store = Store::new(MEMORY, 4096);
    let mut out = Vec::new();
    // Three tenants whose working sets take a fifth each, and one that scans, four times as fast as the three together.
    let working = capacity as u64 / 5;
    let mut rng = fastrand::Rng::with_seed(3);
    let (mut hits, mut asked, mut scanned) = ([0_u32; 3], [0_u32; 3], 0);
    for n in 0..REQUESTS {
        let tenant = rng.usize(..15);
        if tenant >= 3 {
            scanned += 1;
            read(&store, 9, 1 << 50 | scanned, &mut out);
            continue;
        }
        let key = (tenant as u64 + 1) << 45 | rng.u64(..working);
        let hit = read(&store, u32::try_from(tenant).expect("a small number"), key, &mut out);
        if n > REQUESTS / 3 {
            hits[tenant] += u32::from(hit);
            asked[tenant] += 1;
        }
    }
    let percents: Vec<f64> = hits.iter().zip(asked).map(|(h, a)| f64::from(*h) * 100.0 / f64::from(a)).collect();
    eprintln!("hit ratios beside a scan: {percents:.2?}; the scan holds {:?}", store.stats(9));
    assert!(percents.iter().all(|p| *p > 98.0), "{percents:?}");
    let all: u64 = [0, 1, 2, 9].map(|t| store.stats(t).entries).iter().sum();
    assert!(all * 100 > capacity as u64 * 98, "and nothing lies idle: {all} of {capacity}");
}

#[test]
fn a_share_nobody_wants_is_anybodys() {
    let capacity = capacity(MEMORY);
    let store = Store::new(MEMORY, 4096);
    read(&store, 1, 1, &mut Vec::new());
    for key in 0..4 * capacity as u64 {
        read(&store, 2, 1 << 45 | key, &mut Vec::new());
    }
    assert!(store.stats(2).entries * 100 > capacity as u64 * 98, "{:?}", store.stats(2));
    // And is given back to one who comes late, as far as half of it.
    for key in 0..2 * capacity as u64 {
        read(&store, 3, 1 << 46 | key, &mut Vec::new());
    }
    let (early, late) = (store.stats(2).entries, store.stats(3).entries);
    assert!(late * 100 > early * 95 && early * 100 > late * 95, "{early} and {late}");
}
