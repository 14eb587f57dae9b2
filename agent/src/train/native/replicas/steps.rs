//! The steps of a round at one member. A thread beside the maths, the carrier, sums the gradients of the stages that are there over
//! the ring, one after the other, while those of earlier stages are computed.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::super::pipeline::{PipelineError, Trained};
use super::super::pull_back;
use super::ReplicaTask;
use super::exchange::Exchange;
use super::gradients::{Batch, Staged, Sums};
use crate::shard::draw::{Draw, Purpose};
use crate::train::optimizer::Optimizer;
use crate::train::{StepReport, TrainError};

/// Is told of each step, and shown the model after it; may end the round there.
pub(super) type Watch<'a> = dyn FnMut(StepReport, &[f32]) -> ControlFlow<()> + 'a;

/// What stays the same in all steps.
pub(super) struct Steps<'a> {
    pub(super) staged: &'a Staged,
    pub(super) task: &'a ReplicaTask<'a>,
    pub(super) members: usize,
    /// Examples that are computed at once.
    pub(super) micro_batch: usize,
}

/// The ends of the channels to the carrier: gradients of stages, and their sums in the same order.
struct Carrier {
    gradients: SyncSender<Vec<f32>>,
    sums: Receiver<Vec<f32>>,
}

/// Why the maths have ended.
enum Ended {
    Train(TrainError),
    /// The carrier has ended before, and knows why.
    Carrier,
}

impl From<TrainError> for Ended {
    fn from(error: TrainError) -> Self {
        Self::Train(error)
    }
}

impl Steps<'_> {
    /// Takes the steps of the plan from `base`, with batches that `seed` draws. `watch` is shown the model after each step.
    pub(super) fn train(
        &self,
        base: &[f32],
        seed: u64,
        exchange: &mut Exchange<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<Trained, PipelineError> {
        thread::scope(|scope| {
            let stages = self.staged.stages();
            let (gradients, to_sum) = sync_channel(stages);
            let (summed, sums) = sync_channel(stages);
            let carry = move || carry(exchange, &to_sum, &summed);
            let carrying = thread::Builder::new().name("ring".to_owned()).spawn_scoped(scope, carry);
            let carrying = carrying.map_err(|error| TrainError::Backend(error.to_string()))?;
            // The carrier ends when the maths drop their ends of the channels.
            let trained = self.compute(base, seed, Carrier { gradients, sums }, watch);
            let carried = carrying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match trained {
                Ok(trained) => carried.map(|()| trained),
                Err(Ended::Train(error)) => Err(error.into()),
                Err(Ended::Carrier) => {
                    carried?;
                    Err(TrainError::Backend("the carrier of gradients has ended".to_owned()).into())
                }
            }
        })
    }

    fn compute(&self, base: &[f32], seed: u64, carrier: Carrier, watch: &mut Watch<'_>) -> Result<Trained, Ended> {
        let Self { staged, task, members, micro_batch } = self;
        let (plan, shard) = (task.plan, task.shard);
        let mut optimizer = Optimizer::new(&plan.optimizer, base.len())?;
        let mut draw = Draw::new(seed, Purpose::Batches);
        let (count, _) = staged.extent(shard);
        let batch_size = super::super::gpt::to_usize(plan.batch_size);
        let joined = batch_size * members;
        let mut reached = Trained { end: base.to_vec(), losses: Vec::new(), stopped: false };
        let (mut sums, mut gradient) = (Sums::default(), vec![0.0; base.len()]);
        for step in 1..=plan.local_steps {
            let indices: Vec<usize> = (0..batch_size).map(|_| draw.below(count)).collect();
            let batch = Batch { shard, indices: &indices, micro_batch: *micro_batch, joined };
            // A carrier that has ended is noticed below.
            staged.backward(&reached.end, batch, &mut sums, |_, sum| _ = carrier.gradients.send(sum));
            let mut loss = f32::NAN;
            for stage in (0..staged.stages()).rev() {
                let sum = carrier.sums.recv().map_err(|_| Ended::Carrier)?;
                loss = staged.place(stage, &sum, &mut gradient).unwrap_or(loss);
                sums.give_back(stage, sum);
            }
            // The loss is the joined batch's: every member ends here, or none.
            if !loss.is_finite() {
                return Err(TrainError::Diverged { step }.into());
            }
            pull_back(plan.proximal_mu, &mut gradient, &reached.end, base);
            optimizer.step(&mut reached.end, &gradient);
            reached.losses.push(loss);
            let report = StepReport {
                step,
                loss,
                examples: u32::try_from(joined).unwrap_or(u32::MAX),
                micro_batch: u32::try_from(*micro_batch).ok(),
            };
            if watch(report, &reached.end).is_break() && step < plan.local_steps {
                reached.stopped = true;
                return Ok(reached);
            }
        }
        // ReLU and the maximum can hide a NaN from the loss.
        if !reached.end.iter().all(|value| value.is_finite()) {
            return Err(TrainError::Diverged { step: plan.local_steps }.into());
        }
        Ok(reached)
    }
}

/// Sums the gradients of stages in the order in which they come.
fn carry(
    exchange: &mut Exchange<'_>,
    gradients: &Receiver<Vec<f32>>,
    sums: &SyncSender<Vec<f32>>,
) -> Result<(), PipelineError> {
    while let Ok(gradient) = gradients.recv() {
        // Maths that have ended need no sums.
        if sums.send(exchange.sum(gradient)?).is_err() {
            break;
        }
    }
    Ok(())
}
