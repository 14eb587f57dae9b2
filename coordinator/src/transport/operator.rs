//! Operators: one request a stream, as many streams as the connection lives; and requests of the operator's page.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::codec::Codec;
use anabranch_common::codec::dense::Planes32;
use anabranch_common::ids::{ModelVersion, RunId};
use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse, RunRequest, RunsRequest};
use anabranch_io::frames::{self, Format};
use anyhow::Context;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{OwnedRwLockReadGuard, oneshot};

use super::{Control, Input, RunFiles, Shared};
use crate::core::status::{self, json};
use crate::host::{self, Candidate};
use crate::recovery;
use crate::store::Store;

const REQUEST: Duration = Duration::from_millis(limits::REQUEST_TIMEOUT_MS);
/// For an answer from a journal, or about the directory of a run.
const SLOW: Duration = Duration::from_millis(limits::JOURNAL_REQUEST_MS);
/// How long the operator may take to confirm that it has an answer.
const DELIVERY: Duration = Duration::from_millis(limits::LAST_WORDS_MS);

/// An answer and, for an export, the content that follows it.
type Answer = (OperatorResponse, Option<Vec<u8>>);

pub(super) async fn serve(
    connection: Connection,
    Control { send, recv, version, .. }: Control,
    shared: Arc<Shared>,
) -> anyhow::Result<()> {
    request(send, recv, version, &shared).await?;
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let (_, version) =
            frames::accept(&mut send, &mut recv, |purpose| purpose == Purpose::Operator, REQUEST).await?;
        request(send, recv, version, &shared).await?;
    }
    Ok(())
}

async fn request(mut send: SendStream, mut recv: RecvStream, version: u16, shared: &Arc<Shared>) -> anyhow::Result<()> {
    let format = |kind| Format { kind, version };
    let operation: OperatorRequest =
        frames::recv(&mut recv, format(FrameKind::OperatorRequest), limits::CONTROL_MESSAGE_BYTES, REQUEST)
            .await?
            .context("the stream ended before the request")?;
    let Answered { response, content, last } = answer(operation, shared).await?;
    frames::send(&mut send, format(FrameKind::OperatorResponse), &response, limits::OPERATOR_RESPONSE_BYTES, REQUEST)
        .await?;
    for part in content.iter().flat_map(|content| content.chunks(limits::CHUNK_BYTES)) {
        frames::send_part(&mut send, FrameKind::Part, part, REQUEST).await?;
    }
    send.finish()?;
    if let Some(last) = last {
        // Without the confirmation nothing is lost but the certainty.
        let _ = tokio::time::timeout(DELIVERY, send.stopped()).await;
        drop(last);
    }
    Ok(())
}

/// Answers a request of the operator's page. The process stays until what comes with the answer is dropped.
///
/// # Errors
/// The loop gives no answer.
pub(crate) async fn operate(
    shared: &Arc<Shared>,
    operation: OperatorRequest,
) -> anyhow::Result<(OperatorResponse, Option<OwnedRwLockReadGuard<()>>)> {
    let Answered { response, last, .. } = answer(operation, shared).await?;
    Ok((response, last))
}

/// An answer, and what keeps the process until it is delivered: the loop may end with what was asked for.
struct Answered {
    response: OperatorResponse,
    content: Option<Vec<u8>>,
    last: Option<OwnedRwLockReadGuard<()>>,
}

impl From<Answer> for Answered {
    fn from((response, content): Answer) -> Self {
        Self { response, content, last: None }
    }
}

async fn answer(operation: OperatorRequest, shared: &Arc<Shared>) -> anyhow::Result<Answered> {
    let answer = match operation {
        OperatorRequest::Run { run, request: RunRequest::CheckpointList } => from_store(shared, run, list).await,
        OperatorRequest::Run { run, request: RunRequest::CheckpointVerify } => from_store(shared, run, verify).await,
        OperatorRequest::Run { run, request: RunRequest::CheckpointExport { version } } => {
            from_store(shared, run, move |store| export(store, version)).await
        }
        operation => {
            let deadline = if is_slow(&operation, shared) { SLOW } else { REQUEST };
            let (reply, answer) = oneshot::channel();
            let last = Some(Arc::clone(&shared.answering).read_owned().await);
            shared.tell(Input::Operator { operation, reply }).await;
            let answer = tokio::time::timeout(deadline, answer).await??;
            return Ok(Answered { response: with_network(answer, shared).into_response(), content: None, last });
        }
    };
    Ok(answer.into())
}

