//! Memory budgets for uploads, and where partial ones are kept.
//!
//! ```text
//!  offer ──► budget of payloads ──► chunks ──► budget of decoded content ──► decode ──► Event ──► ... ──► merged or refused
//!            └───────────────────────── both end here, with the content (core::content) ─────────────────────────┘
//! ```
//! Whoever holds decoded content waits for no budget, only for the disk and the merger. So
//! uploads that wait for the second budget get it, and neither budget can be held in a circle.
//!
//! Partially received uploads of more than one chunk are spooled to disk (see
//! [`super::partials`]), or kept in memory if that fails. After a reconnect, a new address or a
//! restart only the missing chunks are sent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;
use anabranch_common::status::UploadStatus;
use anabranch_common::wire::transfer::{Assembly, TransferError, TransferManifest};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::partials::{PartialName, Partials};
use crate::clock;
use crate::core::content::Reservation;

/// Bytes that one permit of the budget stands for.
const PERMIT_BYTES: u64 = 1 << 10;
/// The whole budget of payloads, the share of it that one agent may hold, and the whole budget of
/// decoded content.
const PAYLOAD_PERMITS: u32 = permits(limits::UPLOADS_IN_FLIGHT_BYTES);
const SHARE_PERMITS: u32 = permits(limits::UPLOAD_BYTES_PER_AGENT);
const DECODED_PERMITS: u32 = permits(limits::DECODED_UPLOADS_BYTES);
/// Copies of chunks that one upload may hold beside its buffer: on their way into it, or on their
/// way to disk.
const CHUNKS_BYTES: u64 = limits::CHUNK_STREAMS as u64 * limits::CHUNK_BYTES as u64;
/// How long an upload waits for room. Its agent has given the connection up by then.
const ROOM: Duration = Duration::from_millis(limits::OFFER_TIMEOUT_MS);

/// Permits that stand for so many bytes.
#[expect(clippy::cast_possible_truncation, reason = "no transfer is larger than 4 TiB")]
const fn permits(bytes: u64) -> u32 {
    bytes.div_ceil(PERMIT_BYTES) as u32
}

/// Why an upload cannot begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// It never can.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// Not now.
    #[error("no room for it within {} s", ROOM.as_secs())]
    NoRoom,
}

/// A transfer on its way in, with its share of the budget.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) assembly: Assembly,
    name: PartialName,
    on_disk: bool,
    held: Held,
}

/// What an upload holds of the budget of payloads, and of its agent's share of it.
#[derive(Debug)]
struct Held {
    _share: OwnedSemaphorePermit,
    room: OwnedSemaphorePermit,
}

/// A whole payload, with its part of the budget.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) payload: Arc<[u8]>,
    held: Arc<Held>,
}

impl Received {
    /// What the payload and `decoded` hold of the budgets, until its last clone is dropped.
    pub(super) fn reservation(&self, decoded: OwnedSemaphorePermit) -> Reservation {
        Reservation::of((Arc::clone(&self.held), decoded))
    }
}

impl Upload {
    /// The payload, once nothing is missing. It is copied once: room for decoded content stands
    /// for the copy.
    pub(super) fn finish(self) -> Option<Received> {
        let Self { assembly, mut held, .. } = self;
        let payload: Arc<[u8]> = assembly.finish()?.into();
        // No more chunks are on their way.
        let surplus = held.room.num_permits().saturating_sub(permits(payload.len() as u64) as usize);
        drop(held.room.split(surplus));
        Some(Received { payload, held: Arc::new(held) })
    }

    /// Under which name its chunks are written to disk, if they are.
    pub(super) fn kept_as(&self) -> Option<PartialName> {
        self.on_disk.then_some(self.name)
    }
}

#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    kept: AtomicU64,
    given_up: AtomicU64,
}

/// Somebody waits for room as long as this lives.
struct Waits<'a>(&'a AtomicU64);

