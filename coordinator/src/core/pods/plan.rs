//! What every pod of a run is formed by, whichever kind it is of.

use anabranch_common::ids::AgentId;
use anabranch_common::pod::cut::Table;
use anabranch_common::spec::{PodSpec, RunSpec};

use super::form::{Candidate, Formed, NoPod, StagesPlan};
use super::member::Member;
use super::replicas::ReplicasPlan;

/// By what members hold.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    Stages(StagesPlan),
    Replicas(ReplicasPlan),
}

impl Plan {
    /// Returns none where the run has no pods, or a model that its pods cannot compute: one without a layer table, or a custom one
    /// for replicas.
    pub(super) fn of(run: &RunSpec) -> Option<Self> {
        // A text that is too long is refused where the configuration is read.
        let spec_digest = run.for_agents().digest().ok()?;
        Some(match run.pod.clone()? {
            PodSpec::Stages(spec) => {
                let table = Table::of(&run.model).ok().flatten()?;
                Self::Stages(StagesPlan::new(run, spec, table, spec_digest))
            }
            PodSpec::Replicas(spec) => {
                let layers = run.model.layers().ok().flatten()?;
                Self::Replicas(ReplicasPlan::new(run, &spec, &layers, spec_digest))
            }
        })
    }

    /// Forms the pod of `owner` with some of the `others`, of which `is_free` says whether they can help now.
    pub(super) fn form(
        &self,
        owner: Candidate<'_>,
        others: &[Candidate<'_>],
        is_free: impl Fn(AgentId, &Member) -> bool,
        now_ms: u64,
    ) -> Result<Formed, NoPod> {
        match self {
            Self::Stages(plan) => {
                let free = others.iter().copied().filter(|(agent, member)| is_free(*agent, member));
                plan.form(owner, &free.collect::<Vec<_>>(), now_ms)
            }
            Self::Replicas(plan) => plan.form(owner, others, is_free, now_ms),
        }
    }
}
