//! A convolution with its pooling, bias and ReLU as one operation, with its gradient.
//!
//! burn-flex computes a convolution's gradients with further convolutions over swapped dimensions; unfolding patches and
//! multiplying matrices takes a fraction of the time (figures in `docs/benchmarks.md`). That is done for a few images at
//! a time, so that what is unfolded stays in the caches and is never kept: the gradient unfolds it again. An image is laid
//! out `[height, width, channels]` here, so that the rows of a patch are pieces of it, and that every product has its
//! operands in the order in which they are read.

use std::sync::Arc;

use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn_flex::Flex;
use burn_flex::FlexTensor;
use burn_tensor::backend::Backend;
use burn_tensor::ops::{ConvOptions, FloatTensor, FloatTensorOps as _};
use burn_tensor::{Tensor, TensorPrimitive, activation, module};
use rayon::prelude::*;

use super::dense_ops::add_to;
use super::tensors::{tensor, values};
use super::weights::current;
use crate::train::vector::vectorized;

/// Rows, and positions in a row, of a 3x3 kernel.
const SIDE: usize = 3;
/// Values of unfolded patches that are made at a time: 512 KiB.
const PATCHES: usize = 1 << 17;
/// Images that are taken at a time, at most, so that there is work for many threads.
const IMAGES: usize = 8;
/// What stands for the winner of a window where ReLU cuts it off.
const CUT: u8 = 4;

/// Extents of an image before and after a convolution. `height` and `width` are even.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) outputs: usize,
}

impl Extents {
    fn pixels(self) -> usize {
        self.height * self.width
    }

    /// Values of an input image, and of an output image.
    fn input(self) -> usize {
        self.pixels() * self.channels
    }

    fn output(self) -> usize {
        self.pixels() / 4 * self.outputs
    }

    /// Values of a patch.
    fn patch(self) -> usize {
        SIDE * SIDE * self.channels
    }

    /// Values of a row of an image with a border of 0.
    fn padded_row(self) -> usize {
        (self.width + 2) * self.channels
    }

    fn images_at_a_time(self) -> usize {
        (PATCHES / (self.pixels() * self.patch())).clamp(1, IMAGES)
    }
}

/// A backend that has it.
pub(super) trait ImageOps: Backend {
    /// ReLU of the largest value of each 2x2 window of a convolution with a 3x3 `kernel` and padding 1, plus `bias`:
    /// images `[batch, height * width * channels]` to `[batch, height / 2 * width / 2 * outputs]`, channels last in both.
    /// `kernel` is `[outputs, channels * 3 * 3]` in PyTorch's order, `bias` `[outputs, 1]`. A window's gradient goes to
    /// the first of equal values.
    fn convolve(
        x: FloatTensor<Self>,
        kernel: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        extents: Extents,
    ) -> FloatTensor<Self> {
        convolve_with_burn::<Self>(x, kernel, bias, extents)
    }

    /// Transposes every example: `[batch, rows * columns]` to `[batch, columns * rows]`.
    fn transpose_each(x: FloatTensor<Self>, rows: usize) -> FloatTensor<Self> {
        let x = Tensor::<Self, 2>::from_primitive(TensorPrimitive::Float(x));
        let [batch, values] = x.dims();
        let x: Tensor<Self, 2> = x.reshape([batch, rows, values / rows]).swap_dims(1, 2).reshape([batch, values]);
        x.into_primitive().tensor()
    }
}

impl ImageOps for Flex {
    fn convolve(
        x: FloatTensor<Self>,
        kernel: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        extents: Extents,
    ) -> FloatTensor<Self> {
        convolve(&x.to_contiguous(), &kernel, &bias, extents).0
    }

    fn transpose_each(x: FloatTensor<Self>, rows: usize) -> FloatTensor<Self> {
        transpose_each(&x.to_contiguous(), rows)
    }
}

