//! The one model on its way to each connected agent: an impatient agent gets nothing twice.

use std::collections::BTreeMap;

use anabranch_common::downlink::FetchPurpose;
use anabranch_common::ids::Digest;
use anabranch_common::wire::transfer::{Missing, TransferManifest};

use crate::core::event::PeerId;

/// One sending of a model's chunks; never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DownloadId(pub u64);

#[derive(Debug)]
struct Download {
    id: DownloadId,
    transfer: Digest,
    missing: Missing,
    purpose: FetchPurpose,
}

impl Download {
    /// Whether everything that is asked for is on its way already.
    fn covers(&self, transfer: &TransferManifest, missing: &Missing) -> bool {
        self.transfer == transfer.id()
            && missing.indices(transfer.chunks.len()).all(|index| self.missing.contains(index))
    }
}

/// What is on its way, by connection.
#[derive(Debug, Default)]
pub(super) struct Downloads {
    by_peer: BTreeMap<PeerId, Option<Download>>,
    latest: u64,
}

impl Downloads {
    pub(super) fn connected(&mut self, peer: PeerId) {
        self.by_peer.insert(peer, None);
    }

    pub(super) fn disconnected(&mut self, peer: PeerId) {
        self.by_peer.remove(&peer);
    }

    /// Starts a sending in place of the one before. `None` when these chunks are on their way, or the connection is gone.
    pub(super) fn start(
        &mut self,
        peer: PeerId,
        transfer: &TransferManifest,
        missing: &Missing,
        purpose: FetchPurpose,
    ) -> Option<DownloadId> {
        let current = self.by_peer.get_mut(&peer)?;
        if current.as_ref().is_some_and(|download| download.covers(transfer, missing)) {
            return None;
        }
        self.latest += 1;
        let id = DownloadId(self.latest);
        *current = Some(Download { id, transfer: transfer.id(), missing: missing.clone(), purpose });
        Some(id)
    }

    /// A sending has ended, whole or not. Returns what it was for, unless another one has taken its place.
    pub(super) fn ended(&mut self, peer: PeerId, id: DownloadId) -> Option<FetchPurpose> {
        let current = self.by_peer.get_mut(&peer)?;
        current.take_if(|download| download.id == id).map(|download| download.purpose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId(1);

    /// A model of three chunks, and another one.
    fn models() -> [TransferManifest; 2] {
        let model = |byte| TransferManifest { bytes: 3 << 20, chunks: vec![Digest([byte; 32]); 3] };
        [model(1), model(2)]
    }

    fn start(downloads: &mut Downloads, model: &TransferManifest, missing: &Missing) -> Option<DownloadId> {
        downloads.start(PEER, model, missing, FetchPurpose::Train)
    }

    fn without_the_first() -> Missing {
        let mut rest = Missing::all(3);
        rest.arrived(0);
        rest
    }

    /// An agent on a thin link asks again every `FETCH_RETRY_MS`: nothing of what is on its way is sent twice.
    #[test]
    fn what_is_on_its_way_is_not_sent_again() {
        let ([model, another], all, rest) = (models(), Missing::all(3), without_the_first());
        let mut downloads = Downloads::default();
        assert_eq!(start(&mut downloads, &model, &all), None, "it is not connected");
        downloads.connected(PEER);
        let first = start(&mut downloads, &model, &all).expect("nothing is on its way");
        assert_eq!([&rest, &all].map(|missing| start(&mut downloads, &model, missing)), [None, None]);
        let second = start(&mut downloads, &another, &rest).expect("another version");
        let third = start(&mut downloads, &another, &all).expect("what was left out has to be sent");
        assert!(first != second && second != third);
        assert_eq!(downloads.ended(PEER, second), None, "another one has taken its place");
        assert_eq!(start(&mut downloads, &another, &all), None, "what took its place is on its way");
        assert_eq!(downloads.ended(PEER, third), Some(FetchPurpose::Train));
        start(&mut downloads, &another, &all).expect("it has ended, and what is asked for now has not come");
        downloads.disconnected(PEER);
        assert_eq!(start(&mut downloads, &model, &all), None);
    }
}
