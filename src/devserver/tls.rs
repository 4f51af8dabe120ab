//! TLS with a certificate of the server's own making, kept in its data so that clients need trust it once.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// The certificate, and the key to it, in the server's data.
const CERTIFICATE: &str = "tls-cert.pem";
const KEY: &str = "tls-key.pem";

/// What takes connections, and the file that clients must trust.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) certificate: PathBuf,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Takes connections as one of the names of `addr`.
pub(super) fn open(data: &Path, addr: SocketAddr) -> io::Result<Tls> {
    let (certificate, key) = (data.join(CERTIFICATE), data.join(KEY));
    if !certificate.exists() || !key.exists() {
        make(&certificate, &key, addr)?;
    }
    let chain = CertificateDer::pem_file_iter(&certificate).map_err(io::Error::other)?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(io::Error::other)?;
    Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), certificate })
}

fn make(certificate: &Path, key: &Path, addr: SocketAddr) -> io::Result<()> {
    let mut names = vec!["localhost".to_owned(), "*.localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !addr.ip().is_loopback() {
        names.push(addr.ip().to_string());
    }
    let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    fs::write(certificate, made.cert.pem())?;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(key)?;
    io::Write::write_all(&mut file, made.key_pair.serialize_pem().as_bytes())
}
