//! The last minutes, sampled once a second: rates, quantiles of the last ten to twenty seconds, and what the small charts show.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::time::Instant;

use super::process::Process;
use crate::metrics::{FINE, Metrics, TenantSums, quantile};

/// Samples that a chart of one tenant shows.
const POINTS: usize = 60;
/// Samples that the charts of all together show.
const ALL_POINTS: usize = 180;
/// Samples over which a rate is taken.
const RATE_OVER: usize = 5;
/// Samples after which a window of quantiles moves on.
const WINDOW: u64 = 10;

/// Counts of one tenant, or of all, at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    calls: u64,
    errors: u64,
    throttled: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl Point {
    fn of(sums: &TenantSums) -> Self {
        let throttled = crate::metrics::KINDS.iter().position(|kind| *kind == "throttled");
        Self {
            calls: sums.calls,
            errors: sums.errors(),
            throttled: throttled.map_or(0, |at| sums.errors[at]),
            bytes_in: sums.bytes_in,
            bytes_out: sums.bytes_out,
        }
    }
}

/// Per second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    pub(super) commands: f64,
    pub(super) errors: f64,
    pub(super) throttled: f64,
    pub(super) bytes_in: f64,
    pub(super) bytes_out: f64,
}

/// Waits as of some seconds ago, to be taken off those of now.
#[derive(Clone, Debug)]
struct Window {
    before: Box<[u64; FINE]>,
    since: Box<[u64; FINE]>,
    now: Box<[u64; FINE]>,
}

impl Default for Window {
    fn default() -> Self {
        let none = || Box::new([0; FINE]);
        Self { before: none(), since: none(), now: none() }
    }
}

impl Window {
    fn take(&mut self, counts: &[u64; FINE], moves: bool) {
        if moves {
            self.before.copy_from_slice(&*self.since);
            self.since.copy_from_slice(&*self.now);
        }
        self.now.copy_from_slice(counts);
    }

    /// In seconds.
    fn quantile(&self, q: f64) -> Option<f64> {
        difference(&self.now, &self.before, q)
    }
}

/// The quantile of what was counted from `before` to `now`, in seconds.
fn difference(now: &[u64; FINE], before: &[u64; FINE], q: f64) -> Option<f64> {
    let mut counts = *now;
    counts.iter_mut().zip(before).for_each(|(now, before)| *now = now.saturating_sub(*before));
    quantile(&counts, q).map(|micros| micros / 1e6)
}

/// One tenant's last minute.
#[derive(Debug, Default)]
pub(super) struct Track {
    points: VecDeque<(Instant, Point)>,
    window: Window,
    chart: VecDeque<u32>,
}

impl Track {
    fn take(&mut self, now: Instant, point: Point, counts: &[u64; FINE], moves: bool) {
        self.points.push_back((now, point));
        if self.points.len() > RATE_OVER + 1 {
            self.points.pop_front();
        }
        self.window.take(counts, moves);
        let last = self.last_second();
        push(&mut self.chart, whole(last), POINTS);
    }

    /// Commands per second between the last two samples.
    fn last_second(&self) -> f64 {
        let Some(at) = self.points.len().checked_sub(2) else { return 0.0 };
        let ((before, was), (now, is)) = (self.points[at], self.points[at + 1]);
        per_second(is.calls, was.calls, (now - before).as_secs_f64())
    }

    /// Over the last seconds.
    pub(super) fn rates(&self) -> Rates {
        let (Some((before, was)), Some((now, is))) = (self.points.front(), self.points.back()) else {
            return Rates::default();
        };
        let over = (*now - *before).as_secs_f64();
        let rate = |is: u64, was: u64| per_second(is, was, over);
        Rates {
            commands: rate(is.calls, was.calls),
            errors: rate(is.errors, was.errors),
            throttled: rate(is.throttled, was.throttled),
            bytes_in: rate(is.bytes_in, was.bytes_in),
            bytes_out: rate(is.bytes_out, was.bytes_out),
        }
    }

