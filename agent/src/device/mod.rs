//! What hardware this machine trains on.

mod choice;
pub mod cpu;
pub mod gpu;
pub mod memory;
pub mod probe;

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

pub use choice::{Backend, Choice, ChoiceError, GpuBackend, GpuId, backends};

/// Kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor.
    Cpu,
}

/// A device as people and `status` see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// What it is.
    pub kind: DeviceKind,
    /// Its name as the system gives it.
    pub name: String,
    /// Cores this process may use (affinity and cgroup quota counted), at least 1.
    pub cores: usize,
    /// Memory of the machine in bytes, or 0 where the system does not say.
    pub memory_bytes: u64,
    /// Vector extensions that matter for speed, widest last.
    pub features: Vec<String>,
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} cores", self.name, self.cores)
    }
}

/// Extensions that are reported, in the kernel's spelling.
const CPU_FEATURES: [&str; 8] = ["neon", "asimd", "sse4_2", "avx", "avx2", "fma", "avx512f", "amx_tile"];

/// The processor of this machine.
#[must_use]
pub fn processor() -> DeviceInfo {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    DeviceInfo {
        kind: DeviceKind::Cpu,
        name: cpu_name(&cpuinfo).unwrap_or(std::env::consts::ARCH).to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory_bytes(&meminfo).unwrap_or(0),
        features: cpu_features(&cpuinfo),
    }
}

/// Value of the first line `key : value`.
fn field<'a>(text: &'a str, keys: &[&str]) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        keys.contains(&key.trim()).then(|| value.trim()).filter(|value| !value.is_empty())
    })
}

fn cpu_name(cpuinfo: &str) -> Option<&str> {
    field(cpuinfo, &["model name", "Model", "Hardware"])
}

fn cpu_features(cpuinfo: &str) -> Vec<String> {
    let flags: Vec<&str> = field(cpuinfo, &["flags", "Features"]).unwrap_or("").split_whitespace().collect();
    CPU_FEATURES.iter().filter(|name| flags.contains(name)).map(|name| (*name).to_owned()).collect()
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemTotal")
}

/// A value of /proc/meminfo in bytes.
fn kib(meminfo: &str, key: &str) -> Option<u64> {
    let (kib, unit) = field(meminfo, &[key])?.split_once(' ')?;
    kib.parse::<u64>().ok().filter(|_| unit == "kB")?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_read_on_both_architectures() {
        let x86 = "processor\t: 0\nmodel name\t: A Processor @ 2GHz\nflags\t\t: fpu avx2 avx sse4_2 fma\n";
        assert_eq!(cpu_name(x86), Some("A Processor @ 2GHz"));
        assert_eq!(cpu_features(x86), ["sse4_2", "avx", "avx2", "fma"]);
        let arm = "processor\t: 0\nFeatures\t: fp asimd\nModel\t\t: A Board Rev 1.4\n";
        assert_eq!(cpu_name(arm), Some("A Board Rev 1.4"));
        assert_eq!(cpu_features(arm), ["asimd"]);
        assert_eq!(memory_bytes("MemTotal:       16318440 kB\nMemFree: 1 kB\n"), Some(16_318_440 << 10));
    }

    #[test]
    fn text_that_says_nothing_gives_no_name_and_no_memory() {
        assert_eq!(cpu_name("processor : 0\n"), None);
        assert_eq!(cpu_features(""), Vec::<String>::new());
        assert_eq!(memory_bytes("MemTotal: lots\n"), None);
    }

    #[test]
    fn this_machine_has_a_core_and_a_name() {
        let device = processor();
        assert!(device.cores >= 1 && !device.name.is_empty(), "{device:?}");
    }
}
