//! The one entry that says what counts: everything else in the store is a blob that it names, or nothing.

use std::collections::BTreeSet;

use anabranch_common::ids::{BranchId, Digest, Epoch, UpdateSeq};
use anabranch_common::limits;
use anabranch_common::schema;
use anabranch_common::update::{MemoryMark, UpdateMeta};

const HEAD_MAGIC: [u8; 4] = *b"ANBL";
const HEAD_PREFIX_BYTES: usize = 10;

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Head {
    pub(super) branch: Option<BranchId>,
    pub(super) counter: Option<(Epoch, UpdateSeq)>,
    pub(super) next_blob: u64,
    pub(super) manifest: Option<StoredBlob>,
    /// What compression has left out, or the memory.
    pub(super) residual: Option<StoredBlob>,
    /// The memory's name, where it is one: without a blob it is 0.
    pub(super) memory: Option<MemoryMark>,
    pub(super) outbox: Vec<StoredUpdate>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StoredBlob {
    pub(super) number: u64,
    pub(super) digest: Digest,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredUpdate {
    pub(super) meta: UpdateMeta,
    pub(super) blob: u64,
}

anabranch_common::layout! {
    struct Head { branch, counter, next_blob, manifest, residual, memory, outbox }
    struct StoredBlob { number, digest }
    struct StoredUpdate { meta, blob }
}

impl Head {
    pub(super) fn blobs(&self) -> BTreeSet<u64> {
        let named = [self.manifest, self.residual].into_iter().flatten().map(|blob| blob.number);
        named.chain(self.outbox.iter().map(|update| update.blob)).collect()
    }
}

pub(super) fn encode(head: &Head) -> Result<Vec<u8>, String> {
    let body = schema::encode(head, limits::STORE_VALUE_BYTES).map_err(|error| error.to_string())?;
    let mut bytes = Vec::with_capacity(HEAD_PREFIX_BYTES + body.len());
    bytes.extend_from_slice(&HEAD_MAGIC);
    bytes.extend_from_slice(&schema::VERSION.to_le_bytes());
    bytes.extend_from_slice(&head_check(schema::VERSION, &body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Head, String> {
    let (prefix, body) = bytes.split_at_checked(HEAD_PREFIX_BYTES).ok_or("the head is cut off")?;
    if prefix[..4] != HEAD_MAGIC {
        return Err("the head does not start with its magic".to_owned());
    }
    let version = u16::from_le_bytes([prefix[4], prefix[5]]);
    if !schema::is_readable(version) {
        return Err(format!("schema version {version}; this program reads {}", schema::readable()));
    }
    if prefix[6..] != head_check(version, body).to_le_bytes() {
        return Err("the head does not match its checksum".to_owned());
    }
    schema::decode_as(version, body, limits::STORE_VALUE_BYTES).map_err(|error| error.to_string())
}

/// The first four bytes of BLAKE3 over the body and, since version 7, the version: a damaged version that is readable too
/// would go unnoticed.
fn head_check(version: u16, body: &[u8]) -> u32 {
    let digest = if version < 7 { Digest::of(body) } else { Digest::of(&[body, &version.to_le_bytes()].concat()) }.0;
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}
