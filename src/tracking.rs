//! CLIENT TRACKING, CACHING, TRACKINGINFO and GETREDIR: the server's help with caches of clients
//! (<https://redis.io/docs/latest/develop/reference/client-side-caching/>), inside the namespace.
//!
//! The server keeps what it tracks by connection. So a session that tracks has an upstream connection of its own from then on, and its
//! invalidations, prefix taken off, come by that connection in their place among its replies. What an ACL cannot confine is done here:
//! prefixes get the tenant's before them, and broadcasting without a prefix means the tenant's own keys (isolation.md C5).

mod redirect;

use std::{cell::Cell, rc::Rc, sync::atomic::Ordering};

use crate::{
    command::{Args, Row},
    error::UpstreamError,
    pubsub::hub::PING,
    resp::{self, Proto, Value},
    rewrite::{
        canonical,
        reply::{Rule, Unprefix},
    },
    session::{Flow, Session, Until},
    upstream::{
        Owed, What,
        conn::tracker::{Invalid, Tracker},
    },
    worker::Shared,
};
pub use redirect::Redirect;

/// Most prefixes of one connection.
const PREFIXES: usize = 256;
/// Most connections of one tenant that track (isolation.md L11).
pub const PER_TENANT: u32 = 1000;

/// How a connection tracks.
#[derive(Debug, Default)]
pub struct Tracking {
    bcast: bool,
    optin: bool,
    optout: bool,
    noloop: bool,
    /// As the client named them; one empty one if it named none.
    prefixes: Vec<Vec<u8>>,
    /// The client that gets the invalidations instead.
    redirect: Option<u64>,
    /// That client has gone.
    broken: Rc<Cell<bool>>,
    /// CLIENT CACHING, until the next command has been sent: its word.
    caching: Option<bool>,
    /// The upstream tracks, on the session's own connection.
    upstream: bool,
    /// Listens for it.
    feed: Option<Rc<Redirect>>,
    /// It was refused: it is over as soon as the client has been told.
    refused: Rc<Cell<bool>>,
    /// The upstream has agreed, or was not asked.
    agreed: Option<Rc<Cell<bool>>>,
}

impl Drop for Tracking {
    fn drop(&mut self) {
        if let Some(feed) = &self.feed {
            feed.close();
        }
    }
}

/// What CLIENT TRACKING asks for.
#[derive(Debug)]
enum Wish {
    On(Tracking),
    Off,
}

/// CLIENT TRACKING and CLIENT CACHING; nothing is in flight.
pub fn command(s: &mut Session, name: &str, args: &Args<'_>) -> Flow {
    let done = if name == "CLIENT CACHING" { caching(s, args) } else { tracking(s, args) };
    done.unwrap_or_else(|error| s.refuse(error))
}

fn tracking(s: &mut Session, args: &Args<'_>) -> Result<Flow, String> {
    let wish = match parse(s, args)? {
        Wish::Off => {
            end(s);
            s.answer(&Value::ok());
            return Ok(Flow::Next);
        }
        Wish::On(wish) => wish,
    };
    if s.tracking.is_none() {
        if s.tenant.subscriptions.trackers.fetch_add(1, Ordering::Relaxed) >= PER_TENANT {
            s.tenant.subscriptions.trackers.fetch_sub(1, Ordering::Relaxed);
            return Err(format!("BUSY {PER_TENANT} connections of tenant '{}' track already", s.tenant.name));
        }
        s.tracking = Some(Box::default());
    }
    let begun = begin(s, wish);
    if begun.is_err() {
        end(s);
    }
    begun
}

