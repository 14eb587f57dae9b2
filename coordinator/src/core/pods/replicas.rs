//! How a pod of replicas is formed: the agents of the owner's site that hold training shards. A pure function of who is there.
//!
//! A pod has `pod.members` members, or as many as are connected where these are fewer, but at least two. Who is connected and at
//! work is waited for, who is gone is not: the others go on.

use std::cmp::Reverse;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::pod::{PodPart, memory};
use anabranch_common::spec::{Layers, ReplicasSpec, RunSpec};

use super::form::{Candidate, Formed, NoPod};
use super::member::Member;

/// What every pod of replicas of a run is formed by.
#[derive(Debug, Clone)]
pub(super) struct ReplicasPlan {
    members: usize,
    /// Layers of the model, which is every member's part.
    layers: u32,
    /// What a replica holds.
    needed_bytes: u64,
    /// What the owner holds of the model besides.
    owner_bytes: u64,
    /// What agents are told of the configuration.
    spec_digest: Digest,
}

impl ReplicasPlan {
    /// The pods of `run`, which has such a model and is told to agents with such a digest.
    pub(super) fn new(run: &RunSpec, spec: &ReplicasSpec, layers: &Layers, spec_digest: Digest) -> Self {
        Self {
            members: spec.members as usize,
            layers: u32::try_from(layers.layers.len()).expect("a model has at most limits::MANIFEST_TENSORS layers"),
            needed_bytes: memory::replica_bytes(layers, &run.train),
            owner_bytes: memory::replica_owner_bytes(layers.manifest.params() as u64),
            spec_digest,
        }
    }

    /// Forms the pod of `owner` with some of the `others`, of which `is_free` says whether they can help now. Agents over which
    /// attempts have failed are left out for a while, unless there are no others. Of more than it takes the fastest are taken.
    pub(super) fn form(
        &self,
        (owner, own): Candidate<'_>,
        others: &[Candidate<'_>],
        is_free: impl Fn(AgentId, &Member) -> bool,
        now_ms: u64,
    ) -> Result<Formed, NoPod> {
        let needed_bytes = self.needed_bytes.saturating_add(self.owner_bytes);
        if own.memory_bytes < needed_bytes {
            return Err(NoPod::Owner { needed_bytes, memory_bytes: own.memory_bytes });
        }
        let could_be = self.candidates(own, others)?;
        let trusted: Vec<Candidate<'_>> =
            could_be.iter().copied().filter(|(_, member)| !member.is_left_out(now_ms)).collect();
        let could_be = if trusted.is_empty() { could_be } else { trusted };
        let takes = could_be.len().min(self.members.saturating_sub(1));
        let mut helpers: Vec<Candidate<'_>> =
            could_be.into_iter().filter(|(agent, member)| is_free(*agent, member)).collect();
        if helpers.len() < takes {
            return Err(NoPod::TooFew { takes, free: helpers.len() });
        }
        helpers.sort_by_key(|(agent, member)| (member.reputation(now_ms), Reverse(member.flops_per_s), *agent));
        let helpers: Vec<AgentId> = helpers.into_iter().take(takes).map(|(agent, _)| agent).collect();
        let part = |agent: AgentId| PodPart { end: self.layers, agent };
        let parts = [owner].into_iter().chain(helpers.iter().copied()).map(part).collect();
        Ok(Formed { parts, helpers, spec: self.spec_digest })
    }

    /// Returns the agents of the owner's site that could be replicas when they are free.
    fn candidates<'a>(&self, own: &Member, others: &[Candidate<'a>]) -> Result<Vec<Candidate<'a>>, NoPod> {
        let is_of_site =
            |(_, member): &&Candidate<'a>| member.is_connected() && member.trains && member.site == own.site;
        let of_site: Vec<Candidate<'a>> = others.iter().filter(is_of_site).copied().collect();
        let site = || own.site.clone();
        let Some(memory_bytes) = of_site.iter().map(|(_, member)| member.memory_bytes).max() else {
            return Err(NoPod::Alone { site: site() });
        };
        if memory_bytes < self.needed_bytes {
            return Err(NoPod::Replica { site: site(), needed_bytes: self.needed_bytes, memory_bytes });
        }
        Ok(of_site.into_iter().filter(|(_, member)| member.memory_bytes >= self.needed_bytes).collect())
    }
}
