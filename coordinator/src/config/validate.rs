//! Which values make sense. A value is named by its dotted key, so that the caller can say on which line it stands.

use anabranch_common::codec::CodecSpec;
use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_common::schema;
use anabranch_common::spec::{
    AdaptiveSpec, ModelError, ModelKind, ModelProblem, ModelSpec, OptimizerSpec, PolicyError, RunSpec, ScheduleProblem,
    TrainSpec, UploadSpec,
};

use super::{Config, STORE_SCHEMES, pods};
use crate::identity;

/// A key and what is wrong with its value.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) key: &'static str,
    pub(super) problem: String,
}

pub(super) type Checked = Result<(), Problem>;

pub(super) fn ensure(holds: bool, key: &'static str, problem: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Problem { key, problem: problem() }) }
}

fn positive(value: f64, key: &'static str) -> Checked {
    ensure(value.is_finite() && value > 0.0, key, || format!("must be more than 0, but is {value}"))
}

fn not_negative(value: f64, key: &'static str) -> Checked {
    ensure(value.is_finite() && value >= 0.0, key, || format!("must be 0 or more, but is {value}"))
}

fn share(value: f64, key: &'static str) -> Checked {
    ensure(value > 0.0 && value <= 1.0, key, || format!("must be more than 0 and at most 1, but is {value}"))
}

fn below_one(value: f64, key: &'static str) -> Checked {
    ensure((0.0..1.0).contains(&value), key, || format!("must be at least 0 and less than 1, but is {value}"))
}

fn at_least_one(value: u64, key: &'static str) -> Checked {
    ensure(value >= 1, key, || "must be at least 1, but is 0".to_owned())
}

/// Checks every value.
pub(super) fn check(config: &Config) -> Checked {
    spec(&config.spec)?;
    ensure((1..=limits::RUN_WEIGHT).contains(&config.weight), "run.weight", || {
        format!("must be between 1 and {}, but is {}", limits::RUN_WEIGHT, config.weight)
    })?;
    at_least_one(config.quota.disk_bytes.unwrap_or(1), "quota.disk_bytes")?;
    if let Some(url) = &config.store.url {
        store_url(url)?;
    }
    let server = &config.server;
    ensure(server.listen.port() != 0, "server.listen", || {
        "needs a fixed port: agents could not find a changing one".to_owned()
    })?;
    for name in &server.names {
        ensure(identity::is_server_name(name), "server.names", || {
            format!("holds {name:?}, which is neither a host name nor an IP address")
        })?;
        if let Some(problem) = server.unreachable_by(name) {
            return Err(Problem { key: "server.names", problem });
        }
    }
    ensure((1..=825).contains(&server.agent_certificate_days), "server.agent_certificate_days", || {
        format!("must be between 1 and 825 days, but is {}", server.agent_certificate_days)
    })?;
    positive(config.schedule.lease_ttl_s, "schedule.lease_ttl_s")?;
    sizes(&config.spec.train, config.schedule.lease_ttl_s)?;
    if let Some(pod) = &config.spec.pod {
        pods::check(&config.spec, pod, config.schedule.lease_ttl_s)?;
    }
    ensure((10..=60_000).contains(&config.schedule.tick_ms), "schedule.tick_ms", || {
        format!("must be between 10 and 60000 milliseconds, but is {}", config.schedule.tick_ms)
    })?;
    let checkpoint = &config.checkpoint;
    not_negative(checkpoint.every_s, "checkpoint.every_s")?;
    ensure(checkpoint.every_s > 0.0 || checkpoint.every_versions > 0, "checkpoint.every_versions", || {
        "and checkpoint.every_s are both 0: there would never be a checkpoint".to_owned()
    })?;
    ensure(checkpoint.keep >= 2, "checkpoint.keep", || {
        format!("must be at least 2, so that one is whole while the next is written, but is {}", checkpoint.keep)
    })
}

