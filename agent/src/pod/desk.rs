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
//! and updates ahead of what it got back, so that [`ParcelSizes`] bounds what a member that keeps to the order can have sent. A
//! member that sends more does not keep to it, and ends the attempt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::pod::{PodMark, PodRound};
use anabranch_common::spec::{Activations, PodSpec};
use anabranch_common::wire::pod::ParcelHead;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::time::Instant;

use super::frame::{self, ParcelError};
use super::link::Link;
use super::{Address, Parcel, WireError};

/// How large parcels of a round can be, from its model and its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParcelSizes {
    /// Parameters of the model: no part has more.
    pub params: usize,
    /// Values of the largest activations of a micro-batch between two layers; labels are no more.
    pub activations: usize,
    /// Values of the tied tensor; 0 for a model without one.
    pub tied: usize,
}

impl ParcelSizes {
    /// Values of the largest parcel.
    fn parcel(&self) -> usize {
        let tied = self.tied.saturating_mul(2);
        self.params.saturating_add(tied).max(self.activations)
    }

    /// Parcels of one member that can wait here in a round of so many parts.
    fn parcels_ahead(parts: usize) -> usize {
        // Activations, gradients, labels, losses, sums and copies of the tied tensor; weights before and after.
        (6 * limits::POD_PARCELS_AHEAD + 2).saturating_mul(parts)
    }

    /// Their values.
    fn values_ahead(&self, parts: usize) -> usize {
        let each = self.activations.saturating_add(self.tied).saturating_mul(3 * limits::POD_PARCELS_AHEAD);
        let weights = self.params.saturating_mul(2);
        each.saturating_add(self.tied).saturating_mul(parts).saturating_add(weights)
    }
}

/// What the members have agreed on for an attempt.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) me: AgentId,
    pub(super) mark: PodMark,
    /// Who computes each part.
    parts: Vec<AgentId>,
    pub(super) form: Activations,
    /// Most values of a parcel.
    most: usize,
    parcels_ahead: usize,
    values_ahead: usize,
    /// How long a member may keep another one waiting.
    pub(super) patience: Duration,
}

impl Terms {
    pub(super) fn new(me: AgentId, round: &PodRound, spec: &PodSpec, sizes: ParcelSizes) -> Self {
        let parts: Vec<AgentId> = round.parts.iter().map(|part| part.agent).collect();
        Self {
            me,
            mark: round.mark,
            form: spec.activations,
            most: sizes.parcel(),
            parcels_ahead: ParcelSizes::parcels_ahead(parts.len()),
            values_ahead: sizes.values_ahead(parts.len()),
            // The run's configuration was checked; whatever it says here is a time.
            patience: Duration::try_from_secs_f64(spec.deadline_s).unwrap_or(Duration::MAX),
            parts,
        }
    }

    /// Checks the head of a parcel from `sender`. Returns its address and its values.
    pub(super) fn check(&self, sender: AgentId, head: &ParcelHead) -> Result<(Address, usize), ParcelError> {
        let owner = |part: u32| self.parts.get(part as usize).copied();
        if owner(head.from) != Some(sender) || owner(head.to) != Some(self.me) {
            return Err(ParcelError::Route { from: head.from, to: head.to });
        }
        if frame::form_of(&head.content).is_some_and(|form| form != self.form) {
            return Err(ParcelError::Form);
        }
        let found = frame::values_behind(&head.content);
        match usize::try_from(found) {
            Ok(values) if values <= self.most => {
                Ok((Address { from: head.from as usize, to: head.to as usize }, values))
            }
            _ => Err(ParcelError::TooLarge { found, most: self.most }),
        }
    }

    /// Checks a parcel of this member. Returns whom it is for, and its values.
    fn check_own(&self, address: Address, parcel: &Parcel) -> Result<(AgentId, usize), WireError> {
        let owner = |part: usize| self.parts.get(part).copied();
        let values = frame::values_of(parcel);
        let reason = match (owner(address.from), owner(address.to)) {
            (Some(from), Some(to)) if from == self.me && to != self.me && values <= self.most => {
                return Ok((to, values));
            }
            (Some(from), Some(to)) if from == self.me && to != self.me => {
                ParcelError::TooLarge { found: values as u64, most: self.most }.to_string()
            }
            _ => format!("no parcel goes from part {} to part {}", address.from, address.to),
        };
        Err(WireError::Member { agent: self.me, reason })
    }
}

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
    /// A head has come, and its values have not all.
    is_arriving: bool,
    /// Parcels for it that are not sent.
    outgoing: Load,
    /// When the last bytes of those were taken.
    moved: Instant,
    /// It has sent everything that it will send.
    has_left: bool,
    /// Everything for it has arrived there.
    is_served: bool,
}

