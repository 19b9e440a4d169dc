//! The bytes that a tenant's names begin with upstream, and which bytes those may be.

use std::fmt;

/// Longest prefix, in bytes.
const MAX: usize = 128;
/// What a prefix may be made of besides letters, digits and one pair of braces: nothing that a glob or a SORT template reads.
const MARKS: &str = "_.:@/~+=,;!$%&#-";

/// A checked prefix: 1 to 128 bytes, none of which means anything in a pattern.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Box<[u8]>);

impl Prefix {
    /// Checks `text`; the error is a clause such as "a prefix may not hold '*'".
    pub fn new(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a prefix must not be empty: every key of the upstream would be in reach".into());
        }
        if text.len() > MAX {
            return Err(format!("a prefix has at most {MAX} bytes, this one has {}", text.len()));
        }
        if let Some(c) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !MARKS.contains(*c) && !"{}".contains(*c))
        {
            let what = match c {
                '*' | '?' | '[' | ']' | '^' | '\\' => "which means something in a pattern",
                _ => "which is not allowed",
            };
            return Err(format!(
                "a prefix may not hold '{}', {what}; use letters, digits, {MARKS} and at most one pair {{…}}",
                c.escape_default()
            ));
        }
        let braces: String = text.chars().filter(|c| "{}".contains(*c)).collect();
        if !(braces.is_empty() || braces == "{}" && !text.contains("{}")) {
            return Err("braces in a prefix must be one matched pair with something between, such as {acme}:".into());
        }
        Ok(Self(text.as_bytes().into()))
    }

    /// The bytes to put before a name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed() {
        let longest = "a".repeat(128);
        for text in ["a", "keyfence:", "{acme}:", "a{b}", "AZaz09_.:@/~+=,;!$%&#-", &longest] {
            assert_eq!(Prefix::new(text).map(|p| p.as_bytes().to_vec()), Ok(text.as_bytes().to_vec()));
        }
    }

    #[test]
    fn refused() {
        let long = "a".repeat(129);
        for text in [
            "", "a*", "a?", "[a]", "a\\", "a^", "a b", "a\t", "a\n", "a->b", "a\0", "é:", "\"", "'", "{", "}", "}{",
            "{}", "{a}{b}", "{{a}}", "(", "|", "<", "`", &long,
        ] {
            let sentence = Prefix::new(text).expect_err(text);
            assert!(!sentence.contains('\n'), "{text}: {sentence}");
        }
        assert_eq!(
            Prefix::new("a*")
                .map_err(|e| e.starts_with("a prefix may not hold '*', which means something in a pattern;")),
            Err(true)
        );
    }

    /// Every byte there is, so that no character slips in with a change of the list.
    #[test]
    fn the_allowed_set_is_exactly_the_documented_one() {
        let allowed: String = (0u8..=127).map(char::from).filter(|c| Prefix::new(&c.to_string()).is_ok()).collect();
        assert_eq!(
            allowed,
            "!#$%&+,-./0123456789:;=@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~".replace('^', "")
        );
    }
}
