//! ROCm, on AMD's GPUs: its library is loaded at run time.

use burn_rocm::Rocm;
use burn_rocm::RocmDevice;
use cubecl::Runtime as _;
use cubecl::hip::HipRuntime;

use super::{DeviceError, Opened, attempt, broken, trains};
use crate::device::probe::Found;
use crate::device::{GpuId, gpu};

trains!(Rocm);

static OPENED: Opened<RocmDevice> = Opened::new();

/// Opens a ROCm device.
pub(super) fn open(id: GpuId) -> Result<(RocmDevice, Found), DeviceError> {
    OPENED.or(id, || {
        let count = gpu::guarded(|| HipRuntime::enumerate_devices(0, &()).len()).map_err(|panic| broken(id, panic))?;
        if usize::from(id.index) >= count {
            let there = match count {
                0 => "ROCm shows no GPU here".to_owned(),
                count => format!("the ROCm devices here are numbered 0 to {}", count - 1),
            };
            return Err(DeviceError::Missing { id, there });
        }
        let device = RocmDevice::new(usize::from(id.index));
        attempt::<Rocm>(id, &device)?;
        let name = format!("AMD GPU {}", id.index);
        Ok((device, Found { name, memory_free_bytes: None, software: false }))
    })
}
