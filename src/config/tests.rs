//! The settings as an operator meets them: one text in, one [`Config`] or one sentence out.

use super::*;

fn read(file: &str, env: &[(&str, &str)], cli: &CliOverrides) -> Result<Config, String> {
    let env = env.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string()));
    Config::read(Some((Path::new("config.toml"), file)), env, cli).map_err(|e| e.to_string())
}

fn file(text: &str) -> Result<Config, String> {
    read(text, &[], &CliOverrides::default())
}

fn env(pairs: &[(&str, &str)]) -> Result<Config, String> {
    read("", pairs, &CliOverrides::default())
}

fn tcp(host: &str, port: u16) -> Endpoint {
    Endpoint::Tcp { host: host.into(), port }
}

#[test]
fn the_defaults_are_the_contract() {
    let c = Config::default();
    assert_eq!(c.listen, [Listen::Tcp("127.0.0.1:6380".into())]);
    assert_eq!((c.workers, c.max_clients, c.client_output_limit), (0, 10_000, 64 << 20));
    assert_eq!(c.key_prefix.as_bytes(), b"keyfence:");
    assert_eq!((c.client_idle_timeout, c.shutdown_grace), (None, Duration::from_secs(10)));
    let u = &c.upstream;
    assert_eq!((&u.endpoint, u.db, u.username.as_str(), u.password.is_empty()), (&tcp("localhost", 6379), 0, "", true));
    assert_eq!((u.socket_timeout, u.connect_timeout), (Duration::from_secs(5), Duration::from_secs(1)));
    assert_eq!((u.connections_per_worker, u.max_connections, u.acl_wall), (1, 1000, AclWall::Auto));
    assert_eq!(c.admin.listen.as_deref(), Some("127.0.0.1:9180"));
    assert_eq!((c.admin.slowlog_threshold, c.admin.slowlog_length), (Duration::from_millis(10), 128));
    assert_eq!((c.log.level, c.log.format), (LevelFilter::INFO, LogFormat::Text));
    assert_eq!((c.tier.enabled, c.tier.max_memory, c.tier.max_value), (false, 256 << 20, 1 << 20));
    assert_eq!((c.tier.max_ttl, c.tier.negative), (Duration::from_secs(600), true));
    assert_eq!((c.auth.mode, c.auth.upstream_prefix.to_string()), (AuthMode::Static, "{user}:".into()));
    assert!(c.auth.default_tenant.is_empty() && c.warnings().is_empty());
    assert!(c.tenants.is_empty() && c.upstreams.is_empty());
    assert_eq!(DATABASES, 16);
}

#[test]
fn a_higher_place_goes_before_a_lower_one() {
    let text = "workers = 1\nkey_prefix = \"f:\"\nmax_clients = 5";
    let vars = [("KEYFENCE_WORKERS", "2"), ("KEYFENCE_KEY_PREFIX", "e:"), ("PATH", "/bin")];
    let cli = CliOverrides { workers: Some("3".into()), ..CliOverrides::default() };
    let c = read(text, &vars, &cli).unwrap();
    assert_eq!((c.workers, c.key_prefix.as_bytes(), c.max_clients), (3, &b"e:"[..], 5));
}

#[test]
fn every_flag_arrives() {
    let cli = CliOverrides {
        config: None,
        listen: vec!["[::1]:0".into(), "unix:/run/k.sock".into()],
        upstream: Some("redis://u:p@h:7/3".into()),
        prefix: Some("p:".into()),
        workers: Some("4".into()),
        tier: None,
        admin: Some(String::new()),
        log_level: Some("debug".into()),
        log_format: Some("json".into()),
    };
    let c = read("", &[], &cli).unwrap();
    assert_eq!(c.listen, [Listen::Tcp("[::1]:0".into()), Listen::Unix("/run/k.sock".into())]);
    assert_eq!((&c.upstream.endpoint, c.upstream.db, c.upstream.username.as_str()), (&tcp("h", 7), 3, "u"));
    assert_eq!((c.upstream.password.expose(), c.key_prefix.as_bytes(), c.workers), ("p", &b"p:"[..], 4));
    assert_eq!((c.admin.listen, c.log.level, c.log.format), (None, LevelFilter::DEBUG, LogFormat::Json));
    let cli = CliOverrides { tier: Some("1GiB".into()), ..CliOverrides::default() };
    let tier = read("", &[], &cli).unwrap().tier;
    assert_eq!((tier.enabled, tier.max_memory, tier.max_value), (true, 1 << 30, 1 << 20));
}

