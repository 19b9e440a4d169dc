//! Malformed and odd calls, made mechanically from a well-formed one.
use keyfence::command::ROWS;

use super::corpus::{Call, name};

/// Key names that a prefixing proxy might trip over, and names that are option words.
const ODD: &[&[u8]] = &[
    b"",
    b"\r\n\0\xff*?[a]\\{}'\" ",
    b"STORE",
    b"BY",
    b"STREAMS",
    b"MATCH",
    b"GET",
    b"COUNT",
    b"LIMIT",
    b"GROUP",
    b"keyfence:",
    b"WEIGHTS",
    b"DB",
    b"STOREDIST",
    b"BLOCK",
    b"REPLACE",
    b"wrong:string",
    b"wrong:list",
    b"wrong:stream",
];

const BAD_NUMBERS: &[&[u8]] = &[b"x", b"-1", b"1.5", b"99999999999999999999", b"18446744073709551615"];
/// Spellings that some parser somewhere takes for a number. Not for timeouts, which they would set.
const ODD_NUMBERS: &[&[u8]] = &[b"+1", b"01", b" 1", b"0x1", b"1 ", b"0", b"2"];

/// Calls that every scene starts with: keys of the wrong type for whatever is asked of them.
pub(crate) fn set_up() -> Vec<Call> {
    ["SET wrong:string v", "RPUSH wrong:list a", "XADD wrong:stream 1-1 f v"]
        .into_iter()
        .map(super::corpus::words)
        .collect()
}

/// All variants of one call. None of them can block for longer than the call itself.
pub(crate) fn variants(call: &Call) -> Vec<Call> {
    let mut all = Vec::new();
    let n = call.len();
    let name = name(call);
    // Its options may be seen in any case.
    let words = |f: fn(&[u8]) -> Vec<u8>| -> Call {
        call.iter().map(|arg| if arg.iter().all(u8::is_ascii_uppercase) { f(arg) } else { arg.clone() }).collect()
    };
    all.push(words(|arg| arg.to_ascii_lowercase()));
    all.push(words(|arg| {
        arg.iter().enumerate().map(|(i, b)| if i % 2 == 0 { b.to_ascii_lowercase() } else { *b }).collect()
    }));
    all.push(call[..1].to_vec());
    for at in 1..n {
        let with = |arg: &[u8]| {
            let mut variant = call.clone();
            variant[at] = arg.to_vec();
            variant
        };
        let mut dropped = call.clone();
        dropped.remove(at);
        all.push(dropped);
        let mut doubled = call.clone();
        doubled.insert(at, call[at].clone());
        all.push(doubled);
        if at + 1 < n {
            let mut swapped = call.clone();
            swapped.swap(at, at + 1);
            all.push(swapped);
            all.push(call[..at].to_vec());
        }
        if call[at].parse_number() {
            all.extend(BAD_NUMBERS.iter().map(|number| with(number)));
            if !blocks(&name) {
                // A long time to live must not become a short one: whether it is over would be chance.
                let long = call[at].len() >= 6;
                all.extend(ODD_NUMBERS.iter().filter(|number| !long || **number != b"2").map(|number| with(number)));
            }
        }
        // The first two for every position, the others in turn.
        all.extend(ODD[..2].iter().map(|odd| with(odd)));
        let turn = n * 7 + at * 5 + call[0].len();
        all.extend((0..4).map(|i| with(ODD[2 + (turn + i * 4) % (ODD.len() - 2)])));
    }
    for extra in [&b"extra"[..], b"STORE", b"MATCH", b"", b"1"] {
        let mut longer = call.clone();
        longer.push(extra.to_vec());
        all.push(longer);
    }
    for options in [[&b"STORE"[..], b"to"], [b"MATCH", b"*"], [b"COUNT", b"1"], [b"GET", b"x*"], [b"DB", b"0"]] {
        let mut longer = call.clone();
        longer.extend(options.iter().map(|option| option.to_vec()));
        all.push(longer);
    }
    all.retain(|variant| {
        variant != call && !hangs(&name, variant) && !fells(&name, variant) && counted(&name, variant)
    });
    all
}

fn blocks(name: &str) -> bool {
    matches!(
        name,
        "BLPOP"
            | "BRPOP"
            | "BLMOVE"
            | "BRPOPLPUSH"
            | "BLMPOP"
            | "BZPOPMIN"
            | "BZPOPMAX"
            | "BZMPOP"
            | "XREAD"
            | "XREADGROUP"
            | "WAIT"
            | "TS.READ"
    )
}

/// Variants that wait for ever or for seconds: a blocking call whose timeout became a whole number.
fn hangs(name: &str, variant: &Call) -> bool {
    if !blocks(name) {
        return false;
    }
    let word = |arg: &[u8], word: &str| arg.eq_ignore_ascii_case(word.as_bytes());
    let whole = |arg: Option<&Vec<u8>>| {
        arg.is_some_and(|arg| !arg.is_empty() && arg.iter().all(u8::is_ascii_digit) && arg.len() < 19)
    };
    match name {
        "XREAD" | "XREADGROUP" => {
            let block = variant.iter().position(|arg| word(arg, "BLOCK"));
            // The corpus blocks for 1 ms; anything else that reads as a number might be for ever.
            block.is_some_and(|at| whole(variant.get(at + 1)) && variant[at + 1] != b"1")
        }
        "BLMPOP" | "BZMPOP" | "WAIT" | "TS.READ" => {
            whole(variant.get(1)) || variant.get(1).is_some_and(|arg| arg == b"1.5")
        }
        _ => whole(variant.last()) || variant.last().is_some_and(|arg| arg == b"1.5"),
    }
}

/// Variants that a module of the server itself does not survive, answers with fewer elements than it announces, or by
/// the clock.
fn fells(name: &str, variant: &Call) -> bool {
    match name {
        // RedisBloom 2.8 and RedisTimeSeries 1.12 read behind the last argument.
        "CF.RESERVE" => variant.last().is_some_and(|last| {
            ["EXPANSION", "BUCKETSIZE", "MAXITERATIONS"].iter().any(|word| last.eq_ignore_ascii_case(word.as_bytes()))
        }),
        // Without a timestamp they take the clock's.
        "TS.INCRBY" | "TS.DECRBY" => variant.len() < 5 || !variant[3].eq_ignore_ascii_case(b"TIMESTAMP"),
        "TS.CREATERULE" => variant.len() < 6 || !variant[3].eq_ignore_ascii_case(b"AGGREGATION"),
        // RedisBloom 2.8 announces an element each and stops at the first that is wrong.
        "TOPK.INCRBY" => {
            let count = |arg: &Vec<u8>| {
                std::str::from_utf8(arg)
                    .is_ok_and(|text| text.parse::<u32>().is_ok_and(|n| n.to_string() == text && n <= 100_000))
            };
            variant.len().is_multiple_of(2) && variant.len() > 2 && !variant[3..].iter().step_by(2).all(count)
        }
        _ => false,
    }
}

/// Older modules do not count their arguments; keyfence does.
fn counted(name: &str, variant: &Call) -> bool {
    let Some(row) = ROWS.iter().find(|row| row.name == name && row.family.starts_with("module")) else { return true };
    let (count, arity) = (variant.len(), usize::from(row.arity.unsigned_abs()));
    if row.arity > 0 { count == arity } else { count >= arity }
}

trait Number {
    fn parse_number(&self) -> bool;
}

impl Number for Vec<u8> {
    fn parse_number(&self) -> bool {
        std::str::from_utf8(self).is_ok_and(|text| text.parse::<f64>().is_ok())
    }
}
