//! `anabranch-lab bench utilisation`: the share of time that devices compute, while they train a
//! gpt of 30 M parameters behind thin lines.
//!
//! The daemons' cores run in virtual time, as in a race (docs/race.md), and send what they encode
//! over lines with a rate and a delay. Nothing is trained: a round takes as long as its steps are
//! said to take, and its delta is drawn with the tails that deltas have. Work beside training
//! takes no time.

use std::path::Path;

use anabranch_agent::node::Start;
use anabranch_agent::session::Waits;
use anabranch_agent::train::Metrics;
use anabranch_common::journal::Lease;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::TrainSpec;
use anabranch_common::transfer::Budgets;
use anabranch_coordinator::config::Config;
use anabranch_testkit::codec::normal;
use anyhow::{Context as _, ensure};
use toml::{Table, Value};

use crate::race::{self, Override};
use crate::report::Report;
use crate::sim::schedule::{AgentPlan, LinkPlan, Machine, Schedule, Task};
use crate::sim::{Computed, DECODERS, Emulated, Overhead, Setting, Stopped, World};

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Agents, each with a line of its own
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    agents: u32,
    /// Rate of each line, both ways
    #[arg(long, value_name = "KBIT/S", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(8..))]
    rate: u64,
    /// Delay of each line, each way
    #[arg(long, value_name = "MS", default_value_t = 50)]
    delay: u64,
    /// Steps of a local round
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    local_steps: u32,
    /// What a step takes. Of 30.8 M parameters and 4,096 tokens, at 6 FLOP for each pair: 40 ms
    /// at 19 TFLOP/s
    #[arg(long, value_name = "MS", default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..))]
    step: u64,
    /// Virtual time of each case
    #[arg(long, value_name = "S", default_value_t = 240)]
    seconds: u64,
    /// The gpt
    #[arg(long, value_name = "TOML", default_value = "context = 1024\nlayers = 9\nheads = 8\nwidth = 528")]
    model: String,
    /// Which cases; all when absent
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,
    /// A key of run.toml for all cases, as in a race
    #[arg(long, value_name = "KEY=VALUE", value_parser = Override::parse)]
    set: Vec<Override>,
}

/// The share of time that devices are to compute.
const AIM: f64 = 0.95;
/// Examples of an agent, as it says.
const EXAMPLES: u64 = 10_000;

/// One way to run it.
#[derive(Debug)]
struct Case {
    name: &'static str,
    about: &'static str,
    /// `[upload]`; what `init` writes where it is absent.
    upload: Option<&'static str>,
    /// `[downlink]`; what `init` writes where it is absent.
    downlink: Option<&'static str>,
    overlap: bool,
}

/// Models go down whole.
const WHOLE: Option<&str> = Some("");
/// The case whose share is the bench's figure.
const MEASURED: &str = "init";
const CASES: [Case; 5] = [
    Case {
        name: "f32",
        about: "whole f32 both ways, one thing after another",
        upload: Some("codec = { kind = \"f32\" }\nfeedback_decay = 0.0"),
        downlink: WHOLE,
        overlap: false,
    },
    Case {
        name: "whole",
        about: "what init writes, but models go down whole",
        upload: None,
        downlink: WHOLE,
        overlap: true,
    },
    Case {
        name: "init_alone",
        about: "what init writes, one thing after another",
        upload: None,
        downlink: None,
        overlap: false,
    },
    Case { name: "init", about: "what init writes", upload: None, downlink: None, overlap: true },
    Case {
        name: "adaptive",
        about: "adaptive codecs from the largest 5 %",
        upload: Some("codec = { kind = \"top-k\", fraction = 0.05, bits = 4 }\nfeedback_decay = 1.0\nadaptive = {}"),
        downlink: None,
        overlap: true,
    },
];

/// Measures every case that is asked for.
///
/// # Errors
/// A case has no such name, or a world breaks a promise.
pub fn run(options: &Options, seed: u64) -> anyhow::Result<Report> {
    let Options { agents, rate, delay, local_steps, step, seconds, case, .. } = options;
    let command = format!(
        "anabranch-lab bench utilisation --agents {agents} --rate {rate} --delay {delay} --local-steps {local_steps} \
         --step {step} --seconds {seconds}"
    );
    for name in case {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        ensure!(names.contains(&name.as_str()), "--case {name}: there are {}", names.join(", "));
    }
    let mut report = Report::new(&command, seed);
    for known in CASES.iter().filter(|known| case.is_empty() || case.iter().any(|name| name == known.name)) {
        let found = measure(options, known, seed).with_context(|| format!("case {}", known.name))?;
        found.report(known, &mut report);
    }
    if let Some(share) = report.metrics.get(&format!("{MEASURED}_device_utilisation")).copied() {
        report.metric("device_utilisation", share);
        report.aim(format!("devices compute {AIM} of the time or more"), share >= AIM);
    }
    Ok(report)
}

