//! The packers' jobs: a published version is brought into a form, once for all agents that wait for it.

use std::sync::Arc;

use anabranch_common::codec::Codec as _;
use anabranch_common::codec::dense::Planes32;
use anabranch_common::downlink::track::{self, TrackRecord};
use anabranch_common::downlink::{ModelForm, chain, xor};
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::wire::transfer::TransferManifest;

use super::chain::Replay;
use super::job::Done;
use super::publish::PublishedModel;

/// The content of one version in one form, ready to be sent.
#[derive(Debug)]
pub struct PackedModel {
    /// Which version.
    pub version: ModelVersion,
    /// Digest of its content.
    pub digest: Digest,
    /// The form of `content`.
    pub form: ModelForm,
    /// What is sent.
    pub content: Arc<[u8]>,
    /// Its chunks.
    pub transfer: TransferManifest,
}

/// What a form rests on. A version's forms that rest on another one come before the whole of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    /// What an agent holds: its version, and the digest of its content.
    Held(ModelVersion, Digest),
    /// Nothing.
    Nothing,
}

/// The shortest form of a version for all agents that hold the same. Older versions come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FormKey {
    /// The version that it leads to.
    pub version: ModelVersion,
    /// Digest of the content that it leads to.
    pub digest: Digest,
    /// What it rests on.
    pub basis: Basis,
}

/// What a form is made of.
#[derive(Debug)]
pub(super) enum Material {
    /// Nothing but the model.
    Whole(Arc<ModelManifest>),
    /// What leads to the model from what an agent holds.
    Ways(Ways),
}

/// Ways from what an agent holds to a model. The shortest one is taken, if it is shorter than the whole model.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// Records of the published track.
    pub(super) records: Option<Vec<TrackRecord>>,
    /// Accepted updates.
    pub(super) replay: Option<Replay>,
    /// The version that the agent holds, for the bits that differ.
    pub(super) base: Option<Arc<PublishedModel>>,
    /// Bytes of the whole model as it is sent, as far as they are known.
    pub(super) whole_bytes: usize,
}

impl Ways {
    /// Returns the bytes of the shortest way of those that are as long as they are known to be: records and updates.
    pub(super) fn shortest_bytes(&self) -> Option<usize> {
        let records = self.records.as_ref().map(track::packed_bytes);
        let replay = self.replay.as_ref().map(|replay| replay.packed_bytes);
        records.into_iter().chain(replay).min()
    }

    /// Returns the shortest way to `model` from `from`, if it is shorter than the whole.
    fn shortest(self, model: &PublishedModel, from: ModelVersion) -> Option<(ModelForm, Vec<u8>)> {
        let records = self.records.map(|records| (ModelForm::Track { from }, track::pack(&records)));
        let replay =
            self.replay.map(|Replay { rule, steps, .. }| (ModelForm::Chain { from }, chain::pack(rule, &steps)));
        let xor = self.base.map(|base| (ModelForm::Xor { from }, xor::pack(&base.values, &model.values)));
        let shortest = [records, replay, xor].into_iter().flatten().min_by_key(|(_, content)| content.len());
        shortest.filter(|(_, content)| content.len() < self.whole_bytes)
    }
}

/// A published version that is to be brought into a form; answered by [`Done::Packed`].
#[derive(Debug)]
pub struct PackJob {
    key: FormKey,
    model: Arc<PublishedModel>,
    material: Material,
}

impl PackJob {
    pub(super) fn new(key: FormKey, model: Arc<PublishedModel>, material: Material) -> Self {
        Self { key, model, material }
    }

    /// Returns the memory that it takes, in bytes: what it reads, what it makes on the way, and the form.
    pub(super) fn memory_bytes(&self) -> u64 {
        let vector_bytes = self.model.bytes() as u64;
        match &self.material {
            Material::Whole(_) => 3 * vector_bytes,
            Material::Ways(ways) => {
                let records = ways.records.as_ref().map_or(0, |records| track::packed_bytes(records) as u64);
                let replay = ways.replay.as_ref().map_or(0, |replay| replay.packed_bytes as u64);
                2 * (records + replay) + if ways.base.is_some() { 4 * vector_bytes } else { 0 }
            }
        }
    }

    /// Whether it takes less time than to be handed out and back.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.memory_bytes() <= 4 * limits::INLINE_DECODE_BYTES as u64
    }

    /// Makes the form.
    #[must_use]
    pub fn run(self) -> Done {
        let Self { key, model, material } = self;
        let made = match (material, key.basis) {
            (Material::Whole(manifest), _) => {
                Planes32.encode(&manifest, &model.values).ok().map(|content| (ModelForm::Snapshot, content))
            }
            (Material::Ways(ways), Basis::Held(from, _)) => ways.shortest(&model, from),
            (Material::Ways(_), Basis::Nothing) => None,
        };
        let packed = made.map(|(form, content)| {
            let content: Arc<[u8]> = content.into();
            let transfer = TransferManifest::of(&content);
            Arc::new(PackedModel { version: key.version, digest: key.digest, form, content, transfer })
        });
        Done::Packed { key, model: packed }
    }

    /// What is answered if it panics.
    #[must_use]
    pub fn failure(&self) -> Done {
        Done::Packed { key: self.key, model: None }
    }
}
