//! Subscribers, what they are subscribed to, and how they are told.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use super::{hub::Hub, notices::Wants, special};
use crate::{
    clients::Client,
    downstream::Downstream,
    glob,
    resp::{self, Proto, Value},
    tenant::subscriptions::{Space, TooCostly},
};

/// Topics of one kind by name.
pub(super) type Topics = RefCell<HashMap<Rc<[u8]>, Rc<Topic>>>;

/// One client as its subscriptions know it.
#[derive(Debug)]
pub struct Subscriber {
    /// Where messages go.
    pub down: Rc<Downstream>,
    /// Its entry in the client registry, which shows its counts.
    pub(super) client: Arc<Client>,
    /// The form of its messages.
    pub proto: Cell<Proto>,
    /// What it is subscribed to.
    pub(super) topics: [Topics; 3],
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

    /// Whether a message on this channel, of [`Space::Channel`] or [`Space::Shard`], would come to it. The steps taken are subtracted from
    /// `work`.
    ///
    /// # Errors
    /// They did not suffice.
    pub fn receives(&self, space: Space, channel: &[u8], work: &mut usize) -> Result<bool, TooCostly> {
        if self.topics[space.index()].borrow().contains_key(channel) {
            return Ok(true);
        }
        if space == Space::Channel {
            for pattern in self.topics[Space::Pattern.index()].borrow().keys() {
                if glob::matches_within(pattern, channel, work).ok_or(TooCostly)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    pub(super) fn show(&self, space: Space) {
        let n = u32::try_from(self.len(space)).unwrap_or(u32::MAX);
        self.client.subscribed[space.index()].store(n, Ordering::Relaxed);
    }
}

/// Something that clients are subscribed to.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) space: Space,
    pub(super) name: Rc<[u8]>,
    /// By client id.
    pub(super) members: RefCell<HashMap<u64, Rc<Subscriber>>>,
    /// Commands under way that will add members.
    pub(super) pending: Cell<u32>,
    /// The upstream has confirmed the subscription.
    pub(super) confirmed: Cell<bool>,
}

impl Topic {
    /// Whether the upstream knows a subscription of this one's own.
    pub(super) fn own_upstream(&self) -> bool {
        self.space != Space::Pattern && !special(&self.name)
    }
}

impl Topic {
    /// Whoever redirects invalidations to this client finds out whether it listens.
    pub(super) fn note_invalidations(&self, sub: &Subscriber, listens: bool) {
        if self.space == Space::Channel && *self.name == *b"__redis__:invalidate" {
            let waiting = sub.client.change(|| sub.client.invalidations.store(listens, Ordering::Relaxed));
            // Before it is told that it does not listen any more.
            sub.down.push(&waiting);
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

/// The notifications that could be messages on this channel or match this pattern.
pub(super) fn wants(space: Space, name: &[u8]) -> Wants {
    match space {
        Space::Channel => Wants::by_name(name),
        Space::Pattern => Wants::by_pattern(name),
        Space::Shard => Wants::default(),
    }
}

/// One acknowledgement, with the client's own count.
pub(super) fn acknowledge(sub: &Subscriber, word: &str, space: Space, name: Option<&[u8]>) {
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

pub(super) fn join_word(space: Space) -> &'static str {
    ["subscribe", "psubscribe", "ssubscribe"][space.index()]
}

pub(super) fn leave_word(space: Space) -> &'static str {
    ["unsubscribe", "punsubscribe", "sunsubscribe"][space.index()]
}
