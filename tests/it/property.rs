//! Every row of the command table: what reaches the upstream holds each marked name with the prefix, and none without.
use keyfence::command::{Class, ROWS, Row};

use crate::support::scripted::{Act, Request, Scripted};
use crate::support::wire::{command, show};
use crate::support::{Fence, PREFIX, Redis, target_is_plain};

/// Words that options are made of, and bytes that end lines: names that a careless rewriter would take for something else.
const NAMES: &[&[u8]] = &[b"mark", b"STORE", b"BY", b"STREAMS", b"MATCH", b"\r\n\0\xff", b"", b"keyfence:mark", b"2"];

/// A call of `row` and the positions in it where names stand, made from the table's `keys` column.
fn call(row: &Row, name: &[u8]) -> (Request, Vec<usize>) {
    let mut args: Request = row.name.split(' ').map(|word| word.as_bytes().to_vec()).collect();
    let mut names = Vec::new();
    let least = usize::from(row.arity.unsigned_abs());
    let specs: Vec<&str> = row.specs.split(';').map(|spec| spec.split(" [").next().unwrap().trim()).collect();
    let tail = specs.iter().any(|spec| spec.contains("..-"));
    let step = specs.iter().find_map(|spec| spec.split_once("..-")?.1.split_once('/')?.1.parse().ok()).unwrap_or(1);
    let first = specs.iter().find_map(|spec| spec.split_once("..-")?.0.parse::<usize>().ok()).unwrap_or(1);
    // Long enough for two rounds of a range, and for what an option-less call needs.
    let length = if tail {
        (first + 2 * step).max(least) + usize::from(specs.iter().any(|spec| spec.ends_with("..-2")))
    } else {
        least
    };
    args.resize(length, b"1".to_vec());
    for spec in specs {
        let words: Vec<&str> = spec.split(' ').collect();
        match words[..] {
            [range] if range.starts_with("numkeys@") => {
                let range = range.trim_start_matches("numkeys@");
                let (at, step) = range.split_once('/').unwrap_or((range, "1"));
                let (at, step): (usize, usize) = (at.parse().unwrap(), step.parse().unwrap());
                args[at] = b"2".to_vec();
                args.resize(args.len().max(at + 1 + 2 * step), b"1".to_vec());
                names.extend([at + 1, at + 1 + step]);
            }
            [streams] if streams.starts_with("streams@") => {
                let at: usize = streams.trim_start_matches("streams@").parse().unwrap();
                args.truncate(at);
                if row.name == "XREADGROUP" {
                    args.extend([b"GROUP".to_vec(), b"g".to_vec(), b"c".to_vec()]);
                }
                args.push(b"STREAMS".to_vec());
                names.extend([args.len(), args.len() + 1]);
                args.extend(["1", "1", "0", "0"].map(|word| word.as_bytes().to_vec()));
            }
            [range] if range.contains("..") => {
                let (from, to) = range.split_once("..").unwrap();
                let (to, step) = to.split_once('/').unwrap_or((to, "1"));
                let to: isize = to.parse().unwrap();
                let to = if to < 0 { args.len() - to.unsigned_abs() } else { to.unsigned_abs() };
                names.extend((from.parse().unwrap()..=to).step_by(step.parse().unwrap()));
            }
            [at] | ["chan" | "schan", at] => names.push(at.parse().unwrap()),
            ["sortpat" | "chan" | "prefix", "opt", word] | ["opt", word] => {
                args.push(word.trim_end_matches('*').as_bytes().to_vec());
                names.push(args.len());
                args.push(b"1".to_vec());
            }
            ["db", at] => args[at.parse::<usize>().unwrap()] = b"0".to_vec(),
            ["db", "opt", word] => args.extend([word.as_bytes().to_vec(), b"0".to_vec()]),
            _ => panic!("{}: {spec}", row.name),
        }
    }
    let needed = names.iter().max().map_or(0, |at| at + 1);
    args.resize(args.len().max(needed), b"1".to_vec());
    for &at in &names {
        args[at] = if row.specs.contains("sortpat") && at > 1 && args[at - 1] != b"STORE" {
            [name, b"*"].concat()
        } else {
            name.to_vec()
        };
    }
    match row.name {
        // Options in the places where the grammar wants them.
        "BLMPOP" | "LMPOP" => args.push(b"LEFT".to_vec()),
        "BZMPOP" | "ZMPOP" => args.push(b"MIN".to_vec()),
        "LMOVE" | "BLMOVE" | "LMOVEM" | "BLMOVEM" => args[3..5].fill(b"LEFT".to_vec()),
        "JSON.DEBUG" => args[1] = b"MEMORY".to_vec(),
        "BITOP" => args[1] = b"AND".to_vec(),
        // Cut short it may end the server, and is refused here.
        "TS.CREATERULE" => {
            args[3] = b"AGGREGATION".to_vec();
            args.push(b"10".to_vec());
        }
        "GEORADIUS" => args[5] = b"km".to_vec(),
        "GEORADIUSBYMEMBER" => args[4] = b"km".to_vec(),
        _ => {}
    }
    (args, names)
}

