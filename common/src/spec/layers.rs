//! The layers of a native model, and the tensors that follow from them in PyTorch's naming and layout.
//!
//! | model | tensors, in order |
//! |---|---|
//! | `mlp` | `fc1.weight` [hidden 0, inputs], `fc1.bias`, `fc2.weight` ..., the last one [classes, ...] |
//! | `cnn` | `conv1.weight` [c1, channels, 3, 3], `conv1.bias`, `conv2.weight` [c2, c1, 3, 3] ...; then the dense layers as of an `mlp`, the first one with an input of the last convolution's c * (h / 2^n) * (w / 2^n) values, n the number of convolutions |
//! | `gpt` | `wte.weight` [256, width], `wpe.weight` [context, width], of every block `h.N.`: `ln_1`, `attn.c_attn` [3 * width, width], `attn.c_proj`, `ln_2`, `mlp.c_fc` [4 * width, width], `mlp.c_proj`, each with `.weight` and `.bias`; `ln_f.weight`, `ln_f.bias` |
//!
//! Agents build the model from them; the coordinator holds an offered initial model against them.

use super::gpt::{Gpt, ModelProblem};
use super::layer::{Layer, LayerInput, LayerKind};
use super::{ModelKind, ModelSpec};
use crate::limits;
use crate::manifest::{ManifestError, ModelManifest, TensorSpec};

/// Widths of an `mlp` where `hidden` is empty.
const DEFAULT_MLP: [u64; 1] = [128];
/// Channels and dense width of a `cnn` where `hidden` and `convs` are empty.
const DEFAULT_CNN: [u64; 3] = [16, 32, 128];
/// Convolutions of a `cnn` whose channels are the first figures of `hidden`.
const CONVS_IN_HIDDEN: usize = 2;
/// Tensors of either half of a block of a gpt.
const HALF_BLOCK: usize = 6;

