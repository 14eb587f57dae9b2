//! Models that runs have kept: their list, and any of them as a safetensors file.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anabranch_common::ids::{ModelVersion, RunId};
use anabranch_common::limits;
use anabranch_common::status::CheckpointStatus;
use anabranch_common::token::PagePermission;
use anabranch_io::model_file::{self, Provenance};
use anabranch_io::web::Client;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::access::{Grants, Viewer};
use super::operate::in_words;
use super::routes::{JSON, Shown, nothing_here};
use crate::clock;
use crate::commands::bytes;
use crate::recovery;
use crate::transport::read_store;

/// The checkpoints of a run.
#[derive(Debug, Serialize)]
struct Checkpoints {
    /// Newest first: at most `limits::PAGE_CHECKPOINTS`.
    rows: Vec<CheckpointRow>,
    /// Checkpoints that are not listed.
    more: usize,
}

#[derive(Debug, Serialize)]
struct CheckpointRow {
    version: u64,
    at_ms: u64,
    size: String,
    digest: String,
}

impl Checkpoints {
    fn of(stored: &[CheckpointStatus]) -> Self {
        let row = |checkpoint: &CheckpointStatus| CheckpointRow {
            version: checkpoint.version.0,
            at_ms: checkpoint.at_ms,
            size: bytes(checkpoint.bytes),
            digest: checkpoint.model.short(),
        };
        let rows: Vec<CheckpointRow> = stored.iter().rev().take(limits::PAGE_CHECKPOINTS).map(row).collect();
        Self { more: stored.len() - rows.len(), rows }
    }
}

/// Lists the checkpoints of a run, as its store has them.
pub(super) async fn list(State(shown): State<Shown>, Path(run): Path<String>) -> Response {
    let Ok(run) = run.parse::<RunId>() else { return nothing_here() };
    let Ok(place) = Arc::clone(&shown.lists).try_acquire_owned() else { return busy() };
    let read = read_store(&shown.shared, Some(run.to_string()), move |store| {
        let list = recovery::checkpoint::list(store)?;
        drop(place);
        Ok(Checkpoints::of(&list))
    });
    match read.await {
        Ok(list) => {
            let text = serde_json::to_string(&list).expect("strings and numbers");
            ([(CONTENT_TYPE, JSON)], text).into_response()
        }
        Err(response) => in_words(response).into_response(),
    }
}

