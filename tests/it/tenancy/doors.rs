//! Doors beside the ordinary path: what is streamed, what is carried out in steps, what is reloaded, and a second login.
use super::{Speaker, TWO, line, login, words};
use crate::support::wire::{Client, show};
use crate::support::{Fence, Redis, free_addr};

#[test]
fn scoped_commands_need_the_wall_too() {
    let redis = Redis::start();
    assert_eq!(Speaker::of(redis.client()).say("ACL SETUSER proxy on >secret ~* &* +@all -acl"), "+OK");
    assert_eq!(Speaker::of(redis.client()).say("SET a:s v"), "+OK");
    let own = "[upstream]\nusername = \"proxy\"\npassword = \"secret\"\nacl_wall = \"require\"\n";
    let fence = Fence::with_tenants(redis.addr(), &format!("{own}{TWO}"));
    let mut a = login(&fence, "a", "pa");
    let mut served = Vec::new();
    for text in ["KEYS *", "SCAN 0", "DBSIZE", "RANDOMKEY", "FLUSHALL"] {
        let reply = line(&a.ask(&words(text)));
        if !reply.starts_with("-UPSTREAM ") {
            served.push(format!("{text}: {reply}"));
        }
    }
    assert!(served.is_empty(), "{served:?}");
}

#[test]
fn streamed_requests_are_charged() {
    let redis = Redis::start();
    let limits = "limits = { ops_per_second = 2, burst = 2, bytes_per_second = \"10KB\" }";
    let fence = Fence::with_tenants(redis.addr(), &format!("[tenants.a]\npasswords = [\"pa\"]\n{limits}\n"));
    let mut a = login(&fence, "a", "pa");
    let passed = (0..20).filter(|_| a.call(&[b"SET", b"k", &vec![b'x'; 1_000_000]]) == b"+OK\r\n").count();
    assert!(passed <= 2, "{passed} of 20");
}

#[test]
fn replies_are_charged_when_the_connection_ends() {
    let redis = Redis::start();
    assert_eq!(redis.client().call(&[b"SET", b"a:big", &vec![b'x'; 1_000_000]]), b"+OK\r\n");
    let fence = Fence::with_tenants(
        redis.addr(),
        "[tenants.a]\npasswords = [\"pa\"]\nlimits = { bytes_per_second = \"10KB\" }\n",
    );
    let passed = (0..10).filter(|_| login(&fence, "a", "pa").call(&[b"GET", b"big"])[0] == b'$').count();
    assert!(passed <= 2, "{passed} of 10");
}

#[test]
fn a_streamed_restore_is_a_restore() {
    let redis = Redis::start_with(free_addr(), &["--sanitize-dump-payload", "no"]);
    let fence = Fence::with_tenants(redis.addr(), TWO);
    let mut a = login(&fence, "a", "pa");
    let small = line(&a.call(&[b"RESTORE", b"new", b"0", &[b'x'; 100]]));
    let large = line(&a.call(&[b"RESTORE", b"new", b"0", &vec![b'x'; 1_000_000]]));
    assert_eq!(large, small);
}

#[test]
fn an_emptied_file_opens_nothing() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), TWO);
    assert!(fence.client().call(&[b"SET", b"k", b"v"]).starts_with(b"-NOAUTH"));
    fence.reload("", "reload failed");
    let reply = fence.client().call(&[b"SET", b"k", b"v"]);
    assert!(reply.starts_with(b"-NOAUTH"), "{}", show(&reply));
}

#[test]
fn a_name_is_left_behind_at_a_login() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), TWO);
    let mut client = login(&fence, "a", "pa");
    client.ask(&words("CLIENT SETNAME of-a"));
    client.ask(&words("AUTH b pb"));
    assert!(!line(&client.ask(&words("CLIENT LIST"))).contains("of-a"));
}

#[test]
fn an_address_is_who_the_settings_say_now() {
    let redis = Redis::start();
    let door = free_addr();
    let b = "[tenants.b]\npasswords = [\"pb\"]\n";
    let a = format!("[tenants.a]\nlisten = [\"{door}\"]\npasswords = [\"pa\"]\n");
    let fence = Fence::with_tenants(redis.addr(), &format!("{a}{b}"));
    let mut client = Client::connect(door);
    assert_eq!(line(&client.ask(&words("SET k of-a"))), "+OK");
    assert_eq!(line(&client.ask(&words("AUTH b pb"))), "+OK");
    fence.reload(b, "settings reloaded");
    assert_eq!(line(&client.ask(&words("PING"))), "+PONG");
    assert_eq!(line(&client.ask(&words("RESET"))), "+RESET");
    assert!(client.ask(&words("GET k")).starts_with(b"-NOAUTH"));
}

#[test]
fn a_transaction_is_bounded_however_its_values_come() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), TWO);
    let mut a = login(&fence, "a", "pa");
    let value = vec![b'x'; 40 * 1024 * 1024];
    assert_eq!(line(&a.ask(&words("MULTI"))), "+OK");
    assert_eq!(line(&a.call(&[b"SET", b"one", &value])), "+QUEUED");
    assert_eq!(line(&a.call(&[b"SET", b"two", &value])), "-BUSY the transaction is too large");
    assert!(a.ask(&words("EXEC")).starts_with(b"-EXECABORT"));
    assert_eq!(line(&a.ask(&words("EXISTS one two"))), ":0");
    // So many in one request.
    assert_eq!(line(&a.ask(&words("MULTI"))), "+OK");
    assert_eq!(line(&a.call(&[b"MSET", b"one", &value, b"two", &value])), "-BUSY the transaction is too large");
    assert!(a.ask(&words("EXEC")).starts_with(b"-EXECABORT"));
    assert_eq!(line(&a.ask(&words("EXISTS one two"))), ":0");
    assert_eq!(line(&a.call(&[b"MSET", b"one", &value, b"two", &value])), "+OK");
}

