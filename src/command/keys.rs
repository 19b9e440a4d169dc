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

use super::{Args, Class, ConnNeed, KeySpec, Keys, Row};

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

/// Fills `marks` with the positions, ascending, of the arguments that must be rewritten. `marks` is cleared first; nothing else is
/// allocated.
///
/// The arity must have been checked: positions past the end are left out, so that this never panics, but a short command may then have
/// names where this does not look.
#[inline]
pub fn walk(row: &Row, args: &Args<'_>, marks: &mut Vec<(u32, Slot)>) {
    marks.clear();
    let argc = args.len();
    match row.keys {
        Keys::None => {}
        Keys::One(at) => mark(marks, at.into(), argc, Slot::Key),
        Keys::Range { first, last, step } => range(marks, KeySpec { first, last, step }, argc),
        Keys::Positions(specs) => specs.iter().for_each(|&spec| range(marks, spec, argc)),
        _ => walk_grammar(row, args, marks),
    }
}

fn walk_grammar(row: &Row, args: &Args<'_>, marks: &mut Vec<(u32, Slot)>) {
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
                return;
            }
            let end = parse_numkeys(args.at(at)).and_then(|count| keys_end(row, count, first, step, argc));
            match end {
                Some(end) => (first..end).step_by(step).for_each(|i| mark(marks, i, argc, Slot::Key)),
                None => doubt(marks, first, argc),
            }
        }
        Keys::Sort => sort(args, marks, true),
        Keys::SortRo => sort(args, marks, false),
        Keys::Georadius { options_from } => georadius(args, marks, options_from.into()),
        Keys::Streams { group } => streams(args, group).0.for_each(|i| mark(marks, i, argc, Slot::Key)),
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
        Keys::Unsupported => doubt(marks, 1, argc),
    }
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

fn sort(args: &Args<'_>, marks: &mut Vec<(u32, Slot)>, store: bool) {
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
}

fn georadius(args: &Args<'_>, marks: &mut Vec<(u32, Slot)>, options_from: usize) {
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
}

/// The positions to mark in XREAD or XREADGROUP, and whether the options ask to wait.
fn streams(args: &Args<'_>, group: bool) -> (Range<usize>, bool) {
    let argc = args.len();
    let mut blocks = false;
    let mut i = 1;
    while i < argc {
        let word = args.at(i);
        let left = argc - i - 1;
        if is(word, "STREAMS") && left >= 1 {
            let end = if left.is_multiple_of(2) { i + 1 + left / 2 } else { argc };
            return (i + 1..end, blocks);
        } else if is(word, "BLOCK") && left >= 1 {
            blocks = true;
            i += 2;
        } else if (is(word, "COUNT") || group && is(word, "CLAIM")) && left >= 1 {
            i += 2;
        } else if group && is(word, "GROUP") && left >= 2 {
            i += 3;
        } else if group && is(word, "NOACK") {
            i += 1;
        } else {
            break;
        }
    }
    (i.min(argc)..argc, blocks)
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
        Keys::Range { first, last: -1, step } if step > 1 && !(argc - usize::from(first)).is_multiple_of(step.into()) => {
            Some(row.arity_error())
        }
        Keys::JsonDebug if !is(args.at(1), "MEMORY") && !is(args.at(1), "HELP") => {
            Some(format!("ERR unknown subcommand '{}' - try `JSON.DEBUG HELP`", String::from_utf8_lossy(args.at(1)).escape_default()))
        }
        _ => None,
    }
}

/// Whether the command may make its connection wait.
pub fn is_blocking(row: &Row, args: &Args<'_>) -> bool {
    match (row.conn, row.keys) {
        (ConnNeed::Block, Keys::Streams { group }) => streams(args, group).1,
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

fn doubt(marks: &mut Vec<(u32, Slot)>, from: usize, argc: usize) {
    (from..argc).for_each(|i| mark(marks, i, argc, Slot::Key));
}
