//! Checkpoints of a fleet with full histories: more than one message holds, and cheap where little has changed.

use std::collections::BTreeMap;

use anabranch_common::codec::CodecId;
use anabranch_common::ids::{
    AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position, RunId, UpdateSeq,
};
use anabranch_common::journal::{Chain, Contribution, Record, RecordBody};
use anabranch_common::limits;
use anabranch_common::update::{RefusalReason, UpdateKey, UpdateMeta};
use anabranch_coordinator::config::Retention;
use anabranch_coordinator::core::state::RunState;
use anabranch_coordinator::merger::ModelState;
use anabranch_coordinator::recovery::{self, Checkpoint, RecoveryError, checkpoint};
use anabranch_coordinator::store::layout::Name;
use anabranch_coordinator::store::{Area, StorageError, Store};
use anabranch_testkit_store::MemoryStore;
use anabranch_testkit_store::memory::{Fault, FaultKind, FaultSite, Survivors};

use crate::history::{History, fedbuff, manifest, time_of};

/// Agents whose histories alone take more than 64 MiB when they are full.
const FLEET: u32 = 2_000;

fn agent(number: u32) -> AgentId {
    let digest = Digest::of(&number.to_le_bytes());
    AgentId(digest.0[..16].try_into().expect("16 bytes"))
}

/// The fold of a run that is led on record by record.
struct Fleet {
    state: RunState,
    chain: Chain,
}

impl Fleet {
    fn new(history: &History) -> Self {
        Self { state: history.points[0].state.clone(), chain: history.points[0].chain }
    }

    fn apply(&mut self, body: RecordBody) -> Record {
        let position = self.state.position.next();
        let record = Record::new(position, time_of(position), body, [].into());
        let (weight, version) = record.chain_inputs(self.state.version);
        self.chain = self.chain.extend(record.digest().expect("short"), weight, version);
        self.state.apply(&record).expect("it follows");
        record
    }

    fn join(&mut self, agent: AgentId) -> Record {
        self.apply(RecordBody::AgentJoined { agent, name: format!("agent-{}", agent.short()) })
    }

    fn start_epoch(&mut self, agent: AgentId, epoch: Epoch) -> Record {
        let incarnation = Incarnation(agent.0);
        self.apply(RecordBody::EpochStarted { agent, epoch, incarnation, examples_held: 100, eval_examples: 10 })
    }

    fn update(&mut self, agent: AgentId, epoch: Epoch, seq: UpdateSeq) -> Record {
        let meta = UpdateMeta {
            key: UpdateKey { run: RunId([1; 16]), agent, epoch, seq },
            branch: BranchId([2; 16]),
            lease: LeaseId(0),
            base_version: ModelVersion(0),
            base_digest: Digest::default(),
            codec: CodecId(2),
            payload_bytes: 100,
            payload_digest: Digest::of(&seq.0.to_le_bytes()),
            num_examples: 10,
            local_steps: 1,
            train_loss: 0.5,
            compute_ms: 10,
            base_dot: None,
            residual_ratio: None,
            memory: None,
        };
        let update = Contribution {
            meta,
            credited_examples: 10,
            staleness: 0,
            weight: 0.3,
            mean_weight: 0,
            norm: 1.0,
            recall: None,
            memory: None,
            transfer_ms: None,
        };
        self.apply(RecordBody::Contribution(Box::new(update)))
    }

    fn refuse(&mut self, agent: AgentId, epoch: Epoch, seq: UpdateSeq) -> Record {
        let key = UpdateKey { run: RunId([1; 16]), agent, epoch, seq };
        let (payload_digest, reason) = (Digest::of(&seq.0.to_le_bytes()), RefusalReason::Stale);
        self.apply(RecordBody::Refused { key, payload_digest, lease: LeaseId(0), reason })
    }

    /// As many verdicts as are kept of each of `agents`.
    fn full(history: &History, agents: u32) -> Self {
        let mut fleet = Self::new(history);
        for number in 0..agents {
            fleet.join(agent(number));
            for epoch in (1..=limits::EPOCHS_KEPT).map(|epoch| Epoch(u32::try_from(epoch).expect("few"))) {
                fleet.start_epoch(agent(number), epoch);
                for seq in 0..limits::VERDICTS_KEPT as u64 {
                    fleet.update(agent(number), epoch, UpdateSeq(seq));
                }
            }
        }
        fleet
    }
}

/// A model at the version of a fold.
fn model(history: &History, state: &RunState) -> ModelState {
    let model = history.points[0].model.clone();
    let model = ModelState::new(state.manifest.clone(), state.spec.merge.clone(), model, state.version).expect("fits");
    model.tracked(state.spec.downlink.track.as_ref())
}

