//! COMMAND and its subcommands, answered from the table: only what this build serves and this tenant may run.
//!
//! Shapes and error texts are those of Redis 7.0.15. Key specs are given for keys at known positions; an option that may name a key is
//! told by the flag `movablekeys` and a spec of type `unknown`.

use crate::command::keys::{Slot, walk};
use crate::command::{Args, Categories, Class, Flags, KeySpec, Keys, Lookup, ROWS, Row, find, lookup};
use crate::glob;
use crate::resp::Value;

/// Whether this tenant may run a command.
pub type Permitted<'a> = &'a dyn Fn(&Row) -> bool;

/// The reply to `COMMAND …`, of which `args` are the words, `COMMAND` first.
pub fn answer(args: &Args<'_>, permitted: Permitted<'_>) -> Value {
    let row = match lookup(args) {
        Lookup::Found(row) => row,
        Lookup::UnknownSubcommand(row) => return Value::Error(row.unknown_subcommand_error(args.at(1))),
        Lookup::Unknown => return Value::Error(crate::command::unknown_command_error(args)),
    };
    if !row.arity_ok(args.len()) {
        return Value::error(row.arity_error());
    }
    let shown = Shown { permitted };
    match row.name {
        "COMMAND" => Value::Array(shown.commands().map(|row| shown.info(row)).collect()),
        "COMMAND COUNT" => Value::Int(i64::try_from(shown.commands().count()).unwrap_or(i64::MAX)),
        "COMMAND LIST" => shown.list(args),
        "COMMAND INFO" if args.len() == 2 => Value::Array(shown.commands().map(|row| shown.info(row)).collect()),
        "COMMAND INFO" => Value::Array(
            args.tail(2).iter().map(|name| shown.named(name).map_or(Value::NullArray, |row| shown.info(row))).collect(),
        ),
        "COMMAND DOCS" if args.len() == 2 => Value::Map(shown.commands().map(|row| shown.docs(row)).collect()),
        "COMMAND DOCS" => {
            Value::Map(args.tail(2).iter().filter_map(|name| shown.named(name)).map(|row| shown.docs(row)).collect())
        }
        "COMMAND GETKEYS" => shown.keys(&args.tail(2), |_, _, key| Value::bulk(key)),
        "COMMAND GETKEYSANDFLAGS" => {
            let command = args.tail(2);
            shown
                .keys(&command, |row, i, key| Value::Array(vec![Value::bulk(key), words(flags_here(row, &command, i))]))
        }
        "COMMAND HELP" => Value::Array(HELP.iter().copied().map(Value::simple).collect()),
        _ => Value::Error(row.unknown_subcommand_error(args.at(1))),
    }
}

/// The table as one tenant sees it.
struct Shown<'a> {
    permitted: Permitted<'a>,
}

