//! AUTH and HELLO … AUTH: one path for both doors. A login is checked apart from the data path (a hash may take tens of milliseconds, the
//! upstream a round trip), failures are slowed per address, and who logs in anew leaves everything of its former tenant behind.

use std::{net::SocketAddr, sync::Arc};

use tokio::time::Instant;

use crate::{
    config::AuthMode,
    error::UpstreamError,
    local::{self, Hello, WRONG_PASSWORD},
    resp::Value,
    session::{Session, Until},
    tenant::{
        Tenant,
        password::{Outcome, PasswordId},
        throttle::Source,
    },
    upstream::control,
};

/// Logins of one connection that may be refused: with the last it is closed (isolation.md U2).
const GUESSES: u32 = 10;

/// A login to be checked.
#[derive(Debug)]
pub struct Attempt {
    user: Vec<u8>,
    password: Secret,
    /// What else a HELLO asks for.
    hello: Option<Hello>,
}

/// Bytes that never appear in a log.
struct Secret(Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Attempt {
    /// `hello`: it came with a HELLO, which takes effect only if the login does.
    pub fn new(user: &[u8], password: &[u8], hello: Option<Hello>) -> Self {
        Self { user: user.to_vec(), password: Secret(password.to_vec()), hello }
    }
}

/// What a session logged in with: when that is taken out of the settings, the session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user's name.
    pub user: Vec<u8>,
    /// Which of the user's passwords; none where the upstream checked it.
    pub password: Option<PasswordId>,
}

/// Checks a login and answers it; nothing is in flight. `false` when the connection ended meanwhile.
pub async fn run(s: &mut Session, attempt: Attempt) -> bool {
    let source = Source::new(s.client.addr.parse::<SocketAddr>().ok().map(|a| a.ip()), &attempt.user);
    let shared = Arc::clone(&s.worker.shared);
    let delay = shared.throttle.before(source, Instant::now());
    if !delay.is_zero() && !s.wait(Until::Slowed(Instant::now() + delay)).await {
        return false;
    }
    let outcome = check(s, &attempt).await;
    if s.down.alarm().killed() {
        return false;
    }
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            // Nobody knows whether the password was right: no failure, and no reason to ask its user for another.
            s.refuse(error.to_line());
            s.down.flush();
            return true;
        }
    };
    let Some((tenant, login)) = outcome else {
        shared.throttle.failed(source, Instant::now());
        tracing::info!(client = %s.client.addr, user = %attempt.user.escape_ascii(), "login refused");
        s.refuse(WRONG_PASSWORD);
        s.refused_logins += 1;
        if s.refused_logins >= GUESSES {
            s.finish(None).await;
            return false;
        }
        s.down.flush();
        return true;
    };
    shared.throttle.succeeded(source);
    let again = s.logged_in && s.tenant.id == tenant.id;
    if !again && !tenant.admit() {
        s.refuse(format!("ERR max number of clients of tenant '{}' reached", tenant.name));
        s.down.flush();
        return true;
    }
    // Whoever logs in, be it as the same user, starts without transaction, watched keys or a connection of its own.
    local::drop_state(s);
    if again {
        s.set_login(Some(login));
    } else {
        tracing::debug!(client = %s.client.addr, tenant = tenant.name, "logged in");
        s.become_tenant(tenant, Some(login));
    }
    // A reload while the login was checked has ended the sessions it had to end, without this one, which was not yet what it is now.
    if !s.worker.shared.directory.load().stands(&s.tenant, s.login().as_ref()) {
        s.become_nobody();
        s.refuse(WRONG_PASSWORD);
        s.down.flush();
        return true;
    }
    match attempt.hello {
        Some(hello) => local::greet(s, hello),
        None => s.answer(&Value::ok()),
    }
    s.down.flush();
    true
}

/// Who it is, if the login is right.
async fn check(s: &Session, attempt: &Attempt) -> Result<Option<(Arc<Tenant>, Login)>, UpstreamError> {
    let directory = s.worker.shared.directory.load_full();
    let login = |password| Login { user: attempt.user.clone(), password };
    match directory.mode {
        AuthMode::Static => match directory.credentials.login(&attempt.user, &attempt.password.0).await {
            Outcome::Accepted(id) => {
                let tenant = std::str::from_utf8(&attempt.user).ok().and_then(|name| directory.tenants.get(name));
                Ok(tenant.map(|tenant| (Arc::clone(tenant), login(Some(id)))))
            }
            Outcome::Refused => Ok(None),
        },
        AuthMode::Upstream => {
            let (Ok(user), Ok(password)) =
                (std::str::from_utf8(&attempt.user), std::str::from_utf8(&attempt.password.0))
            else {
                return Ok(None);
            };
            let site = directory.newcomers.0.clone();
            match control::try_login(&site.target, user, password).await {
                Ok(true) => {
                    let tenant = s.worker.shared.newcomer(&directory, user, password);
                    Ok(tenant.map(|tenant| (tenant, login(None))))
                }
                Ok(false) => Ok(None),
                Err(error) => {
                    tracing::warn!(upstream = %site.target, error = error.to_line(), "a login could not be checked");
                    Err(error)
                }
            }
        }
    }
}

/// RESET: as just connected. Nothing is in flight.
pub fn start_over(s: &mut Session) {
    let directory = s.worker.shared.directory.load_full();
    match directory.first(&s.listener).cloned() {
        Some(tenant) if tenant.id == s.tenant.id && s.logged_in => s.set_login(None),
        Some(tenant) if tenant.admit() => s.become_tenant(tenant, None),
        _ => s.become_nobody(),
    }
}
