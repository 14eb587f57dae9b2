//! `config check`.

use std::path::Path;

use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::{ModelKind, ModelSpec, RunSpec};
use anabranch_io::exit::{self, ExitCode};

use super::stopped::Stopped;
use super::{output, reach};
use crate::cli::ConfigVerb;
use crate::runs;

pub(super) fn config(verb: ConfigVerb) -> anyhow::Result<()> {
    let ConfigVerb::Check { dir, which, output } = verb;
    let (home, config) = reach::load_run_config(&dir.dir, which.run.as_deref())?;
    check_against_the_run(&dir.dir, which.run.as_deref(), &home)?;
    let path = home.join(crate::config::FILE_NAME);
    let advice = crate::config::advice(&config.spec);
    if output.json {
        let object = serde_json::json!({
            "valid": true,
            "warnings": advice,
            "spec": config.spec,
            "weight": config.weight,
            "quota": config.quota,
            "server": config.server,
            "schedule": config.schedule,
            "checkpoint": config.checkpoint,
            "log": config.log,
        });
        return output::print_line(&object.to_string());
    }
    for warning in advice {
        output::hint(&format!("warning: {warning}"));
    }
    output::print(&format!("{} is fine: {}\n", path.display(), summary(&config.spec)))?;
    // Where agents connect is said in the directory of the process alone.
    if home != dir.dir {
        return Ok(());
    }
    let agents = config.server.advertised().join(", ");
    output::print(&format!("listens on {}; agents are sent to {agents}\n", config.server.listen))
}

/// Model and seed have to stay what they were when the run began. While a coordinator has the store open they cannot be
/// compared, and a hint says so.
fn check_against_the_run(dir: &Path, run: Option<&str>, home: &Path) -> anyhow::Result<()> {
    if !home.join(runs::STORE_DIR).exists() {
        return Ok(());
    }
    let looked = Stopped::look(dir).and_then(|mut stopped| {
        stopped.select(run)?;
        Ok(stopped)
    });
    match looked {
        Ok(stopped) => stopped.check_model(),
        Err(error) if exit::code_of(&error) == ExitCode::Locked => {
            output::hint(
                "a coordinator is running here: [model] and run.seed are compared with its run when it starts again",
            );
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The run in a line.
fn summary(spec: &RunSpec) -> String {
    let (name, seed, input, classes) = (&spec.name, spec.seed, &spec.model.input, spec.model.classes);
    let model = match spec.model.kind {
        ModelKind::Custom => "a model that the agents' trainers bring".to_owned(),
        ModelKind::Gpt => {
            let ModelSpec { context, layers, heads, width, .. } = &spec.model;
            format!("gpt of {layers} layers, {heads} heads and width {width} over {context} bytes")
        }
        native => format!("{} {input:?} -> {classes} classes", native.as_str()),
    };
    format!("run {name}, seed {seed}: {model}, merged by {}", rule(&spec.merge))
}

/// The merge rule in a few words.
fn rule(spec: &MergeSpec) -> String {
    match spec {
        MergeSpec::FedAsync { alpha, .. } => format!("fedasync with alpha {alpha}"),
        MergeSpec::FedBuff { buffer_size, .. } => format!("fedbuff of {buffer_size}"),
        MergeSpec::DelayedNesterov { buffer_size, .. } => format!("delayed-nesterov of {buffer_size}"),
        MergeSpec::Fadas { buffer_size, .. } => format!("fadas of {buffer_size}"),
        MergeSpec::Rescaled { alpha, .. } => format!("rescaled with alpha {alpha}"),
        MergeSpec::FedAvg { .. } => "fedavg".to_owned(),
        MergeSpec::FedProx { mu, .. } => format!("fedprox with mu {mu}"),
        MergeSpec::SyncSgd { .. } => "sync-sgd".to_owned(),
        MergeSpec::FedAvgM { momentum, .. } => format!("fedavgm with momentum {momentum}"),
        MergeSpec::FedAdam { server_lr, .. } => format!("fedadam with server_lr {server_lr}"),
        MergeSpec::Recall { step, .. } => format!("recall with step {step}"),
        MergeSpec::Ef21 { server_lr } => format!("ef21 with server_lr {server_lr}"),
        MergeSpec::Averaged(averaged) => format!("{} and averaged", rule(averaged)),
    }
}