#[test]
fn every_key_has_a_variable() {
    for row in table::SETTINGS {
        let name = row.variable().replace("<NAME>", "ACME");
        let text = row.default.trim_matches(['[', ']', '"']).replace("\"", "").replace("<name>", "acme");
        let text = if row.path == "listen" { "127.0.0.1:6380".into() } else { text };
        // A default is a fair value of every key.
        let c = env(&[(&name, &text)]).unwrap();
        if row.path.starts_with("tenants") {
            assert_eq!(c.tenants, file("[tenants.acme]").unwrap().tenants, "{name}");
        } else if row.path.starts_with("upstreams") {
            assert_eq!(c.upstreams, [("acme".into(), c.upstream)], "{name}");
        } else {
            assert_eq!(c, Config::default(), "{name}");
        }
    }
    let c = env(&[("KEYFENCE_LISTEN", "127.0.0.1:1, unix:/a"), ("KEYFENCE_UPSTREAM__HOST", "h")]).unwrap();
    assert_eq!(c.listen, [Listen::Tcp("127.0.0.1:1".into()), Listen::Unix("/a".into())]);
    assert_eq!(c.upstream.endpoint, tcp("h", 6379));
}

#[test]
fn an_unknown_key_names_its_place_and_the_nearest_known_one() {
    let text = "workers = 1\n\n[upstream]\nhots = \"h\"\n";
    assert_eq!(file(text), Err("config.toml:4: upstream.hots: unknown key; did you mean 'host'?".into()));
    assert_eq!(
        file("[upstream.tls]\nca_flie = \"\""),
        Err("config.toml:2: upstream.tls.ca_flie: unknown key; did you mean 'ca_file'?".into())
    );
    assert_eq!(file("[upstraem]"), Err("config.toml:1: upstraem: unknown key; did you mean 'upstream'?".into()));
    assert_eq!(
        env(&[("KEYFENCE_WORKER", "1")]),
        Err("KEYFENCE_WORKER: unknown variable; did you mean 'KEYFENCE_WORKERS'?".into())
    );
}

#[test]
fn variables_that_are_not_ours_are_left_alone() {
    let others =
        ["KEYFENCE_PORT", "KEYFENCE_PORT_6380_TCP_ADDR", "KEYFENCE_SERVICE_HOST", "KEYFENCE_SERVICE_PORT_REDIS"];
    for name in others.iter().chain(&["KEYFENCE_BLESS", "KEYFENCED_X"]) {
        assert!(env(&[(name, "tcp://10.0.0.1:6380")]).is_ok(), "{name}");
    }
}

#[test]
fn a_wrong_value_names_its_place() {
    for (text, error) in [
        ("workers = \"2\"", "config.toml:1: workers: expected a whole number, found a text"),
        ("\nworkers = 2000", "config.toml:2: workers: 2000 is not between 0 and 1024"),
        ("workers = -1", "config.toml:1: workers: -1 is below 0"),
        ("listen = []", "config.toml:1: listen: names no address, so that nobody could connect"),
        (
            "listen = [\":6380\"]",
            "config.toml:1: listen: ':6380' is not host:port; for every address write 0.0.0.0:6380",
        ),
        ("listen = [\"a:1\", \"a:1\"]", "config.toml:1: listen: 'a:1' is named twice"),
        ("listen = \"a:1\"", "config.toml:1: listen: expected a list such as [\"a\", \"b\"], found a text"),
        (
            "listen = [1]",
            "config.toml:1: listen: expected a list such as [\"a\", \"b\"], found a list of other things than texts",
        ),
        ("upstream = 3", "config.toml:1: upstream: expected a section with keys of its own"),
        (
            "[upstream]\nsocket_timeout = 5",
            "config.toml:2: upstream.socket_timeout: 5 needs a unit, such as \"5s\" or \"5ms\"",
        ),
        (
            "[upstream]\nsocket_timeout = \"0s\"",
            "config.toml:2: upstream.socket_timeout: '0s' is too short; the least is 1ms",
        ),
        ("client_output_limit = \"1KB\"", "config.toml:1: client_output_limit: 1000B is below 1024B"),
        (
            "[log]\nlevel = \"loud\"",
            "config.toml:2: log.level: 'loud' is not one of off, error, warn, info, debug, trace",
        ),
        (
            "[upstream]\nurl = \"managed\"\nmanaged.save = \"60\"",
            "config.toml:3: upstream.managed.save: '60' is not pairs of seconds and changes, such as \"3600 1 300 100\"",
        ),
        ("[admin]\nlisten = \"9180\"", "config.toml:2: admin.listen: '9180' is not host:port; there is no port"),
        ("workers = 1\nworkers = 2", "config.toml:2: duplicate key"),
    ] {
        assert_eq!(file(text).err().as_deref(), Some(error));
    }
    assert_eq!(env(&[("KEYFENCE_WORKERS", "many")]), Err("KEYFENCE_WORKERS: 'many' is not a whole number".into()));
    let cli = CliOverrides { prefix: Some("a*".into()), ..CliOverrides::default() };
    let error = read("", &[], &cli).unwrap_err();
    assert!(error.starts_with("--prefix: a prefix may not hold '*', which means something in a pattern;"), "{error}");
    assert!(
        env(&[("KEYFENCE_KEY_PREFIX", "")]).unwrap_err().starts_with("KEYFENCE_KEY_PREFIX: a prefix must not be empty")
    );
}

