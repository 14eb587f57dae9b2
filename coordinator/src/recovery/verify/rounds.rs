//! The rules behind a barrier once more, plainly, from their descriptions in `anabranch_common::merge::{fedavg, fedavgm,
//! fedadam}`.

use anabranch_common::codec::Delta;
use anabranch_common::ids::Digest;
use anabranch_common::journal::Contribution;
use anabranch_common::merge::MergeSpec;

use super::checker::add;
use super::own_state::Saved;
use crate::recovery::RecoveryError;

/// How the mean of a round becomes a step.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The mean itself, times this.
    Mean(f64),
    /// Along a momentum with this decay.
    Momentum { lr: f64, beta: f64 },
    /// Adam without bias corrections.
    Adam { lr: f64, betas: [f64; 2], tau: f64 },
}

/// The rule's state.
#[derive(Debug, Clone)]
pub(super) struct Rounds {
    step: Step,
    /// Examples behind what waits.
    n: u64,
    waiting: Vec<f32>,
    /// The momentum, or the first moment and the second.
    moments: Vec<Vec<f32>>,
}

fn step_of(spec: &MergeSpec) -> Option<Step> {
    match spec {
        MergeSpec::FedAvg { server_lr, .. } | MergeSpec::FedProx { server_lr, .. } => {
            Some(Step::Mean(f64::from(*server_lr)))
        }
        MergeSpec::SyncSgd { .. } => Some(Step::Mean(1.0)),
        MergeSpec::FedAvgM { server_lr, momentum, .. } => {
            Some(Step::Momentum { lr: f64::from(*server_lr), beta: f64::from(*momentum) })
        }
        MergeSpec::FedAdam { server_lr, beta_1, beta_2, tau, .. } => {
            Some(Step::Adam { lr: f64::from(*server_lr), betas: [*beta_1, *beta_2], tau: *tau })
        }
        _ => None,
    }
}

impl Rounds {
    /// An empty state; `None` if the rule is another one.
    #[expect(clippy::cast_possible_truncation, reason = "moments are f32")]
    pub(super) fn of(spec: &MergeSpec, params: usize) -> Option<Self> {
        let step = step_of(spec)?;
        let starts = match step {
            Step::Mean(_) => vec![],
            Step::Momentum { .. } => vec![0.0],
            Step::Adam { tau, .. } => vec![0.0, (tau * tau) as f32],
        };
        let moments = starts.into_iter().map(|value| vec![value; params]).collect();
        Some(Self { step, n: 0, waiting: vec![0.0; params], moments })
    }

    /// Takes over what a checkpoint has saved.
    pub(super) fn load(&mut self, saved: &Saved<'_>) -> Result<(), RecoveryError> {
        let ([part], [waiting, moments @ ..]) = (&saved.parts()?[..], saved.vectors()) else {
            return Err(saved.different());
        };
        if moments.len() != self.moments.len() {
            return Err(saved.different());
        }
        self.n = part[..].try_into().map(u64::from_le_bytes).map_err(|_| saved.different())?;
        self.waiting = saved.load(waiting)?;
        self.moments = moments.iter().map(|digest| saved.load(digest)).collect::<Result<_, _>>()?;
        Ok(())
    }

    pub(super) fn set(&mut self, spec: &MergeSpec) {
        self.step = step_of(spec).unwrap_or(self.step);
    }

    #[expect(clippy::cast_possible_truncation, reason = "what waits is f32")]
    pub(super) fn contribute(&mut self, delta: &Delta, contribution: &Contribution) {
        let n = contribution.mean_weight;
        add(&mut self.waiting, delta, (n as f64 * f64::from(contribution.weight)) as f32);
        self.n = self.n.saturating_add(n);
    }

    #[expect(clippy::cast_possible_truncation, reason = "the model and the moments are f32")]
    pub(super) fn close(&mut self, x: &mut [f32]) {
        let n = if self.n == 0 { 1.0 } else { self.n as f64 };
        for (at, parameter) in x.iter_mut().enumerate() {
            let mean = f64::from(self.waiting[at]) / n;
            let moved = match self.step {
                Step::Mean(lr) => lr * mean,
                Step::Momentum { lr, beta } => {
                    let v = &mut self.moments[0][at];
                    *v = (beta * f64::from(*v) + mean) as f32;
                    lr * f64::from(*v)
                }
                Step::Adam { lr, betas, tau } => {
                    let m = betas[0] * f64::from(self.moments[0][at]) + (1.0 - betas[0]) * mean;
                    let v = betas[1] * f64::from(self.moments[1][at]) + (1.0 - betas[1]) * (mean * mean);
                    self.moments[0][at] = if m.abs() < 1e-30 { 0.0 } else { m as f32 };
                    self.moments[1][at] = if v < 1e-30 { 0.0 } else { v.min(f64::from(f32::MAX)) as f32 };
                    let root = f64::from(self.moments[1][at]).sqrt() + tau;
                    lr * f64::from(self.moments[0][at]) / root
                }
            };
            *parameter = (f64::from(*parameter) + moved) as f32;
        }
        self.waiting.fill(0.0);
        self.n = 0;
    }

    /// Whether a checkpoint has saved this state.
    pub(super) fn is_in(&self, saved: &Saved<'_>) -> Result<bool, RecoveryError> {
        let vectors = std::iter::once(&self.waiting).chain(&self.moments);
        let digests: Vec<Digest> = vectors.map(|vector| Digest::of_f32(vector)).collect();
        Ok(saved.vectors() == digests && saved.parts()? == [self.n.to_le_bytes().to_vec()])
    }
}
