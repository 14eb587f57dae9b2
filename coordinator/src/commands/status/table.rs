//! The status as text: a head, the refusals, the latest evaluations and the agents.

use std::collections::BTreeMap;

use anabranch_common::ids::RunId;
use anabranch_common::journal::Aggregate;
use anabranch_common::merge::Served;
use anabranch_common::status::{AgentStatus, EvaluationProblem, PodsStatus, StatusReport};
use anabranch_common::wire::message::RunPhase;

use crate::commands::output::{self, Align, Table};

/// Evaluations shown.
const EVALUATIONS: usize = 5;
/// Whoever was heard of within this time was heard of now.
const NOW_MS: u64 = 10_000;

/// The whole report.
pub(in crate::commands) fn status(report: &StatusReport) -> String {
    let mut text = String::new();
    for (key, value) in head(report) {
        text.push_str(&format!("{key:<12}{value}\n"));
    }
    let evaluations = evaluations(report);
    if !evaluations.is_empty() {
        text.push_str(&format!("\n{evaluations}"));
    }
    if !report.agents.is_empty() {
        text.push_str(&format!("\n{}", agents(&report.agents)));
    }
    text
}

/// The lines above the tables.
pub(crate) fn head(report: &StatusReport) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("run", format!("{} ({})", report.name, identifier(report.run))),
        ("state", state(report)),
        ("model", model(report)),
        (
            "updates",
            format!(
                "{} accepted, {} refused{}",
                output::count(report.updates_accepted),
                output::count(report.updates_refused.values().sum()),
                reasons(&report.updates_refused),
            ),
        ),
        ("bytes up", traffic(report.uplink_bytes, report.raw_f32_uplink_bytes)),
        ("bytes down", traffic(report.downlink_bytes, report.raw_f32_downlink_bytes)),
    ];
    if report.evaluation_downlink_bytes > 0 {
        lines
            .push(("bytes eval", format!("{} down, to be evaluated", output::bytes(report.evaluation_downlink_bytes))));
    }
    if let Some(problem) = &report.target_problem {
        lines.push(("target", problem.clone()));
    }
    lines.extend(report.quota_problem.iter().map(|problem| ("quota", problem.clone())));
    lines.extend(report.pods.iter().map(|status| ("pods", pods(status))));
    if let Some(staleness) = staleness(&report.staleness_histogram) {
        lines.push(("staleness", staleness));
    }
    let checkpoint =
        report.checkpoint_version.map_or_else(|| "none yet".to_owned(), |version| format!("version {version}"));
    lines.push(("checkpoint", checkpoint));
    lines
}

/// `2 at work, of 2 to 3 members, 0 of 5 connected members free; 1 owner waits: ...`, with the reason.
fn pods(status: &PodsStatus) -> String {
    let PodsStatus { computing, sizes, members, free, waiting, problem, .. } = status;
    let sizes = match sizes {
        None => String::new(),
        Some([least, most]) if least == most => format!(", of {least} members"),
        Some([least, most]) => format!(", of {least} to {most} members"),
    };
    let mut text = format!("{computing} at work{sizes}, {free} of {members} connected members free");
    if *waiting > 0 {
        let owners = if *waiting == 1 { "owner waits" } else { "owners wait" };
        text.push_str(&format!("; {waiting} {owners}"));
    }
    problem.iter().for_each(|problem| text.push_str(&format!(": {problem}")));
    text
}

/// The run's identifier, which is drawn at its first start.
fn identifier(run: RunId) -> String {
    if run == RunId([0; 16]) { "not started yet".to_owned() } else { run.to_string() }
}

