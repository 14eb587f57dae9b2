//! A process with two runs, whose jobs are run by hand.

use std::path::Path;
use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::{BranchId, Digest, Incarnation};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::transfer::Budgets;
use anabranch_common::wire::message::{AgentHello, CoordinatorMessage, Rejection, RunPhase};
use anabranch_common::wire::operator::{RegistryRequest, RunRequest};

use super::super::*;
use crate::config::{Config, Retention, TemplateOptions};
use crate::core::Options;
use crate::core::content::{Content, Reservation};
use crate::node::checkpoint::Keep;
use crate::node::merge::Merger;
use crate::node::{Done, Job, write};
use crate::recovery::{self, RecoveryError};
use crate::registry::roster::Roster;
use crate::registry::tokens::NewToken;
use crate::store::Store as _;
use crate::store::for_tests::MapStore;

pub(super) const A: RunId = RunId([1; 16]);
pub(super) const B: RunId = RunId([2; 16]);
pub(super) const AGENT: AgentId = AgentId([1; 16]);
pub(super) const OTHER: AgentId = AgentId([2; 16]);
pub(super) const SECRET: [u8; 32] = [7; 32];
pub(super) const REQUEST: RequestId = RequestId(9);

/// A process, the stores of its runs and of its registry, and workers that do what they are told to.
pub(super) struct World {
    pub(super) host: Host,
    pub(super) stores: BTreeMap<RunId, MapStore>,
    pub(super) members: MapStore,
    pub(super) mergers: BTreeMap<RunId, Merger>,
    /// What is out.
    pub(super) jobs: Vec<Output>,
    /// What came out beside jobs.
    pub(super) outputs: Vec<Output>,
}

impl World {
    /// Two runs without a model, and two members.
    pub(super) fn new() -> Self {
        let mut roster = Roster::default();
        let secret_digest = Digest::of(&SECRET).0;
        let runs = BTreeSet::new();
        let token = NewToken { secret_digest, name: Some("agent".into()), ttl_ms: 10_000_000, uses: 3, runs };
        roster.create_token(token, 0).expect("a sound token");
        [AGENT, OTHER].iter().for_each(|agent| _ = roster.join(&SECRET, *agent, 1).expect("a use is left"));
        roster.take_changes().expect("short");
        let mut world = Self {
            host: Host::new(Registry::new(roster)),
            stores: BTreeMap::new(),
            members: MapStore::new(),
            mergers: BTreeMap::new(),
            jobs: vec![],
            outputs: vec![],
        };
        [A, B].iter().for_each(|run| world.start(*run, "").expect("no run to differ from"));
        world
    }

    /// The same; agents have connected as peers 1 (to run A) and 2 (to run B), and both runs have a model.
    pub(super) fn started() -> Self {
        let mut world = Self::new();
        for (peer, agent, run) in [(1, AGENT, A), (2, OTHER, B)] {
            world.hello(peer, agent, run);
            world.offer_model(peer);
        }
        world.work();
        world.outputs.clear();
        world
    }

    /// Starts a run from what its store holds.
    pub(super) fn start(&mut self, run: RunId, model: &str) -> Result<(), ModelMismatch> {
        let store = self.stores.entry(run).or_insert_with(MapStore::new);
        let recovered = match recovery::recover(store) {
            Err(RecoveryError::Empty) => None,
            recovered => Some(recovered.expect("as written")),
        };
        self.mergers.insert(run, Merger::default());
        let opened = OpenedRun { about: about(run), settings: settings(run, model), recovered, halves: vec![] };
        let outputs = self.host.start_opened(opened, now())?;
        self.sort(outputs);
        Ok(())
    }

    pub(super) fn handle(&mut self, input: Input) {
        let outputs = self.host.handle(now(), input);
        self.sort(outputs);
    }

