//! NVIDIA GPUs as their driver describes them. Only [`look`] touches the driver, and only a child process calls it (see
//! `probe`): a driver that crashes or hangs must not take an agent with it.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{CudaContext, DriverError};
use serde::{Deserialize, Serialize};

/// What a machine has of NVIDIA's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuReport {
    /// Version of the kernel's driver; absent where there is none.
    pub driver_version: Option<String>,
    /// Version of NVRTC, which compiles kernels at run time; absent where it cannot be used.
    pub nvrtc_version: Option<String>,
    /// What stands in the way, and what to do about it.
    pub problems: Vec<String>,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
}

/// One GPU, or one MIG instance of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Its number in the driver's order.
    pub index: usize,
    /// Its name; absent if the driver does not say.
    pub name: Option<String>,
    /// Major and minor compute capability; absent while it cannot be used.
    pub compute_capability: Option<(i32, i32)>,
    /// Its memory in bytes; absent while it cannot be used.
    pub memory_total_bytes: Option<u64>,
    /// Memory that nobody uses, in bytes; absent while it cannot be used.
    pub memory_free_bytes: Option<u64>,
    /// What is special about it: a MIG instance, in use, out of memory, ...
    pub notes: Vec<String>,
}

/// What the kernel's module says of itself.
const DRIVER_FILE: &str = "/proc/driver/nvidia/version";
/// First driver series that runs CUDA 12, the generation that this program was written against (CUDA 12.0 release notes,
/// table 3).
const OLDEST_DRIVER: u32 = 525;
/// What NVRTC is tried with.
const TRIAL_KERNEL: &str = "extern \"C\" __global__ void trial() { }";
const USES_CPU: &str = "training uses the CPU";

/// Looks at the GPUs of this machine. May crash or hang with a sick driver; panics of the loader are caught.
#[must_use]
pub fn look() -> GpuReport {
    let mut report = GpuReport {
        driver_version: fs::read_to_string(DRIVER_FILE).ok().as_deref().and_then(driver_version).map(str::to_owned),
        ..GpuReport::default()
    };
    let count = match guarded(CudaContext::device_count) {
        Ok(Ok(count)) => usize::try_from(count).unwrap_or(0),
        Ok(Err(error)) => {
            report.problems.push(driver_problem(error.0, report.driver_version.as_deref()));
            return report;
        }
        Err(panic) => {
            report.problems.push(loader_problem(&panic, report.driver_version.as_deref()));
            return report;
        }
    };
    report.problems.extend(report.driver_version.as_deref().and_then(too_old));
    if count == 0 {
        report.problems.push(format!("the driver shows no GPU (MIG without an instance?); {USES_CPU}"));
        return report;
    }
    let mut usable = None;
    for index in 0..count {
        let (gpu, context) = guarded(|| one(index)).unwrap_or_else(|panic| {
            (unusable(index, None, loader_problem(&panic, report.driver_version.as_deref())), None)
        });
        report.gpus.push(gpu);
        usable = usable.or(context);
    }
    match guarded(|| compiler(usable.as_ref())) {
        Ok((version, problem)) => {
            report.nvrtc_version = version;
            report.problems.extend(problem);
        }
        Err(panic) => report.problems.push(nvrtc_problem(&panic)),
    }
    report
}

/// The loader of cudarc panics where a library or a function of it is missing, and backends do over much else.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => {
            panic.downcast_ref::<&str>().map_or_else(|| "no reason given".to_owned(), |text| (*text).to_owned())
        }
    })
}

fn one(index: usize) -> (Gpu, Option<Arc<CudaContext>>) {
    let context = match CudaContext::new(index) {
        Ok(context) => context,
        Err(error) => {
            let device = i32::try_from(index).ok().and_then(|index| cudarc::driver::result::device::get(index).ok());
            let name = device.and_then(|device| cudarc::driver::result::device::get_name(device).ok());
            return (unusable(index, name, busy(error.0).to_owned()), None);
        }
    };
    let name = context.name().ok();
    let memory = context.mem_get_info().ok();
    let mode = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE).unwrap_or(0);
    let notes = name.as_deref().and_then(mig).into_iter().chain(compute_mode(mode)).map(str::to_owned).collect();
    let gpu = Gpu {
        index,
        name,
        compute_capability: context.compute_capability().ok(),
        memory_total_bytes: memory.map(|(_, total)| total as u64),
        memory_free_bytes: memory.map(|(free, _)| free as u64),
        notes,
    };
    (gpu, Some(context))
}

