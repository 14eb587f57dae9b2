//! The `run.toml` that `init` writes.

use std::net::SocketAddr;

/// What differs between two freshly written files.
#[derive(Debug, Clone)]
pub struct TemplateOptions {
    /// Name of the run.
    pub name: String,
    /// Seed of the run.
    pub seed: u64,
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Names and addresses under which agents reach the coordinator.
    pub names: Vec<String>,
}

/// The file. A setting that is off or has its default stands behind `#` without a space; prose has one.
pub(super) fn render(options: &TemplateOptions) -> String {
    let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let names: Vec<String> = options.names.iter().map(|name| quote(name)).collect();
    TEMPLATE
        .replace("@NAME@", &quote(&options.name))
        .replace("@SEED@", &options.seed.to_string())
        .replace("@LISTEN@", &quote(&options.listen.to_string()))
        .replace("@NAMES@", &format!("[{}]", names.join(", ")))
}

const TEMPLATE: &str = r#"# What this run computes and how it is served. The coordinator reads this file when it starts; changed settings hold
# from its next start. Check it with: anabranch-coordinator config check --dir <this directory>
# Every key, with its unit and default, is described in docs/configuration.md.

[run]
# For people. Letters, digits, - _ .
name = @NAME@
# Everything that is drawn at random in this run follows from it, the initial model included.
seed = @SEED@
# With several runs in one coordinator: this run's share of an agent's device, in proportion to the others' weights.
#weight = 1

[model]
# "mlp": dense layers. "cnn": 3x3 convolutions with pooling, then dense layers. "custom": whatever the agents'
# own trainers bring (docs/trainer-protocol.md); then the other keys here are for them to read or to ignore.
# A custom model that pods compute also has modules = [{ parameters = 650, output = [10] }, ...].
# "gpt": a transformer that tells the next byte of a text; it has context, layers, heads and width in place of these keys.
kind = "mlp"
# Shape of one example: [channels, height, width] or [features].
input = [1, 28, 28]
classes = 10
# Widths of the hidden layers (mlp), or [channels, channels, width of the dense layer] (cnn), such as [16, 32, 128].
# A cnn of any other depth: convs = [16, 32, 64] are the channels of its convolutions, and hidden has the dense widths.
hidden = [128]
# Inputs are multiplied by this: 1/255 brings bytes to 0..1.
input_scale = 0.00392156862745098

[train]
# One lease is this many optimizer steps of batch_size examples.
local_steps = 20
batch_size = 32
# Or: { kind = "sgd", lr = 0.05, momentum = 0.9 }, { kind = "adamw", lr = 0.001, weight_decay = 0.01 }
optimizer = { kind = "sgd", lr = 0.05 }
# Keep momentum and the like from one lease to the next instead of starting afresh.
#keep_optimizer_state = false
# Give each agent leases of as many steps as it takes in about this many seconds, so that all report at similar periods;
# an agent that is not known yet gets local_steps, and none ever more than max_local_steps (16 times local_steps).
#target_round_s = 5.0
#max_local_steps = 320
# Change the learning rate during the run: "cosine" from lr down to final_fraction of it at version length, "step" multiplied
# with factor after every so many, "constant". It first rises from a tenth of lr during warmup. over = "examples" counts
# examples merged in place of versions. Or: { kind = "step", warmup = 50, every = 300, factor = 0.1 }
#schedule = { kind = "cosine", over = "versions", warmup = 50, length = 1000, final_fraction = 0.0 }

[upload]
# How updates are compressed: "top-k" sends the largest share of the entries, with values of 8 bits, or of 4 or 1
# (the sign alone) with bits = 4 or bits = 1. "int8", "int4" and "bf16" send all entries in 8, 4 and 16 bits, "f32" exactly.
codec = { kind = "top-k", fraction = 0.075, bits = 4 }
# How much of what compression left out is carried to the agent's next update: 1 all of it, 0 none.
feedback_decay = 1.0
# Smaller codecs for agents whose line takes more than transfer_share of their round for an update. Each lease names the
# mildest codec that fits its agent's line; without harder: 2, 1, 0.5 and 0.25 % with values of 4 bits.
#adaptive = { transfer_share = 0.25, harder = [{ kind = "top-k", fraction = 0.01, bits = 4 }] }
# Tensors that are sent with codecs of their own, by name; * stands for any characters, and the first match counts.
#policy = [{ tensors = "*bias", codec = { kind = "bf16" } }]

[merge]
# "recall": every update makes a version by an adaptive step, the last updates of agents that take part too little are
# added, and the average of the models is served.
strategy = "recall"
# Step of the whole fleet in units of the agents' own updates. Without this key: 23 with "sgd", 4 with "adamw", whose
# updates are of full length.
#step = 23.0
# "fedasync": every update makes a version, mixed with rate alpha:
#   strategy = "fedasync"
#   alpha = 0.6
# "fedbuff": every buffer_size updates make a version:
#   strategy = "fedbuff"
#   buffer_size = 4
#   server_lr = 1.0
# "delayed-nesterov": with the keys of "fedbuff", every update makes a version, and every buffer_size-th also steps along a
# momentum (momentum = 0.9).
# "fadas": every buffer_size updates make an adaptive step, of about server_lr for each parameter (0.001 to begin with).
# "rescaled": every update makes a version, and counts for more the slower its agent is:
#   strategy = "rescaled"
#   alpha = 0.6
# "ef21": every update makes a version, by a step along the mean of what each agent has sent last. Agents send the difference
# against it (server_lr = 1.0).
# "fedavg", "fedprox" (mu = 0.01), "fedavgm" (momentum = 0.9), "fedadam", "sync-sgd": rounds. A version is
# made when every agent has delivered, or at a deadline:
#   strategy = "fedavg"
#   barrier = { deadline_s = 60.0, quorum = 0.5 }
# "fedasync", "fedbuff", "delayed-nesterov" and "rescaled" can damp updates from old versions: "constant" (none),
# "polynomial" (1 + staleness)^-a, or
#   staleness = { fn = "hinge", a = 0.1, b = 100 }     none up to b versions, then 1 / (a (staleness - b) + 1)
# "fedasync", "fedbuff" and "delayed-nesterov" can weigh agents by the examples they hold rather than by how fast they are:
#   participation = true
# All of them can serve the average of the models ("recall" does), or the newest model:
#   average = true

