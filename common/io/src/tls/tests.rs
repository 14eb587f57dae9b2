//! Real endpoints on the loopback address, with certificates made for the occasion.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use quinn::{Connection, Endpoint};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Purpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::OffsetDateTime;
use time::macros::datetime;

use super::*;
use crate::exit::ExitCode;

/// A CA made for a test.
pub(crate) struct TestCa {
    pub(crate) der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

pub(crate) struct TestCert {
    pub(crate) der: Vec<u8>,
    pub(crate) key_der: Vec<u8>,
}

pub(crate) const FOREVER: (OffsetDateTime, OffsetDateTime) =
    (datetime!(2020-01-01 0:00 UTC), datetime!(2120-01-01 0:00 UTC));

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let der = params.self_signed(&key).expect("signs").der().to_vec();
        Self { der, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn issue(
        &self,
        role: Role,
        name: &str,
        hosts: &[&str],
        valid: (OffsetDateTime, OffsetDateTime),
    ) -> TestCert {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        (params.not_before, params.not_after) = valid;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.as_str());
        params.distinguished_name.push(DnType::CommonName, name);
        // As the coordinator issues them.
        let purpose = if role == Role::Server { Purpose::ServerAuth } else { Purpose::ClientAuth };
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("a key");
        let der = params.signed_by(&key, &self.issuer).expect("signs").der().to_vec();
        TestCert { der, key_der: key.serialize_der() }
    }

    pub(crate) fn agent(&self, name: &str) -> TestCert {
        self.issue(Role::Agent, name, &[], FOREVER)
    }

    /// A server of this CA on a free port of the loopback address, valid for `hosts`.
    pub(crate) fn serve(&self, hosts: &[&str]) -> (Endpoint, String) {
        self.serve_with(self.issue(Role::Server, "coordinator", hosts, FOREVER))
    }

    fn serve_with(&self, cert: TestCert) -> (Endpoint, String) {
        let config = server(&self.der, &cert.der, &cert.key_der).expect("configures");
        let endpoint = server_endpoint(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), config).expect("binds");
        let address = endpoint.local_addr().expect("bound").to_string();
        (endpoint, address)
    }
}

/// Both ends of a connection of an agent; keep the endpoints alive.
pub(crate) struct Pair {
    pub(crate) client: Connection,
    pub(crate) server: Connection,
    pub(crate) cert: TestCert,
    _endpoints: [Endpoint; 2],
}

pub(super) async fn accept_one(endpoint: &Endpoint) -> Result<Connection, ConnectProblem> {
    let incoming = endpoint.accept().await.expect("the endpoint is open");
    incoming.await.map_err(|error| explain(&error))
}

pub(crate) async fn connected_pair() -> Pair {
    let ca = TestCa::new();
    let (endpoint, address) = ca.serve(&["127.0.0.1"]);
    let cert = ca.agent("anna");
    let config = client(&ca.der, &cert.der, &cert.key_der).expect("configures");
    let dialer = client_endpoint().expect("binds");
    let (client, server) = tokio::join!(connect(&dialer, &address, config), accept_one(&endpoint));
    let (client, server) = (client.expect("connects"), server.expect("accepts"));
    trust(&server, limits::REQUEST_STREAMS);
    Pair { client, server, cert, _endpoints: [endpoint, dialer] }
}

/// Connects with `config` and returns what each side says; a refusal of the client's certificate reaches the client
/// only after its own handshake is done, so its connection is watched until it closes.
pub(super) async fn refused(
    endpoint: &Endpoint,
    address: &str,
    config: ClientConfig,
) -> (ConnectProblem, ConnectProblem) {
    let dialer = client_endpoint().expect("binds");
    let client = async {
        match connect(&dialer, address, config).await {
            Ok(connection) => explain(&connection.closed().await),
            Err(problem) => problem,
        }
    };
    let (client, server) = tokio::join!(client, accept_one(endpoint));
    (client, server.expect_err("refused"))
}