fn history() -> History {
    History::begin(fedbuff(1 << 30), manifest(1))
}

/// A store with record 0 alone.
fn begin(history: &History) -> MemoryStore {
    let store = MemoryStore::new();
    recovery::put_model(&store, &history.manifest, &history.points[0].model).expect("memory");
    append(&store, &history.records[0]).expect("memory");
    store
}

/// A store with record 0, as if everything in `fleet` had come before it.
fn store(history: &History, fleet: &mut Fleet) -> MemoryStore {
    fleet.state.position = Position(0);
    begin(history)
}

fn append(store: &MemoryStore, record: &Record) -> Result<(), StorageError> {
    store.journal().append(&[(record.position, record.to_bytes().expect("small"))])?;
    store.journal().sync()
}

fn checkpoint(store: &MemoryStore, history: &History, fleet: &Fleet) -> Result<Checkpoint, RecoveryError> {
    checkpoint::write(store, &fleet.state, fleet.chain, &model(history, &fleet.state), 0)
}

/// How long each blob is.
fn blobs(store: &MemoryStore) -> BTreeMap<Digest, u64> {
    let bytes = |id| store.blobs().bytes(id).expect("memory").expect("it is listed");
    store.blobs().list().expect("memory").into_iter().map(|id| (id, bytes(id))).collect()
}

/// Bytes of the pages among the blobs that `after` has and `before` has not.
fn new_pages(store: &MemoryStore, before: &BTreeMap<Digest, u64>) -> Vec<u64> {
    let new = blobs(store).into_iter().filter(|(id, _)| !before.contains_key(id));
    let is_page = |id| store.blobs().get(id).expect("memory").is_some_and(|bytes| bytes.starts_with(b"ANBP"));
    new.filter(|(id, _)| is_page(*id)).map(|(_, bytes)| bytes).collect()
}

/// 64 MiB were the most that a fold could take: with so many agents no checkpoint was written any more, at any start.
#[test]
fn a_fleet_with_full_histories_is_checkpointed_and_a_change_costs_one_page() {
    let history = history();
    let mut fleet = Fleet::full(&history, FLEET);
    let store = store(&history, &mut fleet);
    checkpoint(&store, &history, &fleet).expect("is written");
    let first = blobs(&store);
    assert!(first.values().sum::<u64>() > 64 << 20);
    assert_eq!(recovery::recover(&store).expect("recovers").state, fleet.state);

    let record = fleet.refuse(agent(7), Epoch(8), UpdateSeq(64));
    append(&store, &record).expect("memory");
    let second = checkpoint(&store, &history, &fleet).expect("is written");
    let pages = new_pages(&store, &first);
    assert_eq!(pages.len(), 1, "one agent lies in one page");
    assert!(pages[0] <= 1 << 20, "{} bytes of a page", pages[0]);
    let head = store.blobs().bytes(second.state).expect("memory").expect("stored");
    assert!(head < 256 << 10, "{head} bytes of a head");
    let written: u64 = blobs(&store).iter().filter(|(id, _)| !first.contains_key(id)).map(|(_, bytes)| bytes).sum();
    assert_eq!(written, pages[0] + head, "and nothing else was written");

    let recovered = recovery::recover(&store).expect("recovers");
    assert_eq!((recovered.from_checkpoint, recovered.replayed), (Some(record.position), 0));
    assert_eq!(recovered.state, fleet.state);
    let before = blobs(&store);
    let again =
        checkpoint(&store, &history, &Fleet { state: recovered.state, chain: recovered.chain }).expect("is written");
    assert_eq!((again.state, blobs(&store)), (second.state, before), "the recovered fold has the same bytes");

    checkpoint::prune(&store, 1, Retention::SinceSnapshot).expect("memory");
    let replaced = first.len() - blobs(&store).keys().filter(|id| first.contains_key(*id)).count();
    assert_eq!(replaced, 2, "the head and the page that were replaced are gone, the shared pages are not");
    assert_eq!(recovery::recover(&store).expect("recovers").state, fleet.state);
}

/// 40 agents with little behind them: several pages. Their journal is stored, and a checkpoint at its end.
fn small() -> (History, Fleet, MemoryStore) {
    let history = history();
    let mut fleet = Fleet::new(&history);
    let store = begin(&history);
    for number in 0..40 {
        append(&store, &fleet.join(agent(number))).expect("memory");
        append(&store, &fleet.start_epoch(agent(number), Epoch(1))).expect("memory");
        for seq in 0..9 {
            append(&store, &fleet.refuse(agent(number), Epoch(1), UpdateSeq(seq))).expect("memory");
        }
    }
    checkpoint(&store, &history, &fleet).expect("is written");
    (history, fleet, store)
}

