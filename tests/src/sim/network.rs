//! Lines between agents and the coordinator.
//!
//! What is simulated is a QUIC connection as both daemons see it: control messages in order, chunks in any order, each
//! late by what loss, jitter and bandwidth make of it; and connections that die, of which each end learns at its own
//! time. Packets themselves are not: that is what the process tests are for.

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::limits;
use anabranch_common::rng::SplitMix64;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_coordinator::core::event::PeerId;

use super::schedule::{LinkPlan, Machine};

/// Retransmissions of one packet, at most.
const RETRIES: u32 = 6;

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Agent,
    Coordinator,
}

/// What travels.
#[derive(Debug)]
pub(super) enum Parcel<M> {
    Message(M),
    Chunk { transfer: Digest, index: u32, bytes: Vec<u8> },
}

pub(super) type Up = Parcel<AgentMessage>;
pub(super) type Down = Parcel<CoordinatorMessage>;

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) machine: Machine,
    /// The agent's number for it.
    pub(super) link: u64,
    /// The coordinator's name for it, once it has read the greeting.
    pub(super) peer: Option<PeerId>,
    pub(super) agent_up: bool,
    pub(super) coordinator_up: bool,
    /// The version that the agent was asked to evaluate, until it answers.
    pub(super) to_evaluate: Option<ModelVersion>,
    last_up_ms: u64,
    last_down_ms: u64,
}

impl Conn {
    pub(super) fn new(machine: Machine, link: u64) -> Self {
        let (agent_up, coordinator_up) = (true, true);
        Self { machine, link, peer: None, agent_up, coordinator_up, to_evaluate: None, last_up_ms: 0, last_down_ms: 0 }
    }

    pub(super) fn is_up(&self, side: Side) -> bool {
        match side {
            Side::Agent => self.agent_up,
            Side::Coordinator => self.coordinator_up,
        }
    }

    /// When a control message arrives that could arrive at `at_ms`: never before the one that was sent before it.
    pub(super) fn in_order(&mut self, to: Side, at_ms: u64) -> u64 {
        let last = match to {
            Side::Coordinator => &mut self.last_up_ms,
            Side::Agent => &mut self.last_down_ms,
        };
        *last = at_ms.max(*last);
        *last
    }
}

/// The line of one agent.
#[derive(Debug)]
pub(super) struct Line {
    up: LinkPlan,
    down: LinkPlan,
    rng: SplitMix64,
    cut_up_until_ms: u64,
    cut_down_until_ms: u64,
    busy_up_until_ms: u64,
    busy_down_until_ms: u64,
}

impl Line {
    pub(super) fn new(up: LinkPlan, down: LinkPlan, seed: u64) -> Self {
        let rng = SplitMix64::new(seed);
        Self { up, down, rng, cut_up_until_ms: 0, cut_down_until_ms: 0, busy_up_until_ms: 0, busy_down_until_ms: 0 }
    }

    /// From now on a good line.
    pub(super) fn heal(&mut self, now_ms: u64) {
        self.up = LinkPlan { delay_ms: 5, jitter_ms: 0, loss: 0.0, bandwidth: 10_000 };
        self.down = self.up.clone();
        self.cut_up_until_ms = self.cut_up_until_ms.min(now_ms);
        self.cut_down_until_ms = self.cut_down_until_ms.min(now_ms);
    }

    pub(super) fn cut(&mut self, up: bool, down: bool, until_ms: u64) {
        if up {
            self.cut_up_until_ms = self.cut_up_until_ms.max(until_ms);
        }
        if down {
            self.cut_down_until_ms = self.cut_down_until_ms.max(until_ms);
        }
    }

    fn plan(&self, to: Side) -> &LinkPlan {
        match to {
            Side::Coordinator => &self.up,
            Side::Agent => &self.down,
        }
    }

    fn cut_until(&self, to: Side) -> u64 {
        match to {
            Side::Coordinator => self.cut_up_until_ms,
            Side::Agent => self.cut_down_until_ms,
        }
    }

    /// Whether nothing arrives at this end.
    pub(super) fn is_deaf(&self, at: Side, now_ms: u64) -> bool {
        self.cut_until(at) > now_ms
    }

    /// When something small arrives that leaves now.
    pub(super) fn arrival(&mut self, to: Side, now_ms: u64) -> u64 {
        let LinkPlan { delay_ms, jitter_ms, loss, .. } = *self.plan(to);
        let mut at_ms = now_ms + delay_ms + self.rng.below(jitter_ms + 1);
        for _ in 0..RETRIES {
            if self.rng.next_f64() >= loss {
                break;
            }
            at_ms += self.up.delay_ms + self.down.delay_ms + 50;
        }
        let cut_ms = self.cut_until(to);
        if cut_ms > now_ms { at_ms.max(cut_ms + delay_ms) } else { at_ms }
    }

    /// When a chunk arrives that is sent now, after what is being sent already.
    pub(super) fn bulk_arrival(&mut self, to: Side, now_ms: u64, bytes: usize) -> u64 {
        let takes_ms = bytes as u64 / self.plan(to).bandwidth.max(1);
        let busy = match to {
            Side::Coordinator => &mut self.busy_up_until_ms,
            Side::Agent => &mut self.busy_down_until_ms,
        };
        *busy = now_ms.max(*busy) + takes_ms;
        let sent_ms = *busy;
        self.arrival(to, sent_ms)
    }

    /// How long a handshake takes.
    pub(super) fn handshake_ms(&mut self, now_ms: u64) -> u64 {
        let there = self.arrival(Side::Coordinator, now_ms);
        self.arrival(Side::Agent, there) - now_ms
    }
}

/// Silence after which an end gives a connection up.
pub(super) const IDLE_MS: u64 = limits::IDLE_TIMEOUT_MS;
