//! Pods: the rounds of an owner, and what a helper computes for others.

mod ranges;

use anabranch_common::pod::{PodMark, PodOffer, PodPart, PodPeer, PodProblem, PodRound};
use anabranch_common::spec::{AgentSpec, PodSpec, ReplicasSpec};

use super::forms::fetch_model;
use super::*;
use crate::report::{LiveReport, PodReport, Traffic};
use crate::session::Activity;
use crate::session::pods::check;

/// Another agent than [`AGENT`].
pub(super) const OTHER: AgentId = AgentId([9; 16]);

pub(super) fn pod_spec() -> PodSpec {
    toml::from_str("kind = \"stages\"\nstages = 2").expect("complete")
}

pub(super) fn offer(at_work: Option<PodMark>) -> PodOffer {
    let (address, site) = ("10.0.0.2:4440".into(), "east".into());
    PodOffer { address, memory_bytes: 1 << 30, flops_per_s: 1_000_000_000, site, at_work }
}

/// An agent that joins pods.
pub(super) fn joins(train_examples: u64, eval_examples: u64) -> SessionConfig {
    SessionConfig { pod: Some(offer(None)), ..config(train_examples, eval_examples) }
}

fn welcome_to_pods() -> Event {
    let mut event = welcome(BRANCH, Some(digest(0)), RunPhase::Running);
    if let Event::Message(CoordinatorMessage::Welcome(welcome)) = &mut event {
        welcome.spec.pod = Some(pod_spec());
    }
    event
}

pub(super) fn mark(lease: u64, attempt: u32) -> PodMark {
    PodMark { lease: LeaseId(lease), attempt }
}

/// An attempt at the round under `lease` of `owner`, with one helper. Labels stay.
pub(super) fn attempt(owner: AgentId, helper: AgentId, mark: PodMark) -> Box<PodRound> {
    let parts = [(1, owner), (3, helper), (4, owner)].map(|(end, agent)| PodPart { end, agent }).to_vec();
    let peers = vec![PodPeer { agent: helper, address: "10.0.0.9:4440".into() }];
    let told = AgentSpec { pod: Some(pod_spec()), ..spec() }.digest().expect("short");
    Box::new(PodRound { mark, owner, parts, peers, plan: lease(mark.lease.0, 0).plan, spec: told })
}

/// This agent's own round, and its pod.
fn own(lease: u64, number: u32) -> Box<PodRound> {
    attempt(AGENT, OTHER, mark(lease, number))
}

/// Another agent's round, in which this one helps.
fn others(lease: u64, number: u32) -> Box<PodRound> {
    attempt(OTHER, AGENT, mark(lease, number))
}

fn pod(round: Box<PodRound>) -> Event {
    say(CoordinatorMessage::Pod(round))
}

fn over(mark: PodMark) -> Event {
    say(CoordinatorMessage::PodOver { mark })
}

fn ended(mark: PodMark) -> Command {
    send(AgentMessage::PodEnded { mark, problem: None })
}

fn problem() -> PodProblem {
    PodProblem { member: Some(OTHER), reason: "it is silent".into() }
}

fn failed(mark: PodMark) -> Event {
    Event::PodFailed { mark, problem: problem() }
}

fn spec_of_pods() -> Box<AgentSpec> {
    Box::new(AgentSpec { pod: Some(pod_spec()), ..spec() })
}

fn train_in(round: Box<PodRound>) -> Command {
    let Command::Train { lease, base, .. } = train(&lease(round.mark.lease.0, 0)) else { unreachable!("it is one") };
    Command::Train { lease, spec: spec_of_pods(), base, lead: None, pod: Some(round) }
}

fn serve(round: Box<PodRound>) -> Command {
    Command::Serve { round, spec: spec_of_pods() }
}

fn served(mark: PodMark) -> Event {
    Event::Served { mark, problem: None, parts: vec![] }
}

fn ask() -> Command {
    send(AgentMessage::RequestLease)
}

fn trained(lease: &Lease) -> Event {
    Event::Trained(Box::new(outcome(lease)))
}

