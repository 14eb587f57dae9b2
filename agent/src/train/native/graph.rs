//! The forward pass and its gradient, on flat vectors at the edges and burn tensors between.
//!
//! Activations are `[features, batch]`: then every product is `weight * activation`, and the gradient of a weight comes
//! out in the weight's own layout.

use anabranch_common::manifest::TensorSpec;
use burn::backend::{Autodiff, Flex};
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData, TensorPrimitive};

use super::architecture::Architecture;
use super::ops::ImageOps;

/// What a batch of logits is worth.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Score {
    /// Sum of the examples' cross-entropies, in nats.
    pub(super) loss_sum: f64,
    /// Examples whose label has the largest logit.
    pub(super) correct: u64,
    /// Gradient of the mean cross-entropy by the logits, `[classes, batch]`.
    pub(super) gradient: Vec<f32>,
}

/// Loss of a batch, and the gradient of its mean loss by the model, written to `gradient`.
pub(super) fn backward(
    architecture: &Architecture,
    model: &[f32],
    inputs: Vec<f32>,
    labels: &[u32],
    gradient: &mut Vec<f32>,
) -> f64 {
    let params: Vec<_> = tensors::<Autodiff<Flex>>(architecture, model).into_iter().map(Tensor::require_grad).collect();
    let logits = logits(architecture, &params, batch(inputs, labels.len()));
    let score = score(&values(logits.clone().inner()), labels);
    let [classes, examples] = logits.dims();
    let slope = Tensor::from_data(TensorData::new(score.gradient, [classes, examples]), &Default::default());
    // The gradient of sum(logits * slope) by the model is that of the loss: slope is the loss's gradient by the logits.
    let mut gradients = (logits * slope).sum().backward();
    gradient.clear();
    for param in &params {
        let part = param.grad_remove(&mut gradients).expect("every tensor of the manifest is used in the forward pass");
        gradient.extend_from_slice(&values(part));
    }
    score.loss_sum
}

/// Loss and hits of a batch.
pub(super) fn forward(architecture: &Architecture, model: &[f32], inputs: Vec<f32>, labels: &[u32]) -> Score {
    let params = tensors::<Flex>(architecture, model);
    score(&values(logits(architecture, &params, batch(inputs, labels.len()))), labels)
}

/// The flat vector as matrices: weights `[out, in]` (a convolution's `in` is channels * 9), biases `[out, 1]`.
fn tensors<B: Backend>(architecture: &Architecture, model: &[f32]) -> Vec<Tensor<B, 2>> {
    let matrix = |(spec, range): (&TensorSpec, std::ops::Range<usize>)| {
        let elements = range.len();
        let rows = spec.shape.first().and_then(|rows| usize::try_from(*rows).ok()).unwrap_or(elements);
        let data = TensorData::new(model[range].to_vec(), [rows, elements / rows]);
        Tensor::from_data(data, &Default::default())
    };
    architecture.manifest.ranges().map(matrix).collect()
}

fn batch<B: Backend>(inputs: Vec<f32>, examples: usize) -> Tensor<B, 2> {
    let values = inputs.len() / examples;
    Tensor::from_data(TensorData::new(inputs, [examples, values]), &Default::default())
}

fn values<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().into_vec().expect("every tensor here is f32")
}

/// `[batch, inputs]` to `[classes, batch]`.
fn logits<B: ImageOps>(architecture: &Architecture, params: &[Tensor<B, 2>], inputs: Tensor<B, 2>) -> Tensor<B, 2> {
    let (conv_params, dense_params) = params.split_at(2 * architecture.convs.len());
    let mut x = if conv_params.is_empty() { inputs.transpose() } else { convolve(architecture, conv_params, inputs) };
    let layers = dense_params.len() / 2;
    for (index, pair) in dense_params.chunks_exact(2).enumerate() {
        x = pair[0].clone().matmul(x) + pair[1].clone();
        if index + 1 < layers {
            x = relu(x);
        }
    }
    x
}

/// `[batch, inputs]` to `[features, batch]`, features in PyTorch's order (channel, row, column).
fn convolve<B: ImageOps>(architecture: &Architecture, params: &[Tensor<B, 2>], inputs: Tensor<B, 2>) -> Tensor<B, 2> {
    let [examples, _] = inputs.dims();
    let [mut height, mut width] = architecture.image;
    let channels = architecture.convs[0].in_channels;
    let mut image = inputs.reshape([examples, channels, height, width]).swap_dims(0, 1);
    for (conv, pair) in architecture.convs.iter().zip(params.chunks_exact(2)) {
        let patches = Tensor::from_primitive(TensorPrimitive::Float(B::patches(image.into_primitive().tensor())));
        let maps = pair[0].clone().matmul(patches).reshape([conv.out_channels, examples, height, width]);
        let pooled =
            Tensor::<B, 4>::from_primitive(TensorPrimitive::Float(B::max_pool(maps.into_primitive().tensor())));
        [height, width] = [height / 2, width / 2];
        // A bias and ReLU commute with taking a maximum, and after pooling they have a quarter of the work.
        let pooled = pooled.reshape([conv.out_channels, examples * height * width]);
        image = relu(pooled + pair[1].clone()).reshape([conv.out_channels, examples, height, width]);
    }
    let [channels, _, height, width] = image.dims();
    image.permute([0, 2, 3, 1]).reshape([channels * height * width, examples])
}

