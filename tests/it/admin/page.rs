//! The status page in a headless Chromium, by the scripts of `tests/clients/page`. The browser is installed by `tools/ensure-browser.sh`,
//! what drives it by `tools/ensure-clients.sh`; without them these tests fail and say so. `KEYFENCE_SCREENSHOTS=DIR` keeps pictures.
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

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

/// Traffic that goes on until this is dropped, so that rates stay what they are however slow the machine is.
struct Traffic(Option<SyncSender<()>>, Option<JoinHandle<()>>);

impl Traffic {
    fn start(mut act: impl FnMut() + Send + 'static) -> Self {
        const EVERY: Duration = Duration::from_millis(250);
        let (stop, stopped) = sync_channel(0);
        let again = move || stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout);
        Self(
            Some(stop),
            Some(thread::spawn(move || {
                while again() {
                    act();
                }
            })),
        )
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.0.take();
        let ended = self.1.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the traffic ended before the test");
    }
}

#[test]
fn it_shows_what_goes_on_as_text_and_talks_to_nobody_else() {
    let (redis, second) = (Redis::start(), Redis::start_with(free_addr(), &["--requirepass", "secret-6"]));
    is!(redis.client(), ["DEBUG", "POPULATE", "200000", "somebody"], "+OK\r\n");
    let config = format!(
        "[admin]\nslowlog_threshold = '0s'\n[tier]\nenabled = true\n[upstream.managed]\ndir = '<i>folder</i>'\n\
         [upstreams.second]\nurl = 'redis://:secret-6@{}'\n\
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
    let mut goes_on = Some((acme, hostile));
    let mut traffic = None;
    browse("live.mjs", fence.admin(), |word| match word {
        "traffic" => {
            let key = "<script>alert('secret-key')</script>";
            is!(beta, ["SET", key, "<img src=x onerror=alert('secret-5')>"], "+OK\r\n");
            many(&mut beta, 30, &["LPUSH", key, "x"]);
            let _ = call!(beta, "<b>NOSUCH</b>");
            let (mut acme, mut hostile) = goes_on.take().unwrap();
            let mut beta = tenant(&fence, "beta");
            is!(acme, ["SET", "k", "secret-value"], "+OK\r\n");
            traffic = Some(Traffic::start(move || {
                many(&mut acme, 100, &["GET", "k"]);
                many(&mut beta, 30, &["GET", "k"]);
                many(&mut hostile, 10, &["SET", "<img src=x onerror=alert('secret-key')>", "v"]);
            }));
        }
        "more" => many(&mut beta, 10, &["LPUSH", "<script>alert('secret-key')</script>", "x"]),
        // Scoped work goes on as long as the client is there, whose replies nobody awaits.
        "scan" => scanning.send(&command(&["DBSIZE"]).repeat(500)),
        _ => panic!("{word}"),
    });
    drop(traffic);
}

#[test]
fn a_thousand_tenants_can_be_searched_and_sorted_and_nothing_moves() {
    let redis = Redis::start();
    let mut config = String::from("[upstream]\nacl_wall = 'off'\n");
    for n in 0..1000 {
        writeln!(config, "[tenants.t{n}]\npasswords = ['pw']").unwrap();
    }
    let fence = Fence::with_admin(redis.addr(), &config, &[]);
    let mut traffic = None;
    browse("many.mjs", fence.admin(), |word| {
        assert_eq!(word, "traffic");
        let busy = [("t4", 7, 300), ("t5", 3, 90), ("t7", 2, 0), ("t8", 10, 30), ("t9", 9, 10)];
        let mut clients = busy.map(|(name, count, _)| (0..count).map(|_| tenant(&fence, name)).collect::<Vec<_>>());
        traffic = Some(Traffic::start(move || {
            for (clients, (_, _, commands)) in clients.iter_mut().zip(busy) {
                many(&mut clients[0], commands, &["GET", "k"]);
                many(&mut clients[0], commands / 10, &["NOSUCH"]);
            }
        }));
    });
    drop(traffic);
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
    let traffic = Traffic::start(move || {
        for (n, client) in clients.iter_mut().enumerate() {
            many(client, 1, &["SET", "k", "v"]);
            many(client, 3 * (n + 1), &["GET", "k"]);
            many(client, n / 2, &["LPUSH", "k", "v"]);
        }
    });
    browse_with("looks.mjs", fence.admin(), &[device], |word| panic!("{word}"));
    drop(traffic);
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
