//! When things happen: leases, publishing, evaluations, checkpoints, targets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anabranch_common::ids::{AgentId, Digest, LeaseId, ModelVersion};
use anabranch_common::journal::{FinishReason, Lease, LeaseEnd, Publication, PublicationForm, RecordBody};
use anabranch_common::rng::SplitMix64;
use anabranch_common::wire::message::{CoordinatorMessage, RunPhase};

use super::Core;
use super::command::{Command, ExitReason};
use super::ending::Ending;
use super::event::{Now, PeerId};
use super::state::RunState;

/// What is under way.
#[derive(Debug)]
pub(super) struct Schedule {
    waiting: BTreeSet<PeerId>,
    /// Who asked for a lease and has caused too many records lately: asked for again as time passes.
    throttled: BTreeSet<PeerId>,
    /// No outstanding lease expires before this Unix time in milliseconds: until then nobody has to look for one.
    no_expiry_before_ms: u64,
    publishing: bool,
    published: Option<(ModelVersion, Digest)>,
    /// Since when no evaluator is connected, and whether the log says so.
    evaluators_missing: Option<(u64, bool)>,
    checkpoint_outstanding: bool,
    last_checkpoint: (ModelVersion, u64),
    oldest_rebuildable: ModelVersion,
    pub(super) ending: Option<Ending>,
    pub(super) goodbyes: BTreeMap<AgentId, PeerId>,
    parking: bool,
    exited: bool,
}

impl Schedule {
    pub(super) fn new(now: Now, checkpoint: ModelVersion) -> Self {
        Self {
            waiting: BTreeSet::new(),
            throttled: BTreeSet::new(),
            no_expiry_before_ms: 0,
            publishing: false,
            published: None,
            evaluators_missing: None,
            checkpoint_outstanding: false,
            last_checkpoint: (checkpoint, now.mono_ms),
            oldest_rebuildable: ModelVersion(0),
            ending: None,
            goodbyes: BTreeMap::new(),
            parking: false,
            exited: false,
        }
    }

    pub(super) fn resume(&mut self, oldest: ModelVersion) {
        self.oldest_rebuildable = oldest;
    }

    pub(super) fn oldest_rebuildable(&self) -> ModelVersion {
        self.oldest_rebuildable
    }

    pub(super) fn forget(&mut self, peer: PeerId, agent: Option<AgentId>) {
        self.waiting.remove(&peer);
        self.throttled.remove(&peer);
        // A goodbye holds for the connection it was said on.
        if let Some(agent) = agent
            && self.goodbyes.get(&agent) != Some(&peer)
        {
            self.goodbyes.remove(&agent);
        }
    }

    pub(super) fn checkpoint_ordered(&mut self, version: ModelVersion, now: Now) {
        self.checkpoint_outstanding = true;
        self.last_checkpoint = (version, now.mono_ms);
    }

    /// An evaluator is connected, or none is needed.
    pub(super) fn evaluators_are_here(&mut self) {
        self.evaluators_missing = None;
    }

    /// For how many milliseconds no evaluator has been connected.
    pub(super) fn evaluators_missing_for(&mut self, now_ms: u64) -> u64 {
        let (since_ms, _) = *self.evaluators_missing.get_or_insert((now_ms, false));
        now_ms.saturating_sub(since_ms)
    }

    /// True the first time.
    pub(super) fn say_that_evaluators_are_missing(&mut self) -> bool {
        self.evaluators_missing.as_mut().is_some_and(|(_, said)| !std::mem::replace(said, true))
    }

    pub(super) fn checkpoint_version(&self) -> Option<ModelVersion> {
        (self.last_checkpoint.0 > ModelVersion(0) && !self.checkpoint_outstanding).then_some(self.last_checkpoint.0)
    }
}

/// The seed of the local round under a lease: another one for each, and the same one in every run with the same seed.
#[must_use]
pub fn lease_seed(run_seed: u64, lease: LeaseId) -> u64 {
    SplitMix64::new(run_seed ^ lease.0.wrapping_mul(0x9E37_79B9_7F4A_7C15)).next_u64()
}

