//! Two image operations that burn-flex lacks in a fast form, with their gradients.
//!
//! burn-flex computes a convolution's gradients with further convolutions over swapped dimensions; unfolding patches
//! once and multiplying matrices takes a fraction of the time (figures in `docs/benchmarks.md`). Images are laid out
//! `[channels, batch, height, width]` here, so that an unfolded row is made of whole image rows.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Shape, TensorData, TensorMetadata};
use rayon::prelude::*;

/// Positions of a 3x3 kernel.
const TAPS: usize = 9;

/// A backend that has both operations.
pub(super) trait ImageOps: Backend {
    /// Unfolds 3x3 patches with padding 1: `[c, b, h, w]` to `[c * 9, b * h * w]`, rows in the order of a PyTorch
    /// kernel `[c, 3, 3]`.
    fn patches(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Largest value of each 2x2 window: `[c, b, h, w]` to `[c, b, h / 2, w / 2]`. `h` and `w` are even. The gradient
    /// goes to the first of equal values.
    fn max_pool(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl ImageOps for Flex {
    fn patches(x: FloatTensor<Self>) -> FloatTensor<Self> {
        unfold(&x)
    }

    fn max_pool(x: FloatTensor<Self>) -> FloatTensor<Self> {
        pool(&x).0
    }
}

impl<C: CheckpointStrategy> ImageOps for Autodiff<Flex, C> {
    fn patches(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let output = unfold(&x.primitive);
        match Patches.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(extents(&x.primitive), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn max_pool(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (output, winners) = pool(&x.primitive);
        match MaxPool.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((winners, extents(&x.primitive)), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct Patches;

impl Backward<Flex, 1> for Patches {
    type State = [usize; 4];

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let extents = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |gradient| fold(&gradient, extents));
    }
}

#[derive(Debug)]
struct MaxPool;

impl Backward<Flex, 1> for MaxPool {
    /// Which of its window's four values each output is, and the input's extents.
    type State = (Arc<[u8]>, [usize; 4]);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (winners, extents) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |gradient| unpool(&gradient, &winners, extents));
    }
}

fn extents(x: &FlexTensor) -> [usize; 4] {
    x.shape().dims()
}

fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("the tensor was made contiguous, and everything here is f32")
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, Shape::from(shape)))
}

/// Where column `x + tap - 1` is inside `0..width`: (first of destination, first of source, length).
fn overlap(tap: usize, width: usize) -> (usize, usize, usize) {
    match tap {
        0 => (1, 0, width - 1),
        1 => (0, 0, width),
        _ => (0, 1, width - 1),
    }
}

fn unfold(x: &FlexTensor) -> FlexTensor {
    let x = x.to_contiguous();
    let [channels, batch, height, width] = extents(&x);
    let plane = batch * height * width;
    let source = values(&x);
    let mut unfolded = vec![0.0f32; channels * TAPS * plane];
    unfolded.par_chunks_exact_mut(plane).enumerate().for_each(|(row, out)| {
        let (channel, tap) = (row / TAPS, row % TAPS);
        let (to_x, from_x, columns) = overlap(tap % 3, width);
        let (to_y, from_y, lines) = overlap(tap / 3, height);
        let input = &source[channel * plane..(channel + 1) * plane];
        for (out, input) in out.chunks_exact_mut(height * width).zip(input.chunks_exact(height * width)) {
            for line in 0..lines {
                let (to, from) = ((to_y + line) * width + to_x, (from_y + line) * width + from_x);
                out[to..to + columns].copy_from_slice(&input[from..from + columns]);
            }
        }
    });
    tensor(unfolded, [channels * TAPS, plane])
}

/// The transpose of [`unfold`]: adds every patch back to where it was taken from. A channel's sum has one fixed order.
fn fold(gradient: &FlexTensor, [channels, batch, height, width]: [usize; 4]) -> FlexTensor {
    let gradient = gradient.to_contiguous();
    let plane = batch * height * width;
    let patches = values(&gradient);
    let mut folded = vec![0.0f32; channels * plane];
    folded.par_chunks_exact_mut(plane).enumerate().for_each(|(channel, out)| {
        for tap in 0..TAPS {
            let (to_x, from_x, columns) = overlap(tap % 3, width);
            let (to_y, from_y, lines) = overlap(tap / 3, height);
            let row = channel * TAPS + tap;
            let patch = &patches[row * plane..(row + 1) * plane];
            for (out, patch) in out.chunks_exact_mut(height * width).zip(patch.chunks_exact(height * width)) {
                for line in 0..lines {
                    let (to, from) = ((to_y + line) * width + to_x, (from_y + line) * width + from_x);
                    for (sum, value) in out[from..from + columns].iter_mut().zip(&patch[to..to + columns]) {
                        *sum += value;
                    }
                }
            }
        }
    });
    tensor(folded, [channels, batch, height, width])
}

fn pool(x: &FlexTensor) -> (FlexTensor, Arc<[u8]>) {
    let x = x.to_contiguous();
    let [channels, batch, height, width] = extents(&x);
    let half = width / 2;
    let mut largest = vec![0.0f32; channels * batch * (height / 2) * half];
    let mut winners = vec![0u8; largest.len()];
    let pairs = values(&x).par_chunks_exact(2 * width);
    largest.par_chunks_exact_mut(half).zip(winners.par_chunks_exact_mut(half)).zip(pairs).for_each(
        |((largest, winners), pair)| {
            let (upper, lower) = pair.split_at(width);
            let windows = upper.chunks_exact(2).zip(lower.chunks_exact(2));
            for ((out, winner), (upper, lower)) in largest.iter_mut().zip(winners).zip(windows) {
                let window = [upper[0], upper[1], lower[0], lower[1]];
                let top = u8::from(window[1] > window[0]);
                let bottom = 2 + u8::from(window[3] > window[2]);
                let at = |index: u8| window[usize::from(index)];
                *winner = if at(bottom) > at(top) { bottom } else { top };
                *out = at(*winner);
            }
        },
    );
    (tensor(largest, [channels, batch, height / 2, half]), winners.into())
}

/// Sends each gradient to the value that won its window.
fn unpool(gradient: &FlexTensor, winners: &[u8], [channels, batch, height, width]: [usize; 4]) -> FlexTensor {
    let gradient = gradient.to_contiguous();
    let half = width / 2;
    let mut spread = vec![0.0f32; channels * batch * height * width];
    let rows = values(&gradient).par_chunks_exact(half).zip(winners.par_chunks_exact(half));
    spread.par_chunks_exact_mut(2 * width).zip(rows).for_each(|(pair, (gradient, winners))| {
        for (column, (value, winner)) in gradient.iter().zip(winners).enumerate() {
            let winner = usize::from(*winner);
            pair[(winner / 2) * width + 2 * column + winner % 2] = *value;
        }
    });
    tensor(spread, [channels, batch, height, width])
}

#[cfg(test)]
mod tests {
    use super::*;

