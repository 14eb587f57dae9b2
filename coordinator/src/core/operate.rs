//! What operators ask for, and agents that were revoked.

use anabranch_common::ids::AgentId;
use anabranch_common::journal::{FinishReason, RecordBody};
use anabranch_common::wire::message::{Rejection, RunPhase};
use anabranch_common::wire::operator::{OperatorResponse, RunRequest};

use super::Core;
use super::command::Command;
use super::event::RequestId;
use super::status::Answer;

impl Core {
    pub(super) fn operate(&mut self, request: RequestId, operation: RunRequest) {
        let answer = match operation {
            RunRequest::Status => Answer::Status(Box::new(self.status())),
            RunRequest::AgentsList => Answer::Agents(self.agents()),
            RunRequest::Pause => self.pause().into(),
            RunRequest::Resume => self.unpause().into(),
            RunRequest::Stop => self.stop().into(),
            RunRequest::CheckpointList | RunRequest::CheckpointVerify | RunRequest::CheckpointExport { .. } => {
                OperatorResponse::Failed("this request is answered from the store".into()).into()
            }
        };
        self.gated(Command::Reply { request, answer });
    }

    /// A member was revoked: nothing of it counts any more.
    pub(super) fn agent_revoked(&mut self, agent: AgentId, request: Option<RequestId>) {
        let known = self.state.as_ref().and_then(|state| state.agents.get(&agent));
        if known.is_some_and(|agent| !agent.revoked) {
            self.append(RecordBody::AgentRevoked { agent });
        }
        self.evaluators.forget(agent);
        if let Some(peer) = self.peers.peer_of(agent) {
            self.reject(peer, Rejection::Revoked);
            self.disconnected(peer);
        }
        self.pods.revoked(agent, self.now.mono_ms);
        if let Some(request) = request {
            self.gated(Command::Revoked { request });
        }
    }

    /// Pauses a run whose store is larger than its quota. It stays paused until an operator resumes it.
    pub(super) fn disk_measured(&mut self, disk_bytes: u64, quota_bytes: u64) {
        let phase = self.phase();
        if disk_bytes <= quota_bytes || !matches!(phase, RunPhase::Running | RunPhase::Paused) {
            self.quota_problem = None;
            return;
        }
        let problem = format!(
            "takes {disk_bytes} bytes of the disk, more than quota.disk_bytes = {quota_bytes}; raise the quota or keep less, \
             start the coordinator again, then `resume`"
        );
        if phase == RunPhase::Running {
            tracing::warn!(run = %self.spec.name, problem, "the run is paused");
            self.append(RecordBody::Paused);
            self.tell_everyone(RunPhase::Paused);
        }
        self.quota_problem = Some(problem);
    }

    /// Why the run gives no leases before `resume`, where that follows from its quota.
    #[must_use]
    pub fn quota_problem(&self) -> Option<&str> {
        self.quota_problem.as_deref()
    }

    fn pause(&mut self) -> OperatorResponse {
        match self.phase() {
            RunPhase::Running => {
                self.append(RecordBody::Paused);
                self.tell_everyone(RunPhase::Paused);
                OperatorResponse::Done("paused; updates under way are still merged (rounds of pods begin anew), `resume` gives leases again".into())
            }
            RunPhase::Paused => OperatorResponse::Done("was paused already".into()),
            RunPhase::Pending => {
                OperatorResponse::Conflict("the run has no model yet, so there is nothing to pause".into())
            }
            RunPhase::Finished => OperatorResponse::Conflict("the run has finished".into()),
        }
    }

    fn unpause(&mut self) -> OperatorResponse {
        match self.phase() {
            RunPhase::Paused => {
                self.append(RecordBody::Resumed);
                self.quota_problem = None;
                self.tell_everyone(RunPhase::Running);
                OperatorResponse::Done("resumed".into())
            }
            RunPhase::Running => OperatorResponse::Done("was running already".into()),
            RunPhase::Pending => OperatorResponse::Conflict("the run has no model yet".into()),
            RunPhase::Finished => OperatorResponse::Conflict("the run has finished".into()),
        }
    }

    fn stop(&mut self) -> OperatorResponse {
        let Some(state) = &self.state else {
            return OperatorResponse::Conflict("the run has no model yet; end the process with SIGTERM instead".into());
        };
        if state.finished.is_some() {
            return OperatorResponse::Done("had finished already".into());
        }
        let version = state.version;
        self.finish(FinishReason::Stopped, version);
        OperatorResponse::Done(format!("stopped at version {version}; get the model with `checkpoint export`"))
    }
}
