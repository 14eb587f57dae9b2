//! Agents' connections over real QUIC: the test takes the place of the loop.

use std::sync::Arc;

use anabranch_common::downlink::ModelForm;
use anabranch_common::ids::{Digest, Epoch, Incarnation, ModelVersion, UpdateSeq};
use anabranch_common::limits::{CHUNK_HEADER_BYTES, CONTROL_MESSAGE_BYTES, CONTROL_STREAMS};
use anabranch_common::transfer::{Sink, UploadId, UploadName};
use anabranch_common::update::UpdateKey;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::message::{CoordinatorMessage, RunPhase};
use anabranch_common::wire::runs::{RunInfo, RunsListed};
use anabranch_common::wire::transfer::{Assembly, ChunkHeader, Missing, TransferManifest};
use anabranch_io::chunks::{self, Route};
use anabranch_io::frames::FrameIoError;
use anabranch_testkit::transfer::of_three_chunks;
use quinn::VarInt;

use super::*;
use crate::clock;
use crate::identity::{Credential, Identity};
use crate::node::{DownloadId, PackedModel};

const A: RunId = RunId([1; 16]);
const B: RunId = RunId([2; 16]);
const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator's transport, and what it tells.
struct World {
    _dir: tempfile::TempDir,
    identity: Identity,
    address: String,
    inputs: mpsc::Receiver<Input>,
}

/// One control stream, as an agent sees it.
struct Stream {
    send: SendStream,
    recv: RecvStream,
    route: Route,
}

/// The loop's side of one.
struct Heard {
    peer: PeerId,
    agent: AgentId,
    run: RunId,
    ops: mpsc::Sender<PeerOp>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let identity = Identity::create(dir.path(), &[], clock::unix_ms()).expect("certificates");
        let server = identity.server();
        let config = tls::server(identity.ca_der(), &server.certificate_der, &server.key_der).expect("they fit");
        let endpoint = tls::server_endpoint(([127, 0, 0, 1], 0).into(), config).expect("a free port");
        let address = endpoint.local_addr().expect("bound").to_string();
        let (inputs_in, inputs) = mpsc::channel(limits::PEER_QUEUE_MESSAGES);
        tokio::spawn(accept(endpoint, Shared::new(inputs_in, BTreeMap::new())));
        Self { _dir: dir, identity, address, inputs }
    }

    async fn connect(&self, config: quinn::ClientConfig) -> Connection {
        let endpoint = tls::client_endpoint().expect("binds");
        tls::connect(&endpoint, &self.address, config).await.expect("it listens")
    }

    async fn connect_agent(&self) -> Connection {
        let key = rcgen::KeyPair::generate().expect("a key");
        let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("signed");
        let issued = self.identity.issue_agent(csr.der(), "ward", 30, clock::unix_ms()).expect("a sound request");
        let key_der = key.serialize_der();
        self.connect(tls::client(self.identity.ca_der(), &issued.certificate_der, &key_der).expect("they fit")).await
    }

    async fn input(&mut self) -> Input {
        tokio::time::timeout(PATIENCE, self.inputs.recv()).await.expect("in time").expect("the transport lives")
    }

    /// Says hello for a run on a stream of its own.
    async fn hello(&mut self, connection: &Connection, run: RunId) -> (Stream, Heard) {
        let mut stream = open(connection, Purpose::Agent).await;
        stream.say(&AgentMessage::Hello(hello(run))).await;
        let Input::Connected { peer, shown: Shown { agent, .. }, hello, ops, .. } = self.input().await else {
            panic!("expected a hello")
        };
        (stream, Heard { peer, agent, run: hello.run, ops })
    }

    async fn disconnected(&mut self) -> PeerId {
        match self.input().await {
            Input::Host(host::Input::Disconnected { peer }) => peer,
            other => panic!("{other:?}"),
        }
    }
}

impl Stream {
    async fn say(&mut self, message: &AgentMessage) {
        frames::send(&mut self.send, FrameKind::Agent, message, CONTROL_MESSAGE_BYTES, PATIENCE).await.expect("sent");
    }

