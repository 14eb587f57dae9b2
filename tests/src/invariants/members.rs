//! The registry and the journal agree on who was revoked, whenever the process was killed.
//!
//! | when | what |
//! |---|---|
//! | an operator or an agent has heard of a revocation | it is remembered |
//! | a coordinator has recovered | who was heard to be revoked is; so is, in the registry, who is revoked in the journal; the journal names members only |
//! | a coordinator has started, and at the end | a member that was revoked is revoked in the run too, if it has taken part |

use std::collections::BTreeSet;

use anabranch_common::ids::AgentId;
use anabranch_coordinator::core::state::RunState;
use anabranch_coordinator::registry::Registry;

use super::journal::{Checked, ensure};

const NAME: &str = "members";

/// What was heard of revocations, in every life of one coordinator.
#[derive(Debug, Default)]
pub struct Members {
    heard: BTreeSet<AgentId>,
}

impl Members {
    /// An operator or the agent has heard that it was revoked.
    pub fn heard(&mut self, agent: AgentId) {
        self.heard.insert(agent);
    }

    /// A coordinator has recovered, and has not started its run.
    ///
    /// # Errors
    /// A revocation that somebody has heard of is lost, or the journal is ahead of the registry.
    pub fn recovered(&self, registry: &Registry, state: Option<&RunState>) -> Checked {
        let revoked: BTreeSet<AgentId> = registry.revoked().collect();
        let lost = self.heard.difference(&revoked).next();
        ensure(lost.is_none(), NAME, || format!("{lost:?} was heard to be revoked, and is a member again"))?;
        for (agent, known) in state.into_iter().flat_map(|state| state.agents.iter()) {
            ensure(registry.roster().member(*agent).is_some(), NAME, || {
                format!("{agent} is in the journal, and no member")
            })?;
            ensure(!known.revoked || revoked.contains(agent), NAME, || {
                format!("{agent} is revoked in the journal, and a member")
            })?;
        }
        Ok(())
    }

    /// A coordinator has started its run, or everything is over.
    ///
    /// # Errors
    /// The run does not know of a revocation.
    pub fn settled(registry: &Registry, state: Option<&RunState>) -> Checked {
        let known = |agent: &AgentId| state.and_then(|state| state.agents.get(agent));
        let missed = registry.revoked().find(|agent| known(agent).is_some_and(|known| !known.revoked));
        ensure(missed.is_none(), NAME, || format!("{missed:?} was revoked, and its run does not know"))
    }
}
