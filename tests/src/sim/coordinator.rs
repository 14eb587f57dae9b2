//! The coordinator's machine: its disk, and the process while there is one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anabranch_common::codec::{self, CodecId, DecodeError};
use anabranch_common::ids::{BranchId, Digest, ModelVersion};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::UpdateMeta;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::operator::OperatorRequest;
use anabranch_common::wire::transfer::{Assembly, TransferManifest};
use anabranch_coordinator::config::Retention;
use anabranch_coordinator::core::command::{Command, ExitReason};
use anabranch_coordinator::core::event::{Event, Now, PeerId, RequestId};
use anabranch_coordinator::core::roster::Roster;
use anabranch_coordinator::core::{Core, Options};
use anabranch_coordinator::driver;
use anabranch_coordinator::identity::tokens::NewToken;
use anabranch_coordinator::merger::ModelState;
use anabranch_coordinator::publish::Publisher;
use anabranch_coordinator::recovery::{self, RecoveryError};
use anabranch_coordinator::store::{Engine, Store};
use anabranch_coordinator::workers::{self, CheckpointJob, Keep, MergeJob, Merged, Merger, WorkerError, WriteJob};

use crate::invariants::journal::{Checked, broken, ensure};
use crate::picture::{MarkKind, SpanKind};

use super::agent::AgentMachine;
use super::disk::{Failure, SimDisk};
use super::network::{Parcel, Side};
use super::schedule::Task;
use super::trace::Sign;
use super::world::{Happening, RUN, World, agent_id, run_spec};

/// How often the core is told that time has passed.
const TICK_MS: u64 = 250;
/// Leases that may be remembered: a bound of the simulation's own, far above what a small world needs.
const LEASES_MAX: usize = 4_096;

/// A half-received transfer, and everyone who waits for it.
#[derive(Debug)]
struct Incoming {
    waiting: Vec<Wanted>,
    assembly: Assembly,
}

#[derive(Debug, Clone)]
enum Wanted {
    Update(Box<UpdateMeta>),
    Model(Box<ModelManifest>, Digest),
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
        roster.tokens.create(token, 0).expect("a sound token");
        for agent in agents {
            roster.join(&secret, agent_id(agent.machine), 1).expect("as many uses as agents");
        }
        let store = Engine::open(disk.clone()).expect("an empty disk opens");
        for (key, value) in roster.to_items().expect("a small roster") {
            store.put_item(key, &value).expect("no faults yet");
        }
        store.commit().expect("no faults yet");
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
            next_peer: 0,
        }
    }

    pub(super) fn is_life(&self, life: u64) -> bool {
        self.process.is_some() && self.life == life
    }
}

impl World {
    fn coordinator_now(&self) -> Now {
        let started_ms = self.coordinator.process.as_ref().map_or(0, |process| process.started_ms);
        Now { unix_ms: self.unix_ms(), mono_ms: self.now_ms() - started_ms }
    }

    pub(super) fn start_coordinator(&mut self) {
        if self.coordinator.process.is_some() {
            return;
        }
        self.coordinator.life += 1;
        match self.recover() {
            Ok(commands) => {
                self.note(0, Sign::End(SpanKind::Dead), || "started".into());
                self.note(0, Sign::Mark(MarkKind::Started), || "serves".into());
                self.after(TICK_MS, Happening::Tick(self.coordinator.life));
                self.carry_out(commands);
                self.reset_stale_connections();
            }
            Err(StartError::Worker(error)) => self.storage_failed(&error),
            Err(StartError::Broken(what)) => self.violate("P2", what),
        }
    }

