//! One tenant's subscriptions on one worker: one upstream subscription per channel however many clients have it, and the fan-out.
//!
//! ```text
//!   SUBSCRIBE a b ─► Op ─► upstream: SUBSCRIBE <p>a <p>b, PING ─► confirmations ─► PONG ─► the client joins a and b, gets its two acks
//!   message <p>a  ─► written once per protocol form ─► the output of every member
//! ```
//!
//! A client joins or leaves at the PONG behind its command: what was published before comes before the ack, and nothing that is published
//! after the ack is missed. Patterns are matched here, against one upstream subscription to every channel of the tenant's, since that is
//! the only pattern its ACL allows.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    notices::{Notices, Wants},
    special,
};
use crate::{
    clients::Client,
    downstream::Downstream,
    error::UpstreamError,
    glob,
    resp::{self, Proto, Value},
    rewrite::reply::own_error,
    tenant::{
        Tenant,
        subscriptions::{Space, cost},
    },
    upstream::{
        Kind,
        feed::{Audience, Feed, Who},
    },
    worker::{Reach, Shared},
};

/// Names in one SUBSCRIBE of a connection that was opened again.
const BATCH: usize = 512;
/// When what the upstream sends waits longer than this, those who publish have to wait too: its output buffer for this connection is
/// bounded (`client-output-buffer-limit pubsub`).
const BEHIND: Duration = Duration::from_millis(50);
/// A message from this size on is written to each socket at once: no more of it is held than what sockets do not take.
const LARGE: usize = 64 * 1024;
/// Bytes of a frame beside the message in it.
const FRAME: usize = 64 * 1024;

/// One client as its subscriptions know it.
#[derive(Debug)]
pub struct Subscriber {
    /// Where messages go.
    pub down: Rc<Downstream>,
    /// Its entry in the client registry, which shows its counts.
    client: Arc<Client>,
    /// The form of its messages.
    pub proto: Cell<Proto>,
    /// What it is subscribed to.
    topics: [RefCell<Vec<Rc<Topic>>>; 3],
    /// Its subscriptions' cost, those under way included.
    pub cost: Cell<usize>,
    /// Who serves it.
    pub hub: Rc<Hub>,
}

impl Subscriber {
    /// How many subscriptions of one kind it has.
    pub fn len(&self, space: Space) -> usize {
        self.topics[space.index()].borrow().len()
    }

    /// Whether it has any.
    pub fn listens(&self) -> bool {
        Space::ALL.iter().any(|&space| self.len(space) > 0)
    }

    /// The count that Redis shows in acknowledgements: channels and patterns together, shard channels apart.
    fn shown(&self, space: Space) -> usize {
        match space {
            Space::Shard => self.len(Space::Shard),
            Space::Channel | Space::Pattern => self.len(Space::Channel) + self.len(Space::Pattern),
        }
    }

    /// Whether a message on this channel, of [`Space::Channel`] or [`Space::Shard`], would come to it.
    pub fn receives(&self, space: Space, channel: &[u8]) -> bool {
        let any = |space: Space, test: &dyn Fn(&[u8]) -> bool| {
            self.topics[space.index()].borrow().iter().any(|topic| test(&topic.name))
        };
        any(space, &|name| name == channel)
            || space == Space::Channel && any(Space::Pattern, &|pattern| glob::matches(pattern, channel))
    }

    fn show(&self, space: Space) {
        let n = u32::try_from(self.len(space)).unwrap_or(u32::MAX);
        self.client.subscribed[space.index()].store(n, Ordering::Relaxed);
    }
}

/// Something that clients are subscribed to.
#[derive(Debug)]
struct Topic {
    space: Space,
    name: Rc<[u8]>,
    /// By client id.
    members: RefCell<HashMap<u64, Rc<Subscriber>>>,
    /// Commands under way that will add members.
    pending: Cell<u32>,
    /// The upstream has confirmed the subscription.
    confirmed: Cell<bool>,
}

impl Topic {
    /// Whether the upstream knows a subscription of this one's own.
    fn own_upstream(&self) -> bool {
        self.space != Space::Pattern && !special(&self.name)
    }
}

