//! What admission tells the rule about one update.

use crate::ids::AgentId;

/// What the rule needs to know of an update beside its weight and its content. All of it follows from the journal, and is
/// part of the contribution.
#[derive(Debug, Clone, PartialEq)]
pub struct RecallInputs {
    /// C: active agents, this one included.
    pub active: u32,
    /// What the content is multiplied with before it becomes a memory, in (0, 1]: below 1 where its norm was clipped. It is
    /// part of the contribution's weight too.
    pub scale: f32,
    /// Agents whose memories are added, in this order: the largest lack first, at most `limits::RECALLED_AGENTS`.
    pub recalled: Vec<Recalled>,
}

/// One memory that is added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recalled {
    /// Whose.
    pub agent: AgentId,
    /// What fresh arrivals do not give of the agent, times its silent fade.
    pub factor: f32,
}
