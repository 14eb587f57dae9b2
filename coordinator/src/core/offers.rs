//! Offers of an initial model: whose is received, and until when.
//!
//! ```text
//!   offer ─► waiting ─► receiving ─► begins the run
//!               ▲           │ too slow, gone, or not what was offered
//!               └───────────┘ when its agent offers again, behind everyone who has failed less often
//! ```
//! One model is received at a time. While nobody else has offered one it may take as long as any upload. Once somebody
//! waits, it has a turn: time for its first chunk on the thinnest link that must work, and more with each chunk that
//! arrives at a rate worth waiting for. What an honest agent on a thin link has sent stays on disk, so its next turn goes on
//! from there; an agent that trickles keeps the others waiting for one turn.

use std::collections::BTreeMap;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::wire::transfer::TransferManifest;

use super::event::PeerId;

/// An offered initial model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelOffer {
    pub(super) manifest: ModelManifest,
    pub(super) digest: Digest,
    pub(super) transfer: TransferManifest,
}

#[derive(Debug)]
struct Receiving {
    peer: PeerId,
    agent: AgentId,
    since_ms: u64,
    received_bytes: u64,
    offer: ModelOffer,
}

impl Receiving {
    /// How long it may take while others wait, in milliseconds.
    fn turn_ms(&self) -> u64 {
        let first_chunk = self.offer.transfer.bytes.min(limits::CHUNK_BYTES as u64);
        let earned_ms = self.received_bytes.saturating_mul(1000) / limits::UPLOAD_BUSY_MIN_BYTES_PER_S;
        (limits::UPLOAD_BUSY_GRACE_MS + first_chunk * 1000 / limits::UPLOAD_MIN_BYTES_PER_S).saturating_add(earned_ms)
    }
}

/// The offers of the agents that are connected. Lives until the run begins.
#[derive(Debug, Default)]
pub(super) struct Offers {
    waiting: BTreeMap<PeerId, (AgentId, ModelOffer)>,
    receiving: Option<Receiving>,
    /// How often a model of this agent was asked for in vain.
    failures: BTreeMap<AgentId, u32>,
}

impl Offers {
    /// Notes an offer. One that is made again while it is received changes nothing.
    pub(super) fn add(&mut self, peer: PeerId, agent: AgentId, offer: ModelOffer) {
        if self.receiving.as_ref().is_none_or(|receiving| receiving.peer != peer || receiving.offer != offer) {
            self.waiting.insert(peer, (agent, offer));
        }
    }

    /// Takes the offer that is to be received now, if none is: of those whose agents have failed least often, the oldest
    /// connection's.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<(PeerId, ModelOffer)> {
        if self.receiving.is_some() {
            return None;
        }
        let failures = |agent| self.failures.get(agent).copied().unwrap_or(0);
        let (_, peer) = self.waiting.iter().map(|(peer, (agent, _))| (failures(agent), *peer)).min()?;
        let (agent, offer) = self.waiting.remove(&peer)?;
        let (since_ms, received_bytes) = (now_ms, 0);
        self.receiving = Some(Receiving { peer, agent, since_ms, received_bytes, offer: offer.clone() });
        Some((peer, offer))
    }

    /// A chunk of a model has arrived.
    pub(super) fn received(&mut self, peer: PeerId, bytes: u64) {
        if let Some(receiving) = self.receiving.as_mut().filter(|receiving| receiving.peer == peer) {
            receiving.received_bytes = receiving.received_bytes.saturating_add(bytes);
        }
    }

    /// Returns the peer whose model takes too long.
    pub(super) fn overdue(&self, now_ms: u64) -> Option<PeerId> {
        let receiving = self.receiving.as_ref()?;
        let age_ms = now_ms.saturating_sub(receiving.since_ms);
        let others_wait = self.waiting.keys().any(|peer| *peer != receiving.peer);
        let over = age_ms >= receiving.offer.transfer.deadline_ms() || (others_wait && age_ms >= receiving.turn_ms());
        over.then_some(receiving.peer)
    }

    /// Forgets what a peer has offered. If its model was being received, its agent has failed once more.
    pub(super) fn drop_peer(&mut self, peer: PeerId) {
        self.waiting.remove(&peer);
        if let Some(receiving) = self.receiving.take_if(|receiving| receiving.peer == peer) {
            let failures = self.failures.entry(receiving.agent).or_default();
            *failures = failures.saturating_add(1);
        }
    }
}

/// Returns what to tell people about two manifests that differ: the first tensor that does.
pub(super) fn first_difference(expected: &ModelManifest, offered: &ModelManifest) -> Option<String> {
    let describe = |manifest: &ModelManifest, index: usize| match manifest.tensors().get(index) {
        Some(tensor) => format!("{:?} {:?}", tensor.name, tensor.shape),
        None => "missing".to_owned(),
    };
    let index = expected.first_difference(offered)?;
    Some(format!(
        "tensor {index} of what was offered is {}, expected {}",
        describe(offered, index),
        describe(expected, index)
    ))
}

