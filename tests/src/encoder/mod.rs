//! The GPU's encoder on machines without a GPU: its kernels retold on the CPU, and a trainer that encodes with them.
//!
//! ```text
//!  run --dir DIR -- anabranch-lab as-emulated-trainer
//!   └── trainer protocol ──► native trainer + RoundEncoder over Emulator
//! ```
//! The tests here compare payloads and feedback states with those of the CPU's encoder, bit for bit.

mod child;
mod emulate;

#[cfg(test)]
mod chain_tests;
#[cfg(test)]
mod tests;

pub use child::main;
pub use emulate::Emulator;
