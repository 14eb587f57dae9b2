//! A core with a hand on its clock and its disk.

use std::sync::Arc;

use anabranch_common::codec::{CodecSpec, Delta};
use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, Incarnation, ModelVersion, Position, RunId, UpdateSeq};
use anabranch_common::journal::{Evaluation, Lease, Record, RecordBody};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::{
    AdmitSpec, DownlinkSpec, EvaluateSpec, ModelKind, ModelSpec, OptimizerSpec, RunSpec, TargetSpec, TrainSpec,
    UploadSpec,
};
use anabranch_common::status::AgentStatus;
use anabranch_common::update::{UpdateKey, UpdateMeta, Verdict};
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage, Rejection};
use anabranch_common::wire::transfer::TransferManifest;

use crate::core::admit::Decision;
use crate::core::command::Command;
use crate::core::content::{Content, Reservation};
use crate::core::event::{Event, Now, PeerId};
use crate::core::publication::ServedModel;
use crate::core::state::RunState;
use crate::core::{Core, ModelMismatch, Options};
use crate::recovery::saved;
use crate::store::for_tests::MapStore;

pub(super) const LEASE_TTL_MS: u64 = 60_000;
pub(super) const MAX_STALENESS: u64 = 3;

/// Digest of what users are given of a version, where that is another vector.
pub(super) fn served(version: u64) -> Digest {
    Digest::of_f32(&[version as f32, 0.5])
}

pub(super) fn agent(n: u8) -> AgentId {
    AgentId([n; 16])
}

pub(super) fn hello(n: u8, incarnation: u8) -> AgentHello {
    AgentHello {
        run: RunId([1; 16]),
        branch: None,
        incarnation: Incarnation([incarnation; 16]),
        software: "test".into(),
        train_examples: 100 * u64::from(n),
        eval_examples: 0,
        device: "cpu".into(),
        pod: None,
    }
}

pub(super) fn spec() -> RunSpec {
    RunSpec {
        name: "test".into(),
        seed: 1,
        model: ModelSpec {
            kind: ModelKind::Custom,
            input: vec![2],
            classes: 2,
            hidden: vec![],
            input_scale: 1.0,
            ..ModelSpec::default()
        },
        train: TrainSpec {
            local_steps: 1,
            batch_size: 1,
            optimizer: OptimizerSpec::Sgd { lr: 0.1, momentum: 0.0 },
            keep_optimizer_state: false,
            target_round_s: None,
            max_local_steps: None,
            schedule: None,
            proximal_mu: 0.0,
        },
        upload: UploadSpec::fixed(CodecSpec::Bf16, 1.0),
        merge: MergeSpec::FedAsync { alpha: 0.5, staleness: Default::default(), participation: false },
        admit: AdmitSpec {
            max_staleness: MAX_STALENESS,
            max_examples: 1000,
            max_norm_ratio: 0.0,
            clip_norm_ratio: 0.0,
            max_influence: 0.0,
            rare_norm_ratio: 0.0,
        },
        downlink: DownlinkSpec::default(),
        pod: None,
        evaluate: EvaluateSpec { every_versions: 10, every_s: 1e9 },
        target: TargetSpec { accuracy: Some(0.95), ..TargetSpec::default() },
    }
}

pub(super) fn manifest() -> ModelManifest {
    ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![4] }]).expect("valid")
}

/// The tensors of a native model, or [`manifest`].
fn manifest_of(spec: &RunSpec) -> ModelManifest {
    spec.model.layers().expect("valid").map_or_else(manifest, |layers| layers.manifest)
}

/// A decoded vector as the transport hands it over, with nothing reserved.
pub(super) fn content(delta: Delta) -> Arc<Content> {
    Arc::new(Content::measure(delta, Reservation::default()))
}

