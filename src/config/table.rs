//! The settings as data: one row a key. The reader, the environment, the defaults, the suggestions and
//! `docs/configuration.md` all come from these rows.

use super::value::Kind;

/// One key of the settings.
#[derive(Debug)]
pub struct Setting {
    /// Its path; `*` stands for a name the operator chooses.
    pub path: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Its default, as the file writes it.
    pub default: &'static str,
    /// Whether a change needs a restart even where settings can be reloaded.
    pub restart: bool,
    /// Parsed, but anything other than the default is refused by this version.
    pub later: bool,
    /// What it does, in one line.
    pub about: &'static str,
}

impl Setting {
    /// The environment variable that sets it, with `<NAME>` for a chosen name.
    pub fn variable(&self) -> String {
        format!("{VARIABLES}{}", self.path.replace('*', "<NAME>").replace('.', "__").to_ascii_uppercase())
    }
}

/// What the environment variables begin with.
pub(super) const VARIABLES: &str = "KEYFENCE_";

const fn row(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Setting {
    Setting { path, kind, default, restart: false, later: false, about }
}

const fn restart(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Setting {
    Setting { restart: true, ..row(path, kind, default, about) }
}

const fn later(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Setting {
    Setting { later: true, ..row(path, kind, default, about) }
}

use Kind::{Bool, Choice, Duration, Int, Secret, Secrets, Size, Text, Texts};

const ANY: u64 = u64::MAX;
const DB: Kind = Int(0, 65_535);
const PORT: Kind = Int(1, 65_535);
const WALL: Kind = Choice(&["auto", "require", "off"]);
const VALUE: u64 = 512 << 20;

/// Every key, in the order of `config.toml`.
#[rustfmt::skip]
pub static SETTINGS: &[Setting] = &[
    restart("listen", Texts, r#"["127.0.0.1:6380"]"#, "Where clients connect: `host:port`, `unix:/path`, or `tls:host:port` with the certificate of `[tls]`."),
    restart("reuse_port", Bool, "false", "Whether to join a process of the same user that listens on the same addresses, and to take over from it: docs/operations.md."),
    row("proxy_protocol", Texts, "[]", "Who says in a PROXY header (version 1 or 2) whose connection it passes on, and must: addresses, networks as `10.0.0.0/8`, or `unix` for who connects to a unix socket. Nobody else is believed."),
    restart("unix_socket_mode", Text, r#""""#, "Permissions of the unix sockets of `listen`, as `\"0660\"`; empty: as the umask makes them."),
    restart("workers", Int(0, 1024), "0", "Worker threads; 0: one per core."),
    row("key_prefix", Text, r#""keyfence:""#, "The namespace of everybody when there are no tenants."),
    row("max_clients", Int(1, 1_000_000), "10000", "Most client connections at once; one over it gets an error."),
    row("client_idle_timeout", Duration(0), r#""0s""#, "A client silent for this long is disconnected; 0: never."),
    row("client_output_limit", Size(1024, ANY), r#""64MiB""#, "A client with more replies than this unread is disconnected."),
    row("shutdown_grace", Duration(0), r#""10s""#, "How long requests in flight may take to finish at a stop."),
    row("upstream.url", Secret, r#""""#, "`redis://`, `redis+unix://`, `unix://` or `managed`; empty: `host` and `port`."),
    row("upstream.host", Text, r#""localhost""#, "Used when `url` is empty, or set in a place that goes before its own."),
    row("upstream.port", PORT, "6379", "As `host`."),
    row("upstream.db", DB, "0", "The database; one in `url` goes before it."),
    row("upstream.username", Text, r#""""#, "The user to log in as; one in `url` goes before it. Empty: `default`."),
    row("upstream.password", Secret, r#""""#, "The password; one in `url` goes before it. Empty: no login."),
    row("upstream.use_tls", Bool, "false", "TLS to the upstream; `rediss://` says so too."),
    row("upstream.socket_timeout", Duration(1), r#""5s""#, "The longest one request may take, queueing included."),
    row("upstream.connect_timeout", Duration(1), r#""1s""#, "The longest one attempt to connect may take."),
    row("upstream.connections_per_worker", Int(1, 64), "1", "Shared connections of each worker and tenant."),
    row("upstream.max_connections", Int(1, 100_000), "1000", "Most connections of all kinds; past it an error, not a stall."),
    row("upstream.acl_wall", WALL, r#""auto""#, "The upstream's own ACL as a second wall."),
    row("upstream.tls.ca_file", Text, r#""""#, "Certificate authorities of the upstream, PEM; empty: those of the system."),
    row("upstream.tls.cert_file", Text, r#""""#, "Our certificate and its chain, PEM, where the upstream asks for one."),
    row("upstream.tls.key_file", Text, r#""""#, "Its key, PEM."),
    row("upstream.tls.server_name", Text, r#""""#, "The name to expect in the upstream's certificate; empty: its host."),
    row("upstream.tls.insecure_skip_verify", Bool, "false", "Accept any certificate: whoever stands between can read and alter everything."),
    row("upstream.managed.dir", Text, r#""keyfence-data""#, "Data folder of a managed upstream; made if absent."),
    restart("upstream.managed.save", Text, r#""3600 1 300 100 60 10000""#, "When it saves: pairs of seconds and changes; empty: never."),
    row("upstreams.*.url", Secret, r#""""#, "As `upstream.url`."),
    row("upstreams.*.host", Text, r#""localhost""#, "As `upstream.host`."),
    row("upstreams.*.port", PORT, "6379", "As `upstream.port`."),
    row("upstreams.*.db", DB, "0", "As `upstream.db`."),
    row("upstreams.*.username", Text, r#""""#, "As `upstream.username`."),
    row("upstreams.*.password", Secret, r#""""#, "As `upstream.password`."),
    row("upstreams.*.use_tls", Bool, "false", "As `upstream.use_tls`."),
    row("upstreams.*.socket_timeout", Duration(1), r#""5s""#, "As `upstream.socket_timeout`."),
    row("upstreams.*.connect_timeout", Duration(1), r#""1s""#, "As `upstream.connect_timeout`."),
    row("upstreams.*.connections_per_worker", Int(1, 64), "1", "As `upstream.connections_per_worker`."),
    row("upstreams.*.max_connections", Int(1, 100_000), "1000", "As `upstream.max_connections`."),
    row("upstreams.*.acl_wall", WALL, r#""auto""#, "As `upstream.acl_wall`."),
    row("upstreams.*.tls.ca_file", Text, r#""""#, "As `upstream.tls.ca_file`."),
    row("upstreams.*.tls.cert_file", Text, r#""""#, "As `upstream.tls.cert_file`."),
    row("upstreams.*.tls.key_file", Text, r#""""#, "As `upstream.tls.key_file`."),
    row("upstreams.*.tls.server_name", Text, r#""""#, "As `upstream.tls.server_name`."),
    row("upstreams.*.tls.insecure_skip_verify", Bool, "false", "As `upstream.tls.insecure_skip_verify`."),
    row("upstreams.*.managed.dir", Text, r#""keyfence-data""#, "As `upstream.managed.dir`."),
    restart("upstreams.*.managed.save", Text, r#""3600 1 300 100 60 10000""#, "As `upstream.managed.save`."),
    restart("auth.mode", Choice(&["static", "upstream"]), r#""static""#, "Who checks a login: `[tenants]`, or the upstream's own ACL."),
    row("auth.upstream_prefix", Text, r#""{user}:""#, "With mode `upstream`: the prefix that a login name makes; its bytes other than letters, digits and `_.-@+=~/` are written `%XX`."),
    row("auth.default_tenant", Text, r#""""#, "The tenant that a connection is before it logs in; empty: none."),
    row("tenants.*.prefix", Text, r#""<name>:""#, "What this tenant's names begin with upstream; no other tenant's there may begin with it. Empty: none, for a tenant alone on its upstream."),
    row("tenants.*.passwords", Secrets, "[]", "Passwords or their hashes, any of which logs in: plain text, `sha256:…`, `#…` or `$argon2id$…`; see `keyfence hash-password`."),
    row("tenants.*.upstream", Text, r#""default""#, "The upstream it lives on: `default`, which is `[upstream]`, or a name of `[upstreams]`."),
    row("tenants.*.db", DB, "0", "Its first database."),
    row("tenants.*.databases", Int(1, 65_536), "1", "How many databases SELECT may reach, from `db` upward."),
    restart("tenants.*.listen", Texts, "[]", "Addresses where a connection is this tenant without a login."),
    row("tenants.*.tls_identities", Texts, "[]", "A connection is this tenant without a login when its client certificate names one of these (SAN URI or DNS), byte for byte; with `tls.client_auth = \"off\"`, when the client asks for one (SNI), which proves nothing."),
    row("tenants.*.commands.allow", Texts, "[]", "The only commands it may run: names, `config|get`, `@category`; empty: all that are served."),
    row("tenants.*.commands.deny", Texts, "[]", "Commands it may not run, in the same words; goes before `allow`."),
    row("tenants.*.scripts", Choice(&["auto", "on", "off"]), r#""auto""#, "Whether it may run scripts; auto: where the upstream's ACL confines them. `on`: at the operator's risk."),
    row("tenants.*.limits.ops_per_second", Int(0, ANY), "0", "Commands per second; 0: no limit."),
    row("tenants.*.limits.burst", Int(0, ANY), "0", "Commands at once above the rate; 0: none."),
    row("tenants.*.limits.bytes_per_second", Size(0, ANY), r#""0B""#, "Bytes per second; 0: no limit."),
    row("tenants.*.limits.connections", Int(0, ANY), "0", "Connections; 0: no limit."),
    later("tenants.*.limits.keys", Int(0, ANY), "0", "Keys; 0: no limit."),
    later("tenants.*.limits.memory", Size(0, ANY), r#""0B""#, "Memory upstream; 0: no limit."),
    row("tenants.*.limits.value_size", Size(0, ANY), r#""512MiB""#, "The longest value; 0: no limit."),
    row("tenants.*.limits.in_flight", Int(0, ANY), "10000", "Requests in flight; 0: no limit."),
    row("tenants.*.tier", Bool, "false", "With the tier: whether it may keep this tenant's values."),
    row("tier.enabled", Bool, "false", "The in-process tier: replies are kept here, for the tenants that say so, or for everybody when there are none. See tier.md."),
    restart("tier.max_memory", Size(1, ANY), r#""256MiB""#, "With the tier: its keys, values and bookkeeping."),
    restart("tier.max_value", Size(1, VALUE), r#""1MiB""#, "With the tier: the longest value it keeps."),
    row("tier.max_ttl", Duration(1), r#""10m""#, "With the tier: the most any entry may age, whatever its own TTL."),
    row("tier.negative", Bool, "true", "With the tier: keep \"no such key\" too."),
    row("tls.cert_file", Text, r#""""#, "Certificate of the `tls:` listeners and its chain, PEM; read again at each reload."),
    row("tls.key_file", Text, r#""""#, "Its key, PEM."),
    row("tls.client_ca_file", Text, r#""""#, "Certificate authorities of client certificates, PEM."),
    row("tls.client_auth", Choice(&["off", "optional", "required"]), r#""off""#, "Whether a client shows a certificate: `optional`, it may; `required`, it must."),
    restart("admin.listen", Text, r#""127.0.0.1:9180""#, "`host:port` of metrics, health and the status page; empty: off. No login: keep it where only operators are."),
    row("admin.slowlog_threshold", Duration(0), r#""10ms""#, "SLOWLOG keeps commands whose clients waited this long or longer."),
    row("admin.slowlog_length", Int(0, 1_000_000), "128", "How many it keeps of each tenant."),
    restart("log.level", Choice(&["off", "error", "warn", "info", "debug", "trace"]), r#""info""#, "The least grave messages that are written."),
    restart("log.format", Choice(&["text", "json"]), r#""text""#, "One line of text, or one JSON object, a message."),
    restart("log.access_sample", Int(0, 1_000_000_000), "0", "One of so many commands is written, at level info: who, which command, how long, how it ended; 0: none, 1: all."),
];

/// A path as one text: its parts with dots between, those that are more than a bare key in quotes, as TOML writes them.
pub(super) fn join<T: AsRef<str>>(path: &[T]) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let mut text = String::new();
    for (i, part) in path.iter().enumerate() {
        let part = part.as_ref();
        if i > 0 {
            text.push('.');
        }
        if part.is_empty() || !part.chars().all(bare) {
            text.push('"');
            part.chars().for_each(|c| {
                if "\"\\".contains(c) {
                    text.push('\\');
                }
                text.push(c);
            });
            text.push('"');
        } else {
            text.push_str(part);
        }
    }
    text
}

/// The parts of what [`join`] made.
pub(super) fn split(path: &str) -> Vec<String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let mut chars = path.chars();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => part.extend(chars.next()),
            '.' if !quoted => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    parts.push(part);
    parts
}

/// Whether `path` names exactly what `pattern` does, `*` standing for one part.
pub(super) fn matches(pattern: &str, path: &[&str]) -> bool {
    let mut parts = pattern.split('.');
    path.iter().all(|p| parts.next().is_some_and(|part| part == "*" || part == *p)) && parts.next().is_none()
}

/// Whether `path` is a section above some key.
pub(super) fn is_section(path: &[&str]) -> bool {
    SETTINGS.iter().any(|s| parts_match(s.path, path) && s.path.split('.').count() > path.len())
}

/// The row of a key.
pub(super) fn find(path: &[&str]) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| matches(s.path, path))
}

fn parts_match(pattern: &str, path: &[&str]) -> bool {
    let mut parts = pattern.split('.');
    path.iter().all(|p| parts.next().is_some_and(|part| part == "*" || part == *p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_unique_and_never_both_key_and_section() {
        for (i, setting) in SETTINGS.iter().enumerate() {
            let path: Vec<&str> = setting.path.split('.').collect();
            assert!(!is_section(&path), "{}", setting.path);
            assert!(SETTINGS.iter().skip(i + 1).all(|other| other.path != setting.path), "{}", setting.path);
        }
    }

    #[test]
    fn paths_with_any_name_come_back_whole() {
        for path in [&["a"][..], &["tenants", "a.b", "prefix"], &["tenants", "a\"\\.\"b", "x"], &["é", "", "a b"]] {
            assert_eq!(split(&join(path)), path, "{}", join(path));
        }
        assert_eq!(join(&["tenants", "b-c", "limits", "keys"]), "tenants.b-c.limits.keys");
        assert_eq!(join(&["tenants", "a.b"]), "tenants.\"a.b\"");
    }

    #[test]
    fn further_upstreams_have_the_keys_of_the_first() {
        let of = |section: &str| -> Vec<(String, Kind, &str)> {
            SETTINGS
                .iter()
                .filter_map(|s| Some((s.path.strip_prefix(section)?.to_string(), s.kind, s.default)))
                .collect()
        };
        assert_eq!(of("upstream."), of("upstreams.*."));
    }
}
