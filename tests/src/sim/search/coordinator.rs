//! The coordinator's machine: its disks, and the process while there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anabranch_common::ids::{BranchId, Digest, Position, RunId};
use anabranch_common::transfer::{Budgets, Sink};
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse, RunRequest, SearchRequest};
use anabranch_coordinator::config::Config;
use anabranch_coordinator::core::event::{Now, PeerId, RequestId};
use anabranch_coordinator::driver;
use anabranch_coordinator::host::{About, Host, Input, OpenedRun, Output};
use anabranch_coordinator::identity;
use anabranch_coordinator::node::Settings;
use anabranch_coordinator::node::checkpoint::Keep;
use anabranch_coordinator::node::merge::Merger;
use anabranch_coordinator::recovery::{self, RecoveryError};
use anabranch_coordinator::registry::roster::Roster;
use anabranch_coordinator::registry::save;
use anabranch_coordinator::registry::tokens::NewToken;
use anabranch_coordinator::runs::{self, Submission};
use anabranch_coordinator::search::record::TrialId;
use anabranch_coordinator::search::run_name;
use anabranch_coordinator::store::{Engine, Store};

use crate::invariants::journal::{Checked, broken};
use crate::sim::DECODERS;
use crate::sim::coordinator::spool::Spool;
use crate::sim::disk::SimDisk;
use crate::sim::network::Side;
use crate::sim::world::agent_id;

use super::plan::{OWN, Order, SEARCH, SearchPlan};
use super::world::{Happening, World};

/// How often the host is told that time has passed.
const TICK_MS: u64 = 250;
/// How long an operator waits for an answer before it asks again.
const ASK_AGAIN_MS: u64 = 2_000;

/// The directory of a run.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) run: RunId,
    pub(super) config: Config,
    pub(super) submission: Option<Submission>,
    pub(super) disk: SimDisk,
    pub(super) spool: Spool,
}

/// What a process has open of a run.
pub(super) struct Open {
    pub(super) name: String,
    pub(super) store: Arc<Engine<SimDisk>>,
    pub(super) merger: Merger,
    /// The first record that the writer has not been given.
    pub(super) next_write: Position,
    pub(super) keep: Keep,
}

/// A process.
pub(super) struct Process {
    pub(super) host: Host,
    pub(super) started_ms: u64,
    pub(super) runs: BTreeMap<RunId, Open>,
    /// The store of the search, once it is open.
    pub(super) search: Option<Arc<Engine<SimDisk>>>,
    /// What is done beside the loop.
    pub(super) jobs: BTreeMap<u64, Output>,
    pub(super) next_job: u64,
    /// Where chunks go, by stream and transfer, and whether they are written to disk too.
    pub(super) sinks: BTreeMap<(u64, Digest), (Arc<Sink>, bool)>,
    pub(super) peers: BTreeMap<PeerId, u64>,
    next_request: u64,
    /// The request for the search that is not answered yet.
    start: Option<RequestId>,
}

/// The machine.
pub(super) struct Coordinator {
    /// By name.
    pub(super) directories: BTreeMap<String, Directory>,
    /// The disk of the search's directory, if there is one.
    pub(super) search: Option<SimDisk>,
    pub(super) process: Option<Process>,
    pub(super) life: u64,
    /// Steps of the search, over all processes.
    pub(super) steps: u64,
    /// When a process was killed last whose successor started in the same instant.
    pub(super) replaced_at_ms: Option<u64>,
    /// Whether the start of the search was answered.
    answered: bool,
    pub(super) next_peer: u64,
}

/// The id of a run follows from its name.
pub(super) fn run_id(name: &str) -> RunId {
    let Digest(bytes) = Digest::of(name.as_bytes());
    RunId(std::array::from_fn(|index| bytes[index]))
}

impl Directory {
    pub(super) fn new(name: &str, config: Config, submission: Option<Submission>) -> Self {
        Self { run: run_id(name), config, submission, disk: SimDisk::default(), spool: Spool::default() }
    }
}