impl<C: CheckpointStrategy> ImageOps for Autodiff<Flex, C> {
    fn convolve(
        x: FloatTensor<Self>,
        kernel: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        extents: Extents,
    ) -> FloatTensor<Self> {
        let input = x.primitive.to_contiguous();
        let (output, winners) = convolve(&input, &kernel.primitive, &bias.primitive, extents);
        let nodes = [x.node.clone(), kernel.node.clone(), bias.node.clone()];
        match Convolve.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((input, kernel.primitive, winners, extents), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn transpose_each(x: FloatTensor<Self>, rows: usize) -> FloatTensor<Self> {
        let output = transpose_each(&x.primitive.to_contiguous(), rows);
        match TransposeEach.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(rows, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct Convolve;

impl Backward<Flex, 3> for Convolve {
    /// The input, the kernel, which of its window's four values each output is, and the extents.
    type State = (FlexTensor, FlexTensor, Arc<[u8]>, Extents);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, kernel, winners, extents) = ops.state;
        let gradient = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [input, weight, bias] = ops.parents;
        let kernel = current(weight.as_ref().map(|weight| weight.id), kernel);
        // Nobody asks for the gradient by the pixels of an example.
        let slopes = slopes(&x, &kernel, &winners, &gradient, extents, input.is_some());
        let found = [(input, slopes.input), (weight, Some(slopes.kernel)), (bias, Some(slopes.bias))];
        for (parent, slope) in found {
            if let (Some(parent), Some(slope)) = (parent, slope) {
                grads.register::<Flex>(parent.id, slope);
            }
        }
    }
}

#[derive(Debug)]
struct TransposeEach;

impl Backward<Flex, 1> for TransposeEach {
    /// Rows before.
    type State = usize;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let rows = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |gradient| {
            let columns = gradient.layout().shape()[1] / rows;
            transpose_each(&gradient.to_contiguous(), columns)
        });
    }
}

fn transpose_each(x: &FlexTensor, rows: usize) -> FlexTensor {
    let [batch, length] = x.layout().shape().dims();
    let columns = length / rows;
    let mut transposed = Vec::with_capacity(batch * length);
    for example in values(x).chunks_exact(length) {
        transposed.extend((0..columns).flat_map(|column| example.iter().skip(column).step_by(columns)));
    }
    tensor(transposed, [batch, length])
}

/// `[outputs, channels, 3, 3]` to `[outputs, 3, 3, channels]`, or back where `back` is set.
fn reorder(kernel: &FlexTensor, extents: Extents, back: bool) -> Vec<f32> {
    let (channels, taps) = (extents.channels, SIDE * SIDE);
    let from = kernel.to_contiguous();
    let mut to = Vec::with_capacity(values(&from).len());
    let [outer, inner] = if back { [channels, taps] } else { [taps, channels] };
    for from in values(&from).chunks_exact(channels * taps) {
        to.extend((0..outer).flat_map(|outer_at| (0..inner).map(move |inner_at| from[inner_at * outer + outer_at])));
    }
    to
}

/// Patches of images, `[pixels, 3 * 3 * channels]`.
fn unfold(images: &[f32], extents: Extents) -> FlexTensor {
    let (channels, row) = (extents.channels, extents.width * extents.channels);
    let pixels = images.len() / channels;
    let mut patches = Vec::with_capacity(pixels * extents.patch());
    let mut padded = vec![0.0f32; (extents.height + 2) * extents.padded_row()];
    for image in images.chunks_exact(extents.input()) {
        let lines = padded.chunks_exact_mut(extents.padded_row()).skip(1);
        for (line, image) in lines.zip(image.chunks_exact(row)) {
            line[channels..channels + row].copy_from_slice(image);
        }
        for y in 0..extents.height {
            let lines: [&[f32]; SIDE] =
                [y, y + 1, y + 2].map(|y| &padded[y * extents.padded_row()..(y + 1) * extents.padded_row()]);
            if channels == 1 {
                // A copy of three values costs less than a call.
                let windows = lines.map(|line| line.windows(SIDE));
                let [first, second, third] = windows;
                for ((a, b), c) in first.zip(second).zip(third) {
                    patches.extend_from_slice(&[a[0], a[1], a[2], b[0], b[1], b[2], c[0], c[1], c[2]]);
                }
                continue;
            }
            for x in 0..extents.width {
                for line in lines {
                    patches.extend_from_slice(&line[x * channels..(x + SIDE) * channels]);
                }
            }
        }
    }
    tensor(patches, [pixels, extents.patch()])
}

/// The transpose of [`unfold`]: adds every patch back to where it was taken from.
#[inline(always)]
fn fold(patches: &[f32], images: &mut [f32], extents: Extents) {
    let (channels, row) = (extents.channels, extents.width * extents.channels);
    let mut padded = vec![0.0f32; (extents.height + 2) * extents.padded_row()];
    let each = patches.chunks_exact(extents.pixels() * extents.patch());
    for (image, patches) in images.chunks_exact_mut(extents.input()).zip(each) {
        padded.fill(0.0);
        for (pixel, patch) in patches.chunks_exact(extents.patch()).enumerate() {
            let (y, x) = (pixel / extents.width, pixel % extents.width);
            for (tap, piece) in patch.chunks_exact(SIDE * channels).enumerate() {
                let start = (y + tap) * extents.padded_row() + x * channels;
                for (sum, value) in padded[start..start + SIDE * channels].iter_mut().zip(piece) {
                    *sum += value;
                }
            }
        }
        let lines = padded.chunks_exact(extents.padded_row()).skip(1);
        for (image, line) in image.chunks_exact_mut(row).zip(lines) {
            image.copy_from_slice(&line[channels..channels + row]);
        }
    }
}

fn convolve(x: &FlexTensor, kernel: &FlexTensor, bias: &FlexTensor, extents: Extents) -> (FlexTensor, Arc<[u8]>) {
    let (x, bias) = (values(x), bias.to_contiguous());
    let batch = x.len() / extents.input();
    let kernel = tensor(reorder(kernel, extents, false), [extents.outputs, extents.patch()]);
    // Contiguous, so that the product does not transpose it for every few images.
    let kernel = Flex::float_transpose(kernel).to_contiguous();
    let mut output = vec![0.0f32; batch * extents.output()];
    let mut winners = vec![0u8; output.len()];
    let together = extents.images_at_a_time();
    let outputs = output.par_chunks_mut(together * extents.output());
    let outputs = outputs.zip(winners.par_chunks_mut(together * extents.output()));
    outputs.zip(x.par_chunks(together * extents.input())).for_each(|((output, winners), images)| {
        let maps = Flex::float_matmul(unfold(images, extents), kernel.clone());
        vectorized!(pool(values(&maps), values(&bias), output, winners, extents));
    });
    (tensor(output, [batch, extents.output()]), winners.into())
}

/// Largest value of each window, plus bias, cut off at 0; a bias and ReLU commute with taking a maximum, and after it
/// they have a quarter of the work.
#[inline(always)]
fn pool(maps: &[f32], bias: &[f32], output: &mut [f32], winners: &mut [u8], extents: Extents) {
    let outputs = extents.outputs;
    let pairs = maps.chunks_exact(2 * extents.width * outputs);
    let half = extents.width / 2 * outputs;
    let rows = output.chunks_exact_mut(half).zip(winners.chunks_exact_mut(half));
    for (pair, (output, winners)) in pairs.zip(rows) {
        let (upper, lower) = pair.split_at(extents.width * outputs);
        let windows = upper.chunks_exact(2 * outputs).zip(lower.chunks_exact(2 * outputs));
        let pixels = output.chunks_exact_mut(outputs).zip(winners.chunks_exact_mut(outputs));
        for ((upper, lower), (output, winners)) in windows.zip(pixels) {
            let ((first, second), (third, fourth)) = (upper.split_at(outputs), lower.split_at(outputs));
            for at in 0..outputs {
                let mut most = first[at];
                let mut winner = 0;
                for (index, other) in [(1, second[at]), (2, third[at]), (3, fourth[at])] {
                    // Not `max`, which would hide a NaN that comes first.
                    let more = other > most;
                    most = if more { other } else { most };
                    winner = if more { index } else { winner };
                }
                let value = most + bias[at];
                winners[at] = if value <= 0.0 { CUT } else { winner };
                output[at] = if value <= 0.0 { 0.0 } else { value };
            }
        }
    }
}

/// Sends each gradient to the value that won its window, adding it to its output's sum.
#[inline(always)]
fn unpool(gradient: &[f32], winners: &[u8], maps: &mut [f32], sums: &mut [f32], extents: Extents) {
    let outputs = extents.outputs;
    let half = extents.width / 2 * outputs;
    let rows = gradient.chunks_exact(half).zip(winners.chunks_exact(half));
    for (pair, (gradient, winners)) in maps.chunks_exact_mut(2 * extents.width * outputs).zip(rows) {
        let (upper, lower) = pair.split_at_mut(extents.width * outputs);
        let windows = upper.chunks_exact_mut(2 * outputs).zip(lower.chunks_exact_mut(2 * outputs));
        let pixels = gradient.chunks_exact(outputs).zip(winners.chunks_exact(outputs));
        for ((upper, lower), (gradient, winners)) in windows.zip(pixels) {
            let ((first, second), (third, fourth)) = (upper.split_at_mut(outputs), lower.split_at_mut(outputs));
            for at in 0..outputs {
                let (winner, value) = (winners[at], gradient[at]);
                sums[at] += if winner == CUT { 0.0 } else { value };
                first[at] = if winner == 0 { value } else { 0.0 };
                second[at] = if winner == 1 { value } else { 0.0 };
                third[at] = if winner == 2 { value } else { 0.0 };
                fourth[at] = if winner == 3 { value } else { 0.0 };
            }
        }
    }
}

struct Slopes {
    input: Option<FlexTensor>,
    kernel: FlexTensor,
    bias: FlexTensor,
}

fn slopes(
    x: &FlexTensor,
    kernel: &FlexTensor,
    winners: &[u8],
    gradient: &FlexTensor,
    extents: Extents,
    of_input: bool,
) -> Slopes {
    let (images, gradient) = (values(x), values(gradient));
    let kernel = tensor(reorder(kernel, extents, false), [extents.outputs, extents.patch()]);
    let mut slope = vec![0.0f32; if of_input { images.len() } else { 0 }];
    let together = extents.images_at_a_time();
    let (inputs, outputs) = (together * extents.input(), together * extents.output());
    let chunks = images.par_chunks(inputs).zip(gradient.par_chunks(outputs)).zip(winners.par_chunks(outputs));
    let part = |((images, gradient), winners): ((&[f32], &[f32]), &[u8]), slope: &mut [f32]| {
        let pixels = images.len() / extents.channels;
        let mut maps = vec![0.0f32; pixels * extents.outputs];
        let mut bias = vec![0.0f32; extents.outputs];
        vectorized!(unpool(gradient, winners, &mut maps, &mut bias, extents));
        let maps = tensor(maps, [pixels, extents.outputs]);
        let weight = Flex::float_matmul(Flex::float_transpose(maps.clone()), unfold(images, extents));
        if of_input {
            let patches = Flex::float_matmul(maps, kernel.clone());
            vectorized!(fold(values(&patches), slope, extents));
        }
        (weight, bias)
    };
    // Collected in order, so that sums do not depend on which images were ready first.
    let parts: Vec<(FlexTensor, Vec<f32>)> = if of_input {
        chunks.zip(slope.par_chunks_mut(inputs)).map(|(chunk, slope)| part(chunk, slope)).collect()
    } else {
        chunks.map(|chunk| part(chunk, &mut [])).collect()
    };
    let mut weight = vec![0.0f32; extents.outputs * extents.patch()];
    let mut bias = vec![0.0f32; extents.outputs];
    for (more_weight, more_bias) in parts {
        add_to(&mut weight, values(&more_weight));
        add_to(&mut bias, &more_bias);
    }
    let weight = tensor(weight, [extents.outputs, extents.patch()]);
    Slopes {
        input: of_input.then(|| tensor(slope, [images.len() / extents.input(), extents.input()])),
        kernel: tensor(reorder(&weight, extents, true), [extents.outputs, extents.patch()]),
        bias: tensor(bias, [extents.outputs, 1]),
    }
}

/// The same of burn's operations, for a backend that has nothing better.
fn convolve_with_burn<B: Backend>(
    x: FloatTensor<B>,
    kernel: FloatTensor<B>,
    bias: FloatTensor<B>,
    extents: Extents,
) -> FloatTensor<B> {
    let Extents { height, width, channels, outputs } = extents;
    let [x, kernel, bias] = [x, kernel, bias].map(|x| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(x)));
    let [batch, _] = x.dims();
    let x = x.reshape([batch, height, width, channels]).permute([0, 3, 1, 2]);
    let kernel = kernel.reshape([outputs, channels, SIDE, SIDE]);
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    let maps = module::conv2d(x, kernel, Some(bias.reshape([outputs])), options);
    let pooled = module::max_pool2d(maps, [2, 2], [2, 2], [0, 0], [1, 1], false);
    let images: Tensor<B, 2> = activation::relu(pooled).permute([0, 2, 3, 1]).reshape([batch, extents.output()]);
    images.into_primitive().tensor()
}

