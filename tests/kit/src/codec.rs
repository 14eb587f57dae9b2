//! What every codec must do.

use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::{Codec, Delta, EncodeError, max_payload_bytes};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::rng::SplitMix64;

/// Tensors around every size at which a codec may switch its form: a scalar, a bias, just below and just above 1,024
/// elements, and one of several blocks.
///
/// # Panics
/// Never: the manifest is valid.
#[must_use]
pub fn manifest() -> ModelManifest {
    let shapes: [&[u64]; 6] = [&[1], &[10], &[1_023], &[32, 32], &[3, 20, 35], &[257]];
    let tensor = |(index, shape): (usize, &&[u64])| TensorSpec { name: format!("t{index}"), shape: shape.to_vec() };
    ModelManifest::new(shapes.iter().enumerate().map(tensor).collect()).expect("names differ and shapes are small")
}

/// `count` values that are normally distributed with deviation 1 (sums of twelve uniform ones).
#[must_use]
pub fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix64::new(seed);
    (0..count).map(|_| (0..12).map(|_| rng.next_signed_f32()).sum::<f32>() / 2.0).collect()
}

/// Vectors that encoders get wrong, by name.
fn vectors(params: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut rng = SplitMix64::new(2);
    let mut any_word = || rng.next_u64().to_le_bytes().first_chunk().copied().map_or(0, u32::from_le_bytes);
    let any_bits = (0..params).map(|_| f32::from_bits(any_word() & 0xFF7F_FFFF)).collect();
    let mut one_spike = vec![0.0; params];
    one_spike[params - 1] = f32::MAX;
    vec![
        ("normal values", normal(params, 1)),
        ("zeros", vec![0.0; params]),
        ("negative zeros", vec![-0.0; params]),
        ("equal values", vec![-2.5; params]),
        ("denormals", (0u32..1000).cycle().take(params).map(f32::from_bits).collect()),
        ("the largest values", (0..params).map(|index| if index % 3 == 0 { f32::MIN } else { f32::MAX }).collect()),
        ("values of every finite exponent", any_bits),
        ("one spike at the end", one_spike),
    ]
}

/// How close to its input a codec's output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closeness {
    /// What is left out of an entry is never larger than the entry, nor of the other sign.
    EachEntry,
    /// What is left out of a vector is never longer than the vector.
    Norm,
}

/// Runs every check on `codec`.
///
/// # Panics
/// When one of them fails, saying which.
pub fn conformance(codec: &dyn Codec, closeness: Closeness) {
    let manifest = manifest();
    for (name, values) in vectors(manifest.params()) {
        let bytes = codec.encode(&manifest, &values).expect("every finite vector of the right length is encoded");
        assert_eq!(codec.encode(&manifest, &values).as_ref(), Ok(&bytes), "{name}: the same input gave other bytes");
        let most = max_payload_bytes(&manifest);
        assert!(bytes.len() as u64 <= most, "{name}: {} bytes, and no payload has more than {most}", bytes.len());
        let delta = codec.decode(&manifest, &bytes).expect("a codec decodes what it encoded");
        well_formed(name, &delta, manifest.params());
        assert!(delta.is_finite(), "{name}: finite values came back infinite");
        close_to_the_input(codec, closeness, name, &values, &delta.into_dense());
        feedback_keeps_what_is_left_out(codec, name, &manifest, &values);
    }
    bad_input_is_refused(codec, &manifest);
    let bytes = codec.encode(&manifest, &normal(manifest.params(), 3)).expect("finite");
    damaged_bytes_are_refused_or_harmless(codec, &manifest, &bytes);
    bytes_for_another_manifest_do_not_panic(codec, &bytes);
    noise_does_not_panic(codec, &manifest);
}

fn well_formed(name: &str, delta: &Delta, params: usize) {
    assert_eq!(delta.len(), params, "{name}: the delta has another length than the manifest");
    if let Delta::Sparse { indices, values, .. } = delta {
        assert_eq!(indices.len(), values.len(), "{name}: as many positions as values");
        assert!(indices.is_sorted_by(|one, other| one < other), "{name}: positions do not increase strictly");
        assert!(indices.last().is_none_or(|last| (*last as usize) < params), "{name}: a position is past the end");
    }
}

