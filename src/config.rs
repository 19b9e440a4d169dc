//! Settings: what the command line, the environment and the file say, checked once and turned into a typed [`Config`].
//!
//! ```text
//! file ─┐
//! env ──┼─► source: values by path, each with its place ─► Config
//! cli ──┘        (the rows of `table` say what is known)
//! ```
//!
//! The command line goes before the environment, that before the file, that before the defaults. Nothing is ignored: a key
//! that no row names is an error, and so is one that this version parses but does not serve.

mod build;
mod endpoint;
mod prefix;
mod source;
pub mod table;
mod tenants;
mod value;

pub use endpoint::Endpoint;
pub use prefix::{Prefix, Template};
pub use source::environment;
pub use value::{Kind, Secret};

use crate::tenant::password::Password;
use ipnet::IpNet;
use source::{Layers, NOT_SERVED, Origin};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// The file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = "config.toml";
/// How many databases there are when there are no tenants.
pub const DATABASES: u32 = 16;

/// What the command line says about settings, as it was typed.
#[derive(Clone, Debug, Default)]
pub struct CliOverrides {
    /// `--config`; it must exist then.
    pub config: Option<PathBuf>,
    /// `--listen`, as often as given; empty: not given.
    pub listen: Vec<String>,
    /// `--upstream`: `upstream.url`.
    pub upstream: Option<String>,
    /// `--prefix`: `key_prefix`.
    pub prefix: Option<String>,
    /// `--workers`.
    pub workers: Option<String>,
    /// `--tier`: `tier.enabled` and `tier.max_memory`.
    pub tier: Option<String>,
    /// `--admin`: `admin.listen`.
    pub admin: Option<String>,
    /// `--log-level`.
    pub log_level: Option<String>,
    /// `--log-format`.
    pub log_format: Option<String>,
}

/// All settings, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect; at least one, unless a tenant has one of its own.
    pub listen: Vec<Listen>,
    /// Whether another process of the same user may have the addresses at the same time.
    pub reuse_port: bool,
    /// Who is to say with a PROXY header whose connections it passes on.
    pub proxy_protocol: Proxies,
    /// Permissions of unix sockets that are listened on; `None`: as the umask makes them.
    pub unix_socket_mode: Option<u32>,
    /// Worker threads, 0 to 1024; 0: one per core.
    pub workers: usize,
    /// The namespace of everybody when there are no tenants.
    pub key_prefix: Prefix,
    /// Most client connections at once, 1 to 1,000,000.
    pub max_clients: usize,
    /// After how long a silent client is disconnected; `None`: never.
    pub client_idle_timeout: Option<Duration>,
    /// Bytes of unread replies at which a client is disconnected; 1 KiB or more.
    pub client_output_limit: usize,
    /// How long requests in flight may take to finish at a stop.
    pub shutdown_grace: Duration,
    /// The upstream of everybody who names none.
    pub upstream: Upstream,
    /// Further upstreams, by name.
    pub upstreams: Vec<(String, Upstream)>,
    /// Who checks a login.
    pub auth: Auth,
    /// Tenants, in the order of their names; none: everybody is one, see [`Config::implicit_tenant`].
    pub tenants: Vec<Tenant>,
    /// The in-process tier.
    pub tier: Tier,
    /// Certificates of our listeners.
    pub tls: Tls,
    /// The admin listener.
    pub admin: Admin,
    /// The log.
    pub log: Log,
    /// All of it for an operator to look at.
    pub shown: Shown,
}

/// Proxies before keyfence, which are believed when they say whose a connection is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// Of TCP, by address.
    pub networks: Vec<IpNet>,
    /// Whoever connects to a unix socket.
    pub unix: bool,
}

impl Proxies {
    /// Whether the one at this address is.
    pub fn include(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// The settings in force as text, tenants left out; a secret is `***`. Follows from the rest, and does not count in a comparison.
#[derive(Clone, Debug, Default)]
pub struct Shown(pub Vec<Line>);

impl PartialEq for Shown {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// One setting as it is shown.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its path.
    pub key: String,
    /// Its value, as a file might write it.
    pub value: String,
    /// Where that was written: `config.toml:12`, a variable, an option, or `defaults`.
    pub from: String,
}

/// An address to accept clients on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `host:port`; the host may be a name, port 0 is any free one.
    Tcp(String),
    /// `host:port` with TLS.
    Tls(String),
    /// A unix socket.
    Unix(PathBuf),
}

/// One upstream and how to use it.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The database, 0 to 65,535.
    pub db: u32,
    /// The user to log in as; empty: `default`.
    pub username: String,
    /// The password; empty: no login.
    pub password: Secret,
    /// Whether to speak TLS.
    pub use_tls: bool,
    /// The longest one request may take, queueing included; more than 0.
    pub socket_timeout: Duration,
    /// The longest one attempt to connect may take; more than 0.
    pub connect_timeout: Duration,
    /// Shared connections of each worker and tenant, 1 to 64.
    pub connections_per_worker: usize,
    /// Most connections of all kinds, 1 to 100,000.
    pub max_connections: usize,
    /// The upstream's own ACL as a second wall.
    pub acl_wall: AclWall,
    /// How TLS to it is checked.
    pub tls: UpstreamTls,
}

/// When the upstream's own ACL is used as a second wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclWall {
    /// Where the upstream lets us manage users.
    Auto,
    /// Or refuse to serve.
    Require,
    /// Never.
    Off,
}

