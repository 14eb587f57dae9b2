//! What becomes of pods: leases for their owners, rounds for their members, and the word that an attempt is over.

use anabranch_common::ids::{AgentId, Digest, LeaseId, ModelVersion};
use anabranch_common::journal::Lease;
use anabranch_common::limits;
use anabranch_common::plain::plain;
use anabranch_common::pod::{PodMark, PodProblem, PodSections};
use anabranch_common::transfer::Helper;
use anabranch_common::update::UpdateMeta;
use anabranch_common::wire::message::{AgentHello, CoordinatorMessage, RunPhase};
use anabranch_common::wire::transfer::{Section, TransferManifest};

use super::Known;
use super::form::Formed;
use crate::core::Core;
use crate::core::event::PeerId;

impl Core {
    /// Takes in what an agent that has connected says of pods.
    pub(in crate::core) fn pod_offered(&mut self, agent: AgentId, hello: &AgentHello) {
        let now_ms = self.now.mono_ms;
        let Some(offer) = &hello.pod else { return self.pods.withdrawn(agent, now_ms) };
        if self.pods.are_formed() {
            let (trains, known) = (hello.train_examples > 0, Known(self.state.as_ref()));
            self.pods.arrived(agent, offer, hello.incarnation, trains, known, now_ms);
        }
    }

    /// Tells an agent that has just been welcomed that what it is at work on is over, where the run has no pods.
    pub(in crate::core) fn pod_welcomed(&mut self, peer: PeerId, hello: &AgentHello) {
        if let Some(mark) = hello.pod.as_ref().and_then(|offer| offer.at_work).filter(|_| !self.pods.are_formed()) {
            self.send(peer, CoordinatorMessage::PodOver { mark });
        }
    }

    /// An agent's part of an attempt is over. What it says of an attempt that it is not at work on is old.
    pub(in crate::core) fn pod_ended(&mut self, agent: AgentId, mark: PodMark, problem: Option<&PodProblem>) {
        if !self.pods.ended(agent, mark, problem, self.now.mono_ms) {
            return;
        }
        let Some(problem) = problem else { return };
        let (by, over) = (self.name(agent), problem.member.map(|member| self.name(member)));
        let reason = plain(&problem.reason, limits::POD_REASON_BYTES);
        let PodMark { lease, attempt } = mark;
        tracing::warn!(%lease, attempt, by, over, reason, "an attempt at the round of a pod has failed");
    }

    /// Runs after every event, before leases are granted: other attempts are begun.
    pub(in crate::core) fn pace_pods(&mut self) {
        if self.pods.is_idle() {
            return;
        }
        let now_ms = self.now.mono_ms;
        self.pods.expire(now_ms);
        let state = self.lease_phase();
        if state == RunPhase::Running {
            self.begin_other_attempts();
        } else {
            for peer in self.pods.requests.take() {
                self.send(peer, CoordinatorMessage::NoLease { state });
            }
        }
        for peer in self.pods.requests.due_news(now_ms) {
            self.send(peer, CoordinatorMessage::LeaseDeferred);
        }
        if let Some(reason) = self.pods.take_problem(now_ms) {
            tracing::warn!(reason, "no pod can be formed");
        }
    }

    /// Runs after every event, once leases were granted: members hear of attempts that are over.
    pub(in crate::core) fn pace_pods_over(&mut self) {
        if self.pods.is_idle() {
            return;
        }
        let runs = self.lease_phase() == RunPhase::Running;
        let state = self.state.as_ref();
        let holder = |lease| state.and_then(|state| state.holder(lease));
        for (agent, mark) in self.pods.overs(holder, runs) {
            if let Some(peer) = self.peers.peer_of(agent) {
                self.send(peer, CoordinatorMessage::PodOver { mark });
            }
        }
    }

    fn begin_other_attempts(&mut self) {
        for (id, owner) in self.pods.due_rounds(self.now.mono_ms) {
            if self.lease_of(owner) != Some(id) {
                continue;
            }
            let is_possible = !self.pods.is_spent(id) && !self.pods.is_given_up(id);
            let Some(lease) = self.lease_of_use(owner).filter(|_| is_possible) else {
                // Nothing could come of it any more.
                self.give_up(owner, id);
                continue;
            };
            match self.pods.form(owner, Some(id), self.now.mono_ms) {
                Some(Ok(formed)) => self.begin_attempt(&lease, formed),
                Some(Err(why)) => self.pods.cannot_go_on(id, why),
                None => {}
            }
        }
        self.pods.give_way();
    }

    /// Ends a lease whose round no other attempt is made at.
    fn give_up(&mut self, owner: AgentId, lease: LeaseId) {
        if let Some(why) = self.pods.why_given_up(owner).filter(|_| self.pods.is_given_up(lease)) {
            tracing::warn!(%lease, owner = self.name(owner), "{why}");
        }
        let why = self.pods.why_over(lease);
        self.end_lease(owner, lease, why);
    }

