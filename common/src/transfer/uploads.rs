//! The policy over all connections.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::action::{Action, Guard, Opened, Received};
use super::budget::{Budgets, Hold};
use super::expected::Expected;
use super::halves::{Half, Halves};
use super::helpers::{Helper, Helping};
use super::name::UploadName;
use super::room::Room;
use super::sink::Sink;
use super::upload::{Held, Receiving, Stage, Upload, UploadId};
use crate::ids::{AgentId, Digest, PeerId};
use crate::limits;
use crate::now::Now;
use crate::status::UploadStatus;
use crate::wire::transfer::{Missing, TransferManifest};

/// A half that its agent left in memory.
#[derive(Debug)]
struct LeftBehind {
    left_ms: u64,
    sink: Arc<Sink>,
    held: Held,
}

#[derive(Debug, Default)]
struct Counters {
    received: u64,
    kept: u64,
    given_up: u64,
}

/// Every upload, and the room for all that are in memory.
#[derive(Debug)]
pub struct Uploads {
    uploads: BTreeMap<UploadId, Upload>,
    by_transfer: BTreeMap<(PeerId, Digest), UploadId>,
    room: Room,
    left_behind: BTreeMap<AgentId, LeftBehind>,
    halves: Halves,
    counters: Counters,
    latest: u64,
    looked_ms: u64,
    actions: Vec<Action>,
}

impl Uploads {
    /// With the halves that the last process has left on disk.
    #[must_use]
    pub fn new(budgets: Budgets, found: &[Half], now: Now) -> Self {
        let (halves, superfluous) = Halves::new(found, now.unix_ms);
        Self {
            uploads: BTreeMap::new(),
            by_transfer: BTreeMap::new(),
            room: Room::new(budgets),
            left_behind: BTreeMap::new(),
            halves,
            counters: Counters::default(),
            latest: 0,
            looked_ms: now.mono_ms,
            actions: Some(superfluous).filter(|names| !names.is_empty()).map(Action::Delete).into_iter().collect(),
        }
    }

    /// An upload is wanted that was offered; `helpers` have sections of it. Equal content of one connection is received once.
    pub fn offered(
        &mut self,
        now: Now,
        (peer, agent): (PeerId, AgentId),
        what: Expected,
        (manifest, helpers): (TransferManifest, Vec<Helper>),
    ) {
        let transfer = manifest.id();
        let same = self.by_transfer.get(&(peer, transfer)).copied();
        let is_here = |upload: &Upload| upload.waiting.iter().any(|other| other.is_same(&what));
        if same.and_then(|id| self.uploads.get(&id)).is_some_and(is_here) {
            return;
        }
        let of_peer = self.by_transfer.range((peer, Digest([0; 32]))..=(peer, Digest([u8::MAX; 32])));
        let waiting: usize =
            of_peer.filter_map(|(_, id)| self.uploads.get(id)).map(|upload| upload.waiting.len()).sum();
        if waiting >= limits::TRANSFERS_PER_PEER {
            return self.actions.push(Action::CutOff { peer, why: "offers too many uploads at once" });
        }
        if let Some(upload) = same.and_then(|id| self.uploads.get_mut(&id)) {
            return upload.waiting.push_back(what);
        }
        if let Err(error) = manifest.validate(self.room.most_bytes()) {
            return self.actions.push(Action::Failed { peer, what, why: error.to_string() });
        }
        self.latest += 1;
        let id = UploadId(self.latest);
        let (waiting, stage) = (VecDeque::from([what]), Stage::Turn);
        let (is_gone, transfer_ms) = (false, None);
        let upload = Upload { peer, agent, transfer, manifest, helpers, waiting, stage, is_gone, transfer_ms };
        let is_large = upload.is_large();
        self.uploads.insert(id, upload);
        self.by_transfer.insert((peer, transfer), id);
        if is_large {
            self.room.ask_for_turn(peer, id);
            self.next_turn(now, peer);
        } else {
            self.ask_for_room(now, id);
        }
        self.settle(now);
    }