    use burn::tensor::module;
    use burn::tensor::ops::ConvOptions;
    use burn::tensor::{Tensor, TensorPrimitive};

    fn random(shape: [usize; 4], seed: u64) -> Tensor<Flex, 4> {
        let mut rng = anabranch_common::rng::SplitMix64::new(seed);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.next_signed_f32()).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    #[test]
    fn patches_times_kernel_is_burns_convolution() {
        let (batch, channels, out, height, width) = (2, 3, 4, 4, 8);
        let x = random([batch, channels, height, width], 1);
        let kernel = random([out, channels, 3, 3], 2);
        let expected = module::conv2d(x.clone(), kernel.clone(), None, ConvOptions::new([1, 1], [1, 1], [1, 1], 1));
        let patches = Flex::patches(x.swap_dims(0, 1).into_primitive().tensor());
        let patches = Tensor::<Flex, 2>::from_primitive(TensorPrimitive::Float(patches));
        let found = kernel.reshape([out, channels * TAPS]).matmul(patches);
        let found = found.reshape([out, batch, height, width]).swap_dims(0, 1);
        found.into_data().assert_approx_eq::<f32>(&expected.into_data(), Default::default());
    }

    #[test]
    fn pooling_is_burns_pooling() {
        let x = random([3, 2, 4, 6], 3);
        let expected = module::max_pool2d(x.clone(), [2, 2], [2, 2], [0, 0], [1, 1], false).into_data();
        let found = Flex::max_pool(x.into_primitive().tensor()).into_data();
        assert_eq!(found.to_vec::<f32>().expect("floats"), expected.to_vec::<f32>().expect("floats"));
    }
}
