//! What is answered over HTTP.

use std::sync::Arc;

use anabranch_io::web::Hosts;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::events::Events;
use super::figures::Figures;
use super::snapshot::Snapshot;
use crate::clock;

/// The newest snapshot of the process.
pub type Snapshots = watch::Receiver<Arc<Snapshot>>;

/// Prometheus's text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Clone)]
struct Shown {
    snapshots: Snapshots,
    figures: Arc<Mutex<Figures>>,
}

/// Returns what is answered under these names and under every IP address: figures and health.
pub fn router(snapshots: Snapshots, events: Arc<Events>, hosts: Hosts) -> Router {
    let shown = Shown { snapshots, figures: Arc::new(Mutex::new(Figures::new(events))) };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/healthz/live", get(live))
        .fallback(nothing)
        .layer(from_fn_with_state(Arc::new(hosts), known_host))
        .with_state(shown)
}

/// Refuses requests under other names: they come from a browser, on behalf of a site whose name was pointed here.
async fn known_host(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    if is_known(&hosts, request.headers()) {
        return next.run(request).await;
    }
    let text = "nothing is served under this name: ask by an IP address, or put the name into server.names of run.toml and start \
                the coordinator again\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

/// A request without a `Host` comes from no browser: some probes of health are so.
fn is_known(hosts: &Hosts, headers: &HeaderMap) -> bool {
    let mut named = headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
    match (named.next(), named.next()) {
        (None, _) => true,
        (Some(host), None) => hosts.has_or_is_address(host),
        (Some(_), Some(_)) => false,
    }
}

/// Writes the figures beside the runtime's threads: those of many agents take some milliseconds.
async fn metrics(State(Shown { snapshots, figures }): State<Shown>) -> Response {
    let snapshot = Arc::clone(&snapshots.borrow());
    match tokio::task::spawn_blocking(move || figures.lock().text(&snapshot)).await {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], Bytes::from(text)).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the figures could not be written\n").into_response(),
    }
}

async fn healthz(State(Shown { snapshots, .. }): State<Shown>) -> Response {
    answer(snapshots.borrow().problem(clock::monotonic()))
}

fn answer(problem: Option<String>) -> Response {
    match problem {
        None => (StatusCode::OK, "ok\n").into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// Whether starting the process again could help: a run that has failed is no reason to interrupt the others.
async fn live(State(Shown { snapshots, .. }): State<Shown>) -> Response {
    answer(snapshots.borrow().stuck(clock::monotonic()))
}

async fn nothing(uri: Uri) -> Response {
    let text = format!("nothing is served at {}; see /metrics and /healthz\n", uri.path());
    (StatusCode::NOT_FOUND, text).into_response()
}
