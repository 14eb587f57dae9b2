//! Memories: which one the coordinator has of each agent, by name, and which it forgets. Their values are the merge
//! rule's ([`anabranch_common::merge::ef21`]).

use anabranch_common::ids::AgentId;
use anabranch_common::journal::Contribution;
use anabranch_common::merge::ef21::{MemoryInputs, most_memories};
use anabranch_common::merge::shares::Recalling;
use anabranch_common::update::MemoryMark;

use super::state::RunState;

impl RunState {
    /// Whether an update of `agent` that is a difference against this memory can be merged: against 0, or against the
    /// memory that is held of it.
    #[must_use]
    pub fn holds_memory(&self, agent: AgentId, memory: Option<MemoryMark>) -> bool {
        let held = || self.agents.get(&agent).map(|known| known.memory);
        memory
            .is_none_or(|mark| mark == MemoryMark::EMPTY || (self.spec.merge.keeps_memories() && held() == Some(mark)))
    }

    /// Returns what the merge rule is told of an update of `agent`, a difference against `memory`, if it comes now.
    /// `None` where the rule keeps no memories.
    #[must_use]
    pub fn memory_inputs(&self, agent: AgentId, memory: Option<MemoryMark>) -> Option<MemoryInputs> {
        if !self.spec.merge.keeps_memories() {
            return None;
        }
        let held = self.agents.get(&agent).map_or(0, |known| known.examples_held);
        let admitted = self.shares.admit(agent, held, Recalling::Off);
        let begins = memory.is_none_or(|mark| mark == MemoryMark::EMPTY);
        let (stay, left) = self.others(agent);
        let keeps = stay < most_memories(self.manifest.params());
        #[expect(clippy::cast_possible_truncation, reason = "a factor in [1/8, 1]")]
        let step = admitted.weight as f32;
        Some(MemoryInputs { active: admitted.inputs.active, step, begins, keeps, left })
    }

    /// How many other agents keep their memories when an update of an agent comes, and which are gone and lose them. No agent that
    /// is there loses its memory to another one: agents that come in turn would lose all of them.
    fn others(&self, arriving: AgentId) -> (usize, Vec<AgentId>) {
        let (mut stay, mut left) = (0, Vec::new());
        for (agent, known) in self.agents.iter() {
            if *agent == arriving || known.memory == MemoryMark::EMPTY {
                continue;
            }
            let is_active = !known.revoked && self.shares.part(*agent).is_some_and(|(_, work, ..)| work.is_some());
            if is_active {
                stay += 1;
            } else {
                left.push(*agent);
            }
        }
        (stay, left)
    }

    /// An update was accepted: the memory of its agent is another one, and some are forgotten.
    pub(super) fn move_memories(&mut self, contribution: &Contribution) {
        let Some(MemoryInputs { begins, keeps, left, .. }) = &contribution.memory else { return };
        for agent in left {
            if let Some(known) = self.agents.get_mut(agent) {
                known.memory = MemoryMark::EMPTY;
            }
        }
        if let Some(known) = self.agents.get_mut(&contribution.meta.key.agent) {
            let from = if *begins { MemoryMark::EMPTY } else { known.memory };
            let moved = from.with(contribution.meta.payload_digest, contribution.weight);
            known.memory = if *keeps { moved } else { MemoryMark::EMPTY };
        }
    }

    /// The model is another one: the merge rule begins anew, without memories.
    pub(super) fn forget_memories(&mut self) {
        if self.spec.merge.uses_shares() {
            let changed = self.shares.forget_updates();
            self.shares_changed(changed);
        }
    }

    /// The merge rule begins with no memory.
    pub(super) fn forget_marks(&mut self) {
        self.agents.change(|known| known.memory != MemoryMark::EMPTY, |known| known.memory = MemoryMark::EMPTY);
    }
}
