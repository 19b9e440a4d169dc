//! `keyfence explain`: what the proxy would do with a command, without an upstream.

use std::fmt::Write as _;

use crate::{
    command::{self, Args, Class, Flags, Keep, Lookup, Row, Shape, Slot},
    config::{Scripts, Tenant},
    glob, pubsub, resp,
    rewrite::{self, Namespace},
    scripts::functions,
    tenant::Permitted,
    tier::LONGEST,
};

/// The explanation of `words`, the command word first, sent by `tenant`.
pub fn explain(tenant: &Tenant, words: &[Vec<u8>]) -> String {
    let (frame, spans) = frame(words);
    let args = Args::new(&frame, &spans);
    let mut out = String::new();
    let row = match command::lookup(&args) {
        Lookup::Found(row) => row,
        Lookup::Unknown => {
            let _ = writeln!(
                out,
                "refused     not in the command table\nreply       -{}",
                String::from_utf8_lossy(&command::unknown_command_error(&args))
            );
            return out;
        }
        Lookup::UnknownSubcommand(container) => {
            let _ = writeln!(
                out,
                "refused     not in the command table\nreply       -{}",
                String::from_utf8_lossy(&container.unknown_subcommand_error(args.at(1)))
            );
            return out;
        }
    };
    let _ = writeln!(out, "command     {}\nclass       {}", row.lower_name(), row.class.as_str());
    if let Some(error) = command::refusal(row, &args) {
        let _ = writeln!(out, "refused     answered here\nreply       -{error}");
        return out;
    }
    let denied = row.served() && !Permitted::from_lists(&tenant.allow, &tenant.deny).has(row);
    if denied || !row.served() {
        let why = if denied {
            "denied to this tenant by its settings"
        } else if matches!(row.class, Class::Denied) {
            "reaches past the namespace"
        } else {
            "not served by this version"
        };
        let _ = writeln!(
            out,
            "refused     {why}\nreply       -NOPERM User {} has no permissions to run the '{}' command",
            tenant.name,
            row.lower_name()
        );
        if !denied && row.note != "-" {
            let _ = writeln!(out, "why         {}", row.note);
        }
        return out;
    }
    match row.class {
        Class::Script => script(&mut out, tenant, row, &args),
        Class::Keyed | Class::Keyless => forwarded(&mut out, tenant, row, &frame, &spans, &args),
        Class::Scoped if row.flags.has(Flags::PUBSUB) => subscription(&mut out, tenant, row, &args),
        _ if row.name == "CLIENT TRACKING" => {
            let _ = writeln!(
                out,
                "upstream    the same, on a connection of the session's own; prefix {} before every PREFIX, or as the one there is\nreply       as it comes; pushes: prefix taken off",
                shown(tenant.prefix.as_bytes())
            );
        }
        Class::Scoped => {
            let pattern = [&glob::escape(tenant.prefix.as_bytes())[..], b"*"].concat();
            let _ = writeln!(
                out,
                "upstream    SCAN cursor MATCH {} …, in pages; names are checked for the prefix again",
                shown(&pattern)
            );
            let _ = writeln!(out, "reply       made here, names without the prefix");
        }
        _ => {
            let _ = writeln!(out, "upstream    nothing\nreply       made here");
        }
    }
    out
}

/// SUBSCRIBE and its kin: what the upstream hears of it.
fn subscription(out: &mut String, tenant: &Tenant, row: &Row, args: &Args<'_>) {
    let prefix = tenant.prefix.as_bytes();
    let what = if row.name.contains("UNSUBSCRIBE") {
        "nothing, unless nobody else of the tenant's on this worker has the subscription".to_owned()
    } else {
        let mut commands: Vec<String> = Vec::new();
        let (special, plain): (Vec<&[u8]>, Vec<&[u8]>) = args.iter().skip(1).partition(|name| pubsub::special(name));
        if row.name == "PSUBSCRIBE" {
            let all = [&glob::escape(prefix)[..], b"*"].concat();
            commands.push(format!("PSUBSCRIBE {}, matched here against the tenant's own channels", shown(&all)));
        } else if !plain.is_empty() {
            let names: Vec<String> = plain.iter().map(|name| shown(&[prefix, name].concat())).collect();
            commands.push(format!("{} {}, once per worker", row.name, names.join(" ")));
        }
        if !special.is_empty() && row.name != "SSUBSCRIBE" {
            commands.push("notifications of the tenant's own keys, as keyfence itself".into());
        }
        commands.join("; ")
    };
    let _ = writeln!(
        out,
        "upstream    {what}\nreply       made here, one acknowledgement per name; messages without the prefix"
    );
}

