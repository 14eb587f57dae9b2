//! One example of everything that has a byte layout, each with every field set to a value of its own.

mod page;
pub(crate) mod parcels;
pub(crate) mod probe;

use anabranch_common::codec::{CodecId, CodecSpec};
use anabranch_common::downlink::{FetchPurpose, ModelForm};
use anabranch_common::ids::{
    AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position, RunId, UpdateSeq,
};
use anabranch_common::journal::{
    Aggregate, Close, CloseReason, Contribution, CopyMark, Evaluation, FinishReason, Lease, LeaseEnd, ModelsSent, Plan,
    Publication, PublicationForm, Record, RecordBody,
};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::merge::ef21::MemoryInputs;
use anabranch_common::merge::recall::{RecallInputs, Recalled};
use anabranch_common::merge::staleness::Staleness;
use anabranch_common::merge::{MergeSpec, Served};
use anabranch_common::pod::{PodMark, PodOffer, PodPart, PodPeer, PodProblem, PodRound, PodSections, Weights};
use anabranch_common::spec::{
    Activations, AdaptiveSpec, AdmitSpec, DownlinkSpec, EvaluateSpec, Labels, LrSchedule, ModelKind, ModelSpec,
    OptimizerSpec, PodSpec, RunSpec, ScheduleKind, ScheduleUnit, StageCount, StagesSpec, TargetSpec, TrainSpec,
    UploadSpec,
};
use anabranch_common::update::{MemoryMark, RefusalReason, UpdateKey, UpdateMeta, Verdict};
use anabranch_common::wire::handshake::{Agree, Propose, Purpose};
use anabranch_common::wire::message::{
    AgentHello, AgentMessage, CoordinatorMessage, JoinRefusal, JoinRequest, JoinResponse, Rejection, RenewalKey,
    RunPhase, Welcome,
};
use anabranch_common::wire::operator::{
    OperatorRequest, OperatorResponse, RegistryRequest, RunRequest, RunsRequest, SearchRequest,
};
use anabranch_common::wire::runs::{RunInfo, RunsListed, RunsWanted};
use anabranch_common::wire::transfer::{ChunkHeader, Missing, TransferManifest};

pub(crate) const RUN: RunId = RunId([0x11; 16]);
pub(crate) const AGENT: AgentId = AgentId([0x22; 16]);
pub(crate) const BRANCH: BranchId = BranchId([0x33; 16]);
pub(crate) const INCARNATION: Incarnation = Incarnation([0x44; 16]);
pub(crate) const DIGEST: Digest = Digest([0x55; 32]);

pub(crate) fn manifest() -> ModelManifest {
    let tensor = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), shape: shape.to_vec() };
    ModelManifest::new(vec![tensor("w", &[40, 50]), tensor("b", &[3])]).expect("valid")
}

pub(crate) fn spec() -> RunSpec {
    RunSpec {
        name: "demo".into(),
        seed: 7,
        model: ModelSpec {
            kind: ModelKind::Mlp,
            input: vec![1, 28, 28],
            classes: 10,
            hidden: vec![64],
            input_scale: 1.0 / 255.0,
            ..ModelSpec::default()
        },
        train: TrainSpec {
            local_steps: 20,
            batch_size: 32,
            optimizer: OptimizerSpec::Sgd { lr: 0.05, momentum: 0.9 },
            keep_optimizer_state: false,
            target_round_s: None,
            max_local_steps: None,
            schedule: None,
            proximal_mu: 0.0,
        },
        upload: UploadSpec::fixed(CodecSpec::top_k(0.05), 0.95),
        merge: fed_buff(),
        admit: AdmitSpec {
            max_staleness: 100,
            max_examples: 60_000,
            max_norm_ratio: 10.0,
            clip_norm_ratio: 2.0,
            max_influence: 1.5,
            rare_norm_ratio: 0.0,
        },
        downlink: DownlinkSpec::default(),
        pod: None,
        evaluate: EvaluateSpec { every_versions: 10, every_s: 5.0 },
        target: TargetSpec { accuracy: Some(0.95), loss: None, versions: Some(1_000), wall_s: Some(60.0) },
    }
}

pub(crate) fn fed_buff() -> MergeSpec {
    let staleness = Staleness::Polynomial { a: 0.5 };
    MergeSpec::FedBuff { buffer_size: 4, server_lr: 1.0, staleness, participation: true }
}

