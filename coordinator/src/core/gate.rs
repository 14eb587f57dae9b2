//! The gate: commands wait in order until the records that they rest on are durable.
//!
//! While the disk stalls everything waits here. Updates hold their budgets on (see
//! [`super::content`]); what waits for one connection is counted, so that the core can cut off a
//! peer that asks for more.

use std::collections::{BTreeMap, VecDeque};

use anabranch_common::ids::Position;

use super::command::Command;
use super::event::PeerId;

/// Commands on their way out.
#[derive(Debug, Default)]
pub(super) struct Gate {
    durable: Option<Position>,
    waiting: VecDeque<(Option<Position>, Command)>,
    /// How many of them are for each connection.
    by_peer: BTreeMap<PeerId, usize>,
    out: Vec<Command>,
}

impl Gate {
    /// Everything up to `position` was read from the journal.
    pub(super) fn durable_up_to(position: Position) -> Self {
        Self { durable: Some(position), ..Self::default() }
    }

    /// Lets a command out at once.
    pub(super) fn pass(&mut self, command: Command) {
        self.out.push(command);
    }

    /// Lets a command out when the record at `needs` is durable and everything that waited before it is out.
    pub(super) fn after(&mut self, needs: Option<Position>, command: Command) {
        if let Some(peer) = command.peer() {
            *self.by_peer.entry(peer).or_default() += 1;
        }
        self.waiting.push_back((needs, command));
    }

    /// Commands that wait for this connection.
    pub(super) fn waiting_for(&self, peer: PeerId) -> usize {
        self.by_peer.get(&peer).copied().unwrap_or(0)
    }

    /// Returns how many records up to `newest` are not durable.
    pub(super) fn undurable(&self, newest: Option<Position>) -> u64 {
        let records = |position: Option<Position>| position.map_or(0, |position| position.0 + 1);
        records(newest) - records(self.durable.min(newest))
    }

    /// A connection is gone: what waits for it goes, but for the end of an update, since what is half here of it goes
    /// with that.
    pub(super) fn forget(&mut self, peer: PeerId) {
        if self.by_peer.remove(&peer).is_none() {
            return;
        }
        self.waiting.retain(|(_, command)| command.peer() != Some(peer) || command.ends_upload());
        let kept = self.waiting.iter().filter(|(_, command)| command.peer() == Some(peer)).count();
        if kept > 0 {
            self.by_peer.insert(peer, kept);
        }
    }

    /// Records up to `upto` are durable.
    pub(super) fn journalled(&mut self, upto: Position) {
        self.durable = self.durable.max(Some(upto));
    }

    /// What may be done now.
    pub(super) fn take(&mut self) -> Vec<Command> {
        while let Some((_, command)) = self.waiting.pop_front_if(|(needs, _)| *needs <= self.durable) {
            if let Some(peer) = command.peer()
                && let Some(count) = self.by_peer.get_mut(&peer)
            {
                *count -= 1;
                if *count == 0 {
                    self.by_peer.remove(&peer);
                }
            }
            self.out.push(command);
        }
        std::mem::take(&mut self.out)
    }
}
