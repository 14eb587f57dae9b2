//! Whatever a peer says, in whatever state, the core goes on: every kind of message with extreme but well-formed content.
//!
//! A panic fails the test. So does a message or a record that does not fit where it has to go, a record that does not read
//! back, and a fold that differs from the replay of the records.

use std::sync::Arc;

use anabranch_common::codec::{CodecId, DecodeError, Delta};
use anabranch_common::downlink::FetchPurpose;
use anabranch_common::ids::{
    AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position, RunId, UpdateSeq,
};
use anabranch_common::journal::{Evaluation, LeaseEnd, Record};
use anabranch_common::limits;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::pod::{PodMark, PodOffer, PodProblem, PodSections};
use anabranch_common::schema;
use anabranch_common::spec::Labels;
use anabranch_common::update::{MemoryMark, UpdateKey, UpdateMeta};
use anabranch_common::wire::message::{AgentHello, AgentMessage};
use anabranch_common::wire::operator::RunRequest;
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_testkit::extreme::{Draw, Extremes};
use proptest::prelude::*;

use super::pods::pods;
use super::world::{World, agent, content, hello, manifest, spec};
use crate::core::command::Command;
use crate::core::content::Content;
use crate::core::event::{Event, PeerId, RequestId};
use crate::core::publication::ServedModel;
use crate::recovery::saved;
use crate::store::for_tests::MapStore;

/// Kinds of message that an agent has.
const KINDS: u8 = 13;

/// The kind of a message. A new kind does not compile until it has a number here, and then fails
/// [`every_kind_is_made`] until [`DrawMessages::message`] makes it.
fn kind(message: &AgentMessage) -> u8 {
    match message {
        AgentMessage::Hello(_) => 0,
        AgentMessage::OfferModel { .. } => 1,
        AgentMessage::RequestLease => 2,
        AgentMessage::FetchModel { .. } => 3,
        AgentMessage::OfferUpdate { .. } => 4,
        AgentMessage::ReturnLease { .. } => 5,
        AgentMessage::Evaluated { .. } => 6,
        AgentMessage::Progress { .. } => 7,
        AgentMessage::Renew { .. } => 8,
        AgentMessage::Goodbye { .. } => 9,
        AgentMessage::EvaluationFailed { .. } => 10,
        AgentMessage::PodEnded { .. } => 11,
        AgentMessage::PartNotHere { .. } => 12,
    }
}

/// Extreme parts of messages, and whole messages of them.
trait DrawMessages: Draw {
    fn digest(&mut self) -> Digest {
        self.of(&[Digest::default(), Digest::of(&[0; 16]), Digest([u8::MAX; 32])])
    }

    fn text(&mut self) -> String {
        self.text_of(&[0, 1, 64, 1 << 12, limits::CONTROL_MESSAGE_BYTES - 1024])
    }

    fn agent(&mut self) -> AgentId {
        self.of(&[agent(1), agent(2), agent(3), agent(0), agent(u8::MAX)])
    }

    fn run(&mut self) -> RunId {
        self.of(&[RunId([1; 16]), RunId([1; 16]), RunId([9; 16])])
    }

    fn transfer(&mut self) -> TransferManifest {
        let chunks = self.of(&[0, 1, 1, 2, 4096, 20_000]);
        let bytes = self.of(&[16, 16, 0, 1, 1 << 20, 2 << 20, limits::TRANSFER_BYTES, u64::MAX]);
        let sections = self.of(&[vec![], vec![], vec![0], vec![8], vec![9, 3], vec![u64::MAX; 70]]);
        TransferManifest { bytes, chunks: vec![self.digest(); chunks], sections }
    }

    fn missing(&mut self) -> Option<Missing> {
        let chunks = self.of(&[0, 1, 8, 9, 100_000]);
        (self.choice().is_multiple_of(2)).then(|| Missing::all(chunks))
    }

    fn manifest(&mut self) -> ModelManifest {
        self.of(&[manifest(), manifest(), longest(), largest()])
    }

    fn hello(&mut self) -> AgentHello {
        AgentHello {
            run: self.run(),
            branch: self.of(&[None, Some(BranchId([2; 16])), Some(BranchId([u8::MAX; 16]))]),
            incarnation: Incarnation([self.choice(); 16]),
            software: self.text(),
            train_examples: self.number(),
            eval_examples: self.number(),
            device: self.of(&["cpu".to_owned(), "\u{1b}[2J".repeat(100_000)]),
            pod: self.offer(),
        }
    }

