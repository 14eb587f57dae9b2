//! Barriers: who waits for the close of a round, and when the round closes. [`anabranch_common::merge::barrier`] has the
//! rules.
//!
//! ```text
//!  lease on v ──► contribution ──► request for a lease: deferred ──┐
//!                      │                                           │ waits for the publication of v + 1
//!  no lease on v is left, or the deadline ──► close of v + 1 ──────┴──► lease on v + 1
//! ```
//! Who has delivered and who is at work follows from the journal. This process adds times and connections:
//!
//! - The deadline counts from the publication of the version, and from the start of the process at the latest.
//! - Contributors of the round before ask for their next lease a round trip after their verdict. A round is not complete
//!   without them for [`limits::ROUND_REJOIN_MS`], so that quick agents do not close several rounds in that time.
//! - A round takes no new leases once it has lasted for the life of a lease and has a contribution: agents that fail again
//!   and again would hold it for ever.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, ModelVersion};
use anabranch_common::journal::{CloseReason, Lease, RecordBody};
use anabranch_common::limits;
use anabranch_common::merge::barrier::Barrier;
use anabranch_common::merge::examples;
use anabranch_common::update::MemoryMark;
use anabranch_common::wire::message::CoordinatorMessage;

use super::Core;
use super::agent::AgentState;
use super::event::PeerId;
use super::state::RunState;

impl RunState {
    /// Whether an update of `agent` waits for the close of a round behind a barrier: the round takes no second one.
    #[must_use]
    pub fn has_delivered(&self, agent: AgentId) -> bool {
        self.spec.merge.barrier().is_some() && self.agents.get(&agent).is_some_and(|known| self.waits(known))
    }

    /// Whether an update of this agent waits for the close.
    fn waits(&self, known: &AgentState) -> bool {
        known.contributed_at.is_some_and(|position| position > self.round.since)
    }

    /// Returns how many examples of `agent` count in the mean of a round, or of all memories: what it says it holds. Where `admit.max_influence` is
    /// on, no more than [eight times the median](anabranch_common::merge::examples) of the agents at work and those that have
    /// delivered, or have a memory.
    pub(super) fn counted_examples(&self, agent: AgentId) -> u64 {
        let held = self.agents.get(&agent).map_or(0, |known| known.examples_held);
        let is_mean = self.spec.merge.barrier().is_some() || self.spec.merge.keeps_memories();
        if !is_mean || self.spec.admit.max_influence == 0.0 {
            return held;
        }
        let counts =
            |known: &&AgentState| known.lease.is_some() || self.waits(known) || known.memory != MemoryMark::EMPTY;
        examples::counted(held, self.agents.values().filter(counts).map(|known| known.examples_held))
    }

    /// Outstanding leases of agents that have not delivered, on any version.
    fn undelivered(&self) -> impl Iterator<Item = &Lease> {
        self.active_leases().filter(|lease| !self.has_delivered(lease.agent))
    }

    /// Whether the round has a contribution, and no agent is at work on the newest version.
    pub(super) fn is_complete(&self) -> bool {
        self.round.contributions > 0 && !self.undelivered().any(|lease| lease.base_version == self.version)
    }

    /// Whether so many of the active agents have delivered as the deadline asks for.
    pub(super) fn has_quorum(&self, barrier: &Barrier) -> bool {
        let delivered = self.round.contributions as usize;
        delivered > 0 && delivered >= barrier.needed(delivered + self.undelivered().count())
    }
}

/// What this process knows of the open round beside the journal.
#[derive(Debug)]
pub(super) struct OpenRound {
    /// The version that its agents start from.
    version: ModelVersion,
    /// When it began: at the publication of the version, or before that when the version became the newest one.
    since_ms: u64,
    is_published: bool,
    /// Contributors of the round before that are connected and have not asked for a lease since.
    awaited: BTreeSet<AgentId>,
    /// Connections whose requests for a lease wait for the close, each with the time of the last word about it.
    deferred: BTreeMap<PeerId, u64>,
}

impl OpenRound {
    /// Returns the round from `version` in a process that starts now. The journal may have published the version.
    pub(super) fn new(version: ModelVersion, is_published: bool, now_ms: u64) -> Self {
        Self { version, since_ms: now_ms, is_published, awaited: BTreeSet::new(), deferred: BTreeMap::new() }
    }

