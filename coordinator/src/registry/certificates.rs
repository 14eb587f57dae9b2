//! Members' certificates: with which key a member may connect, who has to renew, and when a rollover of the CA may end.
//!
//! ```text
//!  agents rotate ─► mark, durable ─► the member is asked ─► its new key, durable ─► Sign ─► it connects: the old key is over
//!  ca rotate     ─► Authority(Begin) ─► both CAs are trusted; members are asked ─► they connect with one of the next CA
//!  ca finish     ─► is anybody left? ─► Authority(Finish) ─► the old CA's certificates are over
//! ```

use std::collections::BTreeSet;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;
use anabranch_common::status::{CaInfo, CaMember, CaStatus};
use anabranch_common::wire::message::{Rejection, RenewalKey};
use anabranch_common::wire::operator::OperatorResponse;
use anabranch_io::tls;

use super::roster::{ASKED_SINCE, Certificate, Member};
use super::sign::{AuthorityJob, AuthorityStep, SignerJob};
use super::{Command, Next, Registry, Renewal};
use crate::core::event::{Now, RequestId};
use crate::core::status;

/// A CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority {
    /// The name of its key: [`tls::authority_id`].
    id: Option<Digest>,
    fingerprint: Digest,
    expires_at_ms: u64,
}

/// The CAs that are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authorities {
    current: Authority,
    /// During a rollover.
    next: Option<Authority>,
}

impl Authorities {
    /// Returns what the registry has to know of these CAs; nothing where there is none.
    #[must_use]
    pub fn of(cas: &tls::Authorities) -> Option<Self> {
        let mut authorities = cas.iter().map(|der| {
            let expires_at_s = tls::validity(der).map_or(0, |(_, until_s)| until_s);
            let expires_at_ms = u64::try_from(expires_at_s).unwrap_or(0).saturating_mul(1_000);
            Authority { id: tls::authority_id(der), fingerprint: Digest::of(der), expires_at_ms }
        });
        Some(Self { current: authorities.next()?, next: authorities.next() })
    }

    fn trusts(&self, id: Option<Digest>) -> bool {
        id.is_some() && (id == self.current.id || self.next.is_some_and(|next| id == next.id))
    }

    fn newest(&self) -> &Authority {
        self.next.as_ref().unwrap_or(&self.current)
    }
}

impl From<&Authority> for CaInfo {
    fn from(authority: &Authority) -> Self {
        Self { fingerprint: authority.fingerprint, expires_at_ms: authority.expires_at_ms }
    }
}

impl Registry {
    /// The same with the CAs of the process. Without them, certificates of all CAs count alike.
    #[must_use]
    pub fn with_authorities(self, authorities: Option<Authorities>) -> Self {
        Self { authorities, ..self }
    }

    /// Returns whether a member may connect with this certificate.
    ///
    /// # Errors
    /// Its key was replaced, or its CA.
    pub(super) fn check_certificate(
        &self,
        agent: AgentId,
        member: &Member,
        certificate: &Certificate,
    ) -> Result<(), Rejection> {
        let is_trusted = self.authorities.is_none_or(|authorities| authorities.trusts(certificate.authority));
        if is_trusted && member.may_use(agent, certificate.key) { Ok(()) } else { Err(Rejection::OldCertificate) }
    }

    /// Returns whether a connection with this certificate is the first one with a member's next key, which is to take the
    /// place of the present one.
    #[must_use]
    pub fn switches(&self, agent: AgentId, certificate: &Certificate) -> bool {
        let is_next = |member: &Member| member.next_key == Some(certificate.key);
        self.roster.member(agent).is_some_and(is_next) && self.greet(agent, Some(certificate)).is_ok()
    }

    /// A member has connected with a certificate that it may use. A next key counts, and the key before it does not, from
    /// when that is durable.
    pub(super) fn shown(&mut self, agent: AgentId, certificate: &Certificate) -> Option<Command> {
        let switches = self.switches(agent, certificate);
        let has_changed = self.roster.note_shown(agent, certificate);
        if switches {
            let save = self.save(Next::Switched(agent));
            self.switching.extend(save.is_some().then_some(agent));
            return save;
        }
        // While the disk stalls, one item of each member waits.
        (has_changed && self.showing.insert(agent)).then(|| self.save(Next::Shown(agent)))?
    }

    /// A member's renewed certificate goes to it once it is durable until when it is good.
    pub(super) fn issued(&mut self, agent: AgentId, until_ms: u64, renewal: Renewal) -> Option<Command> {
        // While the disk stalls, one certificate of each member waits.
        if !self.issuing.insert(agent) {
            return None;
        }
        self.roster.note_issued(agent, until_ms);
        let save = self.save(Next::Command(Command::SendRenewed { agent, renewal }));
        if save.is_none() {
            self.issuing.remove(&agent);
        }
        save
    }

    /// Notes who is connected: a member that is renews its certificate over that connection, however old it is.
    pub fn set_connected(&mut self, connected: BTreeSet<AgentId>) {
        self.connected = connected;
    }

    /// Returns whether the certificates of a member that are known have expired.
    fn has_expired(&self, now: Now, agent: AgentId, member: &Member) -> bool {
        let is_over = member.holds_until_ms().is_some_and(|until_ms| until_ms <= now.unix_ms);
        is_over && !self.connected.contains(&agent)
    }

