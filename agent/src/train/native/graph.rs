//! The forward pass and its gradient, on flat vectors at the edges and burn tensors between.
//!
//! Activations are `[features, batch]`: then every product is `weight * activation`, and the gradient of a weight comes
//! out in the weight's own layout. A gpt, whose sums run over features, has them the other way round (see `gpt`).

use anabranch_common::manifest::TensorSpec;
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use burn_tensor::backend::Backend;
use burn_tensor::{Device, Tensor, TensorData, TensorPrimitive};
use rayon::prelude::*;

use super::architecture::Architecture;
use super::dense_ops::{Activation, DenseOps as _};
use super::gpt;
use super::ops::{Extents, ImageOps};
use super::text_ops::TextOps;

/// What a batch of logits is worth.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Score {
    /// Sum of the labels' cross-entropies, in nats.
    pub(super) loss_sum: f64,
    /// Labels that have the largest logit.
    pub(super) correct: u64,
    /// Gradient of the mean cross-entropy by the logits, in their layout.
    pub(super) gradient: Vec<f32>,
}

/// A backend that native models can be trained with.
pub(super) trait Trains: ImageOps + TextOps {
    /// Whether its memory is not the host's: then one large copy takes less time than many small ones.
    const IS_FAR: bool;
}

impl Trains for Flex {
    const IS_FAR: bool = false;
}

/// A model on a device of a backend.
pub(super) struct Place<'a, B: Trains> {
    pub(super) architecture: &'a Architecture,
    pub(super) device: &'a Device<B>,
    /// For what is computed on the host whatever the backend: the loss.
    pub(super) threads: &'a rayon::ThreadPool,
}

impl<B: Trains> Place<'_, B>
where
    Autodiff<B>: ImageOps + TextOps,
{
    /// Loss of a batch, and the gradient of its mean loss by the model, written to `gradient`.
    pub(super) fn backward(&self, model: &[f32], inputs: Vec<f32>, labels: &[u32], gradient: &mut Vec<f32>) -> f64 {
        let traced = |param| Tensor::<Autodiff<B>, 2>::from_inner(param).require_grad();
        let params: Vec<_> = self.params(model).into_iter().map(traced).collect();
        let logits = logits(self.architecture, &params, inputs, labels.len());
        let score = self.score(logits.clone().inner(), labels);
        let slope = Tensor::<B, 2>::from_data(TensorData::new(score.gradient, logits.dims()), self.device);
        // A number with the loss's gradient by the logits has the loss's gradient by the model.
        let [logits, slope] = [logits, Tensor::from_inner(slope)].map(|x| x.into_primitive().tensor());
        let number = Autodiff::<B>::with_gradient(logits, slope);
        let mut gradients = Tensor::<Autodiff<B>, 1>::from_primitive(TensorPrimitive::Float(number)).backward();
        let parts = params.iter().map(|param| {
            param.grad_remove(&mut gradients).expect("every tensor of the manifest is used in the forward pass")
        });
        gradient.clear();
        if B::IS_FAR {
            let parts: Vec<Tensor<B, 1>> = parts.map(|part| part.flatten(0, 1)).collect();
            gradient.extend_from_slice(&values(Tensor::cat(parts, 0)));
        } else {
            parts.for_each(|part| gradient.extend_from_slice(&values(part)));
        }
        score.loss_sum
    }

    /// Loss and hits of a batch.
    pub(super) fn forward(&self, params: &[Tensor<B, 2>], inputs: Vec<f32>, labels: &[u32]) -> Score {
        self.score(logits(self.architecture, params, inputs, labels.len()), labels)
    }

    fn score(&self, logits: Tensor<B, 2>, labels: &[u32]) -> Score {
        let (logits, rows) = (values(logits), self.architecture.gpt.is_some());
        self.threads.install(|| if rows { score_rows(&logits, labels) } else { score(&logits, labels) })
    }

    /// The flat vector as matrices: weights `[out, in]` (a convolution's `in` is channels * 9), biases `[out, 1]`.
    pub(super) fn params(&self, model: &[f32]) -> Vec<Tensor<B, 2>> {
        let all =
            B::IS_FAR.then(|| Tensor::<B, 1>::from_data(TensorData::new(model.to_vec(), [model.len()]), self.device));
        let matrix = |(spec, range): (&TensorSpec, std::ops::Range<usize>)| {
            let elements = range.len();
            let rows = spec.shape.first().and_then(|rows| usize::try_from(*rows).ok()).unwrap_or(elements);
            let shape = [rows, elements / rows];
            match &all {
                Some(all) => all.clone().slice(range).reshape(shape),
                None => Tensor::from_data(TensorData::new(model[range].to_vec(), shape), self.device),
            }
        };
        self.architecture.manifest.ranges().map(matrix).collect()
    }
}

fn batch<B: Backend>(inputs: Vec<f32>, examples: usize, device: &Device<B>) -> Tensor<B, 2> {
    let values = inputs.len() / examples;
    Tensor::from_data(TensorData::new(inputs, [examples, values]), device)
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().into_vec().expect("every tensor here is f32")
}

