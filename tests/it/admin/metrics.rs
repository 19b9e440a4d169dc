//! `/metrics`: its form, its counts, and that the documents name what there is.
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use keyfence::admin::families::{FAMILIES, Kind};

use super::{TENANTS, tenant};
use crate::support::{Fence, Redis, http};
use crate::{call, is};

/// Samples by name and labels, as they are written.
fn scrape(at: SocketAddr) -> BTreeMap<String, f64> {
    let text = http::get(at, "/metrics");
    assert_eq!(text.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(text.body.ends_with("# EOF\n"));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    let samples: Vec<_> = text.body.lines().filter(|line| !line.starts_with('#')).map(sample).collect();
    let count = samples.len();
    let by_name: BTreeMap<_, _> = samples.into_iter().collect();
    assert_eq!(by_name.len(), count, "no sample comes twice");
    by_name
}

/// Scrapes until `wanted` holds.
fn scrape_until(at: SocketAddr, wanted: impl Fn(&BTreeMap<String, f64>) -> bool) -> BTreeMap<String, f64> {
    let began = std::time::SystemTime::now();
    loop {
        let samples = scrape(at);
        if wanted(&samples) {
            return samples;
        }
        assert!(began.elapsed().unwrap() < crate::support::HANG, "{samples:#?}");
    }
}

fn of(samples: &BTreeMap<String, f64>, name: &str) -> f64 {
    samples.get(name).copied().unwrap_or_else(|| panic!("no {name} in {samples:#?}"))
}

#[test]
fn every_family_is_there_and_no_other() {
    let redis = Redis::start();
    let config = format!(
        "{TENANTS}limits = {{ ops_per_second = 100000, connections = 7 }}\ntier = true\n[tier]\nenabled = true\n"
    );
    let fence = Fence::with_admin(redis.addr(), &config, &[]);
    let mut client = tenant(&fence, "acme");
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    let _ = call!(client, "NOSUCH");
    let up = "keyfence_upstream_up{upstream=\"default\"}";
    let samples = scrape_until(fence.admin(), |samples| samples.get(up) == Some(&1.0));
    let found: BTreeSet<&str> = samples.keys().map(|name| name.split('{').next().unwrap()).collect();
    let known: BTreeSet<String> = FAMILIES.iter().flat_map(|family| family.samples()).collect();
    let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
    assert_eq!(found, known);
    for family in FAMILIES {
        for name in family.samples() {
            for sample in samples.keys().filter(|sample| sample.split('{').next() == Some(&name)) {
                let labels = sample.split_once('{').map_or("", |(_, labels)| labels);
                for label in family.labels {
                    assert!(labels.contains(&format!("{label}=\"")), "{sample} has a {label}");
                }
                let extra = usize::from(name.ends_with("_bucket"));
                assert_eq!(labels.matches("=\"").count(), family.labels.len() + extra, "{sample}");
            }
        }
    }
}

#[test]
fn what_was_done_is_counted_once() {
    let redis = Redis::start();
    let fence = Fence::with_admin(redis.addr(), TENANTS, &["--workers", "2"]);
    let mut acme = tenant(&fence, "acme");
    let mut beta = tenant(&fence, "beta");
    for _ in 0..10 {
        is!(acme, ["SET", "k", "v"], "+OK\r\n");
    }
    acme.pipeline(&b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n".repeat(500), 500);
    acme.pipeline(b"*1\r\n$5\r\nMULTI\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*1\r\n$4\r\nEXEC\r\n", 3);
    is!(acme, ["LPUSH", "k", "v"], "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n");
    let _ = call!(acme, "CONFIG", "SET", "a", "b");
    let _ = call!(acme, "NO\"SUCH\n");
    let _ = call!(acme, "GET");
    let _ = call!(acme, "PING");
    let _ = call!(acme, "KEYS", "*");
    is!(beta, ["EVAL", "return 1", "0"], ":1\r\n");
    let mut stranger = fence.client();
    let _ = call!(stranger, "AUTH", "acme", "wrong");
    let samples = scrape_until(fence.admin(), |samples| {
        samples.get("keyfence_logins_total{result=\"refused\"}") == Some(&1.0)
            && samples.get("keyfence_commands_total{tenant=\"acme\",upstream=\"default\"}") == Some(&519.0)
    });
    let of = |name: &str| of(&samples, name);
    assert_eq!(of("keyfence_commands_total{tenant=\"beta\",upstream=\"default\"}"), 1.0);
    for (command, calls) in [
        ("set", 10),
        ("get", 502),
        ("multi", 1),
        ("exec", 1),
        ("lpush", 1),
        ("config|set", 1),
        ("ping", 1),
        ("keys", 1),
        ("eval", 1),
        ("other", 1),
        ("auth", 3),
    ] {
        assert_eq!(
            of(&format!("keyfence_command_calls_total{{command=\"{command}\"}}")),
            f64::from(calls),
            "{command}"
        );
    }
    let took = "keyfence_command_call_duration_seconds_count{command=";
    assert_eq!(of(&format!("{took}\"get\"}}")), 501.0, "one of them by QUEUED; the one too short not");
    assert_eq!(of(&format!("{took}\"set\"}}")), 10.0);
    assert_eq!(of(&format!("{took}\"keys\"}}")), 1.0);
    for (kind, count) in [("wrongtype", 1), ("noperm", 1), ("unknown_command", 1), ("wrong_arguments", 1)] {
        let name = format!("keyfence_errors_total{{tenant=\"acme\",upstream=\"default\",kind=\"{kind}\"}}");
        assert_eq!(of(&name), f64::from(count), "{kind}");
    }
    assert_eq!(of("keyfence_logins_total{result=\"accepted\"}"), 2.0);
    assert_eq!(of("keyfence_client_connections_total{result=\"accepted\"}"), 3.0);
    assert_eq!(of("keyfence_tenant_connections{tenant=\"acme\",upstream=\"default\"}"), 1.0);
    assert!(of("keyfence_sent_bytes_total{tenant=\"acme\",upstream=\"default\"}") > 500.0 * 7.0);
    assert!(of("keyfence_received_bytes_total{tenant=\"acme\",upstream=\"default\"}") > 500.0 * 20.0);
    let (up, queue) = ("keyfence_upstream_duration_seconds_count", "keyfence_queue_duration_seconds_count");
    assert_eq!(of(&format!("{up}{{upstream=\"default\"}}")), of(&format!("{queue}{{upstream=\"default\"}}")));
    assert_eq!(of("keyfence_upstream_wall{upstream=\"default\",state=\"stands\"}"), 1.0);
}

#[test]
fn buckets_grow_and_end_with_all() {
    let redis = Redis::start();
    let fence = Fence::with_admin(redis.addr(), TENANTS, &[]);
    let mut acme = tenant(&fence, "acme");
    acme.pipeline(&b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n".repeat(100), 100);
    let text = http::get(fence.admin(), "/metrics").body;
    for family in FAMILIES.iter().filter(|family| family.kind == Kind::Histogram) {
        let [bucket, _, count] = &family.samples()[..] else { panic!("a histogram has three") };
        let mut seen = 0;
        let mut last: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with(&format!("{bucket}{{"))) {
            let (labels, value) = line.strip_prefix(&**bucket).unwrap().rsplit_once(' ').unwrap();
            let (before, rest) = labels.split_once("le=\"").unwrap();
            let (bound, rest) = rest.split_once('"').unwrap();
            let labels = [before, rest.trim_start_matches(',')].concat();
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            let value: f64 = value.parse().unwrap();
            let before = last.insert(labels, (bound, value)).unwrap_or((0.0, 0.0));
            assert!(bound > before.0 && value >= before.1, "{line}");
            seen += 1;
        }
        assert!(seen > 0, "{bucket}");
        for (labels, (bound, value)) in last {
            assert!(bound.is_infinite(), "{labels}");
            let count = format!("{count}{labels} ");
            let line = text.lines().find(|line| line.starts_with(&count)).unwrap_or_else(|| panic!("{count}"));
            assert_eq!(line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap(), value, "{line}");
        }
    }
}

#[test]
fn names_of_tenants_are_escaped() {
    let redis = Redis::start();
    let config = "[tenants.'a\"b\\c']\nprefix = 'x:'\npasswords = ['pw']\n";
    let fence = Fence::with_admin(redis.addr(), config, &[]);
    let mut client = fence.client();
    is!(client, ["AUTH", "a\"b\\c", "pw"], "+OK\r\n");
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    let samples = scrape(fence.admin());
    assert_eq!(of(&samples, "keyfence_commands_total{tenant=\"a\\\"b\\\\c\",upstream=\"default\"}"), 1.0);
}

/// What Prometheus's own client library makes of it, where the test clients are installed.
#[test]
fn the_reference_parser_takes_it() {
    let redis = Redis::start();
    let fence = Fence::with_admin(redis.addr(), TENANTS, &[]);
    let mut client = tenant(&fence, "acme");
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    let script = "import sys\nfrom prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\nprint(len(list(parse(sys.stdin.read()))))";
    let python = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let mut child = std::process::Command::new(&python)
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}; tools/ensure-clients.sh installs it", python.display()));
    let text = http::get(fence.admin(), "/metrics").body;
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "the parser refused it");
    assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), FAMILIES.len().to_string());
}

