//! A scripted run: every kind of record that changes the model or the fold, and what it must come to.

use anabranch_common::codec::{self, CodecId, CodecSpec, euclidean_norm};
use anabranch_common::ids::{
    AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position, RunId, UpdateSeq,
};
use anabranch_common::journal::{
    Chain, CloseReason, Contribution, Evaluation, Lease, LeaseEnd, Publication, PublicationForm, Record, RecordBody,
};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::merge::barrier::Barrier;
use anabranch_common::merge::recall::RecallInputs;
use anabranch_common::merge::staleness::Staleness;
use anabranch_common::merge::{MergeSpec, SavedRule};
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{
    AdmitSpec, DownlinkSpec, EvaluateSpec, ModelKind, ModelSpec, OptimizerSpec, RunSpec, TargetSpec, TrackSpec,
    TrainSpec, UploadSpec,
};
use anabranch_common::update::{MemoryMark, RefusalReason, UpdateKey, UpdateMeta};
use anabranch_coordinator::config::Retention;
use anabranch_coordinator::core::state::RunState;
use anabranch_coordinator::merger::{MergeError, ModelState};
use anabranch_coordinator::recovery::{self, RecoveryError, checkpoint};
use anabranch_coordinator::store::Store;
use anabranch_testkit_store::MemoryStore;

const AT_MS: u64 = 1_700_000_000_000;
const AGENTS: u8 = 3;

/// What the run is at one position.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) state: RunState,
    pub(crate) chain: Chain,
    pub(crate) model: Vec<f32>,
    pub(crate) merge_state: SavedRule<'static>,
    /// What agents train from.
    base: (ModelVersion, Vec<f32>),
}

/// Records by position, what an uninterrupted run is after each, and the models that records bring in.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) manifest: ModelManifest,
    pub(crate) records: Vec<Record>,
    pub(crate) points: Vec<Point>,
    imported: Option<(Position, Vec<f32>)>,
}

pub(crate) fn fedasync() -> MergeSpec {
    MergeSpec::FedAsync { alpha: 0.6, staleness: Staleness::Polynomial { a: 0.5 }, participation: false }
}

pub(crate) fn fedbuff(buffer_size: u32) -> MergeSpec {
    MergeSpec::FedBuff { buffer_size, server_lr: 0.9, staleness: Staleness::default(), participation: false }
}

pub(crate) fn delayed_nesterov(buffer_size: u32) -> MergeSpec {
    let (server_lr, momentum, staleness, participation) = (0.9, 0.8, Staleness::default(), false);
    MergeSpec::DelayedNesterov { buffer_size, server_lr, momentum, staleness, participation }
}

pub(crate) fn fadas(buffer_size: u32) -> MergeSpec {
    let (server_lr, beta_1, beta_2, epsilon) = (0.6, 0.9, 0.99, 1e-8);
    MergeSpec::Fadas { buffer_size, server_lr, beta_1, beta_2, epsilon, tau_c: 1 }
}

pub(crate) fn rescaled() -> MergeSpec {
    MergeSpec::Rescaled { alpha: 0.6, staleness: Staleness::default() }
}

/// Updates of a round behind a barrier here.
const ROUND: u32 = 3;

fn hasty() -> Barrier {
    Barrier { quorum: 0.01, deadline_s: Some(1.0) }
}

pub(crate) fn fedavg() -> MergeSpec {
    MergeSpec::FedAvg { server_lr: 0.9, barrier: hasty() }
}

pub(crate) fn fedavgm() -> MergeSpec {
    MergeSpec::FedAvgM { server_lr: 0.9, momentum: 0.8, barrier: hasty() }
}

pub(crate) fn fedadam() -> MergeSpec {
    MergeSpec::FedAdam { server_lr: 0.6, beta_1: 0.9, beta_2: 0.99, tau: 1e-3, barrier: hasty() }
}

pub(crate) fn recall() -> MergeSpec {
    MergeSpec::Recall { step: 23.0, recall: true, average: true }
}

pub(crate) fn ef21() -> MergeSpec {
    MergeSpec::Ef21 { server_lr: 0.9 }
}

pub(crate) fn manifest(rows: u64) -> ModelManifest {
    let tensor = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), shape: shape.to_vec() };
    ModelManifest::new(vec![tensor("w", &[rows, 40]), tensor("b", &[40])]).expect("valid")
}

/// Runs with one of these rules have a published track.
fn track(merge: &MergeSpec) -> Option<TrackSpec> {
    let codec = CodecSpec::top_k(0.2);
    matches!(merge.unaveraged(), MergeSpec::DelayedNesterov { .. } | MergeSpec::Recall { .. })
        .then_some(TrackSpec { every: Some(2), codec })
}

