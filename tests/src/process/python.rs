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

/// Returns a Python with PyTorch and what trainers need: that of `ANABRANCH_PYTORCH` where it is set, otherwise `python3`. Where there
/// is none, that is said.
///
/// # Panics
/// There is none, and `CI` is set: there it is a mistake of the set-up.
#[must_use]
pub fn python_with_torch() -> Option<String> {
    let python = std::env::var("ANABRANCH_PYTORCH").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import torch, numpy, safetensors"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(std::env::var_os("CI").is_none(), "CI needs PyTorch: {python} (ANABRANCH_PYTORCH) does not have it");
    eprintln!("not checked: {python} has no PyTorch; ANABRANCH_PYTORCH can name a Python that has it");
    None
}

/// Returns a Python that renders the Helm chart: that of `ANABRANCH_PACKAGING` where it is set, otherwise `python3`. Where there is
/// none, that is said.
///
/// # Panics
/// There is none, and `CI` is set: there it is a mistake of the set-up.
#[must_use]
pub fn python_for_packages() -> Option<String> {
    let python = std::env::var("ANABRANCH_PACKAGING").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import helm_python, kubernetes_validate, yaml"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "CI needs helm-python-sdk: {python} (ANABRANCH_PACKAGING) does not have it"
    );
    eprintln!("not checked: {python} has no helm-python-sdk; ANABRANCH_PACKAGING can name a Python that has it");
    None
}
