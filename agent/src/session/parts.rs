//! What this agent's part of another agent's round came to, for the upload of that round's update (docs/adr/0032-ranges.md).
//!
//! ```text
//!  Served ──► kept ──► NeedPart: its chunks are sent ──► PartDone, another attempt: dropped
//!               └─ NeedPart for anything else: PartNotHere, and the owner sends it
//! ```
//! It is in memory only. The owner's outbox has all of the update: what is lost here is lost to nobody.

use std::sync::Arc;

use anabranch_common::ids::Digest;
use anabranch_common::pod::PodMark;
use anabranch_common::wire::message::AgentMessage;
use anabranch_common::wire::transfer::Missing;

use super::command::Command;
use super::event::PartContent;

/// Chunks of an update that the coordinator asks this agent for, though it is another's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PartRequest {
    /// The attempt that has computed it.
    pub(super) mark: PodMark,
    /// The part of the model.
    pub(super) part: u32,
    /// The update's transfer.
    pub(super) transfer: Digest,
    /// Bytes of the section.
    pub(super) bytes: u64,
    /// Its first chunk.
    pub(super) first: u32,
    /// Which chunks, counted from that one.
    pub(super) missing: Missing,
}

/// What the parts of the latest attempt came to.
#[derive(Debug, Default)]
pub(super) struct Parts {
    kept: Option<(PodMark, Vec<PartContent>)>,
    /// Asked for before the attempt has come to its end here: its owner is through earlier.
    waiting: Option<PartRequest>,
}

impl Parts {
    /// Answers a request. While the attempt is `at_work` here, one request waits for its end.
    pub(super) fn need(&mut self, request: PartRequest, at_work: Option<PodMark>) -> Option<Command> {
        if at_work == Some(request.mark) {
            let transfer = request.transfer;
            // Asked again, as after a reconnect of the owner, it is the same question.
            let before = self.waiting.replace(request).filter(|before| before.transfer != transfer);
            return before.map(|before| not_here(before.transfer));
        }
        Some(self.answer(request))
    }

    /// The part of an attempt has ended. Answers the request that has waited for it.
    pub(super) fn ended(&mut self, mark: PodMark, parts: Vec<PartContent>) -> Option<Command> {
        if !parts.is_empty() {
            self.kept = Some((mark, parts));
        }
        let request = self.waiting.take_if(|request| request.mark == mark)?;
        Some(self.answer(request))
    }

    /// Another attempt begins: what was kept gives way to it.
    pub(super) fn give_way(&mut self) {
        self.kept = None;
    }

    /// The update of an attempt is decided.
    pub(super) fn done(&mut self, mark: PodMark) {
        self.kept.take_if(|(kept, _)| *kept == mark);
        self.waiting.take_if(|request| request.mark == mark);
    }

    /// The connection is gone, and whoever has asked on it asks again or asks the owner.
    pub(super) fn disconnected(&mut self) {
        self.waiting = None;
    }

    fn answer(&self, request: PartRequest) -> Command {
        let PartRequest { mark, part, transfer, bytes, first, missing } = request;
        let mut kept = self.kept.iter().filter(|(kept, _)| *kept == mark).flat_map(|(_, parts)| parts);
        // Of another length it is not what the owner has offered.
        match kept.find(|kept| kept.part == part && kept.payload.len() as u64 == bytes) {
            Some(kept) => Command::SendPart { content: Arc::clone(&kept.payload), transfer, first, missing },
            None => not_here(transfer),
        }
    }
}

fn not_here(transfer: Digest) -> Command {
    Command::Send(AgentMessage::PartNotHere { transfer })
}
