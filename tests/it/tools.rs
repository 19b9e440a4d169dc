//! `adopt`, `purge` and `hash-password`: the binary, with a real server behind.

use std::{
    io::Write as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use keyfence::tenant::password::Password;
use redis::Connection;

/// A server of its own on a socket in a temporary folder.
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
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--databases", "4", "--unixsocket"])
            .arg(dir.path().join("s"))
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        Self { child, dir }
    }

    fn url(&self) -> String {
        format!("redis+unix://{}", self.dir.path().join("s").display())
    }

    fn connect(&self, db: u32) -> Connection {
        let client = redis::Client::open(format!("{}?db={db}", self.url())).expect("an address");
        loop {
            if let Ok(connection) = client.get_connection() {
                return connection;
            }
            std::thread::yield_now();
        }
    }

    /// Every key of a database and its value, in order.
    fn all(&self, db: u32) -> Vec<(String, String)> {
        let mut c = self.connect(db);
        let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut c).expect("keys");
        keys.sort();
        keys.into_iter().map(|k| (k.clone(), redis::cmd("GET").arg(k).query(&mut c).expect("a string"))).collect()
    }

    fn fill(&self, db: u32, names: &[&str]) {
        let mut c = self.connect(db);
        for name in names {
            // Its old name is its value.
            redis::cmd("SET").arg(name).arg(name).exec(&mut c).expect("set");
        }
    }

    fn keyfence(&self, tenants: &str, args: &[&str]) -> Output {
        let file = self.dir.path().join("config.toml");
        std::fs::write(&file, format!("[upstream]\nurl = \"{}\"\n{tenants}", self.url())).expect("written");
        run(self.dir.path(), args)
    }
}

fn run(dir: &Path, args: &[&str]) -> Output {
    let clean = std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("KEYFENCE_"));
    Command::new(env!("CARGO_BIN_EXE_keyfence"))
        .args(args)
        .current_dir(dir)
        .env_clear()
        .envs(clean)
        .output()
        .expect("it runs")
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect()
}

const TENANTS: &str = "[tenants.acme]\ndatabases = 2\n[tenants.acme2]\n[tenants.one]\nprefix = \"{one}-\"\n";

#[test]
fn adopt_moves_keys_and_never_overwrites() {
    let server = Server::start();
    server.fill(0, &["user:1", "user:2", "user:3", "other", "acme:user:2", "acme2:user:9", "{one}-user:1"]);
    server.fill(1, &["user:1"]);
    server.fill(2, &["user:1"]);
    redis::cmd("EXPIRE").arg("user:1").arg(1000).exec(&mut server.connect(0)).expect("expires");
    let before = (server.all(0), server.all(1), server.all(2));

    let adopt = ["adopt", "--tenant", "acme", "--match", "*user:*"];
    let dry = server.keyfence(TENANTS, &[&adopt[..], &["--dry-run"]].concat());
    let (status, out, err) = said(&dry);
    assert_eq!(status, Some(0), "{err}");
    let rest = "1 left since the new name is taken, 3 that a tenant has already\n";
    assert_eq!(out, format!("3 keys would move to tenant 'acme', {rest}"));
    assert_eq!(err, "left: user:2, since there is acme:user:2\n");
    assert_eq!((server.all(0), server.all(1), server.all(2)), before, "a dry run changes nothing");

    let (status, out, err) = said(&server.keyfence(TENANTS, &adopt));
    assert_eq!((status, out), (Some(0), format!("3 keys moved to tenant 'acme', {rest}")));
    assert_eq!(err, "left: user:2, since there is acme:user:2\n");
    assert_eq!(
        server.all(0),
        pairs(&[
            ("acme2:user:9", "acme2:user:9"),
            ("acme:user:1", "user:1"),
            ("acme:user:2", "acme:user:2"),
            ("acme:user:3", "user:3"),
            ("other", "other"),
            ("user:2", "user:2"),
            ("{one}-user:1", "{one}-user:1"),
        ])
    );
    assert_eq!(server.all(1), pairs(&[("acme:user:1", "user:1")]));
    assert_eq!(server.all(2), pairs(&[("user:1", "user:1")]), "not one of the tenant's databases");
    let ttl: i64 = redis::cmd("TTL").arg("acme:user:1").query(&mut server.connect(0)).expect("a ttl");
    assert!((900..=1000).contains(&ttl), "{ttl}");

    let (_, out, _) = said(&server.keyfence(TENANTS, &adopt));
    assert!(out.starts_with("0 keys moved to tenant 'acme', 1 left"), "a second time changes nothing: {out}");
}

