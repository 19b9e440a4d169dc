//! D: connection state, pooling, falling out of step.
use super::{Speaker, TWO, World, attack, line, login, words};
use crate::support::scripted::{Act, Scripted};
use crate::support::wire::{bulk, command, show};
use crate::support::{Client, Fence, Redis};

#[test]
fn d1_d2_clients_that_leave_before_their_replies() {
    let world = World::new("require");
    let mut b = world.tenant("b");
    let mut pipeline: Vec<u8> = (0..100).flat_map(|i| words(&format!("SET s attacker{i}"))).collect();
    pipeline.extend((0..100).flat_map(|_| words("GET s")));
    for cut in (0..pipeline.len()).step_by(pipeline.len() / 40) {
        let mut leaves = login(&world.fence, "a", "pa");
        leaves.send(&pipeline[..cut]);
        drop(leaves);
        assert_eq!(b.say("GET s"), "$6|victim");
        let mut a = world.tenant("a");
        assert!(a.say("GET s").contains("attacker"));
        assert_eq!(a.say("STRLEN x"), ":8");
    }
}

#[test]
fn d3_d5_one_tenants_upstream_trouble_is_its_own() {
    let redis = Redis::start();
    let scripted = Scripted::start(redis.addr(), |request| match request.get(1) {
        Some(key) if key == b"a:hole" => Act::Silence,
        Some(key) if key == b"a:close" => Act::Close(Vec::new()),
        Some(key) if key == b"a:garbage" => Act::Reply(b"*zzz\r\n".to_vec()),
        Some(key) if key == b"a:extra" => Act::ForwardAnd(b"$6\r\nvictim\r\n".to_vec()),
        _ => Act::Forward,
    });
    let fence = Fence::with_tenants(scripted.addr(), &format!("[upstream]\nsocket_timeout = \"400ms\"\n{TWO}"));
    let (mut a, mut b) = (login(&fence, "a", "pa"), Speaker::new(&fence, "b"));
    assert_eq!(b.say("SET s victim"), "+OK");
    for key in ["hole", "close", "garbage", "extra"] {
        a.send(&command(&["GET", key]));
        for _ in 0..20 {
            assert_eq!(b.say("GET s"), "$6|victim", "{key}");
        }
        let reply = line(&a.reply());
        assert!(reply.starts_with('-') || reply == "$-1", "{key}: {reply}");
        // Errors of the upstream's end first, perhaps; never a reply that belongs to something else.
        loop {
            let reply = line(&a.call(&[b"STRLEN", b"none"]));
            if !reply.starts_with("-UPSTREAM ") {
                assert_eq!(reply, ":0", "{key}");
                break;
            }
        }
    }
    // Only the attacker's connections were closed for it.
    let seen = scripted.seen();
    assert!(seen.iter().all(|request| request[0] != b"RESET" && request[0] != b"QUIT"));
}

#[test]
fn d5_connections_closed_by_the_upstream() {
    let world = World::new("require");
    let (mut a, mut b) = (login(&world.fence, "a", "pa"), world.tenant("b"));
    let users = line(&world.redis.client().call(&[b"ACL", b"USERS"]));
    let users: Vec<String> = users.split('|').filter(|user| user.ends_with("-a")).map(str::to_owned).collect();
    let mut held: Vec<Client> = (0..3).map(|_| login(&world.fence, "a", "pa")).collect();
    for _ in 0..10 {
        // A spare connection may have been cut in the round before, and be found to be only now.
        loop {
            let reply = held[0].call(&[b"WATCH", b"s"]);
            if reply == b"+OK\r\n" {
                break;
            }
            assert!(reply.starts_with(b"-UPSTREAM "), "{}", show(&reply));
        }
        a.send(&words("SET x attacker").repeat(50));
        for user in &users {
            assert!(world.upstream().say(&format!("CLIENT KILL USER {user}")).starts_with(':'));
        }
        for _ in 0..50 {
            let reply = a.reply();
            assert!(reply == b"+OK\r\n" || reply.starts_with(b"-UPSTREAM "), "{}", show(&reply));
        }
        let replies = held[0].pipeline(&[words("MULTI"), words("SET s attacker"), words("EXEC")].concat(), 3);
        assert!(
            replies[2].starts_with(b"-") || replies[2] == b"*-1\r\n",
            "watched keys were lost: {}",
            show(&replies[2])
        );
        assert_eq!(b.say("GET s"), "$6|victim");
        while held[0].call(&[b"UNWATCH"]) != b"+OK\r\n" {}
    }
}

