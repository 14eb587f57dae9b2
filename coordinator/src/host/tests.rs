//! What a process with two runs does.

mod certificates;
mod runs;
mod searches;
mod view;
mod world;

use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::RecordBody;
use anabranch_common::limits;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage, Rejection, RunPhase};
use anabranch_common::wire::operator::RunRequest;
use anabranch_common::wire::probe::Facts;
use anabranch_common::wire::runs::RunInfo;

use super::*;
use crate::node::merge::Merged;
use crate::node::{Done, Job};
use crate::recovery;
use crate::store::{StorageError, Store as _};
use world::{A, AGENT, B, OTHER, REQUEST, SECRET, World};

impl Host {
    /// The runs that agents can take part in, by id.
    fn listed(&self) -> Vec<RunInfo> {
        let info = |run: RunId| {
            let About { name, weight, .. } = self.about.get(&run)?.clone();
            Some(RunInfo { run, name, weight })
        };
        self.serving().filter_map(info).collect()
    }
}

#[test]
fn an_agent_is_of_the_run_that_its_hello_names() {
    let mut world = World::new();
    world.hello(1, AGENT, A);
    world.hello(2, OTHER, B);
    let runs: Vec<RunId> = world.outputs.iter().filter_map(welcomed).collect();
    assert_eq!(runs, [A, B]);
    world.offer_model(2);
    world.work();
    assert_eq!((world.phase(A), world.phase(B)), (RunPhase::Pending, RunPhase::Running));
    let known = |world: &World, run| {
        let state = world.host.node(run).and_then(|node| node.core().state());
        state.map(|state| state.agents.keys().copied().collect::<Vec<_>>())
    };
    assert_eq!((known(&world, A), known(&world, B)), (None, Some(vec![OTHER])));
    // One agent may take part in both.
    world.hello(3, AGENT, B);
    world.work();
    assert_eq!(known(&world, B), Some(vec![AGENT, OTHER]));
    assert!(!world.is_closed(1), "its connection to the other run stays");
}

fn welcomed(output: &Output) -> Option<RunId> {
    match output {
        Output::ToPeer(ToPeer::Send { message, .. }) => match &**message {
            CoordinatorMessage::Welcome(welcome) => Some(welcome.run),
            _ => None,
        },
        _ => None,
    }
}

#[test]
fn strangers_and_agents_of_other_runs_are_turned_away_with_the_reason() {
    let mut world = World::new();
    world.hello(1, AgentId([77; 16]), A);
    world.hello(2, AGENT, RunId([9; 16]));
    assert_eq!(world.rejection(1), Some(&Rejection::Unknown));
    assert_eq!(world.rejection(2), Some(&Rejection::WrongRun { run: A }));
    assert!(world.is_closed(1) && world.is_closed(2));
    world.outputs.clear();
    world.handle(Input::Message { peer: PeerId(1), message: AgentMessage::RequestLease });
    world.handle(Input::Disconnected { peer: PeerId(1) });
    assert!(world.outputs.is_empty() && world.jobs.is_empty(), "no run hears of it");
}

/// `doctor` hears what a hello would, and no run hears of it.
#[test]
fn an_agent_is_told_of_a_run_without_taking_part() {
    let mut world = World::started();
    world.outputs.clear();
    world.jobs.clear();
    let mut ask = |agent, run| {
        world.handle(Input::Facts { request: REQUEST, agent, certificate: None, run });
        match &world.outputs[..] {
            [Output::Facts { request: REQUEST, facts }] if world.jobs.is_empty() => {
                let facts = facts.clone();
                world.outputs.clear();
                facts
            }
            other => panic!("{other:?}"),
        }
    };
    let Facts::Run(facts) = ask(AGENT, A) else { panic!("a member may ask") };
    assert_eq!((facts.spec.name.as_str(), facts.state, facts.params.is_some()), ("test", RunPhase::Running, true));
    assert_eq!(ask(AgentId([77; 16]), A), Facts::Rejected(Rejection::Unknown));
    assert_eq!(ask(AGENT, RunId([9; 16])), Facts::Rejected(Rejection::WrongRun { run: A }));
}

