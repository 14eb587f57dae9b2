//! An agent's machine: its disks, its line, and the process while there is one.

use std::collections::BTreeMap;

use anabranch_agent::host::{AgentHost, Input, Output};
use anabranch_agent::node::{self, AgentNode, Done, Job};
use anabranch_agent::session::command::Ending;
use anabranch_agent::session::event::{Event, Problem};
use anabranch_agent::session::{Session, SessionConfig};
use anabranch_agent::store::Ledger;
use anabranch_common::ids::{Incarnation, LeaseId, RunId};
use anabranch_common::limits;
use anabranch_common::rng::SplitMix64;

use crate::sim::disk::SimDisk;
use crate::sim::network::{Line, Side};
use crate::sim::schedule::{LinkPlan, Machine};
use crate::sim::time::Alarm;
use crate::sim::world::agent_id;

use super::coordinator::run_id;
use super::plan::{OWN, SearchAgent};
use super::world::{Happening, Purpose, World};

/// Bytes in a millisecond that a line takes.
const BANDWIDTH: f64 = 1_000.0;

/// What a process has of one run.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) ledger: Ledger,
    pub(super) stream: Option<u64>,
    /// The node's number for its newest link.
    pub(super) link: u64,
}

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) host: AgentHost,
    pub(super) parts: BTreeMap<RunId, Part>,
    started_ms: u64,
    pub(super) incarnation: Incarnation,
    backoff_seed: u64,
    /// The stream with lists, and how often one was asked for.
    list: (u64, Option<u64>),
    alarm: Alarm,
    pub(super) next_round: u64,
    /// The local round that is computed.
    pub(super) round: Option<(u64, RunId, LeaseId)>,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) plan: SearchAgent,
    /// By run.
    pub(super) disks: BTreeMap<RunId, SimDisk>,
    pub(super) line: Line,
    pub(super) process: Option<Process>,
    pub(super) life: u64,
    pub(super) gone: bool,
    pub(super) rng: SplitMix64,
    pub(super) rounds: u64,
    /// Evaluations of each run.
    pub(super) evaluations: BTreeMap<RunId, u64>,
}

impl Agent {
    pub(super) fn new(plan: SearchAgent, seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed);
        let link = LinkPlan { delay_ms: plan.delay_ms, jitter_ms: 5, loss: 0.0, bandwidth: BANDWIDTH };
        Self {
            plan,
            disks: BTreeMap::new(),
            line: Line::new(link.clone(), link, rng.next_u64()),
            process: None,
            life: 0,
            gone: false,
            rng,
            rounds: 0,
            evaluations: BTreeMap::new(),
        }
    }

    pub(super) fn heal(&mut self, now_ms: u64) {
        self.line.heal(now_ms);
        self.plan.evaluation_fails_every = 0;
    }
}

impl World {
    pub(super) fn start_agent(&mut self, machine: Machine) {
        let now_ms = self.now_ms();
        let agent = self.agent(machine);
        if agent.gone || agent.process.is_some() {
            return;
        }
        agent.life += 1;
        let incarnation = Incarnation(std::array::from_fn(|_| agent.rng.next_u64().to_le_bytes()[0]));
        let backoff_seed = agent.rng.next_u64();
        let home = run_id(OWN);
        let (node, part) = match self.part(machine, home, incarnation, backoff_seed) {
            Ok(opened) => opened,
            Err(problem) => return self.violate("P7", problem),
        };
        let mut host = AgentHost::new(home, node, true);
        let outputs = host.start(0);
        self.agent(machine).process = Some(Process {
            host,
            parts: BTreeMap::from([(home, part)]),
            started_ms: now_ms,
            incarnation,
            backoff_seed,
            list: (0, None),
            alarm: Alarm::default(),
            next_round: 0,
            round: None,
        });
        self.note(machine, || "starts".into());
        self.agent_carries_out(machine, outputs);
    }

