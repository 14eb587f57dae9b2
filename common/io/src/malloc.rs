//! Settings of glibc's `malloc`, which it reads from the environment before `main` begins. To take one, a program has to be
//! started anew: in the place of this one, with the same arguments and the same process id.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Returns whether this program's `malloc` reads such settings, and nobody has decided on this one.
#[must_use]
pub fn is_by_default(variable: &str) -> bool {
    cfg!(all(target_os = "linux", target_env = "gnu")) && std::env::var_os(variable).is_none()
}

/// Starts this program anew with a setting. Returns only why it cannot.
pub fn start_anew(variable: &str, value: impl AsRef<OsStr>) -> io::Error {
    // Also where the file was replaced since.
    let program = "/proc/self/exe";
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_else(|| OsString::from(program));
    Command::new(program).arg0(name).args(args).env(variable, value).exec()
}
