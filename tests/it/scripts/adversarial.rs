//! S1 to S13 of the isolation notes: what a hostile tenant's script reaches, with the wall and without it.
use crate::support::wire::show;
use crate::support::{Fence, Redis};
use crate::tenancy::{Speaker, World, attack, line};

/// Lua that hands out the server's own `redis`, in every way a script may come by it.
pub(crate) const WAYS_OUT: &[&str] = &[
    "local r = _G.redis",
    "local r = rawget(_G, 'redis')",
    "local r = getmetatable(redis).__index",
    "local r = getmetatable(redis).__newindex",
    "local r = loadstring('return redis')()",
    "local r = load(function() local done = _G.x1 return nil end) r = loadstring('return _G')().redis",
    "local r = coroutine.wrap(function() return _G['re' .. 'dis'] end)()",
    "local r for k, v in pairs(_G) do if k == 'redis' then r = v end end",
    "local r = select(2, next({_G.redis}))",
    "local r = redis setmetatable(r, nil) r = _G.redis",
    "local r = redis",
];

/// What it then calls, to read, write or learn of what is not its own.
pub(crate) const CALLS: &[&str] = &[
    "'GET', 'b:s'",
    "'get', 'b:' .. 's'",
    "'GET', ARGV[1]:sub(2)",
    "'SET', 'b:s', 'mine'",
    "'DEL', 'b:s'",
    "'MGET', 'a:s', 'b:s'",
    "'RENAME', 'b:s', 'a:taken'",
    "'COPY', 'b:s', 'a:taken'",
    "'RPOPLPUSH', 'b:l', 'a:l'",
    "'SORT', 'a:l', 'BY', 'nosort', 'GET', 'b:*'",
    "'SORT', 'a:l', 'STORE', 'b:l'",
    "'GEORADIUS', 'a:g', 0, 0, 1, 'km', 'STORE', 'a:x', 'STORE', 'b:x'",
    "'XREADGROUP', 'GROUP', 'grp', 'c', 'STREAMS', 'b:st', '>'",
    "'PFMERGE', 'b:hll'",
    "'PUBLISH', 'b:chat', 'x'",
    "'SPUBLISH', 'b:chat', 'x'",
    "'SCAN', 0",
    "'SCAN', '0', 'MATCH', 'b:*'",
    "'KEYS', '*'",
    "'RANDOMKEY'",
    "'DBSIZE'",
    "'FLUSHDB'",
    "'FLUSHALL'",
    "'SWAPDB', 0, 1",
    "'MOVE', 'b:s', 1",
    "'PUBSUB', 'CHANNELS'",
    "'INFO'",
    "'CONFIG', 'GET', '*'",
    "'CLIENT', 'LIST'",
    "'CLIENT', 'KILL', 'TYPE', 'normal'",
    "'ACL', 'LIST'",
    "'ACL', 'WHOAMI'",
    "'AUTH', 'default', ''",
    "'HELLO', 3, 'AUTH', 'default', ''",
    "'MEMORY', 'STATS'",
    "'CLUSTER', 'GETKEYSINSLOT', 0, 9",
    "'COMMAND', 'GETKEYS', 'GET', 'b:s'",
    "'OBJECT', 'ENCODING', 'b:s'",
    "'DEBUG', 'OBJECT', 'b:s'",
    "'MIGRATE', '127.0.0.1', 1, 'b:s', 0, 9",
    "'RESTORE', 'b:new', 0, 'x'",
    "'SELECT', 1",
    "'EVAL', 'return 1', 0",
    "'EVALSHA', 'e0e1f9fabfc9d4800c877a703b823ac0578ff8db', 0",
    "'SCRIPT', 'FLUSH'",
    "'SCRIPT', 'KILL'",
    "'FUNCTION', 'LIST'",
    "'FUNCTION', 'FLUSH'",
    "'FCALL', 'f', 0",
    "'SUBSCRIBE', 'b:chat'",
    "'MULTI'",
    "'MONITOR'",
    "'SHUTDOWN', 'NOSAVE'",
    "'SLOWLOG', 'GET'",
    "'LATENCY', 'DOCTOR'",
    "'REPLICAOF', 'NO', 'ONE'",
    "'MODULE', 'LIST'",
    "'SAVE'",
    "'WAIT', 0, 0, 0",
];

