//! Reads on their way: who misses the same reply meanwhile waits for the one that was sent, on whatever worker it is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{Name, store::Ticket};

/// How many parts the table of flights has, so that workers seldom wait for one another.
const SHARDS: usize = 16;

/// What came of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This reply, for all who wait; it may be an error.
    Reply(Bytes),
    /// A reply too large to be shared: each has to ask for itself.
    Alone,
    /// None: the connection broke.
    Lost,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    wakers: Vec<Waker>,
}

/// One read.
#[derive(Debug)]
pub struct Flight {
    /// Of which reply.
    pub name: Name,
    /// As long as it holds the read is as new as one that were sent now.
    pub ticket: Ticket,
    state: Mutex<State>,
}

impl Flight {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came of it, if that is known.
    pub fn outcome(&self) -> Option<Outcome> {
        self.lock().outcome.clone()
    }

    /// Ready once that is known.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.outcome.is_some() {
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether anybody has waited for it.
    pub fn awaited(&self) -> bool {
        !self.lock().wakers.is_empty()
    }

    fn end(&self, outcome: Outcome) {
        let mut state = self.lock();
        state.outcome.get_or_insert(outcome);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// On cache lines of its own: who is at one disturbs neither who is at another nor who reads what the tier keeps.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<HashMap<Vec<u8>, Arc<Flight>>>);

/// All of them, by the names of replies.
#[derive(Debug, Default)]
pub struct Flights([Shard; SHARDS]);

impl Flights {
    fn shard(&self, name: &Name) -> MutexGuard<'_, HashMap<Vec<u8>, Arc<Flight>>> {
        let sum = name.bytes().iter().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        self.0[sum % SHARDS].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The read of this reply that is on its way.
    pub fn find(&self, name: &Name) -> Option<Arc<Flight>> {
        self.shard(name).get(name.bytes()).cloned()
    }

    /// A read is about to be sent; it takes the place of one that is too old for others to join.
    pub fn begin(&self, name: Name, ticket: Ticket) -> Arc<Flight> {
        let key = name.bytes().to_vec();
        let flight = Arc::new(Flight { name, ticket, state: Mutex::default() });
        self.shard(&flight.name).insert(key, Arc::clone(&flight));
        flight
    }

    /// It is over: all who wait are told.
    pub fn end(&self, flight: &Arc<Flight>, outcome: Outcome) {
        let mut shard = self.shard(&flight.name);
        if shard.get(flight.name.bytes()).is_some_and(|known| Arc::ptr_eq(known, flight)) {
            shard.remove(flight.name.bytes());
        }
        drop(shard);
        flight.end(outcome);
    }
}
