//! The state of a run as a pure fold over its journal.
//!
//! Live and replayed records go through the same [`RunState::apply`], so that a restart cannot know anything else than
//! an uninterrupted coordinator knows. Nothing in here depends on a clock, on connections or on map order.

use std::collections::{BTreeMap, VecDeque};

use anabranch_common::bugs::{self, Bug};
use anabranch_common::ids::{
    AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position, RunId, UpdateSeq,
};
use anabranch_common::journal::{AcceptedUpdate, Aggregate, Evaluation, FinishReason, Lease, Plan, Record, RecordBody};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::WeightInputs;
use anabranch_common::merge::participation::Participation;
use anabranch_common::spec::{RunSpec, ScheduleUnit};
use anabranch_common::update::{RefusalReason, UpdateKey, Verdict};

use super::recent::Recent;
use super::sizing::Sizing;

anabranch_common::layout! {
    enum LeaseStatus { 0 = Active, 1 = Ended }
    struct EpochLog {
        verdicts, forgotten_below,
    }
    struct AgentState {
        name, revoked, epoch, incarnation, epochs, lease, rounds, examples_held, eval_examples, evaluation_failures, evaluation_problem, accepted, refused, uplink_bytes, staleness, train_loss, examples_per_s, models_sent, downlink_bytes,
    }
    struct Totals {
        accepted, refused, uplink_bytes, staleness,
    }
}

/// Why a record cannot follow the ones before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// The first record is not a genesis, or a later one is.
    #[error("record {0} is not where a genesis record belongs")]
    Genesis(Position),
    /// A position is missing or repeated.
    #[error("record {found} follows record {after}")]
    Gap {
        /// The last position that was applied.
        after: Position,
        /// The position of the record.
        found: Position,
    },
    /// A record speaks of a version that the fold does not arrive at.
    #[error("record {position} says version {said}, replay says {computed}")]
    Version {
        /// Its position.
        position: Position,
        /// The version in the record.
        said: ModelVersion,
        /// The version by counting.
        computed: ModelVersion,
    },
    /// A record names an agent or a lease that no earlier record introduced.
    #[error("record {position} names {what} that no earlier record introduced")]
    Unknown {
        /// Its position.
        position: Position,
        /// What is not known.
        what: &'static str,
    },
}

/// Whether a lease still counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseStatus {
    /// Outstanding.
    Active,
    /// Ended without an update; its work is still welcome while its base is.
    Ended,
}

/// The verdicts of one incarnation of an agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EpochLog {
    /// Latest verdicts by sequence number, each with the digest of its payload.
    pub verdicts: BTreeMap<UpdateSeq, (Digest, Verdict)>,
    /// Sequence numbers below this were decided; their verdicts are no longer kept.
    pub forgotten_below: UpdateSeq,
}

impl EpochLog {
    fn decide(&mut self, seq: UpdateSeq, payload: Digest, verdict: Verdict) {
        self.verdicts.insert(seq, (payload, verdict));
        while self.verdicts.len() > limits::VERDICTS_KEPT {
            if let Some((oldest, _)) = self.verdicts.pop_first() {
                self.forgotten_below = oldest.next();
            }
        }
    }
}

/// What the journal says of one agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentState {
    /// Its name.
    pub name: String,
    /// Whether its certificate was revoked.
    pub revoked: bool,
    /// Its newest incarnation.
    pub epoch: Epoch,
    /// What that incarnation drew for itself.
    pub incarnation: Incarnation,
    /// Verdicts by incarnation, the newest `limits::EPOCHS_KEPT` of them.
    pub epochs: BTreeMap<Epoch, EpochLog>,
    /// Its outstanding lease.
    pub lease: Option<LeaseId>,
    /// Leases that it was granted.
    pub rounds: u64,
    /// Examples in its training shard.
    pub examples_held: u64,
    /// Examples in its evaluation shard.
    pub eval_examples: u64,
    /// Failed evaluations since its latest one that succeeded.
    pub evaluation_failures: u32,
    /// Version and reason of its latest failed evaluation, until one succeeds.
    pub evaluation_problem: Option<(ModelVersion, String)>,
    /// Updates merged.
    pub accepted: u64,
    /// Updates refused, by reason.
    pub refused: BTreeMap<RefusalReason, u64>,
    /// Payload bytes of its accepted updates.
    pub uplink_bytes: u64,
    /// Staleness of its latest accepted update.
    pub staleness: Option<u64>,
    /// Training loss of its latest accepted update.
    pub train_loss: Option<f32>,
    /// Examples a second of its latest accepted update.
    pub examples_per_s: f64,
    /// Models sent to it.
    pub models_sent: u64,
    /// Payload bytes of these models.
    pub downlink_bytes: u64,
}

