//! Rounds of replicas over links.

use anabranch_common::pod::PodRound;
use anabranch_common::spec::AgentSpec;

use super::linked::{LinkedPods, ended_by, problem, trained_of};
use super::{PodEndedBy, PodResult, PodServing, PodTrained, PodTraining};
use crate::shard::Shard;
use crate::train::TrainError;
use crate::train::native::pipeline::PipelineError;
use crate::train::native::replicas::{ReplicaTask, serve, train_owned};

impl LinkedPods {
    /// Computes an own round with the other replicas.
    pub(super) fn train_replica(&mut self, order: PodTraining<'_>) -> Result<PodTrained, PodEndedBy> {
        let PodTraining { lease, round, spec, start, shard, control, stop, .. } = order;
        let task = self.replica(round, spec, shard);
        let mut wire = self.open(round, spec, None, stop)?;
        let trained = train_owned(&task, &mut self.memory, start, lease.seed, &mut *wire, control).map_err(ended_by)?;
        if trained.stopped {
            return Err(PodEndedBy::Stopped);
        }
        // Every member has ended, and who has waits for no parcel.
        wire.close();
        Ok(trained_of(PodResult::Model(trained.end), &trained.losses, &spec.train, round.members().len()))
    }

    /// Computes a replica of another agent's round, on this agent's own shard.
    pub(super) fn serve_replica(&mut self, order: PodServing<'_>) -> Result<(), PodEndedBy> {
        let PodServing { round, spec, shard, stop, .. } = order;
        let me = self.me;
        let own = |reason: &str| problem(Some(me), reason);
        let shard =
            shard.ok_or_else(|| own("a replica trains on data of its own, and this agent has no training shard"))?;
        let task = self.replica(round, spec, shard);
        let mut wire = self.open(round, spec, None, stop)?;
        serve(&task, &mut self.memory, &mut *wire).map_err(|error| match error {
            // Another agent of the site may have the room.
            PipelineError::Train(error @ TrainError::Memory { .. }) => own(&error.to_string()),
            error => ended_by(error),
        })?;
        wire.finish().map_err(|error| ended_by(error.into()))
    }

    fn replica<'a>(&self, round: &'a PodRound, spec: &'a AgentSpec, shard: &'a dyn Shard) -> ReplicaTask<'a> {
        ReplicaTask { model: &spec.model, plan: &spec.train, round, me: self.me, shard, threads: self.threads }
    }
}
