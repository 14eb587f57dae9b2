//! Python, where a test needs it.

use std::process::Command;

/// What `PYTHONPATH` has to be for the package of `agent/python`.
pub const PYTHON_PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/python/src");

/// Whether `python3` can import `modules` (comma-separated). Where it cannot, that is said.
///
/// # Panics
/// It cannot, and `CI` is set: there it is a mistake of the set-up.
#[must_use]
pub fn python_has(modules: &str) -> bool {
    let found = Command::new("python3").args(["-c", &format!("import {modules}")]).output();
    let has = found.is_ok_and(|output| output.status.success());
    if !has {
        assert!(std::env::var_os("CI").is_none(), "CI needs python3 with {modules}");
        eprintln!("not checked: there is no python3 with {modules} here");
    }
    has
}
