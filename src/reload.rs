//! Settings that change while keyfence runs: SIGHUP, or a change of the file. All or nothing: what does not hold together changes nothing, and
//! says so. Connections of tenants that did not change never notice.

mod sites;

pub use sites::Sites;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::interval,
};

use self::sites::{Staged, leave};
use crate::{
    admin::Board,
    coherence,
    config::{AuthMode, Config, Endpoint::Managed},
    directory::{DEFAULT, Directory},
    login::Login,
    plane, server, systemd,
    worker::{ListeningTls, Shared},
};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

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
    pub async fn until_stopped(&mut self, signals: &mut Signals, again: impl Fn() -> Result<Config, String>) {
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
                // What an upstream keeps waiting for is not worth a late stop: what is not done by then is done, or forgotten, at the end.
                Ok(config) => tokio::select! {
                    biased;
                    () = signals.stop() => {
                        tracing::warn!("stopped while the settings were being reloaded");
                        return;
                    }
                    outcome = self.apply(config) => outcome,
                },
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
                let (sites, before) = (&self.sites, &before);
                join_all(staged.by_name.values().map(|site| async move {
                    if sites.knows(site) {
                        let _ = plane::raise(site, &[before]).await;
                    } else {
                        leave(site).await;
                    }
                }))
                .await;
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
        self.sites.take(staged);
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
        self.board.in_force(self.sites.by_name.values().cloned(), &config.shown);
        self.config = config;
        let (directory, before) = (&*directory, &*before);
        let changed =
            self.sites.by_name.values().filter(|site| !plane::alike(site, &[before, directory], &[directory]));
        join_all(changed.map(|site| async move {
            if let Err(error) = plane::raise(site, &[directory]).await {
                tracing::error!(upstream = %site.target, error, "users of tenants that are gone may still stand");
            }
        }))
        .await;
        self.sites.leave_gone().await;
        tracing::info!(tenants = self.config.tenants.len(), ended, "settings reloaded");
        Ok(())
    }

    /// Everything that may fail: the directory of `config`, and walls in which old and new tenants have their users. Those of new tenants
    /// stand before anybody can log in as one; those of tenants that are gone go after their sessions. An upstream whose users stay what they are is
    /// not asked, so that one that is silent delays only what concerns it.
    async fn prepare(&self, config: &Config, staged: &Staged, before: &Directory) -> Result<Directory, String> {
        let directory = Directory::build(config, &staged.by_name, Some(before))?;
        let both = [before, &directory];
        let changed =
            staged.by_name.values().filter(|site| !(self.sites.knows(site) && plane::alike(site, &[before], &both)));
        for raised in join_all(changed.map(|site| plane::raise(site, &both))).await {
            raised?;
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
    for (name, up) in
        new.upstreams.iter_mut().map(|(name, up)| (name.as_str(), up)).chain([(DEFAULT, &mut new.upstream)])
    {
        let was = old.upstream(name);
        if let Some(Managed { dir: was_in, save: was }) = was.map(|up| &up.endpoint)
            && let Managed { dir, save } = &mut up.endpoint
            && dir == was_in
            && save != was
        {
            names.push("managed.save");
            save.clone_from(was);
        }
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
