//! TLS on both sides: clients of several languages, certificates that make a connection a tenant's, and what must never be taken for one.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use crate::is;
use crate::support::wire::{command, measure, show};
use crate::support::{Fence, HANG, Redis, free_addr};

/// An authority, and files of what it signed.
struct Certificates {
    dir: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    /// An authority with a certificate for `localhost` and this address, called `server`.
    fn new(at: SocketAddr) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let all = Self { dir: tempfile::tempdir().unwrap(), authority };
        std::fs::write(all.path("ca.pem"), all.authority.pem()).unwrap();
        all.sign("server", &[SanType::DnsName("localhost".try_into().unwrap()), SanType::IpAddress(at.ip())]);
        all
    }

    /// A certificate of these names in `NAME.pem`, its key in `NAME.key`.
    fn sign(&self, name: &str, names: &[SanType]) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = names.to_vec();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// What a client trusts, and shows: the certificate of that name, if any.
    fn client(&self, shows: Option<&str>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        match shows {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = vec![CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap()];
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }

    /// The settings of a `tls:` listener at `addr`.
    fn listener(&self, addr: SocketAddr, client_auth: &str) -> String {
        let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| self.path(name));
        format!(
            "listen = [\"tls:{addr}\"]\n[tls]\ncert_file = \"{cert}\"\nkey_file = \"{key}\"\nclient_ca_file = \"{ca}\"\n\
             client_auth = \"{client_auth}\"\n"
        )
    }
}

/// A client that speaks TLS.
struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    fn connect(addr: SocketAddr, config: ClientConfig) -> Self {
        Self::named(addr, config, "localhost")
    }

    /// That expects, and asks for, this name.
    fn named(addr: SocketAddr, config: ClientConfig, name: &'static str) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from(name).unwrap()).unwrap();
        Self(StreamOwned::new(tls, stream))
    }

    fn try_call(&mut self, args: &[&str]) -> std::io::Result<Vec<u8>> {
        self.0.write_all(&command(args))?;
        let mut all = Vec::new();
        let mut chunk = [0; 65536];
        loop {
            if let Some(end) = measure(&all) {
                assert_eq!(end, all.len());
                return Ok(all);
            }
            match self.0.read(&mut chunk)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => all.extend_from_slice(&chunk[..n]),
            }
        }
    }

    fn say(&mut self, line: &str) -> String {
        show(&self.try_call(&line.split(' ').collect::<Vec<_>>()).unwrap())
    }
}

const OK: &str = "+OK\\r\\n";

/// keyfence with a `tls:` listener in front of a server, tenants `a` and `b` as the settings say.
struct World {
    redis: Redis,
    fence: Fence,
    certificates: Certificates,
    secure: SocketAddr,
}

fn world(client_auth: &str, tenants: &str) -> World {
    let (redis, secure) = (Redis::start(), free_addr());
    let certificates = Certificates::new(secure);
    let config = certificates.listener(secure, client_auth) + tenants;
    let fence = Fence::listening(redis.addr(), &config);
    World { redis, fence, certificates, secure }
}

const TWO: &str = "[tenants.a]\npasswords = [\"pa\"]\n[tenants.b]\npasswords = [\"pb\"]\n";

#[test]
fn everything_goes_through() {
    let world = world("off", TWO);
    let mut client = Secure::connect(world.secure, world.certificates.client(None));
    assert_eq!(client.say("AUTH a pa"), OK);
    assert_eq!(client.say("SET k v"), OK);
    // Larger than what is encrypted at once, than the buffers of the sockets, and streamed.
    for len in [20_000, 300_000, 30_000_000] {
        let value = "v".repeat(len);
        assert_eq!(client.try_call(&["SET", "large", &value]).unwrap(), b"+OK\r\n");
        assert_eq!(client.try_call(&["GET", "large"]).unwrap().len(), len + format!("${len}\r\n\r\n").len());
    }
    // Pipelined, more than a record holds.
    let pings = command(&["PING"]).repeat(50_000);
    let mut all = vec![0; b"+PONG\r\n".len() * 50_000];
    client.0.write_all(&pings).unwrap();
    client.0.read_exact(&mut all).unwrap();
    assert_eq!(all, b"+PONG\r\n".repeat(50_000));
    is!(world.redis.client(), ["GET", "a:k"], "$1\r\nv\r\n");
    assert_eq!(client.say("QUIT"), OK);
    // An orderly end.
    assert_eq!(client.0.read(&mut [0; 10]).unwrap(), 0);
}

