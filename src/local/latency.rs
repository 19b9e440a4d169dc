//! LATENCY of the tenant's own commands: histograms from what is counted of them, events from those that were slow ([`crate::slowlog`]).
//! Shapes are Redis's (<https://redis.io/docs/latest/commands/latency-histogram/>).

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    command::{Args, ROWS, Row, find},
    metrics::{Command, coarse_bound},
    resp::Value,
    session::Session,
    slowlog::{Event, Series},
};

/// Widest graph, in columns.
const COLUMNS: usize = 80;
/// Its height, in lines.
const LINES: u64 = 4;

pub(super) fn answer(s: &Session, row: &Row, args: &Args<'_>) -> Value {
    let (spikes, tenant) = (&s.worker.shared.slowlog.spikes, s.tenant.id);
    let series = |name: &[u8]| Event::named(name).and_then(|event| spikes.of(tenant, event));
    match row.name {
        "LATENCY HISTOGRAM" => histogram(s, args),
        "LATENCY LATEST" => {
            let latest = Event::ALL.iter().filter_map(|event| Some((event, spikes.of(tenant, *event)?)));
            Value::Array(latest.filter_map(|(event, series)| entry(*event, &series)).collect())
        }
        "LATENCY HISTORY" => {
            let samples = series(args.at(2)).map(|series| series.samples).unwrap_or_default();
            Value::Array(
                samples.into_iter().map(|(at, millis)| Value::Array(vec![number(at), number(millis)])).collect(),
            )
        }
        "LATENCY RESET" => {
            let named: Vec<Event> = args.iter().skip(2).filter_map(Event::named).collect();
            let which = if args.len() > 2 { &named[..] } else { &Event::ALL };
            number(which.iter().filter(|event| spikes.reset(tenant, **event)).count() as u64)
        }
        "LATENCY GRAPH" => match series(args.at(2)) {
            Some(series) => Value::Verbatim(graph(&String::from_utf8_lossy(args.at(2)), &series, now())),
            None => Value::error([b"ERR No samples available for event '", args.at(2), b"'"].concat()),
        },
        "LATENCY DOCTOR" => Value::Verbatim(doctor(&Event::ALL.map(|event| (event, spikes.of(tenant, event))))),
        _ => super::help(
            "LATENCY",
            &[
                "DOCTOR",
                "    Return a human readable latency analysis report.",
                "GRAPH <event>",
                "    Return an ASCII latency graph for the <event> class.",
                "HISTORY <event>",
                "    Return time-latency samples for the <event> class.",
                "LATEST",
                "    Return the latest latency samples for all events.",
                "RESET [<event> ...]",
                "    Reset latency data of one or more <event> classes.",
                "    (default: reset all data for all event classes)",
                "HISTOGRAM [COMMAND ...]",
                "    Return a cumulative distribution of latencies in the format of a histogram for the specified command names.",
                "    If no commands are specified then all histograms are replied.",
            ],
        ),
    }
}

fn number(n: u64) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn entry(event: Event, series: &Series) -> Option<Value> {
    let (at, millis) = series.samples.back()?;
    Some(Value::Array(vec![Value::bulk(event.name()), number(*at), number(*millis), number(series.max)]))
}

/// Of the commands that are named, a container standing for its subcommands, or of all; those that never ran are left out.
fn histogram(s: &Session, args: &Args<'_>) -> Value {
    let ran = s.worker.shared.metrics.commands_of(&s.tenant.name);
    let named: Vec<&Row> =
        args.iter().skip(2).filter_map(|name| find(&String::from_utf8_lossy(name).to_ascii_lowercase())).collect();
    let wanted = |row: &Row| args.len() == 2 || named.iter().any(|n| n.index == row.index || n.index == row.parent);
    let shown = ran.iter().filter_map(|(row, command)| Some((ROWS.get(usize::from(*row))?, command)));
    let shown = shown.filter(|(row, command)| wanted(row) && command.took.iter().any(|n| *n > 0));
    Value::Map(shown.map(|(row, command)| (Value::bulk(row.lower_name()), distribution(command))).collect())
}

fn distribution(command: &Command) -> Value {
    let mut below = 0;
    let mut buckets = Vec::new();
    for (bucket, n) in command.took.iter().enumerate().filter(|(_, n)| **n > 0) {
        below += n;
        buckets.push((number(coarse_bound(bucket)), number(below)));
    }
    Value::Map(vec![(Value::bulk("calls"), number(below)), (Value::bulk("histogram_usec"), Value::Map(buckets))])
}

/// One column a second that had a slow command, as high as that was slow, and how long ago that was under it.
fn graph(event: &str, series: &Series, now: u64) -> String {
    let shown: Vec<&(u64, u64)> = series.samples.iter().skip(series.samples.len().saturating_sub(COLUMNS)).collect();
    let high = shown.iter().map(|(_, millis)| *millis).max().unwrap_or(0);
    let low = shown.iter().map(|(_, millis)| *millis).min().unwrap_or(0);
    let mut out = format!("{event} - high {high} ms, low {low} ms (all time high {} ms)\n", series.max);
    let _ = writeln!(out, "{}", "-".repeat(COLUMNS));
    for line in (0..LINES).rev() {
        for (_, millis) in &shown {
            // Three characters a line, the lowest one always there.
            let steps = (millis - low) * (LINES * 3 - 1) / (high - low).max(1);
            out.push(match steps.checked_sub(line * 3) {
                None => ' ',
                Some(0) => '_',
                Some(1) => 'o',
                Some(2) => '#',
                Some(_) => '|',
            });
        }
        out.push('\n');
    }
    let ages: Vec<String> = shown.iter().map(|(at, _)| age(now.saturating_sub(*at))).collect();
    out.push('\n');
    for line in 0..ages.iter().map(String::len).max().unwrap_or(0) {
        ages.iter().for_each(|age| out.push(age.as_bytes().get(line).map_or(' ', |c| char::from(*c))));
        out.push('\n');
    }
    out
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn doctor(events: &[(Event, Option<Series>)]) -> String {
    let mut out = String::new();
    for (event, series) in events {
        let Some(Series { samples, max }) = series else { continue };
        let sum: u64 = samples.iter().map(|(_, millis)| millis).sum();
        let _ = writeln!(
            out,
            "{}: {} seconds had a slow one, the slowest of each took {} ms on average and {max} ms at the most.",
            event.name(),
            samples.len(),
            sum / (samples.len() as u64).max(1),
        );
    }
    if out.is_empty() {
        return "No command of yours was slow since this began to be looked at.\n".into();
    }
    out.push_str("SLOWLOG GET names the commands. These are times that clients waited, the network to the server and other requests included.\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_has_a_column_a_sample() {
        let series = Series { samples: [(100, 10), (101, 20), (102, 120)].into(), max: 500 };
        let text = graph("command", &series, 162);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "command - high 120 ms, low 10 ms (all time high 500 ms)");
        assert_eq!((lines[2], lines[5]), ("  #", "_o|"));
        assert_eq!((lines[7], lines[8]), ("111", "mmm"));
        let flat = Series { samples: [(1, 7)].into(), max: 7 };
        assert!(graph("command", &flat, 1).contains("\n_\n"));
    }
}
