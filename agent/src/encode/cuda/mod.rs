//! The top-k encoder on a GPU: only what is sent leaves the device, and the bytes are those of the CPU's encoder.
//!
//! ```text
//!  base, end ──► combine ──► choose / survivors / refine ──► tally, place, emit ──► quantize ──► host: Rice codes, payload
//!  left out  ──►   │ sum      the k-th largest magnitude,    positions, in order    int8, scales
//!                  │          digit by digit                                           │
//!                  └───────────────────────── what is left out now ◄───────────────────┘
//! ```
//! [`topk::GpuTopK`] decides what is launched, over an [`Engine`]: [`device::CudaEngine`] is a GPU. Tests have two more
//! (`tests/src/encoder`): one retells each kernel on the CPU, one runs the very text of `kernels.cu` compiled for the CPU.
//! [`encoder::RoundEncoder`] is what a training child encodes with. What it left out must survive a restart: that is for
//! the ledger ([`crate::store`]), which works it out of delta and payload.

pub mod device;
pub mod encoder;
pub mod topk;

use std::fmt;

use anabranch_common::codec::EncodeError;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Where updates are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncoderPlace {
    /// Where they are trained, on an NVIDIA GPU; elsewhere by the agent.
    #[default]
    Auto,
    /// By the agent.
    Cpu,
}

impl EncoderPlace {
    /// Whether nothing else was said.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(crate) fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// The kernels, in CUDA's C++.
pub const KERNELS: &str = include_str!("kernels.cu");

/// Threads of every block.
pub const THREADS: u32 = 256;
/// Elements of a chunk that one block sees to.
pub const TILE: usize = 4_096;

/// What can be launched; `kernels.cu` says what each does. The order is that of the numbers in `host.cpp` of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Sum of delta and feedback, counts of the first digit.
    Combine,
    /// The digit that the threshold has.
    Choose,
    /// Positions that can still win.
    Survivors,
    /// Counts of the next digit.
    Refine,
    /// Keys above and on the threshold, a tile.
    Tally,
    /// Where each tile's entries go.
    Place,
    /// The positions that are sent.
    Emit,
    /// int8 values, scales, and what they leave over.
    Quantize,
}

impl Kernel {
    /// Every kernel.
    pub const ALL: [Self; 8] = [
        Self::Combine,
        Self::Choose,
        Self::Survivors,
        Self::Refine,
        Self::Tally,
        Self::Place,
        Self::Emit,
        Self::Quantize,
    ];

    /// Its name in `kernels.cu`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Combine => "combine",
            Self::Choose => "choose",
            Self::Survivors => "survivors",
            Self::Refine => "refine",
            Self::Tally => "tally",
            Self::Place => "place",
            Self::Emit => "emit",
            Self::Quantize => "quantize",
        }
    }
}

/// Memory of an engine, by number: 32-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer(pub usize);

/// Why the GPU did not do it.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// No driver, no NVRTC, or kernels that do not compile: this process has no GPU encoder.
    #[error("the GPU cannot encode: {0}")]
    Unusable(String),
    /// A call failed. Such errors stick: nothing on this device works in this process any more.
    #[error("the GPU failed in {what}: {detail}")]
    Failed {
        /// What it was doing.
        what: &'static str,
        /// What the driver says.
        detail: String,
    },
    /// What it was given cannot be encoded; the state is as before.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// What the encoder needs of a device. Calls take effect in their order.
pub trait Engine: fmt::Debug {
    /// New memory, zeroed.
    ///
    /// # Errors
    /// There is not so much.
    fn alloc(&mut self, words: usize) -> Result<Buffer, GpuError>;

    /// Writes words from `at` on.
    ///
    /// # Errors
    /// The device fails.
    fn write(&mut self, buffer: Buffer, at: usize, words: &[u32]) -> Result<(), GpuError>;

    /// Reads words from `at` on.
    ///
    /// # Errors
    /// The device fails.
    fn read(&mut self, buffer: Buffer, at: usize, words: &mut [u32]) -> Result<(), GpuError>;

    /// Launches `grid` blocks of [`THREADS`]; the arguments are the buffers and then the scalars.
    ///
    /// # Errors
    /// The device fails.
    fn launch(&mut self, kernel: Kernel, grid: usize, buffers: &[Buffer], scalars: &[u32]) -> Result<(), GpuError>;

    /// Waits until everything is done.
    ///
    /// # Errors
    /// The device failed in something that was launched.
    fn finish(&mut self) -> Result<(), GpuError>;

    /// Writes floats from `at` on.
    ///
    /// # Errors
    /// The device fails.
    fn write_floats(&mut self, buffer: Buffer, at: usize, values: &[f32]) -> Result<(), GpuError> {
        for (nth, values) in values.chunks(STAGE).enumerate() {
            let words: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
            self.write(buffer, at + nth * STAGE, &words)?;
        }
        Ok(())
    }

    /// Reads `count` floats from the start.
    ///
    /// # Errors
    /// The device fails.
    fn read_floats(&mut self, buffer: Buffer, count: usize) -> Result<Vec<f32>, GpuError> {
        let mut words = vec![0; count];
        self.read(buffer, 0, &mut words)?;
        Ok(words.into_iter().map(f32::from_bits).collect())
    }
}

impl Engine for Box<dyn Engine> {
    fn alloc(&mut self, words: usize) -> Result<Buffer, GpuError> {
        self.as_mut().alloc(words)
    }

    fn write(&mut self, buffer: Buffer, at: usize, words: &[u32]) -> Result<(), GpuError> {
        self.as_mut().write(buffer, at, words)
    }

    fn read(&mut self, buffer: Buffer, at: usize, words: &mut [u32]) -> Result<(), GpuError> {
        self.as_mut().read(buffer, at, words)
    }

    fn launch(&mut self, kernel: Kernel, grid: usize, buffers: &[Buffer], scalars: &[u32]) -> Result<(), GpuError> {
        self.as_mut().launch(kernel, grid, buffers, scalars)
    }

    fn finish(&mut self) -> Result<(), GpuError> {
        self.as_mut().finish()
    }
}

/// Words of one staging buffer: 16 MiB.
pub const STAGE: usize = 4 << 20;
