//! The largest entries only: positions as Rice-coded gaps, values as int8.
//!
//! For each tensor, in manifest order:
//!
//! ```text
//!  fewer than 1,024 elements (biases, norms)        otherwise
//!  ┌───────────────────────┐                        ┌────────┬─────────┬─────────┬─
//!  │ bf16 le, each element │                        │ k      │ block 0 │ block 1 │ ...  ceil(k / 256) blocks
//!  └───────────────────────┘                        │ u32 le │         │         │
//!                                                   └────────┴─────────┴─────────┴─
//!  block of m = min(256, entries left)
//!  ┌────────┬──────────────┬─────────────┬──────────────────────────────────┐
//!  │ scale  │ parameter r  │ values      │ gaps, filled up to a whole byte  │
//!  │ f32 le │ u8           │ m times i8  │ m Rice codes (see `rice`)        │
//!  └────────┴──────────────┴─────────────┴──────────────────────────────────┘
//! ```
//! Entries are in the order of their positions; a gap is the number of elements skipped since the last entry. The same
//! input gives the same bytes on every machine.

use super::quantize::{self, BLOCK, SMALLEST};
use super::{Codec, CodecId, DecodeError, Delta, EncodeError, check_input, dense, rice};
use crate::manifest::ModelManifest;

/// Tensors with fewer elements are sent whole: their entries matter more than their bytes.
pub const DENSE_BELOW: usize = 1_024;

/// The share of each tensor that is largest in magnitude; of equal magnitudes the ones that come first. Entries whose
/// magnitude is below [`SMALLEST`] are never sent.
#[derive(Debug, Clone, Copy)]
pub struct TopK {
    fraction: f64,
}

impl TopK {
    /// Its byte.
    pub const ID: CodecId = CodecId(2);

    /// Decodes what was encoded with any fraction.
    pub const ANY: Self = Self { fraction: 1.0 };

    /// With this share of each tensor, in (0, 1] (see [`CodecSpec::validate`](super::CodecSpec::validate)). Decoding
    /// accepts this share or less.
    #[must_use]
    pub fn new(fraction: f32) -> Self {
        Self { fraction: f64::from(fraction) }
    }

    /// How many of `elements` are sent at most: at least one.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the number of elements")]
    pub fn keep(&self, elements: usize) -> usize {
        ((elements as f64 * self.fraction).round() as usize).clamp(1, elements)
    }
}

impl Codec for TopK {
    fn id(&self) -> CodecId {
        Self::ID
    }

    fn lossless(&self) -> bool {
        false
    }

    fn encode(&self, manifest: &ModelManifest, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
        check_input(manifest, values)?;
        let mut out = Vec::new();
        let mut entries = Entries::default();
        for (_, range) in manifest.ranges() {
            let tensor = &values[range];
            if tensor.len() < DENSE_BELOW {
                out.extend(tensor.iter().flat_map(|value| dense::to_bf16(*value).to_le_bytes()));
            } else {
                entries.select(tensor, self.keep(tensor.len()));
                entries.write(&mut out);
            }
        }
        Ok(out)
    }

