//! FADAS once more, plainly, from its description in `anabranch_common::merge::fadas`.

use anabranch_common::codec::Delta;
use anabranch_common::ids::Digest;
use anabranch_common::journal::Contribution;
use anabranch_common::merge::MergeSpec;

use super::checker::add;
use super::own_state::Saved;
use crate::recovery::RecoveryError;

/// The rule's state.
#[derive(Debug, Clone)]
pub(super) struct Fadas {
    lr: f64,
    betas: [f64; 2],
    epsilon: f64,
    tau_c: u64,
    /// The largest staleness of what waits.
    stalest: u64,
    mean: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    largest_v: Vec<f32>,
}

impl Fadas {
    /// An empty state; `None` if the rule is another one.
    pub(super) fn of(spec: &MergeSpec, params: usize) -> Option<Self> {
        let MergeSpec::Fadas { server_lr, beta_1, beta_2, epsilon, tau_c, .. } = spec else { return None };
        let zeros = vec![0.0; params];
        Some(Self {
            lr: f64::from(*server_lr),
            betas: [*beta_1, *beta_2],
            epsilon: *epsilon,
            tau_c: *tau_c,
            stalest: 0,
            mean: zeros.clone(),
            m: zeros.clone(),
            v: zeros.clone(),
            largest_v: zeros,
        })
    }

    /// Takes over what a checkpoint has saved.
    pub(super) fn load(&mut self, saved: &Saved<'_>) -> Result<(), RecoveryError> {
        let ([part], [mean, m, v, largest_v]) = (&saved.parts()?[..], saved.vectors()) else {
            return Err(saved.different());
        };
        self.stalest = part[..].try_into().map(u64::from_le_bytes).map_err(|_| saved.different())?;
        (self.mean, self.m) = (saved.load(mean)?, saved.load(m)?);
        (self.v, self.largest_v) = (saved.load(v)?, saved.load(largest_v)?);
        Ok(())
    }

    pub(super) fn set(&mut self, spec: &MergeSpec) {
        let MergeSpec::Fadas { server_lr, beta_1, beta_2, epsilon, tau_c, .. } = spec else { return };
        (self.lr, self.betas, self.epsilon) = (f64::from(*server_lr), [*beta_1, *beta_2], *epsilon);
        self.tau_c = *tau_c;
    }

    pub(super) fn contribute(&mut self, delta: &Delta, contribution: &Contribution) {
        add(&mut self.mean, delta, contribution.weight);
        if contribution.staleness > self.stalest {
            self.stalest = contribution.staleness;
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the model and the moments are f32")]
    pub(super) fn close(&mut self, x: &mut [f32]) {
        let mut lr = self.lr;
        if self.stalest > self.tau_c && 1.0 / (self.stalest as f64) < lr {
            lr = 1.0 / self.stalest as f64;
        }
        for (at, parameter) in x.iter_mut().enumerate() {
            let mean = f64::from(self.mean[at]);
            let m = self.betas[0] * f64::from(self.m[at]) + (1.0 - self.betas[0]) * mean;
            let v = self.betas[1] * f64::from(self.v[at]) + (1.0 - self.betas[1]) * (mean * mean);
            self.m[at] = if m.abs() < 1e-30 { 0.0 } else { m as f32 };
            self.v[at] = if v < 1e-30 { 0.0 } else { v.min(f64::from(f32::MAX)) as f32 };
            if self.v[at] > self.largest_v[at] {
                self.largest_v[at] = self.v[at];
            }
            let root = f64::from(self.largest_v[at]).sqrt() + self.epsilon;
            *parameter = (f64::from(*parameter) + lr * f64::from(self.m[at]) / root) as f32;
        }
        self.mean.fill(0.0);
        self.stalest = 0;
    }

    /// Whether a checkpoint has saved this state.
    pub(super) fn is_in(&self, saved: &Saved<'_>) -> Result<bool, RecoveryError> {
        let parts = saved.parts()?;
        let vectors = [&self.mean, &self.m, &self.v, &self.largest_v];
        let digests = vectors.map(|vector| Digest::of_f32(vector));
        Ok(saved.vectors() == digests && parts == [self.stalest.to_le_bytes().to_vec()])
    }
}