    /// Opens the store of a run and makes its node.
    fn part(
        &mut self,
        machine: Machine,
        run: RunId,
        incarnation: Incarnation,
        backoff_seed: u64,
    ) -> Result<(AgentNode, Part), String> {
        let agent = self.agent(machine);
        let disk = agent.disks.entry(run).or_default().clone();
        let opened = disk.open().and_then(|()| Ledger::over(Box::new(disk)));
        let opened = opened.and_then(|ledger| Ok((ledger.kept()?, ledger)));
        let (kept, ledger) = opened.map_err(|error| format!("agent {machine} cannot open its store: {error}"))?;
        let config = SessionConfig {
            run,
            agent: agent_id(machine),
            incarnation,
            software: "sim".into(),
            train_examples: if agent.plan.trains { 10 * machine as u64 } else { 0 },
            eval_examples: agent.plan.eval_examples,
            device: "simulated".into(),
            pod: None,
            renew_at_ms: u64::MAX,
            backoff_seed: backoff_seed ^ u64::from(run.0[0]),
            overlap: true,
        };
        let node = AgentNode::new(Session::new(config, kept), ledger.fresh());
        Ok((node, Part { ledger, stream: None, link: 0 }))
    }

    pub(super) fn agent_takes(&mut self, machine: Machine, input: Input) {
        let now_ms = self.now_ms();
        let Some(process) = self.agent(machine).process.as_mut() else { return };
        let outputs = process.host.handle(now_ms - process.started_ms, input);
        self.agent_carries_out(machine, outputs);
    }

    /// What is told to one run of an agent.
    pub(super) fn tell_run(&mut self, machine: Machine, run: RunId, input: node::Input) {
        self.agent_takes(machine, Input::Run { run, input });
    }

    fn agent_carries_out(&mut self, machine: Machine, outputs: Vec<Output>) {
        for output in outputs {
            let life = self.agent(machine).life;
            match output {
                Output::Run { run, output } => self.execute(machine, run, output),
                Output::Subscribe { after_ms } => {
                    let Some(process) = self.agent(machine).process.as_mut() else { return };
                    process.list = (process.list.0 + 1, None);
                    let number = process.list.0;
                    self.dial_after(machine, Purpose::List, number, after_ms);
                }
                Output::Begin(info) => {
                    let wait_ms = 1 + self.agent(machine).rng.below(15);
                    self.after(wait_ms, Happening::AgentBegins { machine, life, run: info.run });
                }
                Output::Ended { run, ending } => self.run_is_over(machine, run, &ending),
                Output::Sweep => self.sweep(machine),
                Output::Exit(ending) => return self.agent_exits(machine, &ending),
            }
        }
        self.set_alarm(machine);
    }

    /// A node's output, carried out as the driver does.
    fn execute(&mut self, machine: Machine, run: RunId, output: node::Output) {
        match output {
            node::Output::Open { number, after_ms } => {
                let Some(part) = self.part_of(machine, run) else { return };
                part.link = number;
                self.dial_after(machine, Purpose::Run(run), number, after_ms);
            }
            node::Output::Close { .. } => {
                if let Some(stream) = self.part_of(machine, run).and_then(|part| part.stream.take()) {
                    self.lost(stream, Side::Agent);
                }
            }
            node::Output::Send(message) => self.say(machine, run, message),
            node::Output::SendChunks { content, transfer, missing } => {
                self.send_chunks(machine, run, &content, &transfer, &missing);
            }
            node::Output::Run(Job::Store(job)) => self.store(machine, run, job),
            node::Output::Run(Job::Maths(job)) => self.compute(machine, run, job),
            node::Output::Run(Job::Unpack(job)) => {
                let version = job.version();
                let event = job.run();
                if let Event::UnpackFailed { problem, .. } = &event {
                    self.violate("forms", format!("agent {machine} cannot use version {version}: {problem}"));
                }
                self.done_in(machine, run, 3, None, Done::Unpack(event));
            }
            node::Output::StopTraining => self.stop_training(machine, run),
            node::Output::SendPart { .. }
            | node::Output::Renew(_)
            | node::Output::StoreCertificate(_)
            | node::Output::Exit(_) => {}
        }
    }