    fn decode(&self, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
        // Every entry takes at least a byte, so this is all that can come.
        let most = manifest.params().min(bytes.len());
        let mut decoder = Decoder { left: bytes, indices: Vec::with_capacity(most), values: Vec::with_capacity(most) };
        for (_, range) in manifest.ranges() {
            if range.len() < DENSE_BELOW {
                decoder.dense_tensor(range)?;
            } else {
                let most = self.keep(range.len());
                decoder.sparse_tensor(range, most)?;
            }
        }
        let Decoder { left, indices, values } = decoder;
        match left.len() {
            0 => Ok(Delta::Sparse { len: manifest.params(), indices, values }),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

/// The selected entries of one tensor.
#[derive(Default)]
struct Entries {
    gaps: Vec<u32>,
    values: Vec<f32>,
    keys: Vec<u32>,
}

/// The order of magnitudes is the order of their bits without the sign.
fn key(value: f32) -> u32 {
    value.to_bits() & 0x7FFF_FFFF
}

/// Buckets of the first look at a tensor: eight bits of exponent and three of mantissa.
const BUCKETS: usize = 1 << 11;
const BUCKET_SHIFT: u32 = 31 - 11;

impl Entries {
    /// Takes the `keep` largest magnitudes of `tensor`, in the order of their positions.
    fn select(&mut self, tensor: &[f32], keep: usize) {
        self.gaps.clear();
        self.values.clear();
        let (threshold, mut ties) = self.threshold(tensor, keep);
        let mut next = 0u32;
        for (position, value) in (0u32..).zip(tensor) {
            let key = key(*value);
            if key < threshold {
                continue;
            }
            if key == threshold {
                if ties == 0 {
                    continue;
                }
                ties -= 1;
            }
            self.gaps.push(position - next);
            self.values.push(*value);
            next = position + 1;
        }
    }

    /// The `keep`-th largest key, and how many entries with exactly that key belong to the largest. Exact: a histogram
    /// finds the bucket that it lies in, and only that bucket is searched.
    fn threshold(&mut self, tensor: &[f32], keep: usize) -> (u32, usize) {
        let smallest = SMALLEST.to_bits();
        let bucket = |key: u32| (key >> BUCKET_SHIFT) as usize;
        let mut counts = [0usize; BUCKETS];
        for value in tensor {
            counts[bucket(key(*value))] += 1;
        }
        let mut above = 0;
        let mut chosen = BUCKETS - 1;
        while above + counts[chosen] < keep && chosen > bucket(smallest) {
            above += counts[chosen];
            chosen -= 1;
        }
        self.keys.clear();
        self.keys
            .extend(tensor.iter().map(|value| key(*value)).filter(|key| bucket(*key) == chosen && *key >= smallest));
        let wanted = keep - above;
        if self.keys.len() <= wanted {
            // Everything that is not too small to be sent.
            return (if chosen == bucket(smallest) { smallest } else { lowest(chosen) }, usize::MAX);
        }
        let (_, threshold, _) = self.keys.select_nth_unstable_by(wanted - 1, |one, other| other.cmp(one));
        let threshold = *threshold;
        let larger = self.keys.iter().filter(|key| **key > threshold).count();
        (threshold, wanted - larger)
    }

    fn write(&self, out: &mut Vec<u8>) {
        let count = u32::try_from(self.gaps.len()).expect("a tensor has at most 2^30 elements");
        out.extend_from_slice(&count.to_le_bytes());
        for (gaps, values) in self.gaps.chunks(BLOCK).zip(self.values.chunks(BLOCK)) {
            let start = out.len();
            out.extend_from_slice(&[0; 4]);
            let parameter = rice::parameter(gaps);
            out.push(parameter);
            let scale = quantize::quantize(values, out);
            out[start..start + 4].copy_from_slice(&scale.to_le_bytes());
            rice::encode(gaps, parameter, out);
        }
    }
}

/// The lowest key of a bucket.
fn lowest(bucket: usize) -> u32 {
    u32::try_from(bucket << BUCKET_SHIFT).expect("a key has 31 bits")
}

struct Decoder<'a> {
    left: &'a [u8],
    indices: Vec<u32>,
    values: Vec<f32>,
}

impl<'a> Decoder<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, left) = self.left.split_at_checked(count).ok_or(DecodeError::Truncated(what))?;
        self.left = left;
        Ok(taken)
    }

    fn dense_tensor(&mut self, range: std::ops::Range<usize>) -> Result<(), DecodeError> {
        let halves = self.take(range.len() * 2, "a dense tensor")?;
        self.values.extend(halves.as_chunks().0.iter().map(|half| dense::from_bf16(u16::from_le_bytes(*half))));
        self.indices.extend(positions(range)?);
        Ok(())
    }

    fn sparse_tensor(&mut self, range: std::ops::Range<usize>, most: usize) -> Result<(), DecodeError> {
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
        let values = self.take(len, "the values of a block")?;
        quantize::dequantize(scale, values, &mut self.values)?;
        let mut gaps = [0; BLOCK];
        let gaps = &mut gaps[..len];
        let used = rice::decode(self.left, head[4], end - next, gaps)?;
        self.take(used, "the gaps")?;
        for gap in gaps {
            // No sum overflows: positions and gaps are below 2^30 + 1.
            let position = next + *gap;
            if position >= end {
                let found = u64::from(position);
                return Err(DecodeError::TooLarge { what: "position of an entry", found, max: u64::from(end) - 1 });
            }
            self.indices.push(position);
            next = position + 1;
        }
        Ok(next)
    }
}

/// A range of positions in the type that deltas use for them.
fn positions(range: std::ops::Range<usize>) -> Result<std::ops::Range<u32>, DecodeError> {
    let position = |at: usize| {
        u32::try_from(at).map_err(|_| DecodeError::TooLarge { what: "tensor", found: at as u64, max: u32::MAX.into() })
    };
    Ok(position(range.start)?..position(range.end)?)
}

#[cfg(test)]
mod tests {
    use anabranch_testkit::codec::normal;

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

    /// The table in the codec's documentation promises these ratios.
    #[test]
    fn the_ratio_on_normal_values_is_the_promised_one() {
        let values = normal(1_000_000, 1);
        for (fraction, promised) in [(0.05, 45.5), (0.01, 195.0), (0.0025, 690.0)] {
            let (bytes, indices, _) = round_trip(fraction, &values);
            let ratio = values.len() as f64 * 4.0 / bytes as f64;
            let bits = bytes as f64 * 8.0 / indices.len() as f64;
            println!("top {fraction}: {} entries, {ratio:.1} times smaller, {bits:.2} bits an entry", indices.len());
            assert!(ratio > promised, "top {fraction} is {ratio:.1} times smaller, not {promised}");
        }
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

    #[test]
    fn small_tensors_come_whole() {
        let values = normal(DENSE_BELOW - 1, 4);
        let (bytes, indices, back) = round_trip(0.01, &values);
        assert_eq!((bytes, indices.len()), ((DENSE_BELOW - 1) * 2, DENSE_BELOW - 1));
        assert!(values.iter().zip(back).all(|(value, back)| (value - back).abs() <= value.abs() / 256.0));
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
