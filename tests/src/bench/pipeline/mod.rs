//! `anabranch-lab bench pipeline`: how busy the members of a pod are, by schedule and line.
//!
//! ```text
//!  member 0 ─ Links ─► (line) ─► member 1 ─ Links ─► (line) ─► ...       threads of one process
//!     └ order of its stage ─► wait as long as the device computes ─► parcel
//! ```
//! Each member has real links, with certificates of one coordinator, and drives the order of its stage. In place of maths it
//! waits: T for a forward pass, 2 T for a backward pass, nothing for an update. What crosses a cut has the size that the model
//! gives it. Weights, losses and tied tensors do not travel.
//!
//! A run is held against the same round in virtual time, over lines that carry exactly their rate (`ideal.rs`). Without lines that
//! is 1/N for `sequential`, M/(M+N-1) for `flush` and 1 for `pipelined`.

mod ideal;
pub(in crate::bench) mod member;

use std::time::Duration;

use anabranch_agent::pod::ParcelSizes;
use anabranch_agent::train::native::pipeline::content_sizes;
use anabranch_common::ids::{Digest, LeaseId};
use anabranch_common::journal::Plan;
use anabranch_common::pod::{PodMark, PodPart, PodRound};
use anabranch_common::spec::{Activations, Labels, ModelSpec, PodSpec, ScheduleKind, StageCount, StagesSpec};
use anabranch_testkit::lease::PLAN;
use anyhow::{Context as _, ensure};
use tokio::runtime::Runtime;

use self::ideal::{Efficiency, Line, Log, Round};
use self::member::{Job, Members, Record};
use crate::chaos::link::Conditions;
use crate::chaos::proxy::{Proxy, Shape};
use crate::report::Report;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Members, each with one stage
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=16))]
    members: u32,
    /// Micro-batches of a step
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    micro_batches: u32,
    /// Steps of a round over loopback
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(2..))]
    steps: u32,
    /// Steps of a round over lines
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..))]
    line_steps: u32,
    /// What a stage takes for the forward pass of a micro-batch; a backward pass takes twice as long
    #[arg(long, value_name = "MS", default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    forward: u64,
    /// Examples of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    examples: u32,
    /// Rate of the line between two members, each way
    #[arg(long, value_name = "KBIT/S", default_value_t = 80_000, value_parser = clap::value_parser!(u64).range(8..))]
    rate: u64,
    /// Delay of that line, each way
    #[arg(long, value_name = "MS", default_value_t = 50)]
    delay: u64,
    /// The gpt, whose width and context say what crosses a cut
    #[arg(long, value_name = "TOML", default_value = "context = 256\nlayers = 8\nheads = 8\nwidth = 512")]
    model: String,
    /// Which runs, by how their names begin, such as `loopback` or `line-bf16`; all when absent
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,
}

/// The share of what is possible that is to be reached.
const AIM: f64 = 0.95;
/// From which share of an ideal something counts as what binds it.
const BINDS: f64 = 0.95;
/// The run whose efficiency is the bench's figure.
const MEASURED: &str = "loopback-f32-pipelined";
/// Silence after which a member counts as dead, in seconds; longer than a parcel takes anywhere here.
const DEADLINE_S: f64 = 60.0;

const SCHEDULES: [(&str, ScheduleKind); 3] =
    [("sequential", ScheduleKind::Sequential), ("flush", ScheduleKind::Flush), ("pipelined", ScheduleKind::Pipelined)];
const FORMS: [(&str, Activations, u64); 2] = [("f32", Activations::F32, 4), ("bf16", Activations::Bf16, 2)];

/// One run.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    schedule: ScheduleKind,
    form: Activations,
    /// Bytes of a parcel's values.
    bytes: u64,
    over_lines: bool,
}

/// What one run came to.
#[derive(Debug)]
struct Found {
    measured: Efficiency,
    ideal: Efficiency,
    /// Bytes of parcels a second, each way between two members, between the first update and the last.
    bytes_per_s: f64,
    /// By how much waits took longer than devices, as a share of what these compute.
    late: f64,
    binds: &'static str,
}