    pub(super) fn part_of(&mut self, machine: Machine, run: RunId) -> Option<&mut Part> {
        self.agent(machine).process.as_mut()?.parts.get_mut(&run)
    }

    /// Opens a stream after a wait and a handshake. Without waits in an outage of length zero.
    fn dial_after(&mut self, machine: Machine, purpose: Purpose, number: u64, after_ms: u64) {
        let now_ms = self.now_ms();
        let after_ms = if self.coordinator.replaced_at_ms == Some(now_ms) { 0 } else { after_ms };
        let agent = self.agent(machine);
        let takes_ms = after_ms + agent.line.handshake_ms(now_ms + after_ms);
        let life = agent.life;
        self.after(takes_ms, Happening::Dial { machine, life, purpose, number });
    }

    pub(super) fn dial(&mut self, machine: Machine, life: u64, purpose: Purpose, number: u64) {
        let now_ms = self.now_ms();
        let is_there = self.coordinator.process.is_some();
        let agent = self.agent(machine);
        let Some(process) = agent.process.as_ref().filter(|_| agent.life == life) else { return };
        let is_newest = match purpose {
            Purpose::Run(run) => process.parts.get(&run).is_some_and(|part| part.link == number),
            Purpose::List => process.list.0 == number,
        };
        if !is_newest {
            return;
        }
        if !is_there || agent.line.is_deaf(Side::Agent, now_ms) {
            let problem = Problem::Transient("no answer".into());
            return match purpose {
                Purpose::Run(run) => self.link_event(machine, run, number, Event::Disconnected(problem)),
                Purpose::List => self.agent_takes(machine, Input::ListLost(problem)),
            };
        }
        let stream = self.open_stream(machine, number, purpose);
        match purpose {
            Purpose::Run(run) => {
                if let Some(part) = self.part_of(machine, run) {
                    part.stream = Some(stream);
                }
                self.link_event(machine, run, number, Event::Connected);
            }
            Purpose::List => {
                if let Some(process) = self.agent(machine).process.as_mut() {
                    process.list.1 = Some(stream);
                }
                if let Some(at_ms) = self.arrival(stream, Side::Coordinator) {
                    self.agenda.at(at_ms, Happening::Subscribed(stream));
                }
            }
        }
    }

    pub(super) fn link_event(&mut self, machine: Machine, run: RunId, number: u64, event: Event) {
        self.tell_run(machine, run, node::Input::Link { number, event });
    }

    pub(super) fn agent_begins(&mut self, machine: Machine, life: u64, run: RunId) {
        let agent = self.agent(machine);
        let Some(process) = agent.process.as_ref().filter(|_| agent.life == life) else { return };
        let (incarnation, backoff_seed) = (process.incarnation, process.backoff_seed);
        match self.part(machine, run, incarnation, backoff_seed) {
            Ok((node, part)) => {
                if let Some(process) = self.agent(machine).process.as_mut() {
                    process.parts.insert(run, part);
                }
                self.agent_takes(machine, Input::Begun { run, node: Box::new(node) });
            }
            Err(problem) => self.violate("P7", problem),
        }
    }

    /// A run is over in this process; what is left of one that has finished goes.
    fn run_is_over(&mut self, machine: Machine, run: RunId, ending: &Ending) {
        self.note(machine, || format!("run {} is over here: {ending}", run.short()));
        if !matches!(ending, Ending::Finished | Ending::Parked) {
            return self.violate("P6", format!("agent {machine} gives up run {}: {ending}", run.short()));
        }
        let stream = self.part_of(machine, run).and_then(|part| part.stream.take());
        if let Some(stream) = stream {
            self.lost(stream, Side::Agent);
        }
        let agent = self.agent(machine);
        if let Some(process) = agent.process.as_mut() {
            process.parts.remove(&run);
        }
        if *ending == Ending::Finished && run != run_id(OWN) {
            agent.disks.remove(&run);
        }
    }

