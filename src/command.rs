//! CLASSIFY: the command table, looked up by name, and the one walker that knows where names stand.
//!
//! The rows in [`table`] are generated from `command/commands.tsv` and `command/docs.tsv` (see `command/generate.rs`), and a
//! test keeps them fresh. A command without a row is refused, never forwarded. This module sees argument positions only: it
//! knows nothing of the wire, of tenants or of I/O.

#[cfg(test)]
mod generate;
pub mod keys;
pub mod render;
pub mod table;

pub use keys::{Slot, fixed_slot, is_blocking, numkeys_at, parse_numkeys, refusal, walk};
pub use table::ROWS;

/// Start and length of one argument inside the buffer it was parsed from.
pub type Span = (u32, u32);

/// The arguments of one command, the command word first: borrowed slices of one buffer.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    buf: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// `spans` must lie inside `buf`; indexing panics otherwise.
    pub fn new(buf: &'a [u8], spans: &'a [Span]) -> Self {
        Self { buf, spans }
    }

    /// How many arguments there are, the command word included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is not even a command word.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Argument `i`, 0 being the command word.
    pub fn at(&self, i: usize) -> &'a [u8] {
        let (start, len) = self.spans[i];
        &self.buf[start as usize..start as usize + len as usize]
    }

    /// The arguments from number `n` on; empty when there are no more than `n`.
    pub fn tail(&self, n: usize) -> Self {
        Self { buf: self.buf, spans: self.spans.get(n..).unwrap_or_default() }
    }

    /// The arguments in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        (0..self.len()).map(|i| self.at(i))
    }
}

/// One command or subcommand: all that keyfence knows about it.
#[derive(Debug)]
pub struct Row {
    /// Position in [`ROWS`].
    pub index: u16,
    /// Position of the container this is a subcommand of, or [`NO_PARENT`].
    pub parent: u16,
    /// How many subcommands it has; their rows follow this one.
    pub subs: u16,
    /// Upper case; a subcommand after one space: `CLIENT LIST`.
    pub name: &'static str,
    /// The last word of the name: what the wire carries at `argv[0]`, or at `argv[1]` for a subcommand.
    pub word: &'static str,
    /// First version that had it, of Redis, of its module, or of Valkey; `-` when unknown.
    pub since: &'static str,
    /// `redis`, `valkey` (only there) or `module NAME`.
    pub family: &'static str,
    /// `=` in Valkey since the same version, a version, `mod` from a module of Valkey, `-` not in Valkey.
    pub valkey: &'static str,
    /// `n` exactly, `-n` at least `n` arguments, the command word or words included.
    pub arity: i16,
    /// What the server says about the command.
    pub flags: Flags,
    /// Where the names stand.
    pub keys: Keys,
    /// The `keys` column of the table as text, for documentation.
    pub specs: &'static str,
    /// R read, W overwrite, RW, D delete; one per key entry.
    pub access: &'static str,
    /// What in the reply is a name.
    pub reply: ReplyRule,
    /// What the command demands of its upstream connection.
    pub conn: ConnNeed,
    /// What keyfence does with it.
    pub class: Class,
    /// Whether this build serves it; see [`Row::served`].
    pub served: bool,
    /// The documentation group: `string`, `sorted-set`, ...
    pub group: &'static str,
    /// The ACL categories.
    pub categories: Categories,
    /// What the server says it does to its keys, one entry per key spec: `RO access; OW update`; `-` for commands newer than Redis 7.0.
    pub key_flags: &'static str,
    /// One sentence on what it does; empty for commands newer than Redis 7.0.
    pub summary: &'static str,
    /// A sentence on isolation; `-` for none.
    pub note: &'static str,
    /// Whether the tier may keep its replies.
    pub keep: Keep,
    /// Whether it may change a key that it names, whatever its flags say.
    pub changes: bool,
}

/// Whether the tier may keep the replies of a command: those that depend on its one key and its arguments alone, not on the time, on chance or
/// on how the server stores the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It may not.
    No,
    /// It may.
    Reply,
    /// It may where fields of hashes do not expire one by one: of that no server tells.
    Hash,
    /// MGET: each element as the reply of a GET.
    Values,
    /// EXISTS: what it says of each key.
    Each,
}

