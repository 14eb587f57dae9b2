//! What the transport does: messages and chunks to and from agents.

use anabranch_common::downlink::ModelForm;
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::pod::PodRound;
use anabranch_common::transfer::Received;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage, Rejection};
use anabranch_common::wire::transfer::Missing;
use anabranch_coordinator::core::event::PeerId;
use anabranch_coordinator::host::Input;
use anabranch_coordinator::node::{DownloadId, PackedModel, ToPeer};

use crate::invariants::pods::{Shape, Told};

use crate::sim::disk::Failure;
use crate::sim::network::{Parcel, Side};
use crate::sim::schedule::Machine;
use crate::sim::world::{Happening, World, agent_id};

impl World {
    pub(in crate::sim) fn tell_peer(&mut self, what: ToPeer) {
        match what {
            ToPeer::Send { peer, message } => self.send_to(peer, *message),
            ToPeer::Close { peer } => {
                if let Some(conn) = self.conn_of(peer) {
                    self.after(0, Happening::Lost(conn, Side::Coordinator));
                }
            }
            ToPeer::SendChunks { peer, download, model, missing } => {
                self.send_model(peer, download, &model, &missing);
            }
            ToPeer::Receive { peer, sink, on_disk } => {
                if let (Some(conn), Some(process)) = (self.conn_of(peer), self.coordinator.process.as_mut()) {
                    process.sinks.insert((conn, sink.transfer()), (sink, on_disk));
                }
            }
            ToPeer::Forget { peer, transfer } => {
                if let (Some(conn), Some(process)) = (self.conn_of(peer), self.coordinator.process.as_mut()) {
                    process.sinks.remove(&(conn, transfer));
                }
            }
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
        if let CoordinatorMessage::Pod(round) = &message {
            self.pod_named(peer, round);
        }
        if let Some(conn) = self.conn_of(peer) {
            if matches!(message, CoordinatorMessage::Rejected(Rejection::Revoked))
                && let Some(entry) = self.conns.get(&conn)
            {
                self.coordinator.members.heard(agent_id(entry.machine));
            }
            let to_evaluate = match &message {
                CoordinatorMessage::Evaluate { version, digest } => Some((*version, *digest)),
                CoordinatorMessage::Lease { lease, evaluate: true } => Some((lease.base_version, lease.base_digest)),
                _ => None,
            };
            if let Some((version, digest)) = to_evaluate {
                let asked = self.journal.evaluates(version, digest);
                self.checked(asked);
            }
            let to_evaluate = to_evaluate.map(|(version, _)| version);
            if let Some(entry) = self.conns.get_mut(&conn).filter(|_| to_evaluate.is_some()) {
                entry.to_evaluate = to_evaluate;
            }
            self.send_down(conn, Parcel::Message(message));
        }
    }

    fn pod_named(&mut self, peer: PeerId, round: &PodRound) {
        // Whoever is gone is not told; the attempt fails over that.
        let Some(machine) = self.conn_of(peer).and_then(|conn| self.conns.get(&conn)).map(|conn| conn.machine) else {
            return;
        };
        let told = Told { life: self.coordinator.life, peer, agent: agent_id(machine) };
        let spec = &self.setting.spec;
        let layers = spec.model.layers().ok().flatten().map_or(0, |model| model.layers.len());
        let (Some(pod), Some(plan)) = (&spec.pod, self.schedule.pods) else {
            return self.violate("pod parts", "a pod is formed in a run without pods");
        };
        let owner = self.machine_of(round.owner).unwrap_or(0);
        let could_be = self.agents.iter().filter(|agent| agent.plan.pod && !agent.plan.helper);
        let of_site = could_be.filter(|agent| plan.site(agent.machine) == plan.site(owner));
        let site = of_site.map(|agent| agent_id(agent.machine)).collect();
        let shape = Shape { spec: pod, layers, site: &site };
        let named = self.pods.watched.named(told, round, self.journal.lease(round.mark.lease), shape);
        self.checked(named);
    }

    /// What is known of an evaluation that failed must be taken up at once, unless the run or the process is about to end.
    fn hear_of_failure(&mut self, machine: Machine, version: ModelVersion) {
        let leaving = self.coordinator.process.as_ref().is_none_or(|process| process.host.is_leaving());
        if !leaving && !self.stopping && !self.agent(machine).may_be_revoked {
            let heard = self.journal.heard_of_failure(agent_id(machine), version);
            self.checked(heard);
        }
    }

    fn send_model(&mut self, peer: PeerId, download: DownloadId, snapshot: &PackedModel, missing: &Missing) {
        let Some(conn) = self.conn_of(peer) else { return };
        if matches!(snapshot.form, ModelForm::Chain { .. }) && !self.schedule.share_updates {
            return self.violate("sharing", "an agent is sent updates of others, and may not be");
        }
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
                self.pods.watched.greeted(peer, hello.pod.as_ref().and_then(|offer| offer.at_work));
                self.coordinator_takes(Input::Hello { peer, agent: agent_id(machine), certificate: None, hello });
            }
            Parcel::Message(message) => {
                let Some(peer) = conn.peer else { return };
                if let AgentMessage::PodEnded { mark, .. } = &message {
                    self.pods.watched.ended(peer, *mark);
                }
                let failed = match &message {
                    AgentMessage::EvaluationFailed { version, .. } => {
                        conn.to_evaluate.take_if(|asked| asked == version)
                    }
                    AgentMessage::Evaluated { evaluation, .. } => {
                        conn.to_evaluate.take_if(|asked| *asked == evaluation.version);
                        None
                    }
                    _ => None,
                };
                self.coordinator_takes(Input::Message { peer, message });
                if let Some(version) = failed {
                    self.hear_of_failure(machine, version);
                }
            }
            Parcel::Chunk { transfer, index, bytes } => self.chunk_arrived(id, transfer, index, &bytes),
        }
    }

    fn chunk_arrived(&mut self, conn: u64, transfer: Digest, index: u32, chunk: &[u8]) {
        let unix_ms = self.unix_ms();
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let Some((sink, on_disk)) = process.sinks.get(&(conn, transfer)).cloned() else { return };
        let Some(peer) = self.conns.get(&conn).and_then(|conn| conn.peer) else { return };
        let machine = self.conns.get(&conn).map(|conn| conn.machine);
        let Ok(put) = sink.put(index, chunk) else {
            if machine.is_some_and(|machine| agent_id(machine) == sink.name().agent()) {
                return self.lost(conn, Side::Coordinator);
            }
            // A helper of a pod does not have what the owner has offered.
            process.sinks.remove(&(conn, transfer));
            return self.coordinator_takes(Input::Message { peer, message: AgentMessage::PartNotHere { transfer } });
        };
        if put.is_whole {
            process.sinks.remove(&(conn, transfer));
        }
        if on_disk && put.is_news {
            self.coordinator.spool.write(sink.name(), put.offset, chunk, unix_ms);
        }
        if put.is_news || put.is_whole {
            let bytes = if put.is_news { chunk.len() as u64 } else { 0 };
            let chunk = Received { upload: sink.upload(), bytes, is_whole: put.is_whole, is_kept: true };
            self.coordinator_takes(Input::Received { peer, chunk });
        }
    }

    pub(in crate::sim) fn coordinator_lost(&mut self, conn: u64, peer: Option<PeerId>) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        process.sinks.retain(|(of, _), _| *of != conn);
        if let Some(peer) = peer {
            process.peers.remove(&peer);
            self.coordinator_takes(Input::Disconnected { peer });
        }
    }
}
