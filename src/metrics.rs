//! What keyfence counts of itself. Every worker has cells of its own, which only its thread writes; whoever asks adds them up.
//!
//! ```text
//!   worker 0: Meter ─► tenants, upstreams ─┐
//!   worker 1: Meter ─► tenants, upstreams ─┼─► Metrics ─► admin (scrape, status), LATENCY
//!   …                                      ┘
//! ```
//!
//! Nothing on the path of a command is locked, shared between workers, or a clock of its own: times are those of the worker's coarse
//! clock, which looks once per read.

pub mod access;
mod cells;
mod histogram;
mod jobs;
mod kinds;
mod tenant;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

pub use cells::{Count, SiteCells, WorkerCells};
pub use histogram::{COARSE, Coarse, FINE, Fine, coarse_bound, fine_bound, quantile};
pub use jobs::{Job, JobGuard, Jobs};
pub use kinds::{ErrorKind, KINDS};
pub use tenant::{Command, CommandCells, OTHER, TenantCells, TenantSums};

/// Tenants with cells of their own; those who come later share [`OTHERS`]: what is counted must stay bounded where anybody whom an
/// upstream knows may log in.
const TENANTS: usize = 4096;
/// The name of what tenants share that have no cells of their own.
pub const OTHERS: &str = "(others)";

/// Everything that is counted in this process.
#[derive(Debug, Default)]
pub struct Metrics {
    workers: Mutex<Vec<Arc<WorkerCells>>>,
    /// Logins by how they ended: accepted, refused, not to be checked.
    pub logins: [AtomicU64; 3],
    /// Reloads that took effect, and that did not.
    pub reloads: [AtomicU64; 2],
    /// When the settings were last put into force, in seconds since 1970.
    pub loaded_at: AtomicU64,
    /// Scoped work in progress.
    pub jobs: Arc<Jobs>,
    /// Lines of the log that could not be written.
    pub log_lines_lost: Arc<AtomicU64>,
    /// One of so many commands is written to the log; 0: none.
    access_sample: u32,
}

/// How a login ended, as [`Metrics::logins`] has it.
pub const LOGIN_RESULTS: [&str; 3] = ["accepted", "refused", "unchecked"];
/// How a reload ended, as [`Metrics::reloads`] has it.
pub const RELOAD_RESULTS: [&str; 2] = ["ok", "failed"];

impl Metrics {
    /// Nothing is counted yet. One of `access_sample` commands is written to the log (0: none); what that cannot write is counted elsewhere.
    pub fn new(access_sample: u32, log_lines_lost: Arc<AtomicU64>) -> Self {
        Self { access_sample, log_lines_lost, ..Self::default() }
    }

    /// A login ended as `LOGIN_RESULTS[how]`.
    pub fn login(&self, how: usize) {
        if let Some(count) = self.logins.get(how) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The settings were put into force, or were not.
    pub fn reloaded(&self, ok: bool) {
        self.reloads[usize::from(!ok)].fetch_add(1, Ordering::Relaxed);
        if ok {
            self.loaded();
        }
    }

    /// The settings are in force as of now.
    pub fn loaded(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.loaded_at.store(now, Ordering::Relaxed);
    }

    /// The cells of every worker.
    pub fn workers(&self) -> Vec<Arc<WorkerCells>> {
        lock(&self.workers).clone()
    }

    /// What was counted of the commands of the tenant of this name, over all workers, by row.
    pub fn commands_of(&self, name: &str) -> BTreeMap<u16, Command> {
        let mut sums = BTreeMap::new();
        for cells in self.workers().iter().filter_map(|worker| worker.tenant(name)) {
            cells.commands(&mut sums);
        }
        sums
    }

    /// The same of all tenants together.
    pub fn commands(&self) -> BTreeMap<u16, Command> {
        let mut sums = BTreeMap::new();
        for (_, cells) in self.workers().iter().flat_map(|worker| worker.tenants()) {
            cells.commands(&mut sums);
        }
        sums
    }

    /// What was counted of every tenant, over all workers, by name.
    pub fn tenants(&self) -> HashMap<Arc<str>, TenantSums> {
        let mut all: HashMap<Arc<str>, TenantSums> = HashMap::new();
        for worker in self.workers() {
            for (name, cells) in worker.tenants() {
                all.entry(name).or_default().add(&cells);
            }
        }
        all
    }
}

/// One worker's way to its cells.
#[derive(Debug)]
pub struct Meter {
    /// What is counted of the worker itself.
    pub cells: Arc<WorkerCells>,
    /// By the tenant's number.
    known: RefCell<HashMap<u32, Arc<TenantCells>>>,
    /// See [`Metrics::new`].
    access_sample: u32,
    /// Commands until one is written to the log.
    until_access: Cell<u32>,
}

impl Meter {
    /// A worker of its own.
    pub fn new(metrics: &Metrics) -> Self {
        let cells = Arc::<WorkerCells>::default();
        lock(&metrics.workers).push(Arc::clone(&cells));
        let every = metrics.access_sample;
        Self { cells, known: RefCell::default(), access_sample: every, until_access: Cell::new(every) }
    }

