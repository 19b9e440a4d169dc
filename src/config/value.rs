//! What one setting may hold: its kind, how its text is read, and the sentence when it cannot be.

use std::fmt;
use std::time::Duration;

/// Longest duration a setting takes: a year, far below where adding it to a clock could overflow.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// A password or an address that holds one: printed as `***`, by `Debug` as by `Display`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether nothing was set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a setting holds, and within which bounds (both ends included).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int(u64, u64),
    /// A time with its unit, such as `5s`; the bound is the least, in milliseconds.
    Duration(u64),
    /// Bytes, such as `64MiB`.
    Size(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
    /// A list of texts; separated by commas in an environment variable.
    Texts,
    /// A text that is never printed; may be given as the name of a file that holds it.
    Secret,
    /// A list of such texts; in a file, one a line.
    Secrets,
}

impl Kind {
    /// Whether a value of this kind is never shown.
    pub fn is_secret(self) -> bool {
        matches!(self, Self::Secret | Self::Secrets)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("true or false"),
            Self::Int(low, u64::MAX) => write!(f, "whole number, {low} or more"),
            Self::Int(low, high) => write!(f, "whole number, {low} to {high}"),
            Self::Duration(0) => f.write_str("duration"),
            Self::Duration(low) => write!(f, "duration, {low}ms or more"),
            Self::Size(0, u64::MAX) => f.write_str("size"),
            Self::Size(low, u64::MAX) => write!(f, "size, {low}B or more"),
            Self::Size(low, high) => write!(f, "size, {low}B to {high}B"),
            Self::Choice(words) => f.write_str(&words.join(" or ")),
            Self::Text => f.write_str("text"),
            Self::Texts => f.write_str("list of texts"),
            Self::Secret => f.write_str("text (secret)"),
            Self::Secrets => f.write_str("list of texts (secret)"),
        }
    }
}

/// A value as it was written, before its kind is looked at.
#[derive(Clone, Debug)]
pub(super) enum Written {
    /// From a file: a quoted text.
    Text(String),
    /// From a file: a number.
    Int(i64),
    /// From a file: `true` or `false`.
    Bool(bool),
    /// From a file: a list of texts.
    Texts(Vec<String>),
    /// From a file: anything else, by the name of its type.
    Other(&'static str),
    /// From the environment or the command line, where everything is text.
    Bare(String),
}

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Int(u64),
    Duration(Duration),
    Size(u64),
    Text(String),
    Texts(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Duration(Duration::ZERO) => f.write_str("0s"),
            Self::Duration(d) => write!(f, "{d:?}"),
            Self::Size(n) => {
                let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
                match units.iter().find(|(bits, _)| *n > 0 && n.trailing_zeros() >= *bits) {
                    Some((bits, unit)) => write!(f, "{}{unit}", n >> bits),
                    None => write!(f, "{n}B"),
                }
            }
            Self::Text(text) => f.write_str(text),
            Self::Texts(list) => f.write_str(&list.join(", ")),
        }
    }
}

/// Reads `written` as `kind`, or says in a clause what is wrong with it; never repeats a secret.
pub(super) fn read(kind: Kind, written: &Written) -> Result<Value, String> {
    match kind {
        Kind::Bool => match written {
            Written::Bool(b) => Ok(Value::Bool(*b)),
            Written::Bare(s) => match s.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Ok(Value::Bool(true)),
                "false" | "no" | "off" | "0" => Ok(Value::Bool(false)),
                _ => Err(format!("{} is neither true nor false", quoted(s))),
            },
            other => Err(unfit(other, "true or false")),
        },
        Kind::Int(low, high) => {
            let n = match written {
                Written::Int(n) => u64::try_from(*n).map_err(|_| format!("{n} is below {low}"))?,
                Written::Bare(s) => match s.trim().parse::<u64>() {
                    Ok(n) => n,
                    Err(_) => return Err(format!("{} is not a whole number", quoted(s))),
                },
                other => return Err(unfit(other, "a whole number")),
            };
            within(n, low, high, "").map(Value::Int)
        }
        Kind::Duration(least) => match written {
            Written::Text(s) | Written::Bare(s) => {
                let d = duration(s)?;
                if d < Duration::from_millis(least) {
                    return Err(format!("{} is too short; the least is {least}ms", quoted(s)));
                }
                Ok(Value::Duration(d))
            }
            Written::Int(n) => Err(format!("{n} needs a unit, such as \"{n}s\" or \"{n}ms\"")),
            other => Err(unfit(other, "a duration such as \"5s\"")),
        },
        Kind::Size(low, high) => {
            let n = match written {
                Written::Text(s) | Written::Bare(s) => size(s)?,
                Written::Int(n) => u64::try_from(*n).map_err(|_| format!("{n} is below {low}"))?,
                other => return Err(unfit(other, "a size such as \"64MiB\"")),
            };
            within(n, low, high, "B").map(Value::Size)
        }
        Kind::Choice(words) => match written {
            Written::Text(s) | Written::Bare(s) => {
                if words.contains(&s.as_str()) {
                    Ok(Value::Text(s.clone()))
                } else {
                    Err(format!("{} is not one of {}", quoted(s), words.join(", ")))
                }
            }
            other => Err(unfit(other, &format!("one of {}", words.join(", ")))),
        },
        Kind::Text | Kind::Secret => match written {
            Written::Text(s) | Written::Bare(s) => Ok(Value::Text(s.clone())),
            other => Err(unfit(other, "a text in quotes")),
        },
        Kind::Texts | Kind::Secrets => match written {
            Written::Texts(list) => Ok(Value::Texts(list.clone())),
            Written::Bare(s) => {
                Ok(Value::Texts(s.split(',').map(str::trim).filter(|s| !s.is_empty()).map(String::from).collect()))
            }
            other => Err(unfit(other, "a list such as [\"a\", \"b\"]")),
        },
    }
}

