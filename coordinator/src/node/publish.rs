//! Published versions: kept for whoever asks for them or holds them, dropped when newer ones need the room.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::codec::{self, EncodeError};
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;

/// A version that agents can fetch.
#[derive(Debug)]
pub struct PublishedModel {
    /// Which version.
    pub version: ModelVersion,
    /// Digest of its content.
    pub digest: Digest,
    /// Its content, which is finite.
    pub values: Arc<[f32]>,
}

impl PublishedModel {
    /// Copies a model.
    ///
    /// # Errors
    /// The model is not finite or does not fit its manifest.
    pub fn of(version: ModelVersion, manifest: &ModelManifest, model: &[f32]) -> Result<Self, EncodeError> {
        codec::check_input(manifest, model)?;
        Ok(Self { version, digest: Digest::of_f32(model), values: model.into() })
    }

    /// Returns the bytes of its content.
    pub(super) fn bytes(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

/// The versions that can be fetched, and what users are given of one where that is another vector: agents evaluate it.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    models: BTreeMap<ModelVersion, Arc<PublishedModel>>,
    /// Of the newest version of which it was asked for. Agents may come for it when they have finished a local round.
    served: Option<Arc<PublishedModel>>,
    /// What a search has measured. It stays until the next one.
    measured: Option<Arc<PublishedModel>>,
    bytes: usize,
}

impl Publisher {
    /// Adds the model of a version, and drops the oldest ones that no longer fit.
    pub(super) fn add(&mut self, model: Arc<PublishedModel>) {
        self.bytes += model.bytes();
        if let Some(before) = self.models.insert(model.version, model) {
            self.bytes -= before.bytes();
        }
        self.make_room();
    }

    /// Adds what users are given of a version, in place of what they were given of an earlier one.
    pub(super) fn add_served(&mut self, served: Arc<PublishedModel>) {
        self.bytes += served.bytes();
        if let Some(before) = self.served.replace(served) {
            self.bytes -= before.bytes();
        }
        self.make_room();
    }

    /// Adds the version that a search has measured, in place of the one before.
    pub(super) fn add_measured(&mut self, measured: Arc<PublishedModel>) {
        self.measured = Some(measured);
    }

    fn make_room(&mut self) {
        while (self.bytes > limits::PUBLISHED_BYTES && self.models.len() > 2)
            || self.models.len() > limits::PUBLISHED_VERSIONS
        {
            if let Some((_, oldest)) = self.models.pop_first() {
                self.bytes -= oldest.bytes();
            }
        }
    }

    /// Whether this is what agents train from of a version, as far as is known here: the version may be of a process before.
    pub(super) fn may_be(&self, version: ModelVersion, digest: Digest) -> bool {
        self.models.get(&version).is_none_or(|model| model.digest == digest)
    }

    /// A content of a version, if it is still here.
    pub(super) fn get(&self, version: ModelVersion, digest: Digest) -> Option<Arc<PublishedModel>> {
        let others = [self.models.get(&version), self.served.as_ref(), self.measured.as_ref()];
        let mut known = others.into_iter().flatten();
        known.find(|model| (model.version, model.digest) == (version, digest)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::manifest::TensorSpec;

    use super::*;

    /// Half of what may be kept.
    const HALF: usize = limits::PUBLISHED_BYTES / 8;

    fn model(version: u64, value: f32, params: usize) -> Arc<PublishedModel> {
        let (version, values) = (ModelVersion(version), vec![value; params].into());
        Arc::new(PublishedModel { version, digest: digest(value), values })
    }

    fn digest(value: f32) -> Digest {
        Digest::of_f32(&[value; 4])
    }

    fn kept(publisher: &Publisher, value: f32, versions: u64) -> Vec<u64> {
        (0..versions).filter(|version| publisher.get(ModelVersion(*version), digest(value)).is_some()).collect()
    }

    #[test]
    fn versions_stay_as_far_as_they_fit_and_the_two_newest_whatever_their_size() {
        for (params, expected) in [(HALF / 2, 1..5), (HALF, 3..5), (2 * HALF, 3..5)] {
            let mut publisher = Publisher::default();
            (0..5).for_each(|version| publisher.add(model(version, 0.5, params)));
            assert_eq!(kept(&publisher, 0.5, 5), expected.collect::<Vec<_>>(), "{params} parameters");
        }
    }

    /// Agents fetch it when their local round is over, several versions later.
    #[test]
    fn what_is_evaluated_stays_while_newer_versions_come_and_goes_with_the_next() {
        let mut publisher = Publisher::default();
        publisher.add(model(0, 0.5, HALF));
        publisher.add_served(model(0, 0.25, HALF));
        (1..5).for_each(|version| publisher.add(model(version, 0.5, HALF)));
        assert_eq!((kept(&publisher, 0.25, 5), kept(&publisher, 0.5, 5)), (vec![0], vec![3, 4]));
        publisher.add_served(model(4, 0.25, HALF));
        assert_eq!((kept(&publisher, 0.25, 5), kept(&publisher, 0.5, 5)), (vec![4], vec![3, 4]));
        assert_eq!(publisher.bytes, 3 * HALF * 4);
    }

    #[test]
    fn small_versions_do_not_pile_up() {
        let mut publisher = Publisher::default();
        (0..200).for_each(|version| publisher.add(model(version, 0.5, 4)));
        assert_eq!(kept(&publisher, 0.5, 200), (136..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_model_that_is_not_finite_is_never_published() {
        let tensor = TensorSpec { name: "w".into(), shape: vec![2] };
        let manifest = ModelManifest::new(vec![tensor]).expect("valid");
        assert!(PublishedModel::of(ModelVersion(1), &manifest, &[0.0, f32::NAN]).is_err());
        assert!(PublishedModel::of(ModelVersion(1), &manifest, &[0.0]).is_err());
    }
}
