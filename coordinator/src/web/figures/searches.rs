//! Figures of searches over configurations.

use metrics::Label;

use super::{Family, Look, Points, gauge};
use crate::host::SearchView;
use crate::search::report::TrialPhase;

pub(super) const ALL: [Family; 4] = [
    gauge("anabranch_search_state", "1 for the state that a search is in", |look| {
        each(look, |view| vec![(Some(Label::new("state", view.summary.state.word())), 1.0)])
    }),
    gauge("anabranch_search_trials", "Trials of a search by state", |look| {
        each(look, |view| {
            let Some(report) = &view.report else { return Vec::new() };
            let trials = |phase| report.trials.iter().filter(|trial| trial.state == phase).count() as f64;
            TRIAL_STATES.map(|(phase, name)| (Some(Label::new("state", name)), trials(phase))).into()
        })
    }),
    gauge("anabranch_search_trials_planned", "Trials of a search in all", |look| {
        each(look, |view| vec![(None, view.summary.trials_planned.into())])
    }),
    gauge("anabranch_search_best", "Accuracy or loss of the leading trial, as measured last", |look| {
        each(look, |view| view.summary.metric.map(|metric| (None, metric)).into_iter().collect())
    }),
];

/// Every state of a trial, with its label.
const TRIAL_STATES: [(TrialPhase, &str); 4] = [
    (TrialPhase::Running, "running"),
    (TrialPhase::Measuring, "measuring"),
    (TrialPhase::Waiting, "waiting"),
    (TrialPhase::Closed, "closed"),
];

/// Values of each search, with one more label where there is one.
fn each(look: &Look<'_>, values: impl Fn(&SearchView) -> Vec<(Option<Label>, f64)>) -> Points {
    let mut points = Points::new();
    for search in &look.snapshot.view.searches {
        let name = Label::new("search", search.summary.name.clone());
        let point = |(label, value): (Option<Label>, f64)| ([name.clone()].into_iter().chain(label).collect(), value);
        points.extend(values(search).into_iter().map(point));
    }
    points
}
