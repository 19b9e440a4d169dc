//! S1 to S10 of the isolation notes for functions: what a hostile tenant's library reaches, as it loads and when it runs.
use crate::scripts::adversarial::{CALLS, ENDLESS, WAYS_OUT, impatient, own_when_prefixed, wait_until_busy};
use crate::support::scripted::{Act, Scripted};
use crate::support::wire::{command, show};
use crate::support::{Fence, Redis};
use crate::tenancy::{Speaker, TWO, World, attack, line};

/// A library `l` with a function `f` that has this body.
fn library(body: &str) -> Vec<u8> {
    format!("#!lua name=l\nredis.register_function('f', function(KEYS, ARGV) {body} end)").into_bytes()
}

fn load(speaker: &mut Speaker, code: &[u8]) -> String {
    speaker.args(&[b"FUNCTION", b"LOAD", b"REPLACE", code])
}

/// Every name that the upstream lists, of libraries and of functions.
fn names(world: &World) -> Vec<String> {
    let listed = world.upstream().say("FUNCTION LIST");
    let parts: Vec<&str> = listed.split('|').collect();
    let after =
        |word: &str| -> Vec<String> { parts.windows(3).filter(|w| w[0] == word).map(|w| w[2].to_owned()).collect() };
    [after("library_name"), after("name")].concat()
}

#[test]
fn s1_s2_s3_the_servers_own_redis_reaches_nothing_from_a_function() {
    attack(|a, world| {
        let mut reached = 0;
        for way in WAYS_OUT {
            let cases: Vec<_> = CALLS.iter().flat_map(|call| ["call", "pcall"].map(|how| (how, call))).collect();
            let mut code = String::from("#!lua name=l");
            for (i, (how, call)) in cases.iter().enumerate() {
                code += &format!(
                    "\nredis.register_function('f{i}', function(KEYS, ARGV) {way} local v = r.{how}({call}) \
                     if type(v) == 'table' and v.err then return v end return {{'got', v}} end)"
                );
            }
            let loaded = load(a, code.as_bytes());
            for (i, (how, call)) in cases.iter().enumerate() {
                let reply = a.args(&[b"FCALL", format!("f{i}").as_bytes(), b"0", b"/b:s"]);
                let harmless = way.ends_with("= redis") && own_when_prefixed(call);
                assert!(reply.starts_with('-') || harmless, "{way} {how}({call}): {reply}");
                assert!(!reply.contains("keyfence_"), "{way} {how}({call}): {reply}");
                reached += usize::from(loaded == "$1|l" && !reply.starts_with("-ERR Function not found"));
            }
        }
        // With the wall every one of them ran, and without it none was even loaded.
        let walled = names(world).len() > 1;
        assert_eq!(reached, if walled { WAYS_OUT.len() * CALLS.len() * 2 } else { 0 });
        for own in ["b:s", "b:x", "a:taken", "a:l", "b:l"] {
            a.say(&format!("DEL {own}"));
        }
    });
}

#[test]
fn s4_functions_do_not_alter_one_another() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    for poison in [
        "getmetatable('').__index = function() return 'attacker' end",
        "string.upper = function() return 'attacker' end",
        "rawset(string, 'upper', function() return 'attacker' end)",
        "rawset(_G, 'upper', 1)",
        "_G.redis.call = function() return 'attacker' end",
        "rawset(_G.redis, 'register_function', function() return 'attacker' end)",
        "setmetatable(_G, {__index = function() return 'attacker' end})",
        "setmetatable(string, {})",
        "table.concat = nil",
        "cjson.decode = nil",
        "pcall = nil",
        "KEYS[1].x = 1",
    ] {
        assert_eq!(load(&mut a, &library(poison)), "$1|l");
        let reply = a.say("FCALL f 1 k");
        assert!(reply.starts_with("-ERR "), "{poison}: {reply}");
    }
    // What all share and anybody may set is set again for whoever uses it; and what is a library's own `redis` it may break, for itself.
    let poison = "local j = _G['cj' .. 'son'] j.encode_number_precision(1) j.encode_max_depth(1) j.encode_invalid_numbers(true) \
                  getmetatable(redis).GET = 'R101' rawset(redis, 'call', nil)";
    assert_eq!(load(&mut a, &library(poison)), "$1|l");
    assert_eq!(a.say("FCALL f 0"), "$-1");
    let uses = "return {('x'):upper(), redis.call('GET', 's'), cjson.encode({1.23456789}), tostring((pcall(cjson.encode, 1 / 0)))}";
    assert_eq!(load(&mut b, &library(uses)), "$1|l");
    assert_eq!(b.say("FCALL f 0"), "*4|$1|X|$6|victim|$12|[1.23456789]|$5|false");
}

