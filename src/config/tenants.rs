//! Tenants: from values to [`Tenant`], and what must hold between them so that none reaches another.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::build::listeners;
use super::source::{Layers, nearest};
use super::{
    AuthMode, Config, ConfigError, DATABASES, Endpoint, Limits, Listen, Prefix, Scripts, Template, Tenant, table, value,
};
use crate::command::{self, Categories, Class, ROWS, Row};
use crate::tenant::password::Password;

/// One past the last database there may be.
const END: u32 = 65_536;
/// How many names a warning lists.
const LISTED: usize = 10;

/// The path of a tenant's key.
pub(super) fn key(tenant: &str, name: &str) -> String {
    format!("{}.{name}", table::join(&["tenants", tenant]))
}

/// Every tenant, each by itself in order.
pub(super) fn read(s: &Layers, mode: AuthMode, template: &Template) -> Result<Vec<Tenant>, ConfigError> {
    s.names("tenants").map(|name| tenant(s, name, mode, template)).collect()
}

fn tenant(s: &Layers, name: &str, mode: AuthMode, template: &Template) -> Result<Tenant, ConfigError> {
    let key = |part: &str| key(name, part);
    let limit = |part: &str| s.number(&key(&format!("limits.{part}")));
    let (db, databases) = (s.number(&key("db"))?, s.number(&key("databases"))?);
    if db + databases > END {
        return Err(s.error(
            &key("databases"),
            format!("{databases} from {db} upward go past the last database there may be, {}", END - 1),
        ));
    }
    Ok(Tenant {
        name: name.into(),
        prefix: prefix(s, name, mode, template)?,
        passwords: passwords(s, &key("passwords"))?,
        upstream: s.text(&key("upstream")),
        db,
        databases,
        listen: listeners(s, &key("listen"))?,
        tls_identities: s.texts(&key("tls_identities")),
        allow: commands(s, &key("commands.allow"), true)?,
        deny: commands(s, &key("commands.deny"), false)?,
        scripts: match s.text(&key("scripts")).as_str() {
            "on" => Scripts::On,
            "off" => Scripts::Off,
            _ => Scripts::Auto,
        },
        limits: Limits {
            ops_per_second: limit("ops_per_second")?,
            burst: limit("burst")?,
            bytes_per_second: limit("bytes_per_second")?,
            connections: limit("connections")?,
            keys: limit("keys")?,
            memory: limit("memory")?,
            value_size: limit("value_size")?,
            in_flight: limit("in_flight")?,
        },
        tier: s.bool(&key("tier")),
    })
}

fn prefix(s: &Layers, name: &str, mode: AuthMode, template: &Template) -> Result<Prefix, ConfigError> {
    let key = key(name, "prefix");
    let set = s.is_set(&key).then(|| s.text(&key));
    if mode == AuthMode::Upstream {
        let own = template.of(name.as_bytes()).map_err(|e| s.error(&key, e))?;
        // Any other could be what the name of somebody who logs in makes.
        return match set {
            Some(text) if text.as_bytes() != own.as_bytes() => Err(s.error(
                &key,
                format!(
                    "with auth.mode = \"upstream\" the login name makes the prefix, here '{own}': take this key out"
                ),
            )),
            _ => Ok(own),
        };
    }
    match set {
        Some(text) if text.is_empty() => Ok(Prefix::none()),
        Some(text) => Prefix::new(&text).map_err(|e| s.error(&key, e)),
        None => Prefix::new(&format!("{name}:")).map_err(|e| {
            s.error(&key, format!("it is the tenant's name and ':' unless it is set, which does not do: {e}; set it"))
        }),
    }
}

fn passwords(s: &Layers, key: &str) -> Result<Vec<Password>, ConfigError> {
    let mut all: Vec<Password> = Vec::new();
    for (i, text) in s.texts(key).iter().enumerate() {
        let nth = i + 1;
        let password = Password::parse(text).map_err(|e| s.error(key, format!("number {nth}: {e}")))?;
        if let Some(first) = all.iter().position(|p| p.id() == password.id()) {
            let message = format!("number {nth} is the same password as number {}: take one of them out", first + 1);
            return Err(s.error(key, message));
        }
        all.push(password);
    }
    Ok(all)
}

