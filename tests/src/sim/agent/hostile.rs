//! Attackers: what they send is not what the agent's own code would have let out.

use anabranch_common::ids::Digest;
use anabranch_common::update::UpdateMeta;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::transfer::TransferManifest;

use crate::sim::schedule::Hostile;

use super::AgentMachine;

/// By how much an attacker enlarges its delta.
const HUGE: f32 = 1e6;

/// A delta as its agent would have it merged. What is not finite its own ledger refuses: that goes in [`AgentMachine::poison`].
pub(super) fn distort(hostile: Option<Hostile>, delta: &mut [f32]) {
    let factor = match hostile {
        Some(Hostile::Huge) => HUGE,
        Some(Hostile::SignFlip) => -1.0,
        Some(Hostile::Reversed) => -5.0,
        Some(Hostile::NotANumber) | None => return,
    };
    delta.iter_mut().for_each(|value| *value *= factor);
}

/// All bits set is no number in every format that ends a payload.
pub(super) fn not_a_number(content: &mut [u8]) {
    content.iter_mut().rev().take(4).for_each(|byte| *byte = u8::MAX);
}

impl AgentMachine {
    fn poisons(&self) -> bool {
        self.plan.hostile == Some(Hostile::NotANumber)
    }

    /// The message as it leaves the machine: an offer announces the poisoned payload, with digests that fit it.
    pub(super) fn poison(&mut self, message: AgentMessage) -> AgentMessage {
        let AgentMessage::OfferUpdate { meta, transfer, sections } = message else { return message };
        let payload = self.process.as_ref().and_then(|process| process.ledger.payload(meta.key).ok().flatten());
        let Some(mut payload) = payload.filter(|_| self.poisons()) else {
            return AgentMessage::OfferUpdate { meta, transfer, sections };
        };
        not_a_number(&mut payload);
        let poisoned = TransferManifest::of(&payload);
        self.poisoned.insert(poisoned.id(), transfer.id());
        let meta = UpdateMeta { payload_digest: Digest::of(&payload), ..meta };
        AgentMessage::OfferUpdate { meta, transfer: poisoned, sections: None }
    }

    /// The content as it leaves the machine, and its manifest.
    pub(super) fn poisoned(&self, content: &[u8], transfer: &TransferManifest) -> Option<(Vec<u8>, TransferManifest)> {
        if !self.poisoned.values().any(|original| *original == transfer.id()) {
            return None;
        }
        let mut content = content.to_vec();
        not_a_number(&mut content);
        let transfer = TransferManifest::of(&content);
        Some((content, transfer))
    }

    /// The answer as the agent's own code expects it: it knows of no poison.
    pub(super) fn translate(&self, message: CoordinatorMessage) -> CoordinatorMessage {
        match message {
            CoordinatorMessage::NeedChunks { transfer, missing } => {
                let transfer = self.poisoned.get(&transfer).copied().unwrap_or(transfer);
                CoordinatorMessage::NeedChunks { transfer, missing }
            }
            message => message,
        }
    }
}