impl Keep {
    /// The word that documentation has for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "",
            Self::Reply | Self::Hash => "whole reply",
            Self::Values | Self::Each => "key by key",
        }
    }
}

/// The value of [`Row::parent`] of a row that is no subcommand.
pub const NO_PARENT: u16 = u16::MAX;

/// What keyfence does with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Names are rewritten, then it is forwarded.
    Keyed,
    /// Forwarded as it is.
    Keyless,
    /// Emulated inside the tenant's prefix.
    Scoped,
    /// Answered here.
    Local,
    /// Runs a script.
    Script,
    /// Refused.
    Denied,
}

impl Class {
    /// The word of the table's `class` column.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keyed => "keyed",
            Self::Keyless => "keyless",
            Self::Scoped => "scoped",
            Self::Local => "local",
            Self::Script => "script",
            Self::Denied => "denied",
        }
    }
}

macro_rules! bitset {
    ($(#[$meta:meta])* $set:ident: $($(#[$doc:meta])* $name:ident = $bit:literal, $text:literal;)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $set(u32);

        impl $set {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*

            /// Every member with its word, as `COMMAND` and the table spell it.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $text)),*];

            /// The empty set.
            pub const NONE: Self = Self(0);

            /// The union of two sets.
            pub const fn or(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// Whether every member of `other` is in this set.
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The words of the members.
            pub fn words(self) -> impl Iterator<Item = &'static str> {
                Self::ALL.iter().filter(move |(member, _)| self.has(*member)).map(|(_, word)| *word)
            }
        }
    };
}

bitset! {
    /// A set of the server's command flags.
    Flags:
    /// May change data.
    WRITE = 0, "write";
    /// Never changes data.
    READONLY = 1, "readonly";
    /// Refused when memory is full.
    DENYOOM = 2, "denyoom";
    /// Constant or logarithmic time.
    FAST = 3, "fast";
    /// May wait.
    BLOCKING = 4, "blocking";
    /// Administration.
    ADMIN = 5, "admin";
    /// In the ACL category `@dangerous`.
    DANGEROUS = 6, "@dangerous";
    /// Not from scripts.
    NOSCRIPT = 7, "noscript";
    /// Not inside MULTI.
    NO_MULTI = 8, "no_multi";
    /// Served while the data set loads.
    LOADING = 9, "loading";
    /// Served by a replica without a link.
    STALE = 10, "stale";
    /// Publish/subscribe.
    PUBSUB = 11, "pubsub";
    /// Positions of keys depend on the arguments.
    MOVABLEKEYS = 12, "movablekeys";
    /// Provided by a module.
    MODULE = 13, "module";
    /// Served before login.
    NO_AUTH = 14, "no_auth";
    /// Refused during an asynchronous load.
    NO_ASYNC_LOADING = 15, "no_async_loading";
    /// Served while a script overruns.
    ALLOW_BUSY = 16, "allow_busy";
    /// Hidden from MONITOR.
    SKIP_MONITOR = 17, "skip_monitor";
    /// May be called with no key.
    NO_MANDATORY_KEYS = 18, "no_mandatory_keys";
    /// May go to a slot that is being imported.
    ASKING = 19, "asking";
}

bitset! {
    /// A set of ACL categories; the words are without `@`.
    Categories:
    /// `@keyspace`.
    KEYSPACE = 0, "keyspace";
    /// `@read`.
    READ = 1, "read";
    /// `@write`.
    WRITE = 2, "write";
    /// `@set`.
    SET = 3, "set";
    /// `@sortedset`.
    SORTEDSET = 4, "sortedset";
    /// `@list`.
    LIST = 5, "list";
    /// `@hash`.
    HASH = 6, "hash";
    /// `@string`.
    STRING = 7, "string";
    /// `@bitmap`.
    BITMAP = 8, "bitmap";
    /// `@hyperloglog`.
    HYPERLOGLOG = 9, "hyperloglog";
    /// `@geo`.
    GEO = 10, "geo";
    /// `@stream`.
    STREAM = 11, "stream";
    /// `@pubsub`.
    PUBSUB = 12, "pubsub";
    /// `@admin`.
    ADMIN = 13, "admin";
    /// `@fast`.
    FAST = 14, "fast";
    /// `@slow`.
    SLOW = 15, "slow";
    /// `@blocking`.
    BLOCKING = 16, "blocking";
    /// `@dangerous`.
    DANGEROUS = 17, "dangerous";
    /// `@connection`.
    CONNECTION = 18, "connection";
    /// `@transaction`.
    TRANSACTION = 19, "transaction";
    /// `@scripting`.
    SCRIPTING = 20, "scripting";
    /// `@json`.
    JSON = 21, "json";
    /// `@bloom`.
    BLOOM = 22, "bloom";
    /// `@cuckoo`.
    CUCKOO = 23, "cuckoo";
    /// `@cms`.
    CMS = 24, "cms";
    /// `@topk`.
    TOPK = 25, "topk";
    /// `@tdigest`.
    TDIGEST = 26, "tdigest";
    /// `@timeseries`.
    TIMESERIES = 27, "timeseries";
    /// `@search`.
    SEARCH = 28, "search";
    /// `@array`.
    ARRAY = 29, "array";
}

impl Categories {
    /// The category of this name, without `@`, in either case.
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().find(|(_, word)| word.as_bytes().eq_ignore_ascii_case(name)).map(|(category, _)| *category)
    }
}