/// The table of metrics in the documentation.
fn table() -> String {
    let mut table = String::from("| metric | kind | labels | says |\n|---|---|---|---|\n");
    for family in FAMILIES {
        let names = family.samples();
        let name = if family.kind == Kind::Histogram { names[0].trim_end_matches("_bucket") } else { &*names[0] };
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = format!("{:?}", family.kind).to_lowercase();
        table.push_str(&format!("| `{name}` | {kind} | {} | {} |\n", labels.join(", "), family.help));
    }
    table
}

#[test]
fn the_documentation_has_every_metric() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- metrics -->\n").unwrap();
    let (held, after) = rest.split_once("<!-- /metrics -->").unwrap();
    if held != table() && std::env::var_os("KEYFENCE_BLESS").is_some() {
        std::fs::write(&path, [before, "<!-- metrics -->\n", &table(), "<!-- /metrics -->", after].concat()).unwrap();
        return;
    }
    assert!(held == table(), "docs/operations.md is stale; KEYFENCE_BLESS=1 cargo test rewrites it");
}

/// Every word of `text` that begins like a metric's name.
fn names(text: &str) -> BTreeSet<String> {
    let rest = text.split("keyfence_").skip(1);
    let word = |rest: &str| rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap().to_owned();
    rest.map(|rest| format!("keyfence_{}", word(rest))).collect()
}

