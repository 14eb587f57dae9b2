//! A run as a picture: one self-contained HTML page with a swim lane per node, the version line and every event in words.
//!
//! ```text
//!  simulation ─┐
//!              ├─► Timeline ─► page() ─► one HTML file: data as JSON, drawn by a script inside it, nothing loaded
//!  processes ──┘
//! ```
//! The same timeline gives the same bytes.

use serde::Serialize;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What a page shows. Times are milliseconds since the beginning, virtual or real.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Timeline {
    /// Heading.
    pub title: String,
    /// A line below it: the command that shows the same run again.
    pub subtitle: String,
    /// Which clock the times are of: `virtual` or `real`.
    pub clock: String,
    /// When the run ends.
    pub end_ms: u64,
    /// Names and values that sum the run up, in the order in which they are shown.
    pub facts: Vec<(String, String)>,
    /// One lane a node, from top to bottom.
    pub lanes: Vec<Lane>,
    /// Lines over time, each with an axis of its own.
    pub series: Vec<Series>,
    /// Every event in words, in order.
    pub log: Vec<Entry>,
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Lane {
    /// Its name.
    pub name: String,
    /// What lasted.
    pub spans: Vec<Span>,
    /// What happened at once.
    pub marks: Vec<Mark>,
}

/// Something that lasted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// Its beginning.
    pub from_ms: u64,
    /// Its end.
    pub to_ms: u64,
    /// What it was.
    pub kind: SpanKind,
    /// In words.
    pub label: String,
}

/// What lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpanKind {
    /// A lease is held.
    Lease,
    /// A local round.
    Train,
    /// An evaluation.
    Evaluate,
    /// A model comes down.
    Download,
    /// An update goes up.
    Upload,
    /// No connection.
    Offline,
    /// No process.
    Dead,
    /// A fault is on.
    Fault,
}

/// Something that happened at once.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mark {
    /// When.
    pub at_ms: u64,
    /// What it was.
    pub kind: MarkKind,
    /// In words.
    pub label: String,
}

/// What happens at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkKind {
    /// An update was accepted.
    Accepted,
    /// An update was refused.
    Refused,
    /// A process began.
    Started,
    /// A process was killed or lost its power.
    Killed,
    /// A process ended by itself.
    Ended,
    /// A checkpoint was complete.
    Checkpoint,
    /// A fault was injected.
    Fault,
    /// A promise was broken.
    Violation,
}

/// A value over time that stays until its next point.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Series {
    /// Its name, with its unit.
    pub name: String,
    /// When, and what it was from then on.
    pub points: Vec<(u64, f64)>,
}

/// One event in words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// When.
    pub at_ms: u64,
    /// Whom it concerns: a lane's name, or nothing.
    pub node: String,
    /// What happened.
    pub text: String,
}

/// The page. Opens without a network, in light and in dark.
///
/// # Panics
/// Never: a timeline has no value that JSON cannot hold.
#[must_use]
pub fn page(timeline: &Timeline) -> String {
    let data = serde_json::to_string(timeline).expect("strings and numbers");
    // Inside a script element only `</` and `<!--` would end or change it; neither survives this.
    let data = data.replace('<', "\\u003c");
    PAGE.replace("{{title}}", &escape(&timeline.title))
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT)
        .replace("{{data}}", &data)
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that an agent chose itself cannot become markup or end the script.
    #[test]
    fn nothing_in_the_data_becomes_markup() {
        let hostile = "</script><script>alert(1)</script><!--".to_owned();
        let lane = Lane { name: hostile.clone(), ..Lane::default() };
        let entry = Entry { at_ms: 1, node: hostile.clone(), text: hostile.clone() };
        let quiet = page(&Timeline::default());
        let page = page(&Timeline { title: hostile, lanes: vec![lane], log: vec![entry], ..Timeline::default() });
        for markup in ["<script", "</script", "<!--"] {
            assert_eq!(page.matches(markup).count(), quiet.matches(markup).count(), "{markup}");
        }
    }

    #[test]
    fn a_page_loads_nothing() {
        let page = page(&Timeline::default());
        for reference in ["http://", "https://", "src=", "@import", "url("] {
            let found = page.match_indices(reference).map(|(at, _)| &page[at..(at + 40).min(page.len())]);
            let own = ["http://www.w3.org/", "url(#"];
            let found: Vec<&str> = found.filter(|text| !own.iter().any(|own| text.starts_with(own))).collect();
            assert!(found.is_empty(), "{found:?}");
        }
        assert!(!page.contains("{{"), "every place is filled");
    }
}
