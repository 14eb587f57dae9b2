use std::sync::Arc;

use anabranch_common::codec::{self, CodecId};
use anabranch_common::ids::{AgentId, BranchId, Epoch, LeaseId, ModelVersion, RunId, UpdateSeq};
use anabranch_common::limits::CHUNK_BYTES;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::update::{UpdateKey, UpdateMeta};
use anabranch_common::wire::transfer::TransferManifest;

use super::super::uploads::Uploads;
use super::*;
use crate::core::content::Content;

const AGENT: AgentId = AgentId([1; 16]);

fn key(seq: u64) -> UpdateKey {
    UpdateKey { run: RunId([1; 16]), agent: AGENT, epoch: Epoch(1), seq: UpdateSeq(seq) }
}

fn update(seq: u64) -> Expected {
    let tensor = TensorSpec { name: "w".into(), shape: vec![4] };
    let meta = UpdateMeta {
        key: key(seq),
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
    };
    let manifest = Arc::new(ModelManifest::new(vec![tensor]).expect("valid"));
    Expected::Update { meta: Box::new(meta), manifest }
}

fn content() -> Vec<u8> {
    (0..2 * CHUNK_BYTES + 9).map(|index| index.to_le_bytes()[0] ^ index.to_le_bytes()[2]).collect()
}

async fn open(uploads: &Uploads, seq: u64) -> Upload {
    let manifest = TransferManifest::of(&content());
    uploads.open(AGENT, PartialName::of_update(&key(seq)), manifest).await.expect("there is room")
}

fn chunk(index: u32) -> Vec<u8> {
    let range = TransferManifest::of(&content()).range(index).expect("there are three");
    content()[range].to_vec()
}

/// Two updates with the same content used to take each other's place, and the first one never got a verdict.
#[tokio::test]
async fn equal_uploads_of_one_agent_are_received_once_and_all_told() {
    let folder = tempfile::tempdir().expect("a directory");
    let uploads = Uploads::new(folder.path().to_owned());
    let mut transfers = Transfers::default();
    let id = TransferManifest::of(&content()).id();
    assert_eq!(transfers.announce(id, update(0)), Ok(true));
    assert_eq!(transfers.announce(id, update(1)), Ok(false), "before it is open");
    let upload = open(&uploads, 0).await;
    assert!(matches!(transfers.opened(id, upload, None), Opened::Missing(_)));
    assert_eq!(transfers.announce(id, update(2)), Ok(false), "and when it is");
    assert_eq!(transfers.announce(id, update(2)), Ok(false), "the same update again is the same");
    for index in [1, 0] {
        let put = transfers.put(id, index, &chunk(index)).expect("a sound chunk");
        assert!(put.whole.is_none() && put.counts.is_some());
    }
    assert!(transfers.put(id, 0, &chunk(0)).expect("a repeated chunk").counts.is_none(), "it is not counted twice");
    let whole = transfers.put(id, 2, &chunk(2)).expect("a sound chunk").whole.expect("nothing is missing");
    assert_eq!(whole.waiting.len(), 3);
    assert_eq!(whole.upload.assembly.finish(), Some(content()));
    assert!(transfers.put(id, 2, &chunk(2)).expect("too late, and harmless").whole.is_none());
}

