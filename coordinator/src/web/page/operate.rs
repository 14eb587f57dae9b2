//! What the owners of tokens have done with runs.

use std::sync::Arc;

use anabranch_common::ids::RunId;
use anabranch_common::token::PagePermission;
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse, RunRequest};
use anabranch_io::web::Client;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedRwLockReadGuard, OwnedSemaphorePermit};

use super::access::Viewer;
use super::routes::{Shown, TEXT, nothing_here};
use super::whole::Whole;
use crate::transport::{Shared, operate};

/// What may be asked of a run.
fn request_of(verb: &str) -> Option<RunRequest> {
    match verb {
        "pause" => Some(RunRequest::Pause),
        "resume" => Some(RunRequest::Resume),
        "stop" => Some(RunRequest::Stop),
        _ => None,
    }
}

/// Pauses, resumes or stops a run. What was asked for happens and is logged even where its client goes meanwhile.
pub(super) async fn run(
    State(shown): State<Shown>,
    Extension(viewer): Extension<Viewer>,
    Extension(client): Extension<Client>,
    Path((run, verb)): Path<(String, String)>,
) -> Response {
    let (Ok(run), Some(request)) = (run.parse::<RunId>(), request_of(&verb)) else { return nothing_here() };
    let owner = match viewer.with(PagePermission::Operate) {
        Ok(owner) => owner.clone(),
        Err(refusal) => return refusal.into_response(),
    };
    let Ok(place) = Arc::clone(&shown.operations).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too much is asked for at once; try again\n").into_response();
    };
    let asked = async move {
        let name = shown.name_of(run);
        let done = ask(&shown.shared, run, request, place).await;
        let (status, text, _) = &done;
        tracing::info!(
            token = owner.id,
            name = owner.name,
            from = %client.address,
            run = name,
            verb,
            status = status.as_u16(),
            answer = text,
            "asked for on the page"
        );
        done
    };
    match tokio::spawn(asked).await {
        Ok((status, text, delivery)) => {
            let body = Body::new(Whole::new(Bytes::from(text + "\n"), delivery));
            (status, [(CONTENT_TYPE, TEXT)], body).into_response()
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "this has failed; see the log\n").into_response(),
    }
}

/// An answer in words, and what keeps the process until it is delivered.
type Done = (StatusCode, String, Option<OwnedRwLockReadGuard<()>>);

async fn ask(shared: &Arc<Shared>, run: RunId, request: RunRequest, _place: OwnedSemaphorePermit) -> Done {
    let operation = OperatorRequest::Run { run: Some(run.to_string()), request };
    match operate(shared, operation).await {
        Ok((response, delivery)) => {
            let (status, text) = in_words(response);
            (status, text, delivery)
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("the coordinator does not answer: {error:#}"), None),
    }
}

/// Returns an answer to an operator as HTTP has it.
pub(super) fn in_words(response: OperatorResponse) -> (StatusCode, String) {
    match response {
        OperatorResponse::Done(text) | OperatorResponse::Json(text) => (StatusCode::OK, text),
        OperatorResponse::Conflict(why) => (StatusCode::CONFLICT, why),
        OperatorResponse::NotFound(why) => (StatusCode::NOT_FOUND, why),
        OperatorResponse::Failed(why) => (StatusCode::INTERNAL_SERVER_ERROR, why),
        OperatorResponse::ModelFollows { .. } => {
            (StatusCode::INTERNAL_SERVER_ERROR, "a model was not asked for".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_three_verbs_are_asked_for() {
        assert_eq!(request_of("pause"), Some(RunRequest::Pause));
        assert_eq!(request_of("resume"), Some(RunRequest::Resume));
        assert_eq!(request_of("stop"), Some(RunRequest::Stop));
        for other in ["", "Stop", "delete", "checkpoint", "status"] {
            assert_eq!(request_of(other), None, "{other}");
        }
    }
}
