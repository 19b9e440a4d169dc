//! Settings that change while keyfence runs: SIGHUP, or a change of the file. All or nothing: what does not hold together changes nothing, and
//! says so. Connections of tenants that did not change never notice.

use std::{
    cell::Cell,
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use rustls::ClientConfig;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{interval, timeout},
};

use crate::{
    admin::Board,
    coherence,
    config::{self, AclWall, AuthMode, Config},
    directory::{DEFAULT, Directory},
    login::Login,
    plane,
    server::{self, Failure},
    systemd,
    tls::UpstreamTls,
    upstream::{
        Logins, Site, Target,
        wall::{Identity, Wall},
    },
    worker::{ListeningTls, Shared},
};

/// How long upstreams that are left have, all at once, until their users are taken away; those go by themselves after a day.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The upstreams in force, what looks after each, and the servers started for them.
#[derive(Debug, Default)]
pub struct Sites {
    /// By name.
    pub by_name: HashMap<String, Arc<Site>>,
    settings: HashMap<String, config::Upstream>,
    watchers: HashMap<String, JoinHandle<()>>,
    /// Who keeps the tier true for each.
    keepers: HashMap<String, (Arc<Site>, JoinHandle<()>)>,
    /// How many upstreams there have been.
    count: Cell<u16>,
    managed: HashMap<String, Child>,
}

/// The supervisor of a server that was started here: told to stop it, and awaited.
type Child = (watch::Sender<bool>, JoinHandle<()>);

/// Upstreams that settings ask for, and nothing uses yet.
#[derive(Debug)]
pub struct Staged {
    /// All of them by name; those whose settings have not changed are the ones in force.
    pub by_name: HashMap<String, Arc<Site>>,
    settings: HashMap<String, config::Upstream>,
    managed: HashMap<String, Child>,
}

impl Staged {
    /// Stops the servers that were started for nothing.
    async fn discard(self) {
        stop_all(self.managed).await;
    }
}

async fn stop_all(children: HashMap<String, Child>) {
    let stopped = children.into_values().map(|(stop, supervisor)| async move {
        stop.send_replace(true);
        let _ = supervisor.await;
    });
    join_all(stopped).await;
}

/// TLS of an upstream, and what is to be in force for it.
type Renewed = (Arc<UpstreamTls>, Arc<ClientConfig>);

/// Takes the users of keyfence's own away from upstreams that are not used any more.
async fn leave_all(sites: impl IntoIterator<Item = &Arc<Site>>) {
    join_all(sites.into_iter().map(|site| leave(site))).await;
}

async fn leave(site: &Site) {
    let error = match timeout(LEAVE_WITHIN, site.wall.lower()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {LEAVE_WITHIN:?}"),
    };
    tracing::warn!(upstream = %site.target, error, "the users of the wall were left behind");
}

impl Sites {
    /// The upstreams of `config`; one whose settings have not changed stays the same. Nothing is in force before [`Sites::take`].
    ///
    /// # Errors
    /// When a managed server cannot be started, or a certificate cannot be used.
    pub async fn stage(&self, config: &Config) -> Result<Staged, Failure> {
        let wanted = config.upstreams.iter().map(|(name, up)| (name.as_str(), up)).chain([(DEFAULT, &config.upstream)]);
        let settings = wanted.clone().map(|(name, up)| (name.to_owned(), up.clone())).collect();
        let mut staged = Staged { by_name: HashMap::new(), settings, managed: HashMap::new() };
        for (name, up) in wanted {
            let site = match self.by_name.get(name) {
                Some(site) if self.settings.get(name) == Some(up) => Arc::clone(site),
                _ => match server::upstream(up).await {
                    Ok((target, child)) => {
                        if let Some(child) = child {
                            let (stop, stopping) = watch::channel(false);
                            staged.managed.insert(name.to_owned(), (stop, tokio::spawn(child.supervise(stopping))));
                        }
                        new_site((name, self.number()), up, target, config.auth.mode)?
                    }
                    Err(error) => {
                        staged.discard().await;
                        return Err(error);
                    }
                },
            };
            staged.by_name.insert(name.to_owned(), site);
        }
        Ok(staged)
    }

