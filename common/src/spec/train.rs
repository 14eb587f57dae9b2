//! Bounds of a lease's size, and what agents are told of `[train]`.

use super::{AgentSpec, OptimizerSpec, RunSpec, TrainSpec, UploadSpec};

/// A sized lease has at most this many times `local_steps`, where `max_local_steps` says nothing.
pub const SIZED_STEPS: u32 = 16;

impl TrainSpec {
    /// Most steps of a lease.
    #[must_use]
    pub fn most_steps(&self) -> u32 {
        let most = match self.target_round_s {
            Some(_) => self.max_local_steps.unwrap_or(self.local_steps.saturating_mul(SIZED_STEPS)),
            None => self.local_steps,
        };
        most.max(1)
    }
}

impl OptimizerSpec {
    /// Returns the learning rate.
    #[must_use]
    pub fn lr(&self) -> f32 {
        match *self {
            Self::Sgd { lr, .. } | Self::AdamW { lr, .. } => lr,
        }
    }

    /// Returns how many vectors as long as the model its state has.
    #[must_use]
    pub fn state_vectors(&self) -> u32 {
        match *self {
            Self::Sgd { momentum, .. } => u32::from(momentum > 0.0),
            Self::AdamW { .. } => 2,
        }
    }

    /// Returns the same optimizer with another learning rate.
    #[must_use]
    pub fn with_lr(&self, new: f32) -> Self {
        let mut optimizer = self.clone();
        match &mut optimizer {
            Self::Sgd { lr, .. } | Self::AdamW { lr, .. } => *lr = new,
        }
        optimizer
    }
}

impl RunSpec {
    /// Returns what agents are told. How leases are sized, how the learning rate changes and which codecs
    /// there are for thin lines is left out: each lease brings its plan. The proximal term is the merge rule's.
    #[must_use]
    pub fn for_agents(&self) -> AgentSpec {
        let Self { name, seed, model, train, upload, pod, .. } = self.clone();
        let proximal_mu = self.merge.proximal_mu();
        let train = TrainSpec { target_round_s: None, max_local_steps: None, schedule: None, proximal_mu, ..train };
        let upload = UploadSpec { adaptive: None, ..upload };
        let in_turn = self.merge.barrier().is_some() || self.merge.keeps_memories();
        AgentSpec { name, seed, model, train, upload, in_turn, pod }
    }
}
