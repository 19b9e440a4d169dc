//! `/metrics`: the families as OpenMetrics text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
//!
//! Labels are bounded: a tenant, an upstream, a command of the table, and words that this program knows. Commands by tenant are too many for a
//! scrape; LATENCY HISTOGRAM tells a tenant its own.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{
    Board,
    families::{self as f, Family, Kind},
    history::{self, SiteSums},
    process::Process,
};
use crate::{
    command::ROWS,
    metrics::{
        COARSE, Command, FINE, KINDS, LOGIN_RESULTS, RELOAD_RESULTS, TenantSums, coarse_bound, fine_bound, lock,
    },
    tier::Stats,
    upstream::Logins,
    worker::Shared,
};

/// Histograms are written with a bucket per power of two from 2^this microseconds (64 µs) …
const FIRST: usize = 6;
/// … to 2^this (4.2 s), and one for what is beyond.
const LAST: usize = 22;

/// Everything at one moment.
#[derive(Debug)]
struct Scrape {
    ready: bool,
    workers: usize,
    /// Seconds since 1970.
    started: f64,
    process: Process,
    counts: Counts,
    clients: usize,
    clients_max: usize,
    tenants: Vec<Tenant>,
    commands: BTreeMap<u16, Command>,
    sites: Vec<Site>,
}

#[derive(Debug, Default)]
struct Counts {
    reloads: [u64; 2],
    loaded: u64,
    logins: [u64; 3],
    log_lost: u64,
    accepted: u64,
    rejected: u64,
    unannounced: u64,
    held_back: u64,
    withheld: u64,
    scoped_running: usize,
    scoped_steps: u64,
    scoped_keys: u64,
    scoped_deleted: u64,
}

#[derive(Debug)]
struct Tenant {
    name: Arc<str>,
    upstream: String,
    sums: Option<TenantSums>,
    connections: u32,
    connections_limit: u32,
    ops_limit: u64,
    tier: Option<TierState>,
}

#[derive(Debug)]
struct Site {
    name: String,
    up: Option<Duration>,
    server: String,
    version: String,
    wall: &'static str,
    max: usize,
    sums: SiteSums,
}

/// The states of [`f::WALL`].
pub(super) const WALLS: [&str; 4] = ["stands", "none", "missing", "own_logins"];

/// Which of [`WALLS`] it is.
pub(super) fn wall(logins: &Logins) -> &'static str {
    match logins {
        Logins::Wall => WALLS[0],
        Logins::Own => WALLS[1],
        Logins::None(_) => WALLS[2],
        Logins::Users(_) => WALLS[3],
    }
}

/// What is known of a tenant's tier.
#[derive(Clone, Copy, Debug)]
pub(super) struct TierState {
    /// Whether it answers.
    pub live: bool,
    /// Whether it rests.
    pub resting: bool,
    /// What it counted.
    pub stats: Stats,
}

/// None: the settings have no tier for the tenant.
pub(super) fn tier(shared: &Shared, tenant: &crate::tenant::Tenant) -> Option<TierState> {
    let lease = &tenant.tier;
    lease.asked().then(|| TierState {
        live: lease.tracks(shared.tier.now()),
        resting: lease.resting(),
        stats: shared.tier.stats(tenant.id, lease),
    })
}

/// The text.
pub(super) fn render(board: &Board) -> String {
    let mut registry = Registry::with_prefix("keyfence");
    registry.register_collector(Box::new(Once(Mutex::new(Some(gather(board))))));
    let mut out = String::with_capacity(64 * 1024);
    // Writing to a String does not fail.
    let _ = text::encode(&mut out, &registry);
    out
}