impl Shown<'_> {
    /// A container is shown when any of its subcommands is.
    fn shows(&self, row: &Row) -> bool {
        row.served() && if row.is_container() { self.subcommands(row).next().is_some() } else { (self.permitted)(row) }
    }

    fn commands(&self) -> impl Iterator<Item = &'static Row> {
        ROWS.iter().filter(|row| row.container().is_none() && self.shows(row))
    }

    fn subcommands(&self, row: &Row) -> impl Iterator<Item = &'static Row> {
        row.subcommands().iter().filter(|row| self.shows(row))
    }

    fn named(&self, name: &[u8]) -> Option<&'static Row> {
        // A space is a separator for people; on the wire only `|` is.
        let name = std::str::from_utf8(name).ok().filter(|name| !name.contains(' '))?;
        find(name).filter(|row| self.shows(row))
    }

    /// name, arity, flags, first, last, step, ACL categories, tips, key specs, subcommands
    fn info(&self, row: &Row) -> Value {
        let (first, last, step) = first_last_step(row);
        let movable = matches!(
            row.keys,
            Keys::Numkeys { .. } | Keys::Sort | Keys::SortRo | Keys::Georadius { .. } | Keys::Streams { .. }
        );
        let flags = row.flags.words().filter(|flag| *flag != "@dangerous");
        let missing = (movable && !row.flags.has(Flags::MOVABLEKEYS)).then_some("movablekeys");
        Value::Array(vec![
            Value::bulk(row.lower_name()),
            Value::Int(row.arity.into()),
            words(flags.chain(missing)),
            Value::Int(first),
            Value::Int(last),
            Value::Int(step),
            Value::Set(row.categories.words().map(|category| Value::simple(format!("@{category}"))).collect()),
            Value::Array(Vec::new()),
            Value::Array(key_specs(row)),
            Value::Array(self.subcommands(row).map(|row| self.info(row)).collect()),
        ])
    }

    fn docs(&self, row: &Row) -> (Value, Value) {
        let mut fields = vec![
            (Value::bulk("summary"), Value::bulk(row.summary)),
            (Value::bulk("since"), Value::bulk(row.since)),
            (Value::bulk("group"), Value::bulk(row.group)),
        ];
        if let Some(module) = module(row) {
            fields.push((Value::bulk("module"), Value::bulk(module)));
        }
        let subcommands: Vec<_> = self.subcommands(row).map(|row| self.docs(row)).collect();
        if !subcommands.is_empty() {
            fields.push((Value::bulk("subcommands"), Value::Map(subcommands)));
        }
        (Value::bulk(row.lower_name()), Value::Map(fields))
    }

    fn list(&self, args: &Args<'_>) -> Value {
        let all = || self.commands().flat_map(|row| std::iter::once(row).chain(self.subcommands(row)));
        let names = |rows: &mut dyn Iterator<Item = &'static Row>| {
            Value::Set(rows.map(|row| Value::bulk(row.lower_name())).collect())
        };
        if args.len() == 2 {
            return names(&mut all());
        }
        let syntax_error = Value::Error("ERR syntax error".into());
        if args.len() != 5 || !args.at(2).eq_ignore_ascii_case(b"filterby") {
            return syntax_error;
        }
        let wanted = args.at(4);
        match args.at(3).to_ascii_lowercase().as_slice() {
            b"module" => names(&mut all().filter(|row| module(row).is_some_and(|module| module.as_bytes() == wanted))),
            b"aclcat" => match Categories::named(wanted) {
                Some(category) => names(&mut all().filter(|row| row.categories.has(category))),
                None => Value::Set(Vec::new()),
            },
            b"pattern" => {
                let wanted = wanted.to_ascii_lowercase();
                names(&mut all().filter(|row| glob::matches(&wanted, row.lower_name().as_bytes())))
            }
            _ => syntax_error,
        }
    }

    fn keys(&self, args: &Args<'_>, each: impl Fn(&Row, usize, &[u8]) -> Value) -> Value {
        let error = |text: &str| Value::error(format!("ERR {text}"));
        let row = match lookup(args) {
            Lookup::Found(row) if self.shows(row) => row,
            _ => return error("Invalid command specified"),
        };
        // A channel is rewritten like a key, and is none.
        if row.keys == Keys::None || row.flags.has(Flags::PUBSUB) {
            return error("The command has no key arguments");
        }
        if !row.arity_ok(args.len()) {
            return error("Invalid number of arguments specified for command");
        }
        let mut marks = Vec::new();
        let understood = walk(row, args, &mut marks);
        let keys: Vec<_> = marks
            .into_iter()
            .filter(|(_, slot)| *slot == Slot::Key)
            .map(|(i, _)| i as usize)
            .map(|i| each(row, i, args.at(i)))
            .collect();
        let none_is_fine = row.flags.has(Flags::NO_MANDATORY_KEYS) || row.class == Class::Script;
        if !understood || keys.is_empty() && !none_is_fine {
            error("Invalid arguments specified for command")
        } else {
            Value::Array(keys)
        }
    }
}

fn words(words: impl Iterator<Item = &'static str>) -> Value {
    Value::Set(words.map(Value::simple).collect())
}

