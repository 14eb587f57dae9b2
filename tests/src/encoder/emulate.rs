//! The kernels retold on the CPU, with the same tiles and passes.

use anabranch_agent::encode::cuda::{Buffer, Engine, GpuError, Kernel, TILE};
use anabranch_common::codec::quantize::SMALLEST;

const BINS: usize = 2_048;
const BLOCK: usize = 256;
const STATE: usize = 9;
const WANTED: usize = 0;
const PREFIX: usize = 1;
const THRESHOLD: usize = 2;
const TIES: usize = 3;
const EVERYTHING: usize = 4;
const FIRST_TILE: usize = 5;
const TILES: usize = 6;
const PLACE: usize = 7;
const COUNT: usize = 8;

/// Memory and kernels on the CPU: an [`Engine`] for machines without a GPU.
#[derive(Debug, Default)]
pub struct Emulator {
    memory: Vec<Vec<u32>>,
}

impl Engine for Emulator {
    fn alloc(&mut self, words: usize) -> Result<Buffer, GpuError> {
        self.memory.push(vec![0; words]);
        Ok(Buffer(self.memory.len() - 1))
    }

    fn write(&mut self, buffer: Buffer, at: usize, words: &[u32]) -> Result<(), GpuError> {
        self.memory[buffer.0][at..at + words.len()].copy_from_slice(words);
        Ok(())
    }

    fn read(&mut self, buffer: Buffer, at: usize, words: &mut [u32]) -> Result<(), GpuError> {
        words.copy_from_slice(&self.memory[buffer.0][at..at + words.len()]);
        Ok(())
    }

    fn launch(&mut self, kernel: Kernel, grid: usize, buffers: &[Buffer], scalars: &[u32]) -> Result<(), GpuError> {
        // No kernel is given the same buffer twice, so each can be lent out whole.
        let mut lent: Vec<Vec<u32>> = buffers.iter().map(|buffer| std::mem::take(&mut self.memory[buffer.0])).collect();
        for block in 0..grid {
            run(kernel, block, &mut lent, scalars);
        }
        for (buffer, memory) in buffers.iter().zip(lent) {
            self.memory[buffer.0] = memory;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), GpuError> {
        Ok(())
    }
}

impl Emulator {
    /// Copies a buffer into another that is as long.
    pub fn copy(&mut self, from: Buffer, to: Buffer) {
        let content = std::mem::take(&mut self.memory[from.0]);
        self.memory[to.0].copy_from_slice(&content);
        self.memory[from.0] = content;
    }
}

fn run(kernel: Kernel, block: usize, lent: &mut [Vec<u32>], scalars: &[u32]) {
    match (kernel, lent) {
        (Kernel::Combine, [end, base, left_out, sum, tiles, counts, bad]) => {
            let tile = Tile::new(tiles, block);
            let decay = (scalars[0] != 0).then(|| f32::from_bits(scalars[1]));
            combine(&tile, [end, base, left_out], sum, counts, &mut bad[0], decay);
        }
        (Kernel::Choose, [chunks, counts]) => {
            choose(state_mut(chunks, block), &mut counts[block * BINS..][..BINS], scalars[0]);
        }
        (Kernel::Survivors, [sum, tiles, chunks, kept, found]) => {
            survivors(&Tile::new(tiles, block), sum, chunks, kept, &mut found[block]);
        }
        (Kernel::Refine, [sum, tiles, chunks, kept, found, counts]) => {
            let tile = Tile::new(tiles, block);
            tile.refine(&tile.keys(sum, kept, found[block]), chunks, counts, scalars[0]);
        }
        (Kernel::Tally, [sum, tiles, chunks, kept, found, tallies]) => {
            let tile = Tile::new(tiles, block);
            let threshold = state(chunks, tile.chunk)[THRESHOLD];
            let keys = tile.keys(sum, kept, found[block]);
            tallies[2 * block] = count(&keys, |key| key > threshold);
            tallies[2 * block + 1] = count(&keys, |key| key == threshold);
        }
        (Kernel::Place, [chunks, tallies]) => place(state_mut(chunks, block), tallies),
        (Kernel::Emit, [sum, tiles, chunks, kept, found, tallies, positions]) => {
            let tile = Tile::new(tiles, block);
            let (at, left) = (tallies[2 * block], tallies[2 * block + 1]);
            tile.emit(&tile.keys(sum, kept, found[block]), chunks, kept, at as usize, left, positions);
        }
        (Kernel::Quantize, [sum, chunks, blocks, positions, scales, bytes]) => {
            let state = state(chunks, blocks[2 * block]);
            let (from, count) = (blocks[2 * block + 1] as usize * BLOCK, state[COUNT] as usize);
            if from < count {
                let place = state[PLACE] as usize;
                let positions = &positions[place + from..place + count.min(from + BLOCK)];
                scales[block] = quantize(positions, sum, bytes, place + from, scalars[0] != 0);
            }
        }
        (kernel, lent) => unreachable!("{} buffers for {kernel:?}: topk.rs lists what each is given", lent.len()),
    }
}

fn key(word: u32) -> u32 {
    word & 0x7FFF_FFFF
}

fn count(keys: &[u32], wanted: impl Fn(u32) -> bool) -> u32 {
    keys.iter().map(|key| u32::from(wanted(*key))).sum()
}

fn left_over(value: f32, sent: f32) -> f32 {
    let left = value - sent;
    if left.is_finite() { left } else { 0.0 }
}

fn state(chunks: &[u32], chunk: u32) -> &[u32] {
    &chunks[chunk as usize * STATE..][..STATE]
}

fn state_mut(chunks: &mut [u32], chunk: usize) -> &mut [u32] {
    &mut chunks[chunk * STATE..][..STATE]
}

struct Tile {
    chunk: u32,
    start: usize,
    len: usize,
}

impl Tile {
    fn new(tiles: &[u32], block: usize) -> Self {
        let [chunk, start, len] = [0, 1, 2].map(|nth| tiles[3 * block + nth]);
        Self { chunk, start: start as usize, len: len as usize }
    }