/// Sums over the whole run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals {
    /// Updates merged.
    pub accepted: u64,
    /// Updates refused, by reason.
    pub refused: BTreeMap<RefusalReason, u64>,
    /// Payload bytes of accepted updates.
    pub uplink_bytes: u64,
    /// Accepted updates by staleness; the last bucket holds everything above.
    pub staleness: Vec<u64>,
}

/// Everything the journal says, up to one position.
#[derive(Debug, Clone, PartialEq)]
pub struct RunState {
    /// The run.
    pub run: RunId,
    /// The branch that counts.
    pub branch: BranchId,
    /// The configuration.
    pub spec: RunSpec,
    /// The model's tensors.
    pub manifest: ModelManifest,
    /// Digest of version 0.
    pub initial: Digest,
    /// Unix time in milliseconds of record 0.
    pub started_at_ms: u64,
    /// Position of the last record applied.
    pub position: Position,
    /// The model version after it.
    pub version: ModelVersion,
    /// Accepted updates that wait in the merge buffer.
    pub buffered: u32,
    /// Agents by identity.
    pub agents: BTreeMap<AgentId, AgentState>,
    /// Leases by number: outstanding ones, and some ended ones while their base is within `max_staleness`. One under which an
    /// update was decided is gone: nothing else is welcome under it.
    pub leases: BTreeMap<LeaseId, (Lease, LeaseStatus)>,
    /// The next lease's number.
    pub next_lease: LeaseId,
    /// Who has contributed how much, lately.
    pub participation: Participation,
    /// What the latest accepted updates were like, and whose.
    pub recent: Recent,
    /// Sums.
    pub totals: Totals,
    /// Evaluations with their time, oldest first.
    pub evaluations: VecDeque<(u64, Evaluation)>,
    /// Combined evaluations with their time, oldest first.
    pub aggregates: VecDeque<(u64, Aggregate)>,
    /// No more leases until resumed.
    pub paused: bool,
    /// Why the run ended, and which version is its result.
    pub finished: Option<(FinishReason, ModelVersion)>,
    /// Euclidean norm of the latest model that was not made by merging: version 0, an imported one, or the version that a
    /// rollback went back to. The measure of updates until enough agents have shown one.
    pub reference_norm: f64,
    /// How fast agents are, where leases have sizes of their own.
    pub sizing: Sizing,
    /// Examples credited to the updates that the version is made of: those that wait in the merge
    /// buffer, or that a rollback took back, do not count.
    pub examples: u64,
    /// Examples credited to the updates that wait in the merge buffer.
    pub buffered_examples: u64,
}

/// Returns the norm that an update would have had at the full learning rate, as far as a norm is
/// proportional to the rate. Only such norms can be compared with each other while the rate
/// changes.
#[must_use]
pub fn norm_per_rate(norm: f64, lr_factor: f32) -> f64 {
    if lr_factor > 0.0 { norm / f64::from(lr_factor) } else { norm }
}

/// `done` over `all`, at most 1.
#[expect(clippy::cast_possible_truncation, reason = "a share for trainers")]
fn share(done: u64, all: u64) -> f32 {
    (done as f64 / all.max(1) as f64).min(1.0) as f32
}

