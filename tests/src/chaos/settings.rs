//! The `run.toml` of a scenario, without `[server]`.

use anabranch_common::spec::PodSpec;
use serde::Serialize;

use super::scenario::{PodTable, Scenario, Task};
use crate::ledger::Settings;

/// Returns the settings of a scenario's run.
///
/// # Errors
/// `[pod]` cannot be written as TOML.
pub(super) fn run_toml(scenario: &Scenario, seed: u64) -> anyhow::Result<String> {
    Ok(match (scenario.task, &scenario.pod) {
        (Task::Ledger, _) => ledger(scenario),
        (Task::Digits, None) => Digits::USUAL.run_toml(scenario, seed),
        (Task::Digits, Some(pod)) => format!("{}\n{}", Digits::PODS.run_toml(scenario, seed), pod_toml(pod)?),
    })
}

fn ledger(scenario: &Scenario) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of leases")]
    let leases =
        ((scenario.seconds + 120.0) * 1000.0 / scenario.round_ms.max(5) as f64) as u64 * u64::from(scenario.agents);
    let settings = Settings {
        coordinates: leases.next_power_of_two().clamp(1 << 12, 1 << 20),
        checkpoint_every: 20,
        keep_journal: scenario.keep_journal,
        lease_ttl_s: scenario.lease_ttl_s,
        target_versions: scenario.versions,
        feedback: false,
    };
    settings.run_toml()
}

/// What differs between the runs of the digits.
struct Digits {
    hidden: &'static str,
    local_steps: u32,
    batch_size: u32,
    codec: &'static str,
    /// `[merge]` and `[admit]`.
    merging: &'static str,
    evaluate: (u32, f64),
    checkpoint_every: u32,
}

impl Digits {
    /// What `init` writes, for a small model.
    const USUAL: Self = Self {
        hidden: "[64]",
        local_steps: 5,
        batch_size: 32,
        codec: "{ kind = \"top-k\", fraction = 0.075, bits = 4 }",
        merging: r#"[merge]
strategy = "recall"

[admit]
max_staleness = 10000
max_examples = 1000000
max_norm_ratio = 10.0
clip_norm_ratio = 1.0
rare_norm_ratio = 10.0
max_influence = 1.5"#,
        evaluate: (2, 0.25),
        checkpoint_every: 20,
    };
    /// A deeper model, whose merges depend on no time: with one owner every update is merged before the next one is begun.
    const PODS: Self = Self {
        hidden: "[64, 64, 64]",
        local_steps: 40,
        batch_size: 16,
        codec: "{ kind = \"top-k\", fraction = 0.05 }",
        merging: r#"[merge]
strategy = "fedasync"
alpha = 1.0
staleness = { fn = "constant" }

[admit]
max_staleness = 10000
max_examples = 1000000
max_norm_ratio = 0.0"#,
        evaluate: (5, 1.0),
        checkpoint_every: 10,
    };

    fn run_toml(&self, scenario: &Scenario, seed: u64) -> String {
        let Self { hidden, local_steps, batch_size, codec, merging, evaluate, checkpoint_every } = self;
        let (every_versions, every_s) = evaluate;
        let retention = if scenario.keep_journal { "all" } else { "since_snapshot" };
        let target = scenario.versions.map_or(String::new(), |versions| format!("versions = {versions}"));
        let ttl = scenario.lease_ttl_s;
        format!(
            r#"[run]
name = "digits"
seed = {seed}

[model]
kind = "mlp"
input = [64]
classes = 10
hidden = {hidden}
input_scale = 0.0625

[train]
local_steps = {local_steps}
batch_size = {batch_size}
optimizer = {{ kind = "sgd", lr = 0.1 }}

[upload]
codec = {codec}
feedback_decay = 1.0

{merging}

[downlink]
track = {{ codec = {{ kind = "top-k", fraction = 0.075, bits = 4 }} }}

[evaluate]
every_versions = {every_versions}
every_s = {every_s:?}

[target]
{target}

[schedule]
lease_ttl_s = {ttl:?}
tick_ms = 50

[checkpoint]
every_versions = {checkpoint_every}
every_s = 0.0
keep = 2
retention = "{retention}"
"#
        )
    }
}

/// The table `[pod]`.
fn pod_toml(pod: &PodTable) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Tables<'a> {
        pod: &'a PodSpec,
    }
    Ok(toml::to_string(&Tables { pod: &pod.run })?)
}