#[cfg(test)]
mod tests {
    use super::super::tensors::{assert_close, output_and_slopes, random};
    use super::*;

    #[test]
    fn a_convolution_is_burns_and_so_are_its_gradients() {
        // One channel is unfolded in another way; 11 images are a whole lot and a rest.
        for (channels, outputs) in [(1, 3), (2, 5)] {
            let extents = Extents { height: 4, width: 6, channels, outputs };
            let inputs = [
                random([IMAGES + 3, extents.input()], 1, 1.0),
                random([outputs, extents.patch()], 2, 1.0),
                random([outputs, 1], 3, 1.0),
            ];
            let three = |x: Vec<_>| <[_; 3]>::try_from(x).expect("three inputs");
            let found = output_and_slopes(&inputs, |x| {
                let [x, kernel, bias] = three(x);
                Autodiff::<Flex>::convolve(x, kernel, bias, extents)
            });
            let expected = output_and_slopes(&inputs, |x| {
                let [x, kernel, bias] = three(x);
                convolve_with_burn::<Autodiff<Flex>>(x, kernel, bias, extents)
            });
            assert_eq!(found.len(), 4);
            found.iter().zip(&expected).for_each(|(found, expected)| assert_close(found, expected));
            let [x, kernel, bias] = inputs;
            assert_close(&Flex::convolve(x, kernel, bias, extents), &expected[0]);
        }
    }

    #[test]
    fn examples_are_transposed_and_their_gradients_back() {
        let x = tensor((0..12).map(|value| value as f32).collect(), [2, 6]);
        let found = Flex::transpose_each(x.clone(), 2);
        assert_eq!(values(&found), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
        let found =
            output_and_slopes(std::slice::from_ref(&x), |mut x| Autodiff::<Flex>::transpose_each(x.remove(0), 2));
        let weights = random([2, 6], 9, 1.0);
        assert_close(&found[1], &Flex::transpose_each(weights, 3));
    }

    #[test]
    fn a_nan_is_not_pooled_away() {
        let extents = Extents { height: 2, width: 2, channels: 1, outputs: 1 };
        let x = tensor(vec![f32::NAN, 1.0, 1.0, 1.0], [1, 4]);
        let output = Flex::convolve(x, tensor(vec![1.0; 9], [1, 9]), tensor(vec![0.0], [1, 1]), extents);
        assert!(values(&output)[0].is_nan(), "{:?}", values(&output));
    }
}
