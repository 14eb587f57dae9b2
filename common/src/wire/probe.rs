//! What `doctor` asks a coordinator. Neither question changes anything at the coordinator, and neither is recorded.
//!
//! ```text
//!  anybody                                 coordinator
//!   │ ── Propose{Probe} ─────────────────────► │
//!   │ ◄───────────────────────── ProbeAnswer ─ │  at once: nothing is read before it
//!   │ ══ bytes without a meaning ════════════► │
//!   │ ◄═════════════════════ the same number ═ │  at most `limits::doctor::ECHO_BYTES`
//!
//!  agent                                   coordinator
//!   │ ── Propose{Facts} ─────────────────────► │
//!   │ ── FactsWanted ────────────────────────► │
//!   │ ◄─────────────────────────────── Facts ─ │
//! ```

use crate::ids::RunId;
use crate::spec::AgentSpec;
use crate::wire::message::{Rejection, RunPhase};

/// What a coordinator tells anybody who reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// Its wall clock, Unix time in milliseconds.
    pub unix_ms: u64,
    /// Version of its software, for people.
    pub software: String,
    /// Address and port that the connection comes from, as the coordinator sees them.
    pub remote: String,
    /// Packets that it has sent on this connection so far.
    pub sent: u64,
    /// Packets among them that it takes for lost.
    pub lost: u64,
}

/// What an agent asks about a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FactsWanted {
    /// The run.
    pub run: RunId,
}

/// The answer to [`FactsWanted`].
#[derive(Debug, Clone, PartialEq)]
pub enum Facts {
    /// The agent would be turned away, for this reason.
    Rejected(Rejection),
    /// The agent may take part in the run.
    Run(Box<RunFacts>),
}

/// What an agent can expect of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFacts {
    /// The configuration.
    pub spec: AgentSpec,
    /// Parameters of the model, once there is one.
    pub params: Option<u64>,
    /// The run's state.
    pub state: RunPhase,
}
