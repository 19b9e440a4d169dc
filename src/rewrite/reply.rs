//! UN-REWRITE: takes the prefix off the names in a reply while its bytes pass by.
//!
//! ```text
//!   rule Xread    *1 ── *2 ─┬─ $5 t1:ab   the name: header rewritten, prefix checked and dropped
//!                           └─ *1 …       data: passed over by the scanner as it came
//! ```
//!
//! A [`Rule`] says where in the shape names stand (replies.md); everything else is copied untouched, so doubles, attributes and values keep
//! the bytes the upstream sent. Only a name's first bytes are looked at, so a reply of any size passes in bounded memory. A name that does
//! not begin with the whole prefix is an isolation failure: the caller drops the reply and the connection.

pub mod function;
pub mod script;

use std::{borrow::Cow, cell::Cell, rc::Rc};

use bytes::Bytes;

use crate::resp::{
    self,
    reply::{self, BadReply, Scanner},
};

/// Where a reply carries names.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// Nowhere.
    Raw,
    /// Element 0 of the array is a key: BLPOP, LMPOP, ZMPOP and their kin.
    First,
    /// Every element is a key: KEYS.
    Names,
    /// XREAD, XREADGROUP: an array of `[key, entries]`, or in RESP3 a map from key to entries.
    Xread,
    /// Nowhere, but the reply may be a `-NOGROUP` error whose text names key and group.
    NoGroup(Rc<NoGroup>),
    /// XREADGROUP: as `Xread`, and the error.
    XreadNoGroup(Rc<NoGroup>),
    /// The upstream's reply is dropped and these bytes stand in its place.
    Replace(Bytes),
    /// The upstream's number is dropped and this one stands in its place; an error passes.
    Number(u64),
    /// Nowhere; whether it was a simple string, and so no error, is noted.
    Note(Rc<Cell<bool>>),
    /// Nowhere; see [`script::Script`].
    Script(Box<script::Script>),
    /// Nowhere; see [`function::Function`].
    Function(Box<function::Function>),
}

/// What is needed to say a `-NOGROUP` text again in the tenant's own names.
#[derive(Clone, Debug, PartialEq)]
pub struct NoGroup {
    /// The request's keys, unprefixed; more than one only for XREADGROUP.
    pub keys: Vec<Vec<u8>>,
}

impl NoGroup {
    /// The error line without `-` and CRLF, every name of the request's own.
    ///
    /// The key as the upstream prints it stops at the first NUL, and CR and LF are spaces; the sentence around it differs by command, so
    /// the one occurrence of a quoted, printed, prefixed key is looked for rather than the text parsed.
    fn rebuild(&self, line: &[u8], prefix: &[u8]) -> Vec<u8> {
        for key in &self.keys {
            let shown: Vec<u8> = [prefix, key]
                .concat()
                .iter()
                .take_while(|&&c| c != 0)
                .map(|&c| if c == b'\r' || c == b'\n' { b' ' } else { c })
                .collect();
            for (before, after) in [(&b"No such key '"[..], &b"' or consumer group '"[..]), (b" for key name '", b"'")]
            {
                let quoted = [before, &shown, after].concat();
                let found = if before[0] == b' ' {
                    line.ends_with(&quoted).then(|| line.len() - quoted.len())
                } else {
                    memchr::memmem::find(line, &quoted)
                };
                if let Some(at) = found {
                    let name = at + before.len();
                    return [&line[..name], &shown[prefix.len().min(shown.len())..], &line[name + shown.len()..]]
                        .concat();
                }
            }
        }
        NO_GROUP.to_vec()
    }
}

/// What is done with each reply of an EXEC.
#[derive(Debug, Default)]
pub struct Exec {
    /// One rule per queued command, in order.
    pub rules: Vec<Rule>,
}

/// Why a reply cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is not RESP.
    Malformed,
    /// It holds a name outside the prefix, or has another shape than its command's.
    Isolation,
}