#[test]
fn clients_of_several_languages() {
    let world = world("off", TWO);
    let (ca, port) = (world.certificates.path("ca.pem"), world.secure.port().to_string());
    let host = world.secure.ip().to_string();
    let root = env!("CARGO_MANIFEST_DIR");
    let python = "import os, redis\n\
                  r = redis.Redis(host=os.environ['HOST'], port=int(os.environ['PORT']), ssl=True, ssl_ca_certs=os.environ['CA'], username='a', password='pa')\n\
                  assert r.set('py', b'x' * 100_000) and len(r.get('py')) == 100_000\n";
    let node = "import Redis from 'ioredis'; import fs from 'fs';\n\
                const r = new Redis({host: process.env.HOST, port: +process.env.PORT, tls: {ca: fs.readFileSync(process.env.CA)}, username: 'a', password: 'pa'});\n\
                if (await r.set('io', 'y'.repeat(100000)) !== 'OK' || (await r.get('io')).length !== 100000) process.exit(1);\n\
                await r.quit();\n";
    let mut cli = Command::new("redis-cli");
    cli.args([
        "--tls",
        "--cacert",
        &ca,
        "-h",
        &host,
        "-p",
        &port,
        "--user",
        "a",
        "--pass",
        "pa",
        "--no-auth-warning",
        "SET",
        "cli",
        "z",
    ]);
    let mut py = Command::new(format!("{root}/.venv/bin/python"));
    py.args(["-c", python]);
    let mut io = Command::new("node");
    io.args(["--input-type=module", "-e", node]).current_dir(format!("{root}/tests/clients"));
    for program in [&mut cli, &mut py, &mut io] {
        program.env("HOST", &host).env("PORT", &port).env("CA", &ca);
        let output = program.output().unwrap_or_else(|e| panic!("{program:?}: {e}"));
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{program:?} at {host}: {text}");
    }
    is!(world.redis.client(), ["EXISTS", "a:cli", "a:py", "a:io"], ":3\r\n");
}

#[test]
fn u5_a_certificate_makes_a_tenant() {
    let tenants = "[tenants.a]\npasswords = [\"pa\"]\ntls_identities = [\"spiffe://x/a\"]\n\
                   [tenants.b]\npasswords = [\"pb\"]\ntls_identities = [\"b.example\"]\n";
    for client_auth in ["optional", "required"] {
        let world = world(client_auth, tenants);
        let all = &world.certificates;
        let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        all.sign("a", &[uri("spiffe://x/a")]);
        all.sign("b", &[uri("spiffe://x/other"), dns("b.example")]);
        all.sign("nobody", &[uri("spiffe://x/a2"), uri("SPIFFE://x/a"), dns("x.b.example"), dns("a")]);
        all.sign("nul", &[uri("spiffe://x/a\0.evil")]);
        let as_who = |shows: Option<&str>| {
            let mut client = Secure::connect(world.secure, all.client(shows));
            client.try_call(&["ACL", "WHOAMI"]).map_or_else(|e| e.to_string(), |reply| show(&reply))
        };
        assert_eq!(as_who(Some("a")), "$1\\r\\na\\r\\n");
        assert_eq!(as_who(Some("b")), "$1\\r\\nb\\r\\n");
        assert_eq!(as_who(Some("nobody")), "-NOAUTH Authentication required.\\r\\n");
        let nul = as_who(Some("nul"));
        assert!(!nul.contains("$1"), "{nul}");
        let without = as_who(None);
        assert_eq!(without.starts_with("-NOAUTH"), client_auth == "optional", "{without}");
        // Another authority's word for the same name.
        let other = Certificates::new(world.secure);
        other.sign("a", &[uri("spiffe://x/a")]);
        std::fs::copy(all.path("ca.pem"), other.path("ca.pem")).unwrap();
        let mut forger = Secure::connect(world.secure, other.client(Some("a")));
        assert!(forger.try_call(&["ACL", "WHOAMI"]).is_err());
        // Asking for a name is no proof where certificates are looked at.
        let mut asks = all.client(None);
        asks.dangerous().set_certificate_verifier(Arc::new(Anybody));
        if client_auth == "optional" {
            let mut client = Secure::named(world.secure, asks, "b.example");
            assert_eq!(client.say("ACL WHOAMI"), "-NOAUTH Authentication required.\\r\\n");
        }
        // A login goes before the certificate, and RESET leads back to it.
        let mut client = Secure::connect(world.secure, all.client(Some("a")));
        assert_eq!(client.say("AUTH b pb"), OK);
        assert_eq!(client.say("ACL WHOAMI"), "$1\\r\\nb\\r\\n");
        assert_eq!(client.say("RESET"), "+RESET\\r\\n");
        assert_eq!(client.say("ACL WHOAMI"), "$1\\r\\na\\r\\n");
        // What makes the tenant is taken out of the settings: so is the session.
        let config = all.listener(world.secure, client_auth) + &tenants.replace("spiffe://x/a", "spiffe://x/new");
        world.fence.reload(&config, "settings reloaded");
        assert!(client.try_call(&["PING"]).is_err());
        assert_eq!(as_who(Some("a")), "-NOAUTH Authentication required.\\r\\n");
    }
}