fn commands(s: &Layers, key: &str, allow: bool) -> Result<Vec<String>, ConfigError> {
    let words = s.texts(key);
    for word in &words {
        let shown = value::quoted(word);
        match Named::parse(word) {
            Some(Named::Command(row)) if allow && row.class == Class::Denied => {
                let message = format!("{shown} reaches past a tenant's namespace and is served to none: take it out");
                return Err(s.error(key, message));
            }
            Some(_) => {}
            None => {
                let known = if word.starts_with('@') {
                    nearest(word, Categories::ALL.iter().map(|(_, name)| format!("@{name}")))
                } else {
                    nearest(&word.to_lowercase(), ROWS.iter().map(Row::lower_name))
                };
                let what = if word.starts_with('@') { "category" } else { "command" };
                let hint = known.map_or_else(
                    || "; write get, config|get or @category, as keyfence commands lists them".into(),
                    |near| format!("; did you mean '{near}'?"),
                );
                return Err(s.error(key, format!("{shown} is no {what}{hint}")));
            }
        }
    }
    Ok(words)
}

/// What an entry of `allow` or `deny` names.
#[derive(Clone, Copy, Debug)]
enum Named {
    /// A command, a subcommand, or a container with all its subcommands.
    Command(&'static Row),
    Category,
}

impl Named {
    fn parse(word: &str) -> Option<Self> {
        match word.strip_prefix('@') {
            Some(category) => Categories::named(category.as_bytes()).map(|_| Self::Category),
            None => command::find(word).map(Self::Command),
        }
    }
}

impl Tenant {
    /// The upstream's databases that are its own.
    pub fn dbs(&self) -> std::ops::Range<u32> {
        self.db..self.db + self.databases
    }
}

/// What must hold between tenants.
pub(super) fn check(config: &Config, s: &Layers) -> Result<(), ConfigError> {
    check_upstreams(config, s)?;
    check_prefixes(config, s)?;
    check_listeners(config, s)?;
    let default = &config.auth.default_tenant;
    if !default.is_empty() && !config.tenants.iter().any(|t| t.name == *default) {
        let message = format!("{} is not a tenant: add [tenants.…] for it, or name one", value::quoted(default));
        return Err(s.error("auth.default_tenant", message));
    }
    Ok(())
}

fn check_upstreams(config: &Config, s: &Layers) -> Result<(), ConfigError> {
    let mut folders = HashMap::new();
    for (name, upstream) in std::iter::once(("upstream".to_string(), &config.upstream))
        .chain(config.upstreams.iter().map(|(name, u)| (table::join(&["upstreams", name]), u)))
    {
        if let Endpoint::Managed { dir, .. } = &upstream.endpoint
            && let Some(other) = folders.insert(dir, name.clone())
        {
            let message = format!("{} is the folder of {other} too: give each its own", dir.display());
            return Err(s.error(&format!("{name}.managed.dir"), message));
        }
    }
    for tenant in &config.tenants {
        if config.upstream(&tenant.upstream).is_none() {
            let mut known = vec!["default"];
            known.extend(config.upstreams.iter().map(|(name, _)| name.as_str()));
            let message = format!(
                "{} is not an upstream; there are: {}",
                value::quoted(&tenant.upstream),
                known.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ")
            );
            return Err(s.error(&key(&tenant.name, "upstream"), message));
        }
    }
    Ok(())
}

/// No prefix may begin with another one of the same server, equal ones included, in whatever databases: channels have none, and a
/// database is easily joined with another (isolation.md N1, N6).
fn check_prefixes(config: &Config, s: &Layers) -> Result<(), ConfigError> {
    let mut places: HashMap<String, Vec<&Tenant>> = HashMap::new();
    for tenant in &config.tenants {
        let place = config.upstream(&tenant.upstream).map(|u| place(&u.endpoint)).unwrap_or_default();
        places.entry(place).or_default().push(tenant);
    }
    let mut places: Vec<_> = places.into_values().collect();
    places.sort_by_key(|tenants| tenants.first().map(|t| &t.name));
    for mut tenants in places {
        // If any begins with another, so does one with the one right before it in order. The order of names stays among equals.
        tenants.sort_by_key(|t| t.prefix.as_bytes());
        for pair in tenants.windows(2) {
            let [a, b] = pair else { continue };
            let (ours, theirs) = (&b.prefix, &a.prefix);
            if !ours.as_bytes().starts_with(theirs.as_bytes()) {
                continue;
            }
            let (us, them) = (value::quoted(&b.name), value::quoted(&a.name));
            return Err(if theirs.is_none() {
                let message = format!(
                    "a tenant without a prefix must be alone on its upstream, and {us} is there too: give {them} a prefix, or an \
                     upstream of its own"
                );
                s.error(&key(&a.name, "prefix"), message)
            } else if ours == theirs {
                let message = format!("'{ours}' is the prefix of tenant {them} too: choose another");
                s.error(&key(&b.name, "prefix"), message)
            } else {
                let message = format!(
                    "'{ours}' begins with '{theirs}', the prefix of tenant {them}, whose keys these would be too: choose one that \
                     does not"
                );
                s.error(&key(&b.name, "prefix"), message)
            });
        }
    }
    Ok(())
}

/// Equal for two upstreams that are written as the same server.
fn place(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp { host, port } => {
            let host = host.to_ascii_lowercase();
            let host = if matches!(&*host, "localhost" | "::1") { "127.0.0.1" } else { &host };
            format!("{}:{port}", host.trim_end_matches('.'))
        }
        Endpoint::Unix(path) => format!("unix:{}", path.display()),
        Endpoint::Managed { dir, .. } => format!("managed:{}", dir.display()),
    }
}