#[test]
fn d6_state_does_not_bleed() {
    let world = World::new("require");
    let mut b = world.tenant("b");
    for state in [
        &["MULTI"][..],
        &["MULTI", "SET s attacker"],
        &["MULTI", "NOSUCH"],
        &["WATCH s x"],
        &["HELLO 3"],
        &["CLIENT REPLY OFF"],
        &["CLIENT SETNAME attacker"],
        &["CLIENT NO-TOUCH ON"],
        &["WATCH s", "MULTI"],
        &["BLPOP none 0"],
        &["HELLO 3", "WATCH s", "MULTI", "GET s"],
        &["SORT l"],
        &["RESET"],
    ] {
        // Left in this state, by leaving and by becoming the victim.
        let mut leaves = login(&world.fence, "a", "pa");
        for text in state {
            leaves.send(&words(text));
        }
        drop(leaves);
        let mut turns = login(&world.fence, "a", "pa");
        if state != ["BLPOP none 0"] {
            for text in state {
                turns.send(&words(text));
                if !text.starts_with("CLIENT REPLY") {
                    turns.reply();
                }
            }
            turns.send(&words("RESET"));
            assert_eq!(turns.reply(), b"+RESET\r\n", "{state:?}");
            assert_eq!(turns.call(&[b"AUTH", b"b", b"pb"]), b"+OK\r\n");
            let mut turns = Speaker::of(turns);
            assert_eq!(turns.say("GET s"), "$6|victim", "{state:?}");
            assert_eq!(turns.say("GET nothing"), "$-1");
            assert_eq!(turns.say("CLIENT GETNAME"), "$-1");
            assert_eq!(turns.say("HGETALL h"), "*2|$1|f|$6|victim");
        }
        assert_eq!(b.say("GET s"), "$6|victim");
        assert_eq!(b.say("HGETALL h"), "*2|$1|f|$6|victim");
        assert_eq!(world.tenant("a").say("GET s"), "$8|attacker", "{state:?}");
    }
}

#[test]
fn d7_watch_is_the_tenants_own() {
    let world = World::new("require");
    let (mut watcher, mut a, mut b) = (world.tenant("b"), world.tenant("a"), world.tenant("b"));
    // The same name, changed by the other tenant: nothing happened.
    assert_eq!(watcher.say("WATCH s"), "+OK");
    assert_eq!(a.say("SET s changed"), "+OK");
    assert_eq!(a.say("FLUSHALL"), "+OK");
    let block = [words("MULTI"), words("GET s"), words("EXEC")].concat();
    assert_eq!(line(&watcher.client().pipeline(&block, 3)[2]), "*1|$6|victim");
    // By its own: it did.
    assert_eq!(watcher.say("WATCH s"), "+OK");
    assert_eq!(b.say("SET s changed"), "+OK");
    assert_eq!(line(&watcher.client().pipeline(&block, 3)[2]), "*-1");
    // The other's EXEC, DISCARD and UNWATCH take no watch away.
    assert_eq!(watcher.say("WATCH s"), "+OK");
    for text in ["WATCH s", "UNWATCH", "MULTI", "DISCARD", "WATCH s", "MULTI"] {
        a.client().ask(&words(text));
    }
    a.client().call(&[b"EXEC"]);
    assert_eq!(b.say("SET s again"), "+OK");
    assert_eq!(line(&watcher.client().pipeline(&block, 3)[2]), "*-1");
}

