//! Members on the loopback address, with certificates as a coordinator issues them.

mod ends;
mod hostile;
mod marks;
mod parcels;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anabranch_common::ids::{AgentId, Digest, LeaseId, RunId};
use anabranch_common::limits;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::pod::{PodMark, PodPart, PodPeer, PodRound};
use anabranch_common::spec::{Activations, PodSpec, StagesSpec};
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::pod::{PodAnswer, PodGreeting};
use anabranch_io::frames::{self, FrameIoError};
use anabranch_io::tls;
use anabranch_testkit::lease::PLAN;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::runtime::Runtime;

use super::{Attempt, ContentSizes, LinkIdentity, LinkWire, Links, ParcelSizes, WireError};

const RUN: RunId = RunId([7; 16]);
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
/// Three layers of a tensor of 1,000 values.
static SIZES: LazyLock<ParcelSizes> = LazyLock::new(|| {
    let tensor = TensorSpec { name: "weights".to_owned(), shape: vec![1_000] };
    let layer = ModelManifest::new(vec![tensor]).expect("valid");
    ParcelSizes { params: 3_000, contents: ContentSizes::of([&layer; 3]), activations: 500, tied: 100 }
});
/// Parameters of each part.
const PARAMS: &[usize] = &[1_000, 1_000, 1_000];

/// The CA of a run.
struct TestCa {
    der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl TestCa {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let der = params.self_signed(&key).expect("signs").der().to_vec();
        Self { der, issuer: Issuer::new(params, key) }
    }

    /// An agent's certificate for a key.
    fn certify(&self, key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, tls::ORGANIZATION);
        params.distinguished_name.push(DnType::OrganizationalUnitName, "agent");
        params.distinguished_name.push(DnType::CommonName, "anna");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(key, &self.issuer).expect("signs").der().to_vec()
    }
}

/// An agent with its port for members.
struct Member {
    id: AgentId,
    key: KeyPair,
    certificate_der: Vec<u8>,
    links: Links,
}

impl Member {
    fn address(&self) -> String {
        self.links.local_address().expect("bound").to_string()
    }
}

/// Agents of a run. Fields are dropped in this order.
struct World {
    members: Vec<Member>,
    ca: TestCa,
    runtime: Runtime,
}

/// `[pod]` with so many seconds of patience.
fn spec(deadline_s: f64) -> PodSpec {
    toml::from_str(&format!("kind = \"stages\"\nstages = 2\ndeadline_s = {deadline_s}")).expect("complete")
}

impl World {
    fn new(members: usize) -> Self {
        let ca = TestCa::new();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let inside = runtime.enter();
        let member = |_| {
            let key = KeyPair::generate().expect("a key");
            let certificate_der = ca.certify(&key);
            let identity = LinkIdentity {
                run: RUN,
                authorities: (&ca.der).into(),
                certificate_der: certificate_der.clone(),
                key_der: key.serialize_der(),
            };
            let links = Links::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), identity).expect("binds");
            Member { id: tls::agent_id(&certificate_der).expect("a certificate"), key, certificate_der, links }
        };
        let members = (0..members).map(member).collect();
        drop(inside);
        Self { members, ca, runtime }
    }

    fn id(&self, member: usize) -> AgentId {
        self.members[member].id
    }

    /// An attempt at lease 7, whose parts are computed by these members.
    fn round(&self, attempt: u32, parts: &[usize]) -> PodRound {
        let part = |(end, member): (u32, &usize)| PodPart { end, agent: self.id(*member) };
        let peer = |member: &Member| PodPeer { agent: member.id, address: member.address() };
        PodRound {
            mark: PodMark { lease: LeaseId(7), attempt },
            owner: self.id(parts[0]),
            parts: (1..).zip(parts).map(part).collect(),
            peers: self.members.iter().map(peer).collect(),
            plan: PLAN,
            spec: Digest([0; 32]),
        }
    }

    fn open_with(&self, member: usize, round: &PodRound, spec: &PodSpec) -> Result<LinkWire, WireError> {
        let attempt = Attempt { round, spec, sizes: *SIZES, part_params: PARAMS };
        self.members[member].links.open(attempt, LONG, Arc::new(|| false))
    }

    fn open(&self, member: usize, round: &PodRound) -> LinkWire {
        self.open_with(member, round, &spec(LONG.as_secs_f64())).expect("all members are there")
    }

    /// Opens the links of all members that a round names.
    fn open_all(&self, round: &PodRound) -> Vec<LinkWire> {
        let places = round
            .members()
            .into_iter()
            .map(|agent| self.members.iter().position(|member| member.id == agent).expect("a member"));
        let places: Vec<usize> = places.collect();
        std::thread::scope(|scope| {
            let opening: Vec<_> = places.iter().map(|place| scope.spawn(|| self.open(*place, round))).collect();
            opening.into_iter().map(|wire| wire.join().expect("no panic")).collect()
        })
    }

    /// Connects to a member with the certificate of another one, and says nothing. Call inside a runtime.
    async fn connect(&self, from: usize, to: usize) -> (Endpoint, Connection) {
        let Member { key, certificate_der, .. } = &self.members[from];
        let config = tls::member_client(&self.ca.der, certificate_der, &key.serialize_der(), self.id(to));
        let endpoint = tls::client_endpoint().expect("binds");
        let address = self.members[to].address();
        let connecting = tls::connect(&endpoint, &address, config.expect("configures"));
        let connection = connecting.await.expect("connects");
        (endpoint, connection)
    }

    /// Connects to a member with the certificate of another one, and greets it.
    async fn greet(&self, from: usize, to: usize, greeting: PodGreeting) -> Result<(Raw, PodAnswer), FrameIoError> {
        let (endpoint, connection) = self.connect(from, to).await;
        let (mut send, mut recv) = connection.open_bi().await?;
        let most = limits::POD_GREETING_BYTES;
        frames::send(&mut send, FrameKind::PodGreeting, &greeting, most, LONG).await?;
        let answer = frames::recv_one(&mut recv, FrameKind::PodAnswer, most, LONG).await?;
        Ok((Raw { send, _recv: recv, _connection: connection, _endpoint: endpoint }, answer))
    }

    /// The same until it is answered: by a member that is about to open a round with the other one.
    async fn ask(&self, from: usize, to: usize, greeting: PodGreeting) -> (Raw, PodAnswer) {
        loop {
            if let Ok(answered) = self.greet(from, to, greeting).await {
                return answered;
            }
        }
    }
}

/// A link, one end of which a test writes byte by byte.
struct Raw {
    send: SendStream,
    _recv: RecvStream,
    _connection: Connection,
    _endpoint: Endpoint,
}

/// Who an error names.
fn named<T: std::fmt::Debug>(result: Result<T, WireError>) -> (AgentId, String) {
    match result {
        Err(WireError::Member { agent, reason }) => (agent, reason),
        other => panic!("expected an error that names a member, not {other:?}"),
    }
}

fn form(activations: Activations) -> PodSpec {
    match spec(LONG.as_secs_f64()) {
        PodSpec::Stages(spec) => PodSpec::Stages(StagesSpec { activations, ..spec }),
        PodSpec::Replicas(spec) => panic!("{spec:?}"),
    }
}
