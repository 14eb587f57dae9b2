//! What is compared, and on what data.

use anabranch_agent::shard::{Examples, Inputs, Shard, Text};
use anabranch_agent::train::Trainer;
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{ModelKind, ModelSpec, OptimizerSpec};

use anyhow::Context as _;

use super::super::store::noise_bytes;

/// Images, as many as PyTorch's side has.
const IMAGES: usize = 2048;
const PIXELS: usize = 28 * 28;
/// Bytes of text.
const TEXT: usize = IMAGES * 128 + 1;

/// A model with its batch and optimizer.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: String,
    /// `mlp`, `cnn` or `gpt`, and what PyTorch's side makes it of: widths; or context, layers, heads and width.
    pub(super) kind: &'static str,
    pub(super) figures: Vec<u32>,
    pub(super) batch: u32,
    pub(super) spec: ModelSpec,
    pub(super) optimizer: OptimizerSpec,
}

/// The models of W1, of the README's walk-through and of `init`, and two gpts; for a GPU one of 100 million parameters too.
pub(super) fn all(gpu: bool) -> Vec<Case> {
    let mut cases = vec![
        image("mlp", &[128], 32),
        image("mlp", &[512], 64),
        image("cnn", &[8, 16, 64], 32),
        image("cnn", &[16, 32, 128], 64),
        text(64, 2, 4, 64, 16),
        text(128, 4, 4, 128, 16),
    ];
    cases.extend(gpu.then(|| text(512, 14, 12, 768, 8)));
    cases
}

fn image(kind: &'static str, hidden: &[u32], batch: u32) -> Case {
    let widths: Vec<String> = hidden.iter().map(u32::to_string).collect();
    let spec = ModelSpec {
        kind: if kind == "mlp" { ModelKind::Mlp } else { ModelKind::Cnn },
        input: vec![1, 28, 28],
        classes: 10,
        hidden: hidden.iter().map(|width| u64::from(*width)).collect(),
        input_scale: 1.0 / 255.0,
        ..ModelSpec::default()
    };
    let name = match kind {
        "mlp" => format!("mlp 784-{}-10 x{batch}", widths.join("-")),
        _ => format!("cnn {} x{batch}", widths.join("-")),
    };
    let optimizer = OptimizerSpec::Sgd { lr: 0.01, momentum: 0.9 };
    Case { name, kind, figures: hidden.to_vec(), batch, spec, optimizer }
}

fn text(context: u32, layers: u32, heads: u32, width: u32, batch: u32) -> Case {
    let spec = ModelSpec { kind: ModelKind::Gpt, context, layers, heads, width, ..ModelSpec::default() };
    let optimizer = OptimizerSpec::AdamW { lr: 1e-3, weight_decay: 0.01, beta_1: 0.9, beta_2: 0.999 };
    let name = format!("gpt {context}-{layers}-{heads}-{width} x{batch}");
    Case { name, kind: "gpt", figures: vec![context, layers, heads, width], batch, spec, optimizer }
}

/// Noise: nothing is learned from it, but the work is the same.
#[derive(Debug)]
pub(super) struct Data {
    images: Examples,
    text: Text,
}

impl Data {
    pub(super) fn new(seed: u64) -> anyhow::Result<Self> {
        let mut rng = SplitMix64::new(seed);
        let labels = (0..IMAGES).map(|_| u32::try_from(rng.below(10))).collect::<Result<_, _>>()?;
        let images = Inputs::Bytes(noise_bytes(IMAGES * PIXELS, seed).to_vec());
        let text = Text::new(noise_bytes(TEXT, seed).to_vec()).context("text has two bytes")?;
        let images = Examples::new(images, labels, vec![28, 28]).context("there is a label for each image")?;
        Ok(Self { images, text })
    }

    /// What `trainer` can take.
    pub(super) fn shard(&self, trainer: &dyn Trainer) -> &dyn Shard {
        let gpt = trainer.manifest().tensors().iter().any(|tensor| tensor.name == "wte.weight");
        if gpt { &self.text } else { &self.images }
    }
}