#[tokio::test]
async fn an_agent_is_known_by_its_certificate() {
    let pair = connected_pair().await;
    let agent = agent_id(&pair.cert.der).expect("parses");
    let expires_at_s = FOREVER.1.unix_timestamp();
    let expected =
        Peer { role: Role::Agent, agent, name: "anna".to_owned(), key: agent, authority: None, expires_at_s };
    assert_eq!(peer(&pair.server), Some(expected));
    assert_eq!(peer(&pair.client).map(|peer| peer.role), Some(Role::Server));
    let (from, to) = validity(&pair.cert.der).expect("parses");
    assert_eq!((from, to), (FOREVER.0.unix_timestamp(), FOREVER.1.unix_timestamp()));
}

#[tokio::test]
async fn a_name_is_resolved_and_checked() {
    let ca = TestCa::new();
    let (endpoint, address) = ca.serve(&["localhost"]);
    let port = endpoint.local_addr().expect("bound").port();
    let cert = ca.agent("anna");
    let config = client(&ca.der, &cert.der, &cert.key_der).expect("configures");
    let dialer = client_endpoint().expect("binds");
    let by_name = format!("localhost:{port}");
    let (client, server) = tokio::join!(connect(&dialer, &by_name, config.clone()), accept_one(&endpoint));
    assert!(client.is_ok() && server.is_ok(), "the name in the certificate is accepted");
    let (client, _) = refused(&endpoint, &address, config).await;
    assert_eq!(client, ConnectProblem::WrongName, "the address is not in the certificate");
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_by_either_side() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let (endpoint, address) = ours.serve(&["127.0.0.1"]);
    let stranger = theirs.agent("mallory");
    let distrusting = client(&theirs.der, &stranger.der, &stranger.key_der).expect("configures");
    let (client_says, server_says) = refused(&endpoint, &address, distrusting).await;
    assert_eq!((client_says, server_says), (ConnectProblem::UnknownCa, ConnectProblem::OurCaUnknown));
    let trusting = client(&ours.der, &stranger.der, &stranger.key_der).expect("configures");
    let (client_says, server_says) = refused(&endpoint, &address, trusting).await;
    assert_eq!(server_says.exit_code(), ExitCode::Identity, "{server_says}");
    assert_eq!(client_says.exit_code(), ExitCode::Identity, "{client_says}");
}

/// Fault 33: whoever has to set a clock must be told so.
#[tokio::test]
async fn certificates_outside_their_time_name_the_clock() {
    let ca = TestCa::new();
    let past = (datetime!(2020-01-01 0:00 UTC), datetime!(2020-01-02 0:00 UTC));
    let future = (datetime!(2110-01-01 0:00 UTC), datetime!(2120-01-01 0:00 UTC));
    let agent = ca.agent("anna");
    let config = client(&ca.der, &agent.der, &agent.key_der).expect("configures");

    let (endpoint, address) = ca.serve_with(ca.issue(Role::Server, "c", &["127.0.0.1"], future));
    let (client_says, _) = refused(&endpoint, &address, config.clone()).await;
    let text = client_says.to_string();
    assert!(text.starts_with("certificate is not valid yet at this machine's clock ("), "{text}");
    assert!(text.contains("valid from 2110-01-01 00:00 UTC"), "{text}");
    assert_eq!(client_says.exit_code(), ExitCode::Clock);

    let (endpoint, address) = ca.serve(&["127.0.0.1"]);
    let old = ca.issue(Role::Agent, "anna", &[], past);
    let (client_says, server_says) =
        refused(&endpoint, &address, client(&ca.der, &old.der, &old.key_der).expect("configures")).await;
    let text = client_says.to_string();
    assert!(text.starts_with("certificate has expired at the other side's clock"), "{text}");
    assert!(server_says.to_string().contains("valid until 2020-01-02 00:00 UTC"), "{server_says}");
}

