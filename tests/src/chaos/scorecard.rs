//! What a run under fire came to: a table, JSON, and one page.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use super::Options;
use super::drive::{Injected, Record};
use super::fault::Fault;
use super::judge::{Audit, Promise};
use super::pod;
use super::scenario::{COORDINATOR, Event};
use crate::picture::{self, Entry, Lane, Mark, MarkKind, Series, Span, SpanKind, Timeline};
use crate::process::{Seen, What};
use crate::report::{Report, quantile};

/// The outcome of a scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Scorecard {
    /// Command, seed, host, figures, and whether every promise was kept.
    #[serde(flatten)]
    pub report: Report,
    /// Name of the scenario.
    pub scenario: String,
    /// What happens in it.
    pub about: String,
    /// Rows of the catalogue in docs/faults.md.
    pub faults: Vec<u32>,
    /// Each promise that this run put to the test.
    pub promises: BTreeMap<&'static str, Promise>,
    /// Faults injected, by kind.
    pub injected: BTreeMap<&'static str, u64>,
    /// Updates refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Faults as they were, with their times.
    pub timeline: Vec<Event>,
    #[serde(skip)]
    picture: Timeline,
}

impl Scorecard {
    pub(super) fn new(options: &Options, record: &Record, clean: &Record, audit: &Audit) -> Self {
        let mut report = Report::new(&options.command, options.seed);
        report.pass = audit.promises.values().all(|promise| *promise == Promise::Kept)
            && audit.merged >= options.scenario.must.updates;
        figures(&mut report, options, record, clean, audit);
        let mut injected: BTreeMap<&'static str, u64> = BTreeMap::new();
        for fault in &record.injected {
            *injected.entry(fault.fault.name()).or_default() += 1;
        }
        let mut card = Self {
            report,
            scenario: options.name.clone(),
            about: options.scenario.about.clone(),
            faults: options.scenario.faults.clone(),
            promises: audit.promises.clone(),
            injected,
            refused: audit.refused.clone(),
            timeline: options.scenario.timeline(options.seed),
            picture: Timeline::default(),
        };
        card.picture = draw(&card, options, record);
        card
    }

    fn facts(&self) -> Vec<(String, String)> {
        let value = |name: &str| self.report.metrics.get(name).copied();
        let mut facts = Vec::new();
        let mut fact = |name: &str, text: String| facts.push((name.to_owned(), text));
        let (kept, broken): (Vec<&str>, Vec<&str>) =
            self.promises.keys().partition(|name| self.promises[*name] == Promise::Kept);
        fact("promises kept", kept.join(" "));
        fact("promises broken", if broken.is_empty() { "none".to_owned() } else { broken.join(" ") });
        let injected: Vec<String> = self.injected.iter().map(|(name, count)| format!("{count} {name}")).collect();
        fact("faults injected", injected.join(", "));
        let [accepted, merged, lost, doubled] =
            ["updates_acknowledged", "updates_accepted", "updates_lost", "updates_duplicated"]
                .map(|name| value(name).unwrap_or(0.0));
        fact("updates", format!("{accepted} acknowledged, {merged} merged, {lost} lost, {doubled} merged twice"));
        let refused: Vec<String> = self.refused.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        fact("refused", if refused.is_empty() { "none".to_owned() } else { refused.join(", ") });
        if let (Some(p50), Some(max)) = (value("recovery_p50_s"), value("recovery_max_s")) {
            fact("served again after a fault", format!("{p50:.2} s (median), {max:.2} s (longest)"));
        }
        if let (Some(p50), Some(max)) = (value("pod_recovery_p50_s"), value("pod_recovery_s")) {
            fact("pods, from a restart on", format!("next update after {p50:.2} s (median), {max:.2} s (longest)"));
        }
        if let Some(gap) = value("pod_longest_gap_s") {
            fact("pods without an update", format!("{gap:.2} s (longest)"));
        }
        if let Some(same) = value("same_bits_after_kills") {
            fact("bits of the undisturbed run", if same > 0.0 { "the same" } else { "others" }.to_owned());
        }
        if let Some(goodput) = value("goodput_kept_percent") {
            fact("goodput kept", format!("{goodput:.0} %"));
        }
        if let (Some(clean), Some(own)) = (value("clean_time_to_accuracy_s"), value("time_to_accuracy_s")) {
            fact("time to accuracy", format!("{own:.1} s, without faults {clean:.1} s"));
        }
        if let Some(accuracy) = value("test_accuracy") {
            fact("test accuracy", format!("{accuracy:.3}"));
        }
        let mib = |name: &str| value(name).unwrap_or(0.0) / f64::from(1 << 20);
        let (memory, disk) = (mib("peak_rss_bytes"), mib("disk_bytes"));
        fact("coordinator at most", format!("{memory:.1} MiB of memory, {disk:.1} MiB of disk"));
        fact("seed", self.report.seed.to_string());
        facts
    }