[admit]
# Updates whose base is older than this many versions are refused.
max_staleness = 10000
# An agent is credited with at most this many examples, whatever it says.
max_examples = 1000000
# Against agents that send nonsense; 0 switches one of them off. "Usual" is the median over agents, from three agents on;
# before that the norm of the model that the history began with (version 0, an imported one, or what a rollback went back
# to), or a change of 1 in every parameter where that is zero, is what is scaled down to.
# An update whose norm is more than max_norm_ratio times the usual one is refused; one above clip_norm_ratio times the
# usual one is scaled down to that, which costs agents whose data differ much some of their say. An agent that sends more
# than max_influence times as many updates as the median agent is scaled down to that, which costs fast agents some of
# their speed: switch it off where agents are trusted and their speeds differ much.
# With strategy = "recall" agents that report rarely may have larger updates: the usual norm is multiplied with the mean rate
# of updates over the agent's own, up to rare_norm_ratio (0: never).
max_norm_ratio = 10.0
clip_norm_ratio = 1.0
rare_norm_ratio = 10.0
max_influence = 1.5

[downlink]
# Agents train from a published track: an image of the model that moves in compressed steps, the same ones for all agents.
# Without this key they train from the model and are sent all of it (docs/downlink.md). codec as in [upload].
# How many versions lie between two steps follows the number of agents at work; every = 4: four versions.
track = { codec = { kind = "top-k", fraction = 0.075, bits = 4 } }
# Without a track, and with "fedasync" or "fedbuff", agents can merge the updates of others by themselves, which is less to
# send where agents are few. It shows every agent the updates of all others (docs/downlink.md).
#share_updates = false

# Agents that join pods compute a round together, each of them some layers of the model: for models that are too much
# for one machine. Agents with a training shard own rounds; the others help. Agents that join no pods train alone.
#[pod]
#kind = "stages"
# Agents of a pod. labels = "travel" sends labels to the last one. "stay", the default, keeps inputs and labels on their
# owner's machine, which computes the first and the last part: the model needs one layer more than there are agents.
# stages = "auto": as few as the model fits, of those that are free; micro_batches is then needed. Labels travel of native models only.
#stages = 2
#labels = "travel"
# "flush": the bits of one agent. "sequential": one micro-batch at a time. "pipelined": never waits, with weights = "predict",
# "2bw", "stash" or "stale".
#schedule = "flush"
# Micro-batches of a step; without it one a part of the model. activations: "f32", "bf16" or "int8".
#micro_batches = 4
#activations = "f32"
# A member that cannot be reached for so many seconds, or gives no sign of life for so long, counts as dead.
#deadline_s = 10.0
# kind = "replicas" in place of all that: agents of one site (--site) with data of their own take steps together, each with the
# whole model; members = 3 is the most of them in a pod, and deadline_s the only other key.

[evaluate]
# Agents that hold an evaluation shard evaluate a version after this many versions or seconds, whichever comes first.
every_versions = 20
every_s = 5.0

[target]
# The run ends when any of these is reached; with none it goes on until `stop`.
#accuracy = 0.97
#loss = 0.1
#versions = 10000
#wall_s = 3600.0

[server]
# Address and UDP port to listen on.
listen = @LISTEN@
# Names and addresses under which agents reach this coordinator. Join tokens carry the first eight, which agents try in this
# order; without any, the address of listen (127.0.0.1 where that is 0.0.0.0 or [::]). They become part of the server's certificate when the
# coordinator starts; localhost, 127.0.0.1 and ::1 always are.
names = @NAMES@
# Life of an agent's certificate; a running agent renews it in time by itself.
#agent_certificate_days = 30

[schedule]
# After this long without an update an agent no longer counts as training. Work that comes later is still merged.
lease_ttl_s = 600.0
# How often the coordinator looks for what has expired or is due, in milliseconds.
#tick_ms = 250

[checkpoint]
# A checkpoint is taken after this many versions or seconds, whichever comes first (0 switches one of them off).
every_versions = 200
every_s = 60.0
# How many are kept, at least 2.
keep = 2
# "since_snapshot" drops journal records older than the oldest checkpoint: versions before it can no longer be exported or
# rolled back to. "all" keeps every record of the run, and so every version.
retention = "since_snapshot"

[store]
# The run's state is in this directory, in store/. With a program that is built with the feature `object-store` it can be in
# a bucket instead, which outlives this machine (docs/survival.md): s3://BUCKET/PREFIX, gs://, az://, file:///DIR. Credentials
# come from the environment. `store copy` moves a run that has begun.
#url = "s3://training/wards"

[quota]
# A run whose store takes more of the disk gives no more leases, until `resume` after this bound or the retention has changed.
#disk_bytes = 10000000000

[log]
# "human" or "json", on standard error; --log-format overrides it.
#format = "human"
"#;
