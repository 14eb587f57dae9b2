//! A dense layer as one operation, with its gradient, and the sums that join layers.
//!
//! Matrix products are burn-flex's, which hands transposed operands to `gemm` without a copy.
//! Everything element by element is a loop of this crate: burn-flex is not optimised in the
//! development profile, because that would take minutes of a first build. Every sum has one fixed
//! order, with any number of threads and any width of vectors.

use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, binary, unary};
use burn_autodiff::{Autodiff, NodeId};
use burn_flex::Flex;
use burn_flex::FlexTensor;
use burn_tensor::backend::Backend;
use burn_tensor::ops::{FloatTensor, FloatTensorOps as _};
use burn_tensor::{Tensor, TensorPrimitive, activation};
use rayon::prelude::*;

use super::tensors::{columns, tensor, values};
use super::weights::current;
use crate::train::vector::{total, vectorized};

/// Values that one thread takes at a time.
pub(super) const FLAT: usize = 4096;
/// Columns that one thread sums at a time.
const COLUMNS: usize = 64;

/// What a dense layer applies to its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// Nothing.
    Identity,
    /// Negative values become 0.
    Relu,
}

/// A backend that has it.
pub(super) trait DenseOps: Backend {
    /// Returns `weight` `[outputs, inputs]` times `x` `[inputs, batch]`, plus `bias` `[outputs, 1]`, with `activation` applied.
    fn dense(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        dense_with_burn::<Self>(x, weight, bias, activation)
    }

    /// Returns `x` `[rows, inputs]` times the transpose of `weight` `[outputs, inputs]`, plus the transpose of `bias`
    /// `[outputs, 1]`.
    fn dense_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        dense_rows_with_burn::<Self>(x, weight, bias)
    }

    /// Returns the same without a bias.
    fn product_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(x, Self::float_transpose(weight))
    }

    /// Returns the sum of two tensors of one shape.
    fn add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(x, y)
    }

    /// Returns a number whose gradient by `x` is `gradient`. The number itself says nothing.
    fn with_gradient(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_sum(Self::float_mul(x, gradient))
    }
}

impl DenseOps for Flex {
    fn dense(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        dense(x, weight, &bias, activation)
    }

    fn dense_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        dense_rows(x, &weight, &bias)
    }

    fn add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        add(&x, &y)
    }
}

