//! The forward pass of a stage and its gradient, on flat vectors at the edges and burn tensors between.
//!
//! ```text
//!  params: flat vector ──► matrices
//!  trace:  matrices, input ──► Trace: output, and what autodiff has recorded on the way
//!  backward: Trace, gradient of the output ──► flat gradient of the stage, gradient of its input
//! ```
//!
//! A whole model is a stage whose input is a batch and whose output is logits: its gradient is the one of their loss.

use burn_autodiff::Autodiff;
use burn_flex::Flex;
use burn_tensor::backend::Backend;
use burn_tensor::{Device, Tensor, TensorData, TensorPrimitive};
use rayon::prelude::*;

use super::dense_ops::DenseOps as _;
use super::layer::{self, Params};
use super::ops::ImageOps;
use super::stage::Stage;
use super::text_ops::TextOps;
use super::weights;

/// A matrix outside of a backend, row by row: activations that cross a cut, or their gradient.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Matrix {
    /// Its values.
    pub(super) values: Vec<f32>,
    /// Rows and columns.
    pub(super) shape: [usize; 2],
}

/// What goes into a stage.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Input {
    /// A batch of so many examples, as a shard gives them, for the first stage of a model.
    Examples {
        /// Their values, scaled.
        values: Vec<f32>,
        /// How many there are.
        count: usize,
    },
    /// What the stage before gave.
    Activations(Matrix),
}

/// A forward pass of a stage, with what its backward pass needs.
#[derive(Debug)]
pub(super) struct Trace<B: Backend> {
    params: Vec<Tensor<Autodiff<B>, 2>>,
    /// The input, where its gradient is wanted.
    input: Option<Tensor<Autodiff<B>, 2>>,
    output: Tensor<Autodiff<B>, 2>,
}

impl<B: Backend> Trace<B> {
    /// Returns the activations that the stage gave.
    pub(super) fn output(&self) -> Matrix {
        matrix(self.output.clone().inner())
    }
}

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

/// A stage on a device of a backend.
pub(super) struct Place<'a, B: Trains> {
    pub(super) stage: &'a Stage,
    pub(super) device: &'a Device<B>,
    /// For what is computed on the host whatever the backend: the loss.
    pub(super) threads: &'a rayon::ThreadPool,
}

impl<B: Trains> Place<'_, B>
where
    Autodiff<B>: ImageOps + TextOps,
{
    /// Loss of a batch, and the gradient of its mean loss by the whole model and by its tied tensor, written to `gradient`
    /// (see [`Stage::tie`]).
    pub(super) fn gradient(&self, model: &[f32], inputs: Vec<f32>, labels: &[u32], gradient: &mut Vec<f32>) -> f64 {
        let trace = self.trace(&self.params(model, &[]), Input::Examples { values: inputs, count: labels.len() });
        let score = self.score(&trace.output().values, labels);
        self.backward(trace, score.gradient, gradient);
        score.loss_sum
    }

    /// Loss and hits of a batch.
    pub(super) fn forward(&self, params: &[Tensor<B, 2>], inputs: Vec<f32>, labels: &[u32]) -> Score {
        let entry = Entry::Examples { values: inputs, count: labels.len() };
        self.score(&values(compute(self.stage, params, entry)), labels)
    }

    /// Computes the stage's output, and records how.
    pub(super) fn trace(&self, params: &[Tensor<B, 2>], input: Input) -> Trace<B> {
        let traced = |x: Tensor<B, 2>| Tensor::<Autodiff<B>, 2>::from_inner(x).require_grad();
        let params: Vec<_> = params.iter().cloned().map(traced).collect();
        let (input, entry) = match input {
            // Nobody asks for the gradient by an example.
            Input::Examples { values, count } => (None, Entry::Examples { values, count }),
            Input::Activations(Matrix { values, shape }) => {
                let input = traced(Tensor::from_data(TensorData::new(values, shape), self.device));
                (Some(input.clone()), Entry::Activations(input))
            }
        };
        let output = compute(self.stage, &params, entry);
        Trace { params, input, output }
    }

    /// The gradient by the stage's parameters and by its tied tensor, written to `gradient`, and by its input, given `slope`, the
    /// gradient by its output.
    pub(super) fn backward(&self, trace: Trace<B>, slope: Vec<f32>, gradient: &mut Vec<f32>) -> Option<Matrix> {
        let Trace { params, input, output } = trace;
        let slope = Tensor::<B, 2>::from_data(TensorData::new(slope, output.dims()), self.device);
        // A number with the loss's gradient by the output has the loss's gradient by everything before it.
        let [output, slope] = [output, Tensor::from_inner(slope)].map(|x| x.into_primitive().tensor());
        let number = Autodiff::<B>::with_gradient(output, slope);
        let mut gradients = Tensor::<Autodiff<B>, 1>::from_primitive(TensorPrimitive::Float(number)).backward();
        let of_input = input.map(|input| input.grad_remove(&mut gradients).expect("the first layer uses its input"));
        let parts = params.iter().map(|param| {
            param.grad_remove(&mut gradients).expect("every tensor of a stage is used in its forward pass")
        });
        gradient.clear();
        if B::IS_FAR {
            let parts: Vec<Tensor<B, 1>> = parts.map(|part| part.flatten(0, 1)).collect();
            gradient.extend_from_slice(&values(Tensor::cat(parts, 0)));
        } else {
            parts.for_each(|part| gradient.extend_from_slice(&values(part)));
        }
        of_input.map(matrix)
    }

    /// Loss and hits of the last stage's output, with the gradient by it.
    pub(super) fn score(&self, logits: &[f32], labels: &[u32]) -> Score {
        let rows = self.stage.gives_rows();
        self.threads.install(|| if rows { score_rows(logits, labels) } else { score(logits, labels) })
    }

    /// The stage's part of the flat vector as matrices: weights `[out, in]` (a convolution's `in` is channels * 9), biases
    /// `[out, 1]`; at the end the tied tensor, whose values are `tied` where it is of another stage.
    pub(super) fn params(&self, own: &[f32], tied: &[f32]) -> Vec<Tensor<B, 2>> {
        let all = B::IS_FAR.then(|| Tensor::<B, 1>::from_data(TensorData::new(own.to_vec(), [own.len()]), self.device));
        let tensor = |values: &[f32], shape| Tensor::from_data(TensorData::new(values.to_vec(), shape), self.device);
        let matrix = |(range, shape): (std::ops::Range<usize>, [usize; 2])| match &all {
            Some(all) => all.clone().slice(range).reshape(shape),
            None => tensor(&own[range], shape),
        };
        let mut params: Vec<Tensor<B, 2>> = self.stage.matrices().map(matrix).collect();
        if let Some(shared) = &self.stage.tied {
            params.push(shared.here.map_or_else(|| tensor(tied, shared.shape()), |here| params[here].clone()));
        }
        params
    }
}