/// Everything in a configuration that `spec` does not show.
pub(crate) fn other_spec() -> RunSpec {
    let optimizer = OptimizerSpec::AdamW { lr: 1e-3, weight_decay: 0.01, beta_1: 0.9, beta_2: 0.999 };
    let staleness = Staleness::Hinge { a: 10.0, b: 4 };
    RunSpec {
        model: ModelSpec { kind: ModelKind::Cnn, ..spec().model },
        train: TrainSpec { optimizer, keep_optimizer_state: true, ..spec().train },
        upload: UploadSpec { adaptive: Some(AdaptiveSpec::default()), ..UploadSpec::fixed(CodecSpec::Bf16, 0.0) },
        merge: MergeSpec::FedAsync { alpha: 0.6, staleness, participation: false },
        target: TargetSpec::default(),
        ..spec()
    }
}

/// The one model that has figures of its own.
pub(crate) fn gpt_spec() -> RunSpec {
    let (context, layers, heads, width) = (128, 3, 4, 64);
    let model = ModelSpec { kind: ModelKind::Gpt, context, layers, heads, width, ..ModelSpec::default() };
    let pod = StagesSpec {
        stages: StageCount::Exactly(4),
        schedule: ScheduleKind::Pipelined,
        weights: Some(Weights::TwoVersions),
        micro_batches: Some(8),
        activations: Activations::Bf16,
        labels: Labels::Travel,
        deadline_s: 5.0,
    };
    RunSpec { model, pod: Some(PodSpec::Stages(pod)), ..other_spec() }
}

/// Leases with a size of their own, and each kind of schedule.
pub(crate) fn planned_specs() -> [RunSpec; 3] {
    let (versions, examples) = (ScheduleUnit::Versions, ScheduleUnit::Examples);
    let cosine = LrSchedule::Cosine { over: examples, warmup: 50, length: 1_000, final_fraction: 0.125 };
    let step = LrSchedule::Step { over: versions, warmup: 0, every: 300, factor: 0.5 };
    [LrSchedule::Constant { over: versions, warmup: 50 }, cosine, step].map(|schedule| {
        let (target_round_s, max_local_steps) = (Some(2.5), Some(100));
        let train = TrainSpec { target_round_s, max_local_steps, schedule: Some(schedule), ..other_spec().train };
        RunSpec { train, ..other_spec() }
    })
}

pub(crate) fn lease() -> Lease {
    Lease {
        id: LeaseId(9),
        agent: AGENT,
        epoch: Epoch(2),
        branch: BRANCH,
        base_version: ModelVersion(41),
        base_digest: DIGEST,
        seed: 0x0123_4567_89AB_CDEF,
        expires_at_ms: 1_700_000_060_000,
        plan: Plan {
            local_steps: 20,
            lr_factor: 0.5,
            round: 12,
            progress: Some(0.25),
            weight: 1.0,
            base_dot: true,
            codec: CodecSpec::top_k(0.25),
            residual_ratio: true,
            memory: None,
        },
    }
}

pub(crate) fn evaluation() -> Evaluation {
    Evaluation { agent: AGENT, version: ModelVersion(40), accuracy: 0.75, loss: 0.5, num_examples: 10_000 }
}

fn aggregate() -> Aggregate {
    Aggregate {
        version: ModelVersion(40),
        accuracy: 0.75,
        loss: 0.5,
        evaluators: 2,
        num_examples: 10_000,
        covered_examples: 10_001,
        known_examples: 12_000,
    }
}

pub(crate) fn key() -> UpdateKey {
    UpdateKey { run: RUN, agent: AGENT, epoch: Epoch(2), seq: UpdateSeq(5) }
}

pub(crate) fn meta() -> UpdateMeta {
    UpdateMeta {
        key: key(),
        branch: BRANCH,
        lease: LeaseId(9),
        base_version: ModelVersion(41),
        base_digest: DIGEST,
        codec: CodecId(2),
        payload_bytes: 1_234,
        payload_digest: Digest([0x66; 32]),
        num_examples: 640,
        local_steps: 20,
        train_loss: 0.25,
        compute_ms: 1_500,
        base_dot: Some(-0.75),
        residual_ratio: Some(2.5),
        memory: None,
    }
}

