//! The small real workload of the process tests, and where its data are.

use std::path::{Path, PathBuf};

/// `run.toml`: handwritten digits, an MLP 64-32-10, FedBuff of 2, top 5 %; ends with version 40.
pub const DIGITS: &str = r#"
[run]
name = "digits"
seed = 3

[model]
kind = "mlp"
input = [64]
classes = 10
hidden = [32]
input_scale = 0.0625

[train]
local_steps = 5
batch_size = 16
optimizer = { kind = "sgd", lr = 0.1 }

[upload]
codec = { kind = "top-k", fraction = 0.05 }
feedback_decay = 1.0

[merge]
strategy = "fedbuff"
buffer_size = 2
server_lr = 1.0
staleness = { fn = "polynomial", a = 0.5 }

[admit]
max_staleness = 1000
max_examples = 100000
max_norm_ratio = 0.0

[downlink]
track = { codec = { kind = "top-k", fraction = 0.075, bits = 4 } }

[evaluate]
every_versions = 5
every_s = 1.0

[target]
versions = 40

[schedule]
tick_ms = 50

[checkpoint]
every_versions = 10
"#;

/// A file of the examples: `data/digits-train.csv.gz`.
#[must_use]
pub fn example(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).join(path)
}