/// A session that joins pods, is welcome and has its trainer.
pub(super) fn ready(config: SessionConfig) -> Session {
    let mut session = Session::new(config, Kept::default());
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    session.handle(0, welcome_to_pods());
    session.handle(0, Event::Prepared { manifest: manifest("w") });
    session
}

/// An owner with lease 1 and its base, whose pod is not known yet.
fn waiting() -> Session {
    let mut session = ready(joins(100, 10));
    session.handle(0, grant(1, 0));
    session.handle(0, announce(0));
    session.handle(0, chunk(0));
    assert_eq!(session.handle(0, unpacked(0)), [], "its pod is not known");
    session
}

/// An owner whose round is computed by the first attempt under lease 1.
fn computing() -> Session {
    let mut session = waiting();
    assert_eq!(session.handle(0, pod(own(1, 1))), [train_in(own(1, 1))]);
    session
}

/// A helper that computes the first attempt at lease 7 of another agent.
fn helping(config: SessionConfig) -> Session {
    let mut session = ready(config);
    assert_eq!(session.handle(0, pod(others(7, 1))), [serve(others(7, 1))]);
    session
}

/// The connection is lost and made again. Returns what the hello says that is computed here, and what follows the welcome.
fn reconnected(session: &mut Session, now_ms: u64) -> (Option<PodMark>, Vec<Command>) {
    reconnect(&session.handle(now_ms, lost()));
    back(session, now_ms)
}

pub(super) fn back(session: &mut Session, now_ms: u64) -> (Option<PodMark>, Vec<Command>) {
    let commands = session.handle(now_ms, Event::Connected);
    let [Command::Send(AgentMessage::Hello(hello))] = &commands[..] else { panic!("no hello: {commands:?}") };
    let told = hello.pod.clone().expect("it joins pods");
    assert_eq!(told, offer(told.at_work));
    (told.at_work, session.handle(now_ms, welcome_to_pods()))
}

/// The reason in the only command, which is the end of this attempt.
fn refusal(commands: &[Command], of: PodMark) -> String {
    match commands {
        [Command::Send(AgentMessage::PodEnded { mark, problem: Some(problem) })] if *mark == of => {
            problem.reason.clone()
        }
        other => panic!("expected the end of {of:?} with a problem, found {other:?}"),
    }
}

#[test]
fn a_round_begins_when_its_base_and_its_pod_have_come_in_either_order() {
    let mut session = ready(joins(100, 0));
    session.handle(0, grant(1, 0));
    assert_eq!(session.handle(0, pod(own(1, 1))), [], "its base is missing");
    session.handle(0, announce(0));
    session.handle(0, chunk(0));
    assert_eq!(session.handle(0, unpacked(0)), [train_in(own(1, 1))]);

    let mut session = computing();
    assert!(matches!(session.activity(), Activity::Training(training) if training.pod.is_some()));
    session.handle(1_000, Event::Progress { lease: LeaseId(1), steps: 1, examples_per_s: 8.0 });
    assert_eq!(session.handle(4_900, Event::Tick), [], "the next lease is not requested before the round has ended");
    assert_eq!(session.handle(5_000, trained(&lease(1, 0))), [bank(&lease(1, 0), 0)], "it is not durable");
    let update = entry(0, &lease(1, 0));
    assert_eq!(session.handle(5_010, Event::Banked(update.clone())), [ended(mark(1, 1)), super::offer(&update)]);
    assert!(!session.handle(5_020, decide(0, accepted())).contains(&ask()), "its base would depend on speed");
    assert_eq!(session.handle(5_030, Event::Settled { key: key(0) }), [ask()]);
}

