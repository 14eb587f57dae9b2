//! Links over real QUIC, with a coordinator that does what the test says.

use std::collections::BTreeMap;

use anabranch_common::limits::{CHUNK_HEADER_BYTES, CONTROL_MESSAGE_BYTES, CONTROL_STREAMS};
use anabranch_common::wire::runs::{RunInfo, RunsListed, RunsWanted};
use anabranch_common::wire::transfer::{Assembly, ChunkHeader};
use anabranch_io::frames;
use anabranch_io::tls;
use anabranch_testkit::transfer::of_three_chunks;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::*;
use crate::session::command::Ending;

const A: RunId = RunId([1; 16]);
const B: RunId = RunId([2; 16]);
const PATIENCE: Duration = Duration::from_secs(30);
const AT_ONCE: Duration = Duration::ZERO;

/// A coordinator's port, and an agent's end of the network.
struct World {
    server: Endpoint,
    uplink: Arc<Uplink>,
    sender: NetSender,
    receiver: NetReceiver,
}

/// A control stream, as the coordinator sees it.
struct Stream {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

fn certify(issuer: &Issuer<'_, KeyPair>, unit: &str, usage: ExtendedKeyUsagePurpose) -> (Vec<u8>, Vec<u8>) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, tls::ORGANIZATION);
    params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
    params.distinguished_name.push(DnType::CommonName, "anna");
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().expect("a key");
    (params.signed_by(&key, issuer).expect("signs").der().to_vec(), key.serialize_der())
}

impl World {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = params.self_signed(&key).expect("signs").der().to_vec();
        let issuer = Issuer::new(params, key);
        let (certificate, key) = certify(&issuer, "server", ExtendedKeyUsagePurpose::ServerAuth);
        let config = tls::server(&ca, &certificate, &key).expect("they fit");
        let server = tls::server_endpoint(([127, 0, 0, 1], 0).into(), config).expect("a free port");
        let address = server.local_addr().expect("bound").to_string();
        let (certificate, key) = certify(&issuer, "agent", ExtendedKeyUsagePurpose::ClientAuth);
        let credentials = Credentials { authorities: (&ca).into(), certificate_der: certificate, key_der: key };
        let uplink = Uplink::new(Dialer::new(vec![address], &credentials).expect("they fit"));
        let (sender, receiver) = queue();
        Self { server, uplink, sender, receiver }
    }

    fn open(&self, run: RunId, number: u64) -> Link {
        open(Arc::clone(&self.uplink), LinkName { run, number }, AT_ONCE, self.sender.clone())
    }

    async fn accept(&self) -> Connection {
        let incoming = tokio::time::timeout(PATIENCE, self.server.accept()).await.expect("in time").expect("open");
        let connection = incoming.await.expect("shakes hands");
        tls::trust(&connection, CONTROL_STREAMS);
        connection
    }

    async fn told(&mut self) -> (RunId, NetEvent) {
        let told = tokio::time::timeout(PATIENCE, self.receiver.recv()).await.expect("in time");
        let (link, event) = told.expect("a sender is here");
        (link.run, event)
    }

    /// Two links on one connection.
    async fn connected(&mut self) -> (Link, Link, Connection, Stream, Stream) {
        let a = self.open(A, 1);
        let connection = self.accept().await;
        let stream_a = Stream::accept(&connection, Purpose::Agent).await;
        assert!(matches!(self.told().await, (A, NetEvent::Connected)));
        let b = self.open(B, 1);
        let stream_b = Stream::accept(&connection, Purpose::Agent).await;
        assert!(matches!(self.told().await, (B, NetEvent::Connected)));
        (a, b, connection, stream_a, stream_b)
    }
}

impl Stream {
    async fn accept(connection: &Connection, purpose: Purpose) -> Self {
        let (mut send, mut recv) = connection.accept_bi().await.expect("a stream");
        let agreed = frames::accept(&mut send, &mut recv, |found| found == purpose, PATIENCE).await;
        assert_eq!(agreed.expect("this version").0, purpose);
        Self { connection: connection.clone(), send, recv }
    }

    fn route(&self) -> Route {
        Route { connection: self.connection.clone(), session: self.send.id().into() }
    }

    async fn say(&mut self, message: &CoordinatorMessage) {
        let kind = FrameKind::Coordinator;
        frames::send(&mut self.send, kind, message, CONTROL_MESSAGE_BYTES, PATIENCE).await.expect("sent");
    }

    /// What the agent says next; nothing at the end of the stream.
    async fn hear(&mut self) -> Option<AgentMessage> {
        frames::recv(&mut self.recv, FrameKind::Agent, CONTROL_MESSAGE_BYTES, PATIENCE).await.expect("a message")
    }
}