#[test]
fn whatever_the_file_holds_the_error_is_one_line() {
    for text in [
        "=",
        "[",
        "a = \"\n\"",
        "\"a\\nb\" = 1",
        "key_prefix = \"a\\nb\"",
        "[log]\nlevel = \"a\\nb\"",
        "[tenants.\"a\\nb\"]",
        "x = [[[[",
    ] {
        let error = file(text).unwrap_err();
        assert!(!error.contains('\n') && error.starts_with("config.toml:"), "{error}");
    }
}

#[test]
fn tls_takes_keys_that_go_together() {
    for (text, error) in [
        ("listen = [\"tls:a:1\"]", "config.toml:1: listen: a tls: listener needs a certificate: set tls.cert_file"),
        (
            "[tenants.a]\nlisten = [\"tls:a:1\"]\n[tls]\ncert_file = \"c\"",
            "config.toml:2: tenants.a.listen: a tls: listener needs a certificate: set tls.key_file",
        ),
        (
            "[tls]\nclient_auth = \"required\"",
            "config.toml:2: tls.client_auth: client certificates need an authority that signed them: set tls.client_ca_file",
        ),
        (
            "[tenants.a]\ntls_identities = [\"x\"]\n[tenants.b]\ntls_identities = [\"y\", \"x\"]",
            "config.toml:4: tenants.b.tls_identities: 'x' is tenant 'a' too: a connection must be one tenant's",
        ),
        (
            "[tenants.a]\ntls_identities = [\"x\\u0000y\"]",
            "config.toml:2: tenants.a.tls_identities: 'x\\u{0}y' is no name: empty, or with a control character",
        ),
        (
            "[upstream]\ntls = { ca_file = \"a\" }",
            "config.toml:2: upstream.tls.ca_file: has no effect without use_tls or rediss://",
        ),
        (
            "[upstream]\nurl = \"unix:///s\"\nuse_tls = true",
            "config.toml:3: upstream.use_tls: a unix socket has no TLS",
        ),
    ] {
        assert_eq!(file(text).err().as_deref(), Some(error));
    }
    let config = file("[upstream]\nurl = \"rediss://h:1\"\ntls = { ca_file = \"a\", server_name = \"n\" }").unwrap();
    assert!(config.upstream.use_tls && config.upstream.tls.server_name == "n");
    let config = file("listen = [\"tls:a:1\"]\n[tls]\ncert_file = \"c\"\nkey_file = \"k\"").unwrap();
    assert!(config.listens_with_tls());
}

#[test]
fn what_is_not_served_yet_is_refused_by_name() {
    for (text, error) in [
        ("[tenants.a]\nlimits = { keys = 1 }", "config.toml:2: tenants.a.limits.keys: not served by this version yet"),
        (
            "[tenants.a.limits]\nmemory = \"1MB\"",
            "config.toml:2: tenants.a.limits.memory: not served by this version yet",
        ),
        (
            "[upstream]\nurl = \"redis-sentinel://h/m\"",
            "config.toml:2: upstream.url: redis-sentinel://: not served by this version yet",
        ),
        (
            "[upstream]\nurl = \"redis-cluster://h\"",
            "config.toml:2: upstream.url: redis-cluster://: not served by this version yet",
        ),
    ] {
        assert_eq!(file(text).err().as_deref(), Some(error));
    }
    assert_eq!(
        env(&[("KEYFENCE_TENANTS__A__LIMITS__KEYS", "1")]),
        Err("KEYFENCE_TENANTS__A__LIMITS__KEYS: tenants.a.limits.keys: not served by this version yet".into())
    );
    // Said at their defaults, or off, they are what is served.
    assert!(
        file("[tenants]\n[upstreams]\n[auth]\nmode = \"static\"\n[upstream]\nuse_tls = false\nacl_wall = \"off\"")
            .is_ok()
    );
}

