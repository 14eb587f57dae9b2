//! Who may take part in the runs of this process: members, the tokens they join with, and their certificates. A state
//! machine without I/O beside the runs: one event in, at most one command out.
//!
//! ```text
//!  Join ─────────► redeem the token ─► Save ─► Saved ─► Sign          the use of a token is durable before it is answered
//!  JoinAnswered ─► there is room for another join
//!  Renew ────────► pay ─────────────────────────────────► Sign
//!  TokenCreate,
//!  TokenRevoke ──► change ───────────► Save ─► Saved ─► Reply
//!  PageTokenCreate,
//!  PageTokenRevoke ► change ────────► Save ─► Saved ─► Reply, and what is granted to requests of the page
//!  PageTokenUsed ──► note ──────────► Save                            at most one at a time is being saved
//!  AgentRevoke ──► mark ─────────────► Save ─► Saved ─► Revoke        every run is told, then the operator
//!  AgentRotate ──► mark ─────────────► Save ─► Saved ─► AskToRenew    connected members are asked, then the operator
//!  Shown ────────► note ─────────────► Save ─► Saved                  the certificate with which a member has connected
//!                                             └─► CloseReplaced          a next key counts once that is durable
//!  Issued ───────► note ─────────────► Save ─► Saved ─► SendRenewed   until when it is good is durable before it is sent
//!  CaRotate, CaFinish ────────────────────────────────► Sign          the CA's steps; AuthorityDone answers the operator
//! ```
//! While the disk stalls, `limits::JOINS_WAITING` joins and `limits::REGISTRY_CHANGES_WAITING` requests of operators wait;
//! joins do not take the room of operators, who may be revoking the token that is used for them.
//!
//! Members are durable before an agent has a certificate, so a run hears only of agents that are. A revocation counts from
//! when it is durable: until then the agent is still let in, and a crash may undo it. A run that did not hear of it
//! before a crash is told at its start ([`Registry::revoked`]). A refusal of a join that follows from a change waits
//! until this change is durable.
//!
//! | file | what is in it |
//! |---|---|
//! | `roster`, `tokens` | members and tokens, and the items that they are saved as |
//! | `page_tokens` | tokens of the operator's page, and what they grant |
//! | `certificates` | new keys of members, and the way from one CA to the next |
//! | `save`, `sign` | the jobs: items become durable, certificates are issued, the CA changes |

pub mod certificates;
pub mod page_tokens;
pub mod roster;
pub mod save;
mod sign;
#[cfg(test)]
mod tests;
pub mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::limits;
use anabranch_common::status::AgentStatus;
use anabranch_common::wire::message::{JoinRefusal, Rejection};
use anabranch_common::wire::operator::{OperatorResponse, RegistryRequest};

use certificates::Authorities;
use page_tokens::{NewPageToken, PageGrants};
use roster::{Certificate, Roster};
use save::SaveJob;
use sign::Purpose;
pub use sign::{AuthorityStep, Shown, SignJob, Signed, Signer, SignerJob, Stepped};
use tokens::NewToken;

use crate::core::allowance::Allowance;
use crate::core::event::{Now, PeerId, RequestId};
use crate::core::status;
use crate::identity;
use crate::store::StorageError;

