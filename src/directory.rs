//! Who may log in, and as whom: the tenants of the settings in force, and those that came to be by logging in to the upstream.
//!
//! A snapshot: a reload builds another and swaps it in. A tenant that has not changed in what its sessions rely on (prefix, upstream,
//! databases, commands) is the same tenant in both, its limits changed in place, so its connections never notice.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use crate::{
    config::{self, AuthMode, Config, DATABASES, Listen, Template},
    login::Login,
    tenant::{Limits, Pause, Permitted, Tenant, password::Credentials},
    upstream::Site,
};

/// See the module.
#[derive(Debug)]
pub struct Directory {
    /// The tenants of the settings, by name.
    pub tenants: HashMap<String, Arc<Tenant>>,
    /// Who a connection is before it says so; none: it must log in.
    pub anonymous: Option<Arc<Tenant>>,
    /// There is nobody to log in as: everybody is `anonymous`.
    pub open: bool,
    /// The passwords of the tenants.
    pub credentials: Arc<Credentials>,
    /// Who checks logins.
    pub mode: AuthMode,
    /// What a connection is before login: it may do nothing, and no key could carry its prefix.
    pub nobody: Arc<Tenant>,
    /// Which tenant a connection is by the address it came in on, as the settings write it.
    pub listeners: HashMap<String, Arc<Tenant>>,
    /// Where tenants live that come to be by logging in to the upstream, and their prefix, `{user}` standing for the name.
    pub newcomers: (Arc<Site>, Template, u32),
    ids: Arc<AtomicU32>,
}

/// The upstream's name in the settings that have only one.
pub const DEFAULT: &str = "default";

impl Directory {
    /// The directory of `config`, whose upstreams are `sites`; what has not changed since `previous` stays the same.
    ///
    /// # Errors
    /// A tenant names an upstream that is none (the settings have refused that before).
    pub fn build(config: &Config, sites: &HashMap<String, Arc<Site>>, previous: Option<&Self>) -> Result<Self, String> {
        let ids = previous.map_or_else(|| Arc::new(AtomicU32::new(1)), |p| Arc::clone(&p.ids));
        let site = |name: &str| sites.get(name).cloned().ok_or_else(|| format!("no upstream '{name}'"));
        let default = site(DEFAULT)?;
        let mut tenants = HashMap::new();
        let mut listeners = HashMap::new();
        for t in &config.tenants {
            let wanted = Wanted {
                name: &t.name,
                prefix: t.prefix.as_bytes(),
                site: site(&t.upstream)?,
                db_base: t.db,
                databases: t.databases,
                permitted: Permitted::from_lists(&t.allow, &t.deny),
            };
            let tenant = wanted.same_or_new(previous.and_then(|p| p.tenants.get(&t.name)), &ids);
            limit(&tenant.limits, &t.limits);
            for listen in &t.listen {
                listeners.insert(address(listen), Arc::clone(&tenant));
            }
            tenants.insert(t.name.clone(), tenant);
        }
        let open = config.tenants.is_empty() && config.auth.mode == AuthMode::Static;
        let anonymous = if open {
            let wanted = Wanted {
                name: DEFAULT,
                prefix: config.key_prefix.as_bytes(),
                site: Arc::clone(&default),
                db_base: config.upstream.db,
                databases: DATABASES,
                permitted: Permitted::all(),
            };
            Some(wanted.same_or_new(previous.and_then(|p| p.anonymous.as_ref()), &ids))
        } else {
            tenants.get(&config.auth.default_tenant).cloned()
        };
        let nobody = previous.map(|p| &p.nobody).cloned().unwrap_or_else(|| {
            let wanted = Wanted {
                name: "",
                prefix: b"\0nobody\0",
                site: Arc::clone(&default),
                db_base: 0,
                databases: 1,
                permitted: Permitted::nothing(),
            };
            wanted.same_or_new(None, &ids)
        });
        let newcomers = (default, config.auth.upstream_prefix.clone(), config.upstream.db);
        let credentials = Credentials::new(config.tenants.iter().map(|t| (t.name.as_bytes(), &t.passwords[..])));
        let credentials = Arc::new(credentials);
        Ok(Self { tenants, anonymous, open, credentials, mode: config.auth.mode, nobody, listeners, newcomers, ids })
    }

    /// The tenant that the upstream's user `name` is; none when the name is too long for a prefix.
    pub fn newcomer(&self, name: &str) -> Option<Arc<Tenant>> {
        let (site, template, db_base) = &self.newcomers;
        let prefix = template.of(name.as_bytes()).ok()?;
        let wanted = Wanted {
            name,
            prefix: prefix.as_bytes(),
            site: Arc::clone(site),
            db_base: *db_base,
            databases: 1,
            permitted: Permitted::all(),
        };
        Some(wanted.same_or_new(None, &self.ids))
    }

    /// Who a connection that came in on `listener`, as the settings write it, is before it says so; none: it must log in.
    pub fn first(&self, listener: &str) -> Option<&Arc<Tenant>> {
        self.listeners.get(listener).or(self.anonymous.as_ref())
    }

    /// Whether a session of `tenant` that logged in so, or did not have to, may go on under this directory.
    pub fn stands(&self, tenant: &Tenant, login: Option<&Login>) -> bool {
        let standing = || self.tenants.get(&tenant.name).or(self.anonymous.as_ref()).is_some_and(|t| t.id == tenant.id);
        match login {
            Some(login) => self.still_holds(login) && (self.mode == AuthMode::Upstream || standing()),
            None => standing(),
        }
    }

    /// Whether a session that logged in so may go on under this directory.
    pub fn still_holds(&self, login: &Login) -> bool {
        match login.password {
            Some(id) => self.mode == AuthMode::Static && self.credentials.holds(&login.user, id),
            None => self.mode == AuthMode::Upstream,
        }
    }
}

/// An address as listeners are found by.
pub fn address(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(a) => a.clone(),
        Listen::Tls(a) => format!("tls:{a}"),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// A tenant as the settings want it.
struct Wanted<'a> {
    name: &'a str,
    prefix: &'a [u8],
    site: Arc<Site>,
    db_base: u32,
    databases: u32,
    permitted: Permitted,
}

impl Wanted<'_> {
    fn same_or_new(self, before: Option<&Arc<Tenant>>, ids: &AtomicU32) -> Arc<Tenant> {
        match before {
            Some(t)
                if *t.prefix == *self.prefix
                    && Arc::ptr_eq(&t.site, &self.site)
                    && (t.db_base, t.databases) == (self.db_base, self.databases)
                    && t.permitted == self.permitted =>
            {
                Arc::clone(t)
            }
            _ => Arc::new(Tenant {
                id: ids.fetch_add(1, Ordering::Relaxed),
                name: self.name.to_owned(),
                prefix: Arc::from(self.prefix),
                site: self.site,
                db_base: self.db_base,
                databases: self.databases,
                permitted: self.permitted,
                pause: Pause::default(),
                limits: Limits::default(),
                connections: AtomicU32::new(0),
                large: AtomicU64::new(0),
            }),
        }
    }
}

fn limit(limits: &Limits, wanted: &config::Limits) {
    let few = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    limits.ops.set(wanted.ops_per_second, wanted.burst);
    limits.bytes.set(wanted.bytes_per_second, 0);
    limits.connections.store(few(wanted.connections), Ordering::Relaxed);
    limits.value_size.store(wanted.value_size, Ordering::Relaxed);
    // 0 is no limit; a session still holds a reply's place in memory for each.
    limits.in_flight.store(if wanted.in_flight == 0 { u32::MAX } else { few(wanted.in_flight) }, Ordering::Relaxed);
}
