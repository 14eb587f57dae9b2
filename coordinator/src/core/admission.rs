//! Admission of updates: what is offered is asked for or decided at once, what is here is decided, and what fills a buffer
//! is closed with it. The decision itself is [`admit`](super::admit::admit).

use std::sync::Arc;

use anabranch_common::codec::DecodeError;
use anabranch_common::ids::AgentId;
use anabranch_common::journal::RecordBody;
use anabranch_common::pod::PodSections;
use anabranch_common::update::{RefusalReason, UpdateMeta, Verdict};
use anabranch_common::wire::message::CoordinatorMessage;
use anabranch_common::wire::transfer::TransferManifest;

use super::Core;
use super::admit::{Decision, admit};
use super::command::Command;
use super::content::Content;
use super::event::PeerId;
use super::state::RunState;

/// What was decided while this process lives, beside the journal.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// Updates that were offered again, and got their verdict again.
    pub(super) retries_answered: u64,
}

impl Core {
    /// Decides on an update whose content is here, as `Event::UpdateReceived` would, and changes nothing. `None` before
    /// there is a model.
    #[must_use]
    pub fn judge(&self, meta: &UpdateMeta, content: Result<&Content, DecodeError>) -> Option<Decision> {
        self.state.as_ref().map(|state| admit(state, meta, Some(&content)))
    }

    pub(super) fn update_offered(
        &mut self,
        peer: PeerId,
        agent: AgentId,
        meta: UpdateMeta,
        (transfer, sections): (TransferManifest, Option<Box<PodSections>>),
    ) {
        if meta.key.agent != agent || meta.key.run != self.options.run {
            return self.violated(peer, "an update in another agent's or run's name");
        }
        let Some(state) = &self.state else { return self.violated(peer, "an update before there is a model") };
        let sound = transfer.bytes == meta.payload_bytes && transfer.validate(u64::MAX).is_ok();
        let decision = match admit(state, &meta, None) {
            Decision::Fetch if !sound => Decision::Refuse(RefusalReason::Malformed),
            decision => decision,
        };
        match decision {
            Decision::Fetch => {
                let helpers = sections.map_or_else(Vec::new, |sections| self.pod_helpers(&meta, &transfer, &sections));
                let is_shared = !helpers.is_empty();
                let receive = Command::ReceiveUpdate { peer, meta, transfer, helpers };
                // A helper that has just connected is asked for nothing before it was welcomed.
                if is_shared { self.gated(receive) } else { self.gate.pass(receive) }
            }
            decision => self.decide(peer, &meta, decision, Arc::from([]), None),
        }
    }

    pub(super) fn update_received(
        &mut self,
        peer: PeerId,
        meta: &UpdateMeta,
        payload: Arc<[u8]>,
        content: Result<Arc<Content>, DecodeError>,
        transfer_ms: Option<u64>,
    ) {
        let Some(mut decision) = self.judge(meta, content.as_deref().map_err(Clone::clone)) else { return };
        if let Decision::Accept(contribution) = &mut decision {
            contribution.transfer_ms = transfer_ms;
        }
        self.decide(peer, meta, decision, payload, content.ok());
    }

    fn decide(
        &mut self,
        peer: PeerId,
        meta: &UpdateMeta,
        decision: Decision,
        payload: Arc<[u8]>,
        content: Option<Arc<Content>>,
    ) {
        let verdict = match decision {
            Decision::Fetch => return,
            Decision::Repeat(verdict) => {
                self.admission.retries_answered += 1;
                verdict
            }
            Decision::Refuse(reason) => {
                if !self.pay(meta.key.agent) {
                    // Undecided: it is refused when the agent comes back with it.
                    return self.cut_off(peer, "causes more refusals than are recorded at a time");
                }
                let (key, payload_digest, lease) = (meta.key, meta.payload_digest, meta.lease);
                self.append(RecordBody::Refused { key, payload_digest, lease, reason });
                Verdict::Refused { reason }
            }
            Decision::Accept(contribution) => {
                let (weight, staleness) = (contribution.weight, contribution.staleness);
                self.peers.pay_back(meta.key.agent);
                self.trial.contributed(meta.key.agent);
                let position = self.append_with(RecordBody::Contribution(contribution), payload, content);
                self.close_if_due();
                let version = self.state.as_ref().map(|state| state.version).unwrap_or_default();
                Verdict::Accepted { position, version, weight, staleness }
            }
        };
        self.send(peer, CoordinatorMessage::Verdict { key: meta.key, verdict });
        self.pod_decided(meta.lease, meta.key.agent);
    }

    /// Closes the version that the waiting contributions make, if they are as many as the merge rule asks for.
    pub(super) fn close_if_due(&mut self) {
        if let Some(close) = self.state.as_ref().and_then(RunState::close_due) {
            self.append(RecordBody::Closed(close));
        }
    }
}
