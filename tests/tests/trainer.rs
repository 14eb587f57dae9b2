//! Trainers in processes of their own, with the real daemons.
//!
//! | test | guards |
//! |---|---|
//! | the same bits | `--isolate` changes nothing about what is computed, not even after a child was killed |
//! | an encoder in the child | not a bit of the run's models changes; a killed child's successor gets the feedback state |
//! | a killed trainer | it costs a round and a fresh child; the agent stays, the run reaches its end |
//! | a trainer in Python | another model than the native ones, in another language, from the first version to the target |
//! | a broken evaluator | its failures are told, and the sound evaluator's measurement ends the run |
//! | a trainer that cannot start | exit code 14 and its own words |
//! | a model imported in the order of names | trainers have the run's tensors in another order, and train it all the same |

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anabranch_agent::native_factory;
use anabranch_agent::shard::{self, ShardOptions};
use anabranch_agent::train::process::{ProcessOptions, TrainerProcess};
use anabranch_agent::train::{Round, RunPart, Trainer};
use anabranch_agent::worker::Shards;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{ModelKind, ModelSpec, OptimizerSpec, TrainSpec};
use anabranch_io::model_file;
use anabranch_tests::clock::poll;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, PYTHON_PACKAGE, Role, example, numbers, python_has};
use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

fn run_part() -> RunPart {
    let model = ModelSpec {
        kind: ModelKind::Mlp,
        input: vec![64],
        classes: 10,
        hidden: vec![32],
        input_scale: 0.0625,
        ..ModelSpec::default()
    };
    let optimizer = OptimizerSpec::Sgd { lr: 0.1, momentum: 0.9 };
    let train = TrainSpec {
        local_steps: 4,
        batch_size: 16,
        optimizer,
        keep_optimizer_state: false,
        target_round_s: None,
        max_local_steps: None,
        schedule: None,
        proximal_mu: 0.0,
    };
    RunPart { name: "digits".into(), seed: 3, model, train }
}

/// Initial model, the model after a round, and loss and accuracy of that, as bits.
fn computed(trainer: &mut dyn Trainer, shards: &Shards) -> anyhow::Result<Vec<u64>> {
    let run = run_part();
    let shard = |shard: &Option<Box<dyn shard::Shard>>| shard.is_some();
    assert!(shard(&shards.train) && shard(&shards.eval));
    let (train, eval) = shards.train.as_deref().zip(shards.eval.as_deref()).context("both shards are there")?;
    let initial = trainer.initial(run.seed)?;
    let outcome = trainer.train(Round::new(&initial, &run.train, 11, train, &mut |_| ControlFlow::Continue(())))?;
    let metrics = trainer.evaluate(&outcome.end, eval)?;
    let bits = initial.iter().chain(&outcome.end).chain([&outcome.mean_loss]).map(|value| u64::from(value.to_bits()));
    let counts = [outcome.num_examples, outcome.steps.into(), metrics.num_examples];
    Ok(bits.chain([metrics.accuracy.to_bits(), metrics.loss.to_bits()]).chain(counts).collect())
}

#[test]
fn a_native_trainer_computes_the_same_bits_in_a_process_of_its_own() -> anyhow::Result<()> {
    let open = || shard::open(&example("data/digits-train.csv.gz"), &ShardOptions::default());
    let shards = Shards { train: Some(open()?), eval: Some(open()?) };
    let mut here = native_factory(Some(1), &shards)(&run_part())?;
    let expected = computed(&mut *here, &shards)?;
    let home = tempfile::tempdir()?;
    let process = TrainerProcess::start(ProcessOptions {
        command: [LAB, "as-agent", "trainer"].map(Into::into).to_vec(),
        work_dir: None,
        home: home.path().to_owned(),
        agent: "north".into(),
        shard: Some(example("data/digits-train.csv.gz")),
        eval_shard: Some(example("data/digits-train.csv.gz")),
        threads: Some(1),
        max_memory_bytes: None,
        patience: Duration::from_secs(60),
    })?;
    let mut there = process.factory()(&run_part())?;
    assert_eq!(there.manifest(), here.manifest());
    assert_eq!(computed(&mut *there, &process.shards())?, expected);
    process.close();
    assert_eq!(computed(&mut *there, &process.shards())?, expected, "a fresh child");
    Ok(())
}