impl Core {
    pub(super) fn lease_requested(&mut self, peer: PeerId, agent: AgentId) {
        let state = self.lease_phase();
        if state != RunPhase::Running {
            return self.send(peer, CoordinatorMessage::NoLease { state });
        }
        if self.schedule.waiting.contains(&peer) {
            return;
        }
        if !self.peers.pay(agent, self.now) {
            self.schedule.throttled.insert(peer);
            return;
        }
        let held = self.state.as_ref().and_then(|state| state.agents.get(&agent)).and_then(|agent| agent.lease);
        if let Some(lease) = held {
            self.append(RecordBody::LeaseEnded { lease, why: LeaseEnd::Superseded }, Arc::from([]), None);
            self.evaluation_given_back(agent, lease);
        }
        self.schedule.waiting.insert(peer);
    }

    /// Runs after every event: whatever has become due.
    pub(super) fn pace(&mut self) {
        if self.state.is_none() {
            return;
        }
        self.expire_leases();
        self.pace_throttled();
        self.check_targets();
        self.pace_evaluation();
        self.pace_target_problem();
        self.pace_publishing();
        self.pace_checkpoint();
        self.pace_ending();
    }

    fn pace_throttled(&mut self) {
        for peer in std::mem::take(&mut self.schedule.throttled) {
            if let Some(agent) = self.peers.agent_of(peer) {
                self.lease_requested(peer, agent);
            }
        }
    }

    fn expire_leases(&mut self) {
        let Some(state) = &self.state else { return };
        let now = self.now.unix_ms;
        if now <= self.schedule.no_expiry_before_ms {
            return;
        }
        let expired: Vec<_> =
            state.active_leases().filter(|lease| lease.expires_at_ms < now).map(|lease| lease.id).collect();
        for lease in expired {
            self.append(RecordBody::LeaseEnded { lease, why: LeaseEnd::Expired }, Arc::from([]), None);
        }
        let next = self.state.as_ref().and_then(|state| state.active_leases().map(|lease| lease.expires_at_ms).min());
        self.schedule.no_expiry_before_ms = next.unwrap_or(u64::MAX);
    }

    /// Asks for the newest version when somebody waits for one; grants at once when it is at hand.
    fn pace_publishing(&mut self) {
        let Some(state) = &self.state else { return };
        let wanted = !self.schedule.waiting.is_empty() || self.evaluators.wants_a_version();
        if !wanted || self.schedule.publishing {
            return;
        }
        match self.schedule.published {
            Some((version, digest)) if version == state.version => self.grant_waiting(version, digest),
            _ => {
                self.schedule.publishing = true;
                self.gated(Command::Publish);
            }
        }
    }

    pub(super) fn published(&mut self, version: ModelVersion, digest: Digest) {
        self.schedule.publishing = false;
        self.schedule.published = Some((version, digest));
        let publication = Publication { version, form: PublicationForm::Snapshot, digest };
        let before = self.state.as_ref().and_then(|state| state.published);
        // A process that was started again publishes the newest version once more.
        if before != Some(publication) {
            self.append(RecordBody::Published(publication), Arc::from([]), None);
        }
        self.grant_waiting(version, digest);
    }

    fn grant_waiting(&mut self, version: ModelVersion, digest: Digest) {
        self.open_wanted_round(version, digest);
        for peer in std::mem::take(&mut self.schedule.waiting) {
            let Some(agent) = self.peers.agent_of(peer) else { continue };
            match self.lease_phase() {
                RunPhase::Running => self.grant(peer, agent, version, digest),
                state => self.send(peer, CoordinatorMessage::NoLease { state }),
            }
        }
        // After the leases: whoever evaluates the base of its lease need not fetch this version by itself.
        if self.evaluators.take_changed() {
            self.settle_round();
        }
    }

