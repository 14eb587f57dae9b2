//! Bounds of `top`, the view of a whole process on a terminal.

/// Runs whose status `top` asks for in one second, beside the one that is looked at. The others have their turn in the next.
pub const TOP_REPORTS: usize = 16;
/// Characters of the part of a name that `top` filters agents by.
pub const TOP_FILTER_CHARS: usize = 64;
