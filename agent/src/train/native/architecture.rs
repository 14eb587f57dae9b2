//! The native models: their layers, and the flat vector's manifest in PyTorch's naming and layout.
//!
//! | model | tensors, in order |
//! |---|---|
//! | `mlp` | `fc1.weight` [hidden 0, inputs], `fc1.bias`, `fc2.weight` ..., the last one [classes, ...] |
//! | `gpt` | `wte.weight` [256, width], `wpe.weight` [context, width], of every block `h.N.`: `ln_1`, `attn.c_attn` [3 * width, width], `attn.c_proj`, `ln_2`, `mlp.c_fc` [4 * width, width], `mlp.c_proj`, each with `.weight` and `.bias`; `ln_f.weight`, `ln_f.bias` |
//! | `cnn` | `conv1.weight` [c1, channels, 3, 3], `conv1.bias`, `conv2.weight` [c2, c1, 3, 3], `conv2.bias`, `fc1.weight` [dense, c2 * (h/4) * (w/4)], `fc1.bias`, `fc2.weight` [classes, dense], `fc2.bias` |

use anabranch_common::limits;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{GPT_TOKENS, Gpt, ModelKind, ModelSpec};

use super::gpt;
use crate::train::TrainError;

/// Widths of an `mlp` where `hidden` is empty.
const DEFAULT_MLP: [u64; 1] = [128];
/// Channels and dense width of a `cnn` where `hidden` is empty.
const DEFAULT_CNN: [u64; 3] = [16, 32, 128];

/// A 3x3 convolution with padding 1, followed by 2x2 max-pooling and ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Conv {
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
}

/// A checked model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Architecture {
    /// Convolutions before the dense layers: none, or two.
    pub(super) convs: Vec<Conv>,
    /// Extents of an input image where there are convolutions.
    pub(super) image: [usize; 2],
    /// Widths before, between and after the dense layers; the last is the number of classes.
    pub(super) widths: Vec<usize>,
    /// Every input is multiplied by this.
    pub(super) input_scale: f32,
    /// Shape of one example as configured.
    pub(super) input: Vec<u64>,
    /// Number of classes.
    pub(super) classes: u32,
    /// What it is where it is a gpt, which has none of the layers above.
    pub(super) gpt: Option<Gpt>,
    /// The flat vector.
    pub(super) manifest: ModelManifest,
}

impl Architecture {
    /// Checks a specification.
    ///
    /// # Errors
    /// [`TrainError::Spec`] names the key of `run.toml`; [`TrainError::Manifest`] where the model is too large.
    pub(super) fn new(spec: &ModelSpec) -> Result<Self, TrainError> {
        let refuse =
            |key, found: String, expected: &str| TrainError::Spec { key, found, expected: expected.to_owned() };
        let extents = |values: &[u64]| values.iter().all(|value| (1..=limits::LAYER_WIDTH).contains(value));
        if let Some(gpt) = spec.gpt()? {
            return Self::gpt(spec, gpt);
        }
        let build = match spec.kind {
            ModelKind::Gpt => unreachable!("it has been built"),
            ModelKind::Mlp => Self::mlp,
            ModelKind::Cnn => Self::cnn,
            ModelKind::Custom => {
                let expected = "which takes an agent with a trainer of its own: `anabranch-agent run ... -- PROGRAM`";
                return Err(refuse("model.kind", "\"custom\"".to_owned(), expected));
            }
        };
        let input = spec.input.as_slice();
        if input.is_empty() || input.len() > limits::TENSOR_DIMS || !extents(input) {
            return Err(refuse("model.input", format!("{input:?}"), "expected a shape such as [784] or [1, 28, 28]"));
        }
        if !extents(&spec.hidden) {
            return Err(refuse("model.hidden", format!("{:?}", spec.hidden), "expected widths from 1 to 16777216"));
        }
        if spec.classes < 2 || u64::from(spec.classes) > limits::LAYER_WIDTH {
            return Err(refuse("model.classes", spec.classes.to_string(), "expected at least 2"));
        }
        if !spec.input_scale.is_finite() || spec.input_scale == 0.0 {
            return Err(refuse("model.input_scale", spec.input_scale.to_string(), "expected a number other than 0"));
        }
        build(spec)
    }

    fn gpt(spec: &ModelSpec, gpt: Gpt) -> Result<Self, TrainError> {
        Ok(Self {
            convs: Vec::new(),
            image: [0, 0],
            widths: Vec::new(),
            input_scale: spec.input_scale,
            input: vec![gpt.context.into()],
            classes: GPT_TOKENS,
            gpt: Some(gpt),
            manifest: ModelManifest::new(gpt::tensors(&gpt))?,
        })
    }

