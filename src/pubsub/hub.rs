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

mod hear;

pub use hear::split;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    notices::{Notices, Wants},
    subscriber::{Op, Subscriber, Topic, Topics, acknowledge, join_word, leave_word, wants},
};
use crate::{
    clients::Client,
    downstream::Downstream,
    error::UpstreamError,
    glob,
    resp::{self, Proto},
    tenant::{
        Tenant,
        subscriptions::{MATCHING, Space, cost},
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

/// What the upstream owes, in the order in which it was asked.
#[derive(Debug)]
enum Awaited {
    /// So many confirmations of a SUBSCRIBE (or UNSUBSCRIBE), `again` of one made for clients that are subscribed already.
    Confirm { join: bool, left: usize, again: bool },
    /// A PONG, at which a client's command is done.
    Done(Op),
    /// The reply to a PUBLISH, in the place of whose number this one is told; `None`: nothing is told.
    Published(Rc<Downstream>, Option<u64>),
    /// A PONG, as a sign of life.
    Alive,
    /// A PONG, before which all has come that was published by then; its sender goes with it.
    CaughtUp(oneshot::Sender<()>),
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

    /// Comes to its end, with whatever result, when all that has been published by now is in its clients' outputs, or nothing more can come.
    pub fn caught_up(&self) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        if self.feed.up() {
            self.barrier(Awaited::CaughtUp(tell));
        }
        told
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

    /// A notification of the server's about one of the tenant's keys, in its own names: the bytes appended for it, and steps of matching.
    pub fn notice(&self, channel: &[u8], payload: &[u8]) -> usize {
        let direct = self.topics[Space::Channel.index()].borrow().get(channel).cloned();
        let direct = direct.map_or(0, |topic| self.spread(&topic, &[b"message", channel, payload]));
        direct + self.spread_by_patterns(channel, payload)
    }

    /// A message to those whose patterns match its channel: the bytes appended for it, and steps of matching.
    fn spread_by_patterns(&self, channel: &[u8], payload: &[u8]) -> usize {
        let mut work = MATCHING;
        let mut bytes = 0;
        for topic in self.topics[Space::Pattern.index()].borrow().values() {
            match glob::matches_within(&topic.name, channel, &mut work) {
                Some(true) => bytes += self.spread(topic, &[b"pmessage", &topic.name, channel, payload]),
                Some(false) => {}
                None => {
                    tracing::warn!(
                        tenant = %self.tenant.name,
                        channel_bytes = channel.len(),
                        "a message did not reach all patterns: with so long a name they take too long to match"
                    );
                    break;
                }
            }
        }
        bytes + MATCHING - work
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
            self.feed.send(|out| self.ask(op.space, true, &ask, false, out));
            self.feed.send(|out| self.ask_wide(false, out));
        }
    }

    /// (UN)SUBSCRIBE to names upstream.
    fn ask(&self, space: Space, join: bool, names: &[Rc<[u8]>], again: bool, out: &mut Vec<u8>) {
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
            self.await_(Awaited::Confirm { join, left: names.len(), again });
        }
    }

    /// The one upstream pattern, wanted while there are patterns.
    fn ask_wide(&self, again: bool, out: &mut Vec<u8>) {
        let wanted = !self.topics[Space::Pattern.index()].borrow().is_empty();
        if wanted == self.wide.get().0 {
            return;
        }
        self.wide.set((wanted, false));
        resp::put_header(out, b'*', 2);
        resp::put_bulk(out, if wanted { b"PSUBSCRIBE" } else { b"PUNSUBSCRIBE" });
        resp::put_bulk(out, &[&glob::escape(&self.prefix)[..], b"*"].concat());
        self.await_(Awaited::Confirm { join: wanted, left: 1, again });
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

    fn confirmed(&self, topic: &Topic) -> bool {
        match topic.space {
            Space::Pattern => self.wide.get().1,
            _ => topic.confirmed.get() || !topic.own_upstream(),
        }
    }

    /// Whether the upstream has confirmed all that a command is about.
    fn all_confirmed(&self, op: &Op) -> bool {
        let topics = self.topics[op.space.index()].borrow();
        op.names.iter().filter_map(|name| topics.get(name)).all(|topic| self.confirmed(topic))
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
        let error = match error {
            Some(error) => Some(error.to_owned()),
            None if topics.iter().all(|topic| self.confirmed(topic)) => None,
            None => Some(UpstreamError::Lost.to_line()),
        };
        let mut used = 0;
        if error.is_none() && !sub.down.gone() {
            for topic in &topics {
                if topic.members.borrow_mut().insert(sub.client.id, Rc::clone(sub)).is_none() {
                    sub.topics[space.index()].borrow_mut().insert(Rc::clone(&topic.name), Rc::clone(topic));
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
            let all: Vec<_> = sub.topics[space.index()].borrow().keys().cloned().collect();
            for name in &all {
                left.extend(self.remove(sub, space, name));
                acknowledge(sub, leave_word(space), space, Some(name));
            }
            if left.is_empty() {
                acknowledge(sub, leave_word(space), space, None);
            }
        }
        sub.show(space);
        self.drop_unused(space, &left);
    }

    fn remove(&self, sub: &Subscriber, space: Space, name: &[u8]) -> Option<Rc<Topic>> {
        let topic = {
            let mut topics = sub.topics[space.index()].borrow_mut();
            let topic = topics.remove(name)?;
            if topics.is_empty() {
                topics.shrink_to_fit();
            }
            topic
        };
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
            let topics: Vec<Rc<Topic>> = topics.into_values().collect();
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
            self.feed.send(|out| self.ask(space, false, &ended, false, out));
            self.feed.send(|out| self.ask_wide(false, out));
        }
    }
}

/// A PING as it is sent.
pub const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
