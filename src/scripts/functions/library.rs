//! A library as its client wrote it and as it is upstream: names that carry the tenant, and a prelude before the code.
//!
//! ```text
//!   #!lua name=stock                        #!lua name=keyfence_acme_3a__stock
//!   redis.register_function('sell', …)  ►   --[[keyfence 1 <first line> <length>]]local redis=… end redis.register_function('sell', …)
//! ```
//!
//! The comment holds what is needed to give the source back byte for byte. Lines keep their numbers.

use std::{
    borrow::Cow,
    sync::{Arc, LazyLock},
};

use crate::{
    command::Row,
    resp::request,
    scripts::prelude::{self, World},
};

/// Most functions of one library.
pub const FUNCTIONS: usize = 1000;
/// Most bytes of the names, as they are upstream, and descriptions of one library's functions.
pub const NAMES: usize = 64 * 1024;

/// The text, without its comments, in one line.
static PRELUDE: LazyLock<String> = LazyLock::new(|| prelude::template(include_str!("prelude.lua")));

/// What every comment of ours begins with, to the first line of the source in hexadecimal digits.
const MARK: &[u8] = b"--[[keyfence 1 ";
/// What a server says of a name it does not take, of a library or of a function.
const BAD_NAME: &str =
    "ERR Library names can only contain letters, numbers, or underscores(_) and must be at least one character long";

/// What the names of a tenant's libraries and functions begin with upstream.
///
/// `keyfence_`, the prefix, `__`: small letters and digits of the prefix stand for themselves, any other byte is `_` and two hexadecimal
/// digits. So what follows `keyfence_` is read in one way only, up to the first `_` that another one follows: no two prefixes have the same
/// tag, and none begins with another's. Nor in another case: servers find functions whatever the case of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(Arc<str>);

impl Tag {
    /// The tag of the tenant whose names have this prefix.
    pub fn of(prefix: &[u8]) -> Self {
        let mut tag = String::from("keyfence_");
        for &byte in prefix {
            if byte.is_ascii_lowercase() || byte.is_ascii_digit() {
                tag.push(byte.into());
            } else {
                tag.push_str(&format!("_{byte:02x}"));
            }
        }
        tag.push_str("__");
        Self(tag.into())
    }

