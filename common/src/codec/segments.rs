//! Consecutive tensors in codecs of their own.
//!
//! ```text
//!  ┌────────┬───────────┬───────────┬─     ┬───────────┬───────────┬─
//!  │ count  │ segment 0 │ segment 1 │ ...  │ payload 0 │ payload 1 │ ...
//!  │ u16 le │           │           │      │           │           │
//!  └────────┴───────────┴───────────┴─     ┴───────────┴───────────┴─
//!  segment
//!  ┌───────────────────┬───────┬──────────────────┐
//!  │ number of tensors │ codec │ payload's length │
//!  │ u16 le            │ u8    │ u64 le           │
//!  └───────────────────┴───────┴──────────────────┘
//! ```
//! Segments cover all tensors of the manifest in order. Each payload is one of its codec for the manifest of its tensors
//! alone ([`ModelManifest::slice`]). No segment holds segments.

use std::ops::Range;

use super::entropy::MAX_EXPANSION;
use super::feedback::Residual;
use super::sparse::TopK;
use super::{
    Codec, CodecId, CodecSpec, DecodeError, Delta, EncodeError, Source, blocks, check_length, decode_whole, dense,
    encoder,
};
use crate::manifest::ModelManifest;

/// The byte of payloads with segments.
pub const ID: CodecId = CodecId(7);

/// Bytes of the number of segments.
const COUNT: usize = 2;
/// Bytes of the description of one segment.
const ENTRY: usize = 11;

/// What the header says of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// How many of the manifest's tensors it covers, after those of the segments before it.
    pub tensors: usize,
    /// Its codec, any but [`ID`].
    pub codec: CodecId,
    /// Length of its payload.
    pub bytes: u64,
}

/// One segment of a payload, and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<'a> {
    /// The tensors of the manifest that it covers.
    pub tensors: Range<usize>,
    /// Their values in the flat vector.
    pub values: Range<usize>,
    /// Its codec.
    pub codec: CodecId,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Returns the header of a payload: what stands before the payloads of its segments.
///
/// # Panics
/// With more segments or tensors than a manifest can have.
#[must_use]
pub fn header(segments: &[Segment]) -> Vec<u8> {
    let number = |count: usize| u16::try_from(count).expect("a manifest has at most 4,096 tensors").to_le_bytes();
    let mut out = Vec::with_capacity(header_bytes(segments.len()));
    out.extend_from_slice(&number(segments.len()));
    for Segment { tensors, codec, bytes } in segments {
        out.extend_from_slice(&number(*tensors));
        out.push(codec.0);
        out.extend_from_slice(&bytes.to_le_bytes());
    }
    out
}

/// Returns the length of the header of so many segments.
pub(super) const fn header_bytes(segments: usize) -> usize {
    COUNT + ENTRY * segments
}

/// Splits a payload into its segments, which cover `manifest`. Their payloads are not decoded.
///
/// # Errors
/// The header does not fit the manifest or the payload's length, or a payload is too short for its tensors.
pub fn split<'a>(manifest: &ModelManifest, payload: &'a [u8]) -> Result<Vec<Part<'a>>, DecodeError> {
    let (count, rest) = payload.split_first_chunk().ok_or(DecodeError::Truncated("the number of segments"))?;
    let (count, all) = (usize::from(u16::from_le_bytes(*count)), manifest.tensors().len());
    at_most("number of segments", count, all)?;
    let (entries, mut payloads) = rest.split_at_checked(count * ENTRY).ok_or(DecodeError::Truncated("the segments"))?;
    let ends: Vec<usize> = manifest.ranges().map(|(_, range)| range.end).collect();
    let (mut parts, mut tensor, mut value) = (Vec::with_capacity(count), 0, 0);
    for entry in entries.as_chunks::<ENTRY>().0 {
        let [tensors_0, tensors_1, codec, bytes @ ..] = *entry;
        let tensors = usize::from(u16::from_le_bytes([tensors_0, tensors_1]));
        if tensors == 0 {
            return Err(DecodeError::Invalid("a segment without tensors"));
        }
        at_most("number of tensors in segments", tensor + tensors, all)?;
        let tensors = tensor..tensor + tensors;
        let values = value..ends[tensors.end - 1];
        let bytes = usize::try_from(u64::from_le_bytes(bytes)).unwrap_or(usize::MAX);
        let (payload, rest) = payloads.split_at_checked(bytes).ok_or(DecodeError::Truncated("a segment"))?;
        (payloads, tensor, value) = (rest, tensors.end, values.end);
        parts.push(Part { tensors, values, codec: CodecId(codec), payload }.checked()?);
    }
    if tensor < all {
        return Err(DecodeError::Truncated("the tensors in segments"));
    }
    if payloads.is_empty() { Ok(parts) } else { Err(DecodeError::Trailing(payloads.len())) }
}