fn begin(s: &mut Session, mut wish: Tracking) -> Result<Flow, String> {
    if s.proto == Proto::Resp2 && wish.redirect.is_none() {
        // Accepted by Redis too, and nothing is ever sent.
        s.tracking = Some(Box::new(wish));
        s.answer(&Value::ok());
        return Ok(Flow::Next);
    }
    s.pin().map_err(|e| e.to_line())?;
    let Some(own) = &s.own else { return Err(UpstreamError::Lost.to_line()) };
    let conn = Rc::clone(own);
    conn.taint();
    wish.upstream = true;
    // What was tracked before is told anew, prefixes and all; the server forgets no key over this.
    conn.send_own(OFF);
    let muted = s.muted();
    let owed = if muted {
        Owed::Dropped
    } else {
        let agreed = Rc::<Cell<bool>>::default();
        wish.agreed = Some(Rc::clone(&agreed));
        Owed::Rewritten(Box::new(Unprefix::new(Rule::Note(agreed), Rc::clone(&s.prefix))))
    };
    if conn.dead() {
        return Err(UpstreamError::Lost.to_line());
    }
    if let Some(target) = wish.redirect {
        conn.track(None);
        let feed = Redirect::new(s, target, Rc::clone(&wish.broken));
        let (wish_words, down, prefix) = (wish.words(&s.prefix), Rc::clone(&s.down), Rc::clone(&s.prefix));
        let (refused, passes) = (Rc::clone(&wish.refused), Rc::downgrade(&feed));
        let then = move |outcome: Result<u64, UpstreamError>| match outcome {
            // It may have been lost meanwhile.
            Ok(id) if !conn.dead() => {
                let end = move || {
                    if let Some(passes) = passes.upgrade() {
                        passes.end_target();
                    }
                };
                conn.track(Some(Tracker::elsewhere(&down, &prefix, end)));
                conn.send(|out| put_tracking(out, &wish_words, Some(id)));
                conn.expect(&down, owed, false, What::NOTHING);
            }
            outcome => {
                refused.set(true);
                let error = outcome.err().unwrap_or(UpstreamError::Lost);
                if !muted {
                    down.append(|out| resp::put_error(out, error.to_line().as_bytes()));
                }
            }
        };
        feed.open(&s.down, then).map_err(|e| e.to_line())?;
        wish.feed = Some(feed);
    } else {
        conn.track(Some(Tracker::new(&s.down, &s.prefix)));
        conn.send(|out| put_tracking(out, &wish.words(&s.prefix), None));
        conn.expect(&s.down, owed, false, What::NOTHING);
    }
    s.change(|client| client.tracks.store(wish.redirect.is_none(), Ordering::Relaxed));
    s.tracking = Some(Box::new(wish));
    Ok(Flow::After(Until::Drained))
}

impl Tracking {
    /// Its options as the upstream gets them, REDIRECT left out. A connection that broadcasts keeps the prefixes it has.
    fn words(&self, prefix: &[u8]) -> Vec<Vec<u8>> {
        let mut words: Vec<Vec<u8>> = Vec::new();
        let flags = [(self.bcast, "BCAST"), (self.optin, "OPTIN"), (self.optout, "OPTOUT"), (self.noloop, "NOLOOP")];
        words.extend(flags.iter().filter(|(on, _)| *on).map(|(_, word)| word.as_bytes().to_vec()));
        for own in &self.prefixes {
            words.push(b"PREFIX".to_vec());
            words.push([prefix, own].concat());
        }
        words
    }
}

fn put_tracking(out: &mut Vec<u8>, words: &[Vec<u8>], redirect: Option<u64>) {
    resp::put_header(out, b'*', words.len() as u64 + if redirect.is_some() { 5 } else { 3 });
    for word in [&b"CLIENT"[..], b"TRACKING", b"ON"] {
        resp::put_bulk(out, word);
    }
    if let Some(id) = redirect {
        resp::put_bulk(out, b"REDIRECT");
        resp::put_bulk(out, id.to_string().as_bytes());
    }
    words.iter().for_each(|word| resp::put_bulk(out, word));
}

