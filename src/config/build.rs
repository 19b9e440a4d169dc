//! From values by path to the typed [`Config`]: what a row alone cannot check, and how keys work together.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::source::Layers;
use super::{
    AclWall, Admin, Auth, AuthMode, ClientAuth, Config, ConfigError, Endpoint, Listen, Log, LogFormat, Prefix, Proxies,
    Secret, Shown, Template, Tier, Tls, Upstream, UpstreamTls, endpoint, table, tenants, value,
};

impl Config {
    pub(super) fn build(s: &Layers) -> Result<Self, ConfigError> {
        let listen = listeners(s, "listen")?;
        let mode = if s.text("auth.mode") == "upstream" { AuthMode::Upstream } else { AuthMode::Static };
        let upstream_prefix =
            Template::new(&s.text("auth.upstream_prefix")).map_err(|e| s.error("auth.upstream_prefix", e))?;
        let tenants = tenants::read(s, mode, &upstream_prefix)?;
        if listen.is_empty() && tenants.iter().all(|t| t.listen.is_empty()) {
            return Err(s.error("listen", "names no address, so that nobody could connect"));
        }
        let idle = s.duration("client_idle_timeout");
        let admin = s.text("admin.listen");
        if !admin.is_empty() {
            host_port(&admin).map_err(|e| s.error("admin.listen", e))?;
        }
        let config = Self {
            listen,
            reuse_port: s.bool("reuse_port"),
            proxy_protocol: proxies(&s.texts("proxy_protocol")).map_err(|e| s.error("proxy_protocol", e))?,
            unix_socket_mode: mode_of(&s.text("unix_socket_mode")).map_err(|e| s.error("unix_socket_mode", e))?,
            workers: s.number("workers")?,
            key_prefix: Prefix::new(&s.text("key_prefix")).map_err(|e| s.error("key_prefix", e))?,
            max_clients: s.number("max_clients")?,
            client_idle_timeout: (!idle.is_zero()).then_some(idle),
            client_output_limit: s.number("client_output_limit")?,
            shutdown_grace: s.duration("shutdown_grace"),
            upstream: upstream(s, "upstream")?,
            upstreams: s
                .names("upstreams")
                .map(|name| Ok((name.to_string(), upstream(s, &table::join(&["upstreams", name]))?)))
                .collect::<Result<_, ConfigError>>()?,
            auth: Auth { mode, upstream_prefix, default_tenant: s.text("auth.default_tenant") },
            tenants,
            tier: Tier {
                enabled: s.bool("tier.enabled"),
                max_memory: s.number("tier.max_memory")?,
                max_value: s.number("tier.max_value")?,
                max_ttl: s.duration("tier.max_ttl"),
                negative: s.bool("tier.negative"),
            },
            tls: Tls {
                cert_file: s.text("tls.cert_file").into(),
                key_file: s.text("tls.key_file").into(),
                client_ca_file: s.text("tls.client_ca_file").into(),
                client_auth: match s.text("tls.client_auth").as_str() {
                    "optional" => ClientAuth::Optional,
                    "required" => ClientAuth::Required,
                    _ => ClientAuth::Off,
                },
            },
            admin: Admin {
                listen: (!admin.is_empty()).then_some(admin),
                slowlog_threshold: s.duration("admin.slowlog_threshold"),
                slowlog_length: s.number("admin.slowlog_length")?,
            },
            log: Log {
                level: s.text("log.level").parse().map_err(|_| s.error("log.level", "not a level"))?,
                format: if s.text("log.format") == "json" { LogFormat::Json } else { LogFormat::Text },
                access_sample: s.number("log.access_sample")?,
            },
            shown: Shown::default(),
        };
        tenants::check(&config, s)?;
        config.check_tls(s)?;
        Ok(config)
    }