/// The checked layers of a native model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The layers, in the order in which they compute: the layer table.
    pub layers: Vec<Layer>,
    /// The size of a gpt.
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
            return Ok(Some(Layers { layers: gpt.layers(&manifest), gpt: Some(gpt), manifest }));
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
        for (key, widths) in [("model.hidden", &self.hidden), ("model.convs", &self.convs)] {
            if !extents(widths) {
                let expected = format!("widths from 1 to {}", limits::LAYER_WIDTH);
                return Err(problem(key, format!("{widths:?}"), expected));
            }
            if widths.len() > limits::HIDDEN_LAYERS {
                let expected = format!("at most {} layers, not {}", limits::HIDDEN_LAYERS, widths.len());
                return Err(problem(key, shortened(widths), expected));
            }
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
        if !self.convs.is_empty() {
            let expected = "no such key: it belongs to a cnn".to_owned();
            return Err(problem("model.convs", shortened(&self.convs), expected));
        }
        let hidden = if self.hidden.is_empty() { &DEFAULT_MLP[..] } else { &self.hidden };
        let inputs = self.input.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent));
        let inputs = inputs
            .filter(|inputs| *inputs <= limits::LAYER_WIDTH)
            .ok_or_else(|| self.input_problem(format!("at most {} values", limits::LAYER_WIDTH)))?;
        let mut assembly = Assembly::default();
        assembly.dense(LayerInput::Examples, inputs, hidden, self.classes);
        assembly.finish()
    }

    /// The channels of the convolutions, and the widths of the hidden dense layers behind them.
    fn blocks(&self) -> Result<(&[u64], &[u64]), ModelError> {
        match (self.convs.as_slice(), self.hidden.as_slice()) {
            ([], []) => Ok(DEFAULT_CNN.split_at(CONVS_IN_HIDDEN)),
            ([], [_, _, _]) => Ok(self.hidden.split_at(CONVS_IN_HIDDEN)),
            ([], hidden) => {
                let expected = "two numbers of channels and a width for a cnn without model.convs".to_owned();
                Err(problem("model.hidden", shortened(hidden), expected))
            }
            (convs, hidden) => Ok((convs, hidden)),
        }
    }

    fn cnn(&self) -> Result<Layers, ModelError> {
        let &[channels, height, width] = self.input.as_slice() else {
            return Err(self.input_problem("[channels, height, width] for a cnn".to_owned()));
        };
        let (convs, hidden) = self.blocks()?;
        let shrink = u32::try_from(convs.len()).ok().and_then(|halvings| 1u64.checked_shl(halvings));
        let shrink = shrink.filter(|shrink| height % shrink == 0 && width % shrink == 0).ok_or_else(|| {
            let count = convs.len();
            self.input_problem(format!(
                "a height and a width that can be halved {count} times, once by each convolution"
            ))
        })?;
        let last = convs.last().copied().unwrap_or(channels);
        let flat = (height / shrink).checked_mul(width / shrink).and_then(|area| area.checked_mul(last));
        let flat = flat.filter(|flat| *flat <= limits::LAYER_WIDTH).ok_or_else(|| {
            self.input_problem(format!("at most {} values after the convolutions", limits::LAYER_WIDTH))
        })?;
        let mut assembly = Assembly::default();
        let (mut image, mut in_channels) = ([height, width], channels);
        for out_channels in convs.iter().copied() {
            assembly.convolution(image, in_channels, out_channels);
            (image, in_channels) = (image.map(|extent| extent / 2), out_channels);
        }
        let pixels = to_usize(image[0] * image[1]);
        assembly.dense(LayerInput::Maps { pixels }, flat, hidden, self.classes);
        assembly.finish()
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

    /// Returns the layers: embeddings, the two halves of every block, and the head, which uses the token embedding again.
    fn layers(&self, manifest: &ModelManifest) -> Vec<Layer> {
        let ranges: Vec<_> = manifest.ranges().map(|(_, range)| range.len() as u64).collect();
        let mut next = 0;
        let mut layer = |name: String, kind, count: usize, tied| {
            let tensors = next..next + count;
            next = tensors.end;
            Layer { name, kind, params: ranges[tensors.clone()].iter().sum(), tensors, tied }
        };
        let mut layers = vec![layer("embedding".to_owned(), LayerKind::Embedding(*self), 2, None)];
        for block in 0..self.layers {
            layers.push(layer(format!("h.{block}.attn"), LayerKind::Attention(*self), HALF_BLOCK, None));
            layers.push(layer(format!("h.{block}.mlp"), LayerKind::FeedForward(*self), HALF_BLOCK, None));
        }
        layers.push(layer("ln_f".to_owned(), LayerKind::Head(*self), 2, Some(0)));
        layers
    }
}

fn problem(key: &'static str, found: String, expected: String) -> ModelError {
    ModelError::Problem(ModelProblem { key, found, expected })
}

/// The beginning of a long list.
fn shortened(widths: &[u64]) -> String {
    const SHOWN: usize = 8;
    if widths.len() <= SHOWN {
        return format!("{widths:?}");
    }
    let shown: Vec<String> = widths.iter().take(SHOWN).map(u64::to_string).collect();
    format!("[{}, ...]", shown.join(", "))
}

/// Layers with their tensors, one after the other.
#[derive(Debug, Default)]
struct Assembly {
    layers: Vec<Layer>,
    tensors: Vec<TensorSpec>,
    convs: usize,
}

impl Assembly {
    /// Adds a layer with a weight and a bias.
    fn layer(&mut self, name: String, kind: LayerKind, weight: Vec<u64>) {
        let (first, outputs) = (self.tensors.len(), weight[0]);
        // Of a model that is too large the manifest tells.
        let params =
            weight.iter().fold(1u64, |product, extent| product.saturating_mul(*extent)).saturating_add(outputs);
        self.tensors.push(TensorSpec { name: format!("{name}.weight"), shape: weight });
        self.tensors.push(TensorSpec { name: format!("{name}.bias"), shape: vec![outputs] });
        self.layers.push(Layer { name, kind, tensors: first..self.tensors.len(), params, tied: None });
    }

