//! Checkpoints: a snapshot of model, merge state and fold, with the position and the chain from which replay goes on.
//!
//! ```text
//!  0      4        6          8        12        16
//!  ┌──────┬────────┬──────────┬────────┬─────────┬──────┐
//!  │"ANBC"│version │ reserved │ length │ crc32c  │ body │
//!  │ 4    │ u16 le │ u16 = 0  │ u32 le │ u32 le  │      │
//!  └──────┴────────┴──────────┴────────┴─────────┴──────┘
//! ```
//! The checksum covers the header's first 12 bytes and the body ([`Checkpoint`]). Model and merge vectors
//! are blobs in codec 0 under the digest of their content; other parts of the merge state are blobs under the digest of
//! their bytes; the fold is a head and pages, each a blob under the digest of its
//! bytes (`recovery/saved`).

use std::collections::BTreeSet;

use anabranch_common::ids::{BranchId, Digest, ModelVersion, Position};
use anabranch_common::journal::Chain;
use anabranch_common::limits;
use anabranch_common::schema;
use anabranch_common::status::CheckpointStatus;
use anabranch_io::faults;

use super::{RecoveryError, pins, saved, vectors};
use crate::config::Retention;
use crate::core::state::RunState;
use crate::merger::ModelState;
use crate::store::{Blobs, Catalogue, StorageError, Store};

anabranch_common::layout! {
    struct Checkpoint {
        position, version, branch, chain, at_ms, model, track, merge_state, merge_parts, state,
    }
}

/// Magic bytes of a manifest.
pub const MAGIC: [u8; 4] = *b"ANBC";
/// Bytes before the body.
pub const HEADER_BYTES: usize = 16;

/// The manifest of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Position of the last record it contains.
    pub position: Position,
    /// The model version after that record.
    pub version: ModelVersion,
    /// The branch.
    pub branch: BranchId,
    /// Chain value after that record: the anchor from which the journal can be verified once older records are gone.
    pub chain: Chain,
    /// Unix time in milliseconds at which it was taken.
    pub at_ms: u64,
    /// Digest of the model's content.
    pub model: Digest,
    /// Digest of the published track, if the run has one. Its version is in the saved state.
    pub track: Option<Digest>,
    /// Digests of the merge rule's vectors: what waits for the next version.
    pub merge_state: Vec<Digest>,
    /// Digests of the merge rule's other parts.
    pub merge_parts: Vec<Digest>,
    /// Digest of the head of the saved [`RunState`].
    pub state: Digest,
}

impl Checkpoint {
    /// The bytes that are stored.
    ///
    /// # Errors
    /// The body is larger than a control message.
    pub fn to_bytes(&self) -> Result<Vec<u8>, RecoveryError> {
        let body = schema::encode(self, limits::CONTROL_MESSAGE_BYTES)?;
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&schema::VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out), &body);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// [`RecoveryError::Manifest`], with what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecoveryError> {
        let bad = |problem: String| RecoveryError::Manifest(problem);
        let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(bad("is damaged or shorter than its header".to_owned()));
        };
        if header[..4] != MAGIC {
            return Err(bad("does not start with its magic bytes".to_owned()));
        }
        let version = u16::from_le_bytes([header[4], header[5]]);
        if !schema::is_readable(version) {
            return Err(RecoveryError::Schema { what: "checkpoint", found: version });
        }
        let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), body);
        if u32_at(8) as usize != body.len() || u32_at(12) != crc {
            return Err(bad("does not match its checksum".to_owned()));
        }
        schema::decode_as(version, body, limits::CONTROL_MESSAGE_BYTES)
            .map_err(|error| bad(format!("does not decode: {error}")))
    }

    /// Every blob that it names itself; the head of the fold names others.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> {
        let merge = self.merge_state.iter().chain(&self.merge_parts).copied();
        [self.model, self.state].into_iter().chain(self.track).chain(merge)
    }
}

