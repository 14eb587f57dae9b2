//! A trainer whose tensors lie in another order than the run's: vectors are put into its order,
//! and back.
//!
//! A run that began with an imported file has the order of that file, and safetensors libraries
//! sort by name. Tensors are the same ones by name, so their order is no reason to turn an agent
//! away.

use std::ops::Range;

use anabranch_common::manifest::ModelManifest;

use super::{Metrics, Round, RoundResult, TrainError, Trainer};
use crate::shard::Shard;

/// Passes everything on to a trainer in its own order. It keeps no rounds and does not encode:
/// both would be in the trainer's order, and the agent reads them in the run's.
#[derive(Debug)]
pub(crate) struct Reordered {
    trainer: Box<dyn Trainer>,
    manifest: ModelManifest,
    /// For each of the trainer's tensors, in its order: where it lies in the run's vector.
    places: Vec<Range<usize>>,
}

impl Reordered {
    /// `manifest` is the run's.
    ///
    /// # Errors
    /// [`TrainError::Backend`]: the trainer has other tensors, not only another order.
    pub(crate) fn new(trainer: Box<dyn Trainer>, manifest: ModelManifest) -> Result<Self, TrainError> {
        let own = trainer.manifest().tensors();
        let places: Vec<Range<usize>> = own
            .iter()
            .filter_map(|tensor| manifest.ranges().find(|(wanted, _)| *wanted == tensor).map(|(_, range)| range))
            .collect();
        if places.len() != own.len() || own.len() != manifest.tensors().len() {
            return Err(TrainError::Backend("the trainer has other tensors than the run".to_owned()));
        }
        Ok(Self { trainer, manifest, places })
    }

    fn to_trainer(&self, vector: &[f32]) -> Result<Vec<f32>, TrainError> {
        let expected = self.manifest.params();
        if vector.len() != expected {
            return Err(TrainError::Length { expected, found: vector.len() });
        }
        Ok(self.places.iter().flat_map(|place| &vector[place.clone()]).copied().collect())
    }

    fn to_run(&self, vector: &[f32]) -> Result<Vec<f32>, TrainError> {
        let expected = self.manifest.params();
        if vector.len() != expected {
            return Err(TrainError::Length { expected, found: vector.len() });
        }
        let (mut run, mut rest) = (vec![0.0; expected], vector);
        for place in &self.places {
            let (tensor, after) = rest.split_at(place.len());
            run[place.clone()].copy_from_slice(tensor);
            rest = after;
        }
        Ok(run)
    }
}

impl Trainer for Reordered {
    fn manifest(&self) -> &ModelManifest {
        &self.manifest
    }

    fn adds_proximal_term(&self) -> bool {
        self.trainer.adds_proximal_term()
    }

    fn initial(&mut self, seed: u64) -> Result<Vec<f32>, TrainError> {
        let initial = self.trainer.initial(seed)?;
        self.to_run(&initial)
    }

    fn train(&mut self, round: Round<'_>) -> Result<RoundResult, TrainError> {
        let base = self.to_trainer(round.base)?;
        let result = self.trainer.train(round.with_base(&base))?;
        Ok(RoundResult { end: self.to_run(&result.end)?, encoded: None, ..result })
    }

    fn evaluate(&mut self, model: &[f32], shard: &dyn Shard) -> Result<Metrics, TrainError> {
        let model = self.to_trainer(model)?;
        self.trainer.evaluate(&model, shard)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use anabranch_common::manifest::TensorSpec;
    use anabranch_common::spec::{ModelKind, ModelSpec, OptimizerSpec, TrainSpec};

    use super::*;
    use crate::shard::{Examples, Inputs};
    use crate::train::{StepReport, native};

    fn sorted(manifest: &ModelManifest) -> ModelManifest {
        let mut tensors = manifest.tensors().to_vec();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        ModelManifest::new(tensors).expect("valid")
    }

    /// The same tensors by name, whatever the order: initial model, round and metrics.
    #[test]
    fn a_trainer_computes_the_same_in_the_runs_order() {
        let spec =
            ModelSpec { kind: ModelKind::Mlp, input: vec![3], classes: 2, hidden: vec![4], ..ModelSpec::default() };
        let plan = TrainSpec {
            local_steps: 5,
            batch_size: 4,
            optimizer: OptimizerSpec::Sgd { lr: 0.1, momentum: 0.9 },
            keep_optimizer_state: false,
            target_round_s: None,
            max_local_steps: None,
            schedule: None,
            proximal_mu: 0.0,
        };
        let inputs = (0..30).map(|index| (index % 7) as f32 / 7.0).collect();
        let labels = (0..10).map(|index| index % 2).collect();
        let shard = Examples::new(Inputs::Floats(inputs), labels, vec![3]).expect("ten examples");
        let mut go_on = |_: StepReport| ControlFlow::Continue(());
        let mut plain = native(&spec).expect("valid");
        let run = sorted(plain.manifest());
        assert_ne!(&run, plain.manifest(), "the native order is not that of the names");
        let mut reordered = Reordered::new(native(&spec).expect("valid"), run.clone()).expect("the same tensors");
        let (base, there) = (plain.initial(1).expect("made"), reordered.initial(1).expect("made"));
        let by_name = |vector: &[f32], manifest: &ModelManifest, name: &str| -> Vec<f32> {
            let (_, range) = manifest.ranges().find(|(tensor, _)| tensor.name == name).expect("there");
            vector[range].to_vec()
        };
        let end = plain.train(Round::new(&base, &plan, 3, &shard, &mut go_on)).expect("trains");
        let end_there = reordered.train(Round::new(&there, &plan, 3, &shard, &mut go_on)).expect("trains");
        for TensorSpec { name, .. } in run.tensors() {
            assert_eq!(by_name(&base, plain.manifest(), name), by_name(&there, &run, name), "{name} at first");
            assert_eq!(by_name(&end.end, plain.manifest(), name), by_name(&end_there.end, &run, name), "{name}");
        }
        assert_eq!(plain.evaluate(&end.end, &shard), reordered.evaluate(&end_there.end, &shard));
        assert!(matches!(reordered.evaluate(&[0.0], &shard), Err(TrainError::Length { .. })));
    }

    #[test]
    fn other_tensors_are_not_another_order() {
        let spec = ModelSpec { kind: ModelKind::Mlp, input: vec![3], classes: 2, ..ModelSpec::default() };
        let other = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![8] }]).expect("valid");
        assert!(matches!(Reordered::new(native(&spec).expect("valid"), other), Err(TrainError::Backend(_))));
    }
}
