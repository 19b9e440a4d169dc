//! Keyspace notifications (<https://redis.io/docs/latest/develop/pubsub/keyspace-notifications/>), of the tenant's own keys.
//!
//! The server publishes them outside of any prefix, where a tenant's own user may not listen. So a worker listens once for all tenants of an
//! upstream, as keyfence itself, while anybody wants it: for keys to each such tenant's part of the names, for events to all of them. What
//! comes is a tenant's if the key carries its prefix and the database is one of its own; the key loses the prefix and the database is
//! numbered as the tenant counts. A message that a client publishes under such a name is on a channel of its tenant's and never comes here.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    rc::Rc,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    hub::{Hub, PING, split},
    subscriber::Op,
};
use crate::{
    downstream::Downstream,
    error::UpstreamError,
    glob, resp,
    upstream::{
        Env,
        feed::{Audience, Feed, Who},
    },
};

/// Largest notification in bytes: a key's name is in it.
const LIMIT: usize = 1024 * 1024;
/// Messages whose payload is a key: of all tenants.
const EVENTS: &[u8] = b"__keyevent@*__:*";

/// Which notifications are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// `__keyspace@<db>__:<key>`.
    pub keys: bool,
    /// `__keyevent@<db>__:<event>`.
    pub events: bool,
}

impl Wants {
    /// Those that a channel of this name gets.
    pub fn by_name(channel: &[u8]) -> Self {
        Self { keys: channel.starts_with(b"__keyspace@"), events: channel.starts_with(b"__keyevent@") }
    }

    /// Those that a pattern could match.
    pub fn by_pattern(pattern: &[u8]) -> Self {
        let literal = pattern.iter().position(|c| b"*?[\\".contains(c)).unwrap_or(pattern.len());
        let could = |start: &[u8]| start.starts_with(&pattern[..literal]) || pattern.starts_with(start);
        Self { keys: could(b"__keyspace@"), events: could(b"__keyevent@") }
    }

    /// Whether any are.
    pub fn any(self) -> bool {
        self.keys || self.events
    }
}

#[derive(Debug)]
enum Awaited {
    Confirm,
    /// A PONG, at which a client's command goes on to its hub.
    Then(Rc<Hub>, Op),
    Alive,
    /// As that of [`Hub::caught_up`].
    CaughtUp(oneshot::Sender<()>),
}

/// See the module.
#[derive(Debug)]
pub struct Notices {
    feed: Rc<Feed>,
    /// Who listens to its keys, by upstream pattern.
    keys: RefCell<HashMap<Vec<u8>, Rc<Hub>>>,
    /// Who listens to events, by prefix; no prefix begins with another.
    events: RefCell<BTreeMap<Vec<u8>, Rc<Hub>>>,
    awaited: RefCell<VecDeque<(Instant, Awaited)>>,
    waiting: RefCell<Vec<(Rc<Hub>, Op)>>,
    /// The upstream refused a subscription.
    refused: Cell<bool>,
    written: RefCell<Vec<Rc<Downstream>>>,
}

impl Notices {
    /// Nobody listens yet.
    pub fn new(env: &Rc<Env>) -> Self {
        Self {
            feed: Rc::new(Feed::new(env, Who::Own)),
            keys: RefCell::default(),
            events: RefCell::default(),
            awaited: RefCell::default(),
            waiting: RefCell::default(),
            refused: Cell::new(false),
            written: RefCell::default(),
        }
    }

    /// Whether it has neither listeners nor a connection.
    pub fn idle(&self) -> bool {
        !self.wanted() && self.feed.idle()
    }

