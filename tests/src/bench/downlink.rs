//! `anabranch-lab bench downlink`: what each form of models going down costs an agent for a round, by the size of the
//! fleet, and what an agent costs that comes back after an hour (docs/downlink.md).
//!
//! Every case is a race in virtual time with real training (docs/race.md): the forms are those that a coordinator
//! chooses, and their bytes those that leave the lines. Agents end their rounds one after the other.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, ensure};
use plotters::prelude::*;

use crate::race::{self, AgentGroup, Clock, Hit, Kills, Override, RaceReport, Strategy, Workload};
use crate::report::Report;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Directory with MNIST as four gzipped IDX files
    #[arg(long, value_name = "DIR", env = "ANABRANCH_DATA")]
    data: PathBuf,
    /// Sizes of fleets
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [10, 30, 100, 300, 1000],
        value_parser = clap::value_parser!(u32).range(2..=1000))]
    agents: Vec<u32>,
    /// Rounds of each agent in each fleet
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=100))]
    rounds: u32,
    /// Draw bytes by size of the fleet as SVG to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// One form, and the run that uses it.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    strategy: &'static str,
    set: &'static [&'static str],
}

const CASES: [Case; 3] = [
    Case { name: "track", strategy: "init", set: &[] },
    Case { name: "differences", strategy: "init", set: &["downlink={}"] },
    Case { name: "updates", strategy: "fedasync", set: &["downlink={ share_updates = true }"] },
];
/// What all forms are compared with: each model whole, without loss.
const SNAPSHOT: &str = "snapshot";

const MODEL: &str = "data = \"mnist\"\nsplit = { kind = \"iid\", seed = 0 }\n\
    [model]\nkind = \"mlp\"\ninput = [1, 28, 28]\nclasses = 10\nhidden = [128]\ninput_scale = 0.00392156862745098\n\
    [train]\nlocal_steps = 20\nbatch_size = 32\noptimizer = { kind = \"sgd\", lr = 0.05 }\n\
    [[agents]]\nround_s = 1.0\n";
/// How far the rounds of agents differ from their mean, as a share of it.
const SPREAD: f64 = 0.1;
/// Seconds of a round of the fleets that are compared.
const ROUND_S: f64 = 0.5;
/// The fleet that one agent leaves and comes back to: its agents, and the seconds of a round.
const HOME: (usize, f64) = (10, 10.0);
/// When the agent goes, how long it is away, and after how many of its rounds it is looked at.
const AWAY: (f64, f64, f64) = (60.0, 3_600.0, 3.0);
/// Snapshots that coming back may cost.
const REJOIN_AIM: f64 = 2.0;

/// Measures.
///
/// # Errors
/// A race breaks a promise, the data are not there, or the picture cannot be written.
pub fn run(options: &Options, seed: u64) -> anyhow::Result<Report> {
    let Options { agents, rounds, svg, .. } = options;
    ensure!(agents.is_sorted_by(|one, other| one < other), "--agents: expected rising sizes");
    let sizes: Vec<String> = agents.iter().map(u32::to_string).collect();
    let command = format!("anabranch-lab bench downlink --agents {} --rounds {rounds}", sizes.join(","));
    let mut report = Report::new(&command, seed);
    let mut curves: Vec<Curve> =
        CASES.map(|case| case.name).into_iter().chain([SNAPSHOT]).map(|name| (name, Vec::new())).collect();
    println!("kB down for each round of an agent");
    for size in agents {
        let mut found: Vec<f64> = Vec::new();
        let mut whole = 0.0;
        for case in CASES {
            let raced = fleet(options, case, *size as usize, seed).with_context(|| format!("{}, {size}", case.name))?;
            found.push(raced.figure("downlink_bytes")? / raced.figure("updates_accepted")?);
            whole = raced.figure("snapshot_bytes")?;
        }
        found.push(whole);
        for ((name, curve), bytes) in curves.iter_mut().zip(found) {
            println!("{size:>5} agents, {name:<12} {:8.1}", bytes / 1e3);
            report.metric(format!("{name}_{size}_bytes_per_round"), bytes);
            curve.push((f64::from(*size), bytes / 1e3));
        }
    }
    rejoin(options, seed, &mut report)?;
    if let Some(path) = svg {
        draw(path, &curves)?;
    }
    Ok(report)
}

/// A race with one strategy and one seed.
struct Raced(RaceReport);

impl Raced {
    fn of(options: &Options, workload: Workload, case: Case, seed: u64) -> anyhow::Result<Self> {
        let report = race::run(&race::Options {
            command: String::new(),
            workload,
            strategies: vec![Strategy::parse(case.strategy)?],
            overrides: case.set.iter().map(|text| Override::parse(text)).collect::<anyhow::Result<_>>()?,
            seed,
            seeds: 1,
            data: Some(options.data.clone()),
            jobs: 1,
            references: Default::default(),
            clock: Clock::Virtual,
        })?;
        for finish in report.runs.iter().flat_map(|run| &run.races) {
            ensure!(finish.holds(), "a promise was broken: {:?}", finish.broken);
        }
        Ok(Self(report))
    }

    fn figure(&self, name: &str) -> anyhow::Result<f64> {
        self.0.report.metrics.get(name).copied().with_context(|| format!("the race has no {name}"))
    }

    /// Bytes of models that went to an agent, counted from 0.
    fn down_bytes(&self, agent: usize) -> anyhow::Result<u64> {
        let finish = self.0.runs.first().and_then(|run| run.races.first()).context("a race was not run")?;
        finish.agents_downlink_bytes.get(agent).copied().context("there is no such agent")
    }
}