fn store_url(url: &str) -> Checked {
    let rest = STORE_SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme));
    ensure(rest.is_some_and(|rest| !rest.trim_matches('/').is_empty()), "store.url", || {
        format!("must be s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIR, but is {url:?}")
    })?;
    // Whoever has put a password there finds it in logs and backups.
    ensure(!rest.unwrap_or_default().contains(['@', '?', '#']), "store.url", || {
        "holds more than a bucket and a prefix: credentials come from the environment alone".to_owned()
    })
}

fn spec(spec: &RunSpec) -> Checked {
    ensure(is_label(&spec.name), "run.name", || label_problem(&spec.name))?;
    ensure(schema::encode(spec, limits::RUN_SPEC_BYTES).is_ok(), "model.input", || {
        format!("or model.hidden is too long: a configuration has at most {} bytes as sent", limits::RUN_SPEC_BYTES)
    })?;
    model(&spec.model)?;
    at_least_one(spec.train.local_steps.into(), "train.local_steps")?;
    at_least_one(spec.train.batch_size.into(), "train.batch_size")?;
    match spec.train.optimizer {
        OptimizerSpec::Sgd { lr, momentum } => {
            positive(lr.into(), "train.optimizer.lr")?;
            below_one(momentum.into(), "train.optimizer.momentum")?;
        }
        OptimizerSpec::AdamW { lr, weight_decay, beta_1, beta_2 } => {
            positive(lr.into(), "train.optimizer.lr")?;
            not_negative(weight_decay.into(), "train.optimizer.weight_decay")?;
            below_one(beta_1.into(), "train.optimizer.beta_1")?;
            below_one(beta_2.into(), "train.optimizer.beta_2")?;
        }
    }
    if let Some(schedule) = &spec.train.schedule {
        schedule.check().map_err(|ScheduleProblem { key, found, expected }| Problem {
            key,
            problem: format!("is {found}, expected {expected}"),
        })?;
    }
    if let CodecSpec::TopK { fraction, .. } = spec.upload.codec {
        share(fraction.into(), "upload.codec.fraction")?;
    }
    levels(&spec.upload)?;
    policy(spec)?;
    let decay = f64::from(spec.upload.feedback_decay);
    ensure((0.0..=1.0).contains(&decay), "upload.feedback_decay", || {
        format!("must be between 0 and 1, but is {decay}")
    })?;
    merge(&spec.merge)?;
    behind_a_barrier(spec)?;
    at_least_one(spec.admit.max_examples, "admit.max_examples")?;
    for (value, key, off) in [
        (spec.admit.max_norm_ratio, "admit.max_norm_ratio", "admit any norm"),
        (spec.admit.clip_norm_ratio, "admit.clip_norm_ratio", "scale none down"),
        (spec.admit.max_influence, "admit.max_influence", "any share"),
        (spec.admit.rare_norm_ratio, "admit.rare_norm_ratio", "no difference between agents"),
    ] {
        ensure(value == 0.0 || (value.is_finite() && value >= 1.0), key, || {
            format!("must be 0 ({off}) or at least 1, but is {value}")
        })?;
    }
    if let Some(track) = &spec.downlink.track {
        let every = track.every.unwrap_or(1);
        at_least_one(every, "downlink.track.every")?;
        ensure(every == 1 || spec.merge.barrier().is_none(), "downlink.track.every", || {
            format!(
                "must be 1 or absent with a merge.strategy of rounds, which begin from every version, but is {every}"
            )
        })?;
        ensure(every <= spec.admit.max_staleness.saturating_add(1), "downlink.track.every", || {
            format!("must be at most admit.max_staleness + 1, but is {every}: updates would be stale before")
        })?;
        if let CodecSpec::TopK { fraction, .. } = track.codec {
            share(fraction.into(), "downlink.track.codec.fraction")?;
        }
    }
    not_negative(spec.evaluate.every_s, "evaluate.every_s")?;
    if let Some(accuracy) = spec.target.accuracy {
        share(accuracy, "target.accuracy")?;
    }
    if let Some(loss) = spec.target.loss {
        not_negative(loss, "target.loss")?;
    }
    if let Some(versions) = spec.target.versions {
        at_least_one(versions, "target.versions")?;
    }
    spec.target.wall_s.map_or(Ok(()), |wall_s| positive(wall_s, "target.wall_s"))
}