/// Measures every run that is asked for.
///
/// # Errors
/// No run has such a name, the model is none, or a member fails.
pub fn run(options: &Options, seed: u64) -> anyhow::Result<Report> {
    let Options { members, micro_batches, steps, line_steps, forward, examples, rate, delay, .. } = options;
    let command = format!(
        "anabranch-lab bench pipeline --members {members} --micro-batches {micro_batches} --steps {steps} --line-steps \
         {line_steps} --forward {forward} --examples {examples} --rate {rate} --delay {delay}"
    );
    let sizes = options.sizes()?;
    let cases = options.cases(sizes.activations)?;
    let pod = Members::new(*members as usize)?;
    let mut report = Report::new(&command, seed);
    println!(
        "{members} members, {micro_batches} micro-batches of {} values a step, {forward} ms forward and {} ms backward; lines of \
         {rate} kbit/s and {delay} ms each way\nefficiency: time that the slowest stage computes, of all; filled: without the \
         filling of the pipeline; ideal: of the schedule over such a line\n{:<26} {:>10} {:>7} {:>7} {:>9} {:>8} {:>7}  binds",
        sizes.activations,
        2 * forward,
        "",
        "efficiency",
        "filled",
        "ideal",
        "of ideal",
        "MB/s",
        "late"
    );
    for (attempt, case) in (1..).zip(&cases) {
        let found = options.measure(&pod, case, sizes, attempt, seed).with_context(|| case.name.clone())?;
        found.report(case, &mut report);
    }
    Ok(report)
}

impl Options {
    /// Returns how large parcels of the model are.
    fn sizes(&self) -> anyhow::Result<ParcelSizes> {
        let model: ModelSpec = toml::from_str(&format!("kind = \"gpt\"\n{}", self.model)).context("--model")?;
        let layers = model.layers()?.context("the model is no native one")?;
        // All cuts of a gpt are as wide as its embedding's output.
        let first = layers.layers.first().context("the model has no layers")?;
        let tied = layers.layers.iter().find_map(|layer| layer.tied);
        let tied = tied.and_then(|index| layers.manifest.tensors().get(index)).and_then(|tensor| tensor.elements());
        let values = first.cost().output_bytes / 4 * u64::from(self.examples);
        let activations = usize::try_from(values)?;
        let (params, contents) = (layers.manifest.params(), content_sizes(&model, None)?);
        Ok(ParcelSizes { params, contents, activations, tied: tied.unwrap_or(0) })
    }

    fn cases(&self, values: usize) -> anyhow::Result<Vec<Case>> {
        let mut cases = Vec::new();
        for (line, over_lines) in [("loopback", false), ("line", true)] {
            for (form_name, form, width) in FORMS {
                for (schedule_name, schedule) in SCHEDULES {
                    let name = format!("{line}-{form_name}-{schedule_name}");
                    cases.push(Case { name, schedule, form, bytes: width * values as u64, over_lines });
                }
            }
        }
        for wanted in &self.case {
            ensure!(cases.iter().any(|case| case.name.starts_with(wanted)), "--case {wanted}: no run begins with that");
        }
        cases.retain(|case| self.case.is_empty() || self.case.iter().any(|wanted| case.name.starts_with(wanted)));
        Ok(cases)
    }

    fn spec(&self, case: &Case) -> StagesSpec {
        StagesSpec {
            stages: StageCount::Exactly(self.members),
            schedule: case.schedule,
            weights: None,
            micro_batches: Some(self.micro_batches),
            activations: case.form,
            labels: Labels::Travel,
            deadline_s: DEADLINE_S,
        }
    }

    fn round(&self, case: &Case) -> Round {
        Round {
            schedule: self.spec(case).schedule(),
            stages: self.members,
            micro_batches: self.micro_batches,
            steps: if case.over_lines { self.line_steps } else { self.steps },
            forward: Duration::from_millis(self.forward),
        }
    }

    fn line(&self, case: &Case) -> Line {
        if !case.over_lines {
            return Line::default();
        }
        let parcel = Duration::from_secs_f64(case.bytes as f64 * 8.0 / (self.rate as f64 * 1e3));
        Line { parcel, delay: Duration::from_millis(self.delay) }
    }

