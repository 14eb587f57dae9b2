//! Snapshots of the process for those who watch it, about once a second, and the HTTP server that shows them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_common::limits;
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::tls;
use anabranch_io::web::{Bounds, Hosts, Server, WebError};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::Driver;
use crate::clock;
use crate::config::Config;
use crate::host::{Health, Host};
use crate::identity::Identity;
use crate::node::JobError;
use crate::registry::Shown;
use crate::registry::page_tokens::PageGrants;
use crate::tensorboard;
use crate::transport::Shared;
use crate::web::{Certificate, Events, ServedPage, Snapshot, Viewing, router, serve_page};

/// How a process can be watched.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    /// Where figures and health are served over HTTP, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Where the operator's page is served, if anywhere: over HTTP at an address of the loopback interface, else over HTTPS.
    pub page: Option<SocketAddr>,
    /// Where TensorBoard's files are written, if anywhere.
    pub tensorboard: Option<PathBuf>,
}

/// Publishes snapshots until it is dropped.
#[derive(Debug)]
pub(super) struct Publisher {
    out: watch::Sender<Arc<Snapshot>>,
    /// What page tokens let their owners do.
    grants: watch::Sender<Arc<PageGrants>>,
    shared: Arc<Shared>,
    /// What the page shows of certificates, where it is served over TLS.
    tls: Option<watch::Sender<Arc<rustls::ServerConfig>>>,
    /// When the next one is due.
    due: Instant,
    events: Arc<Events>,
    /// They end with it.
    _tasks: JoinSet<()>,
    /// It ends when it has written the last snapshot.
    curves: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Publishes for those who are to watch, if anybody is: clients over HTTP at an address, and TensorBoard's files below a
    /// folder. Until the first snapshot, the process is seen to be starting. Call inside a tokio runtime.
    ///
    /// # Errors
    /// The port is taken, the address is not this machine's, or the certificate cannot be used.
    pub(super) fn start(
        WatchOptions { metrics, page, tensorboard }: WatchOptions,
        config: &Config,
        identity: &Identity,
        (shared, grants): (Arc<Shared>, Arc<PageGrants>),
    ) -> Result<Option<Self>, Fail> {
        if metrics.is_none() && page.is_none() && tensorboard.is_none() {
            return Ok(None);
        }
        let (out, snapshots) = watch::channel(Arc::new(Snapshot::starting(certificates(&identity.expiries()))));
        let events = Arc::new(Events::default());
        let grants = watch::Sender::new(grants);
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&events).sum_up());
        if let Some(address) = metrics {
            let server = Server::bind(address, Bounds::default()).map_err(web_fail)?;
            let address = server.address();
            if !address.ip().is_loopback() {
                tracing::warn!(%address, "the figures are not encrypted: any client that reaches this address reads them");
            }
            tracing::info!(%address, "serving metrics");
            let hosts = Hosts::new(address, config.server.names.iter().cloned());
            tasks.spawn(server.serve(router(snapshots.clone(), Arc::clone(&events), hosts)));
        }
        let mut tls = None;
        if let Some(address) = page {
            let (server, viewing, configs) = page_server(address, identity)?;
            tls = configs;
            let hosts = Hosts::new(server.address(), config.server.names.iter().cloned());
            let (snapshots, grants) = (snapshots.clone(), grants.subscribe());
            let page = ServedPage { hosts, viewing, snapshots, grants, shared: Arc::clone(&shared) };
            tasks.spawn(serve_page(server, page));
        }
        let curves = tensorboard.map(|folder| tokio::spawn(tensorboard::write(folder, snapshots)));
        Ok(Some(Self { out, grants, shared, tls, due: clock::monotonic(), events, _tasks: tasks, curves }))
    }

    /// Where what happens is noted.
    pub(super) fn events(&self) -> Arc<Events> {
        Arc::clone(&self.events)
    }

    /// Publishes what page tokens let their owners do, where that has changed.
    fn grant(&self, grants: &Arc<PageGrants>) {
        self.grants.send_if_modified(|published| {
            let has_changed = !Arc::ptr_eq(published, grants);
            if has_changed {
                published.clone_from(grants);
            }
            has_changed
        });
    }

    /// Has later snapshots name these certificates, and the page show the server's to whoever connects from now on.
    pub(super) fn show_certificates(&self, Shown { authorities, server, expiries }: &Shown) {
        // The first CA is the one that has issued the server's certificate.
        if let (Some(tls), Some(ca)) = (&self.tls, authorities.iter().next()) {
            match tls::web_server(ca, &server.certificate_der, &server.key_der) {
                Ok(config) => _ = tls.send_replace(config),
                Err(error) => tracing::error!(%error, "the page cannot show the new certificate; start `run` again"),
            }
        }
        self.out.send_modify(|snapshot| {
            let mut changed = Snapshot::clone(snapshot);
            changed.certificates = certificates(expiries);
            *snapshot = Arc::new(changed);
        });
    }

    /// Publishes what the process does and knows now.
    fn publish(&mut self, host: &Host) {
        let taken = clock::monotonic();
        let before = Arc::clone(&self.out.borrow());
        let snapshot = Snapshot {
            taken,
            at_ms: clock::unix_ms(),
            view: host.view(),
            network: self.shared.network(),
            waiting: self.shared.waiting(),
            started_at_ms: before.started_at_ms,
            certificates: before.certificates.clone(),
        };
        self.out.send_replace(Arc::new(snapshot));
        let now = clock::monotonic();
        self.due = now + rest(now.saturating_duration_since(taken));
    }

    /// Publishes the last snapshot, and waits until it is written.
    async fn finish(self, health: Health) {
        self.out.send_modify(|snapshot| {
            let mut last = Snapshot::clone(snapshot);
            last.view.health = health;
            *snapshot = Arc::new(last);
        });
        drop(self.out);
        if let Some(curves) = self.curves {
            // A disk that takes longer loses the last few figures.
            tokio::time::timeout(Duration::from_millis(limits::EXIT_MS), curves).await.ok();
        }
    }
}