/// Every `step`-th position from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// First position; `argv[0]` is 0.
    pub first: u8,
    /// Last position; negative counts from the end, -1 being the last argument.
    pub last: i16,
    /// Distance from one to the next, at least 1.
    pub step: u8,
}

/// The shape of where names stand, so that the common shapes cost nothing to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// No names.
    None,
    /// One key, at this position.
    One(u8),
    /// One run of keys.
    Range {
        /// As in [`KeySpec`].
        first: u8,
        /// As in [`KeySpec`].
        last: i16,
        /// As in [`KeySpec`].
        step: u8,
    },
    /// Several runs, ascending.
    Positions(&'static [KeySpec]),
    /// A count at `at`, then that many keys, `step` apart.
    Numkeys {
        /// Position of a key before the count.
        dest: Option<u8>,
        /// Position of the count.
        at: u8,
        /// Distance from one key to the next.
        step: u8,
    },
    /// SORT: key, templates after BY and GET, a key after STORE.
    Sort,
    /// `SORT_RO`: key, templates after BY and GET.
    SortRo,
    /// GEORADIUS and GEORADIUSBYMEMBER: key, keys after STORE and STOREDIST.
    Georadius {
        /// Where the options begin.
        options_from: u8,
    },
    /// XREAD and XREADGROUP: the first half of what follows STREAMS.
    Streams {
        /// XREADGROUP, whose grammar has more options.
        group: bool,
    },
    /// COPY: two keys, a database after DB.
    Copy,
    /// MOVE: a key, a database.
    Move,
    /// JSON.DEBUG: a key at 2 after MEMORY; other subcommands than MEMORY and HELP are refused.
    JsonDebug,
    /// Names of a kind this build does not rewrite, in the request or in the reply: the row is refused, whatever its class.
    Unsupported,
}

/// Where a reply carries names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nowhere: its bytes go to the client as they are.
    Raw,
    /// Element 0 is a key.
    First,
    /// Every element is a name.
    Names,
    /// XREAD's pairs of key and entries.
    Xread,
    /// EXEC: one reply per queued command.
    Exec,
    /// A shape of a command that this build answers itself or refuses; the word of the table's `reply` column.
    Other(&'static str),
}

/// What must be un-prefixed in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyRule {
    /// Where a successful reply carries names.
    pub shape: Shape,
    /// The error text of `-NOGROUP` names the key.
    pub nogroup: bool,
}

