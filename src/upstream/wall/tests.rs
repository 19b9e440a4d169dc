//! Against real servers: `redis-server`, or those that `KEYFENCE_TEST_SERVERS` names, with `:` between them.

use std::process::{Child, Command, Stdio};

use redis::Value;
use tokio::time::Instant;

use super::*;
use crate::{
    command::{Args, Keys, ROWS, Row, Slot, Span, walk},
    upstream::Endpoint,
};

struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    async fn start(binary: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(binary)
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(dir.path().join("s"))
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("a server is installed");
        let server = Self { child, dir };
        while Line::open(&server.target()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server
    }

    fn target(&self) -> Target {
        Target {
            tls: None,
            endpoint: Endpoint::Unix(self.dir.path().join("s")),
            username: String::new(),
            password: String::new(),
            connect_timeout: Duration::from_secs(5),
            socket_timeout: Duration::from_secs(5),
        }
    }

    fn wall(&self, policy: AclWall) -> Wall {
        Wall::new(self.target(), policy, Identity::new().unwrap())
    }

    async fn root(&self) -> Line {
        Line::open(&self.target()).await.unwrap()
    }

    async fn enter(&self, wall: &Wall, tenant: u32, kind: Kind) -> Result<Line, UpstreamError> {
        let Login::As(username, password) = wall.login(tenant, kind) else { panic!("no user") };
        Line::open(&Target { username, password, ..self.target() }).await
    }
}

fn binaries() -> Vec<String> {
    let named = std::env::var("KEYFENCE_TEST_SERVERS").unwrap_or_else(|_| "redis-server".into());
    named.split(':').map(str::to_owned).collect()
}

fn tenant(id: u32, name: &str, prefix: &str) -> Walled {
    Walled {
        id,
        name: name.into(),
        prefix: prefix.as_bytes().into(),
        databases: 0..1,
        scripts: false,
        despite_holes: false,
        permitted: [].into(),
    }
}

fn raised(standing: Standing) -> Arc<Holes> {
    match standing {
        Standing::Raised { holes, .. } => holes,
        other => panic!("{other:?}"),
    }
}

/// The reply to a line of words.
async fn say(line: &mut Line, words: &str) -> Value {
    let mut words = words.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    words.for_each(|w| {
        cmd.arg(w);
    });
    line.ask(&cmd).await.unwrap()
}

fn refused(reply: &Value) -> bool {
    match reply {
        Value::ServerError(e) => {
            e.code() == "NOPERM" || e.details().is_some_and(|d| d.contains("insufficient ACL permissions"))
        }
        _ => false,
    }
}

/// Arguments that the server's key finder accepts for this row, filled with ones, and where their keys stand.
fn sample(row: &Row, extra: usize) -> Option<(Vec<String>, Vec<usize>)> {
    let mut words: Vec<String> = row.name.split(' ').map(str::to_owned).collect();
    match row.name {
        "XREAD" => words.extend(["STREAMS", "k", "0"].map(String::from)),
        "XREADGROUP" => words.extend(["GROUP", "g", "c", "STREAMS", "k", ">"].map(String::from)),
        "JSON.DEBUG" => words.extend(["MEMORY", "k"].map(String::from)),
        _ => {}
    }
    if row.arity > 0 && extra > 0 {
        return None;
    }
    while words.len() < usize::from(row.arity.unsigned_abs()) + extra {
        words.push("1".into());
    }
    let mut buf = String::new();
    let spans: Vec<Span> = words
        .iter()
        .map(|w| {
            let span = (u32::try_from(buf.len()).unwrap(), u32::try_from(w.len()).unwrap());
            buf.push_str(w);
            span
        })
        .collect();
    let mut marks = Vec::new();
    // Subcommands are walked with the container's word first, as they are sent.
    let understood = walk(row, &Args::new(buf.as_bytes(), &spans), &mut marks);
    assert!(understood || extra > 0, "{}", row.name);
    if !understood {
        return None;
    }
    let keys = marks.iter().filter(|(_, slot)| *slot == Slot::Key).map(|(at, _)| *at as usize).collect();
    Some((words, keys))
}

