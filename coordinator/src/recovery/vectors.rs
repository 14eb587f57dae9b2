//! Flat vectors as blobs: codec 0, named by the digest of their content.

use anabranch_common::codec::dense::Planes32;
use anabranch_common::codec::{Codec, Delta};
use anabranch_common::ids::Digest;
use anabranch_common::manifest::ModelManifest;

use super::RecoveryError;
use crate::store::{Blobs, StorageError};

/// Stores a vector under the digest of its content. Durable after [`Blobs::sync`].
pub(super) fn put(blobs: &dyn Blobs, manifest: &ModelManifest, values: &[f32]) -> Result<Digest, RecoveryError> {
    let digest = Digest::of_f32(values);
    // The content is named by its digest, so what is there need not be compressed again.
    if load(blobs, "vector", manifest, digest).is_err() {
        blobs.put(digest, &Planes32.encode(manifest, values)?)?;
    }
    Ok(digest)
}

/// Reads a vector and checks it against its digest.
pub(super) fn load(
    blobs: &dyn Blobs,
    what: &'static str,
    manifest: &ModelManifest,
    digest: Digest,
) -> Result<Vec<f32>, RecoveryError> {
    let problem = |problem: String| RecoveryError::Blob { what, digest, problem };
    let bytes = bytes(blobs, what, digest)?;
    let decoded = Planes32.decode(manifest, &bytes).map_err(|error| problem(format!("does not decode: {error}")))?;
    let values = match decoded {
        Delta::Dense(values) => values,
        sparse @ Delta::Sparse { .. } => sparse.into_dense(),
    };
    if Digest::of_f32(&values) != digest {
        return Err(problem("does not have the content that its digest names".to_owned()));
    }
    Ok(values)
}

/// Reads the bytes of a blob that must be there.
pub(super) fn bytes(blobs: &dyn Blobs, what: &'static str, digest: Digest) -> Result<Vec<u8>, RecoveryError> {
    let problem = |problem: String| RecoveryError::Blob { what, digest, problem };
    match blobs.get(digest) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(problem("is missing".to_owned())),
        Err(StorageError::Corrupt { detail, .. }) => Err(problem(format!("is damaged: {detail}"))),
        Err(error) => Err(error.into()),
    }
}