/// Whether these commands send a peer away because it broke the protocol, and do nothing else.
pub(super) fn breaks_the_protocol(commands: &[Command]) -> bool {
    let rejected = |message: &_| matches!(message, CoordinatorMessage::Rejected(Rejection::Protocol(_)));
    matches!(commands, [Command::Send { message, .. }, Command::Close { .. }] if rejected(message))
}

/// A core, and every command and record that came out of it.
pub(super) struct World {
    core: Core,
    now: Now,
    records: Vec<Arc<Record>>,
    sent: Vec<(PeerId, CoordinatorMessage)>,
    /// A version is asked for, perhaps with what users are given of it.
    publishing: Option<bool>,
    /// Whether users are given another vector than the one that agents train from.
    averages: bool,
    model: Arc<Vec<f32>>,
}

impl World {
    /// No agent and no model.
    pub(super) fn new() -> Self {
        Self::pending(spec())
    }

    /// Makes a checkpoint due after so much time.
    pub(super) fn checkpoint_every_ms(&mut self, every_ms: u64) {
        self.core.options.checkpoint_every_ms = every_ms;
    }

    /// The same with another configuration.
    pub(super) fn pending(spec: RunSpec) -> Self {
        let options = Options {
            run: RunId([1; 16]),
            first_branch: BranchId([2; 16]),
            starts: 0,
            lease_ttl_ms: LEASE_TTL_MS,
            checkpoint_every_versions: 1000,
            checkpoint_every_ms: 0,
        };
        let now = Now { unix_ms: 1_000_000, mono_ms: 0 };
        let params = manifest_of(&spec).params();
        let core = Core::new(options, spec, now);
        Self {
            core,
            now,
            records: vec![],
            sent: vec![],
            publishing: None,
            averages: false,
            model: Arc::new(vec![0.0; params]),
        }
    }

    /// An agent, connected as peer 1, and a durable model.
    pub(super) fn of(spec: RunSpec, model: Vec<f32>) -> Self {
        let mut world = Self { model: Arc::new(model), ..Self::pending(spec) };
        world.connect(PeerId(1), 1);
        world.offer_model(PeerId(1));
        world.model_received(PeerId(1));
        world.journal();
        world
    }

    /// `n` agents, connected as peers 1 to n, and a durable model.
    pub(super) fn started(n: u8) -> Self {
        Self::started_with(spec(), n)
    }

    /// The same with another configuration.
    pub(super) fn started_with(spec: RunSpec, n: u8) -> Self {
        let mut world = Self::pending(spec);
        for n in 1..=n {
            world.connect(PeerId(u64::from(n)), n);
        }
        world.offer_model(PeerId(1));
        world.model_received(PeerId(1));
        world.journal();
        world
    }

    /// Agents 1, 2, ... with so many examples to train and to evaluate on, connected, and a durable model.
    pub(super) fn started_with_shards(examples: &[(u64, u64)]) -> Self {
        Self::started_as(spec(), examples)
    }

    /// The same with another configuration.
    pub(super) fn started_as(spec: RunSpec, examples: &[(u64, u64)]) -> Self {
        let mut world = Self::pending(spec);
        for (n, (train_examples, eval_examples)) in (1..).zip(examples) {
            world.connect_with(n, *train_examples, *eval_examples);
        }
        world.offer_model(PeerId(1));
        world.model_received(PeerId(1));
        world.journal();
        world
    }

    /// Agent `n` connects as peer `n`, with so many examples to train and to evaluate on.
    pub(super) fn connect_with(&mut self, n: u8, train_examples: u64, eval_examples: u64) -> Vec<Command> {
        let hello = AgentHello { train_examples, eval_examples, ..hello(n, n) };
        self.hello(PeerId(u64::from(n)), n, hello)
    }

    pub(super) fn handle(&mut self, event: Event) -> Vec<Command> {
        let commands = self.core.handle(self.now, event);
        self.collected(commands)
    }

