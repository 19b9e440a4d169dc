//! A walk through everything a tenant's databases hold, from outside: what `adopt` and `purge` have in common.
//!
//! SCAN in pages that each take the upstream well under a millisecond, beside the clients it serves. How far a walk has come follows from
//! the cursor: its bits in reverse order are the place in the table, as a fraction.

use std::ops::Range;

use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    config::{Config, Endpoint, Tenant},
    error::UpstreamError,
    server::{self, Failure},
    upstream::{Target, control::Control, managed},
};

/// Buckets per page.
const PAGE: u32 = 500;
/// Bits of a cursor's fraction that the bar shows, and so steps of it per database.
const BITS: u32 = 10;

/// What came of a walk.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// One line, for standard output.
    pub summary: String,
    /// What the operator should look at, a line each, for standard error.
    pub notes: Vec<String>,
}

/// A tenant's databases on its upstream.
#[derive(Debug)]
pub struct Walk {
    target: Target,
    control: Control,
    dbs: Range<u32>,
    bar: ProgressBar,
    child: Option<managed::Managed>,
}

impl Walk {
    /// Reaches the tenant's upstream; a managed one that runs is used as it is, another is started for the time.
    ///
    /// # Errors
    /// A sentence: it cannot be reached.
    pub async fn open(config: &Config, tenant: &Tenant) -> Result<Self, Failure> {
        let mut upstream =
            config.upstream(&tenant.upstream).ok_or_else(|| format!("no upstream '{}'", tenant.upstream))?.clone();
        if let Endpoint::Managed { dir, .. } = &upstream.endpoint
            && let Some(socket) = managed::running(dir).await
        {
            upstream.endpoint = Endpoint::Unix(socket);
        }
        let (target, child) = server::upstream(&upstream, None).await?;
        // Shown on a terminal only.
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3}%  {msg}") {
            bar.set_style(style);
        }
        Ok(Self { control: Control::new(target.clone()), target, dbs: tenant.dbs(), bar, child })
    }

    /// The connection to ask by.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Says beside the bar what has been done so far.
    pub fn say(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Gives every name that `pattern` matches to `page`, database by database, and says how many databases there were. A name may come
    /// twice; one that is there from beginning to end comes.
    ///
    /// # Errors
    /// The first of the upstream or of `page`.
    pub async fn each(
        &self,
        pattern: &[u8],
        mut page: impl AsyncFnMut(u32, Vec<Vec<u8>>) -> Result<(), UpstreamError>,
    ) -> Result<u32, UpstreamError> {
        self.bar.set_length(u64::from(self.dbs.end - self.dbs.start) << BITS);
        let mut walked = 0;
        for db in self.dbs.clone() {
            let mut cursor = 0u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(PAGE);
                let (next, names): (u64, Vec<Vec<u8>>) = match self.control.query(db, &scan).await {
                    // The settings may name more databases than the upstream has: those hold nothing.
                    Err(UpstreamError::Unreachable(why)) if walked > 0 && why.contains("DB index is out of range") => {
                        return Ok(walked);
                    }
                    reply => reply?,
                };
                if !names.is_empty() {
                    page(db, names).await?;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
                self.bar.set_position((u64::from(walked) << BITS) + (cursor.reverse_bits() >> (u64::BITS - BITS)));
            }
            walked += 1;
        }
        Ok(walked)
    }

    /// Stops what was started; `Err` names the upstream.
    pub async fn close<T>(self, result: Result<T, UpstreamError>) -> Result<T, String> {
        self.bar.finish_and_clear();
        if let Some(child) = self.child {
            let (stop, stopping) = tokio::sync::watch::channel(true);
            child.supervise(stopping).await;
            drop(stop);
        }
        result.map_err(|e| format!("{}: {}", self.target, e.to_line()))
    }
}

/// `1 key`, `2 keys`.
pub fn counted(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
