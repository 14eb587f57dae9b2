//! Whatever a coordinator says, in whatever state, the session goes on or ends with a reason: every kind of message with
//! extreme but well-formed content.

use anabranch_common::codec::CodecSpec;
use anabranch_common::pod::{PodMark, PodPart, PodPeer, PodProblem, PodRound};
use anabranch_testkit::extreme::{Draw, Extremes};
use proptest::prelude::*;

use super::*;
use crate::session::event::PartContent;

/// Kinds of message that a coordinator has.
const KINDS: u8 = 18;

/// The kind of a message. A new kind does not compile until it has a number here, and then fails
/// [`every_kind_is_made`] until [`DrawMessages::message`] makes it.
fn kind(message: &CoordinatorMessage) -> u8 {
    match message {
        CoordinatorMessage::Welcome(_) => 0,
        CoordinatorMessage::Rejected(_) => 1,
        CoordinatorMessage::NeedChunks { .. } => 2,
        CoordinatorMessage::ModelReady { .. } => 3,
        CoordinatorMessage::Lease { .. } => 4,
        CoordinatorMessage::NoLease { .. } => 5,
        CoordinatorMessage::Evaluate { .. } => 6,
        CoordinatorMessage::Model { .. } => 7,
        CoordinatorMessage::ModelGone { .. } => 8,
        CoordinatorMessage::Verdict { .. } => 9,
        CoordinatorMessage::StateChanged { .. } => 10,
        CoordinatorMessage::Renewed { .. } => 11,
        CoordinatorMessage::LeaseDeferred => 12,
        CoordinatorMessage::Pod(_) => 13,
        CoordinatorMessage::PodOver { .. } => 14,
        CoordinatorMessage::NeedPart { .. } => 15,
        CoordinatorMessage::PartDone { .. } => 16,
        CoordinatorMessage::RenewNow { .. } => 17,
    }
}

/// Extreme parts of messages, and whole messages of them.
trait DrawMessages: Draw {
    fn phase(&mut self) -> RunPhase {
        self.of(&[RunPhase::Running, RunPhase::Running, RunPhase::Pending, RunPhase::Paused, RunPhase::Finished])
    }

    fn branch(&mut self) -> BranchId {
        self.of(&[BRANCH, BRANCH, BRANCH, BranchId([u8::MAX; 16])])
    }

    fn manifest(&mut self) -> ModelManifest {
        let largest = TensorSpec { name: "w".into(), shape: vec![limits::MODEL_PARAMS as u64] };
        let largest = ModelManifest::new(vec![largest]).expect("just fits");
        self.of(&[manifest("w"), manifest("w"), manifest("w"), manifest(&"é".repeat(128)), largest])
    }

    fn digest(&mut self) -> Digest {
        self.of(&[digest(0), digest(0), digest(1), Digest::default()])
    }

    fn text(&mut self) -> String {
        self.text_of(&[0, 1, limits::CONTROL_MESSAGE_BYTES - 1024])
    }

    /// Never one that is valid and large: whether an agent takes memory on the coordinator's word is another question.
    fn transfer(&mut self) -> TransferManifest {
        let lie = TransferManifest { bytes: u64::MAX, chunks: vec![Digest::default(); 3], sections: vec![] };
        let many = TransferManifest { bytes: 16, chunks: vec![Digest::default(); 20_000], sections: vec![3, 9] };
        let none = TransferManifest { bytes: 0, chunks: vec![], sections: vec![7] };
        self.of(&[TransferManifest::of(&encoded(0)), TransferManifest::of(&encoded(1)), lie, many, none])
    }

    fn missing(&mut self) -> Missing {
        Missing::all(self.of(&[1, 0, 8, 9, 100_000]))
    }

