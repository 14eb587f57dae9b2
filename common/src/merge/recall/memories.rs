//! The memories: what each agent sent last, as far as there is room.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::codec::Delta;
use crate::ids::AgentId;
use crate::limits;

/// The last update of an agent, and how far the model had moved along it when it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// c, clipped as it was admitted.
    pub content: Arc<Delta>,
    /// <x, c> when it came, less what the model had moved along c since the agent's base: where 0 own deltas are.
    pub origin: f64,
    /// |c|^2, above 0.
    pub square: f64,
    /// rho, in [0, 1]: what was left to say when it came.
    pub relevance: f64,
    /// Number of the arrival at which it was made or recalled last.
    pub used: u64,
}

impl Memory {
    /// Bytes that its content takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &*self.content {
            Delta::Dense(values) => 4 * values.len(),
            Delta::Sparse { values, .. } => 8 * values.len(),
        }
    }
}

/// At most `limits::RECALL_MEMORIES` memories of together at most `limits::RECALL_MEMORY_BYTES`. Beyond that the one that
/// was not used for longest goes, of several the one of the smallest id: agents that lack participation are recalled at
/// every arrival, and keep theirs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memories {
    by_agent: BTreeMap<AgentId, Memory>,
    bytes: usize,
}

impl Memories {
    /// Takes in a memory. An earlier one of the same agent goes.
    pub fn insert(&mut self, agent: AgentId, memory: Memory) {
        self.insert_within(agent, memory, limits::RECALL_MEMORIES, limits::RECALL_MEMORY_BYTES);
    }

    fn insert_within(&mut self, agent: AgentId, memory: Memory, most: usize, most_bytes: usize) {
        self.bytes -= self.by_agent.remove(&agent).map_or(0, |before| before.bytes());
        // The others keep their place: a hostile agent may send as much as a model has entries.
        if memory.bytes() > most_bytes {
            return;
        }
        self.bytes += memory.bytes();
        self.by_agent.insert(agent, memory);
        while self.by_agent.len() > most || self.bytes > most_bytes {
            let oldest = self.by_agent.iter().min_by_key(|(agent, memory)| (memory.used, **agent));
            let Some(oldest) = oldest.map(|(agent, _)| *agent) else { return };
            self.bytes -= self.by_agent.remove(&oldest).map_or(0, |gone| gone.bytes());
        }
    }

    /// Returns the memory of an agent, if there is one, to be used at this arrival.
    pub fn recall(&mut self, agent: AgentId, arrival: u64) -> Option<&Memory> {
        let memory = self.by_agent.get_mut(&agent)?;
        memory.used = arrival;
        Some(memory)
    }

    /// Returns the memories by agent, in ascending order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (AgentId, &Memory)> {
        self.by_agent.iter().map(|(agent, memory)| (*agent, memory))
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(used: u64, values: usize) -> Memory {
        let content = Arc::new(Delta::Dense(vec![1.0; values]));
        Memory { content, origin: 0.0, square: 1.0, relevance: 1.0, used }
    }

    fn agents(memories: &Memories) -> Vec<u8> {
        memories.iter().map(|(agent, _)| agent.0[0]).collect()
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let mut memories = Memories::default();
        for number in 1..=3 {
            memories.insert_within(AgentId([number; 16]), memory(u64::from(number), 2), 3, 1_000);
        }
        assert!(memories.recall(AgentId([1; 16]), 4).is_some());
        memories.insert_within(AgentId([9; 16]), memory(5, 2), 3, 1_000);
        assert_eq!(agents(&memories), [1, 3, 9], "agent 1 was recalled");
        memories.insert_within(AgentId([9; 16]), memory(6, 200), 3, 1_000);
        assert_eq!((agents(&memories), memories.bytes), (vec![1, 3, 9], 816));
        memories.insert_within(AgentId([8; 16]), memory(7, 100), 3, 1_000);
        assert_eq!((agents(&memories), memories.bytes), (vec![8], 400), "bytes count, and the oldest go first");
        memories.insert_within(AgentId([7; 16]), memory(8, 1_000), 3, 1_000);
        assert_eq!((agents(&memories), memories.bytes), (vec![8], 400), "one alone may be too long, and moves nobody");
        memories.insert_within(AgentId([8; 16]), memory(9, 1_000), 3, 1_000);
        assert_eq!((agents(&memories), memories.bytes), (vec![], 0), "nor does the earlier one of its agent stay");
        assert!(memories.recall(AgentId([7; 16]), 10).is_none());
    }
}
