//! The status page in a headless Chromium, by the scripts of `tests/clients/page`. The browser is installed by `tools/ensure-browser.sh`,
//! what drives it by `tools/ensure-clients.sh`; without them these tests fail and say so. `KEYFENCE_SCREENSHOTS=DIR` keeps pictures.
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use super::tenant;
use crate::support::wire::command;
use crate::support::{Client, Fence, Redis, free_addr};
use crate::{call, is};

/// A name that would do something if it were read as HTML; in settings, so in quotes.
const HOSTILE: &str = "<img/src=x/onerror=document.title='planted'>";

/// Runs a script with the page at `admin`. A line `@ WORD` of its asks for something, which `act` does. It must end well.
fn browse(script: &str, admin: SocketAddr, act: impl FnMut(&str)) {
    browse_with(script, admin, &[], act);
}

/// As [`browse`], with further arguments.
fn browse_with(script: &str, admin: SocketAddr, args: &[&str], mut act: impl FnMut(&str)) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/page").join(script);
    let mut child = Command::new("node")
        .arg(path)
        .arg(format!("http://{admin}/"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("node: {e}"));
    let (mut answers, mut errors) = (child.stdin.take().unwrap(), child.stderr.take().unwrap());
    let complaints = thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).map(|_| text)
    });
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let word = line.strip_prefix("@ ").unwrap_or_else(|| panic!("{script} says {line}"));
        act(word);
        writeln!(answers, "{word}").unwrap();
    }
    let (status, complaints) = (child.wait().unwrap(), complaints.join().unwrap().unwrap());
    assert!(status.success(), "{script}: {status}\n{complaints}");
}

/// So many times the same, at once.
fn many(client: &mut Client, times: usize, args: &[&str]) {
    client.pipeline(&command(args).repeat(times), times);
}

#[test]
fn it_shows_what_goes_on_as_text_and_talks_to_nobody_else() {
    let (redis, second) = (Redis::start(), Redis::start_with(free_addr(), &["--requirepass", "secret-6"]));
    is!(redis.client(), ["DEBUG", "POPULATE", "200000", "somebody"], "+OK\r\n");
    let config = format!(
        "[admin]\nslowlog_threshold = '0s'\n[tier]\nenabled = true\n[upstream.managed]\ndir = '<i>folder</i>'\n\
         [upstreams.'second']\nurl = 'redis://:secret-6@{}'\n\
         [tenants.acme]\npasswords = ['secret-1']\ntier = true\nlimits = {{ ops_per_second = 100000, connections = 9 }}\n\
         [tenants.beta]\npasswords = ['pw']\n[tenants.idle]\npasswords = ['secret-2']\n\
         [tenants.\"{HOSTILE}\"]\nprefix = 'hostile:'\nupstream = 'second'\npasswords = ['secret-3']\n",
        second.addr()
    );
    let fence = Fence::with_admin(redis.addr(), &config, &[]);
    fence.process().unwrap().wait_for_lines(1, "the tier is on");
    let mut acme = fence.client();
    is!(acme, ["AUTH", "acme", "secret-1"], "+OK\r\n");
    let mut beta = tenant(&fence, "beta");
    let mut hostile = fence.client();
    is!(hostile, ["AUTH", HOSTILE, "secret-3"], "+OK\r\n");
    is!(hostile, ["CLIENT", "SETNAME", "<img/src=x/onerror=alert('secret-4')>"], "+OK\r\n");
    let mut scanning = tenant(&fence, "beta");
    browse("live.mjs", fence.admin(), |word| match word {
        "traffic" => {
            is!(acme, ["SET", "k", "secret-value"], "+OK\r\n");
            many(&mut acme, 50, &["GET", "k"]);
            many(&mut acme, 1, &["GET", "k"]);
            many(&mut acme, 50, &["GET", "k"]);
            is!(
                beta,
                ["SET", "<script>alert('secret-key')</script>", "<img src=x onerror=alert('secret-5')>"],
                "+OK\r\n"
            );
            many(&mut beta, 30, &["LPUSH", "<script>alert('secret-key')</script>", "x"]);
            let _ = call!(beta, "<b>NOSUCH</b>");
            many(&mut hostile, 40, &["SET", "<img src=x onerror=alert('secret-key')>", "v"]);
        }
        "more" => many(&mut acme, 5000, &["GET", "k"]),
        // Scoped work goes on as long as the client is there, whose replies nobody awaits.
        "scan" => scanning.send(&command(&["DBSIZE"]).repeat(500)),
        _ => panic!("{word}"),
    });
}