/// safetensors libraries write tensors in the order of their names, and a run that begins with
/// such a file has that order.
#[test]
fn a_run_that_began_with_a_file_in_the_order_of_names_is_trained_in_any_process() -> anyhow::Result<()> {
    let settings = DIGITS.replace("versions = 40", "versions = 1000000");
    let mut cluster = Cluster::new(Path::new(LAB), &settings)?;
    let mut spec = run_part().model;
    spec.hidden = vec![32];
    let mut native = anabranch_agent::train::native(&spec)?;
    let (ours, values) = (native.manifest().clone(), native.initial(3)?);
    let mut by_name: Vec<_> = ours.ranges().map(|(tensor, range)| (tensor.clone(), &values[range])).collect();
    by_name.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let (tensors, parts): (Vec<_>, Vec<&[f32]>) = by_name.into_iter().unzip();
    let sorted = ModelManifest::new(tensors)?;
    assert_ne!(sorted, ours);
    let file = cluster.path().join("sorted.safetensors");
    model_file::hand_over(&file, &sorted, &parts.concat())?;
    cluster.coordinate(&["checkpoint", "import"], &[&file.display().to_string()])?.code(0)?;
    cluster.start_coordinator()?;
    let data = example("data/digits-train.csv.gz");
    for (name, more) in [("isolated", "--isolate"), ("other", "--threads=1")] {
        cluster.join(name)?;
        let args: [&OsStr; 5] =
            ["--shard".as_ref(), data.as_os_str(), "--eval-shard".as_ref(), data.as_os_str(), more.as_ref()];
        cluster.start_agent(Role::Agent, name, &args, &[])?;
    }
    // Both of them: a run that ends by itself may do so before the second one is connected.
    cluster.wait_until("updates of both agents", PATIENCE, |status| {
        status.version.0 >= 6 && status.agents.iter().filter(|agent| agent.updates_accepted >= 3).count() == 2
    })?;
    cluster.coordinate(&["stop"], &[])?.code(0)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    for name in ["isolated", "other"] {
        assert_eq!(cluster.agent(name)?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    }
    let out = cluster.path().join("result.safetensors");
    cluster.coordinate(&["checkpoint", "export"], &["--out", &out.display().to_string()])?.code(0)?;
    let accuracy = |file: &Path| -> anyhow::Result<f64> {
        let mut native = anabranch_agent::train::native(&spec)?;
        let (_, model) = model_file::read(file, Some(native.manifest()))?;
        Ok(native.evaluate(&model, &*shard::open(&data, &ShardOptions::default())?)?.accuracy)
    };
    let (before, after) = (accuracy(&file)?, accuracy(&out)?);
    assert!(after > before + 0.2, "learned from {before} to {after}: tensors are not mixed up");
    Ok(())
}

/// Processes that a log says were started as trainers.
fn trainers(log: &Path) -> anyhow::Result<Vec<u64>> {
    Ok(numbers(&std::fs::read_to_string(log)?, "trainer started", "pid"))
}

#[test]
fn a_trainer_that_is_killed_again_and_again_costs_rounds_and_nothing_else() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    cluster.start_coordinator()?;
    let data = example("data/digits-train.csv.gz");
    for (name, more) in [("isolated", "--isolate"), ("other", "--threads=1")] {
        cluster.join(name)?;
        let args: [&OsStr; 5] =
            ["--shard".as_ref(), data.as_os_str(), "--eval-shard".as_ref(), data.as_os_str(), more.as_ref()];
        cluster.start_agent(Role::Agent, name, &[&args[..], &["--min-round=100".as_ref()]].concat(), &[])?;
    }
    let log = cluster.log_path("isolated");
    for kills in 1..=3 {
        let updates = cluster.status()?.updates_accepted;
        poll(PATIENCE, || Ok((trainers(&log)?.len() >= kills).then_some(())))?.context("no fresh trainer")?;
        cluster.wait_for_updates(updates + 3)?;
        let newest = *trainers(&log)?.last().context("a trainer was started")?;
        kill(Pid::from_raw(newest.try_into()?), Signal::SIGKILL)?;
    }
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    for name in ["isolated", "other"] {
        assert_eq!(cluster.agent(name)?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    }
    // A goodbye that is said right before a connection ends is heard; without it the coordinator waits for the agent.
    let log_text = cluster.coordinator()?.log()?;
    assert!(!log_text.contains("have not said goodbye"), "{log_text}");
    let text = std::fs::read_to_string(&log)?;
    assert!(text.contains("it was killed by signal 9"), "{text}");
    assert!(trainers(&log)?.len() >= 3, "{text}");
    assert!(cluster.verify()?.holds);
    Ok(())
}

/// A trainer that encodes with the GPU's algorithm.
const EMULATED: [&str; 3] = ["--", LAB, "as-emulated-trainer"];

/// A run of one agent with the trainer that `trainer` says: the last model's values, as bits, and how many updates its child
/// encoded.
fn run_of_one(trainer: &[&str]) -> anyhow::Result<(Vec<u32>, usize)> {
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    let data = example("data/digits-train.csv.gz");
    let mut args: Vec<&OsStr> = vec!["--shard".as_ref(), data.as_os_str(), "--no-overlap".as_ref()];
    args.extend(trainer.iter().map(OsStr::new));
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let out = cluster.path().join("model.safetensors");
    cluster.coordinate(&["checkpoint", "export"], &["--out", &out.display().to_string()])?.code(0)?;
    let (_, values) = model_file::read(&out, None)?;
    let log = std::fs::read_to_string(cluster.log_path("one"))?;
    Ok((values.iter().map(|value| value.to_bits()).collect(), log.matches("encoded by the trainer").count()))
}

#[test]
fn an_encoder_in_the_child_gives_a_run_of_the_same_bits() -> anyhow::Result<()> {
    let (here, none) = run_of_one(&["--isolate", "--encoder=cpu"])?;
    let (there, encoded) = run_of_one(&EMULATED)?;
    assert_eq!(none, 0);
    // Two updates a version; the first one goes on from the empty state, which both sides have.
    assert!(encoded >= 80, "only {encoded} of 80 updates were encoded by the child");
    assert!(here == there, "another model than without");
    Ok(())
}

#[test]
fn a_killed_childs_successor_gets_the_feedback_state_and_encodes() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    cluster.edit("versions = 40", "versions = 100000")?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    let data = example("data/digits-train.csv.gz");
    let mut args: Vec<&OsStr> = vec!["--shard".as_ref(), data.as_os_str()];
    args.extend(EMULATED.iter().map(OsStr::new));
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    let log = cluster.log_path("one");
    let encoded = || Ok::<_, anyhow::Error>(std::fs::read_to_string(&log)?.matches("encoded by the trainer").count());
    for kills in 1..=3 {
        let before = encoded()?;
        poll(PATIENCE, || Ok((encoded()? >= before + 5).then_some(())))?
            .with_context(|| format!("child {kills} does not encode"))?;
        let newest = *trainers(&log)?.last().context("a trainer was started")?;
        kill(Pid::from_raw(newest.try_into()?), Signal::SIGKILL)?;
        poll(PATIENCE, || Ok((trainers(&log)?.len() > kills).then_some(())))?.context("no fresh trainer")?;
    }
    let dir = cluster.agent_dir("one");
    let asked = ["status".as_ref(), "--dir".as_ref(), dir.as_os_str()];
    let shown = cluster.call(Role::Agent, &asked)?.code(0)?.stdout;
    assert!(shown.contains("updates by the trainer's own encoder"), "{shown}");
    cluster.park_agents()?;
    cluster.park_coordinator()?;
    assert!(cluster.verify()?.holds);
    Ok(())
}

