//! The control plane: one task per upstream on the main thread. It learns what the upstream is and can do, keeps the tenants' users on it
//! (they are made again after a restart, a failover or an `ACL LOAD`: ACLs do not replicate), and says who tenants' connections log in as.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use crate::{
    directory::Directory,
    error::UpstreamError,
    scripts::kill::Lost,
    tenant::Scripts,
    upstream::{
        Logins, Site, Target,
        control::{self, Control, PROBE_EVERY},
        wall::{Standing, WallError, Walled},
    },
    worker::Shared,
};

/// How often a reachable upstream is probed again: it may have been replaced by another version.
const PROBE_AGAIN: Duration = Duration::from_secs(30);
/// How often the wall is looked at.
const CHECK: Duration = Duration::from_secs(1);
/// From one raising of the wall after a refused login to the next, at least.
const RAISE_AGAIN: Duration = Duration::from_millis(500);
/// An upstream that takes longer to answer a PING is not up, however long its clients are willing to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longest that one look or one raising may take.
const RAISE_WITHIN: Duration = Duration::from_secs(30);

/// Asks the upstream what it is, once: whether it could be asked.
pub async fn learn(site: &Site) -> bool {
    match control::probe(&site.target).await {
        Ok(facts) => {
            if !site.facts.load().probed {
                let (server, version) = (&facts.server, &facts.version);
                tracing::info!(upstream = %site.target, server, version, commands_without_a_row = facts.unknown.len(), "upstream probed");
            }
            if **site.facts.load() != facts {
                site.facts.store(Arc::new(facts));
            }
            true
        }
        Err(error) => {
            if !site.facts.load().probed {
                tracing::warn!(upstream = %site.target, error = error.to_line(), "upstream not reachable yet");
            }
            false
        }
    }
}

/// Who is to be walled in there, as `directories` have them, by number.
fn walled(site: &Arc<Site>, directories: &[&Directory]) -> HashMap<u32, Walled> {
    let all = directories.iter().flat_map(|d| d.tenants.values().chain(&d.anonymous));
    let here = all.filter(|tenant| Arc::ptr_eq(&tenant.site, site)).map(|tenant| {
        let walled = Walled {
            id: tenant.id,
            name: tenant.name.clone(),
            prefix: Arc::clone(&tenant.prefix),
            databases: tenant.db_base..tenant.db_base + tenant.databases,
            scripts: tenant.scripts != Scripts::Off,
            despite_holes: tenant.scripts == Scripts::On,
            permitted: tenant.permitted.rows().into(),
        };
        (tenant.id, walled)
    });
    here.collect()
}

/// Whether the same users are wanted there of `before` and of `after`.
pub fn alike(site: &Arc<Site>, before: &[&Directory], after: &[&Directory]) -> bool {
    walled(site, before) == walled(site, after)
}

/// Makes the users of all tenants that live there, as `directories` have them, and lets their connections log in as these.
///
/// # Errors
/// A sentence, when there is no wall and must be one.
pub async fn raise(site: &Arc<Site>, directories: &[&Directory]) -> Result<(), String> {
    if matches!(**site.logins.load(), Logins::Users(_)) {
        return Ok(());
    }
    let tenants: Vec<Walled> = walled(site, directories).into_values().collect();
    let Ok(standing) = timeout(RAISE_WITHIN, site.wall.raise(&tenants)).await else {
        return Err(format!("the wall was not raised within {RAISE_WITHIN:?}"));
    };
    match standing {
        Ok(Standing::Off) => set(site, Logins::Own),
        Ok(Standing::None(why)) => {
            if !matches!(**site.logins.load(), Logins::Own) {
                tracing::warn!(upstream = %site.target, why, "no second wall: the upstream does not let keyfence make users");
            }
            set(site, Logins::Own);
        }
        Ok(Standing::Raised { users, holes }) => {
            if !matches!(**site.logins.load(), Logins::Wall) {
                tracing::info!(upstream = %site.target, users, beyond_the_acl = holes.blind.join(" "), "the second wall stands");
            }
            site.holes.store(Some(holes));
            set(site, Logins::Wall);
        }
        // An upstream that is down has no connections to wall in; what stood before goes on when it is back.
        Err(WallError::Upstream(error)) => {
            tracing::debug!(upstream = %site.target, error = error.to_line(), "the wall could not be looked at");
        }
        Err(error) => {
            set(site, Logins::None(format!("the wall does not stand: {error}")));
            return Err(error.to_string());
        }
    }
    Ok(())
}