/// Whether the loop has more done for an answer than it has in memory: directories are made and deleted, and the store of a
/// run that has ended is read.
fn is_slow(operation: &OperatorRequest, shared: &Shared) -> bool {
    match operation {
        OperatorRequest::Runs(RunsRequest::Create { .. } | RunsRequest::Delete { .. }) => true,
        OperatorRequest::Run { run, request: RunRequest::Status | RunRequest::AgentsList } => {
            let runs = shared.runs.read();
            run_of(shared, &runs, run.as_deref()).is_ok_and(|run| !runs[&run].is_served)
        }
        _ => false,
    }
}

/// Adds what the loop cannot know: the traffic, and who was turned away.
fn with_network(mut answer: status::Answer, shared: &Shared) -> status::Answer {
    if let status::Answer::Status(report) = &mut answer {
        report.network = Some(shared.network());
    }
    answer
}

/// Reading checkpoints takes a while, and needs only what is durable: it runs beside the loop.
async fn from_store(
    shared: &Arc<Shared>,
    run: Option<String>,
    read: impl FnOnce(&dyn Store) -> Result<Answer, recovery::RecoveryError> + Send + 'static,
) -> Answer {
    read_store(shared, run, read).await.unwrap_or_else(|response| (response, None))
}

/// Reads the store of a run beside the loop.
///
/// # Errors
/// There is no such run, or what is wanted cannot be read; as it is answered.
pub(crate) async fn read_store<T: Send + 'static>(
    shared: &Shared,
    run: Option<String>,
    read: impl FnOnce(&dyn Store) -> Result<T, recovery::RecoveryError> + Send + 'static,
) -> Result<T, OperatorResponse> {
    let store = store_of(shared, run.as_deref())?;
    let done = tokio::task::spawn_blocking(move || read(store.as_ref())).await;
    done.map_err(|error| OperatorResponse::Failed(error.to_string()))?.map_err(|error| refusal(&error))
}

fn store_of(shared: &Shared, wanted: Option<&str>) -> Result<Arc<dyn Store>, OperatorResponse> {
    let runs = shared.runs.read();
    let run = run_of(shared, &runs, wanted)?;
    Ok(Arc::clone(&runs[&run].store))
}

fn run_of(shared: &Shared, runs: &BTreeMap<RunId, RunFiles>, wanted: Option<&str>) -> Result<RunId, OperatorResponse> {
    let unopened = shared.unopened.read();
    let candidates = runs.iter().map(|(run, files)| Candidate { run: *run, name: &files.name });
    host::choose(candidates, unopened.iter().map(String::as_str), wanted)
}

/// What could not be read, and what the operator can do about it. A version that is gone is a conflict, as on a stopped
/// coordinator.
fn refusal(error: &recovery::RecoveryError) -> OperatorResponse {
    let text = error.help().map_or_else(|| error.to_string(), |help| format!("{error}; {help}"));
    match error {
        recovery::RecoveryError::Version { .. } => OperatorResponse::Conflict(text),
        _ => OperatorResponse::Failed(text),
    }
}

fn list(store: &dyn Store) -> Result<Answer, recovery::RecoveryError> {
    Ok((json(&recovery::checkpoint::list(store)?), None))
}

fn verify(store: &dyn Store) -> Result<Answer, recovery::RecoveryError> {
    Ok((json(&recovery::verify(store)?), None))
}

fn export(store: &dyn Store, version: Option<ModelVersion>) -> Result<Answer, recovery::RecoveryError> {
    let exported = recovery::export(store, version)?;
    let manifest_json = match serde_json::to_string(&exported.manifest) {
        Ok(json) => json,
        Err(error) => return Ok((OperatorResponse::Failed(error.to_string()), None)),
    };
    match Planes32.encode(&exported.manifest, &exported.model) {
        Ok(content) => {
            let bytes = content.len() as u64;
            let (served, version) = (exported.served, exported.version);
            Ok((OperatorResponse::ModelFollows { served, version, manifest_json, bytes }, Some(content)))
        }
        Err(error) => Ok((OperatorResponse::Failed(error.to_string()), None)),
    }
}
