//! What must hold of a run's journal, record by record, and of what anyone is told about it: checked while a simulated
//! world goes on, by code that shares nothing with the coordinator's own fold.
//!
//! ```text
//!  appended(record) ─► Fold: closes, once, leases, sizes, rates, codecs, recall, memories, epochs, branches, evaluations, staleness
//!  told(verdict)    ─► durable                                              never before it is durable
//!  recovered(..)    ─► replay                                               the same records, chain and models again
//!  published(..)    ─► finite, replay                                       nothing torn, nothing else than before
//! ```

mod branches;
mod closes;
mod codecs;
mod durable;
mod epochs;
mod evaluations;
mod finite;
mod hostile;
mod leases;
mod memory;
mod once;
mod rates;
mod recall;
mod replay;
mod sizes;
mod staleness;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position};
use anabranch_common::journal::{Chain, Lease, LeaseEnd, Record, RecordBody};
use anabranch_common::spec::RunSpec;
use anabranch_common::update::{MemoryMark, UpdateKey, Verdict};
use anabranch_coordinator::store;

pub use hostile::Attackers;
pub use once::Merged;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant} is broken: {what}")]
pub struct Violation {
    /// Its name: P1 to P10 as in docs/faults.md, or `leases`, `sizes`, `rates`, `codecs`, `epochs`, `branches`,
    /// `closes`, `evaluations`, `memories`, `recall`, `staleness`, `verdicts`; of pods see [`super::pods`],
    /// of searches [`super::search`].
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// The outcome of a check.
pub type Checked = Result<(), Violation>;

pub(crate) fn broken(invariant: &'static str, what: impl Into<String>) -> Checked {
    Err(Violation { invariant, what: what.into() })
}

pub(crate) fn ensure(holds: bool, invariant: &'static str, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { broken(invariant, what()) }
}

/// Everything that the records up to one position say, as far as a check needs it.
#[derive(Debug, Default)]
struct Fold {
    chain: Chain,
    version: ModelVersion,
    branch: Option<BranchId>,
    spec: Option<RunSpec>,
    closes: closes::Closes,
    once: once::Once,
    leases: leases::Leases,
    epochs: epochs::Epochs,
    sizes: sizes::Sizes,
    rates: rates::Rates,
    codecs: codecs::Codecs,
    recallable: recall::Recallable,
    memories: memory::Memories,
    evaluations: evaluations::Evaluations,
    envelope: hostile::Envelope,
}

impl Fold {
    fn apply(&mut self, record: &Record, attackers: &Attackers) -> Checked {
        let before = self.version;
        branches::check(self.branch, record)?;
        staleness::check(self.spec.as_ref(), before, record)?;
        staleness::refused(self.spec.as_ref(), before, record, &self.leases, &self.closes)?;
        self.closes.apply(self.spec.as_ref(), before, record)?;
        self.once.apply(self.spec.as_ref(), before, record)?;
        let in_pods = self.spec.as_ref().is_some_and(|spec| spec.pod.is_some());
        self.leases.apply(record, before, in_pods)?;
        self.epochs.apply(record)?;
        self.sizes.apply(self.spec.as_ref(), record)?;
        self.rates.apply(self.spec.as_ref(), record)?;
        self.codecs.apply(self.spec.as_ref(), record)?;
        self.recallable.apply(self.spec.as_ref(), record)?;
        self.memories.apply(self.spec.as_ref(), record)?;
        self.evaluations.apply(record)?;
        self.envelope.apply(attackers, self.spec.as_ref(), record)?;
        match &record.body {
            RecordBody::Genesis { branch, spec, .. } => {
                (self.branch, self.spec) = (Some(*branch), Some((**spec).clone()));
            }
            RecordBody::ConfigChanged { spec } => self.spec = Some((**spec).clone()),
            RecordBody::Closed(_) => self.version = self.version.next(),
            RecordBody::Imported { version, .. } => self.version = *version,
            RecordBody::Branched { branch, version, .. } => (self.branch, self.version) = (Some(*branch), *version),
            _ => {}
        }
        let digest = record.digest().map_err(|error| replay::unreadable(record, &error))?;
        let (weight, version) = record.chain_inputs(before);
        self.chain = self.chain.extend(digest, weight, version);
        Ok(())
    }
}

/// A lease that has ended without an update.
#[derive(Debug, Clone, PartialEq)]
pub struct EndedLease {
    /// The lease.
    pub lease: Lease,
    /// How it ended.
    pub why: LeaseEnd,
    /// How stale an update under it would have been.
    pub stale_by: u64,
    /// Whether it was of the current branch.
    pub is_of_branch: bool,
}

/// Watches one run, over all the lives of its coordinator.
#[derive(Debug, Default)]
pub struct Journal {
    records: Vec<Arc<Record>>,
    chains: Vec<Chain>,
    /// How many records there were at each start of a process that went on from them.
    starts: BTreeSet<usize>,
    fold: Fold,
    durable: durable::Durable,
    models: replay::Models,
    /// What agents train from: another vector where the run has a published track.
    bases: replay::Models,
    welcomes: epochs::Welcomes,
    heard: once::Heard,
    attackers: Attackers,
    /// Leases that ended, which nobody has looked at.
    ended: Vec<EndedLease>,
    /// What users are given of published versions, on all branches.
    served: BTreeSet<(ModelVersion, Digest)>,
}

impl Journal {
    /// Watches a world in which some agents are hostile.
    #[must_use]
    pub fn with(attackers: Attackers) -> Self {
        Self { attackers, ..Self::default() }
    }