#[test]
fn url_and_its_neighbours() {
    let upstream = |text: &str, vars: &[(&str, &str)]| read(text, vars, &CliOverrides::default()).map(|c| c.upstream);
    let url = "[upstream]\nurl = \"redis://u:p@a:1/2\"\nhost = \"b\"\ndb = 3\npassword = \"q\"";
    let u = upstream(url, &[]).unwrap();
    assert_eq!((u.endpoint, u.db, u.username.as_str(), u.password.expose()), (tcp("a", 1), 2, "u", "p"));
    let u = upstream(url, &[("KEYFENCE_UPSTREAM__PASSWORD", "r"), ("KEYFENCE_UPSTREAM__DB", "4")]).unwrap();
    assert_eq!((u.endpoint, u.db, u.username.as_str(), u.password.expose()), (tcp("a", 1), 4, "u", "r"));
    // The shipped file says "managed"; a host in the environment is the operator's newer word.
    let managed = "[upstream]\nurl = \"managed\"";
    assert_eq!(upstream(managed, &[("KEYFENCE_UPSTREAM__HOST", "h")]).unwrap().endpoint, tcp("h", 6379));
    let dir = PathBuf::from("keyfence-data");
    assert_eq!(
        upstream(managed, &[]).unwrap().endpoint,
        Endpoint::Managed { dir, save: "3600 1 300 100 60 10000".into() }
    );
    let error = upstream(managed, &[("KEYFENCE_UPSTREAM__PASSWORD", "hunter2")]).unwrap_err();
    assert!(error.starts_with("KEYFENCE_UPSTREAM__PASSWORD: a managed upstream takes no login"), "{error}");
    let u = upstream("", &[("KEYFENCE_UPSTREAM__URL", "redis+unix:///r.sock?db=2")]).unwrap();
    assert_eq!((u.endpoint, u.db), (Endpoint::Unix("/r.sock".into()), 2));
}

#[test]
fn secrets_come_from_files_and_never_show() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("secret");
    let name = name.to_str().unwrap();
    for (held, password) in [("hunter2\n", "hunter2"), ("hunter2\r\n", "hunter2"), ("hunter2 \n\n", "hunter2 \n")] {
        std::fs::write(name, held).unwrap();
        let c = env(&[("KEYFENCE_UPSTREAM__PASSWORD_FILE", name)]).unwrap();
        assert_eq!(c.upstream.password.expose(), password);
        assert_eq!(file(&format!("[upstream]\npassword_file = \"{name}\"")), Ok(c.clone()));
        assert!(!format!("{c:?}").contains("hunter2"));
    }
    std::fs::write(name, "redis://:hunter2@h\n").unwrap();
    let c = env(&[("KEYFENCE_UPSTREAM__URL_FILE", name)]).unwrap();
    assert_eq!((&c.upstream.endpoint, c.upstream.password.expose()), (&tcp("h", 6379), "hunter2"));
    std::fs::write(name, "redis://:hunter2@h:x\n").unwrap();
    let error = env(&[("KEYFENCE_UPSTREAM__URL_FILE", name)]).unwrap_err();
    assert!(error.starts_with("KEYFENCE_UPSTREAM__URL_FILE: not an address") && !error.contains("hunter2"), "{error}");
    assert_eq!(
        env(&[("KEYFENCE_UPSTREAM__PASSWORD_FILE", "/nowhere")]),
        Err("KEYFENCE_UPSTREAM__PASSWORD_FILE: cannot read '/nowhere': No such file or directory (os error 2)".into())
    );
    let twice = env(&[("KEYFENCE_UPSTREAM__PASSWORD", "a"), ("KEYFENCE_UPSTREAM__PASSWORD_FILE", name)]);
    assert_eq!(
        twice,
        Err("KEYFENCE_UPSTREAM__PASSWORD_FILE: set a second time; the first is KEYFENCE_UPSTREAM__PASSWORD".into())
    );
    assert!(file("[upstream]\nhost_file = \"x\"").unwrap_err().contains("unknown key"));
}

fn tenants(text: &str, vars: &[(&str, &str)]) -> Result<Vec<Tenant>, String> {
    read(text, vars, &CliOverrides::default()).map(|c| c.tenants)
}