#[test]
fn the_order_in_which_agents_come_does_not_change_the_bytes() {
    let history = history();
    let saved = |order: &mut dyn Iterator<Item = u32>| {
        let mut fleet = Fleet::new(&history);
        order.for_each(|number| drop(fleet.join(agent(number))));
        let store = store(&history, &mut fleet);
        checkpoint(&store, &history, &fleet).expect("is written").state
    };
    assert_eq!(saved(&mut (0..100)), saved(&mut (0..100).rev()));
}

/// A revocation makes the sums of the participation exact: the part of every agent changes.
#[test]
fn what_changes_for_every_agent_is_saved_for_every_agent() {
    let history = history();
    let mut fleet = Fleet::new(&history);
    // So many pages that most of them are believed to be as they were saved.
    for number in 0..400 {
        fleet.join(agent(number));
        fleet.update(agent(number), Epoch(1), UpdateSeq(0));
    }
    assert!(fleet.state.agents.pages().count() > 3 * limits::FOLD_PAGES_CHECKED);
    let store = store(&history, &mut fleet);
    checkpoint(&store, &history, &fleet).expect("is written");
    // A checkpoint that is on its way shares its pages with the fold that goes on.
    for number in [7, 60, 200, 390] {
        append(&store, &fleet.update(agent(number), Epoch(1), UpdateSeq(1))).expect("memory");
    }
    let under_way = Fleet { state: fleet.state.clone(), chain: fleet.chain };
    append(&store, &fleet.apply(RecordBody::AgentRevoked { agent: agent(5) })).expect("memory");
    checkpoint(&store, &history, &under_way).expect("is written");
    let before = blobs(&store);
    checkpoint(&store, &history, &fleet).expect("is written");
    assert_eq!(new_pages(&store, &before).len(), fleet.state.agents.pages().count());
    let recovered = recovery::recover(&store).expect("recovers");
    assert_eq!((recovered.replayed, recovered.state), (0, fleet.state));
}

#[test]
fn a_damaged_page_is_got_round_by_an_older_checkpoint_that_does_not_name_it() {
    let (history, mut fleet, store) = small();
    let (before, older) = (blobs(&store), fleet.state.position);
    append(&store, &fleet.refuse(agent(3), Epoch(1), UpdateSeq(9))).expect("memory");
    let newest = checkpoint(&store, &history, &fleet).expect("is written");
    let (_, bytes) = store.catalogue().checkpoints().expect("memory").pop().expect("there are two");
    let needed =
        checkpoint::needed_blobs(store.blobs(), &Checkpoint::from_bytes(&bytes).expect("whole")).expect("whole");
    let named = |new: bool| {
        let is_page = |id: &Digest| store.blobs().get(*id).expect("memory").expect("named").starts_with(b"ANBP");
        needed.iter().copied().filter(is_page).find(|id| before.contains_key(id) != new).expect("there are both")
    };
    let (own, shared) = (named(true), named(false));
    for lost in [false, true] {
        let damaged = |id| {
            let store = store.crash(Survivors::All).expect("opens");
            if lost {
                store.blobs().delete(id).expect("memory");
            } else {
                assert!(store.damage(Area::Bulk, &Name::Blob(id).chunk_key(0), |bytes| bytes[9] ^= 1));
            }
            store
        };
        let recovered = recovery::recover(&damaged(own)).expect("the older checkpoint does not name it");
        assert_eq!((recovered.from_checkpoint, recovered.replayed), (Some(older), 1));
        assert_eq!(recovered.state, fleet.state);
        let warning = format!("the checkpoint at position {} is damaged: page of the state", newest.position);
        assert!(recovered.warnings[0].starts_with(&warning), "{:?}", recovered.warnings);
        let recovered = recovery::recover(&damaged(shared)).expect("record 0 is there");
        assert_eq!((recovered.from_checkpoint, recovered.warnings.len()), (None, 2), "both checkpoints name it");
        assert_eq!(recovered.state, fleet.state);
    }
}

/// The head of a kept checkpoint cannot be read while pruning looks for what it names, and can again afterwards.
#[test]
fn pruning_beside_a_damaged_head_takes_no_page_away() {
    let (history, mut fleet, store) = small();
    let (_, bytes) = store.catalogue().checkpoints().expect("memory").remove(0);
    let older = Checkpoint::from_bytes(&bytes).expect("whole");
    let needed = checkpoint::needed_blobs(store.blobs(), &older).expect("whole");
    (0..40).for_each(|number| {
        append(&store, &fleet.refuse(agent(number), Epoch(1), UpdateSeq(9))).expect("memory");
    });
    checkpoint(&store, &history, &fleet).expect("is written");
    let flip = || assert!(store.damage(Area::Bulk, &Name::Blob(older.state).chunk_key(0), |bytes| bytes[9] ^= 1));
    flip();
    let pruned = checkpoint::prune(&store, 2, Retention::SinceSnapshot).expect("memory");
    assert_eq!(pruned.blobs, 0);
    flip();
    for id in needed {
        assert!(store.blobs().get(id).expect("whole").is_some(), "{id} is gone");
    }
    // Once the checkpoint goes, what it alone named goes with it.
    assert!(checkpoint::prune(&store, 1, Retention::SinceSnapshot).expect("memory").blobs > 0);
}

