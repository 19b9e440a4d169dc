//! The control connection of a worker: the probe of what an upstream can do, and the commands of scoped work, through the `redis` crate.
//! Nothing a client waits for in its pipeline travels here.

use std::{cell::RefCell, collections::HashMap, future::poll_fn, io, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisError, Value, aio::MultiplexedConnection,
};

use tokio_rustls::TlsConnector;

use super::{Endpoint, Key, Kind, Site, Target};
use crate::{
    command::{self, ROWS, Row},
    error::UpstreamError,
    net,
    resp::Proto,
    tls::UpstreamTls,
};

/// Connections for work outside the data path, one per database, opened on use.
#[derive(Debug)]
pub struct Control {
    target: Target,
    conns: RefCell<HashMap<u32, MultiplexedConnection>>,
}

impl Control {
    /// For the same upstream as the data path.
    pub fn new(target: Target) -> Self {
        Self { target, conns: RefCell::default() }
    }

    /// How many connections it has.
    pub fn open(&self) -> usize {
        self.conns.borrow().len()
    }

    /// Runs one command on database `db`.
    ///
    /// # Errors
    /// [`UpstreamError`]; an error reply of the upstream comes as `Refused`.
    pub async fn query<T: FromRedisValue>(&self, db: u32, cmd: &Cmd) -> Result<T, UpstreamError> {
        let known = self.conns.borrow().get(&db).cloned();
        let mut conn = match known {
            Some(conn) => conn,
            None => {
                let conn = connect(&self.target, db).await.map_err(|e| UpstreamError::Unreachable(describe(&e)))?;
                self.conns.borrow_mut().insert(db, conn.clone());
                conn
            }
        };
        match tokio::time::timeout(self.target.socket_timeout, cmd.query_async(&mut conn)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if error.is_io_error() || error.is_unrecoverable_error() {
                    self.conns.borrow_mut().remove(&db);
                }
                Err(if error.is_timeout() {
                    UpstreamError::TimedOut(self.target.socket_timeout)
                } else if error.is_io_error() {
                    UpstreamError::Lost
                } else {
                    UpstreamError::Refused(describe(&error))
                })
            }
            Err(_) => {
                self.conns.borrow_mut().remove(&db);
                Err(UpstreamError::TimedOut(self.target.socket_timeout))
            }
        }
    }
}

/// The error as an operator reads it; never a password.
pub(super) fn describe(error: &RedisError) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::Io, _) | (_, None) => error.to_string(),
        (_, Some(detail)) => error.code().map_or_else(|| detail.to_owned(), |code| format!("{code} {detail}")),
    }
}

/// A connection that is logged in as the settings say, on database `db`.
pub(super) async fn connect(target: &Target, db: u32) -> Result<MultiplexedConnection, RedisError> {
    let addr = match &target.endpoint {
        Endpoint::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
        Endpoint::Unix(path) => ConnectionAddr::Unix(path.clone()),
    };
    let mut login = RedisConnectionInfo::default().set_db(i64::from(db)).set_skip_set_lib_name();
    if !target.username.is_empty() {
        login = login.set_username(&target.username);
    }
    if !target.password.is_empty() {
        login = login.set_password(&target.password);
    }
    if let (Some(tls), Endpoint::Tcp(host, port)) = (&target.tls, &target.endpoint) {
        return connect_tls(target, tls, host, *port, login).await;
    }
    let client = Client::open(addr.into_connection_info()?.set_redis_settings(login))?;
    // Each query has a deadline of its own; the crate's default would be shorter than some settings.
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(target.connect_timeout)).set_response_timeout(None);
    tokio::time::timeout(target.connect_timeout, client.get_multiplexed_async_connection_with_config(&config))
        .await
        .unwrap_or_else(|_| {
            Err(RedisError::from((ErrorKind::Io, "no connection in time", format!("{:?}", target.connect_timeout))))
        })
}

