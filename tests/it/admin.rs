//! The admin listener: what it answers, to whom, and that it bounds who asks.
mod metrics;
mod page;
mod stop;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::scripted::{Act, Scripted};
use crate::support::{Client, Fence, HANG, Redis, free_addr, http};
use crate::{call, is};

/// Two tenants; further lines may follow, of `[tenants.beta]` first.
pub(crate) const TENANTS: &str = "[tenants.acme]\npasswords = ['pw']\n[tenants.beta]\npasswords = ['pw']\n";

/// A client of this tenant.
pub(crate) fn tenant(fence: &Fence, name: &str) -> Client {
    let mut client = fence.client();
    is!(client, ["AUTH", name, "pw"], "+OK\r\n");
    client
}

#[test]
fn it_is_alive_ready_and_says_what_it_has() {
    let redis = Redis::start();
    let fence = Fence::with_admin(redis.addr(), TENANTS, &[]);
    let health = http::get(fence.admin(), "/healthz");
    assert_eq!((health.status, &*health.body), (200, "ok\n"));
    let ready = http::until(fence.admin(), "/readyz", |r| r.status == 200);
    assert_eq!(ready.body, "ready\n");
    assert_eq!(http::get(fence.admin(), "/else").status, 404);
    let page = http::get(fence.admin(), "/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(nonce.len() == 32 && page.body.contains(&format!("<script nonce=\"{nonce}\">")), "{policy}");
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for path in ["/", "/healthz", "/metrics", "/api/status", "/nowhere"] {
        let answer = http::get(fence.admin(), path);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{path}");
    }
}

#[test]
fn it_only_reads_and_only_for_this_machine() {
    let redis = Redis::start();
    let fence = Fence::with_admin(redis.addr(), TENANTS, &[]);
    let ask = |request: &str| http::exchange(fence.admin(), request.replace('\n', "\r\n").as_bytes()).unwrap();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"] {
        let answer = ask(&format!("{method} /metrics HTTP/1.1\nhost: localhost\nconnection: close\n\n"));
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    // What a browser sends whose page was made to name this address.
    for path in ["/", "/api/status", "/metrics"] {
        let answer = ask(&format!("GET {path} HTTP/1.1\nhost: evil.example:9180\nconnection: close\n\n"));
        assert_eq!(answer.status, 421, "{path}");
        assert!(!answer.body.contains("acme"), "{path}");
    }
    assert_eq!(ask("GET /healthz HTTP/1.0\n\n").status, 200);
    let head = ask("HEAD /api/status HTTP/1.1\nhost: localhost\nconnection: close\n\n");
    assert_eq!((head.status, &*head.body), (200, ""));
}

#[test]
fn an_upstream_that_hangs_is_not_up_however_patient_its_clients_are() {
    static HANGS: AtomicBool = AtomicBool::new(false);
    let redis = Redis::start();
    let between = Scripted::start(redis.addr(), |request| match &request[0][..] {
        b"PING" if HANGS.load(Ordering::Relaxed) => Act::Silence,
        _ => Act::Forward,
    });
    let fence = Fence::with_admin(between.addr(), &format!("[upstream]\nsocket_timeout = '1h'\n{TENANTS}"), &[]);
    http::until(fence.admin(), "/readyz", |r| r.status == 200);
    HANGS.store(true, Ordering::Relaxed);
    http::until(fence.admin(), "/readyz", |r| r.status == 503);
    HANGS.store(false, Ordering::Relaxed);
    http::until(fence.admin(), "/readyz", |r| r.status == 200);
}