/// Checkpoints share their unchanged pages, so damage to one would reach all of them: the next ones look and put it right.
#[test]
fn a_damaged_page_that_has_not_changed_is_written_again() {
    let history = history();
    let (mut fleet, store) = (Fleet::new(&history), begin(&history));
    for number in 0..400 {
        append(&store, &fleet.join(agent(number))).expect("memory");
        append(&store, &fleet.start_epoch(agent(number), Epoch(1))).expect("memory");
    }
    checkpoint(&store, &history, &fleet).expect("is written");
    let own = fleet.state.agents.pages().position(|page| page.agents().any(|(id, _)| id == agent(0))).expect("joined");
    let before = blobs(&store);
    append(&store, &fleet.refuse(agent(0), Epoch(1), UpdateSeq(0))).expect("memory");
    checkpoint(&store, &history, &fleet).expect("is written");
    let shared: Vec<Digest> = fleet.state.agents.pages().filter_map(|page| page.digest()).collect();
    let damaged =
        shared.iter().enumerate().filter(|(at, id)| *at != own && before.contains_key(*id)).map(|(_, id)| *id);
    for id in damaged.step_by(9) {
        assert!(store.damage(Area::Bulk, &Name::Blob(id).chunk_key(0), |bytes| bytes[9] ^= 1));
        let healed = (1..100).any(|seq| {
            append(&store, &fleet.refuse(agent(0), Epoch(1), UpdateSeq(fleet.state.position.0 + seq))).expect("memory");
            checkpoint(&store, &history, &fleet).expect("is written");
            store.blobs().get(id).is_ok_and(|blob| blob.is_some())
        });
        assert!(healed, "no checkpoint has compared page {id}");
        let recovered = recovery::recover(&store).expect("recovers");
        assert_eq!((recovered.from_checkpoint, &recovered.state), (Some(fleet.state.position), &fleet.state));
    }
}

/// Whatever is cut off between the first page and the end of pruning, the older checkpoint is whole, what is left over is
/// swept, and the next checkpoint is whole too.
#[test]
fn a_crash_between_page_and_manifest_leaves_a_whole_checkpoint() {
    let (history, mut fleet, older) = small();
    let before = fleet.state.clone();
    let records = [3, 11, 29].map(|number| fleet.refuse(agent(number), Epoch(1), UpdateSeq(9)));
    records.iter().for_each(|record| append(&older, record).expect("memory"));
    let write = |store: &MemoryStore, fleet: &Fleet| {
        checkpoint(store, &history, fleet)?;
        checkpoint::prune(store, 1, Retention::SinceSnapshot)
    };
    let whole = older.crash(Survivors::All).expect("opens");
    whole.set_fault(None);
    write(&whole, &fleet).expect("memory");
    let expected = blobs(&whole);
    let (writes, commits) = whole.operations();
    assert!(writes > 8 && commits > 3, "{writes} writes, {commits} commits");
    let sites = (0..writes).map(FaultSite::Write).chain((0..commits).map(FaultSite::Commit));
    for (number, site) in (0..).zip(sites) {
        let store = older.crash(Survivors::All).expect("opens");
        store.set_fault(Some(Fault { site, kind: FaultKind::Io }));
        // The fold that is saved shares its pages with others, as that of a running coordinator does.
        write(&store, &fleet).expect_err("it stops");
        for survivors in [Survivors::None, Survivors::All, Survivors::Some { seed: number }] {
            let context = format!("{site:?}, {survivors:?}");
            let store = store.crash(survivors).unwrap_or_else(|error| panic!("{context}: {error}"));
            let recovered = recovery::recover(&store).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(recovered.warnings, [""; 0], "{context}");
            assert!(recovered.state == fleet.state, "{context}: {} records replayed", recovered.replayed);
            let recovered = Fleet { state: recovered.state, chain: recovered.chain };
            write(&store, &recovered).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(blobs(&store), expected, "{context}: nothing is left over");
            let store = store.crash(Survivors::None).expect("opens");
            assert_eq!(recovery::recover(&store).expect("it was durable").state, fleet.state, "{context}");
        }
    }
    assert_ne!(before, fleet.state);
}
