//! Modules on a server that has them (RediSearch, RedisJSON, RedisTimeSeries, RedisBloom): the rows whose second keys the server's ACL does
//! not see, and everything of search that is not served. `tests/it/differential` compares the replies of the others on the same server.
use std::collections::BTreeSet;

use keyfence::command::ROWS;

use crate::is;
use crate::support::wire::show;
use crate::support::{Client, Fence, Redis};
use crate::tenancy::{Speaker, TWO};
use crate::tier;

/// A value of each kind; `%` is the owner.
const SEED: [&str; 9] = [
    "SET s %",
    "JSON.SET j $ {\"owner\":\"%\"}",
    "CMS.INITBYDIM c 100 5",
    "CMS.INCRBY c % 7",
    "TDIGEST.CREATE t",
    "TDIGEST.ADD t 1 2 3",
    "TS.CREATE ts LABELS owner %",
    "TS.ADD ts 1000 7",
    "FT.SUGADD sug % 1",
];

const KEYS: [&str; 6] = ["s", "j", "c", "t", "ts", "sug"];

/// keyfence with `a`, the attacker, and `b`, the victim, in front of a server with modules, both seeded.
fn world(wall: &str) -> (Redis, Fence) {
    let redis = Redis::with_modules();
    let fence = Fence::with_tenants(redis.addr(), &format!("[upstream]\nacl_wall = \"{wall}\"\n{TWO}"));
    for (tenant, owner) in [("a", "attacker"), ("b", "victim")] {
        let mut speaker = Speaker::new(&fence, tenant);
        for seed in SEED {
            let reply = speaker.say(&seed.replace('%', owner));
            assert!(!reply.starts_with('-'), "{seed}: {reply}");
        }
    }
    (redis, fence)
}

/// All keys upstream, and a digest of what the victim's hold.
fn state(redis: &Redis) -> (BTreeSet<String>, Vec<String>) {
    let mut upstream = Speaker::of(redis.client());
    let names = upstream.say("KEYS *").split('|').filter(|part| part.contains(':')).map(str::to_owned).collect();
    let digests = KEYS.map(|key| upstream.say(&format!("DEBUG DIGEST-VALUE b:{key}")));
    (names, digests.into())
}

#[test]
fn a8_second_keys_of_modules_are_the_tenants_own() {
    for wall in ["off", "require"] {
        let (redis, fence) = world(wall);
        let before = state(&redis);
        let mut a = Speaker::new(&fence, "a");
        // The same words as the victim's names find the attacker's own, or nothing.
        for (line, reply) in [
            ("JSON.MGET j b:j $.owner", "*2|$12|[\"attacker\"]|$-1"),
            ("CMS.INITBYDIM sum 100 5", "+OK"),
            ("CMS.MERGE sum 1 c", "+OK"),
            ("CMS.QUERY sum attacker victim", "*2|:7|:0"),
            ("TDIGEST.MERGE all 1 t", "+OK"),
            ("TDIGEST.MAX all", "$1|3"),
            ("FT.SUGGET sug v", "*0"),
            ("FT.SUGLEN b:sug", ":0"),
            ("TS.CREATE mean", "+OK"),
            ("TS.CREATERULE ts mean AGGREGATION avg 10", "+OK"),
            ("TS.ADD ts 2000 9", ":2000"),
            ("TS.ADD ts 3000 9", ":3000"),
            ("TS.DELETERULE ts mean", "+OK"),
            ("JSON.MSET j $ 1 b:j $ 2", "+OK"),
            ("JSON.GET b:j", "$1|2"),
        ] {
            assert_eq!(a.say(line), reply, "{line}, wall {wall}");
        }
        for line in ["CMS.MERGE sum 1 b:c", "TDIGEST.MERGE all 1 b:t", "TS.CREATERULE ts b:ts AGGREGATION avg 10"] {
            let said = a.refused(line);
            assert!(!said.contains("a:"), "{line}: {said}");
        }
        let after = state(&redis);
        assert_eq!(before.1, after.1, "the victim's keys have changed, wall {wall}");
        let strays: Vec<_> =
            after.0.iter().filter(|name| !name.starts_with("a:") && !before.0.contains(*name)).collect();
        assert!(strays.is_empty(), "{strays:?}, wall {wall}");
    }
}

