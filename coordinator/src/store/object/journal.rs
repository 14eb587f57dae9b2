//! The journal in a bucket.

use std::sync::Arc;

use anabranch_common::ids::Position;

use super::bucket::{self, Put};
use super::format::{Entry, Group};
use super::snapshot::{FenceAt, Floor, Place};
use super::{ObjectStore, keys, terms};
use crate::store::{Journal, StorageError};

impl Journal for ObjectStore {
    fn append(&self, records: &[(Position, Vec<u8>)]) -> Result<(), StorageError> {
        self.check_running()?;
        let mut line = self.line.lock();
        let mut expected = line.next();
        for (position, _) in records {
            if *position != expected {
                let problem = format!("record {position} where record {expected} comes next");
                return Err(terms::refused(self.bucket.as_ref(), problem));
            }
            expected = expected.next();
        }
        line.pending.extend(records.iter().map(|(_, bytes)| bytes.clone()));
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        let upto = self.line.lock().next();
        let Some(author) = self.author else { return Ok(()) };
        let _one_at_a_time = self.appending.lock();
        self.check_running()?;
        loop {
            let (group, slot) = {
                let line = self.line.lock();
                if line.durable.position >= upto {
                    return Ok(());
                }
                (line.group(), line.durable.slot)
            };
            let (key, object) = (keys::slot(slot), group.to_object(author));
            match bucket::create(self.bucket.as_ref(), &key, &object) {
                Ok(Put::Done) => {}
                Ok(Put::Taken(bytes)) => return Err(self.stop(self.taken(&key, &bytes))),
                Err(error) => return Err(self.stop(error)),
            }
            self.stored(object.len());
            self.line.lock().advance(&group, object.len() as u64);
            self.memory.lock().put(slot, Arc::new(group));
        }
    }

    fn record(&self, position: Position) -> Result<Option<Vec<u8>>, StorageError> {
        {
            let line = self.line.lock();
            let pruned = position > Position(0) && position < line.floor.place.position;
            if pruned || position >= line.next() {
                return Ok(None);
            }
            if let Some(behind) = position.0.checked_sub(line.durable.position.0) {
                return Ok(usize::try_from(behind).ok().and_then(|behind| line.pending.get(behind)).cloned());
            }
        }
        let (_, group) = self.find(position)?;
        let at = usize::try_from(position.0 - group.first.0).ok();
        Ok(at.and_then(|at| group.records.get(at)).cloned())
    }

    fn first_position(&self) -> Result<Option<Position>, StorageError> {
        let line = self.line.lock();
        let floor = line.floor.place.position;
        let first = if floor <= Position(1) { Position(0) } else { floor };
        Ok((line.next() > Position(0)).then_some(first))
    }

    fn last_position(&self) -> Result<Option<Position>, StorageError> {
        Ok(self.line.lock().next().0.checked_sub(1).map(Position))
    }

    fn prune(&self, below: Position) -> Result<u64, StorageError> {
        Journal::sync(self)?;
        let (below, before) = {
            let line = self.line.lock();
            // Of durable records alone: a floor above the end could not be opened.
            let below = below.min(Position(line.durable.position.0.saturating_sub(1)));
            (below, line.floor.place.position.max(Position(1)))
        };
        if below <= before {
            return Ok(0);
        }
        self.check_running()?;
        let (slot, group) = self.find(below)?;
        let place = Place { position: below, slot, bytes_before: group.bytes_below(below) };
        self.set_floor(place)?;
        Ok(below.0 - before.0)
    }

    fn skip_to(&self, position: Position) -> Result<(), StorageError> {
        let refused = |problem| Err(terms::refused(self.bucket.as_ref(), problem));
        if self.line.lock().next() != Position(1) || position < Position(1) {
            return refused(format!("only behind record 0 alone can record {position} come next"));
        }
        Journal::sync(self)?;
        if self.author.is_none() {
            return refused("a copy cannot be filled".to_owned());
        }
        if position == Position(1) {
            return Ok(());
        }
        let (_, genesis) = self.find(Position(0))?;
        {
            let mut line = self.line.lock();
            // As if there were a fence before it. The next snapshot says so.
            let slot = line.durable.slot - 1;
            line.fences.push(FenceAt { next: position, slot });
            line.durable.position = position;
            line.floor = Floor { place: line.durable, genesis_bytes: genesis.bytes() };
        }
        self.book.lock().change();
        self.commit()
    }
}

