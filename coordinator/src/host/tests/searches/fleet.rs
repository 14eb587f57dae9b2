//! A process with a search, two members that take part in every run, and workers that do one job a step.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use anabranch_common::codec::{self, Delta};
use anabranch_common::ids::{BranchId, Digest, Epoch, Incarnation, ModelVersion, Position, UpdateSeq};
use anabranch_common::journal::{Evaluation, Lease};
use anabranch_common::spec::RunSpec;
use anabranch_common::transfer::Budgets;
use anabranch_common::update::{UpdateKey, UpdateMeta};
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage, RunPhase};
use anabranch_common::wire::operator::SearchRequest;
use serde::de::DeserializeOwned;

use super::super::super::*;
use super::super::world::{AGENT, OTHER, REQUEST, SECRET};
use crate::config::{Config, Retention};
use crate::core::content::{Content, Reservation};
use crate::core::state::RunState;
use crate::node::checkpoint::Keep;
use crate::node::merge::Merger;
use crate::node::{Done, Job, PublishedModel, write};
use crate::recovery::{self, RecoveryError};
use crate::registry::roster::Roster;
use crate::registry::tokens::NewToken;
use crate::runs::Submission;
use crate::search::base::Base;
use crate::search::journal;
use crate::search::record::Record;
use crate::store::Store as _;
use crate::store::for_tests::MapStore;

/// A small model, and a version for each contribution.
pub(super) const BASE: &str = r#"
[run]
name = "digits"
seed = 3
[model]
kind = "mlp"
input = [2]
classes = 2
hidden = []
input_scale = 1.0
[train]
local_steps = 1
batch_size = 1
optimizer = { kind = "sgd", lr = 0.1 }
[upload]
codec = { kind = "bf16" }
feedback_decay = 1.0
[merge]
strategy = "fedasync"
alpha = 1.0
staleness = { fn = "constant" }
[admit]
max_staleness = 1000
max_examples = 100000
max_norm_ratio = 0.0
[evaluate]
every_versions = 5
every_s = 1.0
[target]
versions = 40
[schedule]
tick_ms = 50
[checkpoint]
every_versions = 10
[server]
listen = "127.0.0.1:4433"
"#;

/// Rungs of 2, 4 and 8 contributions.
pub(super) fn search_text(parallel: u32) -> String {
    format!(
        "config = \"run.toml\"\n[search]\ntrials = 4\neta = 2\nr = 2\nmax = 8\nparallel = {parallel}\n\
         [space]\n\"train.optimizer.lr\" = {{ log = [1e-3, 1] }}\n"
    )
}

/// What the member does that trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    Trains,
    /// Its updates of this run are so large that two of them overflow.
    Diverges(&'static str),
}

/// The directory of a run.
#[derive(Debug)]
struct Directory {
    run: RunId,
    config: String,
    submission: Option<Submission>,
    store: Arc<MapStore>,
}

/// A step that waits.
#[derive(Debug)]
enum Work {
    Job(Output),
    Message(PeerId, CoordinatorMessage),
}

/// A connection of a member.
#[derive(Debug, Clone)]
struct Seat {
    run: String,
    agent: AgentId,
    epoch: Epoch,
}

#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) host: Host,
    pub(super) answers: Vec<(RequestId, OperatorResponse)>,
    /// What checkpoints keep.
    pub(super) retention: Retention,
    habit: Habit,
    directories: BTreeMap<String, Directory>,
    searches: BTreeMap<String, Arc<MapStore>>,
    mergers: BTreeMap<RunId, Merger>,
    work: VecDeque<Work>,
    seats: BTreeMap<PeerId, Seat>,
    next_peer: u64,
    /// Updates so far, in all lives.
    next_seq: u64,
    now: Now,
}

fn host() -> Host {
    let mut roster = Roster::default();
    let secret_digest = Digest::of(&SECRET).0;
    let token =
        NewToken { secret_digest, name: Some("agent".into()), ttl_ms: 10_000_000, uses: 3, runs: BTreeSet::new() };
    roster.create_token(token, 0).expect("a sound token");
    [AGENT, OTHER].iter().for_each(|agent| _ = roster.join(&SECRET, *agent, 1).expect("a use is left"));
    roster.take_changes().expect("short");
    let mut host = Host::new(Registry::new(roster));
    host.stay();
    host
}

