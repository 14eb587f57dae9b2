//! A trainer that computes modules pass by pass gives what burn gives in this process: here it is burn behind the seam.

use std::collections::{BTreeMap, VecDeque};

use anabranch_common::manifest::ModelManifest;
use anabranch_common::pod::cut::Table;
use anabranch_common::spec::ModuleSpec;
use parking_lot::Mutex;

use super::*;
use crate::train::native::graph::Matrix;
use crate::train::native::pipeline::passes::{NativePasses, Passes};
use crate::train::{
    ModuleBackward, ModuleDraw, ModuleForward, ModulePart, ModulePass, ModuleRound, ModuleTrainer, TrainError,
};

/// The layers of a native model as the modules of a custom one.
#[derive(Debug)]
struct Burn<'a> {
    pipeline: &'a Pipeline,
    shard: &'a dyn Shard,
    state: Mutex<State<'a>>,
}

#[derive(Debug, Default)]
struct State<'a> {
    passes: BTreeMap<usize, NativePasses<'a>>,
    /// Labels of micro-batches that were not judged.
    labels: VecDeque<Vec<u32>>,
    /// Gradients by the logits of micro-batches in flight.
    slopes: VecDeque<Vec<f32>>,
    begun: Option<u64>,
}

impl ModuleTrainer for Burn<'_> {
    fn tensors(&self) -> &ModelManifest {
        &self.pipeline.architecture.manifest
    }

    fn begin(&self, round: &ModuleRound<'_>) -> Result<(), TrainError> {
        let ModuleDraw { seed, plan, micro_batch } = round.draw.expect("the first part is here");
        let feed =
            Feed::new(&self.pipeline.architecture, self.shard, plan, plan.batch_size.div_ceil(micro_batch), seed);
        let mut feed = Some(feed.expect("valid"));
        let passes = round.parts.iter().map(|ModulePart { part, .. }| {
            let feed = if *part == 0 { feed.take() } else { None };
            (*part, NativePasses::new(self.pipeline, *part, feed))
        });
        *self.state.lock() = State { passes: passes.collect(), begun: Some(round.number), ..State::default() };
        Ok(())
    }

    fn load(&self, part: usize, weights: &[f32]) -> Result<(), TrainError> {
        self.state.lock().passes.get_mut(&part).expect("it was begun").load(weights, &[])
    }

    fn forward(&self, pass: ModulePass, input: Option<&[f32]>) -> Result<ModuleForward, TrainError> {
        let (stages, state) = (&self.pipeline.cut.stages, &mut *self.state.lock());
        let input = input.map(|values| {
            let shape = stages[pass.part - 1].output_shape(pass.examples);
            Matrix { values: values.to_vec(), shape }
        });
        let passes = state.passes.get_mut(&pass.part).expect("it was begun");
        let forwarded = passes.forward(input)?;
        if pass.part == 0 {
            assert_eq!(forwarded.labels.len(), pass.examples);
            state.labels.push_back(forwarded.labels);
        }
        if pass.part + 1 < stages.len() {
            return Ok(ModuleForward { output: forwarded.output.values, mean_loss: 0.0 });
        }
        let labels = state.labels.pop_front().expect("they were read");
        let scored = passes.score(&forwarded.output, &labels);
        state.slopes.push_back(scored.slope);
        Ok(ModuleForward { output: Vec::new(), mean_loss: scored.loss_sum / labels.len() as f64 })
    }

    fn backward(&self, pass: ModulePass, slope: Option<&[f32]>) -> Result<ModuleBackward, TrainError> {
        let state = &mut *self.state.lock();
        let slope = slope.map_or_else(|| state.slopes.pop_front().expect("it was judged"), <[f32]>::to_vec);
        let mut gradient = Vec::new();
        // With the weights that were loaded last, whichever those of the forward pass were.
        let passes = state.passes.get_mut(&pass.part).expect("it was begun");
        let of_input = passes.backward(slope, false, &mut gradient)?;
        Ok(ModuleBackward { gradient, of_input: of_input.map(|matrix| matrix.values).unwrap_or_default() })
    }
}

fn modules(spec: &ModelSpec) -> Vec<ModuleSpec> {
    let table = Table::of(spec).expect("valid").expect("native");
    let module = |parameters, output_bytes: u64| ModuleSpec {
        parameters,
        output: vec![output_bytes / 4],
        flops: None,
        kept: None,
    };
    table.rows.iter().map(|row| module(row.params, row.cost.output_bytes)).collect()
}

