//! The log: one line an event on standard error, written by a thread of its own.
//!
//! ```text
//!   any thread ─► level ─► calm ─► line ─► queue (bounded) ─► log thread ─► standard error
//! ```
//!
//! Whoever logs never waits: a pipe that nobody reads or a full disk costs lines, which are counted, and no client anything. What happens
//! again and again is written ten times in five seconds, and then summed up.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    io::{self, IsTerminal as _, Write, stderr},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer as _,
    fmt::MakeWriter,
    layer::{Context, Filter, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

use crate::{
    config::{Log, LogFormat},
    metrics::access,
};

/// Lines that may wait to be written, and their bytes.
const LINES: usize = 8192;
const BYTES: usize = 4 * 1024 * 1024;
/// One place in the program writes this many lines in a [`WINDOW`].
const CALM: u64 = 10;
/// See [`CALM`].
const WINDOW: Duration = Duration::from_secs(5);
/// What of a message is repeated in the summary, in characters.
const LIKE: usize = 200;
/// How long the last lines have at the end of the process.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Summaries are written as often as there are any, and so are the access log, which has a sampling of its own, and what a managed server says.
const SUMMARY: &str = "keyfence::log";
const MANAGED: &str = "keyfence::managed";

/// The log of this process.
#[derive(Clone, Debug)]
pub struct Handle {
    queue: Arc<Queue>,
}

/// Starts the log of the process; `lost` counts lines that could not be written.
///
/// # Errors
/// When there is no thread to be had.
pub fn start(settings: Log, lost: Arc<AtomicU64>) -> io::Result<Handle> {
    let queue = Arc::new(Queue::new(lost));
    let calm = Calm::default();
    let (lines, summing) = (Arc::clone(&queue), calm.clone());
    thread::Builder::new().name("log".into()).spawn(move || lines.write_all_to(stderr(), &summing))?;
    let layer = tracing_subscriber::fmt::layer().with_writer(Lines(Arc::clone(&queue))).with_target(false);
    let layer = match settings.format {
        LogFormat::Json => layer.json().boxed(),
        LogFormat::Text => layer.with_ansi(stderr().is_terminal()).boxed(),
    };
    tracing_subscriber::registry().with(settings.level).with(layer.with_filter(calm)).init();
    Ok(Handle { queue })
}

impl Handle {
    /// Waits until all lines are written, a second at the most.
    pub fn finish(self) {
        let state = self.queue.state();
        let _ = self.queue.written.wait_timeout_while(state, LAST_LINES, |state| !state.lines.is_empty() || state.busy);
    }
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The log thread is writing.
    busy: bool,
}

/// Lines on their way.
#[derive(Debug)]
struct Queue {
    state: Mutex<Waiting>,
    filled: Condvar,
    written: Condvar,
    lost: Arc<AtomicU64>,
}

impl Queue {
    fn new(lost: Arc<AtomicU64>) -> Self {
        Self { state: Mutex::default(), filled: Condvar::new(), written: Condvar::new(), lost }
    }

    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, or counts it as lost.
    fn push(&self, mut line: Vec<u8>) {
        // What came from elsewhere must not look like a line of ours.
        let last = line.len().saturating_sub(1);
        for byte in line.iter_mut().take(last).filter(|byte| matches!(**byte, b'\n' | b'\r')) {
            *byte = b' ';
        }
        let mut state = self.state();
        if state.lines.len() >= LINES || state.bytes + line.len() > BYTES {
            drop(state);
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.filled.notify_one();
    }

    /// The log thread.
    fn write_all_to(&self, mut out: impl Write, calm: &Calm) {
        let mut since = tokio::time::Instant::now();
        let mut failed = 0_u64;
        loop {
            let (mut state, _) = self
                .filled
                .wait_timeout_while(self.state(), WINDOW, |state| state.lines.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            let lines = std::mem::take(&mut state.lines);
            state.bytes = 0;
            state.busy = true;
            drop(state);
            for line in lines {
                self.put(&line, &mut out, &mut failed);
            }
            if since.elapsed() >= WINDOW {
                since = tokio::time::Instant::now();
                calm.sum_up();
            }
            self.state().busy = false;
            self.written.notify_all();
        }
    }
}

impl Queue {
    /// Writes one line, or counts it as lost; `failed` of them in a row. When there is room again, that is said.
    fn put(&self, line: &[u8], mut out: impl Write, failed: &mut u64) {
        if out.write_all(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            *failed += 1;
        } else if *failed > 0 {
            let lines = std::mem::take(failed);
            tracing::warn!(target: SUMMARY, lines, "the log could not be written for a while: lines are missing");
        }
    }
}

/// One event while it is formatted.
#[derive(Debug)]
struct Line<'a> {
    queue: &'a Queue,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.queue.push(std::mem::take(&mut self.text));
    }
}

/// Where events are formatted to.
#[derive(Debug)]
struct Lines(Arc<Queue>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: &self.0, text: Vec::new() }
    }
}

