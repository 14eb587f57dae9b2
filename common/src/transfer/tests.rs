//! The policy in virtual time.

mod helped;

use std::sync::Arc;

use super::*;
use crate::codec::CodecId;
use crate::ids::{AgentId, BranchId, Digest, Epoch, LeaseId, ModelVersion, PeerId, RunId, UpdateSeq};
use crate::limits::{self, CHUNK_BYTES};
use crate::manifest::{ModelManifest, TensorSpec};
use crate::now::Now;
use crate::update::{UpdateKey, UpdateMeta};
use crate::wire::transfer::TransferManifest;

const PEER: PeerId = PeerId(1);
const AGENT: AgentId = AgentId([1; 16]);

fn manifest() -> Arc<ModelManifest> {
    Arc::new(ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![4] }]).expect("valid"))
}

fn update_of(agent: AgentId, seq: u64) -> Expected {
    let key = UpdateKey { run: RunId([1; 16]), agent, epoch: Epoch(1), seq: UpdateSeq(seq) };
    let meta = UpdateMeta {
        key,
        branch: BranchId([2; 16]),
        lease: LeaseId(seq),
        base_version: ModelVersion(0),
        base_digest: Digest::default(),
        codec: CodecId(1),
        payload_bytes: 0,
        payload_digest: Digest::default(),
        num_examples: 1,
        local_steps: 1,
        train_loss: 0.0,
        compute_ms: 1,
        base_dot: None,
        residual_ratio: None,
        memory: None,
    };
    Expected::Update { meta: Box::new(meta), manifest: manifest() }
}

fn update(seq: u64) -> Expected {
    update_of(AGENT, seq)
}

fn content() -> Vec<u8> {
    (0..2 * CHUNK_BYTES + 9).map(|index| index.to_le_bytes()[0] ^ index.to_le_bytes()[2]).collect()
}

/// A transfer of so many chunks of which nothing is ever sent, so that nothing is written into what is set aside for it.
fn large(byte: u8, chunks: usize) -> TransferManifest {
    let chunks = vec![Digest([byte; 32]); chunks];
    TransferManifest { bytes: (chunks.len() * CHUNK_BYTES) as u64, chunks, sections: vec![] }
}

/// Budgets as they are, and a hand on the clock and the disk.
struct World {
    uploads: Uploads,
    now: Now,
    sinks: Vec<Arc<Sink>>,
    /// What came out beside questions about the disk, which holds nothing.
    actions: Vec<Action>,
    keeps: bool,
}

impl World {
    fn new() -> Self {
        Self::with(Budgets::with_decoders(2))
    }

    fn with(budgets: Budgets) -> Self {
        let uploads = Uploads::new(budgets, &[], Now::default());
        Self { uploads, now: Now::default(), sinks: vec![], actions: vec![], keeps: false }
    }

    /// Answers what is asked about the disk, and keeps the rest.
    fn settle(&mut self) {
        loop {
            let actions = self.uploads.take_actions(self.now);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Open { sink, keep } => {
                        let opened = Opened { upload: sink.upload(), on_disk: keep && self.keeps };
                        self.uploads.opened(self.now, opened);
                    }
                    Action::Receive { sink, .. } => self.sinks.push(sink),
                    other => self.actions.push(other),
                }
            }
        }
    }

    fn offer_from(&mut self, peer: (PeerId, AgentId), what: Expected, transfer: TransferManifest) {
        self.uploads.offered(self.now, peer, what, (transfer, Vec::new()));
        self.settle();
    }

    fn offer(&mut self, seq: u64) {
        self.offer_from((PEER, AGENT), update(seq), TransferManifest::of(&content()));
    }

    /// Puts a chunk of [`content`] into the newest sink; whether it was news.
    fn put(&mut self, index: u32) -> bool {
        let sink = Arc::clone(self.sinks.last().expect("chunks are awaited"));
        let range = sink.manifest().range(index).expect("there are three");
        let put = sink.put(index, &content()[range.clone()]).expect("a sound chunk");
        let bytes = if put.is_news { range.len() as u64 } else { 0 };
        let received = Received { upload: sink.upload(), bytes, is_whole: put.is_whole, is_kept: true };
        self.uploads.received(self.now, received);
        self.settle();
        put.is_news
    }

    /// Time passes until the next look.
    fn look(&mut self) {
        self.now.mono_ms += limits::TRANSFER_LOOK_MS;
        self.now.unix_ms += limits::TRANSFER_LOOK_MS;
        self.uploads.tick(self.now);
        self.settle();
    }

    fn decodes(&self) -> usize {
        self.actions.iter().filter(|action| matches!(action, Action::Decode { .. })).count()
    }

    fn forgotten(&self) -> usize {
        self.actions.iter().filter(|action| matches!(action, Action::Forget { .. })).count()
    }
}

