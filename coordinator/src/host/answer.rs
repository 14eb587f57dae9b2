//! Answers to operators: which run is meant, and what the registry and the policy of uploads add.

use anabranch_common::ids::RunId;
use anabranch_common::status::UploadStatus;
use anabranch_common::wire::operator::OperatorResponse;

use crate::core::status::Answer;
use crate::registry::Registry;

/// A run that an operator may mean.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its id.
    pub run: RunId,
    /// Its name.
    pub name: &'a str,
    /// Whether it is served: only such a run is meant where none is named.
    pub is_served: bool,
}

/// Returns the run that a request is for: the one that it names or gives the id of, or the only one.
///
/// # Errors
/// There is no such run, or several where none is named; the answer says what to do.
pub fn choose<'a>(
    runs: impl IntoIterator<Item = Candidate<'a>>,
    wanted: Option<&str>,
) -> Result<RunId, OperatorResponse> {
    let mut runs: Vec<Candidate<'a>> = runs.into_iter().collect();
    runs.sort_by_key(|candidate| (candidate.name, candidate.run));
    let not_found = |text: String| Err(OperatorResponse::NotFound(text));
    if runs.is_empty() {
        return not_found("no run is served here; start one first".into());
    }
    let Some(wanted) = wanted else {
        let served: Vec<_> = runs.iter().filter(|candidate| candidate.is_served).copied().collect();
        let meant = if served.is_empty() { &runs } else { &served };
        return match &meant[..] {
            [one] => Ok(one.run),
            several => not_found(format!(
                "{} runs are served here; name one of them with --run: {}",
                several.len(),
                list(several)
            )),
        };
    };
    let is_meant = |candidate: &&Candidate<'a>| candidate.name == wanted || candidate.run.to_string() == wanted;
    let meant: Vec<_> = runs.iter().filter(is_meant).copied().collect();
    match &meant[..] {
        [one] => Ok(one.run),
        [] => not_found(format!("no run {wanted} is served here; name one of: {}", list(&runs))),
        several => not_found(format!(
            "{} runs are called {wanted}; name one of them by its id: {}",
            several.len(),
            list(several)
        )),
    }
}

fn list(runs: &[Candidate<'_>]) -> String {
    runs.iter().map(|candidate| format!("{} ({})", candidate.name, candidate.run)).collect::<Vec<_>>().join(", ")
}

/// Adds to a run's answer what the run does not know: the members that it has not seen.
pub(super) fn with_members(mut answer: Answer, registry: &Registry) -> Answer {
    if let Some(agents) = answer.agents_mut() {
        registry.complete(agents);
    }
    answer
}

/// The same, and what is on its way in.
pub(super) fn complete(answer: Answer, registry: &Registry, uploads: UploadStatus) -> Answer {
    let mut answer = with_members(answer, registry);
    if let Answer::Status(report) = &mut answer {
        report.uploads = Some(uploads);
    }
    answer
}
