//! Publish/subscribe inside the namespace: the commands, and what a subscribed connection may do.
//!
//! Channels carry the tenant's prefix upstream, like keys. A worker has one [`hub::Hub`] per tenant, which subscribes upstream once
//! for all its clients (<https://redis.io/docs/latest/develop/pubsub/>).

pub mod hub;
pub mod notices;
pub mod subscriber;

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::{
    command::{self, Args, ConnNeed, Flags, Row, Span},
    error::UpstreamError,
    local, proxy,
    resp::{self, Proto, Value},
    rewrite::{
        self,
        reply::{Rule, Unprefix},
    },
    session::{Flow, Session, Until},
    tenant::subscriptions::{Listing, MATCHING, PATTERNS_PER_TENANT, PER_TENANT, Space, TooCostly, cost},
    upstream::{Owed, Site},
};
use hub::Hub;
use notices::Notices;
use subscriber::Op;

/// Most subscriptions of one connection (isolation.md L10), a long name counting as several.
pub const PER_CLIENT: usize = 16 * 1024;
/// Longest pattern in bytes, and most stars in it.
const PATTERN_BYTES: usize = 4096;
const PATTERN_STARS: usize = 32;

/// Names in one UNSUBSCRIBE.
const LEFT_AT_ONCE: usize = PER_CLIENT;
/// Steps of matching that count as much of a session's turn as a command does.
const STEPS: usize = 256;
/// The same in a transaction, where nothing else has its turn before the end.
const STEPS_IN_TRANSACTION: usize = MATCHING / 64;

/// How long a PUBLISH waits, again and again, while subscribers have to catch up.
const CATCH_UP: Duration = Duration::from_millis(2);

/// The hubs of a worker, by tenant, and who listens to notifications, by upstream.
#[derive(Debug, Default)]
pub struct Hubs {
    hubs: RefCell<HashMap<u32, Rc<Hub>>>,
    notices: RefCell<Vec<(Arc<Site>, Rc<Notices>)>>,
}

impl Hubs {
    /// The tenant's hub.
    fn of(&self, s: &Session) -> Rc<Hub> {
        let mut hubs = self.hubs.borrow_mut();
        let new = || Hub::new(&s.tenant, &s.reach, &s.worker.shared, self.notices_of(s));
        Rc::clone(hubs.entry(s.tenant.id).or_insert_with(new))
    }

    fn notices_of(&self, s: &Session) -> Rc<Notices> {
        let mut all = self.notices.borrow_mut();
        if let Some((_, notices)) = all.iter().find(|(site, _)| Arc::ptr_eq(site, &s.reach.site)) {
            return Rc::clone(notices);
        }
        let notices = Rc::new(Notices::new(s.reach.pool.env()));
        all.push((Arc::clone(&s.reach.site), Rc::clone(&notices)));
        notices
    }

    /// Waits until all that has been published by now is in the outputs of who subscribed to it, or nothing more can come.
    pub async fn caught_up(&self) {
        let hubs: Vec<_> = self.hubs.borrow().values().map(|hub| hub.caught_up()).collect();
        let notices: Vec<_> = self.notices.borrow().iter().map(|(_, notices)| notices.caught_up()).collect();
        join_all(hubs.into_iter().chain(notices)).await;
    }

    /// Forgets those that have nothing to do.
    pub fn tidy(&self) {
        self.hubs.borrow_mut().retain(|_, hub| Rc::strong_count(hub) > 1 || !hub.idle());
        self.notices.borrow_mut().retain(|(_, notices)| Rc::strong_count(notices) > 1 || !notices.idle());
    }
}

/// Whether a channel's name is one that the server itself publishes under: notifications of keys, and invalidations of RESP2.
pub fn special(channel: &[u8]) -> bool {
    const NAMES: [&[u8]; 6] = [
        b"__keyspace@",
        b"__keyevent@",
        b"__subkeyspace@",
        b"__subkeyevent@",
        b"__subkeyspaceitem@",
        b"__subkeyspaceevent@",
    ];
    NAMES.iter().any(|name| channel.starts_with(name)) || channel == b"__redis__:invalidate"
}

