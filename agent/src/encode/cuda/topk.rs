//! The top-k encoder over an [`Engine`]: which kernels run on what, and the payload from what they leave.

use std::ops::Range;

use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::quantize::BLOCK;
use anabranch_common::codec::sparse::{self, TopK};
use anabranch_common::codec::{EncodeError, rice};
use anabranch_common::manifest::ModelManifest;

use super::{Buffer, Engine, GpuError, Kernel, TILE};

/// Bins of the largest digit.
const BINS: usize = 2_048;
/// Words of a chunk's state; `kernels.cu` has their names.
const STATE: usize = 9;
const COUNT: usize = 8;

/// Bytes of the device's memory for each parameter: both models and two feedback states; what is sent comes on top.
pub const ENCODER_BYTES_PER_PARAM: u64 = 17;

/// A chunk, as the payload has it.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: u32,
    /// Where its entries start.
    place: usize,
    first_block: usize,
}

/// What depends on the manifest and the fraction only.
#[derive(Debug, Default)]
struct Plan {
    params: usize,
    parts: Vec<Part>,
    tiles: Vec<u32>,
    chunks: Vec<u32>,
    blocks: Vec<u32>,
    entries: usize,
}

impl Plan {
    fn new(manifest: &ModelManifest, codec: TopK) -> Self {
        let mut plan = Self { params: manifest.params(), ..Self::default() };
        for chunk in sparse::chunks(plan.params) {
            plan.add_chunk(&chunk, codec.keep(chunk.len()));
        }
        plan
    }

    fn add_chunk(&mut self, chunk: &Range<usize>, keep: usize) {
        let (nth, first_block, place) = (self.parts.len(), self.blocks.len() / 2, self.entries);
        let first_tile = self.tiles.len() / 3;
        self.add_tiles(word(nth), chunk);
        self.parts.push(Part { start: word(chunk.start), place, first_block });
        let tiles = self.tiles.len() / 3 - first_tile;
        self.chunks.extend([word(keep), 0, 0, 0, 0, word(first_tile), word(tiles), word(place), 0]);
        self.blocks.extend((0..keep.div_ceil(BLOCK)).flat_map(|block| [word(nth), word(block)]));
        self.entries += keep;
    }

    fn add_tiles(&mut self, owner: u32, range: &Range<usize>) {
        for at in range.clone().step_by(TILE) {
            self.tiles.extend([owner, word(at), word((range.end - at).min(TILE))]);
        }
    }
}

/// A manifest has at most 2^30 parameters (`limits::MODEL_PARAMS`), and nothing here is counted that is more.
fn word(number: usize) -> u32 {
    u32::try_from(number).expect("a model has at most 2^30 parameters")
}

#[derive(Debug)]
struct Buffers {
    /// The model after training; then the positions that can still win.
    end: Buffer,
    base: Buffer,
    left_out: [Buffer; 2],
    tiles: Buffer,
    chunks: Buffer,
    counts: Buffer,
    bad: Buffer,
    found: Buffer,
    tallies: Buffer,
    blocks: Buffer,
    positions: Buffer,
    scales: Buffer,
    bytes: Buffer,
}

/// Which feedback state counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    /// Which of the two buffers.
    slot: usize,
    /// Whether anything is in it.
    any: bool,
}

/// The top-k encoder with error feedback, on a device. The payload and the state are those of
/// [`Feedback::encode`](anabranch_common::codec::feedback::Feedback::encode) with [`TopK`], bit for bit.
#[derive(Debug)]
pub struct GpuTopK<E> {
    engine: E,
    plan: Plan,
    buffers: Buffers,
    state: State,
    pending: Option<State>,
}

