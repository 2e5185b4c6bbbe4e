//! Builds the rustls configuration from the options: certificates, keys and protocol names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::common::Result;

#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// The authorities that may issue client certificates. `None`: clients are not asked for one.
    pub(crate) client_ca: Option<PathBuf>,
    /// Whether clients without a certificate are accepted.
    pub(crate) anonymous: bool,
    pub(crate) alpn: Vec<Vec<u8>>,
}

/// Returns a server configuration for TLS 1.2 and 1.3 with the crypto provider `ring`.
pub(crate) fn server(options: &Options) -> Result<Arc<ServerConfig>> {
    let chain = certificates(&options.cert)?;
    let key = PrivateKeyDer::from_pem_file(&options.key)
        .map_err(|error| unreadable(&options.key, "private key", error))?;
    let provider = Arc::new(ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match &options.client_ca {
        Some(path) => builder.with_client_cert_verifier(verifier(path, options.anonymous)?),
        None => builder.with_no_client_auth(),
    };
    let mismatch = |error| format!("{}: {error}", options.cert.display());
    let mut config = builder.with_single_cert(chain, key).map_err(mismatch)?;
    config.alpn_protocols.clone_from(&options.alpn);
    Ok(Arc::new(config))
}

fn verifier(path: &Path, anonymous: bool) -> Result<Arc<dyn ClientCertVerifier>> {
    let unfit = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut roots = RootCertStore::empty();
    for root in certificates(path)? {
        roots.add(root).map_err(|error| unfit(&error))?;
    }
    let provider = Arc::new(ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if anonymous { builder.allow_unauthenticated() } else { builder };
    Ok(builder.build().map_err(|error| unfit(&error))?)
}

/// Reads the certificates of a PEM file, which must contain at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let unreadable = |error| unreadable(path, "certificate", error);
    let items = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let found: Result<Vec<_>, _> = items.collect();
    let found = found.map_err(unreadable)?;
    if found.is_empty() { Err(unreadable(PemError::NoItemsFound).into()) } else { Ok(found) }
}

fn unreadable(path: &Path, what: &str, error: PemError) -> String {
    let path = path.display();
    match error {
        PemError::Io(error) => format!("can't read {path}: {error}"),
        PemError::NoItemsFound => format!("no {what} in {path}"),
        error => format!("no {what} in {path}: {error}"),
    }
}