fn unusable(index: usize, name: Option<String>, note: String) -> Gpu {
    let notes = name.as_deref().and_then(mig).map(str::to_owned).into_iter().chain([note]).collect();
    let (compute_capability, memory_total_bytes, memory_free_bytes) = (None, None, None);
    Gpu { index, name, compute_capability, memory_total_bytes, memory_free_bytes, notes }
}

/// Whether NVRTC compiles, in which version, and whether the driver takes what it makes.
fn compiler(context: Option<&Arc<CudaContext>>) -> (Option<String>, Option<String>) {
    match cudarc::nvrtc::compile_ptx(TRIAL_KERNEL) {
        Err(error) => (None, Some(format!("NVRTC is here and does not compile: {error}"))),
        Ok(ptx) => {
            let version = nvrtc_version(&ptx.to_src()).unwrap_or("unknown").to_owned();
            let loaded = context.map(|context| context.load_module(ptx));
            let problem = match loaded {
                Some(Err(DriverError(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION))) => Some(format!(
                    "NVRTC {version} is newer than the driver understands; update the driver, or install an older NVRTC"
                )),
                Some(Err(error)) => Some(format!("the driver does not load what NVRTC {version} compiles: {error}")),
                Some(Ok(_)) | None => None,
            };
            (Some(version), problem)
        }
    }
}

/// The version in `/proc/driver/nvidia/version`.
fn driver_version(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    line.split_whitespace().find(|word| word.contains('.') && major(word).is_some())
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// The release in the head of what NVRTC makes: `// Cuda compilation tools, release 12.4, V12.4.131`.
fn nvrtc_version(ptx: &str) -> Option<&str> {
    ptx.lines()
        .find_map(|line| line.strip_prefix("// Cuda compilation tools")?.rsplit_once(", V").map(|(_, end)| end.trim()))
}

fn too_old(version: &str) -> Option<String> {
    let old = major(version).is_some_and(|major| major < OLDEST_DRIVER);
    old.then(|| format!("driver {version} is too old for CUDA 12; install driver {OLDEST_DRIVER} or newer"))
}

fn loader_problem(panic: &str, driver: Option<&str>) -> String {
    match (panic.contains("Unable to dynamically load"), driver) {
        (true, None) => format!("no NVIDIA driver (libcuda is not here); {USES_CPU}"),
        (true, Some(version)) => format!(
            "driver {version} is in the kernel, and its library libcuda.so.1 is not found; install the driver's CUDA \
             package, or give a container access to it; {USES_CPU}"
        ),
        (false, version) => format!(
            "the driver{} lacks what CUDA 12 needs ({}); install driver {OLDEST_DRIVER} or newer; {USES_CPU}",
            version.map(|version| format!(" {version}")).unwrap_or_default(),
            panic.lines().next().unwrap_or_default()
        ),
    }
}

fn nvrtc_problem(panic: &str) -> String {
    if panic.contains("Unable to dynamically load") {
        "NVRTC (libnvrtc.so) is not here; kernels could not be compiled: install it from CUDA's toolkit or the Python \
         package nvidia-cuda-nvrtc, and put its folder on LD_LIBRARY_PATH"
            .to_owned()
    } else {
        format!("NVRTC is too old ({}); install the one of CUDA 12", panic.lines().next().unwrap_or_default())
    }
}

/// Why the driver as a whole is of no use.
fn driver_problem(code: CUresult, version: Option<&str>) -> String {
    let what = match code {
        CUresult::CUDA_ERROR_NO_DEVICE => "the driver shows no GPU (is CUDA_VISIBLE_DEVICES empty?)",
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver's library and its kernel module are of different versions; restart the machine after the update"
        }
        CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "CUDA's compatibility package does not work with this GPU; remove it from LD_LIBRARY_PATH"
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "libcuda is the toolkit's stub; take its folder off LD_LIBRARY_PATH, and install a driver"
        }
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY => "the system is not ready for CUDA (is the fabric manager running?)",
        _ => {
            return version
                .and_then(too_old)
                .unwrap_or_else(|| format!("the driver does not start: {code:?}; see the kernel's log; {USES_CPU}"));
        }
    };
    format!("{what}; {USES_CPU}")
}

