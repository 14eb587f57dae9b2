//! Memory that is freed goes back: an agent whose memory is bounded has one arena of glibc's `malloc`.
//!
//! With an arena for each thread, vectors that were freed stay with the thread that freed them, and the process has half as much again
//! resident as it uses.

use std::io;

use anabranch_io::malloc;

/// The variable, and its value.
pub(crate) const ONE: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// Whether the process may have more than one arena and nobody has decided how many it has.
pub(crate) fn are_many() -> bool {
    malloc::is_by_default(ONE.0)
}

/// Starts this program anew with one arena. Returns only why it cannot.
pub(crate) fn start_anew() -> io::Error {
    malloc::start_anew(ONE.0, ONE.1)
}
