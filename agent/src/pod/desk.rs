//! Where the thread that computes and the tasks of its links meet: parcels that have come, parcels that are to go, and what went
//! wrong.
//!
//! ```text
//!  link: read ─► inbox (bounded for each member) ─► receive()       the thread that computes
//!  link: write ◄─ outbox (bounded for each member) ◄─ send()
//! ```
//! **Why nobody waits in a circle.** `send` waits while a member's outbox is full, so the thread that computes may wait for the
//! thread of a member that waits for it. It does not have to, because a link never waits for the thread that computes: it takes
//! every parcel that comes into the inbox. Outboxes therefore always drain, at the speed of the network. The inbox needs no
//! waiting to stay bounded: by the order of a round (`anabranch_common::pod::order`) a stage is a bounded number of micro-batches
//! and updates ahead of what it got back, so that [`ParcelSizes`](super::ParcelSizes) bounds what a member that keeps to the order can have sent. A
//! member that sends more does not keep to it, and ends the attempt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::time::Instant;

use super::frame::{self, ParcelError};
use super::link::Link;
use super::terms::Terms;
use super::{Address, Parcel, WireError};

/// Parcels that wait, by number and by values.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    parcels: usize,
    values: usize,
}

impl Load {
    fn add(&mut self, values: usize) {
        self.parcels += 1;
        self.values += values;
    }

    fn remove(&mut self, values: usize) {
        self.parcels = self.parcels.saturating_sub(1);
        self.values = self.values.saturating_sub(values);
    }
}

/// What one member's link is at.
#[derive(Debug)]
struct Side {
    link: Link,
    /// Of its parcels, those that wait or arrive here.
    incoming: Load,
    /// Parcels for it that are not sent.
    outgoing: Load,
    /// When the last bytes of those were taken.
    moved: Instant,
    /// How it was lost.
    lost: Option<Loss>,
    /// Everything for it has arrived there.
    is_served: bool,
}

/// How a member was lost.
#[derive(Debug)]
enum Loss {
    /// It has sent everything that it will send, and needs nothing more.
    Left,
    /// It is gone, has given up, or does not keep to the protocol.
    Failed(WireError),
}

/// What has come from a member, in its order.
#[derive(Debug)]
enum Item {
    Parcel(AgentId, Address, Parcel),
    /// Nothing more comes from it.
    Lost(WireError),
}

#[derive(Debug)]
struct State {
    /// Members whose links are not there yet, and what was wrong last.
    awaited: BTreeMap<AgentId, String>,
    sides: BTreeMap<AgentId, Side>,
    inbox: VecDeque<Item>,
    /// The first failure: of a link that is not there yet or was lost.
    failure: Option<WireError>,
    is_closed: bool,
}

/// The meeting place of one attempt.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) terms: Terms,
    state: Mutex<State>,
    changed: Condvar,
}

/// How long to wait until stops are looked for again.
const LOOK: Duration = Duration::from_millis(limits::POD_LOOK_MS);
/// How long a helper waits for the owner, which may have to fetch the base before it dials. The coordinator ends the attempts of an
/// owner that is gone long before.
const OWNER: Duration = Duration::from_millis(limits::POD_OWNER_MS);