/// The same over TLS.
async fn connect_tls(
    target: &Target,
    tls: &UpstreamTls,
    host: &str,
    port: u16,
    login: RedisConnectionInfo,
) -> Result<MultiplexedConnection, RedisError> {
    let connecting = async {
        let stream = net::connect(host, port).await?;
        let stream = TlsConnector::from(tls.config()).connect(tls.name.clone(), stream).await?;
        let (conn, driver) = MultiplexedConnection::new_with_config(
            &login,
            stream,
            AsyncConnectionConfig::new().set_response_timeout(None),
        )
        .await?;
        tokio::spawn(driver);
        Ok(conn)
    };
    tokio::time::timeout(target.connect_timeout, connecting).await.unwrap_or_else(|_| {
        Err(RedisError::from((ErrorKind::Io, "no connection in time", format!("{:?}", target.connect_timeout))))
    })
}

/// What the upstream is and can do, as found by [`probe`]. The default is what is assumed before it has been asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether it has been asked.
    pub probed: bool,
    /// `redis` or `valkey`.
    pub server: String,
    /// Its version, `7.0.15`.
    pub version: String,
    /// How many databases it has.
    pub databases: u32,
    /// Its `maxmemory-policy`.
    pub maxmemory_policy: String,
    /// Its `notify-keyspace-events`; empty: it sends no notifications.
    pub keyspace_events: Option<String>,
    /// Whether it checks the payloads of RESTORE.
    pub sanitizes_dumps: Option<bool>,
    /// `standalone`, `cluster` or `sentinel`.
    pub mode: String,
    /// Whether keyfence's user may manage ACL users.
    pub manages_users: bool,
    /// By row index: the upstream lacks this command. Empty before the probe.
    lacks: Vec<bool>,
    /// Its commands that have no row here, and so are refused.
    pub unknown: Vec<String>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            probed: false,
            server: "redis".into(),
            version: "7.0.0".into(),
            databases: 16,
            maxmemory_policy: "noeviction".into(),
            keyspace_events: None,
            sanitizes_dumps: None,
            mode: "standalone".into(),
            manages_users: false,
            lacks: Vec::new(),
            unknown: Vec::new(),
        }
    }
}

impl Facts {
    /// Whether the upstream has the command, as far as is known.
    #[inline]
    pub fn has(&self, row: &Row) -> bool {
        !self.lacks.get(usize::from(row.index)).copied().unwrap_or(false)
    }

    /// Whether fields of a hash may expire one by one there.
    pub fn expires_fields(&self) -> bool {
        command::find("HPEXPIRE").is_some_and(|row| self.has(row))
    }

    /// How many of the commands that are forwarded the upstream lacks.
    pub fn lacking(&self) -> usize {
        ROWS.iter().filter(|row| row.forwardable() && !self.has(row)).count()
    }
}

/// Asks an upstream what it is and can do.
///
/// # Errors
/// When it cannot be reached or refuses the login; a question it does not answer leaves that fact at its default.
pub async fn probe(target: &Target) -> Result<Facts, UpstreamError> {
    let control = Control::new(target.clone());
    let info: String = control.query(0, redis::cmd("INFO").arg("server")).await?;
    let mut facts = Facts { probed: true, ..Facts::default() };
    let field =
        |name: &str| info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(|v| v.trim().to_owned());
    if let Some(version) = field("valkey_version") {
        facts.server = "valkey".into();
        facts.version = version;
    } else if let Some(version) = field("redis_version") {
        facts.version = version;
    }
    if let Some(mode) = field("redis_mode").or_else(|| field("server_mode")) {
        facts.mode = mode;
    }
    let setting = async |name: &str| -> Option<String> {
        let pair: Vec<String> = control.query(0, redis::cmd("CONFIG").arg("GET").arg(name)).await.ok()?;
        pair.into_iter().nth(1)
    };
    if let Some(databases) = setting("databases").await.and_then(|v| v.parse().ok()) {
        facts.databases = databases;
    }
    if let Some(policy) = setting("maxmemory-policy").await {
        facts.maxmemory_policy = policy;
    }
    facts.keyspace_events = setting("notify-keyspace-events").await;
    facts.sanitizes_dumps = setting("sanitize-dump-payload").await.map(|v| v != "no");
    facts.manages_users = control.query::<Value>(0, redis::cmd("ACL").arg("USERS")).await.is_ok();
    if let Ok(names) = command_names(&control).await {
        // Before 7.0 COMMAND lists no subcommands: then those of a command that is there are taken to be there.
        let listed = names.iter().any(|n| n.contains('|'));
        let lacks = |row: &Row| match row.container() {
            Some(container) if !listed => !names.iter().any(|n| same(n, container.name)),
            _ => !names.iter().any(|n| same(n, row.name)),
        };
        facts.lacks = ROWS.iter().map(lacks).collect();
        facts.unknown = names.into_iter().filter(|n| command::find(n).is_none()).collect();
    }
    Ok(facts)
}

