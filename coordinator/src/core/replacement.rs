//! Models that take the place of the newest one: a model from outside, and an earlier version on a new branch.
//!
//! ```text
//!  Import    no run ──► record 0 (see `beginning`)          a run ──► Imported: the next version
//!  RollBack  Branched: the earlier version again, on a new branch ──► a checkpoint, so that the next start is cheap
//! ```
//! Contributions that wait for a close are dropped with the model that they were made for. A copy of another trial's version
//! is an import, named by its rung.

use std::sync::Arc;

use anabranch_common::ids::{BranchId, Digest, ModelVersion, Position};
use anabranch_common::journal::{CopyMark, RecordBody};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::schema::SchemaError;

use super::Core;
use super::agent::AgentState;
use super::beginning::TensorOrder;
use super::command::Command;
use super::content::Content;
use super::event::RequestId;
use super::outstanding::Outstanding;
use super::round::Round;
use super::sizing::Pace;
use super::state::RunState;
use super::trial::TrialNews;

/// A version of the current history as recovery rebuilds it: a new branch can leave here.
#[derive(Debug, Clone, PartialEq)]
pub struct EarlierVersion {
    /// The branch that made it.
    pub branch: BranchId,
    /// The position at which it was made: the last one of the history before the new branch.
    pub position: Position,
    /// Its number.
    pub version: ModelVersion,
    /// Examples credited to the contributions that it is made of.
    pub examples: u64,
    /// Every value of it.
    pub model: Arc<Content>,
}

/// A model has taken the place of the newest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// Position of the record that says so.
    pub position: Position,
    /// The version that the model is.
    pub version: ModelVersion,
    /// The newest version before it. `None` where the run had no model.
    pub before: Option<ModelVersion>,
}

/// Why a model cannot take the place of the newest one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceError {
    /// Agents are connected, which hold leases on the model that would be replaced.
    #[error("agents are connected")]
    Serving,
    /// There is no earlier version without a run.
    #[error("the store holds no run")]
    NoRun,
    /// The model's tensors are not the run's.
    #[error("the imported tensors are not those of the run")]
    OtherManifest,
    /// The first model's tensors are not those of `[model]`.
    #[error("the imported tensors are not those of [model]: {0}")]
    OtherModel(String),
    /// The vector has another length than the manifest says.
    #[error("model of {found} values for a manifest of {expected}")]
    WrongLength {
        /// Parameters in the manifest.
        expected: usize,
        /// Length of the vector.
        found: usize,
    },
    /// A value, or the norm, is not finite.
    #[error("the model is not finite")]
    NotFinite,
    /// The run has ended.
    #[error("the run has ended with version {0}")]
    Finished(ModelVersion),
    /// A version that cannot be rebuilt.
    #[error("version {version} is not available; versions {oldest} to {newest} are")]
    Version {
        /// The one asked for.
        version: ModelVersion,
        /// The oldest that can be rebuilt.
        oldest: ModelVersion,
        /// The newest.
        newest: ModelVersion,
    },
    /// The new branch would have the identifier of one that there is.
    #[error("branch {0} exists already")]
    BranchTaken(BranchId),
    /// The description of the model does not fit a record.
    #[error("cannot be stored: {0}")]
    TooLong(#[from] SchemaError),
}

impl RunState {
    /// Another model is the next version. Work on the model that a copy replaces is not welcome any more.
    pub(super) fn import(&mut self, position: Position, version: ModelVersion, norm: f64, copied: Option<CopyMark>) {
        (self.version, self.base) = (version, version);
        self.round = Round::new(position);
        self.reference_norm = norm;
        if let Some(CopyMark { rung, .. }) = copied {
            self.copied = Some(rung);
            self.forget_leases();
            self.recent.forget();
        }
        self.forget_memories();
        self.forget_marks();
    }

    /// An earlier version is the newest one, on a new branch.
    pub(super) fn branch_off(&mut self, position: Position, branch: BranchId, version: ModelVersion) {
        self.branch = branch;
        (self.version, self.base) = (version, version);
        self.published = None;
        self.round = Round::new(position);
        self.finished = None;
        self.forget_leases();
        self.recent.forget();
        self.forget_memories();
        self.forget_marks();
        // Versions beyond it will be made again, and be other models. What was evaluated of this one was its average, if the
        // rule serves one; the average begins anew at its model.
        let holds = |of: ModelVersion| of < version || (of == version && !self.spec.merge.serves_average());
        self.evaluations.retain(|(_, evaluation)| holds(evaluation.version));
        self.aggregates.retain(|(_, aggregate)| holds(aggregate.version));
    }