/// Calls whose names get the attacker's prefix when they go through the prelude: they then are its own, and find nothing or make their own.
pub(crate) fn own_when_prefixed(call: &str) -> bool {
    !["SORT", "GEORADIUS'", "PFMERGE"].iter().any(|name| call.contains(name))
        && (call.contains("b:") || call.contains("ARGV"))
        && !["MIGRATE", "COMMAND", "DEBUG", "SCAN", "SUBSCRIBE"].iter().any(|name| call.contains(name))
}

#[test]
fn s1_s2_s3_the_servers_own_redis_reaches_nothing() {
    attack(|a, _| {
        for way in WAYS_OUT {
            for call in CALLS {
                let through_prelude = way.ends_with("= redis");
                for how in ["call", "pcall"] {
                    let source = format!(
                        "{way} local v = r.{how}({call}) if type(v) == 'table' and v.err then return v end return {{'got', v}}"
                    );
                    let reply = a.args(&[b"EVAL", source.as_bytes(), b"0", b"/b:s"]);
                    let harmless = through_prelude && own_when_prefixed(call);
                    assert!(reply.starts_with('-') || harmless, "{source}: {reply}");
                }
            }
        }
        // What the prelude made the attacker's own is gone again, so that the names outside are as they were.
        for own in ["b:s", "b:x", "a:taken", "a:l", "b:l"] {
            a.say(&format!("DEL {own}"));
        }
    });
}

#[test]
fn s4_shared_tables_cannot_be_altered() {
    let world = World::new("require");
    let mut a = world.tenant("a");
    for poison in [
        "getmetatable('').__index = function() return 'attacker' end",
        "getmetatable('').x = 1",
        "string.upper = function() return 'attacker' end",
        "rawset(string, 'upper', function() return 'attacker' end)",
        "rawset(_G, 'upper', 1)",
        "_G.redis.call = function() return 'attacker' end",
        "rawset(_G.redis, 'call', function() return 'attacker' end)",
        "setmetatable(_G, {__index = function() return 'attacker' end})",
        "setmetatable(string, {})",
        "table.concat = nil",
        "cjson.decode = nil",
        "math.floor = nil",
        "pcall = nil",
        "__redis__err__handler = function() return 'attacker' end",
    ] {
        let reply = a.args(&[b"EVAL", poison.as_bytes(), b"0"]);
        assert!(reply.starts_with("-ERR "), "{poison}: {reply}");
    }
    // What is a script's own `redis`, it may break, for itself.
    a.args(&[b"EVAL", b"getmetatable(redis).GET = 'R101' rawset(redis, 'call', nil)", b"0"]);
    let mut b = world.tenant("b");
    let check = b"return {('x'):upper(), redis.call('GET', 's'), table.concat({1, 2}), type(pcall), math.floor(1.5)}";
    assert_eq!(b.args(&[b"EVAL", check, b"0"]), "*5|$1|X|$6|victim|$2|12|$8|function|:1");
}

#[test]
fn s4_the_settings_of_cjson_are_each_scripts_own() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    let uses = b"local function able(...) return tostring((pcall(...))) end \
                 return {cjson.encode({1.23456789}), able(cjson.decode, '[[1]]'), able(cjson.encode, {[1] = 1, [30] = 2}), \
                 able(cjson.encode, 1 / 0)}";
    let wanted = "*4|$12|[1.23456789]|$4|true|$5|false|$5|false";
    assert_eq!(b.args(&[b"EVAL", uses, b"0"]), wanted);
    let poison =
        b"local j = _G['cj' .. 'son'] j.encode_number_precision(1) j.decode_max_depth(1) j.encode_max_depth(1) \
                   j.encode_sparse_array(true, 0, 0) j.encode_invalid_numbers(true) j.decode_invalid_numbers(false)";
    assert_eq!(a.args(&[b"EVAL", poison, b"0"]), "$-1");
    assert_eq!(b.args(&[b"EVAL", uses, b"0"]), wanted);
}