fn script(out: &mut String, tenant: &Tenant, row: &Row, args: &Args<'_>) {
    let _ = match tenant.scripts {
        Scripts::Off => {
            let _ = writeln!(out, "refused     scripts are off for this tenant (scripts = \"off\")");
            return;
        }
        Scripts::Auto => {
            writeln!(out, "if          an ACL wall stands upstream and scripts cannot alter one another there")
        }
        Scripts::On => writeln!(
            out,
            "if          always (scripts = \"on\"): without a wall the rewriting in the script is all there is"
        ),
    };
    if functions::is_one(row) {
        return function(out, tenant, row, args);
    }
    if row.container().is_some() {
        let _ = match row.word {
            "LOAD" => writeln!(out, "upstream    SCRIPT LOAD, with the prelude before the script, as keyfence itself"),
            "KILL" => writeln!(out, "upstream    SCRIPT KILL, if what runs there is a script of this tenant"),
            _ => writeln!(out, "upstream    nothing"),
        };
        let _ = writeln!(out, "reply       made here, from the tenant's own table of scripts");
        return;
    }
    let mut marks = Vec::new();
    command::walk(row, args, &mut marks);
    let key = |i: usize| marks.iter().any(|(at, _)| *at as usize == i);
    let rest: Vec<String> = (2..args.len())
        .map(|i| if key(i) { shown(&[tenant.prefix.as_bytes(), args.at(i)].concat()) } else { shown(args.at(i)) })
        .collect();
    let name = if row.name.ends_with("_RO") { "EVALSHA_RO" } else { "EVALSHA" };
    let _ = writeln!(out, "upstream    {name} <SHA1 of the script with the prelude before it> {}", rest.join(" "));
    let _ = writeln!(out, "            with the whole script instead where the upstream has not seen it");
    let _ =
        writeln!(out, "in it       names get the prefix when redis.call is made, and lose it in KEYS and in replies");
    let _ = writeln!(out, "reply       the script's own; errors name it by the SHA1 of its own source");
    let _ = writeln!(out, "connection  shared, as the user that the upstream confines in every command");
}

fn function(out: &mut String, tenant: &Tenant, row: &Row, args: &Args<'_>) {
    let tag = functions::library::Tag::of(tenant.prefix.as_bytes());
    let named = |i: usize| shown(&[tag.as_str().as_bytes(), args.at(i)].concat());
    if row.name.starts_with("FUNCTION") {
        let what = match row.word {
            "LOAD" => format!(
                "FUNCTION LOAD, names behind {} and a prelude before the code; then FUNCTION LIST, by which every name is looked at",
                tag.as_str()
            ),
            "DELETE" if args.len() > 2 => format!("FUNCTION DELETE {}", named(2)),
            "FLUSH" => format!("FUNCTION DELETE of every library behind {}", tag.as_str()),
            "LIST" => format!("FUNCTION LIST LIBRARYNAME {}…", tag.as_str()),
            "STATS" => "FUNCTION STATS".to_owned(),
            "KILL" => "FUNCTION KILL, if what runs there is a function of this tenant".to_owned(),
            _ => "nothing".to_owned(),
        };
        let _ = writeln!(
            out,
            "upstream    {what}, as keyfence itself\nreply       made here, names and code as the client wrote them"
        );
        return;
    }
    let mut marks = Vec::new();
    command::walk(row, args, &mut marks);
    let key = |i: usize| marks.iter().any(|(at, _)| *at as usize == i);
    let rest: Vec<String> = (2..args.len())
        .map(|i| if key(i) { shown(&[tenant.prefix.as_bytes(), args.at(i)].concat()) } else { shown(args.at(i)) })
        .collect();
    let _ = writeln!(out, "upstream    {} {} {}", row.name, named(1), rest.join(" "));
    let _ = writeln!(out, "            if the tenant has a function of this name there");
    let _ =
        writeln!(out, "in it       names get the prefix when redis.call is made, and lose it in keys and in replies");
    let _ = writeln!(out, "reply       the function's own; errors name it as the client does");
    let _ = writeln!(out, "connection  shared, as the user that the upstream confines in every command");
}

