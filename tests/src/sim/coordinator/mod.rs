//! The coordinator's machine: its disk, and the process while there is one.

mod audit;
mod peers;
pub(super) mod spool;
mod start;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anabranch_common::ids::{AgentId, Digest, ModelVersion, Position};
use anabranch_common::transfer::Sink;
use anabranch_common::wire::operator::{OperatorRequest, RegistryRequest, RunRequest};
use anabranch_coordinator::core::Core;
use anabranch_coordinator::core::command::ExitReason;
use anabranch_coordinator::core::event::{Now, PeerId, RequestId};
use anabranch_coordinator::host::{Host, Input, Output};
use anabranch_coordinator::node::merge::Merger;
use anabranch_coordinator::registry::roster::Roster;
use anabranch_coordinator::registry::save;
use anabranch_coordinator::registry::tokens::NewToken;
use anabranch_coordinator::store::{Engine, Store};

pub(crate) use start::DECODERS;
pub(super) use start::budgets;

use spool::Spool;
use work::Jobs;

use crate::invariants::journal::ensure;
use crate::invariants::members::Members;
use crate::invariants::verdicts::Verdicts;
use crate::picture::{MarkKind, SpanKind};

use super::agent::AgentMachine;
use super::disk::SimDisk;
use super::network::Side;
use super::trace::Sign;
use super::world::{Happening, RUN, World, agent_id};

/// How often the core is told that time has passed.
const TICK_MS: u64 = 250;
/// Leases that may be remembered: a bound of the simulation's own, far above what a small world needs.
const LEASES_MAX: usize = 4_096;

/// A process.
pub(super) struct Process {
    host: Host,
    store: Arc<Engine<SimDisk>>,
    merger: Merger,
    /// The first record that the writer has not been given.
    next_write: Position,
    jobs: Jobs,
    /// Where chunks go, by connection and transfer, and whether they are written to disk too.
    sinks: BTreeMap<(u64, Digest), (Arc<Sink>, bool)>,
    peers: BTreeMap<PeerId, u64>,
    started_ms: u64,
    next_request: u64,
    /// Agents that the operator wants revoked, until it is answered.
    revoking: BTreeMap<RequestId, AgentId>,
    has_finished: bool,
}

impl Process {
    /// The state machine of the run, until the run is over in this process.
    fn core(&self) -> Option<&Core> {
        self.host.node(RUN).map(anabranch_coordinator::node::Node::core)
    }
}

/// The machine.
pub(super) struct CoordinatorMachine {
    pub(super) disk: SimDisk,
    pub(super) process: Option<Process>,
    pub(super) life: u64,
    pub(super) clock_off_ms: i64,
    pub(super) restart_after_ms: Option<u64>,
    /// When a process was killed last whose successor started in the same instant.
    pub(super) replaced_at_ms: Option<u64>,
    pub(super) repair_ms: u64,
    pub(super) roll_back_by: Option<u64>,
    pub(super) newest_version: ModelVersion,
    pub(super) duplicated: u64,
    /// Halves of uploads on disk.
    pub(super) spool: Spool,
    verdicts: Verdicts,
    pub(super) members: Members,
    next_peer: u64,
}

impl CoordinatorMachine {
    /// An initialised directory in which every agent is enrolled.
    pub(super) fn new(agents: &[AgentMachine]) -> Self {
        let disk = SimDisk::default();
        let mut roster = Roster::default();
        let secret = [7; 32];
        let uses = u32::try_from(agents.len()).unwrap_or(u32::MAX);
        let (secret_digest, name) = (Digest::of(&secret).0, Some("agent".into()));
        let token = NewToken { secret_digest, name, ttl_ms: 10_000, uses, runs: BTreeSet::new() };
        roster.create_token(token, 0).expect("a sound token");
        for agent in agents {
            roster.join(&secret, agent_id(agent.machine), 1).expect("as many uses as agents");
        }
        let store = Engine::open(disk.clone()).expect("an empty disk opens");
        let items = roster.take_changes().expect("a small roster");
        save::put(store.catalogue(), items).expect("no faults yet");
        store.catalogue().sync().expect("no faults yet");
        Self {
            disk,
            process: None,
            life: 0,
            clock_off_ms: 0,
            restart_after_ms: None,
            replaced_at_ms: None,
            repair_ms: 1_000,
            roll_back_by: None,
            newest_version: ModelVersion(0),
            duplicated: 0,
            spool: Spool::default(),
            verdicts: Verdicts::default(),
            members: Members::default(),
            next_peer: 0,
        }
    }

    pub(super) fn is_life(&self, life: u64) -> bool {
        self.process.is_some() && self.life == life
    }

    /// Whether an outage of length zero is at this time: connections are reset and opened again without waits.
    pub(super) fn is_replaced_at(&self, now_ms: u64) -> bool {
        self.replaced_at_ms == Some(now_ms)
    }
}

impl World {
    /// Returns the model that the coordinator serves: what its evaluators would evaluate and an export would hold. `None`
    /// while there is no process, or no model.
    pub(crate) fn served_model(&self) -> Option<&[f32]> {
        self.coordinator.process.as_ref()?.merger.model().map(|state| state.served().1)
    }

