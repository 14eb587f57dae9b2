//! The largest entries only: positions as Rice-coded gaps, values as small integers.
//!
//! For each chunk of 262,144 elements of the vector (the last one: the rest), whatever the tensors:
//!
//! ```text
//!  ┌────────┬─────────┬─────────┬─
//!  │ k      │ block 0 │ block 1 │ ...  ceil(k / 256) blocks
//!  │ u32 le │         │         │
//!  └────────┴─────────┴─────────┴─
//!  block of m = min(256, entries left)
//!  ┌────────┬──────────────┬───────────────────────┬──────────────────────────────────┐
//!  │ scale  │ parameter r  │ values                │ gaps, filled up to a whole byte  │
//!  │ f32 le │ u8           │ m times 8, 4 or 1 bit │ m Rice codes (see `rice`)        │
//!  └────────┴──────────────┴───────────────────────┴──────────────────────────────────┘
//! ```
//! Entries are in the order of their positions; a gap is the number of elements skipped since the last entry, or since the
//! start of the chunk. Chunks do not depend on each other, so the same input gives the same bytes on every machine and
//! for any number of threads.

use std::ops::Range;

use super::feedback::Residual;
use super::quantize::{self, BLOCK, Quantized, ValueBits};
use super::select::Selector;
use super::{
    Codec, CodecId, DecodeError, Delta, EncodeError, Source, check_finite, check_length, non_finite, pieces, rice,
};
use crate::manifest::ModelManifest;

/// Elements of which the largest are selected together: 1 MiB of them, which stays in a core's second cache.
pub const CHUNK: usize = 1 << 18;

/// Cuts a vector into the chunks of which the largest elements are sent.
pub fn chunks(params: usize) -> impl Iterator<Item = Range<usize>> {
    pieces(0..params, CHUNK)
}

/// The share of each chunk that is largest in magnitude; of equal magnitudes the ones that come first. Entries whose
/// magnitude is below [`SMALLEST`](quantize::SMALLEST) are never sent.
#[derive(Debug, Clone, Copy)]
pub struct TopK {
    fraction: f64,
    bits: ValueBits,
}

impl TopK {
    /// Its byte with values of 8 bits.
    pub const ID: CodecId = CodecId(2);
    /// Its byte with values of 4 bits.
    pub const NIBBLES_ID: CodecId = CodecId(5);
    /// Its byte with signs.
    pub const SIGNS_ID: CodecId = CodecId(6);

    /// Decodes what was encoded with any fraction and values of 8 bits.
    pub const ANY: Self = Self { fraction: 1.0, bits: ValueBits::Eight };

    /// With this share of each chunk, in (0, 1] (see [`CodecSpec::validate`](super::CodecSpec::validate)), and values of
    /// 8 bits. Decoding accepts this share or less.
    #[must_use]
    pub fn new(fraction: f32) -> Self {
        Self::with_bits(fraction, ValueBits::Eight)
    }

    /// The same with values of `bits`.
    #[must_use]
    pub fn with_bits(fraction: f32, bits: ValueBits) -> Self {
        Self { fraction: f64::from(fraction), bits }
    }

    /// The decoder of what was encoded with any fraction, by its byte.
    pub(super) fn of(id: CodecId) -> Option<Self> {
        let bits = ValueBits::ALL.into_iter().find(|bits| Self::with_bits(1.0, *bits).id() == id)?;
        Some(Self::with_bits(1.0, bits))
    }

    /// Returns how many of a chunk's `elements` are sent at most: at least one.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the number of elements")]
    pub fn keep(&self, elements: usize) -> usize {
        ((elements as f64 * self.fraction).round() as usize).clamp(1, elements)
    }

    /// Returns how many entries this many bytes can hold: each takes its value's bits and at least one for its gap.
    pub(super) fn most_entries(self, bytes: u64) -> u64 {
        bytes.saturating_mul(8) / (self.bits.count() as u64 + 1)
    }

