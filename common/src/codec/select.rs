//! The largest magnitudes of a chunk.
//!
//! ```text
//!  a threshold that is probably a little too low      from a sample, or from the chunk before
//!    └► scan: positions that reach it                 one pass over the chunk
//!         ├─ enough ──► the exact threshold among them, the positions that reach that
//!         └─ too few ─► a histogram of the chunk gives a threshold that is low enough; scan again
//! ```
//! The selection is exact: the guess decides how long it takes, never what is selected.

use super::quantize::SMALLEST;
use super::vector::{INFINITE, key, vectorized};

/// Elements that are looked at together.
const LANES: usize = 8;
/// The most elements of a sample: about 1 % of a chunk.
const SAMPLE: usize = 2_048;
/// How far the next guess lies below this chunk's threshold: a few percent, for about a fifth more positions.
const MARGIN: u32 = 1 << 18;

/// Buckets of the keys that a scan found.
const FINE_BUCKETS: u32 = 1 << 10;
/// Buckets of the histogram: eight bits of exponent and three of mantissa.
const BUCKETS: usize = 1 << 11;
const BUCKET_SHIFT: u32 = 31 - 11;

/// A value of the chunk is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NonFinite;

/// Selects from one chunk after another; keeps its buffers and its guess.
#[derive(Debug, Default)]
pub(super) struct Selector {
    guess: Option<u32>,
    positions: Vec<u32>,
    keys: Vec<u32>,
}

impl Selector {
    /// Returns the positions of the `keep` largest magnitudes of `chunk`, in order; of equal magnitudes those that come
    /// first. Magnitudes below [`SMALLEST`] are left out.
    pub(super) fn select(&mut self, chunk: &[f32], keep: usize) -> Result<&[u32], NonFinite> {
        let smallest = SMALLEST.to_bits();
        let guess = self.guess.unwrap_or_else(|| self.sampled(chunk, keep)).max(smallest);
        let (mut reached, mut found) = (guess, self.scan(chunk, guess)?);
        if found < keep && guess > smallest {
            reached = low_enough(chunk, keep).max(smallest);
            found = self.scan(chunk, reached)?;
        }
        if found <= keep {
            self.guess = None;
            return Ok(&self.positions[..found]);
        }
        let (threshold, kept) = self.cut(chunk, reached, found, keep);
        self.guess = Some(threshold.saturating_sub(MARGIN));
        Ok(&self.positions[..kept])
    }

    /// A threshold that a little more than `keep` elements reach, if the sample is like the chunk.
    fn sampled(&mut self, chunk: &[f32], keep: usize) -> u32 {
        let stride = chunk.len().div_ceil(SAMPLE).max(1);
        self.keys.clear();
        self.keys.extend(chunk.iter().step_by(stride).map(|value| key(*value)));
        let expected = keep.div_ceil(stride);
        // Two standard deviations more.
        let wanted = if stride == 1 { keep } else { expected + 2 * expected.isqrt() + 2 };
        if wanted >= self.keys.len() {
            return 0;
        }
        let (_, threshold, _) = self.keys.select_nth_unstable_by(wanted - 1, |one, other| other.cmp(one));
        *threshold
    }

    /// Writes down the positions whose keys reach `threshold`, and says how many there are.
    fn scan(&mut self, chunk: &[f32], threshold: u32) -> Result<usize, NonFinite> {
        if self.positions.len() < chunk.len() + LANES {
            self.positions = vec![0; chunk.len() + LANES];
        }
        let positions = &mut self.positions[..];
        let (found, largest) = vectorized!(scan(chunk, threshold, positions));
        if largest < INFINITE { Ok(found) } else { Err(NonFinite) }
    }

    /// Of the first `found` positions, which are more than `keep` and reach `reached`, keeps those of the `keep` largest magnitudes. Returns the
    /// smallest key among them, and `keep`.
    fn cut(&mut self, chunk: &[f32], reached: u32, found: usize, keep: usize) -> (u32, usize) {
        let positions = &mut self.positions[..found];
        self.keys.clear();
        self.keys.extend(positions.iter().map(|position| key(chunk[*position as usize])));
        let (threshold, mut ties) = last_kept(&mut self.keys, reached, keep);
        let mut kept = 0;
        for nth in 0..found {
            let position = positions[nth];
            let key = key(chunk[position as usize]);
            let tie = key == threshold && ties > 0;
            ties -= usize::from(tie);
            positions[kept] = position;
            kept += usize::from(key > threshold || tie);
        }
        (threshold, kept)
    }
}

