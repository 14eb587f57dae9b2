//! What a search costs: contributions of all trials against those of one full run.

use serde::{Deserialize, Serialize};

use super::spec::{Method, SearchSpec};

/// Contributions of all trials of a search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Price {
    /// Those of one full run.
    pub full_run: u64,
    /// Those of a search that never promotes a trial too early: successive halving.
    pub least: u64,
    /// What is to be expected when trials come to each rung in random order.
    pub about: f64,
    /// Most, unless trials are closed: every trial is better than all before it.
    pub most: u64,
}

impl Price {
    /// Returns the price of a search.
    #[must_use]
    pub fn of(spec: &SearchSpec) -> Self {
        let full_run = spec.contributions(spec.last_rung());
        let (eta, all) = (u64::from(spec.eta), u64::from(spec.trials));
        if spec.method != Method::Asha {
            let total = all.saturating_mul(full_run);
            return Self { full_run, least: total, about: to_f64(total), most: total };
        }
        let (mut least, mut about, mut most) = (0u64, 0.0, 0u64);
        let (mut halved, mut expected, mut worst) = (all, to_f64(all), all);
        let mut before = 0;
        for at in &spec.rungs {
            let further = at.saturating_sub(before);
            least = least.saturating_add(halved.saturating_mul(further));
            about += expected * to_f64(further);
            most = most.saturating_add(worst.saturating_mul(further));
            halved = (halved / eta).max(1);
            expected = promotions(expected, eta).max(1.0);
            // The first eta of them promote one, and each further one at most one.
            worst = (worst + 1).saturating_sub(eta).max(1);
            before = *at;
        }
        Self { full_run, least, about, most }
    }

    /// Returns `contributions` in full runs.
    #[must_use]
    pub fn in_full_runs(&self, contributions: f64) -> f64 {
        contributions / to_f64(self.full_run.max(1))
    }
}

/// Promotions out of a rung to which `trials` come in random order. One that comes as number m is among the best m/eta of
/// them with probability floor(m/eta)/m; where that quota grows, there is one promotion in any case.
fn promotions(trials: f64, eta: u64) -> f64 {
    let mut sum = 0.0;
    let mut number = 1u64;
    // A part of a trial counts as that part of a promotion.
    while to_f64(number) < trials + 1.0 {
        let quota = number / eta;
        let chance = if number.is_multiple_of(eta) { 1.0 } else { to_f64(quota) / to_f64(number) };
        sum += chance * (trials - to_f64(number - 1)).min(1.0);
        number += 1;
    }
    sum
}

fn to_f64(number: u64) -> f64 {
    number as f64
}
