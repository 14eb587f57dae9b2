//! What the members of a pod are told of a round, and what they say of themselves and of its end.
//!
//! ```text
//!  agent ─ hello: PodOffer ─► coordinator ─ PodRound ─► owner and every other member
//!                                         ◄─ PodEnded ─ each of them, when its part of the attempt is over
//! ```
//! A round is one lease. It may take several attempts: a member died, hung or could not be reached, and the round begins again
//! from its base with whoever is there. Attempts of a lease only ever get larger, and a member that is told of a larger one
//! gives the smaller one up.

use crate::ids::{AgentId, Digest, LeaseId};
use crate::journal::Plan;
use crate::limits;

/// One attempt at the round of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodMark {
    /// The owner's lease.
    pub lease: LeaseId,
    /// Which attempt, from 1.
    pub attempt: u32,
}

/// An agent that can be a member of pods, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodOffer {
    /// Where other members reach it: `host:port`.
    pub address: String,
    /// Memory that it may use, in bytes.
    pub memory_bytes: u64,
    /// How fast it computes, in floating-point operations a second; more than 0.
    pub flops_per_s: u64,
    /// The site that it is of: agents of one site form pods of replicas.
    pub site: String,
    /// What it is at work on, from before the connection was lost.
    pub at_work: Option<PodMark>,
}

/// Who computes what in one attempt at a round.
#[derive(Debug, Clone, PartialEq)]
pub struct PodRound {
    /// Which attempt.
    pub mark: PodMark,
    /// Whose data are read, and whose contribution it is: the holder of the lease.
    pub owner: AgentId,
    /// The parts of the model, in the order of its layers. The first one is the owner's. Of replicas each member has the whole model,
    /// and they are in the order of their ring.
    pub parts: Vec<PodPart>,
    /// How every other member is reached.
    pub peers: Vec<PodPeer>,
    /// The lease's plan.
    pub plan: Plan,
    /// Digest of the configuration that every member computes by: [`AgentSpec::digest`](crate::spec::AgentSpec::digest).
    pub spec: Digest,
}

/// Consecutive layers of the model, and who computes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodPart {
    /// The layer before which it ends.
    pub end: u32,
    /// Who computes it.
    pub agent: AgentId,
}

/// How a member is reached. Its key is what its identity is made of: nobody else is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPeer {
    /// Who it is.
    pub agent: AgentId,
    /// `host:port`.
    pub address: String,
}

/// Why an attempt came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodProblem {
    /// The member that is missing, silent or does not keep to the protocol, if one can be named.
    pub member: Option<AgentId>,
    /// For people; the coordinator keeps `limits::POD_REASON_BYTES` of it.
    pub reason: String,
}

impl PodOffer {
    /// Returns what is wrong with an offer: no agent of this software makes such a one.
    #[must_use]
    pub fn problem(&self) -> Option<&'static str> {
        let problems = [
            (self.address.is_empty(), "without an address"),
            (self.address.len() > limits::POD_ADDRESS_BYTES, "whose address is too long"),
            (self.address.chars().any(char::is_control), "whose address holds control characters"),
            (self.flops_per_s == 0, "of a machine that does not compute"),
            (self.site.len() > limits::POD_SITE_BYTES, "of a site whose name is too long"),
            (self.site.chars().any(char::is_control), "of a site whose name holds control characters"),
        ];
        problems.into_iter().find_map(|(is_wrong, what)| is_wrong.then_some(what))
    }
}

impl PodRound {
    /// Returns where the parts of the model end.
    #[must_use]
    pub fn ends(&self) -> Vec<usize> {
        self.parts.iter().map(|part| part.end as usize).collect()
    }

    /// Returns the members, each once, in the order of their first parts.
    #[must_use]
    pub fn members(&self) -> Vec<AgentId> {
        let mut members = Vec::new();
        for part in &self.parts {
            if !members.contains(&part.agent) {
                members.push(part.agent);
            }
        }
        members
    }

    /// Returns where a member is reached.
    #[must_use]
    pub fn address_of(&self, agent: AgentId) -> Option<&str> {
        self.peers.iter().find(|peer| peer.agent == agent).map(|peer| peer.address.as_str())
    }
}
