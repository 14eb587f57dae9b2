//! The names of Prometheus, and their values in a snapshot.
//!
//! A table says all of it: a family has a name, a kind, a line of help and its points. Each scrape writes the families of one
//! snapshot, so that what is gone (a deleted run, a search) is gone from the figures as well.

mod agents;
mod process;
mod runs;
mod searches;

use std::sync::Arc;

use metrics::{Label, SharedString, describe_counter, describe_gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::events::{self, Events};
use super::names::{Kind, Name};
use super::snapshot::Snapshot;
use crate::host::RunView;
use agents::{AgentRow, Named};

/// Values of one name, told apart by labels.
pub(super) struct Family {
    name: Name,
    points: fn(&Look<'_>) -> Points,
}

type Points = Vec<(Vec<Label>, f64)>;

const fn gauge(name: &'static str, help: &'static str, points: fn(&Look<'_>) -> Points) -> Family {
    Family { name: Name { name, kind: Kind::Gauge, help }, points }
}

const fn counter(name: &'static str, help: &'static str, points: fn(&Look<'_>) -> Points) -> Family {
    Family { name: Name { name, kind: Kind::Counter, help }, points }
}

/// Every family that follows from snapshots.
const TABLES: [&[Family]; 4] = [&process::ALL, &runs::ALL, &agents::ALL, &searches::ALL];

fn families() -> impl Iterator<Item = &'static Family> {
    TABLES.into_iter().flatten()
}

/// Every name that is served.
pub fn names() -> impl Iterator<Item = Name> {
    families().map(|family| family.name).chain(events::ALL)
}

/// A snapshot, with what several families need of it.
pub(super) struct Look<'a> {
    snapshot: &'a Snapshot,
    runs: Vec<Run<'a>>,
    agents: Vec<AgentRow>,
}

/// A run, and what it is called in labels.
pub(super) struct Run<'a> {
    label: SharedString,
    view: &'a RunView,
}

impl<'a> Look<'a> {
    fn new(snapshot: &'a Snapshot, named: &mut Named) -> Self {
        let views = &snapshot.view.runs;
        let own = views.iter().find(|view| view.summary.own).map(|view| &view.summary.name);
        let run = |view: &'a RunView| {
            let summary = &view.summary;
            // Only the run that shares its directory with the process can have the name of another one.
            let label = match summary.run {
                Some(run) if !summary.own && own == Some(&summary.name) => format!("{} ({run})", summary.name),
                _ => summary.name.clone(),
            };
            Run { label: shared(&label), view }
        };
        let runs: Vec<Run<'a>> = views.iter().map(run).collect();
        let agents = named.rows(&runs);
        Self { snapshot, runs, agents }
    }

    /// A value for each run that has one.
    fn of_runs(&self, value: impl Fn(&RunView) -> Option<f64>) -> Points {
        let point = |run: &Run<'_>| Some((vec![run.label()], value(run.view)?));
        self.runs.iter().filter_map(point).collect()
    }
}

impl Run<'_> {
    fn label(&self) -> Label {
        Label::new("run", self.label.clone())
    }
}

/// A text that is cheap to copy: it is in the labels of many series.
fn shared(text: &str) -> SharedString {
    SharedString::from_shared(text.into())
}

/// One value without labels.
fn single(value: f64) -> Points {
    vec![(Vec::new(), value)]
}

/// What is kept between scrapes.
#[derive(Debug)]
pub(super) struct Figures {
    events: Arc<Events>,
    /// The agents that have series of their own.
    named: Named,
    /// What was written last, and of which snapshot: however often clients ask, each is written once.
    written: Option<(Arc<Snapshot>, Arc<str>)>,
}

impl Figures {
    /// Figures that have not been asked for yet.
    pub(super) fn new(events: Arc<Events>) -> Self {
        Self { events, named: Named::default(), written: None }
    }

    /// Returns the figures of a snapshot, and of what has happened, in Prometheus's text format.
    pub(super) fn text(&mut self, snapshot: &Arc<Snapshot>) -> String {
        if let Some((of, text)) = &self.written
            && Arc::ptr_eq(of, snapshot)
        {
            return text.to_string();
        }
        let text = write(&Look::new(snapshot, &mut self.named)) + &self.events.text();
        self.written = Some((Arc::clone(snapshot), text.as_str().into()));
        text
    }
}

fn write(look: &Look<'_>) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    with_local_recorder(&recorder, || {
        for Family { name: Name { name, kind, help }, points } in families() {
            let is_counter = *kind == Kind::Counter;
            if is_counter {
                describe_counter!(*name, *help);
            } else {
                describe_gauge!(*name, *help);
            }
            for (labels, value) in points(look) {
                if is_counter {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
                    metrics::counter!(*name, labels).absolute(value as u64);
                } else {
                    metrics::gauge!(*name, labels).set(value);
                }
            }
        }
    });
    recorder.handle().render()
}
