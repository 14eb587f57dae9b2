//! What a host has done for its runs, and in which order. Expected outputs are exact lists.

use std::sync::Arc;

use anabranch_common::downlink::ModelForm;
use anabranch_common::ids::{LeaseId, ModelVersion};
use anabranch_common::wire::message::{CoordinatorMessage, Rejection, RunPhase};
use anabranch_common::wire::transfer::{Missing, TransferManifest};

use super::*;
use crate::node::{MathsJob, StoreDone};
use crate::session::Session;
use crate::session::event::Kept;
use crate::session::tests::{
    BRANCH, config, content, digest, encoded, entry, grant, lease, manifest, outcome, say, welcome,
};

const A: RunId = RunId([1; 16]);
const B: RunId = RunId([2; 16]);

fn name(run: RunId) -> &'static str {
    if run == A { "a" } else { "b" }
}

fn job(job: &Job) -> String {
    match job {
        Job::Store(_) => "store".to_owned(),
        Job::Unpack(_) => "unpack".to_owned(),
        Job::Maths(MathsJob::Train { lease, .. }) => format!("train {}", lease.id.0),
        Job::Maths(MathsJob::Prepare(_)) => "prepare".to_owned(),
        Job::Maths(MathsJob::Evaluate { version, .. }) => format!("evaluate {}", version.0),
        Job::Maths(other) => format!("{other:?}"),
    }
}

fn for_run(output: &node::Output) -> String {
    match output {
        node::Output::Open { number, after_ms } => format!("open {number} in {after_ms} ms"),
        node::Output::Close { .. } => "close".to_owned(),
        node::Output::Send(message) => {
            let text = format!("{message:?}");
            let end = text.find(['(', ' ', '{']).unwrap_or(text.len());
            format!("send {}", &text[..end])
        }
        node::Output::Run(what) => job(what),
        node::Output::StopTraining => "stop".to_owned(),
        other => format!("{other:?}"),
    }
}

/// What is to be done, in short.
fn short(outputs: &[Output]) -> Vec<String> {
    let one = |output: &Output| match output {
        Output::Run { run, output } => format!("{}: {}", name(*run), for_run(output)),
        Output::Subscribe { after_ms } => format!("subscribe in {after_ms} ms"),
        Output::Begin(info) => format!("begin {}", info.name),
        Output::Ended { run, ending } => format!("{} ended: {ending:?}", name(*run)),
        Output::Sweep => "sweep".to_owned(),
        Output::Exit(ending) => format!("exit: {ending:?}"),
    };
    outputs.iter().map(one).collect()
}

fn node() -> AgentNode {
    AgentNode::new(Session::new(config(100, 10), Kept::default()), Arc::default())
}

fn list(weights: &[(RunId, u32)]) -> Input {
    let info = |(run, weight): &(RunId, u32)| RunInfo { run: *run, name: name(*run).to_owned(), weight: *weight };
    Input::Listed(RunsListed { runs: weights.iter().map(info).collect() })
}

struct World(AgentHost);

impl World {
    fn give(&mut self, now_ms: u64, input: Input) -> Vec<String> {
        short(&self.0.handle(now_ms, input))
    }

    fn event(&mut self, now_ms: u64, run: RunId, event: Event) -> Vec<String> {
        self.give(now_ms, Input::Run { run, input: node::Input::Link { number: 1, event } })
    }

    fn stored(&mut self, now_ms: u64, run: RunId, done: StoreDone) -> Vec<String> {
        self.give(now_ms, Input::Run { run, input: node::Input::Done(Done::Store(done)) })
    }

    fn computed(&mut self, now_ms: u64, run: RunId, event: Event) -> Vec<String> {
        self.give(now_ms, Input::Run { run, input: node::Input::Done(Done::Maths(event)) })
    }

    /// An update leaves at once: two that wait for the line would keep their run from asking for a lease.
    fn sent(&mut self, now_ms: u64, run: RunId, transfer: TransferManifest) {
        let (id, missing) = (transfer.id(), Missing::all(1));
        self.event(now_ms, run, say(CoordinatorMessage::NeedChunks { transfer: id, missing: missing.clone() }));
        self.stored(now_ms, run, StoreDone::Read { link: 1, content: None, transfer, missing });
        self.event(now_ms, run, Event::ChunksSent { transfer: id });
    }

