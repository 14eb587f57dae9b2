//! Which agents evaluate a version, and when their answers are enough.
//!
//! ```text
//!   due ─► open(version) ─► next_to_ask: every agent that only evaluates, then agents that train, the largest shard first,
//!            │                           until more than half of the known evaluation examples are covered
//!            ├─ answered / failed / left / silent ─► next_to_ask again: another evaluator takes the place
//!            └─ close: nobody whose examples count is still asked ─► Aggregate, or nothing and the next version is due
//! ```
//! An evaluator's examples count as known while it is connected or away for less than `EVALUATOR_AWAY_MS`, has failed
//! fewer than `EVALUATION_FAILURES` times in a row, and was not silent when it was last asked. The sums are stored in the
//! aggregate's record as computed here, so that a replay judges targets alike.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, Digest, LeaseId, ModelVersion};
use anabranch_common::journal::{Aggregate, Evaluation};
use anabranch_common::limits;
use anabranch_common::spec::EvaluateSpec;

use super::agent::AgentState;
use super::agents::Agents;

/// What an agent with an evaluation shard does beside evaluating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    /// Nothing: asking it costs no training.
    EvaluatesOnly,
    /// It trains.
    Trains,
}

/// One request to one evaluator.
#[derive(Debug, Clone, Copy)]
struct Asked {
    version: ModelVersion,
    since_ms: u64,
    /// The lease whose base it is, if the request came with a lease.
    lease: Option<LeaseId>,
    deadline_ms: u64,
    /// The deadline is never moved beyond this.
    latest_ms: u64,
}

/// What is known of an evaluator while this process lives.
#[derive(Debug, Clone, Copy)]
struct Evaluator {
    duty: Duty,
    /// Since when it is away; none while it is connected.
    away_since_ms: Option<u64>,
    asked: Option<Asked>,
    /// It gave no answer when it was last asked.
    silent: bool,
    not_before_ms: u64,
    /// It trains and has evaluated: until then no round is due for its sake.
    rests_until_ms: u64,
}

/// The evaluation of one version by several agents.
#[derive(Debug)]
struct Round {
    version: ModelVersion,
    digest: Digest,
    answers: BTreeMap<AgentId, Evaluation>,
    /// Agents that failed: none of them is asked for this version again.
    tried: BTreeSet<AgentId>,
}

/// An evaluator as it stands now, in the light of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    agent: AgentId,
    examples: u64,
    duty: Duty,
    /// Whether its examples count as known.
    counts: bool,
    /// Whether it can be asked now.
    free: bool,
    asked: Option<ModelVersion>,
}

/// What became of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Outcome {
    /// There is none, or it goes on.
    Open,
    /// Its answers cover most of the known examples.
    Measured(Aggregate),
    /// Its answers, if any, do not.
    Nothing(ModelVersion),
}

/// Evaluators, and the round that is under way.
#[derive(Debug, Default)]
pub(super) struct Evaluators {
    evaluators: BTreeMap<AgentId, Evaluator>,
    connected: usize,
    round: Option<Round>,
    /// A round opens as soon as this version or a newer one is published.
    wanted: Option<ModelVersion>,
    /// The version of the latest round, and when it opened.
    last: Option<(ModelVersion, u64)>,
    /// Agents that train and were asked in that round.
    trainers: u64,
    /// The latest round came to nothing: the next version is due at once.
    retry: bool,
    /// Until then too few evaluators can be asked.
    look_at_ms: u64,
    /// Until then no agent that does nothing else can be asked.
    idle_at_ms: u64,
    next_deadline_ms: u64,
    /// Something happened that may let the round close, or another evaluator be asked.
    changed: bool,
}

impl Evaluators {
    /// Takes up what the journal knows: evaluators that are expected to connect again, and the version that was measured
    /// last.
    pub(super) fn resume(&mut self, agents: &Agents, measured: Option<ModelVersion>, now_ms: u64) {
        self.last = measured.map(|version| (version, now_ms));
        for (agent, known) in agents.iter().filter(|(_, known)| known.eval_examples > 0 && !known.revoked) {
            let duty = if known.examples_held > 0 { Duty::Trains } else { Duty::EvaluatesOnly };
            self.evaluators.insert(*agent, Evaluator::away(duty, now_ms));
        }
    }

