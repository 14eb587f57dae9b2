//! A host that carries outputs out, in memory: runs that outlive kills, a journal whose end may not be durable, and trials whose
//! metric follows from their configuration.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::rng::SplitMix64;

use super::*;
use crate::search::record::{Record, TrialId};
use crate::search::state::{Phase, SearchState};
use crate::search::{EndReason, Outcome, journal};
use crate::store::Store as _;
use crate::store::for_tests::MapStore;

/// What becomes of a run. Everything but `until` and `measuring` outlives a kill.
#[derive(Debug, Clone, Default)]
struct Run {
    config: String,
    contributions: u64,
    diverged: bool,
    ended: bool,
    copies: BTreeSet<u32>,
    /// What the host was last told, in this process.
    until: u64,
    measuring: Option<ModelVersion>,
}

/// Something that may happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The oldest record that waits becomes durable.
    Write,
    /// The oldest output is carried out.
    CarryOut,
    /// A trial's version is measured.
    Measure(TrialId),
    /// A trial trains to where it shall.
    Train(TrialId),
}

/// A search and its host.
pub(super) struct World {
    text: String,
    store: MapStore,
    search: Search,
    /// All records, those of the journal first.
    pub(super) records: Vec<Record>,
    durable: usize,
    /// The folds over all records and over the durable ones, kept record by record.
    folds: Option<(SearchState, SearchState)>,
    outputs: VecDeque<Output>,
    runs: BTreeMap<TrialId, Run>,
    /// Trials that diverge at some rung.
    pub(super) diverging: BTreeSet<(TrialId, u32)>,
    pub(super) outcome: Option<Outcome>,
}

impl World {
    pub(super) fn new(text: &str) -> Self {
        let mut world = Self {
            text: text.to_owned(),
            store: MapStore::new(),
            search: start(text),
            records: Vec::new(),
            durable: 0,
            folds: None,
            outputs: VecDeque::new(),
            runs: BTreeMap::new(),
            diverging: BTreeSet::new(),
            outcome: None,
        };
        world.input(Input::Begin);
        world
    }

    pub(super) fn state(&self) -> &SearchState {
        self.search.state()
    }

    pub(super) fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    /// Contributions of all runs.
    pub(super) fn spent(&self) -> u64 {
        self.runs.values().map(|run| run.contributions).sum()
    }

    pub(super) fn bodies(&self) -> Vec<RecordBody> {
        self.records.iter().map(|record| record.body.clone()).collect()
    }

