//! A long round on disk, so that a killed process goes on where it was instead of starting over.
//!
//! One file in the agent's directory, replaced as a whole (a temporary file, synced, renamed, the directory synced):
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `ANBROUND` |
//! | 2 | version of the schema, u16 le |
//! | 4 | length of the head, u32 le |
//! | 32 | BLAKE3 of the head |
//! | n | the head: lease with its plan, what the round is a round of, steps done, sums, length and BLAKE3 of each vector |
//! | ... | the vectors, f32 le: start (the lease's base, or ahead of it), model, the optimizer's state |
//!
//! The draw of examples needs no bytes: it is the seed's stream after so many numbers. The file is removed before the
//! round's end is told to anybody, so that no round counts twice: a coordinator refuses the second update under a lease, but
//! its content would come back with the next update.

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_common::ids::Digest;
use anabranch_common::journal::Lease;
use anabranch_common::{limits, schema};
use serde::{Deserialize, Serialize};

use crate::files;

const MAGIC: &[u8; 8] = b"ANBROUND";

/// Where rounds are kept, and how often.
#[derive(Debug, Clone)]
pub struct Rounds {
    path: PathBuf,
    every_s: u64,
}

impl Rounds {
    /// In the file at `path`, every `every_s` seconds of a round; none for 0.
    #[must_use]
    pub fn new(path: PathBuf, every_s: u64) -> Option<Self> {
        (every_s > 0).then_some(Self { path, every_s })
    }

    /// For the round under `lease`.
    #[must_use]
    pub fn file(&self, lease: &Lease) -> RoundFile {
        RoundFile { path: self.path.clone(), every_s: self.every_s, lease: lease.clone() }
    }

    /// The round that a crash has cut off: its lease, with the plan, and the base's content. A
    /// file that is damaged is removed.
    #[must_use]
    pub fn pending(&self) -> Option<(Lease, Arc<[f32]>)> {
        match read(&self.path) {
            Ok(None) => None,
            Ok(Some((head, mut vectors))) => {
                let base = vectors.swap_remove(0);
                Some((head.lease, base.into()))
            }
            Err(error) => {
                tracing::warn!(%error, "the round that was kept cannot be used; it starts over");
                remove(&self.path);
                None
            }
        }
    }
}

/// Where the state of one round is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundFile {
    path: PathBuf,
    every_s: u64,
    lease: Lease,
}

/// How far a round is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RoundState {
    /// Digest of base, plan, seed, model and shard: only the same round goes on.
    pub(super) of: Digest,
    /// Examples computed at once.
    pub(super) micro_batch: u32,
    /// Steps done.
    pub(super) step: u32,
    /// Sum of their losses.
    pub(super) loss_sum: f64,
    /// Start, model, and the vectors of the optimizer.
    pub(super) vectors: Vec<Vec<f32>>,
    /// The optimizer's numbers.
    pub(super) powers: [f64; 2],
}

#[derive(Debug)]
struct Head {
    lease: Lease,
    of: Digest,
    micro_batch: u32,
    step: u32,
    loss_sum: u64,
    powers: [u64; 2],
    vectors: Vec<(u64, Digest)>,
}

anabranch_common::layout! {
    struct Head { lease, of, micro_batch, step, loss_sum, powers, vectors }
}

impl RoundFile {
    /// In a folder of a test, after every step of the round from `base`.
    #[cfg(test)]
    pub(super) fn every_step(path: &Path, base: &[f32]) -> Self {
        Self { path: path.to_owned(), every_s: 0, lease: tests::lease(base) }
    }

    /// Digest of the model that the round starts from.
    pub(super) fn base(&self) -> Digest {
        self.lease.base_digest
    }

    /// Time between two states on disk, in milliseconds.
    pub(super) fn every_ms(&self) -> u64 {
        self.every_s.saturating_mul(1000)
    }

    /// Replaces what is on disk. `vectors` are written in place of those of `state`, which need not be copied into it.
    pub(super) fn write(&self, state: &RoundState, vectors: &[&[f32]]) -> io::Result<()> {
        let head = Head {
            lease: self.lease.clone(),
            of: state.of,
            micro_batch: state.micro_batch,
            step: state.step,
            loss_sum: state.loss_sum.to_bits(),
            powers: state.powers.map(f64::to_bits),
            vectors: vectors.iter().map(|vector| (vector.len() as u64, Digest::of_f32(vector))).collect(),
        };
        let head = schema::encode(&head, limits::ROUND_HEAD_BYTES).map_err(io::Error::other)?;
        let head_bytes = u32::try_from(head.len()).map_err(io::Error::other)?;
        files::replace(&self.path, files::PUBLIC, |file| {
            file.write_all(MAGIC)?;
            file.write_all(&schema::VERSION.to_le_bytes())?;
            file.write_all(&head_bytes.to_le_bytes())?;
            file.write_all(&Digest::of(&head).0)?;
            file.write_all(&head)?;
            vectors.iter().copied().flatten().try_for_each(|value| file.write_all(&value.to_le_bytes()))
        })
    }