    /// Removes what there is of runs that are not listed and have nothing to hand over.
    fn sweep(&mut self, machine: Machine) {
        let agent = self.agent(machine);
        let Some(process) = agent.process.as_ref() else { return };
        let is_here = |run: &RunId| process.parts.contains_key(run) || process.host.info(*run).is_some();
        let is_empty =
            |disk: &SimDisk| Ledger::over(Box::new(disk.copy())).is_ok_and(|ledger| ledger.outbox().next().is_none());
        let gone = |(run, disk): &(&RunId, &SimDisk)| **run != run_id(OWN) && !is_here(run) && is_empty(disk);
        let gone: Vec<RunId> = agent.disks.iter().filter(gone).map(|(run, _)| *run).collect();
        gone.into_iter().for_each(|run| _ = agent.disks.remove(&run));
    }

    fn set_alarm(&mut self, machine: Machine) {
        let now_ms = self.now_ms();
        let agent = self.agent(machine);
        let life = agent.life;
        let Some(process) = agent.process.as_mut() else { return };
        let Some(deadline_ms) = process.host.deadline_ms() else { return };
        let at_ms = process.started_ms.saturating_add(deadline_ms).max(now_ms);
        if process.alarm.set(at_ms) {
            self.agenda.at(at_ms, Happening::AgentTick { machine, life });
        }
    }

    pub(super) fn agent_tick(&mut self, machine: Machine, life: u64) {
        let now_ms = self.now_ms();
        let agent = self.agent(machine);
        let Some(process) = agent.process.as_mut().filter(|_| agent.life == life) else { return };
        if !process.alarm.goes_off(now_ms) {
            return;
        }
        let deadline_ms = process.host.deadline_ms();
        let is_due = deadline_ms.is_some_and(|deadline| process.started_ms.saturating_add(deadline) <= now_ms);
        if is_due { self.agent_takes(machine, Input::Tick) } else { self.set_alarm(machine) }
    }

    /// kill -9. Returns whether there was a process.
    pub(super) fn agent_dies(&mut self, machine: Machine) -> bool {
        let Some(process) = self.agent(machine).process.take() else { return false };
        let streams = process.parts.values().filter_map(|part| part.stream).chain(process.list.1);
        for stream in streams {
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.conn.agent_up = false;
            }
            self.after(limits::IDLE_TIMEOUT_MS, Happening::Lost(stream, Side::Coordinator));
        }
        true
    }

    fn agent_exits(&mut self, machine: Machine, ending: &Ending) {
        self.note(machine, || format!("exits: {ending}"));
        let Some(process) = self.agent(machine).process.take() else { return };
        let streams = process.parts.values().filter_map(|part| part.stream).chain(process.list.1);
        streams.collect::<Vec<_>>().into_iter().for_each(|stream| self.lost(stream, Side::Agent));
        self.after(1_000, Happening::Start(machine));
    }

    pub(super) fn agent_lost(&mut self, machine: Machine, stream: u64, purpose: Purpose) {
        let problem = || Problem::Transient("the connection was lost".into());
        match purpose {
            Purpose::Run(run) => {
                let Some(part) = self.part_of(machine, run).filter(|part| part.stream == Some(stream)) else { return };
                part.stream = None;
                let number = part.link;
                self.link_event(machine, run, number, Event::Disconnected(problem()));
            }
            Purpose::List => {
                let Some(process) = self.agent(machine).process.as_mut() else { return };
                if process.list.1 == Some(stream) {
                    process.list.1 = None;
                    self.agent_takes(machine, Input::ListLost(problem()));
                }
            }
        }
    }
}