    /// What the coordinator says next; nothing at the end of the stream.
    async fn hear(&mut self) -> Option<CoordinatorMessage> {
        let kind = FrameKind::Coordinator;
        frames::recv(&mut self.recv, kind, CONTROL_MESSAGE_BYTES, PATIENCE).await.expect("a message")
    }
}

impl Heard {
    async fn tell(&self, op: PeerOp) {
        self.ops.send(op).await.expect("the stream is open");
    }

    async fn expect(&self, manifest: &TransferManifest) -> Arc<Sink> {
        let key = UpdateKey { run: self.run, agent: self.agent, epoch: Epoch(1), seq: UpdateSeq(1) };
        let name = UploadName::of_update(&key);
        let sink = Arc::new(Sink::new(UploadId(self.peer.0), name, manifest.clone()).expect("sound"));
        self.tell(PeerOp::Receive { sink: Arc::clone(&sink), on_disk: false }).await;
        // Everything before this is done once its answer is here.
        self.tell(PeerOp::Send(Box::new(CoordinatorMessage::NoLease { state: RunPhase::Running }))).await;
        sink
    }
}

async fn open(connection: &Connection, purpose: Purpose) -> Stream {
    propose(connection, purpose).await.expect("this version")
}

/// A control stream of an agent, if there is room for it.
async fn try_open(connection: &Connection) -> Result<Stream, HandshakeError> {
    propose(connection, Purpose::Agent).await
}

async fn propose(connection: &Connection, purpose: Purpose) -> Result<Stream, HandshakeError> {
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    frames::propose(&mut send, &mut recv, purpose, PATIENCE).await?;
    let route = Route { connection: connection.clone(), session: send.id().into() };
    Ok(Stream { send, recv, route })
}

fn hello(run: RunId) -> AgentHello {
    AgentHello {
        run,
        branch: None,
        incarnation: Incarnation([3; 16]),
        software: "test".to_owned(),
        train_examples: 1,
        eval_examples: 0,
        device: "none".to_owned(),
        pod: None,
    }
}

#[tokio::test]
async fn two_runs_on_one_connection_receive_the_same_transfer_each_for_itself() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let (mut a, heard_a) = world.hello(&connection, A).await;
    let (mut b, heard_b) = world.hello(&connection, B).await;
    assert_eq!((heard_a.run, heard_b.run), (A, B));
    assert!(heard_a.agent == heard_b.agent && heard_a.peer != heard_b.peer);

    let (content, manifest) = of_three_chunks();
    let (sink_a, sink_b) = (heard_a.expect(&manifest).await, heard_b.expect(&manifest).await);
    for stream in [&mut a, &mut b] {
        assert!(matches!(stream.hear().await, Some(CoordinatorMessage::NoLease { .. })));
    }
    for (stream, heard, other) in [(&b, &heard_b, &sink_a), (&a, &heard_a, &sink_b)] {
        let before = other.missing();
        let sent =
            chunks::send_chunks(&stream.route, &manifest, Arc::clone(&content), &Missing::all(3), PATIENCE).await;
        assert_eq!(sent, Ok(3));
        let mut whole = 0;
        for _ in 0..3 {
            let Input::Host(host::Input::Received { peer, chunk }) = world.input().await else { panic!("no chunk") };
            assert_eq!((peer, chunk.upload), (heard.peer, UploadId(heard.peer.0)));
            whole += u32::from(chunk.is_whole);
        }
        assert_eq!(whole, 1);
        assert_eq!(other.missing(), before, "the other run's upload is as it was");
    }
}

#[tokio::test]
async fn the_same_model_is_sent_to_both_runs_of_a_connection_each_under_its_stream() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let (a, heard_a) = world.hello(&connection, A).await;
    let (b, heard_b) = world.hello(&connection, B).await;
    let (content, transfer) = of_three_chunks();
    let (version, digest, form) = (ModelVersion(1), Digest::of(b"model"), ModelForm::Snapshot);
    let model = Arc::new(PackedModel { version, digest, form, content: Arc::clone(&content), transfer });
    for heard in [&heard_a, &heard_b] {
        let (download, missing) = (DownloadId(heard.peer.0), Missing::all(3));
        heard.tell(PeerOp::SendChunks { download, model: Arc::clone(&model), missing }).await;
    }
    let mut arriving = BTreeMap::new();
    for stream in [&a, &b] {
        arriving.insert(stream.route.session, Assembly::new(model.transfer.clone(), u64::MAX).expect("sound"));
    }
    for _ in 0..6 {
        let stream = connection.accept_uni().await.expect("a chunk");
        let (header, chunk) = chunks::recv_chunk(stream, PATIENCE).await.expect("a chunk");
        arriving.get_mut(&header.session).expect("one of both").put(header.index, &chunk).expect("as announced");
    }
    for assembly in arriving.into_values() {
        assert_eq!(assembly.finish().as_deref(), Some(&content[..]));
    }
}