fn gather(board: &Board) -> Scrape {
    let (shared, metrics) = (&board.shared, &board.shared.metrics);
    let mut counts = Counts {
        reloads: [0, 1].map(|i| metrics.reloads[i].load(Ordering::Relaxed)),
        loaded: metrics.loaded_at.load(Ordering::Relaxed),
        logins: [0, 1, 2].map(|i| metrics.logins[i].load(Ordering::Relaxed)),
        log_lost: metrics.log_lines_lost.load(Ordering::Relaxed),
        scoped_running: metrics.jobs.len(),
        ..Counts::default()
    };
    for worker in metrics.workers() {
        counts.accepted += worker.accepted.get();
        counts.rejected += worker.rejected.get();
        counts.unannounced += worker.unannounced.get();
        counts.held_back += worker.held_back.get();
        counts.withheld += worker.withheld.get();
        counts.scoped_steps += worker.scoped_steps.get();
        counts.scoped_keys += worker.scoped_keys.get();
        counts.scoped_deleted += worker.scoped_deleted.get();
    }
    let mut sums = metrics.tenants();
    let mut tenants: Vec<Tenant> = shared
        .directory
        .load()
        .all()
        .iter()
        .map(|tenant| Tenant {
            sums: sums.remove(&*tenant.name),
            name: Arc::from(&*tenant.name),
            upstream: tenant.site.name.clone(),
            connections: tenant.connections.load(Ordering::Relaxed),
            connections_limit: tenant.limits.connections.load(Ordering::Relaxed),
            ops_limit: tenant.limits.ops.per_second(),
            tier: tier(shared, tenant),
        })
        .collect();
    // Connections before their login, and tenants without counts of their own.
    for name in ["", crate::metrics::OTHERS] {
        if let Some(found) = sums.remove(name) {
            let (name, sums) = (Arc::from(name), Some(found));
            let (connections, connections_limit, ops_limit) = (0, 0, 0);
            let (upstream, tier) = (String::new(), None);
            tenants.push(Tenant { name, upstream, sums, connections, connections_limit, ops_limit, tier });
        }
    }
    tenants.sort_by(|a, b| a.name.cmp(&b.name));
    let mut site_sums: HashMap<_, _> = history::sites(metrics);
    let sites = board.sites.load();
    let sites = sites.iter().map(|site| {
        let facts = site.facts.load();
        Site {
            name: site.name.clone(),
            up: site.pulse.rate(),
            server: if facts.probed { facts.server.clone() } else { String::new() },
            version: if facts.probed { facts.version.clone() } else { String::new() },
            wall: wall(&site.logins.load()),
            max: site.open.limit(),
            sums: site_sums.remove(&*site.name).unwrap_or_default(),
        }
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Scrape {
        ready: board.readiness().0,
        workers: board.workers,
        started: now.saturating_sub(shared.started.elapsed()).as_secs_f64().round(),
        process: Process::look(),
        counts,
        clients: shared.clients.len(),
        clients_max: shared.limits.load().clients,
        tenants,
        commands: metrics.commands(),
        sites: sites.collect(),
    }
}

/// A scrape on its way into the encoder, which wants something that could be encoded again.
#[derive(Debug)]
struct Once(Mutex<Option<Scrape>>);

impl Collector for Once {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        lock(&self.0).take().map_or(Ok(()), |scrape| scrape.write(&mut encoder))
    }
}

type Labels<'a, const N: usize> = [(&'a str, &'a str); N];

impl Scrape {
    fn write(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let c = &self.counts;
        let mut info = family(out, &f::BUILD)?;
        info.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        gauge(out, &f::STARTED, &[([], self.started)])?;
        gauge(out, &f::READY, &[([], f64::from(u8::from(self.ready)))])?;
        gauge(out, &f::WORKERS, &[([], of(self.workers))])?;
        let process = &self.process;
        if let Some(seconds) = process.cpu_seconds {
            family(out, &f::CPU)?.encode_counter::<Labels<'_, 0>, f64, f64>(&seconds, None)?;
        }
        for (row, value) in
            [(&f::RESIDENT, process.resident), (&f::OPEN_FDS, process.open_fds), (&f::MAX_FDS, process.max_fds)]
        {
            if let Some(value) = value {
                gauge(out, row, &[([], of(value))])?;
            }
        }
        counter(out, &f::RELOADS, RELOAD_RESULTS.iter().zip(c.reloads).map(|(result, n)| ([("result", *result)], n)))?;
        gauge(out, &f::LOADED, &[([], of(c.loaded))])?;
        counter(out, &f::LOGINS, LOGIN_RESULTS.iter().zip(c.logins).map(|(result, n)| ([("result", *result)], n)))?;
        counter(out, &f::LOG_LOST, [([], c.log_lost)])?;
        let arrived = [("accepted", c.accepted), ("rejected", c.rejected), ("no_proxy_header", c.unannounced)];
        counter(out, &f::ACCEPTED, arrived.map(|(result, n)| ([("result", result)], n)))?;
        gauge(out, &f::CLIENTS, &[([], of(self.clients))])?;
        gauge(out, &f::CLIENTS_MAX, &[([], of(self.clients_max))])?;
        counter(out, &f::HELD_BACK, [([], c.held_back)])?;
        self.tenants(out)?;
        self.commands(out)?;
        self.sites(out)?;
        counter(out, &f::WITHHELD, [([], c.withheld)])?;
        gauge(out, &f::SCOPED_RUNNING, &[([], of(c.scoped_running))])?;
        counter(out, &f::SCOPED_STEPS, [([], c.scoped_steps)])?;
        counter(out, &f::SCOPED_KEYS, [([], c.scoped_keys)])?;
        counter(out, &f::SCOPED_DELETED, [([], c.scoped_deleted)])
    }

    fn tenants(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = |t: &'_ Tenant| -> [(&'static str, String); 2] {
            [("tenant", t.name.to_string()), ("upstream", t.upstream.clone())]
        };
        let all: Vec<_> = self.tenants.iter().map(|t| (labels(t), t)).collect();
        let counted = || all.iter().filter_map(|(labels, t)| Some((borrowed(labels), t.sums.as_ref()?)));
        let present = || all.iter().filter(|(_, t)| !t.upstream.is_empty()).map(|(l, t)| (borrowed(l), *t));
        counter(out, &f::COMMANDS, counted().map(|(labels, sums)| (labels, sums.calls)))?;
        let mut durations = family(out, &f::DURATION)?;
        for (labels, sums) in counted().filter(|(_, sums)| sums.took_micros > 0 || sums.took.iter().any(|n| *n > 0)) {
            fine(&mut durations, labels, &sums.took, sums.took_micros)?;
        }
        let errors = counted().flat_map(|([tenant, upstream], sums)| {
            let kinds = KINDS.iter().zip(sums.errors).filter(|(_, n)| *n > 0);
            kinds.map(move |(kind, n)| ([tenant, upstream, ("kind", *kind)], n))
        });
        counter(out, &f::ERRORS, errors)?;
        counter(out, &f::RECEIVED, counted().map(|(labels, sums)| (labels, sums.bytes_in)))?;
        counter(out, &f::SENT, counted().map(|(labels, sums)| (labels, sums.bytes_out)))?;
        let gauges = |out: &mut DescriptorEncoder<'_>, row, value: &dyn Fn(&Tenant) -> Option<u64>| {
            let samples: Vec<_> = present().filter_map(|(labels, t)| Some((labels, of(value(t)?)))).collect();
            gauge(out, row, &samples)
        };
        gauges(out, &f::CONNECTIONS, &|t| Some(t.connections.into()))?;
        gauges(out, &f::CONNECTIONS_LIMIT, &|t| Some(u64::from(t.connections_limit)).filter(|n| *n > 0))?;
        gauges(out, &f::OPS_LIMIT, &|t| Some(t.ops_limit).filter(|n| *n > 0))?;
        gauges(out, &f::IN_FLIGHT, &|t| Some(t.sums.as_ref().map_or(0, |sums| sums.in_flight)))?;
        gauges(out, &f::TIER_LIVE, &|t| t.tier.map(|tier| u64::from(tier.live)))?;
        gauges(out, &f::TIER_RESTING, &|t| t.tier.map(|tier| u64::from(tier.resting)))?;
        let counters = |out: &mut DescriptorEncoder<'_>, row, value: &dyn Fn(&Stats) -> u64| {
            let samples = present().filter_map(|(labels, t)| Some((labels, value(&t.tier.as_ref()?.stats))));
            counter(out, row, samples.collect::<Vec<_>>())
        };
        counters(out, &f::TIER_HITS, &|stats| stats.hits)?;
        counters(out, &f::TIER_MISSES, &|stats| stats.misses)?;
        counters(out, &f::TIER_FILLS, &|stats| stats.fills)?;
        counters(out, &f::TIER_INVALIDATIONS, &|stats| stats.invalidations)?;
        counters(out, &f::TIER_EVICTIONS, &|stats| stats.evictions)?;
        gauges(out, &f::TIER_SIZE, &|t| t.tier.map(|tier| tier.stats.bytes))?;
        gauges(out, &f::TIER_ENTRIES, &|t| t.tier.map(|tier| tier.stats.entries))
    }

    fn commands(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let name = |row: &u16| ROWS.get(usize::from(*row)).map_or_else(|| "other".into(), |row| row.lower_name());
        let named: Vec<(String, &Command)> = self.commands.iter().map(|(row, command)| (name(row), command)).collect();
        counter(out, &f::CALLS, named.iter().map(|(name, command)| ([("command", &**name)], command.calls)))?;
        let mut durations = family(out, &f::CALL_DURATION)?;
        for (name, command) in named.iter().filter(|(_, command)| command.took.iter().any(|n| *n > 0)) {
            coarse(&mut durations, [("command", name)], &command.took, command.micros)?;
        }
        Ok(())
    }

    fn sites(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of_sites = |out: &mut DescriptorEncoder<'_>, row, value: &dyn Fn(&Site) -> Option<f64>| {
            let samples: Vec<_> =
                self.sites.iter().filter_map(|site| Some(([("upstream", &*site.name)], value(site)?))).collect();
            gauge(out, row, &samples)
        };
        of_sites(out, &f::UP, &|site| Some(f64::from(u8::from(site.up.is_some()))))?;
        of_sites(out, &f::PING, &|site| site.up.map(|ping| ping.as_secs_f64()))?;
        let mut info = family(out, &f::SERVER)?;
        for site in self.sites.iter().filter(|site| !site.version.is_empty()) {
            let labels: Labels<'_, 3> =
                [("upstream", &site.name), ("server", &site.server), ("version", &site.version)];
            info.encode_info(&labels)?;
        }
        let walls = self.sites.iter().flat_map(|site| {
            WALLS.map(|state| ([("upstream", &*site.name), ("state", state)], f64::from(u8::from(state == site.wall))))
        });
        gauge(out, &f::WALL, &walls.collect::<Vec<_>>())?;
        let connections = self.sites.iter().flat_map(|site| {
            let kinds = history::CONNECTIONS.iter().zip(site.sums.connections);
            kinds.map(|(kind, n)| ([("upstream", &*site.name), ("kind", *kind)], of(n)))
        });
        gauge(out, &f::UPSTREAM_CONNECTIONS, &connections.collect::<Vec<_>>())?;
        of_sites(out, &f::UPSTREAM_CONNECTIONS_MAX, &|site| Some(of(site.max)))?;
        let connects = self.sites.iter().flat_map(|site| {
            let labels = |result| [("upstream", &*site.name), ("result", result)];
            [(labels("ok"), site.sums.connected), (labels("failed"), site.sums.connect_failed)]
        });
        counter(out, &f::CONNECTS, connects)?;
        let counters = |out: &mut DescriptorEncoder<'_>, row, value: &dyn Fn(&SiteSums) -> u64| {
            counter(out, row, self.sites.iter().map(|site| ([("upstream", &*site.name)], value(&site.sums))))
        };
        counters(out, &f::BROKEN, &|sums| sums.broken)?;
        of_sites(out, &f::UPSTREAM_IN_FLIGHT, &|site| Some(of(site.sums.in_flight)))?;
        for (row, queue) in [(&f::UPSTREAM_DURATION, false), (&f::QUEUE_DURATION, true)] {
            let mut durations = family(out, row)?;
            for Site { name, sums, .. } in &self.sites {
                let (counts, micros) =
                    if queue { (&sums.queue, sums.queue_micros) } else { (&sums.latency, sums.latency_micros) };
                fine(&mut durations, [("upstream", name)], counts, micros)?;
            }
        }
        counters(out, &f::UPSTREAM_RECEIVED, &|sums| sums.bytes_in)?;
        counters(out, &f::UPSTREAM_SENT, &|sums| sums.bytes_out)
    }
}

