//! CUDA, on NVIDIA's GPUs: kernels are compiled by NVRTC at run time, which needs CUDA's headers (`CUDA_PATH`).

use burn_cuda::Cuda;
use burn_cuda::CudaDevice;

use super::{DeviceError, Opened, attempt, broken, trains};
use crate::device::probe::Found;
use crate::device::{GpuId, gpu};

trains!(Cuda);

static OPENED: Opened<CudaDevice> = Opened::new();

/// Opens a CUDA device.
pub(super) fn open(id: GpuId) -> Result<(CudaDevice, Found), DeviceError> {
    OPENED.or(id, || {
        let report = gpu::look();
        let problems = report.problems.join("; ");
        let Some(gpu) = report.gpus.get(usize::from(id.index)) else {
            let there = match report.gpus.len() {
                0 => problems,
                count => format!("the driver's GPUs are numbered 0 to {}", count - 1),
            };
            return Err(DeviceError::Missing { id, there });
        };
        if gpu.memory_total_bytes.is_none() {
            return Err(broken(id, gpu.notes.join("; ")));
        }
        let device = CudaDevice::new(usize::from(id.index));
        attempt::<Cuda>(id, &device).map_err(|error| match error {
            DeviceError::Broken { id, why } if !problems.is_empty() => broken(id, format!("{why}; {problems}")),
            other => other,
        })?;
        let name = gpu.name.clone().unwrap_or_else(|| "a GPU without a name".to_owned());
        Ok((device, Found { name, memory_free_bytes: gpu.memory_free_bytes, software: false }))
    })
}
