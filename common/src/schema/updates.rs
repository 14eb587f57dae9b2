//! Manifests, leases, updates, verdicts, transfers: what several formats hold.

use super::{Layout, Reader, SchemaError, Writer};
use crate::codec::CodecSpec;
use crate::codec::quantize::ValueBits;
use crate::journal::{Lease, LeaseEnd, Plan};
use crate::manifest::{ModelManifest, TensorSpec};
use crate::update::{MemoryMark, RefusalReason, UpdateKey, UpdateMeta, Verdict};
use crate::wire::transfer::{ChunkHeader, Missing, TransferManifest};

layout! {
    newtype MemoryMark;

    struct Lease { id, agent, epoch, branch, base_version, base_digest, seed, expires_at_ms, plan }
    struct Plan { local_steps, lr_factor, round, progress, weight, base_dot, codec, residual_ratio, memory }
    enum LeaseEnd { 0 = Expired, 1 = Returned, 2 = Superseded }

    struct UpdateKey { run, agent, epoch, seq }
    struct UpdateMeta {
        key, branch, lease, base_version, base_digest, codec, payload_bytes, payload_digest, num_examples,
        local_steps, train_loss, compute_ms, base_dot, residual_ratio, memory,
    }
    enum RefusalReason {
        0 = Duplicate, 1 = Stale, 2 = Malformed, 3 = NonFinite, 4 = OverLimit, 5 = UnknownBase, 6 = Revoked,
        7 = NormOutlier, 8 = KeyConflict, 9 = WrongBranch, 10 = Finished, 11 = UnknownMemory,
    }
    enum Verdict {
        0 = Accepted { position, version, weight, staleness },
        1 = Refused { reason },
    }

    struct TransferManifest { bytes, chunks, sections }
    struct Missing { bits }
    // On streams of their own, without an agreed version: from the first release on, this table never changes.
    struct ChunkHeader { transfer, index, session }

    struct TensorSpec { name, shape }
}

/// By the byte of its payloads. A fraction follows if they are sparse.
impl Layout for CodecSpec {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        self.id().write(out)?;
        match self {
            Self::TopK { fraction, .. } => fraction.write(out),
            Self::F32 | Self::Bf16 | Self::Int8 | Self::Int4 => Ok(()),
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        let id = Layout::read(input)?;
        let dense = [Self::F32, Self::Bf16, Self::Int8, Self::Int4].into_iter().find(|spec| spec.id() == id);
        if let Some(spec) = dense {
            return Ok(spec);
        }
        let fraction = f32::read(input)?;
        let mut sparse = ValueBits::ALL.into_iter().map(|bits| Self::TopK { fraction, bits });
        let spec = sparse.find(|spec| spec.id() == id);
        let spec = spec.ok_or_else(|| SchemaError::Malformed(format!("codec {} is not known", id.0)))?;
        spec.validate().map_err(|error| SchemaError::Malformed(error.to_string()))?;
        Ok(spec)
    }
}

impl Layout for ModelManifest {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        (self.tensors().len() as u64).write(out)?;
        self.tensors().iter().try_for_each(|tensor| tensor.write(out))
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        Self::new(Layout::read(input)?).map_err(|error| SchemaError::Malformed(error.to_string()))
    }
}
