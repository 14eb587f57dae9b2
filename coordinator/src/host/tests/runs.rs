//! Runs that come and go while the process goes on.

use anabranch_common::ids::BranchId;
use anabranch_common::status::{RunCreated, RunStanding, RunSummary};
use anabranch_common::transfer::Budgets;
use anabranch_common::wire::operator::{RegistryRequest, RunsRequest};
use anabranch_common::wire::runs::RunsWanted;

use super::world::{about, now, settings, signed};
use super::*;
use crate::core::status::Answer;
use crate::runs::Submission;

const C: RunId = RunId([3; 16]);

impl World {
    fn create(&mut self, name: &str, config: &str, submit_token: Option<&str>) {
        let (name, config, submit_token) = (name.into(), config.into(), submit_token.map(String::from));
        self.operate(RunsRequest::Create { name, config, submit_token });
    }

    /// The directory of run C is open.
    fn opened(&mut self, name: &str, submission: Option<Submission>) {
        let about = About { submission, is_own: false, weight: 3, ..About::own(name) };
        let opened = OpenedRun { about, settings: settings(C, ""), recovered: None, halves: vec![] };
        self.handle(Input::Runs(RunsDone::Opened(Box::new(opened))));
    }

    fn ordered(&mut self) -> Vec<RunsJob> {
        let taken = self.outputs.extract_if(.., |output| matches!(output, Output::Runs(_)));
        taken.filter_map(|output| if let Output::Runs(job) = output { Some(job) } else { None }).collect()
    }

    fn json<T: serde::de::DeserializeOwned>(&mut self) -> T {
        let reply = self.reply();
        let OperatorResponse::Json(text) = reply else { panic!("{reply:?}") };
        serde_json::from_str(&text).expect("as sent")
    }

    fn standings(&mut self) -> Vec<(String, RunStanding)> {
        self.operate(RunsRequest::List);
        let runs: Vec<RunSummary> = self.json();
        runs.into_iter().map(|run| (run.name, run.state)).collect()
    }
}

fn standing(name: &str, state: RunStanding) -> (String, RunStanding) {
    (name.into(), state)
}

#[test]
fn a_created_run_is_served_at_once_and_the_same_request_gets_the_same_answer() {
    let mut world = World::started();
    world.create("c", "text", Some("job 7"));
    let submission = Some(Submission::new("job 7", "text"));
    let job = RunsJob::Create { name: "c".into(), config: "text".into(), submission };
    assert_eq!((world.ordered(), world.is_answered()), (vec![job], false));
    assert!(world.standings().contains(&standing("c", RunStanding::Opening)));
    // Its client asks again while it is being made.
    world.create("c", "text", Some("job 7"));
    assert!(world.ordered().is_empty() && !world.is_answered());
    world.opened("c", submission);
    assert_eq!(world.outputs.iter().filter(|output| matches!(output, Output::Reply { .. })).count(), 2);
    assert_eq!(world.json::<RunCreated>(), RunCreated { name: "c".into(), run: C });
    world.create("c", "text", Some("job 7"));
    assert_eq!(world.json::<RunCreated>(), RunCreated { name: "c".into(), run: C });
    for (config, token) in [("text", Some("job 8")), ("other", Some("job 7")), ("text", None)] {
        world.create("c", config, token);
        assert!(matches!(world.reply(), OperatorResponse::Conflict(_)), "{config} {token:?}");
    }
    world.create("../c", "text", None);
    assert!(matches!(world.reply(), OperatorResponse::Failed(why) if why.contains("name of a run")));
    assert!(world.ordered().is_empty());
    let listed: Vec<(String, u32)> = world.host.listed().into_iter().map(|run| (run.name, run.weight)).collect();
    assert_eq!(listed, [("a".into(), 1), ("b".into(), 1), ("c".into(), 3)]);
    world.hello(9, AGENT, C);
    assert_eq!(world.outputs.iter().filter_map(welcomed).collect::<Vec<_>>(), [C]);
}

