//! Passwords: what the settings hold of them, and whether what a client sends is one of them.
//!
//! ```text
//! given ─► SHA-256 ─► digests of the user, and hashes known to fit ─► accepted
//!                          └─ no ─► argon2, off the worker's thread ─► accepted, and known from now on
//! ```
//!
//! A refusal costs the same for a user that exists and one that does not: as many runs of argon2 as the user with the most of them has,
//! with the dearest parameters for those that are missing (isolation.md U3). Comparison is constant-time (U4).

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, Version,
    password_hash::phc::{Ident, PasswordHash},
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;

/// Most memory one run of argon2 may take, in KiB, and most passes over it: a hash in the settings is not to stop the process.
const MAX_KIB: u32 = 1 << 20;
const MAX_PASSES: u32 = 64;
const MAX_LANES: u32 = 64;
/// Most pairs of hash and password known to fit; over it all are forgotten, which costs one run of argon2 each.
const KNOWN: usize = 65_536;

type Digest = [u8; 32];

fn sha256(parts: &[&[u8]]) -> Digest {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// One password of the settings: plain text, of which only a digest is kept, or a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct Password {
    kind: Kind,
    id: PasswordId,
}

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    Sha256 { digest: Digest, plain: bool },
    Argon2(Arc<Slow>),
}

/// An argon2id hash, taken apart.
#[derive(PartialEq, Eq)]
struct Slow {
    version: Version,
    params: Params,
    salt: Vec<u8>,
    output: Vec<u8>,
}

/// Tells one password of the settings from another; the same before and after a reload. A session keeps it, so that it can be ended when
/// its password is taken out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PasswordId(Digest);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for PasswordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Slow {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("an argon2 hash that cannot be read{why}; keyfence hash-password prints a good one");
        let hash = PasswordHash::new(text).map_err(|_| wrong(""))?;
        if hash.algorithm != Ident::new_unwrap("argon2id") {
            return Err(wrong(": only argon2id is known"));
        }
        let params = Params::try_from(&hash).map_err(|_| wrong(": its parameters"))?;
        if params.m_cost() > MAX_KIB || params.t_cost() > MAX_PASSES || params.p_cost() > MAX_LANES {
            return Err(wrong(": its parameters are past 1 GiB, 64 passes or 64 lanes"));
        }
        // Without one, some take it for 16 and others for 19.
        let version = hash.version.and_then(|v| Version::try_from(v).ok()).ok_or_else(|| wrong(": its version"))?;
        let (Some(salt), Some(output)) = (hash.salt, hash.hash) else {
            return Err(wrong(": it has no salt or no hash"));
        };
        Ok(Self { version, params, salt: salt.to_vec(), output: output.as_bytes().to_vec() })
    }

    /// Tens of milliseconds.
    fn verify(&self, given: &[u8]) -> bool {
        #[cfg(test)]
        tests::RAN.with(|ran| ran.set(ran.get() + 1));
        let mut output = vec![0; self.output.len()];
        Argon2::new(Algorithm::Argon2id, self.version, self.params.clone())
            .hash_password_into(given, &self.salt, &mut output)
            .is_ok()
            && bool::from(output.ct_eq(&self.output))
    }

    /// The same work for a hash that nothing fits.
    fn dummy(&self) -> Self {
        let mut output = vec![0; self.output.len()];
        fill(&mut output);
        Self { version: self.version, params: self.params.clone(), salt: self.salt.clone(), output }
    }

    fn cost(&self) -> u64 {
        u64::from(self.params.m_cost()) * u64::from(self.params.t_cost())
    }
}

/// Without random bytes there is nothing to serve safely, and no system we run on lacks them.
fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).unwrap_or_else(|error| unreachable!("the system gives random bytes: {error}"));
}

