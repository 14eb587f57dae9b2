//! One step of a ring is one step of one machine, and of `sync-sgd`; time and bytes follow from the lines; a seed decides everything.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anabranch_agent::shard::{Examples, Inputs};
use anabranch_agent::train::Round;
use anabranch_common::ids::ModelVersion;

use super::*;
use crate::race::data::{DataSet, Rows};
use crate::race::scoreboard::Judge;
use crate::race::{Entrant, Options, Override, RaceReport, Strategy};

/// Four agents, the slowest of which takes 0.3 s for a step.
const WORKLOAD: &str = r#"
about = "digits"
seconds = 6.0
targets = [0.5]
data = "digits"
split = { kind = "iid", seed = 1 }

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

[[agents]]
count = 3
round_s = 0.2

[[agents]]
round_s = 1.5
"#;
/// Parameters of its model.
const PARAMS: u64 = 64 * 32 + 32 + 32 * 10 + 10;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data")
}

fn workload(text: &str) -> Workload {
    Workload::parse(Path::new("w.toml"), text).expect("it makes sense")
}

fn options(text: &str, overrides: &[&str]) -> Options {
    let overrides = overrides.iter().map(|text| Override::parse(text).expect("it has a key"));
    Options {
        command: "anabranch-lab race".to_owned(),
        workload: workload(text),
        strategies: vec![Strategy::parse("replicas").expect("it is one")],
        overrides: overrides.collect(),
        seed: 1,
        seeds: 1,
        data: Some(data()),
        jobs: 1,
        references: BTreeSet::new(),
        clock: Clock::Virtual,
    }
}

fn race(text: &str) -> RaceReport {
    crate::race::run(&options(text, &[])).expect("it is raced")
}

fn entrant(workload: &Workload, strategy: &str, overrides: &[&str]) -> Entrant {
    let overrides: Vec<Override> = overrides.iter().map(|text| Override::parse(text).expect("a key")).collect();
    let strategy = Strategy::parse(strategy).expect("a strategy");
    Entrant::new(workload, &strategy, &overrides, 1).expect("it is sound")
}

/// How far a model is from another one, relative to that.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let mut apart = found.iter().zip(expected).map(|(found, expected)| f64::from(found - expected));
    norm(&mut apart) / norm(&mut expected.iter().copied().map(f64::from))
}

/// Examples of a member, and which of them were read.
#[derive(Debug)]
struct Recorder {
    of: Rows,
    read: parking_lot::Mutex<Vec<usize>>,
}

impl Shard for Recorder {
    fn len(&self) -> usize {
        self.of.len()
    }

    fn input_shape(&self) -> &[u64] {
        self.of.input_shape()
    }

    fn classes(&self) -> u32 {
        self.of.classes()
    }

    fn read(&self, indices: &[usize], inputs: &mut Vec<f32>, labels: &mut Vec<u32>) {
        self.read.lock().extend(indices);
        self.of.read(indices, inputs, labels);
    }
}

/// A batch that is always read as a whole, whichever examples are drawn.
#[derive(Debug)]
struct Joined(Examples);

impl Shard for Joined {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn input_shape(&self) -> &[u64] {
        self.0.input_shape()
    }

    fn classes(&self) -> u32 {
        self.0.classes()
    }

    fn read(&self, indices: &[usize], inputs: &mut Vec<f32>, labels: &mut Vec<u32>) {
        assert_eq!(indices.len(), self.len(), "the batch is not cut");
        let all: Vec<usize> = (0..self.len()).collect();
        self.0.read(&all, inputs, labels);
    }
}

/// Issue 19, 4: equal to one machine with the joined batch to 1e-6, relative, after one step.
#[test]
fn a_step_is_that_of_one_machine_with_the_joined_batch() -> anyhow::Result<()> {
    let workload = workload(WORKLOAD);
    let mut spec = entrant(&workload, "replicas", &["train.local_steps=1"]).config.spec;
    spec.seed = 7;
    let data = DataSet::open(&workload, Some(&data()))?;
    let recorders = data.shards.into_iter().map(|of| Recorder { of, read: Default::default() });
    let shards: Vec<Recorder> = recorders.collect();
    let mut trainer = native_with(&spec.model, OPTIONS)?;
    let base = trainer.initial(spec.seed)?;
    let ring = RingRace { workload: &workload, spec: &spec, shards: &shards };
    let steps = ring.round(&mut ring.group()?, 0, &base)?;
    assert_eq!(steps.len(), 1);

    let (mut inputs, mut labels) = (Vec::new(), Vec::new());
    for Recorder { of, read } in &shards {
        let (mut own_inputs, mut own_labels) = (Vec::new(), Vec::new());
        of.read(&read.lock(), &mut own_inputs, &mut own_labels);
        assert_eq!(own_labels.len(), 16, "each member reads a batch of its own");
        inputs.extend(own_inputs);
        labels.extend(own_labels);
    }
    let joined = Joined(Examples::new(Inputs::Floats(inputs), labels, vec![64]).context("as many labels")?);
    let plan = anabranch_common::spec::TrainSpec { batch_size: 64, ..spec.train.clone() };
    let go_on = &mut |_| ControlFlow::Continue(());
    let one = trainer.train(Round::new(&base, &plan, 1, &joined, go_on))?.end;
    let apart = distance(&steps[0].1, &one);
    assert!(apart <= 1e-6 && distance(&one, &base) > 1e-3, "{apart:e}, and the step is {:e}", distance(&one, &base));
    Ok(())
}

