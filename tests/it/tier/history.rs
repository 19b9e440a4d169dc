//! A history checker: many clients on two keyfence processes, and one on the server itself, do things at random to few keys; each reply is held
//! against what it may be. Values are versioned: how old a value is, is known, not guessed.
//!
//! A key's writes are made one at a time (whoever makes them has the key's lock), so that they have an order; reads are not. A read through a
//! process may return no value older than the last that was acknowledged through that process before the read was sent, and none older than two
//! seconds: that is how long a lease lasts without news. `KEYFENCE_TIER_SECONDS=600 cargo test --test it tier::history` is the long one.
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::coherence::kill_tracking;
use super::{ON, pause};
use crate::support::value::Value;
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};

/// Keys that are written all the time, keys that are written when the tracking connection has just been lost, numbers.
const HOT: usize = 6;
const COLD: usize = 12;
const NUMBERS: usize = 2;
const KEYS: usize = HOT + COLD + NUMBERS;
/// How old a value may be that was overwritten elsewhere.
const STALE: Duration = Duration::from_secs(2);
/// Clients of each process.
const CLIENTS: usize = 25;

/// One state of a key.
#[derive(Clone, Debug)]
struct Version {
    value: Option<String>,
    /// It may be gone by now.
    expires: bool,
    /// When it was acknowledged.
    since: Option<Instant>,
}

struct Key {
    name: String,
    /// Who has it may write.
    lock: Mutex<()>,
    versions: RwLock<Vec<Version>>,
    /// How many versions had been acknowledged through each process, at the least.
    acked: [AtomicUsize; 2],
}

impl Key {
    fn now(&self) -> Version {
        self.versions.read().unwrap().last().unwrap().clone()
    }

    /// A write is about to be sent: from now on its value may be seen.
    fn begin(&self, value: Option<String>, expires: bool) {
        self.versions.write().unwrap().push(Version { value, expires, since: None });
    }

    /// It was acknowledged, through this process or on the server itself.
    fn end(&self, process: Option<usize>) {
        let mut versions = self.versions.write().unwrap();
        versions.last_mut().unwrap().since = Some(Instant::now());
        if let Some(process) = process {
            self.acked[process].store(versions.len() - 1, Ordering::SeqCst);
        }
    }
}

struct World {
    keys: Vec<Key>,
    next: AtomicU64,
    over: AtomicBool,
    /// No scripts and no flushes: what they hold back is read anew, and what should have been forgotten is not there to be found.
    calm: AtomicBool,
    stale: Mutex<Vec<Duration>>,
    reads: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

/// A small generator, so that a run is told by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % n as u64).unwrap()
    }
}

impl World {
    fn new() -> Self {
        let version = || Version { value: None, expires: false, since: None };
        let key = |i: usize| Key {
            name: if i < HOT + COLD { format!("k{i}") } else { format!("n{i}") },
            lock: Mutex::default(),
            versions: RwLock::new(vec![version()]),
            acked: Default::default(),
        };
        Self {
            keys: (0..KEYS).map(key).collect(),
            next: AtomicU64::new(1),
            over: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            stale: Mutex::default(),
            reads: AtomicU64::new(0),
            wrong: Mutex::default(),
        }
    }

    fn fresh(&self) -> String {
        format!("v{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn complain(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
        self.over.store(true, Ordering::SeqCst);
    }

    /// Holds what was read through `process` against what it may be; `from` is what had been acknowledged there before it was sent at `sent`.
    fn judge(&self, process: usize, key: &Key, got: Option<&str>, from: usize, sent: Instant) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let versions = key.versions.read().unwrap();
        let fits = |v: &Version| v.value.as_deref() == got || got.is_none() && v.expires;
        let Some(found) = (from..versions.len()).rev().find(|&i| fits(&versions[i])) else {
            let older = (0..from).rev().find(|&i| fits(&versions[i]));
            return self.complain(format!(
                "process {process} says {got:?} for {}, which is version {older:?}; {from} was acknowledged there before",
                key.name
            ));
        };
        let Some(since) = versions.get(found + 1).and_then(|next| next.since) else { return };
        if sent > since {
            let age = sent - since;
            self.stale.lock().unwrap().push(age);
            if age > STALE {
                self.complain(format!("process {process} says {got:?} for {}, overwritten {age:?} before", key.name));
            }
        }
    }
}

fn text(reply: &[u8]) -> Option<String> {
    (reply != b"$-1\r\n" && reply != b"_\r\n").then(|| Value::parse(reply).as_str().to_owned())
}

