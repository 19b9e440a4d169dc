//! KEYS, SCAN, DBSIZE, RANDOMKEY, FLUSHDB, FLUSHALL and INFO, inside the tenant's prefix.
//!
//! Forwarded, each of them would act on every tenant's keys. They are made of SCAN with the escaped prefix instead, in pages that each
//! take the upstream well under a millisecond, on the worker's control connection; every name that comes back is checked for the prefix
//! again. Replies are not snapshots: a key that exists from beginning to end is seen, one that comes or goes meanwhile may be
//! (<https://redis.io/docs/latest/commands/scan/>).

mod cursor;
mod flush;

pub use flush::Flushes;

use std::{cell::Cell, collections::HashSet, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    sync::{MutexGuard, SemaphorePermit},
    time::Instant,
};

use crate::{
    clients::Client,
    command::{Args, Row},
    downstream::Downstream,
    error::UpstreamError,
    glob, local,
    metrics::{ErrorKind, JobGuard, access},
    resp::Value,
    rewrite::canonical,
    scripts::{
        self,
        functions::{self, Look},
        store::Entry,
    },
    session::{Session, Until},
    tenant::Tenant,
    upstream::control::Control,
    worker::{Reach, Worker},
};

/// Buckets per page of a full pass.
const PAGE: u32 = 1000;
/// Most buckets per page that a client may ask for: a page blocks the upstream while it is made.
const MAX_COUNT: u32 = 2000;
/// Fewest buckets per page.
const MIN_COUNT: u32 = 100;
/// How many pages one SCAN call may take to find something (isolation.md E5).
const SCAN_PAGES: u32 = 32;
/// Longest pattern and most wildcards in it: matching costs the upstream more than linear time (isolation.md E3, CVE-2024-31228).
const PATTERN_BYTES: usize = 4096;
const PATTERN_STARS: usize = 32;
/// How often, and how far apart, it is looked which connection a client waits on.
const UNBLOCK_LOOKS: u32 = 100;
const UNBLOCK_PAUSE: Duration = Duration::from_millis(10);
/// How long a count of keys is good enough for INFO.
const COUNT_FRESH: Duration = Duration::from_secs(10);
/// How long INFO waits for a count before it answers with the last one.
const COUNT_WAIT: Duration = Duration::from_millis(200);

/// Scoped work.
#[derive(Debug)]
pub enum Job {
    /// KEYS pattern.
    Keys(Vec<u8>),
    /// SCAN.
    Scan(Scan),
    /// DBSIZE.
    DbSize,
    /// RANDOMKEY.
    RandomKey,
    /// FLUSHDB, or FLUSHALL (`all`); `wait` unless ASYNC; `unlink` unless SYNC.
    Flush {
        /// Every database of the tenant.
        all: bool,
        /// Answer when it is done.
        wait: bool,
        /// UNLINK, not DEL.
        unlink: bool,
    },
    /// CLIENT UNBLOCK.
    Unblock {
        /// One of the tenant's own, which waits in a blocking command.
        client: Arc<Client>,
        /// It is told an error instead of that its time is over.
        error: bool,
    },
    /// SCRIPT LOAD of a script of the tenant's.
    LoadScript(Arc<Entry>),
    /// SCRIPT KILL.
    KillScript,
    /// FUNCTION.
    Function(functions::manage::Work),
    /// INFO, the sections asked for.
    Info(Vec<String>),
}

/// The arguments of SCAN.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    cursor: u64,
    pattern: Option<Vec<u8>>,
    count: u32,
    kind: Option<Vec<u8>>,
}

/// The work a scoped command asks for.
///
/// # Errors
/// The error line.
pub fn job(_s: &Session, row: &Row, args: &Args<'_>) -> Result<Job, String> {
    match row.name {
        "KEYS" => bounded(args.at(1)).map(|p| Job::Keys(p.to_vec())),
        "SCAN" => scan(args).map(Job::Scan),
        "DBSIZE" => Ok(Job::DbSize),
        "RANDOMKEY" => Ok(Job::RandomKey),
        "FLUSHDB" | "FLUSHALL" => {
            let all = row.name == "FLUSHALL";
            let option = (args.len() > 1).then(|| args.at(1).to_ascii_uppercase());
            match (option.as_deref(), args.len()) {
                (None, _) => Ok(Job::Flush { all, wait: true, unlink: true }),
                (Some(b"ASYNC"), 2) => Ok(Job::Flush { all, wait: false, unlink: true }),
                (Some(b"SYNC"), 2) => Ok(Job::Flush { all, wait: true, unlink: false }),
                _ => Err("ERR syntax error".into()),
            }
        }
        _ => Err(format!("ERR '{}' is not served", row.lower_name())),
    }
}

