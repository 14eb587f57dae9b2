//! Which values of `[pod]` make sense, with those of the other tables.

use anabranch_common::limits;
use anabranch_common::pod::cut::Table;
use anabranch_common::pod::order::{Order, OrderError};
use anabranch_common::spec::{Labels, ModelKind, PodSpec, ReplicasSpec, RunSpec, ScheduleKind, StageCount, StagesSpec};

use super::validate::{Checked, Problem, ensure};

/// Checks the pods of a run whose other values were checked.
pub(super) fn check(spec: &RunSpec, pod: &PodSpec, lease_ttl_s: f64) -> Checked {
    match pod {
        PodSpec::Stages(pod) => check_stages(spec, pod)?,
        PodSpec::Replicas(pod) => check_replicas(spec, pod)?,
    }
    let deadline_s = pod.deadline_s();
    ensure(deadline_s > 0.0 && deadline_s < lease_ttl_s, "pod.deadline_s", || {
        format!("is {deadline_s}, expected more than 0 and less than schedule.lease_ttl_s ({lease_ttl_s})")
    })?;
    ensure(!spec.train.keep_optimizer_state, "train.keep_optimizer_state", || {
        "expected false with [pod]: members change, and each round of a pod begins with a fresh optimizer".to_owned()
    })
}

/// How many members, each with a batch of its own.
fn check_replicas(spec: &RunSpec, pod: &ReplicasSpec) -> Checked {
    ensure(spec.model.kind != ModelKind::Custom, "pod.kind", || {
        "is \"replicas\", expected \"stages\" with model.kind = \"custom\": replicas are computed in the agents' own processes"
            .to_owned()
    })?;
    let (members, batch) = (pod.members, spec.train.batch_size);
    let most = limits::POD_MEMBERS;
    ensure((2..=most).contains(&(members as usize)), "pod.members", || format!("is {members}, expected 2 to {most}"))?;
    let (joined, most) = (u64::from(members) * u64::from(batch), limits::BATCH_EXAMPLES);
    ensure(joined <= most.into(), "pod.members", || {
        format!(
            "is {members}, which makes joined batches of {joined} examples (train.batch_size = {batch} for each member), \
             expected at most {most}"
        )
    })
}

fn check_stages(spec: &RunSpec, pod: &StagesSpec) -> Checked {
    let Some(Table { rows, .. }) = Table::of(&spec.model).ok().flatten() else {
        let problem = "needs model.modules where model.kind = \"custom\": the coordinator does not know what such a model is \
                       made of (anabranch.torch.module_rows prints the rows)";
        return Err(Problem { key: "pod", problem: problem.to_owned() });
    };
    stages(pod, rows.len())?;
    ensure(spec.model.kind != ModelKind::Custom || pod.labels == Labels::Stay, "pod.labels", || {
        "is \"travel\", expected \"stay\" with model.kind = \"custom\": its targets can be of any shape and type, and never \
         leave the owner's trainer"
            .to_owned()
    })?;
    ensure(pod.weights.is_none() || pod.schedule == ScheduleKind::Pipelined, "pod.weights", || {
        "expected no such key without pod.schedule = \"pipelined\": other schedules have one version of the weights"
            .to_owned()
    })?;
    micro_batches(spec, pod)
}

/// How many members: the first and the last part of the model may be one member's.
fn stages(pod: &StagesSpec, layers: usize) -> Checked {
    let stay = pod.labels == Labels::Stay;
    let StageCount::Exactly(stages) = pod.stages else {
        let parts = pod.parts_of(2);
        ensure(parts as usize <= layers, "pod.stages", || {
            format!("is \"auto\", which makes {parts} parts at least, and the model has {layers} layers")
        })?;
        return ensure(pod.micro_batches.is_some(), "pod.micro_batches", || {
            "expected a number with pod.stages = \"auto\": members come and go, and the micro-batches of a step must not"
                .to_owned()
        });
    };
    let most = limits::POD_MEMBERS - usize::from(stay);
    ensure((2..=most).contains(&(stages as usize)), "pod.stages", || {
        format!("is {stages}, expected 2 to {most} members{}", if stay { " with pod.labels = \"stay\"" } else { "" })
    })?;
    let parts = pod.parts_of(stages);
    ensure(parts as usize <= layers, "pod.stages", || {
        let also = if stay { " (with pod.labels = \"stay\" the owner of the data has two)" } else { "" };
        format!("is {stages}, which makes {parts} parts{also}, and the model has {layers} layers")
    })
}

/// Every micro-batch but the last has the same size, and there are as many as are asked for.
fn micro_batches(spec: &RunSpec, pod: &StagesSpec) -> Checked {
    let (key, count, batch) = ("pod.micro_batches", pod.micro_batches(), spec.train.batch_size);
    let said = if pod.micro_batches.is_some() { "" } else { " where it is not said (one a part of the model)" };
    ensure((1..=batch).contains(&count), key, || {
        format!("is {count}{said}, expected 1 to train.batch_size ({batch})")
    })?;
    let examples = pod.micro_batch_examples(batch);
    let made = batch.div_ceil(examples);
    ensure(made == count, key, || {
        format!("is {count}{said}, but train.batch_size = {batch} in micro-batches of {examples} makes {made}")
    })?;
    // Of pods with any number of members the smallest one has to be possible.
    let parts = pod.parts().unwrap_or_else(|| pod.parts_of(2));
    match Order::new(pod.schedule(), parts, count, 1) {
        Err(OrderError::TooFewMicroBatches { least, .. }) => Err(Problem {
            key,
            problem: format!(
                "is {count}{said}, expected at least {least}: pod.weights = \"2bw\" takes one less than the {parts} parts of \
                 the model"
            ),
        }),
        Err(OrderError::Nothing) | Ok(_) => Ok(()),
    }
}