#[test]
fn a_later_attempt_begins_again_from_the_same_base() {
    let mut session = computing();
    assert_eq!(session.handle(1, pod(own(1, 1))), [], "it is known");
    assert_eq!(session.handle(1, pod(own(1, 2))), [Command::StopTraining]);
    assert_eq!(session.handle(2, pod(own(1, 4))), [], "it is told to stop already");
    assert_eq!(session.handle(2, pod(own(1, 3))), [], "the larger one counts");
    assert_eq!(session.handle(3, Event::TrainingStopped { lease: LeaseId(1) }), [train_in(own(1, 4))]);

    let mut failing = computing();
    failing.handle(1, pod(own(1, 2)));
    assert_eq!(failing.handle(2, failed(mark(1, 1))), [train_in(own(1, 2))], "whatever became of the one before");
    assert_eq!(failing.handle(3, failed(mark(1, 1))), [], "an old one says nothing");

    let mut faster = computing();
    faster.handle(1, pod(own(1, 2)));
    assert_eq!(faster.handle(2, trained(&lease(1, 0))), [bank(&lease(1, 0), 0)]);
    assert_eq!(faster.handle(3, pod(own(1, 3))), [], "the round is computed, and its update not durable");
    let update = entry(0, &lease(1, 0));
    assert_eq!(faster.handle(4, Event::Banked(update.clone())), [ended(mark(1, 3)), super::offer(&update)]);
    assert_eq!(faster.handle(5, pod(own(1, 4))), [ended(mark(1, 4))]);
}

#[test]
fn a_failed_attempt_keeps_lease_and_base_for_the_next_one() {
    let mut session = computing();
    let told = send(AgentMessage::PodEnded { mark: mark(1, 1), problem: Some(problem()) });
    assert_eq!(session.handle(5_000, failed(mark(1, 1))), [told], "no other lease is requested");
    assert!(session.last_problem().is_some_and(|problem| problem.contains("it is silent")));
    assert_eq!(session.handle(5_001, pod(own(1, 2))), [train_in(own(1, 2))]);

    // Attempts that fail at once begin at most once a second.
    session.handle(5_010, failed(mark(1, 2)));
    assert_eq!(session.handle(5_020, pod(own(1, 3))), []);
    let at_ms = 5_001 + limits::AGENT_RETRY_MS;
    assert_eq!(session.deadline_ms(), Some(at_ms));
    assert_eq!(session.handle(at_ms, Event::Tick), [train_in(own(1, 3))]);
}

/// Every wait has a deadline: the coordinator may have forgotten that this agent waits.
#[test]
fn without_a_pod_a_lease_is_requested_again() {
    let mut session = waiting();
    let until_ms = limits::REQUEST_TIMEOUT_MS;
    assert_eq!(session.deadline_ms(), Some(until_ms));
    assert_eq!(session.handle(until_ms - 1, say(CoordinatorMessage::LeaseDeferred)), []);
    assert_eq!(session.handle(until_ms, Event::Tick), [], "the coordinator knows of it");
    let until_ms = 2 * until_ms - 1;
    assert_eq!(session.handle(until_ms, Event::Tick), [ask()]);
    assert_eq!(session.handle(until_ms, grant(1, 0)), [], "the base is here");
    assert_eq!(session.handle(until_ms, pod(own(1, 1))), [train_in(own(1, 1))]);
}

#[test]
fn an_attempt_that_is_over_takes_the_lease_with_it() {
    let mut running = computing();
    assert_eq!(running.handle(1, over(mark(1, 1))), [Command::StopTraining]);
    assert_eq!(running.handle(2, over(mark(1, 1))), [], "it is told to stop already");
    let commands = running.handle(3, Event::TrainingStopped { lease: LeaseId(1) });
    assert_eq!(commands, [ended(mark(1, 1)), ask()], "nothing is returned");

    let mut prepared = waiting();
    assert_eq!(prepared.handle(1, over(mark(1, 1))), [ended(mark(1, 1)), ask()]);

    let mut later = computing();
    later.handle(1, pod(own(1, 2)));
    later.handle(2, Event::TrainingStopped { lease: LeaseId(1) });
    assert_eq!(later.handle(3, over(mark(1, 1))), [ended(mark(1, 1))], "the second one goes on");
    assert!(matches!(later.activity(), Activity::Training(training) if !training.stopping));

    // It was stopped for a later one, and this one is over too.
    later.handle(4, pod(own(1, 3)));
    assert_eq!(later.handle(5, over(mark(1, 3))), []);
    let commands = later.handle(6, Event::TrainingStopped { lease: LeaseId(1) });
    assert_eq!(commands, [ended(mark(1, 3)), ask()]);
}