    fn lease(&mut self) -> Lease {
        Lease {
            id: LeaseId(self.number()),
            agent: self.of(&[AGENT, AGENT, AgentId([0; 16])]),
            epoch: Epoch(self.short()),
            branch: self.branch(),
            base_version: ModelVersion(self.number()),
            base_digest: self.digest(),
            seed: self.number(),
            expires_at_ms: self.number(),
            plan: Plan {
                local_steps: self.short(),
                lr_factor: self.of(&[1.0, 0.0, f32::MAX, f32::NAN]),
                round: self.number(),
                progress: self.of(&[None, Some(1.0), Some(f32::NAN)]),
                weight: self.of(&[0.6, 0.0, -1.0, f32::MAX, f32::NAN]),
                base_dot: self.of(&[false, true]),
                codec: self.of(&[
                    CodecSpec::F32,
                    CodecSpec::Int4,
                    CodecSpec::top_k(0.5),
                    CodecSpec::top_k(f32::MIN_POSITIVE),
                ]),
                residual_ratio: self.of(&[false, true]),
                memory: self.of(&[None, Some(MemoryMark::EMPTY), Some(MemoryMark(Digest([7; 32])))]),
            },
        }
    }

    fn spec(&mut self) -> AgentSpec {
        let mut spec = spec();
        match self.choice() % 8 {
            0 => spec.train.local_steps = self.short(),
            1 => spec.train.batch_size = self.short(),
            2 => spec.upload.feedback_decay = self.of(&[f32::NAN, f32::INFINITY, -1.0]),
            3 => spec.model.input = vec![u64::MAX; 9],
            4 | 5 => spec.pod = Some(pods::pod_spec()),
            _ => {}
        }
        spec
    }

    fn mark(&mut self) -> PodMark {
        let lease = self.lease().id;
        let lease = self.of(&[LeaseId(1), LeaseId(1), lease]);
        PodMark { lease, attempt: self.of(&[1, 1, 2, 0, u32::MAX]) }
    }

    fn rejection(&mut self) -> Rejection {
        match self.choice() % 8 {
            0 => Rejection::Revoked,
            1 => Rejection::WrongRun { run: RunId([u8::MAX; 16]) },
            2 => Rejection::Unknown,
            3 => Rejection::Replaced,
            4 => Rejection::Protocol(self.text()),
            5 => Rejection::OtherModel(self.text()),
            6 => Rejection::OldCertificate,
            _ => Rejection::Busy,
        }
    }

    fn verdict(&mut self) -> CoordinatorMessage {
        let key = UpdateKey {
            run: self.of(&[RUN, RUN, RunId([9; 16])]),
            agent: AGENT,
            epoch: self.of(&[EPOCH, EPOCH, Epoch(0), Epoch(u32::MAX)]),
            seq: UpdateSeq(self.number()),
        };
        let (version, staleness) = (ModelVersion(self.number()), self.number());
        let weight = self.of(&[0.5, f32::NAN, f32::INFINITY, f32::MAX, -1.0]);
        let accepted = Verdict::Accepted { position: Position(self.number()), version, weight, staleness };
        let reason = self.of(&RefusalReason::ALL);
        let verdict = if self.choice().is_multiple_of(2) { accepted } else { Verdict::Refused { reason } };
        CoordinatorMessage::Verdict { key, verdict }
    }

