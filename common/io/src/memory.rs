//! Memory that this process could still have, from what the Linux kernel writes about it.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the cgroup file systems are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// A limit above this is none: version 1 writes "no limit" as a number near 2^63.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// Returns the memory that could be had without swapping, in bytes, the cgroups' limits counted.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    left(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), limit())
}

/// Returns the same of what the kernel says in /proc/meminfo, with this limit.
#[must_use]
pub fn left(meminfo: &str, limit: Option<Limit>) -> Option<u64> {
    let left = limit.map(|limit| limit.bytes.saturating_sub(limit.used_bytes));
    kib(meminfo, "MemAvailable").into_iter().chain(left).min()
}

/// Returns the bytes of a line `key: N kB`.
fn kib(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns the tightest limit of this process's cgroups.
#[must_use]
pub fn limit() -> Option<Limit> {
    limit_of(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), Path::new(CGROUPS))
}

/// A cgroup's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The most that its processes may have.
    pub bytes: u64,
    /// What they have.
    pub used_bytes: u64,
}

/// The limit that leaves least, of the process's group and of those above it. `groups` is /proc/self/cgroup.
fn limit_of(groups: &str, root: &Path) -> Option<Limit> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, names) = if controllers.is_empty() {
            (root.to_owned(), ["memory.max", "memory.current"])
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes"])
        } else {
            continue;
        };
        // In a container the path may be the host's, and not be there: the mount's own files count in any case.
        let mut folder: PathBuf = mount.join(path.trim_start_matches('/'));
        while folder.starts_with(&mount) {
            let [bytes, used] = names.map(|name| number(&folder.join(name)));
            if let Some(bytes) = bytes.filter(|bytes| *bytes < NO_LIMIT_BYTES) {
                found.push(Limit { bytes, used_bytes: used.unwrap_or(0) });
            }
            if !folder.pop() {
                break;
            }
        }
    }
    found.into_iter().min_by_key(|limit| limit.bytes.saturating_sub(limit.used_bytes))
}

/// A file with one number; "max" is none.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container's limit is what the out-of-memory killer goes by, not the machine's memory.
    #[test]
    fn the_tightest_limit_of_all_groups_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).expect("made");
        let write = |path: &Path, name: &str, text: &str| fs::write(path.join(name), text).expect("written");
        write(&inner, "memory.max", "max\n");
        write(&root.path().join("a"), "memory.max", "1000\n");
        write(&root.path().join("a"), "memory.current", "400\n");
        let found = limit_of("0::/a/b\n", root.path());
        assert_eq!(found, Some(Limit { bytes: 1000, used_bytes: 400 }));
        assert_eq!(left("MemAvailable: 4 kB\n", found), Some(600));
        assert_eq!(limit_of("0::/elsewhere\n", root.path()), None);
    }

    #[test]
    fn version_1_of_cgroups_is_read_too_and_its_huge_number_is_no_limit() {
        let root = tempfile::tempdir().expect("a directory");
        let memory = root.path().join("memory");
        fs::create_dir_all(&memory).expect("made");
        let file = memory.join("memory.limit_in_bytes");
        fs::write(&file, "9223372036854771712\n").expect("written");
        assert_eq!(limit_of("5:cpu,memory:/gone\n", root.path()), None);
        fs::write(&file, "77\n").expect("written");
        assert_eq!(limit_of("5:cpu,memory:/gone\n", root.path()), Some(Limit { bytes: 77, used_bytes: 0 }));
    }
}