impl From<BadReply> for Failure {
    fn from(_: BadReply) -> Self {
        Self::Malformed
    }
}

/// An error line is looked into up to this length; a longer one is passed, or made a short one.
const ERROR_LINE: usize = 8 * 1024;
const NO_GROUP: &[u8] = b"NOGROUP No such key or consumer group";

/// What a client is told in place of an error line that speaks of the upstream's own affairs or shows prefixed names; `line` and the result
/// begin with `-` and have no CRLF. `None`: the line may pass.
///
/// Redis quotes the arguments of a command it does not know. Users, addresses and files of the upstream are nobody's business here
/// (isolation.md R5).
pub fn own_error(line: &[u8]) -> Option<Cow<'_, [u8]>> {
    const ARGUMENTS: &[u8] = b", with args beginning with:";
    let begins = |text: &[u8]| line.starts_with(text);
    if begins(b"-ERR unknown command") || begins(b"-ERR Unknown command") {
        return Some(Cow::Borrowed(
            memchr::memmem::find(line, ARGUMENTS).map_or(b"-ERR unknown command", |at| &line[..at]),
        ));
    }
    if begins(b"-NOPERM") {
        return Some(Cow::Borrowed(b"-NOPERM the upstream does not permit this command or one of its keys"));
    }
    if begins(b"-MOVED ") || begins(b"-ASK ") || begins(b"-REDIRECT ") {
        return Some(Cow::Borrowed(b"-UPSTREAM unreachable: the upstream is a node of a cluster or a replica, which this version does not serve"));
    }
    if begins(b"-MISCONF ") {
        return Some(Cow::Borrowed(b"-MISCONF the upstream cannot save to its disk and takes no writes"));
    }
    None
}

/// Deepest level a rule looks at: EXEC, XREAD's array, its pair.
const LEVELS: usize = 3;

#[derive(Clone, Copy, Debug, Default)]
struct Level {
    /// Elements still to come, the one at hand included.
    left: u64,
    /// Index of the element at hand.
    index: u64,
    map: bool,
}

/// What to do with the value at hand.
enum Act {
    Pass,
    Name,
    Enter,
    Swap(Bytes),
    Error,
    /// A null, or another shape than the command's.
    Nothing,
    GroupError(Rc<NoGroup>),
    ScriptError(Box<script::Script>),
    FunctionError(Box<function::Function>),
}

/// One reply on its way from upstream to downstream.
#[derive(Debug)]
pub struct Unprefix {
    rule: Rule,
    exec: Option<Exec>,
    prefix: Rc<[u8]>,
    levels: [Level; LEVELS],
    depth: usize,
    /// Inside a value that is passed (`true`) or dropped (`false`).
    scanning: Option<(Scanner, bool)>,
    /// Scripts that it answers.
    flight: Option<script::Flight>,
}

impl Unprefix {
    /// A reply under `rule`.
    pub fn new(rule: Rule, prefix: Rc<[u8]>) -> Self {
        Self { rule, exec: None, prefix, levels: Default::default(), depth: 0, scanning: None, flight: None }
    }

    /// The reply of an EXEC.
    pub fn exec(exec: Exec, prefix: Rc<[u8]>) -> Self {
        Self { exec: Some(exec), ..Self::new(Rule::Raw, prefix) }
    }

    /// The reply of a script, or of an EXEC with scripts, which is on its way until this begins.
    pub fn of(self, flight: Option<script::Flight>) -> Self {
        Self { flight, ..self }
    }

    /// The script that may still run, to be waited for without its reply.
    pub fn take_flight(&mut self) -> Option<script::Flight> {
        self.flight.take()
    }