/// `client|list` is `CLIENT LIST`.
fn same(theirs: &str, ours: &str) -> bool {
    theirs.len() == ours.len()
        && theirs.bytes().zip(ours.bytes()).all(|(t, o)| t.to_ascii_uppercase() == o || (t == b'|' && o == b' '))
}

/// The names of the upstream's commands and subcommands, `client|list`.
async fn command_names(control: &Control) -> Result<Vec<String>, UpstreamError> {
    Ok(names_in(&control.query::<Vec<Value>>(0, &redis::cmd("COMMAND")).await?))
}

/// The names in a reply of COMMAND.
pub(super) fn names_in(table: &[Value]) -> Vec<String> {
    let mut names = Vec::new();
    for command in table {
        let Value::Array(fields) = command else { continue };
        names.extend(fields.first().and_then(text));
        let Some(Value::Array(subcommands)) = fields.get(9) else { continue };
        for sub in subcommands {
            if let Value::Array(fields) = sub {
                names.extend(fields.first().and_then(text));
            }
        }
    }
    names
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(b) => Some(String::from_utf8_lossy(b).into_owned()),
        Value::SimpleString(s) => Some(s.clone()),
        _ => None,
    }
}

/// Whether the upstream takes this login. Without a password nothing is asked: a connection would be somebody without one.
///
/// # Errors
/// When it cannot be asked.
pub async fn try_login(site: &Site, user: &str, password: &str) -> Result<bool, UpstreamError> {
    if user.is_empty() || password.is_empty() {
        return Ok(false);
    }
    let target = &site.target;
    let key = Key { kind: Kind::Data, tenant: 0, db: 0, proto: Proto::Resp2 };
    let login = async {
        // Never closed.
        let _turn = site.logins_at_once.acquire().await.map_err(io::Error::other)?;
        target.connect(user, password, &key).await
    };
    match tokio::time::timeout(target.connect_timeout, login).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(e)) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Ok(Err(e)) => Err(UpstreamError::Unreachable(e.to_string())),
        Err(_) => Err(UpstreamError::TimedOut(target.connect_timeout)),
    }
}

/// Whether the upstream tells keyfence's own user of changed keys: CLIENT TRACKING in RESP3, without which there is no tier.
///
/// # Errors
/// Why not, as a sentence.
pub async fn try_tracking(target: &Target) -> Result<(), String> {
    const ASK: &[u8] = b"*4\r\n$6\r\nCLIENT\r\n$8\r\nTRACKING\r\n$2\r\nON\r\n$5\r\nBCAST\r\n";
    let key = Key { kind: Kind::Data, tenant: 0, db: 0, proto: Proto::Resp3 };
    let asking = async {
        let connected = target.connect(&target.username, &target.password, &key).await;
        let (mut read, write) = connected.map_err(|e| format!("no connection in RESP3: {e}"))?;
        let lost = |e: io::Error| format!("CLIENT TRACKING: {e}");
        let mut sent = 0;
        while sent < ASK.len() {
            poll_fn(|cx| write.poll_ready(cx)).await.map_err(lost)?;
            match write.try_write(&ASK[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(lost(e)),
            }
        }
        let (mut line, mut chunk) = (Vec::new(), [0; 512]);
        while !line.contains(&b'\n') {
            let n = poll_fn(|cx| read.poll_read(cx, &mut chunk)).await.map_err(lost)?;
            if n == 0 {
                return Err("CLIENT TRACKING: closed by the upstream".into());
            }
            line.extend_from_slice(&chunk[..n]);
        }
        if line.starts_with(b"+OK") {
            return Ok(());
        }
        Err(String::from_utf8_lossy(line.trim_ascii_end()).trim_start_matches('-').to_owned())
    };
    tokio::time::timeout(target.connect_timeout, asking)
        .await
        .unwrap_or_else(|_| Err("no answer to CLIENT TRACKING in time".into()))
}

/// How long `probe` waits between two attempts.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);
