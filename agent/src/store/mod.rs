//! What an agent must not lose: the outbox and the error-feedback residual, which change together or not at all. Where
//! the run's rule keeps memories, the agent's memory stands in the place of the residual.
//!
//! One sled tree, `ledger`, and numbered files beside it ([`Files`](anabranch_io::durable::Files)):
//!
//! | key | value |
//! |---|---|
//! | `h` | the head: magic, schema version, checksum (BLAKE3, 4 bytes), then branch, counter, and the names and digests of all blobs that count |
//! | `b` + number, u64 be | a blob: an encoded update, the residual (f32 le), or the manifest that both belong to. From [`FILE_BYTES`] on a file; shorter ones, and those of earlier versions, values in sled of at most `STORE_VALUE_BYTES`, `+ chunk` |
//!
//! A change writes new blobs under new numbers, commits, replaces the head, commits, and only then deletes the blobs
//! that the new head no longer names:
//!
//! ```text
//!  blobs ──► commit ──► head ──► commit ──► delete old blobs
//!            (the old head counts)    (the new head counts)
//! ```
//! A crash anywhere leaves the old state or the new one; blobs that no head names are swept when the store is opened, and
//! their numbers are not given to others: what a power loss brings back of them is never taken for something else.

#[cfg(test)]
mod files_tests;
mod fresh;
mod head;
#[cfg(test)]
mod memory_tests;
mod shelf;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::{self, DecodeError, Delta};
use anabranch_common::ids::{BranchId, Digest};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::schema;
use anabranch_common::update::{MemoryMark, UpdateKey, UpdateMeta};
use anabranch_common::wire::transfer::TransferManifest;
use anabranch_io::durable::StorageError;
use anabranch_io::faults;

use crate::encode::{Measured, Memory, Origin, States, Update};
use crate::session::command::{Bank, Settlement};
use crate::session::event::{FeedbackState, Kept, OutboxEntry};
pub use fresh::FreshPayloads;
use head::{Head, StoredBlob, StoredUpdate};
use shelf::SledShelf;
pub use shelf::{Content, Shelf};

/// Blobs of this many bytes and more are files; shorter ones fit in one value of sled. About here a file's syncs cost
/// as much time as sled's log does, and beyond it sled writes and keeps several times the bytes (docs/benchmarks.md).
pub const FILE_BYTES: usize = limits::STORE_VALUE_BYTES;

const HEAD_KEY: &[u8] = b"h";
/// Bytes of a blob's key.
const BLOB_KEY_BYTES: usize = 9;

/// The agent's store. One process, one directory; driven from one thread.
#[derive(Debug)]
pub struct Ledger {
    shelf: Box<dyn Shelf>,
    head: Head,
    manifest: Option<ModelManifest>,
    residual: Option<Vec<f32>>,
    states: Arc<States>,
    fresh: Arc<FreshPayloads>,
}

