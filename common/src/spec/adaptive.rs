//! Codecs that follow an agent's line.

use serde::{Deserialize, Serialize};

use super::UploadSpec;
use crate::codec::CodecSpec;
use crate::codec::quantize::ValueBits;

/// Codecs for agents on thin lines. A level is an index into `upload.codec` followed by `harder`:
/// 0 is the mildest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveSpec {
    /// Codecs for lines that are too thin for `upload.codec`, each smaller than the one before.
    #[serde(default = "harder")]
    pub harder: Vec<CodecSpec>,
    /// The most time that a line may take for an update, as a share of its agent's round.
    #[serde(default = "quarter")]
    pub transfer_share: f64,
}

impl Default for AdaptiveSpec {
    fn default() -> Self {
        Self { harder: harder(), transfer_share: quarter() }
    }
}

/// Each about half the size of the one before. 4 bits a value: as good as 8 with the same entries
/// (docs/adr/0021).
fn harder() -> Vec<CodecSpec> {
    [0.02, 0.01, 0.005, 0.0025].map(|fraction| CodecSpec::TopK { fraction, bits: ValueBits::Four }).to_vec()
}

fn quarter() -> f64 {
    0.25
}

impl UploadSpec {
    /// Returns how many levels there are, at least 1.
    #[must_use]
    pub fn levels(&self) -> usize {
        1 + self.adaptive.as_ref().map_or(0, |adaptive| adaptive.harder.len())
    }

    /// Returns the codec of a level, the hardest one's if there is no such level.
    #[must_use]
    pub fn level(&self, level: usize) -> CodecSpec {
        let harder = self.adaptive.as_ref().map_or(&[][..], |adaptive| &adaptive.harder);
        let index = level.min(harder.len());
        index.checked_sub(1).map_or(self.codec, |index| harder[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_begin_with_the_codec_and_each_is_smaller() {
        let upload =
            UploadSpec { adaptive: Some(AdaptiveSpec::default()), ..UploadSpec::fixed(CodecSpec::top_k(0.05), 1.0) };
        assert_eq!((upload.levels(), upload.level(0)), (5, CodecSpec::top_k(0.05)));
        let sizes: Vec<f64> = (0..upload.levels()).map(|level| upload.level(level).bits_per_value()).collect();
        assert!(sizes.windows(2).all(|pair| pair[1] < pair[0]), "{sizes:?}");
        assert_eq!(upload.level(99), upload.level(4));
        let fixed = UploadSpec::fixed(CodecSpec::Bf16, 0.0);
        assert_eq!((fixed.levels(), fixed.level(3)), (1, CodecSpec::Bf16));
    }

    #[test]
    fn an_empty_section_is_the_default() {
        let read: UploadSpec =
            toml::from_str("codec = { kind = \"bf16\" }\nfeedback_decay = 1.0\nadaptive = {}\n").expect("valid");
        assert_eq!(read.adaptive, Some(AdaptiveSpec::default()));
        let other = "adaptive = { harder = [{ kind = \"int8\" }], transfer_share = 0.5 }";
        let read: UploadSpec =
            toml::from_str(&format!("codec = {{ kind = \"bf16\" }}\nfeedback_decay = 1.0\n{other}\n")).expect("valid");
        assert_eq!(read.adaptive, Some(AdaptiveSpec { harder: vec![CodecSpec::Int8], transfer_share: 0.5 }));
    }
}
