//! The leases that agents work under at present. All of it follows from the agents of the fold; it is kept beside them
//! since each update asks for it.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, LeaseId};

use super::agent::AgentState;
use super::agents::Agents;

/// Who holds which lease. An agent holds one at most.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outstanding {
    holders: BTreeMap<LeaseId, AgentId>,
    /// Holders of whom nothing was merged yet.
    newcomers: BTreeSet<AgentId>,
}

impl Outstanding {
    /// What the agents of a fold hold.
    #[must_use]
    pub fn of(agents: &Agents) -> Self {
        let mut outstanding = Self::default();
        for (agent, state) in agents.iter() {
            if let Some(lease) = state.lease {
                outstanding.granted(lease, *agent, state);
            }
        }
        outstanding
    }

    /// Notes that an agent holds a lease from now on.
    pub(super) fn granted(&mut self, lease: LeaseId, agent: AgentId, state: &AgentState) {
        self.holders.insert(lease, agent);
        if state.accepted == 0 {
            self.newcomers.insert(agent);
        }
    }

    /// Nobody works under a lease any more. Returns who did.
    pub(super) fn ended(&mut self, lease: LeaseId) -> Option<AgentId> {
        let holder = self.holders.remove(&lease)?;
        self.newcomers.remove(&holder);
        Some(holder)
    }

    /// An update of an agent was merged, perhaps under an older lease.
    pub(super) fn contributed(&mut self, agent: AgentId) {
        self.newcomers.remove(&agent);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.holders.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// Who holds a lease.
    #[must_use]
    pub fn holder(&self, lease: LeaseId) -> Option<AgentId> {
        self.holders.get(&lease).copied()
    }

    /// Leases with their holders, by number.
    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, AgentId)> {
        self.holders.iter().map(|(lease, agent)| (*lease, *agent))
    }

    /// How many holders there are of whom nothing was merged yet.
    #[must_use]
    pub fn newcomers(&self) -> usize {
        self.newcomers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newcomers_are_holders_without_a_merged_update() {
        let (one, other) = (AgentId([1; 16]), AgentId([2; 16]));
        let mut outstanding = Outstanding::default();
        let (new, known) = (AgentState::default(), AgentState { accepted: 1, ..AgentState::default() });
        outstanding.granted(LeaseId(1), one, &new);
        outstanding.granted(LeaseId(2), other, &known);
        assert_eq!((outstanding.len(), outstanding.newcomers()), (2, 1));
        assert_eq!((outstanding.ended(LeaseId(1)), outstanding.newcomers()), (Some(one), 0));
        outstanding.granted(LeaseId(3), one, &new);
        outstanding.contributed(one);
        assert_eq!((outstanding.len(), outstanding.newcomers()), (2, 0), "its lease is still outstanding");
        assert_eq!(outstanding.ended(LeaseId(1)), None);
    }

    #[test]
    fn it_follows_from_the_agents() {
        let mut agents = Agents::default();
        for (number, lease, accepted) in [(1, Some(7), 0), (2, None, 0), (3, Some(9), 4)] {
            let state = agents.get_or_insert(AgentId([number; 16]));
            (state.lease, state.accepted) = (lease.map(LeaseId), accepted);
        }
        let outstanding = Outstanding::of(&agents);
        let expected = [(LeaseId(7), AgentId([1; 16])), (LeaseId(9), AgentId([3; 16]))];
        assert_eq!(outstanding.iter().collect::<Vec<_>>(), expected);
        assert_eq!(outstanding.newcomers(), 1);
    }
}