/// Two updates with the same content used to take each other's place, and the first one never got a verdict.
#[test]
fn equal_uploads_of_one_agent_are_received_once_and_all_told() {
    let mut world = World::new();
    for seq in [0, 1, 2, 2] {
        world.offer(seq);
    }
    assert_eq!(world.sinks.len(), 1, "the content is received once");
    assert!(world.put(1) && world.put(0));
    assert!(!world.put(0), "a repeated chunk is not counted twice");
    assert_eq!((world.decodes(), world.uploads.status().chunks_received), (0, 2));
    world.put(2);
    for expected in 0..3 {
        let Some(Action::Decode { upload, what: Expected::Update { meta, .. }, sink, .. }) = world.actions.pop() else {
            panic!("update {expected} is to be decoded")
        };
        assert_eq!((meta.key.seq, sink.payload().as_deref()), (UpdateSeq(expected), Some(&content()[..])));
        world.uploads.decoded(world.now, upload);
        world.settle();
    }
    assert!(world.actions.is_empty());
    world.put(2);
    assert!(world.actions.is_empty(), "too late, and harmless");
}

/// From asking for the chunks to the last one. Chunks that were here already tell nothing about the line.
#[test]
fn the_time_of_a_transfer_is_known_where_all_of_it_came_at_once() {
    let transfer_ms = |world: &mut World| match world.actions.pop() {
        Some(Action::Decode { transfer_ms, .. }) => transfer_ms,
        other => panic!("it is whole: {other:?}"),
    };
    let mut world = World::new();
    world.offer(0);
    world.now.mono_ms += 70;
    world.put(0);
    world.put(0);
    world.put(2);
    world.now.mono_ms += 30;
    world.put(1);
    assert_eq!(transfer_ms(&mut world), Some(100));
    let mut world = World::new();
    world.offer(0);
    world.put(0);
    world.uploads.closed(world.now, PEER);
    world.settle();
    world.offer_from((PeerId(PEER.0 + 1), AGENT), update(0), TransferManifest::of(&content()));
    world.now.mono_ms += 30;
    world.put(1);
    world.put(2);
    assert_eq!(transfer_ms(&mut world), None);
}

/// A slow agent must not keep its share of the budget for ever (P8): what is not here in time is given up.
#[test]
fn an_upload_that_takes_too_long_is_given_up() {
    let mut world = World::new();
    world.offer(0);
    world.put(1);
    for _ in 0..limits::UPLOAD_STALL_MS / limits::TRANSFER_LOOK_MS {
        world.look();
        assert!(world.actions.is_empty());
    }
    world.look();
    assert!(matches!(world.actions[..], [Action::Forget { peer: PEER, .. }]), "{:?}", world.actions);
    assert_eq!(world.uploads.status().given_up, 1);
    assert_eq!(world.uploads.free_bytes(), (limits::UPLOADS_IN_FLIGHT_BYTES, limits::DECODED_UPLOADS_BYTES));
    world.offer(0);
    assert_eq!(world.sinks.len(), 2, "it may begin again");
}

#[test]
fn a_process_that_stood_still_blames_nobody_for_it() {
    let mut world = World::new();
    world.offer(0);
    world.now.mono_ms += 10 * limits::UPLOAD_STALL_MS;
    world.look();
    assert!(world.actions.is_empty(), "one look, however late");
}

/// While others wait for room, whoever holds some has to show for it.
#[test]
fn an_upload_that_trickles_makes_way_when_room_is_short_and_a_steady_one_does_not() {
    // The content, with its chunks on the way, fits; nothing does beside it.
    let mut world = World::with(Budgets { payload_bytes: 5 << 20, ..Budgets::with_decoders(1) });
    world.offer(0);
    let other = AgentId([2; 16]);
    world.offer_from((PeerId(2), other), update_of(other, 0), large(9, 2));
    assert_eq!((world.sinks.len(), world.uploads.status().waiting), (1, 1));
    for _ in 0..limits::UPLOAD_BUSY_GRACE_MS / limits::TRANSFER_LOOK_MS {
        world.look();
    }
    world.put(0);
    let earned = (CHUNK_BYTES as u64 * 1000 / limits::UPLOAD_BUSY_MIN_BYTES_PER_S) / limits::TRANSFER_LOOK_MS;
    for _ in 0..earned {
        world.look();
    }
    assert_eq!(world.forgotten(), 0);
    world.look();
    assert_eq!((world.forgotten(), world.sinks.len(), world.uploads.status().waiting), (1, 2, 0));
}

