//! Connections that a proxy passes on: whose they are is what a listed proxy says, and what nobody else does.
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::is;
use crate::support::wire::{Client, bulk, show};
use crate::support::{Fence, HANG, Redis, free_addr, http};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Tests connect from 127.0.0.1.
const LISTED: &str = "proxy_protocol = ['10.0.0.0/8', '127.0.0.0/8', 'unix']\n";

fn version_2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap();
    [SIGNATURE, &[command, family], &length.to_be_bytes(), body].concat()
}

/// 192.0.2.9:4660 to 198.51.100.1:80.
const V4: [u8; 12] = [192, 0, 2, 9, 198, 51, 100, 1, 0x12, 0x34, 0, 80];

/// The fields of CLIENT INFO that say who it is.
fn seen_as(client: &mut Client) -> (String, String) {
    let info = show(&client.call(&[b"CLIENT", b"INFO"]));
    let field = |name: &str| {
        let value = info.split(' ').find_map(|field| field.strip_prefix(name));
        value.unwrap_or_else(|| panic!("no {name} in {info}")).to_owned()
    };
    (field("addr="), field("laddr="))
}

/// What who is one too many is told.
const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";

/// Whether the connection ends without a word.
fn ends(mut stream: impl Read) -> bool {
    let mut buf = [0; 64];
    match stream.read(&mut buf) {
        Ok(n) => n == 0,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

fn connect(fence: &Fence) -> TcpStream {
    let stream = TcpStream::connect(fence.addr()).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

#[test]
fn a_listed_proxy_says_whose_connection_it_is() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), LISTED);
    let notes = [&V4[..], &[3, 0, 4, 1, 2, 3, 4], &[5, 0x0f, 0], &[b'x'; 0xf00]].concat();
    let v6 = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9].repeat(2)[..], &[0, 1, 0, 2]].concat();
    for (header, addr, laddr) in [
        (b"PROXY TCP4 192.0.2.9 198.51.100.1 4660 80\r\n".to_vec(), "192.0.2.9:4660", "198.51.100.1:80"),
        (b"PROXY TCP6 2001:db8::9 2001:db8::9 1 2\r\n".to_vec(), "[2001:db8::9]:1", "[2001:db8::9]:2"),
        (version_2(0x21, 0x11, &V4), "192.0.2.9:4660", "198.51.100.1:80"),
        (version_2(0x21, 0x11, &notes), "192.0.2.9:4660", "198.51.100.1:80"),
        (version_2(0x21, 0x21, &v6), "[2001:db8::9]:1", "[2001:db8::9]:2"),
    ] {
        // With the first command, and with a pause after each byte.
        let mut client = fence.client();
        client.send(&[&header[..], b"PING\r\n"].concat());
        assert_eq!(client.reply(), b"+PONG\r\n");
        assert_eq!(seen_as(&mut client), (addr.into(), laddr.into()));
        if header.len() < 200 {
            let mut client = fence.client();
            header.iter().for_each(|byte| client.send(&[*byte]));
            assert_eq!(seen_as(&mut client), (addr.into(), laddr.into()));
        }
    }
    // What concerns the proxy itself, or says nothing.
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 192.0.2.9 198.51.100.1 4660 80\r\n".to_vec(),
        version_2(0x20, 0x11, &V4),
        version_2(0x20, 0, &[]),
        version_2(0x21, 0x31, &[b'x'; 216]),
    ] {
        let mut client = fence.client();
        let own = client.stream().local_addr().unwrap();
        client.send(&header);
        assert_eq!(seen_as(&mut client), (own.to_string(), fence.addr().to_string()), "{}", header.escape_ascii());
    }
    // A header followed by nothing is a client that says nothing.
    let mut silent = fence.client();
    silent.send(b"PROXY TCP4 192.0.2.77 198.51.100.1 4660 80\r\n");
    let mut other = fence.client();
    other.send(b"PROXY UNKNOWN\r\n");
    while !show(&other.call(&[b"CLIENT", b"LIST"])).contains("addr=192.0.2.77:4660") {
        thread::yield_now();
    }
}