/// Returns the `keep`-th largest of more keys than that, which all reach `lowest`, and how many equal to it are among
/// the `keep` largest. Forgets the keys that are not near it.
fn last_kept(keys: &mut Vec<u32>, lowest: u32, keep: usize) -> (u32, usize) {
    // Fine buckets up to twice the margin, where the key usually lies; the last bucket has the rest.
    let bucket = |key: u32| ((key - lowest) / (MARGIN >> 9)).min(FINE_BUCKETS - 1);
    let mut counts = [0usize; FINE_BUCKETS as usize];
    keys.iter().for_each(|key| counts[bucket(*key) as usize] += 1);
    let (mut chosen, mut above) = (FINE_BUCKETS - 1, 0);
    while above + counts[chosen as usize] < keep {
        above += counts[chosen as usize];
        chosen -= 1;
    }
    keys.retain(|key| bucket(*key) == chosen);
    let wanted = keep - above;
    let (larger, threshold, _) = keys.select_nth_unstable_by(wanted - 1, |one, other| other.cmp(one));
    (*threshold, wanted - larger.iter().filter(|key| **key > *threshold).count())
}

/// Writes the positions whose keys reach `threshold` to `positions`, which has room for all and [`LANES`] more. Returns how
/// many there are, and the largest key.
#[inline(always)]
fn scan(chunk: &[f32], threshold: u32, positions: &mut [u32]) -> (usize, u32) {
    let (blocks, rest) = chunk.as_chunks::<LANES>();
    let (mut found, mut start, mut largest) = (0, 0u32, [0; LANES]);
    for block in blocks {
        let mut hit = false;
        for (value, largest) in block.iter().zip(&mut largest) {
            let key = key(*value);
            *largest = key.max(*largest);
            hit |= key >= threshold;
        }
        if hit {
            let room = &mut positions[found..found + LANES];
            let mut count = 0;
            for (position, value) in (start..).zip(block) {
                room[count % LANES] = position;
                count += usize::from(key(*value) >= threshold);
            }
            found += count;
        }
        start = start.wrapping_add(8);
    }
    for (position, value) in (start..).zip(rest) {
        positions[found] = position;
        found += usize::from(key(*value) >= threshold);
        largest[0] = largest[0].max(key(*value));
    }
    (found, largest.into_iter().max().unwrap_or(0))
}

/// The lowest key of the bucket in which the `keep`-th largest key lies.
fn low_enough(chunk: &[f32], keep: usize) -> u32 {
    let mut counts = [0usize; BUCKETS];
    for value in chunk {
        counts[(key(*value) >> BUCKET_SHIFT) as usize] += 1;
    }
    let mut above = 0;
    let bucket = (0u32..1 << 11).rev().find(|bucket| {
        above += counts[*bucket as usize];
        above >= keep
    });
    bucket.map_or(0, |bucket| bucket << BUCKET_SHIFT)
}

#[cfg(test)]
mod tests {
    use anabranch_testkit::codec::normal;
    use proptest::prelude::*;

    use super::*;

    fn slow(chunk: &[f32], keep: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0u32..).zip(chunk).filter(|(_, v)| v.abs() >= SMALLEST).map(|(at, _)| at).collect();
        order.sort_by_key(|at| (std::cmp::Reverse(key(chunk[*at as usize])), *at));
        order.truncate(keep);
        order.sort_unstable();
        order
    }

    #[test]
    fn a_selection_is_exact_whatever_the_chunk_before_was() {
        let mut selector = Selector::default();
        let spikes: Vec<f32> = (0u16..40_000).map(|at| if at % 4_000 == 9 { f32::from(at) } else { 0.0 }).collect();
        let large: Vec<f32> = normal(40_000, 2).into_iter().map(|value| value * 1e20).collect();
        let few: Vec<f32> = normal(40_000, 3).into_iter().map(|value| (value * 4.0).round() / 4.0).collect();
        for chunk in [&normal(40_000, 1), &large, &few, &spikes, &few, &vec![0.0; 40_000], &normal(1_030, 4), &large] {
            for keep in [1, 17, 400, chunk.len() / 2, chunk.len()] {
                assert_eq!(selector.select(chunk, keep), Ok(&slow(chunk, keep)[..]), "keep {keep}");
            }
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_found_wherever_it_is() {
        for at in [0, 15, 16, 1_000, 2_047, 2_048, 2_049] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut chunk = normal(2_050, 5);
                chunk[at] = bad;
                assert_eq!(Selector::default().select(&chunk, 20), Err(NonFinite), "{bad} at {at}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn selections_are_exact(
            values in prop::collection::vec(prop_oneof![-1.0f32..1.0, Just(0.5f32), Just(0.0f32)], 1..5_000),
            share in 0.0f64..=1.0,
        ) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a small number")]
            let keep = ((values.len() as f64 * share) as usize).max(1);
            let mut selector = Selector::default();
            for _ in 0..2 {
                prop_assert_eq!(selector.select(&values, keep), Ok(&slow(&values, keep)[..]));
            }
        }
    }
}