impl<'a> Waits<'a> {
    fn new(waiting: &'a AtomicU64) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A half that its agent left in memory, when, and which transfer it is of.
type LeftBehind = (u64, Digest, Upload);

/// What each agent may hold of the budget.
#[derive(Debug, Default)]
struct Shares {
    by_agent: BTreeMap<AgentId, Weak<Semaphore>>,
    /// How many were held when the ones that nobody holds were last dropped.
    held: usize,
}

impl Shares {
    fn of(&mut self, agent: AgentId) -> Arc<Semaphore> {
        if let Some(share) = self.by_agent.get(&agent).and_then(Weak::upgrade) {
            return share;
        }
        // Not at every upload: with a thousand agents that would be a thousand looks for each.
        if self.by_agent.len() >= 2 * self.held.max(32) {
            self.by_agent.retain(|_, share| share.strong_count() > 0);
            self.held = self.by_agent.len();
        }
        let fresh = Arc::new(Semaphore::new(SHARE_PERMITS as usize));
        self.by_agent.insert(agent, Arc::downgrade(&fresh));
        fresh
    }
}

/// Transfers that were left behind, and the budgets for all that are in memory.
#[derive(Debug)]
pub(super) struct Uploads {
    budget: Arc<Semaphore>,
    /// How many wait for room in it.
    waiting: AtomicU64,
    decoded: Arc<Semaphore>,
    /// What each agent may hold of it at once; only of agents that hold or want some.
    shares: Mutex<Shares>,
    left_behind: Mutex<BTreeMap<AgentId, LeftBehind>>,
    partials: Arc<Partials>,
    counters: Counters,
}

impl Uploads {
    /// With `folder` for what shall survive this process.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            budget: Arc::new(Semaphore::new(PAYLOAD_PERMITS as usize)),
            waiting: AtomicU64::new(0),
            decoded: Arc::new(Semaphore::new(DECODED_PERMITS as usize)),
            shares: Mutex::default(),
            left_behind: Mutex::default(),
            partials: Arc::new(Partials::open(folder, clock::unix_ms())),
            counters: Counters::default(),
        }
    }

    /// Takes up a transfer where it was left, or starts it. Waits for room when the budget is used up; the room is
    /// given before anything is allocated.
    pub(super) async fn open(
        &self,
        agent: AgentId,
        name: PartialName,
        manifest: TransferManifest,
    ) -> Result<Upload, OpenError> {
        manifest.validate(limits::UPLOADS_IN_FLIGHT_BYTES)?;
        let chunks = manifest.chunks.len();
        let upload = match self.take(agent, manifest.id()) {
            Some(upload) => upload,
            None => self.start(agent, name, manifest).await?,
        };
        let kept = chunks - upload.assembly.missing().indices(chunks).count();
        if kept > 0 {
            self.counters.kept.fetch_add(kept as u64, Ordering::Relaxed);
            tracing::info!(agent = %agent.short(), kept, missing = chunks - kept, "an upload goes on where it was cut");
        }
        Ok(upload)
    }

    /// Whether somebody waits for room that others hold.
    pub(super) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    async fn start(&self, agent: AgentId, name: PartialName, manifest: TransferManifest) -> Result<Upload, OpenError> {
        let bytes = manifest.bytes;
        let receiving = permits(bytes + bytes.min(CHUNKS_BYTES)).min(PAYLOAD_PERMITS);
        let (share, room) = tokio::time::timeout(ROOM, async {
            let share = self.share(agent, permits(bytes)).await?;
            Some((share, self.room(receiving).await?))
        })
        .await
        .ok()
        .flatten()
        .ok_or(OpenError::NoRoom)?;
        // One chunk is as soon sent as looked for.
        let several = manifest.chunks.len() > 1;
        let mut assembly = Assembly::new(manifest, limits::UPLOADS_IN_FLIGHT_BYTES)?;
        let mut on_disk = false;
        if several {
            let partials = Arc::clone(&self.partials);
            let taken_up = tokio::task::spawn_blocking(move || {
                let on_disk = partials.take_up(name, &mut assembly, clock::unix_ms());
                (on_disk, assembly)
            });
            (on_disk, assembly) = taken_up.await.map_err(|_| OpenError::NoRoom)?;
        }
        Ok(Upload { assembly, name, on_disk, held: Held { _share: share, room } })
    }

    /// The agent's own limit. One transfer always fits, however large; a second one beside it may not.
    async fn share(&self, agent: AgentId, permits: u32) -> Option<OwnedSemaphorePermit> {
        let permits = permits.min(SHARE_PERMITS);
        let share = self.shares.lock().of(agent);
        if share.available_permits() < permits as usize {
            // What it left behind gives way to what it wants now.
            self.left_behind.lock().remove(&agent);
        }
        share.acquire_many_owned(permits).await.ok()
    }

