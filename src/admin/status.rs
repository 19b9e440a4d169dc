//! `/api/status`: what the page shows, as JSON. Its fields are described in docs/operations.md.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::body::Bytes;
use serde::Serialize;

use super::{
    Board, Phase, exposition,
    history::{self, History, Rates, SiteSums, Track},
    process::Process,
};
use crate::{
    command::ROWS,
    metrics::{self, KINDS, TenantSums, lock},
    tenant::Tenant,
    upstream::{Logins, Site},
};

/// Slow commands that are shown, of all tenants together.
const SLOW: usize = 100;

#[derive(Debug, Serialize)]
struct Status<'a> {
    version: &'static str,
    phase: &'static str,
    ready: bool,
    /// What is amiss, a sentence each.
    amiss: Vec<String>,
    uptime_seconds: u64,
    /// Seconds since 1970.
    now: u64,
    workers: usize,
    process: ProcessView,
    clients: Clients,
    totals: Totals<'a>,
    tenants: Vec<Row<'a>>,
    upstreams: Vec<Upstream>,
    slowlog: Vec<Slow>,
    jobs: Vec<Job>,
    settings: Vec<Setting<'a>>,
}

#[derive(Debug, Serialize)]
struct ProcessView {
    cpu_seconds: Option<f64>,
    /// Share of one processor, in the last second.
    cpu: Option<f64>,
    resident_bytes: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Clients {
    connected: usize,
    max: usize,
    blocked: usize,
    subscribed: usize,
    accepted_total: u64,
    rejected_total: u64,
}

#[derive(Debug, Default, Serialize)]
struct Rate {
    commands_per_second: f64,
    errors_per_second: f64,
    throttled_per_second: f64,
    bytes_in_per_second: f64,
    bytes_out_per_second: f64,
    /// Of commands answered in the last ten to twenty seconds; null: none.
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Totals<'a> {
    #[serde(flatten)]
    rate: Rate,
    commands_total: u64,
    errors_total: u64,
    reloads: [u64; 2],
    logins: [u64; 3],
    history: Charts<'a>,
}

/// A point a second, the newest last.
#[derive(Debug, Serialize)]
struct Charts<'a> {
    commands_per_second: &'a VecDeque<u32>,
    errors_per_second: &'a VecDeque<u32>,
    p99_microseconds: &'a VecDeque<u32>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    name: String,
    upstream: String,
    #[serde(flatten)]
    rate: Rate,
    connections: u32,
    in_flight: u64,
    commands_total: u64,
    errors_total: u64,
    /// Those that there were, by kind.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    errors: HashMap<&'static str, u64>,
    limits: Limits,
    /// Of the reads that the tier may answer, the share that it did, since the start; absent: it may answer none.
    #[serde(skip_serializing_if = "Option::is_none")]
    tier_hit_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier_live: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier_resting: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier_bytes: Option<u64>,
    /// Commands per second, a point a second, the newest last.
    #[serde(skip_serializing_if = "Option::is_none")]
    chart: Option<&'a VecDeque<u32>>,
}

/// 0: none.
#[derive(Debug, Serialize)]
struct Limits {
    ops_per_second: u64,
    bytes_per_second: u64,
    connections: u32,
}

#[derive(Debug, Serialize)]
struct Upstream {
    name: String,
    address: String,
    reachable: bool,
    ping_seconds: Option<f64>,
    server: String,
    version: String,
    wall: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    wall_error: Option<String>,
    /// Commands that the upstream's ACL does not confine, and only rewriting does.
    beyond_the_wall: Vec<&'static str>,
    connections: HashMap<&'static str, u64>,
    connections_open: usize,
    connections_max: usize,
    connects_failed_total: u64,
    connections_broken_total: u64,
    in_flight: u64,
    latency_p50_seconds: Option<f64>,
    latency_p99_seconds: Option<f64>,
    queue_p99_seconds: Option<f64>,
    tenants: usize,
}

#[derive(Debug, Serialize)]
struct Slow {
    tenant: String,
    /// Seconds since 1970.
    at: u64,
    seconds: f64,
    command: &'static str,
    arguments: u32,
}

#[derive(Debug, Serialize)]
struct Job {
    tenant: String,
    command: &'static str,
    db: u32,
    seconds: f64,
    keys: u64,
    /// How far it has come, 0 to 1.
    progress: f64,
}

