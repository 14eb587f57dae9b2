//! The workload file of a comparison of schedules.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_agent::shard::{self, Shard, ShardOptions, Text};
use anabranch_common::limits;
use anabranch_common::spec::{ModelKind, ModelSpec, OptimizerSpec, TrainSpec};
use anabranch_io::text_file;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use super::super::data::DataName;
use super::super::workload::has_key;

/// The part of a text that models are tested on.
const TEST_SHARE: usize = 8;

/// A workload file: models, and into how many stages each is cut.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineWorkload {
    /// What it is, in a sentence.
    pub about: String,
    /// Numbers of stages, each at least 2 and none twice.
    pub stages: Vec<u32>,
    /// A schedule that does not reach the loss of one machine in so many times its steps counts as so many times slower.
    pub most_times: u32,
    /// Steps over which losses are averaged.
    pub window_steps: usize,
    /// What is trained.
    pub models: Vec<Case>,
    /// The folder of the file, in which files that it names are.
    #[serde(skip)]
    folder: PathBuf,
}

/// A model with its data.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name in figures.
    pub name: String,
    /// `mnist`, `digits`, or a file of text beside the workload.
    pub data: String,
    /// Steps of one machine.
    pub steps: u32,
    /// Examples of a step.
    pub batch_size: u32,
    /// `[model]` of run.toml.
    pub model: ModelSpec,
    /// What the weights of the initial model are multiplied by, biases and gains of layer norms excepted; 1 when absent. The native
    /// ones are too small for deep models without normalisation, and for narrow gpts: for a long time nothing is learnt from them.
    #[serde(default = "unscaled")]
    pub initial_scale: f32,
    /// Each is a comparison of its own; one of a kind.
    pub optimizers: Vec<OptimizerSpec>,
}

/// What a model is trained and tested on.
#[derive(Debug, Clone)]
pub(super) struct Examples {
    pub(super) train: Arc<dyn Shard>,
    pub(super) test: Arc<dyn Shard>,
}

impl PipelineWorkload {
    /// Returns whether a workload file is of this kind: it has `stages`.
    #[must_use]
    pub fn is_at(path: &Path) -> bool {
        has_key(path, "stages")
    }

    /// Reads and checks a workload file.
    ///
    /// # Errors
    /// The file cannot be read, has an unknown key, or a value that makes no sense.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = text_file::read(path, limits::CONFIG_FILE_BYTES);
        let text = text.with_context(|| format!("cannot read the workload {shown}"))?;
        let mut workload: Self = toml::from_str(&text).with_context(|| format!("{shown} makes no sense"))?;
        workload.folder = path.parent().unwrap_or(Path::new("")).to_owned();
        workload.check().with_context(|| format!("{shown} makes no sense"))?;
        Ok(workload)
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.stages.iter().all(|stages| *stages >= 2), "stages must be at least 2 each: {:?}", self.stages);
        let stages: BTreeSet<u32> = self.stages.iter().copied().collect();
        ensure!(stages.len() == self.stages.len(), "stages must differ: {:?}", self.stages);
        let names: BTreeSet<&str> = self.models.iter().map(|case| case.name.as_str()).collect();
        ensure!(names.len() == self.models.len(), "the names of models must differ");
        ensure!(self.most_times >= 1 && self.window_steps >= 1, "most_times and window_steps must be at least 1");
        for case in &self.models {
            let name = &case.name;
            let kinds: BTreeSet<&str> = case.optimizers.iter().map(kind).collect();
            ensure!(kinds.len() == case.optimizers.len(), "models.{name}.optimizers must each be of another kind");
            let layers = case.model.layers().with_context(|| format!("the model {name} makes no sense"))?;
            let layers = layers.with_context(|| format!("the model {name} is not a native one"))?.layers.len();
            for stages in &self.stages {
                ensure!(layers >= *stages as usize, "the model {name} has {layers} layers for {stages} stages");
                ensure!(case.batch_size.is_multiple_of(*stages), "models.{name}.batch_size is no multiple of {stages}");
            }
            let scale = case.initial_scale;
            ensure!(scale.is_finite() && scale > 0.0, "models.{name}.initial_scale is {scale}, expected more than 0");
            ensure!(case.steps as usize >= self.window_steps, "models.{name}.steps is less than window_steps");
        }
        Ok(())
    }

    /// Opens the data of a model.
    ///
    /// # Errors
    /// A file is missing or does not fit.
    pub(super) fn open(&self, case: &Case, data: Option<&Path>) -> anyhow::Result<Examples> {
        if case.model.kind == ModelKind::Gpt {
            let path = self.folder.join(&case.data);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let (train, test) = bytes.split_at(bytes.len() - bytes.len() / TEST_SHARE);
            let text = |bytes: &[u8]| Text::new(bytes.to_vec()).with_context(|| format!("{} is empty", path.display()));
            return Ok(Examples { train: Arc::new(text(train)?), test: Arc::new(text(test)?) });
        }
        let name = match case.data.as_str() {
            "mnist" => DataName::Mnist,
            "digits" => DataName::Digits,
            other => bail!("models.{}.data is {other}, expected mnist or digits", case.name),
        };
        let folder = name.locate(data)?;
        let open = |file: &str| -> anyhow::Result<Arc<dyn Shard>> {
            let opened = shard::open(&folder.join(file), &ShardOptions::for_model(&case.model));
            Ok(Arc::from(opened.context("cannot read the data set")?))
        };
        let [train, test, ..] = name.files() else { bail!("the data set has no file to test on") };
        Ok(Examples { train: open(train)?, test: open(test)? })
    }
}

/// What an optimizer is called in figures.
pub(super) fn kind(optimizer: &OptimizerSpec) -> &'static str {
    match optimizer {
        OptimizerSpec::Sgd { .. } => "sgd",
        OptimizerSpec::AdamW { .. } => "adamw",
    }
}

fn unscaled() -> f32 {
    1.0
}

impl Case {
    /// Multiplies the weights of an initial model by `initial_scale`.
    pub(super) fn scale(&self, model: &mut [f32]) -> anyhow::Result<()> {
        let layers = self.model.layers()?.context("the model is not a native one")?;
        for (_, range) in layers.manifest.ranges().filter(|(tensor, _)| tensor.shape.len() >= 2) {
            model[range].iter_mut().for_each(|weight| *weight *= self.initial_scale);
        }
        Ok(())
    }

    /// The plan of `steps` steps.
    pub(super) fn plan(&self, optimizer: &OptimizerSpec, steps: u32) -> TrainSpec {
        TrainSpec {
            local_steps: steps,
            batch_size: self.batch_size,
            optimizer: optimizer.clone(),
            keep_optimizer_state: false,
            target_round_s: None,
            max_local_steps: None,
            schedule: None,
            proximal_mu: 0.0,
        }
    }
}
