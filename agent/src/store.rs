//! What an agent must not lose: the outbox and the error-feedback residual, which change together or not at all.
//!
//! One sled tree, `ledger`:
//!
//! | key | value |
//! |---|---|
//! | `h` | the head: magic, layout version, checksum (BLAKE3, 4 bytes), then (bincode) branch, counter, and the names of all blobs that count |
//! | `b` + number, u64 be (+ chunk) | a blob, in values of at most `STORE_VALUE_BYTES`: an encoded update, the residual (f32 le), or the manifest that both belong to |
//!
//! A change writes new blobs under new numbers, commits, replaces the head, commits, and only then deletes the blobs
//! that the new head no longer names:
//!
//! ```text
//!  blobs ──► commit ──► head ──► commit ──► delete old blobs
//!            (the old head counts)    (the new head counts)
//! ```
//! A crash anywhere leaves the old state or the new one; blobs that no head names are swept when the store is opened.

use std::collections::BTreeSet;
use std::path::Path;

use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::{self, DecodeError, Delta, EncodeError};
use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, RunId, UpdateSeq};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::{UpdateKey, UpdateMeta};
use anabranch_common::wire::message;
use anabranch_common::wire::transfer::TransferManifest;
use anabranch_io::durable::{DbOptions, DurableDb, StorageError, Tree};
use anabranch_io::faults;
use bincode::{Decode, Encode};

use crate::core::command::{Bank, Settlement};
use crate::core::event::{Kept, OutboxEntry};

const HEAD_KEY: &[u8] = b"h";
const HEAD_MAGIC: [u8; 4] = *b"ANBL";
const HEAD_LAYOUT: u16 = 1;
const HEAD_PREFIX_BYTES: usize = 10;
const CACHE_BYTES: u64 = 16 << 20;

/// Why the ledger cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store cannot be used any more. The process must stop.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The delta cannot be encoded: it is not finite, or not of the model's size. Nothing was stored.
    #[error("the delta cannot be sent: {0}")]
    Encode(#[from] EncodeError),
}

#[derive(Debug, Clone, Default, PartialEq, Encode, Decode)]
struct Head {
    branch: Option<BranchId>,
    counter: Option<(Epoch, UpdateSeq)>,
    next_blob: u64,
    manifest: Option<StoredBlob>,
    residual: Option<StoredBlob>,
    outbox: Vec<StoredUpdate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode)]
struct StoredBlob {
    number: u64,
    digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Encode, Decode)]
struct StoredUpdate {
    meta: UpdateMeta,
    blob: u64,
}

impl Head {
    fn blobs(&self) -> BTreeSet<u64> {
        let named = [self.manifest, self.residual].into_iter().flatten().map(|blob| blob.number);
        named.chain(self.outbox.iter().map(|update| update.blob)).collect()
    }
}

/// The agent's store. One process, one directory; driven from one thread.
#[derive(Debug)]
pub struct Ledger {
    db: DurableDb,
    tree: Tree,
    head: Head,
    manifest: Option<ModelManifest>,
    residual: Option<Vec<f32>>,
}