    /// Two runs, both with a trainer and welcome on link 1.
    fn of_two(weights: [u32; 2]) -> Self {
        let mut world = Self(AgentHost::new(A, node(), true));
        assert_eq!(short(&world.0.start(0)), ["subscribe in 0 ms", "a: open 1 in 0 ms"]);
        assert_eq!(world.give(0, list(&[(A, weights[0]), (B, weights[1])])), ["begin b"]);
        assert_eq!(world.give(0, Input::Begun { run: B, node: Box::new(node()) }), ["b: open 1 in 0 ms"]);
        for run in [A, B] {
            assert_eq!(world.event(0, run, Event::Connected), [format!("{}: send Hello", name(run))]);
        }
        let welcome = || welcome(BRANCH, Some(digest(0)), RunPhase::Running);
        assert_eq!(world.event(0, A, welcome()), ["a: store", "a: prepare"]);
        assert_eq!(world.event(0, B, welcome()), ["b: store"], "its trainer has to wait");
        let prepared = || Event::Prepared { manifest: manifest("w") };
        assert_eq!(world.computed(0, A, prepared()), ["a: send RequestLease", "b: prepare"]);
        assert_eq!(world.computed(0, B, prepared()), ["b: send RequestLease"]);
        for run in [A, B] {
            assert!(world.stored(0, run, StoreDone::Adopted).is_empty());
        }
        world
    }

    /// A lease on version 0 comes, and its base if that is not here. Returns what follows from the base.
    fn lease(&mut self, now_ms: u64, run: RunId, id: u64) -> Vec<String> {
        let granted = self.event(now_ms, run, grant(id, 0));
        if granted != [format!("{}: send FetchModel", name(run))] {
            return granted;
        }
        let (version, digest) = (ModelVersion(0), digest(0));
        let transfer = TransferManifest::of(&encoded(0));
        let (index, bytes, of) = (0, encoded(0), transfer.id());
        let model = CoordinatorMessage::Model { version, digest, form: ModelForm::Snapshot, transfer };
        assert!(self.event(now_ms, run, say(model)).is_empty());
        let unpack = self.event(now_ms, run, Event::Chunk { transfer: of, index, bytes });
        assert_eq!(unpack, [format!("{}: unpack", name(run))], "beside the device");
        let unpacked = Event::Unpacked { version, digest, content: content(0) };
        self.give(now_ms, Input::Run { run, input: node::Input::Done(Done::Unpack(unpacked)) })
    }

    fn training(&self, run: RunId) -> Option<(u64, u64)> {
        match self.0.node(run)?.session().activity() {
            crate::session::Activity::Training(training) => Some((training.lease.id.0, training.since_ms)),
            _ => None,
        }
    }
}

fn trained(id: u64) -> Event {
    Event::Trained(Box::new(outcome(&lease(id, 0))))
}

#[test]
fn one_run_is_as_it_is_without_a_host() {
    let mut host = AgentHost::new(A, node(), false);
    let mut alone = node();
    let alone_short = |outputs: Vec<node::Output>| -> Vec<String> {
        outputs.iter().map(|output| format!("a: {}", for_run(output))).collect()
    };
    let started = alone_short(alone.handle(0, node::Input::Event(Event::Started)));
    assert_eq!(short(&host.start(0)), started);
    let link = |event| node::Input::Link { number: 1, event };
    let inputs: [fn() -> Event; 3] =
        [|| Event::Connected, || welcome(BRANCH, Some(digest(0)), RunPhase::Running), || grant(1, 0)];
    for input in inputs {
        let expected = alone_short(alone.handle(1, link(input())));
        assert_eq!(short(&host.handle(1, Input::Run { run: A, input: link(input()) })), expected);
        assert_eq!(host.deadline_ms(), alone.session().deadline_ms());
    }
    let rejected = || link(say(CoordinatorMessage::Rejected(Rejection::Revoked)));
    let ended = short(&host.handle(2, Input::Run { run: A, input: rejected() }));
    assert_eq!(ended[ended.len() - 2..], ["a ended: Revoked", "exit: Revoked"]);
    assert!(host.handle(3, Input::Shutdown).is_empty(), "it has left");
}