#[test]
fn a_round_that_is_computed_goes_on_without_a_connection_and_one_that_waits_is_requested_again() {
    let mut running = computing();
    assert_eq!(reconnected(&mut running, 1), (Some(mark(1, 1)), vec![]));
    assert_eq!(running.handle(2, trained(&lease(1, 0))), [bank(&lease(1, 0), 0)]);
    assert_eq!(reconnected(&mut running, 3), (Some(mark(1, 1)), vec![]), "its update is not durable");
    let update = entry(0, &lease(1, 0));
    assert_eq!(running.handle(4, Event::Banked(update.clone())), [ended(mark(1, 1)), super::offer(&update)]);

    let mut without_pod = waiting();
    assert_eq!(reconnected(&mut without_pod, 1), (None, vec![ask()]));
    assert_eq!(without_pod.handle(2, grant(1, 0)), [], "the same lease, whose base is here");
    assert_eq!(without_pod.handle(3, pod(own(1, 2))), [train_in(own(1, 2))]);

    let mut without_base = ready(joins(100, 0));
    without_base.handle(0, grant(1, 0));
    without_base.handle(0, pod(own(1, 1)));
    assert_eq!(reconnected(&mut without_base, 1), (None, vec![ask()]));

    let mut ending = computing();
    reconnect(&ending.handle(1, lost()));
    assert_eq!(ending.handle(2, trained(&lease(1, 0))), [bank(&lease(1, 0), 0)]);
    assert_eq!(ending.handle(2, Event::Banked(entry(0, &lease(1, 0)))), [], "there is nobody to tell");
    assert_eq!(back(&mut ending, 3).0, None);

    let mut failing = computing();
    reconnect(&failing.handle(5_000, lost()));
    assert_eq!(failing.handle(5_001, failed(mark(1, 1))), []);
    assert_eq!(back(&mut failing, 5_002), (None, vec![ask()]));

    let mut again = computing();
    again.handle(1, pod(own(1, 2)));
    reconnect(&again.handle(2, lost()));
    assert_eq!(again.handle(3, Event::TrainingStopped { lease: LeaseId(1) }), [train_in(own(1, 2))]);
    assert_eq!(back(&mut again, 4), (Some(mark(1, 2)), vec![]));
}

/// The coordinator was started again, or lost sight of this agent.
#[test]
fn a_lease_that_is_known_counts_again_with_its_pod() {
    let mut running = computing();
    assert_eq!(running.handle(1, grant(1, 0)), [], "it is not returned");
    assert_eq!(running.handle(2, pod(own(1, 2))), [Command::StopTraining]);
    assert_eq!(running.handle(3, Event::TrainingStopped { lease: LeaseId(1) }), [train_in(own(1, 2))]);
    assert_eq!(running.handle(4, grant(2, 0)), [give_back(2)], "another one is of no use");

    let mut prepared = ready(joins(100, 0));
    prepared.handle(0, grant(1, 0));
    prepared.handle(0, pod(own(1, 1)));
    assert_eq!(prepared.handle(1, grant(1, 0)), [], "its base is on the way");
    prepared.handle(1, announce(0));
    prepared.handle(1, chunk(0));
    assert_eq!(prepared.handle(2, unpacked(0)), [], "a pod follows");
    assert_eq!(prepared.handle(3, pod(own(1, 2))), [train_in(own(1, 2))]);
}