    fn measure(
        &self,
        pod: &Members,
        case: &Case,
        sizes: ParcelSizes,
        attempt: u32,
        seed: u64,
    ) -> anyhow::Result<Found> {
        let round = self.round(case);
        let records = self.compute(pod, case, sizes, attempt, seed)?;
        let late = records.iter().map(|record| record.late.as_secs_f64()).sum::<f64>();
        let logs: Vec<Log> = records.into_iter().map(|record| record.log).collect();
        let measured = round.efficiency(&logs);
        let passes = f64::from(round.steps) * f64::from(round.micro_batches);
        let of_devices = (round.forward * 3).as_secs_f64();
        Ok(Found {
            measured,
            ideal: round.efficiency(&round.ideal(self.line(case))?),
            bytes_per_s: case.bytes as f64 * measured.steady / of_devices,
            late: late / (passes * of_devices * f64::from(round.stages)),
            binds: binds(&round, self.line(case))?,
        })
    }

    /// Lets the members compute one round.
    fn compute(
        &self,
        pod: &Members,
        case: &Case,
        sizes: ParcelSizes,
        attempt: u32,
        seed: u64,
    ) -> anyhow::Result<Vec<Record>> {
        let lines = Runtime::new()?;
        let on = Conditions { delay_ms: self.delay, rate_kbit: self.rate, ..Conditions::default() };
        let mut ports = pod.ports()?;
        let mut proxies = Vec::new();
        if case.over_lines {
            for port in &mut ports {
                let shape = Shape { up: on.clone(), down: on.clone(), rebind_ms: 0 };
                let proxy = Proxy::start(lines.handle(), *port, seed ^ u64::from(*port), shape)?;
                *port = proxy.port();
                proxies.push(proxy);
            }
        }
        let (ids, round) = (pod.ids(), self.round(case));
        let attempt = PodRound {
            spec: Digest::default(),
            mark: PodMark { lease: LeaseId(1), attempt },
            owner: *ids.first().context("a pod without members")?,
            parts: (1..).zip(&ids).map(|(end, agent)| PodPart { end, agent: *agent }).collect(),
            peers: pod.peers(&ports),
            plan: Plan { local_steps: round.steps, ..PLAN },
        };
        let (spec, values) = (PodSpec::Stages(self.spec(case)), sizes.activations);
        pod.compute(Job { attempt: &attempt, spec: &spec, sizes, round, values })
    }
}

/// Returns what keeps a round from being faster, where nothing but devices and lines takes time.
fn binds(round: &Round, line: Line) -> anyhow::Result<&'static str> {
    let steady = |line| anyhow::Ok(round.efficiency(&round.ideal(line)?).steady);
    let (all, without) = (steady(line)?, steady(Line::default())?);
    let share_of_line = all * line.parcel.as_secs_f64() / (round.forward * 3).as_secs_f64();
    Ok(match all {
        all if all >= BINDS => "devices",
        all if all >= BINDS * without => "schedule",
        _ if share_of_line >= BINDS => "bytes of the line",
        _ => "round trips: too few on their way",
    })
}