    /// The core of a stopped coordinator handles an event.
    pub(super) fn handle_at_rest(&mut self, event: Event) -> Vec<Command> {
        let commands = self.core.handle_at_rest(self.now, event);
        self.collected(commands)
    }

    fn collected(&mut self, commands: Vec<Command>) -> Vec<Command> {
        self.records.extend(Self::appended(&commands));
        let asked = |command: &Command| match command {
            Command::Publish { served } => Some(*served),
            _ => None,
        };
        self.publishing = commands.iter().find_map(asked).or(self.publishing);
        for command in &commands {
            if let Command::Send { peer, message } = command {
                self.sent.push((*peer, message.clone()));
            }
        }
        commands
    }

    pub(super) fn appended(commands: &[Command]) -> Vec<Arc<Record>> {
        commands
            .iter()
            .filter_map(|command| match command {
                Command::AppendModel { record, .. } | Command::Append { record } => Some(Arc::clone(record)),
                _ => None,
            })
            .collect()
    }

    pub(super) fn message(&mut self, n: u8, message: AgentMessage) -> Vec<Command> {
        self.handle(Event::Message { peer: PeerId(u64::from(n)), message })
    }

    pub(super) fn connect(&mut self, peer: PeerId, n: u8) -> Vec<Command> {
        self.hello(peer, n, hello(n, n))
    }

    /// Member `n` says hello.
    pub(super) fn hello(&mut self, peer: PeerId, n: u8, hello: AgentHello) -> Vec<Command> {
        self.handle(Event::Connected { peer, agent: agent(n), name: format!("agent-{n}"), hello })
    }

    /// Agent `n` says goodbye and goes.
    pub(super) fn leave(&mut self, n: u8) -> Vec<Command> {
        let mut commands = self.message(n, AgentMessage::Goodbye { reason: "test".into() });
        commands.extend(self.handle(Event::Disconnected { peer: PeerId(u64::from(n)) }));
        commands
    }

    /// The same run in a new process.
    pub(super) fn restarted(self) -> Self {
        let spec = self.state().spec.clone();
        self.restarted_with(spec)
    }

    /// The same run in a new process, which was given another configuration. Its first records are durable.
    pub(super) fn restarted_with(mut self, spec: RunSpec) -> Self {
        let (core, commands) = self.resume(self.state().clone(), spec).expect("the same model");
        self.core = core;
        self.publishing = None;
        self.records.extend(Self::appended(&commands));
        self.handle(Event::Tick);
        self.journal();
        self
    }

    /// The same run in a new process, which was given this configuration and where the last `lost` records were not durable.
    pub(super) fn restarted_without(mut self, lost: usize, spec: RunSpec) -> Self {
        self.records.truncate(self.records.len() - lost);
        let (core, commands) = self.resume(self.replayed(), spec).expect("the same model");
        self.core = core;
        self.publishing = None;
        self.records.extend(Self::appended(&commands));
        self
    }

    /// The same run in a new process that has its state from a checkpoint.
    pub(super) fn checkpointed(mut self) -> Self {
        let store = MapStore::new();
        let head = saved::put(&store, self.state()).expect("a fold can be saved");
        let state = saved::load(&store, head).expect("as saved");
        let options = self.core.options.clone();
        let recovered = (state, self.core.chain);
        let kept = (ModelVersion(0), None);
        let resumed = Core::resume(options, self.state().spec.clone(), recovered, kept, self.now);
        self.core = resumed.expect("the same model").0;
        self
    }

    pub(super) fn judge(&self, meta: &UpdateMeta, content: &Content) -> Option<Decision> {
        self.core.judge(meta, Ok(content))
    }

    pub(super) fn agents(&self) -> Vec<AgentStatus> {
        self.core.agents()
    }

    /// A core that goes on from this one's records with another configuration.
    pub(super) fn resumed(&self, spec: RunSpec) -> Result<Core, ModelMismatch> {
        self.resume(self.state().clone(), spec).map(|(core, _)| core)
    }

