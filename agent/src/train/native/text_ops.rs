//! Three operations that a gpt needs, with their gradients: each is one pass here, and half a dozen tensors if it is put
//! together from burn's operations. Sums have one fixed order, with any number of threads.

use std::sync::Arc;

use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn_flex::Flex;
use burn_flex::FlexTensor;
use burn_tensor::backend::Backend;
use burn_tensor::ops::{ActivationOps, FloatTensor};
use burn_tensor::{Int, Tensor, TensorData, TensorMetadata as _, TensorPrimitive};
use rayon::prelude::*;

use super::attention::Attention;
use super::dense_ops::{DenseOps, FLAT, add_to};
use super::tensors::{tensor, values};
use super::weights::current;
use crate::train::vector::{dot, normal_cdf, normal_density, total, vectorized};

/// Keeps a layer norm from dividing by 0; PyTorch's default.
const EPSILON: f32 = 1e-5;
/// Rows that one thread takes at a time.
const ROWS: usize = 32;

/// A backend that has what a gpt needs.
pub(super) trait TextOps: Attention + DenseOps {
    /// Layer norm (Ba, Kiros and Hinton 2016): brings every row of `x` `[rows, width]` to mean 0 and variance 1, then
    /// multiplies by `gain` and adds `bias`, `[width, 1]` both.
    fn layer_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        layer_norm_with_burn::<Self>(x, gain, bias)
    }

    /// Returns `[bytes, width]`: for each of `bytes` its row of `tokens` `[256, width]`, plus the row of `positions`
    /// `[context, width]` of its place in its window.
    fn embed(tokens: FloatTensor<Self>, positions: FloatTensor<Self>, bytes: &[u8]) -> FloatTensor<Self> {
        embed_with_burn::<Self>(tokens, positions, bytes)
    }

    /// x times the share of a standard normal distribution below x (Hendrycks and Gimpel 2016).
    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        <Self as ActivationOps<Self>>::gelu(x)
    }
}

impl TextOps for Flex {
    fn layer_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        normalize(&x, &gain, &bias).output
    }

    fn embed(tokens: FloatTensor<Self>, positions: FloatTensor<Self>, bytes: &[u8]) -> FloatTensor<Self> {
        embed(&tokens, &positions, bytes)
    }

    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu(&x.to_contiguous())
    }
}

impl<C: CheckpointStrategy> TextOps for Autodiff<Flex, C> {
    fn layer_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let Normalized { output, normal, factors } = normalize(&x.primitive, &gain.primitive, &bias.primitive);
        let nodes = [x.node.clone(), gain.node.clone(), bias.node.clone()];
        match LayerNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((normal, factors, gain.primitive), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn embed(tokens: FloatTensor<Self>, positions: FloatTensor<Self>, bytes: &[u8]) -> FloatTensor<Self> {
        let output = embed(&tokens.primitive, &positions.primitive, bytes);
        let rows = [&tokens, &positions].map(|rows| rows.primitive.layout().shape()[0]);
        match Embed.prepare::<C>([tokens.node, positions.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((bytes.into(), rows), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let input = x.primitive.to_contiguous();
        let output = gelu(&input);
        match Gelu.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(input, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct LayerNorm;

impl Backward<Flex, 3> for LayerNorm {
    /// Rows with mean 0 and variance 1, what each was multiplied by for that, and the gain.
    type State = (FlexTensor, Arc<[f32]>, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (normal, factors, gain) = ops.state;
        let gain = current(ops.parents[1].as_ref().map(|parent| parent.id), gain);
        let slopes = normalize_slope(&normal, &factors, &gain, &grads.consume::<Flex>(&ops.node));
        for (parent, slope) in ops.parents.into_iter().zip(slopes) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, slope);
            }
        }
    }
}

#[derive(Debug)]
struct Embed;

impl Backward<Flex, 2> for Embed {
    /// The bytes, and rows of either embedding.
    type State = (Arc<[u8]>, [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (bytes, rows) = ops.state;
        let gradient = grads.consume::<Flex>(&ops.node).to_contiguous();
        for (parent, slope) in ops.parents.into_iter().zip(embed_slopes(&gradient, &bytes, rows)) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, slope);
            }
        }
    }
}

#[derive(Debug)]
struct Gelu;

impl Backward<Flex, 1> for Gelu {
    /// The input.
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let input = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |gradient| gelu_slope(&input, gradient));
    }
}

fn like(x: &FlexTensor, values: Vec<f32>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, x.shape()))
}

struct Normalized {
    output: FlexTensor,
    normal: FlexTensor,
    factors: Arc<[f32]>,
}

fn normalize(x: &FlexTensor, gain: &FlexTensor, bias: &FlexTensor) -> Normalized {
    let [x, gain, bias] = [x, gain, bias].map(FlexTensor::to_contiguous);
    let (gain, bias) = (values(&gain), values(&bias));
    let width = gain.len();
    let mut normal = values(&x).to_vec();
    let mut output = vec![0.0f32; normal.len()];
    let mut factors = vec![0.0f32; normal.len() / width];
    let rows = normal.par_chunks_mut(ROWS * width).zip(output.par_chunks_mut(ROWS * width));
    rows.zip(factors.par_chunks_mut(ROWS))
        .for_each(|((normal, output), factors)| vectorized!(normalize_rows(normal, output, factors, gain, bias)));
    Normalized { output: like(&x, output), normal: like(&x, normal), factors: factors.into() }
}