#[test]
fn what_ends_a_round_ends_its_pod() {
    let stopped = || Event::TrainingStopped { lease: LeaseId(1) };
    let mut shut_down = computing();
    assert_eq!(shut_down.handle(1, Event::Shutdown), [Command::StopTraining]);
    assert!(refusal(&shut_down.handle(2, pod(own(1, 2))), mark(1, 2)).contains("stopping"));
    let commands = shut_down.handle(3, stopped());
    assert_eq!(commands[..2], [give_back(1), ended(mark(1, 1))]);
    assert_eq!(commands.last(), Some(&Command::Exit(Ending::Parked)));

    let mut prepared = ready(joins(100, 0));
    prepared.handle(0, grant(1, 0));
    prepared.handle(0, pod(own(1, 1)));
    let hold = Event::Hold { reason: Some("battery".into()) };
    assert_eq!(prepared.handle(1, hold), [give_back(1), ended(mark(1, 1))]);

    let mut gone = ready(joins(100, 0));
    gone.handle(0, grant(1, 0));
    gone.handle(0, pod(own(1, 1)));
    let said = say(CoordinatorMessage::ModelGone { version: ModelVersion(0), digest: digest(0) });
    assert_eq!(gone.handle(1, said), [give_back(1), ended(mark(1, 1)), ask()]);

    let mut diverged = computing();
    let discarded = Event::Discarded { lease: LeaseId(1), problem: "diverged".into() };
    assert_eq!(diverged.handle(1, discarded), [give_back(1), ended(mark(1, 1))]);

    let mut moved = computing();
    reconnect(&moved.handle(1, lost()));
    moved.handle(2, Event::Connected);
    let branch = BranchId([8; 16]);
    let commands = moved.handle(3, welcome(branch, Some(digest(0)), RunPhase::Running));
    assert_eq!(commands, [Command::StopTraining, Command::AdoptBranch { branch }]);
    assert_eq!(moved.handle(4, stopped()), [give_back(1), ended(mark(1, 1)), ask()]);
}

/// An agent without any shard is of use to others.
#[test]
fn a_helper_needs_no_shard() {
    let mut session = Session::new(joins(0, 0), Kept::default());
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    let prepare = Command::Prepare(spec_of_pods());
    assert_eq!(session.handle(0, welcome_to_pods()), [Command::AdoptBranch { branch: BRANCH }, prepare]);
    assert_eq!(session.handle(0, pod(others(7, 1))), [], "its trainer is being built");
    assert_eq!(session.handle(0, Event::Prepared { manifest: manifest("w") }), [serve(others(7, 1))]);
    assert!(matches!(session.activity(), Activity::Serving(round) if *round == *others(7, 1)));
    let live = LiveReport::of(&session, &Traffic::default());
    let pod = PodReport { owner: OTHER, lease: LeaseId(7), attempt: 1, members: 2 };
    assert_eq!((live.work.as_str(), live.lease, live.pod), ("serving", None, Some(pod)));
    assert_eq!(session.handle(9, served(mark(7, 1))), [ended(mark(7, 1))], "and no lease is requested");
    assert_eq!(session.activity(), Activity::Idle);
    assert_eq!((session.waits().busy_ms, session.waits().waiting_ms), (9, 0));
}

#[test]
fn the_round_of_a_helper_has_the_owners_plan() {
    let mut session = ready(joins(0, 0));
    let mut round = others(7, 1);
    (round.plan.local_steps, round.plan.lr_factor) = (3, 0.5);
    let commands = session.handle(0, pod(round.clone()));
    let [Command::Serve { spec: counts, .. }] = &commands[..] else { panic!("nothing is computed: {commands:?}") };
    assert_eq!(counts.train, round.plan.of(&spec().train));
    assert_eq!((counts.train.local_steps, counts.train.optimizer.lr()), (3, 0.05));
}

#[test]
fn a_helper_ends_what_it_evaluates_first_and_evaluates_nothing_meanwhile() {
    let evaluate =
        |version| say(CoordinatorMessage::Evaluate { version: ModelVersion(version), digest: digest(version) });
    let begins = |version| Command::Evaluate { version: ModelVersion(version), content: content(version) };
    let (accuracy, loss, num_examples) = (0.75, 0.5, 10);
    let evaluated = |version| Event::Evaluated { version: ModelVersion(version), accuracy, loss, num_examples };
    let mut session = ready(joins(0, 10));
    session.handle(0, evaluate(3));
    session.handle(0, announce(3));
    session.handle(0, chunk(3));
    assert_eq!(session.handle(0, unpacked(3)), [begins(3)]);
    assert_eq!(session.handle(10, pod(others(7, 1))), []);
    assert_eq!(session.handle(20, evaluated(3)), [told(3, 10, 20), serve(others(7, 1))]);

    session.handle(30, evaluate(4));
    session.handle(30, announce(4));
    session.handle(30, chunk(4));
    assert_eq!(session.handle(30, unpacked(4)), []);
    assert_eq!(session.handle(50, served(mark(7, 1))), [ended(mark(7, 1)), begins(4)]);
    assert_eq!(session.handle(55, evaluated(4)), [told(4, 10, 5)], "no round of its own was held up before");
}