#[test]
fn an_operators_request_is_for_the_run_that_it_names() {
    let mut world = World::started();
    world.ask(Some("b"), RunRequest::Pause);
    world.work();
    assert!(matches!(world.reply(), OperatorResponse::Done(_)));
    assert_eq!((world.phase(A), world.phase(B)), (RunPhase::Running, RunPhase::Paused));
    let unknown = RunId([9; 16]).to_string();
    for (run, what) in
        [(None, "there are 2 runs"), (Some("c"), "there is no run c"), (Some(&*unknown), "there is no run 0909")]
    {
        world.ask(run, RunRequest::Pause);
        let OperatorResponse::NotFound(why) = world.reply() else { panic!("which run is it for?") };
        assert!(why.starts_with(what) && why.ends_with(&format!("a ({A}), b ({B})")), "{why}");
    }
    assert_eq!(world.phase(A), RunPhase::Running);
    world.ask(Some(&A.to_string()), RunRequest::Pause);
    world.work();
    assert_eq!(
        (matches!(world.reply(), OperatorResponse::Done(_)), world.phase(A)),
        (true, RunPhase::Paused),
        "by its id"
    );
}

#[test]
fn every_run_shows_every_member() {
    let mut world = World::started();
    for (run, connected) in [(A, AGENT), (B, OTHER)] {
        world.ask(Some(&run.to_string()), RunRequest::Status);
        let OperatorResponse::Json(text) = world.reply() else { panic!("a report") };
        let report: StatusReport = serde_json::from_str(&text).expect("a report");
        let agents: Vec<_> = report.agents.iter().map(|agent| (&*agent.name, agent.connected)).collect();
        assert_eq!(agents, [("agent-1", connected == AGENT), ("agent-2", connected == OTHER)]);
        assert!(report.run == run && report.uploads.is_some());
    }
}

#[test]
fn a_revocation_reaches_every_run_before_the_operator_hears_that_it_is_done() {
    let mut world = World::started();
    world.hello(3, AGENT, B);
    world.work();
    world.outputs.clear();
    world.revoke(AGENT);
    let [Output::Save(_)] = &world.jobs[..] else { panic!("expected the member's item, got {:?}", world.jobs) };
    let save = world.jobs.remove(0);
    assert!(world.outputs.is_empty(), "no run is told before the member's item is durable");
    world.run(save);
    assert_eq!(world.jobs.len(), 2, "a record of each run: {:?}", world.jobs);
    let record = world.jobs.remove(0);
    world.run(record);
    assert!(world.is_closed(1) && !world.is_closed(3) && !world.is_answered(), "{:?}", world.outputs);
    world.work();
    assert!(world.is_closed(3) && matches!(world.reply(), OperatorResponse::Done(_)));
    assert_eq!((world.knows_as_revoked(A, AGENT), world.knows_as_revoked(B, AGENT)), (Some(true), Some(true)));
    assert_eq!(world.knows_as_revoked(A, OTHER), None, "it never came");
    world.hello(4, AGENT, B);
    assert_eq!(world.rejection(4), Some(&Rejection::Revoked));
}

/// The member's item is durable, and a crash has taken the record: the run hears of it when it starts again.
#[test]
fn a_run_hears_at_its_start_of_members_that_were_revoked_without_its_record() {
    let mut world = World::started();
    world.revoke(AGENT);
    let save = world.jobs.remove(0);
    world.run(save);
    world.jobs.clear();
    assert_eq!(world.knows_as_revoked(A, AGENT), Some(false), "its record is lost");
    let roster = world.host.registry().roster().clone();
    world.host = Host::new(Registry::new(roster));
    [A, B].iter().for_each(|run| world.start(*run, "").expect("the same model"));
    world.work();
    assert_eq!((world.knows_as_revoked(A, AGENT), world.knows_as_revoked(B, AGENT)), (Some(true), None));
    let bodies = recovery::recover(&world.stores[&A]).expect("as written").position;
    world.host = Host::new(Registry::new(world.host.registry().roster().clone()));
    world.start(A, "").expect("the same model");
    world.work();
    assert_eq!(recovery::recover(&world.stores[&A]).expect("as written").position, bodies, "it is told once");
}

