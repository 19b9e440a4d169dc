//! THE SECOND WALL: for every tenant, users in the upstream's own ACL that its connections log in as.
//!
//! ```text
//!  settings' user ──► ACL SETUSER keyfence-<process>-data-<tenant>  ~<prefix>* &<prefix>* +get +set …
//!                                 keyfence-<process>-sort-<tenant>  … and SORT, which no key pattern confines
//!  data connections ──► AUTH as one of the two, never as the settings' user
//! ```
//!
//! What always holds: a user can do what the table forwards and nothing else, on names behind one prefix; two processes on one upstream
//! have users of their own; the password is never written anywhere, its hash only into the upstream's ACL; and once the users stood, this
//! process never logs a tenant in as the settings' user again, whatever the upstream says later.

mod holes;
mod line;
mod rules;
#[cfg(test)]
mod tests;

pub use holes::{Holes, probe_holes};
pub use rules::{Commands, Kind, Lua, rules};

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{BuildHasher as _, RandomState},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use redis::Cmd;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use self::line::{Line, acl, refusal, texts};
use super::Target;
use crate::{config::AclWall, error::UpstreamError};

/// Users of a process that ended without taking them away may go after this long.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// Tenants whose users are made with one batch of commands: with more, Redis 8 and Valkey 9 kept others waiting for 100 ms and longer.
const AT_ONCE: usize = 4;
/// The longest tenant name that stands in a user name as it is; of a longer one the hash does.
const LONGEST_NAME: usize = 64;

/// Who the users of one wall belong to, as their names say it, and the password they share. Of one wall only, so that it is not to be
/// cloned: two walls of one identity would take each other's users for leftovers.
///
/// One password for all is enough: it never leaves this process in clear, no tenant can send AUTH upstream, and a script cannot call it.
pub struct Identity {
    /// `<seconds since 1970, in hex>-<16 hex digits>`.
    id: String,
    password: String,
    sha256: String,
}

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new() -> Result<Self, getrandom::Error> {
        Self::of(SystemTime::now())
    }

    fn of(time: SystemTime) -> Result<Self, getrandom::Error> {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (mut id, mut password) = ([0; 8], [0; 32]);
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut password)?;
        let password = hex(&password);
        let sha256 = hex(&Sha256::digest(password.as_bytes()));
        Ok(Self { id: format!("{seconds:x}-{}", hex(&id)), password, sha256 })
    }

    /// The name of its control connection, by which others see that it lives while none of its tenants is connected.
    fn name(&self) -> String {
        format!("keyfence-{}", self.id)
    }

    /// The number stands in it for a tenant that is another one after a reload under its old name: both have users until the first has gone.
    fn user(&self, kind: Kind, number: u32, tenant: &str) -> String {
        format!("keyfence-{}-{}-{number}-{}", self.id, kind.word(), safe(tenant))
    }

    /// The user that holes are looked for with.
    fn scratch(&self) -> String {
        format!("keyfence-{}-{SCRATCH}-", self.id)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}

/// Whose a name of our form is (a user's, or the control connection's), and since when, in seconds.
fn owner(name: &str) -> Option<(u64, &str)> {
    let id = name.strip_prefix("keyfence-")?;
    let (started, rest) = id.split_once('-')?;
    let (random, kind) = rest.split_once('-').map_or((rest, None), |(random, rest)| (random, Some(rest)));
    let known = kind.is_none_or(|rest| {
        let word = rest.split_once('-').map_or("", |(word, _)| word);
        word == SCRATCH || Kind::ALL.iter().any(|kind| kind.word() == word)
    });
    let ours = known && random.len() == 16 && random.bytes().all(|c| c.is_ascii_hexdigit());
    let seconds = u64::from_str_radix(started, 16).ok().filter(|_| ours)?;
    Some((seconds, id.get(..started.len() + 1 + random.len())?))
}

/// What stands for [`Kind::word`] in the name of the user that holes are looked for with.
const SCRATCH: &str = "probe";