#[tokio::test]
async fn what_is_forwarded_passes_inside_and_not_outside() {
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let wall = server.wall(AclWall::Require);
        let holes = raised(wall.raise(&[Walled { databases: 0..2, ..tenant(0, "acme", "acme:") }]).await.unwrap());
        let mut root = server.root().await;
        if !holes.selectors {
            // No DRYRUN before 7.0: the attacks below are all that is tried.
            continue;
        }
        let commands = root.ask(&redis::cmd("COMMAND")).await.unwrap();
        let Value::Array(commands) = commands else { panic!("{commands:?}") };
        let known: HashSet<String> = crate::upstream::control::names_in(&commands).into_iter().collect();
        let (mut tried, mut keyed, mut open) = (0, 0, Vec::new());
        let mut data = server.enter(&wall, 0, Kind::Data).await.unwrap();
        let rows = ROWS.iter().filter(|r| r.forwardable() && known.contains(&r.lower_name()));
        for (row, extra) in rows.flat_map(|row| (0..4).map(move |extra| (row, extra))) {
            let Some((words, keys)) = sample(row, extra) else { continue };
            assert!(row.keys == Keys::None || !keys.is_empty(), "{}", row.name);
            for kind in Kind::ALL {
                let Login::As(user, _) = wall.login(0, kind) else { panic!() };
                let mut inside = words.clone();
                keys.iter().for_each(|&at| inside[at] = "acme:k".into());
                let dry = async |root: &mut Line, words: &[String]| {
                    root.ask(acl("DRYRUN").arg(&user).arg(words)).await.unwrap()
                };
                let reply = dry(&mut root, &inside).await;
                if texts(&reply).is_empty() && format!("{reply:?}").contains("wrong number of arguments") && extra > 0 {
                    continue; // ZRANK before 7.2
                }
                let here = kind == Kind::Sort || holes.kind(row) == Kind::Data;
                assert_eq!(reply == Value::Okay, here, "{user}: {inside:?}: {reply:?}");
                tried += 1;
                for &at in keys.iter().filter(|_| here && holes.kind(row) == Kind::Data) {
                    for foreign in ["k", "acme2:k", "acmf:k", "xacme:k", "", "ACME:k", "acme"] {
                        let mut words = inside.clone();
                        words[at] = foreign.into();
                        let reply = dry(&mut root, &words).await;
                        // What the server cannot make sense of has no keys for its ACL, and does nothing either.
                        if !texts(&reply).concat().contains("no permissions") {
                            let mut cmd = redis::cmd(&words[0]);
                            let done = data.ask(cmd.arg(&words[1..])).await.unwrap();
                            if !matches!(done, Value::ServerError(_)) {
                                open.push(format!("{words:?}: {reply:?}, {done:?}"));
                            }
                        }
                        keyed += 1;
                    }
                }
            }
        }
        assert!(open.is_empty(), "{binary}: {open:#?}");
        assert!(tried > 300 && keyed > 2000, "{tried}, {keyed}");
        eprintln!("{binary}: {tried} inside, {keyed} outside; travel apart: {:?}", holes.blind);
    }
}

/// isolation.md section 3 and what it names of section 2, as they would reach the upstream if the rewriting failed.
const ATTACKS: &[&str] = &[
    "SCAN 0",
    "SCAN 0 MATCH acme:*",
    "KEYS *",
    "RANDOMKEY",
    "DBSIZE",
    "FLUSHALL",
    "FLUSHDB",
    "SWAPDB 0 1",
    "SELECT 1",
    "GET b:k",
    "GET k",
    "MGET acme:k b:k",
    "EXISTS b:k",
    "TYPE b:k",
    "TTL b:k",
    "TOUCH b:k",
    "WATCH b:k",
    "DUMP b:k",
    "OBJECT ENCODING b:k",
    "MEMORY USAGE b:k",
    "UNLINK b:k",
    "DEL acme:k b:k",
    "RENAME acme:k b:k",
    "RENAME b:k acme:k",
    "COPY acme:k b:k",
    "COPY b:k acme:k",
    "SMOVE acme:s b:s 1",
    "LMOVE acme:l b:l LEFT LEFT",
    "SINTERSTORE acme:s b:s",
    "SINTERSTORE b:s acme:s",
    "BITOP AND b:k acme:k",
    "PFMERGE b:k acme:k",
    "GEOSEARCHSTORE b:k acme:k FROMMEMBER m BYRADIUS 1 km",
    "XREAD STREAMS b:k 0",
    "MOVE b:k 1",
    "RESTORE b:k 0 x",
    "MIGRATE 127.0.0.1 1 acme:k 0 1",
    "SORT acme:l",
    "SORT acme:l BY nosort GET b:*",
    "SORT acme:l STORE b:l",
    "GEORADIUS acme:g 0 0 1 km STORE acme:h STORE b:h",
    "GEORADIUSBYMEMBER acme:g m 1 km STORE acme:h STOREDIST b:h",
    "PUBLISH b:c x",
    "SUBSCRIBE b:c",
    "PSUBSCRIBE *",
    "SPUBLISH b:c x",
    "SSUBSCRIBE b:c",
    "PUBSUB CHANNELS",
    "PUBSUB NUMSUB b:c",
    "PUBSUB NUMPAT",
    "SUBSCRIBE __keyevent@0__:expired",
    "EVAL return+1 0",
    "EVALSHA 0 0",
    "EVAL_RO return+1 0",
    "FCALL f 0",
    "SCRIPT FLUSH",
    "SCRIPT LOAD return",
    "SCRIPT KILL",
    "SCRIPT EXISTS 0",
    "SCRIPT DEBUG YES",
    "FUNCTION LIST",
    "FUNCTION FLUSH",
    "FUNCTION DUMP",
    "FUNCTION STATS",
    "FUNCTION KILL",
    "CONFIG GET *",
    "CONFIG SET maxmemory 1",
    "DEBUG OBJECT acme:k",
    "SHUTDOWN NOSAVE",
    "REPLICAOF NO ONE",
    "SLAVEOF NO ONE",
    "FAILOVER",
    "SYNC",
    "PSYNC ? -1",
    "REPLCONF listening-port 1",
    "MODULE LIST",
    "ACL LIST",
    "ACL WHOAMI",
    "ACL SETUSER x",
    "MONITOR",
    "SLOWLOG GET",
    "LATENCY LATEST",
    "CLUSTER NODES",
    "CLUSTER GETKEYSINSLOT 0 1",
    "SAVE",
    "BGSAVE",
    "BGREWRITEAOF",
    "LASTSAVE",
    "ROLE",
    "INFO",
    "COMMAND",
    "COMMAND GETKEYS GET x",
    "CLIENT LIST",
    "CLIENT INFO",
    "CLIENT ID",
    "CLIENT KILL TYPE normal",
    "CLIENT PAUSE 1",
    "CLIENT UNPAUSE",
    "CLIENT UNBLOCK 1",
    "CLIENT NO-EVICT on",
    "CLIENT REPLY ON",
    "CLIENT TRACKING ON BCAST",
    "CLIENT TRACKING ON REDIRECT 1 BCAST",
    "CLIENT SETNAME x",
    "CLIENT GETNAME",
    "MEMORY STATS",
    "MEMORY DOCTOR",
    "MEMORY PURGE",
    "MEMORY MALLOC-STATS",
    "PFDEBUG GETREG acme:k",
    "PFSELFTEST",
    "READONLY",
    "ASKING",
    "RESTORE-ASKING acme:k 0 x",
    "PFCOUNT acme:k b:k",
    "XGROUP CREATE b:k g 0 MKSTREAM",
    "ECHO x",
];

