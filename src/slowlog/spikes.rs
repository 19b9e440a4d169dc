//! LATENCY: when a tenant's commands were slow, and how slow, as Redis keeps it of the server (<https://redis.io/docs/latest/operate/oss_and_stack/management/optimization/latency-monitor/>):
//! two events, the slowest command of each second, and the slowest of all.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use dashmap::DashMap;

use crate::command::{Categories, Row};

/// Seconds that are kept of an event.
const SAMPLES: usize = 160;

/// Which commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Those that may take long by what they do.
    Command,
    /// Those that the server's documentation calls fast: O(1) or O(log N).
    Fast,
}

impl Event {
    /// Both, in the order of their names.
    pub const ALL: [Self; 2] = [Self::Command, Self::Fast];

    /// As Redis calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Fast => "fast-command",
        }
    }

    /// The event of this name.
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name().as_bytes() == name)
    }
}

/// What is kept of one event of one tenant.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Seconds since 1970, and the milliseconds of the slowest command of that second; the newest last.
    pub samples: VecDeque<(u64, u64)>,
    /// The milliseconds of the slowest of all.
    pub max: u64,
}

impl Series {
    fn add(&mut self, at: u64, millis: u64) {
        self.max = self.max.max(millis);
        match self.samples.back_mut() {
            Some((second, slowest)) if *second == at => *slowest = millis.max(*slowest),
            _ => {
                self.samples.push_back((at, millis));
                if self.samples.len() > SAMPLES {
                    self.samples.pop_front();
                }
            }
        }
    }
}

/// All tenants'.
#[derive(Debug, Default)]
pub struct Spikes(DashMap<u32, Mutex<[Series; 2]>>);

impl Spikes {
    /// A command of `row` took long.
    pub(super) fn add(&self, tenant: u32, row: Option<&Row>, at: u64, took: Duration) {
        let fast = row.is_some_and(|row| Categories::named(b"fast").is_some_and(|fast| row.categories.has(fast)));
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let series = self.0.entry(tenant).or_default();
        series.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(fast)].add(at, millis);
    }

    pub(super) fn keep(&self, stands: impl Fn(u32) -> bool) {
        self.0.retain(|tenant, _| stands(*tenant));
    }

    /// What is kept of a tenant's event, if there is anything.
    pub fn of(&self, tenant: u32, event: Event) -> Option<Series> {
        let series = self.0.get(&tenant)?;
        let series = series.lock().unwrap_or_else(PoisonError::into_inner)[event as usize].clone();
        (!series.samples.is_empty()).then_some(series)
    }

    /// Forgets it: whether there was anything.
    pub fn reset(&self, tenant: u32, event: Event) -> bool {
        let Some(series) = self.0.get(&tenant) else { return false };
        let before = std::mem::take(&mut series.lock().unwrap_or_else(PoisonError::into_inner)[event as usize]);
        !before.samples.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::find;

    #[test]
    fn the_slowest_of_each_second_of_either_kind() {
        let spikes = Spikes::default();
        let ms = Duration::from_millis;
        for (name, at, took) in [("get", 1, 5), ("get", 1, 9), ("get", 1, 2), ("get", 2, 3), ("sort", 2, 70)] {
            spikes.add(7, find(name), at, ms(took));
        }
        let fast = spikes.of(7, Event::Fast).expect("there are some");
        assert_eq!((fast.samples.into_iter().collect::<Vec<_>>(), fast.max), (vec![(1, 9), (2, 3)], 9));
        assert_eq!(spikes.of(7, Event::Command).expect("one").max, 70);
        assert!(spikes.of(8, Event::Fast).is_none());
        assert!(spikes.reset(7, Event::Fast) && !spikes.reset(7, Event::Fast));
        (0..1000).for_each(|at| spikes.add(7, find("get"), at, ms(1)));
        assert_eq!(spikes.of(7, Event::Fast).expect("many").samples.len(), SAMPLES);
    }
}