#[tokio::test]
async fn a_stream_that_ends_leaves_the_others_and_the_last_one_ends_the_connection() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let (mut a, heard_a) = world.hello(&connection, A).await;
    let (mut b, heard_b) = world.hello(&connection, B).await;
    heard_a.tell(PeerOp::Close).await;
    assert_eq!(a.hear().await, None);
    a.send.finish().expect("open");
    assert_eq!(world.disconnected().await, heard_a.peer);

    heard_b.tell(PeerOp::Send(Box::new(CoordinatorMessage::LeaseDeferred))).await;
    assert_eq!(b.hear().await, Some(CoordinatorMessage::LeaseDeferred));
    b.say(&AgentMessage::RequestLease).await;
    let Input::Message { peer, message: AgentMessage::RequestLease, .. } = world.input().await else { panic!() };
    assert_eq!(peer, heard_b.peer);
    b.send.finish().expect("open");
    assert_eq!(world.disconnected().await, heard_b.peer);
    let ended = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("in time");
    assert!(ended.to_string().contains("done"), "{ended}");
}

#[tokio::test]
async fn a_connection_that_is_lost_ends_each_of_its_streams() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let (mut a, heard_a) = world.hello(&connection, A).await;
    let (_b, heard_b) = world.hello(&connection, B).await;
    // What was said before counts.
    a.say(&AgentMessage::Goodbye { reason: "test".to_owned() }).await;
    a.send.finish().expect("open");
    a.send.stopped().await.expect("it arrived");
    connection.close(VarInt::from_u32(0), b"gone");
    let (mut goodbyes, mut ended) = (Vec::new(), Vec::new());
    while ended.len() < 2 {
        match world.input().await {
            Input::Message { peer, message: AgentMessage::Goodbye { .. }, .. } => goodbyes.push(peer),
            Input::Host(host::Input::Disconnected { peer }) => ended.push(peer),
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!((goodbyes, ended), (vec![heard_a.peer], vec![heard_a.peer, heard_b.peer]));
}

#[tokio::test]
async fn chunks_of_an_unknown_stream_are_not_taken_and_harm_nobody() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let (mut a, heard_a) = world.hello(&connection, A).await;
    let (content, manifest) = of_three_chunks();
    let sink = heard_a.expect(&manifest).await;
    assert!(a.hear().await.is_some());
    for session in [a.route.session + 4, a.route.session + 1, u64::MAX] {
        let mut stream = connection.open_uni().await.expect("a stream");
        let header = ChunkHeader { transfer: manifest.id(), index: 0, session };
        frames::send(&mut stream, FrameKind::Chunk, &header, CHUNK_HEADER_BYTES, PATIENCE).await.expect("sent");
        assert_eq!(stream.stopped().await.expect("the connection lives"), Some(VarInt::from_u32(0)), "{session}");
    }
    assert_eq!(sink.missing(), Missing::all(3));
    let sent = chunks::send_chunks(&a.route, &manifest, content, &Missing::all(3), PATIENCE).await;
    assert_eq!(sent, Ok(3));
    assert!(matches!(world.input().await, Input::Host(host::Input::Received { .. })));
}

