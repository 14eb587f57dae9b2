//! Rice coding of gaps between positions (Rice and Plaunt 1971): within 0.1 bit of the entropy where positions are
//! spread evenly.
//!
//! A gap g under parameter r is `g >> r` zero bits, a one, and the r low bits of g. Bits fill bytes from the least
//! significant end; the last byte is filled up with zeros.

use super::DecodeError;

/// Largest parameter: every gap is below 2^30 (`limits::MODEL_PARAMS`), so a larger one is never shorter.
pub const MAX_PARAMETER: u8 = 30;

/// The parameter that codes `gaps` in the fewest bits; the smallest of several.
#[must_use]
pub fn parameter(gaps: &[u32]) -> u8 {
    // The cost is convex but for rounding, and its minimum lies near the mean's logarithm.
    let sum: u64 = gaps.iter().map(|gap| u64::from(*gap)).sum();
    let mean = sum / (gaps.len() as u64).max(1);
    let near = u8::try_from((mean + 1).ilog2()).unwrap_or(MAX_PARAMETER);
    let candidates = near.saturating_sub(2)..=(near + 1).min(MAX_PARAMETER);
    candidates.min_by_key(|parameter| bits(gaps, *parameter)).unwrap_or(near)
}

/// Length of the code of `gaps` in bits.
fn bits(gaps: &[u32], parameter: u8) -> u64 {
    let quotients: u64 = gaps.iter().map(|gap| u64::from(gap >> parameter)).sum();
    quotients + gaps.len() as u64 * (u64::from(parameter) + 1)
}

/// Appends the code of `gaps` to `out`.
pub fn encode(gaps: &[u32], parameter: u8, out: &mut Vec<u8>) {
    // At most 31 bits are held between two pushes of at most 32.
    let (mut buffer, mut held) = (0u64, 0u32);
    let mut push = |bits: u64, count: u32| {
        buffer |= bits << held;
        held += count;
        if held >= 32 {
            out.extend_from_slice(&buffer.to_le_bytes()[..4]);
            buffer >>= 32;
            held -= 32;
        }
    };
    let mask = (1u64 << parameter) - 1;
    for gap in gaps {
        let mut quotient = gap >> parameter;
        while quotient > 15 {
            push(0, 16);
            quotient -= 16;
        }
        let rest = u64::from(*gap) & mask;
        let count = quotient + 1 + u32::from(parameter);
        if count <= 32 {
            push((rest << 1 | 1) << quotient, count);
        } else {
            push(1 << quotient, quotient + 1);
            push(rest, u32::from(parameter));
        }
    }
    out.extend_from_slice(&buffer.to_le_bytes()[..held.div_ceil(8) as usize]);
}

/// Reads `gaps.len()` gaps from the start of `bytes`, each at most `max`, and says how many bytes they took.
///
/// # Errors
/// The bytes end too soon, a gap is larger than `max`, or the last byte is not filled up with zeros.
pub fn decode(bytes: &[u8], parameter: u8, max: u32, gaps: &mut [u32]) -> Result<usize, DecodeError> {
    if parameter > MAX_PARAMETER {
        return Err(DecodeError::Invalid("a rice parameter"));
    }
    let mut reader = BitReader { bytes, next: 0, buffer: 0, held: 0 };
    let max_quotient = max >> parameter;
    let mask = (1u64 << parameter) - 1;
    for gap in gaps {
        reader.refill();
        // Nearly every code is among the bits that are held.
        let zeros = reader.buffer.trailing_zeros();
        let count = zeros + 1 + u32::from(parameter);
        if count <= reader.held {
            let value = u64::from(zeros) << parameter | (reader.buffer >> 1 >> zeros) & mask;
            reader.skip(count);
            *gap = u32::try_from(value).ok().filter(|gap| *gap <= max).ok_or_else(|| too_large(value, max))?;
            continue;
        }
        let quotient = reader.zeros(max_quotient)?;
        let value = u64::from(quotient) << parameter | reader.bits(u32::from(parameter))?;
        *gap = u32::try_from(value).ok().filter(|gap| *gap <= max).ok_or_else(|| too_large(value, max))?;
    }
    reader.finish()
}

fn too_large(found: u64, max: u32) -> DecodeError {
    DecodeError::TooLarge { what: "gap between positions", found, max: u64::from(max) }
}

/// The low `held` bits of `buffer` come before those of `bytes[next..]`. Bits above them are 0 or equal to what is read
/// next, so that whole words can be taken in.
struct BitReader<'a> {
    bytes: &'a [u8],
    next: usize,
    buffer: u64,
    held: u32,
}