/// The accuracy of a configuration after so many contributions.
fn accuracy(config: &str, version: ModelVersion) -> f64 {
    let [a, b, ..] = Digest::of(config.as_bytes()).0;
    let level = 0.3 + 0.6 * f64::from(u16::from_le_bytes([a, b])) / 65_536.0;
    level * (1.0 - (-0.3 * version.0 as f64).exp())
}

impl Fleet {
    pub(super) fn new(habit: Habit) -> Self {
        Self {
            host: host(),
            answers: Vec::new(),
            retention: Retention::SinceSnapshot,
            habit,
            directories: BTreeMap::new(),
            searches: BTreeMap::new(),
            mergers: BTreeMap::new(),
            work: VecDeque::new(),
            seats: BTreeMap::new(),
            next_peer: 0,
            next_seq: 0,
            now: Now { unix_ms: 1_000_000, mono_ms: 10 },
        }
    }

    /// What is not in a store is lost; the next process goes on.
    pub(super) fn kill(&mut self) {
        self.host = host();
        self.answers.clear();
        self.mergers.clear();
        self.work.clear();
        self.seats.clear();
        let runs: Vec<String> = self.directories.keys().cloned().collect();
        let searches: Vec<String> = self.searches.keys().cloned().collect();
        let mut outputs = Vec::new();
        runs.into_iter().for_each(|name| outputs.extend(self.host.open(name)));
        searches.into_iter().for_each(|name| outputs.extend(self.host.open_search(name)));
        self.sort(outputs);
    }

    pub(super) fn start_search(&mut self, text: &str) {
        let start = SearchRequest::Start { path: "lr.toml".into(), search: text.into(), base: BASE.into() };
        self.handle(Input::Operator { request: REQUEST, operation: start.into() });
    }

    /// Asks something that is answered at once, or once everything is durable that is so far.
    pub(super) fn ask(&mut self, operation: OperatorRequest) -> OperatorResponse {
        let request = RequestId(1_000);
        self.handle(Input::Operator { request, operation });
        for _ in 0..1_000 {
            let answer = self.answers.iter().position(|(of, _)| *of == request);
            if let Some(answer) = answer {
                return self.answers.remove(answer).1;
            }
            self.step();
        }
        panic!("no answer");
    }

    pub(super) fn search<T: DeserializeOwned>(&mut self, request: SearchRequest) -> T {
        let response = self.ask(request.into());
        let OperatorResponse::Json(text) = response else { panic!("{response:?}") };
        serde_json::from_str(&text).expect("as sent")
    }

    /// The answer to `start_search`.
    pub(super) fn json<T: DeserializeOwned>(&mut self) -> T {
        let (_, response) = self.answers.iter().find(|(request, _)| *request == REQUEST).expect("an answer");
        let OperatorResponse::Json(text) = response else { panic!("{response:?}") };
        serde_json::from_str(text).expect("as sent")
    }

    pub(super) fn journal(&self, search: &str) -> Vec<Record> {
        let store = self.searches.get(search);
        store.map(|store| journal::read(store.journal()).expect("as written")).unwrap_or_default()
    }

    /// Searches that have a directory, once everything that is due is done.
    pub(super) fn searches(&mut self) -> usize {
        self.settle();
        self.searches.len()
    }

    pub(super) fn run_state(&self, name: &str) -> RunState {
        recovery::recover(self.directories[name].store.as_ref()).expect("as written").state
    }

    /// Every record of a run that is kept.
    pub(super) fn run_journal(&self, name: &str) -> Vec<anabranch_common::journal::Record> {
        let journal = self.directories[name].store.journal();
        let read = |position| {
            let bytes = journal.record(Position(position)).expect("a map")?;
            Some(anabranch_common::journal::Record::from_bytes(&bytes).expect("as written"))
        };
        (0..).map_while(read).collect()
    }

    /// The id of a run.
    pub(super) fn run_id(&self, name: &str) -> RunId {
        self.directories[name].run
    }

    /// What a run's `run.toml` says.
    pub(super) fn run_spec(&self, name: &str) -> RunSpec {
        self.config(name).spec
    }