/// A tenant's name as part of a user's: no two names give the same text, and no byte of it means anything to an ACL.
fn safe(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02x}")),
        }
    }
    // '=' is no character of the other form.
    if out.len() > LONGEST_NAME { format!("={}", hex(&Sha256::digest(name))) } else { out }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A tenant to be walled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walled {
    /// Its number in this process.
    pub id: u32,
    /// Its name; any text.
    pub name: String,
    /// What its names begin with upstream; empty: all of them.
    pub prefix: Arc<[u8]>,
    /// The upstream's databases that it may select.
    pub databases: Range<u32>,
    /// Whether it may run scripts, where these cannot alter one another.
    pub scripts: bool,
    /// Whether it may also where they can.
    pub despite_holes: bool,
    /// By row index, the commands it may run; empty: all.
    pub permitted: Arc<[bool]>,
}

/// What [`Wall::raise`] came to.
#[derive(Clone, Debug)]
pub enum Standing {
    /// The settings want no wall.
    Off,
    /// The settings would like one and the upstream does not let us: why, for a warning.
    None(String),
    /// It stands.
    Raised {
        /// How many users it is made of.
        users: usize,
        /// What the upstream's ACL cannot hold, and so what travels as [`Kind::Sort`]; see [`Holes::kind`].
        holes: Arc<Holes>,
    },
}

/// Why there is no wall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WallError {
    /// The upstream could not be asked, or answered that it is busy; try again.
    Upstream(UpstreamError),
    /// It does not let us manage users, and there must be a wall (`acl_wall = "require"`, or one that stood before).
    Refused(String),
    /// The prefix of this tenant cannot stand in an ACL rule.
    Prefix(String),
}

impl fmt::Display for WallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upstream(error) => f.write_str(&error.to_line()),
            Self::Refused(why) => write!(f, "the upstream does not let keyfence manage users: {why}"),
            Self::Prefix(tenant) => {
                write!(f, "the prefix of tenant '{}' cannot stand in an ACL rule", tenant.escape_debug())
            }
        }
    }
}

impl std::error::Error for WallError {}

impl From<UpstreamError> for WallError {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(error)
    }
}

/// How a tenant's connection logs in.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// As this user, with this password.
    As(String, String),
    /// As the settings say: there is no wall.
    Plain,
    /// Not now: the users have not been made yet, and until then nothing of this tenant may go upstream.
    NotYet,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::As(user, _) => write!(f, "As({user}, ***)"),
            Self::Plain => f.write_str("Plain"),
            Self::NotYet => f.write_str("NotYet"),
        }
    }
}

#[derive(Debug)]
enum State {
    Unknown,
    Plain,
    Raised {
        /// By tenant, the users in the order of [`Kind::ALL`].
        users: HashMap<u32, [String; 2]>,
        /// By user, the hash of its rules.
        made: HashMap<String, u64>,
    },
}

/// The wall of one upstream. `raise`, `check` and `lower` belong to the control plane; `login` is for everybody.
#[derive(Debug)]
pub struct Wall {
    target: Target,
    policy: AclWall,
    identity: Identity,
    state: ArcSwap<State>,
    /// The users that were made may not be what stands upstream now: all of them are made again by the next raise.
    doubt: AtomicBool,
    hashes: RandomState,
    /// One at a time: two raises that overlap would take each other's users for leftovers.
    line: Mutex<Option<Line>>,
}

impl Wall {
    /// For the upstream that `target` leads to, as the user who manages the others. Nothing is sent yet.
    pub fn new(target: Target, policy: AclWall, identity: Identity) -> Self {
        let state = if policy == AclWall::Off { State::Plain } else { State::Unknown };
        Self {
            target,
            policy,
            identity,
            state: ArcSwap::from_pointee(state),
            doubt: AtomicBool::new(true),
            hashes: RandomState::new(),
            line: Mutex::new(None),
        }
    }

