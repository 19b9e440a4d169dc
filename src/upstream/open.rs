//! How many connections to one upstream are open, over all workers, and how many of them each tenant has.
//!
//! A tenant may have up to half of what the others leave: the first up to half of all, the next up to half of the rest, and so on. So nobody,
//! and no few together, can take the last (isolation.md L6).

use std::sync::{Mutex, PoisonError};

use std::collections::HashMap;

use crate::error::UpstreamError;

/// See the module.
#[derive(Debug)]
pub struct Open {
    limit: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_tenant: HashMap<u32, usize>,
}

impl Open {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Self {
        Self { limit, counts: Mutex::default() }
    }

    /// Most at once.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).all
    }

    /// A place for one of `tenant`'s; dedicated connections leave the last tenth to shared ones. [`Open::release`] gives it back.
    ///
    /// # Errors
    /// [`UpstreamError::Busy`] when there is none, or none for this tenant.
    pub(super) fn acquire(&self, tenant: u32, dedicated: bool) -> Result<(), UpstreamError> {
        let limit = if dedicated { (self.limit * 9 / 10).max(1) } else { self.limit };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.all >= limit {
            return Err(UpstreamError::Busy(format!("max_connections ({}) to the upstream are in use", self.limit)));
        }
        let own = counts.by_tenant.get(&tenant).copied().unwrap_or(0);
        let share = ((limit - (counts.all - own)) / 2).max(1);
        if own >= share {
            return Err(UpstreamError::Busy(format!(
                "{own} upstream connections of this tenant's are in use, which is its share of max_connections ({})",
                self.limit
            )));
        }
        counts.all += 1;
        counts.by_tenant.insert(tenant, own + 1);
        Ok(())
    }

    pub(super) fn release(&self, tenant: u32) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(own) = counts.by_tenant.get_mut(&tenant) {
            *own -= 1;
            if *own == 0 {
                counts.by_tenant.remove(&tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(open: &Open, tenant: u32, dedicated: bool) -> usize {
        (0..).take_while(|_| open.acquire(tenant, dedicated).is_ok()).count()
    }

    #[test]
    fn l6_each_tenant_takes_half_of_what_the_others_leave() {
        let open = Open::new(100);
        assert_eq!([1, 2, 3].map(|tenant| take_all(&open, tenant, true)), [45, 22, 11]);
        // Whoever comes later still finds a place, and those that came first can take no more.
        assert_eq!([4, 5, 1].map(|tenant| take_all(&open, tenant, true)), [6, 3, 0]);
        assert_eq!(take_all(&open, 6, false), 6);
        assert_eq!(open.count(), 93);
        (0..45).for_each(|_| open.release(1));
        assert_eq!(open.counts.lock().unwrap().by_tenant.get(&1), None);
        assert!(take_all(&open, 2, true) > 0);
    }

    #[test]
    fn the_limit_holds_however_small() {
        let open = Open::new(1);
        assert_eq!((take_all(&open, 1, true), take_all(&open, 2, false)), (1, 0));
        let open = Open::new(3);
        assert_eq!((1..=5).map(|tenant| take_all(&open, tenant, false)).collect::<Vec<_>>(), [1, 1, 1, 0, 0]);
    }
}