/// Where each agent holds one example, every batch is that example: the two kinds of synchronous training draw the same ones.
#[test]
fn a_step_is_that_of_sync_sgd() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("split.txt"), "3\n700\n41\n1001\n")?;
    let text = WORKLOAD
        .replace("{ kind = \"iid\", seed = 1 }", "{ kind = \"file\", path = \"split.txt\" }")
        .replace("round_s = 1.5", "round_s = 0.2");
    let workload = Workload::parse(&folder.path().join("w.toml"), &text)?;
    let data = DataSet::open(&workload, Some(&data()))?;
    let exact = [
        "train.local_steps=1",
        "downlink={}",
        "upload.codec={ kind = \"f32\" }",
        "upload.feedback_decay=0.0",
        "admit.max_norm_ratio=0.0",
        "admit.clip_norm_ratio=0.0",
        "admit.max_influence=0.0",
    ];
    let merging = entrant(&workload, "strategy = \"sync-sgd\"", &exact);
    let manifest = merging.config.spec.model.layers()?.context("a native model")?.manifest;
    let mut world = merging.world(&data, 7, manifest);
    world.advance(300);
    assert_eq!((world.version(), world.merged()), (ModelVersion(1), 4), "{:?}", world.outcome().violation);
    let merged = world.served_model().context("a model is served")?.to_vec();

    let mut spec = entrant(&workload, "replicas", &exact[..1]).config.spec;
    spec.seed = 7;
    let base = native_with(&spec.model, OPTIONS)?.initial(spec.seed)?;
    let ring = RingRace { workload: &workload, spec: &spec, shards: &data.shards };
    let steps = ring.round(&mut ring.group()?, 0, &base)?;
    let apart = distance(&steps[0].1, &merged);
    assert!(apart <= 1e-6 && distance(&merged, &base) > 1e-3, "{apart:e}");
    Ok(())
}

#[test]
fn a_step_takes_what_the_slowest_member_takes_where_lines_are_free() {
    let report = race(WORKLOAD);
    let finish = &report.runs[0].races[0];
    assert!(finish.holds() && report.report.pass);
    // 1.5 s for 5 steps, so that the 20th one ends with the race.
    let metric = |name: &str| finish.metrics.get(name).copied().unwrap_or_else(|| panic!("{name} is missing"));
    assert_eq!((metric("steps"), metric("step_mean_s")), (20.0, 0.3));
    let steps: Vec<u64> = finish.looks.iter().map(|look| look.updates).collect();
    let until = |at_ms: u64| at_ms / 300;
    assert!(finish.looks.iter().all(|look| look.updates == until(look.at_ms)), "{steps:?}");
    let first = &finish.looks[0].score;
    assert!(metric("final_loss") < first.loss && metric("final_accuracy") > first.accuracy, "{:?}", finish.metrics);
    // Every byte goes up and down. In a step each member sends 2 * 3/4 of the gradient, and of a round the model goes over three lines.
    let values = 20 * (6 * PARAMS + 6) + 4 * 3 * PARAMS;
    let (up, down) = (metric("uplink_bytes"), metric("downlink_bytes"));
    assert_eq!(up, down);
    let of_heads = up - 4.0 * values as f64;
    assert_eq!(of_heads, 64.0 * f64::from(20 * 6 * 4 + 4 * 3), "a chunk a hop, and a part of the model a member");
    assert_eq!(finish.agents, vec![Participation { updates: 20, share: 0.25, pull: 0.25 }; 4]);
    assert!(!finish.metrics.contains_key("updates_accepted") && finish.metrics["updates_lost"] == 0.0);
}

