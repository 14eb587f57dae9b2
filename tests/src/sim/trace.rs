//! What happened, in words, and as a picture.

use crate::picture::{Entry, Lane, Mark, MarkKind, Series, Span, SpanKind, Timeline};

use super::schedule::Machine;

/// What an event means for the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// Nothing.
    Plain,
    /// A moment.
    Mark(MarkKind),
    /// Something begins on this machine.
    Begin(SpanKind),
    /// It ends.
    End(SpanKind),
}

#[derive(Debug, Clone)]
struct Line {
    at_ms: u64,
    machine: Machine,
    sign: Sign,
    text: String,
}

/// Collects events, if anyone wants them.
#[derive(Debug, Default)]
pub(super) struct Trace {
    wanted: bool,
    lines: Vec<Line>,
    versions: Vec<(u64, f64)>,
}

impl Trace {
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// `text` is made only when it is wanted.
    pub(super) fn note(&mut self, at_ms: u64, machine: Machine, sign: Sign, text: impl FnOnce() -> String) {
        if self.wanted {
            self.lines.push(Line { at_ms, machine, sign, text: text() });
        }
    }

    pub(super) fn version(&mut self, at_ms: u64, version: u64) {
        if self.wanted {
            self.versions.push((at_ms, version as f64));
        }
    }

    /// One event a line.
    pub(super) fn text(&self) -> String {
        let line = |line: &Line| format!("{:>9} ms  {:<12} {}\n", line.at_ms, name(line.machine), line.text);
        self.lines.iter().map(line).collect()
    }

    pub(super) fn timeline(&self, machines: usize, end_ms: u64) -> Timeline {
        let entry = |line: &Line| Entry { at_ms: line.at_ms, node: name(line.machine), text: line.text.clone() };
        Timeline {
            clock: "virtual".into(),
            end_ms,
            lanes: (0..machines).map(|machine| self.lane(machine, end_ms)).collect(),
            series: vec![Series { name: "version".into(), points: self.versions.clone() }],
            log: self.lines.iter().map(entry).collect(),
            ..Timeline::default()
        }
    }

    fn lane(&self, machine: Machine, end_ms: u64) -> Lane {
        let mut lane = Lane { name: name(machine), ..Lane::default() };
        let mut open: Vec<Span> = Vec::new();
        for line in self.lines.iter().filter(|line| line.machine == machine) {
            let (at_ms, label) = (line.at_ms, line.text.clone());
            match line.sign {
                Sign::Plain => {}
                Sign::Mark(kind) => {
                    if matches!(kind, MarkKind::Killed | MarkKind::Ended) {
                        let ended = open.drain(..).map(|span| Span { to_ms: at_ms, ..span });
                        lane.spans.extend(ended);
                    }
                    lane.marks.push(Mark { at_ms, kind, label });
                }
                Sign::Begin(kind) => open.push(Span { from_ms: at_ms, to_ms: end_ms, kind, label }),
                Sign::End(kind) => {
                    if let Some(at) = open.iter().rposition(|span| span.kind == kind) {
                        lane.spans.push(Span { to_ms: at_ms, ..open.remove(at) });
                    }
                }
            }
        }
        lane.spans.extend(open);
        lane.spans.sort_by_key(|span| (span.kind, span.from_ms));
        lane
    }
}

/// What a machine is called.
pub(super) fn name(machine: Machine) -> String {
    if machine == 0 { "coordinator".into() } else { format!("agent {machine}") }
}
