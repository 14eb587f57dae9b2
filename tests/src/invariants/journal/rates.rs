//! Learning rates and numbers of rounds: they follow from the records before a lease, whichever
//! process grants it.

use std::collections::BTreeMap;

use anabranch_common::ids::{AgentId, LeaseId, ModelVersion};
use anabranch_common::journal::{Lease, Record, RecordBody};
use anabranch_common::spec::{LrSchedule, RunSpec, ScheduleUnit};

use super::{Checked, ensure};

const NAME: &str = "rates";

#[derive(Debug, Default)]
pub(super) struct Rates {
    rounds: BTreeMap<AgentId, u64>,
    /// Steps that each lease asked for.
    steps: BTreeMap<LeaseId, u32>,
    /// Examples in the version, those that wait for the next one, and those in each version so far.
    examples: u64,
    waiting: u64,
    by_version: BTreeMap<ModelVersion, u64>,
}

impl Rates {
    /// `spec` is the configuration before the record.
    pub(super) fn apply(&mut self, spec: Option<&RunSpec>, record: &Record) -> Checked {
        match &record.body {
            RecordBody::LeaseGranted(lease) => self.granted(spec, lease),
            RecordBody::Contribution(update) => {
                let least = spec.map_or(0, |spec| spec.train.local_steps);
                let steps = self.steps.get(&update.meta.lease).copied().unwrap_or(0).max(least);
                let asked = u64::from(steps) * spec.map_or(0, |spec| u64::from(spec.train.batch_size));
                self.waiting += update.credited_examples.min(asked);
                Ok(())
            }
            RecordBody::Closed(close) => {
                self.examples += std::mem::take(&mut self.waiting);
                self.by_version.insert(close.version, self.examples);
                Ok(())
            }
            RecordBody::ConfigChanged { spec: new } => {
                if spec.is_some_and(|spec| !new.merge.keeps_waiting(&spec.merge)) {
                    self.waiting = 0;
                }
                Ok(())
            }
            RecordBody::Imported { version, .. } => {
                self.waiting = 0;
                self.by_version.insert(*version, self.examples);
                Ok(())
            }
            RecordBody::Branched { version, examples, .. } => {
                self.by_version.retain(|made, _| made <= version);
                let expected = self.by_version.get(version).copied().unwrap_or_default();
                (self.examples, self.waiting) = (*examples, 0);
                ensure(expected == *examples, NAME, || {
                    format!("{examples} examples made version {version}, and {expected} follow from the records")
                })
            }
            _ => Ok(()),
        }
    }

    fn granted(&mut self, spec: Option<&RunSpec>, lease: &Lease) -> Checked {
        let plan = lease.plan;
        let round = self.rounds.entry(lease.agent).or_default();
        let number = std::mem::replace(round, *round + 1);
        self.steps.insert(lease.id, plan.local_steps);
        ensure(plan.round == number, NAME, || {
            format!("lease {:?} is round {} of its agent, and {number} went before", lease.id, plan.round)
        })?;
        let Some(spec) = spec else { return Ok(()) };
        let expected = spec.train.schedule.as_ref().map_or(1.0, |schedule| {
            let progress = match schedule.over() {
                ScheduleUnit::Versions => lease.base_version.0,
                ScheduleUnit::Examples => self.examples,
            };
            factor(schedule, progress as f64)
        });
        ensure((f64::from(plan.lr_factor) - expected).abs() < 1e-6, NAME, || {
            format!("lease {:?} has the factor {}, and {expected} follows from the records", lease.id, plan.lr_factor)
        })
    }
}

/// With the system's cosine and power: what is journalled comes from neither.
fn factor(schedule: &LrSchedule, progress: f64) -> f64 {
    let (LrSchedule::Constant { warmup, .. } | LrSchedule::Cosine { warmup, .. } | LrSchedule::Step { warmup, .. }) =
        *schedule;
    let warmup = warmup as f64;
    if progress < warmup {
        return 0.1 + 0.9 * progress / warmup;
    }
    match *schedule {
        LrSchedule::Constant { .. } => 1.0,
        LrSchedule::Cosine { length, final_fraction, .. } => {
            let share = ((progress - warmup) / (length as f64 - warmup)).min(1.0);
            let last = f64::from(final_fraction);
            last + (1.0 - last) * (1.0 + (std::f64::consts::PI * share).cos()) / 2.0
        }
        LrSchedule::Step { every, factor, .. } => f64::from(factor).powf(((progress - warmup) / every as f64).floor()),
    }
}