    /// About as many bytes as a payload has.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number, rounded")]
    fn likely_bytes(self, manifest: &ModelManifest) -> usize {
        // A Rice code takes about 1.5 bits more than the logarithm of the mean gap.
        let bits = self.bits.count() as f64 + 1.0 - self.fraction.log2() + 1.0;
        (manifest.params() as f64 * self.fraction * bits / 8.0) as usize + 64
    }

    fn encode_source(self, manifest: &ModelManifest, mut source: Source<'_>) -> Result<Vec<u8>, EncodeError> {
        check_length(manifest, source.len())?;
        let mut out = Vec::with_capacity(self.likely_bytes(manifest));
        let mut selector = Selector::default();
        let mut writer = Writer { bits: self.bits, quantized: Quantized::default(), sent: Vec::new() };
        for chunk in chunks(manifest.params()) {
            let (start, keep) = (chunk.start, self.keep(chunk.len()));
            let values = source.values(chunk);
            let positions = selector.select(values, keep).map_err(|_| non_finite(values, start))?;
            writer.write(values, positions, &mut out);
            source.sent_at(start, positions, &writer.sent);
        }
        Ok(out)
    }

    /// Encodes parts of a vector as a payload each. What is sent are the largest elements of all parts together: of
    /// their elements one part after another, the share of each chunk that a payload of the whole would send.
    pub(super) fn encode_parts(
        self,
        source: &mut Source<'_>,
        parts: &[Range<usize>],
    ) -> Result<Vec<Vec<u8>>, EncodeError> {
        let picked = self.select_from_parts(source, parts)?;
        let mut picked = &picked[..];
        let mut writer = Writer { bits: self.bits, quantized: Quantized::default(), sent: Vec::new() };
        let (mut start, mut positions) = (0, Vec::new());
        let encode = |part: &Range<usize>| {
            let mut out = Vec::new();
            for chunk in chunks(part.len()) {
                let here = picked.partition_point(|position| (*position as usize) < start + chunk.len());
                let (here, rest) = picked.split_at(here);
                let from = u32::try_from(start).expect("a model has at most 2^30 parameters");
                positions.clear();
                positions.extend(here.iter().map(|position| position - from));
                let (from, until) = (part.start + chunk.start, part.start + chunk.end);
                writer.write(source.seen(from..until), &positions, &mut out);
                source.sent_at(from, &positions, &writer.sent);
                (start, picked) = (start + chunk.len(), rest);
            }
            out
        };
        Ok(parts.iter().map(encode).collect())
    }

    /// Returns the positions of the elements that are sent, counted through the parts one after another.
    fn select_from_parts(self, source: &mut Source<'_>, parts: &[Range<usize>]) -> Result<Vec<u32>, EncodeError> {
        let elements: usize = parts.iter().map(ExactSizeIterator::len).sum();
        let mut picked = Vec::with_capacity(chunks(elements).map(|chunk| self.keep(chunk.len())).sum());
        let mut selector = Selector::default();
        let mut select = |buffer: &mut Vec<f32>, start: usize| {
            let positions = selector.select(buffer, self.keep(buffer.len()));
            let start = u32::try_from(start).expect("a model has at most 2^30 parameters");
            picked.extend(positions.expect("checked as it was read").iter().map(|position| start + position));
            buffer.clear();
        };
        let (mut buffer, mut start) = (Vec::with_capacity(elements.min(CHUNK)), 0);
        for part in parts {
            let mut left = part.clone();
            while !left.is_empty() {
                let piece = left.start..left.end.min(left.start + CHUNK - buffer.len());
                let values = source.values(piece.clone());
                check_finite(values, piece.start)?;
                buffer.extend_from_slice(values);
                left.start = piece.end;
                if buffer.len() == CHUNK {
                    select(&mut buffer, start);
                    start += CHUNK;
                }
            }
        }
        if !buffer.is_empty() {
            select(&mut buffer, start);
        }
        Ok(picked)
    }