/// Certificates towards an upstream; an empty path or name is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Authority that signs the upstream's certificate.
    pub ca_file: PathBuf,
    /// Our certificate.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// The name to expect; empty: the host's.
    pub server_name: String,
    /// Accept any certificate.
    pub insecure_skip_verify: bool,
}

/// Who checks a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The tenants below, or the upstream's ACL.
    pub mode: AuthMode,
    /// With [`AuthMode::Upstream`]: the prefix that a login name makes.
    pub upstream_prefix: Template,
    /// Who a connection is before it logs in; empty: nobody.
    pub default_tenant: String,
}

/// Who checks a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// The settings.
    Static,
    /// The upstream's own ACL.
    Upstream,
}

/// One tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Its name, which is also the user that it logs in as: 1 to 128 bytes without spaces and control characters, case-sensitive.
    pub name: String,
    /// What its names begin with upstream; none only where it has its upstream alone.
    pub prefix: Prefix,
    /// Any of them logs in.
    pub passwords: Vec<Password>,
    /// The upstream it lives on: `default`, or the name of one of [`Config::upstreams`].
    pub upstream: String,
    /// Its first database.
    pub db: u32,
    /// How many databases SELECT may reach, from `db` upward; 1 or more, and the last is 65,535 at most.
    pub databases: u32,
    /// Addresses where a connection is this tenant without a login.
    pub listen: Vec<Listen>,
    /// Names in a client certificate, or SNI names, that are this tenant.
    pub tls_identities: Vec<String>,
    /// The only commands it may run; empty: all that are served.
    pub allow: Vec<String>,
    /// Commands it may not run.
    pub deny: Vec<String>,
    /// Whether it may run scripts.
    pub scripts: Scripts,
    /// Its limits.
    pub limits: Limits,
    /// Whether the in-process tier may keep its values.
    pub tier: bool,
}

/// Whether a tenant may run scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scripts {
    /// Behind a wall.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Limits of one tenant; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Commands per second.
    pub ops_per_second: u64,
    /// Commands at once above that rate.
    pub burst: u64,
    /// Bytes per second.
    pub bytes_per_second: u64,
    /// Connections.
    pub connections: u64,
    /// Keys.
    pub keys: u64,
    /// Bytes upstream.
    pub memory: u64,
    /// Bytes of the longest value.
    pub value_size: u64,
    /// Requests in flight.
    pub in_flight: u64,
}

/// The in-process tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Whether there is one.
    pub enabled: bool,
    /// Bytes of keys, values and bookkeeping.
    pub max_memory: usize,
    /// Bytes of the longest value it keeps.
    pub max_value: usize,
    /// The most any entry may age, whatever its own TTL.
    pub max_ttl: Duration,
    /// Whether it keeps "no such key" too.
    pub negative: bool,
}

/// Certificates of our listeners; an empty path is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Our certificate.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// Authority that signs client certificates.
    pub client_ca_file: PathBuf,
    /// Whether a client shows a certificate.
    pub client_auth: ClientAuth,
}

/// Whether a client shows a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// It is not asked.
    Off,
    /// It may.
    Optional,
    /// It must.
    Required,
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// `host:port`; `None`: off.
    pub listen: Option<String>,
    /// Requests slower than this are kept.
    pub slowlog_threshold: Duration,
    /// How many are kept.
    pub slowlog_length: usize,
}

/// The log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least grave messages that are written.
    pub level: LevelFilter,
    /// One line of text or one JSON object a message.
    pub format: LogFormat,
    /// One of so many commands is written, too; 0: none.
    pub access_sample: u32,
}

/// How a log message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text.
    Text,
    /// A JSON object.
    Json,
}

/// What is wrong with the settings, and where: one line, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl ConfigError {
    fn at(origin: &Origin, key: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        let key = value::quoted(key);
        let key = key.trim_matches('\'');
        Self(match origin {
            Origin::Default => format!("{key}: {message}"),
            Origin::File { .. } if key.is_empty() => format!("{origin}: {message}"),
            Origin::File { .. } => format!("{origin}: {key}: {message}"),
            // A variable or an option names its key already; what this version lacks is named as the key it is.
            Origin::Variable(_) | Origin::Flag(_) if message == NOT_SERVED => format!("{origin}: {key}: {message}"),
            Origin::Variable(_) | Origin::Flag(_) => format!("{origin}: {message}"),
        })
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the file (`cli.config`, else [`DEFAULT_FILE`] if it is there) and lays `env` and `cli` over it.
    pub fn load(cli: &CliOverrides, env: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let name = cli.config.clone().unwrap_or_else(|| DEFAULT_FILE.into());
        match std::fs::read_to_string(&name) {
            Ok(text) => Self::read(Some((&name, &text)), env, cli),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && cli.config.is_none() => Self::read(None, env, cli),
            Err(e) => Err(ConfigError(format!("{}: {e}", name.display()))),
        }
    }

    /// As [`Config::load`], with the file already read; its name is for errors only.
    pub fn read(
        file: Option<(&Path, &str)>,
        env: impl Iterator<Item = (String, String)>,
        cli: &CliOverrides,
    ) -> Result<Self, ConfigError> {
        let layers = Layers::collect(file, env, cli)?;
        let config = Self::build(&layers)?;
        layers.unserved()?;
        Ok(Self { shown: Shown(layers.shown()), ..config })
    }
}

impl Default for Config {
    /// The settings of an empty file.
    fn default() -> Self {
        Self::read(None, std::iter::empty(), &CliOverrides::default())
            .unwrap_or_else(|e| unreachable!("the defaults are settings that can be served: {e}"))
    }
}

#[cfg(test)]
mod tests;
