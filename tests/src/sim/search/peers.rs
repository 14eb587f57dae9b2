//! What the coordinator's transport does: messages, chunks and lists to and from agents.

use std::sync::Arc;

use anabranch_common::downlink::ModelForm;
use anabranch_common::ids::{Digest, RunId};
use anabranch_common::transfer::Received;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::runs::{RunsListed, RunsWanted};
use anabranch_common::wire::transfer::Missing;
use anabranch_coordinator::core::event::PeerId;
use anabranch_coordinator::host::Input;
use anabranch_coordinator::node::{DownloadId, PackedModel, ToPeer};

use crate::sim::network::{Parcel, Side, Up};
use crate::sim::world::agent_id;

use super::world::{Happening, Purpose, World};

impl World {
    pub(super) fn tell_peer(&mut self, what: ToPeer) {
        match what {
            ToPeer::Send { peer, message } => self.send_to(peer, *message),
            ToPeer::Close { peer } => {
                if let Some(stream) = self.stream_of(peer) {
                    self.after(0, Happening::Lost(stream, Side::Coordinator));
                }
            }
            ToPeer::SendChunks { peer, download, model, missing } => self.send_model(peer, download, &model, &missing),
            ToPeer::Receive { peer, sink, on_disk } => {
                if let (Some(stream), Some(process)) = (self.stream_of(peer), self.coordinator.process.as_mut()) {
                    process.sinks.insert((stream, sink.transfer()), (sink, on_disk));
                }
            }
            ToPeer::Forget { peer, transfer } => {
                if let (Some(stream), Some(process)) = (self.stream_of(peer), self.coordinator.process.as_mut()) {
                    process.sinks.remove(&(stream, transfer));
                }
            }
        }
    }

    pub(super) fn tell_list(&mut self, peer: PeerId, list: RunsListed) {
        let Some(stream) = self.stream_of(peer) else { return };
        if let Some(at_ms) = self.arrival(stream, Side::Agent) {
            self.agenda.at(at_ms, Happening::Listed(stream, Box::new(list)));
        }
    }

    fn stream_of(&self, peer: PeerId) -> Option<u64> {
        self.coordinator.process.as_ref()?.peers.get(&peer).copied()
    }

    fn run_of(&self, stream: u64) -> Option<RunId> {
        match self.streams.get(&stream)?.purpose {
            Purpose::Run(run) => Some(run),
            Purpose::List => None,
        }
    }

    fn send_to(&mut self, peer: PeerId, message: CoordinatorMessage) {
        let Some(stream) = self.stream_of(peer) else { return };
        let Some(run) = self.run_of(stream) else { return };
        let checked = match &message {
            CoordinatorMessage::Verdict { key, verdict } => self.watch.told(run, *key, verdict),
            CoordinatorMessage::Evaluate { version, digest } => self.watch.evaluates(run, *version, *digest),
            CoordinatorMessage::Lease { lease, evaluate: true } => {
                self.watch.evaluates(run, lease.base_version, lease.base_digest)
            }
            _ => Ok(()),
        };
        self.checked(checked);
        self.send_down(stream, Parcel::Message(message));
    }

    fn send_model(&mut self, peer: PeerId, download: DownloadId, model: &PackedModel, missing: &Missing) {
        let Some(stream) = self.stream_of(peer) else { return };
        if matches!(model.form, ModelForm::Chain { .. }) {
            return self.violate("sharing", "an agent is sent updates of others, and may not be");
        }
        let transfer = model.transfer.id();
        let (mut last_ms, mut sent) = (self.now_ms(), 0);
        for index in missing.indices(model.transfer.chunks.len()) {
            let Some(range) = model.transfer.range(index) else { continue };
            sent += range.len() as u64;
            let bytes = model.content[range].to_vec();
            last_ms = last_ms.max(self.send_down(stream, Parcel::Chunk { transfer, index, bytes }));
        }
        let input = Input::Sent { peer, download, bytes: Some(sent) };
        self.agenda.at(last_ms, Happening::Coordinator(self.coordinator.life, Box::new(input)));
    }

    /// A stream has a peer's number in this process from here on.
    fn named(&mut self, id: u64) -> Option<(PeerId, usize)> {
        let stream = self.streams.get_mut(&id).filter(|stream| stream.conn.coordinator_up)?;
        let process = self.coordinator.process.as_mut()?;
        self.coordinator.next_peer += 1;
        let peer = PeerId(self.coordinator.next_peer);
        stream.conn.peer = Some(peer);
        process.peers.insert(peer, id);
        Some((peer, stream.conn.machine))
    }

    /// An agent asks for the list of runs.
    pub(super) fn subscribed(&mut self, id: u64) {
        if let Some((peer, machine)) = self.named(id) {
            self.coordinator_takes(Input::Subscribe {
                peer,
                agent: agent_id(machine),
                certificate: None,
                wanted: RunsWanted::All,
            });
        }
    }

    pub(super) fn arrived_up(&mut self, id: u64, parcel: Up) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.conn.coordinator_up) else { return };
        let peer = stream.conn.peer;
        match parcel {
            Parcel::Message(AgentMessage::Hello(hello)) => {
                if let Some((peer, machine)) = self.named(id) {
                    self.coordinator_takes(Input::Hello { peer, agent: agent_id(machine), certificate: None, hello });
                }
            }
            Parcel::Message(message) => {
                if let Some(peer) = peer {
                    self.coordinator_takes(Input::Message { peer, message });
                }
            }
            Parcel::Chunk { transfer, index, bytes } => self.chunk_arrived(id, transfer, index, &bytes),
        }
    }

    fn chunk_arrived(&mut self, stream: u64, transfer: Digest, index: u32, chunk: &[u8]) {
        let unix_ms = self.unix_ms();
        let Some(run) = self.run_of(stream) else { return };
        let Some(peer) = self.streams.get(&stream).and_then(|stream| stream.conn.peer) else { return };
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let Some((sink, on_disk)) =
            process.sinks.get(&(stream, transfer)).map(|(sink, on_disk)| (Arc::clone(sink), *on_disk))
        else {
            return;
        };
        let Ok(put) = sink.put(index, chunk) else { return self.lost(stream, Side::Coordinator) };
        if put.is_whole {
            process.sinks.remove(&(stream, transfer));
        }
        if on_disk
            && put.is_news
            && let Some(directory) = self.coordinator.directory_of(run)
        {
            directory.spool.write(sink.name(), put.offset, chunk, unix_ms);
        }
        if put.is_news || put.is_whole {
            let bytes = if put.is_news { chunk.len() as u64 } else { 0 };
            let chunk = Received { upload: sink.upload(), bytes, is_whole: put.is_whole, is_kept: true };
            self.coordinator_takes(Input::Received { peer, chunk });
        }
    }

    pub(super) fn coordinator_lost(&mut self, stream: u64, peer: Option<PeerId>) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        process.sinks.retain(|(of, _), _| *of != stream);
        if let Some(peer) = peer
            && process.peers.remove(&peer).is_some()
        {
            self.coordinator_takes(Input::Disconnected { peer });
        }
    }
}