/// Writes a checkpoint of a model and of the fold at the same position, and makes it durable. When it returns `Ok`,
/// older checkpoints may be pruned.
///
/// # Errors
/// A vector is not finite, or the storage fails. What was there before stays usable.
pub fn write(
    store: &dyn Store,
    state: &RunState,
    chain: Chain,
    model: &ModelState,
    at_ms: u64,
) -> Result<Checkpoint, RecoveryError> {
    let manifest = &state.manifest;
    let named = saved::put(store.blobs(), state)?;
    let merge = model.merge_state();
    let checkpoint = Checkpoint {
        position: state.position,
        version: state.version,
        branch: state.branch,
        chain,
        at_ms,
        model: vectors::put(store.blobs(), manifest, model.model())?,
        track: model.track().map(|track| vectors::put(store.blobs(), manifest, track.base())).transpose()?,
        merge_state: merge
            .vectors
            .iter()
            .map(|vector| vectors::put(store.blobs(), manifest, vector))
            .collect::<Result<_, _>>()?,
        merge_parts: merge.parts.iter().map(|part| put_part(store.blobs(), part)).collect::<Result<_, _>>()?,
        state: named,
    };
    faults::point("checkpoint-in-snapshot");
    store.blobs().sync()?;
    faults::point("checkpoint-before-manifest");
    store.catalogue().put_checkpoint(checkpoint.position, &checkpoint.to_bytes()?)?;
    faults::point("checkpoint-in-manifest");
    store.catalogue().sync()?;
    faults::point("checkpoint-written");
    Ok(checkpoint)
}

/// Stores a part of the merge state. One that did not change since an earlier checkpoint is compared with what is stored,
/// and written again where the disk has damaged it.
fn put_part(blobs: &dyn Blobs, part: &[u8]) -> Result<Digest, RecoveryError> {
    let digest = Digest::of(part);
    if load_part(blobs, digest).is_err() {
        blobs.put(digest, part)?;
    }
    Ok(digest)
}

/// Reads a part of the merge state and checks it against its digest.
pub(super) fn load_part(blobs: &dyn Blobs, digest: Digest) -> Result<Vec<u8>, RecoveryError> {
    let what = "part of the merge state";
    let bytes = vectors::bytes(blobs, what, digest)?;
    if Digest::of(&bytes) == digest {
        return Ok(bytes);
    }
    let problem = "does not have the content that its digest names".to_owned();
    Err(RecoveryError::Blob { what, digest, problem })
}

/// What [`prune`] deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Manifests.
    pub checkpoints: u64,
    /// Blobs.
    pub blobs: u64,
    /// Records.
    pub records: u64,
    /// The oldest version that can still be rebuilt.
    pub oldest: ModelVersion,
}

/// Keeps the newest `keep` checkpoints (at least one), and what the journal and they need. Safe to be killed anywhere:
/// manifests go first, so that none ever names what is gone.
///
/// Not to be called while a [`write()`] is under way.
///
/// # Errors
/// The storage fails, or a record that has not been looked at yet cannot be read.
pub fn prune(store: &dyn Store, keep: usize, retention: Retention) -> Result<Pruned, RecoveryError> {
    let stored = store.catalogue().checkpoints()?;
    let readable = |(position, bytes): &(Position, Vec<u8>)| Some((*position, Checkpoint::from_bytes(bytes).ok()?));
    let mut kept: Vec<(Position, Checkpoint)> = stored.iter().filter_map(readable).collect();
    kept.drain(..kept.len().saturating_sub(keep.max(1)));
    let mut pruned = Pruned::default();
    let Some(floor) = kept.first().map(|(position, _)| *position) else { return Ok(pruned) };
    // Not that of the first one: after a rollback an older checkpoint may have a newer version.
    let oldest = kept.iter().map(|(_, checkpoint)| checkpoint.version).min().unwrap_or_default();
    // Before any record goes: what it names must not stay pinned.
    pins::scan(store)?;
    for (position, _) in &stored {
        if !kept.iter().any(|(kept, _)| kept == position) {
            store.catalogue().delete_checkpoint(*position)?;
            pruned.checkpoints += 1;
            faults::point("prune-in-manifests");
        }
    }
    store.catalogue().sync()?;
    faults::point("prune-before-records");
    let from_the_start = retention == Retention::All && store.journal().first_position()? == Some(Position(0));
    pruned.oldest = if from_the_start { ModelVersion(0) } else { oldest };
    if retention == Retention::SinceSnapshot {
        pruned.records = store.journal().prune(floor)?;
    }
    let first = store.journal().first_position()?.unwrap_or(floor);
    // Listed before the references are: a model that is stored meanwhile is either not listed or already pinned.
    let stored = store.blobs().list()?;
    let mut needed: BTreeSet<Digest> = pins::referenced(store, first)?;
    for (_, checkpoint) in &kept {
        match needed_blobs(store.blobs(), checkpoint) {
            Ok(blobs) => needed.extend(blobs),
            // Its pages are not known. The damage may be a passing one, so no blob goes until this checkpoint does.
            Err(error) if error.is_local() => {
                tracing::warn!(%error, position = %checkpoint.position, "a checkpoint is damaged; no blob is pruned");
                store.catalogue().sync()?;
                return Ok(pruned);
            }
            Err(error) => return Err(error),
        }
    }
    store.catalogue().sync()?;
    for id in stored {
        if !needed.contains(&id) {
            store.blobs().delete(id)?;
            pruned.blobs += 1;
            faults::point("prune-in-blobs");
        }
    }
    store.blobs().sync()?;
    Ok(pruned)
}

