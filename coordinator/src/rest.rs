//! A coordinator at rest: the host of a stopped one takes one input, and its jobs run here, one after the other.
//!
//! ```text
//!  Rest::start ──► Host::start_at_rest ──► what is due (a close)    ─► written
//!  Rest::...   ──► one Input           ──► records, models, items   ─► written ──► the answer
//!                                      └─► a checkpoint, if ordered ─► written
//! ```
//! Nothing expires, is published, evaluated or checkpointed because time has passed, and nothing is pruned.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::{BranchId, Digest, ModelVersion, Position, RunId};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::RunSpec;
use anabranch_common::transfer::Budgets;
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse};

use crate::core::Options;
use crate::core::content::{Content, Reservation};
use crate::core::event::{Event, Now, RequestId};
use crate::core::replacement::{ReplaceError, Replaced};
use crate::host::{Host, Input, Output};
use crate::node::merge::Merger;
use crate::node::{Done, Job, JobError, Settings, write};
use crate::recovery::{self, Recovered, RecoveryError};
use crate::registry::{self, Registry, save};
use crate::store::Store;

/// Why a stopped coordinator did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// What is stored cannot be read.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// What was decided cannot be stored.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The core refuses.
    #[error(transparent)]
    Refused(#[from] ReplaceError),
    /// The rollback has happened, but not the checkpoint after it: the next start does without.
    #[error("rolled back to version {}, but the checkpoint cannot be written", done.version)]
    NoCheckpoint {
        /// What has happened.
        done: RolledBack,
        /// What has failed.
        #[source]
        error: JobError,
    },
    /// A mistake of this program.
    #[error("the coordinator gave no answer")]
    NoAnswer,
}

/// The run goes on from an earlier version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolledBack {
    /// The branch that counts now.
    pub branch: BranchId,
    /// Position of the record that starts it.
    pub position: Position,
    /// The last position of the branch it leaves that still counts.
    pub from: Position,
    /// The version it starts with.
    pub version: ModelVersion,
    /// The newest version before.
    pub before: ModelVersion,
}

/// The answer to an input.
#[derive(Debug)]
enum Answer {
    Operator(OperatorResponse),
    Replaced(Result<Replaced, ReplaceError>),
}

/// A stopped coordinator, which alone uses its store.
#[derive(Debug)]
pub struct Rest<'a> {
    store: &'a dyn Store,
    host: Host,
    run: RunId,
    merger: Merger,
    now: Now,
    /// The answer to the present input.
    answer: Option<Answer>,
}

impl<'a> Rest<'a> {
    /// Takes up what the store holds. A run keeps its journalled configuration; `spec` is that of a run that an import
    /// begins. A version whose contributions wait for their close alone is closed, durably, as at every start.
    ///
    /// # Errors
    /// The storage fails.
    pub fn start(
        store: &'a dyn Store,
        options: Options,
        spec: RunSpec,
        registry: Registry,
        recovered: Option<Recovered>,
        unix_ms: u64,
    ) -> Result<Self, RestError> {
        let now = Now { unix_ms, mono_ms: 0 };
        let settings = Settings { options, spec, budgets: Budgets::with_decoders(1) };
        let (run, mut host) = (settings.options.run, Host::new(registry));
        let outputs = host.start_at_rest(settings, recovered, now);
        let mut rest = Self { store, host, run, merger: Merger::default(), now, answer: None };
        rest.carry_out(outputs)?;
        Ok(rest)
    }

    /// Answers an operator as a running coordinator would. What has changed is durable when it returns.
    ///
    /// # Errors
    /// The storage fails.
    pub fn operate(&mut self, operation: impl Into<OperatorRequest>) -> Result<OperatorResponse, RestError> {
        match self.tell(Input::Operator { request: REQUEST, operation: operation.into() })? {
            Some(Answer::Operator(response)) => Ok(response),
            _ => Err(RestError::NoAnswer),
        }
    }

