//! Pods in a world: members compute with the product's code, each on a thread that runs only while the world waits for it, and
//! the world carries what goes between them.
//!
//! ```text
//!  session ─ Train, Serve ─► PodWork ─► worker: Maths, LinkedPods, train_owned or serve
//!                              │  ▲            ─ parcels, and what it asks for ─►
//!                              ▼  │
//!                            links ── queues of parcels, silence, cuts between two machines
//! ```
//! A member that has what it asked for computes for some virtual time; what it has sent leaves its machine at the end of that.

pub(super) mod draw;
mod lies;
mod links;
mod ring;
mod worker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;

use anabranch_agent::node::{Done, MathsJob};
use anabranch_agent::pod::{Address, Parcel, WireError};
use anabranch_agent::session::event::{Event, FeedbackState};
use anabranch_agent::shard::Examples;
use anabranch_agent::train::native::pipeline::{Contribution, Encoding, Pipeline};
use anabranch_common::ids::{AgentId, Digest, LeaseId};
use anabranch_common::journal::Lease;
use anabranch_common::pod::{PodOffer, PodRound, Schedule as Order};
use anabranch_common::spec::{AgentSpec, PodSpec};

use crate::invariants::pods::Pods as Watched;
use crate::picture::SpanKind;

use super::agent::{AgentMachine, Process};
use super::learner;
use super::schedule::{AgentPlan, Lie, Machine, PodPlan};
use super::trace::Sign;
use super::world::{Happening, World, agent_id};

use links::Network;
pub(super) use links::{LinkEnd, Loss};
use worker::{Answer, Ask, Turn, Worker};

/// A local round of a machine takes as long as so many pieces of a pod's round.
const PIECES: u64 = 48;
/// Memory that each member offers.
const MEMORY_BYTES: u64 = 1 << 30;

/// What lies between the members of all pods, and what must hold of them.
#[derive(Debug)]
pub(super) struct Pods {
    pub(super) network: Network,
    pub(super) watched: Watched,
    next_job: u64,
    lies: anabranch_common::rng::SplitMix64,
}

impl Pods {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            network: Network::new(seed),
            watched: Watched::default(),
            next_job: 0,
            lies: anabranch_common::rng::SplitMix64::new(seed ^ 0x5EED_0032),
        }
    }
}

/// What has come for a member.
#[derive(Debug)]
enum Item {
    Parcel(Address, Parcel),
    Lost(WireError),
}

/// What a member does.
#[derive(Debug)]
enum State {
    /// It computes, until this is what it has come to.
    Computes(Turn),
    /// It waits for its links.
    Opens,
    /// It waits for a parcel.
    Receives,
    /// It waits until everything has arrived.
    Delivers,
}

/// What a round has to come to.
#[derive(Debug)]
enum Expected {
    /// Of stages: what one machine computes.
    Alone(Contribution),
    /// Of replicas: the model that the same ring computes without links, and the difference that it makes.
    Ring { end: Digest, delta: Vec<f32> },
}

/// A member's part in an attempt.
#[derive(Debug)]
pub(super) struct PodWork {
    job: u64,
    pub(super) round: Box<PodRound>,
    worker: Worker,
    state: State,
    inbox: VecDeque<Item>,
    is_stopping: bool,
    begun_ms: u64,
    /// Since when no link with the owner is missing.
    linked_ms: u64,
    linked: BTreeSet<AgentId>,
    failure: Option<WireError>,
    /// What the owner has to hand in if the round comes to its end.
    expected: Option<Expected>,
}

impl PodWork {
    /// With whom a member is linked: the owner with everybody, and each helper with the next one.
    fn neighbours(&self, me: AgentId) -> Vec<AgentId> {
        let members = self.round.members();
        let at = members.iter().position(|member| *member == me);
        let is_near = |other: usize, at: usize| at == 0 || other == 0 || at.abs_diff(other) == 1;
        let others =
            members.iter().enumerate().filter(|(other, _)| at.is_some_and(|at| at != *other && is_near(*other, at)));
        others.map(|(_, member)| *member).collect()
    }

    /// Neighbours without a link.
    fn missing(&self, me: AgentId) -> Vec<AgentId> {
        self.neighbours(me).into_iter().filter(|other| !self.linked.contains(other)).collect()
    }

    /// Whether `me` dials `other`.
    fn dials(&self, me: AgentId, other: AgentId) -> bool {
        let members = self.round.members();
        let at = |agent: AgentId| members.iter().position(|member| *member == agent);
        at(me) < at(other)
    }
}

