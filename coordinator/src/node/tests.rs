//! What a node does with inputs, with jobs that are run by hand.

mod chain;
mod forms;
mod traffic;

use std::path::Path;
use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::downlink::FetchPurpose;
use anabranch_common::ids::{AgentId, BranchId, Digest, Incarnation, ModelVersion, RunId};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::spec::{ModelKind, RunSpec};
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage};
use anabranch_common::wire::operator::RunRequest;

use super::checkpoint::Keep;
use super::merge::Merger;
use super::*;
use crate::config::{Config, Retention, TemplateOptions};
use crate::core::content::{Content, Reservation};
use crate::core::event::RequestId;
use crate::store::StorageError;
use crate::store::for_tests::MapStore;

const PEER: PeerId = PeerId(1);
const AGENT: AgentId = AgentId([1; 16]);

/// The configuration that `init` writes.
fn run_spec() -> RunSpec {
    let template = TemplateOptions { name: "test".into(), seed: 1, listen: ([127, 0, 0, 1], 1).into(), names: vec![] };
    Config::parse(Path::new("run.toml"), &Config::template(&template)).expect("what `init` writes").spec
}

/// A node with one agent, and workers that do what they are told to.
struct World {
    node: Node,
    store: MapStore,
    merger: Merger,
    /// What is out.
    jobs: Vec<Job>,
    /// What came out beside jobs.
    outputs: Vec<Output>,
}

impl World {
    fn new() -> Self {
        Self::configured(|_| {})
    }

    /// The same with another configuration than what `init` writes.
    fn configured(configure: impl FnOnce(&mut RunSpec)) -> Self {
        let options = Options {
            run: RunId([1; 16]),
            first_branch: BranchId([2; 16]),
            starts: 0,
            lease_ttl_ms: 60_000,
            checkpoint_every_versions: 0,
            checkpoint_every_ms: 0,
        };
        let mut spec = run_spec();
        configure(&mut spec);
        let settings = Settings { options, spec, budgets: Budgets::with_decoders(2) };
        let (node, first) = Node::start(settings, None, &[], Now::default()).expect("no run to differ from");
        assert!(first.is_empty());
        Self { node, store: MapStore::new(), merger: Merger::default(), jobs: vec![], outputs: vec![] }
    }

    /// The same with a model that is published.
    fn started() -> Self {
        let mut world = Self::new();
        world.connect(PEER, AGENT);
        world.begin(vec![0.5; 4]);
        world
    }

    fn connect(&mut self, peer: PeerId, agent: AgentId) {
        let hello = AgentHello {
            run: RunId([1; 16]),
            branch: None,
            incarnation: Incarnation(agent.0),
            software: "test".into(),
            train_examples: 100,
            eval_examples: 0,
            device: "cpu".into(),
            pod: None,
        };
        self.handle(Input::Event(Event::Connected { peer, agent, name: "agent".into(), hello }));
    }

    /// The run begins at a model.
    fn begin(&mut self, values: Vec<f32>) {
        let shape = vec![values.len() as u64];
        let manifest = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape }]).expect("valid");
        let model = Arc::new(Content::measure(Delta::Dense(values), Reservation::default()));
        let digest = Digest::of_f32(model.delta().values());
        self.handle(Input::Event(Event::ModelReceived { peer: PEER, manifest, digest, model }));
        self.work();
    }

    fn handle(&mut self, input: Input) {
        for output in self.node.handle(Now { unix_ms: 1_000_000, mono_ms: 10 }, input) {
            match output {
                Output::Run(job) => self.jobs.push(job),
                other => self.outputs.push(other),
            }
        }
    }

    fn say(&mut self, message: AgentMessage) {
        self.handle(Input::Event(Event::Message { peer: PEER, message }));
    }

    /// Does a job that is out, and what follows from it not yet.
    fn run(&mut self, job: Job) {
        let done = match job {
            Job::Write(group) => Done::Write(write::write(&self.store, group)),
            Job::Merge(batch) => Done::Merge(self.merger.run(batch)),
            Job::Checkpoint(job) => {
                let keep = Keep { checkpoints: 1, retention: Retention::SinceSnapshot };
                Done::Checkpoint(job.run(&self.store, keep))
            }
            Job::Decode(job) => job.run(),
            Job::Pack(job) => job.run(),
            Job::Spool(_) => return,
        };
        self.handle(Input::Done(done));
    }

    /// Does everything that is out, until nothing is.
    fn work(&mut self) {
        while let Some(job) = self.jobs.pop() {
            self.run(job);
        }
    }

    fn kinds(&self) -> Vec<&'static str> {
        let kind = |job: &Job| match job {
            Job::Write(_) => "write",
            Job::Merge(_) => "merge",
            Job::Checkpoint(_) => "checkpoint",
            Job::Decode(_) => "decode",
            Job::Spool(_) => "spool",
            Job::Pack(_) => "pack",
        };
        self.jobs.iter().map(kind).collect()
    }

    fn operate(&mut self, operation: RunRequest) {
        self.handle(Input::Event(Event::Operator { request: RequestId(9), operation }));
    }
}

