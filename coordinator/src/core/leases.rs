//! Leases: who waits for one, who must wait longer, and which are over.

use anabranch_common::ids::{AgentId, Digest, LeaseId, ModelVersion};
use anabranch_common::journal::{Lease, LeaseEnd, RecordBody};
use anabranch_common::limits;
use anabranch_common::rng::SplitMix64;
use anabranch_common::wire::message::{CoordinatorMessage, RunPhase};
use std::collections::BTreeSet;

use super::Core;
use super::event::PeerId;
use super::state::RunState;

/// Requests for leases, and when the next lease is over.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Connections that wait for a published version.
    waiting: BTreeSet<PeerId>,
    /// Connections whose agents have caused too many records lately. Their requests are taken up as time passes.
    throttled: BTreeSet<PeerId>,
    /// No outstanding lease expires before this Unix time in milliseconds.
    no_expiry_before_ms: u64,
}

impl Leases {
    /// Returns whether a connection waits for a published version.
    pub(super) fn is_wanted(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Forgets the request of a connection that is gone.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.waiting.remove(&peer);
        self.throttled.remove(&peer);
    }

    /// Notes that a lease was granted.
    fn granted(&mut self, lease: &Lease) {
        self.no_expiry_before_ms = self.no_expiry_before_ms.min(lease.expires_at_ms);
    }

    /// Some leases are outstanding though their time is over.
    fn look_again(&mut self, unix_ms: u64) {
        let next_ms = unix_ms.saturating_add(limits::POD_LEASE_LOOK_MS);
        self.no_expiry_before_ms = self.no_expiry_before_ms.min(next_ms);
    }

    /// Returns the outstanding leases whose time is over.
    fn expired(&mut self, state: &RunState, unix_ms: u64) -> Vec<LeaseId> {
        if unix_ms <= self.no_expiry_before_ms {
            return Vec::new();
        }
        let (expired, others): (Vec<&Lease>, Vec<&Lease>) =
            state.active_leases().partition(|lease| lease.expires_at_ms < unix_ms);
        self.no_expiry_before_ms = others.iter().map(|lease| lease.expires_at_ms).min().unwrap_or(u64::MAX);
        expired.iter().map(|lease| lease.id).collect()
    }
}

/// The seed of the local round under a lease: another one for each, and the same one in every run with the same seed.
#[must_use]
pub fn lease_seed(run_seed: u64, lease: LeaseId) -> u64 {
    SplitMix64::new(run_seed ^ lease.0.wrapping_mul(0x9E37_79B9_7F4A_7C15)).next_u64()
}

impl Core {
    pub(super) fn lease_requested(&mut self, peer: PeerId, agent: AgentId) {
        self.open_round.asked(agent);
        let state = self.lease_phase();
        if state != RunPhase::Running {
            return self.send(peer, CoordinatorMessage::NoLease { state });
        }
        if self.leases.waiting.contains(&peer) || self.pods.requests.waits(peer) {
            return;
        }
        if !self.pay(agent) {
            self.leases.throttled.insert(peer);
            return;
        }
        if let Some(lease) = self.lease_of(agent)
            && self.kept_lease(agent).is_none()
        {
            self.end_lease(agent, lease, self.pods.why_over(lease));
        }
        self.pods.asked(agent);
        self.leases.waiting.insert(peer);
    }

    /// Takes up requests for leases again.
    pub(super) fn take_up_requests(&mut self, peers: impl Iterator<Item = PeerId>) {
        self.leases.waiting.extend(peers);
    }

    pub(super) fn lease_returned(&mut self, agent: AgentId, lease: LeaseId, why: LeaseEnd) {
        if self.lease_of(agent) == Some(lease) {
            self.end_lease(agent, lease, why);
        }
    }

    pub(super) fn lease_of(&self, agent: AgentId) -> Option<LeaseId> {
        self.state.as_ref()?.agents.get(&agent)?.lease
    }

    pub(super) fn end_lease(&mut self, agent: AgentId, lease: LeaseId, why: LeaseEnd) {
        self.append(RecordBody::LeaseEnded { lease, why });
        self.evaluation_given_back(agent, lease);
    }

    pub(super) fn pace_throttled(&mut self) {
        for peer in std::mem::take(&mut self.leases.throttled) {
            if let Some(agent) = self.peers.agent_of(peer) {
                self.lease_requested(peer, agent);
            }
        }
    }

    /// Ends the leases whose time is over, but for those whose rounds are computed by pods: their links tell the dead from the
    /// slow.
    pub(super) fn expire_leases(&mut self) {
        let Some(state) = &self.state else { return };
        for lease in self.leases.expired(state, self.now.unix_ms) {
            if self.is_under_way(lease) {
                self.leases.look_again(self.now.unix_ms);
            } else {
                self.append(RecordBody::LeaseEnded { lease, why: LeaseEnd::Expired });
            }
        }
    }

    /// Grants a lease on a published version to every connection that waits for one. Behind a barrier only the newest version
    /// will do.
    pub(super) fn grant_waiting(&mut self, version: ModelVersion, digest: Digest) {
        let is_over = |state: &RunState| state.version != version && state.spec.merge.barrier().is_some();
        if self.state.as_ref().is_some_and(is_over) {
            return;
        }
        for peer in std::mem::take(&mut self.leases.waiting) {
            let Some(agent) = self.peers.agent_of(peer) else { continue };
            match self.lease_phase() {
                RunPhase::Running if self.pods.is_owner(agent) => self.pods.requests.wait(peer, self.now.mono_ms),
                RunPhase::Running if self.defer_if_late(peer, agent) => {}
                RunPhase::Running => _ = self.grant(peer, agent, version, digest),
                state => self.send(peer, CoordinatorMessage::NoLease { state }),
            }
        }
        self.grant_owners(version, digest);
    }

    /// Grants a lease to an agent that the journal knows.
    pub(super) fn grant(
        &mut self,
        peer: PeerId,
        agent: AgentId,
        base_version: ModelVersion,
        base_digest: Digest,
    ) -> Option<Lease> {
        let state = self.state.as_ref()?;
        let known = state.agents.get(&agent)?;
        let id = state.next_lease;
        let lease = Lease {
            id,
            agent,
            epoch: known.epoch,
            branch: state.branch,
            base_version,
            base_digest,
            seed: lease_seed(state.spec.seed, id),
            expires_at_ms: self.now.unix_ms.saturating_add(self.options.lease_ttl_ms),
            plan: state.plan(agent, base_version),
        };
        let evaluate = self.evaluates_first(agent, id, base_version, base_digest);
        self.leases.granted(&lease);
        self.append(RecordBody::LeaseGranted(lease.clone()));
        self.send(peer, CoordinatorMessage::Lease { lease: lease.clone(), evaluate });
        Some(lease)
    }

    /// Leases that were outstanding when the process ended are still good.
    #[must_use]
    pub fn outstanding_leases(&self) -> usize {
        self.state.as_ref().map_or(0, RunState::leases_outstanding)
    }
}