/// The coordinator takes an owner whose request stands as a helper.
#[test]
fn a_request_stands_while_an_owner_helps_another_one() {
    let mut session = helping(joins(100, 0));
    let late_ms = 2 * limits::REQUEST_TIMEOUT_MS;
    assert_eq!(session.handle(late_ms, Event::Tick), [], "the connection is not given up");
    assert_eq!(session.handle(late_ms, served(mark(7, 1))), [ended(mark(7, 1))]);
    assert_eq!(session.deadline_ms(), Some(late_ms + limits::REQUEST_TIMEOUT_MS));
    let fetch = fetch_model(0, 0, FetchPurpose::Train, None);
    assert_eq!(session.handle(late_ms + 1, grant(1, 0)), [send(fetch)]);
    let reason = refusal(&session.handle(late_ms + 2, pod(others(8, 1))), mark(8, 1));
    assert!(reason.contains("a round of its own"), "{reason}");
}

#[test]
fn no_lease_is_requested_while_an_own_update_and_anothers_round_are_under_way() {
    let mut session = computing();
    session.handle(10, trained(&lease(1, 0)));
    assert!(refusal(&session.handle(11, pod(others(7, 1))), mark(7, 1)).contains("a round of its own"));
    session.handle(12, Event::Banked(entry(0, &lease(1, 0))));
    assert_eq!(session.handle(12, pod(others(7, 2))), [serve(others(7, 2))], "the device is free");
    session.handle(13, decide(0, accepted()));
    assert_eq!(session.handle(14, Event::Settled { key: key(0) }), []);
    assert_eq!(session.handle(20, served(mark(7, 2))), [ended(mark(7, 2)), ask()]);
}

/// The update may not become durable, or count for nothing by then.
#[test]
fn the_end_of_a_round_that_is_stored_is_told_once() {
    let mut lost = computing();
    lost.handle(1, trained(&lease(1, 0)));
    let discarded = Event::Discarded { lease: LeaseId(1), problem: "the disk is full".into() };
    assert_eq!(lost.handle(2, discarded), [give_back(1), ended(mark(1, 1))]);

    let mut late = computing();
    late.handle(1, trained(&lease(1, 0)));
    assert_eq!(late.handle(2, over(mark(1, 1))), [ended(mark(1, 1))]);
    let update = entry(0, &lease(1, 0));
    assert_eq!(late.handle(3, Event::Banked(update.clone())), [super::offer(&update)]);
}

#[test]
fn of_several_attempts_a_helper_computes_the_largest() {
    let mut session = helping(joins(0, 0));
    assert_eq!(session.handle(1, pod(others(7, 1))), [], "it is known");
    assert_eq!(session.handle(1, pod(others(7, 2))), [Command::StopTraining]);
    assert_eq!(session.handle(2, pod(others(7, 3))), []);
    assert!(refusal(&session.handle(2, pod(others(7, 2))), mark(7, 2)).contains("a later round"));
    assert_eq!(session.handle(3, served(mark(7, 1))), [serve(others(7, 3))], "the coordinator has replaced the first");
    assert_eq!(session.handle(4, served(mark(7, 1))), [], "an old one says nothing");
    assert_eq!(session.handle(5, pod(others(8, 1))), [Command::StopTraining]);
    assert_eq!(session.handle(6, served(mark(7, 3))), [serve(others(8, 1))]);
}

