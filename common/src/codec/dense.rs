//! Dense planes.
use super::{Codec, CodecId, DecodeError, Delta, EncodeError};
use crate::manifest::ModelManifest;
/// f32 planes.
#[derive(Debug, Clone, Copy)]
pub struct Planes32;
/// bf16 planes.
#[derive(Debug, Clone, Copy)]
pub struct Planes16;
impl Planes32 {
    /// Its byte.
    pub const ID: CodecId = CodecId(0);
}
impl Planes16 {
    /// Its byte.
    pub const ID: CodecId = CodecId(1);
}
macro_rules! raw {
    ($t:ty) => {
        impl Codec for $t {
            fn id(&self) -> CodecId {
                Self::ID
            }
            fn lossless(&self) -> bool {
                true
            }
            fn encode(&self, _: &ModelManifest, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
                Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            fn decode(&self, _: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
                Ok(Delta::Dense(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
            }
        }
    };
}
raw!(Planes32);
raw!(Planes16);