impl BitReader<'_> {
    /// Holds at least 56 bits afterwards, or all that are left.
    fn refill(&mut self) {
        if let Some(word) = self.bytes.get(self.next..).and_then(|rest| rest.first_chunk::<8>()) {
            self.buffer |= u64::from_le_bytes(*word) << self.held;
            let taken = (63 - self.held) / 8;
            self.next += taken as usize;
            self.held += taken * 8;
        } else {
            while self.held < 56 {
                let Some(byte) = self.bytes.get(self.next) else { break };
                self.buffer |= u64::from(*byte) << self.held;
                self.next += 1;
                self.held += 8;
            }
        }
    }

    fn skip(&mut self, count: u32) {
        self.buffer >>= count;
        self.held -= count;
    }

    /// Counts zeros up to the next one, which is taken too.
    fn zeros(&mut self, max: u32) -> Result<u32, DecodeError> {
        let mut zeros = 0;
        loop {
            self.refill();
            if self.held == 0 {
                return Err(DecodeError::Truncated("the gaps"));
            }
            let run = self.buffer.trailing_zeros().min(self.held);
            zeros += run;
            if zeros > max {
                return Err(too_large(u64::from(zeros), max));
            }
            if run < self.held {
                self.skip(run + 1);
                return Ok(zeros);
            }
            self.skip(run);
        }
    }

    fn bits(&mut self, count: u32) -> Result<u64, DecodeError> {
        if self.held < count {
            self.refill();
            if self.held < count {
                return Err(DecodeError::Truncated("the gaps"));
            }
        }
        let bits = self.buffer & ((1 << count) - 1);
        self.skip(count);
        Ok(bits)
    }

    /// Bytes taken, the one that is partly read included.
    fn finish(self) -> Result<usize, DecodeError> {
        let padding = self.buffer & ((1 << (self.held % 8)) - 1);
        if padding != 0 {
            return Err(DecodeError::Invalid("the end of the gaps"));
        }
        Ok(self.next - (self.held / 8) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn coded(gaps: &[u32], parameter: u8) -> Vec<u8> {
        let mut out = Vec::new();
        encode(gaps, parameter, &mut out);
        out
    }

    #[test]
    fn the_bits_are_these() {
        // 5 under r = 2: quotient 1 -> "01", rest 01 -> "10" (low bit first); 0 -> "1", "00"; then one zero of padding.
        assert_eq!(coded(&[5, 0], 2), [0b0001_0110]);
        assert_eq!(coded(&[], 3), [] as [u8; 0]);
        assert_eq!(coded(&[20], 0), [0, 0, 0b0001_0000]);
    }

    #[test]
    fn damaged_codes_are_refused() {
        let bytes = coded(&[5, 0], 2);
        let mut gaps = [0; 2];
        assert_eq!(decode(&bytes, 2, 5, &mut gaps), Ok(1));
        assert!(matches!(decode(&bytes, 2, 4, &mut gaps), Err(DecodeError::TooLarge { found: 5, max: 4, .. })));
        assert_eq!(decode(&[], 2, 5, &mut gaps), Err(DecodeError::Truncated("the gaps")));
        assert!(decode(&bytes, 31, 5, &mut gaps).is_err());
        assert!(decode(&[bytes[0] | 0x80], 2, 5, &mut gaps).is_err(), "padding that is not zero was accepted");
        assert!(decode(&[0; 1000], 0, 100, &mut gaps).is_err(), "an endless run of zeros was read to its end");
    }

    proptest! {
        #[test]
        fn gaps_round_trip(gaps in prop::collection::vec(0u32..1 << 30, 0..300), shift in 0u32..30, tail in any::<[u8; 9]>()) {
            let gaps: Vec<u32> = gaps.into_iter().map(|gap| gap >> shift).collect();
            let parameter = parameter(&gaps);
            let mut bytes = coded(&gaps, parameter);
            let len = bytes.len();
            bytes.extend_from_slice(&tail);
            let mut back = vec![0; gaps.len()];
            prop_assert_eq!(decode(&bytes, parameter, (1 << 30) - 1, &mut back), Ok(len));
            prop_assert_eq!(&back, &gaps);
            let shortest = (0..=MAX_PARAMETER).map(|other| bits(&gaps, other)).min().unwrap_or(0);
            prop_assert_eq!(bits(&gaps, parameter), shortest, "another parameter codes these gaps in fewer bits");
            prop_assert_eq!(len as u64, shortest.div_ceil(8));
        }
    }
}