impl Coordinator {
    /// An initialised directory in which every agent is enrolled.
    pub(super) fn new(plan: &SearchPlan, agents: usize) -> Self {
        let config = Config::parse(Path::new("run.toml"), &plan.base_text()).expect("a sound configuration");
        let own = Directory::new(OWN, config, None);
        let mut roster = Roster::default();
        let secret = [7; 32];
        let uses = u32::try_from(agents).unwrap_or(u32::MAX);
        let (secret_digest, name) = (Digest::of(&secret).0, Some("agent".into()));
        let token = NewToken { secret_digest, name, ttl_ms: 10_000, uses, runs: BTreeSet::new() };
        roster.create_token(token, 0).expect("a sound token");
        for machine in 1..=agents {
            roster.join(&secret, agent_id(machine), 1).expect("as many uses as agents");
        }
        let store = Engine::open(own.disk.clone()).expect("an empty disk opens");
        save::put(store.catalogue(), roster.take_changes().expect("a small roster")).expect("no faults yet");
        store.catalogue().sync().expect("no faults yet");
        Self {
            directories: BTreeMap::from([(OWN.to_owned(), own)]),
            search: None,
            process: None,
            life: 0,
            steps: 0,
            replaced_at_ms: None,
            answered: false,
            next_peer: 0,
        }
    }

    pub(super) fn is_life(&self, life: u64) -> bool {
        self.process.is_some() && self.life == life
    }

    /// Every disk of the machine.
    pub(super) fn disks(&self) -> impl Iterator<Item = &SimDisk> {
        self.directories.values().map(|directory| &directory.disk).chain(&self.search)
    }

    pub(super) fn directory_of(&mut self, run: RunId) -> Option<&mut Directory> {
        self.directories.values_mut().find(|directory| directory.run == run)
    }
}

impl World {
    pub(super) fn start_coordinator(&mut self) {
        if self.coordinator.process.is_some() || self.is_over {
            return;
        }
        self.coordinator.life += 1;
        let registry = Engine::open(self.coordinator.directories[OWN].disk.clone())
            .map_err(anyhow::Error::from)
            .and_then(|store| driver::registry(store.catalogue()));
        let host = match registry {
            Ok(registry) => Host::new(registry),
            Err(error) => return self.violate("P2", format!("the registry cannot be read: {error:#}")),
        };
        self.note(0, || "starts".into());
        self.coordinator.process = Some(Process {
            host,
            started_ms: self.now_ms(),
            runs: BTreeMap::new(),
            search: None,
            jobs: BTreeMap::new(),
            next_job: 0,
            sinks: BTreeMap::new(),
            peers: BTreeMap::new(),
            next_request: 0,
            start: None,
        });
        let opened = match self.open_run(OWN) {
            Ok(opened) => opened,
            Err(violation) => return self.checked(Err(violation)),
        };
        let now = self.coordinator_now();
        let others: Vec<String> = self.coordinator.directories.keys().filter(|name| *name != OWN).cloned().collect();
        let has_search = self.coordinator.search.is_some();
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let mut outputs = match process.host.start_opened(opened, now) {
            Ok(outputs) => outputs,
            Err(mismatch) => return self.violate("P2", mismatch.to_string()),
        };
        others.into_iter().for_each(|name| outputs.extend(process.host.open(name)));
        if has_search {
            outputs.extend(process.host.open_search(SEARCH.to_owned()));
        }
        let life = self.coordinator.life;
        self.after(TICK_MS, Happening::Tick(life));
        if !self.coordinator.answered {
            self.after(0, Happening::Ask(life));
        }
        self.carry_out(outputs);
        self.reset_stale_streams();
    }

    /// Opens a run as the driver does: recovers it, and compares that with what is known of it.
    pub(super) fn open_run(&mut self, name: &str) -> Result<OpenedRun, crate::invariants::journal::Violation> {
        let Directory { run, config, submission, disk, spool } = &self.coordinator.directories[name];
        let violated = |what: String| crate::invariants::journal::Violation { invariant: "P2", what };
        let opened = disk.open().and_then(|()| Engine::open(disk.clone()));
        let store = opened.map_err(|error| violated(format!("the store of run {name} cannot be opened: {error}")))?;
        let mut options = runs::options((*run, BranchId(run.0)), config);
        options.starts = identity::run::count_start(store.catalogue()).map_err(|error| violated(error.to_string()))?;
        let recovered = match recovery::recover(&store) {
            Ok(recovered) => Some(recovered),
            Err(RecoveryError::Empty) => None,
            Err(error) => return Err(violated(format!("run {name} cannot be recovered: {error}"))),
        };
        self.watch.run_opened(*run, name, recovered.as_ref(), &store)?;
        recovery::release(&store).map_err(|error| violated(error.to_string()))?;
        let keep = Keep { checkpoints: config.checkpoint.keep, retention: config.checkpoint.retention };
        let next_write = recovered.as_ref().map_or(Position(0), |found| found.position.next());
        let about = About {
            name: name.to_owned(),
            weight: config.weight,
            is_own: name == OWN,
            submission: *submission,
            disk_quota_bytes: None,
        };
        let settings = Settings { options, spec: config.spec.clone(), budgets: Budgets::with_decoders(DECODERS) };
        let opened = OpenedRun { about, settings, recovered, halves: spool.halves() };
        let open = Open { name: name.to_owned(), store: Arc::new(store), merger: Merger::default(), next_write, keep };
        let run = *run;
        if let Some(process) = self.coordinator.process.as_mut() {
            process.runs.insert(run, open);
        }
        Ok(opened)
    }

