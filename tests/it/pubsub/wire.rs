//! The same commands straight to the server and through keyfence, byte for byte, in both versions of the protocol.
use super::{Client, Fence, Redis, call, command, show};

/// Sends each line on both sides, one after the other, and compares all that came by the time of a last PING.
fn same(resp3: bool, lines: &[&str]) {
    let servers: Vec<Redis> = (0..2).map(|_| Redis::start()).collect();
    let fence = Fence::start(&servers[1]);
    let [a, b] = [servers[0].client(), fence.client()].map(|client| said(client, resp3, lines));
    assert_eq!(a, b, "{lines:#?} in RESP{}", if resp3 { 3 } else { 2 });
}

fn said(mut client: Client, resp3: bool, lines: &[&str]) -> Vec<String> {
    if resp3 {
        assert_eq!(call!(client, "HELLO", "3")[0], b'%');
    }
    let mut said = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let mark = format!("mark {i}");
        client.send(&command(&line.split(' ').collect::<Vec<_>>()));
        client.send(&command(&["PING", &mark]));
        loop {
            let reply = client.reply();
            if String::from_utf8_lossy(&reply).contains(&mark) {
                break;
            }
            said.push(show(&reply));
        }
    }
    said
}

fn both(lines: &[&str]) {
    same(false, lines);
    same(true, lines);
}

#[test]
fn acknowledgements_and_counts() {
    both(&[
        "SUBSCRIBE a b a",
        "PSUBSCRIBE a* *",
        "SSUBSCRIBE a s",
        "SUBSCRIBE c",
        "UNSUBSCRIBE a",
        "UNSUBSCRIBE zz",
        "UNSUBSCRIBE b b",
        "UNSUBSCRIBE",
        "UNSUBSCRIBE",
        "PUNSUBSCRIBE a*",
        "PUNSUBSCRIBE",
        "PUNSUBSCRIBE",
        "SUNSUBSCRIBE nope s",
        "SUNSUBSCRIBE",
        "SUNSUBSCRIBE x y",
        "PUNSUBSCRIBE x y",
        "SUBSCRIBE again",
    ]);
}

#[test]
fn what_a_subscribed_connection_may_do() {
    both(&[
        "UNSUBSCRIBE",
        "PUNSUBSCRIBE x",
        "SUBSCRIBE a",
        "GET x",
        "PUBLISH a hi",
        "SPUBLISH a hi",
        "PING",
        "CLIENT GETNAME",
        "NOSUCH",
        "GET",
        "SUBSCRIBE",
        "PING a b",
        "UNSUBSCRIBE a",
        "GET x",
    ]);
    same(false, &["SSUBSCRIBE a", "GET x", "HELLO 3", "AUTH x", "CLIENT LIST", "SUNSUBSCRIBE", "GET x"]);
    same(false, &["PSUBSCRIBE a", "GET x", "RESET", "GET x", "PING"]);
    same(true, &["PSUBSCRIBE a", "SUBSCRIBE b", "RESET", "GET x", "PUBLISH b x", "UNSUBSCRIBE"]);
}

#[test]
fn introspection() {
    both(&[
        "PUBSUB CHANNELS",
        "PUBSUB NUMSUB",
        "PUBSUB NUMSUB a b a",
        "PUBSUB NUMPAT",
        "PUBSUB SHARDCHANNELS",
        "PUBSUB SHARDNUMSUB s",
        "PUBSUB HELP",
        "PUBSUB CHANNELS a b",
        "PUBSUB NOPE",
        "PUBSUB",
        "PUBSUB NUMPAT x",
    ]);
    same(
        true,
        &[
            "SUBSCRIBE a",
            "PSUBSCRIBE p* q*",
            "SSUBSCRIBE s",
            "PUBSUB CHANNELS",
            "PUBSUB CHANNELS x*",
            "PUBSUB NUMSUB a b a",
            "PUBSUB NUMPAT",
            "PUBSUB SHARDCHANNELS *",
            "PUBSUB SHARDNUMSUB a s",
            "PUNSUBSCRIBE p*",
            "PUBSUB NUMPAT",
            "COMMAND GETKEYS PUBLISH a b",
            "COMMAND GETKEYS SUBSCRIBE a",
            "COMMAND GETKEYS SPUBLISH a b",
        ],
    );
}

#[test]
fn a_publisher_sees_its_own_messages_in_the_servers_order() {
    same(
        true,
        &[
            "SUBSCRIBE a",
            "PUBLISH a one",
            "PSUBSCRIBE a* ?",
            "UNSUBSCRIBE a",
            "PUBLISH ab two",
            "PUBLISH b other",
            "SSUBSCRIBE a",
            "SPUBLISH a three",
        ],
    );
}

#[test]
fn replies_that_are_turned_off_are_not_messages() {
    // Acknowledgements and messages come whatever CLIENT REPLY says; what is compared is all that comes until the end.
    for resp3 in [false, true] {
        for lines in [
            &["CLIENT REPLY OFF", "SUBSCRIBE a", "PING", "UNSUBSCRIBE a", "PING", "QUIT"][..],
            &["CLIENT REPLY SKIP", "SUBSCRIBE a", "PING", "QUIT"],
            &["SUBSCRIBE a", "CLIENT REPLY OFF", "PUBLISH a x", "PING", "CLIENT REPLY ON", "PING", "QUIT"],
            &["SUBSCRIBE a", "CLIENT REPLY SKIP", "PUBLISH a x", "PING", "QUIT"],
        ] {
            let servers: Vec<Redis> = (0..2).map(|_| Redis::start()).collect();
            let fence = Fence::start(&servers[1]);
            let [a, b] = [servers[0].client(), fence.client()].map(|mut client| {
                if resp3 {
                    assert_eq!(call!(client, "HELLO", "3")[0], b'%');
                }
                // In one piece: a server that owes nothing after a QUIT does not close by itself.
                let bytes: Vec<u8> =
                    lines.iter().flat_map(|line| command(&line.split(' ').collect::<Vec<_>>())).collect();
                client.send(&bytes);
                client.finish();
                show(&client.read_to_end())
            });
            assert_eq!(a, b, "{lines:?}");
        }
    }
}
