//! What must hold of a search over configurations: of its journal, of the runs that are its trials, and of every kill of the
//! process that serves both. Shares records and `SEARCH.toml` with the product, and none of its decisions but by
//! `verified` and `replayed`, which compare the product with itself.
//!
//! | file | what must hold |
//! |---|---|
//! | `closed` | a trial is closed for what has happened to it, and for nothing else |
//! | `held` | a run gives leases only as far as durable records of the search let it go |
//! | `measured` | what was reached and measured is what the run's own journal says, of exactly that version |
//! | `orders` | a run is made, and a version rebuilt, for a durable record alone |
//! | `places` | at most `parallel` trials are active |
//! | `replayed` | the inputs that a journal holds lead to its decisions again, and to the same state |
//! | `verified` | the second implementation of the rules accepts the journal |
//! | `winner` | a search ends with a winner that was measured at `max`, and its runs end |

mod closed;
mod held;
mod measured;
mod orders;
mod places;
mod replayed;
mod verified;
mod winner;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anabranch_common::ids::{AgentId, Digest, Epoch, Incarnation, ModelVersion, Position, RunId};
use anabranch_common::journal::{Record as RunRecord, RecordBody as RunBody};
use anabranch_common::update::{UpdateKey, Verdict};
use anabranch_coordinator::node::PublishedModel;
use anabranch_coordinator::node::merge::ServedVector;
use anabranch_coordinator::recovery::{self, Recovered, RecoveryError};
use anabranch_coordinator::search::journal;
use anabranch_coordinator::search::record::{CloseReason, Record, RecordBody, TrialId};
use anabranch_coordinator::search::spec::SearchSpec;
use anabranch_coordinator::store::{self, Store};

use super::journal::{Checked, Journal, Violation, broken, ensure};
use super::same_bits;

/// A run of the process.
#[derive(Debug)]
struct Watched {
    name: String,
    journal: Journal,
    durable: Option<Position>,
}

/// Watches a search and its runs, over all the lives of their process.
#[derive(Debug, Default)]
pub struct SearchWatch {
    /// What the search has decided. The end of it may be lost.
    records: Vec<Record>,
    /// How many of them are durable.
    durable: usize,
    spec: Option<SearchSpec>,
    runs: BTreeMap<RunId, Watched>,
    answered: bool,
    /// Trials that come to nothing, and as what they are closed.
    diverging: BTreeMap<TrialId, CloseReason>,
    /// Trials whose runs an operator has stopped.
    gone: BTreeSet<TrialId>,
    /// Whether an operator has stopped the search.
    stoppable: bool,
}

/// A model as its merger has it: version, content, and digest of what users are given.
pub type Newest = (ModelVersion, Vec<f32>, Digest);

impl Watched {
    fn new(name: &str) -> Self {
        let name = name.to_owned();
        let watched = Self { name, journal: Journal::default(), durable: None };
        let journal = if watched.trial().is_some() { Journal::of_trial() } else { Journal::default() };
        Self { journal, ..watched }
    }

    /// What a store holds of the run is what its records make.
    fn is(&mut self, recovered: Option<&Recovered>, store: &dyn Store) -> Checked {
        let Some(found) = recovered else { return self.journal.recovered_nothing() };
        let version = found.state.version;
        let differs = |what: String| Violation { invariant: "P2", what: format!("run {}: {what}", self.name) };
        if found.model.overflowed().is_some() {
            let verified = recovery::verify(store).map_err(|error| differs(error.to_string()))?;
            ensure(verified.holds && verified.chain == found.chain.0, "P2", || {
                format!("run {} has overflowed, and its store does not hold: {:?}", self.name, verified.problem)
            })?;
            return self.journal.recovered_records(found.position, found.chain, version);
        }
        same_bits::check(store).map_err(|error| differs(format!("{error:#}")))?;
        self.journal.recovered(found.position, found.chain, version, found.model.model())?;
        self.journal.recovered_base(found.model.base())
    }

    /// Records that are durable.
    fn durable(&self) -> &[Arc<RunRecord>] {
        let count = self.durable.map_or(0, |position| usize::try_from(position.0 + 1).unwrap_or(usize::MAX));
        let records = self.journal.records();
        &records[..count.min(records.len())]
    }

    /// The trial that the run is, if it is one.
    fn trial(&self) -> Option<TrialId> {
        let (_, number) = self.name.rsplit_once('-')?;
        number.parse().ok().map(TrialId)
    }
}

impl SearchWatch {
    /// Watches a world in which these trials come to nothing, and are closed with that reason.
    #[must_use]
    pub fn new(diverging: BTreeMap<TrialId, CloseReason>) -> Self {
        Self { diverging, ..Self::default() }
    }

    fn run(&mut self, run: RunId) -> &mut Watched {
        self.runs.get_mut(&run).expect("a run is opened before anything comes of it")
    }

    fn of_trial(&self, trial: TrialId) -> Option<&Watched> {
        self.runs.values().find(|run| run.trial() == Some(trial))
    }

    fn durable_records(&self) -> &[Record] {
        &self.records[..self.durable]
    }