/// `[classes, batch]`, but of a gpt `[tokens, classes]`.
fn logits<B: ImageOps + TextOps>(
    architecture: &Architecture,
    params: &[Tensor<B, 2>],
    inputs: Vec<f32>,
    labels: usize,
) -> Tensor<B, 2> {
    if let Some(gpt) = &architecture.gpt {
        return gpt::logits(gpt, params, &inputs);
    }
    let inputs = batch(inputs, labels, &params[0].device());
    let (conv_params, dense_params) = params.split_at(2 * architecture.convs.len());
    let mut x = if conv_params.is_empty() { inputs.transpose() } else { convolve(architecture, conv_params, inputs) };
    let layers = dense_params.len() / 2;
    for (index, pair) in dense_params.chunks_exact(2).enumerate() {
        let activation = if index + 1 < layers { Activation::Relu } else { Activation::Identity };
        let [input, weight, bias] = [x, pair[0].clone(), pair[1].clone()].map(|x| x.into_primitive().tensor());
        x = Tensor::from_primitive(TensorPrimitive::Float(B::dense(input, weight, bias, activation)));
    }
    x
}

/// `[batch, inputs]` to `[features, batch]`, features in PyTorch's order (channel, row, column).
fn convolve<B: ImageOps>(architecture: &Architecture, params: &[Tensor<B, 2>], inputs: Tensor<B, 2>) -> Tensor<B, 2> {
    let [mut height, mut width] = architecture.image;
    let swap = |images: Tensor<B, 2>, rows: usize| {
        Tensor::from_primitive(TensorPrimitive::Float(B::transpose_each(images.into_primitive().tensor(), rows)))
    };
    // Channels are last between the convolutions.
    let channels = architecture.convs[0].in_channels;
    let mut images = if channels == 1 { inputs } else { swap(inputs, channels) };
    for (conv, pair) in architecture.convs.iter().zip(params.chunks_exact(2)) {
        let extents = Extents { height, width, channels: conv.in_channels, outputs: conv.out_channels };
        let [x, kernel, bias] = [&images, &pair[0], &pair[1]].map(|x| x.clone().into_primitive().tensor());
        images = Tensor::from_primitive(TensorPrimitive::Float(B::convolve(x, kernel, bias, extents)));
        [height, width] = [height / 2, width / 2];
    }
    let images: Tensor<B, 2> = swap(images, height * width);
    images.transpose()
}

/// Cross-entropy of softmax, with its gradient, from logits `[classes, batch]`.
#[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
fn score(logits: &[f32], labels: &[u32]) -> Score {
    let examples = labels.len();
    let classes = logits.len() / examples;
    let mut score = Score { loss_sum: 0.0, correct: 0, gradient: vec![0.0; logits.len()] };
    let mut column = vec![0.0f64; classes];
    for (example, label) in labels.iter().enumerate() {
        for (value, logit) in column.iter_mut().zip(logits.iter().skip(example).step_by(examples)) {
            *value = f64::from(*logit);
        }
        let (loss, hit) = cross_entropy(&mut column, *label as usize);
        score.loss_sum += loss;
        score.correct += u64::from(hit);
        for (class, slope) in column.iter().enumerate() {
            score.gradient[class * examples + example] = (slope / examples as f64) as f32;
        }
    }
    score
}

/// The same from logits `[tokens, classes]`.
#[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
fn score_rows(logits: &[f32], labels: &[u32]) -> Score {
    let tokens = labels.len();
    let classes = logits.len() / tokens;
    let mut gradient = vec![0.0f32; logits.len()];
    let rows = gradient.par_chunks_exact_mut(classes).zip(logits.par_chunks_exact(classes)).zip(labels);
    let scores = rows.map_init(Vec::new, |row, ((gradient, logits), label)| {
        row.clear();
        row.extend(logits.iter().map(|logit| f64::from(*logit)));
        let found = cross_entropy(row, *label as usize);
        for (gradient, slope) in gradient.iter_mut().zip(row.iter()) {
            *gradient = (slope / tokens as f64) as f32;
        }
        found
    });
    // Collected in order, so that the sum does not depend on which row was ready first.
    let scores: Vec<(f64, bool)> = scores.collect();
    let loss_sum = scores.iter().map(|(loss, _)| loss).sum();
    Score { loss_sum, correct: scores.iter().filter(|(_, hit)| *hit).count() as u64, gradient }
}

/// Cross-entropy of one example, and whether its label has the largest logit. `logits` turns into the gradient.
fn cross_entropy(logits: &mut [f64], label: usize) -> (f64, bool) {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let of_label = logits[label];
    // The first of equal logits is the answer.
    let hit = logits.iter().position(|logit| *logit >= largest) == Some(label);
    let mut sum = 0.0;
    for share in logits.iter_mut() {
        *share = (*share - largest).exp();
        sum += *share;
    }
    for (class, share) in logits.iter_mut().enumerate() {
        *share = *share / sum - f64::from(u8::from(class == label));
    }
    (sum.ln() - (of_label - largest), hit)
}

