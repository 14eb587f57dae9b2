//! Memory that stores free goes back to the system: a process of several runs has glibc's `malloc` map large blocks one by one.
//!
//! Opening a store takes buffers of a segment each for a moment. By default `malloc` learns from the first of them that is
//! freed to keep all later ones, and a run that does nothing then holds megabytes. The threshold is read from the environment
//! before `main` begins, so that the program has to be started anew: in the place of this one, with the same arguments and
//! the same process id.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anabranch_common::limits;

/// The variable that says how large a block is at least that is mapped by itself.
const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";

/// Whether nobody has decided which blocks are mapped by themselves.
pub(crate) fn is_as_by_default() -> bool {
    cfg!(all(target_os = "linux", target_env = "gnu")) && std::env::var_os(THRESHOLD).is_none()
}

/// Starts this program anew with blocks of a store's segment mapped by themselves. Returns only why it cannot.
pub(crate) fn start_anew() -> io::Error {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_else(|| OsString::from("anabranch-coordinator"));
    // Also where the file was replaced since.
    let bytes = limits::STORE_SEGMENT_BYTES.to_string();
    Command::new("/proc/self/exe").arg0(name).args(args).env(THRESHOLD, bytes).exec()
}