    /// Nobody works on the newest model.
    fn forget_leases(&mut self) {
        self.outstanding = Outstanding::default();
        let has_leases = |agent: &AgentState| agent.pace.is_some() || agent.lease.is_some() || !agent.leases.is_empty();
        self.agents.change(has_leases, |agent| {
            agent.lease = None;
            agent.pace.iter_mut().for_each(Pace::forget_leases);
            agent.leases.clear();
        });
    }
}

/// Whether a model has as many values as its manifest says, all of them finite.
pub(super) fn check(manifest: &ModelManifest, model: &Content) -> Result<(), ReplaceError> {
    let (expected, found) = (manifest.params(), model.delta().len());
    if found != expected {
        return Err(ReplaceError::WrongLength { expected, found });
    }
    if model.is_finite() { Ok(()) } else { Err(ReplaceError::NotFinite) }
}

impl Core {
    pub(super) fn import(&mut self, request: RequestId, manifest: ModelManifest, digest: Digest, model: Arc<Content>) {
        let outcome = self.take_model(manifest, digest, model, None);
        self.gated(Command::Replaced { request, outcome });
    }

    /// Goes on from a copy of another trial's version, unless the journal says already that it does.
    pub(super) fn copy(&mut self, mark: CopyMark, manifest: ModelManifest, digest: Digest, model: Arc<Content>) {
        let Some(state) = &self.state else {
            let reason = ReplaceError::NoRun.to_string();
            return self.gated(Command::Trial(TrialNews::NotCopied { reason }));
        };
        let is_done = state.copied >= Some(mark.rung);
        let outcome = if is_done { Ok(()) } else { self.take_model(manifest, digest, model, Some(mark)).map(drop) };
        let news = match outcome {
            Ok(()) => TrialNews::Copied { rung: mark.rung },
            Err(error) => TrialNews::NotCopied { reason: error.to_string() },
        };
        self.gated(Command::Trial(news));
    }

    pub(super) fn roll_back(&mut self, request: RequestId, branch: BranchId, to: EarlierVersion) {
        let outcome = self.branch_off(branch, to);
        let is_done = outcome.is_ok();
        self.gated(Command::Replaced { request, outcome });
        if is_done {
            self.order_checkpoint();
        }
    }

    fn take_model(
        &mut self,
        manifest: ModelManifest,
        digest: Digest,
        model: Arc<Content>,
        copied: Option<CopyMark>,
    ) -> Result<Replaced, ReplaceError> {
        self.check_unserved()?;
        let Some(state) = &self.state else {
            if let Some(problem) = self.other_tensors(&manifest, TensorOrder::Any) {
                return Err(ReplaceError::OtherModel(problem));
            }
            return self.begin_run(manifest, digest, model);
        };
        check(&manifest, &model)?;
        if state.manifest != manifest {
            return Err(ReplaceError::OtherManifest);
        }
        if let Some((_, result)) = state.finished {
            return Err(ReplaceError::Finished(result));
        }
        let (before, version) = (state.version, state.version.next());
        let body = RecordBody::Imported { model: digest, version, norm: model.norm(), copied };
        let position = self.append_model(body, model, None);
        Ok(Replaced { position, version, before: Some(before) })
    }

    fn branch_off(&mut self, branch: BranchId, to: EarlierVersion) -> Result<Replaced, ReplaceError> {
        self.check_unserved()?;
        let state = self.state.as_ref().ok_or(ReplaceError::NoRun)?;
        let EarlierVersion { branch: parent, position: from, version, examples, model } = to;
        // It is at least the oldest that can be rebuilt, because recovery has rebuilt it.
        let (oldest, newest) = (self.checkpoints.oldest_rebuildable(), state.version);
        if version > newest || from > state.position {
            return Err(ReplaceError::Version { version, oldest, newest });
        }
        if branch == parent || branch == state.branch {
            return Err(ReplaceError::BranchTaken(branch));
        }
        check(&state.manifest, &model)?;
        let body = RecordBody::Branched { branch, from, version, norm: model.norm(), examples };
        let position = self.append_model(body, model, Some(parent));
        Ok(Replaced { position, version, before: Some(newest) })
    }

    /// Connected agents would go on with the model that they have.
    fn check_unserved(&self) -> Result<(), ReplaceError> {
        if self.peers.all().next().is_some() { Err(ReplaceError::Serving) } else { Ok(()) }
    }
}