    /// An agent with an evaluation shard has connected.
    pub(super) fn arrived(&mut self, agent: AgentId, duty: Duty, now_ms: u64) {
        let evaluator = self.evaluators.entry(agent).or_insert_with(|| Evaluator::away(duty, now_ms));
        evaluator.duty = duty;
        self.connected += usize::from(evaluator.away_since_ms.take().is_some());
        (self.look_at_ms, self.idle_at_ms, self.changed) = (0, 0, true);
    }

    /// An agent has disconnected. Returns the version that it was to evaluate.
    pub(super) fn left(&mut self, agent: AgentId, now_ms: u64) -> Option<ModelVersion> {
        let evaluator = self.evaluators.get_mut(&agent)?;
        if evaluator.away_since_ms.replace(now_ms).is_none() {
            self.connected -= 1;
        }
        evaluator.rests_until_ms = 0;
        self.changed = true;
        evaluator.asked.map(|asked| asked.version)
    }

    /// An agent is no evaluator any more: its new process has no evaluation shard, or it was revoked.
    pub(super) fn forget(&mut self, agent: AgentId) {
        if self.evaluators.remove(&agent).is_some_and(|evaluator| evaluator.away_since_ms.is_none()) {
            self.connected -= 1;
        }
        self.changed = true;
    }

    /// Whether no agent with an evaluation shard is connected.
    pub(super) fn is_empty(&self) -> bool {
        self.connected == 0
    }

    /// Whether a round is open, or is to open with the next published version.
    pub(super) fn is_measuring(&self) -> bool {
        self.round.is_some() || self.wants_a_version()
    }