    /// Makes the users of exactly these tenants: those that are missing, those with new rules, and all after a [`Wall::doubt`] or over a new
    /// connection. Nobody's connections suffer from it but those of tenants that are not named any more: the upstream closes them.
    ///
    /// # Errors
    /// See [`WallError`]; what stood before then still does, as far as the upstream kept it.
    pub async fn raise(&self, tenants: &[Walled]) -> Result<Standing, WallError> {
        if self.policy == AclWall::Off {
            return Ok(Standing::Off);
        }
        if let Some(tenant) = tenants.iter().find(|t| !rules::can_stand(&t.prefix)) {
            return Err(WallError::Prefix(tenant.name.clone()));
        }
        let mut place = self.line.lock().await;
        let mut line = self.take(&mut place).await?;
        let standing = match self.raise_on(&mut line, tenants).await {
            Err(WallError::Refused(why))
                if self.policy == AclWall::Auto && !matches!(**self.state.load(), State::Raised { .. }) =>
            {
                // Some users may have been made before the one that was refused.
                let _ = self.sweep(&mut line, &HashSet::new()).await;
                self.state.store(Arc::new(State::Plain));
                Standing::None(why)
            }
            other => other?,
        };
        *place = Some(line);
        Ok(standing)
    }

    async fn raise_on(&self, line: &mut Line, tenants: &[Walled]) -> Result<Standing, WallError> {
        let (mut holes, known) = holes::of_acl(line, &self.identity.scratch()).await?.map_err(WallError::Refused)?;
        if tenants.iter().any(|t| t.scripts) {
            holes.script_tables = holes::script_tables(line).await?;
            holes::try_functions(line, &mut holes).await?;
        }
        let (apart, functions_apart) = (holes.scripts_apart(), holes.functions_apart());
        let commands = |kind, lua| Commands::new(kind, lua, &holes, |row| known.has(row));
        let (data, sort) = (commands(Kind::Data, Lua::Off), commands(Kind::Sort, Lua::Off));
        let (scripting, calling) = (commands(Kind::Data, Lua::Scripts), commands(Kind::Data, Lua::Functions));
        let state = self.state.load_full();
        let there: HashSet<String> = self.users(line).await?.into_iter().collect();
        let doubt = self.doubt.swap(true, Ordering::Relaxed);
        let stands = |user: &String, hash: u64| match &*state {
            State::Raised { made, .. } if !doubt => there.contains(user) && made.get(user) == Some(&hash),
            _ => false,
        };
        let mut users = HashMap::with_capacity(tenants.len());
        let mut made = HashMap::with_capacity(2 * tenants.len());
        // As they are sent, so that neither this thread nor the upstream is held up by a thousand of them.
        for tenants in tenants.chunks(AT_ONCE) {
            let mut batch = Vec::with_capacity(2 * tenants.len());
            for tenant in tenants {
                let names = Kind::ALL.map(|kind| self.identity.user(kind, tenant.id, &tenant.name));
                let scripts = tenant.scripts && (apart || tenant.despite_holes);
                // What a script may call is what its tenant may.
                let lua = if functions_apart || tenant.despite_holes { &calling } else { &scripting };
                let own = scripts.then(|| lua.permitted(&tenant.permitted));
                let may = [own.as_ref().unwrap_or(&data), &sort];
                for (name, commands) in names.iter().zip(may) {
                    let rules = rules(&tenant.prefix, &tenant.databases, commands, &holes, &self.identity.sha256);
                    let hash = self.hashes.hash_one(&rules);
                    if !stands(name, hash) {
                        batch.push(acl("SETUSER").arg(name).arg(rules).clone());
                    }
                    made.insert(name.clone(), hash);
                }
                users.insert(tenant.id, names);
            }
            for reply in line.send(&batch).await? {
                refusal(&reply)?.map_err(WallError::Refused)?;
            }
            tokio::task::yield_now().await;
        }
        let wanted = made.keys().map(String::as_str).collect();
        self.sweep(line, &wanted).await?;
        self.doubt.store(false, Ordering::Relaxed);
        let standing = Standing::Raised { users: made.len(), holes: Arc::new(holes) };
        self.state.store(Arc::new(State::Raised { users, made }));
        Ok(standing)
    }