pub(crate) fn spec(merge: MergeSpec) -> RunSpec {
    RunSpec {
        name: "scripted".into(),
        seed: 7,
        model: ModelSpec {
            kind: ModelKind::Mlp,
            input: vec![30],
            classes: 40,
            hidden: vec![],
            input_scale: 1.0,
            ..ModelSpec::default()
        },
        train: TrainSpec {
            local_steps: 1,
            batch_size: 1,
            optimizer: OptimizerSpec::Sgd { lr: 0.1, momentum: 0.0 },
            keep_optimizer_state: false,
            target_round_s: None,
            max_local_steps: None,
            schedule: None,
            proximal_mu: 0.0,
        },
        upload: UploadSpec::fixed(CodecSpec::top_k(0.1), 0.9),
        merge: merge.clone(),
        admit: AdmitSpec {
            max_staleness: 50,
            max_examples: 1000,
            max_norm_ratio: 0.0,
            clip_norm_ratio: 0.0,
            max_influence: 0.0,
            rare_norm_ratio: 0.0,
        },
        downlink: DownlinkSpec { track: track(&merge), ..DownlinkSpec::default() },
        pod: None,
        evaluate: EvaluateSpec { every_versions: 10, every_s: 10.0 },
        target: TargetSpec::default(),
    }
}

pub(crate) fn vector(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix64::new(seed);
    (0..len).map(|_| rng.next_signed_f32()).collect()
}

/// When the script decides the record at a position.
pub(crate) fn time_of(position: Position) -> u64 {
    AT_MS + position.0 * 1000
}

impl History {
    /// Rounds of work by three agents with three codecs; in between, what else a run can do.
    pub(crate) fn scripted(merge: &MergeSpec, rounds: u64) -> Self {
        let mut history = Self::begin(merge.clone(), manifest(30));
        for agent in 0..AGENTS {
            history.join(agent);
        }
        for round in 0..rounds {
            let agent = AgentId([u8::try_from(round % u64::from(AGENTS)).expect("small"); 16]);
            let lease = history.lease(agent, round);
            match round % 7 {
                5 => history.push(RecordBody::LeaseEnded { lease, why: LeaseEnd::Returned }, vec![]),
                6 => history.refuse(agent, lease, round),
                _ => history.update(agent, lease, round),
            }
            match round {
                4 => history.evaluate(agent),
                9 => history.import(vector(history.manifest.params(), 2)),
                15 => history.push(RecordBody::Paused, vec![]),
                16 => history.push(RecordBody::Resumed, vec![]),
                _ => {}
            }
        }
        history
    }

    pub(crate) fn begin(merge: MergeSpec, manifest: ModelManifest) -> Self {
        let model = vector(manifest.params(), 1);
        Self::begin_with(merge, manifest, model)
    }

    pub(crate) fn begin_with(merge: MergeSpec, manifest: ModelManifest, model: Vec<f32>) -> Self {
        let body = RecordBody::Genesis {
            run: RunId([1; 16]),
            branch: BranchId([2; 16]),
            spec: Box::new(spec(merge)),
            manifest: manifest.clone(),
            model: Digest::of_f32(&model),
            norm: euclidean_norm(&model),
        };
        let record = Record::new(Position(0), AT_MS, body, [].into());
        let state = RunState::genesis(&record).expect("a genesis record");
        let chain = Chain::default().extend(record.digest().expect("small"), 0.0, ModelVersion(0));
        let merge_state = state.spec.merge.rule(manifest.params()).save().into_owned();
        let base = (state.version, model.clone());
        let points = vec![Point { state, chain, model, merge_state, base }];
        Self { manifest, records: vec![record], points, imported: None }
    }

    fn newest(&self) -> &Point {
        self.points.last().expect("there is record 0")
    }

    pub(crate) fn state(&self) -> &RunState {
        &self.newest().state
    }

    pub(crate) fn last(&self) -> Position {
        self.newest().state.position
    }

    pub(crate) fn push(&mut self, body: RecordBody, payload: Vec<u8>) {
        let position = self.last().next();
        let record = Record::new(position, time_of(position), body, payload.into());
        let mut live = Live::at(self.newest());
        live.apply(&record, self.imported.as_ref());
        self.points.push(live.point());
        self.records.push(record);
    }

    pub(crate) fn join(&mut self, agent: u8) {
        let agent = AgentId([agent; 16]);
        self.push(RecordBody::AgentJoined { agent, name: format!("agent {}", agent.short()) }, vec![]);
        let incarnation = Incarnation(agent.0);
        let (examples_held, eval_examples) = (100, 10);
        let epoch = Epoch(1);
        self.push(RecordBody::EpochStarted { agent, epoch, incarnation, examples_held, eval_examples }, vec![]);
    }

