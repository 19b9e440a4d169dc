//! FLUSHDB and FLUSHALL of one tenant: SCAN and UNLINK in small steps.
//!
//! Every key that exists when it begins is gone when it ends; other tenants see no more than short commands in between. One pass per
//! (prefix, database) runs at a time; those that ask meanwhile share the next. It goes on after a lost connection, and inserts nothing, so
//! being cut off leaves nothing behind but undeleted keys.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use tokio::{sync::Mutex, time::Instant};

use super::{Counts, Scope};
use crate::{error::UpstreamError, tracking};

/// Buckets per page, and so about the most keys deleted in one command: a step takes the upstream some tens of microseconds. Larger steps
/// end sooner and are felt by others; pauses between steps make it longer and are felt as much (docs/decisions/0004).
const PAGE: u32 = 64;
/// How long an unreachable upstream is waited for before the command fails.
const RETRY_FOR: Duration = Duration::from_secs(10);
/// Between two attempts.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The flushes in progress, and the last counts of keys: what workers share of scoped work.
#[derive(Debug, Default)]
pub struct Flushes {
    gates: DashMap<(u32, u32), Arc<Gate>>,
    counting: DashMap<(u32, u32), Arc<Gate>>,
    pub(super) counts: Counts,
}

/// Admits one pass at a time; those who come while one runs share the next.
#[derive(Debug, Default)]
pub(super) struct Gate {
    running: Mutex<()>,
    begun: AtomicU64,
    /// The number of the latest pass that somebody waits for.
    wanted: AtomicU64,
    /// The number of the last pass that ended well, and what it found.
    ended: AtomicU64,
    found: AtomicU64,
}

impl Gate {
    /// What a pass finds that begins no earlier than now.
    pub(super) async fn pass(
        &self,
        work: impl AsyncFnOnce() -> Result<u64, UpstreamError>,
    ) -> Result<u64, UpstreamError> {
        let before = self.begun.load(Ordering::Acquire);
        self.wanted.fetch_max(before + 1, Ordering::AcqRel);
        let _turn = self.running.lock().await;
        // Another pass may have begun and ended while this one waited for its turn.
        if self.ended.load(Ordering::Acquire) <= before {
            let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
            self.found.store(work().await?, Ordering::Release);
            self.ended.store(number, Ordering::Release);
        }
        Ok(self.found.load(Ordering::Acquire))
    }

    /// Asks for a pass that begins no earlier than now: `false` when somebody waits for one already.
    fn want(&self) -> bool {
        let next = self.begun.load(Ordering::Acquire) + 1;
        self.wanted.fetch_max(next, Ordering::AcqRel) < next
    }
}

impl Flushes {
    fn flushing(&self, tenant: u32, db: u32) -> Arc<Gate> {
        Arc::clone(&self.gates.entry((tenant, db)).or_default())
    }

    /// Forgets tenants that are no more.
    pub fn keep(&self, stands: impl Fn(u32) -> bool) {
        self.gates.retain(|(tenant, _), _| stands(*tenant));
        self.counting.retain(|(tenant, _), _| stands(*tenant));
        self.counts.retain(|(tenant, _), _| stands(*tenant));
    }

    /// The gate of counts of one database of one tenant.
    pub(super) fn counting(&self, tenant: u32, db: u32) -> Arc<Gate> {
        Arc::clone(&self.counting.entry((tenant, db)).or_default())
    }
}

/// Deletes every key of the scope's prefix in `dbs`.
pub(super) async fn run(scope: Scope, dbs: Vec<u32>, unlink: bool) -> Result<(), UpstreamError> {
    for db in dbs {
        let scope = Scope { db, ..scope.clone() };
        let flushes = &scope.worker.shared.flushes;
        let gate = flushes.flushing(scope.tenant.id, db);
        gate.pass(async || pass(&scope, unlink).await.map(|()| 0)).await?;
        flushes.counts.remove(&(scope.tenant.id, db));
    }
    // What was read before this is not served after it.
    scope.worker.shared.tier.clear_tenant(scope.tenant.id);
    tracking::flushed(&scope.worker.shared, scope.tenant.id);
    Ok(())
}

/// The same for a client that was told already; a failure has nobody left to be told but the log. However often it is asked for, no more than
/// one pass runs and one waits.
pub(super) fn run_later(scope: &Scope, mut dbs: Vec<u32>, unlink: bool) {
    dbs.retain(|db| scope.worker.shared.flushes.flushing(scope.tenant.id, *db).want());
    let scope = scope.clone();
    tokio::task::spawn_local(async move {
        // Each has been promised, whatever becomes of the others.
        for db in dbs {
            if let Err(error) = run(scope.clone(), vec![db], unlink).await {
                tracing::warn!(db, error = error.to_line(), "FLUSH ASYNC was not finished");
            }
        }
    });
}

async fn pass(scope: &Scope, unlink: bool) -> Result<(), UpstreamError> {
    let pattern = scope.pattern(b"*");
    let mut cursor = 0;
    let mut trouble: Option<Instant> = None;
    let mut begun = false;
    loop {
        let began = Instant::now();
        match step(scope, cursor, &pattern, unlink).await {
            Ok(0) => return Ok(()),
            Ok(next) => {
                cursor = next;
                begun = true;
                trouble = None;
            }
            Err(error @ (UpstreamError::Refused(_) | UpstreamError::Busy(_))) => return Err(error),
            // Nothing has been deleted yet: the client may as well know at once.
            Err(error) if !begun => return Err(error),
            Err(error) => {
                // A step can be taken again: what it deleted stays deleted. A restarted upstream has other cursors, so from the start.
                let since = *trouble.get_or_insert(began);
                if since.elapsed() > RETRY_FOR.min(scope.reach.site.target.socket_timeout * 6) {
                    return Err(error);
                }
                cursor = 0;
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

async fn step(scope: &Scope, cursor: u64, pattern: &[u8], unlink: bool) -> Result<u64, UpstreamError> {
    let turn = scope.turn().await?;
    let (next, names) = scope.page_in(&turn, cursor, pattern, PAGE, None).await?;
    if !names.is_empty() {
        let mut cmd = redis::cmd(if unlink { "UNLINK" } else { "DEL" });
        for name in &names {
            cmd.arg([&scope.prefix, &name[..]].concat());
        }
        let deleted: u64 = scope.control.query(scope.db, &cmd).await?;
        scope.worker.meter.cells.scoped_deleted.add(deleted);
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pass_is_asked_for_once_until_it_begins() {
        let gate = Gate::default();
        assert!(gate.want() && !gate.want());
        let seen = gate.pass(async || {
            // This one has begun: what is asked for now needs another.
            assert!(gate.want() && !gate.want());
            Ok(7)
        });
        assert_eq!(seen.await, Ok(7));
        assert_eq!(gate.pass(async || Err(UpstreamError::Lost)).await, Err(UpstreamError::Lost));
        assert!(gate.want(), "one that failed is over too");
    }
}