#[tokio::test]
async fn attacks_are_refused() {
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let wall = server.wall(AclWall::Require);
        let holes = raised(wall.raise(&[tenant(0, "acme", "acme:")]).await.unwrap());
        let mut root = server.root().await;
        for victim in ["SET b:k secret", "RPUSH acme:l 1 2", "SET b:1 secret", "SET acme:k v", "GEOADD acme:g 0 0 m"] {
            assert!(!matches!(say(&mut root, victim).await, Value::ServerError(_)));
        }
        let before = texts(&say(&mut root, "KEYS *").await).len();
        let mut data = server.enter(&wall, 0, Kind::Data).await.unwrap();
        for attack in ATTACKS {
            let reply = say(&mut data, attack).await;
            let absent = matches!(&reply, Value::ServerError(e)
                if e.details().is_some_and(|d| d.contains("command not allowed") || d.starts_with("unknown command") || d.starts_with("Unknown subcommand") || d.starts_with("unknown subcommand")));
            assert!(refused(&reply) || absent, "{binary}: {attack}: {reply:?}");
        }
        for usual in
            ["PING", "SET acme:k v", "GET acme:k", "MULTI", "GET acme:k", "EXEC", "LPUSH acme:q 1", "BLPOP acme:q 1"]
        {
            let reply = say(&mut data, usual).await;
            assert!(!matches!(reply, Value::ServerError(_)), "{binary}: {usual}: {reply:?}");
        }
        // The other kind is held by all that an ACL can hold: only SORT's reading, and these, are not.
        let mut sort = server.enter(&wall, 0, Kind::Sort).await.unwrap();
        for attack in ATTACKS.iter().filter(|a| {
            !["SORT acme:l", "GEORADIUS", "CLIENT TRACKING", "CLIENT ID"].iter().any(|known| a.starts_with(known))
        }) {
            let reply = say(&mut sort, attack).await;
            assert!(matches!(reply, Value::ServerError(_)), "{binary}: {attack}: {reply:?}");
        }
        assert!(refused(&say(&mut sort, "SORT acme:l STORE b:l").await));
        for usual in ["SORT acme:l", "SORT acme:l BY acme:w* GET acme:* GET # STORE acme:out", "SORT acme:l BY nosort"]
        {
            let reply = say(&mut sort, usual).await;
            assert!(!matches!(reply, Value::ServerError(_)), "{binary}: {usual}: {reply:?}");
        }
        for usual in ["MULTI", "SET acme:k v", "SORT acme:l GET acme:*", "GEORADIUS acme:g 0 0 1 km STORE acme:h"] {
            assert!(!matches!(say(&mut sort, usual).await, Value::ServerError(_)), "{binary}: {usual}");
        }
        let reply = say(&mut sort, "EXEC").await;
        let Value::Array(replies) = &reply else { panic!("{binary}: {reply:?}") };
        assert!(replies.iter().all(|r| !matches!(r, Value::ServerError(_))), "{binary}: {reply:?}");
        assert_eq!(texts(&say(&mut root, "KEYS *").await).len(), before + 2, "out and h are new");
        eprintln!("{binary}: {holes:?}");
    }
}