    /// Keys of TLS that work together.
    fn check_tls(&self, s: &Layers) -> Result<(), ConfigError> {
        let tls = |l: &Listen| matches!(l, Listen::Tls(_));
        let listens = self.listens_with_tls();
        for (name, file) in [("cert_file", &self.tls.cert_file), ("key_file", &self.tls.key_file)] {
            if listens && file.as_os_str().is_empty() {
                let message = format!("a tls: listener needs a certificate: set tls.{name}");
                let key = if self.listen.iter().any(tls) {
                    "listen".to_owned()
                } else {
                    let tenant = self.tenants.iter().find(|t| t.listen.iter().any(tls));
                    tenant.map_or_else(String::new, |t| tenants::key(&t.name, "listen"))
                };
                return Err(s.error(&key, message));
            }
        }
        if self.tls.client_auth != ClientAuth::Off && self.tls.client_ca_file.as_os_str().is_empty() {
            let message = "client certificates need an authority that signed them: set tls.client_ca_file";
            return Err(s.error("tls.client_auth", message));
        }
        let mut known = HashMap::new();
        for tenant in &self.tenants {
            let key = tenants::key(&tenant.name, "tls_identities");
            for name in &tenant.tls_identities {
                if name.is_empty() || name.contains(char::is_control) {
                    let message = format!("{} is no name: empty, or with a control character", value::quoted(name));
                    return Err(s.error(&key, message));
                }
                if let Some(other) = known.insert(name, &tenant.name).filter(|other| **other != tenant.name) {
                    let (name, other) = (value::quoted(name), value::quoted(other));
                    return Err(
                        s.error(&key, format!("{name} is tenant {other} too: a connection must be one tenant's"))
                    );
                }
            }
        }
        Ok(())
    }

    /// Whether any listener is one of TLS.
    pub fn listens_with_tls(&self) -> bool {
        let of_tenants = self.tenants.iter().flat_map(|t| &t.listen);
        self.listen.iter().chain(of_tenants).any(|l| matches!(l, Listen::Tls(_)))
    }
}

fn upstream(s: &Layers, section: &str) -> Result<Upstream, ConfigError> {
    let key = |name: &str| format!("{section}.{name}");
    let url = key("url");
    let text = s.text(&url);
    let rank = s.origin(&url).rank();
    // A host or port from a place that goes before the url's is the newer word.
    let named = s.origin(&key("host")).rank().max(s.origin(&key("port")).rank());
    let address = if text.is_empty() || named > rank {
        None
    } else {
        Some(endpoint::parse(&text).map_err(|e| s.error(&url, e))?)
    };
    let endpoint = match &address {
        None => {
            let host = s.text(&key("host"));
            if host.is_empty() {
                return Err(s.error(&key("host"), "names no host"));
            }
            Endpoint::Tcp { host, port: s.number(&key("port"))? }
        }
        Some(address) => match &address.place {
            Some(endpoint::Place::Tcp(host, port)) => Endpoint::Tcp { host: host.clone(), port: *port },
            Some(endpoint::Place::Unix(path)) => Endpoint::Unix(path.clone()),
            None => {
                let dir = s.text(&key("managed.dir"));
                if dir.is_empty() {
                    return Err(s.error(&key("managed.dir"), "names no folder"));
                }
                let save = s.text(&key("managed.save"));
                check_save(&save).map_err(|e| s.error(&key("managed.save"), e))?;
                Endpoint::Managed { dir: dir.into(), save }
            }
        },
    };
    if matches!(endpoint, Endpoint::Managed { .. }) {
        for name in ["username", "password"] {
            if !s.text(&key(name)).is_empty() {
                return Err(s.error(&key(name), "a managed upstream takes no login: nobody but us reaches its socket"));
            }
        }
    }
    let address = address.unwrap_or_default();
    let use_tls = s.bool(&key("use_tls")) || address.tls;
    if use_tls && !matches!(endpoint, Endpoint::Tcp { .. }) {
        return Err(s.error(&key("use_tls"), "a unix socket has no TLS"));
    }
    for (name, holds) in [
        ("ca_file", !s.text(&key("tls.ca_file")).is_empty()),
        ("cert_file", !s.text(&key("tls.cert_file")).is_empty()),
        ("key_file", !s.text(&key("tls.key_file")).is_empty()),
        ("server_name", !s.text(&key("tls.server_name")).is_empty()),
        ("insecure_skip_verify", s.bool(&key("tls.insecure_skip_verify"))),
    ] {
        if holds && !use_tls {
            return Err(s.error(&key(&format!("tls.{name}")), "has no effect without use_tls or rediss://"));
        }
    }
    // What the url says holds, unless the key of its own stands in a place that goes before the url's.
    let newer = |name: &str| s.origin(&key(name)).rank() > rank;
    Ok(Upstream {
        endpoint,
        db: match address.db {
            Some(db) if !newer("db") => db,
            _ => s.number(&key("db"))?,
        },
        username: address.username.filter(|_| !newer("username")).unwrap_or_else(|| s.text(&key("username"))),
        password: Secret::new(
            address.password.filter(|_| !newer("password")).unwrap_or_else(|| s.text(&key("password"))),
        ),
        use_tls,
        socket_timeout: s.duration(&key("socket_timeout")),
        connect_timeout: s.duration(&key("connect_timeout")),
        connections_per_worker: s.number(&key("connections_per_worker"))?,
        max_connections: s.number(&key("max_connections"))?,
        acl_wall: match s.text(&key("acl_wall")).as_str() {
            "require" => AclWall::Require,
            "off" => AclWall::Off,
            _ => AclWall::Auto,
        },
        tls: UpstreamTls {
            ca_file: s.text(&key("tls.ca_file")).into(),
            cert_file: s.text(&key("tls.cert_file")).into(),
            key_file: s.text(&key("tls.key_file")).into(),
            server_name: s.text(&key("tls.server_name")),
            insecure_skip_verify: s.bool(&key("tls.insecure_skip_verify")),
        },
    })
}

