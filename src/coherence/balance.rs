//! Whether a tenant's tier is worth what it costs.
//!
//! Each change costs the upstream and keyfence about half a microsecond each, to tell of it and to hear it, and each write through keyfence its mark;
//! a hit saves the upstream a command and its client a round trip. A tenant whose values change far more often than they are asked for again only
//! pays. Its tier rests then: nothing is tracked, marked, kept or served, as if the settings had none. After a while it is tried anew.

/// Milliseconds over which is counted.
const WINDOW: u64 = 2000;
/// So many windows in a row that were not worth it end in a rest.
const POOR: u32 = 2;
/// Changes in a window below which the cost does not matter: 1,000 a second.
const BUSY: u64 = 2000;
/// Changes that a hit makes up for.
const WORTH: u64 = 4;
/// The first rest, in milliseconds; each is twice as long as the one before it, up to the longest.
const SHORTEST: u64 = 30_000;
const LONGEST: u64 = 600_000;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Stay,
    /// For so many milliseconds.
    Rest(u64),
    Wake,
}

/// One tenant's.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// When the window began, and the counts at that time.
    since: u64,
    hits: u64,
    told: u64,
    poor: u32,
    /// When the rest ends.
    rests: Option<u64>,
    /// The length of the last rest, in milliseconds; 0 after a window that was worth it.
    span: u64,
}

impl Balance {
    /// To be called now and then: `now` in milliseconds; `settle`: how long after a rest nothing can be served yet; hits and changes since the
    /// start.
    pub(super) fn weigh(&mut self, now: u64, settle: u64, hits: u64, told: u64) -> Turn {
        if let Some(end) = self.rests {
            if now < end {
                return Turn::Stay;
            }
            self.rests = None;
            self.begin(now.saturating_add(settle), hits, told);
            return Turn::Wake;
        }
        if now < self.since.saturating_add(WINDOW) {
            return Turn::Stay;
        }
        let (new_hits, new_told) = (hits.saturating_sub(self.hits), told.saturating_sub(self.told));
        self.begin(now, hits, told);
        if new_told < BUSY || new_told <= new_hits.saturating_mul(WORTH) {
            (self.poor, self.span) = (0, 0);
            return Turn::Stay;
        }
        self.poor += 1;
        if self.poor < POOR {
            return Turn::Stay;
        }
        self.poor = 0;
        self.span = (self.span * 2).clamp(SHORTEST, LONGEST);
        self.rests = Some(now.saturating_add(self.span));
        Turn::Rest(self.span)
    }

    fn begin(&mut self, since: u64, hits: u64, told: u64) {
        (self.since, self.hits, self.told) = (since, hits, told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said in each window, when so many hits and changes come in each.
    fn run(balance: &mut Balance, from: u64, windows: u64, hits: u64, told: u64) -> Vec<(u64, Turn)> {
        let turns = (1..=windows).map(|i| {
            let now = from + i * WINDOW;
            (now, balance.weigh(now, 0, (from / WINDOW + i) * hits, (from / WINDOW + i) * told))
        });
        turns.filter(|(_, turn)| *turn != Turn::Stay).collect()
    }

    #[test]
    fn what_is_worth_it_goes_on() {
        for (hits, told) in [(0, BUSY - 1), (1000, 4000), (0, 0), (1_000_000, 10)] {
            assert_eq!(run(&mut Balance::default(), 0, 100, hits, told), [], "{hits} hits, {told} changes");
        }
    }

    #[test]
    fn what_is_not_rests_longer_each_time() {
        let mut balance = Balance::default();
        let turns = run(&mut balance, 0, 4000, 100, 5000);
        let rests: Vec<u64> = turns
            .iter()
            .filter_map(|(_, turn)| if let Turn::Rest(span) = turn { Some(span / 1000) } else { None })
            .collect();
        assert_eq!(rests[..7], [30, 60, 120, 240, 480, 600, 600]);
        for pair in turns.chunks_exact(2) {
            let Turn::Rest(span) = pair[0].1 else { panic!("{pair:?}") };
            assert_eq!(pair[1], (pair[0].0 + span, Turn::Wake));
        }
        // It is tried for two windows in between.
        assert!(turns.windows(2).all(|pair| pair[0].1 != Turn::Wake || pair[1].0 == pair[0].0 + 2 * WINDOW));
    }

    #[test]
    fn one_bad_window_is_none() {
        let mut balance = Balance::default();
        let (mut hits, mut told) = (0, 0);
        for i in 1..100 {
            (hits, told) = if i % 2 == 0 { (hits, told + 100_000) } else { (hits + 100_000, told) };
            assert_eq!(balance.weigh(i * WINDOW, 0, hits, told), Turn::Stay);
        }
    }

    #[test]
    fn nothing_counts_before_it_can_serve() {
        let mut balance = Balance::default();
        assert_eq!(run(&mut balance, 0, 2, 0, 5000).last(), Some(&(2 * WINDOW, Turn::Rest(SHORTEST))));
        let wake = 2 * WINDOW + SHORTEST;
        assert_eq!(balance.weigh(wake, 60_000, 0, 10_000), Turn::Wake);
        assert_eq!(balance.weigh(wake + 60_000, 60_000, 0, 1_000_000), Turn::Stay);
        assert_eq!(balance.weigh(wake + 60_000 + WINDOW, 60_000, 0, 2_000_000), Turn::Stay);
        assert!(matches!(balance.weigh(wake + 60_000 + 2 * WINDOW, 60_000, 0, 3_000_000), Turn::Rest(_)));
    }
}