/// The memory of an upload does not end with its decoding: the event, the gate, the writer and the merger hold it on.
#[test]
fn an_upload_holds_its_budgets_until_its_content_is_dropped() {
    let mut world = World::new();
    let free = (limits::UPLOADS_IN_FLIGHT_BYTES, limits::DECODED_UPLOADS_BYTES);
    assert_eq!(world.uploads.free_bytes(), free);
    world.offer(0);
    let bytes = content().len() as u64;
    assert_eq!(world.uploads.free_bytes(), (free.0 - 2 * bytes, free.1), "the buffer, and chunks on their way into it");
    (0..3).for_each(|index| _ = world.put(index));
    let Some(Action::Decode { upload, guard, sink, .. }) = world.actions.pop() else { panic!("it is whole") };
    let held = world.uploads.free_bytes();
    assert_eq!(held.0, free.0 - bytes);
    assert!(held.1 < free.1, "room for the decoded form");
    let (gate, merger) = (Arc::new(guard), ());
    let merged = Arc::clone(&gate);
    drop((gate, sink, merger));
    world.uploads.decoded(world.now, upload);
    world.settle();
    assert_eq!(world.uploads.free_bytes(), held, "it waits for the merger");
    drop(merged);
    world.settle();
    assert_eq!(world.uploads.free_bytes(), free);
}

/// A form that is larger than the budget must not wait for ever, and nothing is decoded beside it.
#[test]
fn what_is_larger_than_the_budget_is_decoded_alone() {
    let mut world = World::with(Budgets { decoded_bytes: 1, ..Budgets::with_decoders(8) });
    for seq in 0..2 {
        let content = vec![u8::try_from(seq).expect("small"); 9];
        world.offer_from((PEER, AGENT), update(seq), TransferManifest::of(&content));
        let sink = world.sinks.pop().expect("one chunk is asked for");
        let put = sink.put(0, &content).expect("sound");
        let received = Received { upload: sink.upload(), bytes: 9, is_whole: put.is_whole, is_kept: true };
        world.uploads.received(world.now, received);
        world.settle();
    }
    assert_eq!((world.decodes(), world.uploads.free_bytes().1), (1, 0), "nothing beside it");
    let Some(Action::Decode { upload, guard, .. }) = world.actions.pop() else { panic!("one is decoded") };
    world.uploads.decoded(world.now, upload);
    world.settle();
    assert_eq!(world.decodes(), 0, "its content is still held");
    drop(guard);
    world.settle();
    assert_eq!(world.decodes(), 1);
}

/// Offering much and sending nothing holds a share of the room, and no more.
#[test]
fn one_agent_holds_its_share_of_the_room_and_the_others_find_theirs() {
    let mut world = World::new();
    let peer = |n: u8| (PeerId(u64::from(n)), AgentId([n; 16]));
    world.offer_from(peer(1), update_of(AGENT, 1), large(1, 100));
    // Of another connection of the same agent: its large uploads have no common turn.
    world.offer_from((PeerId(9), AGENT), update_of(AGENT, 2), large(2, 100));
    assert_eq!(world.sinks.len(), 1, "the agent's share is used up");
    assert_eq!(world.uploads.status().waiting, 0, "which is nobody else's concern");
    world.offer_from(peer(2), update_of(AgentId([2; 16]), 3), large(3, 100));
    assert_eq!(world.sinks.len(), 2, "another agent has a share of its own");
    world.uploads.closed(world.now, PeerId(1));
    world.settle();
    assert_eq!(world.sinks.len(), 3, "what is left behind makes way for what is wanted now");
}

#[test]
fn large_uploads_of_one_connection_come_one_after_another() {
    let mut world = World::new();
    (0..3).for_each(|n| world.offer_from((PEER, AGENT), update(u64::from(n)), large(n, 2)));
    world.offer_from((PEER, AGENT), update(9), TransferManifest::of(b"a small one"));
    assert_eq!(world.sinks.len(), 2, "the first large one and the small one");
    world.uploads.closed(world.now, PEER);
    world.settle();
    assert_eq!(world.sinks.len(), 2, "a connection that has ended has no turn");
}

