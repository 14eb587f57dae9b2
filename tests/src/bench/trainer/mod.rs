//! `anabranch-lab bench trainer`: the native trainer next to PyTorch, the same models and steps on the same cores.
//!
//! Both sides take turns of a second or so, ours, theirs, ours, theirs, so that whatever else the machine does hits both.
//! Besides wall time there is processor time: on a machine that others use, the ratio of that is the one to trust.
//! A step is everything from drawing a batch to the optimizer's step; neither side counts making the model.
//! With `--device cuda` both sides use that GPU, and PyTorch has its data there. On other GPUs ours stands alone.

mod cases;
mod pytorch;

use std::ops::ControlFlow;
use std::path::PathBuf;

use anabranch_agent::device::{Choice, GpuBackend, GpuId};
use anabranch_agent::train::{NativeOptions, Round, Trainer, native_with};
use anabranch_common::spec::{OptimizerSpec, TrainSpec};
use anyhow::{Context as _, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::clock::Stopwatch;
use crate::report::{Report, quantile};

use cases::{Case, Data};
use pytorch::PyTorch;

/// Steps that show how long a step takes, after as many that warm up.
const PROBE_STEPS: u32 = 5;
/// What share of PyTorch's speed is aimed at.
const AIM: f64 = 0.5;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// A Python that has PyTorch; without PyTorch only the native trainer is measured
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub python: PathBuf,
    /// Threads of either side; one, and then as many as there are cores, when absent
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub model: String,
    /// Turns of each side
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How long a turn takes
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub seconds: f64,
    /// Where to train: cpu, or a GPU backend of this build with a number, like cuda:1
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: Choice,
}

impl Options {
    fn gpu(&self) -> Option<GpuId> {
        match self.device {
            Choice::Gpu(id) => Some(id),
            Choice::Auto | Choice::Cpu => None,
        }
    }
}

/// A turn, or the sum of several.
#[derive(Debug, Clone, Copy)]
struct Turn {
    wall_s: f64,
    cpu_s: f64,
}

/// One side of a comparison.
trait Side {
    fn train(&mut self, steps: u32) -> anyhow::Result<Turn>;
}

/// Measures.
///
/// # Errors
/// A trainer fails, or the Python process does.
pub fn run(options: &Options, seed: u64) -> anyhow::Result<Report> {
    let mut report = Report::new("anabranch-lab bench trainer", seed);
    let of_cuda = options.gpu().is_some_and(|id| id.backend == GpuBackend::Cuda);
    let mut pytorch = match PyTorch::start(&options.python) {
        Ok(_) if options.gpu().is_some() && !of_cuda => {
            println!("only the native trainer is measured: PyTorch does not train on {}", options.device);
            None
        }
        Ok(pytorch) if of_cuda && !pytorch.cuda => {
            println!("only the native trainer is measured: this PyTorch sees no GPU");
            None
        }
        Ok(pytorch) => {
            println!("PyTorch {} ({})", pytorch.version, if pytorch.mkl { "with MKL" } else { "without MKL" });
            Some(pytorch)
        }
        Err(error) => {
            println!("only the native trainer is measured: {error:#}; --python names a Python that has PyTorch");
            None
        }
    };
    let data = Data::new(seed)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.map_or_else(|| if cores > 1 { vec![1, cores] } else { vec![1] }, |n| vec![n]);
    let profile = if cfg!(debug_assertions) { "development" } else { "release" };
    println!(
        "{profile} profile, device {}; examples a second by wall time, and by processor time of all threads; medians\n",
        options.device
    );
    println!("{:<24}{:>8}{:>21}{:>21}{:>16}", "", "threads", "native", "PyTorch", "ratio");
    let mut cpu_ratios = Vec::new();
    for case in cases::all(options.gpu().is_some()).iter().filter(|case| case.name.contains(&options.model)) {
        for threads in &threads {
            cpu_ratios.extend(compare(&mut report, options, case, *threads, &data, pytorch.as_mut())?);
        }
    }
    // On a GPU processor time is that of a process which waits.
    if pytorch.is_some() && options.gpu().is_none() {
        let reached = cpu_ratios.iter().all(|ratio| *ratio >= AIM);
        report.aim(format!("at least {AIM} of PyTorch's examples a second of processor time, every model"), reached);
    }
    Ok(report)
}

