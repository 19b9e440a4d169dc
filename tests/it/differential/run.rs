//! The comparison itself, topic by topic, in every way a client can send: RESP2, RESP3, call by call, in one write, in MULTI.
use std::collections::{BTreeMap, BTreeSet};

use keyfence::command::{Class, ROWS};

use super::corpus::{self, Call, TOPICS};
use super::mutate;
use crate::support::keyspace::{difference, dump};
use crate::support::value::{Rule, same};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis, free_addr};
use crate::{call, is};

/// How many databases are compared.
const DATABASES: u8 = 2;

/// A plain server, and keyfence in front of another.
struct Pair {
    plain: Redis,
    upstream: Redis,
    fence: Fence,
    calls: usize,
    differences: Vec<String>,
}

impl Pair {
    /// Behind the wall or not. The upstream's ACL misreads an XREADGROUP whose group is called STREAMS, or a GEORADIUS whose COUNT is STORE,
    /// and refuses them: what is compared with those words in every place has the rewriting as its only wall.
    fn start(wall: bool) -> Self {
        // A blocked client's timeout is looked at `hz` times a second.
        let [plain, upstream] = [(); 2].map(|()| Redis::start_with(free_addr(), &["--hz", "500"]));
        let config = if wall { "" } else { "[upstream]\nacl_wall = \"off\"\n" };
        let fence = Fence::start_at(upstream.addr(), config);
        Self { plain, upstream, fence, calls: 0, differences: Vec::new() }
    }

    /// A client on each side, speaking RESP2 or RESP3.
    fn clients(&self, resp3: bool) -> [Client; 2] {
        [self.plain.client(), self.fence.client()].map(|mut client| {
            if resp3 {
                assert_eq!(call!(client, "HELLO", "3")[0], b'%', "HELLO 3 answers with a map");
            }
            client
        })
    }

    fn compare(&mut self, how: &str, calls: &[Call], rule: impl Fn(usize) -> Rule, [a, b]: [&[Vec<u8>]; 2]) {
        self.calls += a.len();
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let worded = fails(a) && fails(b) && calls.get(i).is_some_and(corpus::of_a_module);
            if !worded && !same(rule(i), a, b) {
                let said = calls.get(i).map(say).unwrap_or_default();
                self.differences.push(format!("{how}: {said}\n    straight {}\n    keyfence {}", show(a), show(b)));
            }
        }
    }

    /// The same keyspace on both sides, then none.
    fn compare_keyspaces(&mut self, how: &str) {
        let (mut plain, mut upstream) = (self.plain.client(), self.upstream.client());
        let straight = dump(&mut plain, "", DATABASES);
        let through = dump(&mut upstream, self.fence.prefix(), DATABASES);
        if let Some(difference) = difference(&straight, &through) {
            self.differences.push(format!("{how}: {difference}"));
        }
        for client in [&mut plain, &mut upstream] {
            is!(client, ["FLUSHALL"], "+OK\r\n");
        }
    }

    /// Sends the calls one by one.
    fn one_by_one(&mut self, how: &str, resp3: bool, calls: &[Call]) {
        let replies = self
            .clients(resp3)
            .map(|mut client| calls.iter().map(|call| client.call(&slices(call))).collect::<Vec<_>>());
        self.compare(how, calls, |i| corpus::rule(&calls[i]), [&replies[0], &replies[1]]);
        self.compare_keyspaces(how);
    }

    /// Sends the calls in one write.
    fn at_once(&mut self, how: &str, resp3: bool, calls: &[Call]) {
        let bytes: Vec<u8> = calls.iter().flat_map(|call| command(call)).collect();
        let replies = self.clients(resp3).map(|mut client| client.pipeline(&bytes, calls.len()));
        self.compare(how, calls, |i| corpus::rule(&calls[i]), [&replies[0], &replies[1]]);
    }

    fn finish(self, topic: &str) {
        eprintln!("{topic}: {} replies compared", self.calls);
        // One example of each kind, by what the two sides said.
        let mut kinds: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for difference in &self.differences {
            let said = difference.split_once('\n').map_or(difference.as_str(), |(_, said)| said);
            kinds.entry(said).or_insert((0, difference)).0 += 1;
        }
        let shown: Vec<String> =
            kinds.values().take(60).map(|(times, example)| format!("{times} x {example}")).collect();
        assert!(
            kinds.is_empty(),
            "{} differences in {topic}, of {} kinds:\n{}",
            self.differences.len(),
            kinds.len(),
            shown.join("\n")
        );
    }
}