    /// Returns the lease that an owner holds and is to compute, if an update under it would still be admitted.
    pub(in crate::core) fn kept_lease(&self, owner: AgentId) -> Option<Lease> {
        let id = self.lease_of(owner)?;
        let is_over = self.pods.is_complete(id) || self.pods.is_spent(id) || self.pods.is_given_up(id);
        let is_wanted = self.pods.is_owner(owner) && !is_over;
        self.lease_of_use(owner).filter(|_| is_wanted)
    }

    /// Whether a pod computes the round of a lease, to some use: the lease is not over before that is.
    pub(in crate::core) fn is_under_way(&self, lease: LeaseId) -> bool {
        let holder = self.state.as_ref().and_then(|state| state.holder(lease));
        self.pods.is_computed(lease) && holder.is_some_and(|owner| self.kept_lease(owner).is_some())
    }

    /// Returns the lease that an agent holds, if an update under it would still be admitted.
    fn lease_of_use(&self, owner: AgentId) -> Option<Lease> {
        let (state, id) = (self.state.as_ref()?, self.lease_of(owner)?);
        let lease = state.lease(owner, id)?;
        let counts = lease.branch == state.branch
            && state.spec.reaches(lease.base_version, state.version)
            && state.holds_memory(owner, lease.plan.memory)
            && !state.has_delivered(owner);
        counts.then(|| lease.clone())
    }

    /// An agent offers the update of a lease: the lease is not given to it again.
    pub(in crate::core) fn pod_delivers(&mut self, agent: AgentId, lease: LeaseId) {
        if self.pods.is_owner(agent) && self.lease_of(agent) == Some(lease) {
            self.pods.complete(lease, agent);
        }
    }

    /// Returns the connections that have sections of an update that its owner offers: those of agents that this process named for
    /// that part of that attempt.
    pub(in crate::core) fn pod_helpers(
        &self,
        meta: &UpdateMeta,
        transfer: &TransferManifest,
        sections: &PodSections,
    ) -> Vec<Helper> {
        let PodSections { mark, parts } = sections;
        let all: Vec<Section> = transfer.sections().collect();
        if mark.lease != meta.lease || parts.len() != all.len() || !sections.is_in_order() {
            return Vec::new();
        }
        let helper = |(part, section): (&Option<u32>, Section)| {
            let part = (*part)?;
            let agent = self.pods.helper(meta.key.agent, *mark, part)?;
            Some(Helper { peer: self.peers.peer_of(agent)?, mark: *mark, part, section })
        };
        parts.iter().zip(all).filter_map(helper).collect()
    }

    /// An update is decided: its helpers need not keep what their parts came to.
    pub(in crate::core) fn pod_decided(&mut self, lease: LeaseId, owner: AgentId) {
        let Some((mark, members)) = self.pods.latest(owner, lease) else { return };
        let helpers = members.iter().filter(|member| **member != owner);
        let peers: Vec<PeerId> = helpers.filter_map(|helper| self.peers.peer_of(*helper)).collect();
        for peer in peers {
            self.send(peer, CoordinatorMessage::PartDone { mark });
        }
    }

    /// Grants the requests of owners for which a pod can be formed, in their order. An owner whose lease is still of use
    /// gets the same one again.
    pub(in crate::core) fn grant_owners(&mut self, version: ModelVersion, digest: Digest) {
        for peer in self.pods.requests.due() {
            let Some(owner) = self.peers.agent_of(peer) else { continue };
            let kept = self.kept_lease(owner);
            if kept.is_none() && self.defer_if_late(peer, owner) {
                self.pods.requests.forget(peer);
                continue;
            }
            let formed = self.pods.form(owner, kept.as_ref().map(|lease| lease.id), self.now.mono_ms);
            match formed {
                Some(Ok(formed)) => {
                    self.pods.requests.forget(peer);
                    let lease = match kept {
                        Some(lease) => Some(self.grant_again(peer, lease)),
                        None => self.grant_anew(peer, owner, version, digest),
                    };
                    if let Some(lease) = lease {
                        self.begin_attempt(&lease, formed);
                    }
                }
                Some(Err(why)) => self.pods.requests.cannot_grant(peer, why),
                None => {}
            }
        }
    }

    fn grant_again(&mut self, peer: PeerId, lease: Lease) -> Lease {
        self.send(peer, CoordinatorMessage::Lease { lease: lease.clone(), evaluate: false });
        lease
    }

    fn grant_anew(&mut self, peer: PeerId, owner: AgentId, version: ModelVersion, digest: Digest) -> Option<Lease> {
        if let Some(before) = self.lease_of(owner) {
            self.give_up(owner, before);
        }
        self.grant(peer, owner, version, digest)
    }

    /// Begins an attempt: every member is told of it.
    fn begin_attempt(&mut self, lease: &Lease, formed: Formed) {
        let round = self.pods.begin(lease, formed, self.now.mono_ms);
        for member in round.members() {
            if let Some(peer) = self.peers.peer_of(member) {
                self.send(peer, CoordinatorMessage::Pod(Box::new(round.clone())));
            }
        }
    }
}
