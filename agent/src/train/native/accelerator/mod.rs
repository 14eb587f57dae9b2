//! The native models on a GPU, through burn's CubeCL backends: its plain ones, which measure nothing to choose kernels by and
//! merge no operations, in f32.
//!
//! ```text
//!  host                                     device
//!  flat model ──── one copy a step ────►    matrices ──► logits
//!  loss, its gradient by the logits  ◄──┐      │
//!        └──────────────────────────────┴──►   ▼
//!  flat gradient ◄── one copy a step ────   gradients (burn's autodiff)
//!  optimizer
//! ```
//!
//! A driver may crash or hang, and an error of CUDA's stays until its process ends: a device is only opened in a process that
//! may be lost, and a panic there ends it with the panic's words as its last (see [`end_at_a_panic`]).

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "vulkan", feature = "metal"))]
mod graphics;
#[cfg(feature = "rocm")]
mod rocm;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use burn_autodiff::Autodiff;
use burn_tensor::{Device, Tensor, TensorData};
use nix::sys::resource::{Resource, setrlimit};

use super::architecture::Architecture;
use super::engine::{Batch, Engine};
use super::graph::{Place, Trains};
use super::memory::Room;
use super::ops::ImageOps;
use super::text_ops::TextOps;
#[cfg(not(all(feature = "cuda", feature = "rocm", feature = "vulkan", feature = "metal")))]
use crate::device::ChoiceError;
use crate::device::probe::Found;
use crate::device::{GpuBackend, GpuId, gpu};

/// A CPU's batches are small for its caches; a GPU's are to fill it.
const BREADTH: usize = 16;

/// A device that cannot be trained on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceError {
    /// This build has no code for it.
    #[cfg(not(all(feature = "cuda", feature = "rocm", feature = "vulkan", feature = "metal")))]
    #[error("{0}")]
    NotBuilt(String),
    /// There is no such device.
    #[error("{id} does not exist: {there}")]
    Missing {
        /// What was asked for.
        id: GpuId,
        /// What there is.
        there: String,
    },
    /// It is there, and does not work.
    #[error("{id} cannot be used: {why}")]
    Broken {
        /// What was asked for.
        id: GpuId,
        /// In the driver's words.
        why: String,
    },
}

/// Makes a backend of burn's one that native models can be trained with, by burn's own operations.
macro_rules! trains {
    ($backend:ty) => {
        impl super::ImageOps for $backend {}
        impl<C: burn_autodiff::checkpoint::strategy::CheckpointStrategy> super::ImageOps
            for burn_autodiff::Autodiff<$backend, C>
        {
        }
        impl crate::train::native::attention::Attention for $backend {}
        impl<C: burn_autodiff::checkpoint::strategy::CheckpointStrategy> crate::train::native::attention::Attention
            for burn_autodiff::Autodiff<$backend, C>
        {
        }
        impl crate::train::native::dense_ops::DenseOps for $backend {}
        impl<C: burn_autodiff::checkpoint::strategy::CheckpointStrategy> crate::train::native::dense_ops::DenseOps
            for burn_autodiff::Autodiff<$backend, C>
        {
        }
        impl super::TextOps for $backend {}
        impl<C: burn_autodiff::checkpoint::strategy::CheckpointStrategy> super::TextOps
            for burn_autodiff::Autodiff<$backend, C>
        {
        }
        impl super::Trains for $backend {
            const IS_FAR: bool = true;
        }
    };
}
#[cfg_attr(
    not(any(feature = "cuda", feature = "rocm", feature = "vulkan", feature = "metal")),
    expect(unused_imports, reason = "no backend")
)]
use trains;

/// Opens the device `id`, or finds it open, and tries it.
///
/// # Errors
/// It is not there, or does not work. A driver may end the process instead, or hang.
pub(crate) fn look(id: GpuId) -> Result<Found, DeviceError> {
    match id.backend {
        #[cfg(feature = "cuda")]
        GpuBackend::Cuda => cuda::open(id).map(|(_, found)| found),
        #[cfg(feature = "rocm")]
        GpuBackend::Rocm => rocm::open(id).map(|(_, found)| found),
        #[cfg(feature = "vulkan")]
        GpuBackend::Vulkan => graphics::vulkan(id).map(|(_, found)| found),
        #[cfg(feature = "metal")]
        GpuBackend::Metal => graphics::metal(id).map(|(_, found)| found),
        #[cfg(not(all(feature = "cuda", feature = "rocm", feature = "vulkan", feature = "metal")))]
        other => Err(DeviceError::NotBuilt(ChoiceError::NotBuilt(other).to_string())),
    }
}

/// What computes on the device `id`.
///
/// # Errors
/// As [`look`].
pub(super) fn engine(id: GpuId, threads: rayon::ThreadPool) -> Result<Box<dyn Engine>, DeviceError> {
    match id.backend {
        #[cfg(feature = "cuda")]
        GpuBackend::Cuda => Ok(Far::<burn_cuda::Cuda>::boxed(cuda::open(id)?, threads)),
        #[cfg(feature = "rocm")]
        GpuBackend::Rocm => Ok(Far::<burn_rocm::Rocm>::boxed(rocm::open(id)?, threads)),
        #[cfg(feature = "vulkan")]
        GpuBackend::Vulkan => Ok(Far::<burn_wgpu::Wgpu>::boxed(graphics::vulkan(id)?, threads)),
        #[cfg(feature = "metal")]
        GpuBackend::Metal => Ok(Far::<burn_wgpu::Wgpu>::boxed(graphics::metal(id)?, threads)),
        #[cfg(not(all(feature = "cuda", feature = "rocm", feature = "vulkan", feature = "metal")))]
        other => Err(DeviceError::NotBuilt(ChoiceError::NotBuilt(other).to_string())),
    }
}