impl Place<'_, Flex> {
    /// As [`backward`](Self::backward), with the activations of the forward pass, but with the weights `params` where those of the
    /// forward pass are others.
    pub(super) fn backward_with(
        &self,
        params: &[Tensor<Flex, 2>],
        trace: Trace<Flex>,
        slope: Vec<f32>,
        gradient: &mut Vec<f32>,
    ) -> Option<Matrix> {
        let primitive = |x: &Tensor<Flex, 2>| x.clone().into_primitive().tensor();
        let node = |x: &Tensor<Autodiff<Flex>, 2>| x.clone().into_primitive().tensor().node.id;
        let weights = trace.params.iter().map(node).zip(params.iter().map(primitive)).collect();
        weights::replaced(weights, || self.backward(trace, slope, gradient))
    }
}

/// What goes into a stage, on its backend.
enum Entry<B: Backend> {
    Examples { values: Vec<f32>, count: usize },
    Activations(Tensor<B, 2>),
}

/// The output of a stage: of the last one logits, `[classes, batch]`, but of a gpt `[tokens, classes]`.
fn compute<B: ImageOps + TextOps>(stage: &Stage, params: &[Tensor<B, 2>], entry: Entry<B>) -> Tensor<B, 2> {
    let (mut rest, tied) = params.split_at(params.len() - usize::from(stage.tied.is_some()));
    let mut of = |tensors: usize, uses_tied: bool| {
        let (own, others) = rest.split_at(tensors);
        rest = others;
        Params { own, tied: tied.first().filter(|_| uses_tied) }
    };
    let mut layers = stage.layers.iter().map(|layer| (layer, of(layer.tensors.len(), layer.tied.is_some())));
    let mut x = match entry {
        Entry::Activations(x) => x,
        Entry::Examples { values, count } => {
            let (layer, params) = layers.next().expect("a stage has a layer");
            layer::first(layer, &params, values, count)
        }
    };
    for (layer, params) in layers {
        x = layer::forward(layer, &params, x);
    }
    x
}

fn matrix<B: Backend>(tensor: Tensor<B, 2>) -> Matrix {
    let shape = tensor.dims();
    Matrix { values: values(tensor), shape }
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().into_vec().expect("every tensor here is f32")
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
pub(super) fn here<T>(stage: &Stage, work: impl FnOnce(Place<'_, Flex>) -> T) -> T {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    work(Place { stage, device: &Default::default(), threads: &threads })
}

/// Logits of a whole gpt, `[tokens, classes]`.
#[cfg(test)]
pub(super) fn logits_for_tests(stage: &Stage, model: &[f32], bytes: &[f32]) -> Vec<f32> {
    let entry = Entry::Examples { values: bytes.to_vec(), count: bytes.len() };
    here(stage, |place| values(compute(stage, &place.params(model, &[]), entry)))
}

#[cfg(test)]
mod tests {
    use anabranch_common::rng::SplitMix64;
    use anabranch_common::spec::{ModelKind, ModelSpec};

    use super::*;
    use crate::train::native::architecture::Architecture;

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
        here(&architecture.whole, |place| {
            let mut gradient = Vec::new();
            place.gradient(&model, inputs.to_vec(), labels, &mut gradient);
            architecture.whole.tie(&mut gradient);
            assert_eq!(gradient.len(), model.len());
            let mean_loss = |model: &[f32]| {
                place.forward(&place.params(model, &[]), inputs.to_vec(), labels).loss_sum / labels.len() as f64
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
