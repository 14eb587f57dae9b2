//! The configuration of a world's run.

use anabranch_common::codec::CodecSpec;
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::barrier::Barrier;
use anabranch_common::merge::staleness::Staleness;
use anabranch_common::spec::{
    Activations, AdaptiveSpec, AdmitSpec, DownlinkSpec, EvaluateSpec, LrSchedule, ModelKind, ModelSpec, OptimizerSpec,
    PodSpec, ReplicasSpec, RunSpec, ScheduleUnit, StageCount, StagesSpec, TargetSpec, TrackSpec, TrainSpec, UploadSpec,
};

use super::learner;
use super::schedule::{PodPlan, ReplicasPlan, Rule, Schedule, StagesPlan, Task, TrackPlan};

/// Steps of a local round that nobody sized: of the native trainer, and of agents whose rounds are sized.
const LOCAL_STEPS: u32 = 4;
/// The same of rounds that pods compute: each takes many parcels.
const LOCAL_STEPS_OF_PODS: u32 = 2;

fn local_steps(schedule: &Schedule) -> u32 {
    if schedule.pods.is_some() {
        return LOCAL_STEPS_OF_PODS;
    }
    if schedule.task == Task::Native || schedule.target_round_ms > 0 { LOCAL_STEPS } else { 1 }
}

/// Worlds with sized leases and without attackers have a schedule too.
fn lr_schedule(schedule: &Schedule) -> Option<LrSchedule> {
    let honest = schedule.agents.iter().all(|agent| agent.hostile.is_none());
    let (over, warmup) = (ScheduleUnit::Examples, 300);
    let cosine = LrSchedule::Cosine { over, warmup, length: 6_000, final_fraction: 0.25 };
    let step = LrSchedule::Step { over: ScheduleUnit::Versions, warmup: 0, every: 40, factor: 0.5 };
    (honest && schedule.target_round_ms > 0).then_some(if schedule.lossy { cosine } else { step })
}

/// Worlds that learn from less than whole updates have the average of their models served, whatever their rule.
fn merge(schedule: &Schedule, staleness: Staleness) -> MergeSpec {
    let rule = rule(schedule, staleness);
    if schedule.lossy && schedule.task == Task::Quadratic { rule.averaged() } else { rule }
}

fn rule(schedule: &Schedule, staleness: Staleness) -> MergeSpec {
    let (buffer_size, participation) = (schedule.buffer.max(1), schedule.lossy);
    let deadline_s = (schedule.round_deadline_ms > 0).then(|| schedule.round_deadline_ms as f64 / 1000.0);
    let barrier = Barrier { quorum: 0.5, deadline_s };
    match schedule.rule {
        Some(Rule::Recall) => MergeSpec::Recall { step: 23.0, recall: true, average: true },
        Some(Rule::DelayedNesterov) => {
            let (server_lr, momentum) = (0.5, 0.5);
            MergeSpec::DelayedNesterov { buffer_size, server_lr, momentum, staleness, participation }
        }
        Some(Rule::Fadas) => {
            let (server_lr, beta_1, beta_2, epsilon, tau_c) = (0.5, 0.9, 0.99, 1e-3, 1);
            MergeSpec::Fadas { buffer_size, server_lr, beta_1, beta_2, epsilon, tau_c }
        }
        Some(Rule::Rescaled) => MergeSpec::Rescaled { alpha: 0.3, staleness },
        Some(Rule::Ef21) => MergeSpec::Ef21 { server_lr: 0.5 },
        Some(Rule::FedAvg) => MergeSpec::FedAvg { server_lr: 0.7, barrier },
        Some(Rule::FedAvgM) => MergeSpec::FedAvgM { server_lr: 0.3, momentum: 0.5, barrier },
        Some(Rule::FedAdam) => {
            let (server_lr, beta_1, beta_2, tau) = (0.05, 0.9, 0.99, 1e-2);
            MergeSpec::FedAdam { server_lr, beta_1, beta_2, tau, barrier }
        }
        None if buffer_size == 1 => {
            let alpha = if schedule.task == Task::Ledger { 1.0 } else { 0.3 };
            MergeSpec::FedAsync { alpha, staleness, participation }
        }
        None => MergeSpec::FedBuff { buffer_size, server_lr: 0.5, staleness, participation },
    }
}