impl Topic {
    /// Whoever redirects invalidations to this client finds out whether it listens.
    fn note_invalidations(&self, sub: &Subscriber, listens: bool) {
        if self.space == Space::Channel && *self.name == *b"__redis__:invalidate" {
            sub.client.invalidations.store(listens, Ordering::Relaxed);
        }
    }
}

/// A client's command under way.
#[derive(Debug)]
pub struct Op {
    /// Whose.
    pub sub: Rc<Subscriber>,
    /// SUBSCRIBE or UNSUBSCRIBE.
    pub join: bool,
    /// Of which kind.
    pub space: Space,
    /// Its arguments.
    pub names: Vec<Rc<[u8]>>,
    /// What was reserved for it of the tenant's bound.
    pub reserved: usize,
}

/// Topics of one kind by name.
type Topics = RefCell<HashMap<Rc<[u8]>, Rc<Topic>>>;

/// What the upstream owes, in the order in which it was asked.
#[derive(Debug)]
enum Awaited {
    /// So many confirmations of a SUBSCRIBE (or UNSUBSCRIBE).
    Confirm { join: bool, left: usize },
    /// A PONG, at which a client's command is done.
    Done(Op),
    /// The reply to a PUBLISH, in the place of whose number this one is told; `None`: nothing is told.
    Published(Rc<Downstream>, Option<u64>),
    /// A PONG, as a sign of life.
    Alive,
}

/// See the module.
#[derive(Debug)]
pub struct Hub {
    tenant: Arc<Tenant>,
    prefix: Rc<[u8]>,
    /// Keeps the worker's connections to the upstream in being.
    _reach: Rc<Reach>,
    shared: Arc<Shared>,
    me: Weak<Self>,
    notices: Rc<Notices>,
    /// Topics that keyspace notifications may match: those about keys, those about events.
    noticed: Cell<(u32, u32)>,
    listens: Cell<Wants>,
    feed: Rc<Feed>,
    topics: [Topics; 3],
    /// The upstream subscription that patterns are matched against was asked for, and confirmed.
    wide: Cell<(bool, bool)>,
    awaited: RefCell<VecDeque<(Instant, Awaited)>>,
    /// Commands that came before there was a connection.
    waiting: RefCell<Vec<Op>>,
    /// What the upstream said to the last SUBSCRIBE, when it refused it.
    refusal: RefCell<Option<String>>,
    written: RefCell<Vec<Rc<Downstream>>>,
    /// When the upstream was last asked how far behind this is; whether that is too far.
    asked: Cell<Option<Instant>>,
    behind: Cell<bool>,
    /// A message as it is written to clients.
    message: RefCell<Vec<u8>>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.set_behind(false);
    }
}

