//! SCRIPT KILL: the upstream kills whatever script it runs, of whichever tenant. It is asked to only when that is this tenant's.
//!
//! While a script overruns, the upstream answers everything else with BUSY, scripts that wait their turn among it. So of what was sent before
//! it was found busy, all but what runs is answered soon: it is looked at until only one tenant is left, and if that is this one, its script is
//! killed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use redis::Value as Reply;

use super::store::Own;
use crate::{error::UpstreamError, resp::Value, tenant::Tenant, upstream::control::Control, worker::Shared};

/// How often the upstream is asked, at the most, and how often at least.
const LOOKS: usize = 40;
const FEWEST: usize = 3;
/// From one look to the next: answers that have come have been counted by then, by whichever worker.
const BETWEEN: Duration = Duration::from_millis(25);
const NOT_BUSY: &str = "NOTBUSY No scripts in execution right now.";

/// The scripts of one tenant that were on their way at some moment.
struct Mark {
    own: Arc<Own>,
    ours: bool,
    flying: u64,
    done: u64,
}

impl Mark {
    fn of(own: Arc<Own>, ours: bool) -> Self {
        let done = own.counters.done.load(Ordering::Relaxed);
        let flying = own.counters.sent.load(Ordering::Relaxed).saturating_sub(done);
        Self { own, ours, flying, done }
    }

    /// Whether one of them still is, whatever was sent since.
    fn flies(&self) -> bool {
        self.own.counters.done.load(Ordering::Relaxed) - self.done < self.flying
    }

    /// Whether one may be that no reply can come of any more.
    fn lost(&self) -> bool {
        self.own.counters.lost.load(Ordering::Relaxed) > 0
    }
}

/// Kills the script of `tenant` that runs upstream, if one does: the answer for its client.
///
/// # Errors
/// When the upstream cannot be asked.
pub async fn kill(shared: &Shared, control: &Control, tenant: &Tenant) -> Result<Value, UpstreamError> {
    let of_this_upstream = |own: &Own| own.site == Arc::as_ptr(&tenant.site).addr();
    let all = shared.scripts.all().into_iter().filter(|(_, own)| of_this_upstream(own));
    let marks: Vec<Mark> = all.map(|(id, own)| Mark::of(own, id == tenant.id)).collect();
    let any = |is: fn(&Mark) -> bool, ours: bool| marks.iter().any(|mark| mark.ours == ours && is(mark));
    for look in 1..=LOOKS {
        match control.query::<Reply>(0, &redis::cmd("PING")).await {
            Err(UpstreamError::Refused(text)) if text.starts_with("BUSY") => {}
            Ok(_) => {
                // It runs nothing: what was lost has ended.
                marks.iter().for_each(|mark| mark.own.counters.lost.store(0, Ordering::Relaxed));
                break;
            }
            Err(error) => return Err(error),
        }
        let (runs, others) = (any(Mark::flies, true), any(Mark::flies, false));
        let left = any(Mark::lost, true) && !any(Mark::lost, false);
        if look >= FEWEST && !others {
            if !runs && !left {
                break;
            }
            return match control.query::<Reply>(0, redis::cmd("SCRIPT").arg("KILL")).await {
                Ok(_) => Ok(Value::ok()),
                Err(UpstreamError::Refused(text)) => Ok(Value::error(text)),
                Err(error) => Err(error),
            };
        }
        if look >= FEWEST && !runs {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
    }
    Ok(Value::error(NOT_BUSY))
}