    fn mlp(spec: &ModelSpec) -> Result<Self, TrainError> {
        let hidden = if spec.hidden.is_empty() { &DEFAULT_MLP[..] } else { &spec.hidden };
        if hidden.len() > limits::HIDDEN_LAYERS {
            let expected = format!("expected at most {} layers", limits::HIDDEN_LAYERS);
            return Err(TrainError::Spec { key: "model.hidden", found: format!("{hidden:?}"), expected });
        }
        let inputs = spec.input.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent));
        let inputs = inputs.filter(|inputs| *inputs <= limits::LAYER_WIDTH).ok_or_else(|| TrainError::Spec {
            key: "model.input",
            found: format!("{:?}", spec.input),
            expected: format!("expected at most {} values", limits::LAYER_WIDTH),
        })?;
        let widths = [inputs].into_iter().chain(hidden.iter().copied()).chain([u64::from(spec.classes)]);
        Self::assemble(spec, Vec::new(), [0, 0], widths.collect())
    }

    fn cnn(spec: &ModelSpec) -> Result<Self, TrainError> {
        let &[channels, height, width] = spec.input.as_slice() else {
            return Err(TrainError::Spec {
                key: "model.input",
                found: format!("{:?}", spec.input),
                expected: "expected [channels, height, width] for a cnn".to_owned(),
            });
        };
        if height % 4 != 0 || width % 4 != 0 {
            return Err(TrainError::Spec {
                key: "model.input",
                found: format!("{:?}", spec.input),
                expected: "expected a height and a width that are multiples of 4 for a cnn".to_owned(),
            });
        }
        let hidden = if spec.hidden.is_empty() { &DEFAULT_CNN[..] } else { &spec.hidden };
        let &[first, second, dense] = hidden else {
            return Err(TrainError::Spec {
                key: "model.hidden",
                found: format!("{hidden:?}"),
                expected: "expected two numbers of channels and a width for a cnn".to_owned(),
            });
        };
        let flat = (height / 4).checked_mul(width / 4).and_then(|area| area.checked_mul(second));
        let flat = flat.filter(|flat| *flat <= limits::LAYER_WIDTH).ok_or_else(|| TrainError::Spec {
            key: "model.input",
            found: format!("{:?}", spec.input),
            expected: format!("expected at most {} values after the convolutions", limits::LAYER_WIDTH),
        })?;
        let convs = vec![
            Conv { in_channels: to_usize(channels), out_channels: to_usize(first) },
            Conv { in_channels: to_usize(first), out_channels: to_usize(second) },
        ];
        let image = [to_usize(height), to_usize(width)];
        Self::assemble(spec, convs, image, vec![flat, dense, u64::from(spec.classes)])
    }

    fn assemble(spec: &ModelSpec, convs: Vec<Conv>, image: [usize; 2], widths: Vec<u64>) -> Result<Self, TrainError> {
        let mut tensors = Vec::new();
        let mut layer = |name: String, weight: Vec<u64>| {
            let outputs = weight[0];
            tensors.push(TensorSpec { name: format!("{name}.weight"), shape: weight });
            tensors.push(TensorSpec { name: format!("{name}.bias"), shape: vec![outputs] });
        };
        for (index, conv) in convs.iter().enumerate() {
            let shape = vec![conv.out_channels as u64, conv.in_channels as u64, 3, 3];
            layer(format!("conv{}", index + 1), shape);
        }
        for (index, pair) in widths.windows(2).enumerate() {
            layer(format!("fc{}", index + 1), vec![pair[1], pair[0]]);
        }
        Ok(Self {
            convs,
            image,
            widths: widths.into_iter().map(to_usize).collect(),
            input_scale: spec.input_scale,
            input: spec.input.clone(),
            classes: spec.classes,
            gpt: None,
            manifest: ModelManifest::new(tensors)?,
        })
    }

    /// Of a gpt see [`gpt::initial`]. Of the others: uniform in +-1/sqrt(fan_in), weights and biases alike (He et al. 2015 with a = sqrt(5): PyTorch's default for
    /// dense and convolution layers). Division, square root and multiplication are exactly rounded, so these are the
    /// same bits on every machine.
    #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, which is exact in the same way everywhere")]
    pub(super) fn initial(&self, seed: u64) -> Vec<f32> {
        if let Some(gpt) = &self.gpt {
            return gpt::initial(gpt, &self.manifest, seed);
        }
        let mut rng = SplitMix64::new(seed);
        let mut model = Vec::with_capacity(self.manifest.params());
        let mut bound = 1.0f32;
        for (tensor, range) in self.manifest.ranges() {
            // A bias follows its weight and takes its bound.
            if let [_, inputs @ ..] = tensor.shape.as_slice()
                && !inputs.is_empty()
            {
                let fan_in: u64 = inputs.iter().product();
                bound = (1.0 / (fan_in as f64).sqrt()) as f32;
            }
            model.extend(range.map(|_| rng.next_signed_f32() * bound));
        }
        model
    }
}