/// P9: joining works without a certificate, and gives no identity.
#[tokio::test]
async fn a_pinned_client_joins_without_identity_and_checks_the_fingerprint() {
    let ca = TestCa::new();
    let (endpoint, address) = ca.serve(&["127.0.0.1"]);
    let dialer = client_endpoint().expect("binds");
    let right = client_pinned(&[Digest::of(&ca.der)]).expect("configures");
    let (client, server) = tokio::join!(connect(&dialer, &address, right.clone()), accept_one(&endpoint));
    let (client, server) = (client.expect("connects"), server.expect("accepts"));
    assert_eq!(peer(&server), None);
    drop((client, server));

    let wrong = client_pinned(&[Digest::of(b"another CA")]).expect("configures");
    let (client_says, _) = refused(&endpoint, &address, wrong).await;
    assert_eq!(client_says, ConnectProblem::UnknownCa);

    let elsewhere = ca.serve(&["trainer.example"]);
    let (client_says, _) = refused(&elsewhere.0, &elsewhere.1, right).await;
    assert_eq!(client_says, ConnectProblem::WrongName, "the pin does not replace the check of the name");
}

/// A server that shows our CA's (public) certificate but was not issued by it must not pass.
#[tokio::test]
async fn a_pinned_client_refuses_a_server_that_only_shows_the_ca() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let forged = theirs.issue(Role::Server, "c", &["127.0.0.1"], FOREVER);
    let config = server(&ours.der, &forged.der, &forged.key_der).expect("configures");
    let endpoint = server_endpoint(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), config).expect("binds");
    let address = endpoint.local_addr().expect("bound").to_string();
    let pinned = client_pinned(&[Digest::of(&ours.der)]).expect("configures");
    let probing = client_probe(&[Digest::of(&ours.der)], None).expect("configures");
    for config in [pinned, probing] {
        let (client_says, _) = refused(&endpoint, &address, config).await;
        assert_eq!(client_says.exit_code(), ExitCode::Identity, "{client_says}");
    }
}

/// Otherwise `doctor` could not find out whose clock is wrong.
#[tokio::test]
async fn a_probing_client_takes_certificates_of_any_time_and_nothing_else() {
    let ca = TestCa::new();
    let past = (datetime!(2020-01-01 0:00 UTC), datetime!(2020-01-02 0:00 UTC));
    let future = (datetime!(2110-01-01 0:00 UTC), datetime!(2120-01-01 0:00 UTC));
    let probing = || client_probe(&[Digest::of(&ca.der)], None).expect("configures");
    let dialer = client_endpoint().expect("binds");
    for life in [past, future, FOREVER] {
        let certificate = ca.issue(Role::Server, "c", &["127.0.0.1"], life);
        let shown = certificate.der.clone();
        let (endpoint, address) = ca.serve_with(certificate);
        let (client, server) = tokio::join!(connect(&dialer, &address, probing()), accept_one(&endpoint));
        let (client, _server) = (client.expect("connects"), server.expect("accepts"));
        assert_eq!(peer_certificates(&client), [shown, ca.der.clone()]);
    }
    let (elsewhere, address) = ca.serve(&["trainer.example"]);
    assert_eq!(refused(&elsewhere, &address, probing()).await.0, ConnectProblem::WrongName);
}

#[tokio::test]
async fn the_reason_of_a_close_reaches_the_other_side() {
    let pair = connected_pair().await;
    pair.server.close(VarInt::from_u32(7), b"revoked");
    let problem = explain(&pair.client.closed().await);
    assert_eq!(problem, ConnectProblem::Closed { code: 7, reason: "revoked".to_owned() });
    assert!(problem.is_transient());
}

#[tokio::test]
async fn addresses_that_are_none_are_told() {
    let ca = TestCa::new();
    let dialer = client_endpoint().expect("binds");
    let config = client_pinned(&[Digest::of(&ca.der)]).expect("configures");
    let problem = connect(&dialer, "nowhere", config.clone()).await.expect_err("no port");
    assert_eq!(problem, ConnectProblem::BadAddress("nowhere".to_owned()));
}

