//! The coordinator's machine: its disk, and the process while there is one.

mod audit;
mod peers;
mod start;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::wire::operator::OperatorRequest;
use anabranch_common::wire::transfer::Assembly;
use anabranch_coordinator::core::Core;
use anabranch_coordinator::core::command::{Command, ExitReason};
use anabranch_coordinator::core::event::{Event, Now, PeerId, RequestId};
use anabranch_coordinator::core::roster::Roster;
use anabranch_coordinator::identity::tokens::NewToken;
use anabranch_coordinator::merger::ModelState;
use anabranch_coordinator::publish::Publisher;
use anabranch_coordinator::store::{Engine, Store};
use anabranch_coordinator::transport::Expected;
use anabranch_coordinator::workers::{self, CheckpointJob, MergeJob, Merger, WriteJob};

use crate::invariants::journal::ensure;
use crate::invariants::verdicts::Verdicts;
use crate::picture::{MarkKind, SpanKind};

use super::agent::AgentMachine;
use super::disk::SimDisk;
use super::network::Side;
use super::spec::run_spec;
use super::trace::Sign;
use super::world::{Happening, World, agent_id};

/// How often the core is told that time has passed.
const TICK_MS: u64 = 250;
/// Leases that may be remembered: a bound of the simulation's own, far above what a small world needs.
const LEASES_MAX: usize = 4_096;

/// A half-received transfer, and everyone who waits for it.
#[derive(Debug)]
struct Incoming {
    waiting: Vec<Expected>,
    assembly: Assembly,
}

/// A process.
pub(super) struct Process {
    core: Core,
    store: Arc<Engine<SimDisk>>,
    merger: Merger,
    writing: Vec<WriteJob>,
    merging: VecDeque<MergeJob>,
    checkpoints: VecDeque<Box<CheckpointJob>>,
    busy: (bool, bool, bool),
    publisher: Publisher,
    incoming: BTreeMap<(u64, Digest), Incoming>,
    sending: BTreeMap<PeerId, (ModelVersion, u64)>,
    peers: BTreeMap<PeerId, u64>,
    started_ms: u64,
    next_request: u64,
}

/// The machine.
pub(super) struct CoordinatorMachine {
    pub(super) disk: SimDisk,
    pub(super) process: Option<Process>,
    pub(super) life: u64,
    pub(super) clock_off_ms: i64,
    pub(super) restart_after_ms: Option<u64>,
    pub(super) repair_ms: u64,
    pub(super) roll_back_by: Option<u64>,
    pub(super) newest_version: ModelVersion,
    pub(super) duplicated: u64,
    /// Half-received transfers of connections that are gone, by agent: only what is missing is sent again.
    partials: BTreeMap<(usize, Digest), Assembly>,
    verdicts: Verdicts,
    next_peer: u64,
}

impl CoordinatorMachine {
    /// An initialised directory in which every agent is enrolled.
    pub(super) fn new(agents: &[AgentMachine]) -> Self {
        let disk = SimDisk::default();
        let mut roster = Roster::default();
        let secret = [7; 32];
        let uses = u32::try_from(agents.len()).unwrap_or(u32::MAX);
        let token = NewToken { secret_digest: Digest::of(&secret).0, name: Some("agent".into()), ttl_ms: 10_000, uses };
        roster.create_token(token, 0).expect("a sound token");
        for agent in agents {
            roster.join(&secret, agent_id(agent.machine), 1).expect("as many uses as agents");
        }
        let store = Engine::open(disk.clone()).expect("an empty disk opens");
        let items = roster.take_changes().expect("a small roster");
        workers::save_items(store.catalogue(), items).expect("no faults yet");
        store.catalogue().sync().expect("no faults yet");
        Self {
            disk,
            process: None,
            life: 0,
            clock_off_ms: 0,
            restart_after_ms: None,
            repair_ms: 1_000,
            roll_back_by: None,
            newest_version: ModelVersion(0),
            duplicated: 0,
            partials: BTreeMap::new(),
            verdicts: Verdicts::default(),
            next_peer: 0,
        }
    }

    pub(super) fn is_life(&self, life: u64) -> bool {
        self.process.is_some() && self.life == life
    }
}

impl World {
    pub(super) fn coordinator_now(&self) -> Now {
        let started_ms = self.coordinator.process.as_ref().map_or(0, |process| process.started_ms);
        Now { unix_ms: self.unix_ms(), mono_ms: self.now_ms() - started_ms }
    }