    /// Puts them into force: those that were and are no more, and their servers.
    pub fn take(&mut self, staged: Staged) -> Gone {
        let before = std::mem::replace(&mut self.by_name, staged.by_name);
        self.settings = staged.settings;
        let gone: Vec<_> = before
            .into_iter()
            .filter(|(name, site)| !self.by_name.get(name).is_some_and(|now| Arc::ptr_eq(now, site)))
            .collect();
        let children = gone.iter().filter_map(|(name, _)| Some((name.clone(), self.managed.remove(name)?))).collect();
        self.managed.extend(staged.managed);
        Gone { sites: gone.into_iter().map(|(_, site)| site).collect(), children }
    }

    /// Reads the certificates and keys of those in force again.
    ///
    /// # Errors
    /// What is wrong with which file.
    fn renew_tls(&self) -> Result<Vec<Renewed>, String> {
        let of = |(name, site): (&String, &Arc<Site>)| {
            let tls = site.target.tls.as_ref()?;
            Some(tls.renew().map(|config| (Arc::clone(tls), config)).map_err(|e| format!("upstream '{name}': {e}")))
        };
        self.by_name.iter().filter_map(of).collect()
    }

    /// Starts looking after all of them, and waits until each has said what it is and has the users of its tenants, or could not be asked:
    /// `within` at the longest. Those that take longer are asked on.
    pub async fn begin(&mut self, shared: &Arc<Shared>, within: Duration) {
        let mut asked = Vec::new();
        self.watch(shared, || {
            let (tell, told) = oneshot::channel();
            asked.push(told);
            Some(tell)
        });
        let _ = timeout(within, join_all(asked)).await;
        self.keep_tier(shared);
    }

    /// Starts looking after those that are new, and stops with those that are gone.
    pub fn look_after(&mut self, shared: &Arc<Shared>) {
        self.watch(shared, || None);
        self.keep_tier(shared);
    }

    fn watch(&mut self, shared: &Arc<Shared>, mut first: impl FnMut() -> Option<oneshot::Sender<()>>) {
        for (_, watcher) in self.watchers.drain() {
            watcher.abort();
        }
        for (name, site) in &self.by_name {
            let task = tokio::task::spawn_local(plane::look_after(Arc::clone(shared), Arc::clone(site), first()));
            self.watchers.insert(name.clone(), task);
        }
    }

    fn keep_tier(&mut self, shared: &Arc<Shared>) {
        // Those of upstreams that stay go on: what they know would be lost.
        self.keepers.retain(|name, (site, keeper)| {
            let stays = self.by_name.get(name).is_some_and(|now| Arc::ptr_eq(now, site));
            if !stays {
                keeper.abort();
            }
            stays
        });
        for (name, site) in &self.by_name {
            self.keepers.entry(name.clone()).or_insert_with(|| {
                let task = tokio::task::spawn_local(coherence::keep(Arc::clone(shared), Arc::clone(site)));
                (Arc::clone(site), task)
            });
        }
    }

    /// A number that no upstream has had.
    fn number(&self) -> u16 {
        let number = self.count.get();
        self.count.set(number.wrapping_add(1));
        number
    }

    /// Stops the servers started for them.
    pub async fn stop(&mut self) {
        self.watchers.drain().for_each(|(_, watcher)| watcher.abort());
        self.keepers.drain().for_each(|(_, (_, keeper))| keeper.abort());
        leave_all(self.by_name.values()).await;
        stop_all(std::mem::take(&mut self.managed)).await;
    }
}

fn new_site(
    (name, number): (&str, u16),
    up: &config::Upstream,
    target: Target,
    mode: AuthMode,
) -> Result<Arc<Site>, String> {
    let identity = Identity::new().map_err(|e| format!("the system gives no random bytes: {e}"))?;
    let wall = Wall::new(target.clone(), up.acl_wall, identity);
    let logins = match (up.acl_wall, mode) {
        // Wall or not: who logs in as a user of the upstream gets that user's rights, never keyfence's.
        (_, AuthMode::Upstream) if name == DEFAULT => Logins::Users(HashMap::new()),
        (AclWall::Off, _) => Logins::Own,
        _ => Logins::None("the wall does not stand yet".into()),
    };
    Ok(Arc::new(Site::new((name, number), target, wall, logins, up.max_connections, up.connections_per_worker)))
}

