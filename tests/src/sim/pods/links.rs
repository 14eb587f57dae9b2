//! Links between members: when they are there, what is on them, and how each end notices that the other is gone.
//!
//! | as the product's | here |
//! |---|---|
//! | a member dials until it is let in; links are there once both have opened the attempt | looked at every `POD_DIAL_RETRY_MS` |
//! | parcels arrive in order, late by delay, jitter, loss and bandwidth | one queue an end |
//! | silence: no packet of the other side for `pod.deadline_s`, 2 s at least and 4 s at most, counted in looks | the same |
//! | a close is told at once, and overtakes what is on its way | the same |
//! | who sends for a part of another member does not keep to the protocol | the same |

use std::collections::{BTreeMap, VecDeque};

use anabranch_agent::pod::{Address, Parcel, WireError};
use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::pod::PodMark;
use anabranch_common::rng::SplitMix64;

use crate::sim::network::Side;
use crate::sim::schedule::{Machine, PodPlan};
use crate::sim::trace::Sign;
use crate::sim::world::{Happening, World, agent_id};

use super::{Item, State};

/// How often a link is looked at for silence, and what is on a broken line tried again.
const LOOK_MS: u64 = 200;
/// What a packet that is lost costs.
const LOSS_MS: u64 = 250;
/// Bytes of a value.
const VALUE: u64 = 4;
/// Bytes of a parcel without values.
const HEAD: u64 = 64;

/// Which end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::sim) enum LinkEnd {
    /// That of the member that comes first in the round.
    Front,
    /// The other one.
    Back,
}

impl LinkEnd {
    fn index(self) -> usize {
        usize::from(self == Self::Back)
    }

    fn other(self) -> Self {
        if self == Self::Front { Self::Back } else { Self::Front }
    }
}

/// A member at its end of a link.
#[derive(Debug)]
struct End {
    machine: Machine,
    /// Its job: a process has one after the other.
    job: u64,
    /// It has not closed it.
    is_open: bool,
    /// How it has noticed that the other is gone.
    lost: Option<Loss>,
    /// For how long it has heard nothing.
    silent_ms: u64,
    /// What is on its way here.
    coming: VecDeque<(u64, Address, Parcel)>,
    last_ms: u64,
}

/// A link of one attempt.
#[derive(Debug)]
pub(super) struct Link {
    mark: PodMark,
    ends: [End; 2],
}

/// The links of all attempts, and what lies between machines.
#[derive(Debug)]
pub(in crate::sim) struct Network {
    links: BTreeMap<u64, Link>,
    next: u64,
    /// Pairs of machines, the smaller first, between which nothing passes until then.
    cuts: BTreeMap<(Machine, Machine), u64>,
    rng: SplitMix64,
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        Self { links: BTreeMap::new(), next: 0, cuts: BTreeMap::new(), rng: SplitMix64::new(seed ^ 0x5EED_0031) }
    }

    /// Nothing passes between two machines for a while.
    pub(in crate::sim) fn sever(&mut self, a: Machine, b: Machine, until_ms: u64) {
        let until = self.cuts.entry((a.min(b), a.max(b))).or_default();
        *until = until_ms.max(*until);
    }

    pub(in crate::sim) fn heal(&mut self) {
        self.cuts.clear();
    }

    /// The links that a job has open, with its end of each.
    fn of(&self, machine: Machine, job: u64) -> Vec<(u64, LinkEnd)> {
        let is_mine = |link: &Link, end: LinkEnd| {
            let end = &link.ends[end.index()];
            (end.machine, end.job) == (machine, job) && end.is_open
        };
        let ends = |(id, link): (&u64, &Link)| {
            [LinkEnd::Front, LinkEnd::Back].into_iter().find(|end| is_mine(link, *end)).map(|end| (*id, end))
        };
        self.links.iter().filter_map(ends).collect()
    }

    /// Returns the machine at an end of a link.
    pub(in crate::sim) fn machine(&self, link: u64, end: LinkEnd) -> Option<Machine> {
        self.links.get(&link).map(|link| link.ends[end.index()].machine)
    }
}

/// How a member at the other end was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sim) enum Loss {
    /// It has sent everything, and needs nothing more.
    Left,
    /// It has given up, is gone, or does not keep to the protocol.
    Failed(String),
}

impl World {
    /// Whether packets pass between two machines.
    fn pod_path(&self, a: Machine, b: Machine) -> bool {
        let now_ms = self.now_ms();
        let is_cut = self.pods.network.cuts.get(&(a.min(b), a.max(b))).is_some_and(|until_ms| *until_ms > now_ms);
        let is_deaf = |machine: Machine| {
            let line = &self.agents[machine - 1].line;
            line.is_deaf(Side::Agent, now_ms) || line.is_deaf(Side::Coordinator, now_ms)
        };
        !is_cut && !is_deaf(a) && !is_deaf(b)
    }