    pub(super) fn coordinator_tick(&mut self, life: u64) {
        if self.coordinator.is_life(life) {
            self.after(TICK_MS, Happening::Tick(life));
            self.coordinator_handles(Event::Tick);
        }
    }

    pub(super) fn coordinator_handles(&mut self, event: Event) {
        let now = self.coordinator_now();
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let commands = process.core.handle(now, event);
        self.coordinator.verdicts.ask(&process.core);
        let leases = process.core.state().map_or(0, |state| state.leases().count());
        self.checked(ensure(leases <= LEASES_MAX, "P5", || format!("{leases} leases are remembered")));
        self.carry_out(commands);
    }

    pub(super) fn operate(&mut self, operation: OperatorRequest) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        process.next_request += 1;
        let request = RequestId(process.next_request);
        self.coordinator_handles(Event::Operator { request, operation });
    }

    pub(super) fn resume(&mut self) {
        let paused = |process: &Process| process.core.state().is_some_and(|state| state.paused);
        if self.coordinator.process.as_ref().is_some_and(paused) {
            self.operate(OperatorRequest::Resume);
        }
    }

    pub(super) fn revoke(&mut self, machine: usize) {
        let id = agent_id(machine);
        if self.coordinator.process.is_some() {
            self.operate(OperatorRequest::AgentRevoke { agent: id.to_string() });
            // Until that is durable a crash may undo it.
            self.agent(machine).may_be_revoked = true;
        }
    }

    pub(super) fn carry_out(&mut self, commands: Vec<Command>) {
        let mut exit = None;
        for command in commands {
            let Some(process) = self.coordinator.process.as_mut() else { return };
            match command {
                Command::Begin { record, model } => {
                    let spec = run_spec(&self.schedule);
                    let manifest = process.core.state().expect("a run begins with a model").manifest.clone();
                    match ModelState::new(manifest, spec.merge, model.delta().values().to_vec(), ModelVersion(0)) {
                        Ok(state) => process.merging.push_back(MergeJob::Start(Box::new(state))),
                        Err(error) => return self.violate("P4", error.to_string()),
                    }
                    process.writing.push(WriteJob::Begin { record: Arc::clone(&record), model });
                    let appended = self.journal.appended(&record);
                    self.checked(appended);
                }
                Command::Append { record } => {
                    process.writing.push(WriteJob::Append(Arc::clone(&record)));
                    let appended = self.journal.appended(&record);
                    self.checked(appended);
                }
                Command::SaveItems { ticket, items } => process.writing.push(WriteJob::Items { ticket, items }),
                Command::Merge { record, content } => process.merging.push_back(MergeJob::Merge { record, content }),
                Command::Publish => process.merging.push_back(MergeJob::Publish),
                Command::Checkpoint(order) => process.merging.push_back(MergeJob::Checkpoint(order)),
                Command::Exit(reason) => exit = Some(reason),
                Command::Joined { .. } | Command::Renew { .. } | Command::Reply { .. } => {}
                rest => self.tell_peer(rest),
            }
        }
        self.set_to_work();
        if let Some(reason) = exit {
            self.coordinator_exits(reason);
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

    /// The end of `Driver::work`: what the workers have is finished, what they answer is for nobody.
    pub(super) fn coordinator_exits(&mut self, reason: ExitReason) {
        self.note(0, Sign::Mark(MarkKind::Ended), || format!("exits: {reason:?}"));
        let conns: Vec<u64> = self.conns.iter().filter(|(_, conn)| conn.coordinator_up).map(|(id, _)| *id).collect();
        for conn in conns {
            self.lost(conn, Side::Coordinator);
        }
        let life = self.coordinator.life;
        for _ in 0..1_000_000 {
            let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else {
                break;
            };
            if !process.writing.is_empty() {
                let jobs = std::mem::take(&mut process.writing);
                match workers::write(&*process.store, jobs) {
                    Ok(events) => events.iter().for_each(|event| {
                        if let Event::Journalled { upto } = event {
                            self.journal.synced(*upto);
                        }
                    }),
                    Err(error) => return self.storage_failed(&error),
                }
            } else if !process.merging.is_empty() {
                self.merge(life);
            } else if !process.checkpoints.is_empty() {
                self.checkpoint(life);
            } else {
                break;
            }
        }
        self.coordinator.process = None;
        let finished = matches!(reason, ExitReason::Finished { .. });
        let restart = self.coordinator.restart_after_ms.take();
        if let Some(wait_ms) = restart.or((finished && !self.stopping).then_some(1_000)) {
            self.after(wait_ms, Happening::Start(0));
        }
    }
}