#[test]
fn s8_two_tenants_may_use_the_same_names() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    assert_eq!(load(&mut b, &library("return redis.call('GET', 's')")), "$1|l");
    assert_eq!(a.say("FUNCTION LIST"), "*0");
    assert_eq!(
        a.say("FUNCTION STATS"),
        "*4|$14|running_script|$-1|$7|engines|*2|$3|LUA|*4|$15|libraries_count|:0|$15|functions_count|:0"
    );
    for name in ["f", "keyfence_b_3a__f", "keyfence_b_3a__F", "l"] {
        for call in ["FCALL", "FCALL_RO"] {
            assert_eq!(a.say(&format!("{call} {name} 0")), "-ERR Function not found");
        }
    }
    for library in ["l", "keyfence_b_3a__l", "*"] {
        assert_eq!(a.say(&format!("FUNCTION DELETE {library}")), "-ERR Library not found");
        assert_eq!(a.say(&format!("FUNCTION LIST LIBRARYNAME {library} WITHCODE")), "*0");
    }
    assert_eq!(a.say("FUNCTION FLUSH"), "+OK");
    assert_eq!(load(&mut a, &library("return 'mine'")), "$1|l");
    assert_eq!([a.say("FCALL f 0"), b.say("FCALL f 0")], ["$4|mine", "$6|victim"]);
    assert!(a.say("FUNCTION LIST WITHCODE").contains("mine"));
    assert!(!a.say("FUNCTION LIST WITHCODE").contains("GET"));
    assert_eq!(a.say("FUNCTION FLUSH SYNC"), "+OK");
    assert_eq!([a.say("FCALL f 0"), b.say("FCALL f 0")], ["-ERR Function not found", "$6|victim"]);
}

#[test]
fn s8_what_was_loaded_past_keyfence_is_nobodys() {
    let world = World::new("require");
    let (mut a, mut upstream) = (world.tenant("a"), world.upstream());
    for name in ["own", "KEYFENCE_A_3A__l", "keyfence_a", "keyfence_probe2"] {
        let code = format!("#!lua name={name}\nredis.register_function('{name}_f', function() return 1 end)");
        assert!(upstream.args(&[b"FUNCTION", b"LOAD", code.as_bytes()]).starts_with('$'));
    }
    let before = names(&world);
    assert_eq!(before.len(), 8);
    assert_eq!(a.say("FUNCTION LIST"), "*0");
    assert_eq!(load(&mut a, &library("return 1")), "$1|l");
    assert_eq!([a.say("FCALL f 0"), a.say("FCALL own_f 0")], [":1", "-ERR Function not found"]);
    assert_eq!([a.say("FUNCTION DELETE own"), a.say("FUNCTION FLUSH")], ["-ERR Library not found", "+OK"]);
    let (mut before, mut after) = (before, names(&world));
    before.sort();
    after.sort();
    assert_eq!(before, after);
}

#[test]
fn s8_prefixes_that_differ_in_case_are_two_tenants() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(
        redis.addr(),
        "[upstream]\nacl_wall = \"require\"\n[tenants.a]\npasswords = [\"pa\"]\n[tenants.b]\nprefix = \"A:\"\npasswords = [\"pb\"]\n",
    );
    let (mut a, mut b) = (Speaker::new(&fence, "a"), Speaker::new(&fence, "b"));
    assert_eq!(load(&mut b, &library("return 'theirs'")), "$1|l");
    assert_eq!(a.say("FCALL f 0"), "-ERR Function not found");
    assert_eq!(a.say("FUNCTION LIST"), "*0");
    assert_eq!(load(&mut a, &library("return 'mine'")), "$1|l");
    assert_eq!([a.say("FCALL F 0"), b.say("FCALL f 0")], ["$4|mine", "$6|theirs"]);
    assert_eq!(a.say("FUNCTION FLUSH"), "+OK");
    assert_eq!(b.say("FCALL f 0"), "$6|theirs");
}