/// Returns what an agent offers to pods.
pub(super) fn offer(machine: Machine, plan: &AgentPlan, site: String) -> Option<PodOffer> {
    let flops_per_s = 1_000_000_000 / plan.round_ms.max(1);
    let address = format!("machine-{machine}:1");
    plan.pod.then(|| PodOffer {
        address,
        memory_bytes: MEMORY_BYTES,
        flops_per_s: flops_per_s.max(1),
        site,
        at_work: None,
    })
}

impl AgentMachine {
    pub(super) fn pod_work(&self) -> Option<&PodWork> {
        self.process.as_ref()?.pod.as_ref()
    }

    fn pod_work_mut(&mut self) -> Option<&mut PodWork> {
        self.process.as_mut()?.pod.as_mut()
    }

    fn work_of(&self, life: u64, job: u64) -> Option<&PodWork> {
        self.pod_work().filter(|work| self.life == life && work.job == job)
    }

    /// What its ledger holds of the model for an update under a lease, and the number of that state.
    fn held(&self, lease: &Lease) -> (FeedbackState, Vec<f32>) {
        let Some(Process { ledger, .. }) = &self.process else { return Default::default() };
        let all = 0..ledger.residual().or(ledger.memory().and_then(|(_, values)| values)).map_or(0, <[f32]>::len);
        (ledger.states().current(), ledger.held(lease.branch, lease.plan.memory, all).to_vec())
    }

    /// The largest attempt at a lease that this process has opened.
    fn pods_opened(&self, lease: LeaseId) -> Option<u32> {
        self.process.as_ref()?.opened.get(&lease).copied()
    }
}

impl World {
    /// A member begins its part: an own round, or a part of another agent's.
    pub(super) fn pod_begins(&mut self, machine: Machine, job: MathsJob) {
        let (round, expected) = match &job {
            MathsJob::Train { lease, spec, start, pod: Some(round) } => {
                self.agent(machine).rounds += 1;
                self.note(machine, Sign::Begin(SpanKind::Train), || format!("trains in {}", shown(round)));
                let expected = self.pod_expects(machine, (lease, round), spec, &start.model());
                (round.clone(), expected)
            }
            MathsJob::Serve { round, .. } => {
                self.note(machine, Sign::Begin(SpanKind::Train), || format!("helps in {}", shown(round)));
                (round.clone(), None)
            }
            _ => return,
        };
        let began = self.pods.watched.begins(agent_id(machine), self.agents[machine - 1].life, round.mark);
        self.checked(began);
        self.pods.next_job += 1;
        let (number, now_ms) = (self.pods.next_job, self.now_ms());
        let computes = round.owner == agent_id(machine) || matches!(self.schedule.pods, Some(PodPlan::Replicas(_)));
        let shard = (computes && !self.agents[machine - 1].plan.helper).then(|| learner::shard(machine));
        let held = match &job {
            MathsJob::Train { lease, .. } => self.agents[machine - 1].held(lease),
            _ => Default::default(),
        };
        let (worker, turn) = Worker::start(agent_id(machine), shard, held, job);
        let Some(process) = self.agent(machine).process.as_mut() else { return };
        process.pod = Some(PodWork {
            job: number,
            round,
            worker,
            state: State::Computes(turn),
            inbox: VecDeque::new(),
            is_stopping: false,
            begun_ms: now_ms,
            linked_ms: now_ms,
            linked: BTreeSet::new(),
            failure: None,
            expected,
        });
        self.pod_computes(machine, 0);
    }

    /// What one machine computes of a round, unless somebody may falsify it unseen. With a pipeline that never flushes it is
    /// cut as the pod's model is. Of replicas what the same members compute without links.
    fn pod_expects(
        &mut self,
        machine: Machine,
        (lease, round): (&Lease, &PodRound),
        spec: &AgentSpec,
        base: &[f32],
    ) -> Option<Expected> {
        let liars = |member: &AgentId| {
            let machine = self.machine_of(*member);
            machine.is_some_and(|machine| self.agents[machine - 1].plan.lie == Some(Lie::NotANumber))
        };
        if round.members().iter().any(liars) {
            return None;
        }
        let pod = match spec.pod.as_ref()? {
            PodSpec::Stages(pod) => pod,
            PodSpec::Replicas(_) => {
                let shards: Option<Vec<Examples>> =
                    round.members().iter().map(|member| self.machine_of(*member).map(learner::shard)).collect();
                let end = ring::end((round, spec), &shards?, base, lease.seed)?;
                let delta = end.iter().zip(base).map(|(end, base)| end - base).collect();
                return Some(Expected::Ring { end: Digest::of_f32(&end), delta });
            }
        };
        let ends = round.ends();
        let ends = if matches!(pod.schedule(), Order::Pipelined(_)) { ends } else { vec![*ends.last()?] };
        let shard: Examples = learner::shard(machine);
        let alone = Pipeline::new(&spec.model, &ends, 1).ok()?;
        let how = (pod.schedule(), pod.micro_batches());
        let go_on = &mut |_| ControlFlow::Continue(());
        let trained = alone.train(base, &spec.train, how, lease.seed, &shard, go_on).ok()?;
        let held = self.agents[machine - 1].held(lease).1;
        let encoding = Encoding::of(&lease.plan, &spec.upload);
        alone.contribution([base, &trained.end], &held, &encoding).ok().map(Expected::Alone)
    }