    fn convolution(&mut self, image: [u64; 2], in_channels: u64, out_channels: u64) {
        let pixels = to_usize(image[0].saturating_mul(image[1]));
        let input = if self.convs == 0 { LayerInput::Examples } else { LayerInput::Maps { pixels } };
        let shape = vec![out_channels, in_channels, 3, 3];
        let [in_channels, out_channels] = [in_channels, out_channels].map(to_usize);
        let kind = LayerKind::Convolution { image: image.map(to_usize), in_channels, out_channels, input };
        self.convs += 1;
        self.layer(format!("conv{}", self.convs), kind, shape);
    }

    /// Adds the dense layers behind an input of `inputs` values; the last one gives the classes.
    fn dense(&mut self, mut input: LayerInput, mut inputs: u64, hidden: &[u64], classes: u32) {
        for (index, outputs) in hidden.iter().copied().chain([u64::from(classes)]).enumerate() {
            let relu = index < hidden.len();
            let kind = LayerKind::Dense { inputs: to_usize(inputs), outputs: to_usize(outputs), relu, input };
            self.layer(format!("fc{}", index + 1), kind, vec![outputs, inputs]);
            (input, inputs) = (LayerInput::Features, outputs);
        }
    }

    fn finish(self) -> Result<Layers, ModelError> {
        let manifest = ModelManifest::new(self.tensors)?;
        Ok(Layers { layers: self.layers, gpt: None, manifest })
    }
}

fn to_usize(extent: u64) -> usize {
    usize::try_from(extent).expect("extents and their products are checked")
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
    fn depth_is_free() {
        let deep = spec(ModelKind::Mlp, &[4], &[8; limits::HIDDEN_LAYERS]);
        assert_eq!(deep.layers().expect("valid").expect("native").layers.len(), limits::HIDDEN_LAYERS + 1);
        let blocks = ModelSpec { convs: vec![2, 3, 4], ..spec(ModelKind::Cnn, &[1, 16, 8], &[6, 5]) };
        let names = names(&blocks);
        assert_eq!(names[4], "conv3.weight [4, 3, 3, 3]");
        assert_eq!(
            [&names[6], &names[8], &names[10]],
            ["fc1.weight [6, 8]", "fc2.weight [5, 6]", "fc3.weight [10, 5]"]
        );
        let none = ModelSpec { convs: vec![2], ..spec(ModelKind::Cnn, &[1, 2, 2], &[]) };
        assert_eq!(self::names(&none)[2..], ["fc1.weight [10, 2]", "fc1.bias [10]"], "no hidden dense layer");
        // The two ways to say the same.
        let listed = ModelSpec { convs: vec![16, 32], ..spec(ModelKind::Cnn, &[1, 28, 28], &[128]) };
        assert_eq!(listed.layers(), spec(ModelKind::Cnn, &[1, 28, 28], &[16, 32, 128]).layers());
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
        assert_eq!(key(spec(ModelKind::Mlp, &[4], &[8; limits::HIDDEN_LAYERS + 1])), "model.hidden");
        let convs = |convs: &[u64], spec| ModelSpec { convs: convs.to_vec(), ..spec };
        assert_eq!(key(convs(&[4], spec(ModelKind::Mlp, &[4], &[]))), "model.convs");
        assert_eq!(key(convs(&[0], spec(ModelKind::Cnn, &[1, 28, 28], &[]))), "model.convs");
        assert_eq!(key(convs(&[4; limits::HIDDEN_LAYERS + 1], spec(ModelKind::Cnn, &[1, 28, 28], &[]))), "model.convs");
        let seven =
            convs(&[4, 4, 4], spec(ModelKind::Cnn, &[1, 28, 28], &[])).layers().expect_err("28 / 8").to_string();
        let expected = "a height and a width that can be halved 3 times, once by each convolution";
        assert_eq!(seven, format!("`model.input` is [1, 28, 28], expected {expected}"));
        assert_eq!(key(convs(&[4; 70], spec(ModelKind::Cnn, &[1, 28, 28], &[]))), "model.input");
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
