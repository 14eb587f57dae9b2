//! Whether a configuration still is the run's: the model and the seed are fixed when the run begins.

use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{PolicyError, RunSpec};

/// The configuration does not fit the run's model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ModelMismatch {
    /// The model or the seed is not the run's.
    #[error("this is not the model of the run in this directory: {}", differences.join("; "))]
    Differs {
        /// Every key that differs, with both values as `run.toml` would have them.
        differences: Vec<String>,
    },
    /// Codecs are configured for tensors that the model does not have.
    #[error("upload.policy {0}")]
    Policy(#[from] PolicyError),
}

impl ModelMismatch {
    /// Compares what is journalled with what is configured, which has to fit the model's tensors.
    ///
    /// # Errors
    /// A key differs, or does not fit.
    pub fn check(journalled: &RunSpec, manifest: &ModelManifest, configured: &RunSpec) -> Result<(), Self> {
        let fixed = |spec: &RunSpec| {
            let model = &spec.model;
            [
                ("run.seed", spec.seed.to_string()),
                ("model.kind", format!("{:?}", model.kind.as_str())),
                // A list of numbers is written the same way in Rust and in TOML, and so is a float.
                ("model.input", format!("{:?}", model.input)),
                ("model.classes", model.classes.to_string()),
                ("model.hidden", format!("{:?}", model.hidden)),
                ("model.convs", format!("{:?}", model.convs)),
                ("model.input_scale", format!("{:?}", model.input_scale)),
                ("model.context", model.context.to_string()),
                ("model.layers", model.layers.to_string()),
                ("model.heads", model.heads.to_string()),
                ("model.width", model.width.to_string()),
            ]
        };
        let differences: Vec<String> = fixed(configured)
            .into_iter()
            .zip(fixed(journalled))
            .filter(|((_, here), (_, there))| here != there)
            .map(|((key, here), (_, there))| format!("{key} is {here} in run.toml and {there} in the run"))
            .collect();
        if !differences.is_empty() {
            return Err(Self::Differs { differences });
        }
        Ok(configured.upload.policy.check(manifest)?)
    }
}