    pub(super) fn coordinator_now(&self) -> Now {
        let started_ms = self.coordinator.process.as_ref().map_or(0, |process| process.started_ms);
        Now { unix_ms: self.unix_ms(), mono_ms: self.now_ms() - started_ms }
    }

    pub(super) fn coordinator_tick(&mut self, life: u64) {
        if self.coordinator.is_life(life) {
            self.after(TICK_MS, Happening::Tick(life));
            self.coordinator_takes(Input::Tick);
            let looked = self.journal.looked(self.now_ms());
            self.checked(looked);
            self.pods_look();
        }
    }

    pub(super) fn coordinator_takes(&mut self, input: Input) {
        let now = self.coordinator_now();
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let outputs = process.host.handle(now, input);
        if let Some(core) = process.core() {
            self.coordinator.verdicts.ask(core);
        }
        let leases = process.core().and_then(Core::state).map_or(0, |state| state.leases().count());
        self.checked(ensure(leases <= LEASES_MAX, "P5", || format!("{leases} leases are remembered")));
        self.carry_out(outputs);
    }

    pub(super) fn operate(&mut self, operation: impl Into<OperatorRequest>) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        process.next_request += 1;
        let request = RequestId(process.next_request);
        self.coordinator_takes(Input::Operator { request, operation: operation.into() });
    }

    pub(super) fn resume(&mut self) {
        let paused = |process: &Process| process.core().and_then(Core::state).is_some_and(|state| state.paused);
        if self.coordinator.process.as_ref().is_some_and(paused) {
            self.operate(RunRequest::Resume);
        }
    }

    pub(super) fn revoke(&mut self, machine: usize) {
        let id = agent_id(machine);
        if let Some(process) = self.coordinator.process.as_mut() {
            process.revoking.insert(RequestId(process.next_request + 1), id);
            self.operate(RegistryRequest::AgentRevoke { agent: id.to_string() });
            // Until that is durable a crash may undo it.
            self.agent(machine).may_be_revoked = true;
        }
    }

    pub(super) fn carry_out(&mut self, outputs: Vec<Output>) {
        self.see_records(&outputs);
        self.pods_look_at_ended();
        for output in outputs {
            match output {
                Output::ToPeer(what) => self.tell_peer(what),
                Output::Run { job, .. } => self.set_to_work(job),
                Output::Save(group) => self.save_later(group),
                // There are no certificates here.
                Output::Sign(_) => self.violate("P4", "a certificate is to be issued"),
                Output::Ended { ended: Ok(reason), .. } => self.run_ends(reason),
                Output::Ended { ended: Err(error), .. } | Output::Exit(Err(error)) => self.job_failed(&error),
                Output::Exit(Ok(())) => self.coordinator_exits(),
                Output::Reply { request, .. } => {
                    let process = self.coordinator.process.as_mut();
                    if let Some(agent) = process.and_then(|process| process.revoking.remove(&request)) {
                        self.coordinator.members.heard(agent);
                    }
                }
                // One run, which is there from the start, and without a quota.
                Output::Runs(_)
                | Output::Searches(_)
                | Output::Close { .. }
                | Output::Look { .. }
                | Output::Measure { .. } => {}
                // No agent here asks which runs there are, and there are no certificates.
                Output::Show(_)
                | Output::List { .. }
                | Output::Facts { .. }
                | Output::Replaced { .. }
                | Output::JoinReply { .. }
                | Output::DeferJoin { .. } => {}
            }
        }
    }

    pub(super) fn coordinator_died(&mut self) -> bool {
        if self.coordinator.process.take().is_none() {
            return false;
        }
        self.note(0, Sign::Mark(MarkKind::Killed), || "the process is gone".into());
        self.note(0, Sign::Begin(SpanKind::Dead), || "no process".into());
        let conns: Vec<u64> = self.conns.keys().copied().collect();
        for conn in conns {
            if let Some(entry) = self.conns.get_mut(&conn) {
                entry.coordinator_up = false;
            }
            self.after(super::network::IDLE_MS, Happening::Lost(conn, Side::Agent));
        }
        true
    }

    /// The run is over in this process, and the process ends once the registry has nothing left to do.
    fn run_ends(&mut self, reason: ExitReason) {
        self.note(0, Sign::Mark(MarkKind::Ended), || format!("exits: {reason:?}"));
        if let Some(process) = self.coordinator.process.as_mut() {
            process.has_finished = matches!(reason, ExitReason::Finished { .. });
        }
    }

    /// The end of `Driver::work`: nothing is left to do, and what is still connected is cut off.
    fn coordinator_exits(&mut self) {
        let Some(finished) = self.coordinator.process.as_ref().map(|process| process.has_finished) else { return };
        let conns: Vec<u64> = self.conns.iter().filter(|(_, conn)| conn.coordinator_up).map(|(id, _)| *id).collect();
        for conn in conns {
            self.lost(conn, Side::Coordinator);
        }
        self.coordinator.process = None;
        let restart = self.coordinator.restart_after_ms.take();
        if let Some(wait_ms) = restart.or((finished && !self.stopping).then_some(1_000)) {
            self.after(wait_ms, Happening::Start(0));
        }
    }
}