impl Password {
    /// Reads a password as the settings hold it: `sha256:` and 64 hexadecimal digits, or `#` and those as Redis writes it, or an argon2id
    /// hash `$argon2id$…`; anything else is the password itself. The error is a sentence that does not repeat it.
    ///
    /// # Errors
    /// What looks like a hash and is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let kind = if let Some(digits) = text.strip_prefix("sha256:") {
            let digest = unhex(digits).ok_or("sha256: stands before 64 hexadecimal digits")?;
            Kind::Sha256 { digest, plain: false }
        } else if let Some(digest) = text.strip_prefix('#').and_then(unhex) {
            Kind::Sha256 { digest, plain: false }
        } else if is_phc(text) {
            if !text.starts_with("$argon2") {
                return Err("a hash of a kind that is not known; keyfence hash-password prints one that is".into());
            }
            Kind::Argon2(Arc::new(Slow::parse(text)?))
        } else if text.is_empty() {
            return Err(
                "a password must not be empty; to let clients in without one, give the tenant an address of its own \
                        (listen) or name it in auth.default_tenant"
                    .into(),
            );
        } else {
            Kind::Sha256 { digest: sha256(&[text.as_bytes()]), plain: true }
        };
        let id = PasswordId(match &kind {
            Kind::Sha256 { digest, .. } => sha256(&[b"sha256", digest]),
            Kind::Argon2(_) => sha256(&[b"argon2", text.as_bytes()]),
        });
        Ok(Self { kind, id })
    }

    /// Whether the settings hold it as plain text.
    pub fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Sha256 { plain: true, .. })
    }

    /// Tells it from other passwords: equal for the same password, plain or as a SHA-256, and for the same argon2 hash.
    pub fn id(&self) -> PasswordId {
        self.id
    }

    /// Whether [`Password::verify`] may take tens of milliseconds, so that it must not run on a worker's thread.
    pub fn needs_time(&self) -> bool {
        matches!(self.kind, Kind::Argon2(_))
    }

    /// Whether `given` is this password.
    pub fn verify(&self, given: &[u8]) -> bool {
        match &self.kind {
            Kind::Sha256 { digest, .. } => bool::from(sha256(&[given]).ct_eq(digest)),
            Kind::Argon2(slow) => {
                let key = known_key(self.id, given);
                known(&key) || {
                    let fits = slow.verify(given);
                    if fits {
                        remember(key);
                    }
                    fits
                }
            }
        }
    }
}

/// `$word$…`, as hashes are written.
fn is_phc(text: &str) -> bool {
    text.strip_prefix('$')
        .and_then(|rest| rest.split_once('$'))
        .is_some_and(|(word, _)| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
}

fn unhex(digits: &str) -> Option<Digest> {
    let digits = digits.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |c: u8| char::from(c).to_digit(16).and_then(|n| u8::try_from(n).ok());
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(digest)
}

/// Pairs of hash and password that fit, as digests salted for this process: a storm of clients that come back costs one run of argon2 a
/// password, not one a client.
static FITTING: LazyLock<Mutex<HashSet<Digest>>> = LazyLock::new(Mutex::default);
static SALT: LazyLock<Digest> = LazyLock::new(|| {
    let mut salt = [0; 32];
    fill(&mut salt);
    salt
});

fn known_key(id: PasswordId, given: &[u8]) -> Digest {
    sha256(&[&*SALT, &id.0, given])
}

fn known(key: &Digest) -> bool {
    FITTING.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
}

fn remember(key: Digest) {
    let mut fitting = FITTING.lock().unwrap_or_else(PoisonError::into_inner);
    if fitting.len() >= KNOWN {
        fitting.clear();
    }
    fitting.insert(key);
}

/// How many runs of argon2 there may be at once, over all workers: each takes a core and tens of MiB.
static RUNS: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2)))));

/// What a login came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this password of the user's.
    Accepted(PasswordId),
    /// No such user, or not its password: which of them, nobody learns.
    Refused,
}

/// All users and their passwords.
#[derive(Debug, Default)]
pub struct Credentials {
    users: HashMap<Box<[u8]>, Vec<Password>>,
    /// The dearest argon2 hash there is, for work in place of one that is missing.
    dummy: Option<Slow>,
    /// Most argon2 hashes of one user.
    slow: usize,
}

