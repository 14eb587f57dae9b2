//! A GPU through cudarc: NVRTC compiles the kernels when the process starts, the driver's library is loaded at run time.
//! NVRTC has compiled them where this was written; nothing here was ever run on a GPU, since none was at hand. Meant for a trainer's process: an error that sticks
//! and a library that crashes end there.

use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, LaunchConfig, PinnedHostSlice, PushKernelArg as _,
};
use cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts};

use super::{Buffer, Engine, GpuError, KERNELS, Kernel, STAGE, THREADS};
use crate::device::gpu;

/// One GPU, one stream, and two staging buffers that the driver copies from and to directly.
#[derive(Debug)]
pub struct CudaEngine {
    stream: Arc<CudaStream>,
    functions: Vec<CudaFunction>,
    memory: Vec<CudaSlice<u32>>,
    stages: [PinnedHostSlice<u32>; 2],
}

impl CudaEngine {
    /// The GPU of this number in the driver's order.
    ///
    /// # Errors
    /// There is no driver, no NVRTC or no such GPU, or the kernels do not compile.
    pub fn new(index: usize) -> Result<Self, GpuError> {
        guarded(|| Self::open(index))
    }

    fn open(index: usize) -> Result<Self, GpuError> {
        let unusable = |error: &dyn std::fmt::Display| GpuError::Unusable(error.to_string());
        let context = CudaContext::new(index).map_err(|error| unusable(&error))?;
        let module = context.load_module(compile()?).map_err(|error| unusable(&error))?;
        let load = |kernel: &Kernel| module.load_function(kernel.name()).map_err(|error| unusable(&error));
        let functions = Kernel::ALL.iter().map(load).collect::<Result<_, _>>()?;
        let stages = [stage(&context)?, stage(&context)?];
        Ok(Self { stream: context.default_stream(), functions, memory: Vec::new(), stages })
    }

    /// Copies a buffer into another that is as long, on the device: what the encoder's speed is measured against.
    ///
    /// # Errors
    /// The device fails.
    ///
    /// # Panics
    /// When both are the same.
    pub fn copy(&mut self, from: Buffer, to: Buffer) -> Result<(), GpuError> {
        let [source, target] = self.memory.get_disjoint_mut([from.0, to.0]).expect("two buffers of this engine");
        self.stream.memcpy_dtod(&*source, target).map_err(|error| failed("a copy on the device", &error))
    }
}

/// A library that is missing is an error like others.
fn guarded<T>(work: impl FnOnce() -> Result<T, GpuError>) -> Result<T, GpuError> {
    gpu::guarded(work)
        .unwrap_or_else(|panic| Err(GpuError::Unusable(panic.lines().next().unwrap_or("no reason given").to_owned())))
}

/// The kernels as NVRTC compiles them. Nothing is fused, flushed or approximated: the bits are the CPU's.
fn compile() -> Result<Ptx, GpuError> {
    let options = CompileOptions {
        ftz: Some(false),
        prec_div: Some(true),
        prec_sqrt: Some(true),
        fmad: Some(false),
        ..CompileOptions::default()
    };
    compile_ptx_with_opts(KERNELS, options).map_err(|error| GpuError::Unusable(format!("{error:?}")))
}

fn failed(what: &'static str, error: &cudarc::driver::DriverError) -> GpuError {
    GpuError::Failed { what, detail: error.to_string() }
}

/// Memory that the system does not move. Not the write-combined kind: it is read here too.
#[expect(unsafe_code, reason = "cudarc gives such memory without setting it")]
fn stage(context: &Arc<CudaContext>) -> Result<PinnedHostSlice<u32>, GpuError> {
    // SAFETY: any bits are a u32, and all of them are written before anything reads them.
    let memory = unsafe { context.alloc_pinned_with_flags::<u32>(STAGE, 0) };
    let mut memory = memory.map_err(|error| failed("allocating a staging buffer", &error))?;
    memory.as_mut_slice().map_err(|error| failed("clearing a staging buffer", &error))?.fill(0);
    Ok(memory)
}

impl Engine for CudaEngine {
    fn alloc(&mut self, words: usize) -> Result<Buffer, GpuError> {
        let memory = self.stream.alloc_zeros(words).map_err(|error| failed("allocating memory", &error))?;
        self.memory.push(memory);
        Ok(Buffer(self.memory.len() - 1))
    }