#[test]
fn a_run_that_cannot_be_opened_is_listed_with_the_reason_and_leaves_the_others_alone() {
    let mut world = World::started();
    let outputs = world.host.open("old".into());
    assert!(matches!(&outputs[..], [Output::Runs(RunsJob::Open { name })] if name == "old"), "{outputs:?}");
    world.hello(3, AGENT, RunId([9; 16]));
    assert_eq!(world.rejection(3), Some(&Rejection::Busy), "it may be the run that is being opened");
    world.outputs.clear();
    let why = "its store is damaged".to_owned();
    world.handle(Input::Runs(RunsDone::NotOpened { name: "old".into(), is_there: true, why }));
    let expected = [
        standing("a", RunStanding::Running),
        standing("b", RunStanding::Running),
        standing("old", RunStanding::Failed),
    ];
    assert_eq!(world.standings(), expected);
    world.ask(Some("old"), RunRequest::Status);
    assert!(matches!(world.reply(), OperatorResponse::Conflict(why) if why.contains("damaged")));
    world.create("old", "text", None);
    assert!(matches!(world.reply(), OperatorResponse::Conflict(_)), "its directory is there");
    // What could not be made is not there.
    world.create("new", "text", None);
    let why = "no space".to_owned();
    world.handle(Input::Runs(RunsDone::NotOpened { name: "new".into(), is_there: false, why }));
    assert!(matches!(world.reply(), OperatorResponse::Failed(why) if why == "no space"));
    assert_eq!(world.standings(), expected);
    world.operate(RunsRequest::Delete { run: "old".into() });
    assert_eq!(world.ordered(), [RunsJob::Delete { name: "old".into(), run: None }]);
    world.handle(Input::Runs(RunsDone::Deleted { name: "old".into(), left: None }));
    assert!(matches!(world.reply(), OperatorResponse::Done(_)));
    assert_eq!(world.standings(), expected[..2]);
}

#[test]
fn a_run_that_has_failed_stays_listed_and_its_store_answers() {
    let mut world = World::started();
    let error = StorageError::NoSpace { path: "somewhere".into() };
    world.handle(Input::Done { run: B, done: Done::Write(Err(JobError::Storage(error))) });
    world.outputs.clear();
    assert_eq!(world.standings(), [standing("a", RunStanding::Running), standing("b", RunStanding::Failed)]);
    assert_eq!(world.host.listed().len(), 1);
    world.ask(Some("b"), RunRequest::AgentsList);
    assert!(matches!(world.outputs[..], [Output::Look { request: REQUEST, run: B, what: RunRequest::AgentsList }]));
    world.outputs.clear();
    world.handle(Input::Looked { request: REQUEST, answer: Answer::Agents(vec![]) });
    let agents: Vec<anabranch_common::status::AgentStatus> = world.json();
    assert_eq!(agents.len(), 2, "the members of the process");
    world.ask(Some("b"), RunRequest::Resume);
    assert!(matches!(world.reply(), OperatorResponse::Conflict(_)));
    world.ask(None, RunRequest::Pause);
    assert!(matches!(world.reply(), OperatorResponse::NotFound(why) if why.contains("--run")), "there are two");
    // Each takes room while a store is read.
    (0..=limits::RUN_LOOKS).for_each(|_| world.ask(Some("b"), RunRequest::Status));
    let looks = world.outputs.iter().filter(|output| matches!(output, Output::Look { .. })).count();
    assert_eq!(looks, limits::RUN_LOOKS);
    assert!(matches!(world.reply(), OperatorResponse::Conflict(_)));
    world.handle(Input::Looked { request: REQUEST, answer: Answer::Agents(vec![]) });
    world.outputs.clear();
    world.ask(Some("b"), RunRequest::Status);
    assert!(matches!(world.outputs[..], [Output::Look { .. }]), "there is room again: {:?}", world.outputs);
}