    /// The keys of the tile's survivors, in order.
    fn keys(&self, sum: &[u32], kept: &[u32], found: u32) -> Vec<u32> {
        kept[self.start..self.start + found as usize].iter().map(|at| key(sum[*at as usize])).collect()
    }

    fn refine(&self, keys: &[u32], chunks: &[u32], counts: &mut [u32], pass: u32) {
        if state(chunks, self.chunk)[EVERYTHING] != 0 {
            return;
        }
        let shift = if pass == 1 { 10 } else { 0 };
        let prefix = state(chunks, self.chunk)[PREFIX];
        for key in keys.iter().map(|key| key >> shift).filter(|key| key >> 10 == prefix) {
            counts[self.chunk as usize * BINS + (key & 1023) as usize] += 1;
        }
    }

    fn emit(&self, keys: &[u32], chunks: &[u32], kept: &[u32], at: usize, left: u32, positions: &mut [u32]) {
        let state = state(chunks, self.chunk);
        let (mut at, mut rank) = (state[PLACE] as usize + at, 0);
        for (key, position) in keys.iter().zip(&kept[self.start..]) {
            let tie = *key == state[THRESHOLD];
            if *key > state[THRESHOLD] || tie && rank < left {
                positions[at] = *position;
                at += 1;
            }
            rank += u32::from(tie);
        }
    }
}

fn combine(
    tile: &Tile,
    [end, base, left_out]: [&[u32]; 3],
    sum: &mut [u32],
    counts: &mut [u32],
    bad: &mut u32,
    decay: Option<f32>,
) {
    for at in tile.start..tile.start + tile.len {
        let delta = f32::from_bits(end[at]) - f32::from_bits(base[at]);
        if !delta.is_finite() {
            *bad = (*bad).min(u32::try_from(at).expect("a model has at most 2^30 parameters"));
        }
        let both = decay.map(|decay| delta + decay * f32::from_bits(left_out[at]));
        sum[at] = both.filter(|both| both.is_finite()).unwrap_or(delta).to_bits();
        counts[tile.chunk as usize * BINS + (key(sum[at]) >> 20) as usize] += 1;
    }
}

fn choose(state: &mut [u32], bins: &mut [u32], pass: u32) {
    let lowest = if pass == 0 { SMALLEST.to_bits() >> 20 } else { 0 };
    if state[EVERYTHING] == 0 {
        let wanted = state[WANTED];
        let mut above = 0;
        let digits = (0u32..).zip(bins.iter().copied()).collect::<Vec<_>>();
        let chosen = digits.into_iter().skip(lowest as usize).rev().find(|(_, count)| {
            above += count;
            above >= wanted
        });
        match chosen {
            None => {
                state[EVERYTHING] = 1;
                state[PREFIX] = lowest;
                state[THRESHOLD] = SMALLEST.to_bits();
                state[TIES] = u32::MAX;
            }
            Some((digit, count)) => {
                state[WANTED] = wanted - (above - count);
                state[PREFIX] = if pass == 0 { digit } else { state[PREFIX] << 10 | digit };
                state[THRESHOLD] = state[PREFIX];
                state[TIES] = state[WANTED];
            }
        }
    }
    bins.fill(0);
}

fn survivors(tile: &Tile, sum: &[u32], chunks: &[u32], kept: &mut [u32], found: &mut u32) {
    debug_assert!(tile.len <= TILE, "a tile is one block's work");
    let lowest = state(chunks, tile.chunk)[PREFIX] << 20;
    let mut next = tile.start;
    for at in (tile.start..tile.start + tile.len).filter(|at| key(sum[*at]) >= lowest) {
        kept[next] = u32::try_from(at).expect("a model has at most 2^30 parameters");
        next += 1;
    }
    *found = u32::try_from(next - tile.start).expect("a tile has 4,096 elements");
}

fn place(state: &mut [u32], tallies: &mut [u32]) {
    let first = state[FIRST_TILE] as usize;
    let (mut before, mut at) = (0, 0);
    for tally in tallies[2 * first..2 * (first + state[TILES] as usize)].chunks_exact_mut(2) {
        let left = state[TIES].saturating_sub(before);
        let (above, equal) = (tally[0], tally[1]);
        tally.copy_from_slice(&[at, left]);
        at += above + equal.min(left);
        before += equal;
    }
    state[COUNT] = at;
}

/// The scale, as bits.
fn quantize(positions: &[u32], sum: &mut [u32], bytes: &mut [u32], place: usize, residual: bool) -> u32 {
    let largest = positions.iter().map(|at| key(sum[*at as usize])).max().unwrap_or(0);
    let mut scale = f32::from_bits(largest) / 127.0;
    if !(scale * 127.0).is_finite() {
        scale = f32::from_bits(scale.to_bits() - 1);
    }
    for (place, at) in (place..).zip(positions) {
        let value = f32::from_bits(sum[*at as usize]);
        #[expect(clippy::cast_possible_truncation, reason = "the value was clamped to the range of the type")]
        let step = (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
        let mut word = bytes[place / 4].to_ne_bytes();
        word[place % 4] = step.to_ne_bytes()[0];
        bytes[place / 4] = u32::from_ne_bytes(word);
        if residual {
            sum[*at as usize] = left_over(value, f32::from(step) * scale).to_bits();
        }
    }
    scale.to_bits()
}