/// Whether it is an error, or a transaction of one command that failed. Which of several errors a module finds first, and how it words
/// it, differs between its versions.
fn fails(reply: &[u8]) -> bool {
    reply[0] == b'-' || reply.starts_with(b"*1\r\n-")
}

fn slices(call: &Call) -> Vec<&[u8]> {
    call.iter().map(Vec::as_slice).collect()
}

fn say(call: &Call) -> String {
    call.iter().map(|arg| format!("\"{}\"", show(arg))).collect::<Vec<_>>().join(" ")
}

fn whole(words: &[&str]) -> Call {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// The well-formed calls, each way of sending them.
fn well_formed(topic: &str) {
    let mut pair = Pair::start(topic != "streams");
    for scene in corpus::scenes(topic) {
        let calls = [mutate::set_up(), scene.clone()].concat();
        for resp3 in [false, true] {
            let version = if resp3 { "RESP3" } else { "RESP2" };
            pair.one_by_one(&format!("{version} one by one"), resp3, &calls);
            pair.at_once(&format!("{version} in one write"), resp3, &calls);
            pair.compare_keyspaces(&format!("{version} in one write"));
            in_multi(&mut pair, version, resp3, &calls);
        }
    }
    pair.finish(topic);
}

/// The scene as one transaction: one by one, in one write, discarded, aborted by an error, failed by WATCH.
fn in_multi(pair: &mut Pair, version: &str, resp3: bool, calls: &[Call]) {
    let mut block = vec![whole(&["MULTI"])];
    block.extend_from_slice(calls);
    let with = |end: &[&[&str]]| [block.clone(), end.iter().map(|words| whole(words)).collect()].concat();
    let exec = with(&[&["EXEC"]]);
    for (way, at_once) in [("one by one", false), ("in one write", true)] {
        let how = format!("{version} MULTI {way}");
        let replies = pair.clients(resp3).map(|mut client| {
            let bytes: Vec<u8> = exec.iter().flat_map(|call| command(call)).collect();
            if at_once {
                client.pipeline(&bytes, exec.len())
            } else {
                exec.iter().map(|call| client.call(&slices(call))).collect()
            }
        });
        let last = exec.len() - 1;
        pair.compare(&how, &exec, |_| Rule::Exact, [&replies[0][..last], &replies[1][..last]]);
        pair.calls += 1;
        if let Some(difference) = exec_differs(calls, &replies[0][last], &replies[1][last]) {
            pair.differences.push(format!("{how}: {difference}"));
        }
        pair.compare_keyspaces(&how);
    }
    for (how, end) in [
        ("discarded", &[&["DISCARD"][..], &["GET", "wrong:string"]][..]),
        ("aborted", &[&["NO-SUCH-COMMAND"], &["EXEC"], &["GET", "wrong:string"]]),
        ("aborted by arity", &[&["GET"], &["EXEC"], &["EXEC"]]),
    ] {
        let calls = with(end);
        pair.at_once(&format!("{version} MULTI {how}"), resp3, &calls);
        pair.compare_keyspaces(how);
    }
    let watched: Vec<Call> = [vec![whole(&["WATCH", "w1", "w2"]), whole(&["SET", "w2", "changed"])], exec].concat();
    pair.at_once(&format!("{version} MULTI failed by WATCH"), resp3, &watched);
    pair.compare_keyspaces("failed by WATCH");
}

/// Compares two EXEC replies element by element, each by its own command's rule.
fn exec_differs(calls: &[Call], a: &[u8], b: &[u8]) -> Option<String> {
    let (a, b) = (elements(a), elements(b));
    if a.len() != b.len() || a.len() != calls.len() {
        return (a != b).then(|| format!("EXEC\n    straight {:?}\n    keyfence {:?}", a.first(), b.first()));
    }
    let differ = |(a, b): (&Vec<u8>, &Vec<u8>), call: &Call| !same(corpus::rule(call), a, b);
    let i = (0..calls.len()).find(|&i| differ((&a[i], &b[i]), &calls[i]))?;
    Some(format!("EXEC element {i}, {}\n    straight {}\n    keyfence {}", say(&calls[i]), show(&a[i]), show(&b[i])))
}

/// The elements of an array reply, as bytes; of anything else, itself.
fn elements(reply: &[u8]) -> Vec<Vec<u8>> {
    if reply[0] != b'*' || reply.starts_with(b"*-1") {
        return vec![reply.to_vec()];
    }
    let line = reply.iter().position(|&b| b == b'\n').unwrap();
    let mut rest = reply[line + 1..].to_vec();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let end = crate::support::wire::measure(&rest).unwrap();
        let tail = rest.split_off(end);
        all.push(std::mem::replace(&mut rest, tail));
    }
    all
}