#[test]
fn a_trainer_that_cannot_start_ends_the_agent_with_its_own_words() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    for (program, words) in [
        (
            ["sh", "-c", "echo 'no module named torch' >&2; exit 3"],
            "exit code 3; its last words: no module named torch",
        ),
        (["./missing", "a", "b"], "cannot start the trainer \"./missing\""),
    ] {
        let args: Vec<&OsStr> = ["--"].iter().chain(&program).map(|word| OsStr::new(*word)).collect();
        let agent = cluster.start_agent(Role::Agent, "one", &args, &[])?;
        assert_eq!(agent.wait(PATIENCE)?, 14);
        let log = agent.log()?;
        assert!(log.contains(words), "{log}");
    }
    Ok(())
}

/// The example as a user runs it: two agents, one of them with the test set, neither with a native model.
#[test]
fn a_trainer_in_python_brings_its_own_model_and_reaches_the_target() -> anyhow::Result<()> {
    if !python_has("numpy, safetensors") {
        return Ok(());
    }
    let (model, rest) = DIGITS.split_once("[train]").context("a section")?;
    let custom = format!("{}kind = \"custom\"\n\n[train]{rest}", model.split_once("kind").context("a key")?.0);
    let custom = custom.replace("versions = 40", "accuracy = 0.85").replace("lr = 0.1", "lr = 0.5");
    let mut cluster = Cluster::new(Path::new(LAB), &custom)?;
    cluster.start_coordinator()?;
    let (data, test, script) =
        (example("data/digits-train.csv.gz"), example("data/digits-test.csv.gz"), example("numpy_digits/train.py"));
    for name in ["one", "two"] {
        cluster.join(name)?;
        let mut args: Vec<&OsStr> = ["--shard".as_ref(), data.as_os_str(), "--min-round=50".as_ref()].to_vec();
        if name == "one" {
            args.extend([OsStr::new("--eval-shard"), test.as_os_str()]);
        }
        args.extend([OsStr::new("--"), "python3".as_ref(), script.as_os_str()]);
        cluster.start_agent(Role::Agent, name, &args, &[("PYTHONPATH", PYTHON_PACKAGE)])?;
    }
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    for name in ["one", "two"] {
        assert_eq!(cluster.agent(name)?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    }
    let status = cluster.status()?;
    assert_eq!(status.params, Some(65 * 10));
    // What was on its way when the target was reached comes too late.
    let refused = &status.updates_refused;
    assert!(status.updates_accepted > 0 && refused.keys().all(|reason| reason == "finished"), "{refused:?}");
    assert!(cluster.verify()?.holds);
    Ok(())
}

/// An evaluator whose every evaluation raises. It holds as many examples as the sound one.
const BROKEN: &str = r#"
import json, sys
def say(**message): print(json.dumps(message), flush=True)
def ask(): return json.loads(sys.stdin.readline() or '{"type":"exit"}')
ask()
say(type="hello", protocol=1, name="broken", train_examples=0, eval_examples=360)
shapes = [("fc1.weight", [32, 64]), ("fc1.bias", [32]), ("fc2.weight", [10, 32]), ("fc2.bias", [10])]
while (request := ask())["type"] != "exit":
    if request["type"] == "prepare":
        say(type="prepared", id=request["id"], tensors=[{"name": name, "shape": shape} for name, shape in shapes])
    else:
        say(type="failed", id=request["id"], kind="error", message="ValueError: no such column")
"#;

/// One failed evaluation used to stop all evaluation for 120 s, and the sound evaluator was not asked.
#[test]
fn a_broken_evaluator_does_not_keep_the_run_from_its_target() -> anyhow::Result<()> {
    if !python_has("json, sys") {
        return Ok(());
    }
    let target = DIGITS.replace("versions = 40", "accuracy = 0.7");
    let mut cluster = Cluster::new(Path::new(LAB), &target)?;
    cluster.start_coordinator()?;
    let (data, test) = (example("data/digits-train.csv.gz"), example("data/digits-test.csv.gz"));
    let script = cluster.path().join("broken.py");
    std::fs::write(&script, BROKEN)?;
    for name in ["trains", "sound", "broken"] {
        cluster.join(name)?;
    }
    let trains: [&OsStr; 4] = ["--shard".as_ref(), data.as_os_str(), "--threads=1".as_ref(), "--min-round=50".as_ref()];
    cluster.start_agent(Role::Agent, "trains", &trains, &[])?;
    poll(PATIENCE, || Ok(cluster.status()?.params))?.context("no model")?;
    cluster.start_agent(Role::Agent, "broken", &["--".as_ref(), "python3".as_ref(), script.as_os_str()], &[])?;
    cluster.agent("broken")?.wait_for_log("this version cannot be evaluated here", PATIENCE)?;
    let live = poll(PATIENCE, || Ok(cluster.agent_status("broken")?.live.and_then(|live| live.evaluation_problem)))?;
    assert!(live.context("its status says nothing")?.contains("no such column"));
    let sound: [&OsStr; 3] = ["--eval-shard".as_ref(), test.as_os_str(), "--threads=1".as_ref()];
    cluster.start_agent(Role::Agent, "sound", &sound, &[])?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let log = cluster.coordinator()?.log()?;
    assert!(log.contains("an evaluation has failed") && log.contains("no such column"), "{log}");
    assert!(!log.contains("no answer within"), "nobody was silent:\n{log}");
    let status = cluster.status()?;
    let shown =
        status.agents.iter().find(|agent| agent.name == "broken").and_then(|agent| agent.evaluation_problem.clone());
    assert!(shown.context("status shows no failure")?.reason.contains("no such column"));
    let reached = status.aggregates.last().context("nothing was measured")?.aggregate;
    assert!(reached.accuracy >= 0.7 && reached.covered_examples == 360, "{reached:?}");
    assert!(cluster.verify()?.holds);
    Ok(())
}
