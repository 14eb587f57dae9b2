//! The product's maths of one member, on a thread that runs only while the world waits for it.
//!
//! ```text
//!  world ── Answer ──► thread: Maths, LinkedPods, train_owned or serve, a Wire   (the product's code but for the last)
//!        ◄── Turn ────   as far as it comes without a link, a parcel or a delivery that it does not have
//! ```
//! One of both runs at a time, so that nothing depends on the system's scheduler.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anabranch_agent::encode::FeedbackSource;
use anabranch_agent::node::MathsJob;
use anabranch_agent::pod::{Address, Attempt, MemberWire, OpenLinks, Parcel, Stop, Wire, WireError};
use anabranch_agent::session::event::{Event, FeedbackState};
use anabranch_agent::shard::Examples;
use anabranch_agent::train::native::replicas::ReplicaMemory;
use anabranch_agent::worker::{LinkedPods, Maths, MathsSetup, Shards, StopSignal};
use anabranch_common::ids::{AgentId, BranchId};
use anabranch_common::update::MemoryMark;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::sim::panic_text;

/// Turns and answers that are on their way: each side waits for the other.
const ON_THE_WAY: usize = 1;

/// What a member cannot go on without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Links with its neighbours.
    Links,
    /// A parcel, or the loss of a member.
    Parcel,
    /// The arrival of everything that it has sent.
    Delivery,
}

/// What the world says to that.
#[derive(Debug)]
pub(super) enum Answer {
    /// The links are there, or everything has arrived.
    Granted,
    /// A parcel has come.
    Parcel(Address, Parcel),
    /// Nothing comes of it.
    Failed(WireError),
}

/// How far a member has come.
#[derive(Debug)]
pub(super) enum Turn {
    /// It cannot go on.
    Asks { what: Ask, sent: Vec<(Address, Parcel)> },
    /// Its job is done.
    Done { event: Box<Event>, sent: Vec<(Address, Parcel)>, left_in_order: bool },
    /// Its code has panicked.
    Panicked(String),
}

impl Turn {
    /// Returns how many parcels it has sent.
    pub(super) fn parcels(&self) -> usize {
        match self {
            Self::Asks { sent, .. } | Self::Done { sent, .. } => sent.len(),
            Self::Panicked(_) => 0,
        }
    }
}

/// A member at work. Dropping it ends its thread, as the death of its process would.
#[derive(Debug)]
pub(super) struct Worker {
    answers: Option<SyncSender<Answer>>,
    turns: Receiver<Turn>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<StopSignal>,
}

impl Worker {
    /// Begins a job of `me`, who trains on `shard` if it holds one and has `held` this of the model, and runs it as far as it
    /// comes.
    pub(super) fn start(
        me: AgentId,
        shard: Option<Examples>,
        (state, held): (FeedbackState, Vec<f32>),
        job: MathsJob,
    ) -> (Self, Turn) {
        let (answers, answered) = sync_channel(ON_THE_WAY);
        let (turns, turned) = sync_channel(ON_THE_WAY);
        let stop = Arc::new(StopSignal::default());
        let port = Arc::new(Mutex::new(Port { turns, answers: answered, sent: Vec::new(), left_in_order: false }));
        let (given, feedback) = (Arc::clone(&stop), Arc::new(SimFeedback { state, held }));
        let work = move || {
            let turn = match catch_unwind(AssertUnwindSafe(|| maths(me, shard, (feedback, given), &port).work(job))) {
                Ok(event) => {
                    let mut port = port.lock();
                    let (event, sent) = (Box::new(event), std::mem::take(&mut port.sent));
                    Turn::Done { event, sent, left_in_order: port.left_in_order }
                }
                Err(panic) => Turn::Panicked(panic_text(&*panic)),
            };
            // A world that is gone does not listen.
            let _ = port.lock().turns.send(turn);
        };
        let thread = std::thread::spawn(work);
        let worker = Self { answers: Some(answers), turns: turned, thread: Some(thread), stop };
        let turn = worker.turn();
        (worker, turn)
    }

    /// Answers what it has asked for, and runs it as far as it comes.
    pub(super) fn go_on(&self, answer: Answer) -> Turn {
        if let Some(answers) = &self.answers {
            // A thread that has ended is noticed below.
            let _ = answers.send(answer);
        }
        self.turn()
    }

