//! Vulkan and Metal, through wgpu: kernels are WGSL, which wgpu translates for the driver. Drivers are loaded at run time.
//!
//! Devices are numbered with the GPUs on boards of their own first, then those in the processor, then virtual ones, then a
//! program that only looks like one (Mesa's lavapipe).

use burn_wgpu::Wgpu;
use burn_wgpu::graphics::{self, GraphicsApi};
use burn_wgpu::{RuntimeOptions, WgpuDevice, WgpuRuntime, init_setup};
use cubecl::Runtime as _;

use super::{DeviceError, Opened, attempt, broken, trains};
use crate::device::probe::Found;
use crate::device::{GpuId, gpu};

trains!(Wgpu);

static OPENED: Opened<WgpuDevice> = Opened::new();

/// Opens a Vulkan device.
#[cfg(feature = "vulkan")]
pub(super) fn vulkan(id: GpuId) -> Result<(WgpuDevice, Found), DeviceError> {
    open::<graphics::Vulkan>(id, "is a driver for Vulkan installed?")
}

/// Opens a Metal device.
#[cfg(feature = "metal")]
pub(super) fn metal(id: GpuId) -> Result<(WgpuDevice, Found), DeviceError> {
    open::<graphics::Metal>(id, "only macOS has them")
}

fn open<G: GraphicsApi>(id: GpuId, hint: &str) -> Result<(WgpuDevice, Found), DeviceError> {
    OPENED.or(id, || {
        let devices = gpu::guarded(devices::<G>).map_err(|panic| broken(id, panic))?;
        let there = || match devices.len() {
            0 => format!("there is no {} device here ({hint})", id.backend.name()),
            count => format!("the {} devices here are numbered 0 to {}", id.backend.name(), count - 1),
        };
        let device = devices.get(usize::from(id.index)).ok_or_else(|| DeviceError::Missing { id, there: there() })?;
        let setup = gpu::guarded(|| init_setup::<G>(device, RuntimeOptions::default()));
        let info = setup.map_err(|panic| broken(id, panic))?.adapter.get_info();
        attempt::<Wgpu>(id, device)?;
        let software = *device == WgpuDevice::Cpu;
        Ok((device.clone(), Found { name: info.name, memory_free_bytes: None, software }))
    })
}

fn devices<G: GraphicsApi>() -> Vec<WgpuDevice> {
    // The numbers are CubeCL's for the kinds of devices.
    let count = |kind| WgpuRuntime::enumerate_devices(kind, &G::backend()).len();
    let discrete = (0..count(0)).map(WgpuDevice::DiscreteGpu);
    let integrated = (0..count(1)).map(WgpuDevice::IntegratedGpu);
    let virtual_gpus = (0..count(2)).map(WgpuDevice::VirtualGpu);
    let software = (count(3) > 0).then_some(WgpuDevice::Cpu);
    discrete.chain(integrated).chain(virtual_gpus).chain(software).collect()
}