fn module(row: &Row) -> Option<&'static str> {
    row.family.strip_prefix("module ")
}

/// The three numbers of the older form: the first run of keys, 0 where there is none at a fixed place.
fn first_last_step(row: &Row) -> (i64, i64, i64) {
    match row.keys {
        Keys::One(at) => (at.into(), at.into(), 1),
        Keys::Range { first, last, step } => (first.into(), last.into(), step.into()),
        Keys::Positions(specs) => match (specs.first(), specs.last()) {
            // Written as several, because each has its own access, they are one run.
            (Some(first), Some(last)) => (first.first.into(), last.last.into(), first.step.into()),
            _ => (0, 0, 0),
        },
        Keys::Numkeys { dest: Some(dest), .. } => (dest.into(), dest.into(), 1),
        Keys::Sort | Keys::SortRo | Keys::Georadius { .. } | Keys::Move => (1, 1, 1),
        Keys::Copy => (1, 2, 1),
        Keys::JsonDebug => (2, 2, 1),
        Keys::None | Keys::Numkeys { dest: None, .. } | Keys::Streams { .. } | Keys::Unsupported => (0, 0, 0),
    }
}

/// Which of the row's key specs the key at argument `i` belongs to.
fn spec_of(row: &Row, i: usize) -> usize {
    match row.keys {
        Keys::Positions(specs) => specs.iter().rposition(|spec| usize::from(spec.first) <= i).unwrap_or(0),
        Keys::Numkeys { dest: Some(dest), .. } => usize::from(i != usize::from(dest)),
        Keys::Copy => usize::from(i == 2),
        // What they store to comes last.
        Keys::Sort | Keys::Georadius { .. } if i > 1 => usize::MAX,
        _ => 0,
    }
}

/// Entry `n` of a column with one entry per key spec, or its last.
fn entry(column: &'static str, n: usize) -> &'static str {
    let entries = column.split("; ");
    entries.clone().nth(n).or_else(|| entries.last()).unwrap_or("-")
}

/// The flags of the key spec for argument `i`.
fn spec_flags(row: &Row, i: usize) -> impl Iterator<Item = &'static str> {
    let n = spec_of(row, i);
    let flags = match (entry(row.key_flags, n), entry(row.access, n)) {
        ("-", "R") => "RO access",
        ("-", "W") => "OW update",
        ("-", "D") => "RM delete",
        ("-", "RW") => "RW access update",
        ("-", _) => "",
        (flags, _) => flags,
    };
    flags.split(' ').filter(|flag| !flag.is_empty())
}

