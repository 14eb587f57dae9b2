//! safetensors files: a model as any framework reads it.
//!
//! Written here rather than by the crate, whose header is a hash map in random order: the same model gives the same
//! file. The tensors lie in manifest order, so that the data section is the flat vector as it is.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anabranch_common::ids::{Digest, ModelVersion, RunId};
use anabranch_common::limits;
use anabranch_common::manifest::{ManifestError, ModelManifest, TensorSpec};
use anabranch_common::merge::Served;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors};

/// Differences between two models that are told; more are counted.
const DIFFERENCES_SHOWN: usize = 8;
/// The header is filled up with spaces so that the data are aligned to this.
const ALIGNMENT_BYTES: usize = 8;

/// What the file says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Provenance {
    /// The run.
    pub run: RunId,
    /// The model's version.
    pub version: ModelVersion,
    /// Which vector of that version it is.
    pub served: Served,
    /// Digest of the flat vector.
    pub digest: Digest,
}

/// Why a file is not a model.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no safetensors file.
    #[error("{} is not a safetensors file: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: SafeTensorError,
    },
    /// A tensor is not f32.
    #[error("tensor {name:?} holds {dtype:?}, not F32")]
    NotF32 {
        /// The tensor.
        name: String,
        /// What it holds.
        dtype: Dtype,
    },
    /// A tensor holds a NaN or an infinity.
    #[error("tensor {0:?} is not finite")]
    NotFinite(String),
    /// The tensors make no model.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The run has other tensors.
    #[error("the file does not hold the run's tensors: {0}")]
    OtherTensors(String),
}

/// Writes a model to `path`, whole or not at all, durably.
///
/// # Errors
/// The system's own: nothing is left over then.
pub fn write(path: &Path, manifest: &ModelManifest, values: &[f32], from: Provenance) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?.to_string_lossy();
    let partial = folder.join(format!(".{name}.{}.partial", std::process::id()));
    let written = fill(&partial, &header(manifest, Some(from)), values)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&partial, path))
        .and_then(|()| File::open(folder)?.sync_all());
    if written.is_err() {
        // The error that counts is the first one; a left-over file is overwritten or does no harm.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Returns how the file of a model begins: the length of its header, and its header. The values follow, in manifest order, each
/// as 4 bytes, little-endian.
#[must_use]
pub fn head(manifest: &ModelManifest, from: Provenance) -> Vec<u8> {
    with_length(&header(manifest, Some(from)))
}

fn with_length(header: &[u8]) -> Vec<u8> {
    [(header.len() as u64).to_le_bytes().as_slice(), header].concat()
}

/// Writes a model to `path` for another process to read, without provenance and without waiting for the disk.
///
/// # Errors
/// The system's own; the file may be there in part.
pub fn hand_over(path: &Path, manifest: &ModelManifest, values: &[f32]) -> io::Result<()> {
    fill(path, &header(manifest, None), values).map(drop)
}

fn fill(path: &Path, header: &[u8], values: &[f32]) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&with_length(header))?;
    for value in values {
        out.write_all(&value.to_le_bytes())?;
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)
}

/// The JSON header, padded.
fn header(manifest: &ModelManifest, from: Option<Provenance>) -> Vec<u8> {
    let mut metadata = BTreeMap::from([("format".to_owned(), "anabranch".to_owned())]);
    if let Some(from) = from {
        metadata.insert("digest".to_owned(), from.digest.to_string());
        metadata.insert("served".to_owned(), from.served.as_str().to_owned());
        metadata.insert("run".to_owned(), from.run.to_string());
        metadata.insert("version".to_owned(), from.version.to_string());
    }
    let mut text = format!("{{\"__metadata__\":{}", serde_json::json!(metadata));
    for (tensor, range) in manifest.ranges() {
        let name = serde_json::Value::from(tensor.name.as_str());
        let info = serde_json::json!({
            "dtype": "F32",
            "shape": tensor.shape,
            "data_offsets": [4 * range.start, 4 * range.end],
        });
        text.push_str(&format!(",{name}:{info}"));
    }
    text.push('}');
    let mut header = text.into_bytes();
    header.resize(header.len().next_multiple_of(ALIGNMENT_BYTES), b' ');
    header
}

/// Reads a model. With a manifest the file must hold exactly its tensors, in whatever order; without one, the tensors
/// are taken in the order of their data.
///
/// # Errors
/// See [`ReadError`].
pub fn read(path: &Path, expected: Option<&ModelManifest>) -> Result<(ModelManifest, Vec<f32>), ReadError> {
    let bytes = load(path)?;
    let file = parse(path, &bytes)?;
    let manifest = match expected {
        Some(manifest) => {
            let found = file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec()));
            compare(&found.collect(), manifest)?;
            manifest.clone()
        }
        None => in_file_order(&file)?,
    };
    let values = values(&file, &manifest)?;
    Ok((manifest, values))
}

