//! FUNCTION, command by command: what libraries are taken, what is said of others, and what there is.
use super::{Client, Fence, LOADS, Redis, call, is};
use crate::support::wire::show;

/// Sends it to both.
fn both(a: &mut Client, b: &mut Client, words: &[&str]) -> [String; 2] {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    [show(&a.call(&words)), show(&b.call(&words))]
}

/// Codes of a library, without its first line.
const CODES: &[&str] = &[
    "redis.register_function('f', function() return 1 end)",
    "\n\nredis.register_function('f', function()\nreturn 1 end) \n",
    "redis.register_function(1, function() return 1 end)",
    "redis.register_function(1.5, function() return 1 end)",
    "redis.register_function{function_name='f', callback=function() return 1 end}",
    "redis.register_function{function_name='f', callback=function() return 1 end, flags={'no-writes', 'allow-stale'}, description='does\\n it'}",
    "redis.register_function{function_name='f', callback=function() return 1 end, description=5}",
    "local f = function() return 1 end redis.register_function('f', f) redis.register_function('g', f)",
    "local t = {function_name='f', callback=function() return 1 end} redis.register_function(t) t.function_name = 'g' redis.register_function(t)",
    "local r = redis.register_function r('f', function() return 1 end)",
    "redis.log(redis.LOG_DEBUG, 'x' .. redis.REDIS_VERSION) redis.register_function('f', function() return redis.REDIS_VERSION_NUM > 1 end)",
    "local a, b, c, d = redis.LOG_DEBUG, redis.LOG_VERBOSE, redis.LOG_NOTICE, redis.LOG_WARNING redis.register_function('f', function() return {a, b, c, d} end)",
    "",
    "return 1",
    "local x = = 1",
    "\n\nlocal x = = 1",
    "x = 1",
    "\nlocal v = x",
    "local v = _G",
    "local v = string",
    "error('x')",
    "\nlocal x = nil + 1",
    "redis.call('GET', 'x')",
    "\n\nredis.pcall('GET', 'x')",
    "\nlocal t = {} t.mine()",
    "redis.register_function('f', function() end) redis.register_function('f', function() end)",
    "redis.register_function('f-', function() end)",
    "redis.register_function('', function() end)",
    "redis.register_function('f g', function() end)",
    "redis.register_function()",
    "redis.register_function('f')",
    "redis.register_function(5)",
    "redis.register_function(true)",
    "redis.register_function(function() end)",
    "redis.register_function({})",
    "redis.register_function(nil, function() end)",
    "redis.register_function({}, function() end)",
    "redis.register_function(true, function() end)",
    "redis.register_function('f', 2)",
    "redis.register_function('f', 'g')",
    "redis.register_function('f', {})",
    "redis.register_function('f', function() end, 1)",
    "redis.register_function{function_name='f'}",
    "redis.register_function{callback=function() end}",
    "redis.register_function{function_name='', callback=function() end}",
    "redis.register_function{function_name={}, callback=function() end}",
    "redis.register_function{function_name=true, callback=function() end}",
    "redis.register_function{function_name='f', callback=1}",
    "redis.register_function{function_name='f', callback={}}",
    "redis.register_function{function_name='f', callback=function() end, description={}}",
    "redis.register_function{function_name='f', callback=function() end, description=false}",
    "redis.register_function{function_name='f', callback=function() end, flags=5}",
    "redis.register_function{function_name='f', callback=function() end, flags={'nosuch'}}",
    "redis.register_function{function_name='f', callback=function() end, flags={5}}",
    "redis.register_function{function_name='f', callback=function() end, flag={}}",
    "redis.register_function{function_name='f', callback=function() end, [1]=5}",
    "redis.register_function{function_name='f', callback=function() end, [{}]=5}",
    "redis.register_function('taken', function() end)",
];

#[test]
fn libraries_are_taken_and_refused_as_by_redis_in_resp2() {
    libraries_are_taken_and_refused_as_by_redis(false);
}

#[test]
fn libraries_are_taken_and_refused_as_by_redis_in_resp3() {
    libraries_are_taken_and_refused_as_by_redis(true);
}