fn borrowed<'a, const N: usize>(labels: &'a [(&'static str, String); N]) -> Labels<'a, N> {
    std::array::from_fn(|i| (labels[i].0, &*labels[i].1))
}

/// As a gauge has it.
#[expect(clippy::cast_precision_loss, reason = "nothing here comes near 2^53")]
fn of<N: TryInto<u64>>(n: N) -> f64 {
    n.try_into().unwrap_or(u64::MAX) as f64
}

fn family<'a>(out: &'a mut DescriptorEncoder<'_>, row: &'static Family) -> Result<MetricEncoder<'a>, fmt::Error> {
    const SECONDS: &Unit = &Unit::Seconds;
    const BYTES: &Unit = &Unit::Bytes;
    let unit = match row.unit {
        Some("seconds") => Some(SECONDS),
        Some("bytes") => Some(BYTES),
        _ => None,
    };
    let kind = match row.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
        Kind::Info => MetricType::Info,
    };
    out.encode_descriptor(row.name, row.help, unit, kind)
}

fn counter<'a, const N: usize>(
    out: &mut DescriptorEncoder<'_>,
    row: &'static Family,
    samples: impl IntoIterator<Item = (Labels<'a, N>, u64)>,
) -> fmt::Result {
    let mut encoder = family(out, row)?;
    for (labels, value) in samples {
        if N == 0 {
            encoder.encode_counter::<Labels<'_, 0>, u64, f64>(&value, None)?;
        } else {
            encoder.encode_family(&labels)?.encode_counter::<Labels<'_, 0>, u64, f64>(&value, None)?;
        }
    }
    Ok(())
}