impl<C: CheckpointStrategy> DenseOps for Autodiff<Flex, C> {
    fn dense(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let output = dense(x.primitive.clone(), weight.primitive.clone(), &bias.primitive, activation);
        match Dense.prepare::<C>([x.node, weight.node, bias.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let cut = (activation == Activation::Relu).then(|| output.clone());
                prep.finish((x.primitive, weight.primitive, cut), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn dense_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let output = dense_rows(x.primitive.clone(), &weight.primitive, &bias.primitive);
        match DenseRows.prepare::<C>([x.node, weight.node, bias.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x.primitive, weight.primitive), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn product_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let output = Flex::product_rows(x.primitive.clone(), weight.primitive.clone());
        match ProductRows.prepare::<C>([x.node, weight.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x.primitive, weight.primitive), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        let output = add(&x.primitive, &y.primitive);
        Add.prepare::<C>([x.node, y.node]).compute_bound().stateless(output)
    }

    fn with_gradient(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        let output = tensor(vec![0.0], [1]);
        match WithGradient.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(gradient.primitive, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct Dense;

impl Backward<Flex, 3> for Dense {
    /// The input, the weight, and the output if ReLU was applied to it.
    type State = (FlexTensor, FlexTensor, Option<FlexTensor>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight, cut) = ops.state;
        let gradient = grads.consume::<Flex>(&ops.node);
        let (gradient, sums) = sum_rows(gradient, cut.as_ref());
        let [of_x, of_weight, of_bias] = ops.parents.map(|parent| parent.map(|parent| parent.id));
        let weight = current(of_weight, weight);
        register(grads, of_x, || Flex::float_matmul(Flex::float_transpose(weight), gradient.clone()));
        register(grads, of_weight, || Flex::float_matmul(gradient, Flex::float_transpose(x)));
        register(grads, of_bias, || sums);
    }
}

#[derive(Debug)]
struct DenseRows;

impl Backward<Flex, 3> for DenseRows {
    /// The input and the weight.
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight) = ops.state;
        let gradient = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [of_x, of_weight, of_bias] = ops.parents.map(|parent| parent.map(|parent| parent.id));
        let weight = current(of_weight, weight);
        register(grads, of_bias, || sum_columns(&gradient));
        register(grads, of_x, || Flex::float_matmul(gradient.clone(), weight));
        register(grads, of_weight, || Flex::float_matmul(Flex::float_transpose(gradient), x));
    }
}

#[derive(Debug)]
struct ProductRows;

impl Backward<Flex, 2> for ProductRows {
    /// The input and the weight.
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight) = ops.state;
        let weight = current(ops.parents[1].as_ref().map(|parent| parent.id), weight);
        let by_x = |gradient| Flex::float_matmul(gradient, weight);
        let by_weight = |gradient| Flex::float_matmul(Flex::float_transpose(gradient), x);
        binary::<Flex, _, _>(ops.parents, ops.node, grads, by_x, by_weight);
    }
}

#[derive(Debug)]
struct Add;

impl Backward<Flex, 2> for Add {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        binary::<Flex, _, _>(ops.parents, ops.node, grads, |gradient| gradient, |gradient| gradient);
    }
}

#[derive(Debug)]
struct WithGradient;

impl Backward<Flex, 1> for WithGradient {
    /// The gradient.
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<Flex, _>(ops.parents, ops.node, grads, |_| ops.state);
    }
}

/// Adds to the gradient of a tensor, if that is wanted: the pixels of an example need none.
fn register(grads: &mut Gradients, parent: Option<NodeId>, slope: impl FnOnce() -> FlexTensor) {
    if let Some(parent) = parent {
        grads.register::<Flex>(parent, slope());
    }
}

fn rows_at_a_time(columns: usize) -> usize {
    (FLAT / columns).max(1)
}

fn dense(x: FlexTensor, weight: FlexTensor, bias: &FlexTensor, activation: Activation) -> FlexTensor {
    let mut output = Flex::float_matmul(weight, x);
    let (bias, columns) = (bias.to_contiguous(), columns(&output));
    let rows = rows_at_a_time(columns);
    let chunks = output.storage_mut().par_chunks_mut(rows * columns).zip(values(&bias).par_chunks(rows));
    chunks.for_each(|(output, bias)| vectorized!(activate_rows(output, bias, activation)));
    output
}

/// Adds its bias to every row and applies the activation.
#[inline(always)]
fn activate_rows(output: &mut [f32], bias: &[f32], activation: Activation) {
    let columns = output.len() / bias.len();
    for (row, bias) in output.chunks_exact_mut(columns).zip(bias) {
        match activation {
            Activation::Identity => row.iter_mut().for_each(|value| *value += bias),
            Activation::Relu => {
                for value in row {
                    let sum = *value + bias;
                    // Not `max`, which would hide a NaN.
                    *value = if sum <= 0.0 { 0.0 } else { sum };
                }
            }
        }
    }
}

/// Returns the gradient by the sums before ReLU, 0 where `cut`, the output, is, and the sum of each of its rows.
fn sum_rows(gradient: FlexTensor, cut: Option<&FlexTensor>) -> (FlexTensor, FlexTensor) {
    let mut gradient = gradient.to_contiguous();
    let columns = columns(&gradient);
    let rows = rows_at_a_time(columns);
    let slope: &mut [f32] = gradient.storage_mut();
    let mut sums = vec![0.0f32; slope.len() / columns];
    let chunks = slope.par_chunks_mut(rows * columns).zip(sums.par_chunks_mut(rows));
    match cut {
        Some(output) => chunks
            .zip(values(output).par_chunks(rows * columns))
            .for_each(|((slope, sums), output)| vectorized!(cut_and_sum(slope, output, sums))),
        None => chunks.for_each(|(slope, sums)| vectorized!(sum_each(slope, sums))),
    }
    let count = sums.len();
    (gradient, tensor(sums, [count, 1]))
}

#[inline(always)]
fn cut_and_sum(slope: &mut [f32], output: &[f32], sums: &mut [f32]) {
    for (slope, output) in slope.iter_mut().zip(output) {
        *slope = if *output <= 0.0 { 0.0 } else { *slope };
    }
    sum_each(slope, sums);
}

#[inline(always)]
fn sum_each(rows: &[f32], sums: &mut [f32]) {
    let columns = rows.len() / sums.len();
    for (row, sum) in rows.chunks_exact(columns).zip(sums) {
        *sum = total(row);
    }
}

fn dense_rows(x: FlexTensor, weight: &FlexTensor, bias: &FlexTensor) -> FlexTensor {
    let mut output = Flex::product_rows(x, weight.clone());
    let (bias, columns) = (bias.to_contiguous(), columns(&output));
    let chunks = output.storage_mut().par_chunks_mut(rows_at_a_time(columns) * columns);
    chunks.for_each(|output| vectorized!(add_to_each(output, values(&bias))));
    output
}

#[inline(always)]
fn add_to_each(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        add_to(row, bias);
    }
}

