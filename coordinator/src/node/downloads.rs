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
    /// By transfer: its bytes, and on how many connections it is on its way.
    contents: BTreeMap<Digest, (u64, usize)>,
    bytes: u64,
    latest: u64,
}

/// What a request for chunks leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// These chunks are to be sent.
    New(DownloadId),
    /// They are on their way.
    OnItsWay,
    /// The connection is gone.
    NotConnected,
}

impl Downloads {
    pub(super) fn connected(&mut self, peer: PeerId) {
        self.by_peer.insert(peer, None);
    }

    pub(super) fn disconnected(&mut self, peer: PeerId) {
        let ended = self.by_peer.remove(&peer).flatten();
        self.let_go(ended);
    }

    /// Bytes of what is on its way, each content counted once: it is in memory until it has been sent.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Starts a sending in place of the one before.
    pub(super) fn start(
        &mut self,
        peer: PeerId,
        transfer: &TransferManifest,
        missing: &Missing,
        purpose: FetchPurpose,
    ) -> Sending {
        let Some(current) = self.by_peer.get_mut(&peer) else { return Sending::NotConnected };
        if current.as_ref().is_some_and(|download| download.covers(transfer, missing)) {
            return Sending::OnItsWay;
        }
        self.latest += 1;
        let id = DownloadId(self.latest);
        let before = current.replace(Download { id, transfer: transfer.id(), missing: missing.clone(), purpose });
        let (_, connections) = self.contents.entry(transfer.id()).or_insert_with(|| {
            self.bytes += transfer.bytes;
            (transfer.bytes, 0)
        });
        *connections += 1;
        self.let_go(before);
        Sending::New(id)
    }

    /// A sending has ended, whole or not. Returns what it was for, unless another one has taken its place.
    pub(super) fn ended(&mut self, peer: PeerId, id: DownloadId) -> Option<FetchPurpose> {
        let ended = self.by_peer.get_mut(&peer)?.take_if(|download| download.id == id);
        let purpose = ended.as_ref().map(|download| download.purpose);
        self.let_go(ended);
        purpose
    }

    fn let_go(&mut self, ended: Option<Download>) {
        let Some(Download { transfer, .. }) = ended else { return };
        let Some((bytes, connections)) = self.contents.get_mut(&transfer) else { return };
        *connections -= 1;
        if *connections == 0 {
            self.bytes -= *bytes;
            self.contents.remove(&transfer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId(1);

    /// A model of three chunks, and another one.
    fn models() -> [TransferManifest; 2] {
        let model = |byte| TransferManifest { bytes: 3 << 20, chunks: vec![Digest([byte; 32]); 3], sections: vec![] };
        [model(1), model(2)]
    }

    fn start(downloads: &mut Downloads, model: &TransferManifest, missing: &Missing) -> Sending {
        downloads.start(PEER, model, missing, FetchPurpose::Train)
    }

    fn started(downloads: &mut Downloads, model: &TransferManifest, missing: &Missing) -> DownloadId {
        match start(downloads, model, missing) {
            Sending::New(id) => id,
            other => panic!("expected a sending, got {other:?}"),
        }
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
        assert_eq!(start(&mut downloads, &model, &all), Sending::NotConnected);
        downloads.connected(PEER);
        let first = started(&mut downloads, &model, &all);
        assert_eq!([&rest, &all].map(|missing| start(&mut downloads, &model, missing)), [Sending::OnItsWay; 2]);
        let second = started(&mut downloads, &another, &rest);
        let third = started(&mut downloads, &another, &all);
        assert!(first != second && second != third, "another version, and what was left out of it");
        assert_eq!(downloads.ended(PEER, second), None, "another one has taken its place");
        assert_eq!(start(&mut downloads, &another, &all), Sending::OnItsWay, "what took its place");
        assert_eq!(downloads.ended(PEER, third), Some(FetchPurpose::Train));
        started(&mut downloads, &another, &all);
        downloads.disconnected(PEER);
        assert_eq!(start(&mut downloads, &model, &all), Sending::NotConnected);
    }

    #[test]
    fn a_content_counts_once_from_its_first_sending_to_the_end_of_its_last() {
        let ([model, another], all, peers) = (models(), Missing::all(3), [1, 2, 3].map(PeerId));
        let mut downloads = Downloads::default();
        peers.iter().for_each(|peer| downloads.connected(*peer));
        let mut start = |peer: PeerId, what: &TransferManifest| {
            let sending = downloads.start(peer, what, &all, FetchPurpose::Train);
            let Sending::New(id) = sending else { panic!("expected a sending, got {sending:?}") };
            (id, downloads.bytes())
        };
        let (first, bytes) = start(peers[0], &model);
        assert_eq!(bytes, model.bytes);
        assert_eq!(start(peers[1], &model).1, model.bytes, "the same content");
        assert_eq!(start(peers[2], &another).1, 2 * model.bytes);
        assert_eq!(start(peers[1], &another).1, 2 * model.bytes, "the first one still takes the other");
        downloads.ended(peers[0], first);
        assert_eq!(downloads.bytes(), another.bytes);
        downloads.disconnected(peers[1]);
        assert_eq!(downloads.bytes(), another.bytes);
        downloads.disconnected(peers[2]);
        assert_eq!((downloads.bytes(), downloads.contents.len()), (0, 0));
    }
}
