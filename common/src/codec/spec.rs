//! Codecs as configured.

use serde::{Deserialize, Serialize};

use super::quantize::ValueBits;
use super::{Codec, blocks, dense, sparse};

/// A codec as configured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CodecSpec {
    /// Lossless f32 planes.
    F32,
    /// bf16 planes.
    Bf16,
    /// Every entry in 8 bits, with a scale for each block.
    Int8,
    /// Every entry in 4 bits, with a scale for each block.
    Int4,
    /// The largest entries only.
    TopK {
        /// Share of the entries that is sent, in (0, 1].
        fraction: f32,
        /// Bits of each value that is sent.
        #[serde(default, skip_serializing_if = "ValueBits::is_eight")]
        bits: ValueBits,
    },
}

/// Why a codec's configuration is refused.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("upload.codec.fraction is {0}, expected a number above 0 and at most 1")]
pub struct FractionError(pub f32);

impl CodecSpec {
    /// Returns top-k of this share of the entries, with values of 8 bits.
    #[must_use]
    pub const fn top_k(fraction: f32) -> Self {
        Self::TopK { fraction, bits: ValueBits::Eight }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// The fraction is not in (0, 1].
    pub fn validate(&self) -> Result<(), FractionError> {
        match self {
            Self::TopK { fraction, .. } if !(*fraction > 0.0 && *fraction <= 1.0) => Err(FractionError(*fraction)),
            _ => Ok(()),
        }
    }
}

/// Returns the encoder that a configuration asks for.
#[must_use]
pub fn encoder(spec: CodecSpec) -> Box<dyn Codec> {
    match spec {
        CodecSpec::F32 => Box::new(dense::Planes32),
        CodecSpec::Bf16 => Box::new(dense::Planes16),
        CodecSpec::Int8 => Box::new(blocks::Int8),
        CodecSpec::Int4 => Box::new(blocks::Int4),
        CodecSpec::TopK { fraction, bits } => Box::new(sparse::TopK::with_bits(fraction, bits)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_read_well_in_toml_and_bad_fractions_are_refused() {
        let read = |text: &str| toml::from_str::<CodecSpec>(text);
        assert_eq!(read("kind = \"top-k\"\nfraction = 0.05\n"), Ok(CodecSpec::top_k(0.05)));
        for (bits, expected) in [(8, ValueBits::Eight), (4, ValueBits::Four), (1, ValueBits::One)] {
            let spec = read(&format!("kind = \"top-k\"\nfraction = 0.05\nbits = {bits}\n"));
            assert_eq!(spec, Ok(CodecSpec::TopK { fraction: 0.05, bits: expected }));
        }
        for bits in ["0", "2", "16", "256", "-1", "\"8\"", "4.0"] {
            let refused = read(&format!("kind = \"top-k\"\nfraction = 0.05\nbits = {bits}\n"));
            assert!(refused.is_err(), "bits = {bits} was accepted");
        }
        let refused = read("kind = \"top-k\"\nfraction = 0.05\nbits = 5\n").expect_err("no such width").to_string();
        assert!(refused.contains("invalid value: integer `5`, expected 8, 4 or 1"), "{refused}");
        for (kind, expected) in [("f32", CodecSpec::F32), ("bf16", CodecSpec::Bf16), ("int8", CodecSpec::Int8)] {
            assert_eq!(read(&format!("kind = \"{kind}\"")), Ok(expected));
        }
        assert_eq!(read("kind = \"int4\""), Ok(CodecSpec::Int4));
        for fraction in [0.0, -0.1, 1.5, f32::NAN, f32::INFINITY] {
            assert!(CodecSpec::top_k(fraction).validate().is_err(), "fraction {fraction} was accepted");
        }
        assert_eq!(CodecSpec::top_k(0.05).validate(), Ok(()));
    }
}
