//! The reply of a function: its values are the function's own and pass as they come; an error text names it as its client does.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::script;

/// What is needed to pass on the reply of a function.
#[derive(Clone)]
pub struct Function {
    /// What stands before its name upstream.
    pub tag: Arc<str>,
    /// Its name as its client knows it, in any case.
    pub name: Box<[u8]>,
    /// The tenant's name, in place of the upstream's user.
    pub tenant: Arc<str>,
    /// Set when the upstream does not know it.
    pub doubt: Arc<AtomicBool>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({})", self.name.escape_ascii())
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.tag == other.tag && self.name == other.name
    }
}

impl Function {
    /// What of the error `line`, which begins with `-` and has no CRLF, is passed on.
    pub(super) fn error(&self, line: &[u8]) -> Vec<u8> {
        if line == b"-ERR Function not found" {
            self.doubt.store(true, Ordering::Relaxed);
        }
        if let Some(text) = script::of_the_upstream(line) {
            return text;
        }
        let mut text = line.to_vec();
        const MARK: &[u8] = b" script: ";
        if let Some(at) = memchr::memmem::rfind(&text, &[MARK, self.tag.as_bytes()].concat()) {
            let (tag, name) = (at + MARK.len(), at + MARK.len() + self.tag.len());
            let named = text.get(name..name + self.name.len()).is_some_and(|n| n.eq_ignore_ascii_case(&self.name));
            if named && text[name + self.name.len()..].starts_with(b", on ") {
                text.drain(tag..name);
            }
        }
        script::name_tenant(&mut text, &self.tenant);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_function_as_its_client_knows_it() {
        let doubt = Arc::<AtomicBool>::default();
        let function = Function {
            tag: "keyfence_a_3a__".into(),
            name: b"F"[..].into(),
            tenant: "acme".into(),
            doubt: Arc::clone(&doubt),
        };
        for (line, told) in [
            (
                "-WRONGTYPE x script: keyfence_a_3a__f, on @user_function:3.",
                "-WRONGTYPE x script: f, on @user_function:3.",
            ),
            ("-MY keyfence_a_3a__f", "-MY keyfence_a_3a__f"),
            (
                "-ERR ACL failure in script: User keyfence-1f-00-data-3-acme has no",
                "-ERR ACL failure in script: User acme has no",
            ),
            ("-ERR unknown command 'FCALL', with args beginning with: 'x' 'a:k' ", "-ERR unknown command 'FCALL'"),
        ] {
            assert_eq!(String::from_utf8(function.error(line.as_bytes())).expect("text"), told);
            assert!(!doubt.load(Ordering::Relaxed));
        }
        function.error(b"-ERR Function not found");
        assert!(doubt.load(Ordering::Relaxed));
    }
}
