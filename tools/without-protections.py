#!/usr/bin/env python3
"""Takes protections out one by one, in a copy of the tree, and says whether the tests notice: a test that passes without what it tests is none.

    python3 tools/without-protections.py [id ...]

Needs cargo-nextest. Each takes a build and some tests; the copy's build folder is target/without-protections. Exits 1 when one is not noticed,
or its place in the source is not there any more.
"""
import pathlib, shutil, subprocess, sys

# id, file, what stands there, what stands there instead, tests that must notice (a nextest expression of names)
PROTECTIONS = [
    ("A1 every STORE is marked", "src/command/keys.rs",
     'else if (is(word, "STORE") || is(word, "STOREDIST")) && more {\n            mark(marks, i + 1, argc, Slot::Key);',
     'else if (is(word, "STORE") || is(word, "STOREDIST")) && more {\n            if marks.len() < 2 { mark(marks, i + 1, argc, Slot::Key); }', "a1_"),
    ("A2 a value is not taken for an option", "src/command/keys.rs",
     'else if store && is(word, "STORE") && left >= 1 {\n            mark(marks, i + 1, argc, Slot::Key);\n            i += 2;',
     'else if store && is(word, "STORE") && left >= 1 {\n            mark(marks, i + 1, argc, Slot::Key);\n            i += 1;', "a2_"),
    ("A3 the last MATCH wins", "src/scoped.rs",
     'b"MATCH" => scan.pattern = Some(bounded(value)?.to_vec()),',
     'b"MATCH" => scan.pattern = scan.pattern.or(Some(bounded(value)?.to_vec())),', "a3_"),
    ("A4 every DB is marked", "src/command/keys.rs", 'mark(marks, i + 1, argc, Slot::Db);', 'if marks.len() < 3 { mark(marks, i + 1, argc, Slot::Db); }', "a4_"),
    ("A5 templates of SORT are prefixed", "src/command/keys.rs",
     'if args.at(i + 1) != b"#" {\n                mark(marks, i + 1, argc, Slot::Template);', 'if args.at(i + 1) != b"#" {', "a5_"),
    ("A6 options of XREADGROUP are parsed in order", "src/command/keys.rs", 'is(word, "GROUP") && left >= 2 {\n            i += 3;',
     'is(word, "GROUP") && left >= 2 {\n            i += 1;', "a6_"),
    ("A11 what is not understood is marked", "src/command/keys.rs", 'fn doubt(marks: &mut Vec<(u32, Slot)>, from: usize, argc: usize) -> bool {',
     'fn doubt(marks: &mut Vec<(u32, Slot)>, from: usize, argc: usize) -> bool {\n    let from = argc.max(from);', "a11_"),
    ("C1 channels carry the prefix", "src/pubsub/hub.rs",
     [("(self.prefix.len() + name.len()) as u64", "name.len() as u64"), ("out.extend_from_slice(&self.prefix);", "")], None, "c1_|pubsub"),
    ("C3 notifications are of the tenant's own keys", "src/pubsub/notices.rs", 'name.strip_prefix(hub.prefix()).map(<[u8]>::to_vec)',
     'Some(name.strip_prefix(hub.prefix()).unwrap_or(name).to_vec())', "c3_"),
    ("C3b and of its own databases", "src/pubsub/hub.rs", 'upstream.checked_sub(self.tenant.db_base).filter(|db| *db < self.tenant.databases)',
     'Some(upstream.saturating_sub(self.tenant.db_base))', "c3_"),
    ("C4 a published notification is none", "src/pubsub/hub/hear.rs", 'if special(name) {', 'if false {', "c4_"),
    ("C5 prefixes get the tenant's", "src/tracking.rs", 'words.push([prefix, own].concat());', 'words.push([&prefix[..0], own].concat());', "c5_"),
    ("C5b an invalidation of a foreign key is withheld", "src/upstream/conn/tracker.rs", 'key.strip_prefix(prefix).ok_or(', 'Some(key.strip_prefix(prefix).unwrap_or(key)).ok_or(', "c5_"),
    ("C6 redirects are to the tenant's own", "src/tracking.rs", 's.worker.shared.clients.of(s.tenant.id);', 's.worker.shared.clients.all();', "c6_"),
    ("C8 leaving concerns oneself", "src/pubsub/hub.rs", 'topic.members.borrow_mut().remove(&sub.client.id);', 'topic.members.borrow_mut().clear();', "c8_"),
    ("C9 SUBSCRIBE is refused in MULTI", "src/transaction.rs", 'Class::Scoped => {\n            return s.refuse(', 'Class::Scoped if row.name.ends_with("SUBSCRIBE") => (Rule::Raw, Some(PLACEHOLDER.to_vec())),\n        Class::Scoped => {\n            return s.refuse(', "c9_|d9_"),
    ("C13 publishers wait for the fan-out", "src/pubsub.rs", "if s.tenant.subscriptions.behind() {", "if false {", "c13_"),
    ("D4b messages wait for the end of a reply", "src/upstream/conn/read.rs", 'client.set_midway(true);', 'client.set_midway(false);', "d4_"),
    ("D6b subscriptions end with who had them", "src/session/state.rs", 'pubsub::leave(self);', '', "d6_"),
    ("L10 subscriptions are bounded", "src/pubsub.rs", 'if sub.cost.get() + wanted > PER_CLIENT {', 'if false {', "l10_"),
    ("Z1 who waits in a queue is accepted before it closes", "src/server/accept.rs", "        self.empty(&closing);\n        // Who is halfway", "        // Who is halfway", "restart"),
    ("Z2 what was sent is answered before the close", "src/session.rs", "if alarm.leaving() && (!alarm.draining() || self.last_reads >= LAST_READS) {", "if alarm.leaving() {", "restart"),
    ("Z3 an address is one process's", "src/server/listen.rs", "None => bind_tcp(at, manner.shared)", "None => bind_tcp(at, true)", "start"),
    ("Z4 a socket that is somebody's is not removed", "src/server/listen/path.rs", "if self.stands() {\n", "if true {\n", "path::|restart"),
    ("Z5 only listed proxies are believed", "src/server/accept.rs", "let announced = self.worker.shared.proxies.load().include(peer.ip());", "let announced = true;", "proxied"),
    ("Z6 who has not arrived counts", "src/worker.rs", "self.clients.len() + self.arriving.load(Ordering::Relaxed) >=", "self.clients.len() >=", "proxied"),
    ("Z7 of two that start over a dead socket one has it", "src/server/listen/path.rs", "if socket && matches!(probe(aside), Ok(Answer::Nobody)) {", "if socket {", "path::"),
    ("Z8 handshakes are computed aside", "src/net/tls.rs", "Some(turns) => compute_aside(tls, turns, || begun || !is_closed(&io)).await?,", "Some(_) => compute(tls),", "net::tls"),
    ("Z9 a stop is heard during a reload", "src/reload.rs", '() = signals.stop() => {\n', '() = std::future::pending() => {\n', "a_stop_does_not_wait"),
    ("Z10 a reload asks whom it concerns", "src/reload.rs", "!(self.sites.knows(site) && plane::alike(site, &[before], &both))", "!plane::alike(site, &[], &both)", "an_upstream_that_is_silent"),
    ("Z11 who listens goes last", "src/server/drain.rs", "others.retain(|client| !client.listens());", "", "what_was_published"),
    ("D1 a client that left keeps its place", "src/upstream/conn/read.rs", 'let Some(waiter) = waiters.front_mut() else {',
     'while waiters.front().is_some_and(|w| w.client.as_ref().is_some_and(|c| c.gone())) { waiters.pop_front(); }\n            let Some(waiter) = waiters.front_mut() else {',
     "d1_"),
    ("D4 CLIENT REPLY is refused in MULTI", "src/transaction.rs", '"HELLO" | "AUTH" | "CLIENT REPLY" |', '"HELLO" | "AUTH" |', "d4_"),
    ("D6 state does not go back to the pool", "src/upstream/conn.rs", '!self.dead.get() && !self.tainted.get() &&', '!self.dead.get() &&', "d6_"),
    ("D13 another login leaves everything behind", "src/login.rs", '    local::drop_state(s);\n', '', "d13_"),
    ("D14 RESET stays here", "src/command/table.rs", 'conn: ConnNeed::State("reset"), class: Class::Local,', 'conn: ConnNeed::State("reset"), class: Class::Keyless,', "d14_"),
    ("E1 SCAN asks for the prefix and names are looked at again", "src/scoped.rs",
     [('[&glob::escape(&self.prefix), rest].concat()', 'rest.to_vec()'), ('let own = name.starts_with(&self.prefix);', 'let own = name.len() >= self.prefix.len();')],
     None, "e1_|e7_"),
    ("E4 cursors are the tenant's own", "src/scoped/cursor.rs", '    prefix.iter().fold(', '    prefix[..0].iter().fold(', "e4_"),
    ("E8 databases are bounded", "src/local.rs", '.filter(|n| *n < databases(s))\n}', '.filter(|n| *n < 16)\n}', "e8_"),
    ("O1 the admin listener answers this machine's names", "src/admin/http.rs", 'if local && !names_this_machine(request) {', 'if false {', "admin"),
    ("O2 and only reads", "src/admin/http.rs", 'if !matches!(*request.method(), Method::GET | Method::HEAD) {', 'if false {', "admin"),
    ("O3 and bounds who asks", "src/admin.rs", 'if let Ok(place) = Arc::clone(&places).try_acquire_owned() {', 'if let Ok(place) = Ok::<_, ()>(()) {', "admin"),
    ("O4 settings are shown without secrets", "src/config/source.rs", '_ if row(&key).kind.is_secret() => "***".into(),', '_ if false => "***".into(),', "admin"),
    ("O5 who logs never waits", "src/log.rs", 'if state.lines.len() >= LINES || state.bytes + line.len() > BYTES {', 'if false {', "log"),
    ("O6 an event is one line", "src/log.rs", 'let last = line.len().saturating_sub(1);', 'let last = 0;', "log"),
    ("O7 what repeats is summed up", "src/log.rs", 'place.seen <= CALM', 'true', "log"),
    ("O8 LATENCY is the tenant's own", "src/local/latency.rs", 's.worker.shared.metrics.commands_of(&s.tenant.name)', 's.worker.shared.metrics.commands()', "latency|e6_"),
    ("O9 a drain is not ready", "src/server.rs", 'board.enter(Phase::Draining);', '', "admin"),
    ("O10 a stop loses nothing that was popped", "src/session/wait.rs", 'self.unblock();', 'alarm.kill();', "admin"),
    ("O11 tenants that are counted are bounded", "src/metrics/cells.rs", 'let full = tenants.len() >= most;', 'let full = false;', "metrics"),
    ("O12 the page shows names as text", "src/admin/page.html", '  e.append(...kids);',
     '  for (const kid of kids) typeof kid === "string" ? e.insertAdjacentHTML("beforeend", kid) : e.append(kid);', "admin::page::it_shows"),
    ("O13 the page does not pass old off as new", "src/admin/page.html", 'if (seen) lost();', '', "admin::page::it_says"),
    ("N1 prefixes are prefix-free", "src/config/tenants.rs", 'if !ours.as_bytes().starts_with(theirs.as_bytes()) {', 'if ours.as_bytes() != theirs.as_bytes() {', "n1_"),
    ("N4 globs are escaped", "src/glob.rs", 'if b"*?[]^-\\\\".contains(&c) {', 'if false {', "n4_"),
    ("R1 a name without the prefix is withheld", "src/rewrite/reply.rs", 'if start != &*self.prefix {', 'if false {', "r1_"),
    ("R2 group errors are said again", "src/proxy.rs", 'if !row.reply.nogroup {', 'if !row.reply.nogroup || true {', "r2_|r3_"),
    ("U1 nothing before login", "src/proxy.rs", 'if !s.logged_in && !row.flags.has(Flags::NO_AUTH) {', 'if false {', "u1_"),
    ("U2 guesses are slowed", "src/tenant/throttle.rs", '(SHORTEST * 2u32.saturating_pow((failures.count - self.free).min(10))).min(LONGEST)', 'Duration::ZERO', "u2_"),
    ("U4 a password fits whole", "src/tenant/password.rs", 'Kind::Sha256 { digest: own, .. } => bool::from(digest.ct_eq(own)),', 'Kind::Sha256 { digest: own, .. } => digest[..0] == own[..0],', "u4_"),
    ("P1 what is not permitted is refused", "src/proxy.rs", 'if s.logged_in && !s.tenant.permitted.has(row) {', 'if false {', "refused"),
    ("L2 replies due are bounded", "src/upstream/conn/window.rs", 'due >= self.most.get() ||', 'due == u32::MAX ||', "l2_"),
    ("L4 others wait a bounded time for a slow reader", "src/upstream/conn/read.rs",
     [('if self.patience.get().is_zero() && others() {', 'if false {'), ('if others && self.patience.get().is_zero() {', 'if false {')], None,
     "l4_|l2_|never_reads|large"),
    ("L6 a tenant has a share of the connections", "src/upstream/open.rs", 'if own >= share {', 'if own >= self.limit {', "l6_"),
    ("L7 transactions are bounded", "src/transaction.rs", 'const BYTES: usize = 64 * 1024 * 1024;', 'const BYTES: usize = usize::MAX;', "l7_|transaction"),
    ("L9 rates", "src/tenant/limits.rs", '(from + nanos(cost, n.min(1)) <= now + depth.max(nanos(cost, 1))).then_some(from.saturating_add(price))', 'Some(from.saturating_add(price))', "l9_|limits"),
    ("L12 watched keys are bounded", "src/transaction.rs", 'if keys > WATCHED - s.watched {', 'if keys > u32::MAX - s.watched {', "l12_"),
    ("S1 a script has no command that no ACL confines", "src/upstream/wall/rules.rs", 'Kind::Data if SCRIPTS.contains(&row.name) && lua != Lua::Off => plain(),',
     'Kind::Data if (SCRIPTS.contains(&row.name) || row.name == "DBSIZE") && lua != Lua::Off => plain(),', "s1_"),
    ("S4 scripts run where they cannot alter one another", "src/scripts.rs", 'tenant::Scripts::Auto if !apart => Err(', 'tenant::Scripts::Auto if !apart && false => Err(', "s4_"),
    ("S6 a tenant finds its own scripts only", "src/scripts/store.rs",
     [('self.0.get(&tenant)', 'self.0.get(&0)'), ('self.0.entry(tenant)', 'self.0.entry(0)')], None, "s6_"),
    ("S7 SCRIPT KILL is for one's own script", "src/scripts/kill.rs", 
     [('before.is_some_and(|mark| !mark.runs(&ours, false))', 'before.is_some()'), ('if !first.runs(&ours, true) {', 'if false {')], None, "s7_|s9_"),
    ("S8 a library with a function of another name goes", "src/scripts/functions/manage.rs", 'name: self.own.tag.strip(field(item, "name").and_then(text)?)?.to_vec(),',
     'name: { let name = field(item, "name").and_then(text)?; self.own.tag.strip(name).unwrap_or(name).to_vec() },', "s8_"),
    ("S8b only what is in the tenant's list is called", "src/scripts/functions.rs",
     [('        (Known::Unseen | Known::Absent, _) => return Callee::None(NOT_FOUND.into()),\n', ''), ('(Known::Here | Known::Doubtful, _) => {}', '_ => {}')], None, "s8_"),
    ("S8c the list is made anew for a new connection", "src/scripts/functions/own.rs", 'since >= opened', 'since <= opened || since >= opened', "s8_"),
    ("S8d tags differ in any case", "src/scripts/functions/library.rs", 'if byte.is_ascii_lowercase() || byte.is_ascii_digit() {', 'if byte.is_ascii_alphanumeric() {', "s8_"),
    ("S8e FUNCTION KILL is for one's own function", "src/scripts/functions/manage.rs", 'if self.running(control).await?.is_none() {', 'if false {', "s8_"),
    ("S8f libraries are the tenant's by their whole tag", "src/scripts/functions/manage.rs",
     'let Some(own) = self.own.tag.strip(name) else { continue };', 'let Some(own) = name.get(self.own.tag.as_str().len()..) else { continue };', "s8_"),
    ("S8g functions are on where they are apart", "src/scripts/functions.rs", '(s.tenant.scripts == Scripts::Auto && !apart)', '(s.tenant.scripts == Scripts::Auto && !apart && false)', "s8_"),
    ("S2 a script may call what its tenant may", "src/upstream/wall/rules.rs", 'may.get(usize::from(row.index)) != Some(&false)', 'true', "denied_inside"),
    ("S11 KEYS have no prefix in a script", "src/scripts/prelude.lua", '  K[i]=u\n', '', "s11_|scripts_answer"),
    ("K1 a reply is kept only while its ticket holds", "src/tier/fetch.rs", 'store.fill(*ticket, part.name.id(),', 'store.fill(store.ticket(part.name.id()).unwrap_or(*ticket), part.name.id(),', "history"),
    ("K2 what is written is marked", "src/near.rs", '    s.wrote = true;\n    let upstream = s.tenant.site.number;', '    s.wrote = true;\n    if !row.name.is_empty() {\n        return None;\n    }\n    let upstream = s.tenant.site.number;', "history|a_read_after_a_write"),
    ("K3 a lost tracking connection voids all", "src/coherence/watch.rs", 'store.clear_upstream(self.site.number);', 'let _ = store;', "history|lost_tracking"),
    ("K4 scripts hold the tenant", "src/tier/lease.rs", 'self.tracks(now) && self.holds.under_way.load(Ordering::Acquire) == 0', 'self.tracks(now)', "history|transactions_and_scripts"),
    ("K5 invalidations drop what is kept", "src/coherence/watch.rs", 'store.invalidate(self.site.number, key);', 'let _ = (store, key);', "history|a_write_made_elsewhere"),
    ("K6 a lease ends", "src/tier/lease.rs", 'self.until.load(Ordering::Acquire) > now', 'self.until.load(Ordering::Acquire) > now.min(1)', "an_unanswered_ping|a_lease_ends"),
    ("K7 a reply ends with its key", "src/tier.rs", 'u64::try_from(ttl).ok()?.min(most)', '{ u64::try_from(ttl).ok()?; most }', "keys_expire_here"),
    ("K8 reads in flight are shared only while new", "src/near.rs", '&& desk.tier.store()?.holds(&flight.ticket, name.id())', '', "history|overtaken"),
    ("K9 a read behind an own write goes where that goes", "src/near.rs", '        if s.down.in_flight() > 0 {\n            return None;\n        }\n        s.wrote = false;', '        s.wrote = false;', "behind_an_own_write"),
    ("K10 no tenant is served what another reads", "src/tier/name.rs", 'self.0.extend_from_slice(prefix);\n        self.0.extend_from_slice(key);\n    }\n\n    /// Another key', 'let _ = prefix;\n        self.0.extend_from_slice(key);\n    }\n\n    /// Another key', "tier::commands"),
    ("K11 what blocks is known though there was no tier when it was sent", "src/proxy.rs", 'if row.changes && (patient || s.tx.is_some() || s.tenant.tier.wanted()) {', 'if row.changes && (s.tx.is_some() || s.tenant.tier.wanted()) {', "what_blocked_before"),
    ("K12 what was queued without a tier may be anything", "src/transaction.rs", 'return touch_all(s);', 'return;', "queued"),
    ("K16 what was kept before a tier was off is void", "src/coherence/watch.rs", 'self.tier.clear_tenant(tenant.id);', '', "comes_back|tenants_come_and_go"),
    ("K17 scripts that ended during a succession are released after it", "src/coherence/watch.rs", 'self.postponed.borrow_mut().extend(current.resign());', 'current.resign();', "scripts_that_end"),
    ("K18 what was sent unmarked is answered before a rest ends", "src/coherence.rs", 'Turn::Wake => lease.wake(now + settle),', 'Turn::Wake => lease.wake(now),', "a_rest_ends"),
    ("K13 of two replies that differ neither is kept", "src/tier/store.rs", 'if shard.differs(&probe, reply, ticket.epoch) {', 'if false {', "an_older_reply|of_two_replies"),
    ("K19 what several keys show is compared with what is kept", "src/tier/fetch.rs", '(None, Some(store)) => store.compare(', '(None, Some(store)) if false => store.compare(', "who_has_seen"),
    ("K14 a connection that takes over waits for the last word of the one before", "src/coherence/watch.rs", 'if current.heard.get().is_none_or(|heard| heard < since) {', 'if false {', "a_successor_waits|a_change_that_only"),
    ("K15 EXISTS is kept where PTTL bears it out", "src/tier/fetch.rs", 'u64::try_from(sum) == Ok(there + others)', 'sum >= 0 && there + others < u64::MAX', "a_sum_that_pttl"),
    ("T3 a bulk string ends with CRLF", "src/resp/request.rs", 'Some(_) => return broken(NO_CRLF),', 'Some(_) => {}', "t3_|t1_"),
    ("W1 tenants connect behind the wall", "src/upstream.rs", 'Login::As(user, password) => (user, password),', 'Login::As(..) => (self.target.username.clone(), self.target.password.clone()),', "wall"),
]


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    copy = root / "target" / "without-protections" / "tree"
    wanted = sys.argv[1:]
    unnoticed = []
    for name, file, old, new, tests in PROTECTIONS:
        if wanted and name.split()[0] not in wanted:
            continue
        if copy.exists():
            shutil.rmtree(copy)
        tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split("\n")
        for path in filter(None, tracked):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            # With its times, so that only what changes is built again.
            shutil.copy2(root / path, copy / path)
        # What tools/ensure-*.sh installed is not tracked, and tests that miss it would fail whatever is taken out.
        for installed in (".venv", "tests/clients/node_modules", "tests/apps/node_modules"):
            if (root / installed).exists():
                (copy / installed).symlink_to((root / installed).resolve())
        source = copy / file
        text = source.read_text()
        for a, b in [(old, new)] if isinstance(old, str) else old:
            if text.count(a) < 1:
                print(f"{name}: its place in {file} is not there any more", flush=True)
                unnoticed.append(name)
                break
            text = text.replace(a, b, 1)
        else:
            source.write_text(text)
            run = subprocess.run(
                ["cargo", "nextest", "run", "--locked", "--target-dir", str(copy.parent / "build"), "-E", f"test(/{tests}/)"],
                cwd=copy, capture_output=True, text=True, env={**__import__("os").environ, "RUSTFLAGS": "--cap-lints allow"})
            failed = sorted({line.split("keyfence::")[-1].split()[-1] for line in run.stderr.split("\n") if any(f" {end} [" in line for end in ("FAIL", "TIMEOUT", "SIGABRT"))})
            if run.returncode == 100 and failed:
                print(f"{name}: noticed by {len(failed)}: {', '.join(failed[:3])}", flush=True)
            else:
                print(f"{name}: NOT NOTICED (status {run.returncode}) {run.stderr[-600:] if run.returncode != 0 else ''}", flush=True)
                unnoticed.append(name)
    if unnoticed:
        sys.exit(f"not noticed: {', '.join(unnoticed)}")


if __name__ == "__main__":
    main()
