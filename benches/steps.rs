//! What the steps of a command's path cost, each alone: `cargo bench --bench steps`. Times and allocations; what they cost together, over
//! sockets, is in `benches/path.rs`.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::{hint::black_box, rc::Rc};

use divan::{AllocProfiler, Bencher, counter::BytesCount};
use keyfence::{
    command::{self, Args, Lookup, Row, Span},
    resp::{
        reply::Scanner,
        request::{Limits, Parsed, Progress, parse},
    },
    rewrite::{
        self, Namespace,
        reply::{Rule, Unprefix},
    },
};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn frame<A: AsRef<[u8]>>(words: &[A]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words.iter().map(AsRef::as_ref) {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn many(name: &str, count: usize, value: Option<&str>) -> Vec<u8> {
    let keys = (0..count).flat_map(|i| std::iter::once(format!("key:{i:012}")).chain(value.map(str::to_owned)));
    frame(&std::iter::once(name.to_owned()).chain(keys).collect::<Vec<_>>())
}

/// The requests measured: name and frame.
fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let key = "key:000000000042";
    vec![
        ("GET", frame(&["GET", key])),
        ("SET_64", frame(&["SET", key, &"v".repeat(64)])),
        ("SET_1K", frame(&["SET", key, &"v".repeat(1024)])),
        ("MGET_10", many("MGET", 10, None)),
        ("MSET_10", many("MSET", 10, Some("0123456789"))),
        ("MGET_1000", many("MGET", 1000, None)),
        ("GET_KEY_64K", frame(&["GET", &"k".repeat(64 * 1024)])),
        ("ZUNIONSTORE", frame(&["ZUNIONSTORE", "to", "2", "one", "two", "WEIGHTS", "1", "2"])),
        ("XREAD", frame(&["XREAD", "COUNT", "10", "STREAMS", "one", "two", "0", "0"])),
    ]
}

const REQUESTS: &[&str] =
    &["GET", "SET_64", "SET_1K", "MGET_10", "MSET_10", "MGET_1000", "GET_KEY_64K", "ZUNIONSTORE", "XREAD"];

fn request(name: &str) -> Vec<u8> {
    requests().into_iter().find(|(n, _)| *n == name).unwrap().1
}

fn parsed(frame: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    assert_eq!(parse(frame, &mut spans, &mut Progress::default(), &Limits::FULL), Parsed::Command(frame.len()));
    spans
}

fn row(frame: &[u8], spans: &[Span]) -> &'static Row {
    let Lookup::Found(row) = command::lookup(&Args::new(frame, spans)) else { unreachable!("a command") };
    row
}

#[divan::bench(args = REQUESTS)]
fn parse_request(bencher: Bencher<'_, '_>, name: &str) {
    let frame = request(name);
    let mut spans = parsed(&frame);
    bencher.counter(BytesCount::new(frame.len())).bench_local(|| {
        spans.clear();
        parse(black_box(&frame), &mut spans, &mut Progress::default(), &Limits::FULL)
    });
}

#[divan::bench(args = ["GET", "MGET_10", "ZUNIONSTORE", "XREAD"])]
fn look_up(bencher: Bencher<'_, '_>, name: &str) {
    let frame = request(name);
    let spans = parsed(&frame);
    bencher.bench_local(|| row(black_box(&frame), &spans));
}

#[divan::bench(args = REQUESTS)]
fn rewrite_request(bencher: Bencher<'_, '_>, name: &str) {
    let frame = request(name);
    let spans = parsed(&frame);
    let row = row(&frame, &spans);
    let ns = Namespace { prefix: b"acme:", db_base: 0, databases: 1 };
    let (mut marks, mut out) = (Vec::new(), Vec::with_capacity(frame.len() * 2));
    bencher.counter(BytesCount::new(frame.len())).bench_local(|| {
        out.clear();
        rewrite::request(row, black_box(&frame), &spans, &ns, &mut marks, &mut out).unwrap();
        black_box(&out).len()
    });
}

/// Prefixes of 1 to 128 bytes: the cost of a GET's rewriting must not grow faster than they do.
#[divan::bench(args = [1, 8, 32, 128])]
fn rewrite_by_prefix(bencher: Bencher<'_, '_>, len: usize) {
    let frame = request("GET");
    let spans = parsed(&frame);
    let row = row(&frame, &spans);
    let prefix = "p".repeat(len);
    let ns = Namespace { prefix: prefix.as_bytes(), db_base: 0, databases: 1 };
    let (mut marks, mut out) = (Vec::new(), Vec::with_capacity(1024));
    bencher.bench_local(|| {
        out.clear();
        rewrite::request(row, black_box(&frame), &spans, &ns, &mut marks, &mut out).unwrap();
        black_box(&out).len()
    });
}

fn bulk(len: usize) -> Vec<u8> {
    [format!("${len}\r\n").as_bytes(), &vec![b'v'; len], b"\r\n"].concat()
}

const REPLIES: &[&str] = &["OK", "VALUE_64", "VALUE_1K", "ARRAY_10", "ARRAY_1000"];

fn reply(name: &str) -> Vec<u8> {
    match name {
        "OK" => b"+OK\r\n".to_vec(),
        "VALUE_64" => bulk(64),
        "VALUE_1K" => bulk(1024),
        "ARRAY_10" => [&b"*10\r\n"[..], &bulk(64).repeat(10)].concat(),
        _ => [&b"*1000\r\n"[..], &bulk(64).repeat(1000)].concat(),
    }
}

#[divan::bench(args = REPLIES)]
fn measure_reply(bencher: Bencher<'_, '_>, name: &str) {
    let reply = reply(name);
    bencher.counter(BytesCount::new(reply.len())).bench_local(|| Scanner::default().advance(black_box(&reply)));
}

/// A reply of names, such as that of SCAN's page or of SORT's, from which the prefix is taken.
#[divan::bench(args = [10, 1000])]
fn take_prefix_off(bencher: Bencher<'_, '_>, names: usize) {
    let mut reply = format!("*{names}\r\n").into_bytes();
    (0..names).for_each(|i| reply.extend_from_slice(format!("$17\r\nacme:{i:012}\r\n").as_bytes()));
    let prefix: Rc<[u8]> = Rc::from(&b"acme:"[..]);
    let mut out = Vec::with_capacity(reply.len());
    bencher.counter(BytesCount::new(reply.len())).bench_local(|| {
        out.clear();
        let done = Unprefix::new(Rule::Names, Rc::clone(&prefix)).advance(black_box(&reply), &mut out).unwrap();
        assert!(done.1);
        black_box(&out).len()
    });
}
