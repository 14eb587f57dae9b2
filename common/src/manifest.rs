//! The manifest: which tensors a flat `f32` vector is made of.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::limits;

/// Name and shape of one tensor, and where it lies in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Name, unique in the manifest; also its name in a safetensors file.
    pub name: String,
    /// Extent of each dimension, outermost first (row-major).
    pub shape: Vec<u64>,
}

impl TensorSpec {
    /// Number of elements, or `None` when it does not fit.
    #[must_use]
    pub fn elements(&self) -> Option<usize> {
        let product = self.shape.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent))?;
        usize::try_from(product).ok()
    }

    /// Returns its length as encoded, in bytes: two lengths of 8 bytes, the name, 8 bytes for each dimension.
    fn encoded_bytes(&self) -> usize {
        16 + self.name.len() + 8 * self.shape.len()
    }
}

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Nothing to train.
    #[error("the manifest has no tensors")]
    Empty,
    /// More tensors than `limits::MANIFEST_TENSORS`.
    #[error("the manifest has {0} tensors, more than {max}", max = limits::MANIFEST_TENSORS)]
    TooManyTensors(usize),
    /// Names and shapes together take more than `limits::MANIFEST_BYTES` as encoded.
    #[error("names and shapes of the tensors take {0} bytes, more than {max}", max = limits::MANIFEST_BYTES)]
    TooLong(usize),
    /// A name is empty, too long or used twice.
    #[error("tensor {index} has an empty, overlong or repeated name {name:?}")]
    BadName {
        /// Index of the tensor.
        index: usize,
        /// The name in question.
        name: String,
    },
    /// A shape is empty in one dimension, has too many, or its elements overflow.
    #[error("tensor {name:?} has shape {shape:?}, which is empty or too large")]
    BadShape {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
}

/// The tensors of a model in the order in which they lie in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<TensorSpec>", into = "Vec<TensorSpec>")]
pub struct ModelManifest {
    tensors: Vec<TensorSpec>,
    offsets: Vec<usize>,
    params: usize,
}

impl ModelManifest {
    /// Checks names, shapes, the model's size and the length of the description itself.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn new(tensors: Vec<TensorSpec>) -> Result<Self, ManifestError> {
        if tensors.is_empty() {
            return Err(ManifestError::Empty);
        }
        if tensors.len() > limits::MANIFEST_TENSORS {
            return Err(ManifestError::TooManyTensors(tensors.len()));
        }
        let mut names = std::collections::BTreeSet::new();
        let mut offsets = Vec::with_capacity(tensors.len());
        let mut params = 0usize;
        for (index, tensor) in tensors.iter().enumerate() {
            let name = &tensor.name;
            if name.is_empty() || name.len() > limits::TENSOR_NAME_BYTES || !names.insert(name.as_str()) {
                return Err(ManifestError::BadName { index, name: name.chars().take(80).collect() });
            }
            let bad_shape = || ManifestError::BadShape {
                name: name.clone(),
                shape: tensor.shape.iter().copied().take(limits::TENSOR_DIMS + 1).collect(),
            };
            let elements = tensor.elements().filter(|n| *n > 0).ok_or_else(bad_shape)?;
            if tensor.shape.len() > limits::TENSOR_DIMS {
                return Err(bad_shape());
            }
            offsets.push(params);
            params = params.checked_add(elements).filter(|n| *n <= limits::MODEL_PARAMS).ok_or_else(bad_shape)?;
        }
        let bytes = 8 + tensors.iter().map(TensorSpec::encoded_bytes).sum::<usize>();
        if bytes > limits::MANIFEST_BYTES {
            return Err(ManifestError::TooLong(bytes));
        }
        Ok(Self { tensors, offsets, params })
    }

    /// The tensors, in order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Number of parameters: the length of the flat vector.
    #[must_use]
    pub fn params(&self) -> usize {
        self.params
    }

    /// Each tensor with its range in the flat vector.
    pub fn ranges(&self) -> impl Iterator<Item = (&TensorSpec, std::ops::Range<usize>)> {
        let ends = self.offsets.iter().skip(1).copied().chain([self.params]);
        self.tensors.iter().zip(self.offsets.iter().copied().zip(ends).map(|(start, end)| start..end))
    }

    /// Returns the index of the first tensor that differs from `other`'s, or is in one of the two only.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<usize> {
        let longer = self.tensors.len().max(other.tensors.len());
        (0..longer).find(|index| self.tensors.get(*index) != other.tensors.get(*index))
    }

    /// BLAKE3 over the encoded manifest: equal manifests have equal digests.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for tensor in &self.tensors {
            hasher.update(&(tensor.name.len() as u64).to_le_bytes());
            hasher.update(tensor.name.as_bytes());
            hasher.update(&(tensor.shape.len() as u64).to_le_bytes());
            for extent in &tensor.shape {
                hasher.update(&extent.to_le_bytes());
            }
        }
        Digest(*hasher.finalize().as_bytes())
    }
}

