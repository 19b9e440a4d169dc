//! Where an upstream is: the forms of its address.

use percent_encoding::percent_decode_str;
use std::path::PathBuf;
use url::{Host, Url};

/// How to reach an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host name or address, without brackets, and a port.
    Tcp {
        /// Name or address.
        host: String,
        /// 1 to 65535.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
    /// A server of our own, started and stopped with us.
    Managed {
        /// Its data folder.
        dir: PathBuf,
        /// Its `save` setting, as Redis writes it: pairs of seconds and changes; empty for never.
        save: String,
    },
}

/// What an address says; what it leaves out is `None`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Address {
    /// `None` for a managed upstream.
    pub(super) place: Option<Place>,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) db: Option<u32>,
    pub(super) tls: bool,
}

#[derive(Debug, PartialEq)]
pub(super) enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

/// Reads an address. The error never repeats it, because it may hold a password.
pub(super) fn parse(text: &str) -> Result<Address, String> {
    if text == "managed" {
        return Ok(Address::default());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("not an address; write redis://host:port/db, unix:///path?db=0 or \"managed\"".into());
    };
    match scheme.to_ascii_lowercase().as_str() {
        "redis" => tcp(text),
        "rediss" => Ok(Address { tls: true, ..tcp(text)? }),
        "redis+unix" | "unix" => unix(rest),
        known @ ("redis-sentinel" | "redis-cluster") => Err(format!("{known}://: not served by this version yet")),
        _ => Err("unknown scheme; write redis://, rediss://, redis+unix://, unix:// or \"managed\"".into()),
    }
}

fn tcp(text: &str) -> Result<Address, String> {
    let url = Url::parse(text).map_err(|e| format!("not an address: {e}"))?;
    let host = match url.host() {
        Some(Host::Domain(name)) if !name.is_empty() => decoded(name)?,
        Some(Host::Ipv4(ip)) => ip.to_string(),
        Some(Host::Ipv6(ip)) => ip.to_string(),
        _ => return Err("the address names no host".into()),
    };
    let port = url.port().unwrap_or(6379);
    if port == 0 {
        return Err("port 0 cannot be connected to".into());
    }
    let path = url.path().trim_matches('/');
    let mut db = if path.is_empty() { None } else { Some(database(path)?) };
    for (name, value) in url.query_pairs() {
        match name.as_ref() {
            "db" => db = Some(database(&value)?),
            other => return Err(format!("unknown option {} in the address; known is db", super::value::quoted(other))),
        }
    }
    Ok(Address {
        place: Some(Place::Tcp(host, port)),
        username: present(url.username())?,
        password: url.password().map(decoded).transpose()?,
        db,
        tls: false,
    })
}

/// `[user[:password]@]/path[?db=N]`, by hand: the general parser accepts no user before an empty host.
fn unix(rest: &str) -> Result<Address, String> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let slash = place.find('/').ok_or("the address names no path; write unix:///path/to/socket")?;
    let (authority, path) = place.split_at(slash);
    let mut address = Address { place: Some(Place::Unix(decoded(path)?.into())), ..Address::default() };
    match authority.strip_suffix('@') {
        Some(user) => {
            let (user, password) = user.split_once(':').map_or((user, None), |(u, p)| (u, Some(p)));
            address.username = present(user)?;
            address.password = password.map(decoded).transpose()?;
        }
        None if authority.is_empty() => {}
        None => return Err("a unix socket has no host; write unix:///path/to/socket, with three slashes".into()),
    }
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "db" => address.db = Some(database(&value)?),
            other => return Err(format!("unknown option {} in the address; known is db", super::value::quoted(other))),
        }
    }
    Ok(address)
}

fn database(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "the database in the address is not a whole number".into())
}

fn present(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() { Ok(None) } else { decoded(text).map(Some) }
}

fn decoded(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "the address holds bytes that are not UTF-8")?;
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let tcp = |host: &str, port| Some(Place::Tcp(host.into(), port));
        let unix = |path: &str| Some(Place::Unix(path.into()));
        let some = |s: &str| Some(s.to_string());
        for (text, place, username, password, db) in [
            ("managed", None, None, None, None),
            ("redis://h", tcp("h", 6379), None, None, None),
            ("redis://h:7/3", tcp("h", 7), None, None, Some(3)),
            ("redis://h?db=4", tcp("h", 6379), None, None, Some(4)),
            ("redis://[::1]:7", tcp("::1", 7), None, None, None),
            ("redis://127.0.0.1/", tcp("127.0.0.1", 6379), None, None, None),
            ("redis://u:p%40ss@h", tcp("h", 6379), some("u"), some("p@ss"), None),
            ("redis://:p@h", tcp("h", 6379), None, some("p"), None),
            ("unix:///run/r.sock", unix("/run/r.sock"), None, None, None),
            ("redis+unix:///run/r%20s.sock?db=2", unix("/run/r s.sock"), None, None, Some(2)),
            ("unix://u:p+1@/s", unix("/s"), some("u"), some("p+1"), None),
        ] {
            assert_eq!(parse(text), Ok(Address { place, username, password, db, tls: false }), "{text}");
        }
        let address = parse("rediss://u:p@h:7/3").unwrap();
        assert!(address.tls && address.db == Some(3) && address.place == Some(Place::Tcp("h".into(), 7)));
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "localhost:6379",
            "http://h",
            "redis://",
            "redis://h:0",
            "redis://h:99999",
            "redis://h/x",
            "redis://h?x=1",
            "unix://host/s",
            "unix://s",
            "unix:///s?db=x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in ["redis-sentinel://h/m", "redis-cluster://h"] {
            let error = parse(text).expect_err(text);
            assert!(error.ends_with("not served by this version yet"), "{error}");
        }
        for text in ["redis://:hunter2@h:99999", "http://:hunter2@h", "redis://:hunter2@", "unix://:hunter2@h/s"] {
            assert!(!parse(text).expect_err(text).contains("hunter2"), "{text}");
        }
    }
}
