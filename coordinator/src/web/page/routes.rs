//! What is answered: the page's files, its state, and its events.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::limits;
use anabranch_io::web::Server;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::address::Names;
use super::guard::guard;
use super::live::Live;
use super::pages::{Pages, channel, follow};
use super::state::{self, Which};
use crate::overview::history::Page;
use crate::web::Snapshots;

const JSON: &str = "application/json";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The page's files: their paths, types and contents.
const FILES: [(&str, &str, &str); 7] = [
    ("/", "text/html; charset=utf-8", include_str!("assets/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("assets/page.css")),
    ("/page.js", SCRIPT, include_str!("assets/page.js")),
    ("/view.js", SCRIPT, include_str!("assets/view.js")),
    ("/chart.js", SCRIPT, include_str!("assets/chart.js")),
    ("/dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("/icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
];

#[derive(Debug, Clone)]
struct Shown {
    pages: Pages,
    texts: Arc<Texts>,
    places: Arc<Semaphore>,
}

/// Serves the page of what is published, until it is dropped.
pub(crate) async fn serve(server: Server, names: Names, snapshots: Snapshots) {
    let (out, pages) = channel(&snapshots);
    tokio::join!(server.serve(router(pages, names)), follow(snapshots, out));
}

/// Returns what is answered.
pub(super) fn router(pages: Pages, names: Names) -> Router {
    let places = Arc::new(Semaphore::new(limits::PAGE_CLIENTS));
    let shown = Shown { pages, texts: Arc::default(), places };
    let routes = Router::new().route("/api/state", get(now)).route("/api/events", get(events));
    FILES
        .into_iter()
        .fold(routes, |routes, (path, kind, text)| {
            routes.route(path, get(async move || ([(CONTENT_TYPE, kind)], text)))
        })
        .fallback(nothing)
        .layer(from_fn_with_state(Arc::new(names), guard))
        .with_state(shown)
}

async fn now(State(Shown { pages, texts, .. }): State<Shown>, uri: Uri) -> Response {
    let page = Arc::clone(&pages.borrow());
    match texts.text(page, Which::of_query(uri.query())).await {
        Some(text) => ([(CONTENT_TYPE, JSON)], text).into_response(),
        None => (StatusCode::INTERNAL_SERVER_ERROR, "the state could not be written; see the log\n").into_response(),
    }
}

async fn events(State(Shown { pages, texts, places }): State<Shown>, uri: Uri) -> Response {
    let Ok(place) = places.try_acquire_owned() else {
        let text = format!("{} pages are open already: close one, and load this one again\n", limits::PAGE_CLIENTS);
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let live = Live::start(pages, Which::of_query(uri.query()), texts, place);
    ([(CONTENT_TYPE, "text/event-stream")], Body::new(live)).into_response()
}

async fn nothing(uri: Uri) -> Response {
    (StatusCode::NOT_FOUND, format!("nothing is served at {}; the page is at /\n", uri.path())).into_response()
}

/// The texts of the newest page.
#[derive(Debug, Default)]
pub(super) struct Texts {
    kept: Mutex<(u64, BTreeMap<Which, Bytes>)>,
}

impl Texts {
    /// Returns a page as JSON, written beside the runtime's threads: that of many agents takes some milliseconds.
    pub(super) async fn text(self: &Arc<Self>, page: Arc<Page>, which: Which) -> Option<Bytes> {
        let texts = Arc::clone(self);
        tokio::task::spawn_blocking(move || texts.written(&page, which)).await.ok()
    }

    fn written(&self, page: &Page, which: Which) -> Bytes {
        // A client may ask for what there is not: of that, nothing is kept.
        let which = which.existing(page);
        let mut kept = self.kept.lock();
        if kept.0 < page.number {
            *kept = (page.number, BTreeMap::new());
        }
        let is_newest = kept.0 == page.number;
        if let Some(text) = kept.1.get(&which).filter(|_| is_newest) {
            return text.clone();
        }
        let text = Bytes::from(state::json(page, &which));
        if is_newest && !matches!(which, Which::Missing(_)) {
            kept.1.insert(which, text.clone());
        }
        text
    }
}