    /// What is on disk, if it is of this round. Anything else is removed.
    pub(super) fn take_up(&self, of: Digest) -> Option<RoundState> {
        let found = read(&self.path).unwrap_or_else(|error| {
            tracing::warn!(%error, "the round that was kept cannot be used; it starts over");
            None
        });
        let Some((head, vectors)) = found.filter(|(head, _)| head.of == of) else {
            remove(&self.path);
            return None;
        };
        let Head { of, micro_batch, step, loss_sum, powers, .. } = head;
        let powers = powers.map(f64::from_bits);
        Some(RoundState { of, micro_batch, step, loss_sum: f64::from_bits(loss_sum), vectors, powers })
    }

    /// Removes what is on disk, for good: not even a loss of power brings it back.
    ///
    /// # Errors
    /// The system's. Then the round's end must not be told: it might be told again.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        files::sync_folder(&self.path)
    }
}

/// Removes what is of no use. If that fails, what is there is of no use the next time as well.
fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "a round that was kept cannot be removed");
        }
        _ => {}
    }
}

fn read(path: &Path) -> io::Result<Option<(Head, Vec<Vec<f32>>)>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
    let mut file = BufReader::with_capacity(1 << 16, file);
    let (mut magic, mut version, mut length, mut digest) = ([0; 8], [0; 2], [0; 4], [0; 32]);
    file.read_exact(&mut magic)?;
    file.read_exact(&mut version)?;
    file.read_exact(&mut length)?;
    file.read_exact(&mut digest)?;
    let (version, length) = (u16::from_le_bytes(version), u32::from_le_bytes(length) as usize);
    if magic != *MAGIC || length > limits::ROUND_HEAD_BYTES {
        return Err(bad("not the state of a round"));
    }
    if !schema::is_readable(version) {
        return Err(bad(&format!("schema version {version}; this program reads {}", schema::readable())));
    }
    let mut head = vec![0; length];
    file.read_exact(&mut head)?;
    if Digest::of(&head).0 != digest {
        return Err(bad("its head is damaged"));
    }
    let head: Head = schema::decode_as(version, &head, limits::ROUND_HEAD_BYTES).map_err(io::Error::other)?;
    let mut vectors = Vec::with_capacity(head.vectors.len());
    for (length, digest) in &head.vectors {
        let length = usize::try_from(*length).ok().filter(|length| *length <= limits::MODEL_PARAMS);
        let mut vector = vec![0.0f32; length.ok_or_else(|| bad("longer than any model"))?];
        for value in &mut vector {
            let mut bytes = [0; 4];
            file.read_exact(&mut bytes)?;
            *value = f32::from_le_bytes(bytes);
        }
        if Digest::of_f32(&vector) != *digest {
            return Err(bad("a vector is damaged"));
        }
        vectors.push(vector);
    }
    if vectors.len() < 2 {
        return Err(bad("there is no model in it"));
    }
    Ok(Some((head, vectors)))
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::{AgentId, BranchId, Epoch, LeaseId, ModelVersion};
    use anabranch_common::journal::Plan;
    use anabranch_testkit::lease::PLAN;

    use super::*;

    pub(super) fn lease(base: &[f32]) -> Lease {
        Lease {
            id: LeaseId(3),
            agent: AgentId([1; 16]),
            epoch: Epoch(2),
            branch: BranchId([4; 16]),
            base_version: ModelVersion(9),
            base_digest: Digest::of_f32(base),
            seed: 5,
            expires_at_ms: 6,
            plan: Plan { local_steps: 20, lr_factor: 0.25, round: 8, progress: Some(0.5), ..PLAN },
        }
    }

    /// Whatever a crash or a disk does to the file: the round it is of, or none.
    #[test]
    fn a_round_comes_back_as_it_was_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("round");
        let rounds = Rounds::new(path.clone(), 60).expect("it keeps rounds");
        assert!(Rounds::new(path.clone(), 0).is_none() && rounds.pending().is_none());
        let (base, model) = (vec![1.0, -2.0], vec![1.5, -2.5]);
        let file = rounds.file(&lease(&base));
        let state = RoundState {
            of: Digest([7; 32]),
            micro_batch: 16,
            step: 11,
            loss_sum: 0.1,
            vectors: vec![base.clone(), model],
            powers: [0.5, 0.25],
        };
        let vectors: Vec<&[f32]> = state.vectors.iter().map(Vec::as_slice).collect();
        file.write(&state, &vectors).expect("written");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1, "no temporary file is left");
        assert_eq!(rounds.pending(), Some((lease(&base), base.clone().into())));
        assert_eq!(file.take_up(state.of), Some(state.clone()));
        let whole = fs::read(&path).expect("there");
        for damage in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[damage] ^= 0x10;
            fs::write(&path, &bytes).expect("written");
            assert!(rounds.pending().is_none() && !path.exists(), "bit {damage}");
            fs::write(&path, &whole[..damage]).expect("written");
            assert!(rounds.pending().is_none() && !path.exists(), "cut at {damage}");
        }
        fs::write(&path, &whole).expect("written");
        assert_eq!(file.take_up(Digest([8; 32])), None, "another round");
        assert!(!path.exists(), "and it is removed");
        file.write(&state, &vectors).expect("written");
        file.clear().expect("removed");
        assert!(!path.exists() && file.clear().is_ok(), "there is nothing to remove");
        fs::create_dir(&path).expect("in its place");
        assert!(file.clear().is_err(), "what cannot be removed is told");
    }
}