/// `pattern`, unless matching it would take too long.
///
/// # Errors
/// The error line.
pub fn bounded(pattern: &[u8]) -> Result<&[u8], String> {
    if pattern.len() > PATTERN_BYTES || pattern.iter().filter(|&&c| c == b'*').count() > PATTERN_STARS {
        return Err(format!("ERR pattern is too complex: at most {PATTERN_BYTES} bytes and {PATTERN_STARS} stars"));
    }
    Ok(pattern)
}

/// SCAN's options as the server reads them: in order, the last of each wins (isolation.md A3).
fn scan(args: &Args<'_>) -> Result<Scan, String> {
    let text = std::str::from_utf8(args.at(1)).unwrap_or_default();
    let plain = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let cursor = text.parse().ok().filter(|_| plain).ok_or("ERR invalid cursor")?;
    let mut scan = Scan { cursor, pattern: None, count: 10, kind: None };
    let mut i = 2;
    while i < args.len() {
        let word = args.at(i).to_ascii_uppercase();
        let value = (i + 1 < args.len()).then(|| args.at(i + 1)).ok_or("ERR syntax error")?;
        match &word[..] {
            b"COUNT" => {
                let n = canonical(value).ok_or("ERR value is not an integer or out of range")?;
                if n < 1 {
                    return Err("ERR syntax error".into());
                }
                scan.count = u32::try_from(n).unwrap_or(MAX_COUNT).min(MAX_COUNT);
            }
            b"MATCH" => scan.pattern = Some(bounded(value)?.to_vec()),
            b"TYPE" => scan.kind = Some(value.to_vec()),
            _ => return Err("ERR syntax error".into()),
        }
        i += 2;
    }
    Ok(scan)
}

impl Job {
    /// The command that asks for it.
    fn command(&self) -> &'static str {
        match self {
            Self::Keys(_) => "KEYS",
            Self::Scan(_) => "SCAN",
            Self::DbSize => "DBSIZE",
            Self::RandomKey => "RANDOMKEY",
            Self::Flush { all: true, .. } => "FLUSHALL",
            Self::Flush { all: false, .. } => "FLUSHDB",
            Self::Unblock { .. } => "CLIENT UNBLOCK",
            Self::LoadScript(_) => "SCRIPT LOAD",
            Self::KillScript => "SCRIPT KILL",
            Self::Function(work) => work.command(),
            Self::Info(_) => "INFO",
        }
    }
}

/// Looks at the functions of the session's tenant; what came of it is put into `done` before its replies have drained.
///
/// # Errors
/// When nobody may connect for it.
pub fn look(s: &Session, work: functions::manage::Work, done: Look) -> Result<(), UpstreamError> {
    let scope = Scope::of(s, "FCALL", true)?;
    let (down, alarm) = (Rc::clone(&s.down), Arc::clone(s.down.alarm()));
    down.expect(1);
    tokio::task::spawn_local(async move {
        done.replace(Some(scope.functions(&work).await.map(drop)));
        down.settle(1);
        alarm.ring();
    });
    Ok(())
}

/// Does the work and answers: `false` when the connection ended meanwhile. Nothing is in flight for the session.
pub async fn run(s: &mut Session, job: Job) -> bool {
    // A FLUSHDB goes on when its client leaves, so as not to be left half done; anything else is for that client alone.
    let scope = match Scope::of(s, job.command(), !matches!(job, Job::Flush { .. })) {
        Ok(scope) => scope,
        Err(error) => {
            s.refuse(error.to_line());
            s.down.flush();
            return true;
        }
    };
    let (row, began) = (s.at_hand, Instant::now());
    let muted = s.muted();
    let limit = s.worker.shared.limits.load().output;
    let bases = if matches!(job, Job::Flush { all: true, .. }) {
        (0..s.tenant.databases).map(|n| s.tenant.db_base + n).collect()
    } else {
        vec![scope.db]
    };
    let view = local::info::View::of(s);
    let done = Rc::new(Cell::new(None));
    let (result, alarm) = (Rc::clone(&done), Arc::clone(s.down.alarm()));
    s.down.expect(1);
    let down = Rc::clone(&s.down);
    tokio::task::spawn_local(async move {
        result.set(Some(work(&scope, job, bases, limit, view).await));
        down.settle(1);
        alarm.ring();
    });
    if !s.wait(Until::Drained).await {
        return false;
    }
    let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    s.cells.answered(row, took, 1);
    let value = match done.take() {
        Some(Ok(value)) => value,
        Some(Err(error)) => Value::error(error.to_line()),
        None => Value::error("ERR internal error"),
    };
    let failed = match &value {
        Value::Error(line) => Some(ErrorKind::of(line)),
        _ => None,
    };
    if let Some(kind) = failed {
        s.cells.error(kind, 1);
    }
    if s.worker.meter.samples(1) {
        access::write(&s.cells, s.down.peer(), row, 0, took, failed);
    }
    if !muted {
        let proto = s.proto;
        s.down.append(|out| value.encode(proto, out));
        s.down.flush();
    }
    true
}

