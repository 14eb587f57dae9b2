//! What admission tells the rule about one update.

use crate::ids::AgentId;
use crate::limits;

/// What the rule needs to know of an update beside its weight and its content. All of it follows from the journal, and
/// is part of the contribution.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryInputs {
    /// C: active agents, this one included.
    pub active: u32,
    /// s: what the step is multiplied with, in [0, 1], since its agent reports more often than its part of the examples.
    pub step: f32,
    /// Whether the content is a difference against 0: the agent holds no memory, or another one than the coordinator
    /// had.
    pub begins: bool,
    /// Whether there is room for the memory. If not, it is forgotten after the close.
    pub keeps: bool,
    /// Agents whose memories are forgotten first, by id: those that are gone.
    pub left: Vec<AgentId>,
}

/// Returns how many memories of a model of `params` parameters are kept, at least 1.
#[must_use]
pub fn most_memories(params: usize) -> usize {
    (limits::EF21_MEMORY_BYTES / 4 / params.max(1)).clamp(1, limits::EF21_MEMORIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_are_bounded_in_number_and_in_bytes() {
        assert_eq!([1, 1_000_000, 1 << 30].map(most_memories), [limits::EF21_MEMORIES, 67, 1]);
    }
}