    /// Everything that may happen, in an order that follows from the state of search and host alone.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        steps.extend((self.durable < self.records.len()).then_some(Step::Write));
        steps.extend((!self.outputs.is_empty()).then_some(Step::CarryOut));
        let measuring = self.runs.iter().filter(|(_, run)| run.measuring.is_some() && !run.ended);
        steps.extend(measuring.map(|(trial, _)| Step::Measure(*trial)));
        // A run that has ended says so when it is to go on.
        let at_work = self.runs.iter().filter(|(_, run)| run.until > 0 && (!run.ended || run.diverged));
        steps.extend(at_work.map(|(trial, _)| Step::Train(*trial)));
        steps
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Write => {
                let record = &self.records[self.durable];
                let written = journal::write(self.store.journal(), std::slice::from_ref(record));
                let position = written.expect("the map takes everything").expect("a record");
                self.durable += 1;
                let record = record.clone();
                self.folds = self.folds.take().map(|(all, mut durable)| {
                    if record.position.0 > 0 {
                        durable.apply(&record).expect("its own record");
                    }
                    (all, durable)
                });
                self.input(Input::Written { position });
            }
            Step::CarryOut => {
                let output = self.outputs.pop_front().expect("a step that may happen");
                self.carry_out(output);
            }
            Step::Measure(trial) => {
                let run = self.runs.get_mut(&trial).expect("a step that may happen");
                let version = run.measuring.take().expect("a step that may happen");
                let accuracy = curve(&run.config, version.0);
                self.input(Input::Measured { trial, version, accuracy, loss: 1.0 - accuracy });
            }
            Step::Train(trial) => {
                let run = self.runs.get_mut(&trial).expect("a step that may happen");
                let until = std::mem::take(&mut run.until);
                let rung = self.search.state().trial(trial).expect("its run was made").rung;
                run.diverged |= self.diverging.contains(&(trial, rung));
                if run.diverged {
                    run.ended = true;
                    return self.input(Input::Diverged { trial, reason: "the model stopped being finite".to_owned() });
                }
                run.contributions = run.contributions.max(until);
                let contributions = run.contributions;
                self.input(Input::Reached { trial, contributions, version: ModelVersion(contributions) });
            }
        }
    }

    /// The process is killed and starts again. `kept` records that were not durable survive nevertheless.
    pub(super) fn kill(&mut self, kept: usize) {
        let kept = kept.min(self.records.len() - self.durable);
        let survivors = self.records[self.durable..self.durable + kept].to_vec();
        journal::write(self.store.journal(), &survivors).expect("the map takes everything");
        let records = journal::read(self.store.journal()).expect("as written");
        assert_eq!(records, self.records[..self.durable + kept]);
        self.durable = records.len();
        self.search = match records.is_empty() {
            // `search start` was not answered: the operator asks again.
            true => start(&self.text),
            false => Search::restore(&records).expect("its own records"),
        };
        self.records = records;
        let fold = (!self.records.is_empty()).then(|| SearchState::fold(&self.records).expect("its own records"));
        self.folds = fold.map(|fold| (fold.clone(), fold));
        self.outputs.clear();
        for run in self.runs.values_mut() {
            (run.until, run.measuring) = (0, None);
        }
        self.input(Input::Begin);
    }

    /// A run is deleted under the search.
    pub(super) fn delete(&mut self, trial: TrialId) {
        if self.runs.remove(&trial).is_some() {
            self.outputs.retain(|output| trial_of(output) != Some(trial));
            self.input(Input::Gone { trial, reason: "its run was deleted".to_owned() });
        }
    }

    pub(super) fn input(&mut self, input: Input) {
        let mut later = Vec::new();
        for output in self.search.handle(NOW, input) {
            match output {
                Output::Append(record) => {
                    match &mut self.folds {
                        Some((all, _)) => all.apply(&record).expect("its own record"),
                        None => {
                            let first = SearchState::begin(&record).expect("its own record");
                            self.folds = Some((first.clone(), first));
                        }
                    }
                    self.records.push(record);
                }
                output => later.push(output),
            }
        }
        // The live state is the fold, and nothing leaves that the durable records do not bear out.
        let (fold, durable) = self.folds.as_ref().expect("begun");
        assert_eq!(self.search.state(), fold);
        assert!(fold.active() <= usize::try_from(fold.plan.spec.parallel).expect("few"));
        later.iter().for_each(|output| borne_out(output, durable));
        self.outputs.extend(later);
    }

    /// Carries an output out. A second time it changes nothing.
    fn carry_out(&mut self, output: Output) {
        let trial = trial_of(&output);
        if let Output::Make { trial, config, .. } = &output {
            let new = || Run { config: config.clone(), ..Run::default() };
            let run = self.runs.entry(*trial).or_insert_with(new);
            assert_eq!(run.config, *config, "a trial is another one after a restart");
            return;
        }
        if let Output::Finished(outcome) = output {
            self.outcome = Some(outcome);
            return;
        }
        let trial = trial.expect("an output for a trial");
        let origin_is_there = !matches!(&output, Output::Copy { from, .. } if !self.runs.contains_key(from));
        let Some(run) = self.runs.get_mut(&trial) else {
            // It was deleted, and the record of that was lost.
            let reason = "its run is not there".to_owned();
            return self.input(Input::Gone { trial, reason });
        };
        match output {
            Output::Copy { .. } if !origin_is_there => {
                let reason = "the trial to be copied is not there".to_owned();
                self.input(Input::Failed { trial, reason });
            }
            Output::Copy { rung, config, .. } => {
                if run.copies.insert(rung) {
                    run.config = config;
                } else {
                    assert_eq!(run.config, config, "a copy is another one after a restart");
                }
            }
            Output::Continue { until, .. } => run.until = until,
            Output::Hold { .. } => run.until = 0,
            Output::Measure { version, .. } => run.measuring = Some(version),
            Output::End { why, .. } => {
                (run.ended, run.until) = (true, 0);
                assert!(why != EndReason::Won || run.contributions > 0, "trial {trial} wins untrained");
            }
            Output::Append(_) | Output::Make { .. } | Output::Finished(_) => unreachable!("handled before"),
        }
    }
}

fn trial_of(output: &Output) -> Option<TrialId> {
    match output {
        Output::Append(_) | Output::Finished(_) => None,
        Output::Make { trial, .. }
        | Output::Copy { trial, .. }
        | Output::Continue { trial, .. }
        | Output::Hold { trial }
        | Output::Measure { trial, .. }
        | Output::End { trial, .. } => Some(*trial),
    }
}

/// Checks that an output rests on records that are durable.
fn borne_out(output: &Output, durable: &SearchState) {
    let trial = trial_of(output).map(|trial| durable.trial(trial).expect("its record is durable"));
    let holds = match (output, trial) {
        (Output::Continue { until, .. }, Some(trial)) => durable.plan.spec.contributions(trial.rung) >= *until,
        (Output::Measure { version, .. }, Some(trial)) => {
            trial.phase == (Phase::Measuring { version: *version })
                || trial.newest().is_some_and(|n| n.version == *version)
                || !trial.is_open()
        }
        (Output::Copy { rung, .. }, Some(trial)) => trial.copies.iter().any(|copy| copy.rung == *rung),
        (Output::End { .. }, Some(trial)) => !trial.is_open() || durable.outcome.is_some(),
        (Output::Finished(outcome), _) => durable.outcome == Some(*outcome),
        _ => true,
    };
    assert!(holds, "{output:?} left before its record was durable");
}

/// The accuracy of a configuration after some contributions: it rises towards a level of its own, with a little noise.
pub(super) fn curve(config: &str, contributions: u64) -> f64 {
    let drawn = |text: &str| {
        let [a, b, c, d, e, f, g, h, ..] = Digest::of(text.as_bytes()).0;
        SplitMix64::new(u64::from_le_bytes([a, b, c, d, e, f, g, h])).next_f64()
    };
    let table: toml::Table = config.parse().expect("a configuration");
    let settings = format!("{}{}", table["train"], table["model"]);
    let (level, speed) = (0.5 + 0.5 * drawn(&settings), 0.02 + 0.2 * drawn(&format!("speed {settings}")));
    let noise = 0.02 * (drawn(&format!("{contributions} {settings}")) - 0.5);
    level * (1.0 - (-speed * contributions as f64).exp()) + noise
}
