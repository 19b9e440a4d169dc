//! Errors by kind: the first word of what a client is told, of a fixed list, so that nobody can make up new ones.

/// The kinds, as a label shows them.
pub const KINDS: [&str; 31] = [
    "err",
    "wrongtype",
    "noperm",
    "noauth",
    "wrongpass",
    "throttled",
    "overquota",
    "upstream_unreachable",
    "upstream_timeout",
    "upstream_lost",
    "busy",
    "unknown_command",
    "wrong_arguments",
    "protocol",
    "max_clients",
    "execabort",
    "noscript",
    "nogroup",
    "busygroup",
    "busykey",
    "oom",
    "misconf",
    "loading",
    "readonly",
    "crossslot",
    "noreplicas",
    "unblocked",
    "notbusy",
    "unkillable",
    "noproto",
    "other",
];

/// One of [`KINDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorKind(u8);

impl ErrorKind {
    /// Of an error `line`, without the leading `-`.
    pub fn of(line: &[u8]) -> Self {
        let word = line.split(|c| matches!(c, b' ' | b'\r' | b'\n')).next().unwrap_or_default();
        let rest = line.get(word.len() + 1..).unwrap_or_default();
        let name = match word {
            b"UPSTREAM" if rest.starts_with(b"timed out") => "upstream_timeout",
            b"UPSTREAM" if rest.starts_with(b"connection lost") => "upstream_lost",
            b"UPSTREAM" => "upstream_unreachable",
            b"ERR" if rest.starts_with(b"unknown") || rest.starts_with(b"Unknown") => "unknown_command",
            b"ERR" if rest.starts_with(b"wrong number of arguments") => "wrong_arguments",
            b"ERR" if rest.starts_with(b"Protocol error") => "protocol",
            b"ERR" if rest.starts_with(b"max number of clients") => "max_clients",
            word => return Self::named(word),
        };
        Self::named(name.as_bytes())
    }

    fn named(word: &[u8]) -> Self {
        let known = KINDS.iter().position(|kind| word.eq_ignore_ascii_case(kind.as_bytes()));
        Self(u8::try_from(known.unwrap_or(KINDS.len() - 1)).unwrap_or(0))
    }

    /// Its place in [`KINDS`].
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_kinds() {
        for (line, kind) in [
            ("ERR syntax error", "err"),
            ("ERR", "err"),
            ("ERR unknown command 'x', with args beginning with: ", "unknown_command"),
            ("ERR wrong number of arguments for 'get' command", "wrong_arguments"),
            ("WRONGTYPE Operation against\r\n", "wrongtype"),
            ("UPSTREAM timed out after 5s", "upstream_timeout"),
            ("UPSTREAM unreachable: x", "upstream_unreachable"),
            ("UPSTREAM connection lost", "upstream_lost"),
            ("THROTTLED tenant 'a'", "throttled"),
            ("MYSCRIPT made this up", "other"),
            ("", "other"),
        ] {
            assert_eq!(KINDS[ErrorKind::of(line.as_bytes()).index()], kind, "{line}");
        }
    }
}
