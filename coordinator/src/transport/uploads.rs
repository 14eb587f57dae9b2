//! Half-received transfers. They outlive the connection that they came over, so that after a reconnect only the missing
//! chunks are sent; each agent may leave one behind, for a while, within one budget of bytes for all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;
use anabranch_common::wire::transfer::{Assembly, TransferError, TransferManifest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit of the budget stands for.
const PERMIT_BYTES: u64 = 1 << 10;

/// A transfer on its way in, with its share of the budget.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) assembly: Assembly,
    _room: OwnedSemaphorePermit,
}

/// Transfers that were left behind, and the budget for all of them.
#[derive(Debug)]
pub(super) struct Uploads {
    budget: Arc<Semaphore>,
    left_behind: Mutex<BTreeMap<AgentId, (Digest, Upload)>>,
}

impl Default for Uploads {
    fn default() -> Self {
        let permits = limits::UPLOADS_IN_FLIGHT_BYTES / PERMIT_BYTES;
        let permits = usize::try_from(permits).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        Self { budget: Arc::new(Semaphore::new(permits)), left_behind: Mutex::default() }
    }
}

impl Uploads {
    /// Takes up a transfer where it was left, or starts it. Waits for room when the budget is used up; the room is
    /// given before anything is allocated.
    pub(super) async fn open(&self, agent: AgentId, manifest: TransferManifest) -> Result<Upload, TransferError> {
        manifest.validate(limits::UPLOADS_IN_FLIGHT_BYTES)?;
        if let Some(upload) = self.take(agent, manifest.id()) {
            return Ok(upload);
        }
        let permits = u32::try_from(manifest.bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        self.make_room(permits);
        let room = Arc::clone(&self.budget).acquire_many_owned(permits).await;
        let too_large = |_| TransferError::TooLarge { found: manifest.bytes, max: limits::UPLOADS_IN_FLIGHT_BYTES };
        let room = room.map_err(too_large)?;
        Ok(Upload { assembly: Assembly::new(manifest, limits::UPLOADS_IN_FLIGHT_BYTES)?, _room: room })
    }

    /// Keeps a transfer for when its agent comes back, instead of the one it left before.
    pub(super) fn leave(&self, agent: AgentId, upload: Upload) {
        let id = upload.assembly.manifest().id();
        self.lock().insert(agent, (id, upload));
    }

    fn take(&self, agent: AgentId, id: Digest) -> Option<Upload> {
        let mut left_behind = self.lock();
        let (left, upload) = left_behind.remove(&agent)?;
        if left == id {
            return Some(upload);
        }
        left_behind.insert(agent, (left, upload));
        None
    }

    /// What was left behind gives way to what is coming in.
    fn make_room(&self, permits: u32) {
        let mut left_behind = self.lock();
        while self.budget.available_permits() < permits as usize && left_behind.pop_first().is_some() {}
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<AgentId, (Digest, Upload)>> {
        self.left_behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
