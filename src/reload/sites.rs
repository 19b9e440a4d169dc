//! The upstreams of the settings: staged, put into force, looked after, and left as they were found.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use rustls::ClientConfig;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    coherence,
    config::{self, AclWall, AuthMode, Config},
    directory::DEFAULT,
    plane,
    server::{self, Failure},
    tls::UpstreamTls,
    upstream::{
        Endpoint, Logins, Site, Target,
        wall::{Identity, Wall},
    },
    worker::Shared,
};

/// How long upstreams that are left have, all at once, until their users are taken away; those go by themselves after a day.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
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
    /// Not in force any more, and to be left as they were found.
    gone: Vec<Gone>,
}

/// The supervisor of a server that was started here: told to stop it, and awaited.
type Child = (watch::Sender<bool>, JoinHandle<()>);

/// Upstreams that settings ask for, and nothing uses yet.
#[derive(Debug, Default)]
pub struct Staged {
    /// All of them by name; those whose settings have not changed are the ones in force.
    pub by_name: HashMap<String, Arc<Site>>,
    settings: HashMap<String, config::Upstream>,
    managed: HashMap<String, Child>,
    /// Names of those that go on with the server that was started for what they were before.
    kept: HashSet<String>,
}

impl Staged {
    /// Stops the servers that were started for nothing.
    pub(super) async fn discard(mut self) {
        stop_all(&mut self.managed).await;
    }
}

/// May be given up and begun again.
async fn stop_all<K>(children: &mut HashMap<K, Child>) {
    let stopped = children.values_mut().map(|(stop, supervisor)| async move {
        stop.send_replace(true);
        let _ = supervisor.await;
    });
    join_all(stopped).await;
    children.clear();
}

/// TLS of an upstream, and what is to be in force for it.
pub(super) type Renewed = (Arc<UpstreamTls>, Arc<ClientConfig>);

/// Takes the users of keyfence's own away from upstreams that are not used any more.
async fn leave_all(sites: impl IntoIterator<Item = &Arc<Site>>) {
    join_all(sites.into_iter().map(|site| leave(site))).await;
}

pub(super) async fn leave(site: &Site) {
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
        let mut staged = Staged { settings, ..Staged::default() };
        for (name, up) in wanted {
            let site = match self.by_name.get(name) {
                Some(site) if self.settings.get(name) == Some(up) => Arc::clone(site),
                _ => {
                    let running = self.running(name, up);
                    if running.is_some() {
                        staged.kept.insert(name.to_owned());
                    }
                    match server::upstream(up, running).await {
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
                    }
                }
            };
            staged.by_name.insert(name.to_owned(), site);
        }
        Ok(staged)
    }

    /// Where the server listens that was started for the upstream of that name, if `up` asks for the same one.
    fn running(&self, name: &str, up: &config::Upstream) -> Option<Endpoint> {
        let same = self.settings.get(name).is_some_and(|before| before.endpoint == up.endpoint);
        let here = same && self.managed.contains_key(name);
        here.then(|| self.by_name.get(name).map(|site| site.target.endpoint.clone())).flatten()
    }

    /// Puts them into force; [`Sites::leave_gone`] sees to those that were and are no more, and to their servers.
    pub fn take(&mut self, staged: Staged) {
        let before = std::mem::replace(&mut self.by_name, staged.by_name);
        self.settings = staged.settings;
        let gone: Vec<_> = before
            .into_iter()
            .filter(|(name, site)| !self.by_name.get(name).is_some_and(|now| Arc::ptr_eq(now, site)))
            .collect();
        let without = gone.iter().map(|(name, _)| name).filter(|name| !staged.kept.contains(*name));
        let children = without.filter_map(|name| Some((name.clone(), self.managed.remove(name)?))).collect();
        self.managed.extend(staged.managed);
        self.gone.push(Gone { sites: gone.into_iter().map(|(_, site)| site).collect(), children });
    }

    /// Leaves those that are not in force any more as they were found; nobody uses them. May be given up and begun again.
    pub(super) async fn leave_gone(&mut self) {
        for gone in &mut self.gone {
            leave_all(&gone.sites).await;
            gone.sites.clear();
            stop_all(&mut gone.children).await;
        }
        self.gone.clear();
    }

    /// Reads the certificates and keys of those in force again.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub(super) fn renew_tls(&self) -> Result<Vec<Renewed>, String> {
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

    /// Whether it is in force.
    pub(super) fn knows(&self, site: &Arc<Site>) -> bool {
        self.by_name.values().any(|known| Arc::ptr_eq(known, site))
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
        leave_all(self.by_name.values().chain(self.gone.iter().flat_map(|gone| &gone.sites))).await;
        let left = self.gone.drain(..).flat_map(|gone| gone.children.into_values());
        // Names may be those of others in force.
        let mut children: HashMap<_, _> =
            left.chain(self.managed.drain().map(|(_, child)| child)).enumerate().collect();
        stop_all(&mut children).await;
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
pub(super) struct Gone {
    sites: Vec<Arc<Site>>,
    children: HashMap<String, Child>,
}
