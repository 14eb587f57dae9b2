//! Pods of a model that agents' own trainers compute in parts: PyTorch children of real agents on loopback.
//!
//! | test | guards |
//! |---|---|
//! | two stages | the children of two agents train to the model of one child, and to the same bits when children are killed |
//! | a module that always fails | its attempts end, `status` says why, and the owner trains once the helper starts again |
//! | a trainer that computes no parts | is refused with what to do, and so is a table that is not its model's |

use std::ffi::OsStr;
use std::path::Path;

use anabranch_common::journal::FinishReason;
use anabranch_common::status::StatusReport;
use anabranch_io::model_file;
use anabranch_tests::clock::poll;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, PYTHON_PACKAGE, Role, example, numbers, python_with_torch};
use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
const VERSIONS: u64 = 8;
/// What `examples/pytorch_stages/train.py --rows` prints.
const ROWS: &str = "modules = [
    { parameters = 3120, output = [48] },
    { parameters = 2352, output = [48] },
    { parameters = 1568, output = [32] },
    { parameters = 330, output = [10] },
]";

/// DIGITS with the model of the example, merged without time in it and sent without loss, in pods of two.
fn settings(rows: &str) -> String {
    let fedbuff = "\"fedbuff\"\nbuffer_size = 2\nserver_lr = 1.0\nstaleness = { fn = \"polynomial\", a = 0.5 }\n";
    let fedasync = "\"fedasync\"\nalpha = 1.0\nstaleness = { fn = \"constant\" }\n";
    let model = "kind = \"mlp\"\ninput = [64]\nclasses = 10\nhidden = [32]\ninput_scale = 0.0625\n";
    let track = "[downlink]\ntrack = { codec = { kind = \"top-k\", fraction = 0.075, bits = 4 } }\n";
    let replaced = DIGITS
        .replace(fedbuff, fedasync)
        .replace(model, &format!("kind = \"custom\"\n{rows}\n"))
        .replace(track, "")
        .replace("codec = { kind = \"top-k\", fraction = 0.05 }", "codec = { kind = \"f32\" }")
        .replace("local_steps = 5", "local_steps = 20")
        .replace("optimizer = { kind = \"sgd\", lr = 0.1 }", "optimizer = { kind = \"sgd\", lr = 0.1, momentum = 0.9 }")
        .replace("every_versions = 5", &format!("every_versions = {VERSIONS}"))
        .replace("versions = 40", &format!("versions = {VERSIONS}"));
    format!("{replaced}\n[pod]\nkind = \"stages\"\nstages = 2\nmicro_batches = 2\n")
}

/// A trainer of the same model whose modules all fail.
const FAILS: &str = "
import anabranch.torch
from torch import nn

class Fails(nn.Sequential):
    def forward(self, input):
        raise ValueError('no such operation on this machine')

modules = [
    Fails(nn.Linear(64, 48), nn.Tanh()),
    Fails(nn.Linear(48, 48), nn.Tanh()),
    Fails(nn.Linear(48, 32), nn.Tanh()),
    nn.Linear(32, 10),
]
anabranch.torch.run_stages(modules, nn.functional.cross_entropy, None, init=lambda: modules)
";

fn start(cluster: &mut Cluster, python: &str, name: &str, options: &[&str]) -> anyhow::Result<()> {
    start_with(cluster, python, &example("pytorch_stages/train.py"), name, options)
}

fn start_with(cluster: &mut Cluster, python: &str, script: &Path, name: &str, options: &[&str]) -> anyhow::Result<()> {
    let (data, test) = (example("data/digits-train.csv.gz"), example("data/digits-test.csv.gz"));
    let mut args: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
    args.push("--threads=1".as_ref());
    if name == "owner" {
        args.extend(["--shard".as_ref(), data.as_os_str(), "--eval-shard".as_ref(), test.as_os_str()]);
    }
    args.extend([OsStr::new("--"), python.as_ref(), script.as_os_str()]);
    cluster.start_agent(Role::Agent, name, &args, &[("PYTHONPATH", PYTHON_PACKAGE)])?;
    Ok(())
}

/// What a run of the example came to.
struct Came {
    model: Vec<f32>,
    accuracy: f64,
}

/// Trains with an owner, and with a helper where the owner joins pods.
fn trained(python: &str, pod: bool, disturb: impl FnOnce(&mut Cluster) -> anyhow::Result<()>) -> anyhow::Result<Came> {
    let mut cluster = Cluster::new(Path::new(LAB), &settings(ROWS))?;
    cluster.start_coordinator()?;
    let names: &[&str] = if pod { &["owner", "helper"] } else { &["owner"] };
    let options: &[&str] = if pod { &["--pod-listen=127.0.0.1:0"] } else { &[] };
    for name in names {
        cluster.join(name)?;
        start(&mut cluster, python, name, options)?;
    }
    disturb(&mut cluster)?;
    assert_eq!(cluster.coordinator()?.wait(3 * PATIENCE)?, 0, "{}", cluster.logs());
    let status = cluster.status()?;
    assert_eq!(status.finished, Some(FinishReason::Versions), "{status:?}");
    assert_eq!(status.params, Some(3120 + 2352 + 1568 + 330));
    let helped = std::fs::read_to_string(cluster.log_path("helper")).is_ok_and(|log| log.contains("member of a pod"));
    assert_eq!(helped, pod, "{}", cluster.logs());
    let path = cluster.path().join("model.safetensors");
    cluster.coordinate(&["checkpoint", "export"], &["--out", &path.display().to_string()])?.code(0)?;
    cluster.verify()?;
    let (_, model) = model_file::read(&path, None)?;
    let accuracy = status.aggregates.last().context("it was measured")?.aggregate.accuracy;
    Ok(Came { model, accuracy })
}

