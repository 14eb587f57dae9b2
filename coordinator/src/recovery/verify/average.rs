//! The average that is kept beside a rule once more, plainly, from its description in
//! `anabranch_common::merge::averaged`.

use anabranch_common::ids::Digest;
use anabranch_common::merge::MergeSpec;

use super::own_state::Saved;
use crate::recovery::RecoveryError;

/// The average of the models since it began.
#[derive(Debug, Clone)]
pub(super) struct Average {
    closes: u64,
    mean: Vec<f32>,
}

impl Average {
    /// An average that begins with the next close; `None` if none is kept beside the rule.
    pub(super) fn of(spec: &MergeSpec, params: usize) -> Option<Self> {
        matches!(spec, MergeSpec::Averaged(_)).then(|| Self { closes: 0, mean: vec![0.0; params] })
    }

    /// What a checkpoint has saved of it.
    pub(super) fn load(saved: &Saved<'_>) -> Result<Option<Self>, RecoveryError> {
        let Some((vector, part)) = saved.average()? else { return Ok(None) };
        let closes = part[..].try_into().map(u64::from_le_bytes).map_err(|_| saved.different())?;
        Ok(Some(Self { closes, mean: saved.load(vector)? }))
    }

    /// The models before and after a close.
    #[expect(clippy::cast_possible_truncation, reason = "the average is f32")]
    pub(super) fn close(&mut self, before: &[f32], after: &[f32]) {
        if self.closes == 0 {
            self.mean = before.to_vec();
        }
        self.closes += 1;
        let part = (8.0 / (self.closes as f64 + 8.0)) as f32;
        for (at, x) in after.iter().enumerate() {
            let behind = x - self.mean[at];
            self.mean[at] += part * behind;
        }
    }

    /// Whether a checkpoint has saved this average.
    pub(super) fn is_in(&self, saved: &Saved<'_>) -> Result<bool, RecoveryError> {
        let Some((vector, part)) = saved.average()? else { return Ok(false) };
        Ok(*vector == Digest::of_f32(&self.mean) && part == self.closes.to_le_bytes())
    }
}
