//! Applications as people run them, each as two tenants at once, with the same names for their queues, locks, channels and keys.
//!
//! Every script of `tests/apps` says who its tenant is in what it sends, and fails when it meets anything else. The libraries are
//! installed by `tools/ensure-clients.sh`; without them these tests fail and say so.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::call;
use crate::support::wire::show;
use crate::support::{Fence, Redis, free_addr};

const TENANTS: [&str; 2] = ["one", "two"];

const CONFIG: &str = "
[upstream]
acl_wall = \"require\"
[tenants.one]
passwords = [\"secret-of-one\"]
[tenants.two]
passwords = [\"secret-of-two\"]
";

/// Runs a script of `tests/apps` as both tenants; both must end well, and no key may be anywhere but under their prefixes.
fn app(script: &str) {
    app_on(script, &Redis::start_with(free_addr(), &["--notify-keyspace-events", "Ex"]));
}

fn app_on(script: &str, redis: &Redis) {
    let fence = Fence::with_tenants(redis.addr(), CONFIG);
    thread::scope(|scope| {
        let runs = TENANTS.map(|tenant| scope.spawn(|| run(script, &fence, tenant)));
        for run in runs {
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    let reply = call!(redis.client(), "KEYS", "*");
    let keys = String::from_utf8_lossy(&reply);
    let names = keys.split("\r\n").skip(2).step_by(2).filter(|name| !name.is_empty());
    for name in names {
        assert!(TENANTS.iter().any(|tenant| name.starts_with(&format!("{tenant}:"))), "{}", show(name.as_bytes()));
    }
}

fn run(script: &str, fence: &Fence, tenant: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = script.ends_with(".py");
    let interpreter = if python { root.join(".venv/bin/python") } else { PathBuf::from("node") };
    let mut command = Command::new(interpreter);
    command
        .arg(root.join("tests/apps").join(script))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("KEYFENCE_HOST", fence.addr().ip().to_string())
        .env("KEYFENCE_PORT", fence.addr().port().to_string())
        .env("KEYFENCE_USERNAME", tenant)
        .env("KEYFENCE_PASSWORD", format!("secret-of-{tenant}"));
    let output =
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; `make test` installs the client libraries"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{script} as {tenant}: {}\n{text}", output.status);
}

#[test]
fn bullmq() {
    app("bullmq.mjs");
}

#[test]
fn rq() {
    app("rq_jobs.py");
}

#[test]
fn huey() {
    app("huey_jobs.py");
}

#[test]
fn celery() {
    app("celery_jobs.py");
}

#[test]
fn redlock() {
    app("redlock.mjs");
}

#[test]
fn locks_of_redis_py_and_pottery() {
    app("locks.py");
}

#[test]
fn rate_limiter_and_delayed_queue_in_lua() {
    app("rate_limiter.py");
}

#[test]
fn socketio_over_pubsub() {
    app("socketio_pubsub.mjs");
}

#[test]
fn socketio_over_streams() {
    app("socketio_streams.mjs");
}

#[test]
fn django_cache() {
    app("django_cache.py");
}

#[test]
fn client_cache_of_node_redis() {
    app("client_cache.mjs");
}

#[test]
fn expired_keys() {
    app("expired_keys.py");
}

// redis-py caches on Redis 7.4 and later only.
#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn client_cache_of_redis_py() {
    app_on("client_cache.py", &Redis::with_modules());
}
