//! What one worker counts of one tenant, and what all count together.
//!
//! There are 741 commands and a tenant uses few: a byte each says where its counts are, and those are made when it first runs, eight
//! commands at a time. An idle tenant takes 3 KB a worker, one that uses eight commands 5 KB.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use super::{COARSE, Coarse, Count, ErrorKind, FINE, Fine, KINDS};
use crate::command::ROWS;

/// Commands whose counts are made together.
const CHUNK: usize = 8;
/// Most of these; a tenant that runs more different commands on a worker has the rest counted as [`OTHER`].
const CHUNKS: usize = 31;
/// Stands for the row of a command that has no counts of its own.
pub const OTHER: u16 = u16::MAX;

/// What one worker counts of one command of one tenant.
#[derive(Debug, Default)]
pub struct CommandCells {
    /// Commands that were asked for.
    pub calls: Count,
    /// Microseconds that those took that were answered, from being read to their reply's being handed over.
    pub micros: Count,
    /// The same by power of two.
    pub took: Coarse,
}

/// See the module.
#[derive(Debug)]
#[repr(align(128))]
pub struct TenantCells {
    /// The tenant's name.
    pub name: Arc<str>,
    /// How long clients waited for replies.
    pub took: Fine,
    /// Bytes read from clients.
    pub bytes_in: Count,
    /// Bytes written to clients.
    pub bytes_out: Count,
    /// Replies due from upstreams, as of the last look.
    pub in_flight: Count,
    /// Errors that clients were told, by kind.
    errors: [Count; KINDS.len()],
    /// By row: where its counts are, from 1; 0: nowhere yet.
    places: Box<[AtomicU8]>,
    chunks: [OnceLock<Box<[CommandCells; CHUNK]>>; CHUNKS],
    /// Places taken. The owner's alone.
    taken: AtomicU8,
    other: CommandCells,
}

impl TenantCells {
    /// Of the tenant of this name.
    pub fn new(name: Arc<str>) -> Self {
        Self {
            name,
            took: Fine::default(),
            bytes_in: Count::new(),
            bytes_out: Count::new(),
            in_flight: Count::new(),
            errors: [const { Count::new() }; KINDS.len()],
            places: ROWS.iter().map(|_| AtomicU8::new(0)).collect(),
            chunks: [const { OnceLock::new() }; CHUNKS],
            taken: AtomicU8::new(0),
            other: CommandCells::default(),
        }
    }
}

impl TenantCells {
    /// The counts of a command.
    #[inline]
    pub fn command(&self, row: u16) -> &CommandCells {
        let place = self.places.get(usize::from(row)).map_or(0, |place| place.load(Ordering::Relaxed));
        match self.at(place) {
            Some(cells) => cells,
            None => self.open(row),
        }
    }

    #[inline]
    fn at(&self, place: u8) -> Option<&CommandCells> {
        let at = usize::from(place.checked_sub(1)?);
        self.chunks.get(at / CHUNK)?.get()?.get(at % CHUNK)
    }

    #[cold]
    fn open(&self, row: u16) -> &CommandCells {
        let taken = self.taken.load(Ordering::Relaxed);
        let (Some(place), Some(chunk)) =
            (self.places.get(usize::from(row)), self.chunks.get(usize::from(taken) / CHUNK))
        else {
            return &self.other;
        };
        let chunk = chunk.get_or_init(Box::default);
        self.taken.store(taken + 1, Ordering::Relaxed);
        // Who finds the place finds the chunk, which was made before.
        place.store(taken + 1, Ordering::Release);
        &chunk[usize::from(taken) % CHUNK]
    }

    /// A command of this row was answered `times` times, each after so many microseconds.
    #[inline]
    pub fn answered(&self, row: u16, micros: u64, times: u64) {
        self.took.add(micros, times);
        let command = self.command(row);
        command.micros.add(micros.saturating_mul(times));
        command.took.add(micros, times);
    }

    /// Commands that were asked for.
    fn calls(&self) -> u64 {
        let chunks = self.chunks.iter().map_while(OnceLock::get);
        let calls: u64 = chunks.flat_map(|chunk| chunk.iter()).map(|command| command.calls.get()).sum();
        calls + self.other.calls.get()
    }