#[tokio::test]
async fn a_chunk_that_is_not_what_was_offered_ends_its_run_alone() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let (mut a, heard_a) = world.hello(&connection, A).await;
    let (mut b, heard_b) = world.hello(&connection, B).await;
    let (content, manifest) = of_three_chunks();
    heard_a.expect(&manifest).await;
    assert!(a.hear().await.is_some());
    let mut stream = connection.open_uni().await.expect("a stream");
    let header = ChunkHeader { transfer: manifest.id(), index: 1, session: a.route.session };
    frames::send(&mut stream, FrameKind::Chunk, &header, CHUNK_HEADER_BYTES, PATIENCE).await.expect("sent");
    // It is chunk 2 in the place of chunk 1.
    stream.write_all(&content[2 * limits::CHUNK_BYTES..]).await.expect("taken");
    stream.finish().expect("open");
    assert_eq!(world.disconnected().await, heard_a.peer);
    heard_b.tell(PeerOp::Send(Box::new(CoordinatorMessage::LeaseDeferred))).await;
    assert_eq!(b.hear().await, Some(CoordinatorMessage::LeaseDeferred));
}

#[tokio::test]
async fn a_chunk_that_is_too_long_ends_its_run_alone() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let (mut a, heard_a) = world.hello(&connection, A).await;
    let (mut b, heard_b) = world.hello(&connection, B).await;
    let (_, manifest) = of_three_chunks();
    heard_a.expect(&manifest).await;
    assert!(a.hear().await.is_some());
    let mut stream = connection.open_uni().await.expect("a stream");
    let header = ChunkHeader { transfer: manifest.id(), index: 0, session: a.route.session };
    frames::send(&mut stream, FrameKind::Chunk, &header, CHUNK_HEADER_BYTES, PATIENCE).await.expect("sent");
    stream.write_all(&vec![0; limits::CHUNK_BYTES + 1]).await.expect("the window has room");
    stream.finish().expect("open");
    assert_eq!(world.disconnected().await, heard_a.peer);
    heard_b.tell(PeerOp::Send(Box::new(CoordinatorMessage::LeaseDeferred))).await;
    assert_eq!(b.hear().await, Some(CoordinatorMessage::LeaseDeferred));
}

#[tokio::test]
async fn a_hello_that_is_too_long_is_not_read() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let (_a, heard_a) = world.hello(&connection, A).await;
    let mut stream = open(&connection, Purpose::Agent).await;
    let software = "x".repeat(limits::HELLO_BYTES + 1);
    stream.say(&AgentMessage::Hello(AgentHello { software, ..hello(B) })).await;
    let ended = stream.send.stopped().await.expect("the connection lives");
    assert!(ended.is_some(), "the coordinator takes no more of it");
    // The run that goes on is heard, and nothing before it.
    assert_eq!((heard_a.run, world.hello(&connection, B).await.1.run), (A, B));
}

/// Guards `limits::AGENT_MESSAGES_PER_S`: hellos on streams of their own used to pass by it.
#[tokio::test]
async fn hellos_and_wishes_for_lists_are_read_at_the_pace_of_messages() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let start = clock::monotonic();
    let (mut a, _heard_a) = world.hello(&connection, A).await;
    let burst = 1_024;
    let talk = async {
        for _ in 0..burst {
            a.say(&AgentMessage::RequestLease).await;
        }
    };
    let heard = async {
        for _ in 0..burst {
            assert!(matches!(world.input().await, Input::Message { .. }));
        }
    };
    tokio::join!(talk, heard);
    let further = 120_u8;
    let mut streams = Vec::new();
    for number in 0..further {
        let purpose = if number % 2 == 0 { Purpose::Agent } else { Purpose::Runs };
        let mut stream = open(&connection, purpose).await;
        match purpose {
            Purpose::Agent => stream.say(&AgentMessage::Hello(hello(RunId([number; 16])))).await,
            _ => {
                let kind = FrameKind::RunsWanted;
                let sent = frames::send(&mut stream.send, kind, &RunsWanted::All, CONTROL_MESSAGE_BYTES, PATIENCE);
                sent.await.expect("sent");
            }
        }
        streams.push(stream);
    }
    // A stream whose `ops` are dropped ends.
    let mut heard = Vec::new();
    for _ in 0..further {
        let input = world.input().await;
        assert!(matches!(input, Input::Connected { .. } | Input::Subscribed { .. }), "{input:?}");
        heard.push(input);
    }
    let said = f64::from(burst) + f64::from(further);
    let least_s = (said - limits::AGENT_MESSAGES_BURST) / limits::AGENT_MESSAGES_PER_S;
    assert!(start.elapsed().as_secs_f64() >= least_s, "{:?} for {said}", start.elapsed());
}