/// The state of the run in a few words.
pub(crate) fn state(report: &StatusReport) -> String {
    let state = match report.state {
        RunPhase::Pending => "pending: waits for the first agent, which makes the model".to_owned(),
        RunPhase::Running if !report.serving => format!("parked at version {}", report.version),
        RunPhase::Running => {
            let connected = report.agents.iter().filter(|agent| agent.connected).count();
            let agents = if connected == 1 { "agent" } else { "agents" };
            format!("running, {connected} {agents} connected, {} training", report.leases_outstanding)
        }
        RunPhase::Paused => format!("paused at version {}", report.version),
        RunPhase::Finished => {
            let why = report.finished.map_or_else(|| "finished".to_owned(), |reason| format!("finished: {reason}"));
            report
                .result_version
                .map_or_else(|| why.clone(), |version| format!("{why}; the result is version {version}"))
        }
    };
    if report.serving { state } else { format!("{state}; no coordinator is running") }
}

fn model(report: &StatusReport) -> String {
    match report.params {
        None => "none yet".to_owned(),
        Some(params) => format!(
            "version {} at position {}, {} parameters, {} since the start",
            report.version,
            report.position,
            output::count(params),
            output::span(report.wall_s),
        ),
    }
}

/// `: 3 stale, 1 duplicate`, most frequent first; empty without any.
fn reasons(refused: &BTreeMap<String, u64>) -> String {
    let mut refused: Vec<(&String, &u64)> = refused.iter().filter(|(_, count)| **count > 0).collect();
    if refused.is_empty() {
        return String::new();
    }
    refused.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let parts: Vec<String> = refused.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!(": {}", parts.join(", "))
}

/// `1.4 MiB, 8.1x smaller than raw f32`.
pub(super) fn traffic(sent: u64, raw: u64) -> String {
    match output::comparison(sent, raw) {
        None => output::bytes(sent),
        Some(comparison) => format!("{}, {comparison} raw f32 ({})", output::bytes(sent), output::bytes(raw)),
    }
}

/// Median, 90th percentile and maximum of the accepted updates' staleness; none before the first.
fn staleness(histogram: &[u64]) -> Option<String> {
    let total: u64 = histogram.iter().sum();
    let at = |share: f64| {
        let mut seen = 0;
        histogram.iter().position(|count| {
            seen += count;
            seen as f64 >= share * total as f64
        })
    };
    let name = |bucket: usize| {
        let above = bucket + 1 == anabranch_common::limits::STALENESS_BUCKETS;
        if above { format!("{bucket} or more") } else { bucket.to_string() }
    };
    let max = histogram.iter().rposition(|count| *count > 0)?;
    Some(format!("median {}, 90 % {}, at most {} versions", name(at(0.5)?), name(at(0.9)?), name(max)))
}

