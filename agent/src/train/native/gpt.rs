//! The initial values of a gpt: a decoder-only transformer over bytes (Radford et al. 2019, GPT-2). Token and learned position
//! embeddings, blocks of causal attention and a GELU layer of four times the width with layer norms before them, a last layer
//! norm, and a head that is the token embedding again. `layer` computes them.

use anabranch_common::manifest::ModelManifest;
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::Gpt;

/// Standard deviation of GPT-2's initial weights.
const DEVIATION: f64 = 0.02;

/// GPT-2's initial values but for one thing: weights are uniform with its standard deviation of 0.02, smaller by
/// `sqrt(2 * layers)` in the two projections that write into the residual stream, because a uniform number can be made
/// from exactly rounded operations and so has the same bits on every machine. Biases are 0, gains of layer norms 1.
#[expect(clippy::cast_possible_truncation, reason = "rounded to f32, which is exact in the same way everywhere")]
pub(super) fn initial(gpt: &Gpt, manifest: &ModelManifest, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix64::new(seed);
    let mut model = Vec::with_capacity(manifest.params());
    let bound = DEVIATION * 3.0f64.sqrt();
    let residual = bound / (2.0 * f64::from(gpt.layers)).sqrt();
    for (tensor, range) in manifest.ranges() {
        if tensor.shape.len() == 2 {
            let bound = if tensor.name.ends_with("c_proj.weight") { residual } else { bound } as f32;
            model.extend(range.map(|_| rng.next_signed_f32() * bound));
        } else {
            let value = if tensor.name.ends_with(".weight") { 1.0 } else { 0.0 };
            model.extend(range.map(|_| value));
        }
    }
    model
}

pub(super) fn to_usize(figure: u32) -> usize {
    usize::try_from(figure).expect("figures of a gpt are within their limits")
}

#[cfg(test)]
mod tests {
    use anabranch_common::spec::{ModelKind, ModelSpec};

    use super::*;
    use crate::train::native::architecture::Architecture;
    use crate::train::native::graph;

    /// Tensors of a block.
    const BLOCK: usize = 12;

    fn architecture(context: u32, layers: u32, heads: u32, width: u32) -> Architecture {
        let spec = ModelSpec { kind: ModelKind::Gpt, context, layers, heads, width, ..ModelSpec::default() };
        Architecture::new(&spec).expect("valid")
    }

    #[test]
    fn tensors_have_gpt_2s_names_in_its_order() {
        let architecture = architecture(16, 2, 2, 8);
        let listed = architecture.manifest.tensors().iter().map(|t| format!("{} {:?}", t.name, t.shape));
        let listed: Vec<String> = listed.collect();
        assert_eq!(listed.len(), 2 + 2 * BLOCK + 2);
        assert_eq!(listed[..2], ["wte.weight [256, 8]", "wpe.weight [16, 8]"]);
        let second = [
            "h.1.ln_1.weight [8]",
            "h.1.ln_1.bias [8]",
            "h.1.attn.c_attn.weight [24, 8]",
            "h.1.attn.c_attn.bias [24]",
            "h.1.attn.c_proj.weight [8, 8]",
            "h.1.attn.c_proj.bias [8]",
            "h.1.ln_2.weight [8]",
            "h.1.ln_2.bias [8]",
            "h.1.mlp.c_fc.weight [32, 8]",
            "h.1.mlp.c_fc.bias [32]",
            "h.1.mlp.c_proj.weight [8, 32]",
            "h.1.mlp.c_proj.bias [8]",
        ];
        assert_eq!(listed[2 + BLOCK..2 + 2 * BLOCK], second);
        assert_eq!(listed[2 + 2 * BLOCK..], ["ln_f.weight [8]", "ln_f.bias [8]"]);
        let counted = Gpt { context: 16, layers: 2, heads: 2, width: 8 }.params();
        assert_eq!(architecture.manifest.params() as u64, counted);
    }

    #[test]
    fn the_initial_model_is_these_bits_on_every_machine() {
        let architecture = architecture(16, 2, 2, 8);
        let model = architecture.initial(1);
        assert_eq!(model.len(), architecture.manifest.params());
        let of = |name: &str| {
            let mut ranges = architecture.manifest.ranges();
            model[ranges.find(|(tensor, _)| tensor.name == name).expect("it is there").1].to_vec()
        };
        let deviation = |values: &[f32]| (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        assert!((deviation(&of("wte.weight")) - 0.02).abs() < 0.002);
        assert!((deviation(&of("h.0.mlp.c_proj.weight")) - 0.01).abs() < 0.002, "two layers: half of it");
        assert_eq!((of("ln_f.weight"), of("ln_f.bias")), (vec![1.0; 8], vec![0.0; 8]));
        assert_eq!(anabranch_common::ids::Digest::of_f32(&model).short(), "be2af7d8");
        assert_ne!(model, architecture.initial(2));
    }

    #[test]
    fn a_byte_is_told_from_those_before_it_and_from_no_other() {
        let architecture = architecture(8, 2, 2, 8);
        let model: Vec<f32> = architecture.initial(3).iter().map(|value| value * 8.0).collect();
        let bytes: Vec<f32> = (0..16u8).map(|index| f32::from(index.wrapping_mul(37))).collect();
        let before = graph::logits_for_tests(&architecture.whole, &model, &bytes);
        for changed in 0..16 {
            let mut other = bytes.clone();
            other[changed] = 255.0 - other[changed];
            let after = graph::logits_for_tests(&architecture.whole, &model, &other);
            for position in 0..16 {
                let range = position * 256..(position + 1) * 256;
                let same = before[range.clone()] == after[range];
                let sees = position >= changed && position / 8 == changed / 8;
                assert_eq!(same, !sees, "byte {changed} was changed, position {position} looked at");
            }
        }
    }
}