/// Agents whose rounds take about `round_s`, and no two of them the same time.
fn workload(agents: usize, round_s: f64, seconds: f64) -> anyhow::Result<Workload> {
    let head =
        format!("about = \"fleet\"\nseconds = {seconds:?}\ntargets = [1.0]\nlook_s = [{seconds:?}, {seconds:?}]\n");
    let mut workload = Workload::parse(Path::new("fleet.toml"), &format!("{head}{MODEL}"))?;
    let place = |agent: usize| 2.0 * agent as f64 / (agents - 1) as f64 - 1.0;
    let own =
        |agent| AgentGroup { count: 1, round_s: round_s * (1.0 + SPREAD * place(agent)), line: None, hostile: None };
    workload.agents = (0..agents).map(own).collect();
    Ok(workload)
}

fn fleet(options: &Options, case: Case, agents: usize, seed: u64) -> anyhow::Result<Raced> {
    let seconds = f64::from(options.rounds) * ROUND_S;
    Raced::of(options, workload(agents, ROUND_S, seconds)?, case, seed)
}

/// What models cost an agent that comes back after an hour, until it has made some rounds: what it has been sent then,
/// less what it had been sent before it came back. The same seed gives the same race to both moments.
fn rejoin(options: &Options, seed: u64, report: &mut Report) -> anyhow::Result<()> {
    let ((agents, round_s), (at_s, away_s, rounds)) = (HOME, AWAY);
    let last = agents - 1;
    let until = |seconds: f64| {
        let mut workload = workload(agents, round_s, seconds)?;
        let hit = Hit { machine: last + 1, at_s, down_s: away_s, kills: Kills::Kill };
        workload.faults.planned.push(hit);
        Raced::of(options, workload, CASES[0], seed)
    };
    // What takes no time on its line has come at the moment when the agent is back.
    let (back, later) = (until(at_s + away_s - 1.0)?, until(at_s + away_s + 0.5 * round_s)?);
    let first = later.down_bytes(last)? - back.down_bytes(last)?;
    let some = until(at_s + away_s + rounds * (1.0 + SPREAD) * round_s)?.down_bytes(last)? - back.down_bytes(last)?;
    let whole = later.figure("snapshot_bytes")?;
    ensure!(first > 0, "the agent that came back was sent no model");
    println!(
        "back after {away_s} s: {:.1} kB to train again, {:.1} kB until {rounds} rounds later; a snapshot is {:.1} kB",
        first as f64 / 1e3,
        some as f64 / 1e3,
        whole / 1e3
    );
    report.metric("rejoin_bytes", first as f64);
    report.metric("rejoin_snapshots", first as f64 / whole);
    report.aim(format!("coming back costs {REJOIN_AIM} snapshots or less"), first as f64 <= REJOIN_AIM * whole);
    Ok(())
}

/// A form's name, and kB of a round by the size of the fleet.
type Curve = (&'static str, Vec<(f64, f64)>);

const PICTURE: (u32, u32) = (960, 480);
const COLOURS: [RGBColor; 4] =
    [RGBColor(0x1f, 0x6f, 0xb4), RGBColor(0x2e, 0x8b, 0x57), RGBColor(0xd0, 0x5a, 0x2b), RGBColor(0x77, 0x7f, 0x86)];
const FAINT: RGBColor = RGBColor(0xdd, 0xe3, 0xe8);
const INK: RGBColor = RGBColor(0x33, 0x3a, 0x40);

fn draw(path: &Path, curves: &[Curve]) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, PICTURE).into_drawing_area();
    draw_on(&root, curves).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn draw_on(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    curves: &[Curve],
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|(_, points)| points);
    let ends = |of: fn(&(f64, f64)) -> f64| points().map(of).fold((f64::MAX, 0.0f64), |(a, b), x| (a.min(x), b.max(x)));
    let ((least_x, most_x), (least_y, most_y)) = (ends(|point| point.0), ends(|point| point.1));
    root.fill(&WHITE)?;
    let text = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(root)
        .caption("Models down: kB for each round of an agent", text(22))
        .margin(18)
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d((least_x..most_x).log_scale(), (least_y / 2.0..most_y * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .x_desc("agents")
        .y_desc("kB")
        .label_style(text(15))
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    for ((name, points), colour) in curves.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(3)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(FAINT)
        .background_style(WHITE)
        .label_font(text(15))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_differ_and_take_as_long_as_asked_on_the_average() {
        let rounds: Vec<f64> =
            workload(5, 0.5, 4.0).expect("a workload").agents.iter().map(|group| group.round_s).collect();
        assert!(rounds.is_sorted_by(|one, other| one < other), "{rounds:?}");
        assert!((rounds.iter().sum::<f64>() / 5.0 - 0.5).abs() < 1e-9, "{rounds:?}");
        assert!((rounds[4] / rounds[0] - (1.0 + SPREAD) / (1.0 - SPREAD)).abs() < 1e-9, "{rounds:?}");
    }

    #[test]
    fn every_case_is_a_race_that_can_be_run() {
        for Case { name, strategy, set } in CASES {
            let overrides: Vec<Override> = set.iter().map(|text| Override::parse(text).expect("an override")).collect();
            let strategy = Strategy::parse(strategy).expect("a strategy");
            let workload = workload(3, ROUND_S, 4.0).expect("a workload");
            race::config(&workload, &strategy, &overrides, 1).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
    }

    #[test]
    fn the_picture_names_every_form_and_every_size() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("forms.svg");
        let curves: Vec<Curve> =
            [("track", 1.0), ("snapshot", 300.0)].map(|(name, kb)| (name, vec![(10.0, kb), (1000.0, 2.0 * kb)])).into();
        draw(&path, &curves).expect("drawn");
        let drawn = std::fs::read_to_string(&path).expect("a picture");
        assert!(["track", "snapshot", "1000", "<polyline"].iter().all(|part| drawn.contains(part)), "{drawn}");
    }
}