    fn grant(&mut self, peer: PeerId, agent: AgentId, base_version: ModelVersion, base_digest: Digest) {
        let Some(state) = &self.state else { return };
        let Some(known) = state.agents.get(&agent) else { return };
        let id = state.next_lease;
        let lease = Lease {
            id,
            agent,
            epoch: known.epoch,
            branch: state.branch,
            base_version,
            base_digest,
            seed: lease_seed(state.spec.seed, id),
            expires_at_ms: self.now.unix_ms.saturating_add(self.options.lease_ttl_ms),
            plan: state.plan(agent, base_version),
        };
        let evaluate = self.evaluates_first(agent, id, base_version, base_digest);
        self.schedule.no_expiry_before_ms = self.schedule.no_expiry_before_ms.min(lease.expires_at_ms);
        self.append(RecordBody::LeaseGranted(lease.clone()), Arc::from([]), None);
        self.send(peer, CoordinatorMessage::Lease { lease, evaluate });
    }

    /// The model overflowed: everything up to the last finite version stays.
    pub(super) fn non_finite(&mut self, version: ModelVersion) {
        // No checkpoint is written any more: what was ordered will not be answered.
        self.schedule.checkpoint_outstanding = false;
        let (reason, result) = (FinishReason::NonFinite, ModelVersion(version.0.saturating_sub(1)));
        match self.state.as_ref().and_then(|state| state.finished) {
            // The update that reached the target is the one that overflowed: the target's version is no result.
            Some((_, target)) if target >= version => {
                self.evaluators.cancel_unless(None);
                self.append(RecordBody::Finished { reason, result }, Arc::from([]), None);
            }
            Some(_) => {}
            None => self.finish(reason, result),
        }
    }

    pub(super) fn tell_everyone(&mut self, state: RunPhase) {
        let peers: Vec<PeerId> = self.peers.all().map(|(peer, _)| peer).collect();
        for peer in peers {
            self.send(peer, CoordinatorMessage::StateChanged { state });
        }
    }

    fn pace_checkpoint(&mut self) {
        let Some(state) = &self.state else { return };
        if self.schedule.checkpoint_outstanding || state.finished.is_some() {
            return;
        }
        let (version, at_ms) = self.schedule.last_checkpoint;
        let reached = |passed: u64, every: u64| every > 0 && passed >= every;
        let by_versions = reached(state.version.staleness_of(version), self.options.checkpoint_every_versions);
        let by_time = reached(self.now.mono_ms.saturating_sub(at_ms), self.options.checkpoint_every_ms);
        if by_versions || (by_time && state.version > version) {
            self.order_checkpoint();
        }
    }

    pub(super) fn checkpointed(&mut self, version: ModelVersion, oldest: ModelVersion) {
        self.schedule.checkpoint_outstanding = false;
        self.schedule.oldest_rebuildable = oldest;
        tracing::debug!(%version, %oldest, "checkpoint is durable");
        self.pace_parking();
    }

    /// SIGTERM: a last checkpoint, then the process may end; the run goes on at the next start.
    pub(super) fn park(&mut self) {
        self.schedule.parking = true;
        if self.state.is_some() && !self.schedule.checkpoint_outstanding && self.schedule.ending.is_none() {
            self.order_checkpoint();
        }
        self.pace_parking();
    }

    fn pace_parking(&mut self) {
        if self.schedule.parking {
            let finished = self.state.as_ref().and_then(|state| state.finished);
            let reason = finished.map(|(reason, result)| ExitReason::Finished { reason, result });
            self.exit(reason.unwrap_or(ExitReason::Parked));
        }
    }

    /// Ends the process, once, when no checkpoint is being written.
    pub(super) fn exit(&mut self, reason: ExitReason) {
        if !self.schedule.checkpoint_outstanding && !self.schedule.exited {
            self.schedule.exited = true;
            self.record_models_sent();
            self.gated(Command::Exit(reason));
        }
    }

    /// Leases that were outstanding when the process ended are still good.
    #[must_use]
    pub fn outstanding_leases(&self) -> usize {
        self.state.as_ref().map_or(0, RunState::leases_outstanding)
    }
}
