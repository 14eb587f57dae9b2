//! The table of the modules that a custom model is made of: what the coordinator knows of a model that it cannot read.

use serde::{Deserialize, Serialize};

use super::{LayerCost, ModelError, ModelKind, ModelProblem, ModelSpec};
use crate::limits;

/// Bytes of a value.
const VALUE: u64 = 4;
const KEY: &str = "model.modules";

/// One of the consecutive modules of a custom model, along which a pod cuts it: a row of its layer table. What is not said follows
/// from what is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleSpec {
    /// Values of its tensors.
    pub parameters: u64,
    /// Shape of its output for one example.
    pub output: Vec<u64>,
    /// Multiplications and additions of its forward pass for one example. Twice its parameters where it is not said, which is what a
    /// dense layer has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops: Option<u64>,
    /// Values that it keeps for one example until its backward pass. Twice its output where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<u64>,
}

impl ModuleSpec {
    /// Returns the values of its output for one example.
    #[must_use]
    pub fn outputs(&self) -> u64 {
        self.output.iter().fold(1, |product, extent| product.saturating_mul(*extent))
    }

    /// Returns what it costs for one example.
    #[must_use]
    pub fn cost(&self) -> LayerCost {
        let outputs = self.outputs();
        LayerCost {
            forward_flops: self.flops.unwrap_or_else(|| self.parameters.saturating_mul(2)),
            activation_bytes: self.kept.unwrap_or_else(|| outputs.saturating_mul(2)).saturating_mul(VALUE),
            output_bytes: outputs.saturating_mul(VALUE),
        }
    }

    fn is_sound(&self) -> bool {
        let parameters = 1..=limits::MODEL_PARAMS as u64;
        let extents = (1..=limits::TENSOR_DIMS - 1).contains(&self.output.len()) && !self.output.contains(&0);
        parameters.contains(&self.parameters) && extents && self.outputs() <= limits::LAYER_WIDTH
    }
}

impl ModelSpec {
    /// Returns the checked modules of a custom model; none where nothing is said of them, or the model is of another kind.
    ///
    /// # Errors
    /// A row makes no sense, the model is too large, or it is a native one.
    pub fn modules(&self) -> Result<&[ModuleSpec], ModelError> {
        let problem = |found: String, expected: String| Err(ModelProblem { key: KEY, found, expected }.into());
        let count = self.modules.len();
        if count > 0 && self.kind != ModelKind::Custom {
            let expected = "no such key: the layers of a native model follow from its other keys".to_owned();
            return problem(format!("a table of {count} rows"), expected);
        }
        if count > limits::MANIFEST_TENSORS {
            return problem(format!("a table of {count} rows"), format!("at most {}", limits::MANIFEST_TENSORS));
        }
        if let Some(index) = self.modules.iter().position(|module| !module.is_sound()) {
            let ModuleSpec { parameters, output, .. } = &self.modules[index];
            let dims = &output[..output.len().min(limits::TENSOR_DIMS)];
            let expected = format!(
                "parameters of at least 1, and an output of 1 to {} extents of at least 1 that make at most {} values",
                limits::TENSOR_DIMS - 1,
                limits::LAYER_WIDTH
            );
            return problem(format!("parameters = {parameters}, output = {dims:?} in row {index}"), expected);
        }
        let params = self.modules.iter().fold(0, |sum: u64, module| sum.saturating_add(module.parameters));
        if params > limits::MODEL_PARAMS as u64 {
            let expected = format!("at most {}", limits::MODEL_PARAMS);
            return problem(format!("a table of {params} parameters"), expected);
        }
        Ok(&self.modules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(parameters: u64, output: &[u64]) -> ModuleSpec {
        ModuleSpec { parameters, output: output.to_vec(), flops: None, kept: None }
    }

    fn model(modules: Vec<ModuleSpec>) -> ModelSpec {
        ModelSpec { modules, ..ModelSpec::default() }
    }

    #[test]
    fn what_is_not_said_of_a_module_follows_from_what_is() {
        let rows = "kind = \"custom\"\nmodules = [{ parameters = 650, output = [2, 5] }, \
                    { parameters = 11, output = [3], flops = 7, kept = 9 }]";
        let read: ModelSpec = toml::from_str(rows).expect("complete");
        let costs: Vec<_> = read.modules().expect("sound").iter().map(ModuleSpec::cost).collect();
        let cost = |forward_flops, kept, outputs: u64| LayerCost {
            forward_flops,
            activation_bytes: VALUE * kept,
            output_bytes: VALUE * outputs,
        };
        assert_eq!(costs, [cost(1300, 20, 10), cost(7, 9, 3)]);
        let again: ModelSpec = toml::from_str(&toml::to_string(&read).expect("text")).expect("read again");
        assert_eq!(again, read);
        assert!(
            !toml::to_string(&model(Vec::new())).expect("text").contains("modules"),
            "older texts have no such key"
        );
    }

    #[test]
    fn a_table_that_makes_no_sense_is_refused_by_row() {
        let told = |spec: &ModelSpec| spec.modules().expect_err("refused").to_string();
        let sound = module(1, &[1]);
        for bad in [
            module(0, &[1]),
            module(1, &[]),
            module(1, &[3, 0]),
            module(1, &[1; limits::TENSOR_DIMS]),
            module(1, &[1 << 13, 1 << 12]),
            module(limits::MODEL_PARAMS as u64 + 1, &[1]),
        ] {
            let text = told(&model(vec![sound.clone(), bad]));
            assert!(text.contains("`model.modules`") && text.contains("in row 1, expected"), "{text}");
        }
        let half = module(limits::MODEL_PARAMS as u64 / 2 + 1, &[1]);
        assert!(told(&model(vec![half.clone(), half])).contains("1073741826 parameters"));
        assert!(told(&model(vec![sound.clone(); limits::MANIFEST_TENSORS + 1])).contains("4097 rows"));
        let native = ModelSpec { kind: ModelKind::Mlp, ..model(vec![sound]) };
        assert!(told(&native).contains("no such key"));
        assert_eq!(ModelSpec::default().modules(), Ok(&[][..]));
    }
}
