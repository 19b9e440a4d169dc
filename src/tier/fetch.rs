//! The reply of a read that missed, on its way to its client: what passes is kept, if it may be.

use std::{cell::Cell, rc::Rc, sync::Arc};

use bytes::Bytes;

use super::{Desk, Flight, Lease, Name, Outcome, store::Ticket};
use crate::resp::reply;

/// Most bytes held of a reply with several parts.
const LARGEST: usize = 16 * 1024 * 1024;

/// A key that the reply tells of.
#[derive(Debug)]
pub struct Part {
    /// The reply as it is kept.
    pub name: Name,
    /// How it is to be kept; `None`: it is kept already, and only compared.
    pub keep: Option<Keeping>,
    /// Which element of the reply is its own.
    pub at: usize,
}

/// What it takes to keep a part.
#[derive(Debug)]
pub struct Keeping {
    /// Taken before the read was sent.
    pub ticket: Ticket,
    /// What PTTL said of the key: [`UNKNOWN`] until it has.
    pub ttl: Rc<Cell<i64>>,
}

/// PTTL has not been answered, or not with a number.
pub const UNKNOWN: i64 = i64::MIN;

/// How parts stand in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// The reply is the part's.
    Whole,
    /// MGET: each element is the reply of a GET, but for null, which also stands for a value of another type.
    Elements,
    /// EXISTS: only the sum is there, but PTTL says it of each. They are kept if both say the same: that many of the parts, and of the others
    /// this many, which are kept already, are there.
    Each(u64),
}

/// See the module.
#[derive(Debug)]
pub struct Fetch {
    desk: Rc<Desk>,
    lease: Arc<Lease>,
    /// Others may wait for it.
    flight: Option<Arc<Flight>>,
    parts: Vec<Part>,
    take: Take,
    /// Milliseconds of the tier's clock before it was sent.
    sent: u64,
    /// The reply so far; none when it is too large.
    held: Option<Vec<u8>>,
}

impl Fetch {
    /// A read of one reply, which others may wait for.
    pub fn one(desk: &Rc<Desk>, lease: &Arc<Lease>, sent: u64, flight: Arc<Flight>, ttl: &Rc<Cell<i64>>) -> Self {
        let keep = Some(Keeping { ticket: flight.ticket, ttl: Rc::clone(ttl) });
        let part = Part { name: flight.name.clone(), keep, at: 0 };
        let mut fetch = Self::parts(desk, lease, sent, Take::Whole, vec![part]);
        fetch.flight = Some(flight);
        fetch
    }

    /// A read of several.
    pub fn parts(desk: &Rc<Desk>, lease: &Arc<Lease>, sent: u64, take: Take, parts: Vec<Part>) -> Self {
        let (desk, lease) = (Rc::clone(desk), Arc::clone(lease));
        Self { desk, lease, flight: None, parts, take, sent, held: Some(Vec::new()) }
    }

    /// Whether somebody other than its client waits for it.
    pub fn awaited(&self) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.awaited())
    }

    /// More of the reply.
    pub fn pass(&mut self, bytes: &[u8]) {
        let most = if self.take == Take::Whole { self.desk.tier.max_value() } else { LARGEST };
        if let Some(held) = &mut self.held {
            if held.len() + bytes.len() <= most {
                held.extend_from_slice(bytes);
            } else {
                self.held = None;
            }
        }
    }

    /// The reply is an error, which clients see as `line`: it is not kept.
    pub fn failed(mut self, line: &[u8]) {
        self.end(Outcome::Reply([line, b"\r\n"].concat().into()));
    }

    /// All of the reply has passed.
    pub fn done(mut self) {
        let Some(held) = self.held.take() else {
            self.forget();
            return self.end(Outcome::Alone);
        };
        if held.first() == Some(&b'-') {
            return self.end(Outcome::Reply(held.into()));
        }
        match self.take {
            Take::Whole => {
                let new = self.parts.iter().filter_map(|part| Some((part, part.keep.as_ref()?)));
                new.for_each(|(part, keep)| self.fill(part, keep, &held));
            }
            Take::Elements => self.fill_elements(&held),
            Take::Each(others) => self.fill_each(others, &held),
        }
        self.end(if self.flight.is_some() { Outcome::Reply(Bytes::from(held)) } else { Outcome::Alone });
    }

    fn fill(&self, part: &Part, Keeping { ticket, ttl }: &Keeping, reply: &[u8]) {
        let tier = &self.desk.tier;
        if let Some(store) = tier.store()
            && let Some(expires) = tier.expires(self.sent, ttl.get())
            && store.fill(*ticket, part.name.id(), part.name.variant(), reply, expires)
        {
            self.lease.filled(self.desk.slot);
        }
    }

    /// Its client has seen what it says and nobody here has: what is kept of it may be older.
    fn forget(&self) {
        if let Some(store) = self.desk.tier.store() {
            self.parts.iter().map(|part| part.name.id()).for_each(|id| store.invalidate(id.upstream, id.key));
        }
    }

    fn fill_each(&self, others: u64, held: &[u8]) {
        let new = || self.parts.iter().filter_map(|part| Some((part, part.keep.as_ref()?)));
        let there = new().filter(|(_, keep)| keep.ttl.get() >= -1).count() as u64;
        // A part of which PTTL said nothing is not among them, so that the sum does not hold if it is there.
        if !matches!(reply::length(held), Ok(Some((sum, _))) if u64::try_from(sum) == Ok(there + others)) {
            return self.forget();
        }
        for (part, keep) in new().filter(|(_, keep)| keep.ttl.get() >= -2) {
            self.fill(part, keep, if keep.ttl.get() == -2 { b":0\r\n" } else { b":1\r\n" });
        }
    }

    fn fill_elements(&self, held: &[u8]) {
        let Ok(Some((_, mut at))) = reply::length(held) else { return };
        let mut parts = self.parts.iter().peekable();
        for i in 0.. {
            let Some(rest) = held.get(at..).filter(|rest| !rest.is_empty()) else { return };
            let Ok((len, true)) = reply::Scanner::default().advance(rest) else { return };
            let element = &rest[..len];
            let null = matches!(element, b"$-1\r\n" | b"_\r\n");
            while let Some(part) = parts.next_if(|part| part.at == i) {
                match (&part.keep, self.desk.tier.store()) {
                    (Some(keep), _) if !null || keep.ttl.get() == -2 => self.fill(part, keep, element),
                    (None, Some(store)) => store.compare(part.name.id(), part.name.variant(), element),
                    _ => {}
                }
            }
            at += len;
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(flight) = self.flight.take() {
            self.desk.tier.flights.end(&flight, outcome);
        }
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        // What was dropped halfway has no outcome, and those who wait are told so.
        self.end(Outcome::Lost);
    }
}