/// The newest measurements of the model, then the evaluators that fail.
fn evaluations(report: &StatusReport) -> String {
    let columns = [
        ("evaluated", Align::Right),
        (if report.served == Served::Average { "average at" } else { "version" }, Align::Right),
        ("accuracy", Align::Right),
        ("loss", Align::Right),
        ("examples", Align::Right),
        ("by", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for timed in report.aggregates.iter().rev().take(EVALUATIONS) {
        let aggregate = &timed.aggregate;
        table.row(vec![
            output::span(timed.at_s),
            aggregate.version.to_string(),
            format!("{:.2} %", 100.0 * aggregate.accuracy),
            format!("{:.4}", aggregate.loss),
            output::count(aggregate.num_examples),
            evaluators(report, aggregate),
        ]);
    }
    let mut text = if report.aggregates.is_empty() { String::new() } else { table.render() };
    for agent in &report.agents {
        if let Some(EvaluationProblem { version, reason, failures }) = &agent.evaluation_problem {
            let times = if *failures > 1 { format!(" ({failures} failures in a row)") } else { String::new() };
            text.push_str(&format!("not evaluated by {}: version {version}{times}: {reason}\n", agent.name));
        }
    }
    text
}

/// `clinic`, or `2 agents, 150 of 151 examples` where not all examples are covered.
fn evaluators(report: &StatusReport, aggregate: &Aggregate) -> String {
    let mut of_version = report.evaluations.iter().filter(|timed| timed.evaluation.version == aggregate.version);
    let by = match (aggregate.evaluators, of_version.next_back()) {
        (1, Some(timed)) => {
            let agent = timed.evaluation.agent;
            let named = report.agents.iter().find(|known| known.agent == agent);
            named.map_or_else(|| agent.short(), |known| known.name.clone())
        }
        (1, None) => "1 agent".to_owned(),
        (agents, _) => format!("{agents} agents"),
    };
    let (covered, known) = (aggregate.covered_examples, aggregate.known_examples);
    if covered >= known {
        return by;
    }
    format!("{by}, {} of {} examples", output::count(covered), output::count(known))
}

/// The columns of the agents' table.
pub(super) const AGENT_COLUMNS: [(&str, Align); 11] = [
    ("agent", Align::Left),
    ("state", Align::Left),
    ("heard", Align::Right),
    ("speed", Align::Right),
    ("steps", Align::Right),
    ("stale", Align::Right),
    ("loss", Align::Right),
    ("accepted", Align::Right),
    ("refused", Align::Right),
    ("up", Align::Right),
    ("down", Align::Right),
];

/// One agent's row.
pub(super) fn agent_row(agent: &AgentStatus) -> Vec<String> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let speed = (agent.examples_per_s > 0.0).then(|| format!("{:.0} ex/s", agent.examples_per_s));
    vec![
        agent.name.clone(),
        agent_state(agent).to_owned(),
        or_dash(agent.last_seen_ms.map(heard)),
        or_dash(speed),
        or_dash(agent.lease_steps.map(|steps| steps.to_string())),
        or_dash(agent.staleness.map(|staleness| staleness.to_string())),
        or_dash(agent.train_loss.map(|loss| format!("{loss:.4}"))),
        output::count(agent.updates_accepted),
        output::count(agent.updates_refused.values().sum()),
        output::bytes(agent.uplink_bytes),
        output::bytes(agent.downlink_bytes),
    ]
}

/// How long ago an agent last said something: one that trains is silent for seconds.
pub(crate) fn heard(ms_ago: u64) -> String {
    match ms_ago {
        ..NOW_MS => "now".to_owned(),
        _ => format!("{} ago", output::span((ms_ago / 1000) as f64)),
    }
}

fn agent_state(agent: &AgentStatus) -> &'static str {
    match (agent.revoked, agent.connected) {
        (true, _) => "revoked",
        (false, true) => "connected",
        (false, false) => "away",
    }
}

fn agents(agents: &[AgentStatus]) -> String {
    let mut table = Table::new(&AGENT_COLUMNS);
    for agent in agents {
        table.row(agent_row(agent));
    }
    let mut text = table.render();
    for agent in agents {
        let reasons = reasons(&agent.updates_refused);
        if !reasons.is_empty() {
            text.push_str(&format!("refused from {}{reasons}\n", agent.name));
        }
    }
    text
}