/// Any words at all in place of what the rewriting makes, as a script could send them: no other tenant's value comes back, and none changes.
#[tokio::test]
async fn nothing_comes_through_by_chance() {
    const VALUES: [&str; 8] = ["SET", "RPUSH", "SADD", "HSET", "ZADD", "GEOADD", "XADD", "PFADD"];
    let rounds = std::env::var("KEYFENCE_TEST_ROUNDS").map_or(200, |n| n.parse().unwrap());
    let seed = std::env::var("KEYFENCE_TEST_SEED").map_or(7, |n| n.parse().unwrap());
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let wall = server.wall(AclWall::Require);
        let holes = raised(wall.raise(&[tenant(0, "a", "a:")]).await.unwrap());
        let mut root = server.root().await;
        let mut data = server.enter(&wall, 0, Kind::Data).await.unwrap();
        let fill = |prefix: &str, value: &str| {
            VALUES.map(|word| {
                let mut cmd = redis::cmd(word);
                cmd.arg(format!("{prefix}{word}"));
                match word {
                    "HSET" => cmd.arg(&["f", value]),
                    "ZADD" => cmd.arg(&["1", value]),
                    "GEOADD" => cmd.arg(&["0", "0", value]),
                    "XADD" => cmd.arg(&["1-1", "f", value]),
                    _ => cmd.arg(value),
                };
                cmd
            })
        };
        root.send(&fill("b:", "SECRET")).await.unwrap();
        root.ask(redis::cmd("XGROUP").arg(&["CREATE", "b:XADD", "STREAMS", "0"])).await.unwrap();
        let look = async |root: &mut Line| {
            let names = texts(&say(root, "KEYS *").await).into_iter().filter(|k| !k.starts_with("a:"));
            let names: std::collections::BTreeSet<_> = names.collect();
            let ask: Vec<_> =
                names.iter().flat_map(|k| ["DUMP", "PTTL"].map(|word| redis::cmd(word).arg(k).clone())).collect();
            (names, root.send(&ask).await.unwrap())
        };
        let before = look(&mut root).await;
        // Never waits, and no transaction that would hold the others back.
        let rows: Vec<_> = ROWS
            .iter()
            .filter(|r| r.forwardable() && holes.kind(r) == Kind::Data && r.keys != Keys::None)
            .filter(|r| !matches!(r.conn, crate::command::ConnNeed::Block) || r.name.starts_with("XREAD"))
            .collect();
        let mut rng = fastrand::Rng::with_seed(seed);
        let options = [
            "STORE",
            "STOREDIST",
            "BY",
            "GET",
            "LIMIT",
            "COUNT",
            "STREAMS",
            "GROUP",
            "NX",
            "EX",
            "KEEPTTL",
            "REPLACE",
            "DB",
            "AND",
            "NOT",
            "LEFT",
            "RIGHT",
            "MIN",
            "WEIGHTS",
            "AGGREGATE",
            "WITHSCORES",
            "FROMMEMBER",
            "BYRADIUS",
            "km",
            "m",
            "(",
            "[",
            "-",
            "+",
            "$",
            ">",
            "*",
            "0",
            "1",
            "2",
            "3",
            "-1",
            "1-1",
            "f",
            "g",
            "",
            "KEYS",
            "MATCH",
            "ID",
            "ANY",
            "ASC",
            "IDX",
            "LEN",
            "MAXLEN",
            "~",
            "=",
        ];
        let mut through = std::collections::BTreeSet::new();
        let (mut ran, mut denied) = (0, 0);
        for _ in 0..rounds {
            let mut batch = fill("a:", "own").to_vec();
            for _ in 0..200 {
                let row = rows[rng.usize(..rows.len())];
                let mut words: Vec<String> = row.name.split(' ').map(str::to_owned).collect();
                let most = usize::from(row.arity.unsigned_abs()) + if row.arity < 0 { rng.usize(..6) } else { 0 };
                while words.len() < most {
                    let value = VALUES[rng.usize(..VALUES.len())];
                    words.push(match rng.u8(..10) {
                        0..4 => format!("a:{value}"),
                        4 => format!("b:{value}"),
                        5 => "b:new".into(),
                        _ => options[rng.usize(..options.len())].into(),
                    });
                }
                let mut cmd = redis::cmd(&words[0]);
                cmd.arg(&words[1..]);
                batch.push(cmd);
            }
            let replies = data.send(&batch).await.unwrap();
            for (cmd, reply) in batch.iter().zip(&replies) {
                ran += usize::from(!matches!(reply, Value::ServerError(_)));
                denied += usize::from(refused(reply));
                if format!("{reply:?}").contains("SECRET") || texts(reply).concat().contains("SECRET") {
                    through.insert(format!("{:?}", String::from_utf8_lossy(&cmd.get_packed_command())));
                }
            }
            if look(&mut root).await != before {
                let touches = |cmd: &&Cmd| String::from_utf8_lossy(&cmd.get_packed_command()).contains("b:");
                let these: Vec<_> = batch
                    .iter()
                    .zip(&replies)
                    .filter(|(cmd, reply)| touches(cmd) && !matches!(reply, Value::ServerError(_)))
                    .map(|(cmd, _)| String::from_utf8_lossy(&cmd.get_packed_command()).replace("\r\n", " "))
                    .collect();
                through.insert(format!("one of {these:#?}"));
                break;
            }
        }
        eprintln!("{binary}: {ran} ran, {denied} denied");
        assert!(through.is_empty(), "{binary}: {through:#?}");
        assert!(ran > 5 * rounds && denied > 5 * rounds);
    }
}