#[cfg(test)]
mod tests {
    use anabranch_common::manifest::TensorSpec;

    use super::*;

    const HOSTILE: AgentId = AgentId([66; 16]);
    const HONEST: AgentId = AgentId([1; 16]);
    const THIRD: AgentId = AgentId([3; 16]);

    /// A model of so many bytes as sent.
    fn offer(bytes: u64) -> ModelOffer {
        let tensor = TensorSpec { name: "w".into(), shape: vec![4] };
        let chunks = vec![Digest::default(); usize::try_from(bytes.div_ceil(1 << 20)).expect("few")];
        ModelOffer {
            manifest: ModelManifest::new(vec![tensor]).expect("valid"),
            digest: Digest::default(),
            transfer: TransferManifest { bytes, chunks, sections: vec![] },
        }
    }

    fn next(offers: &mut Offers, now_ms: u64) -> Option<u64> {
        offers.next(now_ms).map(|(peer, _)| peer.0)
    }

    #[test]
    fn an_agent_that_trickles_keeps_the_others_waiting_for_one_turn() {
        let mut offers = Offers::default();
        offers.add(PeerId(1), HOSTILE, offer(400 << 20));
        assert_eq!(next(&mut offers, 0), Some(1));
        // Alone it has the time of the thinnest link; a chunk a minute is above that rate.
        for minute in 1..=60 {
            assert_eq!(offers.overdue(minute * 60_000), None);
            offers.received(PeerId(1), 1 << 20);
        }
        offers.add(PeerId(2), HONEST, offer(400 << 20));
        assert_eq!(offers.overdue(3_600_000), Some(PeerId(1)), "an hour is more than its chunks have earned");
        offers.drop_peer(PeerId(1));
        // It is back before the next one is asked for, and even before the honest one.
        offers.add(PeerId(0), HOSTILE, offer(400 << 20));
        assert_eq!(next(&mut offers, 3_600_000), Some(2));
        assert_eq!(next(&mut offers, 3_600_000), None, "one at a time");
    }

    #[test]
    fn silence_costs_a_turn_and_the_honest_one_on_a_thin_link_keeps_what_it_sent() {
        let mut offers = Offers::default();
        offers.add(PeerId(1), HONEST, offer(10 << 20));
        next(&mut offers, 0);
        offers.add(PeerId(2), THIRD, offer(10 << 20));
        let thinnest_chunk_ms = (1 << 20) * 1000 / limits::UPLOAD_MIN_BYTES_PER_S;
        let turn_ms = limits::UPLOAD_BUSY_GRACE_MS + thinnest_chunk_ms;
        assert_eq!(offers.overdue(turn_ms - 1), None);
        assert_eq!(offers.overdue(turn_ms), Some(PeerId(1)));
        offers.received(PeerId(1), 1 << 20);
        assert_eq!(offers.overdue(turn_ms), None, "it has moved on by a chunk, and has time for more");
        assert_eq!(offers.overdue(turn_ms + 4_000), Some(PeerId(1)));
        let small = offer(16);
        let mut offers = Offers::default();
        offers.add(PeerId(1), HOSTILE, small.clone());
        next(&mut offers, 0);
        offers.add(PeerId(2), HONEST, small);
        assert_eq!(offers.overdue(limits::UPLOAD_BUSY_GRACE_MS), Some(PeerId(1)), "a small model has a short turn");
    }

    #[test]
    fn whoever_failed_least_is_next_and_a_repeated_offer_is_one_offer() {
        let mut offers = Offers::default();
        for (peer, agent) in [(1, HOSTILE), (2, THIRD), (3, HOSTILE)] {
            offers.add(PeerId(peer), agent, offer(16));
            assert_eq!(next(&mut offers, 0), Some(peer));
            offers.drop_peer(PeerId(peer));
        }
        for (peer, agent) in [(4, HOSTILE), (5, THIRD), (6, HONEST)] {
            offers.add(PeerId(peer), agent, offer(16));
        }
        assert_eq!(next(&mut offers, 0), Some(6));
        offers.add(PeerId(6), HONEST, offer(16));
        offers.drop_peer(PeerId(6));
        assert_eq!(next(&mut offers, 0), Some(5));
        offers.drop_peer(PeerId(5));
        assert_eq!(next(&mut offers, 0), Some(4));
        offers.drop_peer(PeerId(4));
        assert_eq!(next(&mut offers, 0), None);
    }

    #[test]
    fn an_agent_that_has_no_rival_has_the_whole_deadline() {
        let mut offers = Offers::default();
        let model = offer(1 << 20);
        let deadline_ms = model.transfer.deadline_ms();
        offers.add(PeerId(1), HONEST, model);
        next(&mut offers, 500);
        assert_eq!(offers.overdue(500 + deadline_ms - 1), None);
        assert_eq!(offers.overdue(500 + deadline_ms), Some(PeerId(1)));
    }
}
