//! The journal as one line of slots: where each record lies, and a bounded memory of groups.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anabranch_common::ids::Position;
use anabranch_common::limits;

use super::format::Group;
use super::snapshot::{FenceAt, Floor, Place};

/// What is known of the journal.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// From where on it is without gaps.
    pub(super) floor: Floor,
    /// The place of the first record that is not durable.
    pub(super) durable: Place,
    /// Records that are not durable, oldest first.
    pub(super) pending: VecDeque<Vec<u8>>,
    /// Fences, in the order of their slots.
    pub(super) fences: Vec<FenceAt>,
    /// Slots at which groups begin, as far as they are known, and bytes of their objects (0: not known). A listing may have
    /// named one that is gone.
    pub(super) groups: BTreeMap<u64, u64>,
}

impl Line {
    /// The position of the next record.
    pub(super) fn next(&self) -> Position {
        Position(self.durable.position.0 + self.pending.len() as u64)
    }

    /// Returns the records of the next object: at most `limits::OBJECT_GROUP_BYTES`, unless the first alone has more.
    pub(super) fn group(&self) -> Group {
        let (mut records, mut bytes) = (Vec::new(), 0);
        for record in &self.pending {
            bytes += record.len();
            if bytes > limits::OBJECT_GROUP_BYTES && !records.is_empty() {
                break;
            }
            records.push(record.clone());
        }
        Group { first: self.durable.position, bytes_before: self.durable.bytes_before, records }
    }

    /// The group is durable, in an object of so many bytes.
    pub(super) fn advance(&mut self, group: &Group, object_bytes: u64) {
        self.pending.drain(..group.records.len());
        self.groups.insert(self.durable.slot, object_bytes);
        self.durable = Place {
            position: group.end(),
            slot: self.durable.slot + group.records.len() as u64,
            bytes_before: self.durable.bytes_before + group.bytes(),
        };
    }

    /// Returns the slot of a durable record.
    pub(super) fn slot_of(&self, position: Position) -> u64 {
        let fence = self.fences.iter().rev().find(|fence| fence.next <= position);
        fence.map_or(position.0, |fence| fence.slot + 1 + (position.0 - fence.next.0))
    }

    /// Returns the slot behind `slot`, over fences.
    pub(super) fn skip_fences(&self, mut slot: u64) -> u64 {
        while self.fences.iter().any(|fence| fence.slot == slot) {
            slot += 1;
        }
        slot
    }

    /// Bytes of the records that count.
    pub(super) fn live_bytes(&self) -> u64 {
        let pending: u64 = self.pending.iter().map(|record| record.len() as u64).sum();
        (self.durable.bytes_before + pending + self.floor.genesis_bytes).saturating_sub(self.floor.place.bytes_before)
    }
}

/// Groups that were read or written lately, within `limits::OBJECT_CACHE_BYTES`.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// By slot, with the number of the latest use.
    groups: BTreeMap<u64, (Arc<Group>, u64)>,
    bytes: u64,
    uses: u64,
}

impl Memory {
    pub(super) fn get(&mut self, slot: u64) -> Option<Arc<Group>> {
        self.uses += 1;
        let (group, used) = self.groups.get_mut(&slot)?;
        *used = self.uses;
        Some(Arc::clone(group))
    }

    /// Keeps a group, and forgets those that were not used for the longest time.
    pub(super) fn put(&mut self, slot: u64, group: Arc<Group>) {
        self.uses += 1;
        self.bytes += group.bytes();
        if let Some((old, _)) = self.groups.insert(slot, (group, self.uses)) {
            self.bytes -= old.bytes();
        }
        while self.bytes > limits::OBJECT_CACHE_BYTES
            && let Some(slot) = self.groups.iter().min_by_key(|(_, (_, used))| *used).map(|(slot, _)| *slot)
        {
            self.remove(slot);
        }
    }

    pub(super) fn remove(&mut self, slot: u64) {
        if let Some((group, _)) = self.groups.remove(&slot) {
            self.bytes -= group.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_bounded_in_bytes_and_one_record_always_fits() {
        let grouped = |bytes: &[usize]| {
            let pending = bytes.iter().map(|len| vec![0; *len]).collect();
            Line { pending, ..Line::default() }.group().records.len()
        };
        let half = limits::OBJECT_GROUP_BYTES / 2;
        assert_eq!(grouped(&[half, half, 1]), 2);
        assert_eq!(grouped(&[limits::OBJECT_GROUP_BYTES + 1, 1]), 1);
        assert_eq!(grouped(&[1, 1, 1]), 3);
    }

    #[test]
    fn the_memory_of_groups_is_bounded_and_keeps_what_is_used() {
        let mut memory = Memory::default();
        let bytes = usize::try_from(limits::OBJECT_CACHE_BYTES / 4).expect("fits");
        let group = Arc::new(Group { first: Position(0), bytes_before: 0, records: vec![vec![0; bytes]] });
        for slot in 0..4 {
            memory.put(slot, Arc::clone(&group));
        }
        assert!(memory.get(0).is_some());
        memory.put(4, Arc::clone(&group));
        assert!(memory.get(1).is_none(), "it was not used for the longest time");
        assert!(memory.get(0).is_some() && memory.get(4).is_some());
        memory.remove(0);
        assert_eq!(memory.bytes, 3 * group.bytes());
    }

    #[test]
    fn fences_move_slots_on() {
        let fence = |next, slot| FenceAt { next: Position(next), slot };
        let line = Line { fences: vec![fence(0, 0), fence(3, 4), fence(3, 5)], ..Line::default() };
        assert_eq!([0, 2, 3, 5].map(|position| line.slot_of(Position(position))), [1, 3, 6, 8]);
        assert_eq!(line.skip_fences(4), 6);
        assert_eq!(line.skip_fences(2), 2);
    }
}
