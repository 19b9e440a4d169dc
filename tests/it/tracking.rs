//! CLIENT TRACKING: invalidations in the tenant's own names, of its own keys, in the server's order.
use crate::support::scripted::{Act, Scripted};
use crate::support::value::{Rule, same};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};
use crate::tenancy::World;
use crate::{call, is};

fn send(client: &mut Client, line: &str) {
    client.send(&command(&line.split(' ').collect::<Vec<_>>()));
}

/// A reply without pushes before it.
fn say(client: &mut Client, line: &str) -> String {
    send(client, line);
    show(&client.reply())
}

fn three(fence: &Fence, name: &str) -> Client {
    let mut client = fence.client();
    assert_eq!(call!(client, "HELLO", "3", "AUTH", name, format!("p{name}"))[0], b'%');
    client
}

#[track_caller]
fn invalidates(client: &mut Client, key: &str) {
    let want = format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len());
    assert_eq!(show(&client.reply()), show(want.as_bytes()));
}

/// What a client hears, line by line: `>` before a line is said by another client, whose reply is left out.
fn heard(addr: std::net::SocketAddr, resp3: bool, lines: &[&str]) -> Vec<Vec<u8>> {
    let (mut client, mut other) = (Client::connect(addr), Client::connect(addr));
    if resp3 {
        assert_eq!(call!(client, "HELLO", "3")[0], b'%');
    }
    // Asked for behind each line: what the upstream answers comes behind what it has pushed before.
    for db in ["1", "0"] {
        is!(other, ["SELECT", db], "+OK\r\n");
        is!(other, ["SET", "mark", "the mark"], "+OK\r\n");
    }
    let mut said = Vec::new();
    for line in lines {
        match line.strip_prefix('>') {
            Some(line) => drop(other.call(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>())),
            None => send(&mut client, line),
        }
        if line.starts_with("CLIENT CACHING") {
            // What comes next is what it is about.
            said.push(client.reply());
            continue;
        }
        client.send(&command(&["GET", "mark"]));
        loop {
            let reply = client.reply();
            if show(&reply).contains("the mark") {
                break;
            }
            said.push(reply);
        }
    }
    said
}

fn both(resp3: bool, lines: &[&str]) {
    let servers = [Redis::start(), Redis::start()];
    let fence = Fence::start(&servers[1]);
    let [a, b] = [servers[0].addr(), fence.addr()].map(|addr| heard(addr, resp3, lines));
    let text = |said: &[Vec<u8>]| said.iter().map(|reply| show(reply)).collect::<Vec<_>>();
    let equal = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| same(Rule::Exact, a, b));
    assert!(equal, "{lines:#?}\n{:#?}\n{:#?}", text(&a), text(&b));
}

#[test]
fn as_the_server_does_it() {
    both(
        true,
        &[
            "CLIENT TRACKING ON",
            "CLIENT TRACKINGINFO",
            "CLIENT GETREDIR",
            "GET k",
            ">SET k v",
            ">SET k w",
            "GET k",
            "SET k own",
            "MGET a b",
            ">MSET a 1 b 2",
            "SELECT 1",
            "GET k",
            ">SET k x",
            "CLIENT TRACKING OFF",
            "GET k",
            ">SET k y",
            "CLIENT TRACKINGINFO",
        ],
    );
    both(true, &["CLIENT TRACKING ON NOLOOP", "GET k", "SET k own", "GET k", ">SET k v", "CLIENT TRACKINGINFO"]);
    both(
        true,
        &[
            "CLIENT TRACKING ON OPTIN",
            "GET a",
            "CLIENT CACHING YES",
            "GET b",
            ">SET a 1",
            ">SET b 1",
            "CLIENT CACHING YES",
            "CLIENT TRACKINGINFO",
            "PING",
            "GET c",
            ">SET c 1",
            "CLIENT CACHING NO",
        ],
    );
    both(
        true,
        &[
            "CLIENT TRACKING ON OPTOUT",
            "CLIENT CACHING NO",
            "GET a",
            "GET b",
            "CLIENT CACHING NO",
            "CLIENT TRACKINGINFO",
            ">SET a 1",
            ">SET b 1",
        ],
    );
    both(
        true,
        &[
            "CLIENT TRACKING ON BCAST PREFIX x: PREFIX y:",
            "CLIENT TRACKINGINFO",
            ">SET x:1 v",
            ">SET z:1 v",
            "SET y:1 own",
            "CLIENT TRACKING ON BCAST PREFIX z:",
            ">SET z:2 v",
            "CLIENT TRACKINGINFO",
            "CLIENT TRACKING ON BCAST PREFIX z:1",
        ],
    );
    both(
        true,
        &["CLIENT TRACKING ON BCAST", "CLIENT TRACKINGINFO", ">SET any v", "CLIENT TRACKING ON BCAST", ">DEL any"],
    );
    // In a transaction the push comes behind the reply of EXEC.
    both(
        true,
        &[
            "CLIENT TRACKING ON",
            "GET k",
            "WATCH k",
            "UNWATCH",
            "BLPOP l 0.01",
            ">SET k v",
            "RESET",
            "GET k",
            ">SET k w",
        ],
    );
    // In RESP2 without REDIRECT it is accepted, and nothing comes.
    both(
        false,
        &["CLIENT TRACKING ON", "CLIENT TRACKINGINFO", "CLIENT GETREDIR", "GET k", ">SET k v", "CLIENT TRACKING OFF"],
    );
}