    fn resume(&self, state: RunState, spec: RunSpec) -> Result<(Core, Vec<Command>), ModelMismatch> {
        let kept = (ModelVersion(0), None);
        let options = Options { starts: self.core.options.starts + 1, ..self.core.options.clone() };
        let (mut core, commands) = Core::resume(options, spec, (state, self.core.chain), kept, self.now)?;
        core.take_up_the_end(self.now);
        Ok((core, commands))
    }

    pub(super) fn offer_model(&mut self, peer: PeerId) -> Vec<Command> {
        let digest = Digest::of_f32(&self.model);
        let transfer = TransferManifest::of(&vec![0; 4 * self.model.len()]);
        let manifest = manifest_of(&self.core.spec);
        let message = AgentMessage::OfferModel { manifest, digest, transfer };
        self.handle(Event::Message { peer, message })
    }

    pub(super) fn model_received(&mut self, peer: PeerId) -> Vec<Command> {
        let digest = Digest::of_f32(&self.model);
        let model = content(Delta::Dense(self.model.to_vec()));
        let manifest = manifest_of(&self.core.spec);
        self.handle(Event::ModelReceived { peer, manifest, digest, model })
    }

    /// Everything appended so far becomes durable.
    pub(super) fn journal(&mut self) -> Vec<Command> {
        let upto = self.position();
        self.handle(Event::Journalled { upto })
    }

    /// The verdict that was sent last.
    pub(super) fn last_verdict(&self) -> Option<Verdict> {
        self.sent.iter().rev().find_map(|(_, message)| match message {
            CoordinatorMessage::Verdict { verdict, .. } => Some(*verdict),
            _ => None,
        })
    }

    /// How often agents heard that their requests stand.
    pub(super) fn deferrals(&self) -> usize {
        self.sent.iter().filter(|(_, message)| matches!(message, CoordinatorMessage::LeaseDeferred)).count()
    }

    pub(super) fn published(&mut self) -> Vec<Command> {
        self.published_as(self.state().base)
    }

    /// The newest version that agents may train from was this one when it was made ready.
    pub(super) fn published_as(&mut self, version: ModelVersion) -> Vec<Command> {
        let served = match self.publishing.take() {
            _ if !self.averages => ServedModel::Same,
            Some(true) => ServedModel::Ready(version, served(version.0)),
            Some(false) | None => ServedModel::Other,
        };
        let digest = Digest::of_f32(&[version.0 as f32; 4]);
        self.handle(Event::Published { version, digest, served })
    }

    /// From now on users are given another vector than the one that agents train from.
    pub(super) fn averaging(mut self) -> Self {
        self.averages = true;
        self
    }

    /// Agent `n` asks for a lease and gets it.
    pub(super) fn lease(&mut self, n: u8) -> Lease {
        let sent = self.sent.len();
        self.ask(n).unwrap_or_else(|| panic!("expected a lease, got {:?}", &self.sent[sent..]))
    }

    /// Agent `n` asks for a lease, and perhaps gets one.
    pub(super) fn ask(&mut self, n: u8) -> Option<Lease> {
        let sent = self.sent.len();
        self.message(n, AgentMessage::RequestLease);
        self.publish_if_asked();
        self.journal();
        self.leased_since(sent, n)
    }

    /// The lease that agent `n` was sent since so many messages were sent.
    pub(super) fn leased_since(&self, sent: usize, n: u8) -> Option<Lease> {
        self.sent[sent..].iter().rev().find_map(|(peer, message)| match message {
            CoordinatorMessage::Lease { lease, .. } if *peer == PeerId(u64::from(n)) => Some(lease.clone()),
            _ => None,
        })
    }

    /// What was sent since so many messages were sent.
    pub(super) fn sent_since(&self, sent: usize) -> &[(PeerId, CoordinatorMessage)] {
        &self.sent[sent..]
    }