#[test]
fn a_thousand_tenants_can_be_searched_and_sorted_and_nothing_moves() {
    let redis = Redis::start();
    let mut config = String::from("[upstream]\nacl_wall = 'off'\n");
    for n in 0..1000 {
        writeln!(config, "[tenants.t{n}]\npasswords = ['pw']").unwrap();
    }
    let fence = Fence::with_admin(redis.addr(), &config, &[]);
    let mut clients: Vec<Client> = Vec::new();
    browse("many.mjs", fence.admin(), |word| {
        assert_eq!(word, "clients");
        for (name, count, commands) in [("t4", 7, 3000), ("t5", 3, 900), ("t7", 2, 0), ("t8", 10, 200), ("t9", 9, 20)] {
            clients.extend((0..count).map(|_| tenant(&fence, name)));
            let client = clients.last_mut().unwrap();
            many(client, commands, &["GET", "k"]);
            many(client, commands / 10, &["NOSUCH"]);
        }
    });
}

/// Everything that the page can show at once: tenants within and past their limits, names of all lengths, errors, an upstream that is
/// not there, scoped work.
fn looks(device: &str) {
    const LONG: &str = "a-tenant-with-a-name-that-is-far-too-long-for-any-column-of-a-table";
    let (redis, archive) = (Redis::start(), Redis::start());
    let mut config = format!(
        "[admin]\nslowlog_threshold = '0s'\n[tier]\nenabled = true\n\
         [upstreams.archive]\nurl = 'redis://{}'\nacl_wall = 'off'\nsocket_timeout = '1h'\n\
         [upstreams.gone]\nurl = 'redis://{}'\n\
         [tenants.old]\nupstream = 'archive'\npasswords = ['pw']\n",
        archive.addr(),
        free_addr()
    );
    for n in 0..40 {
        let name = if n == 3 { LONG } else { &*format!("shop-{n}") };
        let (ops, tier) = (if n % 3 == 0 { 2000 } else { 50 }, n % 2 == 0);
        writeln!(config, "[tenants.{name}]\npasswords = ['pw']\ntier = {tier}").unwrap();
        writeln!(config, "limits = {{ ops_per_second = {ops}, connections = 4, bytes_per_second = '1MiB' }}").unwrap();
    }
    let fence = Fence::with_admin(redis.addr(), &config, &[]);
    let names = (4..12).map(|n| format!("shop-{n}")).chain([LONG.to_owned()]);
    let mut clients: Vec<Client> = names.map(|name| tenant(&fence, &name)).collect();
    archive.signal("STOP");
    let mut scanning = tenant(&fence, "old");
    scanning.send(&command(&["DBSIZE"]));
    browse_with("looks.mjs", fence.admin(), &[device], |word| {
        assert_eq!(word, "traffic");
        for (n, client) in clients.iter_mut().enumerate() {
            is!(client, ["SET", "k", "v"], "+OK\r\n");
            many(client, 20 * (n + 1), &["GET", "k"]);
            many(client, n, &["LPUSH", "k", "v"]);
        }
    });
}

#[test]
fn it_can_be_read_dark_and_light() {
    looks("desktop");
}

#[test]
fn it_can_be_read_on_a_telephone_dark_and_light() {
    looks("phone");
}

#[test]
fn it_says_when_keyfence_has_gone_and_when_it_is_back() {
    let redis = Redis::start();
    let mut fence = Some(Fence::with_admin(redis.addr(), super::TENANTS, &[]));
    let admin = fence.as_ref().unwrap().admin();
    let address = admin.to_string();
    browse("lost.mjs", admin, |word| match word {
        "stop" => assert!(fence.take().unwrap().stop().success()),
        "start" => fence = Some(Fence::with_tenants_and(redis.addr(), super::TENANTS, &["--admin", &address])),
        _ => panic!("{word}"),
    });
}