    /// Brings a model in, durably: as the run's next version, or as version 0 where the store holds no run.
    ///
    /// # Errors
    /// The model does not fit or is not finite, the run has ended, or the storage fails.
    pub fn import(&mut self, manifest: ModelManifest, model: Vec<f32>) -> Result<Replaced, RestError> {
        let digest = Digest::of_f32(&model);
        let model = Arc::new(Content::measure(Delta::Dense(model), Reservation::default()));
        self.replace(Event::Import { request: REQUEST, manifest, digest, model })
    }

    /// Starts `branch` from `version` of the current history, durably: the run goes on from there, also when it had ended.
    /// No record is removed; leases and waiting contributions of the old branch end with it. `branch` must be fresh.
    ///
    /// The checkpoint at the end is for the next start alone. When it cannot be written, the rollback has happened
    /// nevertheless: [`RestError::NoCheckpoint`] says so.
    ///
    /// # Errors
    /// There is no run, the version cannot be rebuilt (the error says which can), or the storage fails.
    pub fn roll_back(&mut self, version: ModelVersion, branch: BranchId) -> Result<RolledBack, RestError> {
        let to = recovery::earlier(self.store, version)?;
        let from = to.position;
        let rolled_back = |Replaced { position, version, before }| RolledBack {
            branch,
            position,
            from,
            version,
            before: before.unwrap_or(version),
        };
        match self.replace(Event::RollBack { request: REQUEST, branch, to }) {
            Ok(replaced) => Ok(rolled_back(replaced)),
            Err(RestError::Job(error)) => match self.answer.take() {
                Some(Answer::Replaced(Ok(replaced))) => {
                    Err(RestError::NoCheckpoint { done: rolled_back(replaced), error })
                }
                _ => Err(error.into()),
            },
            Err(error) => Err(error),
        }
    }

    fn replace(&mut self, event: Event) -> Result<Replaced, RestError> {
        match self.tell(Input::Replace { run: self.run, event })? {
            Some(Answer::Replaced(outcome)) => Ok(outcome?),
            _ => Err(RestError::NoAnswer),
        }
    }

    fn tell(&mut self, input: Input) -> Result<Option<Answer>, RestError> {
        self.answer = None;
        let outputs = self.host.handle(self.now, input);
        self.carry_out(outputs)?;
        Ok(self.answer.take())
    }

    /// Runs jobs until nothing is left to do. Keeps the answer that is given meanwhile, also where a later job fails.
    fn carry_out(&mut self, outputs: Vec<Output>) -> Result<(), RestError> {
        let mut waiting = VecDeque::from(outputs);
        while let Some(output) = waiting.pop_front() {
            match output {
                Output::Run { run, job } => {
                    if let Some(done) = self.run(job) {
                        waiting.extend(self.host.handle(self.now, Input::Done { run, done }));
                    }
                }
                Output::Save(group) => {
                    let done = registry::Done::Saved(save::save(self.store.catalogue(), group));
                    waiting.extend(self.host.handle(self.now, Input::Registry(done)));
                }
                Output::Reply { answer, .. } => self.answer = Some(Answer::Operator(answer.into_response())),
                Output::Replaced { outcome, .. } => self.answer = Some(Answer::Replaced(outcome)),
                Output::Ended { ended: Err(error), .. } | Output::Exit(Err(error)) => return Err(error.into()),
                // No agent is connected, and the process ends by itself.
                Output::ToPeer(_)
                | Output::List { .. }
                | Output::Sign(_)
                | Output::Show(_)
                | Output::Facts { .. }
                | Output::JoinReply { .. }
                | Output::Runs(_)
                | Output::Searches(_)
                | Output::Close { .. }
                | Output::Look { .. }
                | Output::Measure { .. }
                | Output::DeferJoin { .. }
                | Output::Ended { ended: Ok(_), .. }
                | Output::Exit(Ok(())) => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, job: Job) -> Option<Done> {
        match job {
            Job::Write(group) => Some(Done::Write(write::write(self.store, group))),
            Job::Merge(batch) => Some(Done::Merge(self.merger.run(batch))),
            Job::Checkpoint(job) => Some(Done::Checkpoint(job.write(self.store))),
            // Only agents cause them.
            Job::Decode(_) | Job::Spool(_) | Job::Pack(_) => None,
        }
    }
}

/// Of the one request at a time.
const REQUEST: RequestId = RequestId(0);
