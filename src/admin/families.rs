//! The metrics as data: one row each. `/metrics` is made of these, and docs/operations.md and the dashboard are compared with them.

/// What kind of metric it is, as OpenMetrics has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows; its samples end in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Buckets, their sum and their count.
    Histogram,
    /// Always 1; what it says is in its labels. Its sample ends in `_info`.
    Info,
}

/// One metric.
#[derive(Debug)]
pub struct Family {
    /// Its name, without `keyfence_` and without what follows from the unit and the kind.
    pub name: &'static str,
    /// `seconds` or `bytes`, at the end of its name.
    pub unit: Option<&'static str>,
    /// Its kind.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

impl Family {
    /// The names of its samples.
    pub fn samples(&self) -> Vec<String> {
        let unit = self.unit.map(|unit| format!("_{unit}")).unwrap_or_default();
        let base = format!("keyfence_{}{unit}", self.name);
        let ends: &[&str] = match self.kind {
            Counter => &["_total"],
            Gauge => &[""],
            Histogram => &["_bucket", "_sum", "_count"],
            Info => &["_info"],
        };
        ends.iter().map(|end| format!("{base}{end}")).collect()
    }
}

const fn row(
    name: &'static str,
    unit: Option<&'static str>,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family { name, unit, kind, labels, help }
}

use Kind::{Counter, Gauge, Histogram, Info};

const BYTES: Option<&str> = Some("bytes");
const SECONDS: Option<&str> = Some("seconds");
const TENANT: &[&str] = &["tenant", "upstream"];
const UPSTREAM: &[&str] = &["upstream"];

macro_rules! families {
    ($($id:ident = $name:literal, $unit:expr, $kind:expr, $labels:expr, $help:literal;)*) => {
        $(#[doc = $help] pub const $id: Family = row($name, $unit, $kind, $labels, $help);)*
        /// All of them, in the order in which they are written.
        pub const FAMILIES: &[Family] = &[$($id),*];
    };
}

families! {
    BUILD = "build", None, Info, &["version"], "The version of keyfence";
    STARTED = "start_time", SECONDS, Gauge, &[], "When the process began to serve, since 1970";
    READY = "ready", None, Gauge, &[], "1: new clients should be sent here, as /readyz says";
    WORKERS = "workers", None, Gauge, &[], "Worker threads";
    CPU = "process_cpu", SECONDS, Counter, &[], "Processor time of all threads";
    RESIDENT = "process_resident_memory", BYTES, Gauge, &[], "Memory of the process that is in RAM";
    OPEN_FDS = "process_open_fds", None, Gauge, &[], "Open file descriptors";
    MAX_FDS = "process_max_fds", None, Gauge, &[], "How many file descriptors the process may have";
    RELOADS = "reloads", None, Counter, &["result"], "Times that the settings were read again: ok, failed";
    LOADED = "settings_loaded", SECONDS, Gauge, &[], "When the settings in force were put into force, since 1970";
    LOGINS = "logins", None, Counter, &["result"], "Logins: accepted, refused, unchecked because the upstream could not be asked";
    LOG_LOST = "log_lines_lost", None, Counter, &[], "Lines of the log that could not be written";
    ACCEPTED = "client_connections", None, Counter, &["result"], "Client connections: accepted, rejected, no_proxy_header (of a proxy in proxy_protocol, without a proper header)";
    CLIENTS = "clients", None, Gauge, &[], "Client connections now";
    CLIENTS_MAX = "clients_max", None, Gauge, &[], "max_clients";
    HELD_BACK = "held_back", None, Counter, &[], "Times that a client was not read from, because the upstream or the client itself was behind";
    COMMANDS = "commands", None, Counter, TENANT, "Commands that clients of a tenant asked for";
    DURATION = "command_duration", SECONDS, Histogram, TENANT, "From a request's being read to its reply's being handed over, of commands that were answered";
    ERRORS = "errors", None, Counter, &["tenant", "upstream", "kind"], "Errors that clients were told, by their first word";
    RECEIVED = "received", BYTES, Counter, TENANT, "Bytes read from clients";
    SENT = "sent", BYTES, Counter, TENANT, "Bytes written to clients";
    CONNECTIONS = "tenant_connections", None, Gauge, TENANT, "Client connections of a tenant";
    CONNECTIONS_LIMIT = "tenant_connections_limit", None, Gauge, TENANT, "limits.connections; absent: none";
    OPS_LIMIT = "tenant_ops_limit", None, Gauge, TENANT, "limits.ops_per_second; absent: none";
    IN_FLIGHT = "in_flight", None, Gauge, TENANT, "Replies that upstreams owe a tenant, at the last look, which is at most a second ago";
    TIER_LIVE = "tier_live", None, Gauge, TENANT, "1: the tier answers for this tenant, 0: it may and does not just now; absent: it may not";
    TIER_RESTING = "tier_resting", None, Gauge, TENANT, "1: the tier rests for this tenant, because far more is changed than is asked for again, so it does not answer";
    TIER_HITS = "tier_hits", None, Counter, TENANT, "Reads that the tier answered";
    TIER_MISSES = "tier_misses", None, Counter, TENANT, "Reads that it could have answered, and that went upstream";
    TIER_FILLS = "tier_fills", None, Counter, TENANT, "Replies that it kept";
    TIER_INVALIDATIONS = "tier_invalidations", None, Counter, TENANT, "Keys that the upstream said have changed";
    TIER_EVICTIONS = "tier_evictions", None, Counter, TENANT, "Replies that it gave up for room";
    TIER_SIZE = "tier_size", BYTES, Gauge, TENANT, "What it keeps";
    TIER_ENTRIES = "tier_entries", None, Gauge, TENANT, "How many replies it keeps";
    CALLS = "command_calls", None, Counter, &["command"], "Commands that clients of all tenants asked for; other: what keyfence does not know";
    CALL_DURATION = "command_call_duration", SECONDS, Histogram, &["command"], "As keyfence_command_duration_seconds, by command";
    UP = "upstream_up", None, Gauge, UPSTREAM, "1: the upstream answered when it was last asked, which is at most some seconds ago";
    PING = "upstream_ping", SECONDS, Gauge, UPSTREAM, "How long it took to answer";
    SERVER = "upstream_server", None, Info, &["upstream", "server", "version"], "What the upstream is";
    WALL = "upstream_wall", None, Gauge, &["upstream", "state"], "1 for the state of the second wall: stands, none, missing, own_logins";
    UPSTREAM_CONNECTIONS = "upstream_connections", None, Gauge, &["upstream", "kind"], "Connections to the upstream, by what they are for";
    UPSTREAM_CONNECTIONS_MAX = "upstream_connections_max", None, Gauge, UPSTREAM, "max_connections";
    CONNECTS = "upstream_connects", None, Counter, &["upstream", "result"], "Attempts to connect: ok, failed";
    BROKEN = "upstream_connections_broken", None, Counter, UPSTREAM, "Connections that ended while somebody waited on them";
    UPSTREAM_IN_FLIGHT = "upstream_in_flight", None, Gauge, UPSTREAM, "Replies that the upstream owes, at the last look";
    UPSTREAM_DURATION = "upstream_duration", SECONDS, Histogram, UPSTREAM, "From a request's being written to its reply's being read";
    QUEUE_DURATION = "queue_duration", SECONDS, Histogram, UPSTREAM, "From a request's being read from its client to its being written upstream";
    UPSTREAM_RECEIVED = "upstream_received", BYTES, Counter, UPSTREAM, "Bytes read from the upstream on the data path";
    UPSTREAM_SENT = "upstream_sent", BYTES, Counter, UPSTREAM, "Bytes written to the upstream on the data path";
    WITHHELD = "replies_withheld", None, Counter, &[], "Replies withheld because they held a name outside the tenant's prefix: one is one too many";
    SCOPED_RUNNING = "scoped_running", None, Gauge, &[], "Scoped work in progress: KEYS, SCAN, DBSIZE, FLUSHDB and the like";
    SCOPED_STEPS = "scoped_steps", None, Counter, &[], "Pages of scoped work";
    SCOPED_KEYS = "scoped_keys", None, Counter, &[], "Names that scoped work came upon";
    SCOPED_DELETED = "scoped_deleted", None, Counter, &[], "Keys that scoped work deleted";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = HashSet::new();
        for family in FAMILIES {
            assert!(seen.insert(family.name), "{} twice", family.name);
            assert!(family.name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'), "{}", family.name);
            assert!(!family.help.is_empty() && !family.help.contains('\n') && !family.help.ends_with('.'));
            for end in ["_total", "_seconds", "_bytes", "_info", "_bucket", "_count", "_sum"] {
                assert!(!family.name.ends_with(end), "{}", family.name);
            }
            assert!(family.kind != Histogram || family.unit == SECONDS);
        }
    }
}