    /// Takes what it can from `buf`, appends the rewritten bytes to `out`: the bytes taken, and whether the reply ended. What was not
    /// taken must come again at the start of the next `buf`; it is never more than one header line and one prefix, or one error line.
    ///
    /// # Errors
    /// [`Failure`]: what was appended for this reply must not reach the client, and the upstream connection must be closed.
    pub fn advance(&mut self, buf: &[u8], out: &mut Vec<u8>) -> Result<(usize, bool), Failure> {
        let mut at = 0;
        if !buf.is_empty()
            && let Some(flight) = self.flight.take()
        {
            flight.land();
        }
        loop {
            if let Some((scanner, keep)) = &mut self.scanning {
                let (n, done) = scanner.advance(&buf[at..])?;
                if *keep {
                    out.extend_from_slice(&buf[at..at + n]);
                }
                at += n;
                if !done {
                    return Ok((at, false));
                }
                self.scanning = None;
                if self.step() {
                    return Ok((at, true));
                }
                continue;
            }
            let rest = &buf[at..];
            let Some(&kind) = rest.first() else { return Ok((at, false)) };
            match self.act(kind)? {
                Act::Pass => self.scanning = Some((Scanner::default(), true)),
                Act::Nothing => match kind {
                    b'_' => self.scanning = Some((Scanner::default(), true)),
                    b'$' => match reply::length(rest)? {
                        None => return Ok((at, false)),
                        Some((-1, _)) => self.scanning = Some((Scanner::default(), true)),
                        Some(_) => return Err(Failure::Isolation),
                    },
                    _ => return Err(Failure::Isolation),
                },
                Act::Swap(bytes) => {
                    out.extend_from_slice(&bytes);
                    self.scanning = Some((Scanner::default(), false));
                }
                Act::GroupError(names) => {
                    let Some(end) = memchr::memchr(b'\n', rest) else {
                        if rest.len() < ERROR_LINE {
                            return Ok((at, false));
                        }
                        // Nobody needs a name of this length said again.
                        resp::put_error(out, NO_GROUP);
                        self.scanning = Some((Scanner::default(), false));
                        continue;
                    };
                    let line = rest[..end].strip_suffix(b"\r").ok_or(Failure::Malformed)?;
                    if line.starts_with(b"-NOGROUP ") {
                        resp::put_error(out, &names.rebuild(&line[1..], &self.prefix));
                    } else {
                        out.extend_from_slice(&own_error(line).unwrap_or(Cow::Borrowed(line)));
                        out.extend_from_slice(b"\r\n");
                    }
                    at += end + 1;
                    if self.step() {
                        return Ok((at, true));
                    }
                }
                Act::ScriptError(script) => {
                    let Some(end) = memchr::memchr(b'\n', rest) else {
                        if rest.len() < ERROR_LINE {
                            return Ok((at, false));
                        }
                        self.scanning = Some((Scanner::default(), true));
                        continue;
                    };
                    let line = rest[..end].strip_suffix(b"\r").ok_or(Failure::Malformed)?;
                    if let Some(text) = script.error(line) {
                        out.extend_from_slice(&text);
                        out.extend_from_slice(b"\r\n");
                    }
                    at += end + 1;
                    if self.step() {
                        return Ok((at, true));
                    }
                }
                Act::FunctionError(function) => {
                    let Some(end) = memchr::memchr(b'\n', rest) else {
                        if rest.len() < ERROR_LINE {
                            return Ok((at, false));
                        }
                        self.scanning = Some((Scanner::default(), true));
                        continue;
                    };
                    let line = rest[..end].strip_suffix(b"\r").ok_or(Failure::Malformed)?;
                    out.extend_from_slice(&function.error(line));
                    out.extend_from_slice(b"\r\n");
                    at += end + 1;
                    if self.step() {
                        return Ok((at, true));
                    }
                }
                Act::Error => {
                    let Some(end) = memchr::memchr(b'\n', rest).filter(|end| *end < ERROR_LINE) else {
                        if rest.len() < ERROR_LINE {
                            return Ok((at, false));
                        }
                        self.scanning = Some((Scanner::default(), true));
                        continue;
                    };
                    let line = rest[..end].strip_suffix(b"\r").ok_or(Failure::Malformed)?;
                    out.extend_from_slice(&own_error(line).unwrap_or(Cow::Borrowed(line)));
                    out.extend_from_slice(b"\r\n");
                    at += end + 1;
                    if self.step() {
                        return Ok((at, true));
                    }
                }
                Act::Name => match kind {
                    b'$' => {
                        let Some((len, body)) = reply::length(rest)? else { return Ok((at, false)) };
                        let len = u64::try_from(len).map_err(|_| Failure::Isolation)?;
                        let kept = len.checked_sub(self.prefix.len() as u64).ok_or(Failure::Isolation)?;
                        let Some(start) = rest.get(body..body + self.prefix.len()) else { return Ok((at, false)) };
                        if start != &*self.prefix {
                            return Err(Failure::Isolation);
                        }
                        resp::put_header(out, b'$', kept);
                        at += body + self.prefix.len();
                        self.scanning = Some((Scanner::in_body(kept), true));
                    }
                    _ => return Err(Failure::Isolation),
                },
                Act::Enter => {
                    let Some((n, next)) = reply::length(rest)? else { return Ok((at, false)) };
                    let Ok(n) = u64::try_from(n) else {
                        // A null array: nothing to enter.
                        self.scanning = Some((Scanner::default(), true));
                        continue;
                    };
                    let left = if kind == b'%' { n.checked_mul(2).ok_or(Failure::Malformed)? } else { n };
                    if let Some(exec) = self.exec.as_ref().filter(|_| self.depth == 0)
                        && exec.rules.len() as u64 != n
                    {
                        return Err(Failure::Isolation);
                    }
                    out.extend_from_slice(&rest[..next]);
                    at += next;
                    if left == 0 {
                        if self.step() {
                            return Ok((at, true));
                        }
                    } else {
                        self.levels[self.depth] = Level { left, index: 0, map: kind == b'%' };
                        self.depth += 1;
                    }
                }
            }
        }
    }

