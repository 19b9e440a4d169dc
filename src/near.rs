//! The tier on the path of a command: reads that it can answer, reads that it keeps, writes that it has to know of. Why that is true is in
//! [`crate::tier`].
//!
//! A session is not answered from the tier when the upstream has to see its reads (CLIENT TRACKING, WATCH, MULTI, a connection of its own),
//! when it wants no replies, when it has a write of its own in flight (a read sent behind it must come after it), and after KEYFENCE TIER OFF.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, LazyLock},
};

use tokio::time::Instant;

use crate::{
    command::{self, Args, Keep, Keys, Row, Slot, Span},
    downstream::HIGH_WATER,
    error::UpstreamError,
    proxy,
    resp::{self, Proto, Value},
    session::{Flow, Session, Until},
    tier::{Fetch, Flight, Guard, Keeping, LONGEST, Outcome, Part, Take, UNKNOWN},
    upstream::Owed,
};

/// The number of GET among the commands.
static GET: LazyLock<u16> = LazyLock::new(|| command::find("GET").map_or(u16::MAX, |row| row.index));

/// Most keys of a transaction that are marked one by one.
const KEYS: usize = 1024;

/// A read that the tier may answer; `None`: the ordinary path has it.
pub fn read(s: &mut Session, row: &Row, args: &Args<'_>, frame: &[u8], spans: &[Span]) -> Option<Flow> {
    let joined = s.joined.take();
    if s.own.is_some() || s.tracking.is_some() || s.muted() {
        return None;
    }
    if s.wrote {
        if s.down.in_flight() > 0 {
            return None;
        }
        s.wrote = false;
    }
    if row.keep == Keep::Hash && s.facts(|facts| facts.expires_fields()) {
        return None;
    }
    let now = s.desk.now(s.worker.clock.micros());
    if !s.tenant.tier.tracks(now) {
        return None;
    }
    let keys = match row.keys {
        Keys::One(at) => usize::from(at)..usize::from(at) + 1,
        _ => 1..args.len(),
    };
    if frame.len() + s.prefix.len() > LONGEST || keys.end > args.len() {
        return None;
    }
    let desk = Rc::clone(&s.desk);
    let mut name = desk.name.borrow_mut();
    // The parts of an MGET are what GET would have answered.
    let known_as = if row.keep == Keep::Values { *GET } else { row.index };
    let proto = if s.proto == Proto::Resp3 { 3 } else { 2 };
    name.begin(s.tenant.site.number, s.tenant.id, s.tenant.db_base + s.db, proto, known_as);
    if keys.len() == 1 {
        (keys.end..args.len()).for_each(|i| name.argument(args.at(i)));
    }
    name.key(&s.prefix, args.at(keys.start));
    let serves = s.tenant.tier.serves(now);
    let one = keys.len() == 1 && row.keep != Keep::Values;
    if !one {
        return several(s, row, args, (frame, spans), &mut name, (now, serves));
    }
    // What is answered from here waits for a slow reader as what comes from the upstream does.
    if serves && s.down.unsent() > HIGH_WATER {
        s.joined = joined;
        return Some(Flow::Again(Until::Unsent(HIGH_WATER / 8)));
    }
    if serves && answer(s, |out| desk.tier.store().is_some_and(|store| store.get(name.id(), name.variant(), now, out)))
    {
        s.tenant.tier.hit(desk.slot);
        proxy::answered_here(s, row, args);
        return Some(Flow::Next);
    }
    if proxy::needs_other_user(s, row) {
        return None;
    }
    if let Some(flight) = joined.filter(|flight| flight.name == *name) {
        let outcome = after(s, &flight);
        if outcome.is_some() {
            proxy::answered_here(s, row, args);
        }
        return outcome;
    }
    if serves
        && let Some(flight) = desk.tier.flights.find(&name)
        && desk.tier.store()?.holds(&flight.ticket, name.id())
    {
        if s.down.in_flight() > 0 {
            return Some(Flow::Again(Until::Drained));
        }
        s.tenant.tier.missed(desk.slot);
        let deadline = Instant::now() + s.reach.site.target.socket_timeout;
        s.joined = Some(Arc::clone(&flight));
        return Some(Flow::Again(Until::Flight(flight, deadline)));
    }
    s.tenant.tier.missed(desk.slot);
    let ticket = desk.tier.store()?.ticket(name.id())?;
    let ttl = ask_ttl(s, name.id().key)?;
    let flight = desk.tier.flights.begin(name.clone(), ticket);
    let fetch = Fetch::one(&desk, &s.tenant.tier, now, flight, &ttl);
    Some(fetch_by(s, row, args, frame, spans, fetch))
}