fn close_to_the_input(codec: &dyn Codec, closeness: Closeness, name: &str, values: &[f32], back: &[f32]) {
    if codec.lossless() {
        let same = values.iter().zip(back).all(|(value, back)| value.to_bits() == back.to_bits());
        assert!(same, "{name}: the codec says it is lossless, and is not");
        return;
    }
    let pairs = || values.iter().zip(back).map(|(value, back)| (f64::from(*value), f64::from(*back)));
    let (left, whole) = pairs().fold((0.0, 0.0), |(left, whole), (value, back)| {
        (left + (value - back) * (value - back), whole + value * value)
    });
    assert!(left <= whole * 1.01, "{name}: more is left out ({left}) than there was ({whole}), both squared");
    for (index, (value, back)) in pairs().enumerate().filter(|_| closeness == Closeness::EachEntry) {
        assert!((value - back).abs() <= value.abs() * 1.01, "{name}: {value} at {index} came back as {back}");
    }
}

/// Encoding together with what was left out before is encoding of the sum, bit for bit.
fn feedback_keeps_what_is_left_out(codec: &dyn Codec, name: &str, manifest: &ModelManifest, delta: &[f32]) {
    let (decay, before) = (0.9, normal(delta.len(), 7));
    let sums = delta.iter().zip(&before).map(|(delta, before)| (delta, delta + decay * before));
    let sums: Vec<f32> = sums.map(|(delta, sum)| if sum.is_finite() { sum } else { *delta }).collect();
    let wanted = codec.encode(manifest, &sums).expect("finite");
    let sent = codec.decode(manifest, &wanted).expect("a codec decodes what it encoded").into_dense();
    let mut feedback = Feedback::restore(decay, before);
    let payload = feedback.encode(codec, manifest, delta).expect("finite");
    // zstd may write other bytes for the same content.
    let content = codec.decode(manifest, &payload).expect("a codec decodes what it encoded").into_dense();
    let same = |one: &[f32], other: &[f32]| one.iter().zip(other).all(|(one, other)| one.to_bits() == other.to_bits());
    assert!(same(&content, &sent), "{name}: with feedback, something else is sent than the sum");
    let left: Vec<f32> = sums.iter().zip(&sent).map(|(sum, sent)| sum - sent).collect();
    let left: Vec<f32> = left.into_iter().map(|left| if left.is_finite() { left } else { 0.0 }).collect();
    assert_eq!(feedback.left_out().len(), left.len(), "{name}: what is left out has another length");
    assert!(same(feedback.left_out(), &left), "{name}: something else is left out than what is not sent");
}

fn bad_input_is_refused(codec: &dyn Codec, manifest: &ModelManifest) {
    let params = manifest.params();
    for found in [0, params - 1, params + 1] {
        let refused = codec.encode(manifest, &vec![0.0; found]);
        assert_eq!(refused, Err(EncodeError::WrongLength { expected: params, found }));
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for position in [0, params / 2, params - 1] {
            let mut values = normal(params, 4);
            values[position] = bad;
            assert_eq!(codec.encode(manifest, &values), Err(EncodeError::NonFinite(position)));
        }
    }
}

fn damaged_bytes_are_refused_or_harmless(codec: &dyn Codec, manifest: &ModelManifest, bytes: &[u8]) {
    for len in 0..bytes.len() {
        assert!(codec.decode(manifest, &bytes[..len]).is_err(), "a prefix of {len} of {} bytes was read", bytes.len());
    }
    for tail in [&[0][..], &[0xFF], &[0; 8], bytes] {
        let longer = [bytes, tail].concat();
        assert!(codec.decode(manifest, &longer).is_err(), "{} more bytes were ignored", tail.len());
    }
    let mut broken = bytes.to_vec();
    for index in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xFF] {
            broken[index] ^= flip;
            if let Ok(delta) = codec.decode(manifest, &broken) {
                well_formed("a damaged payload", &delta, manifest.params());
            }
            broken[index] = bytes[index];
        }
    }
}

fn bytes_for_another_manifest_do_not_panic(codec: &dyn Codec, bytes: &[u8]) {
    for params in [1, 1_023, 1_024, 8_000, 1 << 20] {
        let tensor = TensorSpec { name: "other".into(), shape: vec![params] };
        let other = ModelManifest::new(vec![tensor]).expect("one tensor that is not empty");
        if let Ok(delta) = codec.decode(&other, bytes) {
            well_formed("a payload for another manifest", &delta, other.params());
        }
    }
}

fn noise_does_not_panic(codec: &dyn Codec, manifest: &ModelManifest) {
    let mut rng = SplitMix64::new(6);
    for _ in 0..500 {
        let len = rng.below(4_000);
        let noise: Vec<u8> = (0..len).map(|_| rng.next_u64().to_le_bytes()[0]).collect();
        if let Ok(delta) = codec.decode(manifest, &noise) {
            well_formed("noise", &delta, manifest.params());
        }
    }
}
