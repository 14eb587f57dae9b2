//! The coordinator as a state machine: one event in, commands out. No sockets, no clocks, no disks, no entropy.
//!
//! ```text
//!   Event ─► Core::handle ─┬─► Append, ReceiveUpdate, Renew, ...            at once
//!                          └─► Send, Merge, Publish, Checkpoint, Reply ──► gate ──► when what they depend on is durable
//! ```
//!
//! | room | what it owns |
//! |---|---|
//! | `beginning`, `offers` | the initial model |
//! | `replacement` | imported models, and earlier versions on a new branch |
//! | `admission`, `admit` | verdicts on updates |
//! | `round` | the contributions that wait for the close of a version: a part of the fold |
//! | `barrier` | when a round without a buffer closes, and who waits for that |
//! | `publication` | the version that can be fetched |
//! | `leases` | requests for leases, and expiry |
//! | `pods` | agents that compute a round together |
//! | `evaluation`, `evaluators` | who measures a version |
//! | `checkpoints` | when the next one is due, how far back they reach |
//! | `targets`, `lifecycle` | when the run ends, and how |
//! | `trial` | how far a run goes that is a trial of a search |
//! | `peers`, `operate` | connections, revoked agents, requests of operators |
//!
//! Who is a member is not known here: [`crate::registry`] says who may say hello, and who was revoked.
//!
//! A room's struct owns its state and says what is to be done; its `impl Core` makes records and commands of that.
//!
//! Every decision becomes a record, is applied to [`RunState`] at once, and is told to the world only when the writer
//! has answered `Journalled`: whatever leaves through the gate rests on durable records alone.

mod admission;
pub mod admit;
pub mod agent;
pub mod agents;
pub(crate) mod allowance;
mod barrier;
mod beginning;
mod checkpoints;
pub mod command;
pub mod compression;
pub mod content;
mod evaluation;
mod evaluators;
pub mod event;
mod gate;
mod leases;
mod lifecycle;
mod memories;
mod mismatch;
mod offers;
mod operate;
pub mod outstanding;
mod peers;
mod pods;
pub mod publication;
pub mod recent;
pub mod replacement;
pub mod round;
pub mod sizing;
pub mod state;
pub mod status;
mod targets;
#[cfg(test)]
mod tests;
pub mod trial;

use std::sync::Arc;

use anabranch_common::ids::{AgentId, BranchId, Digest, ModelVersion, Position, RunId};
use anabranch_common::journal::{Chain, Record, RecordBody};
use anabranch_common::limits;
use anabranch_common::schema::SchemaError;
use anabranch_common::spec::RunSpec;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage, RunPhase};

use admission::Admission;
use barrier::OpenRound;
use checkpoints::Checkpoints;
use command::{Command, ModelRequest};
use content::Content;
use evaluators::Evaluators;
use event::{Event, Now, PeerId};
use gate::Gate;
use leases::Leases;
pub use leases::lease_seed;
use lifecycle::Lifecycle;
pub use mismatch::ModelMismatch;
use offers::{ModelOffer, Offers};
use peers::Peers;
use pods::Pods;
use publication::Publications;
use state::RunState;
use targets::EvaluatorWatch;
use trial::Trial;

/// What the core is told at its start, beside the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The run's name, drawn once when its directory was first used.
    pub run: RunId,
    /// The branch that a genesis record starts.
    pub first_branch: BranchId,
    /// How often the run was started to be served, this time included: counted durably before.
    pub starts: u64,
    /// How long a lease counts as outstanding, in milliseconds.
    pub lease_ttl_ms: u64,
    /// Checkpoint after this many versions (0: never by versions) ...
    pub checkpoint_every_versions: u64,
    /// ... or after this many milliseconds (0: never by time), whichever comes first.
    pub checkpoint_every_ms: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Core {
    options: Options,
    spec: RunSpec,
    now: Now,
    state: Option<RunState>,
    chain: Chain,
    gate: Gate,
    peers: Peers,
    leases: Leases,
    pods: Pods,
    open_round: OpenRound,
    publications: Publications,
    evaluators: Evaluators,
    watch: EvaluatorWatch,
    trial: Trial,
    checkpoints: Checkpoints,
    lifecycle: Lifecycle,
    admission: Admission,
    offers: Offers,
    /// Why the run gives no leases, where that follows from its quota.
    quota_problem: Option<String>,
}