async fn work(
    scope: &Scope,
    job: Job,
    dbs: Vec<u32>,
    limit: usize,
    view: local::info::View,
) -> Result<Value, UpstreamError> {
    match job {
        Job::Keys(pattern) => scope.keys(&pattern, limit).await,
        Job::Scan(scan) => scope.scan(scan).await,
        Job::DbSize => Ok(Value::Int(i64::try_from(scope.count_shared().await?).unwrap_or(i64::MAX))),
        Job::RandomKey => Ok(scope.random().await?.map_or(Value::Null, Value::Bulk)),
        Job::Flush { wait, unlink, .. } => {
            if wait {
                flush::run(scope.clone(), dbs, unlink).await?;
            } else {
                flush::run_later(scope, dbs, unlink);
            }
            Ok(Value::ok())
        }
        Job::Unblock { client, error } => unblock(&scope.control, scope.db, &client, error).await,
        Job::LoadScript(entry) => scripts::load(&scope.control, &entry).await,
        Job::Function(work) => scope.functions(&work).await,
        Job::KillScript => scripts::kill::kill(&scope.worker.shared, &scope.control, &scope.tenant).await,
        Job::Info(sections) => {
            let keys = if view.wants_keyspace(&sections) { scope.count_soon().await } else { None };
            Ok(view.render(&sections, keys))
        }
    }
}

/// Ends the wait of a blocking command upstream, so that nothing it may have got is lost: 1 when there was one.
///
/// # Errors
/// When the upstream cannot be asked.
pub async fn unblock(control: &Control, db: u32, client: &Client, error: bool) -> Result<Value, UpstreamError> {
    for _ in 0..UNBLOCK_LOOKS {
        match client.waiting_on() {
            None => return Ok(Value::Int(0)),
            // Asked for in front of the blocking command, and not answered yet.
            Some(0) => tokio::time::sleep(UNBLOCK_PAUSE).await,
            Some(number) => {
                let mut cmd = redis::cmd("CLIENT");
                cmd.arg("UNBLOCK").arg(number).arg(if error { "ERROR" } else { "TIMEOUT" });
                return Ok(Value::Int(control.query(db, &cmd).await?));
            }
        }
    }
    Ok(Value::Int(0))
}

/// One database of one tenant.
#[derive(Clone, Debug)]
struct Scope {
    worker: Rc<Worker>,
    reach: Rc<Reach>,
    control: Rc<Control>,
    tenant: Arc<Tenant>,
    prefix: Rc<[u8]>,
    /// The upstream's number.
    db: u32,
    /// What an operator sees of it.
    job: Rc<JobGuard>,
    /// The client without which it need not go on.
    asked_by: Option<Rc<Downstream>>,
}

/// The right to one step: held by one client of a tenant, and by few tenants at once.
#[derive(Debug)]
struct Turn<'a> {
    _of_tenant: MutexGuard<'a, ()>,
    _of_all: SemaphorePermit<'a>,
}

impl Scope {
    /// That of a session, for `command`; `ends`: the work is for its client alone.
    fn of(s: &Session, command: &'static str, ends: bool) -> Result<Self, UpstreamError> {
        let db = s.tenant.db_base + s.db;
        Ok(Self {
            control: s.reach.control(s.tenant.id)?,
            job: Rc::new(s.worker.shared.metrics.jobs.begin(&s.tenant.name, command, db)),
            worker: Rc::clone(&s.worker),
            reach: Rc::clone(&s.reach),
            tenant: Arc::clone(&s.tenant),
            prefix: Rc::clone(&s.prefix),
            db,
            asked_by: ends.then(|| Rc::clone(&s.down)),
        })
    }

    /// One at a time of a tenant, so that what was loaded has been looked at before the next is.
    async fn functions(&self, work: &functions::manage::Work) -> Result<Value, UpstreamError> {
        let _turn = if work.waits() { Some(self.turn().await?) } else { None };
        work.run(&self.control).await
    }