/// Why a GPU takes no work.
fn busy(code: CUresult) -> &'static str {
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => "busy: its memory is full, others use it",
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "busy or closed: another process has it for itself, or its compute mode is prohibited"
        }
        CUresult::CUDA_ERROR_INVALID_DEVICE => "not usable: MIG is on and it has no instance, or its number is wrong",
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE => "broken: its memory has errors that cannot be corrected",
        _ => "not usable: the driver makes no context on it",
    }
}

fn compute_mode(mode: i32) -> Option<&'static str> {
    match mode {
        2 => Some("compute mode prohibited: it takes no work"),
        3 => Some("compute mode exclusive: one process at a time"),
        _ => None,
    }
}

fn mig(name: &str) -> Option<&'static str> {
    name.contains(" MIG ").then_some("MIG: an instance, a part of a GPU")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_driver_and_compiler_write() {
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.2.0\n";
        assert_eq!(driver_version(text), Some("535.104.05"));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n";
        assert_eq!(driver_version(open), Some("580.65.06"));
        assert_eq!(driver_version("GCC version: 12.2.0\n"), None);
        let ptx = "//\n// Generated by NVIDIA NVVM Compiler\n// Cuda compilation tools, release 12.4, V12.4.131\n.version 8.4\n";
        assert_eq!(nvrtc_version(ptx), Some("12.4.131"));
        assert_eq!(nvrtc_version(".version 8.4\n"), None);
    }

    /// Each way in which a driver is of no use has its own words, with what to do.
    #[test]
    fn a_driver_that_cannot_be_used_is_explained() {
        let missing = "Unable to dynamically load the \"cuda\" shared library - searched for ...";
        assert_eq!(loader_problem(missing, None), "no NVIDIA driver (libcuda is not here); training uses the CPU");
        assert!(loader_problem(missing, Some("550.1")).contains("550.1 is in the kernel"));
        let symbol = loader_problem("Missing symbol cuSomething: x", Some("440.1"));
        assert!(symbol.contains("440.1 lacks") && symbol.contains("install driver 525"), "{symbol}");
        assert!(too_old("470.82.01").is_some_and(|text| text.contains("too old")) && too_old("525.60.13").is_none());
        let mismatch = driver_problem(CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, Some("550.1"));
        assert!(mismatch.contains("restart the machine"), "{mismatch}");
        assert!(driver_problem(CUresult::CUDA_ERROR_UNKNOWN, Some("470.1")).contains("too old"));
        assert!(driver_problem(CUresult::CUDA_ERROR_UNKNOWN, None).contains("CUDA_ERROR_UNKNOWN"));
        assert!(nvrtc_problem(missing).contains("install it"), "{}", nvrtc_problem(missing));
    }

    #[test]
    fn a_gpu_that_is_shared_or_taken_says_so() {
        assert!(busy(CUresult::CUDA_ERROR_OUT_OF_MEMORY).starts_with("busy"));
        assert!(busy(CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE).contains("prohibited"));
        assert!(mig("NVIDIA H100 80GB HBM3 MIG 1g.10gb").is_some() && mig("NVIDIA MIGHTY").is_none());
        assert!(compute_mode(0).is_none() && compute_mode(3).is_some_and(|text| text.contains("exclusive")));
        let gpu = unusable(1, Some("X MIG 1g.5gb".to_owned()), "busy".to_owned());
        assert_eq!(gpu.notes, ["MIG: an instance, a part of a GPU", "busy"]);
    }

    #[test]
    fn a_panic_of_the_loader_becomes_words() {
        let number = 3;
        assert_eq!(guarded(|| panic!("Missing symbol {number}")), Err::<(), _>("Missing symbol 3".to_owned()));
        assert_eq!(guarded(|| panic!("plain")), Err::<(), _>("plain".to_owned()));
    }
}