fn set(site: &Site, logins: Logins) {
    if std::mem::discriminant(&**site.logins.load()) != std::mem::discriminant(&logins)
        || matches!(logins, Logins::None(_))
    {
        site.logins.store(Arc::new(logins));
    }
}

/// Looks after one upstream until it is taken out of the settings. With `first` it is asked what it is and gets its users at once, which is
/// told when it is over, whatever came of it.
pub async fn look_after(shared: Arc<Shared>, site: Arc<Site>, first: Option<oneshot::Sender<()>>) {
    let tended = async {
        if let Some(first) = first {
            learn(&site).await;
            rebuild(&shared, &site).await;
            let _ = first.send(());
        }
        tend(shared, Arc::clone(&site)).await;
    };
    tokio::join!(tended, feel(&site));
}

/// Raises the wall for the tenants of the directory in force.
async fn rebuild(shared: &Shared, site: &Arc<Site>) {
    let directory = shared.directory.load_full();
    if let Err(error) = raise(site, &[&directory]).await {
        tracing::error!(upstream = %site.target, error, "the wall does not stand: nobody is served there until it does");
    }
}

/// Asks it every second whether it answers, which takes [`ANSWER_WITHIN`] at the most: an error is an answer, one of a server that is busy with a
/// script, say.
async fn feel(site: &Site) {
    let socket_timeout = site.target.socket_timeout.min(ANSWER_WITHIN);
    let control = Control::new(Target { socket_timeout, ..site.target.clone() });
    let mut every = interval(CHECK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let asked = Instant::now();
        match control.query::<String>(0, &redis::cmd("PING")).await {
            Ok(_) | Err(UpstreamError::Refused(_)) => site.pulse.felt(asked.elapsed()),
            Err(_) => site.pulse.lost(),
        }
    }
}

async fn tend(shared: Arc<Shared>, site: Arc<Site>) {
    let mut next_probe = Instant::now() + if site.facts.load().probed { PROBE_AGAIN } else { PROBE_EVERY };
    let mut next_check = Instant::now() + CHECK;
    let mut raised = Instant::now();
    loop {
        let refused = tokio::select! {
            () = sleep_until(next_probe.min(next_check)) => false,
            () = site.login_refused.notified() => {
                // Users that are taken away again and again are not raised as often.
                sleep_until(raised + RAISE_AGAIN).await;
                true
            }
        };
        let mut again = false;
        if Instant::now() >= next_probe {
            let known = learn(&site).await;
            again = site.holes.load().as_ref().is_some_and(|holes| holes.functions_untried);
            next_probe = Instant::now() + if known { PROBE_AGAIN } else { PROBE_EVERY };
        }
        let lost = Lost::before(&shared, Arc::as_ptr(&site).addr());
        let stands = matches!(**site.logins.load(), Logins::Wall)
            && !refused
            && timeout(RAISE_WITHIN, site.wall.check()).await.unwrap_or(false);
        if stands {
            // It was answered, and not with BUSY.
            lost.ended();
        }
        let wanted = !matches!(**site.logins.load(), Logins::Own | Logins::Users(_));
        if wanted && (again || !stands) {
            raised = Instant::now();
            rebuild(&shared, &site).await;
        }
        next_check = Instant::now() + CHECK;
    }
}