    /// The lease that agent `n` holds.
    pub(super) fn lease_of(&self, n: u8) -> Option<anabranch_common::ids::LeaseId> {
        self.state().agents.get(&agent(n)).and_then(|known| known.lease)
    }

    /// How many messages were sent.
    pub(super) fn messages(&self) -> usize {
        self.sent.len()
    }

    /// The newest version is published if that is asked for.
    pub(super) fn publish_if_asked(&mut self) -> Vec<Command> {
        if self.publishing.is_some() { self.published() } else { Vec::new() }
    }

    pub(super) fn meta(&self, n: u8, seq: u64, lease: &Lease) -> UpdateMeta {
        UpdateMeta {
            key: UpdateKey { run: self.run(), agent: agent(n), epoch: Epoch(1), seq: UpdateSeq(seq) },
            branch: lease.branch,
            lease: lease.id,
            base_version: lease.base_version,
            base_digest: lease.base_digest,
            codec: lease.plan.codec.id(),
            payload_bytes: 16,
            payload_digest: Digest::of(&[0; 16]),
            num_examples: 32,
            local_steps: 1,
            train_loss: 0.5,
            compute_ms: 10,
            base_dot: None,
            residual_ratio: None,
            memory: None,
        }
    }

    /// Agent `n` makes the next version, with its `seq`-th update.
    pub(super) fn make_version(&mut self, n: u8, seq: u64) {
        let lease = self.lease(n);
        self.receive(n, &self.meta(n, seq, &lease), [1.0; 4]);
        self.journal();
    }

    pub(super) fn offer(&mut self, n: u8, meta: &UpdateMeta) -> Vec<Command> {
        let transfer = TransferManifest::of(&[0; 16]);
        self.message(n, AgentMessage::OfferUpdate { meta: meta.clone(), transfer, sections: None })
    }

    pub(super) fn receive(&mut self, n: u8, meta: &UpdateMeta, values: [f32; 4]) -> Vec<Command> {
        let content = Ok(content(Delta::Dense(values.to_vec())));
        let peer = PeerId(u64::from(n));
        self.handle(Event::UpdateReceived {
            peer,
            meta: meta.clone(),
            payload: Arc::from([0; 16]),
            content,
            transfer_ms: None,
        })
    }

    pub(super) fn evaluation(&self, n: u8, version: ModelVersion, accuracy: f64) -> Evaluation {
        Evaluation { agent: agent(n), version, accuracy, loss: 0.1, num_examples: 10 }
    }

    pub(super) fn advance_ms(&mut self, ms: u64) {
        self.now.unix_ms += ms;
        self.now.mono_ms += ms;
    }

    pub(super) fn last_sent(&self) -> Option<(PeerId, CoordinatorMessage)> {
        self.sent.last().cloned()
    }

    /// Commands that wait in the gate for this connection.
    pub(super) fn gated_for(&self, peer: PeerId) -> usize {
        self.core.gate.waiting_for(peer)
    }

    pub(super) fn position(&self) -> Position {
        self.state().position
    }

    pub(super) fn has_begun(&self) -> bool {
        self.core.state().is_some()
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn state(&self) -> &RunState {
        self.core.state().expect("there is a model")
    }

    pub(super) fn status(&self) -> anabranch_common::status::StatusReport {
        self.core.status()
    }

    pub(super) fn run(&self) -> RunId {
        RunId([1; 16])
    }

    /// The fold over everything that was appended, from nothing.
    /// All records, in their order.
    pub(super) fn records(&self) -> &[Arc<Record>] {
        &self.records
    }

    pub(super) fn replayed(&self) -> RunState {
        let (genesis, rest) = self.records.split_first().expect("there is a genesis record");
        assert!(matches!(genesis.body, RecordBody::Genesis { .. }));
        let mut state = RunState::genesis(genesis).expect("a genesis record");
        rest.iter().for_each(|record| state.apply(record).expect("records follow each other"));
        state
    }
}
