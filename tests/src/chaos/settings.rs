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
    let retention = if scenario.keep_journal { "all" } else { "since_snapshot" };
    Ok(match (scenario.task, &scenario.pod) {
        (Task::Ledger, _) => ledger(scenario),
        (Task::Digits, None) => digits(scenario, retention, seed),
        (Task::Digits, Some(pod)) => pods(scenario, pod, retention, seed)?,
    })
}

fn target(scenario: &Scenario) -> String {
    scenario.versions.map_or(String::new(), |versions| format!("versions = {versions}"))
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

fn digits(scenario: &Scenario, retention: &str, seed: u64) -> String {
    let (ttl, target) = (scenario.lease_ttl_s, target(scenario));
    format!(
        r#"[run]
name = "digits"
seed = {seed}

[model]
kind = "mlp"
input = [64]
classes = 10
hidden = [64]
input_scale = 0.0625

[train]
local_steps = 5
batch_size = 32
optimizer = {{ kind = "sgd", lr = 0.1 }}

[upload]
codec = {{ kind = "top-k", fraction = 0.075, bits = 4 }}
feedback_decay = 1.0

[merge]
strategy = "recall"

[admit]
max_staleness = 10000
max_examples = 1000000
max_norm_ratio = 10.0
clip_norm_ratio = 1.0
rare_norm_ratio = 10.0
max_influence = 1.5

[downlink]
track = {{ codec = {{ kind = "top-k", fraction = 0.075, bits = 4 }} }}

[evaluate]
every_versions = 2
every_s = 0.25

[target]
{target}

[schedule]
lease_ttl_s = {ttl:?}
tick_ms = 50

[checkpoint]
every_versions = 20
every_s = 0.0
keep = 2
retention = "{retention}"
"#
    )
}

/// A deeper model, whose merges depend on no time: with one owner every update is merged before the next one is begun.
fn pods(scenario: &Scenario, pod: &PodTable, retention: &str, seed: u64) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Tables<'a> {
        pod: &'a PodSpec,
    }
    let (ttl, target, table) = (scenario.lease_ttl_s, target(scenario), toml::to_string(&Tables { pod: &pod.run })?);
    Ok(format!(
        r#"[run]
name = "digits"
seed = {seed}

[model]
kind = "mlp"
input = [64]
classes = 10
hidden = [64, 64, 64]
input_scale = 0.0625

[train]
local_steps = 40
batch_size = 16
optimizer = {{ kind = "sgd", lr = 0.1 }}

[upload]
codec = {{ kind = "top-k", fraction = 0.05 }}
feedback_decay = 1.0

[merge]
strategy = "fedasync"
alpha = 1.0
staleness = {{ fn = "constant" }}

[admit]
max_staleness = 10000
max_examples = 1000000
max_norm_ratio = 0.0

[downlink]
track = {{ codec = {{ kind = "top-k", fraction = 0.075, bits = 4 }} }}

[evaluate]
every_versions = 5
every_s = 1.0

[target]
{target}

[schedule]
lease_ttl_s = {ttl:?}
tick_ms = 50

[checkpoint]
every_versions = 10
every_s = 0.0
keep = 2
retention = "{retention}"

{table}"#
    ))
}
