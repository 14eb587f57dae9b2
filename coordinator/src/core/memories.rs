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
        let active = self.shares.admit(agent, held, Recalling::Off).inputs.active;
        let begins = memory.is_none_or(|mark| mark == MemoryMark::EMPTY);
        Some(MemoryInputs { active, begins, left: self.left_out(agent) })
    }

    /// Agents whose memories are forgotten when an update of another one comes: those that are gone, and where there
    /// would be too many memories those that were silent for longest.
    fn left_out(&self, arriving: AgentId) -> Vec<AgentId> {
        let (mut left, mut stay) = (Vec::new(), Vec::new());
        for (agent, known) in self.agents.iter() {
            if *agent == arriving || known.memory == MemoryMark::EMPTY {
                continue;
            }
            let is_active = !known.revoked && self.shares.part(*agent).is_some_and(|(_, work, ..)| work.is_some());
            if is_active { stay.push((known.contributed_at, *agent)) } else { left.push(*agent) }
        }
        let over = (stay.len() + 1).saturating_sub(most_memories(self.manifest.params()));
        stay.sort_unstable();
        left.extend(stay.into_iter().take(over).map(|(_, agent)| agent));
        left.sort_unstable();
        left
    }

    /// An update was accepted: the memory of its agent is another one, and some are forgotten.
    pub(super) fn move_memories(&mut self, contribution: &Contribution) {
        let Some(MemoryInputs { begins, left, .. }) = &contribution.memory else { return };
        for agent in left {
            if let Some(known) = self.agents.get_mut(agent) {
                known.memory = MemoryMark::EMPTY;
            }
        }
        if let Some(known) = self.agents.get_mut(&contribution.meta.key.agent) {
            let from = if *begins { MemoryMark::EMPTY } else { known.memory };
            known.memory = from.with(contribution.meta.payload_digest, contribution.weight);
        }
    }

    /// The merge rule begins with no memory.
    pub(super) fn forget_marks(&mut self) {
        self.agents.change(|known| known.memory != MemoryMark::EMPTY, |known| known.memory = MemoryMark::EMPTY);
    }
}