    /// The digest of what users are given of a version of a run.
    pub(super) fn digest(&self, name: &str, version: ModelVersion) -> Digest {
        recovery::export(self.directories[name].store.as_ref(), Some(version)).expect("it is kept").digest
    }

    /// Whether a run is about to be opened again with another configuration.
    pub(super) fn reopens(&self) -> bool {
        matches!(self.work.front(), Some(Work::Job(Output::Runs(RunsJob::Reopen { .. }))))
    }

    /// Does the first half of that job: the configuration is another one, and the run is not open.
    pub(super) fn half_reopen(&mut self) {
        let Some(Work::Job(Output::Runs(RunsJob::Reopen { name, config, .. }))) = self.work.pop_front() else {
            panic!("no such job")
        };
        self.directories.get_mut(&name).expect("it is there").config = config;
    }

    /// Answers the next request for a copy with a problem, once there is one.
    pub(super) fn fail_copy(&mut self) {
        for _ in 0..20_000 {
            if let Some(Work::Job(Output::Searches(SearchesJob::Copy { .. }))) = self.work.front() {
                let Some(Work::Job(Output::Searches(SearchesJob::Copy { search, trial, run, version }))) =
                    self.work.pop_front()
                else {
                    unreachable!("it was just seen")
                };
                let model = Err("the disk is gone".to_owned());
                return self.handle(Input::Searches(SearchesDone::Copied { search, trial, run, version, model }));
            }
            self.step();
        }
        panic!("no copy is asked for");
    }

    pub(super) fn has_model(&self, name: &str) -> bool {
        self.directories
            .get(name)
            .is_some_and(|directory| self.host.node(directory.run).is_some_and(|node| node.core().state().is_some()))
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.directories.remove(name).expect("it is there");
    }