/// One client of a process, or (`None`) on the server, where names have a prefix.
struct Actor<'a> {
    world: &'a World,
    process: Option<usize>,
    client: Client,
    dice: Dice,
}

impl Actor<'_> {
    fn name(&self, key: &Key) -> String {
        if self.process.is_some() { key.name.clone() } else { format!("{}{}", crate::support::PREFIX, key.name) }
    }

    fn say(&mut self, words: &[&str]) -> Vec<u8> {
        self.client.call(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>())
    }

    fn read(&mut self) {
        let world = self.world;
        let Some(process) = self.process else { return };
        let picked: Vec<&Key> = match self.dice.roll(8) {
            0 => (0..3).map(|_| &world.keys[self.dice.roll(KEYS)]).collect(),
            _ => vec![&world.keys[self.dice.roll(KEYS)]],
        };
        let from: Vec<usize> = picked.iter().map(|key| key.acked[process].load(Ordering::SeqCst)).collect();
        let sent = Instant::now();
        if picked.len() > 1 {
            let words: Vec<&str> = ["MGET"].into_iter().chain(picked.iter().map(|key| key.name.as_str())).collect();
            let reply = self.say(&words);
            if reply.starts_with(b"-UPSTREAM") {
                return;
            }
            let reply = Value::parse(&reply);
            for ((key, from), part) in picked.iter().zip(from).zip(&reply.kids) {
                let got = (part.kind != b'_').then(|| part.as_str());
                world.judge(process, key, got, from, sent);
            }
            return;
        }
        let reply = if self.dice.roll(4) == 0 {
            self.say(&["GETRANGE", &picked[0].name, "0", "-1"])
        } else {
            self.say(&["GET", &picked[0].name])
        };
        if reply.starts_with(b"-UPSTREAM") {
            return;
        }
        let got = text(&reply).filter(|got| !got.is_empty());
        world.judge(process, picked[0], got.as_deref(), from[0], sent);
    }

    fn write(&mut self) {
        let world = self.world;
        let a = &world.keys[self.dice.roll(HOT)];
        let process = self.process;
        let calm = world.calm.load(Ordering::Relaxed);
        match self.dice.roll(12) {
            0..=3 => self.set(a, false),
            4 => self.delete(a),
            5 => self.set(a, true),
            6 if process.is_some() => self.append(a),
            7 => self.rename(),
            8 if process.is_some() && !calm => self.script(a),
            9 if process.is_some() => self.transaction(),
            10 => self.count(),
            11 if process.is_some() && !calm && self.dice.roll(100) == 0 => self.flush(),
            _ if process.is_some() => self.pipelined(a),
            _ => self.set(a, false),
        }
    }

    fn ok(&self, what: &str, reply: &[u8], want: &[u8]) {
        if reply != want {
            self.world.complain(format!("{what} answered {}", show(reply)));
        }
    }

    fn set(&mut self, key: &Key, expires: bool) {
        let _lock = key.lock.lock().unwrap();
        let (name, value) = (self.name(key), self.world.fresh());
        key.begin(Some(value.clone()), expires);
        let reply = if expires {
            let life = (1 + self.dice.roll(40)).to_string();
            self.say(&["SET", &name, &value, "PX", &life])
        } else {
            self.say(&["SET", &name, &value])
        };
        self.ok("SET", &reply, b"+OK\r\n");
        key.end(self.process);
    }

    fn delete(&mut self, key: &Key) {
        let _lock = key.lock.lock().unwrap();
        key.begin(None, false);
        let name = self.name(key);
        self.say(&["DEL", &name]);
        key.end(self.process);
    }

    fn append(&mut self, key: &Key) {
        let _lock = key.lock.lock().unwrap();
        let now = key.now();
        if now.expires || now.value.as_ref().is_some_and(|value| value.len() > 200) {
            return;
        }
        let value = self.world.fresh();
        let all = now.value.unwrap_or_default() + &value;
        key.begin(Some(all.clone()), false);
        let name = self.name(key);
        let reply = self.say(&["APPEND", &name, &value]);
        self.ok("APPEND", &reply, format!(":{}\r\n", all.len()).as_bytes());
        key.end(self.process);
    }

    fn rename(&mut self) {
        let (a, b) = (self.dice.roll(HOT), self.dice.roll(HOT));
        if a == b {
            return;
        }
        let world = self.world;
        // Locks in one order, whoever takes them.
        let _locks: Vec<MutexGuard<'_, ()>> = [a.min(b), a.max(b)].map(|i| world.keys[i].lock.lock().unwrap()).into();
        let (from, to) = (&world.keys[a], &world.keys[b]);
        let now = from.now();
        if now.expires || now.value.is_none() {
            return;
        }
        to.begin(now.value, false);
        from.begin(None, false);
        let (x, y) = (self.name(from), self.name(to));
        let reply = self.say(&["RENAME", &x, &y]);
        self.ok("RENAME", &reply, b"+OK\r\n");
        from.end(self.process);
        to.end(self.process);
    }

    fn script(&mut self, key: &Key) {
        let _lock = key.lock.lock().unwrap();
        let value = self.world.fresh();
        key.begin(Some(value.clone()), false);
        // A key that it does not declare.
        let reply = self.say(&["EVAL", "return redis.call('SET', ARGV[1], ARGV[2])", "0", &key.name, &value]);
        self.ok("EVAL", &reply, b"+OK\r\n");
        key.end(self.process);
    }

    fn transaction(&mut self) {
        let (a, b) = (self.dice.roll(HOT), self.dice.roll(HOT));
        if a == b {
            return;
        }
        let world = self.world;
        let _locks: Vec<MutexGuard<'_, ()>> = [a.min(b), a.max(b)].map(|i| world.keys[i].lock.lock().unwrap()).into();
        let pair = [&world.keys[a], &world.keys[b]];
        let values = [world.fresh(), world.fresh()];
        for (key, value) in pair.iter().zip(&values) {
            key.begin(Some(value.clone()), false);
        }
        let sent: Vec<Vec<u8>> = [
            command(&["MULTI"]),
            command(&["SET", &pair[0].name, &values[0]]),
            command(&["SET", &pair[1].name, &values[1]]),
            command(&["EXEC"]),
        ]
        .into();
        let replies = if self.dice.roll(2) == 0 {
            self.client.pipeline(&sent.concat(), 4)
        } else {
            sent.iter().map(|one| self.client.ask(one)).collect()
        };
        self.ok("EXEC", &replies[3], b"*2\r\n+OK\r\n+OK\r\n");
        pair.iter().for_each(|key| key.end(self.process));
    }

    fn count(&mut self) {
        let key = &self.world.keys[HOT + COLD + self.dice.roll(NUMBERS)];
        let _lock = key.lock.lock().unwrap();
        let next = key.now().value.map_or(1, |value| value.parse::<u64>().unwrap() + 1);
        key.begin(Some(next.to_string()), false);
        let name = self.name(key);
        let reply = self.say(&["INCR", &name]);
        self.ok("INCR", &reply, format!(":{next}\r\n").as_bytes());
        key.end(self.process);
    }

    /// Its own write, and a read sent behind it before that was answered.
    fn pipelined(&mut self, key: &Key) {
        let _lock = key.lock.lock().unwrap();
        let value = self.world.fresh();
        key.begin(Some(value.clone()), false);
        let sent = [command(&["GET", &key.name]), command(&["SET", &key.name, &value]), command(&["GET", &key.name])];
        let replies = self.client.pipeline(&sent.concat(), 3);
        key.end(self.process);
        self.ok("a GET behind a SET", &replies[2], format!("${}\r\n{value}\r\n", value.len()).as_bytes());
    }

    fn flush(&mut self) {
        let world = self.world;
        let _locks: Vec<MutexGuard<'_, ()>> = world.keys.iter().map(|key| key.lock.lock().unwrap()).collect();
        world.keys.iter().for_each(|key| key.begin(None, false));
        let mut reply = self.say(&["FLUSHDB"]);
        // Behind a restart the connection for such work is found to be lost when it is first used, and nothing was deleted then.
        while reply.starts_with(b"-UPSTREAM connection lost") {
            reply = self.say(&["FLUSHDB"]);
        }
        self.ok("FLUSHDB", &reply, b"+OK\r\n");
        world.keys.iter().for_each(|key| key.end(self.process));
    }

    fn live(&mut self) {
        while !self.world.over.load(Ordering::Relaxed) {
            let reads = if self.process.is_some() { 20 } else { 0 };
            if self.dice.roll(reads + 1) < reads {
                self.read();
            } else {
                self.write();
            }
            if self.process.is_none() {
                pause(Duration::from_micros(300));
            }
        }
    }
}