#[test]
fn a_run_that_ends_or_fails_leaves_the_other_alone() {
    let mut world = World::started();
    world.revoke(OTHER);
    let save = world.jobs.remove(0);
    world.run(save);
    let error = StorageError::NoSpace { path: "somewhere".into() };
    world.jobs.retain(|job| !matches!(job, Output::Run { run: B, .. }));
    world.handle(Input::Done { run: B, done: Done::Write(Err(JobError::Storage(error))) });
    let failed = |output: &Output| matches!(output, Output::Ended { run: B, ended: Err(JobError::Storage(_)) });
    assert!(world.outputs.iter().any(failed) && world.is_closed(2) && !world.is_closed(1), "{:?}", world.outputs);
    assert!(world.is_answered(), "the run that has failed hears of it when it starts again");
    assert!(!world.outputs.iter().any(|output| matches!(output, Output::Exit(_))));
    world.outputs.clear();
    world.hello(5, AGENT, B);
    assert_eq!(world.rejection(5), Some(&Rejection::Busy), "as if no process answered");
    world.outputs.clear();
    world.ask(None, RunRequest::Stop);
    assert!(matches!(world.reply(), OperatorResponse::NotFound(_)), "which one is meant does not depend on the time");
    world.ask(Some("a"), RunRequest::Stop);
    world.work();
    assert!(matches!(world.reply(), OperatorResponse::Done(_)));
    world.handle(Input::Message { peer: PeerId(1), message: AgentMessage::Goodbye { reason: "test".into() } });
    world.work();
    let ended = [
        |output: &Output| matches!(output, Output::Ended { run: A, ended: Ok(ExitReason::Finished { .. }) }),
        |output: &Output| matches!(output, Output::Exit(Ok(()))),
    ];
    assert!(ended.iter().all(|is| world.outputs.iter().any(is)), "{:?}", world.outputs);
}

/// A run that is about to end takes nothing up, so that everybody is sent elsewhere or told to try again.
#[test]
fn nobody_waits_for_the_answer_of_a_run_that_ends() {
    let mut world = World::started();
    // It waits for its record, which is not written.
    world.ask(Some("a"), RunRequest::Pause);
    assert!(!world.is_answered() && world.jobs.len() == 1, "{:?}", world.jobs);
    world.jobs.clear();
    let error = StorageError::NoSpace { path: "somewhere".into() };
    world.handle(Input::Done { run: A, done: Done::Write(Err(JobError::Storage(error))) });
    let OperatorResponse::Failed(why) = world.reply() else { panic!("it was not done") };
    assert!(why.starts_with(&format!("run {A} has ended")), "{why}");

    let mut world = World::started();
    // A overflows while its last checkpoint is being written: it is about to end, once the checkpointer is idle.
    world.park(A);
    let order = world.jobs.pop().expect("the order of the checkpoint");
    world.run(order);
    world.handle(Input::Done { run: A, done: Done::Merge(Ok(vec![Merged::NonFinite(ModelVersion(1))])) });
    let record = world.jobs.pop().expect("the record of the end");
    world.run(record);
    world.park(A);
    assert!(matches!(world.jobs[..], [Output::Run { run: A, job: Job::Checkpoint(_) }]), "{:?}", world.jobs);
    assert!(world.host.node(A).is_some_and(Node::is_leaving) && !world.host.is_leaving(), "{:?}", world.outputs);
    world.outputs.clear();
    world.hello(4, AGENT, A);
    assert_eq!(world.rejection(4), Some(&Rejection::Busy));
    world.hello(5, AGENT, RunId([9; 16]));
    assert_eq!(world.rejection(5), Some(&Rejection::WrongRun { run: B }));
    world.ask(Some("a"), RunRequest::Status);
    let look = |output: &Output| matches!(output, Output::Look { request: REQUEST, run: A, what: RunRequest::Status });
    assert!(world.outputs.iter().any(look), "its store tells: {:?}", world.outputs);
    world.ask(Some("a"), RunRequest::Pause);
    assert!(matches!(world.reply(), OperatorResponse::Conflict(_)));
    world.ask(Some("b"), RunRequest::Status);
    assert!(matches!(world.reply(), OperatorResponse::Json(_)));
    let csr_der = vec![1];
    world.handle(Input::Join { request: REQUEST, secret: SECRET, agent: AgentId([3; 16]), csr_der });
    while let Some(job) = world.jobs.pop() {
        if let Output::Sign(jobs) = &job {
            assert!(jobs.iter().all(|job| job.joins(B)), "{jobs:?}");
        }
        world.run(job);
    }
}

#[test]
fn a_run_that_does_not_start_leaves_the_other_alone() {
    let mut world = World::started();
    world.handle(Input::Park);
    world.work();
    let roster = world.host.registry().roster().clone();
    world.host = Host::new(Registry::new(roster));
    world.start(A, "").expect("the same model");
    assert!(world.start(B, "another seed").is_err());
    world.outputs.clear();
    world.hello(1, AGENT, A);
    world.hello(2, OTHER, B);
    world.work();
    assert_eq!(world.outputs.iter().filter_map(welcomed).collect::<Vec<_>>(), [A]);
    assert_eq!(world.rejection(2), Some(&Rejection::WrongRun { run: A }));
}

