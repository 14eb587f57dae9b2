//! Memory that is freed goes back: an agent whose memory is bounded has one arena of glibc's `malloc`.
//!
//! With an arena for each thread, vectors that were freed stay with the thread that freed them, and the process has half as much again
//! resident as it uses. The number of arenas is read from the environment before `main` begins, so that the program has to be started
//! anew: in the place of this one, with the same arguments and the same process id.

use std::ffi::OsString;
use std::io;

/// The variable, and its value.
pub(crate) const ONE: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// Whether the process may have more than one arena and nobody has decided how many it has.
pub(crate) fn are_many() -> bool {
    cfg!(all(target_os = "linux", target_env = "gnu")) && std::env::var_os(ONE.0).is_none()
}

/// Starts this program anew with one arena. Returns only why it cannot.
#[cfg(unix)]
pub(crate) fn start_anew() -> io::Error {
    use std::os::unix::process::CommandExt as _;

    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_else(|| OsString::from("anabranch-agent"));
    // Also where the file was replaced since.
    std::process::Command::new("/proc/self/exe").arg0(name).args(args).env(ONE.0, ONE.1).exec()
}

/// Other systems have no such allocator.
#[cfg(not(unix))]
pub(crate) fn start_anew() -> io::Error {
    io::Error::from(io::ErrorKind::Unsupported)
}
