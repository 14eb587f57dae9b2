//! Causal attention of many heads as one operation, with its gradient: queries, keys and values are read where the layer
//! before left them, and nothing is kept for the gradient but them and the shares.

use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn_flex::Flex;
use burn_flex::{FlexTensor, Layout};
use burn_tensor::backend::Backend;
use burn_tensor::ops::{FloatTensor, FloatTensorOps as _};
use burn_tensor::{Bool, Shape, Tensor, TensorPrimitive, activation};
use rayon::prelude::*;

use super::tensors::{columns, tensor, values};
use crate::train::vector::{dot, exp, largest, total, vectorized};

/// Query, key, value.
const PARTS: usize = 3;

/// Extents of attention. The width of a token is `heads * size`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// Tokens of a window, which see each other.
    pub(super) context: usize,
    pub(super) heads: usize,
    /// Width of a head.
    pub(super) size: usize,
}

impl Heads {
    fn width(self) -> usize {
        self.heads * self.size
    }

    /// What scores are multiplied by.
    fn scale(self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }

    /// Columns of `x` `[tokens, columns]` from `column` on as `[windows, heads, context, size]`, without a copy.
    fn view(self, x: &FlexTensor, column: usize) -> FlexTensor {
        let columns = columns(x);
        let windows = values(x).len() / (self.context * columns);
        let strides = [self.context * columns, self.size, columns, 1].map(usize::cast_signed);
        let shape = Shape::from([windows, self.heads, self.context, self.size]);
        x.clone().with_layout(Layout::new(shape, strides.to_vec(), column))
    }

    fn parts(self, packed: &FlexTensor) -> [FlexTensor; PARTS] {
        [0, 1, 2].map(|part| self.view(packed, part * self.width()))
    }

    /// The opposite of `view`, for all columns: parts `[windows, heads, context, size]` side by side as
    /// `[tokens, parts * heads * size]`.
    fn join<const N: usize>(self, parts: [FlexTensor; N]) -> FlexTensor {
        let parts = parts.map(|part| part.to_contiguous());
        let parts = parts.each_ref().map(values);
        let (columns, window) = (N * self.width(), self.context * self.width());
        let mut joined = vec![0.0f32; N * parts[0].len()];
        joined.par_chunks_exact_mut(self.context * columns).enumerate().for_each(|(index, joined)| {
            for (part, values) in parts.iter().enumerate() {
                let heads = values[index * window..(index + 1) * window].chunks_exact(self.context * self.size);
                for (head, rows) in heads.enumerate() {
                    let first = part * self.width() + head * self.size;
                    for (token, row) in joined.chunks_exact_mut(columns).zip(rows.chunks_exact(self.size)) {
                        token[first..first + self.size].copy_from_slice(row);
                    }
                }
            }
        });
        let tokens = joined.len() / columns;
        tensor(joined, [tokens, columns])
    }
}

/// A backend that has it.
pub(super) trait Attention: Backend {
    /// Every token's mix of the values of its window up to itself, `[tokens, heads * size]`; the shares are the softmax
    /// of queries times keys over the square root of `size`. `packed` is `[tokens, 3 * heads * size]`: query, key, value.
    fn attend(packed: FloatTensor<Self>, heads: Heads) -> FloatTensor<Self> {
        attend_with_burn::<Self>(packed, heads)
    }
}

impl Attention for Flex {
    fn attend(packed: FloatTensor<Self>, heads: Heads) -> FloatTensor<Self> {
        mix(&packed.to_contiguous(), heads).0
    }
}

