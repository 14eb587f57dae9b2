//! The seam of pods: how this agent computes with others, seen from the thread that does the maths.

use std::fmt;
use std::net::SocketAddr;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use anabranch_common::journal::Lease;
use anabranch_common::pod::{PodOffer, PodProblem, PodRound};
use anabranch_common::spec::AgentSpec;

use super::StopSignal;
use crate::session::event::PartContent;
use crate::shard::Shard;
use crate::train::native::pipeline::Contribution;
use crate::train::{ModuleTrainer, StepReport, TrainError};

/// What this agent offers to pods, and where it listens for their members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSetup {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others reach it, if that is not the address on which it listens: `host:port`.
    pub advertise: Option<String>,
    /// The site that it is of: agents of one site form pods of replicas.
    pub site: String,
    /// Memory that it may use, in bytes.
    pub memory_bytes: u64,
    /// How fast it computes, in floating-point operations a second.
    pub flops_per_s: u64,
    /// Threads that it computes with; 0 is one for each core.
    pub threads: usize,
}

impl PodSetup {
    /// Returns the offer of an agent that listens at `bound`.
    #[must_use]
    pub fn offer(&self, bound: SocketAddr) -> PodOffer {
        PodOffer {
            address: self.advertise.clone().unwrap_or_else(|| bound.to_string()),
            memory_bytes: self.memory_bytes,
            flops_per_s: self.flops_per_s,
            site: self.site.clone(),
            at_work: None,
        }
    }
}

/// Computes rounds together with other agents. Driven from the thread that does the maths, one call at a time.
///
/// Once the stop signal is set a call returns [`PodEndedBy::Stopped`] soon (within a second or a step, whichever is longer),
/// whatever it waits for, and the other members hear of it. The signal is cleared before the next call.
pub trait Pods: Send {
    /// Computes this agent's own round with its pod.
    ///
    /// # Errors
    /// See [`PodEndedBy`].
    fn train(&mut self, order: PodTraining<'_>) -> Result<PodTrained, PodEndedBy>;

    /// Computes this agent's part of another agent's round.
    fn serve(&mut self, order: PodServing<'_>) -> PodServed;
}

/// An own round that a pod is to compute.
pub struct PodTraining<'a> {
    /// The lease; it holds the round's seed.
    pub lease: &'a Lease,
    /// Who computes what.
    pub round: &'a PodRound,
    /// The configuration that counts for this round.
    pub spec: &'a AgentSpec,
    /// The whole model to start from.
    pub start: &'a [f32],
    /// Gives what this agent holds of a range of the model from round to round; nothing: an empty vector.
    pub held: &'a mut dyn FnMut(Range<usize>) -> Vec<f32>,
    /// The examples to train on.
    pub shard: &'a dyn Shard,
    /// What computes the modules of a custom model, if this agent's trainer does.
    pub modules: Option<&'a dyn ModuleTrainer>,
    /// Is called after every step, and may end the attempt there.
    pub control: &'a mut dyn FnMut(StepReport) -> ControlFlow<()>,
    /// Ends the attempt wherever it is.
    pub stop: &'a Arc<StopSignal>,
}

/// A part of another agent's round.
#[derive(Debug, Clone, Copy)]
pub struct PodServing<'a> {
    /// Who computes what.
    pub round: &'a PodRound,
    /// The run's configuration with the round's plan applied.
    pub spec: &'a AgentSpec,
    /// What this agent trains on itself, if it has a training shard: replicas do in each other's rounds.
    pub shard: Option<&'a dyn Shard>,
    /// What computes the modules of a custom model, if this agent's trainer does.
    pub modules: Option<&'a dyn ModuleTrainer>,
    /// Ends the attempt wherever it is.
    pub stop: &'a Arc<StopSignal>,
}

impl fmt::Debug for PodTraining<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodTraining").field("lease", &self.lease).field("round", &self.round).finish_non_exhaustive()
    }
}

/// What the round of a pod gave.
#[derive(Debug, Clone, PartialEq)]
pub struct PodTrained {
    /// What the round comes to.
    pub result: PodResult,
    /// Examples seen, repetitions counted.
    pub num_examples: u64,
    /// Steps taken.
    pub steps: u32,
    /// Mean of the steps' losses.
    pub mean_loss: f32,
}

/// What the round of a pod comes to at its owner.
#[derive(Debug, Clone, PartialEq)]
pub enum PodResult {
    /// Of stages: what the members have encoded, layer by layer.
    Encoded(Contribution),
    /// Of replicas: the whole model after the last step. What it differs by is encoded as that of an agent alone.
    Model(Vec<f32>),
}