#[test]
fn one_connection_has_so_many_transfers_and_no_more() {
    let mut world = World::new();
    let transfer = |n: u64| TransferManifest::of(&n.to_le_bytes());
    for seq in 0..limits::TRANSFERS_PER_PEER as u64 {
        // Half of them equal: they count too.
        world.offer_from((PEER, AGENT), update(seq), transfer(seq / 2));
    }
    assert_eq!(world.sinks.len(), limits::TRANSFERS_PER_PEER / 2);
    world.offer_from((PEER, AGENT), update(0), transfer(0));
    assert!(world.actions.is_empty(), "a repetition is not one more");
    for n in [0, 255] {
        world.offer_from((PEER, AGENT), update(99), transfer(n));
        assert!(matches!(world.actions.pop(), Some(Action::CutOff { peer: PEER, .. })));
    }
    world.uploads.closed(world.now, PEER);
    world.offer_from((PEER, AGENT), update(99), transfer(255));
    assert!(world.actions.is_empty());
}

/// What is left behind in memory waits for its agent, and what it holds is given back when it is taken up and merged.
#[test]
fn an_agent_that_comes_back_sends_only_what_is_missing() {
    for keeps in [false, true] {
        let mut world = World { keeps, ..World::new() };
        world.offer(0);
        world.put(1);
        world.uploads.closed(world.now, PEER);
        world.settle();
        let status = world.uploads.status();
        assert_eq!((status.partial, status.partial_bytes), (1, content().len() as u64), "on disk: {keeps}");
        world.offer_from((PeerId(2), AGENT), update(0), TransferManifest::of(&content()));
        let missing: Vec<u32> = world.sinks.last().expect("asked for").missing().indices(3).collect();
        // The disk of this world forgets.
        assert_eq!(missing, if keeps { vec![0, 1, 2] } else { vec![0, 2] });
        (0..3).for_each(|index| _ = world.put(index));
        let Some(Action::Decode { upload, guard, .. }) = world.actions.pop() else { panic!("it is whole") };
        drop(guard);
        world.uploads.decoded(world.now, upload);
        world.uploads.decided(update(0).name(AGENT));
        world.settle();
        assert_eq!(world.uploads.status().partial, 0);
        assert_eq!(matches!(world.actions[..], [Action::Delete(_)]), keeps);
        let free = (limits::UPLOADS_IN_FLIGHT_BYTES, limits::DECODED_UPLOADS_BYTES);
        assert_eq!(world.uploads.free_bytes(), free);
    }
}

#[test]
fn an_upload_that_finds_no_room_for_too_long_is_dropped_and_may_be_offered_again() {
    let mut world = World::with(Budgets { payload_bytes: 5 << 20, ..Budgets::with_decoders(1) });
    let other = AgentId([2; 16]);
    world.offer(0);
    world.offer_from((PeerId(2), other), update_of(other, 0), TransferManifest::of(&vec![1; 5 << 20]));
    for _ in 0..limits::OFFER_TIMEOUT_MS / limits::TRANSFER_LOOK_MS {
        // The one that has the room is steady.
        world.look();
        let sink = Arc::clone(&world.sinks[0]);
        let steady = Received { upload: sink.upload(), bytes: 4 << 20, is_whole: false, is_kept: true };
        world.uploads.received(world.now, steady);
    }
    assert_eq!((world.forgotten(), world.uploads.status().waiting), (0, 1));
    world.look();
    assert_eq!((world.forgotten(), world.uploads.status().waiting), (1, 0));
}

#[test]
fn a_slow_initial_model_costs_its_connection() {
    let mut world = World::new();
    let model = Expected::Model { manifest: manifest(), digest: Digest::default() };
    world.offer_from((PEER, AGENT), model, TransferManifest::of(&content()));
    let upload = world.sinks[0].upload();
    assert_eq!(world.uploads.model_from(upload), Some(PEER));
    for _ in 0..=limits::UPLOAD_STALL_MS / limits::TRANSFER_LOOK_MS {
        world.look();
    }
    assert!(matches!(world.actions[..], [Action::Forget { .. }, Action::CutOff { peer: PEER, .. }]));
}

#[test]
fn names_are_read_back_and_have_one_spelling() {
    let update = |n: u8, seq| update_of(AgentId([n; 16]), seq).name(AgentId([n; 16]));
    for name in [update(1, 0), update(255, u64::MAX), UploadName::of_model(AgentId([2; 16]))] {
        assert_eq!(UploadName::parse(&name.file()), Some(name));
    }
    for stranger in ["notes.txt", ".part", "01-2-3.part", &update(1, 5).file().replace("-5", "-05")] {
        assert_eq!(UploadName::parse(stranger), None);
    }
}
