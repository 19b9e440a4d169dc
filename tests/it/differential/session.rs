//! Commands without keys: what the proxy answers itself, what it emulates within the namespace, and the state of a connection.
use super::corpus::{self, Call};
use crate::support::value::{Rule, same};
use crate::support::wire::{command, show};
use crate::support::{Client, Fence, Redis};
use crate::{call, is};

/// Fresh servers, one connection to each side, in RESP2 or RESP3.
fn sides(resp3: bool) -> (Vec<Redis>, Fence, [Client; 2]) {
    // As many databases as the proxy shows by default.
    let servers: Vec<Redis> = (0..2).map(|_| Redis::start()).collect();
    let fence = Fence::start(&servers[1]);
    let clients = [servers[0].client(), fence.client()].map(|mut client| {
        if resp3 {
            assert_eq!(call!(client, "HELLO", "3")[0], b'%');
        }
        client
    });
    (servers, fence, clients)
}

fn rule(call: &Call) -> Rule {
    match corpus::name(call).as_str() {
        // Ids, clocks, versions.
        "TIME" | "HELLO" => Rule::Kind,
        "CLIENT" if call.get(1).is_some_and(|arg| arg == b"ID") => Rule::Kind,
        "KEYS" | "SCAN" | "CLIENT" => Rule::Unordered,
        _ => corpus::rule(call),
    }
}

/// Runs every scene of the file on both sides; `at_once` in one write.
fn scenes(resp3: bool, at_once: bool) {
    let mut differences = Vec::new();
    let mut count = 0;
    for scene in corpus::parse(include_str!("../corpus/session.txt")) {
        let (_servers, _fence, clients) = sides(resp3);
        let bytes: Vec<u8> = scene.iter().flat_map(|call| command(call)).collect();
        let [a, b] = clients.map(|mut client| {
            if at_once {
                return client.pipeline(&bytes, scene.len());
            }
            scene.iter().map(|call| client.call(&call.iter().map(Vec::as_slice).collect::<Vec<_>>())).collect()
        });
        count += scene.len();
        for ((call, a), b) in scene.iter().zip(&a).zip(&b) {
            if !same(rule(call), a, b) {
                let said: Vec<String> = call.iter().map(|arg| show(arg)).collect();
                differences.push(format!("{said:?}\n    straight {}\n    keyfence {}", show(a), show(b)));
            }
        }
    }
    eprintln!("{count} replies compared");
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn resp2_one_by_one() {
    scenes(false, false);
}

#[test]
fn resp2_in_one_write() {
    scenes(false, true);
}

#[test]
fn resp3_one_by_one() {
    scenes(true, false);
}

#[test]
fn resp3_in_one_write() {
    scenes(true, true);
}

/// Sends the bytes and compares all that comes until the end of the connection.
fn whole_stream(bytes: &[u8]) {
    let (_servers, _fence, clients) = sides(false);
    let [a, b] = clients.map(|mut client| {
        client.send(bytes);
        client.finish();
        client.read_to_end()
    });
    assert_eq!(show(&a), show(&b), "sent {}", show(bytes));
}

fn lines(text: &str) -> Vec<u8> {
    text.lines().filter(|line| !line.trim().is_empty()).flat_map(|line| command(&corpus::words(line.trim()))).collect()
}

#[test]
fn replies_can_be_turned_off() {
    whole_stream(&lines("SET k v\nCLIENT REPLY OFF\nGET k\nSET k w\nPING\nNOSUCH\nCLIENT REPLY ON\nGET k\nPING"));
    whole_stream(&lines("CLIENT REPLY SKIP\nGET k\nPING\nCLIENT REPLY SKIP\nCLIENT REPLY SKIP\nPING\nGET k\nECHO x"));
    whole_stream(&lines("CLIENT REPLY OFF\nCLIENT REPLY SKIP\nPING\nPING\nCLIENT REPLY ON\nPING"));
    whole_stream(&lines("CLIENT REPLY SKIP\nNOSUCH\nPING\nCLIENT REPLY SKIP\nKEYS *\nDBSIZE"));
    whole_stream(&lines("CLIENT REPLY OFF\nMULTI\nSET k 1\nEXEC\nCLIENT REPLY ON\nGET k"));
    whole_stream(&lines("CLIENT REPLY OFF\nQUIT"));
    whole_stream(&lines("CLIENT REPLY OFF\nRESET\nPING"));
    whole_stream(&lines("CLIENT REPLY SKIP\nBLPOP missing 0.01\nPING"));
}

#[test]
fn quit_answers_and_closes() {
    whole_stream(&lines("SET k v\nGET k\nQUIT\nGET k\nSET k after"));
    whole_stream(&lines("QUIT now"));
    whole_stream(&lines("GET k\nquit"));
}

#[test]
fn everything_sent_before_the_end_of_input_is_answered() {
    whole_stream(&lines("SET k v\nGET k\nPING\nKEYS *\nGET k"));
}

#[test]
fn scan_walks_everything_once_and_nothing_else() {
    let (servers, fence, [mut plain, mut tenant]) = sides(false);
    let mut upstream = servers[1].client();
    for i in 0..3000 {
        let key = format!("key:{i}");
        is!(plain, ["SET", key, "v"], "+OK\r\n");
        is!(tenant, ["SET", key, "v"], "+OK\r\n");
        if fence.process().is_some() {
            is!(upstream, ["SET", format!("other:{i}"), "v"], "+OK\r\n");
        }
    }
    for options in
        [&["COUNT", "7"][..], &["MATCH", "key:1*"], &["MATCH", "nothing*", "COUNT", "500"], &["TYPE", "string"]]
    {
        let [a, b] = [&mut plain, &mut tenant].map(|client| {
            let (mut names, mut cursor) = (Vec::new(), b"0".to_vec());
            loop {
                let mut args = vec![&b"SCAN"[..], &cursor];
                args.extend(options.iter().map(|option| option.as_bytes()));
                let page = crate::support::value::Value::parse(&client.call(&args));
                names.extend(page.kids[1].kids.iter().map(|name| show(&name.text)));
                cursor.clone_from(&page.kids[0].text);
                if cursor == b"0" {
                    break;
                }
            }
            // A name may come twice; Redis says so.
            names.sort();
            names.dedup();
            names
        });
        assert_eq!(a, b, "SCAN {options:?}");
    }
    is!(tenant, ["DBSIZE"], ":3000\r\n");
    let key = call!(tenant, "RANDOMKEY");
    assert!(show(&key).contains("key:"), "{}", show(&key));
}