/// A mistake in `run.toml` must not end the agents of that run for good.
#[test]
fn agents_of_a_run_that_cannot_be_opened_try_again() {
    let mut world = World::started();
    let nowhere = RunId([9; 16]);
    drop(world.host.open("old".into()));
    let why = "line 3 of run.toml".to_owned();
    world.handle(Input::Runs(RunsDone::NotOpened { name: "old".into(), is_there: true, why }));
    world.hello(3, AGENT, nowhere);
    assert_eq!(world.rejection(3), Some(&Rejection::Busy), "it may be that run's");
    world.operate(RunsRequest::Delete { run: "old".into() });
    world.outputs.clear();
    world.hello(4, AGENT, nowhere);
    assert_eq!(world.rejection(4), Some(&Rejection::WrongRun { run: A }));

    let mut world = World::new();
    world.host = Host::new(Registry::new(world.host.registry().roster().clone()));
    world.host.cannot_serve("a", true, "line 3 of run.toml".into());
    world.hello(1, AGENT, A);
    assert_eq!(world.rejection(1), Some(&Rejection::Busy), "the run of the process, too");
    world.host = Host::new(Registry::new(world.host.registry().roster().clone()));
    world.outputs.clear();
    world.hello(1, AGENT, A);
    assert_eq!(world.rejection(1), Some(&Rejection::Unknown), "there is no run that it could be");
}

/// After a restart agents with `--runs all` would give up their rounds in runs that are not open yet.
#[test]
fn no_list_is_sent_while_runs_are_being_opened() {
    let mut world = World::started();
    let listed = |world: &World| {
        let lists = world.outputs.iter().filter_map(|output| match output {
            Output::List { list, .. } => Some(list.runs.iter().map(|info| info.run).collect::<Vec<_>>()),
            _ => None,
        });
        lists.collect::<Vec<_>>()
    };
    drop(world.host.open("c".into()));
    let wanted = RunsWanted::All;
    world.handle(Input::Subscribe { peer: PeerId(7), agent: AGENT, certificate: None, wanted: wanted.clone() });
    assert!(listed(&world).is_empty());
    world.opened("c", None);
    assert_eq!(listed(&world), [[A, B, C]]);
    world.handle(Input::Subscribe { peer: PeerId(8), agent: AGENT, certificate: None, wanted });
    assert!(world.is_closed(7) && !world.is_closed(8), "an agent has one such stream");
}

#[test]
fn a_run_that_was_made_and_not_opened_is_opened_for_the_same_request() {
    let mut world = World::started();
    world.create("c", "text", Some("job 7"));
    let why = "no file can be opened".to_owned();
    world.handle(Input::Runs(RunsDone::NotOpened { name: "c".into(), is_there: true, why }));
    assert!(matches!(world.reply(), OperatorResponse::Failed(_)));
    world.create("c", "text", Some("job 8"));
    assert!(matches!(world.reply(), OperatorResponse::Conflict(_)));
    world.create("c", "text", Some("job 7"));
    assert_eq!((world.ordered(), world.is_answered()), (vec![RunsJob::Open { name: "c".into() }], false));
    world.opened("c", Some(Submission::new("job 7", "text")));
    assert_eq!(world.json::<RunCreated>(), RunCreated { name: "c".into(), run: C });
}

#[test]
fn a_run_that_is_in_use_or_leaves_files_can_be_deleted_again() {
    let mut world = World::started();
    world.ask(Some("b"), RunRequest::Pause);
    world.work();
    world.outputs.clear();
    let again = |run| RunsJob::Delete { name: "b".into(), run };
    let delete = |world: &mut World| {
        world.operate(RunsRequest::Delete { run: "b".into() });
        world.ordered()
    };
    assert_eq!(delete(&mut world), [again(Some(B))]);
    world.handle(Input::Runs(RunsDone::InUse { name: "b".into() }));
    assert!(matches!(world.reply(), OperatorResponse::Conflict(why) if why.contains("in use")));
    assert_eq!(world.standings()[1], standing("b", RunStanding::Failed));
    assert_eq!(delete(&mut world), [again(None)]);
    let left = Some("it is full of files".to_owned());
    world.handle(Input::Runs(RunsDone::Deleted { name: "b".into(), left }));
    assert!(matches!(world.reply(), OperatorResponse::Failed(why) if why.contains("repeat `runs delete b`")));
    assert_eq!(world.standings(), [standing("a", RunStanding::Running)]);
    assert_eq!(delete(&mut world), [again(None)]);
    world.handle(Input::Runs(RunsDone::Deleted { name: "b".into(), left: None }));
    assert!(matches!(world.reply(), OperatorResponse::Done(_)));
    assert!(delete(&mut world).is_empty());
    assert!(matches!(world.reply(), OperatorResponse::NotFound(_)));
}

