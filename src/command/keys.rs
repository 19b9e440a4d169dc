//! Where names stand in a command's arguments: the one walker that rewriting, the tier, limits and `COMMAND GETKEYS` share.
//!
//! It parses each option grammar as the server does: same order, same number of arguments eaten, every occurrence of a repeated option
//! marked, because the server lets the last one win. An option is found by walking from the front, never by searching for its word, which
//! may as well be a value.
//!
//! Invariant: no argument that some server version takes for a name stays unmarked. What this grammar does not understand (an unknown
//! word, a count that is no plain decimal, an odd half of streams) is therefore marked as keys from the point of doubt to the end: the
//! server then sees prefixed words, and reports its own syntax error without having read or written anything. An option word followed by
//! a NUL and more is such an unknown word here, although C servers compare up to the NUL only.

use std::ops::Range;

use super::{Args, Class, ConnNeed, Flags, KeySpec, Keys, Row};

/// What a marked argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A key: put the prefix before it.
    Key,
    /// A key template of SORT's BY or GET: put the prefix before it.
    Template,
    /// A database number.
    Db,
}

/// Fills `marks` with the positions, ascending, of the arguments that must be rewritten; says whether the grammar was understood, that is
/// whether nothing was marked out of doubt. `marks` is cleared first; nothing else is allocated.
///
/// The arity must have been checked: positions past the end are left out, so that this never panics, but a short command may then have
/// names where this does not look.
#[inline]
pub fn walk(row: &Row, args: &Args<'_>, marks: &mut Vec<(u32, Slot)>) -> bool {
    marks.clear();
    let argc = args.len();
    match row.keys {
        Keys::None => {}
        Keys::One(at) => mark(marks, at.into(), argc, Slot::Key),
        Keys::Range { first, last, step } => range(marks, KeySpec { first, last, step }, argc),
        Keys::Positions(specs) => specs.iter().for_each(|&spec| range(marks, spec, argc)),
        _ => return walk_grammar(row, args, marks),
    }
    true
}

fn walk_grammar(row: &Row, args: &Args<'_>, marks: &mut Vec<(u32, Slot)>) -> bool {
    let argc = args.len();
    match row.keys {
        Keys::None | Keys::One(_) | Keys::Range { .. } | Keys::Positions(_) => {}
        Keys::Numkeys { dest, at, step } => {
            if let Some(dest) = dest {
                mark(marks, dest.into(), argc, Slot::Key);
            }
            let (at, step) = (usize::from(at), usize::from(step));
            let first = at + 1;
            if argc <= at {
                return false;
            }
            let end = parse_numkeys(args.at(at)).and_then(|count| keys_end(row, count, first, step, argc));
            match end {
                Some(end) => (first..end).step_by(step).for_each(|i| mark(marks, i, argc, Slot::Key)),
                None => return doubt(marks, first, argc),
            }
        }
        Keys::Sort => return sort(args, marks, true),
        Keys::SortRo => return sort(args, marks, false),
        Keys::Georadius { options_from } => return georadius(args, marks, options_from.into()),
        Keys::Streams { group } => {
            let streams = streams(args, group);
            streams.marked.for_each(|i| mark(marks, i, argc, Slot::Key));
            return streams.understood;
        }
        Keys::Copy => {
            mark(marks, 1, argc, Slot::Key);
            mark(marks, 2, argc, Slot::Key);
            let mut i = 3;
            while i < argc {
                let word = args.at(i);
                if is(word, "REPLACE") {
                    i += 1;
                } else if is(word, "DB") && argc - i > 1 {
                    mark(marks, i + 1, argc, Slot::Db);
                    i += 2;
                } else {
                    return doubt(marks, i, argc);
                }
            }
        }
        Keys::Move => {
            mark(marks, 1, argc, Slot::Key);
            mark(marks, 2, argc, Slot::Db);
        }
        Keys::JsonDebug => mark(marks, 2, argc, Slot::Key),
        // Such a row is never forwarded; if it were, nothing in it would be the name it was meant to be.
        Keys::Unsupported => return doubt(marks, 1, argc),
    }
    true
}

