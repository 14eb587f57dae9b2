//! Uploads: what the policy wants done, carried out.

use anabranch_common::ids::PeerId;
use anabranch_common::transfer::{Action, Expected, Helper, Received};
use anabranch_common::wire::message::CoordinatorMessage;
use anabranch_common::wire::transfer::TransferManifest;

use super::decode::{DecodeJob, failed};
use super::job::{Job, SpoolJob};
use super::{Node, Output, Phase, ToPeer};
use crate::core::event::{Event, Now};

impl Node {
    pub(super) fn upload_offered(
        &mut self,
        now: Now,
        peer: PeerId,
        what: Expected,
        (transfer, mut helpers): (TransferManifest, Vec<Helper>),
    ) {
        // The offer may have waited for the disk.
        helpers.retain(|helper| self.agents.contains_key(&helper.peer));
        if let Some(agent) = self.agents.get(&peer) {
            self.uploads.offered(now, (peer, *agent), what, (transfer, helpers));
        }
    }

    pub(super) fn chunk_received(&mut self, now: Now, chunk: Received) {
        if let Some(peer) = self.uploads.model_from(chunk.upload).filter(|_| chunk.bytes > 0) {
            self.tell_core(now, Event::ModelChunk { peer, bytes: chunk.bytes });
        }
        self.uploads.received(now, chunk);
    }

    /// Does what the policy of uploads wants until it wants nothing more: the core may have something to say to it.
    pub(super) fn carry_out_uploads(&mut self, now: Now) {
        loop {
            let actions = self.uploads.take_actions(now);
            if actions.is_empty() || !matches!(self.phase, Phase::Serving) {
                return;
            }
            actions.into_iter().for_each(|action| self.carry_out_upload(now, action));
        }
    }

    fn carry_out_upload(&mut self, now: Now, action: Action) {
        match action {
            Action::Open { sink, keep } => self.run(Job::Spool(SpoolJob::Open { sink, keep })),
            Action::Delete(names) => self.run(Job::Spool(SpoolJob::Delete(names))),
            Action::Receive { peer, sink, missing, on_disk, kept } => {
                let transfer = sink.transfer();
                if kept > 0 {
                    let (agent, missing) = (sink.name().agent(), sink.manifest().chunks.len() - kept);
                    tracing::info!(agent = %agent.short(), kept, missing, "an upload goes on where it was cut");
                }
                self.tell(ToPeer::Receive { peer, sink, on_disk });
                self.send(peer, CoordinatorMessage::NeedChunks { transfer, missing });
            }
            Action::Ask { helper: Helper { peer, mark, part, section }, sink, missing, on_disk } => {
                let (transfer, first) = (sink.transfer(), section.chunks.start);
                let bytes = section.bytes.end - section.bytes.start;
                self.tell(ToPeer::Receive { peer, sink, on_disk });
                self.send(peer, CoordinatorMessage::NeedPart { mark, part, transfer, bytes, first, missing });
            }
            Action::Release { peer, transfer } => self.tell(ToPeer::Forget { peer, transfer }),
            Action::Forget { peer, transfer, why } => {
                tracing::warn!(peer = peer.0, transfer = %transfer.short(), why, "an upload is given up");
                self.tell(ToPeer::Forget { peer, transfer });
            }
            Action::Decode { upload, peer, what, sink, guard, transfer_ms } => {
                self.run(Job::Decode(Box::new(DecodeJob { upload, peer, what, sink, guard, transfer_ms })));
            }
            Action::Failed { peer, what, why } => self.tell_core(now, failed(peer, what, why)),
            Action::CutOff { peer, why } => {
                tracing::warn!(peer = peer.0, why, "an agent is cut off");
                self.close(now, peer);
                self.tell_core(now, Event::Disconnected { peer });
            }
        }
    }

    /// Closes a connection. Whoever takes its place goes on with its uploads at once.
    pub(super) fn close(&mut self, now: Now, peer: PeerId) {
        self.uploads.closed(now, peer);
        self.tell(ToPeer::Close { peer });
    }

    fn run(&mut self, job: Job) {
        self.out.push(Output::Run(job));
    }
}