fn gauge<const N: usize>(
    out: &mut DescriptorEncoder<'_>,
    row: &'static Family,
    samples: &[(Labels<'_, N>, f64)],
) -> fmt::Result {
    let mut encoder = family(out, row)?;
    for (labels, value) in samples {
        if N == 0 {
            encoder.encode_gauge(value)?;
        } else {
            encoder.encode_family(labels)?.encode_gauge(value)?;
        }
    }
    Ok(())
}

fn fine<const N: usize>(
    encoder: &mut MetricEncoder<'_>,
    labels: Labels<'_, N>,
    counts: &[u64; FINE],
    micros: u64,
) -> fmt::Result {
    histogram(encoder, labels, counts.iter().enumerate().map(|(i, n)| (fine_bound(i), *n)), micros)
}

fn coarse<const N: usize>(
    encoder: &mut MetricEncoder<'_>,
    labels: Labels<'_, N>,
    counts: &[u64; COARSE],
    micros: u64,
) -> fmt::Result {
    histogram(encoder, labels, counts.iter().enumerate().map(|(i, n)| (coarse_bound(i), *n)), micros)
}

/// `counts`: bounds in microseconds, and what is below each and not below the one before.
fn histogram<const N: usize>(
    encoder: &mut MetricEncoder<'_>,
    labels: Labels<'_, N>,
    counts: impl Iterator<Item = (u64, u64)>,
    micros: u64,
) -> fmt::Result {
    let mut buckets: [(f64, u64); LAST - FIRST + 2] =
        std::array::from_fn(|i| if FIRST + i > LAST { (f64::INFINITY, 0) } else { (of(1u64 << (FIRST + i)) / 1e6, 0) });
    let mut all = 0;
    for (bound, n) in counts {
        // The power of two at or above the bound.
        let power = usize::try_from(bound.next_power_of_two().trailing_zeros()).unwrap_or(LAST);
        buckets[power.clamp(FIRST, LAST + 1) - FIRST].1 += n;
        all += n;
    }
    encoder.encode_family(&labels)?.encode_histogram::<Labels<'_, 0>>(of(micros) / 1e6, all, &buckets, None)
}
