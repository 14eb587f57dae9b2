//! The thread that owns the store.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anabranch_common::ids::{AgentId, BranchId, RunId};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::UpdateKey;
use anabranch_io::durable::StorageError;
use tokio::sync::{mpsc, oneshot};

use super::guarded;
use crate::encode::{self, BankError, FeedbackSource, States};
use crate::session::command::{Bank, Ending, Settlement};
use crate::session::event::{Event, FeedbackState};
use crate::store::{FreshPayloads, Ledger};

/// Work for the store's thread.
#[derive(Debug)]
pub enum StoreJob {
    /// See `Command::Bank`.
    Bank {
        /// What to store.
        bank: Box<Bank>,
        /// The model's tensors.
        manifest: Arc<ModelManifest>,
    },
    /// See `Command::Settle`.
    Settle {
        /// Which update.
        key: UpdateKey,
        /// What becomes of its content.
        content: Settlement,
    },
    /// See `Command::AdoptBranch`.
    Adopt(BranchId),
    /// Reads the payload of an update, if it is still there.
    Read {
        /// Which update.
        key: UpdateKey,
        /// Where to put it.
        reply: oneshot::Sender<Option<Vec<u8>>>,
    },
    /// The feedback state.
    Residual {
        /// Where to put it.
        reply: oneshot::Sender<(FeedbackState, Vec<f32>)>,
    },
    /// No more jobs.
    End,
}

/// The store's thread, and the way to it.
#[derive(Debug)]
pub struct StoreThread {
    jobs: SyncSender<StoreJob>,
    states: Arc<States>,
    fresh: Arc<FreshPayloads>,
    thread: JoinHandle<()>,
}

impl StoreThread {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn(ledger: Ledger, run: RunId, agent: AgentId, events: mpsc::Sender<Event>) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(limits::AGENT_JOBS);
        let (states, fresh) = (ledger.states(), ledger.fresh());
        let worker = StoreWorker { ledger, run, agent, events };
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || worker.run(&queue))?;
        Ok(Self { jobs, states, fresh, thread })
    }

    /// The way to it.
    #[must_use]
    pub fn jobs(&self) -> SyncSender<StoreJob> {
        self.jobs.clone()
    }

    /// The payloads of the outbox.
    #[must_use]
    pub fn payloads(&self) -> Payloads {
        Payloads { fresh: Arc::clone(&self.fresh), jobs: self.jobs.clone() }
    }

    /// The feedback state, for encoders elsewhere.
    #[must_use]
    pub fn feedback(&self) -> Arc<dyn FeedbackSource> {
        Arc::new(Feedback { states: Arc::clone(&self.states), jobs: self.jobs.clone() })
    }

    /// How many updates were taken as their trainer had encoded them.
    #[must_use]
    pub fn encoded_there(&self) -> u64 {
        self.states.encoded_there()
    }

    /// Lets it finish what it was given, and closes the store.
    pub fn finish(self) {
        // One that has ended by itself needs no word.
        let _ = self.jobs.send(StoreJob::End);
        // A panic there was reported by its own thread, and what it had not finished was never offered to anybody.
        let _ = self.thread.join();
    }
}

/// The payloads of the outbox: those that were banked a moment ago from memory, others from the store.
#[derive(Debug, Clone)]
pub struct Payloads {
    fresh: Arc<FreshPayloads>,
    jobs: SyncSender<StoreJob>,
}

impl Payloads {
    /// Returns the payload of an update. Nothing if the update has left the outbox, or the store's thread has ended.
    pub async fn get(self, key: UpdateKey) -> Option<Arc<[u8]>> {
        let Self { fresh, jobs } = self;
        if let Some(payload) = fresh.get(key) {
            return Some(payload);
        }
        let (reply, payload) = oneshot::channel();
        // The store's queue may be full; only the task that sends waits for room.
        tokio::task::spawn_blocking(move || jobs.send(StoreJob::Read { key, reply })).await.ok()?.ok()?;
        payload.await.ok().flatten().map(Arc::from)
    }
}

#[derive(Debug)]
struct Feedback {
    states: Arc<States>,
    jobs: SyncSender<StoreJob>,
}

impl FeedbackSource for Feedback {
    fn current(&self) -> FeedbackState {
        self.states.current()
    }

    fn fresh(&self) -> FeedbackState {
        self.states.fresh()
    }

    fn fetch(&self) -> Option<(FeedbackState, Vec<f32>)> {
        let (reply, state) = oneshot::channel();
        self.jobs.send(StoreJob::Residual { reply }).ok()?;
        state.blocking_recv().ok()
    }
}

struct StoreWorker {
    ledger: Ledger,
    run: RunId,
    agent: AgentId,
    events: mpsc::Sender<Event>,
}

impl StoreWorker {
    fn run(mut self, queue: &Receiver<StoreJob>) {
        while let Ok(job) = queue.recv()
            && !matches!(job, StoreJob::End)
        {
            let event = match guarded(|| self.work(job)) {
                Ok(done) => done.unwrap_or_else(|error| Some(Event::Failed(storage_ending(&error)))),
                Err(panic) => Some(Event::Failed(Ending::Storage(panic))),
            };
            let has_failed = matches!(event, Some(Event::Failed(_)));
            let is_told = event.is_none_or(|event| self.events.blocking_send(event).is_ok());
            // A job that has failed may have left a residual half taken out: no later job may build on that.
            if has_failed || !is_told {
                return;
            }
        }
    }

    fn work(&mut self, job: StoreJob) -> Result<Option<Event>, StorageError> {
        match job {
            StoreJob::Bank { bank, manifest } => {
                let lease = bank.lease.id;
                match encode::bank(&mut self.ledger, self.run, self.agent, &manifest, *bank) {
                    Ok(entry) => Ok(Some(Event::Banked(entry))),
                    Err(BankError::Storage(error)) => Err(error),
                    Err(error @ BankError::Encode(_)) => {
                        Ok(Some(Event::Discarded { lease, problem: error.to_string() }))
                    }
                }
            }
            StoreJob::Settle { key, content } => {
                self.ledger.settle(key, content)?;
                Ok(Some(Event::Settled { key }))
            }
            StoreJob::Adopt(branch) => {
                self.ledger.adopt(branch)?;
                Ok(None)
            }
            StoreJob::Read { key, reply } => {
                // Nobody waits for it any more when the connection is gone.
                let _ = reply.send(self.ledger.payload(key)?);
                Ok(None)
            }
            StoreJob::Residual { reply } => {
                let left_out = self.ledger.residual().unwrap_or_default().to_vec();
                // The trainer that wanted it is gone.
                let _ = reply.send((self.ledger.states().current(), left_out));
                Ok(None)
            }
            StoreJob::End => Ok(None),
        }
    }
}

fn storage_ending(error: &StorageError) -> Ending {
    Ending::Storage(match error.help() {
        Some(help) => format!("{error}; {help}"),
        None => error.to_string(),
    })
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
