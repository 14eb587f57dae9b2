//! Getting to a coordinator that has several addresses: they are tried in turn, and the one that worked is tried first from
//! then on.
//!
//! ```text
//!  first address ──────────────► handshake
//!       2 s later, or when it has failed: second address ──────► handshake       the first one that completes wins
//!                2 s later, or when that has failed: third ...
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anabranch_common::limits;
use anabranch_io::tls::{self, Authorities, ConnectProblem};
use quinn::{ClientConfig, Connection, Endpoint};
use tokio::time::Instant;

use super::DialError;
use super::dial::HANDSHAKE;

/// How long an attempt may go unanswered until the next address is tried beside it.
const TURN: Duration = Duration::from_millis(limits::COORDINATOR_TURN_MS);
/// How long an attempt may take where there are other addresses, while an outage has only begun.
const SHORT: Duration = Duration::from_millis(limits::COORDINATOR_ATTEMPT_MS);
/// How long an outage has only begun.
const BEGINNING: Duration = Duration::from_millis(limits::OUTAGE_MS);

/// The addresses of one coordinator.
#[derive(Debug, Clone)]
pub(super) struct Coordinator {
    addresses: Arc<[String]>,
    /// Which of them is tried first.
    first: Arc<AtomicUsize>,
}

impl Coordinator {
    /// Tries these addresses (`host:port`) in this order.
    pub(super) fn new(addresses: Vec<String>) -> Self {
        Self { addresses: addresses.into(), first: Arc::default() }
    }

    /// The address that worked last, or is tried first.
    pub(super) fn address(&self) -> &str {
        self.addresses.get(self.first.load(Ordering::Relaxed)).map_or("", String::as_str)
    }

    /// Tries this address first, if it is one of them.
    pub(super) fn prefer(&self, address: &str) {
        if let Some(index) = self.addresses.iter().position(|known| known == address) {
            self.first.store(index, Ordering::Relaxed);
        }
    }

    /// Connects to one of the addresses. An attempt that is not the only one takes at most `patience`.
    ///
    /// # Errors
    /// The problem with each address. It is one that may pass where that of any address may.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        config: &ClientConfig,
        patience: Duration,
    ) -> Result<Connection, ConnectProblem> {
        let first = self.first.load(Ordering::Relaxed);
        let others = (0..self.addresses.len()).filter(|index| *index != first);
        let order: Vec<usize> = std::iter::once(first).chain(others).collect();
        let patience = if self.addresses.len() > 1 { patience } else { HANDSHAKE };
        let attempt = |at: usize| {
            let (endpoint, config, addresses) = (endpoint.clone(), config.clone(), Arc::clone(&self.addresses));
            let index = order[at];
            async move {
                let Some(address) = addresses.get(index) else { return Err(no_address()) };
                let connecting = tls::connect(&endpoint, address, config);
                let connected = tokio::time::timeout(patience, connecting).await;
                connected.unwrap_or_else(|_| Err(ConnectProblem::Unreachable(address.clone())))
            }
        };
        match tls::first_connected(order.len(), TURN, attempt).await {
            Ok((at, connection)) => {
                self.first.store(order[at], Ordering::Relaxed);
                Ok(connection)
            }
            Err(problems) => {
                let index = |at: Option<usize>| at.map_or(first, |at| order[at]);
                Err(self.summary(problems.into_iter().map(|(at, problem)| (index(at), problem)).collect()))
            }
        }
    }

    /// Returns what is told of attempts that have all failed, each with its own address.
    fn summary(&self, mut problems: Vec<(usize, ConnectProblem)>) -> ConnectProblem {
        problems.sort_by_key(|(index, _)| *index);
        let passing = problems.iter().find(|(_, problem)| problem.is_transient()).or(problems.first());
        let problem = passing.map_or_else(no_address, |(_, problem)| problem.clone());
        if self.addresses.len() < 2 {
            return problem;
        }
        let outcome = |(index, problem): &(usize, ConnectProblem)| match self.addresses.get(*index) {
            Some(address) => format!("{address}: {problem}"),
            None => problem.to_string(),
        };
        let outcomes = problems.iter().map(outcome).collect::<Vec<_>>().join("; ");
        ConnectProblem::Addresses { problem: Box::new(problem), outcomes }
    }
}

fn no_address() -> ConnectProblem {
    ConnectProblem::BadAddress(String::new())
}

/// Key and certificate with which an agent connects, and the CAs that it trusts.
#[derive(Clone)]
pub struct Credentials {
    /// The CAs.
    pub authorities: Authorities,
    /// The certificate, in DER.
    pub certificate_der: Vec<u8>,
    /// The key, PKCS#8 in DER.
    pub key_der: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("authorities", &self.authorities.len()).finish_non_exhaustive()
    }
}

/// Opens connections to one coordinator with one identity.
#[derive(Debug, Clone)]
pub struct Dialer {
    coordinator: Coordinator,
    config: ClientConfig,
    /// The socket of every connection; without one each has its own.
    shared: Option<Endpoint>,
}

impl Dialer {
    /// For the coordinator at `addresses` (`host:port`), which are tried in this order.
    ///
    /// # Errors
    /// Certificate or key cannot be used.
    pub fn new(addresses: Vec<String>, credentials: &Credentials) -> Result<Self, DialError> {
        let coordinator = Coordinator::new(addresses);
        Ok(Self { coordinator, config: config_of(credentials)?, shared: None })
    }

    /// The same through a socket that others use too: for many agents in one process, since a socket of its own costs each
    /// some megabytes.
    #[must_use]
    pub fn through(mut self, endpoint: Endpoint) -> Self {
        self.shared = Some(endpoint);
        self
    }

    /// The same, with this address tried first, if it is one of the coordinator's.
    #[must_use]
    pub fn preferring(self, address: &str) -> Self {
        self.coordinator.prefer(address);
        self
    }

    /// The same with other credentials.
    ///
    /// # Errors
    /// Certificate or key cannot be used.
    pub fn with_credentials(&self, credentials: &Credentials) -> Result<Self, DialError> {
        Ok(Self { config: config_of(credentials)?, ..self.clone() })
    }

    /// The address that worked last, or is tried first.
    #[must_use]
    pub fn address(&self) -> &str {
        self.coordinator.address()
    }

    /// Connects. `outage` is how long there has been no connection. Returns the connection's socket too, where it has one
    /// of its own.
    pub(super) async fn dial(&self, outage: Duration) -> Result<(Connection, Option<Endpoint>), DialError> {
        let (endpoint, own) = match &self.shared {
            Some(shared) => (shared.clone(), None),
            None => {
                let own = tls::client_endpoint()?;
                (own.clone(), Some(own))
            }
        };
        let patience = if outage < BEGINNING { SHORT } else { HANDSHAKE };
        Ok((self.coordinator.connect(&endpoint, &self.config, patience).await?, own))
    }
}

fn config_of(credentials: &Credentials) -> Result<ClientConfig, DialError> {
    let Credentials { authorities, certificate_der, key_der } = credentials;
    Ok(tls::client(authorities, certificate_der, key_der)?)
}

/// When an outage began, if this is one.
#[derive(Debug, Default)]
pub(super) struct Outage(Option<Instant>);

impl Outage {
    /// A connection is needed. Returns for how long there has been none.
    pub(super) fn lasts(&mut self) -> Duration {
        self.0.get_or_insert_with(Instant::now).elapsed()
    }

    /// There is a connection.
    pub(super) fn over(&mut self) {
        self.0 = None;
    }
}
