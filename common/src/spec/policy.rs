//! Codecs by the names of tensors.

use serde::{Deserialize, Serialize};

use crate::codec::segments::{self, Segmented};
use crate::codec::{Codec, CodecId, CodecSpec, encoder};
use crate::limits;
use crate::manifest::ModelManifest;

/// `[[upload.policy]]`: codecs of some tensors. The first entry that matches a tensor counts; tensors that none matches
/// have the codec of the lease.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TensorPolicy {
    entries: Vec<TensorCodec>,
}

/// The codec of tensors with certain names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorCodec {
    /// The name of a tensor. `*` stands for any characters, also for none.
    pub tensors: String,
    /// Their codec.
    pub codec: CodecSpec,
}

/// A policy that does not fit a model, or that no model could fit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// More entries than `limits::UPLOAD_POLICIES`.
    #[error("has {0} entries, expected at most {max}", max = limits::UPLOAD_POLICIES)]
    TooMany(usize),
    /// A pattern is empty, or longer than any name.
    #[error("entry {nth} has a pattern of {bytes} bytes, expected 1 to {max}", max = limits::TENSOR_NAME_BYTES)]
    Pattern {
        /// Number of the entry, from 1.
        nth: usize,
        /// Length of its pattern.
        bytes: usize,
    },
    /// A codec has a fraction that is none.
    #[error("entry {nth} ({pattern:?}) has the fraction {fraction}, expected a number above 0 and at most 1")]
    Fraction {
        /// Number of the entry, from 1.
        nth: usize,
        /// Its pattern.
        pattern: String,
        /// Its fraction.
        fraction: f32,
    },
    /// A pattern matches no tensor.
    #[error("entry {nth} ({pattern:?}) matches no tensor of the model, which has {tensors}")]
    NoTensor {
        /// Number of the entry, from 1.
        nth: usize,
        /// Its pattern.
        pattern: String,
        /// The model's tensors.
        tensors: String,
    },
    /// All that a pattern matches is matched by an earlier entry.
    #[error("entry {nth} ({pattern:?}) matches only tensors that an earlier entry matches: the first match counts")]
    Shadowed {
        /// Number of the entry, from 1.
        nth: usize,
        /// Its pattern.
        pattern: String,
    },
}

impl TensorPolicy {
    /// Returns the policy with these entries.
    #[must_use]
    pub fn new(entries: Vec<TensorCodec>) -> Self {
        Self { entries }
    }

    /// Returns whether every tensor has the codec of the lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the codecs of its entries.
    pub fn codecs(&self) -> impl Iterator<Item = &CodecSpec> {
        self.entries.iter().map(|entry| &entry.codec)
    }

    /// Checks the entries themselves.
    ///
    /// # Errors
    /// There are too many, or one is none that a model could fit.
    pub fn validate(&self) -> Result<(), PolicyError> {
        if self.entries.len() > limits::UPLOAD_POLICIES {
            return Err(PolicyError::TooMany(self.entries.len()));
        }
        for (nth, TensorCodec { tensors: pattern, codec }) in (1..).zip(&self.entries) {
            if !(1..=limits::TENSOR_NAME_BYTES).contains(&pattern.len()) {
                return Err(PolicyError::Pattern { nth, bytes: pattern.len() });
            }
            if let Err(error) = codec.validate() {
                return Err(PolicyError::Fraction { nth, pattern: pattern.clone(), fraction: error.0 });
            }
        }
        Ok(())
    }

    /// Checks that every entry is the first to match some tensor of a model.
    ///
    /// # Errors
    /// One is not.
    pub fn check(&self, manifest: &ModelManifest) -> Result<(), PolicyError> {
        let names = || manifest.tensors().iter().map(|tensor| tensor.name.as_str());
        let mut is_used = vec![false; self.entries.len()];
        names().filter_map(|name| self.first_match(name)).for_each(|index| is_used[index] = true);
        let Some(unused) = is_used.iter().position(|is_used| !is_used) else { return Ok(()) };
        let (nth, pattern) = (unused + 1, self.entries[unused].tensors.clone());
        if names().any(|name| matches(&pattern, name)) {
            return Err(PolicyError::Shadowed { nth, pattern });
        }
        Err(PolicyError::NoTensor { nth, pattern, tensors: listed(names()) })
    }