    /// Decodes a payload for the part of a vector that is `range`, and appends its entries.
    pub(super) fn decode_at(
        &self,
        range: Range<usize>,
        bytes: &[u8],
        indices: &mut Vec<u32>,
        values: &mut Vec<f32>,
    ) -> Result<(), DecodeError> {
        let mut decoder = Decoder { bits: self.bits, left: bytes, indices, values };
        for chunk in pieces(range, CHUNK) {
            let most = self.keep(chunk.len());
            decoder.chunk(chunk, most)?;
        }
        match decoder.left.len() {
            0 => Ok(()),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

impl Codec for TopK {
    fn id(&self) -> CodecId {
        match self.bits {
            ValueBits::Eight => Self::ID,
            ValueBits::Four => Self::NIBBLES_ID,
            ValueBits::One => Self::SIGNS_ID,
        }
    }

    fn lossless(&self) -> bool {
        false
    }

    fn encode(&self, manifest: &ModelManifest, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
        self.encode_source(manifest, Source::Values(values))
    }

    fn encode_residual(&self, manifest: &ModelManifest, residual: Residual<'_>) -> Result<Vec<u8>, EncodeError> {
        self.encode_source(manifest, Source::Residual(residual))
    }

    fn decode(&self, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
        let len = manifest.params();
        // This is all that can come.
        let most = usize::try_from(self.most_entries(bytes.len() as u64)).unwrap_or(usize::MAX).min(len);
        let (mut indices, mut values) = (Vec::with_capacity(most), Vec::with_capacity(most));
        self.decode_at(0..len, bytes, &mut indices, &mut values)?;
        Ok(Delta::Sparse { len, indices, values })
    }
}

/// Writes the entries of one chunk after another.
struct Writer {
    bits: ValueBits,
    quantized: Quantized,
    /// What the entries of the latest chunk are read as.
    sent: Vec<f32>,
}

impl Writer {
    fn write(&mut self, chunk: &[f32], positions: &[u32], out: &mut Vec<u8>) {
        let count = u32::try_from(positions.len()).expect("a chunk has 2^18 elements");
        out.extend_from_slice(&count.to_le_bytes());
        self.sent.clear();
        let mut next = 0;
        for positions in positions.chunks(BLOCK) {
            let (mut gaps, mut values) = ([0; BLOCK], [0.0; BLOCK]);
            for ((gap, value), position) in gaps.iter_mut().zip(&mut values).zip(positions) {
                *gap = position - next;
                *value = chunk[*position as usize];
                next = position + 1;
            }
            self.block(&gaps[..positions.len()], &values[..positions.len()], out);
        }
    }

    fn block(&mut self, gaps: &[u32], values: &[f32], out: &mut Vec<u8>) {
        let scale = self.quantized.fill(self.bits, values);
        let parameter = rice::parameter(gaps);
        out.extend_from_slice(&scale.to_le_bytes());
        out.push(parameter);
        out.extend_from_slice(self.quantized.bytes(self.bits.bytes(values.len())));
        rice::encode(gaps, parameter, out);
        self.sent.extend_from_slice(self.quantized.back(values.len()));
    }
}

struct Decoder<'a> {
    bits: ValueBits,
    left: &'a [u8],
    indices: &'a mut Vec<u32>,
    values: &'a mut Vec<f32>,
}

impl<'a> Decoder<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, left) = self.left.split_at_checked(count).ok_or(DecodeError::Truncated(what))?;
        self.left = left;
        Ok(taken)
    }

    fn chunk(&mut self, range: Range<usize>, most: usize) -> Result<(), DecodeError> {
        let count = self.take(4, "the number of entries")?;
        let count = u32::from_le_bytes([count[0], count[1], count[2], count[3]]) as usize;
        if count > most {
            return Err(DecodeError::TooLarge { what: "number of entries", found: count as u64, max: most as u64 });
        }
        let positions = positions(range)?;
        let (mut next, end) = (positions.start, positions.end);
        for done in (0..count).step_by(BLOCK) {
            next = self.block((count - done).min(BLOCK), next, end)?;
        }
        Ok(())
    }

