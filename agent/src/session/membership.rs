//! What the coordinator has told this agent of the run: its configuration, branch, phase, and the agent's epoch.

use anabranch_common::ids::{BranchId, Digest, Epoch, UpdateSeq};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::AgentSpec;
use anabranch_common::wire::message::{RunPhase, Welcome};


use super::event::Kept;

/// What the coordinator said in its latest welcome.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) spec: AgentSpec,
    pub(super) model: Option<(ModelManifest, Digest)>,
}

/// What a welcome changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Branch {
    /// The run is on the branch that this agent knows.
    Same,
    /// This agent knew none.
    First,
    /// The run is on another branch than this agent's work.
    Other,
}

/// This agent's place in the run.
#[derive(Debug)]
pub(super) struct Membership {
    terms: Option<Terms>,
    branch: Option<BranchId>,
    phase: RunPhase,
    epoch: Option<Epoch>,
    next_seq: UpdateSeq,
    kept_counter: Option<(Epoch, UpdateSeq)>,
}

impl Membership {
    /// Before the first welcome.
    pub(super) fn new(kept: &Kept) -> Self {
        Self {
            terms: None,
            branch: kept.branch,
            phase: RunPhase::Pending,
            epoch: None,
            next_seq: UpdateSeq(0),
            kept_counter: kept.counter,
        }
    }

    /// Takes branch and epoch from a welcome.
    pub(super) fn welcomed(&mut self, welcome: &Welcome) -> Branch {
        if self.epoch != Some(welcome.epoch) {
            self.epoch = Some(welcome.epoch);
            let kept = self.kept_counter.filter(|(epoch, _)| *epoch == welcome.epoch);
            self.next_seq = kept.map_or(UpdateSeq(0), |(_, seq)| seq);
        }
        match self.branch.replace(welcome.branch) {
            Some(branch) if branch == welcome.branch => Branch::Same,
            Some(_) => Branch::Other,
            None => Branch::First,
        }
    }

    /// Takes the terms of a welcome. Returns whether they ask for another trainer.
    pub(super) fn set_terms(&mut self, spec: AgentSpec, model: Option<(ModelManifest, Digest)>) -> bool {
        let rebuild = self.terms.as_ref().is_none_or(|terms| terms.spec.model != spec.model);
        self.terms = Some(Terms { spec, model });
        rebuild
    }

    /// The run's model is known.
    pub(super) fn set_model(&mut self, manifest: ModelManifest, digest: Digest) {
        if let Some(terms) = &mut self.terms {
            terms.model = Some((manifest, digest));
        }
    }

    /// Returns the terms, after the first welcome.
    pub(super) fn terms(&self) -> Option<&Terms> {
        self.terms.as_ref()
    }

    /// Numbers an update.
    pub(super) fn number(&mut self) -> (Epoch, UpdateSeq) {
        let epoch = self.epoch.expect("a lease comes only after a welcome");
        let seq = self.next_seq;
        self.next_seq = seq.next();
        (epoch, seq)
    }

    /// The run is in this phase now.
    pub(super) fn enter(&mut self, phase: RunPhase) {
        self.phase = phase;
    }

    pub(super) fn phase(&self) -> RunPhase {
        self.phase
    }

    pub(super) fn branch(&self) -> Option<BranchId> {
        self.branch
    }

    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }
}
