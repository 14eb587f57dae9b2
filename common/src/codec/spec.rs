//! Codecs as configured.

use serde::{Deserialize, Serialize};

use super::quantize::ValueBits;
use super::{Codec, CodecId, blocks, dense, sparse};

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

/// Bits that a value of a Rice code's gap takes beyond the logarithm of the mean gap, about.
const GAP_BITS: f64 = 1.5;

impl CodecSpec {
    /// Returns the id that payloads of this codec have.
    #[must_use]
    pub fn id(&self) -> CodecId {
        match *self {
            Self::F32 => dense::Planes32::ID,
            Self::Bf16 => dense::Planes16::ID,
            Self::Int8 => blocks::Int8::ID,
            Self::Int4 => blocks::Int4::ID,
            Self::TopK { fraction, bits } => sparse::TopK::with_bits(fraction, bits).id(),
        }
    }

    /// Returns the bits that a value of a large tensor takes, about: to compare codecs with each
    /// other. `+ - * /` only, so that it is the same on every machine.
    #[must_use]
    pub fn bits_per_value(&self) -> f64 {
        match *self {
            Self::F32 => 32.0,
            Self::Bf16 => 16.0,
            Self::Int8 => 8.0 + 32.0 / 256.0,
            Self::Int4 => 4.0 + 32.0 / 128.0,
            Self::TopK { fraction, bits } => {
                let fraction = f64::from(fraction);
                fraction * (bits.count() as f64 + log_2(1.0 / fraction) + GAP_BITS)
            }
        }
    }
}

/// The logarithm to base 2 of a number of at least 1, to 0.09: linear between powers of 2.
fn log_2(mut number: f64) -> f64 {
    let mut whole = 0.0;
    while number >= 2.0 && whole < 64.0 {
        (number, whole) = (number / 2.0, whole + 1.0);
    }
    whole + number - 1.0
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
    fn codecs_are_as_large_as_they_say() {
        use crate::manifest::{ModelManifest, TensorSpec};
        let manifest =
            ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![1 << 20] }]).expect("one tensor");
        let values = anabranch_testkit::codec::normal(manifest.params(), 5);
        let sparse =
            [0.05, 0.02, 0.01, 0.005, 0.0025].map(|fraction| CodecSpec::TopK { fraction, bits: ValueBits::Four });
        for spec in sparse.into_iter().chain([CodecSpec::Int8, CodecSpec::Int4, CodecSpec::top_k(0.01)]) {
            let codec = encoder(spec);
            assert_eq!(codec.id(), spec.id());
            let bits = codec.encode(&manifest, &values).expect("finite").len() as f64 * 8.0 / values.len() as f64;
            let ratio = bits / spec.bits_per_value();
            assert!((0.95..1.05).contains(&ratio), "{spec:?}: {bits} bits, {} said", spec.bits_per_value());
        }
        assert_eq!([CodecSpec::F32, CodecSpec::Bf16].map(|spec| encoder(spec).id()), [CodecId(0), CodecId(1)]);
    }

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
