//! Bounds of `top`, the view of a whole process on a terminal.

/// Runs whose status `top` asks for in one second, beside the one that is looked at. The others have their turn in the next.
pub const TOP_REPORTS: usize = 16;
/// How long `top` hears nothing before it says so instead of "live", in milliseconds.
pub const TOP_SILENCE_MS: u64 = 5_000;
/// Characters of the part of a name that `top` filters agents by.
pub const TOP_FILTER_CHARS: usize = 64;