#[test]
fn a_helper_gives_up_what_is_over() {
    let mut running = helping(joins(0, 0));
    assert_eq!(running.handle(1, over(mark(7, 1))), [Command::StopTraining]);
    assert_eq!(running.handle(1, over(mark(7, 1))), [], "it is told to stop already");
    let failed = Event::Served { mark: mark(7, 1), problem: Some(problem()), parts: vec![] };
    assert_eq!(running.handle(2, failed), [ended(mark(7, 1))], "that it failed at the end is no news");
    assert_eq!(running.handle(3, over(mark(7, 1))), [ended(mark(7, 1))], "whoever asks is told");

    let mut replaced = helping(joins(0, 0));
    replaced.handle(1, pod(others(7, 2)));
    assert_eq!(replaced.handle(2, over(mark(7, 2))), [ended(mark(7, 2))], "it had not begun");
    assert_eq!(replaced.handle(3, served(mark(7, 1))), []);

    let mut failing = helping(joins(0, 0));
    let long = PodProblem { member: Some(OTHER), reason: format!("\n{}", "x".repeat(1 << 12)) };
    let reason =
        refusal(&failing.handle(1, Event::Served { mark: mark(7, 1), problem: Some(long), parts: vec![] }), mark(7, 1));
    assert_eq!(reason, format!(" {}", "x".repeat(limits::POD_REASON_BYTES - 1)));
}

#[test]
fn a_helper_goes_on_without_a_connection() {
    let mut running = helping(joins(0, 0));
    assert_eq!(reconnected(&mut running, 1), (Some(mark(7, 1)), vec![]));
    reconnect(&running.handle(2, lost()));
    assert_eq!(running.handle(3, served(mark(7, 1))), [], "there is nobody to tell");
    assert_eq!(back(&mut running, 4), (None, vec![]));

    let mut stopping = helping(joins(0, 0));
    stopping.handle(1, over(mark(7, 1)));
    assert_eq!(reconnected(&mut stopping, 2), (None, vec![]), "it is as good as free");
    assert_eq!(stopping.handle(3, pod(others(8, 1))), []);
    assert_eq!(stopping.handle(4, served(mark(7, 1))), [ended(mark(7, 1)), serve(others(8, 1))]);
}

#[test]
fn a_helper_that_is_needed_elsewhere_says_so() {
    let mut held = ready(joins(0, 0));
    held.handle(0, Event::Hold { reason: Some("battery".into()) });
    let reason = refusal(&held.handle(1, pod(others(7, 1))), mark(7, 1));
    assert_eq!(reason, "takes on no work at present: battery");

    let mut running = helping(joins(0, 0));
    assert_eq!(running.handle(1, Event::Hold { reason: Some("battery".into()) }), [], "what is under way is finished");
    assert_eq!(running.handle(2, Event::Shutdown), [Command::StopTraining]);
    let commands = running.handle(3, served(mark(7, 1)));
    let [told, goodbye, Command::Exit(Ending::Parked)] = &commands[..] else { panic!("it does not end: {commands:?}") };
    assert!(refusal(std::slice::from_ref(told), mark(7, 1)).contains("stopped as asked"));
    assert!(matches!(goodbye, Command::Send(AgentMessage::Goodbye { .. })));

    let mut moved = helping(joins(0, 0));
    reconnect(&moved.handle(1, lost()));
    moved.handle(2, Event::Connected);
    let branch = BranchId([8; 16]);
    let commands = moved.handle(3, welcome(branch, Some(digest(0)), RunPhase::Running));
    assert_eq!(commands, [Command::StopTraining, Command::AdoptBranch { branch }]);
    assert!(refusal(&moved.handle(4, served(mark(7, 1))), mark(7, 1)).contains("another branch"));
}

