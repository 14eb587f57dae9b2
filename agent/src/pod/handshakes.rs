//! Connections that have not shown a certificate yet: a bounded room in which the newest has the right of way. An honest handshake
//! takes a moment and is through before its turn comes, whatever a flood of half-open ones does.

use std::collections::BTreeMap;

use anabranch_common::limits;
use parking_lot::Mutex;
use tokio::sync::oneshot;

#[derive(Debug, Default)]
pub(super) struct Handshakes(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    pending: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place in the room; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    handshakes: &'a Handshakes,
    number: u64,
    displaced: oneshot::Receiver<()>,
}

impl Handshakes {
    /// Whether an address has to show first that it is its own.
    pub(super) fn is_busy(&self) -> bool {
        self.0.lock().pending.len() >= limits::POD_HANDSHAKES / 2
    }

    /// Takes a place; when there is none left, the oldest.
    pub(super) fn enter(&self) -> Pending<'_> {
        let (end, displaced) = oneshot::channel();
        let mut table = self.0.lock();
        while table.pending.len() >= limits::POD_HANDSHAKES {
            table.pending.pop_first();
        }
        let number = table.next;
        table.next += 1;
        table.pending.insert(number, end);
        Pending { handshakes: self, number, displaced }
    }
}

impl Pending<'_> {
    /// Does `work`; nothing comes of it when the place is lost over it.
    pub(super) async fn hold<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            _ = &mut self.displaced => None,
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.handshakes.0.lock().pending.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_room_loses_its_oldest() {
        let handshakes = Handshakes::default();
        let oldest = handshakes.enter();
        let mut others: Vec<_> = (1..limits::POD_HANDSHAKES).map(|_| handshakes.enter()).collect();
        assert!(handshakes.is_busy());
        let newest = handshakes.enter();
        assert_eq!(oldest.hold(std::future::pending::<()>()).await, None);
        assert_eq!(newest.hold(std::future::ready(7)).await, Some(7));
        assert_eq!(others.pop().expect("many").hold(std::future::ready(8)).await, Some(8));
        drop(others);
        assert!(!handshakes.is_busy());
        assert_eq!(handshakes.0.lock().pending.len(), 0);
    }
}
