//! `config check`.

use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::{ModelKind, RunSpec};

use super::{output, reach};
use crate::cli::ConfigVerb;

pub(super) fn config(verb: ConfigVerb) -> anyhow::Result<()> {
    let ConfigVerb::Check { dir, output } = verb;
    let config = reach::load_config(&dir.dir)?;
    let path = dir.dir.join(crate::config::FILE_NAME);
    if output.json {
        let object = serde_json::json!({
            "valid": true,
            "spec": config.spec,
            "server": config.server,
            "schedule": config.schedule,
            "checkpoint": config.checkpoint,
            "log": config.log,
        });
        return output::print_line(&object.to_string());
    }
    let agents = config.server.advertised();
    output::print(&format!(
        "{} is fine: {}\nlistens on {}; agents are sent to {agents}\n",
        path.display(),
        summary(&config.spec),
        config.server.listen,
    ))
}

/// The run in a line.
fn summary(spec: &RunSpec) -> String {
    let kind = match spec.model.kind {
        ModelKind::Mlp => "mlp",
        ModelKind::Cnn => "cnn",
    };
    let merge = match &spec.merge {
        MergeSpec::FedAsync { alpha, .. } => format!("fedasync with alpha {alpha}"),
        MergeSpec::FedBuff { buffer_size, .. } => format!("fedbuff of {buffer_size}"),
    };
    let (name, seed, input, classes) = (&spec.name, spec.seed, &spec.model.input, spec.model.classes);
    format!("run {name}, seed {seed}: {kind} {input:?} -> {classes} classes, merged by {merge}")
}
