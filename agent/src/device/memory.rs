//! What this process has in memory and what it may still take, from what the Linux kernel writes about it. Elsewhere
//! nothing is known, and nothing bounds a round but what the user says.

use std::fs;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// Bytes of this process that are in memory now.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS")
}

/// The most bytes of this process that were in memory at once, since it started or since [`reset_peak`].
#[must_use]
pub fn peak_bytes() -> Option<u64> {
    status("VmHWM")
}

/// Lets [`peak_bytes`] begin anew. Where that is not allowed the old peak stays, which only makes measurements larger.
pub fn reset_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Bytes that could be had without swapping and within the limits of this process's cgroups.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    anabranch_io::memory::available_bytes()
}

/// How often this system has killed a process for want of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kills {
    /// Which start of the system it is counted from.
    pub boot: String,
    /// Processes killed since then, in whatever cgroup.
    pub count: u64,
}

/// That figure now.
#[must_use]
pub fn kills() -> Option<Kills> {
    // The same for as long as this process lives, and asked for before every round.
    static BOOT: LazyLock<Option<String>> =
        LazyLock::new(|| Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned()));
    let boot = BOOT.clone()?;
    let counters = fs::read_to_string("/proc/vmstat").ok()?;
    let count = counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())?;
    Some(Kills { boot, count })
}

fn status(key: &str) -> Option<u64> {
    super::kib(&fs::read_to_string("/proc/self/status").ok()?, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What everything about fitting rests on, where the kernel is one that says so.
    #[test]
    fn a_large_vector_is_seen_in_the_peak() {
        let Some(before) = resident_bytes() else { return };
        let held = vec![1u8; 64 << 20];
        let peak = peak_bytes().expect("a kernel that gives one gives the other");
        assert!(held.iter().step_by(4096).all(|byte| *byte == 1));
        assert!(peak >= before.saturating_sub(8 << 20) + (56 << 20), "{before} before, {peak} at the peak");
    }
}
