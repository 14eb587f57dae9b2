//! `devices`: what this machine has, and what of it this build can train on.

use std::fmt::Write as _;

use serde::Serialize;

use super::device::attempt;
use crate::cli::DevicesArgs;
use crate::device::cpu::{self, CpuReport};
use crate::device::gpu::{self, Gpu, GpuReport};
use crate::device::probe::{Found, Probe};
use crate::device::{Backend, GpuBackend, GpuId, backends};

/// All that `devices` knows.
#[derive(Debug, Serialize)]
struct Devices {
    cpu: CpuReport,
    nvidia: GpuReport,
    backends: Vec<Backend>,
    /// The first device of each GPU backend of this build.
    devices: Vec<Trial>,
}

/// A device that was tried.
#[derive(Debug, Serialize)]
struct Trial {
    device: GpuId,
    /// Absent if it cannot be trained on.
    found: Option<Found>,
    problem: Option<String>,
}

/// Runs `devices`. A machine without a GPU, or with a sick driver, is no error: it trains on the CPU.
pub(super) fn devices(args: &DevicesArgs) -> anyhow::Result<()> {
    let nvidia = match Probe::of_gpus("devices").map(|probe| probe.run()) {
        Ok(Ok(report)) => report,
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    };
    let built = GpuBackend::ALL.into_iter().filter(|backend| backend.is_built());
    let devices = built.map(|backend| Trial::of(backend.first())).collect();
    let devices = Devices { cpu: cpu::look(), nvidia, backends: backends(), devices };
    if args.output.json { super::print_json(&devices) } else { super::print(&devices.to_text()) }
}

fn failed(error: &dyn std::fmt::Display) -> GpuReport {
    let problem = format!("{error}; look at the driver with nvidia-smi and the kernel's log; training uses the CPU");
    GpuReport { problems: vec![problem], ..GpuReport::default() }
}

/// Runs `probe-gpus`, in the child.
pub(super) fn probe_gpus() -> anyhow::Result<()> {
    // Panics of the loader become words in the report; on standard error they would be taken for a crash.
    std::panic::set_hook(Box::new(|_| {}));
    super::print(&format!("{}\n", serde_json::to_string(&gpu::look())?))
}

impl Trial {
    fn of(device: GpuId) -> Self {
        match attempt("devices", device) {
            Ok(found) => Self { device, found: Some(found), problem: None },
            Err(problem) => Self { device, found: None, problem: Some(problem) },
        }
    }

    fn to_text(&self) -> String {
        let Some(found) = &self.found else { return self.problem.clone().unwrap_or_default() };
        let free = found.memory_free_bytes.map(|bytes| format!(", {} free", gib(bytes))).unwrap_or_default();
        let software = if found.software { ", a program on the CPU that looks like a GPU" } else { "" };
        format!("{}{free}{software}", found.name)
    }
}

impl Devices {
    fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key:<10} {value}");
        };
        let cpu = &self.cpu;
        let count = |count: Option<usize>| count.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
        line("cpu", cpu.name.clone());
        let (cores, cpus) = (count(cpu.physical_cores), count(cpu.logical_cpus));
        line("", format!("physical cores {cores}, logical CPUs {cpus}, usable here {}", cpu.usable_cpus));
        line("", format!("vector extensions: {}", cpu.features.join(" ")));
        line("memory", memory(cpu.memory_total_bytes, cpu.memory_available_bytes, "available"));
        if let Some(limit) = cpu.memory_limit_bytes {
            line("", format!("{} is this process's limit (cgroup)", gib(limit)));
        }
        let nvidia = &self.nvidia;
        for gpu in &nvidia.gpus {
            gpu_lines(gpu, &mut line);
        }
        if let Some(version) = &nvidia.driver_version {
            line("driver", format!("NVIDIA {version}"));
        }
        if let Some(version) = &nvidia.nvrtc_version {
            line("nvrtc", version.clone());
        }
        for problem in &nvidia.problems {
            line("nvidia", problem.clone());
        }
        let names = |built: bool| {
            let of = self.backends.iter().filter(|backend| backend.built == built);
            of.map(|backend| backend.id).collect::<Vec<_>>().join(", ")
        };
        line("backends", format!("{}; not in this build: {}", names(true), names(false)));
        for trial in &self.devices {
            line(&trial.device.to_string(), trial.to_text());
        }
        text
    }
}

fn gpu_lines(gpu: &Gpu, line: &mut impl FnMut(&str, String)) {
    let name = gpu.name.as_deref().unwrap_or("without a name");
    let capability = gpu.compute_capability.map(|(major, minor)| format!(", compute capability {major}.{minor}"));
    line(&format!("gpu {}", gpu.index), format!("{name}{}", capability.unwrap_or_default()));
    if gpu.memory_total_bytes.is_some() {
        line("", memory(gpu.memory_total_bytes, gpu.memory_free_bytes, "free"));
    }
    for note in &gpu.notes {
        line("", note.clone());
    }
}

fn memory(total: Option<u64>, left: Option<u64>, word: &str) -> String {
    let amount = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), gib);
    format!("{}, {word}: {}", amount(total), amount(left))
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1_u32 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_every_part_of_the_report() {
        let gpu = Gpu {
            index: 0,
            name: Some("A GPU".to_owned()),
            compute_capability: Some((9, 0)),
            memory_total_bytes: Some(4 << 30),
            memory_free_bytes: Some(3 << 29),
            notes: vec!["compute mode exclusive".to_owned()],
        };
        let nvidia = GpuReport {
            driver_version: Some("550.1".to_owned()),
            nvrtc_version: None,
            problems: vec!["NVRTC is not here".to_owned()],
            gpus: vec![gpu],
        };
        let id = GpuBackend::Vulkan.first();
        let found = Found { name: "Another".to_owned(), memory_free_bytes: Some(1 << 30), software: true };
        let devices = vec![
            Trial { device: id, found: Some(found), problem: None },
            Trial { device: GpuId { index: 1, ..id }, found: None, problem: Some("it is sick".to_owned()) },
        ];
        let backends = vec![
            Backend { id: "cpu", name: "CPU", built: true },
            Backend { id: "vulkan", name: "Vulkan", built: true },
            Backend { id: "cuda", name: "CUDA", built: false },
        ];
        let text = Devices { cpu: cpu::look(), nvidia, backends, devices }.to_text();
        for part in [
            "gpu 0      A GPU, compute capability 9.0\n",
            "4.0 GiB, free: 1.5 GiB\n",
            "           compute mode exclusive\n",
            "driver     NVIDIA 550.1\n",
            "nvidia     NVRTC is not here\n",
            "backends   cpu, vulkan; not in this build: cuda\n",
            "vulkan:0   Another, 1.0 GiB free, a program on the CPU that looks like a GPU\n",
            "vulkan:1   it is sick\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }
}
