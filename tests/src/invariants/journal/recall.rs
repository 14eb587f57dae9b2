//! What admission tells the recall rule: there where that is the rule and nowhere else, within its bounds, and of agents
//! that have something to recall.

use std::collections::BTreeSet;

use anabranch_common::ids::AgentId;
use anabranch_common::journal::{Contribution, Record, RecordBody};
use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::RunSpec;

use super::{Checked, ensure};

const NAME: &str = "recall";
/// The least weight of a fresh update, before admission damps it.
const LEAST_WEIGHT: f64 = 1.0 / 8.0;

/// Which agents are active, and which of them have sent an update that can be recalled.
#[derive(Debug, Default)]
pub(super) struct Recallable {
    active: BTreeSet<AgentId>,
    sent: BTreeSet<AgentId>,
}

impl Recallable {
    pub(super) fn apply(&mut self, spec: Option<&RunSpec>, record: &Record) -> Checked {
        match &record.body {
            RecordBody::EpochStarted { agent, .. } => drop(self.active.insert(*agent)),
            RecordBody::AgentRevoked { agent } => {
                self.active.remove(agent);
                self.sent.remove(agent);
            }
            RecordBody::Contribution(update) => {
                let admit = spec.map(|spec| &spec.admit);
                let damps = admit.is_some_and(|admit| admit.clip_norm_ratio > 0.0 || admit.max_influence > 0.0);
                let recall = spec.is_some_and(|spec| matches!(spec.merge, MergeSpec::Recall { .. }));
                self.check(record, update, recall, damps)?;
                self.sent.insert(update.meta.key.agent);
            }
            RecordBody::Imported { .. } | RecordBody::Branched { .. } => self.sent.clear(),
            RecordBody::ConfigChanged { spec: after } => {
                let same = spec.is_some_and(|before| after.merge.keeps_waiting(&before.merge));
                if !same {
                    self.sent.clear();
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check(&self, record: &Record, update: &Contribution, recall: bool, damps: bool) -> Checked {
        let position = record.position;
        let said = || format!("record {position}: {:?}, weight {}", update.recall, update.weight);
        let Some(inputs) = &update.recall else { return ensure(!recall, NAME, said) };
        let weight = f64::from(update.weight);
        let least = if damps { 0.0 } else { LEAST_WEIGHT };
        let whole = inputs.scale > 0.0 && inputs.scale <= 1.0 && update.weight <= inputs.scale;
        ensure(recall && whole && (least..=1.0).contains(&weight), NAME, said)?;
        let active = inputs.active as usize;
        ensure((1..=self.active.len()).contains(&active), NAME, said)?;
        ensure(update.meta.base_dot.is_none_or(f64::is_finite), NAME, said)?;
        let own = update.meta.key.agent;
        let agents: BTreeSet<AgentId> = inputs.recalled.iter().map(|recalled| recalled.agent).collect();
        let known =
            agents.iter().all(|agent| self.active.contains(agent) && (self.sent.contains(agent) || *agent == own));
        let few = agents.len() == inputs.recalled.len() && agents.len() <= limits::RECALLED_AGENTS;
        ensure(known && few, NAME, said)?;
        let factors = || inputs.recalled.iter().map(|recalled| f64::from(recalled.factor));
        ensure(factors().all(|factor| factor > 0.0) && factors().sum::<f64>() <= 1.0 + 1e-6, NAME, said)
    }
}
