//! The native models on a GPU, in builds that have a backend for one: `cargo test -p anabranch-tests --features vulkan --test
//! accelerator`. `ANABRANCH_TEST_DEVICE` names another device than the first of the first backend, like `cuda:1`. A machine
//! without the device says so and passes; with `CI=true` it fails.
//!
//! | test | guards |
//! |---|---|
//! | the CPU's losses and models | mlp, cnn and gpt train on the device as on the CPU, but for rounding |
//! | a device that does not exist | the agent says what there is, with exit code 14 |
//! | too little memory | a buffer that the software driver refuses ends the child, and the next round is cut into smaller parts; with CUDA the first one is |
//! | a GPU and a CPU in one run | the child trains on the device, and encodes there with CUDA; killed, it costs a round and nothing else |
#![cfg(any(feature = "cuda", feature = "rocm", feature = "vulkan", feature = "metal"))]

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::Path;

use anabranch_agent::device::{Choice, GpuBackend, GpuId};
use anabranch_agent::shard::{Examples, Inputs, Shard, Text};
use anabranch_agent::train::{Metrics, MicroBatchBudget, NativeOptions, Round, StepReport, Trainer, native_with};
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{ModelKind, ModelSpec, OptimizerSpec, TrainSpec};
use anabranch_tests::clock::poll;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, example, numbers};
use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
const STEPS: u32 = 10;

/// How far a device may be from the CPU.
struct Tolerances {
    /// Of losses, relatively.
    losses: f64,
    /// Of what was learned: the distance of the models, by the way that the CPU's has gone.
    sgd: f64,
    /// The same of AdamW, which divides by the size of a gradient, and so makes rounding of small ones large.
    adamw: f64,
}

/// Kernels for Vulkan and Metal compute in f32. Those of CUDA and ROCm multiply matrices in tensor cores where there are any,
/// which read f32 with 10 bits after the point (TF32); their tolerances are guessed, nobody has run this there.
fn tolerances(backend: GpuBackend) -> Tolerances {
    match backend {
        GpuBackend::Vulkan | GpuBackend::Metal => Tolerances { losses: 1e-5, sgd: 1e-4, adamw: 1e-3 },
        GpuBackend::Cuda | GpuBackend::Rocm => Tolerances { losses: 1e-2, sgd: 5e-2, adamw: 2e-1 },
    }
}

/// The device to test, once it is known to be usable.
fn device() -> anyhow::Result<Option<GpuId>> {
    let first = || GpuBackend::ALL.into_iter().find(|backend| backend.is_built()).map(GpuBackend::first);
    let id = match std::env::var("ANABRANCH_TEST_DEVICE") {
        Ok(text) => match text.parse()? {
            Choice::Gpu(id) => id,
            other => anyhow::bail!("{other} is no GPU"),
        },
        Err(_) => first().context("this file needs a backend")?,
    };
    let options = NativeOptions { device: Some(id), ..NativeOptions::default() };
    match native_with(&model(ModelKind::Mlp), options) {
        Ok(_) => Ok(Some(id)),
        Err(error) => {
            ensure!(std::env::var_os("CI").is_none(), "{error}");
            println!("skipped: {error}");
            Ok(None)
        }
    }
}

fn model(kind: ModelKind) -> ModelSpec {
    match kind {
        ModelKind::Gpt => ModelSpec { kind, context: 32, layers: 2, heads: 2, width: 32, ..ModelSpec::default() },
        _ => ModelSpec { kind, input: vec![1, 12, 12], classes: 3, input_scale: 1.0 / 255.0, ..ModelSpec::default() },
    }
}

/// Class c has its bright third of rows at the top, in the middle or at the bottom.
fn stripes(examples: usize) -> anyhow::Result<Examples> {
    let mut rng = SplitMix64::new(3);
    let labels: Vec<u32> = (0..examples).map(|index| u32::try_from(index % 3)).collect::<Result<_, _>>()?;
    let mut pixels = Vec::new();
    for label in &labels {
        for position in 0..12 * 12 {
            let bright = if position / (4 * 12) == *label { 120 } else { 0 };
            pixels.push(u8::try_from(bright + rng.below(100))?);
        }
    }
    Examples::new(Inputs::Bytes(pixels), labels, vec![12, 12]).context("a label for each image")
}

/// Bytes that follow from the ones before, as far as letters of a few words do.
fn words(length: usize) -> anyhow::Result<Text> {
    let mut rng = SplitMix64::new(4);
    let mut text = Vec::new();
    while text.len() < length {
        text.extend_from_slice([&b"harbour "[..], b"lantern ", b"ferry "][usize::try_from(rng.below(3))?]);
    }
    Text::new(text).context("long enough")
}

struct Reached {
    losses: Vec<f32>,
    end: Vec<f32>,
    metrics: Metrics,
}

