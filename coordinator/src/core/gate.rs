//! The gate: commands wait in order until the records that they rest on are durable.

use std::collections::VecDeque;

use anabranch_common::bugs::{self, Bug};
use anabranch_common::ids::Position;

use super::command::Command;

/// Commands on their way out.
#[derive(Debug, Default)]
pub(super) struct Gate {
    durable: Option<Position>,
    waiting: VecDeque<(Option<Position>, Command)>,
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
        self.waiting.push_back((needs, command));
    }

    /// Records up to `upto` are durable.
    pub(super) fn journalled(&mut self, upto: Position) {
        self.durable = self.durable.max(Some(upto));
    }

    /// What may be done now.
    pub(super) fn take(&mut self) -> Vec<Command> {
        while let Some((_, command)) =
            self.waiting.pop_front_if(|(needs, _)| *needs <= self.durable || bugs::is(Bug::AckBeforeSync))
        {
            self.out.push(command);
        }
        std::mem::take(&mut self.out)
    }
}