impl Ledger {
    /// Opens the store in `dir`, creating it if it is not there, and sweeps what a crash left over.
    ///
    /// # Errors
    /// Locked by another process, or not readable.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        let db = DurableDb::open(dir, DbOptions { cache_bytes: CACHE_BYTES })?;
        let tree = db.tree("ledger")?;
        let head = match tree.get(HEAD_KEY)? {
            Some(bytes) => decode_head(&bytes).map_err(|detail| corrupt(dir, &detail))?,
            None => Head::default(),
        };
        let mut ledger = Self { db, tree, head, manifest: None, residual: None };
        ledger.sweep()?;
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
            outbox.push(OutboxEntry { meta: update.meta.clone(), transfer: TransferManifest::of(&payload) });
        }
        Ok(Kept { branch: self.head.branch, counter: self.head.counter, outbox })
    }

    /// Encodes `residual + delta`, and stores the payload with the residual that it leaves, in one step.
    ///
    /// # Errors
    /// The delta cannot be encoded (nothing has changed), or the store fails.
    pub fn bank(
        &mut self,
        run: RunId,
        agent: AgentId,
        manifest: &ModelManifest,
        bank: Bank,
    ) -> Result<OutboxEntry, LedgerError> {
        let Bank { lease, epoch, seq, codec, feedback_decay, outcome } = bank;
        let fits = self.head.branch == Some(lease.branch) && self.manifest.as_ref() == Some(manifest);
        let left_out = self.residual.as_deref().filter(|_| fits).unwrap_or_default().to_vec();
        let mut feedback = Feedback::restore(feedback_decay, left_out);
        let encoder = codec::encoder(codec);
        let payload = feedback.encode(&*encoder, manifest, &outcome.delta)?;
        let residual = Some(feedback.left_out().to_vec()).filter(|left_out| !left_out.is_empty());
        let transfer = TransferManifest::of(&payload);
        let meta = UpdateMeta {
            key: UpdateKey { run, agent, epoch, seq },
            branch: lease.branch,
            lease: lease.id,
            base_version: lease.base_version,
            base_digest: lease.base_digest,
            codec: encoder.id(),
            payload_bytes: payload.len() as u64,
            payload_digest: Digest::of(&payload),
            num_examples: outcome.num_examples,
            local_steps: outcome.local_steps,
            train_loss: outcome.train_loss,
            compute_ms: outcome.compute_ms,
        };
        let mut next = self.head.clone();
        if self.manifest.as_ref() != Some(manifest) {
            let bytes = message::encode(manifest, usize::MAX).map_err(|error| self.corrupt(&error.to_string()))?;
            next.manifest = Some(self.put(&mut next.next_blob, &bytes)?);
        }
        let blob = self.put(&mut next.next_blob, &payload)?.number;
        next.outbox.push(StoredUpdate { meta: meta.clone(), blob });
        next.counter = Some((epoch, seq.next()));
        next.branch = Some(lease.branch);
        self.replace(next, residual)?;
        self.manifest = Some(manifest.clone());
        Ok(OutboxEntry { meta, transfer })
    }

    /// Takes a decided update out of the outbox; with [`Settlement::Return`] its content joins the residual in the same
    /// step. An update that is not here was settled before.
    ///
    /// # Errors
    /// The store fails.
    pub fn settle(&mut self, key: UpdateKey, content: Settlement) -> Result<(), StorageError> {
        let Some(index) = self.head.outbox.iter().position(|update| update.meta.key == key) else { return Ok(()) };
        let mut next = self.head.clone();
        let update = next.outbox.remove(index);
        let same_branch = self.head.branch == Some(update.meta.branch);
        if content == Settlement::Drop || !same_branch {
            return self.replace_head(next);
        }
        // Whether feedback is on is for the next update to say; until then nothing is thrown away.
        let mut feedback = Feedback::restore(1.0, self.residual.clone().unwrap_or_default());
        feedback.returned(&self.decode(&update)?);
        self.replace(next, Some(feedback.left_out().to_vec()))
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
        next.residual = None;
        self.replace_head(next)?;
        self.residual = None;
        Ok(())
    }

    /// The payload of an update in the outbox, if it is still there.
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
        self.residual.as_deref()
    }

    fn replace(&mut self, mut next: Head, residual: Option<Vec<f32>>) -> Result<(), StorageError> {
        next.residual = match &residual {
            Some(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Some(self.put(&mut next.next_blob, &bytes)?)
            }
            None => None,
        };
        self.replace_head(next)?;
        self.residual = residual;
        Ok(())
    }

    fn replace_head(&mut self, next: Head) -> Result<(), StorageError> {
        faults::point("ledger-blobs-written");
        if next.next_blob != self.head.next_blob {
            self.db.commit()?;
        }
        faults::point("ledger-before-head");
        let bytes = encode_head(&next).map_err(|detail| self.corrupt(&detail))?;
        self.tree.insert(HEAD_KEY, &bytes)?;
        faults::point("ledger-in-head");
        self.db.commit()?;
        faults::point("ledger-head-synced");
        let before = std::mem::replace(&mut self.head, next);
        for number in before.blobs().difference(&self.head.blobs()) {
            self.tree.delete_chunked(&blob_key(*number))?;
        }
        Ok(())
    }

    fn put(&self, next_blob: &mut u64, bytes: &[u8]) -> Result<StoredBlob, StorageError> {
        let number = *next_blob;
        *next_blob += 1;
        self.tree.put_chunked(&blob_key(number), bytes)?;
        Ok(StoredBlob { number, digest: Digest::of(bytes) })
    }

    fn read(&self, blob: StoredBlob, what: &str) -> Result<Vec<u8>, StorageError> {
        let bytes = self.tree.get_chunked(&blob_key(blob.number))?;
        bytes
            .filter(|bytes| Digest::of(bytes) == blob.digest)
            .ok_or_else(|| self.corrupt(&format!("{what} is missing or does not match its digest")))
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
            let manifest = message::decode(&bytes, usize::MAX).map_err(|error| self.corrupt(&error.to_string()))?;
            self.manifest = Some(manifest);
        }
        if let Some(blob) = self.head.residual {
            let bytes = self.read(blob, "the residual")?;
            let value = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let values: Vec<f32> = bytes.chunks_exact(4).map(value).collect();
            if self.manifest.as_ref().map(ModelManifest::params) != Some(values.len()) {
                return Err(self.corrupt("the residual has another size than the model"));
            }
            self.residual = Some(values);
        }
        Ok(())
    }

    /// Deletes blobs that the head does not name: a crash came before it could, or before the head was written.
    fn sweep(&self) -> Result<(), StorageError> {
        let named = self.head.blobs();
        for entry in self.tree.scan_prefix(b"b") {
            let (key, _) = entry?;
            let number = key.get(1..9).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()).map(u64::from_be_bytes);
            if number.is_none_or(|number| !named.contains(&number)) {
                self.tree.remove(&key)?;
            }
        }
        Ok(())
    }

    fn corrupt(&self, detail: &str) -> StorageError {
        corrupt(self.db.dir(), detail)
    }
}