fn at_most(what: &'static str, found: usize, max: usize) -> Result<(), DecodeError> {
    if found <= max { Ok(()) } else { Err(DecodeError::TooLarge { what, found: found as u64, max: max as u64 }) }
}

impl Part<'_> {
    /// Checks the codec, and that so few bytes can hold so many values: nothing is allocated for a part that cannot.
    fn checked(self) -> Result<Self, DecodeError> {
        match self.most_values() {
            _ if self.codec == ID => Err(DecodeError::Invalid("a segment of segments")),
            None if TopK::of(self.codec).is_none() => Err(DecodeError::UnknownCodec(self.codec.0)),
            Some(most) if most < self.values.len() => Err(DecodeError::Truncated("a segment")),
            _ => Ok(self),
        }
    }

    /// Returns how many values its bytes can hold if its codec sends every value; none if it does not.
    fn most_values(&self) -> Option<usize> {
        let bytes = self.payload.len();
        match self.codec {
            dense::Planes32::ID => Some(bytes.saturating_mul(MAX_EXPANSION / 4)),
            dense::Planes16::ID => Some(bytes.saturating_mul(MAX_EXPANSION / 2)),
            blocks::Int8::ID => Some(bytes),
            blocks::Int4::ID => Some(bytes.saturating_mul(2)),
            _ => None,
        }
    }

    /// Returns how many entries it holds at most.
    fn most_entries(&self) -> usize {
        let sparse = TopK::of(self.codec).map(|codec| codec.most_entries(self.payload.len() as u64));
        let sparse = sparse.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
        self.values.len().min(sparse.unwrap_or(usize::MAX))
    }

    fn decode(&self, manifest: &ModelManifest) -> Result<Delta, DecodeError> {
        let tensors = manifest.slice(self.tensors.clone()).expect("within the manifest, and not empty");
        decode_whole(self.codec, &tensors, self.payload)
    }
}

/// Decodes a payload. The delta is dense if a segment's codec sends every value, and such values and what else the
/// payload can hold are at least half of the model; below that, and of sparse segments alone, it is sparse.
///
/// # Errors
/// See [`split`] and [`Codec::decode`].
pub(super) fn decode(manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
    let parts = split(manifest, bytes)?;
    let entries: usize = parts.iter().map(Part::most_entries).sum();
    let any_dense = parts.iter().any(|part| part.most_values().is_some());
    if any_dense && entries >= manifest.params().div_ceil(2) {
        decode_dense(manifest, &parts)
    } else {
        decode_sparse(manifest, &parts, entries)
    }
}