    /// How long something takes from one machine to another.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few milliseconds")]
    fn pod_delay_ms(&mut self, a: Machine, b: Machine, bytes: u64) -> u64 {
        if self.healed_at_ms.is_some() {
            return 10;
        }
        let rng = &mut self.pods.network.rng;
        let one_way = |machine: Machine, rng: &mut SplitMix64| {
            let plan = &self.agents[machine - 1].plan.link;
            let again_ms = if rng.next_f64() < plan.loss { LOSS_MS } else { 0 };
            plan.delay_ms + rng.below(plan.jitter_ms + 1) + again_ms + (bytes as f64 / plan.bandwidth) as u64
        };
        one_way(a, rng) + one_way(b, rng)
    }

    /// Whether a member is at work on an attempt, in the process that a link was made with.
    fn pod_is_there(&self, machine: Machine, job: u64) -> bool {
        let work = self.agents[machine - 1].pod_work();
        work.is_some_and(|work| work.job == job) && self.stopped_until(machine).is_none()
    }

    /// A member looks for its neighbours, and gives up when that takes too long.
    pub(in crate::sim) fn pod_looks(&mut self, machine: Machine, life: u64, job: u64) {
        let now_ms = self.now_ms();
        let Some(work) = self.agents[machine - 1].work_of(life, job).filter(|work| work.state.opens()) else { return };
        let (mark, missing) = (work.round.mark, work.missing(agent_id(machine)));
        for other in missing {
            let Some(at) = self.machine_of(other) else { continue };
            let peer = &self.agents[at - 1];
            let opens =
                peer.pod_work().filter(|work| work.round.mark == mark && work.state.opens()).map(|work| work.job);
            let is_over = peer.pods_opened(mark.lease) >= Some(mark.attempt) && opens.is_none();
            if !self.pod_path(machine, at) || self.stopped_until(at).is_some() {
                continue;
            }
            if let Some(others_job) = opens {
                self.pod_link(mark, (machine, job), (at, others_job));
            } else if is_over
                && self.agents[machine - 1].pod_work().is_some_and(|work| work.dials(agent_id(machine), other))
            {
                // Its own word: the attempt is over there.
                self.pod_fails(machine, job, other, "is through with this attempt");
            }
        }
        let (deadline_ms, me) = (self.pod_deadline_ms(), agent_id(machine));
        let Some(work) = self.agents[machine - 1].pod_work_mut().filter(|work| work.job == job) else { return };
        let missing = work.missing(me);
        let (since_ms, most_ms) = if missing.contains(&work.round.owner) {
            work.linked_ms = now_ms;
            (work.begun_ms, limits::POD_OWNER_MS.max(deadline_ms))
        } else {
            (work.linked_ms, deadline_ms)
        };
        if let Some(first) = missing.first().copied()
            && now_ms.saturating_sub(since_ms) >= most_ms
        {
            self.pod_fails(machine, job, first, "cannot be reached");
        }
        self.pod_proceeds(machine);
        if self.agents[machine - 1].work_of(life, job).is_some_and(|work| work.state.opens()) {
            self.after(limits::POD_DIAL_RETRY_MS, Happening::PodLooks { machine, life, job });
        }
    }

    fn pod_link(&mut self, mark: PodMark, (a, job_a): (Machine, u64), (b, job_b): (Machine, u64)) {
        let end = |machine, job| End {
            machine,
            job,
            is_open: true,
            lost: None,
            silent_ms: 0,
            coming: VecDeque::new(),
            last_ms: 0,
        };
        let network = &mut self.pods.network;
        network.next += 1;
        let id = network.next;
        network.links.insert(id, Link { mark, ends: [end(a, job_a), end(b, job_b)] });
        for (machine, other) in [(a, b), (b, a)] {
            if let Some(work) = self.agent(machine).pod_work_mut() {
                work.linked.insert(agent_id(other));
            }
        }
        for end in [LinkEnd::Front, LinkEnd::Back] {
            self.after(LOOK_MS, Happening::PodListens { link: id, end });
        }
        self.pod_proceeds(b);
    }