/// A slow agent must not keep its share of the budget for ever (P8): what is not here in time is given up.
#[tokio::test]
async fn an_upload_that_takes_too_long_is_given_up_and_goes_on_from_disk() {
    let folder = tempfile::tempdir().expect("a directory");
    let uploads = Uploads::new(folder.path().to_owned());
    let mut transfers = Transfers::default();
    let manifest = TransferManifest::of(&content());
    let id = manifest.id();
    transfers.announce(id, update(0)).expect("the first one");
    let upload = open(&uploads, 0).await;
    transfers.opened(id, upload, None);
    let put = transfers.put(id, 1, &chunk(1)).expect("a sound chunk");
    uploads.received(put.counts.flatten(), put.offset, chunk(1)).await;
    for _ in 0..limits::UPLOAD_STALL_MS / limits::TRANSFER_LOOK_MS {
        assert_eq!(transfers.look(false), []);
    }
    assert_eq!(transfers.look(false), [Overdue { id, is_model: false }]);
    transfers.announce(id, update(0)).expect("again");
    let again = open(&uploads, 0).await;
    assert_eq!(again.assembly.missing().indices(3).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(uploads.status().chunks_kept, 1);
}

/// While others wait for room, whoever holds some has to show for it.
#[tokio::test]
async fn an_upload_that_trickles_makes_way_when_room_is_short_and_a_steady_one_does_not() {
    let folder = tempfile::tempdir().expect("a directory");
    let uploads = Uploads::new(folder.path().to_owned());
    let mut transfers = Transfers::default();
    let id = TransferManifest::of(&content()).id();
    transfers.announce(id, update(0)).expect("the first one");
    transfers.opened(id, open(&uploads, 0).await, None);
    let grace = limits::UPLOAD_BUSY_GRACE_MS / limits::TRANSFER_LOOK_MS;
    (0..grace).for_each(|_| assert_eq!(transfers.look(true), []));
    transfers.put(id, 0, &chunk(0)).expect("a sound chunk");
    let earned = (CHUNK_BYTES as u64 * 1000 / limits::UPLOAD_BUSY_MIN_BYTES_PER_S) / limits::TRANSFER_LOOK_MS;
    (0..earned).for_each(|_| assert_eq!(transfers.look(true), []));
    assert_eq!(transfers.look(false), [], "nobody else wants the room");
    assert_eq!(transfers.look(true).len(), 1);
}

/// The memory of an upload does not end with its decoding: the event, the gate, the writer and
/// the merger hold it on.
#[tokio::test]
async fn an_upload_holds_its_budgets_until_its_content_is_dropped() {
    let folder = tempfile::tempdir().expect("a directory");
    let uploads = Uploads::new(folder.path().to_owned());
    let (payload, decoded) = (limits::UPLOADS_IN_FLIGHT_BYTES, limits::DECODED_UPLOADS_BYTES);
    assert_eq!(uploads.free_bytes(), (payload, decoded));
    let mut upload = open(&uploads, 0).await;
    let bytes = content().len() as u64;
    let kib = |bytes: u64| bytes.next_multiple_of(1 << 10);
    assert_eq!(
        uploads.free_bytes(),
        (payload - kib(2 * bytes), decoded),
        "the buffer, and chunks on their way into it"
    );
    (0..3).for_each(|index| _ = upload.assembly.put(index, &chunk(index)).expect("a sound chunk"));
    let room = uploads.room_to_decode(9 << 20).await.expect("there is room");
    let received = upload.finish().expect("nothing is missing");
    assert_eq!(received.payload[..], content());
    let held = (payload - kib(bytes), decoded - (9 << 20));
    assert_eq!(uploads.free_bytes(), held);
    let delta = codec::Delta::Dense(vec![1.0; 4]);
    let waiting = Arc::new(Content::measure(delta, received.reservation(room)));
    drop(received);
    let (gate, merger) = (Arc::clone(&waiting), Arc::clone(&waiting));
    drop((waiting, gate));
    assert_eq!(uploads.free_bytes(), held, "it waits for the merger");
    drop(merger);
    assert_eq!(uploads.free_bytes(), (payload, decoded));
}

/// A form that is larger than the budget must not wait for ever, and nothing is decoded beside it.
#[tokio::test]
async fn what_is_larger_than_the_budget_is_decoded_alone() {
    let folder = tempfile::tempdir().expect("a directory");
    let uploads = Uploads::new(folder.path().to_owned());
    let small = uploads.room_to_decode(1).await.expect("there is room");
    let wait = std::time::Duration::from_millis(20);
    let large = || uploads.room_to_decode(8 * limits::TRANSFER_BYTES);
    assert!(tokio::time::timeout(wait, large()).await.is_err(), "something else is decoded");
    drop(small);
    let alone = large().await.expect("the whole budget is free");
    assert_eq!(uploads.free_bytes(), (limits::UPLOADS_IN_FLIGHT_BYTES, 0));
    assert!(tokio::time::timeout(wait, uploads.room_to_decode(1)).await.is_err(), "nothing beside it");
    drop(alone);
    drop(uploads.room_to_decode(1).await.expect("it is free again"));
}

/// Offering much and sending nothing holds a share of the room, and no more.
#[tokio::test]
async fn one_agent_holds_its_share_of_the_room_and_the_others_find_theirs() {
    let folder = tempfile::tempdir().expect("a directory");
    let uploads = Uploads::new(folder.path().to_owned());
    // Never sent, so that nothing is ever written into what is set aside for it.
    let large = |byte| TransferManifest { bytes: 100 << 20, chunks: vec![Digest([byte; 32]); 100] };
    let open =
        |agent, byte| uploads.open(AgentId([agent; 16]), PartialName::of_update(&key(u64::from(byte))), large(byte));
    let first = open(1, 1).await.expect("one transfer always fits");
    let second = tokio::time::timeout(std::time::Duration::from_millis(20), open(1, 2)).await;
    assert!(second.is_err(), "the agent's share is used up");
    assert!(!uploads.is_short(), "which is nobody else's concern");
    open(2, 3).await.expect("another agent has a share of its own");
    drop(first);
    open(1, 2).await.expect("its share is free again");
}

#[test]
fn one_connection_has_so_many_transfers_and_no_more() {
    let mut transfers = Transfers::default();
    for seq in 0..limits::TRANSFERS_PER_PEER as u64 {
        // Half of them equal: they count too.
        let id = Digest([u8::try_from(seq / 2).expect("few"); 32]);
        assert_eq!(transfers.announce(id, update(seq)), Ok(seq % 2 == 0));
    }
    assert_eq!(transfers.announce(Digest([255; 32]), update(99)), Err(TooMany));
    assert_eq!(transfers.announce(Digest([0; 32]), update(99)), Err(TooMany));
    assert_eq!(transfers.announce(Digest([0; 32]), update(0)), Ok(false), "a repetition is not one more");
    transfers.give_up();
    assert_eq!(transfers.announce(Digest([255; 32]), update(99)), Ok(true));
}

#[tokio::test]
async fn a_chunk_of_a_model_is_news_once_and_one_of_an_update_is_none_of_a_model() {
    let folder = tempfile::tempdir().expect("a directory");
    let uploads = Uploads::new(folder.path().to_owned());
    let id = TransferManifest::of(&content()).id();
    let Expected::Update { manifest, .. } = update(0) else { unreachable!("it is one") };
    let model = Expected::Model { manifest, digest: Digest::default() };
    for (what, is_model) in [(model, true), (update(0), false)] {
        let mut transfers = Transfers::default();
        assert_eq!(transfers.announce(id, what), Ok(true));
        assert!(matches!(transfers.opened(id, open(&uploads, 0).await, None), Opened::Missing(_)));
        for is_news in [true, false] {
            let put = transfers.put(id, 0, &chunk(0)).expect("it belongs there");
            assert_eq!((put.of_model, put.counts.is_some()), (is_model, is_news));
        }
    }
}