fn decode_dense(manifest: &ModelManifest, parts: &[Part<'_>]) -> Result<Delta, DecodeError> {
    let mut whole = vec![0.0; manifest.params()];
    for part in parts {
        let target = &mut whole[part.values.clone()];
        match part.decode(manifest)? {
            Delta::Dense(values) => target.copy_from_slice(&values),
            Delta::Sparse { indices, values, .. } => {
                for (index, value) in indices.into_iter().zip(values) {
                    target[index as usize] = value;
                }
            }
        }
    }
    Ok(Delta::Dense(whole))
}

fn decode_sparse(manifest: &ModelManifest, parts: &[Part<'_>], entries: usize) -> Result<Delta, DecodeError> {
    let (mut indices, mut values) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
    for part in parts {
        if let Some(codec) = TopK::of(part.codec) {
            codec.decode_at(part.values.clone(), part.payload, &mut indices, &mut values)?;
        } else {
            let position = |at: usize| u32::try_from(at).expect("a model has at most 2^30 parameters");
            values.extend(part.decode(manifest)?.into_dense());
            indices.extend(position(part.values.start)..position(part.values.end));
        }
    }
    Ok(Delta::Sparse { len: manifest.params(), indices, values })
}

/// Encodes each tensor with a codec of its own. Neighbours with the same codec make one segment. What top-k sends is
/// selected from all tensors that share its parameters together, wherever they lie: the tensors between them change
/// nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Segmented {
    segments: Vec<(usize, CodecSpec)>,
}

impl Segmented {
    /// With these codecs, one for each tensor of the manifest.
    #[must_use]
    pub fn new(codecs: impl IntoIterator<Item = CodecSpec>) -> Self {
        let mut segments: Vec<(usize, CodecSpec)> = Vec::new();
        for codec in codecs {
            match segments.last_mut() {
                Some((tensors, last)) if *last == codec => *tensors += 1,
                _ => segments.push((1, codec)),
            }
        }
        Self { segments }
    }

    /// Returns the codec of all tensors, if it is one.
    #[must_use]
    pub fn uniform(&self) -> Option<CodecSpec> {
        if let [(_, codec)] = self.segments[..] { Some(codec) } else { None }
    }

    fn encode_source(&self, manifest: &ModelManifest, mut source: Source<'_>) -> Result<Vec<u8>, EncodeError> {
        check_length(manifest, source.len())?;
        let places = self.places(manifest)?;
        let mut payloads: Vec<Option<Vec<u8>>> = vec![None; places.len()];
        for (nth, (tensors, values)) in places.iter().enumerate() {
            let codec = self.segments[nth].1;
            if payloads[nth].is_some() {
                continue;
            }
            let CodecSpec::TopK { fraction, bits } = codec else {
                payloads[nth] = Some(source.encode_part(&*encoder(codec), tensors, values.clone())?);
                continue;
            };
            let alike: Vec<usize> =
                (nth..places.len()).filter(|other| *other == nth || self.segments[*other].1 == codec).collect();
            let ranges: Vec<Range<usize>> = alike.iter().map(|nth| places[*nth].1.clone()).collect();
            let encoded = TopK::with_bits(fraction, bits).encode_parts(&mut source, &ranges)?;
            alike.into_iter().zip(encoded).for_each(|(nth, payload)| payloads[nth] = Some(payload));
        }
        let payloads: Vec<Vec<u8>> = payloads.into_iter().flatten().collect();
        let described = self.segments.iter().zip(&payloads).map(|((tensors, codec), payload)| Segment {
            tensors: *tensors,
            codec: codec.id(),
            bytes: payload.len() as u64,
        });
        let mut out = header(&described.collect::<Vec<_>>());
        payloads.iter().for_each(|payload| out.extend_from_slice(payload));
        Ok(out)
    }

    /// Returns the manifest of each segment, and its values in the flat vector.
    fn places(&self, manifest: &ModelManifest) -> Result<Vec<(ModelManifest, Range<usize>)>, EncodeError> {
        let planned = self.segments.iter().map(|(tensors, _)| tensors).sum();
        let found = manifest.tensors().len();
        if planned != found {
            return Err(EncodeError::WrongTensors { planned, found });
        }
        let (mut tensor, mut value) = (0, 0);
        let place = |(tensors, _): &(usize, CodecSpec)| {
            let tensors = manifest.slice(tensor..tensor + tensors).expect("no segment is empty");
            let values = value..value + tensors.params();
            (tensor, value) = (tensor + tensors.tensors().len(), values.end);
            (tensors, values)
        };
        Ok(self.segments.iter().map(place).collect())
    }
}

impl Source<'_> {
    /// Encodes the part of the vector that is `range`, of which nothing was asked for before.
    fn encode_part(
        &mut self,
        codec: &dyn Codec,
        manifest: &ModelManifest,
        range: Range<usize>,
    ) -> Result<Vec<u8>, EncodeError> {
        let start = range.start;
        let payload = match self {
            Self::Values(values) => codec.encode(manifest, &values[range]),
            Self::Residual(residual) => codec.encode_residual(manifest, residual.part(range)),
        };
        payload.map_err(|error| match error {
            EncodeError::NonFinite(at) => EncodeError::NonFinite(start + at),
            other => other,
        })
    }
}

impl Codec for Segmented {
    fn id(&self) -> CodecId {
        ID
    }

    fn lossless(&self) -> bool {
        self.segments.iter().all(|(_, codec)| encoder(*codec).lossless())
    }

    fn encode(&self, manifest: &ModelManifest, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
        self.encode_source(manifest, Source::Values(values))
    }

    fn encode_residual(&self, manifest: &ModelManifest, residual: Residual<'_>) -> Result<Vec<u8>, EncodeError> {
        self.encode_source(manifest, Source::Residual(residual))
    }

    fn decode(&self, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
        decode(manifest, bytes)
    }
}

#[cfg(test)]
mod tests {
    use anabranch_testkit::codec::normal;

    use super::*;
    use crate::codec::max_payload_bytes;
    use crate::manifest::TensorSpec;

    fn manifest(elements: &[u64]) -> ModelManifest {
        let tensor = |(nth, elements): (usize, &u64)| TensorSpec { name: format!("t{nth}"), shape: vec![*elements] };
        ModelManifest::new(elements.iter().enumerate().map(tensor).collect()).expect("valid")
    }

