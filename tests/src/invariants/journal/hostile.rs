//! P10: attackers shift the model by a bounded amount.
//!
//! One update of theirs counts for no more than an update may: `clip_norm_ratio` times the largest that an honest agent has
//! sent, or times a change of 1 in every parameter as long as that is more.
//!
//! In the quadratic world an honest update pulls the model towards a point of length at most sqrt(n), and an update of
//! any kind moves it by its journalled weight times its journalled norm at most. From both follows a bound on the
//! model's length that the records alone give; what is published must stay below [`SLACK`] times that bound. The loss is
//! the squared length over n, so it is bounded too: with a share s < 1/2 of attackers that flip signs the bound tends to
//! 1.1 sqrt(n) / (1 - 2 s).

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, ModelVersion};
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::RunSpec;

use super::{Checked, ensure};

/// How far an honest update goes of the way to its agent's point.
const STEP: f64 = 0.5;
/// Length of an honest agent's target, noise included, over sqrt(n).
const REACH: f64 = 1.1;
/// Old bases make honest updates overshoot: room for that.
const SLACK: f64 = 4.0;

/// A world with attackers.
#[derive(Debug, Clone, Default)]
pub struct Attackers {
    /// Who they are. Nothing is checked without any.
    pub agents: BTreeSet<AgentId>,
    /// Length of the model.
    pub params: u32,
}

impl Attackers {
    fn length(&self) -> f64 {
        f64::from(self.params).sqrt()
    }
}

/// The bound, by version.
#[derive(Debug, Default)]
pub(super) struct Envelope {
    bound: f64,
    /// The largest norm of an honest update.
    largest: f64,
    of: BTreeMap<ModelVersion, f64>,
}

impl Envelope {
    pub(super) fn apply(&mut self, attackers: &Attackers, spec: Option<&RunSpec>, record: &Record) -> Checked {
        if attackers.agents.is_empty() {
            return Ok(());
        }
        match &record.body {
            RecordBody::Contribution(update) => {
                let weight = f64::from(update.weight);
                if attackers.agents.contains(&update.meta.key.agent) {
                    let clip = spec.map_or(0.0, |spec| f64::from(spec.admit.clip_norm_ratio));
                    let most = f64::from(full_weight(spec)) * clip * self.largest.max(attackers.length());
                    let moves = weight * update.norm;
                    ensure(clip == 0.0 || moves <= most * (1.0 + 1e-6), "P10", || {
                        format!("record {}: an attacker moves the model by {moves}, of at most {most}", record.position)
                    })?;
                    self.bound += weight * update.norm;
                } else {
                    self.largest = self.largest.max(update.norm);
                    let base = self.of.get(&update.meta.base_version).copied().unwrap_or_default();
                    let pull = REACH * attackers.length() - self.bound + (base - self.bound).max(0.0);
                    self.bound += weight * STEP * pull;
                }
            }
            RecordBody::Closed(close) => drop(self.of.insert(close.version, self.bound)),
            RecordBody::Branched { version, .. } => self.bound = self.of.get(version).copied().unwrap_or_default(),
            _ => {}
        }
        Ok(())
    }

    /// Every update up to a version that is published is in the bound of that version, and of no other.
    pub(super) fn check(&self, attackers: &Attackers, version: ModelVersion, model: &[f32]) -> Checked {
        if attackers.agents.is_empty() {
            return Ok(());
        }
        let length = model.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt();
        let bound = self.of.get(&version).copied().unwrap_or_default();
        let allowed = SLACK * bound + attackers.length();
        ensure(length <= allowed, "P10", || format!("version {version} has length {length}, of at most {allowed}"))
    }
}

/// The weight of an update that nothing speaks against.
fn full_weight(spec: Option<&RunSpec>) -> f32 {
    match spec.map(|spec| spec.merge.unaveraged()) {
        Some(MergeSpec::FedAsync { alpha, .. } | MergeSpec::Rescaled { alpha, .. }) => *alpha,
        Some(MergeSpec::FedBuff { server_lr, .. }) => *server_lr,
        // Worlds with attackers are merged by other rules: what these do is no sum of weighted updates.
        Some(_) => 1.0,
        None => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_beyond_what_its_records_allow_is_noticed() {
        let attackers = Attackers { agents: BTreeSet::from([AgentId([1; 16])]), params: 4 };
        let envelope = Envelope { bound: 3.0, largest: 0.0, of: BTreeMap::from([(ModelVersion(1), 3.0)]) };
        let check = |value: f32, version| envelope.check(&attackers, ModelVersion(version), &[value; 4]);
        assert!(check(7.0, 1).is_ok(), "14 = 4 * 3 + 2");
        assert_eq!(check(7.1, 1).expect_err("beyond").invariant, "P10");
        assert!(check(7.0, 2).is_err(), "the bound of another version does not count");
        assert!(check(f32::NAN, 1).is_err(), "nor is anything allowed that is not a number");
    }
}
