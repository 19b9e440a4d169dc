//! INFO as a tenant may see it: the fields that clients parse (clients.md), about the tenant's own world; nothing of the upstream's load,
//! files, addresses or other tenants.

use std::{
    fmt::Write as _,
    sync::atomic::Ordering,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

use crate::{resp::Value, session::Session, tier::Stats};

/// What INFO shows, gathered before the part that takes time.
#[derive(Debug)]
pub struct View {
    server: String,
    version: String,
    policy: String,
    uptime: u64,
    port: u16,
    run_id: String,
    clients: usize,
    blocked: usize,
    max_clients: usize,
    db: u32,
    /// Whether it answers, and whether it rests. None: the settings have no tier for the tenant.
    tier: Option<(bool, bool, Stats)>,
}

/// The sections, in Redis's order.
const SECTIONS: [&str; 11] = [
    "server",
    "clients",
    "memory",
    "persistence",
    "stats",
    "replication",
    "cpu",
    "modules",
    "cluster",
    "keyspace",
    "keyfence",
];

impl View {
    /// Of a session's tenant.
    pub fn of(s: &Session) -> Self {
        let shared = &s.worker.shared;
        let own = shared.clients.of(s.tenant.id);
        let (server, version, policy) = s.facts(|f| (f.server.clone(), f.version.clone(), f.maxmemory_policy.clone()));
        Self {
            server,
            version,
            policy,
            uptime: shared.started.elapsed().as_secs(),
            port: shared.port,
            run_id: shared.run_id.clone(),
            clients: own.len(),
            blocked: own.iter().filter(|c| c.blocked.load(Ordering::Relaxed)).count(),
            max_clients: shared.limits.load().clients,
            db: s.db,
            tier: s.tenant.tier.asked().then(|| {
                let live = s.tenant.tier.tracks(shared.tier.now());
                (live, s.tenant.tier.resting(), shared.tier.stats(s.tenant.id, &s.tenant.tier))
            }),
        }
    }

    /// Whether the keys must be counted for it.
    pub fn wants_keyspace(&self, sections: &[String]) -> bool {
        wanted(sections, "keyspace")
    }

    /// The reply; `keys` of the selected database, if they could be counted in time.
    pub fn render(&self, sections: &[String], keys: Option<u64>) -> Value {
        let mut out = String::new();
        for section in SECTIONS {
            if !wanted(sections, section) {
                continue;
            }
            if !out.is_empty() {
                out.push_str("\r\n");
            }
            let _ = write!(out, "# {}\r\n", title(section));
            out.push_str(&self.section(section, keys));
        }
        Value::Verbatim(out)
    }

    fn section(&self, section: &str, keys: Option<u64>) -> String {
        match section {
            "server" => {
                let valkey = if self.server == "valkey" { format!("server_name:valkey\r\nvalkey_version:{}\r\n", self.version) } else { String::new() };
                // Valkey itself shows this version of Redis to clients that look for one.
                let redis = if valkey.is_empty() { &self.version } else { "7.2.4" };
                format!(
                    "redis_version:{redis}\r\n{valkey}redis_mode:standalone\r\nos:keyfence\r\narch_bits:64\r\nmultiplexing_api:epoll\r\nrun_id:{}\r\ntcp_port:{}\r\nuptime_in_seconds:{}\r\nuptime_in_days:{}\r\nkeyfence_version:{}\r\n",
                    self.run_id,
                    self.port,
                    self.uptime,
                    self.uptime / 86400,
                    env!("CARGO_PKG_VERSION"),
                )
            }
            "clients" => format!(
                "connected_clients:{}\r\nmaxclients:{}\r\nblocked_clients:{}\r\ntracking_clients:0\r\n",
                self.clients, self.max_clients, self.blocked
            ),
            "memory" => format!("used_memory:0\r\nused_memory_human:0B\r\nmaxmemory:0\r\nmaxmemory_human:0B\r\nmaxmemory_policy:{}\r\n", self.policy),
            "persistence" => "loading:0\r\nasync_loading:0\r\nrdb_changes_since_last_save:0\r\nrdb_bgsave_in_progress:0\r\nrdb_last_bgsave_status:ok\r\naof_enabled:0\r\naof_rewrite_in_progress:0\r\n".into(),
            "stats" => "total_connections_received:0\r\ntotal_commands_processed:0\r\ninstantaneous_ops_per_sec:0\r\npubsub_channels:0\r\npubsub_patterns:0\r\n".into(),
            "replication" => "role:master\r\nconnected_slaves:0\r\nmaster_repl_offset:0\r\n".into(),
            "cpu" => "used_cpu_sys:0.000000\r\nused_cpu_user:0.000000\r\n".into(),
            "cluster" => "cluster_enabled:0\r\n".into(),
            "keyspace" => match keys {
                Some(n) if n > 0 => format!("db{}:keys={n},expires=0,avg_ttl=0\r\n", self.db),
                _ => String::new(),
            },
            "keyfence" => match &self.tier {
                None => "tier:off\r\n".into(),
                Some((live, resting, Stats { hits, misses, fills, invalidations, evictions, bytes, entries })) => format!(
                    "tier:on\r\ntier_live:{}\r\ntier_resting:{}\r\ntier_hits:{hits}\r\ntier_misses:{misses}\r\ntier_fills:{fills}\r\ntier_invalidations:{invalidations}\r\ntier_evictions:{evictions}\r\ntier_bytes:{bytes}\r\ntier_entries:{entries}\r\n",
                    u8::from(*live),
                    u8::from(*resting)
                ),
            },
            _ => String::new(),
        }
    }
}

fn wanted(sections: &[String], section: &str) -> bool {
    sections.is_empty() || sections.iter().any(|s| s == section || matches!(&**s, "all" | "default" | "everything"))
}

fn title(section: &str) -> String {
    if section == "cpu" {
        return "CPU".into();
    }
    let mut title = section.to_owned();
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    title
}

/// The wall-clock second of a moment, for LASTSAVE.
pub(super) fn unix_time(at: Instant) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.saturating_sub(at.elapsed()).as_secs()).unwrap_or(i64::MAX)
}
