//! Settings that change while keyfence runs: SIGHUP, or a change of the file. All or nothing: what does not hold together changes nothing, and
//! says so. Connections of tenants that did not change never notice.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::interval,
};

use crate::{
    config::{self, AclWall, Config},
    directory::{DEFAULT, Directory},
    plane, server,
    upstream::{
        Logins, Site,
        wall::{Identity, Wall},
    },
    worker::Shared,
};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The upstreams in force, what looks after each, and the servers started for them.
#[derive(Debug, Default)]
pub struct Sites {
    /// By name.
    pub by_name: HashMap<String, Arc<Site>>,
    settings: HashMap<String, config::Upstream>,
    watchers: HashMap<String, JoinHandle<()>>,
    managed: Vec<(watch::Sender<bool>, JoinHandle<()>)>,
}

impl Sites {
    /// Brings them in line with `config`; one whose settings have not changed stays the same.
    ///
    /// # Errors
    /// When a managed server cannot be started.
    pub async fn update(&mut self, config: &Config) -> Result<(), String> {
        let mut by_name = HashMap::new();
        let wanted = config.upstreams.iter().map(|(name, up)| (name.as_str(), up)).chain([(DEFAULT, &config.upstream)]);
        for (name, up) in wanted.clone() {
            let site = match self.by_name.get(name) {
                Some(site) if self.settings.get(name) == Some(up) => Arc::clone(site),
                _ => {
                    let (target, child) = server::upstream(up).await?;
                    if let Some(child) = child {
                        let (stop, stopping) = watch::channel(false);
                        self.managed.push((stop, tokio::spawn(child.supervise(stopping))));
                    }
                    let identity = Identity::new().map_err(|e| format!("the system gives no random bytes: {e}"))?;
                    let wall = Wall::new(target.clone(), up.acl_wall, identity);
                    let logins = match (up.acl_wall, config.auth.mode) {
                        (AclWall::Off, _) => Logins::Own,
                        (_, config::AuthMode::Upstream) if name == DEFAULT => Logins::Users(HashMap::new()),
                        _ => Logins::None("the wall does not stand yet".into()),
                    };
                    Arc::new(Site::new(name, target, wall, logins, up.max_connections, up.connections_per_worker))
                }
            };
            by_name.insert(name.to_owned(), site);
        }
        self.settings = wanted.map(|(name, up)| (name.to_owned(), up.clone())).collect();
        self.by_name = by_name;
        Ok(())
    }

    /// Starts looking after those that are new, and stops with those that are gone.
    pub fn look_after(&mut self, shared: &Arc<Shared>) {
        for (_, watcher) in self.watchers.drain() {
            watcher.abort();
        }
        for (name, site) in &self.by_name {
            let task = tokio::task::spawn_local(plane::look_after(Arc::clone(shared), Arc::clone(site)));
            self.watchers.insert(name.clone(), task);
        }
    }

    /// Stops the servers started for them.
    pub async fn stop(&mut self) {
        for (_, watcher) in self.watchers.drain() {
            watcher.abort();
        }
        for site in self.by_name.values() {
            if let Err(error) = site.wall.lower().await {
                tracing::warn!(upstream = %site.target, %error, "the users of the wall were left behind");
            }
        }
        for (stop, supervisor) in self.managed.drain(..) {
            stop.send_replace(true);
            let _ = supervisor.await;
        }
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
    /// SIGHUP, of which one that comes before there is anything to reload must not end the process.
    ///
    /// # Errors
    /// When signals cannot be watched.
    pub fn hangup() -> Result<Signal, String> {
        Self::watch(SignalKind::hangup())
    }

    /// With those that stop the process, which up to here do so at once.
    ///
    /// # Errors
    /// When signals cannot be watched.
    pub fn all(hangup: Signal) -> Result<Self, String> {
        Ok(Self {
            terminate: Self::watch(SignalKind::terminate())?,
            interrupt: Self::watch(SignalKind::interrupt())?,
            hangup,
        })
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
            match again() {
                Ok(config) => {
                    if let Err(error) = self.apply(config).await {
                        tracing::error!(error, "reload failed: the settings stay as they were");
                    }
                }
                Err(error) => tracing::error!(error, "reload failed: the settings stay as they were"),
            }
        }
    }

    /// Puts `config` into force.
    async fn apply(&mut self, mut config: Config) -> Result<(), String> {
        let open = |c: &Config| c.tenants.is_empty() && c.auth.mode == config::AuthMode::Static;
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
        self.sites.update(&config).await?;
        let directory = Directory::build(&config, &self.sites.by_name, Some(&before))?;
        // The users of new tenants stand before anybody can log in as one; those of tenants that are gone go after their sessions.
        for site in self.sites.by_name.values() {
            plane::raise(site, &[&before, &directory]).await?;
        }
        config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        self.shared.limits.store(Arc::new(server::client_limits(&config)));
        self.shared.slowlog.set(config.admin.slowlog_threshold, config.admin.slowlog_length);
        self.shared.directory.store(Arc::new(directory));
        self.sites.look_after(&self.shared);
        let ended = self.end_sessions();
        let directory = self.shared.directory.load_full();
        for site in self.sites.by_name.values() {
            if let Err(error) = plane::raise(site, &[&directory]).await {
                tracing::error!(upstream = %site.target, error, "users of tenants that are gone may still stand");
            }
        }
        tracing::info!(tenants = config.tenants.len(), ended, "settings reloaded");
        self.config = config;
        Ok(())
    }

    /// Ends the sessions of tenants that are gone or not what they were, and those whose password was taken out: blocked ones too.
    fn end_sessions(&self) -> usize {
        let directory = self.shared.directory.load();
        let mut standing: HashSet<u32> = directory.tenants.values().chain(&directory.anonymous).map(|t| t.id).collect();
        standing.insert(directory.nobody.id);
        if directory.mode == config::AuthMode::Upstream {
            standing.extend(self.shared.newcomers.iter().map(|t| t.id));
        }
        let mut ended = 0;
        for client in self.shared.clients.all() {
            let login = client.login.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let holds = login.is_none_or(|l| directory.still_holds(&l));
            if !holds || !standing.contains(&client.tenant.load(Ordering::Relaxed)) {
                client.alarm.kill();
                ended += 1;
            }
        }
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
    if old.workers != new.workers {
        names.push("workers");
        new.workers = old.workers;
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
