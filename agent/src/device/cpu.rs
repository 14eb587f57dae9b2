//! Processor and memory, from what the Linux kernel writes about them.

use std::collections::BTreeSet;
use std::fs;

use anabranch_io::memory::{self, Limit};
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

/// Looks at this machine.
#[must_use]
pub fn look() -> CpuReport {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    report(&text("/proc/cpuinfo"), &text("/proc/meminfo"), memory::limit())
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
        memory_available_bytes: memory::left(meminfo, limit),
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
}