fn password(text: &str) -> Password {
    Password::parse(text).unwrap()
}

#[test]
fn tenants_are_read() {
    let c = file(
        "[upstreams.far]\nurl = \"redis://u:p@far:1/2\"\nacl_wall = \"require\"\n[auth]\ndefault_tenant = \"acme\"\n\
         [tenants.acme]\n[tenants.b-c]\nprefix = \"{b}\"\nupstream = \"far\"\ndb = 3\ndatabases = 4\nscripts = \"off\"\n\
         listen = [\"unix:/b\", \"127.0.0.1:7\"]\npasswords = [\"one\", \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"]\n\
         limits = { ops_per_second = 5, burst = 6, bytes_per_second = \"1KB\", connections = 7, value_size = 8, in_flight = 9 }\n\
         commands = { allow = [\"config|get\", \"@geo\"], deny = [\"GET\", \"client\", \"@dangerous\"] }",
    )
    .unwrap();
    assert_eq!((c.upstreams[0].0.as_str(), &c.upstreams[0].1.endpoint), ("far", &tcp("far", 1)));
    assert_eq!((c.upstream("far").unwrap().acl_wall, c.upstream("default")), (AclWall::Require, Some(&c.upstream)));
    let all = &c.tenants;
    assert_eq!(all.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["acme", "b-c"]);
    assert_eq!(all[0].prefix, Prefix::new("acme:").unwrap());
    assert_eq!((all[0].databases, all[0].limits.value_size, all[0].limits.in_flight), (1, 512 << 20, 10_000));
    let b = &all[1];
    assert_eq!(
        (b.prefix.as_bytes(), b.upstream.as_str(), b.dbs(), b.scripts),
        (&b"{b}"[..], "far", 3..7, Scripts::Off)
    );
    assert_eq!(b.listen, [Listen::Unix("/b".into()), Listen::Tcp("127.0.0.1:7".into())]);
    assert!(b.passwords[0].verify(b"one") && b.passwords[0].is_plain() && !b.passwords[1].is_plain());
    let l = b.limits;
    assert_eq!((l.ops_per_second, l.burst, l.bytes_per_second, l.connections), (5, 6, 1000, 7));
    assert_eq!((l.keys, l.memory, l.value_size, l.in_flight), (0, 0, 8, 9));
    assert_eq!((b.allow.len(), b.deny.len()), (2, 3));
}

#[test]
fn tenants_come_from_variables_too() {
    let vars = [("KEYFENCE_TENANTS__B_C__PASSWORDS", "a,b"), ("KEYFENCE_TENANTS__NEW__PASSWORD", "a,b")];
    let all = tenants("[tenants.b-c]", &vars).unwrap();
    assert_eq!((all[0].name.as_str(), &all[0].passwords), ("b-c", &vec![password("a"), password("b")]));
    assert_eq!((all[1].name.as_str(), &all[1].passwords), ("new", &vec![password("a,b")]));
    let two = "[tenants.acme]\n[tenants.Acme]\nprefix = \"other:\"";
    assert_eq!(tenants(two, &[]).unwrap().len(), 2, "names are exact");
    assert_eq!(
        tenants(two, &[("KEYFENCE_TENANTS__ACME__PASSWORD", "x")]),
        Err("KEYFENCE_TENANTS__ACME__PASSWORD: may mean 'Acme' or 'acme': set it in the file".into())
    );
}

#[test]
fn n8_names_are_exact_bytes() {
    let all = tenants("[tenants.\"a.b\"]\ndb = 1\n[tenants.\"é\\\"\"]\nprefix = \"e:\"\n[tenants.\"joe@x.org\"]", &[])
        .unwrap();
    assert_eq!(all.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a.b", "joe@x.org", "é\""]);
    assert_eq!((all[0].db, all[1].prefix.as_bytes()), (1, &b"joe@x.org:"[..]));
    let error = "a tenant's name has 1 to 128 bytes, and no spaces or control characters";
    let long = "a".repeat(129);
    for name in ["", "a b", "a\\t", "a\\u0000", "\\u00a0", "\\u2028", &long] {
        let text = format!("[tenants.\"{name}\"]");
        assert!(tenants(&text, &[]).unwrap_err().ends_with(error), "{name}");
    }
    assert_eq!(
        tenants("\n[tenants.\"é\"]", &[]).unwrap_err(),
        "config.toml:2: tenants.\"é\".prefix: it is the tenant's name and ':' unless it is set, which does not do: a prefix may not \
         hold '\\u{e9}', which is not allowed; use letters, digits, _.:@/~+=,;!$%&#- and at most one pair {…}; set it"
    );
}