/// A device, opened. Everything is asked of it by one thread: it keeps a queue for each thread that asks.
struct Far<B: Trains> {
    device: Device<B>,
    found: Found,
    threads: rayon::ThreadPool,
}

impl<B: Trains> fmt::Debug for Far<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Far").field("device", &self.device).field("found", &self.found).finish_non_exhaustive()
    }
}

impl<B: Trains> Far<B>
where
    Autodiff<B>: ImageOps + TextOps,
{
    fn boxed((device, found): (Device<B>, Found), threads: rayon::ThreadPool) -> Box<dyn Engine> {
        Box::new(Self { device, found, threads })
    }

    fn place<'a>(&'a self, architecture: &'a Architecture) -> Place<'a, B> {
        Place { stage: &architecture.whole, device: &self.device, threads: &self.threads }
    }
}

impl<B: Trains> Engine for Far<B>
where
    Autodiff<B>: ImageOps + TextOps,
{
    fn backward(
        &self,
        architecture: &Architecture,
        model: &[f32],
        inputs: Vec<f32>,
        labels: &[u32],
        gradient: &mut Vec<f32>,
    ) -> f64 {
        self.place(architecture).gradient(model, inputs, labels, gradient)
    }

    fn evaluate(
        &self,
        architecture: &Architecture,
        model: &[f32],
        batches: usize,
        read: &(dyn Fn(usize) -> Batch + Sync),
    ) -> Vec<(f64, u64)> {
        let place = self.place(architecture);
        let params = place.params(model, &[]);
        let score = |batch: usize| {
            let (inputs, labels) = read(batch);
            let score = place.forward(&params, inputs, &labels);
            (score.loss_sum, score.correct)
        };
        (0..batches).map(score).collect()
    }

    fn breadth(&self) -> usize {
        BREADTH
    }

    fn room(&self) -> Room {
        // A program that looks like a GPU takes this process's memory.
        if self.found.software { Room::Process } else { Room::Device(self.found.memory_free_bytes) }
    }
}

/// The devices that this process has opened: their drivers let them be set up once.
struct Opened<D>(Mutex<BTreeMap<GpuId, (D, Found)>>);

impl<D: Clone> Opened<D> {
    const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    fn or(&self, id: GpuId, open: impl FnOnce() -> Result<(D, Found), DeviceError>) -> Result<(D, Found), DeviceError> {
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = opened.get(&id) {
            return Ok(found.clone());
        }
        let found = open()?;
        opened.insert(id, found.clone());
        Ok(found)
    }
}

/// Multiplies two small matrices of whole numbers, whose product is exact.
fn attempt<B: Trains>(id: GpuId, device: &Device<B>) -> Result<(), DeviceError> {
    let product = gpu::guarded(|| {
        let matrix =
            |values: [f32; 6], shape| Tensor::<B, 2>::from_data(TensorData::new(values.to_vec(), shape), device);
        let product =
            matrix([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]).matmul(matrix([7.0, 8.0, 9.0, 10.0, 11.0, 12.0], [3, 2]));
        product.into_data().into_vec::<f32>()
    });
    match product {
        Ok(Ok(product)) if product == [58.0, 64.0, 139.0, 154.0] => Ok(()),
        Ok(product) => Err(broken(id, format!("a small product of matrices is wrong: {product:?}"))),
        Err(panic) => Err(broken(id, panic)),
    }
}

fn broken(id: GpuId, why: impl AsRef<str>) -> DeviceError {
    DeviceError::Broken { id, why: one_line(why.as_ref()) }
}

/// From now on a panic on any thread ends this process, with one line on standard error that says why. What a backend's own
/// thread panics over would be lost otherwise, and the request that waits for it would only hear that it is gone.
pub(crate) fn end_at_a_panic() {
    // What is in memory helps nobody, and there is much of it. Without this the system may write it to the disk.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        eprintln!("{}", last_words(text.unwrap_or("no reason given")));
        // Not an orderly exit: that asks the driver, which may hang.
        std::process::abort();
    }));
}

/// A panic's words in one line; what comes of too little memory begins so that it is recognised (docs/trainer-protocol.md).
fn last_words(panic: &str) -> String {
    const SIGNS: [&str; 6] = [
        "out of memory",
        "out-of-memory",
        "out_of_memory",
        "outofmemory",
        "not enough memory",
        "allocate buffer of size",
    ];
    let lower = panic.to_lowercase();
    let what =
        if SIGNS.iter().any(|sign| lower.contains(sign)) { "the GPU is out of memory" } else { "the GPU failed" };
    format!("{what}: {}", one_line(panic))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_one_line_which_tells_too_little_memory_from_the_rest() {
        let of_cubecl =
            "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 99\n  0: main\n  1: x";
        let told = last_words(of_cubecl);
        assert!(told.starts_with("the GPU is out of memory: called") && told.ends_with("0: main 1: x"), "{told}");
        for text in ["CUDA_ERROR_OUT_OF_MEMORY", "wgpu error: Out of Memory", "Not enough memory left", "OutOfMemory"] {
            assert!(last_words(text).starts_with("the GPU is out of memory: "), "{text}");
        }
        assert_eq!(last_words("CUDA_ERROR_ILLEGAL_ADDRESS"), "the GPU failed: CUDA_ERROR_ILLEGAL_ADDRESS");
    }
}