/// Reads exactly the tensors of `expected`, in its order, whose values need not be finite: activations and gradients that another
/// process [hands over](hand_over).
///
/// # Errors
/// See [`ReadError`].
pub fn take_over(path: &Path, expected: &ModelManifest) -> Result<Vec<f32>, ReadError> {
    let bytes = load(path)?;
    let file = parse(path, &bytes)?;
    let found = file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec()));
    compare(&found.collect(), expected)?;
    values_of(&file, expected)
}

/// Reads a model in the order of its file, which has to hold the tensors of `expected` in any order.
///
/// # Errors
/// See [`ReadError`].
pub fn read_in_file_order(path: &Path, expected: &ModelManifest) -> Result<(ModelManifest, Vec<f32>), ReadError> {
    let bytes = load(path)?;
    let file = parse(path, &bytes)?;
    let manifest = in_file_order(&file)?;
    let shape = |shape: &[u64]| shape.iter().map(|extent| usize::try_from(*extent).unwrap_or(usize::MAX)).collect();
    let found = manifest.tensors().iter().map(|tensor| (tensor.name.clone(), shape(&tensor.shape)));
    compare(&found.collect(), expected)?;
    let values = values(&file, &manifest)?;
    Ok((manifest, values))
}

fn load(path: &Path) -> Result<Vec<u8>, ReadError> {
    let unreadable = |source| ReadError::Unreadable { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > limits::MODEL_FILE_BYTES {
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, format!("{length} bytes are no model"))));
    }
    fs::read(path).map_err(unreadable)
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, ReadError> {
    SafeTensors::deserialize(bytes).map_err(|problem| ReadError::Malformed { path: path.to_owned(), problem })
}

/// Returns the values of the tensors of `manifest`, in its order, if all are finite.
fn values(file: &SafeTensors<'_>, manifest: &ModelManifest) -> Result<Vec<f32>, ReadError> {
    let values = values_of(file, manifest)?;
    for (tensor, range) in manifest.ranges() {
        if !values[range].iter().all(|value| value.is_finite()) {
            return Err(ReadError::NotFinite(tensor.name.clone()));
        }
    }
    Ok(values)
}