impl Hub {
    /// No subscriptions yet.
    pub fn new(tenant: &Arc<Tenant>, reach: &Rc<Reach>, shared: &Arc<Shared>, notices: Rc<Notices>) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            notices,
            noticed: Cell::new((0, 0)),
            listens: Cell::default(),
            tenant: Arc::clone(tenant),
            prefix: Rc::from(&*tenant.prefix),
            _reach: Rc::clone(reach),
            shared: Arc::clone(shared),
            feed: Rc::new(Feed::new(reach.pool.env(), Who::Tenant(tenant.id, Kind::Data))),
            topics: Default::default(),
            wide: Cell::new((false, false)),
            awaited: RefCell::default(),
            waiting: RefCell::default(),
            refusal: RefCell::default(),
            written: RefCell::default(),
            asked: Cell::new(None),
            behind: Cell::new(false),
            message: RefCell::default(),
        })
    }

    /// What the tenant's names begin with upstream.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The tenant's number of an upstream database.
    pub fn own_db(&self, upstream: u32) -> Option<u32> {
        upstream.checked_sub(self.tenant.db_base).filter(|db| *db < self.tenant.databases)
    }

    /// Whether it has neither subscriptions nor a connection.
    pub fn idle(&self) -> bool {
        !self.wanted() && self.feed.idle()
    }

    /// A subscriber without subscriptions.
    pub fn subscriber(self: &Rc<Self>, down: &Rc<Downstream>, client: &Arc<Client>, proto: Proto) -> Rc<Subscriber> {
        Rc::new(Subscriber {
            down: Rc::clone(down),
            client: Arc::clone(client),
            proto: Cell::new(proto),
            topics: Default::default(),
            cost: Cell::new(0),
            hub: Rc::clone(self),
        })
    }

    /// Begins a command; the client is owed one reply, however many acknowledgements that is.
    ///
    /// # Errors
    /// When there is no connection to be had; the command is given back.
    pub fn begin(self: &Rc<Self>, op: Op) -> Result<(), (Op, UpstreamError)> {
        if op.join
            && let Err(error) = self.feed.want(self)
        {
            return Err((op, error));
        }
        op.sub.down.expect(1);
        if op.join {
            self.prepare(&op);
            self.listen();
            if op.names.iter().any(|name| wants(op.space, name).any()) {
                if let Err((op, error)) = self.notices.then(self, op) {
                    self.go_on(op, Some(&error));
                    self.settle_now();
                }
                return Ok(());
            }
        }
        if self.feed.up() {
            self.barrier(Awaited::Done(op));
        } else if op.join {
            self.waiting.borrow_mut().push(op);
        } else {
            // Nothing of before can come any more.
            self.finish(op, None);
            self.settle_now();
        }
        Ok(())
    }

    /// A command that waited for notifications goes on; `error`: without them, or if they are what it is about, not at all.
    pub fn go_on(&self, op: Op, error: Option<&UpstreamError>) {
        let error = error.filter(|_| op.names.iter().any(|name| name.starts_with(b"__key")));
        let wanted = self.me.upgrade().and_then(|me| self.feed.want(&me).err());
        match error.or(wanted.as_ref()) {
            Some(error) => self.finish(op, Some(&error.to_line())),
            None if self.feed.up() => self.barrier(Awaited::Done(op)),
            None => self.waiting.borrow_mut().push(op),
        }
    }

    /// Listens to the notifications that there are topics for.
    fn listen(&self) {
        let (keys, events) = self.noticed.get();
        let wants = Wants { keys: keys > 0, events: events > 0 };
        if self.listens.replace(wants) != wants
            && let Some(me) = self.me.upgrade()
        {
            self.notices.listen(&me, wants);
        }
    }

    /// One more topic of this name, or one less.
    fn count_noticed(&self, topic: &Topic, more: bool) {
        let Wants { keys, events } = wants(topic.space, &topic.name);
        let step = |n: u32, wanted: bool| match (wanted, more) {
            (false, _) => n,
            (true, true) => n + 1,
            (true, false) => n.saturating_sub(1),
        };
        let (k, e) = self.noticed.get();
        self.noticed.set((step(k, keys), step(e, events)));
    }

    /// A notification of the server's about one of the tenant's keys, in its own names: the bytes appended for it.
    pub fn notice(&self, channel: &[u8], payload: &[u8]) -> usize {
        let direct = self.topics[Space::Channel.index()].borrow().get(channel).cloned();
        let direct = direct.map_or(0, |topic| self.spread(&topic, &[b"message", channel, payload]));
        let patterns = self.topics[Space::Pattern.index()].borrow();
        let matching = patterns.values().filter(|topic| glob::matches(&topic.name, channel));
        direct + matching.map(|topic| self.spread(topic, &[b"pmessage", &topic.name, channel, payload])).sum::<usize>()
    }

    /// A PUBLISH of a client that will get the message itself: the upstream decides which comes first, message or reply. `count` is told in
    /// the place of the upstream's number, if anything.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn publish(&self, frame: &[u8], down: &Rc<Downstream>, count: Option<u64>) -> Result<(), UpstreamError> {
        if !self.feed.up() {
            return Err(UpstreamError::Lost);
        }
        down.expect(1);
        self.feed.send(|out| out.extend_from_slice(frame));
        self.awaited.borrow_mut().push_back((Instant::now(), Awaited::Published(Rc::clone(down), count)));
        Ok(())
    }

    /// Asks the upstream for what a command needs and is not there yet.
    fn prepare(&self, op: &Op) {
        let mut ask = Vec::new();
        {
            let mut topics = self.topics[op.space.index()].borrow_mut();
            for name in &op.names {
                let topic = topics.entry(Rc::clone(name)).or_insert_with(|| {
                    let topic = Rc::new(Topic {
                        space: op.space,
                        name: Rc::clone(name),
                        members: RefCell::default(),
                        pending: Cell::new(0),
                        confirmed: Cell::new(false),
                    });
                    if topic.own_upstream() {
                        ask.push(Rc::clone(name));
                    }
                    self.count_noticed(&topic, true);
                    topic
                });
                topic.pending.set(topic.pending.get() + 1);
            }
        }
        if self.feed.up() {
            self.feed.send(|out| self.ask(op.space, true, &ask, out));
            self.feed.send(|out| self.ask_wide(out));
        }
    }

    /// (UN)SUBSCRIBE to names upstream.
    fn ask(&self, space: Space, join: bool, names: &[Rc<[u8]>], out: &mut Vec<u8>) {
        let word: &[u8] = match (space, join) {
            (Space::Shard, true) => b"SSUBSCRIBE",
            (Space::Shard, false) => b"SUNSUBSCRIBE",
            (_, true) => b"SUBSCRIBE",
            (_, false) => b"UNSUBSCRIBE",
        };
        for names in names.chunks(BATCH) {
            resp::put_header(out, b'*', names.len() as u64 + 1);
            resp::put_bulk(out, word);
            for name in names {
                resp::put_header(out, b'$', (self.prefix.len() + name.len()) as u64);
                out.extend_from_slice(&self.prefix);
                out.extend_from_slice(name);
                out.extend_from_slice(b"\r\n");
            }
            self.await_(Awaited::Confirm { join, left: names.len() });
        }
    }

    /// The one upstream pattern, wanted while there are patterns.
    fn ask_wide(&self, out: &mut Vec<u8>) {
        let wanted = !self.topics[Space::Pattern.index()].borrow().is_empty();
        if wanted == self.wide.get().0 {
            return;
        }
        self.wide.set((wanted, false));
        resp::put_header(out, b'*', 2);
        resp::put_bulk(out, if wanted { b"PSUBSCRIBE" } else { b"PUNSUBSCRIBE" });
        resp::put_bulk(out, &[&glob::escape(&self.prefix)[..], b"*"].concat());
        self.await_(Awaited::Confirm { join: wanted, left: 1 });
    }

    fn await_(&self, what: Awaited) {
        self.awaited.borrow_mut().push_back((Instant::now(), what));
    }

    fn barrier(&self, what: Awaited) {
        self.feed.send(|out| out.extend_from_slice(PING));
        self.await_(what);
    }

    /// A command is done, or was refused for `error`: memberships change and the client is told.
    fn finish(&self, op: Op, error: Option<&str>) {
        let Op { sub, join, space, names, reserved } = op;
        let error = if join { self.arrive(&sub, space, &names, reserved, error) } else { None };
        if let Some(error) = error {
            sub.down.append(|out| resp::put_error(out, error.as_bytes()));
        } else if !join {
            self.part(&sub, space, &names);
        }
        sub.down.settle(1);
        sub.down.queue(&mut self.written.borrow_mut());
    }

    /// The client joins topics and is told, one by one; or why not.
    fn arrive(
        &self,
        sub: &Rc<Subscriber>,
        space: Space,
        names: &[Rc<[u8]>],
        reserved: usize,
        error: Option<&str>,
    ) -> Option<String> {
        let topics: Vec<Rc<Topic>> = {
            let topics = self.topics[space.index()].borrow();
            names.iter().filter_map(|name| topics.get(name).cloned()).collect()
        };
        topics.iter().for_each(|topic| topic.pending.set(topic.pending.get().saturating_sub(1)));
        let confirmed = |topic: &Rc<Topic>| match topic.space {
            Space::Pattern => self.wide.get().1,
            _ => topic.confirmed.get() || !topic.own_upstream(),
        };
        let error = match error {
            Some(error) => Some(error.to_owned()),
            None if topics.iter().all(confirmed) => None,
            None => Some(UpstreamError::Lost.to_line()),
        };
        let mut used = 0;
        if error.is_none() && !sub.down.gone() {
            for topic in &topics {
                if topic.members.borrow_mut().insert(sub.client.id, Rc::clone(sub)).is_none() {
                    sub.topics[space.index()].borrow_mut().push(Rc::clone(topic));
                    self.tenant.subscriptions.join(space, &topic.name);
                    used += cost(&topic.name);
                    topic.note_invalidations(sub, true);
                }
                acknowledge(sub, join_word(space), space, Some(&topic.name));
            }
            sub.show(space);
        }
        self.tenant.subscriptions.release(reserved - used);
        sub.cost.set(sub.cost.get() - (reserved - used));
        self.drop_unused(space, &topics);
        error
    }

    /// The client leaves topics and is told, one by one.
    fn part(&self, sub: &Rc<Subscriber>, space: Space, names: &[Rc<[u8]>]) {
        let mut left = Vec::new();
        for name in names {
            left.extend(self.remove(sub, space, name));
            acknowledge(sub, leave_word(space), space, Some(name));
        }
        if names.is_empty() {
            loop {
                let Some(name) = sub.topics[space.index()].borrow().last().map(|topic| Rc::clone(&topic.name)) else {
                    break;
                };
                left.extend(self.remove(sub, space, &name));
                acknowledge(sub, leave_word(space), space, Some(&name));
            }
            if left.is_empty() {
                acknowledge(sub, leave_word(space), space, None);
            }
        }
        sub.show(space);
        self.drop_unused(space, &left);
    }

    fn remove(&self, sub: &Subscriber, space: Space, name: &[u8]) -> Option<Rc<Topic>> {
        let mut topics = sub.topics[space.index()].borrow_mut();
        let at = topics.iter().rposition(|topic| *topic.name == *name)?;
        let topic = topics.swap_remove(at);
        if topics.is_empty() {
            topics.shrink_to_fit();
        }
        self.forget(sub, &topic);
        Some(topic)
    }

    fn forget(&self, sub: &Subscriber, topic: &Topic) {
        topic.members.borrow_mut().remove(&sub.client.id);
        self.tenant.subscriptions.leave(topic.space, &topic.name);
        sub.cost.set(sub.cost.get() - cost(&topic.name));
        topic.note_invalidations(sub, false);
    }

    /// The client leaves everything, untold.
    pub fn leave_all(&self, sub: &Subscriber) {
        for space in Space::ALL {
            let topics = std::mem::take(&mut *sub.topics[space.index()].borrow_mut());
            topics.iter().for_each(|topic| self.forget(sub, topic));
            sub.show(space);
            self.drop_unused(space, &topics);
        }
    }

    /// Ends upstream subscriptions that nobody has any more.
    fn drop_unused(&self, space: Space, touched: &[Rc<Topic>]) {
        let mut ended = Vec::new();
        {
            let mut topics = self.topics[space.index()].borrow_mut();
            for topic in touched.iter().filter(|t| t.pending.get() == 0 && t.members.borrow().is_empty()) {
                if topics.get(&topic.name).is_some_and(|t| Rc::ptr_eq(t, topic)) {
                    topics.remove(&topic.name);
                    self.count_noticed(topic, false);
                    if topic.own_upstream() {
                        ended.push(Rc::clone(&topic.name));
                    }
                }
            }
            if topics.is_empty() {
                topics.shrink_to_fit();
            }
        }
        self.listen();
        if self.feed.up() {
            self.feed.send(|out| self.ask(space, false, &ended, out));
            self.feed.send(|out| self.ask_wide(out));
        }
    }

    /// A reply, not a push.
    fn reply(&self, frame: &[u8]) -> Result<usize, &'static str> {
        let error = frame.strip_prefix(b"-").map(|line| line.strip_suffix(b"\r\n").unwrap_or(line));
        let next = self.awaited.borrow_mut().pop_front().map(|(_, what)| what);
        match (next, error) {
            // A SUBSCRIBE that is refused is refused as a whole.
            (Some(Awaited::Confirm { join, .. }), Some(line)) => {
                let own = own_error(frame.strip_suffix(b"\r\n").unwrap_or(frame));
                let text = own.as_deref().and_then(|own| own.strip_prefix(b"-")).unwrap_or(line);
                tracing::warn!(error = %line.escape_ascii(), "the upstream refused a subscription");
                if join {
                    *self.refusal.borrow_mut() = Some(String::from_utf8_lossy(text).into_owned());
                }
            }
            // Be the PING itself refused: what was before it has been answered.
            (Some(Awaited::Done(op)), _) => {
                let refusal = self.refusal.borrow_mut().take();
                self.finish(op, refusal.as_deref());
            }
            (Some(Awaited::Published(down, count)), _) => {
                if let Some(count) = count {
                    let own = own_error(frame.strip_suffix(b"\r\n").unwrap_or(frame));
                    down.append(|out| match (error, own) {
                        (None, _) => resp::put_header(out, b':', count),
                        (Some(_), None) => out.extend_from_slice(frame),
                        (Some(_), Some(own)) => {
                            out.extend_from_slice(&own);
                            out.extend_from_slice(b"\r\n");
                        }
                    });
                }
                down.settle(1);
                down.queue(&mut self.written.borrow_mut());
            }
            (Some(Awaited::Alive), _) => {}
            (Some(Awaited::Confirm { .. }) | None, _) => return Err("a reply that nobody waits for"),
        }
        Ok(0)
    }

    fn confirmation(&self, join: bool, space: Space, name: &[u8]) -> Result<usize, &'static str> {
        let mut awaited = self.awaited.borrow_mut();
        let Some((_, Awaited::Confirm { join: expected, left })) = awaited.front_mut() else {
            // A cluster node gives up the slot of a shard channel without being asked.
            return if join { Err("a confirmation that nobody waits for") } else { Ok(0) };
        };
        if *expected != join {
            return Err("a confirmation of another kind than what was asked for");
        }
        *left -= 1;
        if *left == 0 {
            awaited.pop_front();
        }
        drop(awaited);
        if space == Space::Pattern {
            self.wide.set((self.wide.get().0, join));
        } else if join
            && let Some(name) = name.strip_prefix(&*self.prefix)
            && let Some(topic) = self.topics[space.index()].borrow().get(name)
        {
            topic.confirmed.set(true);
        }
        Ok(0)
    }

    /// A message on a channel that clients are subscribed to by its name.
    fn direct(&self, space: Space, channel: &[u8], payload: &[u8]) -> Result<usize, &'static str> {
        let name = channel.strip_prefix(&*self.prefix).ok_or("a message outside the prefix")?;
        let topics = self.topics[space.index()].borrow();
        let Some(topic) = topics.get(name) else { return Ok(0) };
        let word: &[u8] = if space == Space::Shard { b"smessage" } else { b"message" };
        Ok(self.spread(topic, &[word, name, payload]))
    }

    /// A message on any channel of the tenant's: to those whose patterns match.
    fn by_patterns(&self, channel: &[u8], payload: &[u8]) -> Result<usize, &'static str> {
        let name = channel.strip_prefix(&*self.prefix).ok_or("a message outside the prefix")?;
        if special(name) {
            // Published by a client: no notification of the server's, whatever it looks like (isolation.md C4).
            return Ok(0);
        }
        let patterns = self.topics[Space::Pattern.index()].borrow();
        let matching = patterns.values().filter(|topic| glob::matches(&topic.name, name));
        Ok(matching.map(|topic| self.spread(topic, &[b"pmessage", &topic.name, name, payload])).sum())
    }

    /// Appends one message to the output of every member: the bytes appended.
    fn spread(&self, topic: &Topic, words: &[&[u8]]) -> usize {
        let mut message = self.message.borrow_mut();
        message.clear();
        resp::put_header(&mut message, b'*', words.len() as u64);
        words.iter().for_each(|word| resp::put_bulk(&mut message, word));
        let members = topic.members.borrow();
        let mut written = self.written.borrow_mut();
        // The two forms differ in their first byte alone.
        for (proto, kind) in [(Proto::Resp2, b'*'), (Proto::Resp3, b'>')] {
            message[0] = kind;
            for member in members.values().filter(|m| m.proto.get() == proto) {
                member.down.push(&message);
                if message.len() < LARGE {
                    member.down.queue(&mut written);
                } else {
                    member.down.flush();
                }
            }
        }
        let bytes = message.len() * members.len();
        if message.capacity() > FRAME {
            *message = Vec::new();
        }
        bytes
    }

    /// Finds out, now and then, how long what the upstream sends waits to be read.
    fn look_behind(&self) {
        let now = Instant::now();
        let waits = self.waits_since().map(|since| now - since);
        self.set_behind(waits.is_some_and(|waits| waits > BEHIND));
        if waits.is_none() && self.feed.up() && self.asked.get().is_none_or(|at| now - at > BEHIND) {
            self.asked.set(Some(now));
            self.barrier(Awaited::Alive);
        }
    }

    fn set_behind(&self, behind: bool) {
        if self.behind.replace(behind) != behind {
            self.tenant.subscriptions.set_behind(behind);
        }
    }

    /// Writes to those who were told something outside a turn of the connection's.
    fn settle_now(&self) {
        let written = std::mem::take(&mut *self.written.borrow_mut());
        written.iter().for_each(|client| client.flush());
    }

    fn push(&self, frame: &[u8]) -> Result<usize, &'static str> {
        let mut parts: [&[u8]; 4] = [&[]; 4];
        let count = split(frame, &mut parts).ok_or("a push of an unknown shape")?;
        match (parts[0], count) {
            (b"message", 3) => self.direct(Space::Channel, parts[1], parts[2]),
            (b"smessage", 3) => self.direct(Space::Shard, parts[1], parts[2]),
            (b"pmessage", 4) => self.by_patterns(parts[2], parts[3]),
            (b"subscribe", 3) => self.confirmation(true, Space::Channel, parts[1]),
            (b"psubscribe", 3) => self.confirmation(true, Space::Pattern, parts[1]),
            (b"ssubscribe", 3) => self.confirmation(true, Space::Shard, parts[1]),
            (b"unsubscribe", 3) => self.confirmation(false, Space::Channel, parts[1]),
            (b"punsubscribe", 3) => self.confirmation(false, Space::Pattern, parts[1]),
            (b"sunsubscribe", 3) => self.confirmation(false, Space::Shard, parts[1]),
            _ => Err("a push of an unknown kind"),
        }
    }
}

