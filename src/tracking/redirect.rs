//! Invalidations for another connection of the tenant's: a listening upstream connection of the tracking session's own, which the server
//! sends them to, and which hands them to the other client, on whichever worker that lives.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::Instant;

use crate::{
    downstream::Downstream,
    error::UpstreamError,
    resp::{self, Proto},
    session::Session,
    upstream::{
        conn::tracker::{Invalid, invalid},
        feed::{Audience, Feed, Who},
    },
    worker::Shared,
};

/// Largest push in bytes.
const LIMIT: usize = 1024 * 1024;

type Ready = Box<dyn FnOnce(Result<u64, UpstreamError>)>;

/// See the module.
pub struct Redirect {
    feed: Rc<Feed>,
    shared: Arc<Shared>,
    tenant: u32,
    prefix: Rc<[u8]>,
    target: u64,
    /// The tracking client: told, in RESP3, when the other has gone.
    down: Rc<Downstream>,
    proto: Proto,
    broken: Rc<Cell<bool>>,
    /// Runs once the server has said the connection's number, or there is none.
    ready: RefCell<Option<Ready>>,
    awaited: RefCell<VecDeque<Instant>>,
    written: RefCell<Vec<Rc<Downstream>>>,
    /// The tracking session still wants it.
    held: Cell<bool>,
}

impl std::fmt::Debug for Redirect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redirect({})", self.target)
    }
}

impl Redirect {
    /// To the client `target` of the same tenant.
    pub fn new(s: &Session, target: u64, broken: Rc<Cell<bool>>) -> Rc<Self> {
        Rc::new(Self {
            feed: Rc::new(Feed::new(s.reach.pool.env(), Who::Tenant(s.tenant.id, s.own_kind()))),
            shared: Arc::clone(&s.worker.shared),
            tenant: s.tenant.id,
            prefix: Rc::clone(&s.prefix),
            target,
            down: Rc::clone(&s.down),
            proto: s.proto,
            broken,
            ready: RefCell::default(),
            awaited: RefCell::default(),
            written: RefCell::default(),
            held: Cell::new(true),
        })
    }

    /// Connects; `then` is given the number that the server has for the connection. The client is owed a reply meanwhile.
    ///
    /// # Errors
    /// When there is no connection to be had.
    pub fn open(
        self: &Rc<Self>,
        down: &Rc<Downstream>,
        then: impl FnOnce(Result<u64, UpstreamError>) + 'static,
    ) -> Result<(), UpstreamError> {
        self.feed.want(self)?;
        down.expect(1);
        let waiting = Rc::clone(down);
        *self.ready.borrow_mut() = Some(Box::new(move |outcome| {
            then(outcome);
            waiting.settle(1);
        }));
        Ok(())
    }

    /// Nobody wants it any more.
    pub fn close(&self) {
        self.held.set(false);
        self.feed.close();
    }

    /// Keys may change from now on without the other client being told: its connection ends.
    pub fn end_target(&self) {
        if let Some(client) = self.shared.clients.get(self.target)
            && client.tenant.load(Ordering::Relaxed) == self.tenant
        {
            client.alarm.kill();
        }
    }

    fn pass(&self, what: &Invalid) {
        let mut there = false;
        if let Some(client) = self.shared.clients.get(self.target) {
            client.post(self.shared.limits.load().output, |out| {
                there = client.tenant.load(Ordering::Relaxed) == self.tenant;
                if !there {
                    return;
                }
                if client.resp.load(Ordering::Relaxed) == 3 {
                    what.put_push(out);
                } else if client.invalidations.load(Ordering::Relaxed) {
                    what.put_message(out);
                }
            });
        }
        if !there && !self.broken.replace(true) && self.proto == Proto::Resp3 {
            let mut push = Vec::new();
            resp::put_header(&mut push, b'>', 2);
            resp::put_bulk(&mut push, b"tracking-redir-broken");
            resp::put_header(&mut push, b':', self.target);
            self.down.push(&push);
            self.down.queue(&mut self.written.borrow_mut());
        }
    }
}

impl Audience for Redirect {
    fn connected(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n");
        self.awaited.borrow_mut().push_back(Instant::now());
    }

    fn frame(&self, frame: &[u8]) -> Result<usize, &'static str> {
        if frame.first() == Some(&b'>') {
            if let Some(what) = invalid(frame, &self.prefix)? {
                self.pass(&what);
            }
            return Ok(0);
        }
        self.awaited.borrow_mut().pop_front().ok_or("a reply that nobody waits for")?;
        let Some(ready) = self.ready.borrow_mut().take() else { return Ok(0) };
        let line = frame.trim_ascii_end();
        let id = line.strip_prefix(b":").and_then(|n| std::str::from_utf8(n).ok()).and_then(|n| n.parse().ok());
        ready(
            id.ok_or_else(|| UpstreamError::Unreachable("the upstream does not say which connection this is".into())),
        );
        self.down.queue(&mut self.written.borrow_mut());
        Ok(0)
    }

    fn too_large(&self, _head: &[u8]) {
        self.pass(&Invalid::Everything);
    }

    fn limit(&self) -> usize {
        LIMIT
    }

    fn take_written(&self, into: &mut Vec<Rc<Downstream>>) {
        into.append(&mut self.written.borrow_mut());
    }

    fn ask(&self) {
        self.feed.send(|out| out.extend_from_slice(crate::pubsub::hub::PING));
        self.awaited.borrow_mut().push_back(Instant::now());
    }

    fn waits_since(&self) -> Option<Instant> {
        self.awaited.borrow().front().copied()
    }

    fn lost(&self, error: &UpstreamError) {
        self.awaited.borrow_mut().clear();
        if let Some(ready) = self.ready.borrow_mut().take() {
            ready(Err(error.clone()));
            self.down.queue(&mut self.written.borrow_mut());
        } else if self.held.get() {
            // Keys may have changed without anybody being told: both connections end, as they would with the server's.
            self.down.alarm().kill_when_idle();
            self.end_target();
        }
        self.held.set(false);
    }

    fn wanted(&self) -> bool {
        self.held.get()
    }
}