    /// Hands parcels of a job to its links. What is for a member without a link goes nowhere.
    pub(super) fn pod_sends(&mut self, machine: Machine, job: u64, sent: Vec<(Address, Parcel)>) {
        let links = self.pods.network.of(machine, job);
        let parts: Vec<AgentId> = match self.agents[machine - 1].pod_work() {
            Some(work) => work.round.parts.iter().map(|part| part.agent).collect(),
            None => return,
        };
        for (address, parcel) in sent {
            let Some(to) = parts.get(address.to).and_then(|agent| self.machine_of(*agent)) else { continue };
            let found = links.iter().find(|(id, end)| self.pods.network.machine(*id, end.other()) == Some(to));
            let Some(&(id, end)) = found else { continue };
            for (address, parcel) in self.pod_tampers(machine, address, parcel) {
                let bytes = values(&parcel) * VALUE + HEAD;
                let at_ms = self.now_ms() + self.pod_delay_ms(machine, to, bytes);
                let Some(link) = self.pods.network.links.get_mut(&id) else { continue };
                let there = &mut link.ends[end.other().index()];
                there.last_ms = at_ms.max(there.last_ms);
                there.coming.push_back((there.last_ms, address, parcel));
                let at_ms = there.last_ms;
                self.agenda.at(at_ms, Happening::PodArrives { link: id, end: end.other() });
            }
        }
    }

    /// Something may have come to an end of a link.
    pub(in crate::sim) fn pod_arrives(&mut self, id: u64, at: LinkEnd) {
        let now_ms = self.now_ms();
        loop {
            let Some(link) = self.pods.network.links.get(&id) else { return };
            let (here, there) = (&link.ends[at.index()], &link.ends[at.other().index()]);
            let (machine, job, sender) = (here.machine, here.job, there.machine);
            if !here.is_open || here.lost.is_some() || here.coming.front().is_none_or(|(at_ms, ..)| *at_ms > now_ms) {
                return;
            }
            if !self.pod_path(machine, sender) {
                return self.after(LOOK_MS, Happening::PodArrives { link: id, end: at });
            }
            let next = self.pods.network.links.get_mut(&id).and_then(|link| link.ends[at.index()].coming.pop_front());
            let Some((_, address, parcel)) = next else { return };
            let Some(work) = self.agent(machine).pod_work_mut().filter(|work| work.job == job) else { return };
            let owner = |part: usize| work.round.parts.get(part).map(|part| part.agent);
            let is_route =
                owner(address.from) == Some(agent_id(sender)) && owner(address.to) == Some(agent_id(machine));
            if !is_route {
                let Address { from, to } = address;
                let what = format!("does not keep to the protocol: part {from} does not send to part {to} here");
                self.pod_loses(id, at, &Loss::Failed(what));
                return;
            }
            let mark = work.round.mark;
            let ended = if let Parcel::Ended(digest) = &parcel { Some(*digest) } else { None };
            work.inbox.push_back(Item::Parcel(address, parcel));
            if let Some(digest) = ended {
                self.pods.watched.ends_with(mark, agent_id(sender), digest);
            }
            self.pod_proceeds(machine);
            self.pod_proceeds(sender);
        }
    }

    /// Whether everything that a job has sent has arrived, or is for members that need nothing more.
    ///
    /// # Errors
    /// A member is lost, and something for it has not arrived.
    pub(super) fn pod_is_delivered(&self, machine: Machine, job: u64) -> Result<bool, WireError> {
        let mut delivered = true;
        for (id, end) in self.pods.network.of(machine, job) {
            let Some(Link { ends, .. }) = self.pods.network.links.get(&id) else { continue };
            let (here, there) = (&ends[end.index()], &ends[end.other().index()]);
            match &here.lost {
                _ if there.coming.is_empty() => {}
                None => delivered = false,
                Some(Loss::Left) => {}
                Some(Loss::Failed(what)) => return Err(member(agent_id(there.machine), what)),
            }
        }
        Ok(delivered)
    }

    /// Whether every neighbour of a job is lost.
    pub(super) fn pod_is_alone(&self, machine: Machine, job: u64) -> bool {
        let links = self.pods.network.of(machine, job);
        let lost = |(id, end): &(u64, LinkEnd)| {
            self.pods.network.links.get(id).is_none_or(|link| link.ends[end.index()].lost.is_some())
        };
        !links.is_empty() && links.iter().all(lost)
    }

    /// An end of a link looks whether the other gives a sign of life.
    pub(in crate::sim) fn pod_listens(&mut self, id: u64, at: LinkEnd) {
        let Some(link) = self.pods.network.links.get(&id) else { return };
        let (here, there) = (&link.ends[at.index()], &link.ends[at.other().index()]);
        if !here.is_open || here.lost.is_some() {
            return;
        }
        let (machine, other, job) = (here.machine, there.machine, there.job);
        let lives = there.is_open && self.pod_is_there(other, job) && self.pod_path(machine, other);
        let most_ms = self.pod_deadline_ms().clamp(limits::POD_SILENCE_MS, limits::POD_IDLE_TIMEOUT_MS);
        let Some(link) = self.pods.network.links.get_mut(&id) else { return };
        let here = &mut link.ends[at.index()];
        here.silent_ms = if lives { 0 } else { here.silent_ms + LOOK_MS };
        if here.silent_ms >= most_ms {
            let what = format!("has given no sign of life for {} ms", here.silent_ms);
            self.pod_loses(id, at, &Loss::Failed(what));
        } else {
            self.after(LOOK_MS, Happening::PodListens { link: id, end: at });
        }
    }