#[test]
fn d8_transactions_do_not_interleave() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    assert_eq!(a.client().call(&[b"MULTI"]), b"+OK\r\n");
    assert_eq!(b.client().call(&[b"MULTI"]), b"+OK\r\n");
    for _ in 0..10 {
        assert_eq!(a.client().call(&[b"RPUSH", b"q", b"attacker"]), b"+QUEUED\r\n");
        assert_eq!(b.client().call(&[b"RPUSH", b"q", b"victim"]), b"+QUEUED\r\n");
        assert_eq!(world.tenant("b").say("EXISTS q"), ":0");
    }
    let own = |range: std::ops::RangeInclusive<u32>| range.map(|i| format!("|:{i}")).collect::<String>();
    assert_eq!(line(&a.client().call(&[b"EXEC"])), format!("*10{}", own(1..=10)));
    assert_eq!(line(&b.client().call(&[b"EXEC"])), format!("*10{}", own(1..=10)));
    assert_eq!(b.say("LRANGE q 0 0"), "*1|$6|victim");
}

#[test]
fn d9_refused_in_a_transaction() {
    attack(|a, _| {
        for refused in ["SUBSCRIBE a b", "CONFIG SET x y", "NOSUCH", "FUNCTION FLUSH", "GET", "AUTH b pb x"] {
            let bytes = [words("MULTI"), words("SET s changed"), words(refused), words("SET x changed"), words("EXEC")]
                .concat();
            let replies = a.client().pipeline(&bytes, 5);
            assert_eq!(line(&replies[1]), "+QUEUED");
            assert!(replies[2].starts_with(b"-"), "{refused}: {}", show(&replies[2]));
            assert!(replies[4].starts_with(b"-EXECABORT"), "{refused}: {}", show(&replies[4]));
            assert_eq!(a.say("GET s"), "$8|attacker");
        }
    });
}

#[test]
fn d10_blocked_on_the_same_name() {
    let world = World::new("require");
    let (mut blocked, mut a, mut b) = (world.tenant("b"), world.tenant("a"), world.tenant("b"));
    for waiting in ["BLPOP q 0", "BRPOP q 0", "BLMOVE q q2 LEFT LEFT 0", "BLMPOP 0 1 q LEFT", "BRPOPLPUSH q q2 0"] {
        blocked.client().send(&words(waiting));
        world.redis.wait_for_blocked(1);
        assert_eq!(a.say("RPUSH q attacker"), ":1");
        assert_eq!(a.say("LLEN q"), ":1");
        assert_eq!(b.say("RPUSH q victim"), ":1");
        let reply = line(&blocked.client().reply());
        assert!(reply.ends_with("|victim"), "{waiting}: {reply}");
        assert_eq!(a.say("LPOP q"), "$8|attacker");
    }
}

#[test]
fn d12_own_writes_are_read() {
    let world = World::new("require");
    let mut clients = ["a", "b"].map(|name| (name, login(&world.fence, name, &format!("p{name}"))));
    for round in 0..50 {
        for (name, client) in &mut clients {
            let bytes: Vec<u8> =
                (0..20).flat_map(|i| [words(&format!("SET k {name}{round}-{i}")), words("GET k")].concat()).collect();
            client.send(&bytes);
        }
        for (name, client) in &mut clients {
            for i in 0..20 {
                assert_eq!(client.reply(), b"+OK\r\n");
                assert_eq!(client.reply(), bulk(format!("{name}{round}-{i}")));
            }
        }
    }
}