#[test]
fn s6_scripts_of_others_are_not_there() {
    let world = World::new("require");
    let (mut a, mut b, mut upstream) = (world.tenant("a"), world.tenant("b"), world.upstream());
    let source = b"return redis.call('GET', 's')";
    let digest = b.args(&[b"SCRIPT", b"LOAD", source]).replace("$40|", "");
    assert_eq!(b.say(&format!("SCRIPT EXISTS {digest}")), "*1|:1");
    assert_eq!(b.say(&format!("EVALSHA {digest} 0")), "$6|victim");
    // Nor what the upstream has of its own accord.
    assert!(upstream.args(&[b"SCRIPT", b"LOAD", b"return 'raw'"]).starts_with("$40|"));
    for known in [digest.clone(), sha(&mut upstream, "return 'raw'")] {
        assert_eq!(a.say(&format!("SCRIPT EXISTS {known}")), "*1|:0");
        assert_eq!(a.say(&format!("EVALSHA {known} 0")), "-NOSCRIPT No matching script. Please use EVAL.");
        assert_eq!(a.say(&format!("EVALSHA_RO {known} 0")), "-NOSCRIPT No matching script. Please use EVAL.");
    }
    // The same source is each tenant's own.
    assert_eq!(a.args(&[b"EVAL", source, b"0"]), "$8|attacker");
    assert_eq!(a.say(&format!("EVALSHA {digest} 0")), "$8|attacker");
    assert_eq!(b.say(&format!("EVALSHA {digest} 0")), "$6|victim");
}

fn sha(speaker: &mut Speaker, source: &str) -> String {
    speaker.args(&[b"EVAL", b"return redis.sha1hex(ARGV[1])", b"0", source.as_bytes()]).replace("$40|", "")
}

#[test]
fn s7_a_flush_empties_ones_own_table_only() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    let digest = sha(&mut b, "return 1");
    for speaker in [&mut a, &mut b] {
        assert_eq!(speaker.args(&[b"SCRIPT", b"LOAD", b"return 1"]), format!("$40|{digest}"));
    }
    assert_eq!(a.say("SCRIPT FLUSH"), "+OK");
    assert_eq!(a.say("SCRIPT FLUSH SYNC"), "+OK");
    assert_eq!(a.say("SCRIPT FLUSH async"), "+OK");
    assert_eq!(a.say("SCRIPT FLUSH NOW"), "-ERR SCRIPT FLUSH only support SYNC|ASYNC option");
    assert_eq!(a.say(&format!("EVALSHA {digest} 0")), "-NOSCRIPT No matching script. Please use EVAL.");
    assert_eq!(b.say(&format!("EVALSHA {digest} 0")), ":1");
    let mut upstream = world.upstream();
    assert!(!upstream.say("INFO commandstats").contains("script|flush"), "the upstream was flushed");
}

/// Two tenants on an upstream that says it is busy after 50 ms.
pub(crate) fn impatient() -> World {
    let redis = Redis::start_with(crate::support::free_addr(), &["--busy-reply-threshold", "50"]);
    let fence =
        Fence::with_tenants(redis.addr(), &format!("[upstream]\nacl_wall = \"require\"\n{}", crate::tenancy::TWO));
    World { redis, fence }
}

/// Waits until the upstream is busy with none any more.
fn wait_until_free(world: &World) {
    let mut upstream = world.redis.client();
    while upstream.call(&[b"PING"]).starts_with(b"-BUSY") {
        std::thread::yield_now();
    }
}

/// Waits until the upstream is busy with a script.
pub(crate) fn wait_until_busy(world: &World) {
    let mut upstream = world.redis.client();
    while !upstream.call(&[b"PING"]).starts_with(b"-BUSY") {
        std::thread::yield_now();
    }
}

pub(crate) const ENDLESS: &[u8] = b"while true do end";

#[test]
fn s7_s9_a_script_is_killed_by_its_own_tenant_only() {
    let world = impatient();
    let (mut a, mut b, mut b2) = (world.tenant("a"), world.tenant("b"), world.tenant("b"));
    assert_eq!(a.say("SCRIPT KILL"), "-NOTBUSY No scripts in execution right now.");
    b.client().send(&crate::support::wire::command(&[&b"EVAL"[..], ENDLESS, b"0"]));
    wait_until_busy(&world);
    // One that waits its turn, or has waited, does not make the attacker the owner of what runs.
    let mut a2 = world.tenant("a");
    let busy = show(&a2.client().call(&[b"EVAL", b"return 1", b"0"]));
    assert!(busy.starts_with("-BUSY"), "{busy}");
    for _ in 0..3 {
        let reply = show(&a.client().call(&[b"SCRIPT", b"KILL"]));
        assert_eq!(reply, "-NOTBUSY No scripts in execution right now.\\r\\n");
    }
    assert!(world.redis.client().call(&[b"PING"]).starts_with(b"-BUSY"), "the attacker killed the victim's script");
    assert_eq!(b2.client().call(&[b"SCRIPT", b"KILL"]), b"+OK\r\n");
    let killed = show(&b.client().reply());
    assert!(killed.contains("Script killed by user with SCRIPT KILL"), "{killed}");
    assert_eq!(b.say("PING"), "+PONG");
    assert_eq!(b2.say("SCRIPT KILL"), "-NOTBUSY No scripts in execution right now.");
}