impl<E: Engine> GpuTopK<E> {
    /// For this model. Takes 16 bytes a parameter of the device's memory, and what is sent.
    ///
    /// # Errors
    /// The device has not that much memory, or fails.
    pub fn new(mut engine: E, manifest: &ModelManifest, fraction: f32) -> Result<Self, GpuError> {
        let plan = Plan::new(manifest, TopK::new(fraction));
        let (tiles, chunks) = (plan.tiles.len() / 3, plan.chunks.len() / STATE);
        let mut alloc = |words: usize| engine.alloc(words.max(1));
        let buffers = Buffers {
            end: alloc(plan.params)?,
            base: alloc(plan.params)?,
            left_out: [alloc(plan.params)?, alloc(plan.params)?],
            tiles: alloc(plan.tiles.len())?,
            chunks: alloc(plan.chunks.len())?,
            counts: alloc(chunks * BINS)?,
            bad: alloc(1)?,
            found: alloc(tiles)?,
            tallies: alloc(tiles * 2)?,
            blocks: alloc(plan.blocks.len())?,
            positions: alloc(plan.entries)?,
            scales: alloc(plan.blocks.len() / 2)?,
            bytes: alloc(plan.entries.div_ceil(4))?,
        };
        engine.write(buffers.tiles, 0, &plan.tiles)?;
        engine.write(buffers.blocks, 0, &plan.blocks)?;
        let state = State { slot: 0, any: false };
        Ok(Self { engine, plan, buffers, state, pending: None })
    }

    /// Takes over a state that was saved. One of another length, or not finite, is dropped.
    ///
    /// # Errors
    /// The device fails.
    pub fn restore(&mut self, left_out: &[f32]) -> Result<(), GpuError> {
        let any = left_out.len() == self.plan.params && left_out.iter().all(|value| value.is_finite());
        if any {
            self.engine.write_floats(self.buffers.left_out[self.state.slot], 0, left_out)?;
        }
        self.pending = None;
        self.state.any = any;
        Ok(())
    }

    /// The state after the latest update, whether it was committed or not; nothing where there is none.
    ///
    /// # Errors
    /// The device fails.
    pub fn left_out(&mut self) -> Result<Vec<f32>, GpuError> {
        let State { slot, any } = self.pending.unwrap_or(self.state);
        if any { self.engine.read_floats(self.buffers.left_out[slot], self.plan.params) } else { Ok(Vec::new()) }
    }

    /// The update is safe: its state is the one that the next update starts from. Without this call the next one starts
    /// from the state before.
    pub fn commit(&mut self) {
        self.state = self.pending.take().unwrap_or(self.state);
    }

    /// Puts both models on the device.
    ///
    /// # Errors
    /// A length is not the manifest's, or the device fails.
    pub fn load(&mut self, base: &[f32], end: &[f32]) -> Result<(), GpuError> {
        let expected = self.plan.params;
        for model in [base, end] {
            if model.len() != expected {
                return Err(EncodeError::WrongLength { expected, found: model.len() }.into());
            }
        }
        self.engine.write_floats(self.buffers.base, 0, base)?;
        self.engine.write_floats(self.buffers.end, 0, end)
    }

    /// Encodes `end - base` together with what was left out before; `decay` as in
    /// [`Feedback::new`](anabranch_common::codec::feedback::Feedback::new).
    ///
    /// # Errors
    /// A length is not the manifest's, a difference is not finite (the state is as before), or the device fails.
    pub fn encode(&mut self, base: &[f32], end: &[f32], decay: f32) -> Result<Vec<u8>, GpuError> {
        self.load(base, end)?;
        self.run(decay)?;
        self.payload()
    }