    /// Reads a block of `len` entries at `next` or later and before `end`; says where the next entry may be.
    fn block(&mut self, len: usize, mut next: u32, end: u32) -> Result<u32, DecodeError> {
        let head = self.take(5, "the head of a block")?;
        let scale = f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let values = self.take(self.bits.bytes(len), "the values of a block")?;
        quantize::dequantize(self.bits, scale, values, len, self.values)?;
        let mut gaps = [0; BLOCK];
        let gaps = &mut gaps[..len];
        let used = rice::decode(self.left, head[4], end - next, gaps)?;
        self.take(used, "the gaps")?;
        for gap in &mut *gaps {
            // No sum overflows: positions and gaps are below 2^30 + 1, and the last position is checked before the next.
            let position = next + *gap;
            if position >= end {
                let found = u64::from(position);
                return Err(DecodeError::TooLarge { what: "position of an entry", found, max: u64::from(end) - 1 });
            }
            *gap = position;
            next = position + 1;
        }
        self.indices.extend_from_slice(gaps);
        Ok(next)
    }
}

/// A range of positions in the type that deltas use for them.
fn positions(range: Range<usize>) -> Result<Range<u32>, DecodeError> {
    let position = |at: usize| {
        u32::try_from(at).map_err(|_| DecodeError::TooLarge { what: "vector", found: at as u64, max: u32::MAX.into() })
    };
    Ok(position(range.start)?..position(range.end)?)
}

#[cfg(test)]
mod tests {
    use anabranch_testkit::codec::normal;

    use super::quantize::SMALLEST;
    use super::*;
    use crate::manifest::TensorSpec;

    fn one_tensor(elements: usize) -> ModelManifest {
        let tensor = TensorSpec { name: "w".into(), shape: vec![elements as u64] };
        ModelManifest::new(vec![tensor]).expect("valid")
    }

    fn round_trip(fraction: f32, values: &[f32]) -> (usize, Vec<u32>, Vec<f32>) {
        let (codec, manifest) = (TopK::new(fraction), one_tensor(values.len()));
        let bytes = codec.encode(&manifest, values).expect("finite");
        match codec.decode(&manifest, &bytes).expect("as encoded") {
            Delta::Sparse { indices, values, .. } => (bytes.len(), indices, values),
            Delta::Dense(_) => panic!("top-k gives sparse deltas"),
        }
    }

    /// docs/benchmarks.md has these ratios.
    #[test]
    fn the_ratio_on_a_million_values_is_the_promised_one() {
        let (manifest, values) = (one_tensor(1_000_000), normal(1_000_000, 1));
        // Fraction, bits, least ratio, and the ratio without scales and counts where it is known.
        for (fraction, bits, promised, expected) in [
            (0.05, ValueBits::Eight, 45.5, "46"),
            (0.05, ValueBits::Four, 63.5, "-"),
            (0.05, ValueBits::One, 90.5, "-"),
            (0.01, ValueBits::Eight, 195.0, "199"),
            (0.01, ValueBits::Four, 258.0, "-"),
            (0.01, ValueBits::One, 340.0, "351"),
            (0.0025, ValueBits::Eight, 690.0, "707"),
        ] {
            let codec = TopK::with_bits(fraction, bits);
            let bytes = codec.encode(&manifest, &values).expect("finite");
            let entries = codec.decode(&manifest, &bytes).expect("as encoded").values().len();
            let (ratio, each) =
                (values.len() as f64 * 4.0 / bytes.len() as f64, bytes.len() as f64 * 8.0 / entries as f64);
            let bits = bits.count();
            println!(
                "top {fraction}, {bits} bits: {ratio:.1} times smaller, {expected} expected; {each:.2} bits an entry"
            );
            assert!(ratio > promised, "top {fraction} with {bits} bits is {ratio:.1} times smaller, not {promised}");
        }
    }

    #[test]
    fn a_long_vector_is_selected_chunk_by_chunk() {
        let mut values = normal(CHUNK + 1_500, 6);
        values[CHUNK..].iter_mut().for_each(|value| *value *= 1e-3);
        let indices = round_trip(0.01, &values).1;
        let in_first = indices.iter().filter(|index| (**index as usize) < CHUNK).count();
        assert_eq!((in_first, indices.len() - in_first), (2_621, 15));
        let alone = TopK::new(0.01).encode(&one_tensor(CHUNK), &values[..CHUNK]).expect("finite");
        let together = TopK::new(0.01).encode(&one_tensor(values.len()), &values).expect("finite");
        assert_eq!(together[..alone.len()], alone, "a chunk depends on the one after it");
        assert_eq!(chunks(CHUNK + 1).collect::<Vec<_>>(), [0..CHUNK, CHUNK..CHUNK + 1]);
    }

