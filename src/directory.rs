//! Who may log in, and as whom: the tenants of the settings in force, and those that came to be by logging in to the upstream.
//!
//! A snapshot: a reload builds another and swaps it in. A tenant that has not changed in what its sessions rely on (prefix, upstream,
//! databases, commands) is the same tenant in both, its limits changed in place, so its connections never notice.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use dashmap::DashMap;
use tokio::sync::Mutex;

use crate::{
    command::find,
    config::{self, AuthMode, Config, DATABASES, Listen, Template},
    login::Login,
    tenant::{
        Limits, Pause, Permitted, Scripts, Tenant, password::Credentials, subscriptions::Subscriptions,
        watchers::Watchers,
    },
    tier::Lease,
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
    /// Which tenant a connection is by a name of its TLS connection's.
    identities: HashMap<String, Arc<Tenant>>,
    /// Tenants that come to be by logging in to the upstream.
    pub newcomers: Newcomers,
    /// The numbers of the tenants of the settings, and of nobody.
    standing: HashSet<u32>,
    /// Rates and sizes of the tenants, not in force before [`Directory::enforce_limits`].
    limits: Vec<(Arc<Tenant>, config::Limits)>,
    /// Whose values are kept, not in force before [`Directory::want_tier`].
    tiers: Vec<(Arc<Tenant>, bool)>,
    ids: Arc<AtomicU32>,
}

/// Tenants that come to be by logging in to the upstream; see the module.
#[derive(Debug)]
pub struct Newcomers {
    /// Where they log in, and live.
    pub site: Arc<Site>,
    /// Their prefix, `{user}` standing for the name.
    template: Template,
    /// Their database.
    db: u32,
    /// Those that have logged in, by name. Shared by directories that make the same tenants of them, and by no others: a login that was
    /// checked under one that is no longer in force leaves nothing behind in the next.
    known: Arc<DashMap<String, Arc<Tenant>>>,
}