/// Upstreams that are not in force any more.
#[derive(Debug)]
pub struct Gone {
    sites: Vec<Arc<Site>>,
    children: HashMap<String, Child>,
}

impl Gone {
    /// Leaves them as they were found; nobody uses them any more.
    async fn leave(self) {
        leave_all(&self.sites).await;
        stop_all(self.children).await;
    }
}

/// The signals that mean something.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on none of them ends the process by itself.
    ///
    /// # Errors
    /// When signals cannot be watched.
    pub fn all() -> Result<Self, String> {
        Ok(Self {
            terminate: Self::watch(SignalKind::terminate())?,
            interrupt: Self::watch(SignalKind::interrupt())?,
            hangup: Self::watch(SignalKind::hangup())?,
        })
    }

    /// Waits for one that stops the process.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    fn watch(kind: SignalKind) -> Result<Signal, String> {
        signal(kind).map_err(|e| format!("cannot watch for signals: {e}"))
    }
}

/// The settings in force, and what was made of them.
#[derive(Debug)]
pub struct Reload {
    /// In force.
    pub config: Config,
    /// Where they were read from, if from a file.
    pub file: Option<PathBuf>,
    /// Its upstreams.
    pub sites: Sites,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// What the process tells of itself.
    pub board: Arc<Board>,
}

impl Reload {
    /// Reloads whenever told to, until SIGTERM or SIGINT.
    pub async fn until_stopped(&mut self, mut signals: Signals, again: impl Fn() -> Result<Config, String>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = self.file.as_deref().and_then(stamp);
        // A file that is still being written is not read: a change counts once it has looked the same twice.
        let mut changing = None;
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return,
                _ = signals.interrupt.recv() => return,
                _ = signals.hangup.recv() => tracing::info!("SIGHUP: reading the settings again"),
                _ = look.tick() => {
                    let now = self.file.as_deref().and_then(stamp);
                    if now == seen || now.is_none() {
                        changing = None;
                        continue;
                    }
                    if changing != now {
                        changing = now;
                        continue;
                    }
                    tracing::info!("the settings file changed: reading it again");
                }
            }
            seen = self.file.as_deref().and_then(stamp);
            systemd::reloading();
            let outcome = match again() {
                Ok(config) => self.apply(config).await,
                Err(error) => Err(error),
            };
            self.shared.metrics.reloaded(outcome.is_ok());
            if let Err(error) = outcome {
                tracing::error!(error, "reload failed: the settings stay as they were");
            }
            systemd::ready();
        }
    }

    /// Puts `config` into force.
    async fn apply(&mut self, mut config: Config) -> Result<(), String> {
        let open = |c: &Config| c.tenants.is_empty() && c.auth.mode == AuthMode::Static;
        if open(&config) && !open(&self.config) {
            return Err(
                "the settings have no tenants any more, so that nobody would have to log in: that takes a restart"
                    .into(),
            );
        }
        for name in keep_until_restart(&self.config, &mut config) {
            tracing::warn!(setting = name, "changed, but takes effect only with a restart");
        }
        let before = self.shared.directory.load_full();
        let listening = server::listening_tls(&Config { listen: self.config.listen.clone(), ..config.clone() })?;
        let renewed = self.sites.renew_tls()?;
        let staged = self.sites.stage(&config).await.map_err(|e| e.to_string())?;
        let directory = match self.prepare(&config, &staged, &before).await {
            Ok(directory) => directory,
            Err(error) => {
                // What stood before stands again, without the users that were made for nothing.
                for site in staged.by_name.values() {
                    if self.sites.by_name.values().any(|known| Arc::ptr_eq(known, site)) {
                        let _ = plane::raise(site, &[&before]).await;
                    } else {
                        leave(site).await;
                    }
                }
                staged.discard().await;
                return Err(error);
            }
        };
        // From here on nothing can fail.
        config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        let authorities = |tls: &Option<Arc<ListeningTls>>| tls.as_ref().map(|tls| tls.authorities.clone());
        let unproven = authorities(&self.shared.tls.load_full()) != authorities(&listening);
        self.shared.tls.store(listening);
        renewed.into_iter().for_each(|(tls, config)| tls.take(config));
        let gone = self.sites.take(staged);
        self.shared.proxies.store(Arc::new(config.proxy_protocol.clone()));
        self.shared.limits.store(Arc::new(server::client_limits(&config)));
        self.shared.slowlog.set(config.admin.slowlog_threshold, config.admin.slowlog_length);
        directory.enforce_limits();
        if let Some(limits) = server::tier_limits(&config) {
            self.shared.tier.set(&limits);
        }
        // Writes that were sent before their tenant was to be kept are not marked; they have been answered by then.
        let now = self.shared.tier.now();
        directory.want_tier(|site| now + coherence::settle(site));
        self.shared.directory.store(Arc::new(directory));
        self.sites.look_after(&self.shared);
        let ended = self.end_sessions(unproven);
        let directory = self.shared.directory.load_full();
        self.shared.scripts.keep(|tenant| directory.has(tenant));
        self.shared.slowlog.keep(|tenant| directory.has(tenant));
        self.shared.functions.keep(|tenant| directory.has(tenant));
        for site in self.sites.by_name.values() {
            if let Err(error) = plane::raise(site, &[&directory]).await {
                tracing::error!(upstream = %site.target, error, "users of tenants that are gone may still stand");
            }
        }
        self.board.in_force(self.sites.by_name.values().cloned(), &config.shown);
        gone.leave().await;
        tracing::info!(tenants = config.tenants.len(), ended, "settings reloaded");
        self.config = config;
        Ok(())
    }

    /// Everything that may fail: the directory of `config`, and walls in which old and new tenants have their users. Those of new tenants
    /// stand before anybody can log in as one; those of tenants that are gone go after their sessions.
    async fn prepare(&self, config: &Config, staged: &Staged, before: &Directory) -> Result<Directory, String> {
        let directory = Directory::build(config, &staged.by_name, Some(before))?;
        for site in staged.by_name.values() {
            plane::raise(site, &[before, &directory]).await?;
        }
        Ok(directory)
    }

    /// Ends the sessions of tenants that are gone or not what they were, and those whose password was taken out: blocked ones too. `unproven`:
    /// and those that a name of their TLS connection's let in, because another proof is asked for now.
    fn end_sessions(&self, unproven: bool) -> usize {
        let mut ended = 0;
        for client in self.shared.clients.all() {
            let login = client.login();
            let doubtful = unproven && matches!(login, Some(Login::Identity(_)));
            if doubtful || !self.shared.stands(client.tenant.load(Ordering::Relaxed), login.as_ref()) {
                client.alarm.kill();
                ended += 1;
            }
        }
        let directory = self.shared.directory.load();
        self.shared.flushes.keep(|tenant| directory.has(tenant));
        ended
    }
}

