//! Published versions: encoded once, sent to everyone who asks, dropped when newer ones need the room.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::codec::dense::Planes32;
use anabranch_common::codec::{Codec, EncodeError};
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::wire::transfer::TransferManifest;

/// The content of one version, ready to be sent.
#[derive(Debug)]
pub struct Snapshot {
    /// Which version.
    pub version: ModelVersion,
    /// Digest of its content.
    pub digest: Digest,
    /// Its content in the form of codec 0.
    pub content: Arc<[u8]>,
    /// Its chunks.
    pub transfer: TransferManifest,
}

impl Snapshot {
    /// Encodes a model.
    ///
    /// # Errors
    /// The model is not finite or does not fit its manifest.
    pub fn of(version: ModelVersion, manifest: &ModelManifest, model: &[f32]) -> Result<Self, EncodeError> {
        let content: Arc<[u8]> = Planes32.encode(manifest, model)?.into();
        let transfer = TransferManifest::of(&content);
        Ok(Self { version, digest: Digest::of_f32(model), content, transfer })
    }
}

/// The versions that can be fetched.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    snapshots: BTreeMap<ModelVersion, Arc<Snapshot>>,
    bytes: usize,
}

impl Publisher {
    /// Adds a version and drops the oldest ones that no longer fit.
    pub(super) fn add(&mut self, snapshot: Arc<Snapshot>) {
        self.bytes += snapshot.content.len();
        if let Some(before) = self.snapshots.insert(snapshot.version, snapshot) {
            self.bytes -= before.content.len();
        }
        while (self.bytes > limits::PUBLISHED_BYTES && self.snapshots.len() > 2)
            || self.snapshots.len() > limits::PUBLISHED_VERSIONS
        {
            if let Some((_, oldest)) = self.snapshots.pop_first() {
                self.bytes -= oldest.content.len();
            }
        }
    }

    /// A version, if it is still here.
    pub(super) fn get(&self, version: ModelVersion) -> Option<Arc<Snapshot>> {
        self.snapshots.get(&version).cloned()
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::manifest::TensorSpec;

    use super::*;

    #[test]
    fn the_two_newest_versions_stay_whatever_their_size() {
        let tensor = TensorSpec { name: "w".into(), shape: vec![4] };
        let manifest = ModelManifest::new(vec![tensor]).expect("valid");
        let mut publisher = Publisher::default();
        for version in 0..5 {
            let mut snapshot = Snapshot::of(ModelVersion(version), &manifest, &[0.5; 4]).expect("finite");
            snapshot.content = vec![0; limits::PUBLISHED_BYTES].into();
            publisher.add(Arc::new(snapshot));
        }
        let kept: Vec<u64> = (0..5).filter(|v| publisher.get(ModelVersion(*v)).is_some()).collect();
        assert_eq!(kept, [3, 4]);
    }

    #[test]
    fn small_versions_do_not_pile_up() {
        let tensor = TensorSpec { name: "w".into(), shape: vec![4] };
        let manifest = ModelManifest::new(vec![tensor]).expect("valid");
        let mut publisher = Publisher::default();
        for version in 0..200 {
            publisher.add(Arc::new(Snapshot::of(ModelVersion(version), &manifest, &[0.5; 4]).expect("finite")));
        }
        let kept: Vec<u64> = (0..200).filter(|v| publisher.get(ModelVersion(*v)).is_some()).collect();
        assert_eq!(kept, (136..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_model_that_is_not_finite_is_never_published() {
        let tensor = TensorSpec { name: "w".into(), shape: vec![2] };
        let manifest = ModelManifest::new(vec![tensor]).expect("valid");
        assert!(Snapshot::of(ModelVersion(1), &manifest, &[0.0, f32::NAN]).is_err());
    }
}
