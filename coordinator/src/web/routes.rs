//! What is answered over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
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

/// Returns what is answered: figures and health.
pub fn router(snapshots: Snapshots, events: Arc<Events>) -> Router {
    let shown = Shown { snapshots, figures: Arc::new(Mutex::new(Figures::new(events))) };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/healthz/live", get(live))
        .fallback(nothing)
        .with_state(shown)
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