#[test]
fn s8_a_library_registers_no_others_names() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    for code in [
        "_G.redis.register_function('keyfence_b_3a__f', function() end)",
        "getfenv(0).redis.register_function('keyfence_b_3a__f', function() end)",
        "loadstring(\"redis.register_function('keyfence_b_3a__f', function() end)\")()",
        "load('x')",
        "require('redis')",
        "getmetatable(redis).__index.register_function('keyfence_b_3a__f', function() end)",
        "rawget(redis, 'register_function')('keyfence_b_3a__f', function() end)",
        "end redis.register_function('keyfence_b_3a__f', function() end) do",
        "]] redis.register_function('keyfence_b_3a__f', function() end)",
        "X.register_function('x', function() end)",
        "R.register_function('x', function() end)",
        "redis.register_function('keyfence_b_3a__f', function() end)",
        "redis.register_function{function_name='keyfence_b_3a__f', callback=function() end}",
        "local t = {function_name='x', callback=function() end} redis.register_function(t) \
         t.function_name = 'keyfence_b_3a__f' redis.register_function(t)",
        "local r = redis redis = {register_function = 1} r.register_function('keyfence_b_3a__f', function() end)",
    ] {
        load(&mut a, format!("#!lua name=l\n{code}").as_bytes());
        load(&mut a, format!("#!lua name=l]]\n{code}").as_bytes());
        assert_eq!(b.say("FCALL f 0"), "-ERR Function not found", "{code}");
        let names = names(&world);
        assert!(names.iter().all(|name| name.starts_with("keyfence_a_3a__")), "{code}: {names:?}");
        a.say("FUNCTION FLUSH");
    }
    // Nor later, when it runs.
    let late = "local r = redis.register_function redis.register_function('f', function() \
                r('g', function() end) end) redis.register_function('h', function() redis.register_function('g', function() end) end) \
                redis.register_function('i', function() _G.redis.register_function('g', function() end) end)";
    assert_eq!(load(&mut a, format!("#!lua name=l\n{late}").as_bytes()), "$1|l");
    for function in ["f", "h", "i"] {
        let reply = a.say(&format!("FCALL {function} 0"));
        assert!(reply.starts_with("-ERR "), "{reply}");
    }
    assert_eq!(names(&world).len(), 4);
}

