//! A lease and a plan to build others from: a new field of either touches no other test.

use anabranch_common::codec::CodecSpec;
use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, LeaseId, ModelVersion};
use anabranch_common::journal::{Lease, Plan};

/// One step at the full learning rate.
pub const PLAN: Plan = Plan {
    local_steps: 1,
    lr_factor: 1.0,
    round: 0,
    progress: None,
    weight: 1.0,
    base_dot: false,
    codec: CodecSpec::F32,
    residual_ratio: false,
    memory: None,
};

/// Returns a lease on version 0 of `branch`, in the first epoch of `agent`, with [`PLAN`].
#[must_use]
pub fn lease(id: LeaseId, agent: AgentId, branch: BranchId) -> Lease {
    Lease {
        id,
        agent,
        epoch: Epoch(1),
        branch,
        base_version: ModelVersion(0),
        base_digest: Digest::default(),
        seed: 0,
        expires_at_ms: 0,
        plan: PLAN,
    }
}