    /// The path of `driver::start`.
    fn recover(&mut self) -> Result<Vec<Command>, StartError> {
        let store = Arc::new(Engine::open(self.coordinator.disk.clone()).map_err(WorkerError::from)?);
        let now_ms = self.now_ms();
        if let Some(versions) = self.coordinator.roll_back_by {
            self.roll_back(&store, versions)?;
            self.coordinator.roll_back_by = None;
        }
        let roster = driver::roster(&*store).map_err(|error| StartError::Broken(format!("{error:#}")))?;
        let options = Options {
            run: RUN,
            first_branch: BranchId([1; 16]),
            lease_ttl_ms: self.schedule.lease_ttl_ms,
            checkpoint_every_versions: self.schedule.checkpoint_every,
            checkpoint_every_ms: 0,
        };
        let now = Now { unix_ms: self.unix_ms(), mono_ms: 0 };
        let spec = run_spec(&self.schedule);
        let mut merger = Merger::default();
        let (core, commands) = match recovery::recover(&*store) {
            Err(RecoveryError::Empty) => {
                let none = self.journal.recovered_nothing();
                self.checked(none);
                (Core::new(options, spec, roster, now), Vec::new())
            }
            Err(error) => return Err(StartError::Broken(format!("the run cannot be recovered: {error}"))),
            Ok(found) => {
                let recovered =
                    self.journal.recovered(found.position, found.chain, found.state.version, found.model.model());
                self.checked(recovered);
                self.note(0, Sign::Plain, || {
                    format!("recovered version {} at record {}", found.state.version, found.position)
                });
                recovery::release(&*store).map_err(WorkerError::from)?;
                merger.handle(MergeJob::Start(Box::new(found.model)))?;
                let (mut core, commands) = Core::resume(
                    options,
                    spec,
                    roster,
                    (found.state, found.chain),
                    (found.oldest, found.checkpoint_version),
                    now,
                )
                .map_err(|error| StartError::Broken(error.to_string()))?;
                core.end_again(now);
                (core, commands)
            }
        };
        self.coordinator.process = Some(Process {
            core,
            store,
            merger,
            writing: Vec::new(),
            merging: VecDeque::new(),
            checkpoints: VecDeque::new(),
            busy: (false, false, false),
            publisher: Publisher::default(),
            incoming: BTreeMap::new(),
            sending: BTreeMap::new(),
            peers: BTreeMap::new(),
            started_ms: now_ms,
            next_request: 0,
        });
        Ok(commands)
    }

    fn roll_back(&mut self, store: &Engine<SimDisk>, versions: u64) -> Result<(), StartError> {
        let newest = match recovery::recover(store) {
            Ok(recovered) => recovered,
            Err(RecoveryError::Empty) => return Ok(()),
            Err(error) => return Err(StartError::Broken(format!("the run cannot be recovered: {error}"))),
        };
        let recovered =
            self.journal.recovered(newest.position, newest.chain, newest.state.version, newest.model.model());
        self.checked(recovered);
        let version = ModelVersion(newest.state.version.0.saturating_sub(versions)).max(newest.oldest);
        let branch = BranchId(std::array::from_fn(|_| self.rng.next_u64().to_le_bytes()[0]));
        match recovery::rollback(store, version, branch, self.unix_ms()) {
            Ok(done) => {
                self.note(0, Sign::Plain, || format!("rolled back to version {} on a new branch", done.version));
                let record = store.record(done.position).map_err(WorkerError::from)?;
                let record = record.and_then(|bytes| anabranch_common::journal::Record::from_bytes(&bytes).ok());
                let Some(record) = record else { return Err(StartError::Broken("the rollback left no record".into())) };
                let appended = self.journal.appended(&Arc::new(record));
                self.checked(appended);
                self.journal.synced(done.position);
                Ok(())
            }
            Err(RecoveryError::Version { .. }) => Ok(()),
            Err(error) => match self.coordinator.disk.burnt() {
                // A rollback that was cut short has happened or not; the journal says which.
                Some(_) => {
                    self.journal.in_doubt(store);
                    Err(StartError::Worker(WorkerError::from(error)))
                }
                None => Err(StartError::Broken(format!("rollback to version {version}: {error}"))),
            },
        }
    }

