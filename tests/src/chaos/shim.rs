//! A bad disk and a wrong clock for a daemon: a small library that is loaded into it, and the switches for it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::process::compile;

const SOURCE: &str = include_str!("shim.c");
/// Why scenarios with disks and clocks cannot be run.
pub const NO_COMPILER: &str = "there is no C compiler `cc`: faults of disks and clocks need one (install gcc or clang)";

/// The library, compiled.
#[derive(Debug)]
pub struct Shim {
    library: PathBuf,
    folder: PathBuf,
}

impl Shim {
    /// Compiles the library into `folder`; none when there is no C compiler.
    ///
    /// # Errors
    /// It does not compile.
    pub fn new(folder: &Path) -> anyhow::Result<Option<Self>> {
        let library = folder.join("shim.so");
        let compiled = compile(SOURCE, &library)?;
        Ok(compiled.then_some(Self { library, folder: folder.to_owned() }))
    }

    /// The switches of one node; all are off.
    ///
    /// # Errors
    /// Their file cannot be written.
    pub fn switches(&self, node: &str, dir: &Path) -> anyhow::Result<Switches> {
        let path = self.folder.join(format!("{node}.switches"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let switches = Switches { file, path, library: self.library.clone(), dir: dir.to_owned() };
        switches.set(Setting::default())?;
        Ok(switches)
    }
}

/// What is switched on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Setting {
    /// How far the wall clock is ahead, in seconds.
    pub offset_s: i64,
    /// Writes fail: no space.
    pub full: bool,
    /// Syncs fail.
    pub error: bool,
    /// Syncs take so much longer, in milliseconds.
    pub sync_ms: u64,
}

/// The switches of one node.
#[derive(Debug)]
pub struct Switches {
    file: File,
    path: PathBuf,
    library: PathBuf,
    dir: PathBuf,
}

impl Switches {
    /// Takes effect at once, in the process that runs and in later ones.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, setting: Setting) -> anyhow::Result<()> {
        let Setting { offset_s, full, error, sync_ms } = setting;
        let values = [offset_s, i64::from(full), i64::from(error), i64::try_from(sync_ms)?];
        let bytes: Vec<u8> = values.into_iter().flat_map(i64::to_le_bytes).collect();
        Ok(self.file.write_all_at(&bytes, 0)?)
    }

    /// The environment of the node's process.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", self.library.display().to_string()),
            ("ANABRANCH_CHAOS_DIR", self.dir.display().to_string()),
            ("ANABRANCH_CHAOS_CONTROL", self.path.display().to_string()),
        ]
    }
}