/// A PING as it is sent.
pub const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

impl Audience for Hub {
    fn connected(&self, out: &mut Vec<u8>) {
        for space in [Space::Channel, Space::Shard] {
            let topics = self.topics[space.index()].borrow();
            let names: Vec<_> = topics.values().filter(|t| t.own_upstream()).map(|t| Rc::clone(&t.name)).collect();
            self.ask(space, true, &names, out);
        }
        self.ask_wide(out);
        for op in self.waiting.take() {
            out.extend_from_slice(PING);
            self.await_(Awaited::Done(op));
        }
    }

    fn frame(&self, frame: &[u8]) -> Result<usize, &'static str> {
        if frame.first() == Some(&b'>') { self.push(frame) } else { self.reply(frame) }
    }

    fn too_large(&self, head: &[u8]) {
        // Longer than any of its receivers may have waiting for it.
        let mut parts: [&[u8]; 4] = [&[]; 4];
        split(head, &mut parts);
        let channel = if parts[0] == b"pmessage" { parts[2] } else { parts[1] };
        let Some(name) = channel.strip_prefix(&*self.prefix) else { return };
        let reached = |topic: &&Rc<Topic>| match topic.space {
            Space::Channel => parts[0] == b"message" && *topic.name == *name,
            Space::Shard => parts[0] == b"smessage" && *topic.name == *name,
            Space::Pattern => parts[0] == b"pmessage" && glob::matches(&topic.name, name),
        };
        for topics in &self.topics {
            for topic in topics.borrow().values().filter(reached) {
                topic.members.borrow().values().for_each(|member| member.down.abandon());
            }
        }
    }

    fn limit(&self) -> usize {
        self.shared.limits.load().output + FRAME
    }

    fn take_written(&self, into: &mut Vec<Rc<Downstream>>) {
        self.look_behind();
        into.append(&mut self.written.borrow_mut());
    }

    fn ask(&self) {
        self.barrier(Awaited::Alive);
    }

    fn waits_since(&self) -> Option<Instant> {
        self.awaited.borrow().front().map(|(since, _)| *since)
    }

    fn lost(&self, error: &UpstreamError) {
        self.wide.set((false, false));
        self.set_behind(false);
        self.refusal.take();
        for topics in &self.topics {
            topics.borrow().values().for_each(|topic| topic.confirmed.set(false));
        }
        let line = error.to_line();
        let owed = std::mem::take(&mut *self.awaited.borrow_mut());
        for (_, what) in owed {
            match what {
                Awaited::Done(op) if op.join => self.finish(op, Some(&line)),
                Awaited::Done(op) => self.finish(op, None),
                Awaited::Published(down, count) => {
                    if count.is_some() {
                        down.append(|out| resp::put_error(out, line.as_bytes()));
                    }
                    down.settle(1);
                    down.queue(&mut self.written.borrow_mut());
                }
                Awaited::Confirm { .. } | Awaited::Alive => {}
            }
        }
        self.waiting.take().into_iter().for_each(|op| self.finish(op, Some(&line)));
    }

    fn wanted(&self) -> bool {
        self.topics.iter().any(|topics| !topics.borrow().is_empty()) || !self.waiting.borrow().is_empty()
    }
}