#[test]
fn s8_a_function_under_anothers_name_does_not_stand() {
    // What no library was found to do, an upstream does here: the attacker's library comes with a function of the victim's name.
    let redis = Redis::start();
    let addr = redis.addr();
    let upstream = Scripted::start(addr, move |request| {
        let code = request.get(2).filter(|_| request[0] == b"FUNCTION" && request[1] == b"LOAD");
        if !code.is_some_and(|code| code.starts_with(b"#!lua name=keyfence_a_3a__evil\n")) {
            return Act::Forward;
        }
        let foreign = "#!lua name=keyfence_a_3a__evil\nredis.register_function('keyfence_a_3a__mine', function() return 1 end) \
                       redis.register_function('keyfence_b_3a__f', function() return 'attacker' end)";
        Act::Reply(crate::support::Client::connect(addr).call(&[b"FUNCTION", b"LOAD", foreign.as_bytes()]))
    });
    let fence = Fence::with_tenants(upstream.addr(), &format!("[upstream]\nacl_wall = \"require\"\n{TWO}"));
    let (mut a, mut b) = (Speaker::new(&fence, "a"), Speaker::new(&fence, "b"));
    let evil = b"#!lua name=evil\nredis.register_function('mine', function() end)";
    assert_eq!(
        a.args(&[b"FUNCTION", b"LOAD", evil]),
        "-NOPERM library 'evil' does not stand: it has functions that are not its tenant's"
    );
    let mut straight = redis.client();
    assert_eq!(straight.call(&[b"FUNCTION", b"LIST"]), b"*0\r\n");
    assert_eq!(a.say("FCALL mine 0"), "-ERR Function not found");
    assert_eq!(b.say("FCALL f 0"), "-ERR Function not found");
    // One that was left behind, by a process that was killed between the two, is nobody's either, and goes at the first look.
    let foreign =
        "#!lua name=keyfence_a_3a__left\nredis.register_function('keyfence_b_3a__f', function() return 'attacker' end)";
    assert_eq!(show(&straight.call(&[b"FUNCTION", b"LOAD", foreign.as_bytes()])), "$19\\r\\nkeyfence_a_3a__left\\r\\n");
    assert_eq!(b.say("FCALL f 0"), "-ERR Function not found");
    assert_eq!(b.say("FUNCTION LIST"), "*0");
    assert_eq!(a.say("FUNCTION LIST"), "*0");
    assert_eq!(straight.call(&[b"FUNCTION", b"LIST"]), b"*0\r\n");
    // Nor is a function the victim's that is in nobody's library.
    let other = "#!lua name=other\nredis.register_function('keyfence_b_3a__f', function() return 'attacker' end)";
    assert_eq!(show(&straight.call(&[b"FUNCTION", b"LOAD", other.as_bytes()])), "$5\\r\\nother\\r\\n");
    assert_eq!(b.say("FCALL f 0"), "-ERR Function not found");
}

#[test]
fn s8_what_was_there_before_a_restart_is_not_called() {
    // The victim's function is lost with the upstream; before anybody looks, something else has its name.
    let mut world = World::new("require");
    let mut b = world.tenant("b");
    assert_eq!(load(&mut b, &library("return 'own'")), "$1|l");
    assert_eq!(b.say("FCALL f 0"), "$3|own");
    world.redis.restart();
    let other = b"#!lua name=other\nredis.register_function('keyfence_b_3a__f', function() return 'attacker' end)";
    assert_eq!(world.upstream().args(&[b"FUNCTION", b"LOAD", other]), "$5|other");
    // Until its users have been made again.
    let mut reply = String::from("-UPSTREAM");
    while reply.starts_with("-UPSTREAM") {
        reply = show(&b.client().call(&[b"FCALL", b"f", b"0"]));
        assert!(!reply.contains("attacker"), "{reply}");
    }
    assert_eq!(reply, "-ERR Function not found\\r\\n");
}

#[test]
fn s8_s9_a_function_is_seen_and_killed_by_its_own_tenant_only() {
    let world = impatient();
    let (mut a, mut b, mut b2) = (world.tenant("a"), world.tenant("b"), world.tenant("b"));
    assert_eq!(a.say("FUNCTION KILL"), "-NOTBUSY No scripts in execution right now.");
    let endless = std::str::from_utf8(ENDLESS).unwrap();
    assert_eq!(load(&mut b, &library(endless)), "$1|l");
    assert_eq!(load(&mut a, &library("return 1")), "$1|l");
    b.client().send(&command(&["FCALL", "f", "1", "s", "b:arg"]));
    wait_until_busy(&world);
    let stats = line(&a.client().call(&[b"FUNCTION", b"STATS"]));
    assert_eq!(
        stats,
        "*4|$14|running_script|$-1|$7|engines|*2|$3|LUA|*4|$15|libraries_count|:1|$15|functions_count|:1"
    );
    for kill in ["FUNCTION", "SCRIPT"] {
        let reply = show(&a.client().call(&[kill.as_bytes(), b"KILL"]));
        assert_eq!(reply, "-NOTBUSY No scripts in execution right now.\\r\\n");
    }
    let reply = show(&b2.client().call(&[b"SCRIPT", b"KILL"]));
    assert_eq!(reply, "-NOTBUSY No scripts in execution right now.\\r\\n");
    assert!(world.redis.client().call(&[b"PING"]).starts_with(b"-BUSY"), "somebody killed the victim's function");
    let stats = line(&b2.client().call(&[b"FUNCTION", b"STATS"]));
    let running =
        "*4|$14|running_script|*6|$4|name|$1|f|$7|command|*5|$5|FCALL|$1|f|$1|1|$1|s|$5|b:arg|$11|duration_ms|:";
    assert!(stats.starts_with(running), "{stats}");
    assert_eq!(b2.client().call(&[b"FUNCTION", b"KILL"]), b"+OK\r\n");
    let killed = line(&b.client().reply());
    assert!(killed.contains("Script killed by user") && !killed.contains("keyfence"), "{killed}");
    assert_eq!(b.say("PING"), "+PONG");
    // A script is none, and is not killed as one.
    b.client().send(&command(&[&b"EVAL"[..], ENDLESS, b"0"]));
    wait_until_busy(&world);
    for speaker in [&mut a, &mut b2] {
        let reply = show(&speaker.client().call(&[b"FUNCTION", b"KILL"]));
        assert!(reply.starts_with("-BUSY Redis is busy running a script."), "{reply}");
    }
    assert_eq!(b2.client().call(&[b"SCRIPT", b"KILL"]), b"+OK\r\n");
    assert!(line(&b.client().reply()).contains("killed"));
}