    fn mark(&mut self) -> PodMark {
        PodMark { lease: LeaseId(self.of(&[1, 2, 3, 0, u64::MAX])), attempt: self.of(&[1, 1, 2, 0, u32::MAX]) }
    }

    fn offer(&mut self) -> Option<PodOffer> {
        let address = self.of(&["10.0.0.1:1".to_owned(), String::new(), "x".repeat(1 << 16)]);
        let site = self.of(&[String::new(), "east".to_owned(), "x".repeat(1 << 16)]);
        let (memory_bytes, flops_per_s) = (self.number(), self.number());
        let at_work = self.choice().is_multiple_of(2).then(|| self.mark());
        let offer = PodOffer { address, memory_bytes, flops_per_s, site, at_work };
        (!self.choice().is_multiple_of(3)).then_some(offer)
    }

    fn meta(&mut self, sender: AgentId) -> UpdateMeta {
        let agent = if self.choice().is_multiple_of(4) { self.agent() } else { sender };
        let key = UpdateKey {
            run: self.run(),
            agent,
            epoch: Epoch(self.of(&[1, 1, 1, 0, 2, u32::MAX])),
            seq: UpdateSeq(self.number()),
        };
        UpdateMeta {
            key,
            branch: self.of(&[BranchId([2; 16]), BranchId([2; 16]), BranchId([0; 16])]),
            lease: LeaseId(self.of(&[1, 2, 3, 4, 5, 0, u64::MAX])),
            base_version: ModelVersion(self.of(&[0, 0, 0, 1, 2, u64::MAX])),
            base_digest: self.of(&[Digest::of_f32(&[0.0; 4]), Digest::of_f32(&[1.0; 4]), Digest::default()]),
            codec: CodecId(self.choice()),
            payload_bytes: self.of(&[16, 16, 0, u64::MAX]),
            payload_digest: self.digest(),
            num_examples: self.number(),
            local_steps: self.short(),
            train_loss: self.single(),
            compute_ms: self.number(),
            base_dot: self.of(&[None, Some(0.5), Some(f64::MAX), Some(f64::NAN), Some(f64::INFINITY)]),
            residual_ratio: self.of(&[None, Some(0.5), Some(f32::MAX), Some(-1.0), Some(f32::NAN)]),
            memory: self.of(&[None, None, Some(MemoryMark::EMPTY), Some(MemoryMark(Digest([7; 32])))]),
        }
    }

    fn message(&mut self, kind: u8, sender: AgentId) -> AgentMessage {
        match kind {
            0 => AgentMessage::Hello(self.hello()),
            1 => {
                let (manifest, digest) = (self.manifest(), self.digest());
                AgentMessage::OfferModel { manifest, digest, transfer: self.transfer() }
            }
            2 => AgentMessage::RequestLease,
            3 => {
                let (version, digest) = (ModelVersion(self.number()), self.digest());
                AgentMessage::FetchModel {
                    version,
                    digest,
                    purpose: FetchPurpose::Train,
                    held: None,
                    missing: self.missing(),
                }
            }
            4 => {
                let parts = self.of(&[vec![], vec![None, Some(1)], vec![Some(u32::MAX); 70]]);
                let sections = PodSections { mark: self.mark(), parts };
                let sections = (!self.choice().is_multiple_of(3)).then(|| Box::new(sections));
                AgentMessage::OfferUpdate { meta: self.meta(sender), transfer: self.transfer(), sections }
            }
            5 => {
                let why = self.of(&[LeaseEnd::Expired, LeaseEnd::Returned, LeaseEnd::Superseded]);
                AgentMessage::ReturnLease { lease: LeaseId(self.number()), why }
            }
            6 => AgentMessage::Evaluated {
                evaluation: Evaluation {
                    agent: if self.choice().is_multiple_of(4) { self.agent() } else { sender },
                    version: ModelVersion(self.number()),
                    accuracy: self.float(),
                    loss: self.float(),
                    num_examples: self.number(),
                },
                cost_ms: self.number(),
            },
            7 => {
                let (lease, steps) = (LeaseId(self.number()), self.short());
                AgentMessage::Progress { lease, steps, examples_per_s: self.single() }
            }
            8 => AgentMessage::Renew { csr_der: self.text().into_bytes() },
            9 => AgentMessage::Goodbye { reason: self.text() },
            10 => AgentMessage::EvaluationFailed { version: ModelVersion(self.number()), reason: self.text() },
            12 => AgentMessage::PartNotHere { transfer: self.digest() },
            _ => {
                let mark = self.mark();
                let member = self.of(&[None, Some(agent(1)), Some(agent(u8::MAX))]);
                let problem = PodProblem { member, reason: self.text() };
                let problem = (!self.choice().is_multiple_of(3)).then_some(problem);
                AgentMessage::PodEnded { mark, problem }
            }
        }
    }