#[tokio::test]
async fn a_script_is_behind_the_wall_too() {
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let wall = server.wall(AclWall::Require);
        let walled = Walled { scripts: true, databases: 2..4, ..tenant(0, "acme", "acme:") };
        raised(wall.raise(&[walled]).await.unwrap());
        let mut data = server.enter(&wall, 0, Kind::Data).await.unwrap();
        assert_eq!(say(&mut data, "SELECT 2").await, Value::Okay);
        let mut run = async |script: &str| data.ask(redis::cmd("EVAL").arg(script).arg(0)).await.unwrap();
        assert_eq!(
            run("redis.call('SET', 'acme:k', 1) return redis.call('GET', 'acme:k')").await,
            Value::BulkString(b"1".to_vec())
        );
        for attack in [
            "'GET', 'b:k'",
            "'SET', 'b:k', 1",
            "'SCAN', 0",
            "'RANDOMKEY'",
            "'DBSIZE'",
            "'KEYS', '*'",
            "'PUBLISH', 'b:c', 1",
            "'PUBSUB', 'CHANNELS'",
            "'SELECT', 1",
            "'SELECT', 0",
            "'SELECT', 4",
            "'FLUSHALL'",
            "'CONFIG', 'GET', '*'",
            "'INFO'",
            "'SORT', 'acme:l', 'BY', 'nosort', 'GET', 'b:*'",
            "'GEORADIUS', 'acme:g', 0, 0, 1, 'km', 'STORE', 'acme:h', 'STORE', 'b:h'",
            "'MEMORY', 'STATS'",
            "'CLUSTER', 'GETKEYSINSLOT', 0, 1",
            "'COMMAND'",
            "'EVAL', 'return 1', 0",
            "'ACL', 'WHOAMI'",
        ] {
            let reply = run(&format!("return redis.call({attack})")).await;
            assert!(matches!(reply, Value::ServerError(_)), "{binary}: {attack}: {reply:?}");
        }
        assert_eq!(run("return redis.call('SELECT', 3)").await, Value::Okay);
        let mut sort = server.enter(&wall, 0, Kind::Sort).await.unwrap();
        assert!(refused(&say(&mut sort, "EVAL return+1 0").await));
        let mut root = server.root().await;
        assert_eq!(say(&mut root, "SELECT 0").await, Value::Okay);
    }
}

#[tokio::test]
async fn n4_a_prefix_with_glob_characters_is_literal() {
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let wall = server.wall(AclWall::Require);
        let prefixes = ["t*:", "t?:", "[ab]:", "a\\:", "t^-:", "{t}:", "+@all:", "~*:", "#x:", ">x:"];
        let walled: Vec<_> = (0..).zip(prefixes).map(|(id, p)| tenant(id, &format!("{p} ü\r\n"), p)).collect();
        raised(wall.raise(&walled).await.unwrap());
        for tenant in &walled {
            for kind in Kind::ALL {
                let mut line = server.enter(&wall, tenant.id, kind).await.unwrap();
                let mut get = async |key: &str| line.ask(redis::cmd("GET").arg(key)).await.unwrap();
                let prefix = std::str::from_utf8(&tenant.prefix).unwrap();
                assert_eq!(get(&format!("{prefix}k")).await, Value::Nil, "{prefix}");
                for other in ["tx:k", "txx:k", "a:k", "b:k", "ax:k", "t-:k", "t:k", "k", "t\\*:k", "all:k", "*:k"] {
                    assert!(refused(&get(other).await), "{prefix} {other}");
                }
            }
        }
        for bad in ["a b:", "a(:", "a):", "a\":", "a\n", "a\0", "é:"] {
            assert!(matches!(wall.raise(&[tenant(0, "t", bad)]).await, Err(WallError::Prefix(_))));
        }
        assert!(wall.check().await, "a prefix that is refused changes nothing");
    }
}