/// On this machine's cores, for tests.
#[cfg(test)]
pub(super) fn here<T>(architecture: &Architecture, work: impl FnOnce(Place<'_, Flex>) -> T) -> T {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    work(Place { architecture, device: &Default::default(), threads: &threads })
}

/// Logits of a gpt, `[tokens, classes]`.
#[cfg(test)]
pub(super) fn logits_for_tests(architecture: &Architecture, model: &[f32], bytes: &[f32]) -> Vec<f32> {
    here(architecture, |place| values(logits(architecture, &place.params(model), bytes.to_vec(), bytes.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    use anabranch_common::rng::SplitMix64;
    use anabranch_common::spec::{ModelKind, ModelSpec};

    fn check_gradient(kind: ModelKind, input: &[u64], hidden: &[u64]) {
        let (input, hidden) = (input.to_vec(), hidden.to_vec());
        let spec = ModelSpec { kind, input, classes: 3, hidden, ..ModelSpec::default() };
        let mut rng = SplitMix64::new(5);
        let labels = [2, 0, 1, 1];
        let values = labels.len() as u64 * spec.input.iter().product::<u64>();
        let inputs: Vec<f32> = (0..values).map(|_| rng.next_signed_f32()).collect();
        let architecture = Architecture::new(&spec).expect("valid");
        let (kinks, gradient) = slopes_that_differ(&architecture, architecture.initial(11), &inputs, &labels);
        assert!(kinks * 50 <= gradient.len(), "{kinks} of {} slopes differ from the gradient", gradient.len());
        let seen = gradient.iter().filter(|g| g.abs() > 1e-3).count();
        assert!(seen * 3 > gradient.len(), "the gradient is mostly zero");
    }

    /// How many entries of the gradient finite differences do not confirm, and the gradient.
    fn slopes_that_differ(
        architecture: &Architecture,
        mut model: Vec<f32>,
        inputs: &[f32],
        labels: &[u32],
    ) -> (usize, Vec<f32>) {
        here(architecture, |place| {
            let mut gradient = Vec::new();
            place.backward(&model, inputs.to_vec(), labels, &mut gradient);
            assert_eq!(gradient.len(), model.len());
            let mean_loss = |model: &[f32]| {
                place.forward(&place.params(model), inputs.to_vec(), labels).loss_sum / labels.len() as f64
            };
            let step = 2e-3f32;
            let mut kinks = 0;
            for index in 0..model.len() {
                let here = model[index];
                let mut slope_over = |step: f32| {
                    let [above, below] = [here + step, here - step].map(|value| {
                        model[index] = value;
                        mean_loss(&model)
                    });
                    (above - below) / (2.0 * f64::from(step))
                };
                // Richardson's extrapolation: what is left is of fourth order, which a layer norm of a flat row needs.
                let slope = (4.0 * slope_over(step / 2.0) - slope_over(step)) / 3.0;
                model[index] = here;
                // A step across a kink of ReLU or of the maximum gives another slope; that happens to few parameters.
                if (slope - f64::from(gradient[index])).abs() > 1e-3 + 0.01 * slope.abs() {
                    let of = architecture.manifest.ranges().find(|(_, range)| range.contains(&index));
                    println!("{of:?}[{index}]: {slope} by differences, {} by backward", gradient[index]);
                    kinks += 1;
                }
            }
            (kinks, gradient)
        })
    }

    #[test]
    fn gradient_of_the_gpt_matches_finite_differences() {
        let (context, layers, heads, width) = (5, 2, 2, 4);
        let spec = ModelSpec { kind: ModelKind::Gpt, context, layers, heads, width, ..ModelSpec::default() };
        let architecture = Architecture::new(&spec).expect("valid");
        // Weights larger than what training starts from, so that attention is far from even.
        let mut model = architecture.initial(11);
        for (tensor, range) in architecture.manifest.ranges() {
            let factor = if tensor.shape.len() == 2 { 10.0 } else { 1.0 };
            model[range].iter_mut().for_each(|value| *value *= factor);
        }
        let text = b"abacabadab!";
        let inputs: Vec<f32> = text[..10].iter().map(|byte| f32::from(*byte)).collect();
        let labels: Vec<u32> = text[1..].iter().map(|byte| u32::from(*byte)).collect();
        let (differ, gradient) = slopes_that_differ(&architecture, model, &inputs, &labels);
        // There are no kinks, but losses are differences of rounded numbers.
        assert!(differ * 1000 <= gradient.len(), "{differ} of {} slopes differ from the gradient", gradient.len());
        for (tensor, range) in architecture.manifest.ranges() {
            let largest = gradient[range].iter().fold(0.0f32, |most, slope| most.max(slope.abs()));
            assert!(largest > 1e-4, "{} has no gradient", tensor.name);
        }
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