    fn message(&mut self, kind: u8) -> CoordinatorMessage {
        match kind {
            0 => CoordinatorMessage::Welcome(Box::new(Welcome {
                run: self.of(&[RUN, RUN, RUN, RunId([9; 16])]),
                branch: self.branch(),
                agent: self.of(&[AGENT, AgentId([0; 16])]),
                name: self.text(),
                epoch: self.of(&[EPOCH, EPOCH, Epoch(0), Epoch(u32::MAX)]),
                spec: self.spec(),
                model: (!self.choice().is_multiple_of(3)).then(|| (self.manifest(), self.digest())),
                state: self.phase(),
            })),
            1 => CoordinatorMessage::Rejected(self.rejection()),
            2 => {
                let of_initial = TransferManifest::of(&encoded(0)).id();
                let transfer = self.of(&[of_initial, TransferManifest::of(&[0; 10]).id(), Digest::default()]);
                CoordinatorMessage::NeedChunks { transfer, missing: self.missing() }
            }
            3 => CoordinatorMessage::ModelReady { manifest: self.manifest(), digest: self.digest() },
            4 => CoordinatorMessage::Lease { lease: self.lease(), evaluate: self.choice().is_multiple_of(2) },
            5 => CoordinatorMessage::NoLease { state: self.phase() },
            6 => CoordinatorMessage::Evaluate { version: ModelVersion(self.number()), digest: self.digest() },
            7 => {
                let (version, digest) = (ModelVersion(self.number()), self.digest());
                CoordinatorMessage::Model { version, digest, form: ModelForm::Snapshot, transfer: self.transfer() }
            }
            8 => CoordinatorMessage::ModelGone { version: ModelVersion(self.number()), digest: self.digest() },
            9 => self.verdict(),
            10 => CoordinatorMessage::StateChanged { state: self.phase() },
            11 => CoordinatorMessage::Renewed {
                certificate_der: self.text().into_bytes(),
                ca_ders: vec![self.text().into_bytes()],
            },
            12 => CoordinatorMessage::LeaseDeferred,
            13 => {
                let owner = self.of(&[AGENT, AGENT, AgentId([9; 16])]);
                let other = self.of(&[AGENT, AgentId([9; 16]), AgentId([u8::MAX; 16])]);
                let ends = self.of(&[[1, 2, 3], [1, 2, u32::MAX], [1, 2, 3], [0, 1, 2], [2, 2, 2]]);
                let agents = [owner, other, self.of(&[AGENT, owner])];
                let parts = ends.into_iter().zip(agents).map(|(end, agent)| PodPart { end, agent }).collect();
                let address = "10.0.0.1:1".to_owned();
                let address = self.of(&[address.clone(), address, String::new(), "x".repeat(1 << 12)]);
                let peers = vec![PodPeer { agent: other, address }; self.of(&[0, 1, 1, 100])];
                let plan = self.lease().plan;
                let told = AgentSpec { pod: Some(pods::pod_spec()), ..spec() }.digest().expect("short");
                let spec = self.of(&[told, told, told, Digest::default()]);
                CoordinatorMessage::Pod(Box::new(PodRound { mark: self.mark(), owner, parts, peers, plan, spec }))
            }
            14 => CoordinatorMessage::PodOver { mark: self.mark() },
            15 => CoordinatorMessage::NeedPart {
                mark: self.mark(),
                part: self.of(&[0, 1, 2, u32::MAX]),
                transfer: self.digest(),
                bytes: self.of(&[3, 3, 0, u64::MAX]),
                first: self.of(&[0, 1, u32::MAX]),
                missing: self.missing(),
            },
            16 => CoordinatorMessage::PartDone { mark: self.mark() },
            _ => CoordinatorMessage::RenewNow { key: self.of(&[RenewalKey::Same, RenewalKey::New]) },
        }
    }

    /// A chunk as a transport hands it on: of any transfer, with any index, at most as long as a chunk may be.
    fn chunk(&mut self) -> Event {
        let transfer = TransferManifest::of(&encoded(0)).id();
        let transfer = self.of(&[transfer, transfer, Digest::default()]);
        let bytes = self.of(&[encoded(0), encoded(0), vec![], vec![7; 8], vec![0; limits::CHUNK_BYTES]]);
        Event::Chunk { transfer, index: self.of(&[0, 0, 1, u32::MAX]), bytes }
    }
}

impl DrawMessages for Extremes<'_> {}

/// A session and the rest of its process, which does what it is told.
struct Process {
    session: Session,
    now_ms: u64,
    /// Whether the run has pods when the coordinator speaks as it should.
    in_pods: bool,
    /// What the device computes until it is told to stop, and what that leads to.
    running: Option<Event>,
}

impl Process {
    fn new(kept: Kept, in_pods: bool) -> Self {
        let session = Session::new(SessionConfig { pod: Some(pods::offer(None)), ..config(40, 10) }, kept);
        Self { session, now_ms: 0, in_pods, running: None }
    }

    fn welcome(&self) -> Event {
        let mut event = welcome(BRANCH, Some(digest(0)), RunPhase::Running);
        if let Event::Message(CoordinatorMessage::Welcome(welcome)) = &mut event {
            welcome.spec.pod = self.in_pods.then(pods::pod_spec);
        }
        event
    }