    /// A name upstream.
    pub fn put(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    /// The tenant's name of what is called so upstream; `None`: it is not this tenant's.
    pub fn strip<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        name.strip_prefix(self.0.as_bytes())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As text that is shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

/// The name in a library's first line, as Redis reads it, and how long that line is, its end excluded.
///
/// # Errors
/// What Redis says of it, as an error line.
pub fn name(source: &[u8]) -> Result<(String, usize), String> {
    const INVALID: &str = "ERR Invalid library metadata";
    if !source.starts_with(b"#!") {
        return Err("ERR Missing library metadata".into());
    }
    let end = memchr::memchr(b'\n', source).ok_or(INVALID)?;
    if memchr::memchr(0, &source[..end]).is_some() {
        return Err(INVALID.into());
    }
    let words = request::split(&source[..end]).ok_or(INVALID)?;
    let (engine, words) = words.split_first().ok_or(INVALID)?;
    let mut name = None;
    for word in words {
        let (key, rest) = word.split_at(word.len().min(b"name=".len()));
        let value = key.eq_ignore_ascii_case(b"name=").then_some(rest);
        match (value, &name) {
            (Some(value), None) => name = Some(value),
            (Some(_), Some(_)) => {
                return Err("ERR Invalid metadata value, name argument was given multiple times".into());
            }
            (None, _) => return Err(format!("ERR Invalid metadata value given: {}", String::from_utf8_lossy(word))),
        }
    }
    let name = name.ok_or("ERR Library name was not given")?;
    if name.is_empty() || !name.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'_') {
        return Err(BAD_NAME.into());
    }
    let engine = &engine[2..];
    if !engine.eq_ignore_ascii_case(b"lua") {
        return Err(format!("ERR Engine '{}' not found", String::from_utf8_lossy(engine)));
    }
    // Letters, digits and underscores.
    Ok((String::from_utf8_lossy(name).into_owned(), end))
}

/// A library as it is sent upstream: `source` is named `name` in its first line, of `line` bytes, as [`name`] says. `has` says which
/// commands the upstream knows.
pub fn wrap(
    source: &[u8],
    name: &str,
    line: usize,
    tag: &Tag,
    world: &World<'_>,
    has: impl Fn(&Row) -> bool,
) -> Vec<u8> {
    let (head, body) = (&source[..line], &source[line + 1..]);
    let mut code = Vec::with_capacity(8 * 1024);
    prelude::fill(&PRELUDE, &mut code, |blank| match blank {
        "TAG" => prelude::literal(tag.as_str().as_bytes()).into(),
        "MOST" => FUNCTIONS.to_string().into(),
        "BYTES" => NAMES.to_string().into(),
        "LINE" => "2".into(),
        "NAMES" if world.valkey => "redis,server".into(),
        "ALIAS" if world.valkey => "server=X".into(),
        "ACL" => match prelude::filled(blank, body, 2, world, &has) {
            Cow::Borrowed("") => "".into(),
            _ => "X.acl_check_cmd=function(...) if not M[1] then f() end return M[1](R.acl_check_cmd,...) end".into(),
        },
        _ => prelude::filled(blank, body, 2, world, &has),
    });
    code.push(b' ');
    let mut out = Vec::with_capacity(source.len() + line + code.len() + 256);
    out.extend_from_slice(format!("#!lua name={}\n", tag.put(name)).as_bytes());
    out.extend_from_slice(MARK);
    head.iter().for_each(|byte| out.extend_from_slice(format!("{byte:02x}").as_bytes()));
    out.extend_from_slice(format!(" {}]]", code.len()).as_bytes());
    out.extend_from_slice(&code);
    out.extend_from_slice(body);
    out
}

/// What [`wrap`] was given; `None`: it did not make this.
pub fn unwrap(code: &[u8]) -> Option<Vec<u8>> {
    let first = memchr::memchr(b'\n', code)? + 1;
    let rest = code[first..].strip_prefix(MARK)?;
    let end = memchr::memmem::find(rest, b"]]")?;
    let (head, len) = std::str::from_utf8(&rest[..end]).ok()?.split_once(' ')?;
    let body = rest.get(end + 2..)?.get(len.parse().ok()?..)?;
    let mut source = Vec::with_capacity(head.len() / 2 + 1 + body.len());
    for pair in head.as_bytes().chunks(2) {
        source.push(u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?);
    }
    source.push(b'\n');
    source.extend_from_slice(body);
    Some(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WORLD: World<'static> = World { prefix: b"t1:", db_base: 0, databases: 1, walled: true, valkey: false };

    #[test]
    fn s8_no_tag_is_anothers() {
        assert_eq!(Tag::of(b"acme:").as_str(), "keyfence_acme_3a__");
        assert_eq!(Tag::of(b"").as_str(), "keyfence___");
        let prefixes: [&[u8]; 10] = [b"a:", b"a_", b"a__", b"a_3a", b"a_3a__", b"", b"_", b"a:b", b"A:", b"\x5f\x5f"];
        for a in prefixes {
            for b in prefixes.iter().filter(|b| **b != a) {
                let lower = |prefix| Tag::of(prefix).as_str().to_ascii_lowercase();
                assert!(!lower(a).starts_with(&lower(b)), "{a:?} {b:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn s8_any_two_tags_are_apart(a in prop::collection::vec(any::<u8>(), 0..6), b in prop::collection::vec(any::<u8>(), 0..6)) {
            let (ta, tb) = (Tag::of(&a), Tag::of(&b));
            prop_assert_eq!(ta.as_str().starts_with(tb.as_str()), a == b);
            prop_assert!(ta.as_str().bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_'));
        }

        #[test]
        fn a_source_comes_back_byte_for_byte(head in "#!lua [ -~]{0,20}", body in prop::collection::vec(any::<u8>(), 0..80)) {
            let source = [head.as_bytes(), b"\n", &body].concat();
            let wrapped = wrap(&source, "x", head.len(), &Tag::of(b"t1:"), &WORLD, |_| true);
            prop_assert_eq!(unwrap(&wrapped), Some(source));
        }
    }

    #[test]
    fn metadata_is_read_as_redis_reads_it() {
        for (source, said) in [
            ("", "ERR Missing library metadata"),
            ("return 1", "ERR Missing library metadata"),
            ("#!lua name=x", "ERR Invalid library metadata"),
            ("#!lua 'name=x\n", "ERR Invalid library metadata"),
            ("#!lua name=x\0\n", "ERR Invalid library metadata"),
            ("#!lua\n", "ERR Library name was not given"),
            ("#!\n", "ERR Library name was not given"),
            ("#!lua name=\n", BAD_NAME),
            ("#!lua name=a-b\n", BAD_NAME),
            ("#!lua name=a name=b\n", "ERR Invalid metadata value, name argument was given multiple times"),
            ("#!lua name=a x=1\n", "ERR Invalid metadata value given: x=1"),
            ("#!foo name=a\n", "ERR Engine 'foo' not found"),
        ] {
            assert_eq!(name(source.as_bytes()), Err(said.to_owned()), "{source:?}");
        }
        for source in ["#!lua name=a_1\n", "#!LUA\tNAME=\"a_1\" \r\n", "#!lua name='a_1'\nx\ny"] {
            assert_eq!(name(source.as_bytes()).map(|(name, _)| name), Ok("a_1".to_owned()), "{source:?}");
        }
    }

    #[test]
    fn a_library_keeps_its_lines_and_every_blank_is_filled() {
        let source = b"#!lua  name=x\nredis.acl_check_cmd() cjson()\nb";
        let text = wrap(source, "x", 13, &Tag::of(b"t1:"), &WORLD, |_| true);
        let text = String::from_utf8(text).expect("text");
        assert!(
            text.starts_with("#!lua name=keyfence_t1_3a__x\n--[[keyfence 1 ") && text.lines().count() == 3,
            "{text}"
        );
        assert!(text.ends_with(" redis.acl_check_cmd() cjson()\nb"));
        let blank = |word: &&str| {
            word.split_once('>')
                .is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|c| c.is_ascii_uppercase()))
        };
        assert_eq!(text.split('<').skip(1).find(blank), None);
    }
}