    /// Full stages go through one staging buffer while the other is still on its way.
    fn write(&mut self, buffer: Buffer, at: usize, words: &[u32]) -> Result<(), GpuError> {
        let error = |error| failed("a copy to the device", &error);
        let memory = &mut self.memory[buffer.0];
        for (nth, words) in words.chunks(STAGE).enumerate() {
            let from = at + nth * STAGE;
            let mut target = memory.slice_mut(from..from + words.len());
            if words.len() == STAGE {
                let stage = &mut self.stages[nth % 2];
                // Waits for the copy that this stage was last used for.
                stage.as_mut_slice().map_err(error)?.copy_from_slice(words);
                self.stream.memcpy_htod(&*stage, &mut target).map_err(error)?;
            } else {
                self.stream.memcpy_htod(words, &mut target).map_err(error)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, buffer: Buffer, at: usize, words: &mut [u32]) -> Result<(), GpuError> {
        let error = |error| failed("a copy from the device", &error);
        let memory = &self.memory[buffer.0];
        let mut waiting: Option<(usize, &mut [u32])> = None;
        for (nth, words) in words.chunks_mut(STAGE).enumerate() {
            let from = at + nth * STAGE;
            let source = memory.slice(from..from + words.len());
            if words.len() == STAGE {
                self.stream.memcpy_dtoh(&source, &mut self.stages[nth % 2]).map_err(error)?;
                if let Some((stage, words)) = waiting.replace((nth % 2, words)) {
                    words.copy_from_slice(self.stages[stage].as_slice().map_err(error)?);
                }
            } else {
                self.stream.memcpy_dtoh(&source, words).map_err(error)?;
            }
        }
        if let Some((stage, words)) = waiting {
            words.copy_from_slice(self.stages[stage].as_slice().map_err(error)?);
        }
        self.finish()
    }

    #[expect(unsafe_code, reason = "nothing checks a kernel's arguments but its author")]
    fn launch(&mut self, kernel: Kernel, grid: usize, buffers: &[Buffer], scalars: &[u32]) -> Result<(), GpuError> {
        let Ok(blocks @ 1..) = u32::try_from(grid) else {
            return if grid == 0 {
                Ok(())
            } else {
                Err(GpuError::Failed { what: kernel.name(), detail: format!("a grid of {grid} blocks is too large") })
            };
        };
        let mut arguments = self.stream.launch_builder(&self.functions[kernel as usize]);
        for buffer in buffers {
            arguments.arg(&self.memory[buffer.0]);
        }
        for scalar in scalars {
            arguments.arg(scalar);
        }
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: `topk` gives each kernel the buffers and scalars that kernels.cu names, in that order, and sizes them for
        // the grid; every word of every buffer was set. Everything is on one stream, so nothing runs beside it. The tests
        // run the same calls on the same text with bounds of their own.
        unsafe { arguments.launch(config) }.map(drop).map_err(|error| failed(kernel.name(), &error))
    }

    fn finish(&mut self) -> Result<(), GpuError> {
        self.stream.synchronize().map_err(|error| failed("waiting for the device", &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the agent against a machine without a driver: the loader's panic becomes an error in words.
    #[test]
    fn a_machine_without_a_gpu_is_told_so() {
        // Where there is one, its kernels compile.
        if let Err(error) = CudaEngine::new(0) {
            assert!(error.to_string().starts_with("the GPU cannot encode: "), "{error}");
        }
    }

    /// NVIDIA's own compiler takes the kernels, and leaves every operation rounded by itself. It needs no GPU.
    #[test]
    fn nvrtc_compiles_the_kernels_and_fuses_nothing() {
        let ptx = match guarded(|| Ok(compile()?.to_src())) {
            Ok(ptx) => ptx,
            Err(error) => {
                assert!(std::env::var("CI").as_deref() != Ok("true"), "CI has no NVRTC: {error}");
                eprintln!("there is no NVRTC: the kernels were not compiled ({error})");
                return;
            }
        };
        for kernel in Kernel::ALL {
            assert!(ptx.contains(&format!(".entry {}(", kernel.name())), "no {}", kernel.name());
        }
        let operations = |name: &str| ptx.lines().filter(|line| line.trim_start().starts_with(name)).count();
        assert!(operations("sub.rn.f32") > 0 && operations("div.rn.f32") > 0, "{ptx}");
        for other in ["fma.", "mad.rn", ".ftz", ".approx", "div.full"] {
            assert!(!ptx.contains(other), "{other} in the code");
        }
    }
}
