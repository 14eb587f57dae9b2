//! Sizes of leases: they follow from the records before them, whichever process grants them.

use std::collections::BTreeMap;

use anabranch_common::ids::{AgentId, LeaseId};
use anabranch_common::journal::{Contribution, Record, RecordBody};
use anabranch_common::spec::{RunSpec, TrainSpec};

use super::{Checked, ensure};

const NAME: &str = "sizes";

#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// What a step takes, in milliseconds.
    step_ms: BTreeMap<AgentId, f64>,
    /// Leases of which something may still come: agent, steps, when they were granted.
    open: BTreeMap<LeaseId, (AgentId, u32, u64)>,
}

impl Sizes {
    /// `spec` is the configuration before the record.
    pub(super) fn apply(&mut self, spec: Option<&RunSpec>, record: &Record) -> Checked {
        match &record.body {
            RecordBody::LeaseGranted(lease) => {
                let (train, local_steps) = (spec.map(|spec| &spec.train), lease.plan.local_steps);
                let sized = train.and_then(|train| self.steps(lease.agent, train));
                if sized.is_some() {
                    self.open.insert(lease.id, (lease.agent, local_steps, record.at_ms));
                }
                let expected = sized.or(train.map(|train| train.local_steps));
                ensure(expected == Some(local_steps), NAME, || {
                    format!("lease {:?} has {local_steps} steps, and {expected:?} follow from the records", lease.id)
                })
            }
            RecordBody::Contribution(update) => {
                self.observe(update, record.at_ms);
                Ok(())
            }
            RecordBody::Refused { key, lease, .. } => {
                self.open.retain(|id, (agent, ..)| id != lease || *agent != key.agent);
                Ok(())
            }
            RecordBody::AgentRevoked { agent } => {
                self.step_ms.remove(agent);
                self.open.retain(|_, (of, ..)| of != agent);
                Ok(())
            }
            RecordBody::Branched { .. } => {
                self.open.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn steps(&self, agent: AgentId, train: &TrainSpec) -> Option<u32> {
        let target_ms = train.target_round_s? * 1000.0;
        let most = train.max_local_steps.unwrap_or(16 * train.local_steps);
        let Some(step_ms) = self.step_ms.get(&agent) else { return Some(train.local_steps.min(most)) };
        // The whole number that lies closest, of those that are allowed.
        let mut steps = 1;
        while steps < most && target_ms / step_ms >= f64::from(steps) + 0.5 {
            steps += 1;
        }
        Some(steps)
    }

    fn observe(&mut self, update: &Contribution, at_ms: u64) {
        let meta = &update.meta;
        let Some((agent, steps, granted_ms)) = self.open.remove(&meta.lease) else { return };
        let clock_ms = if at_ms < granted_ms { u64::MAX } else { (at_ms - granted_ms).max(1) };
        let took_ms = meta.compute_ms.max(1).min(clock_ms) as f64;
        let step_ms = took_ms / f64::from(meta.local_steps.max(1).min(steps));
        let known = *self.step_ms.get(&agent).unwrap_or(&step_ms);
        let step_ms = step_ms.max(known / 4.0).min(known * 4.0);
        self.step_ms.insert(agent, known + 0.25 * (step_ms - known));
    }
}