#[inline(always)]
pub(super) fn add_to(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// Sums of the columns of a contiguous tensor, `[columns, 1]`.
fn sum_columns(x: &FlexTensor) -> FlexTensor {
    let columns = columns(x);
    let mut sums = vec![0.0f32; columns];
    sums.par_chunks_mut(COLUMNS)
        .enumerate()
        .for_each(|(chunk, sums)| vectorized!(sum_some_columns(values(x), columns, chunk * COLUMNS, sums)));
    tensor(sums, [columns, 1])
}

#[inline(always)]
fn sum_some_columns(rows: &[f32], columns: usize, first: usize, sums: &mut [f32]) {
    for row in rows.chunks_exact(columns) {
        add_to(sums, &row[first..first + sums.len()]);
    }
}

fn add(x: &FlexTensor, y: &FlexTensor) -> FlexTensor {
    let (x, mut sum) = (x.to_contiguous(), y.to_contiguous());
    let chunks = sum.storage_mut().par_chunks_mut(FLAT).zip(values(&x).par_chunks(FLAT));
    chunks.for_each(|(sum, x)| vectorized!(add_to(sum, x)));
    sum
}

/// The same of burn's operations, for a backend that has nothing better.
fn dense_with_burn<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    let [x, weight, bias] = [x, weight, bias].map(|x| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(x)));
    let sums = weight.matmul(x) + bias;
    let output = if activation == Activation::Relu { activation::relu(sums) } else { sums };
    output.into_primitive().tensor()
}

