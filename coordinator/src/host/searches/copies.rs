//! Trials that go on from copies of others (`pbt`), one after the other.
//!
//! ```text
//!  Copy ─► Searches(Copy): the version of the other run ─► Park ─► its jobs are done ─► Runs(Reopen): another run.toml
//!                                                                                              │
//!  Copied ◄── its node: Imported is durable ◄── Event::Copy, before any agent is let in ◄── Opened: ConfigChanged
//! ```
//! Until then neither of the two trials has a lease. A kill in between leaves a run whose journal says how far it came: the
//! next process is given the order again, and does what is missing. The configuration comes first, since the next start would
//! bring it anyway. A copy whose rung is in the run's journal is done.

use std::collections::BTreeMap;

use anabranch_common::ids::{ModelVersion, RunId};
use anabranch_common::journal::CopyMark;

use super::{CopiedModel, News, SearchesJob};
use crate::core::command::ExitReason;
use crate::core::event::{Event, Now};
use crate::host::runs::{ConnectionEnd, Opening, RunsJob};
use crate::host::{Host, Output};
use crate::node::{self, Job, JobError, SpoolJob};
use crate::search::record::TrialId;
use crate::search::run_name;

/// Copies that are ordered and not durable, by the trial that goes on from each: at most one for each trial. The first one
/// is under way, and it alone holds a model.
#[derive(Debug, Default)]
pub(super) struct Copies(BTreeMap<TrialId, Copying>);

/// A copy.
#[derive(Debug)]
pub(super) struct Copying {
    rung: u32,
    from: TrialId,
    version: ModelVersion,
    config: String,
    step: Step,
}

/// How far a copy has come.
#[derive(Debug)]
enum Step {
    /// It is not its turn.
    Waits,
    /// The version of the other run is being rebuilt.
    Fetching,
    /// Its run is being closed, then opened with the other configuration.
    Reopening {
        /// The other run.
        from: RunId,
        /// Its version.
        model: Box<CopiedModel>,
    },
    /// Its record is being written.
    Writing,
}

impl Copying {
    /// An order.
    pub(super) fn new(rung: u32, from: TrialId, version: ModelVersion, config: String) -> Self {
        Self { rung, from, version, config, step: Step::Waits }
    }
}

impl Copies {
    /// Whether a trial goes on from a copy, or is copied.
    pub(super) fn concern(&self, trial: TrialId) -> bool {
        self.0.contains_key(&trial) || self.0.values().any(|copying| copying.from == trial)
    }
}

impl Host {
    /// Takes up an order.
    pub(super) fn order_copy(&mut self, now: Now, search: &str, trial: TrialId, copying: Copying) {
        let Some(serving) = self.serving_mut(search) else { return };
        let from = copying.from;
        serving.copies.0.insert(trial, copying);
        [trial, from].into_iter().for_each(|concerned| self.apply(now, search, concerned));
    }

    /// Begins the next copy, if it can. Forgets those of trials that are closed, and those that are in the journals.
    pub(super) fn pace_copies(&mut self, now: Now, search: &str) {
        self.forget_closed(now, search);
        while let Some((trial, rung, from, version)) = self.next_copy(search) {
            let (name, origin) = (run_name(search, trial), run_name(search, from));
            if [&name, &origin].into_iter().any(|name| self.opening.contains_key(name)) {
                return;
            }
            let is_done = |run| self.copied_rung(run) >= Some(rung);
            match (self.served_trial(&name), self.served_trial(&origin)) {
                (Some(run), _) if is_done(run) => self.end_copy(now, search, trial),
                (Some(_), Some(run)) => {
                    self.set_step(search, trial, Step::Fetching);
                    let search = search.to_owned();
                    return self.out.push(Output::Searches(SearchesJob::Copy { search, trial, run, version }));
                }
                (Some(_), None) => {
                    let reason = format!("run {origin}, which it was to go on from, is not served any more");
                    self.fail_copy(now, search, trial, reason);
                }
                (None, _) => {
                    let run = self.trial_run(&name);
                    let news = self.why_not_served(&name, run);
                    self.searches.news.push_back((name, news));
                    self.end_copy(now, search, trial);
                }
            }
        }
    }

    /// The first copy, unless it is under way.
    fn next_copy(&mut self, search: &str) -> Option<(TrialId, u32, TrialId, ModelVersion)> {
        if self.parking {
            return None;
        }
        let (trial, copying) = self.serving_mut(search)?.copies.0.first_key_value()?;
        let waits = matches!(copying.step, Step::Waits);
        waits.then_some((*trial, copying.rung, copying.from, copying.version))
    }

    fn forget_closed(&mut self, now: Now, search: &str) {
        let Some(serving) = self.serving_mut(search) else { return };
        let state = serving.search.state();
        let is_open = |trial: &TrialId| {
            state.outcome.is_none() && state.trials.iter().any(|known| known.id == *trial && known.is_open())
        };
        let closed: Vec<TrialId> = serving.copies.0.keys().copied().filter(|trial| !is_open(trial)).collect();
        closed.into_iter().for_each(|trial| self.end_copy(now, search, trial));
    }

    /// The run of a trial, if it is served.
    fn served_trial(&self, name: &str) -> Option<RunId> {
        let run = self.trial_run(name)?;
        self.nodes.get(&run).is_some_and(|node| !node.is_leaving()).then_some(run)
    }