/// Issue of every name with two families: a coordinator on one of them is found, whichever the resolver names first.
#[tokio::test]
async fn a_silent_address_does_not_keep_the_next_one_waiting() {
    let ca = TestCa::new();
    let (endpoint, _) = ca.serve(&["localhost"]);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let found = [silent.local_addr().expect("bound"), endpoint.local_addr().expect("bound")];
    let dialer = client_endpoint().expect("binds");
    let config = client_pinned(&[Digest::of(&ca.der)]).expect("configures");
    let connecting = endpoint::connect_any(&dialer, "localhost:1", "localhost", &found, config);
    // One after the other, the silent address alone takes the whole of this.
    let deadline = Duration::from_millis(limits::HANDSHAKE_TIMEOUT_MS);
    let both = async { tokio::join!(connecting, accept_one(&endpoint)) };
    let (client, server) = tokio::time::timeout(deadline, both).await.expect("in time");
    let client = client.expect("connects");
    assert_eq!(client.remote_address().port(), found[1].port());
    drop((client, server));
    // The attempt that lost is given up, and not left to its idle timeout.
    let idle = tokio::time::timeout(Duration::from_millis(limits::IDLE_TIMEOUT_MS / 2), dialer.wait_idle());
    idle.await.expect("no attempt is left");
}

/// Behind one of the addresses another coordinator answers; the right one is at the other.
#[tokio::test]
async fn an_address_that_refuses_is_not_the_last_word() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let ((right, _), (wrong, _)) = (ours.serve(&["localhost"]), theirs.serve(&["localhost"]));
    let found = [&wrong, &right].map(|endpoint| endpoint.local_addr().expect("bound"));
    let dialer = client_endpoint().expect("binds");
    let config = client_pinned(&[Digest::of(&ours.der)]).expect("configures");
    let connecting = endpoint::connect_any(&dialer, "localhost:1", "localhost", &found, config.clone());
    let (client, server, other) = tokio::join!(connecting, accept_one(&right), accept_one(&wrong));
    assert_eq!(client.expect("connects").remote_address().port(), found[1].port());
    assert!(server.is_ok() && other.is_err());
    let connecting = endpoint::connect_any(&dialer, "localhost:1", "localhost", &found[..1], config.clone());
    let (client, _) = tokio::join!(connecting, accept_one(&wrong));
    assert_eq!(client.expect_err("another CA"), ConnectProblem::UnknownCa, "what answered is told");
    let (third, _) = theirs.serve(&["localhost"]);
    let found = [&wrong, &third].map(|endpoint| endpoint.local_addr().expect("bound"));
    let connecting = endpoint::connect_any(&dialer, "localhost:1", "localhost", &found, config);
    let (client, ..) = tokio::join!(connecting, accept_one(&wrong), accept_one(&third));
    let problem = client.expect_err("another CA");
    assert_eq!(problem.of_one(), &ConnectProblem::UnknownCa);
    let told = problem.to_string();
    assert!(found.iter().all(|address| told.contains(&format!("{address}: the other side's certificate"))), "{told}");
}

#[test]
fn a_subject_must_say_everything_once() {
    let ca = TestCa::new();
    assert_eq!(parse_peer(&ca.der), Err(ParseCertificateError::Subject));
    assert!(matches!(parse_peer(b"no certificate"), Err(ParseCertificateError::Malformed(_))));
    let long = ca.agent(&"n".repeat(limits::NAME_BYTES + 1));
    assert_eq!(parse_peer(&long.der), Err(ParseCertificateError::Subject));
    let idle = Duration::from_millis(limits::IDLE_TIMEOUT_MS);
    assert!(Duration::from_millis(limits::KEEP_ALIVE_MS) * 3 < idle, "two lost keep-alives do not end a connection");
}
