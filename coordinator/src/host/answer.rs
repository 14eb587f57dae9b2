//! Answers to operators: which run is meant, and what the registry and the policy of uploads add.

use anabranch_common::ids::RunId;
use anabranch_common::status::UploadStatus;
use anabranch_common::wire::operator::OperatorResponse;

use crate::core::status::Answer;
use crate::registry::Registry;

/// Returns the run that a request is for: the one that it names, or the only one.
///
/// # Errors
/// There is no such run, or several where none is named; the answer says what to do.
pub fn choose(runs: impl IntoIterator<Item = RunId>, wanted: Option<RunId>) -> Result<RunId, OperatorResponse> {
    let served: Vec<RunId> = runs.into_iter().collect();
    match (wanted, &served[..]) {
        (Some(run), served) if served.contains(&run) => Ok(run),
        (None, [run]) => Ok(*run),
        (_, []) => Err(OperatorResponse::NotFound("no run is served here; start one first".into())),
        (Some(run), served) => {
            let text = format!("no run {run} is served here; ask for one of: {}", list(served));
            Err(OperatorResponse::NotFound(text))
        }
        (None, served) => {
            let text = format!("{} runs are served here; name one of: {}", served.len(), list(served));
            Err(OperatorResponse::NotFound(text))
        }
    }
}

fn list(runs: &[RunId]) -> String {
    runs.iter().map(RunId::to_string).collect::<Vec<_>>().join(", ")
}

/// Adds to a run's answer what the run does not know: the members that it has not seen, and what is on its way in.
pub(super) fn complete(mut answer: Answer, registry: &Registry, uploads: UploadStatus) -> Answer {
    if let Some(agents) = answer.agents_mut() {
        registry.complete(agents);
    }
    if let Answer::Status(report) = &mut answer {
        report.uploads = Some(uploads);
    }
    answer
}