#[test]
fn runs_take_turns_and_a_round_counts_from_its_turn_on() {
    let mut world = World::of_two([1, 1]);
    assert_eq!(world.lease(10, A, 1), ["a: train 1"]);
    assert_eq!(world.lease(20, B, 7), [""; 0], "the device computes for the other run");
    assert_eq!((world.training(A), world.training(B)), (Some((1, 10)), Some((7, 20))));
    assert!(world.0.node(B).is_some_and(|node| node.session().awaits_turn()));

    assert_eq!(world.computed(1_010, A, trained(1)), ["a: store", "b: train 7"]);
    assert_eq!(world.training(B), Some((7, 1_010)), "its time counts from its turn on");
    assert!(world.0.node(B).is_some_and(|node| !node.session().awaits_turn()));
    let waits = world.0.node(B).expect("it is there").session().waits();
    assert_eq!((waits.busy_ms, waits.waiting_ms), (0, 0), "a wait for a turn is no wait of the device");

    assert_eq!(world.lease(1_020, A, 2), [""; 0]);
    assert_eq!(world.computed(1_110, B, trained(7)), ["b: store", "a: train 2"]);
}

/// Each run has its next round ready when the present one ends, as on a line that is slow beside the rounds.
#[test]
fn a_heavier_run_has_more_turns() {
    let mut world = World::of_two([1, 3]);
    // Their leases take 200 ms to come, and rounds 100 ms.
    assert_eq!(world.lease(200, A, 1), ["a: train 1"]);
    assert_eq!(world.lease(200, B, 1), [""; 0]);
    let (mut now_ms, mut computed) = (200, A);
    let (mut turns, mut leases, mut asked) = (Vec::new(), [1, 1], false);
    for turn in 0..10 {
        let of = usize::from(computed == B);
        let id = leases[of];
        leases[of] += 1;
        if asked {
            assert_eq!(world.event(now_ms, computed, grant(id + 1, 0)), [""; 0]);
        }
        now_ms += 100;
        let outputs = world.computed(now_ms, computed, trained(id));
        if !asked {
            assert_eq!(world.lease(now_ms, computed, id + 1), [""; 0]);
        }
        turns.push(name(computed));
        let update = entry(id, &lease(id, 0));
        world.stored(now_ms, computed, StoreDone::Event(Event::Banked(update.clone())));
        world.sent(now_ms, computed, update.transfer);
        let begins = |run| outputs.iter().any(|output| output.starts_with(&format!("{}: train", name(run))));
        computed = match (begins(A), begins(B)) {
            (true, false) => A,
            (false, true) => B,
            both => panic!("one round begins: {both:?} in {outputs:?}"),
        };
        asked = outputs.contains(&format!("{}: send RequestLease", name(computed)));
        assert_eq!(asked, turn > 0, "how long a round takes is known after the first one: {outputs:?}");
    }
    assert_eq!(turns.concat(), "ababbabbba");
}

#[test]
fn a_stop_reaches_the_job_on_the_device_and_takes_a_waiting_one_back() {
    let mut world = World::of_two([1, 1]);
    assert_eq!(world.lease(10, A, 1), ["a: train 1"]);
    assert_eq!(world.lease(20, B, 7), [""; 0]);
    let finished = || say(CoordinatorMessage::StateChanged { state: RunPhase::Finished });
    // The waiting round never runs: its run ends at once.
    let ended = world.event(30, B, finished());
    assert_eq!(ended, ["b: send ReturnLease", "b: send Goodbye", "b ended: Finished"]);
    assert_eq!(world.event(40, A, finished()), ["a: stop"]);
    let stopped = world.computed(50, A, Event::TrainingStopped { lease: LeaseId(1) });
    assert_eq!(stopped, ["a: send ReturnLease", "a: send Goodbye", "a ended: Finished"]);
    assert!(world.0.nodes().next().is_none(), "it waits for further runs");
}