pub(crate) fn transfer() -> TransferManifest {
    TransferManifest { bytes: (1 << 20) + 5, chunks: vec![Digest([0x77; 32]), Digest([0x88; 32])], sections: vec![] }
}

/// That of an update of a pod, with what its helper has.
fn in_sections() -> (TransferManifest, PodSections) {
    let parts = vec![None, Some(1), None];
    let sections = PodSections { mark: PodMark { lease: lease().id, attempt: 2 }, parts };
    let chunks = vec![Digest([0x77; 32]), Digest([0x88; 32]), Digest([0x99; 32])];
    (TransferManifest { bytes: 700_000, chunks, sections: vec![50_000, 650_000] }, sections)
}

pub(crate) fn agent_messages() -> Vec<AgentMessage> {
    let hello = AgentHello {
        run: RUN,
        branch: Some(BRANCH),
        incarnation: INCARNATION,
        software: "0.1.0".into(),
        train_examples: 600,
        eval_examples: 100,
        device: "cpu".into(),
        pod: None,
    };
    let mark = PodMark { lease: lease().id, attempt: 2 };
    let offer = PodOffer {
        address: "10.0.0.7:4434".into(),
        memory_bytes: 1 << 30,
        flops_per_s: 5_000_000_000,
        site: "east".into(),
        at_work: Some(mark),
    };
    let problem = PodProblem { member: Some(AGENT), reason: "stage 1 is silent".into() };
    vec![
        AgentMessage::Hello(AgentHello { pod: Some(offer), ..hello.clone() }),
        AgentMessage::PodEnded { mark, problem: Some(problem) },
        AgentMessage::Hello(hello),
        AgentMessage::OfferModel { manifest: manifest(), digest: DIGEST, transfer: transfer() },
        AgentMessage::RequestLease,
        AgentMessage::FetchModel {
            version: ModelVersion(41),
            digest: DIGEST,
            purpose: FetchPurpose::Train,
            held: Some((ModelVersion(39), DIGEST)),
            missing: Some(Missing::all(11)),
        },
        AgentMessage::FetchModel {
            version: ModelVersion(41),
            digest: DIGEST,
            purpose: FetchPurpose::Evaluate,
            held: None,
            missing: None,
        },
        AgentMessage::OfferUpdate { meta: meta(), transfer: transfer(), sections: None },
        AgentMessage::OfferUpdate {
            meta: meta(),
            transfer: in_sections().0,
            sections: Some(Box::new(in_sections().1)),
        },
        AgentMessage::ReturnLease { lease: LeaseId(9), why: LeaseEnd::Returned },
        AgentMessage::Evaluated { evaluation: evaluation(), cost_ms: 1_500 },
        AgentMessage::Progress { lease: LeaseId(9), steps: 12, examples_per_s: 4_000.0 },
        AgentMessage::Renew { csr_der: vec![0x30, 0x01] },
        AgentMessage::Goodbye { reason: "stopped".into() },
        AgentMessage::EvaluationFailed { version: ModelVersion(40), reason: "no GPU".into() },
        AgentMessage::PartNotHere { transfer: DIGEST },
    ]
}

