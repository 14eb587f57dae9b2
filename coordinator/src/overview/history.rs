//! What only successive snapshots tell: the log of events, and how fast runs get on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anabranch_common::limits;

use super::changes::{self, Entry};
use crate::host::RunView;
use crate::web::Snapshot;

/// What is shown at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    /// Grows with each page of this process.
    pub(crate) number: u64,
    pub(crate) snapshot: Arc<Snapshot>,
    /// What has happened, oldest first: at most `limits::PAGE_EVENTS`.
    pub(crate) log: VecDeque<Arc<Entry>>,
    /// How fast each run gets on, by its name.
    pub(crate) rates: BTreeMap<String, Rate>,
}

/// What the latest minute brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// The time that is counted.
    pub(crate) over_ms: u64,
    /// Updates merged in it.
    pub(crate) accepted: u64,
    /// Updates refused in it.
    pub(crate) refused: u64,
}

impl Rate {
    /// Merged updates a minute.
    pub(crate) fn accepted_per_min(self) -> f64 {
        self.accepted as f64 * 60_000.0 / self.over_ms as f64
    }
}

/// What is remembered between snapshots.
#[derive(Debug, Default)]
pub(crate) struct History {
    number: u64,
    before: Option<Arc<Snapshot>>,
    log: VecDeque<Arc<Entry>>,
    counts: BTreeMap<String, VecDeque<Counts>>,
}

/// The totals of a run at one moment.
#[derive(Debug, Clone, Copy)]
struct Counts {
    at_ms: u64,
    accepted: u64,
    refused: u64,
}

impl History {
    /// Returns the page of the next snapshot.
    pub(crate) fn take(&mut self, snapshot: Arc<Snapshot>) -> Page {
        if let Some(before) = &self.before {
            self.log.extend(changes::between(before, &snapshot).into_iter().map(Arc::new));
            self.forget();
        }
        let views = &snapshot.view.runs;
        self.counts.retain(|name, _| views.iter().any(|view| view.summary.name == *name));
        for view in views {
            self.count(snapshot.at_ms, view);
        }
        self.number += 1;
        self.before = Some(Arc::clone(&snapshot));
        let rates = self.counts.iter().filter_map(|(name, counts)| Some((name.clone(), rate(counts)?)));
        Page { number: self.number, snapshot, log: self.log.clone(), rates: rates.collect() }
    }

    /// Forgets the oldest events, and before them what every run brings all the time: it would hide a refusal.
    fn forget(&mut self) {
        let routine = self.log.iter().filter(|entry| entry.kind.is_routine()).count();
        let mut surplus = routine.saturating_sub(limits::PAGE_ROUTINE_EVENTS);
        self.log.retain(|entry| {
            let is_kept = surplus == 0 || !entry.kind.is_routine();
            surplus -= usize::from(!is_kept);
            is_kept
        });
        let surplus = self.log.len().saturating_sub(limits::PAGE_EVENTS);
        self.log.drain(..surplus);
    }

    fn count(&mut self, at_ms: u64, view: &RunView) {
        // A run that nobody serves gets on no more.
        let Some(report) = view.report.as_ref().filter(|report| report.serving) else {
            self.counts.remove(&view.summary.name);
            return;
        };
        let now = Counts { at_ms, accepted: report.updates_accepted, refused: report.updates_refused.values().sum() };
        let counts = self.counts.entry(view.summary.name.clone()).or_default();
        // Another run of the same name, or the clock was set back.
        if counts
            .back()
            .is_some_and(|last| last.accepted > now.accepted || last.refused > now.refused || last.at_ms > now.at_ms)
        {
            counts.clear();
        }
        counts.push_back(now);
        while counts.len() > limits::PAGE_SAMPLES
            || counts.get(1).is_some_and(|second| now.at_ms - second.at_ms >= limits::PAGE_RATE_MS)
        {
            counts.pop_front();
        }
    }
}

/// What happened from the first to the last of some totals.
fn rate(counts: &VecDeque<Counts>) -> Option<Rate> {
    let (first, last) = (counts.front()?, counts.back()?);
    let over_ms = last.at_ms - first.at_ms;
    (over_ms >= limits::PAGE_RATE_LEAST_MS).then(|| Rate {
        over_ms,
        accepted: last.accepted - first.accepted,
        refused: last.refused - first.refused,
    })
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::ModelVersion;
    use anabranch_common::status::AgentStatus;

    use super::super::tests::{agent, run, snapshot_at};
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_latest_minute() {
        let mut history = History::default();
        let mut take = |at_s: u64, accepted: u64| {
            let mut view = run("digits", Vec::new());
            view.report.as_mut().expect("a report").updates_accepted = accepted;
            let page = history.take(Arc::new(snapshot_at(at_s * 1_000, vec![view])));
            page.rates.get("digits").map(|rate| (rate.over_ms, rate.accepted))
        };
        assert_eq!(take(0, 100), None);
        assert_eq!(take(1, 101), None, "too short to say");
        assert_eq!(take(10, 120), Some((10_000, 20)));
        assert_eq!(take(60, 160), Some((60_000, 60)));
        assert_eq!(take(65, 165), Some((64_000, 64)), "the first one is older than a minute, and so is not needed");
        assert_eq!(take(66, 3), None, "another run of this name");
        assert_eq!(take(200, 8), Some((134_000, 5)), "nothing was said for long");
        let rate = Rate { over_ms: 30_000, accepted: 5, refused: 0 };
        assert_eq!(rate.accepted_per_min().to_bits(), 10.0f64.to_bits());
    }

    #[test]
    fn the_log_keeps_the_newest_events_and_few_of_those_that_are_routine() {
        let mut history = History::default();
        let rounds = limits::PAGE_EVENTS as u64 + 10;
        let mut take = |at_ms: u64| {
            let connected = at_ms % 2 == 1;
            let mut view = run("digits", vec![AgentStatus { connected, ..agent(1) }]);
            view.report.as_mut().expect("a report").checkpoint_version = Some(ModelVersion(at_ms));
            history.take(Arc::new(snapshot_at(at_ms, vec![view]))).log
        };
        let log = (0..=rounds).map(&mut take).last().expect("a log");
        let routine = log.iter().filter(|entry| entry.kind.is_routine()).count();
        assert_eq!((log.len(), routine), (limits::PAGE_EVENTS, limits::PAGE_ROUTINE_EVENTS));
        assert_eq!(log.back().map(|entry| entry.at_ms), Some(rounds));
        assert!(log.iter().is_sorted_by_key(|entry| entry.at_ms), "in order");
    }
}