impl RunState {
    /// The state after record 0.
    ///
    /// # Errors
    /// `record` is not a genesis record at position 0.
    pub fn genesis(record: &Record) -> Result<Self, FoldError> {
        let RecordBody::Genesis { run, branch, spec, manifest, model, norm } = &record.body else {
            return Err(FoldError::Genesis(record.position));
        };
        if record.position != Position(0) {
            return Err(FoldError::Genesis(record.position));
        }
        Ok(Self {
            run: *run,
            branch: *branch,
            spec: (**spec).clone(),
            manifest: manifest.clone(),
            initial: *model,
            started_at_ms: record.at_ms,
            position: Position(0),
            version: ModelVersion(0),
            buffered: 0,
            agents: BTreeMap::new(),
            leases: BTreeMap::new(),
            next_lease: LeaseId(1),
            participation: Participation::default(),
            recent: Recent::default(),
            totals: Totals { staleness: vec![0; limits::STALENESS_BUCKETS], ..Totals::default() },
            evaluations: VecDeque::new(),
            aggregates: VecDeque::new(),
            paused: false,
            finished: None,
            reference_norm: *norm,
            sizing: Sizing::default(),
            examples: 0,
            buffered_examples: 0,
        })
    }

    /// Applies the next record.
    ///
    /// # Errors
    /// The record cannot follow: the journal is damaged, or was written by something else.
    pub fn apply(&mut self, record: &Record) -> Result<(), FoldError> {
        let position = record.position;
        if position != self.position.next() {
            return Err(FoldError::Gap { after: self.position, found: position });
        }
        let unknown = |what| FoldError::Unknown { position, what };
        match &record.body {
            RecordBody::Genesis { .. } => return Err(FoldError::Genesis(position)),
            RecordBody::ConfigChanged { spec } => self.change_spec(spec),
            RecordBody::AgentJoined { agent, name } => {
                self.agents.entry(*agent).or_default().name.clone_from(name);
            }
            RecordBody::AgentRevoked { agent } => {
                let state = self.agents.get_mut(agent).ok_or(unknown("an agent"))?;
                state.revoked = true;
                let lease = state.lease.take();
                self.participation.forget(*agent);
                self.recent.withdraw(*agent);
                self.sizing.forget(*agent);
                self.end_lease(lease);
            }
            RecordBody::EpochStarted { agent, epoch, incarnation, examples_held, eval_examples } => {
                let state = self.agents.get_mut(agent).ok_or(unknown("an agent"))?;
                state.epoch = *epoch;
                state.incarnation = *incarnation;
                state.examples_held = *examples_held;
                state.eval_examples = *eval_examples;
                state.epochs.insert(*epoch, EpochLog::default());
                while state.epochs.len() > limits::EPOCHS_KEPT {
                    state.epochs.pop_first();
                }
            }
            RecordBody::LeaseGranted(lease) => {
                self.grant(lease).ok_or(unknown("an agent"))?;
                if self.spec.train.target_round_s.is_some() {
                    self.sizing.granted(lease.agent, lease.id, lease.plan.local_steps, record.at_ms);
                }
            }
            RecordBody::LeaseEnded { lease, .. } => {
                let (granted, _) = self.leases.get(lease).ok_or(unknown("a lease"))?;
                if let Some(state) = self.agents.get_mut(&granted.agent) {
                    state.lease.take_if(|held| held == lease);
                }
                self.end_lease(Some(*lease));
            }
            RecordBody::Update(update) => self.merge(position, record.at_ms, update)?,
            RecordBody::Refused { key, payload_digest, lease, reason } => {
                self.refuse(key, *payload_digest, *lease, *reason).ok_or(unknown("an agent"))?;
            }
            RecordBody::Evaluated(evaluation) => {
                let state = self.agents.get_mut(&evaluation.agent).ok_or(unknown("an agent"))?;
                (state.evaluation_failures, state.evaluation_problem) = (0, None);
                keep(&mut self.evaluations, (record.at_ms, *evaluation));
            }
            RecordBody::EvaluationFailed { agent, version, reason } => {
                let state = self.agents.get_mut(agent).ok_or(unknown("an agent"))?;
                state.evaluation_failures = state.evaluation_failures.saturating_add(1);
                state.evaluation_problem = Some((*version, reason.clone()));
            }
            RecordBody::Aggregated(aggregate) => keep(&mut self.aggregates, (record.at_ms, *aggregate)),
            RecordBody::ModelsSent(sent) => {
                for sent in sent {
                    let state = self.agents.get_mut(&sent.agent).ok_or(unknown("an agent"))?;
                    state.models_sent = state.models_sent.saturating_add(sent.models);
                    state.downlink_bytes = state.downlink_bytes.saturating_add(sent.bytes);
                }
            }
            RecordBody::Reopened => self.finished = None,
            RecordBody::Imported { version, norm, .. } => {
                self.expect_version(position, *version, self.version.next())?;
                self.version = *version;
                self.empty_buffer();
                self.reference_norm = *norm;
            }
            RecordBody::Branched { branch, version, norm, examples, .. } => {
                self.branch_off(*branch, *version);
                self.reference_norm = *norm;
                self.examples = *examples;
            }
            RecordBody::Paused => self.paused = true,
            RecordBody::Resumed => self.paused = false,
            RecordBody::Finished { reason, result } => self.finished = Some((*reason, *result)),
        }
        self.position = position;
        Ok(())
    }