/// Takes over from `old` what cannot change while it runs: the names of what would have changed.
fn keep_until_restart(old: &Config, new: &mut Config) -> Vec<&'static str> {
    let mut names = Vec::new();
    let addresses =
        |c: &Config| c.listen.iter().chain(c.tenants.iter().flat_map(|t| &t.listen)).cloned().collect::<Vec<_>>();
    if addresses(old) != addresses(new) {
        names.push("listen");
    }
    // Its upstream's connections log in as others.
    if old.auth.mode != new.auth.mode {
        names.push("auth.mode");
        new.auth.mode = old.auth.mode;
    }
    if old.workers != new.workers {
        names.push("workers");
        new.workers = old.workers;
    }
    if old.reuse_port != new.reuse_port {
        names.push("reuse_port");
        new.reuse_port = old.reuse_port;
    }
    if old.unix_socket_mode != new.unix_socket_mode {
        names.push("unix_socket_mode");
        new.unix_socket_mode = old.unix_socket_mode;
    }
    if old.admin.listen != new.admin.listen {
        names.push("admin.listen");
        new.admin.listen.clone_from(&old.admin.listen);
    }
    let sizes = |c: &Config| (c.tier.max_memory, c.tier.max_value);
    if old.tier.enabled && sizes(old) != sizes(new) {
        names.push("tier.max_memory, tier.max_value");
        (new.tier.max_memory, new.tier.max_value) = sizes(old);
    }
    if old.log != new.log {
        names.push("log");
        new.log = old.log;
    }
    names
}

/// What tells one state of a file from another.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let about = std::fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.len()))
}