/// What can happen to the registry.
#[derive(Debug)]
pub enum Event {
    /// Somebody wants to join.
    Join {
        /// Where the answer goes.
        request: RequestId,
        /// The run that the answer names.
        run: RunId,
        /// The token's secret.
        secret: [u8; 32],
        /// The key that has signed the request.
        agent: AgentId,
        /// The request for a certificate, in DER.
        csr_der: Vec<u8>,
    },
    /// A connected agent asks for a new certificate.
    Renew {
        /// The connection that it came on.
        peer: PeerId,
        /// The agent, by its certificate.
        agent: AgentId,
        /// The request for a certificate, in DER.
        csr_der: Vec<u8>,
    },
    /// An operator asks for something.
    Operator {
        /// Where the answer goes.
        request: RequestId,
        /// The request.
        operation: RegistryRequest,
    },
    /// A member has connected with a certificate that it may use.
    Shown {
        /// The member.
        agent: AgentId,
        /// Its certificate.
        certificate: Certificate,
    },
    /// A member's certificate was issued anew.
    Issued {
        /// The member.
        agent: AgentId,
        /// Unix time in milliseconds at which the certificate expires.
        until_ms: u64,
        /// What goes to the member.
        renewal: Renewal,
    },
    /// A join whose certificate was ordered is answered.
    JoinAnswered,
    /// A page token was used.
    PageTokenUsed {
        /// Its id.
        id: String,
    },
    /// A change of the CA that was ordered has been made, or not.
    AuthorityDone {
        /// Where the answer goes.
        request: RequestId,
        /// What has changed, or why nothing has.
        outcome: Result<(AuthorityStep, Authorities), String>,
    },
    /// Items are durable.
    Saved {
        /// The ticket of their job.
        ticket: u64,
    },
}

/// A renewed certificate on its way to its owner.
#[derive(Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The connection on which it was asked for.
    pub peer: PeerId,
    /// The certificate, in DER.
    pub certificate_der: Vec<u8>,
    /// The CAs to trust from now on, in DER.
    pub ca_ders: Vec<Vec<u8>>,
}

/// What the registry wants done.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Store or delete items of the catalogue; answered by [`Event::Saved`].
    Save(SaveJob),
    /// Issue a certificate and send it to whoever asked, or change the CA.
    Sign(SignerJob),
    /// Close the connection of a join without an answer: its agent tries again.
    DeferJoin {
        /// Where the answer would go.
        request: RequestId,
    },
    /// Tell an agent that it may not join.
    RefuseJoin {
        /// Where the answer goes.
        request: RequestId,
        /// Why not.
        refusal: JoinRefusal,
    },
    /// Tell every run that an agent was revoked, then the operator.
    Revoke {
        /// Where the answer goes.
        request: RequestId,
        /// The revoked agent.
        agent: AgentId,
        /// The answer.
        response: OperatorResponse,
    },
    /// Ask connected members to renew their certificates as far as [`Registry::renewal_wanted`] says so, then tell the
    /// operator.
    AskToRenew {
        /// Where the answer goes.
        request: RequestId,
        /// The answer.
        response: OperatorResponse,
    },
    /// Send a renewed certificate.
    SendRenewed {
        /// The member.
        agent: AgentId,
        /// What goes to it.
        renewal: Renewal,
    },
    /// Close the connections of a member that have shown a key which was replaced.
    CloseReplaced {
        /// The member.
        agent: AgentId,
    },
    /// Answer an operator.
    Reply {
        /// Where the answer goes.
        request: RequestId,
        /// The answer.
        response: OperatorResponse,
    },
}

