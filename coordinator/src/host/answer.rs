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
}

/// Returns the run that a request is for: the one that it names or gives the id of, or the only one. Runs that are not open
/// count too: which run is meant must not depend on how far the others are.
///
/// # Errors
/// There is no such run, it is not open, or there are several where none is named; the answer says what to do.
pub fn choose<'a>(
    runs: impl IntoIterator<Item = Candidate<'a>>,
    unopened: impl IntoIterator<Item = &'a str>,
    wanted: Option<&str>,
) -> Result<RunId, OperatorResponse> {
    let mut runs: Vec<Candidate<'a>> = runs.into_iter().collect();
    runs.sort_by_key(|candidate| (candidate.name, candidate.run));
    let unopened: Vec<&str> = unopened.into_iter().collect();
    let not_found = |text: String| Err(OperatorResponse::NotFound(text));
    let not_open = |name: &str| {
        Err(OperatorResponse::Conflict(format!("run {name} is not open; `runs list` says why, or try again later")))
    };
    let Some(wanted) = wanted else {
        return match (&runs[..], &unopened[..]) {
            ([], []) => not_found("no run is served here; start one first".into()),
            ([one], []) => Ok(one.run),
            ([], [name]) => not_open(name),
            _ => not_found(format!(
                "there are {} runs here; name one of them with --run: {}",
                runs.len() + unopened.len(),
                list(&runs, &unopened)
            )),
        };
    };
    let is_meant = |candidate: &&Candidate<'a>| candidate.name == wanted || candidate.run.to_string() == wanted;
    let meant: Vec<_> = runs.iter().filter(is_meant).copied().collect();
    match &meant[..] {
        [one] => Ok(one.run),
        [] if unopened.contains(&wanted) => not_open(wanted),
        [] => not_found(format!("there is no run {wanted} here; name one of: {}", list(&runs, &unopened))),
        several => not_found(format!(
            "{} runs are called {wanted}; name one of them by its id: {}",
            several.len(),
            list(several, &[])
        )),
    }
}

fn list(runs: &[Candidate<'_>], unopened: &[&str]) -> String {
    let known = runs.iter().map(|candidate| format!("{} ({})", candidate.name, candidate.run));
    known.chain(unopened.iter().map(|name| (*name).to_owned())).collect::<Vec<_>>().join(", ")
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