    /// Watches the run of a trial: an agent that has failed to evaluate the version that is to be measured is asked again.
    #[must_use]
    pub fn of_trial() -> Self {
        let fold = Fold { evaluations: evaluations::Evaluations::of_trial(), ..Fold::default() };
        Self { fold, ..Self::default() }
    }

    /// The coordinator has decided on a record. It may still be lost.
    ///
    /// # Errors
    /// It breaks an invariant.
    pub fn appended(&mut self, record: &Arc<Record>) -> Checked {
        let next = self.records.len() as u64;
        ensure(record.position == Position(next), "P2", || {
            format!("record {} where record {next} comes next", record.position)
        })?;
        self.fold.apply(record, &self.attackers)?;
        if let RecordBody::LeaseEnded { lease, why } = &record.body
            && let Some(lease) = self.fold.leases.granted(*lease)
        {
            let stale_by = self.fold.version.0.saturating_sub(lease.base_version.0);
            let is_of_branch = self.fold.branch == Some(lease.branch);
            self.ended.push(EndedLease { lease: lease.clone(), why: *why, stale_by, is_of_branch });
        }
        self.records.push(Arc::clone(record));
        self.chains.push(self.fold.chain);
        Ok(())
    }

    /// The coordinator has looked at what is due, at this virtual time.
    ///
    /// # Errors
    /// Something has been due for too long.
    pub fn looked(&mut self, now_ms: u64) -> Checked {
        let Fold { spec, version, closes, .. } = &mut self.fold;
        closes.looked(spec.as_ref(), *version, now_ms)
    }

    /// A sync has succeeded that covers everything up to here.
    pub fn synced(&mut self, upto: Position) {
        self.durable.synced(upto);
    }

    /// The coordinator tells an agent its verdict.
    ///
    /// # Errors
    /// The record behind it is not durable, or says something else.
    pub fn told(&mut self, key: UpdateKey, verdict: &Verdict) -> Checked {
        self.durable.told(self.fold.once.position(key), key, verdict)?;
        self.fold.once.told(key, verdict)
    }

    /// An agent hears a verdict. Whoever heard one never hears another.
    ///
    /// # Errors
    /// It heard another before.
    pub fn heard(&mut self, key: UpdateKey, verdict: &Verdict) -> Checked {
        self.heard.heard(key, verdict)
    }

    /// An incarnation of an agent is told its epoch.
    ///
    /// # Errors
    /// Another incarnation had it.
    pub fn welcomed(&mut self, agent: AgentId, incarnation: Incarnation, epoch: Epoch) -> Checked {
        self.welcomes.welcomed(agent, incarnation, epoch)
    }

    /// A version can be fetched from now on, of which agents train from `base`. The newest one is `model`.
    ///
    /// # Errors
    /// One of them is not finite, or not what this version was before.
    pub fn published(
        &mut self,
        (version, digest): (ModelVersion, Digest),
        base: &[f32],
        newest: ModelVersion,
        model: &[f32],
    ) -> Checked {
        finite::check(version, digest, base)?;
        finite::check(newest, Digest::of_f32(model), model)?;
        self.fold.envelope.check(&self.attackers, newest, model)?;
        self.bases.seen(self.fold.branch, version, digest)?;
        self.models.seen(self.fold.branch, newest, Digest::of_f32(model))
    }