/// Appends an answer made of what is kept, in its place among the replies; `false`, and nothing appended, when `fill` says so.
fn answer(s: &mut Session, fill: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
    if s.down.in_flight() == 0 {
        let (hit, len) = s.down.append(|out| {
            let before = out.len();
            (fill(out), out.len().saturating_sub(before))
        });
        s.spend(len as u64 / 64);
        return hit;
    }
    let mut bytes = s.worker.spares.take();
    let hit = fill(&mut bytes);
    if hit {
        s.answer_bytes(&bytes);
    }
    s.worker.spares.put(bytes);
    hit
}

/// The read that was waited for has an outcome, or is late.
fn after(s: &mut Session, flight: &Flight) -> Option<Flow> {
    match flight.outcome() {
        Some(Outcome::Reply(bytes)) => s.answer_bytes(&bytes),
        Some(Outcome::Alone) => return None,
        Some(Outcome::Lost) => s.answer(&Value::error(UpstreamError::Lost.to_line())),
        None => {
            let late = UpstreamError::TimedOut(s.reach.site.target.socket_timeout);
            s.answer(&Value::error(late.to_line()));
        }
    }
    Some(Flow::Next)
}

/// Asks how long a key lives, right before what is sent next; `None` when there is no connection for it.
fn ask_ttl(s: &mut Session, key: &[u8]) -> Option<Rc<Cell<i64>>> {
    let conn = s.conn().ok().filter(|conn| !conn.dead())?;
    conn.send(|out| {
        out.extend_from_slice(b"*2\r\n$4\r\nPTTL\r\n");
        resp::put_bulk(out, key);
    });
    let ttl = Rc::new(Cell::new(UNKNOWN));
    conn.expect_integer(&ttl);
    Some(ttl)
}

fn fetch_by(s: &mut Session, row: &Row, args: &Args<'_>, frame: &[u8], spans: &[Span], fetch: Fetch) -> Flow {
    match proxy::send(s, row, args, frame, spans, Owed::Fetch(Box::new(fetch)), false) {
        Ok(()) => Flow::Next,
        Err(error) => s.refuse(error),
    }
}

/// MGET, and EXISTS of several keys: from the tier when all parts are there, else all of it from the upstream, of which the parts that were
/// missing are kept, and the others compared with what is kept: a client must not see a key's new value here and then its old one. That is one
/// round trip either way; parts from both would save the upstream a few lookups, and cost a reply put together.
fn several(
    s: &mut Session,
    row: &Row,
    args: &Args<'_>,
    (frame, spans): (&[u8], &[Span]),
    name: &mut crate::tier::Name,
    (now, serves): (u64, bool),
) -> Option<Flow> {
    let desk = Rc::clone(&s.desk);
    let store = desk.tier.store()?;
    let prefix = Rc::clone(&s.prefix);
    if serves && s.down.unsent() > HIGH_WATER {
        return Some(Flow::Again(Until::Unsent(HIGH_WATER / 8)));
    }
    // The same for all keys.
    let variant = store.variant_hash(name.id().tenant, name.variant());
    // For EXISTS: how many of those that are kept are there.
    let mut sum = 0;
    if serves {
        let all = answer(s, |out| {
            let before = out.len();
            if row.keep == Keep::Values {
                resp::put_header(out, b'*', args.len() as u64 - 1);
            }
            for i in 1..args.len() {
                name.other_key(&prefix, args.at(i));
                let part = out.len();
                if !store.get_hashed(name.id(), (name.variant(), variant), now, out) {
                    out.truncate(before);
                    return false;
                }
                // A reply that is put together here stands in memory as a whole; a large one streams from the upstream instead.
                if out.len() - before > HIGH_WATER {
                    out.truncate(before);
                    return false;
                }
                if row.keep != Keep::Values {
                    sum += u64::from(out[part..] == *b":1\r\n");
                    out.truncate(part);
                }
            }
            if row.keep != Keep::Values {
                resp::put_header(out, b':', sum);
            }
            true
        });
        if all {
            s.tenant.tier.hit(desk.slot);
            proxy::answered_here(s, row, args);
            return Some(Flow::Next);
        }
    }
    if proxy::needs_other_user(s, row) {
        return None;
    }
    s.tenant.tier.missed(desk.slot);
    sum = 0;
    let mut copied = 0;
    let mut scratch = Vec::new();
    let mut parts = Vec::new();
    for i in 1..args.len().min(1 + KEYS) {
        name.other_key(&prefix, args.at(i));
        scratch.clear();
        // Whether a key is kept is seen by what is kept, which may be large, and the key named a thousand times: from there on all are compared only.
        let keep = if copied > HIGH_WATER || serves && store.get(name.id(), name.variant(), now, &mut scratch) {
            copied += scratch.len();
            sum += u64::from(scratch == b":1\r\n");
            None
        } else {
            let Some(ticket) = store.ticket(name.id()) else { continue };
            Some(Keeping { ticket, ttl: ask_ttl(s, name.id().key)? })
        };
        parts.push(Part { name: name.clone(), keep, at: i - 1 });
    }
    if parts.is_empty() {
        return None;
    }
    let take = if row.keep == Keep::Values { Take::Elements } else { Take::Each(sum) };
    let fetch = Fetch::parts(&desk, &s.tenant.tier, now, take, parts);
    Some(fetch_by(s, row, args, frame, spans, fetch))
}