    /// `hub` listens to what it wants now, and to nothing else.
    pub fn listen(self: &Rc<Self>, hub: &Rc<Hub>, wants: Wants) {
        let pattern = [b"__keyspace@*__:", &glob::escape(hub.prefix())[..], b"*"].concat();
        let mut out = Vec::new();
        let had = self.keys.borrow().contains_key(&pattern);
        if had != wants.keys {
            if wants.keys {
                self.keys.borrow_mut().insert(pattern.clone(), Rc::clone(hub));
            } else {
                self.keys.borrow_mut().remove(&pattern);
            }
            self.ask(wants.keys, &pattern, &mut out);
        }
        let before = self.events.borrow().is_empty();
        if wants.events {
            self.events.borrow_mut().insert(hub.prefix().to_vec(), Rc::clone(hub));
        } else {
            self.events.borrow_mut().remove(hub.prefix());
        }
        let after = self.events.borrow().is_empty();
        if before != after {
            self.ask(!after, EVENTS, &mut out);
        }
        if self.feed.up() {
            self.feed.send(|to| to.extend_from_slice(&out));
        } else {
            // All of it is said once there is a connection.
            self.awaited.borrow_mut().clear();
            if self.wanted() {
                let _ = self.feed.want(self);
            }
        }
    }

    /// Sends a client's command on to its hub once the upstream has confirmed all of this.
    ///
    /// # Errors
    /// When there is no connection to be had; the command is given back.
    pub fn then(self: &Rc<Self>, hub: &Rc<Hub>, op: Op) -> Result<(), (Op, UpstreamError)> {
        if let Err(error) = self.feed.want(self) {
            return Err((op, error));
        }
        if self.feed.up() {
            self.feed.send(|out| out.extend_from_slice(PING));
            self.await_(Awaited::Then(Rc::clone(hub), op));
        } else {
            self.waiting.borrow_mut().push((Rc::clone(hub), op));
        }
        Ok(())
    }

    /// As [`Hub::caught_up`].
    pub fn caught_up(&self) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        if self.feed.up() {
            self.feed.send(|out| out.extend_from_slice(PING));
            self.await_(Awaited::CaughtUp(tell));
        }
        told
    }

    fn await_(&self, what: Awaited) {
        self.awaited.borrow_mut().push_back((Instant::now(), what));
    }

    fn ask(&self, join: bool, pattern: &[u8], out: &mut Vec<u8>) {
        resp::put_header(out, b'*', 2);
        resp::put_bulk(out, if join { b"PSUBSCRIBE" } else { b"PUNSUBSCRIBE" });
        resp::put_bulk(out, pattern);
        self.await_(Awaited::Confirm);
    }

    /// `__keyspace@<db>__:<rest>` or `__keyevent@…`, upstream's numbers: whose it is, and its parts.
    fn notice(&self, pattern: &[u8], channel: &[u8], payload: &[u8]) -> Option<usize> {
        let (kind, rest) = channel.split_at_checked(11)?;
        let colon = memchr::memmem::find(rest, b"__:")?;
        let db: u32 = std::str::from_utf8(&rest[..colon]).ok()?.parse().ok()?;
        let rest = &rest[colon + 3..];
        let hub = if kind == b"__keyspace@" {
            Rc::clone(self.keys.borrow().get(pattern)?)
        } else {
            let events = self.events.borrow();
            let (_, hub) = events.range::<[u8], _>((Bound::Unbounded, Bound::Included(payload))).next_back()?;
            Rc::clone(hub)
        };
        let db = hub.own_db(db)?;
        let own = |name: &[u8]| name.strip_prefix(hub.prefix()).map(<[u8]>::to_vec);
        let (name, payload) =
            if kind == b"__keyspace@" { (own(rest)?, payload.to_vec()) } else { (rest.to_vec(), own(payload)?) };
        let channel = [kind, db.to_string().as_bytes(), b"__:", &name].concat();
        let bytes = hub.notice(&channel, &payload);
        hub.take_written(&mut self.written.borrow_mut());
        Some(bytes)
    }

    fn go_on(&self, hub: &Rc<Hub>, op: Op, error: Option<&UpstreamError>) {
        hub.go_on(op, error);
        hub.take_written(&mut self.written.borrow_mut());
    }
}

