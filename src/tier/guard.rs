//! A write on its way, as the tier sees it: kept with the one who waits for its reply, and over with it.
//!
//! What may outlast `socket_timeout` (what blocks, scripts) has one whether or not its tenant has a tier, or the process a store: either may
//! come to be by a reload while it waits. Other writes have been answered, or their connection closed, before a new [`Lease`] begins.

use std::{rc::Rc, sync::Arc};

use super::{Desk, Lease, store::Mark};

/// See the module. Dropped when the reply has been received, before anybody is told of it, or when the connection is gone.
#[derive(Debug)]
pub struct Guard {
    desk: Rc<Desk>,
    what: What,
}

#[derive(Debug)]
enum What {
    Key(Mark),
    Keys(Box<[Mark]>),
    /// Keys that are dropped when it is over.
    Late(u16, Vec<Vec<u8>>),
    /// All of a tenant.
    All(Arc<Lease>),
}

impl Guard {
    /// Marks one key.
    pub fn key(desk: &Rc<Desk>, upstream: u16, key: &[u8]) -> Option<Self> {
        let mark = desk.tier.store()?.mark(upstream, key);
        Some(Self { desk: Rc::clone(desk), what: What::Key(mark) })
    }

    /// Marks several keys.
    pub fn keys<'a>(desk: &Rc<Desk>, upstream: u16, keys: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let store = desk.tier.store()?;
        let marks = keys.map(|key| store.mark(upstream, key)).collect();
        Some(Self { desk: Rc::clone(desk), what: What::Keys(marks) })
    }

    /// Drops what is kept of these keys once it is over: for what may take as long as it likes.
    pub fn late(desk: &Rc<Desk>, upstream: u16, keys: Vec<Vec<u8>>) -> Self {
        Self { desk: Rc::clone(desk), what: What::Late(upstream, keys) }
    }

    /// Keeps everything of a tenant from being served.
    pub fn all(desk: &Rc<Desk>, lease: &Arc<Lease>) -> Self {
        lease.hold();
        Self { desk: Rc::clone(desk), what: What::All(Arc::clone(lease)) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let What::All(lease) = &self.what {
            return lease.release_later();
        }
        let Some(store) = self.desk.tier.store() else { return };
        match &self.what {
            What::Key(mark) => store.unmark(*mark),
            What::Keys(marks) => marks.iter().for_each(|mark| store.unmark(*mark)),
            What::Late(upstream, keys) => keys.iter().for_each(|key| store.invalidate(*upstream, key)),
            What::All(_) => {}
        }
    }
}