#[tokio::test]
async fn two_runs_share_a_connection_and_the_last_one_to_go_closes_it() {
    let mut world = World::new();
    let (a, b, connection, mut stream_a, mut stream_b) = world.connected().await;
    a.ops.send(Op::Send(Box::new(AgentMessage::RequestLease))).await.expect("open");
    assert_eq!(stream_a.hear().await, Some(AgentMessage::RequestLease));
    stream_b.say(&CoordinatorMessage::LeaseDeferred).await;
    assert!(matches!(world.told().await, (B, NetEvent::Message(CoordinatorMessage::LeaseDeferred))));

    drop(a);
    assert_eq!(stream_a.hear().await, None);
    assert!(matches!(world.told().await, (A, NetEvent::Disconnected(Problem::Transient(_)))));
    stream_b.say(&CoordinatorMessage::LeaseDeferred).await;
    assert!(matches!(world.told().await, (B, NetEvent::Message(CoordinatorMessage::LeaseDeferred))));

    b.ops.send(Op::Send(Box::new(AgentMessage::Goodbye { reason: "over".to_owned() }))).await.expect("open");
    b.ops.send(Op::Close).await.expect("open");
    assert_eq!(stream_b.hear().await, Some(AgentMessage::Goodbye { reason: "over".to_owned() }));
    assert_eq!(stream_b.hear().await, None);
    connection.closed().await;
    assert!(matches!(world.told().await, (B, NetEvent::Disconnected(Problem::Transient(_)))));
}

#[tokio::test]
async fn the_same_transfer_in_both_runs_stays_apart() {
    let mut world = World::new();
    let (a, b, connection, stream_a, stream_b) = world.connected().await;
    let (content, transfer) = of_three_chunks();

    // Up, from both at once.
    for link in [&a, &b] {
        let (content, transfer, missing) = (Arc::clone(&content), transfer.clone(), Missing::all(3));
        link.ops.send(Op::SendChunks { content, transfer, missing }).await.expect("open");
    }
    let assembly = || Assembly::new(transfer.clone(), u64::MAX).expect("sound");
    let mut arriving: BTreeMap<u64, Assembly> =
        [&stream_a, &stream_b].map(|stream| (stream.route().session, assembly())).into();
    for _ in 0..6 {
        let stream = connection.accept_uni().await.expect("a chunk");
        let (header, chunk) = chunks::recv_chunk(stream, PATIENCE).await.expect("a chunk");
        arriving.get_mut(&header.session).expect("one of both").put(header.index, &chunk).expect("as announced");
    }
    assert!(arriving.into_values().all(|assembly| assembly.finish().as_deref() == Some(&content[..])));
    let mut sent = Vec::new();
    for _ in 0..2 {
        let (run, NetEvent::ChunksSent { transfer: of, .. }) = world.told().await else { panic!("not sent") };
        assert_eq!(of, transfer.id());
        sent.push(run);
    }
    sent.sort_unstable();
    assert_eq!(sent, [A, B]);

    // Down, to one of them.
    let route = stream_b.route();
    let sending = chunks::send_chunks(&route, &transfer, content, &Missing::all(3), PATIENCE).await;
    assert_eq!(sending, Ok(3));
    for _ in 0..3 {
        assert!(matches!(world.told().await, (B, NetEvent::Chunk { .. })));
    }
}

#[tokio::test]
async fn a_chunk_of_an_unknown_stream_is_not_taken_and_harms_nobody() {
    let mut world = World::new();
    let (_a, _b, connection, _stream_a, mut stream_b) = world.connected().await;
    let mut stream = connection.open_uni().await.expect("a stream");
    let header = ChunkHeader { transfer: Digest::default(), index: 0, session: 400 };
    frames::send(&mut stream, FrameKind::Chunk, &header, CHUNK_HEADER_BYTES, PATIENCE).await.expect("sent");
    assert_eq!(stream.stopped().await.expect("the connection lives"), Some(VarInt::from_u32(0)));
    stream_b.say(&CoordinatorMessage::LeaseDeferred).await;
    assert!(matches!(world.told().await, (B, NetEvent::Message(CoordinatorMessage::LeaseDeferred))));
}

#[tokio::test]
async fn a_chunk_that_is_too_long_ends_its_run_alone() {
    let mut world = World::new();
    let (_a, _b, connection, stream_a, mut stream_b) = world.connected().await;
    let mut stream = connection.open_uni().await.expect("a stream");
    let header = ChunkHeader { transfer: Digest::default(), index: 0, session: stream_a.route().session };
    frames::send(&mut stream, FrameKind::Chunk, &header, CHUNK_HEADER_BYTES, PATIENCE).await.expect("sent");
    stream.write_all(&vec![0; limits::CHUNK_BYTES + 1]).await.expect("the window has room");
    stream.finish().expect("open");
    let (A, NetEvent::Disconnected(Problem::Transient(why))) = world.told().await else { panic!("it ended") };
    assert!(why.contains("chunk of more than"), "{why}");
    stream_b.say(&CoordinatorMessage::LeaseDeferred).await;
    assert!(matches!(world.told().await, (B, NetEvent::Message(CoordinatorMessage::LeaseDeferred))));
    assert!(connection.close_reason().is_none(), "the other run goes on");
}