/// Past the last of `count` groups that begin at `first`, or `None` when there cannot be so many. Only a script may name no key at all:
/// elsewhere the server refuses a count of 0.
fn keys_end(row: &Row, count: u64, first: usize, step: usize, argc: usize) -> Option<usize> {
    if count == 0 && row.class != Class::Script {
        return None;
    }
    let end = usize::try_from(count).ok()?.checked_mul(step)?.checked_add(first)?;
    (end <= argc).then_some(end)
}

fn sort(args: &Args<'_>, marks: &mut Vec<(u32, Slot)>, store: bool) -> bool {
    let argc = args.len();
    mark(marks, 1, argc, Slot::Key);
    let mut i = 2;
    while i < argc {
        let word = args.at(i);
        let left = argc - i - 1;
        if is(word, "ASC") || is(word, "DESC") || is(word, "ALPHA") {
            i += 1;
        } else if is(word, "LIMIT") && left >= 2 {
            i += 3;
        } else if store && is(word, "STORE") && left >= 1 {
            mark(marks, i + 1, argc, Slot::Key);
            i += 2;
        } else if is(word, "BY") && left >= 1 {
            // Without a `*` it means "do not sort", which it still does with a prefix before it, since a prefix holds no `*`.
            mark(marks, i + 1, argc, Slot::Template);
            i += 2;
        } else if is(word, "GET") && left >= 1 {
            if args.at(i + 1) != b"#" {
                mark(marks, i + 1, argc, Slot::Template);
            }
            i += 2;
        } else {
            return doubt(marks, i, argc);
        }
    }
    true
}

fn georadius(args: &Args<'_>, marks: &mut Vec<(u32, Slot)>, options_from: usize) -> bool {
    let argc = args.len();
    mark(marks, 1, argc, Slot::Key);
    let mut i = options_from;
    while i < argc {
        let word = args.at(i);
        let more = argc - i > 1;
        if ["WITHCOORD", "WITHDIST", "WITHHASH", "ANY", "ASC", "DESC"].iter().any(|option| is(word, option)) {
            i += 1;
        } else if is(word, "COUNT") && more {
            i += 2;
        } else if (is(word, "STORE") || is(word, "STOREDIST")) && more {
            mark(marks, i + 1, argc, Slot::Key);
            i += 2;
        } else {
            return doubt(marks, i, argc);
        }
    }
    true
}

/// What the options of XREAD or XREADGROUP say.
struct Streams {
    marked: Range<usize>,
    blocks: bool,
    understood: bool,
}

fn streams(args: &Args<'_>, group: bool) -> Streams {
    let argc = args.len();
    let mut blocks = false;
    let mut i = 1;
    while i < argc {
        let word = args.at(i);
        let left = argc - i - 1;
        if is(word, "STREAMS") && left >= 1 {
            let understood = left.is_multiple_of(2);
            let end = if understood { i + 1 + left / 2 } else { argc };
            return Streams { marked: i + 1..end, blocks, understood };
        } else if is(word, "BLOCK") && left >= 1 {
            blocks = true;
            i += 2;
        } else if (is(word, "COUNT") || group && is(word, "CLAIM")) && left >= 1 {
            i += 2;
        // XREAD has neither: the server says so as soon as it meets one, and has read no name by then.
        } else if is(word, "GROUP") && left >= 2 {
            i += 3;
        } else if is(word, "NOACK") {
            i += 1;
        } else {
            break;
        }
    }
    Streams { marked: i..argc, blocks, understood: false }
}

/// Commands whose count of arguments does not fit, and those that must not be forwarded in the form they have: the error to answer,
/// without the leading `-`, in Redis's words.
#[inline]
pub fn refusal(row: &Row, args: &Args<'_>) -> Option<String> {
    let argc = args.len();
    if !row.arity_ok(argc) {
        return Some(row.arity_error());
    }
    match row.keys {
        // An incomplete last group would be forwarded with half of its names rewritten.
        Keys::Range { first, last: -1, step }
            if step > 1 && !(argc - usize::from(first)).is_multiple_of(step.into()) =>
        {
            Some(row.arity_error())
        }
        Keys::JsonDebug if !is(args.at(1), "MEMORY") && !is(args.at(1), "HELP") => Some(format!(
            "ERR unknown subcommand '{}' - try `JSON.DEBUG HELP`",
            String::from_utf8_lossy(args.at(1)).escape_default()
        )),
        _ if row.flags.has(Flags::MODULE) && refused_by_value(row) => module_refusal(row, args),
        _ => None,
    }
}

