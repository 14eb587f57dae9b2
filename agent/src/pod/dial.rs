//! Dialing other members, again and again until they know of the attempt or its time is over.

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::pod::{PodAnswer, PodGreeting};
use anabranch_io::frames::{self, FrameIoError};
use anabranch_io::tls::{self, ConnectProblem};
use quinn::{ClientConfig, Endpoint};

use super::desk::Desk;
use super::link::{self, Greeted, code};

const ATTEMPT: Duration = Duration::from_millis(limits::POD_DIAL_MS);
const PAUSE: Duration = Duration::from_millis(limits::POD_DIAL_RETRY_MS);

/// A member that is to be dialed.
pub(super) struct Dial {
    pub(super) endpoint: Endpoint,
    /// Trusts that member alone.
    pub(super) config: ClientConfig,
    pub(super) run: RunId,
    pub(super) agent: AgentId,
    /// `host:port`.
    pub(super) address: String,
}

/// Why a member was not reached.
#[derive(Debug)]
enum DialProblem {
    /// Trying again can help.
    Transient(String),
    /// It cannot.
    Final(String),
}

impl Dial {
    /// Dials until there is a link, or trying again cannot help. The desk is told of both.
    pub(super) async fn run(self, desk: Arc<Desk>) {
        while desk.awaits(self.agent) {
            match self.once(&desk).await {
                Ok(greeted) => return link::start(&desk, self.agent, greeted),
                Err(DialProblem::Final(problem)) => return desk.fail(self.agent, &problem),
                Err(DialProblem::Transient(problem)) => desk.note(self.agent, problem),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn once(&self, desk: &Desk) -> Result<Greeted, DialProblem> {
        let attempt = tokio::time::timeout(ATTEMPT, self.greet(desk)).await;
        attempt.unwrap_or_else(|_| Err(DialProblem::Transient(format!("no answer from {}", self.address))))
    }

    async fn greet(&self, desk: &Desk) -> Result<Greeted, DialProblem> {
        let connecting = tls::connect(&self.endpoint, &self.address, self.config.clone());
        let connection = connecting.await.map_err(|problem| of_connect(&problem))?;
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| of_connect(&tls::explain(&error)))?;
        let greeting = PodGreeting::new(self.run, desk.terms.mark);
        let (kind, most) = (FrameKind::PodGreeting, limits::POD_GREETING_BYTES);
        frames::send(&mut send, kind, &greeting, most, ATTEMPT).await.map_err(of_frame)?;
        let answer = frames::recv_one(&mut recv, FrameKind::PodAnswer, most, ATTEMPT).await.map_err(of_frame)?;
        let problem = match answer {
            PodAnswer::Ready { version } if (greeting.min..=greeting.max).contains(&version) => {
                return Ok(Greeted { connection, send, recv, version });
            }
            PodAnswer::Ready { version } => {
                DialProblem::Final(format!("answers with version {version} of the protocol, which was not offered"))
            }
            PodAnswer::NotYet => DialProblem::Transient("it does not know of this attempt".to_owned()),
            PodAnswer::Refused(why) => DialProblem::Final(format!("refuses the link: {why}")),
        };
        connection.close(code::ANSWERED.into(), b"");
        Err(problem)
    }
}

fn of_connect(problem: &ConnectProblem) -> DialProblem {
    match problem {
        problem if problem.is_transient() => DialProblem::Transient(problem.to_string()),
        problem => DialProblem::Final(problem.to_string()),
    }
}

fn of_frame(error: FrameIoError) -> DialProblem {
    match error {
        FrameIoError::Connection(problem) => of_connect(&problem),
        error if error.is_protocol_violation() => DialProblem::Final(format!("does not keep to the protocol: {error}")),
        error => DialProblem::Transient(error.to_string()),
    }
}