#[inline(always)]
fn normalize_rows(normal: &mut [f32], output: &mut [f32], factors: &mut [f32], gain: &[f32], bias: &[f32]) {
    let width = gain.len();
    let rows = normal.chunks_exact_mut(width).zip(output.chunks_exact_mut(width));
    for ((normal, output), factor) in rows.zip(factors) {
        let mean = total(normal) / width as f32;
        normal.iter_mut().for_each(|value| *value -= mean);
        *factor = 1.0 / (dot(normal, normal) / width as f32 + EPSILON).sqrt();
        for (((normal, output), gain), bias) in normal.iter_mut().zip(output).zip(gain).zip(bias) {
            *normal *= *factor;
            *output = *normal * gain + bias;
        }
    }
}

/// Gradients by the input, the gain and the bias.
fn normalize_slope(normal: &FlexTensor, factors: &[f32], gain: &FlexTensor, gradient: &FlexTensor) -> [FlexTensor; 3] {
    let gain = gain.to_contiguous();
    let width = values(&gain).len();
    let mut slope = values(&gradient.to_contiguous()).to_vec();
    let rows = slope.par_chunks_mut(ROWS * width).zip(values(normal).par_chunks(ROWS * width));
    let sums = rows.zip(factors.par_chunks(ROWS)).map(|((slope, normal), factors)| {
        let mut sums = vec![0.0f32; 2 * width];
        vectorized!(normalize_slope_rows(slope, normal, factors, values(&gain), &mut sums));
        sums
    });
    // Collected in order, so that the sum does not depend on which rows were ready first.
    let sums: Vec<Vec<f32>> = sums.collect();
    let mut gain_slope = vec![0.0f32; 2 * width];
    for sums in sums {
        add_to(&mut gain_slope, &sums);
    }
    let bias_slope = gain_slope.split_off(width);
    [like(normal, slope), tensor(gain_slope, [width, 1]), tensor(bias_slope, [width, 1])]
}

/// Turns gradients by the output into those by the input, and adds up those by the gain and by the bias.
#[inline(always)]
fn normalize_slope_rows(slope: &mut [f32], normal: &[f32], factors: &[f32], gain: &[f32], sums: &mut [f32]) {
    let width = gain.len();
    let (gain_sums, bias_sums) = sums.split_at_mut(width);
    for ((slope, normal), factor) in slope.chunks_exact_mut(width).zip(normal.chunks_exact(width)).zip(factors) {
        let columns = slope.iter_mut().zip(normal).zip(gain).zip(gain_sums.iter_mut().zip(bias_sums.iter_mut()));
        for (((slope, normal), gain), (gain_sum, bias_sum)) in columns {
            *gain_sum += *slope * normal;
            *bias_sum += *slope;
            *slope *= gain;
        }
        let mean = total(slope) / width as f32;
        let along = dot(slope, normal) / width as f32;
        for (slope, normal) in slope.iter_mut().zip(normal) {
            *slope = factor * (*slope - mean - normal * along);
        }
    }
}

fn embed(tokens: &FlexTensor, positions: &FlexTensor, bytes: &[u8]) -> FlexTensor {
    let [tokens, positions] = [tokens, positions].map(FlexTensor::to_contiguous);
    let [context, width] = positions.layout().shape().dims();
    let mut output = Vec::with_capacity(bytes.len() * width);
    for byte in bytes {
        output.extend_from_slice(&values(&tokens)[usize::from(*byte) * width..][..width]);
    }
    let windows = output.par_chunks_exact_mut(context * width);
    windows.for_each(|window| vectorized!(add_to(window, values(&positions))));
    tensor(output, [bytes.len(), width])
}

/// Gradients by the embeddings of tokens and of positions, which have so many rows.
fn embed_slopes(gradient: &FlexTensor, bytes: &[u8], [tokens, context]: [usize; 2]) -> [FlexTensor; 2] {
    let width = gradient.layout().shape()[1];
    let [mut of_tokens, mut of_positions] = [tokens, context].map(|rows| vec![0.0f32; rows * width]);
    vectorized!(embed_slopes_in_place(values(gradient), bytes, width, &mut of_tokens, &mut of_positions));
    [tensor(of_tokens, [tokens, width]), tensor(of_positions, [context, width])]
}

#[inline(always)]
fn embed_slopes_in_place(
    gradient: &[f32],
    bytes: &[u8],
    width: usize,
    of_tokens: &mut [f32],
    of_positions: &mut [f32],
) {
    for (row, byte) in gradient.chunks_exact(width).zip(bytes) {
        add_to(&mut of_tokens[usize::from(*byte) * width..][..width], row);
    }
    for window in gradient.chunks_exact(of_positions.len()) {
        add_to(of_positions, window);
    }
}