#[test]
fn it_bounds_who_asks() {
    let redis = Redis::start();
    let fence = Fence::with_admin(redis.addr(), TENANTS, &[]);
    let long = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = http::exchange(fence.admin(), long.as_bytes());
    assert!(answer.is_none_or(|a| a.status == 431), "a head of a megabyte");
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "a: b\r\n".repeat(500));
    assert!(http::exchange(fence.admin(), many.as_bytes()).is_none_or(|a| a.status == 431));
    assert_eq!(http::exchange(fence.admin(), b"\0\x16\x03 nonsense\r\n\r\n").map_or(400, |a| a.status), 400);
    // Those who say nothing take all places, and one more is closed; in the end theirs are free again.
    let mut silent: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(fence.admin()).unwrap()).collect();
    let mut one_more = TcpStream::connect(fence.admin()).unwrap();
    one_more.set_read_timeout(Some(HANG)).unwrap();
    assert_eq!(one_more.read(&mut [0; 16]).unwrap_or(0), 0);
    // At once, not for its silence: those who came before it have their places still.
    silent[0].set_nonblocking(true).unwrap();
    assert_eq!(silent[0].read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
    silent[0].set_nonblocking(false).unwrap();
    let mut client = tenant(&fence, "acme");
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    for stream in &mut silent {
        stream.set_read_timeout(Some(HANG)).unwrap();
        let _ = stream.write_all(b"GET /");
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(http::get(fence.admin(), "/healthz").status, 200);
}

#[test]
fn an_address_that_another_has_is_taken_when_it_is_free() {
    let redis = Redis::start();
    let admin = free_addr();
    let other = TcpListener::bind(admin).unwrap();
    let fence = Fence::with_tenants_and(redis.addr(), TENANTS, &["--admin", &admin.to_string()]);
    let process = fence.process().unwrap();
    process.wait_for_line(|line| line.contains("ERROR") && line.contains("--admin names another one"));
    is!(tenant(&fence, "acme"), ["SET", "k", "v"], "+OK\r\n");
    drop(other);
    process.wait_for_line(|line| line.contains("admin: metrics"));
    assert_eq!(http::get(admin, "/healthz").status, 200);
}

#[test]
fn readiness_follows_the_upstream() {
    let mut redis = Redis::start();
    let fence = Fence::with_admin(redis.addr(), TENANTS, &[]);
    http::until(fence.admin(), "/readyz", |r| r.status == 200);
    redis.kill();
    let lost = http::until(fence.admin(), "/readyz", |r| r.status == 503);
    assert!(lost.body.contains("upstream 'default'") && lost.body.contains("does not answer"), "{}", lost.body);
    assert_eq!(http::get(fence.admin(), "/healthz").status, 200);
    redis.restart();
    http::until(fence.admin(), "/readyz", |r| r.status == 200);
}

#[test]
fn the_status_tells_of_tenants_upstreams_and_settings_and_of_no_secret() {
    let redis = Redis::start();
    let config =
        format!("{TENANTS}limits = {{ ops_per_second = 1000, connections = 7 }}\n[admin]\nslowlog_threshold = '0s'\n");
    let fence = Fence::with_admin(redis.addr(), &config, &[]);
    let mut acme = tenant(&fence, "acme");
    is!(acme, ["SET", "name-of-a-key", "planted-value"], "+OK\r\n");
    is!(
        acme,
        ["LPUSH", "name-of-a-key", "x"],
        "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
    );
    let _ = call!(acme, "NOSUCH");
    let found = http::until(fence.admin(), "/api/status", |r| {
        let status: serde_json::Value = serde_json::from_str(&r.body).unwrap();
        status["tenants"][0]["commands_total"] == 3 && status["upstreams"][0]["reachable"] == true
    });
    let status: serde_json::Value = serde_json::from_str(&found.body).unwrap();
    let acme = &status["tenants"][0];
    assert_eq!(acme["name"], "acme");
    assert_eq!((&acme["errors_total"], &acme["errors"]["wrongtype"]), (&2.into(), &1.into()), "{acme}");
    assert_eq!(acme["connections"], 1);
    let beta = &status["tenants"][1];
    assert_eq!((&beta["limits"]["ops_per_second"], &beta["limits"]["connections"]), (&1000.into(), &7.into()));
    let upstream = &status["upstreams"][0];
    assert_eq!(
        (&upstream["wall"], &upstream["tenants"], &upstream["server"]),
        (&"stands".into(), &2.into(), &"redis".into())
    );
    let slow = status["slowlog"].as_array().unwrap();
    assert!(slow.iter().any(|entry| entry["command"] == "SET" && entry["tenant"] == "acme"), "{slow:?}");
    let settings = status["settings"].as_array().unwrap();
    let value = |key: &str| settings.iter().find(|s| s["key"] == key).unwrap();
    assert_eq!(value("admin.slowlog_threshold")["value"], "0s");
    assert_eq!(value("upstream.url")["value"], "***");
    for secret in ["planted-value", "name-of-a-key", "\"pw\""] {
        assert!(!found.body.contains(secret), "{secret}");
    }
}

#[test]
fn latency_is_a_tenants_own() {
    let redis = Redis::start();
    let config = format!("{TENANTS}\n[admin]\nslowlog_threshold = '0s'\n");
    let fence = Fence::with_admin(redis.addr(), &config, &["--workers", "1"]);
    let (mut acme, mut beta) = (tenant(&fence, "acme"), tenant(&fence, "beta"));
    is!(acme, ["LATENCY", "HISTOGRAM", "get"], "*0\r\n");
    for _ in 0..3 {
        let _ = call!(acme, "GET", "k");
    }
    is!(acme, ["SORT", "k"], "*0\r\n");
    let histogram = String::from_utf8(call!(acme, "LATENCY", "HISTOGRAM", "GET", "nosuch")).unwrap();
    assert!(
        histogram.starts_with("*2\r\n$3\r\nget\r\n*4\r\n$5\r\ncalls\r\n:3\r\n$14\r\nhistogram_usec\r\n"),
        "{histogram}"
    );
    assert!(histogram.ends_with(":3\r\n"), "{histogram}");
    let all = String::from_utf8(call!(acme, "LATENCY", "HISTOGRAM")).unwrap();
    assert!(all.contains("$4\r\nsort\r\n") && all.contains("$17\r\nlatency|histogram\r\n"), "{all}");
    is!(beta, ["LATENCY", "HISTOGRAM", "get"], "*0\r\n");
    let latest = String::from_utf8(call!(acme, "LATENCY", "LATEST")).unwrap();
    assert!(
        latest.starts_with("*2\r\n*4\r\n$7\r\ncommand\r\n:") && latest.contains("$12\r\nfast-command\r\n"),
        "{latest}"
    );
    is!(beta, ["LATENCY", "LATEST"], "*0\r\n");
    is!(beta, ["LATENCY", "HISTORY", "command"], "*0\r\n");
    let history = call!(acme, "LATENCY", "HISTORY", "fast-command");
    assert!(history.starts_with(b"*1\r\n*2\r\n:") || history.starts_with(b"*2\r\n*2\r\n:"));
    assert!(call!(acme, "LATENCY", "GRAPH", "command").starts_with(b"$"));
    is!(beta, ["LATENCY", "GRAPH", "command"], "-ERR No samples available for event 'command'\r\n");
    assert!(call!(beta, "LATENCY", "DOCTOR").starts_with(b"$"));
    is!(acme, ["LATENCY", "RESET", "command", "nosuch"], ":1\r\n");
    is!(acme, ["LATENCY", "RESET"], ":1\r\n");
    is!(acme, ["LATENCY", "LATEST"], "*0\r\n");
    is!(acme, ["LATENCY", "NOSUCH"], "-ERR unknown subcommand 'NOSUCH'. Try LATENCY HELP.\r\n");
    assert!(call!(acme, "LATENCY", "HELP").starts_with(b"*"));
    let _ = call!(acme, "HELLO", "3");
    let map = call!(acme, "LATENCY", "HISTOGRAM", "get");
    assert!(map.starts_with(b"%1\r\n$3\r\nget\r\n%2\r\n$5\r\ncalls\r\n:3\r\n"), "{}", map.escape_ascii());
}