/// Cross-entropy of softmax, with its gradient, from logits `[classes, batch]`.
#[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
fn score(logits: &[f32], labels: &[u32]) -> Score {
    let examples = labels.len();
    let classes = logits.len() / examples;
    let mut score = Score { loss_sum: 0.0, correct: 0, gradient: vec![0.0; logits.len()] };
    let mut shares = vec![0.0f64; classes];
    for (example, label) in labels.iter().enumerate() {
        let label = *label as usize;
        let column = || logits.iter().skip(example).step_by(examples).map(|logit| f64::from(*logit));
        let largest = column().fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        for (share, logit) in shares.iter_mut().zip(column()) {
            *share = (logit - largest).exp();
            sum += *share;
        }
        let of_label = f64::from(logits[label * examples + example]);
        score.loss_sum += sum.ln() - (of_label - largest);
        // The first of equal logits is the answer.
        score.correct += u64::from(column().position(|logit| logit >= largest) == Some(label));
        for (class, share) in shares.iter().enumerate() {
            let target = f64::from(u8::from(class == label));
            score.gradient[class * examples + example] = ((share / sum - target) / examples as f64) as f32;
        }
    }
    score
}

#[cfg(test)]
mod tests {
    use super::*;

    use anabranch_common::rng::SplitMix64;
    use anabranch_common::spec::{ModelKind, ModelSpec};

    fn check_gradient(kind: ModelKind, input: &[u64], hidden: &[u64]) {
        let spec = ModelSpec { kind, input: input.to_vec(), classes: 3, hidden: hidden.to_vec(), input_scale: 1.0 };
        let architecture = Architecture::new(&spec).expect("valid");
        let mut model = architecture.initial(11);
        let mut rng = SplitMix64::new(5);
        let labels = [2, 0, 1, 1];
        let values = labels.len() as u64 * input.iter().product::<u64>();
        let inputs: Vec<f32> = (0..values).map(|_| rng.next_signed_f32()).collect();
        let mut gradient = Vec::new();
        backward(&architecture, &model, inputs.clone(), &labels, &mut gradient);
        assert_eq!(gradient.len(), model.len());

        let mean_loss = |model: &[f32]| forward(&architecture, model, inputs.clone(), &labels).loss_sum / 4.0;
        let step = 2e-3f32;
        let mut kinks = 0;
        for index in 0..model.len() {
            let here = model[index];
            model[index] = here + step;
            let above = mean_loss(&model);
            model[index] = here - step;
            let below = mean_loss(&model);
            model[index] = here;
            let slope = (above - below) / (2.0 * f64::from(step));
            // A step across a kink of ReLU or of the maximum gives another slope; that happens to few parameters.
            if (slope - f64::from(gradient[index])).abs() > 1e-3 + 0.01 * slope.abs() {
                kinks += 1;
            }
        }
        assert!(kinks * 50 <= model.len(), "{kinks} of {} slopes differ from the gradient", model.len());
        assert!(gradient.iter().filter(|g| g.abs() > 1e-3).count() * 3 > model.len(), "the gradient is mostly zero");
    }

    #[test]
    fn gradient_of_the_mlp_matches_finite_differences() {
        check_gradient(ModelKind::Mlp, &[6], &[5, 4]);
    }

    #[test]
    fn gradient_of_the_cnn_matches_finite_differences() {
        check_gradient(ModelKind::Cnn, &[2, 4, 8], &[3, 4, 5]);
    }

    #[test]
    fn cross_entropy_is_that_of_the_textbook() {
        // Two examples over two classes, logits [class][example].
        let score = score(&[0.0, 3.0, 0.0, 1.0], &[1, 0]);
        let second = (1.0 + (-2.0f64).exp()).ln();
        assert!((score.loss_sum - (2.0f64.ln() + second)).abs() < 1e-12);
        assert_eq!(score.correct, 1, "the first of two equal logits is the answer");
        assert_eq!(score.gradient[0], 0.25);
        assert_eq!(score.gradient[2], -0.25);
    }
}