fn train(
    trainer: &mut dyn Trainer,
    base: &[f32],
    plan: &TrainSpec,
    micro_batch: Option<u32>,
    shard: &dyn Shard,
) -> anyhow::Result<Reached> {
    let mut losses = Vec::new();
    let mut note = |report: StepReport| {
        losses.push(report.loss);
        ControlFlow::Continue(())
    };
    let budget = Some(MicroBatchBudget { most: micro_batch, begins: &mut |_| {} });
    let outcome = trainer.train(Round { budget, ..Round::new(base, plan, 7, shard, &mut note) })?;
    let metrics = trainer.evaluate(&outcome.end, shard)?;
    Ok(Reached { losses, end: outcome.end, metrics })
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

fn apart(a: f64, b: f64) -> f64 {
    (a - b).abs() / b.abs()
}

#[test]
fn a_gpu_trains_as_the_cpu_does_but_for_rounding() -> anyhow::Result<()> {
    let Some(id) = device()? else { return Ok(()) };
    let sgd = OptimizerSpec::Sgd { lr: 0.05, momentum: 0.9 };
    let adamw = OptimizerSpec::AdamW { lr: 1e-3, weight_decay: 0.01, beta_1: 0.9, beta_2: 0.999 };
    let (images, text) = (stripes(150)?, words(3000)?);
    let options = NativeOptions { threads: Some(2), ..NativeOptions::default() };
    let allowed = tolerances(id.backend);
    println!(
        "{id}, {STEPS} steps: relative differences from the CPU\n{:<22}{:>12}{:>12}{:>12}",
        "", "losses", "learned", "evaluated"
    );
    for (kind, optimizer, micro_batch) in [
        (ModelKind::Mlp, &sgd, None),
        (ModelKind::Cnn, &sgd, None),
        (ModelKind::Cnn, &sgd, Some(5)),
        (ModelKind::Gpt, &sgd, None),
        (ModelKind::Mlp, &adamw, None),
        (ModelKind::Gpt, &adamw, None),
    ] {
        let shard: &dyn Shard = if kind == ModelKind::Gpt { &text } else { &images };
        let plan = TrainSpec {
            local_steps: STEPS,
            batch_size: 16,
            optimizer: optimizer.clone(),
            keep_optimizer_state: false,
            target_round_s: None,
            max_local_steps: None,
            schedule: None,
            proximal_mu: 0.0,
        };
        let mut cpu = native_with(&model(kind), options)?;
        let mut gpu = native_with(&model(kind), NativeOptions { device: Some(id), ..options })?;
        let base = cpu.initial(1)?;
        assert_eq!(gpu.initial(1)?, base, "the initial model does not depend on the device");
        let expected = train(&mut *cpu, &base, &plan, None, shard)?;
        let found = train(&mut *gpu, &base, &plan, micro_batch, shard)?;
        let again = train(&mut *gpu, &base, &plan, micro_batch, shard)?;
        let losses = found.losses.iter().zip(&expected.losses);
        let losses = losses.map(|(a, b)| apart(f64::from(*a), f64::from(*b))).fold(0.0, f64::max);
        let learned = distance(&found.end, &expected.end) / distance(&expected.end, &base);
        let evaluated = apart(found.metrics.loss, expected.metrics.loss);
        let (sgd, tolerance) = match optimizer {
            OptimizerSpec::Sgd { .. } => ("sgd", allowed.sgd),
            OptimizerSpec::AdamW { .. } => ("adamw", allowed.adamw),
        };
        let name = format!("{kind:?} {sgd}{}", if micro_batch.is_some() { ", in parts" } else { "" });
        let same = if again.end == found.end { "the same bits twice" } else { "other bits the second time" };
        println!("{name:<22}{losses:>12.1e}{learned:>12.1e}{evaluated:>12.1e}   {same}");
        assert_eq!(found.losses.len(), STEPS as usize);
        assert!(expected.losses.last() < expected.losses.first(), "{name}: nothing was learned, {:?}", expected.losses);
        assert!(losses < allowed.losses, "{name}: {:?} on the device, {:?} on the CPU", found.losses, expected.losses);
        assert!(learned < tolerance, "{name}: the models are {learned} apart");
        assert!(
            evaluated < allowed.losses,
            "{name}: {:?} on the device, {:?} on the CPU",
            found.metrics,
            expected.metrics
        );
        assert!(
            distance(&again.end, &found.end) <= tolerance * distance(&expected.end, &base),
            "{name}: the second time"
        );
    }
    Ok(())
}

#[test]
fn a_device_that_does_not_exist_ends_the_agent_with_what_there_is() -> anyhow::Result<()> {
    let Some(id) = device()? else { return Ok(()) };
    let missing = GpuId { index: 99, ..id };
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    let (data, device) = (example("data/digits-train.csv.gz"), format!("--device={missing}"));
    let args: [&OsStr; 3] = [device.as_ref(), "--shard".as_ref(), data.as_os_str()];
    let agent = cluster.start_agent(Role::Agent, "one", &args, &[])?;
    assert_eq!(agent.wait(PATIENCE)?, 14);
    let log = agent.log()?;
    assert!(log.contains(&format!("{missing} does not exist: the ")) && log.contains("numbered 0 to"), "{log}");
    let program = ["--", "python3", "train.py"].map(OsStr::new);
    let agent = cluster.start_agent(Role::Agent, "one", &[&[device.as_ref()], &program[..]].concat(), &[])?;
    assert_eq!(agent.wait(PATIENCE)?, 2);
    assert!(agent.log()?.contains("is for the native models"), "{}", agent.log()?);
    Ok(())
}

/// 65,536 examples times a layer of 1024 are 256 MiB; lavapipe's buffers have at most 128 MiB. Other devices take them. CUDA
/// tells what is free: 65,536 examples times a layer of 65,536 are 16 GiB, several times over, and are cut before anything
/// fails.
#[test]
fn a_round_that_runs_out_of_memory_is_followed_by_one_in_smaller_parts() -> anyhow::Result<()> {
    let Some(id) = device()? else { return Ok(()) };
    let hidden = if id.backend == GpuBackend::Cuda { 65_536 } else { 1024 };
    let wide = DIGITS.replace("hidden = [32]", &format!("hidden = [{hidden}]"));
    let wide = wide.replace("local_steps = 5", "local_steps = 1").replace("batch_size = 16", "batch_size = 65536");
    let mut cluster = Cluster::new(Path::new(LAB), &wide)?;
    cluster.start_coordinator()?;
    cluster.join("one")?;
    let (data, device) = (example("data/digits-train.csv.gz"), format!("--device={id}"));
    let args: [&OsStr; 3] = [device.as_ref(), "--shard".as_ref(), data.as_os_str()];
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    cluster.wait_for_updates(1)?;
    let log = cluster.agent("one")?.log()?;
    if log.contains("llvmpipe") {
        assert!(log.contains("the GPU is out of memory: ") && log.contains("a round ran out of memory"), "{log}");
        assert_eq!(numbers(&log, "a round ran out of memory", "max_micro_batch"), [32_768], "{log}");
    }
    if id.backend == GpuBackend::Cuda {
        let live = cluster.agent_status("one")?.live.context("it runs")?;
        let micro_batch = live.micro_batch.context("a micro-batch")?;
        assert!(micro_batch < 65_536, "{micro_batch} examples at once");
    }
    cluster.park_agents()
}

/// Processes that a log says were started as trainers.
fn trainers(log: &Path) -> anyhow::Result<Vec<u64>> {
    Ok(numbers(&std::fs::read_to_string(log)?, "trainer started", "pid"))
}

#[test]
fn a_gpu_and_a_cpu_train_one_model_and_a_killed_child_costs_a_round() -> anyhow::Result<()> {
    let Some(id) = device()? else { return Ok(()) };
    let mut cluster = Cluster::new(Path::new(LAB), DIGITS)?;
    cluster.start_coordinator()?;
    let data = example("data/digits-train.csv.gz");
    for (name, device) in [("gpu", id.to_string()), ("cpu", "cpu".to_owned())] {
        cluster.join(name)?;
        let device = format!("--device={device}");
        let args: [&OsStr; 6] = [
            device.as_ref(),
            "--shard".as_ref(),
            data.as_os_str(),
            "--eval-shard".as_ref(),
            data.as_os_str(),
            "--min-round=200".as_ref(),
        ];
        cluster.start_agent(Role::Agent, name, &args, &[])?;
    }
    let log = cluster.log_path("gpu");
    let of_gpu = cluster.agent_id("gpu")?;
    let updates = |status: &anabranch_common::status::StatusReport| {
        status.agents.iter().find(|agent| agent.agent == of_gpu).map_or(0, |agent| agent.updates_accepted)
    };
    for kills in 1..=2 {
        poll(PATIENCE, || Ok((trainers(&log)?.len() >= kills).then_some(())))?.context("no fresh trainer")?;
        let before = updates(&cluster.status()?);
        cluster.wait_until("updates of the GPU", PATIENCE, |status| updates(status) > before)?;
        let newest = *trainers(&log)?.last().context("a trainer was started")?;
        kill(Pid::from_raw(newest.try_into()?), Signal::SIGKILL)?;
    }
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    for name in ["gpu", "cpu"] {
        assert_eq!(cluster.agent(name)?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    }
    let text = std::fs::read_to_string(&log)?;
    assert!(text.contains(&format!("({id})")) && text.contains("it was killed by signal 9"), "{text}");
    // Where there is an encoder for the device, it is the one that is used.
    assert_eq!(text.contains("encoded by the trainer"), id.backend == GpuBackend::Cuda, "{text}");
    assert!(updates(&cluster.status()?) > 0);
    assert!(cluster.verify()?.holds);
    Ok(())
}