/// Every blob that a checkpoint needs, the pages of its fold included.
///
/// # Errors
/// The head of its fold cannot be read, or the storage fails.
pub fn needed_blobs(blobs: &dyn Blobs, checkpoint: &Checkpoint) -> Result<BTreeSet<Digest>, RecoveryError> {
    let pages = saved::pages(blobs, checkpoint.state)?;
    Ok(checkpoint.blobs().chain(pages).collect())
}

/// The readable checkpoints, newest first, and what is wrong with the others.
pub(super) fn readable(catalogue: &dyn Catalogue) -> Result<(Vec<Checkpoint>, Vec<String>), StorageError> {
    let (mut checkpoints, mut problems) = (Vec::new(), Vec::new());
    for (position, bytes) in catalogue.checkpoints()?.into_iter().rev() {
        match Checkpoint::from_bytes(&bytes) {
            Ok(checkpoint) if checkpoint.position == position => checkpoints.push(checkpoint),
            Ok(checkpoint) => {
                problems.push(format!("checkpoint at position {position} says position {}", checkpoint.position));
            }
            Err(error) => problems.push(format!("checkpoint at position {position}: {error}")),
        }
    }
    Ok((checkpoints, problems))
}

/// The checkpoints that can be read, oldest first. `bytes` counts shared blobs with each that names them; pages are left out
/// where the head is damaged.
///
/// # Errors
/// The storage fails.
pub fn list(store: &dyn Store) -> Result<Vec<CheckpointStatus>, RecoveryError> {
    let mut out = Vec::new();
    for (position, bytes) in store.catalogue().checkpoints()? {
        let Ok(checkpoint) = Checkpoint::from_bytes(&bytes) else { continue };
        let mut stored_bytes = bytes.len() as u64;
        let needed = match needed_blobs(store.blobs(), &checkpoint) {
            Err(error) if error.is_local() => checkpoint.blobs().collect(),
            needed => needed?,
        };
        for id in needed {
            stored_bytes += store.blobs().bytes(id)?.unwrap_or(0);
        }
        out.push(CheckpointStatus {
            position,
            version: checkpoint.version,
            model: checkpoint.model,
            chain: checkpoint.chain.0,
            at_ms: checkpoint.at_ms,
            bytes: stored_bytes,
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            position: Position(7),
            version: ModelVersion(3),
            branch: BranchId([1; 16]),
            chain: Chain(Digest([2; 32])),
            at_ms: 1_700_000_000_000,
            model: Digest([3; 32]),
            track: Some(Digest([7; 32])),
            merge_state: vec![Digest([4; 32])],
            merge_parts: vec![Digest([6; 32])],
            state: Digest([5; 32]),
        }
    }

    #[test]
    fn the_bytes_of_a_manifest_are_these() {
        let bytes = checkpoint().to_bytes().expect("small");
        assert_eq!(bytes[..12], *b"ANBC\x07\0\0\0\xf9\0\0\0");
        assert_eq!(bytes.len(), HEADER_BYTES + 249);
        assert_eq!(bytes[16..32], *b"\x07\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
        assert_eq!(Checkpoint::from_bytes(&bytes).expect("whole"), checkpoint());
    }

    /// Faults 15 to 17: a manifest that was cut or changed is never taken for one.
    #[test]
    fn every_flipped_bit_and_every_prefix_is_noticed() {
        let bytes = checkpoint().to_bytes().expect("small");
        for len in 0..bytes.len() {
            assert!(Checkpoint::from_bytes(&bytes[..len]).is_err(), "a prefix of {len} bytes was accepted");
        }
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::from_bytes(&broken).is_err(), "flipping bit {bit} went unnoticed");
        }
    }
}