/// The notifications that could be messages on this channel or match this pattern.
fn wants(space: Space, name: &[u8]) -> Wants {
    match space {
        Space::Channel => Wants::by_name(name),
        Space::Pattern => Wants::by_pattern(name),
        Space::Shard => Wants::default(),
    }
}

/// One acknowledgement, with the client's own count.
fn acknowledge(sub: &Subscriber, word: &str, space: Space, name: Option<&[u8]>) {
    let proto = sub.proto.get();
    let count = sub.shown(space) as u64;
    sub.down.append(|out| put_ack(out, proto, word, name, count));
}

/// The acknowledgement of an UNSUBSCRIBE by a client that was never subscribed to anything.
pub fn put_unsubscribed(out: &mut Vec<u8>, proto: Proto, space: Space, name: Option<&[u8]>) {
    put_ack(out, proto, leave_word(space), name, 0);
}

fn put_ack(out: &mut Vec<u8>, proto: Proto, word: &str, name: Option<&[u8]>, count: u64) {
    resp::put_header(out, if proto == Proto::Resp3 { b'>' } else { b'*' }, 3);
    resp::put_bulk(out, word.as_bytes());
    match name {
        Some(name) => resp::put_bulk(out, name),
        None => Value::Null.encode(proto, out),
    }
    resp::put_header(out, b':', count);
}

fn join_word(space: Space) -> &'static str {
    ["subscribe", "psubscribe", "ssubscribe"][space.index()]
}

fn leave_word(space: Space) -> &'static str {
    ["unsubscribe", "punsubscribe", "sunsubscribe"][space.index()]
}

/// The strings at the front of a push, as many as are there whole; how many elements it has. Numbers and nulls are empty.
pub fn split<'a>(frame: &'a [u8], parts: &mut [&'a [u8]; 4]) -> Option<usize> {
    let (count, mut at) = resp::reply::length(frame).ok()??;
    let count = usize::try_from(count).ok().filter(|n| (1..=4).contains(n))?;
    for part in &mut parts[..count] {
        let rest = frame.get(at..)?;
        if rest.first() == Some(&b'$') {
            let (len, body) = resp::reply::length(rest).ok()??;
            let len = usize::try_from(len).ok()?;
            *part = rest.get(body..body + len)?;
            at += body + len + 2;
        } else {
            at += memchr::memchr(b'\n', rest)? + 1;
        }
    }
    Some(count)
}
