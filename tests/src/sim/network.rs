//! Lines between agents and the coordinator.
//!
//! What is simulated is a QUIC connection as both daemons see it: control messages in order, chunks in any order, each
//! late by what loss, jitter and bandwidth make of it; and connections that die, of which each end learns at its own
//! time. Packets themselves are not: that is what the process tests are for.

use std::collections::VecDeque;

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::limits;
use anabranch_common::rng::SplitMix64;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_coordinator::core::event::PeerId;

use super::schedule::{LinkPlan, Machine};

/// Retransmissions of one packet, at most.
const RETRIES: u32 = 6;
/// Time beside a round trip until a loss is noticed.
const TIMEOUT_MS: u64 = 50;
const US_PER_MS: u64 = 1_000;

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

    /// When a parcel arrives that is sent now: messages in order, chunks by themselves.
    pub(super) fn carry<M>(&mut self, line: &mut Line, to: Side, now_ms: u64, parcel: (&Parcel<M>, Charge)) -> u64 {
        match parcel {
            (Parcel::Message(_), _) => self.in_order(to, line.arrival(to, now_ms)),
            (Parcel::Chunk { bytes, .. }, charge) => line.bulk_arrival(to, now_ms, bytes.len(), charge),
        }
    }

    /// One end closes or gives it up. Returns which end is left, and when that learns of it: when the end reaches it, or by
    /// silence.
    pub(super) fn lose(&mut self, side: Side, line: &mut Line, now_ms: u64) -> Option<(Side, u64)> {
        let other = match side {
            Side::Agent => {
                self.agent_up = false;
                Side::Coordinator
            }
            Side::Coordinator => {
                self.coordinator_up = false;
                Side::Agent
            }
        };
        self.is_up(other).then(|| (other, self.in_order(other, line.arrival(other, now_ms)).min(now_ms + IDLE_MS)))
    }
}

/// Whether bytes are added to what [`Line::sent_bytes`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charge {
    Charged,
    Free,
}

/// Bytes that leave a line at an even rate from `from_us` to `to_us`.
#[derive(Debug)]
struct Sending {
    from_us: u64,
    to_us: u64,
    bytes: u64,
}

impl Sending {
    /// Bytes that have left the line.
    fn sent_bytes(&self, now_us: u64) -> u64 {
        let (passed_us, takes_us) = (now_us.saturating_sub(self.from_us), self.to_us - self.from_us);
        if passed_us >= takes_us {
            return self.bytes;
        }
        let share = u128::from(self.bytes) * u128::from(passed_us) / u128::from(takes_us);
        u64::try_from(share).unwrap_or(self.bytes)
    }
}

/// One way of a line.
#[derive(Debug)]
struct Wire {
    plan: LinkPlan,
    cut_until_ms: u64,
    busy_until_us: u64,
    /// What has left it, and what waits or is leaving it.
    sent_bytes: u64,
    queue: VecDeque<Sending>,
}

impl Wire {
    fn new(plan: LinkPlan) -> Self {
        Self { plan, cut_until_ms: 0, busy_until_us: 0, sent_bytes: 0, queue: VecDeque::new() }
    }

    /// Puts bytes behind what waits already. Returns when the last of them has left the line, in milliseconds.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; both are above 0")]
    fn send(&mut self, now_ms: u64, bytes: u64, charge: Charge) -> u64 {
        let now_us = now_ms * US_PER_MS;
        let takes_us = (bytes as f64 * US_PER_MS as f64 / self.plan.bandwidth).ceil() as u64;
        let from_us = now_us.max(self.busy_until_us);
        self.busy_until_us = from_us.saturating_add(takes_us);
        while let Some(sent) = self.queue.pop_front_if(|sending| sending.to_us <= now_us) {
            self.sent_bytes += sent.bytes;
        }
        if charge == Charge::Charged {
            self.queue.push_back(Sending { from_us, to_us: self.busy_until_us, bytes });
        }
        self.busy_until_us.div_ceil(US_PER_MS)
    }

    fn sent_bytes(&self, now_ms: u64) -> u64 {
        let leaving = self.queue.iter().map(|sending| sending.sent_bytes(now_ms * US_PER_MS));
        self.sent_bytes + leaving.sum::<u64>()
    }
}

/// The line of one agent.
#[derive(Debug)]
pub(super) struct Line {
    up: Wire,
    down: Wire,
    rng: SplitMix64,
}

impl Line {
    pub(super) fn new(up: LinkPlan, down: LinkPlan, seed: u64) -> Self {
        Self { up: Wire::new(up), down: Wire::new(down), rng: SplitMix64::new(seed) }
    }

    /// From now on a good line.
    pub(super) fn heal(&mut self, now_ms: u64) {
        let good = LinkPlan { delay_ms: 5, jitter_ms: 0, loss: 0.0, bandwidth: 10_000.0 };
        for wire in [&mut self.up, &mut self.down] {
            wire.plan = good.clone();
            wire.cut_until_ms = wire.cut_until_ms.min(now_ms);
        }
    }

    pub(super) fn cut(&mut self, up: bool, down: bool, until_ms: u64) {
        for (wire, is_cut) in [(&mut self.up, up), (&mut self.down, down)] {
            if is_cut {
                wire.cut_until_ms = wire.cut_until_ms.max(until_ms);
            }
        }
    }

