//! The lossless difference of a model to an older one: the exclusive or of their bits, as byte planes in one zstd frame.
//!
//! ```text
//! words[i] = bits(base[i]) ^ bits(model[i])
//!
//!  ┌──────────────────────────────────────────────────────────────────────────┐
//!  │ zstd frame of four planes of `params` bytes each, least significant first │
//!  └──────────────────────────────────────────────────────────────────────────┘
//! ```
//! A parameter that has not moved is 0. One that has moved a little differs in the low bytes of its fraction, so that the
//! planes of sign, exponent and high fraction are nearly 0. Any bits come back as they were, those of a NaN and of -0 too.

use super::FormError;
use crate::codec::{dense, entropy};
use crate::manifest::ModelManifest;

/// Returns the difference that leads from `base` to `model`.
///
/// # Panics
/// When the two have different lengths: both are versions of one run.
#[must_use]
pub fn pack(base: &[f32], model: &[f32]) -> Vec<u8> {
    assert_eq!(base.len(), model.len(), "versions of one run have the same length");
    let words = base.iter().zip(model).map(|(base, model)| base.to_bits() ^ model.to_bits());
    entropy::compress(&dense::shuffle(model.len(), words))
}

/// Returns the model that a difference leads to from `base`. Its digest has to be checked: a difference to another base
/// leads elsewhere. Allocates 8 bytes a parameter at most, and those only if the bytes can hold so many.
///
/// # Errors
/// The bytes are no difference between two models of this manifest.
pub fn apply(manifest: &ModelManifest, base: &[f32], packed: &[u8]) -> Result<Vec<f32>, FormError> {
    FormError::check_base(manifest, base)?;
    let planes = entropy::decompress(packed, manifest.params() * 4)?;
    let words = base.iter().zip(dense::unshuffle(&planes));
    Ok(words.map(|(base, word)| f32::from_bits(base.to_bits() ^ word)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Codec as _, DecodeError};
    use crate::downlink::fixture::{PARAMS, bits, manifest, noise};
    use crate::rng::SplitMix64;

    /// Any bits whatever: numbers, infinities, NaN with every payload, both zeros, numbers below the normal ones.
    fn any_bits(rng: &mut SplitMix64) -> Vec<f32> {
        let special = [0, 0x8000_0000, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0x7F80_0001, 0xFFFF_FFFF, 1, 0x807F_FFFF];
        let one = |rng: &mut SplitMix64| match rng.below(3) {
            0 => special[usize::try_from(rng.below(special.len() as u64)).expect("short")],
            _ => u32::try_from(rng.next_u64() >> 32).expect("32 bits"),
        };
        (0..PARAMS).map(|_| f32::from_bits(one(rng))).collect()
    }

    /// An agent that misses random numbers of versions, some of which move everything and some little, is where the
    /// coordinator is, over thousands of versions.
    #[test]
    fn a_replica_has_the_bits_of_the_model_whatever_it_has_missed() {
        let (manifest, mut rng) = (manifest(), SplitMix64::new(1));
        let mut model = noise(&mut rng, 1.0);
        let mut replica = model.clone();
        for version in 1..=3_000 {
            let moved = 1 + rng.below(20);
            for value in &mut model {
                if rng.below(20) < moved {
                    *value += 0.01 * rng.next_signed_f32();
                }
            }
            if rng.below(10) == 0 {
                replica = apply(&manifest, &replica, &pack(&replica, &model)).expect("its own difference");
                assert_eq!(bits(&replica), bits(&model), "at version {version}");
            }
        }
    }

    #[test]
    fn any_bits_come_back_as_they_were() {
        let (manifest, mut rng) = (manifest(), SplitMix64::new(2));
        for _ in 0..200 {
            let (base, model) = (any_bits(&mut rng), any_bits(&mut rng));
            let back = apply(&manifest, &base, &pack(&base, &model)).expect("its own difference");
            assert_eq!(bits(&back), bits(&model));
        }
    }

    /// The point of the form: a model that has moved a little takes less than the whole.
    #[test]
    fn a_small_step_is_shorter_than_the_whole() {
        let (manifest, mut rng) = (manifest(), SplitMix64::new(3));
        let base = noise(&mut rng, 1.0);
        let moved = |share: u64, rng: &mut SplitMix64| -> Vec<f32> {
            let step = |rng: &mut SplitMix64| if rng.below(100) < share { 0.001 * rng.next_signed_f32() } else { 0.0 };
            base.iter().map(|value| value + step(rng)).collect()
        };
        let whole = dense::Planes32.encode(&manifest, &base).expect("finite").len();
        let [same, sparse, all] = [0, 5, 100].map(|share| pack(&base, &moved(share, &mut rng)).len());
        assert!(same < 40 && sparse * 5 < whole && all * 10 < whole * 9, "{same}, {sparse}, {all} of {whole} bytes");
    }

    /// Bytes of a hostile coordinator never panic, and are refused unless they are a whole difference.
    #[test]
    fn broken_differences_are_refused() {
        let (manifest, mut rng) = (manifest(), SplitMix64::new(4));
        let (base, model) = (noise(&mut rng, 1.0), noise(&mut rng, 1.0));
        let packed = pack(&base, &model);
        for len in 0..packed.len() {
            assert!(apply(&manifest, &base, &packed[..len]).is_err(), "{len} bytes were taken");
        }
        let trailing = [&packed[..], &[0]].concat();
        assert_eq!(apply(&manifest, &base, &trailing), Err(DecodeError::Trailing(1).into()));
        for _ in 0..2_000 {
            let (mut broken, at) = (packed.clone(), rng.below(packed.len() as u64));
            broken[usize::try_from(at).expect("short")] ^= 1 << rng.below(8);
            if let Ok(model) = apply(&manifest, &base, &broken) {
                assert_eq!(model.len(), PARAMS);
            }
        }
        let other = pack(&base[1..], &model[1..]);
        assert!(matches!(apply(&manifest, &base, &other), Err(FormError::Decode(_))), "of a shorter model");
        let found = PARAMS - 1;
        assert_eq!(apply(&manifest, &base[1..], &packed), Err(FormError::Base { expected: PARAMS, found }));
    }
}