#[test]
fn s7_a_script_that_nobody_hears_of_is_its_own_tenants() {
    for transaction in [false, true] {
        let world = impatient();
        let (mut a, mut b, mut b2) = (world.tenant("a"), world.tenant("b"), world.tenant("b"));
        let eval = crate::support::wire::command(&[&b"EVAL"[..], ENDLESS, b"0"]);
        let quiet = b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$3\r\nOFF\r\n";
        let (multi, exec) = (b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n");
        b.client().send(quiet);
        if transaction {
            b.client().send(&[&multi[..], &eval, exec].concat());
        } else {
            b.client().send(&eval);
        }
        wait_until_busy(&world);
        // The attacker has one under way, too.
        let mut a2 = world.tenant("a");
        a2.client().send(&eval);
        let reply = show(&a.client().call(&[b"SCRIPT", b"KILL"]));
        assert_eq!(reply, "-NOTBUSY No scripts in execution right now.\\r\\n", "{transaction}");
        let busy = show(&a2.client().reply());
        assert!(busy.starts_with("-BUSY"), "{busy}");
        assert_eq!(b2.client().call(&[b"SCRIPT", b"KILL"]), b"+OK\r\n", "{transaction}");
        // It ends at its next look at the clock, which is after the answer.
        wait_until_free(&world);
        assert_eq!(b2.say("SET free 1"), "+OK");
    }
}

#[test]
fn s7_a_reply_that_is_not_read_is_no_script_that_runs() {
    let world = impatient();
    let (mut a, mut b, mut b2) = (world.tenant("a"), world.tenant("b"), world.tenant("b"));
    // More than any buffer on the way holds.
    let large = b"return string.rep('x', 60000000)";
    a.client().send(&crate::support::wire::command(&[&b"EVAL"[..], large, b"0"]));
    // It has run once the first byte is there.
    assert_eq!(a.client().stream().peek(&mut [0]).expect("the reply begins"), 1);
    b.client().send(&crate::support::wire::command(&[&b"EVAL"[..], ENDLESS, b"0"]));
    wait_until_busy(&world);
    let reply = show(&world.tenant("a").client().call(&[b"SCRIPT", b"KILL"]));
    assert_eq!(reply, "-NOTBUSY No scripts in execution right now.\\r\\n");
    assert_eq!(b2.client().call(&[b"SCRIPT", b"KILL"]), b"+OK\r\n");
    let killed = show(&b.client().reply());
    assert!(killed.contains("Script killed by user"), "{killed}");
}

#[test]
fn s9_a_script_that_has_written_is_not_killed() {
    let mut world = impatient();
    let (mut a, mut a2) = (world.tenant("a"), world.tenant("a"));
    let writes = [b"redis.call('SET', 'x', 1) ", ENDLESS].concat();
    a.client().send(&crate::support::wire::command(&[&b"EVAL"[..], &writes, b"0"]));
    wait_until_busy(&world);
    let reply = show(&a2.client().call(&[b"SCRIPT", b"KILL"]));
    assert!(reply.starts_with("-UNKILLABLE "), "{reply}");
    world.redis.kill();
}

#[test]
fn s9_a_transaction_is_killed_like_a_script() {
    let world = impatient();
    let (mut a, mut b, mut b2) = (world.tenant("a"), world.tenant("b"), world.tenant("b"));
    // Queued is not running: the attacker has one in an open transaction all along.
    assert_eq!(a.client().call(&[b"MULTI"]), b"+OK\r\n");
    assert_eq!(a.client().call(&[b"EVAL", b"return 1", b"0"]), b"+QUEUED\r\n");
    assert_eq!(b.client().call(&[b"MULTI"]), b"+OK\r\n");
    assert_eq!(b.client().call(&[b"EVAL", ENDLESS, b"0"]), b"+QUEUED\r\n");
    b.client().send(b"*1\r\n$4\r\nEXEC\r\n");
    wait_until_busy(&world);
    let mut a2 = world.tenant("a");
    let reply = show(&a2.client().call(&[b"SCRIPT", b"KILL"]));
    assert_eq!(reply, "-NOTBUSY No scripts in execution right now.\\r\\n");
    assert_eq!(b2.client().call(&[b"SCRIPT", b"KILL"]), b"+OK\r\n");
    let killed = line(&b.client().reply());
    assert!(killed.starts_with("*1|-") && killed.contains("killed"), "{killed}");
    assert_eq!(a.client().call(&[b"EXEC"]), b"*1\r\n:1\r\n");
}

#[test]
fn s10_a_script_has_a_longest_length() {
    let world = World::new("require");
    let mut a = world.tenant("a");
    let long = format!("return 1 -- {}", "x".repeat(1024 * 1024));
    assert_eq!(a.args(&[b"EVAL", long.as_bytes(), b"0"]), "-ERR the script is longer than 1048576 bytes");
    assert_eq!(a.args(&[b"SCRIPT", b"LOAD", long.as_bytes()]), "-ERR the script is longer than 1048576 bytes");
    let fits = format!("return 1 -- {}", "x".repeat(1024 * 1024 - 100));
    assert_eq!(a.args(&[b"EVAL", fits.as_bytes(), b"0"]), ":1");
    let argument = vec![b'v'; 3 * 1024 * 1024];
    assert_eq!(a.args(&[b"EVAL", b"return #ARGV[1]", b"0", &argument]), ":3145728");
}

#[test]
fn s10_new_scripts_without_end_are_refused_and_known_ones_are_not() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    let mut refused = None;
    // More than come free again while this runs.
    for i in 0..3000 {
        let reply = a.args(&[b"EVAL", format!("return {i}").as_bytes(), b"0"]);
        if reply != format!(":{i}") {
            refused = Some((i, reply));
            break;
        }
    }
    let (count, reply) = refused.expect("an end");
    assert!(count >= 500 && reply.starts_with("-BUSY too many new scripts"), "{count} {reply}");
    for known in [0, count - 1] {
        assert_eq!(a.args(&[b"EVAL", format!("return {known}").as_bytes(), b"0"]), format!(":{known}"));
    }
    // Forgetting them brings no new ones.
    assert_eq!(a.say("SCRIPT FLUSH"), "+OK");
    let fresh = (0..3000).map(|i| a.args(&[b"SCRIPT", b"LOAD", format!("return 'fresh {i}'").as_bytes()]));
    assert!(fresh.take_while(|reply| reply.starts_with('$')).count() < 3000);
    assert_eq!(b.args(&[b"EVAL", b"return 1", b"0"]), ":1");
}

