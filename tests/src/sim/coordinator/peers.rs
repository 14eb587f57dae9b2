//! What the transport does: messages and chunks to and from agents.

use std::sync::Arc;

use anabranch_common::ids::ModelVersion;
use anabranch_common::limits;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::transfer::{Assembly, Missing, TransferManifest};
use anabranch_coordinator::core::content::Reservation;
use anabranch_coordinator::core::event::{Event, PeerId};
use anabranch_coordinator::node::{self, DownloadId, Expected, Input, Output, Snapshot};

use crate::sim::disk::Failure;
use crate::sim::network::{Parcel, Side};
use crate::sim::schedule::Machine;
use crate::sim::world::{Happening, World, agent_id};

use super::Incoming;

impl World {
    pub(in crate::sim) fn tell_peer(&mut self, output: Output) {
        match output {
            Output::Send { peer, message } => self.send_to(peer, *message),
            Output::Close { peer } => {
                if let Some(conn) = self.conn_of(peer) {
                    self.after(0, Happening::Lost(conn, Side::Coordinator));
                }
            }
            Output::SendChunks { peer, download, snapshot, missing } => {
                self.send_model(peer, download, &snapshot, &missing);
            }
            Output::Receive { peer, what, transfer } => self.receive(peer, what, transfer),
            _ => {}
        }
    }

    pub(in crate::sim) fn conn_of(&self, peer: PeerId) -> Option<u64> {
        self.coordinator.process.as_ref()?.peers.get(&peer).copied()
    }

    pub(in crate::sim) fn send_to(&mut self, peer: PeerId, message: CoordinatorMessage) {
        if self.coordinator.disk.burnt().is_some_and(|failure| matches!(failure, Failure::NoSpace | Failure::Io)) {
            return self.violate("P7", format!("{message:?} is sent after the storage has failed"));
        }
        if let CoordinatorMessage::Verdict { key, verdict } = &message {
            let told = self.journal.told(*key, verdict);
            self.checked(told);
        }
        if let Some(conn) = self.conn_of(peer) {
            let to_evaluate = match &message {
                CoordinatorMessage::Evaluate { version, .. } => Some(*version),
                CoordinatorMessage::Lease { lease, evaluate: true } => Some(lease.base_version),
                _ => None,
            };
            if let Some(entry) = self.conns.get_mut(&conn).filter(|_| to_evaluate.is_some()) {
                entry.to_evaluate = to_evaluate;
            }
            self.send_down(conn, Parcel::Message(message));
        }
    }

    /// What is known of an evaluation that failed must be taken up at once, unless the run is about to end.
    fn hear_of_failure(&mut self, machine: Machine, version: ModelVersion) {
        if !self.stopping && !self.agent(machine).may_be_revoked {
            let heard = self.journal.heard_of_failure(agent_id(machine), version);
            self.checked(heard);
        }
    }

    fn send_model(&mut self, peer: PeerId, download: DownloadId, snapshot: &Snapshot, missing: &Missing) {
        let Some(conn) = self.conn_of(peer) else { return };
        let transfer = snapshot.transfer.id();
        let (mut last_ms, mut sent) = (self.now_ms(), 0);
        for index in missing.indices(snapshot.transfer.chunks.len()) {
            let Some(range) = snapshot.transfer.range(index) else { continue };
            sent += range.len() as u64;
            let bytes = snapshot.content[range].to_vec();
            last_ms = last_ms.max(self.send_down(conn, Parcel::Chunk { transfer, index, bytes }));
        }
        let input = Input::Sent { peer, download, bytes: Some(sent) };
        self.agenda.at(last_ms, Happening::Coordinator(self.coordinator.life, Box::new(input)));
    }