#[test]
fn d13_another_login_leaves_everything_behind() {
    let world = World::new("require");
    // With replies still to come, in one write.
    let mut client = login(&world.fence, "a", "pa");
    let bytes = [
        words("GET s"),
        words("WATCH s"),
        words("GET s"),
        words("AUTH b pb"),
        words("GET s"),
        words("AUTH a pa"),
        words("GET s"),
    ]
    .concat();
    let replies: Vec<String> = client.pipeline(&bytes, 7).iter().map(|reply| line(reply)).collect();
    assert_eq!(replies, ["$8|attacker", "+OK", "$8|attacker", "+OK", "$6|victim", "+OK", "$8|attacker"]);
    // A failed login changes nothing, a watch included.
    assert_eq!(client.call(&[b"WATCH", b"s"]), b"+OK\r\n");
    assert!(client.call(&[b"AUTH", b"b", b"wrong"]).starts_with(b"-WRONGPASS"));
    assert_eq!(world.tenant("a").say("SET s changed"), "+OK");
    let block = [words("MULTI"), words("GET s"), words("EXEC")].concat();
    assert_eq!(line(&client.pipeline(&block, 3)[2]), "*-1");
    // A watch of the former tenant does not spoil the new one's transaction.
    assert_eq!(client.call(&[b"WATCH", b"s"]), b"+OK\r\n");
    assert_eq!(client.call(&[b"AUTH", b"b", b"pb"]), b"+OK\r\n");
    assert_eq!(world.tenant("a").say("SET s again"), "+OK");
    assert_eq!(line(&client.pipeline(&block, 3)[2]), "*1|$6|victim");
    // HELLO is the same door, and keeps its protocol.
    assert!(client.call(&[b"HELLO", b"3", b"AUTH", b"a", b"pa"]).starts_with(b"%"));
    assert_eq!(line(&client.call(&[b"GET", b"none"])), "_");
    assert_eq!(line(&client.call(&[b"HGETALL", b"h"])), "%1|$1|f|$8|attacker");
}

#[test]
fn d14_logins_and_resets_stay_here() {
    let redis = Redis::start();
    let scripted = Scripted::start(redis.addr(), |_| Act::Forward);
    let fence = Fence::with_tenants(scripted.addr(), &format!("[upstream]\nacl_wall = \"require\"\n{TWO}"));
    let mut a = Speaker::new(&fence, "a");
    assert_eq!(a.say("SET s v"), "+OK");
    let logins = |seen: &[Vec<Vec<u8>>]| {
        seen.iter()
            .filter(|r| [&b"RESET"[..], b"AUTH", b"HELLO", b"QUIT", b"SELECT", b"CLIENT"].contains(&&r[0][..]))
            .cloned()
            .collect::<Vec<_>>()
    };
    let before = logins(&scripted.seen()).len();
    for text in [
        "RESET",
        "AUTH a pa",
        "AUTH default x",
        "AUTH b wrong",
        "AUTH a pa",
        "HELLO 2",
        "HELLO 2 AUTH a pa",
        "HELLO 2 AUTH default x",
        "CLIENT SETNAME x",
        "SELECT 0",
        "SET s v2",
        "RESET",
    ] {
        a.client().ask(&words(text));
    }
    assert_eq!(a.client().call(&[b"AUTH", b"a", b"pa"]), b"+OK\r\n");
    assert_eq!(a.client().call(&[b"QUIT"]), b"+OK\r\n");
    let seen = logins(&scripted.seen());
    for request in &seen[before..] {
        let text = show(&request.join(&b' '));
        assert!(!text.contains("RESET") && !text.contains("QUIT"), "{text}");
        assert!(text.contains("keyfence-") || text.starts_with("SELECT 0"), "{text}");
    }
}