#[test]
fn adopt_moves_many_keys_once_each() {
    let server = Server::start();
    let mut c = server.connect(0);
    for i in 0..5000 {
        redis::cmd("SET").arg(format!("k{i}")).arg(i).exec(&mut c).expect("set");
    }
    // Without tenants everybody is one, called default.
    let (status, out, err) = said(&server.keyfence("", &["adopt", "--tenant", "default", "--match", "*"]));
    assert_eq!(status, Some(0), "{err}");
    assert!(out.starts_with("5000 keys moved to tenant 'default', 0 left"), "{out}");
    let all = server.all(0);
    assert_eq!(all.len(), 5000);
    assert!(all.iter().all(|(name, value)| *name == format!("keyfence:k{value}")));
}

#[test]
fn n4_purge_deletes_one_tenants_keys_and_no_others() {
    let server = Server::start();
    let others = ["acme2:k", "acm:e", "acme", "ACME:k", "{one}-k", "xacme:k"];
    for db in 0..3 {
        server.fill(db, &others);
        server.fill(db, &["acme:", "acme:k", "acme:*"]);
    }
    let (status, out, err) = said(&server.keyfence(TENANTS, &["purge", "--tenant", "acme"]));
    assert_eq!(
        (status, out, err),
        (Some(0), "6 keys of tenant 'acme' deleted from 2 databases\n".into(), String::new())
    );
    for db in 0..3 {
        assert_eq!(server.all(db).len(), if db < 2 { others.len() } else { others.len() + 3 }, "{db}");
    }
    let (_, out, _) = said(&server.keyfence(TENANTS, &["purge", "--tenant", "one"]));
    assert_eq!(out, "1 key of tenant 'one' deleted from 1 database\n");
    // And its libraries, if there are any.
    let mut c = server.connect(0);
    for name in ["keyfence_acme_3a__a", "keyfence_acme_3a__b", "keyfence_acme", "keyfence_acme2_3a__a", "own"] {
        let code = format!("#!lua name={name}\nredis.register_function('{name}', function() end)");
        redis::cmd("FUNCTION").arg("LOAD").arg(code).exec(&mut c).expect("a library");
    }
    let (_, out, err) = said(&server.keyfence(TENANTS, &["purge", "--tenant", "acme"]));
    assert_eq!(out, "0 keys of tenant 'acme' deleted from 2 databases, and 2 libraries of functions\n", "{err}");
    let left: redis::Value = redis::cmd("FUNCTION").arg("LIST").query(&mut c).expect("a list");
    assert!(matches!(left, redis::Value::Array(libraries) if libraries.len() == 3));
    // More databases than the upstream has.
    server.fill(3, &["keyfence:a"]);
    let (status, out, err) = said(&server.keyfence("", &["purge", "--tenant", "default"]));
    assert_eq!((status, out), (Some(0), "1 key of tenant 'default' deleted from 4 databases\n".into()), "{err}");
}

#[test]
fn explain_speaks_for_a_tenant() {
    let server = Server::start();
    let tenants = "[tenants.acme]\ncommands.deny = [\"@geo\"]\n";
    let explain = |tenants: &str, args: &[&str]| said(&server.keyfence(tenants, &[&["explain"], args].concat()));
    let (_, out, _) = explain(tenants, &["--tenant", "acme", "--", "GET", "k"]);
    assert!(out.contains("\nupstream    GET acme:k\n"), "{out}");
    let (_, out, _) = explain(tenants, &["--tenant", "acme", "--", "GEOADD", "k", "1", "2", "m"]);
    assert!(out.contains("\nreply       -NOPERM User acme has no permissions to run the 'geoadd' command\n"), "{out}");
    let (_, out, _) = explain(tenants, &["--tenant", "acme", "--", "FCALL", "f", "1", "k", "v"]);
    assert!(out.contains("\nupstream    FCALL keyfence_acme_3a__f 1 acme:k v\n"), "{out}");
    let (_, out, _) = explain(tenants, &["--tenant", "acme", "--", "FUNCTION", "DELETE", "l"]);
    assert!(out.contains("\nupstream    FUNCTION DELETE keyfence_acme_3a__l, as keyfence itself\n"), "{out}");
    assert_eq!(explain(tenants, &["--", "GET", "k"]).0, Some(64));
    assert_eq!(explain(tenants, &["--tenant", "b", "--", "GET", "k"]).0, Some(64));
    let (_, out, _) = explain("", &["--", "GET", "k"]);
    assert!(out.contains("\nupstream    GET keyfence:k\n"), "{out}");
}

