//! P10: attackers shift the model by a bounded amount.
//!
//! In the quadratic world an honest update pulls the model towards a point of length at most sqrt(n), and an update of
//! any kind moves it by its journalled weight times its journalled norm at most. From both follows a bound on the
//! model's length that the records alone give; what is published must stay below [`SLACK`] times that bound. The loss is
//! the squared length over n, so it is bounded too: with a share s < 1/2 of attackers that flip signs the bound tends to
//! 1.1 sqrt(n) / (1 - 2 s).

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, ModelVersion};
use anabranch_common::journal::{Record, RecordBody};

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
    of: BTreeMap<ModelVersion, f64>,
}

impl Envelope {
    pub(super) fn apply(&mut self, attackers: &Attackers, record: &Record) {
        if attackers.agents.is_empty() {
            return;
        }
        match &record.body {
            RecordBody::Update(update) => {
                let weight = f64::from(update.weight);
                if attackers.agents.contains(&update.meta.key.agent) {
                    self.bound += weight * update.norm;
                } else {
                    let base = self.of.get(&update.meta.base_version).copied().unwrap_or_default();
                    let pull = REACH * attackers.length() - self.bound + (base - self.bound).max(0.0);
                    self.bound += weight * STEP * pull;
                }
                if update.closes {
                    self.of.insert(update.version, self.bound);
                }
            }
            RecordBody::Branched { version, .. } => self.bound = self.of.get(version).copied().unwrap_or_default(),
            _ => {}
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_beyond_what_its_records_allow_is_noticed() {
        let attackers = Attackers { agents: BTreeSet::from([AgentId([1; 16])]), params: 4 };
        let envelope = Envelope { bound: 3.0, of: BTreeMap::from([(ModelVersion(1), 3.0)]) };
        let check = |value: f32, version| envelope.check(&attackers, ModelVersion(version), &[value; 4]);
        assert!(check(7.0, 1).is_ok(), "14 = 4 * 3 + 2");
        assert_eq!(check(7.1, 1).expect_err("beyond").invariant, "P10");
        assert!(check(7.0, 2).is_err(), "the bound of another version does not count");
        assert!(check(f32::NAN, 1).is_err(), "nor is anything allowed that is not a number");
    }
}
