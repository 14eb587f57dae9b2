//! The signer's jobs: certificates for agents that join, and new ones for those that have one.

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::wire::message::{JoinRefusal, JoinResponse};

use crate::core::event::{PeerId, RequestId};
use crate::identity::{Identity, Issued};

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

/// A certificate that was issued, and where it goes.
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
        /// On which connection it was asked for.
        peer: PeerId,
        /// The certificate.
        certificate_der: Vec<u8>,
    },
}

impl SignJob {
    /// Returns whether this renews a certificate for the agent on `peer`.
    #[must_use]
    pub fn renews_for(&self, peer: PeerId) -> bool {
        self.purpose == Purpose::Renewal { peer }
    }

    /// Returns whose certificate it is.
    #[must_use]
    pub fn agent(&self) -> AgentId {
        self.agent
    }

    /// Returns whether this is for an agent that is told to join `run`.
    #[cfg(test)]
    pub(crate) fn joins(&self, run: RunId) -> bool {
        matches!(self.purpose, Purpose::Join { run: named, .. } if named == run)
    }

    /// Issues the certificate for so many days. A renewal that is not possible is logged, and not answered.
    #[must_use]
    pub fn run(self, identity: &Identity, lifetime_days: u32) -> Option<Signed> {
        let Self { purpose, agent, name, csr_der, at_ms } = self;
        let issued = identity.issue_agent(&csr_der, &name, lifetime_days, at_ms);
        match purpose {
            Purpose::Join { request, run } => {
                let response = match issued {
                    Ok(Issued { certificate_der, .. }) => {
                        tracing::info!(%agent, name, "an agent has joined");
                        JoinResponse::Enrolled { run, agent, name, certificate_der, ca_der: identity.ca_der().to_vec() }
                    }
                    Err(_) => JoinResponse::Refused(JoinRefusal::BadRequest),
                };
                Some(Signed::Join { request, response })
            }
            Purpose::Renewal { peer } => match issued {
                Ok(issued) if issued.agent == agent => {
                    Some(Signed::Renewal { peer, certificate_der: issued.certificate_der })
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
