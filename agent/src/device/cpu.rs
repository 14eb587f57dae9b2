//! Processor and memory, from what the Linux kernel writes about them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The processors and the memory of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuReport {
    /// Name as the system gives it.
    pub name: String,
    /// Physical cores of the machine; absent where the system does not say.
    pub physical_cores: Option<usize>,
    /// Logical CPUs of the machine; absent where the system does not say.
    pub logical_cpus: Option<usize>,
    /// Logical CPUs that this process may use (affinity and cgroup quota counted), at least 1.
    pub usable_cpus: usize,
    /// Vector extensions that matter for speed, widest last.
    pub features: Vec<String>,
    /// Memory of the machine in bytes; absent where the system does not say.
    pub memory_total_bytes: Option<u64>,
    /// Memory that could be had without swapping, in bytes, the cgroup's limit counted.
    pub memory_available_bytes: Option<u64>,
    /// The tightest memory limit of this process's cgroups, in bytes; absent where there is none.
    pub memory_limit_bytes: Option<u64>,
}

/// Where the cgroup file systems are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// A limit above this is none: version 1 writes "no limit" as a number near 2^63.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// Looks at this machine.
#[must_use]
pub fn look() -> CpuReport {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    report(&text("/proc/cpuinfo"), &text("/proc/meminfo"), limit(&text("/proc/self/cgroup"), Path::new(CGROUPS)))
}

/// Memory that could be had without swapping, in bytes, the cgroups' limits counted.
#[must_use]
pub(super) fn available_bytes() -> Option<u64> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    left(&text("/proc/meminfo"), limit(&text("/proc/self/cgroup"), Path::new(CGROUPS)))
}

fn left(meminfo: &str, limit: Option<Limit>) -> Option<u64> {
    let left = limit.map(|limit| limit.bytes.saturating_sub(limit.used_bytes));
    super::kib(meminfo, "MemAvailable").into_iter().chain(left).min()
}

fn report(cpuinfo: &str, meminfo: &str, limit: Option<Limit>) -> CpuReport {
    let logical = cpuinfo.lines().filter(|line| key_of(line) == Some("processor")).count();
    CpuReport {
        name: super::cpu_name(cpuinfo).unwrap_or(std::env::consts::ARCH).to_owned(),
        physical_cores: physical_cores(cpuinfo),
        logical_cpus: Some(logical).filter(|count| *count > 0),
        usable_cpus: std::thread::available_parallelism().map_or(1, usize::from),
        features: super::cpu_features(cpuinfo),
        memory_total_bytes: super::memory_bytes(meminfo),
        memory_available_bytes: left(meminfo, limit),
        memory_limit_bytes: limit.map(|limit| limit.bytes),
    }
}

fn key_of(line: &str) -> Option<&str> {
    line.split_once(':').map(|(key, _)| key.trim())
}

/// Different pairs of socket and core.
fn physical_cores(cpuinfo: &str) -> Option<usize> {
    let mut cores = BTreeSet::new();
    for processor in cpuinfo.split("\n\n") {
        if let (socket, Some(core)) = (super::field(processor, &["physical id"]), super::field(processor, &["core id"]))
        {
            cores.insert((socket.unwrap_or("0"), core));
        }
    }
    Some(cores.len()).filter(|count| *count > 0)
}

/// A cgroup's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    used_bytes: u64,
}

/// The limit that leaves least, of the process's group and of those above it. `groups` is /proc/self/cgroup.
fn limit(groups: &str, root: &Path) -> Option<Limit> {
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

    #[test]
    fn cores_are_counted_once_however_many_threads_they_have() {
        let cpu = |number: u32, socket: u32, core: u32| {
            format!("processor\t: {number}\nmodel name\t: A\nphysical id\t: {socket}\ncore id\t\t: {core}\n")
        };
        let text = [cpu(0, 0, 0), cpu(1, 0, 1), cpu(2, 0, 0), cpu(3, 1, 0)].join("\n");
        let report = report(&text, "MemTotal: 8 kB\nMemAvailable:  4 kB\n", None);
        assert_eq!((report.physical_cores, report.logical_cpus), (Some(3), Some(4)));
        assert_eq!((report.memory_total_bytes, report.memory_available_bytes), (Some(8 << 10), Some(4 << 10)));
        assert_eq!(physical_cores("processor : 0\nFeatures : asimd\n"), None, "ARM kernels do not say");
    }

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
        let found = limit("0::/a/b\n", root.path());
        assert_eq!(found, Some(Limit { bytes: 1000, used_bytes: 400 }));
        let report = report("", "MemAvailable: 4 kB\n", found);
        assert_eq!((report.memory_available_bytes, report.memory_limit_bytes), (Some(600), Some(1000)));
        assert_eq!(limit("0::/elsewhere\n", root.path()), None);
    }

    #[test]
    fn version_1_of_cgroups_is_read_too_and_its_huge_number_is_no_limit() {
        let root = tempfile::tempdir().expect("a directory");
        let memory = root.path().join("memory");
        fs::create_dir_all(&memory).expect("made");
        let file = memory.join("memory.limit_in_bytes");
        fs::write(&file, "9223372036854771712\n").expect("written");
        assert_eq!(limit("5:cpu,memory:/gone\n", root.path()), None);
        fs::write(&file, "77\n").expect("written");
        assert_eq!(limit("5:cpu,memory:/gone\n", root.path()), Some(Limit { bytes: 77, used_bytes: 0 }));
    }
}