#[test]
fn mistakes_are_told_in_the_servers_words() {
    for resp3 in [false, true] {
        both(
            resp3,
            &[
                "CLIENT CACHING YES",
                "CLIENT CACHING x",
                "CLIENT TRACKING MAYBE",
                "CLIENT TRACKING ON NOPE",
                "CLIENT TRACKING ON PREFIX",
                "CLIENT TRACKING ON PREFIX x",
                "CLIENT TRACKING ON BCAST OPTIN",
                "CLIENT TRACKING ON OPTIN OPTOUT",
                "CLIENT TRACKING ON REDIRECT 999999",
                "CLIENT TRACKING ON REDIRECT x",
                "CLIENT TRACKING ON REDIRECT 0",
                "CLIENT TRACKING ON BCAST PREFIX a PREFIX ab",
                "CLIENT TRACKINGINFO",
                "CLIENT GETREDIR",
                "CLIENT TRACKING ON OPTIN",
                "CLIENT TRACKING ON OPTOUT",
                "CLIENT TRACKING ON BCAST",
                "CLIENT CACHING MAYBE",
                "CLIENT CACHING NO",
                "CLIENT TRACKING",
                "CLIENT CACHING",
                "CLIENT TRACKING OFF BCAST",
            ],
        );
    }
}

#[test]
fn c5_broadcasts_are_of_ones_own_keys() {
    for acl_wall in ["off", "require"] {
        let world = World::new(acl_wall);
        let (mut a, mut b) = (three(&world.fence, "a"), three(&world.fence, "b"));
        assert_eq!(say(&mut a, "CLIENT TRACKING ON BCAST"), "+OK\\r\\n");
        let mut with_prefix = three(&world.fence, "a");
        assert_eq!(say(&mut with_prefix, "CLIENT TRACKING ON BCAST PREFIX b: PREFIX s"), "+OK\\r\\n");
        for line in ["SET s x", "DEL w_1", "RPUSH l 3", "FLUSHDB"] {
            assert!(!say(&mut b, line).starts_with('-'));
        }
        assert_eq!(say(&mut world.redis.client(), "SET c:k v"), "+OK\\r\\n");
        assert_eq!(say(&mut a, "PING"), "+PONG\\r\\n");
        assert_eq!(say(&mut with_prefix, "PING"), "+PONG\\r\\n");
        let mut writer = three(&world.fence, "a");
        assert_eq!(say(&mut writer, "SET s mine"), "+OK\\r\\n");
        invalidates(&mut a, "s");
        invalidates(&mut with_prefix, "s");
        assert_eq!(say(&mut writer, "SET b:k mine"), "+OK\\r\\n");
        invalidates(&mut a, "b:k");
        invalidates(&mut with_prefix, "b:k");
        assert!(say(&mut a, "CLIENT TRACKINGINFO").contains("prefixes\\r\\n*1\\r\\n$0\\r\\n"));
        // C7: a flush of one's own is told, key by key and once as a whole.
        assert_eq!(say(&mut writer, "FLUSHDB"), "+OK\\r\\n");
        // The keys by the upstream, the whole by keyfence: on two connections, and so in either order.
        let (mut keys, mut whole) = (false, false);
        while !(keys && whole) {
            let push = show(&a.reply());
            whole |= push.contains("invalidate\\r\\n_");
            keys |= push.contains("$4\\r\\nbits\\r\\n");
        }
        assert_eq!(say(&mut a, "PING"), "+PONG\\r\\n");
        assert_eq!(say(&mut b, "PING"), "+PONG\\r\\n");
    }
}