/// Codecs for thin lines: each is of use only if it is smaller than the one before.
fn levels(upload: &UploadSpec) -> Checked {
    let Some(AdaptiveSpec { harder, transfer_share }) = &upload.adaptive else { return Ok(()) };
    share(*transfer_share, "upload.adaptive.transfer_share")?;
    ensure((1..=limits::CODEC_LEVELS).contains(&harder.len()), "upload.adaptive.harder", || {
        format!("must name 1 to {} codecs, but names {}", limits::CODEC_LEVELS, harder.len())
    })?;
    let bits = |level: usize| upload.level(level).bits_per_value();
    for (index, codec) in harder.iter().enumerate() {
        ensure(codec.validate().is_ok(), "upload.adaptive.harder", || {
            format!("must name fractions of more than 0 and at most 1, but codec {} of it has another", index + 1)
        })?;
        ensure(bits(index + 1) < bits(index), "upload.adaptive.harder", || {
            format!(
                "must name smaller codecs one after another, but codec {} of it is no smaller than the one before",
                index + 1
            )
        })?;
    }
    Ok(())
}

/// Codecs by tensor. The tensors of a custom model are not known yet: its first model is held against them.
fn policy(spec: &RunSpec) -> Checked {
    let policy = &spec.upload.policy;
    let told = |error: PolicyError| Problem { key: "upload.policy", problem: error.to_string() };
    policy.validate().map_err(told)?;
    let layers = spec.model.layers().ok().flatten().filter(|_| !policy.is_empty());
    layers.map_or(Ok(()), |layers| policy.check(&layers.manifest).map_err(told))
}

/// How leases are sized. One that takes as long as it counts would always be over before its work comes.
fn sizes(train: &TrainSpec, lease_ttl_s: f64) -> Checked {
    let (Some(target_s), max) = (train.target_round_s, train.max_local_steps) else {
        let max = train.max_local_steps;
        return ensure(max.is_none(), "train.max_local_steps", || {
            format!("is {}, expected no such key without train.target_round_s", max.unwrap_or_default())
        });
    };
    ensure(target_s > 0.0 && target_s < lease_ttl_s, "train.target_round_s", || {
        format!("is {target_s}, expected more than 0 and less than schedule.lease_ttl_s ({lease_ttl_s})")
    })?;
    let most = max.unwrap_or(train.local_steps);
    ensure(most >= train.local_steps, "train.max_local_steps", || {
        format!("is {most}, expected at least train.local_steps ({})", train.local_steps)
    })
}

