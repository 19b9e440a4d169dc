//! The end of all clients: who does not listen first, and who listens once all has come that the former published.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};

use crate::worker::{Shared, Worker};

/// Of the grace period, what who listens may have for themselves: at most, and as a part.
const LAST_WORDS: (Duration, u32) = (Duration::from_secs(1), 4);
/// Between two looks at who is still there.
const LOOK: Duration = Duration::from_millis(5);

/// What workers hear of it.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    /// Nobody publishes any more.
    silence: watch::Receiver<bool>,
    /// Held until all has come that was published.
    listening: mpsc::Sender<()>,
}

/// What the process hears of the workers.
#[derive(Debug)]
pub(super) struct LastWords {
    silence: watch::Sender<bool>,
    heard: mpsc::Receiver<()>,
}

/// The two ends.
pub(super) fn ending() -> (LastWords, Ending) {
    let ((say, silence), (listening, heard)) = (watch::channel(false), mpsc::channel(1));
    (LastWords { silence: say, heard }, Ending { silence, listening })
}

impl Ending {
    /// A worker's part.
    pub(super) async fn hear(mut self, worker: &Worker) {
        if self.silence.wait_for(|silence| *silence).await.is_ok() {
            worker.hubs.caught_up().await;
        }
        drop(self.listening);
    }
}

impl LastWords {
    /// Tells all clients to leave as soon as they are owed nothing, those who listen last; `deadline` is the end of the grace period.
    pub(super) async fn drain(mut self, shared: &Shared, deadline: Instant) {
        let (most, part) = LAST_WORDS;
        let now = Instant::now();
        let until = deadline - deadline.saturating_duration_since(now).min(most * part) / part;
        loop {
            let mut others = shared.clients.all();
            others.retain(|client| !client.listens());
            // Once each: it wakes them.
            others.iter().filter(|client| !client.alarm.leaving()).for_each(|client| client.alarm.drain());
            if others.is_empty() || Instant::now() >= until {
                break;
            }
            tokio::select! {
                () = sleep_until((Instant::now() + LOOK).min(until)) => {}
                // No worker is left.
                _ = self.heard.recv() => return,
            }
        }
        self.silence.send_replace(true);
        let _ = timeout_at(deadline, self.heard.recv()).await;
        shared.clients.all().iter().for_each(|client| client.alarm.drain());
    }
}