    /// Begins the round from `version`, if it is another one. `contributors` made the version.
    fn begin(&mut self, version: ModelVersion, now_ms: u64, contributors: BTreeSet<AgentId>) {
        if self.version != version {
            (self.version, self.since_ms, self.is_published) = (version, now_ms, false);
            self.awaited = contributors;
        }
    }

    /// Notes that a version can be fetched. Only the first publication of the newest version counts.
    pub(super) fn published(&mut self, version: ModelVersion, now_ms: u64) {
        if self.version == version && !std::mem::replace(&mut self.is_published, true) {
            self.since_ms = now_ms;
        }
    }

    /// Notes that an agent asks for a lease.
    pub(super) fn asked(&mut self, agent: AgentId) {
        self.awaited.remove(&agent);
    }

    /// Forgets a connection that is gone.
    pub(super) fn forget(&mut self, peer: PeerId, agent: Option<AgentId>) {
        self.deferred.remove(&peer);
        if let Some(agent) = agent {
            self.awaited.remove(&agent);
        }
    }

    /// Lets the request of a connection wait for the close.
    fn defer(&mut self, peer: PeerId, now_ms: u64) {
        self.deferred.insert(peer, now_ms);
    }

    /// Returns why the round closes now, if it does.
    fn closes(&self, state: &RunState, barrier: &Barrier, now_ms: u64) -> Option<CloseReason> {
        let elapsed_ms = now_ms.saturating_sub(self.since_ms);
        if state.is_complete() && (self.awaited.is_empty() || elapsed_ms >= limits::ROUND_REJOIN_MS) {
            return Some(CloseReason::Complete);
        }
        let is_over = barrier.deadline_ms().is_some_and(|deadline_ms| elapsed_ms >= deadline_ms);
        (is_over && state.has_quorum(barrier)).then_some(CloseReason::Deadline)
    }

    /// Returns the deferred connections that have heard nothing for a while, and marks them as told.
    fn due_news(&mut self, now_ms: u64) -> Vec<PeerId> {
        let is_due = |told_ms: u64| now_ms.saturating_sub(told_ms) >= limits::LEASE_DEFERRED_MS;
        let due = self.deferred.iter_mut().filter(|(_, told_ms)| is_due(**told_ms));
        due.map(|(peer, told_ms)| {
            *told_ms = now_ms;
            *peer
        })
        .collect()
    }
}

impl Core {
    /// Closes the round behind a barrier when it is due, and keeps those informed who wait for that.
    pub(super) fn pace_barrier(&mut self) {
        let now_ms = self.now.mono_ms;
        let Some(state) = self.state.as_ref().filter(|state| state.finished.is_none()) else { return };
        let Some(barrier) = state.spec.merge.barrier() else { return };
        self.open_round.begin(state.version, now_ms, BTreeSet::new());
        if let Some(why) = self.open_round.closes(state, &barrier, now_ms) {
            let connected = self.peers.all().map(|(_, agent)| agent);
            let contributors = connected.filter(|agent| state.has_delivered(*agent)).collect();
            let close = state.close_for(why);
            self.open_round.begin(close.version, now_ms, contributors);
            self.append(RecordBody::Closed(close));
        }
        if self.state.as_ref().is_some_and(|state| state.round.contributions == 0) {
            let deferred = std::mem::take(&mut self.open_round.deferred);
            self.take_up_requests(deferred.into_keys());
        }
        for peer in self.open_round.due_news(now_ms) {
            self.send(peer, CoordinatorMessage::LeaseDeferred);
        }
    }

    /// Lets the request of `agent` for a lease wait, if the round takes no update of it. Returns whether it waits.
    pub(super) fn defer_if_late(&mut self, peer: PeerId, agent: AgentId) -> bool {
        let Some(state) = &self.state else { return false };
        let now_ms = self.now.mono_ms;
        let lasts_long = now_ms.saturating_sub(self.open_round.since_ms) >= self.options.lease_ttl_ms;
        let waits = state.spec.merge.barrier().is_some()
            && state.round.contributions > 0
            && (lasts_long || state.has_delivered(agent));
        if waits {
            self.open_round.defer(peer, now_ms);
        }
        waits
    }
}