    fn segment(tensors: usize, codec: u8, bytes: u64) -> Segment {
        Segment { tensors, codec: CodecId(codec), bytes }
    }

    /// Payloads that were encoded one by one, such as by the members of a pod, make a payload of the whole.
    #[test]
    fn segments_from_elsewhere_make_a_payload() {
        let manifest = manifest(&[2_000, 10, 3_000]);
        let values = normal(5_010, 1);
        let (front, back) = (manifest.slice(0..2).expect("there"), manifest.slice(2..3).expect("there"));
        let codec = encoder(CodecSpec::top_k(0.05));
        let front = codec.encode(&front, &values[..2_010]).expect("finite");
        let back = codec.encode(&back, &values[2_010..]).expect("finite");
        let segments = [segment(2, 2, front.len() as u64), segment(1, 2, back.len() as u64)];
        let payload = [header(&segments), front.clone(), back.clone()].concat();
        let parts = split(&manifest, &payload).expect("as put together");
        assert_eq!(parts[0], Part { tensors: 0..2, values: 0..2_010, codec: CodecId(2), payload: &front });
        assert_eq!(parts[1], Part { tensors: 2..3, values: 2_010..5_010, codec: CodecId(2), payload: &back });
        let Ok(Delta::Sparse { len, indices, .. }) = decode(&manifest, &payload) else { panic!("it is sparse") };
        let in_front = indices.iter().filter(|index| **index < 2_010).count();
        assert_eq!((len, in_front, indices.len()), (5_010, 101, 251));
    }

    /// Guards the selection: a bias of its own between two matrices does not make each of them send the same share.
    #[test]
    fn tensors_of_one_top_k_are_selected_from_together() {
        let (whole, cut) = (manifest(&[300_000, 1_280]), manifest(&[300_000, 7, 1_280]));
        let mut values = normal(301_280, 2);
        values[300_000..].iter_mut().for_each(|value| *value *= 100.0);
        let between = [&values[..300_000], &[0.5; 7], &values[300_000..]].concat();
        let top_k = CodecSpec::top_k(0.05);
        let plain = encoder(top_k).encode(&whole, &values).expect("finite");
        let Ok(Delta::Sparse { indices: plain, .. }) = TopK::ANY.decode(&whole, &plain) else { panic!("sparse") };
        let payload = Segmented::new([top_k, CodecSpec::F32, top_k]).encode(&cut, &between).expect("finite");
        let Ok(Delta::Sparse { indices, values, .. }) = decode(&cut, &payload) else { panic!("sparse") };
        let shifted = plain.iter().map(|index| if *index < 300_000 { *index } else { index + 7 });
        let mut wanted: Vec<u32> = shifted.chain(300_000..300_007).collect();
        wanted.sort_unstable();
        assert_eq!(indices, wanted);
        assert!(indices.iter().zip(values).all(|(index, value)| !(300_000..300_007).contains(index) || value == 0.5));
    }

    #[test]
    fn neighbours_with_one_codec_make_one_segment() {
        let (top_k, halves) = (CodecSpec::top_k(0.5), CodecSpec::Bf16);
        let codec = Segmented::new([top_k, halves, halves, top_k, CodecSpec::top_k(0.25)]);
        assert_eq!(codec.segments, [(1, top_k), (2, halves), (1, top_k), (1, CodecSpec::top_k(0.25))]);
        assert_eq!((codec.uniform(), codec.lossless()), (None, false));
        assert_eq!(Segmented::new([halves; 3]).uniform(), Some(halves));
        assert!(Segmented::new([CodecSpec::F32; 2]).lossless());
        let refused = codec.encode(&manifest(&[4, 4]), &[0.0; 8]);
        assert_eq!(refused, Err(EncodeError::WrongTensors { planned: 5, found: 2 }));
    }

    #[test]
    fn a_delta_is_dense_where_that_is_smaller() {
        let few = CodecSpec::top_k(0.01);
        for (codecs, dense) in [
            ([few, CodecSpec::F32, few], false),
            ([CodecSpec::Int8, few, few], true),
            ([few, few, CodecSpec::Bf16], false),
            ([CodecSpec::top_k(1.0), CodecSpec::Bf16, few], true),
            ([CodecSpec::top_k(1.0); 3], false),
        ] {
            let (manifest, values) = (manifest(&[6_000, 20, 2_000]), normal(8_020, 3));
            let codec = Segmented::new(codecs);
            let payload = codec.encode(&manifest, &values).expect("finite");
            let delta = codec.decode(&manifest, &payload).expect("as encoded");
            assert_eq!(matches!(delta, Delta::Dense(_)), dense, "{codecs:?}");
            let back = delta.into_dense();
            for part in split(&manifest, &payload).expect("as encoded") {
                let alone = part.decode(&manifest).expect("as encoded").into_dense();
                assert_eq!(back[part.values], alone, "{codecs:?}");
            }
        }
    }