    /// The rung of the newest copy that a run's journal has.
    fn copied_rung(&self, run: RunId) -> Option<u32> {
        self.nodes.get(&run)?.core().state()?.copied
    }

    fn set_step(&mut self, search: &str, trial: TrialId, step: Step) {
        if let Some(copying) = self.serving_mut(search).and_then(|serving| serving.copies.0.get_mut(&trial)) {
            copying.step = step;
        }
    }

    /// Forgets a copy: both trials do what was ordered.
    fn end_copy(&mut self, now: Now, search: &str, trial: TrialId) {
        let Some(copying) = self.serving_mut(search).and_then(|serving| serving.copies.0.remove(&trial)) else {
            return;
        };
        [trial, copying.from].into_iter().for_each(|concerned| self.apply(now, search, concerned));
    }

    fn fail_copy(&mut self, now: Now, search: &str, trial: TrialId, reason: String) {
        self.searches.news.push_back((run_name(search, trial), News::Failed(reason)));
        // It is held until the search has heard of it, which ends its run.
        let Some(copying) = self.serving_mut(search).and_then(|serving| serving.copies.0.remove(&trial)) else {
            return;
        };
        self.apply(now, search, copying.from);
    }

    /// The version of the other run is here: the trial's run is closed.
    pub(super) fn copy_fetched(
        &mut self,
        now: Now,
        search: &str,
        trial: TrialId,
        from: RunId,
        model: Result<Box<CopiedModel>, String>,
    ) {
        let copying = self.serving_mut(search).and_then(|serving| serving.copies.0.get_mut(&trial));
        let Some(copying) = copying.filter(|copying| matches!(copying.step, Step::Fetching)) else { return };
        match model {
            Ok(model) => {
                copying.step = Step::Reopening { from, model };
                // One that has ended meanwhile is told of by its node.
                if let Some(run) = self.served_trial(&run_name(search, trial)) {
                    self.tell(now, run, node::Input::Event(Event::Park));
                }
            }
            Err(reason) => {
                self.fail_copy(now, search, trial, reason);
                self.pace_copies(now, search);
            }
        }
    }

    /// Whether a run that has ended was closed for a copy: it is opened again.
    pub(in crate::host) fn closed_for_copy(&mut self, run: RunId, ended: &Result<ExitReason, JobError>) -> bool {
        if self.parking || !matches!(ended, Ok(ExitReason::Parked)) {
            return false;
        }
        let Some((search, trial)) = self.about.get(&run).and_then(super::trial_of) else { return false };
        let search = search.to_owned();
        let copying = self.serving_mut(&search).and_then(|serving| serving.copies.0.get(&trial));
        let config = copying.filter(|copying| matches!(copying.step, Step::Reopening { .. }));
        let Some(config) = config.map(|copying| copying.config.clone()) else { return false };
        let name = run_name(&search, trial);
        let why = format!("run {name} is opened again with another configuration; try again");
        self.drop_node(run, &why, ConnectionEnd::Closed);
        self.about.remove(&run);
        self.opening.insert(name.clone(), Opening::unasked());
        self.searches.reopening.insert(run, (name, config));
        self.reopen(run);
        true
    }

    /// Has a run opened again, once nothing is on its way to its node that is gone: what comes would be for the next one.
    pub(in crate::host) fn reopen(&mut self, run: RunId) {
        if self.jobs_out.contains_key(&run) {
            return;
        }
        if let Some((name, config)) = self.searches.reopening.remove(&run) {
            self.out.push(Output::Runs(RunsJob::Reopen { name, run, config }));
        }
    }

    /// A trial's run is open, and no agent is let in yet: it goes on from the copy, if it was closed for one.
    pub(super) fn opened_for_copy(&mut self, now: Now, search: &str, trial: TrialId, run: RunId) {
        let copying = self.serving_mut(search).and_then(|serving| serving.copies.0.get_mut(&trial));
        let Some(copying) = copying.filter(|copying| matches!(copying.step, Step::Reopening { .. })) else { return };
        let Step::Reopening { from, model } = std::mem::replace(&mut copying.step, Step::Writing) else { return };
        let mark = CopyMark { rung: copying.rung, from, version: copying.version };
        let CopiedModel { manifest, digest, content } = *model;
        self.tell(now, run, node::Input::Event(Event::Copy { mark, manifest, digest, model: content }));
    }

    /// The record of a copy is durable.
    pub(super) fn copied(&mut self, now: Now, search: &str, trial: TrialId, rung: u32) {
        let copying = self.serving_mut(search).and_then(|serving| serving.copies.0.get(&trial));
        if copying.is_some_and(|copying| copying.rung == rung && matches!(copying.step, Step::Writing)) {
            self.end_copy(now, search, trial);
            self.pace_copies(now, search);
        }
    }

    /// Counts a job of a run that will be answered.
    pub(in crate::host) fn note_job(&mut self, run: RunId, job: &Job) {
        if !matches!(job, Job::Spool(SpoolJob::Delete(_))) {
            *self.jobs_out.entry(run).or_default() += 1;
        }
    }

    /// A job of a run was answered.
    pub(in crate::host) fn note_done(&mut self, run: RunId) {
        if let Some(out) = self.jobs_out.get_mut(&run) {
            *out -= 1;
            if *out == 0 {
                self.jobs_out.remove(&run);
                self.reopen(run);
            }
        }
    }
}
