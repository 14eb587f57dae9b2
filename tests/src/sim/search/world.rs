//! The loop, and the streams between agents and coordinator.

use std::collections::BTreeMap;

use anabranch_agent::host as agent_host;
use anabranch_agent::node::StoreJob;
use anabranch_common::ids::{Digest, RunId};
use anabranch_common::rng::SplitMix64;
use anabranch_common::wire::runs::RunsListed;
use anabranch_coordinator::host::Input;
use anabranch_coordinator::search::record::{CloseReason, TrialId};

use crate::invariants::journal::{Checked, Violation};
use crate::invariants::search::SearchWatch;
use crate::sim::Outcome;
use crate::sim::network::{Charge, Conn, Down, Side, Up};
use crate::sim::schedule::Machine;
use crate::sim::time::Agenda;
use crate::sim::trace::{Sign, Trace};

use super::Searched;
use super::agent::Agent;
use super::coordinator::Coordinator;
use super::plan::{Divergence, KillAt, SearchPlan};

/// A Unix time at which worlds begin.
const BEGINNING_MS: u64 = 1_700_000_000_000;
/// How long the search may take after the last trouble.
const ENDING_MS: u64 = 600_000;
/// Events of one world: more means that something goes round in circles.
const EVENTS_MAX: u64 = 500_000;

/// What a stream of an agent's connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Control of a run.
    Run(RunId),
    /// The list of runs.
    List,
}

/// A stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) conn: Conn,
    pub(super) purpose: Purpose,
}

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Happening {
    /// The process of a machine starts.
    Start(Machine),
    /// The coordinator is killed, if this kill of the plan has not come yet.
    Kill(usize),
    Trouble(usize),
    Order(usize),
    Heal,
    Ask(u64),
    Tick(u64),
    /// A job of a process of the coordinator.
    Job(u64, u64),
    Coordinator(u64, Box<Input>),
    Dial {
        machine: Machine,
        life: u64,
        purpose: Purpose,
        number: u64,
    },
    Subscribed(u64),
    Up(u64, Up),
    Down(u64, Down),
    Listed(u64, Box<RunsListed>),
    Lost(u64, Side),
    ChunksSent {
        stream: u64,
        transfer: Digest,
    },
    AgentTick {
        machine: Machine,
        life: u64,
    },
    /// A job of an agent is done; a round only if it was not stopped in the meantime.
    AgentDone {
        machine: Machine,
        life: u64,
        round: Option<u64>,
        input: Box<agent_host::Input>,
    },
    AgentStore {
        machine: Machine,
        life: u64,
        run: RunId,
        job: Box<StoreJob>,
    },
    AgentBegins {
        machine: Machine,
        life: u64,
        run: RunId,
    },
}

/// A process with a search, and its agents.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) plan: SearchPlan,
    pub(super) agenda: Agenda<Happening>,
    pub(super) rng: SplitMix64,
    pub(super) coordinator: Coordinator,
    /// Agent n is machine n + 1.
    pub(super) agents: Vec<Agent>,
    pub(super) streams: BTreeMap<u64, Stream>,
    next_stream: u64,
    pub(super) watch: SearchWatch,
    pub(super) trace: Trace,
    violation: Option<(u64, Violation)>,
    pub(super) is_healed: bool,
    /// The process has ended, and everything with it.
    pub(super) is_over: bool,
    /// Kills of the plan that have not come.
    pub(super) kills: BTreeMap<usize, KillAt>,
    pub(super) faults: u64,
    events: u64,
}