    /// The cells of a tenant, which keep what they have when the tenant of this name gets another number.
    pub fn tenant(&self, id: u32, name: &str) -> Arc<TenantCells> {
        let mut known = self.known.borrow_mut();
        if let Some(cells) = known.get(&id) {
            return Arc::clone(cells);
        }
        if known.len() >= 2 * TENANTS {
            // Numbers of tenants that are gone; those that are not come back here.
            known.clear();
        }
        let cells = self.cells.tenant_or_new(name, TENANTS, OTHERS);
        known.insert(id, Arc::clone(&cells));
        cells
    }

    /// Whether one of the `times` commands at hand is to be written to the log.
    #[inline]
    pub fn samples(&self, times: u32) -> bool {
        if self.access_sample == 0 {
            return false;
        }
        let left = self.until_access.get();
        let due = left <= times;
        self.until_access.set(if due { self.access_sample } else { left - times });
        due
    }

    /// The cells of the tenant of this number, if anybody speaks for it here.
    pub fn of(&self, id: u32) -> Arc<TenantCells> {
        let known = self.known.borrow().get(&id).cloned();
        known.unwrap_or_else(|| self.cells.tenant_or_new(OTHERS, TENANTS, OTHERS))
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_add_up_and_a_name_keeps_its_cells() {
        let metrics = Metrics::default();
        let (a, b) = (Meter::new(&metrics), Meter::new(&metrics));
        a.tenant(1, "acme").command(3).calls.add(2);
        b.tenant(1, "acme").command(3).calls.add(5);
        b.tenant(9, "acme").command(4).calls.add(1);
        b.tenant(2, "beta").bytes_in.add(7);
        let acme = metrics.commands_of("acme");
        assert_eq!(metrics.tenants()["acme"].calls, 8);
        assert_eq!((acme[&3].calls, acme[&4].calls), (7, 1));
        assert_eq!(metrics.tenants()["beta"].bytes_in, 7);
        assert!(metrics.commands_of("nobody").is_empty());
    }

    #[test]
    fn tenants_beyond_the_bound_share_cells() {
        let metrics = Metrics::default();
        let meter = Meter::new(&metrics);
        for id in 0..u32::try_from(TENANTS).expect("few") + 3 {
            meter.tenant(id, &format!("t{id}")).command(0).calls.add(1);
        }
        assert_eq!(metrics.tenants().len(), TENANTS + 1);
        assert_eq!(metrics.tenants()[OTHERS].calls, 3);
    }

    #[test]
    fn one_of_so_many_is_sampled() {
        let sampled = |every, times: u32| {
            let meter = Meter::new(&Metrics::new(every, Arc::default()));
            (0..600 / times).filter(|_| meter.samples(times)).count()
        };
        assert_eq!((sampled(0, 1), sampled(1, 1), sampled(10, 1), sampled(10, 4)), (0, 600, 60, 50));
    }
}
