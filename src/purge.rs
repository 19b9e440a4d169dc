//! `keyfence purge`: deletes everything a tenant has: its keys, in all its databases, and its libraries of functions.

use crate::{
    config::{Config, Tenant},
    error::UpstreamError,
    glob,
    scripts::functions::manage,
    server::Failure,
    walk::{Report, Walk, counted},
};

/// Deletes every key of the tenant that is there from beginning to end, and its libraries.
///
/// # Errors
/// A sentence: the upstream cannot be reached or fails. Doing it again goes on where it ended.
pub async fn purge(config: &Config, tenant: &Tenant) -> Result<Report, Failure> {
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
    let libraries = match walked {
        Ok(_) => manage::purge(walk.control(), prefix).await,
        Err(_) => Ok(0),
    };
    let walked = walk.close(walked).await.map_err(|e| format!("{e}; {} deleted before", counted(deleted, "key")))?;
    let mut summary = format!(
        "{} of tenant '{}' deleted from {}",
        counted(deleted, "key"),
        tenant.name,
        counted(walked.into(), "database")
    );
    let mut notes = Vec::new();
    match libraries {
        Ok(0) => {}
        Ok(1) => summary.push_str(", and 1 library of functions"),
        Ok(n) => summary.push_str(&format!(", and {n} libraries of functions")),
        // Servers before 7.0 have none.
        Err(UpstreamError::Refused(text)) if text.starts_with("ERR unknown command") => {}
        Err(error) => notes.push(format!("libraries of functions may be left: {}", error.to_line())),
    }
    Ok(Report { summary, notes })
}
