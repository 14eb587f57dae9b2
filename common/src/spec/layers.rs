//! The layers of a native model, and the tensors that follow from them in PyTorch's naming and layout.
//!
//! | model | tensors, in order |
//! |---|---|
//! | `mlp` | `fc1.weight` [hidden 0, inputs], `fc1.bias`, `fc2.weight` ..., the last one [classes, ...] |
//! | `cnn` | `conv1.weight` [c1, channels, 3, 3], `conv1.bias`, `conv2.weight` [c2, c1, 3, 3], `conv2.bias`, `fc1.weight` [dense, c2 * (h/4) * (w/4)], `fc1.bias`, `fc2.weight` [classes, dense], `fc2.bias` |
//! | `gpt` | `wte.weight` [256, width], `wpe.weight` [context, width], of every block `h.N.`: `ln_1`, `attn.c_attn` [3 * width, width], `attn.c_proj`, `ln_2`, `mlp.c_fc` [4 * width, width], `mlp.c_proj`, each with `.weight` and `.bias`; `ln_f.weight`, `ln_f.bias` |
//!
//! Agents build the model from them; the coordinator holds an offered initial model against them.

use super::gpt::{Gpt, ModelProblem};
use super::{ModelKind, ModelSpec};
use crate::limits;
use crate::manifest::{ManifestError, ModelManifest, TensorSpec};

/// Widths of an `mlp` where `hidden` is empty.
const DEFAULT_MLP: [u64; 1] = [128];
/// Channels and dense width of a `cnn` where `hidden` is empty.
const DEFAULT_CNN: [u64; 3] = [16, 32, 128];

/// A 3x3 convolution with padding 1, followed by 2x2 max-pooling and ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// Channels of its input.
    pub in_channels: usize,
    /// Channels of its output.
    pub out_channels: usize,
}

/// The checked layers of a native model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// Convolutions before the dense layers: none, or two.
    pub convs: Vec<Conv>,
    /// Height and width of an input image where there are convolutions.
    pub image: [usize; 2],
    /// Widths before, between and after the dense layers; the last is the number of classes. Empty in a gpt.
    pub widths: Vec<usize>,
    /// The size of a gpt, which has none of the layers above.
    pub gpt: Option<Gpt>,
    /// The flat vector.
    pub manifest: ModelManifest,
}

/// Why no model follows from a specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// A key has a value that makes no sense.
    #[error(transparent)]
    Problem(#[from] ModelProblem),
    /// The model is larger than the system takes.
    #[error("the model cannot be described: {0}")]
    Manifest(#[from] ManifestError),
}

impl ModelSpec {
    /// Returns the layers of the native model that this describes, or `None` where it is `custom`.
    ///
    /// # Errors
    /// A key of `[model]` has a value that no model can be made of, or the model is too large.
    pub fn layers(&self) -> Result<Option<Layers>, ModelError> {
        if let Some(gpt) = self.gpt()? {
            let manifest = ModelManifest::new(gpt.tensors())?;
            let (convs, widths) = (Vec::new(), Vec::new());
            return Ok(Some(Layers { convs, image: [0, 0], widths, gpt: Some(gpt), manifest }));
        }
        let build = match self.kind {
            ModelKind::Mlp => Self::mlp,
            ModelKind::Cnn => Self::cnn,
            ModelKind::Custom | ModelKind::Gpt => return Ok(None),
        };
        let extents = |values: &[u64]| values.iter().all(|value| (1..=limits::LAYER_WIDTH).contains(value));
        let input = self.input.as_slice();
        if input.is_empty() || input.len() > limits::TENSOR_DIMS || !extents(input) {
            return Err(self.input_problem("a shape such as [784] or [1, 28, 28]".to_owned()));
        }
        if !extents(&self.hidden) {
            return Err(problem(
                "model.hidden",
                format!("{:?}", self.hidden),
                format!("widths from 1 to {}", limits::LAYER_WIDTH),
            ));
        }
        if self.classes < 2 || u64::from(self.classes) > limits::LAYER_WIDTH {
            return Err(problem("model.classes", self.classes.to_string(), "at least 2".to_owned()));
        }
        if !self.input_scale.is_finite() || self.input_scale == 0.0 {
            let found = self.input_scale.to_string();
            return Err(problem("model.input_scale", found, "a number other than 0".to_owned()));
        }
        build(self).map(Some)
    }

    fn input_problem(&self, expected: String) -> ModelError {
        problem("model.input", format!("{:?}", self.input), expected)
    }

    fn mlp(&self) -> Result<Layers, ModelError> {
        let hidden = if self.hidden.is_empty() { &DEFAULT_MLP[..] } else { &self.hidden };
        if hidden.len() > limits::HIDDEN_LAYERS {
            return Err(problem(
                "model.hidden",
                format!("{hidden:?}"),
                format!("at most {} layers", limits::HIDDEN_LAYERS),
            ));
        }
        let inputs = self.input.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent));
        let inputs = inputs
            .filter(|inputs| *inputs <= limits::LAYER_WIDTH)
            .ok_or_else(|| self.input_problem(format!("at most {} values", limits::LAYER_WIDTH)))?;
        let widths = [inputs].into_iter().chain(hidden.iter().copied()).chain([u64::from(self.classes)]);
        assemble(Vec::new(), [0, 0], widths.collect())
    }

    fn cnn(&self) -> Result<Layers, ModelError> {
        let &[channels, height, width] = self.input.as_slice() else {
            return Err(self.input_problem("[channels, height, width] for a cnn".to_owned()));
        };
        if height % 4 != 0 || width % 4 != 0 {
            let expected = "a height and a width that are multiples of 4 for a cnn";
            return Err(self.input_problem(expected.to_owned()));
        }
        let hidden = if self.hidden.is_empty() { &DEFAULT_CNN[..] } else { &self.hidden };
        let &[first, second, dense] = hidden else {
            let expected = "two numbers of channels and a width for a cnn".to_owned();
            return Err(problem("model.hidden", format!("{hidden:?}"), expected));
        };
        let flat = (height / 4).checked_mul(width / 4).and_then(|area| area.checked_mul(second));
        let flat = flat.filter(|flat| *flat <= limits::LAYER_WIDTH).ok_or_else(|| {
            self.input_problem(format!("at most {} values after the convolutions", limits::LAYER_WIDTH))
        })?;
        let convs = vec![
            Conv { in_channels: to_usize(channels), out_channels: to_usize(first) },
            Conv { in_channels: to_usize(first), out_channels: to_usize(second) },
        ];
        assemble(convs, [to_usize(height), to_usize(width)], vec![flat, dense, u64::from(self.classes)])
    }
}

