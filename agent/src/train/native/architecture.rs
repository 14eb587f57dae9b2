//! A native model as it is computed: the layers that follow from `[model]`, and the values that it begins with.

use anabranch_common::manifest::ModelManifest;
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{GPT_TOKENS, Gpt, Layers, ModelSpec};

use super::gpt;
use super::stage::Stage;
use crate::train::TrainError;

/// A checked model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Architecture {
    /// All of its layers, as one stage.
    pub(super) whole: Stage,
    /// Every input is multiplied by this.
    pub(super) input_scale: f32,
    /// Shape of one example as configured.
    pub(super) input: Vec<u64>,
    /// Number of classes.
    pub(super) classes: u32,
    /// Its size where it is a gpt.
    pub(super) gpt: Option<Gpt>,
    /// The flat vector.
    pub(super) manifest: ModelManifest,
}

impl Architecture {
    /// Checks a specification.
    ///
    /// # Errors
    /// [`TrainError::Spec`] and [`TrainError::Model`] name the key of `run.toml`; [`TrainError::Manifest`] where the model is
    /// too large.
    pub(super) fn new(spec: &ModelSpec) -> Result<Self, TrainError> {
        let Some(Layers { layers, gpt, manifest }) = spec.layers()? else {
            let expected = "which takes an agent with a trainer of its own: `anabranch-agent run ... -- PROGRAM`";
            let found = "\"custom\"".to_owned();
            return Err(TrainError::Spec { key: "model.kind", found, expected: expected.to_owned() });
        };
        let (input, classes) = match &gpt {
            Some(gpt) => (vec![gpt.context.into()], GPT_TOKENS),
            None => (spec.input.clone(), spec.classes),
        };
        let whole = Stage::new(&layers, 0..layers.len(), &manifest);
        Ok(Self { whole, input_scale: spec.input_scale, input, classes, gpt, manifest })
    }

    /// Labels of an example; of a gpt an example is a window.
    pub(super) fn labels_each(&self) -> usize {
        self.gpt.as_ref().map_or(1, |gpt| gpt::to_usize(gpt.context))
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

#[cfg(test)]
mod tests {
    use anabranch_common::spec::ModelKind;

    use super::*;

    fn spec(kind: ModelKind, input: &[u64], hidden: &[u64]) -> ModelSpec {
        let (input, hidden) = (input.to_vec(), hidden.to_vec());
        ModelSpec { kind, input, classes: 10, hidden, ..ModelSpec::default() }
    }

    #[test]
    fn what_no_model_can_be_made_of_is_refused_by_key() {
        let refusal = |spec: ModelSpec| Architecture::new(&spec).expect_err("refused").to_string();
        let text = refusal(spec(ModelKind::Cnn, &[784], &[]));
        assert_eq!(text, "`model.input` is [784], expected [channels, height, width] for a cnn");
        assert!(refusal(ModelSpec::default()).starts_with("`model.kind` is \"custom\", which takes an agent"));
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