#[test]
fn what_selects_series_of_all_tenants_is_refused() {
    let (_redis, fence) = world("require");
    let mut a = Speaker::new(&fence, "a");
    for line in [
        "TS.MGET FILTER owner=victim",
        "TS.MRANGE - + FILTER owner=victim",
        "TS.MREVRANGE - + FILTER owner=victim",
        "TS.QUERYINDEX owner=victim",
        "TS.INFO ts",
    ] {
        assert!(a.refused(line).starts_with("-NOPERM User a has no permissions"), "{line}");
    }
    assert_eq!(a.say("TS.RANGE ts - +"), "*1|*2|:1000|+7");
}

#[test]
fn search_is_refused_row_by_row() {
    let (redis, fence) = world("off");
    let mut upstream = redis.client();
    // The operator's, over everybody's keys.
    is!(upstream, ["FT.CREATE", "all", "PREFIX", "1", "b:", "SCHEMA", "owner", "TEXT"], "+OK\r\n");
    let mut a = Speaker::new(&fence, "a");
    let mut tried = 0;
    for row in ROWS.iter().filter(|row| row.family == "module search" && !row.served) {
        tried += 1;
        for rest in ["", " all", " all *", " all x y", " all b:s 1 FIELDS a b", " all PREFIX 1 b: SCHEMA owner TEXT"] {
            let reply = a.say(&format!("{}{rest}", row.name));
            assert!(reply.starts_with("-NOPERM") || reply.starts_with("-ERR"), "{}{rest}: {reply}", row.name);
        }
    }
    assert!(tried > 100, "only {tried} rows");
    let stats = show(&upstream.call(&[b"INFO", b"commandstats"]));
    let ran: Vec<&str> =
        stats.split("\\r\\n").filter(|line| line.starts_with("cmdstat_FT.") || line.contains("_FT")).collect();
    assert!(ran.iter().all(|line| line.contains("FT.CREATE") || line.contains("FT.SUG")), "{ran:?}");
}

#[test]
fn documents_kept_by_the_tier_are_true() {
    let redis = Redis::with_modules();
    let fence = Fence::start_at(redis.addr(), tier::ON);
    fence.process().unwrap().wait_for_lines(1, "the tier is on");
    let (mut reads, mut writes, mut upstream) = (fence.client(), fence.client(), redis.client());
    let read = |client: &mut Client| show(&client.call(&[b"JSON.GET", b"doc", b"$.n"]));
    // Reads until the tier answers, which it does soon after all changes have been told.
    let kept = |client: &mut Client| {
        let before = tier::count(client, "tier_hits");
        loop {
            let reply = read(client);
            if tier::count(client, "tier_hits") > before {
                return reply;
            }
        }
    };
    for n in 0..20 {
        is!(writes, ["JSON.SET", "doc", "$", format!("{{\"n\":{n}}}")], "+OK\r\n");
        let want = |n: i32| format!("${}\\r\\n[{n}]\\r\\n", n.to_string().len() + 2);
        assert_eq!(kept(&mut reads), want(n));
        assert_eq!(show(&writes.call(&[b"JSON.NUMINCRBY", b"doc", b"$.n", b"100"])), want(n + 100));
        assert_eq!(read(&mut reads), want(n + 100));
        assert_eq!(kept(&mut reads), want(n + 100));
        // And past keyfence: the server tells of what its module did.
        is!(upstream, [&b"JSON.SET"[..], &fence.upstream_key("doc"), b"$.n", b"-1"], "+OK\r\n");
        while read(&mut reads) != want(-1) {}
        assert_eq!(kept(&mut reads), want(-1));
    }
}