    /// Adds the commands that were ever asked for to `sums`, by row; [`OTHER`] among them.
    pub fn commands(&self, sums: &mut BTreeMap<u16, Command>) {
        for (row, place) in self.places.iter().enumerate() {
            if let Some(command) = self.at(place.load(Ordering::Acquire)) {
                sums.entry(u16::try_from(row).unwrap_or(OTHER)).or_default().add(command);
            }
        }
        if self.other.calls.get() > 0 {
            sums.entry(OTHER).or_default().add(&self.other);
        }
    }

    /// `times` clients were told an error of this kind.
    pub fn error(&self, kind: ErrorKind, times: u64) {
        self.errors[kind.index()].add(times);
    }
}

/// What was counted of one command.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// Asked for.
    pub calls: u64,
    /// Microseconds of those that were answered.
    pub micros: u64,
    /// Those that were answered, by power of two of their microseconds.
    pub took: [u64; COARSE],
}

impl Command {
    fn add(&mut self, cells: &CommandCells) {
        self.calls += cells.calls.get();
        self.micros = self.micros.wrapping_add(cells.micros.get());
        cells.took.sum(&mut self.took);
    }
}

/// What was counted of a tenant on all workers.
#[derive(Clone, Debug)]
pub struct TenantSums {
    /// See [`TenantCells`].
    pub took: [u64; FINE],
    /// Microseconds of these.
    pub took_micros: u64,
    /// See [`TenantCells`].
    pub bytes_in: u64,
    /// See [`TenantCells`].
    pub bytes_out: u64,
    /// See [`TenantCells`].
    pub in_flight: u64,
    /// By kind.
    pub errors: [u64; KINDS.len()],
    /// Commands that were asked for.
    pub calls: u64,
}

impl Default for TenantSums {
    fn default() -> Self {
        Self {
            took: [0; FINE],
            took_micros: 0,
            bytes_in: 0,
            bytes_out: 0,
            in_flight: 0,
            errors: [0; KINDS.len()],
            calls: 0,
        }
    }
}

impl TenantSums {
    /// Adds what one worker counted.
    pub fn add(&mut self, cells: &TenantCells) {
        cells.took.sum(&mut self.took, &mut self.took_micros);
        self.bytes_in += cells.bytes_in.get();
        self.bytes_out += cells.bytes_out.get();
        self.in_flight += cells.in_flight.get();
        self.errors.iter_mut().zip(&cells.errors).for_each(|(sum, count)| *sum += count.get());
        self.calls += cells.calls();
    }

    /// Errors of all kinds.
    pub fn errors(&self) -> u64 {
        self.errors.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_counts_of_its_own_as_far_as_there_is_room() {
        let cells = TenantCells::new(Arc::from("acme"));
        let all = u16::try_from(ROWS.len()).expect("few");
        for row in 0..all {
            cells.command(row).calls.add(1);
            cells.command(row).calls.add(1);
        }
        let (mut sums, mut commands) = (TenantSums::default(), BTreeMap::new());
        sums.add(&cells);
        cells.commands(&mut commands);
        let room = CHUNK * CHUNKS;
        assert_eq!(commands.len(), room + 1);
        assert_eq!(commands[&7].calls, 2);
        assert_eq!(commands[&OTHER].calls, 2 * (u64::from(all) - room as u64));
        assert_eq!(sums.calls, 2 * u64::from(all));
    }

    #[test]
    fn what_was_answered_is_in_both_histograms() {
        let cells = TenantCells::new(Arc::from("acme"));
        cells.answered(5, 100, 3);
        cells.error(ErrorKind::of(b"ERR no"), 2);
        let mut sums = TenantSums::default();
        sums.add(&cells);
        sums.add(&cells);
        assert_eq!((sums.took.iter().sum::<u64>(), sums.took_micros, sums.errors()), (6, 600, 4));
        let mut commands = BTreeMap::new();
        cells.commands(&mut commands);
        assert_eq!(commands[&5].took.iter().sum::<u64>(), 3);
    }
}