#[test]
fn no_name_reaches_the_upstream_without_the_prefix() {
    if target_is_plain() {
        return;
    }
    let redis = Redis::start();
    let upstream = Scripted::start(redis.addr(), |request| {
        // What keyfence asks for itself is answered by the server, everything else with a word.
        let own = [
            &b"HELLO"[..],
            b"AUTH",
            b"SELECT",
            b"CLIENT",
            b"INFO",
            b"ACL",
            b"CONFIG",
            b"PING",
            b"SCRIPT",
            b"UNWATCH",
            b"DISCARD",
        ];
        match &request[0][..] {
            // A server that does not say what it knows is taken to know everything.
            b"COMMAND" => Act::Reply(b"-ERR no\r\n".to_vec()),
            word if own.contains(&word) => Act::Forward,
            _ => Act::Reply(b"+OK\r\n".to_vec()),
        }
    });
    let fence = Fence::start_at(upstream.addr(), "");
    let (mut calls, mut failures) = (0, Vec::new());
    let rows: Vec<&Row> = ROWS.iter().filter(|row| row.served && row.class == Class::Keyed).collect();
    for row in &rows {
        for name in NAMES {
            let (args, names) = call(row, name);
            let before = upstream.seen().len();
            // A connection each: what state one leaves (WATCH) is not the next one's.
            let mut client = fence.client();
            client.send(&command(&args));
            let reply = client.try_reply().unwrap_or_default();
            calls += 1;
            let sent: Vec<Request> =
                upstream.seen().split_off(before).into_iter().filter(|sent| sent[0] == args[0]).collect();
            let [sent] = &sent[..] else {
                failures.push(format!(
                    "{} reached the upstream {} times; answered {}",
                    say(&args),
                    sent.len(),
                    show(&reply)
                ));
                continue;
            };
            let want: Request = (0..args.len())
                .map(|at| if names.contains(&at) { [PREFIX.as_bytes(), &args[at]].concat() } else { args[at].clone() })
                .collect();
            if *sent != want {
                failures.push(format!("{} was sent as {}", say(&args), say(sent)));
            }
            if show(&reply).contains(PREFIX) && !name.starts_with(PREFIX.as_bytes()) {
                failures.push(format!("{} was answered {}", say(&args), show(&reply)));
            }
        }
    }
    eprintln!("{} rows, {calls} calls", rows.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn what_is_not_served_never_reaches_the_upstream() {
    if target_is_plain() {
        return;
    }
    let redis = Redis::start();
    let upstream = Scripted::start(redis.addr(), |_| Act::Forward);
    let fence = Fence::start_at(upstream.addr(), "");
    let mut refused = 0;
    for row in ROWS.iter().filter(|row| !row.served && row.subs == 0) {
        let mut args: Vec<&[u8]> = row.name.split(' ').map(str::as_bytes).collect();
        let marks = usize::from(row.arity.unsigned_abs()).max(args.len() + 1);
        args.resize(marks, b"never-upstream");
        let mut client = fence.client();
        let reply = client.call(&args);
        assert!(
            reply.starts_with(b"-NOPERM User default has no permissions to run the '") || reply.starts_with(b"-ERR "),
            "{}: {}",
            row.name,
            show(&reply)
        );
        crate::is!(client, ["PING"], "+PONG\r\n");
        refused += 1;
    }
    eprintln!("{refused} rows refused");
    let leaked: Vec<String> = upstream
        .seen()
        .iter()
        .filter(|request| request.iter().any(|arg| arg.windows(14).any(|w| w == b"never-upstream")))
        .map(say)
        .collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

fn say(request: &Request) -> String {
    request.iter().map(|arg| format!("\"{}\"", show(arg))).collect::<Vec<_>>().join(" ")
}
