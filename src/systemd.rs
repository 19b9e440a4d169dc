//! What a service manager is told, as sd_notify(3) says: that keyfence serves, reads its settings again, stops, and is alive. Without
//! `NOTIFY_SOCKET` nobody is told anything.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// The shortest pause between two signs of life.
const SHORTEST: Duration = Duration::from_millis(200);

/// Clients are served.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The settings are being read again; [`ready`] says when that is over.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "no monotonic clock to tell the service manager"),
    }
}

/// No new clients are served.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Gives signs of life twice as often as is asked for (`WATCHDOG_USEC`) as long as `alive` says so; ends at once when nobody asks.
pub async fn keep_watch(mut alive: impl FnMut() -> bool) {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    let mut every = interval((within / 2).max(SHORTEST));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if alive() {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("a worker makes no progress: the service manager is given no sign of life");
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}