/// Ends the tracking connections and writes, in the same turn of the server, what is not told then.
fn lose_tracking(world: &World, plain: &mut Client) {
    let cold = &world.keys[HOT..HOT + COLD];
    let _locks: Vec<MutexGuard<'_, ()>> = cold.iter().map(|key| key.lock.lock().unwrap()).collect();
    let mut writes = Vec::new();
    for key in cold {
        let value = world.fresh();
        key.begin(Some(value.clone()), false);
        writes.push(command(&["SET", &format!("{}{}", crate::support::PREFIX, key.name), &value]));
    }
    kill_tracking(plain, &writes);
    cold.iter().for_each(|key| key.end(None));
}

/// A new server in the place of the old one, with nothing in it.
fn restart(world: &World, redis: &mut Redis, fences: &[Fence; 2]) {
    // Nobody writes meanwhile, so that what there was is known: nothing.
    let _locks: Vec<MutexGuard<'_, ()>> = world.keys.iter().map(|key| key.lock.lock().unwrap()).collect();
    world.keys.iter().for_each(|key| key.begin(None, false));
    let on = fences.each_ref().map(|fence| fence.process().unwrap().lines_with("the tier is on"));
    redis.restart();
    for (fence, on) in fences.iter().zip(on) {
        fence.process().unwrap().wait_for_lines(on + 1, "the tier is on");
        // On every worker: which one has a connection is not for us to say.
        for _ in 0..16 {
            let mut client = fence.client();
            while client.call(&[b"SET", b"up", b"1"]) != b"+OK\r\n" {
                pause(Duration::from_millis(20));
            }
        }
    }
    world.keys.iter().for_each(|key| key.end(None));
}