impl ObjectStore {
    /// Returns the group that holds a durable record, and its slot.
    fn find(&self, position: Position) -> Result<(u64, Arc<Group>), StorageError> {
        let wanted = self.line.lock().slot_of(position);
        let mut slot = self.start_below(wanted, position);
        loop {
            let Some(group) = self.group(slot)? else {
                // A listing has named what is gone, or a group is missing.
                if self.line.lock().groups.remove(&slot).is_none() {
                    let what = format!("is missing, which holds record {position} or leads to it");
                    return Err(bucket::damaged(self.bucket.as_ref(), &keys::slot(slot), &what));
                }
                slot = self.start_below(wanted, position);
                continue;
            };
            let line = self.line.lock();
            if position < group.end() {
                return Ok((slot, group));
            }
            slot = line.skip_fences(slot + group.records.len() as u64);
            if slot > wanted {
                let what = "leads past a record that should be in it";
                return Err(bucket::damaged(self.bucket.as_ref(), &keys::slot(slot), what));
            }
        }
    }

    /// Returns the slot of a group at or before `wanted` from which a record can be reached.
    fn start_below(&self, wanted: u64, position: Position) -> u64 {
        let line = self.line.lock();
        let genesis = line.slot_of(Position(0));
        let lowest = if position < line.floor.place.position || line.floor == Floor::default() {
            genesis
        } else {
            line.floor.place.slot
        };
        line.groups.range(lowest..=wanted).next_back().map_or(lowest, |(slot, _)| *slot)
    }

    /// Reads the group at a slot; none where there is no object.
    fn group(&self, slot: u64) -> Result<Option<Arc<Group>>, StorageError> {
        if let Some(group) = self.memory.lock().get(slot) {
            return Ok(Some(group));
        }
        let key = keys::slot(slot);
        let Some(bytes) = bucket::get(self.bucket.as_ref(), &key)? else { return Ok(None) };
        match Entry::read(&bytes) {
            Ok((_, Entry::Group(group))) => {
                let group = Arc::new(group);
                self.line.lock().groups.insert(slot, bytes.len() as u64);
                self.memory.lock().put(slot, Arc::clone(&group));
                Ok(Some(group))
            }
            Ok((_, Entry::Fence(_))) => {
                Err(bucket::damaged(self.bucket.as_ref(), &key, "is a fence that no snapshot lists"))
            }
            Err(what) => Err(bucket::damaged(self.bucket.as_ref(), &key, what)),
        }
    }

    /// Moves the floor up: the new one is durable before any object goes.
    fn set_floor(&self, place: Place) -> Result<(), StorageError> {
        let genesis_bytes = {
            let (_, group) = self.find(Position(0))?;
            group.records.first().map_or(0, |record| record.len() as u64)
        };
        let gone: Vec<(u64, u64)> = {
            let mut line = self.line.lock();
            line.floor = Floor { place, genesis_bytes };
            let genesis = line.slot_of(Position(0));
            let below = line.groups.range(..place.slot).map(|(slot, bytes)| (*slot, *bytes));
            below.filter(|(slot, _)| *slot != genesis).collect()
        };
        {
            let mut book = self.book.lock();
            book.change();
            gone.iter().for_each(|(slot, bytes)| book.discard(keys::slot(*slot), *bytes));
        }
        self.commit()?;
        let (mut line, mut memory) = (self.line.lock(), self.memory.lock());
        for (slot, _) in gone {
            line.groups.remove(&slot);
            memory.remove(slot);
        }
        Ok(())
    }
}
