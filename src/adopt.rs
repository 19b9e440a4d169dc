//! `keyfence adopt`: keys that were there before keyfence become a tenant's, by a new name that begins with its prefix.
//!
//! RENAMENX moves each at once, with its time to live, and never over another key. Keys that begin with a tenant's prefix are somebody's
//! already and stay.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
};

use futures_util::future::join_all;

use crate::{
    config::{AuthMode, Config, Tenant},
    error::UpstreamError,
    server::Failure,
    walk::{Report, Walk, counted},
};

/// How many names a note lists.
const LISTED: usize = 10;

/// What became of a key.
enum Fate {
    Moved,
    /// There is a key of the new name.
    Taken,
    /// It expired or was deleted meanwhile, or has been moved already.
    Gone,
}

/// Moves the keys that `pattern` matches into the tenant's prefix, in the tenant's databases; with `dry_run`, only counts them.
///
/// # Errors
/// A sentence: the upstream cannot be reached or fails. Doing it again goes on where it ended.
pub async fn adopt(config: &Config, tenant: &Tenant, pattern: &[u8], dry_run: bool) -> Result<Report, Failure> {
    let prefix = tenant.prefix.as_bytes();
    let walk = Walk::open(config, tenant).await?;
    let (mut moved, mut owned) = (0u64, 0u64);
    let mut taken: Vec<Vec<u8>> = Vec::new();
    let mut collisions = 0u64;
    // A walk may come across a name twice: what stays where it is must not be counted twice. Hashes of the
    // names are enough to tell.
    let (mut seen, state) = (HashSet::new(), RandomState::new());
    let walked = walk
        .each(pattern, async |db, mut names| {
            names.retain(|name| {
                let new = seen.insert(state.hash_one((db, &name)));
                let somebodys = is_owned(config, tenant, name);
                owned += u64::from(new && somebodys);
                new && !somebodys
            });
            let fates = join_all(names.iter().map(|name| give(&walk, db, name, prefix, dry_run))).await;
            for (name, fate) in names.iter().zip(fates) {
                match fate? {
                    Fate::Moved => moved += 1,
                    Fate::Gone => {}
                    Fate::Taken => {
                        collisions += 1;
                        if taken.len() < LISTED {
                            taken.push(name.clone());
                        }
                    }
                }
            }
            walk.say(format!("{} {}", counted(moved, "key"), if dry_run { "to move" } else { "moved" }));
            Ok(())
        })
        .await;
    walk.close(walked).await.map_err(|e| format!("{e}; {} moved before", counted(moved, "key")))?;
    let summary = format!(
        "{} {} '{}', {} left since the new name is taken, {} that a tenant has already",
        counted(moved, "key"),
        if dry_run { "would move to tenant" } else { "moved to tenant" },
        tenant.name,
        collisions,
        owned
    );
    let mut notes: Vec<String> = taken
        .iter()
        .map(|name| format!("left: {0}, since there is {1}{0}", name.escape_ascii(), prefix.escape_ascii()))
        .collect();
    let rest = collisions - taken.len() as u64;
    if rest > 0 {
        notes.push(format!("and {rest} more"));
    }
    Ok(Report { summary, notes })
}

/// Whether a key begins with the prefix of a tenant.
fn is_owned(config: &Config, tenant: &Tenant, name: &[u8]) -> bool {
    name.starts_with(tenant.prefix.as_bytes())
        || config.tenants.iter().any(|t| !t.prefix.is_none() && name.starts_with(t.prefix.as_bytes()))
        || config.auth.mode == AuthMode::Upstream && config.auth.upstream_prefix.claims(name)
}

async fn give(walk: &Walk, db: u32, name: &[u8], prefix: &[u8], dry_run: bool) -> Result<Fate, UpstreamError> {
    let new = [prefix, name].concat();
    if dry_run {
        let there: bool = walk.control().query(db, redis::cmd("EXISTS").arg(new)).await?;
        return Ok(if there { Fate::Taken } else { Fate::Moved });
    }
    match walk.control().query::<bool>(db, redis::cmd("RENAMENX").arg(name).arg(new)).await {
        Ok(true) => Ok(Fate::Moved),
        Ok(false) => Ok(Fate::Taken),
        Err(UpstreamError::Unreachable(why)) if why.contains("no such key") => Ok(Fate::Gone),
        Err(error) => Err(error),
    }
}