    /// What the transport does with an offer: equal content is received once, and everyone who offered it waits for it.
    fn receive(&mut self, peer: PeerId, wanted: Expected, transfer: TransferManifest) {
        let Some(conn) = self.conn_of(peer) else { return };
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let id = transfer.id();
        if let Some(incoming) = process.incoming.get_mut(&(conn, id)) {
            incoming.waiting.push(wanted);
            return;
        }
        let machine = self.conns.get(&conn).map_or(0, |conn| conn.machine);
        let kept = self.coordinator.partials.remove(&(machine, id));
        let assembly = kept.map_or_else(|| Assembly::new(transfer, limits::UPLOADS_IN_FLIGHT_BYTES), Ok);
        let Ok(assembly) = assembly else { return };
        let missing = assembly.missing().clone();
        process.incoming.insert((conn, id), Incoming { waiting: vec![wanted], assembly });
        self.send_to(peer, CoordinatorMessage::NeedChunks { transfer: id, missing });
    }

    pub(in crate::sim) fn arrived_up(&mut self, id: u64, parcel: crate::sim::network::Up) {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.coordinator_up) else { return };
        let machine = conn.machine;
        let Some(process) = self.coordinator.process.as_mut() else { return };
        match parcel {
            Parcel::Message(AgentMessage::Hello(hello)) => {
                self.coordinator.next_peer += 1;
                let peer = PeerId(self.coordinator.next_peer);
                conn.peer = Some(peer);
                process.peers.insert(peer, id);
                self.coordinator_handles(Event::Connected { peer, agent: agent_id(machine), hello });
            }
            Parcel::Message(message) => {
                let Some(peer) = conn.peer else { return };
                let failed = match &message {
                    AgentMessage::EvaluationFailed { version, .. } => {
                        conn.to_evaluate.take_if(|asked| asked == version)
                    }
                    AgentMessage::Evaluated(evaluation) => {
                        conn.to_evaluate.take_if(|asked| *asked == evaluation.version);
                        None
                    }
                    _ => None,
                };
                self.coordinator_handles(Event::Message { peer, message });
                if let Some(version) = failed {
                    self.hear_of_failure(machine, version);
                }
            }
            Parcel::Chunk { transfer, index, bytes } => {
                let Some(peer) = conn.peer else { return };
                let Some(incoming) = process.incoming.get_mut(&(id, transfer)) else { return };
                let was_missing = incoming.assembly.missing().contains(index);
                let whole = incoming.assembly.put(index, &bytes).unwrap_or(false);
                let of_model = incoming.waiting.iter().any(|wanted| matches!(wanted, Expected::Model { .. }));
                if was_missing && of_model {
                    self.coordinator_handles(Event::ModelChunk { peer, bytes: bytes.len() as u64 });
                }
                let Some(process) = self.coordinator.process.as_mut().filter(|_| whole) else { return };
                let Some(Incoming { waiting, assembly }) = process.incoming.remove(&(id, transfer)) else { return };
                let content: Arc<[u8]> = assembly.finish().unwrap_or_default().into();
                for wanted in waiting {
                    self.decode_later(peer, wanted, &content);
                }
            }
        }
    }

    /// Decoding takes a while, in which the connection may end.
    fn decode_later(&mut self, peer: PeerId, wanted: Expected, content: &Arc<[u8]>) {
        let event = node::decode(peer, wanted, Arc::clone(content), Reservation::default());
        let busy_ms = if self.rng.below(8) == 0 { 3_000 } else { 50 };
        let (life, wait_ms) = (self.coordinator.life, self.rng.below(busy_ms));
        self.after(wait_ms, Happening::Coordinator(life, Box::new(Input::Event(event))));
    }

    pub(in crate::sim) fn coordinator_lost(&mut self, machine: Machine, conn: u64, peer: Option<PeerId>) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let cut_off = process.incoming.extract_if(.., |(of, _), _| *of == conn);
        let parts = cut_off.filter(|(_, cut_off)| cut_off.assembly.manifest().chunks.len() > 1);
        for ((_, transfer), Incoming { assembly, .. }) in parts {
            self.coordinator.partials.insert((machine, transfer), assembly);
        }
        if let Some(peer) = peer {
            process.peers.remove(&peer);
            self.coordinator_handles(Event::Disconnected { peer });
        }
    }
}