#[derive(Debug, Serialize)]
struct Setting<'a> {
    key: &'a str,
    value: &'a str,
    from: &'a str,
}

/// The JSON, made once a sample however many ask.
pub(super) fn render(board: &Board) -> Bytes {
    let mut history = lock(&board.history);
    let samples = history.samples;
    if let Some((at, rendered)) = &history.rendered
        && *at == samples
        && board.phase() == Phase::Serving
    {
        return rendered.clone();
    }
    let rendered = Bytes::from(json(board, &history));
    history.rendered = Some((samples, rendered.clone()));
    rendered
}

fn json(board: &Board, history: &History) -> Vec<u8> {
    let (shared, metrics) = (&board.shared, &board.shared.metrics);
    let sums = metrics.tenants();
    let directory = shared.directory.load();
    let all = directory.all();
    let settings = board.settings.load();
    let (ready, amiss) = board.readiness();
    let (accepted_total, rejected_total) =
        metrics.workers().iter().fold((0, 0), |(a, r), w| (a + w.accepted.get(), r + w.rejected.get()));
    let (blocked, subscribed) = shared.clients.tally();
    let process = Process::look();
    let mut tenants: Vec<Row<'_>> =
        all.iter().map(|tenant| row(board, tenant, sums.get(&*tenant.name), history)).collect();
    tenants.sort_by(|a, b| a.name.cmp(&b.name));
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        phase: match board.phase() {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Draining => "draining",
        },
        ready,
        amiss,
        uptime_seconds: shared.started.elapsed().as_secs(),
        now: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        workers: board.workers,
        process: ProcessView {
            cpu_seconds: process.cpu_seconds,
            cpu: history.processor.map(|share| rounded(share, 1e4)),
            resident_bytes: process.resident,
            open_fds: process.open_fds,
            max_fds: process.max_fds,
        },
        clients: Clients {
            connected: shared.clients.len(),
            max: shared.limits.load().clients,
            blocked,
            subscribed,
            accepted_total,
            rejected_total,
        },
        totals: Totals {
            rate: rate(&history.all),
            commands_total: sums.values().map(|sums| sums.calls).sum(),
            errors_total: sums.values().map(TenantSums::errors).sum(),
            reloads: [0, 1].map(|i| metrics.reloads[i].load(Ordering::Relaxed)),
            logins: [0, 1, 2].map(|i| metrics.logins[i].load(Ordering::Relaxed)),
            history: Charts {
                commands_per_second: &history.commands,
                errors_per_second: &history.errors,
                p99_microseconds: &history.p99,
            },
        },
        upstreams: upstreams(board, history, &all),
        tenants,
        slowlog: slow(board, &all),
        jobs: jobs(board),
        settings: settings
            .0
            .iter()
            .map(|line| Setting { key: &line.key, value: &line.value, from: &line.from })
            .collect(),
    };
    // Maps have text keys and numbers are finite: this does not fail.
    serde_json::to_vec(&status).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}").into_bytes())
}

#[expect(clippy::cast_precision_loss, reason = "a ratio is shown with few digits")]
fn row<'a>(board: &Board, tenant: &Tenant, sums: Option<&TenantSums>, history: &'a History) -> Row<'a> {
    let tier = exposition::tier(&board.shared, tenant);
    let track = history.tenants.get(&*tenant.name);
    let errors = sums.map(|sums| KINDS.iter().zip(sums.errors).filter(|(_, n)| *n > 0).map(|(kind, n)| (*kind, n)));
    Row {
        name: tenant.name.clone(),
        upstream: tenant.site.name.clone(),
        rate: track.map(rate).unwrap_or_default(),
        connections: tenant.connections.load(Ordering::Relaxed),
        in_flight: sums.map_or(0, |sums| sums.in_flight),
        commands_total: sums.map_or(0, |sums| sums.calls),
        errors_total: sums.map_or(0, TenantSums::errors),
        errors: errors.map(Iterator::collect).unwrap_or_default(),
        limits: Limits {
            ops_per_second: tenant.limits.ops.per_second(),
            bytes_per_second: tenant.limits.bytes.per_second(),
            connections: tenant.limits.connections.load(Ordering::Relaxed),
        },
        tier_hit_ratio: tier.map(|exposition::TierState { stats, .. }| {
            rounded(stats.hits as f64 / (stats.hits + stats.misses).max(1) as f64, 1e4)
        }),
        tier_live: tier.map(|tier| tier.live),
        tier_resting: tier.map(|tier| tier.resting),
        tier_bytes: tier.map(|tier| tier.stats.bytes),
        // An idle tenant's would be a row of zeros, and there may be a thousand.
        chart: track.map(Track::chart).filter(|chart| chart.iter().any(|n| *n > 0)),
    }
}