#[tokio::test]
async fn two_walls_do_not_disturb_each_other() {
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let (one, two) = (server.wall(AclWall::Require), server.wall(AclWall::Require));
        let (a, b) = (tenant(0, "a", "a:"), tenant(1, "b", "b:"));
        raised(one.raise(&[a.clone(), b.clone()]).await.unwrap());
        raised(two.raise(std::slice::from_ref(&a)).await.unwrap());
        assert_ne!(one.login(0, Kind::Data), two.login(0, Kind::Data));
        assert_eq!(two.login(1, Kind::Data), Login::NotYet);
        let mut first = server.enter(&one, 0, Kind::Data).await.unwrap();
        let mut second = server.enter(&two, 0, Kind::Data).await.unwrap();
        assert!(one.check().await && two.check().await);
        two.lower().await.unwrap();
        assert_eq!(two.login(0, Kind::Data), Login::NotYet);
        assert!(!two.check().await && one.check().await);
        assert!(second.ask(&redis::cmd("PING")).await.is_err(), "closed with its user");
        assert_eq!(say(&mut first, "SET a:k v").await, Value::Okay);
        // Raising again leaves connections alone; a tenant that left is disconnected.
        let mut leaves = server.enter(&one, 1, Kind::Sort).await.unwrap();
        assert_eq!(say(&mut leaves, "GET b:k").await, Value::Nil);
        raised(one.raise(&[a]).await.unwrap());
        assert_eq!(say(&mut first, "GET a:k").await, Value::BulkString(b"v".to_vec()));
        assert!(leaves.ask(&redis::cmd("PING")).await.is_err());
        assert_eq!(one.login(1, Kind::Sort), Login::NotYet);
        one.lower().await.unwrap();
        let mut root = server.root().await;
        assert_eq!(texts(&root.ask(&acl("USERS")).await.unwrap()), ["default"]);
    }
}

#[tokio::test]
async fn users_that_vanish_are_missed_and_made_again() {
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let wall = server.wall(AclWall::Require);
        assert_eq!(wall.login(0, Kind::Data), Login::NotYet);
        assert!(!wall.check().await);
        let tenants = [tenant(0, "a", "a:"), tenant(1, "b", "b:")];
        raised(wall.raise(&tenants).await.unwrap());
        assert!(wall.check().await);
        let Login::As(user, _) = wall.login(1, Kind::Sort) else { panic!() };
        let mut root = server.root().await;
        root.ask(acl("DELUSER").arg(&user)).await.unwrap();
        assert!(!wall.check().await);
        assert!(server.enter(&wall, 1, Kind::Sort).await.is_err());
        raised(wall.raise(&tenants).await.unwrap());
        assert!(wall.check().await);
        server.enter(&wall, 1, Kind::Sort).await.unwrap();
        // Rules that somebody else changed are seen by their effect only.
        root.ask(acl("SETUSER").arg(&user).arg("off")).await.unwrap();
        assert!(server.enter(&wall, 1, Kind::Sort).await.is_err());
        wall.doubt();
        raised(wall.raise(&tenants).await.unwrap());
        server.enter(&wall, 1, Kind::Sort).await.unwrap();
        // New rules for one tenant reach the connections that it has.
        let mut held = server.enter(&wall, 0, Kind::Data).await.unwrap();
        let changed = [tenant(0, "a", "a2:"), tenant(1, "b", "b:")];
        raised(wall.raise(&changed).await.unwrap());
        assert!(refused(&say(&mut held, "GET a:k").await));
        assert_eq!(say(&mut held, "GET a2:k").await, Value::Nil);
        // A connection of the control plane that was closed is no news of the users.
        say(&mut root, "CLIENT KILL TYPE normal").await;
        while !wall.check().await {}
    }
}

#[tokio::test]
async fn the_policy_says_what_a_refusal_means() {
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let mut root = server.root().await;
        root.ask(acl("SETUSER").arg(&["poor", "on", ">p", "~*", "&*", "+@all", "-acl"])).await.unwrap();
        let poor = Target { username: "poor".into(), password: "p".into(), ..server.target() };
        let tenants = [tenant(0, "a", "a:")];
        let wall = |policy| Wall::new(poor.clone(), policy, Identity::new().unwrap());
        let auto = wall(AclWall::Auto);
        let standing = auto.raise(&tenants).await.unwrap();
        assert!(matches!(&standing, Standing::None(why) if why.contains("NOPERM")), "{standing:?}");
        assert_eq!((auto.login(0, Kind::Data), auto.check().await), (Login::Plain, true));
        let require = wall(AclWall::Require);
        let error = require.raise(&tenants).await.unwrap_err();
        assert!(matches!(error, WallError::Refused(_)), "{error}");
        assert_eq!(require.login(0, Kind::Data), Login::NotYet);
        let off = wall(AclWall::Off);
        assert!(matches!(off.raise(&tenants).await, Ok(Standing::Off)));
        assert_eq!(off.login(0, Kind::Data), Login::Plain);
        // What stood once is never given up for the settings' user.
        root.ask(acl("SETUSER").arg(&["poor", "+acl"])).await.unwrap();
        raised(auto.raise(&tenants).await.unwrap());
        root.ask(acl("SETUSER").arg(&["poor", "-acl"])).await.unwrap();
        assert!(matches!(auto.raise(&tenants).await, Err(WallError::Refused(_))));
        assert!(matches!(auto.login(0, Kind::Data), Login::As(..)));
        let nowhere = Target { endpoint: Endpoint::Unix("/nowhere".into()), ..poor.clone() };
        let lost = Wall::new(nowhere, AclWall::Auto, Identity::new().unwrap());
        assert!(matches!(lost.raise(&tenants).await, Err(WallError::Upstream(_))));
        assert_eq!(lost.login(0, Kind::Data), Login::NotYet);
    }
}

