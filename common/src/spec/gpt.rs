//! The byte-level gpt as `[model]` describes it.

use super::{ModelKind, ModelSpec};
use crate::limits;

/// Tokens of a `gpt`: a token is a byte.
pub const GPT_TOKENS: u32 = 256;
/// Keys of `[model]` that describe a `gpt`, and no other model.
const KEYS: [&str; 4] = ["model.context", "model.layers", "model.heads", "model.width"];

/// Size of a `gpt`; every figure is at least 1 and within its limit, and the width is a multiple of the heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpt {
    /// Bytes seen at once.
    pub context: u32,
    /// Transformer blocks.
    pub layers: u32,
    /// Attention heads of a block.
    pub heads: u32,
    /// Width of the residual stream.
    pub width: u32,
}

impl Gpt {
    /// Parameters: token and position embeddings (the head shares the former), blocks, final layer norm.
    #[must_use]
    pub fn params(&self) -> u64 {
        let [context, layers, width] = [self.context, self.layers, self.width].map(u64::from);
        (u64::from(GPT_TOKENS) + context) * width + layers * (12 * width * width + 13 * width) + 2 * width
    }
}

/// A key of `[model]` whose value makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {found}, expected {expected}")]
pub struct ModelProblem {
    /// The key, as in `run.toml`.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// What it has to be.
    pub expected: String,
}

impl ModelSpec {
    /// What this says about a `gpt`: its size, or nothing where the model is of another kind.
    ///
    /// # Errors
    /// A figure is out of range, or a key is set that a model of this kind does not have.
    pub fn gpt(&self) -> Result<Option<Gpt>, ModelProblem> {
        let figures = [self.context, self.layers, self.heads, self.width];
        let problem =
            |key, found: &dyn ToString, expected: String| Err(ModelProblem { key, found: found.to_string(), expected });
        if self.kind != ModelKind::Gpt {
            return match KEYS.iter().zip(figures).find(|(_, figure)| *figure != 0) {
                Some((key, figure)) => problem(*key, &figure, "no such key: it belongs to a gpt".to_owned()),
                None => Ok(None),
            };
        }
        let most = [limits::GPT_CONTEXT, limits::GPT_LAYERS, limits::GPT_WIDTH, limits::GPT_WIDTH];
        for ((key, figure), most) in KEYS.iter().zip(figures).zip(most) {
            if !(1..=most).contains(&figure) {
                return problem(*key, &figure, format!("1 to {most}"));
            }
        }
        let gpt = Gpt { context: self.context, layers: self.layers, heads: self.heads, width: self.width };
        if !gpt.width.is_multiple_of(gpt.heads) {
            return problem("model.width", &gpt.width, format!("a multiple of the {} heads", gpt.heads));
        }
        if gpt.params() > limits::MODEL_PARAMS as u64 {
            let expected = format!("a model of at most {} parameters, not {}", limits::MODEL_PARAMS, gpt.params());
            return problem("model.width", &gpt.width, expected);
        }
        let other = [
            ("model.input", !self.input.is_empty(), format!("{:?}", self.input)),
            ("model.classes", self.classes != 0, self.classes.to_string()),
            ("model.hidden", !self.hidden.is_empty(), format!("{:?}", self.hidden)),
            ("model.convs", !self.convs.is_empty(), format!("{:?}", self.convs)),
            ("model.input_scale", self.input_scale.to_bits() != 1.0f32.to_bits(), self.input_scale.to_string()),
        ];
        match other.into_iter().find(|(_, set, _)| *set) {
            Some((key, _, found)) => problem(key, &found, "no such key: a gpt reads and tells bytes".to_owned()),
            None => Ok(Some(gpt)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ModelSpec {
        ModelSpec { kind: ModelKind::Gpt, context: 8, layers: 2, heads: 2, width: 6, ..ModelSpec::default() }
    }

    #[test]
    fn what_a_gpt_cannot_be_is_refused_by_key() {
        assert_eq!(spec().gpt(), Ok(Some(Gpt { context: 8, layers: 2, heads: 2, width: 6 })));
        let key = |spec: ModelSpec| spec.gpt().expect_err("refused").key;
        assert_eq!(key(ModelSpec { context: 0, ..spec() }), "model.context");
        assert_eq!(key(ModelSpec { context: limits::GPT_CONTEXT + 1, ..spec() }), "model.context");
        assert_eq!(key(ModelSpec { layers: 0, ..spec() }), "model.layers");
        assert_eq!(key(ModelSpec { heads: 0, ..spec() }), "model.heads");
        let odd = ModelSpec { heads: 4, ..spec() }.gpt().expect_err("refused").to_string();
        assert_eq!(odd, "`model.width` is 6, expected a multiple of the 4 heads");
        let huge = ModelSpec { layers: limits::GPT_LAYERS, heads: 1, width: limits::GPT_WIDTH, ..spec() };
        assert!(huge.gpt().expect_err("refused").to_string().contains("at most 1073741824 parameters"));
    }

    #[test]
    fn keys_of_another_kind_are_refused() {
        let key = |spec: ModelSpec| spec.gpt().expect_err("refused").key;
        assert_eq!(key(ModelSpec { input: vec![8], ..spec() }), "model.input");
        assert_eq!(key(ModelSpec { classes: 256, ..spec() }), "model.classes");
        assert_eq!(key(ModelSpec { hidden: vec![8], ..spec() }), "model.hidden");
        assert_eq!(key(ModelSpec { convs: vec![8], ..spec() }), "model.convs");
        assert_eq!(key(ModelSpec { input_scale: 0.5, ..spec() }), "model.input_scale");
        assert_eq!(key(ModelSpec { kind: ModelKind::Mlp, ..spec() }), "model.context");
        assert_eq!(ModelSpec::default().gpt(), Ok(None));
    }
}
