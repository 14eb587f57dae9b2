//! What is answered: the page's files, its state, its events, and what the owners of tokens ask for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::RunId;
use anabranch_common::limits;
use anabranch_common::token::PagePermission;
use anabranch_io::web::{Hosts, Server};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::access::{Access, Grants, Viewer, Viewing, admit};
use super::guard::guard;
use super::live::Live;
use super::pages::{Pages, channel, follow};
use super::state::{self, Which};
use super::{models, operate};
use crate::overview::history::Page;
use crate::transport::Shared;
use crate::web::Snapshots;

pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const ANSWER: Duration = Duration::from_millis(limits::WEB_ANSWER_MS);

/// The page's files: their paths, types and contents.
const FILES: [(&str, &str, &str); 11] = [
    ("/", "text/html; charset=utf-8", include_str!("assets/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("assets/page.css")),
    ("/page.js", SCRIPT, include_str!("assets/page.js")),
    ("/view.js", SCRIPT, include_str!("assets/view.js")),
    ("/chart.js", SCRIPT, include_str!("assets/chart.js")),
    ("/dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("/parts.js", SCRIPT, include_str!("assets/parts.js")),
    ("/session.js", SCRIPT, include_str!("assets/session.js")),
    ("/operate.js", SCRIPT, include_str!("assets/operate.js")),
    ("/pods.js", SCRIPT, include_str!("assets/pods.js")),
    ("/icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
];

/// What a page is served with.
#[derive(Debug)]
pub(crate) struct Served {
    /// The names under which it is served.
    pub(crate) hosts: Hosts,
    /// Who sees it.
    pub(crate) viewing: Viewing,
    /// What is shown.
    pub(crate) snapshots: Snapshots,
    /// What tokens let their owners do.
    pub(crate) grants: Grants,
    /// Where requests of owners go.
    pub(crate) shared: Arc<Shared>,
}

/// What every request is answered from.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pages: Pages,
    texts: Arc<Texts>,
    places: Arc<Semaphore>,
    pub(super) access: Arc<Access>,
    pub(super) shared: Arc<Shared>,
    /// Room for requests that the loop is asked.
    pub(super) operations: Arc<Semaphore>,
    /// Room for models that are read and sent.
    pub(super) downloads: Arc<Semaphore>,
    /// Room for lists of checkpoints that are read.
    pub(super) lists: Arc<Semaphore>,
}

impl Shown {
    /// Returns what people call a run.
    pub(super) fn name_of(&self, run: RunId) -> String {
        let page = self.pages.borrow();
        let mut runs = page.snapshot.view.runs.iter().map(|view| &view.summary);
        let found = runs.find(|summary| summary.run == Some(run));
        found.map_or_else(|| run.to_string(), |summary| summary.name.clone())
    }
}

/// Serves the page of what is published, until it is dropped.
pub(crate) async fn serve(server: Server, Served { hosts, viewing, snapshots, grants, shared }: Served) {
    let (out, pages) = channel(&snapshots);
    let access = Arc::new(Access::new(viewing, grants, Arc::clone(&shared)));
    let shown = Shown {
        pages,
        texts: Arc::default(),
        places: Arc::new(Semaphore::new(limits::PAGE_CLIENTS)),
        access,
        shared,
        operations: Arc::new(Semaphore::new(limits::PAGE_OPERATIONS)),
        downloads: Arc::new(Semaphore::new(limits::PAGE_DOWNLOADS)),
        lists: Arc::new(Semaphore::new(limits::PAGE_LISTS)),
    };
    tokio::join!(server.serve(router(shown, hosts)), follow(snapshots, out));
}

/// Returns what is answered.
fn router(shown: Shown, hosts: Hosts) -> Router {
    let prompt = Router::new()
        .route("/api/state", get(now))
        .route("/api/events", get(events))
        .route("/api/token", get(token))
        .route("/api/runs/{run}/{verb}", post(operate::run))
        .route_layer(from_fn(in_time));
    // What a journal is read for takes longer.
    let routes = Router::new()
        .route("/api/runs/{run}/checkpoints", get(models::list))
        .route("/api/runs/{run}/model", get(models::download))
        .merge(prompt)
        .route_layer(from_fn_with_state(Arc::clone(&shown.access), admit));
    FILES
        .into_iter()
        .fold(routes, |routes, (path, kind, text)| {
            routes.route(path, get(async move || ([(CONTENT_TYPE, kind)], text)))
        })
        .fallback(nothing)
        .layer(from_fn_with_state(Arc::new(hosts), guard))
        .with_state(shown)
}

/// Answers in time, or says that it does not.
async fn in_time(request: Request, next: Next) -> Response {
    let late = (StatusCode::SERVICE_UNAVAILABLE, "the answer takes too long; try again later\n");
    tokio::time::timeout(ANSWER, next.run(request)).await.unwrap_or_else(|_| late.into_response())
}

async fn now(State(Shown { pages, texts, .. }): State<Shown>, uri: Uri) -> Response {
    let page = Arc::clone(&pages.borrow());
    match texts.text(page, Which::of_query(uri.query())).await {
        Some(text) => ([(CONTENT_TYPE, JSON)], text).into_response(),
        None => (StatusCode::INTERNAL_SERVER_ERROR, "the state could not be written; see the log\n").into_response(),
    }
}

async fn events(State(shown): State<Shown>, Extension(viewer): Extension<Viewer>, uri: Uri) -> Response {
    let Ok(place) = shown.places.try_acquire_owned() else {
        let text = format!("{} pages are open already: close one, and load this one again\n", limits::PAGE_CLIENTS);
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let which = Which::of_query(uri.query());
    let live = Live::start(shown.pages, which, shown.texts, (viewer, shown.access.grants()), place);
    ([(CONTENT_TYPE, "text/event-stream")], Body::new(live)).into_response()
}

/// What the page says of the token that it uses.
#[derive(Debug, Serialize)]
struct TokenInfo<'a> {
    id: &'a str,
    name: Option<&'a str>,
    permission: &'static str,
    expires_at_ms: u64,
}

async fn token(Extension(viewer): Extension<Viewer>) -> Response {
    match viewer.with(PagePermission::View) {
        Ok(owner) => {
            let (name, permission) = (owner.name.as_deref(), owner.permission.word());
            let info = TokenInfo { id: &owner.id, name, permission, expires_at_ms: owner.expires_ms };
            let text = serde_json::to_string(&info).expect("strings and numbers");
            ([(CONTENT_TYPE, JSON)], text).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn nothing(uri: Uri) -> Response {
    (StatusCode::NOT_FOUND, format!("nothing is served at {}; the page is at /\n", uri.path())).into_response()
}

pub(super) fn nothing_here() -> Response {
    (StatusCode::NOT_FOUND, "nothing is served here; the page is at /\n").into_response()
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
