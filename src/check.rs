//! `keyfence check`: asks the upstream what it can do and says what will and will not work.

use std::fmt::Write as _;

use crate::{
    command::ROWS,
    config::{AclWall, Config, Endpoint, Scripts},
    upstream::{
        Target, control,
        wall::{Holes, probe_holes},
    },
};

/// The report.
///
/// # Errors
/// A sentence, when the upstream cannot be asked.
pub async fn report(config: &Config, target: &Target) -> Result<String, String> {
    let facts = control::probe(target).await.map_err(|e| format!("{target}: {}", e.to_line()))?;
    let mut out = String::new();
    let mut row = |name: &str, verdict: &str, detail: String| {
        let _ = writeln!(out, "{name:<22} {verdict:<5} {detail}");
    };
    let served = ROWS.iter().filter(|r| r.served()).count();
    let forwarded = ROWS.iter().filter(|r| r.forwardable()).count();
    let managed = if matches!(config.upstream.endpoint, Endpoint::Managed { .. }) { " (managed)" } else { "" };
    row(
        "settings",
        "ok",
        format!(
            "prefix '{}', databases from {}",
            String::from_utf8_lossy(config.key_prefix.as_bytes()),
            config.upstream.db
        ),
    );
    row("upstream", "ok", format!("{target}{managed}: {} {}", facts.server, facts.version));
    match &*facts.mode {
        "standalone" => row("topology", "ok", "standalone".into()),
        mode => {
            row("topology", "no", format!("{mode}: not served by this version, keys of other nodes are out of reach"));
        }
    }
    row(
        "RESP3 clients",
        if at_least(&facts.version, 6) { "ok" } else { "no" },
        "needs an upstream of version 6 or later".into(),
    );
    row("commands", "ok", format!("{served} of {} rows of the table are served", ROWS.len()));
    row(
        "  upstream lacks",
        "",
        format!(
            "{} of the {forwarded} that are forwarded; clients get its own words for an unknown command",
            facts.lacking()
        ),
    );
    if !facts.unknown.is_empty() {
        row(
            "  not in the table",
            "",
            format!("{} commands of the upstream are refused: {}", facts.unknown.len(), first(&facts.unknown)),
        );
    }
    row("databases", "ok", format!("{} upstream", facts.databases));
    match facts.sanitizes_dumps {
        Some(true) => row("RESTORE", "ok", "the upstream checks payloads (sanitize-dump-payload)".into()),
        Some(false) => {
            row("RESTORE", "warn", "the upstream does not check payloads: set sanitize-dump-payload yes".into());
        }
        None => row("RESTORE", "warn", "the upstream does not say whether it checks payloads".into()),
    }
    let holes = wall(config.upstream.acl_wall, target, &mut row).await;
    let apart = holes.as_ref().map(Holes::scripts_apart);
    row(
        "pub/sub",
        if at_least(&facts.version, 6) { "ok" } else { "no" },
        "inside the namespace; needs an upstream of version 6 or later".into(),
    );
    match facts.keyspace_events.as_deref() {
        Some("") => row(
            "  keyspace events",
            "off",
            "notify-keyspace-events is empty upstream: subscriptions to them are accepted, and nothing comes".into(),
        ),
        Some(which) => row("  keyspace events", "ok", format!("notify-keyspace-events is '{which}' upstream")),
        None => row("  keyspace events", "", "the upstream does not say whether it sends any".into()),
    }
    scripts(config, apart, &mut row);
    if apart == Some(true) && dies_of_empty_errors(&facts.server, &facts.version) {
        row(
            "  error({})",
            "warn",
            format!(
                "a script may end {} {} with it, unless the distribution has mended that: it cannot be tried",
                facts.server, facts.version
            ),
        );
    }
    functions(holes.as_ref(), &mut row);
    match control::try_tracking(target).await {
        Ok(()) if config.tier.enabled => {
            let tenants = config.tenants.iter().filter(|t| t.tier).count();
            let whose = if config.tenants.is_empty() { "everybody".into() } else { format!("{tenants} tenants") };
            row("tier", "ok", format!("the upstream tells of changes (CLIENT TRACKING); values are kept for {whose}"));
        }
        Ok(()) => {
            row("tier", "off", "the upstream tells of changes (CLIENT TRACKING): it could be on (tier.enabled)".into());
        }
        Err(why) => row("tier", "no", format!("nothing is kept for this upstream: {why}")),
    }
    Ok(out)
}