/// What a command demands of its upstream connection. The words are those of the table's `conn` column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnNeed {
    /// Any pooled connection.
    Any,
    /// Holds its connection while it waits.
    Block,
    /// As `Block`, and on the connection that carried this session's earlier writes.
    SameConn,
    /// From now on the session needs a connection of its own.
    Pin(&'static str),
    /// That need ends.
    End(&'static str),
    /// Changes session state that must never reach a shared connection.
    State(&'static str),
}

impl Row {
    /// Whether `n` arguments, the command word or words included, satisfy the arity.
    pub const fn arity_ok(&self, n: usize) -> bool {
        let want = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { n >= want } else { n == want }
    }

    /// The name as Redis's error texts spell it: `get`, `client|list`.
    pub fn lower_name(&self) -> String {
        self.name.to_ascii_lowercase().replace(' ', "|")
    }

    /// Redis's text for a wrong number of arguments, without the leading `-`.
    pub fn arity_error(&self) -> String {
        format!("ERR wrong number of arguments for '{}' command", self.lower_name())
    }

    /// Redis's text for a subcommand that this container does not have, without the leading `-`.
    pub fn unknown_subcommand_error(&self, word: &[u8]) -> Vec<u8> {
        [b"ERR unknown subcommand '", &quotable(word, 128)[..], b"'. Try ", self.name.as_bytes(), b" HELP."].concat()
    }

    /// Whether this build serves the command at all. A refused command, one with names that cannot be rewritten yet, and a container
    /// without a served subcommand are not.
    pub const fn served(&self) -> bool {
        self.served
    }

    /// Whether it is sent upstream, names rewritten.
    pub const fn forwardable(&self) -> bool {
        self.served && matches!(self.class, Class::Keyed | Class::Keyless)
    }

    /// Whether it dispatches on a subcommand.
    pub const fn is_container(&self) -> bool {
        self.subs > 0
    }

    /// Its subcommands; empty unless it is a container.
    pub fn subcommands(&self) -> &'static [Self] {
        let first = self.index as usize + 1;
        &ROWS[first..first + self.subs as usize]
    }

    /// The container it belongs to.
    pub fn container(&self) -> Option<&'static Self> {
        ROWS.get(self.parent as usize)
    }

    /// Whether it may change data.
    pub const fn is_write(&self) -> bool {
        self.flags.has(Flags::WRITE)
    }
}

/// What [`lookup`] found.
#[derive(Clone, Copy, Debug)]
pub enum Lookup {
    /// The command, the subcommand, or a container with nothing after it (whose arity then fails).
    Found(&'static Row),
    /// No such command.
    Unknown,
    /// No such subcommand of this container.
    UnknownSubcommand(&'static Row),
}

/// The row for these arguments. ASCII case is ignored, every other byte must match; words are never joined or split, so the single word
/// `config|get` or `client list` is unknown.
#[inline]
pub fn lookup(args: &Args<'_>) -> Lookup {
    if args.is_empty() {
        return Lookup::Unknown;
    }
    let Some(row) = probe(NO_PARENT, args.at(0)) else { return Lookup::Unknown };
    if row.subs == 0 || args.len() == 1 {
        return Lookup::Found(row);
    }
    probe(row.index, args.at(1)).map_or(Lookup::UnknownSubcommand(row), Lookup::Found)
}

/// Redis's text for a command that does not exist, without the leading `-`.
pub fn unknown_command_error(args: &Args<'_>) -> Vec<u8> {
    let word = args.iter().next().unwrap_or_default();
    let mut shown = Vec::new();
    for arg in args.tail(1).iter() {
        let Some(room) = 128usize.checked_sub(shown.len()).filter(|room| *room > 0) else { break };
        shown.push(b'\'');
        shown.extend(quotable(arg, room));
        shown.extend_from_slice(b"' ");
    }
    [b"ERR unknown command '", &quotable(word, 128)[..], b"', with args beginning with: ", &shown].concat()
}

/// As C prints an argument into an error line: cut at a NUL and at `most` bytes, line ends as spaces.
fn quotable(arg: &[u8], most: usize) -> Vec<u8> {
    let cut = arg.iter().take(most).take_while(|byte| **byte != 0);
    cut.map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }).collect()
}

/// The row called `name`, given as `get`, `CLIENT LIST` or `client|list`: for settings and documentation, not for the wire.
pub fn find(name: &str) -> Option<&'static Row> {
    match name.split_once([' ', '|']) {
        None => probe(NO_PARENT, name.as_bytes()),
        Some((first, second)) => probe(probe(NO_PARENT, first.as_bytes())?.index, second.as_bytes()),
    }
}

