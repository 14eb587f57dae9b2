//! A long round on disk, as the native trainer writes and takes it up.

use anabranch_common::ids::Digest;
use anabranch_common::spec::TrainSpec;

use super::Native;
use crate::clock::Clock;
use crate::train::RoundResult;
use crate::train::optimizer::Optimizer;
use crate::train::round::{RoundFile, RoundState};

/// Writes a round now and then.
#[derive(Debug)]
pub(super) struct Keeper {
    file: RoundFile,
    /// Which round it is.
    of: Digest,
    clock: Clock,
    due_ms: u64,
}

impl Keeper {
    /// Of the round from the lease's base by `plan` and `seed` on a shard of `count` examples. The
    /// plan has the learning rate of the lease: a round never goes on at another one.
    pub(super) fn new(file: RoundFile, native: &Native, plan: &TrainSpec, seed: u64, count: usize) -> Self {
        let manifest = native.architecture.manifest.digest();
        let parts = (file.base(), plan, seed, count as u64, manifest);
        let of = Digest::of(&serde_json::to_vec(&parts).expect("numbers and digests always have a JSON form"));
        let due_ms = file.every_ms();
        Self { file, of, clock: Clock::start(), due_ms }
    }

    /// The state on disk, if it is of this round; it is put into `optimizer` and `model`.
    pub(super) fn take_up(&self, optimizer: &mut Optimizer, model: &mut Vec<f32>) -> Option<RoundState> {
        let mut state = self.file.take_up(self.of)?;
        let mut rest = state.vectors.split_off(2);
        let same_start = state.vectors.first().is_some_and(|start| start == model);
        let kept = state.vectors.pop().filter(|kept| same_start && kept.len() == model.len())?;
        if !optimizer.restore(&mut rest, state.powers) {
            return None;
        }
        *model = kept;
        tracing::info!(step = state.step, micro_batch = state.micro_batch, "resuming a round");
        Some(state)
    }

    /// After a step that is not the last: writes the state if it is time. A disk that refuses costs what would be lost in a
    /// crash, and nothing now.
    pub(super) fn keep(
        &mut self,
        base: &[f32],
        reached: &RoundResult,
        loss_sum: f64,
        micro_batch: u32,
        optimizer: &Optimizer,
    ) {
        if self.clock.now_ms() < self.due_ms {
            return;
        }
        let (of_optimizer, powers) = optimizer.state();
        let vectors: Vec<&[f32]> = [base, reached.end.as_slice()].into_iter().chain(of_optimizer).collect();
        let state = RoundState { of: self.of, micro_batch, step: reached.steps, loss_sum, vectors: Vec::new(), powers };
        match self.file.write(&state, &vectors) {
            Ok(()) => tracing::debug!(step = reached.steps, "the round is on disk"),
            Err(error) => tracing::warn!(%error, step = reached.steps, "the round cannot be written to disk"),
        }
        self.due_ms = self.clock.now_ms() + self.file.every_ms();
    }
}