    fn change_spec(&mut self, spec: &RunSpec) {
        if spec.merge.updates_per_version() != self.spec.merge.updates_per_version() {
            self.empty_buffer();
        }
        // Updates of another kind have other norms: the old ones would refuse the new ones for ever.
        if (&spec.model, &spec.train, &spec.upload) != (&self.spec.model, &self.spec.train, &self.spec.upload) {
            self.recent.forget();
        }
        self.sizing.change(&self.spec.train, &spec.train);
        self.spec = spec.clone();
    }

    fn grant(&mut self, lease: &Lease) -> Option<()> {
        let agent = self.agents.get_mut(&lease.agent)?;
        (agent.lease, agent.rounds) = (Some(lease.id), agent.rounds + 1);
        self.leases.insert(lease.id, (lease.clone(), LeaseStatus::Active));
        self.next_lease = lease.id.next();
        Some(())
    }

    /// Returns the plan of `agent`'s next lease, whose base is `base`.
    #[must_use]
    pub fn plan(&self, agent: AgentId, base: ModelVersion) -> Plan {
        let train = &self.spec.train;
        let lr_factor = train.schedule.as_ref().map_or(1.0, |schedule| {
            schedule.factor(match schedule.over() {
                ScheduleUnit::Versions => base.0,
                ScheduleUnit::Examples => self.examples,
            })
        });
        Plan {
            local_steps: self.sizing.steps(agent, train).unwrap_or(train.local_steps),
            lr_factor,
            round: self.agents.get(&agent).map_or(0, |agent| agent.rounds),
            progress: self.spec.target.versions.map(|versions| share(base.0, versions)),
            weight: self.spec.merge.weight(WeightInputs { staleness: 0, participation: 1.0 }),
        }
    }

    fn merge(&mut self, position: Position, at_ms: u64, update: &AcceptedUpdate) -> Result<(), FoldError> {
        let meta = &update.meta;
        let closes = self.next_update_closes();
        let computed = if closes { self.version.next() } else { self.version };
        self.expect_version(position, update.version, computed)?;
        let unknown = FoldError::Unknown { position, what: "an agent" };
        let agent = self.agents.get_mut(&meta.key.agent).ok_or(unknown)?;
        agent.accepted += 1;
        agent.uplink_bytes += meta.payload_bytes;
        agent.staleness = Some(update.staleness);
        agent.train_loss = Some(meta.train_loss);
        agent.examples_per_s = meta.num_examples as f64 * 1000.0 / meta.compute_ms.max(1) as f64;
        agent.lease.take_if(|held| *held == meta.lease);
        let verdict =
            Verdict::Accepted { position, version: update.version, weight: update.weight, staleness: update.staleness };
        agent.epochs.entry(meta.key.epoch).or_default().decide(meta.key.seq, meta.payload_digest, verdict);
        let (train, cap) = (&self.spec.train, self.spec.admit.max_examples);
        // Never less than the configured steps: who pretends to be slow would else weigh more for it.
        let steps = self.sizing.accepted(meta, at_ms).unwrap_or(0).max(train.local_steps);
        let planned = (u64::from(steps) * u64::from(train.batch_size)).min(cap);
        self.participation.observe(meta.key.agent, agent.examples_held, update.credited_examples, planned);
        let lr_factor = self.leases.remove(&meta.lease).map_or(1.0, |(lease, _)| lease.plan.lr_factor);
        self.totals.accepted += 1;
        self.buffered_examples += update.credited_examples;
        self.recent.accepted(meta.key.agent, norm_per_rate(update.norm, lr_factor), self.totals.accepted);
        self.totals.uplink_bytes += meta.payload_bytes;
        let bucket = usize::try_from(update.staleness).unwrap_or(usize::MAX).min(self.totals.staleness.len() - 1);
        self.totals.staleness[bucket] += 1;
        self.buffered = if closes { 0 } else { self.buffered + 1 };
        if closes {
            self.examples += std::mem::take(&mut self.buffered_examples);
            self.version = computed;
            self.forget_old_leases();
        }
        Ok(())
    }