#[test]
fn a_pod_that_makes_no_sense_is_refused_with_the_reason() {
    let third = AgentId([10; 16]);
    let part = |end, agent| PodPart { end, agent };
    let with = |change: &dyn Fn(&mut PodRound)| {
        let mut round = others(7, 1);
        change(&mut round);
        round
    };
    let most = u32::try_from(limits::POD_MEMBERS).expect("few") + 2;
    let cases = [
        (with(&|round| round.parts.clear()), "number of parts"),
        (with(&|round| round.parts = (1..=most).map(|end| part(end, OTHER)).collect()), "number of parts"),
        (with(&|round| round.parts[1].end = 1), "do not increase"),
        (with(&|round| round.parts[0].end = 0), "do not increase"),
        (with(&|round| round.parts[1].agent = third), "no member"),
        (with(&|round| round.parts.rotate_left(1)), "do not increase"),
        (with(&|round| round.parts[0].agent = AGENT), "not the owner's"),
        (with(&|round| round.parts[2].agent = third), "address of a member"),
        (with(&|round| round.peers[0].address = "x".repeat(limits::POD_ADDRESS_BYTES + 1)), "too long"),
        (with(&|round| round.peers = vec![round.peers[0].clone(); limits::POD_MEMBERS + 1]), "too many"),
        (with(&|round| round.mark.attempt = 0), "counted from 1"),
        (with(&|round| round.spec = digest(1)), "another configuration"),
    ];
    let mut session = ready(joins(0, 0));
    for (round, says) in cases {
        let reason = refusal(&session.handle(1, pod(round.clone())), round.mark);
        assert!(reason.contains(says), "{reason} does not say {says}");
    }

    let mut owner = waiting();
    let mut unreachable = own(1, 1);
    unreachable.peers.clear();
    assert!(refusal(&owner.handle(1, pod(unreachable)), mark(1, 1)).contains("address of a member"));
    assert!(refusal(&owner.handle(1, pod(own(2, 1))), mark(2, 1)).contains("no round under this lease"));
    assert_eq!(owner.handle(2, pod(own(1, 2))), [train_in(own(1, 2))], "it waits for a sound one");
}

#[test]
fn an_agent_that_joins_no_pods_trains_alone_and_refuses_them() {
    let mut alone = Session::new(config(100, 0), Kept::default());
    for event in [Event::Started, Event::Connected, welcome_to_pods(), Event::Prepared { manifest: manifest("w") }] {
        alone.handle(0, event);
    }
    alone.handle(0, grant(1, 0));
    alone.handle(0, announce(0));
    alone.handle(0, chunk(0));
    let commands = alone.handle(0, unpacked(0));
    assert!(matches!(&commands[..], [Command::Train { pod: None, .. }]), "{commands:?}");
    assert!(refusal(&alone.handle(1, pod(own(1, 1))), mark(1, 1)).contains("joins no pods"));

    // The run has none.
    let mut session = asking(joins(100, 0), Kept::default());
    assert!(refusal(&session.handle(0, pod(others(7, 1))), mark(7, 1)).contains("joins no pods"));
    session.handle(0, grant(1, 0));
    session.handle(0, announce(0));
    session.handle(0, chunk(0));
    assert_eq!(session.handle(0, unpacked(0)), [train(&lease(1, 0))]);
}

#[test]
fn replicas_are_whole_models_of_different_members_and_stages_are_not() {
    let replicas = PodSpec::Replicas(ReplicasSpec { members: 3, deadline_s: 1.0 });
    let stages = pod_spec();
    let round = |parts: &[(u32, AgentId)]| {
        let mut round = others(1, 1);
        round.parts = parts.iter().map(|(end, agent)| PodPart { end: *end, agent: *agent }).collect();
        round.peers = vec![PodPeer { agent: OTHER, address: "10.0.0.9:4440".into() }];
        round
    };
    let said = |parts: &[(u32, AgentId)], pod| check(&round(parts), AGENT, Some(pod));
    let whole = [(4, OTHER), (4, AGENT)];
    assert_eq!(said(&whole, &replicas), Ok(()));
    assert_eq!(said(&whole, &stages), Err("the ends of the parts do not increase"));
    let cut = [(2, OTHER), (4, AGENT)];
    assert_eq!(said(&cut, &replicas), Err("a replica is not the whole model"));
    assert_eq!(said(&cut, &stages), Ok(()));
    assert_eq!(said(&[(0, OTHER), (0, AGENT)], &replicas), Err("a replica is not the whole model"));
    assert_eq!(said(&[(4, OTHER), (4, AGENT), (4, OTHER)], &replicas), Err("a member has two replicas"));
    assert_eq!(said(&[(4, AGENT), (4, OTHER)], &replicas), Err("the first part is not the owner's"));
}
