//! Delayed Nesterov once more, plainly, from its description in `anabranch_common::merge::delayed_nesterov`.

use anabranch_common::codec::Delta;
use anabranch_common::ids::Digest;
use anabranch_common::merge::MergeSpec;

use super::checker::add;
use super::own_state::Saved;
use crate::recovery::RecoveryError;

/// The rule's state.
#[derive(Debug, Clone)]
pub(super) struct DelayedNesterov {
    every: u32,
    beta: f32,
    /// Closes since the last step along the momentum.
    closes: u32,
    sum: Vec<f32>,
    momentum: Vec<f32>,
    /// w * delta of an update that waits; -0, which changes no number, where it has no entry.
    update: Option<Vec<f32>>,
}

impl DelayedNesterov {
    /// An empty state; `None` if the rule is another one.
    pub(super) fn of(spec: &MergeSpec, params: usize) -> Option<Self> {
        let MergeSpec::DelayedNesterov { buffer_size, momentum, .. } = spec else { return None };
        let zeros = vec![0.0; params];
        let (every, beta) = ((*buffer_size).max(1), *momentum);
        Some(Self { every, beta, closes: 0, sum: zeros.clone(), momentum: zeros, update: None })
    }

    /// Takes over what a checkpoint has saved.
    pub(super) fn load(&mut self, saved: &Saved<'_>) -> Result<(), RecoveryError> {
        let ([part], [sum, momentum, update @ ..]) = (&saved.parts()?[..], saved.vectors()) else {
            return Err(saved.different());
        };
        let closes = part[..].try_into().ok().map(u32::from_le_bytes).filter(|closes| *closes < self.every);
        self.closes = closes.ok_or_else(|| saved.different())?;
        (self.sum, self.momentum) = (saved.load(sum)?, saved.load(momentum)?);
        self.update = update.first().map(|digest| saved.load(digest)).transpose()?;
        Ok(())
    }

    pub(super) fn set(&mut self, spec: &MergeSpec) {
        if let MergeSpec::DelayedNesterov { momentum, .. } = spec {
            self.beta = *momentum;
        }
    }

    pub(super) fn contribute(&mut self, x: &[f32], delta: &Delta, weight: f32) {
        let update = self.update.get_or_insert_with(|| vec![-0.0; x.len()]);
        add(update, delta, weight);
    }

    pub(super) fn close(&mut self, x: &mut [f32]) {
        let Some(update) = self.update.take() else { return };
        self.closes += 1;
        let steps = self.closes == self.every;
        for at in 0..x.len() {
            x[at] += update[at];
            self.sum[at] += update[at];
            if steps {
                let decayed = self.beta * self.momentum[at];
                self.momentum[at] = decayed + self.sum[at];
                let step = self.beta * self.momentum[at];
                x[at] += step;
                self.sum[at] = 0.0;
            }
        }
        if steps {
            self.closes = 0;
        }
    }

    /// Whether a checkpoint has saved this state.
    pub(super) fn is_in(&self, saved: &Saved<'_>) -> Result<bool, RecoveryError> {
        let parts = saved.parts()?;
        let vectors = [&self.sum, &self.momentum].into_iter().chain(&self.update);
        let digests = vectors.map(|vector| Digest::of_f32(vector));
        Ok(digests.eq(saved.vectors().iter().copied()) && parts == [self.closes.to_le_bytes().to_vec()])
    }
}