impl Found {
    fn report(&self, case: &Case, report: &mut Report) {
        let Self { measured, ideal, bytes_per_s, late, binds } = self;
        let of_ideal = measured.steady / ideal.steady;
        println!(
            "{:<26} {:>10.3} {:>7.3} {:>7.3} {:>9.3} {:>8.2} {:>5.1} %  {binds}",
            case.name,
            measured.whole,
            measured.steady,
            ideal.steady,
            of_ideal,
            bytes_per_s / 1e6,
            100.0 * late
        );
        for (name, value) in [
            ("efficiency", measured.steady),
            ("efficiency_with_filling", measured.whole),
            ("ideal_efficiency", ideal.steady),
            ("ideal_efficiency_with_filling", ideal.whole),
            ("bytes_per_s", *bytes_per_s),
            ("late_share", *late),
        ] {
            report.run(&case.name, name, value);
        }
        if case.name == MEASURED {
            report.metric("pipeline_efficiency", measured.steady);
        }
        report.aim(format!("{}: {AIM} of its ideal {:.3}", case.name, ideal.steady), of_ideal >= AIM);
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::pod::order::Work;

    use super::*;

    fn options() -> Options {
        Options {
            members: 2,
            micro_batches: 3,
            steps: 2,
            line_steps: 2,
            forward: 1,
            examples: 2,
            rate: 80_000,
            delay: 1,
            model: "context = 8\nlayers = 2\nheads = 2\nwidth = 16".to_owned(),
            case: Vec::new(),
        }
    }

    fn letters(log: &Log) -> String {
        let letter = |(_, work): &(Duration, Work)| match work {
            Work::Forward { micro_batch, .. } => format!("F{}{}", micro_batch.step, micro_batch.index),
            Work::Backward { micro_batch, .. } => format!("B{}{}", micro_batch.step, micro_batch.index),
            Work::Update { .. } => "U".to_owned(),
        };
        log.iter().map(letter).collect::<Vec<_>>().join(" ")
    }

    /// Real links, direct and through lines: the order of the schedule, and every value once each way.
    #[test]
    fn members_compute_in_the_order_of_their_schedule_over_real_links() {
        let options = options();
        let sizes = options.sizes().expect("a gpt");
        assert_eq!(sizes.activations, 2 * 8 * 16);
        let pod = Members::new(2).expect("members");
        let cases = options.cases(sizes.activations).expect("all");
        assert_eq!(cases.len(), 12);
        for (attempt, case) in (1..).zip(&cases) {
            let records = options.compute(&pod, case, sizes, attempt, 1).expect("computed");
            let found: Vec<String> = records.iter().map(|record| letters(&record.log)).collect();
            let one_by_one = "F00 B00 F01 B01 F02 B02 U F10 B10 F11 B11 F12 B12 U";
            let first = match case.schedule {
                ScheduleKind::Sequential => one_by_one,
                ScheduleKind::Flush => "F00 F01 B00 F02 B01 B02 U F10 F11 B10 F12 B11 B12 U",
                ScheduleKind::Pipelined => "F00 F01 B00 F02 B01 F10 B02 U F11 B10 F12 B11 B12 U",
            };
            assert_eq!(found, [first, one_by_one], "{}", case.name);
            let values = 3 * 2 * sizes.activations as u64;
            assert_eq!(records.iter().map(|record| record.received).collect::<Vec<_>>(), [values; 2], "{}", case.name);
            assert!(records.iter().all(|record| record.log.is_sorted_by_key(|(at, _)| *at)), "{}", case.name);
        }
    }

    #[test]
    fn the_figures_of_a_run_are_reported_by_its_name() {
        let report = run(&Options { case: vec!["loopback-f32".to_owned()], ..options() }, 1).expect("measured");
        assert_eq!(report.runs.len(), 3);
        let run = &report.runs[MEASURED];
        assert_eq!(report.metrics["pipeline_efficiency"], run["efficiency"]);
        // No device is faster than it is said to be, and a round is no shorter than its passes.
        for (name, run) in &report.runs {
            assert!(run["efficiency_with_filling"] <= run["ideal_efficiency_with_filling"], "{name}: {run:?}");
        }
    }

    #[test]
    fn what_binds_is_named() {
        let of = |name: &str, rate, delay| {
            let options = Options { members: 4, micro_batches: 8, forward: 10, rate, delay, ..options() };
            let cases = options.cases(1 << 19).expect("all");
            let case = cases.iter().find(|case| case.name == name).expect("a run").clone();
            binds(&options.round(&case), options.line(&case)).expect("valid")
        };
        assert_eq!(of(MEASURED, 80_000, 50), "devices");
        assert_eq!(of("loopback-f32-flush", 80_000, 50), "schedule");
        assert_eq!(of("line-bf16-pipelined", 80_000, 50), "round trips: too few on their way");
        assert_eq!(of("line-bf16-pipelined", 80_000_000, 0), "devices");
    }

    #[test]
    fn a_run_that_there_is_not_is_named() {
        let refused = run(&Options { case: vec!["f16".to_owned()], ..options() }, 1).expect_err("refused").to_string();
        assert_eq!(refused, "--case f16: no run begins with that");
    }
}