#[test]
fn a_tenant_with_another_prefix_has_another_wall() {
    let redis = Redis::start();
    let wall = "[upstream]\nacl_wall = \"require\"\n";
    let fence = Fence::with_tenants(redis.addr(), &format!("{wall}{TWO}"));
    for round in 0..8 {
        let config = format!("{wall}[tenants.a]\npasswords = [\"pa\"]\nprefix = \"round{round}:\"\n");
        fence.reload(&config, "settings reloaded");
        let mut a = login(&fence, "a", "pa");
        assert_eq!(line(&a.ask(&words("SET k v"))), "+OK", "round {round}");
        // What the former tenants needed is gone with them.
        let users = Speaker::of(redis.client()).say("ACL USERS");
        assert_eq!(users.matches("keyfence-").count(), 2, "{users}");
    }
}

#[test]
fn a_login_that_cannot_be_checked_is_no_wrong_password() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), "[auth]\nmode = \"upstream\"\n");
    drop(redis);
    let reply = line(&fence.client().ask(&words("AUTH somebody secret")));
    assert!(reply.starts_with("-UPSTREAM "), "{reply}");
}

#[test]
fn u1_scoped_commands_have_the_rights_of_the_user() {
    let redis = Redis::start();
    let mut upstream = redis.client();
    for rules in ["full ~full:* +@all", "reader ~reader:* +get +set +scan +exists -flushdb -unlink -del"] {
        let (name, rest) = rules.split_once(' ').unwrap();
        assert_eq!(line(&upstream.ask(&words(&format!("ACL SETUSER {name} on >pw resetchannels {rest}")))), "+OK");
    }
    let fence = Fence::with_tenants(redis.addr(), "[auth]\nmode = \"upstream\"\n");
    let (mut full, mut reader) = (login(&fence, "full", "pw"), login(&fence, "reader", "pw"));
    for client in [&mut full, &mut reader] {
        assert_eq!(line(&client.ask(&words("SET k v"))), "+OK");
        assert_eq!(show(&client.ask(&words("KEYS *"))), "*1\\r\\n$1\\r\\nk\\r\\n");
    }
    // keyfence may delete; this user may not.
    let refused = line(&reader.ask(&words("FLUSHDB")));
    assert!(refused.starts_with("-NOPERM "), "{refused}");
    assert_eq!(line(&reader.ask(&words("EXISTS k"))), ":1");
    assert_eq!(line(&full.ask(&words("FLUSHDB"))), "+OK");
    assert_eq!(line(&full.ask(&words("EXISTS k"))), ":0");
}

#[test]
fn a_user_of_the_upstream_whose_tenant_lives_elsewhere() {
    let (redis, other) = (Redis::start(), Redis::start());
    assert_eq!(line(&redis.client().ask(&words("ACL SETUSER c on >pw ~c:* +@all"))), "+OK");
    let config = format!(
        "[auth]\nmode = \"upstream\"\n[upstreams.other]\nurl = \"redis://{}\"\nacl_wall = \"require\"\n\
         [tenants.c]\nupstream = \"other\"\n[tenants.d]\nupstream = \"other\"\n",
        other.addr()
    );
    let fence = Fence::with_tenants(redis.addr(), &config);
    let mut c = login(&fence, "c", "pw");
    assert_eq!(line(&c.ask(&words("SET k v"))), "+OK");
    assert_eq!(show(&c.ask(&words("KEYS *"))), "*1\\r\\n$1\\r\\nk\\r\\n");
    // Behind the wall there, as its own user and not as keyfence.
    let clients = Speaker::of(other.client()).say("CLIENT LIST");
    assert!(clients.contains("-data-") && clients.contains("-c "), "{clients}");
    assert_eq!(Speaker::of(other.client()).say("GET c:k"), "$1|v");
}

#[test]
fn names_of_clients_are_bounded() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), TWO);
    let mut a = login(&fence, "a", "pa");
    let (fits, longer) = ([b'n'; 1024], [b'n'; 1025]);
    assert_eq!(line(&a.call(&[b"CLIENT", b"SETNAME", &fits])), "+OK");
    assert_eq!(line(&a.call(&[b"CLIENT", b"SETNAME", &longer])), "-ERR Client names cannot be longer than 1024 bytes.");
    assert!(line(&a.call(&[b"HELLO", b"2", b"SETNAME", &longer])).starts_with("-ERR Client names cannot be longer"));
    assert!(line(&a.call(&[b"CLIENT", b"SETINFO", b"LIB-NAME", &longer])).starts_with("-ERR lib-name and lib-ver"));
    assert_eq!(a.call(&[b"CLIENT", b"GETNAME"]).len(), 1024 + "$1024\r\n\r\n".len());
}
