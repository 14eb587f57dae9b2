//! A content to transfer.

use std::sync::Arc;

use anabranch_common::limits;
use anabranch_common::wire::transfer::TransferManifest;

/// Returns a content of three chunks, and its manifest.
#[must_use]
pub fn of_three_chunks() -> (Arc<[u8]>, TransferManifest) {
    let content: Arc<[u8]> = (0..251).cycle().take(2 * limits::CHUNK_BYTES + 77).collect();
    let manifest = TransferManifest::of(&content);
    (content, manifest)
}