    /// Prints the table.
    pub fn print(&self) {
        println!("{}  {}", self.scenario, self.about);
        for (name, text) in self.facts() {
            println!("  {name:<28} {text}");
        }
        for (name, promise) in &self.promises {
            if let Promise::Broken(how) = promise {
                println!("  BROKEN {name}: {how}");
            }
        }
        println!("  {:<28} {}", if self.report.pass { "pass" } else { "FAIL" }, self.report.command);
    }

    /// Writes JSON and page where they are wanted.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, json: Option<&Path>, html: Option<&Path>) -> anyhow::Result<()> {
        let put = |file: &Path, text: String| {
            std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
        };
        if let Some(file) = json {
            put(file, format!("{}\n", serde_json::to_string_pretty(self)?))?;
        }
        html.map_or(Ok(()), |file| put(file, picture::page(&self.picture)))
    }
}

/// For each fault, how long after its end the node (for one that sends no updates: any) had an update accepted.
fn recoveries(agents: &[String], record: &Record) -> Vec<f64> {
    let after = |injected: &Injected| {
        let contributes = agents.contains(&injected.node);
        let mut accepted = record
            .accepted()
            .filter(|(at_ms, agent, ..)| *at_ms >= injected.to_ms && (!contributes || injected.node == *agent));
        accepted.next().map(|(at_ms, ..)| (at_ms - injected.to_ms) as f64 / 1e3)
    };
    let mut times: Vec<f64> = record.injected.iter().filter_map(after).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Updates a second while faults went on.
fn goodput(record: &Record) -> f64 {
    let updates = record.accepted().filter(|(at_ms, ..)| *at_ms <= record.healed_ms).count();
    updates as f64 / (record.healed_ms.max(1) as f64 / 1e3)
}

fn figures(report: &mut Report, options: &Options, record: &Record, clean: &Record, audit: &Audit) {
    let recoveries = recoveries(&options.scenario.agent_names(), record);
    let (own, quiet) = (goodput(record), goodput(clean));
    let agents = record.peak_bytes.iter().filter(|(node, _)| *node != COORDINATOR).map(|(_, bytes)| *bytes);
    let figures = [
        ("faults_injected", record.injected.len() as f64),
        ("faults_skipped", record.skipped as f64),
        ("updates_acknowledged", audit.acknowledged as f64),
        ("updates_accepted", audit.merged as f64),
        ("updates_refused", audit.refused.values().sum::<u64>() as f64),
        ("updates_lost", audit.lost as f64),
        ("updates_duplicated", audit.duplicated as f64),
        ("updates_per_s", own),
        ("clean_updates_per_s", quiet),
        ("goodput_kept_percent", 100.0 * own / quiet.max(1e-9)),
        ("peak_rss_bytes", record.peak_bytes.get(COORDINATOR).copied().unwrap_or(0) as f64),
        ("agent_peak_rss_bytes", agents.max().unwrap_or(0) as f64),
        ("disk_bytes", record.disk_bytes as f64),
        ("datagrams_passed", record.datagrams[0] as f64),
        ("datagrams_dropped", record.datagrams[1] as f64),
        ("addresses_changed", record.datagrams[2] as f64),
        ("versions", audit.version as f64),
        ("wall_s", record.end_ms as f64 / 1e3),
    ];
    figures.into_iter().for_each(|(name, value)| report.metric(name, value));
    if !recoveries.is_empty() {
        report.metric("recovery_p50_s", quantile(&recoveries, 0.5));
        report.metric("recovery_max_s", quantile(&recoveries, 1.0));
    }
    if let Some(same) = audit.same_bits {
        report.metric("same_bits_after_kills", if same { 1.0 } else { 0.0 });
    }
    if let Some(slowest) = audit.pod_recoveries.last() {
        report.metric("pod_recovery_p50_s", quantile(&audit.pod_recoveries, 0.5));
        report.metric("pod_recovery_s", *slowest);
    }
    if let Some(longest) = pod::longest_gap_s(&options.scenario, record) {
        report.metric("pod_longest_gap_s", longest);
    }
    if let Some(served_ms) = record.served_ms {
        report.metric("all_served_again_s", (served_ms - record.healed_ms) as f64 / 1e3);
    }
    if let Some(wanted) = options.scenario.must.accuracy {
        let time = |record: &Record| record.time_to(wanted).map(|ms| ms as f64 / 1e3);
        if let Some(seconds) = time(record) {
            report.metric("time_to_accuracy_s", seconds);
        }
        if let Some(seconds) = time(clean) {
            report.metric("clean_time_to_accuracy_s", seconds);
        }
    }
    if let Some(accuracy) = record.accuracy() {
        report.metric("test_accuracy", accuracy);
    }
}

fn draw(card: &Scorecard, options: &Options, record: &Record) -> Timeline {
    let mut lanes: Vec<Lane> =
        options.scenario.node_names().into_iter().map(|name| Lane { name, ..Lane::default() }).collect();
    let mut log: Vec<Entry> = Vec::new();
    for fault in &record.injected {
        let words = fault.fault.words();
        let entry = |at_ms: u64, text: String| Entry { at_ms, node: fault.node.clone(), text };
        log.push(entry(fault.from_ms, format!("fault: {words}")));
        log.push(entry(fault.to_ms, format!("over: {words}")));
        let Some(lane) = lanes.iter_mut().find(|lane| lane.name == fault.node) else { continue };
        let dead = matches!(fault.fault, Fault::Kill | Fault::Park);
        let kind = if dead { SpanKind::Dead } else { SpanKind::Fault };
        lane.spans.push(Span { from_ms: fault.from_ms, to_ms: fault.to_ms, kind, label: words.clone() });
        let kind = if dead { MarkKind::Killed } else { MarkKind::Fault };
        lane.marks.push(Mark { at_ms: fault.from_ms, kind, label: words });
    }
    for (at_ms, node, code, _) in &record.exits {
        let label = format!("ended by itself with {code}");
        log.push(Entry { at_ms: *at_ms, node: node.clone(), text: label.clone() });
        if let Some(lane) = lanes.iter_mut().find(|lane| lane.name == *node) {
            lane.marks.push(Mark { at_ms: *at_ms, kind: MarkKind::Ended, label });
        }
    }
    let mut versions = Series { name: "version".to_owned(), points: Vec::new() };
    let mut accuracies = Series { name: "test accuracy".to_owned(), points: Vec::new() };
    for seen in &record.seen {
        let Some(lane) = lanes.iter_mut().find(|lane| lane.name == seen.agent) else { continue };
        match &seen.what {
            What::Accepted { version, .. } => {
                versions
                    .points
                    .push((seen.at_ms, versions.points.last().map_or(0.0, |last| last.1).max(*version as f64)));
            }
            What::Evaluated { accuracy, .. } => accuracies.points.push((seen.at_ms, *accuracy)),
            _ => {}
        }
        show(lane, seen);
        if let Some(text) = words(&seen.what) {
            log.push(Entry { at_ms: seen.at_ms, node: seen.agent.clone(), text });
        }
    }
    log.sort_by_key(|entry| entry.at_ms);
    let memory = record
        .samples
        .iter()
        .filter_map(|sample| Some((sample.at_ms, sample.coordinator_bytes? as f64 / f64::from(1 << 20))));
    let memory = Series { name: "memory, MiB".to_owned(), points: memory.collect() };
    let series = [versions, accuracies, memory].into_iter().filter(|series| !series.points.is_empty()).collect();
    Timeline {
        title: format!("Anabranch under fire: {}", card.scenario),
        subtitle: card.report.command.clone(),
        clock: "real".to_owned(),
        end_ms: record.end_ms,
        facts: card.facts(),
        lanes,
        series,
        log,
    }
}

fn show(lane: &mut Lane, seen: &Seen) {
    let at_ms = seen.at_ms;
    let mark = |kind, label: String| Mark { at_ms, kind, label };
    match &seen.what {
        What::Trained(ms) => {
            let from_ms = at_ms.saturating_sub(*ms);
            lane.spans.push(Span { from_ms, to_ms: at_ms, kind: SpanKind::Train, label: "training".to_owned() });
        }
        What::Accepted { version, .. } => {
            lane.marks.push(mark(MarkKind::Accepted, format!("accepted, version {version}")))
        }
        What::Refused(reason) => lane.marks.push(mark(MarkKind::Refused, format!("refused: {reason}"))),
        What::Connected => lane.marks.push(mark(MarkKind::Started, "connected".to_owned())),
        _ => {}
    }
}

fn words(what: &What) -> Option<String> {
    Some(match what {
        What::Connected => "connected".to_owned(),
        What::Disconnected(why) => format!("not connected: {why}"),
        What::Accepted { key, version } => format!("update {}/{} is in version {version}", key.0, key.1),
        What::Refused(reason) => format!("an update was refused: {reason}"),
        What::Evaluated { version, accuracy } => format!("version {version} has accuracy {accuracy:.3}"),
        What::Leased | What::Trained(_) | What::Offered(..) => return None,
    })
}