/// The same, whatever they are.
fn values_of(file: &SafeTensors<'_>, manifest: &ModelManifest) -> Result<Vec<f32>, ReadError> {
    let mut values = Vec::with_capacity(manifest.params());
    for tensor in manifest.tensors() {
        let view = file.tensor(&tensor.name).map_err(|error| ReadError::OtherTensors(error.to_string()))?;
        if view.dtype() != Dtype::F32 {
            return Err(ReadError::NotF32 { name: tensor.name.clone(), dtype: view.dtype() });
        }
        values.extend(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    }
    Ok(values)
}

fn in_file_order(file: &SafeTensors<'_>) -> Result<ModelManifest, ReadError> {
    // A scalar has no dimension; here it has one, of extent 1.
    let shape = |shape: &[usize]| if shape.is_empty() { vec![1] } else { shape.iter().map(|n| *n as u64).collect() };
    let mut tensors: Vec<_> = file.tensors();
    tensors.sort_by_key(|(_, view)| view.data().as_ptr());
    let specs = tensors.into_iter().map(|(name, view)| TensorSpec { shape: shape(view.shape()), name });
    Ok(ModelManifest::new(specs.collect())?)
}

fn compare(found: &BTreeMap<String, Vec<usize>>, manifest: &ModelManifest) -> Result<(), ReadError> {
    let mut differences = Vec::new();
    for tensor in manifest.tensors() {
        let Some(shape) = found.get(&tensor.name) else {
            differences.push(format!("{:?} of shape {:?} is missing", tensor.name, tensor.shape));
            continue;
        };
        let elements: usize = shape.iter().product();
        let same = shape.iter().map(|n| *n as u64).eq(tensor.shape.iter().copied());
        if !(same || shape.is_empty() && tensor.elements() == Some(elements)) {
            differences.push(format!("{:?} has shape {shape:?} instead of {:?}", tensor.name, tensor.shape));
        }
    }
    let known: std::collections::BTreeSet<&str> =
        manifest.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    let unknown = found.keys().filter(|name| !known.contains(name.as_str()));
    differences.extend(unknown.map(|name| format!("{name:?} is not part of the run's model")));
    let more = differences.len().saturating_sub(DIFFERENCES_SHOWN);
    differences.truncate(DIFFERENCES_SHOWN);
    match (differences.is_empty(), more) {
        (true, _) => Ok(()),
        (false, 0) => Err(ReadError::OtherTensors(differences.join("; "))),
        (false, more) => Err(ReadError::OtherTensors(format!("{}; and {more} more", differences.join("; ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(tensors: &[(&str, &[u64])]) -> ModelManifest {
        let spec = |(name, shape): &(&str, &[u64])| TensorSpec { name: (*name).to_owned(), shape: shape.to_vec() };
        ModelManifest::new(tensors.iter().map(spec).collect()).expect("valid")
    }

    fn provenance(values: &[f32]) -> Provenance {
        Provenance {
            run: RunId([1; 16]),
            version: ModelVersion(7),
            served: Served::Average,
            digest: Digest::of_f32(values),
        }
    }

    #[test]
    fn a_model_round_trips_in_manifest_order_and_the_file_says_where_it_comes_from() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.safetensors");
        let manifest = manifest(&[("z.weight", &[2, 3]), ("a \"quoted\" name", &[1])]);
        let values = [1.0, -2.5, 3.0, f32::MIN_POSITIVE, -0.0, 6.0, 7.0];
        write(&path, &manifest, &values, provenance(&values)).expect("written");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing is left over");
        for expected in [None, Some(&manifest)] {
            let (found, read) = read(&path, expected).expect("read");
            assert_eq!(found, manifest);
            assert_eq!(Digest::of_f32(&read), Digest::of_f32(&values), "the same bits");
        }
        let bytes = fs::read(&path).expect("read");
        assert!(bytes.starts_with(&head(&manifest, provenance(&values))), "what is sent begins as the file");
        let (header_bytes, header) = SafeTensors::read_metadata(&bytes).expect("a header");
        assert_eq!(header_bytes % ALIGNMENT_BYTES, 0);
        let said = header.metadata().as_ref().expect("metadata");
        assert_eq!(said.get("version").map(String::as_str), Some("7"));
        assert_eq!(said.get("digest"), Some(&Digest::of_f32(&values).to_string()));
        assert_eq!(said.get("run"), Some(&RunId([1; 16]).to_string()));
        let again = dir.path().join("again.safetensors");
        write(&again, &manifest, &values, provenance(&values)).expect("written");
        assert_eq!(fs::read(again).expect("read"), bytes, "the same model gives the same file");
    }

    #[test]
    fn another_order_is_put_right_and_other_tensors_are_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.safetensors");
        write(&path, &manifest(&[("a", &[2]), ("b", &[1])]), &[1.0, 2.0, 3.0], provenance(&[])).expect("written");
        let swapped = manifest(&[("b", &[1]), ("a", &[2])]);
        assert_eq!(read(&path, Some(&swapped)).expect("read").1, [3.0, 1.0, 2.0]);
        for (other, expected) in [
            (manifest(&[("a", &[2]), ("c", &[1])]), "\"c\" of shape [1] is missing"),
            (manifest(&[("a", &[1]), ("b", &[1])]), "\"a\" has shape [2] instead of [1]"),
            (manifest(&[("a", &[2])]), "\"b\" is not part of the run's model"),
            (
                manifest(&[("c", &[1]), ("a", &[3])]),
                "\"c\" of shape [1] is missing; \"a\" has shape [2] instead of [3]; \"b\" is not part of the run's model",
            ),
        ] {
            let error = read(&path, Some(&other)).expect_err("other tensors").to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
    }

    /// The crate behind `safetensors.torch.save_file` sorts by name; the run's order is another.
    #[test]
    fn a_file_in_the_order_of_names_is_put_into_the_runs_order() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.safetensors");
        let tensors = [("fc.weight", vec![2, 2], [1.0f32, 2.0, 3.0, 4.0]), ("fc.bias", vec![4], [5.0, 6.0, 7.0, 8.0])];
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|(.., values)| values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            (*name, safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), bytes).expect("whole"))
        });
        fs::write(&path, safetensors::serialize(views, None).expect("a model")).expect("written");
        let ours = manifest(&[("fc.weight", &[2, 2]), ("fc.bias", &[4])]);
        assert_eq!(read(&path, Some(&ours)).expect("the same tensors").1, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let (found, values) = read(&path, None).expect("read");
        assert_eq!(found, manifest(&[("fc.bias", &[4]), ("fc.weight", &[2, 2])]), "its own order");
        assert_eq!(values[..4], [5.0, 6.0, 7.0, 8.0]);
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.safetensors");
        assert!(matches!(read(&path, None), Err(ReadError::Unreadable { .. })));
        fs::write(&path, b"PK\x03\x04 this is a zip file, they say").expect("written");
        assert!(matches!(read(&path, None), Err(ReadError::Malformed { .. })));
        let one = manifest(&[("w", &[2])]);
        write(&path, &one, &[1.0, f32::NAN], provenance(&[])).expect("written");
        assert!(matches!(read(&path, None), Err(ReadError::NotFinite(name)) if name == "w"));
        assert!(take_over(&path, &one).expect("activations may be anything")[1].is_nan());
        let other = manifest(&[("w", &[1])]);
        assert!(matches!(take_over(&path, &other), Err(ReadError::OtherTensors(_))), "but of their shape");
        write(&path, &one, &[1.0, 2.0], provenance(&[])).expect("written");
        let mut bytes = fs::read(&path).expect("read");
        bytes.pop();
        fs::write(&path, &bytes).expect("written");
        assert!(matches!(read(&path, None), Err(ReadError::Malformed { .. })), "a file that was cut off");
    }
}
