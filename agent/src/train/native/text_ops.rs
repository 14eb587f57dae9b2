//! Two operations on rows that a gpt needs, with their gradients: each is one pass here, and half a dozen tensors if it
//! is put together from burn's operations. A row's sums have one fixed order.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{TensorData, TensorMetadata as _};
use rayon::prelude::*;

/// Keeps a layer norm from dividing by 0; PyTorch's default.
const EPSILON: f32 = 1e-5;
/// Sums that are kept side by side, so that one row keeps a vector unit busy.
const LANES: usize = 16;

/// A backend that has both operations.
pub(super) trait TextOps: Backend {
    /// Softmax of `scale * x` over the last dimension of `[..., t, t]`, where row i has its first i + 1 entries and the
    /// others get 0.
    fn causal_softmax(x: FloatTensor<Self>, scale: f32) -> FloatTensor<Self>;

    /// Brings every row of `[rows, width]` to mean 0 and variance 1.
    fn normalize(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl TextOps for Flex {
    fn causal_softmax(x: FloatTensor<Self>, scale: f32) -> FloatTensor<Self> {
        softmax(&x, scale)
    }

    fn normalize(x: FloatTensor<Self>) -> FloatTensor<Self> {
        normal(&x).0
    }
}

impl<C: CheckpointStrategy> TextOps for Autodiff<Flex, C> {
    fn causal_softmax(x: FloatTensor<Self>, scale: f32) -> FloatTensor<Self> {
        let output = softmax(&x.primitive, scale);
        match CausalSoftmax.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((output.clone(), scale), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn normalize(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (output, factors) = normal(&x.primitive);
        match Normalize.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((output.clone(), factors), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct CausalSoftmax;

impl Backward<Flex, 1> for CausalSoftmax {
    /// The output, and the scale.
    type State = (FlexTensor, f32);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (output, scale) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |gradient| softmax_slope(&output, &gradient, scale));
    }
}

#[derive(Debug)]
struct Normalize;

impl Backward<Flex, 1> for Normalize {
    /// The output, and what each row was multiplied by.
    type State = (FlexTensor, Arc<[f32]>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (output, factors) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |gradient| normal_slope(&output, &gradient, &factors));
    }
}

fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("the tensor was made contiguous, and everything here is f32")
}

fn like(x: &FlexTensor, values: Vec<f32>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, x.shape()))
}

fn width(x: &FlexTensor) -> usize {
    let shape = x.shape();
    shape[shape.num_dims() - 1]
}

/// Sum over a row of what `term` gives for each index.
fn sum(length: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = length - length % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    lanes.iter().sum::<f32>() + (whole..length).map(term).sum::<f32>()
}

fn softmax(x: &FlexTensor, scale: f32) -> FlexTensor {
    let x = x.to_contiguous();
    let width = width(&x);
    let mut shares = vec![0.0f32; values(&x).len()];
    let rows = shares.par_chunks_exact_mut(width).zip(values(&x).par_chunks_exact(width)).enumerate();
    rows.for_each(|(row, (shares, scores))| {
        let seen = row % width + 1;
        let (shares, scores) = (&mut shares[..seen], &scores[..seen]);
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for (share, score) in shares.iter_mut().zip(scores) {
            *share = ((score - largest) * scale).exp();
        }
        let factor = 1.0 / sum(seen, |index| shares[index]);
        shares.iter_mut().for_each(|share| *share *= factor);
    });
    like(&x, shares)
}

fn softmax_slope(output: &FlexTensor, gradient: &FlexTensor, scale: f32) -> FlexTensor {
    let gradient = gradient.to_contiguous();
    let width = width(output);
    let mut slope = vec![0.0f32; values(output).len()];
    let inputs = values(output).par_chunks_exact(width).zip(values(&gradient).par_chunks_exact(width));
    slope.par_chunks_exact_mut(width).zip(inputs).enumerate().for_each(|(row, (slope, (shares, gradient)))| {
        let seen = row % width + 1;
        let (shares, gradient) = (&shares[..seen], &gradient[..seen]);
        let mean = sum(seen, |index| shares[index] * gradient[index]);
        for ((slope, share), gradient) in slope.iter_mut().zip(shares).zip(gradient) {
            *slope = scale * share * (gradient - mean);
        }
    });
    like(output, slope)
}

fn normal(x: &FlexTensor) -> (FlexTensor, Arc<[f32]>) {
    let x = x.to_contiguous();
    let width = width(&x);
    let mut normal = vec![0.0f32; values(&x).len()];
    let rows = normal.par_chunks_exact_mut(width).zip(values(&x).par_chunks_exact(width));
    let factors: Vec<f32> = rows
        .map(|(normal, row)| {
            let mean = sum(width, |index| row[index]) / width as f32;
            let variance = sum(width, |index| (row[index] - mean) * (row[index] - mean)) / width as f32;
            let factor = 1.0 / (variance + EPSILON).sqrt();
            for (normal, value) in normal.iter_mut().zip(row) {
                *normal = (value - mean) * factor;
            }
            factor
        })
        .collect();
    (like(&x, normal), factors.into())
}

fn normal_slope(output: &FlexTensor, gradient: &FlexTensor, factors: &[f32]) -> FlexTensor {
    let gradient = gradient.to_contiguous();
    let width = width(output);
    let mut slope = vec![0.0f32; values(output).len()];
    let inputs = values(output).par_chunks_exact(width).zip(values(&gradient).par_chunks_exact(width));
    slope.par_chunks_exact_mut(width).zip(inputs).zip(factors).for_each(|((slope, (normal, gradient)), factor)| {
        let mean = sum(width, |index| gradient[index]) / width as f32;
        let along = sum(width, |index| gradient[index] * normal[index]) / width as f32;
        for ((slope, normal), gradient) in slope.iter_mut().zip(normal).zip(gradient) {
            *slope = factor * (gradient - mean - normal * along);
        }
    });
    like(output, slope)
}

#[cfg(test)]
mod tests {
    use super::*;

