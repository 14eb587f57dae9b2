//! A moment, as logic is told it.

/// A moment, passed in with every event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Unix time in milliseconds: journalled, shown, and compared with the expiry of tokens and leases.
    pub unix_ms: u64,
    /// Milliseconds since some fixed moment, never going back: pacing and deadlines.
    pub mono_ms: u64,
}