pub(crate) fn coordinator_messages() -> Vec<CoordinatorMessage> {
    let welcome = Welcome {
        run: RUN,
        branch: BRANCH,
        agent: AGENT,
        name: "clinic".into(),
        epoch: Epoch(2),
        spec: spec().for_agents(),
        model: Some((manifest(), DIGEST)),
        state: RunPhase::Running,
    };
    let mut messages = vec![CoordinatorMessage::Welcome(Box::new(welcome))];
    let rejections = [
        Rejection::Revoked,
        Rejection::WrongRun { run: RUN },
        Rejection::Unknown,
        Rejection::Replaced,
        Rejection::Protocol("lease request before hello".into()),
        Rejection::Busy,
        Rejection::OtherModel("tensor 0".into()),
        Rejection::OldCertificate,
    ];
    messages.extend(rejections.map(CoordinatorMessage::Rejected));
    let model =
        |form| CoordinatorMessage::Model { version: ModelVersion(41), digest: DIGEST, form, transfer: transfer() };
    messages.extend([
        CoordinatorMessage::NeedChunks { transfer: DIGEST, missing: Missing::all(11) },
        CoordinatorMessage::ModelReady { manifest: manifest(), digest: DIGEST },
        CoordinatorMessage::Lease { lease: lease(), evaluate: true },
        CoordinatorMessage::NoLease { state: RunPhase::Pending },
        CoordinatorMessage::Evaluate { version: ModelVersion(40), digest: DIGEST },
        model(ModelForm::Snapshot),
        model(ModelForm::Track { from: ModelVersion(39) }),
        model(ModelForm::Xor { from: ModelVersion(39) }),
        model(ModelForm::Chain { from: ModelVersion(39) }),
        CoordinatorMessage::ModelGone { version: ModelVersion(3), digest: DIGEST },
    ]);
    let accepted = Verdict::Accepted { position: Position(77), version: ModelVersion(42), weight: 0.125, staleness: 1 };
    let refused = RefusalReason::ALL.map(|reason| Verdict::Refused { reason });
    let verdict = |verdict| CoordinatorMessage::Verdict { key: key(), verdict };
    messages.extend([accepted].into_iter().chain(refused).map(verdict));
    messages.extend([
        CoordinatorMessage::StateChanged { state: RunPhase::Finished },
        CoordinatorMessage::Renewed {
            certificate_der: vec![0x30, 0x02],
            ca_ders: vec![vec![0x30, 0x06], vec![0x30, 0x07]],
        },
        CoordinatorMessage::LeaseDeferred,
        CoordinatorMessage::Pod(Box::new(PodRound {
            mark: PodMark { lease: lease().id, attempt: 1 },
            owner: AGENT,
            parts: vec![PodPart { end: 3, agent: AGENT }, PodPart { end: 5, agent: AgentId([9; 16]) }],
            peers: vec![PodPeer { agent: AgentId([9; 16]), address: "10.0.0.9:4434".into() }],
            plan: lease().plan,
            spec: DIGEST,
        })),
        CoordinatorMessage::PodOver { mark: PodMark { lease: lease().id, attempt: 1 } },
        CoordinatorMessage::NeedPart {
            mark: PodMark { lease: lease().id, attempt: 2 },
            part: 1,
            transfer: DIGEST,
            bytes: 600_000,
            first: 1,
            missing: Missing::all(1),
        },
        CoordinatorMessage::PartDone { mark: PodMark { lease: lease().id, attempt: 2 } },
        CoordinatorMessage::RenewNow { key: RenewalKey::Same },
        CoordinatorMessage::RenewNow { key: RenewalKey::New },
    ]);
    messages
}

pub(crate) fn join_request() -> JoinRequest {
    JoinRequest { token_secret: [0x99; 32], csr_der: vec![0x30, 0x03, 0x04] }
}

pub(crate) fn join_responses() -> Vec<JoinResponse> {
    let refusals = [
        JoinRefusal::UnknownToken,
        JoinRefusal::UsedToken,
        JoinRefusal::ExpiredToken,
        JoinRefusal::BadRequest,
        JoinRefusal::Revoked,
        JoinRefusal::Full,
        JoinRefusal::SeveralRuns,
    ];
    let enrolled = JoinResponse::Enrolled {
        run: RUN,
        agent: AGENT,
        name: "clinic".into(),
        certificate_der: vec![0x30, 0x05],
        ca_der: vec![0x30, 0x06],
        next_ca_der: Some(vec![0x30, 0x07]),
    };
    [enrolled].into_iter().chain(refusals.map(JoinResponse::Refused)).collect()
}

pub(crate) fn proposals() -> Vec<Propose> {
    [Purpose::Join, Purpose::Agent, Purpose::Operator, Purpose::Runs, Purpose::Probe, Purpose::Facts]
        .map(|purpose| Propose { min: 1, max: 2, purpose })
        .to_vec()
}

pub(crate) fn agreements() -> Vec<Agree> {
    vec![Agree::Version(1), Agree::Unsupported { min: 1, max: 2 }, Agree::Forbidden]
}

pub(crate) fn operator_requests() -> Vec<OperatorRequest> {
    let of_runs = run_requests().into_iter().map(|request| OperatorRequest::Run { run: None, request });
    let of_one = OperatorRequest::Run { run: Some("clinics".into()), request: RunRequest::Status };
    let of_the_registry = registry_requests().into_iter().map(OperatorRequest::Registry);
    let of_the_process = runs_requests().into_iter().map(OperatorRequest::Runs);
    let of_searches = search_requests().into_iter().map(OperatorRequest::Search);
    of_runs.chain([of_one]).chain(of_the_registry).chain(of_the_process).chain(of_searches).collect()
}

