//! What a node is told, and what it wants done.

use std::sync::Arc;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::status::UploadStatus;
use anabranch_common::transfer::{Received, Sink};
use anabranch_common::wire::message::CoordinatorMessage;
use anabranch_common::wire::transfer::Missing;

use super::{Done, DownloadId, Job, JobError, PackedModel, PublishedModel};
use crate::core::command::ExitReason;
use crate::core::event::{Event, PeerId, RequestId};
use crate::core::replacement::{ReplaceError, Replaced};
use crate::core::status::Answer;
use crate::core::trial::TrialNews;

/// What can happen to a node.
#[derive(Debug)]
pub enum Input {
    /// What the core hears as it is.
    Event(Event),
    /// A sending of a model has ended.
    Sent {
        /// To whom.
        peer: PeerId,
        /// Which.
        download: DownloadId,
        /// Its bytes, if all of them were sent.
        bytes: Option<u64>,
    },
    /// A chunk was put into a sink.
    Received(Received),
    /// A search has this version measured.
    Measure(Arc<PublishedModel>),
    /// A job has ended.
    Done(Done),
}

/// What a node wants done on a connection.
#[derive(Debug)]
pub enum ToPeer {
    /// Send a control message.
    Send {
        /// On which connection.
        peer: PeerId,
        /// What.
        message: Box<CoordinatorMessage>,
    },
    /// Send chunks of a model, which was announced before. They take the place of what is on its way on this connection.
    /// Answered by [`Input::Sent`].
    SendChunks {
        /// On which connection.
        peer: PeerId,
        /// Comes back in the answer.
        download: DownloadId,
        /// The model.
        model: Arc<PackedModel>,
        /// Which chunks.
        missing: Missing,
    },
    /// Put the chunks of an upload into a sink; each is answered by [`Input::Received`].
    Receive {
        /// On which connection.
        peer: PeerId,
        /// The sink.
        sink: Arc<Sink>,
        /// Whether they are written to disk too.
        on_disk: bool,
    },
    /// Take no more chunks of an upload.
    Forget {
        /// On which connection.
        peer: PeerId,
        /// Its transfer.
        transfer: Digest,
    },
    /// Close a connection once what was sent before has left.
    Close {
        /// Which.
        peer: PeerId,
    },
}

/// What a node wants done.
#[derive(Debug)]
pub enum Output {
    /// On a connection.
    ToPeer(ToPeer),
    /// Run a job beside the loop; answered by [`Input::Done`].
    Run(Job),
    /// Have a new certificate issued for a connected agent.
    Renew {
        /// On which connection.
        peer: PeerId,
        /// Who.
        agent: AgentId,
        /// Its request, in DER.
        csr_der: Vec<u8>,
    },
    /// The record that an agent was revoked is durable, where this run needs one.
    Revoked {
        /// Who waits for it.
        request: RequestId,
    },
    /// Answer an operator.
    Reply {
        /// To whom.
        request: RequestId,
        /// The answer, without the members that this run has not seen.
        answer: Answer,
        /// What is on its way in.
        uploads: UploadStatus,
    },
    /// Answer an import or a rollback.
    Replaced {
        /// To whom.
        request: RequestId,
        /// What has taken the newest model's place, or why nothing has.
        outcome: Result<Replaced, ReplaceError>,
    },
    /// Tell the search that this run is a trial of.
    Trial(TrialNews),
    /// The run is over in this process: nothing is left to do, or a job has failed.
    Exit(Result<ExitReason, JobError>),
}