#[test]
fn the_dashboard_and_the_alarms_name_what_there_is() {
    let known: BTreeSet<String> = FAMILIES.iter().flat_map(|family| family.samples()).collect();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let dashboard = std::fs::read_to_string(root.join("dist/grafana-dashboard.json")).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() > 30);
    for name in names(&dashboard) {
        assert!(known.contains(&name), "the dashboard asks for {name}");
    }
    let shown = names(&dashboard);
    for family in FAMILIES {
        assert!(family.samples().iter().any(|name| shown.contains(name)), "no panel shows {}", family.name);
    }
    let page = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let (_, alarms) = page.split_once("### What to alarm on").unwrap();
    let alarms = alarms.split_once("\n## ").unwrap().0;
    for name in names(alarms) {
        assert!(known.contains(&name), "an alarm asks for {name}");
    }
    // `name{label="…"}`, in both.
    for text in [alarms.to_owned(), dashboard.replace("\\\"", "\"")] {
        for rest in text.split("keyfence_").skip(1) {
            let Some((name, labels)) =
                rest.split_once('{').filter(|(name, _)| !name.contains(|c: char| !c.is_ascii_lowercase() && c != '_'))
            else {
                continue;
            };
            let family = FAMILIES.iter().find(|family| family.samples().contains(&format!("keyfence_{name}"))).unwrap();
            for label in labels.split('}').next().unwrap().split(',').filter(|label| !label.is_empty()) {
                let label = label.split(['=', '!']).next().unwrap().trim();
                let scraped = ["instance", "job"].contains(&label);
                assert!(scraped || family.labels.contains(&label), "keyfence_{name} has no label {label}");
            }
        }
    }
}