pub(crate) fn search_requests() -> Vec<SearchRequest> {
    vec![
        SearchRequest::Start { path: "lr.toml".into(), search: "[search]".into(), base: "[run]".into() },
        SearchRequest::Status { name: Some("lr".into()) },
        SearchRequest::Stop { name: "lr".into() },
        SearchRequest::List,
        SearchRequest::Export { name: None },
    ]
}

pub(crate) fn runs_requests() -> Vec<RunsRequest> {
    vec![
        RunsRequest::Create { name: "clinics".into(), config: "[run]".into(), submit_token: Some("job 7".into()) },
        RunsRequest::List,
        RunsRequest::Delete { run: "clinics".into() },
    ]
}

pub(crate) fn run_requests() -> Vec<RunRequest> {
    vec![
        RunRequest::Status,
        RunRequest::Pause,
        RunRequest::Resume,
        RunRequest::Stop,
        RunRequest::AgentsList,
        RunRequest::CheckpointList,
        RunRequest::CheckpointVerify,
        RunRequest::CheckpointExport { version: Some(ModelVersion(40)) },
    ]
}

pub(crate) fn registry_requests() -> Vec<RegistryRequest> {
    let of_tokens = vec![
        RegistryRequest::AgentRevoke { agent: "clinic".into() },
        RegistryRequest::TokenCreate {
            name: Some("clinic".into()),
            ttl_ms: 3_600_000,
            uses: 3,
            secret_digest: [0xAA; 32],
            runs: vec!["clinics".into()],
        },
        RegistryRequest::TokenList,
        RegistryRequest::TokenRevoke { id: "aabbccdd".into() },
    ];
    let of_authorities = vec![
        RegistryRequest::AgentRotate { agent: Some("clinic".into()) },
        RegistryRequest::CaRotate,
        RegistryRequest::CaStatus,
        RegistryRequest::CaFinish { force: true },
    ];
    [of_tokens, page::requests(), of_authorities].concat()
}

pub(crate) fn operator_responses() -> Vec<OperatorResponse> {
    vec![
        OperatorResponse::Done("paused".into()),
        OperatorResponse::Json("{}".into()),
        OperatorResponse::ModelFollows {
            served: Served::Average,
            version: ModelVersion(40),
            manifest_json: "[]".into(),
            bytes: 8_012,
        },
        OperatorResponse::Failed("no space".into()),
        OperatorResponse::NotFound("no agent named clinic".into()),
        OperatorResponse::Conflict("the run has ended".into()),
    ]
}

pub(crate) fn chunk_header() -> ChunkHeader {
    ChunkHeader { transfer: DIGEST, index: 3, session: 8 }
}

pub(crate) fn runs_wanted() -> Vec<RunsWanted> {
    vec![RunsWanted::All, RunsWanted::Named(vec!["digits".into(), "text".into()])]
}

pub(crate) fn runs_listed() -> RunsListed {
    RunsListed { runs: vec![RunInfo { run: RUN, name: "digits".into(), weight: 3 }] }
}

