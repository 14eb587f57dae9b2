//! The accepted updates of the newest versions: what agents are sent that replay them (`[downlink] share_updates`).

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::downlink::chain::{ChainRule, ChainStep, ChainUpdate};
use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::limits;
use anabranch_common::spec::RunSpec;

use super::forms::way_back;

/// What happened since the last close of which this process knows.
#[derive(Debug)]
struct Open {
    from: ModelVersion,
    updates: Vec<ChainUpdate>,
}

/// Steps from version to version.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// None: nothing is kept, for agents may not be sent it or cannot replay it.
    rule: Option<ChainRule>,
    /// None until a close, or a model that takes the newest one's place: updates of a process before may wait.
    open: Option<Open>,
    /// By the version that each leads to. Updates, those of the open step included, are at most `limits::CHAIN_UPDATES` of
    /// `limits::CHAIN_BYTES` in all.
    steps: BTreeMap<ModelVersion, ChainStep>,
    updates: usize,
    bytes: usize,
}

impl Chain {
    /// Nothing yet, for a run that is configured so.
    pub(super) fn of(spec: &RunSpec) -> Self {
        Self { rule: rule(spec), ..Self::default() }
    }

    /// Takes in a record that is merged, in the order of the journal.
    pub(super) fn merged(&mut self, record: &Record) {
        match &record.body {
            RecordBody::ConfigChanged { spec } => self.restart(rule(spec), None),
            RecordBody::Genesis { .. } => self.restart(self.rule, Some(ModelVersion(0))),
            RecordBody::Imported { version, .. } | RecordBody::Branched { version, .. } => {
                self.restart(self.rule, Some(*version));
            }
            _ if self.rule.is_none() => {}
            RecordBody::Contribution(contribution) => {
                let Some(open) = &mut self.open else { return };
                let (codec, weight) = (contribution.meta.codec, contribution.weight);
                let payload = Arc::clone(&record.payload);
                self.updates += 1;
                self.bytes += payload.len();
                open.updates.push(ChainUpdate { codec, weight, payload });
                self.make_room();
            }
            RecordBody::Closed(close) => {
                let open = self.open.replace(Open { from: close.version, updates: Vec::new() });
                if let Some(Open { from, updates }) = open {
                    self.steps.insert(close.version, ChainStep { from, version: close.version, updates });
                }
            }
            _ => {}
        }
    }

    /// Number and bytes of the updates that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.updates, self.bytes)
    }

    fn restart(&mut self, rule: Option<ChainRule>, from: Option<ModelVersion>) {
        let open = from.map(|from| Open { from, updates: Vec::new() });
        *self = Self { rule, open, ..Self::default() };
    }

    /// Drops the oldest steps where they take more than they may; then the open one, which no agent can be sent.
    fn make_room(&mut self) {
        while self.updates > limits::CHAIN_UPDATES || self.bytes > limits::CHAIN_BYTES {
            let oldest = self.steps.pop_first().map(|(_, step)| step.updates);
            let Some(dropped) = oldest.or_else(|| self.open.take().map(|open| open.updates)) else { return };
            self.updates -= dropped.len();
            self.bytes -= dropped.iter().map(|update| update.payload.len()).sum::<usize>();
        }
    }

    /// Returns the steps from one version to a later one, if all of them are here and take less than `less_than` bytes, with
    /// their bytes as one transfer.
    pub(super) fn between(&self, from: ModelVersion, to: ModelVersion, less_than: usize) -> Option<Replay> {
        let rule = self.rule?;
        let (mut packed_bytes, mut records) = (1, 0);
        let steps = way_back(&self.steps, from, to, |step| {
            packed_bytes += step.packed_bytes();
            records += 1 + step.updates.len();
            (packed_bytes < less_than && records <= limits::CHAIN_UPDATES).then_some(step.from)
        })?;
        Some(Replay { rule, steps: steps.into_iter().cloned().collect(), packed_bytes })
    }
}

fn rule(spec: &RunSpec) -> Option<ChainRule> {
    let may = spec.downlink.share_updates && spec.downlink.track.is_none();
    if may { ChainRule::of(&spec.merge) } else { None }
}

/// Steps that an agent replays.
#[derive(Debug)]
pub(super) struct Replay {
    /// By this rule.
    pub(super) rule: ChainRule,
    /// The oldest first.
    pub(super) steps: Vec<ChainStep>,
    /// As one transfer.
    pub(super) packed_bytes: usize,
}