    /// The device computes an attempt of a pod. The first one of each runs until it is stopped.
    fn computes(&mut self, mark: PodMark, stopped: Event, failed: Event) -> Option<Event> {
        assert!(self.running.is_none(), "the device computes one thing at a time");
        if mark.attempt > 1 {
            return Some(failed);
        }
        self.running = Some(stopped);
        None
    }

    fn settle(&mut self, event: Event) {
        let mut events = vec![event];
        for _ in 0..100 {
            let Some(event) = events.pop() else { return };
            let commands = self.session.handle(self.now_ms, event);
            events.extend(commands.into_iter().filter_map(|command| self.carried_out(command)));
        }
    }

    fn carried_out(&mut self, command: Command) -> Option<Event> {
        Some(match command {
            Command::Send(message) => {
                let sent = anabranch_common::schema::encode(&message, limits::CONTROL_MESSAGE_BYTES);
                assert!(sent.is_ok(), "{sent:?}");
                return None;
            }
            Command::Connect { .. } => Event::Connected,
            Command::Prepare(_) => Event::Prepared { manifest: manifest("w") },
            Command::MakeInitial { .. } => Event::InitialMade(InitialModel {
                content: content(0),
                encoded: encoded(0).into(),
                digest: digest(0),
                transfer: TransferManifest::of(&encoded(0)),
            }),
            Command::Unpack { version, digest, .. } => Event::Unpacked { version, digest, content: content(0) },
            Command::Train { lease, pod: Some(round), .. } => {
                let (mark, problem) = (round.mark, PodProblem { member: None, reason: "x".repeat(1 << 12) });
                let stopped = Event::TrainingStopped { lease: lease.id };
                return self.computes(mark, stopped, Event::PodFailed { mark, problem });
            }
            Command::Serve { round, .. } => {
                let served = Event::Served {
                    mark: round.mark,
                    problem: None,
                    parts: vec![PartContent { part: 1, payload: [7; 3].into() }],
                };
                return self.computes(round.mark, served.clone(), served);
            }
            Command::StopTraining => return self.running.take(),
            Command::Train { lease, .. } => Event::Trained(Box::new(outcome(&lease))),
            Command::Evaluate { version, .. } => {
                Event::Evaluated { version, accuracy: 0.5, loss: 0.5, num_examples: 10 }
            }
            Command::Bank(bank) => {
                let mut banked = entry(0, &bank.lease);
                (banked.meta.key.epoch, banked.meta.key.seq) = (bank.epoch, bank.seq);
                Event::Banked(banked)
            }
            Command::Settle { key, .. } => Event::Settled { key },
            _ => return None,
        })
    }

    fn happens(&mut self, step: &[u8]) {
        let mut draw = Extremes::new(step);
        let event = match draw.choice() % 16 {
            0 => Event::Disconnected(Problem::Transient("lost".into())),
            1 => self.welcome(),
            2 => draw.chunk(),
            3 => {
                self.now_ms += draw.of(&[0, 250, 15_000, 120_000, 86_400_000]);
                Event::Tick
            }
            4 => say(CoordinatorMessage::Lease { lease: lease(1, 0), evaluate: false }),
            _ => {
                let kind = draw.choice() % KINDS;
                say(draw.message(kind))
            }
        };
        self.settle(event);
    }
}

#[test]
fn every_kind_is_made() {
    let mut draw = Extremes::new(&[]);
    let made: Vec<u8> = (0..KINDS).map(|number| kind(&draw.message(number))).collect();
    assert_eq!(made, (0..KINDS).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn nothing_that_a_coordinator_says_panics(
        welcomed in any::<bool>(),
        in_pods in any::<bool>(),
        steps in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..32), 1..48),
    ) {
        let mut process = Process::new(Kept::default(), in_pods);
        process.settle(Event::Started);
        if welcomed {
            process.settle(process.welcome());
        }
        steps.iter().for_each(|step| process.happens(step));
    }
}