    fn wire(&self, to: Side) -> &Wire {
        match to {
            Side::Coordinator => &self.up,
            Side::Agent => &self.down,
        }
    }

    /// Whether nothing arrives at this end.
    pub(super) fn is_deaf(&self, at: Side, now_ms: u64) -> bool {
        self.wire(at).cut_until_ms > now_ms
    }

    /// Returns the charged bytes that have left the line towards this end, with those that were sent again.
    pub(super) fn sent_bytes(&self, to: Side, now_ms: u64) -> u64 {
        self.wire(to).sent_bytes(now_ms)
    }

    /// Draws how much later something arrives, and how often it is sent again.
    fn draw(&mut self, to: Side) -> (u64, u32) {
        let LinkPlan { jitter_ms, loss, .. } = self.wire(to).plan;
        let jitter_ms = self.rng.below(jitter_ms + 1);
        let again = (0..RETRIES).take_while(|_| self.rng.next_f64() < loss).count();
        (jitter_ms, u32::try_from(again).unwrap_or(RETRIES))
    }

    fn arrives(&self, to: Side, now_ms: u64, left_ms: u64, (jitter_ms, again): (u64, u32)) -> u64 {
        let Wire { plan: LinkPlan { delay_ms, .. }, cut_until_ms, .. } = self.wire(to);
        let round_trip_ms = self.up.plan.delay_ms + self.down.plan.delay_ms;
        let at_ms = left_ms + delay_ms + jitter_ms + u64::from(again) * (round_trip_ms + TIMEOUT_MS);
        if *cut_until_ms > now_ms { at_ms.max(cut_until_ms + delay_ms) } else { at_ms }
    }

    /// When something small arrives that leaves now.
    pub(super) fn arrival(&mut self, to: Side, now_ms: u64) -> u64 {
        let drawn = self.draw(to);
        self.arrives(to, now_ms, now_ms, drawn)
    }

    /// When a chunk arrives that is sent now, after what is being sent already. A chunk that is lost takes the line, and is
    /// charged, as often as it is sent.
    pub(super) fn bulk_arrival(&mut self, to: Side, now_ms: u64, bytes: usize, charge: Charge) -> u64 {
        let (jitter_ms, again) = self.draw(to);
        let wire = match to {
            Side::Coordinator => &mut self.up,
            Side::Agent => &mut self.down,
        };
        let left_ms = wire.send(now_ms, bytes as u64 * u64::from(1 + again), charge);
        self.arrives(to, left_ms, left_ms, (jitter_ms, again))
    }

    /// How long a handshake takes.
    pub(super) fn handshake_ms(&mut self, now_ms: u64) -> u64 {
        let there = self.arrival(Side::Coordinator, now_ms);
        self.arrival(Side::Agent, there) - now_ms
    }
}

/// Silence after which an end gives a connection up.
pub(super) const IDLE_MS: u64 = limits::IDLE_TIMEOUT_MS;

#[cfg(test)]
mod tests {
    use super::*;

    fn line(loss: f64, bandwidth: f64) -> Line {
        let plan = LinkPlan { delay_ms: 20, jitter_ms: 0, loss, bandwidth };
        Line::new(plan.clone(), plan, 1)
    }

    #[test]
    fn bytes_count_when_they_leave_the_line() {
        let mut line = line(0.0, 12.5);
        let up = Side::Coordinator;
        assert_eq!(line.bulk_arrival(up, 100, 1_000, Charge::Charged), 100 + 80 + 20);
        assert_eq!(line.bulk_arrival(up, 110, 500, Charge::Charged), 180 + 40 + 20, "behind the first one");
        let sent = [100, 140, 180, 200, 220, 1_000].map(|now_ms| line.sent_bytes(up, now_ms));
        assert_eq!(sent, [0, 500, 1_000, 1_250, 1_500, 1_500]);
        assert_eq!(line.bulk_arrival(up, 1_000, 1_000, Charge::Free), 1_000 + 80 + 20);
        assert_eq!((line.sent_bytes(up, 2_000), line.sent_bytes(Side::Agent, 2_000)), (1_500, 0));
    }

    #[test]
    fn what_a_line_without_a_rate_is_given_has_left_it() {
        let mut line = line(0.0, f64::INFINITY);
        assert_eq!(line.bulk_arrival(Side::Agent, 7, 1 << 20, Charge::Charged), 27);
        assert_eq!(line.sent_bytes(Side::Agent, 7), 1 << 20);
    }

    /// 2 % of the chunks are sent again: as many bytes more, and as much time more.
    #[test]
    fn what_is_lost_is_charged_and_takes_the_line_again() {
        let mut line = line(0.02, 10.0);
        let chunks = 20_000;
        let last_ms = (0..chunks).map(|_| line.bulk_arrival(Side::Agent, 0, 1_000, Charge::Charged)).max();
        let sent = line.sent_bytes(Side::Agent, u64::MAX / US_PER_MS) as f64 / (chunks * 1_000) as f64;
        assert!((1.018..1.023).contains(&sent), "{sent}");
        let took = last_ms.unwrap_or_default() as f64 / (chunks * 100) as f64;
        assert!((sent - 1e-3..sent + 1e-3).contains(&took), "{took} for {sent}");
    }
}