/// Carries out a command of the publish/subscribe family.
pub fn command(s: &mut Session, row: &Row, args: &Args<'_>, frame: &[u8], spans: &[Span]) -> Flow {
    if !row.forwardable() && !s.facts(|f| f.has(row)) {
        return s.refuse(command::unknown_command_error(args));
    }
    let space = match row.name {
        "SUBSCRIBE" | "UNSUBSCRIBE" | "PUBLISH" => Space::Channel,
        "PSUBSCRIBE" | "PUNSUBSCRIBE" => Space::Pattern,
        "SSUBSCRIBE" | "SUNSUBSCRIBE" | "SPUBLISH" => Space::Shard,
        _ if matches!(row.word, "CHANNELS" | "SHARDCHANNELS") && args.len() <= 3 => return list(s, row, args),
        _ => return local::answer(s, row, args),
    };
    match row.conn {
        ConnNeed::Any => publish(s, row, space, args, frame, spans),
        // What was asked before is answered before messages come, in RESP2 at least, where they could not be told apart.
        _ if s.down.in_flight() > 0 => Flow::Again(Until::Drained),
        ConnNeed::Pin(_) => subscribe(s, space, args),
        _ => unsubscribe(s, space, args),
    }
}

fn names(args: &Args<'_>) -> Vec<Rc<[u8]>> {
    args.iter().skip(1).map(Rc::from).collect()
}

fn simple(pattern: &[u8]) -> bool {
    pattern.len() <= PATTERN_BYTES && pattern.iter().filter(|&&c| c == b'*').count() <= PATTERN_STARS
}

fn too_complex() -> String {
    format!("ERR pattern is too complex: at most {PATTERN_BYTES} bytes and {PATTERN_STARS} stars")
}

fn subscribe(s: &mut Session, space: Space, args: &Args<'_>) -> Flow {
    let names = names(args);
    let wanted = names.iter().map(|name| cost(name)).sum::<usize>();
    let sub = match &s.sub {
        Some(sub) => Rc::clone(sub),
        None => {
            let hub = s.worker.hubs.of(s);
            let sub = hub.subscriber(&s.down, &s.client, s.proto);
            s.sub = Some(Rc::clone(&sub));
            sub
        }
    };
    if space == Space::Pattern {
        if !names.iter().all(|p| simple(p)) {
            return s.refuse(too_complex());
        }
        if !names.iter().all(|p| s.tenant.subscriptions.takes_pattern(p)) || names.len() > PATTERNS_PER_TENANT {
            return s.refuse(format!(
                "BUSY tenant '{}' has {PATTERNS_PER_TENANT} different patterns already",
                s.tenant.name
            ));
        }
    }
    if sub.cost.get() + wanted > PER_CLIENT {
        return s.refuse(format!("BUSY a connection may have {PER_CLIENT} subscriptions at the most"));
    }
    if !s.tenant.subscriptions.reserve(wanted) {
        return s.refuse(format!("BUSY tenant '{}' has {PER_TENANT} subscriptions already", s.tenant.name));
    }
    sub.cost.set(sub.cost.get() + wanted);
    let hub = Rc::clone(&sub.hub);
    match hub.begin(Op { sub, join: true, space, names, reserved: wanted }) {
        Ok(()) => Flow::After(Until::Drained),
        Err((op, error)) => {
            s.tenant.subscriptions.release(op.reserved);
            op.sub.cost.set(op.sub.cost.get() - op.reserved);
            s.refuse(error.to_line())
        }
    }
}

fn unsubscribe(s: &mut Session, space: Space, args: &Args<'_>) -> Flow {
    if args.len() - 1 > LEFT_AT_ONCE {
        return s.refuse(format!("ERR at most {LEFT_AT_ONCE} names may be given up at once"));
    }
    let names = names(args);
    let Some(sub) = &s.sub else {
        let mut acks = Vec::new();
        let each: Vec<Option<&[u8]>> =
            if names.is_empty() { vec![None] } else { names.iter().map(|n| Some(&**n)).collect() };
        each.into_iter().for_each(|name| subscriber::put_unsubscribed(&mut acks, s.proto, space, name));
        s.answer_bytes(&acks);
        return Flow::Next;
    };
    let hub = Rc::clone(&sub.hub);
    match hub.begin(Op { sub: Rc::clone(sub), join: false, space, names, reserved: 0 }) {
        Ok(()) => Flow::After(Until::Drained),
        Err((_, error)) => s.refuse(error.to_line()),
    }
}