fn certificates(expiries: &[(&'static str, i64)]) -> Vec<Certificate> {
    expiries.iter().map(|(name, expires_at_s)| Certificate { name, expires_at_s: *expires_at_s }).collect()
}

/// Returns how long the loop rests from snapshots after one that has taken so long.
fn rest(took: Duration) -> Duration {
    let (least, most) = limits::SNAPSHOT_MS;
    (took * limits::SNAPSHOT_REST).clamp(Duration::from_millis(least), Duration::from_millis(most))
}

/// Waits until a snapshot is due; for ever where nobody watches.
pub(super) async fn due(publisher: Option<&Publisher>) {
    match publisher {
        Some(publisher) => tokio::time::sleep_until(publisher.due.into()).await,
        None => std::future::pending().await,
    }
}

/// The server of the page, who sees it, and where its later certificates are sent if it speaks TLS.
type PageServer = (Server, Viewing, Option<watch::Sender<Arc<rustls::ServerConfig>>>);

/// Listens for clients of the page: over TLS, and for owners of tokens alone, where other machines reach the address.
fn page_server(address: SocketAddr, identity: &Identity) -> Result<PageServer, Fail> {
    let bounds = Bounds { answer: Duration::from_millis(limits::JOURNAL_REQUEST_MS), ..Bounds::default() };
    let server = Server::bind(address, bounds).map_err(page_fail)?;
    let address = server.address();
    if address.ip().is_loopback() {
        tracing::info!("the page is at http://{address}/");
        return Ok((server, Viewing::Open, None));
    }
    let own = identity.server();
    let tls = tls::web_server(identity.ca_der(), &own.certificate_der, &own.key_der)
        .map_err(|error| Fail::new(ExitCode::Config, format!("the page cannot be served over TLS: {error}")))?;
    tracing::info!("the page is at https://{address}/, for owners of tokens");
    let (newer, configs) = watch::channel(tls);
    Ok((server.with_tls(configs), Viewing::WithToken, Some(newer)))
}

fn page_fail(WebError { address, source }: WebError) -> Fail {
    let help = "give --page a port that is free";
    Fail::new(ExitCode::Address, format!("the page cannot be served at {address}: {source}")).help(help)
}

fn web_fail(error: WebError) -> Fail {
    let help = "give --metrics a port that is free, or an address of this machine with one";
    Fail::new(ExitCode::Address, error.to_string()).help(help)
}

impl Driver {
    /// Publishes what the process does and knows now, if anybody watches.
    pub(super) fn publish(&mut self) {
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(&self.host);
        }
    }

    /// Publishes what page tokens let their owners do, if anybody watches: before any answer that follows from it.
    pub(super) fn publish_grants(&self) {
        if let Some(publisher) = &self.publisher {
            publisher.grant(self.host.registry().page_grants());
        }
    }

    /// Has the next snapshot published at once: the process is about to change.
    pub(super) fn publish_next(&mut self) {
        if let Some(publisher) = &mut self.publisher {
            publisher.due = clock::monotonic();
        }
    }

    /// Publishes that the process is about to exit, and why.
    pub(super) async fn publish_end(&mut self, error: Option<&JobError>) {
        self.publish();
        let health = match error {
            Some(error) => Health::Failed(format!("the process has failed: {error}")),
            None => Health::Leaving("the process is about to exit".to_owned()),
        };
        if let Some(publisher) = self.publisher.take() {
            publisher.finish(health).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_take_a_fiftieth_of_the_loops_time_and_are_a_second_apart_at_least() {
        let rest = |ms| rest(Duration::from_millis(ms)).as_millis();
        assert_eq!([rest(0), rest(20), rest(40), rest(5_000)], [1_000, 1_000, 1_960, 10_000]);
    }
}