    /// A member computes what it has just come to, for as long as that takes.
    fn pod_computes(&mut self, machine: Machine, parcels: usize) {
        let agent = self.agent(machine);
        let piece_ms = (agent.plan.round_ms / PIECES).max(1);
        let life = agent.life;
        let Some(job) = agent.pod_work().map(|work| work.job) else { return };
        self.after(piece_ms * (1 + parcels as u64), Happening::PodTurn { machine, life, job });
    }

    /// A member has computed: what it has sent leaves, and it waits, or is through.
    pub(super) fn pod_turn(&mut self, machine: Machine, life: u64, job: u64) {
        if self.agents[machine - 1].work_of(life, job).is_none() {
            return;
        }
        let Some(work) = self.agent(machine).pod_work_mut() else { return };
        let is_stopping = work.is_stopping;
        let State::Computes(turn) = std::mem::replace(&mut work.state, State::Receives) else { return };
        match turn {
            Turn::Asks { what, sent } => {
                work.state = match what {
                    Ask::Links => State::Opens,
                    Ask::Parcel => State::Receives,
                    Ask::Delivery => State::Delivers,
                };
                if what == Ask::Links {
                    self.pod_opens(machine, life, job);
                }
                if !is_stopping {
                    self.pod_sends(machine, job, sent);
                }
                self.pod_proceeds(machine);
            }
            Turn::Done { event, sent, left_in_order } => {
                if !is_stopping {
                    self.pod_sends(machine, job, sent);
                }
                self.pod_is_over(machine, *event, left_in_order && !is_stopping);
            }
            Turn::Panicked(what) => self.violate("panic", format!("agent {machine} in a pod: {what}")),
        }
    }

    fn pod_opens(&mut self, machine: Machine, life: u64, job: u64) {
        let Some(process) = self.agent(machine).process.as_mut() else { return };
        let Some(work) = process.pod.as_mut() else { return };
        let mark = work.round.mark;
        match process.opened.get(&mark.lease).copied().filter(|newest| *newest >= mark.attempt) {
            Some(newest) => work.failure = Some(WireError::Repeated { attempt: mark.attempt, newest }),
            None => _ = process.opened.insert(mark.lease, mark.attempt),
        }
        self.after(0, Happening::PodLooks { machine, life, job });
    }

    /// A member goes on if what it waits for is there.
    fn pod_proceeds(&mut self, machine: Machine) {
        let Some(work) = self.agents[machine - 1].pod_work() else { return };
        let job = work.job;
        if matches!(work.state, State::Computes(_)) {
            return;
        }
        let is_alone = self.pod_is_alone(machine, job);
        let delivered = self.pod_is_delivered(machine, job);
        let Some(work) = self.agent(machine).pod_work_mut() else { return };
        let answer = if work.is_stopping {
            Some(Answer::Failed(WireError::Over))
        } else {
            match work.state {
                State::Computes(_) => None,
                State::Opens => match work.failure.clone() {
                    Some(failure) => Some(Answer::Failed(failure)),
                    None => work.missing(agent_id(machine)).is_empty().then_some(Answer::Granted),
                },
                State::Receives => match work.inbox.pop_front() {
                    Some(Item::Parcel(address, parcel)) => Some(Answer::Parcel(address, parcel)),
                    Some(Item::Lost(error)) => Some(Answer::Failed(error)),
                    None => is_alone.then(|| Answer::Failed(nobody_left(work, machine))),
                },
                State::Delivers => match delivered {
                    Ok(true) => Some(Answer::Granted),
                    Ok(false) => None,
                    Err(error) => Some(Answer::Failed(error)),
                },
            }
        };
        let Some(answer) = answer else { return };
        let turn = work.worker.go_on(answer);
        let parcels = turn.parcels();
        work.state = State::Computes(turn);
        self.pod_computes(machine, parcels);
    }