fn dense_rows_with_burn<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let [x, weight, bias] = [x, weight, bias].map(|x| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(x)));
    (x.matmul(weight.transpose()) + bias.transpose()).into_primitive().tensor()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tensors::{output_and_slopes, random};
    use super::*;

    type Traced = Autodiff<Flex>;

    fn three(x: Vec<FloatTensor<Traced>>) -> [FloatTensor<Traced>; 3] {
        <[_; 3]>::try_from(x).expect("three inputs")
    }

    /// Compares outputs and gradients, to a millionth of the largest value of each.
    fn assert_equal(found: &[FlexTensor], expected: &[FlexTensor]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.layout().shape(), expected.layout().shape());
            let (found, expected) = (found.to_contiguous(), expected.to_contiguous());
            let largest = values(&expected).iter().fold(1.0f32, |most, value| most.max(value.abs()));
            for (found, expected) in values(&found).iter().zip(values(&expected)) {
                assert!((found - expected).abs() <= 1e-6 * largest, "{found}, expected {expected}");
            }
        }
    }

    fn check_columns(outputs: usize, inputs: usize, batch: usize, seed: u64, activation: Activation) {
        let of =
            [random([inputs, batch], seed, 1.0), random([outputs, inputs], !seed, 1.0), random([outputs, 1], 3, 1.0)];
        let found = output_and_slopes(&of, |x| {
            let [x, weight, bias] = three(x);
            Traced::dense(x, weight, bias, activation)
        });
        let expected = output_and_slopes(&of, |x| {
            let [x, weight, bias] = three(x);
            dense_with_burn::<Traced>(x, weight, bias, activation)
        });
        assert_equal(&found, &expected);
        let [x, weight, bias] = of;
        assert_equal(&[Flex::dense(x, weight, bias, activation)], &expected[..1]);
    }

    fn check_rows(outputs: usize, inputs: usize, rows: usize, seed: u64) {
        let of =
            [random([rows, inputs], seed, 1.0), random([outputs, inputs], !seed, 1.0), random([outputs, 1], 3, 1.0)];
        let found = output_and_slopes(&of, |x| {
            let [x, weight, bias] = three(x);
            Traced::dense_rows(x, weight, bias)
        });
        let expected = output_and_slopes(&of, |x| {
            let [x, weight, bias] = three(x);
            dense_rows_with_burn::<Traced>(x, weight, bias)
        });
        assert_equal(&found, &expected);
        let [x, weight, bias] = of;
        let product = [x.clone(), weight.clone()];
        assert_equal(&[Flex::dense_rows(x, weight, bias)], &expected[..1]);
        let two = |x: Vec<_>| <[_; 2]>::try_from(x).expect("two inputs");
        let found = output_and_slopes(&product, |x| {
            let [x, weight] = two(x);
            Traced::product_rows(x, weight)
        });
        let expected = output_and_slopes(&product, |x| {
            let [x, weight] = two(x);
            Traced::float_matmul(x, Traced::float_transpose(weight))
        });
        assert_equal(&found, &expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_dense_layer_is_burns_and_so_are_its_gradients(
            outputs in 1usize..80, inputs in 1usize..40, batch in 1usize..70, seed: u64, relu: bool,
        ) {
            check_columns(outputs, inputs, batch, seed, if relu { Activation::Relu } else { Activation::Identity });
            check_rows(outputs, inputs, batch, seed);
        }
    }

    #[test]
    fn one_example_and_more_than_one_thread_takes_are_no_exceptions() {
        for activation in [Activation::Identity, Activation::Relu] {
            check_columns(10, 20, 1, 1, activation);
            check_columns(1, 1, 1, 1, activation);
            check_columns(130, 3, 100, 1, activation);
            check_columns(2, 3, FLAT + 1, 1, activation);
        }
        check_rows(10, 20, 1, 1);
        check_rows(2 * COLUMNS + 3, 3, 100, 1);
    }

    #[test]
    fn residuals_are_added_and_their_gradients_copied() {
        let of = [random([3, FLAT], 1, 1.0), random([3, FLAT], 2, 1.0)];
        let two = |x: Vec<_>| <[_; 2]>::try_from(x).expect("two inputs");
        let found = output_and_slopes(&of, |x| {
            let [x, y] = two(x);
            <Traced as DenseOps>::add(x, y)
        });
        let expected = output_and_slopes(&of, |x| {
            let [x, y] = two(x);
            Traced::float_add(x, y)
        });
        assert_equal(&found, &expected);
    }

    #[test]
    fn a_gradient_that_is_given_is_the_gradient() {
        let [x, slope] = [4, 5].map(|seed| random([3, 7], seed, 1.0));
        let plain = |x: &FlexTensor| Tensor::<Flex, 2>::from_primitive(TensorPrimitive::Float(x.clone()));
        let x = Tensor::<Traced, 2>::from_inner(plain(&x)).require_grad();
        let given = Tensor::<Traced, 2>::from_inner(plain(&slope));
        let number = Traced::with_gradient(x.clone().into_primitive().tensor(), given.into_primitive().tensor());
        let gradients = Tensor::<Traced, 1>::from_primitive(TensorPrimitive::Float(number)).backward();
        let found = x.grad(&gradients).expect("it was used").into_primitive().tensor();
        assert_eq!(values(&found), values(&slope));
    }

    #[test]
    fn a_nan_is_not_cut_off() {
        let x = tensor(vec![f32::NAN, 1.0], [1, 2]);
        let output = Flex::dense(x, tensor(vec![1.0], [1, 1]), tensor(vec![0.0], [1, 1]), Activation::Relu);
        assert!(values(&output)[0].is_nan() && values(&output)[1] == 1.0, "{:?}", values(&output));
    }
}