#[test]
fn n1_no_tenants_prefix_begins_with_anothers() {
    for (text, error) in [
        (
            "[tenants.a]\nprefix = \"x:\"\n[tenants.b]\nprefix = \"x:y:\"",
            "config.toml:4: tenants.b.prefix: 'x:y:' begins with 'x:', the prefix of tenant 'a', whose keys these would be too: \
             choose one that does not",
        ),
        (
            "[tenants.app2]\n[tenants.zapp]\nprefix = \"app\"",
            "config.toml:1: tenants.app2.prefix: 'app2:' begins with 'app', the prefix of tenant 'zapp', whose keys these would be \
             too: choose one that does not",
        ),
        (
            "[tenants.a]\nprefix = \"x\"\n[tenants.b]\nprefix = \"x\"\ndb = 5",
            "config.toml:4: tenants.b.prefix: 'x' is the prefix of tenant 'a' too: choose another",
        ),
        (
            "[tenants.a]\nprefix = \"\"\n[tenants.b]\ndb = 5",
            "config.toml:2: tenants.a.prefix: a tenant without a prefix must be alone on its upstream, and 'b' is there too: give \
             'a' a prefix, or an upstream of its own",
        ),
        (
            "[upstreams.o]\nhost = \"LOCALHOST\"\n[tenants.a]\nprefix = \"x:\"\n[tenants.b]\nprefix = \"x:\"\nupstream = \"o\"",
            "config.toml:6: tenants.b.prefix: 'x:' is the prefix of tenant 'a' too: choose another",
        ),
    ] {
        assert_eq!(tenants(text, &[]), Err(error.into()));
    }
    assert!(tenants("[tenants.a]\nprefix = \"\"", &[]).unwrap()[0].prefix.is_none());
    let apart = "[upstreams.o]\nport = 1\n[tenants.a]\nprefix = \"\"\n[tenants.b]\nupstream = \"o\"\n[tenants.c]\nupstream = \"o\"";
    assert_eq!(tenants(apart, &[]).unwrap().len(), 3);
    // The implicit tenant is not there.
    assert!(tenants("key_prefix = \"a:\"\n[tenants.a]", &[]).is_ok());
}

