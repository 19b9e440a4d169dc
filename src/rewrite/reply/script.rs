//! The reply of a script: its values are the script's own and pass as they come; an error text names the script by the SHA1 its client knows, and
//! what the reply says about the upstream's script cache is noted.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashSet},
    fmt,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::own_error;

/// SHA1 of a script, as 40 hexadecimal digits in lower case.
pub type Sha = [u8; 40];

/// The scripts an upstream connection is known to find in the upstream's cache.
pub type Loaded = Rc<RefCell<HashSet<Sha>>>;

/// Most scripts remembered of one connection.
const LOADED: usize = 4096;

/// The scripts of one tenant that were sent and may be running, see [`Flight`].
#[derive(Debug, Default)]
pub struct Counters {
    flying: Mutex<Flying>,
    /// Never answered, their connection having ended: they may still be running, until the upstream is seen to run nothing.
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Flying {
    /// Number of the next one.
    next: u64,
    numbers: BTreeSet<u64>,
}

impl Counters {
    fn flying(&self) -> MutexGuard<'_, Flying> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that those sent so far are below, and those to come are not.
    pub fn mark(&self) -> u64 {
        self.flying().next
    }

    /// Whether one sent before `mark` was taken is not answered yet.
    pub fn flies(&self, mark: u64) -> bool {
        self.flying().numbers.first().is_some_and(|oldest| *oldest < mark)
    }

    /// How many were lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// So many of those that were lost have ended.
    pub fn ended(&self, count: u64) {
        let _ = self.lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lost| Some(lost.saturating_sub(count)));
    }

    /// Whether any may be running.
    pub fn any(&self) -> bool {
        self.lost() > 0 || self.flies(u64::MAX)
    }
}

/// One script, or one transaction with scripts, on its way.
#[derive(Debug)]
pub struct Flight {
    counters: Arc<Counters>,
    number: u64,
    answered: bool,
}

impl Flight {
    /// It is being sent.
    pub fn begin(counters: &Arc<Counters>) -> Self {
        let mut flying = counters.flying();
        let number = flying.next;
        flying.next += 1;
        flying.numbers.insert(number);
        drop(flying);
        Self { counters: Arc::clone(counters), number, answered: false }
    }

    /// Its reply has begun to come, so that it has ended: the server sends nothing of it before.
    pub fn land(mut self) {
        self.answered = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Lost before it flies no more: whoever looks at both finds it in one of them.
        if !self.answered {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.counters.flying().numbers.remove(&self.number);
    }
}

/// What is needed to pass on the reply of a script.
#[derive(Clone)]
pub struct Script {
    /// Its SHA1 upstream.
    pub ours: Sha,
    /// Its SHA1 as its client knows it.
    pub theirs: Sha,
    /// The tenant's name, in place of the upstream's user.
    pub tenant: Arc<str>,
    /// Set once the upstream has compiled it.
    pub compiled: Arc<AtomicBool>,
    /// Of the connection it was sent on.
    pub loaded: Loaded,
    /// When the upstream does not know it: says so here and passes nothing on, for it will be sent again.
    pub missing: Option<Rc<Cell<bool>>>,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Script({})", self.theirs.escape_ascii())
    }
}

impl PartialEq for Script {
    fn eq(&self, other: &Self) -> bool {
        self.ours == other.ours && self.theirs == other.theirs
    }
}

/// What servers say to an EVALSHA of a script they do not know.
const MISSING: [&[u8]; 2] = [b"-NOSCRIPT No matching script. Please use EVAL.", b"-NOSCRIPT No matching script."];

/// Errors that are told before a script is compiled, or because it could not be; a script may use the same words, and is then taken for
/// one that was not compiled, which costs its next EVALSHA a NOSCRIPT.
const BEFORE: &[&[u8]] = &[
    b"-ERR Error compiling script",
    b"-ERR Invalid script shebang",
    b"-ERR Unexpected ",
    b"-ERR Unknown ",
    b"-ERR Number of keys",
    b"-ERR value is not an integer",
    b"-ERR wrong number",
    b"-ERR Could not find scripting engine",
    b"-BUSY ",
    b"-LOADING",
    b"-MASTERDOWN",
    b"-NOAUTH",
    b"-NOPERM",
    b"-CLUSTERDOWN",
    b"-MOVED ",
];

/// Errors that [`own_error`] has something to say of, whoever they are from.
const OTHERS: &[&[u8]] = &[b"-ERR unknown command", b"-ERR Unknown command", b"-MOVED ", b"-ASK ", b"-REDIRECT "];

impl Script {
    /// A reply begins that is no error: the upstream has the script.
    pub(super) fn ran(&self) {
        self.compiled.store(true, Ordering::Relaxed);
        let mut loaded = self.loaded.borrow_mut();
        if loaded.len() >= LOADED {
            loaded.clear();
        }
        loaded.insert(self.ours);
    }