/// Whether tenants may run scripts there; `apart` is whether a wall stands and scripts cannot alter one another, if it does.
fn scripts(config: &Config, apart: Option<bool>, row: &mut impl FnMut(&str, &str, String)) {
    let on: Vec<&str> = config.tenants.iter().filter(|t| t.scripts == Scripts::On).map(|t| t.name.as_str()).collect();
    match apart {
        Some(true) => row("scripts", "ok", "EVAL, EVALSHA and SCRIPT, confined by the ACL wall".into()),
        Some(false) => row(
            "scripts",
            "no",
            "scripts can alter one another on this upstream, or that could not be tried (CVE-2025-46818)".into(),
        ),
        None => row("scripts", "no", "there is no ACL wall that would confine them".into()),
    }
    if apart != Some(true) && !on.is_empty() {
        row("  all the same for", "warn", format!("{}: scripts = \"on\", at your own risk", on.join(", ")));
    }
}

/// Whether tenants may call functions there.
fn functions(holes: Option<&Holes>, row: &mut impl FnMut(&str, &str, String)) {
    let Some(holes) = holes.filter(|holes| holes.scripts_apart()) else {
        return row("functions", "no", "where scripts are on, at the most".into());
    };
    match &holes.function_tables {
        Some(tables) if tables.is_empty() => {
            row("functions", "ok", "FUNCTION, FCALL and FCALL_RO, each tenant with its own libraries".into());
        }
        Some(tables) => {
            row("functions", "no", format!("libraries can reach others' on this upstream by {}", tables.join(", ")));
        }
        None => row(
            "functions",
            "no",
            "the upstream has none, or keyfence's user may not run MULTI, FCALL and FUNCTION LOAD and DELETE".into(),
        ),
    }
}

/// What was found where a wall stands; `None`: none does.
async fn wall(policy: AclWall, target: &Target, row: &mut impl FnMut(&str, &str, String)) -> Option<Holes> {
    if policy == AclWall::Off {
        row("ACL wall", "off", "acl_wall = off: the rewriting is the only wall".into());
        return None;
    }
    let holes = match probe_holes(target).await {
        Ok(holes) => holes,
        Err(error) => {
            row("ACL wall", "no", error.to_string());
            return None;
        }
    };
    if let Some(why) = &holes.refused {
        let verdict = if policy == AclWall::Require { "no" } else { "warn" };
        row("ACL wall", verdict, format!("the upstream does not let keyfence make users: {why}"));
        return None;
    }
    row("ACL wall", "ok", "the upstream lets keyfence make users".into());
    if !holes.blind.is_empty() {
        row(
            "  beyond the ACL",
            "warn",
            format!("the upstream does not confine {}: held by the rewriting alone", holes.blind.join(", ")),
        );
    }
    if holes.default_user_open == Some(true) {
        row(
            "  default user",
            "warn",
            "the upstream serves connections that do not log in: ACL SETUSER default off, or give it a password".into(),
        );
    }
    match &holes.script_tables {
        Some(tables) if !tables.is_empty() => row(
            "  script tables",
            "warn",
            format!(
                "scripts share {} and may alter it for each other: update the upstream (CVE-2025-46818)",
                tables.join(", ")
            ),
        ),
        Some(_) => row("  script tables", "ok", "scripts cannot alter what others' scripts use".into()),
        None => row("  script tables", "", "keyfence's user may not run scripts there, so this was not tried".into()),
    }
    Some(holes)
}

fn at_least(version: &str, major: u32) -> bool {
    version.split('.').next().and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n >= major)
}

/// Whether a server of this version may end when a script raises an empty table (<https://github.com/redis/redis/pull/14163>,
/// <https://github.com/valkey-io/valkey/pull/2229>), as far as its number tells. Redis 7.4.6 and Valkey 7.2.11 name the fix in their notes.
fn dies_of_empty_errors(server: &str, version: &str) -> bool {
    let mut parts = version.split('.').map_while(|n| n.parse::<u32>().ok());
    let mut part = || parts.next().unwrap_or(0);
    let version = (part(), part(), part());
    match server {
        "redis" => ((7, 0, 0)..(7, 4, 6)).contains(&version) || ((8, 0, 0)..(8, 0, 4)).contains(&version),
        "valkey" => version < (7, 2, 11) || ((8, 0, 0)..(8, 1, 4)).contains(&version),
        _ => false,
    }
}

fn first(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown}, …") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_dies_of_an_empty_error_is_told_by_its_version() {
        for (server, version, dies) in [
            ("redis", "6.2.20", false),
            ("redis", "7.0.15", true),
            ("redis", "7.4.5", true),
            ("redis", "7.4.6", false),
            ("redis", "8.0.3", true),
            ("redis", "8.2.0", false),
            ("valkey", "7.2.10", true),
            ("valkey", "7.2.11", false),
            ("valkey", "8.1.2", true),
            ("valkey", "9.0.0", false),
            ("other", "7.0.0", false),
        ] {
            assert_eq!(dies_of_empty_errors(server, version), dies, "{server} {version}");
        }
    }
}