/// The processes of an agent's trainers, oldest first.
fn trainers(cluster: &Cluster, name: &str) -> anyhow::Result<Vec<u64>> {
    Ok(numbers(&std::fs::read_to_string(cluster.log_path(name))?, "trainer started", "pid"))
}

#[test]
fn the_children_of_two_agents_train_to_the_model_of_one_child() -> anyhow::Result<()> {
    let Some(python) = python_with_torch() else { return Ok(()) };
    let alone = trained(&python, false, |_| Ok(()))?;
    let together = trained(&python, true, |_| Ok(()))?;
    let furthest = alone.model.iter().zip(&together.model).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(furthest < 1e-5, "the models differ by {furthest}");
    assert!((alone.accuracy - together.accuracy).abs() < 1e-9, "{} {}", alone.accuracy, together.accuracy);
    assert!(together.accuracy > 0.8, "{}", together.accuracy);

    let disturbed = trained(&python, true, |cluster| {
        for (updates, name) in [(1, "owner"), (2, "helper"), (4, "owner"), (6, "helper")] {
            cluster.wait_for_updates(updates)?;
            let before = trainers(cluster, name)?;
            let child = *before.last().context("it has a trainer")?;
            kill(Pid::from_raw(i32::try_from(child)?), Signal::SIGKILL)?;
            let fresh = poll(PATIENCE, || Ok((trainers(cluster, name)?.len() > before.len()).then_some(())))?;
            fresh.context("no fresh trainer")?;
        }
        Ok(())
    })?;
    let bits = |model: &[f32]| model.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert!(bits(&disturbed.model) == bits(&together.model), "the killed children changed the model");
    Ok(())
}

#[test]
fn a_module_that_always_fails_costs_its_lease_and_not_the_run() -> anyhow::Result<()> {
    let Some(python) = python_with_torch() else { return Ok(()) };
    let options = &["--pod-listen=127.0.0.1:0"];
    let mut cluster = Cluster::new(Path::new(LAB), &settings(ROWS))?;
    cluster.start_coordinator()?;
    let script = cluster.path().join("fails.py");
    std::fs::write(&script, FAILS)?;
    for name in ["owner", "helper"] {
        cluster.join(name)?;
    }
    start(&mut cluster, &python, "owner", options)?;
    start_with(&mut cluster, &python, &script, "helper", options)?;
    let reason = |status: &StatusReport| status.pods.as_ref().and_then(|pods| pods.problem.clone()).unwrap_or_default();
    let is_given_up = |status: &StatusReport| reason(status).contains("was given up after 8 attempts");
    let status = cluster.wait_until("a lease that was given up", 2 * PATIENCE, is_given_up)?;
    assert!(reason(&status).contains("no such operation on this machine"), "{}", reason(&status));
    assert_eq!(status.updates_accepted, 0);
    let log = std::fs::read_to_string(cluster.log_path("coordinator"))?;
    assert!(log.contains("was given up after 8 attempts"), "{log}");

    // The agent's owner has mended its trainer.
    cluster.agent("helper")?.kill()?;
    start(&mut cluster, &python, "helper", options)?;
    assert_eq!(cluster.coordinator()?.wait(3 * PATIENCE)?, 0, "{}", cluster.logs());
    assert_eq!(cluster.status()?.finished, Some(FinishReason::Versions));
    cluster.verify()?;
    Ok(())
}

/// An agent that joins pods and could not compute its part ends with the reason.
#[test]
fn a_trainer_that_computes_no_parts_and_a_table_of_another_model_are_refused() -> anyhow::Result<()> {
    let Some(python) = python_with_torch() else { return Ok(()) };
    let mut cluster = Cluster::new(Path::new(LAB), &settings(ROWS))?;
    cluster.start_coordinator()?;
    cluster.join("numpy")?;
    let (data, script) = (example("data/digits-train.csv.gz"), example("numpy_digits/train.py"));
    let mut args: Vec<&OsStr> = ["--pod-listen=127.0.0.1:0", "--shard"].map(OsStr::new).to_vec();
    args.extend([data.as_os_str(), "--".as_ref(), python.as_ref(), script.as_os_str()]);
    let agent = cluster.start_agent(Role::Agent, "numpy", &args, &[("PYTHONPATH", PYTHON_PACKAGE)])?;
    assert_eq!(agent.wait(PATIENCE)?, 10);
    let log = agent.log()?;
    assert!(log.contains("computes no parts of a model") && log.contains("run_stages"), "{log}");

    let rows = ROWS.replace("parameters = 1568", "parameters = 1569");
    let mut cluster = Cluster::new(Path::new(LAB), &settings(&rows))?;
    cluster.start_coordinator()?;
    cluster.join("owner")?;
    start(&mut cluster, &python, "owner", &["--pod-listen=127.0.0.1:0"])?;
    assert_eq!(cluster.agent("owner")?.wait(PATIENCE)?, 10);
    let log = cluster.agent("owner")?.log()?;
    assert!(log.contains("parameters = 1569 in row 2, expected parameters = 1568 there"), "{log}");
    Ok(())
}