#[test]
fn s11_names_come_back_without_the_prefix() {
    attack(|a, _| {
        for source in [
            "return KEYS",
            "return redis.error_reply('MINE ' .. KEYS[1])",
            "return redis.status_reply(KEYS[1])",
            "error(KEYS[1])",
            "redis.call('XADD', KEYS[1], '*', 'f', 'v') return redis.call('XREADGROUP', 'GROUP', 'none', 'c', 'STREAMS', KEYS[1], '>')",
            "redis.call('RPUSH', KEYS[1], 1) return redis.call('LMPOP', 1, KEYS[1], 'LEFT')",
            "return redis.call('XPENDING', KEYS[1], 'none')",
            "return redis.sha1hex(KEYS[1])",
            "return cjson.encode(KEYS)",
        ] {
            let reply = a.args(&[b"EVAL", source.as_bytes(), b"1", b"some-key"]);
            assert!(!reply.contains("a:") && !reply.contains("keyfence-"), "{source}: {reply}");
            a.say("DEL some-key");
        }
    });
}

#[test]
fn s12_s13_flags_and_the_debugger() {
    let world = World::new("require");
    let mut a = world.tenant("a");
    let flags = b"#!lua flags=allow-cross-slot-keys\nreturn redis.call('GET', 's')";
    assert_eq!(a.args(&[b"EVAL", flags, b"0"]), "$8|attacker");
    for refused in ["SCRIPT DEBUG YES", "SCRIPT DEBUG SYNC", "SCRIPT SHOW e0e1f9fabfc9d4800c877a703b823ac0578ff8db"] {
        a.refused(refused);
    }
}