#[test]
fn what_a_tenant_may_not_say() {
    let hash = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$ceFlQwv4hLlDNgyLhKU+UVDZtWvxBzcvr+WXYQ";
    let digest = crate::tenant::password::sha256_of(b"hunter2");
    for (text, error) in [
        (
            "[tenants.a]\npasswords = [\"hunter2\", \"x\", \"hunter2\"]".to_string(),
            "config.toml:2: tenants.a.passwords: number 3 is the same password as number 1: take one of them out",
        ),
        (
            format!("[tenants.a]\npasswords = [\"hunter2\", \"{digest}\"]"),
            "config.toml:2: tenants.a.passwords: number 2 is the same password as number 1: take one of them out",
        ),
        (
            format!("[tenants.a]\npasswords = [\"{hash}\", \"{hash}\"]"),
            "config.toml:2: tenants.a.passwords: number 2 is the same password as number 1: take one of them out",
        ),
        (
            "[tenants.a]\npasswords = [\"$2b$12$hunter2\"]".into(),
            "config.toml:2: tenants.a.passwords: number 1: a hash of a kind that is not known; keyfence hash-password prints one \
             that is",
        ),
        (
            "[tenants.a]\ncommands.deny = [\"get\", \"gett\"]".into(),
            "config.toml:2: tenants.a.commands.deny: 'gett' is no command; did you mean 'get'?",
        ),
        (
            "[tenants.a]\ncommands.deny = [\"@dangerus\"]".into(),
            "config.toml:2: tenants.a.commands.deny: '@dangerus' is no category; did you mean '@dangerous'?",
        ),
        (
            "[tenants.a]\ncommands.allow = [\"config|sett\"]".into(),
            "config.toml:2: tenants.a.commands.allow: 'config|sett' is no command; did you mean 'config|set'?",
        ),
        (
            "[tenants.a]\ncommands.deny = [\"\"]".into(),
            "config.toml:2: tenants.a.commands.deny: '' is no command; write get, config|get or @category, as keyfence commands \
             lists them",
        ),
        (
            "[tenants.a]\ncommands.allow = [\"SHUTDOWN\"]".into(),
            "config.toml:2: tenants.a.commands.allow: 'SHUTDOWN' reaches past a tenant's namespace and is served to none: take it out",
        ),
        (
            "[tenants.a]\nupstream = \"b\"\n[upstreams.c]".into(),
            "config.toml:2: tenants.a.upstream: 'b' is not an upstream; there are: default, c",
        ),
        (
            "[upstreams.default]\nport = 1".into(),
            "config.toml:1: upstreams.default: 'default' is the name of [upstream]: write its keys there, or choose another name",
        ),
        (
            "[upstream]\nurl = \"managed\"\n[upstreams.b]\nurl = \"managed\"".into(),
            "config.toml:3: upstreams.b.managed.dir: keyfence-data is the folder of upstream too: give each its own",
        ),
        (
            "[auth]\ndefault_tenant = \"b\"\n[tenants.a]".into(),
            "config.toml:2: auth.default_tenant: 'b' is not a tenant: add [tenants.…] for it, or name one",
        ),
        ("[tenants.a]\ndatabases = 0".into(), "config.toml:2: tenants.a.databases: 0 is not between 1 and 65536"),
        (
            "[tenants.a]\ndb = 65535\ndatabases = 2".into(),
            "config.toml:3: tenants.a.databases: 2 from 65535 upward go past the last database there may be, 65535",
        ),
        (
            "listen = [\"localhost:6380\"]\n[tenants.a]\nlisten = [\"127.0.0.1:6380\"]".into(),
            "config.toml:3: tenants.a.listen: 127.0.0.1:6380 is everybody's (listen) too: a connection there must be one tenant's, so \
             choose another",
        ),
        (
            "[tenants.a]\nlisten = [\"unix:/a\"]\n[tenants.b]\nlisten = [\"unix:/a\"]".into(),
            "config.toml:4: tenants.b.listen: unix:/a is that of tenant 'a' too: a connection there must be one tenant's, so choose \
             another",
        ),
        (
            "[tenants.a]\nlisten = [\"[::1]:7\"]\n[tenants.b]\nlisten = [\"[0:0::1]:7\"]".into(),
            "config.toml:4: tenants.b.listen: [::1]:7 is that of tenant 'a' too: a connection there must be one tenant's, so choose \
             another",
        ),
        (
            "[auth]\nmode = \"upstream\"\n[tenants.a]\nprefix = \"b:\"".into(),
            "config.toml:4: tenants.a.prefix: with auth.mode = \"upstream\" the login name makes the prefix, here 'a:': take this key \
             out",
        ),
        (
            "[auth]\nupstream_prefix = \"{user}\"".into(),
            "config.toml:2: auth.upstream_prefix: after {user} there must be one of : , ; ! $ & # or }, which no name holds: else one \
             user's keys could begin with another's",
        ),
    ] {
        let found = tenants(&text, &[]).expect_err(&text);
        assert_eq!(found, error, "{text}");
        assert!(!found.contains("hunter2"));
    }
    // Any free port is another one each time; and nobody needs a common address where each tenant has its own.
    let own = "listen = []\n[tenants.a]\nlisten = [\"127.0.0.1:0\"]\n[tenants.b]\nlisten = [\"127.0.0.1:0\"]";
    assert_eq!(tenants(own, &[]).unwrap().len(), 2);
    // The same password in two tenants: names tell them apart.
    assert!(tenants("[tenants.a]\npasswords = [\"x\"]\n[tenants.b]\npasswords = [\"x\"]", &[]).is_ok());
}

#[test]
fn who_a_name_is() {
    let implicit = Config::default();
    let tenant = implicit.tenant("default").unwrap();
    assert_eq!((tenant.prefix.as_bytes(), tenant.dbs()), (&b"keyfence:"[..], 0..16));
    assert!(implicit.tenant("acme").is_err());
    assert_eq!(implicit.unnamed_tenant(), Some("default"));
    assert_eq!(file("[tenants.acme]").unwrap().unnamed_tenant(), None);
    assert_eq!(file("[auth]\ndefault_tenant = \"a\"\n[tenants.a]").unwrap().unnamed_tenant(), Some("a"));
    let c = file("[tenants.acme]").unwrap();
    assert_eq!(c.tenant("acme").as_ref(), Ok(&c.tenants[0]));
    assert_eq!(c.tenant("default"), Err("no tenant 'default' in the settings; there are: 'acme'".into()));
    let c = file("[auth]\nmode = \"upstream\"\n[tenants.acme]\ndb = 2").unwrap();
    assert_eq!((c.tenant("acme").unwrap().db, c.tenant("a:b").unwrap().prefix.as_bytes()), (2, &b"a%3Ab:"[..]));
}

