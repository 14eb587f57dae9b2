//! A trainer in another process that computes parts of its model: requests for passes, with tensors in files.

use std::ops::ControlFlow;
use std::sync::MutexGuard;

use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::spec::ModuleSpec;
use anabranch_io::model_file;

use super::child::Fault;
use super::{Answer, Ask, DrawAsk, Host, PartAsk, Prepared, ProcessTrainer, Tensors, lock};
use crate::train::{
    ModuleBackward, ModuleForward, ModulePart, ModulePass, ModuleRound, ModuleTrainer, RunPart, TrainError, Trainer,
};

/// Checks what a trainer says of its modules against the run's table.
///
/// # Errors
/// They differ.
pub(super) fn check(run: &RunPart, prepared: &Prepared) -> Result<(), TrainError> {
    let (table, Prepared { manifest, modules, .. }) = (run.model.modules()?, prepared);
    let problem = |found: String, expected: String| Err(TrainError::Spec { key: "model.modules", found, expected });
    if modules.is_empty() || table.is_empty() {
        return Ok(());
    }
    let tensors = modules.iter().fold(0, |sum: usize, tensors| sum.saturating_add(*tensors));
    if tensors != manifest.tensors().len() {
        let told = format!("the trainer has {} tensors, and counts {tensors} by module", manifest.tensors().len());
        return Err(TrainError::Backend(told));
    }
    if modules.len() != table.len() {
        let expected = format!("expected {}: the trainer has as many modules", modules.len());
        return problem(format!("a table of {} rows", table.len()), expected);
    }
    let mut rest = manifest.tensors();
    for (row, (count, ModuleSpec { parameters, .. })) in modules.iter().zip(table).enumerate() {
        let (own, others) = rest.split_at(*count);
        rest = others;
        let found: u64 = own.iter().filter_map(TensorSpec::elements).map(|elements| elements as u64).sum();
        if found != *parameters {
            let expected = format!("expected parameters = {found} there: the trainer's module {row} has as many");
            return problem(format!("parameters = {parameters} in row {row}"), expected);
        }
    }
    Ok(())
}

impl ProcessTrainer {
    /// Whether the run's model can be computed in parts, and this trainer computes them.
    pub(super) fn computes_parts(&self) -> bool {
        !self.prepared.modules.is_empty() && !self.run.model.modules.is_empty()
    }

    /// The tensors of the modules that `part` is made of.
    fn tensors(&self, part: &ModulePart) -> Result<ModelManifest, TrainError> {
        let before = |module: usize| self.prepared.modules.iter().take(module).sum::<usize>();
        let (start, end) = (before(part.modules.start), before(part.modules.end));
        let tensors = self.prepared.manifest.tensors().get(start..end).unwrap_or_default();
        Ok(ModelManifest::new(tensors.to_vec())?)
    }

    /// The activations of so many examples after the module before `end`.
    fn activations(&self, end: usize, examples: usize) -> Result<ModelManifest, TrainError> {
        let module = end.checked_sub(1).and_then(|module| self.run.model.modules.get(module));
        let extents = module.into_iter().flat_map(|module| module.output.iter().copied());
        let shape = [examples as u64].into_iter().chain(extents).collect();
        Ok(ModelManifest::new(vec![TensorSpec { name: "activations".to_owned(), shape }])?)
    }

    /// The child in which the round was begun, and one of its parts. A fresh child would know nothing of the round.
    fn at_part(&self, part: usize) -> Result<(MutexGuard<'_, Host>, ModulePart), TrainError> {
        let host = lock(&self.host);
        let begun = host.child.as_ref().and_then(|living| living.parts.iter().find(|begun| begun.part == part));
        match begun.cloned() {
            Some(begun) => Ok((host, begun)),
            None => Err(TrainError::Lost("it was started again in the middle of a round".to_owned())),
        }
    }
}

impl ModuleTrainer for ProcessTrainer {
    fn tensors(&self) -> &ModelManifest {
        Trainer::manifest(self)
    }

    fn begin(&self, round: &ModuleRound<'_>) -> Result<(), TrainError> {
        let mut host = self.ready()?;
        let part = |part: &ModulePart| PartAsk { part: part.part, first: part.modules.start, end: part.modules.end };
        let draw = round.draw.map(|draw| DrawAsk {
            seed: draw.seed,
            local_steps: draw.plan.local_steps,
            batch_size: draw.plan.batch_size,
            micro_batch: draw.micro_batch,
        });
        let ask = |id| Ask::Stages { id, round: round.number, parts: round.parts.iter().map(part).collect(), draw };
        match host.ask(ask)? {
            Answer::Stages { .. } => {
                if let Some(living) = &mut host.child {
                    living.parts.clone_from(&round.parts);
                }
                Ok(())
            }
            other => Err(host.breach(&other)),
        }
    }