    /// A member's part is over.
    fn pod_is_over(&mut self, machine: Machine, event: Event, in_order: bool) {
        let now_ms = self.now_ms();
        let Some(work) = self.agent(machine).process.as_mut().and_then(|process| process.pod.take()) else { return };
        let loss = match (in_order, &work.failure) {
            (true, _) => Loss::Left,
            (false, None) => Loss::Failed("gave the attempt up".to_owned()),
            (false, Some(why)) => Loss::Failed(format!("gave the attempt up over {why}")),
        };
        self.pod_closes(machine, work.job, &loss);
        let mark = work.round.mark;
        let event = match event {
            // It was told to stop while it computed its last piece.
            Event::Trained(outcome) if work.is_stopping => Event::TrainingStopped { lease: outcome.lease },
            Event::Trained(mut outcome) => {
                // The thread's clock is a real one.
                outcome.compute_ms = now_ms - work.begun_ms;
                self.pods.watched.came_to_its_end(mark);
                let watched = &mut self.pods.watched;
                let whole = match (&work.expected, &outcome.pod) {
                    (Some(Expected::Alone(expected)), Some(content)) => watched.computed(mark, content, expected),
                    (Some(Expected::Ring { end, delta }), None) => {
                        watched.computed_in_a_ring(&work.round, &outcome.delta, (*end, delta))
                    }
                    _ => Ok(()),
                };
                self.checked(whole);
                Event::Trained(outcome)
            }
            event => event,
        };
        self.note(machine, Sign::End(SpanKind::Train), || {
            format!("attempt {} at lease {} is over here: {}", mark.attempt, mark.lease, told(&event))
        });
        self.done_in(machine, 0, Done::Maths(event));
    }

    /// The session has told the maths to stop.
    pub(super) fn pod_stops(&mut self, machine: Machine) {
        let Some(work) = self.agent(machine).pod_work_mut() else { return };
        work.is_stopping = true;
        work.worker.stop();
        self.pod_proceeds(machine);
    }

    /// Looks for leases that are held for too long.
    pub(super) fn pods_look(&mut self) {
        if self.schedule.pods.is_none() {
            return;
        }
        let joins = |agent: AgentId| {
            let machine = self.machine_of(agent);
            machine.is_some_and(|machine| self.agents[machine - 1].plan.pod)
        };
        let at_work = |lease: &Lease| {
            let work = self.machine_of(lease.agent).and_then(|machine| self.agents[machine - 1].pod_work());
            work.is_some_and(|work| work.round.mark.lease == lease.id)
        };
        let overdue = self.journal.overdue(self.unix_ms()).filter(|lease| joins(lease.agent) && !at_work(lease));
        let idle: BTreeSet<LeaseId> = overdue.map(|lease| lease.id).collect();
        let (life, now_ms) = (self.coordinator.life, self.now_ms());
        let looked = self.pods.watched.looked(life, now_ms, &idle);
        self.checked(looked);
    }

    /// Looks at the leases that have just ended.
    pub(super) fn pods_look_at_ended(&mut self) {
        for ended in self.journal.take_ended() {
            let joins = self.machine_of(ended.lease.agent).is_some_and(|machine| self.agents[machine - 1].plan.pod);
            if joins {
                let kept = self.pods.watched.ended_lease(&ended, self.schedule.max_staleness);
                self.checked(kept);
            }
        }
    }

    /// The process of a member is gone: the others are told of an orderly end, and of no other.
    pub(super) fn pod_process_ends(&mut self, machine: Machine, work: Option<PodWork>, in_order: bool) {
        let Some(work) = work else { return };
        if in_order {
            self.pod_closes(machine, work.job, &Loss::Failed("gave the attempt up over this agent stops".to_owned()));
        } else {
            self.pod_drops(machine, work.job);
        }
    }
}

fn nobody_left(work: &PodWork, machine: Machine) -> WireError {
    let agent = work.neighbours(agent_id(machine)).last().copied().unwrap_or(work.round.owner);
    WireError::Member { agent, reason: "was the last to be lost, and nothing more comes".to_owned() }
}

fn shown(round: &PodRound) -> String {
    let members: BTreeMap<AgentId, Vec<u32>> = round.parts.iter().fold(BTreeMap::new(), |mut members, part| {
        members.entry(part.agent).or_insert_with(Vec::new).push(part.end);
        members
    });
    let members: Vec<String> = members.iter().map(|(agent, ends)| format!("{} to {ends:?}", agent.short())).collect();
    format!("attempt {} at lease {}: {}", round.mark.attempt, round.mark.lease, members.join(", "))
}

fn told(event: &Event) -> String {
    match event {
        Event::Trained(_) => "trained".to_owned(),
        Event::TrainingStopped { .. } => "stopped".to_owned(),
        Event::PodFailed { problem, .. } | Event::Served { problem: Some(problem), .. } => problem.reason.clone(),
        Event::Served { problem: None, .. } => "helped".to_owned(),
        other => format!("{other:?}"),
    }
}