#[test]
fn s8_functions_are_off_where_scripts_are() {
    let redis = Redis::start();
    let calls: [&[&str]; 5] = [
        &["FUNCTION", "LOAD", "#!lua name=l\nredis.register_function('f', function() return 1 end)"],
        &["FUNCTION", "LIST"],
        &["FUNCTION", "HELP"],
        &["FCALL", "f", "0"],
        &["FCALL_RO", "f", "0"],
    ];
    for (settings, may) in [
        (format!("[upstream]\nacl_wall = \"off\"\n{TWO}"), false),
        (
            format!("[upstream]\nacl_wall = \"require\"\n{TWO}").replace("[\"pa\"]", "[\"pa\"]\nscripts = \"off\""),
            false,
        ),
        (format!("[upstream]\nacl_wall = \"off\"\n{TWO}").replace("[\"pa\"]", "[\"pa\"]\nscripts = \"on\""), true),
        (
            format!("[upstream]\nacl_wall = \"require\"\n{TWO}")
                .replace("[\"pa\"]", "[\"pa\"]\ncommands.deny = [\"function\", \"fcall\", \"fcall_ro\"]"),
            false,
        ),
    ] {
        let fence = Fence::with_tenants(redis.addr(), &settings);
        let mut a = Speaker::new(&fence, "a");
        for words in calls {
            let reply = a.args(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
            let told =
                reply.starts_with("-NOPERM scripts are off") || reply.starts_with("-NOPERM User a has no permissions");
            assert_eq!(told, !may, "{settings}{words:?}: {reply}");
        }
    }
}

#[test]
fn s8_functions_are_off_where_they_are_not_apart() {
    // A server whose libraries find `_G` while they load, as far as the probe sees.
    let redis = Redis::start();
    let addr = redis.addr();
    let upstream = Scripted::start(addr, |request| {
        let probe = request.last().is_some_and(|code| {
            code.ends_with(b"local way = _G redis.register_function('keyfence_probe', function() end)")
        });
        if probe { Act::Reply(b"+QUEUED\r\n".to_vec()) } else { Act::Forward }
    });
    let fence = Fence::with_tenants(upstream.addr(), &format!("[upstream]\nacl_wall = \"require\"\n{TWO}"));
    let mut a = Speaker::new(&fence, "a");
    assert_eq!(a.say("EVAL redis.call('PING') 0"), "$-1", "scripts are on");
    for command in ["FUNCTION LIST", "FCALL f 0", "FUNCTION STATS"] {
        assert_eq!(
            a.say(command),
            "-NOPERM functions are off: they can alter one another on this upstream, or that could not be tried"
        );
    }
    let users = line(&redis.client().call(&[b"ACL", b"LIST"]));
    assert!(users.contains("+eval") && !users.contains("+fcall"), "{users}");
}
