//! What a name of Prometheus is.

/// What a value means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, by whole numbers.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Observations, counted by size: `_bucket`, `_sum`, `_count`.
    Histogram,
}

/// A name that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub name: &'static str,
    /// What its values mean.
    pub kind: Kind,
    /// One line about it.
    pub help: &'static str,
}