impl<C: CheckpointStrategy> Attention for Autodiff<Flex, C> {
    fn attend(packed: FloatTensor<Self>, heads: Heads) -> FloatTensor<Self> {
        let input = packed.primitive.to_contiguous();
        let (output, shares) = mix(&input, heads);
        match Attend.prepare::<C>([packed.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((input, shares, heads), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct Attend;

impl Backward<Flex, 1> for Attend {
    /// The input, the shares `[windows, heads, context, context]`, and the extents.
    type State = (FlexTensor, FlexTensor, Heads);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (packed, shares, heads) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |gradient| slope(&packed, shares, &gradient, heads));
    }
}

fn transpose(x: FlexTensor) -> FlexTensor {
    Flex::float_swap_dims(x, 2, 3)
}

/// The output, and the shares.
fn mix(packed: &FlexTensor, heads: Heads) -> (FlexTensor, FlexTensor) {
    let [query, key, value] = heads.parts(packed);
    let mut shares = Flex::float_matmul(query, transpose(key));
    softmax(shares.storage_mut(), heads);
    let mixed = Flex::float_matmul(shares.clone(), value);
    (heads.join([mixed]), shares)
}

fn slope(packed: &FlexTensor, shares: FlexTensor, gradient: &FlexTensor, heads: Heads) -> FlexTensor {
    let [query, key, value] = heads.parts(packed);
    let gradient = heads.view(&gradient.to_contiguous(), 0);
    let mut scores = Flex::float_matmul(gradient.clone(), transpose(value));
    softmax_slope(values(&shares), scores.storage_mut(), heads);
    let value = Flex::float_matmul(transpose(shares), gradient);
    let query_slope = Flex::float_matmul(scores.clone(), key);
    let key_slope = Flex::float_matmul(transpose(scores), query);
    heads.join([query_slope, key_slope, value])
}

/// Turns scores into shares; row i of a window has its first i + 1 entries, and the others get 0.
fn softmax(scores: &mut [f32], heads: Heads) {
    let squares = scores.par_chunks_exact_mut(heads.context * heads.context);
    squares.for_each(|scores| vectorized!(softmax_square(scores, heads)));
}

#[inline(always)]
fn softmax_square(scores: &mut [f32], heads: Heads) {
    let scale = heads.scale();
    for (row, scores) in scores.chunks_exact_mut(heads.context).enumerate() {
        let (seen, unseen) = scores.split_at_mut(row + 1);
        let most = largest(seen);
        for score in seen.iter_mut() {
            *score = exp((*score - most) * scale);
        }
        let factor = 1.0 / total(seen);
        seen.iter_mut().for_each(|share| *share *= factor);
        unseen.fill(0.0);
    }
}

/// Turns the gradient by the shares into that by the scores.
fn softmax_slope(shares: &[f32], gradient: &mut [f32], heads: Heads) {
    let square = heads.context * heads.context;
    let squares = shares.par_chunks_exact(square).zip(gradient.par_chunks_exact_mut(square));
    squares.for_each(|(shares, gradient)| vectorized!(softmax_slope_square(shares, gradient, heads)));
}

#[inline(always)]
fn softmax_slope_square(shares: &[f32], gradient: &mut [f32], heads: Heads) {
    let scale = heads.scale();
    let rows = shares.chunks_exact(heads.context).zip(gradient.chunks_exact_mut(heads.context));
    for (row, (shares, gradient)) in rows.enumerate() {
        let (seen, unseen) = gradient.split_at_mut(row + 1);
        let shares = &shares[..=row];
        let mean = dot(shares, seen);
        for (slope, share) in seen.iter_mut().zip(shares) {
            *slope = scale * share * (*slope - mean);
        }
        unseen.fill(0.0);
    }
}

/// The same of burn's operations, for a backend that has nothing better.
fn attend_with_burn<B: Backend>(packed: FloatTensor<B>, heads: Heads) -> FloatTensor<B> {
    let packed = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(packed));
    let (Heads { context, heads: count, size }, [tokens, _]) = (heads, packed.dims());
    let part = |part: usize| {
        let columns = part * count * size..(part + 1) * count * size;
        packed.clone().slice([0..tokens, columns]).reshape([tokens / context, context, count, size]).swap_dims(1, 2)
    };
    let [query, key, value] = [0, 1, 2].map(part);
    let scores = query.matmul(key.transpose()) * heads.scale();
    let unseen =
        Tensor::<B, 2, Bool>::tril_mask([context, context], 0, &scores.device()).reshape([1, 1, context, context]);
    let shares = activation::softmax(scores.mask_fill(unseen, f32::NEG_INFINITY), 3);
    let mixed: Tensor<B, 2> = shares.matmul(value).swap_dims(1, 2).reshape([tokens, count * size]);
    mixed.into_primitive().tensor()
}

#[cfg(test)]
mod tests {
    use super::super::tensors::{assert_close, output_and_slopes, random};
    use super::*;

    #[test]
    fn it_is_that_of_burns_operations_and_so_is_its_gradient() {
        let heads = Heads { context: 19, heads: 3, size: 5 };
        let packed = [random([2 * 19, 3 * 15], 7, 3.0)];
        let found = output_and_slopes(&packed, |mut x| Autodiff::<Flex>::attend(x.remove(0), heads));
        let expected = output_and_slopes(&packed, |mut x| attend_with_burn::<Autodiff<Flex>>(x.remove(0), heads));
        assert_eq!(found.len(), 2);
        found.iter().zip(&expected).for_each(|(found, expected)| assert_close(found, expected));
        let [packed] = packed;
        assert_close(&Flex::attend(packed, heads), &expected[0]);
    }
}
