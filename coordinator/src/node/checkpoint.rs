//! The checkpointer's jobs: a checkpoint becomes durable, and what it makes superfluous is pruned.

use anabranch_common::ids::ModelVersion;

use super::job::JobError;
use crate::config::Retention;
use crate::core::command::CheckpointOrder;
use crate::core::event::Event;
use crate::merger::ModelState;
use crate::recovery::checkpoint;
use crate::store::Store;

/// How many checkpoints are kept, and how much of the journal.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Checkpoints.
    pub checkpoints: usize,
    /// Records.
    pub retention: Retention,
}

/// A checkpoint that is to be written: the order, and a copy of the model at that moment.
#[derive(Debug)]
pub struct CheckpointJob {
    pub(super) order: CheckpointOrder,
    pub(super) model: ModelState,
}

impl CheckpointJob {
    /// Writes the checkpoint and prunes what it makes superfluous; answered by `Checkpointed`.
    ///
    /// # Errors
    /// The store fails.
    pub fn run(self, store: &dyn Store, keep: Keep) -> Result<Event, JobError> {
        self.store(store)?;
        // The last checkpoint of a run prunes nothing: the version that is the result may be older than it.
        let oldest = match self.order.state.finished {
            Some((_, result)) => result,
            None => checkpoint::prune(store, keep.checkpoints, keep.retention)?.oldest,
        };
        Ok(self.checkpointed(oldest))
    }

    /// Writes the checkpoint and prunes nothing; answered by `Checkpointed`.
    ///
    /// # Errors
    /// The store fails.
    pub fn write(self, store: &dyn Store) -> Result<Event, JobError> {
        self.store(store)?;
        Ok(self.checkpointed(self.order.oldest))
    }

    fn store(&self, store: &dyn Store) -> Result<(), JobError> {
        let order = &self.order;
        checkpoint::write(store, &order.state, order.chain, &self.model, order.at_ms)?;
        Ok(())
    }

    fn checkpointed(&self, oldest: ModelVersion) -> Event {
        Event::Checkpointed { position: self.order.position, version: self.order.state.version, oldest }
    }
}