/// The table of `agents list`: who they are rather than how they do.
pub(in crate::commands) fn members(agents: &[AgentStatus]) -> String {
    let columns = [
        ("agent", Align::Left),
        ("id", Align::Left),
        ("state", Align::Left),
        ("heard", Align::Right),
        ("device", Align::Left),
        ("train", Align::Right),
        ("eval", Align::Right),
        ("accepted", Align::Right),
        ("refused", Align::Right),
        ("certificate until", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for agent in agents {
        let seen = agent.last_seen_ms.map(heard);
        let device = if agent.device.is_empty() { "-" } else { &agent.device };
        table.row(vec![
            agent.name.clone(),
            agent.agent.to_string(),
            agent_state(agent).to_owned(),
            seen.unwrap_or_else(|| "-".to_owned()),
            device.to_owned(),
            output::count(agent.train_examples),
            output::count(agent.eval_examples),
            output::count(agent.updates_accepted),
            output::count(agent.updates_refused.values().sum()),
            certificate(agent),
        ]);
    }
    table.render()
}

/// Until when the certificate is good with which an agent has connected last, and whether it is to have a new key.
fn certificate(agent: &AgentStatus) -> String {
    let until = agent.certificate_expires_at_ms.map_or_else(|| "-".to_owned(), output::date);
    if agent.rotates { format!("{until}, rotates") } else { until }
}

#[cfg(test)]
pub(super) mod tests {
    use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, ModelVersion, Position};
    use anabranch_common::journal::{Evaluation, FinishReason};
    use anabranch_common::status::{TimedAggregate, TimedEvaluation};

    use super::*;

    /// A run in the middle of its life, for the tests of every view.
    pub(in crate::commands::status) fn report() -> StatusReport {
        let agent = AgentStatus {
            agent: AgentId([7; 16]),
            name: "clinic".into(),
            epoch: Epoch(2),
            connected: true,
            revoked: false,
            device: "cpu".into(),
            last_seen_ms: Some(1_200),
            examples_per_s: 1834.4,
            lease_steps: Some(40),
            staleness: Some(3),
            lag_versions: Some(2),
            codec_level: None,
            train_loss: Some(0.25),
            train_examples: 20_000,
            eval_examples: 0,
            updates_accepted: 1_234,
            updates_refused: BTreeMap::from([("stale".to_owned(), 2)]),
            uplink_bytes: 5 << 20,
            downlink_bytes: 9 << 20,
            evaluation_downlink_bytes: 0,
            evaluation_problem: None,
            certificate_expires_at_ms: Some(1_800_000_000_000),
            rotates: true,
        };
        let evaluation = |at_s: f64, accuracy: f64| TimedEvaluation {
            at_s,
            evaluation: Evaluation {
                agent: AgentId([7; 16]),
                version: ModelVersion(300),
                accuracy,
                loss: 0.31,
                num_examples: 10_000,
            },
        };
        let aggregate = |at_s: f64, accuracy: f64| TimedAggregate {
            at_s,
            aggregate: Aggregate {
                version: ModelVersion(300),
                accuracy,
                loss: 0.31,
                evaluators: 1,
                num_examples: 10_000,
                covered_examples: 10_000,
                known_examples: 10_000,
            },
        };
        StatusReport {
            software: "test".into(),
            serving: true,
            run: RunId([1; 16]),
            name: "mnist".into(),
            branch: BranchId([2; 16]),
            state: RunPhase::Running,
            finished: None,
            result_version: None,
            position: Position(2_500),
            version: ModelVersion(308),
            served: Served::Model,
            chain: Digest([3; 32]),
            checkpoint_version: Some(ModelVersion(200)),
            params: Some(101_770),
            wall_s: 200.0,
            leases_outstanding: 1,
            updates_accepted: 1_234,
            updates_refused: BTreeMap::from([("duplicate".to_owned(), 1), ("stale".to_owned(), 2)]),
            uploads: None,
            network: None,
            retries_answered: 1,
            uplink_bytes: 5 << 20,
            downlink_bytes: 9 << 20,
            evaluation_downlink_bytes: 0,
            raw_f32_uplink_bytes: 50 << 20,
            raw_f32_downlink_bytes: 18 << 20,
            staleness_histogram: vec![600, 400, 200, 34],
            evaluations: vec![evaluation(10.0, 0.81), evaluation(20.0, 0.912)],
            aggregates: vec![aggregate(10.0, 0.81), aggregate(20.0, 0.912)],
            target_problem: None,
            quota_problem: None,
            pods: None,
            agents: vec![agent],
        }
    }

    #[test]
    fn the_status_says_what_an_operator_wants_to_know() {
        let text = status(&report());
        for expected in [
            "run         mnist (01010101010101010101010101010101)\n",
            "state       running, 1 agent connected, 1 training\n",
            "version 308 at position 2500, 101,770 parameters, 3 min 20 s since the start",
            "1,234 accepted, 3 refused: 2 stale, 1 duplicate\n",
            "bytes up    5.0 MiB, 10.0x smaller than raw f32 (50.0 MiB)\n",
            "bytes down  9.0 MiB, 2.0x smaller than raw f32 (18.0 MiB)\n",
            "staleness   median 1, 90 % 2, at most 3 versions\n",
            "checkpoint  version 200\n",
            "91.20 %",
            "1834 ex/s",
            "refused from clinic: 2 stale\n",
        ] {
            assert!(text.contains(expected), "{text}\ndoes not say {expected:?}");
        }
        let newest_first = text.find("91.20").expect("there") < text.find("81.00").expect("there");
        assert!(newest_first, "{text}");
    }

    /// Figures of one evaluator among several are for `--json`: what the table shows is about the model.
    #[test]
    fn the_table_shows_combined_evaluations_and_who_fails() {
        let mut report = report();
        report.evaluations[1].evaluation.accuracy = 1.0;
        let newest = &mut report.aggregates[1].aggregate;
        (newest.evaluators, newest.num_examples) = (2, 150);
        (newest.covered_examples, newest.known_examples) = (150, 151);
        report.target_problem = Some("target.accuracy = 0.95 cannot be reached: nobody evaluates".into());
        let reason = "ValueError: no GPU".to_owned();
        let problem = Some("a pod takes 2 helpers, and 1 is free".to_owned());
        let sizes = Some([3, 3]);
        report.pods = Some(PodsStatus {
            computing: 1,
            sizes,
            members: 4,
            at_work: 3,
            free: 1,
            waiting: 1,
            problem,
            pods: Vec::new(),
        });
        report.agents[0].evaluation_problem = Some(EvaluationProblem { version: ModelVersion(7), reason, failures: 2 });
        let text = status(&report);
        for expected in [
            "target      target.accuracy = 0.95 cannot be reached: nobody evaluates\n",
            "pods        1 at work, of 3 members, 1 of 4 connected members free; 1 owner waits: a pod takes 2 helpers, and 1 is free\n",
            "91.20 %",
            "2 agents, 150 of 151 examples\n",
            "not evaluated by clinic: version 7 (2 failures in a row): ValueError: no GPU\n",
        ] {
            assert!(text.contains(expected), "{text}\ndoes not say {expected:?}");
        }
        assert!(!text.contains("100.00 %") && !text.contains("average at"), "{text}");
        report.served = Served::Average;
        assert!(status(&report).contains("average at"), "it says of which vector of a version they are");
    }

    #[test]
    fn what_was_sent_is_not_called_smaller_than_it_is() {
        assert_eq!(traffic(30_413, 29_901), "29.7 KiB, about as much as raw f32 (29.2 KiB)");
        assert_eq!(traffic(3 << 20, 2 << 20), "3.0 MiB, 1.5x larger than raw f32 (2.0 MiB)");
    }

    #[test]
    fn an_agent_was_heard_of_now_or_some_time_ago() {
        assert_eq!([0, 9_999, 10_400, 200_000].map(heard), ["now", "now", "10 s ago", "3 min 20 s ago"]);
    }

    #[test]
    fn a_finished_and_a_fresh_run_say_so() {
        let mut report = report();
        report.state = RunPhase::Finished;
        report.finished = Some(FinishReason::Accuracy { reached: 0.9712 });
        report.result_version = Some(ModelVersion(300));
        report.serving = false;
        let expected = "finished: accuracy reached 97.12 %; the result is version 300; no coordinator is running";
        assert_eq!(state(&report), expected);
        report.state = RunPhase::Running;
        assert_eq!(state(&report), "parked at version 308; no coordinator is running");
        let text = status(&report);
        assert!(text.contains("bytes down  9.0 MiB, 2.0x smaller"), "what was sent is known afterwards: {text}");
        report.state = RunPhase::Pending;
        report.params = None;
        report.staleness_histogram = vec![];
        report.agents.clear();
        report.evaluations.clear();
        report.aggregates.clear();
        let text = status(&report);
        assert!(text.contains("pending") && text.contains("model       none yet"), "{text}");
        assert!(!text.contains("staleness"), "{text}");
    }
}