    fn any_message(&mut self, sender: AgentId) -> AgentMessage {
        let kind = self.choice() % KINDS;
        self.message(kind, sender)
    }

    fn operation(&mut self) -> RunRequest {
        match self.choice() % 10 {
            0 => RunRequest::Pause,
            1 => RunRequest::Resume,
            2 => RunRequest::Stop,
            3 => RunRequest::AgentsList,
            4 => RunRequest::CheckpointExport { version: Some(ModelVersion(self.number())) },
            _ => RunRequest::Status,
        }
    }

    fn name(&mut self) -> String {
        self.of(&["agent-2".to_owned(), String::new(), "x".to_owned(), "é".repeat(limits::NAME_BYTES / 2)])
    }

    fn content(&mut self) -> Result<Arc<Content>, DecodeError> {
        match self.choice() % 4 {
            0 => Err(DecodeError::Invalid("transfer")),
            1 => Ok(content(Delta::Dense(vec![self.single(); 4]))),
            2 => Ok(content(Delta::Sparse { len: 4, indices: vec![], values: vec![] })),
            _ => Ok(content(Delta::Dense(vec![0.5; 4]))),
        }
    }
}

impl DrawMessages for Extremes<'_> {}

/// The longest description that a model may have: it has to fit into a genesis record, a `Welcome` and a `ModelReady`.
fn longest() -> ModelManifest {
    let name = |index: usize| format!("{index:0240}");
    let count = (limits::MANIFEST_BYTES - 8) / (24 + 240);
    let tensors = (0..count).map(|index| TensorSpec { name: name(index), shape: vec![1] });
    ModelManifest::new(tensors.collect()).expect("just fits")
}

/// The largest model that may be described.
fn largest() -> ModelManifest {
    let tensor = TensorSpec { name: "w".into(), shape: vec![limits::MODEL_PARAMS as u64] };
    ModelManifest::new(vec![tensor]).expect("just fits")
}

/// What the rest of the process would do with a command. Returns what it would answer.
fn carried_out(command: Command, draw: &mut Extremes<'_>) -> Option<Event> {
    match command {
        Command::Send { message, .. } => {
            let sent = schema::encode(&message, limits::CONTROL_MESSAGE_BYTES);
            assert!(sent.is_ok(), "{sent:?}");
            None
        }
        Command::AppendModel { record, .. } | Command::Append { record } => {
            let bytes = record.to_bytes().expect("it fits into the journal");
            let read = Record::from_bytes(&bytes).expect("it is read as it was written");
            // Figures that are no numbers are not equal to themselves.
            let content = |record: &Record| format!("{:?} {:?} {:?}", record.position, record.body, record.payload);
            assert_eq!(content(&read), content(&record));
            Some(Event::Journalled { upto: record.position })
        }
        Command::ReceiveModel { peer, .. } if draw.choice().is_multiple_of(3) => {
            Some(Event::ModelFailed { peer, why: "lost".to_owned() })
        }
        // A transport delivers the content of what was offered, or nothing.
        Command::ReceiveModel { peer, manifest, .. } if manifest.params() < 10_000 => {
            let model = vec![draw.single(); manifest.params()];
            let digest = Digest::of_f32(&model);
            Some(Event::ModelReceived { peer, digest, manifest, model: content(Delta::Dense(model)) })
        }
        Command::ReceiveUpdate { peer, meta, .. } => {
            let (content, transfer_ms) = (draw.content(), draw.of(&[None, Some(0), Some(90), Some(u64::MAX)]));
            Some(Event::UpdateReceived { peer, meta, payload: Arc::from([0; 16]), content, transfer_ms })
        }
        Command::Publish { served } => Some(Event::Published {
            served: if served { ServedModel::Ready(ModelVersion(0), draw.digest()) } else { ServedModel::Other },
            version: ModelVersion(0),
            digest: Digest::of_f32(&[0.0; 4]),
        }),
        Command::Checkpoint(order) => {
            let store = MapStore::new();
            let head = saved::put(&store, &order.state).expect("a fold can be saved");
            let loaded = saved::load(&store, head).expect("and loaded");
            assert_eq!(saved::put(&MapStore::new(), &loaded).expect("and saved again"), head);
            let (position, version) = (order.position, order.state.version);
            Some(Event::Checkpointed { position, version, oldest: ModelVersion(0) })
        }
        _ => None,
    }
}