impl Audience for Notices {
    fn connected(&self, out: &mut Vec<u8>) {
        self.refused.set(false);
        let patterns: Vec<Vec<u8>> = self.keys.borrow().keys().cloned().collect();
        patterns.iter().for_each(|pattern| self.ask(true, pattern, out));
        if !self.events.borrow().is_empty() {
            self.ask(true, EVENTS, out);
        }
        for (hub, op) in self.waiting.take() {
            out.extend_from_slice(PING);
            self.await_(Awaited::Then(hub, op));
        }
    }

    fn frame(&self, frame: &[u8]) -> Result<usize, &'static str> {
        if frame.first() == Some(&b'>') {
            let mut parts: [&[u8]; 4] = [&[]; 4];
            let count = split(frame, &mut parts).ok_or("a push of an unknown shape")?;
            return match (parts[0], count) {
                // What is nobody's here is another tenant's, or a name that only looks like one.
                (b"pmessage", 4) => Ok(self.notice(parts[1], parts[2], parts[3]).unwrap_or(0)),
                (b"psubscribe" | b"punsubscribe", 3) => match self.awaited.borrow_mut().pop_front() {
                    Some((_, Awaited::Confirm)) => Ok(0),
                    _ => Err("a confirmation that nobody waits for"),
                },
                _ => Err("a push of an unknown kind"),
            };
        }
        let next = self.awaited.borrow_mut().pop_front().map(|(_, what)| what);
        match next {
            Some(Awaited::Confirm) if frame.starts_with(b"-") => {
                tracing::warn!(error = %frame.trim_ascii_end().escape_ascii(), "the upstream does not let keyfence listen to notifications");
                self.refused.set(true);
            }
            Some(Awaited::Then(hub, op)) => {
                let refused = UpstreamError::Refused(
                    "NOPERM the upstream does not let keyfence listen to keyspace notifications".into(),
                );
                self.go_on(&hub, op, self.refused.get().then_some(&refused));
            }
            Some(Awaited::CaughtUp(tell)) => drop(tell.send(())),
            Some(Awaited::Alive) => {}
            Some(Awaited::Confirm) | None => return Err("a reply that nobody waits for"),
        }
        Ok(0)
    }

    fn too_large(&self, _head: &[u8]) {
        tracing::warn!("a keyspace notification of more than {LIMIT} bytes was dropped");
    }

    fn limit(&self) -> usize {
        LIMIT
    }

    fn take_written(&self, into: &mut Vec<Rc<Downstream>>) {
        into.append(&mut self.written.borrow_mut());
    }

    fn ask(&self) {
        self.feed.send(|out| out.extend_from_slice(PING));
        self.await_(Awaited::Alive);
    }

    fn waits_since(&self) -> Option<Instant> {
        self.awaited.borrow().front().map(|(since, _)| *since)
    }

    fn lost(&self, error: &UpstreamError) {
        let awaited = std::mem::take(&mut *self.awaited.borrow_mut());
        for (_, what) in awaited {
            if let Awaited::Then(hub, op) = what {
                self.go_on(&hub, op, Some(error));
            }
        }
        for (hub, op) in self.waiting.take() {
            self.go_on(&hub, op, Some(error));
        }
    }

    fn wanted(&self) -> bool {
        !self.keys.borrow().is_empty() || !self.events.borrow().is_empty() || !self.waiting.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::Wants;

    #[test]
    fn patterns_that_could_match_notifications() {
        let wants = |keys, events| Wants { keys, events };
        for (pattern, want) in [
            (&b"*"[..], wants(true, true)),
            (b"", wants(true, true)),
            (b"__key*__:*", wants(true, true)),
            (b"__keyspace@*__:foo*", wants(true, false)),
            (b"__keyevent@0__:expired", wants(false, true)),
            (b"__keyevent@?__:*", wants(false, true)),
            (b"[_]*", wants(true, true)),
            (b"\\_*", wants(true, true)),
            (b"news*", wants(false, false)),
            (b"__keyx*", wants(false, false)),
        ] {
            assert_eq!(Wants::by_pattern(pattern), want, "{}", pattern.escape_ascii());
        }
    }
}
