//! A model that is cut into parts: what every member knows of all parts, whatever computes them.

use std::ops::Range;

use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{Activations, ModuleSpec};

use super::super::architecture::Architecture;
use super::super::stage::Stage;
use super::PipelineError;
use super::content::{self, LayerPlace};

/// A model cut into parts.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) stages: Vec<Stage>,
    /// The layers that have tensors of their own.
    pub(super) places: Vec<LayerPlace>,
    /// How activations and their gradients travel.
    pub(super) activations: Activations,
    /// What the first part hands to the last one; none of a custom model, whose trainer keeps the targets of its examples.
    pub(super) labels: Option<Labels>,
}

/// The labels of a native model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Labels {
    /// Classes of the model.
    pub(super) classes: u32,
}

impl Cut {
    /// Cuts a native model into stages that end at the layers `ends`.
    ///
    /// # Errors
    /// The ends do not increase, or the last one is not the model's.
    pub(super) fn of_layers(architecture: &Architecture, ends: &[usize]) -> Result<Self, PipelineError> {
        let layers = &architecture.whole.layers;
        let stages = ranges(ends, layers.len())?;
        let stages = stages.into_iter().map(|range| Stage::new(layers, range, &architecture.manifest)).collect();
        let labels = Some(Labels { classes: architecture.classes });
        let places = content::places(layers, &architecture.manifest);
        Ok(Self { stages, places, activations: Activations::default(), labels })
    }

    /// Cuts a custom model into stages that end at the modules `ends`.
    ///
    /// # Errors
    /// As [`of_layers`](Self::of_layers); or the modules do not consist of whole tensors of `manifest`.
    pub(super) fn of_modules(
        modules: &[ModuleSpec],
        ends: &[usize],
        manifest: &ModelManifest,
    ) -> Result<Self, PipelineError> {
        let to_usize = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let before = |end: usize| modules[..end].iter().map(|module| to_usize(module.parameters)).sum();
        let stage = |range: Range<usize>| {
            let outputs = modules[..range.end].last().map_or(0, |module| to_usize(module.outputs()));
            Stage::of_modules(before(range.start)..before(range.end), outputs)
        };
        let stages = ranges(ends, modules.len())?.into_iter().map(stage).collect();
        let counts: Vec<usize> = modules.iter().map(|module| to_usize(module.parameters)).collect();
        let places = content::module_places(&counts, manifest);
        let places = places.ok_or(PipelineError::Round("model.modules does not cut the trainer's tensors"))?;
        Ok(Self { stages, places, activations: Activations::default(), labels: None })
    }

    /// Returns the parameters of the model.
    pub(super) fn params(&self) -> usize {
        self.stages.last().map_or(0, |stage| stage.own.end)
    }
}

/// The layers of each stage.
fn ranges(ends: &[usize], layers: usize) -> Result<Vec<Range<usize>>, PipelineError> {
    let starts = [0].into_iter().chain(ends.iter().copied());
    let ranges: Vec<Range<usize>> = starts.zip(ends.iter().copied()).map(|(start, end)| start..end).collect();
    if ranges.iter().any(|range| range.is_empty()) || ends.last() != Some(&layers) {
        return Err(PipelineError::Cut { ends: ends.to_vec(), layers });
    }
    Ok(ranges)
}
