//! What the upstream says to a hub: confirmations and replies in the order in which they were asked for, and messages for its clients.

use std::rc::Rc;

use tokio::time::Instant;

use super::{Awaited, BEHIND, FRAME, Hub, LARGE, PING};
use crate::{
    downstream::{Downstream, MESSAGES},
    error::UpstreamError,
    glob,
    pubsub::{special, subscriber::Topic},
    resp::{self, Proto},
    rewrite::reply::own_error,
    tenant::subscriptions::{MATCHING, Space},
    upstream::feed::Audience,
};

impl Hub {
    /// A reply, not a push.
    fn reply(&self, frame: &[u8]) -> Result<usize, &'static str> {
        let error = frame.strip_prefix(b"-").map(|line| line.strip_suffix(b"\r\n").unwrap_or(line));
        let next = self.awaited.borrow_mut().pop_front().map(|(_, what)| what);
        match (next, error) {
            // A SUBSCRIBE that is refused is refused as a whole.
            (Some(Awaited::Confirm { join, again, .. }), Some(line)) => {
                let own = own_error(frame.strip_suffix(b"\r\n").unwrap_or(frame));
                let text = own.as_deref().and_then(|own| own.strip_prefix(b"-")).unwrap_or(line);
                tracing::warn!(error = %line.escape_ascii(), "the upstream refused a subscription");
                if join && again {
                    // Those who are subscribed hear nothing: it is tried again.
                    return Err("a subscription that there are clients for was refused");
                }
                if join {
                    *self.refusal.borrow_mut() = Some(String::from_utf8_lossy(text).into_owned());
                }
            }
            // Be the PING itself refused: what was before it has been answered.
            (Some(Awaited::Done(op)), _) => {
                // It may have been of another command's names.
                let refusal = self.refusal.take().filter(|_| op.join && !self.all_confirmed(&op));
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
            (Some(Awaited::CaughtUp(tell)), _) => drop(tell.send(())),
            (Some(Awaited::Alive), _) => {}
            (Some(Awaited::Confirm { .. }) | None, _) => return Err("a reply that nobody waits for"),
        }
        Ok(0)
    }

    fn confirmation(&self, join: bool, space: Space, name: &[u8]) -> Result<usize, &'static str> {
        let mut awaited = self.awaited.borrow_mut();
        let Some((_, Awaited::Confirm { join: expected, left, .. })) = awaited.front_mut() else {
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
        Ok(self.spread_by_patterns(name, payload))
    }

    /// Appends one message to the output of every member: the bytes appended.
    pub(super) fn spread(&self, topic: &Topic, words: &[&[u8]]) -> usize {
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

    pub(super) fn set_behind(&self, behind: bool) {
        if self.behind.replace(behind) != behind {
            self.tenant.subscriptions.set_behind(behind);
        }
    }

    /// Writes to those who were told something outside a turn of the connection's.
    pub(super) fn settle_now(&self) {
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

impl Audience for Hub {
    fn connected(&self, out: &mut Vec<u8>) {
        for space in [Space::Channel, Space::Shard] {
            let topics = self.topics[space.index()].borrow();
            let names: Vec<_> = topics.values().filter(|t| t.own_upstream()).map(|t| Rc::clone(&t.name)).collect();
            self.ask(space, true, &names, true, out);
        }
        self.ask_wide(true, out);
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
        let mut work = MATCHING;
        let mut reached = |topic: &&Rc<Topic>| match topic.space {
            Space::Channel => parts[0] == b"message" && *topic.name == *name,
            Space::Shard => parts[0] == b"smessage" && *topic.name == *name,
            Space::Pattern => {
                parts[0] == b"pmessage" && {
                    // One that cannot be told in time ends as well.
                    glob::matches_within(&topic.name, name, &mut work).unwrap_or(true)
                }
            }
        };
        for topics in &self.topics {
            for topic in topics.borrow().values().filter(&mut reached) {
                topic.members.borrow().values().for_each(|member| member.down.abandon());
            }
        }
    }

    fn limit(&self) -> usize {
        self.shared.limits.load().output.min(MESSAGES) + FRAME
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
                Awaited::Confirm { .. } | Awaited::Alive | Awaited::CaughtUp(_) => {}
            }
        }
        self.waiting.take().into_iter().for_each(|op| self.finish(op, Some(&line)));
    }

    fn wanted(&self) -> bool {
        self.topics.iter().any(|topics| !topics.borrow().is_empty()) || !self.waiting.borrow().is_empty()
    }
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
