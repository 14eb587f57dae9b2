//! Payloads that were banked a moment ago: they are sent from memory, not read back from the disk.

use std::collections::VecDeque;
use std::sync::Arc;

use anabranch_common::limits;
use anabranch_common::update::UpdateKey;
use parking_lot::Mutex;

/// The newest payloads of the outbox. The ledger adds and removes them; senders take copies of the pointer.
#[derive(Debug)]
pub struct FreshPayloads {
    most_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Oldest first.
    payloads: VecDeque<(UpdateKey, Arc<[u8]>)>,
    bytes: usize,
}

impl Default for FreshPayloads {
    fn default() -> Self {
        Self::of_at_most(limits::FRESH_PAYLOAD_BYTES)
    }
}

impl FreshPayloads {
    fn of_at_most(most_bytes: usize) -> Self {
        Self { most_bytes, kept: Mutex::default() }
    }

    /// Returns the payload of an update, if it is in memory.
    #[must_use]
    pub fn get(&self, key: UpdateKey) -> Option<Arc<[u8]>> {
        self.kept.lock().payloads.iter().find(|(kept, _)| *kept == key).map(|(_, payload)| Arc::clone(payload))
    }

    /// Adds a payload that is durable. The oldest ones make room for it; one that is longer than the bound is not kept.
    pub(super) fn add(&self, key: UpdateKey, payload: Vec<u8>) {
        if payload.len() > self.most_bytes {
            return;
        }
        // The copy is made before the lock, which senders wait for.
        let payload: Arc<[u8]> = payload.into();
        let mut kept = self.kept.lock();
        kept.bytes += payload.len();
        while kept.bytes > self.most_bytes
            && let Some((_, oldest)) = kept.payloads.pop_front()
        {
            kept.bytes -= oldest.len();
        }
        kept.payloads.push_back((key, payload));
    }

    /// Removes the payload of an update that has left the outbox.
    pub(super) fn remove(&self, key: UpdateKey) {
        let mut kept = self.kept.lock();
        if let Some(index) = kept.payloads.iter().position(|(kept, _)| *kept == key)
            && let Some((_, payload)) = kept.payloads.remove(index)
        {
            kept.bytes -= payload.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::{AgentId, Epoch, RunId, UpdateSeq};

    use super::*;

    fn key(seq: u64) -> UpdateKey {
        UpdateKey { run: RunId([1; 16]), agent: AgentId([2; 16]), epoch: Epoch(1), seq: UpdateSeq(seq) }
    }

    #[test]
    fn the_newest_payloads_are_in_memory_up_to_the_bound() {
        let fresh = FreshPayloads::of_at_most(10);
        let kept = |seqs: std::ops::Range<u64>| seqs.filter(|seq| fresh.get(key(*seq)).is_some()).collect::<Vec<_>>();
        (0..3).for_each(|seq| fresh.add(key(seq), vec![0; 4]));
        assert_eq!(kept(0..3), [1, 2], "the oldest made room");
        fresh.add(key(3), vec![0; 11]);
        assert_eq!(kept(0..4), [1, 2], "it is longer than the bound");
        fresh.remove(key(1));
        fresh.remove(key(1));
        fresh.add(key(4), vec![4; 6]);
        assert_eq!(kept(0..5), [2, 4], "what was removed left room");
        assert_eq!(fresh.get(key(4)).as_deref(), Some(&[4; 6][..]));
        fresh.add(key(5), vec![0; 10]);
        assert_eq!(kept(0..6), [5]);
    }
}
