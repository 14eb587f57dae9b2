//! Links between the members of a pod in memory, each member on a thread of its own, without a clock: when all members that are
//! alive wait, and nothing is on its way, the deadline of those that give no sign of life has passed.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anabranch_common::ids::AgentId;

use crate::pod::{Address, Parcel, Wire, WireError};

/// The member with an index, by its identity.
pub(in crate::train::native) fn agent(member: usize) -> AgentId {
    AgentId([u8::try_from(member + 1).expect("few"); 16])
}

/// What a member does apart from computing.
pub(in crate::train::native) enum Conduct {
    Honest,
    /// Leaves before it sends so many parcels.
    Leaves(usize),
    /// Changes what it sends.
    Tampers(fn(&mut Parcel)),
}

enum Event {
    Parcel(Address, Parcel),
    Gone(AgentId),
}

#[derive(Default)]
struct State {
    inboxes: Vec<VecDeque<Event>>,
    /// Members that compute or wait.
    alive: Vec<bool>,
    waiting: Vec<bool>,
    /// Members that give no sign of life, until it is told.
    silent: Vec<usize>,
}

pub(in crate::train::native) struct Hub {
    state: Mutex<State>,
    changed: Condvar,
    /// The member that computes each part.
    members: Vec<usize>,
    /// Every parcel that a member was sent, and which member.
    carried: Mutex<Vec<(usize, Parcel)>>,
}

impl Hub {
    /// `silent` members never do anything, and nobody is told before the deadline.
    pub(in crate::train::native) fn new(members: Vec<usize>, silent: &[usize]) -> Arc<Self> {
        let count = members.iter().max().map_or(0, |last| last + 1);
        let state = State {
            inboxes: (0..count).map(|_| VecDeque::new()).collect(),
            alive: (0..count).map(|member| !silent.contains(&member)).collect(),
            waiting: vec![false; count],
            silent: silent.to_vec(),
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), members, carried: Mutex::default() })
    }

    pub(in crate::train::native) fn wire(self: &Arc<Self>, me: usize, conduct: Conduct) -> HubWire {
        HubWire { hub: Arc::clone(self), me, conduct, sent: 0 }
    }

    /// Returns every parcel that went from member to member, with whom it was for.
    pub(in crate::train::native) fn carried(&self) -> Vec<(usize, Parcel)> {
        std::mem::take(&mut *self.carried.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Tells the others that a member is gone.
    fn tell(&mut self, gone: usize) {
        let others = self.inboxes.iter_mut().enumerate().filter(|(member, _)| *member != gone);
        others.for_each(|(_, inbox)| inbox.push_back(Event::Gone(agent(gone))));
    }
}

pub(in crate::train::native) struct HubWire {
    hub: Arc<Hub>,
    me: usize,
    conduct: Conduct,
    sent: usize,
}

impl Wire for HubWire {
    fn send(&mut self, address: Address, mut parcel: Parcel) -> Result<(), WireError> {
        match &self.conduct {
            Conduct::Leaves(after) if *after == self.sent => return Err(WireError::Over),
            Conduct::Tampers(tamper) => tamper(&mut parcel),
            _ => {}
        }
        self.sent += 1;
        let (to, hub) = (self.hub.members[address.to], &self.hub);
        assert_ne!(to, self.me, "what is for a member itself takes no link");
        assert_eq!(hub.members[address.from], self.me);
        hub.carried.lock().unwrap_or_else(PoisonError::into_inner).push((to, parcel.clone()));
        let mut state = hub.state();
        // What is for a member that is gone is lost; that it is gone is told by `receive`.
        state.inboxes[to].push_back(Event::Parcel(address, parcel));
        hub.changed.notify_all();
        Ok(())
    }

    fn receive(&mut self) -> Result<(Address, Parcel), WireError> {
        let mut state = self.hub.state();
        loop {
            if let Some(event) = state.inboxes[self.me].pop_front() {
                return match event {
                    Event::Parcel(address, parcel) => Ok((address, parcel)),
                    Event::Gone(agent) => Err(WireError::Member { agent, reason: "it is gone".to_owned() }),
                };
            }
            state.waiting[self.me] = true;
            let all_wait = (0..state.alive.len())
                .all(|member| !state.alive[member] || (state.waiting[member] && state.inboxes[member].is_empty()));
            if all_wait {
                assert!(!state.silent.is_empty(), "all members wait for each other");
                for silent in std::mem::take(&mut state.silent) {
                    state.tell(silent);
                }
                self.hub.changed.notify_all();
            } else {
                state = self.hub.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.waiting[self.me] = false;
        }
    }
}

impl Drop for HubWire {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        state.alive[self.me] = false;
        state.tell(self.me);
        self.hub.changed.notify_all();
    }
}
