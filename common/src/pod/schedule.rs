//! How the stages of a pod take turns.

use serde::{Deserialize, Serialize};

/// When stages compute, and when they update their weights. M micro-batches make a step, after which each stage updates its
/// weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// One micro-batch at a time passes through all stages. The gradient is exact.
    Sequential,
    /// The micro-batches of a step follow each other, and the next step begins when all stages have updated (GPipe, Huang et al.
    /// 2019; in 1F1B order, which bounds the activations in flight). The gradient is exact.
    Flush,
    /// Micro-batches follow each other without an end (PipeDream, Narayanan et al. 2019).
    Pipelined(Weights),
}

/// Which weights a pipeline that never flushes computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// Always the newest: forward and backward pass of a micro-batch differ.
    Stale,
    /// The newest in the forward pass, and the same again in the backward pass (PipeDream).
    Stash,
    /// Those before the last update, of which every stage has the same: step t is computed with W(t - 1) (PipeDream-2BW, Narayanan
    /// et al. 2021).
    #[serde(rename = "2bw")]
    TwoVersions,
    /// In the forward pass the newest, moved on by as many updates as are missing (SpecTrain, Chen, Yang and Cheng 2018, but with the
    /// gradients of the update in progress that are there); in the backward pass the newest.
    Predict,
}

impl Schedule {
    /// Most micro-batches that stage `stage` of `stages` has in flight: forwarded, and not yet backward.
    #[must_use]
    pub fn in_flight(self, stage: u32, stages: u32, micro_batches: u32) -> u32 {
        let depth = stages.saturating_sub(stage).max(1);
        match self {
            Self::Sequential => 1,
            Self::Flush => depth.min(micro_batches.max(1)),
            Self::Pipelined(_) => depth,
        }
    }

    /// Versions of its weights that stage `stage` of `stages` holds at most, the newest included.
    #[must_use]
    pub fn versions(self, stage: u32, stages: u32, micro_batches: u32) -> u32 {
        match self {
            Self::Sequential | Self::Flush | Self::Pipelined(Weights::Stale) => 1,
            Self::Pipelined(Weights::Stash) => {
                1 + stages.saturating_sub(stage).saturating_sub(1).div_ceil(micro_batches.max(1))
            }
            // The newest and the one before it; or the newest and the last update.
            Self::Pipelined(Weights::TwoVersions | Weights::Predict) => 2,
        }
    }
}
