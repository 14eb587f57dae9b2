//! What the journal says of one agent.

use std::collections::BTreeMap;

use anabranch_common::ids::{Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position, UpdateSeq};
use anabranch_common::journal::Lease;
use anabranch_common::limits;
use anabranch_common::update::{MemoryMark, RefusalReason, Verdict};

use super::compression::Compression;
use super::sizing::Pace;

/// The verdicts of one incarnation of an agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EpochLog {
    /// Latest verdicts by sequence number, each with the digest of its payload.
    pub verdicts: BTreeMap<UpdateSeq, (Digest, Verdict)>,
    /// Sequence numbers below this were decided; their verdicts are no longer kept.
    pub forgotten_below: UpdateSeq,
}

impl EpochLog {
    pub(super) fn decide(&mut self, seq: UpdateSeq, payload: Digest, verdict: Verdict) {
        self.verdicts.insert(seq, (payload, verdict));
        while self.verdicts.len() > limits::VERDICTS_KEPT {
            if let Some((oldest, _)) = self.verdicts.pop_first() {
                self.forgotten_below = oldest.next();
            }
        }
    }
}

/// What the journal says of one agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentState {
    /// Its name.
    pub name: String,
    /// Whether its certificate was revoked.
    pub revoked: bool,
    /// Its newest incarnation.
    pub epoch: Epoch,
    /// What that incarnation drew for itself.
    pub incarnation: Incarnation,
    /// Verdicts by incarnation, the newest `limits::EPOCHS_KEPT` of them.
    pub epochs: BTreeMap<Epoch, EpochLog>,
    /// Its outstanding lease.
    pub lease: Option<LeaseId>,
    /// Leases by number: the outstanding one, and some that ended without an update. One under which an update was decided
    /// is gone: nothing else is welcome under it.
    pub leases: BTreeMap<LeaseId, Lease>,
    /// How fast it is, where leases have sizes of their own.
    pub pace: Option<Pace>,
    /// How hard its updates are compressed, where that follows its line.
    pub compression: Option<Compression>,
    /// Leases that it was granted.
    pub rounds: u64,
    /// Examples in its training shard.
    pub examples_held: u64,
    /// Examples in its evaluation shard.
    pub eval_examples: u64,
    /// Failed evaluations since its latest one that succeeded.
    pub evaluation_failures: u32,
    /// Version and reason of its latest failed evaluation, until one succeeds.
    pub evaluation_problem: Option<(ModelVersion, String)>,
    /// Updates merged.
    pub accepted: u64,
    /// Position of its latest update that was merged or waits for that.
    pub contributed_at: Option<Position>,
    /// The memory of its updates that the merge rule has, where it keeps one.
    pub memory: MemoryMark,
    /// Updates refused, by reason.
    pub refused: BTreeMap<RefusalReason, u64>,
    /// Payload bytes of its accepted updates.
    pub uplink_bytes: u64,
    /// Staleness of its latest accepted update.
    pub staleness: Option<u64>,
    /// Training loss of its latest accepted update.
    pub train_loss: Option<f32>,
    /// Examples a second of its latest accepted update.
    pub examples_per_s: f64,
    /// Models sent to it to train from.
    pub models_sent: u64,
    /// Payload bytes of these models.
    pub downlink_bytes: u64,
    /// Payload bytes of models sent to it to be evaluated.
    pub evaluation_downlink_bytes: u64,
}

impl AgentState {
    /// Forgets the ended leases whose base is older than `oldest`, and of the others all but the newest. Leases that come to
    /// nothing are cheap to ask for.
    pub(super) fn forget_ended_leases(&mut self, oldest: ModelVersion) {
        let outstanding = self.lease;
        self.leases.retain(|id, lease| Some(*id) == outstanding || lease.base_version >= oldest);
        let ended: Vec<LeaseId> = self.leases.keys().copied().filter(|id| Some(*id) != outstanding).collect();
        for lease in ended.iter().take(ended.len().saturating_sub(limits::ENDED_LEASES_KEPT)) {
            self.leases.remove(lease);
        }
    }
}
