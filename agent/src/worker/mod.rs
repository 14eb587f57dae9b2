//! Threads beside the loop: one does the maths, and one for each run owns its store. They carry out the jobs of the nodes.

mod inputs;
mod killed;
mod linked;
mod maths;
mod pods;
mod replicas;
mod speed;
mod store;
mod thread;

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::node::Unpack;
use crate::session::command::Ending;
use crate::session::event::Event;
use crate::shard::Shard;
use crate::train::{RunPart, TrainError, Trainer};

pub use inputs::Inputs;
pub use killed::{KilledNote, KilledNotes};
pub use linked::LinkedPods;
#[cfg(test)]
pub(crate) use maths::ending;
pub use maths::{Maths, MathsSetup, RunMaths};
pub use pods::{PodEndedBy, PodResult, PodServed, PodServing, PodSetup, PodTrained, PodTraining, Pods};
pub use speed::flops_per_s;
pub use store::StoreThread;
pub use thread::MathsThread;

/// Makes the trainer for a run; the seam for trainers that are not native.
pub type TrainerFactory = Box<dyn Fn(&RunPart) -> Result<Box<dyn Trainer>, TrainError> + Send>;

/// What an agent trains and evaluates on.
#[derive(Debug, Default)]
pub struct Shards {
    /// To train on.
    pub train: Option<Box<dyn Shard>>,
    /// To evaluate on.
    pub eval: Option<Box<dyn Shard>>,
}

/// Artificial slowness, for experiments: workloads with slow machines on one machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// A round takes at least this long.
    pub min_round: Duration,
    /// A round takes this many times as long as its maths.
    pub slow_factor: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { min_round: Duration::ZERO, slow_factor: 1.0 }
    }
}

impl Pace {
    /// How long a round takes whose maths took `maths`.
    fn round(self, maths: Duration) -> Duration {
        let factor = if self.slow_factor.is_finite() { self.slow_factor.clamp(1.0, 1e6) } else { 1.0 };
        maths.mul_f64(factor).max(self.min_round)
    }
}

/// Tells the maths to stop: looked at after each step, and it ends the wait of a slowed round or of a pod's member.
#[derive(Debug, Default)]
pub struct StopSignal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl StopSignal {
    /// Asks for a stop, or takes the request back.
    pub fn set(&self, stopped: bool) {
        *self.stopped.lock() = stopped;
        self.changed.notify_all();
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self.stopped.lock()
    }

    /// Waits, but not longer than until a stop is asked for.
    fn wait(&self, time: Duration) {
        self.changed.wait_while_for(&mut self.stopped.lock(), |stopped| !*stopped, time);
    }
}

/// Runs a job; a panic in it becomes a message. Without this the thread would be gone and the loop would wait for ever.
/// Nobody uses what the job left behind: the process ends over the message.
fn guarded<T>(job: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("a worker panicked: {}", text.as_deref().unwrap_or("it did not say why"))
    })
}

/// Unpacks a model on a thread that may panic.
#[must_use]
pub fn unpack(job: Unpack) -> Event {
    guarded(|| job.run()).unwrap_or_else(|panic| Event::Failed(Ending::Trainer(panic)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use anabranch_common::ids::RunId;
    use anabranch_common::spec::AgentSpec;
    use tokio::sync::mpsc;

    use super::*;
    use crate::node::{Done, Input, MathsJob};

    /// A trainer of the user's may panic; the session must hear of it, or the process hangs.
    #[test]
    fn a_panic_in_the_trainer_is_told_and_the_thread_goes_on_serving() {
        let factory: TrainerFactory = Box::new(|_| panic!("no such device: {}", 7));
        let (events, mut told) = mpsc::channel(4);
        let setup = MathsSetup::new(factory, Shards::default());
        let (run, other) = (RunId([1; 16]), RunId([2; 16]));
        let maths = MathsThread::spawn(run, setup, events).expect("a thread");
        let spec: AgentSpec = AgentSpec::from_toml(crate::session::SPEC_FOR_TESTS).expect("a complete spec");
        for _ in 0..2 {
            assert!(maths.run(run, MathsJob::Prepare(Box::new(spec.clone()))), "the thread is there");
            let text = "a worker panicked: no such device: 7".to_owned();
            let Some(Input::Done(Done::Maths(event))) = told.blocking_recv() else { panic!("the job is not done") };
            assert_eq!(event, Event::Failed(Ending::Trainer(text)));
        }
        // A run that has ended meanwhile is answered too: the device is free for others.
        maths.forget(run);
        for gone in [run, other] {
            assert!(maths.run(gone, MathsJob::Prepare(Box::new(spec.clone()))), "the thread is there");
            let Some(Input::Done(Done::Maths(event))) = told.blocking_recv() else { panic!("the job is not done") };
            assert_eq!(event, Event::Failed(Ending::Trainer("its run is over here".to_owned())));
        }
        drop(maths);
        assert!(told.blocking_recv().is_none(), "the thread has ended");
    }

    #[test]
    fn a_slowed_round_takes_as_long_as_was_asked_for() {
        let maths = Duration::from_millis(100);
        let pace = |min_ms, slow_factor| Pace { min_round: Duration::from_millis(min_ms), slow_factor };
        assert_eq!(Pace::default().round(maths), maths);
        assert_eq!(pace(250, 1.0).round(maths), Duration::from_millis(250));
        assert_eq!(pace(250, 10.0).round(maths), Duration::from_millis(1000));
        assert_eq!(pace(0, 0.1).round(maths), maths, "nothing makes the maths faster");
        assert_eq!(pace(0, f64::NAN).round(maths), maths);
    }

    /// Guards SIGTERM in a slowed round: the wait ends when the stop is asked for, not when the time is over.
    #[test]
    fn a_stop_ends_the_wait_of_a_slowed_round() {
        let stop = Arc::new(StopSignal::default());
        let other = Arc::clone(&stop);
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(600)));
        stop.set(true);
        waiter.join().expect("the wait ends");
        assert!(stop.is_set());
    }
}