    /// Asks it to stop, at its next step or wherever it waits.
    pub(super) fn stop(&self) {
        self.stop.set(true);
    }

    fn turn(&self) -> Turn {
        self.turns.recv().unwrap_or_else(|_| Turn::Panicked("the thread of a member is gone".to_owned()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.answers = None;
        if let Some(thread) = self.thread.take() {
            // Its panics are turns.
            let _ = thread.join();
        }
    }
}

fn maths(
    me: AgentId,
    shard: Option<Examples>,
    (feedback, stop): (Arc<SimFeedback>, Arc<StopSignal>),
    port: &Arc<Mutex<Port>>,
) -> Maths {
    let links = Arc::new(SimLinks(Arc::clone(port)));
    let shards = Shards { train: shard.map(|shard| Box::new(shard) as _), eval: None };
    let factory = Box::new(|_: &_| unreachable!("the round of a pod takes no trainer"));
    let pods = Some(Box::new(LinkedPods::new(links, me, 1, ReplicaMemory::of_process(None))) as _);
    // Nobody listens to how a round goes on: that follows the real clock.
    let (progress, _) = mpsc::channel(1);
    Maths::new(MathsSetup { pods, stop, feedback: Some(feedback), ..MathsSetup::new(factory, shards) }, progress)
}

/// The ledger's feedback state as it was when the job began. It does not change before that is over: an owner asks for its next
/// round when the update before is decided.
#[derive(Debug)]
struct SimFeedback {
    state: FeedbackState,
    held: Vec<f32>,
}

impl FeedbackSource for SimFeedback {
    fn current(&self) -> FeedbackState {
        self.state
    }

    fn fresh(&self) -> FeedbackState {
        unreachable!("members of a pod number no states")
    }

    fn fetch(&self) -> Option<(FeedbackState, Vec<f32>)> {
        Some((self.state, self.held.clone()))
    }

    fn held(&self, _: BranchId, _: Option<MemoryMark>, range: Range<usize>) -> Option<Vec<f32>> {
        self.held.get(range).map(<[f32]>::to_vec)
    }
}

/// Where the thread meets the world.
#[derive(Debug)]
struct Port {
    turns: SyncSender<Turn>,
    answers: Receiver<Answer>,
    sent: Vec<(Address, Parcel)>,
    left_in_order: bool,
}

impl Port {
    fn ask(&mut self, what: Ask) -> Answer {
        let sent = std::mem::take(&mut self.sent);
        let told = self.turns.send(Turn::Asks { what, sent }).ok();
        told.and_then(|()| self.answers.recv().ok()).unwrap_or(Answer::Failed(WireError::Over))
    }

    fn granted(&mut self, what: Ask) -> Result<(), WireError> {
        match self.ask(what) {
            Answer::Granted => Ok(()),
            Answer::Failed(error) => Err(error),
            Answer::Parcel(..) => unreachable!("{what:?} was asked for"),
        }
    }
}

#[derive(Debug)]
struct SimLinks(Arc<Mutex<Port>>);

impl OpenLinks for SimLinks {
    fn open(&self, _attempt: Attempt<'_>, _deadline: Duration, _stop: Stop) -> Result<Box<dyn MemberWire>, WireError> {
        self.0.lock().granted(Ask::Links)?;
        Ok(Box::new(SimWire(Arc::clone(&self.0))))
    }
}

#[derive(Debug)]
struct SimWire(Arc<Mutex<Port>>);

impl Wire for SimWire {
    /// There is always room. What is for a member that is lost goes nowhere: its loss is told by [`Self::receive`].
    fn send(&mut self, address: Address, parcel: Parcel) -> Result<(), WireError> {
        self.0.lock().sent.push((address, parcel));
        Ok(())
    }

    fn receive(&mut self) -> Result<(Address, Parcel), WireError> {
        match self.0.lock().ask(Ask::Parcel) {
            Answer::Parcel(address, parcel) => Ok((address, parcel)),
            Answer::Failed(error) => Err(error),
            Answer::Granted => unreachable!("a parcel was asked for"),
        }
    }
}

impl MemberWire for SimWire {
    fn finish(self: Box<Self>) -> Result<(), WireError> {
        let mut port = self.0.lock();
        port.granted(Ask::Delivery)?;
        port.left_in_order = true;
        Ok(())
    }

    fn close(self: Box<Self>) {
        self.0.lock().left_in_order = true;
    }
}