#[test]
fn a_process_that_is_parked_waits_for_runs_that_are_made_and_not_for_those_that_are_opened() {
    let exits = |world: &World| world.outputs.iter().any(|output| matches!(output, Output::Exit(_)));
    let mut world = World::started();
    world.handle(Input::Subscribe { peer: PeerId(7), agent: AGENT, certificate: None, wanted: RunsWanted::All });
    world.outputs.clear();
    drop(world.host.open("old".into()));
    world.create("c", "text", None);
    world.handle(Input::Park);
    world.work();
    assert!(!exits(&world), "its operator waits");
    world.opened("c", None);
    assert!(exits(&world) && world.is_answered(), "{:?}", world.outputs);
    let told = world.outputs.iter().any(|output| matches!(output, Output::List { .. }));
    assert!(!told, "agents keep their rounds for the next start");
}

/// Which run is meant does not depend on which of them is open.
#[test]
fn a_run_has_to_be_named_where_there_are_several_however_far_they_are() {
    let mut world = World::new();
    world.host = Host::new(Registry::new(world.host.registry().roster().clone()));
    world.start(A, "").expect("nothing to differ from");
    world.ask(None, RunRequest::Status);
    assert!(matches!(world.reply(), OperatorResponse::Json(_)), "the only one");
    drop(world.host.open("old".into()));
    world.ask(None, RunRequest::Status);
    assert!(matches!(world.reply(), OperatorResponse::NotFound(why) if why.contains("old")));
    // Another one of the same name does not hide it.
    drop(world.host.open("a".into()));
    world.ask(Some("a"), RunRequest::Status);
    assert!(matches!(world.reply(), OperatorResponse::Json(_)));

    world.host = Host::new(Registry::new(world.host.registry().roster().clone()));
    world.host.stay();
    world.host.cannot_serve("a", true, "line 3 of run.toml".into());
    world.ask(None, RunRequest::Status);
    assert!(matches!(world.reply(), OperatorResponse::Conflict(why) if why.contains("line 3")));
}

#[test]
fn only_a_run_that_gives_no_leases_and_has_a_directory_of_its_own_is_deleted() {
    let mut world = World::started();
    for (run, what) in [("a", "shares its directory"), ("b", "is running"), ("c", "no run c")] {
        world.operate(RunsRequest::Delete { run: run.into() });
        let reply = world.reply();
        let (OperatorResponse::Conflict(why) | OperatorResponse::NotFound(why)) = reply else { panic!("{reply:?}") };
        assert!(why.contains(what), "{why}");
    }
    world.ask(Some("b"), RunRequest::Pause);
    world.work();
    world.outputs.clear();
    // An operator's request whose record is not durable yet.
    world.ask(Some("b"), RunRequest::Resume);
    let other = RequestId(REQUEST.0 + 1);
    world.handle(Input::Operator { request: other, operation: RunsRequest::Delete { run: "b".into() }.into() });
    assert!(world.ordered().is_empty(), "it runs again, as far as its core knows");
    world.work();
    world.ask(Some("b"), RunRequest::Pause);
    world.work();
    world.outputs.clear();
    world.operate(RunsRequest::Delete { run: B.to_string() });
    assert_eq!(world.ordered(), [RunsJob::Delete { name: "b".into(), run: Some(B) }]);
    assert!(world.is_closed(2) && !world.is_closed(1) && !world.is_answered(), "{:?}", world.outputs);
    assert_eq!(world.standings(), [standing("a", RunStanding::Running)]);
    world.create("b", "text", None);
    assert!(matches!(world.reply(), OperatorResponse::Conflict(_)), "its directory is still there");
    world.handle(Input::Done { run: B, done: Done::Checkpoint(Err(JobError::NotTaken("late"))) });
    world.handle(Input::Message { peer: PeerId(2), message: AgentMessage::RequestLease });
    assert!(world.outputs.is_empty(), "nobody hears of a run that is gone: {:?}", world.outputs);
    world.handle(Input::Runs(RunsDone::Deleted { name: "b".into(), left: None }));
    assert!(matches!(world.reply(), OperatorResponse::Done(_)));
    world.create("b", "text", None);
    assert_eq!(world.ordered().len(), 1, "the name is free");
}