    /// Launches every kernel on the models that were loaded, which are gone then. [`payload`](Self::payload) waits for them.
    ///
    /// # Errors
    /// The device fails.
    pub fn run(&mut self, decay: f32) -> Result<(), GpuError> {
        let Self { engine, plan, buffers: b, state, .. } = self;
        let on = Feedback::new(decay).is_on();
        let from = b.left_out[state.slot];
        let sum = b.left_out[1 - state.slot];
        let (tiles, chunks) = (plan.tiles.len() / 3, plan.chunks.len() / STATE);
        engine.write(b.chunks, 0, &plan.chunks)?;
        engine.write(b.bad, 0, &[u32::MAX])?;
        let old = u32::from(on && state.any);
        let all = [b.end, b.base, from, sum, b.tiles, b.counts, b.bad];
        engine.launch(Kernel::Combine, tiles, &all, &[old, decay.to_bits()])?;
        engine.launch(Kernel::Choose, chunks, &[b.chunks, b.counts], &[0])?;
        // The model after training is not needed any more.
        let kept = b.end;
        engine.launch(Kernel::Survivors, tiles, &[sum, b.tiles, b.chunks, kept, b.found], &[])?;
        for pass in [1, 2] {
            let counted = [sum, b.tiles, b.chunks, kept, b.found, b.counts];
            engine.launch(Kernel::Refine, tiles, &counted, &[pass])?;
            engine.launch(Kernel::Choose, chunks, &[b.chunks, b.counts], &[pass])?;
        }
        engine.launch(Kernel::Tally, tiles, &[sum, b.tiles, b.chunks, kept, b.found, b.tallies], &[])?;
        engine.launch(Kernel::Place, chunks, &[b.chunks, b.tallies], &[])?;
        let emitted = [sum, b.tiles, b.chunks, kept, b.found, b.tallies, b.positions];
        engine.launch(Kernel::Emit, tiles, &emitted, &[])?;
        let quantized = [sum, b.chunks, b.blocks, b.positions, b.scales, b.bytes];
        engine.launch(Kernel::Quantize, plan.blocks.len() / 2, &quantized, &[u32::from(on)])?;
        // With feedback off a state stays as it is, as on the CPU.
        self.pending = on.then_some(State { slot: 1 - state.slot, any: true });
        Ok(())
    }

    /// Waits for the kernels.
    ///
    /// # Errors
    /// The device failed.
    pub fn finish(&mut self) -> Result<(), GpuError> {
        self.engine.finish()
    }

    /// The payload of what [`run`](Self::run) encoded.
    ///
    /// # Errors
    /// A difference was not finite (the state is as before), or the device fails.
    pub fn payload(&mut self) -> Result<Vec<u8>, GpuError> {
        let read = self.read_back();
        if read.is_err() {
            self.pending = None;
        }
        Ok(read?.payload(&self.plan))
    }

    fn read_back(&mut self) -> Result<Sent, GpuError> {
        let Self { engine, plan, buffers: b, .. } = self;
        let mut read = |buffer: Buffer, words: usize| {
            let mut out = vec![0; words];
            engine.read(buffer, 0, &mut out).map(|()| out)
        };
        let bad = read(b.bad, 1)?[0];
        if bad != u32::MAX {
            return Err(EncodeError::NonFinite(bad as usize).into());
        }
        Ok(Sent {
            chunks: read(b.chunks, plan.chunks.len())?,
            positions: read(b.positions, plan.entries)?,
            scales: read(b.scales, plan.blocks.len() / 2)?,
            bytes: read(b.bytes, plan.entries.div_ceil(4))?.into_iter().flat_map(u32::to_ne_bytes).collect(),
        })
    }
}

/// What comes back from the device.
struct Sent {
    chunks: Vec<u32>,
    positions: Vec<u32>,
    scales: Vec<u32>,
    bytes: Vec<u8>,
}

impl Sent {
    /// The layout of `anabranch_common::codec::sparse`.
    fn payload(&self, plan: &Plan) -> Vec<u8> {
        let mut out = Vec::new();
        for (part, state) in plan.parts.iter().zip(self.chunks.chunks(STATE)) {
            out.extend_from_slice(&state[COUNT].to_le_bytes());
            self.entries(part, state[COUNT] as usize, &mut out);
        }
        out
    }

    fn entries(&self, part: &Part, count: usize, out: &mut Vec<u8>) {
        let (mut next, entries) = (part.start, part.place..part.place + count);
        let positions = self.positions[entries.clone()].chunks(BLOCK);
        let values = self.bytes[entries].chunks(BLOCK);
        for ((positions, values), scale) in positions.zip(values).zip(&self.scales[part.first_block..]) {
            let gap = |position: &u32| {
                let gap = position - next;
                next = position + 1;
                gap
            };
            let gaps: Vec<u32> = positions.iter().map(gap).collect();
            let parameter = rice::parameter(&gaps);
            out.extend_from_slice(&scale.to_le_bytes());
            out.push(parameter);
            out.extend_from_slice(values);
            rice::encode(&gaps, parameter, out);
        }
    }
}
