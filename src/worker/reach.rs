//! One upstream as one worker reaches it: connections for the data path, and those for scoped work.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use crate::{
    error::UpstreamError,
    upstream::{Logins, Pool, Site, Target, control::Control, ticks},
};

/// Most connections for scoped work of tenants that are users of the upstream: one that is wanted takes the place of the one that has rested
/// longest.
const USERS: usize = 64;
/// One of these that is not asked for within this time is closed.
const IDLE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub struct Reach {
    /// The upstream.
    pub site: Arc<Site>,
    /// Connections for the data path.
    pub pool: Pool,
    /// The connection for scoped work, logged in as keyfence.
    own: Rc<Control>,
    /// Those of tenants that are users of the upstream.
    of_users: RefCell<Vec<OfUser>>,
}

#[derive(Debug)]
struct OfUser {
    tenant: u32,
    password: String,
    control: Rc<Control>,
    /// The tick at which it was last asked for.
    used: u32,
}

impl Reach {
    /// With no connection for scoped work yet.
    pub fn new(pool: Pool) -> Self {
        let site = Arc::clone(&pool.env().site);
        let own = Rc::new(Control::new(site.target.clone()));
        Self { site, pool, own, of_users: RefCell::default() }
    }

    /// The connection for scoped work of this tenant, which has that tenant's rights where the upstream checks its logins (isolation.md U1).
    ///
    /// # Errors
    /// When nobody may connect for it.
    pub fn control(&self, tenant: u32) -> Result<Rc<Control>, UpstreamError> {
        let now = self.pool.env().clock.now();
        let (username, password) = match &**self.site.logins.load() {
            Logins::Own | Logins::Wall => return Ok(Rc::clone(&self.own)),
            Logins::None(why) => return Err(UpstreamError::Unreachable(why.clone())),
            Logins::Users(users) => {
                let nobody = || UpstreamError::Unreachable("nobody has logged in as this tenant".into());
                users.get(&tenant).cloned().ok_or_else(nobody)?
            }
        };
        let mut known = self.of_users.borrow_mut();
        if let Some(user) = known.iter_mut().find(|user| user.tenant == tenant && user.password == password) {
            user.used = now;
            return Ok(Rc::clone(&user.control));
        }
        if known.len() >= USERS
            && let Some(oldest) = (0..known.len()).max_by_key(|&i| now.wrapping_sub(known[i].used))
        {
            known.swap_remove(oldest);
        }
        let target = Target { username, password: password.clone(), ..self.site.target.clone() };
        let control = Rc::new(Control::new(target));
        known.push(OfUser { tenant, password, control: Rc::clone(&control), used: now });
        Ok(control)
    }

    /// Now and then: closes what nobody uses.
    pub fn tidy(&self) {
        self.pool.tidy();
        let now = self.pool.env().clock.now();
        self.of_users.borrow_mut().retain(|user| now.wrapping_sub(user.used) < ticks(IDLE));
        self.pool.take_stock();
        let of_users: usize = self.of_users.borrow().iter().map(|user| user.control.open()).sum();
        self.pool.env().cells.control.set((self.own.open() + of_users) as u64);
    }
}
