//! What operators and newcomers ask for.

use anabranch_common::ids::AgentId;
use anabranch_common::journal::{FinishReason, RecordBody};
use anabranch_common::wire::message::{JoinRefusal, Rejection, RunPhase};
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse};
use std::collections::BTreeMap;

use super::Core;
use super::command::Command;
use super::event::RequestId;
use crate::identity::tokens::NewToken;

/// Items of the catalogue that are being saved, each with what follows once they are durable.
#[derive(Debug, Default)]
pub(super) struct Saves {
    then: BTreeMap<u64, Command>,
    next_ticket: u64,
}

impl Saves {
    fn begin(&mut self, then: Command) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.then.insert(ticket, then);
        ticket
    }

    /// Returns what follows now that the items of `ticket` are durable.
    pub(super) fn done(&mut self, ticket: u64) -> Option<Command> {
        self.then.remove(&ticket)
    }
}

impl Core {
    pub(super) fn join(&mut self, request: RequestId, secret: &[u8; 32], agent: AgentId) {
        let outcome = self.roster.join(secret, agent, self.now.unix_ms);
        match outcome {
            Err(refusal) => self.gate.pass(Command::Joined { request, outcome: Err(refusal) }),
            Ok(name) => {
                let joined = Command::Joined { request, outcome: Ok((agent, name.clone())) };
                let known = self.state.as_ref().is_some_and(|state| state.agents.contains_key(&agent));
                if self.state.is_some() && !known {
                    self.append(RecordBody::AgentJoined { agent, name });
                }
                let full = Command::Joined { request, outcome: Err(JoinRefusal::Full) };
                self.save_roster(joined, full);
            }
        }
    }

    /// Saves the tokens and members that have changed, then does `after`; `failed` instead when one does not fit an item.
    fn save_roster(&mut self, after: Command, failed: Command) {
        let Ok(items) = self.roster.take_changes() else { return self.gated(failed) };
        let ticket = self.saves.begin(after);
        self.gate.pass(Command::SaveItems { ticket, items });
    }

    pub(super) fn operate(&mut self, request: RequestId, operation: OperatorRequest) {
        let response = match operation {
            OperatorRequest::Status => self.json(&self.status()),
            OperatorRequest::AgentsList => self.json(&self.agents()),
            OperatorRequest::TokenList => self.json(&self.roster.tokens().list()),
            OperatorRequest::Pause => self.pause(),
            OperatorRequest::Resume => self.unpause(),
            OperatorRequest::Stop => self.stop(),
            OperatorRequest::AgentRevoke { agent } => return self.revoke_agent(request, &agent),
            OperatorRequest::TokenCreate { name, ttl_ms, uses, secret_digest } => {
                return self.create_token(request, NewToken { secret_digest, name, ttl_ms, uses });
            }
            OperatorRequest::TokenRevoke { id } => return self.revoke_token(request, &id),
            OperatorRequest::CheckpointList
            | OperatorRequest::CheckpointVerify
            | OperatorRequest::CheckpointExport { .. } => {
                OperatorResponse::Failed("this request is answered from the store".into())
            }
        };
        self.gated(Command::Reply { request, response });
    }

    fn json<T: serde::Serialize>(&self, value: &T) -> OperatorResponse {
        serde_json::to_string(value)
            .map_or_else(|error| OperatorResponse::Failed(error.to_string()), OperatorResponse::Json)
    }

    fn pause(&mut self) -> OperatorResponse {
        match self.phase() {
            RunPhase::Running => {
                self.append(RecordBody::Paused);
                self.tell_everyone(RunPhase::Paused);
                OperatorResponse::Done("paused; work under way is still merged, `resume` gives leases again".into())
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

    fn revoke_agent(&mut self, request: RequestId, who: &str) {
        let agent = match self.roster.revoke(who) {
            Ok(agent) => agent,
            Err(why) => {
                let response = OperatorResponse::NotFound(why);
                return self.gated(Command::Reply { request, response });
            }
        };
        let known = self.state.as_ref().and_then(|state| state.agents.get(&agent));
        if known.is_some_and(|agent| !agent.revoked) {
            self.append(RecordBody::AgentRevoked { agent });
        }
        self.evaluators.forget(agent);
        if let Some(peer) = self.peers.peer_of(agent) {
            self.reject(peer, Rejection::Revoked);
            self.disconnected(peer);
        }
        let name = self.roster.name(agent).unwrap_or_default();
        let done = OperatorResponse::Done(format!("revoked {name} ({agent}); its connections are closed"));
        self.save_and_reply(request, done);
    }

    fn create_token(&mut self, request: RequestId, new: NewToken) {
        match self.roster.create_token(new, self.now.unix_ms) {
            Ok(token) => self.save_and_reply(request, OperatorResponse::Done(token.id)),
            Err(why) => {
                let response = OperatorResponse::Failed(why.to_string());
                self.gated(Command::Reply { request, response });
            }
        }
    }

    fn revoke_token(&mut self, request: RequestId, id: &str) {
        if self.roster.revoke_token(id) {
            self.save_and_reply(request, OperatorResponse::Done(format!("revoked token {id}")));
        } else {
            let response = OperatorResponse::NotFound(format!("no token {id}; see `token list`"));
            self.gated(Command::Reply { request, response });
        }
    }

    fn save_and_reply(&mut self, request: RequestId, response: OperatorResponse) {
        let full = OperatorResponse::Failed("the token or member does not fit an item of the store".into());
        self.save_roster(Command::Reply { request, response }, Command::Reply { request, response: full });
    }
}
