//! Clients as people use them, in their own languages, against keyfence in front of a server that also holds somebody else's keys.
//!
//! The libraries are installed by `tools/ensure-clients.sh`; without them these tests fail and say so.
mod rust;
mod tools;

use std::path::Path;
use std::process::Command;

use crate::is;
use crate::support::wire::command;
use crate::support::{Fence, Redis};

/// How many keys of somebody else stand in the same server.
const FOREIGN: usize = 1000;

/// keyfence, and a server with foreign keys behind it.
struct World {
    redis: Redis,
    fence: Fence,
}

impl World {
    fn new() -> Self {
        let redis = Redis::start();
        let bytes: Vec<u8> = (0..FOREIGN).flat_map(|i| command(&["SET", &format!("foreign:{i}"), "theirs"])).collect();
        assert!(redis.client().pipeline(&bytes, FOREIGN).iter().all(|reply| reply == b"+OK\r\n"));
        let fence = Fence::start(&redis);
        Self { redis, fence }
    }

    /// Runs a program; it must end well. Returns what it printed.
    fn run(&self, program: &mut Command) -> String {
        program
            .env("KEYFENCE_HOST", self.fence.addr().ip().to_string())
            .env("KEYFENCE_PORT", self.fence.addr().port().to_string());
        let output =
            program.output().unwrap_or_else(|e| panic!("{program:?}: {e}; `make test` installs the client libraries"));
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{program:?}: {}\n{text}", output.status);
        text
    }

    /// A script of `tests/clients`.
    fn script(&self, interpreter: &Path, name: &str, args: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
        self.run(Command::new(interpreter).arg(script).args(args))
    }

    /// The foreign keys are all there, and nothing but them and the tenant's.
    fn foreign_keys_are_untouched(&self) {
        let mut upstream = self.redis.client();
        let bytes: Vec<u8> = (0..FOREIGN).flat_map(|i| command(&["GET", &format!("foreign:{i}")])).collect();
        assert!(upstream.pipeline(&bytes, FOREIGN).iter().all(|reply| reply == b"$6\r\ntheirs\r\n"));
        is!(self.fence.client(), ["FLUSHALL"], "+OK\r\n");
        is!(upstream, ["DBSIZE"], format!(":{}\r\n", if self.fence.process().is_some() { FOREIGN } else { 0 }));
    }
}

fn python(name: &str, args: &[&str]) {
    let world = World::new();
    world.script(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"), name, args);
    world.foreign_keys_are_untouched();
}

fn node(name: &str) {
    let world = World::new();
    world.script(Path::new("node"), name, &[]);
    world.foreign_keys_are_untouched();
}

#[test]
fn redis_py() {
    python("redis_py.py", &[]);
}

#[test]
fn redis_py_asyncio() {
    python("redis_py_asyncio.py", &[]);
}

#[test]
fn spakky_redis() {
    python("spakky_cache.py", &["sync"]);
}

#[test]
fn spakky_redis_asynchronous() {
    python("spakky_cache.py", &["async"]);
}

#[test]
fn ioredis() {
    node("ioredis.mjs");
}

#[test]
fn node_redis() {
    node("node_redis.mjs");
}