    fn pattern(&self, rest: &[u8]) -> Vec<u8> {
        [&glob::escape(&self.prefix), rest].concat()
    }

    /// Waits for the turn of this work among the tenant's, and of the tenant among all, in the order of asking (isolation.md E2, L1).
    ///
    /// # Errors
    /// When the client has left, or the turn does not come in time.
    async fn turn(&self) -> Result<Turn<'_>, UpstreamError> {
        let limit = self.reach.site.target.socket_timeout;
        let turn = async {
            let of_tenant = self.tenant.step.lock().await;
            // Waiting with the tenant's own turn in hand, so that each tenant is in this queue once.
            let of_all = self.reach.site.steps.acquire().await.map_err(|_| UpstreamError::Lost)?;
            Ok(Turn { _of_tenant: of_tenant, _of_all: of_all })
        };
        let turn = tokio::time::timeout(limit, turn).await.map_err(|_| UpstreamError::TimedOut(limit))??;
        if self.asked_by.as_ref().is_some_and(|client| client.gone()) { Err(UpstreamError::Lost) } else { Ok(turn) }
    }

    /// One page, when its turn has come.
    async fn page(
        &self,
        cursor: u64,
        pattern: &[u8],
        count: u32,
        kind: Option<&[u8]>,
    ) -> Result<(u64, Vec<Vec<u8>>), UpstreamError> {
        let turn = self.turn().await?;
        self.page_in(&turn, cursor, pattern, count, kind).await
    }

    /// One page: the next cursor, and the names in it, prefix taken off. A name without the prefix cannot match; should one come all the
    /// same, it is left out and said.
    async fn page_in(
        &self,
        _turn: &Turn<'_>,
        cursor: u64,
        pattern: &[u8],
        count: u32,
        kind: Option<&[u8]>,
    ) -> Result<(u64, Vec<Vec<u8>>), UpstreamError> {
        let mut cmd = redis::cmd("SCAN");
        cmd.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(count);
        if let Some(kind) = kind {
            cmd.arg("TYPE").arg(kind);
        }
        let (next, mut names): (String, Vec<Vec<u8>>) = self.control.query(self.db, &cmd).await?;
        let before = names.len();
        names.retain_mut(|name| {
            let own = name.starts_with(&self.prefix);
            if own {
                name.drain(..self.prefix.len());
            }
            own
        });
        if names.len() != before {
            tracing::error!("SCAN returned names outside the tenant's prefix: left out");
        }
        let next = next.parse().map_err(|_| UpstreamError::Unreachable("unexpected reply to SCAN".into()))?;
        let cells = &self.worker.meter.cells;
        cells.scoped_steps.add(1);
        cells.scoped_keys.add(names.len() as u64);
        self.job.job.page(next, names.len());
        Ok((next, names))
    }

    async fn keys(&self, pattern: &[u8], limit: usize) -> Result<Value, UpstreamError> {
        let pattern = self.pattern(pattern);
        let mut seen = HashSet::new();
        let (mut cursor, mut bytes) = (0, 0);
        loop {
            let (next, names) = self.page(cursor, &pattern, PAGE, None).await?;
            for name in names {
                let len = name.len() + 16;
                if seen.insert(name) {
                    bytes += len;
                }
            }
            if bytes > limit {
                return Err(UpstreamError::Busy(
                    "the reply of KEYS is larger than client_output_limit; use SCAN".into(),
                ));
            }
            cursor = next;
            if cursor == 0 {
                return Ok(Value::Array(seen.into_iter().map(Value::Bulk).collect()));
            }
        }
    }

    async fn scan(&self, scan: Scan) -> Result<Value, UpstreamError> {
        let pattern = self.pattern(scan.pattern.as_deref().unwrap_or(b"*"));
        let page = |cursor: u64, names: Vec<Vec<u8>>| {
            let cursor = cursor::wrap(cursor, &self.prefix);
            Value::Array(vec![
                Value::bulk(cursor.to_string()),
                Value::Array(names.into_iter().map(Value::Bulk).collect()),
            ])
        };
        // A cursor that no scan of ours gave out continues nowhere.
        let Some(mut cursor) = cursor::unwrap(scan.cursor, &self.prefix) else { return Ok(page(0, Vec::new())) };
        // COUNT is a hint; small pages cost a round trip each and spare the upstream nothing.
        let mut count = scan.count.max(MIN_COUNT);
        for _ in 0..SCAN_PAGES {
            let (next, names) = self.page(cursor, &pattern, count, scan.kind.as_deref()).await?;
            if !cursor::fits(next) {
                return Err(UpstreamError::Unreachable("a SCAN cursor of more than 52 bits".into()));
            }
            cursor = next;
            if cursor == 0 || !names.is_empty() {
                return Ok(page(cursor, names));
            }
            // Nothing of the tenant's here: larger steps through the others' keys.
            count = PAGE.max(count);
        }
        Ok(page(cursor, Vec::new()))
    }

    /// A count that was begun after it was asked for; those who ask meanwhile share the next.
    async fn count_shared(&self) -> Result<u64, UpstreamError> {
        let gate = self.worker.shared.flushes.counting(self.tenant.id, self.db);
        gate.pass(async || self.count().await).await
    }

    async fn count(&self) -> Result<u64, UpstreamError> {
        let pattern = self.pattern(b"*");
        // A page may repeat names of an earlier one while the upstream rehashes; hashes of the names are enough to tell.
        let mut seen: HashSet<u64> = HashSet::new();
        let state = std::hash::RandomState::new();
        let mut cursor = 0;
        loop {
            let (next, names) = self.page(cursor, &pattern, PAGE, None).await?;
            seen.extend(names.iter().map(|n| std::hash::BuildHasher::hash_one(&state, n)));
            cursor = next;
            if cursor == 0 {
                self.worker
                    .shared
                    .flushes
                    .counts
                    .insert((self.tenant.id, self.db), (Instant::now(), seen.len() as u64));
                return Ok(seen.len() as u64);
            }
        }
    }

    /// A count that is fresh enough to show, if one can be had at once.
    async fn count_soon(&self) -> Option<u64> {
        let key = (self.tenant.id, self.db);
        let known = self.worker.shared.flushes.counts.get(&key).map(|c| *c);
        if let Some((at, n)) = known
            && at.elapsed() < COUNT_FRESH
        {
            return Some(n);
        }
        let scope = self.clone();
        let counting = tokio::task::spawn_local(async move { scope.count_shared().await.ok() });
        match tokio::time::timeout(COUNT_WAIT, counting).await {
            Ok(Ok(Some(n))) => Some(n),
            _ => known.map(|(_, n)| n),
        }
    }

    /// A name at random: of the first page that has any, from a random place on.
    async fn random(&self) -> Result<Option<Vec<u8>>, UpstreamError> {
        let pattern = self.pattern(b"*");
        let mut cursor = fastrand::u64(..);
        let mut wrapped = false;
        loop {
            let (next, mut names) = self.page(cursor, &pattern, PAGE, None).await?;
            if !names.is_empty() {
                return Ok(Some(names.swap_remove(fastrand::usize(..names.len()))));
            }
            cursor = next;
            if cursor == 0 {
                if wrapped {
                    return Ok(None);
                }
                wrapped = true;
            }
        }
    }
}