/// Measures one model with one number of threads; the ratio by processor time where there is a PyTorch.
fn compare(
    report: &mut Report,
    options: &Options,
    case: &Case,
    threads: usize,
    data: &Data,
    pytorch: Option<&mut PyTorch>,
) -> anyhow::Result<Option<f64>> {
    let mut native = Native::new(case, threads, options.gpu(), data)?;
    let mut sides: Vec<&mut dyn Side> = vec![&mut native];
    if let Some(pytorch) = pytorch {
        let params = pytorch.make(case, threads, &options.gpu().map_or("cpu".to_owned(), |id| id.to_string()))?;
        let expected = native_with(&case.spec, NativeOptions::default())?.manifest().params() as u64;
        ensure!(params == expected, "{}: PyTorch's model has {params} parameters, ours {expected}", case.name);
        sides.push(pytorch);
    }
    let mut steps = Vec::new();
    for side in &mut sides {
        side.train(PROBE_STEPS)?;
        let probe = side.train(PROBE_STEPS)?;
        steps.push(steps_in(options.seconds, probe.wall_s / f64::from(PROBE_STEPS)));
    }
    // By side: examples a second by wall time, and by processor time.
    let mut speeds = vec![[Vec::new(), Vec::new()]; sides.len()];
    for _ in 0..options.rounds {
        for ((side, steps), speeds) in sides.iter_mut().zip(&steps).zip(&mut speeds) {
            let turn = side.train(*steps)?;
            let examples = f64::from(*steps) * f64::from(case.batch);
            speeds[0].push(examples / turn.wall_s);
            speeds[1].push(examples / turn.cpu_s);
        }
    }
    let medians: Vec<[f64; 2]> = speeds.into_iter().map(|side| side.map(median)).collect();
    print!("{:<24}{threads:>8}", case.name);
    for (name, [wall, cpu]) in ["native", "pytorch"].iter().zip(&medians) {
        print!("{wall:>11.0}{cpu:>10.0}");
        let key = format!("{}_{threads}_threads_{name}_examples_per", case.name.replace(' ', "_"));
        report.metric(format!("{key}_s"), *wall);
        report.metric(format!("{key}_cpu_s"), *cpu);
    }
    let ratio = match medians[..] {
        [native, pytorch] => Some([native[0] / pytorch[0], native[1] / pytorch[1]]),
        _ => None,
    };
    match ratio {
        Some([wall, cpu]) => println!("{wall:>9.2}{cpu:>7.2}"),
        None => println!(),
    }
    Ok(ratio.map(|[_, cpu]| cpu))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn steps_in(seconds: f64, step_s: f64) -> u32 {
    (seconds / step_s).clamp(1.0, 1e6) as u32
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// Our side, in this process.
struct Native<'a> {
    trainer: Box<dyn Trainer>,
    plan: TrainSpec,
    model: Vec<f32>,
    data: &'a Data,
    seed: u64,
}

impl<'a> Native<'a> {
    fn new(case: &Case, threads: usize, device: Option<GpuId>, data: &'a Data) -> anyhow::Result<Self> {
        let options = NativeOptions { threads: Some(threads), device, ..NativeOptions::default() };
        let mut trainer = native_with(&case.spec, options)?;
        let model = trainer.initial(1)?;
        let optimizer: OptimizerSpec = case.optimizer.clone();
        // The optimizer lives on from turn to turn, as PyTorch's does.
        let plan = TrainSpec {
            local_steps: 0,
            batch_size: case.batch,
            optimizer,
            keep_optimizer_state: true,
            target_round_s: None,
            max_local_steps: None,
            schedule: None,
            proximal_mu: 0.0,
        };
        Ok(Self { trainer, plan, model, data, seed: 0 })
    }
}

impl Side for Native<'_> {
    fn train(&mut self, steps: u32) -> anyhow::Result<Turn> {
        self.seed += 1;
        let plan = TrainSpec { local_steps: steps, ..self.plan.clone() };
        let shard = self.data.shard(self.trainer.as_ref());
        let (watch, cpu_s) = (Stopwatch::start(), own_cpu_s()?);
        let outcome =
            self.trainer.train(Round::new(&self.model, &plan, self.seed, shard, &mut |_| ControlFlow::Continue(())))?;
        let turn = Turn { wall_s: watch.seconds(), cpu_s: own_cpu_s()? - cpu_s };
        self.model = outcome.end;
        Ok(turn)
    }
}

/// Processor time of this process, all threads.
fn own_cpu_s() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("the system does not tell processor time")?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_fills_its_time_with_whole_steps() {
        assert_eq!(steps_in(1.0, 0.3), 3);
        assert_eq!(steps_in(1.0, 7.0), 1);
    }

    #[test]
    fn without_pytorch_only_our_side_is_measured() {
        let options = Options {
            python: "no-such-python".into(),
            threads: Some(1),
            model: "mlp 784-128".into(),
            rounds: 1,
            seconds: 0.01,
            device: Choice::Cpu,
        };
        let report = run(&options, 1).expect("measures");
        assert!(report.aims.is_empty(), "nothing to compare with: {:?}", report.aims);
        let names: Vec<&String> = report.metrics.keys().collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.iter().all(|name| name.contains("native")), "{names:?}");
    }
}
