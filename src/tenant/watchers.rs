//! Who watches a tenant's commands (MONITOR).

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::clients::Client;

/// The connections of one tenant that watch, on all workers.
#[derive(Debug, Default)]
pub struct Watchers {
    any: AtomicBool,
    all: Mutex<Vec<Arc<Client>>>,
}

impl Watchers {
    /// Whether there is one: all that a command costs while there is none.
    #[inline]
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// One more, unless there are `most`; `true` if it watches now.
    pub fn enter(&self, client: &Arc<Client>, most: usize) -> bool {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|c| c.id == client.id) {
            return true;
        }
        if all.len() >= most {
            return false;
        }
        all.push(Arc::clone(client));
        self.any.store(true, Ordering::Relaxed);
        true
    }

    /// One less.
    pub fn leave(&self, client: &Client) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|c| c.id != client.id);
        self.any.store(!all.is_empty(), Ordering::Relaxed);
    }

    /// A copy of the list.
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