#[test]
fn without_a_wall_there_are_no_scripts() {
    let world = World::new("off");
    let mut a = world.tenant("a");
    for refused in
        ["EVAL return(1) 0", "EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0", "SCRIPT EXISTS x", "SCRIPT LOAD x"]
    {
        let reply = a.refused(refused);
        assert!(reply.starts_with("-NOPERM scripts are off: there is no ACL wall upstream"), "{refused}: {reply}");
    }
}

/// keyfence with these settings of tenant `a`.
fn with(settings: &str) -> World {
    let redis = Redis::start();
    let config = format!("{settings}\n[tenants.b]\npasswords = [\"pb\"]\n");
    let fence = Fence::with_tenants(redis.addr(), &config);
    World { redis, fence }
}

#[test]
fn the_settings_turn_scripts_off_and_on() {
    let world = with("[tenants.a]\npasswords = [\"pa\"]\nscripts = \"off\"");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    assert_eq!(a.say("EVAL return(1) 0"), "-NOPERM scripts are off for this tenant");
    assert_eq!(b.say("EVAL return(1) 0"), ":1");
    let on = with("[upstream]\nacl_wall = \"off\"\n[tenants.a]\npasswords = [\"pa\"]\nscripts = \"on\"");
    let mut a = on.tenant("a");
    assert_eq!(
        a.args(&[b"EVAL", b"redis.call('SET', 'k', 'v') return redis.call('GET', KEYS[1])", b"1", b"k"]),
        "$1|v"
    );
    // Then the prelude is all there is: it refuses what it does not know, but a script may go round it.
    let reply = a.args(&[b"EVAL", b"return redis.call('SCAN', 0)", b"0"]);
    assert!(reply.starts_with("-ERR The user executing the script can't run this command or subcommand"), "{reply}");
}

#[test]
fn what_is_denied_outside_is_denied_inside() {
    let world =
        with("[tenants.a]\npasswords = [\"pa\"]\ncommands = { deny = [\"del\", \"@hash\", \"object|encoding\"] }");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    for refused in ["'DEL', 'k'", "'HSET', 'h', 'f', 'v'", "'OBJECT', 'ENCODING', 'k'"] {
        for redis in ["redis", "_G.redis"] {
            let source = format!("return {redis}.call({refused})");
            let reply = a.args(&[b"EVAL", source.as_bytes(), b"0"]);
            assert!(reply.starts_with("-ERR The user executing the script can't"), "{source}: {reply}");
        }
        let source = format!("return redis.pcall({refused})");
        let reply = b.args(&[b"EVAL", source.as_bytes(), b"0"]);
        assert!(!reply.starts_with("-ERR The user"), "{source}: {reply}");
    }
    assert_eq!(a.args(&[b"EVAL", b"return redis.call('SET', 'k', 'v')", b"0"]), "+OK");
    let silent = |allow: &str| {
        let world = with(&format!("[tenants.a]\npasswords = [\"pa\"]\ncommands = {{ {allow} }}"));
        let mut a = world.tenant("a");
        for call in ["call('PUBLISH', 'c', 'x')", "call('SPUBLISH', 'c', 'x')", "pcall('publish', 'a:c', 'x')"] {
            for redis in ["redis", "_G.redis"] {
                let source = format!("return {redis}.{call}");
                let reply = a.args(&[b"EVAL", source.as_bytes(), b"0"]);
                assert!(reply.starts_with("-ERR The user executing the script can't"), "{allow}: {source}: {reply}");
            }
        }
    };
    silent("deny = [\"publish\", \"spublish\"]");
    silent("deny = [\"@pubsub\"]");
    silent("allow = [\"get\", \"eval\"]");
    assert_eq!(b.args(&[b"EVAL", b"return redis.call('PUBLISH', 'c', 'x')", b"0"]), ":0");
    let world = with("[tenants.a]\npasswords = [\"pa\"]\ncommands = { allow = [\"get\", \"eval\"] }");
    let mut a = world.tenant("a");
    assert_eq!(a.args(&[b"EVAL", b"return redis.call('GET', 'k')", b"0"]), "$-1");
    let reply = a.args(&[b"EVAL", b"return redis.call('SET', 'k', 'v')", b"0"]);
    assert!(reply.starts_with("-ERR The user executing the script can't"), "{reply}");
    let reply = a.refused("EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0");
    assert_eq!(reply, "-NOPERM User a has no permissions to run the 'evalsha' command");
}
