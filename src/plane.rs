//! The control plane: one task per upstream on the main thread. It learns what the upstream is and can do, keeps the tenants' users on it
//! (they are made again after a failover or an `ACL LOAD`: ACLs do not replicate), and says who tenants' connections log in as.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::{
    upstream::{
        Site,
        control::{self, PROBE_EVERY},
    },
    worker::Shared,
};

/// How often a reachable upstream is probed again: it may have been replaced by another version.
const PROBE_AGAIN: Duration = Duration::from_secs(30);

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

/// Looks after one upstream until it is taken out of the settings.
pub async fn look_after(shared: Arc<Shared>, site: Arc<Site>) {
    let mut next_probe = Instant::now() + if site.facts.load().probed { PROBE_AGAIN } else { PROBE_EVERY };
    let _ = &shared;
    loop {
        sleep_until(next_probe).await;
        let known = learn(&site).await;
        next_probe = Instant::now() + if known { PROBE_AGAIN } else { PROBE_EVERY };
    }
}