/// The flags of the key at argument `i` of this very command: SET and BITFIELD declare the widest and tell by their options.
fn flags_here(row: &Row, args: &Args<'_>, i: usize) -> impl Iterator<Item = &'static str> {
    let narrow = match row.name {
        "SET" if !args.iter().skip(3).any(|word| word.eq_ignore_ascii_case(b"GET")) => Some("OW update"),
        "BITFIELD" if reads_only(args) => Some("RO access"),
        _ => None,
    };
    let of_the_spec = ["incomplete", "variable_flags", "not_key"];
    let declared = if narrow.is_some() { None } else { Some(spec_flags(row, i)) };
    let declared = declared.into_iter().flatten().filter(move |flag| !of_the_spec.contains(flag));
    narrow.unwrap_or_default().split(' ').filter(|flag| !flag.is_empty()).chain(declared)
}

/// Whether a BITFIELD has no other operation than GET.
fn reads_only(args: &Args<'_>) -> bool {
    let mut i = 2;
    while i < args.len() {
        let left = args.len() - i - 1;
        i += match args.at(i).to_ascii_uppercase().as_slice() {
            b"GET" if left >= 2 => 3,
            b"OVERFLOW" if left >= 1 => 2,
            _ => return false,
        };
    }
    true
}

fn key_specs(row: &Row) -> Vec<Value> {
    let field = |name: &str, value: Value| (Value::bulk(name), value);
    let typed = |kind: &str, spec: Vec<(Value, Value)>| {
        Value::Map(vec![field("type", Value::bulk(kind)), field("spec", Value::Map(spec))])
    };
    let spec = |at: usize, begin: Value, find: Value| {
        Value::Map(vec![
            field("flags", words(spec_flags(row, at))),
            field("begin_search", begin),
            field("find_keys", find),
        ])
    };
    let index = |at: u8| typed("index", vec![field("index", Value::Int(at.into()))]);
    let range = |lastkey: i64, keystep: i64, limit: i64| {
        typed(
            "range",
            vec![
                field("lastkey", Value::Int(lastkey)),
                field("keystep", Value::Int(keystep)),
                field("limit", Value::Int(limit)),
            ],
        )
    };
    let run = |run: KeySpec| {
        // Counted from the first key, or from the end.
        let lastkey = if run.last < 0 { run.last.into() } else { i64::from(run.last) - i64::from(run.first) };
        spec(run.first.into(), index(run.first), range(lastkey, run.step.into(), 0))
    };
    let one = |at: u8| run(KeySpec { first: at, last: at.into(), step: 1 });
    let unknown = |at: usize| spec(at, typed("unknown", Vec::new()), typed("unknown", Vec::new()));
    match row.keys {
        Keys::None | Keys::Unsupported => Vec::new(),
        Keys::One(at) => vec![one(at)],
        Keys::Range { first, last, step } => vec![run(KeySpec { first, last, step })],
        Keys::Positions(specs) => specs.iter().copied().map(run).collect(),
        Keys::Numkeys { dest, at, step } => {
            let counted = typed(
                "keynum",
                vec![
                    field("keynumidx", Value::Int(0)),
                    field("firstkey", Value::Int(1)),
                    field("keystep", Value::Int(step.into())),
                ],
            );
            dest.map(one).into_iter().chain([spec(usize::from(at) + 1, index(at), counted)]).collect()
        }
        Keys::Sort | Keys::SortRo | Keys::Georadius { .. } => vec![one(1), unknown(2)],
        Keys::Streams { .. } => {
            let after = vec![field("keyword", Value::bulk("STREAMS")), field("startfrom", Value::Int(1))];
            vec![spec(1, typed("keyword", after), range(-1, 1, 2))]
        }
        Keys::Copy => vec![one(1), one(2)],
        Keys::Move => vec![one(1)],
        Keys::JsonDebug => vec![one(2)],
    }
}

const HELP: &[&str] = &[
    "COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "(no subcommand)",
    "    Return details about all Redis commands.",
    "COUNT",
    "    Return the total number of commands in this Redis server.",
    "LIST",
    "    Return a list of all commands in this Redis server.",
    "INFO [<command-name> ...]",
    "    Return details about multiple Redis commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
    "DOCS [<command-name> ...]",
    "    Return documentation details about multiple Redis commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
    "GETKEYS <full-command>",
    "    Return the keys from a full Redis command.",
    "GETKEYSANDFLAGS <full-command>",
    "    Return the keys and the access flags from a full Redis command.",
    "HELP",
    "    Prints this help.",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::Owned;

    fn ask(line: &str) -> Value {
        answer(&Owned::new(&line.split(' ').collect::<Vec<_>>()).args(), &|_| true)
    }

    fn bulks(names: &[&str]) -> Vec<Value> {
        names.iter().map(Value::bulk).collect()
    }

    fn error(text: &str) -> Value {
        Value::Error(text.into())
    }

    #[test]
    fn errors_are_worded_as_redis_words_them() {
        for (line, want) in [
            ("COMMAND foo", "ERR unknown subcommand 'foo'. Try COMMAND HELP."),
            ("COMMAND COUNT x", "ERR wrong number of arguments for 'command|count' command"),
            ("COMMAND LIST x", "ERR syntax error"),
            ("COMMAND LIST FILTERBY foo x", "ERR syntax error"),
            ("COMMAND LIST FILTERBY PATTERN a b", "ERR syntax error"),
            ("COMMAND GETKEYS", "ERR wrong number of arguments for 'command|getkeys' command"),
            ("COMMAND GETKEYS nosuch a", "ERR Invalid command specified"),
            ("COMMAND GETKEYS object|encoding k", "ERR Invalid command specified"),
            ("COMMAND GETKEYS get a b", "ERR Invalid number of arguments specified for command"),
            ("COMMAND GETKEYS client list", "ERR The command has no key arguments"),
            ("COMMAND GETKEYS zunionstore d 5 a", "ERR Invalid arguments specified for command"),
            ("COMMAND GETKEYS debug object k", "ERR Invalid command specified"),
        ] {
            assert_eq!(ask(line), error(want), "{line}");
        }
    }

    #[test]
    fn keys_are_those_of_the_walker() {
        assert_eq!(ask("COMMAND GETKEYS mset a 1 b 2"), Value::Array(bulks(&["a", "b"])));
        assert_eq!(ask("COMMAND GETKEYS sort l BY w* GET x* STORE d"), Value::Array(bulks(&["l", "d"])));
        assert_eq!(ask("COMMAND GETKEYS copy a b DB 1"), Value::Array(bulks(&["a", "b"])));
        let flagged =
            |key: &str, flags: &[&'static str]| Value::Array(vec![Value::bulk(key), words(flags.iter().copied())]);
        for (line, want) in [
            ("COMMAND GETKEYSANDFLAGS get k", vec![flagged("k", &["RO", "access"])]),
            (
                "COMMAND GETKEYSANDFLAGS bitop and d a",
                vec![flagged("d", &["OW", "update"]), flagged("a", &["RO", "access"])],
            ),
            (
                "COMMAND GETKEYSANDFLAGS copy a b",
                vec![flagged("a", &["RO", "access"]), flagged("b", &["OW", "update"])],
            ),
            (
                "COMMAND GETKEYSANDFLAGS sort l STORE d",
                vec![flagged("l", &["RO", "access"]), flagged("d", &["OW", "update"])],
            ),
            (
                "COMMAND GETKEYSANDFLAGS zunionstore d 1 a",
                vec![flagged("d", &["OW", "update"]), flagged("a", &["RO", "access"])],
            ),
        ] {
            assert_eq!(ask(line), Value::Array(want), "{line}");
        }
    }

    #[test]
    fn only_what_is_served_and_permitted_is_listed() {
        assert_eq!(ask("COMMAND INFO nosuch debug shutdown migrate"), Value::Array(vec![Value::NullArray; 4]));
        assert_eq!(ask("COMMAND LIST FILTERBY PATTERN config*"), Value::Set(bulks(&["config", "config|get"])));
        let Value::Array(all) = ask("COMMAND") else { panic!("an array") };
        assert_eq!(ask("COMMAND COUNT"), Value::Int(i64::try_from(all.len()).expect("small")));
        let owned = Owned::new(&["COMMAND", "COUNT"]);
        assert_eq!(answer(&owned.args(), &|row| row.name == "GET"), Value::Int(1));
    }

    #[test]
    fn info_has_the_shape_of_redis_7() {
        let Value::Array(rows) = ask("COMMAND INFO get") else { panic!("an array") };
        let [Value::Array(get)] = &rows[..] else { panic!("one row") };
        assert_eq!(get.len(), 10);
        assert_eq!(
            get[..6],
            [
                Value::bulk("get"),
                Value::Int(2),
                words(["readonly", "fast"].into_iter()),
                Value::Int(1),
                Value::Int(1),
                Value::Int(1)
            ]
        );
        assert_eq!(get[6], words(["@read", "@string", "@fast"].into_iter()));
    }

    #[test]
    fn docs_are_a_map_by_name() {
        let Value::Map(docs) = ask("COMMAND DOCS GET nosuch json.get client|list") else { panic!("a map") };
        assert_eq!(
            docs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(),
            bulks(&["get", "json.get", "client|list"])
        );
    }
}