    pub(crate) fn lease(&mut self, agent: AgentId, seed: u64) -> LeaseId {
        self.publish();
        let newest = self.newest();
        let id = newest.state.next_lease;
        let lease = Lease {
            id,
            agent,
            epoch: Epoch(1),
            branch: newest.state.branch,
            base_version: newest.base.0,
            base_digest: Digest::of_f32(&newest.base.1),
            seed,
            expires_at_ms: AT_MS + 1_000_000,
            plan: newest.state.plan(agent, newest.state.version),
        };
        self.push(RecordBody::LeaseGranted(lease), vec![]);
        id
    }

    /// The newest version is published, if it is finite and was not published before.
    fn publish(&mut self) {
        let newest = self.newest();
        if !newest.model.iter().all(|value| value.is_finite()) {
            return;
        }
        let (version, digest) = (newest.base.0, Digest::of_f32(&newest.base.1));
        let tracked = newest.state.spec.downlink.track.is_some();
        let form = if tracked { PublicationForm::Track } else { PublicationForm::Snapshot };
        let publication = Publication { version, form, digest };
        if newest.state.published != Some(publication) {
            self.push(RecordBody::Published(publication), vec![]);
        }
    }

    pub(crate) fn update(&mut self, agent: AgentId, lease: LeaseId, round: u64) {
        let specs = [CodecSpec::top_k(0.1), CodecSpec::F32, CodecSpec::Bf16];
        let codec = specs[usize::try_from(round % 3).expect("below 3")];
        self.update_by(agent, lease, round, codec, &vector(self.manifest.params(), 100 + round));
    }

    pub(crate) fn update_by(&mut self, agent: AgentId, lease: LeaseId, round: u64, codec: CodecSpec, delta: &[f32]) {
        let encoder = codec::encoder(codec);
        let payload = encoder.encode(&self.manifest, delta).expect("finite");
        let meta = self.meta(agent, lease, UpdateSeq(round), encoder.id(), &payload);
        // Now and then an agent has lost its memory.
        let lost = |mark| if round % 9 == 8 { MemoryMark::EMPTY } else { mark };
        let meta = UpdateMeta { memory: meta.memory.map(lost), ..meta };
        let weight = 0.3 + (round % 5) as f32 * 0.07;
        let scale = if round % 4 == 1 { 0.5 } else { 1.0 };
        let (merge, shares) = (&self.state().spec.merge, &self.state().shares);
        let admitted = merge.recalling().map(|recalling| shares.admit(agent, 100, recalling));
        let recall = admitted.map(|admitted| RecallInputs { scale, ..admitted.inputs });
        let (credited_examples, staleness, norm) = (10, round % 4, 1.0);
        let mean_weight = self.state().spec.merge.mean_weight(100, credited_examples);
        let (memory, transfer_ms) = (self.state().memory_inputs(agent, meta.memory), None);
        let contribution =
            Contribution { meta, credited_examples, staleness, weight, mean_weight, norm, recall, memory, transfer_ms };
        self.push(RecordBody::Contribution(Box::new(contribution)), payload);
        let state = self.state();
        let in_round = state.spec.merge.barrier().is_some() && state.round.contributions == ROUND;
        let deadline = in_round.then(|| state.close_for(CloseReason::Deadline));
        if let Some(close) = state.close_due().or(deadline) {
            self.push(RecordBody::Closed(close), vec![]);
        }
    }

    pub(crate) fn meta(
        &self,
        agent: AgentId,
        lease: LeaseId,
        seq: UpdateSeq,
        codec: CodecId,
        payload: &[u8],
    ) -> UpdateMeta {
        let state = self.state();
        let granted = state.lease(agent, lease).expect("it was granted");
        UpdateMeta {
            key: UpdateKey { run: state.run, agent, epoch: Epoch(1), seq },
            branch: state.branch,
            lease,
            base_version: granted.base_version,
            base_digest: granted.base_digest,
            codec,
            payload_bytes: payload.len() as u64,
            payload_digest: Digest::of(payload),
            num_examples: 10,
            local_steps: 1,
            train_loss: 0.5,
            compute_ms: 10,
            base_dot: Some(0.25),
            residual_ratio: None,
            memory: granted.plan.memory,
        }
    }