/// `text` in single quotes, with control characters escaped so that an error stays one line.
pub(super) fn quoted(text: &str) -> String {
    let text: String =
        text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect();
    format!("'{text}'")
}

fn unfit(written: &Written, wanted: &str) -> String {
    let found = match written {
        Written::Text(_) | Written::Bare(_) => "a text",
        Written::Int(_) => "a number",
        Written::Bool(_) => "true or false",
        Written::Texts(_) => "a list",
        Written::Other(name) => name,
    };
    format!("expected {wanted}, found {found}")
}

fn within(n: u64, low: u64, high: u64, unit: &str) -> Result<u64, String> {
    if n < low || n > high {
        return Err(if high == u64::MAX {
            format!("{n}{unit} is below {low}{unit}")
        } else {
            format!("{n}{unit} is not between {low}{unit} and {high}{unit}")
        });
    }
    Ok(n)
}

/// `1h30m`, `5s`, `100ms`: whole numbers, each with its unit; `0` needs none.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{} is not a duration; write it as 100ms, 5s, 10m, 2h, 1d or 1m30s", quoted(text));
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (digits, after) = split_where(rest, |c| !c.is_ascii_digit());
        let (unit, after) = split_where(after, |c| c.is_ascii_digit() || c == ' ');
        let n: u64 = digits.parse().map_err(|_| wrong())?;
        let part = match unit {
            "us" => Some(Duration::from_micros(n)),
            "ms" => Some(Duration::from_millis(n)),
            "s" => Some(Duration::from_secs(n)),
            "m" => n.checked_mul(60).map(Duration::from_secs),
            "h" => n.checked_mul(3600).map(Duration::from_secs),
            "d" => n.checked_mul(86_400).map(Duration::from_secs),
            _ => return Err(wrong()),
        };
        total = part
            .and_then(|p| total.checked_add(p))
            .filter(|d| *d <= MAX_DURATION)
            .ok_or_else(|| format!("{} is longer than a year", quoted(text)))?;
        rest = after.trim_start();
    }
    if text.trim().is_empty() { Err(wrong()) } else { Ok(total) }
}

/// `1024`, `512MB`, `64MiB`: a whole number and a unit, decimal (`kB MB GB TB`) or binary (`KiB MiB GiB TiB`).
fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = split_where(text.trim(), |c| !c.is_ascii_digit());
    let factor: Option<u64> = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "tb" => Some(1_000_000_000_000),
        "kib" => Some(1 << 10),
        "mib" => Some(1 << 20),
        "gib" => Some(1 << 30),
        "tib" => Some(1 << 40),
        _ => None,
    };
    factor
        .zip(digits.parse::<u64>().ok())
        .and_then(|(factor, n)| n.checked_mul(factor))
        .ok_or_else(|| format!("{} is not a size; write it as 1024, 512MB or 64MiB", quoted(text)))
}

fn split_where(text: &str, at: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(at).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("5s", 5000),
            ("1m", 60_000),
            ("100ms", 100),
            ("0s", 0),
            ("0", 0),
            ("1m30s", 90_000),
            ("1h 1ms", 3_600_001),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            " ",
            "5",
            "s",
            "5 s",
            "5s5",
            "-1s",
            "1.5s",
            "5sec",
            "5é",
            "366d",
            "99999999999999999999s",
            "9999999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, n) in
            [("1024", 1024), ("0B", 0), ("64MiB", 64 << 20), ("512MB", 512_000_000), ("1 GiB", 1 << 30), ("2kb", 2000)]
        {
            assert_eq!(size(text), Ok(n), "{text}");
        }
        for text in ["", "MiB", "64M", "-1", "1.5MB", "99999999TiB", "1é"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_print_as_stars() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_wrong_type_is_named() {
        assert_eq!(
            read(Kind::Int(0, 9), &Written::Text("5".into())),
            Err("expected a whole number, found a text".into())
        );
        assert_eq!(read(Kind::Int(1, 9), &Written::Bare("10".into())), Err("10 is not between 1 and 9".into()));
        assert_eq!(read(Kind::Duration(0), &Written::Int(5)), Err("5 needs a unit, such as \"5s\" or \"5ms\"".into()));
        assert_eq!(read(Kind::Bool, &Written::Bare("a\nb".into())), Err("'a\\nb' is neither true nor false".into()));
        assert_eq!(read(Kind::Texts, &Written::Bare("a, b,".into())), Ok(Value::Texts(vec!["a".into(), "b".into()])));
    }
}
