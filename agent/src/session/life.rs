//! Whether the process goes on, stops in order, or has ended.

use anabranch_common::limits;

use super::command::Ending;

/// The life of a session.
#[derive(Debug, Default)]
pub(super) enum Life {
    /// It works.
    #[default]
    Running,
    /// It begins nothing new, and ends when its work is handed over, or at the deadline.
    Stopping { ending: Ending, deadline_ms: u64 },
    /// It says nothing any more.
    Ended,
}

impl Life {
    /// Whether new work may begin.
    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Running)
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// Starts to stop. Returns false if it was stopping before: the first reason counts.
    pub(super) fn stop(&mut self, now_ms: u64, ending: Ending) -> bool {
        let is_first = self.is_running();
        if is_first {
            *self = Self::Stopping { ending, deadline_ms: now_ms.saturating_add(limits::SHUTDOWN_FLUSH_MS) };
        }
        is_first
    }

    /// Returns how it ends now, if it is stopping and nothing is left to hand over, or no time.
    pub(super) fn due(&self, now_ms: u64, handing_over: bool) -> Option<Ending> {
        match self {
            Self::Stopping { ending, deadline_ms } if !handing_over || now_ms >= *deadline_ms => Some(ending.clone()),
            Self::Running | Self::Stopping { .. } | Self::Ended => None,
        }
    }

    /// It says nothing from now on.
    pub(super) fn end(&mut self) {
        *self = Self::Ended;
    }

    /// Returns when it ends at the latest, if it is stopping.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        match self {
            Self::Stopping { deadline_ms, .. } => Some(*deadline_ms),
            Self::Running | Self::Ended => None,
        }
    }
}