#[tokio::test]
async fn users_of_the_dead_go_after_a_day() {
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let ago = |hours: u64| Identity::of(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
        let mut root = server.root().await;
        let (dead, connected, named, young) = (ago(25), ago(25), ago(25), ago(23));
        for who in [&dead, &connected, &named, &young] {
            for user in [who.user(Kind::Data, 1, "t"), who.user(Kind::Sort, 2, "u"), who.scratch()] {
                root.ask(acl("SETUSER").arg(&user).arg(&["on", "nopass", "+ping"])).await.unwrap();
            }
        }
        let others = [
            "keyfence",
            "keyfence-1-data-x",
            "keyfence-0-0123456789abcdef-other-x",
            "keyfence-z-0123456789abcdef-data-x",
        ];
        for user in others {
            root.ask(acl("SETUSER").arg(user)).await.unwrap();
        }
        let login = Target { username: connected.user(Kind::Data, 1, "t"), password: "x".into(), ..server.target() };
        let _held = Line::open(&login).await.unwrap();
        let mut control = server.root().await;
        control.ask(redis::cmd("CLIENT").arg("SETNAME").arg(named.name())).await.unwrap();
        let wall = server.wall(AclWall::Require);
        raised(wall.raise(&[tenant(0, "a", "a:")]).await.unwrap());
        let left = texts(&root.ask(&acl("USERS")).await.unwrap());
        let of = |who: &Identity| left.iter().filter(|u| u.contains(&who.id)).count();
        assert_eq!([&dead, &connected, &named, &young].map(of), [0, 3, 3, 3]);
        assert!(others.iter().all(|o| left.iter().any(|u| u == o)), "{left:?}");
    }
}

#[tokio::test]
async fn holes_are_found_by_trying() {
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let holes = probe_holes(&server.target()).await.unwrap();
        eprintln!("{binary}: {holes:?}");
        let mut root = server.root().await;
        assert_eq!(texts(&root.ask(&acl("USERS")).await.unwrap()), ["default"]);
        assert_eq!(say(&mut root, "DBSIZE").await, Value::Int(0));
        assert_eq!((holes.refused.as_ref(), holes.default_user_open), (None, Some(true)));
        assert!(holes.script_tables.is_some() && holes.function_tables.is_some() && !holes.functions_untried);
        // An upstream that is full takes no library; it is tried again.
        say(&mut root, "CONFIG SET maxmemory 1").await;
        let full = probe_holes(&server.target()).await.unwrap();
        assert!(full.function_tables.is_none() && full.functions_untried);
        say(&mut root, "CONFIG SET maxmemory 0").await;
        // The ACL of the same server, tried in earnest.
        root.ask(acl("SETUSER").arg(&["geo", "on", ">p", "~a:*", "+georadius"])).await.unwrap();
        say(&mut root, "GEOADD a:g 0 0 m").await;
        let mut geo =
            Line::open(&Target { username: "geo".into(), password: "p".into(), ..server.target() }).await.unwrap();
        let reply = say(&mut geo, "GEORADIUS a:g 0 0 1 km STORE a:h STORE b:h").await;
        assert!(refused(&reply) || holes.blind.contains(&"GEORADIUS"), "{binary}: {reply:?}");
        root.ask(redis::cmd("CONFIG").arg(&["SET", "requirepass", "p"])).await.unwrap();
        let target = Target { password: "p".into(), ..server.target() };
        assert_eq!(probe_holes(&target).await.unwrap().default_user_open, Some(false));
        root.ask(acl("SETUSER").arg(&["poor", "on", ">p", "+@all", "-acl", "-eval"])).await.unwrap();
        let poor = Target { username: "poor".into(), ..target };
        let holes = probe_holes(&poor).await.unwrap();
        assert!(holes.refused.is_some() && holes.script_tables.is_none() && !holes.scripts_apart());
        assert_eq!(texts(&root.ask(redis::cmd("FUNCTION").arg("LIST")).await.unwrap()), Vec::<String>::new());
        for lacks in ["-function|load", "-fcall", "-function|delete", "-multi"] {
            root.ask(acl("SETUSER").arg(&["poor", "+@all", lacks])).await.unwrap();
            let holes = probe_holes(&poor).await.unwrap();
            assert!(holes.function_tables.is_none() && !holes.functions_apart() && !holes.functions_untried, "{lacks}");
            assert_eq!(texts(&root.ask(redis::cmd("FUNCTION").arg("LIST")).await.unwrap()), Vec::<String>::new());
        }
    }
}

#[test]
fn the_probe_of_scripts_leaves_them_as_they_were() {
    // In a fresh interpreter of the server each time: what was set must be gone for the next script.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for binary in binaries() {
        runtime.block_on(async {
            let server = Server::start(&binary).await;
            let first = probe_holes(&server.target()).await.unwrap();
            let mut root = server.root().await;
            let script = "local left = {} for _, t in ipairs({_G, string, table, math, redis, getmetatable('')}) do \
                          left[#left + 1] = tostring(rawget(t, 'keyfence_probe')) end return left";
            let reply = root.ask(redis::cmd("EVAL").arg(script).arg(0)).await.unwrap();
            assert!(texts(&reply).iter().all(|t| t == "nil"), "{binary}: {reply:?}");
            assert_eq!(first, probe_holes(&server.target()).await.unwrap());
        });
    }
}