/// 6 hops a step, each of a quarter of the gradient, over two lines that carry 100 bytes in a millisecond, with 10 ms each.
#[test]
fn a_step_takes_what_its_chunks_take_on_the_lines() {
    let line = "\n[line]\nup = { kbit_s = 800.0, delay_ms = 10 }\ndown = { kbit_s = 800.0, delay_ms = 10 }\n";
    let text = format!("{WORKLOAD}{line}").replace("round_s = 1.5", "round_s = 0.2");
    let report = race(&text);
    let finish = &report.runs[0].races[0];
    let chunk_ms = (PARAMS + 1) as f64 / 4.0 * 4.0 / 100.0;
    let hop_ms = 2.0 * (chunk_ms + 0.64 + 10.0);
    let step_ms = 40.0 + 6.0 * hop_ms;
    // A round begins with the model on its way along the ring, and ends with the last member's word.
    let steps = finish.metrics["steps"];
    let found_ms = finish.metrics["step_mean_s"] * 1e3;
    let base_ms = 2.0 * (PARAMS as f64 * 4.0 / 100.0 + 10.64);
    assert!(
        (step_ms..step_ms + base_ms).contains(&found_ms),
        "{found_ms} ms, {step_ms} without the rounds' beginnings"
    );
    assert!(steps >= (6_000.0 / (step_ms + base_ms)).floor() && steps <= 6_000.0 / step_ms, "{steps}");
    // The four members send at the same time.
    let all_ms = 6.0 * 4.0 * hop_ms;
    assert!(found_ms < all_ms / 2.0, "{found_ms}");
}

#[test]
fn the_same_race_twice_has_the_same_bits() -> anyhow::Result<()> {
    let line = "\n[line]\nup = { kbit_s = 400.0, delay_ms = 3, loss = 0.1 }\ndown = { kbit_s = 2000.0, loss = 0.05 }\n";
    let text = format!("{WORKLOAD}{line}");
    let [first, again] = [race(&text), race(&text)].map(|report| report.runs[0].races[0].clone());
    assert_eq!(first, again);
    let other = crate::race::run(&Options { seed: 2, ..options(&text, &[]) })?;
    assert_ne!(other.runs[0].races[0].journal, first.journal, "another seed is another race");
    // What is lost goes over the line again.
    let lossless = race(&text.replace("loss = 0.1", "loss = 0.0").replace("loss = 0.05", "loss = 0.0"));
    let steps = |finish: &Finish| finish.metrics["steps"];
    assert!(steps(&first) < steps(&lossless.runs[0].races[0]), "{} steps", steps(&first));
    Ok(())
}

#[test]
fn what_a_group_without_a_coordinator_does_not_have_is_refused() {
    let refused = |options: &Options| format!("{:#}", crate::race::run(options).expect_err("it makes no sense"));
    let kills = format!("{WORKLOAD}\n[faults]\nagents = {{ mean_s = 8.0, down_s = 1.0 }}\n");
    let attackers = WORKLOAD.replace("round_s = 1.5", "round_s = 1.5\nhostile = \"huge\"");
    let single = WORKLOAD.replace("count = 3", "count = 1").replace("\n[[agents]]\nround_s = 1.5\n", "");
    for (options, expected) in [
        (options(&kills, &[]), "the workload w kills processes"),
        (options(&attackers, &[]), "the workload w has attackers"),
        (options(&single, &[]), "pod.members is 1, expected 2 to 64"),
        (options(WORKLOAD, &["upload.feedback_decay=0.5"]), "a race does not read this key"),
        (options(WORKLOAD, &["train.target_round_s=1.0"]), "train.target_round_s: the leases of a coordinator say so"),
        (
            Options { clock: Clock::Real { lab: PathBuf::new(), evaluator: None }, ..options(WORKLOAD, &[]) },
            "replicas race without --real",
        ),
        (options(WORKLOAD, &["train.optimizer.lr=1e30"]), "try a smaller train.optimizer.lr"),
    ] {
        let error = refused(&options);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn scores_are_those_of_the_model_after_the_last_step_before_a_look() -> anyhow::Result<()> {
    let workload = workload(WORKLOAD);
    let (mut spec, data) = (entrant(&workload, "replicas", &[]).config.spec, DataSet::open(&workload, Some(&data()))?);
    spec.seed = 1;
    let ring = RingRace { workload: &workload, spec: &spec, shards: &data.shards };
    let mut judge = Judge::new(&spec.model, &data.test)?;
    let finish = ring.run(Scoreboard::new(Judge::new(&spec.model, &data.test)?, &workload))?;
    let base = native_with(&spec.model, OPTIONS)?.initial(spec.seed)?;
    let steps = ring.round(&mut ring.group()?, 0, &base)?;
    let scores: Vec<_> = [&base, &steps[0].1, &steps[1].1, &steps[2].1].map(|model| judge.score(model)).into();
    let looks: Vec<_> = finish.looks.iter().take(4).map(|look| (look.at_ms, look.score.clone())).collect();
    let expected: Vec<_> = [250, 500, 750, 1_000].into_iter().zip(scores).collect();
    assert_eq!(looks, expected, "steps end every 300 ms");
    Ok(())
}