#[derive(Debug)]
struct State {
    /// Members whose links are not there yet, and what was wrong last.
    awaited: BTreeMap<AgentId, String>,
    sides: BTreeMap<AgentId, Side>,
    inbox: VecDeque<(AgentId, Address, Parcel)>,
    /// When bytes of a parcel came last.
    heard: Instant,
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

impl Desk {
    /// Links with these members are to come.
    pub(super) fn new(terms: Terms, awaited: &BTreeSet<AgentId>) -> Self {
        let nothing_yet = |agent: &AgentId| (*agent, "it has not connected".to_owned());
        let state = State {
            awaited: awaited.iter().map(nothing_yet).collect(),
            sides: BTreeMap::new(),
            inbox: VecDeque::new(),
            heard: Instant::now(),
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
            is_arriving: false,
            outgoing: Load::default(),
            moved: Instant::now(),
            has_left: false,
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

    /// Notes why nothing more will come of this attempt. The first reason counts.
    pub(super) fn fail(&self, agent: AgentId, problem: &str) {
        let reason = format!("member {}: {problem}", agent.short());
        self.state.lock().failure.get_or_insert(WireError::Member { agent, reason });
        self.changed.notify_all();
    }

    /// A member's link has brought bytes of a parcel.
    pub(super) fn heard(&self) {
        self.state.lock().heard = Instant::now();
    }

    /// Makes room for a parcel of which the head has come.
    pub(super) fn make_room(&self, agent: AgentId, values: usize) -> Result<(), ParcelError> {
        let mut state = self.state.lock();
        state.heard = Instant::now();
        let Some(side) = state.sides.get_mut(&agent) else { return Ok(()) };
        side.incoming.add(values);
        side.is_arriving = true;
        let Load { parcels, values } = side.incoming;
        let fits = parcels <= self.terms.parcels_ahead && values <= self.terms.values_ahead;
        if fits { Ok(()) } else { Err(ParcelError::Flood { parcels, values }) }
    }

    /// A parcel has come.
    pub(super) fn deliver(&self, agent: AgentId, address: Address, parcel: Parcel) {
        let mut state = self.state.lock();
        if let Some(side) = state.sides.get_mut(&agent) {
            side.is_arriving = false;
            state.inbox.push_back((agent, address, parcel));
        }
        self.changed.notify_all();
    }

    /// A member has sent everything that it will send.
    pub(super) fn left(&self, agent: AgentId) {
        self.change(agent, |side| side.has_left = true);
    }

    /// Whether it has.
    pub(super) fn has_left(&self, agent: AgentId) -> bool {
        self.state.lock().sides.get(&agent).is_some_and(|side| side.has_left)
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

    /// Waits until every link is there.
    pub(super) fn wait_for_links(&self, deadline: Duration, stop: &dyn Fn() -> bool) -> Result<(), WireError> {
        let begun = Instant::now();
        self.wait(stop, |state| {
            let (agent, problem) = match state.awaited.first_key_value() {
                None => return Some(Ok(())),
                Some((agent, problem)) => (*agent, problem),
            };
            let reason = || format!("member {} cannot be reached: {problem}", agent.short());
            (begun.elapsed() >= deadline).then(|| Err(WireError::Member { agent, reason: reason() }))
        })
    }

    /// Puts a parcel into its member's outbox, when there is room.
    pub(super) fn send(&self, address: Address, parcel: Parcel, stop: &dyn Fn() -> bool) -> Result<(), WireError> {
        let (agent, values) = self.terms.check_own(address, &parcel)?;
        let begun = Instant::now();
        let mut parcel = Some(parcel);
        let member = |reason: &str| WireError::Member { agent, reason: format!("member {}: {reason}", agent.short()) };
        self.wait(stop, |state| {
            let Some(side) = state.sides.get_mut(&agent) else {
                return Some(Err(member("has no link with this member")));
            };
            if side.has_left {
                return Some(Ok(()));
            }
            let Load { parcels, values: waiting } = side.outgoing;
            let fits = parcels == 0 || parcels < limits::POD_PARCELS_QUEUED && waiting + values <= self.terms.most;
            if !fits {
                let is_stuck = begun.max(side.moved).elapsed() >= self.terms.patience;
                return is_stuck.then(|| Err(member("takes nothing that it is sent")));
            }
            side.outgoing.add(values);
            if let Some(parcel) = parcel.take() {
                side.link.send(address, parcel, values);
            }
            Some(Ok(()))
        })
    }

    /// Takes the next parcel, when there is one.
    pub(super) fn receive(&self, stop: &dyn Fn() -> bool) -> Result<(Address, Parcel), WireError> {
        let begun = Instant::now();
        self.wait(stop, |state| {
            if let Some((agent, address, parcel)) = state.inbox.pop_front() {
                if let Some(side) = state.sides.get_mut(&agent) {
                    side.incoming.remove(frame::values_of(&parcel));
                }
                return Some(Ok((address, parcel)));
            }
            if let Some((agent, _)) = state.sides.last_key_value()
                && state.sides.values().all(|side| side.has_left)
            {
                let reason = format!("member {}: left before it had sent everything", agent.short());
                return Some(Err(WireError::Member { agent: *agent, reason }));
            }
            // Whoever stops in the middle of a parcel is named by its link.
            if state.sides.values().any(|side| side.is_arriving) {
                return None;
            }
            let patience = self.terms.patience;
            (begun.max(state.heard).elapsed() >= patience).then_some(Err(WireError::Silent(patience)))
        })
    }

    /// Ends what goes to each member, and waits until everything has arrived there.
    pub(super) fn finish(&self, stop: &dyn Fn() -> bool) -> Result<(), WireError> {
        self.state.lock().sides.values_mut().for_each(|side| side.link.end());
        self.wait(stop, |state| state.sides.values().all(|side| side.is_served).then_some(Ok(())))
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

    /// Waits until `look` has found something. A stop comes before a failure, and a failure before that.
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
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if let Some(found) = look(&mut state) {
                return found;
            }
            self.changed.wait_for(&mut state, LOOK);
        }
    }
}