#[test]
fn a_run_that_fails_leaves_the_others_and_does_not_begin_again() {
    let mut world = World::of_two([1, 1]);
    assert_eq!(world.lease(10, A, 1), ["a: train 1"]);
    let failed = Event::Failed(Ending::Storage("full".into()));
    let ended = world.give(20, Input::Run { run: A, input: node::Input::Event(failed) });
    assert_eq!(ended, ["a: stop", "a ended: Storage(\"full\")"]);
    assert_eq!(world.give(30, list(&[(A, 1), (B, 1)])), [""; 0], "it has ended here");
    // The device is still at its round, and then free for the other.
    assert_eq!(world.lease(40, B, 7), [""; 0]);
    assert_eq!(world.computed(50, A, Event::TrainingStopped { lease: LeaseId(1) }), ["b: train 7"]);
    let stopping = world.give(60, Input::Shutdown);
    assert_eq!(stopping, ["b: stop"]);
    let gone = world.computed(70, B, Event::TrainingStopped { lease: LeaseId(7) });
    let expected = ["b: send ReturnLease", "b: send Goodbye", "b ended: Parked", "exit: Storage(\"full\")"];
    assert_eq!(gone, expected, "the joined run's end is the process's");
}

#[test]
fn a_run_that_is_listed_no_more_hands_over_and_may_come_back() {
    let mut world = World::of_two([1, 1]);
    assert_eq!(world.lease(10, B, 7), ["b: train 7"]);
    assert_eq!(world.give(20, list(&[(A, 1)])), ["b: stop"]);
    assert_eq!(world.give(30, list(&[(A, 1), (B, 1)])), [""; 0], "it is not gone yet");
    let gone = world.computed(40, B, Event::TrainingStopped { lease: LeaseId(7) });
    assert_eq!(gone, ["b: send ReturnLease", "b: send Goodbye", "b ended: Parked", "begin b"]);
    // Not wanted any more when its store is open.
    assert_eq!(world.give(50, list(&[])), [""; 0], "the joined run takes part whatever is listed");
    assert_eq!(world.give(60, Input::Begun { run: B, node: Box::new(node()) }), ["b ended: Parked"]);
    assert_eq!(world.give(70, list(&[(B, 1)])), ["begin b"]);
    assert_eq!(world.give(80, Input::NotBegun { run: B, problem: "damaged".into() }), [""; 0]);
    assert_eq!(world.give(90, list(&[(B, 2)])), [""; 0], "it is tried again later");
    // The wait doubles.
    let first_ms = 80 + limits::RUN_BEGIN_MS.0;
    assert!(world.0.deadline_ms().is_some_and(|at_ms| at_ms <= first_ms));
    assert_eq!(world.give(first_ms - 1, Input::Tick), [""; 0]);
    assert_eq!(world.give(first_ms, Input::Tick), ["begin b"]);
    assert_eq!(world.give(first_ms, Input::NotBegun { run: B, problem: "damaged".into() }), [""; 0]);
    assert_eq!(world.give(first_ms + limits::RUN_BEGIN_MS.0, Input::Tick), [""; 0]);
    assert_eq!(world.give(first_ms + 2 * limits::RUN_BEGIN_MS.0, Input::Tick), ["begin b"]);
    assert_eq!(world.give(first_ms, Input::Begun { run: B, node: Box::new(node()) }), ["b: open 1 in 0 ms"]);
}

#[test]
fn a_process_whose_runs_have_all_failed_leaves() {
    let mut world = World::of_two([1, 1]);
    let failed = || node::Input::Event(Event::Failed(Ending::Storage("full".into())));
    assert_eq!(world.give(20, Input::Run { run: A, input: failed() }), ["a ended: Storage(\"full\")"]);
    let ended = world.give(30, Input::Run { run: B, input: failed() });
    assert_eq!(ended, ["b ended: Storage(\"full\")", "exit: Storage(\"full\")"]);

    // Before a list has come there may be others.
    let mut world = World(AgentHost::new(A, node(), true));
    world.0.start(0);
    assert_eq!(world.give(10, Input::Run { run: A, input: failed() }), ["a ended: Storage(\"full\")"]);
    assert_eq!(world.give(20, list(&[(B, 1)])), ["begin b"]);
    assert_eq!(world.give(30, list(&[(A, 1)])), [""; 0], "b is being opened");
    let unwanted = world.give(40, Input::Begun { run: B, node: Box::new(node()) });
    assert_eq!(unwanted, ["b ended: Parked", "exit: Storage(\"full\")"]);
}