pub(crate) fn record_bodies() -> Vec<RecordBody> {
    let recall = RecallInputs { active: 11, scale: 0.5, recalled: vec![Recalled { agent: AGENT, factor: 0.25 }] };
    let contribution = Contribution {
        meta: meta(),
        credited_examples: 600,
        staleness: 1,
        weight: 0.125,
        mean_weight: 1_200,
        norm: 2.5,
        recall: Some(recall),
        memory: None,
        transfer_ms: Some(350),
    };
    let memory = MemoryInputs { active: 11, step: 0.75, begins: true, keeps: true, left: vec![AGENT] };
    let of_a_memory = Contribution {
        meta: UpdateMeta { memory: Some(MemoryMark(DIGEST)), ..meta() },
        recall: None,
        memory: Some(memory),
        ..contribution.clone()
    };
    let mut bodies = vec![
        RecordBody::Genesis {
            run: RUN,
            branch: BRANCH,
            spec: Box::new(spec()),
            manifest: manifest(),
            model: DIGEST,
            norm: 6.75,
        },
        RecordBody::ConfigChanged { spec: Box::new(other_spec()) },
        RecordBody::AgentJoined { agent: AGENT, name: "clinic".into() },
        RecordBody::AgentRevoked { agent: AGENT },
        RecordBody::EpochStarted {
            agent: AGENT,
            epoch: Epoch(2),
            incarnation: INCARNATION,
            examples_held: 600,
            eval_examples: 150,
        },
        RecordBody::LeaseGranted(lease()),
    ];
    let ends = [LeaseEnd::Expired, LeaseEnd::Returned, LeaseEnd::Superseded];
    bodies.extend(ends.map(|why| RecordBody::LeaseEnded { lease: LeaseId(9), why }));
    bodies.extend([
        RecordBody::Contribution(Box::new(contribution)),
        RecordBody::Contribution(Box::new(of_a_memory)),
        RecordBody::Refused {
            key: key(),
            payload_digest: Digest([0x66; 32]),
            lease: LeaseId(9),
            reason: RefusalReason::Stale,
        },
        RecordBody::Evaluated(evaluation()),
        RecordBody::Imported { model: DIGEST, version: ModelVersion(43), norm: 7.5, copied: None },
        RecordBody::Imported {
            model: DIGEST,
            version: ModelVersion(44),
            norm: 7.5,
            copied: Some(CopyMark { rung: 2, from: RUN, version: ModelVersion(96) }),
        },
        RecordBody::Branched {
            branch: BRANCH,
            from: Position(70),
            version: ModelVersion(40),
            norm: 7.25,
            examples: 25_600,
        },
        RecordBody::Paused,
        RecordBody::Resumed,
    ]);
    let reasons = [
        FinishReason::Accuracy { reached: 0.96 },
        FinishReason::Loss { reached: 0.125 },
        FinishReason::Versions,
        FinishReason::WallTime,
        FinishReason::Stopped,
        FinishReason::NonFinite,
    ];
    bodies.extend(reasons.map(|reason| RecordBody::Finished { reason, result: ModelVersion(43) }));
    bodies.push(RecordBody::ConfigChanged { spec: Box::new(gpt_spec()) });
    let (codec, memory) = (CodecSpec::Int4, Some(MemoryMark(DIGEST)));
    let unplanned = Plan { progress: None, codec, memory, ..lease().plan };
    bodies.push(RecordBody::LeaseGranted(Lease { plan: unplanned, ..lease() }));
    bodies.extend(planned_specs().map(|spec| RecordBody::ConfigChanged { spec: Box::new(spec) }));
    bodies.extend([
        RecordBody::EvaluationFailed { agent: AGENT, version: ModelVersion(40), reason: "no GPU".into() },
        RecordBody::Aggregated(aggregate()),
        RecordBody::ModelsSent(vec![ModelsSent { agent: AGENT, models: 3, bytes: 900, evaluation_bytes: 350 }]),
        RecordBody::Reopened,
        RecordBody::Closed(Close {
            version: ModelVersion(42),
            contributions: 3,
            why: CloseReason::Filled,
            is_base: true,
        }),
        RecordBody::Closed(Close {
            version: ModelVersion(43),
            contributions: 4,
            why: CloseReason::Complete,
            is_base: true,
        }),
        RecordBody::Closed(Close {
            version: ModelVersion(44),
            contributions: 2,
            why: CloseReason::Deadline,
            is_base: false,
        }),
        RecordBody::Published(Publication {
            version: ModelVersion(42),
            form: PublicationForm::Snapshot,
            digest: DIGEST,
        }),
        RecordBody::Published(Publication { version: ModelVersion(44), form: PublicationForm::Track, digest: DIGEST }),
    ]);
    bodies
}

pub(crate) fn records() -> Vec<Record> {
    let record = |(position, body): (u64, RecordBody)| {
        let payload = if matches!(body, RecordBody::Contribution(_)) { &b"payload"[..] } else { b"" };
        Record::new(Position(position), 1_700_000_000_000 + position, body, payload.into())
    };
    (0..).zip(record_bodies()).map(record).collect()
}

/// The parameters of the codec samples: a spike in every tenth place of the large tensor, falling in size.
pub(crate) fn values() -> Vec<f32> {
    (0..2_003u16).map(|i| if i % 10 == 3 || i >= 2_000 { 1.5 - f32::from(i) / 1_024.0 } else { 0.0 }).collect()
}