    /// A process has opened a run.
    ///
    /// # Errors
    /// What it has recovered is not what was written.
    pub fn run_opened(&mut self, run: RunId, name: &str, recovered: Option<&Recovered>, store: &dyn Store) -> Checked {
        let watched = self.runs.entry(run).or_insert_with(|| Watched::new(name));
        match recovered {
            None => watched.durable = None,
            Some(found) => watched.durable = Some(found.position),
        }
        watched.is(recovered, store)
    }

    /// A run has made a record.
    ///
    /// # Errors
    /// It breaks an invariant of runs, or is a lease that the search does not allow.
    pub fn made(&mut self, run: RunId, at: Position, record: &Arc<RunRecord>) -> Checked {
        let watched = self.run(run);
        let is_new = watched.journal.next() == at;
        watched.journal.made(at, record)?;
        if !is_new || !matches!(record.body, RunBody::LeaseGranted(_)) {
            return Ok(());
        }
        let (Some(watched), Some(spec)) = (self.runs.get(&run), &self.spec) else { return Ok(()) };
        match watched.trial() {
            Some(trial) => held::check(self.durable_records(), spec, trial, watched.journal.records()),
            None => Ok(()),
        }
    }

    /// Records of a run are durable.
    pub fn synced(&mut self, run: RunId, upto: Position) {
        let watched = self.run(run);
        watched.journal.synced(upto);
        watched.durable = watched.durable.max(Some(upto));
    }

    /// A run publishes a version, of which agents train from `base`.
    ///
    /// # Errors
    /// See [`Journal::published`] and [`Journal::served`].
    pub fn published(
        &mut self,
        run: RunId,
        model: &PublishedModel,
        served: &ServedVector,
        base: &[f32],
        (newest, content, given): &Newest,
    ) -> Checked {
        let journal = &mut self.run(run).journal;
        journal.published((model.version, model.digest), base, *newest, content)?;
        let offered = match served {
            ServedVector::Same => Some((model.version, model.digest)),
            ServedVector::Other => None,
            ServedVector::Ready(model) => Some((model.version, model.digest)),
        };
        journal.served(*newest, *given, offered)
    }

    /// A version of a run was rebuilt from its store.
    ///
    /// # Errors
    /// See [`Journal::served`].
    pub fn rebuilt(&mut self, run: RunId, version: ModelVersion, digest: Digest) -> Checked {
        self.run(run).journal.served(version, digest, None)
    }

    /// See [`Journal::evaluates`].
    ///
    /// # Errors
    /// The same.
    pub fn evaluates(&mut self, run: RunId, version: ModelVersion, digest: Digest) -> Checked {
        self.run(run).journal.evaluates(version, digest)
    }

    /// See [`Journal::told`].
    ///
    /// # Errors
    /// The same.
    pub fn told(&mut self, run: RunId, key: UpdateKey, verdict: &Verdict) -> Checked {
        self.run(run).journal.told(key, verdict)
    }

    /// See [`Journal::heard`].
    ///
    /// # Errors
    /// The same.
    pub fn heard(&mut self, run: RunId, key: UpdateKey, verdict: &Verdict) -> Checked {
        self.run(run).journal.heard(key, verdict)
    }

    /// See [`Journal::welcomed`].
    ///
    /// # Errors
    /// The same.
    pub fn welcomed(&mut self, run: RunId, agent: AgentId, incarnation: Incarnation, epoch: Epoch) -> Checked {
        self.run(run).journal.welcomed(agent, incarnation, epoch)
    }

    /// The search has decided on records, which are to be written.
    ///
    /// # Errors
    /// One of them breaks an invariant.
    pub fn decided(&mut self, records: &[Record]) -> Checked {
        for record in records {
            let next = Position(self.records.len() as u64);
            ensure(record.position == next, "search verify", || {
                format!("record {} of the search where record {next} comes next", record.position)
            })?;
            if let RecordBody::Started { path, search, .. } = &record.body {
                self.spec = SearchSpec::parse(Path::new(path), search).ok();
            }
            self.records.push(record.clone());
            let Some(spec) = &self.spec else { return broken("search verify", "a search without its start") };
            places::check(&self.records, spec)?;
            self.follows(record)?;
        }
        verified::check(&self.records)?;
        replayed::check(&self.records)
    }

    fn follows(&self, record: &Record) -> Checked {
        match &record.body {
            RecordBody::Reached { trial, contributions, version, .. } => {
                let run = self.of_trial(*trial);
                measured::reached(run.map_or(&[][..], Watched::durable), *contributions, *version)
            }
            RecordBody::Measured { trial, rung, version, metric } => {
                let run = self.of_trial(*trial);
                let of_run = run.map_or(&[][..], Watched::durable);
                measured::measured(&self.records, of_run, (*trial, *rung), *version, *metric)
            }
            RecordBody::Closed { trial, why, reason } => {
                closed::check(*why, reason, self.diverging.get(trial).copied(), self.gone.contains(trial))
            }
            RecordBody::Finished { stopped, .. } => ensure(self.stoppable || !stopped, "search winner", || {
                "the search says that it was stopped, and nobody has asked for that".into()
            }),
            _ => Ok(()),
        }
    }