fn rate(track: &Track) -> Rate {
    let Rates { commands, errors, throttled, bytes_in, bytes_out } = track.rates();
    Rate {
        commands_per_second: rounded(commands, 10.0),
        errors_per_second: rounded(errors, 10.0),
        throttled_per_second: rounded(throttled, 10.0),
        bytes_in_per_second: bytes_in.round(),
        bytes_out_per_second: bytes_out.round(),
        p50_seconds: track.quantile(0.5).map(micros),
        p99_seconds: track.quantile(0.99).map(micros),
    }
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

/// To a microsecond.
fn micros(seconds: f64) -> f64 {
    rounded(seconds, 1e6)
}

fn upstreams(board: &Board, history: &History, tenants: &[Arc<Tenant>]) -> Vec<Upstream> {
    let mut sums = history::sites(&board.shared.metrics);
    let sites = board.sites.load();
    let view = |site: &Arc<Site>| {
        let facts = site.facts.load();
        let track = history.sites.get(&*site.name);
        let sums: SiteSums = sums.remove(&*site.name).unwrap_or_default();
        let logins = site.logins.load();
        let known = |text: &String| if facts.probed { text.clone() } else { String::new() };
        Upstream {
            name: site.name.clone(),
            address: site.target.to_string(),
            reachable: site.pulse.rate().is_some(),
            ping_seconds: site.pulse.rate().map(|ping| micros(ping.as_secs_f64())),
            server: known(&facts.server),
            version: known(&facts.version),
            wall: exposition::wall(&logins),
            wall_error: match &**logins {
                Logins::None(why) => Some(why.clone()),
                _ => None,
            },
            beyond_the_wall: site.holes.load().as_ref().map(|holes| holes.blind.clone()).unwrap_or_default(),
            connections: history::CONNECTIONS.iter().copied().zip(sums.connections).collect(),
            connections_open: site.open.count(),
            connections_max: site.open.limit(),
            connects_failed_total: sums.connect_failed,
            connections_broken_total: sums.broken,
            in_flight: sums.in_flight,
            latency_p50_seconds: track.and_then(|t| t.latency(0.5)).map(micros),
            latency_p99_seconds: track.and_then(|t| t.latency(0.99)).map(micros),
            queue_p99_seconds: track.and_then(|t| t.queue(0.99)).map(micros),
            tenants: tenants.iter().filter(|tenant| Arc::ptr_eq(&tenant.site, site)).count(),
        }
    };
    sites.iter().map(view).collect()
}

fn slow(board: &Board, tenants: &[Arc<Tenant>]) -> Vec<Slow> {
    let names: HashMap<u32, &str> = tenants.iter().map(|tenant| (tenant.id, &*tenant.name)).collect();
    let newest = board.shared.slowlog.newest_of_all(SLOW);
    newest
        .into_iter()
        .map(|(tenant, entry)| Slow {
            tenant: names.get(&tenant).map_or_else(String::new, |name| (*name).to_owned()),
            at: entry.at,
            seconds: micros(entry.took.as_secs_f64()),
            command: ROWS.get(usize::from(entry.row)).map_or("", |row| row.name),
            arguments: entry.argc,
        })
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "thousandths")]
fn jobs(board: &Board) -> Vec<Job> {
    let view = |job: &Arc<metrics::Job>| Job {
        tenant: job.tenant.clone(),
        command: job.command,
        db: job.db,
        seconds: rounded(Duration::as_secs_f64(&job.since.elapsed()), 1e3),
        keys: job.keys.load(Ordering::Relaxed),
        progress: job.thousandths.load(Ordering::Relaxed) as f64 / 1e3,
    };
    board.shared.metrics.jobs.running().iter().map(view).collect()
}
