//! The loop: one thing at a time, in the order of virtual time.

use std::collections::BTreeMap;

use anabranch_agent::node::{Done, StoreJob};
use anabranch_agent::session::Waits;
use anabranch_common::ids::{AgentId, Digest, ModelVersion, Position, RunId};
use anabranch_common::rng::SplitMix64;
use anabranch_common::wire::operator::RunRequest;
use anabranch_coordinator::host::Input;

use crate::invariants::journal::{Attackers, Checked, Journal, Violation};
use crate::invariants::progress;
use crate::picture::MarkKind;

use super::Outcome;
use super::agent::AgentMachine;
use super::coordinator::CoordinatorMachine;
use super::faults::Hindrance;
use super::network::{Charge, Conn, Down, Side, Up};
use super::pods::{LinkEnd, Loss, Pods};
use super::schedule::{Machine, Schedule};
use super::setting::Setting;
use super::trace::{Sign, Trace};

/// A Unix time at which worlds begin.
const BEGINNING_MS: u64 = 1_700_000_000_000;
/// How long everything may take to come to rest after the faults.
const HEALING_MS: u64 = 900_000;
/// The same where agents compute in pods.
const HEALING_OF_PODS_MS: u64 = 300_000;
/// How long the end may take.
const ENDING_MS: u64 = 120_000;
/// Events of one world: more means that something goes round in circles.
const EVENTS_MAX: u64 = 2_000_000;

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Happening {
    Start(Machine),
    Fault(usize),
    Resume,
    Heal,
    Look,
    Tick(u64),
    Write(u64),
    Merge(u64),
    Checkpoint(u64),
    Save(u64),
    Coordinator(u64, Box<Input>),
    Dial { machine: Machine, life: u64, dial: u64 },
    Refused { machine: Machine, life: u64, dial: u64 },
    Up(u64, Up),
    Down(u64, Down),
    Lost(u64, Side),
    Silent { machine: Machine, until_ms: u64 },
    Idle(u64, Side),
    ChunksSent { conn: u64, transfer: Digest },
    AgentTick { machine: Machine, life: u64 },
    AgentDone { machine: Machine, life: u64, job: u64, done: Box<Done> },
    AgentStore { machine: Machine, life: u64, job: Box<StoreJob> },
    PodTurn { machine: Machine, life: u64, job: u64 },
    PodLooks { machine: Machine, life: u64, job: u64 },
    PodArrives { link: u64, end: LinkEnd },
    PodListens { link: u64, end: LinkEnd },
    PodClosed { link: u64, end: LinkEnd, loss: Loss },
    PodLies { machine: Machine },
}

/// One run with everything around it.
pub(crate) struct World {
    pub(super) seed: u64,
    pub(super) schedule: Schedule,
    pub(super) agenda: super::time::Agenda<Happening>,
    pub(super) rng: SplitMix64,
    pub(super) coordinator: CoordinatorMachine,
    /// Agent n is machine n + 1.
    pub(super) agents: Vec<AgentMachine>,
    pub(super) pods: Pods,
    pub(super) conns: BTreeMap<u64, Conn>,
    pub(super) next_conn: u64,
    pub(super) journal: Journal,
    pub(super) trace: Trace,
    pub(super) violation: Option<(u64, Violation)>,
    pub(super) healed_at_ms: Option<u64>,
    pub(super) stopping: bool,
    pub(super) setting: Setting,
    /// By machine.
    pub(super) hindrances: Vec<Hindrance>,
    pub(super) faults: u64,
    events: u64,
}

/// Bytes of chunks that have left the lines since there is a run: of updates up, of models down. What is sent again is
/// counted again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) up_bytes: u64,
    pub(crate) down_bytes: u64,
}

impl World {
    /// A simulated world, which ends some time after its faults.
    pub(super) fn new(seed: u64, schedule: Schedule, traced: bool) -> Self {
        let setting = Setting::simulated(seed, &schedule);
        let mut world = Self::with(seed, schedule, setting, traced);
        world.agenda.at(world.schedule.length_ms, Happening::Heal);
        world
    }