fn libraries_are_taken_and_refused_as_by_redis(resp3: bool) {
    let (plain, upstream) = (Redis::start(), Redis::start());
    let mut fence = Fence::start(&upstream);
    let [mut a, mut b] = [plain.client(), fence.client()];
    let taken = "#!lua name=other\nredis.register_function('taken', function() return 'other' end)";
    assert_eq!(both(&mut a, &mut b, &["FUNCTION", "LOAD", taken]), ["$5\\r\\nother\\r\\n"; 2]);
    let mut wrong = Vec::new();
    for (i, code) in CODES.iter().enumerate() {
        // Three loads each, of which one keyfence takes so many at once.
        if i % (LOADS / 3) == 0 {
            fence = Fence::start(&upstream);
            b = fence.client();
        }
        if resp3 {
            call!(a, "HELLO", "3");
            call!(b, "HELLO", "3");
        }
        let library = format!("#!lua name=lib\n{code}");
        let mut compare = |words: &[&str]| {
            let [straight, fenced] = both(&mut a, &mut b, words);
            if straight != fenced {
                wrong.push(format!("{code:?}: {}\n    straight {straight}\n    keyfence {fenced}", words[1]));
            }
        };
        compare(&["FUNCTION", "LOAD", &library]);
        compare(&["FUNCTION", "LOAD", &library]);
        // The order of functions is that of their hashes, which go by names as they are upstream.
        if !code.contains("'g'") {
            compare(&["FUNCTION", "LIST", "LIBRARYNAME", "lib"]);
            compare(&["FUNCTION", "LIST", "WITHCODE", "LIBRARYNAME", "lib"]);
        }
        compare(&["FUNCTION", "STATS"]);
        for name in ["f", "g", "1", "1.5", "taken"] {
            compare(&["FCALL", name, "0"]);
            compare(&["FCALL_RO", name, "0"]);
        }
        // One that fails leaves what was there.
        compare(&["FUNCTION", "LOAD", "REPLACE", "#!lua name=lib\nreturn"]);
        compare(&["FCALL", "f", "0"]);
        compare(&["FUNCTION", "DELETE", "lib"]);
        compare(&["FUNCTION", "DELETE", "lib"]);
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_commands_are_those_of_redis() {
    let (plain, upstream) = (Redis::start(), Redis::start());
    let fence = Fence::start(&upstream);
    let [mut a, mut b] = [plain.client(), fence.client()];
    let library = "#!lua name=Lib_1\nredis.register_function('f', function(k, a) return {#k, #a, k, a} end)\n\
                   redis.register_function{function_name='ro', callback=function(k) return redis.call('GET', k[1]) end, flags={'no-writes'}}\n\
                   redis.register_function{function_name='liar', callback=function(k) return redis.call('SET', k[1], 1) end, flags={'no-writes'}}";
    let mut wrong = Vec::new();
    for words in [
        &["FUNCTION"][..],
        &["FUNCTION", "NOSUCH"],
        &["FUNCTION", "LOAD"],
        &["FUNCTION", "LOAD", "REPLACE"],
        &["FUNCTION", "LOAD", "x", library],
        &["FUNCTION", "LOAD", "replace", "Replace", library],
        &["FUNCTION", "LOAD", library],
        &["FUNCTION", "LOAD", ""],
        &["FUNCTION", "LOAD", "#!lua name=endless\nwhile true do end"],
        &["FUNCTION", "LOAD", "#!lua"],
        &["FUNCTION", "LOAD", "#!lua\nx"],
        &["FUNCTION", "LOAD", "#!lua name=\n"],
        &["FUNCTION", "LOAD", "#!lua name=a-b\n"],
        &["FUNCTION", "LOAD", "#!lua name=a name=b\n"],
        &["FUNCTION", "LOAD", "#!lua name=a engine=x\n"],
        &["FUNCTION", "LOAD", "#!lua Name=a\n"],
        &["FUNCTION", "LOAD", "#! lua name=a\n"],
        &["FUNCTION", "LOAD", "#!foo name=a\n"],
        &["FUNCTION", "LOAD", "#!lua name='a\n"],
        &["FUNCTION", "LOAD", "#!LUA\tname=\"Lib\\x5f1\" \r\nx"],
        &["FUNCTION", "LIST", "LIBRARYNAME"],
        &["FUNCTION", "LIST", "x"],
        &["FUNCTION", "LIST", "LIBRARYNAME", "a", "LIBRARYNAME", "b"],
        &["FUNCTION", "LIST", "WITHCODE", "WITHCODE"],
        &["FUNCTION", "LIST", "LIBRARYNAME", "nosuch"],
        &["FUNCTION", "LIST", "LIBRARYNAME", "lib?[2]", "WITHCODE"],
        &["FUNCTION", "DELETE"],
        &["FUNCTION", "DELETE", ""],
        &["FUNCTION", "DELETE", "x"],
        &["FUNCTION", "DELETE", "lib_1"],
        &["FUNCTION", "KILL"],
        &["FUNCTION", "KILL", "x"],
        &["FUNCTION", "STATS"],
        &["FUNCTION", "STATS", "x"],
        &["FUNCTION", "FLUSH", "x"],
        &["FUNCTION", "FLUSH", "SYNC", "x"],
        &["FCALL", "f"],
        &["FCALL", "f", "0"],
        &["FCALL", "f", "2", "a", "b", "c"],
        &["FCALL", "f", "2", "a"],
        &["FCALL", "f", "-1", "a"],
        &["FCALL", "f", "01", "a"],
        &["FCALL", "f", "x", "a"],
        &["FCALL", "f", "99999999999999999999", "a"],
        &["FCALL", "F", "0"],
        &["FCALL", "", "0"],
        &["FCALL", "nosuch", "x"],
        &["FCALL_RO", "f", "0"],
        &["SET", "k", "v"],
        &["FCALL_RO", "ro", "1", "k"],
        &["FCALL", "ro", "1", "k"],
        &["FCALL_RO", "liar", "1", "k"],
        &["FCALL", "liar", "1", "k"],
        &["COMMAND", "GETKEYS", "FCALL", "f", "2", "a", "b", "c"],
        &["FUNCTION", "FLUSH"],
        &["FUNCTION", "LIST"],
        &["FUNCTION", "FLUSH", "async"],
        &["FUNCTION", "FLUSH", "SYNC"],
    ] {
        let [straight, fenced] = both(&mut a, &mut b, words);
        if straight != fenced {
            wrong.push(format!("{words:?}\n    straight {straight}\n    keyfence {fenced}"));
        }
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    let help = show(&call!(b, "FUNCTION", "HELP"));
    assert!(help.contains("+LOAD [REPLACE]") && !help.contains("DUMP") && !help.contains("RESTORE"), "{help}");
}

#[test]
fn several_libraries_are_listed_by_pattern() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    for name in ["one", "two", "ONE2"] {
        let library = format!("#!lua name={name}\nredis.register_function('{name}', function() return '{name}' end)");
        is!(client, ["FUNCTION", "LOAD", library], format!("${}\r\n{name}\r\n", name.len()));
    }
    let listed = |client: &mut Client, pattern: &str| {
        let reply = show(&call!(client, "FUNCTION", "LIST", "LIBRARYNAME", pattern));
        ["one", "two", "ONE2"]
            .map(|name| reply.contains(&format!("library_name\\r\\n${}\\r\\n{name}\\r\\n", name.len())))
    };
    assert_eq!(listed(&mut client, "*"), [true; 3]);
    assert_eq!(listed(&mut client, "one*"), [true, false, true]);
    assert_eq!(listed(&mut client, "t?[o]"), [false, true, false]);
    assert_eq!(listed(&mut client, "keyfence*"), [false; 3]);
    assert_eq!(listed(&mut client, ""), [false; 3]);
    is!(client, ["FCALL", "ONE2", "0"], "$4\r\nONE2\r\n");
    let stars = "*".repeat(40);
    assert!(show(&call!(client, "FUNCTION", "LIST", "LIBRARYNAME", stars)).starts_with("-ERR pattern is too complex"));
}

#[test]
fn s10_libraries_are_bounded() {
    let upstream = Redis::start();
    let fence = Fence::start(&upstream);
    let mut client = fence.client();
    let head = "#!lua name=l\n";
    let long = format!("{head}--{}", "x".repeat(1024 * 1024));
    is!(client, ["FUNCTION", "LOAD", long], "-ERR the library is longer than 1048576 bytes\r\n");
    let too_many =
        "-BUSY a library may have 1000 functions at the most, with 65536 bytes of names and descriptions\r\n";
    for code in [
        "for i = 1, 1001 do redis.register_function('f' .. i, function() end) end",
        "redis.register_function(('f'):rep(70000), function() end)",
        "redis.register_function{function_name='f', callback=function() end, description=('x'):rep(70000)}",
        "redis.register_function{function_name=('f'):rep(70000), callback=function() end}",
    ] {
        is!(client, ["FUNCTION", "LOAD", format!("{head}{code}")], too_many);
    }
    let most = "for i = 1, 1000 do redis.register_function('f' .. i, function() return i end) end";
    is!(client, ["FUNCTION", "LOAD", format!("{head}{most}")], "$1\r\nl\r\n");
    is!(client, ["FCALL", "f1000", "0"], ":1000\r\n");
    is!(client, ["FUNCTION", "FLUSH"], "+OK\r\n");
    for i in 0..64 {
        let library = format!("#!lua name=l{i}\nredis.register_function('f{i}', function() return {i} end)");
        assert!(show(&call!(client, "FUNCTION", "LOAD", library)).starts_with('$'));
    }
    let library = "#!lua name=more\nredis.register_function('more', function() return 1 end)";
    is!(
        client,
        ["FUNCTION", "LOAD", library],
        "-BUSY a tenant may have 64 libraries at the most, and 8388608 bytes of them\r\n"
    );
    is!(client, ["FCALL", "f63", "0"], ":63\r\n");
    let library = "#!lua name=l63\nredis.register_function('more', function() return 1 end)";
    is!(client, ["FUNCTION", "LOAD", "REPLACE", library], "$3\r\nl63\r\n");
    let mut refused = String::new();
    for _ in 0..200 {
        refused = show(&call!(client, "FUNCTION", "LOAD", library));
        if refused.starts_with("-BUSY") {
            break;
        }
    }
    assert_eq!(refused, "-BUSY too many FUNCTION LOAD: wait\\r\\n");
    is!(client, ["FCALL", "more", "0"], ":1\r\n");
}