impl Gpt {
    /// Returns the tensors, in order, named as in GPT-2; weights are `[out, in]`.
    fn tensors(&self) -> Vec<TensorSpec> {
        let [context, width] = [self.context, self.width].map(u64::from);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u64]| tensors.push(TensorSpec { name, shape: shape.to_vec() });
        add("wte.weight".to_owned(), &[super::GPT_TOKENS.into(), width]);
        add("wpe.weight".to_owned(), &[context, width]);
        for layer in 0..self.layers {
            for (name, outputs, inputs) in [
                ("ln_1", width, None),
                ("attn.c_attn", 3 * width, Some(width)),
                ("attn.c_proj", width, Some(width)),
                ("ln_2", width, None),
                ("mlp.c_fc", 4 * width, Some(width)),
                ("mlp.c_proj", width, Some(4 * width)),
            ] {
                let weight: Vec<u64> = [outputs].into_iter().chain(inputs).collect();
                add(format!("h.{layer}.{name}.weight"), &weight);
                add(format!("h.{layer}.{name}.bias"), &[outputs]);
            }
        }
        add("ln_f.weight".to_owned(), &[width]);
        add("ln_f.bias".to_owned(), &[width]);
        tensors
    }
}

fn problem(key: &'static str, found: String, expected: String) -> ModelError {
    ModelError::Problem(ModelProblem { key, found, expected })
}

fn assemble(convs: Vec<Conv>, image: [usize; 2], widths: Vec<u64>) -> Result<Layers, ModelError> {
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
    let widths = widths.into_iter().map(to_usize).collect();
    Ok(Layers { convs, image, widths, gpt: None, manifest: ModelManifest::new(tensors)? })
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
        let layers = spec.layers().expect("valid").expect("native");
        layers.manifest.tensors().iter().map(|t| format!("{} {:?}", t.name, t.shape)).collect()
    }

    #[test]
    fn tensors_have_pytorchs_names_and_shapes() {
        let mlp = names(&spec(ModelKind::Mlp, &[1, 28, 28], &[]));
        assert_eq!(mlp, ["fc1.weight [128, 784]", "fc1.bias [128]", "fc2.weight [10, 128]", "fc2.bias [10]"]);
        let cnn = names(&spec(ModelKind::Cnn, &[1, 28, 28], &[]));
        assert_eq!(cnn[0], "conv1.weight [16, 1, 3, 3]");
        assert_eq!(cnn[2], "conv2.weight [32, 16, 3, 3]");
        assert_eq!(cnn[4..], ["fc1.weight [128, 1568]", "fc1.bias [128]", "fc2.weight [10, 128]", "fc2.bias [10]"]);
        assert_eq!(ModelSpec::default().layers(), Ok(None));
    }

    #[test]
    fn impossible_models_are_refused_by_key() {
        let key = |spec: ModelSpec| match spec.layers() {
            Err(ModelError::Problem(ModelProblem { key, .. })) => key,
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
        let huge = spec(ModelKind::Mlp, &[1 << 20], &[1 << 20]).layers();
        assert!(matches!(huge, Err(ModelError::Manifest(_))), "{huge:?}");
    }

    /// The longest description that a native model can have.
    #[test]
    fn the_deepest_gpt_fits_into_a_manifest() {
        let (context, layers) = (limits::GPT_CONTEXT, limits::GPT_LAYERS);
        let deepest = ModelSpec { kind: ModelKind::Gpt, context, layers, heads: 1, width: 512, ..ModelSpec::default() };
        let layers = deepest.layers().expect("valid").expect("native");
        assert_eq!(layers.manifest.params() as u64, layers.gpt.expect("a gpt").params());
    }
}