#[test]
fn what_is_left_of_runs_is_swept_when_a_list_has_lasted() {
    let mut world = World(AgentHost::new(A, node(), true));
    world.0.start(0);
    world.give(0, list(&[(A, 1)]));
    let lasts_ms = limits::RUN_UNLISTED_MS;
    assert_eq!(world.give(lasts_ms - 1, Input::ListLost(Problem::Transient("gone".into()))), ["subscribe in 100 ms"]);
    assert!(!world.give(lasts_ms, Input::Tick).contains(&"sweep".to_owned()), "the list has not lasted");
    world.give(lasts_ms, list(&[(A, 1)]));
    assert_eq!(world.0.deadline_ms(), Some(2 * lasts_ms));
    assert_eq!(world.give(2 * lasts_ms, Input::Tick), ["sweep"]);
    world.give(2 * lasts_ms, list(&[(A, 1)]));
    assert_eq!(world.0.deadline_ms(), None, "once");
}

#[test]
fn lists_that_do_not_come_are_asked_for_again_until_that_has_no_point() {
    let mut world = World(AgentHost::new(A, node(), true));
    world.0.start(0);
    let lost = || Input::ListLost(Problem::Transient("gone".into()));
    assert_eq!(world.give(0, lost()), ["subscribe in 100 ms"]);
    assert_eq!(world.give(0, lost()), ["subscribe in 200 ms"]);
    assert_eq!(world.give(0, list(&[])), [""; 0]);
    assert_eq!(world.give(0, lost()), ["subscribe in 100 ms"]);
    for _ in 0..40 {
        world.give(0, lost());
    }
    assert_eq!(world.give(0, lost()), [format!("subscribe in {} ms", limits::RECONNECT_MS.1)]);
    world.event(0, A, Event::Connected);
    let problem = Problem::Final(Ending::Clock("1970".into()));
    assert_eq!(world.give(0, Input::ListLost(problem)), [""; 0], "the joined run goes on");
    let end = world.event(0, A, say(CoordinatorMessage::Rejected(Rejection::Replaced)));
    assert_eq!(end[end.len() - 2..], ["a ended: Replaced", "exit: Replaced"]);
}

#[test]
fn a_hold_counts_for_runs_that_begin_later() {
    let mut world = World(AgentHost::new(A, node(), true));
    world.0.start(0);
    world.give(0, Input::Hold { reason: Some("battery".into()) });
    world.give(0, list(&[(B, 1)]));
    world.give(0, Input::Begun { run: B, node: Box::new(node()) });
    assert!(world.0.nodes().all(|(_, node)| node.session().hold() == Some("battery")));
}

#[test]
fn one_run_renews_the_certificate_and_another_one_when_that_has_ended() {
    let mut world = World::of_two([1, 1]);
    let renewed = Event::CertificateStored { renew_at_ms: 5_000 };
    world.give(0, Input::Run { run: A, input: node::Input::Event(renewed) });
    let deadline = |world: &World, run| world.0.node(run).and_then(|node| node.session().deadline_ms());
    assert!(deadline(&world, A).is_some_and(|at_ms| at_ms <= 5_000));
    assert_eq!(world.0.node(B).map(|node| node.session().config().renew_at_ms), Some(u64::MAX));
    world.event(0, A, say(CoordinatorMessage::Rejected(Rejection::Replaced)));
    let renews = world.give(5_000, Input::Tick);
    assert!(renews.contains(&"b: Renew(Due)".to_owned()), "{renews:?}");
}

#[test]
fn a_run_whose_session_is_down_when_the_renewal_is_due_hands_it_on() {
    let mut world = World::of_two([1, 1]);
    let renewed = Event::CertificateStored { renew_at_ms: 5_000 };
    world.give(0, Input::Run { run: A, input: node::Input::Event(renewed) });
    world.event(0, A, Event::Disconnected(Problem::Transient("not served".into())));
    assert!(!world.give(4_999, Input::Tick).contains(&"b: Renew(Due)".to_owned()), "it is not due");
    assert!(world.0.deadline_ms().is_some_and(|at_ms| at_ms <= 5_000));
    world.give(5_000, Input::Tick);
    let renews = world.give(5_000, Input::Tick);
    assert!(renews.contains(&"b: Renew(Due)".to_owned()), "{renews:?}");
    assert_eq!(world.0.deadline_ms().filter(|at_ms| *at_ms <= 5_000), None, "nothing more is due");
}