    pub(super) fn sort(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Run { .. } | Output::Save(_) | Output::Sign(_) => self.jobs.push(output),
                other => self.outputs.push(other),
            }
        }
    }

    pub(super) fn hello(&mut self, peer: u64, agent: AgentId, run: RunId) {
        let hello = AgentHello {
            run,
            branch: None,
            incarnation: Incarnation([u8::try_from(peer).expect("small"); 16]),
            software: "test".into(),
            train_examples: 100,
            eval_examples: 0,
            device: "cpu".into(),
            pod: None,
        };
        self.handle(Input::Hello { peer: PeerId(peer), agent, certificate: None, hello });
    }

    /// The node behind a connection gets an initial model over it.
    pub(super) fn offer_model(&mut self, peer: u64) {
        let manifest = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![4] }]).expect("valid");
        let model = Arc::new(Content::measure(Delta::Dense(vec![0.5; 4]), Reservation::default()));
        let (peer, digest) = (PeerId(peer), Digest::of_f32(model.delta().values()));
        let event = Event::ModelReceived { peer, manifest, digest, model };
        self.host.tell_peer_run(now(), peer, node::Input::Event(event));
        let outputs = self.host.outputs();
        self.sort(outputs);
    }

    /// One run alone is parked, as it may be by its own end.
    pub(super) fn park(&mut self, run: RunId) {
        self.host.tell(now(), run, node::Input::Event(Event::Park));
        let outputs = self.host.outputs();
        self.sort(outputs);
    }

    pub(super) fn ask(&mut self, run: Option<&str>, request: RunRequest) {
        self.operate(OperatorRequest::Run { run: run.map(String::from), request });
    }

    pub(super) fn operate(&mut self, operation: impl Into<OperatorRequest>) {
        self.handle(Input::Operator { request: REQUEST, operation: operation.into() });
    }

    pub(super) fn revoke(&mut self, agent: AgentId) {
        self.operate(RegistryRequest::AgentRevoke { agent: agent.to_string() });
    }

    /// Does a job, and tells what came of it.
    pub(super) fn run(&mut self, job: Output) {
        let keep = Keep { checkpoints: 1, retention: Retention::SinceSnapshot };
        let input = match job {
            Output::Run { run, job } => {
                let store = &self.stores[&run];
                let done = match job {
                    Job::Write(group) => Done::Write(write::write(store, group)),
                    Job::Merge(batch) => Done::Merge(self.mergers.get_mut(&run).expect("it was started").run(batch)),
                    Job::Checkpoint(job) => Done::Checkpoint(job.run(store, keep)),
                    Job::Decode(job) => job.run(),
                    Job::Pack(job) => job.run(),
                    Job::Spool(_) => return,
                };
                Input::Done { run, done }
            }
            Output::Save(group) => Input::Registry(registry::Done::Saved(save::save(self.members.catalogue(), group))),
            Output::Sign(jobs) => Input::Registry(registry::Done::Signed(jobs.iter().map(|_| signed()).collect())),
            other => panic!("{other:?} is no job"),
        };
        self.handle(input);
    }

    /// Does everything that is out, until nothing is.
    pub(super) fn work(&mut self) {
        while let Some(job) = self.jobs.pop() {
            self.run(job);
        }
    }

    pub(super) fn phase(&self, run: RunId) -> RunPhase {
        self.host.node(run).expect("it is served").core().phase()
    }

    pub(super) fn reply(&mut self) -> OperatorResponse {
        let answer = self.outputs.iter().find_map(|output| match output {
            Output::Reply { request: REQUEST, answer } => Some(answer.clone().into_response()),
            _ => None,
        });
        self.outputs.clear();
        answer.unwrap_or_else(|| panic!("no answer"))
    }

    pub(super) fn is_answered(&self) -> bool {
        self.outputs.iter().any(|output| matches!(output, Output::Reply { .. }))
    }

    pub(super) fn is_closed(&self, peer: u64) -> bool {
        let closed = |output: &Output| matches!(output, Output::ToPeer(ToPeer::Close { peer: of }) if of.0 == peer);
        self.outputs.iter().any(closed)
    }

    pub(super) fn rejection(&self, peer: u64) -> Option<&Rejection> {
        self.outputs.iter().find_map(|output| match output {
            Output::ToPeer(ToPeer::Send { peer: to, message }) if to.0 == peer => match &**message {
                CoordinatorMessage::Rejected(why) => Some(why),
                _ => None,
            },
            _ => None,
        })
    }

    pub(super) fn knows_as_revoked(&self, run: RunId, agent: AgentId) -> Option<bool> {
        let recovered = recovery::recover(&self.stores[&run]).expect("as written");
        recovered.state.agents.get(&agent).map(|known| known.revoked)
    }
}

pub(super) fn now() -> Now {
    Now { unix_ms: 1_000_000, mono_ms: 10 }
}

pub(super) fn signed() -> Signed {
    Signed::Join { request: REQUEST, response: JoinResponse::Refused(JoinRefusal::BadRequest) }
}

/// What run.toml of a run says, with more in it.
pub(super) fn settings(run: RunId, model: &str) -> Settings {
    let template = TemplateOptions { name: "test".into(), seed: 1, listen: ([127, 0, 0, 1], 1).into(), names: vec![] };
    let mut config = Config::parse(Path::new("run.toml"), &Config::template(&template)).expect("what `init` writes");
    if !model.is_empty() {
        config.spec.seed += 1;
    }
    let options = Options {
        run,
        first_branch: BranchId(run.0),
        starts: 0,
        lease_ttl_ms: 60_000,
        checkpoint_every_versions: 0,
        checkpoint_every_ms: 0,
    };
    Settings { options, spec: config.spec, budgets: Budgets::with_decoders(2) }
}

/// Run A shares its directory with the process.
pub(super) fn about(run: RunId) -> About {
    let name = if run == A { "a" } else { "b" };
    About { is_own: run == A, ..About::own(name) }
}
