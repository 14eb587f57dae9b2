//! One upload, from its offer until its content is decoded.

use std::collections::VecDeque;
use std::sync::Arc;

use super::budget::Hold;
use super::expected::Expected;
use super::helpers::{Helper, Helping};
use super::name::UploadName;
use super::sink::Sink;
use crate::ids::{AgentId, Digest, PeerId};
use crate::limits;
use crate::wire::transfer::TransferManifest;

/// One upload; never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UploadId(pub u64);

/// What an upload holds of the budget of payloads, and of its agent's share of it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) _share: Hold,
    pub(super) _payload: Hold,
    /// For copies of chunks that are on their way into the buffer, or to disk.
    pub(super) chunks: Option<Hold>,
}

#[derive(Debug)]
pub(super) struct Upload {
    pub(super) peer: PeerId,
    pub(super) agent: AgentId,
    pub(super) transfer: Digest,
    pub(super) manifest: TransferManifest,
    /// Connections that have sections of it, until they are asked.
    pub(super) helpers: Vec<Helper>,
    /// Everything that has this content: two updates of one agent may be equal. The first one is decoded first.
    pub(super) waiting: VecDeque<Expected>,
    pub(super) stage: Stage,
    /// Its connection has ended.
    pub(super) is_gone: bool,
    /// Milliseconds that the line took for it, once it is whole; none if a part of it was here already.
    pub(super) transfer_ms: Option<u64>,
}

/// How far an upload has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// It waits for its turn among the large uploads of its connection.
    Turn,
    /// It waits for room, first in its agent's share.
    Room { since_ms: u64, share: Option<Hold> },
    /// What is here of it on disk is being read.
    Opening { sink: Arc<Sink>, held: Held },
    /// Chunks are awaited.
    Receiving(Receiving),
    /// Nothing is missing. It waits for room for its decoded content.
    Whole { sink: Arc<Sink>, held: Arc<Held>, since_ms: u64 },
    /// It is being decoded.
    Decoding { sink: Arc<Sink>, held: Arc<Held> },
}

#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) sink: Arc<Sink>,
    pub(super) held: Held,
    /// Whether its chunks are written to disk too.
    pub(super) on_disk: bool,
    /// Who was asked for sections of it, beside its agent.
    pub(super) helping: Vec<Helping>,
    /// Whether somebody was.
    pub(super) is_shared: bool,
    /// Looks since it was opened, ...
    looks: u64,
    /// ... and since its latest chunk. Looks are counted, because a process that stands still hears of no chunks.
    silent_looks: u64,
    /// Bytes of the chunks that came since it was opened.
    received_bytes: u64,
    /// When it was opened.
    since_ms: u64,
}

impl Receiving {
    pub(super) fn new(now_ms: u64, sink: Arc<Sink>, held: Held, on_disk: bool) -> Self {
        Self {
            sink,
            held,
            on_disk,
            helping: Vec::new(),
            is_shared: false,
            looks: 0,
            silent_looks: 0,
            received_bytes: 0,
            since_ms: now_ms,
        }
    }

    /// Returns how long its chunks took, if all of them came since it was opened.
    pub(super) fn transfer_ms(&self, now_ms: u64) -> Option<u64> {
        let came_at_once = self.received_bytes >= self.sink.manifest().bytes;
        came_at_once.then(|| now_ms.saturating_sub(self.since_ms))
    }

    pub(super) fn received(&mut self, bytes: u64) {
        self.silent_looks = 0;
        self.received_bytes += bytes;
    }

    /// Another look. Beside the time that everyone has, an upload has to show chunks; and while others wait for room it
    /// has to come at a rate that is worth its share.
    pub(super) fn is_over(&mut self, room_is_short: bool) -> bool {
        self.looks += 1;
        self.silent_looks += 1;
        let (age_ms, silent_ms) = (self.looks * limits::TRANSFER_LOOK_MS, self.silent_looks * limits::TRANSFER_LOOK_MS);
        let earned_ms = self.received_bytes.saturating_mul(1000) / limits::UPLOAD_BUSY_MIN_BYTES_PER_S;
        age_ms > self.sink.manifest().deadline_ms()
            || silent_ms > limits::UPLOAD_STALL_MS
            || (room_is_short && age_ms > limits::UPLOAD_BUSY_GRACE_MS.saturating_add(earned_ms))
    }
}

impl Upload {
    pub(super) fn is_model(&self) -> bool {
        self.waiting.iter().any(Expected::is_model)
    }

    /// Large uploads of a connection come one after another: each with the whole link to itself, and one at a time in the
    /// budget. One chunk is as soon sent as looked for on disk.
    pub(super) fn is_large(&self) -> bool {
        self.manifest.chunks.len() > 1
    }

    /// Under which name its half is kept.
    pub(super) fn name(&self) -> Option<UploadName> {
        self.waiting.front().map(|what| what.name(self.agent))
    }
}