/// Whether [`refusal`] looks at the arguments of this row, so that it has to be seen whole.
pub fn refused_by_value(row: &Row) -> bool {
    matches!(
        row.name,
        "CF.RESERVE"
            | "TS.INCRBY"
            | "TS.DECRBY"
            | "TS.ADD"
            | "TS.CREATE"
            | "TS.ALTER"
            | "TS.CREATERULE"
            | "TOPK.INCRBY"
    )
}

/// Calls that are known to bring a server down, for all its tenants, or to leave its replies out of step: they come no further than here.
/// (RedisBloom 2.8: CF.RESERVE ends the server on an option without its value, TOPK.INCRBY answers fewer elements than it announces
/// after a bad increment. RedisTimeSeries 1.12: TS.INCRBY, TS.DECRBY and TS.CREATERULE read past the last argument.)
fn module_refusal(row: &Row, args: &Args<'_>) -> Option<String> {
    let last = args.at(args.len() - 1);
    let refused = match row.name {
        "CF.RESERVE" => ["BUCKETSIZE", "MAXITERATIONS", "EXPANSION"].iter().any(|word| is(last, word)),
        "TS.INCRBY" | "TS.DECRBY" | "TS.ADD" | "TS.CREATE" | "TS.ALTER" => {
            ["TIMESTAMP", "RETENTION", "ENCODING", "CHUNK_SIZE", "DUPLICATE_POLICY", "ON_DUPLICATE"]
                .iter()
                .any(|word| is(last, word))
        }
        "TS.CREATERULE" => args.len() < 6,
        "TOPK.INCRBY" => {
            let number = |i| std::str::from_utf8(args.at(i)).ok().and_then(|text| text.parse::<u32>().ok());
            !args.len().is_multiple_of(2) || (3..args.len()).step_by(2).any(|i| number(i).is_none_or(|n| n > 100_000))
        }
        _ => false,
    };
    refused.then(|| row.arity_error())
}

/// Whether the command may make its connection wait.
pub fn is_blocking(row: &Row, args: &Args<'_>) -> bool {
    match (row.conn, row.keys) {
        (ConnNeed::Block, Keys::Streams { group }) => streams(args, group).blocks,
        // The option's grammar is the module's; a value called BLOCK costs no more than a connection of its own.
        (ConnNeed::Block, _) if row.name == "TS.READ" => args.iter().skip(2).any(|word| is(word, "BLOCK")),
        (ConnNeed::Block | ConnNeed::SameConn, _) => true,
        _ => false,
    }
}

/// Where the count of keys stands, for commands that have one.
pub const fn numkeys_at(row: &Row) -> Option<u8> {
    match row.keys {
        Keys::Numkeys { at, .. } => Some(at),
        _ => None,
    }
}

/// Whether argument `i` of `argc` is a key, told before the arguments after it have arrived; `None` for a row that must be seen whole.
///
/// `numkeys` is what [`parse_numkeys`] made of the argument at [`numkeys_at`]; it matters only past that position, and `None` there means
/// that the count was no plain decimal.
pub fn fixed_slot(row: &Row, i: usize, argc: usize, numkeys: Option<u64>) -> Option<bool> {
    let within = |spec: KeySpec| {
        let (first, end, step) = bounds(spec, argc);
        (first..end).contains(&i) && (i - first).is_multiple_of(step)
    };
    match row.keys {
        Keys::None => Some(false),
        Keys::One(at) => Some(i == usize::from(at)),
        Keys::Range { first, last, step } => Some(within(KeySpec { first, last, step })),
        Keys::Positions(specs) => Some(specs.iter().any(|&spec| within(spec))),
        Keys::Numkeys { dest, at, step } => {
            let (at, step) = (usize::from(at), usize::from(step));
            if i <= at {
                return Some(dest.is_some_and(|dest| usize::from(dest) == i));
            }
            let first = at + 1;
            match numkeys.and_then(|count| keys_end(row, count, first, step, argc)) {
                Some(end) => Some(i < end && (i - first).is_multiple_of(step)),
                None => Some(true),
            }
        }
        Keys::JsonDebug => Some(i == 2),
        Keys::Sort
        | Keys::SortRo
        | Keys::Georadius { .. }
        | Keys::Streams { .. }
        | Keys::Copy
        | Keys::Move
        | Keys::Unsupported => None,
    }
}