    /// What of the error `line`, which begins with `-` and has no CRLF, is passed on; `None`: nothing.
    pub(super) fn error(&self, line: &[u8]) -> Option<Vec<u8>> {
        // The server's own words: a script may have a NOSCRIPT of its own, and must not run twice for it. Others on this connection may have
        // been told before.
        if MISSING.contains(&line) {
            self.loaded.borrow_mut().remove(&self.ours);
            if let Some(missing) = &self.missing {
                missing.set(true);
                return None;
            }
        }
        if let Some(text) = of_the_upstream(line) {
            return Some(text);
        }
        let mark = [b" script: ", &self.ours[..]].concat();
        let mut text = line.to_vec();
        match memchr::memmem::rfind(&text, &mark) {
            Some(at) => {
                self.ran();
                text[at + mark.len() - self.theirs.len()..at + mark.len()].copy_from_slice(&self.theirs);
            }
            None if !BEFORE.iter().any(|begin| line.starts_with(begin)) && !line.starts_with(b"-NOSCRIPT") => {
                self.ran();
            }
            None => {}
        }
        name_tenant(&mut text, &self.tenant);
        Some(text)
    }
}

/// What is told in place of an error that is of the upstream's own affairs, and not the script's.
pub(super) fn of_the_upstream(line: &[u8]) -> Option<Vec<u8>> {
    let others = OTHERS.iter().any(|begin| line.starts_with(begin));
    others.then(|| own_error(line).map_or_else(|| line.to_vec(), Cow::into_owned))
}

/// "ACL failure in script: User keyfence-… has no permissions …", which later servers say, in the tenant's name.
pub(super) fn name_tenant(text: &mut Vec<u8>, tenant: &str) {
    const USER: &[u8] = b"User keyfence-";
    if let Some(at) = memchr::memmem::find(text, USER) {
        let name = at + b"User ".len();
        let end = text[name..].iter().position(|c| *c == b' ').map_or(text.len(), |n| name + n);
        text.splice(name..end, tenant.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(missing: Option<Rc<Cell<bool>>>) -> Script {
        Script {
            ours: [b'a'; 40],
            theirs: [b'b'; 40],
            tenant: "acme".into(),
            compiled: Arc::default(),
            loaded: Loaded::default(),
            missing,
        }
    }

    fn said(script: &Script, line: &str) -> String {
        String::from_utf8(script.error(line.as_bytes()).expect("a line")).expect("text")
    }

    #[test]
    fn an_error_names_the_script_as_its_client_knows_it() {
        let (ours, theirs) = ("a".repeat(40), "b".repeat(40));
        let script = script(None);
        assert_eq!(
            said(&script, &format!("-WRONGTYPE x script: {ours}, on @user_script:1.")),
            format!("-WRONGTYPE x script: {theirs}, on @user_script:1.")
        );
        assert!(script.compiled.load(Ordering::Relaxed));
        // Only where the server puts it.
        let text = format!("-MINE {ours} script: {ours}, on @user_script:1.");
        assert_eq!(said(&script, &text), format!("-MINE {ours} script: {theirs}, on @user_script:1."));
    }

    #[test]
    fn r5_the_upstreams_user_is_nobodys_business() {
        let line =
            "-ERR ACL failure in script: User keyfence-1f-00-data-3-acme has no permissions to run the 'scan' command";
        assert_eq!(
            said(&script(None), line),
            "-ERR ACL failure in script: User acme has no permissions to run the 'scan' command"
        );
        assert_eq!(
            said(&script(None), "-ERR unknown command 'EVAL_RO', with args beginning with: 'x' 'a:k' "),
            "-ERR unknown command 'EVAL_RO'"
        );
    }

    #[test]
    fn what_was_not_compiled_is_not_taken_for_compiled() {
        for line in
            ["-ERR Error compiling script (new function): x", "-BUSY Redis is busy", "-NOSCRIPT No", "-LOADING x"]
        {
            let script = script(None);
            script.error(line.as_bytes());
            assert!(!script.compiled.load(Ordering::Relaxed) && script.loaded.borrow().is_empty(), "{line}");
        }
    }

    #[test]
    fn a_script_that_is_missing_is_told_to_whom_it_concerns() {
        let missing = Rc::<Cell<bool>>::default();
        let script = script(Some(Rc::clone(&missing)));
        script.ran();
        assert_eq!(script.error(b"-NOSCRIPT No matching script. Please use EVAL."), None);
        assert!(missing.get() && script.loaded.borrow().is_empty());
        // Whoever else waits on the same connection is told, too.
        missing.set(false);
        assert_eq!(script.error(MISSING[0]), None);
        assert!(missing.get());
        // A script that says so itself is not sent again.
        script.ran();
        for own in ["-NOSCRIPT my own words", "-NOSCRIPT No matching script. Please use EVAL. Mine."] {
            assert!(script.error(own.as_bytes()).is_some());
        }
    }

    #[test]
    fn flights_are_known_until_they_land() {
        let counters = Arc::<Counters>::default();
        let first = Flight::begin(&counters);
        let mark = counters.mark();
        let later = Flight::begin(&counters);
        // That one sent later has been answered says nothing of those before it.
        later.land();
        assert!(counters.flies(mark) && !counters.flies(0) && counters.any());
        first.land();
        assert!(!counters.flies(mark) && !counters.any());
        drop(Flight::begin(&counters));
        assert!(counters.lost() == 1 && !counters.flies(u64::MAX) && counters.any());
        counters.ended(1);
        assert!(!counters.any());
    }
}