#[test]
fn d15_protocol_versions_do_not_mix() {
    let world = World::new("require");
    let mut three = login(&world.fence, "b", "pb");
    assert!(three.call(&[b"HELLO", b"3"]).starts_with(b"%"));
    let mut two = login(&world.fence, "b", "pb");
    let mut other = login(&world.fence, "a", "pa");
    assert!(other.call(&[b"HELLO", b"3"]).starts_with(b"%"));
    for _ in 0..20 {
        for client in [&mut three, &mut two, &mut other] {
            client.send(
                &[words("HGETALL h"), words("GET none"), words("ZSCORE z common"), words("SMEMBERS set2")].concat(),
            );
        }
        assert_eq!([(); 4].map(|()| line(&three.reply())), ["%1|$1|f|$6|victim", "_", ",2", "~1|$6|common"]);
        assert_eq!([(); 4].map(|()| line(&two.reply())), ["*2|$1|f|$6|victim", "$-1", "$1|2", "*1|$6|common"]);
        assert_eq!([(); 4].map(|()| line(&other.reply())), ["%1|$1|f|$8|attacker", "_", ",2", "~1|$6|common"]);
    }
}

#[test]
fn d16_half_a_big_reply() {
    let world = World::new("require");
    let (mut a, mut b) = (world.tenant("a"), world.tenant("b"));
    assert_eq!(a.args(&[b"SET", b"big", &vec![b'a'; 8 << 20]]), "+OK");
    for _ in 0..10 {
        let mut leaves = login(&world.fence, "a", "pa");
        leaves.send(&words("GET big").repeat(3));
        std::io::Read::read_exact(leaves.stream(), &mut [0; 1000]).unwrap();
        drop(leaves);
        assert_eq!(b.say("GET s"), "$6|victim");
        assert_eq!(a.say("STRLEN big"), format!(":{}", 8 << 20));
    }
}

#[test]
fn d1_a_client_that_left_keeps_its_place() {
    let redis = Redis::start();
    let gate = std::sync::Arc::new(std::sync::Barrier::new(2));
    let held = std::sync::Arc::clone(&gate);
    let scripted = Scripted::start(redis.addr(), move |request| match request.get(1) {
        Some(key) if key == b"a:wait" => {
            held.wait();
            Act::Reply(b"$4\r\nlate\r\n".to_vec())
        }
        _ => Act::Forward,
    });
    let fence = Fence::with_tenants(scripted.addr(), &format!("workers = 1\n{TWO}"));
    let mut stays = login(&fence, "a", "pa");
    assert_eq!(stays.ask(&words("SET s mine")), b"+OK\r\n");
    let mut leaves = login(&fence, "a", "pa");
    leaves.send(&words("GET wait"));
    // Upstream it is waiting to be answered, and here it is known to be gone.
    while !scripted.seen().iter().any(|request| request.get(1).is_some_and(|key| key == b"a:wait")) {
        std::thread::yield_now();
    }
    // Cut off, not closed: one that only says no more is still answered.
    socket2::SockRef::from(&*leaves.stream()).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(leaves);
    while show(&stays.ask(&words("CLIENT LIST"))).matches("laddr=").count() > 1 {
        std::thread::yield_now();
    }
    stays.send(&[words("GET s"), words("STRLEN s")].concat());
    gate.wait();
    assert_eq!([line(&stays.reply()), line(&stays.reply())], ["$4|mine", ":4"]);
}

#[test]
fn d4_reply_modes() {
    let world = World::new("require");
    let mut a = login(&world.fence, "a", "pa");
    for mode in ["ON", "OFF", "SKIP"] {
        assert_eq!(line(&a.ask(&words("MULTI"))), "+OK");
        let refused = line(&a.ask(&words(&format!("CLIENT REPLY {mode}"))));
        assert_eq!(refused, "-ERR Command not allowed inside a transaction");
        assert_eq!(line(&a.ask(&words("GET s"))), "+QUEUED");
        assert!(line(&a.ask(&words("EXEC"))).starts_with("-EXECABORT "));
        assert_eq!(line(&a.ask(&words("GET s"))), "$8|attacker", "in step");
    }
    // Outside, one reply is skipped, and only that; a transaction within OFF answers nothing.
    a.send(&[words("CLIENT REPLY SKIP"), words("GET s"), words("ECHO one")].concat());
    assert_eq!(line(&a.reply()), "$3|one");
    let silent = ["CLIENT REPLY OFF", "GET s", "MULTI", "GET s", "EXEC", "BLPOP none 0.01", "KEYS *", "NOSUCH"];
    a.send(&silent.map(words).concat());
    a.send(&[words("CLIENT REPLY ON"), words("ECHO two")].concat());
    assert_eq!([line(&a.reply()), line(&a.reply())], ["+OK", "$3|two"]);
    assert_eq!(world.tenant("b").say("GET s"), "$6|victim");
}