#[test]
fn what_is_no_header_ends_the_connection() {
    let redis = Redis::start();
    let mut fence = Fence::with_admin(redis.addr(), LISTED, &[]);
    let wrong = [
        b"PING\r\n".to_vec(),
        b"*1\r\n$4\r\nPING\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.9 198.51.100.1 4660\r\n".to_vec(),
        [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(),
        version_2(0x21, 0x11, &[0; 4081]),
        [SIGNATURE, b"\x21\x11\xff\xff"].concat(),
        version_2(0x31, 0x11, &V4),
        version_2(0x21, 0x12, &V4),
    ];
    for bytes in &wrong {
        let mut stream = connect(&fence);
        let _ = stream.write_all(bytes);
        assert!(ends(&stream), "{}", bytes.escape_ascii());
    }
    // Silence has an end, and so has half a header.
    let (silent, mut half) = (connect(&fence), connect(&fence));
    half.write_all(b"PROXY TCP4 192.0").unwrap();
    assert!(ends(&silent));
    assert!(ends(&half));
    // Or it comes to an end by itself.
    let mut half = connect(&fence);
    half.write_all(b"PROXY TCP4 192.0").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert!(ends(&half));
    let said = "keyfence_client_connections_total{result=\"no_proxy_header\"}";
    let count = wrong.len() + 3;
    http::until(fence.admin(), "/metrics", |r| r.body.contains(&format!("{said} {count}\n")));
    // Who only looks whether anybody listens is no fault.
    drop(connect(&fence));
    // The log sums up what comes more than ten times within some seconds.
    assert!((10..=count).contains(&fence.process().unwrap().lines_with("did not: closed")));
    assert!(fence.stop().success());
}

#[test]
fn nobody_else_is_believed() {
    let redis = Redis::start();
    for config in ["", "proxy_protocol = ['10.0.0.0/8', '127.0.0.2', '::/0']\n"] {
        let fence = Fence::with_tenants(redis.addr(), config);
        let mut client = fence.client();
        client.send_lossy(b"PROXY TCP4 192.0.2.9 198.51.100.1 4660 80\r\n");
        assert!(ends(client.stream()), "a header of version 1 is no request");
        // Version 2 begins as an empty line; then comes what no client sends.
        let mut client = fence.client();
        client.send_lossy(&version_2(0x21, 0x11, &V4));
        client.send_lossy(b"CLIENT INFO\r\n");
        let mut said = Vec::new();
        client.stream().set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let _ = client.stream().read_to_end(&mut said);
        assert!(!show(&said).contains("192.0.2.9"), "{}", show(&said));
        let mut client = fence.client();
        let own = client.stream().local_addr().unwrap().to_string();
        assert_eq!(seen_as(&mut client).0, own);
    }
}

#[test]
fn limits_by_address_are_those_of_the_client() {
    let redis = Redis::start();
    let config = format!("{LISTED}[tenants.acme]\npasswords = ['right']\n");
    let fence = Fence::with_tenants(redis.addr(), &config);
    let from = |last: u8| {
        let mut client = fence.client();
        client.send(format!("PROXY TCP4 192.0.2.{last} 198.51.100.1 {} 80\r\n", 4000 + u16::from(last)).as_bytes());
        client
    };
    // Somebody guesses until it is slow.
    let slow = |last| {
        let began = tokio::time::Instant::now();
        let reply = show(&from(last).call(&[b"AUTH", b"acme", b"wrong"]));
        assert!(reply.starts_with("-WRONGPASS"), "{reply}");
        began.elapsed()
    };
    (0..8).for_each(|_| {
        slow(1);
    });
    let (guesser, other) = (slow(1), slow(2));
    assert!(guesser > other, "{guesser:?} for who guesses, {other:?} for who does not");
    let process = fence.process().unwrap();
    process.wait_for_line(|line| line.contains("login refused") && line.contains("192.0.2.1:4001"));
    is!(from(3), ["AUTH", "acme", "right"], "+OK\r\n");
}

#[test]
fn a_unix_socket_may_be_a_proxys() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kf.sock");
    let listen = format!("{LISTED}listen = ['unix:{}']\n", path.display());
    let _fence = Fence::listening(redis.addr(), &listen);
    let ask = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        let _ = stream.write_all(bytes);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        show(&said)
    };
    let said = ask(b"PROXY TCP4 192.0.2.9 198.51.100.1 4660 80\r\nCLIENT INFO\r\nQUIT\r\n");
    assert!(said.contains(" addr=192.0.2.9:4660 "), "{said}");
    assert_eq!(ask(b"CLIENT INFO\r\n"), "");
}

