//! The bytes of the fold, as checkpoints keep them: what is known of speeds comes last, and only where leases have sizes
//! of their own. Without them the bytes are what they were before there was such a thing.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

use super::sizing::Sizing;
use super::state::RunState;

macro_rules! fields {
    ($($field:ident),*) => {
        impl Encode for RunState {
            fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                let Self { $($field,)* sizing } = self;
                $($field.encode(encoder)?;)*
                if self.spec.train.target_round_s.is_some() { sizing.encode(encoder) } else { Ok(()) }
            }
        }

        impl<Context> Decode<Context> for RunState {
            fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
                $(let $field = Decode::decode(decoder)?;)*
                let mut state = Self { $($field,)* sizing: Sizing::default() };
                if state.spec.train.target_round_s.is_some() {
                    state.sizing = Sizing::decode(decoder)?;
                }
                Ok(state)
            }
        }
    };
}

fields!(
    run,
    branch,
    spec,
    manifest,
    initial,
    started_at_ms,
    position,
    version,
    buffered,
    agents,
    leases,
    next_lease,
    participation,
    recent,
    totals,
    evaluations,
    paused,
    finished,
    examples,
    buffered_examples
);

bincode::impl_borrow_decode!(RunState);