#[test]
fn while_a_group_is_written_records_wait_and_become_the_next_group() {
    let mut world = World::started();
    world.operate(RunRequest::Pause);
    assert_eq!(world.kinds(), ["write"]);
    (0..3).for_each(|_| {
        world.operate(RunRequest::Resume);
        world.operate(RunRequest::Pause);
    });
    assert_eq!((world.kinds(), world.node.unwritten().count()), (vec!["write"], 6), "one group is out");
    assert!(world.outputs.iter().all(|output| !matches!(output, Output::Reply { .. })), "nobody is answered");
    let first = world.jobs.remove(0);
    world.run(first);
    let [Job::Write(group)] = &world.jobs[..] else { panic!("expected a group, got {:?}", world.jobs) };
    assert_eq!((group.len(), world.node.unwritten().count()), (6, 0));
    let replies = world.outputs.iter().filter(|output| matches!(output, Output::Reply { .. })).count();
    assert_eq!(replies, 1, "the first one is durable");
}

#[test]
fn an_impatient_agent_gets_nothing_twice_and_everything_again_once_it_was_sent() {
    let mut world = World::started();
    let digest = Digest::of_f32(&[0.5; 4]);
    let fetch = |version| AgentMessage::FetchModel {
        version: ModelVersion(version),
        digest,
        purpose: FetchPurpose::Train,
        held: None,
        missing: None,
    };
    let chunks = |world: &World| {
        let downloads = world.outputs.iter().filter_map(|output| match output {
            Output::ToPeer(ToPeer::SendChunks { download, .. }) => Some(*download),
            _ => None,
        });
        downloads.collect::<Vec<_>>()
    };
    world.say(AgentMessage::RequestLease);
    world.work();
    (0..3).for_each(|_| world.say(fetch(0)));
    assert_eq!((world.kinds(), chunks(&world).len()), (vec!["pack"], 0), "it is made once");
    world.work();
    (0..3).for_each(|_| world.say(fetch(0)));
    let [download] = chunks(&world)[..] else { panic!("expected one sending, got {:?}", world.outputs) };
    world.handle(Input::Sent { peer: PEER, download, bytes: None });
    world.say(fetch(0));
    assert_eq!(chunks(&world).len(), 2, "the first one did not get through");
    world.say(fetch(7));
    let Some(Output::ToPeer(ToPeer::Send { message, .. })) = world.outputs.last() else { panic!("expected an answer") };
    assert!(matches!(**message, CoordinatorMessage::ModelGone { .. }), "{message:?}");
}

/// P7: a storage error ends the process, and nobody is told anything more.
#[test]
fn a_job_that_fails_ends_everything() {
    let mut world = World::started();
    world.say(AgentMessage::RequestLease);
    world.jobs.clear();
    world.outputs.clear();
    let error = StorageError::NoSpace { path: "somewhere".into() };
    world.handle(Input::Done(Done::Write(Err(JobError::Storage(error)))));
    assert!(matches!(world.outputs[..], [Output::Exit(Err(JobError::Storage(_)))]), "{:?}", world.outputs);
    world.outputs.clear();
    world.say(AgentMessage::RequestLease);
    world.operate(RunRequest::Pause);
    world.handle(Input::Done(Done::Merge(Ok(Vec::new()))));
    assert!(world.outputs.is_empty() && world.jobs.is_empty());
}

#[test]
fn a_node_that_leaves_closes_its_connections_and_finishes_what_it_has() {
    let mut world = World::started();
    world.handle(Input::Event(Event::Park));
    // The checkpoint that parking waits for.
    while world.kinds() != ["checkpoint"] {
        let job = world.jobs.remove(0);
        world.run(job);
    }
    world.say(AgentMessage::RequestLease);
    assert_eq!(world.kinds(), ["checkpoint", "merge"], "a version is to be published");
    world.outputs.clear();
    let checkpoint = world.jobs.remove(0);
    world.run(checkpoint);
    assert!(
        matches!(world.outputs[..], [Output::ToPeer(ToPeer::Close { peer: PEER })]),
        "the merger is at work: {:?}",
        world.outputs
    );
    world.outputs.clear();
    world.operate(RunRequest::Resume);
    world.work();
    assert!(matches!(world.outputs[..], [Output::Exit(Ok(ExitReason::Parked))]), "{:?}", world.outputs);
}

#[test]
fn what_is_the_registrys_is_passed_on() {
    let mut world = World::started();
    world.outputs.clear();
    world.say(AgentMessage::Renew { csr_der: vec![1] });
    assert!(matches!(world.outputs[..], [Output::Renew { peer: PEER, agent: AGENT, .. }]), "{:?}", world.outputs);
    world.outputs.clear();
    world.handle(Input::Event(Event::AgentRevoked { agent: AGENT, request: Some(RequestId(3)) }));
    assert!(world.outputs.is_empty(), "its record is not durable");
    world.work();
    let revoked = |output: &Output| matches!(output, Output::Revoked { request: RequestId(3) });
    assert!(world.outputs.iter().any(revoked), "{:?}", world.outputs);
}