/// Members are shared: without them no run can go on.
#[test]
fn a_registry_that_cannot_save_ends_the_process() {
    let mut world = World::started();
    world.revoke(OTHER);
    world.jobs.clear();
    let error = StorageError::NoSpace { path: "somewhere".into() };
    world.handle(Input::Registry(registry::Done::Saved(Err(error))));
    assert!(matches!(world.outputs[..], [Output::Exit(Err(JobError::Storage(_)))]), "{:?}", world.outputs);
    world.outputs.clear();
    world.ask(Some("a"), RunRequest::Pause);
    assert!(world.outputs.is_empty() && world.jobs.is_empty());
}

/// Guards the lanes: after a job that no worker took, nothing of its kind would ever be done.
#[test]
fn a_job_that_was_not_taken_ends_its_run_and_the_last_run_or_the_registry_the_process() {
    let mut world = World::started();
    let ended = |world: &World| world.outputs.iter().any(|output| matches!(output, Output::Exit(_)));
    let lost = |output: &Output| matches!(output, Output::Ended { ended: Err(JobError::NotTaken("writer")), .. });
    for run in [A, B] {
        assert!(!ended(&world), "a run is left");
        world.handle(Input::Done { run, done: Done::NotTaken("writer") });
    }
    assert!(world.outputs.iter().filter(|output| lost(output)).count() == 2 && ended(&world), "{:?}", world.outputs);

    let mut world = World::started();
    world.handle(Input::Registry(registry::Done::NotTaken("saver")));
    assert!(matches!(world.outputs[..], [Output::Exit(Err(JobError::NotTaken("saver")))]), "{:?}", world.outputs);
}

#[test]
fn certificates_are_signed_beside_the_loop() {
    let mut world = World::new();
    let join = |secret| Input::Join { request: REQUEST, secret, agent: AgentId([9; 16]), csr_der: vec![1] };
    world.handle(join([0; 32]));
    assert!(matches!(world.outputs[..], [Output::JoinReply { request: REQUEST, .. }]), "{:?}", world.outputs);
    world.outputs.clear();
    world.handle(join(SECRET));
    let [Output::Save(_)] = &world.jobs[..] else { panic!("expected items, got {:?}", world.jobs) };
    let save = world.jobs.remove(0);
    world.run(save);
    let [Output::Sign(jobs)] = &world.jobs[..] else { panic!("expected a signature, got {:?}", world.jobs) };
    assert_eq!(jobs.len(), 1);
    assert!(world.outputs.is_empty(), "not answered yet");
    world.work();
    assert!(matches!(world.outputs[..], [Output::JoinReply { request: REQUEST, .. }]), "{:?}", world.outputs);
}

/// The use of its token is durable: without an answer its operator would see a failure.
#[test]
fn a_join_that_is_being_signed_keeps_the_process_until_it_has_its_answer() {
    let mut world = World::new();
    world.handle(Input::Join { request: REQUEST, secret: SECRET, agent: AgentId([3; 16]), csr_der: vec![1] });
    let save = world.jobs.pop().expect("the use of the token");
    world.run(save);
    world.handle(Input::Park);
    let exits = |world: &World| world.outputs.iter().any(|output| matches!(output, Output::Exit(_)));
    assert!(world.host.is_leaving() && !exits(&world), "{:?}", world.outputs);
    let late = RequestId(REQUEST.0 + 1);
    world.handle(Input::Join { request: late, secret: SECRET, agent: AgentId([4; 16]), csr_der: vec![1] });
    let deferred = |output: &Output| matches!(output, Output::DeferJoin { request } if *request == late);
    assert!(world.outputs.iter().any(deferred), "nobody waits for a process that ends: {:?}", world.outputs);
    world.work();
    let replies = |output: &Output| matches!(output, Output::JoinReply { request: REQUEST, .. });
    let replied = world.outputs.iter().position(replies).expect("an answer to the join");
    let left = world.outputs.iter().position(|output| matches!(output, Output::Exit(_)));
    assert!(left.is_some_and(|left| replied < left), "{:?}", world.outputs);
}