/// A count of keys as Redis reads it: decimal digits only, no sign, no leading zero. `None` also past 2^64.
pub fn parse_numkeys(text: &[u8]) -> Option<u64> {
    match text {
        [b'0'] => Some(0),
        [b'1'..=b'9', ..] => text.iter().try_fold(0u64, |sum, digit| {
            let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
            sum.checked_mul(10)?.checked_add(digit)
        }),
        _ => None,
    }
}

#[inline]
fn is(word: &[u8], option: &str) -> bool {
    word.eq_ignore_ascii_case(option.as_bytes())
}

/// First position, position past the last, and step; empty when the range does not fit.
fn bounds(spec: KeySpec, argc: usize) -> (usize, usize, usize) {
    let end = match usize::try_from(spec.last) {
        Ok(last) => (last + 1).min(argc),
        Err(_) => argc.saturating_sub(usize::from(spec.last.unsigned_abs()) - 1),
    };
    (spec.first.into(), end, spec.step.into())
}

#[inline]
fn range(marks: &mut Vec<(u32, Slot)>, spec: KeySpec, argc: usize) {
    let (first, end, step) = bounds(spec, argc);
    let mut i = first;
    while i < end {
        mark(marks, i, argc, Slot::Key);
        i += step;
    }
}

#[inline]
fn mark(marks: &mut Vec<(u32, Slot)>, i: usize, argc: usize, slot: Slot) {
    if i < argc
        && let Ok(i) = u32::try_from(i)
    {
        marks.push((i, slot));
    }
}