/// What was written and left out in this window, by place in the program: there are only so many of these.
#[derive(Clone, Debug, Default)]
struct Calm(Arc<Mutex<HashMap<Identifier, Place>>>);

#[derive(Debug)]
struct Place {
    level: Level,
    seen: u64,
    like: String,
}

impl Calm {
    /// Whether one more from there is written.
    fn lets(&self, event: &Event<'_>) -> bool {
        let about = event.metadata();
        if *about.level() > Level::INFO || matches!(about.target(), access::TARGET | SUMMARY | MANAGED) {
            return true;
        }
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(about.callsite()).or_insert_with(|| {
            let mut like = Message(String::new());
            event.record(&mut like);
            Place { level: *about.level(), seen: 0, like: like.0 }
        });
        place.seen += 1;
        place.seen <= CALM
    }

    /// Begins a new window, and says what was left out in the one before.
    fn sum_up(&self) {
        let places = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for Place { level, seen, like } in places.into_values() {
            let Some(times) = seen.checked_sub(CALM).filter(|times| *times > 0) else { continue };
            match level {
                Level::ERROR => tracing::error!(target: SUMMARY, times, like, "more like this"),
                Level::WARN => tracing::warn!(target: SUMMARY, times, like, "more like this"),
                _ => tracing::info!(target: SUMMARY, times, like, "more like this"),
            }
        }
    }
}

impl<S: Subscriber> Filter<S> for Calm {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.lets(event)
    }
}

/// The words of an event, without its fields.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}").chars().take(LIKE).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_nobody_empties_loses_lines_and_makes_nobody_wait() {
        let lost = Arc::<AtomicU64>::default();
        let queue = Queue::new(Arc::clone(&lost));
        (0..LINES + 7).for_each(|_| queue.push(b"line\n".to_vec()));
        assert_eq!(queue.state().lines.len(), LINES);
        queue.push(vec![b'x'; BYTES]);
        assert_eq!(lost.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn lines_that_are_missing_are_told_once_there_is_room_again() {
        let lost = Arc::<AtomicU64>::default();
        let queue = Arc::new(Queue::new(Arc::clone(&lost)));
        let layer = tracing_subscriber::fmt::layer().with_writer(Lines(Arc::clone(&queue))).with_ansi(false);
        let mut failed = 0;
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let mut full = [0_u8; 0];
            (0..3).for_each(|_| queue.put(b"line\n", &mut full[..], &mut failed));
            assert!(queue.state().lines.is_empty());
            (0..3).for_each(|_| queue.put(b"line\n", io::sink(), &mut failed));
        });
        assert_eq!(lost.load(Ordering::Relaxed), 3);
        let state = queue.state();
        assert_eq!(state.lines.len(), 1);
        assert!(String::from_utf8_lossy(&state.lines[0]).contains("lines=3"));
    }

    #[test]
    fn an_event_is_one_line() {
        let queue = Queue::new(Arc::default());
        queue.push(b"told: a\r\nERROR forged\n".to_vec());
        assert_eq!(queue.state().lines[0], b"told: a  ERROR forged\n");
    }

    #[test]
    fn the_same_again_is_summed_up() {
        let queue: Arc<Queue> = Arc::new(Queue::new(Arc::default()));
        let calm = Calm::default();
        let layer =
            tracing_subscriber::fmt::layer().with_writer(Lines(Arc::clone(&queue))).with_ansi(false).without_time();
        let log = tracing_subscriber::registry().with(layer.with_filter(calm.clone()));
        tracing::subscriber::with_default(log, || {
            for n in 0..100 {
                tracing::warn!(n, "it happened");
                tracing::debug!("in detail");
            }
            calm.sum_up();
            tracing::warn!("something else");
            calm.sum_up();
        });
        let lines: Vec<String> =
            queue.state().lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        let with = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!(with("it happened"), 11, "ten, and the summary: {lines:?}");
        assert_eq!(with("in detail"), 100);
        assert!(lines.iter().any(|l| l.contains("WARN") && l.contains("more like this times=90 like=\"it happened\"")));
        assert_eq!(with("something else"), 1);
    }
}