    fn load(&self, part: usize, weights: &[f32]) -> Result<(), TrainError> {
        let (mut host, of) = self.at_part(part)?;
        let file = host.hand("weights.safetensors", &self.tensors(&of)?, weights)?;
        match host.ask(|id| Ask::Weights { id, part, weights: file.name() })? {
            Answer::Weights { .. } => Ok(()),
            other => Err(host.breach(&other)),
        }
    }

    fn forward(&self, pass: ModulePass, input: Option<&[f32]>) -> Result<ModuleForward, TrainError> {
        let ModulePass { part, micro_batch, examples } = pass;
        let (mut host, of) = self.at_part(part)?;
        let input = match input {
            Some(input) => {
                let shape = self.activations(of.modules.start, examples)?;
                Some(host.hand("input.safetensors", &shape, input)?)
            }
            None => None,
        };
        let is_last = of.modules.end == self.run.model.modules.len();
        let out = (!is_last).then(|| host.file("output.safetensors"));
        let name = |file: &Option<Tensors>| file.as_ref().map(Tensors::name);
        let ask = |id| Ask::Forward { id, part, micro_batch, examples, input: name(&input), out: name(&out) };
        match (host.ask(ask)?, out) {
            (Answer::Forward { loss: None, .. }, Some(out)) => {
                let output = host.take_over(&out, &self.activations(of.modules.end, examples)?)?;
                Ok(ModuleForward { output, mean_loss: 0.0 })
            }
            (Answer::Forward { loss: Some(mean_loss), .. }, None) => {
                Ok(ModuleForward { output: Vec::new(), mean_loss })
            }
            (other, _) => Err(host.breach(&other)),
        }
    }

    fn backward(&self, pass: ModulePass, slope: Option<&[f32]>) -> Result<ModuleBackward, TrainError> {
        let ModulePass { part, micro_batch, examples } = pass;
        let (mut host, of) = self.at_part(part)?;
        let slope = match slope {
            Some(slope) => {
                let shape = self.activations(of.modules.end, examples)?;
                Some(host.hand("slope.safetensors", &shape, slope)?)
            }
            None => None,
        };
        let out = host.file("gradient.safetensors");
        let of_input = (of.modules.start > 0).then(|| host.file("of-input.safetensors"));
        let name = |file: &Option<Tensors>| file.as_ref().map(Tensors::name);
        let ask = |id| {
            let (slope, out, of_input) = (name(&slope), out.name(), name(&of_input));
            Ask::Backward { id, part, micro_batch, slope, out, of_input }
        };
        match host.ask(ask)? {
            Answer::Backward { .. } => {
                let gradient = host.take_over(&out, &self.tensors(&of)?)?;
                let of_input = match of_input {
                    Some(file) => host.take_over(&file, &self.activations(of.modules.start, examples)?)?,
                    None => Vec::new(),
                };
                Ok(ModuleBackward { gradient, of_input })
            }
            other => Err(host.breach(&other)),
        }
    }
}

impl Host {
    /// Asks the child for what takes no longer than a micro-batch.
    fn ask(&mut self, ask: impl FnOnce(u64) -> Ask) -> Result<Answer, TrainError> {
        self.request(ask, &mut |_| ControlFlow::Continue(()))
    }

    /// Writes tensors of these shapes for the child.
    fn hand(&mut self, name: &str, manifest: &ModelManifest, values: &[f32]) -> Result<Tensors, TrainError> {
        if values.len() != manifest.params() {
            return Err(TrainError::Length { expected: manifest.params(), found: values.len() });
        }
        self.put(name, manifest, values)
    }

    /// Reads what the child has written, whether or not it is finite.
    fn take_over(&mut self, file: &Tensors, manifest: &ModelManifest) -> Result<Vec<f32>, TrainError> {
        model_file::take_over(&file.0, manifest).map_err(|error| self.bury(&Fault::Broken(error.to_string())))
    }

    /// A file that the child is to write.
    fn file(&self, name: &str) -> Tensors {
        Tensors(self.scratch.path().join(name))
    }
}
