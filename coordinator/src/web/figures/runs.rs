//! Figures of runs.

use anabranch_common::status::StatusReport;
use metrics::Label;

use super::{Family, Look, Points, counter, gauge};

pub(super) const ALL: [Family; 26] = [
    gauge("anabranch_run_state", "1 for the state that a run is in", |look| {
        let point = |run: &super::Run<'_>| (vec![run.label(), Label::new("state", run.view.summary.state.word())], 1.0);
        look.runs.iter().map(point).collect()
    }),
    gauge("anabranch_run_problem", "1 where `runs list` or `status` names a problem of a run", |look| {
        look.of_runs(|view| {
            let report = view.report.as_ref();
            let reported =
                report.is_some_and(|report| report.target_problem.is_some() || report.quota_problem.is_some());
            Some(f64::from(u8::from(view.summary.problem.is_some() || reported)))
        })
    }),
    gauge("anabranch_run_version", "Newest version of a run's model", |look| of(look, |report| report.version.0)),
    gauge("anabranch_run_checkpoint_version", "Newest version with a durable checkpoint", |look| {
        of_some(look, |report| report.checkpoint_version.map(|version| version.0 as f64))
    }),
    gauge("anabranch_run_journal_records", "Position of the newest record of a run's journal", |look| {
        of(look, |report| report.position.0)
    }),
    gauge("anabranch_run_parameters", "Parameters of a run's model", |look| {
        of_some(look, |report| report.params.map(|params| params as f64))
    }),
    gauge("anabranch_run_wall_seconds", "Time since the first record of a run", |look| {
        of_some(look, |report| Some(report.wall_s))
    }),
    gauge("anabranch_run_leases", "Leases that are outstanding", |look| of(look, |report| report.leases_outstanding)),
    gauge("anabranch_run_agents", "Agents that have taken part in a run", |look| {
        look.of_runs(|view| Some(view.summary.agents as f64))
    }),
    gauge("anabranch_run_agents_connected", "Connected agents of a run", |look| {
        look.of_runs(|view| Some(view.summary.connected as f64))
    }),
    gauge("anabranch_run_accuracy_ratio", "Accuracy of the newest version that was measured", |look| {
        of_some(look, |report| report.aggregates.last().map(|timed| timed.aggregate.accuracy))
    }),
    gauge("anabranch_run_loss", "Loss of the newest version that was measured", |look| {
        of_some(look, |report| report.aggregates.last().map(|timed| timed.aggregate.loss))
    }),
    gauge("anabranch_run_measured_version", "Newest version that was measured", |look| {
        of_some(look, |report| report.aggregates.last().map(|timed| timed.aggregate.version.0 as f64))
    }),
    counter("anabranch_updates_accepted_total", "Updates merged", |look| of(look, |report| report.updates_accepted)),
    counter("anabranch_updates_refused_total", "Updates refused, by reason", |look| {
        each(look, |report| {
            report.updates_refused.iter().map(|(reason, count)| ("reason", reason.clone(), *count)).collect()
        })
    }),
    counter("anabranch_retries_answered_total", "Updates offered again that had a verdict", |look| {
        of(look, |report| report.retries_answered)
    }),
    counter("anabranch_uplink_bytes_total", "Payload bytes of accepted updates", |look| {
        of(look, |report| report.uplink_bytes)
    }),
    counter("anabranch_uplink_raw_bytes_total", "Bytes of the same updates as raw f32", |look| {
        of(look, |report| report.raw_f32_uplink_bytes)
    }),
    counter("anabranch_downlink_bytes_total", "Payload bytes of models sent, by what they are for", |look| {
        each(look, |report| {
            let purposes = [("train", report.downlink_bytes), ("evaluate", report.evaluation_downlink_bytes)];
            purposes.map(|(purpose, bytes)| ("purpose", purpose.to_owned(), bytes)).into()
        })
    }),
    counter("anabranch_downlink_raw_bytes_total", "Bytes of the models to train from as raw f32", |look| {
        of(look, |report| report.raw_f32_downlink_bytes)
    }),
    gauge("anabranch_uploads_waiting", "Uploads that wait for memory", |look| {
        look.of_runs(|view| view.queues.map(|queues| queues.uploads_waiting as f64))
    }),
    gauge("anabranch_uploads_partial", "Half-received uploads that a restart would take up again", |look| {
        of_some(look, |report| report.uploads.map(|uploads| uploads.partial as f64))
    }),
    counter("anabranch_upload_chunks_received_total", "Chunks of uploads received", |look| {
        of_some(look, |report| report.uploads.map(|uploads| uploads.chunks_received as f64))
    }),
    counter("anabranch_upload_chunks_kept_total", "Chunks that a resumed upload did not send again", |look| {
        of_some(look, |report| report.uploads.map(|uploads| uploads.chunks_kept as f64))
    }),
    counter("anabranch_uploads_given_up_total", "Uploads given up because they were too slow", |look| {
        of_some(look, |report| report.uploads.map(|uploads| uploads.given_up as f64))
    }),
    gauge("anabranch_pods_computing", "Pods that compute a round", |look| {
        of_some(look, |report| report.pods.as_ref().map(|pods| pods.computing as f64))
    }),
];

/// A value from the report of each run that has one.
fn of_some(look: &Look<'_>, value: impl Fn(&StatusReport) -> Option<f64>) -> Points {
    look.of_runs(|view| value(view.report.as_ref()?))
}

/// A count from the report of each run.
fn of(look: &Look<'_>, value: impl Fn(&StatusReport) -> u64) -> Points {
    of_some(look, |report| Some(value(report) as f64))
}

/// Several counts from the report of each run: a label, its value, and the count.
fn each(look: &Look<'_>, values: impl Fn(&StatusReport) -> Vec<(&'static str, String, u64)>) -> Points {
    let mut points = Points::new();
    for run in &look.runs {
        let Some(report) = &run.view.report else { continue };
        let point = |(key, label, count): (&'static str, String, u64)| {
            (vec![run.label(), Label::new(key, label)], count as f64)
        };
        points.extend(values(report).into_iter().map(point));
    }
    points
}