    /// What users are given of a version that is published has this digest. `offered`: that of what agents are to evaluate of
    /// it, if that can be fetched.
    ///
    /// # Errors
    /// They are to evaluate another vector.
    pub fn served(
        &mut self,
        version: ModelVersion,
        served: Digest,
        offered: Option<(ModelVersion, Digest)>,
    ) -> Checked {
        self.served.insert((version, served));
        offered.map_or(Ok(()), |(version, offered)| self.evaluates(version, offered))
    }

    /// An agent has this memory of its updates, with these values where it is not 0.
    ///
    /// # Errors
    /// Its accepted updates make another one.
    pub fn remembers(&self, mark: MemoryMark, values: Option<&[f32]>) -> Checked {
        self.fold.memories.are(mark, values)
    }

    /// An agent is to evaluate, or evaluates, a vector with this digest as this version.
    ///
    /// # Errors
    /// It is not what users are given of this version, on any branch.
    pub fn evaluates(&self, version: ModelVersion, digest: Digest) -> Checked {
        ensure(self.served.contains(&(version, digest)), "evaluations", || {
            format!("{} is evaluated as version {version}, of which users are given another vector", digest.short())
        })
    }

    /// A coordinator has recovered up to `position`. Records after it are gone, and none of them was told to anyone.
    ///
    /// # Errors
    /// A durable record is missing, or chain or model are not what they were.
    pub fn recovered(&mut self, position: Position, chain: Chain, version: ModelVersion, model: &[f32]) -> Checked {
        self.recovered_records(position, chain, version)?;
        let digest = Digest::of_f32(model);
        finite::check(version, digest, model)?;
        self.fold.envelope.check(&self.attackers, version, model)?;
        self.models.seen(self.fold.branch, version, digest)
    }

    /// The same of a run whose model has overflowed: the records after the last finite version make no model.
    ///
    /// # Errors
    /// A durable record is missing, or the chain is not what it was.
    pub fn recovered_records(&mut self, position: Position, chain: Chain, version: ModelVersion) -> Checked {
        self.durable.recovered(position)?;
        let kept = usize::try_from(position.0 + 1).unwrap_or(usize::MAX);
        ensure(kept <= self.records.len(), "P2", || format!("recovered record {position}, which was never written"))?;
        ensure(self.chains.get(kept - 1) == Some(&chain), "P2", || format!("the chain at record {position} differs"))?;
        if kept < self.records.len() {
            self.records.truncate(kept);
            self.chains.truncate(kept);
            self.forget_fold();
            self.starts.retain(|at| *at < kept);
            let records = std::mem::take(&mut self.records);
            for (at, record) in records.iter().enumerate() {
                if self.starts.contains(&at) {
                    self.fold.evaluations.restarted();
                    self.fold.closes.restarted();
                }
                self.fold.apply(record, &self.attackers)?;
            }
            self.records = records;
        }
        self.starts.insert(kept);
        self.fold.evaluations.restarted();
        self.fold.closes.restarted();
        ensure(self.fold.version == version, "P2", || {
            format!("recovered version {version}, the records say {}", self.fold.version)
        })?;
        self.durable.synced(position);
        Ok(())
    }

    fn forget_fold(&mut self) {
        let evaluations = self.fold.evaluations.anew();
        self.fold = Fold { evaluations, ..Fold::default() };
    }

    /// It has recovered `base` as what agents train from since a version.
    ///
    /// # Errors
    /// That was another vector.
    pub fn recovered_base(&mut self, (version, base): (ModelVersion, &[f32])) -> Checked {
        let digest = Digest::of_f32(base);
        finite::check(version, digest, base)?;
        self.bases.seen(self.fold.branch, version, digest)
    }

    /// A store that somebody has damaged was read all the same. Unlike [`Journal::recovered`] this changes nothing.
    ///
    /// # Errors
    /// What was read is not what was written.
    pub fn is_as_written(
        &self,
        position: Position,
        chain: Chain,
        branch: BranchId,
        version: ModelVersion,
        model: &[f32],
    ) -> Checked {
        self.durable.recovered(position)?;
        let written = usize::try_from(position.0).ok().and_then(|index| self.chains.get(index));
        ensure(written == Some(&chain), "P2", || format!("the chain at record {position} differs"))?;
        let digest = Digest::of_f32(model);
        finite::check(version, digest, model)?;
        self.models.is(branch, version, digest)
    }