    /// An end of a link is told that the other has closed it.
    pub(in crate::sim) fn pod_closed(&mut self, id: u64, at: LinkEnd, loss: Loss) {
        let Some(link) = self.pods.network.links.get(&id) else { return };
        let (here, there) = (link.ends[at.index()].machine, link.ends[at.other().index()].machine);
        if self.pod_path(here, there) {
            self.pod_loses(id, at, &loss);
        } else {
            self.after(LOOK_MS, Happening::PodClosed { link: id, end: at, loss });
        }
    }

    /// An end of a link has lost the member at the other one.
    fn pod_loses(&mut self, id: u64, at: LinkEnd, loss: &Loss) {
        let Some(link) = self.pods.network.links.get_mut(&id) else { return };
        let other = link.ends[at.other().index()].machine;
        let (mark, here) = (link.mark, &mut link.ends[at.index()]);
        if !here.is_open || here.lost.is_some() {
            return;
        }
        here.lost = Some(loss.clone());
        here.coming.clear();
        let (machine, job) = (here.machine, here.job);
        let (agent, what) = (
            agent_id(other),
            match loss {
                Loss::Left => "has left",
                Loss::Failed(what) => what,
            },
        );
        let error = member(agent, what);
        self.note(machine, Sign::Plain, || format!("attempt {} at lease {}: {error}", mark.attempt, mark.lease));
        let Some(work) = self.agent(machine).pod_work_mut().filter(|work| work.job == job) else { return };
        if *loss != Loss::Left {
            work.failure.get_or_insert(error.clone());
        }
        work.inbox.push_back(Item::Lost(error));
        self.pod_proceeds(machine);
    }

    /// A member cannot reach another one.
    fn pod_fails(&mut self, machine: Machine, job: u64, other: AgentId, what: &str) {
        let Some(work) = self.agent(machine).pod_work_mut().filter(|work| work.job == job) else { return };
        work.failure.get_or_insert(member(other, what));
        self.pod_proceeds(machine);
    }

    /// A job closes its links, and the other ends are told.
    pub(super) fn pod_closes(&mut self, machine: Machine, job: u64, loss: &Loss) {
        for (id, end, other) in self.pod_drops(machine, job) {
            let wait_ms = self.pod_delay_ms(machine, other, HEAD);
            self.after(wait_ms, Happening::PodClosed { link: id, end: end.other(), loss: loss.clone() });
        }
    }

    /// The links of a job have an end less, of which nobody is told. Returns those whose other end is open.
    pub(super) fn pod_drops(&mut self, machine: Machine, job: u64) -> Vec<(u64, LinkEnd, Machine)> {
        let mut open = Vec::new();
        for (id, end) in self.pods.network.of(machine, job) {
            let Some(link) = self.pods.network.links.get_mut(&id) else { continue };
            link.ends[end.index()].is_open = false;
            let there = &link.ends[end.other().index()];
            if there.is_open {
                open.push((id, end, there.machine));
            } else {
                self.pods.network.links.remove(&id);
            }
        }
        open
    }

    fn pod_deadline_ms(&self) -> u64 {
        self.schedule.pods.as_ref().map_or(0, PodPlan::deadline_ms)
    }

    pub(in crate::sim) fn machine_of(&self, agent: AgentId) -> Option<Machine> {
        (1..=self.agents.len()).find(|machine| agent_id(*machine) == agent)
    }
}

impl State {
    /// Whether the attempt is open and its links are not there yet.
    fn opens(&self) -> bool {
        matches!(self, Self::Opens)
    }
}

fn member(agent: AgentId, what: &str) -> WireError {
    WireError::Member { agent, reason: format!("member {}: {what}", agent.short()) }
}

/// Values of a parcel.
fn values(parcel: &Parcel) -> u64 {
    let count = match parcel {
        Parcel::Weights { own, tied, held } => own.len() + tied.len() + held.len(),
        Parcel::Activations { values, .. } | Parcel::Gradient { values, .. } | Parcel::TiedSum(values) => values.len(),
        Parcel::Layer(content) => content.left_out.len() + content.payload.len() / 4,
        Parcel::Base { values, .. } | Parcel::Chunk { values, .. } => values.len(),
        Parcel::Ended(_) => 1,
        Parcel::Labels(labels) => labels.len(),
        Parcel::Loss(_) => 1,
        Parcel::Tied { values, moved, .. } => values.len() + moved.len(),
    };
    count as u64
}