fn publish(s: &mut Session, row: &Row, space: Space, args: &Args<'_>, frame: &[u8], spans: &[Span]) -> Flow {
    if s.tenant.subscriptions.behind() {
        return Flow::Again(Until::Moment(Instant::now() + CATCH_UP));
    }
    let mut work = MATCHING;
    let reached = reached(s, space, args.at(1), &mut work);
    s.spend(((MATCHING - work) / STEPS) as u64);
    let Ok((own, count)) = reached else { return s.refuse(TOO_COSTLY) };
    let sent = match own {
        Some(_) if s.down.in_flight() > 0 => return Flow::Again(Until::Drained),
        Some(hub) => publish_to_self(s, &hub, row, count, frame, spans).map(|()| Flow::After(Until::Drained)),
        None => {
            let owed = match s.muted() {
                true => Owed::Dropped,
                false => Owed::Rewritten(Box::new(Unprefix::new(Rule::Number(count), Rc::clone(&s.prefix)))),
            };
            proxy::send(s, row, args, frame, spans, owed, false).map(|()| Flow::Next)
        }
    };
    sent.unwrap_or_else(|error| s.refuse(error))
}

/// What a client is told whose message would take too long to hand out.
const TOO_COSTLY: &str = "BUSY the channel's name and the tenant's patterns are too long together: whom this message reaches takes too long to find out";

/// The client's own hub if the message comes to the client itself, and what PUBLISH answers.
fn reached(s: &Session, space: Space, channel: &[u8], work: &mut usize) -> Result<(Option<Rc<Hub>>, u64), TooCostly> {
    let own = match &s.sub {
        Some(sub) => sub.receives(space, channel, work)?.then(|| Rc::clone(&sub.hub)),
        None => None,
    };
    Ok((own, receivers(s, space, channel, work)?))
}