#[test]
fn d6_a_connection_with_state_is_nobodys_next_one() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), &format!("workers = 1\n{TWO}"));
    let endings: [&[&str]; 6] = [
        &["MULTI", "SET left behind"],
        &["WATCH s", "MULTI"],
        &["WATCH s"],
        &["MULTI", "SET left behind", "RESET"],
        &["WATCH s", "RESET"],
        &["WATCH s", "AUTH a pa"],
    ];
    for commands in endings {
        let mut before = login(&fence, "a", "pa");
        assert_eq!(before.ask(&words("SET s 1")), b"+OK\r\n");
        for text in commands {
            before.ask(&words(text));
        }
        drop(before);
        let mut next = login(&fence, "a", "pa");
        while show(&next.ask(&words("CLIENT LIST"))).matches("laddr=").count() > 1 {
            std::thread::yield_now();
        }
        // What was watched has changed, which must be nothing to a transaction that watched nothing.
        assert_eq!(next.ask(&words("SET s 2")), b"+OK\r\n");
        for (text, reply) in [("WATCH x", "+OK"), ("MULTI", "+OK"), ("GET s", "+QUEUED"), ("EXEC", "*1|$1|2")] {
            assert_eq!(line(&next.ask(&words(text))), reply, "after {commands:?}");
        }
        assert_eq!(line(&next.ask(&words("EXISTS left"))), ":0");
    }
}

#[test]
fn d10_only_ones_own_are_unblocked() {
    let world = World::new("require");
    let (mut blocked, mut a, mut b) = (world.tenant("b"), world.tenant("a"), world.tenant("b"));
    let id = blocked.say("CLIENT ID").trim_start_matches(':').to_owned();
    assert_eq!(b.say(&format!("CLIENT UNBLOCK {id}")), ":0");
    for (waiting, nothing) in [
        ("BLPOP q 0", "*-1"),
        ("BLMOVE q q2 LEFT LEFT 0", "*-1"),
        ("XREAD BLOCK 0 STREAMS st $", "*-1"),
        ("BZPOPMIN zq 0", "*-1"),
    ] {
        for (reason, want) in
            [("", nothing), (" TIMEOUT", nothing), (" ERROR", "-UNBLOCKED client unblocked via CLIENT UNBLOCK")]
        {
            blocked.client().send(&words(waiting));
            world.redis.wait_for_blocked(1);
            assert_eq!(a.say(&format!("CLIENT UNBLOCK {id}{reason}")), ":0");
            while b.say(&format!("CLIENT UNBLOCK {id}{reason}")) == ":0" {}
            assert_eq!(line(&blocked.client().reply()), want, "{waiting}{reason}");
            assert_eq!(b.say(&format!("CLIENT UNBLOCK {id}{reason}")), ":0");
        }
    }
    // What it waits for after that comes.
    blocked.client().send(&words("BLPOP q 0"));
    world.redis.wait_for_blocked(1);
    assert_eq!(b.say("RPUSH q mine"), ":1");
    assert_eq!(line(&blocked.client().reply()), "*2|$1|q|$4|mine");
    for wrong in ["CLIENT UNBLOCK x", "CLIENT UNBLOCK 1 MAYBE", "CLIENT UNBLOCK 1 ERROR more"] {
        b.refused(wrong);
    }
}
