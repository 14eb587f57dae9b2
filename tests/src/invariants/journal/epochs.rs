//! Epochs: each incarnation of an agent has a number of its own, larger than all before.

use std::collections::BTreeMap;

use anabranch_common::ids::{AgentId, Epoch, Incarnation};
use anabranch_common::journal::{Record, RecordBody};

use super::{Checked, ensure};

const NAME: &str = "epochs";

/// In the journal.
#[derive(Debug, Default)]
pub(super) struct Epochs(BTreeMap<AgentId, Epoch>);

impl Epochs {
    pub(super) fn apply(&mut self, record: &Record) -> Checked {
        let RecordBody::EpochStarted { agent, epoch, .. } = &record.body else { return Ok(()) };
        let before = self.0.insert(*agent, *epoch);
        ensure(before.is_none_or(|before| before < *epoch), NAME, || {
            format!("{} begins epoch {epoch:?} after {before:?}", agent.short())
        })
    }
}

/// As agents were told, whatever became of the coordinator afterwards.
#[derive(Debug, Default)]
pub(super) struct Welcomes(BTreeMap<(AgentId, Epoch), Incarnation>);

impl Welcomes {
    pub(super) fn welcomed(&mut self, agent: AgentId, incarnation: Incarnation, epoch: Epoch) -> Checked {
        let first = *self.0.entry((agent, epoch)).or_insert(incarnation);
        ensure(first == incarnation, NAME, || format!("two incarnations of {} have epoch {epoch:?}", agent.short()))
    }
}
