//! An agent's machine: its disk, its line, and the process while there is one.

mod hostile;
mod line;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use anabranch_agent::node::{AgentNode, Done, Input, Job, Output};
use anabranch_agent::session::command::Ending;
use anabranch_agent::session::event::Event;
use anabranch_agent::session::{Session, SessionConfig, Waits};
use anabranch_agent::store::Ledger;
use anabranch_common::ids::{Incarnation, LeaseId};
use anabranch_common::limits;
use anabranch_common::rng::SplitMix64;
use anabranch_common::update::UpdateKey;
use anabranch_io::chunks::Piece;

use crate::invariants::journal::{Checked, Journal, broken, ensure};
use crate::invariants::progress::Progress;
use crate::picture::{MarkKind, SpanKind};

use super::disk::SimDisk;
use super::network::{Line, Side};
use super::pods::{self, PodWork};
use super::schedule::{AgentPlan, Machine};
use super::time::Alarm;
use super::trace::Sign;
use super::world::{Happening, RUN, World, agent_id};

/// A process.
pub(super) struct Process {
    node: AgentNode,
    pub(super) ledger: Ledger,
    started_ms: u64,
    incarnation: Incarnation,
    conn: Option<u64>,
    dial: u64,
    alarm: Alarm,
    next_job: u64,
    training: Option<Training>,
    /// Its part in a pod.
    pub(super) pod: Option<PodWork>,
    /// The largest attempt at each lease that it has opened links for.
    pub(super) opened: BTreeMap<LeaseId, u32>,
}

/// A local round that is computed.
#[derive(Debug, Clone, Copy)]
struct Training {
    job: u64,
    lease: LeaseId,
    ends_ms: u64,
}

/// The machine.
pub(super) struct AgentMachine {
    pub(super) machine: Machine,
    pub(super) disk: SimDisk,
    pub(super) line: Line,
    pub(super) process: Option<Process>,
    pub(super) life: u64,
    pub(super) restart_after_ms: Option<u64>,
    pub(super) repair_ms: u64,
    /// It never comes back.
    pub(super) gone: bool,
    pub(super) may_be_revoked: bool,
    pub(super) plan: AgentPlan,
    rng: SplitMix64,
    pub(super) rounds: u64,
    evaluations: u64,
    healed: bool,
    verdicts_since_healed: u64,
    /// The true transfer of each poisoned one.
    poisoned: BTreeMap<anabranch_common::ids::Digest, anabranch_common::ids::Digest>,
    /// Updates that were durable here.
    banked: BTreeMap<UpdateKey, u64>,
}

impl AgentMachine {
    /// What the time of its process went into, if it runs.
    pub(super) fn waits(&self) -> Option<Waits> {
        self.process.as_ref().map(|process| process.node.session().waits())
    }

    pub(super) fn new(machine: Machine, plan: AgentPlan, seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed);
        Self {
            machine,
            disk: SimDisk::default(),
            line: Line::new(plan.link.clone(), plan.link_down.clone().unwrap_or(plan.link.clone()), rng.next_u64()),
            process: None,
            life: 0,
            restart_after_ms: None,
            repair_ms: 1_000,
            gone: false,
            may_be_revoked: false,
            plan,
            rng,
            rounds: 0,
            evaluations: 0,
            healed: false,
            verdicts_since_healed: 0,
            poisoned: BTreeMap::new(),
            banked: BTreeMap::new(),
        }
    }

    pub(super) fn heal(&mut self, now_ms: u64) {
        self.line.heal(now_ms);
        self.plan.round_fails_every = 0;
        self.plan.evaluation_fails_every = 0;
        self.healed = true;
    }

    /// Its local round takes so much longer, if there is one.
    pub(super) fn delay_training(&mut self, by_ms: u64) {
        if let Some(training) = self.process.as_mut().and_then(|process| process.training.as_mut()) {
            training.ends_ms += by_ms;
        }
    }

    /// Its disk is empty from now on.
    pub(super) fn wipe(&mut self) {
        self.disk = SimDisk::default();
        self.banked.clear();
    }

    /// P1, this half of it: what was finished here was decided there, or is still here.
    pub(super) fn audit(&self, journal: &Journal) -> Checked {
        let kept = match Ledger::over(Box::new(self.disk.copy())) {
            Ok(ledger) => ledger.outbox().map(|meta| meta.key).collect::<BTreeSet<_>>(),
            Err(error) => return broken("P7", format!("agent {} cannot open its store: {error}", self.machine)),
        };
        let here =
            |key: &&UpdateKey| kept.contains(key) || journal.verdict(**key).is_some() || journal.is_decided(**key);
        match self.banked.keys().find(|key| !here(key)) {
            Some(lost) => broken("P1", format!("agent {} has lost its finished update {lost:?}", self.machine)),
            None => Ok(()),
        }
    }

    /// What it still waits for after the faults, if anything.
    pub(super) fn waits_for(&self, journal: &Journal, healed_at_ms: u64) -> Option<String> {
        if self.gone {
            return None;
        }
        let unheard = |(key, at_ms): &(&UpdateKey, &u64)| **at_ms <= healed_at_ms && journal.verdict(**key).is_none();
        if let Some((key, at_ms)) = self.banked.iter().find(unheard) {
            return Some(format!("agent {} has no verdict on {key:?}, finished at {at_ms} ms", self.machine));
        }
        let heard = self.verdicts_since_healed;
        let Some(process) = &self.process else { return Some(format!("agent {} does not run", self.machine)) };
        if self.plan.helper {
            return None;
        }
        (heard < 2).then(|| {
            let session = process.node.session();
            format!(
                "agent {} heard {heard} verdicts: link {:?}, work {:?}, {} in its outbox, problem {:?}",
                self.machine,
                session.link(),
                session.activity(),
                session.outbox().len(),
                session.last_problem()
            )
        })
    }

    /// How far it has come since the last fault, if it is there. Its rounds may take `target_ms` at least.
    pub(super) fn progress(&self, target_ms: u64) -> Option<Progress> {
        let (agent, honest) = (self.machine, self.plan.hostile.is_none());
        let round_ms = self.plan.round_ms.max(target_ms);
        // Those whose rounds pods compute wait for other agents.
        (!self.gone && !self.plan.pod).then_some(Progress {
            agent,
            round_ms,
            honest,
            verdicts: self.verdicts_since_healed,
        })
    }

    /// Its connection.
    pub(super) fn conn(&self) -> Option<u64> {
        self.process.as_ref()?.conn
    }

    fn is_life(&self, life: u64) -> bool {
        self.process.is_some() && self.life == life
    }
}

