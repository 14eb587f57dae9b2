//! Between burn's tensors on the CPU and slices.

use burn_flex::FlexTensor;
use burn_tensor::{Shape, TensorData};
#[cfg(test)]
use {
    burn_autodiff::Autodiff,
    burn_flex::Flex,
    burn_tensor::{Tensor, TensorPrimitive, ops::FloatTensor},
};

/// Values of a contiguous tensor.
pub(super) fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("the tensor was made contiguous, and everything here is f32")
}

/// Columns of a tensor of rows.
pub(super) fn columns(x: &FlexTensor) -> usize {
    x.layout().shape()[1]
}

pub(super) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, Shape::from(shape)))
}

/// Values from -`bound` to `bound`.
#[cfg(test)]
pub(super) fn random<const D: usize>(shape: [usize; D], seed: u64, bound: f32) -> FlexTensor {
    let mut rng = anabranch_common::rng::SplitMix64::new(seed);
    tensor((0..shape.iter().product()).map(|_| bound * rng.next_signed_f32()).collect(), shape)
}

#[cfg(test)]
pub(super) fn assert_close(found: &FlexTensor, expected: &FlexTensor) {
    found.clone().into_data().assert_approx_eq::<f32>(&expected.clone().into_data(), Default::default());
}

/// The output of an operation, and the gradients of a weighted sum of it by its inputs.
#[cfg(test)]
pub(super) fn output_and_slopes(
    inputs: &[FlexTensor],
    operation: impl Fn(Vec<FloatTensor<Autodiff<Flex>>>) -> FloatTensor<Autodiff<Flex>>,
) -> Vec<FlexTensor> {
    let plain = |x: &FlexTensor| Tensor::<Flex, 2>::from_primitive(TensorPrimitive::Float(x.clone()));
    let traced = |x: &FlexTensor| Tensor::<Autodiff<Flex>, 2>::from_inner(plain(x)).require_grad();
    let inputs: Vec<_> = inputs.iter().map(traced).collect();
    let output = operation(inputs.iter().map(|x| x.clone().into_primitive().tensor()).collect());
    let output = Tensor::<Autodiff<Flex>, 2>::from_primitive(TensorPrimitive::Float(output));
    let weights = Tensor::from_inner(plain(&random(output.dims(), 9, 1.0)));
    let gradients = (output.clone() * weights).sum().backward();
    let slopes = inputs.iter().map(|x| x.grad(&gradients).expect("it was used"));
    [output.inner()].into_iter().chain(slopes).map(|x| x.into_primitive().tensor()).collect()
}