/// A job of the registry has ended.
#[derive(Debug)]
pub enum Done {
    /// The tickets of items that are durable now.
    Saved(Result<Vec<u64>, StorageError>),
    /// The certificates, as far as they could be issued.
    Signed(Vec<Signed>),
    /// The worker of this name has panicked.
    Panicked(&'static str),
    /// The worker of this name has not taken its job.
    NotTaken(&'static str),
}

/// Members and tokens, and what is being done about them.
#[derive(Debug, Default)]
pub struct Registry {
    roster: Roster,
    /// The CAs of the process, where they are known.
    authorities: Option<Authorities>,
    /// What follows once the items of a ticket are durable.
    saving: BTreeMap<u64, Next>,
    /// Members whose latest certificate is being saved.
    showing: BTreeSet<AgentId>,
    next_ticket: u64,
    /// Members whose next key is being saved as the one that counts.
    switching: BTreeSet<AgentId>,
    /// Members for whom it is being saved until when their renewed certificate is good.
    issuing: BTreeSet<AgentId>,
    /// Members that are connected, as the host has said last.
    connected: BTreeSet<AgentId>,
    /// What page tokens let their owners do, by what is durable.
    grants: Arc<PageGrants>,
    /// Joins that are being saved or signed, and refusals that wait for what they rest on.
    joins_waiting: usize,
    /// New members whose items are being saved.
    joining: BTreeSet<AgentId>,
    /// Members whose next key is being saved.
    rekeying: BTreeSet<AgentId>,
    /// Agents whose revocation is being saved.
    revoking: BTreeSet<AgentId>,
    /// What each agent may still cause in signatures; lives as long as the process.
    allowances: BTreeMap<AgentId, Allowance>,
}

/// What follows once items are durable.
#[derive(Debug)]
enum Next {
    /// This.
    Command(Command),
    /// Nothing: they are about the certificate with which a member has connected.
    Shown(AgentId),
    /// Another key of this member counts.
    Switched(AgentId),
    /// This is what page tokens let their owners do, then the operator is answered.
    Granted(Arc<PageGrants>, Command),
    /// Nothing: they are about the uses of page tokens.
    Noted,
}

impl From<Command> for Next {
    fn from(next: Command) -> Self {
        Self::Command(next)
    }
}

impl Registry {
    /// A registry with what was saved.
    #[must_use]
    pub fn new(roster: Roster) -> Self {
        let grants = Arc::new(roster.page_tokens().grants());
        Self { roster, grants, ..Self::default() }
    }

    /// Handles one event. `now` never goes back in its monotonic part.
    pub fn handle(&mut self, now: Now, event: Event) -> Option<Command> {
        match event {
            Event::Join { request, .. } if self.joins_waiting >= limits::JOINS_WAITING => {
                Some(Command::DeferJoin { request })
            }
            Event::Join { request, run, secret, agent: key, csr_der } => {
                let agent = self.roster.owner(key);
                let (purpose, is_new) = (Purpose::Join { request, run }, self.roster.member(agent).is_none());
                Some(match self.roster.join(&secret, key, now.unix_ms) {
                    Ok(name) => {
                        self.joining.extend(is_new.then_some(agent));
                        let job = SignJob { purpose, agent, name, csr_der, at_ms: now.unix_ms };
                        self.join(request, Command::Sign(SignerJob::Certificate(job)))
                    }
                    Err(refusal) if self.rests_on_unsaved(refusal, agent) => {
                        self.join(request, Command::RefuseJoin { request, refusal })
                    }
                    Err(refusal) => Command::RefuseJoin { request, refusal },
                })
            }
            Event::JoinAnswered => {
                self.joins_waiting = self.joins_waiting.saturating_sub(1);
                None
            }
            Event::Renew { peer, agent, csr_der } => self.renew(now, peer, agent, csr_der),
            Event::Operator { request, operation } => Some(self.operate(now, request, operation)),
            Event::PageTokenUsed { id } => self.page_token_used(now, &id),
            Event::Shown { agent, certificate } => self.shown(agent, &certificate),
            Event::Issued { agent, until_ms, renewal } => self.issued(agent, until_ms, renewal),
            Event::AuthorityDone { request, outcome } => Some(self.authority_done(request, outcome)),
            Event::Saved { ticket } => self.saved(ticket),
        }
    }

    /// What follows once the items of a ticket are durable.
    fn saved(&mut self, ticket: u64) -> Option<Command> {
        match self.saving.remove(&ticket)? {
            Next::Command(next) => {
                match &next {
                    Command::Revoke { agent, .. } => _ = self.revoking.remove(agent),
                    Command::SendRenewed { agent, .. } => _ = self.issuing.remove(agent),
                    Command::Sign(job) => {
                        if let Some(agent) = job.agent() {
                            self.joining.remove(&agent);
                            self.rekeying.remove(&agent);
                        }
                    }
                    Command::RefuseJoin { .. } => self.joins_waiting = self.joins_waiting.saturating_sub(1),
                    _ => {}
                }
                Some(next)
            }
            Next::Switched(agent) => {
                self.switching.remove(&agent);
                Some(Command::CloseReplaced { agent })
            }
            Next::Shown(agent) => {
                self.showing.remove(&agent);
                // What has changed meanwhile waits for this.
                let more = self.roster.has_changes() && self.showing.insert(agent);
                more.then(|| self.save(Next::Shown(agent)))?
            }
            Next::Granted(grants, next) => {
                self.grants = grants;
                Some(next)
            }
            Next::Noted => None,
        }
    }

    /// Returns the name of an agent that says hello over a connection with this certificate; none where there are no
    /// certificates.
    ///
    /// # Errors
    /// It is no member, or was revoked, or its certificate was replaced. `Busy`: its item is not durable yet, so no record
    /// may name it, or the key that it is to be known by.
    pub fn greet(&self, agent: AgentId, certificate: Option<&Certificate>) -> Result<&str, Rejection> {
        let member = self.roster.member(agent).ok_or(Rejection::Unknown)?;
        if self.joining.contains(&agent) || self.switching.contains(&agent) {
            return Err(Rejection::Busy);
        }
        if self.is_revoked(agent) {
            return Err(Rejection::Revoked);
        }
        certificate.map_or(Ok(()), |certificate| self.check_certificate(agent, member, certificate))?;
        Ok(&member.name)
    }

    /// Returns whether an agent's revocation is durable.
    fn is_revoked(&self, agent: AgentId) -> bool {
        self.roster.member(agent).is_some_and(|member| member.revoked) && !self.revoking.contains(&agent)
    }

    /// Members whose revocation is durable.
    pub fn revoked(&self) -> impl Iterator<Item = AgentId> {
        self.roster.members().map(|(agent, _)| agent).filter(|agent| self.is_revoked(*agent))
    }

    /// Returns whether an agent's tokens let it take part in a run.
    #[must_use]
    pub fn may_enter(&self, agent: AgentId, run: RunId) -> bool {
        self.roster.member(agent).is_some_and(|member| member.may_enter(run))
    }

    /// Returns the runs that the token with this secret is for; none where there is no such token, or it is for all runs.
    #[must_use]
    pub fn runs_of(&self, secret: &[u8; 32]) -> Option<&BTreeSet<RunId>> {
        self.roster.tokens().of_secret(secret).map(|token| &token.runs).filter(|runs| !runs.is_empty())
    }

    /// Returns what page tokens let their owners do. Another value follows a change once it is durable.
    #[must_use]
    pub fn page_grants(&self) -> &Arc<PageGrants> {
        &self.grants
    }

    /// Returns how many joins are not answered yet.
    #[must_use]
    pub fn joins_waiting(&self) -> usize {
        self.joins_waiting
    }

    /// Completes what a run knows of agents with their names as members, and with who was revoked.
    pub fn name(&self, agents: &mut [AgentStatus]) {
        for agent in agents {
            if let Some(member) = self.roster.member(agent.agent) {
                agent.name.clone_from(&member.name);
                agent.revoked |= self.is_revoked(agent.agent);
                agent.certificate_expires_at_ms = member.holds_until_ms();
                agent.rotates = member.rotates;
            }
        }
    }

    /// Does what [`name`](Self::name) does, and adds the members that the run has not seen.
    pub fn complete(&self, agents: &mut Vec<AgentStatus>) {
        self.name(agents);
        let known: BTreeSet<AgentId> = agents.iter().map(|agent| agent.agent).collect();
        let unseen = self.roster.members().filter(|(agent, _)| !known.contains(agent));
        let mut unseen: Vec<AgentStatus> = unseen.map(|(agent, _)| status::unseen(agent)).collect();
        self.name(&mut unseen);
        agents.extend(unseen);
        agents.sort_by(|a, b| (&a.name, a.agent).cmp(&(&b.name, b.agent)));
    }

    /// The members and the tokens.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Returns whether a crash could undo what a refusal of a join follows from.
    fn rests_on_unsaved(&self, refusal: JoinRefusal, agent: AgentId) -> bool {
        let joins = || self.saving.values().any(|next| matches!(next, Next::Command(Command::Sign(_))));
        match refusal {
            JoinRefusal::Revoked => self.revoking.contains(&agent) || self.switching.contains(&agent),
            JoinRefusal::UsedToken | JoinRefusal::Full => joins(),
            JoinRefusal::UnknownToken => self.operators_waiting() > 0,
            JoinRefusal::ExpiredToken | JoinRefusal::BadRequest | JoinRefusal::SeveralRuns => false,
        }
    }

    fn join(&mut self, request: RequestId, next: Command) -> Command {
        let full = Command::RefuseJoin { request, refusal: JoinRefusal::Full };
        let command = self.save(Next::Command(next)).unwrap_or(full);
        self.joins_waiting += usize::from(matches!(command, Command::Save(_)));
        command
    }

    /// Returns how many changes of operators are being saved.
    fn operators_waiting(&self) -> usize {
        let of_operators = |next: &&Next| match next {
            Next::Command(Command::Sign(_) | Command::RefuseJoin { .. } | Command::SendRenewed { .. }) => false,
            Next::Shown(_) | Next::Switched(_) | Next::Noted => false,
            Next::Command(_) | Next::Granted(..) => true,
        };
        self.saving.values().filter(of_operators).count()
    }

    fn operate(&mut self, now: Now, request: RequestId, operation: RegistryRequest) -> Command {
        let changes_items = !matches!(
            operation,
            RegistryRequest::TokenList
                | RegistryRequest::PageTokenList
                | RegistryRequest::CaRotate
                | RegistryRequest::CaStatus
                | RegistryRequest::CaFinish { .. }
        );
        if changes_items && self.operators_waiting() >= limits::REGISTRY_CHANGES_WAITING {
            let text = "the disk is slow: too many changes are being saved already; try again later";
            return Command::Reply { request, response: OperatorResponse::Failed(text.into()) };
        }
        let done = |text| OperatorResponse::Done(text);
        let response = match operation {
            RegistryRequest::TokenList => status::json(&self.roster.tokens().list()),
            RegistryRequest::TokenCreate { name, ttl_ms, uses, secret_digest, runs } => {
                // The host has put the id in the place of each name.
                let runs: Result<BTreeSet<RunId>, _> = runs.iter().map(|run| run.parse()).collect();
                let created = runs.map_err(|error| error.to_string()).and_then(|runs| {
                    let new = NewToken { secret_digest, name, ttl_ms, uses, runs };
                    self.roster.create_token(new, now.unix_ms).map_err(|error| error.to_string())
                });
                match created {
                    Ok(token) => return self.save_and_reply(request, done(token.id)),
                    Err(why) => OperatorResponse::Failed(why),
                }
            }
            RegistryRequest::TokenRevoke { id } if self.roster.revoke_token(&id) => {
                return self.save_and_reply(request, done(format!("revoked token {id}")));
            }
            RegistryRequest::TokenRevoke { id } => {
                OperatorResponse::NotFound(format!("no token {id}; see `token list`"))
            }
            RegistryRequest::PageTokenList => status::json(&self.roster.page_tokens().list()),
            RegistryRequest::PageTokenCreate { name, ttl_ms, permission, secret_digest } => {
                let new = NewPageToken { secret_digest, name, permission, ttl_ms };
                match self.roster.create_page_token(new, now.unix_ms) {
                    Ok(id) => return self.save_grants(request, done(id)),
                    Err(why) => OperatorResponse::Failed(why.to_string()),
                }
            }
            RegistryRequest::PageTokenRevoke { id } if self.roster.revoke_page_token(&id) => {
                return self.save_grants(request, done(format!("revoked page token {id}")));
            }
            RegistryRequest::PageTokenRevoke { id } => {
                OperatorResponse::NotFound(format!("no page token {id}; see `page token list`"))
            }
            RegistryRequest::AgentRotate { agent } => return self.rotate(request, agent.as_deref()),
            RegistryRequest::CaRotate => return self.begin_rollover(now, request),
            RegistryRequest::CaStatus => self.rollover_status(now),
            RegistryRequest::CaFinish { force } => return self.finish_rollover(now, request, force),
            RegistryRequest::AgentRevoke { agent } => match self.roster.find(&agent) {
                Ok(agent) => return self.revoke(request, agent),
                Err(why) => OperatorResponse::NotFound(why),
            },
        };
        Command::Reply { request, response }
    }

    fn revoke(&mut self, request: RequestId, agent: AgentId) -> Command {
        let newly = self.roster.revoke(agent);
        if newly {
            self.revoking.insert(agent);
        }
        let name = self.roster.name(agent).unwrap_or_default();
        let text = if newly {
            format!("revoked {name} ({agent}); its connections are closed")
        } else {
            format!("{name} ({agent}) was revoked already")
        };
        let response = OperatorResponse::Done(text);
        self.save_then(request, Command::Revoke { request, agent, response })
    }

    /// A signature costs more than a record. A key that the member has not had before is durable before it is signed for.
    fn renew(&mut self, now: Now, peer: PeerId, agent: AgentId, csr_der: Vec<u8>) -> Option<Command> {
        let member = self.roster.member(agent).filter(|member| !member.revoked)?;
        let (name, rotates, current) = (member.name.clone(), member.rotates, member.current_key(agent));
        if !self.allowances.entry(agent).or_default().take(now) {
            return None;
        }
        let requested = if rotates { identity::requester(&csr_der).ok()? } else { current };
        let purpose = Purpose::Renewal { peer, key: requested };
        let job = SignerJob::Certificate(SignJob { purpose, agent, name, csr_der, at_ms: now.unix_ms });
        if requested == current {
            return Some(Command::Sign(job));
        }
        // While the disk stalls, one key of each member waits.
        if self.rekeying.contains(&agent) {
            return None;
        }
        if !self.roster.set_next_key(agent, requested) {
            tracing::warn!(%agent, "an agent asked for a certificate for a key that has, or had, an owner");
            return None;
        }
        self.rekeying.insert(agent);
        self.save(Next::Command(Command::Sign(job)))
    }

    fn save_and_reply(&mut self, request: RequestId, response: OperatorResponse) -> Command {
        self.save_then(request, Command::Reply { request, response })
    }

    /// Saves changed page tokens; what they grant follows once they are durable.
    fn save_grants(&mut self, request: RequestId, response: OperatorResponse) -> Command {
        let grants = Arc::new(self.roster.page_tokens().grants());
        self.save_then(request, Next::Granted(grants, Command::Reply { request, response }))
    }

    /// Notes a use of a page token. One that comes while another one is being saved is saved with the next change.
    fn page_token_used(&mut self, now: Now, id: &str) -> Option<Command> {
        let is_worth_it = self.roster.use_page_token(id, now.unix_ms);
        let is_noting = || self.saving.values().any(|next| matches!(next, Next::Noted));
        if is_worth_it && !is_noting() { self.save(Next::Noted) } else { None }
    }

    /// Saves what has changed; `next` follows once it is durable. The operator hears where it does not fit an item.
    fn save_then(&mut self, request: RequestId, next: impl Into<Next>) -> Command {
        self.save(next.into()).unwrap_or_else(|| {
            let response = OperatorResponse::Failed("the token or member does not fit an item of the store".into());
            Command::Reply { request, response }
        })
    }

    /// Saves the tokens and members that have changed; `next` follows once they are durable. Returns nothing when one does
    /// not fit an item.
    fn save(&mut self, next: Next) -> Option<Command> {
        let items = self.roster.take_changes().ok()?;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.saving.insert(ticket, next);
        Some(Command::Save(SaveJob { ticket, items }))
    }
}