#[tokio::test]
async fn a_thousand_tenants() {
    for binary in binaries() {
        let server = Server::start(&binary).await;
        let wall = server.wall(AclWall::Require);
        let tenants: Vec<_> = (0..1000).map(|id| tenant(id, &format!("tenant{id}"), &format!("tenant{id}:"))).collect();
        let mut other = server.root().await;
        let done = std::cell::Cell::new(false);
        let longest = async {
            let mut longest = Duration::ZERO;
            while !done.get() {
                let sent = Instant::now();
                say(&mut other, "PING").await;
                longest = longest.max(sent.elapsed());
            }
            longest
        };
        let raise = async {
            let timed = async || {
                let began = Instant::now();
                raised(wall.raise(&tenants).await.unwrap());
                began.elapsed()
            };
            let (first, unchanged) = (timed().await, timed().await);
            wall.doubt();
            let again = timed().await;
            let began = Instant::now();
            assert!(wall.check().await);
            let check = began.elapsed();
            done.set(true);
            (first, unchanged, again, check)
        };
        let (longest, (first, unchanged, again, check)) = tokio::join!(longest, raise);
        eprintln!(
            "{binary}: raise {first:?}, unchanged {unchanged:?}, after a doubt {again:?}, check {check:?}; longest PING of others meanwhile {longest:?}"
        );
        let began = Instant::now();
        wall.lower().await.unwrap();
        eprintln!("{binary}: lower {:?}", began.elapsed());
    }
}

#[test]
fn names_are_safe_and_unique() {
    let who = Identity::new().unwrap();
    let long = "x".repeat(100);
    let names = ["", "a", "a-sort", "A", "a b", "a%20b", "a\0", "ü", "=a", "data-a", "-", &long, &"x".repeat(101)];
    let users: HashSet<_> = names.iter().flat_map(|n| Kind::ALL.map(|kind| who.user(kind, 1, n))).collect();
    assert_eq!(users.len(), 2 * names.len());
    for user in &users {
        assert!(user.len() < 160 && user.bytes().all(|c| c.is_ascii_graphic()), "{user}");
        assert_eq!(owner(user).map(|(_, id)| id), Some(who.id.as_str()));
    }
    assert_eq!(owner(&who.name()).map(|(_, id)| id), Some(who.id.as_str()));
    for foreign in ["keyfence-1-data-x", "default", "keyfence-", "keyfence-1-0123456789abcdex-data-x"] {
        assert_eq!(owner(foreign), None, "{foreign}");
    }
    assert!(!format!("{who:?}").contains(&who.password) && !format!("{who:?}").contains(&who.sha256));
    let login = Login::As("u".into(), who.password.clone());
    assert!(!format!("{login:?}").contains(&who.password));
}

#[test]
fn rules_never_name_what_reaches_past_a_prefix() {
    let never = [
        "scan",
        "randomkey",
        "dbsize",
        "keys",
        "flushall",
        "flushdb",
        "swapdb",
        "config",
        "client",
        "pubsub",
        "script",
        "function",
        "acl",
        "debug",
        "info",
        "monitor",
        "migrate",
        "cluster",
        "module",
        "command",
        "replicaof",
        "slowlog",
        "latency",
        "save",
        "object",
        "memory",
        "xgroup",
        "xinfo",
    ];
    let holes = Holes::default();
    for lua in [Lua::Off, Lua::Scripts, Lua::Functions] {
        for kind in Kind::ALL {
            let commands = Commands::new(kind, lua, &holes, |_| true);
            let rules = rules(b"t:", &(0..1), &commands, &holes, "00");
            let has = |rule: &str| rules.iter().any(|r| r == rule.as_bytes());
            assert!(
                has("reset")
                    && has("~t:*")
                    && has("&t:*")
                    && has("+get")
                    && has("+object|encoding")
                    && !rules.iter().any(|r| r.starts_with(b"+select"))
            );
            for rule in rules.iter().map(|r| std::str::from_utf8(r).unwrap()) {
                let word = rule.trim_start_matches('+');
                if kind == Kind::Sort && ["client|caching", "client|id", "client|tracking"].contains(&word) {
                    // What a session's own connection needs that tracks keys; no script runs as this user.
                    continue;
                }
                assert!(!never.contains(&word) && !rule.starts_with("+@") && !rule.contains("allkeys"), "{rule}");
                for container in ["client|", "pubsub|", "script|", "function|", "config|", "memory|stats", "acl|"] {
                    assert!(!word.starts_with(container), "{rule}");
                }
            }
            assert_eq!(has("+eval"), lua != Lua::Off && kind == Kind::Data);
            for call in ["+fcall", "+fcall_ro"] {
                assert_eq!(has(call), lua == Lua::Functions && kind == Kind::Data);
            }
            assert_eq!(has("+sort"), kind == Kind::Sort);
            assert_eq!(has("+georadius"), kind == Kind::Sort);
        }
    }
}