/// Marks all that is left, and says that it was not understood.
fn doubt(marks: &mut Vec<(u32, Slot)>, from: usize, argc: usize) -> bool {
    (from..argc).for_each(|i| mark(marks, i, argc, Slot::Key));
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::command::tests::Owned;
    use crate::command::{Class, Lookup, ROWS, find, lookup};

    fn row(args: &Args<'_>) -> &'static Row {
        match lookup(args) {
            Lookup::Found(row) => row,
            other => panic!("{other:?}"),
        }
    }

    /// The command with a mark before each argument that is rewritten: `+` key, `~` template, `@` database.
    fn shown(words: &[&str]) -> String {
        let owned = Owned::new(words);
        let args = owned.args();
        let mut marks = Vec::new();
        walk(row(&args), &args, &mut marks);
        let mut shown: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        for (i, slot) in marks {
            let sign = match slot {
                Slot::Key => '+',
                Slot::Template => '~',
                Slot::Db => '@',
            };
            shown[i as usize].insert(0, sign);
        }
        shown.join(" ")
    }

    /// Walks the words of `want` without their marks, and expects them back with the marks.
    #[track_caller]
    fn marks(want: &str) {
        let words: Vec<_> = want.split(' ').map(|word| word.trim_start_matches(['+', '~', '@'])).collect();
        assert_eq!(shown(&words), want);
    }

    #[track_caller]
    fn refused(words: &str, want: &str) {
        let owned = Owned::new(&words.split(' ').collect::<Vec<_>>());
        assert_eq!(refusal(row(&owned.args()), &owned.args()).as_deref(), Some(want));
    }

    #[test]
    fn a1_every_store_is_marked() {
        marks("GEORADIUS +g 0 0 1 km STORE +x STORE +b:y");
        marks("georadius +g 0 0 1 km storedist +x Store +b:y COUNT 1 ANY ASC WITHDIST");
        marks("GEORADIUSBYMEMBER +g m 1 km STOREDIST +x STORE +y");
        marks("SORT +l STORE +a STORE +b");
    }

    #[test]
    fn a2_a_value_may_look_like_an_option() {
        marks("SORT +l STORE +BY STORE +b:x");
        marks("SORT +l LIMIT 0 1 STORE +x");
        marks("SORT +l LIMIT STORE 1 STORE +x");
        marks("SORT +BY BY ~STORE STORE +GET");
        marks("GEORADIUS +g 0 0 1 km STORE +STOREDIST STOREDIST +STORE");
        marks("GEORADIUS +g 0 0 1 km COUNT STORE STORE +x");
    }

    #[test]
    fn a3_scan_is_emulated() {
        let row = find("SCAN").expect("in the table");
        assert_eq!((row.class, row.forwardable()), (Class::Scoped, false));
    }

    #[test]
    fn a4_every_db_is_marked() {
        marks("COPY +k +k2 DB @0 DB @1");
        marks("COPY +k +k2 REPLACE DB @DB replace");
        marks("MOVE +k @1");
    }

    #[test]
    fn a5_templates_are_marked() {
        marks("SORT +l BY ~nosort GET ~b:* GET # GET ~h*->f BY ~w_*");
        marks("SORT_RO +l BY ~w_* GET ~# GET ~b:*".replace("GET ~#", "GET #").as_str());
        marks("SORT_RO +l ALPHA +STORE +x");
    }

    #[test]
    fn a6_streams_are_found_by_parsing() {
        marks("XREADGROUP COUNT 1 GROUP STREAMS c STREAMS +k >");
        marks("XREADGROUP GROUP g STREAMS NOACK BLOCK STREAMS STREAMS +STREAMS +k > >");
        marks("XREADGROUP GROUP g c CLAIM STREAMS STREAMS +k >");
        marks("XREAD COUNT 2 BLOCK 0 STREAMS +a +b 0 0");
        marks("XREAD STREAMS +a +b +0");
        marks("XREAD +CLAIM +1 +STREAMS +a +0");
        marks("XREAD GROUP g c STREAMS +a 0");
        marks("XREAD NOACK STREAMS +a 0");
        marks("XREAD NOACK +STREAMS");
        marks("XREAD COUNT 1 +STREAMS");
    }

    #[test]
    fn calls_that_end_a_server_come_no_further() {
        let refused = |line: &str| {
            let owned = Owned::new(&line.split(' ').collect::<Vec<_>>());
            refusal(row(&owned.args()), &owned.args())
        };
        for line in [
            "CF.RESERVE c 1000 EXPANSION",
            "TS.INCRBY c 5 1000 timestamp",
            "TS.CREATERULE t u AGGREGATION avg",
            "TOPK.INCRBY t a x b 2",
            "TOPK.INCRBY t a 1 b",
        ] {
            assert!(refused(line).is_some(), "{line}");
        }
        for line in [
            "CF.RESERVE c 1000 EXPANSION 2",
            "TS.INCRBY c 5 TIMESTAMP 7",
            "TS.CREATERULE t u AGGREGATION avg 10",
            "TOPK.INCRBY t a 1 b 2",
        ] {
            assert_eq!(refused(line), None, "{line}");
        }
    }

    #[test]
    fn a7_a_count_is_a_plain_decimal_that_fits() {
        marks("ZUNIONSTORE +d 2 +a +b WEIGHTS 1 2");
        marks("LMPOP 1 +a LEFT");
        marks("BLMPOP 0 2 +a +b LEFT");
        marks("EVAL s 0 k");
        marks("EVAL s 1 +k v");
        marks("MSETEX 2 +a 1 +b 2 EX 5");
        for count in [
            "-1",
            "+1",
            "01",
            "1.0",
            "",
            "1x",
            "4294967297",
            "18446744073709551615",
            "18446744073709551616",
            "9223372036854775807",
        ] {
            assert_eq!(shown(&["EVAL", "s", count, "k", "v"]), format!("EVAL s {count} +k +v"));
            assert_eq!(shown(&["ZUNIONSTORE", "d", count, "k", "v"]), format!("ZUNIONSTORE +d {count} +k +v"));
            assert_eq!(shown(&["MSETEX", count, "k", "v"]), format!("MSETEX {count} +k +v"));
        }
        marks("LMPOP 0 +LEFT +COUNT");
        marks("MSETEX 2 +k v +EX 5");
        marks("MSETEX 3 +k +v +EX +5");
    }

    #[test]
    fn a8_keys_that_the_server_does_not_list() {
        marks("CMS.MERGE +d 2 +a +b WEIGHTS 1 2");
        marks("TDIGEST.MERGE +d 1 +a COMPRESSION 100");
        marks("JSON.MGET +a +b +c $");
        marks("TS.CREATERULE +a +b AGGREGATION avg 60");
        marks("TS.DELETERULE +a +b");
        marks("JSON.DEBUG MEMORY +k $");
        refused("JSON.DEBUG DEFRAG k", "ERR unknown subcommand 'DEFRAG' - try `JSON.DEBUG HELP`");
        marks("FT.SUGADD +k s 1");
    }

    #[test]
    fn a11_an_unknown_word_where_a_name_could_follow_is_marked_with_all_after_it() {
        marks("SORT +l +NEWSTORE +x LIMIT 0 1".replace("LIMIT 0 1", "+LIMIT +0 +1").as_str());
        marks("SORT +l ASC +LIMIT +0");
        marks("SORT +l STORE +x +GET");
        marks("GEORADIUS +g 0 0 1 km ASC +FROB +x +STORE +y");
        marks("COPY +a +b +TO +c");
        marks("COPY +a +b +DB");
        marks("XREADGROUP GROUP g c +FROB +STREAMS +k +>");
        // The server compares up to a NUL, so this is a STORE to it.
        assert_eq!(shown(&["SORT", "l", "STORE\0x", "y"]), "SORT +l +STORE\0x +y");
        // Where no option can be a name, unknown words pass.
        marks("SET +k v FROB x");
        marks("ZRANGESTORE +d +s 0 -1 FROB");
    }

    #[test]
    fn a12_odd_counts_are_answered_here() {
        refused("MSET k v k2", "ERR wrong number of arguments for 'mset' command");
        refused("msetnx k v k2", "ERR wrong number of arguments for 'msetnx' command");
        refused("BLPOP k", "ERR wrong number of arguments for 'blpop' command");
        refused("JSON.MSET k $", "ERR wrong number of arguments for 'json.mset' command");
        refused("JSON.MSET k $ 1 j $", "ERR wrong number of arguments for 'json.mset' command");
        refused("TS.MADD k 1 1 j 2", "ERR wrong number of arguments for 'ts.madd' command");
        refused("CLIENT KILL", "ERR wrong number of arguments for 'client|kill' command");
        let whole = Owned::new(&["MSET", "a", "1", "b", "2"]);
        assert_eq!(refusal(row(&whole.args()), &whole.args()), None);
        marks("MSET +a 1 +b 2");
        marks("JSON.MSET +a $ 1 +b $ 2");
        marks("BLPOP +a +b 0");
    }

    #[test]
    fn a13_second_names() {
        for command in [
            "RENAME +a +b",
            "RENAMENX +a +b",
            "COPY +a +b",
            "SMOVE +a +b m",
            "LMOVE +a +b LEFT LEFT",
            "BLMOVE +a +b LEFT LEFT 0",
            "RPOPLPUSH +a +b",
            "BRPOPLPUSH +a +b 0",
            "BITOP AND +d +a +b",
            "PFMERGE +d +a +b",
            "PFMERGE +d",
            "SDIFFSTORE +d +a +b",
            "SINTERSTORE +d +a",
            "SUNIONSTORE +d +a",
            "ZDIFFSTORE +d 1 +a",
            "ZINTERSTORE +d 1 +a",
            "ZRANGESTORE +d +a 0 -1",
            "GEOSEARCHSTORE +d +a FROMMEMBER m BYRADIUS 1 km",
            "LCS +a +b LEN",
            "OBJECT ENCODING +k",
            "MEMORY USAGE +k SAMPLES 0",
            "XGROUP CREATE +k g $",
        ] {
            marks(command);
        }
    }

    #[test]
    fn blocking_is_seen_in_the_options_only() {
        let blocks = |words: &str| {
            let owned = Owned::new(&words.split(' ').collect::<Vec<_>>());
            is_blocking(row(&owned.args()), &owned.args())
        };
        for words in [
            "BLPOP k 0",
            "BZMPOP 0 1 k MIN",
            "XREAD BLOCK 0 STREAMS k $",
            "WAIT 1 0",
            "WAITAOF 1 0 0",
            "TS.READ k 0 block 5 1",
        ] {
            assert!(blocks(words), "{words}");
        }
        for words in [
            "XREAD COUNT 1 STREAMS BLOCK $",
            "XREADGROUP GROUP BLOCK 5 STREAMS k >",
            "GET BLOCK",
            "TS.READ BLOCK 0",
            "LPOP k",
        ] {
            assert!(!blocks(words), "{words}");
        }
    }

    #[test]
    fn every_forwarded_row_has_names_or_needs_none() {
        for row in ROWS {
            assert!(!row.forwardable() || row.keys != Keys::Unsupported, "{}", row.name);
            assert!(row.class != Class::Keyed || row.keys != Keys::None, "{}", row.name);
            assert!(row.class != Class::Keyless || matches!(row.keys, Keys::None | Keys::Unsupported), "{}", row.name);
        }
    }

    #[test]
    fn rows_not_served_yet() {
        let rows: Vec<_> = ROWS.iter().filter(|row| row.keys == Keys::Unsupported).map(|row| row.name).collect();
        let (search, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(|name| name.starts_with("FT."));
        assert_eq!(search.len(), 29);
        assert_eq!(
            rest,
            [
                "CLUSTERSCAN",
                "HIMPORT DISCARD",
                "HIMPORT DISCARDALL",
                "HIMPORT PREPARE",
                "HIMPORT SET",
                "TS.INFO",
                "TS.MGET",
                "TS.MRANGE",
                "TS.MREVRANGE",
                "TS.QUERYINDEX",
                "TS.QUERYLABELS",
            ]
        );
        for name in ["SCRIPT DEBUG", "CONFIG SET", "FUNCTION DUMP", "FUNCTION RESTORE", "HIMPORT", "DEBUG"] {
            assert!(find(name).is_some_and(|row| !row.served()), "{name}");
        }
        for name in
            ["GET", "CLIENT", "CONFIG GET", "EVAL", "LASTSAVE", "SCAN", "OBJECT HELP", "MULTI", "SCRIPT", "XREADGROUP"]
        {
            assert!(find(name).is_some_and(Row::served), "{name}");
        }
    }

    /// What C code compares with `strcasecmp`: up to the first NUL.
    fn c_is(word: &str, option: &str) -> bool {
        word.split('\0').next().is_some_and(|word| word.eq_ignore_ascii_case(option))
    }

    /// The names SORT would use, written after `sort.c`; `None` where it answers a syntax error.
    fn server_sort(words: &[String]) -> Option<Vec<usize>> {
        let mut names = vec![1];
        let mut j = 2;
        while j < words.len() {
            let left = words.len() - j - 1;
            if ["asc", "desc", "alpha"].iter().any(|option| c_is(&words[j], option)) {
            } else if c_is(&words[j], "limit") && left >= 2 {
                j += 2;
            } else if ["store", "by", "get"].iter().any(|option| c_is(&words[j], option)) && left >= 1 {
                if !(c_is(&words[j], "get") && words[j + 1] == "#") {
                    names.push(j + 1);
                }
                j += 1;
            } else {
                return None;
            }
            j += 1;
        }
        Some(names)
    }

    /// The names GEORADIUS would use, written after `geo.c`.
    fn server_georadius(words: &[String], base: usize) -> Option<Vec<usize>> {
        let mut names = vec![1];
        let mut i = base;
        while i < words.len() {
            let more = i + 1 < words.len();
            if ["withdist", "withhash", "withcoord", "any", "asc", "desc"].iter().any(|option| c_is(&words[i], option))
            {
            } else if c_is(&words[i], "count") && more {
                i += 1;
            } else if (c_is(&words[i], "store") || c_is(&words[i], "storedist")) && more {
                names.push(i + 1);
                i += 1;
            } else {
                return None;
            }
            i += 1;
        }
        Some(names)
    }

    /// The names XREADGROUP would use, written after `t_stream.c`.
    fn server_xreadgroup(words: &[String]) -> Option<Vec<usize>> {
        let mut i = 1;
        while i < words.len() {
            let more = words.len() - i - 1;
            if ["block", "count", "claim"].iter().any(|option| c_is(&words[i], option)) && more > 0 {
                i += 1;
            } else if c_is(&words[i], "streams") && more > 0 {
                return more.is_multiple_of(2).then(|| (i + 1..i + 1 + more / 2).collect());
            } else if c_is(&words[i], "group") && more >= 2 {
                i += 2;
            } else if !c_is(&words[i], "noack") {
                return None;
            }
            i += 1;
        }
        None
    }

    fn soup(words: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
        let word = (prop::sample::select(words), 0..8u8).prop_map(|(word, twist)| match twist {
            0 => word.to_ascii_lowercase(),
            1 => format!("{word}\0x"),
            _ => word.to_owned(),
        });
        prop::collection::vec(word, 0..14)
    }

    fn checked(words: &[String], server: Option<Vec<usize>>) -> Result<(), TestCaseError> {
        let owned = Owned::new(words);
        let args = owned.args();
        let mut marks = Vec::new();
        let understood = walk(row(&args), &args, &mut marks);
        prop_assert!(marks.is_sorted_by(|a, b| a.0 < b.0), "{marks:?}");
        prop_assert!(marks.iter().all(|(i, _)| *i >= 1 && (*i as usize) < words.len()));
        let marked: Vec<_> = marks.iter().filter(|(_, slot)| *slot != Slot::Db).map(|(i, _)| *i as usize).collect();
        if let Some(names) = server {
            prop_assert!(names.iter().all(|name| marked.contains(name)), "{words:?}: {names:?} of {marked:?}");
            if understood {
                prop_assert_eq!(names, marked);
            }
        } else {
            prop_assert!(!understood, "{words:?}");
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn sort_marks_what_the_server_uses(rest in soup(&["ASC", "ALPHA", "LIMIT", "STORE", "BY", "GET", "#", "0", "x", "p*"])) {
            let words: Vec<_> = ["SORT", "l"].map(str::to_owned).into_iter().chain(rest).collect();
            checked(&words, server_sort(&words))?;
        }

        #[test]
        fn georadius_marks_what_the_server_uses(
            rest in soup(&["ASC", "ANY", "COUNT", "STORE", "STOREDIST", "WITHHASH", "1", "x"]),
            member in any::<bool>(),
        ) {
            let head: &[&str] = if member { &["GEORADIUSBYMEMBER", "g", "m", "1", "km"] } else { &["GEORADIUS", "g", "0", "0", "1", "km"] };
            let words: Vec<_> = head.iter().map(|word| (*word).to_owned()).chain(rest).collect();
            checked(&words, server_georadius(&words, head.len()))?;
        }

        #[test]
        fn xreadgroup_marks_what_the_server_uses(
            rest in soup(&["GROUP", "STREAMS", "STREAMS", "COUNT", "BLOCK", "NOACK", "CLAIM", "k", ">", "1"]),
        ) {
            let words: Vec<_> = ["XREADGROUP".to_owned()].into_iter().chain(rest).collect();
            checked(&words, server_xreadgroup(&words))?;
        }

        #[test]
        fn any_row_with_any_arguments_is_marked_in_order_and_as_told_beforehand(
            at in 0..ROWS.len(),
            rest in prop::collection::vec(prop::sample::select(vec!["0", "1", "2", "3", "STORE", "STREAMS", "DB", "k", "-1", ""]), 0..12),
        ) {
            let row = &ROWS[at];
            let words: Vec<_> = row.name.split(' ').chain(rest).collect();
            let owned = Owned::new(&words);
            let args = owned.args();
            let mut marks = Vec::new();
            walk(row, &args, &mut marks);
            prop_assert!(marks.is_sorted_by(|a, b| a.0 < b.0), "{marks:?}");
            prop_assert!(marks.iter().all(|(i, _)| *i >= 1 && (*i as usize) < words.len()));
            refusal(row, &args);
            is_blocking(row, &args);
            let count = numkeys_at(row).map(usize::from).filter(|at| *at < words.len()).and_then(|at| parse_numkeys(args.at(at)));
            for i in 0..words.len() {
                if let Some(told) = fixed_slot(row, i, words.len(), count) {
                    prop_assert_eq!(told, marks.iter().any(|(mark, _)| *mark as usize == i), "{:?} {}", words, i);
                }
            }
        }
    }
}
