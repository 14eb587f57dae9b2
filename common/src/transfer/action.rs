//! What the policy wants done, and what it is answered.

use std::sync::Arc;

use super::budget::Hold;
use super::expected::Expected;
use super::helpers::Helper;
use super::name::UploadName;
use super::sink::Sink;
use super::upload::{Held, UploadId};
use crate::ids::{Digest, PeerId};
use crate::wire::transfer::Missing;

/// Something to do about uploads.
#[derive(Debug)]
pub enum Action {
    /// Put what is on disk of an upload into its sink. Answered by [`opened`](super::Uploads::opened).
    Open {
        /// The sink.
        sink: Arc<Sink>,
        /// Whether its chunks shall be kept on disk. Otherwise what is there goes.
        keep: bool,
    },
    /// Take chunks into a sink, and ask the agent for them. Each is answered by [`received`](super::Uploads::received).
    Receive {
        /// On which connection.
        peer: PeerId,
        /// The sink.
        sink: Arc<Sink>,
        /// Which chunks.
        missing: Missing,
        /// Whether they are written to disk too.
        on_disk: bool,
        /// Chunks that were here before any was asked for.
        kept: usize,
    },
    /// Take chunks into the sink of another agent's upload, and ask this one for them. Each is answered as those of the upload's
    /// agent are.
    Ask {
        /// Who has them.
        helper: Helper,
        /// The sink.
        sink: Arc<Sink>,
        /// Which chunks, counted from the first one of the helper's section.
        missing: Missing,
        /// Whether they are written to disk too.
        on_disk: bool,
    },
    /// No chunks of an upload are awaited on a connection any more.
    Release {
        /// On which connection.
        peer: PeerId,
        /// The upload's transfer.
        transfer: Digest,
    },
    /// An upload is given up: take no more chunks of it.
    Forget {
        /// On which connection.
        peer: PeerId,
        /// Its transfer.
        transfer: Digest,
        /// Why, for people.
        why: &'static str,
    },
    /// Decode an upload. Answered by [`decoded`](super::Uploads::decoded).
    Decode {
        /// Which.
        upload: UploadId,
        /// On which connection it came.
        peer: PeerId,
        /// What it is.
        what: Expected,
        /// It, with nothing missing.
        sink: Arc<Sink>,
        /// Its parts of the budgets, until its content is dropped.
        guard: Guard,
        /// Milliseconds from asking for its chunks to having all of them; none if some of them were here already.
        transfer_ms: Option<u64>,
    },
    /// An upload can never begin.
    Failed {
        /// On which connection it was offered.
        peer: PeerId,
        /// What it is.
        what: Expected,
        /// Why, for people.
        why: String,
    },
    /// Close a connection, whose agent may come back.
    CutOff {
        /// Which.
        peer: PeerId,
        /// Why, for people.
        why: &'static str,
    },
    /// Delete halves.
    Delete(Vec<UploadName>),
}

/// An upload's parts of the budgets, given back when this is dropped.
#[derive(Debug)]
pub struct Guard {
    pub(super) _held: Arc<Held>,
    pub(super) _decoded: Hold,
}

/// What came of looking for an upload's half on disk.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    /// Which.
    pub upload: UploadId,
    /// Whether its chunks are kept on disk from now on.
    pub on_disk: bool,
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Its upload.
    pub upload: UploadId,
    /// Its bytes, if it was missing.
    pub bytes: u64,
    /// Whether nothing is missing now.
    pub is_whole: bool,
    /// Whether it is on disk too, if it belongs there.
    pub is_kept: bool,
}
