//! When the run's targets are reached, and what a run that had ended does when it is started again.

use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{FinishReason, RecordBody};
use anabranch_common::limits;
use anabranch_common::spec::TargetSpec;
use anabranch_common::wire::message::RunPhase;

use super::Core;
use super::event::Now;
use super::state::RunState;

/// For how long a target that is measured has had no connected evaluator.
#[derive(Debug, Default)]
pub(super) struct EvaluatorWatch {
    missing_since_ms: Option<u64>,
    said: bool,
}

impl EvaluatorWatch {
    /// Notes that no evaluator is connected. Returns true once, when that has been so for a while.
    fn is_to_be_said(&mut self, now_ms: u64) -> bool {
        let since_ms = *self.missing_since_ms.get_or_insert(now_ms);
        let missing = now_ms.saturating_sub(since_ms) >= limits::EVALUATOR_MISSING_MS;
        missing && !std::mem::replace(&mut self.said, true)
    }
}

impl RunState {
    /// The target of accuracy or loss that the newest aggregate reaches, and the version that it is about.
    #[must_use]
    pub fn measured_target(&self, target: &TargetSpec) -> Option<(FinishReason, ModelVersion)> {
        let (_, newest) = self.aggregates.back()?;
        if !newest.covers_most() {
            return None;
        }
        let (accuracy, loss) = (newest.accuracy, newest.loss);
        let by_accuracy = target.accuracy.is_some_and(|target| accuracy >= target);
        let by_loss = target.loss.is_some_and(|target| loss <= target);
        let reason = match (by_accuracy, by_loss) {
            (true, _) => FinishReason::Accuracy { reached: accuracy },
            (false, true) => FinishReason::Loss { reached: loss },
            (false, false) => return None,
        };
        Some((reason, newest.version))
    }

    /// The target of versions or time that is reached at `unix_ms`.
    fn counted_target(&self, target: &TargetSpec, unix_ms: u64) -> Option<FinishReason> {
        let elapsed_s = unix_ms.saturating_sub(self.started_at_ms) as f64 / 1000.0;
        if target.versions.is_some_and(|versions| self.version.0 >= versions) {
            Some(FinishReason::Versions)
        } else {
            target.wall_s.is_some_and(|wall_s| elapsed_s >= wall_s).then_some(FinishReason::WallTime)
        }
    }

    /// Whether what ended the run is still a reason to end it.
    fn still_holds(&self, reason: FinishReason, target: &TargetSpec) -> bool {
        match reason {
            FinishReason::Accuracy { reached } => target.accuracy.is_some_and(|target| reached >= target),
            FinishReason::Loss { reached } => target.loss.is_some_and(|target| reached <= target),
            FinishReason::Stopped | FinishReason::NonFinite => true,
            // Looked at as a target that is reached now.
            FinishReason::Versions | FinishReason::WallTime => false,
        }
    }
}

impl Core {
    pub(super) fn check_targets(&mut self) {
        let Some(state) = &self.state else { return };
        if state.finished.is_none()
            && let Some(reason) = state.counted_target(&self.spec.target, self.now.unix_ms)
        {
            self.finish(reason, state.version);
        }
    }

    /// Ends the run if its newest aggregate reaches a target at a version that can be rebuilt.
    pub(super) fn judge_newest(&mut self) {
        let Some(state) = self.state.as_ref().filter(|state| state.finished.is_none()) else { return };
        if let Some((reason, version)) = state.measured_target(&self.spec.target)
            && version >= self.checkpoints.oldest_rebuildable()
        {
            self.finish(reason, version);
        }
    }

    /// Takes up the end of a recovered run. One that was cut off between the measurement that reaches its target and its
    /// end is ended now. One that had ended goes on when its configuration has targets that are not reached, and else
    /// says so again and ends.
    pub fn take_up_the_end(&mut self, now: Now) {
        self.now = now;
        self.judge_newest();
        let Some(state) = &self.state else { return };
        let Some((reason, result)) = state.finished else { return };
        let target = &self.spec.target;
        let reached = state.counted_target(target, now.unix_ms);
        let reached = reached.or_else(|| state.measured_target(target).map(|(reason, _)| reason));
        if !state.still_holds(reason, target) && reached.is_none() {
            tracing::info!(ended = %reason, version = %state.version, "the run goes on: its targets are not reached any more");
            self.append(RecordBody::Reopened);
            return;
        }
        let now_reached = reached.unwrap_or(reason);
        let help = match reason {
            FinishReason::Stopped | FinishReason::NonFinite => {
                "to go on, use `checkpoint rollback --version N` and start `run` again"
            }
            _ => "to go on, raise this target in run.toml and start `run` again",
        };
        tracing::info!(reason = %now_reached, %result, help, "the run has ended");
        self.lifecycle.end(now);
    }

    /// Why no target of accuracy or loss can be judged at present.
    pub(super) fn target_problem(&self) -> Option<String> {
        let state = self.state.as_ref()?;
        let target = named(&self.spec.target)?;
        if state.finished.is_some() {
            return None;
        }
        if self.evaluators.is_empty() {
            return Some(format!("{target} cannot be reached: no agent with an evaluation shard is connected"));
        }
        let connected = self.peers.all().filter_map(|(_, agent)| state.agents.get(&agent));
        let mut evaluators = connected.filter(|agent| agent.eval_examples > 0);
        let all_fail = evaluators.all(|agent| agent.evaluation_failures >= limits::EVALUATION_FAILURES);
        all_fail.then(|| format!("{target} cannot be reached: the evaluations of every connected evaluator fail"))
    }

    /// Says once in the log that a target cannot be judged, when no evaluator has been connected for a while.
    pub(super) fn pace_target_problem(&mut self) {
        let concerned = self.state.is_some() && self.phase() != RunPhase::Finished && self.evaluators.is_empty();
        if !concerned {
            return self.watch = EvaluatorWatch::default();
        }
        if self.watch.is_to_be_said(self.now.mono_ms)
            && let Some(problem) = self.target_problem()
        {
            tracing::warn!("{problem}; start one with `anabranch-agent run --eval-shard`");
        }
    }
}

/// The targets that an evaluation decides on, as in run.toml.
fn named(target: &TargetSpec) -> Option<String> {
    let accuracy = target.accuracy.map(|accuracy| format!("target.accuracy = {accuracy}"));
    let loss = target.loss.map(|loss| format!("target.loss = {loss}"));
    let named: Vec<String> = accuracy.into_iter().chain(loss).collect();
    (!named.is_empty()).then(|| named.join(" and "))
}
