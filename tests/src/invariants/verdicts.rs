//! An offer gets the same verdict whether or not the coordinator was restarted in between.
//!
//! | when | what |
//! |---|---|
//! | a record was appended | the core is asked what it would decide on some offers, and the answers are kept by position |
//! | a coordinator has recovered up to a position | the new core is asked the same, and must answer the same |
//!
//! The answers come from the core and not from the records: what a process knows beside its journal would show here.

use std::collections::BTreeMap;

use anabranch_common::codec::{CodecId, Delta};
use anabranch_common::ids::{AgentId, Digest, Position, UpdateSeq};
use anabranch_common::journal::{Chain, Lease};
use anabranch_common::update::{UpdateKey, UpdateMeta};
use anabranch_coordinator::core::Core;
use anabranch_coordinator::core::admit::Decision;
use anabranch_coordinator::core::content::{Content, Reservation};
use anabranch_coordinator::core::state::RunState;

use super::journal::{Checked, ensure};

/// Positions for which answers are kept: more than may be lost in a crash.
const POSITIONS_KEPT: usize = 256;
/// Norms of the offers: below and far above what is usual.
const NORMS: [f32; 3] = [1e-3, 3.0, 1e6];
/// A number that no update of a world reaches.
const NEVER_USED: UpdateSeq = UpdateSeq(u64::MAX - 1);

/// An offer and what the core would decide on it.
#[derive(Debug)]
struct Answer {
    meta: UpdateMeta,
    norm: f32,
    decision: Option<Decision>,
}

/// The answers of every life of one coordinator.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// With the chain there: a record that was lost in a crash may be followed by another one at its position.
    answers: BTreeMap<Position, (Chain, Vec<Answer>)>,
}

impl Verdicts {
    /// Asks a core that has come to another position.
    pub fn ask(&mut self, core: &Core) {
        let Some(state) = core.state() else { return };
        if self.answers.get(&state.position).is_some_and(|(chain, _)| *chain == core.chain()) {
            return;
        }
        let answers = offers(state).into_iter().map(|(meta, norm)| {
            let decision = decide(core, state, &meta, norm);
            Answer { meta, norm, decision }
        });
        self.answers.insert(state.position, (core.chain(), answers.collect()));
        if self.answers.len() > POSITIONS_KEPT {
            self.answers.pop_first();
        }
    }

    /// Asks a core that has just recovered what the one before it was asked. Positions beyond are made anew.
    ///
    /// # Errors
    /// It answers something else.
    pub fn recovered(&mut self, core: &Core) -> Checked {
        let Some(state) = core.state() else {
            self.answers.clear();
            return Ok(());
        };
        drop(self.answers.split_off(&state.position.next()));
        let same = self.answers.get(&state.position).filter(|(chain, _)| *chain == core.chain());
        for Answer { meta, norm, decision } in same.into_iter().flat_map(|(_, answers)| answers) {
            let now = decide(core, state, meta, *norm);
            ensure(now == *decision, "verdicts", || {
                format!(
                    "at record {} an offer of norm {norm} under lease {} gets {now:?} after a restart, and before it \
                     {decision:?}",
                    state.position, meta.lease
                )
            })?;
        }
        self.ask(core);
        Ok(())
    }
}

fn decide(core: &Core, state: &RunState, meta: &UpdateMeta, norm: f32) -> Option<Decision> {
    let content = Delta::Sparse { len: state.manifest.params(), indices: vec![0], values: vec![norm] };
    core.judge(meta, Ok(&Content::measure(content, Reservation::default())))
}

/// Offers of several norms under the first and the last lease, and one that was decided before.
fn offers(state: &RunState) -> Vec<(UpdateMeta, f32)> {
    let first = state.leases().min_by_key(|lease| lease.id);
    let last = state.leases().max_by_key(|lease| lease.id);
    let fresh = first.into_iter().chain(last).flat_map(|lease| {
        let key = key(state, lease.agent, NEVER_USED);
        NORMS.map(|norm| (meta(lease, key, Digest::default()), norm))
    });
    let decided = last.and_then(|lease| {
        let agent = state.agents.get(&lease.agent)?;
        let (seq, (payload, _)) = agent.epochs.get(&agent.epoch)?.verdicts.last_key_value()?;
        Some((meta(lease, key(state, lease.agent, *seq), *payload), 1.0))
    });
    fresh.chain(decided).collect()
}

fn key(state: &RunState, agent: AgentId, seq: UpdateSeq) -> UpdateKey {
    let epoch = state.agents.get(&agent).map(|agent| agent.epoch).unwrap_or_default();
    UpdateKey { run: state.run, agent, epoch, seq }
}

fn meta(lease: &Lease, key: UpdateKey, payload_digest: Digest) -> UpdateMeta {
    UpdateMeta {
        key,
        branch: lease.branch,
        lease: lease.id,
        base_version: lease.base_version,
        base_digest: lease.base_digest,
        codec: CodecId(2),
        payload_bytes: 1,
        payload_digest,
        num_examples: 10,
        local_steps: 1,
        train_loss: 0.5,
        compute_ms: 10,
        base_dot: None,
        residual_ratio: None,
        memory: None,
    }
}
