//! The second wall, seen from the upstream's side.
use super::{Speaker, TWO, World, line, login, words};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};

/// The users that keyfence made for tenants: while a wall is raised there is one more, which holes are looked for with.
fn users(redis: &Redis) -> Vec<String> {
    let reply = line(&redis.client().call(&[b"ACL", b"USERS"]));
    reply.split('|').filter(|user| user.contains("-data-") || user.contains("-sort-")).map(str::to_owned).collect()
}

/// The data user of this tenant.
fn data_user(redis: &Redis, tenant: &str) -> String {
    let ours = |user: &String| user.contains("-data-") && user.ends_with(&format!("-{tenant}"));
    users(redis).into_iter().find(ours).unwrap()
}

/// Asks until the upstream is back: nothing but `-UPSTREAM` errors may come before.
fn until_back(client: &mut Client, text: &str) -> Vec<u8> {
    loop {
        let reply = client.call(&text.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        if !reply.starts_with(b"-UPSTREAM ") {
            return reply;
        }
    }
}

#[test]
fn u9_the_upstream_refuses_what_is_another_tenants() {
    let world = World::new("require");
    let user = data_user(&world.redis, "a");
    let mut upstream = world.upstream();
    let mut dry = |text: &str| upstream.say(&format!("ACL DRYRUN {user} {text}"));
    for own in [
        "GET a:s",
        "SET a:new v",
        "MGET a:s a:x",
        "DEL a:s",
        "BLPOP a:l 1",
        "XREAD STREAMS a:st 0",
        "RENAME a:s a:x",
        "PING",
        "MULTI",
        "EXEC",
        "WATCH a:s",
        "OBJECT ENCODING a:s",
        "ZUNIONSTORE a:d 2 a:z a:z",
        "COPY a:s a:x",
    ] {
        assert_eq!(dry(own), "+OK", "{own}");
    }
    for foreign in [
        "GET b:s",
        "GET s",
        "GET aa:s",
        "GET A:s",
        "SET b:s v",
        "MGET a:s b:s",
        "EXISTS b:s",
        "TYPE b:s",
        "TTL b:s",
        "TOUCH a:s b:s",
        "WATCH b:s",
        "DUMP b:s",
        "OBJECT ENCODING b:s",
        "MEMORY USAGE b:s",
        "UNLINK b:s",
        "RENAME a:s b:s",
        "RENAME b:s a:s",
        "COPY a:s b:s",
        "COPY b:s a:s",
        "XREAD STREAMS a:st b:st 0 0",
        "SMOVE a:set b:set m",
        "LMOVE b:l a:l LEFT LEFT",
        "BLPOP b:l 1",
        "ZUNIONSTORE a:d 2 a:z b:z",
        "SUNIONSTORE b:d a:set",
        "PFCOUNT b:hll",
        "PFMERGE a:d b:hll",
        "GEORADIUS a:g 0 0 1 km STORE b:x",
        "GEOSEARCHSTORE b:g a:g FROMMEMBER m BYRADIUS 1 km",
        "SORT b:l",
        "SORT a:l STORE b:l",
        "SORT a:l BY b:w_*",
        "SORT_RO b:l",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "DBSIZE",
        "FLUSHDB",
        "FLUSHALL",
        "SWAPDB 0 1",
        "SELECT 1",
        "EVAL x 1 b:s",
        "EVALSHA x 1 b:s",
        "SCRIPT LOAD x",
        "FCALL f 1 b:s",
        "SCRIPT FLUSH",
        "FUNCTION LIST",
        "CONFIG GET *",
        "ACL LIST",
        "ACL SETUSER x",
        "ACL WHOAMI",
        "DEBUG OBJECT a:s",
        "MONITOR",
        "CLIENT LIST",
        "CLIENT KILL ID 1",
        "CLIENT TRACKING ON BCAST",
        "CLIENT INFO",
        "INFO",
        "MEMORY STATS",
        "PUBSUB CHANNELS",
        "SUBSCRIBE b:c",
        "SUBSCRIBE a:c b:c",
        "PSUBSCRIBE *",
        "PSUBSCRIBE a:x*",
        "SSUBSCRIBE b:c",
        "SUBSCRIBE __keyevent@0__:expired",
        "SUBSCRIBE __redis__:invalidate",
        "PUBLISH b:ch v",
        "SHUTDOWN",
        "REPLICAOF NO ONE",
        "MIGRATE h 1 a:s 0 1",
        "SLOWLOG GET",
        "LATENCY DOCTOR",
        "CLUSTER GETKEYSINSLOT 0 1",
        "COMMAND",
        "MODULE LIST",
        "SAVE",
        "BGSAVE",
        "LASTSAVE",
        "ROLE",
        "PSYNC x 0",
    ] {
        assert_ne!(dry(foreign), "+OK", "{foreign}");
    }
    // Rules that say no more than the prefix.
    let list = line(&world.redis.client().call(&[b"ACL", b"LIST"]));
    let rules = list.split('|').find(|rules| rules.contains(&user)).unwrap();
    assert!(
        rules.contains(" ~a:* ") && rules.contains(" &a:* ") && !rules.contains("nopass") && !rules.contains("allkeys"),
        "{rules}"
    );
}

#[test]
fn every_connection_of_a_tenant_is_its_users() {
    let world = World::new("require");
    let mut held: Vec<Speaker> = Vec::new();
    for tenant in ["a", "b"] {
        for state in ["WATCH s", "MULTI", "HELLO 3"] {
            let mut speaker = world.tenant(tenant);
            speaker.say(state);
            held.push(speaker);
        }
        let mut speaker = world.tenant(tenant);
        speaker.client().send(&words("BLPOP none 0"));
        held.push(speaker);
        assert_eq!(world.tenant(tenant).say("SORT l"), "*2|$1|1|$1|2");
    }
    world.redis.wait_for_blocked(2);
    let clients = String::from_utf8(world.redis.client().call(&[b"CLIENT", b"LIST"])).unwrap();
    for client in clients.lines().filter(|l| l.starts_with("id=")) {
        let field = |name: &str| client.split(' ').find_map(|f| f.strip_prefix(name)).unwrap();
        let (user, last) = (field("user="), field("cmd="));
        // "ping": keyfence asks every second whether the upstream answers.
        let data =
            !["ping", "client|list", "acl|users", "acl|setuser", "acl|deluser", "command", "info"].contains(&last);
        assert!(!data || user.starts_with("keyfence-"), "{client}");
    }
}

#[test]
fn the_wall_is_raised_again_after_its_users_went() {
    let world = World::new("require");
    let (mut a, mut b) = (login(&world.fence, "a", "pa"), login(&world.fence, "b", "pb"));
    for round in 0..3 {
        let gone = users(&world.redis);
        assert_eq!(gone.len(), 4);
        let args: Vec<&str> = ["ACL", "DELUSER"].into_iter().chain(gone.iter().map(String::as_str)).collect();
        let mut upstream = world.redis.client();
        assert_eq!(upstream.ask(&command(&args)), b":4\r\n");
        let value = format!("v{round}");
        assert_eq!(until_back(&mut a, &format!("SET s {value}")), b"+OK\r\n");
        assert_eq!(show(&until_back(&mut b, "GET s")), "$6\\r\\nvictim\\r\\n");
        assert_eq!(world.upstream().say("GET a:s"), line(format!("$2\r\n{value}\r\n").as_bytes()));
        assert_eq!(users(&world.redis).len(), 4);
    }
}

#[test]
fn the_wall_is_raised_again_after_a_restart() {
    let mut world = World::new("require");
    let mut clients =
        [("a", "pa"), ("b", "pb"), ("a", "pa")].map(|(user, password)| login(&world.fence, user, password));
    for _ in 0..2 {
        world.redis.restart();
        for client in &mut clients {
            assert_eq!(until_back(client, "SET s v"), b"+OK\r\n");
            assert_eq!(client.call(&[b"ECHO", b"in sync"]), b"$7\r\nin sync\r\n");
        }
        assert_eq!(users(&world.redis).len(), 4);
        let user = data_user(&world.redis, "a");
        assert_ne!(world.upstream().say(&format!("ACL DRYRUN {user} GET b:s")), "+OK");
    }
}

/// An upstream where keyfence's own user may do anything but manage users.
fn without_acl() -> Redis {
    let redis = Redis::start();
    let mut admin = Speaker::of(redis.client());
    assert_eq!(admin.say("ACL SETUSER proxy on >secret ~* &* +@all -acl"), "+OK");
    redis
}

#[test]
fn required_and_not_to_be_had() {
    let redis = without_acl();
    let own = "[upstream]\nusername = \"proxy\"\npassword = \"secret\"\nacl_wall = \"require\"\n";
    let fence = Fence::with_tenants(redis.addr(), &format!("{own}{TWO}"));
    let mut a = login(&fence, "a", "pa");
    for text in ["GET s", "SET s v", "BLPOP l 0", "WATCH s", "SORT l"] {
        let reply = line(&a.ask(&words(text)));
        assert!(reply.starts_with("-UPSTREAM "), "{text}: {reply}");
    }
    let replies = a.pipeline(&[words("MULTI"), words("SET s v"), words("EXEC")].concat(), 3);
    assert!(replies[2].starts_with(b"-"), "{}", show(&replies[2]));
    assert_eq!(Speaker::of(redis.client()).say("DBSIZE"), ":0");
    // It is served as soon as the upstream lets us.
    assert_eq!(Speaker::of(redis.client()).say("ACL SETUSER proxy +acl"), "+OK");
    assert_eq!(until_back(&mut a, "SET s v"), b"+OK\r\n");
    assert_eq!(users(&redis).len(), 4);
}

#[test]
fn wished_for_and_not_to_be_had() {
    let redis = without_acl();
    let own = "[upstream]\nusername = \"proxy\"\npassword = \"secret\"\nacl_wall = \"auto\"\n";
    let fence = Fence::with_tenants(redis.addr(), &format!("{own}{TWO}"));
    let mut a = Speaker::new(&fence, "a");
    assert_eq!(a.say("SET s v"), "+OK");
    fence.process().unwrap().wait_for_line(|line| line.contains("WARN") && line.contains("no second wall"));
    assert!(!fence.process().unwrap().output().contains("secret"));
}

#[test]
fn two_processes_on_one_upstream() {
    let redis = Redis::start();
    let config = format!("[upstream]\nacl_wall = \"require\"\n{TWO}");
    let mut first = Fence::with_tenants(redis.addr(), &config);
    let second = Fence::with_tenants(redis.addr(), &config);
    let (mut one, mut two) = (Speaker::new(&first, "a"), Speaker::new(&second, "a"));
    assert_eq!(one.say("SET s 1"), "+OK");
    assert_eq!(two.say("GET s"), "$1|1");
    assert_eq!(users(&redis).len(), 8);
    assert!(first.stop().success());
    assert!(one.client().read_to_end().is_empty());
    assert_eq!(users(&redis).len(), 4, "a process takes its users with it");
    assert_eq!(two.say("SET s 2"), "+OK");
    assert_eq!(Speaker::new(&second, "b").say("GET s"), "$-1");
    let third = Fence::with_tenants(redis.addr(), &config);
    assert_eq!(Speaker::new(&third, "a").say("GET s"), "$1|2");
    assert_eq!(two.say("GET s"), "$1|2");
}

#[test]
fn users_go_with_the_process() {
    let redis = Redis::start();
    let mut fence = Fence::with_tenants(redis.addr(), TWO);
    let mut a = Speaker::new(&fence, "a");
    assert_eq!(a.say("SET s v"), "+OK");
    assert_eq!(users(&redis).len(), 4);
    assert!(fence.stop().success());
    assert!(users(&redis).is_empty());
}