/// Whether a command that is streamed or in a transaction is no PUBLISH, or one whose receivers can be found in time: all those of one
/// transaction together, since nobody else has a turn before its end.
///
/// # Errors
/// The error line.
pub fn may_publish(s: &mut Session, row: &Row, args: &Args<'_>) -> Result<(), &'static str> {
    if !matches!(row.name, "PUBLISH" | "SPUBLISH") || args.len() < 2 {
        return Ok(());
    }
    let before = MATCHING - s.tx.as_ref().map_or(0, |tx| tx.matching).min(MATCHING);
    let mut work = before;
    let outcome = receivers(s, published(row), args.at(1), &mut work);
    s.spend(((before - work) / STEPS) as u64);
    if let Some(tx) = &mut s.tx {
        tx.matching = MATCHING - work;
    }
    outcome.map(drop).map_err(|TooCostly| TOO_COSTLY)
}

fn published(row: &Row) -> Space {
    if row.name == "SPUBLISH" { Space::Shard } else { Space::Channel }
}

/// By the hub's connection, so that message and reply come in the upstream's order.
fn publish_to_self(s: &Session, hub: &Hub, row: &Row, count: u64, frame: &[u8], spans: &[Span]) -> Result<(), String> {
    let mut out = Vec::new();
    let mut marks = s.worker.marks.borrow_mut();
    rewrite::request(row, frame, spans, &s.namespace(), &mut marks, &mut out)
        .map_err(|rewrite::TooLong| "ERR string exceeds maximum allowed size (proto-max-bulk-len)".to_owned())?;
    let count = (!s.muted()).then_some(count);
    hub.publish(&out, &s.down, count).map_err(|e: UpstreamError| e.to_line())
}

/// What PUBLISH answers.
fn receivers(s: &Session, space: Space, channel: &[u8], work: &mut usize) -> Result<u64, TooCostly> {
    if special(channel) { Ok(0) } else { s.tenant.subscriptions.receivers(space, channel, work) }
}

/// What becomes of the reply to a PUBLISH: the upstream counts connections of keyfence's, not the tenant's clients. `channel` is unknown
/// for a message too large to be held.
pub fn rule(s: &Session, row: &Row, channel: Option<&[u8]>) -> Rule {
    let count = channel.map(|channel| receivers(s, published(row), channel, &mut MATCHING.clone()));
    count.map_or(Rule::Raw, |count| Rule::Number(count.unwrap_or(0)))
}

/// The error of a command that a connection in RESP2 with subscriptions may not run.
pub fn restricted(s: &Session, row: &Row) -> Option<String> {
    let sub = s.sub.as_ref()?;
    let allowed = matches!(row.conn, ConnNeed::Pin("sub") | ConnNeed::End("sub"))
        || matches!(row.name, "PING" | "QUIT" | "RESET")
        || s.proto != Proto::Resp2
        || !sub.listens();
    (!allowed).then(|| {
        format!(
            "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
            row.lower_name()
        )
    })
}

/// PING as a connection in RESP2 with subscriptions gets it answered; `None` in any other state.
pub fn pong(s: &Session, args: &Args<'_>) -> Option<Value> {
    let subscribed = s.proto == Proto::Resp2 && s.sub.as_ref().is_some_and(|sub| sub.listens());
    subscribed.then(|| {
        let said = if args.len() > 1 { args.at(1) } else { b"" };
        Value::Array(vec![Value::bulk("pong"), Value::bulk(said)])
    })
}

/// The connection ends, starts over or becomes another tenant's: its subscriptions go, and nobody is told.
pub fn leave(s: &mut Session) {
    if let Some(sub) = s.sub.take() {
        sub.hub.leave_all(&sub);
    }
}

/// The connection speaks another version of the protocol from now on.
pub fn speaks(s: &Session, proto: Proto) {
    if let Some(sub) = &s.sub {
        sub.proto.set(proto);
    }
}

/// What has been found for a PUBSUB CHANNELS (or SHARDCHANNELS) that takes several turns.
#[derive(Debug, Default)]
pub struct Found {
    listing: Listing,
    count: u64,
    /// The names as they will be sent.
    names: Vec<u8>,
}

/// PUBSUB CHANNELS and SHARDCHANNELS: of many names so many a turn.
fn list(s: &mut Session, row: &Row, args: &Args<'_>) -> Flow {
    let space = if row.word == "CHANNELS" { Space::Channel } else { Space::Shard };
    let pattern = (args.len() == 3).then(|| args.at(2));
    let mut found = s.found.take().unwrap_or_default();
    if pattern.is_some_and(|p| !simple(p)) {
        return s.refuse(too_complex());
    }
    let more = s.tenant.subscriptions.list(space, pattern, &mut found.listing, &mut MATCHING.clone());
    let Ok(done) = more else { return s.refuse(too_complex()) };
    let names = std::mem::take(&mut found.listing.names);
    found.count += names.len() as u64;
    names.iter().for_each(|name| resp::put_bulk(&mut found.names, name));
    // More than the client may have waiting: it is disconnected over this much as well.
    if !done && found.names.len() <= s.worker.shared.limits.load().output {
        s.found = Some(found);
        return Flow::Again(Until::Turn);
    }
    if !s.muted() {
        let mut reply = Vec::with_capacity(found.names.len() + 16);
        resp::put_header(&mut reply, b'*', found.count);
        reply.append(&mut found.names);
        s.answer_bytes(&reply);
    }
    Flow::Next
}

/// PUBSUB and its subcommands.
pub fn introspect(s: &Session, row: &Row, args: &Args<'_>) -> Value {
    let known = &s.tenant.subscriptions;
    let int = |n: usize| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let space = if row.name.starts_with("PUBSUB SHARD") { Space::Shard } else { Space::Channel };
    match row.word {
        "CHANNELS" | "SHARDCHANNELS" if args.len() <= 3 => {
            let pattern = (args.len() == 3).then(|| args.at(2));
            if pattern.is_some_and(|p| !simple(p)) {
                return Value::error(too_complex());
            }
            let (mut listing, mut work) = (Listing::default(), STEPS_IN_TRANSACTION);
            match known.list(space, pattern, &mut listing, &mut work) {
                Ok(true) => Value::Array(listing.names.iter().map(Value::bulk).collect()),
                Ok(false) => Value::error("BUSY too many channels to be listed inside a transaction"),
                Err(TooCostly) => Value::error(too_complex()),
            }
        }
        "NUMPAT" => int(known.distinct(Space::Pattern)),
        "NUMSUB" | "SHARDNUMSUB" => Value::Array(
            args.iter().skip(2).flat_map(|name| [Value::bulk(name), int(known.count(space, name) as usize)]).collect(),
        ),
        "HELP" => local::help(
            "PUBSUB",
            &[
                "CHANNELS [<pattern>]",
                "    Return the currently active channels matching a <pattern> (default: '*').",
                "NUMPAT",
                "    Return number of subscriptions to patterns.",
                "NUMSUB [<channel> ...]",
                "    Return the number of subscribers for the specified channels, excluding",
                "    pattern subscriptions(default: no channels).",
                "SHARDCHANNELS [<pattern>]",
                "    Return the currently active shard level channels matching a <pattern> (default: '*').",
                "SHARDNUMSUB [<shardchannel> ...]",
                "    Return the number of subscribers for the specified shard level channel(s)",
            ],
        ),
        word => Value::error(format!(
            "ERR unknown subcommand or wrong number of arguments for '{}'. Try PUBSUB HELP.",
            if args.len() > 1 { String::from_utf8_lossy(args.at(1)).into_owned() } else { word.to_owned() }
        )),
    }
}

/// Whether the row is one of this module's.
#[inline]
pub fn is_one(row: &Row) -> bool {
    row.flags.has(Flags::PUBSUB)
}