/// What a case came to.
#[derive(Debug)]
struct Found {
    params: usize,
    waits: Vec<Waits>,
    /// Local rounds that the agents began.
    rounds: u64,
    merged: u64,
    up_bytes: u64,
    down_bytes: u64,
    seconds: u64,
    round_ms: u64,
}

impl Found {
    fn report(&self, case: &Case, report: &mut Report) {
        let Self { params, waits, rounds, merged, up_bytes, down_bytes, seconds, round_ms } = self;
        let sum = |part: fn(&Waits) -> u64| waits.iter().map(part).sum::<u64>() as f64;
        let (busy_ms, waiting_ms) = (sum(|waits| waits.busy_ms), sum(|waits| waits.waiting_ms));
        let share = if busy_ms > 0.0 { busy_ms / (busy_ms + waiting_ms) } else { 0.0 };
        let of_all = busy_ms / (waits.len() as f64 * *seconds as f64 * 1e3);
        println!(
            "{:<11} {:5.1} % of the time since the first round ({:.1} % since the start), {rounds} rounds of {round_ms} ms, \
             {merged} updates merged, {:.1} MB up, {:.1} MB down, {params} parameters: {}",
            case.name,
            100.0 * share,
            100.0 * of_all,
            *up_bytes as f64 / 1e6,
            *down_bytes as f64 / 1e6,
            case.about
        );
        for (name, value) in [
            ("device_utilisation", share),
            ("device_utilisation_since_start", of_all),
            ("uplink_bytes", *up_bytes as f64),
            ("downlink_bytes", *down_bytes as f64),
            ("updates_accepted", *merged as f64),
        ] {
            report.metric(format!("{}_{name}", case.name), value);
        }
        report.metric("model_params", *params as f64);
        report.metric("round_ms", *round_ms as f64);
    }
}

fn config(options: &Options, case: &Case, seed: u64) -> anyhow::Result<Config> {
    let mut table = race::written("utilisation", seed);
    let model: Table = format!("kind = \"gpt\"\n{}", options.model).parse().context("--model")?;
    table.insert("model".to_owned(), Value::Table(model));
    let steps = options.local_steps;
    let train = format!("local_steps = {steps}\nbatch_size = 4\noptimizer = {{ kind = \"adamw\", lr = 0.0004 }}");
    table.insert("train".to_owned(), Value::Table(train.parse()?));
    if let Some(upload) = case.upload {
        table.insert("upload".to_owned(), Value::Table(upload.parse()?));
    }
    if let Some(downlink) = case.downlink {
        table.insert("downlink".to_owned(), Value::Table(downlink.parse()?));
    }
    options.set.iter().for_each(|set| set.apply(&mut table));
    Ok(Config::parse(Path::new("run.toml"), &table.to_string())?)
}

fn measure(options: &Options, case: &Case, seed: u64) -> anyhow::Result<Found> {
    let config = config(options, case, seed)?;
    let manifest = config.spec.model.layers()?.context("the model is no native one")?.manifest;
    let (params, round_ms) = (manifest.params(), options.step * u64::from(options.local_steps));
    let link = LinkPlan { delay_ms: options.delay, jitter_ms: 0, loss: 0.0, bandwidth: options.rate as f64 / 8.0 };
    let agent = AgentPlan { link_down: Some(link.clone()), ..AgentPlan::plain(round_ms, link) };
    let schedule = Schedule {
        task: Task::Native,
        params: u32::try_from(params)?,
        buffer: 1,
        rule: None,
        lossy: false,
        adaptive: false,
        track: None,
        share_updates: config.spec.downlink.share_updates,
        round_deadline_ms: 0,
        pods: None,
        max_staleness: config.spec.admit.max_staleness,
        lease_ttl_ms: 1_000 * options.seconds,
        checkpoint_every: u64::MAX,
        keep_journal: true,
        target_round_ms: 0,
        agents: vec![agent; options.agents as usize],
        length_ms: 1_000 * options.seconds,
        faults: Vec::new(),
    };
    let setting = Setting {
        spec: config.spec,
        learner: Box::new(Made::new(manifest, seed)),
        overhead: Overhead::None,
        stopped: Stopped::Computes,
        budgets: Budgets::with_decoders(DECODERS),
        overlap: case.overlap,
        devices: None,
    };
    let mut world = World::with(seed, schedule, setting, false);
    world.advance(1_000 * options.seconds);
    let (waits, traffic, merged) = (world.waits(), world.traffic(), world.merged());
    let outcome = world.outcome();
    ensure!(outcome.violation.is_none(), "{:?}", outcome.violation);
    Ok(Found {
        params,
        waits,
        rounds: outcome.rounds.iter().sum(),
        merged,
        up_bytes: traffic.up_bytes,
        down_bytes: traffic.down_bytes,
        seconds: options.seconds,
        round_ms,
    })
}