    /// A world that goes on as long as [`advance`](Self::advance) lets it.
    pub(crate) fn with(seed: u64, schedule: Schedule, setting: Setting, traced: bool) -> Self {
        let mut split = SplitMix64::new(seed ^ 0x5EED_0003);
        let agents = (0..schedule.agents.len())
            .map(|index| AgentMachine::new(index + 1, schedule.agents[index].clone(), split.next_u64()));
        let agents: Vec<AgentMachine> = agents.collect();
        let hostile = agents.iter().filter(|agent| agent.plan.hostile.is_some());
        let attackers =
            Attackers { agents: hostile.map(|agent| agent_id(agent.machine)).collect(), params: schedule.params };
        let mut world = Self {
            seed,
            agenda: super::time::Agenda::default(),
            rng: SplitMix64::new(split.next_u64()),
            coordinator: CoordinatorMachine::new(&agents),
            agents,
            pods: Pods::new(seed),
            conns: BTreeMap::new(),
            next_conn: 0,
            journal: Journal::with(attackers),
            trace: Trace::new(traced),
            violation: None,
            healed_at_ms: None,
            stopping: false,
            setting,
            hindrances: vec![Hindrance::default(); schedule.agents.len() + 1],
            faults: 0,
            events: 0,
            schedule,
        };
        world.agenda.at(0, Happening::Start(0));
        for (index, agent) in world.schedule.agents.iter().enumerate() {
            world.agenda.at(agent.start_ms, Happening::Start(index + 1));
            if agent.lie.is_some() {
                world.agenda.at(agent.start_ms, Happening::PodLies { machine: index + 1 });
            }
        }
        for (index, planned) in world.schedule.faults.iter().enumerate() {
            world.agenda.at(planned.at_ms, Happening::Fault(index));
        }
        world
    }

    pub(super) fn run(mut self) -> Outcome {
        self.advance(self.schedule.length_ms + HEALING_MS + ENDING_MS);
        self.finish().0
    }

    /// Lets everything happen until this time, and what happens at it, unless a promise is broken or the world is over.
    pub(crate) fn advance(&mut self, until_ms: u64) {
        while self.violation.is_none() && !self.is_over() {
            let Some(next) = self.agenda.next(until_ms) else { break };
            self.events += 1;
            self.happen(next);
            if self.events > EVENTS_MAX {
                self.violate("P6", format!("{EVENTS_MAX} events and no end"));
            }
        }
    }

