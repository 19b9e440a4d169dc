//! What the fuzz targets and their seeds call: each takes any bytes and panics when an invariant does not hold.

use crate::{
    command::{self, Args, Keys, ROWS, Slot},
    net::announced::{self, Next},
    resp::{
        put_bulk, put_header,
        reply::Scanner,
        request::{Limits, Parsed, Progress, parse},
    },
    rewrite::{self, Namespace},
};

/// Requests: any split reads the same as the whole, and what is read as a frame has exactly one encoding.
///
/// # Panics
/// When that does not hold.
pub fn request(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let (mut spans, mut progress) = (Vec::new(), Progress::default());
    let whole = parse(bytes, &mut spans, &mut progress, &Limits::FULL);
    let cut = usize::from(cut).min(bytes.len());
    let (mut later, mut resumed) = (Vec::new(), Progress::default());
    let mut split = parse(&bytes[..cut], &mut later, &mut resumed, &Limits::FULL);
    if split == Parsed::Incomplete {
        split = parse(bytes, &mut later, &mut resumed, &Limits::FULL);
    }
    assert_eq!(split, whole, "a split changed the outcome");
    if let (Parsed::Command(n), true) = (&whole, bytes.first() == Some(&b'*')) {
        let mut again = Vec::new();
        put_header(&mut again, b'*', spans.len() as u64);
        Args::new(bytes, &spans).iter().for_each(|arg| put_bulk(&mut again, arg));
        assert_eq!(again, &bytes[..*n], "a frame has another encoding");
    }
}

/// Replies: any split finds the same end as the whole.
///
/// # Panics
/// When that does not hold.
pub fn reply(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let whole = Scanner::default().advance(bytes);
    let cut = usize::from(cut).min(bytes.len());
    let mut scanner = Scanner::default();
    let split = match scanner.advance(&bytes[..cut]) {
        Ok((used, false)) => scanner.advance(&bytes[used..]).map(|(n, done)| (used + n, done)),
        end => end,
    };
    assert_eq!(split, whole, "a split changed the outcome");
}

/// Headers of proxies: read in pieces they say what they say at once, and no byte behind them is taken.
///
/// # Panics
/// When that does not hold.
pub fn announced(data: &[u8]) {
    let Some((&piece, bytes)) = data.split_first() else { return };
    let read = |most: usize| {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let more = match announced::next(&bytes[..at]) {
                Next::Whole => return (announced::parse(&bytes[..at]).ok(), at),
                Next::Wrong => return (None, at),
                Next::Bytes(n) => n.min(most).min(rest.len()),
                Next::Line(n) => {
                    let seen = &rest[..n.min(most).min(rest.len())];
                    seen.iter().position(|byte| *byte == b'\n').map_or(seen.len(), |end| end + 1)
                }
            };
            if more == 0 {
                return (None, at);
            }
            at += more;
        }
    };
    let whole = read(usize::MAX);
    assert_eq!(read(usize::from(piece).max(1)).0, whole.0, "a split changed the outcome");
    assert!(whole.1 <= 4096, "a header without a bound");
    if let (Some(Some((from, to))), at) = whole
        && bytes.starts_with(b"PROXY ")
    {
        let kind = if from.is_ipv4() { "TCP4" } else { "TCP6" };
        let again = format!("PROXY {kind} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port());
        assert_eq!(announced::parse(again.as_bytes()), Ok(Some((from, to))), "of {}", bytes[..at].escape_ascii());
    }
}

/// Rewriting: of any arguments to any command, what goes upstream is one frame of as many arguments, every key and template marked by the
/// walker carries the prefix, and no other argument has changed.
///
/// # Panics
/// When that does not hold.
pub fn rewriting(data: &[u8]) {
    let [row, argc, words @ ..] = data else { return };
    let row = &ROWS[(usize::from(*row) * 256 + usize::from(*argc)) % ROWS.len()];
    if !row.forwardable() || row.keys == Keys::Unsupported {
        return;
    }
    let name: Vec<&[u8]> = row.name.as_bytes().split(|&c| c == b' ').collect();
    let words: Vec<&[u8]> = name.into_iter().chain(words.split(|&c| c == 0xff)).collect();
    if !row.arity_ok(words.len()) {
        return;
    }
    let mut frame = Vec::new();
    put_header(&mut frame, b'*', words.len() as u64);
    words.iter().for_each(|word| put_bulk(&mut frame, word));
    let (mut spans, mut progress) = (Vec::new(), Progress::default());
    assert_eq!(parse(&frame, &mut spans, &mut progress, &Limits::FULL), Parsed::Command(frame.len()));
    let args = Args::new(&frame, &spans);
    if command::refusal(row, &args).is_some() {
        return;
    }
    let ns = Namespace { prefix: b"t1:", db_base: 3, databases: 4 };
    let (mut marks, mut sent) = (Vec::new(), Vec::new());
    assert_eq!(rewrite::request(row, &frame, &spans, &ns, &mut marks, &mut sent), Ok(()));
    let (mut sent_spans, mut progress) = (Vec::new(), Progress::default());
    assert_eq!(parse(&sent, &mut sent_spans, &mut progress, &Limits::FULL), Parsed::Command(sent.len()));
    let upstream = Args::new(&sent, &sent_spans);
    assert_eq!(upstream.len(), args.len());
    command::walk(row, &args, &mut marks);
    for i in 0..args.len() {
        let slot = marks.iter().find(|(at, _)| *at as usize == i).map(|(_, slot)| *slot);
        match slot {
            Some(Slot::Key | Slot::Template) => assert_eq!(upstream.at(i), [b"t1:", args.at(i)].concat()),
            Some(Slot::Db) => {}
            None => assert_eq!(upstream.at(i), args.at(i)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// The seeds of the fuzz targets, also run as ordinary tests.
    #[test]
    fn seeds_hold() {
        for (seeds, target) in [
            ("request", super::request as fn(&[u8])),
            ("reply", super::reply as fn(&[u8])),
            ("rewriting", super::rewriting as fn(&[u8])),
            ("announced", super::announced as fn(&[u8])),
        ] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(seeds);
            let mut ran = 0;
            for seed in std::fs::read_dir(folder).expect("seeds") {
                target(&std::fs::read(seed.expect("a seed").path()).expect("readable"));
                ran += 1;
            }
            assert!(ran > 0, "no seeds for {seeds}");
        }
    }

    const ALPHABET: &[u8] = b"*$+-:%~,_#0123\r\n\r\n\r\nabk\xff STORE BY GET COUNT STREAMS";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn requests_hold(data in prop::collection::vec(prop::sample::select(ALPHABET.to_vec()), 0..200)) {
            super::request(&data);
        }

        #[test]
        fn replies_hold(data in prop::collection::vec(prop::sample::select(ALPHABET.to_vec()), 0..200)) {
            super::reply(&data);
        }

        #[test]
        fn rewriting_holds(row in any::<(u8, u8)>(), words in prop::collection::vec(prop_oneof![
            prop::sample::select(vec!["STORE", "BY", "GET", "MATCH", "STREAMS", "GROUP", "COUNT", "BLOCK", "DB", "LIMIT", "STOREDIST", "WITHCOORD", "k", "", "1", "2", "01", "-1", "#", "REPLACE", "99"]).prop_map(|w| w.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..6),
        ], 0..9)) {
            let mut data = vec![row.0, row.1];
            data.extend(words.join(&0xff));
            super::rewriting(&data);
        }
    }
}
