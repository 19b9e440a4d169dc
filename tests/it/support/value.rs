//! Replies as trees, for the few comparisons that bytes alone cannot make: sets in any order, clocks that moved on.
use super::wire::show;

/// One value: its type byte, its text if it is a leaf, its children if it is not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Value {
    pub(crate) kind: u8,
    pub(crate) text: Vec<u8>,
    pub(crate) kids: Vec<Self>,
}

impl Value {
    /// Parses one whole reply.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut rest = bytes;
        let value = Self::take(&mut rest);
        assert!(rest.is_empty(), "more than one reply in {:?}", show(bytes));
        value
    }

    fn take(rest: &mut &[u8]) -> Self {
        let line = rest.windows(2).position(|w| w == b"\r\n").unwrap();
        let (kind, head) = (rest[0], &rest[1..line]);
        *rest = &rest[line + 2..];
        let number = || std::str::from_utf8(head).unwrap().parse::<i64>().unwrap();
        let mut value = Self { kind, text: head.to_vec(), kids: Vec::new() };
        match kind {
            b'$' | b'=' | b'!' => {
                if let Ok(n) = usize::try_from(number()) {
                    value.text = rest[..n].to_vec();
                    *rest = &rest[n + 2..];
                } else {
                    // A null is told from an empty string by its type.
                    value.kind = b'_';
                }
            }
            b'*' | b'~' | b'>' | b'%' => {
                let each = if kind == b'%' { 2 } else { 1 };
                let n = number();
                value.text.clear();
                if n < 0 {
                    value.text = b"null array".to_vec();
                }
                value.kids = (0..n.max(0) * each).map(|_| Self::take(rest)).collect();
            }
            _ => {}
        }
        value
    }

    /// The text of a bulk or simple string.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).unwrap()
    }

    /// Every leaf's text, depth first.
    pub(crate) fn leaves(&self) -> Vec<&[u8]> {
        if self.kids.is_empty() {
            return vec![&self.text];
        }
        self.kids.iter().flat_map(Self::leaves).collect()
    }

    /// Sets, and with `all` every aggregate, in one order.
    fn sort(&mut self, all: bool) {
        self.kids.iter_mut().for_each(|kid| kid.sort(all));
        if self.kind == b'~' || (all && self.kind != b'%') {
            self.kids.sort();
        } else if all && self.kind == b'%' {
            let mut pairs: Vec<_> = self.kids.chunks(2).map(<[Self]>::to_vec).collect();
            pairs.sort();
            self.kids = pairs.concat();
        }
    }
}

/// How two replies to one command may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Not at all; but a RESP3 set has no order.
    Exact,
    /// Elements in any order.
    Unordered,
    /// Numbers by as much as a clock moves between two servers, or a key's name weighs.
    Near,
    /// Members of JSON objects in any order: the same bytes, somehow shuffled.
    Shuffled,
    /// Only the type must agree.
    Kind,
}

/// Whether `a` and `b` are the same reply under `rule`.
pub(crate) fn same(rule: Rule, a: &[u8], b: &[u8]) -> bool {
    if a == b {
        return true;
    }
    let (mut a, mut b) = (Value::parse(a), Value::parse(b));
    a.sort(rule == Rule::Unordered);
    b.sort(rule == Rule::Unordered);
    match rule {
        Rule::Exact | Rule::Unordered => a == b,
        Rule::Near => near(&a, &b),
        Rule::Shuffled => {
            let bytes = |value: &Value| {
                let mut bytes = value.leaves().concat();
                bytes.sort_unstable();
                bytes
            };
            a.kind == b.kind && bytes(&a) == bytes(&b)
        }
        Rule::Kind => a.kind == b.kind && (a.kind == b'-') == (b.kind == b'-'),
    }
}

fn near(a: &Value, b: &Value) -> bool {
    let number = |v: &Value| (v.kind == b':').then(|| v.as_str().parse::<i64>().unwrap());
    match (number(a), number(b)) {
        (Some(x), Some(y)) => x == y || (x >= 0 && y >= 0 && x.abs_diff(y) <= 60_000),
        _ => {
            a.kind == b.kind
                && a.text == b.text
                && a.kids.len() == b.kids.len()
                && a.kids.iter().zip(&b.kids).all(|(a, b)| near(a, b))
        }
    }
}