    pub(super) fn coordinator_now(&self) -> Now {
        let started_ms = self.coordinator.process.as_ref().map_or(0, |process| process.started_ms);
        Now { unix_ms: self.unix_ms(), mono_ms: self.now_ms() - started_ms }
    }

    pub(super) fn coordinator_tick(&mut self, life: u64) {
        if self.coordinator.is_life(life) {
            self.after(TICK_MS, Happening::Tick(life));
            self.coordinator_takes(Input::Tick);
        }
    }

    pub(super) fn coordinator_takes(&mut self, input: Input) {
        let now = self.coordinator_now();
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let outputs = process.host.handle(now, input);
        self.carry_out(outputs);
    }

    /// The operator asks for the search until it has an answer.
    pub(super) fn ask_for_search(&mut self, life: u64) {
        if !self.coordinator.is_life(life) || self.coordinator.answered {
            return;
        }
        let (search, base) = (self.plan.search_text(), self.plan.base_text());
        let operation = SearchRequest::Start { path: "lr.toml".to_owned(), search, base };
        if let Some(process) = self.coordinator.process.as_mut() {
            process.start = Some(RequestId(process.next_request + 1));
        }
        self.operate(operation.into());
        self.after(ASK_AGAIN_MS, Happening::Ask(life));
    }

    fn operate(&mut self, operation: OperatorRequest) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        process.next_request += 1;
        let request = RequestId(process.next_request);
        self.coordinator_takes(Input::Operator { request, operation });
    }

    /// What the operator of the plan asks for.
    pub(super) fn order(&mut self, index: usize) {
        let (_, order) = self.plan.orders[index];
        self.note(0, || format!("an operator asks for {order:?}"));
        let operation = match order {
            Order::StopTrial(trial) => {
                self.watch.may_be_gone(TrialId(trial));
                OperatorRequest::Run { run: Some(run_name(SEARCH, TrialId(trial))), request: RunRequest::Stop }
            }
            Order::StopSearch => {
                self.watch.may_be_stopped();
                SearchRequest::Stop { name: SEARCH.to_owned() }.into()
            }
        };
        self.operate(operation);
    }

    pub(super) fn replied(&mut self, request: RequestId, response: &OperatorResponse) {
        let Some(process) = self.coordinator.process.as_mut() else { return };
        if process.start == Some(request) {
            process.start = None;
            match response {
                OperatorResponse::Json(_) => {
                    self.coordinator.answered = true;
                    let there = self.watch.answered();
                    self.checked(there);
                }
                // It is being opened.
                OperatorResponse::Conflict(_) => {}
                other => self.violate("P6", format!("the search is not started: {other:?}")),
            }
        }
    }

    /// The end of `Driver::work`: every run and every search is over.
    pub(super) fn coordinator_exits(&mut self) {
        let open = self.streams.iter().filter(|(_, stream)| stream.conn.coordinator_up);
        let open: Vec<u64> = open.map(|(id, _)| *id).collect();
        open.into_iter().for_each(|stream| self.lost(stream, Side::Coordinator));
        self.coordinator.process = None;
        self.note(0, || "exits: everything is over".into());
        match self.coordinator.answered {
            true => self.is_over = true,
            // The operator who wants a search starts it again.
            false => self.after(1_000, Happening::Start(0)),
        }
    }

    /// After everything: what is stored says what was seen, and the search has ended as it must.
    pub(super) fn audit(&mut self) -> Checked {
        for (name, directory) in &self.coordinator.directories {
            match Engine::open(directory.disk.copy()) {
                Ok(store) => self.watch.audit_run(directory.run, &store)?,
                Err(error) => return broken("P2", format!("the audit of run {name}: {error}")),
            }
        }
        let disk = self.coordinator.search.as_ref().map(SimDisk::copy);
        let opened = disk.map(Engine::open).transpose();
        match opened {
            Ok(Some(store)) => self.watch.audit(store.journal()),
            Ok(None) => broken("search winner", "there is no search at the end"),
            Err(error) => broken("P2", format!("the audit of the search: {error}")),
        }
    }
}