impl Core {
    /// A core for a directory without a journal.
    #[must_use]
    pub fn new(options: Options, spec: RunSpec, now: Now) -> Self {
        Self {
            checkpoints: Checkpoints::new(now, ModelVersion(0), ModelVersion(0)),
            pods: Pods::new(&spec, options.starts),
            options,
            spec,
            now,
            state: None,
            chain: Chain::default(),
            gate: Gate::default(),
            peers: Peers::default(),
            leases: Leases::default(),
            open_round: OpenRound::new(ModelVersion(0), false, now.mono_ms),
            publications: Publications::default(),
            evaluators: Evaluators::default(),
            watch: EvaluatorWatch::default(),
            trial: Trial::default(),
            lifecycle: Lifecycle::default(),
            admission: Admission::default(),
            offers: Offers::default(),
            quota_problem: None,
        }
    }

    /// A core that goes on from a recovered journal. `oldest` is the oldest version that can be rebuilt, `checkpoint`
    /// the newest version with a checkpoint.
    ///
    /// # Errors
    /// The configured model is not the journalled one, or the configuration does not fit it.
    pub fn resume(
        options: Options,
        spec: RunSpec,
        recovered: (RunState, Chain),
        (oldest, checkpoint): (ModelVersion, Option<ModelVersion>),
        now: Now,
    ) -> Result<(Self, Vec<Command>), ModelMismatch> {
        let (state, chain) = recovered;
        ModelMismatch::check(&state.spec, &state.manifest, &spec)?;
        let mut core = Self::new(options, spec.clone(), now);
        core.gate = Gate::durable_up_to(state.position);
        // A checkpoint of a branch that was left may be of a later version: waiting for that one would take long.
        core.checkpoints = Checkpoints::new(now, checkpoint.unwrap_or(state.version).min(state.version), oldest);
        let measured = state.aggregates.back().map(|(_, aggregate)| aggregate.version);
        core.evaluators.resume(&state.agents, measured, now.mono_ms);
        let is_published = state.published.is_some_and(|publication| publication.version == state.version);
        core.open_round = OpenRound::new(state.version, is_published, now.mono_ms);
        core.chain = chain;
        let changed = state.spec != spec;
        core.state = Some(state);
        // Killed between the contribution that fills the buffer and the close. Another configuration would drop them.
        core.close_if_due();
        if changed {
            core.append(RecordBody::ConfigChanged { spec: Box::new(spec) });
            core.pods.configuration_changed();
        }
        let commands = core.gate.take();
        Ok((core, commands))
    }

