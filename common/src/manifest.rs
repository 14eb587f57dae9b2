//! The manifest: which tensors a flat `f32` vector is made of.

use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::limits;

/// Name and shape of one tensor, and where it lies in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// A tensor has no name. The number is its index.
    #[error("tensor {0} has an empty name")]
    EmptyName(usize),
    /// A name has more bytes than `limits::TENSOR_NAME_BYTES`.
    #[error("the name of tensor {index} has {bytes} bytes, more than {max}; it begins {start:?}",
        max = limits::TENSOR_NAME_BYTES)]
    LongName {
        /// Index of the tensor.
        index: usize,
        /// Bytes of its name.
        bytes: usize,
        /// First characters of the name.
        start: String,
    },
    /// Two tensors have the same name.
    #[error("two tensors have the name {0:?}")]
    RepeatedName(String),
    /// A tensor has more dimensions than `limits::TENSOR_DIMS`.
    #[error("tensor {name:?} has {dims} dimensions, more than {max}", max = limits::TENSOR_DIMS)]
    TooManyDimensions {
        /// Name of the tensor.
        name: String,
        /// Its dimensions.
        dims: usize,
    },
    /// A dimension has extent 0.
    #[error("tensor {name:?} has no elements: its shape is {shape:?}")]
    NoElements {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// The tensors up to this one have more elements than `limits::MODEL_PARAMS`.
    #[error("tensor {name:?} of shape {shape:?} brings the model above {max} parameters", max = limits::MODEL_PARAMS)]
    TooManyParameters {
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
            check_name(index, &tensor.name)?;
            if !names.insert(tensor.name.as_str()) {
                return Err(ManifestError::RepeatedName(tensor.name.clone()));
            }
            offsets.push(params);
            params = params_with(params, tensor)?;
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

    /// Returns the manifest of consecutive tensors alone; none of no tensors, and of tensors that are not there.
    #[must_use]
    pub fn slice(&self, tensors: std::ops::Range<usize>) -> Option<Self> {
        let first = *self.offsets.get(tensors.start)?;
        let (slice, offsets) = (self.tensors.get(tensors.clone())?, self.offsets.get(tensors.clone())?);
        if slice.is_empty() {
            return None;
        }
        let end = self.offsets.get(tensors.end).copied().unwrap_or(self.params);
        let offsets = offsets.iter().map(|offset| offset - first).collect();
        Some(Self { tensors: slice.to_vec(), offsets, params: end - first })
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

fn check_name(index: usize, name: &str) -> Result<(), ManifestError> {
    if name.is_empty() {
        return Err(ManifestError::EmptyName(index));
    }
    if name.len() > limits::TENSOR_NAME_BYTES {
        let start = name.chars().take(80).collect();
        return Err(ManifestError::LongName { index, bytes: name.len(), start });
    }
    Ok(())
}

/// Returns the parameters of a model of `params` parameters once `tensor` is added.
fn params_with(params: usize, tensor: &TensorSpec) -> Result<usize, ManifestError> {
    let (name, shape) = (|| tensor.name.clone(), || tensor.shape.clone());
    let dims = tensor.shape.len();
    if dims > limits::TENSOR_DIMS {
        return Err(ManifestError::TooManyDimensions { name: name(), dims });
    }
    if tensor.shape.contains(&0) {
        return Err(ManifestError::NoElements { name: name(), shape: shape() });
    }
    let sum = tensor.elements().and_then(|elements| params.checked_add(elements));
    sum.filter(|sum| *sum <= limits::MODEL_PARAMS)
        .ok_or_else(|| ManifestError::TooManyParameters { name: name(), shape: shape() })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

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
    fn a_slice_is_the_manifest_of_its_tensors() {
        let all = vec![tensor("a", &[3, 4]), tensor("b", &[4]), tensor("c", &[2, 2])];
        let manifest = ModelManifest::new(all.clone()).expect("valid");
        for (start, end) in [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)] {
            let alone = ModelManifest::new(all[start..end].to_vec()).expect("valid");
            assert_eq!(manifest.slice(start..end), Some(alone), "{start}..{end}");
        }
        #[expect(clippy::reversed_empty_ranges, reason = "it is refused")]
        let none = [0..0, 3..3, 2..4, 4..5, 2..1];
        assert!(none.into_iter().all(|range| manifest.slice(range).is_none()));
    }

    #[test]
    fn a_refused_manifest_says_which_tensor_and_which_bound() {
        let many = (0..=limits::MANIFEST_TENSORS).map(|i| tensor(&format!("t{i}"), &[1])).collect();
        let long = "é".repeat(limits::TENSOR_NAME_BYTES / 2 + 1);
        for (tensors, says) in [
            (vec![], "the manifest has no tensors"),
            (many, "the manifest has 4097 tensors, more than 4096"),
            (vec![tensor("v", &[1]), tensor("", &[1])], "tensor 1 has an empty name"),
            (vec![tensor(&long, &[1])], "the name of tensor 0 has 258 bytes, more than 256; it begins \"éé"),
            (vec![tensor("w", &[1]), tensor("w", &[1])], "two tensors have the name \"w\""),
            (vec![tensor("w", &[1; 9])], "tensor \"w\" has 9 dimensions, more than 8"),
            (vec![tensor("w", &[3, 0])], "tensor \"w\" has no elements: its shape is [3, 0]"),
            (vec![tensor("w", &[1 << 30, 2])], "of shape [1073741824, 2] brings the model above 1073741824 parameters"),
            (vec![tensor("v", &[1]), tensor("w", &[1 << 30])], "tensor \"w\" of shape [1073741824] brings the model"),
            (vec![tensor("w", &[u64::MAX, 2])], "brings the model above"),
            (vec![tensor("w", &[u64::MAX, 0])], "has no elements"),
        ] {
            let told = ModelManifest::new(tensors).expect_err(says).to_string();
            assert!(told.contains(says) && told.chars().count() < 200, "{told:?} does not say {says:?}");
        }
        let widest = tensor(&"n".repeat(limits::TENSOR_NAME_BYTES), &[1, 1, 1, 1, 1, 1, 1, 1 << 30]);
        assert_eq!(ModelManifest::new(vec![widest]).expect("at every bound").params(), limits::MODEL_PARAMS);
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
        let encoded = schema::encode(&fits, limits::CONTROL_MESSAGE_BYTES).expect("below a message");
        assert_eq!(encoded.len(), limits::MANIFEST_BYTES, "the formula is the encoder's length");
        let manifest = ModelManifest::new(fits).expect("just fits");
        assert_eq!(schema::decode(&encoded, limits::CONTROL_MESSAGE_BYTES).as_ref(), Ok(&manifest));

        let longer = tensors_of(limits::MANIFEST_BYTES + 1);
        let encoded = schema::encode(&longer, limits::CONTROL_MESSAGE_BYTES).expect("below a message");
        let too_long = ManifestError::TooLong(limits::MANIFEST_BYTES + 1);
        assert_eq!(ModelManifest::new(longer.clone()), Err(too_long.clone()));
        for read in [schema::decode::<ModelManifest>, schema::decode::<ModelManifest>] {
            let refused = read(&encoded, limits::CONTROL_MESSAGE_BYTES).expect_err("too long").to_string();
            assert!(refused.contains(&too_long.to_string()), "{refused}");
        }
        let json = serde_json::to_string(&longer).expect("serializable");
        assert!(serde_json::from_str::<ModelManifest>(&json).is_err());
    }
}
