//! TLS 1.3, over QUIC but for the page: who may talk to whom, and how a refusal is explained.
//!
//! ```text
//!  server(...)         shows [server, CA]; asks for a client certificate; one that is sent must come from our CAs
//!  client(...)         shows its own certificate; trusts our CAs only                    agents, operators
//!  client_pinned(...)  shows none; trusts the CAs with these BLAKE3 fingerprints only    join
//!  client_probe(...)   shows an agent's or none; trusts those CAs, also with certificates that have expired   doctor
//!  member_server(...)  shows an agent's; lets in agents of our CAs only                  members of a pod
//!  member_client(...)  shows an agent's; trusts one agent of our CAs only                members of a pod
//!  web_server(...)     shows [server, CA]; asks for nothing: browsers, over TCP          the operator's page
//! ```
//! There is one CA, or during a rollover two ([`Authorities`]).
//! Identity comes from [`peer`], never from a payload. Revocation is the coordinator's: it looks the identity up after
//! the handshake. Sessions are never resumed: a ticket would outlive the certificate it was issued for; and there is no
//! 0-RTT, which could be replayed.

mod authority;
mod endpoint;
mod identity;
mod member;
mod problem;
mod race;
mod reset;
#[cfg(test)]
pub(crate) mod tests;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::wire::handshake::ALPN;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, ServerConfig, TransportConfig, VarInt};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};

pub use authority::{Authorities, authority_id, is_of_authority};
pub use endpoint::{
    BindError, bind_client as client_endpoint, bind_lasting_server as lasting_server_endpoint,
    bind_server as server_endpoint, connect, first_connected, split as split_address,
};
pub use identity::{
    ORGANIZATION, ParseCertificateError, Peer, Role, agent_id, parse_peer, peer, peer_certificates, validity,
};
pub use member::{member_client, member_server, trust_member};
pub use problem::{ConnectProblem, explain};

/// Why TLS cannot be set up: certificates and keys are unreadable or do not fit each other.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A private key cannot be read.
    #[error("private key cannot be read: {0}")]
    Key(&'static str),
    /// A certificate or key is not usable.
    #[error("certificate or key cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
    /// The CA's certificate is not usable.
    #[error("certificate of the CA cannot be used: {0}")]
    Ca(#[from] VerifierBuilderError),
    /// The cipher suite that QUIC starts with is not there.
    #[error("the TLS library lacks the cipher suite that QUIC needs")]
    CipherSuite(#[from] NoInitialCipherSuite),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn key(key_der: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::try_from(key_der.to_vec()).map_err(TlsError::Key)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = VarInt::from_u64(limits::IDLE_TIMEOUT_MS).unwrap_or(VarInt::MAX);
    transport
        .max_idle_timeout(Some(idle.into()))
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES))
        .send_window(limits::SEND_WINDOW_BYTES)
        .max_concurrent_uni_streams(VarInt::from_u32(limits::CHUNK_STREAMS))
        // Chunks go out one after the other, so that each arrives within its deadline on a slow link.
        .send_fairness(false)
        .datagram_receive_buffer_size(None);
    transport
}

/// The server's side. All arguments are DER; the key is PKCS#8. The first authority has issued the certificate.
///
/// A client may come without a certificate (to join), but one that it sends must be issued by one of these CAs.
///
/// # Errors
/// See [`TlsError`].
pub fn server(authorities: impl Into<Authorities>, cert_der: &[u8], key_der: &[u8]) -> Result<ServerConfig, TlsError> {
    let authorities = authorities.into();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities.roots()?), provider())
        .allow_unauthenticated()
        .build()?;
    // The CA goes along so that a joining client can compare it with the fingerprint in its token.
    let chain = std::iter::once(cert_der).chain(authorities.iter().take(1));
    let chain = chain.map(|der| CertificateDer::from(der.to_vec())).collect();
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key(key_der)?)?;
    let mut config = server_crypto(tls, ALPN)?;
    let mut transport = transport();
    // What a stranger sends is kept in memory until it is read: little, until [`trust`] says otherwise.
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::REQUEST_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(limits::STRANGER_WINDOW_BYTES));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(limits::PENDING_HANDSHAKES)
        .incoming_buffer_size(limits::INCOMING_BYTES)
        .incoming_buffer_size_total(limits::INCOMING_TOTAL_BYTES);
    Ok(config)
}

/// The server's side for browsers: HTTP/1.1 over TCP, and no certificate of the client. All arguments are DER; the key is PKCS#8.
///
/// # Errors
/// See [`TlsError`].
pub fn web_server(ca_der: &[u8], cert_der: &[u8], key_der: &[u8]) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let chain = [cert_der, ca_der].map(|der| CertificateDer::from(der.to_vec())).to_vec();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key(key_der)?)?;
    never_resume(&mut tls);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

fn never_resume(tls: &mut rustls::ServerConfig) {
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    tls.max_early_data_size = 0;
}

/// Gives the other end of a server's connection, which has shown its certificate, the windows and the chunk streams of a
/// member, and so many control streams at the same time.
pub fn trust(connection: &Connection, control_streams: u32) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(control_streams));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(limits::CHUNK_STREAMS));
    connection.set_receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES));
}

/// Every connection shakes hands in full and speaks `alpn`: nothing is resumed, and nothing is sent before.
fn server_crypto(mut tls: rustls::ServerConfig, alpn: &[u8]) -> Result<ServerConfig, TlsError> {
    tls.alpn_protocols = vec![alpn.to_vec()];
    never_resume(&mut tls);
    Ok(ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?)))
}

/// The same of a client.
fn client_crypto(mut tls: rustls::ClientConfig, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)))
}

fn client_config(tls: rustls::ClientConfig) -> Result<ClientConfig, TlsError> {
    let mut config = client_crypto(tls, ALPN)?;
    let mut transport = transport();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .keep_alive_interval(Some(Duration::from_millis(limits::KEEP_ALIVE_MS)));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// An enrolled agent's or an operator's side. All arguments are DER; the key is PKCS#8.
///
/// # Errors
/// See [`TlsError`].
pub fn client(authorities: impl Into<Authorities>, cert_der: &[u8], key_der: &[u8]) -> Result<ClientConfig, TlsError> {
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(authorities.into().roots()?)
        .with_client_auth_cert(vec![CertificateDer::from(cert_der.to_vec())], key(key_der)?)?;
    client_config(tls)
}

/// The side of somebody who wants to join and knows only fingerprints of CAs, BLAKE3 over their DER.
///
/// # Errors
/// See [`TlsError`].
pub fn client_pinned(ca_fingerprints: &[Digest]) -> Result<ClientConfig, TlsError> {
    let verifier = verify::PinnedCa::new(ca_fingerprints, provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    client_config(tls)
}

/// The side of `doctor`: trusts the CAs with these fingerprints whatever this machine's clock says, and shows a certificate and
/// its key (DER, PKCS#8) if it has them. For questions only: nothing that is kept, or sent, may depend on the answers.
///
/// # Errors
/// See [`TlsError`].
pub fn client_probe(ca_fingerprints: &[Digest], own: Option<(&[u8], &[u8])>) -> Result<ClientConfig, TlsError> {
    let verifier = verify::PinnedCa::new(ca_fingerprints, provider()).at_any_time();
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let tls = match own {
        Some((cert_der, key_der)) => {
            tls.with_client_auth_cert(vec![CertificateDer::from(cert_der.to_vec())], key(key_der)?)?
        }
        None => tls.with_no_client_auth(),
    };
    client_config(tls)
}
