//! Key, certificate and CAs of a process, in memory and in its directory: what is asked for, and what is done with the answer.

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::wire::message::RenewalKey;
use anabranch_io::tls::{self, Authorities};

use super::Driver;
use crate::clock::{self, Clock};
use crate::config::AgentDir;
use crate::host::Input;
use crate::identity::{self, AgentKey, IdentityError};
use crate::node;
use crate::session::command::{Renewal, RenewedCertificate};
use crate::session::event::Event;
use crate::transport::Credentials;

/// Why a certificate that the coordinator has sent is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// It cannot be stored, or is none.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It is for something else than what was asked for.
    #[error("it is {0}")]
    Other(&'static str),
}

/// Key, certificate and CAs of a process.
#[derive(Debug)]
pub(super) struct OwnIdentity {
    dir: AgentDir,
    agent: AgentId,
    key: AgentKey,
    /// The key that a renewal was requested for, where it is a new one.
    next_key: Option<AgentKey>,
    /// Whether the coordinator has asked for the renewal that was requested last.
    is_asked: bool,
    credentials: Credentials,
}

impl OwnIdentity {
    /// Reads what there is in `dir`, beside its key.
    ///
    /// # Errors
    /// A file is missing, unreadable or not what it should be.
    pub(super) fn open(dir: &AgentDir, key: AgentKey) -> Result<Self, IdentityError> {
        let certificate_der = identity::own_certificate(dir)?.to_vec();
        let authorities = identity::read_authorities(&dir.ca())?;
        let agent = identity::agent_of(&certificate_der)?;
        let credentials = Credentials { authorities, certificate_der, key_der: key.to_der() };
        Ok(Self { dir: dir.clone(), agent, key, next_key: None, is_asked: false, credentials })
    }

    /// Who this is.
    pub(super) fn agent(&self) -> AgentId {
        self.agent
    }

    /// What is shown and trusted.
    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// When the certificate wants renewal, on this clock, as the wall clock stands now.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub(super) fn renew_at_ms(&self, clock: Clock) -> Result<u64, IdentityError> {
        let validity = identity::validity_ms(&self.credentials.certificate_der)?;
        Ok(clock.now_ms() + identity::renew_at_ms(validity).saturating_sub(clock::unix_ms()))
    }

    /// Makes a request for a renewal, in DER.
    ///
    /// # Errors
    /// There is no new key, or the key cannot sign.
    fn request(&mut self, renewal: Renewal) -> Result<Vec<u8>, IdentityError> {
        self.is_asked = matches!(renewal, Renewal::Asked(_));
        self.next_key = match renewal {
            Renewal::Asked(RenewalKey::New) => Some(AgentKey::read_or_make_next(&self.dir)?),
            Renewal::Asked(RenewalKey::Same) | Renewal::Due => None,
        };
        self.next_key.as_ref().unwrap_or(&self.key).signing_request()
    }

    /// Stores what the coordinator has issued: CAs first, so that whatever counts after a crash is trusted. Returns whether it
    /// is to be shown at once.
    ///
    /// # Errors
    /// It is not what was asked for, or cannot be stored. What is stored counts then.
    fn store(&mut self, renewed: &RenewedCertificate) -> Result<bool, StoreError> {
        let RenewedCertificate { certificate_der, ca_ders } = renewed;
        let peer = tls::parse_peer(certificate_der).map_err(|error| IdentityError::Crypto(error.to_string()))?;
        if peer.agent != self.agent {
            return Err(StoreError::Other("for another agent"));
        }
        let next = self.next_key.take_if(|next| next.id() == peer.key);
        if next.is_none() && peer.key != self.key.id() {
            return Err(StoreError::Other("for another key"));
        }
        if !ca_ders.is_empty() {
            let is_known =
                ca_ders.iter().any(|der| tls::authority_id(der).is_some_and(|id| Some(id) == peer.authority));
            if !is_known || ca_ders.len() > limits::AUTHORITIES {
                return Err(StoreError::Other("from a CA that was not sent along"));
            }
            self.trust(Authorities::new(ca_ders.clone()))?;
        }
        match next {
            Some(next) => {
                identity::replace_pair(&self.dir, certificate_der)?;
                self.credentials.key_der = next.to_der();
                self.key = next;
            }
            None => identity::write_certificate(&self.dir.certificate(), certificate_der)?,
        }
        self.credentials.certificate_der.clone_from(certificate_der);
        Ok(std::mem::take(&mut self.is_asked))
    }

    fn trust(&mut self, authorities: Authorities) -> Result<(), IdentityError> {
        if authorities != self.credentials.authorities {
            identity::write_authorities(&self.dir.ca(), &authorities)?;
            self.credentials.authorities = authorities;
        }
        Ok(())
    }

    /// Forgets the CA that was replaced, once the coordinator shows a certificate of the next one. Returns whether it has.
    ///
    /// # Errors
    /// The file cannot be written.
    fn forget_replaced(&mut self, shown: &[Vec<u8>]) -> Result<bool, IdentityError> {
        let (Some(certificate), Some(ca)) = (shown.first(), shown.last()) else { return Ok(false) };
        let is_next = self.credentials.authorities.iter().skip(1).any(|next| next == ca.as_slice());
        if !is_next || !tls::is_of_authority(certificate, ca) {
            return Ok(false);
        }
        self.trust(Authorities::from(ca)).map(|()| true)
    }
}

