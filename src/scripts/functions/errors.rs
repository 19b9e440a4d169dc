//! What a server says of a library, in the tenant's own names, and as it would say it of a library without a prelude.

use super::library::{FUNCTIONS, NAMES, Tag};

/// While a library loads, the prelude can tell a string or a function from something else only by what Lua says of using it as one. That,
/// and what Redis says.
const SAID: &[(&str, &str)] = &[
    (
        "attempt to concatenate local 'function_name' (",
        "ERR first argument to redis.register_function must be a string",
    ),
    ("bad argument #1 to 'second' (", "ERR second argument to redis.register_function must be a function"),
    (
        "attempt to index local 'function_name' (",
        "ERR calling redis.register_function with a single argument is only applicable to Lua table (representing named arguments).",
    ),
    (
        "attempt to concatenate local 'named' (",
        "ERR function_name argument given to redis.register_function must be a string",
    ),
    (
        "attempt to concatenate local 'description' (",
        "ERR description argument given to redis.register_function must be a string",
    ),
    (
        "bad argument #1 to 'callback_argument' (",
        "ERR callback argument given to redis.register_function must be a function",
    ),
];

/// Where the prelude stands.
const PRELUDE: &str = "Error registering functions: ERR user_function:2: ";

/// What scripts have that a library does not find in `redis` while it loads.
const LATER: &[&str] = &[
    "call",
    "pcall",
    "setresp",
    "error_reply",
    "status_reply",
    "sha1hex",
    "set_repl",
    "replicate_commands",
    "breakpoint",
    "debug",
    "acl_check_cmd",
];

/// The error `text` of a FUNCTION command, as the client is told it.
pub(super) fn said(text: &str, tag: &Tag) -> String {
    if text.contains("'too_many_functions'") {
        return format!(
            "BUSY a library may have {FUNCTIONS} functions at the most, with {NAMES} bytes of names and descriptions"
        );
    }
    if let Some((before, rest)) = text.split_once(PRELUDE)
        && let Some((_, redis)) = SAID.iter().find(|(lua, _)| rest.starts_with(lua))
    {
        return format!("{before}Error registering functions: {redis}");
    }
    if let Some((before, rest)) = text.split_once("attempt to call field '")
        && let Some((field, "(a nil value)")) = rest.split_once("' ")
        && LATER.contains(&field)
    {
        return format!("{before}Script attempted to access nonexistent global variable '{field}'");
    }
    text.replace(tag.as_str(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_in_the_servers_words_and_the_tenants_names() {
        let tag = Tag::of(b"a:");
        for (text, told) in [
            ("ERR Function keyfence_a_3a__f already exists", "ERR Function f already exists"),
            ("ERR Library 'keyfence_a_3a__l' already exists", "ERR Library 'l' already exists"),
            (
                "ERR Error registering functions: ERR user_function:7: attempt to call field 'call' (a nil value)",
                "ERR Error registering functions: ERR user_function:7: Script attempted to access nonexistent global variable 'call'",
            ),
            (
                "ERR Error registering functions: ERR user_function:2: bad argument #1 to 'second' (function expected, got nil)",
                "ERR Error registering functions: ERR second argument to redis.register_function must be a function",
            ),
            (
                "ERR Error registering functions: ERR user_function:7: attempt to call field 'mine' (a nil value)",
                "ERR Error registering functions: ERR user_function:7: attempt to call field 'mine' (a nil value)",
            ),
        ] {
            assert_eq!(said(text, &tag), told);
        }
    }
}