#[test]
fn no_read_is_older_than_promised() {
    let seconds = std::env::var("KEYFENCE_TIER_SECONDS").ok().and_then(|n| n.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(8));
    let seed = std::env::var("KEYFENCE_TIER_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0x5eed_u64);
    let mut redis = Redis::start();
    let config = format!("workers = 2\n{ON}");
    let fences = [(); 2].map(|()| Fence::with_tenants(redis.addr(), &config));
    fences.iter().for_each(|fence| fence.process().unwrap().wait_for_lines(1, "the tier is on"));
    let world = World::new();
    let addrs = fences.each_ref().map(Fence::addr);
    let plain = redis.addr();
    thread::scope(|scope| {
        for i in 0..2 * CLIENTS {
            let (world, addr) = (&world, addrs[i % 2]);
            let dice = Dice(seed.wrapping_mul(i as u64 * 2 + 3) | 1);
            scope.spawn(move || Actor { world, process: Some(i % 2), client: Client::connect(addr), dice }.live());
        }
        let mut dice = Dice(seed | 1);
        let mut lost = false;
        while Instant::now() < end && !world.over.load(Ordering::Relaxed) {
            // One on the server itself, until something befalls it.
            let mut direct =
                Actor { world: &world, process: None, client: Client::connect(plain), dice: Dice(dice.0 | 1) };
            // Long enough for what was not told to be older than it may be.
            let quiet = if lost { STALE + Duration::from_millis(300) } else { Duration::from_millis(200) };
            let until = Instant::now() + quiet + Duration::from_millis(dice.roll(300) as u64);
            while Instant::now() < until {
                direct.write();
                pause(Duration::from_micros(300));
            }
            lost = !lost;
            world.calm.store(lost, Ordering::Relaxed);
            match dice.roll(6) {
                _ if lost => lose_tracking(&world, &mut Client::connect(plain)),
                0 => {
                    redis.signal("STOP");
                    pause(Duration::from_millis(20 + dice.roll(200) as u64));
                    redis.signal("CONT");
                }
                1 if seconds.is_some() => {
                    let id = fences[dice.roll(2)].process().unwrap().id().to_string();
                    let signal = |name| std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap();
                    signal("STOP");
                    pause(Duration::from_millis(20 + dice.roll(500) as u64));
                    signal("CONT");
                }
                2 if seconds.is_some() => restart(&world, &mut redis, &fences),
                _ => {}
            }
        }
        world.over.store(true, Ordering::SeqCst);
    });
    report(&world, &fences, seed);
}

fn report(world: &World, fences: &[Fence; 2], seed: u64) {
    let mut stale = std::mem::take(&mut *world.stale.lock().unwrap());
    stale.sort_unstable();
    let at = |permille: usize| stale.get(stale.len().saturating_sub(1) * permille / 1000).copied().unwrap_or_default();
    let hits: u64 = fences.iter().map(|fence| super::count(&mut fence.client(), "tier_hits")).sum();
    eprintln!(
        "{} reads, {hits} hits; {} values were overwritten before they were asked for, by {:?} (p50), {:?} (p99), {:?} (most)",
        world.reads.load(Ordering::Relaxed),
        stale.len(),
        at(500),
        at(990),
        at(1000)
    );
    let wrong = world.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "seed {seed}: {:#?}", &wrong[..wrong.len().min(5)]);
    assert!(hits > 100, "{hits} reads were answered from the tier");
}