fn settle(world: &mut World, event: Event, draw: &mut Extremes<'_>) {
    let mut events = vec![event];
    for _ in 0..100 {
        let Some(event) = events.pop() else { return };
        let commands = world.handle(event);
        let mut upto: Option<Position> = None;
        for command in commands {
            match carried_out(command, draw) {
                Some(Event::Journalled { upto: position }) => upto = upto.max(Some(position)),
                Some(event) => events.push(event),
                None => {}
            }
        }
        events.extend(upto.map(|upto| Event::Journalled { upto }));
    }
}

fn greeting(peer: PeerId, n: u8) -> Event {
    Event::Connected { peer, agent: agent(n), name: format!("agent-{n}"), hello: hello(n, n) }
}

/// One thing that happens, from a peer or an operator; time passes in between.
fn happens(world: &mut World, step: &[u8]) {
    let mut draw = Extremes::new(step);
    let (what, n) = (draw.choice(), 1 + draw.choice() % 3);
    let peer = PeerId(u64::from(n));
    let event = match what % 16 {
        0 => Event::Connected { peer, agent: agent(n), name: draw.name(), hello: draw.hello() },
        1 => greeting(peer, n),
        2 => Event::Disconnected { peer },
        3 => Event::Operator { request: RequestId(1), operation: draw.operation() },
        4 => Event::AgentRevoked { agent: draw.agent(), request: Some(RequestId(1)) },
        5 => {
            world.advance_ms(draw.of(&[0, 250, 15_000, 120_000, 86_400_000]));
            Event::Tick
        }
        _ => Event::Message { peer, message: draw.any_message(agent(n)) },
    };
    settle(world, event, &mut draw);
}

#[test]
fn every_kind_is_made() {
    let mut draw = Extremes::new(&[]);
    let made: Vec<u8> = (0..KINDS).map(|number| kind(&draw.message(number, agent(1)))).collect();
    assert_eq!(made, (0..KINDS).collect::<Vec<_>>());
}

/// Confirmed before it was mended: a model whose description nearly filled a message ended the coordinator when it became a
/// record.
#[test]
fn the_longest_description_becomes_a_record_and_every_message_that_carries_it() {
    let mut world = World::new();
    let mut draw = Extremes::new(&[]);
    settle(&mut world, greeting(PeerId(1), 1), &mut draw);
    let manifest = longest();
    let model = vec![0.0; manifest.params()];
    let (peer, digest) = (PeerId(1), Digest::of_f32(&model));
    settle(
        &mut world,
        Event::ModelReceived { peer, manifest: manifest.clone(), digest, model: content(Delta::Dense(model)) },
        &mut draw,
    );
    assert_eq!(world.state().manifest, manifest);
    settle(&mut world, greeting(PeerId(2), 2), &mut draw);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn no_input_of_a_peer_panics(
        begun in 0_u8..4,
        is_capped in any::<bool>(),
        stages in 0_u32..4,
        steps in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..32), 1..48),
    ) {
        let mut spec = if stages < 2 { spec() } else { pods(stages, Labels::Stay) };
        spec.admit.max_examples = if is_capped { spec.admit.max_examples } else { u64::MAX };
        let mut world = if begun == 0 { World::pending(spec) } else { World::started_with(spec, begun) };
        steps.iter().for_each(|step| happens(&mut world, step));
        if world.has_begun() {
            // Figures that are no numbers are not equal to themselves.
            prop_assert_eq!(format!("{:?}", world.replayed()), format!("{:?}", world.state()));
        }
    }
}
