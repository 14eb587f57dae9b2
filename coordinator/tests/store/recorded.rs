//! Journals that were recorded while one kind of record was both a contribution and the close of a version. Converted to
//! contributions and closes, they give the same bits at every version.
//!
//! ```text
//!  params u32 · updates u32 · versions u32 · version 0: f32 each
//!  an update   agent u8 · codec u32 · weight f32 · norm f64 · closes u8 · version u64 · length u32 · payload
//!  then        digest [32] of each version · vectors of the merge state u32 · digest [32] of each
//! ```
//! All numbers are little-endian. Core, merger and store of the recorder ran in a simulated world (3 agents of different speed
//! and an attacker, top-k updates with error feedback, participation, one power loss).

use anabranch_common::codec::dense::{self, Planes32};
use anabranch_common::codec::sparse::TopK;
use anabranch_common::codec::{Codec as _, CodecId};
use anabranch_common::ids::{AgentId, Digest, LeaseId, ModelVersion, UpdateSeq};
use anabranch_common::journal::{Contribution, RecordBody};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::merge::MergeSpec;
use anabranch_coordinator::recovery;

use crate::history::{self, History};

/// An update of the old kind.
struct Update {
    agent: AgentId,
    codec: CodecId,
    weight: f32,
    norm: f64,
    closes: bool,
    version: ModelVersion,
    payload: Vec<u8>,
}

/// What was recorded.
struct Recorded {
    first: Vec<f32>,
    updates: Vec<Update>,
    versions: Vec<Digest>,
    merge_state: Vec<Digest>,
}

struct Input(&'static [u8]);

impl Input {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (bytes, rest) = self.0.split_first_chunk().expect("the file is whole");
        self.0 = rest;
        *bytes
    }

    fn number(&mut self) -> usize {
        u32::from_le_bytes(self.bytes()) as usize
    }

    fn digests(&mut self, count: usize) -> Vec<Digest> {
        (0..count).map(|_| Digest(self.bytes())).collect()
    }

    fn update(&mut self) -> Update {
        let [agent] = self.bytes();
        let codec = CodecId(u8::try_from(self.number()).expect("a codec"));
        let (weight, norm) = (f32::from_le_bytes(self.bytes()), f64::from_le_bytes(self.bytes()));
        let closes = self.bytes() == [1];
        let version = ModelVersion(u64::from_le_bytes(self.bytes()));
        let length = self.number();
        let payload = (0..length).map(|_| u8::from_le_bytes(self.bytes())).collect();
        Update { agent: AgentId([agent; 16]), codec, weight, norm, closes, version, payload }
    }

    fn recorded(mut self) -> Recorded {
        let [params, updates, versions] = [self.number(), self.number(), self.number()];
        let first = (0..params).map(|_| f32::from_le_bytes(self.bytes())).collect();
        let updates = (0..updates).map(|_| self.update()).collect();
        let versions = self.digests(versions);
        let vectors = self.number();
        let merge_state = self.digests(vectors);
        assert!(self.0.is_empty(), "the file ends here");
        Recorded { first, updates, versions, merge_state }
    }
}

/// The content of an update in a codec of today. The recorded top-k sent tensors of fewer than 1,024 elements, such as this
/// one, whole as bf16.
fn readable(manifest: &ModelManifest, update: &Update) -> (CodecId, Vec<u8>) {
    if update.codec != TopK::ID {
        return (update.codec, update.payload.clone());
    }
    let halves = update.payload.as_chunks().0.iter();
    let values: Vec<f32> = halves.map(|half| dense::from_bf16(u16::from_le_bytes(*half))).collect();
    (Planes32::ID, Planes32.encode(manifest, &values).expect("finite"))
}

/// Converts each update into a contribution, and a close where the old record closed a version.
fn convert(merge: MergeSpec, recorded: &Recorded) -> History {
    let tensor = TensorSpec { name: "w".into(), shape: vec![recorded.first.len() as u64] };
    let manifest = ModelManifest::new(vec![tensor]).expect("valid");
    let mut history = History::begin_with(merge, manifest.clone(), recorded.first.clone());
    (0..4).for_each(|agent| history.join(agent));
    for (seq, update) in (0..).zip(&recorded.updates) {
        let lease: LeaseId = history.lease(update.agent, seq);
        let (codec, payload) = readable(&manifest, update);
        let meta = history.meta(update.agent, lease, UpdateSeq(seq), codec, &payload);
        let (weight, norm, credited_examples, mean_weight) = (update.weight, update.norm, 10, 0);
        let (staleness, recall, memory, transfer_ms) = (0, None, None, None);
        let contribution =
            Contribution { meta, credited_examples, staleness, weight, mean_weight, norm, recall, memory, transfer_ms };
        history.push(RecordBody::Contribution(Box::new(contribution)), payload);
        let close = history.state().close_due();
        assert_eq!(close.is_some(), update.closes, "update {seq}");
        if let Some(close) = close {
            history.push(RecordBody::Closed(close), vec![]);
        }
        assert_eq!(history.state().version, update.version, "update {seq}");
    }
    history
}

fn assert_same_bits(merge: MergeSpec, file: &'static [u8]) {
    let recorded = Input(file).recorded();
    let history = convert(merge, &recorded);
    let store = history::stored(&history, history::ALL);
    for (version, digest) in (0..).map(ModelVersion).zip(&recorded.versions) {
        let (state, model) = recovery::model_at(&store, version).expect("the whole journal is kept");
        assert_eq!((state.version, Digest::of_f32(model.model())), (version, *digest));
    }
    let recovered = recovery::recover(&store).expect("recovers");
    assert_eq!(recovered.state.version.0 + 1, recorded.versions.len() as u64);
    let merge_state: Vec<Digest> =
        recovered.model.merge_state().vectors.iter().map(|vector| Digest::of_f32(vector)).collect();
    assert_eq!(merge_state, recorded.merge_state, "what waits");
    let report = recovery::verify(&store).expect("memory");
    assert_eq!((report.problem, report.model), (None, *recorded.versions.last().expect("version 0")));
}

#[test]
fn fedasync_gives_the_recorded_bits() {
    assert_same_bits(history::fedasync(), include_bytes!("recorded/fedasync.bin"));
}

#[test]
fn fedbuff_gives_the_recorded_bits() {
    assert_same_bits(history::fedbuff(3), include_bytes!("recorded/fedbuff.bin"));
}