/// Files of a certificate and its key, as settings name them.
fn tls(dir: &tempfile::TempDir) -> String {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (cert_file, key_file) = (dir.path().join("a.pem"), dir.path().join("a.key"));
    std::fs::write(&cert_file, cert.pem()).unwrap();
    std::fs::write(&key_file, signing_key.serialize_pem()).unwrap();
    format!("[tls]\ncert_file = '{}'\nkey_file = '{}'\n", cert_file.display(), key_file.display())
}

#[test]
fn the_header_comes_before_the_handshake() {
    let redis = Redis::start();
    let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let _fence = Fence::listening(redis.addr(), &format!("{LISTED}listen = ['tls:{addr}']\n{}", tls(&dir)));
    let mut roots = rustls::RootCertStore::empty();
    let pem = rustls::pki_types::pem::PemObject::from_pem_file(dir.path().join("a.pem")).unwrap();
    roots.add(pem).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = std::sync::Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    for header in [&b"PROXY TCP4 192.0.2.9 198.51.100.1 4660 80\r\n"[..], &version_2(0x21, 0x11, &V4)] {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        header.chunks(7).for_each(|piece| stream.write_all(piece).unwrap());
        let tls = rustls::ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
        let mut stream = rustls::StreamOwned::new(tls, stream);
        stream.write_all(b"CLIENT INFO\r\nQUIT\r\n").unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(show(&said).contains(" addr=192.0.2.9:4660 "), "{}", show(&said));
    }
    // And not behind it, or instead.
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    let tls = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(tls, stream);
    assert!(stream.write_all(b"PING\r\n").and_then(|()| stream.read_exact(&mut [0; 7])).is_err());
}

#[test]
fn who_has_not_arrived_yet_takes_a_clients_place() {
    let redis = Redis::start();
    let (dir, secure, plain) = (tempfile::tempdir().unwrap(), free_addr(), free_addr());
    let config = format!(
        "listen = ['tls:{secure}', '{plain}']\nmax_clients = 3\nworkers = 2\n{}[log]\nlevel = 'debug'\n",
        tls(&dir)
    );
    let fence = Fence::listening(redis.addr(), &config);
    let mut client = Client::connect(plain);
    is!(client, ["ECHO", "first"], bulk("first"));
    let silent: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(secure).unwrap()).collect();
    fence.process().unwrap().wait_for_lines(2, "client is arriving");
    // There is no place left: neither for another handshake nor for a client.
    // Who says nothing is told all the same.
    assert_eq!(Client::connect(plain).reply(), TOO_MANY);
    let one_more = TcpStream::connect(secure).unwrap();
    one_more.set_read_timeout(Some(HANG)).unwrap();
    assert!(ends(&one_more));
    is!(client, ["ECHO", "still"], bulk("still"));
    drop(silent);
    let told = || {
        let mut client = Client::connect(plain);
        client.send_lossy(b"PING\r\n");
        client.reply()
    };
    while told() != b"+PONG\r\n" {}
}

#[test]
fn who_is_one_too_many_behind_a_proxy_is_told() {
    let redis = Redis::start();
    let fence = Fence::with_tenants(redis.addr(), &format!("{LISTED}max_clients = 1\n"));
    let mut client = fence.client();
    client.send(b"PROXY UNKNOWN\r\n");
    is!(client, ["ECHO", "first"], bulk("first"));
    let mut other = connect(&fence);
    let mut said = Vec::new();
    other.write_all(b"PROXY UNKNOWN\r\nPING\r\n").unwrap();
    // It may be closed before what it sent has arrived, and then it is reset, but only behind the word.
    let mut buf = [0; 64];
    while let Ok(n @ 1..) = other.read(&mut buf) {
        said.extend_from_slice(&buf[..n]);
    }
    assert_eq!(show(&said), show(TOO_MANY));
    is!(client, ["ECHO", "still"], bulk("still"));
}