    /// There is no run in the store.
    ///
    /// # Errors
    /// There was one, durably.
    pub fn recovered_nothing(&mut self) -> Checked {
        self.durable.nothing()?;
        self.records.clear();
        self.chains.clear();
        self.starts.clear();
        self.forget_fold();
        Ok(())
    }

    /// The coordinator has made the record that is written as the one at `at`: a new one, or one that was seen before,
    /// while it waited for the writer.
    ///
    /// # Errors
    /// Its position repeats, or leaves one out, or it breaks another invariant.
    pub fn made(&mut self, at: Position, record: &Arc<Record>) -> Checked {
        ensure(record.position == at, "P2", || {
            format!("record {} where record {at} is to be written", record.position)
        })?;
        match usize::try_from(at.0).ok().and_then(|index| self.records.get(index)) {
            Some(before) => ensure(Arc::ptr_eq(before, record), "P2", || format!("a second record {at} was made")),
            None => self.appended(record),
        }
    }

    /// The verb of a stopped coordinator has appended records, or would have if the process had not been cut: reads
    /// those that are there.
    ///
    /// # Errors
    /// One of them breaks an invariant.
    pub fn read_rest(&mut self, journal: &dyn store::Journal) -> Checked {
        while let Some(bytes) = journal.record(self.next()).ok().flatten()
            && let Ok(record) = Record::from_bytes(&bytes)
        {
            self.appended(&Arc::new(record))?;
        }
        Ok(())
    }

    /// The coordinator has heard that an agent cannot evaluate the version that it was asked for.
    ///
    /// # Errors
    /// It did not listen: nothing is recorded, and no other evaluator will be asked.
    pub fn heard_of_failure(&self, agent: AgentId, version: ModelVersion) -> Checked {
        let recorded = self.fold.evaluations.has_failed(agent, version);
        ensure(recorded, "P6", || format!("{} cannot evaluate version {version}, which is ignored", agent.short()))
    }

    /// Measurements of the model that were recorded, over all branches.
    #[must_use]
    pub fn aggregates(&self) -> u64 {
        self.fold.evaluations.aggregates()
    }

    /// At the end: everything that an agent was told is in the journal.
    ///
    /// # Errors
    /// Something is not.
    pub fn audit(&self) -> Checked {
        self.heard.audit(&self.fold.once)
    }

    /// Returns the records, the oldest first.
    #[must_use]
    pub fn records(&self) -> &[Arc<Record>] {
        &self.records
    }

    /// Returns the digest of all records and of what came of them.
    #[must_use]
    pub fn chain(&self) -> Chain {
        self.fold.chain
    }

    /// The position after the last record.
    #[must_use]
    pub fn next(&self) -> Position {
        Position(self.records.len() as u64)
    }

    /// Takes the leases that have ended since the last look.
    pub fn take_ended(&mut self) -> Vec<EndedLease> {
        std::mem::take(&mut self.ended)
    }

    /// Returns the leases that are held, and were over before then.
    pub fn overdue(&self, unix_ms: u64) -> impl Iterator<Item = &Lease> {
        self.fold.leases.overdue(unix_ms)
    }

    /// A lease that was granted.
    #[must_use]
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.fold.leases.granted(id)
    }

    /// The digest of each version that was seen, of the current branch.
    #[must_use]
    pub fn models(&self) -> BTreeMap<u64, Digest> {
        self.models.of(self.fold.branch)
    }

    /// What an agent was told about an update, if anything.
    #[must_use]
    pub fn verdict(&self, key: UpdateKey) -> Option<&Verdict> {
        self.heard.verdict(key)
    }

    /// Whether the journal has decided on an update.
    #[must_use]
    pub fn is_decided(&self, key: UpdateKey) -> bool {
        self.fold.once.position(key).is_some()
    }

    /// Updates that are merged in the current history, by lease and version, oldest first.
    #[must_use]
    pub fn merged(&self) -> &[Merged] {
        self.fold.once.merged()
    }

    /// How many versions behind each accepted update was, in the order of the journal.
    #[must_use]
    pub fn staleness(&self) -> Vec<u64> {
        self.fold.once.staleness()
    }

    /// Updates that agents heard to be accepted, and how many of those are not in the journal or twice.
    #[must_use]
    pub fn acknowledged(&self) -> (u64, u64) {
        self.heard.counts(&self.fold.once)
    }
}
