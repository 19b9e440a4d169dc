//! Certificates and keys, from the files that the settings name, and whom a client's certificate names.
//! TLS 1.2 and 1.3 by rustls, whose defaults are kept (<https://docs.rs/rustls/0.23>).

use std::{path::Path, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use crate::config::{self, ClientAuth};

fn certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{setting}: {}: {e}", path.display());
    let all: Vec<_> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|e| failed(&e))?;
    if all.is_empty() { Err(failed(&"holds no certificate")) } else { Ok(all) }
}

fn private_key(setting: &str, path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| format!("{setting}: {}: {e}", path.display()))
}

fn authorities(setting: &str, path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(setting, path)? {
        roots.add(certificate).map_err(|e| format!("{setting}: {}: {e}", path.display()))?;
    }
    Ok(roots)
}

/// Bytes of a record that keyfence sends. The library encrypts into memory that it allocates for each record: of this size, that memory is
/// still in the processor's cache when it comes round again (docs/decisions/0017).
const RECORD: usize = 8 * 1024;

/// How the `tls:` listeners shake hands, read anew from the files of `[tls]`.
///
/// # Errors
/// What is wrong with which setting or file.
pub fn server(tls: &config::Tls) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match tls.client_auth {
        ClientAuth::Off => builder.with_no_client_auth(),
        ClientAuth::Optional | ClientAuth::Required => {
            let roots = Arc::new(authorities("tls.client_ca_file", &tls.client_ca_file)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier =
                if tls.client_auth == ClientAuth::Optional { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build().map_err(|e| format!("tls.client_ca_file: {e}"))?)
        }
    };
    let chain = certificates("tls.cert_file", &tls.cert_file)?;
    let key = private_key("tls.key_file", &tls.key_file)?;
    let mut config =
        builder.with_single_cert(chain, key).map_err(|e| format!("tls.cert_file and tls.key_file: {e}"))?;
    config.max_fragment_size = Some(RECORD);
    Ok(Arc::new(config))
}

/// TLS to one upstream. The files are read again by [`UpstreamTls::renew`]; connections that stand keep what they were made with.
#[derive(Debug)]
pub struct UpstreamTls {
    /// Whom its certificate must name.
    pub name: ServerName<'static>,
    settings: config::UpstreamTls,
    config: ArcSwap<ClientConfig>,
}

impl UpstreamTls {
    /// For the upstream at `host`.
    ///
    /// # Errors
    /// What is wrong with which setting or file.
    pub fn new(host: &str, settings: &config::UpstreamTls) -> Result<Self, String> {
        let named = if settings.server_name.is_empty() { host } else { &settings.server_name };
        let name = ServerName::try_from(named.to_owned()).map_err(|_| {
            format!("tls.server_name: '{}' is neither a host name nor an address", named.escape_debug())
        })?;
        let config = ArcSwap::from(client(settings)?);
        Ok(Self { name, settings: settings.clone(), config })
    }

    /// For the next connection.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.config.load_full()
    }

    /// Reads the files again; what they hold is in force once what is returned has been given to [`UpstreamTls::take`].
    ///
    /// # Errors
    /// What is wrong with which setting or file.
    pub fn renew(&self) -> Result<Arc<ClientConfig>, String> {
        client(&self.settings)
    }

    /// Puts what [`UpstreamTls::renew`] read into force.
    pub fn take(&self, renewed: Arc<ClientConfig>) {
        self.config.store(renewed);
    }
}

fn client(tls: &config::UpstreamTls) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = if tls.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        let roots = if tls.ca_file.as_os_str().is_empty() {
            let mut roots = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err("tls.ca_file: is empty, and the system has no certificate authorities".into());
            }
            roots
        } else {
            authorities("tls.ca_file", &tls.ca_file)?
        };
        builder.with_root_certificates(roots)
    };
    let mut config = match (tls.cert_file.as_os_str().is_empty(), tls.key_file.as_os_str().is_empty()) {
        (true, true) => builder.with_no_client_auth(),
        (false, false) => {
            let chain = certificates("tls.cert_file", &tls.cert_file)?;
            let key = private_key("tls.key_file", &tls.key_file)?;
            builder.with_client_auth_cert(chain, key).map_err(|e| format!("tls.cert_file and tls.key_file: {e}"))?
        }
        _ => return Err("tls.cert_file and tls.key_file stand together or not at all".into()),
    };
    config.max_fragment_size = Some(RECORD);
    Ok(Arc::new(config))
}

/// `insecure_skip_verify`: any certificate will do, as long as its owner signs the handshake with it.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Whom the connection is from: the names in the client's verified certificate (SAN URIs, then SAN DNS names), byte for byte. Without one, the
/// name that it asked for (SNI), which proves nothing: it counts only where `names_asked_for` says so.
///
/// A name with a NUL or another control character is none (isolation.md U5).
pub fn identities(connection: &ServerConnection, names_asked_for: bool) -> Vec<String> {
    let mut names = Vec::new();
    match connection.peer_certificates().and_then(<[_]>::first) {
        Some(certificate) => {
            if let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) {
                names.extend(certificate.valid_uri_names().map(str::to_owned));
                names.extend(certificate.valid_dns_names().map(str::to_owned));
            }
        }
        None if names_asked_for => names.extend(connection.server_name().map(str::to_owned)),
        None => {}
    }
    names.retain(|name| !name.is_empty() && !name.contains(char::is_control));
    names
}
