//! From the table to the arguments of `ACL SETUSER`: an allow-list, so that a command that a later server adds is not allowed.

use std::ops::Range;

use super::Holes;
use crate::{
    command::{Flags, Keys, ROWS, Row},
    glob,
};

/// Databases that are allowed one by one; a tenant with more may select any.
const DATABASES: usize = 64;
/// What a tenant that may run scripts needs.
const SCRIPTS: [&str; 7] = ["EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "ECHO", "PUBLISH", "SPUBLISH"];
/// What one needs besides that may call functions. Which ones is not for an ACL to say, but for `scripts::functions`.
const FUNCTIONS: [&str; 2] = ["FCALL", "FCALL_RO"];

/// What of Lua a tenant may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lua {
    /// Nothing.
    #[default]
    Off,
    /// Scripts.
    Scripts,
    /// Scripts and functions.
    Functions,
}

/// What the connection that listens for a tenant needs. Channels are confined like keys, and of patterns the server allows the one that is
/// written in the rules.
const SUBSCRIPTIONS: [&str; 6] =
    ["PSUBSCRIBE", "PUNSUBSCRIBE", "SSUBSCRIBE", "SUBSCRIBE", "SUNSUBSCRIBE", "UNSUBSCRIBE"];

/// What a session's own connection needs that tracks keys. No key pattern confines whose keys it hears of: prefixes are the rewriting's.
const TRACKING: [&str; 3] = ["CLIENT CACHING", "CLIENT ID", "CLIENT TRACKING"];

/// As which of a tenant's users a connection logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The usual one: confined by the upstream in every command it may run, scripts included.
    Data,
    /// All of that but scripts, and the commands that an ACL cannot confine, so that only our rewriting does: SORT, whose BY and GET ask
    /// for the right to read every key, and the rows of [`Holes::blind`]. The one that never runs scripts, which could call them at will.
    /// It has the rest too, so that a transaction may hold both.
    Sort,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Data, Self::Sort];

    /// As user names carry it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Sort => "sort",
        }
    }
}

/// Commands as rules, ready for every tenant's user of one kind: `+get`, `+object|encoding`.
#[derive(Debug, Default)]
pub struct Commands {
    plain: Vec<Vec<u8>>,
    /// The rows that `plain` allows, in the same order.
    rows: Vec<&'static Row>,
    /// Those that need the right to read every key.
    reading_all: Vec<Vec<u8>>,
    /// What of Lua is among them.
    lua: Lua,
}

impl Commands {
    /// What a user of this kind may run. `known` says which commands the upstream has: it refuses a rule that
    /// names any other.
    pub fn new(kind: Kind, lua: Lua, holes: &Holes, known: impl Fn(&Row) -> bool) -> Self {
        let mut commands = Self { lua, ..Self::default() };
        for row in ROWS.iter().filter(|row| !row.is_container() && known(row)) {
            let rule = || format!("+{}", row.lower_name()).into_bytes();
            let mut plain = || {
                commands.plain.push(rule());
                commands.rows.push(row);
            };
            match kind {
                Kind::Data if SCRIPTS.contains(&row.name) && lua != Lua::Off => plain(),
                Kind::Data if FUNCTIONS.contains(&row.name) && lua == Lua::Functions => plain(),
                Kind::Data if SUBSCRIPTIONS.contains(&row.name) => plain(),
                Kind::Sort if TRACKING.contains(&row.name) => plain(),
                Kind::Sort if is_sort(row) && row.forwardable() && holes.selectors => commands.reading_all.push(rule()),
                _ if row.forwardable() && (kind == Kind::Sort || holes.kind(row) == Kind::Data) => {
                    plain();
                }
                _ => {}
            }
        }
        commands
    }

    /// Those of them that the tenant may run, by row index, or that no script can call: what keyfence sends for itself stays.
    pub fn permitted(&self, may: &[bool]) -> Self {
        let keep = |row: &Row| {
            row.flags.has(Flags::NOSCRIPT)
                || SCRIPTS[..4].contains(&row.name)
                || FUNCTIONS.contains(&row.name)
                || !row.served()
                || may.get(usize::from(row.index)) != Some(&false)
        };
        let kept = self.plain.iter().zip(&self.rows).filter(|(_, row)| keep(row));
        let (plain, rows) = kept.map(|(rule, row)| (rule.clone(), *row)).unzip();
        Self { plain, rows, reading_all: self.reading_all.clone(), lua: self.lua }
    }
}

/// Whether a prefix can stand in an ACL rule: no byte that ends or quotes an argument of a selector.
pub(super) fn can_stand(prefix: &[u8]) -> bool {
    prefix.iter().all(|c| c.is_ascii_graphic() && !b"()\"'".contains(c))
}

/// The arguments of `ACL SETUSER` after the user's name. `prefix` is made of graphic ASCII without parentheses and quotes; empty, every
/// name is in reach.
///
/// AUTH, HELLO, QUIT and RESET need no rule and none can forbid them.
pub fn rules(
    prefix: &[u8],
    databases: &Range<u32>,
    commands: &Commands,
    holes: &Holes,
    password_sha256_hex: &str,
) -> Vec<Vec<u8>> {
    let mut names = glob::escape(prefix);
    names.push(b'*');
    let mut rules: Vec<Vec<u8>> = vec![
        b"reset".to_vec(),
        b"on".to_vec(),
        format!("#{password_sha256_hex}").into_bytes(),
        b"resetkeys".to_vec(),
        [b"~", &names[..]].concat(),
        b"resetchannels".to_vec(),
        [b"&", &names[..]].concat(),
        b"nocommands".to_vec(),
        // Our own: whether a connection lives, and a place in a transaction's queue for what is answered here.
        b"+ping".to_vec(),
    ];
    let few = databases.len() <= DATABASES;
    if few && holes.database_rules {
        // Confines COPY and MOVE too.
        let list: Vec<_> = databases.clone().map(|db| db.to_string()).collect();
        rules.push(b"resetdbs".to_vec());
        rules.push(format!("db={}", list.join(",")).into_bytes());
    }
    // Connections select their database at login, all but those of database 0. A client's SELECT never gets here, but a script's would: then
    // each database is named, which servers from 7.0 on note in their log as a form they may give up. Without scripts it would make no
    // difference, since a prefix is one tenant's in every database.
    if *databases != (0..1) {
        if few && commands.lua != Lua::Off {
            rules.extend(databases.clone().map(|db| format!("+select|{db}").into_bytes()));
        } else {
            rules.push(b"+select".to_vec());
        }
    }
    rules.extend_from_slice(&commands.plain);
    if !commands.reading_all.is_empty() {
        rules.push([b"(%R~* %W~", &names[..], b" ", &commands.reading_all.join(&b' '), b")"].concat());
    }
    rules
}

/// SORT and its read-only form.
pub(super) const fn is_sort(row: &Row) -> bool {
    matches!(row.keys, Keys::Sort | Keys::SortRo)
}