pub(super) fn listeners(s: &Layers, key: &str) -> Result<Vec<Listen>, ConfigError> {
    let mut all = Vec::new();
    for text in s.texts(key) {
        let listen = if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(s.error(key, "unix: names no path"));
            }
            Listen::Unix(path.into())
        } else {
            let (make, address): (fn(String) -> Listen, &str) = match text.strip_prefix("tls:") {
                Some(address) => (Listen::Tls, address),
                None => (Listen::Tcp, &text),
            };
            make(host_port(address).map_err(|e| s.error(key, e))?)
        };
        if all.contains(&listen) {
            return Err(s.error(key, format!("{} is named twice", value::quoted(&text))));
        }
        all.push(listen);
    }
    Ok(all)
}

fn host_port(text: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("{} is not host:port{why}", value::quoted(text));
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("; there is no port"))?;
    if host.is_empty() {
        return Err(wrong(&format!("; for every address write 0.0.0.0:{port}")));
    }
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.contains(char::is_whitespace) || host.contains(':') && !bracketed {
        return Err(wrong("; an IPv6 address stands in brackets, as [::1]:6380"));
    }
    port.parse::<u16>().map_err(|_| wrong("; a port is 0 to 65535"))?;
    Ok(text.to_string())
}

/// Addresses, networks, and the word `unix`.
fn proxies(texts: &[String]) -> Result<Proxies, String> {
    let mut all = Proxies::default();
    for text in texts {
        if text == "unix" {
            all.unix = true;
            continue;
        }
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let network = network.map_err(|_| {
            format!("{} is no address, no network such as \"10.0.0.0/8\", and not \"unix\"", value::quoted(text))
        })?;
        if let Some(plain) = unmapped(&network) {
            return Err(format!("{} is IPv4; write \"{plain}\"", value::quoted(text)));
        }
        if network.addr() != network.network() {
            return Err(format!(
                "{} is not the first address of its network; write \"{}\"",
                value::quoted(text),
                network.trunc()
            ));
        }
        all.networks.push(network);
    }
    Ok(all)
}

/// The network of IPv4 that this one of IPv6 stands for (RFC 4291, 2.5.5.2): addresses are compared as what they are.
fn unmapped(network: &IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(network) = network else { return None };
    let (address, length) = (network.addr().to_ipv4_mapped()?, network.prefix_len().checked_sub(96)?);
    Ipv4Net::new(address, length).ok().map(|network| network.trunc())
}

/// Permissions as chmod(1) writes them; empty: none.
fn mode_of(text: &str) -> Result<Option<u32>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let octal = matches!(text.len(), 3 | 4) && text.bytes().all(|c| matches!(c, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.map(Some)
        .ok_or_else(|| format!("{} is not permissions; write three octal digits, as \"0660\"", value::quoted(text)))
}

/// Pairs of whole numbers, as Redis's `save`.
fn check_save(text: &str) -> Result<(), String> {
    let parts: Vec<&str> = text.split_ascii_whitespace().collect();
    if parts.len().is_multiple_of(2) && parts.iter().all(|p| p.parse::<u32>().is_ok_and(|n| n > 0)) {
        return Ok(());
    }
    Err(format!("{} is not pairs of seconds and changes, such as \"3600 1 300 100\"", value::quoted(text)))
}