fn check_listeners(config: &Config, s: &Layers) -> Result<(), ConfigError> {
    let mut taken: HashMap<String, Option<&str>> =
        config.listen.iter().flat_map(addresses).map(|address| (address, None)).collect();
    for tenant in &config.tenants {
        // Names of its own may repeat each other; those of others may not.
        let own: HashSet<String> = tenant.listen.iter().flat_map(addresses).collect();
        for listen in &tenant.listen {
            for address in addresses(listen) {
                if let Some(other) = taken.get(&address) {
                    let who = other.map_or_else(
                        || "everybody's (listen)".into(),
                        |other| format!("that of tenant {}", value::quoted(other)),
                    );
                    let message =
                        format!("{address} is {who} too: a connection there must be one tenant's, so choose another");
                    return Err(s.error(&key(&tenant.name, "listen"), message));
                }
            }
        }
        taken.extend(own.into_iter().map(|address| (address, Some(tenant.name.as_str()))));
    }
    Ok(())
}

/// The addresses that a listener takes, in one spelling each; none for port 0, which is another one every time.
fn addresses(listen: &Listen) -> Vec<String> {
    match listen {
        Listen::Unix(path) => vec![format!("unix:{}", path.display())],
        Listen::Tcp(text) | Listen::Tls(text) => {
            let text = text.to_ascii_lowercase();
            match (text.parse::<SocketAddr>(), text.rsplit_once(':')) {
                (Ok(address), _) if address.port() == 0 => Vec::new(),
                (Ok(address), _) => vec![address.to_string()],
                (_, Some((_, port))) if port.parse() == Ok(0u16) => Vec::new(),
                (_, Some(("localhost", port))) => vec![format!("127.0.0.1:{port}"), format!("[::1]:{port}")],
                _ => vec![text],
            }
        }
    }
}

impl Config {
    /// The upstream of this name; `default` is `[upstream]`.
    pub fn upstream(&self, name: &str) -> Option<&super::Upstream> {
        if name == "default" {
            return Some(&self.upstream);
        }
        self.upstreams.iter().find(|(known, _)| known == name).map(|(_, upstream)| upstream)
    }

    /// Who everybody is without `[tenants]` and with `auth.mode = "static"`.
    pub fn implicit_tenant(&self) -> Tenant {
        self.plain_tenant("default", self.key_prefix.clone(), self.upstream.db, DATABASES)
    }