#[test]
fn u5_a_name_asked_for_makes_a_tenant_where_no_certificate_is_looked_at() {
    let world = world("off", "[tenants.a]\npasswords = [\"pa\"]\ntls_identities = [\"a.example\"]\n");
    for (name, reply) in [("a.example", "$1\\r\\na\\r\\n"), ("b.example", "-NOAUTH Authentication required.\\r\\n")] {
        let mut config = world.certificates.client(None);
        config.dangerous().set_certificate_verifier(Arc::new(Anybody));
        assert_eq!(Secure::named(world.secure, config, name).say("ACL WHOAMI"), reply);
    }
}

#[test]
fn u5_a_name_is_believed_for_as_long_as_its_proof_is_what_is_asked_for() {
    let tenants =
        "[tenants.a]\npasswords = [\"pa\"]\ntls_identities = [\"a.example\"]\n[tenants.b]\npasswords = [\"pb\"]\n";
    let world = world("off", tenants);
    let asks = || {
        let mut config = world.certificates.client(None);
        config.dangerous().set_certificate_verifier(Arc::new(Anybody));
        Secure::named(world.secure, config, "a.example")
    };
    let (mut by_name, mut by_password) = (asks(), asks());
    assert_eq!(by_name.say("ACL WHOAMI"), "$1\\r\\na\\r\\n");
    assert_eq!(by_password.say("AUTH b pb"), OK);
    let required = world.certificates.listener(world.secure, "optional") + tenants;
    world.fence.reload(&required, "settings reloaded");
    assert!(by_name.try_call(&["PING"]).is_err());
    // Who logged in otherwise stays, and does not fall back to the name.
    assert_eq!(by_password.say("PING"), "+PONG\\r\\n");
    assert_eq!(by_password.say("RESET"), "+RESET\\r\\n");
    assert_eq!(by_password.say("ACL WHOAMI"), "-NOAUTH Authentication required.\\r\\n");
    assert_eq!(asks().say("ACL WHOAMI"), "-NOAUTH Authentication required.\\r\\n");
    // Another authority: what the one before had signed is no proof any more.
    world.certificates.sign("a", &[SanType::DnsName("a.example".try_into().unwrap())]);
    let mut certified = Secure::connect(world.secure, world.certificates.client(Some("a")));
    assert_eq!(certified.say("ACL WHOAMI"), "$1\\r\\na\\r\\n");
    world.fence.reload(&(required.clone() + "# again\n"), "settings reloaded");
    assert_eq!(certified.say("PING"), "+PONG\\r\\n");
    let other = Certificates::new(world.secure);
    std::fs::copy(other.path("ca.pem"), world.certificates.path("ca.pem")).unwrap();
    world.fence.reload(&(required + "# and again\n"), "settings reloaded");
    assert!(certified.try_call(&["PING"]).is_err());
}