/// Sends a model of a run: the version that is named, else the run's result, else the newest one.
pub(super) async fn download(
    State(shown): State<Shown>,
    Extension(viewer): Extension<Viewer>,
    Extension(client): Extension<Client>,
    Path(run): Path<String>,
    uri: Uri,
) -> Response {
    let Ok(run) = run.parse::<RunId>() else { return nothing_here() };
    let owner = match viewer.with(PagePermission::View) {
        Ok(owner) => owner,
        Err(refusal) => return refusal.into_response(),
    };
    let Ok(version) = version_of(uri.query()) else {
        return (StatusCode::BAD_REQUEST, "a version is a number\n").into_response();
    };
    let Ok(place) = Arc::clone(&shown.downloads).try_acquire_owned() else { return busy() };
    let read = read_store(&shown.shared, Some(run.to_string()), move |store| {
        let exported = recovery::export(store, version)?;
        Ok((exported, place))
    });
    let name = shown.name_of(run);
    let (exported, place) = match read.await {
        Ok(read) => read,
        Err(response) => return in_words(response).into_response(),
    };
    let version = exported.version;
    tracing::info!(
        token = owner.id,
        name = owner.name,
        from = %client.address,
        run = name,
        %version,
        "a model is downloaded from the page"
    );
    let from = Provenance { run, version, served: exported.served, digest: exported.digest };
    let head = model_file::head(&exported.manifest, from).into();
    let grants = shown.access.grants();
    let body = ModelFile::new(head, exported.model, (viewer, grants), place);
    let disposition = format!("attachment; filename=\"{}-v{version}.safetensors\"", file_name(&name));
    let disposition = HeaderValue::try_from(disposition).expect("letters and digits");
    let headers =
        [(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")), (CONTENT_DISPOSITION, disposition)];
    (headers, Body::new(body)).into_response()
}

fn busy() -> Response {
    let text = "as many stores are being read for pages as may be; try again soon\n";
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// Reads `version=N`; none where nothing is asked for.
fn version_of(query: Option<&str>) -> Result<Option<ModelVersion>, std::num::ParseIntError> {
    let wanted = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("version="));
    wanted.map(|number| number.parse().map(ModelVersion)).transpose()
}

/// Returns a run's name with nothing but the characters that names have.
fn file_name(name: &str) -> String {
    name.chars().filter(|char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.')).collect()
}

/// Why a file is cut off on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum CutOff {
    /// The token is revoked or expired.
    #[error("the token of a download is not good any more")]
    Token,
    /// The client has had its time.
    #[error("a download takes too long")]
    Late,
}

/// A safetensors file on its way: its head, then the values, chunk by chunk. Each chunk is made when the client has room for
/// it, its token still is good and its time is not over; else the file is cut off, which the client sees by its length.
#[derive(Debug)]
struct ModelFile {
    head: Bytes,
    values: Vec<f32>,
    /// Values that are on their way.
    sent: usize,
    viewer: Viewer,
    grants: Grants,
    /// When the client's time is over.
    end: Instant,
    _place: OwnedSemaphorePermit,
}

impl ModelFile {
    /// Sends a file from now on.
    fn new(head: Bytes, values: Vec<f32>, (viewer, grants): (Viewer, Grants), place: OwnedSemaphorePermit) -> Self {
        let end = clock::monotonic() + time_for((head.len() + 4 * values.len()) as u64);
        Self { head, values, sent: 0, viewer, grants, end, _place: place }
    }

    /// Returns why no more is sent, if so.
    fn cut_off(&self) -> Option<CutOff> {
        if !self.viewer.is_good(&self.grants.borrow(), clock::unix_ms()) {
            return Some(CutOff::Token);
        }
        (clock::monotonic() >= self.end).then_some(CutOff::Late)
    }
}

/// How long so many bytes may take.
fn time_for(bytes: u64) -> Duration {
    let at_least_rate = Duration::from_secs(bytes / limits::PAGE_DOWNLOAD_BYTES_PER_S);
    Duration::from_millis(limits::PAGE_DOWNLOAD_MS) + at_least_rate
}

impl HttpBody for ModelFile {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let file = self.get_mut();
        if file.is_end_stream() {
            return Poll::Ready(None);
        }
        if let Some(why) = file.cut_off() {
            return Poll::Ready(Some(Err(why)));
        }
        if !file.head.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut file.head)))));
        }
        let rest = file.values.get(file.sent..).unwrap_or_default();
        let chunk = rest.get(..limits::PAGE_DOWNLOAD_CHUNK_BYTES / 4).unwrap_or(rest);
        let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.sent += chunk.len();
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_empty() && self.sent >= self.values.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.head.len() + 4 * (self.values.len() - self.sent)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::{Digest, Position};

    use anabranch_common::token::PageToken;

    use super::*;
    use crate::registry::page_tokens::{NewPageToken, PageGrants, PageTokenBook};

    /// The owner of a token, and the book that it is in.
    fn owner() -> (Viewer, PageTokenBook) {
        let token = PageToken { secret: [1; 32] };
        let (mut book, now_ms) = (PageTokenBook::default(), clock::unix_ms());
        let secret_digest = Digest::of(&token.secret).0;
        let new = NewPageToken { secret_digest, name: None, permission: PagePermission::View, ttl_ms: 3_600_000 };
        book.create(new, now_ms).expect("valid");
        let grant = book.grants().of_secret(&token.secret, now_ms).expect("it is good").clone();
        (Viewer::Owner(grant), book)
    }

    fn place() -> OwnedSemaphorePermit {
        Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().expect("free")
    }

    fn next(file: &mut ModelFile) -> Option<Result<usize, CutOff>> {
        match Pin::new(file).poll_frame(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(part) => part.map(|part| part.map(|frame| frame.into_data().expect("data").len())),
            Poll::Pending => panic!("a file waits for nothing"),
        }
    }

    #[test]
    fn a_download_is_cut_off_when_its_token_is_revoked() {
        let (viewer, mut book) = owner();
        let (granting, grants) = tokio::sync::watch::channel(Arc::new(book.grants()));
        let mut file = ModelFile::new(Bytes::from_static(b"head"), vec![0.5; 5], (viewer.clone(), grants), place());
        assert_eq!(next(&mut file), Some(Ok(4)));
        let Viewer::Owner(grant) = viewer else { panic!("an owner") };
        assert!(book.revoke(&grant.id));
        granting.send_replace(Arc::new(book.grants()));
        assert_eq!(next(&mut file), Some(Err(CutOff::Token)));
        assert!(!file.is_end_stream(), "the client has less than it was told");
    }

    #[test]
    fn a_download_is_cut_off_when_its_time_is_over() {
        let (viewer, book) = owner();
        let (_granting, grants) = tokio::sync::watch::channel(Arc::new(book.grants()));
        let mut file = ModelFile::new(Bytes::from_static(b"head"), vec![0.5; 5], (viewer, grants), place());
        assert!(file.end > clock::monotonic());
        assert_eq!(next(&mut file), Some(Ok(4)));
        file.end = clock::monotonic();
        assert_eq!(next(&mut file), Some(Err(CutOff::Late)));
        let seconds = limits::PAGE_DOWNLOAD_MS / 1000;
        assert_eq!(time_for(0).as_secs(), seconds);
        assert_eq!(time_for(60 * limits::PAGE_DOWNLOAD_BYTES_PER_S).as_secs(), seconds + 60);
    }

    #[test]
    fn a_version_is_a_number_or_absent() {
        assert_eq!(version_of(None), Ok(None));
        assert_eq!(version_of(Some("")), Ok(None));
        assert_eq!(version_of(Some("version=40")), Ok(Some(ModelVersion(40))));
        assert!(version_of(Some("version=")).is_err() && version_of(Some("version=-1")).is_err());
        assert_eq!(file_name("wards\r\n\"x\"-2.1/../é"), "wardsx-2.1..");
    }

    #[test]
    fn the_newest_checkpoints_are_listed_and_the_others_counted() {
        let stored = |version: u64| CheckpointStatus {
            position: Position(version),
            version: ModelVersion(version),
            model: Digest([7; 32]),
            chain: Digest([8; 32]),
            at_ms: 1_000 * version,
            bytes: 2_048,
        };
        let all: Vec<CheckpointStatus> = (0..limits::PAGE_CHECKPOINTS as u64 + 3).map(stored).collect();
        let listed = Checkpoints::of(&all);
        assert_eq!((listed.rows.len(), listed.more), (limits::PAGE_CHECKPOINTS, 3));
        assert_eq!(listed.rows[0].version, limits::PAGE_CHECKPOINTS as u64 + 2);
        assert_eq!(listed.rows[0].size, "2.0 KiB");
    }

    #[tokio::test]
    async fn a_model_is_sent_in_chunks_and_as_long_as_it_says() {
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        let place = Arc::clone(&places).try_acquire_owned().expect("free");
        let values: Vec<f32> = (0..limits::PAGE_DOWNLOAD_CHUNK_BYTES / 4 + 5).map(|number| number as f32).collect();
        let (_granting, grants) = tokio::sync::watch::channel(Arc::<PageGrants>::default());
        let mut file = ModelFile::new(Bytes::from_static(b"head"), values, (Viewer::Anyone, grants), place);
        let said = HttpBody::size_hint(&file).exact().expect("a length");
        let (mut bytes, mut chunks) = (Vec::new(), 0);
        let mut context = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut file).poll_frame(&mut context) {
            bytes.extend_from_slice(&frame.into_data().expect("data"));
            chunks += 1;
        }
        assert_eq!((bytes.len() as u64, chunks), (said, 3));
        assert_eq!(bytes[8..12], 1.0f32.to_le_bytes());
        assert!(file.is_end_stream() && places.available_permits() == 0);
        drop(file);
        assert_eq!(places.available_permits(), 1);
    }
}