/// What a command is about to change that the tier may keep: the guard that lasts until its reply. `patient`: that may take as long as it likes.
pub fn write(s: &mut Session, row: &Row, args: &Args<'_>, patient: bool) -> Option<Guard> {
    s.wrote = true;
    let upstream = s.tenant.site.number;
    let desk = Rc::clone(&s.desk);
    let mut name = desk.name.borrow_mut();
    if let Keys::One(at) = row.keys
        && usize::from(at) < args.len()
        && !patient
    {
        name.begin(upstream, 0, 0, 0, 0);
        name.key(&s.prefix, args.at(at.into()));
        return Guard::key(&desk, upstream, name.id().key);
    }
    let keys = touched(s, row, args);
    match keys {
        Some(keys) if patient => Some(Guard::late(&desk, upstream, keys)),
        Some(keys) => Guard::keys(&desk, upstream, keys.iter().map(|key| &key[..])),
        None => Some(Guard::all(&desk, &s.tenant.tier)),
    }
}

/// The keys that a command names, as they stand upstream; `None` when that may be any.
fn touched(s: &Session, row: &Row, args: &Args<'_>) -> Option<Vec<Vec<u8>>> {
    let mut marks = s.worker.marks.borrow_mut();
    command::walk(row, args, &mut marks);
    let names = marks.iter().filter(|(_, slot)| *slot == Slot::Key);
    let keys: Vec<_> = names.map(|&(i, _)| [&s.prefix, args.at(i as usize)].concat()).collect();
    (!keys.is_empty()).then_some(keys)
}

/// What an open transaction will change.
#[derive(Debug, Default)]
pub struct Touched {
    keys: Vec<Vec<u8>>,
    /// Anything.
    all: bool,
}

impl Touched {
    /// One more command has been queued.
    pub fn add(&mut self, s: &Session, row: &Row, args: &Args<'_>) {
        if self.all {
            return;
        }
        match touched(s, row, args) {
            Some(keys) if self.keys.len() + keys.len() <= KEYS => self.keys.extend(keys),
            Some(_) | None => self.any(),
        }
    }

    /// A script, or a command whose keys were not seen.
    pub fn any(&mut self) {
        self.all = true;
        self.keys = Vec::new();
    }

    /// The guard of its EXEC; `lasting`: it runs scripts, and may take longer than it takes to turn a tier on.
    pub fn guard(self, s: &mut Session, lasting: bool) -> Option<Guard> {
        if self.all && (lasting || s.tenant.tier.wanted()) {
            return Some(everything(s));
        }
        if self.keys.is_empty() {
            return None;
        }
        s.wrote = true;
        Guard::keys(&s.desk, s.tenant.site.number, self.keys.iter().map(|key| &key[..]))
    }
}

/// What is about to be sent may change anything of the tenant's.
pub fn everything(s: &mut Session) -> Guard {
    s.wrote = true;
    Guard::all(&s.desk, &s.tenant.tier)
}

/// Keys of a request that was passed on without being held; `None`: any.
pub fn large(s: &mut Session, keys: Option<Vec<Vec<u8>>>) -> Option<Guard> {
    if !s.tenant.tier.wanted() {
        return None;
    }
    s.wrote = true;
    match keys {
        Some(keys) => Guard::keys(&s.desk, s.tenant.site.number, keys.iter().map(|key| &key[..])),
        None => Some(Guard::all(&s.desk, &s.tenant.tier)),
    }
}
