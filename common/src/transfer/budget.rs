//! Budgets of bytes, given out in the order in which they were asked for.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::upload::UploadId;
use crate::ids::AgentId;
use crate::limits;

/// How much uploads may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Bytes of payloads, over all agents.
    pub payload_bytes: u64,
    /// Bytes of payloads of one agent; a single larger upload is let in alone.
    pub agent_bytes: u64,
    /// Bytes of decoded content, over all agents; a single larger one is decoded alone.
    pub decoded_bytes: u64,
    /// Uploads that are decoded at the same time.
    pub decoders: usize,
}

impl Budgets {
    /// The budgets of a process that decodes so many uploads at a time.
    #[must_use]
    pub fn with_decoders(decoders: usize) -> Self {
        Self {
            payload_bytes: limits::UPLOADS_IN_FLIGHT_BYTES,
            agent_bytes: limits::UPLOAD_BYTES_PER_AGENT,
            decoded_bytes: limits::DECODED_UPLOADS_BYTES,
            decoders,
        }
    }
}

/// Which budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Payloads,
    Share(AgentId),
    Decoded,
}

/// What was given back and is not free yet.
pub(super) type Returned = Arc<Mutex<Vec<(Of, u64)>>>;

/// A part of a budget. It is given back when this is dropped, on whichever thread.
#[derive(Debug)]
pub(super) struct Hold {
    of: Of,
    bytes: u64,
    returned: Returned,
}

impl Hold {
    pub(super) fn new(of: Of, bytes: u64, returned: &Returned) -> Self {
        Self { of, bytes, returned: Arc::clone(returned) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.returned.lock().push((self.of, self.bytes));
    }
}

/// One budget, and who waits for a part of it.
#[derive(Debug)]
pub(super) struct Budget {
    size: u64,
    held: u64,
    waiting: VecDeque<(UploadId, u64)>,
}

impl Budget {
    pub(super) fn new(size: u64) -> Self {
        Self { size, held: 0, waiting: VecDeque::new() }
    }

    /// What is given to somebody who asks for `bytes`: never more than there is.
    fn part(&self, bytes: u64) -> u64 {
        bytes.min(self.size)
    }

    pub(super) fn free(&self) -> u64 {
        self.size.saturating_sub(self.held)
    }

    /// Whether so many bytes are not free.
    pub(super) fn lacks(&self, bytes: u64) -> bool {
        self.free() < self.part(bytes)
    }

    /// Asks for a part of it; [`next`](Self::next) gives it.
    pub(super) fn ask(&mut self, upload: UploadId, bytes: u64) {
        self.waiting.push_back((upload, self.part(bytes)));
    }

    /// Gives the one that has waited longest its part, if there is enough.
    pub(super) fn next(&mut self) -> Option<(UploadId, u64)> {
        let (_, bytes) = *self.waiting.front()?;
        if self.lacks(bytes) {
            return None;
        }
        self.held += bytes;
        self.waiting.pop_front()
    }

    pub(super) fn give_back(&mut self, bytes: u64) {
        self.held = self.held.saturating_sub(bytes);
    }

    /// Nobody waits here under this name any more.
    pub(super) fn forget(&mut self, upload: UploadId) {
        self.waiting.retain(|(waits, _)| *waits != upload);
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody holds or wants any of it.
    pub(super) fn is_unused(&self) -> bool {
        self.held == 0 && self.waiting.is_empty()
    }
}