    use burn::tensor::{Tensor, TensorPrimitive, activation};

    fn random(shape: [usize; 3]) -> Tensor<Flex, 3> {
        let mut rng = anabranch_common::rng::SplitMix64::new(7);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| 3.0 * rng.next_signed_f32()).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    #[test]
    fn each_row_is_burns_softmax_of_what_it_may_see() {
        let (t, x) = (37, random([2, 37, 37]));
        let found = Flex::causal_softmax(x.clone().into_primitive().tensor(), 0.5);
        let found = Tensor::<Flex, 3>::from_primitive(TensorPrimitive::Float(found));
        for row in 0..t {
            let expected = activation::softmax(x.clone().slice([0..2, row..row + 1, 0..row + 1]) * 0.5, 2);
            let seen = found.clone().slice([0..2, row..row + 1, 0..row + 1]);
            seen.into_data().assert_approx_eq::<f32>(&expected.into_data(), Default::default());
        }
        let sum = found.sum().into_scalar();
        assert!((sum - 2.0 * t as f32).abs() < 1e-3, "what may not be seen has a share: {sum}");
    }

    #[test]
    fn normalized_rows_have_mean_zero_and_variance_one() {
        let x = random([1, 5, 37]).reshape([5, 37]);
        let (mean, variance) = (x.clone().mean_dim(1), x.clone().var_bias(1));
        let expected: Tensor<Flex, 2> = (x.clone() - mean) / (variance + EPSILON).sqrt();
        let found = Flex::normalize(x.into_primitive().tensor());
        let found = Tensor::<Flex, 2>::from_primitive(TensorPrimitive::Float(found));
        found.into_data().assert_approx_eq::<f32>(&expected.into_data(), Default::default());
    }
}
