//! The report, its table and its picture.

use super::*;
use crate::search::record::CloseReason;
use crate::search::report::{SearchPhase, SearchReport, TrialPhase};

fn search() -> AtOnce {
    let (mut search, _, _) = AtOnce::begin(&text("trials = 4\neta = 2\nr = 1\nmax = 4\nparallel = 2\nseed = 3"));
    search.measured(0, 0.5);
    search.measured(1, 0.75);
    search.handle(Input::Diverged { trial: TrialId(2), reason: "<the model> stopped being finite".to_owned() });
    search
}

#[test]
fn the_report_says_what_every_trial_does() {
    let report = SearchReport::of(search().0.state());
    assert_eq!((report.state, report.leader, report.spent), (SearchPhase::Running, Some(TrialId(1)), 2));
    let states: Vec<TrialPhase> = report.trials.iter().map(|trial| trial.state).collect();
    assert_eq!(states, [TrialPhase::Waiting, TrialPhase::Running, TrialPhase::Closed, TrialPhase::Running]);
    assert_eq!(report.trials[1].rung, 1);
    let closed = report.trials[2].closed.as_ref().expect("closed");
    assert_eq!((closed.why, closed.reason.as_str()), (CloseReason::Diverged, "<the model> stopped being finite"));
    assert!(report.trials.iter().all(|trial| trial.overrides["train.optimizer.lr"].is_f64()), "{report:?}");
    let json = serde_json::to_string(&report).expect("JSON");
    assert_eq!(serde_json::from_str::<SearchReport>(&json).expect("its own"), report);
}

#[test]
fn the_table_has_a_line_for_each_trial_the_leader_first() {
    let report = SearchReport::of(search().0.state());
    let text = report.text();
    for line in [
        "search      lr (asha, accuracy)\n",
        "state       running\n",
        "trials      4 of 4, 2 active of at most 2, 1 closed\n",
        "rungs       1, 2, 4 contributions\n",
        "spent       2 contributions, 0.5 full runs (about ",
        "leader      trial 1 (run lr-1): accuracy 75.00 %\n",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    let (_, table) = text.split_once("\n\n").expect("a table");
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["TRIAL", "STATE", "RUNG", "CONTRIBUTIONS", "METRIC", "BY", "RUNG", "train.optimizer.lr"]);
    assert_eq!(words[1][..6], ["1", "running", "1", "1", "75.00", "%"]);
    assert_eq!((words[1][6], words[2][6]), ("█", "▁"));
    assert_eq!(words[4][..5], ["2", "closed", "0", "0", "-"]);
    assert!(table.lines().last().is_some_and(|line| line.ends_with("<the model> stopped being finite")), "{table}");
    let mut search = search();
    search.handle(Input::Stop);
    let text = SearchReport::of(search.0.state()).text();
    assert!(text.contains("state       stopped by the operator\n") && text.contains("winner      trial 1"), "{text}");
}

#[test]
fn the_picture_is_well_formed_and_has_every_trial() {
    let report = SearchReport::of(search().0.state());
    let svg = report.picture();
    assert_eq!(svg, report.picture());
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    // Two curves, and a line for each of four trials through the axes.
    assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (6, 2));
    assert_eq!(svg.matches("class=\"leader\"").count(), 2);
    let lr = &report.trials[1].overrides["train.optimizer.lr"];
    assert!(svg.contains(&format!("<title>trial 1: train.optimizer.lr = {lr}</title>")), "{svg}");
    let begun = AtOnce::begin(&text("trials = 4\nr = 1\nmax = 4")).0;
    let empty = SearchReport::of(begun.0.state()).picture();
    assert!(empty.contains("nothing was measured yet") && !empty.contains("NaN"), "{empty}");
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}