    /// Whether a version is to be published for a round.
    pub(super) fn wants_a_version(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether the round that is to open can be about `version`, which is published. One that was asked for before the round
    /// was wanted is too old.
    pub(super) fn wants(&self, version: ModelVersion) -> bool {
        self.wanted.is_some_and(|wanted| version >= wanted)
    }

    /// Whether a round is due for `version`. A round for which several agents interrupt their training counts as several, so
    /// that evaluating costs as much training as if one of them did it each time. None is due before an agent that trains has
    /// trained `limits::EVALUATION_REST` times as long as its last evaluation has cost, unless an agent that does nothing else
    /// is here.
    pub(super) fn is_due(&self, version: ModelVersion, every: &EvaluateSpec, now_ms: u64) -> bool {
        if self.connected == 0 || self.is_measuring() || now_ms < self.look_at_ms {
            return false;
        }
        let rests = self.evaluators.values().any(|live| now_ms < live.rests_until_ms);
        let is_idle =
            |live: &Evaluator| live.duty == Duty::EvaluatesOnly && live.away_since_ms.is_none() && !live.silent;
        if rests && !self.evaluators.values().any(is_idle) {
            return false;
        }
        let Some((last, at_ms)) = self.last else { return true };
        let elapsed_s = now_ms.saturating_sub(at_ms) as f64 / 1000.0;
        let rounds = self.trainers.max(1);
        let every_versions = if rounds > 1 { every.every_versions.max(1) } else { every.every_versions };
        let passed = version.staleness_of(last) >= every_versions.saturating_mul(rounds)
            || elapsed_s >= every.every_s * rounds as f64;
        version > last && (self.retry || passed)
    }

    /// How every evaluator stands.
    pub(super) fn standings(&self, agents: &Agents, now_ms: u64) -> Vec<Standing> {
        let known = self.evaluators.iter().filter_map(|(agent, live)| Some((*agent, live, agents.get(agent)?)));
        let held = known.filter(|(_, _, known)| known.eval_examples > 0 && !known.revoked);
        let standing = |(agent, live, known): (AgentId, &Evaluator, &AgentState)| {
            let away_ms = live.away_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
            let sound = !live.silent && known.evaluation_failures < limits::EVALUATION_FAILURES;
            let here = live.away_since_ms.is_none();
            Standing {
                agent,
                examples: known.eval_examples,
                duty: live.duty,
                counts: sound && away_ms < limits::EVALUATOR_AWAY_MS,
                free: here && live.asked.is_none() && live.not_before_ms <= now_ms,
                asked: live.asked.map(|asked| asked.version),
            }
        };
        held.map(standing).collect()
    }

    /// Whether a round can open whose answers would cover most of what is known. Looks again after a while if not.
    pub(super) fn can_open(&mut self, standings: &[Standing], now_ms: u64) -> bool {
        let known = sum(standings, |standing| standing.counts);
        let free = sum(standings, |standing| standing.counts && standing.free);
        let open = if known == 0 { standings.iter().any(|standing| standing.free) } else { covers(free, known) };
        if !open {
            self.look_at_ms = now_ms + limits::EVALUATION_LOOK_MS;
        }
        open
    }

    /// A round is to open as soon as `version`, the newest one, or one after it is published.
    pub(super) fn want(&mut self, version: ModelVersion) {
        self.wanted = Some(version);
    }

    /// Opens a round.
    pub(super) fn open(&mut self, version: ModelVersion, digest: Digest, now_ms: u64) {
        self.round = Some(Round { version, digest, answers: BTreeMap::new(), tried: BTreeSet::new() });
        (self.last, self.retry, self.wanted, self.changed) = (Some((version, now_ms)), false, None, true);
        self.trainers = 0;
    }

    /// Ends the round without a result, unless it is about `version`; what was asked for is still welcome. Whether there is
    /// one about `version`.
    pub(super) fn cancel_unless(&mut self, version: Option<ModelVersion>) -> bool {
        self.wanted = None;
        if self.round.as_ref().is_some_and(|round| Some(round.version) != version) {
            self.round = None;
            self.evaluators.values_mut().for_each(|evaluator| evaluator.asked = None);
        }
        self.round.is_some()
    }

    /// The version and digest of the open round.
    pub(super) fn round(&self) -> Option<(ModelVersion, Digest)> {
        self.round.as_ref().map(|round| (round.version, round.digest))
    }

    /// Whether anything happened since this was last asked.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Who is to be asked now: every free agent that does nothing else, and of those that train as many as are needed.
    pub(super) fn next_to_ask(&self, standings: &[Standing]) -> Vec<AgentId> {
        let Some(round) = &self.round else { return Vec::new() };
        let is_open = |standing: &&Standing| {
            standing.free && !round.tried.contains(&standing.agent) && !round.answers.contains_key(&standing.agent)
        };
        let (idle, mut busy): (Vec<Standing>, Vec<Standing>) =
            standings.iter().filter(is_open).copied().partition(|standing| standing.duty == Duty::EvaluatesOnly);
        busy.sort_by_key(|standing| (!standing.counts, Reverse(standing.examples), standing.agent));
        let mut chosen: Vec<AgentId> = idle.iter().map(|standing| standing.agent).collect();
        let known = sum(standings, |standing| round.is_known(standing));
        let is_idle = |standing: &Standing| standing.counts && chosen.contains(&standing.agent);
        let mut promised = sum(standings, |standing| round.is_promised(standing) || is_idle(standing));
        let nobody_asked = standings.iter().all(|standing| standing.asked != Some(round.version));
        for standing in busy {
            // One that keeps failing is asked where there is no other.
            let alone = nobody_asked && chosen.is_empty();
            if covers(promised, known) || (!standing.counts && !alone) {
                break;
            }
            promised += standing.examples;
            chosen.push(standing.agent);
        }
        chosen
    }

    /// Whether an agent that is given a lease on the round's version is to evaluate it first, and so need not fetch it.
    pub(super) fn may_ask_with_lease(&self, agent: AgentId, base: ModelVersion, standings: &[Standing]) -> bool {
        self.round.as_ref().is_some_and(|round| round.version == base) && self.next_to_ask(standings).contains(&agent)
    }

    /// Whether `agent` can begin a round with its lease: evaluators that do nothing else are asked directly.
    pub(super) fn may_begin_with_lease(&self, agent: AgentId, standings: &[Standing]) -> bool {
        let known = sum(standings, |standing| standing.counts);
        let is_free = |standing: &Standing| standing.free && (standing.counts || known == 0);
        standings.iter().any(|standing| standing.agent == agent && is_free(standing))
    }

    /// Whether it is time to look for an agent that does nothing else.
    pub(super) fn looks_for_idle(&self, now_ms: u64) -> bool {
        now_ms >= self.idle_at_ms
    }

    /// Whether an agent that does nothing else can be asked. Looks again after a while if not.
    pub(super) fn has_idle(&mut self, standings: &[Standing], now_ms: u64) -> bool {
        let known = sum(standings, |standing| standing.counts);
        let is_idle = |standing: &Standing| standing.free && standing.duty == Duty::EvaluatesOnly;
        let idle = standings.iter().any(|standing| is_idle(standing) && (standing.counts || known == 0));
        if !idle {
            self.idle_at_ms = now_ms + limits::EVALUATION_LOOK_MS;
        }
        idle
    }

    /// `agent` is asked to evaluate the round's version.
    pub(super) fn asked(&mut self, agent: AgentId, lease: Option<LeaseId>, lease_ttl_ms: u64, now_ms: u64) {
        let Some((version, _)) = self.round() else { return };
        let deadline_ms = now_ms.saturating_add(limits::EVALUATION_TIMEOUT_MS);
        let latest_ms = deadline_ms.saturating_add(lease_ttl_ms);
        if let Some(evaluator) = self.evaluators.get_mut(&agent) {
            evaluator.asked = Some(Asked { version, since_ms: now_ms, lease, deadline_ms, latest_ms });
            self.trainers += u64::from(evaluator.duty == Duty::Trains);
            self.next_deadline_ms = self.next_deadline_ms.min(deadline_ms);
        }
    }

    /// `agent` is at work: it evaluates when its local round is over.
    pub(super) fn at_work(&mut self, agent: AgentId, now_ms: u64) {
        if let Some(asked) = self.evaluators.get_mut(&agent).and_then(|evaluator| evaluator.asked.as_mut()) {
            let deadline_ms = now_ms.saturating_add(limits::EVALUATION_TIMEOUT_MS);
            asked.deadline_ms = deadline_ms.min(asked.latest_ms);
        }
    }

    /// The version that `agent` was to evaluate before it trains under `lease`.
    pub(super) fn asked_with(&self, agent: AgentId, lease: LeaseId) -> Option<ModelVersion> {
        let asked = self.evaluators.get(&agent)?.asked?;
        (asked.lease == Some(lease)).then_some(asked.version)
    }

    /// Evaluators that were silent beyond their deadline, with what they were asked for.
    pub(super) fn overdue(&mut self, now_ms: u64) -> Vec<(AgentId, ModelVersion)> {
        if now_ms < self.next_deadline_ms {
            return Vec::new();
        }
        let mut overdue = Vec::new();
        self.next_deadline_ms = u64::MAX;
        for (agent, evaluator) in &mut self.evaluators {
            match evaluator.asked {
                Some(asked) if asked.deadline_ms <= now_ms => {
                    evaluator.silent = true;
                    overdue.push((*agent, asked.version));
                }
                Some(asked) => self.next_deadline_ms = self.next_deadline_ms.min(asked.deadline_ms),
                None => {}
            }
        }
        overdue
    }

    /// An answer has come, which has kept the agent from training for `cost_ms`. Whether it was asked for.
    pub(super) fn answered(&mut self, agent: AgentId, version: ModelVersion, cost_ms: u64, now_ms: u64) -> bool {
        let Some(evaluator) = self.evaluators.get_mut(&agent) else { return false };
        (evaluator.silent, evaluator.not_before_ms) = (false, 0);
        self.changed = true;
        let Some(asked) = evaluator.asked.take_if(|asked| asked.version == version) else { return false };
        if evaluator.duty == Duty::Trains {
            // It cannot have cost more time than has passed, whatever the agent says.
            let cost_ms = cost_ms.min(now_ms.saturating_sub(asked.since_ms));
            let rest_ms = cost_ms.saturating_mul(limits::EVALUATION_REST).min(limits::EVALUATION_REST_MS);
            evaluator.rests_until_ms = now_ms.saturating_add(rest_ms);
        }
        true
    }

    /// A sound answer counts in the round if it is about the round's version.
    pub(super) fn count(&mut self, evaluation: Evaluation) {
        if let Some(round) = self.round.as_mut().filter(|round| round.version == evaluation.version) {
            round.answers.insert(evaluation.agent, evaluation);
        }
    }

    /// Whether `agent` was asked for `version`, which it cannot evaluate.
    pub(super) fn failed(&mut self, agent: AgentId, version: ModelVersion) -> bool {
        let Some(evaluator) = self.evaluators.get_mut(&agent) else { return false };
        if evaluator.asked.take_if(|asked| asked.version == version).is_none() {
            return false;
        }
        if let Some(round) = self.round.as_mut().filter(|round| round.version == version) {
            round.tried.insert(agent);
        }
        self.changed = true;
        true
    }

    /// After its `failures`-th failure in a row `agent` is not asked for a while.
    pub(super) fn back_off(&mut self, agent: AgentId, failures: u32, now_ms: u64) {
        let (first_ms, longest_ms) = limits::EVALUATION_RETRY_MS;
        let wait_ms = first_ms.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(longest_ms);
        if let Some(evaluator) = self.evaluators.get_mut(&agent) {
            evaluator.not_before_ms = now_ms.saturating_add(wait_ms);
        }
    }

    /// Closes the round once no evaluator is asked whose examples count, or, without enough answers, none at all.
    pub(super) fn close(&mut self, agents: &Agents, standings: &[Standing]) -> Outcome {
        let Some(round) = &self.round else { return Outcome::Open };
        let is_asked = |standing: &Standing| standing.asked == Some(round.version);
        if standings.iter().any(|standing| is_asked(standing) && standing.counts) {
            return Outcome::Open;
        }
        let known = sum(standings, |standing| round.is_known(standing));
        match combine(round.version, &round.answers, agents, known) {
            Some(aggregate) => {
                self.round = None;
                Outcome::Measured(aggregate)
            }
            None if standings.iter().any(is_asked) => Outcome::Open,
            None => {
                let version = round.version;
                (self.round, self.retry, self.look_at_ms, self.idle_at_ms) = (None, true, 0, 0);
                Outcome::Nothing(version)
            }
        }
    }
}

impl Evaluator {
    fn away(duty: Duty, now_ms: u64) -> Self {
        Self { duty, away_since_ms: Some(now_ms), asked: None, silent: false, not_before_ms: 0, rests_until_ms: 0 }
    }
}

impl Round {
    fn is_known(&self, standing: &Standing) -> bool {
        standing.counts || self.answers.contains_key(&standing.agent)
    }