#[tokio::test]
async fn an_agent_has_so_many_streams_and_no_more() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let mut streams = Vec::new();
    for number in 0..CONTROL_STREAMS {
        let (stream, heard) = world.hello(&connection, RunId([u8::try_from(number).expect("few"); 16])).await;
        streams.push((stream, heard));
    }
    assert_eq!(try_open(&connection).await.err(), Some(HandshakeError::Frame(FrameIoError::Closed)));
    let (mut first, heard) = streams.swap_remove(0);
    first.send.finish().expect("open");
    assert_eq!(world.disconnected().await, heard.peer);
    // There is room as soon as the end of that stream is seen to.
    let again = async {
        loop {
            if let Ok(stream) = try_open(&connection).await {
                return stream;
            }
        }
    };
    let mut again = tokio::time::timeout(PATIENCE, again).await.expect("a stream that has ended makes room");
    again.say(&AgentMessage::Hello(hello(A))).await;
    assert!(matches!(world.input().await, Input::Connected { hello, .. } if hello.run == A));
}

#[tokio::test]
async fn lists_of_runs_are_sent_until_the_agent_has_enough() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let (_a, _heard) = world.hello(&connection, A).await;
    let Stream { mut send, mut recv, .. } = open(&connection, Purpose::Runs).await;
    let wanted = RunsWanted::Named(vec!["digits".to_owned()]);
    frames::send(&mut send, FrameKind::RunsWanted, &wanted, CONTROL_MESSAGE_BYTES, PATIENCE).await.expect("sent");
    let Input::Subscribed { peer, wanted: heard, ops, .. } = world.input().await else { panic!("expected a wish") };
    assert_eq!(heard, wanted);
    for runs in [vec![], vec![RunInfo { run: A, name: "digits".to_owned(), weight: 1 }]] {
        let list = RunsListed { runs };
        ops.send(PeerOp::List(list.clone())).await.expect("open");
        let kind = FrameKind::RunsListed;
        let told = frames::recv_one::<RunsListed>(&mut recv, kind, CONTROL_MESSAGE_BYTES, PATIENCE).await;
        assert_eq!(told.expect("a list"), list);
    }
    send.finish().expect("open");
    assert_eq!(world.disconnected().await, peer);
    assert!(connection.close_reason().is_none(), "a run goes on");
}

#[tokio::test]
async fn nobody_but_an_agent_hears_which_runs_there_are() {
    let world = World::new();
    let Credential { certificate_der, key_der } = world.identity.operator();
    let operator = tls::client(world.identity.ca_der(), certificate_der, key_der).expect("they fit");
    let stranger = tls::client_pinned(&[world.identity.ca_fingerprint()]).expect("configures");
    for config in [operator, stranger] {
        let connection = world.connect(config).await;
        let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
        let answer = frames::propose(&mut send, &mut recv, Purpose::Runs, PATIENCE).await;
        assert_eq!(answer, Err(HandshakeError::Forbidden(Purpose::Runs)));
    }
}

#[tokio::test]
async fn a_wish_for_too_many_runs_is_not_heard() {
    let mut world = World::new();
    let connection = world.connect_agent().await;
    let (_a, _heard) = world.hello(&connection, A).await;
    let Stream { mut send, mut recv, .. } = open(&connection, Purpose::Runs).await;
    let names = (0..=limits::RUNS_PER_CONNECTION).map(|number| number.to_string()).collect();
    let wanted = RunsWanted::Named(names);
    frames::send(&mut send, FrameKind::RunsWanted, &wanted, CONTROL_MESSAGE_BYTES, PATIENCE).await.expect("sent");
    let kind = FrameKind::RunsListed;
    let told = frames::recv::<RunsListed>(&mut recv, kind, CONTROL_MESSAGE_BYTES, PATIENCE).await;
    assert!(!matches!(told, Ok(Some(_))), "{told:?}");
    assert!(connection.close_reason().is_none(), "the run goes on");
}