    #[test]
    fn the_selection_is_exactly_the_largest_with_ties_to_the_first() {
        for round in 0..20usize {
            // Few different magnitudes, so that most thresholds are ties.
            let mut values = normal(5_000, round as u64);
            values.iter_mut().for_each(|value| *value = (*value * 8.0).round() / 8.0);
            let keep = 37 * (round + 1);
            let (_, indices, _) = round_trip(keep as f32 / 5_000.0, &values);
            let mut order: Vec<u32> = (0..5_000).filter(|index| values[*index as usize] != 0.0).collect();
            order.sort_by(|one, other| {
                values[*other as usize].abs().total_cmp(&values[*one as usize].abs()).then(one.cmp(other))
            });
            order.truncate(keep);
            order.sort_unstable();
            assert_eq!(indices, order, "round {round}");
        }
    }

    #[test]
    fn nothing_is_sent_for_what_is_zero_or_too_small() {
        let mut values = vec![0.0; 4_096];
        assert_eq!(round_trip(0.5, &values).1, [] as [u32; 0]);
        values[7] = f32::from_bits(1);
        values[8] = SMALLEST.next_down();
        values[9] = -SMALLEST;
        values[4_000] = f32::MAX;
        assert_eq!(round_trip(0.5, &values).1, [9, 4_000]);
        assert_eq!(round_trip(1.0 / 4_096.0, &values).1, [4_000]);
        assert_eq!(round_trip(1.0, &vec![1.0; 2_000]).1, (0..2_000).collect::<Vec<_>>());
    }

    /// Guards the last layer of a model, which has few weights and, under skewed labels, most of what an agent has to say.
    #[test]
    fn a_small_tensor_with_large_entries_is_sent_nearly_whole() {
        let tensor = |name: &str, elements| TensorSpec { name: name.into(), shape: vec![elements] };
        let manifest = ModelManifest::new(vec![tensor("hidden", 100_000), tensor("last", 1_280)]).expect("valid");
        let mut values = normal(101_280, 4);
        values[100_000..].iter_mut().for_each(|value| *value *= 100.0);
        let payload = TopK::new(0.05).encode(&manifest, &values).expect("finite");
        let Ok(Delta::Sparse { indices, .. }) = TopK::ANY.decode(&manifest, &payload) else { panic!("as encoded") };
        let last = indices.iter().filter(|index| **index >= 100_000).count();
        assert_eq!(indices.len(), 5_064);
        assert!(last > 1_200, "{last} of 1,280 entries of the last layer");
    }

    #[test]
    fn more_entries_than_the_fraction_allows_are_refused() {
        let (manifest, values) = (one_tensor(2_000), normal(2_000, 9));
        let bytes = TopK::new(0.5).encode(&manifest, &values).expect("finite");
        assert!(TopK::ANY.decode(&manifest, &bytes).is_ok());
        let refused = TopK::new(0.1).decode(&manifest, &bytes);
        assert_eq!(refused, Err(DecodeError::TooLarge { what: "number of entries", found: 1_000, max: 200 }));
    }

    #[test]
    fn a_position_past_the_end_is_refused() {
        // One entry, value 127 * 1.0, gap 2000 under r = 12: a one, then the low bits.
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend_from_slice(&1.0f32.to_le_bytes());
        bytes.extend_from_slice(&[12, 127]);
        rice::encode(&[2_000], 12, &mut bytes);
        let refused = TopK::ANY.decode(&one_tensor(2_000), &bytes);
        assert_eq!(refused, Err(DecodeError::TooLarge { what: "position of an entry", found: 2_000, max: 1_999 }));
        assert!(TopK::ANY.decode(&one_tensor(2_001), &bytes).is_ok());
    }
}
