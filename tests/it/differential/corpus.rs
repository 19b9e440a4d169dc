//! The corpus files: one call a line, an empty line between scenes, `#` for comments.
//!
//! Words are separated by blanks; `"…"` takes `\r \n \0 \\ \" \xHH`. A line's normalisation follows from its command, see [`rule`].
use keyfence::command::ROWS;

use crate::support::value::Rule;

/// One call: its arguments, the command word first.
pub(crate) type Call = Vec<Vec<u8>>;

/// The corpora by topic.
pub(crate) const TOPICS: &[(&str, &str)] = &[
    ("strings", include_str!("../corpus/strings.txt")),
    ("keys", include_str!("../corpus/keys.txt")),
    ("bits", include_str!("../corpus/bits.txt")),
    ("lists", include_str!("../corpus/lists.txt")),
    ("sets", include_str!("../corpus/sets.txt")),
    ("hashes", include_str!("../corpus/hashes.txt")),
    ("zsets", include_str!("../corpus/zsets.txt")),
    ("geo", include_str!("../corpus/geo.txt")),
    ("streams", include_str!("../corpus/streams.txt")),
    ("blocking", include_str!("../corpus/blocking.txt")),
    ("sort", include_str!("../corpus/sort.txt")),
    ("json", include_str!("../corpus/json.txt")),
    ("bloom", include_str!("../corpus/bloom.txt")),
    ("timeseries", include_str!("../corpus/timeseries.txt")),
    ("vectors", include_str!("../corpus/vectors.txt")),
    ("newer", include_str!("../corpus/newer.txt")),
];

/// The scenes of one topic.
pub(crate) fn scenes(topic: &str) -> Vec<Vec<Call>> {
    let (_, text) = TOPICS.iter().find(|(name, _)| *name == topic).unwrap();
    let mut scenes = parse(text);
    for scene in &mut scenes {
        scene.retain(served);
    }
    scenes.retain(|scene| !scene.is_empty());
    scenes
}

/// Whether this version serves it: a command of the table that it refuses has another answer than the server's.
pub(crate) fn served(call: &Call) -> bool {
    let name = name(call);
    crate::support::target_is_plain() || ROWS.iter().find(|row| row.name == name).is_none_or(|row| row.served)
}

/// Whether a module of the server provides it.
pub(crate) fn of_a_module(call: &Call) -> bool {
    let name = name(call);
    ROWS.iter().any(|row| row.name == name && row.family.starts_with("module"))
}

/// The scenes of a corpus file.
pub(crate) fn parse(text: &str) -> Vec<Vec<Call>> {
    let mut scenes = vec![Vec::new()];
    for line in text.lines().map(str::trim) {
        if line.is_empty() {
            scenes.push(Vec::new());
        } else if !line.starts_with('#') {
            scenes.last_mut().unwrap().push(words(line));
        }
    }
    scenes.retain(|scene| !scene.is_empty());
    scenes
}

/// One line's arguments.
pub(crate) fn words(line: &str) -> Call {
    let mut words = Vec::new();
    let mut bytes = line.bytes().peekable();
    while let Some(&first) = bytes.peek() {
        if first == b' ' {
            bytes.next();
            continue;
        }
        let mut word = Vec::new();
        if first == b'"' {
            bytes.next();
            loop {
                match bytes.next().unwrap_or_else(|| panic!("unclosed quote: {line}")) {
                    b'"' => break,
                    b'\\' => word.push(match bytes.next() {
                        Some(b'r') => b'\r',
                        Some(b'n') => b'\n',
                        Some(b'0') => 0,
                        Some(b'x') => {
                            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                            u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                        }
                        Some(other) => other,
                        None => panic!("lone backslash: {line}"),
                    }),
                    byte => word.push(byte),
                }
            }
        } else {
            while let Some(byte) = bytes.next_if(|&byte| byte != b' ') {
                word.push(byte);
            }
        }
        words.push(word);
    }
    words
}

/// The call's table name: the command word, with the subcommand where the table has one.
pub(crate) fn name(call: &Call) -> String {
    let upper = |i: usize| call.get(i).map_or(String::new(), |arg| String::from_utf8_lossy(arg).to_ascii_uppercase());
    let first = upper(0);
    match first.as_str() {
        "OBJECT" | "XINFO" | "XGROUP" | "MEMORY" | "FT.CURSOR" => format!("{first} {}", upper(1)),
        _ => first,
    }
}

/// How its replies may differ.
pub(crate) fn rule(call: &Call) -> Rule {
    match name(call).as_str() {
        "SMEMBERS" | "SINTER" | "SUNION" | "SDIFF" | "SSCAN" | "KEYS" | "HKEYS" | "HVALS" | "HGETALL" | "HSCAN"
        | "SPOP" | "TS.QUERYINDEX" => Rule::Unordered,
        "TTL" | "PTTL" | "EXPIRETIME" | "PEXPIRETIME" | "OBJECT IDLETIME" | "OBJECT FREQ" | "MEMORY USAGE"
        | "XPENDING" | "XINFO STREAM" | "XINFO CONSUMERS" | "XREADGROUP" | "TIME" | "HTTL" | "HPTTL"
        | "HEXPIRETIME" | "HPEXPIRETIME" | "JSON.DEBUG" | "TS.INFO" | "VINFO" => Rule::Near,
        "JSON.GET" | "JSON.MGET" => Rule::Shuffled,
        _ => Rule::Exact,
    }
}
