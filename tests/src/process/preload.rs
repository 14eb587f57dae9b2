//! A small library in C that a daemon is started with (`LD_PRELOAD`).

use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Compiles `source` to `library`, with the system's C compiler and beside a copy of the source; false when there is no
/// compiler.
///
/// # Errors
/// It does not compile.
pub fn compile(source: &str, library: &Path) -> anyhow::Result<bool> {
    let file = library.with_extension("c");
    std::fs::write(&file, source)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-o"]).arg(library).arg(&file).arg("-ldl");
    let ended = match compiler.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.context("cc cannot be started")?,
    };
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{} does not compile:\n{said}", file.display());
    Ok(true)
}