    /// Records up to this one are durable.
    pub fn durable(&mut self, upto: Position) {
        self.durable = self.durable.max(usize::try_from(upto.0 + 1).unwrap_or(usize::MAX)).min(self.records.len());
    }

    /// A process has read the journal that the one before has left.
    ///
    /// # Errors
    /// A durable record is missing, or one is there that was never written.
    pub fn restored(&mut self, records: &[Record]) -> Checked {
        ensure(self.durable <= records.len(), "P3", || {
            format!("{} records of the search are there, and {} were durable", records.len(), self.durable)
        })?;
        let is_prefix = self.records.get(..records.len()) == Some(records);
        ensure(is_prefix, "search replay", || "the search's journal is not what was written".into())?;
        ensure(!records.is_empty() || !self.answered, "P3", || "a search that was answered is gone".into())?;
        self.records.truncate(records.len());
        self.durable = records.len();
        if records.is_empty() { Ok(()) } else { replayed::check(records) }
    }

    /// The operator has heard that the search has started.
    ///
    /// # Errors
    /// Its start is not durable.
    pub fn answered(&mut self) -> Checked {
        self.answered = true;
        ensure(self.durable > 0, "P3", || "the start of a search is answered before it is durable".into())
    }

    /// The run of a trial is to be made.
    ///
    /// # Errors
    /// No durable record says so.
    pub fn creates(&self, name: &str) -> Checked {
        orders::creates(self.durable_records(), name)
    }

    /// A version of a trial is to be rebuilt, so that it is measured.
    ///
    /// # Errors
    /// No durable record says so.
    pub fn measures(&self, trial: TrialId, version: ModelVersion) -> Checked {
        orders::measures(self.durable_records(), trial, version)
    }

    /// An operator stops the run of a trial.
    pub fn may_be_gone(&mut self, trial: TrialId) {
        self.gone.insert(trial);
    }

    /// An operator stops the search.
    pub fn may_be_stopped(&mut self) {
        self.stoppable = true;
    }

    /// At the end: a store has the bits that the run's records make, and what agents were told.
    ///
    /// # Errors
    /// It has not.
    pub fn audit_run(&mut self, run: RunId, store: &dyn Store) -> Checked {
        let watched = self.run(run);
        let recovered = match recovery::recover(store) {
            Ok(found) => Some(found),
            Err(RecoveryError::Empty) => None,
            Err(error) => return broken("P2", format!("the audit of run {}: {error}", watched.name)),
        };
        watched.is(recovered.as_ref(), store)?;
        watched.journal.audit()
    }

    /// At the end: the journal is what was decided, and the search has ended as it must.
    ///
    /// # Errors
    /// It is not, or has not.
    pub fn audit(&mut self, journal: &dyn store::Journal) -> Checked {
        let records = match journal::read(journal) {
            Ok(records) => records,
            Err(error) => return broken("search replay", format!("the journal cannot be read: {error}")),
        };
        self.restored(&records)?;
        let due = verified::check(&records)?;
        ensure(due.is_none(), "search verify", || format!("the search has ended, and {due:?} is due"))?;
        let Some(spec) = &self.spec else { return broken("search winner", "there is no search") };
        let run_of = |trial| self.of_trial(trial).map_or(&[][..], |run| run.journal.records());
        winner::check(&records, spec, &self.gone, run_of)
    }

    /// Updates that agents heard to be accepted, and how many of those are not in the journals or twice.
    #[must_use]
    pub fn acknowledged(&self) -> (u64, u64) {
        let counts = self.runs.values().map(|run| run.journal.acknowledged());
        counts.fold((0, 0), |(all, lost), (more, gone)| (all + more, lost + gone))
    }

    /// Versions of all runs together.
    #[must_use]
    pub fn versions(&self) -> u64 {
        let closes = |run: &Watched| {
            run.journal.records().iter().filter(|record| matches!(record.body, RunBody::Closed(_))).count() as u64
        };
        self.runs.values().map(closes).sum()
    }

    fn count(&self, of: impl Fn(&RecordBody) -> bool) -> u64 {
        self.records.iter().filter(|record| of(&record.body)).count() as u64
    }

    /// Measurements of trials.
    #[must_use]
    pub fn measured(&self) -> u64 {
        self.count(|body| matches!(body, RecordBody::Measured { .. }))
    }

    /// Trials that were made.
    #[must_use]
    pub fn trials(&self) -> u64 {
        self.count(|body| matches!(body, RecordBody::Trial { .. }))
    }

    /// Trials that were closed.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.count(|body| matches!(body, RecordBody::Closed { .. }))
    }

    /// The winner, once there is one.
    #[must_use]
    pub fn winner(&self) -> Option<u32> {
        match self.records.last()?.body {
            RecordBody::Finished { winner, .. } => winner.map(|winner| winner.0),
            _ => None,
        }
    }

    /// What was decided, without times.
    #[must_use]
    pub fn decisions(&self) -> Vec<String> {
        self.records.iter().map(|record| format!("{:?}", record.body)).collect()
    }
}
