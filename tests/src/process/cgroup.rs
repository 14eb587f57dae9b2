//! A memory limit for real processes, where this system lets a test make one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A cgroup with a limit of memory, of version 1 or 2. Removed when it is dropped; its processes must have ended.
#[derive(Debug)]
pub struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// One of `bytes`. Nothing where that is not allowed, which only root can tell.
    #[must_use]
    pub fn new(name: &str, bytes: u64) -> Option<Self> {
        let places = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        places.into_iter().find_map(|(root, limit)| {
            let path = Path::new(root).join(format!("anabranch-{name}-{}", std::process::id()));
            // A plain folder, where no controller is mounted, has no such file.
            fs::create_dir(&path).ok()?;
            let group = Self(path);
            (group.0.join(limit).exists() && fs::write(group.0.join(limit), bytes.to_string()).is_ok()).then_some(group)
        })
    }

    /// Puts a process into it.
    ///
    /// # Errors
    /// It has gone.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // What a failed test leaves is empty.
        let _ = fs::remove_dir(&self.0);
    }
}