fn forwarded(out: &mut String, tenant: &Tenant, row: &Row, frame: &[u8], spans: &[command::Span], args: &Args<'_>) {
    let ns = Namespace { prefix: tenant.prefix.as_bytes(), db_base: tenant.db, databases: tenant.databases };
    let (mut marks, mut sent) = (Vec::new(), Vec::new());
    if rewrite::request(row, frame, spans, &ns, &mut marks, &mut sent).is_err() {
        let _ = writeln!(out, "refused     a key is longer than 512 MiB with the prefix");
        return;
    }
    let (mut sent_spans, mut progress) = (Vec::new(), resp::request::Progress::default());
    resp::request::parse(&sent, &mut sent_spans, &mut progress, &resp::request::Limits::FULL);
    let line: Vec<String> = Args::new(&sent, &sent_spans).iter().map(shown).collect();
    let _ = writeln!(out, "upstream    {}", line.join(" "));
    command::walk(row, args, &mut marks);
    let names: Vec<String> =
        marks.iter().filter(|(_, slot)| *slot != Slot::Db).map(|&(i, _)| shown(args.at(i as usize))).collect();
    let _ = writeln!(out, "names       {}", if names.is_empty() { "none".into() } else { names.join(" ") });
    let reply = match row.reply.shape {
        Shape::First => "the first element is a name: prefix taken off",
        Shape::Names => "every element is a name: prefix taken off",
        Shape::Xread => "stream names: prefix taken off",
        Shape::Exec => "each reply by its own command",
        Shape::Raw if row.flags.has(Flags::PUBSUB) => "the number of the tenant's own receivers in this process",
        Shape::Raw | Shape::Other(_) => "passed as it comes",
    };
    let _ = writeln!(
        out,
        "reply       {reply}{}",
        if row.reply.nogroup { "; a -NOGROUP text is said again in the client's names" } else { "" }
    );
    let _ = writeln!(out, "tier        {}", tier(tenant, row, args, frame.len()));
    let needs = if command::is_blocking(row, args) { "one of its own while it waits" } else { "shared" };
    let _ = writeln!(out, "connection  {needs}");
}

/// What the in-process tier has to do with it.
fn tier(tenant: &Tenant, row: &Row, args: &Args<'_>, bytes: usize) -> String {
    let asks = command::find("PTTL").is_some_and(|row| Permitted::from_lists(&tenant.allow, &tenant.deny).has(row));
    match row.keep {
        _ if !tenant.tier => "off for this tenant (tier.enabled, tenants.NAME.tier)".into(),
        _ if !asks => "off for this tenant: it may not run PTTL, by which is known how long a value may be kept".into(),
        Keep::No if row.changes => {
            let mut marks = Vec::new();
            command::walk(row, args, &mut marks);
            let names: Vec<_> =
                marks.iter().filter(|(_, slot)| *slot == Slot::Key).map(|&(i, _)| shown(args.at(i as usize))).collect();
            format!("nothing of {} is served from when this is sent until it is answered", names.join(" "))
        }
        Keep::No => "never answers this command".into(),
        _ if bytes + tenant.prefix.as_bytes().len() > LONGEST => format!("no: more than {LONGEST} bytes of arguments"),
        Keep::Hash => "may answer this, unless the upstream has hash fields that expire (HPEXPIRE)".into(),
        Keep::Reply => "may answer this".into(),
        Keep::Each if args.len() == 2 => "may answer this".into(),
        Keep::Values | Keep::Each => "may answer this, when it has all of the keys".into(),
    }
}

fn frame(words: &[Vec<u8>]) -> (Vec<u8>, Vec<command::Span>) {
    let mut frame = Vec::new();
    resp::put_header(&mut frame, b'*', words.len() as u64);
    let mut spans = Vec::new();
    for word in words {
        resp::put_bulk(&mut frame, word);
        let start = frame.len() - 2 - word.len();
        spans.push((u32::try_from(start).unwrap_or_default(), u32::try_from(word.len()).unwrap_or_default()));
    }
    (frame, spans)
}

/// An argument as a shell would need it written, other bytes than printable ones escaped.
fn shown(arg: &[u8]) -> String {
    let text = arg.escape_ascii().to_string();
    if text.is_empty() || text.contains([' ', '"', '\\', '\'']) {
        format!("\"{}\"", text.replace("\\'", "'"))
    } else {
        text
    }
}