    /// Does what is due, until nothing happens but that time passes.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.work.is_empty() {
                return;
            }
            self.step();
        }
        panic!("something happens without end");
    }

    /// Does what waits longest; where nothing does, a second passes.
    pub(super) fn step(&mut self) {
        match self.work.pop_front() {
            Some(Work::Job(job)) => self.run(job),
            Some(Work::Message(peer, message)) => self.hear(peer, message),
            None => {
                (self.now.unix_ms, self.now.mono_ms) = (self.now.unix_ms + 1_000, self.now.mono_ms + 1_000);
                self.handle(Input::Tick);
            }
        }
    }

    pub(super) fn handle(&mut self, input: Input) {
        let outputs = self.host.handle(self.now, input);
        self.sort(outputs);
        self.connect();
    }

    fn sort(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Run { .. } | Output::Runs(_) | Output::Searches(_) => self.work.push_back(Work::Job(output)),
                Output::ToPeer(ToPeer::Send { peer, message }) => self.work.push_back(Work::Message(peer, *message)),
                Output::ToPeer(ToPeer::Close { peer }) => {
                    if self.seats.remove(&peer).is_some() {
                        let outputs = self.host.handle(self.now, Input::Disconnected { peer });
                        self.sort(outputs);
                    }
                }
                Output::Reply { request, answer } => self.answers.push((request, answer.into_response())),
                Output::ToPeer(_) | Output::Ended { .. } | Output::Close { .. } => {}
                other => panic!("{other:?} is not expected here"),
            }
        }
    }

    /// Members take part in every run that is listed.
    fn connect(&mut self) {
        for listed in self.host.listed() {
            for agent in [AGENT, OTHER] {
                let is_here = |seat: &Seat| seat.run == listed.name && seat.agent == agent;
                let phase = self.host.node(listed.run).map(|node| node.core().phase());
                if self.seats.values().any(is_here) || phase == Some(RunPhase::Finished) {
                    continue;
                }
                self.next_peer += 1;
                let peer = PeerId(self.next_peer);
                self.seats.insert(peer, Seat { run: listed.name.clone(), agent, epoch: Epoch(0) });
                let (train_examples, eval_examples) = if agent == AGENT { (100, 0) } else { (0, 10) };
                let hello = AgentHello {
                    run: listed.run,
                    branch: None,
                    incarnation: Incarnation(agent.0),
                    software: "test".into(),
                    train_examples,
                    eval_examples,
                    device: "cpu".into(),
                    pod: None,
                };
                let outputs = self.host.handle(self.now, Input::Hello { peer, agent, certificate: None, hello });
                self.sort(outputs);
            }
        }
    }

    fn say(&mut self, peer: PeerId, message: AgentMessage) {
        self.handle(Input::Message { peer, message });
    }

    /// A member hears something, and does at once what it leads to.
    fn hear(&mut self, peer: PeerId, message: CoordinatorMessage) {
        let Some(seat) = self.seats.get(&peer).cloned() else { return };
        let trains = seat.agent == AGENT;
        match message {
            CoordinatorMessage::Welcome(welcome) => {
                self.seats.insert(peer, Seat { epoch: welcome.epoch, ..seat.clone() });
                match (trains, welcome.model) {
                    (true, None) => self.offer_model(peer, &seat),
                    (true, Some(_)) => self.say(peer, AgentMessage::RequestLease),
                    (false, _) => {}
                }
            }
            CoordinatorMessage::ModelReady { .. }
            | CoordinatorMessage::Verdict { .. }
            | CoordinatorMessage::StateChanged { state: RunPhase::Running }
                if trains =>
            {
                self.say(peer, AgentMessage::RequestLease);
            }
            CoordinatorMessage::Lease { lease, .. } => self.deliver(peer, &seat, &lease),
            CoordinatorMessage::Evaluate { version, .. } => {
                let accuracy = accuracy(&self.directories[&seat.run].config, version);
                let evaluation =
                    Evaluation { agent: seat.agent, version, accuracy, loss: 1.0 - accuracy, num_examples: 10 };
                self.say(peer, AgentMessage::Evaluated { evaluation, cost_ms: 1 });
            }
            CoordinatorMessage::StateChanged { state: RunPhase::Finished }
            | CoordinatorMessage::NoLease { state: RunPhase::Finished } => {
                self.say(peer, AgentMessage::Goodbye { reason: "the run has ended".into() });
            }
            _ => {}
        }
    }

    fn config(&self, run: &str) -> Config {
        Config::parse_run(Path::new("run.toml"), &self.directories[run].config, run).expect("it was made with this")
    }

    fn tell_run(&mut self, peer: PeerId, event: Event) {
        self.host.tell_peer_run(self.now, peer, node::Input::Event(event));
        self.host.settle_searches(self.now);
        let outputs = self.host.outputs();
        self.sort(outputs);
        self.connect();
    }

    fn offer_model(&mut self, peer: PeerId, seat: &Seat) {
        let manifest = self.config(&seat.run).spec.model.layers().expect("valid").expect("native").manifest;
        let values = vec![0.5; manifest.params()];
        let digest = Digest::of_f32(&values);
        let model = Arc::new(Content::measure(Delta::Dense(values), Reservation::default()));
        self.tell_run(peer, Event::ModelReceived { peer, manifest, digest, model });
    }

    fn deliver(&mut self, peer: PeerId, seat: &Seat, lease: &Lease) {
        self.next_seq += 1;
        let run = self.directories[&seat.run].run;
        let manifest = self.config(&seat.run).spec.model.layers().expect("valid").expect("native").manifest;
        let value = if self.habit == Habit::Diverges("lr-1") && seat.run == "lr-1" { 3e38 } else { 0.125 };
        let codec = codec::encoder(lease.plan.codec);
        let payload = codec.encode(&manifest, &vec![value; manifest.params()]).expect("finite");
        let delta = codec::decode(codec.id(), &manifest, &payload).expect("as encoded");
        let meta = UpdateMeta {
            key: UpdateKey { run, agent: seat.agent, epoch: seat.epoch, seq: UpdateSeq(self.next_seq) },
            branch: lease.branch,
            lease: lease.id,
            base_version: lease.base_version,
            base_digest: lease.base_digest,
            codec: codec.id(),
            payload_bytes: payload.len() as u64,
            payload_digest: Digest::of(&payload),
            num_examples: 32,
            local_steps: 1,
            train_loss: 0.5,
            compute_ms: 10,
            base_dot: None,
            residual_ratio: None,
            memory: None,
        };
        let content = Ok(Arc::new(Content::measure(delta, Reservation::default())));
        let payload = Arc::from(payload);
        self.tell_run(peer, Event::UpdateReceived { peer, meta, payload, content, transfer_ms: None });
    }

    fn run(&mut self, job: Output) {
        let keep = Keep { checkpoints: 1, retention: self.retention };
        let input = match job {
            Output::Run { run, job } => {
                let directory = self.directories.values().find(|directory| directory.run == run).expect("it is there");
                let store = directory.store.as_ref();
                let merger = self.mergers.entry(run).or_default();
                let done = match job {
                    Job::Write(group) => Done::Write(write::write(store, group)),
                    Job::Merge(batch) => Done::Merge(merger.run(batch)),
                    Job::Checkpoint(job) => Done::Checkpoint(job.run(store, keep)),
                    Job::Decode(job) => job.run(),
                    Job::Pack(job) => job.run(),
                    Job::Spool(_) => return,
                };
                Input::Done { run, done }
            }
            Output::Runs(RunsJob::Create { name, config, submission }) => {
                let [a, b, c, d, ..] = Digest::of(name.as_bytes()).0;
                let run = RunId([a, b, c, d, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
                let store = Arc::new(MapStore::new());
                self.directories.insert(name.clone(), Directory { run, config, submission, store });
                self.open(&name)
            }
            Output::Runs(RunsJob::Open { name }) => self.open(&name),
            Output::Runs(RunsJob::Reopen { name, run, config }) => {
                self.mergers.remove(&run);
                self.directories.get_mut(&name).expect("it is there").config = config;
                self.open(&name)
            }
            Output::Searches(job) => Input::Searches(self.search_job(job)),
            other => panic!("{other:?} is no job"),
        };
        self.handle(input);
    }

    fn open(&self, name: &str) -> Input {
        let directory = &self.directories[name];
        let config = self.config(name);
        let recovered = match recovery::recover(directory.store.as_ref()) {
            Err(RecoveryError::Empty) => None,
            recovered => Some(recovered.expect("as written")),
        };
        let mut options = crate::runs::options((directory.run, BranchId(directory.run.0)), &config);
        options.starts = 1;
        let settings = Settings { options, spec: config.spec, budgets: Budgets::with_decoders(2) };
        let about = About { submission: directory.submission, is_own: false, ..About::own(name) };
        Input::Runs(RunsDone::Opened(Box::new(OpenedRun { about, settings, recovered, halves: vec![] })))
    }

    fn search_job(&mut self, job: SearchesJob) -> SearchesDone {
        match job {
            SearchesJob::Create { name, texts } => {
                self.searches.insert(name.clone(), Arc::new(MapStore::new()));
                let base = Base::parse(Path::new("run.toml"), &texts.base).expect("a sound base").text();
                SearchesDone::Opened { name, records: vec![], texts: Some(SearchTexts { base, ..texts }) }
            }
            SearchesJob::Open { name } => {
                let records = self.journal(&name);
                if records.is_empty() {
                    self.searches.remove(&name);
                    let why = "its start was never answered".to_owned();
                    return SearchesDone::NotOpened { name, is_there: false, why };
                }
                SearchesDone::Opened { name, records, texts: None }
            }
            SearchesJob::Write { name, records } => {
                let written = journal::write(self.searches[&name].journal(), &records).expect("a map");
                SearchesDone::Written { name, result: Ok(written.expect("at least one record")) }
            }
            SearchesJob::Rebuild { search, trial, run, version } => {
                let directory = self.directories.values().find(|directory| directory.run == run).expect("it is there");
                let exported = recovery::export(directory.store.as_ref(), Some(version));
                let model = exported.map_err(|error| error.to_string()).map(|exported| {
                    let (digest, values) = (exported.digest, exported.model.into());
                    Arc::new(PublishedModel { version, digest, values })
                });
                SearchesDone::Rebuilt { search, trial, run, version, model }
            }
            SearchesJob::Copy { search, trial, run, version } => {
                let directory = self.directories.values().find(|directory| directory.run == run).expect("it is there");
                let exported = recovery::export(directory.store.as_ref(), Some(version));
                let model = exported.map(|exported| Box::new(CopiedModel::of(exported)));
                SearchesDone::Copied { search, trial, run, version, model: model.map_err(|error| error.to_string()) }
            }
        }
    }
}
