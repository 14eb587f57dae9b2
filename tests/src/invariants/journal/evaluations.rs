//! Evaluations: an aggregate follows from figures that evaluators gave, covers most of what is known, and alone ends a run.
//! What is evaluated of a version is what users are given of it. No agent fails twice to evaluate the same version for the
//! same process.
//!
//! | check | guards |
//! |---|---|
//! | an aggregate lies between the figures of its version, and covers most of the known examples | one evaluator of few examples decides nothing |
//! | a run that ends by accuracy or loss ends with its newest aggregate | recovery gives the same end |
//! | an agent fails once for a version | no busy loop |
//! | an agent evaluates what is served of a version (`Journal::evaluates`) | status and target speak of what is exported |

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, ModelVersion};
use anabranch_common::journal::{Aggregate, Evaluation, FinishReason, Record, RecordBody};

use super::{Checked, ensure};

const NAME: &str = "evaluations";
/// What rounding may add to a mean.
const ROUNDING: f64 = 1e-9;

#[derive(Debug, Default)]
pub(super) struct Evaluations {
    held: BTreeMap<AgentId, u64>,
    figures: BTreeMap<ModelVersion, Vec<Evaluation>>,
    failed: BTreeSet<(AgentId, ModelVersion)>,
    newest: Option<Aggregate>,
    aggregates: u64,
    /// Whether an agent may be asked again for a version that it cannot evaluate.
    may_repeat: bool,
}

impl Evaluations {
    /// Those of a trial of a search.
    pub(super) fn of_trial() -> Self {
        Self { may_repeat: true, ..Self::default() }
    }

    /// The same before any record.
    pub(super) fn anew(&self) -> Self {
        Self { may_repeat: self.may_repeat, ..Self::default() }
    }

    pub(super) fn apply(&mut self, record: &Record) -> Checked {
        match &record.body {
            RecordBody::EpochStarted { agent, eval_examples, .. } => {
                self.held.insert(*agent, *eval_examples);
            }
            RecordBody::Evaluated(evaluation) => self.figures.entry(evaluation.version).or_default().push(*evaluation),
            RecordBody::EvaluationFailed { agent, version, .. } => {
                let first = self.failed.insert((*agent, *version)) || self.may_repeat;
                return ensure(first, NAME, || format!("{} was asked twice for version {version}", agent.short()));
            }
            RecordBody::Aggregated(aggregate) => {
                self.newest = Some(*aggregate);
                self.aggregates += 1;
                return self.check(aggregate);
            }
            RecordBody::Finished { reason: FinishReason::Accuracy { .. } | FinishReason::Loss { .. }, result } => {
                let of_newest = self.newest.is_some_and(|newest| newest.version == *result && newest.covers_most());
                return ensure(of_newest, NAME, || {
                    format!("the run ends at {result}, its newest is {:?}", self.newest)
                });
            }
            RecordBody::Branched { version, .. } => {
                // Later versions will be others.
                self.figures.retain(|evaluated, _| evaluated <= version);
                self.failed.clear();
                self.newest.take_if(|newest| newest.version > *version);
            }
            _ => {}
        }
        Ok(())
    }

    fn check(&self, aggregate: &Aggregate) -> Checked {
        let figures = self.figures.get(&aggregate.version).map_or(&[][..], Vec::as_slice);
        let within = |figure: fn(&Evaluation) -> f64, found: f64| {
            let least = figures.iter().map(figure).fold(f64::INFINITY, f64::min);
            let most = figures.iter().map(figure).fold(f64::NEG_INFINITY, f64::max);
            let rounding = ROUNDING * (1.0 + least.abs().max(most.abs()));
            (least - rounding..=most + rounding).contains(&found)
        };
        let sound =
            within(|figures| figures.accuracy, aggregate.accuracy) && within(|figures| figures.loss, aggregate.loss);
        ensure(sound, NAME, || format!("{aggregate:?} is no mean of {figures:?}"))?;
        let held = |agent: &AgentId| self.held.get(agent).copied().unwrap_or(0);
        let answered: BTreeSet<AgentId> = figures.iter().map(|evaluation| evaluation.agent).collect();
        let most: u64 = answered.iter().map(held).sum();
        let covers = aggregate.covered_examples <= most && 2 * aggregate.covered_examples > aggregate.known_examples;
        ensure(covers, NAME, || format!("{aggregate:?} does not cover most, where {most} examples answered"))
    }

    /// Another process asks anew.
    pub(super) fn restarted(&mut self) {
        self.failed.clear();
    }

    pub(super) fn has_failed(&self, agent: AgentId, version: ModelVersion) -> bool {
        self.failed.contains(&(agent, version))
    }

    pub(super) fn aggregates(&self) -> u64 {
        self.aggregates
    }
}