impl TryFrom<Vec<TensorSpec>> for ModelManifest {
    type Error = ManifestError;

    fn try_from(tensors: Vec<TensorSpec>) -> Result<Self, Self::Error> {
        Self::new(tensors)
    }
}

impl From<ModelManifest> for Vec<TensorSpec> {
    fn from(manifest: ModelManifest) -> Self {
        manifest.tensors
    }
}

impl Encode for ModelManifest {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        self.tensors.encode(encoder)
    }
}

impl<Context> Decode<Context> for ModelManifest {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Self::new(Vec::decode(decoder)?).map_err(|error| bincode::error::DecodeError::OtherString(error.to_string()))
    }
}

bincode::impl_borrow_decode!(ModelManifest);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message;

    fn tensor(name: &str, shape: &[u64]) -> TensorSpec {
        TensorSpec { name: name.into(), shape: shape.to_vec() }
    }

    #[test]
    fn ranges_cover_the_vector_without_gaps() {
        let manifest = ModelManifest::new(vec![tensor("w", &[3, 4]), tensor("b", &[4])]).expect("valid");
        let ranges: Vec<_> = manifest.ranges().map(|(_, range)| range).collect();
        assert_eq!(ranges, [0..12, 12..16]);
        assert_eq!(manifest.params(), 16);
    }

    #[test]
    fn bad_manifests_are_refused_with_the_tensor_named() {
        assert_eq!(ModelManifest::new(vec![]), Err(ManifestError::Empty));
        let twice = ModelManifest::new(vec![tensor("w", &[1]), tensor("w", &[1])]);
        assert_eq!(twice, Err(ManifestError::BadName { index: 1, name: "w".into() }));
        for shape in [&[0u64][..], &[u64::MAX, 2], &[1; limits::TENSOR_DIMS + 1], &[1 << 31]] {
            let refused = ModelManifest::new(vec![tensor("w", shape)]);
            assert!(matches!(refused, Err(ManifestError::BadShape { .. })), "{shape:?} was accepted");
        }
        let many = (0..=limits::MANIFEST_TENSORS).map(|i| tensor(&format!("t{i}"), &[1])).collect();
        assert_eq!(ModelManifest::new(many), Err(ManifestError::TooManyTensors(limits::MANIFEST_TENSORS + 1)));
    }

    /// Tensors of one element whose encoded manifest takes `bytes` bytes.
    fn tensors_of(bytes: usize) -> Vec<TensorSpec> {
        let count = (bytes - 8) / (24 + 200);
        let mut tensors: Vec<_> = (0..count).map(|i| tensor(&format!("{i:0200}"), &[1])).collect();
        (0..bytes - 8 - count * (24 + 200)).for_each(|index| tensors[index].name.push('x'));
        tensors
    }

    #[test]
    fn the_length_of_a_manifest_is_bounded_wherever_it_comes_from() {
        let fits = tensors_of(limits::MANIFEST_BYTES);
        let encoded = message::encode(&fits, limits::CONTROL_MESSAGE_BYTES).expect("below a message");
        assert_eq!(encoded.len(), limits::MANIFEST_BYTES, "the formula is the encoder's length");
        let manifest = ModelManifest::new(fits).expect("just fits");
        assert_eq!(message::decode(&encoded, limits::CONTROL_MESSAGE_BYTES).as_ref(), Ok(&manifest));

        let longer = tensors_of(limits::MANIFEST_BYTES + 1);
        let encoded = message::encode(&longer, limits::CONTROL_MESSAGE_BYTES).expect("below a message");
        let too_long = ManifestError::TooLong(limits::MANIFEST_BYTES + 1);
        assert_eq!(ModelManifest::new(longer.clone()), Err(too_long.clone()));
        for read in [message::decode::<ModelManifest>, message::decode_stored::<ModelManifest>] {
            let refused = read(&encoded, limits::CONTROL_MESSAGE_BYTES).expect_err("too long").to_string();
            assert!(refused.contains(&too_long.to_string()), "{refused}");
        }
        let json = serde_json::to_string(&longer).expect("serializable");
        assert!(serde_json::from_str::<ModelManifest>(&json).is_err());
    }
}