/// How this agent's part of another agent's round has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct PodServed {
    /// What its parts came to, once all of it was handed to the links.
    pub parts: Vec<PartContent>,
    /// Whether the attempt had come to its end.
    pub ended: Result<(), PodEndedBy>,
}

impl PodServed {
    /// Returns the end of a part that came to nothing.
    #[must_use]
    pub fn failed(by: PodEndedBy) -> Self {
        Self { parts: Vec::new(), ended: Err(by) }
    }
}

/// Why an attempt gave nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum PodEndedBy {
    /// It was stopped as asked.
    Stopped,
    /// A member is missing, or the round cannot be computed by this pod: another attempt may succeed.
    Problem(PodProblem),
    /// The maths failed here.
    Fatal(TrainError),
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::{AgentId, Digest, LeaseId};
    use anabranch_common::pod::{PodMark, PodPart};
    use parking_lot::Mutex;
    use tokio::sync::mpsc;

    use super::*;
    use crate::node::{MathsJob, Start};
    use crate::session::command::Ending;
    use crate::session::event::{Event, FeedbackState};
    use crate::session::tests::{lease, spec};
    use crate::shard::{Examples, Inputs};
    use crate::train::TrainError;
    use crate::worker::{Maths, MathsSetup, Shards};

    const OTHER: AgentId = AgentId([9; 16]);

    /// Ends every attempt as it is told to, after a step; of a round that is not, the payload is what it started from.
    #[derive(Debug, Default)]
    struct Fake {
        ends: Arc<Mutex<Vec<PodEndedBy>>>,
        /// Whether rounds give a model.
        of_replicas: bool,
    }

    impl Pods for Fake {
        fn train(&mut self, order: PodTraining<'_>) -> Result<PodTrained, PodEndedBy> {
            let PodTraining { round, spec, start, held, shard, control, stop, .. } = order;
            assert_eq!((round.mark.lease, spec.train.local_steps, shard.len()), (LeaseId(1), 5, 2));
            let report = StepReport { step: 1, loss: 0.5, examples: 8, micro_batch: None };
            if control(report).is_break() {
                assert!(stop.is_set());
                return Err(PodEndedBy::Stopped);
            }
            match self.ends.lock().pop() {
                Some(end) => Err(end),
                None => {
                    let result = if self.of_replicas {
                        PodResult::Model(start.iter().map(|value| value * 1.5).collect())
                    } else {
                        PodResult::Encoded(Contribution {
                            payload: start.iter().flat_map(|value| value.to_le_bytes()).collect(),
                            layers: vec![(0, 2)],
                            left_out: held(0..2),
                            base_dot: Some(0.5),
                            residual_ratio: None,
                        })
                    };
                    Ok(PodTrained { result, num_examples: 40, steps: 5, mean_loss: 0.5 })
                }
            }
        }

        fn serve(&mut self, order: PodServing<'_>) -> PodServed {
            assert_eq!((order.round.owner, order.shard.map(Shard::len)), (OTHER, Some(2)));
            match self.ends.lock().pop() {
                Some(end) => PodServed::failed(end),
                None => PodServed { parts: parts(), ended: Ok(()) },
            }
        }
    }

    fn parts() -> Vec<PartContent> {
        vec![PartContent { part: 1, payload: Arc::from([7]) }]
    }

    fn round(owner: AgentId) -> Box<PodRound> {
        let mark = PodMark { lease: LeaseId(1), attempt: 2 };
        let parts = vec![PodPart { end: 1, agent: owner }];
        Box::new(PodRound { mark, owner, parts, peers: Vec::new(), plan: lease(1, 0).plan, spec: Digest([0; 32]) })
    }

    fn train() -> MathsJob {
        let start = Start { base: Arc::from([1.0, 2.0]), lead: None };
        let lease = lease(1, 0);
        MathsJob::Train { pod: Some(round(lease.agent)), lease: Box::new(lease), spec: Box::new(spec()), start }
    }

    fn serve() -> MathsJob {
        MathsJob::Serve { round: round(OTHER), spec: Box::new(spec()) }
    }

    /// Maths that compute with others, what the next attempts end by, the last one first, and what asks them to stop.
    struct World {
        maths: Maths,
        ends: Arc<Mutex<Vec<PodEndedBy>>>,
        stop: Arc<StopSignal>,
    }

    fn world(fake: Option<Fake>) -> World {
        // Nobody listens to how a round goes on.
        let (inputs, _) = mpsc::channel(1);
        let shard = Examples::new(Inputs::Floats(vec![0.0; 4]), vec![0, 1], vec![2]).expect("it fits");
        let shards = Shards { train: Some(Box::new(shard)), eval: None };
        let stop = Arc::new(StopSignal::default());
        let ends = fake.as_ref().map(|fake| Arc::clone(&fake.ends)).unwrap_or_default();
        let factory = Box::new(|_: &_| panic!("a pod needs no trainer"));
        let pods = fake.map(|fake| Box::new(fake) as Box<dyn Pods>);
        let setup = MathsSetup { pods, stop: Arc::clone(&stop), ..MathsSetup::new(factory, shards) };
        World { maths: Maths::new(setup, inputs), ends, stop }
    }

    fn problem() -> PodProblem {
        PodProblem { member: Some(OTHER), reason: "it is silent".into() }
    }

    #[test]
    fn a_round_of_a_pod_gives_what_the_pod_has_encoded_and_what_it_went_on_from() {
        let mut world = world(Some(Fake::default()));
        let Event::Trained(outcome) = world.maths.work(train()) else { panic!("it is not trained") };
        let content = outcome.pod.expect("of a pod");
        assert_eq!(
            (&content.payload[..], &content.left_out[..]),
            (&[1.0f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat()[..], &[][..])
        );
        assert_eq!((content.from, content.base_dot), (FeedbackState::EMPTY, Some(0.5)));
        assert_eq!((outcome.delta.len(), outcome.num_examples, outcome.local_steps), (0, 40, 5));
        assert_eq!((outcome.lease, outcome.train_loss), (LeaseId(1), 0.5));
        assert_eq!(world.maths.work(serve()), Event::Served { mark: round(OTHER).mark, problem: None, parts: parts() });
    }

    #[test]
    fn a_round_of_replicas_gives_a_delta_as_that_of_an_agent_alone_does() {
        let mut world = world(Some(Fake { of_replicas: true, ..Fake::default() }));
        let Event::Trained(outcome) = world.maths.work(train()) else { panic!("it is not trained") };
        assert_eq!((&outcome.delta[..], outcome.pod, outcome.encoded), (&[0.5, 1.0][..], None, None));
        assert_eq!((outcome.lease, outcome.num_examples, outcome.local_steps), (LeaseId(1), 40, 5));
    }

    #[test]
    fn every_end_of_an_attempt_is_told_as_what_it_is() {
        let mark = round(OTHER).mark;
        let diverged = || PodEndedBy::Fatal(TrainError::Diverged { step: 3 });
        let broken = || PodEndedBy::Fatal(TrainError::Backend("gone".into()));
        let text = TrainError::Diverged { step: 3 }.to_string();
        let failed = || Event::Failed(Ending::Trainer(TrainError::Backend("gone".into()).to_string()));
        let own = [
            (PodEndedBy::Stopped, Event::TrainingStopped { lease: LeaseId(1) }),
            (PodEndedBy::Problem(problem()), Event::PodFailed { mark, problem: problem() }),
            (diverged(), Event::Discarded { lease: LeaseId(1), problem: text.clone() }),
            (broken(), failed()),
        ];
        let others = [
            (PodEndedBy::Stopped, Event::Served { mark, problem: None, parts: vec![] }),
            (PodEndedBy::Problem(problem()), Event::Served { mark, problem: Some(problem()), parts: vec![] }),
            (
                diverged(),
                Event::Served { mark, problem: Some(PodProblem { member: None, reason: text }), parts: vec![] },
            ),
            (broken(), failed()),
        ];
        let mut world = world(Some(Fake::default()));
        for (end, event) in own {
            world.ends.lock().push(end);
            assert_eq!(world.maths.work(train()), event);
        }
        for (end, event) in others {
            world.ends.lock().push(end);
            assert_eq!(world.maths.work(serve()), event);
        }
    }

    #[test]
    fn a_stop_ends_an_attempt_at_its_next_step() {
        let mut world = world(Some(Fake::default()));
        world.stop.set(true);
        assert_eq!(world.maths.work(train()), Event::TrainingStopped { lease: LeaseId(1) });
        world.stop.set(false);
        assert!(matches!(world.maths.work(train()), Event::Trained(_)), "and not the next one");
    }

    #[test]
    fn an_agent_that_joins_no_pods_says_so() {
        let mut world = world(None);
        let reason = "this agent joins no pods".to_owned();
        let problem = PodProblem { member: None, reason };
        let mark = round(OTHER).mark;
        assert_eq!(world.maths.work(train()), Event::PodFailed { mark, problem: problem.clone() });
        assert_eq!(world.maths.work(serve()), Event::Served { mark, problem: Some(problem), parts: vec![] });
    }
}
