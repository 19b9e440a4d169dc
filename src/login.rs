//! AUTH and HELLO … AUTH: one path for both doors. A login is checked apart from the data path (a hash may take tens of milliseconds, the
//! upstream a round trip), failures are slowed per address, and who logs in anew leaves everything of its former tenant behind.

use std::{cell::Cell, future::poll_fn, net::SocketAddr, rc::Rc, sync::Arc, task::Poll, time::Duration};

use tokio::time::{Instant, sleep, timeout};

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
    worker::Shared,
};

/// Logins of one connection that may be refused: with the last it is closed (isolation.md U2).
const GUESSES: u32 = 10;

/// How long a login waits for its turn among others from its source before it is told to come again.
const TURN_WITHIN: Duration = Duration::from_secs(10);

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
pub enum Login {
    /// As this user, with one of the user's passwords; none where the upstream checked it.
    User(Vec<u8>, Option<PasswordId>),
    /// By this name of its TLS connection's.
    Identity(String),
}

/// Who somebody turned out to be.
type Proven = Option<(Arc<Tenant>, Login)>;

/// Checks a login and answers it; nothing is in flight. `false` when the connection ended meanwhile.
pub async fn run(s: &mut Session, attempt: Attempt) -> bool {
    let user = attempt.user.clone();
    let hello = attempt.hello;
    let source = Source::new(s.client.addr.parse::<SocketAddr>().ok().map(|a| a.ip()), &user);
    let proof = prove(Arc::clone(&s.worker.shared), source, user.clone(), attempt.password);
    let Some(outcome) = wait_for(s, proof).await else { return false };
    s.worker.shared.metrics.login(match &outcome {
        Ok(Some(_)) => 0,
        Ok(None) => 1,
        Err(_) => 2,
    });
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
        tracing::info!(client = %s.client.addr, user = %user.escape_ascii(), "login refused");
        s.refuse(WRONG_PASSWORD);
        s.refused_logins += 1;
        if s.refused_logins >= GUESSES {
            s.finish(None).await;
            return false;
        }
        s.down.flush();
        return true;
    };
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
    if !s.worker.shared.stands(s.tenant.id, s.login().as_ref()) {
        s.become_nobody();
        s.refuse(WRONG_PASSWORD);
        s.down.flush();
        return true;
    }
    match hello {
        Some(hello) => local::greet(s, hello),
        None => s.answer(&Value::ok()),
    }
    s.down.flush();
    true
}

/// The outcome of `proof`, which goes on apart from the session if it takes a while; `None`, and the proof is given up, when the client leaves.
async fn wait_for<T: 'static>(s: &mut Session, proof: impl Future<Output = T> + 'static) -> Option<T> {
    let mut proof = Box::pin(proof);
    let at_once = poll_fn(|cx| {
        Poll::Ready(match proof.as_mut().poll(cx) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        })
    });
    if let Some(outcome) = at_once.await {
        return Some(outcome);
    }
    let done = Rc::new(Cell::new(None));
    let (result, down) = (Rc::clone(&done), Rc::clone(&s.down));
    s.down.expect(1);
    let proving = tokio::task::spawn_local(async move {
        result.set(Some(proof.await));
        down.settle(1);
        down.alarm().ring();
    });
    if !s.wait(Until::Proven).await {
        proving.abort();
        return None;
    }
    done.take()
}

/// Looks at a login when its turn has come: few from one source at once, each after the delay that the failures before it have earned.
async fn prove(shared: Arc<Shared>, source: Source, user: Vec<u8>, password: Secret) -> Result<Proven, UpstreamError> {
    // A crowd of guesses as the same user from the same address must not hold up the one who knows the password for longer than this.
    let crowded = |_| UpstreamError::Busy("too many logins as this user from this address are being looked at".into());
    let _turn = timeout(TURN_WITHIN, shared.throttle.turn(source)).await.map_err(crowded)?;
    let delay = shared.throttle.before(source, Instant::now());
    if !delay.is_zero() {
        sleep(delay).await;
    }
    let outcome = check(&shared, &user, &password.0).await?;
    match outcome {
        Some(_) => shared.throttle.succeeded(source),
        None => shared.throttle.failed(source, Instant::now()),
    }
    Ok(outcome)
}

/// Who it is, if the login is right.
async fn check(shared: &Shared, user: &[u8], password: &[u8]) -> Result<Proven, UpstreamError> {
    let directory = shared.directory.load_full();
    let login = |password| Login::User(user.to_vec(), password);
    match directory.mode {
        AuthMode::Static => match directory.credentials.login(user, password).await {
            Outcome::Accepted(id) => {
                let tenant = std::str::from_utf8(user).ok().and_then(|name| directory.tenants.get(name));
                Ok(tenant.map(|tenant| (Arc::clone(tenant), login(Some(id)))))
            }
            Outcome::Refused => Ok(None),
        },
        AuthMode::Upstream => {
            let (Ok(name), Ok(password)) = (std::str::from_utf8(user), std::str::from_utf8(password)) else {
                return Ok(None);
            };
            let site = Arc::clone(&directory.newcomers.site);
            match control::try_login(&site, name, password).await {
                Ok(true) => {
                    let tenant = directory.newcomer(name, password);
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
    match directory.first(&s.listener, s.names.believed(&s.worker.shared)) {
        Some((tenant, login)) if tenant.id == s.tenant.id && s.logged_in => s.set_login(login),
        Some((tenant, login)) if tenant.admit() => s.become_tenant(Arc::clone(tenant), login),
        _ => s.become_nobody(),
    }
    end_if_reloaded(s);
}

/// Ends a session that became `s.tenant` by a directory that a reload has replaced meanwhile: the reload did not find it as what it is now.
pub fn end_if_reloaded(s: &Session) {
    let login = s.login();
    let doubtful = matches!(login, Some(Login::Identity(_))) && s.names.believed(&s.worker.shared).is_empty();
    if s.logged_in && (doubtful || !s.worker.shared.stands(s.tenant.id, login.as_ref())) {
        s.down.alarm().kill();
    }
}