/// A table of counts by (tenant, upstream database).
pub(crate) type Counts = dashmap::DashMap<(u32, u32), (Instant, u64)>;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Scan, String> {
        let buf: Vec<u8> = words.concat().into_bytes();
        let mut at = 0;
        let spans: Vec<(u32, u32)> = words
            .iter()
            .map(|w| {
                let span = (at, u32::try_from(w.len()).expect("short"));
                at += span.1;
                span
            })
            .collect();
        scan(&Args::new(&buf, &spans))
    }

    #[test]
    fn a3_the_last_match_wins_and_a_lone_one_is_an_error() {
        let got = parse(&["SCAN", "0", "match", "x", "COUNT", "5", "MATCH", "*", "TYPE", "hash"]).expect("valid");
        assert_eq!(got, Scan { cursor: 0, pattern: Some(b"*".to_vec()), count: 5, kind: Some(b"hash".to_vec()) });
        assert_eq!(parse(&["SCAN", "0", "MATCH"]), Err("ERR syntax error".into()));
        assert_eq!(parse(&["SCAN", "0", "FOO", "1"]), Err("ERR syntax error".into()));
    }

    #[test]
    fn e4_counts_are_capped_and_cursors_are_numbers() {
        assert_eq!(parse(&["SCAN", "7", "COUNT", "9223372036854775807"]).map(|s| s.count), Ok(MAX_COUNT));
        assert_eq!(parse(&["SCAN", "7", "COUNT", "0"]), Err("ERR syntax error".into()));
        for bad in ["", "-1", "x", "18446744073709551616", "+1"] {
            assert_eq!(parse(&["SCAN", bad]), Err("ERR invalid cursor".into()), "{bad}");
        }
    }

    #[test]
    fn e3_pattern_bombs_are_refused() {
        assert!(bounded(&b"a*".repeat(33)).is_err());
        assert!(bounded(b"user:*:[0-9]?").is_ok());
    }
}