#[test]
fn a_renewal_goes_to_the_connection_that_asked_while_it_lives() {
    let mut world = World::started();
    let renewal = || {
        let renewal = registry::Renewal { peer: PeerId(1), certificate_der: vec![4], ca_ders: vec![] };
        Signed::Renewal { agent: AGENT, until_ms: 9, renewal }
    };
    world.handle(Input::Message { peer: PeerId(1), message: AgentMessage::Renew { csr_der: vec![1] } });
    assert!(matches!(world.jobs[..], [Output::Sign(_)]), "{:?}", world.jobs);
    world.jobs.clear();
    world.handle(Input::Registry(registry::Done::Signed(vec![renewal()])));
    assert!(matches!(world.jobs[..], [Output::Save(_)]), "{:?}", world.jobs);
    world.work();
    let renewed = |output: &Output| {
        matches!(output, Output::ToPeer(ToPeer::Send { peer: PeerId(1), message })
            if matches!(**message, CoordinatorMessage::Renewed { .. }))
    };
    assert!(world.outputs.iter().any(renewed), "{:?}", world.outputs);
    world.outputs.clear();
    world.handle(Input::Disconnected { peer: PeerId(1) });
    world.handle(Input::Registry(registry::Done::Signed(vec![renewal()])));
    assert!(!world.outputs.iter().any(renewed));
}

/// Guards the signer's lane: a signature takes longer than a request for one.
#[test]
fn of_the_renewals_of_one_connection_the_latest_waits() {
    let mut world = World::started();
    let renew = || Input::Message { peer: PeerId(1), message: AgentMessage::Renew { csr_der: vec![1] } };
    let waiting = |world: &mut World| {
        world.jobs.clear();
        world.handle(Input::Registry(registry::Done::Signed(vec![])));
        match &world.jobs[..] {
            [] => 0,
            [Output::Sign(jobs)] => jobs.len(),
            other => panic!("{other:?}"),
        }
    };
    (0..10).for_each(|_| world.handle(renew()));
    assert!(matches!(&world.jobs[..], [Output::Sign(jobs)] if jobs.len() == 1), "{:?}", world.jobs);
    assert_eq!(waiting(&mut world), 1, "nine were asked for meanwhile");
    (0..10).for_each(|_| world.handle(renew()));
    world.handle(Input::Disconnected { peer: PeerId(1) });
    assert_eq!(waiting(&mut world), 0, "nobody would get it");
}

/// Guards the saver's lane: whoever has a token may join again and again while the disk stalls.
#[test]
fn a_join_for_which_there_is_no_room_is_let_go_until_others_are_answered() {
    let mut world = World::new();
    let join = || Input::Join { request: REQUEST, secret: SECRET, agent: AgentId([3; 16]), csr_der: vec![1] };
    (0..limits::JOINS_WAITING).for_each(|_| world.handle(join()));
    assert!(world.outputs.is_empty(), "{:?}", world.outputs);
    world.handle(join());
    assert!(matches!(world.outputs[..], [Output::DeferJoin { request: REQUEST }]), "{:?}", world.outputs);
    world.outputs.clear();
    world.work();
    let answers = world.outputs.iter().filter(|output| matches!(output, Output::JoinReply { .. }));
    assert_eq!(answers.count(), limits::JOINS_WAITING);
    world.outputs.clear();
    world.handle(join());
    assert!(world.outputs.is_empty() && matches!(world.jobs[..], [Output::Save(_)]), "there is room again");
}

#[test]
fn records_name_members_only() {
    let mut world = World::new();
    let newcomer = AgentId([3; 16]);
    world.handle(Input::Join { request: REQUEST, secret: SECRET, agent: newcomer, csr_der: vec![1] });
    let [Output::Save(_)] = &world.jobs[..] else { panic!("expected the member's item, got {:?}", world.jobs) };
    world.hello(1, newcomer, A);
    world.offer_model(1);
    assert_eq!((world.rejection(1), world.jobs.len()), (Some(&Rejection::Busy), 1), "its item is not durable");
    world.work();
    world.hello(2, newcomer, A);
    world.offer_model(2);
    let named = world.jobs.iter().filter_map(|job| match job {
        Output::Run { run: A, job: Job::Write(group) } => Some(group),
        _ => None,
    });
    let bodies: Vec<_> = named.flatten().map(|job| job.record().body.clone()).collect();
    let joined = RecordBody::AgentJoined { agent: newcomer, name: "agent-3".into() };
    assert!(bodies.contains(&joined), "{bodies:?}");
    let saved = world.members.catalogue().get(&format!("member/{newcomer}")).expect("memory");
    assert!(saved.is_some(), "its item is there before");
}
