//! SCRIPT KILL: the upstream kills whatever script it runs, of whichever tenant. It is asked to only when that is this tenant's.
//!
//! While a script overruns, the upstream answers everything else with BUSY, scripts that wait their turn among it. So of what was sent before
//! it was found busy, all but what runs is answered soon: it is looked at until only one tenant is left, and if that is this one, its script is
//! killed.

use std::{sync::Arc, time::Duration};

use redis::Value as Reply;

use super::store::Own;
use crate::{
    error::UpstreamError, resp::Value, rewrite::reply::script::Counters, tenant::Tenant, upstream::control::Control,
    worker::Shared,
};

/// How often the upstream is asked, at the most, and how often at least.
const LOOKS: usize = 40;
const FEWEST: usize = 3;
/// From one look to the next: answers that have come have been counted by then, by whichever worker.
const BETWEEN: Duration = Duration::from_millis(25);
const NOT_BUSY: &str = "NOTBUSY No scripts in execution right now.";

/// The scripts of the tenants of one upstream that may be running at some moment.
struct Mark(Vec<(Arc<Own>, u64)>);

impl Mark {
    /// Those that have been sent by now.
    fn take(shared: &Shared, site: usize) -> Self {
        let all = shared.scripts.all().into_iter().filter(|own| own.site == site);
        Self(all.map(|own| (Arc::clone(&own), own.counters.mark())).collect())
    }

    /// Whether one of them may still be, of the tenant with these counters, or of any other.
    fn runs(&self, of: &Arc<Counters>, ours: bool) -> bool {
        let mut those = self.0.iter().filter(|(own, _)| Arc::ptr_eq(&own.counters, of) == ours);
        those.any(|(own, mark)| own.counters.flies(*mark) || own.counters.lost() > 0)
    }
}

/// Scripts that were lost before the upstream was asked whether it is busy: they have ended when it says that it is not.
pub struct Lost(Vec<(Arc<Own>, u64)>);

impl Lost {
    /// Those of the upstream at `site`, by now.
    pub fn before(shared: &Shared, site: usize) -> Self {
        let all = shared.scripts.all().into_iter().filter(|own| own.site == site && own.counters.lost() > 0);
        Self(all.map(|own| (Arc::clone(&own), own.counters.lost())).collect())
    }

    /// The upstream runs nothing.
    pub fn ended(self) {
        self.0.iter().for_each(|(own, lost)| own.counters.ended(*lost));
    }
}

/// Kills the script of `tenant` that runs upstream, if one does: the answer for its client.
///
/// # Errors
/// When the upstream cannot be asked.
pub async fn kill(shared: &Shared, control: &Control, tenant: &Tenant) -> Result<Value, UpstreamError> {
    let site = Arc::as_ptr(&tenant.site).addr();
    let ours = Arc::clone(&shared.scripts.of(tenant.id, &tenant.name, site).counters);
    // What was sent before it was found busy, and before it was found busy the last time: it may have gone over to another script since.
    let (mut first, mut last) = (None, None);
    for look in 1..=LOOKS {
        let lost = Lost::before(shared, site);
        match control.query::<Reply>(0, &redis::cmd("PING")).await {
            Err(UpstreamError::Refused(text)) if text.starts_with("BUSY") => {}
            Ok(_) => {
                lost.ended();
                break;
            }
            Err(error) => return Err(error),
        }
        let before = last.replace(Mark::take(shared, site));
        let first = first.get_or_insert_with(|| Mark::take(shared, site));
        if look >= FEWEST {
            if !first.runs(&ours, true) {
                break;
            }
            if before.is_some_and(|mark| !mark.runs(&ours, false)) {
                return match control.query::<Reply>(0, redis::cmd("SCRIPT").arg("KILL")).await {
                    Ok(_) => Ok(Value::ok()),
                    Err(UpstreamError::Refused(text)) => Ok(Value::error(text)),
                    Err(error) => Err(error),
                };
            }
        }
        tokio::time::sleep(BETWEEN).await;
    }
    Ok(Value::error(NOT_BUSY))
}