    async fn room(&self, permits: u32) -> Option<OwnedSemaphorePermit> {
        self.make_room(permits);
        let acquiring = Arc::clone(&self.budget).acquire_many_owned(permits);
        if let Ok(room) = Arc::clone(&self.budget).try_acquire_many_owned(permits) {
            return Some(room);
        }
        let _waits = Waits::new(&self.waiting);
        acquiring.await.ok()
    }

    /// Waits for room for the decoded form of a whole upload, of at most so many bytes. A form
    /// that is larger than the budget gets all of it. None when there is no room for too long:
    /// the agent offers the upload again.
    pub(super) async fn room_to_decode(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.decoded).acquire_many_owned(permits(bytes).min(DECODED_PERMITS));
        tokio::time::timeout(ROOM, room).await.ok()?.ok()
    }

    /// A chunk was checked, and is in memory: write it to disk too, if it belongs there.
    pub(super) async fn received(&self, name: Option<PartialName>, offset: u64, chunk: Vec<u8>) {
        self.counters.received.fetch_add(1, Ordering::Relaxed);
        let Some(name) = name else { return };
        let partials = Arc::clone(&self.partials);
        let write = move || partials.write(name, offset, &chunk, clock::unix_ms());
        if let Err(error) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(%error, "a chunk is kept in memory only");
        }
    }

    /// What is half here of `name` is not needed any more.
    pub(super) fn decided(&self, name: PartialName) {
        if self.partials.keeps(name) {
            let partials = Arc::clone(&self.partials);
            tokio::task::spawn_blocking(move || partials.remove(name));
        }
    }

    /// An upload took too long: its share of the budget is free again. What is on disk of it stays.
    pub(super) fn gave_up(&self) {
        self.counters.given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps a transfer for when its agent comes back; in memory, instead of the one it left before, if not on disk.
    pub(super) fn leave(&self, agent: AgentId, upload: Upload) {
        if upload.kept_as().is_none_or(|name| !self.partials.keeps(name)) {
            let id = upload.assembly.manifest().id();
            self.left_behind.lock().insert(agent, (clock::unix_ms(), id, upload));
        }
    }

    /// Drops what nobody came back for.
    pub(super) fn expire(&self) {
        let now_ms = clock::unix_ms();
        self.left_behind
            .lock()
            .retain(|_, (left_ms, ..)| now_ms.saturating_sub(*left_ms) <= limits::PARTIAL_UPLOAD_AGE_MS);
        let partials = Arc::clone(&self.partials);
        tokio::task::spawn_blocking(move || partials.expire(now_ms));
    }

    pub(super) fn status(&self) -> UploadStatus {
        let (on_disk, disk_bytes) = self.partials.totals();
        let in_memory = self.left_behind.lock();
        let memory_bytes: u64 = in_memory.values().map(|(_, _, upload)| upload.assembly.manifest().bytes).sum();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UploadStatus {
            partial: on_disk + in_memory.len() as u64,
            partial_bytes: disk_bytes + memory_bytes,
            chunks_received: count(&self.counters.received),
            chunks_kept: count(&self.counters.kept),
            given_up: count(&self.counters.given_up),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    /// Bytes that are free of each budget.
    #[cfg(test)]
    pub(super) fn free_bytes(&self) -> (u64, u64) {
        let free = |budget: &Semaphore| budget.available_permits() as u64 * PERMIT_BYTES;
        (free(&self.budget), free(&self.decoded))
    }

    fn take(&self, agent: AgentId, id: Digest) -> Option<Upload> {
        let mut left_behind = self.left_behind.lock();
        let (left_ms, left, upload) = left_behind.remove(&agent)?;
        if left == id {
            return Some(upload);
        }
        left_behind.insert(agent, (left_ms, left, upload));
        None
    }

    /// What was left behind gives way to what is coming in.
    fn make_room(&self, permits: u32) {
        let mut left_behind = self.left_behind.lock();
        while self.budget.available_permits() < permits as usize && left_behind.pop_first().is_some() {}
    }
}