fn track(TrackPlan { every, sparse }: TrackPlan) -> TrackSpec {
    TrackSpec { every, codec: if sparse { CodecSpec::top_k(0.5) } else { CodecSpec::Int8 } }
}

fn pod(plan: PodPlan) -> PodSpec {
    let deadline_s = plan.deadline_ms() as f64 / 1000.0;
    let StagesPlan { stages, schedule, labels, .. } = match plan {
        PodPlan::Replicas(ReplicasPlan { members, .. }) => {
            return PodSpec::Replicas(ReplicasSpec { members, deadline_s });
        }
        PodPlan::Stages(plan) => plan,
    };
    PodSpec::Stages(StagesSpec {
        stages: StageCount::Exactly(stages),
        schedule,
        weights: None,
        micro_batches: None,
        activations: Activations::F32,
        labels,
        deadline_s,
    })
}

/// The run's configuration.
pub(super) fn run_spec(schedule: &Schedule) -> RunSpec {
    let (ledger, native) = (schedule.task == Task::Ledger, schedule.task == Task::Native);
    let staleness = if schedule.lossy { Staleness::Polynomial { a: 0.5 } } else { Staleness::Constant };
    let codec = if schedule.lossy { CodecSpec::top_k(0.5) } else { CodecSpec::F32 };
    // Of 16 values, 4 and 1.
    let harder = [0.25, 0.0625].map(CodecSpec::top_k).to_vec();
    let adaptive = schedule.adaptive.then(|| AdaptiveSpec { harder, ..AdaptiveSpec::default() });
    RunSpec {
        name: "world".into(),
        seed: 1,
        model: ModelSpec {
            // The ledger and the quadratic are flat vectors.
            kind: if native { ModelKind::Mlp } else { ModelKind::Custom },
            input: vec![u64::from(if native { learner::INPUTS } else { schedule.params })],
            classes: if native { learner::CLASSES } else { 2 },
            hidden: match (native, schedule.pods.is_some()) {
                (false, _) => vec![],
                (true, false) => vec![8],
                // As many layers as the largest pod has parts.
                (true, true) => vec![8, 6, 5],
            },
            input_scale: 1.0,
            ..ModelSpec::default()
        },
        train: TrainSpec {
            local_steps: local_steps(schedule),
            batch_size: if native { 8 } else { 1 },
            optimizer: OptimizerSpec::Sgd { lr: 0.1, momentum: 0.0 },
            keep_optimizer_state: false,
            target_round_s: (schedule.target_round_ms > 0).then(|| schedule.target_round_ms as f64 / 1000.0),
            max_local_steps: None,
            schedule: lr_schedule(schedule),
            proximal_mu: 0.0,
        },
        upload: UploadSpec { adaptive, ..UploadSpec::fixed(codec, if schedule.lossy { 1.0 } else { 0.0 }) },
        merge: merge(schedule, staleness),
        admit: AdmitSpec {
            max_staleness: schedule.max_staleness,
            max_examples: 1_000,
            // What `init` writes.
            max_norm_ratio: if ledger { 0.0 } else { 10.0 },
            clip_norm_ratio: if ledger { 0.0 } else { 1.0 },
            max_influence: if ledger { 0.0 } else { 1.5 },
            rare_norm_ratio: if schedule.rule == Some(Rule::Recall) { 10.0 } else { 0.0 },
        },
        downlink: DownlinkSpec { track: schedule.track.map(track), share_updates: schedule.share_updates },
        pod: schedule.pods.map(pod),
        evaluate: EvaluateSpec { every_versions: 10, every_s: 1e9 },
        target: TargetSpec::default(),
    }
}