    /// A tenant with nothing set but these.
    fn plain_tenant(&self, name: &str, prefix: Prefix, db: u32, databases: u32) -> Tenant {
        Tenant {
            name: name.into(),
            prefix,
            passwords: Vec::new(),
            upstream: "default".into(),
            db,
            databases,
            listen: Vec::new(),
            tls_identities: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            scripts: Scripts::Auto,
            limits: Limits {
                ops_per_second: 0,
                burst: 0,
                bytes_per_second: 0,
                connections: 0,
                keys: 0,
                memory: 0,
                value_size: 512 << 20,
                in_flight: 10_000,
            },
            tier: false,
        }
    }

    /// The tenant of this name, `tier` saying whether its values are kept with everything considered: one of the settings, the implicit one, or with `auth.mode = "upstream"` whoever logs in under it.
    ///
    /// # Errors
    /// A sentence that says why there is none.
    pub fn tenant(&self, name: &str) -> Result<Tenant, String> {
        if let Some(tenant) = self.tenants.iter().find(|t| t.name == name) {
            return Ok(Tenant { tier: tenant.tier && self.tier.enabled, ..tenant.clone() });
        }
        let shown = value::quoted(name);
        if self.auth.mode == AuthMode::Upstream {
            let prefix =
                self.auth.upstream_prefix.of(name.as_bytes()).map_err(|e| format!("no tenant {shown}: {e}"))?;
            return Ok(self.plain_tenant(name, prefix, self.upstream.db, 1));
        }
        if !self.tenants.is_empty() {
            return Err(format!("no tenant {shown} in the settings; there are: {}", listed(self.tenants.iter())));
        }
        if name == "default" {
            return Ok(Tenant { tier: self.tier.enabled, ..self.implicit_tenant() });
        }
        Err(format!("no tenant {shown}: the settings have no [tenants], and everybody is 'default'"))
    }

    /// Who a client is that does not say: the default tenant, or without `[tenants]` the implicit one.
    pub fn unnamed_tenant(&self) -> Option<&str> {
        match self.auth.default_tenant.as_str() {
            "" if self.tenants.is_empty() && self.auth.mode == AuthMode::Static => Some("default"),
            "" => None,
            name => Some(name),
        }
    }

    /// The tenants with a password in plain text.
    pub fn plain_passwords(&self) -> Vec<&str> {
        self.tenants.iter().filter(|t| t.passwords.iter().any(Password::is_plain)).map(|t| t.name.as_str()).collect()
    }

    /// What is allowed and hardly meant, one sentence each, for the log.
    pub fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut warn = |tenants: &[&Tenant], what: &str| {
            if !tenants.is_empty() {
                all.push(format!("{what}: {}", listed(tenants.iter().copied())));
            }
        };
        let those = |test: &dyn Fn(&Tenant) -> bool| self.tenants.iter().filter(|t| test(t)).collect::<Vec<_>>();
        let upstream = self.auth.mode == AuthMode::Upstream;
        let open = |t: &Tenant| !t.listen.is_empty() || t.name == self.auth.default_tenant;
        warn(
            &those(&|t| t.passwords.iter().any(Password::is_plain)),
            "tenants with plain passwords in the settings (keyfence hash-password makes hashes)",
        );
        warn(
            &those(&|t| !upstream && t.passwords.is_empty() && !open(t)),
            "tenants that nobody can be: they have no password and no address, and are not auth.default_tenant",
        );
        warn(
            &those(&|t| upstream && !t.passwords.is_empty()),
            "tenants whose passwords are not used, since with auth.mode = \"upstream\" the upstream checks logins",
        );
        warn(
            &those(&|t| t.limits.burst > 0 && t.limits.ops_per_second == 0),
            "tenants whose limits.burst has no effect without limits.ops_per_second",
        );
        if self.proxy_protocol.networks.iter().any(|network| network.prefix_len() == 0) {
            all.push("proxy_protocol has a network of all addresses: whoever connects may say who they are".into());
        }
        all
    }
}

fn listed<'a>(tenants: impl Iterator<Item = &'a Tenant>) -> String {
    let names: Vec<String> = tenants.map(|t| value::quoted(&t.name)).collect();
    let shown = names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > LISTED { format!("{shown} and {} more", names.len() - LISTED) } else { shown }
}
