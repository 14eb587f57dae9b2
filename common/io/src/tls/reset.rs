//! How a server that was killed lets go of the connections of its former life.
//!
//! A client cannot know that the process at the other end is gone: it would go on sending until its idle timeout. A
//! server answers packets of connections it does not know with a stateless reset (RFC 9000, section 10.3), which a client
//! believes only if its token is the one that came with the connection. quinn draws the key of these tokens, and of
//! connection ids, at random for each process; here both follow from the server's private key, so that the next
//! process can say that the connection is over, and its agents are back within a second rather than after twenty.

use std::sync::Arc;

use anabranch_common::ids::Digest;
use quinn::EndpointConfig;
use quinn::crypto::{CryptoError, HmacKey};
use quinn_proto::HashedConnectionIdGenerator;

/// Bytes of a token's signature; QUIC uses the first 16.
const SIGNATURE_BYTES: usize = 32;

/// BLAKE3 over key and message: BLAKE3 knows no extension of messages, so that a key in front is enough.
struct ResetKey(Digest);

impl ResetKey {
    fn signature(&self, data: &[u8]) -> Digest {
        Digest::of(&[&self.0.0, data].concat())
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let signature = self.signature(data);
        for (out, byte) in signature_out.iter_mut().zip(signature.0) {
            *out = byte;
        }
    }

    fn signature_len(&self) -> usize {
        SIGNATURE_BYTES
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Every byte is looked at, wherever the first difference is.
        let expected = self.signature(data).0;
        let differences = expected.iter().zip(signature).fold(0, |sum, (one, other)| sum | (one ^ other));
        if signature.len() == SIGNATURE_BYTES && differences == 0 { Ok(()) } else { Err(CryptoError) }
    }
}

/// The settings of an endpoint whose resets are believed by the clients of its former life. `secret` is the server's
/// private key, or anything else that stays and that nobody else knows.
pub(super) fn endpoint_config(secret: &[u8]) -> EndpointConfig {
    let derive = |purpose: &[u8]| Digest::of(&[purpose, secret].concat());
    let ids = derive(b"anabranch connection ids ");
    let ids = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|index| ids.0[index]));
    let mut config = EndpointConfig::new(Arc::new(ResetKey(derive(b"anabranch stateless resets "))));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_depends_on_key_and_message_and_is_checked_whole() {
        let key = ResetKey(Digest::of(b"one"));
        let mut signature = [0; SIGNATURE_BYTES];
        key.sign(b"connection", &mut signature);
        assert!(key.verify(b"connection", &signature).is_ok());
        assert!(key.verify(b"another", &signature).is_err());
        assert!(ResetKey(Digest::of(b"two")).verify(b"connection", &signature).is_err());
        assert!(key.verify(b"connection", &signature[..31]).is_err());
        signature[31] ^= 1;
        assert!(key.verify(b"connection", &signature).is_err());
    }
}
