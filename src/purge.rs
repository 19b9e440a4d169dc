//! `keyfence purge`: deletes everything a tenant has, in all its databases.

use crate::{
    config::{Config, Tenant},
    glob,
    walk::{Report, Walk, counted},
};

/// Deletes every key of the tenant that is there from beginning to end.
///
/// # Errors
/// A sentence: the upstream cannot be reached or fails. Doing it again goes on where it ended.
pub async fn purge(config: &Config, tenant: &Tenant) -> Result<Report, String> {
    let prefix = tenant.prefix.as_bytes();
    let walk = Walk::open(config, tenant).await?;
    let mut deleted = 0u64;
    let walked = walk
        .each(&[&glob::escape(prefix), &b"*"[..]].concat(), async |db, mut names| {
            // The pattern matches no others; deleting one of them could not be undone.
            names.retain(|name| name.starts_with(prefix));
            if names.is_empty() {
                return Ok(());
            }
            deleted += walk.control().query::<u64>(db, redis::cmd("UNLINK").arg(names)).await?;
            walk.say(format!("{} deleted", counted(deleted, "key")));
            Ok(())
        })
        .await;
    let walked = walk.close(walked).await.map_err(|e| format!("{e}; {} deleted before", counted(deleted, "key")))?;
    let summary = format!(
        "{} of tenant '{}' deleted from {}",
        counted(deleted, "key"),
        tenant.name,
        counted(walked.into(), "database")
    );
    Ok(Report { summary, notes: Vec::new() })
}
