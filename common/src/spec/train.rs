//! The bytes of `[train]`, and the bounds of a lease's size.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

use super::{OptimizerSpec, RunSpec, TrainSpec};

/// A sized lease has at most this many times `local_steps`, where `max_local_steps` says nothing.
pub const SIZED_STEPS: u32 = 16;
/// Bit of the last byte: the optimizer's state is kept.
const KEEPS: u8 = 1;
/// Bit of the last byte: how leases are sized follows.
const SIZED: u8 = 2;

impl TrainSpec {
    /// Most steps of a lease.
    #[must_use]
    pub fn most_steps(&self) -> u32 {
        let most = match self.target_round_s {
            Some(_) => self.max_local_steps.unwrap_or(self.local_steps.saturating_mul(SIZED_STEPS)),
            None => self.local_steps,
        };
        most.max(1)
    }
}

impl RunSpec {
    /// What agents are told: how leases are sized is the coordinator's alone.
    #[must_use]
    pub fn for_agents(&self) -> Self {
        let train = TrainSpec { target_round_s: None, max_local_steps: None, ..self.train.clone() };
        Self { train, ..self.clone() }
    }
}

/// How leases are sized comes last, and only where they are: without it the bytes are what they were before there was
/// such a thing, and a build that does not know it refuses the last byte.
impl Encode for TrainSpec {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.local_steps.encode(encoder)?;
        self.batch_size.encode(encoder)?;
        self.optimizer.encode(encoder)?;
        let keeps = if self.keep_optimizer_state { KEEPS } else { 0 };
        let Some(target_round_s) = self.target_round_s else { return keeps.encode(encoder) };
        (keeps | SIZED).encode(encoder)?;
        target_round_s.encode(encoder)?;
        self.max_local_steps.encode(encoder)
    }
}

impl<Context> Decode<Context> for TrainSpec {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let (local_steps, batch_size) = (u32::decode(decoder)?, u32::decode(decoder)?);
        let optimizer = OptimizerSpec::decode(decoder)?;
        let flags = u8::decode(decoder)?;
        if flags & !(KEEPS | SIZED) != 0 {
            return Err(DecodeError::InvalidBooleanValue(flags));
        }
        let (target_round_s, max_local_steps) =
            if flags & SIZED == 0 { (None, None) } else { (Some(f64::decode(decoder)?), Option::decode(decoder)?) };
        let keep_optimizer_state = flags & KEEPS != 0;
        Ok(Self { local_steps, batch_size, optimizer, keep_optimizer_state, target_round_s, max_local_steps })
    }
}

bincode::impl_borrow_decode!(TrainSpec);