/// A round of the model of `spec` whose passes are computed behind the seam.
fn behind_the_seam(spec: &ModelSpec, ends: &[usize], plan: &TrainSpec, turns: (Schedule, u32)) -> Trained {
    let pipeline = Pipeline::new(spec, ends, 1).expect("valid");
    let (base, shard) = (pipeline.initial(1), shard(spec));
    let trainer = Burn { pipeline: &pipeline, shard: shard.as_ref(), state: Mutex::default() };
    let cut = Cut::of_modules(&modules(spec), ends, &pipeline.architecture.manifest).expect("the same ends");
    assert_eq!(cut.params(), base.len());
    let batches = Batches::new(1, plan, turns.1).expect("valid");
    let starts = [0].into_iter().chain(ends.iter().copied());
    let part = |(part, (start, end)): (usize, (usize, &usize))| ModulePart { part, modules: start..*end };
    let parts = starts.zip(ends).enumerate().map(part).collect();
    let draw = Some(ModuleDraw { seed: 4, plan, micro_batch: batches.micro_batch() });
    trainer.begin(&ModuleRound { number: 81, parts, draw }).expect("begun");
    assert_eq!(trainer.state.lock().begun, Some(81));
    let turns = Turns::new(turns.0, ends.len(), turns.1, plan.local_steps).expect("valid");
    let parts: Vec<_> = (0..ends.len()).map(|part| (part, turns)).collect();
    let mut stages = Stages::of_modules(&cut, &parts, (plan, batches), &trainer, (true, None)).expect("valid");
    for part in 0..ends.len() {
        assert!(stages.begin(&base, &mut |_| Vec::new(), part).expect("the lengths agree").is_empty());
    }
    let control = &mut |_: StepReport| ControlFlow::Continue(());
    let mut steps = Steps { plan, batches, control, losses: Vec::new(), stopped: false };
    run(&mut stages, &mut steps).expect("trains");
    let losses = steps.losses;
    Trained { end: stages.into_weights(), losses, stopped: false }
}

/// On every schedule: also where a backward pass has other weights than its forward pass, and where versions are stashed.
#[test]
fn modules_computed_behind_the_seam_have_the_bits_of_burn() {
    for spec in [mlp(&[20, 16, 12]), cnn()] {
        for schedule in SCHEDULES {
            // Of 10 examples: 3, 3, 3 and 1.
            let (plan, ends) = (plan(3, 10, &SGD), [1, 2, Pipeline::layers(&spec).expect("valid")]);
            let mut expected = trained(&spec, &ends, &plan, (schedule, 4));
            let found = behind_the_seam(&spec, &ends, &plan, (schedule, 4));
            // A mean that is multiplied by its number again.
            for (loss, expected) in found.losses.iter().zip(&mut expected.losses) {
                assert!((loss - *expected).abs() <= f32::EPSILON * expected.abs(), "{loss} {expected}");
                *expected = *loss;
            }
            assert!(found == expected, "{:?} {schedule:?}", spec.kind);
        }
    }
}

/// The parts of a custom model have no labels to hand over, and no part takes any.
#[test]
fn labels_are_refused_where_targets_stay() {
    let (spec, plan) = (mlp(&[12, 11]), plan(1, 8, &SGD));
    let pipeline = Pipeline::new(&spec, &[1, 2, 3], 1).expect("valid");
    let shard = shard(&spec);
    let trainer = Burn { pipeline: &pipeline, shard: shard.as_ref(), state: Mutex::default() };
    let cut = Cut::of_modules(&modules(&spec), &[1, 2, 3], &pipeline.architecture.manifest).expect("the same ends");
    let turns = Turns::new(Schedule::Flush, 3, 2, 1).expect("valid");
    let batches = Batches::new(1, &plan, 2).expect("valid");
    let mut stages = Stages::of_modules(&cut, &[(2, turns)], (&plan, batches), &trainer, (false, None)).expect("valid");
    let refused = stages.deliver(crate::pod::Address { from: 0, to: 2 }, crate::pod::Parcel::Labels(vec![0; 4]));
    assert_eq!(refused, Err(ParcelError::Address { what: "labels", from: 0, to: 2 }));
    assert!(!stages.expects(0) || stages.waiting()[0].input == Missing::Weights);
    let ends =
        Cut::of_modules(&modules(&spec), &[1, 3, 2], &pipeline.architecture.manifest).expect_err("no cut").to_string();
    assert_eq!(ends, "stages end at the layers [1, 3, 2], expected increasing figures, the last one 3");
}
