//! Top-k.
use super::{Codec, CodecId, DecodeError, Delta, EncodeError, dense::Planes16};
use crate::manifest::ModelManifest;
/// Top-k.
#[derive(Debug, Clone, Copy)]
pub struct TopK {
    #[expect(dead_code, reason = "first version")]
    fraction: f32,
}
impl TopK {
    /// Its byte.
    pub const ID: CodecId = CodecId(2);
    /// With this share.
    #[must_use]
    pub fn new(fraction: f32) -> Self {
        Self { fraction }
    }
}
impl Codec for TopK {
    fn id(&self) -> CodecId {
        Self::ID
    }
    fn lossless(&self) -> bool {
        false
    }
    fn encode(&self, m: &ModelManifest, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
        Planes16.encode(m, values)
    }
    fn decode(&self, m: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
        Planes16.decode(m, bytes)
    }
}