    #[test]
    fn a_header_that_does_not_fit_is_refused() {
        let manifest = manifest(&[4, 4]);
        let of = |segments: &[Segment], payload: &[u8]| decode(&manifest, &[&header(segments), payload].concat());
        let too_large = |what, found, max| Err(DecodeError::TooLarge { what, found, max });
        assert_eq!(decode(&manifest, &[1]), Err(DecodeError::Truncated("the number of segments")));
        assert_eq!(of(&[], &[]), Err(DecodeError::Truncated("the tensors in segments")));
        assert_eq!(of(&[segment(1, 3, 8); 3], &[0; 24]), too_large("number of segments", 3, 2));
        assert_eq!(decode(&manifest, &[2, 0, 1, 0, 3]), Err(DecodeError::Truncated("the segments")));
        assert_eq!(
            of(&[segment(0, 3, 0), segment(2, 3, 16)], &[0; 16]),
            Err(DecodeError::Invalid("a segment without tensors"))
        );
        assert_eq!(
            of(&[segment(1, 3, 8), segment(2, 3, 8)], &[0; 16]),
            too_large("number of tensors in segments", 3, 2)
        );
        assert_eq!(of(&[segment(1, 3, 8)], &[0; 8]), Err(DecodeError::Truncated("the tensors in segments")));
        assert_eq!(of(&[segment(2, 3, 17)], &[0; 16]), Err(DecodeError::Truncated("a segment")));
        assert_eq!(of(&[segment(2, 3, u64::MAX)], &[0; 16]), Err(DecodeError::Truncated("a segment")));
        assert_eq!(of(&[segment(2, 3, 16)], &[0; 17]), Err(DecodeError::Trailing(1)));
        assert_eq!(of(&[segment(2, 7, 16)], &[0; 16]), Err(DecodeError::Invalid("a segment of segments")));
        assert_eq!(of(&[segment(2, 9, 16)], &[0; 16]), Err(DecodeError::UnknownCodec(9)));
        assert_eq!(of(&[segment(1, 3, 7), segment(1, 3, 9)], &[0; 16]), Err(DecodeError::Truncated("the blocks")));
        assert_eq!(of(&[segment(1, 0, 0), segment(1, 3, 8)], &[0; 8]), Err(DecodeError::Truncated("a segment")));
        assert_eq!(of(&[segment(2, 3, 16)], &[0; 16]), Ok(Delta::Dense(vec![0.0; 8])));
    }

    #[test]
    fn values_that_are_not_finite_are_named_by_their_position_in_the_model() {
        let manifest = manifest(&[2_000, 4, 2_000]);
        for codecs in [[CodecSpec::top_k(0.1), CodecSpec::F32, CodecSpec::top_k(0.1)], [CodecSpec::Int8; 3]] {
            for at in [0, 1_999, 2_000, 2_003, 2_004, 4_003] {
                let mut values = normal(4_004, 4);
                values[at] = f32::NAN;
                assert_eq!(Segmented::new(codecs).encode(&manifest, &values), Err(EncodeError::NonFinite(at)));
            }
        }
    }

    #[test]
    fn the_longest_payload_has_room_for_a_segment_for_each_tensor() {
        let mut rng = crate::rng::SplitMix64::new(8);
        for elements in [vec![1; 64], vec![1, 7, 40_000, 3, 1_024]] {
            let manifest = manifest(&elements);
            let word = |_| f32::from_bits((rng.next_u64() >> 33) as u32 & 0xFF7F_FFFF);
            let noise: Vec<f32> = (0..manifest.params()).map(word).collect();
            let codecs = [CodecSpec::F32, CodecSpec::Bf16];
            for shift in 0..2 {
                let codec = Segmented::new((0..elements.len()).map(|nth| codecs[(nth + shift) % 2]));
                let bytes = codec.encode(&manifest, &noise).expect("finite").len() as u64;
                let most = max_payload_bytes(&manifest);
                assert!(bytes <= most, "{bytes} bytes for {elements:?}, more than {most}");
            }
        }
    }
}
