//! What an agent's transport does: dialling, messages and chunks.

use anabranch_agent::node::Input;
use anabranch_agent::session::event::{Event, Problem};
use anabranch_common::ids::{Digest, Incarnation};
use anabranch_common::update::Verdict;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_io::chunks::Piece;

use crate::picture::{MarkKind, SpanKind};

use crate::sim::network::{Down, Parcel, Side};
use crate::sim::schedule::Machine;
use crate::sim::trace::Sign;
use crate::sim::world::{Happening, World};

impl World {
    pub(in crate::sim) fn send_chunks(
        &mut self,
        machine: Machine,
        content: &[u8],
        transfer: &TransferManifest,
        missing: &Missing,
    ) {
        let now_ms = self.now_ms();
        let Some(conn) = self.agent(machine).process.as_ref().and_then(|process| process.conn) else { return };
        let poisoned = self.agent(machine).poisoned(content, transfer);
        let (sent, content) = (transfer.id(), poisoned.as_ref().map_or(content, |(content, _)| content.as_slice()));
        let transfer = poisoned.as_ref().map_or(transfer, |(_, transfer)| transfer);
        let id = transfer.id();
        let mut arrived_ms = now_ms;
        for index in missing.indices(transfer.chunks.len()) {
            let Some(bytes) = transfer.range(index).and_then(|range| content.get(range)) else { continue };
            let chunk = Parcel::Chunk { transfer: id, index, bytes: bytes.to_vec() };
            arrived_ms = arrived_ms.max(self.send_up(conn, chunk));
        }
        self.note(machine, Sign::Begin(SpanKind::Upload), || format!("sends {} bytes", content.len()));
        self.acknowledged_after(machine, conn, arrived_ms, sent);
    }

    /// Chunks count as sent once the other end has acknowledged the last of them, which arrives then.
    fn acknowledged_after(&mut self, machine: Machine, conn: u64, arrived_ms: u64, transfer: Digest) {
        let at_ms = self.agent(machine).line.arrival(Side::Agent, arrived_ms);
        self.agenda.at(at_ms, Happening::ChunksSent { conn, transfer });
    }

    /// A helper sends its part of another agent's update.
    pub(in crate::sim) fn send_piece(&mut self, machine: Machine, piece: &Piece, missing: &Missing) {
        let now_ms = self.now_ms();
        let Some(conn) = self.agent(machine).process.as_ref().and_then(|process| process.conn) else { return };
        let (transfer, mut arrived_ms) = (piece.transfer, now_ms);
        for (index, range) in piece.chunks(missing) {
            let chunk = Parcel::Chunk { transfer, index, bytes: piece.content[range].to_vec() };
            arrived_ms = arrived_ms.max(self.send_up(conn, chunk));
        }
        self.acknowledged_after(machine, conn, arrived_ms, transfer);
    }

    pub(in crate::sim) fn chunks_sent(&mut self, conn: u64, transfer: Digest) {
        let Some((machine, number)) = self.agents_end(conn) else { return };
        self.note(machine, Sign::End(SpanKind::Upload), || "has sent it".into());
        self.agent_handles(machine, Input::Link { number, event: Event::ChunksSent { transfer } });
    }

    /// The agent of a connection and its number for it, as long as its end is open.
    fn agents_end(&self, conn: u64) -> Option<(Machine, u64)> {
        self.conns.get(&conn).filter(|conn| conn.agent_up).map(|conn| (conn.machine, conn.link))
    }

    pub(in crate::sim) fn say(&mut self, machine: Machine, message: AgentMessage) {
        let Some(conn) = self.agent(machine).process.as_ref().and_then(|process| process.conn) else { return };
        if let AgentMessage::OfferUpdate { meta, .. } = &message {
            let key = meta.key;
            self.note(machine, Sign::Plain, || format!("offers update {}.{}", key.epoch.0, key.seq.0));
        }
        if let AgentMessage::FetchModel { version, .. } = &message {
            let version = *version;
            self.note(machine, Sign::Begin(SpanKind::Download), || format!("fetches version {version}"));
        }
        let message = self.agent(machine).poison(message);
        let message = self.pod_claims(machine, message);
        if let AgentMessage::ReturnLease { lease, .. } = &message {
            let lease = lease.0;
            self.note(machine, Sign::End(SpanKind::Lease), || format!("gives back lease {lease}"));
        }
        self.send_up(conn, Parcel::Message(message));
    }