impl Driver {
    /// Makes a request for a renewal. One that cannot be made is logged.
    pub(super) fn request_certificate(&mut self, renewal: Renewal) -> Option<Vec<u8>> {
        let made = self.identity.request(renewal);
        made.inspect_err(|error| tracing::warn!(%error, "the certificate cannot be renewed")).ok()
    }

    /// Stores a renewed certificate, and uses it from then on.
    pub(super) fn store_certificate(&mut self, renewed: &RenewedCertificate) -> Option<node::Input> {
        let stored = self.identity.store(renewed);
        let stored = stored.inspect_err(|error| tracing::warn!(%error, "the renewed certificate is not used"));
        let is_shown_at_once = stored.ok()?;
        let renew_at_ms = self.identity.renew_at_ms(self.clock);
        let renew_at_ms = renew_at_ms.inspect_err(|error| tracing::warn!(%error, "the renewed certificate")).ok()?;
        self.use_credentials();
        tracing::info!("the certificate was renewed");
        if is_shown_at_once {
            self.uplink.reconnect("to show the renewed certificate");
        }
        self.renew_at_ms = renew_at_ms;
        Some(node::Input::Event(Event::CertificateStored { renew_at_ms }))
    }

    fn use_credentials(&self) {
        let credentials = self.identity.credentials();
        if let Err(error) = self.uplink.renew(credentials) {
            tracing::warn!(%error, "the renewed certificate cannot be used");
        }
        let Credentials { authorities, certificate_der, key_der } = credentials;
        let replaced =
            self.pod_links.as_ref().map(|links| links.replace_certificate(authorities, certificate_der, key_der));
        if let Some(Err(error)) = replaced {
            tracing::warn!(%error, "the renewed certificate cannot be shown to other members of pods");
        }
    }

    /// A link is open: notes the address that has worked, and the CA that the coordinator shows.
    pub(super) fn note_coordinator(&mut self) {
        let address = self.uplink.address();
        if self.last_address != address {
            self.report.change(|report| report.address.clone_from(&address));
            let (path, text) = (self.dir.last_address(), format!("{address}\n"));
            self.last_address = address;
            tokio::task::spawn_blocking(move || {
                // Without it the next process begins with the first address.
                if let Err(error) = crate::files::write_atomic(&path, text.as_bytes(), crate::files::PUBLIC) {
                    tracing::debug!(%error, "the address that worked cannot be noted");
                }
            });
        }
        if self.identity.credentials().authorities.len() > 1 {
            match self.identity.forget_replaced(&self.uplink.shown()) {
                Ok(true) => {
                    tracing::info!("the coordinator has a new CA; the one before is no longer trusted");
                    self.use_credentials();
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the CA that was replaced is still trusted"),
            }
        }
    }

    /// Compares the wall clock with the life of the certificate: the monotonic clock stands still while a machine sleeps.
    /// Returns what to tell the host where the renewal is due at another time than it was.
    pub(super) fn look_at_certificate(&mut self) -> Option<Input> {
        let renew_at_ms = self.identity.renew_at_ms(self.clock).ok()?;
        if renew_at_ms.abs_diff(self.renew_at_ms) < limits::CERTIFICATE_LOOK_MS {
            return None;
        }
        self.renew_at_ms = renew_at_ms;
        Some(Input::Run {
            run: self.host.renewer(),
            input: node::Input::Event(Event::CertificateStored { renew_at_ms }),
        })
    }
}
