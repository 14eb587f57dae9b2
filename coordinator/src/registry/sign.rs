//! The signer's jobs: certificates for agents that join, new ones for those that have one, and the CA that issues them.

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::wire::message::{JoinRefusal, JoinResponse};
use anabranch_io::tls;

use super::Renewal;
use super::certificates::Authorities;
use crate::core::event::{PeerId, RequestId};
use crate::identity::{Credential, Identity, Issued, Member};

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// An agent joins.
    Join {
        /// Where the answer goes.
        request: RequestId,
        /// The run that it joins.
        run: RunId,
    },
    /// An agent has asked for a new certificate.
    Renewal {
        /// On which connection.
        peer: PeerId,
        /// The key that it is for.
        key: AgentId,
    },
}

/// A certificate to be issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignJob {
    pub(super) purpose: Purpose,
    pub(super) agent: AgentId,
    pub(super) name: String,
    pub(super) csr_der: Vec<u8>,
    pub(super) at_ms: u64,
}

/// A step from one CA to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityStep {
    /// The next CA is made, and both are trusted.
    Begin,
    /// The next CA takes the place of the present one.
    Finish,
}

impl AuthorityStep {
    /// What an operator is told when it is done.
    #[must_use]
    pub fn told(self) -> &'static str {
        match self {
            Self::Begin => {
                "a next CA was made, and both are trusted: agents move to it as they connect; `ca status` shows who has not, \
                 and `ca finish` ends the rollover"
            }
            Self::Finish => {
                "the next CA has taken over; certificates of the old one are no longer accepted. Copy ca.crt, operator.crt \
                 and operator.key to other machines again, and make a backup of tls/"
            }
        }
    }
}

/// A step that an operator has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthorityJob {
    pub(super) request: RequestId,
    pub(super) step: AuthorityStep,
    pub(super) at_ms: u64,
}

/// What the signer does, in the order in which it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignerJob {
    /// Issue a certificate.
    Certificate(SignJob),
    /// Change the CA.
    Authority(AuthorityJob),
}

/// What the server shows, and whom it trusts.
#[derive(Debug)]
pub struct Shown {
    /// The CAs.
    pub authorities: tls::Authorities,
    /// The server's certificate and key.
    pub server: Credential,
    /// Each certificate by the path of its file, with the Unix time in seconds at which it expires.
    pub expiries: Vec<(&'static str, i64)>,
}

/// A step from one CA to the next was taken.
#[derive(Debug)]
pub struct Stepped {
    /// Which.
    pub step: AuthorityStep,
    /// The CAs from now on.
    pub authorities: Authorities,
    /// What the server has to show from now on.
    pub shown: Box<Shown>,
}

/// A certificate that was issued, and where it goes; or what became of a change of the CA.
#[derive(Debug)]
pub enum Signed {
    /// The answer to a join.
    Join {
        /// Where it goes.
        request: RequestId,
        /// The answer.
        response: JoinResponse,
    },
    /// A new certificate.
    Renewal {
        /// Whose it is.
        agent: AgentId,
        /// Unix time in milliseconds at which it expires.
        until_ms: u64,
        /// What goes to its owner.
        renewal: Renewal,
    },
    /// A step from one CA to the next, or why it was not taken.
    Authority {
        /// Where the answer goes.
        request: RequestId,
        /// What has changed.
        outcome: Result<Stepped, String>,
    },
}

/// What the signer issues with.
#[derive(Debug)]
pub struct Signer {
    /// The CAs.
    pub identity: Identity,
    /// Life of an agent's certificate in days.
    pub lifetime_days: u32,
    /// The names for which a server's certificate is good.
    pub names: Vec<String>,
}

impl SignerJob {
    /// Returns whether this renews a certificate for the agent on `peer`.
    #[must_use]
    pub fn renews_for(&self, peer: PeerId) -> bool {
        matches!(self, Self::Certificate(SignJob { purpose: Purpose::Renewal { peer: on, .. }, .. }) if *on == peer)
    }

    /// Returns whose certificate it is, if it is one.
    #[must_use]
    pub fn agent(&self) -> Option<AgentId> {
        match self {
            Self::Certificate(job) => Some(job.agent),
            Self::Authority(_) => None,
        }
    }

    /// Returns whether this is for an agent that is told to join `run`.
    #[cfg(test)]
    pub(crate) fn joins(&self, run: RunId) -> bool {
        matches!(self, Self::Certificate(SignJob { purpose: Purpose::Join { run: named, .. }, .. }) if *named == run)
    }

    /// Does the job. A renewal that is not possible is logged, and not answered.
    #[must_use]
    pub fn run(self, signer: &mut Signer) -> Option<Signed> {
        match self {
            Self::Certificate(job) => job.run(&signer.identity, signer.lifetime_days),
            Self::Authority(AuthorityJob { request, step, at_ms }) => {
                Some(Signed::Authority { request, outcome: signer.take(step, at_ms) })
            }
        }
    }
}

impl Signer {
    fn take(&mut self, step: AuthorityStep, at_ms: u64) -> Result<Stepped, String> {
        let taken = match step {
            AuthorityStep::Begin => self.identity.begin_rollover(&self.names, at_ms),
            AuthorityStep::Finish => self.identity.finish_rollover(),
        };
        taken.map_err(|error| error.to_string())?;
        let authorities = self.identity.authorities();
        let Credential { certificate_der, key_der } = self.identity.server();
        let server = Credential { certificate_der: certificate_der.clone(), key_der: key_der.clone() };
        tracing::info!(?step, "the CA has changed");
        Ok(Stepped {
            step,
            authorities: Authorities::of(&authorities).ok_or("there is no CA")?,
            shown: Box::new(Shown { authorities, server, expiries: self.identity.expiries() }),
        })
    }
}

impl SignJob {
    fn run(self, identity: &Identity, lifetime_days: u32) -> Option<Signed> {
        let Self { purpose, agent, name, csr_der, at_ms } = self;
        let issued = identity.issue_member(Member { agent, name: &name }, &csr_der, lifetime_days, at_ms);
        match purpose {
            Purpose::Join { request, run } => {
                let response = match issued {
                    Ok(Issued { certificate_der, .. }) => {
                        tracing::info!(%agent, name, "an agent has joined");
                        JoinResponse::Enrolled {
                            run,
                            agent,
                            name,
                            certificate_der,
                            ca_der: identity.ca_der().to_vec(),
                            next_ca_der: identity.next_ca_der().map(<[u8]>::to_vec),
                        }
                    }
                    Err(_) => JoinResponse::Refused(JoinRefusal::BadRequest),
                };
                Some(Signed::Join { request, response })
            }
            Purpose::Renewal { peer, key } => match issued {
                Ok(issued) if issued.key == key => {
                    let ca_ders = identity.authorities().iter().map(<[u8]>::to_vec).collect();
                    let certificate_der = issued.certificate_der;
                    let until_s = tls::validity(&certificate_der).map_or(0, |(_, until_s)| until_s);
                    let until_ms = u64::try_from(until_s).unwrap_or(0).saturating_mul(1_000);
                    Some(Signed::Renewal { agent, until_ms, renewal: Renewal { peer, certificate_der, ca_ders } })
                }
                Ok(_) => {
                    tracing::warn!(%agent, "an agent asked for a certificate for another key");
                    None
                }
                Err(error) => {
                    tracing::warn!(%agent, %error, "a certificate was not renewed");
                    None
                }
            },
        }
    }
}
