//! What a session is at the moment, and what the path of a command does with it: its connections, its tenant, its answers.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use arc_swap::Cache;
use bytes::Bytes;
use tokio::time::Instant;

use super::{FactsOf, Flow, Replies, Session, TURN};

/// How many commands over a rate one client is told so about in one turn.
const REFUSALS: u64 = 8;

use crate::{
    clients::Client,
    command::{Row, Span},
    error::UpstreamError,
    login::Login,
    metrics::{ErrorKind, access},
    monitor, pubsub,
    resp::{Value, request::Progress},
    rewrite::Namespace,
    tenant::Tenant,
    upstream::{Conn, Key, Kind, Owed, What, control::Facts},
};

impl Session {
    /// The namespace requests are rewritten into.
    pub fn namespace(&self) -> Namespace<'_> {
        Namespace { prefix: &self.prefix, db_base: self.tenant.db_base, databases: self.tenant.databases }
    }

    /// The pool its connections come from.
    pub fn key(&self) -> Key {
        Key { kind: Kind::Data, tenant: self.tenant.id, db: self.tenant.db_base + self.db, proto: self.proto }
    }

    /// Whether the reply to the command at hand is not wanted, however late it comes.
    pub fn muted(&self) -> bool {
        self.mute
    }

    /// The next command is at hand, maybe once more.
    pub fn begin_command(&mut self) {
        self.mute = !matches!(self.replies, Replies::On);
    }

    /// The command at hand is done with, but for its reply.
    pub fn end_command(&mut self) {
        if self.at_hand == self.run.0 {
            self.run.1 += 1;
        } else {
            self.count_run();
            self.run = (self.at_hand, 1);
        }
        self.paid = false;
        self.shown = false;
        self.joined = None;
        self.look = None;
        self.replies = match self.replies {
            Replies::Skip => Replies::SkipOne,
            Replies::SkipOne => Replies::On,
            other => other,
        };
    }

    /// CLIENT REPLY as it is.
    pub fn replies(&self) -> Replies {
        self.replies
    }

    /// CLIENT REPLY, from the command at hand on.
    pub fn set_replies(&mut self, mode: Replies) {
        self.replies = mode;
        self.begin_command();
    }

    /// The connection requests go to now.
    ///
    /// # Errors
    /// [`UpstreamError`] when there is none to be had.
    pub fn conn(&mut self) -> Result<Rc<Conn>, UpstreamError> {
        if let Some(own) = &self.own {
            return Ok(Rc::clone(own));
        }
        let key = self.key();
        if let Some(lane) = &self.lane
            && lane.key == key
            && !lane.dead()
            && (!lane.retired() || self.down.in_flight() > 0)
        {
            return Ok(Rc::clone(lane));
        }
        let turn = usize::try_from(self.client.id).unwrap_or_default();
        let lane = self.reach.pool.shared(key, turn)?;
        self.lane = Some(Rc::clone(&lane));
        Ok(lane)
    }

    /// The connection a script goes to: its own unless that user may read every key, else the shared one.
    ///
    /// # Errors
    /// [`UpstreamError`] when there is none to be had.
    pub fn script_conn(&mut self) -> Result<Rc<Conn>, UpstreamError> {
        let own = self.own.take_if(|own| own.key.kind != Kind::Data);
        let conn = self.conn();
        self.own = self.own.take().or(own);
        conn.and_then(|conn| if conn.dead() { Err(UpstreamError::Lost) } else { Ok(conn) })
    }

    /// Takes a dedicated connection; nothing may be in flight.
    ///
    /// # Errors
    /// [`UpstreamError`] when there is none to be had.
    pub fn pin(&mut self) -> Result<(), UpstreamError> {
        debug_assert_eq!(self.down.in_flight(), 0);
        if self.own.is_none() {
            self.own = Some(self.reach.pool.dedicated(Key { kind: self.own_kind(), ..self.key() })?);
        }
        Ok(())
    }

    /// As which user connections of its own log in: the other one may do all that the first may, and what a transaction may need besides.
    pub fn own_kind(&self) -> Kind {
        if self.reach.site.holes.load().is_some() { Kind::Sort } else { Kind::Data }
    }

    /// Takes another dedicated connection in place of the one it has, as the user who may run scripts; nothing may be in flight.
    ///
    /// # Errors
    /// [`UpstreamError`] when there is none to be had; it then has the one it had.
    pub fn pin_data(&mut self) -> Result<(), UpstreamError> {
        let data = self.reach.pool.dedicated(Key { kind: Kind::Data, ..self.key() })?;
        if let Some(old) = self.own.replace(data) {
            // With all that was queued on it.
            old.taint();
            self.reach.pool.release(old);
        }
        Ok(())
    }

    /// Gives the dedicated connection back once no state and no reply needs it.
    pub fn unpin_when_done(&mut self) {
        if self.own.is_none()
            || self.tx.is_some()
            || self.watched > 0
            || self.tracking.as_ref().is_some_and(|tracking| tracking.holds_connection())
        {
            return;
        }
        if self.few_in_flight(0)
            && let Some(own) = self.own.take()
        {
            self.reach.pool.release(own);
        }
    }

    /// What is known of the tenant's upstream.
    pub fn facts<R>(&self, read: impl FnOnce(&Facts) -> R) -> R {
        read(self.facts.borrow_mut().load())
    }

    /// Takes note of what it logged in with, where a reload finds it.
    pub fn set_login(&self, login: Option<Login>) {
        self.client.set_login(login);
    }

    /// What it logged in with.
    pub fn login(&self) -> Option<Login> {
        self.client.login()
    }

    /// Has no tenant any more, as before login; nothing is in flight and no state is left.
    pub fn become_nobody(&mut self) {
        let nobody = Arc::clone(&self.worker.shared.directory.load().nobody);
        self.become_tenant(nobody, None);
        self.logged_in = false;
        self.nobody_since = Instant::now();
    }

    /// Speaks for `tenant`, which has admitted it, from now on; nothing is in flight and no state of another tenant is left.
    pub fn become_tenant(&mut self, tenant: Arc<Tenant>, login: Option<Login>) {
        debug_assert!(self.own.is_none() && self.tx.is_none() && self.down.in_flight() == 0);
        if self.tenant.id != tenant.id {
            monitor::leave(self);
        }
        let waiting = self.client.change(|| self.client.tenant.store(tenant.id, Ordering::Relaxed));
        if self.tenant.id != tenant.id {
            // What waits names keys of the tenant it was.
            drop(waiting);
            pubsub::leave(self);
        } else {
            self.down.push(&waiting);
        }
        if self.logged_in {
            self.charge_replies(Instant::now());
            self.tenant.leave();
            if self.tenant.id != tenant.id {
                self.client.relabel(|labels| labels.name.clear());
            }
        }
        self.count_run();
        self.count_written();
        self.cells = self.worker.meter.tenant(tenant.id, &tenant.name);
        self.down.belong_to(&tenant.backlog);
        self.prefix = Rc::from(&*tenant.prefix);
        if !Arc::ptr_eq(&self.tenant.site, &tenant.site) {
            self.reach = self.worker.reach(&tenant.site);
            self.facts = RefCell::new(Cache::new(FactsOf(Arc::clone(&tenant.site))));
        }
        self.tenant = tenant;
        self.logged_in = true;
        self.set_login(login);
        self.lane = None;
        self.scripts = None;
        self.functions.take();
        self.db = 0;
        self.client.db.store(0, Ordering::Relaxed);
    }

    /// Adds the commands that were asked for since this was last done to what is counted of its tenant: several of one kind, which is what
    /// a pipeline most often holds, count as quickly as one.
    #[inline]
    pub(super) fn count_run(&mut self) {
        let (row, times) = self.run;
        if times > 0 {
            self.cells.command(row).calls.add(times);
            self.run.1 = 0;
        }
    }

    /// Adds the bytes written to the client since this was last done to what is counted of its tenant.
    pub(super) fn count_written(&mut self) {
        let written = self.down.written();
        self.cells.bytes_out.add(written - self.counted);
        self.counted = written;
    }

    /// Answers from here, in order.
    pub fn answer(&mut self, value: &Value) {
        if let Value::Error(line) = value {
            let kind = ErrorKind::of(line);
            self.cells.error(kind, 1);
            if self.worker.meter.samples(1) {
                access::write(&self.cells, self.down.peer(), self.at_hand, 0, 0, Some(kind));
            }
        }
        if !self.muted() {
            self.answer_bytes(&value.to_bytes(self.proto));
        }
    }

    /// Answers from here, in order, whatever CLIENT REPLY says.
    pub fn answer_bytes(&mut self, bytes: &[u8]) {
        self.cost += bytes.len() as u64 / 64;
        if self.down.in_flight() == 0 {
            self.down.append(|out| out.extend_from_slice(bytes));
        } else if let Some(conn) = self.own.as_ref().or(self.lane.as_ref()) {
            self.down.wait_with(bytes.len());
            conn.expect(&self.down, Owed::Local(Bytes::copy_from_slice(bytes)), false, What::NOTHING);
        }
    }

    /// Changes what decides what others post to this client; what they have posted before is appended to its output.
    pub fn change(&self, change: impl FnOnce(&Client)) {
        let waiting = self.client.change(|| change(&self.client));
        self.down.push(&waiting);
    }

    /// The command at hand took as much of this turn as so many others.
    pub fn spend(&mut self, commands: u64) {
        self.cost += commands;
    }

    /// Charges the tenant's rate with the bytes written to the client since this was last done.
    pub fn charge_replies(&mut self, now: Instant) {
        let written = self.down.written();
        // What will not be charged may not have been written yet.
        let since = written.saturating_sub(self.charged);
        self.charged = self.charged.max(written);
        self.tenant.limits.bytes.charge(since, now);
    }

    /// Refuses the command at hand, which is over a rate: a client that goes on all the same is told so only so many times in a while, and is
    /// not charged for being told.
    pub fn refuse_over_rate(&mut self, text: String) -> Flow {
        self.cost += TURN / REFUSALS;
        self.over_rate = true;
        if !self.muted() {
            self.charged += text.len() as u64 + "-\r\n".len() as u64;
        }
        self.refuse(text)
    }

    /// Refuses the command at hand: an open transaction cannot be carried out any more.
    pub fn refuse(&mut self, text: impl Into<Vec<u8>>) -> Flow {
        if let Some(tx) = &mut self.tx {
            tx.dirty = true;
        }
        self.answer(&Value::error(text));
        Flow::Next
    }

    /// The error of a tenant that may not do this, in Redis's words.
    pub fn no_permission(&mut self, row: &Row) -> Flow {
        let (name, command) = (&self.tenant.name, row.lower_name());
        self.refuse(format!("NOPERM User {name} has no permissions to run the '{command}' command"))
    }

    /// What is held, from the request at hand on, with what has been parsed of it; for `big`.
    pub(crate) fn take_partial(&mut self) -> (Vec<u8>, Vec<Span>, Progress) {
        let mut held = std::mem::take(&mut self.held);
        held.drain(..std::mem::take(&mut self.held_at));
        (held, std::mem::take(&mut self.spans), std::mem::take(&mut self.progress))
    }

    /// Gives back what [`Session::take_partial`] took and was not used.
    pub(crate) fn give_back(&mut self, mut rest: Vec<u8>) {
        // What was read ahead meanwhile came later.
        rest.extend_from_slice(&self.held[self.held_at..]);
        self.held = rest;
        self.held_at = 0;
    }
}
