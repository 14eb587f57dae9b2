//! The published track: a compressed image of the model, which agents train from.
//!
//! ```text
//! x    the model          y    the track, at version 0 the same          C    the codec of [downlink] track
//!
//! at every version that agents may train from:    record = C(x - y);   y += decode(record)
//! ```
//! What a record leaves out stays in x - y, and so comes later: no other error feedback is needed. This is EF21-P (Gruntkowska,
//! Tyurin and Richtárik 2023). Every agent gets the same records, whatever the size of the fleet. The coordinator and every
//! agent compute y from the records by the same operations, one rounding each, so that all of them hold the same bits.
//!
//! Several records travel as one transfer, one after the other:
//!
//! ```text
//!  0       1         5
//!  ┌───────┬─────────┬─────────┐
//!  │ codec │ length  │ payload │ ...
//!  │ u8    │ u32 le  │         │
//!  └───────┴─────────┴─────────┘
//! ```

use std::sync::Arc;

use super::FormError;
use crate::codec::{self, CodecId, CodecSpec, Delta};
use crate::ids::ModelVersion;
use crate::limits;
use crate::manifest::ModelManifest;

/// Bytes before the payload of a record in a transfer.
pub const HEADER_BYTES: usize = 5;

/// The step of a track from one version to a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackRecord {
    /// The version that it follows.
    pub from: ModelVersion,
    /// The version that it leads to.
    pub version: ModelVersion,
    /// How its payload is encoded.
    pub codec: CodecId,
    /// The step.
    pub payload: Arc<[u8]>,
}

/// The track of a run, at its newest version.
#[derive(Debug, Clone)]
pub struct Track {
    codec: CodecSpec,
    version: ModelVersion,
    base: Vec<f32>,
}

impl Track {
    /// A track that goes on from `base` at `version`.
    #[must_use]
    pub fn new(codec: CodecSpec, base: Vec<f32>, version: ModelVersion) -> Self {
        Self { codec, version, base }
    }

    /// Takes over another codec.
    pub fn configure(&mut self, codec: CodecSpec) {
        self.codec = codec;
    }

    /// Returns the version at which it has its newest record.
    #[must_use]
    pub fn version(&self) -> ModelVersion {
        self.version
    }

    /// Returns what agents train from.
    #[must_use]
    pub fn base(&self) -> &[f32] {
        &self.base
    }

    /// Follows `model` to `version`. Returns the record. Where the step cannot be told in finite numbers, the track begins
    /// anew at the model, and no record leads there.
    pub fn advance(&mut self, manifest: &ModelManifest, model: &[f32], version: ModelVersion) -> Option<TrackRecord> {
        let from = std::mem::replace(&mut self.version, version);
        match self.step(manifest, model) {
            Some((codec, payload)) => Some(TrackRecord { from, version, codec, payload }),
            None => {
                self.base.copy_from_slice(model);
                None
            }
        }
    }

    fn step(&mut self, manifest: &ModelManifest, model: &[f32]) -> Option<(CodecId, Arc<[u8]>)> {
        let step: Vec<f32> = model.iter().zip(&self.base).map(|(model, base)| model - base).collect();
        let encoder = codec::encoder(self.codec);
        let payload = encoder.encode(manifest, &step).ok()?;
        let decoded = codec::decode(encoder.id(), manifest, &payload).ok()?;
        add(&mut self.base, &decoded);
        codec::is_finite(&self.base).then(|| (encoder.id(), payload.into()))
    }
}

/// y += the step: one addition for each entry that it has.
fn add(base: &mut [f32], step: &Delta) {
    step.add_scaled_to(base, 1.0);
}

/// Returns how many bytes records take as one transfer.
#[must_use]
pub fn packed_bytes<'a>(records: impl IntoIterator<Item = &'a TrackRecord>) -> usize {
    records.into_iter().map(|record| HEADER_BYTES + record.payload.len()).sum()
}

/// Returns records as one transfer.
#[must_use]
pub fn pack<'a>(records: impl IntoIterator<Item = &'a TrackRecord>) -> Vec<u8> {
    let mut out = Vec::new();
    for record in records {
        let len = u32::try_from(record.payload.len()).expect("a payload is no longer than a transfer may be");
        out.push(record.codec.0);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&record.payload);
    }
    out
}