#[test]
fn a_process_that_stays_ends_when_it_is_parked() {
    let mut world = World::started();
    world.host.stay();
    for (run, peer) in [("a", 1), ("b", 2)] {
        world.ask(Some(run), RunRequest::Stop);
        world.work();
        world.handle(Input::Message { peer: PeerId(peer), message: AgentMessage::Goodbye { reason: "test".into() } });
        world.work();
    }
    let exits = |world: &World| world.outputs.iter().any(|output| matches!(output, Output::Exit(_)));
    assert!(!exits(&world) && !world.host.is_leaving(), "{:?}", world.outputs);
    world.outputs.clear();
    assert_eq!(world.standings(), [standing("a", RunStanding::Finished), standing("b", RunStanding::Finished)]);
    world.create("c", "text", None);
    world.outputs.clear();
    world.handle(Input::Park);
    assert!(!exits(&world), "a run is being made");
    world.opened("c", None);
    assert!(exits(&world), "{:?}", world.outputs);
    assert!(world.outputs.iter().any(|output| matches!(output, Output::Close { run: C })), "the next start serves it");
}

#[test]
fn a_copy_of_a_run_is_not_served() {
    let mut world = World::started();
    let about = About { is_own: false, ..About::own("copy") };
    let settings = Settings { budgets: Budgets::with_decoders(1), ..settings(A, "") };
    let opened = OpenedRun { about, settings, recovered: None, halves: vec![] };
    drop(world.host.open("copy".into()));
    world.handle(Input::Runs(RunsDone::Opened(Box::new(opened))));
    assert!(world.outputs.is_empty(), "the run that it is a copy of goes on: {:?}", world.outputs);
    assert!(world.standings().contains(&standing("copy", RunStanding::Failed)));
    assert_eq!(world.phase(A), RunPhase::Running);
}

#[test]
fn an_agent_takes_part_in_the_runs_of_its_token() {
    let mut world = World::started();
    let secret = [8; 32];
    let secret_digest = anabranch_common::ids::Digest::of(&secret).0;
    let token = |runs: &[&str]| RegistryRequest::TokenCreate {
        name: Some("ward".into()),
        ttl_ms: 10_000,
        uses: 1,
        secret_digest,
        runs: runs.iter().map(|run| (*run).to_owned()).collect(),
    };
    world.operate(token(&["c"]));
    assert!(matches!(world.reply(), OperatorResponse::NotFound(_)));
    world.operate(token(&["b"]));
    world.work();
    assert!(matches!(world.reply(), OperatorResponse::Done(_)));
    let newcomer = AgentId([3; 16]);
    world.handle(Input::Join { request: REQUEST, secret, agent: newcomer, csr_der: vec![1] });
    while let Some(job) = world.jobs.pop() {
        if let Output::Sign(jobs) = &job {
            assert!(jobs.iter().all(|job| job.joins(B)), "the answer names the run of the token: {jobs:?}");
        }
        world.run(job);
    }
    world.hello(7, newcomer, A);
    assert_eq!(world.rejection(7), Some(&Rejection::WrongRun { run: B }));
    world.outputs.clear();
    world.hello(8, newcomer, B);
    world.work();
    assert_eq!(world.outputs.iter().filter_map(welcomed).collect::<Vec<_>>(), [B]);
}

