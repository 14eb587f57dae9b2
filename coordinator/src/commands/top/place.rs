//! Where an operator is in the view, and what there can be acted on.

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::commands) enum Place {
    /// The whole process.
    Overview,
    /// A run, by name.
    Run(String),
    /// A search, by name.
    Search(String),
}

/// A part of the view that keys act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pane {
    Notes,
    Runs,
    Searches,
    Events,
    Agents,
    Measured,
    Facts,
    Trials,
}

impl Pane {
    /// Returns its title.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Notes => "Needs attention",
            Self::Runs => "Runs",
            Self::Searches => "Searches",
            Self::Events => "Events",
            Self::Agents => "Agents",
            Self::Measured => "Measurements",
            Self::Facts => "Status",
            Self::Trials => "Trials",
        }
    }
}