    /// Returns the encoder of an update whose lease names `rest`. A model all of whose tensors have the same codec has that
    /// codec's own payloads.
    #[must_use]
    pub fn encoder(&self, rest: CodecSpec, manifest: &ModelManifest) -> Box<dyn Codec> {
        if self.is_empty() {
            return encoder(rest);
        }
        let codecs = manifest.tensors().iter().map(|tensor| self.codec(&tensor.name).unwrap_or(rest));
        let segmented = Segmented::new(codecs);
        segmented.uniform().map_or_else(|| Box::new(segmented) as Box<dyn Codec>, encoder)
    }

    /// Returns whether payloads of updates whose lease names `rest` can be of this codec.
    #[must_use]
    pub fn allows(&self, rest: &CodecSpec, found: CodecId) -> bool {
        let of_entries = || self.entries.iter().any(|entry| entry.codec.id() == found);
        found == rest.id() || !self.is_empty() && (found == segments::ID || of_entries())
    }

    /// Returns what an update of a model takes by its policy, about.
    #[must_use]
    pub fn sizes(&self, manifest: &ModelManifest) -> UpdateSizes {
        if self.is_empty() {
            return UpdateSizes::default();
        }
        let mut sizes = UpdateSizes { fixed_bits: 0.0, rest: 0.0 };
        for (tensor, range) in manifest.ranges() {
            match self.codec(&tensor.name) {
                Some(codec) => sizes.fixed_bits += range.len() as f64 * codec.bits_per_value(),
                None => sizes.rest += range.len() as f64,
            }
        }
        sizes
    }

    fn codec(&self, name: &str) -> Option<CodecSpec> {
        self.first_match(name).map(|index| self.entries[index].codec)
    }

    fn first_match(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| matches(&entry.tensors, name))
    }
}

/// How large updates with different codecs are, to compare them with each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateSizes {
    /// Bits of the tensors that the policy names.
    fixed_bits: f64,
    /// Values of the others.
    rest: f64,
}

impl Default for UpdateSizes {
    /// Of updates without a policy, for each value.
    fn default() -> Self {
        Self { fixed_bits: 0.0, rest: 1.0 }
    }
}

impl UpdateSizes {
    /// Returns the size of an update with `rest` as its lease's codec. `+ - * /` only, so that it is the same on every
    /// machine.
    #[must_use]
    pub fn with(&self, rest: &CodecSpec) -> f64 {
        self.fixed_bits + self.rest * rest.bits_per_value()
    }
}

