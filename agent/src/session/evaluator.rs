//! Evaluations: which model is to be evaluated, and what is to be told of it.
//!
//! ```text
//!  requested ─► Fetching ─► Ready ─► (device free) ─► Evaluating ─► unsent ─► told
//!                  └─ while a round is computed ─┘
//! ```
//! The device computes rounds while a model is on its way. What the evaluation does cost is the time in which no round was
//! computed because of it: the coordinator is told that time, and asks less often the longer it is.

use std::sync::Arc;

use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::Evaluation;
use anabranch_common::limits;
use anabranch_common::plain::plain;

use super::replica::{Replica, Wanted};

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    /// The model is being fetched.
    Fetching(Wanted),
    /// The model is here, and the device computes a round.
    Ready(Wanted, Arc<[f32]>),
    /// The device evaluates it.
    Evaluating {
        wanted: Wanted,
        /// Whether the model belongs to the run's branch: only then is the result told.
        of_this_branch: bool,
    },
}

/// A result, and what it has cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Told {
    pub(super) evaluation: Evaluation,
    /// Time in which no round was computed because of it, in milliseconds.
    pub(super) cost_ms: u64,
}

/// At most one evaluation under way and one requested.
#[derive(Debug, Default)]
pub(super) struct Evaluator {
    requested: Option<Wanted>,
    stage: Stage,
    /// Time in which no round was computed because of the evaluation that is under way, in milliseconds.
    cost_ms: u64,
    unsent: Option<Told>,
    /// Why the latest evaluation failed, until one succeeds.
    problem: Option<String>,
}

impl Evaluator {
    /// Notes what the coordinator wants evaluated. A later request replaces an earlier one that has not begun.
    pub(super) fn request(&mut self, wanted: Wanted) {
        self.requested = Some(wanted);
    }

    /// Takes the request, to carry it out or to turn it down.
    pub(super) fn take_request(&mut self) -> Option<Wanted> {
        self.requested.take()
    }

    /// Takes what will not be evaluated because the device is not to be used: a request, or a model that is here.
    pub(super) fn turn_down(&mut self) -> Option<Wanted> {
        match std::mem::take(&mut self.stage) {
            Stage::Ready(wanted, _) => Some(wanted),
            stage => {
                self.stage = stage;
                self.requested.take()
            }
        }
    }

    /// Whether an evaluation is under way, or its model is here or on the way.
    pub(super) fn is_busy(&self) -> bool {
        !matches!(self.stage, Stage::Idle)
    }

    /// Whether the device evaluates.
    pub(super) fn is_evaluating(&self) -> bool {
        matches!(self.stage, Stage::Evaluating { .. })
    }

    /// Returns the model that is being fetched.
    pub(super) fn fetching(&self) -> Option<Wanted> {
        match self.stage {
            Stage::Fetching(wanted) => Some(wanted),
            Stage::Idle | Stage::Ready(..) | Stage::Evaluating { .. } => None,
        }
    }

    /// The model is being fetched from now on.
    pub(super) fn fetch(&mut self, wanted: Wanted) {
        (self.stage, self.cost_ms) = (Stage::Fetching(wanted), 0);
    }

    /// Takes the model over from `replica`, if it is there.
    pub(super) fn arrived(&mut self, replica: &Replica) {
        if let Stage::Fetching(wanted) = self.stage
            && let Some(content) = replica.content(wanted)
        {
            self.stage = Stage::Ready(wanted, content);
        }
    }

    /// Begins with the model that is here, with the device free. Returns it.
    pub(super) fn begin_ready(&mut self) -> Option<(Wanted, Arc<[f32]>)> {
        let Stage::Ready(wanted, content) = &self.stage else { return None };
        let (wanted, content) = (*wanted, Arc::clone(content));
        self.stage = Stage::Evaluating { wanted, of_this_branch: true };
        Some((wanted, content))
    }

    /// The device evaluates the base of a lease from now on.
    pub(super) fn begin(&mut self, wanted: Wanted) {
        (self.stage, self.cost_ms) = (Stage::Evaluating { wanted, of_this_branch: true }, 0);
    }

    /// Accounts for time in which no round was computed.
    pub(super) fn spent(&mut self, ms: u64) {
        if self.is_busy() {
            self.cost_ms = self.cost_ms.saturating_add(ms);
        }
    }

    /// Gives the fetch up. Returns the version that will not be evaluated.
    pub(super) fn give_up_fetch(&mut self) -> Option<ModelVersion> {
        let version = self.fetching()?.version;
        self.stage = Stage::Idle;
        Some(version)
    }

    /// An evaluation is complete. A result of this branch is kept until it can be sent.
    pub(super) fn evaluated(&mut self, evaluation: Evaluation) {
        if let Some(of_this_branch) = self.end(evaluation.version) {
            let told = Told { evaluation, cost_ms: self.cost_ms };
            self.unsent = of_this_branch.then_some(told).or(self.unsent.take());
            self.problem = None;
        }
    }

    /// An evaluation has failed. Returns whether the coordinator has to know.
    pub(super) fn failed(&mut self, version: ModelVersion) -> bool {
        self.end(version).unwrap_or(false)
    }

    /// Ends the evaluation of `version`. Returns whether it is of this branch; nothing if it is not under way.
    fn end(&mut self, version: ModelVersion) -> Option<bool> {
        match self.stage {
            Stage::Evaluating { wanted, of_this_branch } if wanted.version == version => {
                self.stage = Stage::Idle;
                Some(of_this_branch)
            }
            _ => None,
        }
    }

    /// Returns the result to send, once.
    pub(super) fn take_unsent(&mut self) -> Option<Told> {
        self.unsent.take()
    }

    /// Keeps why a version cannot be evaluated, and returns it as it may be sent.
    pub(super) fn cannot(&mut self, version: ModelVersion, why: &str) -> String {
        let problem = plain(why, limits::EVALUATION_REASON_BYTES);
        self.problem = Some(format!("version {version}: {problem}"));
        problem
    }

    /// Returns why the latest evaluation failed, until one succeeds.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Drops what belongs to another branch. The device finishes what it evaluates, for nobody.
    pub(super) fn change_branch(&mut self) {
        self.stop();
        self.requested = None;
        self.unsent = None;
        if let Stage::Evaluating { of_this_branch, .. } = &mut self.stage {
            *of_this_branch = false;
        }
    }

    /// Begins nothing that has not begun.
    pub(super) fn stop(&mut self) {
        if !self.is_evaluating() {
            self.stage = Stage::Idle;
        }
    }
}
