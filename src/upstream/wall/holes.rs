//! What an upstream's ACL and its scripts cannot hold, found by trying and not by version: distributions carry fixes under old numbers.
//!
//! Nothing is left behind but one compiled script in the cache: the user that is tried with cannot log in and goes again, no key is
//! touched, and what a script could alter is put back by the same script.

use std::collections::HashSet;

use redis::{Cmd, Value};

use super::{
    Identity, Kind, WallError,
    line::{Line, acl, refusal, texts},
    rules::is_sort,
};
use crate::{
    command::{self, Row},
    error::UpstreamError,
    upstream::{Target, control},
};

/// Commands whose keys the ACL of some server does not see, or not all of them, each with one argument list per way to show it. `IN` is a
/// key of the user's, `OUT` is not. isolation.md A1, A7, A8, M8, M9.
const SUSPECTS: &[(&str, &[&str])] = &[
    ("GEORADIUS", &["IN 0 0 1 km STORE OUT", "IN 0 0 1 km STORE IN STORE OUT", "IN 0 0 1 km STORE IN STOREDIST OUT"]),
    ("GEORADIUSBYMEMBER", &["IN m 1 km STORE OUT", "IN m 1 km STORE IN STORE OUT", "IN m 1 km STORE IN STOREDIST OUT"]),
    ("MSETEX", &["2 IN v OUT v EX 9", "2 OUT v IN v EX 9"]),
    // Without sources the keys of the whole command are not looked for: seen on Redis 7.0.15 and 8.2.3, and on Valkey 9.1.2.
    ("PFMERGE", &["OUT", "OUT IN", "IN OUT"]),
    ("CMS.MERGE", &["IN 1 OUT", "IN 2 IN OUT", "OUT 1 IN"]),
    ("TDIGEST.MERGE", &["IN 1 OUT", "IN 2 IN OUT", "OUT 1 IN"]),
    ("JSON.DEBUG", &["MEMORY OUT"]),
    ("JSON.MGET", &["IN OUT $", "OUT IN $"]),
    ("JSON.MSET", &["IN $ 1 OUT $ 1", "OUT $ 1 IN $ 1"]),
    ("TS.CREATERULE", &["IN OUT AGGREGATION avg 9", "OUT IN AGGREGATION avg 9"]),
    ("TS.DELETERULE", &["IN OUT", "OUT IN"]),
    ("TS.MADD", &["IN 1 1 OUT 1 1", "OUT 1 1 IN 1 1"]),
    ("TS.NRANGE", &["2 IN OUT - +", "2 OUT IN - +"]),
    ("TS.NREVRANGE", &["2 IN OUT - +", "2 OUT IN - +"]),
];

