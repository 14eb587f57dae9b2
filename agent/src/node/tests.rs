//! What a node gives to store, maths and link, and when.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anabranch_common::downlink::ModelForm;
use anabranch_common::ids::{AgentId, BranchId, Digest, LeaseId, ModelVersion};
use anabranch_common::pod::{PodMark, PodRound};
use anabranch_common::wire::message::{CoordinatorMessage, RunPhase};
use anabranch_io::durable::StorageError;
use parking_lot::Mutex;

use super::*;
use crate::session::event::Kept;
use crate::session::tests::{
    AGENT, BRANCH, RUN, accepted, config, content, decide, digest, encoded, entry, grant, key, lease, manifest,
    outcome, say, spec, welcome,
};
use crate::store::{Content, Ledger, Shelf};
use crate::train::Metrics;

/// A storage in memory that counts how often blobs are read.
#[derive(Debug, Clone, Default)]
struct Counting {
    entries: Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>,
    reads: Arc<AtomicUsize>,
}

impl Counting {
    /// Reads since the last call.
    fn reads(&self) -> usize {
        self.reads.swap(0, Ordering::Relaxed)
    }
}

impl Shelf for Counting {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.entries.lock().get(key).cloned())
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.entries.lock().insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn remove(&self, key: &[u8]) -> Result<(), StorageError> {
        self.entries.lock().remove(key);
        Ok(())
    }

    fn put(&self, prefix: &[u8], content: Content<'_>) -> Result<Digest, StorageError> {
        let bytes = content.to_bytes().into_owned();
        let digest = Digest::of(&bytes);
        self.entries.lock().insert(prefix.to_vec(), bytes);
        Ok(digest)
    }

    fn read(&self, prefix: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.get(prefix)
    }

    fn delete(&self, prefix: &[u8]) -> Result<(), StorageError> {
        self.remove(prefix)
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StorageError> {
        Ok(self.entries.lock().keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }

    fn commit(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn path(&self) -> &Path {
        Path::new("memory")
    }

    fn place(&self, _prefix: &[u8]) -> PathBuf {
        self.path().to_owned()
    }
}

impl Counting {
    fn ledger(&self) -> Ledger {
        Ledger::over(Box::new(self.clone())).expect("opens")
    }
}

fn link(number: u64, event: Event) -> Input {
    Input::Link { number, event }
}

fn stored(done: StoreDone) -> Input {
    Input::Done(Done::Store(done))
}

fn computed(event: Event) -> Input {
    Input::Done(Done::Maths(event))
}

/// A node that is welcome on link 1, while the store still adopts the branch and the trainer is being built.
fn welcomed(kept: Kept, fresh: Arc<FreshPayloads>) -> AgentNode {
    let mut node = AgentNode::new(Session::new(config(100, 10), kept), fresh);
    let opened = node.handle(0, Input::Event(Event::Started));
    assert!(matches!(opened[..], [Output::Open { number: 1, after_ms: 0 }]), "{opened:?}");
    node.handle(0, link(1, Event::Connected));
    node.handle(0, link(1, welcome(BRANCH, Some(digest(0)), RunPhase::Running)));
    node
}

/// A node that has the model of version 0, and a round under lease 1 to compute.
fn training() -> (AgentNode, Vec<Output>) {
    let mut node = welcomed(Kept::default(), Arc::default());
    node.handle(0, stored(StoreDone::Adopted));
    node.handle(0, computed(Event::Prepared { manifest: manifest("w") }));
    node.handle(0, link(1, grant(1, 0)));
    let (version, digest) = (ModelVersion(0), digest(0));
    let transfer = TransferManifest::of(&encoded(0));
    let chunk = Event::Chunk { transfer: transfer.id(), index: 0, bytes: encoded(0) };
    node.handle(0, link(1, say(CoordinatorMessage::Model { version, digest, form: ModelForm::Snapshot, transfer })));
    let unpack = node.handle(0, link(1, chunk));
    assert!(matches!(unpack[..], [Output::Run(Job::Unpack(_))]), "beside the maths: {unpack:?}");
    let unpacked = Event::Unpacked { version, digest, content: content(0) };
    let outputs = node.handle(0, Input::Done(Done::Unpack(unpacked)));
    (node, outputs)
}

/// The job that is given to the store.
fn store_job(outputs: Vec<Output>) -> StoreJob {
    let told = format!("{outputs:?}");
    let job = |output| match output {
        Output::Run(Job::Store(job)) => Some(job),
        _ => None,
    };
    outputs.into_iter().find_map(job).unwrap_or_else(|| panic!("nothing for the store: {told}"))
}

fn settles(outputs: &[Output]) -> Vec<u64> {
    let settle = |output: &Output| match output {
        Output::Run(Job::Store(StoreJob::Settle { key, .. })) => Some(key.seq.0),
        _ => None,
    };
    outputs.iter().filter_map(settle).collect()
}

#[test]
fn the_store_has_one_job_at_a_time_in_the_order_of_commands() {
    let outbox = vec![entry(0, &lease(1, 0)), entry(1, &lease(2, 0))];
    let mut node = welcomed(Kept { outbox, ..Kept::default() }, Arc::default());
    assert_eq!(settles(&node.handle(1, link(1, decide(0, accepted())))), [0; 0], "the branch is being adopted");
    assert_eq!(settles(&node.handle(1, link(1, decide(1, accepted())))), [0; 0]);
    assert_eq!(settles(&node.handle(2, stored(StoreDone::Adopted))), [0]);
    let settled = |seq| stored(StoreDone::Event(Event::Settled { key: key(seq) }));
    assert_eq!(settles(&node.handle(3, settled(0))), [1]);
    assert_eq!(settles(&node.handle(4, settled(1))), [0; 0]);
}

#[test]
fn a_process_that_leaves_carries_out_what_its_store_was_given_unless_that_has_failed() {
    let leaving = |ending: Ending| {
        let outbox = vec![entry(0, &lease(1, 0)), entry(1, &lease(2, 0))];
        let mut node = welcomed(Kept { outbox, ..Kept::default() }, Arc::default());
        node.handle(1, link(1, decide(0, accepted())));
        node.handle(1, link(1, decide(1, accepted())));
        let outputs = node.handle(2, Input::Event(Event::Failed(ending.clone())));
        assert!(matches!(outputs.last(), Some(Output::Exit(why)) if *why == ending), "{outputs:?}");
        assert!(node.handle(3, stored(StoreDone::Adopted)).is_empty(), "nothing follows");
        settles(&outputs)
    };
    assert_eq!(leaving(Ending::Trainer("it is gone".into())), [0, 1]);
    assert_eq!(leaving(Ending::Storage("torn".into())), [0; 0], "no job may follow one that has failed");
}

#[test]
fn a_round_that_runs_is_stopped_and_one_that_waits_is_taken_back() {
    let (mut node, outputs) = training();
    assert!(matches!(outputs[..], [Output::Run(Job::Maths(MathsJob::Train { .. }))]), "{outputs:?}");
    let stopped = node.handle(1, Input::Event(Event::Shutdown));
    assert!(matches!(stopped[..], [Output::StopTraining]), "{stopped:?}");

    // The device is not free yet when the next round is given to it.
    let (mut node, _) = training();
    node.maths.push(MathsJob::Train {
        lease: Box::new(lease(1, 0)),
        spec: Box::new(spec()),
        start: Start { base: content(0), lead: None },
        pod: None,
    });
    let stopped = node.handle(1, Input::Event(Event::Shutdown));
    assert!(matches!(stopped.last(), Some(Output::Exit(Ending::Parked))), "nothing is waited for: {stopped:?}");
}

/// The same of what is computed for others.
#[test]
fn a_part_of_anothers_round_that_waits_is_taken_back() {
    let mark = PodMark { lease: LeaseId(7), attempt: 1 };
    let plan = lease(7, 0).plan;
    let round =
        PodRound { mark, owner: AgentId([9; 16]), parts: Vec::new(), peers: Vec::new(), plan, spec: Digest([0; 32]) };
    let mut node = welcomed(Kept::default(), Arc::default());
    node.maths.push(MathsJob::Serve { round: Box::new(round), spec: Box::new(spec()) });
    let mut out = Vec::new();
    let event = node.execute(Command::StopTraining, &mut out);
    assert_eq!((event, out.len()), (Some(Event::Served { mark, problem: None, parts: vec![] }), 0));
    assert!(node.execute(Command::StopTraining, &mut out).is_none());
    assert!(matches!(out[..], [Output::StopTraining]), "what is computed has to be told: {out:?}");
}

#[test]
fn what_an_older_link_tells_does_not_count() {
    let mut node = welcomed(Kept::default(), Arc::default());
    let lost = || Event::Disconnected(Problem::Transient("cable".into()));
    let opened = node.handle(1, link(1, lost()));
    assert!(matches!(opened[..], [Output::Open { number: 2, .. }]), "{opened:?}");
    for late in [lost(), Event::Connected, welcome(BRANCH, Some(digest(0)), RunPhase::Finished)] {
        assert!(node.handle(2, link(1, late)).is_empty());
    }
    assert_eq!(node.session().phase(), RunPhase::Running);
    let full = node.link_is_full();
    let opened = node.handle(3, full);
    assert!(matches!(opened[..], [Output::Open { number: 3, .. }]), "{opened:?}");
}

/// The disk is slow and may be busy with the next update: it is for restarts.
#[test]
fn a_fresh_update_is_sent_without_a_read_of_the_store_and_after_a_restart_it_is_read() {
    let storage = Counting::default();
    let mut ledger = storage.ledger();
    let (mut node, _) = training();
    node.fresh = ledger.fresh();
    let bank = store_job(node.handle(1, computed(Event::Trained(Box::new(outcome(&lease(1, 0)))))));
    let done = bank.run(&mut ledger, RUN, AGENT).expect("stored");
    storage.reads();
    let banked = node.handle(2, stored(done));
    let need = |missing| {
        let transfer = ledger.kept().expect("readable").outbox[0].transfer.id();
        say(CoordinatorMessage::NeedChunks { transfer, missing })
    };
    let need = need(Missing::all(1));
    storage.reads();
    let sent = node.handle(3, link(1, need.clone()));
    let [Output::SendChunks { content: fresh, .. }] = &sent[..] else { panic!("{banked:?}, then {sent:?}") };
    assert_eq!(storage.reads(), 0, "it is in memory");

    let mut ledger = storage.ledger();
    let mut node = welcomed(ledger.kept().expect("readable"), ledger.fresh());
    storage.reads();
    let mut read = |node: &mut AgentNode, number| {
        store_job(node.handle(4, link(number, need.clone()))).run(&mut ledger, RUN, AGENT).expect("readable")
    };
    let done = read(&mut node, 1);
    let sent = node.handle(5, stored(done));
    assert!(matches!(&sent[..], [Output::SendChunks { content, .. }] if content == fresh), "{sent:?}");
    assert_eq!(storage.reads(), 1);

    // On another link the update is offered again; what was read for the first one is of no use.
    let late = read(&mut node, 1);
    node.handle(6, link(1, Event::Disconnected(Problem::Transient("cable".into()))));
    assert!(node.handle(7, stored(late)).is_empty());
}

/// Guards the store's lane: a coordinator may ask for the same chunks as often as it likes.
#[test]
fn chunks_that_are_asked_for_again_are_read_once() {
    let update = entry(0, &lease(1, 0));
    let mut node = welcomed(Kept { outbox: vec![update.clone()], ..Kept::default() }, Arc::default());
    let need = || say(CoordinatorMessage::NeedChunks { transfer: update.transfer.id(), missing: Missing::all(1) });
    for _ in 0..100 {
        assert!(node.handle(1, link(1, need())).is_empty(), "the branch is being adopted");
    }
    let read = store_job(node.handle(2, stored(StoreDone::Adopted)));
    let StoreJob::Read { link, transfer, missing, .. } = read else { panic!("{read:?}") };
    let content = Some(Arc::from([0; 10]));
    let sent = node.handle(3, stored(StoreDone::Read { link, content, transfer, missing }));
    assert!(matches!(sent[..], [Output::SendChunks { .. }]), "and nothing else is read: {sent:?}");
}

/// What a helper was to send of a pod's update is asked of the owner while it still reads what it was asked for before.
#[test]
fn chunks_that_are_asked_for_one_after_the_other_are_read_together() {
    let mut update = entry(0, &lease(1, 0));
    update.transfer = TransferManifest::in_sections(&[0; 10], vec![3, 6]);
    let mut node = welcomed(Kept { outbox: vec![update.clone()], ..Kept::default() }, Arc::default());
    for index in [0, 2] {
        let missing = Missing::all(3).take(index..index + 1);
        let need = CoordinatorMessage::NeedChunks { transfer: update.transfer.id(), missing };
        assert!(node.handle(1, link(1, say(need))).is_empty(), "the branch is being adopted");
    }
    let read = store_job(node.handle(2, stored(StoreDone::Adopted)));
    let StoreJob::Read { missing, .. } = read else { panic!("{read:?}") };
    assert_eq!(missing.indices(3).collect::<Vec<_>>(), [0, 2]);
}

/// Guards the store's lane: a coordinator may name another branch on each link, while the disk stalls.
#[test]
fn of_several_branches_in_a_row_the_latest_is_adopted() {
    let mut node = welcomed(Kept::default(), Arc::default());
    for number in 2..=100 {
        node.handle(1, link(number - 1, Event::Disconnected(Problem::Transient("cable".into()))));
        node.handle(1, link(number, Event::Connected));
        let branch = BranchId([u8::try_from(number).expect("small"); 16]);
        node.handle(1, link(number, welcome(branch, Some(digest(0)), RunPhase::Running)));
    }
    let latest = store_job(node.handle(2, stored(StoreDone::Adopted)));
    assert!(matches!(latest, StoreJob::Adopt(BranchId([100, ..]))), "{latest:?}");
    assert!(node.handle(3, stored(StoreDone::Adopted)).is_empty(), "no other one waits");
}

#[test]
fn a_settled_update_leaves_memory_and_store() {
    let storage = Counting::default();
    let mut ledger = storage.ledger();
    let (mut node, _) = training();
    let bank = store_job(node.handle(1, computed(Event::Trained(Box::new(outcome(&lease(1, 0)))))));
    let done = bank.run(&mut ledger, RUN, AGENT).expect("stored");
    node.handle(2, stored(done));
    let settle = store_job(node.handle(3, link(1, decide(0, accepted()))));
    assert!(ledger.fresh().get(key(0)).is_some());
    settle.run(&mut ledger, RUN, AGENT).expect("settled");
    assert!(ledger.fresh().get(key(0)).is_none() && ledger.payload(key(0)).expect("readable").is_none());
}

/// Found by simulation (seed 1000139): an honest agent must not be thrown out for what a blown-up model gives it.
#[test]
fn figures_that_are_not_finite_are_a_failed_evaluation() {
    let judge = |accuracy, loss| judged(ModelVersion(3), Metrics { accuracy, loss, num_examples: 2 });
    assert!(matches!(judge(0.5, 1e30), Event::Evaluated { version: ModelVersion(3), num_examples: 2, .. }));
    for (accuracy, loss) in [(0.5, f64::INFINITY), (0.5, f64::NAN), (f64::NAN, 1.0)] {
        assert!(matches!(judge(accuracy, loss), Event::EvaluationFailed { .. }), "{accuracy} {loss}");
    }
}