/// Returns the model that records lead to from `base`. Its digest has to be checked: records of another track lead elsewhere.
///
/// # Errors
/// The bytes are no records of this model.
pub fn replay(manifest: &ModelManifest, base: &[f32], mut packed: &[u8]) -> Result<Vec<f32>, FormError> {
    FormError::check_base(manifest, base)?;
    let (mut base, mut records) = (base.to_vec(), 0);
    while let Some((header, rest)) = packed.split_first_chunk::<HEADER_BYTES>() {
        let [codec, len @ ..] = *header;
        let len = u32::from_le_bytes(len) as usize;
        let (payload, rest) = rest.split_at_checked(len).ok_or(FormError::Truncated)?;
        records += 1;
        if records > limits::TRACK_RECORDS {
            return Err(FormError::TooMany);
        }
        add(&mut base, &codec::decode(CodecId(codec), manifest, payload)?);
        packed = rest;
    }
    if packed.is_empty() { Ok(base) } else { Err(FormError::Truncated) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::DecodeError;
    use crate::codec::quantize::ValueBits;
    use crate::downlink::fixture::{PARAMS, bits, manifest, noise};
    use crate::rng::SplitMix64;

    fn codecs() -> Vec<CodecSpec> {
        let top_k = ValueBits::ALL.map(|bits| CodecSpec::TopK { fraction: 0.05, bits });
        [CodecSpec::Int8, CodecSpec::Int4, CodecSpec::Bf16, CodecSpec::F32].into_iter().chain(top_k).collect()
    }

    /// An agent that takes records up in pieces of random lengths is where the coordinator is, over thousands of versions.
    #[test]
    fn a_replica_has_the_bits_of_the_track_whatever_it_has_missed() {
        let (manifest, mut rng) = (manifest(), SplitMix64::new(1));
        for codec in codecs() {
            let mut model = noise(&mut rng, 1.0);
            let mut track = Track::new(codec, model.clone(), ModelVersion(0));
            let (mut replica, mut missed) = (model.clone(), Vec::new());
            for version in 1..=1_500 {
                let step = noise(&mut rng, 0.01);
                model.iter_mut().zip(&step).for_each(|(model, step)| *model += step);
                if version % 2 == 0 {
                    missed.push(track.advance(&manifest, &model, ModelVersion(version)).expect("a finite step"));
                }
                if rng.below(10) == 0 {
                    assert!(missed.windows(2).all(|pair| pair[0].version == pair[1].from), "a gap");
                    let packed = pack(&missed);
                    assert_eq!(packed.len(), packed_bytes(&missed));
                    replica = replay(&manifest, &replica, &packed).expect("its own records");
                    assert_eq!(bits(&replica), bits(track.base()), "{codec:?} at version {version}");
                    missed.clear();
                }
            }
        }
    }

    /// What a record leaves out comes later.
    #[test]
    fn a_track_reaches_a_model_that_stands_still() {
        let (manifest, mut rng) = (manifest(), SplitMix64::new(2));
        let model = noise(&mut rng, 1.0);
        let mut track = Track::new(CodecSpec::top_k(0.05), vec![0.0; PARAMS], ModelVersion(0));
        (1..=60).for_each(|version| _ = track.advance(&manifest, &model, ModelVersion(version)));
        let far = |base: &[f32]| base.iter().zip(&model).map(|(y, x)| (x - y).abs()).fold(0.0, f32::max);
        assert!(far(track.base()) < 0.01, "{}", far(track.base()));
    }

    #[test]
    fn a_step_that_is_not_finite_begins_the_track_anew() {
        let manifest = manifest();
        for codec in codecs() {
            let mut track = Track::new(codec, vec![f32::MAX; PARAMS], ModelVersion(4));
            let model = vec![f32::MIN; PARAMS];
            assert_eq!(track.advance(&manifest, &model, ModelVersion(5)), None, "{codec:?}");
            assert_eq!((track.version(), track.base()), (ModelVersion(5), &model[..]), "{codec:?}");
            let record = track.advance(&manifest, &[f32::MIN / 2.0; PARAMS], ModelVersion(6)).expect("a finite step");
            assert_eq!(record.from, ModelVersion(5));
        }
    }

    /// Records of a hostile coordinator never panic, and nothing is changed by those that are refused.
    #[test]
    fn broken_records_are_refused() {
        let (manifest, mut rng) = (manifest(), SplitMix64::new(3));
        let base = noise(&mut rng, 1.0);
        for codec in codecs() {
            let mut track = Track::new(codec, base.clone(), ModelVersion(0));
            let records: Vec<TrackRecord> = (1..=2)
                .filter_map(|version| track.advance(&manifest, &noise(&mut rng, 1.0), ModelVersion(version)))
                .collect();
            let packed = pack(&records);
            let boundary = packed_bytes(&records[..1]);
            for len in (1..packed.len()).filter(|len| *len != boundary) {
                assert!(replay(&manifest, &base, &packed[..len]).is_err(), "{len} bytes were taken");
            }
            for _ in 0..200 {
                let (mut broken, at) = (packed.clone(), rng.below(packed.len() as u64));
                broken[usize::try_from(at).expect("short")] ^= 1 << rng.below(8);
                _ = replay(&manifest, &base, &broken);
            }
            assert!(matches!(replay(&manifest, &base[1..], &packed), Err(FormError::Base { .. })));
        }
        assert_eq!(replay(&manifest, &base, &[77, 0, 0, 0, 0]), Err(DecodeError::UnknownCodec(77).into()));
        assert_eq!(replay(&manifest, &base, &[0; 4]), Err(FormError::Truncated));
        assert_eq!(replay(&manifest, &base, &[]).as_deref(), Ok(&base[..]));
    }

    #[test]
    fn the_number_of_records_is_bounded() {
        let manifest = manifest();
        let mut track = Track::new(CodecSpec::top_k(0.001), vec![0.0; PARAMS], ModelVersion(0));
        let record = track.advance(&manifest, &[0.0; PARAMS], ModelVersion(1)).expect("a finite step");
        let most = pack(std::iter::repeat_n(&record, limits::TRACK_RECORDS));
        assert!(replay(&manifest, track.base(), &most).is_ok());
        let more = pack(std::iter::repeat_n(&record, limits::TRACK_RECORDS + 1));
        assert_eq!(replay(&manifest, track.base(), &more), Err(FormError::TooMany));
    }
}
