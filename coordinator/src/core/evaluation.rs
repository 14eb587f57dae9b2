//! Evaluations: who is asked, what came of it, and the target that an aggregate reaches.

use anabranch_common::ids::{AgentId, Digest, LeaseId, ModelVersion};
use anabranch_common::journal::{Aggregate, Evaluation, RecordBody};
use anabranch_common::limits;
use anabranch_common::plain::plain;
use anabranch_common::wire::message::{CoordinatorMessage, RunPhase};

use super::Core;
use super::evaluators::{Outcome, Standing};
use super::event::PeerId;
use super::publication::ServedModel;

impl Core {
    /// Whether a round can open now whose answers would cover most of what is known.
    pub(super) fn can_measure(&mut self) -> bool {
        let standings = self.standings();
        self.evaluators.can_open(&standings, self.now.mono_ms)
    }

    fn standings(&self) -> Vec<Standing> {
        let agents = self.state.as_ref().map(|state| &state.agents);
        agents.map(|agents| self.evaluators.standings(agents, self.now.mono_ms)).unwrap_or_default()
    }

    /// Asks for what is due, takes up what has failed, and closes the round that is over. Runs after every event.
    pub(super) fn pace_evaluation(&mut self) {
        for (agent, version) in self.evaluators.overdue(self.now.mono_ms) {
            let reason = format!("no answer within {} s", limits::EVALUATION_TIMEOUT_MS / 1000);
            self.evaluation_failed(agent, version, &reason);
        }
        if self.evaluators.take_changed() {
            self.settle_round();
        }
        self.begin_round_if_due();
    }

    /// Evaluators that do nothing else are asked once the newest version is published; the others evaluate the base of
    /// their next lease. Where users are given another vector than that base, they are asked like the first ones.
    fn begin_round_if_due(&mut self) {
        let Some(state) = self.state.as_ref().filter(|_| !self.trial.is_measuring()) else { return };
        let (version, now_ms) = (state.version, self.now.mono_ms);
        let due = self.evaluators.is_due(version, &self.spec.evaluate, now_ms);
        if !due || self.phase() == RunPhase::Finished || !self.evaluators.looks_for_idle(now_ms) {
            return;
        }
        let standings = self.standings();
        if self.evaluators.can_open(&standings, now_ms) && self.evaluators.has_idle(&standings, now_ms) {
            self.evaluators.want(version);
        }
    }

    /// A version has been published, for which a round may have been waiting. `served`: the digest of what users are given.
    pub(super) fn open_wanted_round(&mut self, version: ModelVersion, served: Digest) {
        if self.evaluators.wants(version) {
            self.evaluators.open(version, served, self.now.mono_ms);
        }
    }

    /// Whether `agent`, which is given this lease, is to evaluate its base first. May open a round.
    pub(super) fn evaluates_first(
        &mut self,
        agent: AgentId,
        lease: LeaseId,
        base: ModelVersion,
        digest: Digest,
    ) -> bool {
        let (every, now_ms) = (&self.spec.evaluate, self.now.mono_ms);
        let may_begin = self.phase() == RunPhase::Running
            && !self.trial.is_measuring()
            && self.evaluators.is_due(base, every, now_ms);
        let is_open = self.evaluators.round().is_some_and(|(version, _)| version == base);
        if !may_begin && !is_open {
            return false;
        }
        let standings = self.standings();
        if may_begin {
            let begins = self.evaluators.may_begin_with_lease(agent, &standings);
            if !begins || !self.evaluators.can_open(&standings, now_ms) {
                return false;
            }
            match self.publications.served() {
                ServedModel::Same => self.evaluators.open(base, digest, now_ms),
                // The round opens with that vector, of the version that is the newest then.
                ServedModel::Other => self.evaluators.want(base),
                ServedModel::Ready(version, served) => self.evaluators.open(version, served, now_ms),
            }
        }
        let is_base = self.publications.served() == ServedModel::Same;
        if !is_base || (!may_begin && !self.evaluators.may_ask_with_lease(agent, base, &standings)) {
            return false;
        }
        self.evaluators.asked(agent, Some(lease), self.options.lease_ttl_ms, now_ms);
        true
    }