#[test]
fn what_is_hardly_meant_is_warned_about_without_secrets() {
    let c = file(
        "[auth]\ndefault_tenant = \"d\"\n[tenants.a]\npasswords = [\"hunter2\"]\n[tenants.b]\nlimits.burst = 3\n[tenants.c]\n\
         listen = [\"unix:/c\"]\n[tenants.d]",
    )
    .unwrap();
    assert_eq!(c.plain_passwords(), ["a"]);
    let [plain, nobody, burst] = &c.warnings()[..] else { panic!("{:?}", c.warnings()) };
    assert!(plain.starts_with("tenants with plain passwords") && plain.ends_with(": 'a'"), "{plain}");
    assert!(nobody.starts_with("tenants that nobody can be") && nobody.ends_with(": 'b'"), "{nobody}");
    assert!(burst.ends_with(": 'b'"), "{burst}");
    assert!(!format!("{c:?} {:?}", c.warnings()).contains("hunter2"));
    let many: String = (0..12).map(|i| format!("[tenants.t{i:02}]\npasswords = [\"x\"]\n")).collect();
    assert!(file(&many).unwrap().warnings()[0].ends_with("'t09' and 2 more"));
}

#[test]
fn a_thousand_tenants_load_at_once() {
    let hash = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$ceFlQwv4hLlDNgyLhKU+UVDZtWvxBzcvr+WXYQ";
    let text: String = (0..1000)
        .map(|i| {
            format!(
                "[tenants.tenant{i:04}]\npasswords = [\"{hash}\", \"plain{i}\"]\nlisten = [\"127.0.0.1:{}\"]\nlimits = {{ \
                 ops_per_second = 1000, connections = 10 }}\ncommands = {{ deny = [\"@dangerous\", \"keys\"] }}\n",
                10_000 + i
            )
        })
        .collect();
    let times = std::iter::repeat_with(|| {
        let began = tokio::time::Instant::now();
        assert_eq!(file(&text).unwrap().tenants.len(), 1000);
        began.elapsed()
    });
    // Some tenths of that in a debug build: the square of the number would take much longer. The machine may be busy elsewhere for a while.
    assert!(times.take(5).any(|time| time < Duration::from_secs(2)));
}

/// The text of the shipped file.
const SHIPPED: &str = include_str!("../../config.toml");

#[test]
fn the_shipped_file_is_the_defaults_with_a_managed_upstream() {
    let mut shipped = file(SHIPPED).unwrap();
    let dir = PathBuf::from("keyfence-data");
    let save = "3600 1 300 100 60 10000".to_string();
    assert_eq!(shipped.upstream.endpoint, Endpoint::Managed { dir, save });
    shipped.upstream.endpoint = tcp("localhost", 6379);
    assert_eq!(shipped, Config::default());
}

/// What is commented out for example is `#` right before the text; a comment has a space between.
#[test]
fn the_shipped_file_names_every_key_with_its_default() {
    let whole: String = SHIPPED
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let root: toml::Table = whole.parse().unwrap();
    for row in table::SETTINGS {
        let mut parts = row.path.split('.');
        let first = root.get(parts.next().unwrap());
        let found = parts.try_fold(first, |at, part| {
            let section = at?.as_table()?;
            Some(if part == "*" { section.values().next() } else { section.get(part) })
        });
        let default: toml::Table = format!("v = {}", row.default).parse().unwrap();
        let managed = toml::Value::from("managed");
        let expected = if row.path == "upstream.url" { Some(&managed) } else { default.get("v") };
        assert_eq!(found.flatten(), expected, "{}", row.path);
    }
}

/// The page of the settings, from the rows.
fn page() -> String {
    let mut page = String::from(include_str!("page.md"));
    for row in table::SETTINGS {
        let default = row.default.replace('|', "\\|");
        let change = if row.restart { "restart" } else { "reload" };
        let later = if row.later { " *Not served yet.*" } else { "" };
        page += &format!(
            "| `{}` | {} | `{default}` | `{}` | {change} | {}{later} |\n",
            row.path,
            row.kind,
            row.variable(),
            row.about.replace('|', "\\|")
        );
    }
    page
}

#[test]
fn the_page_of_settings_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os("KEYFENCE_BLESS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let held = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(held == page(), "docs/configuration.md is stale; KEYFENCE_BLESS=1 cargo test rewrites it");
}