#[test]
fn c6_redirects_stay_inside_the_tenant() {
    for acl_wall in ["off", "require"] {
        let world = World::new(acl_wall);
        let (mut victim, mut a) = (three(&world.fence, "b"), three(&world.fence, "a"));
        let foreign = id(&mut victim);
        let own = id(&mut a);
        for id in [&foreign, "-1", "0", "99999"].into_iter().filter(|id| **id != own) {
            let reply = say(&mut a, &format!("CLIENT TRACKING ON REDIRECT {id} BCAST"));
            assert_eq!(reply, "-ERR The client ID you want redirect to does not exist\\r\\n", "{id}");
        }
        // RESP2 tracks, another connection in RESP2 listens.
        let plain = |name: &str| {
            let mut client = world.fence.client();
            is!(client, ["AUTH", name, format!("p{name}")], "+OK\r\n");
            client
        };
        let (mut data, mut listener, mut writer) = (plain("a"), plain("a"), plain("a"));
        let target = id(&mut listener);
        assert!(say(&mut listener, "SUBSCRIBE __redis__:invalidate").ends_with(":1\\r\\n"));
        assert_eq!(say(&mut data, &format!("CLIENT TRACKING ON REDIRECT {target}")), "+OK\\r\\n");
        assert_eq!(say(&mut data, "CLIENT GETREDIR"), format!(":{target}\\r\\n"));
        assert_eq!(say(&mut data, "GET s"), "$8\\r\\nattacker\\r\\n");
        assert_eq!(say(&mut plain("b"), "SET s x"), "+OK\\r\\n");
        assert_eq!(say(&mut writer, "SET s new"), "+OK\\r\\n");
        assert_eq!(
            show(&listener.reply()),
            show(b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*1\r\n$1\r\ns\r\n")
        );
        assert_eq!(say(&mut victim, "PING"), "+PONG\\r\\n");
        // Not any more once it is off; and a listener that has gone is no failure.
        assert_eq!(say(&mut data, "CLIENT TRACKING OFF"), "+OK\\r\\n");
        assert_eq!(say(&mut data, "GET s"), "$3\\r\\nnew\\r\\n");
        assert_eq!(say(&mut writer, "SET s newer"), "+OK\\r\\n");
        assert_eq!(say(&mut listener, "PING"), "*2\\r\\n$4\\r\\npong\\r\\n$0\\r\\n\\r\\n");
        assert_eq!(say(&mut a, &format!("CLIENT TRACKING ON REDIRECT {target}")), "+OK\\r\\n");
        assert!(say(&mut a, "GET s").contains("newer"));
        drop(listener);
        while say(&mut writer, "CLIENT LIST").contains(&format!("id={target} ")) {}
        assert_eq!(say(&mut writer, "SET s newest"), "+OK\\r\\n");
        assert_eq!(show(&a.reply()), format!(">2\\r\\n$21\\r\\ntracking-redir-broken\\r\\n:{target}\\r\\n"));
        assert!(say(&mut a, "CLIENT TRACKINGINFO").contains("broken_redirect"));
    }
}

fn id(client: &mut Client) -> String {
    say(client, "CLIENT ID").trim_start_matches(':').trim_end_matches("\\r\\n").to_owned()
}

#[test]
fn d6_tracking_ends_with_who_turned_it_on() {
    let world = World::new("require");
    let mut a = three(&world.fence, "a");
    for ending in ["RESET", "AUTH a pa", "AUTH b pb"] {
        assert_eq!(say(&mut a, "CLIENT TRACKING ON BCAST"), "+OK\\r\\n");
        assert!(!say(&mut a, ending).starts_with('-'), "{ending}");
        assert_eq!(call!(a, "HELLO", "3", "AUTH", "a", "pa")[0], b'%');
        assert!(say(&mut a, "CLIENT TRACKINGINFO").contains("off"));
        assert_eq!(say(&mut three(&world.fence, "a"), "SET s x"), "+OK\\r\\n");
        assert_eq!(say(&mut a, "PING"), "+PONG\\r\\n");
    }
    for refused in ["CLIENT TRACKING ON", "CLIENT CACHING YES"] {
        assert_eq!(say(&mut a, "MULTI"), "+OK\\r\\n");
        assert!(say(&mut a, refused).starts_with('-'));
        assert!(say(&mut a, "EXEC").starts_with("-EXECABORT"));
    }
    // Who tracked leaves nothing on connections of others.
    assert_eq!(say(&mut a, "CLIENT TRACKING ON BCAST"), "+OK\\r\\n");
    drop(a);
    let mut next = three(&world.fence, "a");
    assert_eq!(say(&mut next, "WATCH s"), "+OK\\r\\n");
    assert_eq!(say(&mut three(&world.fence, "a"), "SET x y"), "+OK\\r\\n");
    assert_eq!(say(&mut next, "PING"), "+PONG\\r\\n");
}

#[test]
fn a_lost_upstream_ends_those_who_track() {
    let mut redis = Redis::start();
    let fence = Fence::start(&redis);
    let (mut tracks, mut other) = (fence.client(), fence.client());
    assert_eq!(call!(tracks, "HELLO", "3")[0], b'%');
    is!(tracks, ["CLIENT", "TRACKING", "ON"], "+OK\r\n");
    is!(other, ["PING"], "+PONG\r\n");
    redis.kill();
    assert_eq!(tracks.try_reply(), Err("closed"));
    if fence.process().is_some() {
        is!(other, ["PING"], "+PONG\r\n");
    }
}

/// Ends the upstream connection of the one session that redirects.
fn kill_redirecting(redis: &mut Client) {
    let list = show(&call!(redis, "CLIENT", "LIST"));
    let line = list.split("\\n").find(|line| !line.contains("redir=-1") && line.contains("redir=")).unwrap();
    let id = line.split_once("id=").and_then(|(_, rest)| rest.split(' ').next()).unwrap();
    is!(redis, ["CLIENT", "KILL", "ID", id], ":1\r\n");
}

#[test]
fn a_lost_upstream_ends_those_who_redirect_and_those_who_are_told() {
    let world = World::new("off");
    for options in ["", " BCAST", " OPTIN"] {
        let (mut target, mut tracks, mut writer) =
            (three(&world.fence, "a"), three(&world.fence, "a"), three(&world.fence, "a"));
        let to = id(&mut target);
        assert_eq!(say(&mut tracks, &format!("CLIENT TRACKING ON REDIRECT {to}{options}")), "+OK\\r\\n");
        kill_redirecting(&mut world.redis.client());
        // Neither goes on with what it believes to be true.
        assert_eq!(target.try_reply(), Err("closed"));
        assert_eq!(tracks.try_reply(), Err("closed"));
        assert_eq!(say(&mut writer, "PING"), "+PONG\\r\\n");
    }
}

#[test]
fn tracking_that_the_upstream_refuses_is_off() {
    let redis = Redis::start();
    let scripted = Scripted::start(redis.addr(), |request| match &request[..] {
        [client, tracking, on, ..] if client == b"CLIENT" && tracking == b"TRACKING" && on == b"ON" => {
            Act::Reply(b"-ERR not today\r\n".to_vec())
        }
        _ => Act::Forward,
    });
    let fence = Fence::start_at(scripted.addr(), "");
    if fence.process().is_none() {
        return;
    }
    let (mut client, mut target) = (fence.client(), fence.client());
    assert_eq!(call!(client, "HELLO", "3")[0], b'%');
    let to = id(&mut target);
    for options in ["".to_owned(), " BCAST".to_owned(), format!(" REDIRECT {to}")] {
        assert_eq!(say(&mut client, &format!("CLIENT TRACKING ON{options}")), "-ERR not today\\r\\n");
        assert!(say(&mut client, "CLIENT TRACKINGINFO").contains("off"), "{options}");
        assert_eq!(say(&mut client, "CLIENT GETREDIR"), ":-1\\r\\n");
        assert_eq!(say(&mut client, "GET k"), "_\\r\\n");
    }
}

#[test]
fn d4_no_invalidation_comes_behind_the_end_of_listening() {
    let world = World::new("off");
    let mut writer = three(&world.fence, "a");
    let writes: Vec<u8> = (0..3000).flat_map(|i| command(&["SET", &format!("k{i}"), "v"])).collect();
    for round in 0..20u64 {
        let mut listener = world.fence.client();
        is!(listener, ["AUTH", "a", "pa"], "+OK\r\n");
        let to = id(&mut listener);
        assert!(say(&mut listener, "SUBSCRIBE __redis__:invalidate").ends_with(":1\\r\\n"));
        let mut tracks = three(&world.fence, "a");
        assert_eq!(say(&mut tracks, &format!("CLIENT TRACKING ON REDIRECT {to} BCAST")), "+OK\\r\\n");
        std::thread::scope(|scope| {
            scope.spawn(|| writer.pipeline(&writes, 3000));
            // At another point of the stream each time.
            for _ in 0..round {
                send(&mut listener, "PING");
                while show(&listener.reply()).contains("message") {}
            }
            send(&mut listener, "UNSUBSCRIBE");
            send(&mut listener, "GET nokey");
            send(&mut listener, "AUTH b pb");
            send(&mut listener, "GET nokey");
            while show(&listener.reply()).contains("message") {}
            for want in ["$-1\\r\\n", "+OK\\r\\n", "$-1\\r\\n"] {
                assert_eq!(show(&listener.reply()), want, "round {round}");
            }
        });
    }
}