/// Deltas that nobody has computed: products of two normal numbers, most of them small and a few
/// large.
#[derive(Debug)]
struct Made {
    manifest: ModelManifest,
    /// As many as there are parameters. Each round begins at another place of it.
    values: Vec<f32>,
}

/// Values that are drawn; they repeat.
const DRAWN: usize = 1 << 20;
/// Root of the mean square of a delta's values, and of the initial model's.
const DELTA: f32 = 1e-3;
const INITIAL: f32 = 0.02;

impl Made {
    fn new(manifest: ModelManifest, seed: u64) -> Self {
        let (one, other) = (normal(DRAWN, seed), normal(DRAWN - 1, seed ^ 0x5EED));
        // The lengths have no common factor: the products repeat after their product.
        let values = (0..manifest.params()).map(|at| one[at % DRAWN] * other[at % (DRAWN - 1)]).collect();
        Self { manifest, values }
    }

    fn delta(&self, seed: u64) -> Vec<f32> {
        let begin = usize::try_from(seed % self.values.len() as u64).unwrap_or(0);
        let (end, start) = self.values.split_at(begin);
        start.iter().chain(end).map(|value| DELTA * value).collect()
    }
}

impl Emulated for Made {
    fn manifest(&self) -> &ModelManifest {
        &self.manifest
    }

    fn initial(&mut self) -> Vec<f32> {
        self.values.iter().map(|value| INITIAL * value).collect()
    }

    fn train(&mut self, machine: Machine, lease: &Lease, plan: &TrainSpec, _start: &Start) -> Option<Computed> {
        Some(Computed {
            delta: self.delta(lease.seed ^ machine as u64).into(),
            num_examples: u64::from(plan.batch_size) * u64::from(plan.local_steps),
            local_steps: plan.local_steps,
            train_loss: 1.0,
        })
    }

    fn judge(&mut self, _machine: Machine, _model: &[f32]) -> Metrics {
        Metrics { accuracy: 0.0, loss: 1.0, num_examples: EXAMPLES }
    }

    fn examples(&self, _machine: Machine) -> u64 {
        EXAMPLES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            agents: 2,
            rate: 400,
            delay: 50,
            local_steps: 10,
            step: 50,
            seconds: 60,
            model: "context = 64\nlayers = 2\nheads = 2\nwidth = 32".to_owned(),
            case: Vec::new(),
            set: Vec::new(),
        }
    }

    #[test]
    fn smaller_updates_and_overlap_keep_devices_computing() {
        let report = run(&options(), 3).expect("measured");
        let share = |case: &str| report.metrics[&format!("{case}_device_utilisation")];
        let cases = ["f32", "whole", "init"].map(share);
        assert!(cases.is_sorted_by(|one, other| one < other), "{cases:?}");
        assert!(cases[0] > 0.0 && share("init_alone") < share("init"), "{}", share("init_alone"));
        assert!(report.metrics["device_utilisation"] == share("init") && share("adaptive") <= 1.0);
        let bytes = |case: &str| {
            report.metrics[&format!("{case}_uplink_bytes")] / report.metrics[&format!("{case}_updates_accepted")]
        };
        assert!(bytes("init") < 0.1 * bytes("f32"), "{} and {} bytes an update", bytes("init"), bytes("f32"));
    }

    #[test]
    fn a_case_that_there_is_not_is_named() {
        let refused = run(&Options { case: vec!["bf16".to_owned()], ..options() }, 1).expect_err("refused").to_string();
        assert_eq!(refused, "--case bf16: there are f32, whole, init_alone, init, adaptive");
    }
}