/// Open addressing with linear probing; at most 744 of these are taken. A slot holds a position in [`ROWS`] plus 1, or 0.
const SLOTS: usize = 2048;
static INDEX: [u16; SLOTS] = build_index(ROWS);

#[inline]
fn probe(parent: u16, word: &[u8]) -> Option<&'static Row> {
    let ends = ends(word);
    let mut slot = hash(parent, word.len(), ends);
    loop {
        let row = &ROWS[(INDEX[slot] as usize).checked_sub(1)?];
        let name = row.word.as_bytes();
        if row.parent == parent
            && name.len() == word.len()
            && self::ends(name) == ends
            && (word.len() <= 16 || name.eq_ignore_ascii_case(word))
        {
            return Some(row);
        }
        slot = (slot + 1) % SLOTS;
    }
}

const fn build_index(rows: &[Row]) -> [u16; SLOTS] {
    assert!(rows.len() < SLOTS / 2);
    let mut index = [0; SLOTS];
    let mut i: u16 = 0;
    while (i as usize) < rows.len() {
        let row = &rows[i as usize];
        let word = row.word.as_bytes();
        let mut slot = hash(row.parent, word.len(), ends(word));
        while index[slot] != 0 {
            slot = (slot + 1) % SLOTS;
        }
        i += 1;
        index[slot] = i;
    }
    index
}

/// Both ends of a word in upper case, which for up to 16 bytes is the whole of it: a few instructions instead of a loop over bytes.
#[inline]
const fn ends(word: &[u8]) -> (u64, u64) {
    let (a, b) = if let (Some(a), Some(b)) = (word.first_chunk::<8>(), word.last_chunk::<8>()) {
        (u64::from_le_bytes(*a), u64::from_le_bytes(*b))
    } else if let (Some(a), Some(b)) = (word.first_chunk::<4>(), word.last_chunk::<4>()) {
        (u32::from_le_bytes(*a) as u64, u32::from_le_bytes(*b) as u64)
    } else if let (Some(a), Some(b)) = (word.first_chunk::<2>(), word.last_chunk::<2>()) {
        (u16::from_le_bytes(*a) as u64, u16::from_le_bytes(*b) as u64)
    } else if let Some(a) = word.first() {
        (*a as u64, 0)
    } else {
        (0, 0)
    };
    (upper(a), upper(b))
}

/// Eight bytes with `a` to `z` in upper case and every other byte as it was.
#[inline]
const fn upper(bytes: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    // The top bit of each sum tells whether that byte, were it ASCII, is at least `a`, or past `z`; no sum carries into its neighbour.
    let seven = bytes & !HIGH;
    let from_a = seven + (0x80 - b'a' as u64) * ONES;
    let past_z = seven + (0x80 - b'z' as u64 - 1) * ONES;
    let lower = (from_a ^ past_z) & HIGH & !bytes;
    bytes ^ (lower >> 2)
}