fn gelu(x: &FlexTensor) -> FlexTensor {
    let mut output = values(x).to_vec();
    output.par_chunks_mut(FLAT).for_each(|output| vectorized!(gelu_in_place(output)));
    like(x, output)
}

#[inline(always)]
fn gelu_in_place(x: &mut [f32]) {
    for x in x {
        *x *= normal_cdf(*x);
    }
}

fn gelu_slope(x: &FlexTensor, gradient: FlexTensor) -> FlexTensor {
    let mut gradient = gradient.to_contiguous();
    let chunks = gradient.storage_mut::<f32>().par_chunks_mut(FLAT).zip(values(x).par_chunks(FLAT));
    chunks.for_each(|(gradient, x)| vectorized!(gelu_slope_in_place(gradient, x)));
    gradient
}

#[inline(always)]
fn gelu_slope_in_place(gradient: &mut [f32], x: &[f32]) {
    for (gradient, x) in gradient.iter_mut().zip(x) {
        *gradient *= normal_cdf(*x) + x * normal_density(*x);
    }
}

/// The same of burn's operations, for a backend that has nothing better.
fn layer_norm_with_burn<B: Backend>(x: FloatTensor<B>, gain: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let [x, gain, bias] = [x, gain, bias].map(|x| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(x)));
    let centred = x.clone() - x.mean_dim(1);
    let variance = (centred.clone() * centred.clone()).mean_dim(1);
    let normal = centred / (variance + EPSILON).sqrt();
    (normal * gain.transpose() + bias.transpose()).into_primitive().tensor()
}

fn embed_with_burn<B: Backend>(tokens: FloatTensor<B>, positions: FloatTensor<B>, bytes: &[u8]) -> FloatTensor<B> {
    let [tokens, positions] = [tokens, positions].map(|x| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(x)));
    let [context, width] = positions.dims();
    let (windows, device) = (bytes.len() / context, tokens.device());
    let bytes = bytes.iter().copied().map(i32::from).collect::<Vec<i32>>();
    let bytes = Tensor::<B, 1, Int>::from_data(TensorData::new(bytes, [windows * context]), &device);
    let x = tokens.select(0, bytes).reshape([windows, context, width]) + positions.reshape([1, context, width]);
    let x: Tensor<B, 2> = x.reshape([windows * context, width]);
    x.into_primitive().tensor()
}

#[cfg(test)]
mod tests {
    use super::super::tensors::{assert_close, output_and_slopes, random};
    use super::*;

    type Traced = Autodiff<Flex>;

    #[test]
    fn a_layer_norm_is_that_of_burns_operations_and_so_are_its_gradients() {
        let inputs = [random([2 * ROWS + 3, 37], 7, 3.0), random([37, 1], 8, 2.0), random([37, 1], 9, 2.0)];
        let three = |x: Vec<_>| <[_; 3]>::try_from(x).expect("three inputs");
        let found = output_and_slopes(&inputs, |x| {
            let [x, gain, bias] = three(x);
            <Traced as TextOps>::layer_norm(x, gain, bias)
        });
        let expected = output_and_slopes(&inputs, |x| {
            let [x, gain, bias] = three(x);
            layer_norm_with_burn::<Traced>(x, gain, bias)
        });
        assert_eq!(found.len(), 4);
        found.iter().zip(&expected).for_each(|(found, expected)| assert_close(found, expected));
        let plain = inputs.clone();
        let [x, gain, bias] = plain;
        assert_close(&<Flex as TextOps>::layer_norm(x, gain, bias), &expected[0]);
    }

    #[test]
    fn a_gelu_is_burns_and_so_is_its_gradient() {
        let inputs = [random([9, 1000], 7, 6.0)];
        let found = output_and_slopes(&inputs, |mut x| <Traced as TextOps>::gelu(x.remove(0)));
        let expected = output_and_slopes(&inputs, |mut x| <Traced as ActivationOps<Traced>>::gelu(x.remove(0)));
        found.iter().zip(&expected).for_each(|(found, expected)| assert_close(found, expected));
        let [x] = inputs;
        assert_close(&<Flex as TextOps>::gelu(x), &expected[0]);
    }

    #[test]
    fn embeddings_are_those_of_burns_operations_and_so_are_their_gradients() {
        let inputs = [random([256, 5], 7, 1.0), random([3, 5], 8, 1.0)];
        let bytes = [0, 255, 7, 7, 9, 0];
        let two = |x: Vec<_>| <[_; 2]>::try_from(x).expect("two inputs");
        let found = output_and_slopes(&inputs, |x| {
            let [tokens, positions] = two(x);
            <Traced as TextOps>::embed(tokens, positions, &bytes)
        });
        let expected = output_and_slopes(&inputs, |x| {
            let [tokens, positions] = two(x);
            embed_with_burn::<Traced>(tokens, positions, &bytes)
        });
        assert_eq!(found.len(), 3);
        found.iter().zip(&expected).for_each(|(found, expected)| assert_close(found, expected));
        let [tokens, positions] = inputs;
        assert_close(&<Flex as TextOps>::embed(tokens, positions, &bytes), &expected[0]);
    }
}