    fn refuse(&mut self, key: &UpdateKey, payload: Digest, lease: LeaseId, reason: RefusalReason) -> Option<()> {
        let agent = self.agents.get_mut(&key.agent)?;
        *agent.refused.entry(reason).or_default() += 1;
        if reason == RefusalReason::NormOutlier {
            self.recent.withdraw(key.agent);
        }
        let verdict = Verdict::Refused { reason };
        agent.epochs.entry(key.epoch).or_default().decide(key.seq, payload, verdict);
        let holds = self.leases.get(&lease).is_some_and(|(granted, _)| granted.agent == key.agent);
        if holds {
            agent.lease.take_if(|held| *held == lease);
            self.leases.remove(&lease);
            self.sizing.refused(key.agent, lease);
        }
        *self.totals.refused.entry(reason).or_default() += 1;
        Some(())
    }

    fn branch_off(&mut self, branch: BranchId, version: ModelVersion) {
        self.branch = branch;
        self.version = version;
        self.empty_buffer();
        self.finished = None;
        self.sizing.forget_leases();
        if !bugs::is(Bug::BranchIgnored) {
            self.leases.clear();
        }
        self.recent.forget();
        // Versions beyond it will be made again, and be other models.
        self.evaluations.retain(|(_, evaluation)| evaluation.version <= version);
        self.aggregates.retain(|(_, aggregate)| aggregate.version <= version);
        self.agents.values_mut().for_each(|agent| agent.lease = None);
    }

    /// What waits in the merge buffer is dropped.
    fn empty_buffer(&mut self) {
        (self.buffered, self.buffered_examples) = (0, 0);
    }

    fn expect_version(&self, position: Position, said: ModelVersion, computed: ModelVersion) -> Result<(), FoldError> {
        if said == computed { Ok(()) } else { Err(FoldError::Version { position, said, computed }) }
    }

    fn end_lease(&mut self, lease: Option<LeaseId>) {
        if let Some((lease, status)) = lease.and_then(|lease| self.leases.get_mut(&lease))
            && *status == LeaseStatus::Active
        {
            *status = LeaseStatus::Ended;
            let agent = lease.agent;
            self.forget_ended_leases(agent);
        }
    }

    /// Leases that came to nothing are cheap to ask for: an agent's oldest ones make room for newer ones.
    fn forget_ended_leases(&mut self, agent: AgentId) {
        let of_agent = |(lease, status): &&(Lease, LeaseStatus)| lease.agent == agent && *status == LeaseStatus::Ended;
        let ended: Vec<LeaseId> = self.leases.values().filter(of_agent).map(|(lease, _)| lease.id).collect();
        for lease in ended.iter().take(ended.len().saturating_sub(limits::ENDED_LEASES_KEPT)) {
            self.leases.remove(lease);
        }
    }

    fn forget_old_leases(&mut self) {
        let oldest = ModelVersion(self.version.0.saturating_sub(self.spec.admit.max_staleness));
        self.leases.retain(|_, (lease, status)| *status == LeaseStatus::Active || lease.base_version >= oldest);
    }

    /// Whether the next accepted update makes a version.
    #[must_use]
    pub fn next_update_closes(&self) -> bool {
        self.buffered + 1 >= self.spec.merge.updates_per_version()
    }

    /// Agents at work under a lease of which nothing was merged yet.
    #[must_use]
    pub fn newcomers(&self) -> usize {
        self.agents.values().filter(|agent| agent.accepted == 0 && agent.lease.is_some()).count()
    }

    /// Leases outstanding.
    pub fn active_leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().filter(|(_, status)| *status == LeaseStatus::Active).map(|(lease, _)| lease)
    }
}

/// Adds the newest, and drops the oldest one where there are too many.
fn keep<T>(list: &mut VecDeque<T>, newest: T) {
    list.push_back(newest);
    if list.len() > limits::EVALUATIONS_KEPT {
        list.pop_front();
    }
}