    /// What was on disk of an upload is in its sink.
    pub fn opened(&mut self, now: Now, Opened { upload: id, on_disk }: Opened) {
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        let Stage::Opening { sink, held } = std::mem::replace(&mut upload.stage, Stage::Turn) else { return };
        if !on_disk {
            self.halves.remove(sink.name());
        }
        if upload.is_gone {
            let agent = upload.agent;
            self.uploads.remove(&id);
            self.leave(now, agent, Receiving::new(now.mono_ms, sink, held, on_disk));
        } else {
            self.receive(now, id, Receiving::new(now.mono_ms, sink, held, on_disk));
        }
        self.settle(now);
    }

    /// A chunk was put into a sink.
    pub fn received(&mut self, now: Now, Received { upload: id, bytes, is_whole, is_kept }: Received) {
        self.counters.received += u64::from(bytes > 0);
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        let Stage::Receiving(receiving) = &mut upload.stage else { return };
        if bytes > 0 {
            receiving.received(bytes);
        }
        let name = receiving.sink.name();
        if !is_kept {
            receiving.on_disk = false;
            self.halves.remove(name);
        } else if receiving.on_disk {
            self.halves.touch(name, now.unix_ms);
        }
        if is_whole {
            self.whole(now, id);
        }
        self.settle(now);
    }

    /// An upload was decoded, or cannot be.
    pub fn decoded(&mut self, now: Now, id: UploadId) {
        self.room.decoding_ends();
        if let Some(upload) = self.uploads.get_mut(&id)
            && let Stage::Decoding { sink, held } = std::mem::replace(&mut upload.stage, Stage::Turn)
        {
            upload.waiting.pop_front();
            if upload.waiting.is_empty() {
                self.remove(now, id);
            } else {
                upload.stage = Stage::Whole { sink, held, since_ms: now.mono_ms };
                self.ask_to_decode(id);
            }
        }
        self.settle(now);
    }

    /// What is half here of `name` is not needed any more.
    pub fn decided(&mut self, name: UploadName) {
        if self.halves.remove(name) {
            self.actions.push(Action::Delete(vec![name]));
        }
    }

