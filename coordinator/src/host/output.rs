//! What a process wants done.

use anabranch_common::ids::RunId;
use anabranch_common::wire::message::JoinResponse;
use anabranch_common::wire::operator::RunRequest;
use anabranch_common::wire::probe::Facts;
use anabranch_common::wire::runs::RunsListed;

use crate::core::command::ExitReason;
use crate::core::event::{PeerId, RequestId};
use crate::core::replacement::{ReplaceError, Replaced};
use crate::core::status::Answer;
use crate::node::{Job, JobError, ToPeer};
use crate::registry::save::SaveJob;
use crate::registry::{Shown, SignerJob};

use super::runs::RunsJob;
use super::searches::SearchesJob;

/// What a process wants done.
#[derive(Debug)]
pub enum Output {
    /// Something on a connection.
    ToPeer(ToPeer),
    /// Send a list of runs.
    List {
        /// The stream for lists.
        peer: PeerId,
        /// The list.
        list: RunsListed,
    },
    /// Run a job of a run beside the loop; answered by [`Input::Done`](super::Input::Done).
    Run {
        /// The run that the job belongs to.
        run: RunId,
        /// The job.
        job: Job,
    },
    /// Do something to the directory of a run, beside the loop; answered by [`Input::Runs`](super::Input::Runs).
    Runs(RunsJob),
    /// Do something for a search, beside the loop; answered by [`Input::Searches`](super::Input::Searches).
    Searches(SearchesJob),
    /// Close what is open of a run: no node was started for it.
    Close {
        /// The run.
        run: RunId,
    },
    /// Count the bytes that the store of a run takes on the disk; answered by [`Input::Measured`](super::Input::Measured).
    Measure {
        /// The run.
        run: RunId,
    },
    /// Answer from the store of a run that has ended; answered by [`Input::Looked`](super::Input::Looked).
    Look {
        /// The request that is answered.
        request: RequestId,
        /// The run.
        run: RunId,
        /// What is asked.
        what: RunRequest,
    },
    /// Make items of the registry durable: [`save`](crate::registry::save::save); answered by [`Input::Registry`](super::Input::Registry).
    Save(Vec<SaveJob>),
    /// Issue certificates, and change the CA: [`SignerJob::run`]; answered by [`Input::Registry`](super::Input::Registry).
    Sign(Vec<SignerJob>),
    /// Show another certificate to whoever connects from now on, and trust other CAs.
    Show(Box<Shown>),
    /// Answer an operator.
    Reply {
        /// The request that is answered.
        request: RequestId,
        /// The answer.
        answer: Answer,
    },
    /// Answer an import or a rollback.
    Replaced {
        /// The request that is answered.
        request: RequestId,
        /// What has taken the newest model's place, or why nothing has.
        outcome: Result<Replaced, ReplaceError>,
    },
    /// Answer an agent that asks about a run.
    Facts {
        /// The request that is answered.
        request: RequestId,
        /// The answer.
        facts: Facts,
    },
    /// Answer a join.
    JoinReply {
        /// The request that is answered.
        request: RequestId,
        /// The answer.
        response: JoinResponse,
    },
    /// Close the connection of a join without an answer: its agent tries again.
    DeferJoin {
        /// The request of the join.
        request: RequestId,
    },
    /// A run is over in this process.
    Ended {
        /// The run that is over.
        run: RunId,
        /// The reason, or the job that has failed.
        ended: Result<ExitReason, JobError>,
    },
    /// Let the process end: every run is over, or a job of the registry has failed.
    Exit(Result<(), JobError>),
}
