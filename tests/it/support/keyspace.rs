//! What a server holds, in a form that two servers can be compared by.
use std::collections::BTreeMap;

use super::Client;
use super::value::Value;
use super::wire::{command, show};

/// One key: its type, its value in one order, whether it has a time to live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: String,
    pub(crate) value: Vec<u8>,
    pub(crate) expires: bool,
}

/// Names (database first) to entries.
pub(crate) type Keyspace = BTreeMap<(u8, String), Entry>;

/// Everything in the first `databases` databases. Every name must begin with `prefix`, which is taken off.
pub(crate) fn dump(client: &mut Client, prefix: &str, databases: u8) -> Keyspace {
    let mut all = Keyspace::new();
    for db in 0..databases {
        assert_eq!(client.call(&[b"SELECT", db.to_string().as_bytes()]), b"+OK\r\n");
        let names: Vec<Vec<u8>> =
            Value::parse(&client.call(&[b"KEYS", b"*"])).kids.into_iter().map(|v| v.text).collect();
        let asked: Vec<u8> = names
            .iter()
            .flat_map(|name| [command(&[&b"TYPE"[..], name]), command(&[&b"PTTL"[..], name])].concat())
            .collect();
        let mut facts = client.pipeline(&asked, names.len() * 2).into_iter();
        for name in &names {
            let own = name
                .strip_prefix(prefix.as_bytes())
                .unwrap_or_else(|| panic!("a key outside the namespace: {:?}", show(name)));
            let kind = Value::parse(&facts.next().unwrap()).as_str().to_owned();
            let expires = facts.next().unwrap() != b":-1\r\n";
            let value = value(client, &kind, name);
            all.insert((db, show(own)), Entry { kind, value, expires });
        }
    }
    assert_eq!(client.call(&[b"SELECT", b"0"]), b"+OK\r\n");
    all
}

fn value(client: &mut Client, kind: &str, name: &[u8]) -> Vec<u8> {
    match kind {
        "string" => client.call(&[b"GET", name]),
        "list" => client.call(&[b"LRANGE", name, b"0", b"-1"]),
        "set" => sorted(&client.call(&[b"SMEMBERS", name]), 1),
        "hash" => sorted(&client.call(&[b"HGETALL", name]), 2),
        "zset" => client.call(&[b"ZRANGE", name, b"0", b"-1", b"WITHSCORES"]),
        "stream" => {
            let mut all = client.call(&[b"XRANGE", name, b"-", b"+"]);
            all.extend(client.call(&[b"XINFO", b"GROUPS", name]));
            // Count, last id, deleted id, entries added; node counts and times are left out.
            let info = Value::parse(&client.call(&[b"XINFO", b"STREAM", name]));
            for (field, value) in info.kids.chunks(2).map(|pair| (pair[0].as_str(), &pair[1])) {
                if matches!(field, "length" | "last-generated-id" | "max-deleted-entry-id" | "entries-added") {
                    all.extend_from_slice(&value.text);
                    all.push(b' ');
                }
            }
            all
        }
        "ReJSON-RL" => client.call(&[b"JSON.GET", name]),
        // The last sample: TS.RANGE takes a key named COUNT for an option, and TS.INFO has names in it.
        "TSDB-TYPE" => client.call(&[b"TS.GET", name]),
        // Its decay is by chance.
        "TopK-TYPE" => client.call(&[b"TOPK.INFO", name]),
        "trietype0" => client.call(&[b"FT.SUGGET", name, b"h", b"FUZZY", b"MAX", b"100", b"WITHSCORES"]),
        "vectorset" => client.call(&[b"VCARD", name]),
        _ => client.call(&[b"DUMP", name]),
    }
}

fn sorted(reply: &[u8], each: usize) -> Vec<u8> {
    let kids = Value::parse(reply).kids;
    let mut parts: Vec<Vec<&[u8]>> = kids.chunks(each).map(|part| part.iter().map(|v| &v.text[..]).collect()).collect();
    parts.sort();
    parts.concat().iter().flat_map(super::wire::bulk).collect()
}

/// The first difference, in words.
pub(crate) fn difference(left: &Keyspace, right: &Keyspace) -> Option<String> {
    for key in left.keys().chain(right.keys()) {
        let (a, b) = (left.get(key), right.get(key));
        if a != b {
            let say = |entry: Option<&Entry>| {
                entry.map_or_else(
                    || "absent".to_owned(),
                    |e| format!("{} {} expires={}", e.kind, show(&e.value), e.expires),
                )
            };
            return Some(format!("key {key:?}: straight {}, through keyfence {}", say(a), say(b)));
        }
    }
    None
}