    pub(in crate::sim) fn dial(&mut self, machine: Machine, life: u64, dial: u64) {
        let now_ms = self.now_ms();
        let reachable = self.coordinator.process.is_some() && self.stopped_until(0).is_none();
        let agent = self.agent(machine);
        let current = agent.life == life && agent.process.as_ref().is_some_and(|process| process.dial == dial);
        if !current {
            return;
        }
        let deaf = [Side::Agent, Side::Coordinator].iter().any(|side| agent.line.is_deaf(*side, now_ms));
        if deaf || !reachable {
            let wait_ms = 500 + agent.rng.below(10_000);
            return self.after(wait_ms, Happening::Refused { machine, life, dial });
        }
        let conn = self.open_conn(machine, dial);
        if let Some(process) = self.agent(machine).process.as_mut() {
            process.conn = Some(conn);
        }
        self.agent_handles(machine, Input::Link { number: dial, event: Event::Connected });
    }

    pub(in crate::sim) fn dial_failed(&mut self, machine: Machine, life: u64, dial: u64) {
        let agent = self.agent(machine);
        if agent.life == life && agent.process.as_ref().is_some_and(|process| process.dial == dial) {
            let event = Event::Disconnected(Problem::Transient("no answer".into()));
            self.agent_handles(machine, Input::Link { number: dial, event });
        }
    }

    pub(in crate::sim) fn arrived_down(&mut self, id: u64, parcel: Down) {
        let Some((machine, number)) = self.agents_end(id) else { return };
        let Some(process) = self.agent(machine).process.as_ref() else { return };
        let event = match parcel {
            Parcel::Chunk { transfer, index, bytes } => Event::Chunk { transfer, index, bytes },
            Parcel::Message(message) => {
                let incarnation = process.incarnation;
                self.heard(machine, incarnation, &message);
                Event::Message(self.agent(machine).translate(message))
            }
        };
        self.agent_handles(machine, Input::Link { number, event });
    }

    pub(in crate::sim) fn heard(&mut self, machine: Machine, incarnation: Incarnation, message: &CoordinatorMessage) {
        match message {
            CoordinatorMessage::Verdict { key, verdict } => {
                let heard = self.journal.heard(*key, verdict);
                self.checked(heard);
                let accepted = matches!(verdict, Verdict::Accepted { .. });
                let agent = self.agent(machine);
                if agent.healed {
                    agent.verdicts_since_healed += 1;
                }
                let kind = if accepted { MarkKind::Accepted } else { MarkKind::Refused };
                self.note(machine, Sign::Mark(kind), || format!("update {}.{}: {verdict:?}", key.epoch.0, key.seq.0));
            }
            CoordinatorMessage::Lease { lease, .. } => {
                let (id, base) = (lease.id.0, lease.base_version);
                self.note(machine, Sign::End(SpanKind::Lease), || {
                    format!("lease {id} takes the place of an older one")
                });
                self.note(machine, Sign::Begin(SpanKind::Lease), || format!("holds lease {id} on version {base}"));
            }
            CoordinatorMessage::Welcome(welcome) => {
                // Before there is a run nothing is counted in epochs, and a restart of the coordinator forgets them.
                if welcome.model.is_some() {
                    let welcomed = self.journal.welcomed(welcome.agent, incarnation, welcome.epoch);
                    self.checked(welcomed);
                }
                self.note(machine, Sign::End(SpanKind::Offline), || format!("welcome, epoch {}", welcome.epoch.0));
            }
            CoordinatorMessage::Rejected(rejection) => {
                self.note(machine, Sign::Plain, || format!("rejected: {rejection:?}"));
            }
            _ => {}
        }
    }

    pub(in crate::sim) fn agent_lost(&mut self, machine: Machine, conn: u64) {
        let agent = self.agent(machine);
        let Some(process) = agent.process.as_mut().filter(|process| process.conn == Some(conn)) else { return };
        process.conn = None;
        let number = process.dial;
        for kind in [SpanKind::Upload, SpanKind::Download] {
            self.note(machine, Sign::End(kind), || "is cut off".into());
        }
        self.note(machine, Sign::Begin(SpanKind::Offline), || "no connection".into());
        let event = Event::Disconnected(Problem::Transient("the connection was lost".into()));
        self.agent_handles(machine, Input::Link { number, event });
    }
}