    /// Takes away users of ours that nobody wants, and those of walls whose process is gone.
    async fn sweep(&self, line: &mut Line, wanted: &HashSet<&str>) -> Result<(), WallError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let users = self.users(line).await?;
        let mut stale: Vec<&String> = Vec::new();
        let mut gone: Vec<&String> = Vec::new();
        for user in &users {
            match owner(user) {
                Some((_, id)) if id == self.identity.id && wanted.contains(user.as_str()) => {}
                Some((_, id)) if id == self.identity.id => gone.push(user),
                Some((started, _)) if now.saturating_sub(Duration::from_secs(started)) > STALE_AFTER => {
                    stale.push(user);
                }
                _ => {}
            }
        }
        if !stale.is_empty() {
            let clients = line.ask(redis::cmd("CLIENT").arg("LIST")).await?;
            // Without the list nobody can be called dead.
            if let Some(clients) = texts(&clients).first() {
                let alive = alive(clients);
                gone.extend(stale.into_iter().filter(|u| owner(u).is_some_and(|(_, p)| !alive.contains(p))));
            }
        }
        line.send(&gone.into_iter().map(|user| acl("DELUSER").arg(user).clone()).collect::<Vec<Cmd>>()).await?;
        Ok(())
    }

    async fn users(&self, line: &mut Line) -> Result<Vec<String>, WallError> {
        let reply = line.ask(&acl("USERS")).await?;
        refusal(&reply)?.map_err(WallError::Refused)?;
        Ok(texts(&reply))
    }

    /// Whether every user of the wall is still there: not after a failover, an `ACL LOAD` or a restart of the upstream. One `ACL USERS`;
    /// cheap enough for every second. `false` also when the upstream does not answer, and before the first raise.
    pub async fn check(&self) -> bool {
        let state = self.state.load_full();
        let State::Raised { users: ours, .. } = &*state else { return matches!(*state, State::Plain) };
        let mut place = self.line.lock().await;
        let Ok(mut line) = self.take(&mut place).await else { return false };
        let Ok(users) = self.users(&mut line).await else { return false };
        *place = Some(line);
        let users: HashSet<&str> = users.iter().map(String::as_str).collect();
        ours.values().flatten().all(|name| users.contains(name.as_str()))
    }

    /// Takes every user of this process away, whereupon the upstream closes their connections. Afterwards nobody can log in.
    ///
    /// # Errors
    /// When the upstream cannot be reached: the next process to come sweeps them up after a day.
    pub async fn lower(&self) -> Result<(), WallError> {
        let old = self.state.swap(Arc::new(State::Unknown));
        if !matches!(*old, State::Raised { .. }) {
            return Ok(());
        }
        let mut place = self.line.lock().await;
        let mut line = self.take(&mut place).await?;
        self.sweep(&mut line, &HashSet::new()).await
    }

    /// A login was refused: the next [`Wall::raise`] is to make every user again, not only those that are missing or have new rules.
    pub fn doubt(&self) {
        self.doubt.store(true, Ordering::Relaxed);
    }

    /// How connections of this kind of this tenant log in.
    pub fn login(&self, tenant: u32, kind: Kind) -> Login {
        match &**self.state.load() {
            State::Unknown => Login::NotYet,
            State::Plain => Login::Plain,
            State::Raised { users, .. } => users.get(&tenant).map_or(Login::NotYet, |names| {
                let [data, sort] = names;
                let name = if kind == Kind::Data { data } else { sort };
                Login::As(name.clone(), self.identity.password.clone())
            }),
        }
    }

    /// The connection, taken out of its place: whoever fails with it does not put it back, so that the next one connects anew.
    async fn take(&self, place: &mut Option<Line>) -> Result<Line, UpstreamError> {
        if let Some(line) = place.take() {
            return Ok(line);
        }
        let mut line = Line::open(&self.target).await?;
        // Another server, perhaps, or the same one without its memory.
        self.doubt();
        line.ask(redis::cmd("CLIENT").arg("SETNAME").arg(self.identity.name())).await?;
        Ok(line)
    }
}

/// Who has a connection, by its user or its name, in a reply of CLIENT LIST.
fn alive(clients: &str) -> HashSet<&str> {
    let fields = clients.split_ascii_whitespace();
    let names = fields.filter_map(|f| f.strip_prefix("user=").or_else(|| f.strip_prefix("name=")));
    names.filter_map(|name| owner(name).map(|(_, id)| id)).collect()
}