impl fmt::Debug for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Credentials {
    /// The users by name; names are exact bytes.
    pub fn new<'a>(users: impl IntoIterator<Item = (&'a [u8], &'a [Password])>) -> Self {
        let users: HashMap<Box<[u8]>, Vec<Password>> =
            users.into_iter().map(|(name, passwords)| (name.into(), passwords.to_vec())).collect();
        let hashes = |passwords: &[Password]| passwords.iter().filter(|p| p.needs_time()).count();
        let dearest = users.values().flatten().filter_map(|p| match &p.kind {
            Kind::Argon2(slow) => Some(slow),
            Kind::Sha256 { .. } => None,
        });
        Self {
            dummy: dearest.max_by_key(|slow| slow.cost()).map(|slow| slow.dummy()),
            slow: users.values().map(|p| hashes(p)).max().unwrap_or(0),
            users,
        }
    }

    /// The outcome, if it can be known at once: a plain password or SHA-256 that fits, an argon2 hash that has been seen to fit, or a
    /// refusal where there is no argon2 at all.
    pub fn quick(&self, user: &[u8], given: &[u8]) -> Option<Outcome> {
        let digest = sha256(&[given]);
        let mut fits = None;
        for password in self.passwords(user) {
            let this = match &password.kind {
                Kind::Sha256 { digest: own, .. } => bool::from(digest.ct_eq(own)),
                Kind::Argon2(_) => known(&known_key(password.id, given)),
            };
            if this {
                fits = Some(Outcome::Accepted(password.id));
            }
        }
        fits.or_else(|| self.dummy.is_none().then_some(Outcome::Refused))
    }

    /// The outcome; may take tens of milliseconds for each argon2 hash of a user, so never on a worker's thread unless
    /// [`Credentials::quick`] knows it.
    pub fn check(&self, user: &[u8], given: &[u8]) -> Outcome {
        if let Some(outcome) = self.quick(user, given) {
            return outcome;
        }
        let mut ran = 0;
        for password in self.passwords(user).iter().filter(|p| p.needs_time()) {
            ran += 1;
            if password.verify(given) {
                return Outcome::Accepted(password.id);
            }
        }
        if let Some(dummy) = &self.dummy {
            for _ in ran..self.slow {
                // Its result is not used: the work is.
                std::hint::black_box(dummy.verify(given));
            }
        }
        Outcome::Refused
    }

    /// As [`Credentials::check`], for a worker's thread: what takes time runs elsewhere, a few at once.
    pub async fn login(self: &Arc<Self>, user: &[u8], given: &[u8]) -> Outcome {
        if let Some(outcome) = self.quick(user, given) {
            return outcome;
        }
        // Never closed.
        let Ok(turn) = Arc::clone(&RUNS).acquire_owned().await else { return Outcome::Refused };
        let (all, user, given) = (Arc::clone(self), user.to_vec(), given.to_vec());
        let work = move || {
            // Held by the work, not by who waits for it: a client that hangs up does not make room for the next run.
            let _turn = turn;
            all.check(&user, &given)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(Outcome::Refused)
    }

    /// Whether `user` still has this password.
    pub fn holds(&self, user: &[u8], id: PasswordId) -> bool {
        self.passwords(user).iter().any(|p| p.id == id)
    }

    fn passwords(&self, user: &[u8]) -> &[Password] {
        self.users.get(user).map_or(&[], Vec::as_slice)
    }
}

/// `given` as an argon2id hash with a fresh salt, for the settings.
///
/// # Errors
/// A sentence; argon2 takes passwords of less than 4 GiB.
pub fn argon2id(given: &[u8]) -> Result<String, String> {
    Argon2::default().hash_password(given).map(|hash| hash.to_string()).map_err(|e| e.to_string())
}