#[test]
fn what_is_sent_in_the_clear_is_never_used() {
    let world = world("off", "[tenants.a]\npasswords = [\"pa\"]\n[auth]\ndefault_tenant = \"a\"\n");
    let set = command(&["SET", "k", "v"]);
    let mut plain = TcpStream::connect(world.secure).unwrap();
    plain.set_read_timeout(Some(HANG)).unwrap();
    plain.write_all(&set).unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert!(!said.windows(3).any(|w| w == b"+OK"), "{}", show(&said));
    // Before a handshake on the same connection, and in its middle.
    for after in [0, 20] {
        let config = Arc::new(world.certificates.client(None));
        let mut tls = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).unwrap();
        let bytes = [&hello[..after], &set[..], &hello[after..]].concat();
        let mut stream = TcpStream::connect(world.secure).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.write_all(&bytes).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(!said.windows(3).any(|w| w == b"+OK"), "{}", show(&said));
    }
    is!(world.redis.client(), ["DBSIZE"], ":0\r\n");
    // Nor does one that says nothing keep others out.
    let _silent: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(world.secure).unwrap()).collect();
    let mut client = Secure::connect(world.secure, world.certificates.client(None));
    assert_eq!(client.say("SET k v"), OK);
}

#[test]
fn certificates_are_read_again_without_anybody_noticing() {
    let world = world("off", TWO);
    let serial = |client: &Secure| client.0.conn.peer_certificates().unwrap()[0].clone();
    let mut before = Secure::connect(world.secure, world.certificates.client(None));
    assert_eq!(before.say("AUTH a pa"), OK);
    world.certificates.sign("server", &[SanType::DnsName("localhost".try_into().unwrap())]);
    let config = world.certificates.listener(world.secure, "off") + TWO;
    world.fence.reload(&config, "settings reloaded");
    let mut after = Secure::connect(world.secure, world.certificates.client(None));
    assert_eq!(after.say("AUTH a pa"), OK);
    assert_ne!(serial(&before), serial(&after));
    assert_eq!(before.say("PING"), "+PONG\\r\\n");
    // One that cannot be read changes nothing, and says so.
    std::fs::write(world.certificates.path("server.pem"), "nonsense").unwrap();
    world.fence.reload(&(config + "# again\n"), "holds no certificate");
    let mut later = Secure::connect(world.secure, world.certificates.client(None));
    assert_eq!(later.say("AUTH a pa"), OK);
    assert_eq!(serial(&later), serial(&after));
}

#[test]
fn an_upstream_over_tls() {
    let addr = free_addr();
    let certificates = Certificates::new(addr);
    certificates.sign("client", &[]);
    let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| certificates.path(name));
    let port = addr.port().to_string();
    let args = [
        "--port",
        "0",
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
    ];
    let redis = Redis::start_with(addr, &args);
    let [cert, key] = ["client.pem", "client.key"].map(|name| certificates.path(name));
    let upstream = |tls: &str| {
        format!(
            "[upstream]\nurl = \"rediss://{addr}\"\nacl_wall = \"require\"\n{tls}[tenants.a]\npasswords = [\"pa\"]\n"
        )
    };
    let good = format!(
        "tls = {{ ca_file = \"{ca}\", cert_file = \"{cert}\", key_file = \"{key}\", server_name = \"localhost\" }}\n"
    );
    let fence = Fence::plain(&upstream(&good));
    let mut client = fence.client();
    is!(client, ["AUTH", "a", "pa"], "+OK\r\n");
    let value = "v".repeat(5_000_000);
    is!(client, ["SET", "large", value], "+OK\r\n");
    assert_eq!(crate::call!(client, "GET", "large").len(), 5_000_000 + "$5000000\r\n\r\n".len());
    is!(client, ["EVAL", "return redis.call('STRLEN', KEYS[1])", "1", "large"], ":5000000\r\n");
    is!(client, ["KEYS", "*"], "*1\r\n$5\r\nlarge\r\n");
    drop(redis);
    // Not the name that was expected, nobody that is trusted, no certificate where one is asked for.
    for (tls, _why) in [
        (
            format!(
                "tls = {{ ca_file = \"{ca}\", cert_file = \"{cert}\", key_file = \"{key}\", server_name = \"elsewhere\" }}\n"
            ),
            "name",
        ),
        (
            format!("tls = {{ cert_file = \"{cert}\", key_file = \"{key}\", server_name = \"localhost\" }}\n"),
            "authority",
        ),
        (format!("tls = {{ ca_file = \"{ca}\", server_name = \"localhost\" }}\n"), "certificate"),
    ] {
        let _redis = Redis::start_with(addr, &args);
        let fence = Fence::plain(&upstream(&tls));
        let mut client = fence.client();
        is!(client, ["AUTH", "a", "pa"], "+OK\r\n");
        let reply = crate::call!(client, "GET", "large");
        assert!(reply.starts_with(b"-UPSTREAM unreachable"), "{}", show(&reply));
    }
}

/// Trusts whoever answers.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
