//! The layers of the native models, forward, on any backend: what autodiff traces, and what evaluation computes.
//!
//! Activations are `[features, batch]` in dense layers: then every product is `weight * activation`, and the gradient of a weight
//! comes out in the weight's own layout. Between convolutions they are `[batch, pixels * channels]`. A gpt, whose sums run over
//! features, has `[tokens, features]`, a token being a byte of one of the batch's windows.

use anabranch_common::spec::{Gpt, Layer, LayerInput, LayerKind};
use burn_tensor::backend::Backend;
use burn_tensor::{Tensor, TensorData, TensorPrimitive};

use super::attention::Heads;
use super::dense_ops::{Activation, DenseOps};
use super::gpt::to_usize;
use super::ops::{Extents, ImageOps};
use super::text_ops::TextOps;

/// The parameters of a layer: of each of its tensors a matrix, weights `[out, in]` (a convolution's `in` is channels * 9), biases
/// and gains `[out, 1]`.
#[derive(Debug)]
pub(super) struct Params<'a, B: Backend> {
    pub(super) own: &'a [Tensor<B, 2>],
    /// The tensor of another layer that it uses too.
    pub(super) tied: Option<&'a Tensor<B, 2>>,
}

/// Returns the output of a model's first layer for `examples` examples, whose values are `inputs`.
pub(super) fn first<B: ImageOps + TextOps>(
    layer: &Layer,
    params: &Params<'_, B>,
    inputs: Vec<f32>,
    examples: usize,
) -> Tensor<B, 2> {
    if let LayerKind::Embedding(_) = layer.kind {
        let [tokens, positions] = [0, 1].map(|index| params.own[index].clone().into_primitive().tensor());
        return Tensor::from_primitive(TensorPrimitive::Float(B::embed(tokens, positions, &tokens_of(&inputs))));
    }
    let values = inputs.len() / examples;
    let device = params.own[0].device();
    forward(layer, params, Tensor::from_data(TensorData::new(inputs, [examples, values]), &device))
}

/// Returns the output of a layer that is not an embedding.
pub(super) fn forward<B: ImageOps + TextOps>(layer: &Layer, params: &Params<'_, B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    match layer.kind {
        LayerKind::Convolution { image: [height, width], in_channels, out_channels, input } => {
            // Channels are last between the convolutions.
            let images = if input == LayerInput::Examples && in_channels != 1 { swap(x, in_channels) } else { x };
            convolve(params, images, Extents { height, width, channels: in_channels, outputs: out_channels })
        }
        LayerKind::Dense { relu, input, .. } => {
            let x = match input {
                LayerInput::Examples => x.transpose(),
                // Features in PyTorch's order: channel, row, column.
                LayerInput::Maps { pixels } => swap(x, pixels).transpose(),
                LayerInput::Features => x,
            };
            dense(params, x, if relu { Activation::Relu } else { Activation::Identity })
        }
        LayerKind::Embedding(_) => unreachable!("an embedding reads bytes: it is the first layer of its model"),
        LayerKind::Attention(gpt) => add(x.clone(), attend(&gpt, params, x)),
        LayerKind::FeedForward(_) => add(x.clone(), feed_forward(params, x)),
        LayerKind::Head(_) => {
            let head = params.tied.expect("the layer table ties the head to the token embedding").clone();
            let [x, head] = [normalize(x, &params.own[0], &params.own[1]), head].map(|x| x.into_primitive().tensor());
            Tensor::from_primitive(TensorPrimitive::Float(B::product_rows(x, head)))
        }
    }
}

/// Transposes every example of `rows` rows.
fn swap<B: ImageOps>(x: Tensor<B, 2>, rows: usize) -> Tensor<B, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(B::transpose_each(x.into_primitive().tensor(), rows)))
}

fn convolve<B: ImageOps>(params: &Params<'_, B>, x: Tensor<B, 2>, extents: Extents) -> Tensor<B, 2> {
    let [x, kernel, bias] = [&x, &params.own[0], &params.own[1]].map(|x| x.clone().into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(B::convolve(x, kernel, bias, extents)))
}

fn dense<B: DenseOps>(params: &Params<'_, B>, x: Tensor<B, 2>, activation: Activation) -> Tensor<B, 2> {
    let [x, weight, bias] = [x, params.own[0].clone(), params.own[1].clone()].map(|x| x.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(B::dense(x, weight, bias, activation)))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "these are bytes")]
fn tokens_of(bytes: &[f32]) -> Vec<u8> {
    bytes.iter().map(|byte| *byte as u8).collect()
}

/// Causal multi-head attention of every window to itself, before the residual is added.
fn attend<B: TextOps>(gpt: &Gpt, params: &Params<'_, B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let [gain, norm_bias, weight, bias, out_weight, out_bias] = params.own else {
        unreachable!("half a block has six tensors")
    };
    let [context, heads, width] = [gpt.context, gpt.heads, gpt.width].map(to_usize);
    let packed = linear(normalize(x, gain, norm_bias), weight, bias).into_primitive().tensor();
    let mixed = B::attend(packed, Heads { context, heads, size: width / heads });
    linear(Tensor::from_primitive(TensorPrimitive::Float(mixed)), out_weight, out_bias)
}

/// The feed-forward layers of a block, before the residual is added.
fn feed_forward<B: TextOps>(params: &Params<'_, B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let [gain, norm_bias, weight, bias, out_weight, out_bias] = params.own else {
        unreachable!("half a block has six tensors")
    };
    let hidden = linear(normalize(x, gain, norm_bias), weight, bias).into_primitive().tensor();
    let hidden = Tensor::from_primitive(TensorPrimitive::Float(<B as TextOps>::gelu(hidden)));
    linear(hidden, out_weight, out_bias)
}

/// `x` times the transpose of `weight` `[out, in]`, plus `bias` `[out, 1]`.
fn linear<B: TextOps>(x: Tensor<B, 2>, weight: &Tensor<B, 2>, bias: &Tensor<B, 2>) -> Tensor<B, 2> {
    let [x, weight, bias] = [x, weight.clone(), bias.clone()].map(|x| x.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(B::dense_rows(x, weight, bias)))
}

fn add<B: TextOps>(x: Tensor<B, 2>, y: Tensor<B, 2>) -> Tensor<B, 2> {
    let [x, y] = [x, y].map(|x| x.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(<B as DenseOps>::add(x, y)))
}

fn normalize<B: TextOps>(x: Tensor<B, 2>, gain: &Tensor<B, 2>, bias: &Tensor<B, 2>) -> Tensor<B, 2> {
    let [x, gain, bias] = [x, gain.clone(), bias.clone()].map(|x| x.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(<B as TextOps>::layer_norm(x, gain, bias)))
}
