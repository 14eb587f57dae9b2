//! Memory that stores free goes back to the system: a process of several runs has glibc's `malloc` map large blocks one by one.
//!
//! Opening a store takes buffers of a segment each for a moment. By default `malloc` learns from the first of them that is
//! freed to keep all later ones, and a run that does nothing then holds megabytes.

use std::io;

use anabranch_common::limits;
use anabranch_io::malloc;

/// The variable that says how large a block is at least that is mapped by itself.
const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";

/// Whether nobody has decided which blocks are mapped by themselves.
pub(crate) fn is_as_by_default() -> bool {
    malloc::is_by_default(THRESHOLD)
}

/// Starts this program anew with blocks of a store's segment mapped by themselves. Returns only why it cannot.
pub(crate) fn start_anew() -> io::Error {
    malloc::start_anew(THRESHOLD, limits::STORE_SEGMENT_BYTES.to_string())
}