    /// A new process answers what is left of old connections with a reset.
    fn reset_stale_connections(&mut self) {
        let stale: Vec<u64> = self.conns.iter().filter(|(_, conn)| !conn.coordinator_up).map(|(id, _)| *id).collect();
        for conn in stale {
            let wait_ms = self.rng.below(limits::KEEP_ALIVE_MS);
            self.after(wait_ms, Happening::Lost(conn, Side::Agent));
        }
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
        let leases = process.core.state().map_or(0, |state| state.leases.len());
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

    fn carry_out(&mut self, commands: Vec<Command>) {
        let mut exit = None;
        for command in commands {
            let Some(process) = self.coordinator.process.as_mut() else { return };
            match command {
                Command::Begin { record, model } => {
                    let spec = run_spec(&self.schedule);
                    let manifest = process.core.state().expect("a run begins with a model").manifest.clone();
                    match ModelState::new(manifest, spec.merge, model.to_vec(), ModelVersion(0)) {
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

    fn set_to_work(&mut self) {
        let life = self.coordinator.life;
        let draw = [self.rng.below(20), self.rng.below(10), self.rng.below(200), self.rng.below(100)];
        let stall_ms = if draw[3] == 0 { 3_000 } else { 0 };
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let mut due = Vec::new();
        if !process.busy.0 && !process.writing.is_empty() {
            process.busy.0 = true;
            due.push((1 + draw[0] + stall_ms, Happening::Write(life)));
        }
        if !process.busy.1 && !process.merging.is_empty() {
            process.busy.1 = true;
            due.push((draw[1], Happening::Merge(life)));
        }
        if !process.busy.2 && !process.checkpoints.is_empty() {
            process.busy.2 = true;
            due.push((5 + draw[2] + stall_ms, Happening::Checkpoint(life)));
        }
        due.into_iter().for_each(|(ms, what)| self.after(ms, what));
    }

    pub(super) fn write(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else { return };
        process.busy.0 = false;
        let group = process.writing.len().min(limits::GROUP_COMMIT_RECORDS);
        let jobs: Vec<WriteJob> = process.writing.drain(..group).collect();
        match workers::write(&*process.store, jobs) {
            Ok(events) => {
                for event in events {
                    if let Event::Journalled { upto } = &event
                        && self.coordinator.disk.burnt().is_none()
                    {
                        self.journal.synced(*upto);
                    }
                    self.coordinator_handles(event);
                }
                self.set_to_work();
            }
            Err(error) => self.storage_failed(&error),
        }
    }

    pub(super) fn merge(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else { return };
        process.busy.1 = false;
        let Some(job) = process.merging.pop_front() else { return };
        match process.merger.handle(job) {
            Ok(Merged::Nothing) => {}
            Ok(Merged::NonFinite(version)) => self.coordinator_handles(Event::NonFinite { version }),
            Ok(Merged::Published(snapshot)) => {
                let (version, digest, transfer) = (snapshot.version, snapshot.digest, snapshot.transfer.clone());
                let model = process.merger.model().map(|state| state.model().to_vec()).unwrap_or_default();
                process.publisher.add(snapshot);
                let published = self.journal.published(version, digest, &model);
                self.checked(published);
                self.checked_ledger(version, &model);
                self.coordinator.newest_version = version;
                self.trace.version(self.agenda.now_ms(), version.0);
                self.coordinator_handles(Event::Published { version, digest, transfer });
            }
            Ok(Merged::Checkpoint(job)) => process.checkpoints.push_back(job),
            Err(error) => return self.violate("P4", format!("the merger fails: {error}")),
        }
        self.set_to_work();
    }

    pub(super) fn checkpoint(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|_| self.coordinator.life == life) else { return };
        process.busy.2 = false;
        let Some(job) = process.checkpoints.pop_front() else { return };
        let retention = if self.schedule.keep_journal { Retention::All } else { Retention::SinceSnapshot };
        match workers::write_checkpoint(&*process.store, Keep { checkpoints: 2, retention }, *job) {
            Ok(event) => {
                self.note(0, Sign::Mark(MarkKind::Checkpoint), || "checkpoint".into());
                self.coordinator_handles(event);
                self.set_to_work();
            }
            Err(error) => self.storage_failed(&error),
        }
    }

    /// P7: a storage error ends the process, and nobody is told anything more.
    fn storage_failed(&mut self, error: &WorkerError) {
        let repair_ms = self.coordinator.repair_ms;
        match self.coordinator.disk.burnt() {
            None => self.violate("P7", format!("the storage fails without a fault: {error:?}")),
            Some(failure) => {
                self.note(0, Sign::Plain, || format!("the storage fails ({failure:?}): {error}"));
                let power = self.rng.below(2) == 0;
                if self.coordinator.process.is_none() {
                    self.coordinator.disk.mend();
                    self.after(repair_ms, Happening::Start(0));
                }
                self.kill(0, power, Some(repair_ms));
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

    /// The end of `Driver::work`: what the workers have is finished, what they answer is for nobody.
    fn coordinator_exits(&mut self, reason: ExitReason) {
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

    fn tell_peer(&mut self, command: Command) {
        match command {
            Command::Send { peer, message } => self.send_to(peer, message),
            Command::Close { peer } => {
                if let Some(conn) = self.conn_of(peer) {
                    self.after(0, Happening::Lost(conn, Side::Coordinator));
                }
            }
            Command::SendModel { peer, version, missing: _ } => self.send_model(peer, version),
            Command::ReceiveUpdate { peer, meta, transfer } => {
                self.receive(peer, Wanted::Update(Box::new(meta)), transfer);
            }
            Command::ReceiveModel { peer, manifest, digest, transfer } => {
                self.receive(peer, Wanted::Model(Box::new(manifest), digest), transfer);
            }
            _ => {}
        }
    }

    fn conn_of(&self, peer: PeerId) -> Option<u64> {
        self.coordinator.process.as_ref()?.peers.get(&peer).copied()
    }

    fn send_to(&mut self, peer: PeerId, message: CoordinatorMessage) {
        if self.coordinator.disk.burnt().is_some_and(|failure| failure != Failure::Killed) {
            return self.violate("P7", format!("{message:?} is sent after the storage has failed"));
        }
        if let CoordinatorMessage::Verdict { key, verdict } = &message {
            let told = self.journal.told(*key, verdict);
            self.checked(told);
        }
        if let Some(conn) = self.conn_of(peer) {
            self.send_down(conn, Parcel::Message(message));
        }
    }

    fn send_model(&mut self, peer: PeerId, version: ModelVersion) {
        let now_ms = self.now_ms();
        let Some(conn) = self.conn_of(peer) else { return };
        let Some(process) = self.coordinator.process.as_mut() else { return };
        if process.sending.get(&peer).is_some_and(|(sent, until_ms)| *sent == version && *until_ms > now_ms) {
            return;
        }
        let Some(snapshot) = process.publisher.get(version) else {
            return self.send_to(peer, CoordinatorMessage::ModelGone { version });
        };
        let (transfer, digest) = (snapshot.transfer.clone(), snapshot.digest);
        self.send_down(
            conn,
            Parcel::Message(CoordinatorMessage::Model { version, digest, transfer: transfer.clone() }),
        );
        let mut last_ms = now_ms;
        for index in 0..u32::try_from(transfer.chunks.len()).unwrap_or(u32::MAX) {
            let Some(range) = transfer.range(index) else { continue };
            let (transfer, bytes) = (transfer.id(), snapshot.content[range].to_vec());
            last_ms = last_ms.max(self.send_down(conn, Parcel::Chunk { transfer, index, bytes }));
        }
        let life = self.coordinator.life;
        let event = Event::ModelSent { peer, bytes: snapshot.content.len() as u64 };
        self.agenda.at(last_ms, Happening::Coordinator(life, Box::new(event)));
        if let Some(process) = self.coordinator.process.as_mut() {
            process.sending.insert(peer, (version, last_ms));
        }
    }

    /// What the transport does with an offer: equal content is received once, and everyone who offered it waits for it.
    fn receive(&mut self, peer: PeerId, wanted: Wanted, transfer: TransferManifest) {
        let Some(conn) = self.conn_of(peer) else { return };
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let id = transfer.id();
        if let Some(incoming) = process.incoming.get_mut(&(conn, id)) {
            incoming.waiting.push(wanted);
            return;
        }
        let Ok(assembly) = Assembly::new(transfer, limits::UPLOADS_IN_FLIGHT_BYTES) else { return };
        let missing = assembly.missing().clone();
        process.incoming.insert((conn, id), Incoming { waiting: vec![wanted], assembly });
        self.send_to(peer, CoordinatorMessage::NeedChunks { transfer: id, missing });
    }

    pub(super) fn arrived_up(&mut self, id: u64, parcel: super::network::Up) {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.coordinator_up) else { return };
        let machine = conn.machine;
        let Some(process) = self.coordinator.process.as_mut() else { return };
        match parcel {
            Parcel::Message(AgentMessage::Hello(hello)) => {
                self.coordinator.next_peer += 1;
                let peer = PeerId(self.coordinator.next_peer);
                conn.peer = Some(peer);
                process.peers.insert(peer, id);
                self.coordinator_handles(Event::Connected { peer, agent: agent_id(machine), hello });
            }
            Parcel::Message(message) => {
                if let Some(peer) = conn.peer {
                    self.coordinator_handles(Event::Message { peer, message });
                }
            }
            Parcel::Chunk { transfer, index, bytes } => {
                let Some(peer) = conn.peer else { return };
                let Some(incoming) = process.incoming.get_mut(&(id, transfer)) else { return };
                if !incoming.assembly.put(index, &bytes).unwrap_or(false) {
                    return;
                }
                let Some(Incoming { waiting, assembly }) = process.incoming.remove(&(id, transfer)) else { return };
                let content: Arc<[u8]> = assembly.finish().unwrap_or_default().into();
                for wanted in waiting {
                    self.decode_later(peer, wanted, &content);
                }
            }
        }
    }

    /// Decoding takes a while, in which the connection may end.
    fn decode_later(&mut self, peer: PeerId, wanted: Wanted, content: &Arc<[u8]>) {
        let Some(process) = self.coordinator.process.as_ref() else { return };
        let event = match wanted {
            Wanted::Update(meta) => {
                let Some(state) = process.core.state() else { return };
                let decoded = if Digest::of(content) == meta.payload_digest {
                    codec::decode(meta.codec, &state.manifest, content).map(Arc::new)
                } else {
                    Err(DecodeError::Invalid("payload digest"))
                };
                Event::UpdateReceived { peer, meta: *meta, payload: Arc::clone(content), content: decoded }
            }
            Wanted::Model(manifest, digest) => match codec::decode(CodecId(0), &manifest, content) {
                Ok(model) => {
                    let model = Arc::new(model.into_dense());
                    Event::ModelReceived { peer, manifest: *manifest, digest, model }
                }
                Err(error) => Event::ModelFailed { peer, why: error.to_string() },
            },
        };
        let busy_ms = if self.rng.below(8) == 0 { 3_000 } else { 50 };
        let (life, wait_ms) = (self.coordinator.life, self.rng.below(busy_ms));
        self.after(wait_ms, Happening::Coordinator(life, Box::new(event)));
    }

    pub(super) fn coordinator_lost(&mut self, conn: u64, peer: Option<PeerId>) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        process.incoming.retain(|(of, _), _| *of != conn);
        if let Some(peer) = peer {
            process.peers.remove(&peer);
            process.sending.remove(&peer);
            self.coordinator_handles(Event::Disconnected { peer });
        }
    }

    /// P1, where it can be seen: coordinate L is 1 if the update of lease L is part of this version, else 0.
    fn checked_ledger(&mut self, version: ModelVersion, model: &[f32]) {
        if self.schedule.task == Task::Ledger {
            let found = ledger(self.journal.merged(), version, model);
            self.coordinator.duplicated += model.iter().filter(|value| **value > 1.0).count() as u64;
            self.checked(found);
        }
    }

    /// After everything: the store as it lies there holds, and says what agents were told.
    pub(super) fn audit(&mut self) -> Checked {
        self.journal.audit()?;
        self.agents.iter().try_for_each(|agent| agent.audit(&self.journal))?;
        let broken_by = |error: &dyn std::fmt::Display| broken("P2", format!("the audit: {error}"));
        let store = match Engine::open(self.coordinator.disk.copy()) {
            Ok(store) => store,
            Err(error) => return broken_by(&error),
        };
        let report = match recovery::verify(&store) {
            Ok(report) => report,
            Err(RecoveryError::Empty) => return self.journal.recovered_nothing(),
            Err(error) => return broken_by(&error),
        };
        ensure(report.holds, "P2", || format!("the store does not hold: {:?}", report.problem))?;
        let found = match recovery::recover(&store) {
            Ok(found) => found,
            Err(error) => return broken_by(&error),
        };
        self.journal.recovered(found.position, found.chain, found.state.version, found.model.model())?;
        self.checked_ledger(found.state.version, found.model.model());
        self.journal.audit()
    }
}

fn ledger(merged: &[crate::invariants::journal::Merged], version: ModelVersion, model: &[f32]) -> Checked {
    let mut expected = vec![0.0_f32; model.len()];
    for merged in merged.iter().filter(|merged| merged.version <= version) {
        if let Some(value) = usize::try_from(merged.lease.0).ok().and_then(|lease| expected.get_mut(lease)) {
            *value += 1.0;
        }
    }
    let differs = expected.iter().zip(model).position(|(expected, found)| expected != found);
    let Some(lease) = differs else { return Ok(()) };
    broken("P1", format!("version {version}: lease {lease} counts {}, and should {}", model[lease], expected[lease]))
}

/// Why a process does not come up.
#[derive(Debug)]
enum StartError {
    Worker(WorkerError),
    Broken(String),
}

impl From<WorkerError> for StartError {
    fn from(error: WorkerError) -> Self {
        Self::Worker(error)
    }
}