    fn refuse(&mut self, agent: AgentId, lease: LeaseId, round: u64) {
        let key = UpdateKey { run: RunId([1; 16]), agent, epoch: Epoch(1), seq: UpdateSeq(round) };
        let payload_digest = Digest::of(&round.to_le_bytes());
        self.push(RecordBody::Refused { key, payload_digest, lease, reason: RefusalReason::NonFinite }, vec![]);
    }

    fn evaluate(&mut self, agent: AgentId) {
        let version = self.newest().state.version;
        self.push(
            RecordBody::Evaluated(Evaluation { agent, version, accuracy: 0.5, loss: 1.0, num_examples: 10 }),
            vec![],
        );
    }

    pub(crate) fn import(&mut self, model: Vec<f32>) {
        let version = self.newest().state.version.next();
        let norm = euclidean_norm(&model);
        let body = RecordBody::Imported { model: Digest::of_f32(&model), version, norm, copied: None };
        self.imported = Some((self.last().next(), model));
        self.push(body, vec![]);
    }

    /// What a rollback to `version` comes to.
    pub(crate) fn branch_off(&mut self, branch: BranchId, from: Position, version: ModelVersion) {
        let model = self.model_of(version).to_vec();
        let norm = euclidean_norm(&model);
        self.imported = Some((self.last().next(), model));
        let made = self.points.iter().find(|point| point.state.version == version);
        let examples = made.expect("the history has this version").state.examples;
        self.push(RecordBody::Branched { branch, from, version, norm, examples }, vec![]);
    }

    /// What users were given right after `version` was made.
    pub(crate) fn served_of(&self, version: ModelVersion) -> Vec<f32> {
        let made = self.points.iter().find(|point| point.state.version == version);
        Live::at(made.expect("the history has this version")).model.served().1.to_vec()
    }

    /// The model right after `version` was made.
    pub(crate) fn model_of(&self, version: ModelVersion) -> &[f32] {
        let made = self.points.iter().find(|point| point.state.version == version);
        &made.expect("the history has this version").model
    }
}

/// A coordinator reduced to what touches the store.
#[derive(Debug)]
pub(crate) struct Live {
    state: RunState,
    model: ModelState,
    chain: Chain,
}

impl Live {
    pub(crate) fn at(point: &Point) -> Self {
        let state = point.state.clone();
        let (manifest, merge) = (state.manifest.clone(), state.spec.merge.clone());
        let merge_state = point.merge_state.clone();
        let model =
            ModelState::restore(manifest, merge, point.model.clone(), merge_state, state.version).expect("fits");
        let model = match &state.spec.downlink.track {
            Some(track) => model.with_track(track, point.base.1.clone(), point.base.0).expect("fits"),
            None => model,
        };
        Self { state, model, chain: point.chain }
    }

    fn apply(&mut self, record: &Record, imported: Option<&(Position, Vec<f32>)>) {
        let (weight, version) = record.chain_inputs(self.state.version);
        self.state.apply(record).expect("the script is sound");
        self.chain = self.chain.extend(record.digest().expect("small"), weight, version);
        match self.model.apply(record) {
            Ok(()) => {}
            Err(MergeError::Replaced) => {
                let (_, model) = imported.expect("the script imports what it brings in");
                let (manifest, merge) = (self.state.manifest.clone(), self.state.spec.merge.clone());
                let state = ModelState::new(manifest, merge, model.clone(), self.state.version).expect("fits");
                self.model = state.tracked(self.state.spec.downlink.track.as_ref());
            }
            Err(error) => panic!("record {}: {error}", record.position),
        }
    }

    fn point(&self) -> Point {
        Point {
            state: self.state.clone(),
            chain: self.chain,
            model: self.model.model().to_vec(),
            merge_state: self.model.merge_state().into_owned(),
            base: (self.model.base().0, self.model.base().1.to_vec()),
        }
    }
}

/// When the scripted coordinator does what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Records of one group commit.
    pub(crate) group: usize,
    /// Group commits between two checkpoints.
    pub(crate) checkpoint_every: usize,
    pub(crate) keep: usize,
    pub(crate) retention: Retention,
}

pub(crate) const PACE: Pace = Pace { group: 3, checkpoint_every: 4, keep: 2, retention: Retention::SinceSnapshot };

/// The same, and no record is pruned.
pub(crate) const ALL: Pace = Pace { retention: Retention::All, ..PACE };

/// The store of a run that has the history behind it.
pub(crate) fn stored(history: &History, pace: Pace) -> MemoryStore {
    let store = MemoryStore::new();
    run_through(&store, history, pace);
    store
}

/// Runs the whole history on an empty store.
pub(crate) fn run_through(store: &dyn Store, history: &History, pace: Pace) {
    let (acknowledged, error) = drive(store, history, pace);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(acknowledged, Some(history.last()));
}

