//! What an operator sees of it, and settings that change.
use std::process::Command;

use super::{Near, ON, calls, count, settle};
use crate::support::{Fence, Redis};
use crate::{call, is};

fn keyfence(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_keyfence")).env_clear().args(args).output().unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn explain_says_whether_it_can_answer() {
    let explain = |args: &[&str], tier: bool| {
        let mut all = vec!["explain"];
        if tier {
            all.extend(["--tier", "1MiB"]);
        }
        all.push("--");
        let text = keyfence(&[&all[..], args].concat());
        text.lines().find_map(|line| line.strip_prefix("tier        ")).unwrap_or("nothing said").to_owned()
    };
    assert_eq!(explain(&["GET", "k"], true), "may answer this");
    assert_eq!(explain(&["MGET", "k", "j"], true), "may answer this, when it has all of the keys");
    assert_eq!(explain(&["TTL", "k"], true), "never answers this command");
    assert!(explain(&["HGET", "k", "f"], true).contains("unless"));
    assert!(explain(&["RENAME", "k", "j"], true).starts_with("nothing of k j is served"));
    assert!(explain(&["GET", "k"], false).starts_with("off for this tenant"));
}

#[test]
fn check_says_why_there_is_none() {
    let redis = Redis::start();
    let url = format!("redis://{}", redis.addr());
    let line = |args: &[&str]| {
        let text = keyfence(&[&["check", "--upstream", &url][..], args].concat());
        text.lines().find(|line| line.starts_with("tier ")).unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert!(line(&["--tier", "1MiB"]).contains(" ok "));
    assert!(line(&[]).contains(" off "));
    is!(redis.client(), ["ACL", "SETUSER", "default", "-client|tracking"], "+OK\r\n");
    let refused = line(&["--tier", "1MiB"]);
    assert!(refused.contains(" no ") && refused.contains("NOPERM"), "{refused}");
}

#[test]
fn an_upstream_that_does_not_track_is_served_without() {
    let redis = Redis::start();
    is!(redis.client(), ["ACL", "SETUSER", "default", "-client|tracking"], "+OK\r\n");
    let fence = Fence::start_at(redis.addr(), ON);
    fence.process().unwrap().wait_for_lines(1, "no tier: the upstream does not tell of changes");
    let mut client = fence.client();
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    for _ in 0..3 {
        is!(client, ["GET", "k"], "$1\r\nv\r\n");
    }
    assert_eq!((calls(&redis, "get"), count(&mut client, "tier_live")), (3, 0));
    // It is asked again.
    is!(redis.client(), ["ACL", "SETUSER", "default", "+client|tracking"], "+OK\r\n");
    fence.process().unwrap().wait_for_lines(1, "the tier is on");
    settle(&mut client);
}

#[test]
fn it_is_turned_off_and_on_by_a_reload() {
    let redis = Redis::start();
    let config = |tier: bool| {
        format!("{ON}[upstream]\nsocket_timeout = \"100ms\"\n[tenants.a]\npasswords = [\"pa\"]\ntier = {tier}\n")
    };
    let fence = Fence::with_tenants(redis.addr(), &config(true));
    fence.process().unwrap().wait_for_lines(1, "the tier is on");
    let mut client = fence.client();
    is!(client, ["AUTH", "a", "pa"], "+OK\r\n");
    is!(client, ["SET", "k", "v"], "+OK\r\n");
    settle(&mut client);
    is!(client, ["GET", "k"], "$1\r\nv\r\n");
    fence.reload(&config(false), "settings reloaded");
    let before = calls(&redis, "get");
    (0..3).for_each(|_| is!(client, ["GET", "k"], "$1\r\nv\r\n"));
    assert_eq!(calls(&redis, "get"), before + 3);
    is!(client, ["KEYFENCE", "TIER"], "$4\r\nnone\r\n");
    // Nobody tells of this one, and it is not remembered.
    is!(redis.client(), ["SET", "a:k", "w"], "+OK\r\n");
    fence.reload(&config(true), "settings reloaded");
    while count(&mut client, "tier_live") == 0 {}
    is!(client, ["GET", "k"], "$1\r\nw\r\n");
    settle(&mut client);
}

#[test]
fn a_tenant_that_may_not_ask_for_ttls_has_none() {
    let redis = Redis::start();
    let config = format!("{ON}[tenants.a]\npasswords = [\"pa\"]\ntier = true\ncommands = {{ deny = [\"pttl\"] }}\n");
    let fence = Fence::with_tenants(redis.addr(), &config);
    let mut client = fence.client();
    is!(client, ["AUTH", "a", "pa"], "+OK\r\n");
    (0..3).for_each(|_| is!(client, ["GET", "k"], "$-1\r\n"));
    assert_eq!(calls(&redis, "get"), 3);
}

#[test]
fn what_it_does_is_counted() {
    let near = Near::start();
    let mut client = near.client();
    assert_eq!(count(&mut client, "tier_live"), 1);
    call!(client, "SET", "k", "v");
    settle(&mut client);
    let before: Vec<u64> = ["tier_hits", "tier_misses", "tier_fills"].iter().map(|f| count(&mut client, f)).collect();
    (0..10).for_each(|_| is!(client, ["GET", "k"], "$1\r\nv\r\n"));
    let after: Vec<u64> = ["tier_hits", "tier_misses", "tier_fills"].iter().map(|f| count(&mut client, f)).collect();
    assert_eq!((after[0] - before[0], after[1] - before[1], after[2] - before[2]), (9, 1, 1));
    assert!(count(&mut client, "tier_entries") >= 1 && count(&mut client, "tier_bytes") > 0);
    let told = count(&mut client, "tier_invalidations");
    is!(near.redis.client(), ["SET", near.key("k"), "w"], "+OK\r\n");
    settle(&mut client);
    assert!(count(&mut client, "tier_invalidations") > told);
    is!(client, ["GET", "k"], "$1\r\nw\r\n");
}