    /// Asks whoever is needed, and closes the round when nothing more can come.
    pub(super) fn settle_round(&mut self) {
        let standings = self.standings();
        self.ask_evaluators(&standings);
        let Some(state) = &self.state else { return };
        let standings = self.evaluators.standings(&state.agents, self.now.mono_ms);
        match self.evaluators.close(&state.agents, &standings) {
            Outcome::Open => {}
            Outcome::Nothing(version) => {
                tracing::warn!(%version, "a version was not measured: too few evaluations of it came")
            }
            Outcome::Measured(aggregate) => self.measured(aggregate),
        }
    }

    fn ask_evaluators(&mut self, standings: &[Standing]) {
        let Some((version, digest)) = self.evaluators.round() else { return };
        for agent in self.evaluators.next_to_ask(standings) {
            let Some(peer) = self.peers.peer_of(agent) else { continue };
            self.evaluators.asked(agent, None, self.options.lease_ttl_ms, self.now.mono_ms);
            self.send(peer, CoordinatorMessage::Evaluate { version, digest });
        }
    }

    fn measured(&mut self, aggregate: Aggregate) {
        let Aggregate { version, accuracy, loss, evaluators, covered_examples, known_examples, .. } = aggregate;
        tracing::debug!(%version, accuracy, loss, evaluators, covered_examples, known_examples, "measured");
        self.append(RecordBody::Aggregated(aggregate));
        self.judge_newest();
    }

    /// An evaluation has come, which has kept the agent from training for `cost_ms` milliseconds, as it says.
    pub(super) fn evaluated(&mut self, peer: PeerId, agent: AgentId, evaluation: Evaluation, cost_ms: u64) {
        let sound = evaluation.agent == agent
            && (0.0..=1.0).contains(&evaluation.accuracy)
            && evaluation.loss.is_finite()
            && evaluation.num_examples > 0;
        if !sound {
            self.evaluation_failed(agent, evaluation.version, "its figures are impossible");
            return self.violated(peer, "an evaluation with impossible figures");
        }
        let asked = self.evaluators.answered(agent, evaluation.version, cost_ms, self.now.mono_ms);
        let Some(state) = &self.state else { return };
        if evaluation.version > state.version {
            return tracing::debug!(%agent, version = %evaluation.version, "an evaluation of a version that was rolled back");
        }
        if !asked && !self.pay(agent) {
            return tracing::debug!(%agent, "more evaluations that nobody asked for than are recorded at a time");
        }
        self.append(RecordBody::Evaluated(evaluation));
        self.evaluators.count(evaluation);
    }

    /// An evaluation that was asked for will not come: it is recorded, and the next pacing asks another evaluator.
    pub(super) fn evaluation_failed(&mut self, agent: AgentId, version: ModelVersion, reason: &str) {
        if self.state.is_none() || !self.evaluators.failed(agent, version) {
            return;
        }
        let reason = plain(reason, limits::EVALUATION_REASON_BYTES);
        let name = self.name(agent);
        tracing::warn!(agent = %agent.short(), name, %version, reason, "an evaluation has failed");
        self.append(RecordBody::EvaluationFailed { agent, version, reason });
        let known = self.state.as_ref().and_then(|state| state.agents.get(&agent));
        let failures = known.map_or(1, |known| known.evaluation_failures);
        self.evaluators.back_off(agent, failures, self.now.mono_ms);
    }

    /// A lease ends unused, whose base was to be evaluated first.
    pub(super) fn evaluation_given_back(&mut self, agent: AgentId, lease: LeaseId) {
        if let Some(version) = self.evaluators.asked_with(agent, lease) {
            self.evaluation_failed(agent, version, "the lease on this version was given back");
        }
    }

    /// The run has ended: its result is measured once more where it was not yet, by whoever is here.
    pub(super) fn measure_result(&mut self, result: ModelVersion) {
        let Some(state) = &self.state else { return };
        let measured = state.aggregates.iter().any(|(_, aggregate)| aggregate.version == result);
        let goes_on = self.evaluators.cancel_unless((!measured).then_some(result));
        if !measured && !goes_on && result == state.version && !self.evaluators.is_empty() {
            self.evaluators.want(result);
        }
    }
}
