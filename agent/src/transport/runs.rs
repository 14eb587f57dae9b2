//! The stream on which an agent hears which runs there are.

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::runs::{RunsListed, RunsWanted};
use anabranch_io::frames::{self, Format, FrameReader};
use tokio::sync::mpsc;

use super::dial::{self, Control};
use super::uplink::{Session, Uplink};
use super::{SEND, closed};
use crate::session::event::Problem;

/// What is told of the runs that there are.
#[derive(Debug, PartialEq, Eq)]
pub enum RunsEvent {
    /// A list, in place of the one before.
    Listed(RunsListed),
    /// The stream is over, or never came to be. The last thing that is told.
    Lost(Problem),
}

/// The driver's end of such a stream. Dropping it ends the stream.
#[derive(Debug)]
pub struct RunsLink {
    _open: mpsc::Sender<super::Op>,
}

/// Asks after `after` which of the `wanted` runs there are, and tells `events`, with `number` beside them, until the stream
/// ends.
pub fn subscribe(
    uplink: Arc<Uplink>,
    wanted: RunsWanted,
    after: Duration,
    (number, events): (u64, mpsc::Sender<(u64, RunsEvent)>),
) -> RunsLink {
    let (open, mut inbox) = mpsc::channel(limits::WORKER_JOBS);
    tokio::spawn(async move {
        let problem = tokio::select! {
            problem = run(&uplink, &wanted, after, (number, &events)) => problem,
            () = closed(&mut inbox) => Problem::Transient("closed by this agent".to_owned()),
        };
        // When the driver has ended there is nobody to tell.
        let _ = events.send((number, RunsEvent::Lost(problem))).await;
    });
    RunsLink { _open: open }
}

async fn run(
    uplink: &Uplink,
    wanted: &RunsWanted,
    after: Duration,
    (number, events): (u64, &mpsc::Sender<(u64, RunsEvent)>),
) -> Problem {
    tokio::time::sleep(after).await;
    let Session { control: Control { mut send, recv, version }, held } = match uplink.open(Purpose::Runs, None).await {
        Ok(session) => session,
        Err(problem) => return problem,
    };
    let format = |kind| Format { kind, version };
    let asked = frames::send(&mut send, format(FrameKind::RunsWanted), wanted, limits::HELLO_BYTES, SEND).await;
    let mut reader = FrameReader::<RunsListed>::new(recv, format(FrameKind::RunsListed), SEND);
    let problem = match asked {
        Err(error) => dial::of_frame(&error),
        Ok(()) => loop {
            match reader.next().await {
                Ok(Some(list)) => match list.validate() {
                    // When the driver has ended there is nobody to tell.
                    Ok(()) => _ = events.send((number, RunsEvent::Listed(list))).await,
                    Err(error) => break Problem::Transient(format!("a list of runs that cannot be used: {error}")),
                },
                Ok(None) => break Problem::Transient("the coordinator ended the list of runs".to_owned()),
                Err(error) => break dial::of_frame(&error),
            }
        },
    };
    let problem = held.open.ended(problem);
    held.give_back().await;
    problem
}