/// Returns whether a name is as a pattern says. What lies between two stars is taken where it comes first.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, pattern)) = pattern.split_once('*') else { return pattern == name };
    let (middle, last) = pattern.rsplit_once('*').unwrap_or(("", pattern));
    let Some(mut left) = name.strip_prefix(first) else { return false };
    for part in middle.split('*') {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

/// Names in an error: the first ones of many.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const NAMED: usize = 16;
    let more = names.len().saturating_sub(NAMED);
    let named: Vec<String> = names.take(NAMED).map(|name| format!("{name:?}")).collect();
    let named = named.join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::TensorSpec;

    fn manifest(names: &[&str]) -> ModelManifest {
        let tensor = |name: &&str| TensorSpec { name: (*name).to_owned(), shape: vec![10] };
        ModelManifest::new(names.iter().map(tensor).collect()).expect("valid")
    }

    fn policy(entries: &[(&str, CodecSpec)]) -> TensorPolicy {
        let entry = |(tensors, codec): &(&str, CodecSpec)| TensorCodec { tensors: (*tensors).into(), codec: *codec };
        TensorPolicy::new(entries.iter().map(entry).collect())
    }

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, yes, no) in [
            ("fc1.bias", &["fc1.bias"][..], &["fc1.bias2", "fc1", ""][..]),
            ("*", &["", "a", "a.b"], &[]),
            ("*bias", &["bias", "fc1.bias"], &["bias.x", "fc1.bia"]),
            ("fc*", &["fc", "fc1.weight"], &["f", "xfc"]),
            ("fc*.weight", &["fc.weight", "fc1.weight", "fc.1.weight"], &["fc1.bias", "fcweight"]),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("*a*b*", &["ab", "xaxbx", "aab"], &["ba", "a", "b"]),
            ("a**b", &["ab", "axb"], &["a", "ba"]),
            ("*ab*ab", &["abab", "xabyab"], &["ab", "aba"]),
            ("*é*", &["é", "caféteria"], &["cafe"]),
        ] {
            yes.iter().for_each(|name| assert!(matches(pattern, name), "{pattern} does not match {name:?}"));
            no.iter().for_each(|name| assert!(!matches(pattern, name), "{pattern} matches {name:?}"));
        }
    }

    #[test]
    fn the_first_match_counts_and_the_rest_has_the_codec_of_the_lease() {
        let model = manifest(&["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]);
        let policy = policy(&[("fc2.bias", CodecSpec::F32), ("*bias", CodecSpec::Bf16)]);
        assert_eq!(policy.check(&model), Ok(()));
        let (few, values) = (CodecSpec::top_k(0.1), anabranch_testkit::codec::normal(40, 1));
        let codec = policy.encoder(few, &model);
        let payload = codec.encode(&model, &values).expect("finite");
        let parts = segments::split(&model, &payload).expect("as encoded");
        let codecs: Vec<u8> = parts.iter().map(|part| part.codec.0).collect();
        assert_eq!((codec.id(), codecs), (segments::ID, vec![2, 1, 2, 0]));
        assert!([7, 2, 0, 1].map(CodecId).iter().all(|id| policy.allows(&few, *id)));
        assert!([3, 4, 5].map(CodecId).iter().all(|id| !policy.allows(&few, *id)));
        let bits = 20.0 * few.bits_per_value() + 10.0 * 16.0 + 10.0 * 32.0;
        assert!((policy.sizes(&model).with(&few) - bits).abs() < 1e-9);
    }

    #[test]
    fn a_model_with_one_codec_has_that_codec_s_payloads() {
        let (model, few) = (manifest(&["a", "b"]), CodecSpec::top_k(0.1));
        for (policy, expected) in [
            (TensorPolicy::default(), few),
            (policy(&[("*", CodecSpec::Int8)]), CodecSpec::Int8),
            (policy(&[("a", few)]), few),
            (policy(&[("a", CodecSpec::F32), ("b", CodecSpec::F32)]), CodecSpec::F32),
        ] {
            let encoder = policy.encoder(few, &model);
            assert_eq!(encoder.id(), expected.id(), "{policy:?}");
            assert!(policy.allows(&few, encoder.id()), "{policy:?}");
        }
        assert!(!TensorPolicy::default().allows(&few, segments::ID));
        assert_eq!(TensorPolicy::default().sizes(&model).with(&few), few.bits_per_value());
    }

    #[test]
    fn a_policy_that_does_not_fit_names_its_entry_and_the_tensors() {
        let model = manifest(&["w", "b"]);
        let codec = CodecSpec::Bf16;
        let refused = |entries: &[(&str, CodecSpec)]| policy(entries).check(&model).expect_err("refused").to_string();
        assert_eq!(
            refused(&[("b", codec), ("*norm", codec)]),
            "entry 2 (\"*norm\") matches no tensor of the model, which has \"w\", \"b\""
        );
        assert_eq!(
            refused(&[("*", codec), ("b", codec)]),
            "entry 2 (\"b\") matches only tensors that an earlier entry matches: the first match counts"
        );
        let many: Vec<String> = (0..20).map(|nth| format!("t{nth}")).collect();
        let many = manifest(&many.iter().map(String::as_str).collect::<Vec<_>>());
        let told = policy(&[("b", codec)]).check(&many).expect_err("refused").to_string();
        assert!(told.ends_with("\"t14\", \"t15\" and 4 more"), "{told}");

        let invalid = |entries: &[(&str, CodecSpec)]| policy(entries).validate().expect_err("refused").to_string();
        assert_eq!(invalid(&[("", codec)]), "entry 1 has a pattern of 0 bytes, expected 1 to 256");
        assert!(
            invalid(&[("x", codec); limits::UPLOAD_POLICIES + 1]).starts_with("has 65 entries, expected at most 64")
        );
        let fraction = invalid(&[("x", codec), ("y", CodecSpec::top_k(1.5))]);
        assert_eq!(fraction, "entry 2 (\"y\") has the fraction 1.5, expected a number above 0 and at most 1");
        assert_eq!(policy(&[("x", codec); limits::UPLOAD_POLICIES]).validate(), Ok(()));
    }
}