fn to_usize(extent: u64) -> usize {
    usize::try_from(extent).expect("extents are at most 2^24")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: ModelKind, input: &[u64], hidden: &[u64]) -> ModelSpec {
        let (input, hidden) = (input.to_vec(), hidden.to_vec());
        ModelSpec { kind, input, classes: 10, hidden, ..ModelSpec::default() }
    }

    fn names(spec: &ModelSpec) -> Vec<String> {
        let architecture = Architecture::new(spec).expect("valid");
        architecture.manifest.tensors().iter().map(|t| format!("{} {:?}", t.name, t.shape)).collect()
    }

    #[test]
    fn tensors_have_pytorchs_names_and_shapes() {
        let mlp = names(&spec(ModelKind::Mlp, &[1, 28, 28], &[]));
        assert_eq!(mlp, ["fc1.weight [128, 784]", "fc1.bias [128]", "fc2.weight [10, 128]", "fc2.bias [10]"]);
        let cnn = names(&spec(ModelKind::Cnn, &[1, 28, 28], &[]));
        assert_eq!(cnn[0], "conv1.weight [16, 1, 3, 3]");
        assert_eq!(cnn[2], "conv2.weight [32, 16, 3, 3]");
        assert_eq!(cnn[4..], ["fc1.weight [128, 1568]", "fc1.bias [128]", "fc2.weight [10, 128]", "fc2.bias [10]"]);
    }

    #[test]
    fn impossible_models_are_refused_by_key() {
        let key = |spec: ModelSpec| match Architecture::new(&spec) {
            Err(TrainError::Spec { key, .. }) => key,
            other => panic!("expected a refusal, found {other:?}"),
        };
        assert_eq!(key(spec(ModelKind::Mlp, &[], &[])), "model.input");
        assert_eq!(key(spec(ModelKind::Mlp, &[0], &[])), "model.input");
        assert_eq!(key(spec(ModelKind::Mlp, &[u64::MAX, 2], &[])), "model.input");
        assert_eq!(key(spec(ModelKind::Mlp, &[1 << 20, 1 << 20], &[])), "model.input");
        assert_eq!(key(spec(ModelKind::Mlp, &[4], &[0])), "model.hidden");
        assert_eq!(key(spec(ModelKind::Cnn, &[784], &[])), "model.input");
        assert_eq!(key(spec(ModelKind::Cnn, &[1, 27, 28], &[])), "model.input");
        assert_eq!(key(spec(ModelKind::Cnn, &[1, 28, 28], &[16])), "model.hidden");
        assert_eq!(key(ModelSpec { classes: 1, ..spec(ModelKind::Mlp, &[4], &[]) }), "model.classes");
        assert_eq!(key(ModelSpec { input_scale: f32::NAN, ..spec(ModelKind::Mlp, &[4], &[]) }), "model.input_scale");
        let huge = Architecture::new(&spec(ModelKind::Mlp, &[1 << 20], &[1 << 20]));
        assert!(matches!(huge, Err(TrainError::Manifest(_))), "{huge:?}");
    }

    #[test]
    fn the_initial_model_is_these_bits_on_every_machine() {
        let architecture = Architecture::new(&spec(ModelKind::Cnn, &[1, 8, 8], &[2, 3, 5])).expect("valid");
        let model = architecture.initial(1);
        assert_eq!(model.len(), architecture.manifest.params());
        let bound = |range: std::ops::Range<usize>| model[range].iter().fold(0.0f32, |max, v| max.max(v.abs()));
        assert!(bound(0..20) <= 1.0 / 3.0 && bound(0..20) > 0.25, "conv1 has a fan-in of 9");
        let digest = anabranch_common::ids::Digest::of_f32(&model);
        assert_eq!(digest.short(), "5920b3d9");
        assert_ne!(model, architecture.initial(2));
    }
}