    /// Of the last seconds' waits, in seconds.
    pub(super) fn quantile(&self, q: f64) -> Option<f64> {
        self.window.quantile(q)
    }

    /// Commands per second, a point a second, the newest last.
    pub(super) fn chart(&self) -> &VecDeque<u32> {
        &self.chart
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates are shown with few digits")]
fn per_second(is: u64, was: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { is.saturating_sub(was) as f64 / seconds } else { 0.0 }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast from a float saturates")]
fn whole(rate: f64) -> u32 {
    rate.round() as u32
}

fn push<T>(chart: &mut VecDeque<T>, point: T, most: usize) {
    chart.push_back(point);
    if chart.len() > most {
        chart.pop_front();
    }
}

/// One upstream's waits.
#[derive(Debug, Default)]
pub(super) struct SiteTrack {
    latency: Window,
    queue: Window,
}

impl SiteTrack {
    /// From writing to reading, in seconds.
    pub(super) fn latency(&self, q: f64) -> Option<f64> {
        self.latency.quantile(q)
    }

    /// From a client's request to its being written, in seconds.
    pub(super) fn queue(&self, q: f64) -> Option<f64> {
        self.queue.quantile(q)
    }
}

/// What workers counted of an upstream together.
#[derive(Debug)]
pub(super) struct SiteSums {
    pub(super) latency: [u64; FINE],
    pub(super) latency_micros: u64,
    pub(super) queue: [u64; FINE],
    pub(super) queue_micros: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) connected: u64,
    pub(super) connect_failed: u64,
    pub(super) broken: u64,
    /// By [`CONNECTIONS`].
    pub(super) connections: [u64; CONNECTIONS.len()],
    pub(super) in_flight: u64,
}

/// Upstream connections by what they are for.
pub(super) const CONNECTIONS: [&str; 5] = ["shared", "dedicated", "spare", "subscription", "control"];

impl Default for SiteSums {
    fn default() -> Self {
        Self {
            latency: [0; FINE],
            latency_micros: 0,
            queue: [0; FINE],
            queue_micros: 0,
            bytes_in: 0,
            bytes_out: 0,
            connected: 0,
            connect_failed: 0,
            broken: 0,
            connections: [0; CONNECTIONS.len()],
            in_flight: 0,
        }
    }
}

/// What all workers counted of every upstream, by name.
pub(super) fn sites(metrics: &Metrics) -> HashMap<Arc<str>, SiteSums> {
    let mut all: HashMap<Arc<str>, SiteSums> = HashMap::new();
    for (name, cells) in metrics.workers().iter().flat_map(|worker| worker.sites()) {
        let sums = all.entry(name).or_default();
        cells.latency.sum(&mut sums.latency, &mut sums.latency_micros);
        cells.queue.sum(&mut sums.queue, &mut sums.queue_micros);
        sums.bytes_in += cells.bytes_in.get();
        sums.bytes_out += cells.bytes_out.get();
        sums.connected += cells.connected.get();
        sums.connect_failed += cells.connect_failed.get();
        sums.broken += cells.broken.get();
        sums.in_flight += cells.in_flight.get();
        let kinds = [&cells.shared, &cells.dedicated, &cells.spare, &cells.listening, &cells.control];
        sums.connections.iter_mut().zip(kinds).for_each(|(sum, count)| *sum += count.get());
    }
    all
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct History {
    /// How many samples were taken.
    pub(super) samples: u64,
    pub(super) tenants: HashMap<Arc<str>, Track>,
    pub(super) sites: HashMap<Arc<str>, SiteTrack>,
    /// All tenants together.
    pub(super) all: Track,
    /// Commands and errors per second, and the 99th percentile of waits in microseconds, a point a second, the newest last.
    pub(super) commands: VecDeque<u32>,
    pub(super) errors: VecDeque<u32>,
    pub(super) p99: VecDeque<u32>,
    /// The share of one processor that was used, in the last second.
    pub(super) processor: Option<f64>,
    cpu: Option<(Instant, f64)>,
    waits: Option<Box<[u64; FINE]>>,
    last: Point,
    sampled: Option<Instant>,
    /// What was made of the last sample, once asked for.
    pub(super) rendered: Option<(u64, hyper::body::Bytes)>,
}

impl History {
    /// Takes a sample, at `now`.
    pub(super) fn take(
        &mut self,
        now: Instant,
        sums: &HashMap<Arc<str>, TenantSums>,
        sites: &HashMap<Arc<str>, SiteSums>,
    ) {
        let before = self.sampled.replace(now);
        self.samples += 1;
        let moves = self.samples.is_multiple_of(WINDOW);
        self.tenants.retain(|name, _| sums.contains_key(name));
        let (mut all, mut waits) = (Point::default(), [0; FINE]);
        for (name, sums) in sums {
            let point = Point::of(sums);
            all.calls += point.calls;
            all.errors += point.errors;
            all.throttled += point.throttled;
            all.bytes_in += point.bytes_in;
            all.bytes_out += point.bytes_out;
            waits.iter_mut().zip(sums.took).for_each(|(all, n)| *all += n);
            let track = self.tenants.entry(Arc::clone(name)).or_default();
            if let Some(before) = before.filter(|_| track.points.is_empty()) {
                // It had done nothing yet when the others were last looked at.
                track.points.push_back((before, Point::default()));
            }
            track.take(now, point, &sums.took, moves);
        }
        for (name, sums) in sites {
            let track = self.sites.entry(Arc::clone(name)).or_default();
            track.latency.take(&sums.latency, moves);
            track.queue.take(&sums.queue, moves);
        }
        self.all.take(now, all, &waits, moves);
        push(&mut self.commands, whole(self.all.last_second()), ALL_POINTS);
        push(
            &mut self.errors,
            u32::try_from(all.errors.saturating_sub(self.last.errors)).unwrap_or(u32::MAX),
            ALL_POINTS,
        );
        self.last = all;
        let p99 = self.waits.as_ref().and_then(|before| difference(&waits, before, 0.99));
        push(&mut self.p99, whole(p99.unwrap_or(0.0) * 1e6), ALL_POINTS);
        self.waits = Some(Box::new(waits));
        let cpu = Process::look().cpu_seconds;
        if let (Some((then, before)), Some(cpu)) = (self.cpu, cpu) {
            self.processor = Some((cpu - before) / (now - then).as_secs_f64().max(1e-3));
        }
        self.cpu = cpu.map(|cpu| (now, cpu));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn rates_and_quantiles_are_those_of_the_last_seconds() {
        let mut history = History::default();
        let mut sums: HashMap<Arc<str>, TenantSums> = HashMap::new();
        let name: Arc<str> = Arc::from("acme");
        sums.insert(Arc::clone(&name), TenantSums::default());
        let began = Instant::now();
        for second in 0..40 {
            let acme = sums.get_mut(&name).expect("there");
            // Slow at first, quick later.
            acme.took[if second < 15 { 60 } else { 20 }] += 100;
            acme.calls += 100;
            acme.bytes_in += 1000;
            history.take(began + Duration::from_secs(second), &sums, &HashMap::new());
        }
        let track = &history.tenants[&name];
        assert!((track.rates().commands - 100.0).abs() < 1e-6 && (track.rates().bytes_in - 1000.0).abs() < 1e-6);
        assert_eq!(track.chart().len(), 40);
        let p99 = track.quantile(0.99).expect("there were some");
        assert!(p99 < crate::metrics::fine_bound(20) as f64 / 1e6, "{p99}: what is long past does not count");
        assert_eq!(history.commands.back(), Some(&100));
        history.take(began + Duration::from_secs(40), &HashMap::new(), &HashMap::new());
        assert!(history.tenants.is_empty());
    }
}