/// Every variant of every call, after the calls that come before it in its scene.
fn malformed(topic: &str) {
    let mut pair = Pair::start(false);
    for scene in corpus::scenes(topic) {
        for (i, wanted) in scene.iter().enumerate() {
            let variants = mutate::variants(wanted);
            let before = [mutate::set_up(), scene[..=i].to_vec()].concat();
            let calls = [before.clone(), variants.clone()].concat();
            for resp3 in [false, true] {
                let how = format!("{} in one write", if resp3 { "RESP3" } else { "RESP2" });
                pair.at_once(&how, resp3, &calls);
                pair.compare_keyspaces(&format!("{how}, variants of {}", say(wanted)));
            }
            // Each in a transaction of its own: wrong ones must abort it, right ones run.
            let mut transactions = before;
            for variant in variants {
                transactions.extend([whole(&["MULTI"]), variant, whole(&["EXEC"])]);
            }
            let bytes: Vec<u8> = transactions.iter().flat_map(|call| command(call)).collect();
            let [straight, mut through] =
                pair.clients(false).map(|mut client| client.pipeline(&bytes, transactions.len()));
            for i in 2..through.len() {
                // keyfence counts a module's arguments when it queues, an older module when it executes.
                let early =
                    through[i - 1][0] == b'-' && corpus::of_a_module(&transactions[i - 1]) && fails(&straight[i]);
                if early && transactions[i] == whole(&["EXEC"]) && through[i].starts_with(b"-EXECABORT ") {
                    through[i - 1].clone_from(&straight[i - 1]);
                    through[i].clone_from(&straight[i]);
                }
            }
            let ruled = |i: usize| {
                if transactions[i] == whole(&["EXEC"]) {
                    corpus::rule(&transactions[i - 1])
                } else {
                    corpus::rule(&transactions[i])
                }
            };
            // So that EXEC is judged as what it carries out.
            let judged: Vec<Call> = (0..transactions.len())
                .map(|i| transactions[if transactions[i] == whole(&["EXEC"]) { i - 1 } else { i }].clone())
                .collect();
            pair.compare("RESP2, each in MULTI", &judged, ruled, [&straight, &through]);
            pair.compare_keyspaces(&format!("in MULTI, variants of {}", say(wanted)));
        }
    }
    pair.finish(topic);
}

macro_rules! topics {
    ($($topic:ident)+) => {
        mod well_formed {
            $(#[test] fn $topic() { super::well_formed(stringify!($topic)); })+
        }
        mod malformed {
            $(#[test] fn $topic() { super::malformed(stringify!($topic)); })+
        }
        #[test]
        fn every_topic_is_run() {
            assert_eq!([$(stringify!($topic)),+], *TOPICS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        }
    };
}

topics!(strings keys bits lists sets hashes zsets geo streams blocking sort json bloom timeseries vectors newer);

#[test]
fn every_keyed_command_the_server_knows_is_called() {
    let server = Redis::start();
    let listed = call!(server.client(), "COMMAND", "LIST");
    let known: BTreeSet<String> = crate::support::value::Value::parse(&listed)
        .kids
        .iter()
        .map(|name| name.as_str().to_ascii_uppercase().replace('|', " "))
        .collect();
    let rows = ROWS.iter().filter(|row| row.served && row.class == Class::Keyed).map(|row| row.name);
    let keyed: Vec<&str> = rows
        .filter(|name| known.contains(*name) || name.split_once(' ').is_some_and(|(first, _)| known.contains(first)))
        .collect();
    let calls: Vec<Call> = TOPICS.iter().flat_map(|(topic, _)| corpus::scenes(topic)).flatten().collect();
    let session = corpus::parse(include_str!("../corpus/session.txt"));
    let covered: BTreeSet<String> = calls.iter().chain(session.iter().flatten()).map(corpus::name).collect();
    let (told, missing): (Vec<&str>, Vec<&str>) = keyed.iter().partition(|name| covered.contains(**name));
    let variants: usize = calls.iter().map(|call| mutate::variants(call).len()).sum();
    eprintln!(
        "{} keyed commands that are served and known to this server, {} compared, by {} well-formed calls and {variants} variants of them",
        keyed.len(),
        told.iter().filter(|name| covered.contains(**name)).count(),
        calls.len(),
    );
    assert!(missing.is_empty(), "not in the corpus: {missing:?}");
}