    /// A connection does not have what it was asked for of another agent's upload: the agent is.
    pub fn not_there(&mut self, now: Now, peer: PeerId, transfer: Digest) {
        let of_transfer = self.uploads.iter().filter(|(_, upload)| upload.transfer == transfer);
        for id in of_transfer.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.take_back(id, |helping, _| helping.helper.peer == peer);
        }
        self.settle(now);
    }

    /// A connection has ended, or is about to. What is half here of its uploads waits for its agent. What it helps with is
    /// asked of others.
    pub fn closed(&mut self, now: Now, peer: PeerId) {
        for id in self.uploads.keys().copied().collect::<Vec<_>>() {
            if let Some(upload) = self.uploads.get_mut(&id) {
                upload.helpers.retain(|helper| helper.peer != peer);
            }
            self.take_back(id, |helping, _| helping.helper.peer == peer);
        }
        self.room.forget_turns(peer);
        let of_peer = self.by_transfer.range((peer, Digest([0; 32]))..=(peer, Digest([u8::MAX; 32])));
        for id in of_peer.map(|(_, id)| *id).collect::<Vec<_>>() {
            let Some(upload) = self.uploads.get_mut(&id) else { continue };
            upload.is_gone = true;
            self.by_transfer.remove(&(peer, upload.transfer));
            match upload.stage {
                // What is read from disk comes back; what is whole is decoded all the same.
                Stage::Opening { .. } | Stage::Whole { .. } | Stage::Decoding { .. } => {}
                Stage::Turn | Stage::Room { .. } | Stage::Receiving(_) => {
                    let (agent, transfer) = (upload.agent, upload.transfer);
                    if let Some(Upload { stage: Stage::Receiving(receiving), .. }) = self.remove(now, id) {
                        self.actions.extend(released(transfer, &receiving.helping));
                        self.leave(now, agent, receiving);
                    }
                }
            }
        }
        self.settle(now);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) {
        if now.mono_ms.saturating_sub(self.looked_ms) >= limits::TRANSFER_LOOK_MS {
            self.looked_ms = now.mono_ms;
            self.look(now);
        }
        self.settle(now);
    }

    /// What is to be done. The budgets of content that was dropped meanwhile are free again.
    pub fn take_actions(&mut self, now: Now) -> Vec<Action> {
        self.settle(now);
        std::mem::take(&mut self.actions)
    }

    /// The connection of an upload that is an initial model.
    #[must_use]
    pub fn model_from(&self, id: UploadId) -> Option<PeerId> {
        self.uploads.get(&id).filter(|upload| upload.is_model()).map(|upload| upload.peer)
    }

    /// What people are told.
    #[must_use]
    pub fn status(&self) -> UploadStatus {
        let (on_disk, disk_bytes) = self.halves.totals();
        let memory_bytes: u64 = self.left_behind.values().map(|left| left.sink.manifest().bytes).sum();
        UploadStatus {
            partial: on_disk + self.left_behind.len() as u64,
            partial_bytes: disk_bytes + memory_bytes,
            chunks_received: self.counters.received,
            chunks_kept: self.counters.kept,
            given_up: self.counters.given_up,
            waiting: self.room.waiting() as u64,
        }
    }

    /// Bytes that are free of the budgets of payloads and of decoded content.
    #[must_use]
    pub fn free_bytes(&self) -> (u64, u64) {
        self.room.free_bytes()
    }

    fn next_turn(&mut self, now: Now, peer: PeerId) {
        if let Some(id) = self.room.next_turn(peer) {
            self.ask_for_room(now, id);
        }
    }

    /// An upload whose half is in memory has its room already.
    fn ask_for_room(&mut self, now: Now, id: UploadId) {
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        let (agent, bytes) = (upload.agent, upload.manifest.bytes);
        if self.left_behind.get(&agent).is_some_and(|left| left.sink.transfer() == upload.transfer)
            && let Some(LeftBehind { sink, held, .. }) = self.left_behind.remove(&agent)
        {
            let name = upload.name().unwrap_or(sink.name());
            let sink = Arc::new(sink.of(id, name));
            return self.receive(now, id, Receiving::new(now.mono_ms, sink, held, false));
        }
        upload.stage = Stage::Room { since_ms: now.mono_ms, share: None };
        if self.room.ask_for_share(agent, id, bytes) {
            // What it left behind gives way to what it wants now.
            self.left_behind.remove(&agent);
        }
        self.next_share(agent);
    }

    fn next_share(&mut self, agent: AgentId) {
        while let Some((id, hold)) = self.room.next_share(agent) {
            if let Some(Upload { stage: Stage::Room { share, .. }, manifest, helpers, .. }) = self.uploads.get_mut(&id)
            {
                *share = Some(hold);
                self.room.ask_for_buffer(id, manifest.bytes, 1 + helpers.len() as u64);
            }
        }
    }

    /// There is room: the buffer is made, and not before.
    fn begin(&mut self, now: Now, id: UploadId, granted: u64) {
        let payload = self.uploads.get(&id).map_or(0, |upload| upload.manifest.bytes).min(granted);
        let (payload, chunks) = (self.room.hold_of_buffer(payload), self.room.hold_of_buffer(granted - payload));
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        let Stage::Room { share, .. } = &mut upload.stage else { return };
        let (Some(share), Some(name)) = (share.take(), upload.name()) else { return };
        let held = Held { _share: share, _payload: payload, chunks: Some(chunks) };
        // Its length was checked when it was offered.
        let Ok(sink) = Sink::new(id, name, upload.manifest.clone()) else { return };
        let sink = Arc::new(sink);
        if !upload.is_large() {
            return self.receive(now, id, Receiving::new(now.mono_ms, sink, held, false));
        }
        upload.stage = Stage::Opening { sink: Arc::clone(&sink), held };
        let (keep, mut displaced) = self.halves.admit(name, sink.manifest().bytes, now.unix_ms);
        displaced.retain(|displaced| *displaced != name);
        if !displaced.is_empty() {
            self.actions.push(Action::Delete(displaced));
        }
        self.actions.push(Action::Open { sink, keep });
    }

    /// Chunks are awaited from now on: of the helpers those of their sections, of the upload's agent all others.
    fn receive(&mut self, now: Now, id: UploadId, mut receiving: Receiving) {
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        let (sink, on_disk) = (Arc::clone(&receiving.sink), receiving.on_disk);
        let (peer, chunks) = (upload.peer, upload.manifest.chunks.len());
        let mut missing = sink.missing();
        let helpers = std::mem::take(&mut upload.helpers).into_iter();
        let helping = helpers.map(|helper| Helping::new(helper, &missing));
        receiving.helping = helping.filter(|helping| !missing.within(helping.chunks()).is_empty()).collect();
        receiving.is_shared = !receiving.helping.is_empty();
        let asked: Vec<Helper> = receiving.helping.iter().map(|helping| helping.helper.clone()).collect();
        upload.stage = Stage::Receiving(receiving);
        let kept = chunks - missing.indices(chunks).count();
        self.counters.kept += kept as u64;
        if missing.is_empty() {
            return self.whole(now, id);
        }
        for helper in asked {
            let chunks = helper.section.chunks.clone();
            let (sink, wanted) = (Arc::clone(&sink), missing.within(chunks.clone()));
            _ = missing.take(chunks);
            self.actions.push(Action::Ask { helper, sink, missing: wanted, on_disk });
        }
        // Where nothing is left for the agent, it learns that the update is on its way.
        self.actions.push(Action::Receive { peer, sink, missing, on_disk, kept });
    }

    /// Asks the agent of an upload for what helpers that are lost have not brought.
    fn take_back(&mut self, id: UploadId, mut is_lost: impl FnMut(&mut Helping, &Missing) -> bool) {
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        let Stage::Receiving(Receiving { sink, on_disk, helping, .. }) = &mut upload.stage else { return };
        let mut missing = sink.missing();
        let mut wanted = missing.take(0..0);
        for lost in helping.extract_if(.., |helping| is_lost(helping, &missing)).collect::<Vec<_>>() {
            wanted.join(&missing.take(lost.chunks()));
            self.actions.push(Action::Release { peer: lost.helper.peer, transfer: upload.transfer });
        }
        if !wanted.is_empty() {
            let (peer, sink, on_disk) = (upload.peer, Arc::clone(sink), *on_disk);
            self.actions.push(Action::Receive { peer, sink, missing: wanted, on_disk, kept: 0 });
        }
    }

    /// Nothing is missing: no more chunks are on their way.
    fn whole(&mut self, now: Now, id: UploadId) {
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        match std::mem::replace(&mut upload.stage, Stage::Turn) {
            Stage::Receiving(receiving) => {
                upload.transfer_ms = receiving.transfer_ms(now.mono_ms);
                let Receiving { sink, mut held, helping, is_shared, .. } = receiving;
                held.chunks = None;
                upload.stage = Stage::Whole { sink, held: Arc::new(held), since_ms: now.mono_ms };
                if is_shared {
                    // The last chunk came on one of the connections, and the others still await it.
                    let (peer, transfer) = (upload.peer, upload.transfer);
                    self.actions.push(Action::Release { peer, transfer });
                    self.actions.extend(released(transfer, &helping));
                }
            }
            other => return upload.stage = other,
        }
        if upload.is_large() {
            let peer = upload.peer;
            self.end_turn(now, peer);
        }
        self.ask_to_decode(id);
    }

    fn end_turn(&mut self, now: Now, peer: PeerId) {
        self.room.end_turn(peer);
        self.next_turn(now, peer);
    }

    fn ask_to_decode(&mut self, id: UploadId) {
        let Some(upload) = self.uploads.get(&id) else { return };
        let bytes = upload.waiting.front().map_or(0, |what| what.decoded_bytes(upload.manifest.bytes));
        self.room.ask_for_decoding(id, bytes);
    }

    fn decode(&mut self, id: UploadId, decoded: Hold) {
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        let Stage::Whole { sink, held, .. } = std::mem::replace(&mut upload.stage, Stage::Turn) else { return };
        let Some(what) = upload.waiting.front().cloned() else { return };
        upload.stage = Stage::Decoding { sink: Arc::clone(&sink), held: Arc::clone(&held) };
        self.room.decoding_begins();
        let guard = Guard { _held: held, _decoded: decoded };
        // Of equal updates the first one was transferred.
        let transfer_ms = upload.transfer_ms.take();
        self.actions.push(Action::Decode { upload: id, peer: upload.peer, what, sink, guard, transfer_ms });
    }

    /// Another `limits::TRANSFER_LOOK_MS` have passed: gives up what takes too long, and what nobody came back for.
    fn look(&mut self, now: Now) {
        let room_is_short = self.room.waiting() > 0;
        let waits_too_long = |since_ms: u64| now.mono_ms.saturating_sub(since_ms) > limits::OFFER_TIMEOUT_MS;
        let mut over = Vec::new();
        for (id, upload) in &mut self.uploads {
            let is_over = match &mut upload.stage {
                Stage::Receiving(receiving) => receiving.is_over(room_is_short),
                Stage::Room { since_ms, .. } | Stage::Whole { since_ms, .. } => waits_too_long(*since_ms),
                Stage::Turn | Stage::Opening { .. } | Stage::Decoding { .. } => false,
            };
            if is_over {
                over.push(*id);
            }
        }
        over.into_iter().for_each(|id| self.give_up(now, id));
        for id in self.uploads.keys().copied().collect::<Vec<_>>() {
            self.take_back(id, Helping::is_silent);
        }
        self.left_behind.retain(|_, left| now.unix_ms.saturating_sub(left.left_ms) <= limits::PARTIAL_UPLOAD_AGE_MS);
        let expired = self.halves.expire(now.unix_ms);
        if !expired.is_empty() {
            self.actions.push(Action::Delete(expired));
        }
    }

    /// Undecided: its agent offers it again when it has waited long enough. What is on disk of it stays.
    fn give_up(&mut self, now: Now, id: UploadId) {
        let Some(upload) = self.remove(now, id) else { return };
        let (peer, transfer) = (upload.peer, upload.transfer);
        let Stage::Receiving(receiving) = &upload.stage else {
            let why = "there is no room for it for too long";
            return self.actions.push(Action::Forget { peer, transfer, why });
        };
        self.actions.extend(released(transfer, &receiving.helping));
        self.counters.given_up += 1;
        self.actions.push(Action::Forget { peer, transfer, why: "it is too slow" });
        if upload.is_model() {
            // Everyone waits for the initial model of a run: the next agent is asked for its own.
            self.actions.push(Action::CutOff { peer, why: "did not send the initial model that it offered" });
        }
    }

    fn remove(&mut self, now: Now, id: UploadId) -> Option<Upload> {
        let upload = self.uploads.remove(&id)?;
        self.by_transfer.remove(&(upload.peer, upload.transfer));
        match upload.stage {
            Stage::Turn => self.room.forget_turn(upload.peer, id),
            Stage::Room { .. } => self.room.forget_buffer(upload.agent, id),
            Stage::Whole { .. } => self.room.forget_decoding(id),
            Stage::Opening { .. } | Stage::Receiving(_) | Stage::Decoding { .. } => {}
        }
        let had_turn = matches!(upload.stage, Stage::Room { .. } | Stage::Opening { .. } | Stage::Receiving(_));
        if upload.is_large() && had_turn {
            self.end_turn(now, upload.peer);
        }
        Some(upload)
    }

    /// Keeps an upload for when its agent comes back; in memory, instead of the one it left before, if not on disk.
    fn leave(&mut self, now: Now, agent: AgentId, Receiving { sink, held, on_disk, .. }: Receiving) {
        let on_disk = on_disk && self.halves.keeps(sink.name());
        let share_is_wanted = self.room.share_is_wanted(agent);
        if !on_disk && !share_is_wanted && sink.manifest().chunks.len() > 1 {
            self.left_behind.insert(agent, LeftBehind { left_ms: now.unix_ms, sink, held });
        }
    }

    /// Takes back what was dropped, and gives it to those who wait.
    fn settle(&mut self, now: Now) {
        loop {
            for (of, bytes) in self.room.take_returned() {
                if let Some(agent) = self.room.give_back(of, bytes) {
                    self.next_share(agent);
                    self.room.forget_unused_share(agent);
                }
            }
            while let Some((id, granted)) = self.room.next_buffer() {
                self.begin(now, id, granted);
            }
            while let Some((id, decoded)) = self.room.next_decoding() {
                self.decode(id, decoded);
            }
            if self.room.waiting() > 0 {
                // What was left behind gives way to what is coming in.
                self.left_behind.pop_first();
            }
            if self.room.is_settled() {
                return;
            }
        }
    }
}

/// Nothing more is awaited of these helpers.
fn released(transfer: Digest, helping: &[Helping]) -> impl Iterator<Item = Action> + '_ {
    helping.iter().map(move |helping| Action::Release { peer: helping.helper.peer, transfer })
}