fn corrupt(dir: &Path, detail: &str) -> StorageError {
    StorageError::Corrupt { path: dir.to_path_buf(), detail: detail.to_owned() }
}

fn blob_key(number: u64) -> Vec<u8> {
    [&b"b"[..], &number.to_be_bytes()].concat()
}

fn encode_head(head: &Head) -> Result<Vec<u8>, String> {
    let body = message::encode(head, limits::STORE_VALUE_BYTES).map_err(|error| error.to_string())?;
    let mut bytes = Vec::with_capacity(HEAD_PREFIX_BYTES + body.len());
    bytes.extend_from_slice(&HEAD_MAGIC);
    bytes.extend_from_slice(&HEAD_LAYOUT.to_le_bytes());
    bytes.extend_from_slice(&head_check(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn decode_head(bytes: &[u8]) -> Result<Head, String> {
    let (prefix, body) = bytes.split_at_checked(HEAD_PREFIX_BYTES).ok_or("the head is cut off")?;
    if prefix[..4] != HEAD_MAGIC {
        return Err("the head does not start with its magic".to_owned());
    }
    let layout = u16::from_le_bytes([prefix[4], prefix[5]]);
    if layout != HEAD_LAYOUT {
        return Err(format!("layout {layout} is not known to this version"));
    }
    if prefix[6..] != head_check(body).to_le_bytes() {
        return Err("the head does not match its checksum".to_owned());
    }
    message::decode(body, limits::STORE_VALUE_BYTES).map_err(|error| error.to_string())
}

/// The first four bytes of BLAKE3 over the body.
fn head_check(body: &[u8]) -> u32 {
    let digest = Digest::of(body).0;
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

#[cfg(test)]
mod tests {
    use anabranch_common::codec::CodecSpec;
    use anabranch_common::ids::{LeaseId, ModelVersion};
    use anabranch_common::journal::Lease;
    use anabranch_common::manifest::TensorSpec;

    use super::*;
    use crate::core::event::Outcome;

    const RUN: RunId = RunId([1; 16]);
    const AGENT: AgentId = AgentId([2; 16]);
    const BRANCH: BranchId = BranchId([3; 16]);
    const PARAMS: usize = 40_000;

    fn manifest() -> ModelManifest {
        let shape = vec![PARAMS as u64];
        ModelManifest::new(vec![TensorSpec { name: "w".into(), shape }]).expect("valid")
    }

    fn delta() -> Vec<f32> {
        (0..PARAMS).map(|i| if i % 3 == 0 { 1.0 } else { 0.001 * (i % 7) as f32 }).collect()
    }

    fn bank(seq: u64, delta: Vec<f32>) -> Bank {
        Bank {
            lease: Lease {
                id: LeaseId(seq),
                agent: AGENT,
                epoch: Epoch(1),
                branch: BRANCH,
                base_version: ModelVersion(0),
                base_digest: Digest::default(),
                seed: 0,
                expires_at_ms: 0,
            },
            epoch: Epoch(1),
            seq: UpdateSeq(seq),
            codec: CodecSpec::TopK { fraction: 0.1 },
            feedback_decay: 1.0,
            outcome: Outcome {
                lease: LeaseId(seq),
                delta,
                num_examples: 1,
                local_steps: 1,
                train_loss: 0.0,
                compute_ms: 1,
            },
        }
    }

    fn key(seq: u64) -> UpdateKey {
        UpdateKey { run: RUN, agent: AGENT, epoch: Epoch(1), seq: UpdateSeq(seq) }
    }

    /// What is left out and what is sent, together: it must never get lost, whatever happens.
    fn sum(ledger: &Ledger) -> f64 {
        let residual: f64 = ledger.residual().unwrap_or_default().iter().map(|value| f64::from(*value)).sum();
        let sent = |update: &StoredUpdate| {
            let delta = ledger.decode(update).expect("decodes");
            delta.values().iter().map(|value| f64::from(*value)).sum::<f64>()
        };
        residual + ledger.head.outbox.iter().map(sent).sum::<f64>()
    }

    fn close_to(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-3 * expected.abs(), "found {found}, expected {expected}");
    }

    fn total(delta: &[f32]) -> f64 {
        delta.iter().map(|value| f64::from(*value)).sum()
    }

    /// Issue of durability: outbox and residual change together, and survive a restart with the counter.
    #[test]
    fn an_update_and_its_residual_survive_a_restart() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let entry = {
            let mut ledger = Ledger::open(dir.path()).expect("opens");
            ledger.adopt(BRANCH).expect("adopts");
            ledger.bank(RUN, AGENT, &manifest(), bank(0, delta())).expect("banks")
        };
        let ledger = Ledger::open(dir.path()).expect("opens again");
        let kept = ledger.kept().expect("reads");
        assert_eq!(kept.outbox, [entry]);
        assert_eq!((kept.branch, kept.counter), (Some(BRANCH), Some((Epoch(1), UpdateSeq(1)))));
        close_to(sum(&ledger), total(&delta()));
        let payload = ledger.payload(key(0)).expect("reads").expect("is there");
        assert_eq!(Digest::of(&payload), kept.outbox[0].meta.payload_digest);
    }

    #[test]
    fn refused_content_returns_to_the_residual_and_accepted_content_goes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = Ledger::open(dir.path()).expect("opens");
        ledger.adopt(BRANCH).expect("adopts");
        ledger.bank(RUN, AGENT, &manifest(), bank(0, delta())).expect("banks");
        ledger.settle(key(0), Settlement::Return).expect("settles");
        close_to(sum(&ledger), total(&delta()));
        assert_eq!(ledger.outbox().count(), 0);
        ledger.settle(key(0), Settlement::Return).expect("a second time changes nothing");
        close_to(sum(&ledger), total(&delta()));

        ledger.bank(RUN, AGENT, &manifest(), bank(1, vec![0.0; PARAMS])).expect("banks");
        let sent = sum(&ledger) - total(ledger.residual().expect("top 10 % leaves something out"));
        assert!(sent > 0.2 * total(&delta()), "what was refused is sent again, found {sent}");
        ledger.settle(key(1), Settlement::Drop).expect("settles");
        close_to(sum(&ledger), total(&delta()) - sent);
        drop(ledger);
        let ledger = Ledger::open(dir.path()).expect("opens again");
        close_to(sum(&ledger), total(&delta()) - sent);
    }

    /// A crash between any two steps of a change: blobs without a head, or old blobs that were not deleted.
    #[test]
    fn what_a_crash_leaves_over_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        {
            let mut ledger = Ledger::open(dir.path()).expect("opens");
            ledger.adopt(BRANCH).expect("adopts");
            ledger.bank(RUN, AGENT, &manifest(), bank(0, delta())).expect("banks");
            let number = ledger.head.next_blob;
            ledger.tree.put_chunked(&blob_key(number), &[7; 300_000]).expect("written");
            ledger.tree.put_chunked(&blob_key(number + 5), b"older").expect("written");
        }
        let mut ledger = Ledger::open(dir.path()).expect("opens again");
        close_to(sum(&ledger), total(&delta()));
        let numbers = ledger.tree.scan_prefix(b"b").map(|entry| {
            let (key, _) = entry.expect("reads");
            u64::from_be_bytes(key[1..9].try_into().expect("eight bytes"))
        });
        assert_eq!(numbers.collect::<BTreeSet<_>>(), ledger.head.blobs());
        ledger.bank(RUN, AGENT, &manifest(), bank(1, delta())).expect("the swept numbers can be used");
        close_to(sum(&ledger), 2.0 * total(&delta()));
    }

    #[test]
    fn another_branch_drops_the_residual_and_keeps_the_outbox() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = Ledger::open(dir.path()).expect("opens");
        ledger.adopt(BRANCH).expect("adopts");
        ledger.bank(RUN, AGENT, &manifest(), bank(0, delta())).expect("banks");
        ledger.adopt(BranchId([9; 16])).expect("adopts");
        assert_eq!((ledger.residual(), ledger.outbox().count()), (None, 1));
        ledger.settle(key(0), Settlement::Return).expect("settles");
        assert_eq!(
            (ledger.residual(), ledger.outbox().count()),
            (None, 0),
            "content of another branch does not return"
        );
    }

    #[test]
    fn a_delta_that_is_not_finite_changes_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = Ledger::open(dir.path()).expect("opens");
        ledger.adopt(BRANCH).expect("adopts");
        let error = ledger.bank(RUN, AGENT, &manifest(), bank(0, vec![f32::NAN; PARAMS]));
        assert!(matches!(error, Err(LedgerError::Encode(EncodeError::NonFinite(0)))), "{error:?}");
        assert_eq!((ledger.residual(), ledger.outbox().count()), (None, 0));
    }

    #[test]
    fn a_damaged_head_is_refused() {
        let good = encode_head(&Head { next_blob: 5, ..Head::default() }).expect("encodes");
        assert_eq!(decode_head(&good).expect("decodes").next_blob, 5);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_head(&bad).is_err(), "flipping bit {bit} went unnoticed");
        }
        assert!((0..good.len()).all(|len| decode_head(&good[..len]).is_err()), "a cut head went unnoticed");
    }
}