/// The options in Redis's order of checks, and its words.
fn parse(s: &Session, args: &Args<'_>) -> Result<Wish, String> {
    const SYNTAX: &str = "ERR syntax error";
    let mut wish = Tracking::default();
    let mut i = 3;
    while i < args.len() {
        let more = args.len() - 1 - i;
        match &args.at(i).to_ascii_uppercase()[..] {
            b"REDIRECT" if more > 0 => {
                if wish.redirect.is_some() {
                    return Err("ERR A client can only redirect to a single other client".into());
                }
                let id = canonical(args.at(i + 1)).ok_or("ERR value is not an integer or out of range")?;
                // An id of another tenant's does not exist (isolation.md C6).
                let own = s.worker.shared.clients.of(s.tenant.id);
                let target = u64::try_from(id).ok().filter(|id| own.iter().any(|client| client.id == *id));
                wish.redirect = Some(target.ok_or("ERR The client ID you want redirect to does not exist")?);
                i += 1;
            }
            b"BCAST" => wish.bcast = true,
            b"OPTIN" => wish.optin = true,
            b"OPTOUT" => wish.optout = true,
            b"NOLOOP" => wish.noloop = true,
            b"PREFIX" if more > 0 => {
                wish.prefixes.push(args.at(i + 1).to_vec());
                i += 1;
            }
            _ => return Err(SYNTAX.into()),
        }
        i += 1;
    }
    if args.at(2).eq_ignore_ascii_case(b"off") {
        return Ok(Wish::Off);
    }
    if !args.at(2).eq_ignore_ascii_case(b"on") {
        return Err(SYNTAX.into());
    }
    if !wish.bcast && !wish.prefixes.is_empty() {
        return Err("ERR PREFIX option requires BCAST mode to be enabled".into());
    }
    let before = s.tracking.as_deref();
    if before.is_some_and(|before| before.bcast != wish.bcast) {
        return Err("ERR You can't switch BCAST mode on/off before disabling tracking for this client, and then re-enabling it with a different mode.".into());
    }
    if wish.bcast && (wish.optin || wish.optout) {
        return Err("ERR OPTIN and OPTOUT are not compatible with BCAST".into());
    }
    if wish.optin && wish.optout {
        return Err("ERR You can't specify both OPTIN mode and OPTOUT mode".into());
    }
    if before.is_some_and(|before| wish.optin && before.optout || wish.optout && before.optin) {
        return Err("ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, and then re-enabling it with a different mode.".into());
    }
    if wish.bcast {
        let known = before.map_or(&[][..], |before| &before.prefixes);
        overlap(known, &wish.prefixes)?;
        if known.len() + wish.prefixes.len() > PREFIXES {
            return Err(format!("ERR a connection may track {PREFIXES} prefixes at the most"));
        }
        if wish.prefixes.is_empty() {
            wish.prefixes.push(Vec::new());
        }
        wish.prefixes.splice(0..0, known.iter().cloned());
        wish.prefixes.dedup();
    }
    Ok(Wish::On(wish))
}

/// Redis's rule: of two prefixes of one connection neither begins with the other.
fn overlap(known: &[Vec<u8>], new: &[Vec<u8>]) -> Result<(), String> {
    let overlaps = |a: &[u8], b: &[u8]| a.starts_with(b) || b.starts_with(a);
    let error = |new: &[u8], which: &str, old: &[u8]| {
        let [new, old] = [new, old].map(String::from_utf8_lossy);
        format!(
            "ERR Prefix '{new}' overlaps with {which} prefix '{old}'. Prefixes for a single client must not overlap."
        )
    };
    for (i, prefix) in new.iter().enumerate() {
        if let Some(old) = known.iter().find(|old| overlaps(old, prefix)) {
            return Err(error(prefix, "an existing", old));
        }
        if let Some(other) = new[i + 1..].iter().find(|other| overlaps(other, prefix)) {
            return Err(error(prefix, "another provided", other));
        }
    }
    Ok(())
}

fn caching(s: &mut Session, args: &Args<'_>) -> Result<Flow, String> {
    const NONE: &str =
        "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled";
    let Some(tracking) = &s.tracking else { return Err(NONE.into()) };
    let yes = args.at(2).eq_ignore_ascii_case(b"yes");
    if yes && !tracking.optin {
        return Err("ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.".into());
    }
    if !yes && !args.at(2).eq_ignore_ascii_case(b"no") {
        return Err("ERR syntax error".into());
    }
    if !yes && !tracking.optout {
        return Err("ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.".into());
    }
    if s.own.as_ref().is_some_and(|own| own.dead()) {
        return Err(UpstreamError::Lost.to_line());
    }
    let owed = if s.muted() { Owed::Dropped } else { Owed::Raw };
    if let Some(tracking) = &mut s.tracking {
        tracking.caching = Some(yes);
    }
    match &s.own {
        Some(own) => {
            own.send(|out| {
                resp::put_header(out, b'*', 3);
                [&b"CLIENT"[..], b"CACHING", if yes { b"YES" } else { b"NO" }]
                    .iter()
                    .for_each(|w| resp::put_bulk(out, w));
            });
            own.expect(&s.down, owed, false, What::NOTHING);
        }
        // In RESP2 without REDIRECT nothing is tracked.
        None => s.answer(&Value::ok()),
    }
    Ok(Flow::Next)
}

