//! Queues between the members of a ring, each of which computes on threads of its own.

use std::collections::VecDeque;

use anabranch_agent::pod::{Address, Parcel};
use anabranch_common::ids::AgentId;
use parking_lot::{Condvar, Mutex};

/// What has come for a member.
#[derive(Debug)]
pub(crate) enum Item {
    /// A parcel, with the virtual time at which it has left its sender's line, where time passes.
    Parcel(u64, Address, Parcel),
    /// A member has closed its links.
    Gone(AgentId),
}

/// What has come for each member.
#[derive(Debug, Default)]
struct Inbox {
    items: Mutex<VecDeque<Item>>,
    filled: Condvar,
}

/// The queues of all members.
#[derive(Debug)]
pub(crate) struct Hub {
    members: Vec<AgentId>,
    inboxes: Vec<Inbox>,
}

impl Hub {
    /// Returns empty queues of members in the order of their ring.
    pub(crate) fn new(members: &[AgentId]) -> Self {
        Self { members: members.to_vec(), inboxes: members.iter().map(|_| Inbox::default()).collect() }
    }

    /// Hands something to a member.
    pub(crate) fn put(&self, to: usize, item: Item) {
        if let Some(inbox) = self.inboxes.get(to) {
            inbox.items.lock().push_back(item);
            inbox.filled.notify_one();
        }
    }

    /// Tells all others that a member has closed its links.
    pub(crate) fn leave(&self, place: usize) {
        for other in (0..self.members.len()).filter(|other| *other != place) {
            self.put(other, Item::Gone(self.members[place]));
        }
    }

    /// Waits for what comes next for a member.
    pub(crate) fn take(&self, place: usize) -> Item {
        let Inbox { items, filled } = &self.inboxes[place];
        let mut items = items.lock();
        loop {
            if let Some(item) = items.pop_front() {
                return item;
            }
            filled.wait(&mut items);
        }
    }
}