/// Names of the tables that all scripts share and this one can alter: with any of them the scripts of one tenant run in those of another.
/// A field that nobody has is set and taken away again. So they do with `setfenv`, which gives the state that all scripts run in other globals, and
/// `newproxy`, whose finalizers may run in the midst of another tenant's script, as its user. `getfenv` only shows what `_G` does.
const SHARED_TABLES: &str = "\
local open = {}
for _, name in ipairs({'_G', 'string', 'table', 'math', 'redis', 'cjson', 'cmsgpack', 'bit', 'struct', 'metatable'}) do
  local found, t = pcall(function()
    if name == 'metatable' then return getmetatable('') end
    return rawget(_G, name)
  end)
  if found and type(t) == 'table' then
    local set = pcall(function() t.keyfence_probe = 1 end)
    local raw = pcall(function() rawset(t, 'keyfence_probe', 1) end)
    if set or raw then
      pcall(function() rawset(t, 'keyfence_probe', nil) end)
      pcall(function() t.keyfence_probe = nil end)
      open[#open + 1] = name
    end
  end
end
for _, name in ipairs({'setfenv', 'newproxy'}) do
  if rawget(_G, name) ~= nil then open[#open + 1] = name end
end
return open";

/// What leads a library, while it loads, to the server's own `redis` past ours: with any of them it can register functions under names that
/// are another tenant's. Each is loaded with; that one is not there is an error.
const WAYS: &[&str] = &[
    "_G",
    "debug",
    "dofile",
    "getfenv",
    "getmetatable",
    "load",
    "loadfile",
    "loadstring",
    "module",
    "package",
    "require",
    "setfenv",
];

/// The one library and function that is loaded, and deleted again in the same transaction. No tenant's has this name.
const PROBE: &str = "keyfence_probe";

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holes {
    /// Why the upstream does not let us manage users; `None`: it does.
    pub refused: Option<String>,
    /// Whether an ACL may allow reading where it forbids writing (`%R~`, Redis 7.0), and give commands keys of their own.
    pub selectors: bool,
    /// Whether an ACL knows databases (`db=`, Valkey 9.1).
    pub database_rules: bool,
    /// Rows that the table forwards and that reach keys the ACL forbids, or that could not be tried; only those the upstream has, once it
    /// was asked.
    pub blind: Vec<&'static str>,
    /// The tables that every script shares and any may alter (isolation.md S4); `None`: we may not run scripts.
    pub script_tables: Option<Vec<String>>,
    /// The same of functions, which have an interpreter of their own, and what leads a library past its prelude while it loads (isolation.md
    /// S8); `None`: we may not load, call and delete any, or the upstream has none.
    pub function_tables: Option<Vec<String>>,
    /// That could not be tried for now: the upstream takes no writes, being full, or a replica, or unable to save.
    pub functions_untried: bool,
    /// Whether a connection that does not log in may run commands, so that RESET or a forged AUTH leaves the wall (isolation.md D14).
    pub default_user_open: Option<bool>,
}

impl Default for Holes {
    /// What is assumed of an upstream that was not asked: the worst.
    fn default() -> Self {
        Self {
            refused: None,
            selectors: false,
            database_rules: false,
            blind: SUSPECTS.iter().map(|(name, _)| *name).collect(),
            script_tables: None,
            function_tables: None,
            functions_untried: false,
            default_user_open: None,
        }
    }
}

impl Holes {
    /// As which user a command travels.
    #[inline]
    pub fn kind(&self, row: &Row) -> Kind {
        if is_sort(row) || self.blind.contains(&row.name) { Kind::Sort } else { Kind::Data }
    }

    /// Whether scripts of one tenant cannot alter what those of another run in.
    pub fn scripts_apart(&self) -> bool {
        self.script_tables.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether functions of one tenant can neither alter what those of another run in, nor register any under others' names.
    pub fn functions_apart(&self) -> bool {
        self.function_tables.as_ref().is_some_and(Vec::is_empty)
    }
}

/// The commands an upstream has.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: HashSet<String>,
    /// Servers before 7.0 list no subcommands, and take a rule for any.
    subcommands: bool,
}

impl Known {
    fn new(names: Vec<String>) -> Self {
        let subcommands = names.iter().any(|n| n.contains('|'));
        Self { names: names.into_iter().map(|n| n.to_ascii_lowercase()).collect(), subcommands }
    }

    pub(super) fn has(&self, row: &Row) -> bool {
        match row.container() {
            Some(container) if !self.subcommands => self.names.contains(&container.lower_name()),
            _ => self.names.contains(&row.lower_name()),
        }
    }
}

/// Tries everything, for `keyfence check`.
///
/// # Errors
/// When the upstream cannot be asked. That it refuses us is a finding.
pub async fn probe_holes(target: &Target) -> Result<Holes, WallError> {
    let identity = Identity::new().map_err(|e| UpstreamError::Unreachable(format!("no randomness: {e}")))?;
    let mut line = Line::open(target).await?;
    let mut holes = match of_acl(&mut line, &identity.scratch()).await? {
        Ok((holes, _)) => holes,
        Err(why) => Holes { refused: Some(why), ..Holes::default() },
    };
    holes.script_tables = script_tables(&mut line).await?;
    try_functions(&mut line, &mut holes).await?;
    holes.default_user_open = default_user_open(target).await;
    Ok(holes)
}

/// The tables that scripts share and may alter; `None`: we may not run scripts.
pub(super) async fn script_tables(line: &mut Line) -> Result<Option<Vec<String>>, WallError> {
    let tables = line.ask(redis::cmd("EVAL").arg(SHARED_TABLES).arg(0)).await?;
    Ok(refusal(&tables)?.is_ok().then(|| texts(&tables)))
}

/// The tables that functions share and may alter, and what leads past their prelude.
pub(super) async fn try_functions(line: &mut Line, holes: &mut Holes) -> Result<(), WallError> {
    let load = |code: String| {
        let mut cmd = redis::cmd("FUNCTION");
        cmd.arg("LOAD").arg("REPLACE").arg(format!("#!lua name={PROBE}\n{code}"));
        cmd
    };
    let delete = redis::cmd("FUNCTION").arg("DELETE").arg(PROBE).clone();
    let mut commands = vec![
        redis::cmd("MULTI"),
        load(format!("redis.register_function('{PROBE}', function() {SHARED_TABLES} end)")),
        redis::cmd("FCALL").arg(PROBE).arg(0).clone(),
    ];
    let register = format!("redis.register_function('{PROBE}', function() end)");
    commands.extend(WAYS.iter().map(|way| load(format!("local way = {way} {register}"))));
    commands.push(delete);
    commands.push(redis::cmd("EXEC"));
    // All at once, so that nothing of it stays if we end, and no other process comes between.
    let replies = line.send(&commands).await?;
    let results = match replies.last() {
        Some(Value::Array(results)) => &results[..],
        _ => &replies[..],
    };
    // Without its rights, or without functions, it is so the next time, too; other errors pass.
    holes.functions_untried = results.iter().any(|reply| match reply {
        Value::ServerError(error) => !["ERR", "NOPERM", "EXECABORT"].contains(&error.code()),
        _ => false,
    });
    let [loaded, tables, ways @ .., deleted] = results else { return Ok(()) };
    let failed = [loaded, tables, deleted].into_iter().any(|reply| matches!(reply, Value::ServerError(_)));
    if failed || holes.functions_untried || ways.len() != WAYS.len() {
        return Ok(());
    }
    let mut found = texts(tables);
    let open = WAYS.iter().zip(ways).filter(|(_, reply)| !matches!(reply, Value::ServerError(_)));
    found.extend(open.map(|(way, _)| format!("{way} at load")));
    holes.function_tables = Some(found);
    Ok(())
}

/// What the ACL can do, tried with the user `scratch`, and the commands there are; `Ok(Err(why))`: we may not manage users.
pub(super) async fn of_acl(line: &mut Line, scratch: &str) -> Result<Result<(Holes, Known), String>, WallError> {
    let set = |rules: &[&str]| acl("SETUSER").arg(scratch).arg(rules).clone();
    // A rule that is not understood leaves the user as it was.
    let tried = [
        set(&["reset", "off", "resetchannels"]),
        set(&["(%R~* %W~IN +ping)"]),
        set(&["resetdbs", "db=0"]),
        redis::cmd("COMMAND"),
    ];
    let replies = line.send(&tried).await?;
    let [made, selectors, databases, commands] = &replies[..] else { return Err(UpstreamError::Lost.into()) };
    if let Err(why) = refusal(made)? {
        return Ok(Err(why));
    }
    if let Err(why) = refusal(commands)? {
        return Ok(Err(format!("COMMAND: {why}")));
    }
    let Value::Array(commands) = commands else { return Ok(Err("COMMAND is answered in an unknown form".into())) };
    let known = Known::new(control::names_in(commands));
    let mut holes = Holes {
        selectors: refusal(selectors)?.is_ok(),
        database_rules: refusal(databases)?.is_ok(),
        ..Holes::default()
    };
    holes.blind = blind(line, scratch, &known).await?;
    Ok(Ok((holes, known)))
}

async fn blind(line: &mut Line, scratch: &str, known: &Known) -> Result<Vec<&'static str>, WallError> {
    let suspects: Vec<_> = SUSPECTS
        .iter()
        .filter(|(name, _)| command::find(name).is_some_and(|row| row.forwardable() && known.has(row)))
        .collect();
    let mut allow = acl("SETUSER");
    allow.arg(scratch).arg(&["reset", "off", "~IN", "resetchannels"]);
    let mut commands = vec![allow];
    for (name, attacks) in &suspects {
        commands[0].arg(format!("+{}", name.to_ascii_lowercase()));
        for attack in *attacks {
            // The first of each pair must pass, or the second shows nothing.
            commands.push(dry_run(scratch, name, &attack.replace("OUT", "IN")));
            commands.push(dry_run(scratch, name, attack));
        }
    }
    commands.push(acl("DELUSER").arg(scratch).clone());
    let replies = line.send(&commands).await?;
    let mut verdicts = replies[1..].chunks(2);
    let mut blind = Vec::new();
    for (name, attacks) in suspects {
        let held = verdicts.by_ref().take(attacks.len()).filter(|v| passes(&v[0]) && denies(&v[1])).count();
        if held < attacks.len() {
            blind.push(*name);
        }
    }
    Ok(blind)
}

fn dry_run(user: &str, name: &str, args: &str) -> Cmd {
    acl("DRYRUN").arg(user).arg(name).arg(args.split(' ').collect::<Vec<_>>()).clone()
}

fn passes(reply: &Value) -> bool {
    matches!(reply, Value::Okay)
}

/// A denial is a text; an error means that it was not tried.
fn denies(reply: &Value) -> bool {
    !passes(reply) && !texts(reply).is_empty()
}

/// `None`: no connection could be had.
async fn default_user_open(target: &Target) -> Option<bool> {
    let nobody = Target { username: String::new(), password: String::new(), ..target.clone() };
    let reply = Line::open(&nobody).await.ok()?.ask(&redis::cmd("PING")).await.ok()?;
    Some(!matches!(&reply, Value::ServerError(error) if error.code() == "NOAUTH"))
}