impl World {
    pub(super) fn start_agent(&mut self, machine: Machine) {
        let (now_ms, overlap) = (self.now_ms(), self.setting.overlap);
        let helps = self.agent(machine).plan.helper;
        let train_examples = if helps { 0 } else { self.setting.learner.examples(machine) };
        let site = self.schedule.pods.map(|pods| pods.site(machine)).unwrap_or_default();
        let off_ms = self.agent(machine).rng.below(1_000);
        let agent = self.agent(machine);
        if agent.gone || agent.process.is_some() {
            return;
        }
        agent.life += 1;
        let opened = agent.disk.open().and_then(|()| Ledger::over(Box::new(agent.disk.clone())));
        let opened = opened.and_then(|ledger| Ok((ledger.kept()?, ledger)));
        let (kept, ledger) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                if agent.disk.burnt().is_none() && !agent.disk.is_damaged() {
                    return self.violate("P7", format!("agent {machine} cannot open its store: {error}"));
                }
                agent.disk.repair();
                return self.after(1_000, Happening::Start(machine));
            }
        };
        let incarnation = Incarnation(std::array::from_fn(|_| agent.rng.next_u64().to_le_bytes()[0]));
        let config = SessionConfig {
            run: RUN,
            agent: agent_id(machine),
            incarnation,
            software: "sim".into(),
            train_examples,
            eval_examples: agent.plan.eval_examples,
            device: "simulated".into(),
            pod: pods::offer(machine, &agent.plan, site),
            renew_at_ms: u64::MAX,
            backoff_seed: agent.rng.next_u64(),
            overlap,
        };
        agent.process = Some(Process {
            node: AgentNode::new(Session::new(config, kept), ledger.fresh()),
            ledger,
            started_ms: now_ms.saturating_sub(off_ms),
            incarnation,
            conn: None,
            dial: 0,
            alarm: Alarm::default(),
            next_job: 0,
            training: None,
            pod: None,
            opened: BTreeMap::new(),
        });
        self.setting.learner.started(machine);
        self.note(machine, Sign::End(SpanKind::Dead), || "starts".into());
        self.note(machine, Sign::Mark(MarkKind::Started), || "started".into());
        self.agent_handles(machine, Input::Event(Event::Started));
    }

    pub(super) fn agent_handles(&mut self, machine: Machine, input: Input) {
        let now_ms = self.now_ms();
        let Some(process) = self.agent(machine).process.as_mut() else { return };
        let mut ending = None;
        for output in process.node.handle(now_ms - process.started_ms, input) {
            match output {
                Output::Exit(why) => ending = Some(why),
                output => self.execute(machine, output),
            }
        }
        let Some(process) = self.agent(machine).process.as_ref() else { return };
        let waiting = process.node.session().outbox().len();
        self.checked(ensure(waiting <= limits::OUTBOX_UPDATES, "P5", || {
            format!("{waiting} updates in the outbox of agent {machine}")
        }));
        match ending {
            Some(why) => self.agent_exits(machine, &why),
            None => self.set_alarm(machine),
        }
    }

    pub(super) fn set_alarm(&mut self, machine: Machine) {
        let now_ms = self.now_ms();
        let agent = self.agent(machine);
        let life = agent.life;
        let Some(process) = agent.process.as_mut() else { return };
        let Some(deadline_ms) = process.node.session().deadline_ms() else { return };
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
        let deadline_ms = process.node.session().deadline_ms();
        let due = deadline_ms.is_some_and(|deadline| process.started_ms.saturating_add(deadline) <= now_ms);
        if due { self.agent_handles(machine, Input::Event(Event::Tick)) } else { self.set_alarm(machine) }
    }

    /// Does what a driver does, in virtual time.
    fn execute(&mut self, machine: Machine, output: Output) {
        let now_ms = self.now_ms();
        let is_instant = self.coordinator.is_replaced_at(now_ms);
        let agent = &mut self.agents[machine - 1];
        let life = agent.life;
        let Some(process) = agent.process.as_mut() else { return };
        match output {
            Output::Open { number: dial, after_ms } => {
                let after_ms = if is_instant { 0 } else { after_ms };
                process.dial = dial;
                let takes_ms = after_ms + agent.line.handshake_ms(now_ms + after_ms);
                self.after(takes_ms, Happening::Dial { machine, life, dial });
            }
            Output::Close { .. } => {
                if let Some(conn) = process.conn.take() {
                    self.lost(conn, Side::Agent);
                }
            }
            Output::Send(message) => self.say(machine, message),
            Output::SendChunks { content, transfer, missing } => {
                self.send_chunks(machine, &content, &transfer, &missing);
            }
            Output::SendPart { content, transfer, first, missing } => {
                self.send_piece(machine, &Piece { transfer, first, content }, &missing);
            }
            Output::Run(Job::Store(job)) => self.store(machine, job),
            Output::Run(Job::Maths(job)) => self.compute(machine, job),
            Output::Run(Job::Unpack(job)) => {
                let version = job.version();
                self.note(machine, Sign::End(SpanKind::Download), || format!("has version {version}"));
                let event = job.run();
                if let Event::UnpackFailed { problem, .. } = &event {
                    self.violate("forms", format!("agent {machine} cannot use version {version}: {problem}"));
                }
                self.done_in(machine, self.setting.overhead.of(3), Done::Unpack(event));
            }
            Output::StopTraining if process.pod.is_some() => self.pod_stops(machine),
            Output::StopTraining => {
                if let Some(Training { lease, .. }) = process.training.take() {
                    self.done_in(machine, self.setting.overhead.of(10), Done::Maths(Event::TrainingStopped { lease }));
                }
            }
            Output::Renew(_) | Output::StoreCertificate(_) | Output::Exit(_) => {}
        }
    }

    pub(super) fn agent_died(&mut self, machine: Machine) -> bool {
        let Some(mut process) = self.agent(machine).process.take() else { return false };
        let work = process.pod.take();
        self.pod_process_ends(machine, work, false);
        self.note(machine, Sign::Mark(MarkKind::Killed), || "the process is gone".into());
        self.note(machine, Sign::Begin(SpanKind::Dead), || "no process".into());
        if let Some(conn) = process.conn {
            if let Some(entry) = self.conns.get_mut(&conn) {
                entry.agent_up = false;
            }
            self.after(super::network::IDLE_MS, Happening::Lost(conn, Side::Coordinator));
        }
        true
    }

    pub(super) fn agent_exits(&mut self, machine: Machine, why: &Ending) {
        self.note(machine, Sign::Mark(MarkKind::Ended), || format!("exits: {why}"));
        self.note(machine, Sign::Begin(SpanKind::Dead), || "no process".into());
        let agent = self.agent(machine);
        let restart_ms = match why {
            Ending::Finished => {
                agent.gone = true;
                None
            }
            Ending::Revoked if agent.may_be_revoked => {
                agent.gone = true;
                None
            }
            Ending::Parked => agent.restart_after_ms.take(),
            Ending::Storage(_) => {
                agent.disk.repair();
                Some(agent.repair_ms)
            }
            // Its own older process, whose connection the coordinator has not given up yet, cannot be told apart from
            // another host; the one that stays is the newer.
            Ending::Replaced => Some(1_000),
            other => return self.violate("P6", format!("agent {machine} gives up: {other}")),
        };
        let process = self.agent(machine).process.take();
        let (conn, work) = process.map_or((None, None), |process| (process.conn, process.pod));
        self.pod_process_ends(machine, work, true);
        if let Some(conn) = conn {
            self.lost(conn, Side::Agent);
        }
        if let Some(restart_ms) = restart_ms {
            self.after(restart_ms, Happening::Start(machine));
        }
    }
}
