//! Redis's glob patterns, matched in time bounded by pattern times text (Redis: `stringmatchlen`, `util.c`).

/// Whether `pattern` (`* ? [a-z] [^x] \c`) matches all of `text`.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let mut work = usize::MAX;
    matches_within(pattern, text, &mut work) == Some(true)
}

/// As [`matches()`], in no more than `work` steps, each the comparison of one byte; those taken are subtracted. `None`: they did not suffice.
pub fn matches_within(pattern: &[u8], text: &[u8], work: &mut usize) -> Option<bool> {
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last star: behind it in the pattern, and how much of the text it has eaten.
    let mut star: Option<(usize, usize)> = None;
    loop {
        *work = work.checked_sub(1)?;
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, t));
            continue;
        }
        if t == text.len() && p == pattern.len() {
            return Some(true);
        }
        if let Some(next) = one(pattern, p, text.get(t).copied(), work) {
            p = next;
            t += 1;
            continue;
        }
        match &mut star {
            Some((behind, eaten)) if *eaten < text.len() => {
                *eaten += 1;
                (p, t) = (*behind, *eaten);
            }
            _ => return Some(false),
        }
    }
}

/// `text` as a glob that matches it alone (isolation.md N4).
pub fn escape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &c in text {
        if b"*?[]^-\\".contains(&c) {
            out.push(b'\\');
        }
        out.push(c);
    }
    out
}

/// Matches one byte against the element at `p`: where the pattern goes on.
fn one(pattern: &[u8], p: usize, c: Option<u8>, work: &mut usize) -> Option<usize> {
    let c = c?;
    match *pattern.get(p)? {
        b'?' => Some(p + 1),
        b'[' => class(pattern, p + 1, c, work),
        b'\\' if p + 1 < pattern.len() => (pattern[p + 1] == c).then_some(p + 2),
        literal => (literal == c).then_some(p + 1),
    }
}

fn class(pattern: &[u8], mut p: usize, c: u8, work: &mut usize) -> Option<usize> {
    let not = pattern.get(p) == Some(&b'^');
    p += usize::from(not);
    let mut hit = false;
    loop {
        *work = work.saturating_sub(1);
        match pattern.get(p) {
            // An unclosed class ends with the pattern.
            None => return (hit != not).then_some(p),
            Some(b']') => return (hit != not).then_some(p + 1),
            Some(b'\\') if p + 1 < pattern.len() => {
                hit |= pattern[p + 1] == c;
                p += 2;
            }
            Some(&a) if pattern.get(p + 1) == Some(&b'-') && p + 2 < pattern.len() => {
                let b = pattern[p + 2];
                hit |= (a.min(b)..=a.max(b)).contains(&c);
                p += 3;
            }
            Some(&a) => {
                hit |= a == c;
                p += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{escape, matches, matches_within};

    #[test]
    fn as_redis_matches() {
        for (pattern, text, want) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("a**b*", "aXbY", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("[abc", "a", true),
            ("a\\", "a\\", true),
            ("*ab", "aab", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), want, "{pattern} {text}");
        }
    }

    #[test]
    fn e3_a_pattern_bomb_is_harmless() {
        assert!(!matches(&[&b"a*".repeat(1000)[..], b"b"].concat(), &b"a".repeat(3000)));
    }

    #[test]
    fn e3_matching_ends_with_its_budget() {
        let costly = [&b"*"[..], &b"a".repeat(4000), b"b"].concat();
        let mut work = 1_000_000;
        assert_eq!((matches_within(&costly, &b"a".repeat(100_000), &mut work), work), (None, 0));
        let class = [&b"*["[..], &b"b".repeat(4000), b"]"].concat();
        let mut work = 1_000_000;
        assert_eq!((matches_within(&class, &b"a".repeat(100_000), &mut work), work), (None, 0));
        let mut work = 10;
        assert_eq!((matches_within(b"a?c", b"abc", &mut work), work), (Some(true), 6));
    }

    #[test]
    fn n4_globs_are_escaped() {
        assert_eq!(escape(b"a*b[c]?\\-^:"), b"a\\*b\\[c\\]\\?\\\\\\-\\^:");
    }
}
