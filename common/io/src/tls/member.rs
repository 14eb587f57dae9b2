//! Trust between agents of one run: the members of a pod connect to each other with the certificates that they have.
//!
//! An agent's certificate is one for clients, and names no address. So the member that dials checks it as a server checks a
//! client's: issued by the run's CA, for clients, valid now. On top of that the key has to be that of the agent that it dials.

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::wire::pod::ALPN;
use quinn::{ClientConfig, Connection, ServerConfig, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::{Authorities, Role, TlsError, client_crypto, key, parse_peer, provider, server_crypto};

/// Accepts the certificates that the run's CAs have issued for agents, of all or of one of them.
#[derive(Debug)]
struct Agents {
    clients: Arc<dyn ClientCertVerifier>,
    only: Option<AgentId>,
}

impl Agents {
    fn new(authorities: &Authorities, only: Option<AgentId>) -> Result<Arc<Self>, TlsError> {
        let roots = Arc::new(authorities.roots()?);
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?;
        Ok(Arc::new(Self { clients, only }))
    }

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.clients.verify_client_cert(certificate, chain, now)?;
        let peer = parse_peer(certificate).map_err(|_| CertificateError::BadEncoding)?;
        let is_wanted = peer.role == Role::Agent && self.only.is_none_or(|only| peer.agent == only);
        if is_wanted { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }
}

impl ServerCertVerifier for Agents {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Agents {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

/// One stream each way, which the member that dials opens. A member that is gone is noticed within seconds.
fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = VarInt::from_u64(limits::POD_IDLE_TIMEOUT_MS).unwrap_or(VarInt::MAX);
    transport
        .max_idle_timeout(Some(idle.into()))
        .keep_alive_interval(Some(Duration::from_millis(limits::POD_KEEP_ALIVE_MS)))
        .stream_receive_window(VarInt::from_u32(limits::POD_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::POD_WINDOW_BYTES))
        .send_window(limits::POD_WINDOW_BYTES.into())
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}

/// The side of a member that others dial: a client has to show the certificate of an agent of this CA, and may have
/// `STRANGER_WINDOW_BYTES` under way until [`trust_member`] says otherwise. All arguments are DER; the key is PKCS#8.
///
/// # Errors
/// See [`TlsError`].
pub fn member_server(
    authorities: impl Into<Authorities>,
    cert_der: &[u8],
    key_der: &[u8],
) -> Result<ServerConfig, TlsError> {
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Agents::new(&authorities.into(), None)?)
        .with_single_cert(vec![CertificateDer::from(cert_der.to_vec())], key(key_der)?)?;
    let mut config = server_crypto(tls, ALPN)?;
    let mut transport = transport();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .receive_window(VarInt::from_u32(limits::STRANGER_WINDOW_BYTES));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(limits::POD_HANDSHAKES)
        .incoming_buffer_size(limits::INCOMING_BYTES)
        .incoming_buffer_size_total(limits::INCOMING_BYTES * limits::POD_HANDSHAKES as u64);
    Ok(config)
}

/// Gives the other end of a connection to a [`member_server`], which a round names, the window of a member.
pub fn trust_member(connection: &Connection) {
    connection.set_receive_window(VarInt::from_u32(limits::POD_WINDOW_BYTES));
}

/// The side of a member that dials `agent`: whoever answers has to show that agent's certificate. The name or address that is
/// dialed does not count. All other arguments are DER; the key is PKCS#8.
///
/// # Errors
/// See [`TlsError`].
pub fn member_client(
    authorities: impl Into<Authorities>,
    cert_der: &[u8],
    key_der: &[u8],
    agent: AgentId,
) -> Result<ClientConfig, TlsError> {
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Agents::new(&authorities.into(), Some(agent))?)
        .with_client_auth_cert(vec![CertificateDer::from(cert_der.to_vec())], key(key_der)?)?;
    let mut config = client_crypto(tls, ALPN)?;
    config.transport_config(Arc::new(transport()));
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use quinn::Endpoint;
    use quinn::crypto::rustls::QuicClientConfig;
    use time::macros::datetime;

    use super::super::tests::{FOREVER, TestCa, TestCert, accept_one, refused};
    use super::super::{agent_id, client_endpoint, connect, peer, server_endpoint};
    use super::*;
    use crate::exit::ExitCode;
    use crate::tls::ConnectProblem;

    fn serve(ca: &TestCa, cert: &TestCert) -> (Endpoint, String) {
        let config = member_server(&ca.der, &cert.der, &cert.key_der).expect("configures");
        let endpoint = server_endpoint(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), config).expect("binds");
        let address = endpoint.local_addr().expect("bound").to_string();
        (endpoint, address)
    }

    fn id(cert: &TestCert) -> AgentId {
        agent_id(&cert.der).expect("parses")
    }

    /// A configuration that trusts `agent`, and shows `cert` or nothing.
    fn dialing(ca: &TestCa, cert: Option<&TestCert>, agent: &TestCert) -> ClientConfig {
        if let Some(cert) = cert {
            return member_client(&ca.der, &cert.der, &cert.key_der, id(agent)).expect("configures");
        }
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Agents::new(&Authorities::from(&ca.der), Some(id(agent))).expect("a CA"))
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a suite")))
    }

    #[tokio::test]
    async fn two_agents_know_each_other_by_their_keys() {
        let ca = TestCa::new();
        let (anna, bela) = (ca.agent("anna"), ca.agent("bela"));
        let (endpoint, address) = serve(&ca, &anna);
        let dialer = client_endpoint().expect("binds");
        let connecting = connect(&dialer, &address, dialing(&ca, Some(&bela), &anna));
        let (client, server) = tokio::join!(connecting, accept_one(&endpoint));
        let (client, server) = (client.expect("connects"), server.expect("accepts"));
        let seen = |connection: &Connection| peer(connection).map(|peer| (peer.role, peer.agent));
        assert_eq!(seen(&server), Some((Role::Agent, id(&bela))));
        assert_eq!(seen(&client), Some((Role::Agent, id(&anna))));
    }

    /// Nothing else gets as far as a stream: its certificate is refused.
    #[tokio::test]
    async fn only_agents_of_the_run_are_let_in() {
        let (ca, other) = (TestCa::new(), TestCa::new());
        let anna = ca.agent("anna");
        let (endpoint, address) = serve(&ca, &anna);
        let past = (datetime!(2020-01-01 0:00 UTC), datetime!(2020-01-02 0:00 UTC));
        let strangers = [
            ("no certificate", None),
            ("an operator", Some(ca.issue(Role::Operator, "operator", &[], FOREVER))),
            ("the coordinator", Some(ca.issue(Role::Server, "coordinator", &["127.0.0.1"], FOREVER))),
            ("another run's agent", Some(other.agent("bela"))),
            ("an agent of the past", Some(ca.issue(Role::Agent, "bela", &[], past))),
        ];
        for (who, cert) in strangers {
            let (client, server) = refused(&endpoint, &address, dialing(&ca, cert.as_ref(), &anna)).await;
            let code = if who.ends_with("past") { ExitCode::Clock } else { ExitCode::Identity };
            assert_eq!(client.exit_code(), code, "{who}: {client}, {server}");
        }
    }

    /// An address that somebody else has taken over does not get a greeting.
    #[tokio::test]
    async fn only_the_agent_that_is_dialed_is_trusted() {
        let (ca, other) = (TestCa::new(), TestCa::new());
        let (anna, bela) = (ca.agent("anna"), ca.agent("bela"));
        let at_the_address = [
            ("another agent", ca.agent("carl")),
            ("another run's agent", other.agent("anna")),
            ("the coordinator", ca.issue(Role::Server, "coordinator", &["127.0.0.1"], FOREVER)),
        ];
        for (who, cert) in at_the_address {
            let (endpoint, address) = serve(&ca, &cert);
            let (client, _) = refused(&endpoint, &address, dialing(&ca, Some(&bela), &anna)).await;
            assert_eq!(client.exit_code(), ExitCode::Identity, "{who}: {client}");
        }
        // The coordinator's own port has another name.
        let (endpoint, address) = ca.serve(&["127.0.0.1"]);
        let (client, _) = refused(&endpoint, &address, dialing(&ca, Some(&bela), &anna)).await;
        assert_eq!(client, ConnectProblem::OtherProtocol);
    }
}
