//! Runs a process under the recorder.

use std::path::{Path, PathBuf};

use crate::process::compile;

const SOURCE: &str = include_str!("record.c");

/// The recorder, compiled, and where it writes.
#[derive(Debug)]
pub struct Recorder {
    folder: tempfile::TempDir,
}

impl Recorder {
    /// Compiles the recorder with the system's C compiler; none when there is no compiler.
    ///
    /// # Errors
    /// It does not compile.
    pub fn new() -> anyhow::Result<Option<Self>> {
        let folder = tempfile::Builder::new().prefix("anabranch-power-").tempdir()?;
        let compiled = compile(SOURCE, &folder.path().join("record.so"))?;
        Ok(compiled.then_some(Self { folder }))
    }

    /// Where the recording is written.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Where the process writes what it acknowledges.
    #[must_use]
    pub fn acks(&self) -> PathBuf {
        self.folder.path().join("acks")
    }

    /// The directory that is recorded, unless it is another process's own.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The environment of a process whose `dir` is recorded, and whose sync number `fail` fails.
    #[must_use]
    pub fn environment(&self, dir: &Path, fail: Option<u64>) -> Vec<(&'static str, String)> {
        let text = |path: PathBuf| path.display().to_string();
        let mut environment = vec![
            ("LD_PRELOAD", text(self.folder.path().join("record.so"))),
            ("ANABRANCH_RECORD_DIR", dir.display().to_string()),
            ("ANABRANCH_RECORD_LOG", text(self.log())),
            ("ANABRANCH_RECORD_ACKS", text(self.acks())),
        ];
        environment.extend(fail.map(|number| ("ANABRANCH_FAIL_SYNC", number.to_string())));
        environment
    }
}