impl World {
    pub(super) fn new(seed: u64, plan: SearchPlan, traced: bool) -> Self {
        let mut rng = SplitMix64::new(seed ^ 0x5EED_0310);
        let agents: Vec<Agent> = plan.agents.iter().map(|agent| Agent::new(agent.clone(), rng.next_u64())).collect();
        let why = |kind| match kind {
            Divergence::Overflows | Divergence::CannotBeEvaluated => CloseReason::Diverged,
            Divergence::GivesNoUpdate => CloseReason::Failed,
        };
        let diverging = plan.diverging.iter().map(|(trial, kind)| (TrialId(*trial), why(*kind))).collect();
        let mut world = Self {
            seed,
            agenda: Agenda::default(),
            coordinator: Coordinator::new(&plan, agents.len()),
            watch: SearchWatch::new(diverging),
            rng,
            agents,
            streams: BTreeMap::new(),
            next_stream: 0,
            trace: Trace::new(traced),
            violation: None,
            is_healed: false,
            is_over: false,
            kills: plan.kills.iter().map(|kill| kill.at).enumerate().collect(),
            faults: 0,
            events: 0,
            plan,
        };
        world.agenda.at(0, Happening::Start(0));
        for (index, agent) in world.plan.agents.iter().enumerate() {
            world.agenda.at(agent.start_ms, Happening::Start(index + 1));
        }
        for (index, kill) in world.plan.kills.iter().enumerate() {
            if let KillAt::Ms(at_ms) = kill.at {
                world.agenda.at(at_ms, Happening::Kill(index));
            }
        }
        for (index, trouble) in world.plan.troubles.iter().enumerate() {
            world.agenda.at(trouble.at_ms, Happening::Trouble(index));
        }
        for (index, (at_ms, _)) in world.plan.orders.iter().enumerate() {
            world.agenda.at(*at_ms, Happening::Order(index));
        }
        world.agenda.at(world.plan.length_ms, Happening::Heal);
        world
    }

    pub(super) fn run(mut self) -> Outcome {
        let until_ms = self.plan.length_ms + ENDING_MS;
        while self.violation.is_none() && !self.is_over {
            let Some(next) = self.agenda.next(until_ms) else {
                self.violate("P6", format!("the search is not over {} s after the last trouble", ENDING_MS / 1000));
                break;
            };
            self.events += 1;
            self.happen(next);
            if self.events > EVENTS_MAX {
                self.violate("P6", format!("{EVENTS_MAX} events and no end"));
            }
        }
        if self.violation.is_none() {
            let audited = self.audit();
            self.checked(audited);
        }
        self.outcome()
    }

    fn outcome(self) -> Outcome {
        let virtual_ms = self.agenda.now_ms();
        let timeline = self.trace.timeline(self.agents.len() + 1, virtual_ms);
        let (acknowledged, lost) = self.watch.acknowledged();
        Outcome {
            seed: self.seed,
            acknowledged,
            lost,
            rounds: self.agents.iter().map(|agent| agent.rounds).collect(),
            versions: self.watch.versions(),
            measured: self.watch.measured(),
            recoveries: self.coordinator.life.saturating_sub(1),
            faults: self.faults,
            virtual_ms,
            events: self.events,
            trace: self.trace.text(),
            timeline: Some(timeline).filter(|timeline| !timeline.log.is_empty()),
            searched: Some(Searched {
                decisions: self.watch.decisions(),
                steps: self.coordinator.steps,
                trials: self.watch.trials(),
                closed: self.watch.closed(),
                winner: self.watch.winner(),
            }),
            violation: self.violation,
            ..Outcome::default()
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.agenda.now_ms()
    }

    pub(super) fn unix_ms(&self) -> u64 {
        BEGINNING_MS + self.now_ms()
    }

    pub(super) fn after(&mut self, ms: u64, what: Happening) {
        self.agenda.at(self.agenda.now_ms() + ms, what);
    }

    pub(super) fn note(&mut self, machine: Machine, text: impl FnOnce() -> String) {
        self.trace.note(self.agenda.now_ms(), machine, Sign::Plain, text);
    }

    pub(super) fn checked(&mut self, checked: Checked) {
        if let Err(violation) = checked
            && self.violation.is_none()
        {
            self.note(0, || violation.to_string());
            self.violation = Some((self.agenda.now_ms(), violation));
        }
    }

    pub(super) fn violate(&mut self, invariant: &'static str, what: impl Into<String>) {
        self.checked(Err(Violation { invariant, what: what.into() }));
    }

    pub(super) fn agent(&mut self, machine: Machine) -> &mut Agent {
        &mut self.agents[machine - 1]
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Start(0) => self.start_coordinator(),
            Happening::Start(machine) => self.start_agent(machine),
            Happening::Kill(index) => {
                if self.kills.remove(&index).is_some() && !self.is_healed {
                    self.kill_coordinator(index);
                }
            }
            Happening::Trouble(index) => self.trouble(index),
            Happening::Order(index) => self.order(index),
            Happening::Heal => self.heal(),
            Happening::Ask(life) => self.ask_for_search(life),
            Happening::Tick(life) => self.coordinator_tick(life),
            Happening::Job(life, job) => self.job(life, job),
            Happening::Coordinator(life, input) => {
                if self.coordinator.is_life(life) {
                    self.coordinator_takes(*input);
                }
            }
            Happening::Dial { machine, life, purpose, number } => self.dial(machine, life, purpose, number),
            Happening::Subscribed(stream) => self.subscribed(stream),
            Happening::Up(stream, parcel) => self.arrived_up(stream, parcel),
            Happening::Down(stream, parcel) => self.arrived_down(stream, parcel),
            Happening::Listed(stream, list) => self.listed(stream, *list),
            Happening::Lost(stream, side) => self.lost(stream, side),
            Happening::ChunksSent { stream, transfer } => self.chunks_sent(stream, transfer),
            Happening::AgentTick { machine, life } => self.agent_tick(machine, life),
            Happening::AgentDone { machine, life, round, input } => self.agent_done(machine, life, round, *input),
            Happening::AgentStore { machine, life, run, job } => self.agent_stores(machine, life, run, *job),
            Happening::AgentBegins { machine, life, run } => self.agent_begins(machine, life, run),
        }
    }