    /// Returns the key for which a member is to renew its certificate now, if it is to.
    #[must_use]
    pub fn renewal_wanted(&self, agent: AgentId, certificate: &Certificate) -> Option<RenewalKey> {
        let member = self.roster.member(agent).filter(|member| !member.revoked)?;
        if certificate.version < ASKED_SINCE {
            return None;
        }
        if member.rotates {
            return Some(RenewalKey::New);
        }
        let next = self.authorities.and_then(|authorities| authorities.next)?;
        (certificate.authority != next.id).then_some(RenewalKey::Same)
    }

    /// `agents rotate`.
    pub(super) fn rotate(&mut self, request: RequestId, agent: Option<&str>) -> Command {
        let refuse = |why: String| Command::Reply { request, response: OperatorResponse::NotFound(why) };
        let agents: Vec<AgentId> = match agent.map(|agent| self.roster.find(agent)).transpose() {
            Err(why) => return refuse(why),
            Ok(Some(agent)) => vec![agent],
            Ok(None) => self.roster.members().map(|(agent, _)| agent).collect(),
        };
        let marked = agents.iter().filter(|agent| self.roster.rotate(**agent)).count();
        let text = match (agent, marked) {
            (Some(agent), 0) => return refuse(format!("{agent} was revoked")),
            (Some(agent), _) => format!("{agent} gets a new key: now if it is connected, else when it comes back"),
            (None, marked) => format!("{marked} agents get new keys: those that are away when they come back"),
        };
        self.save_then(request, Command::AskToRenew { request, response: OperatorResponse::Done(text) })
    }

    /// `ca rotate`.
    pub(super) fn begin_rollover(&self, now: Now, request: RequestId) -> Command {
        match self.authorities {
            Some(Authorities { next: None, .. }) => authority(now, request, AuthorityStep::Begin),
            Some(_) => {
                conflict(request, "a rollover is under way: `ca status` shows it, and `ca finish` ends it".into())
            }
            None => conflict(request, "the CAs of this coordinator are not known".into()),
        }
    }

    /// `ca status`.
    pub(super) fn rollover_status(&self, now: Now) -> OperatorResponse {
        let Some(authorities) = &self.authorities else {
            return OperatorResponse::Failed("the CAs of this coordinator are not known".into());
        };
        let mut waiting = Vec::new();
        if authorities.next.is_some() {
            waiting.extend(self.by_authority(authorities, false).map(|(agent, member)| CaMember {
                agent,
                name: member.name.clone(),
                certificate_expires_at_ms: member.holds_until_ms(),
                expired: self.has_expired(now, agent, member),
            }));
            waiting.sort_by(|a, b| (&a.name, a.agent).cmp(&(&b.name, b.agent)));
        }
        status::json(&CaStatus {
            current: (&authorities.current).into(),
            next: authorities.next.as_ref().map(CaInfo::from),
            moved: self.by_authority(authorities, true).count() as u64,
            waiting,
        })
    }

    /// Returns the members, those that were revoked left out, that have connected with a certificate of the newest CA, or those
    /// that have not.
    fn by_authority(&self, authorities: &Authorities, moved: bool) -> impl Iterator<Item = (AgentId, &Member)> {
        let newest = authorities.newest().id;
        let has_moved = move |member: &Member| member.shown.is_some_and(|shown| shown.authority == newest);
        self.roster.members().filter(move |(_, member)| !member.revoked && has_moved(member) == moved)
    }

    /// Returns why a rollover may not end, if it may not: members whose certificates are still good hold those of the old
    /// CA.
    #[must_use]
    pub fn keeps_from_finishing(&self, now: Now) -> Option<String> {
        let left = self.by_authority(self.authorities.as_ref()?, false);
        let left = left.filter(|(agent, member)| !self.has_expired(now, *agent, member));
        let mut names: Vec<&str> = left.map(|(_, member)| &*member.name).collect();
        names.sort_unstable();
        let shown = names.iter().take(limits::MEMBERS_NAMED).copied().collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(limits::MEMBERS_NAMED);
        let and_more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let count = names.len();
        (count > 0).then(|| {
            format!(
                "{count} members have not connected with a certificate of the next CA: {shown}{and_more}; wait for them, \
                 or end the rollover with --force: they will have to join again"
            )
        })
    }

    /// `ca finish`.
    pub(super) fn finish_rollover(&self, now: Now, request: RequestId, force: bool) -> Command {
        if self.authorities.is_none_or(|authorities| authorities.next.is_none()) {
            return conflict(request, "no rollover is under way; `ca rotate` begins one".into());
        }
        match self.keeps_from_finishing(now) {
            Some(why) if !force => conflict(request, why),
            _ => authority(now, request, AuthorityStep::Finish),
        }
    }

    /// The CAs of the process have changed, or not. Returns the answer to the operator.
    pub(super) fn authority_done(
        &mut self,
        request: RequestId,
        outcome: Result<(AuthorityStep, Authorities), String>,
    ) -> Command {
        match outcome {
            Ok((step, authorities)) => {
                self.authorities = Some(authorities);
                Command::AskToRenew { request, response: OperatorResponse::Done(step.told().to_owned()) }
            }
            Err(why) => Command::Reply { request, response: OperatorResponse::Failed(why) },
        }
    }
}

fn authority(now: Now, request: RequestId, step: AuthorityStep) -> Command {
    Command::Sign(SignerJob::Authority(AuthorityJob { request, step, at_ms: now.unix_ms }))
}

fn conflict(request: RequestId, why: String) -> Command {
    Command::Reply { request, response: OperatorResponse::Conflict(why) }
}