    /// Goes on to the next value; `true` when the reply has ended.
    fn step(&mut self) -> bool {
        while self.depth > 0 {
            let level = &mut self.levels[self.depth - 1];
            level.left -= 1;
            level.index += 1;
            if level.left > 0 {
                return false;
            }
            self.depth -= 1;
        }
        true
    }

    fn act(&self, kind: u8) -> Result<Act, Failure> {
        // Attributes stand before a value and are part of no shape; none of the commands with a rule sends one.
        if kind == b'|' {
            return Err(Failure::Isolation);
        }
        let aggregate = matches!(kind, b'*' | b'%' | b'~');
        let (rule, base) = match &self.exec {
            None => (&self.rule, 0),
            Some(_) if self.depth == 0 => return Ok(if kind == b'*' { Act::Enter } else { Act::Pass }),
            Some(exec) => {
                let index = usize::try_from(self.levels[0].index).map_err(|_| Failure::Isolation)?;
                (exec.rules.get(index).ok_or(Failure::Isolation)?, 1)
            }
        };
        let depth = self.depth - base;
        let level = |d: usize| &self.levels[base + d];
        Ok(match rule {
            Rule::Replace(bytes) => Act::Swap(bytes.clone()),
            Rule::Number(n) if kind == b':' => Act::Swap(Bytes::from(format!(":{n}\r\n"))),
            Rule::Script(script) if depth == 0 && kind == b'-' => Act::ScriptError(script.clone()),
            Rule::Script(script) => {
                script.ran();
                Act::Pass
            }
            Rule::Function(function) if depth == 0 && kind == b'-' => Act::FunctionError(function.clone()),
            Rule::NoGroup(names) | Rule::XreadNoGroup(names) if depth == 0 && kind == b'-' => {
                Act::GroupError(Rc::clone(names))
            }
            Rule::First | Rule::Names | Rule::Xread | Rule::Raw | Rule::Number(_) if depth == 0 && kind == b'-' => {
                Act::Error
            }
            Rule::Note(ok) => {
                ok.set(kind == b'+');
                Act::Pass
            }
            Rule::First | Rule::Names | Rule::Xread | Rule::XreadNoGroup(_) if depth == 0 => {
                if aggregate {
                    Act::Enter
                } else {
                    Act::Nothing
                }
            }
            Rule::First if level(0).index == 0 => Act::Name,
            Rule::Raw | Rule::NoGroup(_) | Rule::First | Rule::Number(_) | Rule::Function(_) => Act::Pass,
            Rule::Names => Act::Name,
            Rule::Xread | Rule::XreadNoGroup(_) => match (depth, level(0).map) {
                (1, true) if level(0).index % 2 == 0 => Act::Name,
                (1, true) => Act::Pass,
                (1, false) if kind == b'*' => Act::Enter,
                (1, false) => return Err(Failure::Isolation),
                _ if level(1).index == 0 => Act::Name,
                _ => Act::Pass,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(mut machine: Unprefix, bytes: &[u8], cuts: &[usize]) -> Result<Vec<u8>, Failure> {
        let mut ends: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let (mut at, mut out) = (0, Vec::new());
        for end in ends {
            if end < at {
                continue;
            }
            let (n, done) = machine.advance(&bytes[at..end], &mut out)?;
            at += n;
            if done {
                assert_eq!(at, bytes.len(), "ended early");
                return Ok(out);
            }
        }
        panic!("never ended: {}", bytes.escape_ascii());
    }

    fn prefix() -> Rc<[u8]> {
        Rc::from(&b"t1:"[..])
    }

    fn check(rule: &Rule, from: &str, to: &str) {
        for cut in 0..=from.len() {
            let got = run(Unprefix::new(rule.clone(), prefix()), from.as_bytes(), &[cut])
                .unwrap_or_else(|f| panic!("{f:?} at {cut} of {from:?}"));
            assert_eq!(String::from_utf8_lossy(&got), to, "cut at {cut}");
        }
    }

    #[test]
    fn names_are_taken_from_their_slots_only() {
        check(&Rule::First, "*2\r\n$4\r\nt1:k\r\n$4\r\nt1:v\r\n", "*2\r\n$1\r\nk\r\n$4\r\nt1:v\r\n");
        check(
            &Rule::First,
            "*2\r\n$3\r\nt1:\r\n*1\r\n*2\r\n$1\r\nm\r\n,1.50\r\n",
            "*2\r\n$0\r\n\r\n*1\r\n*2\r\n$1\r\nm\r\n,1.50\r\n",
        );
        for nothing in ["*-1\r\n", "_\r\n", "*0\r\n", "-WRONGTYPE t1:x\r\n"] {
            check(&Rule::First, nothing, nothing);
            check(&Rule::Xread, nothing, nothing);
        }
        check(&Rule::Names, "*2\r\n$4\r\nt1:a\r\n$7\r\nt1:t1:b\r\n", "*2\r\n$1\r\na\r\n$4\r\nt1:b\r\n");
        let entries = "*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$4\r\nt1:f\r\n$1\r\nv\r\n";
        check(
            &Rule::Xread,
            &format!("*2\r\n*2\r\n$4\r\nt1:s\r\n{entries}*2\r\n$4\r\nt1:u\r\n{entries}"),
            &format!("*2\r\n*2\r\n$1\r\ns\r\n{entries}*2\r\n$1\r\nu\r\n{entries}"),
        );
        check(
            &Rule::Xread,
            &format!("%2\r\n$4\r\nt1:s\r\n{entries}$4\r\nt1:u\r\n{entries}"),
            &format!("%2\r\n$1\r\ns\r\n{entries}$1\r\nu\r\n{entries}"),
        );
    }

    #[test]
    fn exec_rewrites_each_reply_by_its_own_rule() {
        let names = Rc::new(NoGroup { keys: vec![b"s".to_vec()] });
        let exec = || Exec {
            rules: vec![
                Rule::First,
                Rule::Raw,
                Rule::Replace(Bytes::from_static(b"+PONG\r\n")),
                Rule::XreadNoGroup(Rc::clone(&names)),
                Rule::Xread,
            ],
        };
        let from = "*5\r\n*2\r\n$4\r\nt1:k\r\n$1\r\nv\r\n$3\r\nt1:\r\n$0\r\n\r\n-NOGROUP No such key 't1:s' or consumer group 'g' in XREADGROUP with GROUP option\r\n*1\r\n*2\r\n$4\r\nt1:s\r\n*0\r\n";
        let to = "*5\r\n*2\r\n$1\r\nk\r\n$1\r\nv\r\n$3\r\nt1:\r\n+PONG\r\n-NOGROUP No such key 's' or consumer group 'g' in XREADGROUP with GROUP option\r\n*1\r\n*2\r\n$1\r\ns\r\n*0\r\n";
        for cut in 0..=from.len() {
            assert_eq!(run(Unprefix::exec(exec(), prefix()), from.as_bytes(), &[cut]).as_deref(), Ok(to.as_bytes()));
        }
        for aborted in ["*-1\r\n", "_\r\n", "-EXECABORT no\r\n"] {
            assert_eq!(
                run(Unprefix::exec(exec(), prefix()), aborted.as_bytes(), &[]).as_deref(),
                Ok(aborted.as_bytes())
            );
        }
        assert_eq!(run(Unprefix::exec(exec(), prefix()), b"*1\r\n:1\r\n", &[]), Err(Failure::Isolation));
    }

    #[test]
    fn r2_group_errors_are_said_again() {
        let rule = |key: &[u8]| Rule::NoGroup(Rc::new(NoGroup { keys: vec![key.to_vec()] }));
        check(
            &rule(b"k"),
            "-NOGROUP No such key 't1:k' or consumer group 'key 't1:k''\r\n",
            "-NOGROUP No such key 'k' or consumer group 'key 't1:k''\r\n",
        );
        check(
            &rule(b"a\r\nb\0c"),
            "-NOGROUP No such consumer group 'g' for key name 't1:a  b'\r\n",
            "-NOGROUP No such consumer group 'g' for key name 'a  b'\r\n",
        );
        check(&rule(b"other"), "-NOGROUP something 't1:k'\r\n", "-NOGROUP No such key or consumer group\r\n");
        check(&rule(b"k"), ":1\r\n", ":1\r\n");
    }

    #[test]
    fn r1_a_name_outside_the_prefix_is_never_passed() {
        for (rule, reply) in [
            (Rule::First, "*2\r\n$4\r\nt2:k\r\n$1\r\nv\r\n"),
            (Rule::First, "*2\r\n$2\r\nt1\r\n$1\r\nv\r\n"),
            (Rule::First, "*2\r\n:1\r\n$1\r\nv\r\n"),
            (Rule::Names, "*2\r\n$4\r\nt1:k\r\n$-1\r\n"),
            (Rule::Xread, "*1\r\n$4\r\nt1:k\r\n"),
        ] {
            assert_eq!(run(Unprefix::new(rule, prefix()), reply.as_bytes(), &[]), Err(Failure::Isolation), "{reply:?}");
        }
    }

    proptest! {
        #[test]
        fn splits_do_not_matter_and_the_prefix_never_shows(keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6), cuts in prop::collection::vec(any::<usize>(), 0..12)) {
            let reply = |with: &[u8]| {
                let mut r = Vec::new();
                resp::put_header(&mut r, b'*', keys.len() as u64);
                keys.iter().for_each(|k| resp::put_bulk(&mut r, &[with, k].concat()));
                r
            };
            prop_assert_eq!(run(Unprefix::new(Rule::Names, prefix()), &reply(b"t1:"), &cuts), Ok(reply(b"")));
        }
    }
}