/// `given` as a SHA-256 for the settings: for passwords that are long and random only, since guessing it is fast.
pub fn sha256_of(given: &[u8]) -> String {
    sha256(&[given]).iter().fold("sha256:".into(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        /// Runs of argon2 on this thread.
        pub(super) static RAN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }

    /// Of `secret`, with the least work there is.
    fn cheap(given: &[u8]) -> String {
        let params = Params::new(8, 1, 1, None).unwrap();
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password(given).unwrap().to_string()
    }

    #[test]
    fn every_way_to_write_a_password_verifies_it() {
        let hex = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        for text in [
            "secret",
            &format!("sha256:{hex}"),
            &format!("#{hex}"),
            &format!("#{}", hex.to_uppercase()),
            &cheap(b"secret"),
        ] {
            let password = Password::parse(text).unwrap();
            assert!(password.verify(b"secret"), "{text}");
            for wrong in [&b"secre"[..], b"secret ", b"secret\n", b"Secret", b"", text.as_bytes()] {
                assert!(!password.verify(wrong) || wrong == b"secret", "{text}: {wrong:?}");
            }
            assert_eq!(password.is_plain(), text == "secret");
            assert_eq!(password.needs_time(), text.starts_with('$'));
            assert_eq!(format!("{password:?} {:?}", password.id()), "*** ***");
        }
    }

    #[test]
    fn what_looks_like_a_hash_and_is_none_is_refused() {
        let good = cheap(b"x");
        for text in [
            "",
            "sha256:",
            "sha256:abc",
            "sha256:zzb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b",
            "$argon2id$",
            "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ",
            &good.replace("argon2id", "argon2i"),
            &good.replace("m=8", "m=2000000"),
            &good.replace("t=1", "t=100"),
            &good.replace("v=19", "v=7"),
            &good.replace("v=19$", ""),
            "$2b$12$abcdefghijklmnopqrstuv",
            "$6$salt$hash",
        ] {
            let error = Password::parse(text).expect_err(text);
            assert!(text.len() < 12 || !error.contains(text), "{error}");
        }
        for plain in ["#hash", "$dollar", "$$", "pa$$word", "#", "a sha256:b"] {
            assert!(Password::parse(plain).unwrap().is_plain(), "{plain}");
        }
    }

    #[test]
    fn ids_tell_passwords_apart_and_outlive_a_reload() {
        let id = |text: &str| Password::parse(text).unwrap().id();
        assert_eq!(id("secret"), id(&sha256_of(b"secret")));
        assert_ne!(id("secret"), id("other"));
        let hash = cheap(b"secret");
        assert_eq!(id(&hash), id(&hash));
        assert_ne!(id(&hash), id("secret"));
    }

    fn table(users: &[(&str, &[&str])]) -> Credentials {
        let users: Vec<(&str, Vec<Password>)> =
            users.iter().map(|(n, p)| (*n, p.iter().map(|p| Password::parse(p).unwrap()).collect())).collect();
        Credentials::new(users.iter().map(|(name, passwords)| (name.as_bytes(), passwords.as_slice())))
    }

    #[test]
    fn u3_the_users_own_passwords_and_no_others() {
        let (acme, acme2) = (cheap(b"one"), cheap(b"two"));
        let all = table(&[("acme", &[&acme, "plain"]), ("acme2", &[&acme2]), ("none", &[])]);
        for (user, given) in [("acme", "one"), ("acme", "plain"), ("acme2", "two")] {
            assert!(matches!(all.check(user.as_bytes(), given.as_bytes()), Outcome::Accepted(_)), "{user} {given}");
        }
        for (user, given) in
            [("acme", "two"), ("acme2", "one"), ("ACME", "one"), ("acme", ""), ("none", ""), ("who", "one"), ("", "")]
        {
            assert_eq!(all.check(user.as_bytes(), given.as_bytes()), Outcome::Refused, "{user} {given}");
        }
        assert!(all.holds(b"acme", Password::parse("plain").unwrap().id()));
        assert!(!all.holds(b"acme2", Password::parse("plain").unwrap().id()));
    }

    #[test]
    fn u3_a_refusal_costs_the_same_for_everybody() {
        let hashes: Vec<String> = ["a1", "a2", "b1"].iter().map(|p| cheap(p.as_bytes())).collect();
        let all =
            table(&[("two", &[&hashes[0], &hashes[1]]), ("one", &[&hashes[2]]), ("plain", &["p"]), ("none", &[])]);
        for user in ["two", "one", "plain", "none", "unknown", ""] {
            RAN.set(0);
            assert_eq!(all.check(user.as_bytes(), b"u3_wrong"), Outcome::Refused);
            assert_eq!(RAN.get(), 2, "{user}");
        }
        // Who comes back with the right password costs nothing.
        for expected in [1, 0, 0] {
            RAN.set(0);
            assert!(matches!(all.check(b"one", b"b1"), Outcome::Accepted(_)));
            assert_eq!(RAN.get(), expected);
        }
    }

    #[test]
    fn what_takes_time_is_told_before() {
        let hash = cheap(b"what_takes_time");
        let all = table(&[("slow", &[&hash]), ("fast", &["plain"])]);
        let given = b"what_takes_time";
        assert_eq!(all.quick(b"fast", b"wrong"), None);
        assert_eq!(all.quick(b"nobody", b"wrong"), None);
        assert!(matches!(all.quick(b"fast", b"plain"), Some(Outcome::Accepted(_))));
        assert_eq!(all.quick(b"slow", given), None);
        assert!(matches!(all.check(b"slow", given), Outcome::Accepted(_)));
        assert!(matches!(all.quick(b"slow", given), Some(Outcome::Accepted(_))), "it was remembered");
        assert_eq!(all.quick(b"fast", given), None, "for that hash alone");
        assert_eq!(table(&[("fast", &["plain"])]).quick(b"nobody", b"wrong"), Some(Outcome::Refused));
    }

    #[tokio::test]
    async fn a_login_runs_off_the_thread() {
        let hash = cheap(b"a_login");
        let all = Arc::new(table(&[("slow", &[&hash])]));
        assert!(matches!(all.login(b"slow", b"a_login").await, Outcome::Accepted(_)));
        assert_eq!(all.login(b"slow", b"wrong").await, Outcome::Refused);
    }

    #[test]
    fn printed_hashes_are_read_back() {
        let hash = argon2id(b"secret").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(Password::parse(&hash).unwrap().verify(b"secret"));
        assert!(Password::parse(&sha256_of(b"secret")).unwrap().verify(b"secret"));
    }
}