fn model(model: &ModelSpec) -> Checked {
    let refused =
        |ModelProblem { key, found, expected }| Problem { key, problem: format!("is {found}, expected {expected}") };
    let gpt = model.gpt().map_err(refused)?;
    if let Err(ModelError::Problem(problem)) = model.modules() {
        return Err(refused(problem));
    }
    if gpt.is_some() {
        return Ok(());
    }
    let (input, hidden) = (&model.input, &model.hidden);
    let (shaped, shape) = match model.kind {
        ModelKind::Custom | ModelKind::Gpt => return Ok(()),
        ModelKind::Mlp => ((1..=limits::TENSOR_DIMS).contains(&input.len()), "[features] or [channels, height, width]"),
        ModelKind::Cnn => (input.len() == 3, "[channels, height, width] for a cnn"),
    };
    ensure(shaped && input.iter().all(|extent| *extent > 0), "model.input", || {
        format!("must be {shape}, each at least 1, but is {input:?}")
    })?;
    ensure(model.classes >= 2, "model.classes", || format!("must be at least 2, but is {}", model.classes))?;
    ensure(hidden.iter().all(|width| *width > 0), "model.hidden", || format!("holds a layer of width 0: {hidden:?}"))?;
    ensure(model.kind == ModelKind::Mlp || !model.convs.is_empty() || hidden.len() == 3, "model.hidden", || {
        format!(
            "must be [channels, channels, width of the dense layer] for a cnn without model.convs, but is {hidden:?}"
        )
    })?;
    let widest = input.iter().try_fold(1u64, |all, extent| all.checked_mul(*extent));
    let fits = widest.is_some_and(|features| {
        let widths = [features].into_iter().chain(hidden.iter().copied()).chain([u64::from(model.classes)]);
        let widths: Vec<u64> = widths.collect();
        widths
            .windows(2)
            .try_fold(0u64, |sum, pair| sum.checked_add(pair[0].checked_mul(pair[1])?))
            .is_some_and(|params| params <= limits::MODEL_PARAMS as u64)
    });
    ensure(model.kind == ModelKind::Cnn || fits, "model.hidden", || {
        format!("makes a model of more than {} parameters", limits::MODEL_PARAMS)
    })?;
    positive(model.input_scale.into(), "model.input_scale")?;
    match model.layers() {
        Ok(_) => Ok(()),
        Err(ModelError::Problem(problem)) => Err(refused(problem)),
        Err(ModelError::Manifest(error)) => {
            Err(Problem { key: "model.hidden", problem: format!("makes no model: {error}") })
        }
    }
}

fn merge(merge: &MergeSpec) -> Checked {
    merge.validate().map_err(|error| Problem {
        key: match error.field {
            "alpha" => "merge.alpha",
            "buffer_size" => "merge.buffer_size",
            "server_lr" => "merge.server_lr",
            "beta_1" => "merge.beta_1",
            "beta_2" => "merge.beta_2",
            "epsilon" => "merge.epsilon",
            "momentum" => "merge.momentum",
            "staleness.a" => "merge.staleness.a",
            "step" => "merge.step",
            "mu" => "merge.mu",
            "tau" => "merge.tau",
            "barrier.quorum" => "merge.barrier.quorum",
            "barrier.deadline_s" => "merge.barrier.deadline_s",
            _ => "merge",
        },
        problem: format!("is {}, expected {}", error.found, error.expected),
    })
}

/// What a rule behind a barrier needs of local training.
fn behind_a_barrier(spec: &RunSpec) -> Checked {
    ensure(spec.train.proximal_mu == 0.0, "train.proximal_mu", || {
        "is no key of run.toml: set merge.mu, with merge.strategy = \"fedprox\"".to_owned()
    })?;
    let MergeSpec::SyncSgd { .. } = spec.merge.unaveraged() else { return Ok(()) };
    let (steps, sized) = (spec.train.local_steps, spec.train.target_round_s);
    ensure(steps == 1, "train.local_steps", || {
        format!("is {steps}, expected 1: with merge.strategy = \"sync-sgd\" a round is one step")
    })?;
    ensure(sized.is_none(), "train.target_round_s", || {
        "expected no such key: with merge.strategy = \"sync-sgd\" a round is one step".to_owned()
    })?;
    let plain = matches!(spec.train.optimizer, OptimizerSpec::Sgd { momentum: 0.0, .. });
    ensure(plain, "train.optimizer.kind", || {
        "expected sgd without momentum: merge.strategy = \"sync-sgd\" averages gradients".to_owned()
    })
}

/// Whether `name` can be shown in a table and typed in a shell.
pub(crate) fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= limits::NAME_BYTES
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// What is wrong with a name that is no label.
pub(crate) fn label_problem(name: &str) -> String {
    format!(
        "must be 1 to {} of the characters A-Z a-z 0-9 - _ . but is {:?}",
        limits::NAME_BYTES,
        name.chars().take(80).collect::<String>()
    )
}
