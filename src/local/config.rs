//! CONFIG GET of a short list that clients ask for before they start; everything else is as if it did not exist.

use crate::{command::Args, glob, resp::Value, session::Session};

pub(super) fn get(s: &Session, args: &Args<'_>) -> Value {
    let facts = s.facts(|f| (f.maxmemory_policy.clone(), f.databases));
    let known: [(&str, String); 12] = [
        ("appendonly", "no".into()),
        ("bind", "127.0.0.1".into()),
        ("databases", facts.1.min(s.tenant.databases).to_string()),
        ("io-threads", "1".into()),
        ("lua-time-limit", "5000".into()),
        ("maxclients", s.worker.shared.limits.load().clients.to_string()),
        ("maxmemory", "0".into()),
        ("maxmemory-policy", facts.0),
        ("notify-keyspace-events", String::new()),
        ("proto-max-bulk-len", "536870912".into()),
        ("save", String::new()),
        ("timeout", s.worker.shared.limits.load().idle.map_or(0, |t| t.as_secs()).to_string()),
    ];
    let asked: Vec<Vec<u8>> = args.iter().skip(2).map(<[u8]>::to_ascii_lowercase).collect();
    Value::Map(
        known
            .into_iter()
            .filter(|(name, _)| asked.iter().any(|pattern| glob::matches(pattern, name.as_bytes())))
            .map(|(name, value)| (Value::bulk(name), Value::bulk(value)))
            .collect(),
    )
}
