//! The state of a run as a pure fold over its journal.
//!
//! Live and replayed records go through the same [`RunState::apply`], so that a restart cannot know anything else than
//! an uninterrupted coordinator knows. Nothing in here depends on a clock, on connections or on map order.

use std::collections::{BTreeMap, VecDeque};

use super::agent::{AgentState, EpochLog};
use super::agents::Agents;
use super::compression::Compression;
use super::outstanding::Outstanding;
use super::recent::Recent;
use super::round::Round;
use super::sizing;
use anabranch_common::ids::{AgentId, BranchId, Digest, LeaseId, ModelVersion, Position, RunId};
use anabranch_common::journal::{
    Aggregate, Contribution, Evaluation, FinishReason, Lease, Plan, Publication, Record, RecordBody,
};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::WeightInputs;
use anabranch_common::merge::participation::{Changed, Participation};
use anabranch_common::merge::shares::{self, Shares};
use anabranch_common::spec::{RunSpec, ScheduleUnit};
use anabranch_common::update::{RefusalReason, UpdateKey, Verdict};

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
    /// A record closes a version of other contributions than those that wait, or for a reason that does not hold.
    #[error("record {position} closes a version of {said} contributions where {waiting} wait, or without a reason")]
    Contributions {
        /// Its position.
        position: Position,
        /// How many it says.
        said: u32,
        /// How many wait.
        waiting: u32,
    },
    /// A record lets agents train from a version, or keeps it from them, where the distance of records says otherwise.
    #[error("record {position} is wrong about whether agents may train from version {version}")]
    Base {
        /// Its position.
        position: Position,
        /// The version in the record.
        version: ModelVersion,
    },
    /// A record publishes an older version than the one before, or the same one with another digest.
    #[error("record {position} publishes version {version}, which was published as another model or left behind")]
    Published {
        /// Its position.
        position: Position,
        /// The version in the record.
        version: ModelVersion,
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
    /// The newest version that agents may train from: with a published track, the newest one at which that has a record.
    pub base: ModelVersion,
    /// What waits for the close of the next version.
    pub round: Round,
    /// The version that was published last on this branch.
    pub published: Option<Publication>,
    /// Agents by identity.
    pub agents: Agents,
    /// Who holds which outstanding lease: follows from [`agents`](Self::agents).
    pub outstanding: Outstanding,
    /// The next lease's number.
    pub next_lease: LeaseId,
    /// Who has contributed how much, lately.
    pub participation: Participation,
    /// Shares of arrivals, where the merge rule uses them; else empty.
    pub shares: Shares,
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
    /// The rung of the newest copy of another run's version that has taken the model's place, if the run is a trial.
    pub copied: Option<u32>,
    /// Examples credited to the contributions that the version is made of: those that wait, or
    /// that a rollback took back, do not count.
    pub examples: u64,
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
            base: ModelVersion(0),
            round: Round::default(),
            published: None,
            agents: Agents::default(),
            outstanding: Outstanding::default(),
            next_lease: LeaseId(1),
            participation: Participation::default(),
            shares: Shares::default(),
            recent: Recent::default(),
            totals: Totals { staleness: vec![0; limits::STALENESS_BUCKETS], ..Totals::default() },
            evaluations: VecDeque::new(),
            aggregates: VecDeque::new(),
            paused: false,
            finished: None,
            reference_norm: *norm,
            copied: None,
            examples: 0,
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
            RecordBody::ConfigChanged { spec } => self.change_spec(position, spec),
            RecordBody::AgentJoined { agent, name } => {
                self.agents.get_or_insert(*agent).name.clone_from(name);
            }
            RecordBody::AgentRevoked { agent } => {
                let state = self.agents.get_mut(agent).ok_or(unknown("an agent"))?;
                (state.revoked, state.pace, state.compression) = (true, None, None);
                let lease = state.lease;
                let changed = self.participation.forget(*agent);
                self.part_changed(changed);
                let changed = self.shares.leave(*agent);
                self.shares_changed(changed);
                self.recent.withdraw(*agent);
                lease.and_then(|lease| self.end_lease(lease));
            }
            RecordBody::EpochStarted { agent, epoch, incarnation, examples_held, eval_examples } => {
                let state = self.agents.get_mut(agent).ok_or(unknown("an agent"))?;
                state.epoch = *epoch;
                state.incarnation = *incarnation;
                state.examples_held = *examples_held;
                state.eval_examples = *eval_examples;
                state.compression.iter_mut().for_each(Compression::restarted);
                state.epochs.insert(*epoch, EpochLog::default());
                while state.epochs.len() > limits::EPOCHS_KEPT {
                    state.epochs.pop_first();
                }
                if self.spec.merge.uses_shares() {
                    // Whoever only evaluates takes no part.
                    let changed = match *examples_held {
                        0 => self.shares.leave(*agent),
                        held => self.shares.join(*agent, held),
                    };
                    self.shares_changed(changed);
                }
            }
            RecordBody::LeaseGranted(lease) => {
                self.grant(lease, record.at_ms).ok_or(unknown("an agent"))?;
            }
            RecordBody::LeaseEnded { lease, .. } => self.end_lease(*lease).ok_or(unknown("a lease"))?,
            RecordBody::Contribution(contribution) => {
                self.contribute(position, record.at_ms, contribution).ok_or(unknown("an agent"))?;
            }
            RecordBody::Closed(close) => self.close(position, close)?,
            RecordBody::Published(publication) => {
                if publication.version > self.base {
                    let (said, computed) = (publication.version, self.base);
                    return Err(FoldError::Version { position, said, computed });
                }
                if self.published.is_some_and(|before| !publication.may_follow(&before)) {
                    return Err(FoldError::Published { position, version: publication.version });
                }
                self.published = Some(*publication);
            }
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
                    state.evaluation_downlink_bytes =
                        state.evaluation_downlink_bytes.saturating_add(sent.evaluation_bytes);
                }
            }
            RecordBody::Reopened => self.finished = None,
            RecordBody::Imported { version, norm, copied, .. } => {
                self.expect_version(position, *version, self.version.next())?;
                self.import(position, *version, *norm, *copied);
            }
            RecordBody::Branched { branch, version, norm, examples, .. } => {
                self.branch_off(position, *branch, *version);
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

    fn change_spec(&mut self, position: Position, spec: &RunSpec) {
        let begins = !spec.merge.keeps_waiting(&self.spec.merge);
        if begins {
            self.round = Round::new(position);
            self.forget_marks();
        }
        // Updates of another kind have other norms: the old ones would refuse the new ones for ever.
        let kind = |spec: &RunSpec| (spec.model.clone(), spec.train.clone(), spec.upload.clone());
        if kind(spec) != kind(&self.spec) || spec.merge.keeps_memories() != self.spec.merge.keeps_memories() {
            self.recent.forget();
        }
        self.change_served(spec);
        self.change_shares(spec);
        let switched = spec.downlink.track.is_some() != self.spec.downlink.track.is_some();
        if switched || !spec.reaches(self.base, self.version) {
            // Agents train from another vector, of the version that there is.
            (self.base, self.published) = (self.version, None);
        }
        let (before, after) = (&self.spec.train, &spec.train);
        if sizing::differ(before, after) {
            self.agents.change(|agent| agent.pace.is_some(), |agent| sizing::change(&mut agent.pace, before, after));
        }
        if (&spec.upload, &spec.model) != (&self.spec.upload, &self.spec.model) {
            self.agents.change(|agent| agent.compression.is_some(), |agent| agent.compression = None);
        }
        self.spec = spec.clone();
        if begins {
            self.forget_memories();
        }
    }

    fn grant(&mut self, lease: &Lease, at_ms: u64) -> Option<()> {
        let oldest = self.oldest_base();
        let agent = self.agents.get_mut(&lease.agent)?;
        agent.rounds += 1;
        if let Some(before) = agent.lease.replace(lease.id) {
            self.outstanding.ended(before);
        }
        self.outstanding.granted(lease.id, lease.agent, agent);
        agent.leases.insert(lease.id, lease.clone());
        agent.forget_ended_leases(oldest);
        if self.spec.train.target_round_s.is_some() {
            agent.pace.get_or_insert_default().granted(lease.id, lease.plan.local_steps, at_ms);
        }
        self.next_lease = lease.id.next();
        Some(())
    }

    /// Returns the plan of `agent`'s next lease, whose base is `base`.
    #[must_use]
    pub fn plan(&self, agent: AgentId, base: ModelVersion) -> Plan {
        let (train, upload, known) = (&self.spec.train, &self.spec.upload, self.agents.get(&agent));
        let lr_factor = train.schedule.as_ref().map_or(1.0, |schedule| {
            schedule.factor(match schedule.over() {
                ScheduleUnit::Versions => base.0,
                ScheduleUnit::Examples => self.examples,
            })
        });
        Plan {
            local_steps: sizing::steps(known.and_then(|agent| agent.pace.as_ref()), train).unwrap_or(train.local_steps),
            lr_factor,
            round: known.map_or(0, |agent| agent.rounds),
            progress: self.spec.target.versions.map(|versions| share(base.0, versions)),
            weight: self.spec.merge.weight(WeightInputs { staleness: 0, participation: 1.0 }),
            base_dot: self.spec.merge.uses_base_dot(),
            codec: upload.level(known.and_then(|agent| agent.compression.as_ref()).map_or(0, Compression::level)),
            residual_ratio: upload.adaptive.is_some()
                && upload.feedback_decay > 0.0
                && !self.spec.merge.keeps_memories(),
            memory: self.spec.merge.keeps_memories().then(|| known.map(|agent| agent.memory).unwrap_or_default()),
        }
    }

    fn contribute(&mut self, position: Position, at_ms: u64, contribution: &Contribution) -> Option<()> {
        let meta = &contribution.meta;
        let version = self.round.version_with_next(&self.spec.merge, self.version);
        self.move_memories(contribution);
        let agent = self.agents.get_mut(&meta.key.agent)?;
        agent.accepted += 1;
        agent.contributed_at = Some(position);
        agent.uplink_bytes += meta.payload_bytes;
        agent.staleness = Some(contribution.staleness);
        agent.train_loss = Some(meta.train_loss);
        agent.examples_per_s = meta.num_examples as f64 * 1000.0 / meta.compute_ms.max(1) as f64;
        let lease = agent.leases.remove(&meta.lease);
        if let (Some(lease), Some(adaptive)) = (&lease, &self.spec.upload.adaptive) {
            let compression = agent.compression.get_or_insert_default();
            let sizes = self.spec.upload.policy.sizes(&self.manifest);
            compression.accepted(contribution, (&lease.plan.codec, sizes), at_ms, adaptive, &self.spec.upload);
        }
        if agent.lease.take_if(|held| *held == meta.lease).is_some() {
            self.outstanding.ended(meta.lease);
        }
        self.outstanding.contributed(meta.key.agent);
        let (weight, staleness) = (contribution.weight, contribution.staleness);
        let verdict = Verdict::Accepted { position, version, weight, staleness };
        agent.epochs.entry(meta.key.epoch).or_default().decide(meta.key.seq, meta.payload_digest, verdict);
        let (train, cap) = (&self.spec.train, self.spec.admit.max_examples);
        // Never less than the configured steps: who pretends to be slow would else weigh more for it.
        let steps = agent.pace.as_mut().and_then(|pace| pace.accepted(meta, at_ms)).unwrap_or(0).max(train.local_steps);
        let planned = (u64::from(steps) * u64::from(train.batch_size)).min(cap);
        // No more than the lease asked for: else one agent's claim would end a schedule over examples for all.
        let asked = lease.as_ref().map_or(0, |lease| lease.plan.local_steps).max(train.local_steps);
        let counted = contribution.credited_examples.min(u64::from(asked) * u64::from(train.batch_size));
        let held = agent.examples_held;
        let changed = self.participation.observe(meta.key.agent, held, contribution.credited_examples, planned);
        // Differences against a memory do not grow with the learning rate.
        let lr_factor = lease.as_ref().filter(|lease| lease.plan.memory.is_none());
        let lr_factor = lr_factor.map_or(1.0, |lease| lease.plan.lr_factor);
        self.part_changed(changed);
        if self.spec.merge.uses_shares() {
            let changed = self.shares.arrive(meta.key.agent, held);
            self.shares_changed(changed);
        }
        self.totals.accepted += 1;
        self.round.add(counted);
        self.recent.accepted(meta.key.agent, norm_per_rate(contribution.norm, lr_factor), self.totals.accepted);
        self.totals.uplink_bytes += meta.payload_bytes;
        let bucket = usize::try_from(staleness).unwrap_or(usize::MAX).min(self.totals.staleness.len() - 1);
        self.totals.staleness[bucket] += 1;
        Some(())
    }

    fn refuse(&mut self, key: &UpdateKey, payload: Digest, lease: LeaseId, reason: RefusalReason) -> Option<()> {
        let agent = self.agents.get_mut(&key.agent)?;
        *agent.refused.entry(reason).or_default() += 1;
        if reason == RefusalReason::NormOutlier {
            self.recent.withdraw(key.agent);
        }
        if reason == RefusalReason::Stale && self.spec.upload.adaptive.is_some() {
            agent.compression.get_or_insert_default().stale(&self.spec.upload);
        }
        let verdict = Verdict::Refused { reason };
        agent.epochs.entry(key.epoch).or_default().decide(key.seq, payload, verdict);
        if agent.leases.remove(&lease).is_some() {
            if agent.lease.take_if(|held| *held == lease).is_some() {
                self.outstanding.ended(lease);
            }
            if let Some(pace) = &mut agent.pace {
                pace.refused(lease);
            }
        }
        *self.totals.refused.entry(reason).or_default() += 1;
        Some(())
    }

    pub(super) fn expect_version(
        &self,
        position: Position,
        said: ModelVersion,
        computed: ModelVersion,
    ) -> Result<(), FoldError> {
        if said == computed { Ok(()) } else { Err(FoldError::Version { position, said, computed }) }
    }

    /// An agent's part of the participation is saved with the agent. Whoever changes it has changed the agent as well.
    fn part_changed(&mut self, changed: Changed) {
        if changed == Changed::EveryAgent {
            self.agents.forget_digests();
        }
    }

    /// Users may be given another vector of the newest version from now on: what was evaluated of it was the one before.
    fn change_served(&mut self, spec: &RunSpec) {
        let (before, after) = (&self.spec.merge, &spec.merge);
        let begins = after.serves_average() && !after.keeps_waiting(before);
        if before.serves_average() == after.serves_average() && !begins {
            return;
        }
        let version = self.version;
        self.evaluations.retain(|(_, evaluation)| evaluation.version < version);
        self.aggregates.retain(|(_, aggregate)| aggregate.version < version);
    }

    /// Another merge rule may begin to use shares, or stop using them. Begun anew, they know of no update.
    fn change_shares(&mut self, spec: &RunSpec) {
        let uses = spec.merge.uses_shares();
        if (uses, spec.merge.rescales()) == (self.spec.merge.uses_shares(), self.spec.merge.rescales()) {
            return;
        }
        let is_active =
            |agent: &AgentState| uses && !agent.revoked && !agent.epochs.is_empty() && agent.examples_held > 0;
        let active = self.agents.iter().filter(|(_, agent)| is_active(agent));
        self.shares = Shares::of(active.map(|(id, agent)| (*id, agent.examples_held)));
        self.agents.forget_digests();
    }

    /// An agent's part of the shares is saved with the agent. Whoever changes it has changed the agent as well.
    pub(super) fn shares_changed(&mut self, changed: shares::Changed) {
        match changed {
            shares::Changed::EveryAgent => self.agents.forget_digests(),
            shares::Changed::Also(others) => {
                for other in &others {
                    self.agents.get_mut(other);
                }
            }
        }
    }

    /// An outstanding lease comes to nothing; its work is still welcome while its base is.
    fn end_lease(&mut self, lease: LeaseId) -> Option<()> {
        let holder = self.outstanding.ended(lease)?;
        let oldest = self.oldest_base();
        let agent = self.agents.get_mut(&holder)?;
        agent.lease = None;
        agent.forget_ended_leases(oldest);
        Some(())
    }

    /// The oldest base of which an update is not stale.
    fn oldest_base(&self) -> ModelVersion {
        ModelVersion(self.version.0.saturating_sub(self.spec.admit.max_staleness))
    }

    /// Returns a lease of `agent` under which an update is still welcome: outstanding, or ended while its base is within
    /// `max_staleness`, and without an update so far.
    #[must_use]
    pub fn lease(&self, agent: AgentId, lease: LeaseId) -> Option<&Lease> {
        let known = self.agents.get(&agent)?;
        let granted = known.leases.get(&lease)?;
        (known.lease == Some(lease) || granted.base_version >= self.oldest_base()).then_some(granted)
    }

    /// Agents at work under a lease of which nothing was merged yet.
    #[must_use]
    pub fn newcomers(&self) -> usize {
        self.outstanding.newcomers()
    }

    /// Leases outstanding.
    pub fn active_leases(&self) -> impl Iterator<Item = &Lease> {
        self.outstanding.iter().filter_map(|(lease, agent)| self.agents.get(&agent)?.leases.get(&lease))
    }

    /// Every lease that is remembered, outstanding or ended, by agent.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.agents.values().flat_map(|agent| agent.leases.values())
    }

    /// The agent that holds an outstanding lease.
    #[must_use]
    pub fn holder(&self, lease: LeaseId) -> Option<AgentId> {
        self.outstanding.holder(lease)
    }

    /// How many leases are outstanding.
    #[must_use]
    pub fn leases_outstanding(&self) -> usize {
        self.outstanding.len()
    }
}

/// Adds the newest, and drops the oldest one where there are too many.
fn keep<T>(list: &mut VecDeque<T>, newest: T) {
    list.push_back(newest);
    if list.len() > limits::EVALUATIONS_KEPT {
        list.pop_front();
    }
}
