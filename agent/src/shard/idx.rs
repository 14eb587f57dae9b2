//! IDX, the format of MNIST (LeCun, Cortes and Burges).
//!
//! | bytes | content |
//! |---|---|
//! | 2 | zero |
//! | 1 | type: 0x08, unsigned byte |
//! | 1 | number of dimensions |
//! | 4 each | extents, big-endian; the first is the number of examples |
//! | the rest | values, row-major |

use std::path::Path;

use anabranch_common::limits;

use super::ShardError;
use super::error::Place;
use super::examples::{Examples, Inputs};
use super::source::Content;

/// One IDX file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Array {
    /// All extents, the number of examples first.
    pub(super) extents: Vec<u32>,
    /// The values.
    pub(super) values: Vec<u8>,
}

impl Array {
    /// Bytes before the values.
    pub(super) fn header_bytes(&self) -> u64 {
        4 + 4 * self.extents.len() as u64
    }

    /// The header of an array like this one, but with `examples` examples.
    pub(super) fn header(&self, examples: u32) -> Vec<u8> {
        let dims = u8::try_from(self.extents.len()).expect("read from a byte");
        let mut header = vec![0, 0, 0x08, dims];
        header.extend_from_slice(&examples.to_be_bytes());
        header.extend(self.extents[1..].iter().flat_map(|extent| extent.to_be_bytes()));
        header
    }

    /// Values of one example.
    pub(super) fn row(&self, index: usize) -> &[u8] {
        let length = self.values.len() / self.extents[0] as usize;
        &self.values[index * length..(index + 1) * length]
    }
}

/// Reads images and labels; their numbers agree, and there is at least one.
pub(super) fn read(images: &Path, labels: &Path) -> Result<(Array, Array), ShardError> {
    let image_array = read_array(images, 2..=limits::IDX_DIMS)?;
    let label_array = read_array(labels, 1..=1)?;
    let (image_count, label_count) = (image_array.extents[0], label_array.extents[0]);
    if image_count != label_count {
        let what = format!("holds {label_count} labels for the {image_count} images beside it");
        return Err(ShardError::Corrupt { path: labels.to_path_buf(), place: Place::Byte(4), what });
    }
    if image_count == 0 {
        return Err(ShardError::Empty { path: images.to_path_buf() });
    }
    Ok((image_array, label_array))
}

/// Finds the first label that is not below `classes`.
pub(super) fn check_labels(path: &Path, labels: &Array, classes: u32) -> Result<(), ShardError> {
    match labels.values.iter().position(|label| u32::from(*label) >= classes) {
        None => Ok(()),
        Some(index) => Err(ShardError::LabelRange {
            path: path.to_path_buf(),
            place: Place::Byte(labels.header_bytes() + index as u64),
            label: u32::from(labels.values[index]),
            classes,
        }),
    }
}

/// Puts the two arrays together.
pub(super) fn examples(images: Array, labels: &Array) -> Examples {
    let shape = images.extents[1..].iter().map(|extent| u64::from(*extent)).collect();
    let labels = labels.values.iter().map(|label| u32::from(*label)).collect();
    Examples::new(Inputs::Bytes(images.values), labels, shape).expect("as many images as labels, none of them empty")
}

fn read_array(path: &Path, dims: std::ops::RangeInclusive<u8>) -> Result<Array, ShardError> {
    let corrupt =
        |at: u64, what: String| ShardError::Corrupt { path: path.to_path_buf(), place: Place::Byte(at), what };
    let mut content = Content::open(path)?;
    let mut magic = [0u8; 4];
    content.exact(&mut magic, "its header")?;
    let [zero_1, zero_2, kind, count] = magic;
    if (zero_1, zero_2) != (0, 0) || kind != 0x08 || !dims.contains(&count) {
        let what = format!(
            "starts with {magic:02x?}, expected an IDX header for bytes in {} to {} dimensions",
            dims.start(),
            dims.end()
        );
        return Err(corrupt(0, what));
    }
    let mut extents = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let mut extent = [0u8; 4];
        content.exact(&mut extent, "its header")?;
        extents.push(u32::from_be_bytes(extent));
    }
    if extents[1..].contains(&0) {
        return Err(corrupt(8, format!("holds images without pixels ({extents:?})")));
    }
    let length = extents.iter().try_fold(1u64, |product, extent| product.checked_mul(u64::from(*extent)));
    let fits = length.filter(|length| *length <= limits::SHARD_BYTES && extents[0] as usize <= limits::SHARD_EXAMPLES);
    let Some(length) = fits.and_then(|length| usize::try_from(length).ok()) else {
        let what = format!(
            "its header promises {extents:?} bytes, at most {} examples of {} bytes together are read",
            limits::SHARD_EXAMPLES,
            limits::SHARD_BYTES
        );
        return Err(ShardError::TooLarge { path: path.to_path_buf(), what });
    };
    let values = content.take(length, &format!("its values, which should be {length} bytes"))?;
    let array = Array { extents, values };
    if !content.at_end()? {
        let end = array.header_bytes() + length as u64;
        return Err(corrupt(end, "more bytes follow than the header promises".to_owned()));
    }
    Ok(array)
}
