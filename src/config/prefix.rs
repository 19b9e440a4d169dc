//! The bytes that a tenant's names begin with upstream, and which bytes those may be.

use std::fmt::{self, Write as _};

/// Longest prefix, in bytes.
const MAX: usize = 128;
/// What a prefix may be made of besides letters, digits and one pair of braces: nothing that a glob or a SORT template reads.
const MARKS: &str = "_.:@/~+=,;!$%&#-";

/// A checked prefix: 1 to 128 bytes, none of which means anything in a pattern; or none, for a tenant that is alone on its upstream.
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

    /// No prefix.
    pub fn none() -> Self {
        Self(Box::default())
    }

    /// Whether it is none.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
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

/// How a login name makes a prefix: a text with `{user}` in it.
///
/// What stands for the name holds letters, digits, `_ . - @ + = ~ /` and `%XX` only, and what follows it begins with another character:
/// so two names make two prefixes, and neither begins with the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    before: String,
    after: String,
}

/// What of a login name stays as it is, besides letters and digits.
const PLAIN: &[u8] = b"_.-@+=~/";

impl Template {
    /// Checks `text`.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let (before, after) =
            text.split_once("{user}").ok_or("{user} must stand in it, for the login name, such as {user}:")?;
        let template = Self { before: before.into(), after: after.into() };
        match after.bytes().next() {
            Some(b'}') => {}
            Some(c) if !c.is_ascii_alphanumeric() && !PLAIN.contains(&c) && c != b'%' => {}
            _ => {
                return Err(
                    "after {user} there must be one of : , ; ! $ & # or }, which no name holds: else one user's keys \
                            could begin with another's"
                        .into(),
                );
            }
        }
        template.of(b"a").map(|_| template)
    }

    /// The prefix of a login name; the error is a clause.
    pub fn of(&self, user: &[u8]) -> Result<Prefix, String> {
        let mut text = self.before.clone();
        for &c in user {
            if c.is_ascii_alphanumeric() || PLAIN.contains(&c) {
                text.push(char::from(c));
            } else {
                let _ = write!(text, "%{c:02X}");
            }
        }
        Prefix::new(&(text + &self.after))
    }

    /// Whether `key` begins with the prefix of some login name.
    pub fn claims(&self, key: &[u8]) -> bool {
        let Some(rest) = key.strip_prefix(self.before.as_bytes()) else { return false };
        let plain = |c: &u8| c.is_ascii_alphanumeric() || PLAIN.contains(c) || *c == b'%';
        let name = rest.iter().take_while(|c| plain(c)).count();
        rest.get(name..).is_some_and(|rest| rest.starts_with(self.after.as_bytes()))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{{user}}{}", self.before, self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n4_a_login_name_makes_a_prefix_of_its_own() {
        let of = |template: &str, user: &str| {
            Template::new(template).and_then(|t| t.of(user.as_bytes())).map(|p| p.to_string())
        };
        for (template, user, prefix) in [
            ("{user}:", "acme", "acme:"),
            ("{user}:", "a:b", "a%3Ab:"),
            ("{user}:", "a%3Ab", "a%253Ab:"),
            ("{user}:", "a*[b]", "a%2A%5Bb%5D:"),
            ("{user}:", "{a}", "%7Ba%7D:"),
            ("{user}:", "é", "%C3%A9:"),
            ("t/{{user}}:", "joe@x.org", "t/{joe@x.org}:"),
        ] {
            assert_eq!(of(template, user), Ok(prefix.into()));
            assert!(Template::new(template).unwrap().claims(format!("{prefix}key").as_bytes()));
        }
        for template in ["", "user:", "{user}", "{user}x", "{user}%", "{user}-", "*{user}:", "{user}:*", "{{user}:"] {
            assert!(Template::new(template).is_err(), "{template}");
        }
        assert!(of("{user}:", &"a".repeat(128)).is_err());
        let template = Template::new("t:{user}:").unwrap();
        for (key, claimed) in [("t:a:k", true), ("t::k", true), ("t:a", false), ("u:a:k", false), ("t:a*:k", false)] {
            assert_eq!(template.claims(key.as_bytes()), claimed, "{key}");
        }
    }

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