#[test]
fn an_unknown_tenant_and_an_absent_upstream_have_their_status() {
    let server = Server::start();
    for (tenants, name, error) in [
        (TENANTS, "nobody", "keyfence: no tenant 'nobody' in the settings; there are: 'acme', 'acme2', 'one'\n"),
        ("", "acme", "keyfence: no tenant 'acme': the settings have no [tenants], and everybody is 'default'\n"),
    ] {
        for args in [&["purge", "--tenant", name][..], &["adopt", "--match", "*", "--tenant", name]] {
            assert_eq!(said(&server.keyfence(tenants, args)), (Some(64), String::new(), error.to_string()));
        }
    }
    let alone = "[tenants.a]\nprefix = \"\"\n";
    let (status, _, err) = said(&server.keyfence(alone, &["adopt", "--match", "*", "--tenant", "a"]));
    assert_eq!((status, &*err), (Some(64), "keyfence: tenant 'a' has no prefix: the keys there are its own\n"));
    let dir = tempfile::tempdir().expect("a folder");
    for command in [&["purge"][..], &["adopt", "--match", "*"]] {
        let (status, out, err) =
            said(&run(dir.path(), &[command, &["--tenant", "default", "--upstream", "unix:///nowhere/s"]].concat()));
        assert_eq!((status, &*out), (Some(69), ""), "{err}");
        assert!(err.starts_with("keyfence: /nowhere/s: UPSTREAM unreachable: "), "{err}");
    }
}

#[test]
fn hash_password_reads_a_line_and_prints_its_hash() {
    let hash = |args: &[&str], given: &[u8]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_keyfence"))
            .arg("hash-password")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        child.stdin.take().expect("piped").write_all(given).expect("written");
        said(&child.wait_with_output().expect("it ends"))
    };
    for (given, password) in [("secret\n", "secret"), ("secret", "secret"), ("se cret \r\nmore", "se cret ")] {
        let (status, out, err) = hash(&[], given.as_bytes());
        assert_eq!((status, &*err), (Some(0), ""));
        let line = out.strip_suffix('\n').expect("a line");
        assert!(
            line.starts_with("$argon2id$v=19$") && Password::parse(line).is_ok_and(|p| p.verify(password.as_bytes()))
        );
        let (_, out, _) = hash(&["--sha256"], given.as_bytes());
        assert!(Password::parse(out.trim_end()).is_ok_and(|p| !p.is_plain() && p.verify(password.as_bytes())), "{out}");
    }
    for empty in ["", "\n", "\r\n"] {
        assert_eq!(hash(&[], empty.as_bytes()).0, Some(64));
    }
}

#[test]
fn a_certificate_that_cannot_be_read_is_a_wrong_setting_to_every_command() {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = "[upstream]\nurl = 'rediss://127.0.0.1:1'\ntls = { ca_file = 'none.pem' }\n";
    std::fs::write(dir.path().join("config.toml"), settings).expect("settings");
    for command in
        [&["check"][..], &["adopt", "--tenant", "default", "--match", "*"], &["purge", "--tenant", "default"]]
    {
        let (status, _, error) = said(&run(dir.path(), command));
        assert_eq!(status, Some(64), "{command:?}: {error}");
        assert!(error.contains("none.pem"), "{command:?}: {error}");
    }
}

#[test]
fn a_managed_upstream_is_used_whether_or_not_it_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let purge = || said(&run(dir.path(), &["purge", "--tenant", "default", "--upstream", "managed"]));
    assert_eq!(purge().1, "0 keys of tenant 'default' deleted from 16 databases\n");
    // Another keyfence serves from the folder.
    let mut serving = Command::new(env!("CARGO_BIN_EXE_keyfence"))
        .args(["--upstream", "managed", "--listen", "unix:k", "--admin", "", "--log-level", "off"])
        .current_dir(dir.path())
        .spawn()
        .expect("it runs");
    let client = redis::Client::open(format!("redis+unix://{}", dir.path().join("k").display())).expect("an address");
    let mut c = loop {
        if let Ok(connection) = client.get_connection() {
            break connection;
        }
        std::thread::yield_now();
    };
    while redis::cmd("SET").arg("k").arg("v").exec(&mut c).is_err() {}
    let (status, out, err) = purge();
    assert_eq!((status, out), (Some(0), "1 key of tenant 'default' deleted from 16 databases\n".into()), "{err}");
    // SIGTERM, so that its server goes with it.
    let _ = Command::new("kill").arg(serving.id().to_string()).status();
    assert!(serving.wait().is_ok_and(|status| status.success()));
}