    pub(super) fn open_stream(&mut self, machine: Machine, number: u64, purpose: Purpose) -> u64 {
        self.next_stream += 1;
        self.streams.insert(self.next_stream, Stream { conn: Conn::new(machine, number), purpose });
        self.next_stream
    }

    /// Returns when something small arrives that is sent now on a stream, which keeps its order.
    pub(super) fn arrival(&mut self, id: u64, to: Side) -> Option<u64> {
        let now_ms = self.now_ms();
        let Stream { conn, .. } = self.streams.get_mut(&id)?;
        let line = &mut self.agents[conn.machine - 1].line;
        Some(conn.in_order(to, line.arrival(to, now_ms)))
    }

    /// Returns when it arrives.
    pub(super) fn send_up(&mut self, id: u64, parcel: Up) -> u64 {
        let now_ms = self.now_ms();
        let Some(Stream { conn, .. }) = self.streams.get_mut(&id) else { return now_ms };
        let line = &mut self.agents[conn.machine - 1].line;
        let at_ms = conn.carry(line, Side::Coordinator, now_ms, (&parcel, Charge::Free));
        self.agenda.at(at_ms, Happening::Up(id, parcel));
        at_ms
    }

    /// Returns when it arrives.
    pub(super) fn send_down(&mut self, id: u64, parcel: Down) -> u64 {
        let now_ms = self.now_ms();
        let Some(Stream { conn, .. }) = self.streams.get_mut(&id) else { return now_ms };
        let line = &mut self.agents[conn.machine - 1].line;
        let at_ms = conn.carry(line, Side::Agent, now_ms, (&parcel, Charge::Free));
        self.agenda.at(at_ms, Happening::Down(id, parcel));
        at_ms
    }

    /// One end closes or gives up a stream; the other learns of it when that reaches it, or by silence.
    pub(super) fn lost(&mut self, id: u64, side: Side) {
        let now_ms = self.now_ms();
        let Some(Stream { conn, purpose }) = self.streams.get_mut(&id).filter(|stream| stream.conn.is_up(side)) else {
            return;
        };
        let (machine, peer, purpose) = (conn.machine, conn.peer, *purpose);
        match conn.lose(side, &mut self.agents[machine - 1].line, now_ms) {
            Some((other, at_ms)) => self.agenda.at(at_ms, Happening::Lost(id, other)),
            None => drop(self.streams.remove(&id)),
        }
        match side {
            Side::Agent => self.agent_lost(machine, id, purpose),
            Side::Coordinator => self.coordinator_lost(id, peer),
        }
    }
}