#[tokio::test]
async fn a_lost_connection_is_the_same_problem_for_both_and_the_next_one_is_dialled_once() {
    let mut world = World::new();
    let (_a, _b, connection, _stream_a, _stream_b) = world.connected().await;
    connection.close(VarInt::from_u32(0), b"going away");
    let mut problems = BTreeMap::new();
    for _ in 0..2 {
        let (run, NetEvent::Disconnected(problem)) = world.told().await else { panic!("it is lost") };
        problems.insert(run, problem);
    }
    assert_eq!(problems[&A], problems[&B]);
    let Problem::Transient(text) = &problems[&A] else { panic!("{problems:?}") };
    assert!(text.contains("going away"), "{text}");

    // Both ask at once: they wait for one attempt.
    let (_a, _b) = (world.open(A, 2), world.open(B, 2));
    let connection = world.accept().await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(Stream::accept(&connection, Purpose::Agent).await);
        assert!(matches!(world.told().await, (_, NetEvent::Connected)));
    }
}

#[tokio::test]
async fn a_stream_that_the_coordinator_ends_leaves_the_other_run_alone() {
    let mut world = World::new();
    let (_a, _b, _connection, mut stream_a, mut stream_b) = world.connected().await;
    stream_a.send.finish().expect("open");
    let (A, NetEvent::Disconnected(Problem::Transient(why))) = world.told().await else { panic!("it ended") };
    assert!(why.contains("closed the session"), "{why}");
    stream_b.say(&CoordinatorMessage::LeaseDeferred).await;
    assert!(matches!(world.told().await, (B, NetEvent::Message(CoordinatorMessage::LeaseDeferred))));

    let _again = world.open(A, 2);
    let _stream = Stream::accept(&stream_b.connection, Purpose::Agent).await;
    assert!(matches!(world.told().await, (A, NetEvent::Connected)));
}

#[tokio::test]
async fn a_link_that_is_dropped_while_it_connects_leaves_nothing_behind() {
    let mut world = World::new();
    let a = world.open(A, 1);
    let connection = world.accept().await;
    // It has opened its stream, and waits for an answer that never comes.
    let (_send, mut recv) = connection.accept_bi().await.expect("a stream");
    drop(a);
    assert!(matches!(world.told().await, (A, NetEvent::Disconnected(Problem::Transient(_)))));
    connection.closed().await;
    assert!(recv.read_to_end(limits::HANDSHAKE_MESSAGE_BYTES).await.is_err());
}

#[tokio::test]
async fn a_problem_with_the_certificate_is_final_for_every_run() {
    let mut world = World::new();
    let (_a, _b) = (world.open(A, 1), world.open(B, 1));
    let connection = world.accept().await;
    for _ in 0..2 {
        let (mut send, mut recv) = connection.accept_bi().await.expect("a stream");
        let refused = frames::accept(&mut send, &mut recv, |_| false, PATIENCE).await;
        assert!(refused.is_err());
        send.finish().expect("open");
        let (_, NetEvent::Disconnected(problem)) = world.told().await else { panic!("it is refused") };
        assert!(matches!(problem, Problem::Final(Ending::Identity(_))), "{problem:?}");
    }
}

#[tokio::test]
async fn lists_of_runs_come_beside_the_runs() {
    let mut world = World::new();
    let (_a, _b, connection, _stream_a, mut stream_b) = world.connected().await;
    let (events, mut told) = mpsc::channel(limits::PEER_QUEUE_MESSAGES);
    let wanted = RunsWanted::Named(vec!["digits".to_owned()]);
    let link = subscribe(Arc::clone(&world.uplink), wanted.clone(), AT_ONCE, (7, events.clone()));
    let Stream { mut send, mut recv, .. } = Stream::accept(&connection, Purpose::Runs).await;
    let heard: RunsWanted =
        frames::recv_one(&mut recv, FrameKind::RunsWanted, CONTROL_MESSAGE_BYTES, PATIENCE).await.expect("a wish");
    assert_eq!(heard, wanted);
    let list = RunsListed { runs: vec![RunInfo { run: A, name: "digits".to_owned(), weight: 3 }] };
    frames::send(&mut send, FrameKind::RunsListed, &list, CONTROL_MESSAGE_BYTES, PATIENCE).await.expect("sent");
    assert_eq!(told.recv().await, Some((7, RunsEvent::Listed(list))));

    drop(link);
    assert!(matches!(told.recv().await, Some((7, RunsEvent::Lost(Problem::Transient(_))))));
    stream_b.say(&CoordinatorMessage::LeaseDeferred).await;
    assert!(matches!(world.told().await, (B, NetEvent::Message(CoordinatorMessage::LeaseDeferred))));

    // A list that cannot be used ends the stream.
    let _link = subscribe(Arc::clone(&world.uplink), RunsWanted::All, AT_ONCE, (8, events));
    let Stream { mut send, recv: _recv, .. } = Stream::accept(&connection, Purpose::Runs).await;
    let list = RunsListed { runs: vec![RunInfo { run: A, name: "digits".to_owned(), weight: 0 }] };
    frames::send(&mut send, FrameKind::RunsListed, &list, CONTROL_MESSAGE_BYTES, PATIENCE).await.expect("sent");
    let Some((8, RunsEvent::Lost(Problem::Transient(why)))) = told.recv().await else { panic!("it is refused") };
    assert!(why.contains("weight 0"), "{why}");
}
