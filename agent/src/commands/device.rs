//! What `--device` comes to here, and `probe-device`, which tries a GPU in a process of its own.

use anabranch_io::exit::{ExitCode, Fail};

use crate::device::probe::{Found, Probe};
use crate::device::{Choice, GpuBackend, GpuId};

/// The GPU that the native models are trained on, if it is one. Of `auto` the log says why.
pub(super) fn choose(choice: Choice) -> Option<GpuId> {
    match choice {
        Choice::Cpu => None,
        Choice::Gpu(id) => Some(id),
        Choice::Auto => GpuBackend::ALL.into_iter().filter(|backend| backend.is_built()).find_map(automatic),
    }
}

/// The first device of `backend`, if it computes and is a GPU.
fn automatic(backend: GpuBackend) -> Option<GpuId> {
    let id = backend.first();
    match attempt("run", id) {
        Ok(Found { name, software: false, .. }) => {
            tracing::info!(name, "device auto: {id}");
            Some(id)
        }
        Ok(Found { name, .. }) => {
            tracing::info!(name, "device auto: not {id}, which is a program on the CPU; --device {id} takes it");
            None
        }
        Err(problem) => {
            tracing::info!("device auto: not {id}: {problem}");
            None
        }
    }
}

/// Opens `id` and computes a little on it, in a child. `verb` is the one that this process runs.
pub(super) fn attempt(verb: &str, id: GpuId) -> Result<Found, String> {
    let probe = Probe::of_device(verb, id).map_err(|error| error.to_string())?;
    probe.run::<Result<Found, String>>().unwrap_or_else(|error| Err(error.to_string()))
}

/// A program of the user's trains, and a GPU was asked for by name.
pub(super) fn refuse_for_programs(choice: Choice) -> anyhow::Result<()> {
    let Choice::Gpu(id) = choice else { return Ok(()) };
    Err(Fail::new(
        ExitCode::Usage,
        format!("device {id} is for the native models, and a program of your own trains here"),
    )
    .help("tell the program itself where to train, and leave the device at auto")
    .into())
}

/// Runs `probe-device`, in the child.
pub(super) fn probe(id: GpuId) -> anyhow::Result<()> {
    // Panics of a backend become words in the report; on standard error they would be taken for a crash.
    std::panic::set_hook(Box::new(|_| {}));
    super::print(&format!("{}\n", serde_json::to_string(&open(id).map_err(|error| error.to_string()))?))
}

/// Opens `id` in this process, which is a child.
#[cfg(feature = "accelerator")]
pub(super) fn open(id: GpuId) -> anyhow::Result<Found> {
    Ok(crate::train::native::accelerator::look(id)?)
}

/// The same in a build that has no such devices, and so no names for them.
#[cfg(not(feature = "accelerator"))]
pub(super) fn open(id: GpuId) -> anyhow::Result<Found> {
    Err(crate::device::ChoiceError::NotBuilt(id.backend).into())
}

/// From now on a panic ends this process, which is a child that trains on a GPU, with its words.
pub(super) fn end_at_a_panic() {
    #[cfg(feature = "accelerator")]
    crate::train::native::accelerator::end_at_a_panic();
}