/// Runs the history from where the store stands to its end, as a coordinator would: append, commit, acknowledge,
/// checkpoint, prune. Returns the position of the last acknowledged record, and the error that stopped it.
pub(crate) fn drive(store: &dyn Store, history: &History, pace: Pace) -> (Option<Position>, Option<RecoveryError>) {
    let mut acknowledged = None;
    let outcome = run(store, history, pace, &mut acknowledged);
    (acknowledged, outcome.err())
}

fn run(
    store: &dyn Store,
    history: &History,
    pace: Pace,
    acknowledged: &mut Option<Position>,
) -> Result<(), RecoveryError> {
    if store.journal().last_position()?.is_none() {
        recovery::put_model(store, &history.manifest, &history.points[0].model)?;
        store.journal().append(&[(Position(0), history.records[0].to_bytes().expect("small"))])?;
        store.journal().sync()?;
        *acknowledged = Some(Position(0));
    }
    let recovered = recovery::recover(store)?;
    let mut live = Live { state: recovered.state, model: recovered.model, chain: recovered.chain };
    let begin = usize::try_from(recovered.position.0).expect("short") + 1;
    for (group, records) in history.records[begin..].chunks(pace.group).enumerate() {
        for (at, model) in history.imported.iter().filter(|(at, _)| records.iter().any(|r| r.position == *at)) {
            assert!(at.0 > 0);
            recovery::put_model(store, &history.manifest, model)?;
        }
        let bytes: Vec<_> = records.iter().map(|r| (r.position, r.to_bytes().expect("small"))).collect();
        store.journal().append(&bytes)?;
        store.journal().sync()?;
        *acknowledged = records.last().map(|record| record.position);
        for record in records {
            live.apply(record, history.imported.as_ref());
        }
        if group % pace.checkpoint_every == pace.checkpoint_every - 1 {
            checkpoint::write(store, &live.state, live.chain, &live.model, AT_MS)?;
            checkpoint::prune(store, pace.keep, pace.retention)?;
        }
    }
    Ok(())
}

/// Asserts that a recovered run is, bit for bit, what the uninterrupted one was at its position.
pub(crate) fn assert_same_bits(store: &dyn Store, history: &History, context: &str) -> Position {
    let recovered = match recovery::recover(store) {
        Ok(recovered) => recovered,
        Err(error) => panic!("{context}: {error}"),
    };
    let expected = &history.points[usize::try_from(recovered.position.0).expect("short")];
    let live = Live { state: recovered.state, model: recovered.model, chain: recovered.chain };
    let found = live.point();
    assert_eq!(found.chain, expected.chain, "{context}: chain at {}", recovered.position);
    assert_eq!(found.state, expected.state, "{context}: fold at {}", recovered.position);
    assert_eq!(bits(&found.model), bits(&expected.model), "{context}: model at {}", recovered.position);
    let all_bits = |saved: &SavedRule<'_>| saved.vectors.iter().map(|vector| bits(vector)).collect::<Vec<_>>();
    let base = |point: &Point| (point.base.0, bits(&point.base.1));
    assert_eq!(base(&found), base(expected), "{context}: what agents train from at {}", recovered.position);
    assert_eq!(all_bits(&found.merge_state), all_bits(&expected.merge_state), "{context}: merge state");
    assert_eq!(found.merge_state.parts, expected.merge_state.parts, "{context}: parts of the merge state");
    recovered.position
}

/// Asserts that a run that was stopped loses nothing: what is left in `after` has every acknowledged record and the bits of
/// the uninterrupted run, no manifest names what is not durable, and the restarted run comes to the same end.
pub(crate) fn assert_goes_on(after: &dyn Store, history: &History, acknowledged: Option<Position>, context: &str) {
    if acknowledged.is_some() || after.journal().last_position().expect("memory").is_some() {
        let position = assert_same_bits(after, history, context);
        assert!(Some(position) >= acknowledged, "{context}: acknowledged {acknowledged:?}, found {position}");
        let warnings = recovery::recover(after).expect("recovered just now").warnings;
        assert!(warnings.is_empty(), "{context}: a manifest named what was not durable: {warnings:?}");
    }
    let (acknowledged, error) = drive(after, history, PACE);
    assert!(error.is_none(), "{context}: the restarted run stops: {error:?}");
    assert!(acknowledged.is_none_or(|position| position == history.last()));
    assert_eq!(assert_same_bits(after, history, context), history.last());
    let report = recovery::verify(after).expect("memory");
    assert!(report.holds, "{context}: {report:?}");
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