#[inline]
const fn hash(parent: u16, len: usize, (a, b): (u64, u64)) -> usize {
    let mixed =
        (a ^ b.rotate_left(29) ^ ((parent as u64) << 40) ^ ((len as u64) << 56)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 32) as usize % SLOTS
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Owns what [`Args`] borrows.
    pub(crate) struct Owned {
        buf: Vec<u8>,
        spans: Vec<Span>,
    }

    impl Owned {
        pub(crate) fn new<T: AsRef<[u8]>>(words: &[T]) -> Self {
            let (mut buf, mut spans) = (Vec::new(), Vec::new());
            for word in words {
                let word = word.as_ref();
                spans.push((u32::try_from(buf.len()).expect("small"), u32::try_from(word.len()).expect("small")));
                buf.extend_from_slice(word);
            }
            Self { buf, spans }
        }

        pub(crate) fn args(&self) -> Args<'_> {
            Args::new(&self.buf, &self.spans)
        }
    }

    fn found(words: &[&str]) -> &'static str {
        match lookup(&Owned::new(words).args()) {
            Lookup::Found(row) => row.name,
            Lookup::Unknown => "unknown",
            Lookup::UnknownSubcommand(_) => "unknown subcommand",
        }
    }

    #[test]
    fn rows_are_sorted_unique_and_complete() {
        assert_eq!(ROWS.len(), 744);
        assert!(ROWS.is_sorted_by(|a, b| a.name < b.name));
        for (i, row) in ROWS.iter().enumerate() {
            assert_eq!(usize::from(row.index), i);
            assert!(!row.name.bytes().any(|byte| byte.is_ascii_lowercase()), "{}", row.name);
            assert!(row.arity != 0, "{}", row.name);
            for sub in row.subcommands() {
                assert_eq!(sub.parent, row.index);
                assert_eq!(sub.name, format!("{} {}", row.name, sub.word));
            }
            if let Some(container) = row.container() {
                assert!(container.subcommands().iter().any(|sub| sub.index == row.index), "{}", row.name);
            }
        }
    }

    #[test]
    fn what_writes_is_known_to_change_keys_and_is_not_kept() {
        for row in ROWS.iter().filter(|row| row.forwardable()) {
            assert!(row.changes || !row.is_write(), "{} writes", row.name);
            assert!(!row.changes || row.keep == Keep::No, "{} changes what it reads", row.name);
            if row.keep != Keep::No {
                assert!(
                    row.flags.has(Flags::READONLY) && row.reply.shape == Shape::Raw && !row.reply.nogroup,
                    "{}",
                    row.name
                );
                assert!(matches!(row.keys, Keys::One(1) | Keys::Range { first: 1, last: -1, step: 1 }), "{}", row.name);
            }
        }
    }

    #[test]
    fn every_row_is_found_in_either_case() {
        for row in ROWS {
            let lower = row.name.to_ascii_lowercase();
            for name in [row.name, &lower] {
                let words: Vec<_> = name.split(' ').collect();
                assert_eq!(found(&words), row.name);
                assert_eq!(find(name).map(|row| row.name), Some(row.name));
            }
            assert_eq!(find(&row.lower_name()).map(|row| row.name), Some(row.name));
        }
    }

    #[test]
    fn a9_subcommands_are_looked_up_word_by_word() {
        assert_eq!(found(&["OBJECT", "help"]), "OBJECT HELP");
        assert_eq!(found(&["object", "EnCoDiNg", "k"]), "OBJECT ENCODING");
        assert_eq!(found(&["MEMORY", "USAGE", "k", "SAMPLES", "0"]), "MEMORY USAGE");
        assert_eq!(found(&["XGROUP"]), "XGROUP");
        assert!(find("XGROUP").is_some_and(|row| !row.arity_ok(1)));
        for words in [
            &["config|get"][..],
            &["config get"],
            &["CLIENT LIST"],
            &["CLIENT  LIST"],
            &["client list", "x"],
            &["LIST"],
        ] {
            assert_eq!(found(words), "unknown", "{words:?}");
        }
        for words in
            [["CLIENT", " LIST"], ["CLIENT", ""], ["CLIENT", "LIST\0"], ["OBJECT", "object"], ["CLIENT", "get"]]
        {
            assert_eq!(found(&words), "unknown subcommand", "{words:?}");
        }
        assert_eq!(found(&["GET", "list"]), "GET");
    }

    #[test]
    fn a10_the_command_word_matches_exactly() {
        for word in ["GET\0x", " get", "get ", "", "G\u{0130}T", "w\u{0131}tch", "g e t"] {
            assert_eq!(found(&[word]), "unknown", "{word:?}");
        }
        let long = "get".repeat(1 << 20);
        assert_eq!(found(&[long.as_str()]), "unknown");
        assert_eq!(found(&[]), "unknown");
    }

    #[test]
    fn only_ascii_letters_fold() {
        for byte in 0..=u8::MAX {
            let bytes = [byte; 8];
            assert_eq!(
                upper(u64::from_le_bytes(bytes)),
                u64::from_le_bytes(bytes.map(|byte| byte.to_ascii_uppercase()))
            );
        }
    }

    #[test]
    fn probing_ends_soon() {
        assert_eq!(INDEX.iter().filter(|slot| **slot != 0).count(), ROWS.len());
        let mut run = 0;
        for slot in INDEX {
            run = if slot == 0 { 0 } else { run + 1 };
            assert!(run < 32, "the hash spreads badly");
        }
    }
}