    /// Handles one event. `now` never goes back in its monotonic part.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Command> {
        self.take_in(now, event);
        self.expire_offer();
        self.pace();
        self.gate.take()
    }

    /// Handles one event of a core that serves no agents: nothing expires, is published or becomes
    /// due because time has passed.
    pub fn handle_at_rest(&mut self, now: Now, event: Event) -> Vec<Command> {
        self.take_in(now, event);
        self.gate.take()
    }

    /// Runs after every event: whatever has become due.
    fn pace(&mut self) {
        if self.state.is_none() {
            return;
        }
        self.expire_leases();
        self.pace_barrier();
        self.pace_throttled();
        self.check_targets();
        self.pace_trial();
        self.pace_evaluation();
        self.pace_target_problem();
        self.pace_pods();
        self.pace_publication();
        self.pace_pods_over();
        self.pace_checkpoint();
        self.pace_ending();
    }

    fn take_in(&mut self, now: Now, event: Event) {
        self.now = now;
        match event {
            Event::Connected { peer, agent, name, hello } => self.connected(peer, agent, name, hello),
            Event::Disconnected { peer } => {
                self.gate.forget(peer);
                self.disconnected(peer);
            }
            Event::Message { peer, message } => self.message(peer, message),
            Event::UpdateReceived { peer, meta, payload, content, transfer_ms } => {
                self.update_received(peer, &meta, payload, content, transfer_ms);
            }
            Event::ModelChunk { peer, bytes } => self.offers.received(peer, bytes),
            Event::ModelReceived { peer, manifest, digest, model } => self.begin(peer, manifest, digest, model),
            Event::ModelFailed { peer, why } => self.model_failed(peer, why),
            Event::ModelSent { peer, bytes, purpose } => self.peers.sent(peer, bytes, purpose),
            Event::Journalled { upto } => self.gate.journalled(upto),
            Event::Published { version, digest, served } => self.published(version, digest, served),
            Event::NonFinite { version } => self.non_finite(version),
            Event::Checkpointed { version, oldest, .. } => self.checkpointed(version, oldest),
            Event::AgentRevoked { agent, request } => self.agent_revoked(agent, request),
            Event::Operator { request, operation } => self.operate(request, operation),
            Event::Import { request, manifest, digest, model } => self.import(request, manifest, digest, model),
            Event::Copy { mark, manifest, digest, model } => self.copy(mark, manifest, digest, model),
            Event::RollBack { request, branch, to } => self.roll_back(request, branch, to),
            Event::DiskMeasured { disk_bytes, quota_bytes } => self.disk_measured(disk_bytes, quota_bytes),
            Event::Trial(order) => self.trial_ordered(order),
            Event::Tick => {}
            Event::Park => self.park(),
        }
    }

    /// The run's name.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.options.run
    }

    /// The run's state, once there is a model.
    #[must_use]
    pub fn state(&self) -> Option<&RunState> {
        self.state.as_ref()
    }

    /// Chain value after the newest record.
    #[must_use]
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// Whether the run gives leases.
    #[must_use]
    pub fn phase(&self) -> RunPhase {
        match &self.state {
            None => RunPhase::Pending,
            Some(state) if state.finished.is_some() => RunPhase::Finished,
            Some(state) if state.paused => RunPhase::Paused,
            Some(_) => RunPhase::Running,
        }
    }

    /// Records that are not durable yet.
    #[must_use]
    pub fn undurable_records(&self) -> u64 {
        self.gate.undurable(self.state.as_ref().map(|state| state.position))
    }

    /// Appends a record without a payload: see [`append_with`](Self::append_with).
    fn append(&mut self, body: RecordBody) -> Position {
        self.append_with(body, Arc::from([]), None)
    }

    /// Appends a record, and lets it be merged once it is durable. Returns its position.
    fn append_with(&mut self, body: RecordBody, payload: Arc<[u8]>, content: Option<Arc<Content>>) -> Position {
        let record = self.apply_next(body, payload);
        let position = record.position;
        let touches_model = matches!(
            record.body,
            RecordBody::Contribution(_) | RecordBody::Closed(_) | RecordBody::ConfigChanged { .. }
        );
        self.gate.pass(Command::Append { record: Arc::clone(&record) });
        if touches_model {
            self.gated(Command::Merge { record, content });
        }
        position
    }

    /// Appends a record that brings a model. Returns its position.
    fn append_model(&mut self, body: RecordBody, model: Arc<Content>, parent: Option<BranchId>) -> Position {
        let record = self.apply_next(body, Arc::from([]));
        let position = record.position;
        self.order_model(record, model, parent);
        position
    }

    /// Orders that a model is stored, then the record that names it, and that the merger goes on from it once both are
    /// durable.
    fn order_model(&mut self, record: Arc<Record>, model: Arc<Content>, parent: Option<BranchId>) {
        self.gate.pass(Command::AppendModel { record: Arc::clone(&record), model: Arc::clone(&model), parent });
        self.gated(Command::Merge { record, content: Some(model) });
    }

    /// Makes the next record and applies it.
    fn apply_next(&mut self, body: RecordBody, payload: Arc<[u8]>) -> Arc<Record> {
        let state = self.state.as_mut().expect("records follow the genesis record");
        let payload_digest = match &body {
            RecordBody::Contribution(contribution) => contribution.meta.payload_digest,
            _ => Digest::of(&payload),
        };
        let record = Arc::new(Record::new(state.position.next(), self.now.unix_ms, body, payload));
        let before = state.version;
        state.apply(&record).expect("a record that the core makes follows the ones before it");
        // Bounded: names by `limits::NAME_BYTES`, a configuration by `limits::RUN_SPEC_BYTES`, everything else by its type.
        self.chain = self.chained(&record, payload_digest, before).expect("every record but a genesis is short");
        record
    }

    /// The chain value after `record`.
    fn chained(&self, record: &Record, payload: Digest, before: ModelVersion) -> Result<Chain, SchemaError> {
        let digest = record.digest_with(payload)?;
        let (weight, version) = record.chain_inputs(before);
        Ok(self.chain.extend(digest, weight, version))
    }

    /// Lets a command out when every record up to now is durable.
    /// Takes a record from what `agent` may cause. Returns false when it has caused too many lately, or when too many
    /// records of all agents wait for the disk.
    fn pay(&mut self, agent: AgentId) -> bool {
        self.undurable_records() < limits::UNWRITTEN_RECORDS && self.peers.pay(agent, self.now)
    }

    fn gated(&mut self, command: Command) {
        let needs = self.state.as_ref().map(|state| state.position);
        self.gate.after(needs, command);
    }

    fn send(&mut self, peer: PeerId, message: CoordinatorMessage) {
        self.gated(Command::Send { peer, message });
    }

    fn message(&mut self, peer: PeerId, message: AgentMessage) {
        let Some(agent) = self.peers.heard(peer, self.now) else { return };
        if self.gate.waiting_for(peer) >= limits::PEER_QUEUE_MESSAGES {
            return self.cut_off(peer, "asks for more than can wait for the disk");
        }
        match message {
            AgentMessage::Hello(_) => self.violated(peer, "a second hello"),
            AgentMessage::OfferModel { manifest, digest, transfer } => {
                self.model_offered(peer, agent, ModelOffer { manifest, digest, transfer });
            }
            AgentMessage::RequestLease => self.lease_requested(peer, agent),
            AgentMessage::FetchModel { version, digest, purpose, held, missing } => {
                let request = ModelRequest { version, digest, purpose, held, missing };
                self.gated(Command::SendModel { peer, request });
            }
            AgentMessage::OfferUpdate { meta, transfer, sections } => {
                self.pod_delivers(agent, meta.lease);
                self.update_offered(peer, agent, meta, (transfer, sections));
            }
            AgentMessage::ReturnLease { lease, why } => self.lease_given_back(agent, lease, why),
            AgentMessage::Evaluated { evaluation, cost_ms } => self.evaluated(peer, agent, evaluation, cost_ms),
            AgentMessage::EvaluationFailed { version, reason } => self.evaluation_declined(agent, version, &reason),
            AgentMessage::Progress { examples_per_s, .. } => {
                self.evaluators.at_work(agent, self.now.mono_ms);
                self.peers.progress(agent, examples_per_s);
            }
            AgentMessage::Renew { csr_der } if csr_der.len() > limits::SIGNING_REQUEST_BYTES => {
                self.violated(peer, "a signing request that is too long");
            }
            // The registry decides at once; no record depends on it.
            AgentMessage::Renew { csr_der } => self.gate.pass(Command::Renew { peer, agent, csr_der }),
            AgentMessage::Goodbye { .. } => self.said_goodbye(peer, agent),
            AgentMessage::PodEnded { mark, problem } => self.pod_ended(agent, mark, problem.as_ref()),
            AgentMessage::PartNotHere { transfer } => self.gate.pass(Command::PartNotThere { peer, transfer }),
        }
    }

    /// Closes a connection over what may be no fault of the agent's: it may come back.
    fn cut_off(&mut self, peer: PeerId, why: &'static str) {
        tracing::warn!(peer = peer.0, why, "an agent is cut off");
        self.gated(Command::Close { peer });
        self.disconnected(peer);
    }
}
