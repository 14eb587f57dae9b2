//! Identifiers and counters: the bytes of what they wrap.

use crate::codec::CodecId;
use crate::ids::{AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position, RunId, UpdateSeq};
use crate::journal::Chain;

layout! {
    newtype AgentId, BranchId, Digest, Incarnation, RunId;
    newtype Epoch, LeaseId, ModelVersion, Position, UpdateSeq;
    newtype Chain, CodecId;
}