    /// When the next thing happens, in milliseconds since the world began.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.agenda.next_ms()
    }

    /// The operator asks something of the run.
    pub(crate) fn asks(&mut self, request: RunRequest) {
        self.operate(request);
    }

    /// kill -9 of the coordinator, which starts again at once.
    pub(crate) fn kill_coordinator(&mut self) {
        self.kill(0, false, Some(0));
    }

    /// The newest version of the model.
    pub(crate) fn version(&self) -> ModelVersion {
        self.coordinator.newest_version
    }

    /// Audits what is stored, as if every process had been killed now. Returns what became of the world, and the journal.
    pub(crate) fn finish(mut self) -> (Outcome, Journal) {
        if self.violation.is_none() {
            let audited = self.audit();
            self.checked(audited);
        }
        (self.outcome(), self.journal)
    }

    /// What became of the world so far.
    pub(crate) fn outcome(&self) -> Outcome {
        let (acknowledged, lost) = self.journal.acknowledged();
        let virtual_ms = self.agenda.now_ms();
        let timeline = self.trace.timeline(self.agents.len() + 1, virtual_ms);
        Outcome {
            seed: self.seed,
            acknowledged,
            lost,
            duplicated: self.coordinator.duplicated,
            rounds: self.agents.iter().map(|agent| agent.rounds).collect(),
            versions: self.coordinator.newest_version.0,
            models: self.journal.models(),
            pod_rounds: self.pods.watched.completed(),
            measured: self.journal.aggregates(),
            recoveries: self.coordinator.life.saturating_sub(1),
            faults: self.faults,
            virtual_ms,
            events: self.events,
            trace: self.trace.text(),
            timeline: Some(timeline).filter(|timeline| !timeline.log.is_empty()),
            searched: None,
            violation: self.violation.clone(),
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.agenda.now_ms()
    }

    /// Whether a promise was broken: nothing happens any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.violation.is_some()
    }

    /// What the time of the processes that run went into, as their sessions tell.
    pub(crate) fn waits(&self) -> Vec<Waits> {
        self.agents.iter().filter_map(AgentMachine::waits).collect()
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let sent = |to| self.agents.iter().map(|agent| agent.line.sent_bytes(to, self.now_ms())).sum();
        Traffic { up_bytes: sent(Side::Coordinator), down_bytes: sent(Side::Agent) }
    }

    /// Bytes of models that went to each agent, the first agent first.
    pub(crate) fn down_bytes(&self) -> Vec<u64> {
        self.agents.iter().map(|agent| agent.line.sent_bytes(Side::Agent, self.now_ms())).collect()
    }

    /// How many versions behind each accepted update was, oldest first.
    pub(crate) fn staleness(&self) -> Vec<u64> {
        self.journal.staleness()
    }

    /// Updates that are merged so far.
    pub(crate) fn merged(&self) -> u64 {
        self.journal.merged().len() as u64
    }

    pub(super) fn unix_ms(&self) -> u64 {
        (BEGINNING_MS + self.now_ms()).saturating_add_signed(self.coordinator.clock_off_ms)
    }

    pub(super) fn after(&mut self, ms: u64, what: Happening) {
        self.agenda.at(self.agenda.now_ms() + ms, what);
    }

    pub(super) fn note(&mut self, machine: Machine, sign: Sign, text: impl FnOnce() -> String) {
        self.trace.note(self.agenda.now_ms(), machine, sign, text);
    }

    pub(super) fn checked(&mut self, checked: Checked) {
        if let Err(violation) = checked
            && self.violation.is_none()
        {
            self.note(0, Sign::Mark(MarkKind::Violation), || violation.to_string());
            self.violation = Some((self.agenda.now_ms(), violation));
        }
    }

    pub(super) fn violate(&mut self, invariant: &'static str, what: impl Into<String>) {
        self.checked(Err(Violation { invariant, what: what.into() }));
    }

    pub(super) fn agent(&mut self, machine: Machine) -> &mut AgentMachine {
        &mut self.agents[machine - 1]
    }

    /// What is for a process that stands still waits for it; what a device computes waits for the device.
    fn put_off(&self, what: &Happening) -> Option<u64> {
        let owner = |conn: &u64, side: Side| match side {
            Side::Agent => self.conns.get(conn).map(|conn| conn.machine),
            Side::Coordinator => Some(0),
        };
        let machine = match what {
            Happening::Resume
            | Happening::Tick(_)
            | Happening::Write(_)
            | Happening::Merge(_)
            | Happening::Checkpoint(_)
            | Happening::Save(_)
            | Happening::Coordinator(..)
            | Happening::Up(..) => Some(0),
            Happening::AgentDone { machine, .. } | Happening::PodTurn { machine, .. } => {
                let hangs_until_ms = self.hindrances[*machine].hangs_until_ms;
                return self.stopped_until(*machine).max(Some(hangs_until_ms).filter(|until| *until > self.now_ms()));
            }
            Happening::Dial { machine, .. }
            | Happening::Refused { machine, .. }
            | Happening::AgentTick { machine, .. }
            | Happening::AgentStore { machine, .. }
            | Happening::PodLooks { machine, .. }
            | Happening::PodLies { machine } => Some(*machine),
            Happening::PodArrives { link, end }
            | Happening::PodListens { link, end }
            | Happening::PodClosed { link, end, .. } => self.pods.network.machine(*link, *end),
            Happening::Down(conn, _) | Happening::ChunksSent { conn, .. } => owner(conn, Side::Agent),
            Happening::Lost(conn, side) | Happening::Idle(conn, side) => owner(conn, *side),
            Happening::Start(_)
            | Happening::Fault(_)
            | Happening::Heal
            | Happening::Look
            | Happening::Silent { .. } => None,
        };
        self.stopped_until(machine?)
    }

    fn happen(&mut self, what: Happening) {
        if let Some(until_ms) = self.put_off(&what) {
            return self.agenda.at(until_ms, what);
        }
        match what {
            Happening::Start(0) => self.start_coordinator(),
            Happening::Start(machine) => self.start_agent(machine),
            Happening::Fault(index) => self.fault(index),
            Happening::Resume => self.resume(),
            Happening::Heal => self.heal(),
            Happening::Look => self.look(),
            Happening::Tick(life) => self.coordinator_tick(life),
            Happening::Write(life) => self.write(life),
            Happening::Merge(life) => self.merge(life),
            Happening::Checkpoint(life) => self.checkpoint(life),
            Happening::Save(life) => self.save(life),
            Happening::Coordinator(life, input) => {
                if self.coordinator.is_life(life) {
                    self.coordinator_takes(*input);
                }
            }
            Happening::Dial { machine, life, dial } => self.dial(machine, life, dial),
            Happening::Refused { machine, life, dial } => self.dial_failed(machine, life, dial),
            Happening::Up(conn, up) => self.arrived_up(conn, up),
            Happening::Down(conn, down) => self.arrived_down(conn, down),
            Happening::Lost(conn, side) => self.lost(conn, side),
            Happening::Silent { machine, until_ms } => self.silent(machine, until_ms),
            Happening::Idle(conn, side) => {
                let Some(machine) = self.conns.get(&conn).map(|conn| conn.machine) else { return };
                let now_ms = self.now_ms();
                if self.agent(machine).line.is_deaf(side, now_ms) {
                    self.lost(conn, side);
                }
            }
            Happening::ChunksSent { conn, transfer } => self.chunks_sent(conn, transfer),
            Happening::AgentTick { machine, life } => self.agent_tick(machine, life),
            Happening::AgentDone { machine, life, job, done } => self.agent_done(machine, life, job, *done),
            Happening::AgentStore { machine, life, job } => self.agent_stores(machine, life, *job),
            Happening::PodTurn { machine, life, job } => self.pod_turn(machine, life, job),
            Happening::PodLooks { machine, life, job } => self.pod_looks(machine, life, job),
            Happening::PodArrives { link, end } => self.pod_arrives(link, end),
            Happening::PodListens { link, end } => self.pod_listens(link, end),
            Happening::PodClosed { link, end, loss } => self.pod_closed(link, end, loss),
            Happening::PodLies { machine } => self.pod_lies(machine),
        }
    }

    /// P6 and P8: after the faults every agent that is there is heard, and what was finished is decided, in bounded time.
    fn look(&mut self) {
        let Some(healed_at_ms) = self.healed_at_ms.filter(|_| !self.stopping) else { return };
        let waiting: Vec<String> =
            self.agents.iter().filter_map(|agent| agent.waits_for(&self.journal, healed_at_ms)).collect();
        if waiting.is_empty() {
            self.note(0, Sign::Plain, || "every agent was heard; the operator stops the run".into());
            self.stopping = true;
            self.operate(RunRequest::Stop);
            return;
        }
        let most_ms = if self.schedule.pods.is_some() { HEALING_OF_PODS_MS } else { HEALING_MS };
        if self.now_ms() >= healed_at_ms + most_ms {
            return self.violate("P6", format!("{} s after the last fault: {}", most_ms / 1000, waiting.join("; ")));
        }
        let since_ms = self.now_ms() - healed_at_ms;
        let progress = self.agents.iter().filter_map(|agent| agent.progress(self.schedule.target_round_ms));
        let stalled = progress.map(|progress| progress::check(&progress, since_ms)).find(Checked::is_err);
        self.checked(stalled.unwrap_or(Ok(())));
        self.resume();
        self.after(1_000, Happening::Look);
    }

    fn is_over(&self) -> bool {
        self.stopping && self.coordinator.process.is_none() && self.agents.iter().all(|agent| agent.process.is_none())
    }

    pub(super) fn open_conn(&mut self, machine: Machine, link: u64) -> u64 {
        self.next_conn += 1;
        self.conns.insert(self.next_conn, Conn::new(machine, link));
        self.next_conn
    }

    /// Returns when it arrives.
    pub(super) fn send_up(&mut self, conn: u64, parcel: Up) -> u64 {
        let now_ms = self.now_ms();
        let Some(entry) = self.conns.get_mut(&conn) else { return now_ms };
        let line = &mut self.agents[entry.machine - 1].line;
        // Before there is a run the initial model goes up.
        let charge = if self.journal.next() > Position(0) { Charge::Charged } else { Charge::Free };
        let at_ms = entry.carry(line, Side::Coordinator, now_ms, (&parcel, charge));
        self.agenda.at(at_ms, Happening::Up(conn, parcel));
        at_ms
    }

    /// Returns when it arrives.
    pub(super) fn send_down(&mut self, conn: u64, parcel: Down) -> u64 {
        let now_ms = self.now_ms();
        let Some(entry) = self.conns.get_mut(&conn) else { return now_ms };
        let line = &mut self.agents[entry.machine - 1].line;
        let at_ms = entry.carry(line, Side::Agent, now_ms, (&parcel, Charge::Charged));
        self.agenda.at(at_ms, Happening::Down(conn, parcel));
        at_ms
    }

    /// One end closes or gives up a connection; the other learns of it when that reaches it, or by silence.
    pub(super) fn lost(&mut self, id: u64, side: Side) {
        let now_ms = self.now_ms();
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.is_up(side)) else { return };
        let (machine, peer) = (conn.machine, conn.peer);
        match conn.lose(side, &mut self.agents[machine - 1].line, now_ms) {
            Some((other, at_ms)) => self.agenda.at(at_ms, Happening::Lost(id, other)),
            None => drop(self.conns.remove(&id)),
        }
        match side {
            Side::Agent => self.agent_lost(machine, id),
            Side::Coordinator => self.coordinator_lost(id, peer),
        }
    }
}

pub(super) const RUN: RunId = RunId([7; 16]);

/// Sixteen times the machine's number in a byte, or a byte that is no such number and the number.
pub(crate) fn agent_id(machine: Machine) -> AgentId {
    match u8::try_from(machine) {
        Ok(number) if number < u8::MAX => AgentId([number; 16]),
        _ => AgentId((u128::from(u8::MAX) << 120 | machine as u128).to_be_bytes()),
    }
}