#[test]
fn a_run_that_takes_more_of_the_disk_than_its_quota_is_paused_until_it_is_resumed() {
    let mut world = World::started();
    let mut opened = OpenedRun { about: About::own("c"), settings: settings(C, ""), recovered: None, halves: vec![] };
    opened.about.disk_quota_bytes = Some(1_000);
    world.stores.insert(C, crate::store::for_tests::MapStore::new());
    world.mergers.insert(C, node::merge::Merger::default());
    world.handle(Input::Runs(RunsDone::Opened(Box::new(opened))));
    world.hello(3, AGENT, C);
    world.offer_model(3);
    world.work();
    world.outputs.clear();
    world.handle(Input::Tick);
    assert!(matches!(world.outputs[..], [Output::Measure { run: C }]), "only that one: {:?}", world.outputs);
    world.outputs.clear();
    world.handle(Input::Tick);
    assert!(world.outputs.is_empty(), "not so soon again");
    let later = Now { mono_ms: now().mono_ms + limits::QUOTA_LOOK_MS, ..now() };
    assert!(world.host.handle(later, Input::Tick).is_empty(), "the disk has not answered yet");
    world.handle(Input::Measured { run: C, disk_bytes: None });
    let latest = Now { mono_ms: later.mono_ms + limits::QUOTA_LOOK_MS, ..later };
    let outputs = world.host.handle(latest, Input::Tick);
    assert!(matches!(outputs[..], [Output::Measure { run: C }]), "{outputs:?}");
    let measure = |world: &mut World, disk_bytes| {
        world.handle(Input::Measured { run: C, disk_bytes });
        world.work();
        world.outputs.clear();
    };
    let problem = |world: &mut World| {
        world.operate(RunsRequest::List);
        let runs: Vec<RunSummary> = world.json();
        runs.into_iter().find(|run| run.name == "c").and_then(|run| run.problem)
    };
    for disk_bytes in [None, Some(1_000)] {
        measure(&mut world, disk_bytes);
        assert_eq!((world.phase(C), problem(&mut world)), (RunPhase::Running, None));
    }
    measure(&mut world, Some(1_001));
    assert_eq!(world.phase(C), RunPhase::Paused);
    assert!(problem(&mut world).is_some_and(|problem| problem.contains("quota.disk_bytes = 1000")));
    assert_eq!(world.phase(A), RunPhase::Running);
    measure(&mut world, Some(500));
    assert_eq!((world.phase(C), problem(&mut world)), (RunPhase::Paused, None), "an operator resumes it");
    world.ask(Some("c"), RunRequest::Resume);
    world.work();
    assert_eq!(world.phase(C), RunPhase::Running);
}

#[test]
fn a_mismatch_of_one_run_is_listed() {
    let mut world = World::started();
    world.handle(Input::Park);
    world.work();
    let roster = world.host.registry().roster().clone();
    world.host = Host::new(Registry::new(roster));
    world.start(A, "").expect("the same model");
    let recovered = Some(recovery::recover(&world.stores[&B]).expect("as written"));
    let mut settings = settings(B, "another seed");
    settings.options.first_branch = BranchId([9; 16]);
    drop(world.host.open("b".into()));
    let opened = OpenedRun { about: about(B), settings, recovered, halves: vec![] };
    let outputs = world.host.handle(now(), Input::Runs(RunsDone::Opened(Box::new(opened))));
    assert!(matches!(outputs[..], [Output::Close { run: B }]), "{outputs:?}");
    assert_eq!(world.standings()[1], standing("b", RunStanding::Failed));
}

/// Which run an agent gets is nobody's choice but the operator's.
#[test]
fn a_token_for_all_runs_joins_the_run_of_the_process_or_the_only_one() {
    let mut world = World::started();
    let join = |world: &mut World| {
        world.jobs.clear();
        world.outputs.clear();
        let (secret, agent) = (SECRET, AgentId([3; 16]));
        world.handle(Input::Join { request: REQUEST, secret, agent, csr_der: vec![1] });
        while let Some(job) = world.jobs.pop() {
            if let Output::Sign(jobs) = &job {
                let named = [A, B, C].into_iter().find(|run| jobs.iter().all(|job| job.joins(*run)));
                world.handle(Input::Registry(registry::Done::Signed(vec![signed()])));
                return named;
            }
            world.run(job);
        }
        None
    };
    world.create("c", "text", None);
    world.opened("c", None);
    assert_eq!(join(&mut world), Some(A));
    let failed = |run| Input::Done { run, done: Done::NotTaken("writer") };
    world.handle(failed(A));
    assert_eq!(join(&mut world), None);
    let refused = |output: &Output| {
        let Output::JoinReply { response: JoinResponse::Refused(refusal), .. } = output else { return false };
        *refusal == JoinRefusal::SeveralRuns
    };
    assert!(world.outputs.iter().any(refused), "{:?}", world.outputs);
    world.handle(failed(C));
    drop(world.host.open("old".into()));
    assert_eq!(join(&mut world), None);
    let deferred = |output: &Output| matches!(output, Output::DeferJoin { .. });
    assert!(world.outputs.iter().any(deferred), "it may be one of several: {:?}", world.outputs);
    world.handle(Input::Runs(RunsDone::NotOpened { name: "old".into(), is_there: true, why: "damaged".into() }));
    assert_eq!(join(&mut world), Some(B));
}