/// The command at hand is the one that CLIENT CACHING was about, if it is not one of CLIENT's. One that is answered here still uses it up.
pub fn step(s: &mut Session, row: &Row) {
    let Some(tracking) = &mut s.tracking else { return };
    // Whoever turned it on has had the answer by now.
    if tracking.refused.get() || tracking.agreed.as_ref().is_some_and(|agreed| !agreed.get()) {
        return end(s);
    }
    if tracking.caching.is_none() || row.name.starts_with("CLIENT") {
        return;
    }
    tracking.caching = None;
    if !row.forwardable()
        && let Some(own) = &s.own
    {
        own.send_own(PING);
    }
}

const OFF: &[u8] = b"*3\r\n$6\r\nCLIENT\r\n$8\r\nTRACKING\r\n$3\r\nOFF\r\n";

impl Tracking {
    /// Whether the session must keep its upstream connection.
    pub fn holds_connection(&self) -> bool {
        self.upstream
    }
}

/// The tenant's keys have been flushed: those of its connections that track are told once, besides what they are told of each key.
pub fn flushed(shared: &Shared, tenant: u32) {
    let mut push = Vec::new();
    Invalid::Everything.put_push(&mut push);
    for client in shared.clients.of(tenant) {
        client.post(shared.limits.load().output, |out| {
            if client.tracks.load(Ordering::Relaxed) && client.tenant.load(Ordering::Relaxed) == tenant {
                out.extend_from_slice(&push);
            }
        });
    }
}

/// Ends tracking, and the upstream connection that was its own.
pub fn end(s: &mut Session) {
    if s.tracking.take().is_none() {
        return;
    }
    s.tenant.subscriptions.trackers.fetch_sub(1, Ordering::Relaxed);
    s.change(|client| client.tracks.store(false, Ordering::Relaxed));
    if let Some(own) = &s.own
        && !own.dead()
    {
        own.track(None);
        // It goes back as soon as nothing else needs it, and is closed, being tainted.
        own.send_own(OFF);
    }
}

/// CLIENT TRACKINGINFO.
pub fn info(s: &Session) -> Value {
    let off = Tracking::default();
    let (on, t) = s.tracking.as_deref().map_or((false, &off), |t| (true, t));
    let words = [
        (!on, "off"),
        (on, "on"),
        (t.bcast, "bcast"),
        (t.optin, "optin"),
        (t.optout, "optout"),
        (t.caching == Some(true), "caching-yes"),
        (t.caching == Some(false), "caching-no"),
        (t.noloop, "noloop"),
        (t.broken.get(), "broken_redirect"),
    ];
    Value::Map(vec![
        (
            Value::bulk("flags"),
            Value::Set(words.iter().filter(|(on, _)| *on).map(|(_, word)| Value::bulk(word)).collect()),
        ),
        (Value::bulk("redirect"), redirected(s)),
        (Value::bulk("prefixes"), Value::Array(t.prefixes.iter().map(Value::bulk).collect())),
    ])
}

/// CLIENT GETREDIR: the client that gets the invalidations; 0: nobody but oneself; -1: there is no tracking.
pub fn redirected(s: &Session) -> Value {
    Value::Int(match s.tracking.as_deref() {
        None => -1,
        Some(t) => t.redirect.and_then(|id| i64::try_from(id).ok()).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn prefixes_overlap_as_redis_says() {
        let names = |names: &[&str]| names.iter().map(|n| n.as_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(overlap(&names(&["a", "b"]), &names(&["c", "d"])), Ok(()));
        assert_eq!(
            overlap(&names(&["foo"]), &names(&["x", "f"])),
            Err(
                "ERR Prefix 'f' overlaps with an existing prefix 'foo'. Prefixes for a single client must not overlap."
                    .into()
            )
        );
        assert_eq!(
            overlap(&[], &names(&["a", "ab"])),
            Err("ERR Prefix 'a' overlaps with another provided prefix 'ab'. Prefixes for a single client must not overlap.".into())
        );
        assert!(overlap(&names(&[""]), &names(&["x"])).is_err());
    }
}