impl Desk {
    /// Links with these members are to come.
    pub(super) fn new(terms: Terms, awaited: &BTreeSet<AgentId>) -> Self {
        let nothing_yet = |agent: &AgentId| (*agent, "it has not connected".to_owned());
        let state = State {
            awaited: awaited.iter().map(nothing_yet).collect(),
            sides: BTreeMap::new(),
            inbox: VecDeque::new(),
            failure: None,
            is_closed: false,
        };
        Self { terms, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Whether a link with this member is to come.
    pub(super) fn awaits(&self, agent: AgentId) -> bool {
        let state = self.state.lock();
        !state.is_closed && state.awaited.contains_key(&agent)
    }

    /// Takes a link that was awaited. The link is given back where it is not, or not any more.
    pub(super) fn take_link(&self, agent: AgentId, link: Link) -> Result<(), Link> {
        let mut state = self.state.lock();
        if state.is_closed || state.awaited.remove(&agent).is_none() {
            return Err(link);
        }
        let side = Side {
            link,
            incoming: Load::default(),
            outgoing: Load::default(),
            moved: Instant::now(),
            lost: None,
            is_served: false,
        };
        state.sides.insert(agent, side);
        self.changed.notify_all();
        Ok(())
    }

    /// Notes why a member's link is not there yet.
    pub(super) fn note(&self, agent: AgentId, problem: String) {
        if let Some(last) = self.state.lock().awaited.get_mut(&agent) {
            *last = problem;
        }
    }

    /// Notes that a member is lost, or that there will be no link with it.
    pub(super) fn fail(&self, agent: AgentId, problem: &str) {
        // Part of it may be the other side's words.
        let problem: String = problem.chars().filter(|char| !char.is_control()).collect();
        let error = member(agent, &problem);
        let mut state = self.state.lock();
        if state.lose(agent, Loss::Failed(error.clone()), &error) {
            state.failure.get_or_insert(error);
        }
        self.changed.notify_all();
    }

    /// Notes that a member has sent everything that it will send.
    pub(super) fn left(&self, agent: AgentId) {
        self.state.lock().lose(agent, Loss::Left, &member(agent, "has left"));
        self.changed.notify_all();
    }

    /// Makes room for a parcel of which the head has come.
    pub(super) fn make_room(&self, agent: AgentId, values: usize) -> Result<(), ParcelError> {
        let mut state = self.state.lock();
        let Some(side) = state.sides.get_mut(&agent) else { return Ok(()) };
        side.incoming.add(values);
        let Load { parcels, values } = side.incoming;
        let fits = parcels <= self.terms.parcels_ahead && values <= self.terms.values_ahead;
        if fits { Ok(()) } else { Err(ParcelError::Flood { parcels, values }) }
    }

    /// A parcel has come.
    pub(super) fn deliver(&self, agent: AgentId, address: Address, parcel: Parcel) {
        let mut state = self.state.lock();
        if state.sides.contains_key(&agent) {
            state.inbox.push_back(Item::Parcel(agent, address, parcel));
        }
        self.changed.notify_all();
    }

    /// Whether a member has sent everything that it will send.
    pub(super) fn has_left(&self, agent: AgentId) -> bool {
        self.state.lock().sides.get(&agent).is_some_and(|side| matches!(side.lost, Some(Loss::Left)))
    }

    /// Bytes for a member were taken.
    pub(super) fn moved(&self, agent: AgentId) {
        if let Some(side) = self.state.lock().sides.get_mut(&agent) {
            side.moved = Instant::now();
        }
    }

    /// A parcel of so many values was sent.
    pub(super) fn sent(&self, agent: AgentId, values: usize) {
        self.change(agent, |side| {
            side.outgoing.remove(values);
            side.moved = Instant::now();
        });
    }

    /// Everything for a member has arrived there, or it needs no more.
    pub(super) fn served(&self, agent: AgentId) {
        self.change(agent, |side| side.is_served = true);
    }

    fn change(&self, agent: AgentId, change: impl FnOnce(&mut Side)) {
        if let Some(side) = self.state.lock().sides.get_mut(&agent) {
            change(side);
        }
        self.changed.notify_all();
    }

    /// Waits until every link is there. The owner dials once it has the base, which it may have to fetch: `deadline` counts from
    /// then on.
    pub(super) fn wait_for_links(&self, deadline: Duration, stop: &dyn Fn() -> bool) -> Result<(), WireError> {
        let begun = Instant::now();
        let mut linked = begun;
        self.wait(stop, |state| {
            if let Some(failure) = &state.failure {
                return Some(Err(failure.clone()));
            }
            let is_overdue = if state.awaited.contains_key(&self.terms.owner) {
                linked = Instant::now();
                begun.elapsed() >= deadline.max(OWNER)
            } else {
                linked.elapsed() >= deadline
            };
            match state.awaited.first_key_value() {
                None => Some(Ok(())),
                Some((agent, problem)) => {
                    is_overdue.then(|| Err(member(*agent, &format!("cannot be reached: {problem}"))))
                }
            }
        })
    }

    /// Puts a parcel into its member's outbox, when there is room.
    pub(super) fn send(&self, address: Address, parcel: Parcel, stop: &dyn Fn() -> bool) -> Result<(), WireError> {
        let (agent, values) = self.terms.check_own(address, &parcel)?;
        let begun = Instant::now();
        let mut parcel = Some(parcel);
        self.wait(stop, |state| {
            let Some(side) = state.sides.get_mut(&agent) else {
                return Some(Err(member(agent, "has no link with this agent")));
            };
            match &side.lost {
                None => {}
                Some(Loss::Left) => return Some(Ok(())),
                Some(Loss::Failed(error)) => return Some(Err(error.clone())),
            }
            let Load { parcels, values: waiting } = side.outgoing;
            let fits = parcels == 0 || parcels < limits::POD_PARCELS_QUEUED && waiting + values <= self.terms.most;
            if !fits {
                let is_stuck = begun.max(side.moved).elapsed() >= self.terms.patience;
                return is_stuck.then(|| Err(member(agent, "takes nothing that it is sent")));
            }
            side.outgoing.add(values);
            if let Some(parcel) = parcel.take() {
                side.link.send(address, parcel, values);
            }
            Some(Ok(()))
        })
    }

    /// Takes the next parcel, when there is one. Links tell of members that are not alive any more: one that is may compute for as
    /// long as it takes.
    pub(super) fn receive(&self, stop: &dyn Fn() -> bool) -> Result<(Address, Parcel), WireError> {
        self.wait(stop, |state| {
            match state.inbox.pop_front() {
                None => {}
                Some(Item::Lost(error)) => return Some(Err(error)),
                Some(Item::Parcel(agent, address, parcel)) => {
                    if let Some(side) = state.sides.get_mut(&agent) {
                        side.incoming.remove(frame::values_of(&parcel));
                    }
                    return Some(Ok((address, parcel)));
                }
            }
            let (agent, _) = state.sides.last_key_value()?;
            let are_lost = state.sides.values().all(|side| side.lost.is_some());
            are_lost.then(|| Err(member(*agent, "was the last to be lost, and nothing more comes")))
        })
    }

    /// Ends what goes to each member, and waits until everything has arrived there.
    pub(super) fn finish(&self, stop: &dyn Fn() -> bool) -> Result<(), WireError> {
        self.state.lock().sides.values_mut().for_each(|side| side.link.end());
        self.wait(stop, |state| {
            let mut open = state.sides.values().filter(|side| !side.is_served);
            let lost = open.clone().find_map(|side| match &side.lost {
                Some(Loss::Failed(error)) => Some(Err(error.clone())),
                _ => None,
            });
            lost.or_else(|| open.next().is_none().then_some(Ok(())))
        })
    }

    /// Closes every link. Nothing is awaited any more.
    pub(super) fn close(&self, code: u32) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let reason = state.failure.as_ref().map(ToString::to_string).unwrap_or_default();
        let sides = std::mem::take(&mut state.sides);
        state.inbox.clear();
        drop(state);
        sides.into_values().for_each(|side| side.link.close(code, &reason));
    }

    /// Waits until `look` has found something. A stop comes before that.
    fn wait<T>(
        &self,
        stop: &dyn Fn() -> bool,
        mut look: impl FnMut(&mut State) -> Option<Result<T, WireError>>,
    ) -> Result<T, WireError> {
        let mut state = self.state.lock();
        loop {
            if MutexGuard::unlocked(&mut state, stop) {
                return Err(WireError::Over);
            }
            if let Some(found) = look(&mut state) {
                return found;
            }
            self.changed.wait_for(&mut state, LOOK);
        }
    }
}

impl State {
    /// Loses a member that is not lost yet, after everything that came from it. Returns whether it was so.
    fn lose(&mut self, agent: AgentId, loss: Loss, told: &WireError) -> bool {
        let Some(side) = self.sides.get_mut(&agent) else { return true };
        if side.lost.is_some() {
            return false;
        }
        side.lost = Some(loss);
        self.inbox.push_back(Item::Lost(told.clone()));
        true
    }
}

fn member(agent: AgentId, problem: &str) -> WireError {
    WireError::Member { agent, reason: format!("member {}: {problem}", agent.short()) }
}