impl Newcomers {
    fn new(site: Arc<Site>, config: &Config, before: Option<&Self>) -> Self {
        let (template, db) = (config.auth.upstream_prefix.clone(), config.upstream.db);
        let same = before.filter(|b| Arc::ptr_eq(&b.site, &site) && (&b.template, b.db) == (&template, db));
        let known = same.map(|b| Arc::clone(&b.known)).unwrap_or_default();
        Self { site, template, db, known }
    }
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
        let (mut listeners, mut identities) = (HashMap::new(), HashMap::new());
        let mut limits = Vec::new();
        let mut tiers = Vec::new();
        for t in &config.tenants {
            let wanted = Wanted {
                name: &t.name,
                prefix: t.prefix.as_bytes(),
                site: site(&t.upstream)?,
                db_base: t.db,
                databases: t.databases,
                permitted: Permitted::from_lists(&t.allow, &t.deny),
                scripts: scripts(t.scripts),
            };
            let tenant = wanted.same_or_new(previous.and_then(|p| p.tenants.get(&t.name)), &ids);
            limits.push((Arc::clone(&tenant), t.limits));
            tiers.push((Arc::clone(&tenant), config.tier.enabled && t.tier));
            for listen in &t.listen {
                listeners.insert(address(listen), Arc::clone(&tenant));
            }
            identities.extend(t.tls_identities.iter().map(|name| (name.clone(), Arc::clone(&tenant))));
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
                scripts: Scripts::Auto,
            };
            let tenant = wanted.same_or_new(previous.and_then(|p| p.anonymous.as_ref()), &ids);
            // With nobody else there, the tier is for everybody.
            tiers.push((Arc::clone(&tenant), config.tier.enabled));
            Some(tenant)
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
                scripts: Scripts::Off,
            };
            wanted.same_or_new(None, &ids)
        });
        let newcomers = Newcomers::new(default, config, previous.map(|p| &p.newcomers));
        let credentials = Credentials::new(config.tenants.iter().map(|t| (t.name.as_bytes(), &t.passwords[..])));
        let credentials = Arc::new(credentials);
        let standing = tenants.values().chain(&anonymous).chain([&nobody]).map(|t| t.id).collect();
        let mode = config.auth.mode;
        Ok(Self {
            tenants,
            anonymous,
            open,
            credentials,
            mode,
            nobody,
            listeners,
            identities,
            newcomers,
            standing,
            limits,
            tiers,
            ids,
        })
    }

    /// Puts the limits of the settings into force. Tenants that have not changed are shared with the directory before this one: until this is
    /// called they keep what they had.
    pub fn enforce_limits(&self) {
        self.limits.iter().for_each(|(tenant, wanted)| limit(&tenant.limits, wanted));
    }

    /// Puts what the settings say of the tier into force, from a moment on that `from` says of an upstream. A tenant that may not ask how long
    /// a key lives has none.
    pub fn want_tier(&self, from: impl Fn(&Site) -> u64) {
        let may = |t: &Tenant| find("PTTL").is_some_and(|row| t.permitted.has(row));
        self.tiers.iter().for_each(|(tenant, wanted)| tenant.tier.want(*wanted && may(tenant), from(&tenant.site)));
    }

    /// The tenant that the upstream's user `name` is, who has just logged in there with `password`: its connections will, too. None when the name
    /// is too long for a prefix.
    pub fn newcomer(&self, name: &str, password: &str) -> Option<Arc<Tenant>> {
        let Newcomers { site, template, db, known } = &self.newcomers;
        // The settings may have something to say about this user.
        let tenant = match self.tenants.get(name).cloned().or_else(|| known.get(name).map(|t| Arc::clone(&t))) {
            Some(tenant) => tenant,
            None => {
                let prefix = template.of(name.as_bytes()).ok()?;
                let wanted = Wanted {
                    name,
                    prefix: prefix.as_bytes(),
                    site: Arc::clone(site),
                    db_base: *db,
                    databases: 1,
                    permitted: Permitted::all(),
                    scripts: Scripts::Auto,
                };
                Arc::clone(&known.entry(name.to_owned()).or_insert_with(|| wanted.same_or_new(None, &self.ids)))
            }
        };
        // Where a tenant of the settings lives on another upstream, that one's wall knows its users.
        if Arc::ptr_eq(&tenant.site, site) {
            site.knows_login(tenant.id, name, password);
        }
        Some(tenant)
    }

    /// Every tenant that anybody can be, but for nobody.
    pub fn all(&self) -> Vec<Arc<Tenant>> {
        let anonymous = self.anonymous.iter().filter(|_| self.open);
        let mut all: Vec<_> = self.tenants.values().chain(anonymous).cloned().collect();
        // One of the settings goes before what its name made of it before it was in them.
        let newcomers = self.newcomers.known.iter().filter(|t| !self.tenants.contains_key(t.key()));
        all.extend(newcomers.map(|t| Arc::clone(&t)));
        all
    }

    /// Whether there is a tenant with this number.
    pub fn has(&self, tenant: u32) -> bool {
        self.standing.contains(&tenant) || self.newcomers.known.iter().any(|t| t.id == tenant)
    }

    /// Who a connection that came in on `listener`, as the settings write it, with these names of its TLS connection's, is before it says so,
    /// and by what; none: it must log in.
    pub fn first(&self, listener: &str, identities: &[String]) -> Option<(&Arc<Tenant>, Option<Login>)> {
        let of_listener = self.listeners.get(listener).map(|tenant| (tenant, None));
        let identified = || {
            let of = |name: &String| Some((self.identities.get(name)?, Some(Login::Identity(name.clone()))));
            identities.iter().find_map(of)
        };
        of_listener.or_else(identified).or_else(|| self.anonymous.as_ref().map(|tenant| (tenant, None)))
    }

    /// Whether a session of the tenant with this number that logged in so, or did not have to, may go on under this directory.
    pub fn stands(&self, tenant: u32, login: Option<&Login>) -> bool {
        let (user, password) = match login {
            None => return self.standing.contains(&tenant),
            Some(Login::Identity(name)) => return self.identities.get(name).is_some_and(|t| t.id == tenant),
            Some(Login::User(user, password)) => (user, password),
        };
        match (self.mode, password) {
            (AuthMode::Static, Some(id)) => self.credentials.holds(user, *id) && self.standing.contains(&tenant),
            (AuthMode::Upstream, None) => std::str::from_utf8(user).is_ok_and(|name| match self.tenants.get(name) {
                Some(now) => now.id == tenant,
                None => self.newcomers.known.get(name).is_some_and(|t| t.id == tenant),
            }),
            _ => false,
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
    scripts: Scripts,
}

impl Wanted<'_> {
    fn same_or_new(self, before: Option<&Arc<Tenant>>, ids: &AtomicU32) -> Arc<Tenant> {
        match before {
            Some(t)
                if *t.prefix == *self.prefix
                    && Arc::ptr_eq(&t.site, &self.site)
                    && (t.db_base, t.databases) == (self.db_base, self.databases)
                    && t.permitted == self.permitted
                    && t.scripts == self.scripts =>
            {
                Arc::clone(t)
            }
            _ => Arc::new(Tenant {
                tier: Arc::new(Lease::new(&self.site.wake_tracking)),
                id: ids.fetch_add(1, Ordering::Relaxed),
                name: self.name.to_owned(),
                prefix: Arc::from(self.prefix),
                site: self.site,
                db_base: self.db_base,
                databases: self.databases,
                permitted: self.permitted,
                scripts: self.scripts,
                pause: Pause::default(),
                limits: Limits::default(),
                connections: AtomicU32::new(0),
                backlog: Arc::default(),
                large: AtomicU64::new(0),
                step: Mutex::default(),
                subscriptions: Subscriptions::default(),
                watchers: Watchers::default(),
            }),
        }
    }
}

fn scripts(wanted: config::Scripts) -> Scripts {
    match wanted {
        config::Scripts::Auto => Scripts::Auto,
        config::Scripts::On => Scripts::On,
        config::Scripts::Off => Scripts::Off,
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