impl Ledger {
    /// Opens the store in `dir`, creating it if it is not there, and sweeps what a crash left over.
    ///
    /// # Errors
    /// Locked by another process, or not readable.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        Self::open_with_files_from(dir, FILE_BYTES)
    }

    /// The same with files for blobs of `file_bytes` and more; it may be another figure at each opening.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_files_from(dir: &Path, file_bytes: usize) -> Result<Self, StorageError> {
        Self::over(Box::new(SledShelf::open(dir, file_bytes)?))
    }

    /// Opens the store in `dir` for reading: nothing in it is created or changed, and changes of the ledger are lost.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_copy(dir: &Path) -> Result<Self, StorageError> {
        Self::read_from(Box::new(SledShelf::open_copy(dir)?))
    }

    /// Takes over what a shelf holds.
    ///
    /// # Errors
    /// It cannot be read, or what it holds is damaged.
    pub fn over(shelf: Box<dyn Shelf>) -> Result<Self, StorageError> {
        // First: what cannot be used is left as it is.
        let mut ledger = Self::read_from(shelf)?;
        ledger.sweep()?;
        Ok(ledger)
    }

    fn read_from(shelf: Box<dyn Shelf>) -> Result<Self, StorageError> {
        let head = match shelf.get(HEAD_KEY)? {
            Some(bytes) => head::decode(&bytes).map_err(|detail| corrupt(shelf.path(), &detail))?,
            None => Head::default(),
        };
        let mut ledger =
            Self { shelf, head, manifest: None, residual: None, states: Arc::default(), fresh: Arc::default() };
        ledger.load()?;
        Ok(ledger)
    }

    /// What a session has to know when it starts.
    ///
    /// # Errors
    /// A payload cannot be read.
    pub fn kept(&self) -> Result<Kept, StorageError> {
        let mut outbox = Vec::with_capacity(self.head.outbox.len());
        for update in &self.head.outbox {
            let payload = self.read_payload(update)?;
            let transfer = TransferManifest::of(&payload);
            outbox.push(OutboxEntry { meta: update.meta.clone(), transfer, sections: None });
        }
        Ok(Kept { branch: self.head.branch, counter: self.head.counter, outbox })
    }

    /// Takes the residual or the memory out, for an update of `branch` and `manifest` under a lease whose plan asks for this
    /// memory, or for none: the state that the update continues from. What is of another branch or model is dropped, and so
    /// is another memory. [`bank`](Self::bank) stores the next one; [`restore_residual`](Self::restore_residual) brings
    /// this one back.
    pub fn take_origin(&mut self, branch: BranchId, manifest: &ModelManifest, memory: Option<MemoryMark>) -> Origin {
        let fits =
            self.head.branch == Some(branch) && self.manifest.as_ref() == Some(manifest) && self.head.memory == memory;
        let values = self.residual.take().filter(|_| fits).unwrap_or_default();
        match memory {
            Some(mark) => Origin::Memory(Memory { mark: if fits { mark } else { MemoryMark::EMPTY }, values }),
            None => {
                let state = if fits { self.states.current() } else { FeedbackState::EMPTY };
                Origin::Residual { state, left_out: values }
            }
        }
    }

    /// What an update of `branch` continues from, under a lease whose plan asks for this memory or for none, of a range of the model:
    /// what was left out before, or the memory. Empty: it is 0, or there is nothing of this branch.
    #[must_use]
    pub fn held(&self, branch: BranchId, memory: Option<MemoryMark>, range: Range<usize>) -> &[f32] {
        let fits = self.head.branch == Some(branch) && self.head.memory == memory;
        self.residual.as_deref().filter(|_| fits).and_then(|values| values.get(range)).unwrap_or_default()
    }

    /// Brings back the residual that was taken out.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn restore_residual(&mut self) -> Result<(), StorageError> {
        self.residual = self.load_residual()?;
        Ok(())
    }

    /// Stores an encoded update with the residual that it leaves, or with the memory that it is a difference against, in one
    /// step. `measured` is what the coordinator wants to know of it.
    ///
    /// # Errors
    /// The store fails.
    pub fn bank(
        &mut self,
        key: UpdateKey,
        manifest: &ModelManifest,
        bank: &Bank,
        update: Update,
        measured: Measured,
    ) -> Result<OutboxEntry, StorageError> {
        let Update { payload, codec, left_out, state, memory, sections } = update;
        let Bank { lease, outcome, .. } = bank;
        let (starts, sections) = sections.unzip();
        let transfer = TransferManifest::in_sections(&payload, starts.unwrap_or_default());
        let mut next = self.head.clone();
        if self.manifest.as_ref() != Some(manifest) {
            let bytes =
                schema::encode_numbered(manifest, usize::MAX).map_err(|error| self.corrupt(&error.to_string()))?;
            next.manifest = Some(self.put(&mut next.next_blob, Content::Bytes(&bytes))?);
        }
        let blob = self.put(&mut next.next_blob, Content::Bytes(&payload))?;
        let meta = UpdateMeta {
            key,
            branch: lease.branch,
            lease: lease.id,
            base_version: lease.base_version,
            base_digest: lease.base_digest,
            codec,
            payload_bytes: payload.len() as u64,
            payload_digest: blob.digest,
            num_examples: outcome.num_examples,
            local_steps: outcome.local_steps,
            train_loss: outcome.train_loss,
            compute_ms: outcome.compute_ms,
            base_dot: measured.base_dot,
            residual_ratio: measured.residual_ratio,
            memory: memory.as_ref().map(|memory| memory.mark),
        };
        next.outbox.push(StoredUpdate { meta: meta.clone(), blob: blob.number });
        next.counter = Some((key.epoch, key.seq.next()));
        next.branch = Some(lease.branch);
        match memory {
            Some(memory) => self.keep(next, memory)?,
            None => {
                next.memory = None;
                self.replace(next, left_out, state)?;
            }
        }
        self.manifest = Some(manifest.clone());
        self.fresh.add(key, payload);
        Ok(OutboxEntry { meta, transfer, sections: sections.map(Box::new) })
    }

    /// Takes a decided update out of the outbox; with [`Settlement::Return`] its content joins the residual in the same
    /// step, and with [`Settlement::Remember`] the memory. An update that is not here was settled before.
    ///
    /// # Errors
    /// The store fails.
    pub fn settle(&mut self, key: UpdateKey, content: Settlement) -> Result<(), StorageError> {
        let Some(index) = self.head.outbox.iter().position(|update| update.meta.key == key) else { return Ok(()) };
        let mut next = self.head.clone();
        let update = next.outbox.remove(index);
        let same_branch = self.head.branch == Some(update.meta.branch);
        self.fresh.remove(key);
        let is_compared = update.meta.memory.is_some() && update.meta.memory == self.head.memory;
        match content {
            Settlement::Remember(weight) if same_branch && is_compared => return self.remember(next, &update, weight),
            Settlement::Return if same_branch && self.head.memory.is_none() => {}
            Settlement::Drop | Settlement::Return | Settlement::Remember(_) => return self.replace_head(next),
        }
        let content = self.decode(&update)?;
        // Whether feedback is on is for the next update to say; until then nothing is thrown away.
        let mut feedback = Feedback::restore(1.0, self.residual.take().unwrap_or_default());
        feedback.returned(&content);
        drop(content);
        self.replace(next, Some(feedback.into_left_out()), self.states.fresh())
    }

    /// From now on work belongs to `branch`; the residual of another one is dropped.
    ///
    /// # Errors
    /// The store fails.
    pub fn adopt(&mut self, branch: BranchId) -> Result<(), StorageError> {
        if self.head.branch == Some(branch) {
            return Ok(());
        }
        let mut next = self.head.clone();
        next.branch = Some(branch);
        next.memory = None;
        next.residual = None;
        self.residual = None;
        let dropped = next.residual.is_none();
        self.replace_head(next)?;
        if dropped {
            self.states.set(FeedbackState::EMPTY);
        }
        Ok(())
    }

    /// Reads the payload of an update in the outbox, if it is still there.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn payload(&self, key: UpdateKey) -> Result<Option<Vec<u8>>, StorageError> {
        let update = self.head.outbox.iter().find(|update| update.meta.key == key);
        update.map(|update| self.read_payload(update)).transpose()
    }

    /// Updates in the outbox, oldest first.
    pub fn outbox(&self) -> impl Iterator<Item = &UpdateMeta> {
        self.head.outbox.iter().map(|update| &update.meta)
    }

    /// The branch that the residual belongs to.
    #[must_use]
    pub fn branch(&self) -> Option<BranchId> {
        self.head.branch
    }

    /// What compression has left out so far, if anything; one value a parameter.
    #[must_use]
    pub fn residual(&self) -> Option<&[f32]> {
        self.residual.as_deref().filter(|_| self.head.memory.is_none())
    }

    /// The memory by name, and its values if it is not 0; `None` where the latest update was compared with none.
    #[must_use]
    pub fn memory(&self) -> Option<(MemoryMark, Option<&[f32]>)> {
        self.head.memory.map(|mark| (mark, self.residual.as_deref()))
    }

    /// The payloads that are in memory, for senders.
    #[must_use]
    pub fn fresh(&self) -> Arc<FreshPayloads> {
        Arc::clone(&self.fresh)
    }

    /// The residual by number, for encoders elsewhere.
    #[must_use]
    pub fn states(&self) -> Arc<States> {
        Arc::clone(&self.states)
    }

    /// The memory is the one that was taken out: what is stored of it stays, or is dropped with another one.
    fn keep(&mut self, mut next: Head, Memory { mark, values }: Memory) -> Result<(), StorageError> {
        next.memory = Some(mark);
        if values.is_empty() {
            next.residual = None;
        }
        self.replace_head(next)?;
        self.states.set(self.states.fresh());
        self.residual = Some(values).filter(|values| !values.is_empty());
        Ok(())
    }

    /// The content of `update` was added to the memory there, with this weight, and is added here with the same bits.
    fn remember(&mut self, mut next: Head, update: &StoredUpdate, weight: f32) -> Result<(), StorageError> {
        let content = self.decode(update)?;
        let mut values = self.residual.take().unwrap_or_else(|| vec![0.0; content.len()]);
        content.add_scaled_to(&mut values, weight);
        next.memory = self.head.memory.map(|mark| mark.with(update.meta.payload_digest, weight));
        self.replace(next, Some(values), self.states.fresh())
    }

    fn replace(
        &mut self,
        mut next: Head,
        residual: Option<Vec<f32>>,
        state: FeedbackState,
    ) -> Result<(), StorageError> {
        next.residual = match &residual {
            Some(values) => Some(self.put(&mut next.next_blob, Content::Floats(values))?),
            None => None,
        };
        self.replace_head(next)?;
        self.states.set(if residual.is_some() { state } else { FeedbackState::EMPTY });
        self.residual = residual;
        Ok(())
    }

    fn replace_head(&mut self, next: Head) -> Result<(), StorageError> {
        faults::point("ledger-blobs-written");
        if next.next_blob != self.head.next_blob {
            self.shelf.commit()?;
        }
        faults::point("ledger-before-head");
        let bytes = head::encode(&next).map_err(|detail| self.corrupt(&detail))?;
        self.shelf.insert(HEAD_KEY, &bytes)?;
        faults::point("ledger-in-head");
        self.shelf.commit()?;
        faults::point("ledger-head-synced");
        let before = std::mem::replace(&mut self.head, next);
        for number in before.blobs().difference(&self.head.blobs()) {
            self.shelf.delete(&blob_key(*number))?;
        }
        Ok(())
    }

    fn put(&self, next_blob: &mut u64, content: Content<'_>) -> Result<StoredBlob, StorageError> {
        let number = *next_blob;
        *next_blob += 1;
        let digest = self.shelf.put(&blob_key(number), content)?;
        Ok(StoredBlob { number, digest })
    }

    fn read(&self, blob: StoredBlob, what: &str) -> Result<Vec<u8>, StorageError> {
        let key = blob_key(blob.number);
        let damaged = |how: &str| corrupt(&self.shelf.place(&key), &format!("{what} {how}"));
        let bytes = self.shelf.read(&key)?.ok_or_else(|| damaged("is missing"))?;
        if Digest::of(&bytes) == blob.digest { Ok(bytes) } else { Err(damaged("does not match its digest")) }
    }

    fn read_payload(&self, update: &StoredUpdate) -> Result<Vec<u8>, StorageError> {
        self.read(StoredBlob { number: update.blob, digest: update.meta.payload_digest }, "an update in the outbox")
    }

    fn decode(&self, update: &StoredUpdate) -> Result<Delta, StorageError> {
        let payload = self.read_payload(update)?;
        let unreadable = |error: DecodeError| self.corrupt(&format!("an update in the outbox: {error}"));
        let manifest = self.manifest.as_ref().ok_or_else(|| self.corrupt("the manifest is missing"))?;
        codec::decode(update.meta.codec, manifest, &payload).map_err(unreadable)
    }

    fn load(&mut self) -> Result<(), StorageError> {
        if let Some(blob) = self.head.manifest {
            let bytes = self.read(blob, "the manifest")?;
            let manifest =
                schema::decode_numbered(&bytes, usize::MAX).map_err(|error| self.corrupt(&error.to_string()))?;
            self.manifest = Some(manifest);
        }
        self.residual = self.load_residual()?;
        if self.residual.is_some() {
            self.states.set(self.states.fresh());
        }
        Ok(())
    }

    fn load_residual(&self) -> Result<Option<Vec<f32>>, StorageError> {
        let Some(blob) = self.head.residual else { return Ok(None) };
        let bytes = self.read(blob, "the residual")?;
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        if self.manifest.as_ref().map(ModelManifest::params) != Some(values.len()) {
            return Err(self.corrupt("the residual has another size than the model"));
        }
        Ok(Some(values))
    }

    /// Deletes blobs that the head does not name: a crash came before it could, or before the head was written. Nobody
    /// gets their numbers: until the next sync a power loss could bring them back.
    fn sweep(&mut self) -> Result<(), StorageError> {
        let named = self.head.blobs();
        let mut left_over = BTreeSet::new();
        for key in self.shelf.keys(b"b")? {
            match key.get(1..BLOB_KEY_BYTES).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes) {
                Some(number) if named.contains(&number) => {}
                Some(number) => _ = left_over.insert(number),
                None => self.shelf.remove(&key)?,
            }
        }
        for number in left_over {
            self.shelf.delete(&blob_key(number))?;
            self.head.next_blob = self.head.next_blob.max(number.saturating_add(1));
        }
        Ok(())
    }

    fn corrupt(&self, detail: &str) -> StorageError {
        corrupt(self.shelf.path(), detail)
    }
}

fn corrupt(dir: &Path, detail: &str) -> StorageError {
    StorageError::Corrupt { path: dir.to_path_buf(), detail: detail.to_owned() }
}

fn blob_key(number: u64) -> Vec<u8> {
    [&b"b"[..], &number.to_be_bytes()].concat()
}