    fn is_promised(&self, standing: &Standing) -> bool {
        let is_asked = standing.counts && standing.asked == Some(self.version);
        is_asked || self.answers.contains_key(&standing.agent)
    }
}

fn covers(examples: u64, known: u64) -> bool {
    u128::from(examples) * 2 > u128::from(known)
}

fn sum(standings: &[Standing], which: impl Fn(&Standing) -> bool) -> u64 {
    let examples = standings.iter().filter(|standing| which(standing)).map(|standing| standing.examples);
    examples.fold(0, u64::saturating_add)
}

/// The mean of the answers, each weighted by the examples it was measured on, but by no more than its evaluator holds; none
/// where they do not cover most of what is known. One answer gives its own figures, to the bit.
fn combine(
    version: ModelVersion,
    answers: &BTreeMap<AgentId, Evaluation>,
    agents: &Agents,
    known_examples: u64,
) -> Option<Aggregate> {
    let held = |agent: &AgentId| agents.get(agent).map_or(0, |known| known.eval_examples);
    let weigh = |(agent, answer): (&AgentId, &Evaluation)| (answer.num_examples.min(held(agent)), *answer);
    let weighed: Vec<(u64, Evaluation)> = answers.iter().map(weigh).filter(|(weight, _)| *weight > 0).collect();
    let num_examples = weighed.iter().map(|(weight, _)| *weight).fold(0, u64::saturating_add);
    let mean = |figure: fn(&Evaluation) -> f64| {
        let share = |(weight, answer): &(u64, Evaluation)| *weight as f64 / num_examples as f64 * figure(answer);
        weighed.iter().map(share).sum::<f64>().clamp(f64::MIN, f64::MAX)
    };
    let aggregate = Aggregate {
        version,
        accuracy: mean(|answer| answer.accuracy).clamp(0.0, 1.0),
        loss: mean(|answer| answer.loss),
        evaluators: u32::try_from(weighed.len()).unwrap_or(u32::MAX),
        num_examples,
        covered_examples: answers.keys().map(held).fold(0, u64::saturating_add),
        known_examples,
    };
    aggregate.covers_most().then_some(aggregate)
}
