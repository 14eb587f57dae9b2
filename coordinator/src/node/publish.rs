//! Published versions: encoded once, sent to everyone who asks, dropped when newer ones need the room.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::codec::dense::Planes32;
use anabranch_common::codec::{Codec, EncodeError};
use anabranch_common::downlink::ModelForm;
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::wire::transfer::TransferManifest;

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

impl PackedModel {
    /// Encodes a model as a whole.
    ///
    /// # Errors
    /// The model is not finite or does not fit its manifest.
    pub fn of(version: ModelVersion, manifest: &ModelManifest, model: &[f32]) -> Result<Self, EncodeError> {
        let content: Arc<[u8]> = Planes32.encode(manifest, model)?.into();
        let transfer = TransferManifest::of(&content);
        Ok(Self { version, digest: Digest::of_f32(model), form: ModelForm::Snapshot, content, transfer })
    }
}

/// The versions that can be fetched, and what users are given of one where that is another vector: agents evaluate it.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    models: BTreeMap<ModelVersion, Arc<PackedModel>>,
    /// Of the newest version of which it was asked for. Agents may come for it when they have finished a local round.
    served: Option<Arc<PackedModel>>,
    bytes: usize,
}

impl Publisher {
    /// Adds the model of a version, and drops the oldest ones that no longer fit.
    pub(super) fn add(&mut self, model: Arc<PackedModel>) {
        self.bytes += model.content.len();
        if let Some(before) = self.models.insert(model.version, model) {
            self.bytes -= before.content.len();
        }
        self.make_room();
    }

    /// Adds what users are given of a version, in place of what they were given of an earlier one.
    pub(super) fn add_served(&mut self, served: Arc<PackedModel>) {
        self.bytes += served.content.len();
        if let Some(before) = self.served.replace(served) {
            self.bytes -= before.content.len();
        }
        self.make_room();
    }

    fn make_room(&mut self) {
        while (self.bytes > limits::PUBLISHED_BYTES && self.models.len() > 2)
            || self.models.len() > limits::PUBLISHED_VERSIONS
        {
            if let Some((_, oldest)) = self.models.pop_first() {
                self.bytes -= oldest.content.len();
            }
        }
    }

    /// Whether this is what agents train from of a version, as far as is known here: the version may be of a process before.
    pub(super) fn may_be(&self, version: ModelVersion, digest: Digest) -> bool {
        self.models.get(&version).is_none_or(|model| model.digest == digest)
    }

    /// A content of a version, if it is still here.
    pub(super) fn get(&self, version: ModelVersion, digest: Digest) -> Option<Arc<PackedModel>> {
        let mut known = [self.models.get(&version), self.served.as_ref()].into_iter().flatten();
        known.find(|snapshot| (snapshot.version, snapshot.digest) == (version, digest)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::manifest::TensorSpec;

    use super::*;

    fn snapshot(version: u64, value: f32, bytes: usize) -> Arc<PackedModel> {
        let tensor = TensorSpec { name: "w".into(), shape: vec![4] };
        let manifest = ModelManifest::new(vec![tensor]).expect("valid");
        let mut snapshot = PackedModel::of(ModelVersion(version), &manifest, &[value; 4]).expect("finite");
        snapshot.content = vec![0; bytes].into();
        Arc::new(snapshot)
    }

    fn kept(publisher: &Publisher, value: f32, versions: u64) -> Vec<u64> {
        let digest = Digest::of_f32(&[value; 4]);
        (0..versions).filter(|version| publisher.get(ModelVersion(*version), digest).is_some()).collect()
    }

    #[test]
    fn the_two_newest_versions_stay_whatever_their_size() {
        let mut publisher = Publisher::default();
        (0..5).for_each(|version| publisher.add(snapshot(version, 0.5, limits::PUBLISHED_BYTES)));
        assert_eq!(kept(&publisher, 0.5, 5), [3, 4]);
    }

    /// Agents fetch it when their local round is over, several versions later.
    #[test]
    fn what_is_evaluated_stays_while_newer_versions_come_and_goes_with_the_next() {
        let mut publisher = Publisher::default();
        let bytes = limits::PUBLISHED_BYTES;
        publisher.add(snapshot(0, 0.5, bytes));
        publisher.add_served(snapshot(0, 0.25, bytes));
        (1..5).for_each(|version| publisher.add(snapshot(version, 0.5, bytes)));
        assert_eq!((kept(&publisher, 0.25, 5), kept(&publisher, 0.5, 5)), (vec![0], vec![3, 4]));
        publisher.add_served(snapshot(4, 0.25, bytes));
        assert_eq!((kept(&publisher, 0.25, 5), kept(&publisher, 0.5, 5)), (vec![4], vec![3, 4]));
        assert_eq!(publisher.bytes, 3 * bytes);
    }

    #[test]
    fn small_versions_do_not_pile_up() {
        let mut publisher = Publisher::default();
        (0..200).for_each(|version| publisher.add(snapshot(version, 0.5, 16)));
        assert_eq!(kept(&publisher, 0.5, 200), (136..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_model_that_is_not_finite_is_never_published() {
        let tensor = TensorSpec { name: "w".into(), shape: vec![2] };
        let manifest = ModelManifest::new(vec![tensor]).expect("valid");
        assert!(PackedModel::of(ModelVersion(1), &manifest, &[0.0, f32::NAN]).is_err());
    }
}
