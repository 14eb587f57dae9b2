//! Python, where a test needs it.

use std::process::Command;

/// A call of `python3` that can import `modules` (comma-separated), with the package of `agent/python` on its path. `None`
/// where there is no such Python, after saying so.
///
/// # Panics
/// There is none, and `CI` is set: there it is a mistake of the set-up.
#[must_use]
pub fn python3(modules: &str) -> Option<Command> {
    let found = Command::new("python3").args(["-c", &format!("import {modules}")]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI needs python3 with {modules}");
        eprintln!("not checked: there is no python3 with {modules} here");
        return None;
    }
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/python/src"));
    Some(python)
}
